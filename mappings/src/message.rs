//! The one message that every adapter makes and every protocol can be made from.
//!
//! The model speaks AMQP 1.0 (part 3.2, the bare message and its annotations): it is the richest of the four, and the
//! hub speaks it. Native AMQP links never pass through here; their frames are routed as they came.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;

use crate::address::{Address, DeviceId};
use crate::delivery::{Delivery, NORMAL_PRIORITY};

/// A message between one device and the hub.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// The device it is from (uplink) or for (downlink).
    pub device: DeviceId,
    /// Which way it travels.
    pub direction: Direction,
    /// The hub's node: where it goes (uplink), or where it came from (downlink).
    pub address: Address,
    /// AMQP's standard properties (3.2.4).
    pub properties: Properties,
    /// What the application says about the message (AMQP 1.0 3.2.5); each name at most once.
    pub application_properties: Vec<(ByteString, Value)>,
    /// Message annotations (AMQP 1.0 3.2.3), keyed by symbol; each at most once.
    pub annotations: Vec<(ByteString, Value)>,
    /// How long the message is worth keeping (AMQP 1.0 3.2.1); milliseconds on the wire.
    pub ttl: Option<Duration>,
    /// Whether the hub must not lose it in a restart (AMQP 1.0 3.2.1).
    pub durable: bool,
    /// The payload, untouched.
    pub body: Bytes,
    /// How its rule has it delivered; absent where the rule does not say, and for commands.
    pub delivery: Option<Arc<Delivery>>,
}

impl Message {
    /// A message without properties.
    pub fn new(device: DeviceId, direction: Direction, address: Address, body: Bytes) -> Self {
        Self {
            device,
            direction,
            address,
            properties: Properties::default(),
            application_properties: Vec::new(),
            annotations: Vec::new(),
            ttl: None,
            durable: false,
            body,
            delivery: None,
        }
    }

    /// How urgent it is (AMQP 1.0 3.2.1).
    pub fn priority(&self) -> u8 {
        self.delivery.as_ref().map_or(NORMAL_PRIORITY, |delivery| delivery.priority)
    }

    /// The value of an application property.
    pub fn application_property(&self, name: &str) -> Option<&Value> {
        self.application_properties.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    /// The value of a message annotation.
    pub fn annotation(&self, name: &str) -> Option<&Value> {
        self.annotations.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }
}

/// Which way a message travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the device to the hub.
    Uplink,
    /// From the hub to the device.
    Downlink,
}

/// AMQP's standard properties (3.2.4), by their standard names.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Properties {
    /// The sender's own name for the message.
    pub message_id: Option<MessageId>,
    /// The user on whose behalf it was made. A rule never sets it.
    pub user_id: Option<Bytes>,
    /// The node that the message is for. A rule never sets it.
    pub to: Option<ByteString>,
    /// What it is about.
    pub subject: Option<ByteString>,
    /// Where answers go.
    pub reply_to: Option<ByteString>,
    /// The message that this one answers or belongs to.
    pub correlation_id: Option<MessageId>,
    /// The MIME type of the body.
    pub content_type: Option<ByteString>,
    /// What was done to the body, as in HTTP.
    pub content_encoding: Option<ByteString>,
    /// When the message is worth nothing any more.
    pub absolute_expiry_time: Option<Timestamp>,
    /// When the message was made.
    pub creation_time: Option<Timestamp>,
}

/// A message's or a conversation's name: one of the four types that AMQP 1.0 3.2.11 to 3.2.14 allow.
///
/// The type is part of the name; whoever answers must keep it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum MessageId {
    /// A number.
    Ulong(u64),
    /// RFC 4122, in network order.
    Uuid([u8; 16]),
    /// Octets.
    Binary(Bytes),
    /// Text.
    String(ByteString),
}

/// Milliseconds since 1970-01-01T00:00:00Z, leap seconds not counted (AMQP 1.0 1.6.17).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub i64);

/// A typed value of a property or an annotation: AMQP's primitive types that occur there.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// No value.
    Null,
    /// True or false.
    Bool(bool),
    /// 8 bits, unsigned.
    Ubyte(u8),
    /// 16 bits, unsigned.
    Ushort(u16),
    /// 32 bits, unsigned.
    Uint(u32),
    /// 64 bits, unsigned.
    Ulong(u64),
    /// 8 bits, signed.
    Byte(i8),
    /// 16 bits, signed.
    Short(i16),
    /// 32 bits, signed.
    Int(i32),
    /// 64 bits, signed.
    Long(i64),
    /// IEEE 754 binary32.
    Float(f32),
    /// IEEE 754 binary64.
    Double(f64),
    /// One Unicode character.
    Char(char),
    /// A point in time.
    Timestamp(Timestamp),
    /// RFC 4122, in network order.
    Uuid([u8; 16]),
    /// Octets.
    Binary(Bytes),
    /// Text.
    String(ByteString),
    /// An ASCII name from a constrained domain.
    Symbol(ByteString),
}

impl Value {
    /// The text of a string or symbol.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) | Self::Symbol(text) => Some(text),
            _ => None,
        }
    }
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Self::String(ByteString::from_static(text))
    }
}

impl From<ByteString> for Value {
    fn from(text: ByteString) -> Self {
        Self::String(text)
    }
}
