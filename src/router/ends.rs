//! What the router keeps of a device's connection, and of a connection to a hub.
//!
//! ```text
//!  Device ─ sessions ─┬─ UpSession ──▶ Trunk ─ sessions ──▶ (device, session)
//!                     └─ UpSession ──▶ another hub's Trunk
//!         ─ links ──── DownLink ─────▶ Trunk ─ links ─────▶ (device, link)
//! ```
//!
//! Whatever belongs to a pair stands at the device's end; a trunk only knows the way there.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fieldgate_amqp::connection::{LinkId, SessionId};
use fieldgate_amqp::performative::Begin;
use fieldgate_mappings::DeviceId;

use crate::devices::Pass;
use crate::table::Table;

use super::arena::Key;
use super::deliveries::Deliveries;
use super::hold::SharedLink;
use super::policy::{Authorise, Policy};
use super::routes::ConnectorIndex;
use super::seat::Seat;
use super::shared::{SharedDevice, SharedTrunk};

pub(crate) type DeviceKey = Key<Device>;
pub(crate) type TrunkKey = Key<Trunk>;

/// Which end of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    /// The device's.
    Downstream,
    /// The hub's.
    Upstream,
}

/// A device's connection.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) seat: Seat,
    pub(super) sessions: Table<SessionId, DownSession>,
    pub(super) links: Table<LinkId, DownLink>,
    /// The most deliveries under way in one direction of a session: 24 bytes each. Credit bounds them, but credit is
    /// the peers' affair.
    pub(super) max_unsettled: usize,
    pub(super) way: Way,
}

/// How a device reaches its hub.
#[derive(Debug)]
pub(super) enum Way {
    /// By a connection that is its alone.
    Paired { trunk: TrunkKey, policy: Box<Policy> },
    /// By connections that it shares with others.
    Shared(Box<SharedDevice>),
}

/// A session of a device.
#[derive(Debug, Default)]
pub(super) struct DownSession {
    /// Its counterparts, one for each hub that links of it go to.
    pub(super) ups: Vec<UpSession>,
    /// The device's `begin`, encoded, where it says more than numbers: the counterparts are begun with it.
    pub(super) begin: Option<Box<[u8]>>,
}

/// The counterpart of a device's session on a trunk.
#[derive(Debug)]
pub(super) struct UpSession {
    pub(super) trunk: TrunkKey,
    /// Nothing while the trunk has no connection.
    pub(super) session: Option<SessionId>,
    /// Deliveries from the device to the hub, under the device's ids and the trunk's.
    pub(super) up: Deliveries<LinkId>,
    /// Deliveries from the hub to the device, under the trunk's ids and the device's.
    pub(super) down: Deliveries<LinkId>,
    /// The last delivery-id toward the device that an outage took away.
    pub(super) lost_down: Option<u32>,
    /// The trunk was told to send no more for the time being.
    pub(super) stalled: bool,
    /// The hub has answered the begin, and with it said how many links it takes.
    pub(super) begun: bool,
}

impl UpSession {
    pub(super) fn new(trunk: TrunkKey, session: Option<SessionId>) -> Self {
        Self {
            trunk,
            session,
            up: Deliveries::default(),
            down: Deliveries::default(),
            lost_down: None,
            stalled: false,
            begun: false,
        }
    }

    /// Forgets what goes over a link of the device, both ways.
    pub(super) fn forget_link(&mut self, link: LinkId) {
        self.up.forget_link(link);
        self.down.forget_link(link);
    }
}

impl DownSession {
    /// A session whose counterparts are begun when links of it need them.
    pub(super) fn begun(begin: &Begin) -> Self {
        // Offered and desired capabilities, properties, and what later versions may add.
        let says_more = (5..begin.composite().len()).any(|field| begin.composite().raw(field).is_some());
        Self { ups: Vec::new(), begin: says_more.then(|| begin.encoded().into()) }
    }

    /// A session whose counterpart is begun.
    pub(super) fn with(up: UpSession) -> Self {
        Self { ups: vec![up], begin: None }
    }

    /// What its counterparts are begun with, beyond numbers.
    pub(super) fn begin(&self) -> Option<Begin> {
        Begin::decode(Bytes::copy_from_slice(self.begin.as_deref()?)).ok()
    }

