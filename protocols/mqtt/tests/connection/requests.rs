//! SUBSCRIBE, UNSUBSCRIBE, PINGREQ.

use bytes::BytesMut;
use fieldgate_mqtt::{
    Config, Event, Misuse, OutgoingPublish, PublishProperties, QoS, RetainHandling, SubscribeRefusal,
    UnsubscribeReply, Version, Violation,
    client::{self, ConnectOptions, ServerPacket},
};

use crate::support::{BOTH, Server, id, message};

fn subscribe(version: Version, number: u16, filters: &[(&str, QoS)]) -> Vec<u8> {
    let mut out = BytesMut::new();
    client::put_subscribe(version, id(number), filters, &mut out).expect("can be said");
    out.into()
}

fn unsubscribe(version: Version, number: u16, filters: &[&str]) -> Vec<u8> {
    let mut out = BytesMut::new();
    client::put_unsubscribe(version, id(number), filters, &mut out).expect("can be said");
    out.into()
}

#[test]
fn each_filter_gets_its_answer() {
    for (version, codes) in [(Version::V311, [1, 0, 1, 0x80]), (Version::V5, [1, 0, 1, 0x87])] {
        let mut server = Server::open_default(version);
        let filters = [
            ("a/#", QoS::AtLeastOnce),
            ("+", QoS::AtMostOnce),
            ("c", QoS::ExactlyOnce),
            ("d", QoS::AtLeastOnce),
        ];
        let events = server.events(&subscribe(version, 0x1234, &filters));
        let [Event::Subscribe(request)] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!(request.packet_id, id(0x1234));
        let got: Vec<_> = request.filters.iter().map(|filter| (filter.filter.as_str(), filter.qos)).collect();
        assert_eq!(got, filters);
        let replies = [
            Ok(QoS::AtLeastOnce),
            Ok(QoS::AtMostOnce),
            Ok(QoS::ExactlyOnce),
            Err(SubscribeRefusal::NotAuthorised),
        ];
        assert_eq!(
            server.machine.suback(id(0x1234), &replies[..3]),
            Err(Misuse::AnswerCount { expected: 4, given: 3 })
        );
        assert_eq!(server.machine.suback(id(1), &replies), Err(Misuse::UnknownRequest));
        assert_eq!(server.machine.suback(id(0x1234), &replies), Ok(()));
        assert_eq!(server.machine.suback(id(0x1234), &replies), Err(Misuse::UnknownRequest));
        let expected = ServerPacket::SubAck { packet_id: id(0x1234), codes: codes.to_vec() };
        assert_eq!(server.packets(version), [expected]);
    }
}

#[test]
fn the_options_of_5() {
    let mut server = Server::open_default(Version::V5);
    let events = server.events(b"\x82\x0C\x00\x01\x00\x00\x01a\x1D\x00\x02b/\x20");
    let [Event::Subscribe(request)] = events.as_slice() else { panic!("{events:?}") };
    let [first, second] = request.filters.as_slice() else { panic!("{request:?}") };
    assert!(first.no_local && first.retain_as_published);
    assert_eq!((first.qos, first.retain_handling), (QoS::AtLeastOnce, RetainHandling::NewSubscription));
    assert!(!second.no_local && !second.retain_as_published);
    assert_eq!((second.qos, second.retain_handling), (QoS::AtMostOnce, RetainHandling::Never));
}

#[test]
fn a_subscription_identifier_comes_with_the_request_and_goes_with_the_messages() {
    let options = ConnectOptions::new(Version::V5, "d");
    let mut server = Server::open(&options, Config::default());
    let mut out = BytesMut::new();
    client::put_identified_subscribe(id(1), 100, "a/#", QoS::AtLeastOnce, &mut out).expect("can be said");
    let events = server.events(&out);
    let [Event::Subscribe(request)] = events.as_slice() else { panic!("{events:?}") };
    assert_eq!(request.identifier, Some(100));
    let properties = |identifiers: &[u32]| PublishProperties {
        subscription_identifiers: identifiers.to_vec(),
        ..PublishProperties::default()
    };
    for identifiers in [&[100][..], &[1, 268_435_455, 128]] {
        let said = properties(identifiers);
        let publish = OutgoingPublish { properties: Some(&said), ..message("a/b", b"x", QoS::AtMostOnce) };
        server.machine.publish(&publish).expect("room");
        let packets = server.packets(Version::V5);
        let [ServerPacket::Publish { properties, .. }] = packets.as_slice() else { panic!("{packets:?}") };
        assert_eq!(properties.subscription_identifiers, identifiers);
    }
    for identifier in [0, 268_435_456] {
        let said = properties(&[identifier]);
        let publish = OutgoingPublish { properties: Some(&said), ..message("a/b", b"x", QoS::AtMostOnce) };
        assert_eq!(server.machine.publish(&publish), Err(Misuse::Properties.into()));
    }
}

#[test]
fn a_refused_filter_is_explained_where_the_client_wants_to_know() {
    for (asked, words) in [(true, Some("not yours")), (false, None)] {
        let options =
            ConnectOptions { request_problem_information: asked, ..ConnectOptions::new(Version::V5, "d") };
        let mut server = Server::open(&options, Config::default());
        server.events(&subscribe(Version::V5, 1, &[("a", QoS::AtMostOnce)]));
        let replies = [Err(SubscribeRefusal::NotAuthorised)];
        server.machine.suback_because(id(1), &replies, Some("not yours")).expect("waits");
        let mut decoder = client::Decoder::new(Version::V5);
        decoder.push(&server.written());
        let expected = ServerPacket::SubAck { packet_id: id(1), codes: vec![0x87] };
        assert_eq!(decoder.next_packet(), Ok(Some(expected)));
        assert_eq!(decoder.words(), words);
    }
}

