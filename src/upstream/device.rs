//! One device at the hub: its session, a link for each address that it sends to, what waits for
//! credit, what waits for an outcome.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;
use fieldgate_amqp::connection::{Connection, LinkId, SessionId};
use fieldgate_amqp::endpoint::{OutgoingMessage, Receiver, Sender, Unsettled};
use fieldgate_amqp::error::Misuse;
use fieldgate_amqp::performative::{AttachOut, Flow, RcvSettleMode, SndSettleMode, SourceOut, TargetOut};
use fieldgate_mappings::address::Address;
use fieldgate_mappings::outcome::{Outcome, Verdict};

use super::commands::Commands;

/// A message that waits for a link or for credit: encoded, so that what it was made of is free.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) message: Bytes,
    pub(super) until: Instant,
    pub(super) verdict: Verdict,
}

/// A message that the hub has not answered for. Dropped, its outcome is unknown: it was sent.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) sent_at: Instant,
    verdict: Option<Verdict>,
}

impl InFlight {
    /// The hub has answered.
    pub(super) fn report(mut self, outcome: Outcome) {
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
    waiting: VecDeque<Waiting>,
}

/// A device that sends or listens.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) session: Option<SessionId>,
    outlets: Vec<Outlet>,
    pub(super) unsettled: Unsettled<InFlight>,
    pub(super) commands: Option<Commands>,
    pub(super) used_at: Instant,
}

impl Device {
    /// A device without a session.
    pub(super) fn new(now: Instant) -> Self {
        Self { session: None, outlets: Vec::new(), unsettled: Unsettled::new(), commands: None, used_at: now }
    }

    /// Whether it could be forgotten without anybody noticing.
    pub(super) fn is_idle(&self) -> bool {
        self.commands.is_none()
            && self.unsettled.is_empty()
            && self.outlets.iter().all(|outlet| outlet.waiting.is_empty())
    }

    /// Whether it has something to do at the hub.
    pub(super) fn has_work(&self) -> bool {
        self.commands.is_some() || self.outlets.iter().any(|outlet| !outlet.waiting.is_empty())
    }

