//! What happens on the way to the hub.

use std::sync::LazyLock;
use std::time::Duration;

use fieldgate_amqp::error::AmqpError;
use fieldgate_mappings::address::{Address, DeviceId};
use fieldgate_mappings::amqp::Limited;
use fieldgate_mappings::outcome::{Outcome, Rejection};

use crate::sas::TokenError;
use crate::telemetry::{
    Counter, EncodeLabelSet, EncodeLabelValue, Family, Gauge, Happening, LabelValueEncoder, counter, gauge,
    gauges,
};

struct Metrics {
    up: Gauge,
    lost: Counter,
    attempts_failed: Counter,
    tokens_accepted: Counter,
    tokens_refused: Counter,
    seconds_left: Family<TokenLabels, Gauge>,
    throttled: Counter,
    sessions_lost: Counter,
    links_lost: Counter,
    waiting_exceeded: Counter,
    outlets_exceeded: Counter,
    commands: Counter,
    commands_settled: Counter,
    commands_late: Counter,
    commands_unreadable: Counter,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    up: gauge("upstream_connections_up", "Shared hub connections that do their work now"),
    lost: counter("upstream_connections_lost", "Shared hub connections lost or given up"),
    attempts_failed: counter("upstream_connect_errors", "Attempts to connect to the hub that failed"),
    tokens_accepted: counter(
        "upstream_tokens_accepted",
        "Tokens of the gateway and of devices that the hub accepted",
    ),
    tokens_refused: counter(
        "upstream_device_tokens_refused",
        "Devices' tokens that the hub refused, or that expired",
    ),
    seconds_left: gauges(
        "upstream_token_seconds_left",
        "Seconds until the first of the tokens expires that the hub holds",
    ),
    throttled: counter("upstream_throttled", "Answers of the hub that it wants less"),
    sessions_lost: counter(
        "upstream_device_sessions_lost",
        "Devices' sessions ended by the hub or for its silence",
    ),
    links_lost: counter("upstream_device_links_lost", "Devices' links refused or detached by the hub"),
    waiting_exceeded: counter(
        "upstream_waiting_exceeded",
        "Messages released because too much waited for the hub",
    ),
    outlets_exceeded: counter(
        "upstream_outlets_exceeded",
        "Messages released because their device sent to too many addresses at a time",
    ),
    commands: counter("upstream_commands", "Commands that came from the hub for mapped devices"),
    commands_settled: counter("upstream_commands_settled", "Commands whose outcome was told to the hub"),
    commands_late: counter("upstream_commands_late", "Outcomes of commands that came too late to be told"),
    commands_unreadable: counter(
        "upstream_commands_rejected",
        "Commands that could not be read, and were rejected",
    ),
});

/// The hub cannot be reached.
pub(super) struct ConnectFailed<'a> {
    pub(super) worker: usize,
    pub(super) hub: &'a str,
    pub(super) error: &'a dyn std::fmt::Display,
    pub(super) again_in: Duration,
}

impl Happening for ConnectFailed<'_> {
    fn emit(self) {
        let Self { worker, hub, error, again_in } = self;
        METRICS.attempts_failed.inc();
        tracing::warn!(worker, hub, %error, again_in_ms = again_in.as_millis(), "the hub cannot be reached");
    }
}

/// A shared connection does its work.
pub(super) struct ConnectionReady<'a> {
    pub(super) worker: usize,
    pub(super) hub: &'a str,
}

impl Happening for ConnectionReady<'_> {
    fn emit(self) {
        METRICS.up.inc();
        tracing::info!(worker = self.worker, hub = self.hub, "connected to the hub");
    }
}

/// A shared connection that did its work is gone.
pub(super) struct ConnectionLost<'a> {
    pub(super) worker: usize,
    pub(super) why: &'a str,
}

impl Happening for ConnectionLost<'_> {
    fn emit(self) {
        let Self { worker, why } = self;
        METRICS.up.dec();
        METRICS.lost.inc();
        tracing::warn!(worker, why, "the connection to the hub is gone");
    }
}

