//! Holding devices' links through an outage of their hub.
//!
//! When a shared connection is lost the links on it stay attached for a time. What had no
//! outcome gets the one that is certain, credit is taken back, and when there is a connection
//! again the links are attached anew, under the same names, and go on where they stopped.
//!
//! ```text
//!            first answer                 connection lost
//!  Waiting ─▶ Attaching ─▶ Attached ──────────────────────▶ Held
//!     ▲           │            ▲                             │ connected, tokens put again
//!     └───────────┘            └──────── Reattaching ◀───────┘
//!    connection lost      the same answer   (lost again: Held)
//! ```

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Instant;

use bytes::Bytes;
use fieldgate_amqp::connection::{CloseReason, Connection, Half, LinkFlow, LinkId, SessionId};
use fieldgate_amqp::error::{AmqpError, Condition};
use fieldgate_amqp::performative::{
    Attach, DispositionOut, Flow, Patch, RELEASED, Role, Terminus, Transfer, modified,
};

use crate::telemetry::emit;

use super::access::{Permit, Respelled};
use super::deliveries::{Deliveries, Run};
use super::ends::{Device, DeviceKey, DownLink, Trunk, TrunkKey, TrunkKind};
use super::machine::Router;
use super::seat::Seat;
use super::shared::{aborted, new_cbs};
use super::telemetry::{LinksHeld, StaleDispositions, TransfersReleased, TrunkLost, TrunkOpened};

/// What is kept of a link on a shared connection.
#[derive(Debug)]
pub(super) struct SharedLink {
    pub(super) connector: usize,
    /// The attach as it goes to the hub, encoded.
    attach: Box<[u8]>,
    pub(super) permit: Permit,
    pub(super) respelled: Option<Box<Respelled>>,
    pub(super) stage: Stage,
    /// What the hub's first answer said.
    answer: Option<Answer>,
    /// When waiting is over.
    pub(super) until: Option<Instant>,
    /// How often the hub has closed the connection with an error instead of answering.
    blamed: u8,
    /// A delivery of the device whose rest goes nowhere.
    swallow: Option<u32>,
    /// Up to this delivery-count the device may send under credit that the lost connection gave: such a transfer
    /// goes on only if the hub has given credit for it.
    old_limit: Option<u32>,
}

/// Where a link on a shared connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The hub has not been asked yet.
    Waiting,
    /// The hub is asked for the first time.
    Attaching,
    /// It stands.
    Attached,
    /// It stood, and its connection is gone.
    Held,
    /// The hub is asked again.
    Reattaching,
}

/// What must be the same when a link is attached again.
#[derive(Clone, Copy, Debug)]
struct Answer {
    /// Addresses, filters and settle modes.
    same: u64,
    /// The largest message; the new one may be larger.
    max_message_size: u64,
}

impl Answer {
    fn of(attach: &Attach) -> Self {
        let mut hasher = DefaultHasher::new();
        let node = |terminus: Option<&Terminus>, hasher: &mut DefaultHasher| {
            terminus.and_then(Terminus::address).hash(hasher);
        };
        let (source, target) = (attach.source(), attach.target());
        node(source.as_ref(), &mut hasher);
        node(target.as_ref(), &mut hasher);
        source.as_ref().and_then(|source| source.composite().raw(FILTER)).hash(&mut hasher);
        (attach.snd_settle_mode() as u8, attach.rcv_settle_mode() as u8).hash(&mut hasher);
        Self { same: hasher.finish(), max_message_size: attach.max_message_size().unwrap_or(u64::MAX) }
    }

    fn allows(self, again: Self) -> bool {
        self.same == again.same && again.max_message_size >= self.max_message_size
    }
}

/// A hub that closes the connection with an error so many times when it is asked for a link is asked no more: it may be
/// the link that it cannot bear, and everybody's links are on that connection.
const MAX_BLAMED: u8 = 3;

/// The field `filter` of a source (AMQP 1.0 3.5.3).
const FILTER: usize = 7;

impl SharedLink {
    /// A link that waits; `attach` is what goes to the hub.
    pub(super) fn new(
        connector: usize,
        attach: &Attach,
        permit: Permit,
        respelled: Option<Respelled>,
    ) -> Self {
        Self {
            connector,
            attach: attach.encoded().into(),
            permit,
            respelled: respelled.map(Box::new),
            stage: Stage::Waiting,
            answer: None,
            until: None,
            blamed: 0,
            swallow: None,
            old_limit: None,
        }
    }

