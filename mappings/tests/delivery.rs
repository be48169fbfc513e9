//! `[rule.delivery]`: what it says, what it puts on the wire, what the loader refuses.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fieldgate_mappings::delivery::{Ack, OnError, WhenFull, WhenOffline};
use fieldgate_mappings::mqtt::{Publish, PublishProperties};
use fieldgate_mappings::{Address, Delivery, DeviceId, Message, RuleSet, Source, amqp};

const UP: &str = "version = 1\n[[rule]]\nname = \"up\"\ndirection = \"uplink\"\nfrom.mqtt = \"{device}\"\n\
                  to.address = \"devices/{device}/messages/events\"\n";
const DOWN: &str = "version = 1\n[[rule]]\nname = \"down\"\ndirection = \"downlink\"\n\
                    from.hub = \"devices/{device}/messages/devicebound\"\nto.mqtt = { topic = \"{device}\" }\n";

fn load(text: &str) -> RuleSet {
    RuleSet::load(&[Source { name: "m.toml", text }]).unwrap_or_else(|error| panic!("{error}"))
}

/// What the only rule, with these lines, says.
fn delivery(lines: &str) -> Delivery {
    let rules = load(&format!("{UP}{lines}"));
    rules.described()[0].delivery.as_deref().cloned().unwrap()
}

fn message(rules: &RuleSet, will: bool) -> Message {
    let publish = Publish {
        topic: "d1",
        payload: Bytes::from_static(b"x"),
        qos: 0,
        retain: false,
        properties: PublishProperties::default(),
    };
    let device = DeviceId::new("d1").unwrap();
    if will { rules.map_mqtt_will(&device, publish) } else { rules.map_mqtt(&device, publish) }.unwrap()
}

#[test]
fn a_rule_that_says_nothing_costs_nothing() {
    let rules = load(UP);
    assert!(rules.described()[0].delivery.is_none() && !rules.needs_disk());
    assert_eq!(message(&rules, false).delivery, None);
    assert_eq!(message(&rules, false).priority(), 4);
}

#[test]
fn what_is_left_out_is_as_always() {
    let plain = delivery("delivery = {}");
    assert_eq!(
        plain,
        Delivery {
            rule: "m.toml:3 `up` @f221071c".into(),
            ack: Ack::OnHubAccept,
            priority: 4,
            when_offline: None,
            on_error: OnError::Reject,
        }
    );
    assert!(!plain.spools() && !plain.needs_disk());
    assert_eq!(delivery("delivery.when_offline = {}").when_offline, Some(WhenOffline::default()));
}

#[test]
fn everything_can_be_said() {
    let all = "[rule.delivery]\nack = \"on-hub-accept\"\npriority = 9\non_error = \"dead-letter\"\n\
               when_offline = { max_bytes = \"512MiB\", max_age = \"24h\", full = \"dead-letter-oldest\" }";
    let said = delivery(all);
    assert_eq!((said.ack, said.priority, said.on_error), (Ack::OnHubAccept, 9, OnError::DeadLetter));
    let kept = WhenOffline {
        max_bytes: Some(512 << 20),
        max_age: Some(Duration::from_secs(86_400)),
        full: WhenFull::DeadLetterOldest,
    };
    assert_eq!(said.when_offline, Some(kept));
    assert!(said.spools());
    assert_eq!(
        delivery("delivery.when_offline.max_bytes = 4096").when_offline.unwrap().max_bytes,
        Some(4096)
    );
    let stores = delivery("delivery.ack = \"on-store\"");
    assert!(stores.ack == Ack::OnStore && stores.spools());
    let buries = delivery("delivery.on_error = \"dead-letter\"");
    assert!(!buries.spools() && buries.needs_disk());
}

#[test]
fn messages_and_wills_share_what_their_rule_says() {
    let rules = load(&format!("{UP}[rule.delivery]\nack = \"on-store\"\npriority = 7"));
    assert!(rules.needs_disk());
    let said = rules.described()[0].delivery.clone().unwrap();
    for will in [false, true] {
        let message = message(&rules, will);
        assert!(Arc::ptr_eq(message.delivery.as_ref().unwrap(), &said));
        assert_eq!(message.priority(), 7);
    }
}