    /// The counterpart on a trunk.
    pub(super) fn up(&mut self, trunk: TrunkKey) -> Option<&mut UpSession> {
        self.ups.iter_mut().find(|up| up.trunk == trunk)
    }
}

/// A link of a device.
#[derive(Debug)]
pub(super) struct DownLink {
    pub(super) session: SessionId,
    pub(super) trunk: TrunkKey,
    /// Its counterpart; nothing while it waits for the trunk.
    pub(super) peer: Option<LinkId>,
    /// How far the device's delivery-count is ahead of the hub's (serial): by the deliveries that did not go
    /// through, and by what an earlier connection of the trunk had counted.
    pub(super) skew: u32,
    /// The device that it speaks for, where it has the hub connection alone.
    pub(super) claims: Option<Box<DeviceId>>,
    /// What is kept to attach the link again.
    pub(super) shared: Option<Box<SharedLink>>,
}

/// A connection to a hub.
#[derive(Debug)]
pub(crate) struct Trunk {
    /// Nothing while there is no connection.
    pub(crate) seat: Option<Seat>,
    /// Where sessions and links lead.
    pub(super) sessions: Table<SessionId, (DeviceKey, SessionId)>,
    pub(super) links: Table<LinkId, (DeviceKey, LinkId)>,
    pub(super) kind: TrunkKind,
}

#[derive(Debug)]
pub(super) enum TrunkKind {
    /// One device's alone, whose key is not known yet.
    Unowned,
    /// One device's alone.
    Paired(DeviceKey),
    /// For many devices.
    Shared(Box<SharedTrunk>),
}

impl Trunk {
    /// Takes the connection away, and with it all that was on it.
    pub(super) fn take_seat(&mut self) -> Option<Seat> {
        self.sessions = Table::default();
        self.links = Table::default();
        self.seat.take()
    }
}

/// What the router is told of a device that has just opened.
#[derive(Clone, Debug)]
pub(crate) struct DeviceInfo {
    /// Its container-id.
    pub(crate) container: Box<str>,
    /// Who it has proved to be at the connection's level, by a client certificate.
    pub(crate) identity: Option<Box<str>>,
    /// The host that it dialled, as its `open` says.
    pub(crate) dialled: Option<Box<str>>,
    /// Who judges what it may attach to.
    pub(crate) authorise: Authorise,
    /// Deliveries under way in one direction of a session, at most.
    pub(crate) max_unsettled: usize,
    /// Tokens that it may have, at most.
    pub(crate) max_tokens: usize,
    /// The connector that its listener is bound to.
    pub(crate) bound_to: Option<usize>,
    /// Where it comes from.
    pub(crate) peer: IpAddr,
    /// The device that it has proved to be as a whole connection.
    pub(crate) own: Option<OwnDevice>,
}

/// The one device that a connection has proved to be.
#[derive(Clone, Debug)]
pub(crate) struct OwnDevice {
    /// To its hub.
    pub(crate) connector: ConnectorIndex,
    /// Who it is, and by what.
    pub(crate) pass: Pass,
    /// When the gateway puts another token for it, in seconds since 1970.
    pub(super) renew_unix: Option<u64>,
}

impl OwnDevice {
    /// A device for which nothing is put yet.
    pub(crate) fn new(connector: usize, pass: Pass) -> Self {
        Self { connector: ConnectorIndex(connector), pass, renew_unix: None }
    }
}

/// A hub that devices share connections to.
#[derive(Clone, Debug)]
pub(crate) struct ConnectorSettings {
    /// Its name in the configuration.
    pub(crate) name: Arc<str>,
    /// How long links are held when a connection is lost; zero: not at all.
    pub(crate) hold: Duration,
    /// How long something new may wait for a connection that has not been there yet.
    pub(crate) patience: Duration,
    /// Devices on one connection, at most.
    pub(crate) devices_per_connection: usize,
    /// Links and tokens that wait for one connection, at most.
    pub(crate) max_pending: usize,
    /// Connections of one worker, at most.
    pub(crate) max_connections: usize,
    /// Connect at once, and stay connected.
    pub(crate) at_start: bool,
}
