//! The configuration: read from TOML, checked once, then shared as it is.
//!
//! One struct for each section, unknown keys refused, every error with file, line, column and what would be right.
//! What the file leaves out has a default that is safe: listeners on loopback, the embedded hub as the hub.

mod access;
mod address;
mod check;
mod connectors;
mod error;
mod listeners;
mod mapped;
mod mappings;
mod mechanisms;
mod names;
mod profiles;
mod proxy;
mod qpid;
mod routes;
mod sasl;
mod sections;
mod units;
mod upstream;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

pub use access::{Access, Transport};
pub use address::{HubUrl, parse_listen};
use connectors::ConnectorSection;
pub(crate) use connectors::UPSTREAM;
pub use connectors::{Connect, Connector, HostPort, Hosts, Mode, Reach};
pub use error::{ConfigError, Place};
pub(crate) use error::{Source, nearest};
use error::{beside, name_of};
use listeners::ListenerSection;
pub use listeners::mqtt::MqttListener;
pub use listeners::{Limits, Listener};
pub use mapped::{Mapped, Profile};
pub use mappings::MappingsError;
use profiles::ProfileSection;
pub use profiles::{ClientCertificates, IdentityFiles, SslProfile, TlsVersion};
pub use proxy::Proxy;
pub use qpid::{Import, Remark};
use routes::RouteSection;
pub use routes::{Direction, LinkRoute, RouteAddress};
pub use sasl::Sasl;
pub use sections::{
    AdminConfig, Authorise, CoapConfig, DevicesConfig, HttpConfig, HubConfig, LogConfig, MappingsConfig,
    MqttConfig, RuntimeConfig, SpoolConfig, StateConfig,
};
use sections::{AmqpSection, UpstreamSection};
pub use units::{Level, Secret, parse_duration, parse_size};

use crate::sas::ConnectionString;

/// Everything that a process is told; built by [`Config::load`] or [`Config::default`], then only read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What is written to standard error.
    pub log: LogConfig,
    /// Threads and the stop.
    pub runtime: RuntimeConfig,
    /// Where keys and certificates are kept.
    pub state: StateConfig,
    /// MQTT devices; where they connect says `mqtt_listeners`.
    pub mqtt: MqttConfig,
    /// CoAP devices.
    pub coap: CoapConfig,
    /// HTTP devices.
    pub http: HttpConfig,
    /// The device registry.
    pub devices: DevicesConfig,
    /// Metrics and health.
    pub admin: AdminConfig,
    /// The embedded hub; whether `run` starts it says [`Config::runs_hub`].
    pub hub: HubConfig,
    /// The hub that the gateway connects to.
    pub upstream: Upstream,
    /// What a device message means.
    pub mappings: MappingsConfig,
    /// What is kept on disk while the hub is away.
    pub spool: SpoolConfig,
    /// Where native AMQP devices connect.
    pub listeners: Vec<Listener>,
    /// Where MQTT devices connect.
    pub mqtt_listeners: Vec<MqttListener>,
    /// Where native AMQP devices' links go; never empty.
    pub connectors: Vec<Connector>,
    /// Which links go to which connector.
    pub link_routes: Vec<LinkRoute>,
    /// What of another program's file was not carried over.
    pub remarks: Vec<Remark>,
}

/// Where device messages go, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Which hub.
    pub target: Target,
    /// How it is reached.
    pub access: Access,
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
    /// Devices on one connection.
    pub devices_per_connection: NonZeroUsize,
    /// Connections to the hub, over all workers.
    pub max_connections: NonZeroUsize,
    /// How connections carry mapped messages.
    pub mapped: Mapped,
}

/// Which hub the gateway connects to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The one in this process.
    Embedded,
    /// An IoT Hub (or an embedded hub elsewhere), by a policy's connection string.
    ConnectionString(ConnectionString),
    /// Any AMQP 1.0 hub or router.
    Url(HubUrl),
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Document {
    log: LogConfig,
    runtime: RuntimeConfig,
    state: StateConfig,
    amqp: AmqpSection,
    mqtt: MqttConfig,
    coap: CoapConfig,
    http: HttpConfig,
    devices: DevicesConfig,
    admin: AdminConfig,
    hub: HubConfig,
    upstream: UpstreamSection,
    mappings: MappingsConfig,
    spool: SpoolConfig,
    ssl_profile: Vec<ProfileSection>,
    listener: Vec<ListenerSection>,
    connector: Vec<ConnectorSection>,
    link_route: Vec<RouteSection>,
}

impl Default for Config {
    fn default() -> Self {
        Self::parse("defaults", "", None).expect("a test shows that an empty file is good")
    }
}

/// A full configuration with every key, its default and what it means.
#[must_use]
pub fn sample() -> &'static str {
    include_str!("config/sample.toml")
}

impl Document {
    /// Whether the file itself holds a key or a password.
    fn holds_secret(&self) -> bool {
        self.upstream.holds_secret() || self.connector.iter().any(ConnectorSection::holds_secret)
    }
}

