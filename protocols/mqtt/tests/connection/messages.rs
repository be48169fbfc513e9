//! PUBLISH from the client and its PUBACK; PUBLISH toward the client.

use std::time::Duration;

use bytes::BytesMut;
use fieldgate_mqtt::{
    Config, DisconnectReason, Event, Misuse, OutgoingPublish, PublishError, PublishProperties, PublishReply,
    QoS, Version, Violation,
    client::{self, ConnectOptions, ServerPacket},
};

use crate::support::{BOTH, Server, id, message, publish, published, tokens};

fn properties() -> PublishProperties {
    PublishProperties {
        payload_is_utf8: Some(true),
        message_expiry_interval: Some(Duration::from_secs(60)),
        content_type: Some("application/json".into()),
        response_topic: Some("r/1".into()),
        correlation_data: Some(b"\x00\xFF"[..].into()),
        user_properties: vec![("k".into(), "1".into()), ("k".into(), "2".into())],
        subscription_identifiers: Vec::new(),
    }
}

#[test]
fn a_message_arrives_with_everything_it_says() {
    let properties = properties();
    for version in BOTH {
        for (qos, dup, retain) in
            [(QoS::AtMostOnce, false, true), (QoS::AtLeastOnce, true, false), (QoS::ExactlyOnce, true, true)]
        {
            let mut server = Server::open_default(version);
            let sent = OutgoingPublish {
                topic: "a/é",
                payload: "\0payload\u{ff}".as_bytes(),
                qos,
                dup,
                retain,
                properties: Some(&properties),
            };
            let mut bytes = BytesMut::new();
            client::put_publish(version, id(0x0102), &sent, &mut bytes).expect("can be said");
            let got = published(server.events(&bytes)).remove(0);
            assert_eq!(got.topic, "a/é");
            assert_eq!(got.payload, sent.payload);
            assert_eq!((got.qos, got.dup, got.retain), (qos, dup, retain));
            assert_eq!(got.token.is_some(), qos != QoS::AtMostOnce);
            let expected = (version == Version::V5).then(|| Box::new(properties.clone()));
            assert_eq!(got.properties, expected);
            assert_eq!(server.machine.unacknowledged(), usize::from(qos != QoS::AtMostOnce));
            assert!(server.machine.poll_transmit().is_none(), "nothing is acknowledged by itself");
        }
    }
}

#[test]
fn a_payload_is_a_slice_of_the_input() {
    let mut server = Server::open_default(Version::V5);
    let mut input = BytesMut::from(&publish(Version::V5, 1)[..]);
    input.extend_from_slice(&publish(Version::V5, 2));
    let memory = input.as_ptr() as usize..input.as_ptr() as usize + input.len();
    server.machine.handle_input(server.now, input);
    let messages = published(server.drain());
    assert_eq!(messages.len(), 2);
    for message in messages {
        assert!(memory.contains(&(message.payload.as_ptr() as usize)));
    }
}

#[test]
fn pubacks_leave_in_the_order_of_the_messages() {
    for version in BOTH {
        let mut server = Server::open_default(version);
        let input = [publish(version, 5), publish(version, 9), publish(version, 2)].concat();
        let tokens = tokens(server.events(&input));
        server.machine.acknowledge(tokens[2], PublishReply::Success);
        server.machine.acknowledge(tokens[1], PublishReply::QuotaExceeded);
        assert!(server.machine.poll_transmit().is_none());
        server.machine.acknowledge(tokens[0], PublishReply::Success);
        let expected: &[u8] = match version {
            Version::V311 => b"\x40\x02\x00\x05\x40\x02\x00\x09\x40\x02\x00\x02",
            Version::V5 => b"\x40\x02\x00\x05\x40\x04\x00\x09\x97\x00\x40\x02\x00\x02",
        };
        assert_eq!(server.written(), expected);
        server.machine.acknowledge(tokens[0], PublishReply::Success);
        assert!(server.machine.poll_transmit().is_none(), "one PUBACK for one PUBLISH");
        // The identifiers are free again.
        assert_eq!(self::tokens(server.events(&input)).len(), 3);
    }
}

#[test]
fn every_reply_has_its_code() {
    let mut server = Server::open_default(Version::V5);
    for (reply, code) in [
        (PublishReply::NoMatchingSubscribers, 0x10),
        (PublishReply::Unspecified, 0x80),
        (PublishReply::ImplementationSpecific, 0x83),
        (PublishReply::NotAuthorised, 0x87),
        (PublishReply::TopicNameInvalid, 0x90),
        (PublishReply::QuotaExceeded, 0x97),
        (PublishReply::PayloadFormatInvalid, 0x99),
    ] {
        let token = tokens(server.events(&publish(Version::V5, 1)))[0];
        server.machine.acknowledge(token, reply);
        let expected = ServerPacket::PubAck { packet_id: id(1), reason: code };
        assert_eq!(server.packets(Version::V5), [expected]);
        assert_eq!(reply.code(), code);
    }
}