#[test]
fn an_unsubscribe_is_answered_once() {
    for (version, codes) in [(Version::V311, vec![]), (Version::V5, vec![0, 0x11])] {
        let mut server = Server::open_default(version);
        let events = server.events(&unsubscribe(version, 3, &["a", "b/#"]));
        let [Event::Unsubscribe(request)] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!(request.filters, ["a", "b/#"]);
        let replies = [UnsubscribeReply::Success, UnsubscribeReply::NoSubscriptionExisted];
        assert_eq!(server.machine.unsuback(id(3), &replies), Ok(()));
        assert_eq!(server.packets(version), [ServerPacket::UnsubAck { packet_id: id(3), codes }]);
    }
}

#[test]
fn what_a_request_may_not_say() {
    for (bytes, code) in [
        (&b"\x82\x07\x00\x00\x00\x00\x01a\x00"[..], 0x81), // packet identifier 0
        (b"\x82\x03\x00\x01\x00", 0x82),                   // no filter
        (b"\xA2\x03\x00\x01\x00", 0x82),
        (b"\x82\x07\x00\x01\x00\x00\x01a\x03", 0x81), // QoS 3
        (b"\x82\x07\x00\x01\x00\x00\x01a\x40", 0x81), // reserved option
        (b"\x82\x07\x00\x01\x00\x00\x01a\x30", 0x81), // retain handling 3
        (b"\x82\x06\x00\x01\x00\x00\x01a", 0x81),     // no options
        (b"\x82\x08\x00\x01\x00\x00\x02a#\x00", 0x8F),
        (b"\x82\x06\x00\x01\x00\x00\x00\x00", 0x8F), // an empty filter
        (b"\xA2\x07\x00\x01\x00\x00\x02+a", 0x8F),
        (b"\x82\x10\x00\x01\x00\x00\x0A$share/g/a\x04", 0x82), // no local on a shared subscription
        (b"\x82\x09\x00\x01\x02\x0B\x00\x00\x01a\x00", 0x82),  // subscription identifier 0
        (b"\x82\x0B\x00\x01\x04\x0B\x01\x0B\x02\x00\x01a\x00", 0x82), // two of them
        (b"\x82\x0E\x00\x01\x00\x00\x08$share/g\x00", 0x8F),   // a shared subscription to nothing
        (b"\xA2\x08\x00\x01\x02\x01\x00\x00\x01a", 0x81),      // a property of PUBLISH
    ] {
        let mut server = Server::open_default(Version::V5);
        let violation = server.violation(bytes);
        assert_eq!(server.last_words(), [0xE0, 1, code], "{bytes:x?}: {violation}");
    }
    for bytes in [&b"\x82\x06\x00\x01\x00\x01a\x04"[..], b"\xA2\x02\x00\x01", b"\xA2\x05\x00\x01\x00\x02a"] {
        Server::open_default(Version::V311).violation(bytes);
    }
}

#[test]
fn filters_in_one_packet_are_bounded() {
    for (count, taken) in [(64, true), (65, false)] {
        let mut server = Server::open_default(Version::V5);
        let events = server.events(&subscribe(Version::V5, 1, &vec![("a", QoS::AtMostOnce); count]));
        match events.as_slice() {
            [Event::Subscribe(request)] if taken => assert_eq!(request.filters.len(), count),
            [Event::Violation(Violation::Quota(_))] if !taken => {
                assert_eq!(server.last_words(), b"\xE0\x01\x97")
            }
            events => panic!("{count} filters: {events:?}"),
        }
    }
}

#[test]
fn an_answer_that_the_client_does_not_take_ends_the_connection() {
    for (count, taken) in [(15, true), (16, false)] {
        let small = ConnectOptions { max_packet_bytes: Some(20), ..ConnectOptions::new(Version::V5, "d") };
        let mut server = Server::open(&small, Config::default());
        server.events(&subscribe(Version::V5, 1, &vec![("a", QoS::AtMostOnce); count]));
        server.machine.suback(id(1), &vec![Ok(QoS::AtMostOnce); count]).expect("waits");
        assert_eq!(server.machine.is_closed(), !taken);
        assert_eq!(server.written().len(), if taken { 20 } else { b"\xE0\x01\x95".len() });
    }
}

#[test]
fn requests_without_an_answer_hold_the_next_one_back() {
    for version in BOTH {
        let config = Config { max_requests: 2, ..Config::default() };
        let mut server = Server::open(&ConnectOptions::new(version, "d"), config);
        let input = [
            subscribe(version, 1, &[("a", QoS::AtMostOnce)]),
            unsubscribe(version, 2, &["a"]),
            subscribe(version, 3, &[("b", QoS::AtMostOnce)]),
        ];
        assert_eq!(server.events(&input.concat()).len(), 2);
        assert_eq!(server.drain(), []);
        server.machine.unsuback(id(2), &[UnsubscribeReply::Success]).expect("waits");
        assert!(matches!(server.drain()[..], [Event::Subscribe(_)]));
        server.machine.suback(id(1), &[Ok(QoS::AtMostOnce)]).expect("waits");
        assert!(matches!(
            server.violation(&subscribe(version, 3, &[("b", QoS::AtMostOnce)])),
            Violation::Protocol(_)
        ));
    }
}

#[test]
fn pings_are_answered_by_the_machine() {
    for version in BOTH {
        let mut server = Server::open_default(version);
        let mut ping = BytesMut::new();
        client::put_pingreq(&mut ping);
        client::put_pingreq(&mut ping);
        assert_eq!(server.events(&ping), []);
        assert_eq!(server.written(), b"\xD0\x00\xD0\x00");
        assert!(matches!(server.violation(b"\xC0\x01\x00"), Violation::Malformed(_)));
    }
}
