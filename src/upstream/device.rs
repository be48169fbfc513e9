//! One device at the hub: its session, a link for each address that it sends to, what waits for
//! credit, what waits for an outcome.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use fieldgate_amqp::connection::{Connection, LinkId, SessionId};
use fieldgate_amqp::endpoint::{OutgoingMessage, Receiver, Sender, Unsettled};
use fieldgate_amqp::error::Misuse;
use fieldgate_amqp::performative::{
    Attach, AttachOut, Disposition, Flow, RcvSettleMode, SndSettleMode, SourceOut, TargetOut,
};
use fieldgate_mappings::address::Address;
use fieldgate_mappings::amqp;
use fieldgate_mappings::outcome::{Outcome, Reason, Rejection, Verdict};

use super::Patience;
use super::commands::{Commands, MAX_COMMAND_BYTES};
use super::load::{Load, Share};

/// Addresses that one device may send to at a time: a rule can take them from what the device says.
const MAX_OUTLETS: usize = 32;

/// A message that waits for a link or for credit: encoded, so that what it was made of is free.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) message: Bytes,
    pub(super) patience: Patience,
    pub(super) verdict: Verdict,
    pub(super) share: Share,
}

/// A message that the hub has not answered for. Dropped, its outcome is unknown: it was sent.
#[derive(Debug)]
struct InFlight {
    sent_at: Instant,
    verdict: Option<Verdict>,
    _share: Share,
}

impl InFlight {
    /// The hub has answered.
    fn report(mut self, outcome: Outcome) {
        if let Some(verdict) = self.verdict.take() {
            verdict.report(outcome);
        }
    }

    /// It did not go out after all.
    fn unsent(mut self) -> Option<Verdict> {
        self.verdict.take()
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if let Some(mut verdict) = self.verdict.take() {
            verdict.sent();
        }
    }
}

/// Where messages for one address go out.
#[derive(Debug)]
struct Outlet {
    address: Address,
    sender: Option<Sender>,
    /// The hub has such a node: it answered the attach with a target.
    attached: bool,
    /// The largest message that the hub takes here.
    max_message_bytes: Option<u64>,
    in_flight: usize,
    waiting: VecDeque<Waiting>,
}

/// What sending needs beside the outlet.
struct Way<'a> {
    connection: &'a mut Connection,
    unsettled: &'a mut Unsettled<InFlight>,
    load: &'a Rc<Load>,
    now: Instant,
}

/// A device that sends or listens.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) session: Option<SessionId>,
    outlets: Vec<Outlet>,
    unsettled: Unsettled<InFlight>,
    pub(super) commands: Option<Commands>,
    pub(super) used_at: Instant,
    /// It stands in the queue of those that could send if less were in flight.
    pub(super) stalled: bool,
    /// It stands in the queue of those that the connection has no channel or handle for.
    pub(super) crowded_out: bool,
}

