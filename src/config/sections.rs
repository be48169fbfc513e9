//! One struct for each section of the configuration file: its keys, their defaults, and what they cost.
//!
//! The defaults stand twice, here and in `sample.toml`; a test holds them together.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::{NonZeroU8, NonZeroU16, NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::access::{Carrier, Subprotocol};
use super::address::{listen, some_listen};
use super::connectors::{self, Connect, Mode};
use super::listeners::Limits;
use super::mapped::{self, Mapped, Profile};
use super::mechanisms::{self, Way};
use super::units::{self, Level, Secret};

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

fn all_loopback(addresses: &[SocketAddr]) -> bool {
    addresses.iter().all(|address| address.ip().is_loopback())
}

/// `[log]`: what is written to standard error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    pub(super) level: Option<Level>,
    /// Every frame of native AMQP connections is written too, without payloads and secrets.
    pub trace_frames: bool,
    /// By module path: a longer path goes before a shorter one.
    pub modules: BTreeMap<String, Level>,
}

impl LogConfig {
    /// The level of every module that `modules` does not name.
    #[must_use]
    pub fn level(&self) -> Level {
        self.level.unwrap_or_default()
    }

    /// Sets that level where the configuration says nothing about it.
    pub fn prefer(&mut self, level: Level) {
        self.level.get_or_insert(level);
    }
}

/// `[runtime]`: threads and the stop.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RuntimeConfig {
    pub(super) workers: usize,
    /// How long a stop waits for what is in flight.
    #[serde(deserialize_with = "units::duration")]
    pub drain: Duration,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        Self { workers: 0, drain: Duration::from_secs(10) }
    }
}

impl RuntimeConfig {
    /// The number of worker threads; written as 0 it is the number of cores.
    #[must_use]
    pub fn workers(&self) -> NonZeroUsize {
        NonZeroUsize::new(self.workers)
            .or_else(|| std::thread::available_parallelism().ok())
            .unwrap_or(NonZeroUsize::MIN)
    }
}

/// `[state]`: where keys and certificates are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StateConfig {
    /// Absent: `$XDG_STATE_HOME/fieldgate`, or `~/.local/state/fieldgate`.
    pub directory: Option<PathBuf>,
}

/// Who may attach links to a device's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Authorise {
    /// Where a token that the same connection put to `$cbs` covers, once the hub has accepted it.
    Token,
    /// Where the device is registered ([`DevicesConfig`]) and has proved who it is: by a password, a certificate, or a
    /// token that it put to `$cbs`. The gateway speaks for it at the hub.
    Registry,
    /// Anybody, anywhere in the routes.
    Any,
}

/// `[amqp]` as it is written: the short form of a listener and of routes, and the bounds of all connections.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct AmqpSection {
    #[serde(deserialize_with = "some_listen")]
    pub(super) listen: Option<Vec<SocketAddr>>,
    pub(super) allow_anonymous: Option<bool>,
    pub(super) authorise: Option<Authorise>,
    /// Prefixes that are routed, both ways, to the connectors that no `[[link_route]]` names.
    pub(super) link_routes: Vec<String>,
    /// Connections of one listener, over all workers; an idle one costs single kilobytes.
    pub(super) max_connections: NonZeroUsize,
    /// The max-frame-size that is offered; one partial frame is buffered for each connection.
    #[serde(deserialize_with = "units::size")]
    pub(super) max_frame_bytes: u32,
    /// Sessions of one connection (channel-max + 1).
    pub(super) max_sessions: NonZeroU16,
    /// Links of one connection, over all its sessions.
    pub(super) max_links: NonZeroU32,
    /// What a peer may send ahead in one session, in frames of the greatest size (incoming-window).
    #[serde(deserialize_with = "units::size")]
    pub(super) window_bytes: u32,
    /// Deliveries of one session, each way, that wait for their outcome; some ten bytes each.
    pub(super) max_unsettled: NonZeroU32,
    /// Audiences that one connection may have put tokens for; a token is kept, about 200 bytes.
    pub(super) max_tokens: NonZeroUsize,
    /// The idle time-out that is announced.
    #[serde(deserialize_with = "units::duration")]
    pub(super) idle_time_out: Duration,
    /// From accept to `open`, TLS and SASL included.
    #[serde(deserialize_with = "units::duration")]
    pub(super) open_time_out: Duration,
}

