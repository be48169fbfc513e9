//! What happens to devices, protocol by protocol.

use std::net::SocketAddr;
use std::sync::LazyLock;

use fieldgate_amqp::connection::CloseReason;

use crate::telemetry::{Counter, Happening, counter};
use crate::upstream::ConnectError;

struct Metrics {
    routes_opened: Counter,
    routes_failed: Counter,
    violations: Counter,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    routes_opened: counter("routes_opened", "Native AMQP devices joined to a hub connection of their own"),
    routes_failed: counter(
        "routes_failed",
        "Native AMQP devices turned away because the hub could not be reached",
    ),
    violations: counter(
        "amqp_violations",
        "Connections of native AMQP devices closed because they broke the protocol's rules",
    ),
});

/// A native AMQP device got its hub connection.
pub(super) struct RouteOpened<'a> {
    pub(super) peer: SocketAddr,
    pub(super) container: &'a str,
}

impl Happening for RouteOpened<'_> {
    fn emit(self) {
        let Self { peer, container } = self;
        METRICS.routes_opened.inc();
        tracing::info!(%peer, container, "AMQP device connected and routed");
    }
}

/// The hub could not be reached for a native AMQP device.
pub(super) struct RouteOpenError<'a> {
    pub(super) peer: SocketAddr,
    pub(super) error: &'a ConnectError,
}

impl Happening for RouteOpenError<'_> {
    fn emit(self) {
        let Self { peer, error } = self;
        METRICS.routes_failed.inc();
        tracing::warn!(%peer, %error, "AMQP device turned away: the hub cannot be reached");
    }
}

/// A native AMQP device and its hub connection are gone.
pub(super) struct RouteClosed {
    pub(super) peer: SocketAddr,
    /// What ended it, as far as a peer said; nothing when a stream just ended.
    pub(super) reason: Option<CloseReason>,
}

impl Happening for RouteClosed {
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
