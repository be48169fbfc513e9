//! The client side of the wire, for simulated devices and tests: encoders for what a client sends and a decoder
//! for what a server answers. No machine: who uses it keeps its own packet identifiers and timers.
//!
//! Written without the codec, so that a test of the server against it compares two implementations.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    encode::{self, PublishLength, put_binary, put_variable},
    packet::{OutgoingPublish, PacketId, PublishProperties, QoS, Version, Will},
    properties::{Properties, Property, Scope, id},
    reason::{Misuse, PublishReply, Violation},
    text::Text,
    wire::Reader,
};

/// What a CONNECT says.
#[derive(Debug, Clone)]
pub struct ConnectOptions<'a> {
    /// Protocol version.
    pub version: Version,
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
}

impl<'a> ConnectOptions<'a> {
    /// A clean start with a keep alive of one minute.
    pub fn new(version: Version, client_id: &'a str) -> Self {
        Self {
            version,
            client_id,
            clean_start: true,
            keep_alive: Duration::from_secs(60),
            username: None,
            password: None,
            will: None,
            session_expiry_seconds: 0,
            receive_maximum: None,
            max_packet_bytes: None,
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
    body.extend_from_slice(b"\x00\x04MQTT");
    body.put_u8(if v5 { 5 } else { 4 });
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

/// Appends PUBLISH. The packet identifier is written for QoS 1 only.
///
/// # Errors
/// [`Misuse`] if the topic or the properties cannot be said on the wire, or for QoS 2.
pub fn put_publish(
    version: Version,
    packet_id: PacketId,
    publish: &OutgoingPublish<'_>,
    out: &mut BytesMut,
) -> Result<(), Misuse> {
    let packet_id = match publish.qos {
        QoS::AtMostOnce => None,
        QoS::AtLeastOnce => Some(packet_id),
        QoS::ExactlyOnce => return Err(Misuse::QosNotSupported),
    };
    let length = PublishLength::of(version, publish)?;
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

/// A packet from a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerPacket {
    /// CONNACK.
    ConnAck(ConnAck),
    /// A message.
    Publish {
        /// Packet identifier of QoS 1 and 2.
        packet_id: Option<PacketId>,
        /// Topic name.
        topic: Text,
        /// Payload.
        payload: Bytes,
        /// Quality of service.
        qos: QoS,
        /// It may have been sent before.
        dup: bool,
        /// Retain flag.
        retain: bool,
        /// Properties (MQTT 5).
        properties: PublishProperties,
    },
    /// PUBACK.
    PubAck {
        /// Of which PUBLISH.
        packet_id: PacketId,
        /// Reason code; 0 in MQTT 3.1.1.
        reason: u8,
    },
    /// SUBACK.
    SubAck {
        /// Of which SUBSCRIBE.
        packet_id: PacketId,
        /// One code for each filter.
        codes: Vec<u8>,
    },
    /// UNSUBACK.
    UnsubAck {
        /// Of which UNSUBSCRIBE.
        packet_id: PacketId,
        /// One code for each filter; none in MQTT 3.1.1.
        codes: Vec<u8>,
    },
    /// PINGRESP.
    PingResp,
    /// DISCONNECT (MQTT 5).
    Disconnect {
        /// Reason code.
        reason: u8,
    },
}

/// CONNACK, with what a client has to keep to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnAck {
    /// The state of an earlier connection goes on.
    pub session_present: bool,
    /// 0 or why not.
    pub code: u8,
    /// The client identifier that the server chose.
    pub assigned_client_id: Option<Text>,
    /// Server Keep Alive: counts instead of the client's own.
    pub keep_alive: Option<Duration>,
    /// Receive Maximum; `None` is 65,535.
    pub receive_maximum: Option<u16>,
    /// Maximum Packet Size in bytes.
    pub max_packet_bytes: Option<u32>,
    /// Session Expiry Interval in seconds, if the server changed it.
    pub session_expiry_seconds: Option<u32>,
    /// Maximum QoS.
    pub maximum_qos: QoS,
}

/// Cuts what a server sent into packets.
#[derive(Debug)]
pub struct Decoder {
    version: Version,
    input: BytesMut,
}

/// More properties than any server of ours sends.
const MAX_PROPERTIES: usize = 256;

impl Decoder {
    /// A decoder for one connection.
    pub fn new(version: Version) -> Self {
        Self { version, input: BytesMut::new() }
    }

    /// Adds what was read.
    pub fn push(&mut self, input: &[u8]) {
        self.input.extend_from_slice(input);
    }

    /// The next complete packet, `None` if there is none yet. Nothing can be read after an error.
    ///
    /// # Errors
    /// [`Violation`] if the server did not keep to the specification.
    pub fn next_packet(&mut self) -> Result<Option<ServerPacket>, Violation> {
        let Some((header, length)) = self.frame()? else { return Ok(None) };
        let packet = self.input.split_to(length).freeze();
        let mut reader = Reader::new(&packet[header..]);
        let decoded = match packet[0] {
            0x20 => self.connack(&packet, &mut reader)?,
            0x40 => {
                let packet_id = packet_id(&mut reader)?;
                let reason = if reader.is_empty() { 0 } else { reader.u8()? };
                self.skip_properties(&mut reader, Scope::PubAck)?;
                ServerPacket::PubAck { packet_id, reason }
            }
            0x90 | 0xB0 => {
                let packet_id = packet_id(&mut reader)?;
                let scope = if packet[0] == 0x90 { Scope::SubAck } else { Scope::UnsubAck };
                self.skip_properties(&mut reader, scope)?;
                let codes = reader.clone().rest().to_vec();
                reader.take(codes.len())?;
                match scope {
                    Scope::SubAck => ServerPacket::SubAck { packet_id, codes },
                    _ => ServerPacket::UnsubAck { packet_id, codes },
                }
            }
            0xD0 => ServerPacket::PingResp,
            0xE0 if self.version == Version::V5 => {
                let reason = if reader.is_empty() { 0 } else { reader.u8()? };
                self.skip_properties(&mut reader, Scope::Disconnect)?;
                ServerPacket::Disconnect { reason }
            }
            first if first >> 4 == 3 => return self.publish(first, &packet, reader).map(Some),
            _ => return Err(Violation::Protocol("a packet that no server sends")),
        };
        if reader.is_empty() { Ok(Some(decoded)) } else { Err(Violation::Malformed("bytes after the end")) }
    }

    /// Lengths of the fixed header and of the packet, if all of it is there.
    fn frame(&self) -> Result<Option<(usize, usize)>, Violation> {
        let end = self.input.iter().skip(1).take(4).position(|byte| byte & 0x80 == 0);
        let Some(end) = end else {
            return if self.input.len() < 5 {
                Ok(None)
            } else {
                Err(Violation::Malformed("remaining length"))
            };
        };
        let header = end + 2;
        let length = header + Reader::new(&self.input[1..header]).variable()?;
        Ok((self.input.len() >= length).then_some((header, length)))
    }

    fn skip_properties(&self, reader: &mut Reader<'_>, scope: Scope) -> Result<(), Violation> {
        if self.version == Version::V5 && !reader.is_empty() {
            Properties::skip(reader, scope, MAX_PROPERTIES)?;
        }
        Ok(())
    }

    fn connack(&self, packet: &Bytes, reader: &mut Reader<'_>) -> Result<ServerPacket, Violation> {
        let flags = reader.u8()?;
        if flags > 1 {
            return Err(Violation::Malformed("reserved flags of CONNACK"));
        }
        let mut connack = ConnAck {
            session_present: flags == 1,
            code: reader.u8()?,
            maximum_qos: QoS::ExactlyOnce,
            ..ConnAck::default()
        };
        if self.version == Version::V5 && !reader.is_empty() {
            let mut properties = Properties::read(reader, Scope::ConnAck, MAX_PROPERTIES)?;
            while let Some(property) = properties.next()? {
                match property {
                    Property::AssignedClientIdentifier(text) => {
                        connack.assigned_client_id = Some(shared(packet, text));
                    }
                    Property::ServerKeepAlive(seconds) => {
                        connack.keep_alive = Some(Duration::from_secs(seconds.into()));
                    }
                    Property::ReceiveMaximum(number) => connack.receive_maximum = Some(number),
                    Property::MaximumPacketSize(bytes) => connack.max_packet_bytes = Some(bytes),
                    Property::SessionExpiry(seconds) => connack.session_expiry_seconds = Some(seconds),
                    Property::MaximumQoS(one) => {
                        connack.maximum_qos = if one { QoS::AtLeastOnce } else { QoS::AtMostOnce };
                    }
                    _ => {}
                }
            }
        }
        Ok(ServerPacket::ConnAck(connack))
    }

    fn publish(&self, first: u8, packet: &Bytes, mut reader: Reader<'_>) -> Result<ServerPacket, Violation> {
        let qos = QoS::from_bits((first >> 1) & 3).ok_or(Violation::Malformed("quality of service 3"))?;
        let topic = shared(packet, reader.text()?);
        let packet_id = match qos {
            QoS::AtMostOnce => None,
            _ => Some(packet_id(&mut reader)?),
        };
        let mut into = PublishProperties::default();
        if self.version == Version::V5 {
            let mut properties = Properties::read(&mut reader, Scope::Publish, MAX_PROPERTIES)?;
            while let Some(property) = properties.next()? {
                match property {
                    Property::PayloadFormat(utf8) => into.payload_is_utf8 = Some(utf8),
                    Property::MessageExpiry(seconds) => {
                        into.message_expiry_interval = Some(Duration::from_secs(seconds.into()));
                    }
                    Property::ContentType(text) => into.content_type = Some(shared(packet, text)),
                    Property::ResponseTopic(text) => into.response_topic = Some(shared(packet, text)),
                    Property::CorrelationData(data) => into.correlation_data = Some(packet.slice_ref(data)),
                    Property::User(name, value) => {
                        into.user_properties.push((shared(packet, name), shared(packet, value)));
                    }
                    _ => {}
                }
            }
        }
        Ok(ServerPacket::Publish {
            packet_id,
            topic,
            payload: packet.slice_ref(reader.rest()),
            qos,
            dup: first & 0x08 != 0,
            retain: first & 0x01 != 0,
            properties: into,
        })
    }
}

fn packet_id(reader: &mut Reader<'_>) -> Result<PacketId, Violation> {
    PacketId::new(reader.u16()?).ok_or(Violation::Malformed("packet identifier 0"))
}

fn shared(packet: &Bytes, text: &str) -> Text {
    Text::checked(packet.slice_ref(text.as_bytes()))
}