impl Default for AmqpSection {
    fn default() -> Self {
        Self {
            listen: None,
            allow_anonymous: None,
            authorise: None,
            link_routes: vec!["$cbs".into(), "devices/".into()],
            max_connections: nonzero(10_000),
            max_frame_bytes: 65_536,
            max_sessions: NonZeroU16::MIN.saturating_add(255),
            max_links: NonZeroU32::MIN.saturating_add(1_023),
            window_bytes: 1 << 20,
            max_unsettled: NonZeroU32::MIN.saturating_add(32_767),
            max_tokens: nonzero(64),
            idle_time_out: Duration::from_secs(120),
            open_time_out: Duration::from_secs(10),
        }
    }
}

/// Where AMQP devices connect when nothing is written.
pub(super) const AMQP_LISTEN: [SocketAddr; 1] = [loopback(5672)];

impl AmqpSection {
    /// The addresses of the short form.
    pub(super) fn listen(&self) -> &[SocketAddr] {
        self.listen.as_deref().unwrap_or(&AMQP_LISTEN)
    }

    /// What is asked of a device that attaches; when not written, a token, except where only this machine can connect.
    pub(super) fn authorise(&self) -> Authorise {
        self.authorise.unwrap_or(match self.allow_anonymous {
            Some(true) => Authorise::Any,
            None if all_loopback(self.listen()) => Authorise::Any,
            _ => Authorise::Token,
        })
    }

    /// The bounds of device connections where a listener says nothing else.
    pub(super) fn limits(&self) -> Limits {
        Limits {
            max_connections: self.max_connections,
            max_frame_bytes: self.max_frame_bytes,
            max_sessions: self.max_sessions,
            max_links: self.max_links,
            window_bytes: self.window_bytes,
            max_unsettled: self.max_unsettled,
            max_tokens: self.max_tokens,
            idle_time_out: self.idle_time_out,
            open_time_out: self.open_time_out,
        }
    }
}

/// `[mqtt]`: the short form of a listener for MQTT 3.1.1 and 5 devices, and the bounds of all connections.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MqttConfig {
    #[serde(deserialize_with = "some_listen")]
    pub(super) listen: Option<Vec<SocketAddr>>,
    pub(super) allow_anonymous: Option<bool>,
    /// Connections of one listener, over all workers; an idle one costs single kilobytes.
    pub max_connections: NonZeroUsize,
    /// The Maximum Packet Size; one partial packet is buffered for each connection.
    #[serde(deserialize_with = "units::size")]
    pub max_packet_bytes: u32,
    /// Receive Maximum: PUBLISH packets of one device that wait for the hub.
    pub publish_window: NonZeroU16,
    /// Commands on their way to one device that wait for its PUBACK.
    pub command_window: NonZeroU16,
    /// Subscriptions of one connection.
    pub max_subscriptions: NonZeroUsize,
    /// How long a session is kept for a client that is away, at most (MQTT 5: told as Session Expiry Interval). An MQTT
    /// 3.1.1 client without clean session gets this.
    #[serde(deserialize_with = "units::duration")]
    pub session_expiry_max: Duration,
    /// Sessions that are kept for clients that are away; some hundred bytes each. Of more the next to end goes.
    pub max_sessions: NonZeroUsize,
    /// Keep Alive that is granted at most (MQTT 5: told to the client as Server Keep Alive).
    #[serde(deserialize_with = "units::duration")]
    pub keep_alive_max: Duration,
    /// From accept to CONNECT.
    #[serde(deserialize_with = "units::duration")]
    pub connect_time_out: Duration,
}

