//! Sessions that outlive their connections: subscriptions, QoS 2, take-over, wills that wait.

use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use fieldgate_mappings::outcome::Outcome;
use fieldgate_mqtt::client::{self, ConnAck, ConnectOptions, ServerPacket};
use fieldgate_mqtt::{PublishReply, QoS, Version, Will};

use crate::shutdown;
use crate::upstream::CommandId;

use super::bench::{Bench, COMMANDS, Device, EVENTS, id};
use super::stream::block_on;

const BOTH: [Version; 2] = [Version::V311, Version::V5];

/// CONNECT of a client that keeps its session for a minute.
fn lasting(version: Version) -> ConnectOptions<'static> {
    ConnectOptions { clean_start: false, session_expiry_seconds: 60, ..ConnectOptions::new(version, "d1") }
}

/// Connects; what CONNACK says, if it comes at once.
fn connect(bench: &Rc<Bench>, options: &ConnectOptions<'_>) -> (Device, Option<ConnAck>) {
    let mut device = Device::new(bench, options.version);
    device.say(|out| client::put_connect(options, out).unwrap());
    let connack = connack(&mut device);
    (device, connack)
}

fn connack(device: &mut Device) -> Option<ConnAck> {
    match &device.hear()[..] {
        [ServerPacket::ConnAck(connack)] => Some(connack.clone()),
        [] => None,
        other => panic!("{other:?}"),
    }
}

fn is_present(connack: Option<ConnAck>) -> bool {
    connack.expect("it is let in").session_present
}

fn listen(device: &mut Device) {
    device.session.listen(&mut Context::from_waker(Waker::noop()));
    device.session.handle(device.now);
}

/// The connection is lost.
fn lose(device: Device) {
    assert!(device.session.finish(device.now).1.is_none(), "there is no will");
}

fn release(device: &mut Device, number: u16) {
    device.say(|out| client::put_pubrel(id(number), out));
}

#[test]
fn a_subscription_is_kept_while_the_device_is_away() {
    for version in BOTH {
        let bench = Bench::new("");
        let (mut device, connack) = connect(&bench, &lasting(version));
        assert!(!is_present(connack));
        assert_eq!(device.subscribe(&[(COMMANDS, QoS::AtLeastOnce)]), [1]);
        lose(device);
        assert_eq!(bench.ledger.dropped.get(), 1, "the link is detached, and commands stay at the hub");
        let (mut device, connack) = connect(&bench, &lasting(version));
        assert!(is_present(connack));
        assert_eq!(bench.subscribed.borrow().len(), 2, "attached again without a SUBSCRIBE");
        bench.command(7, "open");
        match &device.hear()[..] {
            [ServerPacket::Publish { payload, qos: QoS::AtLeastOnce, .. }] => assert_eq!(payload, "open"),
            other => panic!("{other:?}"),
        }
        device.say(|out| client::put_unsubscribe(version, id(9), &[COMMANDS], out).unwrap());
        device.hear();
        lose(device);
        let (_device, connack) = connect(&bench, &lasting(version));
        assert!(is_present(connack));
        assert_eq!(bench.subscribed.borrow().len(), 2, "it is forgotten");
    }
}

/// MQTT 3.1.1 4.4.0-1, MQTT 5 4.4.0-1.
#[test]
fn a_command_without_a_puback_comes_again_under_its_packet_identifier() {
    for version in BOTH {
        let bench = Bench::new("");
        let (mut device, _) = connect(&bench, &lasting(version));
        device.subscribe(&[(COMMANDS, QoS::AtLeastOnce)]);
        let numbered = CommandId::numbered;
        bench.named_command(numbered(0), "m1", "one");
        bench.named_command(numbered(1), "m2", "two");
        bench.command(2, "no name");
        let heard = publishes(&mut device);
        assert_eq!(heard, [(1, false, "one".into()), (2, false, "two".into()), (3, false, "no name".into())]);
        // Lost again before the hub has delivered anything.
        for _ in 0..2 {
            lose(device);
            let connack;
            (device, connack) = connect(&bench, &lasting(version));
            assert!(is_present(connack));
        }
        // The client has m1 already, and its PUBACK comes late; the hub cannot know.
        device.say(|out| client::put_puback(version, id(1), PublishReply::Success, out));
        // A new message between the old ones takes none of their identifiers.
        bench.named_command(numbered(0), "m9", "new");
        bench.named_command(numbered(1), "m1", "one");
        bench.named_command(numbered(2), "m2", "two");
        bench.command(3, "no name");
        let expected = [(4, false, "new"), (5, false, "one"), (2, true, "two"), (6, false, "no name")];
        assert_eq!(publishes(&mut device), expected.map(|(id, dup, body)| (id, dup, body.to_owned())));
        assert_eq!(bench.settled(), []);
        device.say(|out| client::put_puback(version, id(2), PublishReply::Success, out));
        assert_eq!(bench.settled(), [(numbered(2), Outcome::Accepted)]);
        // A clean start has none of them.
        lose(device);
        let (mut device, _) = connect(&bench, &ConnectOptions::new(version, "d1"));
        device.subscribe(&[(COMMANDS, QoS::AtLeastOnce)]);
        bench.named_command(numbered(0), "m9", "new");
        assert_eq!(publishes(&mut device), [(1, false, "new".into())]);
    }
}

