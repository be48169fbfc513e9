//! What happens to routed links.

use std::sync::LazyLock;

use fieldgate_amqp::error::AmqpError;
use fieldgate_amqp::performative::Role;

use crate::telemetry::{Counter, Happening, counter};

use super::tunnel::Side;

struct Metrics {
    routed: Counter,
    refused: Counter,
    exceeded: Counter,
    transfers: Counter,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    routed: counter("routed_links", "Links of native AMQP devices that were routed to the hub"),
    refused: counter("routed_links_refused", "Links of native AMQP devices that no route takes"),
    exceeded: counter("routed_sessions_exceeded", "Routed sessions ended for too many unsettled deliveries"),
    transfers: counter("routed_deliveries", "Deliveries passed between native AMQP devices and the hub"),
});

/// The counter of deliveries that were passed on: added to on the hot path.
pub(super) fn deliveries() -> &'static Counter {
    &METRICS.transfers
}

/// A link was paired with one on the other side.
pub(super) struct LinkRouted {
    pub(super) side: Side,
    pub(super) role: Role,
}

impl Happening for LinkRouted {
    fn emit(self) {
        METRICS.routed.inc();
        tracing::debug!(from = ?self.side, role = ?self.role, "link routed");
    }
}

/// A link was refused by the gateway itself.
pub(super) struct LinkRefused<'a> {
    pub(super) error: &'a AmqpError,
}

impl Happening for LinkRefused<'_> {
    fn emit(self) {
        METRICS.refused.inc();
        tracing::info!(
            condition = self.error.condition(),
            description = self.error.description().unwrap_or_default(),
            "link refused"
        );
    }
}

/// A session had more unsettled deliveries than are kept.
pub(super) struct DeliveriesExceeded {
    pub(super) side: Side,
}

impl Happening for DeliveriesExceeded {
    fn emit(self) {
        METRICS.exceeded.inc();
        tracing::warn!(from = ?self.side, "routed session ended: too many unsettled deliveries");
    }
}
