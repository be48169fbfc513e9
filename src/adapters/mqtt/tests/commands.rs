//! Subscriptions, and commands on their way to the device and back.

use std::sync::Arc;

use fieldgate_mappings::outcome::{Outcome, Rejection};
use fieldgate_mappings::rules::RuleSet;
use fieldgate_mappings::{Reason, Source};
use fieldgate_mqtt::client::{self, ConnectOptions, ServerPacket};
use fieldgate_mqtt::{PacketId, PublishReply, QoS, Version};

use crate::upstream::CommandId;

use super::bench::{Bench, COMMANDS, Device, id, other_rules};

/// The packet identifier and the payload of the only PUBLISH among what was heard.
fn published(packets: &[ServerPacket]) -> (Option<PacketId>, String) {
    match packets {
        [ServerPacket::Publish { packet_id, topic, payload, .. }] => {
            assert!(
                topic.starts_with("devices/d1/messages/devicebound/") || topic.ends_with("/d1"),
                "{topic}"
            );
            (*packet_id, String::from_utf8(payload.to_vec()).unwrap())
        }
        other => panic!("{other:?}"),
    }
}

fn puback(device: &mut Device, packet_id: PacketId, reply: PublishReply) {
    let version = device.version;
    device.say(|out| client::put_puback(version, packet_id, reply, out));
}

#[test]
fn a_command_is_accepted_by_the_devices_puback() {
    for version in [Version::V311, Version::V5] {
        let bench = Bench::new("[mqtt]\ncommand_window = 4");
        let mut device = Device::connected(&bench, version);
        assert_eq!(device.subscribe(&[(COMMANDS, QoS::ExactlyOnce)]), [1]);
        let (address, credit, _) = &bench.subscribed.borrow()[0];
        assert_eq!((address.as_str(), *credit), ("devices/d1/messages/devicebound", 4));
        bench.command(5, "open");
        let (packet_id, payload) = published(&device.hear());
        assert_eq!((payload.as_str(), bench.settled()), ("open", vec![]));
        puback(&mut device, packet_id.unwrap(), PublishReply::Success);
        assert_eq!(bench.settled(), [(CommandId::numbered(5), Outcome::Accepted)]);
        puback(&mut device, packet_id.unwrap(), PublishReply::Success);
        assert_eq!(bench.settled(), [], "once");
    }
}

#[test]
fn a_refusal_of_an_mqtt_5_device_rejects() {
    let bench = Bench::new("");
    let mut device = Device::connected(&bench, Version::V5);
    device.subscribe(&[(COMMANDS, QoS::AtLeastOnce)]);
    bench.command(1, "open");
    let (packet_id, _) = published(&device.hear());
    puback(&mut device, packet_id.unwrap(), PublishReply::PayloadFormatInvalid);
    let settled = bench.settled();
    assert!(
        matches!(&settled[..], [(_, Outcome::Rejected(Rejection { reason: Reason::Content, .. }))]),
        "{settled:?}"
    );
}

#[test]
fn qos_0_is_accepted_when_it_is_written() {
    let bench = Bench::new("");
    let mut device = Device::connected(&bench, Version::V311);
    assert_eq!(device.subscribe(&[(COMMANDS, QoS::AtMostOnce)]), [0]);
    bench.command(1, "open");
    device.session.handle(device.now);
    assert_eq!(bench.settled(), []);
    assert_eq!(published(&device.hear()), (None, "open".into()));
    assert_eq!(bench.settled(), [(CommandId::numbered(1), Outcome::Accepted)]);
}

#[test]
fn the_devices_window_is_kept_to() {
    let bench = Bench::new("");
    let mut device = Device::new(&bench, Version::V5);
    let options = ConnectOptions { receive_maximum: Some(1), ..ConnectOptions::new(Version::V5, "d1") };
    assert_eq!(device.connect(&options), Some(0));
    device.subscribe(&[(COMMANDS, QoS::AtLeastOnce)]);
    bench.command(1, "one");
    bench.command(2, "two");
    let (packet_id, payload) = published(&device.hear());
    assert_eq!(payload, "one");
    puback(&mut device, packet_id.unwrap(), PublishReply::Success);
    assert_eq!(published(&device.hear()).1, "two");
}

