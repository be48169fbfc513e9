//! What is said on links that stand: transfers, flows, dispositions. The hot path.
//!
//! Everything is passed on in the raw form in which it came; what belongs to a side is
//! written anew: channels, handles, delivery ids and counts, session windows. The router
//! grants no credit, settles nothing and invents no answer.

use fieldgate_amqp::connection::{Connection, Event, LinkFlow, LinkId, SessionId};
use fieldgate_amqp::error::{AmqpError, Condition, Misuse};
use fieldgate_amqp::performative::{Disposition, DispositionOut, Flow, Role, Transfer};
use std::time::Instant;

use crate::telemetry::emit;

use super::deliveries::{Deliveries, Run};
use super::ends::{DeviceKey, Side, TrunkKey, TrunkKind};
use super::machine::{Heard, Router};
use super::pressure::STALL_BYTES;
use super::telemetry::{DeliveriesExceeded, deliveries};

/// More than a flow or disposition takes that waits for a window, without its properties or its state.
const HELD_BYTES: usize = 128;
/// What one disposition of a peer may become on the other side.
const MAX_DISPOSITIONS_BYTES: usize = 64 * 1024;

/// Why a transfer did not go through.
enum Stuck {
    /// The link is being detached on the other side, and this side is about to hear of it.
    Gone,
    /// The session cannot go on.
    Session(AmqpError),
    /// The link cannot go on: a gap in it would be a lost message.
    Link(AmqpError),
}

/// Passes a transfer on to the link `peer` of `other`; `link` is the device's end of the pair.
#[inline]
#[expect(clippy::too_many_arguments, reason = "the parts of one event, and where it goes")]
fn pass_transfer(
    other: &mut Connection,
    passed: &mut Deliveries<LinkId>,
    link: LinkId,
    peer: LinkId,
    delivery_id: u32,
    first: bool,
    transfer: &Transfer,
    from: Side,
    max_unsettled: usize,
) -> Result<(), Stuck> {
    let id_out = match other.transfer(peer, transfer.fields(), transfer.payload_slice()) {
        Ok(id_out) => id_out,
        Err(Misuse::UnknownLink | Misuse::NotAttached) => return Err(Stuck::Gone),
        Err(Misuse::Backlog) => return Err(Stuck::Session(reason(Misuse::Backlog))),
        Err(misuse) => return Err(Stuck::Link(reason(misuse))),
    };
    if first {
        deliveries().inc();
    }
    if transfer.settled == Some(true) || transfer.aborted {
        if !first {
            passed.forget_in(delivery_id);
        }
    } else if first && (!passed.passed(delivery_id, id_out, link) || passed.len() > max_unsettled) {
        emit(DeliveriesExceeded { side: from });
        let why = "too many unsettled deliveries";
        return Err(Stuck::Session(AmqpError::new(&Condition::ResourceLimitExceeded, Some(why))));
    }
    Ok(())
}

impl Router {
    /// Passes on what a device says on links that stand, up to the first event of another kind.
    pub(super) fn pass_from_device(&mut self, key: DeviceKey) -> Heard {
        let Self { devices, trunks, .. } = self;
        let Some(device) = devices.get_mut(key) else { return Heard::All };
        while let Some(event) = device.seat.machine.poll_event() {
            let Event::Transfer { link, session, delivery_id, first, ref transfer } = event else {
                return Heard::Rare(event);
            };
            let Some(end) = device.links.get(link) else { return Heard::Rare(event) };
            let (Some(peer), true) = (end.peer, end.stands()) else { return Heard::Rare(event) };
            let trunk = end.trunk;
            let up = device.sessions.get_mut(session).and_then(|session| session.up(trunk));
            let hub = trunks.get_mut(trunk).and_then(|trunk| trunk.seat.as_mut());
            let (Some(up), Some(hub)) = (up, hub) else { return Heard::Rare(event) };
            let passed = pass_transfer(
                &mut hub.machine,
                &mut up.up,
                link,
                peer,
                delivery_id,
                first,
                transfer,
                Side::Downstream,
                device.max_unsettled,
            );
            let has_room = hub.has_room();
            match passed {
                Ok(()) | Err(Stuck::Gone) if has_room => {}
                Ok(()) | Err(Stuck::Gone) => return Heard::Full,
                Err(stuck) => {
                    self.unstick(key, session, link, stuck);
                    return Heard::Full;
                }
            }
        }
        Heard::All
    }

