//! Time-outs. All times are simulated.

use std::time::Duration;

use bytes::BytesMut;
use fieldgate_mqtt::{
    Accept, Config, Event, PublishReply, TimeOut, Version,
    client::{self, ConnectOptions},
};

use crate::support::{BOTH, Server, epoch, publish, tokens};

const SECOND: Duration = Duration::from_secs(1);
const MOMENT: Duration = Duration::from_millis(1);

fn keep_alive(version: Version, seconds: u64) -> Server {
    let options =
        ConnectOptions { keep_alive: Duration::from_secs(seconds), ..ConnectOptions::new(version, "d") };
    Server::open(&options, Config { receive_maximum: 1, read_ahead_bytes: 8, ..Config::default() })
}

#[test]
fn connect_has_to_be_complete_in_time() {
    let mut server = Server::new(Config::default());
    assert_eq!(server.machine.poll_timeout(), Some(epoch() + 10 * SECOND));
    server.pass(5 * SECOND);
    assert_eq!(server.events(b"\x10\x0D\x00\x04MQTT"), []);
    server.pass(5 * SECOND - MOMENT);
    assert_eq!(server.drain(), [], "a part of it buys no time, and costs none");
    server.pass(MOMENT);
    assert_eq!(server.drain(), [Event::TimedOut(TimeOut::Connect)]);
    assert!(server.machine.is_closed() && server.machine.poll_transmit().is_none());
    assert_eq!(server.machine.poll_timeout(), None);
}

#[test]
fn the_verdict_takes_as_long_as_it_takes() {
    let mut server = Server::new(Config::default());
    let mut connect = BytesMut::new();
    client::put_connect(&ConnectOptions::new(Version::V311, "d"), &mut connect).expect("can be said");
    assert_eq!(server.events(&connect).len(), 1);
    assert_eq!(server.machine.poll_timeout(), None);
    server.pass(3600 * SECOND);
    assert_eq!(server.drain(), []);
    server.machine.accept(server.now, Accept::default()).expect("waits");
    assert_eq!(
        server.machine.poll_timeout(),
        Some(server.now + 90 * SECOND),
        "keep alive counts from CONNACK"
    );
}

#[test]
fn silence_of_one_and_a_half_keep_alives_ends_it() {
    for (version, last_words) in [(Version::V311, &b""[..]), (Version::V5, b"\xE0\x01\x8D")] {
        let mut server = keep_alive(version, 10);
        server.pass(15 * SECOND - MOMENT);
        assert_eq!(server.drain(), []);
        assert_eq!(server.events(b"\xC0\x00"), []);
        assert_eq!(server.written(), b"\xD0\x00");
        // Bytes that are no packet do not keep it alive.
        server.pass(14 * SECOND);
        assert_eq!(server.events(b"\xC0"), []);
        server.pass(SECOND - MOMENT);
        assert_eq!(server.drain(), []);
        server.pass(MOMENT);
        assert_eq!(server.drain(), [Event::TimedOut(TimeOut::KeepAlive)]);
        assert_eq!(server.written(), last_words);
    }
}

#[test]
fn keep_alive_zero_is_off_and_one_that_is_too_long_is_shortened() {
    for version in BOTH {
        assert_eq!(keep_alive(version, 0).machine.poll_timeout(), None);
    }
    let deadline = |version| keep_alive(version, 65_535).machine.poll_timeout();
    assert_eq!(deadline(Version::V5), Some(epoch() + 1800 * SECOND));
    assert_eq!(deadline(Version::V311), Some(epoch() + 65_535 * SECOND * 3 / 2), "it cannot be told");
}

#[test]
fn time_stands_still_while_the_client_waits_for_us() {
    let mut server = keep_alive(Version::V311, 10);
    let tokens = tokens(server.events(&publish(Version::V311, 1)));
    assert!(server.machine.poll_timeout().is_some(), "the window is full, but the client can still speak");
    assert_eq!(server.events(&publish(Version::V311, 2)), []);
    assert_eq!(server.machine.poll_timeout(), None);
    server.pass(3600 * SECOND);
    server.machine.acknowledge(tokens[0], PublishReply::Success);
    assert_eq!(server.drain().len(), 1, "the second message");
    // The next time that the machine hears of starts the silence again, not the time of the last packet.
    server.pass(Duration::ZERO);
    assert_eq!(server.machine.poll_timeout(), Some(server.now + 15 * SECOND));
    server.pass(15 * SECOND - MOMENT);
    assert_eq!(server.drain(), []);
    server.pass(MOMENT);
    assert_eq!(server.drain(), [Event::TimedOut(TimeOut::KeepAlive)]);
}

#[test]
fn a_time_out_that_comes_early_does_no_harm() {
    let mut server = keep_alive(Version::V5, 10);
    for _ in 0..1000 {
        server.pass(Duration::ZERO);
    }
    assert_eq!(server.drain(), []);
    assert_eq!(server.machine.poll_timeout(), Some(server.now + 15 * SECOND));
}
