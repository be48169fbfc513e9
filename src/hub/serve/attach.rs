//! Attaches: which node a peer asks for, whether it may have it, and the answer.

use bytes::BytesMut;
use fieldgate_amqp::codec::{put_descriptor, put_map, put_str, put_symbol};
use fieldgate_amqp::error::Condition;
use fieldgate_amqp::performative::{Attach, AttachOut, Patch, RcvSettleMode, Role, SndSettleMode, Terminus};

use super::super::address::{Node, Right};
use super::super::log::Position;
use super::super::selector;
use super::super::state::{MAX_COMMAND_BYTES, MAX_EVENT_BYTES, Refusal};

/// What a message may have beside what [`super::super::message::size`] counts: section heads, annotations.
const OVERHEAD_BYTES: usize = 64 * 1024;
/// The largest request to `$cbs`: a token and what is said about it.
const MAX_REQUEST_BYTES: usize = 32 * 1024;
/// The largest message that we send, as attaches announce it: an event with all that is stamped on it.
const MAX_SENT_BYTES: u64 = 1024 * 1024;

/// The field `filter` of a source (AMQP 1.0 3.5.3).
const FILTER: usize = 7;

/// The node that an attach asks for.
///
/// # Errors
/// [`Refusal`] when there is no such node, or not in this direction.
pub(super) fn node(attach: &Attach) -> Result<Node, Refusal> {
    let terminus = match attach.role() {
        Role::Sender => attach.target(),
        Role::Receiver => attach.source(),
    };
    let terminus = terminus
        .ok_or_else(|| Refusal::new(Condition::InvalidField, "the attach names no node of the hub"))?;
    if terminus.is_coordinator() {
        return Err(Refusal::new(Condition::NotImplemented, "the hub has no transactions"));
    }
    if terminus.dynamic() {
        return Err(Refusal::new(Condition::NotImplemented, "the hub makes no nodes"));
    }
    let address = terminus
        .address()
        .ok_or_else(|| Refusal::new(Condition::InvalidField, "the attach names no node of the hub"))?;
    let node = Node::parse(address)
        .ok_or_else(|| Refusal::new(Condition::NotFound, "the hub has no node of this address"))?;
    let fits = match (&node, attach.role()) {
        (Node::Missing(what), _) => {
            return Err(Refusal::new(Condition::NotImplemented, format!("this hub has no {what}")));
        }
        (Node::Cbs, _) => true,
        (Node::DeviceEvents(_) | Node::Commands, role) => role == Role::Sender,
        (Node::DeviceCommands(_) | Node::Feedback | Node::Events { .. }, role) => role == Role::Receiver,
    };
    if fits {
        Ok(node)
    } else {
        Err(Refusal::new(Condition::NotAllowed, "messages go the other way at this node"))
    }
}

/// What is said when no token of the connection is good for a node.
pub(super) fn unauthorized(node: &Node) -> Refusal {
    let right = match node.right() {
        Right::ServiceConnect => "ServiceConnect",
        Right::DeviceConnect | Right::None => "DeviceConnect",
    };
    let description = format!("no valid token of this connection covers the address with the right {right}");
    Refusal::new(Condition::UnauthorizedAccess, description)
}

/// Where an event reader begins.
///
/// # Errors
/// [`Refusal`], when it asks in a way that is not understood.
pub(super) fn position(attach: &Attach) -> Result<Position, Refusal> {
    let source = attach.source();
    match selector::find(source.as_ref().and_then(Terminus::filter)) {
        None => Ok(Position::Start),
        Some(text) => {
            selector::parse(text).map_err(|error| Refusal::new(Condition::InvalidField, error.to_string()))
        }
    }
}

/// Whether deliveries of which nothing is kept go out settled. The peer's wish decides, but one that waits for us
/// to settle (rcv-settle-mode second) would wait for ever.
pub(super) fn sends_settled(attach: &Attach) -> bool {
    attach.snd_settle_mode() == SndSettleMode::Settled || attach.rcv_settle_mode() == RcvSettleMode::Second
}

/// The largest message that is taken at a node, in bytes of the wire.
pub(super) fn max_message_bytes(node: &Node) -> usize {
    match node {
        Node::Cbs => MAX_REQUEST_BYTES,
        Node::Commands => MAX_COMMAND_BYTES + OVERHEAD_BYTES,
        _ => MAX_EVENT_BYTES + OVERHEAD_BYTES,
    }
}

/// The answer to an attach that is granted: the peer's own terminuses, and how we settle.
pub(super) fn answer(attach: &Attach, node: &Node) -> Attach {
    let (source, target) = (attach.source(), attach.target());
    let source = source.map(|source| match node {
        Node::Events { .. } => applied_filter(source),
        _ => source,
    });
    let role = attach.role().other();
    let (snd_settle_mode, rcv_settle_mode) = match (role, node) {
        // We settle what we receive at once, with its outcome.
        (Role::Receiver, _) => (attach.snd_settle_mode(), RcvSettleMode::First),
        // Loans wait for their outcome, in either way of settling.
        (Role::Sender, Node::DeviceCommands(_) | Node::Feedback) => {
            (SndSettleMode::Unsettled, attach.rcv_settle_mode())
        }
        (Role::Sender, _) if sends_settled(attach) => (SndSettleMode::Settled, RcvSettleMode::First),
        (Role::Sender, _) => (SndSettleMode::Unsettled, RcvSettleMode::First),
    };
    let max_message_size = match role {
        Role::Receiver => max_message_bytes(node) as u64,
        Role::Sender => MAX_SENT_BYTES,
    };
    AttachOut {
        name: attach.name(),
        handle: 0,
        role,
        snd_settle_mode,
        rcv_settle_mode,
        source: source.as_ref(),
        target: target.as_ref(),
        unsettled: None,
        initial_delivery_count: (role == Role::Sender).then_some(0),
        max_message_size: Some(max_message_size),
        offered_capabilities: &[],
        desired_capabilities: &[],
        properties: None,
    }
    .build()
}

/// The source with just the filter that we apply: what an answer does not name is not applied (AMQP 1.0 3.5.8).
fn applied_filter(source: Terminus) -> Terminus {
    let selector = selector::find(source.filter()).map(str::to_owned);
    let mut filter = BytesMut::new();
    if let Some(selector) = &selector {
        put_map(&mut filter, |out| {
            put_symbol(out, selector::NAME);
            put_descriptor(out, selector::CODE);
            put_str(out, selector);
            1
        });
    }
    let patch = if selector.is_some() { Patch::Raw(&filter) } else { Patch::Null };
    let mut bytes = BytesMut::new();
    source.write_patched(&mut bytes, &[(FILTER, patch)]);
    // A source with one field replaced by a value of its type is a source.
    Terminus::decode(bytes.freeze()).unwrap_or(source)
}

/// The address that an attach names.
pub(super) fn address(attach: &Attach) -> Option<String> {
    let terminus = match attach.role() {
        Role::Sender => attach.target(),
        Role::Receiver => attach.source(),
    };
    terminus?.address().map(str::to_owned)
}
