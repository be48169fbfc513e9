//! A connector as the tasks that use it see it: everything is worked out once, and shared.

use std::cell::RefCell;
use std::sync::Arc;
use std::time::Duration;

use fieldgate_amqp::connection::ConnectionConfig;
use fieldgate_amqp::performative::{Open, OpenOut, Patch};

use crate::config::{self, Config, Connect, Mode, RouteAddress};
use crate::router::{
    Authorise, ConnectorIndex, ConnectorSettings, Direction, LinkRoute, Policy, RouteMatch, Routes,
};
use crate::upstream::Hub;

use super::listeners::max_backlog_bytes;
use super::telemetry::ConnectorMetrics;

/// The field `hostname` of `open` (AMQP 1.0 2.7.1).
const HOSTNAME: usize = 1;

/// A way to a hub.
#[derive(Debug)]
pub(crate) struct Connector {
    pub(super) index: usize,
    pub(super) name: Arc<str>,
    pub(super) mode: Mode,
    pub(super) is_tls: bool,
    /// Its connections are to be there before any device needs them.
    pub(super) is_awaited: bool,
    /// Addresses that are routed to it.
    routes: Arc<Routes>,
    pub(super) hub: Arc<Hub>,
    /// What the hub's connections are told: room for whatever the device side admits.
    pub(super) machine: Arc<ConnectionConfig>,
    pub(super) retry_max: Duration,
    pub(super) metrics: ConnectorMetrics,
    /// The numbers of the shared connections that live now.
    numbers: RefCell<Vec<bool>>,
}

impl Connector {
    /// Connector number `index` of a configuration.
    pub(crate) fn new(index: usize, config: &Config, hub: Arc<Hub>) -> Self {
        let connector = &config.connectors[index];
        Self {
            index,
            name: Arc::clone(&connector.name),
            mode: connector.mode,
            is_tls: connector.is_tls(),
            is_awaited: connector.connect == Connect::Start && connector.mode == Mode::Shared,
            routes: Arc::new(routes(config, |connector| connector == index)),
            machine: Arc::new(machine_config(connector, config, &hub)),
            hub,
            retry_max: connector.retry_max,
            metrics: ConnectorMetrics::new(&connector.name),
            numbers: RefCell::default(),
        }
    }

    /// As the router sees it.
    pub(crate) fn settings(&self, config: &Config) -> ConnectorSettings {
        let connector = &config.connectors[self.index];
        let workers = config.runtime.workers().get();
        ConnectorSettings {
            name: Arc::clone(&self.name),
            hold: connector.hold,
            patience: connector.connect_time_out,
            devices_per_connection: connector.devices_per_connection.get(),
            max_pending: connector.max_pending.get(),
            max_connections: connector.max_connections.get().div_ceil(workers),
            at_start: self.is_awaited,
        }
    }

    /// A device's `open` as the hub is to see it: as it came, but for the host that is asked for. Frame size, channels
    /// and idle time-out are the machine's own.
    pub(super) fn open_for(&self, open: &Open) -> Open {
        let patch = [(HOSTNAME, Patch::Str(self.hub.name()))];
        let patched = open.composite().patched(&patch).and_then(Open::try_from);
        // A name in place of a name: what was an `open` stays one.
        patched.unwrap_or_else(|_| open.clone())
    }

    /// The `open` of a shared connection.
    pub(super) fn own_open(&self, container: &str) -> Open {
        OpenOut { container_id: container, hostname: self.machine.hostname.as_deref(), ..OpenOut::default() }
            .build()
    }

    /// What the links of a device with a connection of its own may name.
    pub(super) fn policy(&self, authorise: Authorise, dialled: Option<&str>) -> Policy {
        Policy::new(authorise, Arc::clone(&self.routes), Arc::clone(self.hub.name()), dialled)
    }

    /// The smallest number that no shared connection of this worker has: as long as there is one connection, it is
    /// always the same. Brokers that keep state for a container know the gateway by it again.
    pub(super) fn take_number(&self) -> usize {
        let mut numbers = self.numbers.borrow_mut();
        let free = numbers.iter().position(|taken| !taken).unwrap_or(numbers.len());
        if free == numbers.len() {
            numbers.push(false);
        }
        numbers[free] = true;
        free
    }

    /// Gives a number back.
    pub(super) fn give_number(&self, number: usize) {
        if let Some(taken) = self.numbers.borrow_mut().get_mut(number) {
            *taken = false;
        }
    }
}

/// The link routes of the configuration, as far as their connectors are `wanted`.
pub(super) fn routes(config: &Config, wanted: impl Fn(usize) -> bool) -> Routes {
    let routes = config.link_routes.iter().filter(|route| wanted(route.connector)).map(|route| LinkRoute {
        matches: match &route.address {
            RouteAddress::Prefix(prefix) => RouteMatch::Prefix(prefix.to_string()),
            RouteAddress::Pattern(pattern) => RouteMatch::Pattern(pattern.to_string()),
        },
        direction: match route.direction {
            config::Direction::In => Some(Direction::In),
            config::Direction::Out => Some(Direction::Out),
            config::Direction::Both => None,
        },
        connector: ConnectorIndex(route.connector),
    });
    Routes::new(routes)
}

fn machine_config(connector: &config::Connector, config: &Config, hub: &Hub) -> ConnectionConfig {
    let limits = || config.listeners.iter().map(|listener| &listener.limits);
    let links = limits().map(|limits| limits.max_links.get()).max().unwrap_or(1);
    let window_bytes = limits().map(|limits| limits.window_bytes).max().unwrap_or(1);
    let devices = match connector.mode {
        Mode::Shared => connector.devices_per_connection.get(),
        Mode::PerConnection => 1,
    };
    ConnectionConfig {
        hostname: Some(hub.name().to_string()),
        max_frame_bytes: connector.max_frame_bytes,
        channel_max: connector.max_sessions.get() - 1,
        handle_max: links - 1,
        // Each device is bounded for itself, and only devices cause links here.
        max_links: devices.saturating_mul(usize::try_from(links).unwrap_or(usize::MAX)),
        incoming_window_bytes: window_bytes as usize,
        idle_time_out: Some(connector.idle_time_out),
        open_time_out: connector.connect_time_out,
        max_backlog_bytes: max_backlog_bytes(window_bytes),
        ..ConnectionConfig::default()
    }
}
