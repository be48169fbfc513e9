//! QoS 2 from the client (MQTT 5 4.3.3), over one connection and over the next one of the session.

use bytes::BytesMut;
use fieldgate_mqtt::{
    Accept, Config, Event, Misuse, PublishError, PublishReply, PublishToken, QoS, Session, Version,
    Violation,
    client::{self, ConnectOptions, ServerPacket},
};

use crate::support::{BOTH, Server, id, message, publish, tokens};

fn publish_2(version: Version, number: u16, dup: bool) -> Vec<u8> {
    let mut out = BytesMut::new();
    client::put_publish(
        version,
        id(number),
        &message("t", &number.to_be_bytes(), QoS::ExactlyOnce),
        &mut out,
    )
    .expect("can be said");
    out[0] |= u8::from(dup) << 3;
    out.into()
}

fn release(number: u16) -> Vec<u8> {
    let mut out = BytesMut::new();
    client::put_pubrel(id(number), &mut out);
    out.into()
}

fn received(number: u16, reason: u8) -> ServerPacket {
    ServerPacket::PubRec { packet_id: id(number), reason }
}

fn complete(number: u16, reason: u8) -> ServerPacket {
    ServerPacket::PubComp { packet_id: id(number), reason }
}

fn token(server: &mut Server, bytes: &[u8]) -> PublishToken {
    tokens(server.events(bytes))[0]
}

/// The next connection of a session.
fn resumed(version: Version, session: Session, config: Config) -> Server {
    let options =
        ConnectOptions { clean_start: false, session_expiry_seconds: 9, ..ConnectOptions::new(version, "d") };
    let mut server = Server::new(config);
    let mut connect = BytesMut::new();
    client::put_connect(&options, &mut connect).expect("can be said");
    assert_eq!(server.machine.resume(Session::default()), Err(Misuse::NotConnecting));
    assert!(matches!(server.events(&connect)[..], [Event::Connect(_)]));
    server.machine.resume(session).expect("CONNECT waits");
    let accept = Accept { session_present: true, ..Accept::default() };
    server.machine.accept(server.now, accept).expect("CONNECT waits");
    server.written();
    server
}

#[test]
fn a_message_is_received_released_and_through() {
    for version in BOTH {
        let mut server = Server::open_default(version);
        let token = token(&mut server, &publish_2(version, 7, false));
        assert_eq!(server.written(), b"");
        server.machine.acknowledge(token, PublishReply::Success);
        assert_eq!(server.written(), b"\x50\x02\x00\x07");
        // Until it is released, it is the same message.
        for dup in [true, false] {
            assert_eq!(server.events(&publish_2(version, 7, dup)), []);
            assert_eq!(server.written(), b"\x50\x02\x00\x07");
        }
        assert_eq!(server.events(&release(7)), []);
        assert_eq!(server.written(), b"\x70\x02\x00\x07");
        assert_eq!(tokens(server.events(&publish_2(version, 7, false))).len(), 1, "another message");
    }
}

#[test]
fn pubrecs_keep_to_the_order_of_the_publishes_with_pubacks_between() {
    for version in BOTH {
        let mut server = Server::open_default(version);
        let input = [publish_2(version, 1, false), publish(version, 2), publish_2(version, 3, false)];
        let tokens = tokens(server.events(&input.concat()));
        for index in [2, 1, 0] {
            assert_eq!(server.written(), b"");
            server.machine.acknowledge(tokens[index], PublishReply::Success);
        }
        let expected = [received(1, 0), ServerPacket::PubAck { packet_id: id(2), reason: 0 }, received(3, 0)];
        assert_eq!(server.packets(version), expected);
        // A repetition's PUBREC stands behind what is waited for.
        let waits = token(&mut server, &publish_2(version, 4, false));
        assert_eq!(server.events(&publish_2(version, 1, true)), []);
        assert_eq!(server.packets(version), []);
        server.machine.acknowledge(waits, PublishReply::Success);
        assert_eq!(server.packets(version), [received(4, 0), received(1, 0)]);
    }
}

