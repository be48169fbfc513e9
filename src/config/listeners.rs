//! `[[listener]]`: where AMQP 1.0 devices connect, and what is asked of them; where MQTT devices do, says [`mqtt`].

pub(super) mod mqtt;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::{NonZeroU16, NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use fieldgate_amqp::sasl::Mechanism;
use serde::Deserialize;

use super::check::{FRAME_BYTES, SECOND_TO_HOUR, Within};
use super::connectors::{self, Connector, Mode};
use super::error::{ConfigError, Source};
use super::names::{self, Names};
use super::profiles::{self, ClientCertificates, SslProfile};
use super::sections::{AmqpSection, Authorise};
use super::{mechanisms, units};

/// A place where AMQP 1.0 devices connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// What logs and metrics call it.
    pub name: Arc<str>,
    /// Where it listens.
    pub address: SocketAddr,
    /// Certificate and TLS versions; absent: plain TCP.
    pub tls: Option<Arc<SslProfile>>,
    /// With `tls`: a device that does not begin with TLS is not heard.
    pub require_ssl: bool,
    /// AMQP over WebSocket is taken on the same port.
    pub websocket: bool,
    /// A device without SASL, with the bare AMQP header, is not heard.
    pub authenticate_peer: bool,
    /// What is offered, in this order; never empty. EXTERNAL only to a device with a certificate.
    pub sasl_mechanisms: Vec<Mechanism>,
    /// The connector that all its devices belong to, an index into [`Config::connectors`](super::Config::connectors);
    /// absent: their addresses decide.
    pub connector: Option<usize>,
    /// What is asked of a device that attaches.
    pub authorise: Authorise,
    /// Bounds of each of its connections, and of their number.
    pub limits: Limits,
    /// It is one of `[amqp] listen`.
    short: bool,
}

impl Listener {
    /// What in the configuration it is, for a person.
    #[must_use]
    pub fn setting(&self) -> String {
        match self.short {
            true => "[amqp] listen".into(),
            false => format!("[[listener]] `{}`", self.name),
        }
    }
}

/// The bounds of device connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections over all workers.
    pub max_connections: NonZeroUsize,
    /// The max-frame-size that is offered.
    pub max_frame_bytes: u32,
    /// Sessions of one connection (channel-max + 1).
    pub max_sessions: NonZeroU16,
    /// Links of one connection, over all its sessions.
    pub max_links: NonZeroU32,
    /// What a peer may send ahead in one session: its incoming-window, in frames of the greatest size.
    pub window_bytes: u32,
    /// Deliveries of one session, each way, that wait for their outcome.
    pub max_unsettled: NonZeroU32,
    /// Tokens that one connection may have put.
    pub max_tokens: NonZeroUsize,
    /// The idle time-out that is announced.
    pub idle_time_out: Duration,
    /// From accept to `open`, TLS and SASL included.
    pub open_time_out: Duration,
}

/// What a listener is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Protocol {
    #[default]
    Amqp,
    Mqtt,
}

/// `[[listener]]` as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListenerSection {
    name: Option<String>,
    #[serde(default)]
    protocol: Protocol,
    host: Option<String>,
    port: Option<u16>,
    ssl_profile: Option<String>,
    require_ssl: Option<bool>,
    #[serde(default)]
    websocket: bool,
    #[serde(default)]
    authenticate_peer: bool,
    #[serde(default, deserialize_with = "mechanisms::several")]
    sasl_mechanisms: Option<Vec<Mechanism>>,
    connector: Option<String>,
    authorise: Option<Authorise>,
    allow_anonymous: Option<bool>,
    max_connections: Option<NonZeroUsize>,
    #[serde(default, deserialize_with = "units::some_size")]
    max_frame_bytes: Option<u32>,
    max_sessions: Option<NonZeroU16>,
    max_links: Option<NonZeroU32>,
    #[serde(default, deserialize_with = "units::some_duration")]
    idle_time_out: Option<Duration>,
}

impl ListenerSection {
    /// Whether it is for the hub of `[upstream]`.
    pub(super) fn names_upstream(&self) -> bool {
        self.connector.as_deref() == Some(connectors::UPSTREAM)
    }
}

