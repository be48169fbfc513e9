//! What happens at the embedded hub.

use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::sync::LazyLock;

use fieldgate_amqp::connection::CloseReason;
use fieldgate_amqp::error::AmqpError;
use fieldgate_mappings::DeviceId;

use super::auth::Grant;
use super::queue::Departure;
use super::state::{Appended, Refusal};
use crate::telemetry::{
    Counter, EncodeLabelSet, EncodeLabelValue, Family, Gauge, Happening, LabelValueEncoder, counter,
    counters, gauge,
};

struct Metrics {
    connections: Gauge,
    opened: Counter,
    refused: Counter,
    failed: Counter,
    tokens: Family<TokenLabels, Counter>,
    sessions_failed: Counter,
    links_refused: Family<ReasonLabels, Counter>,
    links_detached: Family<ReasonLabels, Counter>,
    devices: Gauge,
    events: Counter,
    event_bytes: Counter,
    log_bytes: Gauge,
    events_dropped: Counter,
    refused_messages: Family<MessageLabels, Counter>,
    commands: Counter,
    departures: Family<DepartureLabels, Counter>,
    feedback_lost: Counter,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    connections: gauge("hub_connections", "Connections to the embedded hub that are open now"),
    opened: counter("hub_connections_opened", "Connections that the embedded hub accepted"),
    refused: counter("hub_connections_refused", "Connections refused because max_connections were open"),
    failed: counter(
        "hub_connections_failed",
        "Connections that could not be accepted, or never got through TLS",
    ),
    tokens: counters("hub_tokens", "Tokens put to the embedded hub"),
    sessions_failed: counter("hub_sessions_failed", "Sessions at the embedded hub that ended with an error"),
    links_refused: counters("hub_links_refused", "Links that the embedded hub refused"),
    links_detached: counters("hub_links_detached", "Links that the embedded hub ended"),
    devices: gauge("hub_devices", "Devices in the embedded hub's registry"),
    events: counter("hub_events", "Messages of devices that are in the embedded hub's log or were"),
    event_bytes: counter("hub_event_bytes", "Their bytes, as they came"),
    log_bytes: gauge("hub_log_bytes", "What the embedded hub's log holds, with what it takes to hold it"),
    events_dropped: counter(
        "hub_events_dropped",
        "The oldest messages of the log, dropped because it was full",
    ),
    refused_messages: counters("hub_messages_refused", "Messages that the embedded hub rejected"),
    commands: counter("hub_commands", "Commands that the embedded hub queued"),
    departures: counters("hub_commands_ended", "What became of commands"),
    feedback_lost: counter("hub_feedback_lost", "Feedback messages that nobody fetched in time"),
});

/// How the variants of an enum read in labels.
macro_rules! labels {
    ($name:ident { $($variant:ident => $text:literal),+ $(,)? }) => {
        impl EncodeLabelValue for $name {
            fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
                encoder.write_str(match self {
                    $(Self::$variant => $text),+
                })
            }
        }
    };
}

labels!(TokenOutcome { Accepted => "accepted", Refused => "refused" });
labels!(LinkReason {
    Unauthorized => "unauthorized",
    NotFound => "not_found",
    Limit => "limit",
    Conflict => "conflict",
    Invalid => "invalid",
});
labels!(MessageKind { Event => "event", Command => "command" });
labels!(DepartureLabel {
    Completed => "completed",
    Rejected => "rejected",
    DeliveryCountExceeded => "delivery_count_exceeded",
    Expired => "expired",
});

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TokenLabels {
    outcome: TokenOutcome,
}

/// What became of a token, as label `outcome="refused"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum TokenOutcome {
    Accepted,
    Refused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: LinkReason,
}

/// Why a link is no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum LinkReason {
    /// Nobody with a good token asked for it.
    Unauthorized,
    /// No such node, or no such device.
    NotFound,
    /// Too many of them.
    Limit,
    /// The same thing was attached again elsewhere.
    Conflict,
    /// Anything else that is wrong with it.
    Invalid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct MessageLabels {
    kind: MessageKind,
}