/// A connection that worked was closed because the gateway stops.
pub(super) struct ConnectionClosed {
    pub(super) worker: usize,
}

impl Happening for ConnectionClosed {
    fn emit(self) {
        METRICS.up.dec();
        tracing::info!(worker = self.worker, "closed the connection to the hub");
    }
}

/// The hub took the gateway's token.
pub(super) struct TokenAccepted {
    pub(super) worker: usize,
}

impl Happening for TokenAccepted {
    fn emit(self) {
        METRICS.tokens_accepted.inc();
        tracing::debug!(worker = self.worker, "the hub accepted the gateway's token");
    }
}

/// The hub could not judge a fresh token of the gateway's: it is put again as long as the former one is good.
pub(super) struct TokenUnjudged {
    /// What it said, if it said anything.
    pub(super) status: Option<u32>,
}

impl Happening for TokenUnjudged {
    fn emit(self) {
        tracing::warn!(
            status = self.status,
            "the hub could not judge the gateway's fresh token; it is put again"
        );
    }
}

/// A device's session is over.
pub(super) struct DeviceSessionLost<'a> {
    pub(super) device: &'a DeviceId,
    /// The hub's error; nothing where the hub did not answer for a message.
    pub(super) error: Option<&'a AmqpError>,
}

impl Happening for DeviceSessionLost<'_> {
    fn emit(self) {
        METRICS.sessions_lost.inc();
        let condition = self.error.map_or("no answer for a message", |error| error.condition());
        tracing::warn!(device = %self.device, condition, "a device's session with the hub is over");
    }
}

/// A device's link was refused or detached.
pub(super) struct DeviceLinkLost<'a> {
    pub(super) device: &'a DeviceId,
    pub(super) error: Option<&'a AmqpError>,
}

impl Happening for DeviceLinkLost<'_> {
    fn emit(self) {
        METRICS.links_lost.inc();
        let condition = self.error.map_or("none", |error| error.condition());
        let description = self.error.and_then(|error| error.description()).unwrap_or_default();
        tracing::warn!(device = %self.device, condition, description, "the hub detached a device's link");
    }
}

/// Too much waits for the hub: a message was released.
pub(super) struct WaitingExceeded {
    pub(super) bytes: usize,
}

impl Happening for WaitingExceeded {
    fn emit(self) {
        METRICS.waiting_exceeded.inc();
        tracing::debug!(waiting_bytes = self.bytes, "a message was released: too much waits for the hub");
    }
}

/// A device sends to more addresses at a time than it may: a message was released.
pub(super) struct OutletsExceeded<'a> {
    pub(super) device: &'a DeviceId,
}

impl Happening for OutletsExceeded<'_> {
    fn emit(self) {
        METRICS.outlets_exceeded.inc();
        tracing::info!(device = %self.device, "a message was released: its device sends to too many addresses");
    }
}

/// A command came.
pub(super) struct CommandReceived<'a> {
    pub(super) device: &'a DeviceId,
}

impl Happening for CommandReceived<'_> {
    fn emit(self) {
        METRICS.commands.inc();
        tracing::debug!(device = %self.device, "command received from the hub");
    }
}

/// A command's outcome was told, or came too late for that.
pub(super) struct CommandSettled<'a> {
    pub(super) device: &'a DeviceId,
    pub(super) outcome: Option<&'a Outcome>,
}

impl Happening for CommandSettled<'_> {
    fn emit(self) {
        match self.outcome {
            Some(outcome) => {
                METRICS.commands_settled.inc();
                tracing::debug!(device = %self.device, ?outcome, "command settled");
            }
            None => {
                METRICS.commands_late.inc();
                tracing::info!(device = %self.device, "a command's outcome came too late: the hub delivers it again");
            }
        }
    }
}

/// A command could not be read.
pub(super) struct CommandMapError<'a> {
    pub(super) device: &'a DeviceId,
    pub(super) rejection: &'a Rejection,
}

