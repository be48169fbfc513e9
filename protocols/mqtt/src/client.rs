//! The client side of the wire, for simulated devices and tests: encoders for what a client sends and a decoder
//! for what a server answers. No machine: who uses it keeps its own packet identifiers and timers.
//!
//! Written without the codec, so that a test of the server against it compares two implementations.

mod decoder;

use std::time::Duration;

use bytes::{BufMut, BytesMut};

use crate::{
    alias::Alias,
    encode::{self, PublishLength, put_binary, put_variable},
    packet::{AckKind, OutgoingPublish, PacketId, QoS, Version, Will},
    properties::id,
    reason::{Misuse, PublishReply},
};

pub use decoder::{ConnAck, Decoder, ServerPacket};

/// What a CONNECT says.
#[derive(Debug, Clone)]
pub struct ConnectOptions<'a> {
    /// Protocol version.
    pub version: Version,
    /// Speak MQTT 3.1, protocol level 3, where the version is that of 3.1.1.
    pub is_3_1: bool,
    /// Client identifier; may be empty.
    pub client_id: &'a str,
    /// Clean Session or Clean Start.
    pub clean_start: bool,
    /// Keep alive in whole seconds, at most 65,535; zero is off.
    pub keep_alive: Duration,
    /// User name.
    pub username: Option<&'a str>,
    /// Password.
    pub password: Option<&'a [u8]>,
    /// Will.
    pub will: Option<&'a Will>,
    /// Session Expiry Interval in seconds (MQTT 5).
    pub session_expiry_seconds: u32,
    /// Receive Maximum (MQTT 5).
    pub receive_maximum: Option<u16>,
    /// Maximum Packet Size in bytes (MQTT 5).
    pub max_packet_bytes: Option<u32>,
    /// Topic Alias Maximum (MQTT 5).
    pub topic_alias_maximum: u16,
    /// Request Response Information (MQTT 5).
    pub request_response_information: bool,
    /// Request Problem Information (MQTT 5).
    pub request_problem_information: bool,
}

impl<'a> ConnectOptions<'a> {
    /// A clean start with a keep alive of one minute.
    pub fn new(version: Version, client_id: &'a str) -> Self {
        Self {
            version,
            is_3_1: false,
            client_id,
            clean_start: true,
            keep_alive: Duration::from_secs(60),
            username: None,
            password: None,
            will: None,
            session_expiry_seconds: 0,
            receive_maximum: None,
            max_packet_bytes: None,
            topic_alias_maximum: 0,
            request_response_information: false,
            request_problem_information: true,
        }
    }
}

/// Appends CONNECT.
///
/// # Errors
/// [`Misuse::Properties`] if a field is longer than 65,535 bytes.
pub fn put_connect(options: &ConnectOptions<'_>, out: &mut BytesMut) -> Result<(), Misuse> {
    let v5 = options.version == Version::V5;
    let mut body = BytesMut::new();
    body.extend_from_slice(match options.version {
        Version::V5 => b"\x00\x04MQTT\x05",
        Version::V311 if options.is_3_1 => b"\x00\x06MQIsdp\x03",
        Version::V311 => b"\x00\x04MQTT\x04",
    });
    let will = options.will.map_or(0, |will| 0x04 | (will.qos as u8) << 3 | u8::from(will.retain) << 5);
    body.put_u8(
        u8::from(options.username.is_some()) << 7
            | u8::from(options.password.is_some()) << 6
            | will
            | u8::from(options.clean_start) << 1,
    );
    body.put_u16(u16::try_from(options.keep_alive.as_secs()).map_err(|_| Misuse::Properties)?);
    if v5 {
        put_connect_properties(options, &mut body);
    }
    field(options.client_id.as_bytes(), &mut body)?;
    if let Some(will) = options.will {
        if v5 {
            put_variable(5 + encode::properties_length(&will.properties)?, &mut body);
            body.put_u8(id::WILL_DELAY);
            body.put_u32(u32::try_from(will.delay.as_secs()).unwrap_or(u32::MAX));
            encode::put_properties(&will.properties, &mut body);
        }
        field(will.topic.as_bytes(), &mut body)?;
        field(&will.payload, &mut body)?;
    }
    if let Some(username) = options.username {
        field(username.as_bytes(), &mut body)?;
    }
    if let Some(password) = options.password {
        field(password, &mut body)?;
    }
    put_packet(0x10, &body, out);
    Ok(())
}

fn put_connect_properties(options: &ConnectOptions<'_>, body: &mut BytesMut) {
    let mut block = BytesMut::new();
    if options.session_expiry_seconds > 0 {
        block.put_u8(id::SESSION_EXPIRY);
        block.put_u32(options.session_expiry_seconds);
    }
    if let Some(number) = options.receive_maximum {
        block.put_u8(id::RECEIVE_MAXIMUM);
        block.put_u16(number);
    }
    if let Some(bytes) = options.max_packet_bytes {
        block.put_u8(id::MAXIMUM_PACKET_SIZE);
        block.put_u32(bytes);
    }
    if options.topic_alias_maximum > 0 {
        block.put_u8(id::TOPIC_ALIAS_MAXIMUM);
        block.put_u16(options.topic_alias_maximum);
    }
    if options.request_response_information {
        block.extend_from_slice(&[id::REQUEST_RESPONSE_INFORMATION, 1]);
    }
    if !options.request_problem_information {
        block.extend_from_slice(&[id::REQUEST_PROBLEM_INFORMATION, 0]);
    }
    put_variable(block.len(), body);
    body.extend_from_slice(&block);
}