#[test]
fn a_refusal_is_explained_where_the_client_wants_to_know() {
    for (asked, words) in [(true, Some("no rule")), (false, None)] {
        let options =
            ConnectOptions { request_problem_information: asked, ..ConnectOptions::new(Version::V5, "d") };
        let mut server = Server::open(&options, Config::default());
        let tokens = tokens(server.events(&[publish(Version::V5, 1), publish(Version::V5, 2)].concat()));
        // It waits for its turn, and so do its words.
        server.machine.acknowledge_because(tokens[1], PublishReply::TopicNameInvalid, Some("no rule"));
        assert_eq!(server.written(), b"");
        server.machine.acknowledge(tokens[0], PublishReply::Success);
        let mut decoder = client::Decoder::new(Version::V5);
        decoder.push(&server.written());
        let expected = |number, reason| Ok(Some(ServerPacket::PubAck { packet_id: id(number), reason }));
        assert_eq!((decoder.next_packet(), decoder.words()), (expected(1, 0), None));
        assert_eq!((decoder.next_packet(), decoder.words()), (expected(2, 0x90), words));
        server.machine.disconnect_because(DisconnectReason::ServerBusy, Some("later"));
        decoder.push(&server.written());
        let goodbye = Ok(Some(ServerPacket::Disconnect { reason: 0x89 }));
        assert_eq!((decoder.next_packet(), decoder.words()), (goodbye, Some("later")), "3.1.2-29 allows it");
    }
}

#[test]
fn a_payload_that_is_not_the_text_that_it_says_it_is() {
    let text = PublishProperties { payload_is_utf8: Some(true), ..PublishProperties::default() };
    let mut server = Server::open_default(Version::V5);
    let first = tokens(server.events(&publish(Version::V5, 1)))[0];
    for (number, qos) in [(2, QoS::AtLeastOnce), (3, QoS::ExactlyOnce)] {
        let mut bytes = BytesMut::new();
        let sent = OutgoingPublish { properties: Some(&text), ..message("t", b"\xC3\x28", qos) };
        client::put_publish(Version::V5, id(number), &sent, &mut bytes).expect("can be said");
        let reply = PublishReply::PayloadFormatInvalid;
        assert_eq!(server.events(&bytes), [Event::PublishRefused(reply)], "no mapping sees it");
    }
    assert_eq!(server.written(), b"", "its answer keeps to the order");
    server.machine.acknowledge(first, PublishReply::Success);
    let expected = [
        ServerPacket::PubAck { packet_id: id(1), reason: 0 },
        ServerPacket::PubAck { packet_id: id(2), reason: 0x99 },
        ServerPacket::PubRec { packet_id: id(3), reason: 0x99 },
    ];
    assert_eq!(server.packets(Version::V5), expected);
    let mut bytes = BytesMut::new();
    let sent = OutgoingPublish { properties: Some(&text), ..message("t", "ä".as_bytes(), QoS::AtMostOnce) };
    client::put_publish(Version::V5, id(9), &sent, &mut bytes).expect("can be said");
    assert_eq!(published(server.events(&bytes)).len(), 1);
}

#[test]
fn an_answer_after_the_end_is_for_nobody() {
    let mut server = Server::open_default(Version::V5);
    let token = tokens(server.events(&publish(Version::V5, 1)))[0];
    server.events(b"\xE0\x00");
    server.machine.acknowledge(token, PublishReply::Success);
    assert!(server.machine.poll_transmit().is_none());
}

#[test]
fn a_repetition_while_the_first_one_waits() {
    let repeated = |version| {
        let mut bytes = publish(version, 7);
        bytes[0] |= 0x08;
        bytes
    };
    let mut server = Server::open_default(Version::V311);
    let token = tokens(server.events(&publish(Version::V311, 7)))[0];
    assert_eq!(server.events(&repeated(Version::V311)), [], "the device hears one PUBACK for both");
    server.machine.acknowledge(token, PublishReply::Success);
    assert_eq!(server.written(), b"\x40\x02\x00\x07");
    assert_eq!(server.events(&repeated(Version::V311)).len(), 1, "after PUBACK it is a new message");

    let in_use = Violation::Protocol("a packet identifier that is in use");
    let mut server = Server::open_default(Version::V5);
    server.events(&publish(Version::V5, 7));
    assert_eq!(server.violation(&repeated(Version::V5)), in_use);
    let mut server = Server::open_default(Version::V311);
    server.events(&publish(Version::V311, 7));
    assert_eq!(server.violation(&publish(Version::V311, 7)), in_use, "without DUP it is another message");
}