impl Config {
    /// Reads and checks a configuration file. Paths in it are relative to its directory. A file of Qpid Dispatch is
    /// translated first.
    ///
    /// # Errors
    /// File, line, column, and what would be right.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let name = name_of(path);
        let text = std::fs::read_to_string(path).map_err(|error| unreadable_file(&name, &error))?;
        Self::read(&Source { name: &name, text: &text }, path.parent(), Some(path))
    }

    /// Reads and checks a configuration from a text; paths in it are seen from `base`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(name: &str, text: &str, base: Option<&Path>) -> Result<Self, ConfigError> {
        Self::read(&Source { name, text }, base, None)
    }

    /// Translates a configuration file of Qpid Dispatch; `output` is where the translation will be.
    ///
    /// # Errors
    /// As [`Config::load`]; or the file is none of Qpid Dispatch.
    pub fn import(path: &Path, output: Option<&Path>) -> Result<Import, ConfigError> {
        let name = name_of(path);
        let text = std::fs::read_to_string(path)
            .map_err(|error| ConfigError::new(&name, format!("cannot be read: {error}")))?;
        let source = Source { name: &name, text: &text };
        if !qpid::is_qpid(&text) {
            return Err(ConfigError::new(&name, "is no configuration of Qpid Dispatch Router")
                .with_help("one has sections in braces, as in `listener { host: 0.0.0.0  port: 5672 }`"));
        }
        // What is good where the file is must be good where the translation will be.
        let (from, to) = (directory(Some(path)), directory(output));
        let import = Import::read(&source, (from != to).then_some(&*from))?;
        let translated = Source { name: &name, text: &import.text };
        let good =
            check::read(&translated).and_then(|document| Self::finish(&translated, document, Some(&from)));
        good.map_err(|error| import.trace_back(&source, error))?;
        Ok(import)
    }

    fn read(source: &Source<'_>, base: Option<&Path>, file: Option<&Path>) -> Result<Self, ConfigError> {
        if qpid::is_qpid(source.text) {
            let import = Import::read(source, None)?;
            let translated = Source { name: source.name, text: &import.text };
            let config = Self::read_own(&translated, base, file);
            let mut config = config.map_err(|error| import.trace_back(source, error))?;
            config.remarks = import.remarks;
            return Ok(config);
        }
        Self::read_own(source, base, file)
    }

    fn read_own(source: &Source<'_>, base: Option<&Path>, file: Option<&Path>) -> Result<Self, ConfigError> {
        let document = check::read(source)?;
        if let Some(file) = file
            && document.holds_secret()
        {
            refuse_if_world_readable(file)?;
        }
        Self::finish(source, document, base)
    }

    fn finish(source: &Source<'_>, mut document: Document, base: Option<&Path>) -> Result<Self, ConfigError> {
        for file in &mut document.mappings.files {
            *file = beside(base, file);
        }
        let paths =
            [&mut document.state.directory, &mut document.spool.directory, &mut document.devices.file];
        for path in paths.into_iter().flatten() {
            *path = beside(base, path);
        }
        if let Some((key, what)) = document.spool.fault() {
            return Err(source.wrong(&["spool", key], what));
        }
        let target = read_target(source, &document.upstream, base)?;
        let Document {
            log,
            runtime,
            state,
            amqp,
            mqtt,
            coap,
            http,
            devices,
            admin,
            hub,
            upstream,
            mappings,
            spool,
            ..
        } = document;
        let profiles = profiles::resolve(source, document.ssl_profile, base)?;
        let named = document.link_route.iter().any(RouteSection::names_upstream)
            || document.listener.iter().any(ListenerSection::names_upstream);
        let mut connectors = connectors::resolve(source, document.connector, &upstream, &profiles, base)?;
        if connectors.is_empty() || named {
            connectors.push(connectors::upstream(&upstream));
        }
        let link_routes = routes::resolve(source, &document.link_route, &amqp.link_routes, &connectors)?;
        let listeners = listeners::resolve(source, &document.listener, &amqp, &profiles, &connectors)?;
        let mqtt_listeners = listeners::mqtt::resolve(source, &document.listener, &mqtt, &profiles)?;
        // Where they connect is said by now.
        let mqtt = MqttConfig { listen: None, ..mqtt };
        let mapped = upstream.mapped();
        let access = upstream::access(source, &upstream, &target, &profiles, base)?;
        let upstream = Upstream {
            target,
            access,
            hold: upstream.hold,
            idle_time_out: upstream.idle_time_out,
            connect_time_out: upstream.connect_time_out,
            retry_max: upstream.retry_max,
            token_ttl: upstream.token_ttl,
            max_in_flight: upstream.max_in_flight,
            devices_per_connection: upstream.devices_per_connection,
            max_connections: upstream.max_connections,
            mapped,
        };
        Ok(Self {
            log,
            runtime,
            state,
            mqtt,
            coap,
            http,
            devices,
            admin,
            hub,
            upstream,
            mappings,
            spool,
            listeners,
            mqtt_listeners,
            connectors,
            link_routes,
            remarks: Vec::new(),
        })
    }

    /// Whether anything goes to the hub of `[upstream]`: messages of MQTT, CoAP or HTTP devices, or routed links.
    #[must_use]
    pub fn needs_upstream(&self) -> bool {
        self.maps() || self.connectors.iter().any(|connector| connector.reach == Reach::Upstream)
    }

    /// Whether anybody listens for devices whose messages are mapped.
    #[must_use]
    pub fn maps(&self) -> bool {
        !self.mqtt_listeners.is_empty() || !self.coap.listen.is_empty() || !self.http.listen.is_empty()
    }

    /// Whether `fieldgate run` starts the embedded hub: when nothing else is said, if there is no other hub.
    #[must_use]
    pub fn runs_hub(&self) -> bool {
        self.hub.enabled.unwrap_or(self.upstream.target == Target::Embedded && self.needs_upstream())
    }

    /// Whether the gateway has a hub at all. Asked for last, because the command line may name one.
    ///
    /// # Errors
    /// What is missing, and the settings that would give it.
    pub fn require_hub(&self) -> Result<(), ConfigError> {
        if self.upstream.target != Target::Embedded || !self.needs_upstream() {
            return Ok(());
        }
        if !self.runs_hub() {
            return Err(ConfigError::new("configuration", "there is no hub to connect to")
                .with_help("name one under [upstream] or with --hub, or leave `[hub] enabled = false` out"));
        }
        if self.hub.listen.is_empty() {
            return Err(ConfigError::new(
                "configuration",
                "the embedded hub listens nowhere, so the gateway cannot reach it",
            )
            .with_help("`[hub] listen = [\"127.0.0.1:5671\"]`, or name another hub under [upstream]"));
        }
        Ok(())
    }

    /// Takes the hub from the command line or the environment: a connection string or an `amqps://` URL.
    ///
    /// # Errors
    /// What would be right; `origin` names where the text came from.
    pub fn set_hub(&mut self, origin: &str, text: &str) -> Result<(), ConfigError> {
        let text = text.trim();
        let is_url = text
            .split_once("://")
            .is_some_and(|(scheme, _)| scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        let target = if is_url {
            HubUrl::parse(text).map(Target::Url)
        } else if text.contains('=') {
            connection_string(text)
        } else {
            Err("this is neither a connection string nor a URL".into())
        };
        self.upstream.target = target.map_err(|what| {
            ConfigError::new(origin, what)
                .with_help(format!("{POLICY_FORM}, or amqps://host for another AMQP 1.0 hub"))
        })?;
        // A password is for the hub that it was written for.
        self.upstream.access.sasl.take_if(|sasl| matches!(sasl, Sasl::Plain { .. }));
        Ok(())
    }
}

