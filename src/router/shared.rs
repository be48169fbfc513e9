//! Hub connections that devices share: what is kept of them, and which device is on which.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fieldgate_amqp::connection::{Connection, LinkId, SessionId};
use fieldgate_amqp::error::{AmqpError, Condition};
use fieldgate_amqp::performative::{Role, TransferOut};

use crate::table::Table;
use crate::telemetry::emit;

use super::access::{Access, Grant, Rules};
use super::claims::{CbsClientLink, CbsNode};
use super::ends::{
    ConnectorSettings, Device, DeviceInfo, DeviceKey, OwnDevice, Trunk, TrunkKey, TrunkKind, Way,
};
use super::hold::SharedLink;
use super::machine::Router;
use super::proving::own_node;
use super::putting::{Asked, Put};
use super::routes::ConnectorIndex;
use super::telemetry::TrunkWanted;

/// How long a hub may take to answer for a token.
const CBS_TIME_OUT: Duration = Duration::from_secs(10);
/// How long a connection stays that no device needs any more.
const IDLE_TRUNK: Duration = Duration::from_secs(30);

/// What a device has that shares its hub connections.
#[derive(Debug)]
pub(super) struct SharedDevice {
    pub(super) container: Box<str>,
    pub(super) identity: Option<Box<str>>,
    pub(super) access: Access,
    pub(super) peer: IpAddr,
    /// The device that the whole connection has proved to be.
    pub(super) own: Option<OwnDevice>,
    /// The `$cbs` node that the gateway is for the device.
    pub(super) node: CbsNode,
    /// The connection that it is on, for each connector it has links to.
    pub(super) lanes: Vec<Lane>,
    /// Tokens that it has put and the hub has not answered for.
    pub(super) asked: Vec<Asked>,
    /// It stands in a trunk's queue of those who wait for room.
    pub(super) queued: bool,
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
    pub(super) waiting: Vec<DeviceKey>,
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
    pub(super) retired: bool,
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
    pub(super) names: HashMap<Box<str>, Named>,
}

#[derive(Debug)]
pub(super) struct Named {
    pub(super) owner: (DeviceKey, LinkId),
    pub(super) next: Option<(DeviceKey, LinkId)>,
    /// The last number that made another name of this one.
    pub(super) number: u32,
}

impl Connector {
    pub(super) fn new(settings: ConnectorSettings) -> Self {
        Self { settings, trunks: Vec::new(), names: HashMap::new() }
    }
}

impl SharedDevice {
    pub(super) fn new(info: DeviceInfo, rules: Arc<Rules>) -> Self {
        let DeviceInfo { container, identity, dialled, authorise, max_tokens, bound_to, peer, own, .. } =
            info;
        let bound_to = bound_to.map(ConnectorIndex);
        let its = own.as_ref().and_then(|own| Some((own.connector, own_node(&own.pass.device)?)));
        let access =
            Access::new(Arc::clone(&rules), authorise, max_tokens, dialled.as_deref(), bound_to, its);
        let (node, lanes, asked) = (CbsNode::new(), Vec::new(), Vec::new());
        let mut shared = Self { container, identity, access, peer, own, node, lanes, asked, queued: false };
        shared.speak_for_own(&rules);
        shared
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
}

/// A connection's links to `$cbs`, not made yet.
pub(super) fn new_cbs() -> CbsClientLink<Put> {
    CbsClientLink::new(CBS_TIME_OUT)
}

/// The end of a delivery that nobody will go on with.
pub(super) fn aborted() -> TransferOut<'static> {
    TransferOut { aborted: true, ..TransferOut::default() }
}

pub(super) fn full(why: &str) -> AmqpError {
    AmqpError::new(&Condition::ResourceLimitExceeded, Some(why))
}
