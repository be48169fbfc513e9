//! Which hub, how it is reached and what the gateway proves itself with.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fieldgate_amqp::connection::ClientSecurity;
use fieldgate_mappings::DeviceId;
use rustls::ClientConfig;
use thiserror::Error;

use super::endpoint::{ConnectError, Endpoint};
use crate::config::{Config, Connector, HostPort, Reach, Sasl, Secret, SslProfile, Target, Transport};
use crate::sas::{self, ConnectionString, ConnectionStringError, Signer};
use crate::tls::{self, Follow, Live, Stream, TlsError};

/// The port of AMQP over TLS (IANA `amqps`), and the one of WebSocket over TLS.
const AMQPS_PORT: u16 = 5671;
const HTTPS_PORT: u16 = 443;

/// A hub as the gateway's connections see it; shared by all workers.
pub(crate) struct Hub {
    name: Arc<str>,
    /// Tried in this order; never empty.
    endpoints: Vec<Endpoint>,
    /// What connections prove themselves with before anything is said.
    sasl: Sasl,
    /// What they put tokens with.
    key: Option<SharedKey>,
    token_ttl: Duration,
    /// For each endpoint.
    connect_time_out: Duration,
}

/// A shared key: a token for `resource` is put to `$cbs`.
struct SharedKey {
    signer: Signer,
    resource: String,
}

/// The hub of this configuration cannot be used.
#[derive(Debug, Error)]
pub enum HubError {
    /// The connection string is not one.
    #[error("[upstream] connection_string: {0}")]
    ConnectionString(#[from] ConnectionStringError),
    /// The host is neither a name nor an address.
    #[error("{place}: {host:?} is not a host name or IP address that a certificate can name")]
    Host {
        /// The section of the configuration.
        place: String,
        /// What it says.
        host: String,
    },
    /// TLS cannot be set up.
    #[error("{place}: {error}")]
    Tls {
        /// The section of the configuration.
        place: String,
        /// What is wrong.
        error: TlsError,
    },
}

/// A token of the gateway's own, for `$cbs`.
pub(crate) struct OwnToken {
    /// The audience that is named beside the token.
    pub(crate) name: String,
    /// The token text; a secret.
    pub(crate) text: String,
    /// When it must be put again, counted from now: ahead of its end, for a hub that is away then.
    pub(crate) renew_in: Duration,
    /// When it expires, counted from now.
    pub(crate) life: Duration,
}

/// Where the embedded hub of this process is reached.
#[derive(Clone, Debug)]
pub(crate) struct Embedded {
    /// The certificate to check it with.
    pub(crate) ca_file: PathBuf,
    /// The service connection string with the policy key.
    pub(crate) connection_string: Secret,
}

impl fmt::Debug for OwnToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnToken").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Hub {
    /// The hub of `[upstream]`; `embedded` where it is the one in this process.
    ///
    /// # Errors
    /// What is wrong with the configured hub.
    pub(crate) fn new(config: &Config, embedded: Option<&Embedded>) -> Result<Self, HubError> {
        const PLACE: &str = "[upstream]";
        let upstream = &config.upstream;
        let access = &upstream.access;
        let mut transport = access.transport.clone();
        let mut own_sasl = None;
        let (name, mut at, key) = match (&upstream.target, embedded) {
            (Target::Embedded, Some(embedded)) => {
                let text = embedded.connection_string.expose();
                Self::by_connection_string(&ConnectionString::parse(text)?)
            }
            (Target::Embedded, None) => {
                let missing = ConnectionStringError::Missing("HostName");
                return Err(missing.into());
            }
            (Target::ConnectionString(parsed), _) => Self::by_connection_string(parsed),
            (Target::Url(url), _) => {
                let plain = |(user, password): &(String, Secret)| Sasl::Plain {
                    user: user.clone(),
                    password: password.clone(),
                };
                own_sasl = url.credentials.as_ref().map(plain);
                transport = match &url.websocket {
                    Some(path) => {
                        Transport::WebSocket { path: path.as_str().into(), subprotocol: access.subprotocol }
                    }
                    None => Transport::Tcp,
                };
                (url.host.clone(), (url.host.clone(), Some(url.port)), None)
            }
        };
        let port = match transport {
            Transport::Tcp => AMQPS_PORT,
            Transport::WebSocket { .. } => HTTPS_PORT,
        };
        let at = HostPort { host: std::mem::take(&mut at.0), port: at.1.unwrap_or(port) };
        let mut profile = (*access.tls).clone();
        if let (Target::Embedded, None, Some(embedded)) = (&upstream.target, &profile.ca_cert_file, embedded)
        {
            profile.ca_cert_file = Some(embedded.ca_file.clone());
        }
        let tls = follow(PLACE.into(), Arc::new(profile))?;
        Ok(Self {
            name: name.into(),
            endpoints: vec![Endpoint::new(PLACE, at, Some(tls), transport, access.proxy.as_ref())?],
            sasl: access.sasl.clone().or(own_sasl).unwrap_or(Sasl::Anonymous),
            key,
            token_ttl: upstream.token_ttl,
            connect_time_out: upstream.connect_time_out,
        })
    }

