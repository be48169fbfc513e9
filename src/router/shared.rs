//! Hub connections that devices share: which device is on which, links that find their way
//! there, and back-pressure that holds up one device and not the others.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fieldgate_amqp::connection::{Connection, Event, LinkId, SessionId};
use fieldgate_amqp::error::{AmqpError, Condition, Misuse};
use fieldgate_amqp::performative::{Attach, Begin, Patch, Role, TransferOut};

use crate::table::Table;
use crate::telemetry::emit;

use super::access::{Access, Admitted, Grant, Routed, Rules};
use super::claims::{CbsClientLink, CbsNode};
use super::ends::{
    ConnectorSettings, Device, DeviceInfo, DeviceKey, DownLink, DownSession, Side, Trunk, TrunkKey,
    TrunkKind, UpSession, Way,
};
use super::hold::{SharedLink, Stage};
use super::machine::{Router, held_down};
use super::names::upstream_link_name;
use super::passing::reason;
use super::putting::{Asked, Put};
use super::routes::ConnectorIndex;
use super::seat::{MAX_BACKLOG_BYTES, Seat};
use super::telemetry::{LinkRefused, LinkRouted, LinkStolen, TrunkWanted};

/// While this much waits for a device, the hub is told to keep what it has for it.
pub(super) const STALL_BYTES: usize = 256 * 1024;
/// How long a hub may take to answer for a token.
const CBS_TIME_OUT: Duration = Duration::from_secs(10);
/// Links of a session that the hub may be asked for before it has said how many it takes (handle-max): one too many
/// costs the connection (AMQP 1.0 2.7.2), and with it everybody's links.
const MAX_EARLY_LINKS: usize = 8;
/// How long a connection stays that no device needs any more.
const IDLE_TRUNK: Duration = Duration::from_secs(30);

/// What a device has that shares its hub connections.
#[derive(Debug)]
pub(super) struct SharedDevice {
    pub(super) container: Box<str>,
    pub(super) identity: Option<Box<str>>,
    pub(super) access: Access,
    /// The `$cbs` node that the gateway is for the device.
    pub(super) node: CbsNode,
    /// The connection that it is on, for each connector it has links to.
    pub(super) lanes: Vec<Lane>,
    /// Tokens that it has put and the hub has not answered for.
    pub(super) asked: Vec<Asked>,
    /// It stands in a trunk's queue of those who wait for room.
    queued: bool,
}

/// A device on a trunk.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) connector: usize,
    pub(super) trunk: TrunkKey,
    /// Tokens that are being put again on a new connection: until they are accepted no link is attached.
    pub(super) putting: usize,
    /// Those among them that the hub had no time for, to be put another time.
    pub(super) again: Vec<Grant>,
}

/// A connection that devices share.
#[derive(Debug)]
pub(super) struct SharedTrunk {
    pub(super) connector: usize,
    pub(super) devices: Vec<DeviceKey>,
    /// Devices that are not heard until there is room.
    waiting: Vec<DeviceKey>,
    /// The hub has answered our `open`.
    pub(super) is_open: bool,
    /// Until when what an outage has held, or what is new, waits.
    pub(super) hold_until: Option<Instant>,
    /// Since when no device needs it.
    idle_since: Option<Instant>,
    pub(super) cbs: CbsClientLink<Put>,
    /// Links that are gone at their devices and not yet at the hub.
    pub(super) leaving: Vec<Leaving>,
    /// No device will come any more: the connection is being closed.
    retired: bool,
}

impl SharedTrunk {
    /// Whether no device will come any more.
    pub(super) fn is_retired(&self) -> bool {
        self.retired
    }
}

/// A link that its hub has not let go, with the name that is not free until then.
#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) peer: LinkId,
    pub(super) shared: Box<SharedLink>,
    pub(super) who: (DeviceKey, LinkId),
}

/// A hub that devices share connections to.
#[derive(Debug)]
pub(super) struct Connector {
    pub(super) settings: ConnectorSettings,
    trunks: Vec<TrunkKey>,
    /// Who has the link of this name toward the hub, and who waits for it to be free.
    names: HashMap<Box<str>, Named>,
}