    /// The attach as it went to the hub first.
    pub(super) fn attach(&self) -> Option<Attach> {
        Attach::decode(Bytes::copy_from_slice(&self.attach)).ok()
    }

    /// The attach as it goes to the hub now. A sender that goes on counts from where it is.
    pub(super) fn attach_now(&self, delivery_count: u32) -> Option<Attach> {
        let attach = self.attach()?;
        if self.stage == Stage::Waiting || attach.role() == Role::Receiver {
            return Some(attach);
        }
        let patches = [(Attach::INITIAL_DELIVERY_COUNT, Patch::U32(delivery_count))];
        attach.composite().patched(&patches).and_then(Attach::try_from).ok()
    }

    /// Whether the link can outlive its connection: deliveries that an attach resumes are known to that connection
    /// alone.
    fn can_be_held(&self) -> bool {
        self.attach().is_some_and(|attach| attach.unsettled().is_none())
    }
}

impl DownLink {
    pub(super) fn new(session: SessionId, trunk: TrunkKey, peer: Option<LinkId>) -> Self {
        Self { session, trunk, peer, skew: 0, claims: None, shared: None }
    }

    /// Whether the hub has never been asked for it.
    pub(super) fn is_new(&self) -> bool {
        self.shared.as_ref().is_some_and(|shared| shared.stage == Stage::Waiting)
    }

    /// Whether transfers of the device pass without a second look.
    pub(super) fn stands(&self) -> bool {
        self.shared.as_ref().is_none_or(|shared| {
            matches!(shared.stage, Stage::Attached | Stage::Attaching)
                && shared.old_limit.is_none()
                && shared.swallow.is_none()
        })
    }

    /// The hub has given the device credit. Where that covers what a lost connection had given, nothing has to be
    /// looked at twice any more.
    pub(super) fn credit_renewed(&mut self, flow: LinkFlow<'_>) {
        let (Some(shared), Some(count)) = (&mut self.shared, flow.delivery_count) else { return };
        let limit = count.wrapping_add(flow.link_credit);
        if shared.old_limit.is_some_and(|old| limit.wrapping_sub(old) < 1 << 31) {
            shared.old_limit = None;
        }
    }

    /// Whether flows of the device pass as they come.
    pub(super) fn passes_flows(&self) -> bool {
        self.peer.is_some() && self.shared.as_ref().is_none_or(|shared| shared.stage != Stage::Reattaching)
    }
}

impl Router {
    // The connection comes and goes.

    /// A shared connection was made; its `open` is under way.
    pub(crate) fn trunk_connected(&mut self, key: TrunkKey, machine: Connection) {
        if let Some(trunk) = self.trunks.get_mut(key) {
            trunk.seat = Some(Seat::new(machine));
        }
    }

    /// The hub has answered the `open` of a shared connection: tokens are put again, links attached.
    pub(super) fn shared_trunk_opened(&mut self, key: TrunkKey, now: Instant) {
        let Some(shared) = self.trunks.get_mut(key).and_then(Trunk::shared) else { return };
        shared.is_open = true;
        // What was held knows for itself until when; what is new from now on has a connection.
        shared.hold_until = None;
        let devices = shared.devices.clone();
        emit(TrunkOpened {
            connector: &self.connectors[shared.connector].settings.name,
            devices: devices.len(),
        });
        for device in devices {
            self.put_again(device, key, now);
        }
    }

    /// Attaches all links of a device that wait for a connection.
    pub(super) fn attach_waiting(&mut self, key: DeviceKey, trunk: TrunkKey, now: Instant) {
        let Some(device) = self.devices.get(key) else { return };
        let waiting = device.links.iter().filter(|(_, link)| link.trunk == trunk && link.peer.is_none());
        let waiting: Vec<LinkId> = waiting.map(|(link, _)| link).collect();
        for link in waiting {
            self.attach_up(key, link, now);
        }
    }

    /// A shared connection is gone, or was not made.
    pub(crate) fn trunk_lost(&mut self, key: TrunkKey, now: Instant, why: &str) {
        self.hold(key, now, why);
        if let Some(trunk) = self.trunks.get_mut(key) {
            trunk.seat = None;
        }
        self.serve_waiting(key);
    }

