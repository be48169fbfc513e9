//! The `$cbs` node that the gateway plays for one device connection.
//!
//! It takes requests and gives answers, in whatever session their links are; what a request is worth is asked of
//! somebody else in between. A device has a few links in each direction and a few requests under way, no more: credit
//! is given for what may still come, so that a device which takes no answers soon asks nothing any more.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use fieldgate_amqp::codec::{Limits, Value};
use fieldgate_amqp::connection::{Connection, LinkId, SessionId, TransferOut};
use fieldgate_amqp::endpoint::{
    CbsRequest, CreditPolicy, Delivery, Receiver, ReceiverConfig, Sender, put_cbs_response,
};
use fieldgate_amqp::error::{AmqpError, Condition, Misuse};
use fieldgate_amqp::performative::{
    Attach, AttachOut, DeliveryState, Disposition, DispositionOut, Flow, RcvSettleMode, Role, SndSettleMode,
    Transfer,
};

use crate::config::Secret;

use super::Reply;

/// Links in each direction.
const MAX_LINKS: usize = 4;
/// Requests of a link that are on the way to us, are being judged, or whose answer waits for credit.
const CREDIT: u32 = 16;
/// The largest request.
const MAX_REQUEST_BYTES: usize = 64 * 1024;
/// The largest message-id that is kept for an answer.
const MAX_ID_BYTES: usize = 1024;
/// Answers that the device has not settled; of more the oldest are forgotten.
const MAX_UNSETTLED: usize = 64;

/// The node of one device connection.
#[derive(Debug, Default)]
pub(crate) struct CbsNode {
    requests: Vec<RequestLink>,
    responses: Vec<ResponseLink>,
    asked: Vec<Asked>,
    queue: VecDeque<Queued>,
    unsettled: VecDeque<(SessionId, u32)>,
    next_key: u32,
    next_tag: u32,
}

/// One request among those of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RequestKey(u32);

/// A token that the device wants to be put.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TokenRequest {
    /// To answer it.
    pub(crate) key: RequestKey,
    /// Which kind of token it is.
    pub(crate) token_type: String,
    /// What it is for, as the device says.
    pub(crate) name: String,
    /// The token.
    pub(crate) token: Secret,
}

/// A link over which the device asks.
#[derive(Debug)]
struct RequestLink {
    session: SessionId,
    receiver: Receiver,
    /// Requests that have come, up to the moment at which their answer is sent.
    open: u32,
}

/// A link over which the device is answered.
#[derive(Debug)]
struct ResponseLink {
    session: SessionId,
    sender: Sender,
    /// The address of the device's end.
    address: Option<Box<str>>,
    name: Box<str>,
    settled: bool,
}

/// A request that is being judged.
#[derive(Debug)]
struct Asked {
    key: RequestKey,
    link: LinkId,
    session: SessionId,
    /// The delivery, where it is ours to settle.
    delivery: Option<u32>,
    /// The encoded message-id.
    id: Option<Box<[u8]>>,
    reply_to: Option<Box<str>>,
}

/// An answer that waits for credit.
#[derive(Debug)]
struct Queued {
    link: LinkId,
    session: SessionId,
    reply_to: Option<Box<str>>,
    message: Bytes,
}

impl CbsNode {
    /// A node without links.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Whether the link is one of the node's.
    pub(crate) fn owns(&self, link: LinkId) -> bool {
        self.request_link(link).is_some() || self.response_link(link).is_some()
    }