#[derive(Debug)]
struct Named {
    owner: (DeviceKey, LinkId),
    next: Option<(DeviceKey, LinkId)>,
    /// The last number that made another name of this one.
    number: u32,
}

impl Connector {
    pub(super) fn new(settings: ConnectorSettings) -> Self {
        Self { settings, trunks: Vec::new(), names: HashMap::new() }
    }
}

impl SharedDevice {
    pub(super) fn new(info: DeviceInfo, rules: Arc<Rules>) -> Self {
        let DeviceInfo { container, identity, dialled, authorise, max_tokens, bound_to, .. } = info;
        let bound_to = bound_to.map(ConnectorIndex);
        let access = Access::new(rules, authorise, max_tokens, dialled.as_deref(), bound_to, None);
        let (node, lanes, asked) = (CbsNode::new(), Vec::new(), Vec::new());
        Self { container, identity, access, node, lanes, asked, queued: false }
    }

    pub(super) fn lane(&mut self, trunk: TrunkKey) -> Option<&mut Lane> {
        self.lanes.iter_mut().find(|lane| lane.trunk == trunk)
    }
}

impl Device {
    pub(super) fn shared(&mut self) -> Option<&mut SharedDevice> {
        match &mut self.way {
            Way::Shared(shared) => Some(shared),
            Way::Paired { .. } => None,
        }
    }

    /// Tokens that the hub has not answered for.
    fn asked(&self) -> usize {
        match &self.way {
            Way::Shared(shared) => shared.asked.len(),
            Way::Paired { .. } => 0,
        }
    }

    pub(super) fn machine_and_shared(&mut self) -> Option<(&mut Connection, &mut SharedDevice)> {
        match &mut self.way {
            Way::Shared(shared) => Some((&mut self.seat.machine, shared)),
            Way::Paired { .. } => None,
        }
    }
}

impl Trunk {
    pub(super) fn shared(&mut self) -> Option<&mut SharedTrunk> {
        match &mut self.kind {
            TrunkKind::Shared(shared) => Some(shared),
            TrunkKind::Paired(_) | TrunkKind::Unowned => None,
        }
    }
}

impl Router {
    // Who is on which connection.

    /// Makes the connections that are to be there before any device asks.
    pub(crate) fn start(&mut self) {
        for index in 0..self.connectors.len() {
            if self.connectors[index].settings.at_start {
                self.new_trunk(index);
            }
        }
    }

    fn new_trunk(&mut self, connector: usize) -> TrunkKey {
        let shared = SharedTrunk {
            connector,
            devices: Vec::new(),
            waiting: Vec::new(),
            is_open: false,
            hold_until: None,
            idle_since: None,
            cbs: new_cbs(),
            leaving: Vec::new(),
            retired: false,
        };
        let trunk = Trunk {
            seat: None,
            sessions: Table::default(),
            links: Table::default(),
            kind: TrunkKind::Shared(Box::new(shared)),
        };
        let key = self.trunks.insert(trunk);
        self.connectors[connector].trunks.push(key);
        self.wanted.push_back((key, connector));
        emit(TrunkWanted { connector: &self.connectors[connector].settings.name });
        key
    }

    /// A connection that is to be made, and which connector it belongs to. Whoever takes it makes it, again and again,
    /// while [`is_trunk_wanted`](Self::is_trunk_wanted) says so.
    pub(crate) fn take_wanted(&mut self) -> Option<(TrunkKey, usize)> {
        self.wanted.pop_front()
    }

    /// Whether a shared connection is of use.
    pub(crate) fn is_trunk_wanted(&self, key: TrunkKey) -> bool {
        let retired = |trunk: &Trunk| matches!(&trunk.kind, TrunkKind::Shared(shared) if shared.retired);
        !self.draining && self.trunks.get(key).is_some_and(|trunk| !retired(trunk))
    }

