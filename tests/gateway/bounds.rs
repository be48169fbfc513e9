//! Bounds: over each of them somebody is held back or turned away, and everybody else goes on.

use std::time::Duration;

use bytes::BytesMut;
use fieldgate_mqtt::Version::{V5, V311};
use fieldgate_mqtt::client::{ConnectOptions, put_publish};
use fieldgate_mqtt::{OutgoingPublish, PacketId, QoS};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use super::hub::{Answer, Hub, Seen};
use super::mqtt::{Mqtt, Told};
use super::world::{Gateway, Lines, within};

/// More than all buffers of a connection hold.
const FLOOD_BYTES: usize = 64 << 20;

#[tokio::test]
async fn one_connection_more_than_allowed_is_closed_at_once() {
    within(async {
        let hub = Hub::start();
        let lines = "max_connections = 2";
        let gateway =
            Gateway::scripted(&hub, Lines { amqp: lines, mqtt: lines, http: lines, ..Lines::default() })
                .await;
        let ports = gateway.ports;
        for port in [ports.amqp, ports.mqtt, ports.http] {
            let first = TcpStream::connect(port).await.unwrap();
            let _second = TcpStream::connect(port).await.unwrap();
            let mut third = TcpStream::connect(port).await.unwrap();
            assert_eq!(third.read(&mut [0]).await.unwrap(), 0);
            // A place is free again once its connection is over.
            drop(first);
            loop {
                let mut next = TcpStream::connect(port).await.unwrap();
                let mut byte = [0];
                tokio::select! {
                    biased;
                    read = next.read(&mut byte) => assert_eq!(read.unwrap(), 0),
                    () = tokio::time::sleep(Duration::from_millis(100)) => break,
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn the_publish_window_holds_the_device_back() {
    within(async {
        let mut hub = Hub::start();
        let lines = Lines { mqtt: "publish_window = 4", ..Lines::default() };
        let gateway = Gateway::scripted(&hub, lines).await;
        let (_, connack) = Mqtt::ask(gateway.ports.mqtt, &ConnectOptions::new(V5, "m5")).await;
        assert_eq!(connack.receive_maximum, Some(4));

        // 3.1.1 knows no Receive Maximum: the socket is not read.
        let mut device = gateway.mqtt(V311, "m3").await;
        let mut ids = Vec::new();
        for index in 0..4_u8 {
            ids.push(device.event("m3", &[b'0' + index]).await);
        }
        // Up to the window everything else gets through.
        device.ping().await;
        for index in 4..8_u8 {
            ids.push(device.event("m3", &[b'0' + index]).await);
        }
        let mut messages = Vec::new();
        for index in 0..4 {
            messages.push(hub.message_of(&index.to_string()).await);
        }
        let mut http = gateway.http().await;
        http.event("http", b"other").await;
        let other = hub.message_of("other").await;
        hub.settle(&other, &Answer::Accept);
        assert_eq!(http.answer().await.status, 204);
        assert!(!hub.has_seen(|seen| matches!(seen, Seen::Message(_))), "no more than the window");
        for index in 4..8 {
            let message = messages.remove(0);
            hub.settle(&message, &Answer::Accept);
            assert_eq!(device.told(ids[index - 4]).await, Told::PubAck(0));
            messages.push(hub.message_of(&index.to_string()).await);
        }
        for (message, id) in messages.iter().zip(&ids[4..]) {
            hub.settle(message, &Answer::Accept);
            assert_eq!(device.told(*id).await, Told::PubAck(0));
        }
        device.ping().await;
    })
    .await;
}

/// Writes this again and again until the gateway takes nothing more.
async fn flood(stream: &TcpStream, bytes: &[u8]) {
    let mut written = 0;
    while written < FLOOD_BYTES {
        match tokio::time::timeout(Duration::from_millis(500), stream.writable()).await {
            Ok(ready) => ready.unwrap(),
            Err(_) => return,
        }
        match stream.try_write(&bytes[written % bytes.len()..]) {
            Ok(bytes) => written += bytes,
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
        }
    }
    panic!("{FLOOD_BYTES} bytes were taken");
}

#[tokio::test]
async fn a_device_that_publishes_without_end_is_not_read_without_end() {
    within(async {
        let mut hub = Hub::start();
        let gateway = Gateway::scripted(&hub, Lines::default()).await;
        let mut device = gateway.mqtt(V311, "m3").await;
        let payload = [b'x'; 60_000];
        let mut publishes = BytesMut::new();
        for id in 2..202 {
            let publish = OutgoingPublish {
                topic: "devices/m3/messages/events",
                payload: &payload,
                qos: QoS::AtLeastOnce,
                dup: false,
                retain: false,
                properties: None,
            };
            put_publish(V311, PacketId::new(id).unwrap(), &publish, &mut publishes).unwrap();
        }
        let first = device.event("m3", b"first").await;
        flood(&device.stream, &publishes).await;
        let message = hub.message_of("first").await;
        let mut http = gateway.http().await;
        http.event("http", b"other").await;
        let other = hub.message_of("other").await;
        hub.settle(&other, &Answer::Accept);
        assert_eq!(http.answer().await.status, 204);
        hub.settle(&message, &Answer::Accept);
        assert_eq!(device.told(first).await, Told::PubAck(0));
        // The stop would wait for the others.
        hub.cut(message.place.connection);
    })
    .await;
}

#[tokio::test]
async fn a_device_that_does_not_read_its_answers_is_not_read() {
    within(async {
        let mut hub = Hub::start();
        let gateway = Gateway::scripted(&hub, Lines::default()).await;
        let device = gateway.mqtt(V5, "m5").await;
        // A 10-byte SUBSCRIBE to `#` is answered with 6 bytes at least.
        let subscribe: Vec<u8> = [0x82, 7, 0, 1, 0, 0, 1, b'#', 0].repeat(4096);
        flood(&device.stream, &subscribe).await;
        let mut other = gateway.mqtt(V5, "other").await;
        let packet_id = other.event("other", b"x").await;
        let message = hub.message().await;
        hub.settle(&message, &Answer::Accept);
        assert_eq!(other.told(packet_id).await, Told::PubAck(0));
    })
    .await;
}

/// QoS 0 has no window: what is too much is dropped, and counted.
#[tokio::test]
async fn qos_0_is_dropped_over_its_bound() {
    within(async {
        let mut hub = Hub::start();
        hub.from_now_on(|manner| manner.credit = 0);
        let gateway = Gateway::scripted(&hub, Lines::default()).await;
        let dropped = "fieldgate_mqtt_qos0_dropped_total";
        let before = gateway.metric(dropped).await;
        let mut device = gateway.mqtt(V5, "m5").await;
        for _ in 0..40 {
            device.send("devices/m5/messages/events", &[b'x'; 60_000], QoS::AtMostOnce).await;
        }
        device.ping().await;
        assert!(gateway.metric(dropped).await > before);
        assert!(!hub.has_seen(|seen| matches!(seen, Seen::Message(_))));
    })
    .await;
}

#[tokio::test]
async fn slow_requests_and_large_ones_are_turned_away() {
    within(async {
        let hub = Hub::start();
        let http =
            "header_time_out = \"1s\"\nbody_time_out = \"1s\"\nmax_body_bytes = 1000\nmax_head_bytes = 1024";
        let mqtt = "connect_time_out = \"1s\"";
        let amqp = "open_time_out = \"1s\"";
        let gateway = Gateway::scripted(&hub, Lines { http, mqtt, amqp, ..Lines::default() }).await;
        let path = "/devices/dev/messages/events";
        let (mut head, mut body) = (gateway.http().await, gateway.http().await);
        head.write(format!("POST {path} HTTP/1.1\r\nHost: ").as_bytes()).await;
        body.write(format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nab").as_bytes())
            .await;
        let silent = [
            TcpStream::connect(gateway.ports.mqtt).await.unwrap(),
            TcpStream::connect(gateway.ports.amqp).await.unwrap(),
            TcpStream::connect(gateway.ports.http).await.unwrap(),
        ];

        let mut large = gateway.http().await;
        large.event("dev", &[b'x'; 1001]).await;
        assert_eq!(large.answer().await.status, 413);
        let mut long = gateway.http().await;
        long.write(
            format!("POST {path} HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "y".repeat(20_000)).as_bytes(),
        )
        .await;
        assert_eq!(long.answer().await.status, 431);

        assert_eq!(body.answer().await.status, 408);
        assert_eq!(body.try_answer().await, None);
        match head.try_answer().await {
            None => {}
            Some(answer) => assert_eq!(answer.status, 408),
        }
        for mut stream in silent {
            // What is said at the end, if anything, is short.
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
            assert!(rest.len() < 200, "{rest:?}");
        }
    })
    .await;
}