/// The packet identifier, DUP and body of each PUBLISH that the device hears.
fn publishes(device: &mut Device) -> Vec<(u16, bool, String)> {
    let packets = device.hear().into_iter();
    let publish = packets.map(|packet| match packet {
        ServerPacket::Publish { packet_id: Some(packet_id), dup, payload, .. } => {
            (packet_id.value(), dup, String::from_utf8(payload.to_vec()).unwrap())
        }
        other => panic!("{other:?}"),
    });
    publish.collect()
}

#[test]
fn a_session_ends_when_it_was_to() {
    let bench = Bench::new("[mqtt]\nsession_expiry_max = \"90s\"");
    let options = ConnectOptions { session_expiry_seconds: 91, ..lasting(Version::V5) };
    let (device, told) = connect(&bench, &options);
    assert_eq!(told.expect("let in").session_expiry_seconds, Some(90), "more is not promised");
    let ends = device.now + Duration::from_secs(90);
    lose(device);
    for (now, present) in [(ends - Duration::from_secs(1), true), (ends + Duration::from_secs(200), false)] {
        let mut device = Device::new(&bench, Version::V5);
        device.now = now;
        device.say(|out| client::put_connect(&options, out).unwrap());
        assert_eq!(is_present(connack(&mut device)), present);
        lose(device);
    }
    // Neither a clean start nor a connection of which no session was to be kept leaves one.
    for options in [
        ConnectOptions { clean_start: true, ..lasting(Version::V5) },
        ConnectOptions { clean_start: true, ..lasting(Version::V311) },
        ConnectOptions { session_expiry_seconds: 0, ..lasting(Version::V5) },
    ] {
        let bench = Bench::new("");
        lose(connect(&bench, &lasting(Version::V5)).0);
        let (device, connack) = connect(&bench, &options);
        assert_eq!(is_present(connack), !options.clean_start);
        let kept = options.clean_start && options.version == Version::V5;
        lose(device);
        assert_eq!(is_present(connect(&bench, &lasting(Version::V5)).1), kept, "{options:?}");
    }
    // DISCONNECT may change it.
    let bench = Bench::new("");
    let (mut device, _) = connect(&bench, &lasting(Version::V5));
    device.say(|out| out.extend_from_slice(b"\xE0\x07\x00\x05\x11\x00\x00\x00\x00"));
    lose(device);
    assert!(!is_present(connect(&bench, &lasting(Version::V5)).1));
}

/// The outcome of a message comes before the connection's end, while the device is away, or when it is back.
#[test]
fn a_message_of_qos_2_is_sent_once_over_several_connections() {
    for version in BOTH {
        for answered in 0..4 {
            let bench = Bench::new("");
            let (mut device, _) = connect(&bench, &lasting(version));
            device.publish(7, QoS::ExactlyOnce, EVENTS, b"once");
            let sent = bench.next_sent();
            let mut verdict = Some(sent.verdict);
            let mut accept = |at| {
                if at == answered {
                    verdict.take().expect("once").report(Outcome::Accepted);
                }
            };
            accept(0);
            lose(device);
            accept(1);
            let (mut device, connack) = connect(&bench, &lasting(version));
            assert!(is_present(connack));
            accept(2);
            device.say(|out| {
                let publish = fieldgate_mqtt::OutgoingPublish {
                    topic: EVENTS,
                    payload: b"once",
                    qos: QoS::ExactlyOnce,
                    dup: true,
                    retain: false,
                    properties: None,
                };
                client::put_publish(version, id(7), &publish, out).unwrap();
            });
            assert!(bench.sent.borrow().is_empty(), "answered at {answered}");
            accept(3);
            assert_eq!(device.hear(), [ServerPacket::PubRec { packet_id: id(7), reason: 0 }]);
            release(&mut device, 7);
            assert_eq!(device.hear(), [ServerPacket::PubComp { packet_id: id(7), reason: 0 }]);
        }
    }
}

