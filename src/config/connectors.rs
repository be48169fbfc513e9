//! `[[connector]]`: the hubs and brokers that devices' links are routed to.

use std::fmt;
use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use serde::Deserialize;

use super::access::{self, Carrier, Subprotocol, Transport};
use super::address::split_host_port;
use super::check::{FRAME_BYTES, SECOND_TO_HOUR, Within};
use super::error::{ConfigError, Source};
use super::mapped::{self, Mapped, Profile};
use super::mechanisms::{self, Way};
use super::names::Names;
use super::profiles::{self, SslProfile};
use super::proxy::Proxy;
use super::sasl::{self, Sasl};
use super::sections::{UpstreamSection, nonzero};
use super::units::{self, Secret};

/// The connector that stands for `[upstream]`, and the only one where no other is written.
pub(crate) const UPSTREAM: &str = "upstream";

/// A way to a hub or broker for routed links.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connector {
    /// What routes, listeners, logs and metrics call it.
    pub name: Arc<str>,
    /// What it leads to.
    pub reach: Reach,
    /// Whose connections they are.
    pub mode: Mode,
    /// When a shared connection is made.
    pub connect: Connect,
    /// How long devices are kept through an outage; zero where the mode is per-connection.
    pub hold: Duration,
    /// Devices on one shared connection.
    pub devices_per_connection: NonZeroUsize,
    /// Connections to the hub, over all workers.
    pub max_connections: NonZeroUsize,
    /// Attaches and tokens that wait while a shared connection is away, on each of them.
    pub max_pending: NonZeroUsize,
    /// The idle time-out that is announced to the hub.
    pub idle_time_out: Duration,
    /// TCP, TLS and `open` together, for each address.
    pub connect_time_out: Duration,
    /// The longest pause between two attempts to connect.
    pub retry_max: Duration,
    /// The max-frame-size that is offered to the hub.
    pub max_frame_bytes: u32,
    /// Sessions on one connection (channel-max + 1).
    pub max_sessions: NonZeroU16,
    /// How connections carry mapped messages.
    pub mapped: Mapped,
}

/// What a connector leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The hub of `[upstream]`, which may be the embedded one: its address, certificates and credential.
    Upstream,
    /// Addresses of its own.
    Hosts(Hosts),
}

/// A hub or broker with all that is needed to reach it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hosts {
    /// Tried in this order; never empty.
    pub addresses: Vec<HostPort>,
    /// Absent: plain TCP.
    pub tls: Option<Arc<SslProfile>>,
    /// The hub's name in tokens, absolute addresses and our `open`.
    pub hub_name: Arc<str>,
    /// What the gateway's own connection proves itself with.
    pub sasl: Sasl,
    /// What carries AMQP.
    pub transport: Transport,
    /// Absent: directly.
    pub proxy: Option<Arc<Proxy>>,
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// A name, or an address (IPv6 without brackets).
    pub host: String,
    /// Never 0.
    pub port: u16,
}

/// Whose a connection to the hub is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Many devices'.
    #[default]
    Shared,
    /// One device's.
    PerConnection,
}

/// When a shared connection is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Connect {
    /// When the first device needs it.
    #[default]
    OnDemand,
    /// When the gateway starts; and again whenever it is lost.
    Start,
}

impl Connector {
    /// Whether what goes to the hub is encrypted.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        match &self.reach {
            Reach::Upstream => true,
            Reach::Hosts(hosts) => hosts.tls.is_some(),
        }
    }
}

