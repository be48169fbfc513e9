//! The receiving end of a link: credit, deliveries put together from their frames, and settling them.

use bytes::{Bytes, BytesMut};

use crate::connection::{Connection, Half, LinkFlow, LinkId, SessionId};
use crate::error::{AmqpError, Violation};
use crate::performative::{
    ACCEPTED, DispositionOut, Flow, RELEASED, RcvSettleMode, Role, Transfer, modified, rejected,
};

/// When a receiver gives credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreditPolicy {
    /// Only when told to.
    Manual,
    /// Keeps this many deliveries in reach: what the peer may still send, and what was delivered and is not settled.
    /// Credit is given again in lots of half of it.
    Prefetch(u32),
}

/// Settings of a receiver.
#[derive(Clone, Copy, Debug)]
pub struct ReceiverConfig {
    /// When it gives credit. Default: prefetch 100.
    pub credit: CreditPolicy,
    /// The largest message that is put together, in bytes; say the same in the attach. Default 1 MiB, and at most as
    /// much memory for a delivery that has not come whole.
    pub max_message_bytes: usize,
    /// As negotiated in the attaches.
    pub rcv_settle_mode: RcvSettleMode,
    /// Whether a delivery that comes settled keeps its place in the prefetch until [`let_go`](Receiver::let_go). For
    /// those who pass deliveries on at somebody else's pace. Default: its place is free at once.
    pub holds_settled: bool,
}

impl Default for ReceiverConfig {
    fn default() -> Self {
        Self {
            credit: CreditPolicy::Prefetch(100),
            max_message_bytes: 1024 * 1024,
            rcv_settle_mode: RcvSettleMode::First,
            holds_settled: false,
        }
    }
}

/// A delivery, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The link.
    pub link: LinkId,
    /// Its delivery-id.
    pub delivery_id: u32,
    /// Its tag.
    pub tag: Bytes,
    /// The message-format; 0 where none was said.
    pub message_format: u32,
    /// The sender has settled it: no outcome is to be sent.
    pub settled: bool,
    /// The message. A slice of the bytes that came in, where it came in one frame.
    pub payload: Bytes,
}

/// The receiving end of a link.
#[derive(Debug)]
pub struct Receiver {
    link: LinkId,
    config: ReceiverConfig,
    /// Delivered, not settled by the sender, and not settled by us; or held all the same.
    unsettled: u32,
    /// Deliveries that have begun here. The engine's count may be ahead by events that were not handed on yet.
    seen: u32,
    /// Deliveries that may still begin, counted from `seen`.
    credit: u32,
    /// The delivery that has not come whole.
    partial: Option<Box<Partial>>,
}

#[derive(Debug)]
struct Partial {
    tag: Bytes,
    message_format: u32,
    settled: bool,
    payload: BytesMut,
}

impl Receiver {
    /// The receiving end of `link`, which is attached or will be.
    pub fn new(link: LinkId, config: ReceiverConfig) -> Self {
        Self { link, config, unsettled: 0, seen: 0, credit: 0, partial: None }
    }

    /// The link.
    pub fn link(&self) -> LinkId {
        self.link
    }

    /// Deliveries that wait for us to settle them.
    pub fn unsettled(&self) -> u32 {
        self.unsettled
    }

    /// The link is attached at our end: gives the first credit, if the policy says so.
    pub fn on_attached(&mut self, connection: &mut Connection) {
        self.top_up(connection);
    }

    /// Gives this much credit, instead of what was given before. With `drain` the sender gives back what it cannot
    /// use at once.
    pub fn give_credit(&mut self, connection: &mut Connection, link_credit: u32, drain: bool) {
        let Some(link) = connection.link(self.link) else { return };
        let attached = link.remote != Half::Idle;
        let delivery_count = attached.then_some(link.initial_delivery_count.wrapping_add(self.seen));
        self.credit = self.credit.max(link_credit);
        connection.flow(self.link, LinkFlow { delivery_count, link_credit, drain, ..LinkFlow::default() });
    }

