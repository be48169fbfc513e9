//! Rules that keep messages on the disk: through an outage, over a restart, and back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fieldgate_mqtt::Version::{V5, V311};
use fieldgate_mqtt::{QoS, Version};

use super::devices::{PASSWORD, Registry, connect, with_password};
use super::hub::{Answer, Hub, Message};
use super::mqtt::Told;
use super::pools::in_force;
use super::world::{Directory, Gateway, Lines, within};

const RULES: &str = r#"
version = 1

[[rule]]
name = "kept"
direction = "uplink"
from.mqtt = "kept/{device}"
from.http = "POST /kept/{device}"
from.coap = "POST /kept/{device}"
to.address = "devices/{device}/messages/events"
delivery = { when_offline = { max_bytes = "1MiB", max_age = "1h" }, priority = 6 }

[[rule]]
name = "tiny"
direction = "uplink"
from.mqtt = "tiny/{device}"
from.http = "POST /tiny/{device}"
from.coap = "POST /tiny/{device}"
to.address = "devices/{device}/messages/events"
delivery = { ack = "on-store", when_offline = { max_bytes = 1 } }

[[rule]]
name = "stored"
direction = "uplink"
from.mqtt = "stored/{device}"
to.address = "devices/{device}/messages/events"
delivery.ack = "on-store"
"#;

/// A directory with the rules in it, and the section that names them.
fn rules() -> (Directory, String) {
    let directory = Directory::new();
    std::fs::create_dir_all(directory.path()).unwrap();
    let file = directory.path().join("rules.toml");
    std::fs::write(&file, RULES).unwrap();
    let section = format!("[mappings]\nfiles = [{file:?}]\n");
    (directory, section)
}

async fn next(hub: &mut Hub) -> Message {
    let message = hub.message().await;
    hub.settle(&message, &Answer::Accept);
    message
}

#[tokio::test]
async fn what_was_acknowledged_during_an_outage_arrives_after_a_restart() {
    for version in [V311, V5] {
        within(outage_and_restart(version)).await;
    }
}

async fn outage_and_restart(version: Version) {
    let (_directory, section) = rules();
    let mut hub = Hub::start();
    let lines = Lines { more: &section, ..Lines::default() };
    let gateway = Gateway::scripted(&hub, lines).await;
    // The worker's connection and the spool's own.
    let connections = [hub.opened().await, hub.opened().await];
    let mut device = gateway.mqtt(version, "d").await;
    let first = device.send("kept/d", b"1", QoS::AtLeastOnce).await;
    let message = next(&mut hub).await;
    assert_eq!(device.told(first).await, Told::PubAck(0));
    assert_eq!((&*message.body, message.resent), (&b"1"[..], (false, false)));

    // The second is with the hub when that is cut; nobody knows what became of it.
    let second = device.send("kept/d", b"2", QoS::AtLeastOnce).await;
    let direct = hub.message_of("2").await;
    hub.behave(|manner| manner.takes = 0);
    connections.into_iter().for_each(|connection| hub.cut(connection));
    assert_eq!(device.told(second).await, Told::PubAck(0), "the disk has it");
    for body in ["3", "4", "5"] {
        let packet = device.send("kept/d", body.as_bytes(), QoS::AtLeastOnce).await;
        assert_eq!(device.told(packet).await, Told::PubAck(0), "{body}");
    }
    device.send("kept/d", b"6", QoS::AtMostOnce).await;
    let last = device.send("kept/d", b"7", QoS::AtLeastOnce).await;
    assert_eq!(device.told(last).await, Told::PubAck(0));
    device.leave().await;
    let state = Arc::clone(&gateway.state);
    gateway.stop().await;

    let gateway = Gateway::after(&state, &hub, lines).await;
    // What is sent now waits behind it.
    let mut device = gateway.mqtt(version, "d").await;
    let live = device.send("kept/d", b"8", QoS::AtLeastOnce).await;
    assert_eq!(device.told(live).await, Told::PubAck(0));
    hub.behave(|manner| manner.takes = usize::MAX);
    let mut ids = BTreeSet::new();
    for body in ["2", "3", "4", "5", "6", "7", "8"] {
        let message = next(&mut hub).await;
        assert_eq!(message.body, body);
        // What was in the log at the start may have been sent from there before: nobody has noted that.
        assert_eq!(message.resent, (body != "8", body != "8"), "{body}");
        if body == "2" {
            assert_eq!(message.id, direct.id, "the hub can see that it is the same one");
        }
        ids.extend(message.id);
    }
    assert_eq!(ids.len(), 7, "each has a name of its own");

    // With nothing on the disk, and the worker's own connection back, the hub answers again.
    gateway.until_spooled(0).await;
    gateway.until_health(200).await;
    let packet = device.send("kept/d", b"live", QoS::AtLeastOnce).await;
    let message = hub.message_of("live").await;
    hub.settle(&message, &Answer::Reject("amqp:not-allowed"));
    // An older client cannot be told why: for it there is the dead letter.
    let code = if version == V5 { 0x87 } else { 0 };
    assert_eq!(device.told(packet).await, Told::PubAck(code));
}

