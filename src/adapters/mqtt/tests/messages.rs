//! CONNECT, messages to the hub and their answers, the will, the end.

use std::time::Duration;

use fieldgate_mappings::outcome::Outcome;
use fieldgate_mappings::{Reason, Value};
use fieldgate_mqtt::client::{self, ConnectOptions, ServerPacket};
use fieldgate_mqtt::{PublishProperties, QoS, Version, Will};

use crate::adapters::mqtt::inbox::Ticket;
use crate::adapters::mqtt::telemetry::Kind;
use crate::upstream::Hears;

use super::bench::{Bench, Device, EVENTS, puback, rejected};

const BOTH: [Version; 2] = [Version::V311, Version::V5];

#[test]
fn a_message_is_acknowledged_when_the_hub_has_accepted_it() {
    for version in BOTH {
        let bench = Bench::new("");
        let mut device = Device::connected(&bench, version);
        device.publish(7, QoS::AtLeastOnce, "devices/d1/messages/events/a=1", b"21.5");
        assert_eq!(device.hear(), []);
        let sent = bench.next_sent();
        assert_eq!(sent.message.device.as_str(), "d1");
        assert_eq!(sent.message.body, "21.5");
        assert_eq!(sent.message.application_property("a"), Some(&Value::from("1")));
        assert!(sent.message.durable);
        let hears = if version == Version::V5 { Hears::Everything } else { Hears::Acceptance };
        assert_eq!(sent.patience.hears, hears);
        assert!(sent.patience.through_outage);
        assert_eq!(sent.patience.until, device.now + bench.config.upstream.hold);
        sent.verdict.report(Outcome::Accepted);
        assert_eq!(device.hear(), [puback(7, 0)]);
    }
}

/// What a device of each version hears of an outcome, and whether its connection ends at once.
#[test]
fn every_outcome_has_its_answer() {
    let disconnect = |reason| ServerPacket::Disconnect { reason };
    let quota = Reason::Quota { retry_after: None };
    for (outcome, answer_3, answer_5) in [
        (Outcome::Accepted, Some(puback(1, 0)), Some(puback(1, 0x00))),
        (rejected(Reason::NotPermitted), Some(puback(1, 0)), Some(puback(1, 0x87))),
        (rejected(Reason::NoSuchAddress), Some(puback(1, 0)), Some(puback(1, 0x90))),
        (rejected(Reason::TooLarge), Some(puback(1, 0)), Some(disconnect(0x95))),
        (rejected(quota), Some(puback(1, 0)), Some(puback(1, 0x97))),
        (rejected(Reason::Content), Some(puback(1, 0)), Some(puback(1, 0x99))),
        (rejected(Reason::Credentials), None, Some(disconnect(0x87))),
        (rejected(Reason::Full { retry_after: None }), None, Some(puback(1, 0x97))),
        (rejected(Reason::Disk { retry_after: None }), None, Some(puback(1, 0x97))),
        (Outcome::Unknown, None, Some(disconnect(0x89))),
    ] {
        for (version, answer) in BOTH.into_iter().zip([answer_3, answer_5]) {
            let bench = Bench::new("");
            let mut device = Device::connected(&bench, version);
            device.publish(1, QoS::AtLeastOnce, EVENTS, b"");
            bench.answer(outcome.clone());
            // What nobody has pauses an older client first.
            let pauses = matches!(&outcome, Outcome::Rejected(refused) if refused.reason.loses_the_message());
            let closes = !pauses && !matches!(answer, Some(ServerPacket::PubAck { .. }));
            let read_on = matches!(answer, Some(ServerPacket::PubAck { .. }));
            assert_eq!(device.hear(), Vec::from_iter(answer), "{version:?} {outcome:?}");
            assert_eq!(device.session.is_over(), closes, "{version:?} {outcome:?}");
            assert_eq!(device.session.wants_input(), read_on, "{version:?} {outcome:?}");
        }
    }
}