impl Default for MqttConfig {
    fn default() -> Self {
        Self {
            listen: None,
            allow_anonymous: None,
            max_connections: nonzero(10_000),
            max_packet_bytes: 272 * 1024,
            publish_window: NonZeroU16::MIN.saturating_add(99),
            command_window: NonZeroU16::MIN.saturating_add(15),
            max_subscriptions: nonzero(50),
            session_expiry_max: Duration::from_secs(3_600),
            max_sessions: nonzero(10_000),
            keep_alive_max: Duration::from_secs(1_200),
            connect_time_out: Duration::from_secs(10),
        }
    }
}

/// Where MQTT devices connect when nothing is written.
pub(super) const MQTT_LISTEN: [SocketAddr; 1] = [loopback(1883)];

impl MqttConfig {
    /// The addresses of the short form.
    pub(super) fn listen(&self) -> &[SocketAddr] {
        self.listen.as_deref().unwrap_or(&MQTT_LISTEN)
    }

    /// Whether a device of the short form is who it says it is; when not written, only where nobody but this machine can
    /// connect.
    pub(super) fn allow_anonymous(&self) -> bool {
        self.allow_anonymous.unwrap_or_else(|| all_loopback(self.listen()))
    }
}

/// `[coap]`: the UDP listener for CoAP devices.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CoapConfig {
    /// Empty: no listener.
    #[serde(deserialize_with = "listen")]
    pub listen: Vec<SocketAddr>,
    pub(super) allow_anonymous: Option<bool>,
    /// A larger datagram is refused.
    #[serde(deserialize_with = "units::size")]
    pub max_datagram_bytes: usize,
    /// How long an answer may stay away before the empty ACK goes out and the answer comes as its own message.
    #[serde(deserialize_with = "units::duration")]
    pub ack_delay: Duration,
    /// Exchanges that are remembered by each worker, under way or kept to recognise duplicates; some hundred bytes each.
    pub max_exchanges: NonZeroUsize,
    /// How long the hub may take before the device is told 5.04.
    #[serde(deserialize_with = "units::duration")]
    pub answer_time_out: Duration,
}

impl Default for CoapConfig {
    fn default() -> Self {
        Self {
            listen: vec![loopback(5683)],
            allow_anonymous: None,
            max_datagram_bytes: 1_472,
            ack_delay: Duration::from_millis(500),
            max_exchanges: nonzero(65_536),
            answer_time_out: Duration::from_secs(30),
        }
    }
}

/// `[http]`: the listener for HTTP/1.1 devices.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpConfig {
    /// Empty: no listener.
    #[serde(deserialize_with = "listen")]
    pub listen: Vec<SocketAddr>,
    pub(super) allow_anonymous: Option<bool>,
    /// Connections over all workers.
    pub max_connections: NonZeroUsize,
    /// A larger body is answered with 413.
    #[serde(deserialize_with = "units::size")]
    pub max_body_bytes: usize,
    /// The request head: request line and all header lines.
    #[serde(deserialize_with = "units::size")]
    pub max_head_bytes: usize,
    /// From accept, or the last answer, to the end of the request head.
    #[serde(deserialize_with = "units::duration")]
    pub header_time_out: Duration,
    /// From the end of the head to the end of the body.
    #[serde(deserialize_with = "units::duration")]
    pub body_time_out: Duration,
    /// How long the hub may take before the device is told 504.
    #[serde(deserialize_with = "units::duration")]
    pub answer_time_out: Duration,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            listen: vec![loopback(8080)],
            allow_anonymous: None,
            max_connections: nonzero(10_000),
            max_body_bytes: 262_144,
            max_head_bytes: 16_384,
            header_time_out: Duration::from_secs(10),
            body_time_out: Duration::from_secs(30),
            answer_time_out: Duration::from_secs(30),
        }
    }
}