/// The directory of a file, or the working directory, in full where it exists.
fn directory(file: Option<&Path>) -> PathBuf {
    let directory = file.and_then(Path::parent).filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    directory.canonicalize().unwrap_or_else(|_| directory.to_path_buf())
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

fn read_target(
    source: &Source<'_>,
    section: &UpstreamSection,
    base: Option<&Path>,
) -> Result<Target, ConfigError> {
    let policy = |error: ConfigError| error.with_help(POLICY_FORM);
    let UpstreamSection { connection_string: text, connection_string_file: file, url, .. } = section;
    match (text, file, url) {
        (None, None, None) => Ok(Target::Embedded),
        (Some(text), None, None) => connection_string(text.expose())
            .map_err(|what| policy(source.wrong(&["upstream", "connection_string"], what))),
        (None, Some(file), None) => {
            let path = beside(base, file);
            let wrong = |what: String| source.wrong(&["upstream", "connection_string_file"], what);
            let text = read_secret_file(&path, wrong)?;
            connection_string(text.expose())
                .map_err(|what| policy(wrong(format!("in {}: {what}", path.display()))))
        }
        (None, None, Some(url)) => HubUrl::parse(url.expose())
            .map(Target::Url)
            .map_err(|what| source.wrong(&["upstream", "url"], what)),
        _ => Err(source
            .wrong(&["upstream"], "[upstream] names more than one hub")
            .with_help("keep one of `connection_string`, `connection_string_file` and `url`")),
    }
}

const POLICY_FORM: &str = "HostName=…;SharedAccessKeyName=…;SharedAccessKey=… for an IoT Hub";

fn connection_string(text: &str) -> Result<Target, String> {
    let parsed = ConnectionString::parse(text).map_err(|error| error.to_string())?;
    if let Some(device) = parsed.device {
        return Err(format!(
            "this connection string is for the one device `{device}`; a gateway needs a policy's"
        ));
    }
    if parsed.key_name.is_none() {
        return Err("this connection string names no policy (SharedAccessKeyName)".into());
    }
    if parsed.entity_path.is_some() {
        return Err("this connection string is for an Event Hub; a gateway needs the IoT Hub's own".into());
    }
    Ok(Target::ConnectionString(parsed))
}

/// The text of a file that is its user's own, without the line's end.
fn read_secret_file(path: &Path, wrong: impl Fn(String) -> ConfigError) -> Result<Secret, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| wrong(format!("{} cannot be read: {error}", path.display())))?;
    refuse_if_world_readable(path)?;
    Ok(Secret::new(text.trim()))
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

#[cfg(test)]
mod tests;