impl HostPort {
    /// Whether it names this machine.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.host.eq_ignore_ascii_case("localhost")
            || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// `[[connector]]` as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConnectorSection {
    name: String,
    host: String,
    port: Option<NonZeroU16>,
    #[serde(default)]
    failover: Vec<String>,
    hub_name: Option<String>,
    ssl_profile: Option<String>,
    verify_hostname: Option<bool>,
    allow_plain_text: Option<bool>,
    #[serde(default, deserialize_with = "mechanisms::ways")]
    sasl_mechanisms: Option<Vec<Way>>,
    sasl_username: Option<String>,
    sasl_password: Option<Secret>,
    sasl_password_file: Option<PathBuf>,
    transport: Option<Carrier>,
    websocket_path: Option<String>,
    websocket_protocol: Option<Subprotocol>,
    proxy: Option<Secret>,
    proxy_password_file: Option<PathBuf>,
    #[serde(default)]
    mode: Mode,
    connect: Option<Connect>,
    #[serde(default, deserialize_with = "units::some_duration")]
    hold: Option<Duration>,
    devices_per_connection: Option<NonZeroUsize>,
    max_connections: Option<NonZeroUsize>,
    max_pending: Option<NonZeroUsize>,
    #[serde(default, deserialize_with = "units::some_duration")]
    idle_time_out: Option<Duration>,
    #[serde(default, deserialize_with = "units::some_duration")]
    connect_time_out: Option<Duration>,
    #[serde(default, deserialize_with = "units::some_duration")]
    retry_max: Option<Duration>,
    #[serde(default, deserialize_with = "units::some_size")]
    max_frame_bytes: Option<u32>,
    max_sessions: Option<NonZeroU16>,
    #[serde(default)]
    profile: Profile,
    #[serde(default)]
    address_prefix: String,
    max_links: Option<NonZeroUsize>,
    #[serde(default, deserialize_with = "units::some_duration")]
    idle_session: Option<Duration>,
    max_messages_per_second: Option<NonZeroU32>,
}

impl ConnectorSection {
    /// Whether the file itself holds a password.
    pub(super) fn holds_secret(&self) -> bool {
        self.sasl_password.is_some() || self.proxy.as_ref().is_some_and(|url| url.expose().contains('@'))
    }

    fn sasl(&self) -> sasl::Written<'_> {
        sasl::Written {
            mechanisms: self.sasl_mechanisms.as_deref(),
            user: self.sasl_username.as_ref(),
            password: self.sasl_password.as_ref(),
            password_file: self.sasl_password_file.as_ref(),
        }
    }

    fn access(&self) -> access::Written<'_> {
        access::Written {
            transport: self.transport,
            websocket_path: self.websocket_path.as_ref(),
            websocket_protocol: self.websocket_protocol,
            proxy: self.proxy.as_ref(),
            proxy_password_file: self.proxy_password_file.as_ref(),
        }
    }
}

pub(super) const SECTION: &str = "connector";

/// What a connector has where nothing is written, besides what `[upstream]` says.
const MAX_FRAME_BYTES: u32 = 65_536;
pub(super) const DEVICES_PER_CONNECTION: NonZeroUsize = nonzero(500);
pub(super) const MAX_CONNECTIONS: NonZeroUsize = nonzero(10_000);
pub(super) const MAX_PENDING: NonZeroUsize = nonzero(1_000);
const MAX_SESSIONS: NonZeroU16 = NonZeroU16::MAX;

/// The connector that `[upstream]` is.
pub(super) fn upstream(section: &UpstreamSection) -> Connector {
    Connector {
        name: UPSTREAM.into(),
        reach: Reach::Upstream,
        mode: section.mode,
        connect: section.connect,
        hold: match section.mode {
            Mode::Shared => section.hold,
            Mode::PerConnection => Duration::ZERO,
        },
        devices_per_connection: section.devices_per_connection,
        max_connections: section.max_connections,
        max_pending: section.max_pending,
        idle_time_out: section.idle_time_out,
        connect_time_out: section.connect_time_out,
        retry_max: section.retry_max,
        max_frame_bytes: MAX_FRAME_BYTES,
        max_sessions: MAX_SESSIONS,
        mapped: section.mapped(),
    }
}

/// Where a connector stands, for a person.
pub(super) fn place(source: &Source<'_>, index: usize) -> String {
    format!("line {}", source.line(&[SECTION, &index.to_string()]))
}