#[test]
fn what_nobody_has_taken_is_a_new_message_when_it_comes_again() {
    for version in BOTH {
        let bench = Bench::new("");
        let (mut device, _) = connect(&bench, &lasting(version));
        device.publish(7, QoS::ExactlyOnce, EVENTS, b"once");
        lose(device);
        bench.answer(Outcome::Released);
        let (mut device, _) = connect(&bench, &lasting(version));
        assert!(!device.session.is_over(), "nobody waits for it here");
        device.publish(7, QoS::ExactlyOnce, EVENTS, b"once");
        bench.answer(Outcome::Accepted);
        assert_eq!(device.hear(), [ServerPacket::PubRec { packet_id: id(7), reason: 0 }]);
    }
}

#[test]
fn a_take_over_hands_the_session_on() {
    let bench = Bench::new("");
    let (mut first, _) = connect(&bench, &lasting(Version::V5));
    first.publish(7, QoS::ExactlyOnce, EVENTS, b"once");
    bench.answer(Outcome::Accepted);
    first.hear();
    let (mut second, waits) = connect(&bench, &lasting(Version::V311));
    assert_eq!(waits, None, "the first has the session still");
    let (mut third, waits) = connect(&bench, &lasting(Version::V5));
    assert_eq!(waits, None);
    // The second has to go before it has come in.
    listen(&mut second);
    assert!(second.session.is_over());
    assert_eq!(second.hear(), []);
    lose(second);
    listen(&mut first);
    assert_eq!(first.hear(), [ServerPacket::Disconnect { reason: 0x8E }]);
    lose(first);
    listen(&mut third);
    assert!(is_present(connack(&mut third)));
    release(&mut third, 7);
    assert_eq!(third.hear(), [ServerPacket::PubComp { packet_id: id(7), reason: 0 }], "not 0x92");
}

/// Of a client that asks to be let in and is gone before it hears of it, the session is still there.
#[test]
fn who_does_not_wait_for_its_session_leaves_it_to_the_next() {
    for version in BOTH {
        let bench = Bench::new("");
        let (mut first, _) = connect(&bench, &lasting(version));
        let (second, waits) = connect(&bench, &lasting(version));
        assert_eq!(waits, None, "the first has the session still");
        lose(second);
        listen(&mut first);
        assert!(first.session.is_over());
        lose(first);
        let (mut third, answer) = connect(&bench, &lasting(version));
        assert_eq!(answer, None, "what was handed on comes with the next turn");
        listen(&mut third);
        assert!(is_present(connack(&mut third)));
    }
}

/// The hub has not taken it, or nobody knows whether it has: the connection ends without an answer, and the session
/// waits for none.
#[test]
fn what_was_not_answered_is_a_new_message_when_it_comes_again() {
    for version in BOTH {
        for outcome in [Outcome::Released, Outcome::Unknown] {
            let bench = Bench::new("");
            let (mut device, _) = connect(&bench, &lasting(version));
            device.publish(7, QoS::ExactlyOnce, EVENTS, b"once");
            bench.answer(outcome.clone());
            device.hear();
            lose(device);
            // What comes again while the former connection's is on its way waits for the same outcome.
            let (mut device, _) = connect(&bench, &lasting(version));
            device.publish(7, QoS::ExactlyOnce, EVENTS, b"once");
            lose(device);
            let (mut device, _) = connect(&bench, &lasting(version));
            device.publish(7, QoS::ExactlyOnce, EVENTS, b"once");
            assert_eq!(bench.sent.borrow().len(), 1);
            bench.answer(outcome.clone());
            listen(&mut device);
            device.hear();
            lose(device);
            let (mut device, _) = connect(&bench, &lasting(version));
            device.publish(7, QoS::ExactlyOnce, EVENTS, b"once");
            bench.answer(Outcome::Accepted);
            assert_eq!(device.hear(), [ServerPacket::PubRec { packet_id: id(7), reason: 0 }]);
        }
    }
}