    /// How many devices are on a shared connection.
    pub(crate) fn trunk_devices(&self, key: TrunkKey) -> usize {
        match self.trunks.get(key).map(|trunk| &trunk.kind) {
            Some(TrunkKind::Shared(shared)) => shared.devices.len(),
            _ => 0,
        }
    }

    /// The connection of a device to a hub: the one that it is on, or one with room for it.
    pub(super) fn lane(
        &mut self,
        key: DeviceKey,
        connector: usize,
        now: Instant,
    ) -> Result<TrunkKey, AmqpError> {
        let shared = self.devices.get_mut(key).and_then(Device::shared);
        let Some(shared) = shared else { return Err(full("the device is gone")) };
        if let Some(lane) = shared.lanes.iter().find(|lane| lane.connector == connector) {
            return Ok(lane.trunk);
        }
        let Some(of) = self.connectors.get(connector) else { return Err(full("there is no such connector")) };
        let most = of.settings.devices_per_connection;
        let with_room = of.trunks.iter().copied().find(|trunk| {
            let trunk = self.trunks.get(*trunk);
            trunk.is_some_and(|trunk| match (&trunk.kind, &trunk.seat) {
                // One session is the gateway's own, for `$cbs`.
                (TrunkKind::Shared(shared), Some(seat)) if shared.is_open => {
                    let channels = usize::from(seat.machine.channel_max());
                    shared.devices.len() < most.min(channels) && seat.machine.sessions() < channels
                }
                (TrunkKind::Shared(shared), _) => shared.devices.len() < most,
                _ => false,
            })
        });
        let trunk = match with_room {
            Some(trunk) => trunk,
            None if of.trunks.len() < of.settings.max_connections => self.new_trunk(connector),
            None => return Err(full("all connections to the hub have as many devices as they may")),
        };
        if let Some(shared) = self.trunks.get_mut(trunk).and_then(Trunk::shared) {
            shared.devices.push(key);
            shared.idle_since = None;
        }
        if let Some(shared) = self.devices.get_mut(key).and_then(Device::shared) {
            shared.lanes.push(Lane { connector, trunk, putting: 0, again: Vec::new() });
        }
        self.put_again(key, trunk, now);
        Ok(trunk)
    }

    /// Whether one more may wait for a connection that is not there.
    pub(super) fn may_wait(&self, trunk: TrunkKey) -> Result<(), AmqpError> {
        let Some(TrunkKind::Shared(shared)) = self.trunks.get(trunk).map(|trunk| &trunk.kind) else {
            return Ok(());
        };
        if shared.is_open {
            return Ok(());
        }
        let waiting = shared.devices.iter().filter_map(|device| self.devices.get(*device)).map(|device| {
            let links = device.links.iter().filter(|(_, end)| end.trunk == trunk && end.is_new()).count();
            links + device.asked()
        });
        if waiting.sum::<usize>() < self.connectors[shared.connector].settings.max_pending {
            return Ok(());
        }
        Err(full("the hub is away, and too many wait for it already"))
    }

    /// A device has gone: its sessions on shared connections are ended. A delivery in the middle is aborted.
    pub(super) fn leave_trunks(&mut self, key: DeviceKey) {
        let Some(device) = self.devices.get_mut(key) else { return };
        let links: Vec<LinkId> = device.links.iter().map(|(link, _)| link).collect();
        let sessions: Vec<SessionId> = device.sessions.iter().map(|(session, _)| session).collect();
        for link in links {
            self.abort_up(key, link);
        }
        for session in sessions {
            self.device_session_ended(key, session, None);
        }
        let lanes = self
            .devices
            .get_mut(key)
            .and_then(Device::shared)
            .map(|shared| std::mem::take(&mut shared.lanes));
        for lane in lanes.into_iter().flatten() {
            let Some(trunk) = self.trunks.get_mut(lane.trunk) else { continue };
            if let Some(seat) = &mut trunk.seat {
                seat.wake();
            }
            if let Some(shared) = trunk.shared() {
                shared.devices.retain(|device| *device != key);
                shared.waiting.retain(|device| *device != key);
                shared.cbs.forget(|put| put.is_of(key));
            }
        }
    }

