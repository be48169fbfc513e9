//! Message sections against `fe2o3-amqp-types` in both directions, and against damage.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fe2o3_amqp_types::messaging as theirs;
use fe2o3_amqp_types::messaging::message::__private::{Deserializable, Serializable};
use fe2o3_amqp_types::primitives::{OrderedMap, SimpleValue, Symbol, Timestamp};

use super::*;
use crate::codec::{Limits, Value};
use crate::error::{DecodeError, DecodeFault};
use crate::testing::{Random, damaged};

type TheirMessage = theirs::Message<theirs::Body<serde_amqp::Value>>;

fn parse(bytes: impl Into<Bytes>) -> Result<Sections, DecodeError> {
    Sections::parse(&bytes.into(), &Limits::WIRE)
}

fn their_message(random: &mut Random) -> TheirMessage {
    let annotations: theirs::Annotations = [
        (theirs::annotations::OwnedKey::Symbol(Symbol::from("x-opt-offset")), serde_amqp::Value::Long(7)),
        (
            theirs::annotations::OwnedKey::Symbol(Symbol::from("x-opt-key")),
            serde_amqp::Value::String("k".into()),
        ),
    ]
    .into_iter()
    .collect();
    let properties: OrderedMap<String, SimpleValue> = [
        ("temperature".to_owned(), SimpleValue::Double(21.5.into())),
        ("alert".to_owned(), SimpleValue::Bool(true)),
        ("name".to_owned(), SimpleValue::String(random.text(20))),
    ]
    .into_iter()
    .collect();
    let ids = [
        theirs::MessageId::Ulong(7),
        theirs::MessageId::Uuid([9; 16].into()),
        theirs::MessageId::Binary(vec![1, 2].into()),
        theirs::MessageId::String("id".into()),
    ];
    TheirMessage {
        header: random.chance(2).then(|| theirs::Header {
            durable: true,
            priority: 7.into(),
            ttl: Some(5000),
            first_acquirer: true,
            delivery_count: random.uint(),
        }),
        delivery_annotations: random.chance(2).then(|| theirs::DeliveryAnnotations(annotations.clone())),
        message_annotations: random.chance(2).then(|| theirs::MessageAnnotations(annotations)),
        properties: random.chance(2).then(|| theirs::Properties {
            message_id: Some(random.pick(&ids).clone()),
            user_id: Some(vec![1, 2, 3].into()),
            to: Some("/devices/d/messages/events".into()),
            subject: random.chance(2).then(|| "subject".into()),
            reply_to: Some("reply".into()),
            correlation_id: random.chance(2).then(|| random.pick(&ids).clone()),
            content_type: Some("application/json".into()),
            content_encoding: Some("utf-8".into()),
            absolute_expiry_time: Some(Timestamp::from_milliseconds(1_700_000_000_000)),
            creation_time: Some(Timestamp::from_milliseconds(-1)),
            group_id: Some("group".into()),
            group_sequence: Some(random.uint()),
            reply_to_group_id: Some("other".into()),
        }),
        application_properties: random.chance(2).then_some(theirs::ApplicationProperties(properties)),
        body: match random.below(4) {
            0 => theirs::Body::Value(theirs::AmqpValue(serde_amqp::Value::String("value".into()))),
            1 => theirs::Body::Sequence(
                vec![theirs::AmqpSequence(vec![serde_amqp::Value::Int(1)]), theirs::AmqpSequence(vec![])]
                    .into(),
            ),
            2 => theirs::Body::Data(
                vec![theirs::Data(b"one".to_vec().into()), theirs::Data(b"two".to_vec().into())].into(),
            ),
            _ => theirs::Body::Data(vec![theirs::Data(random.bytes(300).into())].into()),
        },
        footer: None,
    }
}

fn bytes_of(message: &TheirMessage) -> Bytes {
    serde_amqp::to_vec(&Serializable(message)).unwrap().into()
}

/// The message written anew, section by section.
fn rewritten(sections: &Sections) -> Bytes {
    let mut out = BytesMut::new();
    put_header(&mut out, sections.header());
    put_delivery_annotations(&mut out, keyed(sections.delivery_annotations()));
    put_message_annotations(&mut out, keyed(sections.message_annotations()));
    let properties = sections.properties();
    put_properties(
        &mut out,
        &PropertiesOut {
            message_id: properties.message_id(),
            user_id: properties.user_id(),
            to: properties.to(),
            subject: properties.subject(),
            reply_to: properties.reply_to(),
            correlation_id: properties.correlation_id(),
            content_type: properties.content_type(),
            content_encoding: properties.content_encoding(),
            absolute_expiry_time: properties.absolute_expiry_time(),
            creation_time: properties.creation_time(),
            group_id: properties.group_id(),
            group_sequence: properties.group_sequence(),
            reply_to_group_id: properties.reply_to_group_id(),
        },
    );
    put_application_properties(&mut out, keyed(sections.application_properties()));
    match sections.body() {
        Body::Data(data) => put_data(&mut out, &data),
        Body::Value(value) => put_amqp_value(&mut out, &value),
        Body::Sequence(_) | Body::Empty => out.extend_from_slice(&sections.encoded_body()),
    }
    out.freeze()
}