#[test]
fn the_priority_stands_in_the_header_and_the_rest_can_be_had_without() {
    let header = |lines: &str| {
        let message = message(&load(&format!("{UP}{lines}")), false);
        let (mut whole, mut head, mut rest) = (BytesMut::new(), BytesMut::new(), BytesMut::new());
        amqp::encode(&message, &mut whole);
        amqp::encode_header(&message, &mut head);
        amqp::encode_rest(&message, &mut rest);
        assert_eq!(whole, [&head[..], &rest[..]].concat());
        let address = Address::parse("devices/d1/messages/events").unwrap();
        let read = amqp::decode(message.device, address, &rest.freeze()).unwrap();
        assert_eq!((read.body, read.durable, read.ttl), (message.body, false, None));
        head
    };
    assert!(header("").is_empty());
    assert!(header("delivery.priority = 4").is_empty());
    // durable, priority (ubyte 7), no ttl.
    assert!(header("delivery.priority = 7").windows(2).any(|bytes| bytes == [0x50, 7]));
}

#[test]
fn a_check_reads_like_a_sentence() {
    for (lines, sentence) in [
        ("delivery = {}", "acknowledged when the hub accepts"),
        ("delivery.priority = 9", "acknowledged when the hub accepts, priority 9"),
        (
            "delivery.ack = \"on-store\"",
            "acknowledged when the disk has it; kept until the hub accepts, refused when full; \
             a dead letter if the hub refuses it",
        ),
        (
            "delivery.when_offline = { max_bytes = \"512MiB\", max_age = \"24h\", full = \"dead-letter-oldest\" }",
            "acknowledged when the hub accepts; kept on disk while the hub is away, at most 512MiB for a device, \
             for 1d at most, the oldest become dead letters when full",
        ),
        (
            "delivery.on_error = \"dead-letter\"",
            "acknowledged when the hub accepts; a dead letter if the hub refuses it",
        ),
    ] {
        assert_eq!(delivery(lines).to_string(), sentence);
    }
}

#[test]
fn both_ways_means_the_way_to_the_hub() {
    let both = UP.replace("uplink", "both");
    assert!(load(&format!("{both}delivery.ack = \"on-store\"")).needs_disk());
}

#[test]
fn what_means_nothing_is_refused_where_it_stands() {
    for (head, line, place, part) in [
        (DOWN, "delivery.ack = \"on-store\"", "7:1", "a downlink rule has none"),
        (UP, "delivery.ack = \"on-stor\"", "7:16", "unknown `ack` `on-stor`: did you mean `on-store`?"),
        (UP, "delivery.priority = 10", "7:21", "the priority 10 is not AMQP's: 0 (least) to 9 (most)"),
        (UP, "delivery.priority = -1", "7:21", "the priority -1 is not AMQP's"),
        (UP, "delivery.on_error = \"drop\"", "7:21", "known here: `reject`, `dead-letter`"),
        (
            UP,
            "delivery.when_offline.full = \"drop\"",
            "7:30",
            "known here: `refuse-new`, `dead-letter-oldest`",
        ),
        (UP, "delivery.when_offline.max_age = \"24\"", "7:33", "`24` is not a duration with its unit"),
        (UP, "delivery.when_offline.max_age = \"0s\"", "7:33", "nothing can wait no time"),
        (UP, "delivery.when_offline.max_bytes = \"1MB\"", "7:35", "`1MB` is not a size in bytes"),
        (UP, "delivery.when_offline.max_bytes = -1", "7:35", "`-1` is not a size in bytes"),
        (UP, "delivery.when_offline.max_bytes = 0", "7:35", "nothing can wait in 0 bytes"),
        (
            UP,
            "delivery = { ack = \"on-store\", on_error = \"reject\" }",
            "7:43",
            "the device has its answer before the hub refuses: write `on_error = \"dead-letter\"`",
        ),
    ] {
        let text = format!("{head}{line}\n");
        let error = RuleSet::load(&[Source { name: "m.toml", text: &text }]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("m.toml:{place}: ")), "{line}: {error}");
        assert!(error.contains(part), "{line}: {error}");
    }
}