const SECTION: &str = "listener";

/// What devices are offered where nothing is written: they prove themselves by a token, or not at all.
const USUAL: [Mechanism; 2] = [Mechanism::Anonymous, Mechanism::Mssbcbs];

/// The listeners that are written, after those of `[amqp] listen`.
pub(super) fn resolve(
    source: &Source<'_>,
    sections: &[ListenerSection],
    amqp: &AmqpSection,
    profiles: &[Arc<SslProfile>],
    connectors: &[Connector],
) -> Result<Vec<Listener>, ConfigError> {
    let ours = |section: &ListenerSection| section.protocol == Protocol::Amqp;
    let short = match &amqp.listen {
        None if sections.iter().any(ours) => &[],
        _ => amqp.listen(),
    };
    let mut listeners: Vec<Listener> = short
        .iter()
        .map(|address| Listener {
            name: format!("amqp {address}").into(),
            address: *address,
            tls: None,
            require_ssl: false,
            websocket: false,
            authenticate_peer: false,
            sasl_mechanisms: match amqp.authorise() {
                Authorise::Registry => USUAL.into_iter().chain([Mechanism::Plain]).collect(),
                Authorise::Token | Authorise::Any => USUAL.into(),
            },
            connector: None,
            authorise: amqp.authorise(),
            limits: amqp.limits(),
            short: true,
        })
        .collect();
    if !listeners.is_empty() && amqp.authorise == Some(Authorise::Registry) {
        check_shared(None, connectors, |what| source.wrong(&["amqp", "authorise"], what))?;
    }
    let mut names = Names::new(source, SECTION);
    for (at, section) in sections.iter().enumerate().filter(|(_, section)| ours(section)) {
        let at = at.to_string();
        let here = Here { source, at: &at, section };
        let listener = here.resolve(&mut names, amqp, profiles, connectors)?;
        if let Some(other) =
            listeners.iter().find(|other| other.address == listener.address && other.address.port() != 0)
        {
            let what = format!("listener `{}` has {} already", other.name, other.address);
            return Err(here.wrong("port", what).with_help("another port, or one of the two"));
        }
        listeners.push(listener);
    }
    Ok(listeners)
}

/// With a connection for each device, the hub is shown what the connector has and not who the device is.
fn check_shared(
    bound: Option<usize>,
    connectors: &[Connector],
    wrong: impl FnOnce(String) -> ConfigError,
) -> Result<(), ConfigError> {
    let mut reachable =
        connectors.iter().enumerate().filter(|(index, _)| bound.is_none_or(|bound| bound == *index));
    let alone = reachable.find(|(_, connector)| connector.mode == Mode::PerConnection);
    alone.map_or(Ok(()), |(_, connector)| {
        let what = format!(
            "the gateway speaks for registered devices on connections that they share, and connector `{}` has one for each",
            connector.name
        );
        Err(wrong(what).with_help("`mode = \"shared\"` there, or a `connector` here that has it"))
    })
}

/// `[[listener]]` number `at`.
struct Here<'a> {
    source: &'a Source<'a>,
    at: &'a str,
    section: &'a ListenerSection,
}

