//! Where messages of a device for one address go out, and the link that they go over: the device's own, or one that
//! all devices of a connection share.

use std::rc::Rc;
use std::time::Instant;

use fieldgate_amqp::connection::{Connection, LinkId, SessionId};
use fieldgate_amqp::endpoint::{OutgoingMessage, Sender, Unsettled};
use fieldgate_amqp::error::Misuse;
use fieldgate_amqp::performative::{Attach, AttachOut, RcvSettleMode, SndSettleMode, SourceOut, TargetOut};
use fieldgate_mappings::address::Address;
use fieldgate_mappings::outcome::{Outcome, Reason, Rejection, Verdict};

use crate::router::arena::Key;

use super::device::Device;
use super::lanes::Lanes;
use super::load::{Load, Share};

/// A message that the hub has not answered for. Dropped, its outcome is unknown: it was sent.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) sent_at: Instant,
    /// Whose it is.
    pub(super) device: Key<Device>,
    verdict: Option<Verdict>,
    _share: Share,
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
pub(super) struct Outlet {
    pub(super) address: Address,
    /// The device's own link; none where devices share them.
    pub(super) link: Option<OutLink>,
    pub(super) in_flight: usize,
    pub(super) waiting: Lanes,
    /// The device stands in the queue of the shared link for this address.
    pub(super) in_line: bool,
}

impl Outlet {
    pub(super) fn new(address: Address) -> Self {
        Self { address, link: None, in_flight: 0, waiting: Lanes::default(), in_line: false }
    }

    /// Whether nothing waits or is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.in_flight == 0
    }

    /// Whether something waits for a link of the device's own that is not there.
    pub(super) fn lacks_a_link(&self) -> bool {
        self.link.is_none() && !self.waiting.is_empty()
    }

    /// What waits ends with `outcome`.
    pub(super) fn refuse_waiting(&mut self, outcome: &Outcome) {
        self.waiting.drain().for_each(|waiting| waiting.verdict.report(outcome.clone()));
    }

    /// Whether it is the device's own `link`.
    pub(super) fn sends_over(&self, link: LinkId) -> bool {
        self.link.as_ref().is_some_and(|own| own.id() == link)
    }
}

/// The sending end of a link to the hub.
#[derive(Debug)]
pub(super) struct OutLink {
    sender: Sender,
    /// The hub has such a node: it answered the attach with a target.
    pub(super) attached: bool,
    /// The largest message that the hub takes here.
    max_message_bytes: Option<u64>,
}

/// What sending needs beside the link.
pub(super) struct Way<'a> {
    pub(super) connection: &'a mut Connection,
    pub(super) unsettled: &'a mut Unsettled<InFlight>,
    pub(super) load: &'a Rc<Load>,
    pub(super) device: Key<Device>,
    pub(super) now: Instant,
}

impl OutLink {
    /// Attaches a link to the node `address`, or to none: what goes over it says itself where it goes.
    ///
    /// # Errors
    /// When the connection has no room for it.
    pub(super) fn attach(
        connection: &mut Connection,
        session: SessionId,
        address: Option<&str>,
    ) -> Result<Self, Misuse> {
        let source = SourceOut::default().build();
        let target = TargetOut { address, ..TargetOut::default() }.build();
        let attach = AttachOut {
            snd_settle_mode: SndSettleMode::Unsettled,
            rcv_settle_mode: RcvSettleMode::First,
            ..AttachOut::sender(address.unwrap_or(RELAY), &source, &target)
        };
        let link = connection.attach(session, &attach.build())?;
        Ok(Self { sender: Sender::new(link), attached: false, max_message_bytes: None })
    }

    /// The link.
    pub(super) fn id(&self) -> LinkId {
        self.sender.link()
    }

    /// The end of it that gives and takes credit.
    pub(super) fn sender(&mut self) -> &mut Sender {
        &mut self.sender
    }

    /// The hub has answered the attach.
    pub(super) fn on_attached(&mut self, attach: &Attach) {
        self.attached = attach.target().is_some();
        self.max_message_bytes = attach.max_message_size();
    }

    /// Whether the hub takes a message now: it gave credit, and its window is open.
    pub(super) fn has_credit(&self, connection: &Connection) -> bool {
        let session = connection.session_of_link(self.id());
        // What is handed to a session whose window is shut may still never be sent; here it certainly was not.
        self.sender.credit(connection) > 0
            && session.is_some_and(|session| connection.session_backlog_bytes(session) == 0)
    }

    /// Sends now, or gives the verdict back. True if the message went out; else it was refused and that is told.
    pub(super) fn send(
        &mut self,
        way: &mut Way<'_>,
        message: &[u8],
        verdict: Verdict,
    ) -> Result<bool, Verdict> {
        if !self.has_credit(way.connection) {
            return Err(verdict);
        }
        if let Some(max) = self.max_message_bytes.filter(|max| message.len() as u64 > *max) {
            // The hub would detach the link for it, with all that is in flight over it.
            let description = format!("the hub takes messages of at most {max} bytes");
            verdict.report(Outcome::Rejected(Rejection::new(Reason::TooLarge, description)));
            return Ok(false);
        }
        let Some(share) = way.load.send(message.len(), way.now) else { return Err(verdict) };
        let in_flight =
            InFlight { sent_at: way.now, device: way.device, verdict: Some(verdict), _share: share };
        let out = OutgoingMessage { message, ..OutgoingMessage::default() };
        match self.sender.send(way.connection, way.unsettled, out, in_flight) {
            Ok(_) => Ok(true),
            Err(error) => error.value.unsent().map_or(Ok(true), Err),
        }
    }
}

/// The name of the link that leads to no node of its own.
const RELAY: &str = "relay";
