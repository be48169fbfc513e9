//! The sending end of a link, and the deliveries of a session that wait for their outcome.

use crate::connection::{Connection, LinkFlow, LinkId, SessionId};
use crate::error::Misuse;
use crate::performative::{DeliveryState, Disposition, DispositionOut, Flow, Role, TransferOut};
use crate::ring::DeliveryRing;

/// The sending end of a link.
#[derive(Debug)]
pub struct Sender {
    link: LinkId,
    /// The tag of the next delivery without one of its own.
    next_tag: u32,
    /// The peer waits for us to use its credit up.
    draining: bool,
}

/// A message to be sent, whole and encoded.
#[derive(Clone, Copy, Debug, Default)]
pub struct OutgoingMessage<'a> {
    /// The encoded sections.
    pub message: &'a [u8],
    /// The delivery-tag, unique among the unsettled deliveries of the link; `None` takes a number of the sender's.
    pub tag: Option<&'a [u8]>,
    /// The message-format; 0 is a message of the specification.
    pub message_format: u32,
}

/// A message that could not be sent, with what belongs to it.
#[derive(Debug, PartialEq, Eq)]
pub struct SendError<T> {
    /// Why.
    pub reason: Misuse,
    /// What was to be kept until the outcome.
    pub value: T,
}

impl Sender {
    /// The sending end of `link`, which is attached or will be.
    pub fn new(link: LinkId) -> Self {
        Self { link, next_tag: 0, draining: false }
    }

    /// The link.
    pub fn link(&self) -> LinkId {
        self.link
    }

    /// How many messages may be sent now.
    pub fn credit(&self, connection: &Connection) -> u32 {
        connection.link(self.link).map_or(0, |link| link.credit)
    }

    /// Takes a flow of this link. Answers an echo at once, unless the peer drains: then
    /// [`drained`](Self::drained) is the answer, after what there is to send has been sent. True if it drains.
    pub fn on_flow(&mut self, connection: &mut Connection, flow: &Flow) -> bool {
        self.draining = flow.drain;
        if flow.echo && !flow.drain {
            let link_credit = self.credit(connection);
            connection.flow(self.link, LinkFlow { link_credit, ..LinkFlow::default() });
        }
        flow.drain
    }

    /// There is nothing more to send: gives the rest of the credit back, if the peer has asked for it (2.6.7).
    pub fn drained(&mut self, connection: &mut Connection) {
        let Some(link) = connection.link(self.link) else { return };
        if !std::mem::take(&mut self.draining) {
            return;
        }
        let used_up = link.delivery_count.wrapping_add(link.credit);
        let flow = LinkFlow {
            delivery_count: Some(used_up),
            available: Some(0),
            drain: true,
            ..LinkFlow::default()
        };
        connection.flow(self.link, flow);
    }

    /// Sends a message unsettled. `value` is kept in `unsettled` until its outcome is known.
    ///
    /// # Errors
    /// `NoCredit`, and those of [`Connection::transfer`]; the value comes back.
    pub fn send<T>(
        &mut self,
        connection: &mut Connection,
        unsettled: &mut Unsettled<T>,
        message: OutgoingMessage<'_>,
        value: T,
    ) -> Result<u32, SendError<T>> {
        match self.transfer(connection, message, false) {
            Ok(id) => match unsettled.ring.push(id, (self.link, value)) {
                Ok(()) => Ok(id),
                // 2^31 deliveries after one that nobody ever settled, ids have no order any more.
                Err((_, value)) => Err(SendError { reason: Misuse::State, value }),
            },
            Err(reason) => Err(SendError { reason, value }),
        }
    }

    /// Sends a message settled: there will be no outcome.
    ///
    /// # Errors
    /// `NoCredit`, and those of [`Connection::transfer`].
    pub fn send_settled(
        &mut self,
        connection: &mut Connection,
        message: OutgoingMessage<'_>,
    ) -> Result<u32, Misuse> {
        self.transfer(connection, message, true)
    }

    fn transfer(
        &mut self,
        connection: &mut Connection,
        message: OutgoingMessage<'_>,
        settled: bool,
    ) -> Result<u32, Misuse> {
        if self.credit(connection) == 0 {
            return Err(Misuse::NoCredit);
        }
        let number = self.next_tag.to_be_bytes();
        let fields = TransferOut {
            delivery_tag: Some(message.tag.unwrap_or(&number)),
            message_format: Some(message.message_format),
            settled: Some(settled),
            ..TransferOut::default()
        };
        let id = connection.transfer(self.link, fields, message.message)?;
        self.next_tag = self.next_tag.wrapping_add(1);
        Ok(id)
    }
}

/// The deliveries of a session that were sent and have no outcome yet.
#[derive(Debug)]
pub struct Unsettled<T> {
    ring: DeliveryRing<(LinkId, T)>,
}

/// A delivery whose outcome is known.
#[derive(Debug)]
pub struct Settled<'a, T> {
    /// Its link.
    pub link: LinkId,
    /// Its delivery-id.
    pub delivery_id: u32,
    /// What was kept with it.
    pub value: T,
    /// Its outcome. `None` where the peer settled without one: the default outcome of the source counts.
    pub state: Option<&'a DeliveryState<'a>>,
}

impl<T> Default for Unsettled<T> {
    fn default() -> Self {
        Self { ring: DeliveryRing::new() }
    }
}

impl<T> Unsettled<T> {
    /// Nothing was sent yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ring.len()
    }

    /// Whether all is settled.
    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// What was kept with the delivery that has waited for its outcome for longest.
    pub fn first(&self) -> Option<&T> {
        self.ring.first().map(|(_, (_, value))| value)
    }

    /// Takes a disposition of the session and hands on every delivery that has its outcome now. Where the peer has
    /// not settled (rcv-settle-mode second), we do (2.6.12).
    pub fn on_disposition(
        &mut self,
        connection: &mut Connection,
        session: SessionId,
        disposition: &Disposition,
        mut done: impl FnMut(Settled<'_, T>),
    ) {
        if disposition.role != Role::Receiver {
            return;
        }
        // A state that cannot be read is none of the outcomes, but settled is settled.
        let state = disposition.state().and_then(|raw| DeliveryState::decode(raw).ok());
        if !disposition.settled && !state.as_ref().is_some_and(DeliveryState::is_outcome) {
            return;
        }
        let mut range = None;
        self.ring.remove_range(disposition.first, disposition.last, |delivery_id, (link, value)| {
            range = Some((range.map_or(delivery_id, |(first, _)| first), delivery_id));
            done(Settled { link, delivery_id, value, state: state.as_ref() });
        });
        if let Some((first, last)) = range
            && !disposition.settled
        {
            let answer = DispositionOut {
                role: Role::Sender,
                first,
                last,
                settled: true,
                state: disposition.state(),
                batchable: false,
            };
            connection.disposition(session, answer);
        }
    }

    /// Takes out the deliveries of a link that is gone: they will have no outcome.
    pub fn lose_link(&mut self, link: LinkId, mut lost: impl FnMut(u32, T)) {
        self.ring.retain(|_, (of, _)| *of != link, |id, (_, value)| lost(id, value));
    }

    /// Takes out all deliveries: the session is gone.
    pub fn lose_all(&mut self) -> impl Iterator<Item = (LinkId, u32, T)> + use<T> {
        self.ring.drain().map(|(id, (link, value))| (link, id, value))
    }
}