    /// Passes on what a hub says on links that stand, up to the first event of another kind.
    pub(super) fn pass_from_trunk(&mut self, key: TrunkKey) -> Heard {
        let Self { devices, trunks, runs, .. } = self;
        let Some(trunk) = trunks.get_mut(key) else { return Heard::All };
        let paired = matches!(trunk.kind, TrunkKind::Paired(_));
        let Some(seat) = &mut trunk.seat else { return Heard::All };
        while let Some(event) = seat.machine.poll_event() {
            match event {
                Event::Transfer { link, delivery_id, first, ref transfer, .. } => {
                    let Some(&(at, down)) = trunk.links.get(link) else { return Heard::Rare(event) };
                    let Some(device) = devices.get_mut(at) else { continue };
                    let Some(end) = device.links.get(down) else { continue };
                    let session = end.session;
                    let Some(up) = device.sessions.get_mut(session).and_then(|session| session.up(key))
                    else {
                        continue;
                    };
                    let passed = pass_transfer(
                        &mut device.seat.machine,
                        &mut up.down,
                        down,
                        down,
                        delivery_id,
                        first,
                        transfer,
                        Side::Upstream,
                        device.max_unsettled,
                    );
                    let full = !device.seat.has_room();
                    if !paired
                        && (device.seat.backlog() >= STALL_BYTES
                            || device.seat.machine.session_backlog_bytes(session) >= STALL_BYTES)
                        && !up.stalled
                        && let Some(session) = up.session
                    {
                        // What this device does not take, the hub is to keep; the others go on.
                        up.stalled = true;
                        seat.machine.stall(session);
                    }
                    device.seat.wake();
                    match passed {
                        Ok(()) | Err(Stuck::Gone) if paired && full => return Heard::Full,
                        Ok(()) | Err(Stuck::Gone) => {}
                        Err(stuck) => {
                            self.unstick(at, session, down, stuck);
                            return Heard::Full;
                        }
                    }
                }
                Event::Disposition { session, ref disposition } => {
                    let Some(&(at, down)) = trunk.sessions.get(session) else { return Heard::Rare(event) };
                    let Some(device) = devices.get_mut(at) else { continue };
                    if disposition.role == Role::Sender && is_overdue(&device.seat.machine, down) {
                        return Heard::Rare(event);
                    }
                    let Some(up) = device.sessions.get_mut(down).and_then(|session| session.up(key)) else {
                        continue;
                    };
                    let out = disposition.fields();
                    match out.role {
                        // The hub speaks of what came out there: the device knows it by its own ids.
                        Role::Receiver => up.up.in_ids(out.first, out.last, out.settled, runs),
                        Role::Sender => up.down.out_ids(out.first, out.last, out.settled, runs),
                    }
                    join_runs(out, runs);
                    pass_runs(&mut device.seat.machine, down, out, runs);
                    device.seat.wake();
                    if paired && !device.seat.has_room() {
                        return Heard::Full;
                    }
                }
                event => return Heard::Rare(event),
            }
        }
        Heard::All
    }

    fn unstick(&mut self, key: DeviceKey, session: SessionId, link: LinkId, stuck: Stuck) {
        match stuck {
            Stuck::Gone => {}
            Stuck::Session(error) => self.end_both(key, session, error),
            Stuck::Link(error) => self.detach_both(key, link, &error),
        }
    }

