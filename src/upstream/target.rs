//! Which hub, how it is reached and what the gateway proves itself with.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fieldgate_amqp::connection::ClientSecurity;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::{Config, Secret, Target};
use crate::sas::{ConnectionString, ConnectionStringError, Signer};
use crate::tls::{self, Roots, TlsError};

/// The port of AMQP over TLS (IANA `amqps`).
const AMQPS_PORT: u16 = 5671;

/// A hub as the gateway's connections see it; shared by all workers.
pub(crate) struct Hub {
    name: Arc<str>,
    host: String,
    port: u16,
    server_name: ServerName<'static>,
    tls: Arc<ClientConfig>,
    credential: Credential,
    token_ttl: Duration,
    connect_time_out: Duration,
}

/// What the gateway speaks for mapped devices with.
enum Credential {
    /// Nothing: SASL ANONYMOUS, for brokers that trust the network.
    None,
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
    #[error("[upstream] {0:?} is not a host name or IP address that a certificate can name")]
    Host(String),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The hub did not answer as a TLS server that is who it should be.
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
}

/// A token of the gateway's own, for `$cbs`.
pub(crate) struct OwnToken {
    /// The audience that is named beside the token.
    pub(crate) name: String,
    /// The token text; a secret.
    pub(crate) text: String,
    /// When it must be put again, counted from now.
    pub(crate) renew_in: Duration,
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
    /// The hub that the configuration names; `embedded` where it is the one in this process.
    ///
    /// # Errors
    /// What is wrong with the configured hub.
    pub(crate) fn new(config: &Config, embedded: Option<&Embedded>) -> Result<Self, HubError> {
        let upstream = &config.upstream;
        let (name, host, port, credential) = match (&upstream.target, embedded) {
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
                (url.host.clone(), url.host.clone(), url.port, credential)
            }
        };
        let roots = match (&upstream.ca_file, embedded) {
            (Some(path), _) => Roots::File(path.clone()),
            (None, Some(embedded)) if upstream.target == Target::Embedded => {
                Roots::File(embedded.ca_file.clone())
            }
            (None, _) => Roots::Platform,
        };
        let server_name = ServerName::try_from(host.clone()).map_err(|_| HubError::Host(host.clone()))?;
        Ok(Self {
            name: name.into(),
            host,
            port,
            server_name,
            tls: tls::client(&roots)?,
            credential,
            token_ttl: upstream.token_ttl,
            connect_time_out: upstream.connect_time_out,
        })
    }

    fn by_connection_string(parsed: &ConnectionString) -> (String, String, u16, Credential) {
        let host = parsed.gateway_host.as_ref().unwrap_or(&parsed.host).clone();
        let credential = Credential::SharedKey { signer: parsed.signer(), resource: parsed.resource() };
        (parsed.host.clone(), host, parsed.port.unwrap_or(AMQPS_PORT), credential)
    }

    /// The hub's name: `hostname` of our `open`, and what tokens are signed for.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Host and port, for people.
    pub(crate) fn address(&self) -> String {
        match self.host.parse::<IpAddr>() {
            Ok(IpAddr::V6(host)) => format!("[{host}]:{}", self.port),
            _ => format!("{}:{}", self.host, self.port),
        }
    }

    /// How the gateway's own connections prove themselves at SASL level.
    pub(crate) fn security(&self) -> ClientSecurity {
        match &self.credential {
            Credential::Plain { user, password } => {
                ClientSecurity::Plain { user: user.clone(), password: password.expose().to_owned() }
            }
            Credential::None | Credential::SharedKey { .. } => ClientSecurity::Anonymous,
        }
    }

    /// A fresh token, where the gateway proves itself by tokens.
    pub(crate) fn token(&self) -> Option<OwnToken> {
        let Credential::SharedKey { signer, resource } = &self.credential else { return None };
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let expiry = (now + self.token_ttl).as_secs();
        let text = signer.token(resource, expiry);
        // Ahead of time: a fifth of the life is left for a hub that is away.
        Some(OwnToken { name: resource.clone(), text, renew_in: self.token_ttl * 4 / 5 })
    }

    /// TCP and TLS to the hub.
    ///
    /// # Errors
    /// Which step failed, and how.
    pub(crate) async fn connect(&self) -> Result<TlsStream<TcpStream>, ConnectError> {
        let connecting = async {
            let tcp = TcpStream::connect((self.host.as_str(), self.port))
                .await
                .map_err(|error| ConnectError::Tcp { address: self.address(), error })?;
            // Frames are gathered by turns already; waiting for more would only add delay.
            tcp.set_nodelay(true).map_err(|error| ConnectError::Tcp { address: self.address(), error })?;
            TlsConnector::from(Arc::clone(&self.tls))
                .connect(self.server_name.clone(), tcp)
                .await
                .map_err(|error| ConnectError::Tls { address: self.address(), error })
        };
        let within = self.connect_time_out;
        let late = |_| ConnectError::TimeOut { address: self.address(), within };
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
