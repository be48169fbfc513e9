//! An MQTT device.

use std::io;
use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use fieldgate_mqtt::client::{self, ConnAck, ConnectOptions, Decoder, ServerPacket};
use fieldgate_mqtt::{OutgoingPublish, PacketId, PublishProperties, PublishReply, QoS, Version};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A connection, and which packet identifiers it has used.
pub(crate) struct Mqtt {
    pub(crate) stream: TcpStream,
    pub(crate) version: Version,
    decoder: Decoder,
    last_id: u16,
}

/// What a device is told of a publish.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// PUBACK with this reason code.
    PubAck(u8),
    /// DISCONNECT with this reason code, and the end.
    Disconnect(u8),
    /// The end.
    Closed,
}

impl Mqtt {
    /// A device that was let in.
    pub(crate) async fn connect(address: SocketAddr, version: Version, id: &str) -> Self {
        let (device, connack) = Self::ask(address, &ConnectOptions::new(version, id)).await;
        assert_eq!(connack.code, 0);
        device
    }

    /// A connection that has asked to be let in, and the answer.
    pub(crate) async fn ask(address: SocketAddr, options: &ConnectOptions<'_>) -> (Self, ConnAck) {
        let stream = TcpStream::connect(address).await.unwrap();
        let version = options.version;
        let mut device = Self { stream, version, decoder: Decoder::new(version), last_id: 0 };
        let mut out = BytesMut::new();
        client::put_connect(options, &mut out).unwrap();
        device.stream.write_all(&out).await.unwrap();
        match device.packet().await {
            Some(ServerPacket::ConnAck(connack)) => (device, connack),
            other => panic!("{other:?}"),
        }
    }

    /// The next packet; nothing when the gateway has closed the connection.
    pub(crate) async fn packet(&mut self) -> Option<ServerPacket> {
        self.try_packet().await.unwrap()
    }

    /// The same, where the connection may be reset.
    async fn try_packet(&mut self) -> io::Result<Option<ServerPacket>> {
        loop {
            if let Some(packet) = self.decoder.next_packet().unwrap() {
                return Ok(Some(packet));
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer).await? {
                0 => return Ok(None),
                bytes => self.decoder.push(&buffer[..bytes]),
            }
        }
    }

    fn next_id(&mut self) -> PacketId {
        self.last_id += 1;
        PacketId::new(self.last_id).unwrap()
    }

    /// Publishes, and does not wait.
    pub(crate) async fn send(&mut self, topic: &str, payload: &[u8], qos: QoS) -> PacketId {
        self.put(OutgoingPublish { topic, payload, qos, dup: false, retain: false, properties: None }).await
    }

    /// The same with QoS 1 and what MQTT 5 says besides.
    pub(crate) async fn say(&mut self, topic: &str, payload: &[u8], said: &PublishProperties) -> PacketId {
        let (qos, properties) = (QoS::AtLeastOnce, Some(said));
        self.put(OutgoingPublish { topic, payload, qos, dup: false, retain: false, properties }).await
    }

    async fn put(&mut self, publish: OutgoingPublish<'_>) -> PacketId {
        let packet_id = self.next_id();
        let mut out = BytesMut::new();
        client::put_publish(self.version, packet_id, &publish, &mut out).unwrap();
        self.stream.write_all(&out).await.unwrap();
        packet_id
    }

    /// Publishes an event of device `id` with QoS 1, and does not wait.
    pub(crate) async fn event(&mut self, id: &str, payload: &[u8]) -> PacketId {
        self.send(&format!("devices/{id}/messages/events"), payload, QoS::AtLeastOnce).await
    }

    /// What the device is told of the publish that it made with this identifier.
    pub(crate) async fn told(&mut self, of: PacketId) -> Told {
        self.try_told(of).await.unwrap()
    }

    /// The same, where the connection may be reset.
    pub(crate) async fn try_told(&mut self, of: PacketId) -> io::Result<Told> {
        Ok(match self.try_packet().await? {
            Some(ServerPacket::PubAck { packet_id, reason }) => {
                assert_eq!(packet_id, of);
                Told::PubAck(reason)
            }
            Some(ServerPacket::Disconnect { reason }) => {
                assert_eq!(self.try_packet().await?, None, "nothing comes after DISCONNECT");
                Told::Disconnect(reason)
            }
            None => Told::Closed,
            other => panic!("{other:?}"),
        })
    }

    /// PINGREQ and its answer: whatever the gateway had said before would come first.
    pub(crate) async fn ping(&mut self) {
        let mut out = BytesMut::new();
        client::put_pingreq(&mut out);
        self.stream.write_all(&out).await.unwrap();
        assert_eq!(self.packet().await, Some(ServerPacket::PingResp));
    }

    /// Subscribes; gives the code of SUBACK.
    pub(crate) async fn subscribe(&mut self, filter: &str) -> u8 {
        let packet_id = self.next_id();
        let mut out = BytesMut::new();
        client::put_subscribe(self.version, packet_id, &[(filter, QoS::AtLeastOnce)], &mut out).unwrap();
        self.stream.write_all(&out).await.unwrap();
        match self.packet().await {
            Some(ServerPacket::SubAck { packet_id: of, codes }) => {
                assert_eq!((of, codes.len()), (packet_id, 1));
                codes[0]
            }
            other => panic!("{other:?}"),
        }
    }

    /// Takes a subscription back; gives the code of UNSUBACK, of which there is one in MQTT 5.
    pub(crate) async fn unsubscribe(&mut self, filter: &str) -> u8 {
        let packet_id = self.next_id();
        let mut out = BytesMut::new();
        client::put_unsubscribe(self.version, packet_id, &[filter], &mut out).unwrap();
        self.stream.write_all(&out).await.unwrap();
        match self.packet().await {
            Some(ServerPacket::UnsubAck { packet_id: of, codes }) => {
                assert_eq!((of, codes.len()), (packet_id, 1));
                codes[0]
            }
            other => panic!("{other:?}"),
        }
    }

    /// PUBREL.
    pub(crate) async fn release(&mut self, packet_id: PacketId) {
        let mut out = BytesMut::new();
        client::put_pubrel(packet_id, &mut out);
        self.stream.write_all(&out).await.unwrap();
    }

    /// The next packet, which is a message.
    pub(crate) async fn command(&mut self) -> (PacketId, String, Bytes) {
        match self.packet().await {
            Some(ServerPacket::Publish { packet_id: Some(packet_id), topic, payload, .. }) => {
                (packet_id, topic.as_str().to_owned(), payload)
            }
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn acknowledge(&mut self, packet_id: PacketId, reply: PublishReply) {
        let mut out = BytesMut::new();
        client::put_puback(self.version, packet_id, reply, &mut out);
        self.stream.write_all(&out).await.unwrap();
    }

    /// DISCONNECT, without the will.
    pub(crate) async fn leave(mut self) {
        let mut out = BytesMut::new();
        client::put_disconnect(self.version, false, &mut out);
        self.stream.write_all(&out).await.unwrap();
        assert_eq!(self.packet().await, None);
    }
}
