//! A hub that notes what comes, and accepts it a moment later.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use fieldgate_amqp::connection::{Connection, Event, LinkId};
use fieldgate_amqp::endpoint::{Delivery, Receiver};
use fieldgate_amqp::performative::Transfer;
use fieldgate_amqp::sasl::SaslCode;

use super::hub::admit;
use super::ledger::Ledger;
use super::party::Party;

/// How long the hub thinks about a delivery: so much of the load is without an outcome at any time.
const THOUGHT: Duration = Duration::from_millis(50);

/// What each link may have under way.
const CREDIT: u32 = 20;

/// A delivery that the hub has and thinks about.
#[derive(Debug)]
struct Thought {
    until: Instant,
    link: LinkId,
    delivery_id: u32,
    number: u64,
}

/// One connection of the hub.
#[derive(Debug)]
pub(crate) struct Thinker {
    ledger: Rc<RefCell<Ledger>>,
    receivers: HashMap<LinkId, Receiver>,
    thoughts: VecDeque<Thought>,
}

impl Thinker {
    pub(crate) fn new(ledger: Rc<RefCell<Ledger>>) -> Self {
        Self { ledger, receivers: HashMap::new(), thoughts: VecDeque::new() }
    }

    fn transfer(
        &mut self,
        machine: &mut Connection,
        link: LinkId,
        id: u32,
        first: bool,
        transfer: &Transfer,
        now: Instant,
    ) {
        if first {
            self.ledger.borrow_mut().hub_begun(transfer.delivery_tag().and_then(number));
        }
        let Some(receiver) = self.receivers.get_mut(&link) else { return };
        // A delivery above the bound is none of ours: the detach that follows shows it.
        let Ok(Some(Delivery { tag, delivery_id, payload, .. })) =
            receiver.on_transfer(machine, transfer, id)
        else {
            return;
        };
        let Some(number) = number(&tag) else { return };
        self.ledger.borrow_mut().hub_whole(number, &payload);
        self.thoughts.push_back(Thought { until: now + THOUGHT, link, delivery_id, number });
    }
}

/// The number that a delivery-tag is.
fn number(tag: &[u8]) -> Option<u64> {
    tag.try_into().ok().map(u64::from_be_bytes)
}

impl Party for Thinker {
    fn on_event(&mut self, machine: &mut Connection, event: Event, now: Instant) {
        match event {
            Event::SaslInit { .. } => machine.sasl_outcome(SaslCode::Ok),
            Event::Opened(_) => {
                let open = machine.config().open();
                machine.open(open);
            }
            Event::SessionBegun { session, by_peer: true, .. } => machine.accept_begin(session),
            Event::Attached { link, attach, by_peer: true, .. } => {
                if let Some(receiver) = admit(machine, link, &attach, CREDIT) {
                    self.receivers.insert(link, receiver);
                }
            }
            Event::Transfer { link, delivery_id, first, transfer, .. } => {
                self.transfer(machine, link, delivery_id, first, &transfer, now);
            }
            Event::Flow { link: Some(link), flow, .. } => {
                if let Some(receiver) = self.receivers.get_mut(&link) {
                    receiver.on_flow(machine, &flow);
                }
            }
            Event::Detached { link, detach, answered, .. } => {
                self.receivers.remove(&link);
                if !answered {
                    machine.detach(link, detach.closed(), None);
                }
            }
            _ => {}
        }
    }

    fn turn(&mut self, machine: &mut Connection, now: Instant) -> Option<Instant> {
        while let Some(thought) = self.thoughts.pop_front_if(|thought| thought.until <= now) {
            // Who asked is gone: nobody will hear of it.
            if machine.link(thought.link).is_none() {
                continue;
            }
            if let Some(receiver) = self.receivers.get_mut(&thought.link) {
                self.ledger.borrow_mut().hub_accepted(thought.number);
                receiver.accept(machine, thought.delivery_id, thought.delivery_id);
            }
        }
        self.thoughts.front().map(|thought| thought.until)
    }
}