#[test]
fn a_message_that_comes_back_untaken_is_never_acknowledged() {
    for version in BOTH {
        let bench = Bench::new("");
        let mut device = Device::connected(&bench, version);
        for number in 1..=3 {
            device.publish(number, QoS::AtLeastOnce, EVENTS, b"");
        }
        bench.answer(Outcome::Accepted);
        bench.answer(Outcome::Released);
        bench.answer(Outcome::Accepted);
        assert_eq!(device.hear(), [puback(1, 0)], "answers leave in order, and the second has none");
        assert!(!device.session.wants_input() && !device.session.is_over(), "paused");
        device.publish(4, QoS::AtLeastOnce, EVENTS, b"");
        assert!(bench.sent.borrow().is_empty(), "nothing is taken meanwhile");
        device.pass(Duration::from_secs(5));
        let last = device.hear();
        match version {
            Version::V311 => assert_eq!(last, []),
            Version::V5 => assert_eq!(last, [ServerPacket::Disconnect { reason: 0x89 }]),
        }
        assert!(device.session.is_over());
    }
}

#[test]
fn without_hold_an_outage_is_told_at_once() {
    let bench = Bench::new("[upstream]\nhold = \"0s\"");
    let mut device = Device::connected(&bench, Version::V5);
    device.publish(1, QoS::AtLeastOnce, EVENTS, b"");
    let sent = bench.next_sent();
    assert!(!sent.patience.through_outage && sent.patience.until > device.now);
    drop(sent);
    assert_eq!(device.hear(), []);
    device.pass(Duration::ZERO);
    assert_eq!(device.hear(), [ServerPacket::Disconnect { reason: 0x89 }]);
}

#[test]
fn what_the_mapping_refuses_is_answered_without_the_hub() {
    let long = "x".repeat(200);
    for (topic, code) in [
        ("unmapped", 0x90),
        ("devices/d2/messages/events/", 0x87),
        ("devices/d1/messages/events/%zz", 0x99),
        (&*format!("devices/{long}/messages/events/"), 0x87),
    ] {
        for (version, code) in BOTH.into_iter().zip([0, code]) {
            let bench = Bench::new("");
            let mut device = Device::connected(&bench, version);
            device.publish(1, QoS::AtLeastOnce, topic, b"");
            assert_eq!(device.hear(), [puback(1, code)], "{topic}");
            device.publish(2, QoS::AtMostOnce, topic, b"");
            assert_eq!(device.hear(), []);
            assert!(!device.session.is_over() && bench.sent.borrow().is_empty());
        }
    }
}

#[test]
fn qos_0_is_sent_and_bounded() {
    let bench = Bench::new("");
    let mut device = Device::connected(&bench, Version::V311);
    device.publish(1, QoS::AtMostOnce, EVENTS, b"x");
    let sent = bench.next_sent();
    assert!(!sent.message.durable && !sent.patience.through_outage);
    assert_eq!(sent.patience.hears, Hears::Nothing);
    sent.verdict.report(Outcome::Released);
    let large = vec![0; 200 * 1024];
    for _ in 0..8 {
        device.publish(1, QoS::AtMostOnce, EVENTS, &large);
    }
    assert_eq!(bench.sent.borrow().len(), 5, "a megabyte is on its way");
    bench.answer(Outcome::Accepted);
    device.publish(1, QoS::AtMostOnce, EVENTS, &large);
    assert_eq!(bench.sent.borrow().len(), 5);
    assert_eq!(device.hear(), []);
    assert!(!device.session.is_over());
}

#[test]
fn the_window_holds_an_older_client_back() {
    let bench = Bench::new("[mqtt]\npublish_window = 2");
    let mut device = Device::connected(&bench, Version::V311);
    for number in 1..=4 {
        device.publish(number, QoS::AtLeastOnce, EVENTS, &[0; 3000]);
    }
    assert_eq!(bench.sent.borrow().len(), 2);
    assert!(!device.session.wants_input());
    bench.answer(Outcome::Accepted);
    assert_eq!(device.hear(), [puback(1, 0)]);
    assert_eq!(bench.sent.borrow().len(), 2);
    bench.answer(Outcome::Accepted);
    bench.answer(Outcome::Accepted);
    assert_eq!(device.hear(), [puback(2, 0), puback(3, 0)]);
    assert!(device.session.wants_input());
}

