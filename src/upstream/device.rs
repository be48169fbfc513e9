//! One device at the hub: its session, what it sends to each address, what waits for an outcome, its subscription.

mod links;
mod sending;

use std::time::Instant;

use fieldgate_amqp::connection::{Connection, LinkId, SessionId};
use fieldgate_amqp::endpoint::{Receiver, Sender, Unsettled};
use fieldgate_amqp::performative::{Attach, Disposition, Flow};
use fieldgate_mappings::address::{Address, DeviceId};
use fieldgate_mappings::outcome::Outcome;

use super::answer::{Answer, Limit};
use super::commands::Commands;
use super::grant::Grant;
use super::outlet::{InFlight, OutLink, Outlet};
use super::owed::Owed;

pub(super) use links::address_too_long;
pub(super) use sending::{Path, Turn};

/// Addresses that one device may send to at a time: a rule can take them from what the device says.
const MAX_OUTLETS: usize = 32;

/// A device that sends or listens.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) id: DeviceId,
    pub(super) session: Option<SessionId>,
    pub(super) outlets: Vec<Outlet>,
    unsettled: Unsettled<InFlight>,
    /// Messages that went over links that are shared, and have no outcome.
    pub(super) relayed: usize,
    pub(super) commands: Option<Box<Commands>>,
    /// What lets its links be attached, where the connection alone does not.
    pub(super) grant: Option<Box<Grant>>,
    pub(super) owed: Owed,
    pub(super) used_at: Instant,
    /// It stands in the queue of those that could send if it were their turn.
    pub(super) queued: bool,
    /// It stands in the queue of those that the connection has no channel or handle for.
    pub(super) crowded_out: bool,
    /// What it may send of its turn; less than nothing where the last message was larger than that.
    allowance: isize,
    /// The hub has throttled it.
    paused_until: Option<Instant>,
    throttled: u8,
    /// Counts its turns.
    turns: u8,
    /// The outlet that comes first in the next one, among those as urgent.
    next: u8,
}

impl Device {
    /// A device without a session.
    pub(super) fn new(id: DeviceId, grant: Option<Grant>, now: Instant) -> Self {
        Self {
            id,
            session: None,
            outlets: Vec::new(),
            unsettled: Unsettled::new(),
            relayed: 0,
            commands: None,
            grant: grant.map(Box::new),
            owed: Owed::default(),
            used_at: now,
            queued: false,
            crowded_out: false,
            allowance: 0,
            paused_until: None,
            throttled: 0,
            turns: 0,
            next: 0,
        }
    }

    /// Whether it could be forgotten without anybody noticing.
    pub(super) fn is_idle(&self) -> bool {
        let nothing_waits = self.commands.is_none() && !self.waits() && !self.is_asked();
        nothing_waits && self.unsettled.is_empty() && self.relayed == 0
    }

    /// Whether another connection could have it: it has no session and nothing in flight.
    pub(super) fn can_move(&self) -> bool {
        self.session.is_none() && self.relayed == 0
    }

    /// Whether nothing is known of it that would be missed.
    pub(super) fn is_forgettable(&self, now: Instant) -> bool {
        let refused = self.grant.as_ref().is_some_and(|grant| grant.refused(now).is_some());
        self.is_idle() && self.paused_until(now).is_none() && !refused
    }

    /// Whether anybody waits to hear what the hub says to its token.
    pub(super) fn is_asked(&self) -> bool {
        self.grant.as_ref().is_some_and(|grant| grant.is_asked())
    }

    /// Whether any message waits.
    pub(super) fn waits(&self) -> bool {
        self.outlets.iter().any(|outlet| !outlet.waiting.is_empty())
    }