    /// Bytes that wait.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.outlets.iter().flat_map(|outlet| &outlet.waiting).map(|waiting| waiting.message.len()).sum()
    }

    /// When the message went out that the hub has left unanswered for longest.
    pub(super) fn oldest_sent(&self) -> Option<Instant> {
        self.unsettled.first().map(|in_flight| in_flight.sent_at)
    }

    /// Sends now, if nothing waits and there is credit; else gives the verdict back.
    pub(super) fn send(
        &mut self,
        connection: &mut Connection,
        address: &Address,
        message: &[u8],
        verdict: Verdict,
        now: Instant,
    ) -> Result<(), Option<Verdict>> {
        match self.outlets.iter_mut().find(|outlet| outlet.address == *address) {
            Some(outlet) if outlet.waiting.is_empty() => {
                outlet.send(connection, &mut self.unsettled, message, verdict, now)
            }
            _ => Err(Some(verdict)),
        }
    }

    /// Puts a message behind the others for its address. True if a link is missing.
    pub(super) fn wait(&mut self, address: &Address, waiting: Waiting) -> bool {
        let found = self.outlets.iter().position(|outlet| outlet.address == *address);
        let index = found.unwrap_or_else(|| {
            let outlet = Outlet { address: address.clone(), sender: None, waiting: VecDeque::new() };
            self.outlets.push(outlet);
            self.outlets.len() - 1
        });
        self.outlets[index].waiting.push_back(waiting);
        self.outlets[index].sender.is_none()
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
        for outlet in &mut self.outlets {
            if outlet.sender.is_none() && !outlet.waiting.is_empty() {
                let link = attach_sender(connection, session, &outlet.address)?;
                outlet.sender = Some(Sender::new(link));
                attached(link);
            }
        }
        if let Some(commands) = &mut self.commands
            && commands.receiver.is_none()
        {
            let link = attach_receiver(connection, session, &commands.address, commands.serial)?;
            commands.receiver = Some(Receiver::new(link, commands.receiver_config()));
            attached(link);
        }
        Ok(())
    }

    /// The receiving end of a link of this device.
    pub(super) fn receiver(&mut self, link: LinkId) -> Option<&mut Receiver> {
        self.commands_over(link)?.receiver.as_mut()
    }

    /// The subscription that a link serves.
    pub(super) fn commands_over(&mut self, link: LinkId) -> Option<&mut Commands> {
        self.commands.as_mut().filter(|commands| commands.receives_over(link))
    }

    /// Whether the link still serves something.
    pub(super) fn uses(&self, link: LinkId) -> bool {
        self.outlets.iter().any(|outlet| outlet.sends_over(link))
            || self.commands.as_ref().is_some_and(|commands| commands.receives_over(link))
    }

    /// The hub speaks of a sending link: sends what waits, at most `room`, and answers a drain. Gives how many went.
    pub(super) fn flow(
        &mut self,
        connection: &mut Connection,
        link: LinkId,
        flow: &Flow,
        room: usize,
        now: Instant,
    ) -> usize {
        let Some(outlet) = self.outlets.iter_mut().find(|outlet| outlet.sends_over(link)) else { return 0 };
        let Some(sender) = &mut outlet.sender else { return 0 };
        sender.on_flow(connection, flow);
        let sent = outlet.send_waiting(connection, &mut self.unsettled, room, now);
        if outlet.waiting.is_empty()
            && let Some(sender) = &mut outlet.sender
        {
            sender.drained(connection);
        }
        sent
    }

    /// Sends what waits, at most `room`. Gives how many went.
    pub(super) fn send_waiting(&mut self, connection: &mut Connection, room: usize, now: Instant) -> usize {
        let mut sent = 0;
        for outlet in &mut self.outlets {
            sent += outlet.send_waiting(connection, &mut self.unsettled, room - sent, now);
        }
        sent
    }

    /// The link is gone: what was sent over it stays unanswered, what waits for it gets `outcome`, a subscription
    /// ends. Gives how many messages were in flight.
    pub(super) fn lose_link(&mut self, link: LinkId, outcome: &Outcome) -> usize {
        let before = self.unsettled.len();
        self.unsettled.lose_link(link, |_, in_flight| drop(in_flight));
        if let Some(outlet) = self.outlets.iter_mut().find(|outlet| outlet.sends_over(link)) {
            outlet.sender = None;
            outlet.waiting.drain(..).for_each(|waiting| waiting.verdict.report(outcome.clone()));
        }
        if let Some(commands) = self.commands.take_if(|commands| commands.receives_over(link)) {
            commands.sink.ended(match outcome {
                Outcome::Rejected(rejection) => Some(rejection.clone()),
                _ => None,
            });
        }
        before - self.unsettled.len()
    }

    /// The session is gone: what was sent stays unanswered; waiting messages and the subscription stay. Gives how
    /// many messages were in flight.
    pub(super) fn lose_session(&mut self) -> usize {
        self.session = None;
        for outlet in &mut self.outlets {
            outlet.sender = None;
        }
        if let Some(commands) = &mut self.commands {
            commands.receiver = None;
        }
        self.unsettled.lose_all().map(drop).count()
    }

    /// Releases what has waited for too long.
    pub(super) fn expire(&mut self, now: Instant) {
        for outlet in &mut self.outlets {
            // Dropping the verdict of what was never sent releases it.
            outlet.waiting.retain(|waiting| waiting.until > now);
        }
    }

    /// Releases all that waits.
    pub(super) fn release_waiting(&mut self) {
        self.outlets.iter_mut().for_each(|outlet| outlet.waiting.clear());
    }
}

impl Commands {
    fn receives_over(&self, link: LinkId) -> bool {
        self.receiver.as_ref().is_some_and(|receiver| receiver.link() == link)
    }
}

impl Outlet {
    fn sends_over(&self, link: LinkId) -> bool {
        self.sender.as_ref().is_some_and(|sender| sender.link() == link)
    }

    fn send_waiting(
        &mut self,
        connection: &mut Connection,
        unsettled: &mut Unsettled<InFlight>,
        room: usize,
        now: Instant,
    ) -> usize {
        let mut sent = 0;
        while sent < room
            && let Some(Waiting { message, until, verdict }) = self.waiting.pop_front()
        {
            match self.send(connection, unsettled, &message, verdict, now) {
                Ok(()) => sent += 1,
                Err(None) => break,
                Err(Some(verdict)) => {
                    self.waiting.push_front(Waiting { message, until, verdict });
                    break;
                }
            }
        }
        sent
    }

    /// Sends now, or gives the verdict back.
    fn send(
        &mut self,
        connection: &mut Connection,
        unsettled: &mut Unsettled<InFlight>,
        message: &[u8],
        verdict: Verdict,
        now: Instant,
    ) -> Result<(), Option<Verdict>> {
        let Some(sender) = self.sender.as_mut().filter(|sender| sender.credit(connection) > 0) else {
            return Err(Some(verdict));
        };
        let out = OutgoingMessage { message, ..OutgoingMessage::default() };
        let in_flight = InFlight { sent_at: now, verdict: Some(verdict) };
        sender.send(connection, unsettled, out, in_flight).map_err(|error| error.value.unsent())?;
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
        ..AttachOut::receiver(&name, &source, &target)
    };
    connection.attach(session, &attach.build())
}