    /// Answers an attach to the node, or refuses it.
    pub(crate) fn on_attach(
        &mut self,
        connection: &mut Connection,
        link: LinkId,
        session: SessionId,
        attach: &Attach,
    ) {
        let taken = match attach.role() {
            Role::Sender => self.requests.len(),
            Role::Receiver => self.responses.len(),
        };
        if taken >= MAX_LINKS {
            let why = format!("a connection may have {MAX_LINKS} links to $cbs in each direction");
            let error = AmqpError::new(&Condition::ResourceLimitExceeded, Some(&why));
            return connection.refuse_attach(link, error);
        }
        connection.answer_attach(link, &answer(attach));
        match attach.role() {
            Role::Sender => {
                let config = ReceiverConfig {
                    credit: CreditPolicy::Manual,
                    max_message_bytes: MAX_REQUEST_BYTES,
                    ..ReceiverConfig::default()
                };
                // Most devices have one link each way: no room is kept for more.
                self.requests.reserve_exact(1);
                self.requests.push(RequestLink { session, receiver: Receiver::new(link, config), open: 0 });
                self.top_up(connection, link);
            }
            Role::Receiver => {
                self.responses.reserve_exact(1);
                self.responses.push(ResponseLink {
                    session,
                    sender: Sender::new(link),
                    address: attach.target().and_then(|target| target.address().map(Into::into)),
                    name: attach.name().into(),
                    settled: attach.snd_settle_mode() == SndSettleMode::Settled,
                });
            }
        }
    }

    /// Takes a flow of one of the node's links.
    pub(crate) fn on_flow(&mut self, connection: &mut Connection, link: LinkId, flow: &Flow) {
        if let Some(at) = self.request_link(link) {
            self.requests[at].receiver.on_flow(connection, flow);
            self.top_up(connection, link);
        } else if let Some(at) = self.response_link(link) {
            self.responses[at].sender.on_flow(connection, flow);
            self.send(connection);
            if let Some(at) = self.response_link(link) {
                self.responses[at].sender.drained(connection);
            }
        }
    }

    /// Takes a transfer of one of the node's links. Gives the request, once it is whole and is one.
    pub(crate) fn on_transfer(
        &mut self,
        connection: &mut Connection,
        link: LinkId,
        delivery_id: u32,
        transfer: &Transfer,
    ) -> Option<TokenRequest> {
        let at = self.request_link(link)?;
        let request = match self.requests[at].receiver.on_transfer(connection, transfer, delivery_id) {
            Ok(Some(delivery)) => self.on_request(connection, at, &delivery),
            Ok(None) => None,
            // The receiver has detached the link.
            Err(_) => {
                self.lose_link(link);
                return None;
            }
        };
        self.top_up(connection, link);
        request
    }

    fn on_request(
        &mut self,
        connection: &mut Connection,
        at: usize,
        delivery: &Delivery,
    ) -> Option<TokenRequest> {
        let RequestLink { session, receiver, open } = &mut self.requests[at];
        let id = delivery.delivery_id;
        let request = CbsRequest::parse(&delivery.payload);
        let message_id = request.as_ref().ok().and_then(CbsRequest::id).map(encoded);
        let request = match request {
            Ok(request) if message_id.as_ref().is_none_or(|id| id.len() <= MAX_ID_BYTES) => request,
            // There is nobody to whom an answer could be addressed.
            _ => {
                if !delivery.settled {
                    let why = "a request to $cbs is a message with a message-id of at most 1024 bytes";
                    let error = AmqpError::new(&Condition::DecodeError, Some(why));
                    receiver.reject(connection, id, id, Some(&error));
                }
                return None;
            }
        };
        *open += 1;
        let key = RequestKey(self.next_key);
        self.next_key = self.next_key.wrapping_add(1);
        self.asked.push(Asked {
            key,
            link: receiver.link(),
            session: *session,
            delivery: (!delivery.settled).then_some(id),
            id: message_id,
            reply_to: request.reply_to().map(Into::into),
        });
        match request.put_token() {
            Ok(put) => Some(TokenRequest {
                key,
                token_type: put.token_type.to_owned(),
                name: put.name.to_owned(),
                token: Secret::new(put.token),
            }),
            Err(error) => {
                self.answer(connection, key, &Reply::status(400, error.to_string()));
                None
            }
        }
    }