    /// The hub that a connector leads to; `embedded` as for [`new`](Self::new).
    ///
    /// # Errors
    /// What is wrong with the connector, or with what it names.
    pub(crate) fn for_connector(
        connector: &Connector,
        config: &Config,
        embedded: Option<&Embedded>,
    ) -> Result<Self, HubError> {
        let hosts = match &connector.reach {
            Reach::Upstream => {
                let hub = Self::new(config, embedded)?;
                return Ok(Self { connect_time_out: connector.connect_time_out, ..hub });
            }
            Reach::Hosts(hosts) => hosts,
        };
        let place = format!("connector `{}`", connector.name);
        let tls = match &hosts.tls {
            None => None,
            Some(profile) => {
                Some(follow(format!("{place}, ssl_profile `{}`", profile.name), Arc::clone(profile))?)
            }
        };
        let endpoint = |at: &HostPort| {
            Endpoint::new(&place, at.clone(), tls.clone(), hosts.transport.clone(), hosts.proxy.as_ref())
        };
        Ok(Self {
            name: Arc::clone(&hosts.hub_name),
            endpoints: hosts.addresses.iter().map(endpoint).collect::<Result<_, _>>()?,
            sasl: hosts.sasl.clone(),
            key: None,
            token_ttl: config.upstream.token_ttl,
            connect_time_out: connector.connect_time_out,
        })
    }

    /// Its name, where it is, and its key.
    fn by_connection_string(parsed: &ConnectionString) -> (String, (String, Option<u16>), Option<SharedKey>) {
        let host = parsed.gateway_host.as_ref().unwrap_or(&parsed.host).clone();
        let key = SharedKey { signer: parsed.signer(), resource: parsed.resource() };
        (parsed.host.clone(), (host, parsed.port), Some(key))
    }

    /// The hub's name: `hostname` of our `open`, and what tokens are signed for.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Hosts and ports, for people.
    pub(crate) fn address(&self) -> String {
        self.endpoints.iter().map(|endpoint| endpoint.at().to_string()).collect::<Vec<_>>().join(", ")
    }

    /// How the gateway's own connections prove themselves at SASL level.
    pub(crate) fn security(&self) -> ClientSecurity {
        match &self.sasl {
            Sasl::Bare => ClientSecurity::Bare,
            Sasl::Anonymous => ClientSecurity::Anonymous,
            Sasl::Mssbcbs => ClientSecurity::Mssbcbs,
            Sasl::External => ClientSecurity::External,
            Sasl::Plain { user, password } => {
                ClientSecurity::Plain { user: user.clone(), password: password.expose().to_owned() }
            }
        }
    }

    /// A fresh token, where the gateway proves itself by tokens. `random` is uniform over all of `u64`: connections
    /// that were made together are not all to renew theirs together.
    pub(crate) fn token(&self, random: u64) -> Option<OwnToken> {
        let SharedKey { signer, resource } = self.key.as_ref()?;
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let expiry = (now + self.token_ttl).as_secs();
        let text = signer.token(resource, expiry);
        let spread = u64::try_from((self.token_ttl / 5).as_millis()).unwrap_or(u64::MAX).max(1);
        let renew_in = self.token_ttl * 3 / 5 + Duration::from_millis(random % spread);
        Some(OwnToken { name: resource.clone(), text, renew_in, life: self.token_ttl })
    }

    /// How long tokens live that the gateway signs.
    pub(crate) fn token_ttl(&self) -> Duration {
        self.token_ttl
    }

    /// A token for one device, good until `expires_unix` (seconds since 1970): signed with the device's `key`, else with
    /// the policy's. Nothing where the gateway has neither.
    pub(crate) fn device_token(
        &self,
        device: &DeviceId,
        key: Option<&sas::SharedKey>,
        expires_unix: u64,
    ) -> Option<Secret> {
        let resource = format!("{}/devices/{device}", self.name);
        let text = match (key, &self.key) {
            (Some(key), _) => Signer::new(None, key.clone()).token(&resource, expires_unix),
            (None, Some(SharedKey { signer, .. })) => signer.token(&resource, expires_unix),
            (None, None) => return None,
        };
        Some(Secret::new(text))
    }

    /// What follows its files.
    pub(crate) fn files(&self) -> impl Iterator<Item = Arc<dyn Follow>> {
        self.endpoints.iter().filter_map(Endpoint::files)
    }

    /// TCP, and TLS and a WebSocket where they are spoken, to the first address that answers; which one that was is
    /// given as well. `first` is tried before those that come after it, and the others last.
    ///
    /// # Errors
    /// Which step failed, and how; for each address.
    pub(crate) async fn connect(&self, first: usize) -> Result<(Stream, usize), ConnectError> {
        let mut errors = Vec::new();
        let count = self.endpoints.len();
        for at in (first..first + count).map(|at| at % count) {
            match self.endpoints[at].connect(self.connect_time_out).await {
                Ok(stream) => return Ok((stream, at)),
                Err(error) => errors.push(error),
            }
        }
        Err(match errors.pop() {
            Some(only) if errors.is_empty() => only,
            last => ConnectError::Each(errors.into_iter().chain(last).collect()),
        })
    }
}

/// The TLS of a profile, as its files change.
fn follow(place: String, profile: Arc<SslProfile>) -> Result<Arc<Live<ClientConfig>>, HubError> {
    let files = profile.files();
    let live = Live::new(place.as_str(), files, move || tls::connector(&profile));
    live.map_err(|error| HubError::Tls { place, error })
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("name", &self.name)
            .field("address", &self.address())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