#[test]
fn what_a_publish_may_not_say() {
    for (bytes, code) in [
        (&b"\x34\x06\x00\x01t\x00\x00\x00"[..], 0x81), // packet identifier 0
        (b"\x36\x06\x00\x01t\x00\x01\x00", 0x81),      // QoS 3
        (b"\x38\x04\x00\x01t\x00", 0x81),              // DUP of QoS 0
        (b"\x30\x04\x00\x01+\x00", 0x90),              // wildcard
        (b"\x30\x05\x00\x02a#\x00", 0x90),
        (b"\x30\x04\x00\x01\x00\x00", 0x81),                  // NUL
        (b"\x30\x05\x00\x02\xC3\x28\x00", 0x81),              // not UTF-8
        (b"\x30\x03\x00\x00\x00", 0x82),                      // no topic
        (b"\x30\x06\x00\x00\x03\x23\x00\x01", 0x82),          // a topic alias that stands for nothing
        (b"\x30\x06\x00\x00\x03\x23\x00\x11", 0x94),          // a topic alias above the maximum
        (b"\x30\x07\x00\x01+\x03\x23\x00\x01", 0x90),         // an alias for a wildcard
        (b"\x30\x07\x00\x01t\x02\x01\x01\xFF", 0x99),         // no text, though it says so
        (b"\x30\x07\x00\x01t\x03\x23\x00\x00", 0x94),         // topic alias 0
        (b"\x32\x06\x00\x01t\x00\x00\x00", 0x81),             // packet identifier 0
        (b"\x32\x04\x00\x01t\x00", 0x81),                     // half of one
        (b"\x30\x06\x00\x01t\x02\x0B\x01", 0x82),             // a subscription identifier
        (b"\x30\x08\x00\x01t\x04\x01\x00\x01\x00", 0x82),     // a property twice
        (b"\x30\x09\x00\x01t\x05\x11\x00\x00\x00\x01", 0x81), // a property of CONNECT
        (b"\x30\x06\x00\x01t\x02\x01\x02", 0x82),             // a payload format that is none
        (b"\x30\x08\x00\x01t\x04\x08\x00\x01#", 0x82),        // a response topic with a wildcard
        (b"\x30\x05\x00\x01t\x05\x01", 0x81),                 // properties past the end
        (b"\x30\x05\x00\x01t\x80\x00", 0x81),                 // a length longer than needed
        (b"\x30\x84\x00\x00\x01t\x00", 0x81),                 // also in the fixed header
    ] {
        let mut server = Server::open_default(Version::V5);
        let violation = server.violation(bytes);
        assert_eq!(server.last_words(), [0xE0, 1, code], "{bytes:x?}: {violation}");
    }
    for bytes in
        [&b"\x34\x05\x00\x01t\x00\x00"[..], b"\x30\x03\x00\x01#", b"\x30\x02\x00\x00", b"\x30\x01\x00"]
    {
        let mut server = Server::open_default(Version::V311);
        server.violation(bytes);
        assert_eq!(server.written(), b"", "3.1.1 closes without a word");
    }
}

#[test]
fn packets_that_no_client_sends_here() {
    for version in BOTH {
        for first in
            [0x00, 0x20, 0x51, 0x60, 0x6A, 0x72, 0x90, 0xB0, 0xD0, 0xF0, 0x41, 0x80, 0xA0, 0xC1, 0xE1]
        {
            let mut server = Server::open_default(version);
            // One byte is enough: nothing is buffered for what cannot become a packet.
            let violation = server.violation(&[first]);
            assert!(matches!(violation, Violation::Protocol(_) | Violation::Malformed(_)), "{first:x}");
        }
    }
}