    /// Answers a request. One whose link is gone is not answered.
    pub(crate) fn answer(&mut self, connection: &mut Connection, key: RequestKey, reply: &Reply) {
        let Some(at) = self.asked.iter().position(|asked| asked.key == key) else { return };
        let asked = self.asked.swap_remove(at);
        if self.asked.is_empty() {
            self.asked = Vec::new();
        }
        let Some(at) = self.request_link(asked.link) else { return };
        let request = &mut self.requests[at];
        match reply {
            Reply::Status { status, description } => {
                // The hub settles a request before it answers it, and clients wait for both.
                if let Some(delivery) = asked.delivery {
                    request.receiver.accept(connection, delivery, delivery);
                }
                let id = asked.id.as_deref().and_then(|id| Value::decode(id, &Limits::WIRE).ok());
                let mut message = BytesMut::new();
                let status = i32::try_from(*status).unwrap_or(500);
                put_cbs_response(&mut message, id.map(|(id, _)| id), status, description);
                let (link, session, reply_to) = (asked.link, asked.session, asked.reply_to);
                self.queue.push_back(Queued { link, session, reply_to, message: message.freeze() });
                self.send(connection);
            }
            Reply::Outcome(state) => {
                request.open -= 1;
                if let Some(delivery) = asked.delivery {
                    request.receiver.settle(connection, delivery, delivery, state);
                }
                self.top_up(connection, asked.link);
            }
        }
    }

    /// Sends answers as far as the device gives credit and opens its windows; to be called after flows of sessions
    /// too.
    pub(crate) fn send(&mut self, connection: &mut Connection) {
        let mut waiting = std::mem::take(&mut self.queue);
        waiting.retain(|queued| !self.try_send(connection, queued));
        // An idle device keeps nothing of it.
        if !waiting.is_empty() {
            self.queue = waiting;
        }
    }

    /// Whether the answer is done with.
    fn try_send(&mut self, connection: &mut Connection, queued: &Queued) -> bool {
        let Some(at) = self.way_back(connection, queued) else { return false };
        let ResponseLink { session, sender, settled, .. } = &self.responses[at];
        let tag = self.next_tag.to_be_bytes();
        let fields = TransferOut {
            delivery_tag: Some(&tag),
            message_format: Some(0),
            settled: Some(*settled),
            ..TransferOut::default()
        };
        match connection.transfer(sender.link(), fields, &queued.message) {
            Ok(id) => {
                self.next_tag = self.next_tag.wrapping_add(1);
                if !*settled {
                    if self.unsettled.len() >= MAX_UNSETTLED {
                        self.unsettled.pop_front();
                    }
                    self.unsettled.push_back((*session, id));
                }
            }
            // It will never fit into the device's frames.
            Err(Misuse::FrameTooLarge) => {}
            Err(_) => return false,
        }
        if let Some(at) = self.request_link(queued.link) {
            self.requests[at].open -= 1;
            self.top_up(connection, queued.link);
        }
        true
    }

    /// The link over which to answer, if it has credit: the one that the request names, else one of its session, else
    /// any.
    fn way_back(&self, connection: &Connection, queued: &Queued) -> Option<usize> {
        let named = queued.reply_to.as_deref().and_then(|reply_to| {
            let is_named =
                |link: &ResponseLink| link.address.as_deref() == Some(reply_to) || *link.name == *reply_to;
            self.responses.iter().position(is_named)
        });
        let has_credit = |at: &usize| self.responses[*at].sender.credit(connection) > 0;
        if let Some(named) = named {
            return Some(named).filter(has_credit);
        }
        let places = (0..self.responses.len()).filter(has_credit);
        places.max_by_key(|&at| (self.responses[at].session == queued.session, std::cmp::Reverse(at)))
    }

