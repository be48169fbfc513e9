//! What the server says besides PUBLISH, written by hand: the codec writes DISCONNECT wrongly, and panics on codes that
//! a version does not have.
//!
//! A reason string (MQTT 5 4.13) is left out where the client's Maximum Packet Size leaves no room for it
//! (3.2.2-19, 3.4.2-2 and the like), and where the client has not asked for it (3.1.2-29).

use bytes::{BufMut, BytesMut};

use crate::{
    encode::{put_binary, put_variable, variable_length},
    packet::{AckKind, PacketId, Version},
    properties::id,
    reason::{ConnectRefusal, DisconnectReason, SubscribeReply, UnsubscribeReply},
};

/// The longest reason string, in bytes: it is for a person who looks at the device.
const MAX_WORDS_BYTES: usize = 256;

/// A reason in words and whether this client takes it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Words<'a> {
    text: Option<&'a str>,
    max_packet_bytes: usize,
}

impl<'a> Words<'a> {
    /// Words for a client that takes packets of so many bytes. A string with a NUL cannot be said (MQTT 5 1.5.4-2).
    pub(crate) fn new(text: Option<&'a str>, max_packet_bytes: usize) -> Self {
        let text = text.filter(|text| !text.is_empty() && !text.contains('\0'));
        let shortened = text.map(|text| &text[..text.floor_char_boundary(MAX_WORDS_BYTES)]);
        Self { text: shortened, max_packet_bytes }
    }

    /// The property block with the words, if a packet with so many other bytes has room for them.
    fn block(self, other_bytes: usize) -> Option<(usize, &'a str)> {
        let text = self.text?;
        let length = 3 + text.len();
        // With a longest text of 256 bytes the two lengths take four bytes at most.
        (other_bytes + 1 + 4 + length <= self.max_packet_bytes).then_some((length, text))
    }
}

/// What CONNACK says besides success (MQTT 5 3.2.2.3); MQTT 3.1.1 hears of `session_present` alone.
#[derive(Debug, Clone, Default)]
pub(crate) struct ConnAckFields<'a> {
    pub(crate) session_present: bool,
    pub(crate) session_expiry_seconds: Option<u32>,
    pub(crate) receive_maximum: u16,
    pub(crate) max_packet_bytes: u32,
    pub(crate) assigned_client_id: Option<&'a str>,
    pub(crate) server_keep_alive_seconds: Option<u16>,
    pub(crate) retain_available: bool,
    pub(crate) topic_alias_maximum: u16,
    pub(crate) response_information: Option<&'a str>,
}

/// CONNACK with success.
pub(crate) fn put_connack(version: Version, fields: &ConnAckFields<'_>, out: &mut BytesMut) {
    let present = u8::from(fields.session_present);
    if version == Version::V311 {
        return out.extend_from_slice(&[0x20, 2, present, 0]);
    }
    let mut block = BytesMut::new();
    if let Some(seconds) = fields.session_expiry_seconds {
        block.put_u8(id::SESSION_EXPIRY);
        block.put_u32(seconds);
    }
    block.put_u8(id::RECEIVE_MAXIMUM);
    block.put_u16(fields.receive_maximum);
    // Maximum QoS is left out: it is 2.
    if !fields.retain_available {
        block.extend_from_slice(&[id::RETAIN_AVAILABLE, 0]);
    }
    block.put_u8(id::MAXIMUM_PACKET_SIZE);
    block.put_u32(fields.max_packet_bytes);
    if let Some(client_id) = fields.assigned_client_id {
        block.put_u8(id::ASSIGNED_CLIENT_IDENTIFIER);
        put_binary(client_id.as_bytes(), &mut block);
    }
    if fields.topic_alias_maximum > 0 {
        block.put_u8(id::TOPIC_ALIAS_MAXIMUM);
        block.put_u16(fields.topic_alias_maximum);
    }
    block.extend_from_slice(&[id::SHARED_SUBSCRIPTION_AVAILABLE, 0]);
    if let Some(seconds) = fields.server_keep_alive_seconds {
        block.put_u8(id::SERVER_KEEP_ALIVE);
        block.put_u16(seconds);
    }
    if let Some(text) = fields.response_information {
        block.put_u8(id::RESPONSE_INFORMATION);
        put_binary(text.as_bytes(), &mut block);
    }
    out.put_u8(0x20);
    put_variable(2 + variable_length(block.len()) + block.len(), out);
    out.extend_from_slice(&[present, 0]);
    put_variable(block.len(), out);
    out.extend_from_slice(&block);
}

/// CONNACK with a refusal, or nothing where the version has no number for it.
pub(crate) fn put_refusal(version: Version, refusal: ConnectRefusal, words: Words<'_>, out: &mut BytesMut) {
    match (version, refusal.code(version)) {
        (Version::V311, Some(code)) => out.extend_from_slice(&[0x20, 2, 0, code]),
        (Version::V5, Some(code)) => put_reasoned(0x20, &[0, code], words, &[], out),
        (_, None) => {}
    }
}