#[test]
fn a_refusal_of_5_ends_the_exchange_and_one_of_3_1_1_cannot_be_said() {
    for (version, reason, comes_again) in [(Version::V5, 0x97, 1), (Version::V311, 0, 0)] {
        let mut server = Server::open_default(version);
        let token = token(&mut server, &publish_2(version, 1, false));
        server.machine.acknowledge(token, PublishReply::QuotaExceeded);
        assert_eq!(server.packets(version), [received(1, reason)]);
        assert_eq!(server.events(&publish_2(version, 1, false)).len(), comes_again);
    }
}

#[test]
fn a_release_of_nothing() {
    for (version, reason) in [(Version::V5, 0x92), (Version::V311, 0)] {
        let mut server = Server::open_default(version);
        assert_eq!(server.events(&release(9)), []);
        assert_eq!(server.packets(version), [complete(9, reason)]);
        token(&mut server, &publish_2(version, 1, false));
        assert_eq!(server.violation(&release(1)), Violation::Protocol("PUBREL before PUBREC"));
    }
}

#[test]
fn a_release_overtakes_the_second_pubrec() {
    let mut server = Server::open_default(Version::V311);
    let first = token(&mut server, &publish_2(Version::V311, 1, false));
    server.machine.acknowledge(first, PublishReply::Success);
    let waits = token(&mut server, &publish(Version::V311, 2));
    // The client has lost patience, repeats, and then hears the first PUBREC.
    assert_eq!(server.events(&publish_2(Version::V311, 1, true)), []);
    server.written();
    assert_eq!(server.events(&release(1)), []);
    assert_eq!(server.packets(Version::V311), [complete(1, 0)]);
    server.machine.acknowledge(waits, PublishReply::Success);
    let expected = [ServerPacket::PubAck { packet_id: id(2), reason: 0 }];
    assert_eq!(server.packets(Version::V311), expected, "nothing is left to be received");
    assert_eq!(server.events(&publish_2(Version::V311, 1, false)).len(), 1);
}

#[test]
fn the_receive_maximum_counts_both_until_they_are_through() {
    let config = Config { receive_maximum: 2, ..Config::default() };
    let mut server = Server::open(&ConnectOptions::new(Version::V5, "d"), config.clone());
    let first = token(&mut server, &publish_2(Version::V5, 1, false));
    server.machine.acknowledge(first, PublishReply::Success);
    assert_eq!(server.events(&publish(Version::V5, 2)).len(), 1);
    assert_eq!(server.violation(&publish(Version::V5, 3)), Violation::ReceiveMaximumExceeded);

    let mut server = Server::open(&ConnectOptions::new(Version::V5, "d"), config.clone());
    for number in 1..=2 {
        let token = token(&mut server, &publish_2(Version::V5, number, false));
        server.machine.acknowledge(token, PublishReply::Success);
    }
    server.events(&release(1));
    assert_eq!(server.events(&publish(Version::V5, 3)).len(), 1, "PUBCOMP gave room");

    // An older client may send PUBREL behind all it has: it waits only for PUBRECs.
    let mut server = Server::open(&ConnectOptions::new(Version::V311, "d"), config);
    for number in 1..=10 {
        let token = token(&mut server, &publish_2(Version::V311, number, false));
        server.machine.acknowledge(token, PublishReply::Success);
    }
    assert_eq!(server.machine.unacknowledged(), 0);
    server.written();
    let releases: Vec<u8> = (1..=10).flat_map(release).collect();
    server.events(&releases);
    assert_eq!(server.packets(Version::V311).len(), 10);
}

#[test]
fn what_is_not_released_is_bounded() {
    let config = Config { max_unreleased: 3, ..Config::default() };
    let mut server = Server::open(&ConnectOptions::new(Version::V311, "d"), config);
    for number in 1..=3 {
        let token = token(&mut server, &publish_2(Version::V311, number, false));
        server.machine.acknowledge(token, PublishReply::Success);
    }
    assert!(matches!(server.violation(&publish_2(Version::V311, 4, false)), Violation::Quota(_)));
}