#[tokio::test]
async fn what_was_stored_for_one_hub_does_not_go_to_another() {
    within(async {
        let (_directory, section) = rules();
        let (mut here, mut there) = (Hub::start(), Hub::start());
        let probe = with_password("probe", PASSWORD);
        let entry = |hub: &str| with_password("pump", PASSWORD) + hub + &probe;
        let registry = Registry::new(&entry("hub = \"there\"\n"));
        let more = section + &registry.section() + &there.connector("there", "");
        let lines = Lines { more: &more, ..Lines::NONE };
        let gateway = Gateway::scripted(&here, lines).await;
        there.behave(|manner| manner.takes = 0);
        let (mut pump, _) = connect(&gateway, V5, "pump", "", PASSWORD).await;
        let stored = pump.send("kept/pump", b"for there", QoS::AtLeastOnce).await;
        assert_eq!(pump.told(stored).await, Told::PubAck(0));
        gateway.until_spooled(1).await;

        // It belongs to the other hub, and the one that it was for is there again.
        registry.write(&(entry("") + &with_password("probe-2", PASSWORD)));
        in_force(&gateway, "probe-2").await;
        let live = pump.send("kept/pump", b"for here", QoS::AtLeastOnce).await;
        let message = here.message().await;
        assert_eq!(message.body, "for here");
        here.settle(&message, &Answer::Accept);
        assert_eq!(pump.told(live).await, Told::PubAck(0));
        there.behave(|manner| manner.takes = usize::MAX);
        while gateway.metric("fieldgate_spool_held_for_former_hub_total").await == 0 {}
        gateway.until_spooled(1).await;
        let state = Arc::clone(&gateway.state);
        gateway.stop().await;

        registry.write(&entry("hub = \"there\"\n"));
        let _gateway = Gateway::after(&state, &here, lines).await;
        assert_eq!(next(&mut there).await.body, "for there");
    })
    .await;
}

#[tokio::test]
async fn a_disk_without_room_is_said_in_each_protocol() {
    let (_directory, section) = rules();
    within(async {
        let mut hub = Hub::start();
        let gateway = Gateway::scripted(&hub, Lines { more: &section, ..Lines::default() }).await;
        let mut device = gateway.mqtt(V5, "m5").await;
        let packet = device.send("tiny/m5", b"x", QoS::AtLeastOnce).await;
        assert_eq!(device.told(packet).await, Told::PubAck(0x97));

        let mut device = gateway.http().await;
        device.write(b"POST /tiny/h HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx").await;
        let answer = device.answer().await;
        assert_eq!(answer.status, 507);
        assert!(answer.head.to_ascii_lowercase().contains("retry-after: "), "{}", answer.head);

        // An older client cannot be told: it has no answer, and other devices go on.
        let mut device = gateway.mqtt(V311, "m3").await;
        device.send("tiny/m3", b"x", QoS::AtLeastOnce).await;
        device.ping().await;
        device.send("tiny/m3", b"x", QoS::AtMostOnce).await;
        device.ping().await;
        let mut other = gateway.mqtt(V311, "other").await;
        let packet = other.send("kept/other", b"y", QoS::AtLeastOnce).await;
        let message = hub.message_of("y").await;
        hub.settle(&message, &Answer::Accept);
        assert_eq!(other.told(packet).await, Told::PubAck(0));
    })
    .await;
}

#[tokio::test]
async fn a_hub_that_says_nothing_does_not_hold_up_the_stop() {
    let (_directory, section) = rules();
    within(async {
        let mut hub = Hub::start();
        let lines = Lines { more: &section, ..Lines::default() };
        let gateway = Gateway::scripted(&hub, lines).await;
        let mut device = gateway.mqtt(V5, "d").await;
        let packet = device.send("stored/d", b"x", QoS::AtLeastOnce).await;
        assert_eq!(device.told(packet).await, Told::PubAck(0), "the disk has it");
        let unanswered = hub.message_of("x").await;
        assert_eq!(unanswered.resent, (false, false));
        device.leave().await;
        let state = Arc::clone(&gateway.state);
        let asked = Instant::now();
        gateway.stop().await;
        // The hub would have 30 s for its answer.
        assert!(asked.elapsed() < Duration::from_secs(15), "the stop took {:?}", asked.elapsed());

        let _gateway = Gateway::after(&state, &hub, lines).await;
        let again = next(&mut hub).await;
        assert_eq!((&*again.body, again.resent, again.id), (&b"x"[..], (true, true), unanswered.id));
    })
    .await;
}