fn keyed(map: crate::codec::MapIter<'_>) -> impl Iterator<Item = (&str, Value<'_>)> {
    map.map(|(key, value)| (key.as_str().unwrap(), value))
}

#[test]
fn messages_agree_in_both_directions() {
    let mut random = Random::new(20);
    for _ in 0..3_000 {
        let wrote = their_message(&mut random);
        let sections = parse(bytes_of(&wrote)).unwrap();
        let again: Deserializable<TheirMessage> = serde_amqp::from_slice(&rewritten(&sections)).unwrap();
        let mut expected = wrote.clone();
        // We write every section; an absent one is as an empty one.
        expected.header.get_or_insert_default();
        expected.delivery_annotations.get_or_insert(theirs::DeliveryAnnotations(Default::default()));
        expected.message_annotations.get_or_insert(theirs::MessageAnnotations(Default::default()));
        expected.properties.get_or_insert_default();
        expected.application_properties.get_or_insert(theirs::ApplicationProperties(Default::default()));
        if let theirs::Body::Data(pieces) = &wrote.body {
            let joined: Vec<u8> = pieces.iter().flat_map(|piece| piece.0.to_vec()).collect();
            expected.body = theirs::Body::Data(vec![theirs::Data(joined.into())].into());
        }
        assert_eq!(again.0, expected);
    }
}

#[test]
fn sections_are_read_by_their_names() {
    let mut random = Random::new(21);
    let mut message = their_message(&mut random);
    while message.properties.is_none() || message.application_properties.is_none() || message.header.is_none()
    {
        message = their_message(&mut random);
    }
    let sections = parse(bytes_of(&message)).unwrap();
    let header = sections.header();
    assert_eq!((header.durable, header.priority, header.ttl), (true, 7, Some(Duration::from_secs(5))));
    let properties = sections.properties();
    assert_eq!(properties.user_id(), Some(&[1, 2, 3][..]));
    assert_eq!(properties.to(), Some("/devices/d/messages/events"));
    assert_eq!((properties.creation_time(), properties.group_id()), (Some(-1), Some("group")));
    let first = sections.application_properties().next();
    assert_eq!(first, Some((Value::Str("temperature"), Value::Double(21.5))));
}

#[test]
fn absent_sections_have_their_defaults() {
    let sections = parse(Bytes::new()).unwrap();
    assert_eq!((sections.header(), sections.properties()), (&Header::default(), &Properties::default()));
    assert_eq!(sections.application_properties().count() + sections.footer().count(), 0);
    assert_eq!((sections.body(), sections.encoded_body().len()), (Body::Empty, 0));
    // A header of null fields is as none.
    assert_eq!(*parse(&b"\x00\x53\x70\xc0\x03\x02\x40\x40"[..]).unwrap().header(), Header::default());
}

#[test]
fn data_is_not_copied() {
    let message = Bytes::from_static(b"\x00\x53\x75\xa0\x04data");
    let sections = Sections::parse(&message, &Limits::WIRE).unwrap();
    let Body::Data(data) = sections.body() else { panic!() };
    assert_eq!((&data[..], data.as_ptr()), (&b"data"[..], message[5..].as_ptr()));
    assert!(!format!("{sections:?}").contains("data\""));
}

