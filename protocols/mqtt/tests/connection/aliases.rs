//! Topic aliases both ways (MQTT 5 3.3.2.3.4).

use bytes::BytesMut;
use fieldgate_mqtt::{
    Config, Event, QoS, Version, Violation,
    client::{self, ConnectOptions, Decoder, ServerPacket},
};

use crate::support::{Server, id, message, published};

fn aliased(topic: &str, alias: u16, with_name: bool) -> Vec<u8> {
    let mut out = BytesMut::new();
    let publish = message(topic, b"x", QoS::AtMostOnce);
    client::put_aliased_publish(id(1), &publish, alias, with_name, &mut out).expect("can be said");
    out.into()
}

fn topic(server: &mut Server, bytes: &[u8]) -> String {
    published(server.events(bytes)).remove(0).topic.as_str().to_owned()
}

#[test]
fn a_client_names_a_topic_once() {
    let mut server = Server::open_default(Version::V5);
    assert_eq!(topic(&mut server, &aliased("a/b", 16, true)), "a/b");
    assert_eq!(topic(&mut server, &aliased("c", 1, true)), "c");
    assert_eq!(topic(&mut server, &aliased("x", 16, false)), "a/b");
    assert_eq!(topic(&mut server, &aliased("d", 16, true)), "d", "it stands for another one from now on");
    assert_eq!(topic(&mut server, &aliased("x", 16, false)), "d");
    assert_eq!(topic(&mut server, &aliased("x", 1, false)), "c");
    let alone = published(server.events(&aliased("x", 1, false))).remove(0);
    assert_eq!(alone.properties, None, "an alias is no property of the message");
    assert_eq!(server.violation(&aliased("x", 17, false)), Violation::TopicAliasInvalid);
    assert_eq!(server.last_words(), b"\xE0\x01\x94");
}

#[test]
fn an_alias_keeps_no_read_buffer_and_no_more_bytes_than_it_may() {
    let mut server = Server::open(
        &ConnectOptions::new(Version::V5, "d"),
        Config { max_alias_bytes: 10, ..Config::default() },
    );
    let mut scratch = BytesMut::with_capacity(4096);
    scratch.extend_from_slice(&aliased("123456", 1, true));
    server.machine.handle_input(server.now, scratch.split());
    drop(server.drain());
    assert!(scratch.try_reclaim(4096), "the topic was copied");
    assert_eq!(topic(&mut server, &aliased("1234", 2, true)), "1234");
    assert_eq!(topic(&mut server, &aliased("4321", 2, true)), "4321");
    assert!(matches!(server.violation(&aliased("x", 3, true)), Violation::Quota(_)));
    assert_eq!(server.last_words(), b"\xE0\x01\x97");
}

#[test]
fn without_a_maximum_there_is_no_alias() {
    let mut server = Server::open(
        &ConnectOptions::new(Version::V5, "d"),
        Config { topic_alias_maximum: 0, ..Config::default() },
    );
    assert_eq!(server.violation(&aliased("t", 1, true)), Violation::TopicAliasInvalid);
}

#[test]
fn our_topics_are_named_once_to_a_client_that_takes_aliases() {
    let options = ConnectOptions { topic_alias_maximum: 2, ..ConnectOptions::new(Version::V5, "d") };
    let mut server = Server::open(&options, Config::default());
    let mut decoder = Decoder::new(Version::V5);
    let mut bytes = Vec::new();
    let topics = ["commands/a", "commands/a", "commands/b", "commands/c", "commands/a", "commands/c", "t"];
    for topic in topics {
        server.machine.publish(&message(topic, b"x", QoS::AtMostOnce)).expect("room");
        let written = server.written();
        bytes.push(written.len());
        decoder.push(&written);
        match decoder.next_packet() {
            Ok(Some(ServerPacket::Publish { topic: heard, .. })) => assert_eq!(heard, topic),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(bytes, [19, 9, 19, 19, 19, 9, 7], "the oldest alias made room for the third topic");

    let mut server = Server::open_default(Version::V5);
    for _ in 0..2 {
        server.machine.publish(&message("commands/a", b"x", QoS::AtMostOnce)).expect("room");
        assert_eq!(server.written().len(), 16, "this client takes none");
    }
}

#[test]
fn an_alias_that_was_not_said_stands_for_nothing() {
    let options = ConnectOptions {
        topic_alias_maximum: 4,
        max_packet_bytes: Some(20),
        ..ConnectOptions::new(Version::V5, "d")
    };
    let mut server = Server::open(&options, Config { outgoing_window: 1, ..Config::default() });
    let mut decoder = Decoder::new(Version::V5);
    // With an alias the packet would be too large for the client; and a message without room in the window is not sent.
    server.machine.publish(&message("commands/a", b"12345", QoS::AtMostOnce)).expect("fits without");
    server.machine.publish(&message("commands/b", b"", QoS::AtLeastOnce)).expect("room");
    assert!(server.machine.publish(&message("commands/c", b"", QoS::AtLeastOnce)).is_err());
    assert!(server.machine.publish(&message("commands/d", b"1234567890", QoS::AtMostOnce)).is_err());
    for topic in ["commands/a", "commands/b", "commands/c", "commands/d"] {
        server.machine.publish(&message(topic, b"", QoS::AtMostOnce)).expect("room");
    }
    decoder.push(&server.written());
    let mut heard = Vec::new();
    while let Some(packet) = decoder.next_packet().expect("no alias without a name") {
        match packet {
            ServerPacket::Publish { topic, .. } => heard.push(topic.as_str().to_owned()),
            other => panic!("{other:?}"),
        }
    }
    let expected = ["a", "b", "a", "b", "c", "d"].map(|last| format!("commands/{last}"));
    assert_eq!(heard, expected);
}

#[test]
fn an_older_client_has_no_aliases() {
    let mut server = Server::open_default(Version::V311);
    let events = server.events(b"\x30\x07\x00\x01t\x03\x23\x00\x01");
    let [Event::Publish(publish)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(publish.payload, &b"\x03\x23\x00\x01"[..], "what looks like properties is payload");
}