#[test]
fn a_message_is_counted_as_what_it_was_sent_as() {
    let bench = Bench::new("");
    let mut device = Device::connected(&bench, Version::V5);
    for (number, qos, kind) in [(1, QoS::AtLeastOnce, Kind::QoS1), (2, QoS::ExactlyOnce, Kind::QoS2)] {
        device.publish(number, qos, EVENTS, b"x");
        let sent = bench.next_sent();
        assert_eq!(Ticket::from_number(sent.verdict.ticket()).kind(), kind);
        sent.verdict.report(Outcome::Accepted);
        assert_eq!(device.hear().len(), 1, "it is answered");
    }
}

#[test]
fn who_is_let_in() {
    let anonymous = "";
    let closed = "[mqtt]\nallow_anonymous = false";
    let v3 = ConnectOptions::new(Version::V311, "d1");
    let v5 = ConnectOptions::new(Version::V5, "d1");
    for (config, options, code) in [
        (anonymous, ConnectOptions { username: Some("alice"), password: Some(b"\xff"), ..v3 }, 0),
        (anonymous, ConnectOptions { username: Some("h/d1/?api-version=2021-04-12"), ..v3 }, 0),
        (anonymous, ConnectOptions { username: Some("h/d2/?api-version=2021-04-12"), ..v3 }, 5),
        (anonymous, ConnectOptions { username: Some("h/d2/?api-version=2021-04-12"), ..v5 }, 0x87),
        (anonymous, ConnectOptions { client_id: "", ..v3 }, 2),
        (anonymous, ConnectOptions { client_id: "", ..v5 }, 0x85),
        (anonymous, ConnectOptions { client_id: "a/b", ..v5 }, 0x85),
        (closed, v3, 5),
        (closed, v5, 0x86),
    ] {
        let bench = Bench::new(config);
        let mut device = Device::new(&bench, options.version);
        assert_eq!(device.connect(&options), Some(code), "{options:?}");
        assert_eq!(device.session.is_over(), code != 0);
    }
}

fn will(topic: &str) -> Will {
    Will {
        topic: topic.into(),
        payload: "gone".into(),
        qos: QoS::AtLeastOnce,
        retain: false,
        delay: Duration::ZERO,
        properties: PublishProperties { content_type: Some("text/plain".into()), ..Default::default() },
    }
}

#[test]
fn a_will_is_sent_unless_the_device_says_goodbye() {
    for (version, goodbye, expected) in [
        (Version::V311, None, 1),
        (Version::V311, Some(false), 0),
        (Version::V5, Some(false), 0),
        (Version::V5, Some(true), 1),
    ] {
        let bench = Bench::new("");
        let mut device = Device::new(&bench, version);
        let will = will(EVENTS);
        let options = ConnectOptions { will: Some(&will), ..ConnectOptions::new(version, "d1") };
        assert_eq!(device.connect(&options), Some(0));
        match goodbye {
            Some(with_will) => device.say(|out| client::put_disconnect(version, with_will, out)),
            None => device.session.end_input(),
        }
        assert!(device.session.is_over());
        device.session.finish(device.now);
        assert_eq!(bench.sent.borrow().len(), expected, "{version:?} {goodbye:?}");
        if expected == 1 {
            let sent = bench.next_sent();
            assert_eq!(sent.message.application_property("iothub-MessageType"), Some(&Value::from("Will")));
            assert_eq!(sent.message.body, "gone");
            let content_type = sent.message.properties.content_type;
            assert_eq!(content_type.is_some(), version == Version::V5);
            sent.verdict.report(Outcome::Accepted);
        }
    }
}

#[test]
fn a_will_that_cannot_be_sent_is_refused_while_the_device_can_be_told() {
    for (version, topic, code) in [
        (Version::V311, "unmapped", 5),
        (Version::V5, "unmapped", 0x90),
        (Version::V5, "devices/d2/messages/events/", 0x87),
    ] {
        let bench = Bench::new("");
        let mut device = Device::new(&bench, version);
        let will = will(topic);
        let options = ConnectOptions { will: Some(&will), ..ConnectOptions::new(version, "d1") };
        assert_eq!(device.connect(&options), Some(code));
        device.session.finish(device.now);
        assert!(bench.sent.borrow().is_empty());
    }
}