    /// Takes the devices off a shared connection that is over. Its machine may still have last words to say.
    pub(super) fn hold(&mut self, key: TrunkKey, now: Instant, why: &str) {
        let Some(trunk) = self.trunks.get_mut(key) else { return };
        let seat = trunk.take_seat();
        self.release_left(key);
        let Some(shared) = self.trunks.get_mut(key).and_then(Trunk::shared) else { return };
        // A connection that we closed ourselves is no outage.
        let planned = self.draining || shared.is_retired();
        let was_open = std::mem::take(&mut shared.is_open) && !planned;
        let connector = shared.connector;
        let devices = shared.devices.clone();
        shared.cbs = new_cbs();
        let settings = &self.connectors[connector].settings;
        if was_open {
            let until = now + settings.hold;
            shared.hold_until = Some(until);
            self.sweep_at = Some(self.sweep_at.map_or(until, |at| at.min(until)));
            emit(TrunkLost { connector: &settings.name, devices: devices.len(), why });
        }
        let holds = !settings.hold.is_zero() && !planned;
        let reason = seat.as_ref().and_then(|seat| seat.reason.as_deref());
        let blamed = matches!(reason, Some(CloseReason::Remote(Some(_))));
        for device in devices {
            self.hold_device(device, key, seat.as_ref().map(|seat| &seat.machine), holds, blamed);
        }
        if let Some(trunk) = self.trunks.get_mut(key) {
            trunk.seat = seat;
        }
        self.serve_waiting(key);
    }

    /// Takes a device off a connection that is gone. `hub` is its machine, which knows what it has not sent yet.
    fn hold_device(
        &mut self,
        key: DeviceKey,
        trunk: TrunkKey,
        hub: Option<&Connection>,
        holds: bool,
        blamed: bool,
    ) {
        let Self { devices, trunks, runs, .. } = self;
        let Some(device) = devices.get_mut(key) else { return };
        let until = match trunks.get(trunk).map(|trunk| &trunk.kind) {
            Some(TrunkKind::Shared(shared)) => shared.hold_until,
            _ => None,
        };
        if let Some(shared) = device.shared() {
            shared.wait_for_hub(trunk, until);
        }
        // Deliveries first: those that are in the middle of being received are aborted, before they are settled.
        let Device { seat, sessions, links, .. } = device;
        let machine = &mut seat.machine;
        for (link, end) in links.iter_mut().filter(|(_, end)| end.trunk == trunk) {
            let Some(known) = machine.link(link) else { continue };
            let (role, partial) = (known.role, known.delivery);
            if role == Role::Sender && partial.is_some() {
                let aborted = machine.transfer(link, aborted(), &[]);
                if let (Ok(id), Some(up)) =
                    (aborted, sessions.get_mut(end.session).and_then(|it| it.up(trunk)))
                {
                    up.down.forget_out(id);
                }
            }
            if let (Some(shared), Role::Receiver, Some(id)) = (&mut end.shared, role, partial) {
                shared.swallow = Some(id);
            }
        }
        for (session, down) in sessions.iter_mut() {
            let Some(up) = down.up(trunk) else { continue };
            let unsent = up.session.take().zip(hub).and_then(|(session, hub)| hub.unsent_from(session));
            up.stalled = false;
            settle_sent(machine, session, &mut up.up, unsent, runs);
            up.lost_down = settle_received(machine, session, &mut up.down, runs).or(up.lost_down);
        }
        let (mut held, mut lost) = (0, Vec::new());
        for (link, end) in links.iter_mut().filter(|(_, end)| end.trunk == trunk) {
            end.peer = None;
            let (Some(shared), Some(known)) = (&mut end.shared, machine.link(link)) else { continue };
            // A link that either side has begun to detach, or that the hub has refused, does not come back.
            let is_over = known.local == Half::Ended || known.remote == Half::Ended;
            let is_new = known.local == Half::Idle;
            if shared.stage == Stage::Attaching {
                shared.blamed += u8::from(blamed);
            }
            match shared.stage {
                Stage::Waiting if !is_over => continue,
                Stage::Attaching if holds && is_new && !is_over && shared.blamed < MAX_BLAMED => {
                    shared.stage = Stage::Waiting;
                }
                Stage::Attached | Stage::Reattaching | Stage::Held
                    if holds && !is_over && shared.can_be_held() =>
                {
                    shared.stage = Stage::Held;
                    take_credit_back(machine, link, shared);
                }
                // Its own detach is all that a device needs an answer to.
                _ => {
                    let why = (known.remote != Half::Ended).then(hub_away);
                    lost.push((link, end.session, why));
                    continue;
                }
            }
            held += 1;
            shared.until = until;
        }
        emit(LinksHeld { links: held });
        seat.wake();
        for (link, session, why) in lost {
            self.detach_lost(key, session, link, why);
        }
    }

