//! One network connection of a client, which may vanish; what goes over it is in the log.

use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use fieldgate_mqtt::Version;
use fieldgate_mqtt::client::{self, ConnectOptions, Decoder, ServerPacket};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::World;

pub(super) struct Client {
    stream: TcpStream,
    decoder: Decoder,
    world: Rc<World>,
    name: String,
}

/// What was heard in some time.
#[derive(Debug)]
pub(super) enum Heard {
    Packet(Box<ServerPacket>),
    Silence,
    End,
}

impl Client {
    /// Connects, and says CONNECT.
    pub(super) async fn open(world: &Rc<World>, name: String, options: &ConnectOptions<'_>) -> Self {
        let stream = TcpStream::connect(world.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut client =
            Self { stream, decoder: Decoder::new(options.version), world: Rc::clone(world), name };
        let mut out = BytesMut::new();
        client::put_connect(options, &mut out).unwrap();
        let ConnectOptions { version, clean_start, session_expiry_seconds, .. } = options;
        client.say(&format!("> CONNECT {version:?} clean {clean_start} expiry {session_expiry_seconds}"));
        client.write(&out).await;
        client
    }

    pub(super) fn say(&self, what: &str) {
        self.world.say(&self.name, what);
    }

    /// Writes; a connection that is over is noticed when it is read.
    pub(super) async fn write(&mut self, bytes: &[u8]) {
        if let Err(error) = self.stream.write_all(bytes).await {
            self.say(&format!("! {error}"));
        }
    }

    /// Sends nothing more.
    pub(super) async fn end_output(&mut self) {
        self.say("> the end");
        // An error means that the connection is over, which is noticed when it is read.
        let _ = self.stream.shutdown().await;
    }

    /// The next packet; none when the connection is over.
    pub(super) async fn packet(&mut self) -> Option<ServerPacket> {
        loop {
            match self.decoder.next_packet() {
                Ok(Some(packet)) => {
                    self.say(&format!("< {packet:?}"));
                    return Some(packet);
                }
                Ok(None) => {}
                Err(violation) => self.world.fail(&self.name, &format!("the gateway's packet: {violation}")),
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer).await {
                Ok(0) | Err(_) => {
                    self.say("< the end");
                    return None;
                }
                Ok(bytes) => self.decoder.push(&buffer[..bytes]),
            }
        }
    }

    pub(super) async fn packet_within(&mut self, time: Duration) -> Heard {
        match tokio::time::timeout(time, self.packet()).await {
            Ok(Some(packet)) => Heard::Packet(Box::new(packet)),
            Ok(None) => Heard::End,
            Err(_) => Heard::Silence,
        }
    }

    /// Reads the rest: the last packet before the end.
    pub(super) async fn last_words(mut self) -> Option<ServerPacket> {
        let mut last = None;
        while let Some(packet) = self.packet().await {
            last = Some(packet);
        }
        last
    }
}

/// DISCONNECT of MQTT 5 that ends the session (3.14.2.2.2): Session Expiry Interval 0.
pub(super) const GOODBYE_FOR_EVER: &[u8] = &[0xE0, 7, 0, 5, 0x11, 0, 0, 0, 0];

pub(super) fn goodbye(version: Version) -> BytesMut {
    let mut out = BytesMut::new();
    client::put_disconnect(version, false, &mut out);
    out
}
