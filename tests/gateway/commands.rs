//! Commands over MQTT: accepted and rejected by the device's PUBACK, kept by the hub when there is none.

use std::path::Path;

use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::types::messaging::{ApplicationProperties, Body, Data, Message, MessageId, Properties};
use fe2o3_amqp::types::primitives::Value;
use fieldgate::sas::ConnectionString;
use fieldgate::tls::{self, Roots};
use fieldgate_mqtt::Version::{V5, V311};
use fieldgate_mqtt::client::{ConnectOptions, ServerPacket};
use fieldgate_mqtt::{PacketId, PublishProperties, PublishReply, QoS, Version};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::client::{Client, body, data};
use super::hub::{Answer, Hub, Seen};
use super::mqtt::{Mqtt, Told};
use super::world::{Directory, Gateway, Lines, within};

fn filter(id: &str) -> String {
    format!("devices/{id}/messages/devicebound/#")
}

#[tokio::test]
async fn the_devices_puback_is_the_hubs_outcome() {
    within(async {
        let mut hub = Hub::start();
        let gateway = Gateway::scripted(&hub, Lines::default()).await;
        for (version, reply, outcome) in [
            (V311, PublishReply::Success, "accepted"),
            (V5, PublishReply::Success, "accepted"),
            (V5, PublishReply::NoMatchingSubscribers, "accepted"),
            (V5, PublishReply::Unspecified, "rejected"),
            (V5, PublishReply::PayloadFormatInvalid, "rejected"),
        ] {
            let mut device = gateway.mqtt(version, "dev").await;
            assert_eq!(device.subscribe(&filter("dev")).await, 1);
            let link = hub.subscription("dev").await;
            hub.send(link, "open");
            let (packet_id, topic, payload) = device.command().await;
            assert!(topic.starts_with("devices/dev/messages/devicebound/"), "{topic}");
            assert_eq!(payload, "open");
            assert!(!hub.has_seen(|seen| matches!(seen, Seen::Outcome { .. })));
            device.acknowledge(packet_id, reply).await;
            assert!(hub.outcome_of("open").await.starts_with(outcome));
            device.leave().await;
            hub.detached(link).await;
        }
    })
    .await;
}

/// By leaving, by vanishing, by taking the subscription back: a release would count against the command.
#[tokio::test]
async fn without_a_puback_the_hub_is_told_nothing() {
    within(async {
        let mut hub = Hub::start();
        let gateway = Gateway::scripted(&hub, Lines::default()).await;
        for round in 0..3 {
            let mut device = gateway.mqtt(V5, "dev").await;
            assert_eq!(device.subscribe(&filter("dev")).await, 1);
            let link = hub.subscription("dev").await;
            hub.send(link, "open");
            device.command().await;
            match round {
                0 => device.leave().await,
                1 => drop(device),
                _ => assert_eq!(device.unsubscribe(&filter("dev")).await, 0),
            }
            hub.detached(link).await;
        }
        let mut device = gateway.mqtt(V5, "dev").await;
        assert_eq!(device.subscribe(&filter("dev")).await, 1);
        let link = hub.subscription("dev").await;
        hub.send(link, "again");
        let (packet_id, _, payload) = device.command().await;
        assert_eq!(payload, "again");
        device.acknowledge(packet_id, PublishReply::Success).await;
        assert_eq!(hub.outcome_of("again").await, "accepted");
        assert!(!hub.has_seen(|seen| matches!(seen, Seen::Outcome { .. })));
    })
    .await;
}

#[tokio::test]
async fn commands_come_again_after_an_outage() {
    within(async {
        let mut hub = Hub::start();
        let gateway = Gateway::scripted(&hub, Lines::default()).await;
        let mut device = gateway.mqtt(V5, "dev").await;
        assert_eq!(device.subscribe(&filter("dev")).await, 1);
        let link = hub.subscription("dev").await;
        hub.send(link, "first");
        let (first, ..) = device.command().await;
        hub.cut(link.connection);
        let link = hub.subscription("dev").await;
        // The answer to what came over the lost connection is nobody's; the number may be another command's now.
        device.acknowledge(first, PublishReply::Success).await;
        device.ping().await;
        hub.send(link, "second");
        let (second, _, payload) = device.command().await;
        assert_eq!(payload, "second");
        assert!(!hub.has_seen(|seen| matches!(seen, Seen::Outcome { .. })));
        device.acknowledge(second, PublishReply::Success).await;
        assert_eq!(hub.outcome_of("second").await, "accepted");
    })
    .await;
}

