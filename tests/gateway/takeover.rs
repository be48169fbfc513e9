//! One client identifier, one connection: the newest, on whatever worker it is; and one session, also after a restart.

use std::sync::Arc;

use fieldgate_mqtt::Version::{V5, V311};
use fieldgate_mqtt::client::{ConnectOptions, ServerPacket};
use fieldgate_mqtt::{PublishReply, QoS};

use super::hub::{Answer, Hub};
use super::mqtt::{Mqtt, Told};
use super::world::{Directory, Gateway, Lines, within};

/// So many connections that it would be a wonder if one of two workers had them all.
const CONNECTIONS: usize = 24;

#[tokio::test]
async fn the_newest_connection_takes_over_from_any_worker() {
    within(async {
        let mut hub = Hub::start();
        let gateway = Gateway::scripted(&hub, Lines { runtime: "workers = 2", ..Lines::default() }).await;
        let mut device = gateway.mqtt(V5, "dev").await;
        let mut connections = std::collections::BTreeSet::new();
        for round in 1..CONNECTIONS {
            let version = if round % 2 == 0 { V5 } else { V311 };
            let next = gateway.mqtt(version, "dev").await;
            match device.version {
                V5 => {
                    assert_eq!(device.packet().await, Some(ServerPacket::Disconnect { reason: 0x8E }));
                    assert_eq!(device.packet().await, None);
                }
                V311 => assert_eq!(device.packet().await, None),
            }
            device = next;
            let packet_id = device.event("dev", b"x").await;
            let message = hub.message().await;
            connections.insert(message.place.connection);
            hub.settle(&message, &Answer::Accept);
            assert_eq!(device.told(packet_id).await, Told::PubAck(0));
        }
        assert_eq!(connections.len(), 2, "both workers had a part in it");
        device.ping().await;
    })
    .await;
}

/// The will of a connection that was taken over is sent (MQTT 5 3.1.4-3), and its commands stay at the hub.
#[tokio::test]
async fn a_take_over_sends_the_will_and_gives_the_commands_to_the_newest() {
    within(async {
        let mut hub = Hub::start();
        let gateway = Gateway::scripted(&hub, Lines { runtime: "workers = 2", ..Lines::default() }).await;
        let filter = "devices/dev/messages/devicebound/#";
        let will = fieldgate_mqtt::Will {
            topic: "devices/dev/messages/events".into(),
            payload: bytes::Bytes::from_static(b"will"),
            qos: QoS::AtLeastOnce,
            retain: false,
            properties: Default::default(),
            delay: std::time::Duration::ZERO,
        };
        let options = ConnectOptions { will: Some(&will), ..ConnectOptions::new(V5, "dev") };
        let (mut first, connack) = Mqtt::ask(gateway.ports.mqtt, &options).await;
        assert_eq!(connack.code, 0);
        assert_eq!(first.subscribe(filter).await, 1);
        let old = hub.subscription("dev").await;
        hub.send(old, "open");
        first.command().await;

        let mut second = gateway.mqtt(V5, "dev").await;
        assert_eq!(first.packet().await, Some(ServerPacket::Disconnect { reason: 0x8E }));
        let message = hub.message_of("will").await;
        hub.settle(&message, &Answer::Accept);
        hub.detached(old).await;
        assert_eq!(second.subscribe(filter).await, 1);
        let new = hub.subscription("dev").await;
        hub.send(new, "again");
        let (packet_id, _, payload) = second.command().await;
        assert_eq!(payload, "again");
        second.acknowledge(packet_id, PublishReply::Success).await;
        assert_eq!(hub.outcome_of("again").await, "accepted");
    })
    .await;
}