impl Here<'_> {
    fn wrong(&self, key: &str, what: impl Into<String>) -> ConfigError {
        self.source.wrong(&[SECTION, self.at, key], what)
    }

    fn resolve(
        &self,
        names: &mut Names<'_>,
        amqp: &AmqpSection,
        profiles: &[Arc<SslProfile>],
        connectors: &[Connector],
    ) -> Result<Listener, ConfigError> {
        let section = self.section;
        let within = Within(self.source);
        let path = |key| [SECTION, self.at, key];
        within.some_duration(&path("idle_time_out"), section.idle_time_out, SECOND_TO_HOUR)?;
        within.some_number(&path("max_frame_bytes"), section.max_frame_bytes, FRAME_BYTES)?;
        let tls = self.tls(profiles)?;
        let require_ssl = self.require_ssl(tls.is_some())?;
        let usual_port = if tls.is_some() && require_ssl { 5671 } else { 5672 };
        let address = SocketAddr::new(self.host()?, section.port.unwrap_or(usual_port));
        let name = match &section.name {
            Some(name) => names.take(self.at, name)?,
            None => names.take(self.at, &address.to_string())?,
        };
        let connector = self.connector(connectors)?;
        let sasl_mechanisms = self.mechanisms(tls.as_deref())?;
        // A port that takes both TLS and plain text asks for certificates on one of the two only.
        let certified = require_ssl
            && tls.as_ref().is_some_and(|tls| tls.client_certificates == ClientCertificates::Required);
        let authorise = self.authorise(address, certified)?;
        if sasl_mechanisms.contains(&Mechanism::Plain) && authorise != Authorise::Registry {
            self.check_plain(connector, connectors)?;
        }
        if authorise == Authorise::Registry {
            check_shared(connector, connectors, |what| self.wrong("authorise", what))?;
        }
        let limits = Limits {
            max_connections: section.max_connections.unwrap_or(amqp.max_connections),
            max_frame_bytes: section.max_frame_bytes.unwrap_or(amqp.max_frame_bytes),
            max_sessions: section.max_sessions.unwrap_or(amqp.max_sessions),
            max_links: section.max_links.unwrap_or(amqp.max_links),
            idle_time_out: section.idle_time_out.unwrap_or(amqp.idle_time_out),
            ..amqp.limits()
        };
        Ok(Listener {
            name,
            address,
            tls,
            require_ssl,
            websocket: section.websocket,
            authenticate_peer: section.authenticate_peer,
            sasl_mechanisms,
            connector,
            authorise,
            limits,
            short: false,
        })
    }

    fn host(&self) -> Result<IpAddr, ConfigError> {
        let Some(host) = &self.section.host else { return Ok(Ipv4Addr::LOCALHOST.into()) };
        let text = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        if text.eq_ignore_ascii_case("localhost") {
            return Ok(Ipv4Addr::LOCALHOST.into());
        }
        text.parse().map_err(|_| {
            self.wrong("host", format!("`{}` is not an IP address", host.escape_debug())).with_help(
                "an address of this machine, as \"127.0.0.1\", or \"0.0.0.0\" for every network; the port is `port`",
            )
        })
    }

    fn tls(&self, profiles: &[Arc<SslProfile>]) -> Result<Option<Arc<SslProfile>>, ConfigError> {
        let Some(name) = &self.section.ssl_profile else { return Ok(None) };
        let profile = profiles::named(self.source, profiles, SECTION, self.at, name)?;
        if profile.identity.is_none() {
            let what = format!("ssl_profile `{name}` has no certificate to show to devices");
            return Err(self
                .wrong("ssl_profile", what)
                .with_help(format!("`cert_file` and `private_key_file` in [[ssl_profile]] `{name}`")));
        }
        Ok(Some(profile))
    }

    fn require_ssl(&self, tls: bool) -> Result<bool, ConfigError> {
        match (self.section.require_ssl, tls) {
            (Some(true), false) => Err(self
                .wrong("require_ssl", "TLS is required, and the listener has no certificate")
                .with_help("`ssl_profile` names an [[ssl_profile]] with `cert_file` and `private_key_file`")),
            (written, tls) => Ok(tls && written.unwrap_or(true)),
        }
    }

    fn connector(&self, connectors: &[Connector]) -> Result<Option<usize>, ConfigError> {
        let Some(name) = &self.section.connector else { return Ok(None) };
        let found = connectors.iter().position(|connector| *connector.name == **name);
        found.map(Some).ok_or_else(|| {
            let known = connectors.iter().map(|connector| &*connector.name);
            names::unknown(self.source, &[SECTION, self.at, "connector"], connectors::SECTION, name, known)
        })
    }

    fn mechanisms(&self, tls: Option<&SslProfile>) -> Result<Vec<Mechanism>, ConfigError> {
        let certificates = tls.is_some_and(|tls| tls.client_certificates != ClientCertificates::None);
        let Some(list) = &self.section.sasl_mechanisms else {
            let mut usual: Vec<_> = if certificates { vec![Mechanism::External] } else { Vec::new() };
            let anonymous = !self.section.authenticate_peer;
            usual.extend(
                USUAL.into_iter().filter(|mechanism| anonymous || *mechanism != Mechanism::Anonymous),
            );
            if self.section.authorise == Some(Authorise::Registry) {
                usual.push(Mechanism::Plain);
            }
            return Ok(usual);
        };
        if list.contains(&Mechanism::External) && !certificates {
            let (what, help) = match tls {
                None => (
                    "EXTERNAL is the certificate of a device, and this listener speaks no TLS".into(),
                    "`ssl_profile` names an [[ssl_profile]] with `client_certificates = \"optional\"` or \"required\"".into(),
                ),
                Some(profile) => (
                    format!("EXTERNAL is the certificate of a device, and ssl_profile `{}` asks for none", profile.name),
                    format!(
                        "`client_certificates = \"optional\"` or \"required\", and `ca_cert_file`, in [[ssl_profile]] `{}`",
                        profile.name
                    ),
                ),
            };
            let what: String = what;
            let help: String = help;
            return Err(self.wrong("sasl_mechanisms", what).with_help(help));
        }
        if self.section.authenticate_peer && list.contains(&Mechanism::Anonymous) {
            let what = "ANONYMOUS proves nothing, and `authenticate_peer` asks for a proof";
            return Err(self
                .wrong("sasl_mechanisms", what)
                .with_help("leave ANONYMOUS out (MSSBCBS: a token follows), or `authenticate_peer`"));
        }
        Ok(list.clone())
    }

    /// A password that came in must not go out in the clear.
    fn check_plain(&self, bound: Option<usize>, connectors: &[Connector]) -> Result<(), ConfigError> {
        let mut reachable =
            connectors.iter().enumerate().filter(|(index, _)| bound.is_none_or(|bound| bound == *index));
        let Some((index, connector)) = reachable.find(|(_, connector)| !connector.is_tls()) else {
            return Ok(());
        };
        let place = connectors::place(self.source, index);
        let what = format!(
            "PLAIN hands a device's password on to the hub, and connector `{}` ({place}) reaches it without TLS",
            connector.name
        );
        Err(self.wrong("sasl_mechanisms", what).with_help(format!(
            "`ssl_profile` in connector `{}`, or no PLAIN here{}",
            connector.name,
            if bound.is_none() { ", or `connector` here names one with TLS" } else { "" }
        )))
    }

    fn authorise(&self, address: SocketAddr, certified: bool) -> Result<Authorise, ConfigError> {
        let ListenerSection { authorise, allow_anonymous, authenticate_peer, .. } = self.section;
        if *authorise == Some(Authorise::Registry) && *allow_anonymous == Some(true) {
            let what = "`authorise = \"registry\"` asks for a registered device, `allow_anonymous = true` for nobody";
            return Err(self.wrong("authorise", what).with_help("keep one of the two"));
        }
        if *authorise == Some(Authorise::Any) && *allow_anonymous == Some(false) {
            let what =
                "`authorise = \"any\"` lets everybody in, `allow_anonymous = false` nobody without a token";
            return Err(self.wrong("authorise", what).with_help("keep one of the two"));
        }
        let loopback = address.ip().is_loopback();
        let asked = matches!(authorise, Some(Authorise::Token | Authorise::Registry))
            || *authenticate_peer
            || certified;
        if !loopback && *allow_anonymous != Some(true) && !asked {
            let key = if self.section.host.is_some() { "host" } else { "port" };
            let what = format!(
                "the listener is on {address}, which other machines can reach, and asks nobody who they are"
            );
            return Err(self.wrong(key, what).with_help(
                "`authorise = \"token\"` if devices bring tokens, \"registry\" if they are registered; `authenticate_peer = true`, or an ssl_profile that \
                 requires client certificates; or `allow_anonymous = true` if everybody who reaches that address may \
                 speak for any device",
            ));
        }
        Ok(authorise.unwrap_or(match allow_anonymous {
            Some(true) => Authorise::Any,
            None if loopback && !asked => Authorise::Any,
            _ => Authorise::Token,
        }))
    }
}