/// A subscription that the hub does not serve any more is not kept up for show.
#[tokio::test]
async fn a_subscription_that_the_hub_ends_is_the_devices_end() {
    within(async {
        let mut hub = Hub::start();
        let gateway = Gateway::scripted(&hub, Lines::default()).await;
        for ends_session in [false, true] {
            let mut device = gateway.mqtt(V5, "dev").await;
            assert_eq!(device.subscribe(&filter("dev")).await, 1);
            let link = hub.subscription("dev").await;
            if ends_session {
                hub.end(link, "amqp:internal-error");
            } else {
                hub.detach(link, "amqp:link:detach-forced");
            }
            let told = device.packet().await;
            assert_eq!(told, Some(ServerPacket::Disconnect { reason: 0x89 }));
            assert_eq!(device.packet().await, None);
        }
        hub.behave(|manner| manner.refuses = Some(super::hub::error("amqp:not-allowed")));
        let mut device = gateway.mqtt(V5, "dev").await;
        device.subscribe(&filter("dev")).await;
        let told = device.packet().await;
        assert_eq!(told, Some(ServerPacket::Disconnect { reason: 0x87 }));
    })
    .await;
}

#[tokio::test]
async fn foreign_filters_are_refused_and_the_connection_goes_on() {
    within(async {
        let mut hub = Hub::start();
        let gateway = Gateway::scripted(&hub, Lines::default()).await;
        for (version, code) in [(V311, 0x80), (V5, 0x87)] {
            let mut device = gateway.mqtt(version, "dev").await;
            assert_eq!(device.subscribe(&filter("other")).await, code);
            assert!(device.subscribe("#").await >= 0x80);
            let packet_id = device.event("dev", b"x").await;
            let message = hub.message().await;
            hub.settle(&message, &Answer::Accept);
            assert_eq!(device.told(packet_id).await, Told::PubAck(0));
        }
        assert!(!hub.has_seen(|seen| matches!(seen, Seen::Attached { role, .. } if role.is_receiver())));
    })
    .await;
}

/// A service's client of the embedded hub.
pub(crate) async fn service(state: &Path) -> Client {
    let text = std::fs::read_to_string(state.join("service-connection-string")).unwrap();
    let parsed = ConnectionString::parse(text.trim()).unwrap();
    let tcp = TcpStream::connect(("127.0.0.1", parsed.port.unwrap())).await.unwrap();
    let connector = TlsConnector::from(tls::client(&Roots::File(state.join("ca.pem"))).unwrap());
    let stream = connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap();
    let mut client = Client::open(stream, SaslProfile::Anonymous).await;
    let token = parsed.signer().token(&parsed.resource(), super::world::in_an_hour());
    assert_eq!(client.put_token(&token, "localhost").await, 200);
    client
}

/// A command for a device.
pub(crate) fn command(id: &str, device: &str) -> Message<Data> {
    let to = format!("/devices/{device}/messages/devicebound");
    Message::builder()
        .properties(Properties::builder().message_id(id.to_owned()).to(to).build())
        .application_properties(
            ApplicationProperties::builder().insert("iothub-ack", "full").insert("valve", "7").build(),
        )
        .body(data(*b"open").body)
        .build()
}

/// The embedded hub keeps what a device did not acknowledge, delivers it again, and does not count the delivery.
#[tokio::test]
async fn a_command_survives_devices_that_leave() {
    within(async {
        let gateway = Gateway::embedded(Lines { hub: "max_delivery_count = 2", ..Lines::default() }).await;
        let mut service = service(gateway.state.path()).await;
        let mut feedback = service.receiver("/messages/serviceBound/feedback").await;
        let mut sender = service.sender("/messages/devicebound").await;
        // It exists from its first message on.
        let mut device = gateway.mqtt(V5, "pump").await;
        let packet_id = device.event("pump", b"x").await;
        assert_eq!(device.told(packet_id).await, Told::PubAck(0));
        assert!(sender.send(command("c-1", "pump")).await.unwrap().is_accepted());
        // More often than it may be abandoned.
        for round in 0..4 {
            let version: Version = if round % 2 == 0 { V311 } else { V5 };
            device = gateway.mqtt(version, "pump").await;
            assert_eq!(device.subscribe(&filter("pump")).await, 1);
            let (packet_id, topic, payload) = device.command().await;
            assert_eq!(payload, "open");
            assert!(topic.contains("valve=7"), "{topic}");
            if round == 3 {
                device.acknowledge(packet_id, PublishReply::Success).await;
            }
        }
        let heard = feedback.recv::<Body<Value>>().await.unwrap();
        let records: serde_json::Value = serde_json::from_slice(&body(&heard)).unwrap();
        assert_eq!(records[0]["originalMessageId"], "c-1");
        assert_eq!(records[0]["statusCode"], "Success");
    })
    .await;
}

