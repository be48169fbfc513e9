//! What the packets say, in the words of the specification and without their bytes.
//!
//! Strings and payloads share the buffer they were read from.

use std::{fmt, num::NonZeroU16, time::Duration};

use bytes::Bytes;

use crate::text::Text;

/// The protocol version of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// MQTT 3.1.1, protocol level 4; also MQTT 3.1, level 3, which says the same with fewer words.
    V311,
    /// MQTT 5, protocol level 5.
    V5,
}

/// Quality of service (MQTT 5 4.3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum QoS {
    /// QoS 0: sent once, never acknowledged.
    #[default]
    AtMostOnce = 0,
    /// QoS 1: acknowledged by PUBACK.
    AtLeastOnce = 1,
    /// QoS 2: taken from clients, acknowledged by PUBREC and released by PUBREL. Toward them it is not granted.
    ExactlyOnce = 2,
}

impl QoS {
    /// The QoS of two bits; 3 is none (MQTT 5 3.3.1-4).
    pub(crate) fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            0 => Some(Self::AtMostOnce),
            1 => Some(Self::AtLeastOnce),
            2 => Some(Self::ExactlyOnce),
            _ => None,
        }
    }
}

/// Packet identifier, never zero (MQTT 5 2.2.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PacketId(NonZeroU16);

impl PacketId {
    /// The identifier with this number, `None` for zero.
    pub fn new(number: u16) -> Option<Self> {
        NonZeroU16::new(number).map(Self)
    }

    /// The number on the wire.
    pub fn value(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Debug for PacketId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PacketId({})", self.0)
    }
}

/// CONNECT, as the client sent it.
#[derive(Clone, PartialEq, Eq)]
pub struct Connect {
    /// Protocol version, good for the whole connection.
    pub version: Version,
    /// Protocol level as the client said it: 3, 4 or 5.
    pub level: u8,
    /// Client identifier; empty if the server must assign one (then give it to `accept`).
    pub client_id: Text,
    /// Clean Session (3.1.1) or Clean Start (5).
    pub clean_start: bool,
    /// Keep alive as the client asked for it; zero is off.
    pub keep_alive: Duration,
    /// User name.
    pub username: Option<Text>,
    /// Password: any bytes. Never in `Debug`.
    pub password: Option<Bytes>,
    /// The will to be published when the connection ends without a DISCONNECT.
    pub will: Option<Box<Will>>,
    /// Session Expiry Interval in seconds; `u32::MAX` is never. Zero in MQTT 3.1.1, where it is not said.
    pub session_expiry_seconds: u32,
    /// How many unacknowledged PUBLISH packets the client takes; 65,535 unless it said less.
    pub receive_maximum: u16,
    /// The largest packet that the client takes, in bytes.
    pub max_packet_bytes: Option<u32>,
    /// The highest topic alias that the client takes; the machine uses them.
    pub topic_alias_maximum: u16,
    /// Whether the client asks for Response Information in CONNACK (MQTT 5 3.1.2.11.6).
    pub request_response_information: bool,
    /// Whether the client takes reason strings in every packet that can have one (MQTT 5 3.1.2.11.7); the machine
    /// keeps to it.
    pub request_problem_information: bool,
    /// User properties in their order (MQTT 5).
    pub user_properties: Vec<(Text, Text)>,
}

impl fmt::Debug for Connect {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Connect")
            .field("version", &self.version)
            .field("client_id", &self.client_id)
            .field("clean_start", &self.clean_start)
            .field("keep_alive", &self.keep_alive)
            .field("has_username", &self.username.is_some())
            .field("has_password", &self.password.is_some())
            .field("will", &self.will)
            .field("session_expiry_seconds", &self.session_expiry_seconds)
            .finish_non_exhaustive()
    }
}

/// The will in CONNECT (MQTT 5 3.1.2.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Will {
    /// Topic name.
    pub topic: Text,
    /// Payload.
    pub payload: Bytes,
    /// Quality of service.
    pub qos: QoS,
    /// Retain flag.
    pub retain: bool,
    /// How long after the end of the connection it is published (MQTT 5).
    pub delay: Duration,
    /// Properties of the PUBLISH that it becomes (MQTT 5).
    pub properties: PublishProperties,
}

/// The properties of a PUBLISH (MQTT 5 3.3.2.3), and of a will.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PublishProperties {
    /// Whether the payload is said to be UTF-8 text. From a client it then is: the machine has looked.
    pub payload_is_utf8: Option<bool>,
    /// Message Expiry Interval.
    pub message_expiry_interval: Option<Duration>,
    /// Content type.
    pub content_type: Option<Text>,
    /// Response topic, a valid topic name.
    pub response_topic: Option<Text>,
    /// Correlation data.
    pub correlation_data: Option<Bytes>,
    /// User properties in their order; a name may come again.
    pub user_properties: Vec<(Text, Text)>,
    /// Toward the client: the identifiers of the subscriptions that the message is for. A client sends none.
    pub subscription_identifiers: Vec<u32>,
}

