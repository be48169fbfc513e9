//! The guard in front of the codec: what passes it is a legal packet of a client.
//!
//! The codec takes much on trust (header flags, strings, property blocks), swallows some malformed packets and
//! panics on others. So a packet is judged here in full, field by field, before the codec sees it, and the fields
//! that the codec keeps to itself are read here. CONNECT has a parser of its own, `connect`.

use crate::{
    config::Config,
    packet::{Ack, AckKind, Disconnect, PacketId, QoS, Version},
    properties::{Properties, Property, Scope},
    reason::Violation,
    text::{is_shared_filter, is_topic_filter, is_topic_name},
    wire::Reader,
};

/// First byte of CONNECT.
pub(crate) const CONNECT: u8 = 0x10;

/// What the guard found out about a packet, besides that it is legal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Publish(PublishShape),
    Ack(Ack),
    Subscribe { identifier: Option<u32> },
    Unsubscribe,
    PingReq,
    Disconnect(Disconnect),
}

/// What the guard found out about a PUBLISH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PublishShape {
    pub(crate) packet_id: Option<PacketId>,
    pub(crate) qos: QoS,
    pub(crate) dup: bool,
    pub(crate) retain: bool,
    pub(crate) alias: Option<u16>,
}

/// Judges the first byte alone, so that nothing is buffered for what cannot become a packet.
pub(crate) fn first_byte(byte: u8, version: Version, level: u8) -> Result<(), Violation> {
    let flags = byte & 0x0F;
    let wanted = match byte >> 4 {
        1 => return Err(Violation::Protocol("a second CONNECT")), // MQTT 5 3.1.0-2
        3 => return publish_flags(flags, level).map(|_| ()),
        4 | 5 | 7 | 12 | 14 => 0,
        6 | 8 | 10 => 2,
        15 if version == Version::V5 => {
            return Err(Violation::Protocol("AUTH without an authentication method"));
        }
        _ => return Err(Violation::Protocol("a packet that no client sends")),
    };
    // MQTT 3.1 gave DUP to requests as well, and left the flags of the other packets open.
    if flags == wanted || level == 3 {
        Ok(())
    } else {
        Err(Violation::Malformed("reserved flags of the fixed header"))
    }
}

fn publish_flags(flags: u8, level: u8) -> Result<QoS, Violation> {
    match QoS::from_bits((flags >> 1) & 3) {
        None => Err(Violation::Malformed("quality of service 3")), // MQTT 5 3.3.1-4
        Some(QoS::AtMostOnce) if flags & 0x08 != 0 && level > 3 => {
            Err(Violation::Malformed("DUP of quality of service 0"))
        }
        Some(qos) => Ok(qos),
    }
}

/// Whether `frame` is for the machine to hold back while its window is full.
pub(crate) fn wants_acknowledgement(first_byte: u8) -> bool {
    first_byte & 0xF0 == 0x30 && first_byte & 0x06 != 0
}

/// Whether `frame` is a SUBSCRIBE or UNSUBSCRIBE, each of which the driver has to answer.
pub(crate) fn is_request(first_byte: u8) -> bool {
    matches!(first_byte >> 4, 8 | 10)
}

/// Judges a complete packet whose first byte has been judged; `body` starts behind the fixed header.
pub(crate) fn inspect(
    version: Version,
    level: u8,
    first: u8,
    body: &[u8],
    config: &Config,
) -> Result<Shape, Violation> {
    let guard = Guard { version, level, config };
    let mut reader = Reader::new(body);
    let shape = match first >> 4 {
        3 => return guard.publish(first & 0x0F, reader),
        4 => guard.ack(AckKind::PubAck, &mut reader)?,
        5 => guard.ack(AckKind::PubRec, &mut reader)?,
        6 => guard.ack(AckKind::PubRel, &mut reader)?,
        7 => guard.ack(AckKind::PubComp, &mut reader)?,
        8 => guard.subscribe(&mut reader)?,
        10 => guard.unsubscribe(&mut reader)?,
        12 => Shape::PingReq,
        _ => guard.disconnect(&mut reader)?,
    };
    if reader.is_empty() { Ok(shape) } else { Err(Violation::Malformed("bytes after the end of a packet")) }
}

struct Guard<'c> {
    version: Version,
    level: u8,
    config: &'c Config,
}

