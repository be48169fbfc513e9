//! The hubs that mapped devices belong to, and which device belongs to which. Made once, shared by all who send.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fieldgate_mappings::address::DeviceId;
use fieldgate_mappings::outcome::{Reason, Rejection};

use super::pace::Pace;
use super::target::Hub;
use crate::config::{Config, Connector, Mode, Profile, Reach, Secret, UPSTREAM};
use crate::devices::{Changes, Registry, SpeaksWith};
use crate::sas::{Resource, Token, TokenError};
use crate::tls::Follow;

/// Where a device belongs, and with what the gateway speaks for it there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Belongs {
    /// The connector's name; the hub of `[upstream]` where none is said.
    pub(crate) hub: Option<Arc<str>>,
    /// What the hub is shown.
    pub(crate) speaks: SpeaksWith,
}

/// Who says where devices belong. Asked when a device first sends, and when something has changed; not for each
/// message.
pub(crate) trait Roster: Send + Sync {
    /// What is known of a device: the default where nothing is, nothing where it may not do anything any more.
    fn belongs(&self, device: &DeviceId) -> Option<Belongs>;
    /// Tells when something has changed, from now on.
    fn changes(&self) -> Changes;
}

impl Roster for Registry {
    fn belongs(&self, device: &DeviceId) -> Option<Belongs> {
        let devices = self.snapshot();
        let Some(device) = devices.get(device.as_str()) else { return Some(Belongs::default()) };
        device.enabled.then(|| Belongs { hub: device.hub.clone(), speaks: device.speaks_with.clone() })
    }

    fn changes(&self) -> Changes {
        self.changes()
    }
}

/// A token that a device brought.
#[derive(Clone, Debug)]
pub(crate) struct OwnToken {
    pub(super) text: Secret,
    /// In seconds since 1970.
    pub(super) expiry: u64,
    /// The hub that it is for.
    pub(super) host: Box<str>,
}

impl OwnToken {
    /// Reads the token that a device brought. Whether it is good the hub decides.
    ///
    /// # Errors
    /// It is no token, or one for more or for another than this device.
    pub(crate) fn read(device: &DeviceId, text: &str) -> Result<Self, TokenError> {
        let token = Token::parse(text)?;
        let resource = token.resource();
        // With one for the whole hub on the connection, every device there could use every address.
        if token.key_name().is_some() || resource.device() != Some(device.as_str()) {
            return Err(TokenError::Malformed("it is not for this device alone"));
        }
        Ok(Self { host: resource.host().into(), expiry: token.expiry(), text: Secret::new(text) })
    }
}

/// How connections to one hub are used.
#[derive(Clone, Debug)]
pub(crate) struct HubSettings {
    /// The connector's name.
    pub(crate) name: Arc<str>,
    pub(crate) profile: Profile,
    /// Stands before each address, as the hub wants to see it.
    pub(crate) address_prefix: Box<str>,
    /// Shared links for one address each, on one connection.
    pub(crate) max_links: usize,
    /// Devices of one connection.
    pub(crate) devices_per_connection: usize,
    /// Connections of one worker.
    pub(crate) max_connections: usize,
    /// Messages without an outcome, of one worker.
    pub(crate) max_in_flight: usize,
    /// A session is ended, and a connection closed, that was of no use for so long.
    pub(crate) idle: Duration,
    /// Life of tokens that are made here.
    pub(crate) token_ttl: Duration,
    /// A connection is there before the first device, and stays.
    pub(crate) at_start: bool,
    pub(crate) idle_time_out: Duration,
    pub(crate) connect_time_out: Duration,
    pub(crate) retry_max: Duration,
    pub(crate) pace: Option<Arc<Pace>>,
}

/// One of the hubs.
#[derive(Debug)]
pub(crate) struct MappedHub {
    pub(crate) hub: Arc<Hub>,
    pub(crate) settings: HubSettings,
}

/// All of them; the first is that of `[upstream]`.
pub(crate) struct MappedHubs {
    pub(super) hubs: Vec<MappedHub>,
    pub(super) roster: Arc<dyn Roster>,
}

impl MappedHubs {
    /// The hub of `[upstream]` and those of the connectors, in the configuration's order.
    pub(crate) fn new(
        config: &Config,
        upstream: Arc<Hub>,
        connectors: &[Arc<Hub>],
        roster: Arc<dyn Roster>,
    ) -> Self {
        let first = MappedHub { hub: upstream, settings: HubSettings::of_upstream(config) };
        let others = config.connectors.iter().zip(connectors);
        // What belongs to one device each cannot carry many.
        let others = others
            .filter(|(connector, _)| connector.reach != Reach::Upstream && connector.mode == Mode::Shared);
        let others = others.map(|(connector, hub)| MappedHub {
            hub: Arc::clone(hub),
            settings: HubSettings::of_connector(connector, config),
        });
        Self { hubs: [first].into_iter().chain(others).collect(), roster }
    }

