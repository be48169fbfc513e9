//! Which hub, how it is reached and what the gateway proves itself with.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fieldgate_amqp::connection::ClientSecurity;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::config::{Config, Connector, HostPort, Reach, Sasl, Secret, Target};
use crate::sas::{ConnectionString, ConnectionStringError, Signer};
use crate::tls::{self, Roots, Stream, TlsError};

/// The port of AMQP over TLS (IANA `amqps`).
const AMQPS_PORT: u16 = 5671;

/// A hub as the gateway's connections see it; shared by all workers.
pub(crate) struct Hub {
    name: Arc<str>,
    /// Tried in this order; never empty.
    endpoints: Vec<Endpoint>,
    credential: Credential,
    token_ttl: Duration,
    /// For each endpoint.
    connect_time_out: Duration,
}

/// One of the addresses of a hub.
struct Endpoint {
    at: HostPort,
    /// Absent: plain TCP.
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

/// What the gateway's own connections prove themselves with.
enum Credential {
    /// SASL ANONYMOUS, for hubs that look at the devices' tokens and brokers that trust the network.
    None,
    /// MSSBCBS: as none, by the name that Microsoft's services have for it.
    Claims,
    /// SASL EXTERNAL: the TLS certificate.
    Certificate,
    /// SASL PLAIN.
    Plain { user: String, password: Secret },
    /// A shared key: a token for `resource` is put to `$cbs`.
    SharedKey { signer: Signer, resource: String },
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

/// The hub did not answer, or not as who it should be.
#[derive(Debug, Error)]
pub(crate) enum ConnectError {
    /// No TCP connection.
    #[error("no TCP connection to {address}: {error}")]
    Tcp {
        /// Host and port.
        address: String,
        /// What the system said.
        error: std::io::Error,
    },
    /// TLS failed: certificate, name or protocol.
    #[error("TLS with {address} failed: {error}")]
    Tls {
        /// Host and port.
        address: String,
        /// What rustls said.
        error: std::io::Error,
    },
    /// It took too long.
    #[error("no answer from {address} within {} s", within.as_secs())]
    TimeOut {
        /// Host and port.
        address: String,
        /// How long was waited.
        within: Duration,
    },
    /// None of the addresses answered.
    #[error("{}", each(.0))]
    Each(Vec<ConnectError>),
}

fn each(errors: &[ConnectError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
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
        let upstream = &config.upstream;
        let (name, at, credential) = match (&upstream.target, embedded) {
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
                let credential = match &url.credentials {
                    None => Credential::None,
                    Some((user, password)) => {
                        Credential::Plain { user: user.clone(), password: password.clone() }
                    }
                };
                (url.host.clone(), HostPort { host: url.host.clone(), port: url.port }, credential)
            }
        };
        let roots = match (&upstream.ca_file, embedded) {
            (Some(path), _) => Roots::File(path.clone()),
            (None, Some(embedded)) if upstream.target == Target::Embedded => {
                Roots::File(embedded.ca_file.clone())
            }
            (None, _) => Roots::Platform,
        };
        const PLACE: &str = "[upstream]";
        let tls = tls::client(&roots).map_err(|error| HubError::Tls { place: PLACE.into(), error })?;
        Ok(Self {
            name: name.into(),
            endpoints: vec![Endpoint::new(PLACE, at, Some(tls))?],
            credential,
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
                let place = format!("{place}, ssl_profile `{}`", profile.name);
                Some(tls::connector(profile).map_err(|error| HubError::Tls { place, error })?)
            }
        };
        let endpoints = hosts.addresses.iter().map(|at| Endpoint::new(&place, at.clone(), tls.clone()));
        Ok(Self {
            name: Arc::clone(&hosts.hub_name),
            endpoints: endpoints.collect::<Result<_, _>>()?,
            credential: match &hosts.sasl {
                Sasl::Anonymous => Credential::None,
                Sasl::Mssbcbs => Credential::Claims,
                Sasl::External => Credential::Certificate,
                Sasl::Plain { user, password } => {
                    Credential::Plain { user: user.clone(), password: password.clone() }
                }
            },
            token_ttl: config.upstream.token_ttl,
            connect_time_out: connector.connect_time_out,
        })
    }