/// The two listeners that are alike answer this question alike.
macro_rules! anonymous_on_loopback {
    ($($section:ty),+) => {$(
        impl $section {
            /// Whether a device is who it says it is; when not written, only where nobody but this machine can connect.
            #[must_use]
            pub fn allow_anonymous(&self) -> bool {
                self.allow_anonymous.unwrap_or_else(|| all_loopback(&self.listen))
            }
        }
    )+};
}
anonymous_on_loopback!(CoapConfig, HttpConfig);

/// `[devices]`: the device registry.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DevicesConfig {
    /// The registry's file; absent: `devices.toml` in the state directory, which need not be there.
    pub file: Option<PathBuf>,
    /// Names of this gateway that a device's token may be for, beside those of the hubs.
    pub hosts: Vec<String>,
    /// Wrong passwords of one device that cost nothing; each further one makes the next attempt wait.
    pub failures_per_device: NonZeroU32,
    /// Failures from one address that cost nothing, whatever devices they were for.
    pub failures_per_address: NonZeroU32,
    /// The longest that failures make an attempt wait.
    #[serde(deserialize_with = "units::duration")]
    pub longest_wait: Duration,
}

impl Default for DevicesConfig {
    fn default() -> Self {
        Self {
            file: None,
            hosts: Vec::new(),
            failures_per_device: NonZeroU32::MIN.saturating_add(4),
            failures_per_address: NonZeroU32::MIN.saturating_add(49),
            longest_wait: Duration::from_secs(60),
        }
    }
}

/// `[admin]`: metrics and health, for this machine only.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminConfig {
    /// Empty: no listener.
    #[serde(deserialize_with = "listen")]
    pub listen: Vec<SocketAddr>,
}

impl Default for AdminConfig {
    fn default() -> Self {
        Self { listen: vec![loopback(9464)] }
    }
}

/// `[hub]`: the embedded hub.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HubConfig {
    pub(super) enabled: Option<bool>,
    /// AMQP over TLS.
    #[serde(deserialize_with = "listen")]
    pub listen: Vec<SocketAddr>,
    /// The host name that tokens are made for and that the certificate carries besides `localhost`.
    pub name: String,
    /// Partitions of the event log; a device's events stay in one.
    pub partitions: NonZeroU16,
    pub(super) register_unknown_devices: Option<bool>,
    /// Devices in the registry, some hundred bytes each.
    pub max_devices: NonZeroUsize,
    /// Connections of gateways, devices and services.
    pub max_connections: NonZeroUsize,
    /// The event log over all partitions; the oldest events go first.
    #[serde(deserialize_with = "units::size")]
    pub retain_bytes: usize,
    /// Life of a command that names no expiry of its own.
    #[serde(deserialize_with = "units::duration")]
    pub command_ttl: Duration,
    /// How long a delivered command waits for its outcome before it is delivered again.
    #[serde(deserialize_with = "units::duration")]
    pub lock: Duration,
    /// Deliveries that a device may abandon before the command goes to the dead letters.
    pub max_delivery_count: NonZeroU8,
    /// Commands that wait for one device; 64 KiB each at most.
    pub max_pending_commands: NonZeroUsize,
    /// How long feedback records are gathered into one message.
    #[serde(deserialize_with = "units::duration")]
    pub feedback_delay: Duration,
    /// Life of a feedback message that nobody fetches.
    #[serde(deserialize_with = "units::duration")]
    pub feedback_ttl: Duration,
}

impl Default for HubConfig {
    fn default() -> Self {
        Self {
            enabled: None,
            listen: vec![loopback(5671)],
            name: "localhost".into(),
            partitions: NonZeroU16::MIN.saturating_add(3),
            register_unknown_devices: None,
            max_devices: nonzero(100_000),
            max_connections: nonzero(10_000),
            retain_bytes: 64 << 20,
            command_ttl: Duration::from_secs(3_600),
            lock: Duration::from_secs(60),
            max_delivery_count: NonZeroU8::MIN.saturating_add(9),
            max_pending_commands: nonzero(50),
            feedback_delay: Duration::from_millis(200),
            feedback_ttl: Duration::from_secs(3_600),
        }
    }
}

