//! What is kept of messages that may have to go to the disk, and in which order they go there.
//!
//! ```text
//!                 ┌─ straight ──▶ Sent ── accepted, rejected ──▶ Done
//!   send ─────────┤                 └─── released, unknown ───▶ Behind
//!                 └─ by the disk ─────────────────────────────▶ Behind ── all before it Done ──▶ Storing ──▶ the end
//! ```

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::mem;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use fieldgate_mappings::address::{Address, DeviceId};
use fieldgate_mappings::amqp;
use fieldgate_mappings::delivery::{Ack, Delivery};
use fieldgate_mappings::message::{Message, MessageId};
use fieldgate_mappings::outcome::{Outcome, Reason, Rejection, Report, Verdict};
use slab::Slab;

use crate::config::UPSTREAM;
use crate::spool::{Entry, Limits, Record, Refusal, Store, Stored};
use crate::telemetry::emit;
use crate::upstream::Patience;

use super::telemetry::{KeptExceeded, SentByDisk, SentStraight, TurnedToDisk};
use super::{Direct, Disk};

/// How long a hub that is there may give no credit before a message goes to the disk.
const GRACE: Duration = Duration::from_secs(1);
/// Bytes of messages that a worker keeps because they may have to go to the disk, or are on their way there, with what
/// stands beside them.
pub(super) const MAX_KEPT_BYTES: usize = 32 * 1024 * 1024;
/// What stands beside a message, about: its entry, its place in the order, its allocations.
const OVERHEAD_BYTES: usize = 256;

/// The keeper of one worker.
pub(super) struct Keeper<U, D> {
    direct: U,
    disk: D,
    hub: Arc<str>,
    state: RefCell<State>,
    /// Itself, for the verdicts that it hands out.
    this: Weak<Self>,
}

#[derive(Default)]
struct State {
    /// Every message that has no end yet, by its ticket.
    messages: Slab<Kept>,
    /// Devices with anything here.
    devices: HashMap<DeviceId, Order>,
    bytes: usize,
    /// To be handed to the disk at the end of this turn.
    batch: Vec<Store>,
    closing: bool,
    /// A message on its straight way.
    scratch: BytesMut,
    task: Option<Waker>,
}

/// One message.
struct Kept {
    device: DeviceId,
    address: Address,
    delivery: Arc<Delivery>,
    ttl: Option<Duration>,
    durable: bool,
    /// Its sections without the header; empty when it is done.
    sections: Bytes,
    /// What it counts for in the bound.
    bytes: usize,
    /// Absent when it is done.
    verdict: Option<Verdict>,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The hub is asked.
    Sent,
    /// The hub, or the mapping, has spoken; it only holds its place.
    Done,
    /// It goes to the disk when all that was sent before it is done.
    Behind { possibly_delivered: bool },
    /// The disk is asked.
    Storing,
}

/// The messages of one device, until they are handed to the disk.
#[derive(Default)]
struct Order {
    tickets: VecDeque<usize>,
    /// Those of them that are to go to the disk.
    behind: usize,
    /// Those that are no longer in it: the disk is asked.
    storing: usize,
}

impl<U: Direct, D: Disk> Keeper<U, D>
where
    Self: 'static,
{
    pub(super) fn new(direct: U, disk: D) -> Rc<Self> {
        Rc::new_cyclic(|this| Self {
            direct,
            disk,
            hub: UPSTREAM.into(),
            state: RefCell::default(),
            this: Weak::clone(this),
        })
    }

    /// See [`Outbound::send`](super::Outbound::send).
    pub(super) fn send(
        &self,
        mut message: Message,
        delivery: Arc<Delivery>,
        patience: Patience,
        verdict: Verdict,
        now: Instant,
    ) {
        let mut state = self.state.borrow_mut();
        if state.closing {
            return; // A verdict that is dropped unsent says released.
        }
        let behind = state.devices.get(&message.device).is_some_and(Order::is_turning)
            || self.disk.holds(&self.hub, &message.device);
        let straight = delivery.ack == Ack::OnHubAccept && !behind && !self.direct.is_away();
        if straight && message.properties.message_id.is_none() {
            // If the disk sends it once more, it must be known as the same.
            message.properties.message_id = Some(MessageId::String(self.disk.message_id()));
        }
        let mut sections = BytesMut::new();
        amqp::encode_sections(&message, &mut sections);
        let sections = sections.freeze();
        let bytes = sections.len() + OVERHEAD_BYTES;
        if state.bytes + bytes > MAX_KEPT_BYTES {
            let kept = state.bytes;
            drop(state);
            return emit(KeptExceeded { device: &message.device, bytes: kept });
        }
        state.bytes += bytes;
        let stage = if straight { Stage::Sent } else { Stage::Behind { possibly_delivered: false } };
        let ticket = state.messages.insert(Kept {
            device: message.device.clone(),
            address: message.address.clone(),
            delivery,
            ttl: message.ttl,
            durable: message.durable,
            sections: sections.clone(),
            bytes,
            verdict: Some(verdict),
            stage,
        });
        let order = state.devices.entry(message.device.clone()).or_default();
        order.tickets.push_back(ticket);
        if !straight {
            order.behind += 1;
            emit(SentByDisk);
            return state.advance(&message.device, &self.hub);
        }
        emit(SentStraight);
        let mut encoded = mem::take(&mut state.scratch);
        drop(state); // What is sent may be reported at once.
        encoded.clear();
        amqp::encode_header(&message, &mut encoded);
        encoded.extend_from_slice(&sections);
        let this: Rc<dyn Report> = self.this.upgrade().expect("whoever calls this holds it");
        let patience = Patience { until: patience.until.min(now + GRACE), through_outage: false };
        let verdict = Verdict::new(this, ticket as u64);
        self.direct.send(&message.device, &message.address, &encoded, patience, verdict);
        self.state.borrow_mut().scratch = encoded;
    }

    /// Hands over what goes to the disk, and reports what is there. Ready once it is closed and empty.
    pub(super) fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        loop {
            let batch = {
                let mut state = self.state.borrow_mut();
                state.task = Some(cx.waker().clone());
                mem::take(&mut state.batch)
            };
            if !batch.is_empty() {
                self.disk.submit(batch);
            }
            match self.disk.poll(cx) {
                Poll::Ready(answers) => {
                    answers.into_iter().for_each(|(ticket, stored)| self.stored(ticket, stored));
                }
                Poll::Pending => break,
            }
        }
        let state = self.state.borrow();
        if state.closing && state.messages.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Nothing new is taken.
    pub(super) fn close(&self) {
        let mut state = self.state.borrow_mut();
        state.closing = true;
        state.wake();
    }

    /// The disk has answered.
    fn stored(&self, ticket: u64, stored: Stored) {
        let mut state = self.state.borrow_mut();
        let Some(kept) = usize::try_from(ticket).ok().and_then(|ticket| state.messages.try_remove(ticket))
        else {
            return;
        };
        state.bytes -= kept.bytes;
        if let Some(order) = state.devices.get_mut(&kept.device) {
            order.storing -= 1;
            if order.is_empty() {
                state.devices.remove(&kept.device);
            }
        }
        drop(state);
        let Some(verdict) = kept.verdict else { return };
        let rejected = |reason, description| Outcome::Rejected(Rejection::new(reason, description));
        verdict.report(match stored {
            Stored::Stored => Outcome::Accepted,
            Stored::Refused(Refusal::Full { retry_after }) => {
                rejected(Reason::NoRoom { retry_after }, "the gateway has no room for the message")
            }
            Stored::Refused(Refusal::TooLarge) => {
                rejected(Reason::TooLarge, "the message is larger than what the gateway can keep")
            }
            Stored::Refused(Refusal::Failed { .. }) => Outcome::Released,
        });
    }
}