/// A session goes from connection to connection, on whatever worker each is: what was subscribed is heard without asking
/// again, and a message of QoS 2 that was received over one is released over another.
#[tokio::test]
async fn a_session_goes_on_over_any_worker() {
    within(async {
        let mut hub = Hub::start();
        let gateway = Gateway::scripted(&hub, Lines { runtime: "workers = 2", ..Lines::default() }).await;
        let topic = "devices/dev/messages/events";
        let options = ConnectOptions {
            clean_start: false,
            session_expiry_seconds: 60,
            ..ConnectOptions::new(V5, "dev")
        };
        let (mut device, connack) = Mqtt::ask(gateway.ports.mqtt, &options).await;
        assert!(!connack.session_present);
        assert_eq!(device.subscribe("devices/dev/messages/devicebound/#").await, 1);
        let mut link = hub.subscription("dev").await;
        let mut workers = std::collections::BTreeSet::new();
        for round in 0..CONNECTIONS {
            let packet_id = device.send(topic, b"x", QoS::ExactlyOnce).await;
            let message = hub.message().await;
            workers.insert(message.place.connection);
            hub.settle(&message, &Answer::Accept);
            assert_eq!(device.packet().await, Some(ServerPacket::PubRec { packet_id, reason: 0 }));
            // Half of them are taken over, and half are lost.
            let former = (round % 2 == 0).then_some(device);
            let (next, connack) = Mqtt::ask(gateway.ports.mqtt, &options).await;
            assert!(connack.session_present, "round {round}");
            device = next;
            link = hub.subscription("dev").await;
            device.release(packet_id).await;
            assert_eq!(device.packet().await, Some(ServerPacket::PubComp { packet_id, reason: 0 }));
            if let Some(mut former) = former {
                assert_eq!(former.packet().await, Some(ServerPacket::Disconnect { reason: 0x8E }));
            }
        }
        assert_eq!(workers.len(), 2, "both workers had a part in it");
        hub.send(link, "open");
        let (packet_id, ..) = device.command().await;
        device.acknowledge(packet_id, PublishReply::Success).await;
        assert_eq!(hub.outcome_of("open").await, "accepted");
    })
    .await;
}

/// A stop is not the end of a session: what was subscribed is heard without asking again, and a message of QoS 2 that was
/// received before is released after. Only one start goes on with it.
#[tokio::test]
async fn a_session_goes_on_after_a_restart() {
    within(async {
        let mut hub = Hub::start();
        let state = Arc::new(Directory::new());
        let topic = "devices/dev/messages/events";
        let options = |version| ConnectOptions {
            clean_start: false,
            session_expiry_seconds: 60,
            ..ConnectOptions::new(version, "dev")
        };
        let gateway = Gateway::after(&state, &hub, Lines::default()).await;
        let (mut device, connack) = Mqtt::ask(gateway.ports.mqtt, &options(V311)).await;
        assert!(!connack.session_present);
        assert_eq!(device.subscribe("devices/dev/messages/devicebound/#").await, 1);
        hub.subscription("dev").await;
        let packet_id = device.send(topic, b"once", QoS::ExactlyOnce).await;
        let message = hub.message_of("once").await;
        hub.settle(&message, &Answer::Accept);
        assert_eq!(device.packet().await, Some(ServerPacket::PubRec { packet_id, reason: 0 }));
        gateway.stop().await;
        for clean in [false, true] {
            let gateway = Gateway::after(&state, &hub, Lines::default()).await;
            let (mut device, connack) = Mqtt::ask(gateway.ports.mqtt, &options(V5)).await;
            assert!(connack.session_present);
            let link = hub.subscription("dev").await;
            hub.send(link, "open");
            let (command, ..) = device.command().await;
            device.acknowledge(command, PublishReply::Success).await;
            assert_eq!(hub.outcome_of("open").await, "accepted");
            if clean {
                device.release(packet_id).await;
                assert_eq!(device.packet().await, Some(ServerPacket::PubComp { packet_id, reason: 0 }));
                let options = ConnectOptions { clean_start: true, session_expiry_seconds: 0, ..options(V5) };
                Mqtt::ask(gateway.ports.mqtt, &options).await;
            }
            gateway.stop().await;
        }
        let gateway = Gateway::after(&state, &hub, Lines::default()).await;
        let (_device, connack) = Mqtt::ask(gateway.ports.mqtt, &options(V5)).await;
        assert!(!connack.session_present);
        gateway.stop().await;
    })
    .await;
}
