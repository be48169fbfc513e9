//! CONNECT and its answers, as bytes.

use std::time::Duration;

use bytes::BytesMut;
use fieldgate_mqtt::{
    Accept, Config, ConnectRefusal, DisconnectReason, Event, Misuse, PublishProperties, QoS, Version,
    Violation, Will,
    client::{self, ConnAck, ConnectOptions, ServerPacket},
};

use crate::support::{BOTH, Server, publish};

fn connect(options: &ConnectOptions<'_>) -> Vec<u8> {
    let mut out = BytesMut::new();
    client::put_connect(options, &mut out).expect("can be said");
    out.into()
}

/// MQTT 3.1.1 figure 3.6 with the client identifier `d` instead of will and credentials.
const CONNECT_311: &[u8] = b"\x10\x0D\x00\x04MQTT\x04\x02\x00\x0A\x00\x01d";

#[test]
fn a_client_of_3_1_1_is_accepted() {
    let mut server = Server::new(Config::default());
    let events = server.events(CONNECT_311);
    let [Event::Connect(connect)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((connect.version, connect.keep_alive), (Version::V311, Duration::from_secs(10)));
    assert_eq!(server.machine.version(), Some(Version::V311));
    assert!(server.machine.poll_transmit().is_none(), "no CONNACK before somebody has decided");
    let accept = Accept {
        session_present: true,
        assigned_client_id: Some("x"),
        session_expiry_seconds: Some(1),
        ..Accept::default()
    };
    server.machine.accept(server.now, accept).expect("waits");
    assert_eq!(server.written(), b"\x20\x02\x01\x00");
    assert_eq!(server.machine.accept(server.now, Accept::default()), Err(Misuse::NotConnecting));
    assert_eq!(server.machine.refuse(ConnectRefusal::ServerBusy), Err(Misuse::NotConnecting));
}

#[test]
fn a_client_of_5_hears_the_limits() {
    let mut server = Server::new(Config { retain_available: false, ..Config::default() });
    let options =
        ConnectOptions { keep_alive: Duration::from_secs(1201), ..ConnectOptions::new(Version::V5, "") };
    assert!(matches!(server.events(&connect(&options))[..], [Event::Connect(_)]));
    let accept =
        Accept { assigned_client_id: Some("chosen"), session_expiry_seconds: Some(0), ..Accept::default() };
    server.machine.accept(server.now, accept).expect("waits");
    let written = server.written();
    // Retain Available 0, Shared Subscription Available 0.
    for property in [[0x25, 0], [0x2A, 0]] {
        assert!(written.windows(2).any(|pair| pair == property), "{property:?} in {written:?}");
    }
    let mut decoder = client::Decoder::new(Version::V5);
    decoder.push(&written);
    let expected = ConnAck {
        session_present: false,
        code: 0,
        assigned_client_id: Some("chosen".into()),
        keep_alive: Some(Duration::from_secs(1200)),
        receive_maximum: Some(100),
        max_packet_bytes: Some((256 + 16) * 1024),
        session_expiry_seconds: Some(0),
        maximum_qos: QoS::ExactlyOnce,
        topic_alias_maximum: 16,
        response_information: None,
    };
    assert_eq!(decoder.next_packet(), Ok(Some(ServerPacket::ConnAck(expected))));
    assert_eq!(decoder.next_packet(), Ok(None));
}

#[test]
fn a_client_that_takes_no_connack_is_closed() {
    for (max_packet_bytes, open) in [(17, false), (18, true)] {
        let mut server = Server::new(Config::default());
        let options = ConnectOptions {
            max_packet_bytes: Some(max_packet_bytes),
            ..ConnectOptions::new(Version::V5, "d")
        };
        server.events(&connect(&options));
        server.machine.accept(server.now, Accept::default()).expect("waits");
        assert_eq!(server.machine.is_closed(), !open);
        assert_eq!(server.written().is_empty(), !open);
    }
}

#[test]
fn everything_that_connect_can_say_arrives() {
    let will = Will {
        topic: "w/t".into(),
        payload: b"gone\xFF"[..].into(),
        qos: QoS::AtLeastOnce,
        retain: true,
        delay: Duration::from_secs(3),
        properties: PublishProperties {
            content_type: Some("text/plain".into()),
            correlation_data: Some(b"\x00\x01"[..].into()),
            user_properties: vec![("a".into(), "1".into()), ("a".into(), "2".into())],
            ..PublishProperties::default()
        },
    };
    for version in BOTH {
        let options = ConnectOptions {
            clean_start: false,
            username: Some(""),
            password: Some(b"\xFF\x00"),
            will: Some(&will),
            session_expiry_seconds: 7,
            receive_maximum: Some(5),
            max_packet_bytes: Some(1000),
            ..ConnectOptions::new(version, "d")
        };
        let events = Server::new(Config::default()).events(&connect(&options));
        let [Event::Connect(connect)] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!(connect.client_id, "d");
        assert!(!connect.clean_start);
        assert_eq!(connect.username, Some("".into()), "an empty user name is one");
        assert_eq!(connect.password.as_deref(), Some(&b"\xFF\x00"[..]));
        let got = connect.will.as_deref().expect("a will");
        if version == Version::V5 {
            assert_eq!(got, &will);
            assert_eq!((connect.session_expiry_seconds, connect.receive_maximum), (7, 5));
            assert_eq!(connect.max_packet_bytes, Some(1000));
        } else {
            let bare =
                Will { delay: Duration::ZERO, properties: PublishProperties::default(), ..will.clone() };
            assert_eq!(got, &bare);
            assert_eq!((connect.session_expiry_seconds, connect.receive_maximum), (0, 65_535));
        }
    }
}

#[test]
fn refusals_in_the_words_of_the_version() {
    for (version, refusal, bytes) in [
        (Version::V311, ConnectRefusal::BadUserNameOrPassword, &b"\x20\x02\x00\x04"[..]),
        (Version::V311, ConnectRefusal::NotAuthorised, b"\x20\x02\x00\x05"),
        (Version::V311, ConnectRefusal::PacketTooLarge, b""),
        (Version::V5, ConnectRefusal::BadUserNameOrPassword, b"\x20\x03\x00\x86\x00"),
        (Version::V5, ConnectRefusal::ServerUnavailable, b"\x20\x03\x00\x88\x00"),
    ] {
        let mut server = Server::new(Config::default());
        server.events(&connect(&ConnectOptions::new(version, "d")));
        server.machine.refuse(refusal).expect("waits");
        assert!(server.machine.is_closed() && !server.machine.wants_input());
        assert_eq!(server.written(), bytes);
        assert_eq!(server.events(&publish(version, 1)), [], "nothing is heard after the end");
    }
}

#[test]
fn a_connect_that_cannot_be_taken_is_answered_where_an_answer_exists() {
    for (bytes, violation, answer) in [
        (
            &b"\x10\x0F\x00\x06MQIsdp\x04\x02\x00\x0A\x00\x01d"[..],
            Violation::UnsupportedVersion(4),
            &b"\x20\x02\x00\x01"[..],
        ),
        (
            b"\x10\x0D\x00\x04MQTT\x06\x02\x00\x0A\x00\x01d",
            Violation::UnsupportedVersion(6),
            b"\x20\x03\x00\x84\x00",
        ),
        (
            b"\x10\x0C\x00\x04MQTT\x04\x00\x00\x0A\x00\x00",
            Violation::ClientIdentifierNotValid,
            b"\x20\x02\x00\x02",
        ),
        (
            b"\x10\x12\x00\x04MQTT\x05\x02\x00\x0A\x04\x15\x00\x01m\x00\x01d",
            Violation::BadAuthenticationMethod,
            b"\x20\x03\x00\x8C\x00",
        ),
        (
            b"\x10\x17\x00\x04MQTT\x05\x16\x00\x0A\x00\x00\x01d\x02\x01\x01\x00\x01w\x00\x01\xFF",
            Violation::PayloadFormatInvalid,
            b"\x20\x03\x00\x99\x00",
        ),
        (
            b"\x10\x0D\x00\x04MQTT\x05\x03\x00\x0A\x00\x00\x00",
            Violation::Malformed("the reserved flag of CONNECT is set"),
            b"\x20\x03\x00\x81\x00",
        ),
        (
            b"\x10\x0C\x00\x04MQTT\x04\x03\x00\x0A\x00\x00",
            Violation::Malformed("the reserved flag of CONNECT is set"),
            b"",
        ),
    ] {
        let mut server = Server::new(Config::default());
        assert_eq!(server.violation(bytes), violation);
        assert_eq!(server.written(), answer, "{violation}");
    }
}

#[test]
fn a_client_of_3_1_is_served_as_it_speaks() {
    let options =
        ConnectOptions { is_3_1: true, clean_start: false, ..ConnectOptions::new(Version::V311, "d") };
    let mut server = Server::new(Config::default());
    let events = server.events(&connect(&options));
    let [Event::Connect(asked)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((asked.version, asked.level), (Version::V311, 3));
    let accept = Accept { session_present: true, ..Accept::default() };
    server.machine.accept(server.now, accept).expect("waits");
    assert_eq!(server.written(), b"\x20\x02\x00\x00", "the byte is reserved in 3.1");
    // A SUBSCRIBE that is sent again has DUP in 3.1, and other flags mean nothing.
    assert!(matches!(server.events(b"\x8A\x06\x00\x01\x00\x01a\x01")[..], [Event::Subscribe(_)]));
    assert_eq!(server.events(b"\xC8\x00\x38\x03\x00\x01t").len(), 1);
    // A flag without its field: the length decides.
    let mut server = Server::new(Config::default());
    let events = server.events(b"\x10\x0F\x00\x06MQIsdp\x03\xC2\x00\x0A\x00\x01d");
    let [Event::Connect(asked)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!((&asked.username, &asked.password), (&None, &None));
    let mut server = Server::new(Config::default());
    let nameless = b"\x10\x0E\x00\x06MQIsdp\x03\x02\x00\x0A\x00\x00";
    assert_eq!(server.violation(nameless), Violation::ClientIdentifierNotValid);
    assert_eq!(server.written(), b"\x20\x02\x00\x02");
}

#[test]
fn response_information_is_for_who_asks() {
    for (asked, told) in [(true, Some("answers/d".into())), (false, None)] {
        let options =
            ConnectOptions { request_response_information: asked, ..ConnectOptions::new(Version::V5, "d") };
        let mut server = Server::new(Config::default());
        server.events(&connect(&options));
        let accept = Accept { response_information: Some("answers/d"), ..Accept::default() };
        server.machine.accept(server.now, accept).expect("waits");
        let packets = server.packets(Version::V5);
        let [ServerPacket::ConnAck(connack)] = packets.as_slice() else { panic!("{packets:?}") };
        assert_eq!(connack.response_information, told);
    }
}

#[test]
fn auth_is_refused_wherever_it_comes() {
    let mut server = Server::new(Config::default());
    server.violation(b"\xF0\x00");
    assert_eq!(server.written(), b"", "not the first packet, and there is no CONNACK to say so in");
    let mut server = Server::open_default(Version::V5);
    server.violation(b"\xF0\x02\x18\x00");
    assert_eq!(server.last_words(), b"\xE0\x01\x82");
    let mut server = Server::open_default(Version::V311);
    server.violation(b"\xF0\x00");
    assert_eq!(server.written(), b"");
}

#[test]
fn another_protocol_is_noticed_at_its_first_byte() {
    for bytes in [&b"G"[..], b"AMQP\x00\x01\x00\x00", b"\x16\x03\x01", b"\xC0\x00", b"\x11", b"\x00"] {
        let mut server = Server::new(Config::default());
        assert!(matches!(server.violation(bytes), Violation::Protocol(_)), "{bytes:?}");
        assert!(server.machine.poll_transmit().is_none());
    }
}

#[test]
fn a_connect_is_bounded_by_what_it_says_not_by_what_came() {
    let mut server = Server::new(Config::default());
    assert!(matches!(server.violation(b"\x10\xFF\xFF\xFF\x7F"), Violation::PacketTooLarge(268_435_455)));
    let mut server = Server::new(Config { max_connect_bytes: 14, ..Config::default() });
    assert_eq!(server.violation(CONNECT_311), Violation::PacketTooLarge(15));
    let mut server = Server::new(Config { max_connect_bytes: 15, ..Config::default() });
    assert!(matches!(server.events(CONNECT_311)[..], [Event::Connect(_)]));
    let mut server = Server::new(Config::default());
    assert!(matches!(server.violation(b"\x10\xFF\xFF\xFF\xFF\x01"), Violation::Malformed(_)));
}

#[test]
fn what_stands_behind_connect_waits_for_the_verdict() {
    for version in BOTH {
        let mut server = Server::new(Config::default());
        let both = [connect(&ConnectOptions::new(version, "d")), publish(version, 1)].concat();
        assert!(matches!(server.events(&both)[..], [Event::Connect(_)]));
        assert_eq!(server.drain(), []);
        server.machine.accept(server.now, Accept::default()).expect("waits");
        assert!(matches!(server.drain()[..], [Event::Publish(_)]));
    }
}

#[test]
fn a_second_connect_is_a_violation() {
    let mut server = Server::open_default(Version::V311);
    assert_eq!(server.violation(CONNECT_311), Violation::Protocol("a second CONNECT"));
    assert_eq!(server.written(), b"");
    let mut server = Server::open_default(Version::V5);
    server.violation(&connect(&ConnectOptions::new(Version::V5, "d")));
    assert_eq!(server.last_words(), b"\xE0\x01\x82");
}

#[test]
fn ends_from_both_sides() {
    for (version, bytes) in [(Version::V311, &b""[..]), (Version::V5, b"\xE0\x01\x8E")] {
        let mut server = Server::open_default(version);
        server.machine.disconnect(DisconnectReason::SessionTakenOver);
        assert!(server.machine.is_closed());
        assert_eq!(server.written(), bytes);
        assert_eq!(server.drain(), [], "what we do ourselves is no event");

        let mut server = Server::open_default(version);
        let mut normal = BytesMut::new();
        client::put_disconnect(version, false, &mut normal);
        normal.extend_from_slice(b"\xC0\x00");
        let events = server.events(&normal);
        let [Event::Disconnected(disconnect)] = events[..] else { panic!("{events:?}") };
        assert!(disconnect.deletes_will());
        assert_eq!(server.written(), b"", "PINGREQ after DISCONNECT is not answered");
    }
    // Before CONNACK there may be no DISCONNECT (MQTT 5 3.14.0-1).
    let mut server = Server::new(Config::default());
    server.events(&connect(&ConnectOptions::new(Version::V5, "d")));
    server.machine.disconnect(DisconnectReason::ServerShuttingDown);
    assert_eq!(server.written(), b"");
}

#[test]
fn disconnect_of_5_with_what_may_follow_its_reason() {
    let mut server = Server::open_default(Version::V5);
    let mut with_will = BytesMut::new();
    client::put_disconnect(Version::V5, true, &mut with_will);
    let events = server.events(&with_will);
    let [Event::Disconnected(disconnect)] = events[..] else { panic!("{events:?}") };
    assert_eq!((disconnect.reason, disconnect.deletes_will()), (0x04, false));

    let expiry = b"\xE0\x07\x00\x05\x11\x00\x00\x00\x05";
    let lasting = ConnectOptions { session_expiry_seconds: 1, ..ConnectOptions::new(Version::V5, "d") };
    let mut server = Server::open(&lasting, Config::default());
    let events = server.events(expiry);
    let [Event::Disconnected(disconnect)] = events[..] else { panic!("{events:?}") };
    assert_eq!(disconnect.session_expiry_seconds, Some(5));
    let mut server = Server::open_default(Version::V5);
    assert!(matches!(server.violation(expiry), Violation::Protocol(_)), "it was zero in CONNECT");

    assert!(matches!(Server::open_default(Version::V5).violation(b"\xE0\x01\x8E"), Violation::Malformed(_)));
    assert!(matches!(
        Server::open_default(Version::V311).violation(b"\xE0\x01\x00"),
        Violation::Malformed(_)
    ));
}