    fn detach_lost(&mut self, key: DeviceKey, session: SessionId, link: LinkId, why: Option<AmqpError>) {
        if let Some(device) = self.devices.get_mut(key) {
            device.seat.machine.detach(link, true, why);
            device.seat.wake();
        }
        self.forget_link(key, session, link);
    }

    /// Lets go of what has waited for long enough.
    pub(super) fn end_waiting(&mut self, now: Instant) {
        for key in self.devices.keys() {
            let Some(device) = self.devices.get(key) else { continue };
            let over = |end: &DownLink| {
                let shared = end.shared.as_ref();
                shared.is_some_and(|it| {
                    it.stage != Stage::Attached && it.until.is_some_and(|until| until <= now)
                })
            };
            let over = device
                .links
                .iter()
                .filter(|(_, end)| over(end))
                .map(|(link, end)| (link, end.session, end.peer));
            for (link, session, peer) in over.collect::<Vec<_>>() {
                match peer {
                    Some(_) => self.detach_both(key, link, &hub_away()),
                    None => self.detach_lost(key, session, link, Some(hub_away())),
                }
            }
        }
    }

    // The hub answers.

    /// The hub has answered the attach of a link on a shared connection.
    pub(super) fn shared_answered(&mut self, key: DeviceKey, link: LinkId, answer: &Attach) {
        let Self { devices, trunks, .. } = self;
        let Some(device) = devices.get_mut(key) else { return };
        let Some(end) = device.links.get_mut(link) else { return };
        let (Some(shared), Some(peer)) = (&mut end.shared, end.peer) else { return };
        let Some(hub) = trunks.get_mut(end.trunk).and_then(|trunk| trunk.seat.as_mut()) else { return };
        // Without a terminus of its own the hub refuses: its detach follows, and says why.
        let refused = match answer.role() {
            Role::Receiver => answer.target().is_none(),
            Role::Sender => answer.source().is_none(),
        };
        let machine = &mut device.seat.machine;
        match shared.stage {
            Stage::Attaching => {
                let told = shared.respelled.as_ref().map_or_else(|| answer.clone(), |it| it.restore(answer));
                machine.answer_attach(link, &told);
                if !refused {
                    shared.stage = Stage::Attached;
                    shared.answer = Some(Answer::of(answer));
                    shared.until = None;
                }
            }
            Stage::Reattaching if !refused => {
                if !shared.answer.is_some_and(|first| first.allows(Answer::of(answer))) {
                    let error = AmqpError::new(
                        &Condition::DetachForced,
                        Some("the hub came back, and its node is not the same"),
                    );
                    return self.detach_both(key, link, &error);
                }
                shared.stage = Stage::Attached;
                shared.until = None;
                let (Some(known), Some(there)) = (machine.link(link), hub.machine.link(peer)) else { return };
                end.skew = known.delivery_count.wrapping_sub(there.delivery_count);
                if known.role == Role::Sender {
                    // The device's credit, issued again.
                    let flow = LinkFlow { link_credit: known.credit, ..LinkFlow::default() };
                    hub.machine.flow(peer, flow);
                    hub.wake();
                }
            }
            _ => {}
        }
        device.seat.wake();
    }

    /// Passes on what a device has said of credit before its link was attached.
    pub(super) fn pass_early_credit(device: &Connection, link: LinkId, hub: &mut Connection, peer: LinkId) {
        let Some(known) = device.link(link) else { return };
        if known.role == Role::Sender && (known.credit > 0 || known.drain) {
            hub.flow(peer, LinkFlow { link_credit: known.credit, drain: known.drain, ..LinkFlow::default() });
        }
    }

    // The device goes on meanwhile.

    /// Whether a transfer of a device goes on, on a link that is held or was. One that does not is released.
    pub(super) fn may_go_up(
        &mut self,
        key: DeviceKey,
        link: LinkId,
        delivery_id: u32,
        first: bool,
        transfer: &Transfer,
    ) -> bool {
        let Self { devices, trunks, .. } = self;
        let Some(device) = devices.get_mut(key) else { return false };
        let Some(end) = device.links.get_mut(link) else { return false };
        let session = end.session;
        let Some(shared) = &mut end.shared else { return true };
        let ends_here = !transfer.more || transfer.aborted;
        if !first && shared.swallow == Some(delivery_id) {
            if ends_here {
                shared.swallow = None;
            }
            return false;
        }
        let hub = trunks.get_mut(end.trunk).and_then(|trunk| trunk.seat.as_mut());
        let has_credit = || Some(hub?.machine.link(end.peer?)?.credit > 0);
        if matches!(shared.stage, Stage::Attached | Stage::Attaching)
            && (!first || has_credit().unwrap_or(false))
        {
            return true;
        }
        end.skew = end.skew.wrapping_add(u32::from(first));
        if !ends_here {
            shared.swallow = Some(delivery_id);
        }
        let settled = transfer.settled == Some(true);
        emit(TransfersReleased { settled });
        if !settled && !transfer.aborted {
            let state = Some(RELEASED);
            device
                .seat
                .machine
                .disposition(session, settlement(Role::Receiver, delivery_id, delivery_id, state));
        }
        false
    }