impl Happening for CommandMapError<'_> {
    fn emit(self) {
        METRICS.commands_unreadable.inc();
        tracing::warn!(device = %self.device, rejection = %self.rejection, "a command was rejected: it cannot be read");
    }
}

/// The hub wants less, of a device or of all.
pub(super) struct DeviceThrottled<'a> {
    pub(super) device: &'a DeviceId,
    pub(super) of: Limited,
    pub(super) retry_after: Option<Duration>,
}

impl Happening for DeviceThrottled<'_> {
    fn emit(self) {
        let Self { device, of, retry_after } = self;
        METRICS.throttled.inc();
        tracing::debug!(%device, ?of, ?retry_after, "the hub wants less");
    }
}

/// A shared link was refused or detached.
pub(super) struct SharedLinkLost<'a> {
    /// Where it led; anywhere where none is said.
    pub(super) address: Option<&'a Address>,
    pub(super) error: Option<&'a AmqpError>,
}

impl Happening for SharedLinkLost<'_> {
    fn emit(self) {
        METRICS.links_lost.inc();
        let address = self.address.map_or("any", Address::as_str);
        let condition = self.error.map_or("none", |error| error.condition());
        let description = self.error.and_then(|error| error.description()).unwrap_or_default();
        tracing::warn!(address, condition, description, "the hub detached a link that devices share");
    }
}

/// The session of the shared links is over.
pub(super) struct SharedSessionLost<'a> {
    /// The hub's error; nothing where the hub did not answer for a message.
    pub(super) error: Option<&'a AmqpError>,
}

impl Happening for SharedSessionLost<'_> {
    fn emit(self) {
        METRICS.sessions_lost.inc();
        let condition = self.error.map_or("no answer for a message", |error| error.condition());
        tracing::warn!(condition, "the session that devices share is over");
    }
}

/// The hub took a device's token.
pub(super) struct DeviceTokenAccepted<'a> {
    pub(super) device: &'a DeviceId,
}

impl Happening for DeviceTokenAccepted<'_> {
    fn emit(self) {
        METRICS.tokens_accepted.inc();
        tracing::debug!(device = %self.device, "the hub accepted a device's token");
    }
}

/// The hub does not want a device's token, or there is none to show.
pub(super) struct DeviceTokenRefused<'a> {
    pub(super) device: &'a DeviceId,
    pub(super) rejection: &'a Rejection,
}

impl Happening for DeviceTokenRefused<'_> {
    fn emit(self) {
        METRICS.tokens_refused.inc();
        tracing::warn!(device = %self.device, rejection = %self.rejection, "a device has no token that the hub takes");
    }
}

/// Whose token, as label `of="device"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum TokenOf {
    /// The connection's own, of a policy's key.
    Policy,
    /// A device's.
    Device,
}

impl EncodeLabelValue for TokenOf {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        match self {
            Self::Policy => "policy",
            Self::Device => "device",
        }
        .encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TokenLabels {
    of: TokenOf,
    worker: u64,
}

/// A device has brought a token that cannot be shown to its hub.
pub(super) struct OwnTokenUnfit<'a> {
    pub(super) device: &'a DeviceId,
    pub(super) error: &'a TokenError,
}

impl Happening for OwnTokenUnfit<'_> {
    fn emit(self) {
        METRICS.tokens_refused.inc();
        tracing::warn!(device = %self.device, error = %self.error, "a device's token cannot be shown to its hub");
    }
}

/// How long the token has left that expires first, where there is one. Once a second, so no line is written.
pub(super) struct TokensAged {
    pub(super) worker: usize,
    pub(super) of: TokenOf,
    pub(super) seconds_left: Option<u64>,
}

impl Happening for TokensAged {
    fn emit(self) {
        let labels = TokenLabels { of: self.of, worker: self.worker as u64 };
        match self.seconds_left {
            Some(seconds) => {
                let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
                METRICS.seconds_left.get_or_create(&labels).set(seconds);
            }
            None => drop(METRICS.seconds_left.remove(&labels)),
        }
    }
}