    /// Aborts a delivery that a device has begun and will not end.
    fn abort_up(&mut self, key: DeviceKey, link: LinkId) {
        let Some(end) = self.devices.get(key).and_then(|device| device.links.get(link)) else { return };
        let (Some(peer), trunk) = (end.peer, end.trunk) else { return };
        let Some(seat) = self.trunk(trunk) else { return };
        if seat.machine.link(peer).is_some_and(|link| link.role == Role::Sender && link.delivery.is_some()) {
            // A link that is being detached wants to hear no more.
            let _ = seat.machine.transfer(peer, aborted(), &[]);
        }
    }

    /// Lets connections go that no device needs, but for those that are to be there at all times.
    pub(super) fn close_idle_trunks(&mut self, now: Instant) {
        for (index, connector) in self.connectors.iter_mut().enumerate() {
            let keep = usize::from(connector.settings.at_start);
            let mut kept = 0;
            let trunks = &mut self.trunks;
            connector.trunks.retain(|key| {
                let Some(trunk) = trunks.get_mut(*key) else { return false };
                let TrunkKind::Shared(shared) = &mut trunk.kind else { return false };
                debug_assert_eq!(shared.connector, index, "a trunk stands in its connector's list");
                if !shared.devices.is_empty() || kept < keep {
                    kept += 1;
                    return true;
                }
                if now < *shared.idle_since.get_or_insert(now) + IDLE_TRUNK {
                    return true;
                }
                if let Some(seat) = &mut trunk.seat {
                    seat.machine.close(None);
                    seat.wake();
                }
                shared.retired = true;
                false
            });
        }
    }

    // What a device is held back by.

    pub(super) fn hears_shared(&mut self, key: DeviceKey) -> bool {
        let held_up = self.held_up(key);
        let Self { devices, trunks, .. } = self;
        let Some(device) = devices.get_mut(key) else { return false };
        if device.seat.finished {
            return true; // Nothing more is read; what has come is handled.
        }
        if !device.seat.has_room() || held_up >= MAX_BACKLOG_BYTES && held_down(device) < MAX_BACKLOG_BYTES {
            return false;
        }
        let Way::Shared(shared) = &mut device.way else { return true };
        for lane in &shared.lanes {
            let Some(trunk) = trunks.get_mut(lane.trunk) else { continue };
            if trunk.seat.as_ref().is_some_and(|seat| !seat.has_room()) {
                if let (false, TrunkKind::Shared(of)) = (shared.queued, &mut trunk.kind) {
                    shared.queued = true;
                    of.waiting.push(key);
                }
                return false;
            }
        }
        true
    }

    /// Wakes the devices that wait for room, once there is some; and those behind a window that has opened.
    pub(super) fn serve_waiting(&mut self, key: TrunkKey) {
        let Self { devices, trunks, .. } = self;
        let Some(trunk) = trunks.get_mut(key) else { return };
        let has_room = trunk.seat.as_ref().is_none_or(Seat::has_room);
        let Some(shared) = trunk.shared().filter(|shared| has_room && !shared.waiting.is_empty()) else {
            return;
        };
        for key in std::mem::take(&mut shared.waiting) {
            let Some(device) = devices.get_mut(key) else { continue };
            device.seat.wake();
            if let Some(shared) = device.shared() {
                shared.queued = false;
            }
        }
    }

    pub(super) fn wake_trunks_of(&mut self, key: DeviceKey) {
        let Self { devices, trunks, .. } = self;
        let Some(device) = devices.get(key) else { return };
        let Way::Shared(shared) = &device.way else { return };
        for lane in &shared.lanes {
            if let Some(seat) = trunks.get_mut(lane.trunk).and_then(|trunk| trunk.seat.as_mut())
                && seat.machine.output_bytes() > 0
            {
                seat.wake();
            }
        }
    }

