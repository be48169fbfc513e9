//! One of the addresses of a hub, and the way there: a proxy's tunnel, TLS, a WebSocket, each where it is configured.

use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::proxy::{self, ProxyError};
use super::target::HubError;
use crate::config::{HostPort, Proxy, Transport};
use crate::tls::{self, Follow, Live, Stream, WebSocket, WebSocketError};

/// One of the addresses of a hub.
pub(super) struct Endpoint {
    at: HostPort,
    proxy: Option<Arc<Proxy>>,
    /// Absent: plain TCP.
    tls: Option<(Arc<Live<ClientConfig>>, ServerName<'static>)>,
    transport: Transport,
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
    /// The proxy made no tunnel.
    #[error("no tunnel to {address} through the proxy {proxy}: {error}")]
    Proxy {
        /// Host and port of the hub.
        address: String,
        /// Those of the proxy.
        proxy: String,
        /// What it said.
        error: ProxyError,
    },
    /// TLS failed: certificate, name or protocol.
    #[error("TLS with {address} failed: {}", tls::handshake_in_words(.error))]
    Tls {
        /// Host and port.
        address: String,
        /// What rustls said.
        error: std::io::Error,
    },
    /// It is no WebSocket.
    #[error("no WebSocket at {address}{path}: {error}{}", hint(.error))]
    WebSocket {
        /// Host and port.
        address: String,
        /// What was asked for.
        path: Arc<str>,
        /// What the hub said.
        error: WebSocketError,
    },
    /// It took too long.
    #[error("no answer from {address}{} within {} s", through(.proxy.as_deref()), within.as_secs())]
    TimeOut {
        /// Host and port.
        address: String,
        /// The proxy on the way.
        proxy: Option<String>,
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

fn through(proxy: Option<&str>) -> String {
    proxy.map(|proxy| format!(" through the proxy {proxy}")).unwrap_or_default()
}

/// What would be right, where the answer itself does not say it.
fn hint(error: &WebSocketError) -> &'static str {
    match error {
        WebSocketError::Refused(_) => {
            "; is the path right (`websocket_path`), and does it take AMQP over WebSocket?"
        }
        WebSocketError::Stream(_) => "",
    }
}

impl Endpoint {
    /// # Errors
    /// When no certificate can be for its host.
    pub(super) fn new(
        place: &str,
        at: HostPort,
        tls: Option<Arc<Live<ClientConfig>>>,
        transport: Transport,
        proxy: Option<&Arc<Proxy>>,
    ) -> Result<Self, HubError> {
        let tls = match tls {
            None => None,
            Some(config) => {
                let name = ServerName::try_from(at.host.clone())
                    .map_err(|_| HubError::Host { place: place.into(), host: at.host.clone() })?;
                Some((config, name))
            }
        };
        let proxy = proxy.filter(|proxy| proxy.is_for(&at)).cloned();
        Ok(Self { at, proxy, tls, transport })
    }

    pub(super) fn at(&self) -> &HostPort {
        &self.at
    }

    /// What follows its files.
    pub(super) fn files(&self) -> Option<Arc<dyn Follow>> {
        self.tls.as_ref().map(|(live, _)| Arc::<Live<ClientConfig>>::clone(live) as _)
    }

    pub(super) async fn connect(&self, within: Duration) -> Result<Stream, ConnectError> {
        tokio::time::timeout(within, self.reach()).await.map_err(|_| ConnectError::TimeOut {
            address: self.at.to_string(),
            proxy: self.proxy.as_ref().map(|proxy| proxy.at.to_string()),
            within,
        })?
    }

    async fn reach(&self) -> Result<Stream, ConnectError> {
        let address = || self.at.to_string();
        let tcp = match &self.proxy {
            None => tcp(&self.at).await.map_err(|error| ConnectError::Tcp { address: address(), error })?,
            Some(through) => {
                let failed =
                    |error| ConnectError::Proxy { address: address(), proxy: through.at.to_string(), error };
                let stream = tcp(&through.at).await.map_err(|error| failed(ProxyError::Away(error)))?;
                proxy::tunnel(stream, through, &self.at).await.map_err(failed)?
            }
        };
        let stream = match &self.tls {
            None => Stream::from(tcp),
            Some((live, name)) => {
                let connector = TlsConnector::from(live.current());
                let stream = connector.connect(name.clone(), tcp).await;
                stream.map_err(|error| ConnectError::Tls { address: address(), error })?.into()
            }
        };
        let Transport::WebSocket { path, subprotocol } = &self.transport else { return Ok(stream) };
        let failed = |error| ConnectError::WebSocket { address: address(), path: Arc::clone(path), error };
        Ok(WebSocket::connect(stream, &self.authority(), path, subprotocol).await.map_err(failed)?.into())
    }

    /// Host and port as a URL has them: without the port that it would have anyway (RFC 9110 4.2).
    fn authority(&self) -> String {
        let usual = if self.tls.is_some() { 443 } else { 80 };
        let full = self.at.to_string();
        match full.strip_suffix(&format!(":{usual}")) {
            Some(host) if self.at.port == usual => host.to_owned(),
            _ => full,
        }
    }
}

async fn tcp(at: &HostPort) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect((at.host.as_str(), at.port)).await?;
    // Frames are gathered by turns already; waiting for more would only add delay.
    stream.set_nodelay(true)?;
    Ok(stream)
}
