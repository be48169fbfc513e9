//! The stop: what is in flight is answered first, and every device is told goodbye in its own words.

use fe2o3_amqp::sasl_profile::SaslProfile;
use fieldgate_amqp::connection::CloseReason;
use fieldgate_mqtt::Version::{V5, V311};
use tokio::net::TcpStream;

use super::client::Client;
use super::hub::{Answer, Hub, Seen};
use super::mqtt::Told;
use super::requests::Heard;
use super::world::{Gateway, Lines, within};

#[tokio::test]
async fn what_is_in_flight_is_answered_before_the_goodbye() {
    within(async {
        let mut hub = Hub::start();
        let coap = "ack_delay = \"20ms\"";
        let gateway = Gateway::scripted(&hub, Lines { coap, ..Lines::default() }).await;
        let (mut mqtt_3, mut mqtt_5) = (gateway.mqtt(V311, "m3").await, gateway.mqtt(V5, "m5").await);
        let mut idle = gateway.mqtt(V5, "idle").await;
        let (mut http, mut con) = (gateway.http().await, gateway.coap().await);
        let id_3 = mqtt_3.event("m3", b"m3").await;
        let id_5 = mqtt_5.event("m5", b"m5").await;
        let second = mqtt_5.event("m5", b"refused").await;
        http.event("http", b"http").await;
        con.event("con", b"con", true).await;
        let mut messages = Vec::new();
        for body in ["m3", "m5", "refused", "http", "con"] {
            messages.push(hub.message_of(body).await);
        }
        assert_eq!(con.hear().await, Heard::EmptyAck);

        gateway.trigger.drain();
        // Who has nothing in flight goes at once, and nobody new comes in.
        assert_eq!(
            idle.packet().await,
            Some(fieldgate_mqtt::client::ServerPacket::Disconnect { reason: 0x8B })
        );
        assert_eq!(idle.packet().await, None);
        while TcpStream::connect(gateway.ports.mqtt).await.is_ok() {
            tokio::task::yield_now().await;
        }
        assert!(http.is_silent());
        for message in &messages {
            let refused = message.body == "refused";
            hub.settle(message, &if refused { Answer::Reject("amqp:decode-error") } else { Answer::Accept });
        }
        assert_eq!(mqtt_3.told(id_3).await, Told::PubAck(0));
        assert_eq!(mqtt_3.packet().await, None);
        assert_eq!(mqtt_5.told(id_5).await, Told::PubAck(0));
        assert_eq!(mqtt_5.told(second).await, Told::PubAck(0x99));
        assert_eq!(mqtt_5.told(second).await, Told::Disconnect(0x8B));
        assert_eq!(http.answer().await.status, 204);
        assert_eq!(http.try_answer().await, None);
        assert_eq!(con.answer().await.code, "2.04");
        let connection = messages[0].place.connection;
        gateway.stop().await;
        assert_eq!(hub.ended(connection).await, Some(CloseReason::Remote(None)), "the hub is told goodbye");
    })
    .await;
}

/// A hub that does not answer holds the stop up until nobody waits any longer.
#[tokio::test]
async fn an_abort_waits_for_nobody() {
    within(async {
        let mut hub = Hub::start();
        let gateway = Gateway::scripted(&hub, Lines::default()).await;
        let mut mqtt = gateway.mqtt(V5, "m5").await;
        let mut http = gateway.http().await;
        let packet_id = mqtt.event("m5", b"x").await;
        http.event("http", b"x").await;
        hub.message().await;
        hub.message().await;
        gateway.trigger.drain();
        while TcpStream::connect(gateway.ports.mqtt).await.is_ok() {
            tokio::task::yield_now().await;
        }
        assert!(http.is_silent());
        gateway.trigger.abort();
        gateway.stop().await;
        // Never told that it arrived; whether the stop or the end of the hub's connection is heard of first is open.
        let told = mqtt.try_told(packet_id).await;
        assert!(matches!(told, Ok(Told::Disconnect(0x8B | 0x89) | Told::Closed) | Err(_)), "{told:?}");
    })
    .await;
}

#[tokio::test]
async fn native_devices_are_closed_with_a_reason_and_their_hub_connection_with_them() {
    within(async {
        let mut hub = Hub::start();
        let gateway =
            Gateway::scripted(&hub, Lines { upstream: "mode = \"per-connection\"", ..Lines::default() })
                .await;
        hub.opened().await;
        let stream = TcpStream::connect(gateway.ports.amqp).await.unwrap();
        let mut device = Client::open(stream, SaslProfile::Anonymous).await;
        let connection = hub.opened().await;
        gateway.trigger.drain();
        let closed = device.connection.on_close().await.unwrap_err();
        assert!(format!("{closed:?}").contains("ConnectionForced"), "{closed:?}");
        gateway.stop().await;
        assert_eq!(hub.ended(connection).await, Some(CloseReason::Remote(None)));
        assert!(!hub.has_seen(|seen| matches!(seen, Seen::Attached { .. })));
    })
    .await;
}
