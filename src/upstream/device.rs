//! One device at the hub: its session, what it sends to each address, what waits for an outcome, its subscription.

use std::rc::Rc;
use std::time::{Duration, Instant};

use fieldgate_amqp::connection::{Connection, LinkId, SessionId};
use fieldgate_amqp::endpoint::{Receiver, Sender, Unsettled};
use fieldgate_amqp::error::Misuse;
use fieldgate_amqp::performative::{
    Attach, AttachOut, Disposition, Flow, RcvSettleMode, SndSettleMode, SourceOut, TargetOut,
};
use fieldgate_mappings::address::{Address, DeviceId};
use fieldgate_mappings::outcome::{Outcome, Reason, Rejection, Verdict};

use crate::router::arena::Key;

use super::Patience;
use super::answer::{Answer, Limit};
use super::commands::{Commands, MAX_COMMAND_BYTES};
use super::grant::Grant;
use super::lanes::{TURN_OF_THE_LAST, Waiting};
use super::load::Load;
use super::outlet::{InFlight, OutLink, Outlet, Way};
use super::owed::Owed;
use super::relay::Relay;

/// Addresses that one device may send to at a time: a rule can take them from what the device says.
const MAX_OUTLETS: usize = 32;

/// What a device may send in its turn while others wait for theirs, as [`cost`] counts: a small message or two.
const QUANTUM: usize = 2048;

/// What a message costs beside its bytes: it is counted by the hub, however small it is.
const MESSAGE_COST: usize = 1024;

/// How long a device is not sent for that the hub has throttled without saying for how long; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// How often it is doubled.
const MAX_DOUBLINGS: u8 = 6;

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