/// PUBLISH from the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// What to acknowledge with; `None` for QoS 0.
    pub token: Option<PublishToken>,
    /// Topic name: valid, not empty.
    pub topic: Text,
    /// Payload, a slice of the input.
    pub payload: Bytes,
    /// Quality of service.
    pub qos: QoS,
    /// The client says that it may have sent this message before.
    pub dup: bool,
    /// Retain flag.
    pub retain: bool,
    /// Properties (MQTT 5), `None` if there are none.
    pub properties: Option<Box<PublishProperties>>,
}

/// Names one unacknowledged PUBLISH of one connection; never used twice on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublishToken(u64);

impl PublishToken {
    /// The token with this number, as [`PublishToken::number`] gave it.
    pub fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// The number, for tables that hold tickets of several protocols.
    pub fn number(self) -> u64 {
        self.0
    }
}

/// SUBSCRIBE from the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribe {
    /// To be given to `suback`.
    pub packet_id: PacketId,
    /// Subscription identifier (MQTT 5): what PUBLISHes for these filters are to carry.
    pub identifier: Option<u32>,
    /// The filters in their order, at least one; SUBACK answers each.
    pub filters: Vec<SubscribeFilter>,
}

/// One filter of a SUBSCRIBE with its options (MQTT 5 3.8.3.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscribeFilter {
    /// Topic filter: valid.
    pub filter: Text,
    /// The QoS asked for.
    pub qos: QoS,
    /// Messages of the same connection shall not come back (MQTT 5).
    pub no_local: bool,
    /// The retain flag shall be kept as published (MQTT 5).
    pub retain_as_published: bool,
    /// When retained messages are sent (MQTT 5).
    pub retain_handling: RetainHandling,
}

/// When retained messages are sent to a new subscription (MQTT 5 3.8.3.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RetainHandling {
    /// With every SUBSCRIBE; the only way of MQTT 3.1.1.
    #[default]
    EverySubscribe,
    /// Only if the subscription is new.
    NewSubscription,
    /// Never.
    Never,
}

/// UNSUBSCRIBE from the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsubscribe {
    /// To be given to `unsuback`.
    pub packet_id: PacketId,
    /// The filters in their order, at least one, each valid.
    pub filters: Vec<Text>,
}

/// DISCONNECT from the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disconnect {
    /// Reason code; 0 in MQTT 3.1.1.
    pub reason: u8,
    /// A new Session Expiry Interval in seconds (MQTT 5).
    pub session_expiry_seconds: Option<u32>,
}

impl Disconnect {
    /// Whether the will is deleted: the client left normally (MQTT 5 3.14.4).
    pub fn deletes_will(&self) -> bool {
        self.reason == 0x00
    }
}

/// PUBLISH toward the client.
#[derive(Debug, Clone, Copy)]
pub struct OutgoingPublish<'a> {
    /// Topic name.
    pub topic: &'a str,
    /// Payload.
    pub payload: &'a [u8],
    /// QoS 0 or 1.
    pub qos: QoS,
    /// The message may have been sent to this client before.
    pub dup: bool,
    /// Retain flag.
    pub retain: bool,
    /// Properties; an MQTT 3.1.1 client gets the message without them.
    pub properties: Option<&'a PublishProperties>,
}

/// A packet from a client after CONNECT, guarded and decoded.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ClientPacket {
    Publish(IncomingPublish),
    Ack(Ack),
    Subscribe(Subscribe),
    Unsubscribe(Unsubscribe),
    PingReq,
    Disconnect(Disconnect),
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP: they differ in their type only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ack {
    pub(crate) kind: AckKind,
    pub(crate) packet_id: PacketId,
    /// Reason code; 0 in MQTT 3.1.1.
    pub(crate) reason: u8,
}

/// Which packet of an exchange (MQTT 5 4.3.2, 4.3.3), with its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[expect(clippy::enum_variant_names, reason = "the names of MQTT 5 2.1.2")]
pub(crate) enum AckKind {
    PubAck = 0x40,
    PubRec = 0x50,
    PubRel = 0x62,
    PubComp = 0x70,
}

/// A PUBLISH before the machine has given it a token.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct IncomingPublish {
    pub(crate) packet_id: Option<PacketId>,
    pub(crate) qos: QoS,
    /// Empty if only the alias says it.
    pub(crate) topic: Text,
    pub(crate) alias: Option<u16>,
    pub(crate) payload: Bytes,
    pub(crate) dup: bool,
    pub(crate) retain: bool,
    pub(crate) properties: Option<Box<PublishProperties>>,
}