    /// Lets hubs send again what a device has room for.
    pub(super) fn resume_windows(&mut self, key: DeviceKey) {
        let Self { devices, trunks, .. } = self;
        let Some(device) = devices.get_mut(key) else { return };
        if matches!(device.way, Way::Paired { .. }) || device.seat.backlog() >= STALL_BYTES / 2 {
            return;
        }
        let machine = &device.seat.machine;
        for (session, down) in device.sessions.iter_mut() {
            for up in down.ups.iter_mut().filter(|up| up.stalled) {
                if machine.session_backlog_bytes(session) >= STALL_BYTES / 2 {
                    continue;
                }
                up.stalled = false;
                let hub = trunks.get_mut(up.trunk).and_then(|trunk| trunk.seat.as_mut());
                if let (Some(hub), Some(session)) = (hub, up.session) {
                    hub.machine.resume(session);
                    hub.wake();
                }
            }
        }
    }

    // Links.

    pub(super) fn shared_attached(
        &mut self,
        key: DeviceKey,
        link: LinkId,
        session: SessionId,
        attach: &Attach,
        now: Instant,
    ) {
        let unix = self.unix;
        let Some(shared) = self.devices.get_mut(key).and_then(Device::shared) else { return };
        let refusal = match shared.access.admit(attach, unix) {
            Ok(Admitted::Cbs) => return self.node_attached(key, link, session, attach),
            Ok(Admitted::Routed(routed)) => match self.route(key, link, session, *routed, now) {
                Ok(()) => return,
                Err(error) => error,
            },
            Err(error) => error,
        };
        emit(LinkRefused { error: &refusal });
        if let Some(seat) = self.device(key) {
            seat.machine.refuse_attach(link, refusal);
        }
    }

    fn route(
        &mut self,
        key: DeviceKey,
        link: LinkId,
        session: SessionId,
        routed: Routed,
        now: Instant,
    ) -> Result<(), AmqpError> {
        let Routed { connector, attach, permit, respelled } = routed;
        let unix = self.unix;
        let trunk = self.lane(key, connector.0, now)?;
        self.may_wait(trunk)?;
        let Some(shared) = self.devices.get_mut(key).and_then(Device::shared) else { return Ok(()) };
        // Who the device has proved to be: by its connection, or by the token that this link stands on.
        let grant = shared.access.grant_of(&permit, unix).map(|grant| grant.scope.as_str());
        let identity = shared.identity.as_deref().or(grant).map(Box::<str>::from);
        let name = upstream_link_name(identity.as_deref(), &shared.container, attach.name(), attach.role());
        let name = self.claim_name(connector.0, name, identity.is_some(), (key, link));
        let attach = attach
            .composite()
            .patched(&[(Attach::NAME, Patch::Str(&name))])
            .and_then(Attach::try_from)
            .map_err(|_| full("the attach is too large"))?;
        let kept = SharedLink::new(connector.0, &attach, permit, respelled);
        let Some(device) = self.devices.get_mut(key) else { return Ok(()) };
        device
            .links
            .insert(link, DownLink { shared: Some(Box::new(kept)), ..DownLink::new(session, trunk, None) });
        self.attach_up(key, link, now);
        Ok(())
    }

    /// Takes the name of a link toward a hub. Where the same device has it already, the old link is finished first:
    /// the new one waits for that. Where another device has it, or one that has proved nothing, both
    /// go on under different names.
    fn claim_name(
        &mut self,
        connector: usize,
        name: String,
        proved: bool,
        who: (DeviceKey, LinkId),
    ) -> Box<str> {
        let names = &mut self.connectors[connector].names;
        let name: Box<str> = name.into();
        let Some(named) = names.get_mut(&name) else {
            names.insert(name.clone(), Named { owner: who, next: None, number: 1 });
            return name;
        };
        if proved && named.next.is_none() {
            named.next = Some(who);
            let (device, link) = named.owner;
            emit(LinkStolen { name: &name });
            let stolen =
                AmqpError::new(&Condition::Stolen, Some("the same device has attached this link again"));
            self.detach_both(device, link, &stolen);
            return name;
        }
        loop {
            let number = names.get_mut(&name).map_or(1, |named| {
                named.number = named.number.wrapping_add(1);
                named.number
            });
            let other: Box<str> = format!("{name}~{number}").into();
            if !names.contains_key(&other) {
                names.insert(other.clone(), Named { owner: who, next: None, number: 1 });
                return other;
            }
        }
    }