#[test]
fn an_identifier_has_one_meaning() {
    for version in BOTH {
        let in_use = Violation::Protocol("a packet identifier that is in use");
        let mut server = Server::open_default(version);
        let first = token(&mut server, &publish_2(version, 1, false));
        assert_eq!(server.events(&publish_2(version, 1, true)), [], "one PUBREC for both");
        server.machine.acknowledge(first, PublishReply::Success);
        assert_eq!(server.packets(version), [received(1, 0)]);
        assert_eq!(server.violation(&publish(version, 1)), in_use, "it is not released");
        let mut server = Server::open_default(version);
        token(&mut server, &publish_2(version, 1, false));
        assert_eq!(server.violation(&publish_2(version, 1, false)), in_use, "without DUP");
        let mut server = Server::open_default(version);
        token(&mut server, &publish(version, 1));
        assert_eq!(server.violation(&publish_2(version, 1, true)), in_use, "of another quality of service");
    }
}

#[test]
fn an_exchange_goes_on_over_the_next_connection() {
    for version in BOTH {
        let mut server = Server::open_default(version);
        let input: Vec<u8> = (1..=4).flat_map(|number| publish_2(version, number, false)).collect();
        let waiting = tokens(server.events(&input));
        server.machine.acknowledge(waiting[0], PublishReply::Success);
        // The third is decided, and its PUBREC waits for the second one's.
        server.machine.acknowledge(waiting[2], PublishReply::Success);
        server.events(&publish(version, 9));
        let mut session = server.machine.take_session();
        assert!(server.machine.is_closed());
        assert_eq!(session.exchanges(), 4, "the message of QoS 1 is the client's to repeat");
        session.decide(waiting[3], true);
        session.decide(waiting[3], false);

        let mut server = resumed(version, session, Config::default());
        assert_eq!(server.events(&release(1)), []);
        assert_eq!(server.packets(version), [complete(1, 0)]);
        let again: Vec<u8> = [2, 3, 4].iter().flat_map(|number| publish_2(version, *number, true)).collect();
        assert_eq!(server.events(&again), [], "none of them is a new message");
        assert_eq!(server.packets(version), [], "the second has no verdict");
        assert!(server.machine.is_repeated(waiting[1]) && !server.machine.is_repeated(waiting[3]));
        server.machine.acknowledge(waiting[1], PublishReply::Success);
        assert_eq!(server.packets(version), [received(2, 0), received(3, 0), received(4, 0)]);
        assert_eq!(tokens(server.events(&publish(version, 9))).len(), 1);
    }
}

#[test]
fn a_verdict_of_the_earlier_connection_comes_before_the_repetition() {
    for (taken, comes_again) in [(true, 0), (false, 1)] {
        let mut server = Server::open_default(Version::V5);
        let waiting = token(&mut server, &publish_2(Version::V5, 1, false));
        let mut server = resumed(Version::V5, server.machine.take_session(), Config::default());
        let reply = if taken { PublishReply::Success } else { PublishReply::QuotaExceeded };
        server.machine.acknowledge(waiting, reply);
        assert_eq!(server.packets(Version::V5), [], "nobody has asked yet");
        assert_eq!(server.events(&publish_2(Version::V5, 1, true)).len(), comes_again);
        assert_eq!(server.packets(Version::V5).len(), 1 - comes_again);
    }
}

#[test]
fn a_second_loss_while_the_first_verdict_is_awaited() {
    let mut server = Server::open_default(Version::V5);
    let waiting = token(&mut server, &publish_2(Version::V5, 1, false));
    let mut session = server.machine.take_session();
    for round in 0..3 {
        let mut server = resumed(Version::V5, session, Config::default());
        if round > 0 {
            assert_eq!(server.events(&publish_2(Version::V5, 1, true)), []);
        }
        session = server.machine.take_session();
        assert_eq!(session.exchanges(), 1);
    }
    session.decide(waiting, true);
    let mut server = resumed(Version::V5, session, Config::default());
    assert_eq!(server.events(&publish_2(Version::V5, 1, true)), []);
    assert_eq!(server.packets(Version::V5), [received(1, 0)]);
}