/// Appends SUBSCRIBE.
///
/// # Errors
/// [`Misuse::Properties`] if a filter is longer than 65,535 bytes.
pub fn put_subscribe(
    version: Version,
    packet_id: PacketId,
    filters: &[(&str, QoS)],
    out: &mut BytesMut,
) -> Result<(), Misuse> {
    let mut body = request(version, packet_id);
    for (filter, qos) in filters {
        field(filter.as_bytes(), &mut body)?;
        body.put_u8(*qos as u8);
    }
    put_packet(0x82, &body, out);
    Ok(())
}

/// Appends SUBSCRIBE of MQTT 5 with a subscription identifier below 128 and one filter.
///
/// # Errors
/// [`Misuse::Properties`] if the filter is longer than 65,535 bytes.
pub fn put_identified_subscribe(
    packet_id: PacketId,
    identifier: u8,
    filter: &str,
    qos: QoS,
    out: &mut BytesMut,
) -> Result<(), Misuse> {
    let mut body = BytesMut::new();
    body.put_u16(packet_id.value());
    body.extend_from_slice(&[2, id::SUBSCRIPTION_IDENTIFIER, identifier]);
    field(filter.as_bytes(), &mut body)?;
    body.put_u8(qos as u8);
    put_packet(0x82, &body, out);
    Ok(())
}

/// Appends UNSUBSCRIBE.
///
/// # Errors
/// [`Misuse::Properties`] if a filter is longer than 65,535 bytes.
pub fn put_unsubscribe(
    version: Version,
    packet_id: PacketId,
    filters: &[&str],
    out: &mut BytesMut,
) -> Result<(), Misuse> {
    let mut body = request(version, packet_id);
    for filter in filters {
        field(filter.as_bytes(), &mut body)?;
    }
    put_packet(0xA2, &body, out);
    Ok(())
}

/// Appends PUBLISH. The packet identifier is written for QoS 1 and 2.
///
/// # Errors
/// [`Misuse`] if the topic or the properties cannot be said on the wire.
pub fn put_publish(
    version: Version,
    packet_id: PacketId,
    publish: &OutgoingPublish<'_>,
    out: &mut BytesMut,
) -> Result<(), Misuse> {
    put(version, packet_id, publish, Alias::None, out)
}

/// Appends PUBLISH of MQTT 5 with a topic alias: with the topic's name, or instead of it.
///
/// # Errors
/// [`Misuse`] if the topic or the properties cannot be said on the wire.
pub fn put_aliased_publish(
    packet_id: PacketId,
    publish: &OutgoingPublish<'_>,
    alias: u16,
    with_name: bool,
    out: &mut BytesMut,
) -> Result<(), Misuse> {
    let alias = if with_name { Alias::New(alias) } else { Alias::Known(alias) };
    put(Version::V5, packet_id, publish, alias, out)
}

fn put(
    version: Version,
    packet_id: PacketId,
    publish: &OutgoingPublish<'_>,
    alias: Alias,
    out: &mut BytesMut,
) -> Result<(), Misuse> {
    let packet_id = (publish.qos != QoS::AtMostOnce).then_some(packet_id);
    let length = PublishLength::of(version, publish, alias)?;
    encode::put_publish(version, packet_id, publish, length, out);
    Ok(())
}

/// Appends PUBACK; in MQTT 3.1.1 the reason is not said.
pub fn put_puback(version: Version, packet_id: PacketId, reply: PublishReply, out: &mut BytesMut) {
    let [high, low] = packet_id.value().to_be_bytes();
    match (version, reply) {
        (Version::V311, _) | (_, PublishReply::Success) => out.extend_from_slice(&[0x40, 2, high, low]),
        (Version::V5, reply) => out.extend_from_slice(&[0x40, 3, high, low, reply.code()]),
    }
}

/// Appends PUBREL, which follows PUBREC.
pub fn put_pubrel(packet_id: PacketId, out: &mut BytesMut) {
    put_bare(AckKind::PubRel, packet_id, out);
}

/// Appends PUBREC, of which a server that grants no QoS 2 makes nothing.
pub fn put_pubrec(packet_id: PacketId, out: &mut BytesMut) {
    put_bare(AckKind::PubRec, packet_id, out);
}

fn put_bare(kind: AckKind, packet_id: PacketId, out: &mut BytesMut) {
    let [high, low] = packet_id.value().to_be_bytes();
    out.extend_from_slice(&[kind as u8, 2, high, low]);
}

/// Appends PINGREQ.
pub fn put_pingreq(out: &mut BytesMut) {
    out.extend_from_slice(&[0xC0, 0]);
}

/// Appends DISCONNECT: a normal one, or (MQTT 5) one that lets the will be published.
pub fn put_disconnect(version: Version, with_will: bool, out: &mut BytesMut) {
    match (version, with_will) {
        (Version::V5, true) => out.extend_from_slice(&[0xE0, 1, 0x04]),
        _ => out.extend_from_slice(&[0xE0, 0]),
    }
}

fn request(version: Version, packet_id: PacketId) -> BytesMut {
    let mut body = BytesMut::new();
    body.put_u16(packet_id.value());
    if version == Version::V5 {
        body.put_u8(0);
    }
    body
}

fn field(bytes: &[u8], out: &mut BytesMut) -> Result<(), Misuse> {
    if bytes.len() > usize::from(u16::MAX) {
        return Err(Misuse::Properties);
    }
    put_binary(bytes, out);
    Ok(())
}

fn put_packet(first: u8, body: &[u8], out: &mut BytesMut) {
    out.put_u8(first);
    put_variable(body.len(), out);
    out.extend_from_slice(body);
}