impl Guard<'_> {
    fn publish(&self, flags: u8, mut reader: Reader<'_>) -> Result<Shape, Violation> {
        let qos = publish_flags(flags, self.level)?;
        let topic = reader.text()?;
        let packet_id = match qos {
            QoS::AtMostOnce => None,
            _ => Some(packet_id(&mut reader)?),
        };
        let alias = match self.version {
            Version::V5 => self.publish_properties(&mut reader)?,
            Version::V311 => None,
        };
        match (topic.is_empty(), alias) {
            (true, Some(_)) => {}
            (true, None) if self.version == Version::V5 => {
                return Err(Violation::Protocol("neither topic name nor topic alias")); // 3.3.4
            }
            _ if is_topic_name(topic) => {}
            _ => return Err(Violation::TopicNameInvalid),
        }
        let dup = flags & 0x08 != 0 && packet_id.is_some();
        Ok(Shape::Publish(PublishShape { packet_id, qos, dup, retain: flags & 0x01 != 0, alias }))
    }

    fn publish_properties(&self, reader: &mut Reader<'_>) -> Result<Option<u16>, Violation> {
        let mut alias = None;
        let mut properties = Properties::read(reader, Scope::Publish, self.config.max_properties)?;
        while let Some(property) = properties.next()? {
            match property {
                Property::TopicAlias(number) => alias = Some(number),
                Property::SubscriptionIdentifier(_) => {
                    return Err(Violation::Protocol("a subscription identifier from a client")); // 3.3.4-6
                }
                Property::ResponseTopic(topic) if !is_topic_name(topic) => {
                    return Err(Violation::Protocol("a response topic that is no topic name")); // 3.3.2-14
                }
                _ => {}
            }
        }
        Ok(alias)
    }

    /// Read here to the end: there is nothing else in it.
    fn ack(&self, kind: AckKind, reader: &mut Reader<'_>) -> Result<Shape, Violation> {
        let mut ack = Ack { kind, packet_id: packet_id(reader)?, reason: 0 };
        // MQTT 5 3.4.2.1 and 3.4.2.2.1: reason code and properties may be left out from the end.
        if self.version == Version::V5 && !reader.is_empty() {
            ack.reason = reader.u8()?;
            let known = match kind {
                AckKind::PubAck | AckKind::PubRec => {
                    matches!(ack.reason, 0x00 | 0x10 | 0x80 | 0x83 | 0x87 | 0x90 | 0x91 | 0x97 | 0x99)
                }
                AckKind::PubRel | AckKind::PubComp => matches!(ack.reason, 0x00 | 0x92), // 3.6.2.1, 3.7.2.1
            };
            if !known {
                return Err(Violation::Malformed("a reason code that the acknowledgement does not have"));
            }
            if !reader.is_empty() {
                Properties::skip(reader, Scope::PubAck, self.config.max_properties)?;
            }
        }
        Ok(Shape::Ack(ack))
    }

    fn subscribe(&self, reader: &mut Reader<'_>) -> Result<Shape, Violation> {
        packet_id(reader)?;
        let mut identifier = None;
        if self.version == Version::V5 {
            let mut properties = Properties::read(reader, Scope::Subscribe, self.config.max_properties)?;
            while let Some(property) = properties.next()? {
                if let Property::SubscriptionIdentifier(number) = property {
                    identifier = Some(number);
                }
            }
        }
        self.filters(reader, |filter, reader| {
            let options = reader.u8()?;
            let reserved = if self.version == Version::V5 { 0xC0 } else { 0xFC };
            if options & reserved != 0 || options & 0x03 == 3 || options & 0x30 == 0x30 {
                return Err(Violation::Malformed("subscription options"));
            }
            if options & 0x04 != 0 && filter.starts_with("$share/") {
                return Err(Violation::Protocol("no local on a shared subscription")); // MQTT 5 3.8.3-4
            }
            Ok(())
        })?;
        Ok(Shape::Subscribe { identifier })
    }

    fn unsubscribe(&self, reader: &mut Reader<'_>) -> Result<Shape, Violation> {
        packet_id(reader)?;
        if self.version == Version::V5 {
            Properties::skip(reader, Scope::Unsubscribe, self.config.max_properties)?;
        }
        self.filters(reader, |_, _| Ok(()))?;
        Ok(Shape::Unsubscribe)
    }

    fn filters<'r>(
        &self,
        reader: &mut Reader<'r>,
        options: impl Fn(&str, &mut Reader<'r>) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        if reader.is_empty() {
            return Err(Violation::Protocol("a request without a topic filter")); // MQTT 5 3.8.3-2, 3.10.3-2
        }
        let mut left = self.config.max_filters;
        while !reader.is_empty() {
            left = left.checked_sub(1).ok_or(Violation::Quota("topic filters"))?;
            let filter = reader.text()?;
            if !is_topic_filter(filter) || self.version == Version::V5 && !is_shared_filter(filter) {
                return Err(Violation::TopicFilterInvalid);
            }
            options(filter, reader)?;
        }
        Ok(())
    }

    /// Read here to the end: the codec refuses the legal DISCONNECT of a reason code without properties.
    fn disconnect(&self, reader: &mut Reader<'_>) -> Result<Shape, Violation> {
        let mut disconnect = Disconnect { reason: 0, session_expiry_seconds: None };
        if self.version == Version::V5 && !reader.is_empty() {
            disconnect.reason = reader.u8()?;
            // MQTT 5 3.14.2.1: the reasons of a client.
            if !matches!(disconnect.reason, 0x00 | 0x04 | 0x80..=0x83 | 0x90 | 0x93..=0x99) {
                return Err(Violation::Malformed("a reason code that DISCONNECT of a client does not have"));
            }
            if !reader.is_empty() {
                let mut properties = Properties::read(reader, Scope::Disconnect, self.config.max_properties)?;
                while let Some(property) = properties.next()? {
                    if let Property::SessionExpiry(seconds) = property {
                        disconnect.session_expiry_seconds = Some(seconds);
                    }
                }
            }
        }
        Ok(Shape::Disconnect(disconnect))
    }
}

/// MQTT 5 2.2.1-2, 2.2.1-3: never zero.
fn packet_id(reader: &mut Reader<'_>) -> Result<PacketId, Violation> {
    PacketId::new(reader.u16()?).ok_or(Violation::Malformed("packet identifier 0"))
}