#[test]
fn the_receive_maximum_begins_anew_with_each_connection() {
    let config = Config { receive_maximum: 1, ..Config::default() };
    let mut server = Server::open(&ConnectOptions::new(Version::V5, "d"), config.clone());
    let first = token(&mut server, &publish_2(Version::V5, 1, false));
    server.machine.acknowledge(first, PublishReply::Success);
    let mut server = resumed(Version::V5, server.machine.take_session(), config);
    assert_eq!(server.events(&publish_2(Version::V5, 2, false)).len(), 1);
}

#[test]
fn commands_are_sent_again_under_their_identifiers() {
    for version in BOTH {
        let mut server = Server::open_default(version);
        for payload in [b"1", b"2", b"3"] {
            server.machine.publish(&message("t", payload, QoS::AtLeastOnce)).expect("room");
        }
        server.events(b"\x40\x02\x00\x02");
        let session = server.machine.take_session();
        assert_eq!(session.unacknowledged(), [id(1), id(3)]);
        let mut given_up = session.clone();
        given_up.give_up(id(1));
        assert_eq!(given_up.unacknowledged(), [id(3)]);

        let mut server = resumed(version, session, Config { outgoing_window: 1, ..Config::default() });
        let again = message("t", b"1", QoS::AtLeastOnce);
        server.machine.publish_again(id(1), &again).expect("waits");
        assert_eq!(server.machine.publish_again(id(3), &again), Err(PublishError::Full));
        assert!(server.written().starts_with(&[0x3A]), "PUBLISH, DUP, QoS 1");
        assert_eq!(
            server.events(b"\x40\x02\x00\x03"),
            [Event::PublishAcknowledged { packet_id: id(3), reason: 0 }],
            "the client had it already"
        );
        let unknown = Err(Misuse::UnknownMessage.into());
        assert_eq!(server.machine.publish_again(id(3), &again), unknown);
        assert_eq!(server.machine.publish_again(id(1), &again), unknown, "once is enough");
        server.machine.give_up(id(1));
        assert_eq!(
            server.events(b"\x40\x02\x00\x01"),
            [Event::PublishAcknowledged { packet_id: id(1), reason: 0 }],
            "what was sent here is not given up"
        );
        assert_eq!(server.machine.publish(&message("t", b"", QoS::AtLeastOnce)), Ok(Some(id(4))));
    }
}

#[test]
fn a_client_that_goes_on_with_qos_2_toward_itself_is_set_free() {
    for version in BOTH {
        let mut received = BytesMut::new();
        client::put_pubrec(id(5), &mut received);
        let mut server = Server::open_default(version);
        assert_eq!(server.events(&received), []);
        let reason = if version == Version::V5 { 0x92 } else { 0 };
        assert_eq!(server.packets(version), [ServerPacket::PubRel { packet_id: id(5), reason }]);
        assert_eq!(server.events(b"\x70\x02\x00\x05"), [], "PUBCOMP");
        for _ in 0..5 {
            server.machine.publish(&message("t", b"", QoS::AtLeastOnce)).expect("room");
        }
        server.written();
        server.violation(&received);
    }
    let mut server = Server::open_default(Version::V5);
    assert_eq!(server.events(b"\x50\x03\x00\x05\x97"), []);
    assert_eq!(server.packets(Version::V5), [], "a PUBREC that ends its exchange wants no answer");
    for (bytes, code) in [
        (&b"\x62\x03\x00\x01\x97"[..], 0x81), // a reason that PUBREL does not have
        (b"\x62\x02\x00\x00", 0x81),
        (b"\x70\x03\x00\x01\x80", 0x81),
        (b"\x50\x03\x00\x01\x92", 0x81),
        (b"\x62\x05\x00\x01\x00\x01\x11", 0x81),
        (b"\x62\x0A\x00\x01\x00\x06\x1F\x00\x00\x1F\x00\x00", 0x82), // two reason strings
    ] {
        let mut server = Server::open_default(Version::V5);
        let violation = server.violation(bytes);
        assert_eq!(server.last_words(), [0xE0, 1, code], "{bytes:x?}: {violation}");
    }
}