    /// Takes a disposition of the device, of which only what speaks of the node's answers is its matter.
    pub(crate) fn on_disposition(
        &mut self,
        connection: &mut Connection,
        session: SessionId,
        disposition: &Disposition,
    ) {
        if disposition.role != Role::Receiver || self.unsettled.is_empty() {
            return;
        }
        let state = disposition.state().and_then(|raw| DeliveryState::decode(raw).ok());
        if !disposition.settled && !state.as_ref().is_some_and(DeliveryState::is_outcome) {
            return;
        }
        let (first, last) = (disposition.first, disposition.last);
        self.unsettled.retain(|&(of, id)| {
            let is_meant = of == session && id.wrapping_sub(first) <= last.wrapping_sub(first);
            // 2.6.12: a receiver in mode second waits for the sender to settle.
            if is_meant && !disposition.settled {
                let (role, settled, state) = (Role::Sender, true, disposition.state());
                let answer = DispositionOut { role, first: id, last: id, settled, state, batchable: false };
                connection.disposition(session, answer);
            }
            !is_meant
        });
        if self.unsettled.is_empty() {
            self.unsettled = VecDeque::new();
        }
    }

    /// One of the node's links was detached by the device; the detach is answered where it was not.
    pub(crate) fn on_detached(
        &mut self,
        connection: &mut Connection,
        link: LinkId,
        closed: bool,
        answered: bool,
    ) {
        if !answered {
            connection.detach(link, closed, None);
        }
        self.lose_link(link);
    }

    /// The session is over, and its links with it.
    pub(crate) fn on_session_ended(&mut self, session: SessionId) {
        self.requests.retain(|link| link.session != session);
        self.responses.retain(|link| link.session != session);
        self.asked.retain(|asked| asked.session != session);
        self.queue.retain(|queued| queued.session != session);
        self.unsettled.retain(|&(of, _)| of != session);
    }

    /// How many requests are being judged or wait to be answered.
    #[cfg(test)]
    pub(crate) fn open_requests(&self) -> usize {
        self.asked.len() + self.queue.len()
    }

    fn lose_link(&mut self, link: LinkId) {
        self.requests.retain(|it| it.receiver.link() != link);
        self.responses.retain(|it| it.sender.link() != link);
        self.asked.retain(|asked| asked.link != link);
        self.queue.retain(|queued| queued.link != link);
    }

    fn request_link(&self, link: LinkId) -> Option<usize> {
        self.requests.iter().position(|it| it.receiver.link() == link)
    }

    fn response_link(&self, link: LinkId) -> Option<usize> {
        self.responses.iter().position(|it| it.sender.link() == link)
    }

    /// Gives credit for what may still come, in lots of half of it.
    fn top_up(&mut self, connection: &mut Connection, link: LinkId) {
        let Some(at) = self.request_link(link) else { return };
        let RequestLink { receiver, open, .. } = &mut self.requests[at];
        let credit = connection.link(link).map_or(CREDIT, |info| info.credit);
        let wanted = CREDIT.saturating_sub(*open);
        if wanted.saturating_sub(credit) >= CREDIT / 2 {
            receiver.give_credit(connection, wanted, false);
        }
    }
}

/// The answer to an attach: the device's own terminuses, and how the node settles.
fn answer(attach: &Attach) -> Attach {
    let (source, target) = (attach.source(), attach.target());
    let role = attach.role().other();
    AttachOut {
        name: attach.name(),
        handle: 0,
        role,
        snd_settle_mode: attach.snd_settle_mode(),
        // What comes to the node is settled at once, with its outcome.
        rcv_settle_mode: match role {
            Role::Receiver => RcvSettleMode::First,
            Role::Sender => attach.rcv_settle_mode(),
        },
        source: source.as_ref(),
        target: target.as_ref(),
        unsettled: None,
        initial_delivery_count: (role == Role::Sender).then_some(0),
        max_message_size: Some(MAX_REQUEST_BYTES as u64),
        offered_capabilities: &[],
        desired_capabilities: &[],
        properties: None,
    }
    .build()
}

fn encoded(value: Value<'_>) -> Box<[u8]> {
    let mut out = BytesMut::new();
    value.write(&mut out);
    out[..].into()
}
