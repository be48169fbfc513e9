//! The only place that knows which codec is behind the guard: framing and decoding by `rumqttd::protocol`, one packet
//! at a time, into our own types.
//!
//! What the codec does wrong or not at all is done by hand: CONNECT, DISCONNECT and acknowledgements are read in
//! `connect` and `guard`, and all that is written is written in `encode` and `answers`.

use std::time::Duration;

use bytes::BytesMut;
use rumqttd::protocol::{self as wire, Packet, Protocol, RetainForwardRule, v4::V4, v5::V5};

use crate::{
    guard::{PublishShape, Shape},
    packet::{
        ClientPacket, IncomingPublish, PacketId, PublishProperties, QoS, RetainHandling, Subscribe,
        SubscribeFilter, Unsubscribe, Version,
    },
    reason::Violation,
    text::Text,
};

/// Where a complete packet begins and ends in the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Length of the fixed header.
    pub(crate) header: usize,
    /// Length of the whole packet.
    pub(crate) length: usize,
}

/// Finds the first packet of `input`; `None` while it is not complete.
pub(crate) fn frame(input: &[u8], max_packet_bytes: u32) -> Result<Option<Frame>, Violation> {
    let max = usize::try_from(max_packet_bytes).unwrap_or(usize::MAX);
    match wire::v4::check(input.iter(), max) {
        Ok(header) if header.frame_length() > max => Err(Violation::PacketTooLarge(header.frame_length())),
        // MQTT 5 1.5.5-1; no client of 3.1.1 does it either.
        Ok(header) if header.fixed_header_len > 2 && input[header.fixed_header_len - 1] == 0 => {
            Err(Violation::Malformed("a remaining length longer than needed"))
        }
        Ok(header) => Ok(Some(Frame { header: header.fixed_header_len, length: header.frame_length() })),
        Err(wire::Error::InsufficientBytes(_)) => Ok(None),
        Err(wire::Error::PayloadSizeLimitExceeded(bytes)) => Err(Violation::PacketTooLarge(bytes)),
        Err(_) => Err(Violation::Malformed("remaining length")),
    }
}

/// Decodes one whole packet that the guard has let pass.
pub(crate) fn decode(
    version: Version,
    mut packet: BytesMut,
    shape: Shape,
) -> Result<ClientPacket, Violation> {
    match shape {
        Shape::PingReq => return Ok(ClientPacket::PingReq),
        Shape::Disconnect(disconnect) => return Ok(ClientPacket::Disconnect(disconnect)),
        Shape::Ack(ack) => return Ok(ClientPacket::Ack(ack)),
        Shape::Publish(_) | Shape::Subscribe { .. } | Shape::Unsubscribe => {}
    }
    let length = packet.len();
    let decoded = match version {
        Version::V311 => V4.read_mut(&mut packet, length),
        Version::V5 => V5.read_mut(&mut packet, length),
    };
    // The guard knows the packet to be complete, so also "insufficient bytes" says that it is malformed.
    let decoded = decoded.map_err(|_| Violation::Malformed("refused by the codec"))?;
    match (shape, decoded) {
        (Shape::Publish(shape), Packet::Publish(publish, properties)) => {
            let PublishShape { packet_id, qos, dup, retain, alias } = shape;
            Ok(ClientPacket::Publish(IncomingPublish {
                packet_id,
                qos,
                topic: Text::checked(publish.topic),
                alias,
                payload: publish.payload,
                dup,
                retain,
                properties: properties.and_then(publish_properties),
            }))
        }
        (Shape::Subscribe { identifier }, Packet::Subscribe(subscribe, _)) => {
            Ok(ClientPacket::Subscribe(Subscribe {
                packet_id: packet_id(subscribe.pkid)?,
                identifier,
                filters: subscribe.filters.into_iter().map(subscribe_filter).collect(),
            }))
        }
        (Shape::Unsubscribe, Packet::Unsubscribe(unsubscribe, _)) => {
            Ok(ClientPacket::Unsubscribe(Unsubscribe {
                packet_id: packet_id(unsubscribe.pkid)?,
                filters: unsubscribe.filters.into_iter().map(Text::from).collect(),
            }))
        }
        _ => Err(Violation::Malformed("the codec read another packet than the guard")),
    }
}

fn packet_id(number: u16) -> Result<PacketId, Violation> {
    PacketId::new(number).ok_or(Violation::Malformed("packet identifier 0"))
}

fn qos(qos: wire::QoS) -> QoS {
    match qos {
        wire::QoS::AtMostOnce => QoS::AtMostOnce,
        wire::QoS::AtLeastOnce => QoS::AtLeastOnce,
        wire::QoS::ExactlyOnce => QoS::ExactlyOnce,
    }
}

/// `None` where a topic alias stood alone.
fn publish_properties(properties: wire::PublishProperties) -> Option<Box<PublishProperties>> {
    let texts = |(name, value): (String, String)| (Text::from(name), Text::from(value));
    let properties = PublishProperties {
        payload_is_utf8: properties.payload_format_indicator.map(|format| format == 1),
        message_expiry_interval: properties
            .message_expiry_interval
            .map(|seconds| Duration::from_secs(seconds.into())),
        content_type: properties.content_type.map(Text::from),
        response_topic: properties.response_topic.map(Text::from),
        correlation_data: properties.correlation_data,
        user_properties: properties.user_properties.into_iter().map(texts).collect(),
        subscription_identifiers: Vec::new(),
    };
    (properties != PublishProperties::default()).then(|| Box::new(properties))
}

fn subscribe_filter(filter: wire::Filter) -> SubscribeFilter {
    SubscribeFilter {
        filter: Text::from(filter.path),
        qos: qos(filter.qos),
        no_local: filter.nolocal,
        retain_as_published: filter.preserve_retain,
        retain_handling: match filter.retain_forward_rule {
            RetainForwardRule::OnEverySubscribe => RetainHandling::EverySubscribe,
            RetainForwardRule::OnNewSubscribe => RetainHandling::NewSubscription,
            RetainForwardRule::Never => RetainHandling::Never,
        },
    }
}
