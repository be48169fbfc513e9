//! What happens to native AMQP devices, and to the hub connections that carry them.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use fieldgate_amqp::connection::CloseReason;

use crate::telemetry::{Counter, EncodeLabelSet, Family, Gauge, Happening, counter, counters, gauges};

/// The connectors are as many as the configuration has, so their names may be labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByConnector {
    connector: String,
}

struct Metrics {
    routes_opened: Counter,
    routes_failed: Counter,
    violations: Counter,
    connections: Family<ByConnector, Gauge>,
    devices: Family<ByConnector, Gauge>,
    connects: Family<ByConnector, Counter>,
    failures: Family<ByConnector, Counter>,
    losses: Family<ByConnector, Counter>,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    routes_opened: counter("routes_opened", "Native AMQP devices that came in"),
    routes_failed: counter(
        "routes_failed",
        "Native AMQP devices turned away because the hub could not be reached",
    ),
    violations: counter(
        "amqp_violations",
        "Connections of native AMQP devices closed because they broke the protocol's rules",
    ),
    connections: gauges("connector_connections", "Hub connections of native AMQP devices that are up"),
    devices: gauges("connector_devices", "Native AMQP devices on the hub connections of a connector"),
    connects: counters("connector_connects", "Hub connections of native AMQP devices that came up"),
    failures: counters("connector_failures", "Attempts to make a shared hub connection that failed"),
    losses: counters("connector_losses", "Shared hub connections that were up and were lost"),
});

/// The metrics of one connector.
#[derive(Clone, Debug)]
pub(super) struct ConnectorMetrics {
    /// Connections that are up.
    pub(super) connections: Gauge,
    /// Devices on them.
    pub(super) devices: Gauge,
    connects: Counter,
    failures: Counter,
    losses: Counter,
}

impl ConnectorMetrics {
    /// The metrics of the connector of this name; it has them from now on, if only with zeros.
    pub(super) fn new(connector: &str) -> Self {
        let label = ByConnector { connector: connector.to_owned() };
        Self {
            connections: METRICS.connections.get_or_create(&label).clone(),
            devices: METRICS.devices.get_or_create(&label).clone(),
            connects: METRICS.connects.get_or_create(&label).clone(),
            failures: METRICS.failures.get_or_create(&label).clone(),
            losses: METRICS.losses.get_or_create(&label).clone(),
        }
    }
}

/// A device with a hub connection of its own, and that connection; counted as long as this lives.
pub(super) struct Counted(ConnectorMetrics);

impl Counted {
    pub(super) fn new(metrics: &ConnectorMetrics) -> Self {
        metrics.connects.inc();
        metrics.connections.inc();
        metrics.devices.inc();
        Self(metrics.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.dec();
        self.0.devices.dec();
    }
}

/// A device came in.
pub(super) struct DeviceConnected<'a> {
    pub(super) peer: SocketAddr,
    pub(super) container: &'a str,
    /// Who its certificate says it is.
    pub(super) identity: Option<&'a str>,
    /// The connector of the hub connection that is its alone; else it shares.
    pub(super) alone: Option<&'a str>,
}

impl Happening for DeviceConnected<'_> {
    fn emit(self) {
        let Self { peer, container, identity, alone } = self;
        METRICS.routes_opened.inc();
        tracing::info!(%peer, container, identity, connector = alone, "AMQP device connected");
    }
}

/// The hub could not be reached for a device that was to have a connection of its own.
pub(super) struct HubUnreachable<'a> {
    pub(super) peer: SocketAddr,
    pub(super) connector: &'a str,
    pub(super) error: &'a str,
}

impl Happening for HubUnreachable<'_> {
    fn emit(self) {
        let Self { peer, connector, error } = self;
        METRICS.routes_failed.inc();
        tracing::warn!(%peer, connector, error, "AMQP device turned away: the hub cannot be reached");
    }
}

/// A device is gone.
pub(super) struct DeviceGone<'a> {
    pub(super) peer: SocketAddr,
    /// What ended it, as far as a peer said; nothing when a stream just ended.
    pub(super) reason: Option<&'a CloseReason>,
}

impl Happening for DeviceGone<'_> {
    fn emit(self) {
        let Self { peer, reason } = self;
        match reason {
            Some(reason @ (CloseReason::Violation(_) | CloseReason::Header(_) | CloseReason::TimedOut)) => {
                METRICS.violations.inc();
                tracing::warn!(%peer, %reason, "AMQP device closed: it broke the protocol");
            }
            Some(reason) => tracing::info!(%peer, %reason, "AMQP device gone"),
            None => tracing::info!(%peer, "AMQP device gone: its connection was lost"),
        }
    }
}

/// A shared hub connection does its work from now on.
pub(super) struct TrunkConnected<'a> {
    pub(super) connector: &'a Arc<str>,
    pub(super) metrics: &'a ConnectorMetrics,
    pub(super) hub: &'a str,
}

impl Happening for TrunkConnected<'_> {
    fn emit(self) {
        let Self { connector, metrics, hub } = self;
        metrics.connects.inc();
        tracing::info!(%connector, hub, "hub connection is up");
    }
}

/// A shared hub connection could not be made, or was lost; it is tried again.
pub(super) struct TrunkLost<'a> {
    pub(super) connector: &'a Arc<str>,
    pub(super) metrics: &'a ConnectorMetrics,
    /// It had been up.
    pub(super) was_up: bool,
    pub(super) why: &'a str,
    pub(super) again_in: Duration,
}

impl Happening for TrunkLost<'_> {
    fn emit(self) {
        let Self { connector, metrics, was_up, why, again_in } = self;
        let again_in_ms = u64::try_from(again_in.as_millis()).unwrap_or(u64::MAX);
        if was_up {
            metrics.losses.inc();
            tracing::warn!(%connector, why, again_in_ms, "hub connection lost");
        } else {
            metrics.failures.inc();
            tracing::warn!(%connector, why, again_in_ms, "hub connection cannot be made");
        }
    }
}

/// A shared hub connection is over, because nobody needs it.
pub(super) struct TrunkClosed<'a> {
    pub(super) connector: &'a Arc<str>,
}

impl Happening for TrunkClosed<'_> {
    fn emit(self) {
        tracing::info!(connector = %self.connector, "hub connection closed: nobody needs it");
    }
}