/// A client that comes back to its session gets what it has not acknowledged under the identifier that it had.
#[tokio::test]
async fn a_command_in_flight_comes_again_under_its_packet_identifier() {
    within(async {
        let gateway = Gateway::embedded(Lines::default()).await;
        let mut service = service(gateway.state.path()).await;
        let mut sender = service.sender("/messages/devicebound").await;
        for (version, id) in [(V311, "valve-3"), (V5, "valve-5")] {
            let options = ConnectOptions {
                clean_start: false,
                session_expiry_seconds: 60,
                ..ConnectOptions::new(version, id)
            };
            let (mut device, _) = Mqtt::ask(gateway.ports.mqtt, &options).await;
            let packet_id = device.event(id, b"x").await;
            assert_eq!(device.told(packet_id).await, Told::PubAck(0));
            assert_eq!(device.subscribe(&filter(id)).await, 1);
            for name in ["c-1", "c-2", "c-3"] {
                assert!(sender.send(command(name, id)).await.unwrap().is_accepted());
            }
            let mut sent = Vec::new();
            for _ in 0..3 {
                let (packet_id, topic, _) = device.command().await;
                sent.push((packet_id, topic));
            }
            device.acknowledge(sent.remove(1).0, PublishReply::Success).await;
            device.ping().await;
            for _ in 0..2 {
                let connack;
                (device, connack) = Mqtt::ask(gateway.ports.mqtt, &options).await;
                assert!(connack.session_present);
                for (id, name) in &sent {
                    match device.packet().await {
                        Some(ServerPacket::Publish { packet_id: Some(packet_id), topic, dup, .. }) => {
                            assert_eq!((packet_id, topic.as_str(), dup), (*id, &**name, true));
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
            for (packet_id, _) in &sent {
                device.acknowledge(*packet_id, PublishReply::Success).await;
            }
            device.ping().await;
            // All through: the next one has an identifier of its own.
            let (mut device, _) = Mqtt::ask(gateway.ports.mqtt, &options).await;
            assert!(sender.send(command("c-1", id)).await.unwrap().is_accepted());
            match device.packet().await {
                Some(ServerPacket::Publish { packet_id, dup: false, .. }) => {
                    assert_eq!(packet_id, PacketId::new(4));
                }
                other => panic!("{other:?}"),
            }
        }
        gateway.stop().await;
    })
    .await;
}

/// A service asks a device, and hears the answer with the name that it has given to its question.
#[tokio::test]
async fn a_device_answers_a_request_with_its_correlation_id() {
    within(async {
        let directory = Directory::new();
        std::fs::create_dir_all(directory.path()).unwrap();
        let mapping = directory.path().join("ask.toml");
        let text = "version = 1\n[[rule]]\nname = \"ask\"\ndirection = \"downlink\"\n\
                    from.hub = \"devices/{device}/messages/devicebound\"\n\
                    to.mqtt = { topic = \"ask/{device}\", qos = 1 }\n\
                    [[rule]]\nname = \"answer\"\ndirection = \"uplink\"\n\
                    from.mqtt = \"answer/{device}\"\nto.address = \"devices/{device}/messages/events\"\n";
        std::fs::write(&mapping, text).unwrap();
        let more = format!("[mappings]\nfiles = [{mapping:?}]\n");
        let gateway = Gateway::embedded(Lines { more: &more, ..Lines::default() }).await;
        let mut service = service(gateway.state.path()).await;
        let mut sender = service.sender("/messages/devicebound").await;
        let mut log = service.receiver("messages/events/ConsumerGroups/$Default/Partitions/0").await;
        let mut device = gateway.mqtt(V5, "pump").await;
        let packet_id = device.send("answer/pump", b"I am here", QoS::AtLeastOnce).await;
        assert_eq!(device.told(packet_id).await, Told::PubAck(0));
        let event = log.recv::<Body<Value>>().await.unwrap();
        log.accept(&event).await.unwrap();
        assert_eq!(device.subscribe("ask/pump").await, 1);
        for id in [
            MessageId::String("r-1".into()),
            MessageId::Ulong(7),
            MessageId::Uuid([0xab; 16].into()),
            MessageId::Binary(b"\x00\xff".to_vec().into()),
            MessageId::Binary(b"r".to_vec().into()),
        ] {
            let question = Message::builder()
                .properties(
                    Properties::builder()
                        .to("/devices/pump/messages/devicebound".to_owned())
                        .reply_to("answer/pump".to_owned())
                        .correlation_id(id.clone())
                        .build(),
                )
                .body(data(*b"how full?").body)
                .build();
            assert!(sender.send(question).await.unwrap().is_accepted());
            let (packet_id, topic, correlation_data) = match device.packet().await {
                Some(ServerPacket::Publish { packet_id: Some(packet_id), properties, .. }) => {
                    (packet_id, properties.response_topic.unwrap(), properties.correlation_data)
                }
                other => panic!("{other:?}"),
            };
            assert_eq!(topic, "answer/pump");
            device.acknowledge(packet_id, PublishReply::Success).await;
            let properties = PublishProperties { correlation_data, ..PublishProperties::default() };
            let packet_id = device.say(&topic, b"half", &properties).await;
            assert_eq!(device.told(packet_id).await, Told::PubAck(0));
            let event = log.recv::<Body<Value>>().await.unwrap();
            log.accept(&event).await.unwrap();
            let answered = event.message().properties.as_ref().and_then(|it| it.correlation_id.clone());
            assert_eq!(answered, Some(id));
        }
        gateway.stop().await;
    })
    .await;
}