/// What came of a device's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It has nothing more that could go.
    Done,
    /// It has more; others are to have their turn first.
    More,
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
            || !relays && self.outlets.iter().any(lacks_a_link)
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
                    let oldest = self.outlets.iter().position(is_idle).ok_or(TooManyOutlets)?;
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
        let oldest = self.outlets.iter().position(|outlet| outlet.link.is_some() && is_idle(outlet))?;
        self.outlets.remove(oldest).link.map(|link| link.id())
    }

    /// Gives memory back that only a busy device needs.
    pub(super) fn rest(&mut self) {
        if self.unsettled.is_empty() {
            self.unsettled = Unsettled::new();
        }
    }

    // Sending.

    /// Whether the hub has throttled it, and wants to be left alone still.
    pub(super) fn paused_until(&self, now: Instant) -> Option<Instant> {
        self.paused_until.filter(|until| *until > now)
    }

    /// A pause is over: true if there was one.
    pub(super) fn ends_pause(&mut self, now: Instant) -> bool {
        self.paused_until.take_if(|until| *until <= now).is_some()
    }

    /// The hub has throttled it; where it has not said for how long, longer each time.
    pub(super) fn pause(&mut self, retry_after: Option<Duration>, now: Instant) {
        // Of many that were under way, each says it once more.
        if self.paused_until(now).is_none() {
            self.throttled = (self.throttled + 1).min(MAX_DOUBLINGS);
        }
        let time = retry_after.unwrap_or(FIRST_PAUSE * (1 << (self.throttled.max(1) - 1)));
        self.paused_until = self.paused_until.max(Some(now + time));
    }

    /// Sends now what nothing stands before; else gives the verdict back. The address has an outlet.
    pub(super) fn send(
        &mut self,
        path: &mut Path<'_>,
        address: &Address,
        message: &[u8],
        verdict: Verdict,
    ) -> Result<(), Verdict> {
        let Self { outlets, unsettled, relayed, paused_until, .. } = self;
        let outlet = outlets.iter_mut().find(|outlet| outlet.address == *address);
        match outlet {
            Some(outlet)
                if outlet.waiting.is_empty()
                    && paused_until.is_none_or(|until| until <= path.now)
                    && path.relay.as_ref().is_none_or(|relay| relay.is_free(address)) =>
            {
                path.send(outlet, unsettled, relayed, message, verdict)
            }
            _ => Err(verdict),
        }
    }

    /// Whether something waits that could go if it were its turn: there is credit for it.
    pub(super) fn could_send(&self, connection: &Connection) -> bool {
        self.outlets.iter().any(|outlet| {
            let credit = outlet.link.as_ref().is_some_and(|link| link.has_credit(connection));
            credit && !outlet.waiting.is_empty()
        })
    }

    /// Sends what waits, as far as the device's turn goes.
    pub(super) fn turn(&mut self, path: &mut Path<'_>) -> Turn {
        if self.paused_until(path.now).is_some() {
            return Turn::Done;
        }
        self.allowance = (self.allowance + QUANTUM.cast_signed()).min(QUANTUM.cast_signed());
        let first = self.first_outlet();
        let Self { outlets, unsettled, relayed, allowance, next, .. } = self;
        let mut more = false;
        let (before, from) = outlets.split_at_mut(first);
        for (at, outlet) in (first..).zip(from).chain((0..).zip(before)) {
            let mut has_sent = false;
            while let Some((priority, waiting)) = outlet.waiting.pop() {
                // Dropped, it is released.
                if !waiting.verdict.is_wanted(false) {
                    continue;
                }
                let has_credit = path.has_credit(outlet);
                let may = has_credit && *allowance > 0 && path.load.is_open(path.now);
                let Waiting { message, patience, verdict, share } = waiting;
                let sent = match may {
                    true => path.send(outlet, unsettled, relayed, &message, verdict),
                    false => Err(verdict),
                };
                match sent {
                    Ok(()) => {
                        *allowance -= (message.len() + MESSAGE_COST).cast_signed();
                        has_sent = true;
                    }
                    Err(verdict) => {
                        let waiting = Waiting { message, patience, verdict, share };
                        outlet.waiting.put_back(priority, waiting);
                        // A connection that is about to end takes nothing, whoever's turn it is.
                        let is_cut = has_credit && !(may && path.load.is_open(path.now));
                        if is_cut && !more {
                            // It goes on where this turn ends; who had his share of it comes last.
                            *next = at as u8 + u8::from(has_sent);
                        }
                        more |= is_cut;
                        path.stand_in_line(outlet, has_credit);
                        break;
                    }
                }
            }
        }
        if more {
            return Turn::More;
        }
        // Who has nothing to send saves nothing up.
        *allowance = (*allowance).min(0);
        Turn::Done
    }

    /// Where a turn begins: with the most urgent, as a rule.
    fn first_outlet(&mut self) -> usize {
        let many = self.outlets.len();
        if many < 2 {
            return 0;
        }
        self.turns = self.turns.wrapping_add(1);
        let next = usize::from(self.next) % many;
        if self.turns.is_multiple_of(TURN_OF_THE_LAST) {
            return next;
        }
        // Of several the last counts as the greatest: that is `next`, and those behind it.
        let in_turn = (0..many).rev().map(|behind| (next + behind) % many);
        in_turn.max_by_key(|at| self.outlets[*at].waiting.most_urgent()).unwrap_or(next)
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

    // Links and sessions.

    /// Begins the session and attaches what is missing of the device's own links that are needed now. What waits for an
    /// address that no frame of the hub holds is refused.
    ///
    /// # Errors
    /// When the connection has no room for the session or a link.
    pub(super) fn attach(
        &mut self,
        connection: &mut Connection,
        prefix: &str,
        relays: bool,
        mut attached: impl FnMut(LinkId),
    ) -> Result<(), Misuse> {
        let session = match self.session {
            Some(session) => session,
            None => *self.session.insert(connection.begin()?),
        };
        // Commands first: a device has one subscription, and many addresses perhaps.
        if let Some(commands) = &mut self.commands
            && commands.receiver.is_none()
        {
            let named = format!("{prefix}{}", commands.address.as_str());
            match attach_receiver(connection, session, &named, commands.serial) {
                Ok(link) => {
                    commands.receiver = Some(Receiver::new(link, commands.receiver_config()));
                    commands.attachment = commands.attachment.wrapping_add(1);
                    attached(link);
                }
                Err(Misuse::FrameTooLarge) => self.end_commands(&address_too_long()),
                Err(misuse) => return Err(misuse),
            }
        }
        for outlet in self.outlets.iter_mut().filter(|outlet| !relays && lacks_a_link(outlet)) {
            let named = format!("{prefix}{}", outlet.address.as_str());
            match OutLink::attach(connection, session, Some(&named)) {
                Ok(link) => {
                    attached(link.id());
                    outlet.link = Some(link);
                }
                Err(Misuse::FrameTooLarge) => outlet.refuse_waiting(&address_too_long()),
                Err(misuse) => return Err(misuse),
            }
        }
        Ok(())
    }

    /// The hub has detached a link: what was sent over it stays unanswered, what waits for it gets `outcome`, a
    /// subscription ends.
    pub(super) fn lose_link(&mut self, link: LinkId, outcome: &Outcome) {
        self.unsettled.lose_link(link, |_, in_flight| drop(in_flight));
        if let Some(at) = self.outlets.iter().position(|outlet| outlet.sends_over(link)) {
            let outlet = self.outlets.remove(at);
            let attached = outlet.link.as_ref().is_some_and(|link| link.attached);
            refuse_waiting(outlet, attached, outcome);
        }
        if let Some(commands) = self.commands.take_if(|commands| commands.receives_over(link)) {
            commands.end(outcome);
        }
    }

    /// Whether something waits for this address, or for any.
    pub(super) fn waits_for(&self, address: Option<&Address>) -> bool {
        let meant = |outlet: &&Outlet| address.is_none_or(|address| outlet.address == *address);
        self.outlets.iter().filter(meant).any(|outlet| !outlet.waiting.is_empty())
    }

    /// It stands no longer in the line of the shared link that leads to this address, or anywhere.
    pub(super) fn leave_line(&mut self, address: Option<&Address>) {
        let meant = |outlet: &&mut Outlet| address.is_none_or(|address| outlet.address == *address);
        self.outlets.iter_mut().filter(meant).for_each(|outlet| outlet.in_line = false);
    }

    /// A shared link for this address is gone: what waits for it gets `outcome`.
    pub(super) fn lose_shared(&mut self, address: &Address, attached: bool, outcome: &Outcome) {
        if let Some(at) = self.outlets.iter().position(|outlet| outlet.address == *address) {
            let outlet = self.outlets.remove(at);
            refuse_waiting(outlet, attached, outcome);
        }
    }

    /// The session is gone: what was sent stays unanswered; waiting messages and the subscription stay.
    pub(super) fn lose_session(&mut self) {
        self.session = None;
        self.outlets.retain_mut(|outlet| {
            outlet.link = None;
            outlet.in_flight = 0;
            !outlet.waiting.is_empty()
        });
        if let Some(commands) = &mut self.commands {
            commands.receiver = None;
        }
        self.unsettled.lose_all().for_each(drop);
    }

    /// The shared links are gone: it stands in no line any more.
    pub(super) fn lose_relay(&mut self) {
        self.relayed = 0;
        self.outlets.iter_mut().for_each(|outlet| outlet.in_line = false);
    }

    /// The hub takes nothing of this device now: what waits ends with `outcome`.
    pub(super) fn refuse_waiting(&mut self, outcome: &Outcome) {
        self.outlets.iter_mut().for_each(|outlet| outlet.refuse_waiting(outcome));
    }

    /// The hub wants nothing of this device now: what waits, and the subscription, end with `outcome`.
    pub(super) fn turn_away(&mut self, outcome: &Outcome) {
        self.refuse_waiting(outcome);
        self.end_commands(outcome);
    }

    /// No command will come any more.
    pub(super) fn end_commands(&mut self, outcome: &Outcome) {
        if let Some(commands) = self.commands.take() {
            commands.end(outcome);
        }
    }

    /// Whether something waits for a shared link and stands in no line for it.
    pub(super) fn is_in_no_line(&self) -> bool {
        self.outlets.iter().any(|outlet| !outlet.waiting.is_empty() && !outlet.in_line)
    }

    /// Releases what waits and is not wanted any more.
    pub(super) fn recall(&mut self) {
        for outlet in &mut self.outlets {
            outlet.waiting.retain(|waiting| waiting.verdict.is_wanted(false));
        }
    }

    /// Releases what waits and is `meant`; with one that is to stay in order, all that are.
    pub(super) fn release_waiting(&mut self, meant: impl Fn(&Patience) -> bool) {
        let all = |outlet: &Outlet| outlet.waiting.patiences().any(|it| it.in_order && meant(it));
        let in_order = self.outlets.iter().any(all);
        for outlet in &mut self.outlets {
            // Dropping the verdict of what was never sent releases it.
            outlet
                .waiting
                .retain(|Waiting { patience, .. }| !(meant(patience) || in_order && patience.in_order));
        }
    }
}

