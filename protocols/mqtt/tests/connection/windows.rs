//! Back-pressure: what the machine takes, and what it lets be sent.

use bytes::BytesMut;
use fieldgate_mqtt::{
    Config, Event, PublishError, PublishReply, QoS, Version, Violation,
    client::{self, ConnectOptions},
};

use crate::support::{BOTH, Server, id, message, publish, published, tokens};

fn window(version: Version, receive_maximum: u16) -> Server {
    let config = Config { receive_maximum, read_ahead_bytes: 64, ..Config::default() };
    Server::open(&ConnectOptions::new(version, "d"), config)
}

#[test]
fn an_older_client_waits_at_the_window() {
    let mut server = window(Version::V311, 2);
    let mut tokens = tokens(server.events(&[publish(Version::V311, 1), publish(Version::V311, 2)].concat()));
    assert_eq!((tokens.len(), server.machine.unacknowledged()), (2, 2));
    assert!(server.machine.wants_input(), "PINGREQ and PUBACK can still come");
    server.machine.publish(&message("t", b"", QoS::AtLeastOnce)).expect("room");
    server.written();
    assert_eq!(
        server.events(b"\xC0\x00\x40\x02\x00\x01"),
        [Event::PublishAcknowledged { packet_id: id(1), reason: 0 }]
    );
    assert_eq!(server.written(), b"\xD0\x00");

    assert_eq!(server.events(&[publish(Version::V311, 3), b"\xC0\x00".to_vec()].concat()), []);
    assert!(server.machine.wants_input(), "a little is read ahead, to notice the end of the connection");
    assert_eq!(server.events(&[0xC0, 0].repeat(40)), []);
    assert!(!server.machine.wants_input());
    assert!(server.machine.poll_transmit().is_none(), "what stands behind waits in its order");

    server.machine.acknowledge(tokens.pop_front().expect("two"), PublishReply::Success);
    let third = published(server.drain());
    assert_eq!(third[0].payload, 3u16.to_be_bytes()[..]);
    assert!(server.machine.wants_input());
    let mut expected = b"\x40\x02\x00\x01".to_vec();
    expected.extend([0xD0, 0].repeat(41));
    assert_eq!(server.written(), expected);
}

#[test]
fn a_newer_client_was_told_the_window() {
    let mut server = window(Version::V5, 2);
    server.events(&[publish(Version::V5, 1), publish(Version::V5, 2)].concat());
    assert_eq!(server.violation(&publish(Version::V5, 3)), Violation::ReceiveMaximumExceeded);
    assert_eq!(server.last_words(), b"\xE0\x01\x93");
}

#[test]
fn a_held_back_puback_still_counts() {
    // The second of two is answered, but its PUBACK cannot leave before the first one's.
    let mut server = window(Version::V311, 2);
    let tokens = tokens(server.events(&[publish(Version::V311, 1), publish(Version::V311, 2)].concat()));
    server.machine.acknowledge(tokens[1], PublishReply::Success);
    assert_eq!(server.events(&publish(Version::V311, 3)), []);
    server.machine.acknowledge(tokens[0], PublishReply::Success);
    assert_eq!(published(server.drain()).len(), 1);
}

#[test]
fn quality_of_service_0_passes_a_full_window() {
    for version in BOTH {
        let mut server = window(version, 1);
        let mut input = BytesMut::from(&publish(version, 1)[..]);
        client::put_publish(version, id(9), &message("t", b"0", QoS::AtMostOnce), &mut input)
            .expect("can be said");
        let messages = published(server.events(&input));
        assert_eq!(messages.iter().map(|message| message.token.is_some()).collect::<Vec<_>>(), [true, false]);
    }
}

#[test]
fn the_window_toward_the_client() {
    for version in BOTH {
        let config = Config { outgoing_window: 3, ..Config::default() };
        let mut server = Server::open(&ConnectOptions::new(version, "d"), config);
        for number in 1..=3 {
            assert_eq!(server.machine.publish_window(), 4 - usize::from(number));
            assert_eq!(server.machine.publish(&message("t", b"", QoS::AtLeastOnce)), Ok(Some(id(number))));
        }
        assert_eq!(server.machine.publish_window(), 0);
        assert_eq!(server.machine.publish(&message("t", b"", QoS::AtLeastOnce)), Err(PublishError::Full));
        assert_eq!(server.machine.publish(&message("t", b"", QoS::AtMostOnce)), Ok(None), "needs no window");
        server.events(b"\x40\x02\x00\x02");
        assert_eq!(server.machine.publish(&message("t", b"", QoS::AtLeastOnce)), Ok(Some(id(4))));
    }
    let narrow = ConnectOptions { receive_maximum: Some(1), ..ConnectOptions::new(Version::V5, "d") };
    let mut server = Server::open(&narrow, Config::default());
    assert_eq!(server.machine.publish(&message("t", b"", QoS::AtLeastOnce)), Ok(Some(id(1))));
    assert_eq!(server.machine.publish(&message("t", b"", QoS::AtLeastOnce)), Err(PublishError::Full));
}

#[test]
fn what_the_client_does_not_read_is_bounded() {
    let config = Config { max_outgoing_bytes: 1000, ..Config::default() };
    let mut server = Server::open(&ConnectOptions::new(Version::V311, "d"), config);
    let large = vec![0; 5000];
    assert_eq!(
        server.machine.publish(&message("t", &large, QoS::AtMostOnce)),
        Ok(None),
        "one packet always fits"
    );
    assert_eq!(server.machine.publish(&message("t", b"", QoS::AtMostOnce)), Err(PublishError::Full));
    assert!(!server.machine.wants_input(), "answers would only add to it");
    assert_eq!(server.written().len(), 5000 + 6);
    assert!(server.machine.wants_input());
    assert_eq!(server.machine.publish(&message("t", b"", QoS::AtMostOnce)), Ok(None));
}

/// What a connection costs while nothing happens on it: this, and nothing on the heap.
#[test]
fn an_idle_connection_is_small() {
    assert!(size_of::<fieldgate_mqtt::Connection>() <= 320, "{}", size_of::<fieldgate_mqtt::Connection>());
    assert!(size_of::<fieldgate_mqtt::Session>() <= 96, "{}", size_of::<fieldgate_mqtt::Session>());
}

#[test]
fn an_idle_connection_keeps_nothing_of_the_read_buffer() {
    for version in BOTH {
        let mut server = Server::open_default(version);
        let mut scratch = BytesMut::with_capacity(4096);
        let start = scratch.as_ptr();
        let [first, second] = [publish(version, 1), publish(version, 2)];
        scratch.extend_from_slice(&first);
        scratch.extend_from_slice(&second[..5]);
        server.machine.handle_input(server.now, scratch.split());
        let messages = published(server.drain());
        assert!(!scratch.try_reclaim(4096), "the message is a slice of it");
        drop(messages);
        assert!(scratch.try_reclaim(4096), "the part of a packet is not");
        assert_eq!(scratch.as_ptr(), start);
        assert_eq!(published(server.events(&second[5..])).len(), 1);
    }
}