    /// Takes a flow of this link: a drained sender counts on without sending. Answers an echo. True if the sender
    /// has no credit left.
    pub fn on_flow(&mut self, connection: &mut Connection, flow: &Flow) -> bool {
        if let (Some(link), Some(count)) = (connection.link(self.link), flow.delivery_count) {
            let seen = count.wrapping_sub(link.initial_delivery_count);
            let ahead = seen.wrapping_sub(self.seen);
            // Some senders count a delivery at its last frame, we at its first; that is no step back.
            if ahead < 1 << 31 {
                self.seen = seen;
                self.credit = self.credit.saturating_sub(ahead);
            }
        }
        if flow.echo {
            self.give_credit(connection, self.credit, false);
        }
        let drained = self.credit == 0;
        self.top_up(connection);
        drained
    }

    /// Changes the credit policy; a larger prefetch is given at once, a smaller one as deliveries come in.
    pub fn set_credit(&mut self, connection: &mut Connection, credit: CreditPolicy) {
        self.config.credit = credit;
        self.top_up(connection);
    }

    /// Takes a transfer of this link, with the delivery-id that came in the event. Gives the delivery once it is
    /// whole; a delivery that the sender aborts is forgotten.
    ///
    /// # Errors
    /// A message above the bound: the link has been detached with `amqp:link:message-size-exceeded`.
    pub fn on_transfer(
        &mut self,
        connection: &mut Connection,
        transfer: &Transfer,
        delivery_id: u32,
    ) -> Result<Option<Delivery>, Violation> {
        if self.partial.is_none() {
            self.seen = self.seen.wrapping_add(1);
            self.credit = self.credit.saturating_sub(1);
        }
        if transfer.aborted {
            self.partial = None;
            self.top_up(connection);
            return Ok(None);
        }
        let so_far = self.partial.as_ref().map_or(0, |partial| partial.payload.len());
        if so_far + transfer.payload_slice().len() > self.config.max_message_bytes {
            self.partial = None;
            let violation = Violation::MessageTooLarge { max: self.config.max_message_bytes as u64 };
            connection.detach(self.link, true, Some(AmqpError::from(&violation)));
            return Err(violation);
        }
        let Some(delivery) = self.gather(transfer, delivery_id) else { return Ok(None) };
        if !delivery.settled || self.config.holds_settled {
            self.unsettled = self.unsettled.saturating_add(1);
        }
        self.top_up(connection);
        Ok(Some(delivery))
    }

    fn gather(&mut self, transfer: &Transfer, delivery_id: u32) -> Option<Delivery> {
        if self.partial.is_none() && !transfer.more {
            return Some(Delivery {
                link: self.link,
                delivery_id,
                tag: transfer.delivery_tag_bytes().unwrap_or_default(),
                message_format: transfer.message_format.unwrap_or(0),
                settled: transfer.settled.unwrap_or(false),
                payload: transfer.payload(),
            });
        }
        let partial = self.partial.get_or_insert_with(|| {
            Box::new(Partial {
                tag: Bytes::copy_from_slice(transfer.delivery_tag().unwrap_or_default()),
                message_format: transfer.message_format.unwrap_or(0),
                settled: false,
                payload: BytesMut::new(),
            })
        });
        // 2.7.5: settled on any of its transfers settles the delivery.
        partial.settled |= transfer.settled.unwrap_or(false);
        partial.payload.extend_from_slice(transfer.payload_slice());
        if transfer.more {
            return None;
        }
        let Partial { tag, message_format, settled, payload } = *self.partial.take()?;
        let payload = payload.freeze();
        Some(Delivery { link: self.link, delivery_id, tag, message_format, settled, payload })
    }

    /// Accepts the deliveries of this link from `first` to `last`. No other link's may stand between them.
    pub fn accept(&mut self, connection: &mut Connection, first: u32, last: u32) {
        self.settle(connection, first, last, ACCEPTED);
    }

    /// Rejects the deliveries of this link from `first` to `last`. No other link's may stand between them.
    pub fn reject(&mut self, connection: &mut Connection, first: u32, last: u32, error: Option<&AmqpError>) {
        self.settle(connection, first, last, &rejected(error));
    }

    /// Releases the deliveries of this link from `first` to `last`. No other link's may stand between them.
    pub fn release(&mut self, connection: &mut Connection, first: u32, last: u32) {
        self.settle(connection, first, last, RELEASED);
    }

