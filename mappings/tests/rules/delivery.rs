//! `[rule.delivery]`: what it means, and what the loader refuses.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fieldgate_amqp::codec::Limits;
use fieldgate_amqp::message::Sections;
use fieldgate_mappings::delivery::{Ack, Delivery, Full, WhenOffline};
use fieldgate_mappings::mqtt::{Publish, PublishProperties};
use fieldgate_mappings::{DeviceId, Message, RuleSet, Source, amqp};

const RULE: &str = "version = 1\n[[rule]]\nname = \"r\"\ndirection = \"uplink\"\nfrom.mqtt = \"t/{device}\"\n\
                    to.address = \"devices/{device}/messages/events\"\n";

fn load(delivery: &str) -> Result<RuleSet, String> {
    let text = format!("{RULE}{delivery}");
    RuleSet::load(&[Source { name: "m.toml", text: &text }]).map_err(|error| error.to_string())
}

fn message(rules: &RuleSet) -> Message {
    let device = DeviceId::new("d1").unwrap();
    let payload = Bytes::from_static(b"x");
    let properties = PublishProperties::default();
    rules.map_mqtt(&device, Publish { topic: "t/d1", payload, qos: 0, retain: false, properties }).unwrap()
}

fn delivery(text: &str) -> Delivery {
    let rules = load(text).unwrap();
    let delivery = message(&rules).delivery.unwrap();
    assert_eq!(rules.deliveries(), std::slice::from_ref(&delivery));
    Delivery::clone(&delivery)
}

#[test]
fn a_rule_without_it_waits_for_the_hub() {
    let rules = load("").unwrap();
    assert_eq!(message(&rules).delivery, None);
    assert!(rules.deliveries().is_empty());
}

#[test]
fn what_is_written_goes_with_the_message() {
    let plain =
        Delivery { ack: Ack::OnHubAccept, priority: 4, when_offline: None, rule: "m.toml `r`".into() };
    assert_eq!(delivery("[rule.delivery]"), plain);
    assert!(!plain.spools());
    let stored = delivery("delivery.ack = \"on-store\"");
    assert_eq!(stored, Delivery { ack: Ack::OnStore, ..plain.clone() });
    assert!(stored.spools());
    let when_offline = "delivery.when_offline = { max_bytes = \"512MiB\", max_age = \"24h\", full = \"dead-letter-oldest\" }";
    let expected = WhenOffline {
        max_bytes: Some(512 << 20),
        max_age: Some(Duration::from_secs(86_400)),
        full: Full::DeadLetterOldest,
    };
    let offline = delivery(when_offline);
    assert_eq!(offline, Delivery { when_offline: Some(expected), ..plain.clone() });
    assert!(offline.spools());
    let bare = WhenOffline { max_bytes: None, max_age: None, full: Full::RefuseNew };
    assert_eq!(delivery("delivery.when_offline = {}"), Delivery { when_offline: Some(bare), ..plain });
}

#[test]
fn the_priority_stands_in_the_header() {
    for (text, priority) in [("", 4), ("delivery.priority = 4", 4), ("delivery.priority = 9", 9)] {
        let message = message(&load(text).unwrap());
        let mut encoded = BytesMut::new();
        amqp::encode(&message, &mut encoded);
        let mut without = BytesMut::new();
        amqp::encode_sections(&message, &mut without);
        assert_eq!(encoded.len() > without.len(), priority != 4, "a header that says nothing is left out");
        let encoded = encoded.freeze();
        assert_eq!(Sections::parse(&encoded, &Limits::WIRE).unwrap().header().priority, priority);
    }
}

#[test]
fn what_cannot_be_is_refused_where_it_stands() {
    for (text, place, part) in [
        ("delivery.ack = \"on-stroe\"", "m.toml:7:16", "unknown ack `on-stroe`: did you mean `on-store`?"),
        ("delivery.priority = 10", "m.toml:7:21", "a priority is a number from 0 to 9"),
        ("delivery.priority = -1", "m.toml:7:21", "a priority is a number from 0 to 9"),
        ("delivery.when_offline = { max_age = \"1\" }", "m.toml:7:37", "`1` is not a duration with its unit"),
        ("delivery.when_offline = { max_bytes = \"1MB\" }", "m.toml:7:39", "`1MB` is not a size in bytes"),
        ("delivery.when_offline = { max_bytes = \"0\" }", "m.toml:7:39", "leave it out"),
        ("delivery.when_offline = { full = \"drop\" }", "m.toml:7:34", "known here: `refuse-new`"),
        ("delivery.when_offlin = {}", "m.toml:7:10", "did you mean `when_offline`?"),
        ("delivery.on_error = \"reject\"", "m.toml:7:10", "the key `on_error` is not in this version"),
    ] {
        let message = load(text).unwrap_err();
        assert!(message.starts_with(&format!("{place}: ")), "{text}: {message}");
        assert!(message.contains(part), "{text}: {message}");
    }
    let command = "version = 1\n[[rule]]\nname = \"c\"\ndirection = \"downlink\"\nfrom.hub = \
                   \"devices/{device}/messages/devicebound\"\nto.mqtt = { topic = \"c/{device}\" }\n\
                   delivery.priority = 1\n";
    let message = RuleSet::load(&[Source { name: "m.toml", text: command }]).unwrap_err().to_string();
    assert!(message.contains("`delivery` is for messages to the hub"), "{message}");
}
