//! What happens to MQTT devices.

use std::net::SocketAddr;
use std::sync::LazyLock;

use fieldgate_mappings::address::DeviceId;
use fieldgate_mappings::outcome::{Outcome, Reason, Rejection};
use fieldgate_mqtt::{Misuse, TimeOut, Violation};

use crate::state::StateError;
use crate::telemetry::{
    Counter, EncodeLabelSet, EncodeLabelValue, Family, Happening, LabelValueEncoder, counter, counters,
};

use super::inbox::Ended;

/// What kind of message a device sent, as label `message="qos-1"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    QoS0,
    QoS1,
    QoS2,
    Will,
}

/// One of the names that the functions of this file give: there are as many as they have arms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Name(&'static str);

impl EncodeLabelValue for Name {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByMessage {
    message: Name,
    outcome: Name,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: Name,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByVersion {
    version: Name,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOutcome {
    outcome: Name,
}

struct Metrics {
    connects: Family<ByVersion, Counter>,
    refused: Family<ByReason, Counter>,
    ended: Family<ByReason, Counter>,
    violations: Counter,
    /// By kind of message and outcome, each in the order of its enum.
    publishes: [[Counter; 4]; 4],
    rejected: Family<ByReason, Counter>,
    qos_0_dropped: Counter,
    wills: Counter,
    pauses: Counter,
    subscribed: Counter,
    subscribe_refused: Family<ByReason, Counter>,
    subscriptions_ended: Counter,
    commands: Counter,
    commands_acknowledged: Family<ByOutcome, Counter>,
    commands_undeliverable: Family<ByReason, Counter>,
    misuses: Counter,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    let publishes =
        counters::<ByMessage>("mqtt_publishes", "Messages of MQTT devices by what became of them");
    Metrics {
        connects: counters("mqtt_connects", "MQTT clients let in"),
        refused: counters("mqtt_connects_refused", "MQTT clients not let in"),
        ended: counters("mqtt_connections_ended", "Ends of MQTT connections that had been let in"),
        violations: counter("mqtt_violations", "MQTT clients that broke the protocol's rules"),
        publishes: ["qos-0", "qos-1", "qos-2", "will"].map(|message| {
            ["accepted", "rejected", "released", "unknown"].map(|outcome| {
                let labels = ByMessage { message: Name(message), outcome: Name(outcome) };
                publishes.get_or_create(&labels).clone()
            })
        }),
        rejected: counters("mqtt_rejected", "Messages of MQTT devices refused by the mapping or the hub"),
        qos_0_dropped: counter(
            "mqtt_qos0_dropped",
            "QoS 0 messages dropped: too many at once, or the hub did not take them",
        ),
        wills: counter("mqtt_wills", "Wills sent because a connection ended without DISCONNECT"),
        pauses: counter("mqtt_pauses", "MQTT connections no longer read because a message came back untaken"),
        subscribed: counter("mqtt_subscriptions", "Topic filters granted to MQTT clients"),
        subscribe_refused: counters("mqtt_subscriptions_refused", "Topic filters refused to MQTT clients"),
        subscriptions_ended: counter(
            "mqtt_subscriptions_ended",
            "Devices whose commands a gateway's connection does not get any more",
        ),
        commands: counter("mqtt_commands", "Commands published to MQTT devices"),
        commands_acknowledged: counters("mqtt_commands_acknowledged", "Commands that MQTT devices answered"),
        commands_undeliverable: counters(
            "mqtt_commands_rejected",
            "Commands rejected because they cannot be published to the device",
        ),
        misuses: counter("mqtt_misuses", "Commands to the MQTT machine that it could not carry out: bugs"),
    }
});

/// The counter of messages of this kind that ended so: added to on the hot path.
pub(super) fn published(kind: Kind, outcome: &Outcome) -> &'static Counter {
    let outcome = match outcome {
        Outcome::Accepted => 0,
        Outcome::Rejected(_) => 1,
        Outcome::Released => 2,
        Outcome::Unknown => 3,
    };
    &METRICS.publishes[kind as usize][outcome]
}

/// The counter of QoS 0 messages that went no further.
pub(super) fn qos_0_dropped() -> &'static Counter {
    &METRICS.qos_0_dropped
}