/// DISCONNECT of MQTT 5 (3.14.2.2.1: no property length is none); 3.1.1 has none from a server.
pub(crate) fn put_disconnect(
    version: Version,
    reason: DisconnectReason,
    words: Words<'_>,
    out: &mut BytesMut,
) {
    match (version, words.block(1)) {
        (Version::V311, _) => {}
        (Version::V5, None) => out.extend_from_slice(&[0xE0, 1, reason.code()]),
        (Version::V5, Some(_)) => put_reasoned(0xE0, &[reason.code()], words, &[], out),
    }
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP; in MQTT 3.1.1 the reason is not said.
pub(crate) fn put_ack(
    version: Version,
    kind: AckKind,
    packet_id: PacketId,
    reason: u8,
    words: Words<'_>,
    out: &mut BytesMut,
) {
    let [high, low] = packet_id.value().to_be_bytes();
    match (version, reason) {
        // MQTT 5 3.4.2.1: success may be left out.
        (Version::V311, _) | (Version::V5, 0) => out.extend_from_slice(&[kind as u8, 2, high, low]),
        (Version::V5, reason) => put_reasoned(kind as u8, &[high, low, reason], words, &[], out),
    }
}

/// SUBACK. QoS 2 is never granted, whatever was asked for.
pub(crate) fn put_suback(
    version: Version,
    packet_id: PacketId,
    replies: &[SubscribeReply],
    words: Words<'_>,
    out: &mut BytesMut,
) {
    let code = |reply: &SubscribeReply| match reply {
        Ok(qos) => (*qos as u8).min(1),
        Err(refusal) => refusal.code(version),
    };
    let codes: Vec<u8> = replies.iter().map(code).collect();
    put_answer(version, 0x90, packet_id, words, &codes, out);
}

/// UNSUBACK; in MQTT 3.1.1 without codes.
pub(crate) fn put_unsuback(
    version: Version,
    packet_id: PacketId,
    replies: &[UnsubscribeReply],
    words: Words<'_>,
    out: &mut BytesMut,
) {
    let codes: Vec<u8> = match version {
        Version::V311 => Vec::new(),
        Version::V5 => replies.iter().map(|reply| *reply as u8).collect(),
    };
    put_answer(version, 0xB0, packet_id, words, &codes, out);
}

/// PINGRESP.
pub(crate) fn put_pingresp(out: &mut BytesMut) {
    out.extend_from_slice(&[0xD0, 0]);
}

fn put_answer(
    version: Version,
    first: u8,
    packet_id: PacketId,
    words: Words<'_>,
    codes: &[u8],
    out: &mut BytesMut,
) {
    let packet_id = packet_id.value().to_be_bytes();
    match version {
        Version::V311 => {
            out.put_u8(first);
            put_variable(2 + codes.len(), out);
            out.extend_from_slice(&packet_id);
            out.extend_from_slice(codes);
        }
        Version::V5 => put_reasoned(first, &packet_id, words, codes, out),
    }
}

/// A packet of MQTT 5 with a property block that holds the words or nothing, between `head` and `tail`.
fn put_reasoned(first: u8, head: &[u8], words: Words<'_>, tail: &[u8], out: &mut BytesMut) {
    let block = words.block(head.len() + tail.len());
    let length = block.map_or(0, |(length, _)| length);
    out.put_u8(first);
    put_variable(head.len() + variable_length(length) + length + tail.len(), out);
    out.extend_from_slice(head);
    put_variable(length, out);
    if let Some((_, text)) = block {
        out.put_u8(id::REASON_STRING);
        put_binary(text.as_bytes(), out);
    }
    out.extend_from_slice(tail);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_said_where_there_is_room() {
        let id = PacketId::new(9).expect("not zero");
        let said = |text, max| {
            let mut out = BytesMut::new();
            let words = Words::new(Some(text), max);
            put_ack(Version::V5, AckKind::PubRec, id, 0x97, words, &mut out);
            out
        };
        assert_eq!(said("no", 100), &b"\x50\x09\x00\x09\x97\x05\x1F\x00\x02no"[..]);
        assert_eq!(said("no", 12), &b"\x50\x04\x00\x09\x97\x00"[..]);
        assert_eq!(said("n\0", 100), &b"\x50\x04\x00\x09\x97\x00"[..]);
        let long = said(&"ä".repeat(300), usize::MAX);
        assert_eq!(&long[..9], b"\x50\x88\x02\x00\x09\x97\x83\x02\x1F");
        assert_eq!(long.len(), 3 + 0x108);
    }

    #[test]
    fn a_packet_with_words_is_never_larger_than_the_client_takes() {
        for max in 0..300 {
            for text in ["x".repeat(120), "x".repeat(250)] {
                let mut out = BytesMut::new();
                put_disconnect(Version::V5, DisconnectReason::Normal, Words::new(Some(&text), max), &mut out);
                assert!(out.len() <= max.max(3), "{max}: {}", out.len());
            }
        }
    }
}
