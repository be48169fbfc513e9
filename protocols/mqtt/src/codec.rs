//! The only place that knows which codec is behind the guard: framing, decoding and encoding by
//! `rumqttd::protocol`, one packet at a time, in our own types.
//!
//! What the codec does wrong or not at all is done by hand: CONNECT and DISCONNECT are read in `connect` and
//! `guard`; PUBLISH, DISCONNECT and a refusing CONNACK are written in `encode`.

use std::time::Duration;

use bytes::BytesMut;
use rumqttd::protocol::{
    self as wire, ConnAckProperties, ConnectReturnCode, Packet, PingResp, Protocol, PubAck, PubAckReason,
    RetainForwardRule, SubAck, SubscribeReasonCode, UnsubAck, UnsubAckReason, v4::V4, v5::V5,
};

use crate::{
    guard::Shape,
    packet::{
        ClientPacket, IncomingPublish, PacketId, PublishProperties, QoS, RetainHandling, Subscribe,
        SubscribeFilter, Unsubscribe, Version,
    },
    reason::{PublishReply, SubscribeRefusal, SubscribeReply, UnsubscribeReply, Violation},
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
        Shape::Publish { .. } | Shape::PubAck | Shape::Subscribe | Shape::Unsubscribe => {}
    }
    let length = packet.len();
    let decoded = match version {
        Version::V311 => V4.read_mut(&mut packet, length),
        Version::V5 => V5.read_mut(&mut packet, length),
    };
    // The guard knows the packet to be complete, so also "insufficient bytes" says that it is malformed.
    let decoded = decoded.map_err(|_| Violation::Malformed("refused by the codec"))?;
    match (shape, decoded) {
        (Shape::Publish { packet_id, dup, retain }, Packet::Publish(publish, properties)) => {
            Ok(ClientPacket::Publish(IncomingPublish {
                packet_id,
                topic: Text::checked(publish.topic),
                payload: publish.payload,
                dup,
                retain,
                properties: properties.map(publish_properties),
            }))
        }
        (Shape::PubAck, Packet::PubAck(puback, _)) => Ok(ClientPacket::PubAck {
            packet_id: packet_id(puback.pkid)?,
            reason: puback_code(puback.reason),
        }),
        (Shape::Subscribe, Packet::Subscribe(subscribe, _)) => Ok(ClientPacket::Subscribe(Subscribe {
            packet_id: packet_id(subscribe.pkid)?,
            filters: subscribe.filters.into_iter().map(subscribe_filter).collect(),
        })),
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

fn publish_properties(properties: wire::PublishProperties) -> Box<PublishProperties> {
    let texts = |(name, value): (String, String)| (Text::from(name), Text::from(value));
    Box::new(PublishProperties {
        payload_is_utf8: properties.payload_format_indicator.map(|format| format == 1),
        message_expiry_interval: properties
            .message_expiry_interval
            .map(|seconds| Duration::from_secs(seconds.into())),
        content_type: properties.content_type.map(Text::from),
        response_topic: properties.response_topic.map(Text::from),
        correlation_data: properties.correlation_data,
        user_properties: properties.user_properties.into_iter().map(texts).collect(),
    })
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

fn puback_code(reason: PubAckReason) -> u8 {
    match reason {
        PubAckReason::Success => 0x00,
        PubAckReason::NoMatchingSubscribers => 0x10,
        PubAckReason::UnspecifiedError => 0x80,
        PubAckReason::ImplementationSpecificError => 0x83,
        PubAckReason::NotAuthorized => 0x87,
        PubAckReason::TopicNameInvalid => 0x90,
        PubAckReason::PacketIdentifierInUse => 0x91,
        PubAckReason::QuotaExceeded => 0x97,
        PubAckReason::PayloadFormatInvalid => 0x99,
    }
}

/// What CONNACK says besides success (MQTT 5 3.2.2.3); MQTT 3.1.1 hears of `session_present` alone.
#[derive(Debug, Clone, Default)]
pub(crate) struct ConnAckFields {
    pub(crate) session_present: bool,
    pub(crate) session_expiry_seconds: Option<u32>,
    pub(crate) receive_maximum: u16,
    pub(crate) max_packet_bytes: u32,
    pub(crate) assigned_client_id: Option<String>,
    pub(crate) server_keep_alive_seconds: Option<u16>,
    pub(crate) retain_available: bool,
}

pub(crate) fn put_connack(version: Version, fields: ConnAckFields, out: &mut BytesMut) {
    let properties = ConnAckProperties {
        session_expiry_interval: fields.session_expiry_seconds,
        receive_max: Some(fields.receive_maximum),
        max_qos: Some(1),
        // Left out, it says that retain is available.
        retain_available: (!fields.retain_available).then_some(0),
        max_packet_size: Some(fields.max_packet_bytes),
        assigned_client_identifier: fields.assigned_client_id,
        subscription_identifiers_available: Some(0),
        shared_subscription_available: Some(0),
        server_keep_alive: fields.server_keep_alive_seconds,
        ..ConnAckProperties::default()
    };
    let code = ConnectReturnCode::Success;
    let connack = wire::ConnAck { session_present: fields.session_present, code };
    put(version, Packet::ConnAck(connack, (version == Version::V5).then_some(properties)), out);
}

pub(crate) fn put_puback(version: Version, packet_id: PacketId, reply: PublishReply, out: &mut BytesMut) {
    let reason = match (version, reply) {
        (Version::V311, _) | (_, PublishReply::Success) => PubAckReason::Success,
        (_, PublishReply::NoMatchingSubscribers) => PubAckReason::NoMatchingSubscribers,
        (_, PublishReply::Unspecified) => PubAckReason::UnspecifiedError,
        (_, PublishReply::ImplementationSpecific) => PubAckReason::ImplementationSpecificError,
        (_, PublishReply::NotAuthorised) => PubAckReason::NotAuthorized,
        (_, PublishReply::TopicNameInvalid) => PubAckReason::TopicNameInvalid,
        (_, PublishReply::QuotaExceeded) => PubAckReason::QuotaExceeded,
        (_, PublishReply::PayloadFormatInvalid) => PubAckReason::PayloadFormatInvalid,
    };
    put(version, Packet::PubAck(PubAck { pkid: packet_id.value(), reason }, None), out);
}

pub(crate) fn put_suback(
    version: Version,
    packet_id: PacketId,
    replies: &[SubscribeReply],
    out: &mut BytesMut,
) {
    let code = |reply: &SubscribeReply| match (version, reply) {
        (_, Ok(QoS::AtMostOnce)) => SubscribeReasonCode::QoS0,
        // QoS 2 is never granted, whatever was asked for.
        (_, Ok(QoS::AtLeastOnce | QoS::ExactlyOnce)) => SubscribeReasonCode::QoS1,
        (Version::V311, Err(_)) | (_, Err(SubscribeRefusal::Unspecified)) => SubscribeReasonCode::Failure,
        (_, Err(SubscribeRefusal::ImplementationSpecific)) => SubscribeReasonCode::ImplementationSpecific,
        (_, Err(SubscribeRefusal::NotAuthorised)) => SubscribeReasonCode::NotAuthorized,
        (_, Err(SubscribeRefusal::TopicFilterInvalid)) => SubscribeReasonCode::TopicFilterInvalid,
        (_, Err(SubscribeRefusal::QuotaExceeded)) => SubscribeReasonCode::QuotaExceeded,
        (_, Err(SubscribeRefusal::SharedSubscriptionsNotSupported)) => {
            SubscribeReasonCode::SharedSubscriptionsNotSupported
        }
        (_, Err(SubscribeRefusal::WildcardSubscriptionsNotSupported)) => {
            SubscribeReasonCode::WildcardSubscriptionsNotSupported
        }
    };
    let suback = SubAck { pkid: packet_id.value(), return_codes: replies.iter().map(code).collect() };
    put(version, Packet::SubAck(suback, None), out);
}

pub(crate) fn put_unsuback(
    version: Version,
    packet_id: PacketId,
    replies: &[UnsubscribeReply],
    out: &mut BytesMut,
) {
    let reason = |reply: &UnsubscribeReply| match reply {
        UnsubscribeReply::Success => UnsubAckReason::Success,
        UnsubscribeReply::NoSubscriptionExisted => UnsubAckReason::NoSubscriptionExisted,
        UnsubscribeReply::Unspecified => UnsubAckReason::UnspecifiedError,
        UnsubscribeReply::ImplementationSpecific => UnsubAckReason::ImplementationSpecificError,
        UnsubscribeReply::NotAuthorised => UnsubAckReason::NotAuthorized,
        UnsubscribeReply::TopicFilterInvalid => UnsubAckReason::TopicFilterInvalid,
    };
    let unsuback = UnsubAck { pkid: packet_id.value(), reasons: replies.iter().map(reason).collect() };
    put(version, Packet::UnsubAck(unsuback, None), out);
}

pub(crate) fn put_pingresp(version: Version, out: &mut BytesMut) {
    put(version, Packet::PingResp(PingResp), out);
}

fn put(version: Version, packet: Packet, out: &mut BytesMut) {
    let written = match version {
        Version::V311 => V4.write(packet, out),
        Version::V5 => V5.write(packet, out),
    };
    written.expect("the packets above are far below the largest length that the codec can write");
}