impl HubConfig {
    /// Whether a device that nobody registered is registered when it first speaks; when not written, only where nobody
    /// but this machine can connect.
    #[must_use]
    pub fn register_unknown_devices(&self) -> bool {
        self.register_unknown_devices.unwrap_or_else(|| all_loopback(&self.listen))
    }
}

/// `[upstream]` as it is written; [`super::Upstream`] is what it means.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct UpstreamSection {
    pub(super) connection_string: Option<Secret>,
    pub(super) connection_string_file: Option<PathBuf>,
    pub(super) url: Option<Secret>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) cert_file: Option<PathBuf>,
    pub(super) private_key_file: Option<PathBuf>,
    pub(super) ssl_profile: Option<String>,
    #[serde(deserialize_with = "mechanisms::ways")]
    pub(super) sasl_mechanisms: Option<Vec<Way>>,
    pub(super) sasl_username: Option<String>,
    pub(super) sasl_password: Option<Secret>,
    pub(super) sasl_password_file: Option<PathBuf>,
    pub(super) transport: Option<Carrier>,
    pub(super) websocket_path: Option<String>,
    pub(super) websocket_protocol: Option<Subprotocol>,
    pub(super) proxy: Option<Secret>,
    pub(super) proxy_password_file: Option<PathBuf>,
    #[serde(deserialize_with = "units::duration")]
    pub(super) hold: Duration,
    #[serde(deserialize_with = "units::duration")]
    pub(super) idle_time_out: Duration,
    #[serde(deserialize_with = "units::duration")]
    pub(super) connect_time_out: Duration,
    #[serde(deserialize_with = "units::duration")]
    pub(super) retry_max: Duration,
    #[serde(deserialize_with = "units::duration")]
    pub(super) token_ttl: Duration,
    pub(super) max_in_flight: NonZeroUsize,
    pub(super) mode: Mode,
    pub(super) connect: Connect,
    pub(super) devices_per_connection: NonZeroUsize,
    pub(super) max_connections: NonZeroUsize,
    pub(super) max_pending: NonZeroUsize,
    pub(super) profile: Profile,
    pub(super) address_prefix: String,
    pub(super) max_links: NonZeroUsize,
    #[serde(deserialize_with = "units::duration")]
    pub(super) idle_session: Duration,
    pub(super) max_messages_per_second: Option<NonZeroU32>,
}

impl UpstreamSection {
    /// What the section says of mapped devices.
    pub(super) fn mapped(&self) -> Mapped {
        Mapped {
            profile: self.profile,
            address_prefix: self.address_prefix.as_str().into(),
            max_links: self.max_links,
            idle_session: self.idle_session,
            max_messages_per_second: self.max_messages_per_second,
        }
    }

    /// Whether the file itself holds a key or a password.
    pub(super) fn holds_secret(&self) -> bool {
        let with_user = |url: &Option<Secret>| url.as_ref().is_some_and(|url| url.expose().contains('@'));
        self.connection_string.is_some()
            || self.sasl_password.is_some()
            || with_user(&self.url)
            || with_user(&self.proxy)
    }
}

impl Default for UpstreamSection {
    fn default() -> Self {
        Self {
            connection_string: None,
            connection_string_file: None,
            url: None,
            ca_file: None,
            cert_file: None,
            private_key_file: None,
            ssl_profile: None,
            sasl_mechanisms: None,
            sasl_username: None,
            sasl_password: None,
            sasl_password_file: None,
            transport: None,
            websocket_path: None,
            websocket_protocol: None,
            proxy: None,
            proxy_password_file: None,
            hold: Duration::from_secs(60),
            idle_time_out: Duration::from_secs(120),
            connect_time_out: Duration::from_secs(10),
            retry_max: Duration::from_secs(30),
            token_ttl: Duration::from_secs(3_600),
            max_in_flight: nonzero(10_000),
            mode: Mode::default(),
            connect: Connect::default(),
            devices_per_connection: connectors::DEVICES_PER_CONNECTION,
            max_connections: connectors::MAX_CONNECTIONS,
            max_pending: connectors::MAX_PENDING,
            profile: Profile::default(),
            address_prefix: String::new(),
            max_links: mapped::MAX_LINKS,
            idle_session: mapped::IDLE_SESSION,
            max_messages_per_second: None,
        }
    }
}

