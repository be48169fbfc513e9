//! What a server says, packet by packet.

use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::{
    packet::{PacketId, PublishProperties, QoS, Version},
    properties::{Properties, Property, Scope},
    reason::Violation,
    text::Text,
    wire::Reader,
};

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
    /// PUBREC.
    PubRec {
        /// Of which PUBLISH.
        packet_id: PacketId,
        /// Reason code; 0 in MQTT 3.1.1.
        reason: u8,
    },
    /// PUBREL.
    PubRel {
        /// Of which PUBREC.
        packet_id: PacketId,
        /// Reason code; 0 in MQTT 3.1.1.
        reason: u8,
    },
    /// PUBCOMP.
    PubComp {
        /// Of which PUBREL.
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
    /// Topic Alias Maximum.
    pub topic_alias_maximum: u16,
    /// Response Information.
    pub response_information: Option<Text>,
}

/// Cuts what a server sent into packets.
#[derive(Debug)]
pub struct Decoder {
    version: Version,
    input: BytesMut,
    /// What the server's topic aliases stand for.
    aliases: Vec<(u16, Text)>,
    /// Reason string of the packet that was decoded last.
    words: Option<Text>,
}

/// More properties than any server of ours sends.
const MAX_PROPERTIES: usize = 256;

impl Decoder {
    /// A decoder for one connection.
    pub fn new(version: Version) -> Self {
        Self { version, input: BytesMut::new(), aliases: Vec::new(), words: None }
    }

    /// Adds what was read.
    pub fn push(&mut self, input: &[u8]) {
        self.input.extend_from_slice(input);
    }

    /// The reason string (MQTT 5) of the packet that came last.
    pub fn words(&self) -> Option<&str> {
        self.words.as_deref()
    }

    /// The next complete packet, `None` if there is none yet. Nothing can be read after an error.
    ///
    /// # Errors
    /// [`Violation`] if the server did not keep to the specification.
    pub fn next_packet(&mut self) -> Result<Option<ServerPacket>, Violation> {
        let Some((header, length)) = self.frame()? else { return Ok(None) };
        let packet = self.input.split_to(length).freeze();
        self.words = None;
        let mut reader = Reader::new(&packet[header..]);
        let decoded = match packet[0] {
            0x20 => self.connack(&packet, &mut reader)?,
            first @ (0x40 | 0x50 | 0x62 | 0x70) => {
                let packet_id = packet_id(&mut reader)?;
                let reason = if reader.is_empty() { 0 } else { reader.u8()? };
                self.read_words(&packet, &mut reader, Scope::PubAck)?;
                match first {
                    0x40 => ServerPacket::PubAck { packet_id, reason },
                    0x50 => ServerPacket::PubRec { packet_id, reason },
                    0x62 => ServerPacket::PubRel { packet_id, reason },
                    _ => ServerPacket::PubComp { packet_id, reason },
                }
            }
            0x90 | 0xB0 => {
                let packet_id = packet_id(&mut reader)?;
                let scope = if packet[0] == 0x90 { Scope::SubAck } else { Scope::UnsubAck };
                self.read_words(&packet, &mut reader, scope)?;
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
                self.read_words(&packet, &mut reader, Scope::Disconnect)?;
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

    fn read_words(&mut self, packet: &Bytes, reader: &mut Reader<'_>, scope: Scope) -> Result<(), Violation> {
        if self.version == Version::V5 && !reader.is_empty() {
            let mut properties = Properties::read(reader, scope, MAX_PROPERTIES)?;
            while let Some(property) = properties.next()? {
                if let Property::ReasonString(words) = property {
                    self.words = Some(shared(packet, words));
                }
            }
        }
        Ok(())
    }

    fn connack(&mut self, packet: &Bytes, reader: &mut Reader<'_>) -> Result<ServerPacket, Violation> {
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
                    Property::TopicAliasMaximum(number) => connack.topic_alias_maximum = number,
                    Property::ResponseInformation(text) => {
                        connack.response_information = Some(shared(packet, text));
                    }
                    Property::ReasonString(words) => self.words = Some(shared(packet, words)),
                    _ => {}
                }
            }
        }
        Ok(ServerPacket::ConnAck(connack))
    }

    fn publish(
        &mut self,
        first: u8,
        packet: &Bytes,
        mut reader: Reader<'_>,
    ) -> Result<ServerPacket, Violation> {
        let qos = QoS::from_bits((first >> 1) & 3).ok_or(Violation::Malformed("quality of service 3"))?;
        let mut topic = shared(packet, reader.text()?);
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
                    Property::SubscriptionIdentifier(number) => into.subscription_identifiers.push(number),
                    Property::TopicAlias(number) => topic = self.alias(number, topic.clone())?,
                    _ => {}
                }
            }
        }
        if topic.is_empty() {
            return Err(Violation::TopicNameInvalid);
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

    /// The topic of an alias, which is set by a PUBLISH that has both.
    fn alias(&mut self, number: u16, topic: Text) -> Result<Text, Violation> {
        let known = self.aliases.iter_mut().find(|(known, _)| *known == number);
        match (known, topic.is_empty()) {
            (Some((_, topic)), true) => Ok(topic.clone()),
            (None, true) => Err(Violation::Protocol("a topic alias that stands for nothing yet")),
            (Some((_, old)), false) => {
                *old = topic.clone();
                Ok(topic)
            }
            (None, false) => {
                self.aliases.push((number, topic.clone()));
                Ok(topic)
            }
        }
    }
}

fn packet_id(reader: &mut Reader<'_>) -> Result<PacketId, Violation> {
    PacketId::new(reader.u16()?).ok_or(Violation::Malformed("packet identifier 0"))
}

fn shared(packet: &Bytes, text: &str) -> Text {
    Text::checked(packet.slice_ref(text.as_bytes()))
}
