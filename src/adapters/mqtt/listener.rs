//! A listener as the tasks of its devices see it, and the way from its sockets to MQTT.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use crate::config::MqttListener;
use crate::devices::Certificate;
use crate::shutdown::Shutdown;
use crate::telemetry::{Protocol, emit};
use crate::tls::{Acceptor, DeviceTurnedAway, Stream};

/// A place where MQTT devices connect.
#[derive(Debug)]
pub(crate) struct Listener {
    name: Arc<str>,
    acceptor: Acceptor,
    /// A device is who it says it is.
    believes: bool,
}

/// Who has connected, and how.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) peer: SocketAddr,
    /// What it has shown in TLS.
    pub(super) certificate: Option<Box<Certificate>>,
    /// It is taken at its word, if it shows nothing.
    pub(super) believes: bool,
    /// When it connected.
    pub(super) since: Instant,
}

impl Listener {
    /// The listener that is configured so.
    pub(crate) fn new(config: &MqttListener, acceptor: Acceptor) -> Self {
        Self { name: Arc::clone(&config.name), acceptor, believes: config.allow_anonymous }
    }

    /// Receives a device; nothing if it does not get as far as MQTT.
    pub(super) async fn welcome(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        within: Duration,
        shutdown: &Shutdown,
    ) -> Option<(Stream, Guest)> {
        let since = Instant::now();
        let accepted = tokio::select! {
            accepted = self.acceptor.accept(stream, within) => accepted,
            () = shutdown.draining() => return None,
        };
        match accepted {
            Ok(stream) => {
                let certificate = Certificate::of_peer(&stream).map(Box::new);
                Some((stream, Guest { peer, certificate, believes: self.believes, since }))
            }
            Err(error) => {
                let (protocol, listener) = (Protocol::Mqtt, &*self.name);
                emit(DeviceTurnedAway { protocol, peer, listener, error: &error });
                None
            }
        }
    }
}
