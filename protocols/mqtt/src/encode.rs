//! PUBLISH and the data types of the wire, written by hand: the codec keeps QoS and packet identifier to itself.

use bytes::{BufMut, BytesMut};

use crate::{
    alias::Alias,
    packet::{OutgoingPublish, PacketId, PublishProperties, QoS, Version},
    properties::id,
    reason::Misuse,
    text::is_topic_name,
};

/// How long the parts of a PUBLISH will be, and how it says its topic.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PublishLength {
    alias: Alias,
    properties: usize,
    remaining: usize,
}

impl PublishLength {
    /// Measures a PUBLISH and finds out whether it can be said on the wire at all.
    pub(crate) fn of(version: Version, publish: &OutgoingPublish<'_>, alias: Alias) -> Result<Self, Misuse> {
        if !is_topic_name(publish.topic) {
            return Err(Misuse::TopicNameInvalid);
        }
        let topic = if matches!(alias, Alias::Known(_)) { 0 } else { publish.topic.len() };
        let mut remaining = 2 + topic + publish.payload.len();
        if publish.qos != QoS::AtMostOnce {
            remaining += 2;
        }
        let mut properties = 0;
        if version == Version::V5 {
            properties = publish.properties.map_or(Ok(0), properties_length)?;
            if alias != Alias::None {
                properties += 3;
            }
            remaining += variable_length(properties) + properties;
        }
        if remaining > MAX_VARIABLE {
            return Err(Misuse::Properties);
        }
        Ok(Self { alias, properties, remaining })
    }

    /// Length of the whole packet with its fixed header.
    pub(crate) fn total(self) -> usize {
        1 + variable_length(self.remaining) + self.remaining
    }
}

/// Writes a PUBLISH that has been measured for this version.
pub(crate) fn put_publish(
    version: Version,
    packet_id: Option<PacketId>,
    publish: &OutgoingPublish<'_>,
    length: PublishLength,
    out: &mut BytesMut,
) {
    out.reserve(length.total());
    let (dup, retain) = (u8::from(publish.dup), u8::from(publish.retain));
    out.put_u8(0x30 | (dup << 3) | ((publish.qos as u8) << 1) | retain);
    put_variable(length.remaining, out);
    let topic = if matches!(length.alias, Alias::Known(_)) { "" } else { publish.topic };
    put_binary(topic.as_bytes(), out);
    if let Some(packet_id) = packet_id {
        out.put_u16(packet_id.value());
    }
    if version == Version::V5 {
        put_variable(length.properties, out);
        if let Alias::New(number) | Alias::Known(number) = length.alias {
            out.put_u8(id::TOPIC_ALIAS);
            out.put_u16(number);
        }
        if let Some(properties) = publish.properties {
            put_properties(properties, out);
        }
    }
    out.extend_from_slice(publish.payload);
}

/// The largest number of a Variable Byte Integer (MQTT 5 1.5.5).
const MAX_VARIABLE: usize = 268_435_455;

/// How many bytes a Variable Byte Integer takes.
pub(crate) fn variable_length(number: usize) -> usize {
    match number {
        0..128 => 1,
        128..16_384 => 2,
        16_384..2_097_152 => 3,
        _ => 4,
    }
}

/// Writes a Variable Byte Integer.
pub(crate) fn put_variable(mut number: usize, out: &mut BytesMut) {
    loop {
        let byte = (number & 0x7F) as u8;
        number >>= 7;
        if number == 0 {
            return out.put_u8(byte);
        }
        out.put_u8(byte | 0x80);
    }
}

/// Two bytes of length and the bytes, whose length has been checked.
pub(crate) fn put_binary(bytes: &[u8], out: &mut BytesMut) {
    debug_assert!(bytes.len() <= usize::from(u16::MAX), "measured before it is written");
    out.put_u16(bytes.len() as u16);
    out.extend_from_slice(bytes);
}

/// Length of a property block, without the length that stands before it.
pub(crate) fn properties_length(properties: &PublishProperties) -> Result<usize, Misuse> {
    let field = |bytes: &[u8]| match bytes.len() {
        length if length <= usize::from(u16::MAX) => Ok(2 + length),
        _ => Err(Misuse::Properties),
    };
    // MQTT 5 1.5.4-2.
    let string =
        |text: &str| if text.contains('\0') { Err(Misuse::Properties) } else { field(text.as_bytes()) };
    let mut length = 0;
    if properties.payload_is_utf8.is_some() {
        length += 2;
    }
    if properties.message_expiry_interval.is_some() {
        length += 5;
    }
    for text in [&properties.content_type, &properties.response_topic].into_iter().flatten() {
        length += 1 + string(text)?;
    }
    if let Some(data) = &properties.correlation_data {
        length += 1 + field(data)?;
    }
    for (name, value) in &properties.user_properties {
        length += 1 + string(name)? + string(value)?;
    }
    for identifier in &properties.subscription_identifiers {
        length += 1 + match *identifier as usize {
            0 => return Err(Misuse::Properties), // MQTT 5 3.3.2.3.8
            number if number > MAX_VARIABLE => return Err(Misuse::Properties),
            number => variable_length(number),
        };
    }
    Ok(length)
}