#[test]
fn sections_out_of_place_are_refused() {
    let header = &b"\x00\x53\x70\x45"[..];
    let properties = &b"\x00\x53\x73\x45"[..];
    let data = &b"\x00\x53\x75\xa0\x00"[..];
    let sequence = &b"\x00\x53\x76\x45"[..];
    let value = &b"\x00\x53\x77\x40"[..];
    let footer = &b"\x00\x53\x78\xc1\x01\x00"[..];
    let fault = |sections: &[&[u8]]| parse(sections.concat()).err().map(|error| error.fault);
    assert_eq!(fault(&[header, properties, data, data, footer]), None);
    assert_eq!(fault(&[sequence, sequence]), None);
    assert_eq!(fault(&[header, header]), Some(DecodeFault::SectionOrder(0x70)));
    assert_eq!(fault(&[properties, header]), Some(DecodeFault::SectionOrder(0x70)));
    assert_eq!(fault(&[data, sequence]), Some(DecodeFault::SectionOrder(0x76)));
    assert_eq!(fault(&[data, value]), Some(DecodeFault::SectionOrder(0x77)));
    assert_eq!(fault(&[value, value]), Some(DecodeFault::SectionOrder(0x77)));
    assert_eq!(fault(&[data, properties]), Some(DecodeFault::SectionOrder(0x73)));
    assert_eq!(fault(&[footer, data]), Some(DecodeFault::SectionOrder(0x75)));
    assert_eq!(fault(&[data, sequence, data]), Some(DecodeFault::SectionOrder(0x76)));
    assert_eq!(fault(&[b"\x00\x53\x79\x40"]), Some(DecodeFault::Descriptor));
    assert_eq!(fault(&[b"\x00\xa3\x01x\x40"]), Some(DecodeFault::Descriptor));
    assert_eq!(fault(&[b"\x40"]), Some(DecodeFault::Descriptor));
    assert_eq!(fault(&[b"\x00\x53\x75\xa1\x00"]), Some(DecodeFault::Field("body")));
    assert_eq!(fault(&[b"\x00\x53\x74\x45"]), Some(DecodeFault::Type { expected: "map" }));
    assert_eq!(fault(&[b"\x00\x53\x70\xc0\x02\x01\x43"]), Some(DecodeFault::Type { expected: "boolean" }));
    assert_eq!(fault(&[b"\x00\x53\x73\xc0\x02\x01\x43"]), Some(DecodeFault::Field("message-id")));
    let offset = parse([header, data, b"\x00\x53\x78\xc1\x05"].concat()).unwrap_err().offset;
    assert_eq!(offset, header.len() + data.len() + 5);
}

#[test]
fn every_prefix_is_refused_or_ends_between_sections() {
    let mut random = Random::new(22);
    for _ in 0..200 {
        let message = bytes_of(&their_message(&mut random));
        let whole = parse(message.clone()).unwrap();
        for end in 0..message.len() {
            if let Ok(sections) = parse(message.slice(..end)) {
                assert!(sections.encoded_body().len() < whole.encoded_body().len());
            }
        }
    }
}

#[test]
fn damage_never_panics_and_what_passes_is_readable() {
    let mut random = Random::new(23);
    let (mut passed, mut refused) = (0, 0);
    for _ in 0..20_000 {
        let message = bytes_of(&their_message(&mut random));
        match parse(damaged(&message, &mut random)) {
            Ok(sections) => {
                passed += 1;
                let properties = sections.properties();
                let _ = (properties.message_id(), properties.to(), properties.absolute_expiry_time());
                let _ = (sections.footer().count(), sections.body(), sections.header());
                let keys = sections.application_properties().chain(sections.message_annotations());
                if keys.chain(sections.delivery_annotations()).all(|(key, _)| key.as_str().is_some()) {
                    let again = parse(rewritten(&sections)).unwrap();
                    assert_eq!(rewritten(&again), rewritten(&sections));
                }
            }
            Err(_) => refused += 1,
        }
    }
    assert!(passed > 1_000 && refused > 1_000, "{passed} passed, {refused} refused");
}

#[test]
fn a_message_gets_another_to_and_nothing_else_changes() {
    let mut head = BytesMut::new();
    put_header(&mut head, &Header { durable: true, ..Header::default() });
    put_message_annotations(&mut head, [("x-opt", Value::Uint(1))]);
    let mut tail = BytesMut::new();
    put_application_properties(&mut tail, [("site", Value::Str("b"))]);
    put_data(&mut tail, b"body");
    let properties = |properties: &PropertiesOut<'_>| {
        let mut out = BytesMut::new();
        put_properties(&mut out, properties);
        out
    };
    let full = PropertiesOut { to: Some("theirs"), subject: Some("s"), ..PropertiesOut::default() };
    // Some peers leave trailing fields out.
    let short = BytesMut::from(&b"\x00\x53\x73\xc0\x03\x01\x53\x07"[..]);
    let none = BytesMut::new();
    for (head, middle, subject) in [
        (&head, properties(&full), Some("s")),
        (&head, none.clone(), None),
        (&none, properties(&full), Some("s")),
        (&head, short, None),
    ] {
        let message = [&head[..], &middle[..], &tail[..]].concat();
        let mut out = BytesMut::new();
        put_readdressed(&mut out, &Bytes::from(message), "ours").unwrap();
        let out = out.freeze();
        assert!(out.starts_with(head) && out.ends_with(&tail));
        let sections = parse(out).unwrap();
        assert_eq!((sections.properties().to(), sections.properties().subject()), (Some("ours"), subject));
    }
    let mut out = BytesMut::new();
    put_readdressed(&mut out, &Bytes::new(), "ours").unwrap();
    assert_eq!(parse(out).unwrap().properties().to(), Some("ours"));
    assert!(
        put_readdressed(&mut BytesMut::new(), &Bytes::from_static(b"\x00\x53\x73\xc0\xff"), "ours").is_err()
    );
    assert!(put_readdressed(&mut BytesMut::new(), &Bytes::from_static(b"text"), "ours").is_err());
}