    /// A transfer of a device that the hot path left: on a link that waits for its hub, or did.
    #[expect(clippy::too_many_arguments, reason = "the parts of one event")]
    pub(super) fn device_transfer(
        &mut self,
        key: DeviceKey,
        link: LinkId,
        session: SessionId,
        delivery_id: u32,
        first: bool,
        transfer: &Transfer,
        now: Instant,
    ) {
        let Some(device) = self.devices.get(key) else { return };
        if device.links.get(link).is_none() {
            return self.node_transfer(key, link, delivery_id, transfer, now);
        }
        if !self.may_go_up(key, link, delivery_id, first, transfer) {
            return;
        }
        let Self { devices, trunks, .. } = self;
        let Some(device) = devices.get_mut(key) else { return };
        let Some(end) = device.links.get(link) else { return };
        let (trunk, Some(peer)) = (end.trunk, end.peer) else { return };
        let up = device.sessions.get_mut(session).and_then(|session| session.up(trunk));
        let hub = trunks.get_mut(trunk).and_then(|trunk| trunk.seat.as_mut());
        if let (Some(up), Some(hub)) = (up, hub)
            && let Err(stuck) = pass_transfer(
                &mut hub.machine,
                &mut up.up,
                link,
                peer,
                delivery_id,
                first,
                transfer,
                Side::Downstream,
                device.max_unsettled,
            )
        {
            self.unstick(key, session, link, stuck);
        }
    }

    pub(super) fn device_flow(&mut self, key: DeviceKey, link: LinkId, flow: &Flow) {
        let Self { devices, trunks, .. } = self;
        let Some(device) = devices.get_mut(key) else { return };
        let Some(end) = device.links.get(link) else { return self.node_flow(key, link, flow) };
        let (session, skew) = (end.session, end.skew);
        let (Some(peer), true) = (end.peer, end.passes_flows()) else {
            return self.flow_on_held(key, link, flow);
        };
        let Some(hub) = trunks.get_mut(end.trunk).and_then(|trunk| trunk.seat.as_mut()) else { return };
        let Some(known) = hub.machine.link(peer) else { return };
        let more = HELD_BYTES + flow.properties().map_or(0, <[u8]>::len);
        if known.role == Role::Sender && would_be_overdue(&hub.machine, known.session, more) {
            return self.end_both(key, session, reason(Misuse::Backlog));
        }
        let initial = known.initial_delivery_count;
        hub.machine.flow(peer, numbers(flow, initial, skew.wrapping_neg()));
    }

    pub(super) fn trunk_flow(&mut self, key: TrunkKey, link: LinkId, flow: &Flow) {
        let Self { devices, trunks, .. } = self;
        let Some(trunk) = trunks.get_mut(key) else { return };
        let Some(&(at, down)) = trunk.links.get(link) else { return };
        let Some(device) = devices.get_mut(at) else { return };
        let Some(end) = device.links.get_mut(down) else { return };
        let (session, skew) = (end.session, end.skew);
        let there = trunk.seat.as_ref().and_then(|hub| hub.machine.link(link));
        let Some(initial) = there.map(|there| there.initial_delivery_count.wrapping_add(skew)) else {
            return;
        };
        let Some(known) = device.seat.machine.link(down) else { return };
        if known.role == Role::Sender && is_overdue(&device.seat.machine, session) {
            return self.end_both(at, session, reason(Misuse::Backlog));
        }
        let numbers = numbers(flow, initial, skew);
        end.credit_renewed(numbers);
        device.seat.machine.flow(down, numbers);
        device.seat.wake();
    }