/// The properties of a PUBLISH or of a will, without the length of the block.
pub(crate) fn put_properties(properties: &PublishProperties, out: &mut BytesMut) {
    if let Some(utf8) = properties.payload_is_utf8 {
        out.extend_from_slice(&[id::PAYLOAD_FORMAT, utf8.into()]);
    }
    if let Some(interval) = properties.message_expiry_interval {
        out.put_u8(id::MESSAGE_EXPIRY);
        out.put_u32(u32::try_from(interval.as_secs()).unwrap_or(u32::MAX));
    }
    let mut field = |identifier, bytes: &[u8]| {
        out.put_u8(identifier);
        put_binary(bytes, out);
    };
    if let Some(content_type) = &properties.content_type {
        field(id::CONTENT_TYPE, content_type.as_bytes());
    }
    if let Some(topic) = &properties.response_topic {
        field(id::RESPONSE_TOPIC, topic.as_bytes());
    }
    if let Some(data) = &properties.correlation_data {
        field(id::CORRELATION_DATA, data);
    }
    for (name, value) in &properties.user_properties {
        out.put_u8(id::USER);
        put_binary(name.as_bytes(), out);
        put_binary(value.as_bytes(), out);
    }
    for identifier in &properties.subscription_identifiers {
        out.put_u8(id::SUBSCRIPTION_IDENTIFIER);
        put_variable(*identifier as usize, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(version: Version, publish: &OutgoingPublish<'_>) -> BytesMut {
        let length = PublishLength::of(version, publish, Alias::None).expect("can be said");
        let mut out = BytesMut::new();
        let id = (publish.qos != QoS::AtMostOnce).then(|| PacketId::new(10).expect("not zero"));
        put_publish(version, id, publish, length, &mut out);
        assert_eq!(out.len(), length.total());
        out
    }

    #[test]
    fn a_publish_of_each_version() {
        // MQTT 3.1.1 figure 3.11: topic a/b, packet identifier 10, QoS 1.
        let mut publish = OutgoingPublish {
            topic: "a/b",
            payload: b"",
            qos: QoS::AtLeastOnce,
            dup: false,
            retain: false,
            properties: None,
        };
        assert_eq!(written(Version::V311, &publish), &b"\x32\x07\x00\x03a/b\x00\x0A"[..]);
        assert_eq!(written(Version::V5, &publish), &b"\x32\x08\x00\x03a/b\x00\x0A\x00"[..]);
        let properties = PublishProperties {
            payload_is_utf8: Some(true),
            message_expiry_interval: Some(std::time::Duration::from_secs(1)),
            user_properties: vec![("k".into(), "v".into())],
            ..PublishProperties::default()
        };
        publish = OutgoingPublish {
            payload: b"!",
            qos: QoS::AtMostOnce,
            retain: true,
            properties: Some(&properties),
            ..publish
        };
        assert_eq!(
            written(Version::V5, &publish),
            &b"\x31\x15\x00\x03a/b\x0E\x01\x01\x02\x00\x00\x00\x01\x26\x00\x01k\x00\x01v!"[..]
        );
        assert_eq!(written(Version::V311, &publish), &b"\x31\x06\x00\x03a/b!"[..]);
    }

    #[test]
    fn the_length_of_every_size_is_what_was_measured() {
        for size in [0, 118, 119, 16_374, 16_375, 2_097_142, 2_097_143] {
            let payload = vec![7; size];
            let publish = OutgoingPublish {
                topic: "a/b",
                payload: &payload,
                qos: QoS::AtLeastOnce,
                dup: true,
                retain: false,
                properties: None,
            };
            written(Version::V5, &publish);
        }
    }

    #[test]
    fn what_the_wire_cannot_say() {
        let long = PublishProperties { content_type: Some("x".repeat(65_536).into()), ..Default::default() };
        let mut publish = OutgoingPublish {
            topic: "a",
            payload: b"",
            qos: QoS::AtMostOnce,
            dup: false,
            retain: false,
            properties: Some(&long),
        };
        assert_eq!(PublishLength::of(Version::V5, &publish, Alias::None).err(), Some(Misuse::Properties));
        let nul = PublishProperties { content_type: Some("\0".into()), ..Default::default() };
        let nul = OutgoingPublish { properties: Some(&nul), ..publish };
        assert_eq!(PublishLength::of(Version::V5, &nul, Alias::None).err(), Some(Misuse::Properties));
        assert!(PublishLength::of(Version::V311, &publish, Alias::None).is_ok(), "has no properties to say");
        publish.topic = "a/#";
        assert_eq!(
            PublishLength::of(Version::V311, &publish, Alias::None).err(),
            Some(Misuse::TopicNameInvalid)
        );
    }
}
