//! The server's end of a listener: from the accepted socket to the stream that AMQP or MQTT is spoken on.
//!
//! One port may take several ways to come: the first bytes tell TLS from the protocol, and the protocol from a
//! WebSocket's request.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fieldgate_websocket::server::{AMQP as AMQP_SERVICE, MQTT as MQTT_SERVICE, Service};
use rustls::ServerConfig;
use thiserror::Error;
use tokio::io::AsyncBufReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::live::{Follow, Live};
use super::{Stream, TlsError, WebSocket, listener, websocket};
use crate::config::{Listener, MqttListener, SslProfile};

/// The server's end of a listener: plain, TLS, or whichever the device begins with.
#[derive(Clone)]
pub(crate) struct Acceptor {
    tls: Option<Tls>,
    /// A device that does not begin with TLS is not heard.
    required: bool,
    /// A WebSocket with this in it is taken as well.
    websocket: Option<&'static Service>,
}

#[derive(Clone)]
enum Tls {
    Fixed(Arc<ServerConfig>),
    Live(Arc<Live<ServerConfig>>),
}

/// A device that did not get as far as its protocol.
#[derive(Debug, Error)]
pub(crate) enum AcceptError {
    /// It did not get through TLS, or went before it had said anything.
    #[error("{0}")]
    Tls(io::Error),
    /// It did not say anything, or not enough.
    #[error("it took too long")]
    TimeOut,
    /// It asked for something else than a WebSocket with the protocol.
    #[error("no WebSocket: {0}")]
    WebSocket(#[from] websocket::AcceptError),
}

/// The first byte of a TLS connection: a handshake record (RFC 8446 5.1).
const HANDSHAKE: u8 = 22;
/// The first byte of an AMQP connection (AMQP 1.0 2.2).
const AMQP: u8 = b'A';

impl Tls {
    /// What a listener's profile says, as its files are now.
    fn of(name: &str, profile: &Arc<SslProfile>) -> Result<Self, TlsError> {
        let place = format!("listener `{name}`, ssl_profile `{}`", profile.name);
        let make = Arc::clone(profile);
        Ok(Self::Live(Live::new(place, profile.files(), move || listener(&make))?))
    }
}

impl Acceptor {
    /// What the listener is configured to be.
    ///
    /// # Errors
    /// When its certificates or key cannot be used.
    pub(crate) fn new(config: &Listener) -> Result<Self, TlsError> {
        Ok(Self {
            tls: config.tls.as_ref().map(|profile| Tls::of(&config.name, profile)).transpose()?,
            required: config.require_ssl,
            websocket: config.websocket.then_some(&AMQP_SERVICE),
        })
    }

    /// What a listener for MQTT devices is configured to be.
    ///
    /// # Errors
    /// As [`Acceptor::new`].
    pub(crate) fn mqtt(config: &MqttListener) -> Result<Self, TlsError> {
        Ok(Self {
            tls: config.tls.as_ref().map(|profile| Tls::of(&config.name, profile)).transpose()?,
            required: config.require_ssl,
            websocket: config.websocket.then_some(&MQTT_SERVICE),
        })
    }

    /// The embedded hub's: TLS, AMQP directly or in a WebSocket.
    pub(crate) fn hub(tls: Arc<ServerConfig>) -> Self {
        Self { tls: Some(Tls::Fixed(tls)), required: true, websocket: Some(&AMQP_SERVICE) }
    }

    /// What follows its files.
    pub(crate) fn files(&self) -> Option<Arc<dyn Follow>> {
        match &self.tls {
            Some(Tls::Live(live)) => Some(Arc::<Live<ServerConfig>>::clone(live)),
            Some(Tls::Fixed(_)) | None => None,
        }
    }

    /// The device's connection, ready for its protocol.
    ///
    /// # Errors
    /// When it does not get that far, or not within this time.
    pub(crate) async fn accept(&self, stream: TcpStream, within: Duration) -> Result<Stream, AcceptError> {
        let since = Instant::now();
        let ready = async {
            let mut stream = self.secure(stream).await?;
            let asked = match self.websocket {
                Some(service) if is_request(first_byte(&mut stream).await?) => Some(service),
                _ => None,
            };
            Ok::<_, io::Error>((stream, asked))
        };
        let ready = tokio::time::timeout(within, ready).await.map_err(|_| AcceptError::TimeOut)?;
        let (stream, asked) = ready.map_err(AcceptError::Tls)?;
        let Some(service) = asked else { return Ok(stream) };
        let left = within.saturating_sub(since.elapsed());
        Ok(WebSocket::accept(stream, service, left).await?.into())
    }

    async fn secure(&self, stream: TcpStream) -> io::Result<Stream> {
        let tls = match &self.tls {
            None => return Ok(stream.into()),
            Some(Tls::Fixed(tls)) => Arc::clone(tls),
            Some(Tls::Live(live)) => live.current(),
        };
        if !self.required {
            let mut first = [0];
            // Nothing at all is the end of the connection, which whoever reads it will see.
            if stream.peek(&mut first).await? == 0 || first != [HANDSHAKE] {
                return Ok(stream.into());
            }
        }
        Ok(TlsAcceptor::from(tls).accept(stream).await?.into())
    }
}

/// The first byte, which stays unread; nothing at the end.
async fn first_byte(stream: &mut Stream) -> io::Result<Option<u8>> {
    let mut first = [0];
    match stream {
        Stream::Plain(stream) => Ok((stream.peek(&mut first).await? > 0).then_some(first[0])),
        Stream::Tls(stream) => Ok(stream.fill_buf().await?.first().copied()),
        // There is none yet.
        Stream::WebSocket(_) => Ok(None),
    }
}

/// Whether it is an HTTP method that begins so. What is neither that nor AMQP is told so in AMQP.
fn is_request(first: Option<u8>) -> bool {
    first.is_some_and(|first| first.is_ascii_uppercase() && first != AMQP)
}

impl fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acceptor")
            .field("tls", &self.tls.is_some())
            .field("required", &self.required)
            .field("websocket", &self.websocket.map(|service| service.name))
            .finish()
    }
}