/// `[mappings]`: what a device message means.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MappingsConfig {
    /// Mapping files, relative to the configuration file; empty: the built-in `azure-iot-hub.toml`.
    pub files: Vec<PathBuf>,
}

/// `[spool]`: what is kept on disk while the hub is away, for rules whose `delivery` asks for it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SpoolConfig {
    /// Absent: `spool` in the state directory.
    pub directory: Option<PathBuf>,
    /// What its files may take; a quarter of it is room to work in.
    #[serde(deserialize_with = "units::size")]
    pub max_bytes: u64,
    /// Messages; each takes 24 bytes of memory.
    pub max_records: NonZeroU64,
    /// No message waits longer. It becomes a dead letter then.
    #[serde(deserialize_with = "units::duration")]
    pub max_age: Duration,
    /// Of one device, where its rule says nothing else.
    #[serde(deserialize_with = "units::size")]
    pub device_max_bytes: u64,
    /// Messages of one device.
    pub device_max_records: NonZeroU64,
    /// How long messages are gathered for one write at most.
    #[serde(deserialize_with = "units::duration")]
    pub commit_delay: Duration,
    /// Messages of the spool that were sent and have no outcome; half a KiB of memory each, and their bytes.
    pub max_in_flight: NonZeroUsize,
    /// Dead letters; the oldest go first.
    #[serde(deserialize_with = "units::size")]
    pub dead_letter_max_bytes: u64,
    /// Each takes 50 bytes of memory.
    pub dead_letter_max_records: NonZeroU64,
    /// Older ones go.
    #[serde(deserialize_with = "units::duration")]
    pub dead_letter_max_age: Duration,
}

impl Default for SpoolConfig {
    fn default() -> Self {
        let many = |number: u64| NonZeroU64::MIN.saturating_add(number - 1);
        Self {
            directory: None,
            max_bytes: 512 << 20,
            max_records: many(1_000_000),
            max_age: Duration::from_secs(7 * 86_400),
            device_max_bytes: 64 << 20,
            device_max_records: many(100_000),
            commit_delay: Duration::from_millis(2),
            max_in_flight: nonzero(1_000),
            dead_letter_max_bytes: 64 << 20,
            dead_letter_max_records: many(10_000),
            dead_letter_max_age: Duration::from_secs(30 * 86_400),
        }
    }
}

impl SpoolConfig {
    /// The least that the files need: four segments of 8 MiB.
    pub(super) const LEAST_BYTES: u64 = 32 << 20;

    /// Bytes that messages may take. What is left beside them and the dead letters is the log's room to work in.
    #[must_use]
    pub fn message_bytes(&self) -> u64 {
        (self.max_bytes / 4 * 3).saturating_sub(self.dead_letter_max_bytes)
    }

    /// What is wrong between its keys: the key, and what to do.
    pub(super) fn fault(&self) -> Option<(&'static str, String)> {
        if self.max_bytes < Self::LEAST_BYTES {
            return Some(("max_bytes", format!("{} bytes are too few: at least \"32MiB\"", self.max_bytes)));
        }
        if self.dead_letter_max_bytes > self.max_bytes / 2 {
            return Some((
                "dead_letter_max_bytes",
                format!("{} bytes are more than half of `max_bytes`", self.dead_letter_max_bytes),
            ));
        }
        None
    }
}

pub(super) const fn nonzero(value: usize) -> NonZeroUsize {
    match NonZeroUsize::new(value) {
        Some(value) => value,
        None => NonZeroUsize::MIN,
    }
}