    /// A link is gone: its name is free, or handed to who waits for it.
    pub(super) fn release_name(&mut self, shared: &SharedLink, who: (DeviceKey, LinkId)) {
        let Some(attach) = shared.attach() else { return };
        let connector = &mut self.connectors[shared.connector];
        let Some(named) = connector.names.get_mut(attach.name()) else { return };
        if named.next == Some(who) {
            named.next = None;
        } else if named.owner == who {
            match named.next.take() {
                Some(next) => {
                    named.owner = next;
                    self.freed.push(next);
                }
                None => drop(connector.names.remove(attach.name())),
            }
        }
    }

    /// Frees the names of links that the hub has let go as well, or whose connection is over.
    pub(super) fn release_left(&mut self, key: TrunkKey) {
        let Some(trunk) = self.trunks.get_mut(key) else { return };
        let (seat, TrunkKind::Shared(line)) = (&trunk.seat, &mut trunk.kind) else { return };
        let is_left =
            |left: &mut Leaving| seat.as_ref().is_none_or(|hub| hub.machine.link(left.peer).is_none());
        let left: Vec<Leaving> = line.leaving.extract_if(.., is_left).collect();
        for Leaving { shared, who, .. } in left {
            self.release_name(&shared, who);
        }
    }

    /// Attaches a link that waits, if its connection is ready for it.
    pub(super) fn attach_up(&mut self, key: DeviceKey, link: LinkId, now: Instant) {
        let owner = self.owns_name(key, link);
        let end = self.devices.get(key).and_then(|device| device.links.get(link));
        let Some((session, at)) = end.map(|end| (end.session, end.trunk)) else { return };
        let until = self.wait_until(at, now);
        let may_begin = self.may_begin(key, session, at);
        let Self { devices, trunks, .. } = self;
        let Some(device) = devices.get_mut(key) else { return };
        let Some(end) = device.links.get_mut(link) else { return };
        let (None, Some(shared)) = (end.peer, &mut end.shared) else { return };
        let Way::Shared(of) = &mut device.way else { return };
        let putting = of.lane(at).is_some_and(|lane| lane.putting > 0);
        let Some(trunk) = trunks.get_mut(at) else { return };
        let TrunkKind::Shared(line) = &mut trunk.kind else { return };
        shared.until.get_or_insert(until);
        let (true, false, true, Some(seat)) = (line.is_open, putting, owner, &mut trunk.seat) else { return };
        let hub = &mut seat.machine;
        // The counterpart of the session, begun now where there is none.
        let Some(down) = device.sessions.get_mut(session) else { return };
        let begin = down.begin();
        let up = match down.up(at) {
            Some(UpSession { session: Some(up), begun, .. }) => {
                if !*begun && hub.session_links(*up).nth(MAX_EARLY_LINKS - 1).is_some() {
                    return; // Until the session is begun.
                }
                Ok(*up)
            }
            _ if !may_begin => Err(Misuse::NoChannel),
            Some(up) => begin_up(hub, begin).inspect(|begun| {
                up.session = Some(*begun);
                up.begun = false;
            }),
            None => begin_up(hub, begin).inspect(|begun| down.ups.push(UpSession::new(at, Some(*begun)))),
        };
        let count = device.seat.machine.link(link).map_or(0, |link| link.delivery_count);
        let attached = up.and_then(|up| {
            trunk.sessions.insert(up, (key, session));
            let attach = shared.attach_now(count).ok_or(Misuse::FrameTooLarge)?;
            let peer = hub.attach(up, &attach)?;
            Ok((attach, peer))
        });
        match attached {
            Ok((attach, peer)) => {
                trunk.links.insert(peer, (key, link));
                end.peer = Some(peer);
                if shared.stage == Stage::Waiting {
                    // However long the hub takes for its answer is between it and the device.
                    shared.until = None;
                    shared.stage = Stage::Attaching;
                    emit(LinkRouted { side: Side::Downstream, attach: &attach });
                    Self::pass_early_credit(&device.seat.machine, link, hub, peer);
                } else {
                    shared.stage = Stage::Reattaching;
                }
                seat.wake();
            }
            Err(misuse) => {
                let refusal = reason(misuse);
                emit(LinkRefused { error: &refusal });
                device.seat.machine.detach(link, true, Some(refusal));
                device.seat.wake();
                self.forget_link(key, session, link);
            }
        }
    }

