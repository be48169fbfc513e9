//! The configuration: read from TOML, checked once, then shared as it is.
//!
//! One struct for each section, unknown keys refused, every error with file, line, column and what would be right.
//! What the file leaves out has a default that is safe: listeners on loopback, the embedded hub as the hub.

mod address;
mod error;
mod sections;
mod units;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

pub use address::{HubUrl, parse_listen};
pub use error::{ConfigError, Place};
use error::{Source, beside, name_of};
use sections::UpstreamSection;
pub use sections::{
    AdminConfig, AmqpConfig, Authorise, CoapConfig, HttpConfig, HubConfig, LogConfig, MappingsConfig,
    MqttConfig, RuntimeConfig, StateConfig,
};
pub use units::{Level, Secret, parse_duration, parse_size};

/// Everything that a process is told; built by [`Config::load`] or [`Config::default`], then only read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What is written to standard error.
    pub log: LogConfig,
    /// Threads and the stop.
    pub runtime: RuntimeConfig,
    /// Where keys and certificates are kept.
    pub state: StateConfig,
    /// Native AMQP 1.0 devices.
    pub amqp: AmqpConfig,
    /// MQTT devices.
    pub mqtt: MqttConfig,
    /// CoAP devices.
    pub coap: CoapConfig,
    /// HTTP devices.
    pub http: HttpConfig,
    /// Metrics and health.
    pub admin: AdminConfig,
    /// The embedded hub; whether `run` starts it says [`Config::runs_hub`].
    pub hub: HubConfig,
    /// The hub that the gateway connects to.
    pub upstream: Upstream,
    /// What a device message means.
    pub mappings: MappingsConfig,
}

/// Where device messages go, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Which hub.
    pub target: Target,
    /// Certificates (PEM) that the hub's certificate is checked with; absent: those of the platform, or the own CA
    /// for the embedded hub.
    pub ca_file: Option<PathBuf>,
    /// How long devices are kept through an outage of the hub before they are told.
    pub hold: Duration,
    /// The idle time-out that is announced to the hub.
    pub idle_time_out: Duration,
    /// TCP, TLS and `open` together.
    pub connect_time_out: Duration,
    /// The longest pause between two attempts to connect.
    pub retry_max: Duration,
    /// Life of the tokens that the gateway signs itself.
    pub token_ttl: Duration,
    /// Messages without an outcome, for each worker.
    pub max_in_flight: NonZeroUsize,
}

/// Which hub the gateway connects to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The one in this process.
    Embedded,
    /// An IoT Hub (or an embedded hub elsewhere), by its service or device connection string.
    ConnectionString(Secret),
    /// Any AMQP 1.0 hub or router.
    Url(HubUrl),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Document {
    log: LogConfig,
    runtime: RuntimeConfig,
    state: StateConfig,
    amqp: AmqpConfig,
    mqtt: MqttConfig,
    coap: CoapConfig,
    http: HttpConfig,
    admin: AdminConfig,
    hub: HubConfig,
    upstream: UpstreamSection,
    mappings: MappingsConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self::from_document(Document::default(), Target::Embedded)
    }
}

/// A full configuration with every key, its default and what it means.
#[must_use]
pub fn sample() -> &'static str {
    include_str!("sample.toml")
}

impl Config {
    /// Reads and checks a configuration file. Paths in it are relative to its directory.
    ///
    /// # Errors
    /// File, line, column, and what would be right.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let name = name_of(path);
        let text = std::fs::read_to_string(path).map_err(|error| unreadable_file(&name, &error))?;
        let config = Self::parse(&name, &text, path.parent())?;
        if matches!(&config.upstream.target, Target::ConnectionString(secret) if text.contains(secret.expose()))
        {
            refuse_if_world_readable(path)?;
        }
        Ok(config)
    }

    /// Reads and checks a configuration from a text.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(name: &str, text: &str, base: Option<&Path>) -> Result<Self, ConfigError> {
        let source = Source { name, text };
        let mut document: Document = toml::from_str(text).map_err(|error| source.unreadable(&error))?;
        check(&source, &document)?;
        for file in &mut document.mappings.files {
            *file = beside(base, file);
        }
        for path in [&mut document.upstream.ca_file, &mut document.state.directory].into_iter().flatten() {
            *path = beside(base, path);
        }
        let target = read_target(&source, &document.upstream, base)?;
        Ok(Self::from_document(document, target))
    }

    fn from_document(document: Document, target: Target) -> Self {
        let Document { log, runtime, state, amqp, mqtt, coap, http, admin, hub, upstream, mappings } =
            document;
        let upstream = Upstream {
            target,
            ca_file: upstream.ca_file,
            hold: upstream.hold,
            idle_time_out: upstream.idle_time_out,
            connect_time_out: upstream.connect_time_out,
            retry_max: upstream.retry_max,
            token_ttl: upstream.token_ttl,
            max_in_flight: upstream.max_in_flight,
        };
        Self { log, runtime, state, amqp, mqtt, coap, http, admin, hub, upstream, mappings }
    }

    /// Whether `fieldgate run` starts the embedded hub: when nothing else is said, if there is no other hub.
    #[must_use]
    pub fn runs_hub(&self) -> bool {
        self.hub.enabled.unwrap_or(self.upstream.target == Target::Embedded)
    }

    /// Takes the hub from the command line or the environment: a connection string or an `amqps://` URL.
    ///
    /// # Errors
    /// What would be right; `origin` names where the text came from.
    pub fn set_hub(&mut self, origin: &str, text: &str) -> Result<(), ConfigError> {
        self.upstream.target = if text.contains("://") && !text.starts_with("Endpoint=") {
            Target::Url(HubUrl::parse(text).map_err(|what| ConfigError::new(origin, what))?)
        } else {
            connection_string(text).map_err(|what| ConfigError::new(origin, what))?
        };
        Ok(())
    }
}

