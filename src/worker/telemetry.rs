//! What happens to device connections as such.

use std::io;
use std::net::SocketAddr;
use std::sync::LazyLock;

use crate::telemetry::{ByProtocol, Counter, Family, Gauge, Happening, Protocol, counters, gauges};

struct Metrics {
    opened: Family<ByProtocol, Counter>,
    open: Family<ByProtocol, Gauge>,
    refused: Family<ByProtocol, Counter>,
    accept_errors: Family<ByProtocol, Counter>,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    opened: counters("connections_opened", "Device connections accepted"),
    open: gauges("connections", "Device connections now open (CoAP: sockets)"),
    refused: counters("connections_refused", "Device connections refused because max_connections were open"),
    accept_errors: counters("accept_errors", "Failures of the system to accept a connection"),
});

/// A device connected.
pub(super) struct ConnectionOpened {
    pub(super) protocol: Protocol,
    pub(super) peer: SocketAddr,
}

impl Happening for ConnectionOpened {
    fn emit(self) {
        let Self { protocol, peer } = self;
        METRICS.opened.get_or_create(&ByProtocol { protocol }).inc();
        METRICS.open.get_or_create(&ByProtocol { protocol }).inc();
        tracing::debug!(protocol = protocol.name(), %peer, "connection opened");
    }
}

/// A device connection ended.
pub(super) struct ConnectionClosed {
    pub(super) protocol: Protocol,
}

impl Happening for ConnectionClosed {
    fn emit(self) {
        let protocol = self.protocol;
        METRICS.open.get_or_create(&ByProtocol { protocol }).dec();
    }
}

/// A connection was closed at once: there are as many as the configuration allows.
pub(super) struct ConnectionRefused {
    pub(super) protocol: Protocol,
    pub(super) peer: SocketAddr,
    pub(super) limit: usize,
}

impl Happening for ConnectionRefused {
    fn emit(self) {
        let Self { protocol, peer, limit } = self;
        METRICS.refused.get_or_create(&ByProtocol { protocol }).inc();
        tracing::warn!(
            protocol = protocol.name(),
            %peer,
            limit,
            "connection refused: this worker's share of max_connections is open; raise [{}] max_connections",
            protocol.name()
        );
    }
}

/// The system could not accept a connection.
pub(super) struct AcceptError {
    pub(super) protocol: Protocol,
    pub(super) error: io::Error,
}

impl Happening for AcceptError {
    fn emit(self) {
        let Self { protocol, error } = self;
        METRICS.accept_errors.get_or_create(&ByProtocol { protocol }).inc();
        tracing::warn!(protocol = protocol.name(), %error, "could not accept a connection");
    }
}