    /// None at all, for a gateway that maps nothing.
    pub(crate) fn none() -> Self {
        Self { hubs: Vec::new(), roster: Registry::empty() }
    }

    /// What the hub of `[upstream]` has that follows its files; the others are connectors', which are looked after.
    pub(crate) fn files(&self) -> impl Iterator<Item = Arc<dyn Follow>> {
        self.hubs.first().into_iter().flat_map(|first| first.hub.files())
    }

    /// Where they are, for people.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = String> {
        self.hubs.iter().map(|hub| hub.hub.address())
    }

    /// What they are called in tokens.
    pub(crate) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.hubs.iter().map(|hub| hub.hub.name())
    }

    /// Which hub a device belongs to, and with what the gateway speaks for it; `token` is what it brought.
    ///
    /// # Errors
    /// Why it belongs nowhere.
    pub(super) fn belongs(
        &self,
        device: &DeviceId,
        token: Option<&OwnToken>,
    ) -> Result<(usize, SpeaksWith), Rejection> {
        let Some(Belongs { hub, speaks }) = self.roster.belongs(device) else {
            return Err(Rejection::new(Reason::NotPermitted, "the device is disabled"));
        };
        let own = token.filter(|_| speaks == SpeaksWith::OwnToken);
        let at = match (hub, own) {
            (Some(name), _) => self.hubs.iter().position(|hub| hub.settings.name == name),
            (None, Some(token)) => {
                // The default is last: where two go by one name, the connector was written for a purpose.
                let named = |hub: &MappedHub| Resource::new(hub.hub.name(), "").host() == &*token.host;
                Some(self.hubs.iter().rposition(named).unwrap_or(0))
            }
            (None, None) => Some(0),
        };
        match at.filter(|at| *at < self.hubs.len()) {
            Some(at) => Ok((at, speaks)),
            None => {
                let why = "the device belongs to a hub that the gateway has no connector for";
                Err(Rejection::new(Reason::NoSuchAddress, why))
            }
        }
    }
}

impl fmt::Debug for MappedHubs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MappedHubs").field("hubs", &self.hubs).finish_non_exhaustive()
    }
}

impl HubSettings {
    /// Those of `[upstream]`.
    pub(crate) fn of_upstream(config: &Config) -> Self {
        let upstream = &config.upstream;
        Self {
            name: UPSTREAM.into(),
            profile: upstream.mapped.profile,
            address_prefix: upstream.mapped.address_prefix.clone(),
            max_links: upstream.mapped.max_links.get(),
            devices_per_connection: upstream.devices_per_connection.get(),
            max_connections: share(config, upstream.max_connections.get()),
            max_in_flight: upstream.max_in_flight.get(),
            idle: upstream.mapped.idle_session,
            token_ttl: upstream.token_ttl,
            at_start: true,
            idle_time_out: upstream.idle_time_out,
            connect_time_out: upstream.connect_time_out,
            retry_max: upstream.retry_max,
            pace: pace(upstream.mapped.max_messages_per_second),
        }
    }

    fn of_connector(connector: &Connector, config: &Config) -> Self {
        let mapped = &connector.mapped;
        Self {
            name: Arc::clone(&connector.name),
            profile: mapped.profile,
            address_prefix: mapped.address_prefix.clone(),
            max_links: mapped.max_links.get(),
            devices_per_connection: connector.devices_per_connection.get(),
            max_connections: share(config, connector.max_connections.get()),
            max_in_flight: config.upstream.max_in_flight.get(),
            idle: mapped.idle_session,
            token_ttl: config.upstream.token_ttl,
            // Native devices are what it is asked for; whether there will be a mapped one nobody knows.
            at_start: false,
            idle_time_out: connector.idle_time_out,
            connect_time_out: connector.connect_time_out,
            retry_max: connector.retry_max,
            pace: pace(mapped.max_messages_per_second),
        }
    }
}

fn share(config: &Config, connections: usize) -> usize {
    connections.div_ceil(config.runtime.workers().get())
}

fn pace(per_second: Option<NonZeroU32>) -> Option<Arc<Pace>> {
    per_second.map(|per_second| Arc::new(Pace::new(per_second, Instant::now())))
}
