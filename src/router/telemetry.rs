//! What happens to routed links.

use std::sync::LazyLock;

use fieldgate_amqp::error::AmqpError;
use fieldgate_amqp::performative::Attach;

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
pub(super) struct LinkRouted<'a> {
    pub(super) side: Side,
    pub(super) attach: &'a Attach,
}

impl Happening for LinkRouted<'_> {
    fn emit(self) {
        let Self { side, attach } = self;
        METRICS.routed.inc();
        tracing::debug!(from = ?side, role = ?attach.role(), "link routed");
        if tracing::enabled!(tracing::Level::TRACE) {
            // For people only: what goes on is the raw frame, vendor values included.
            match attach.typed() {
                Ok(attach) => tracing::trace!(?attach, "the attach"),
                Err(error) => {
                    tracing::trace!(%error, "the attach holds values beyond the specification's types")
                }
            }
        }
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