fn by(reason: &Reason) -> ByReason {
    ByReason { reason: Name(reason.name()) }
}

/// A client was let in.
pub(super) struct ClientConnected<'a> {
    pub(super) peer: SocketAddr,
    pub(super) device: &'a DeviceId,
    /// As CONNECT has it: 3, 4 or 5.
    pub(super) level: u8,
}

impl Happening for ClientConnected<'_> {
    fn emit(self) {
        let Self { peer, device, level } = self;
        let version = match level {
            3 => "3.1",
            4 => "3.1.1",
            _ => "5",
        };
        METRICS.connects.get_or_create(&ByVersion { version: Name(version) }).inc();
        tracing::info!(%peer, %device, version, "MQTT device connected");
    }
}

/// A client was not let in.
pub(super) struct ClientRefused<'a> {
    pub(super) peer: SocketAddr,
    pub(super) client_id: &'a str,
    pub(super) rejection: &'a Rejection,
}

impl Happening for ClientRefused<'_> {
    fn emit(self) {
        let Self { peer, client_id, rejection } = self;
        METRICS.refused.get_or_create(&by(&rejection.reason)).inc();
        tracing::warn!(%peer, ?client_id, %rejection, "MQTT client refused");
    }
}

/// A client was not let in for now: its hub has not said what it thinks of the client's token.
pub(super) struct ClientUnjudged<'a> {
    pub(super) peer: SocketAddr,
    pub(super) client_id: &'a str,
}

impl Happening for ClientUnjudged<'_> {
    fn emit(self) {
        let Self { peer, client_id } = self;
        METRICS.refused.get_or_create(&ByReason { reason: Name("hub-away") }).inc();
        tracing::warn!(%peer, ?client_id, "MQTT client refused for now: its hub has not judged its token in time");
    }
}

/// What ended a connection.
#[derive(Debug)]
pub(super) enum End<'a> {
    /// The client said DISCONNECT, with this reason code.
    Left(u8),
    /// The stream ended or failed.
    Lost,
    /// The client was silent.
    TimedOut(TimeOut),
    /// The client broke a rule.
    Violation(Violation),
    /// The same client identifier came again.
    TakenOver,
    /// A message came back untaken.
    HubAway,
    /// The hub did not answer for a message.
    Unanswered,
    /// A message was refused in a way that the protocol can say only so.
    Rejected(&'a Rejection),
    /// The hub ended the subscription to commands.
    CommandsEnded(&'a Ended),
    /// The device may not stay.
    CutOff,
    /// The gateway stops.
    Stopping,
}

impl<'a> End<'a> {
    /// The end that an outcome makes of a connection.
    pub(super) fn of(outcome: &'a Outcome) -> Self {
        match outcome {
            Outcome::Rejected(rejection) => Self::Rejected(rejection),
            Outcome::Released => Self::HubAway,
            Outcome::Accepted | Outcome::Unknown => Self::Unanswered,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Left(_) => "disconnect",
            Self::Lost => "lost",
            Self::TimedOut(TimeOut::Connect) => "connect-time-out",
            Self::TimedOut(TimeOut::KeepAlive) => "keep-alive",
            Self::Violation(_) => "violation",
            Self::TakenOver => "taken-over",
            Self::HubAway => "hub-away",
            Self::Unanswered => "unanswered",
            Self::Rejected(_) => "rejected",
            Self::CommandsEnded(_) => "commands-ended",
            Self::CutOff => "cut-off",
            Self::Stopping => "stopping",
        }
    }
}

/// A connection is over.
pub(super) struct ConnectionEnded<'a> {
    pub(super) peer: SocketAddr,
    /// Who it was, if it came so far.
    pub(super) device: Option<&'a DeviceId>,
    pub(super) end: End<'a>,
}