/// A device sends to too many addresses at a time.
#[derive(Debug)]
pub(super) struct TooManyOutlets;

fn is_idle(outlet: &Outlet) -> bool {
    outlet.waiting.is_empty() && outlet.in_flight == 0
}

fn lacks_a_link(outlet: &Outlet) -> bool {
    outlet.link.is_none() && !outlet.waiting.is_empty()
}

fn refuse_waiting(mut outlet: Outlet, attached: bool, outcome: &Outcome) {
    let outcome = match outcome {
        // A link that worked was detached for what was sent over it. What waits was not.
        Outcome::Rejected(Rejection { reason: Reason::Content | Reason::TooLarge, .. }) if attached => {
            &Outcome::Released
        }
        outcome => outcome,
    };
    outlet.refuse_waiting(outcome);
}

/// For what waits for a node whose name is too long.
pub(super) fn address_too_long() -> Outcome {
    let description = "the hub's frames are too small for a link to the address";
    Outcome::Rejected(Rejection::new(Reason::TooLarge, description))
}

/// What sending takes beside the device.
pub(super) struct Path<'a> {
    pub(super) connection: &'a mut Connection,
    /// The links that devices share; absent where each has its own.
    pub(super) relay: Option<&'a mut Relay>,
    pub(super) load: &'a Rc<Load>,
    pub(super) device: Key<Device>,
    pub(super) now: Instant,
}