    fn by_connection_string(parsed: &ConnectionString) -> (String, HostPort, Credential) {
        let host = parsed.gateway_host.as_ref().unwrap_or(&parsed.host).clone();
        let credential = Credential::SharedKey { signer: parsed.signer(), resource: parsed.resource() };
        (parsed.host.clone(), HostPort { host, port: parsed.port.unwrap_or(AMQPS_PORT) }, credential)
    }

    /// The hub's name: `hostname` of our `open`, and what tokens are signed for.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Hosts and ports, for people.
    pub(crate) fn address(&self) -> String {
        self.endpoints.iter().map(|endpoint| endpoint.at.to_string()).collect::<Vec<_>>().join(", ")
    }

    /// How the gateway's own connections prove themselves at SASL level.
    pub(crate) fn security(&self) -> ClientSecurity {
        match &self.credential {
            Credential::Plain { user, password } => {
                ClientSecurity::Plain { user: user.clone(), password: password.expose().to_owned() }
            }
            Credential::Claims => ClientSecurity::Mssbcbs,
            Credential::Certificate => ClientSecurity::External,
            Credential::None | Credential::SharedKey { .. } => ClientSecurity::Anonymous,
        }
    }

    /// A fresh token, where the gateway proves itself by tokens. `random` is uniform over all of `u64`: connections
    /// that were made together are not all to renew theirs together.
    pub(crate) fn token(&self, random: u64) -> Option<OwnToken> {
        let Credential::SharedKey { signer, resource } = &self.credential else { return None };
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let expiry = (now + self.token_ttl).as_secs();
        let text = signer.token(resource, expiry);
        let spread = u64::try_from((self.token_ttl / 5).as_millis()).unwrap_or(u64::MAX).max(1);
        let renew_in = self.token_ttl * 3 / 5 + Duration::from_millis(random % spread);
        Some(OwnToken { name: resource.clone(), text, renew_in, life: self.token_ttl })
    }

    /// TCP, and TLS where it is spoken, to the first address that answers.
    ///
    /// # Errors
    /// Which step failed, and how; for each address.
    pub(crate) async fn connect(&self) -> Result<Stream, ConnectError> {
        let mut errors = Vec::new();
        for endpoint in &self.endpoints {
            match endpoint.connect(self.connect_time_out).await {
                Ok(stream) => return Ok(stream),
                Err(error) => errors.push(error),
            }
        }
        Err(match errors.pop() {
            Some(only) if errors.is_empty() => only,
            last => ConnectError::Each(errors.into_iter().chain(last).collect()),
        })
    }
}

impl Endpoint {
    fn new(place: &str, at: HostPort, tls: Option<Arc<ClientConfig>>) -> Result<Self, HubError> {
        let tls = match tls {
            None => None,
            Some(config) => {
                let name = ServerName::try_from(at.host.clone())
                    .map_err(|_| HubError::Host { place: place.into(), host: at.host.clone() })?;
                Some((TlsConnector::from(config), name))
            }
        };
        Ok(Self { at, tls })
    }

    async fn connect(&self, within: Duration) -> Result<Stream, ConnectError> {
        let address = || self.at.to_string();
        let connecting = async {
            let tcp = TcpStream::connect((self.at.host.as_str(), self.at.port))
                .await
                .map_err(|error| ConnectError::Tcp { address: address(), error })?;
            // Frames are gathered by turns already; waiting for more would only add delay.
            tcp.set_nodelay(true).map_err(|error| ConnectError::Tcp { address: address(), error })?;
            let Some((connector, name)) = &self.tls else { return Ok(Stream::from(tcp)) };
            let stream = connector.connect(name.clone(), tcp).await;
            stream.map(Stream::from).map_err(|error| ConnectError::Tls { address: address(), error })
        };
        let late = |_| ConnectError::TimeOut { address: address(), within };
        tokio::time::timeout(within, connecting).await.map_err(late)?
    }
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
