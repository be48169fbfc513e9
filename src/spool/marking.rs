//! What goes to the hub for a spooled message: its sections, with a header and a message-id that stays the same
//! however often it is sent, and a mark where it may have been sent before.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::BytesMut;
use fieldgate_amqp::codec::{
    Limits, Reader, Value, put_bool, put_composite, put_descriptor, put_map, put_str,
};
use fieldgate_amqp::error::DecodeError;
use fieldgate_amqp::message::{Header, put_header};
use fieldgate_amqp::performative::descriptor;
use thiserror::Error;

use super::record::Body;

/// The application property of a message that may have been sent before.
pub(crate) const RESENT: &str = "fieldgate-resent";

/// A record that does not hold the sections of a message.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(super) enum NoMessage {
    /// A value is not sound.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Null, where a section or its content is to be.
    #[error("null stands in place of a section")]
    Null,
}

/// What is told beside the record.
#[derive(Clone, Copy, Debug)]
pub(super) struct Marks<'a> {
    /// For a message that has no id of its own.
    pub(super) message_id: &'a str,
    /// It may have been sent before.
    pub(super) resent: bool,
    /// Milliseconds since 1970.
    pub(super) now: u64,
}

/// The message-id of a record, the same in every life of the gateway.
pub(super) fn write_message_id(out: &mut String, log: u64, seq: u64) {
    out.clear();
    // Writing to a string cannot fail.
    let _ = write!(out, "fieldgate-{log:016x}-{seq:x}");
}

/// Appends the message as it is sent.
///
/// # Errors
/// What is wrong with the record.
pub(super) fn encode(body: &Body<'_>, marks: Marks<'_>, out: &mut BytesMut) -> Result<(), NoMessage> {
    let Marks { message_id, resent, now } = marks;
    out.reserve(body.message.len() + 128);
    let ttl = body.ttl.map(|ttl| {
        let spent = Duration::from_millis(now.saturating_sub(body.stored_at));
        // What is over is not sent; a ttl of 0 would say so of what is not.
        ttl.saturating_sub(spent).max(Duration::from_millis(1))
    });
    if body.durable || ttl.is_some() || resent {
        let delivery_count = u32::from(resent);
        put_header(out, &Header { durable: body.durable, ttl, delivery_count, ..Header::default() });
    }
    put_sections(body.message, message_id, resent, out)
}

/// Appends the sections as they are kept when nobody knows whether the hub has the message: with the id that it was sent
/// with, which a later record of it would not know.
///
/// # Errors
/// What is wrong with the record.
pub(super) fn with_id(message: &[u8], message_id: &str, out: &mut BytesMut) -> Result<(), NoMessage> {
    put_sections(message, message_id, false, out)
}

/// The sections without a header, with an id where there is none, and with the mark if that is wanted.
fn put_sections(message: &[u8], message_id: &str, marked: bool, out: &mut BytesMut) -> Result<(), NoMessage> {
    let (mut wants_id, mut wants_mark) = (true, marked);
    let mut rest = Reader::new(message);
    while !rest.is_empty() {
        let section = rest.read_raw(&Limits::WIRE)?.ok_or(NoMessage::Null)?;
        let mut value = Reader::new(section);
        match value.read_descriptor()? {
            descriptor::HEADER => continue,
            descriptor::DELIVERY_ANNOTATIONS | descriptor::MESSAGE_ANNOTATIONS => {}
            descriptor::PROPERTIES => {
                put_properties(out, message_id, &mut value)?;
                wants_id = false;
                continue;
            }
            code => {
                if std::mem::take(&mut wants_id) {
                    put_own_id(out, message_id);
                }
                if std::mem::take(&mut wants_mark) {
                    let given = code == descriptor::APPLICATION_PROPERTIES;
                    put_mark(out, if given { Some(value.read_value(&Limits::WIRE)?) } else { None });
                    if given {
                        continue;
                    }
                }
            }
        }
        out.extend_from_slice(section);
    }
    if wants_id {
        put_own_id(out, message_id);
    }
    if wants_mark {
        put_mark(out, None);
    }
    Ok(())
}

fn put_own_id(out: &mut BytesMut, message_id: &str) {
    put_composite(out, descriptor::PROPERTIES, |out| {
        put_str(out, message_id);
        1
    });
}

/// The properties as they are, with an id where there is none (AMQP 1.0 3.2.4: it is the first field).
fn put_properties(out: &mut BytesMut, message_id: &str, list: &mut Reader<'_>) -> Result<(), NoMessage> {
    let (count, mut fields) = list.read_list()?.ok_or(NoMessage::Null)?;
    let id = if count > 0 { fields.read_raw(&Limits::WIRE)? } else { None };
    put_composite(out, descriptor::PROPERTIES, |out| {
        match id {
            Some(id) => out.extend_from_slice(id),
            None => put_str(out, message_id),
        }
        out.extend_from_slice(fields.rest());
        count.max(1)
    });
    Ok(())
}