impl<U: Direct, D: Disk> Report for Keeper<U, D> {
    /// The hub has spoken, or will not.
    fn report(&self, ticket: u64, outcome: Outcome) {
        let mut state = self.state.borrow_mut();
        let state = &mut *state;
        let Some(kept) = usize::try_from(ticket).ok().and_then(|ticket| state.messages.get_mut(ticket))
        else {
            return;
        };
        let device = kept.device.clone();
        let verdict = match outcome {
            Outcome::Accepted | Outcome::Rejected(_) => {
                kept.stage = Stage::Done;
                kept.sections = Bytes::new();
                state.bytes -= mem::take(&mut kept.bytes);
                kept.verdict.take()
            }
            Outcome::Released | Outcome::Unknown => {
                let possibly_delivered = outcome == Outcome::Unknown;
                kept.stage = Stage::Behind { possibly_delivered };
                if let Some(order) = state.devices.get_mut(&device) {
                    order.behind += 1;
                }
                emit(TurnedToDisk { device: &device, possibly_delivered });
                None
            }
        };
        state.advance(&device, &self.hub);
        if let Some(verdict) = verdict {
            // The owner only notes it.
            verdict.report(outcome);
        }
    }
}

impl State {
    /// Hands over what has nothing before it any more that the hub is asked about.
    fn advance(&mut self, device: &DeviceId, hub: &Arc<str>) {
        let Some(order) = self.devices.get_mut(device) else { return };
        while let Some(&ticket) = order.tickets.front() {
            let Some(kept) = self.messages.get_mut(ticket) else { break };
            match kept.stage {
                Stage::Sent | Stage::Storing => break,
                Stage::Done => {
                    order.tickets.pop_front();
                    self.messages.remove(ticket);
                }
                Stage::Behind { possibly_delivered } => {
                    order.tickets.pop_front();
                    order.behind -= 1;
                    order.storing += 1;
                    kept.stage = Stage::Storing;
                    self.batch.push(kept.store(ticket, possibly_delivered, hub));
                }
            }
        }
        if order.is_empty() {
            self.devices.remove(device);
        }
        if !self.batch.is_empty() || self.closing {
            self.wake();
        }
    }

    fn wake(&mut self) {
        if let Some(task) = self.task.take() {
            task.wake();
        }
    }
}

impl Kept {
    /// What the disk is handed.
    fn store(&mut self, ticket: usize, possibly_delivered: bool, hub: &Arc<str>) -> Store {
        let when_offline = self.delivery.when_offline;
        let record = Record {
            hub: Arc::clone(hub),
            device: self.device.clone(),
            address: self.address.clone(),
            priority: self.delivery.priority,
            stored_at: 0, // The spool's to say.
            ttl: self.ttl,
            max_age: when_offline.and_then(|when| when.max_age),
            durable: self.durable,
            possibly_delivered,
            rule: Arc::clone(&self.delivery.rule),
            message: mem::take(&mut self.sections),
        };
        let limits = Limits {
            max_bytes: when_offline.and_then(|when| when.max_bytes),
            full: when_offline.map(|when| when.full).unwrap_or_default(),
        };
        Store { ticket: ticket as u64, entry: Entry::Message(record), limits }
    }
}

impl Order {
    /// Whether the device's messages are on their way to the disk.
    fn is_turning(&self) -> bool {
        self.behind > 0 || self.storing > 0
    }

    fn is_empty(&self) -> bool {
        self.tickets.is_empty() && self.storing == 0
    }
}