    /// Gives the deliveries of this link from `first` to `last` back as failed or undeliverable here. No other
    /// link's may stand between them.
    pub fn modify(
        &mut self,
        connection: &mut Connection,
        first: u32,
        last: u32,
        delivery_failed: bool,
        undeliverable_here: bool,
    ) {
        self.settle(connection, first, last, &modified(delivery_failed, undeliverable_here, None));
    }

    /// Gives the deliveries of this link from `first` to `last` the outcome `state`, encoded. In rcv-settle-mode
    /// second the peer settles them after that, of which nothing has to be known here.
    pub fn settle(&mut self, connection: &mut Connection, first: u32, last: u32, state: &[u8]) {
        let Some(session) = connection.session_of_link(self.link) else { return };
        self.put_disposition(connection, session, first, last, state);
        self.settled(connection, last.wrapping_sub(first).wrapping_add(1));
    }

    /// A delivery that came settled has gone where it should: with `holds_settled` its place in the prefetch is free.
    pub fn let_go(&mut self, connection: &mut Connection) {
        if self.config.holds_settled {
            self.settled(connection, 1);
        }
    }

    fn put_disposition(
        &self,
        connection: &mut Connection,
        session: SessionId,
        first: u32,
        last: u32,
        state: &[u8],
    ) {
        let disposition = DispositionOut {
            role: Role::Receiver,
            first,
            last,
            settled: self.config.rcv_settle_mode == RcvSettleMode::First,
            state: Some(state),
            batchable: false,
        };
        connection.disposition(session, disposition);
    }

    /// So many deliveries are no longer ours to settle.
    fn settled(&mut self, connection: &mut Connection, deliveries: u32) {
        self.unsettled = self.unsettled.saturating_sub(deliveries);
        self.top_up(connection);
    }

    /// Gives credit again once half of the prefetch is free.
    fn top_up(&mut self, connection: &mut Connection) {
        let CreditPolicy::Prefetch(prefetch) = self.config.credit else { return };
        let wanted = prefetch.saturating_sub(self.unsettled);
        if wanted.saturating_sub(self.credit) >= prefetch.div_ceil(2).max(1) {
            self.give_credit(connection, wanted, false);
        }
    }
}

/// Deliveries of a session that are to get the same outcome, as long as their ids follow each other: one
/// disposition for a turn of the loop instead of one for each delivery.
#[derive(Debug, Default)]
pub struct Settlements {
    run: Option<Run>,
}

#[derive(Debug)]
struct Run {
    session: SessionId,
    first: u32,
    last: u32,
    settled: bool,
    state: &'static [u8],
}

impl Settlements {
    /// Nothing is to be settled yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Accepts a delivery, at the latest with the next [`flush`](Self::flush).
    pub fn accept(&mut self, connection: &mut Connection, receiver: &mut Receiver, delivery_id: u32) {
        self.add(connection, receiver, delivery_id, ACCEPTED);
    }

    /// Releases a delivery, at the latest with the next [`flush`](Self::flush).
    pub fn release(&mut self, connection: &mut Connection, receiver: &mut Receiver, delivery_id: u32) {
        self.add(connection, receiver, delivery_id, RELEASED);
    }

    fn add(&mut self, connection: &mut Connection, receiver: &mut Receiver, id: u32, state: &'static [u8]) {
        let Some(session) = connection.session_of_link(receiver.link) else { return };
        let settled = receiver.config.rcv_settle_mode == RcvSettleMode::First;
        match &mut self.run {
            Some(run)
                if run.session == session
                    && run.settled == settled
                    && run.state == state
                    && run.last.wrapping_add(1) == id =>
            {
                run.last = id;
            }
            _ => {
                self.flush(connection);
                self.run = Some(Run { session, first: id, last: id, settled, state });
            }
        }
        receiver.settled(connection, 1);
    }

    /// Sends what has been gathered.
    pub fn flush(&mut self, connection: &mut Connection) {
        if let Some(Run { session, first, last, settled, state }) = self.run.take() {
            let disposition = DispositionOut {
                role: Role::Receiver,
                first,
                last,
                settled,
                state: Some(state),
                batchable: false,
            };
            connection.disposition(session, disposition);
        }
    }
}