pub(super) fn resolve(
    source: &Source<'_>,
    sections: Vec<ConnectorSection>,
    upstream: &UpstreamSection,
    profiles: &[Arc<SslProfile>],
    base: Option<&Path>,
) -> Result<Vec<Connector>, ConfigError> {
    let mut names = Names::new(source, SECTION);
    let mut connectors = Vec::new();
    for (at, section) in sections.into_iter().enumerate() {
        let at = at.to_string();
        let name = names.take(&at, &section.name)?;
        let place = Here { source, at: &at };
        if &*name == UPSTREAM {
            return Err(place.wrong("name", "`upstream` is what the hub of [upstream] is called").with_help(
                "another name here; `connector = \"upstream\"` in routes and listeners means [upstream]",
            ));
        }
        let tls = match &section.ssl_profile {
            Some(profile) => Some(profiles::named(source, profiles, SECTION, &at, profile)?),
            None => None,
        };
        place.check_ranges(&section)?;
        let wrong = |key: &str, what: String| place.wrong(key, what);
        let transport = section.access().transport(wrong)?;
        let addresses = addresses(&place, &section, tls.is_some(), &transport)?;
        place.check_transport(&section, &addresses, tls.is_some())?;
        place.check_mode(&section)?;
        let certified = tls.as_ref().is_some_and(|profile| profile.identity.is_some());
        let sasl = section.sasl().resolve(wrong, certified, base)?.unwrap_or(Sasl::Anonymous);
        let proxy = section.access().proxy(wrong, base)?;
        let hub_name: Arc<str> = section.hub_name.unwrap_or_else(|| section.host.clone()).into();
        connectors.push(Connector {
            name,
            reach: Reach::Hosts(Hosts { addresses, tls, hub_name, sasl, transport, proxy }),
            mode: section.mode,
            connect: section.connect.unwrap_or_default(),
            hold: match section.mode {
                Mode::Shared => section.hold.unwrap_or(upstream.hold),
                Mode::PerConnection => Duration::ZERO,
            },
            devices_per_connection: section.devices_per_connection.unwrap_or(DEVICES_PER_CONNECTION),
            max_connections: section.max_connections.unwrap_or(MAX_CONNECTIONS),
            max_pending: section.max_pending.unwrap_or(MAX_PENDING),
            idle_time_out: section.idle_time_out.unwrap_or(upstream.idle_time_out),
            connect_time_out: section.connect_time_out.unwrap_or(upstream.connect_time_out),
            retry_max: section.retry_max.unwrap_or(upstream.retry_max),
            max_frame_bytes: section.max_frame_bytes.unwrap_or(MAX_FRAME_BYTES),
            max_sessions: section.max_sessions.unwrap_or(MAX_SESSIONS),
            mapped: Mapped {
                profile: section.profile,
                address_prefix: section.address_prefix.into(),
                max_links: section.max_links.unwrap_or(mapped::MAX_LINKS),
                idle_session: section.idle_session.unwrap_or(upstream.idle_session),
                max_messages_per_second: section.max_messages_per_second,
            },
        });
    }
    Ok(connectors)
}

/// `[[connector]]` number `at`.
struct Here<'a> {
    source: &'a Source<'a>,
    at: &'a str,
}