#[test]
fn commands_larger_than_the_output_follow_one_another() {
    let bench = Bench::new("");
    let mut device = Device::connected(&bench, Version::V311);
    device.subscribe(&[(COMMANDS, QoS::AtMostOnce)]);
    let large: &'static str = "x".repeat(300 * 1024).leak();
    for number in 0..3 {
        bench.command(number, large);
    }
    assert_eq!(device.hear().len(), 3);
    assert_eq!(bench.settled().len(), 3);
}

#[test]
fn a_command_that_the_device_cannot_take_is_rejected() {
    let bench = Bench::new("");
    let mut device = Device::new(&bench, Version::V5);
    let options = ConnectOptions { max_packet_bytes: Some(200), ..ConnectOptions::new(Version::V5, "d1") };
    assert_eq!(device.connect(&options), Some(0));
    device.subscribe(&[(COMMANDS, QoS::AtLeastOnce)]);
    bench.command(1, "x".repeat(300).leak());
    bench.command(2, "fits");
    assert_eq!(published(&device.hear()).1, "fits");
    let settled = bench.settled();
    assert!(
        matches!(&settled[..], [(_, Outcome::Rejected(Rejection { reason: Reason::TooLarge, .. }))]),
        "{settled:?}"
    );
}

#[test]
fn filters_are_granted_one_by_one() {
    let filters = [
        (COMMANDS, QoS::AtLeastOnce),
        ("devices/d2/messages/devicebound/#", QoS::AtLeastOnce),
        ("devices/+/messages/devicebound/#", QoS::AtLeastOnce),
        ("#", QoS::AtLeastOnce),
        ("$iothub/twin/res/#", QoS::AtMostOnce),
        (COMMANDS, QoS::AtMostOnce),
    ];
    for (version, expected) in
        [(Version::V311, [1, 0x80, 0x80, 0x80, 0x80, 0]), (Version::V5, [1, 0x87, 0x87, 0x8F, 0x8F, 0])]
    {
        let bench = Bench::new("");
        let mut device = Device::connected(&bench, version);
        assert_eq!(device.subscribe(&filters), expected);
        assert_eq!(bench.subscribed.borrow().len(), 1, "once for the device");
        assert!(!device.session.is_over());
    }
}

#[test]
fn a_device_has_one_node_of_commands_and_so_many_filters() {
    let bench = Bench::with_rules("[mqtt]\nmax_subscriptions = 2", other_rules());
    let mut device = Device::connected(&bench, Version::V5);
    let all = [
        ("quick/d1", QoS::AtLeastOnce),
        ("in/d1", QoS::AtLeastOnce),
        ("else/d1", QoS::AtLeastOnce),
        ("in/d1", QoS::AtLeastOnce),
    ];
    assert_eq!(device.subscribe(&all), [0, 1, 0x97, 1], "QoS 0 is the rule's");
    bench.command(1, "open");
    assert_eq!(published(&device.hear()).0, None, "the oldest grant counts");
}