impl Path<'_> {
    fn has_credit(&mut self, outlet: &Outlet) -> bool {
        match &mut self.relay {
            None => outlet.link.as_ref().is_some_and(|link| link.has_credit(self.connection)),
            Some(relay) => {
                relay.link(&outlet.address).is_some_and(|(link, _)| link.has_credit(self.connection))
            }
        }
    }

    fn send(
        &mut self,
        outlet: &mut Outlet,
        unsettled: &mut Unsettled<InFlight>,
        relayed: &mut usize,
        message: &[u8],
        verdict: Verdict,
    ) -> Result<(), Verdict> {
        let Self { connection, relay, load, device, now } = self;
        let (load, device, now) = (*load, *device, *now);
        match relay {
            None => {
                let Some(link) = &mut outlet.link else { return Err(verdict) };
                let mut way = Way { connection, unsettled, load, device, now };
                outlet.in_flight += usize::from(link.send(&mut way, message, verdict)?);
            }
            Some(relay) => {
                let Some((link, unsettled)) = relay.link(&outlet.address) else { return Err(verdict) };
                if link.send(&mut Way { connection, unsettled, load, device, now }, message, verdict)? {
                    *relayed += 1;
                    relay.sent(&outlet.address);
                }
            }
        }
        Ok(())
    }

    /// What waits for the credit of a shared link waits in its line; what has credit has its next turn.
    fn stand_in_line(&mut self, outlet: &mut Outlet, has_credit: bool) {
        if let (Some(relay), false, false) = (&mut self.relay, has_credit, outlet.in_line) {
            outlet.in_line = relay.stand_in_line(&outlet.address, self.device);
        }
    }
}

impl Commands {
    fn receives_over(&self, link: LinkId) -> bool {
        self.receiver.as_ref().is_some_and(|receiver| receiver.link() == link)
    }

    /// Tells the subscriber that no command will come any more.
    fn end(self, outcome: &Outcome) {
        self.sink.ended(match outcome {
            Outcome::Rejected(rejection) => Some(rejection.clone()),
            _ => None,
        });
    }
}

fn attach_receiver(
    connection: &mut Connection,
    session: SessionId,
    address: &str,
    serial: u64,
) -> Result<LinkId, Misuse> {
    let source = SourceOut { address: Some(address), ..SourceOut::default() }.build();
    let target = TargetOut::default().build();
    // The former subscription's link may still be on its way out.
    let name = format!("{address}#{serial}");
    let attach = AttachOut {
        snd_settle_mode: SndSettleMode::Unsettled,
        rcv_settle_mode: RcvSettleMode::First,
        max_message_size: Some(MAX_COMMAND_BYTES as u64),
        ..AttachOut::receiver(&name, &source, &target)
    };
    connection.attach(session, &attach.build())
}