fn unreadable_file(name: &str, error: &std::io::Error) -> ConfigError {
    let read = ConfigError::new(name, format!("cannot be read: {error}"));
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            read.with_help(format!("`fieldgate config sample > {name}` writes one with every setting"))
        }
        _ => read,
    }
}

/// What no single value shows.
fn check(source: &Source<'_>, document: &Document) -> Result<(), ConfigError> {
    let Document { amqp, mqtt, coap, http, admin, hub, .. } = document;
    if amqp.allow_anonymous == Some(false) && amqp.authorise() == Authorise::Any {
        return Err(source
            .wrong(&["amqp", "authorise"], "`authorise = \"any\"` lets everybody in, and `allow_anonymous = false` nobody without a token")
            .with_help("keep one of the two"));
    }
    if amqp.authorise() == Authorise::Any {
        refuse_anonymous_network(source, "amqp", "AMQP", &amqp.listen, amqp.allow_anonymous)?;
    }
    refuse_anonymous_network(source, "mqtt", "MQTT", &mqtt.listen, mqtt.allow_anonymous)?;
    refuse_anonymous_network(source, "coap", "CoAP", &coap.listen, coap.allow_anonymous)?;
    refuse_anonymous_network(source, "http", "HTTP", &http.listen, http.allow_anonymous)?;
    if let Some((at, address)) = off_loopback(&admin.listen) {
        return Err(source
            .wrong(&["admin", "listen", &at.to_string()], format!("[admin] listens on {address}, and it asks nobody who they are"))
            .with_help("listen on 127.0.0.1 or [::1] only, and put a proxy with a login before it if others must see it"));
    }
    if hub.register_unknown_devices == Some(true)
        && let Some((_, address)) = off_loopback(&hub.listen)
    {
        return Err(source
            .wrong(
                &["hub", "register_unknown_devices"],
                format!("[hub] listens on {address}, and would register whatever device speaks up there"),
            )
            .with_help("listen on 127.0.0.1 or [::1] only, or leave `register_unknown_devices` out"));
    }
    Ok(())
}

fn off_loopback(addresses: &[SocketAddr]) -> Option<(usize, &SocketAddr)> {
    addresses.iter().enumerate().find(|(_, address)| !address.ip().is_loopback())
}

fn refuse_anonymous_network(
    source: &Source<'_>,
    section: &str,
    protocol: &str,
    listen: &[SocketAddr],
    allowed: Option<bool>,
) -> Result<(), ConfigError> {
    match off_loopback(listen) {
        Some((at, address)) if allowed != Some(true) => Err(source
            .wrong(
                &[section, "listen", &at.to_string()],
                format!(
                    "[{section}] listens on {address}, which other machines can reach, and {protocol} devices there would be who they say they are"
                ),
            )
            .with_help(format!(
                "if that is what you want (a closed network), write `allow_anonymous = true` under [{section}]; otherwise listen on 127.0.0.1 or [::1]"
            ))),
        _ => Ok(()),
    }
}

fn read_target(
    source: &Source<'_>,
    section: &UpstreamSection,
    base: Option<&Path>,
) -> Result<Target, ConfigError> {
    let UpstreamSection { connection_string: text, connection_string_file: file, url, .. } = section;
    match (text, file, url) {
        (None, None, None) => Ok(Target::Embedded),
        (Some(text), None, None) => connection_string(text.expose())
            .map_err(|what| source.wrong(&["upstream", "connection_string"], what)),
        (None, Some(file), None) => {
            let path = beside(base, file);
            let wrong = |what: String| source.wrong(&["upstream", "connection_string_file"], what);
            let text = std::fs::read_to_string(&path)
                .map_err(|error| wrong(format!("{} cannot be read: {error}", path.display())))?;
            refuse_if_world_readable(&path)?;
            connection_string(text.trim()).map_err(|what| wrong(format!("in {}: {what}", path.display())))
        }
        (None, None, Some(url)) => HubUrl::parse(url.expose())
            .map(Target::Url)
            .map_err(|what| source.wrong(&["upstream", "url"], what)),
        _ => Err(source
            .wrong(&["upstream"], "[upstream] names more than one hub")
            .with_help("keep one of `connection_string`, `connection_string_file` and `url`")),
    }
}

/// The parts that must be there; the signing code reads the rest.
fn connection_string(text: &str) -> Result<Target, String> {
    const FORM: &str = "HostName=…;SharedAccessKeyName=…;SharedAccessKey=…";
    for part in ["HostName=", "SharedAccessKey="] {
        if !text.split(';').any(|field| field.strip_prefix(part).is_some_and(|value| !value.is_empty())) {
            return Err(format!(
                "this connection string has no `{}`: it has the form {FORM}",
                part.trim_end_matches('=')
            ));
        }
    }
    Ok(Target::ConnectionString(Secret::new(text)))
}

/// A secret that every user of the machine can read is none.
fn refuse_if_world_readable(path: &Path) -> Result<(), ConfigError> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = match std::fs::metadata(path) {
        Ok(metadata) => metadata.permissions().mode(),
        Err(error) => return Err(unreadable_file(&name_of(path), &error)),
    };
    if mode & 0o007 == 0 {
        return Ok(());
    }
    Err(ConfigError::new(name_of(path), "holds a key, and every user of this machine may read it")
        .with_help(format!("`chmod 600 {}`", path.display())))
}