/// What kind of message was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum MessageKind {
    /// A device's telemetry.
    Event,
    /// A service's command.
    Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DepartureLabels {
    outcome: DepartureLabel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum DepartureLabel {
    Completed,
    Rejected,
    DeliveryCountExceeded,
    Expired,
}

impl From<Departure> for DepartureLabel {
    fn from(departure: Departure) -> Self {
        match departure {
            Departure::Completed => Self::Completed,
            Departure::Rejected => Self::Rejected,
            Departure::DeliveryCountExceeded => Self::DeliveryCountExceeded,
            Departure::Expired => Self::Expired,
        }
    }
}

/// A connection, by number; `Display` as logs show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ConnectionNumber(pub(super) u64);

impl fmt::Display for ConnectionNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The hub listens.
pub(super) struct HubStarted<'a> {
    pub(super) name: &'a str,
    pub(super) addresses: &'a [SocketAddr],
}

impl Happening for HubStarted<'_> {
    fn emit(self) {
        let Self { name, addresses } = self;
        tracing::info!(name, ?addresses, "embedded hub started");
    }
}

/// The hub has closed its connections.
pub(super) struct HubStopped;

impl Happening for HubStopped {
    fn emit(self) {
        tracing::info!("embedded hub stopped");
    }
}

/// Somebody connected.
pub(super) struct ConnectionOpened {
    pub(super) connection: ConnectionNumber,
    pub(super) peer: SocketAddr,
}

impl Happening for ConnectionOpened {
    fn emit(self) {
        let Self { connection, peer } = self;
        METRICS.opened.inc();
        METRICS.connections.inc();
        tracing::debug!(%connection, %peer, "hub connection opened");
    }
}

/// A connection ended.
pub(super) struct ConnectionClosed {
    pub(super) connection: ConnectionNumber,
    pub(super) reason: Option<CloseReason>,
}

impl Happening for ConnectionClosed {
    fn emit(self) {
        let Self { connection, reason } = self;
        METRICS.connections.dec();
        match reason {
            Some(CloseReason::Violation(violation)) => {
                tracing::info!(%connection, %violation, "hub connection closed: the peer broke a rule");
            }
            reason => tracing::debug!(%connection, ?reason, "hub connection closed"),
        }
    }
}

/// A connection was closed at once: there are as many as the configuration allows.
pub(super) struct ConnectionRefused {
    pub(super) peer: SocketAddr,
    pub(super) limit: usize,
}

impl Happening for ConnectionRefused {
    fn emit(self) {
        let Self { peer, limit } = self;
        METRICS.refused.inc();
        tracing::warn!(%peer, limit, "hub connection refused: raise [hub] max_connections");
    }
}

/// The system could not accept a connection, or it did not get as far as AMQP.
pub(super) struct AcceptError<'a> {
    pub(super) peer: Option<SocketAddr>,
    pub(super) error: &'a dyn std::error::Error,
}

impl Happening for AcceptError<'_> {
    fn emit(self) {
        let Self { peer, error } = self;
        METRICS.failed.inc();
        match peer {
            Some(peer) => tracing::info!(%peer, %error, "a client of the hub was turned away"),
            None => tracing::warn!(%error, "the hub could not accept a connection"),
        }
    }
}

/// A token was accepted.
pub(super) struct TokenAccepted<'a> {
    pub(super) connection: ConnectionNumber,
    pub(super) grant: &'a Grant,
}

impl Happening for TokenAccepted<'_> {
    fn emit(self) {
        let Self { connection, grant } = self;
        METRICS.tokens.get_or_create(&TokenLabels { outcome: TokenOutcome::Accepted }).inc();
        tracing::debug!(%connection, signer = ?grant.signer, expiry = grant.expiry, "token accepted");
    }
}

/// A token was refused.
pub(super) struct TokenRefused<'a> {
    pub(super) connection: ConnectionNumber,
    pub(super) error: &'a dyn fmt::Display,
}

impl Happening for TokenRefused<'_> {
    fn emit(self) {
        let Self { connection, error } = self;
        METRICS.tokens.get_or_create(&TokenLabels { outcome: TokenOutcome::Refused }).inc();
        tracing::info!(%connection, %error, "token refused");
    }
}

/// A link was refused.
pub(super) struct LinkRefused<'a> {
    pub(super) connection: ConnectionNumber,
    pub(super) address: Option<&'a str>,
    pub(super) reason: LinkReason,
    pub(super) refusal: &'a Refusal,
}