#[test]
fn a_packet_that_is_too_large_is_refused_by_its_header() {
    let mut server = Server::open(
        &ConnectOptions::new(Version::V5, "d"),
        Config { max_packet_bytes: 100, ..Config::default() },
    );
    assert_eq!(server.violation(b"\x30\xE3\x01"), Violation::PacketTooLarge(227));
    assert_eq!(server.last_words(), b"\xE0\x01\x95");
    for (payload, taken) in [(94, true), (95, false)] {
        let config = Config { max_packet_bytes: 100, ..Config::default() };
        let mut server = Server::open(&ConnectOptions::new(Version::V5, "d"), config);
        let mut bytes = BytesMut::new();
        client::put_publish(
            Version::V5,
            id(1),
            &message("t", &vec![1; payload], QoS::AtMostOnce),
            &mut bytes,
        )
        .expect("can be said");
        assert_eq!(matches!(server.events(&bytes)[..], [Event::Publish(_)]), taken, "{} bytes", bytes.len());
    }
}

#[test]
fn a_message_toward_the_client() {
    let properties = properties();
    for version in BOTH {
        let mut server = Server::open_default(version);
        let publish = OutgoingPublish {
            topic: "devices/d/messages/devicebound/%24.mid=1",
            payload: b"\x00go",
            qos: QoS::AtLeastOnce,
            dup: true,
            retain: true,
            properties: Some(&properties),
        };
        assert_eq!(server.machine.publish(&publish), Ok(Some(id(1))));
        let expected = ServerPacket::Publish {
            packet_id: Some(id(1)),
            topic: publish.topic.into(),
            payload: publish.payload.to_vec().into(),
            qos: QoS::AtLeastOnce,
            dup: true,
            retain: true,
            properties: if version == Version::V5 {
                properties.clone()
            } else {
                PublishProperties::default()
            },
        };
        assert_eq!(server.packets(version), [expected]);
        let mut ack = BytesMut::new();
        client::put_puback(version, id(1), PublishReply::NotAuthorised, &mut ack);
        let reason = if version == Version::V5 { 0x87 } else { 0 };
        assert_eq!(server.events(&ack), [Event::PublishAcknowledged { packet_id: id(1), reason }]);
        assert_eq!(server.events(&ack), [], "an acknowledgement for which nobody waits");
    }
}

#[test]
fn pubacks_of_5_in_all_their_lengths() {
    for (bytes, reason) in [
        (&b"\x40\x02\x00\x01"[..], 0),
        (b"\x40\x03\x00\x01\x10", 0x10),
        (b"\x40\x04\x00\x01\x91\x00", 0x91),
        (b"\x40\x0B\x00\x01\x80\x07\x26\x00\x01a\x00\x01b", 0x80),
        (b"\x40\x09\x00\x01\x97\x05\x1F\x00\x02no", 0x97),
    ] {
        let mut server = Server::open_default(Version::V5);
        server.machine.publish(&message("t", b"", QoS::AtLeastOnce)).expect("room");
        assert_eq!(server.events(bytes), [Event::PublishAcknowledged { packet_id: id(1), reason }]);
    }
    for bytes in [
        &b"\x40\x01\x00"[..],
        b"\x40\x02\x00\x00",
        b"\x40\x03\x00\x01\x01",
        b"\x40\x05\x00\x01\x00\x00\x00",
        b"\x40\x05\x00\x01\x00\x02\x1F",
    ] {
        assert!(
            matches!(Server::open_default(Version::V5).violation(bytes), Violation::Malformed(_)),
            "{bytes:?}"
        );
    }
    assert!(matches!(
        Server::open_default(Version::V311).violation(b"\x40\x03\x00\x01\x00"),
        Violation::Malformed(_)
    ));
}

#[test]
fn what_may_not_be_sent_to_the_client() {
    let mut server = Server::open_default(Version::V5);
    for (publish, misuse) in [
        (message("a/+", b"", QoS::AtMostOnce), Misuse::TopicNameInvalid),
        (message("", b"", QoS::AtMostOnce), Misuse::TopicNameInvalid),
        (message("t", b"", QoS::ExactlyOnce), Misuse::QosNotSupported),
    ] {
        assert_eq!(server.machine.publish(&publish), Err(PublishError::Misuse(misuse)));
    }
    let mut unopened = Server::new(Config::default());
    assert_eq!(
        unopened.machine.publish(&message("t", b"", QoS::AtMostOnce)),
        Err(PublishError::Misuse(Misuse::NotOpen))
    );
    let small = ConnectOptions { max_packet_bytes: Some(20), ..ConnectOptions::new(Version::V5, "d") };
    let mut server = Server::open(&small, Config::default());
    assert_eq!(server.machine.publish(&message("t", b"12345678901234", QoS::AtMostOnce)), Ok(None));
    assert_eq!(
        server.machine.publish(&message("t", b"123456789012345", QoS::AtMostOnce)),
        Err(PublishError::TooLarge(21))
    );
}