#[test]
fn a_client_that_sends_no_more_still_hears_what_it_waits_for() {
    let bench = Bench::new("");
    let mut device = Device::connected(&bench, Version::V311);
    device.publish(1, QoS::AtLeastOnce, EVENTS, b"");
    device.session.end_input();
    assert!(!device.session.is_over());
    bench.answer(Outcome::Accepted);
    assert_eq!(device.hear(), [puback(1, 0)]);
    assert!(device.session.is_over());
}

#[test]
fn what_a_lost_client_sends_again_is_not_wanted_any_more() {
    for (goodbye, waited, unwaited) in [(false, false, true), (true, true, true)] {
        let bench = Bench::new("");
        let mut device = Device::connected(&bench, Version::V5);
        device.publish(1, QoS::AtLeastOnce, EVENTS, b"");
        device.publish(2, QoS::AtMostOnce, EVENTS, b"");
        let [one, other] = [bench.next_sent(), bench.next_sent()];
        assert!(one.verdict.is_wanted(false) && other.verdict.is_wanted(false));
        if goodbye {
            device.say(|out| client::put_disconnect(Version::V5, false, out));
        }
        device.session.finish(device.now);
        assert_eq!(
            (one.verdict.is_wanted(false), other.verdict.is_wanted(false)),
            (waited, unwaited),
            "{goodbye}"
        );
    }
}

#[test]
fn a_stop_waits_for_what_is_under_way_and_takes_nothing_new() {
    for (version, last) in BOTH
        .into_iter()
        .zip([vec![puback(1, 0)], vec![puback(1, 0), ServerPacket::Disconnect { reason: 0x8B }]])
    {
        let bench = Bench::new("");
        let mut device = Device::connected(&bench, version);
        device.publish(1, QoS::AtLeastOnce, EVENTS, b"");
        device.session.drain();
        device.publish(2, QoS::AtLeastOnce, EVENTS, b"");
        assert_eq!(device.hear(), []);
        assert!(!device.session.wants_input() && !device.session.is_over());
        bench.answer(Outcome::Accepted);
        assert!(bench.sent.borrow().is_empty());
        assert_eq!(device.hear(), last);
        assert!(device.session.is_over());
    }
}

#[test]
fn a_stop_does_not_wait_for_a_hub_that_is_away() {
    let bench = Bench::new("");
    let mut device = Device::connected(&bench, Version::V5);
    device.publish(1, QoS::AtLeastOnce, EVENTS, b"");
    device.session.drain();
    bench.answer(Outcome::Released);
    assert_eq!(device.hear(), [ServerPacket::Disconnect { reason: 0x8B }]);
    let mut device = Device::connected(&bench, Version::V5);
    device.publish(1, QoS::AtLeastOnce, EVENTS, b"");
    device.session.abort();
    assert_eq!(device.hear(), [ServerPacket::Disconnect { reason: 0x8B }]);
}

#[test]
fn verdicts_that_come_after_the_end_find_nobody_and_harm_nobody() {
    let bench = Bench::new("");
    let mut device = Device::connected(&bench, Version::V311);
    device.publish(1, QoS::AtLeastOnce, EVENTS, b"");
    device.session.end_input();
    device.session.abort();
    device.session.finish(device.now);
    bench.answer(Outcome::Accepted);
}

#[test]
fn a_broken_rule_ends_the_connection_with_its_number() {
    let bench = Bench::new("");
    let mut device = Device::connected(&bench, Version::V5);
    device.say(|out| out.extend_from_slice(b"\x36\x05\x00\x01t\x00\x01"));
    let last = device.hear();
    assert!(matches!(last[..], [ServerPacket::Disconnect { reason: 0x81 | 0x82 }]), "{last:?}");
    assert!(device.session.is_over());
    let mut device = Device::connected(&bench, Version::V311);
    device.pass(Duration::from_secs(90));
    assert!(
        { device.hear() }.is_empty() && device.session.is_over(),
        "silent for one and a half keep alives"
    );
}