    /// A flow of a device on a link that is held, or waits.
    pub(super) fn flow_on_held(&mut self, key: DeviceKey, link: LinkId, flow: &Flow) {
        let Some(device) = self.devices.get_mut(key) else { return };
        let Some(end) = device.links.get_mut(link) else { return };
        let Some(shared) = &mut end.shared else { return };
        if !matches!(shared.stage, Stage::Held | Stage::Reattaching) {
            return; // What it says of credit is passed on with the attach.
        }
        let machine = &mut device.seat.machine;
        let Some(known) = machine.link(link) else { return };
        let (role, drain, credit) = (known.role, known.drain, known.credit);
        if role == Role::Sender && drain {
            drained(machine, link);
        } else if flow.echo {
            let link_credit = if role == Role::Sender { credit } else { 0 };
            machine.flow(link, LinkFlow { link_credit, ..LinkFlow::default() });
        }
    }

    /// Counts dispositions for deliveries that an outage has taken away.
    pub(super) fn note_stale(&mut self, key: DeviceKey, session: SessionId, out: DispositionOut<'_>) {
        let down = self.devices.get_mut(key).and_then(|device| device.sessions.get_mut(session));
        let stale = |lost: u32| lost.wrapping_sub(out.first) < 1 << 31;
        if let (Role::Receiver, Some(down)) = (out.role, down)
            && down.ups.iter().any(|up| up.lost_down.is_some_and(stale))
        {
            emit(StaleDispositions);
        }
    }
}

/// Settles what a device has sent and has no outcome: what never went upstream was released, of the rest nobody knows.
fn settle_sent(
    machine: &mut Connection,
    session: SessionId,
    sent: &mut Deliveries<LinkId>,
    unsent: Option<u32>,
    runs: &mut Vec<Run>,
) {
    let failed = modified(true, false, None);
    let unsent_runs = unsent.map(|from| sent.drain_from(from, runs)).is_some();
    if unsent_runs {
        for run in runs.drain(..) {
            machine.disposition(session, settlement(Role::Receiver, run.first, run.last, Some(RELEASED)));
        }
    }
    sent.drain_in(runs);
    for run in runs.drain(..) {
        machine.disposition(session, settlement(Role::Receiver, run.first, run.last, Some(&failed)));
    }
}

/// Settles what a device has received: the hub will deliver it again. Gives the last of the ids.
fn settle_received(
    machine: &mut Connection,
    session: SessionId,
    received: &mut Deliveries<LinkId>,
    runs: &mut Vec<Run>,
) -> Option<u32> {
    received.drain_out(runs);
    let last = runs.last().map(|run| run.last);
    for run in runs.drain(..) {
        machine.disposition(session, settlement(Role::Sender, run.first, run.last, None));
    }
    last
}

/// Takes back the credit of a sending device; completes the drain of a receiving one.
fn take_credit_back(machine: &mut Connection, link: LinkId, shared: &mut SharedLink) {
    let Some(known) = machine.link(link) else { return };
    match known.role {
        Role::Receiver => {
            shared.old_limit =
                Some(known.delivery_count.wrapping_add(known.credit)).filter(|_| known.credit > 0);
            machine.flow(link, LinkFlow::default());
        }
        Role::Sender if known.drain => drained(machine, link),
        Role::Sender => {}
    }
}

/// Gives back the credit of a device that drains: there is nothing.
fn drained(machine: &mut Connection, link: LinkId) {
    let Some(known) = machine.link(link) else { return };
    let delivery_count = Some(known.delivery_count.wrapping_add(known.credit));
    machine.flow(link, LinkFlow { delivery_count, drain: true, ..LinkFlow::default() });
}

fn settlement(role: Role, first: u32, last: u32, state: Option<&[u8]>) -> DispositionOut<'_> {
    DispositionOut { role, first, last, settled: true, state, batchable: false }
}

/// What a device is told whose links could not be held any longer.
pub(super) fn hub_away() -> AmqpError {
    AmqpError::new(&Condition::DetachForced, Some("the hub cannot be reached now; attach again later"))
}