impl Device {
    /// A device without a session.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            session: None,
            outlets: Vec::new(),
            unsettled: Unsettled::new(),
            commands: None,
            used_at: now,
            stalled: false,
            crowded_out: false,
        }
    }

    /// Whether it could be forgotten without anybody noticing.
    pub(super) fn is_idle(&self) -> bool {
        self.commands.is_none()
            && self.unsettled.is_empty()
            && self.outlets.iter().all(|outlet| outlet.waiting.is_empty())
    }

    /// Whether it needs a link that it does not have.
    pub(super) fn lacks_a_link(&self) -> bool {
        self.commands.as_ref().is_some_and(|commands| commands.receiver.is_none())
            || self.outlets.iter().any(Outlet::lacks_a_link)
    }

    /// When the message went out that the hub has left unanswered for longest.
    pub(super) fn oldest_sent(&self) -> Option<Instant> {
        self.unsettled.first().map(|in_flight| in_flight.sent_at)
    }

    /// Its links.
    pub(super) fn links(&self) -> impl Iterator<Item = LinkId> {
        let senders = self.outlets.iter().filter_map(|outlet| outlet.sender.as_ref()).map(Sender::link);
        let receiver = self.commands.as_ref().and_then(|commands| commands.receiver.as_ref());
        senders.chain(receiver.map(Receiver::link))
    }

    /// Sends now, if nothing waits and there is credit and room; else gives the verdict back.
    pub(super) fn send(
        &mut self,
        connection: &mut Connection,
        load: &Rc<Load>,
        address: &Address,
        message: &[u8],
        verdict: Verdict,
        now: Instant,
    ) -> Result<(), Verdict> {
        let Self { outlets, unsettled, .. } = self;
        match outlets.iter_mut().find(|outlet| outlet.address == *address) {
            Some(outlet) if outlet.waiting.is_empty() => {
                outlet.send(&mut Way { connection, unsettled, load, now }, message, verdict)
            }
            _ => Err(verdict),
        }
    }

    /// The outlet for an address, made where there is none. Gives the link that had to make place for it.
    ///
    /// # Errors
    /// When the device sends to too many addresses at a time.
    pub(super) fn open_outlet(&mut self, address: &Address) -> Result<Option<LinkId>, TooManyOutlets> {
        if self.outlets.iter().any(|outlet| outlet.address == *address) {
            return Ok(None);
        }
        let mut recycled = None;
        if self.outlets.len() >= MAX_OUTLETS {
            let idle = |outlet: &Outlet| outlet.waiting.is_empty() && outlet.in_flight == 0;
            let oldest = self.outlets.iter().position(idle).ok_or(TooManyOutlets)?;
            recycled = self.outlets.remove(oldest).sender.map(|sender| sender.link());
        }
        self.outlets.push(Outlet {
            address: address.clone(),
            sender: None,
            attached: false,
            max_message_bytes: None,
            in_flight: 0,
            waiting: VecDeque::new(),
        });
        Ok(recycled)
    }

    /// Puts a message behind the others for its address, which has an outlet. True if that has no link.
    pub(super) fn wait(&mut self, address: &Address, waiting: Waiting) -> bool {
        let outlet = self.outlets.iter_mut().find(|outlet| outlet.address == *address);
        outlet.is_some_and(|outlet| {
            outlet.waiting.push_back(waiting);
            outlet.sender.is_none()
        })
    }

    /// Begins the session and attaches what is missing of the links that are needed now.
    ///
    /// # Errors
    /// When the connection has no room for the session or a link.
    pub(super) fn attach(
        &mut self,
        connection: &mut Connection,
        mut attached: impl FnMut(LinkId),
    ) -> Result<(), Misuse> {
        let session = match self.session {
            Some(session) => session,
            None => *self.session.insert(connection.begin()?),
        };
        for outlet in self.outlets.iter_mut().filter(|outlet| outlet.lacks_a_link()) {
            let link = attach_sender(connection, session, &outlet.address)?;
            outlet.sender = Some(Sender::new(link));
            outlet.attached = false;
            attached(link);
        }
        if let Some(commands) = &mut self.commands
            && commands.receiver.is_none()
        {
            let link = attach_receiver(connection, session, &commands.address, commands.serial)?;
            commands.receiver = Some(Receiver::new(link, commands.receiver_config()));
            commands.attachment = commands.attachment.wrapping_add(1);
            attached(link);
        }
        Ok(())
    }

    /// The hub has answered an attach.
    pub(super) fn attached(&mut self, connection: &mut Connection, link: LinkId, attach: &Attach) {
        if let Some(outlet) = self.outlets.iter_mut().find(|outlet| outlet.sends_over(link)) {
            outlet.attached = attach.target().is_some();
            outlet.max_message_bytes = attach.max_message_size();
        } else if let Some(receiver) = self.receiver(link) {
            receiver.on_attached(connection);
        }
    }

    /// The receiving end of a link of this device.
    fn receiver(&mut self, link: LinkId) -> Option<&mut Receiver> {
        self.commands_over(link)?.receiver.as_mut()
    }

    /// The subscription that a link serves.
    pub(super) fn commands_over(&mut self, link: LinkId) -> Option<&mut Commands> {
        self.commands.as_mut().filter(|commands| commands.receives_over(link))
    }

    /// Whether the link still serves something.
    pub(super) fn uses(&self, link: LinkId) -> bool {
        self.links().any(|of| of == link)
    }

    /// The hub speaks of a link: sends what waits for its credit, and answers an echo or a drain. True if more could
    /// go if less were in flight.
    pub(super) fn flow(
        &mut self,
        connection: &mut Connection,
        load: &Rc<Load>,
        link: LinkId,
        flow: &Flow,
        now: Instant,
    ) -> bool {
        let Some(at) = self.outlets.iter().position(|outlet| outlet.sends_over(link)) else {
            if let Some(receiver) = self.receiver(link) {
                receiver.on_flow(connection, flow);
            }
            return self.send_waiting(connection, load, usize::MAX, now);
        };
        if let Some(sender) = &mut self.outlets[at].sender {
            sender.on_flow(connection, flow);
        }
        // The session's window may have opened as well: that concerns all links.
        let stalled = self.send_waiting(connection, load, usize::MAX, now);
        // What still waits has no credit or no room in the bounds: neither is a reason to let a drain wait.
        if let Some(sender) = &mut self.outlets[at].sender {
            sender.drained(connection);
        }
        stalled
    }

    /// Sends at most `most` of what waits. True if more could go if less were in flight, or if `most` were more.
    pub(super) fn send_waiting(
        &mut self,
        connection: &mut Connection,
        load: &Rc<Load>,
        mut most: usize,
        now: Instant,
    ) -> bool {
        let Self { outlets, unsettled, .. } = self;
        let mut way = Way { connection, unsettled, load, now };
        let mut stalled = false;
        for outlet in outlets {
            stalled |= outlet.send_waiting(&mut way, &mut most);
        }
        stalled
    }

    /// The hub has judged deliveries of the session.
    pub(super) fn disposition(
        &mut self,
        connection: &mut Connection,
        session: SessionId,
        disposition: &Disposition,
        now: Instant,
    ) {
        let Self { outlets, unsettled, .. } = self;
        unsettled.on_disposition(connection, session, disposition, |delivery| {
            if let Some(outlet) = outlets.iter_mut().find(|outlet| outlet.sends_over(delivery.link)) {
                outlet.in_flight = outlet.in_flight.saturating_sub(1);
            }
            delivery.value.report(match delivery.state {
                // Settled without a state: the source named no default outcome, so nothing is certain.
                None => Outcome::Unknown,
                Some(state) => amqp::outcome(state).unwrap_or(Outcome::Unknown),
            });
        });
        self.used_at = now;
    }

    /// The hub has detached a link: what was sent over it stays unanswered, what waits for it gets `outcome`, a
    /// subscription ends.
    pub(super) fn lose_link(&mut self, link: LinkId, outcome: &Outcome) {
        self.unsettled.lose_link(link, |_, in_flight| drop(in_flight));
        if let Some(at) = self.outlets.iter().position(|outlet| outlet.sends_over(link)) {
            let outlet = self.outlets.remove(at);
            let outcome = match outcome {
                // A link that worked was detached for what was sent over it. What waits was not.
                Outcome::Rejected(Rejection { reason: Reason::Content | Reason::TooLarge, .. })
                    if outlet.attached =>
                {
                    &Outcome::Released
                }
                outcome => outcome,
            };
            outlet.waiting.into_iter().for_each(|waiting| waiting.verdict.report(outcome.clone()));
        }
        if let Some(commands) = self.commands.take_if(|commands| commands.receives_over(link)) {
            commands.end(outcome);
        }
    }

    /// The session is gone: what was sent stays unanswered; waiting messages and the subscription stay.
    pub(super) fn lose_session(&mut self) {
        self.session = None;
        self.outlets.retain_mut(|outlet| {
            outlet.sender = None;
            outlet.attached = false;
            outlet.in_flight = 0;
            !outlet.waiting.is_empty()
        });
        if let Some(commands) = &mut self.commands {
            commands.receiver = None;
        }
        self.unsettled.lose_all().for_each(drop);
    }

    /// The hub wants nothing of this device now: what waits is released, the subscription ends.
    pub(super) fn turn_away(&mut self) {
        self.release_waiting(|_| true);
        if let Some(commands) = self.commands.take() {
            commands.end(&Outcome::Released);
        }
    }

    /// Releases what waits and is `meant`; with one that is to stay in order, all that are.
    pub(super) fn release_waiting(&mut self, meant: impl Fn(&Patience) -> bool) {
        let all = self.outlets.iter().flat_map(|outlet| &outlet.waiting);
        let in_order =
            all.map(|waiting| &waiting.patience).any(|patience| patience.in_order && meant(patience));
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

impl Outlet {
    fn sends_over(&self, link: LinkId) -> bool {
        self.sender.as_ref().is_some_and(|sender| sender.link() == link)
    }

    fn lacks_a_link(&self) -> bool {
        self.sender.is_none() && !self.waiting.is_empty()
    }

    /// Sends what waits, and counts `most` down. True if it stopped although there was credit.
    fn send_waiting(&mut self, way: &mut Way<'_>, most: &mut usize) -> bool {
        while let Some(waiting) = self.waiting.pop_front() {
            // Dropped, it is released.
            if !waiting.verdict.is_wanted() {
                continue;
            }
            let can_send = self.has_credit(way.connection);
            if can_send && *most > 0 && !way.load.is_full() {
                let Waiting { message, patience, verdict, share } = waiting;
                match self.send(way, &message, verdict) {
                    Ok(()) => *most -= 1,
                    Err(verdict) => {
                        self.waiting.push_front(Waiting { message, patience, verdict, share });
                        return false;
                    }
                }
            } else {
                self.waiting.push_front(waiting);
                return can_send;
            }
        }
        false
    }

    /// Whether the hub takes a message now: it gave credit, and its window is open.
    fn has_credit(&self, connection: &Connection) -> bool {
        let Some(sender) = &self.sender else { return false };
        let session = connection.session_of_link(sender.link());
        // What is handed to a session whose window is shut may still never be sent; here it certainly was not.
        sender.credit(connection) > 0
            && session.is_some_and(|session| connection.session_backlog_bytes(session) == 0)
    }

    /// Sends now, or gives the verdict back.
    fn send(&mut self, way: &mut Way<'_>, message: &[u8], verdict: Verdict) -> Result<(), Verdict> {
        if way.load.is_full() || !self.has_credit(way.connection) {
            return Err(verdict);
        }
        let Some(sender) = &mut self.sender else { return Err(verdict) };
        if let Some(max) = self.max_message_bytes.filter(|max| message.len() as u64 > *max) {
            // The hub would detach the link for it, with all that is in flight over it.
            let description = format!("the hub takes messages of at most {max} bytes");
            verdict.report(Outcome::Rejected(Rejection::new(Reason::TooLarge, description)));
            return Ok(());
        }
        let share = way.load.send(message.len());
        let in_flight = InFlight { sent_at: way.now, verdict: Some(verdict), _share: share };
        let out = OutgoingMessage { message, ..OutgoingMessage::default() };
        match sender.send(way.connection, way.unsettled, out, in_flight) {
            Ok(_) => self.in_flight += 1,
            Err(error) => return error.value.unsent().map_or(Ok(()), Err),
        }
        Ok(())
    }
}

fn attach_sender(
    connection: &mut Connection,
    session: SessionId,
    address: &Address,
) -> Result<LinkId, Misuse> {
    let source = SourceOut::default().build();
    let target = TargetOut { address: Some(address.as_str()), ..TargetOut::default() }.build();
    let attach = AttachOut {
        snd_settle_mode: SndSettleMode::Unsettled,
        rcv_settle_mode: RcvSettleMode::First,
        ..AttachOut::sender(address.as_str(), &source, &target)
    };
    connection.attach(session, &attach.build())
}

fn attach_receiver(
    connection: &mut Connection,
    session: SessionId,
    address: &Address,
    serial: u64,
) -> Result<LinkId, Misuse> {
    let source = SourceOut { address: Some(address.as_str()), ..SourceOut::default() }.build();
    let target = TargetOut::default().build();
    // The former subscription's link may still be on its way out.
    let name = format!("{}#{serial}", address.as_str());
    let attach = AttachOut {
        snd_settle_mode: SndSettleMode::Unsettled,
        rcv_settle_mode: RcvSettleMode::First,
        max_message_size: Some(MAX_COMMAND_BYTES as u64),
        ..AttachOut::receiver(&name, &source, &target)
    };
    connection.attach(session, &attach.build())
}