/// A message of QoS 1 is a new one when it comes again, and so is one of QoS 2 that the hub cannot have.
#[test]
fn what_the_session_waits_for_is_wanted_when_the_connection_is_gone() {
    for (options, awaited) in [(lasting(Version::V5), true), (ConnectOptions::new(Version::V5, "d1"), false)]
    {
        let bench = Bench::new("");
        let (mut device, _) = connect(&bench, &options);
        device.publish(7, QoS::AtLeastOnce, EVENTS, b"again");
        device.publish(8, QoS::ExactlyOnce, EVENTS, b"once");
        lose(device);
        let verdict = bench.next_sent().verdict;
        assert_eq!((verdict.is_wanted(false), verdict.is_wanted(true)), (false, false));
        let verdict = bench.next_sent().verdict;
        assert_eq!((verdict.is_wanted(false), verdict.is_wanted(true)), (false, awaited));
    }
}

/// What waits in the gateway goes with its connection, before there is another one; what the hub may have keeps back what
/// comes behind it.
#[test]
fn the_order_of_messages_outlives_their_connection() {
    for version in BOTH {
        let bench = Bench::new("");
        let (mut device, _) = connect(&bench, &lasting(version));
        device.publish(7, QoS::ExactlyOnce, EVENTS, b"there");
        bench.is_near.set(false);
        device.publish(8, QoS::ExactlyOnce, EVENTS, b"here");
        lose(device);
        assert_eq!(bench.sent.borrow().len(), 1);
        bench.is_near.set(true);

        let (mut device, _) = connect(&bench, &lasting(version));
        device.publish(7, QoS::ExactlyOnce, EVENTS, b"there");
        device.publish(8, QoS::ExactlyOnce, EVENTS, b"here");
        device.publish(9, QoS::AtLeastOnce, EVENTS, b"new");
        assert_eq!(bench.sent.borrow().len(), 1, "the hub has not answered for the first");
        assert!(!device.session.wants_input());
        bench.answer(Outcome::Accepted);
        listen(&mut device);
        assert!(device.session.wants_input());
        let bodies: Vec<_> = bench.sent.borrow().iter().map(|sent| sent.message.body.clone()).collect();
        assert_eq!(bodies, ["here", "new"]);
        assert_eq!(device.hear(), [ServerPacket::PubRec { packet_id: id(7), reason: 0 }]);
    }
}

#[test]
fn what_has_no_outcome_keeps_nothing_back_for_ever() {
    let bench = Bench::new("");
    let (mut device, _) = connect(&bench, &lasting(Version::V5));
    device.publish(7, QoS::ExactlyOnce, EVENTS, b"there");
    lose(device);
    let (mut device, _) = connect(&bench, &lasting(Version::V5));
    device.publish(9, QoS::AtLeastOnce, EVENTS, b"new");
    assert_eq!(bench.sent.borrow().len(), 1);
    device.pass(Duration::from_secs(5));
    listen(&mut device);
    assert_eq!(bench.sent.borrow().len(), 2);
}

#[test]
fn a_session_that_is_not_handed_on_is_not_waited_for() {
    let bench = Bench::new("");
    let (_first, _) = connect(&bench, &lasting(Version::V5));
    let (mut second, waits) = connect(&bench, &lasting(Version::V5));
    assert_eq!(waits, None);
    second.pass(Duration::from_secs(5));
    assert!(!is_present(connack(&mut second)));
    let (clean, connack) = connect(&bench, &ConnectOptions::new(Version::V5, "d1"));
    assert!(!is_present(connack), "a clean start has nothing to wait for");
    assert!(!clean.session.is_over());
}

/// What happens to a session whose will waits, and whether the will is sent.
#[test]
fn a_will_waits_for_its_delay_or_the_end_of_its_session() {
    for (next, is_sent) in [
        (Some(lasting(Version::V5)), false),
        (Some(ConnectOptions::new(Version::V5, "d1")), true),
        (None, true),
    ] {
        block_on(async {
            let bench = Bench::new("");
            let will = Will {
                topic: EVENTS.into(),
                payload: "gone".into(),
                qos: QoS::AtLeastOnce,
                retain: false,
                delay: Duration::from_secs(30),
                properties: Default::default(),
            };
            let options = ConnectOptions { will: Some(&will), ..lasting(Version::V5) };
            let (device, _) = connect(&bench, &options);
            let (_, waiting) = device.session.finish(device.now);
            let waiting = waiting.expect("it waits");
            assert!(bench.sent.borrow().is_empty());
            let (trigger, shutdown) = shutdown::channel();
            match next {
                Some(next) => drop(connect(&bench, &next)),
                None => trigger.drain(),
            }
            waiting.wait(&shutdown).await;
            assert_eq!(bench.sent.borrow().len(), usize::from(is_sent));
        });
    }
}