impl Happening for ConnectionEnded<'_> {
    fn emit(self) {
        let Self { peer, device, end } = self;
        METRICS.ended.get_or_create(&ByReason { reason: Name(end.name()) }).inc();
        let device = device.map_or("", DeviceId::as_str);
        match end {
            End::Violation(violation) => {
                METRICS.violations.inc();
                tracing::warn!(%peer, device, %violation, "MQTT connection closed: the client broke the protocol");
            }
            end if device.is_empty() => {
                tracing::debug!(%peer, reason = end.name(), "MQTT connection closed before CONNECT");
            }
            End::Left(reason) => tracing::info!(%peer, device, reason, "MQTT device left"),
            End::Rejected(rejection) => {
                tracing::warn!(%peer, device, %rejection, "MQTT connection closed: a message was refused");
            }
            End::CommandsEnded(Ended::Refused(rejection)) => {
                tracing::warn!(%peer, device, %rejection, "MQTT connection closed: the hub refused its subscription");
            }
            end => tracing::info!(%peer, device, reason = end.name(), "MQTT connection closed"),
        }
    }
}

/// A message was refused. Over MQTT 3.1.1 the device does not hear of it: it is acknowledged, and counted here.
pub(super) struct PublishRejected<'a> {
    pub(super) device: &'a DeviceId,
    pub(super) rejection: &'a Rejection,
    /// The first one of the connection: the others are not worth a line for everybody.
    pub(super) first: bool,
}

impl Happening for PublishRejected<'_> {
    fn emit(self) {
        let Self { device, rejection, first } = self;
        METRICS.rejected.get_or_create(&by(&rejection.reason)).inc();
        if first {
            tracing::warn!(%device, %rejection, "a message was refused; more of this connection show as debug");
        } else {
            tracing::debug!(%device, %rejection, "a message was refused");
        }
    }
}

/// A QoS 0 message was dropped because too many are on their way.
pub(super) struct QoS0Dropped<'a> {
    pub(super) device: &'a DeviceId,
}

impl Happening for QoS0Dropped<'_> {
    fn emit(self) {
        published(Kind::QoS0, &Outcome::Released).inc();
        METRICS.qos_0_dropped.inc();
        tracing::debug!(device = %self.device, "a QoS 0 message was dropped: too many are on their way");
    }
}

/// A will is sent.
pub(super) struct WillPublished<'a> {
    pub(super) device: &'a DeviceId,
}

impl Happening for WillPublished<'_> {
    fn emit(self) {
        METRICS.wills.inc();
        tracing::debug!(device = %self.device, "the device's will is sent");
    }
}

/// A message came back untaken: the device is not read any more.
pub(super) struct ConnectionPaused<'a> {
    pub(super) device: &'a DeviceId,
}

impl Happening for ConnectionPaused<'_> {
    fn emit(self) {
        METRICS.pauses.inc();
        tracing::info!(device = %self.device, "MQTT device paused: the hub did not take its message");
    }
}

/// A topic filter was granted or not.
pub(super) struct FilterJudged<'a> {
    pub(super) device: &'a DeviceId,
    pub(super) filter: &'a str,
    pub(super) refused: Option<&'a Rejection>,
}

impl Happening for FilterJudged<'_> {
    fn emit(self) {
        let Self { device, filter, refused } = self;
        match refused {
            None => {
                METRICS.subscribed.inc();
                tracing::debug!(%device, filter, "subscription granted");
            }
            Some(rejection) => {
                METRICS.subscribe_refused.get_or_create(&by(&rejection.reason)).inc();
                tracing::info!(%device, filter, %rejection, "subscription refused");
            }
        }
    }
}

/// A command was published.
pub(super) struct CommandPublished<'a> {
    pub(super) device: &'a DeviceId,
}

impl Happening for CommandPublished<'_> {
    fn emit(self) {
        METRICS.commands.inc();
        tracing::debug!(device = %self.device, "command published");
    }
}

/// The device answered a command, or all of it was written where no answer is due.
pub(super) struct CommandAcknowledged<'a> {
    pub(super) device: &'a DeviceId,
    pub(super) outcome: &'a Outcome,
}

