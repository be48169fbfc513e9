//! PUBACKs in the order of the PUBLISHes, and what becomes of messages when the hub goes and comes back.

use fieldgate_mqtt::QoS;
use fieldgate_mqtt::Version::{V5, V311};

use super::hub::{Answer, Hub, Seen};
use super::mqtt::Told;
use super::world::{Gateway, Lines, within};

#[tokio::test]
async fn pubacks_keep_the_order_of_the_publishes() {
    within(async {
        let mut hub = Hub::start();
        let gateway = Gateway::scripted(&hub, Lines::default()).await;
        for version in [V311, V5] {
            let id = if version == V5 { "m5" } else { "m3" };
            let refused = |code| if version == V5 { code } else { 0 };
            let mut device = gateway.mqtt(version, id).await;
            let first = device.event(id, b"1").await;
            let second = device.event(id, b"2").await;
            // What the gateway refuses by itself waits for its turn as well.
            let unmapped = device.send("nowhere", b"x", QoS::AtLeastOnce).await;
            let foreign = device.event("somebody-else", b"x").await;
            let last = device.event(id, b"3").await;
            let messages = [hub.message_of("1").await, hub.message_of("2").await, hub.message_of("3").await];
            hub.settle(&messages[2], &Answer::Accept);
            hub.settle(&messages[1], &Answer::Reject("amqp:decode-error"));
            device.ping().await;
            hub.settle(&messages[0], &Answer::Accept);
            assert_eq!(device.told(first).await, Told::PubAck(0));
            assert_eq!(device.told(second).await, Told::PubAck(refused(0x99)));
            assert_eq!(device.told(unmapped).await, Told::PubAck(refused(0x90)));
            assert_eq!(device.told(foreign).await, Told::PubAck(refused(0x87)));
            assert_eq!(device.told(last).await, Told::PubAck(0));
        }
    })
    .await;
}

/// Nothing after the one that was not taken is acknowledged, whatever the hub said of it.
#[tokio::test]
async fn nothing_is_acknowledged_past_a_message_that_was_not_taken() {
    within(async {
        let mut hub = Hub::start();
        let gateway =
            Gateway::scripted(&hub, Lines { upstream: "hold = \"100ms\"", ..Lines::default() }).await;
        let mut device = gateway.mqtt(V5, "m5").await;
        let first = device.event("m5", b"1").await;
        device.event("m5", b"2").await;
        device.event("m5", b"3").await;
        let messages = [hub.message_of("1").await, hub.message_of("2").await, hub.message_of("3").await];
        hub.settle(&messages[2], &Answer::Accept);
        hub.settle(&messages[1], &Answer::Release);
        hub.settle(&messages[0], &Answer::Accept);
        assert_eq!(device.told(first).await, Told::PubAck(0));
        assert_eq!(
            device.packet().await,
            Some(fieldgate_mqtt::client::ServerPacket::Disconnect { reason: 0x89 })
        );
        assert_eq!(device.packet().await, None);
    })
    .await;
}

#[tokio::test]
async fn publishing_goes_on_after_the_hub_was_cut() {
    within(async {
        let mut hub = Hub::start();
        let gateway = Gateway::scripted(&hub, Lines::default()).await;
        let mut sent = gateway.mqtt(V5, "sent").await;
        let mut waiting = gateway.mqtt(V311, "waiting").await;
        let lost = sent.event("sent", b"lost").await;
        let message = hub.message().await;
        hub.from_now_on(|manner| manner.takes = 0);
        hub.cut(message.place.connection);
        // The hub may have taken it, or not.
        assert_eq!(sent.told(lost).await, Told::Disconnect(0x89));
        gateway.until_health(503).await;

        // What was not sent waits for the hub; who asks is told at once.
        let kept = waiting.event("waiting", b"kept").await;
        let mut http = gateway.http().await;
        http.event("http", b"refused").await;
        assert_eq!(http.answer().await.status, 503);
        let mut coap = gateway.coap().await;
        coap.event("coap", b"refused", true).await;
        assert_eq!(coap.answer().await.code, "5.03");
        waiting.ping().await;

        hub.from_now_on(|manner| manner.takes = usize::MAX);
        let message = hub.message_of("kept").await;
        hub.settle(&message, &Answer::Accept);
        assert_eq!(waiting.told(kept).await, Told::PubAck(0));
        http.event("http", b"taken").await;
        let message = hub.message_of("taken").await;
        hub.settle(&message, &Answer::Accept);
        assert_eq!(http.answer().await.status, 204);
        let mut sent = gateway.mqtt(V5, "sent").await;
        let again = sent.event("sent", b"again").await;
        let message = hub.message_of("again").await;
        hub.settle(&message, &Answer::Accept);
        assert_eq!(sent.told(again).await, Told::PubAck(0));
        assert!(!hub.has_seen(|seen| matches!(seen, Seen::Message(_))), "nothing came twice or too late");
    })
    .await;
}

/// A session or link that the hub ends is no outage: the next message gets a new one.
#[tokio::test]
async fn publishing_goes_on_after_the_hub_has_ended_a_link_or_session() {
    within(async {
        let mut hub = Hub::start();
        let gateway = Gateway::scripted(&hub, Lines::default()).await;
        let mut device = gateway.http().await;
        for round in 0..4 {
            device.event("http", b"x").await;
            let message = hub.message().await;
            hub.settle(&message, &Answer::Accept);
            assert_eq!(device.answer().await.status, 204);
            if round % 2 == 0 {
                hub.detach(message.place, "amqp:link:detach-forced");
                hub.detached(message.place).await;
            } else {
                hub.end(message.place, "amqp:internal-error");
                hub.session_ended(message.place).await;
            }
        }
        device.event("http", b"last").await;
        let message = hub.message_of("last").await;
        hub.settle(&message, &Answer::Accept);
        assert_eq!(device.answer().await.status, 204);
    })
    .await;
}