    pub(super) fn device_disposition(
        &mut self,
        key: DeviceKey,
        session: SessionId,
        disposition: &Disposition,
    ) {
        let Self { devices, trunks, runs, .. } = self;
        let Some(device) = devices.get_mut(key) else { return };
        let Some(down) = device.sessions.get_mut(session) else {
            return self.node_disposition(key, session, disposition);
        };
        let out = disposition.fields();
        let mut overdue = false;
        for up in &mut down.ups {
            let hub = trunks.get_mut(up.trunk).and_then(|trunk| trunk.seat.as_mut());
            let (Some(hub), Some(at)) = (hub, up.session) else { continue };
            match out.role {
                Role::Receiver => up.down.in_ids(out.first, out.last, out.settled, runs),
                Role::Sender => up.up.out_ids(out.first, out.last, out.settled, runs),
            }
            join_runs(out, runs);
            let more = runs.len() * disposition_bytes(out);
            if out.role == Role::Sender && would_be_overdue(&hub.machine, at, more) {
                overdue = true;
                continue;
            }
            pass_runs(&mut hub.machine, at, out, runs);
        }
        if overdue {
            return self.end_both(key, session, reason(Misuse::Backlog));
        }
        self.note_stale(key, session, out);
        self.node_disposition(key, session, disposition);
    }

    /// A disposition of a hub that the hot path left: one that would wait behind too much.
    pub(super) fn trunk_disposition(&mut self, key: TrunkKey, session: SessionId, _: &Disposition) {
        let Some(&(at, down)) = self.trunks.get(key).and_then(|trunk| trunk.sessions.get(session)) else {
            return;
        };
        self.end_both(at, down, reason(Misuse::Backlog));
    }
}

/// Makes one run of many, where what is said of each would come to much: a peer that settles every other delivery and
/// then says something long of all would have it said thousands of times. What lies between is settled already, and of
/// that nothing more can be said (AMQP 1.0 2.6.12).
fn join_runs(out: DispositionOut<'_>, runs: &mut Vec<Run>) {
    if let [first, .., last] = runs[..]
        && runs.len() * disposition_bytes(out) > MAX_DISPOSITIONS_BYTES
    {
        runs.clear();
        runs.push(Run { first: first.first, last: last.last });
    }
}

/// What a disposition comes to, at most, also where it has to wait.
fn disposition_bytes(out: DispositionOut<'_>) -> usize {
    HELD_BYTES + out.state.map_or(0, <[u8]>::len)
}

fn pass_runs(other: &mut Connection, session: SessionId, out: DispositionOut<'_>, runs: &mut Vec<Run>) {
    for run in runs.drain(..) {
        other.disposition(session, DispositionOut { first: run.first, last: run.last, ..out });
    }
}

/// A flow for the other side, where deliveries are counted from `shift` further on.
///
/// Both links count alike but for that, so what a peer says of its count holds for the other. One that has not seen
/// the sender's attach says none, and counts from the initial count (AMQP 1.0 2.6.7).
fn numbers(flow: &Flow, initial: u32, shift: u32) -> LinkFlow<'_> {
    let count = flow.delivery_count.map(|count| count.wrapping_add(shift));
    LinkFlow {
        delivery_count: count.or(Some(initial)),
        link_credit: flow.link_credit.unwrap_or(0),
        available: flow.available,
        drain: flow.drain,
        echo: flow.echo,
        properties: flow.properties(),
    }
}

/// Whether more waits for the window of a peer's session than may: the machine itself refuses transfers then.
fn is_overdue(connection: &Connection, session: SessionId) -> bool {
    connection.session_backlog_bytes(session) > connection.config().max_backlog_bytes
}

/// Whether more would wait for the window of a hub's session than may, once so much is added. The machine would close
/// the connection for it, which is not this device's alone.
fn would_be_overdue(connection: &Connection, session: SessionId, more: usize) -> bool {
    let backlog = connection.session_backlog_bytes(session);
    backlog > 0 && backlog + more > connection.config().max_backlog_bytes
}

/// What a peer is told when the other side cannot carry on what it began.
pub(super) fn reason(misuse: Misuse) -> AmqpError {
    let condition = match misuse {
        Misuse::Tag => Condition::InvalidField,
        Misuse::FrameTooLarge => Condition::FrameSizeTooSmall,
        Misuse::Backlog | Misuse::NoHandle | Misuse::NoChannel => Condition::ResourceLimitExceeded,
        _ => Condition::InternalError,
    };
    AmqpError::new(&condition, Some(&misuse.to_string()))
}