/// What is said to the only PUBLISH among what was heard: identifier, DUP, QoS, subscription identifiers.
fn said(packets: &[ServerPacket]) -> (Option<PacketId>, bool, QoS, Vec<u32>) {
    match packets {
        [ServerPacket::Publish { packet_id, dup, qos, properties, .. }] => {
            (*packet_id, *dup, *qos, properties.subscription_identifiers.clone())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn filters_that_overlap_get_one_publish_with_the_highest_qos_and_all_their_identifiers() {
    let text = r#"
        version = 1
        [[rule]]
        name = "commands"
        direction = "downlink"
        from.hub = "devices/{device}/messages/devicebound"
        to.mqtt = { topic = "in/{device}/{message-id}/{subject}", qos = 1 }
    "#;
    let rules = RuleSet::load(&[Source { name: "other.toml", text }]).unwrap();
    let bench = Bench::with_rules("", Arc::new(rules));
    let mut device = Device::connected(&bench, Version::V5);
    let mut subscribe = |filter: &str, qos: QoS, identifier: u8| {
        device.say(|out| client::put_identified_subscribe(id(1), identifier, filter, qos, out).unwrap());
        assert_eq!(device.hear(), [ServerPacket::SubAck { packet_id: id(1), codes: vec![qos as u8] }]);
    };
    subscribe("in/d1/#", QoS::AtMostOnce, 7);
    subscribe("in/d1/+/+", QoS::AtLeastOnce, 9);
    subscribe("in/d1/+/#", QoS::AtMostOnce, 120);
    assert_eq!(bench.subscribed.borrow().len(), 1);
    bench.command(1, "open");
    let (packet_id, _, qos, identifiers) = said(&device.hear());
    assert_eq!((qos, identifiers), (QoS::AtLeastOnce, vec![7, 9, 120]));
    puback(&mut device, packet_id.unwrap(), PublishReply::Success);
    assert_eq!(bench.settled(), [(CommandId::numbered(1), Outcome::Accepted)]);
    device.say(|out| client::put_unsubscribe(Version::V5, id(2), &["in/d1/+/+"], out).unwrap());
    assert_eq!(device.hear(), [ServerPacket::UnsubAck { packet_id: id(2), codes: vec![0] }]);
    assert_eq!(bench.ledger.dropped.get(), 0, "the link stays with the filters that are left");
    bench.command(2, "open");
    assert_eq!(said(&device.hear()), (None, false, QoS::AtMostOnce, vec![7, 120]));
}

/// The hub's connection is lost while the device is to answer, and the hub delivers again.
#[test]
fn what_the_device_has_already_is_not_sent_again_over_the_same_connection() {
    let bench = Bench::new("");
    let mut device = Device::connected(&bench, Version::V5);
    device.subscribe(&[(COMMANDS, QoS::AtLeastOnce)]);
    let first = CommandId::numbered(1);
    bench.named_command(first, "m1", "open");
    let (packet_id, ..) = said(&device.hear());
    bench.named_command(first.over_the_next_link(), "m1", "open");
    assert_eq!(device.hear(), []);
    puback(&mut device, packet_id.unwrap(), PublishReply::Success);
    assert_eq!(bench.settled(), [(first.over_the_next_link(), Outcome::Accepted)]);
    bench.named_command(CommandId::numbered(2).over_the_next_link(), "m1", "open");
    assert_ne!(said(&device.hear()).0, packet_id, "answered is answered: this is one more");
}

#[test]
fn the_subscription_goes_with_its_last_filter() {
    let bench = Bench::with_rules("", other_rules());
    let mut device = Device::connected(&bench, Version::V5);
    device.subscribe(&[("quick/d1", QoS::AtLeastOnce), ("in/d1", QoS::AtLeastOnce)]);
    let mut unsubscribe = |filters: &[&str]| {
        device.say(|out| client::put_unsubscribe(Version::V5, id(2), filters, out).unwrap());
        device.hear()
    };
    let answer = |codes| [ServerPacket::UnsubAck { packet_id: id(2), codes }];
    assert_eq!(unsubscribe(&["quick/d1", "never/asked"]), answer(vec![0x00, 0x11]));
    assert_eq!(bench.ledger.dropped.get(), 0);
    bench.command(1, "late");
    assert_eq!(unsubscribe(&["in/d1"]), answer(vec![0x00]), "and no command after it");
    assert_eq!((bench.ledger.dropped.get(), bench.settled()), (1, vec![]), "the hub keeps it");
    assert_eq!(unsubscribe(&["in/d1"]), answer(vec![0x11]));
}

#[test]
fn a_device_that_goes_leaves_its_commands_to_the_hub() {
    let bench = Bench::new("");
    let mut device = Device::connected(&bench, Version::V311);
    device.subscribe(&[(COMMANDS, QoS::AtLeastOnce)]);
    bench.command(1, "open");
    published(&device.hear());
    device.session.end_input();
    device.session.finish(device.now);
    assert_eq!((bench.ledger.dropped.get(), bench.settled()), (1, vec![]));
}

#[test]
fn a_device_whose_subscription_the_hub_ends_is_told_to_come_again() {
    for (refused, code) in [
        (None, 0x89),
        (Some(Reason::NotPermitted), 0x87),
        (Some(Reason::NoSuchAddress), 0x8F),
        (Some(Reason::Quota { retry_after: None }), 0x97),
    ] {
        for version in [Version::V311, Version::V5] {
            let bench = Bench::new("");
            let mut device = Device::connected(&bench, version);
            device.subscribe(&[(COMMANDS, QoS::AtLeastOnce)]);
            bench.command(1, "open");
            bench.sink().ended(refused.map(|reason| Rejection::new(reason, "no")));
            let expected = match version {
                Version::V311 => vec![],
                Version::V5 => vec![ServerPacket::Disconnect { reason: code }],
            };
            assert_eq!(device.hear(), expected);
            assert!(device.session.is_over());
            assert_eq!((bench.ledger.dropped.get(), bench.settled()), (1, vec![]));
        }
    }
}