    /// What its waiting messages take of the bounds.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.outlets.iter().map(|outlet| outlet.waiting.bytes()).sum()
    }

    /// Whether it needs a link of its own that it does not have.
    pub(super) fn lacks_a_link(&self, relays: bool) -> bool {
        self.commands.as_ref().is_some_and(|commands| commands.receiver.is_none())
            || !relays && self.outlets.iter().any(Outlet::lacks_a_link)
    }

    /// When the message went out over its own links that the hub has left unanswered for longest.
    pub(super) fn oldest_sent(&self) -> Option<Instant> {
        self.unsettled.first().map(|in_flight| in_flight.sent_at)
    }

    /// Its own links.
    pub(super) fn links(&self) -> impl Iterator<Item = LinkId> {
        let senders = self.outlets.iter().filter_map(|outlet| outlet.link.as_ref()).map(OutLink::id);
        let receiver = self.commands.as_ref().and_then(|commands| commands.receiver.as_ref());
        senders.chain(receiver.map(Receiver::link))
    }

    /// The outlet for an address.
    pub(super) fn outlet(&mut self, address: &Address) -> Option<&mut Outlet> {
        self.outlets.iter_mut().find(|outlet| outlet.address == *address)
    }

    /// The outlet for an address, made where there is none, and the link that had to make place for it.
    ///
    /// # Errors
    /// When the device sends to too many addresses at a time.
    pub(super) fn open_outlet(
        &mut self,
        address: &Address,
    ) -> Result<(&mut Outlet, Option<LinkId>), TooManyOutlets> {
        let mut recycled = None;
        let at = match self.outlets.iter().position(|outlet| outlet.address == *address) {
            Some(at) => at,
            None => {
                if self.outlets.len() >= MAX_OUTLETS {
                    let oldest = self.outlets.iter().position(Outlet::is_idle).ok_or(TooManyOutlets)?;
                    recycled = self.outlets.remove(oldest).link.map(|link| link.id());
                } else if self.outlets.is_empty() {
                    // Most devices send to one address.
                    self.outlets.reserve_exact(1);
                }
                self.outlets.push(Outlet::new(address.clone()));
                self.outlets.len() - 1
            }
        };
        Ok((&mut self.outlets[at], recycled))
    }

    /// Takes a link out that is of no use now, for another to have its handle.
    pub(super) fn recycle(&mut self) -> Option<LinkId> {
        let oldest = self.outlets.iter().position(|outlet| outlet.link.is_some() && outlet.is_idle())?;
        self.outlets.remove(oldest).link.map(|link| link.id())
    }

    /// Gives memory back that only a busy device needs.
    pub(super) fn rest(&mut self) {
        if self.unsettled.is_empty() {
            self.unsettled = Unsettled::new();
        }
    }

    // What the hub says.

    /// The hub has answered an attach.
    pub(super) fn attached(&mut self, connection: &mut Connection, link: LinkId, attach: &Attach) {
        if let Some(outlet) = self.outlets.iter_mut().find(|outlet| outlet.sends_over(link)) {
            if let Some(own) = &mut outlet.link {
                own.on_attached(attach);
            }
        } else if let Some(receiver) = self.receiver(link) {
            receiver.on_attached(connection);
        }
    }

    /// The receiving end of a link of this device.
    fn receiver(&mut self, link: LinkId) -> Option<&mut Receiver> {
        self.commands_over(link)?.receiver.as_mut()
    }

    /// The sending end of a link of this device.
    pub(super) fn sender(&mut self, link: LinkId) -> Option<&mut Sender> {
        let outlet = self.outlets.iter_mut().find(|outlet| outlet.sends_over(link))?;
        outlet.link.as_mut().map(OutLink::sender)
    }

    /// The subscription that a link serves.
    pub(super) fn commands_over(&mut self, link: LinkId) -> Option<&mut Commands> {
        self.commands.as_deref_mut().filter(|commands| commands.receives_over(link))
    }

    /// Whether the link still serves something.
    pub(super) fn uses(&self, link: LinkId) -> bool {
        self.links().any(|of| of == link)
    }

    /// The hub speaks of a link: answers an echo. True if the peer drains it.
    pub(super) fn flow(&mut self, connection: &mut Connection, link: LinkId, flow: &Flow) -> bool {
        if let Some(sender) = self.sender(link) {
            return sender.on_flow(connection, flow);
        }
        if let Some(receiver) = self.receiver(link) {
            receiver.on_flow(connection, flow);
        }
        false
    }

    /// The hub has judged deliveries of the session. Gives what it limits, if it said so.
    pub(super) fn disposition(
        &mut self,
        connection: &mut Connection,
        session: SessionId,
        disposition: &Disposition,
        now: Instant,
    ) -> Option<Limit> {
        let Self { outlets, unsettled, throttled, .. } = self;
        let mut limit = None;
        unsettled.on_disposition(connection, session, disposition, |delivery| {
            if let Some(outlet) = outlets.iter_mut().find(|outlet| outlet.sends_over(delivery.link)) {
                outlet.in_flight = outlet.in_flight.saturating_sub(1);
            }
            let answer = Answer::new(delivery.state);
            if answer.outcome == Outcome::Accepted {
                *throttled = 0;
            }
            limit = limit.take().or(answer.limit);
            delivery.value.report(answer.outcome);
        });
        self.used_at = now;
        limit
    }

    /// A message over a shared link has its outcome.
    pub(super) fn relayed_settled(&mut self, accepted: bool, now: Instant) {
        self.relayed = self.relayed.saturating_sub(1);
        self.used_at = now;
        if accepted {
            self.throttled = 0;
        }
    }
}

/// A device sends to too many addresses at a time.
#[derive(Debug)]
pub(super) struct TooManyOutlets;