/// The application properties as they are, with the mark.
fn put_mark(out: &mut BytesMut, given: Option<Value<'_>>) {
    put_descriptor(out, descriptor::APPLICATION_PROPERTIES);
    put_map(out, |out| {
        let mut count = 1;
        if let Some(Value::Map(map)) = given {
            for (key, value) in map.iter().filter(|(key, _)| key.as_str() != Some(RESENT)) {
                key.write(out);
                value.write(out);
                count += 1;
            }
        }
        put_str(out, RESENT);
        put_bool(out, true);
        count
    });
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use fieldgate_mappings::{
        Address, ByteString, DeviceId, Direction, Message, MessageId, Value as Typed, amqp,
    };

    use super::*;
    use crate::spool::record::{Entry, Record};

    const STORED: u64 = 1_795_379_735_000;

    fn message() -> Message {
        let device = DeviceId::new("pump-1").unwrap();
        let address = Address::parse("devices/pump-1/messages/events").unwrap();
        Message::new(device, Direction::Downlink, address, Bytes::from_static(b"on"))
    }

    /// What the hub reads, and the header's delivery count.
    fn sent(message: &Message, ttl: Option<Duration>, resent: bool, now: u64) -> (Message, u32) {
        let mut sections = BytesMut::new();
        amqp::encode(message, &mut sections);
        let record = Record {
            hub: "upstream".into(),
            device: message.device.clone(),
            address: message.address.clone(),
            priority: 4,
            stored_at: STORED,
            ttl,
            max_age: None,
            durable: true,
            possibly_delivered: false,
            rule: "r".into(),
            message: sections.freeze(),
        };
        let entry = Entry::Message(record);
        let mut bytes = Vec::new();
        entry.encode_head(&mut bytes);
        bytes.extend_from_slice(&entry.record().message);
        let body = Body::decode(&bytes).unwrap();
        let mut out = BytesMut::new();
        encode(&body, Marks { message_id: "fieldgate-1-2", resent, now }, &mut out).unwrap();
        let out = out.freeze();
        let sections = fieldgate_amqp::message::Sections::parse(&out, &Limits::WIRE).unwrap();
        let count = sections.header().delivery_count;
        (amqp::decode(message.device.clone(), message.address.clone(), &out).unwrap(), count)
    }

    fn text(text: &'static str) -> ByteString {
        ByteString::from_static(text)
    }

    #[test]
    fn a_message_keeps_what_it_has_and_gets_an_id() {
        let mut given = message();
        given.annotations.push((text("x-opt-a"), Typed::Ulong(1 << 40)));
        given.properties.subject = Some(text("s"));
        given.application_properties.push((text("site"), "ber".into()));
        let (got, count) = sent(&given, None, false, STORED);
        let mut expected = given.clone();
        (expected.durable, expected.properties.message_id) =
            (true, Some(MessageId::String(text("fieldgate-1-2"))));
        assert_eq!((got, count), (expected, 0));
        given.properties.message_id = Some(MessageId::Uuid([7; 16]));
        assert_eq!(sent(&given, None, false, STORED).0.properties, given.properties);
    }

    #[test]
    fn a_message_without_anything_gets_what_it_needs() {
        let (got, count) = sent(&message(), None, true, STORED);
        let mut expected = message();
        expected.durable = true;
        expected.properties.message_id = Some(MessageId::String(text("fieldgate-1-2")));
        expected.application_properties.push((text(RESENT), Typed::Bool(true)));
        assert_eq!((got, count), (expected, 1));
    }

    #[test]
    fn a_mark_stands_once_behind_the_others() {
        let mut given = message();
        given.application_properties.push((text(RESENT), "forged".into()));
        // More than fit a short map.
        (0..300).for_each(|n| given.application_properties.push((format!("p{n}").into(), Typed::Int(n))));
        let (got, _) = sent(&given, None, true, STORED);
        assert_eq!(got.application_properties.len(), 301);
        assert_eq!(got.application_properties.last(), Some(&(text(RESENT), Typed::Bool(true))));
        assert_eq!(got.application_properties[..300], given.application_properties[1..]);
    }

    #[test]
    fn the_time_in_the_spool_is_taken_from_the_ttl() {
        let ttl = |now| sent(&message(), Some(Duration::from_secs(10)), false, now).0.ttl;
        assert_eq!(ttl(STORED), Some(Duration::from_secs(10)));
        assert_eq!(ttl(STORED + 3_999), Some(Duration::from_millis(6_001)));
        assert_eq!(ttl(STORED + 10_000), Some(Duration::from_millis(1)));
        assert_eq!(
            ttl(STORED - 5_000),
            Some(Duration::from_secs(10)),
            "a clock that went back takes nothing"
        );
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        for bytes in [&b"\x40"[..], b"nonsense", b"\x00\x53\x75\xa0\x09on", b"\x00\x53\x73\x40"] {
            let record = Record {
                hub: "upstream".into(),
                device: DeviceId::new("d").unwrap(),
                address: Address::parse("a").unwrap(),
                priority: 4,
                stored_at: 0,
                ttl: None,
                max_age: None,
                durable: false,
                possibly_delivered: false,
                rule: "r".into(),
                message: Bytes::from_static(bytes),
            };
            let mut encoded = Vec::new();
            Entry::Message(record).encode_head(&mut encoded);
            encoded.extend_from_slice(bytes);
            let body = Body::decode(&encoded).unwrap();
            let marks = Marks { message_id: "id", resent: false, now: 0 };
            assert!(encode(&body, marks, &mut BytesMut::new()).is_err(), "{bytes:?}");
        }
    }
}
