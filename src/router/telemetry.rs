//! What happens to routed links.

use std::sync::LazyLock;

use fieldgate_amqp::error::AmqpError;
use fieldgate_amqp::performative::Attach;

use crate::telemetry::{Counter, Happening, counter};

use super::ends::Side;

struct Metrics {
    routed: Counter,
    refused: Counter,
    exceeded: Counter,
    transfers: Counter,
    stolen: Counter,
    wanted: Counter,
    opened: Counter,
    lost: Counter,
    held: Counter,
    released: Counter,
    dropped: Counter,
    stale: Counter,
    tokens: Counter,
    tokens_refused: Counter,
    tokens_expired: Counter,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    routed: counter("routed_links", "Links of native AMQP devices that were routed to the hub"),
    refused: counter("routed_links_refused", "Links of native AMQP devices that no route takes"),
    exceeded: counter("routed_sessions_exceeded", "Routed sessions ended for too many unsettled deliveries"),
    transfers: counter("routed_deliveries", "Deliveries passed between native AMQP devices and the hub"),
    stolen: counter("routed_links_stolen", "Links that the device which has them attached again"),
    wanted: counter("trunks_wanted", "Connections to hubs that devices were to share"),
    opened: counter("trunks_opened", "Shared connections to hubs that were opened"),
    lost: counter("trunks_lost", "Shared connections to hubs that were lost"),
    held: counter("routed_links_held", "Links that were held through an outage of their hub"),
    released: counter(
        "routed_transfers_released",
        "Transfers that came while their hub was away, and were released",
    ),
    dropped: counter("routed_transfers_dropped", "Settled transfers among those: nobody hears of them"),
    stale: counter("routed_dispositions_stale", "Dispositions for deliveries that an outage had taken away"),
    tokens: counter("routed_tokens", "Tokens of native AMQP devices that hubs answered for"),
    tokens_refused: counter("routed_tokens_refused", "Tokens of native AMQP devices that were refused"),
    tokens_expired: counter("routed_tokens_expired", "Tokens of native AMQP devices that expired unrenewed"),
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

/// A link on a shared connection was attached again by the device that has it.
pub(super) struct LinkStolen<'a> {
    pub(super) name: &'a str,
}

impl Happening for LinkStolen<'_> {
    fn emit(self) {
        METRICS.stolen.inc();
        tracing::info!(link = self.name, "link stolen by the same device");
    }
}

/// A connection to a hub is wanted that devices will share.
pub(super) struct TrunkWanted<'a> {
    pub(super) connector: &'a str,
}

impl Happening for TrunkWanted<'_> {
    fn emit(self) {
        METRICS.wanted.inc();
        tracing::debug!(connector = self.connector, "a connection to the hub is wanted");
    }
}

/// A shared connection is open.
pub(super) struct TrunkOpened<'a> {
    pub(super) connector: &'a str,
    pub(super) devices: usize,
}

impl Happening for TrunkOpened<'_> {
    fn emit(self) {
        METRICS.opened.inc();
        tracing::debug!(
            connector = self.connector,
            devices = self.devices,
            "devices go on over a new connection"
        );
    }
}

/// A shared connection is lost.
pub(super) struct TrunkLost<'a> {
    pub(super) connector: &'a str,
    pub(super) devices: usize,
    pub(super) why: &'a str,
}

impl Happening for TrunkLost<'_> {
    fn emit(self) {
        METRICS.lost.inc();
        let Self { connector, devices, why } = self;
        tracing::warn!(connector, devices, why, "connection to the hub lost; links are held");
    }
}

/// Links of a device are held through an outage.
pub(super) struct LinksHeld {
    pub(super) links: usize,
}

impl Happening for LinksHeld {
    fn emit(self) {
        METRICS.held.inc_by(self.links as u64);
    }
}

/// A transfer of a device found no hub, and was released.
pub(super) struct TransfersReleased {
    /// It was sent settled: the device does not hear of it.
    pub(super) settled: bool,
}

impl Happening for TransfersReleased {
    fn emit(self) {
        METRICS.released.inc();
        if self.settled {
            METRICS.dropped.inc();
        }
    }
}

/// A device spoke of a delivery that an outage has taken away.
pub(super) struct StaleDispositions;

impl Happening for StaleDispositions {
    fn emit(self) {
        METRICS.stale.inc();
    }
}

/// A hub has answered for a device's token.
pub(super) struct TokenPut {
    pub(super) accepted: bool,
}

impl Happening for TokenPut {
    fn emit(self) {
        METRICS.tokens.inc();
        if !self.accepted {
            METRICS.tokens_refused.inc();
        }
        tracing::debug!(accepted = self.accepted, "the hub has answered for a token");
    }
}

/// A token was refused by the gateway itself.
pub(super) struct TokenRefused<'a> {
    pub(super) status: u32,
    pub(super) why: &'a str,
}

impl Happening for TokenRefused<'_> {
    fn emit(self) {
        METRICS.tokens_refused.inc();
        tracing::info!(status = self.status, why = self.why, "token refused");
    }
}

/// A token has expired, and with it what it allowed.
pub(super) struct TokenExpired;

impl Happening for TokenExpired {
    fn emit(self) {
        METRICS.tokens_expired.inc();
        tracing::info!("a device's token has expired");
    }
}