impl Happening for LinkRefused<'_> {
    fn emit(self) {
        let Self { connection, address, reason, refusal } = self;
        METRICS.links_refused.get_or_create(&ReasonLabels { reason }).inc();
        let (condition, description) = (refusal.condition.as_str(), &refusal.description);
        let address = address.map(|address| address.chars().take(200).collect::<String>());
        tracing::info!(%connection, ?address, condition, description, "link refused");
    }
}

/// The hub ended a link.
pub(super) struct LinkDetached<'a> {
    pub(super) connection: ConnectionNumber,
    pub(super) reason: LinkReason,
    pub(super) refusal: &'a Refusal,
}

impl Happening for LinkDetached<'_> {
    fn emit(self) {
        let Self { connection, reason, refusal } = self;
        METRICS.links_detached.get_or_create(&ReasonLabels { reason }).inc();
        let (condition, description) = (refusal.condition.as_str(), &refusal.description);
        tracing::info!(%connection, condition, description, "link detached");
    }
}

/// A session ended with an error: the peer's, or ours because it broke a rule.
pub(super) struct SessionFailed<'a> {
    pub(super) connection: ConnectionNumber,
    pub(super) error: &'a AmqpError,
}

impl Happening for SessionFailed<'_> {
    fn emit(self) {
        let Self { connection, error } = self;
        METRICS.sessions_failed.inc();
        tracing::info!(%connection, %error, "session ended with an error");
    }
}

/// A device that nobody knew is known now.
pub(super) struct DeviceRegistered<'a> {
    pub(super) device: &'a DeviceId,
}

impl Happening for DeviceRegistered<'_> {
    fn emit(self) {
        METRICS.devices.inc();
        tracing::info!(device = %self.device, "device registered");
    }
}

/// A device's message, or batch, is in the log.
pub(super) struct EventsAppended<'a> {
    pub(super) device: &'a DeviceId,
    pub(super) appended: Appended,
}

impl Happening for EventsAppended<'_> {
    fn emit(self) {
        let Self { device, appended: Appended { partition, messages, bytes, dropped, log_bytes } } = self;
        METRICS.events.inc_by(messages as u64);
        METRICS.event_bytes.inc_by(bytes as u64);
        METRICS.log_bytes.set(i64::try_from(log_bytes).unwrap_or(i64::MAX));
        if dropped > 0 {
            METRICS.events_dropped.inc_by(dropped);
        }
        tracing::trace!(%device, partition, messages, bytes, dropped, "events appended");
    }
}

/// A message was rejected.
pub(super) struct MessageRefused<'a> {
    pub(super) connection: ConnectionNumber,
    pub(super) kind: MessageKind,
    pub(super) device: Option<&'a DeviceId>,
    pub(super) refusal: &'a Refusal,
}

impl Happening for MessageRefused<'_> {
    fn emit(self) {
        let Self { connection, kind, device, refusal } = self;
        METRICS.refused_messages.get_or_create(&MessageLabels { kind }).inc();
        let (condition, description) = (refusal.condition.as_str(), &refusal.description);
        let device = device.map(DeviceId::as_str);
        tracing::info!(%connection, ?kind, device, condition, description, "message rejected");
    }
}

/// A command waits for its device.
pub(super) struct CommandQueued<'a> {
    pub(super) device: &'a DeviceId,
}

impl Happening for CommandQueued<'_> {
    fn emit(self) {
        METRICS.commands.inc();
        tracing::debug!(device = %self.device, "command queued");
    }
}

/// A command is no more.
pub(super) struct CommandEnded<'a> {
    pub(super) device: &'a DeviceId,
    pub(super) departure: Departure,
}

impl Happening for CommandEnded<'_> {
    fn emit(self) {
        let Self { device, departure } = self;
        METRICS.departures.get_or_create(&DepartureLabels { outcome: departure.into() }).inc();
        tracing::debug!(%device, ?departure, "command ended");
    }
}

/// Feedback messages were dropped: nobody came for them.
pub(super) struct FeedbackLost {
    pub(super) messages: u64,
}

impl Happening for FeedbackLost {
    fn emit(self) {
        METRICS.feedback_lost.inc_by(self.messages);
        tracing::debug!(messages = self.messages, "feedback that nobody fetched was dropped");
    }
}