impl Happening for CommandAcknowledged<'_> {
    fn emit(self) {
        let Self { device, outcome } = self;
        let name = match outcome {
            Outcome::Accepted => "accepted",
            Outcome::Rejected(_) => "rejected",
            Outcome::Released => "released",
            Outcome::Unknown => "unknown",
        };
        METRICS.commands_acknowledged.get_or_create(&ByOutcome { outcome: Name(name) }).inc();
        tracing::debug!(%device, outcome = name, "command acknowledged");
    }
}

/// A gateway gets no more commands of another device; its connection goes on.
pub(super) struct CommandsOfAnotherEnded<'a> {
    pub(super) device: &'a DeviceId,
    pub(super) ended: &'a Ended,
}

impl Happening for CommandsOfAnotherEnded<'_> {
    fn emit(self) {
        let Self { device, ended } = self;
        METRICS.subscriptions_ended.inc();
        match ended {
            Ended::Refused(rejection) => {
                tracing::warn!(%device, %rejection, "a gateway gets no more commands of a device");
            }
            Ended::Withdrawn => {
                tracing::info!(%device, "a gateway gets no more commands of a device: it takes them itself, or the hub ended it");
            }
        }
    }
}

/// A command cannot be published to this device.
pub(super) struct CommandPublishError<'a> {
    pub(super) device: &'a DeviceId,
    pub(super) rejection: &'a Rejection,
}

impl Happening for CommandPublishError<'_> {
    fn emit(self) {
        let Self { device, rejection } = self;
        METRICS.commands_undeliverable.get_or_create(&by(&rejection.reason)).inc();
        tracing::warn!(%device, %rejection, "a command was rejected: it cannot be published to the device");
    }
}

/// Sessions that the last stop had written are there again.
pub(super) struct SessionsRestored {
    pub(super) sessions: usize,
}

impl Happening for SessionsRestored {
    fn emit(self) {
        tracing::info!(sessions = self.sessions, "MQTT sessions of the last run go on");
    }
}

/// Sessions are written, for the next start.
pub(super) struct SessionsStored {
    pub(super) sessions: usize,
}

impl Happening for SessionsStored {
    fn emit(self) {
        tracing::info!(sessions = self.sessions, "MQTT sessions are kept for the next start");
    }
}

/// Sessions cannot be kept over a stop.
pub(super) struct SessionsUnstored<'a> {
    pub(super) error: &'a StateError,
}

impl Happening for SessionsUnstored<'_> {
    fn emit(self) {
        tracing::warn!(error = %self.error, "MQTT sessions end with the gateway: they cannot be kept");
    }
}

/// The machine could not do what it was told: a bug of ours.
pub(super) struct MachineMisused {
    pub(super) peer: SocketAddr,
    pub(super) misuse: Misuse,
}

impl Happening for MachineMisused {
    fn emit(self) {
        let Self { peer, misuse } = self;
        METRICS.misuses.inc();
        tracing::error!(%peer, %misuse, "the MQTT machine could not do what it was told: please report this");
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use crate::telemetry::{emit, render};

    use super::*;

    #[test]
    fn clients_are_counted_by_version_and_messages_by_qos() {
        let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        let device = DeviceId::new("d1").unwrap();
        for level in [3, 4, 5] {
            emit(ClientConnected { peer, device: &device, level });
        }
        for kind in [Kind::QoS0, Kind::QoS1, Kind::QoS2, Kind::Will] {
            published(kind, &Outcome::Accepted).inc();
        }
        let text = render();
        for version in ["3.1", "3.1.1", "5"] {
            let line = format!("fieldgate_mqtt_connects_total{{version=\"{version}\"}} ");
            assert!(text.contains(&line), "{line}");
        }
        for message in ["qos-0", "qos-1", "qos-2", "will"] {
            let line =
                format!("fieldgate_mqtt_publishes_total{{message=\"{message}\",outcome=\"accepted\"}} ");
            assert!(text.contains(&line), "{line}");
        }
    }
}
