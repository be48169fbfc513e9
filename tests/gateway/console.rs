//! What an operator reads: health that follows the hub, counters that follow the devices.

use fieldgate_mqtt::QoS;
use fieldgate_mqtt::Version::V5;

use super::hub::{Answer, Hub};
use super::mqtt::Told;
use super::world::{Gateway, Lines, within};

#[tokio::test]
async fn health_names_every_part() {
    within(async {
        let gateway = Gateway::embedded(Lines { runtime: "workers = 2", ..Lines::default() }).await;
        let health: serde_json::Value = serde_json::from_str(&gateway.until_health(200).await).unwrap();
        let up = |names: &[&str]| -> serde_json::Value {
            names
                .iter()
                .map(|name| ((*name).to_owned(), "up".into()))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        let components = up(&["hub", "upstream", "amqp", "mqtt", "coap", "http"]);
        let connections = serde_json::json!({ "up": 0, "starting": 0, "down": 0 });
        let connector = serde_json::json!({ "status": "up", "connections": connections, "devices": 0 });
        let connectors = serde_json::json!({ "upstream": connector });
        assert_eq!(
            health,
            serde_json::json!({ "status": "up", "components": components, "connectors": connectors })
        );
    })
    .await;
}

/// One worker without the hub is a gateway that does not do its work.
#[tokio::test]
async fn health_follows_the_hub_for_each_worker() {
    within(async {
        let mut hub = Hub::start();
        let gateway = Gateway::scripted(&hub, Lines { runtime: "workers = 2", ..Lines::default() }).await;
        let connections = [hub.opened().await, hub.opened().await];
        hub.behave(|manner| manner.takes = 0);
        connections.into_iter().for_each(|connection| hub.cut(connection));
        let health: serde_json::Value = serde_json::from_str(&gateway.until_health(503).await).unwrap();
        assert_eq!((&health["components"]["upstream"], &health["status"]), (&"down".into(), &"down".into()));
        hub.behave(|manner| manner.takes = 1);
        // Until a device happens to be with the worker that has the hub again.
        loop {
            let mut device = gateway.http().await;
            device.event("dev", b"x").await;
            tokio::select! {
                answer = device.answer() => assert_eq!(answer.status, 503),
                message = hub.message() => {
                    hub.settle(&message, &Answer::Accept);
                    assert_eq!(device.answer().await.status, 204);
                    break;
                }
            }
        }
        assert!(!gateway.health.is_ready(), "the other worker is still without");
        assert_eq!(gateway.admin("/healthz").await.status, 503);
        hub.behave(|manner| manner.takes = 1);
        gateway.health.ready().await;
        assert_eq!(gateway.admin("/healthz").await.status, 200);
    })
    .await;
}

/// The counters are the process's, and other tests count as well: they are read as more than before.
#[tokio::test]
async fn everything_that_happens_is_counted() {
    within(async {
        let mut hub = Hub::start();
        let gateway = Gateway::scripted(&hub, Lines::default()).await;
        let names = [
            "fieldgate_connections_opened_total{protocol=\"mqtt\"}",
            "fieldgate_mqtt_connects_total{version=\"5\"}",
            "fieldgate_mqtt_publishes_total{message=\"qos-1\",outcome=\"accepted\"}",
            "fieldgate_mqtt_rejected_total{reason=\"no-such-address\"}",
            "fieldgate_mqtt_rejected_total{reason=\"not-permitted\"}",
            "fieldgate_http_requests_total{outcome=\"accepted\"}",
            "fieldgate_http_requests_total{outcome=\"no-such-address\"}",
            "fieldgate_coap_requests_total{outcome=\"quota\"}",
        ];
        let mut before = Vec::new();
        for name in names {
            before.push(gateway.metric(name).await);
        }
        let mut mqtt = gateway.mqtt(V5, "dev").await;
        let good = mqtt.event("dev", b"good").await;
        let unmapped = mqtt.send("nowhere", b"x", QoS::AtLeastOnce).await;
        let foreign = mqtt.event("other", b"x").await;
        let (mut http, mut coap) = (gateway.http().await, gateway.coap().await);
        http.event("http", b"http").await;
        coap.event("coap", b"coap", true).await;
        for (body, answer) in [
            ("good", Answer::Accept),
            ("http", Answer::Accept),
            ("coap", Answer::Reject("amqp:resource-limit-exceeded")),
        ] {
            let message = hub.message_of(body).await;
            hub.settle(&message, &answer);
        }
        assert_eq!(mqtt.told(good).await, Told::PubAck(0));
        assert_eq!(mqtt.told(unmapped).await, Told::PubAck(0x90));
        assert_eq!(mqtt.told(foreign).await, Told::PubAck(0x87));
        assert_eq!(http.answer().await.status, 204);
        http.write(b"POST /elsewhere HTTP/1.1\r\nHost: gateway\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(http.answer().await.status, 404);
        assert_eq!(coap.answer().await.code, "4.29");
        for (name, before) in names.into_iter().zip(before) {
            assert!(gateway.metric(name).await > before, "{name}\n{}", gateway.admin("/metrics").await.body);
        }
        let page = gateway.admin("/metrics").await;
        assert!(page.head.contains("content-type: application/openmetrics-text"), "{}", page.head);
        assert!(page.body.ends_with("# EOF\n"));
        assert_eq!(gateway.admin("/").await.status, 404);
    })
    .await;
}