    /// Whether a session of a device may be begun on a trunk. Each takes one of the channels that all devices there
    /// share: those that it may take to the last for its first session are not all there for its others.
    fn may_begin(&self, key: DeviceKey, session: SessionId, at: TrunkKey) -> bool {
        let (Some(device), Some(trunk)) = (self.devices.get(key), self.trunks.get(at)) else { return false };
        let (Some(seat), TrunkKind::Shared(line)) = (&trunk.seat, &trunk.kind) else { return true };
        let is_on = |down: &DownSession| down.ups.iter().any(|up| up.trunk == at && up.session.is_some());
        if !device.sessions.iter().any(|(of, down)| of != session && is_on(down)) {
            return true;
        }
        let channels = usize::from(seat.machine.channel_max()) + 1;
        let kept = self.connectors[line.connector].settings.devices_per_connection.min(channels / 2);
        seat.machine.sessions() < channels - kept
    }

    /// Whether a link may go by its name: another that had it is finished.
    fn owns_name(&self, key: DeviceKey, link: LinkId) -> bool {
        let end = self.devices.get(key).and_then(|device| device.links.get(link));
        let Some(shared) = end.and_then(|end| end.shared.as_ref()) else { return false };
        let Some(attach) = shared.attach() else { return false };
        let named = self.connectors[shared.connector].names.get(attach.name());
        named.is_some_and(|named| named.owner == (key, link))
    }

    /// What happens on a shared connection and is no device's.
    pub(super) fn shared_trunk_event(&mut self, key: TrunkKey, event: Event, now: Instant) -> Option<Event> {
        let event = self.cbs_event(key, event, now)?;
        let trunk = self.trunks.get_mut(key)?;
        let seat = trunk.seat.as_mut()?;
        let not_asked_for =
            || AmqpError::new(&Condition::NotAllowed, Some("a gateway offers no nodes of its own"));
        match event {
            Event::SessionBegun { session, by_peer: true, .. } => {
                seat.machine.accept_begin(session);
                seat.machine.end(session, Some(not_asked_for()));
                None
            }
            Event::SessionBegun { session, .. } => {
                let &(device, down) = trunk.sessions.get(session)?;
                let down = self.devices.get_mut(device)?.sessions.get_mut(down)?;
                down.up(key)?.begun = true;
                self.attach_waiting(device, key, now);
                None
            }
            Event::Attached { link, by_peer: true, .. } => {
                seat.machine.refuse_attach(link, not_asked_for());
                None
            }
            event => Some(event),
        }
    }
}

/// A connection's links to `$cbs`, not made yet.
pub(super) fn new_cbs() -> CbsClientLink<Put> {
    CbsClientLink::new(CBS_TIME_OUT)
}

fn begin_up(hub: &mut Connection, begin: Option<Begin>) -> Result<SessionId, Misuse> {
    match begin {
        Some(begin) => hub.begin_as(&begin),
        None => hub.begin(),
    }
}

/// The end of a delivery that nobody will go on with.
pub(super) fn aborted() -> TransferOut<'static> {
    TransferOut { aborted: true, ..TransferOut::default() }
}

fn full(why: &str) -> AmqpError {
    AmqpError::new(&Condition::ResourceLimitExceeded, Some(why))
}