impl Here<'_> {
    fn wrong(&self, key: &str, what: impl Into<String>) -> ConfigError {
        self.source.wrong(&[SECTION, self.at, key], what)
    }

    fn check_ranges(&self, section: &ConnectorSection) -> Result<(), ConfigError> {
        let within = Within(self.source);
        let path = |key| [SECTION, self.at, key];
        within.some_duration(&path("hold"), section.hold, Duration::ZERO..=Duration::from_secs(3_600))?;
        for (key, value) in [
            ("idle_time_out", section.idle_time_out),
            ("connect_time_out", section.connect_time_out),
            ("retry_max", section.retry_max),
            ("idle_session", section.idle_session),
        ] {
            within.some_duration(&path(key), value, SECOND_TO_HOUR)?;
        }
        within.some_number(&path("max_frame_bytes"), section.max_frame_bytes, FRAME_BYTES)
    }

    /// Nobody on the way may read what devices say, unless the file says so in words.
    fn check_transport(
        &self,
        section: &ConnectorSection,
        addresses: &[HostPort],
        tls: bool,
    ) -> Result<(), ConfigError> {
        let name = &section.name;
        if section.verify_hostname == Some(false) {
            let what = "a certificate that may be for any host proves nothing about this one";
            return Err(self.wrong("verify_hostname", what).with_help(
                "leave it out: host names are always checked. Where the certificate has another name than `host`, \
                 write that name as `host` and let it resolve, or have the certificate name this one",
            ));
        }
        if tls {
            return Ok(());
        }
        let remote = addresses.iter().find(|address| !address.is_loopback());
        match (remote, section.allow_plain_text) {
            (Some(address), None | Some(false)) => {
                let what = format!("connector `{name}` would reach {address} in plain text");
                Err(self.wrong("host", what).with_help(
                    "`ssl_profile` names an [[ssl_profile]] (one with a name alone trusts this system's \
                     certificates); or write `allow_plain_text = true` if everybody on the way may read it",
                ))
            }
            _ => Ok(()),
        }
    }

    /// What is for shared connections only.
    fn check_mode(&self, section: &ConnectorSection) -> Result<(), ConfigError> {
        if section.mode == Mode::Shared {
            return Ok(());
        }
        let written = [
            (
                "hold",
                section.hold.is_some(),
                "a device's own connection ends with the hub's, as a direct one would",
            ),
            ("devices_per_connection", section.devices_per_connection.is_some(), "it is one"),
            ("max_pending", section.max_pending.is_some(), "nothing waits there"),
            ("connect", section.connect == Some(Connect::Start), "they are made when their device connects"),
        ];
        match written.into_iter().find(|(_, written, _)| *written) {
            Some((key, _, why)) => {
                let what = format!(
                    "`{key}` is for shared connections, and connector `{}` has none: {why}",
                    section.name
                );
                Err(self
                    .wrong(key, what)
                    .with_help(format!("leave `{key}` out, or write `mode = \"shared\"`")))
            }
            None => Ok(()),
        }
    }
}

fn addresses(
    place: &Here<'_>,
    section: &ConnectorSection,
    tls: bool,
    transport: &Transport,
) -> Result<Vec<HostPort>, ConfigError> {
    let default = match (transport, tls) {
        (Transport::Tcp, true) => 5671,
        (Transport::Tcp, false) => 5672,
        (Transport::WebSocket { .. }, true) => 443,
        (Transport::WebSocket { .. }, false) => 80,
    };
    let host = section.host.trim_start_matches('[').trim_end_matches(']');
    let alone = (host.contains(':') && host.parse::<IpAddr>().is_ok()) || !host.contains(':');
    let host = match split_host_port(&section.host, default) {
        Some((host, _)) if alone => host.to_owned(),
        _ if alone && host.parse::<IpAddr>().is_ok() => host.to_owned(),
        _ => {
            return Err(place
                .wrong(
                    "host",
                    format!("`{}` is neither a host name nor an IP address", section.host.escape_debug()),
                )
                .with_help("the name alone, as in \"hub.example.net\"; the port is `port`"));
        }
    };
    let mut addresses = vec![HostPort { host, port: section.port.map_or(default, NonZeroU16::get) }];
    for (at, text) in section.failover.iter().enumerate() {
        let Some((host, port)) = split_host_port(text, default) else {
            let path = [SECTION, place.at, "failover", &at.to_string()];
            let what = format!("`{}` is not a host and a port", text.escape_debug());
            return Err(place
                .source
                .wrong(&path, what)
                .with_help(format!("as in \"hub2.example.net:{default}\" or \"[::1]:{default}\"")));
        };
        addresses.push(HostPort { host: host.to_owned(), port });
    }
    if tls {
        for address in &addresses {
            if ServerName::try_from(address.host.as_str()).is_err() {
                let what =
                    format!("`{}` is no name that a certificate can be for", address.host.escape_debug());
                let key = if address == &addresses[0] { "host" } else { "failover" };
                return Err(place
                    .wrong(key, what)
                    .with_help("letters, digits, hyphens and dots, or an IP address"));
            }
        }
    }
    Ok(addresses)
}
