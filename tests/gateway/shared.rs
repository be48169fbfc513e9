//! Devices that share hub connections: which connections there are, when, and what one device costs another.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use fe2o3_amqp::Receiver;
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::types::messaging::Body;
use fe2o3_amqp::types::primitives::Value;
use fieldgate_amqp::connection::{
    ClientSecurity, CloseReason, Connection as Machine, ConnectionConfig, Event, LinkFlow,
};
use fieldgate_amqp::performative::{AttachOut, SourceOut, TargetOut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::client::{Client, body, data};
use super::hub::{Answer, Hub, Seen};
use super::world::{Gateway, Lines, within};

async fn device(gateway: &Gateway) -> Client {
    Client::open(TcpStream::connect(gateway.ports.amqp).await.unwrap(), SaslProfile::Anonymous).await
}

fn events(device: &str) -> String {
    format!("devices/{device}/messages/events")
}

#[tokio::test]
async fn devices_share_a_connection_and_have_sessions_of_their_own() {
    within(async {
        let mut hub = Hub::start();
        let gateway = Gateway::scripted(&hub, Lines::default()).await;
        let mapped = hub.opened().await;
        let mut devices = Vec::new();
        let mut places = Vec::new();
        for name in ["a", "b"] {
            let mut device = device(&gateway).await;
            let sender = device.sender(&events(name)).await;
            devices.push((device, sender));
            places.push(hub.attached().await);
        }
        assert_eq!(places[0].connection, places[1].connection);
        assert_ne!(places[0].connection, mapped);
        assert_ne!(places[0].session, places[1].session);
        for (at, answer) in [Answer::Accept, Answer::Release].into_iter().enumerate() {
            let (_, sender) = &mut devices[at];
            let sent = sender.send_batchable(data(*b"x")).await.unwrap();
            let message = hub.message().await;
            assert_eq!(message.place, places[at]);
            hub.settle(&message, &answer);
            assert_eq!(sent.await.unwrap().is_accepted(), at == 0);
        }
        // One that goes takes its session along, and nothing else.
        devices.remove(0).0.connection.close().await.unwrap();
        hub.session_ended(places[0]).await;
        let sent = devices[0].1.send_batchable(data(*b"y")).await.unwrap();
        let message = hub.message_of("y").await;
        hub.settle(&message, &Answer::Accept);
        assert!(sent.await.unwrap().is_accepted());
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn with_a_connection_each_the_hub_sees_the_devices_themselves() {
    within(async {
        let mut hub = Hub::start();
        let lines = Lines { upstream: "mode = \"per-connection\"", ..Lines::default() };
        let gateway = Gateway::scripted(&hub, lines).await;
        let mut connections = vec![hub.opened().await];
        let mut devices = Vec::new();
        for name in ["a", "b"] {
            let mut device = device(&gateway).await;
            let sender = device.sender(&events(name)).await;
            devices.push((device, sender));
            // The client's container-id.
            connections.push(hub.opened_by("test").await);
            assert_eq!(hub.attached().await.connection, connections[connections.len() - 1]);
        }
        connections.dedup();
        assert_eq!(connections.len(), 3);
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_connection_on_demand_is_made_for_the_first_link() {
    within(async {
        let mut hub = Hub::start();
        let gateway = Gateway::scripted(&hub, Lines::default()).await;
        let mapped = hub.opened().await;
        let mut device = device(&gateway).await;
        assert!(
            gateway.admin("/healthz").await.body.contains(r#""connections":{"down":0,"starting":0,"up":0}"#)
        );
        assert!(!hub.has_seen(|seen| matches!(seen, Seen::Opened { .. })), "nobody needs a connection yet");
        let _sender = device.sender(&events("a")).await;
        let shared = hub.opened().await;
        assert_ne!(shared, mapped);
        let health = gateway.until_health(200).await;
        assert!(health.contains(r#""connections":{"down":0,"starting":0,"up":1},"devices":1"#), "{health}");
        // The other tests of this process count as well.
        assert!(gateway.metric(r#"fieldgate_connector_connects_total{connector="upstream"}"#).await > 0);
        gateway.stop().await;
        assert_eq!(hub.ended(shared).await, Some(CloseReason::Remote(None)), "the hub is told goodbye");
    })
    .await;
}

#[tokio::test]
async fn a_connection_from_the_start_is_there_before_any_device_and_comes_back() {
    within(async {
        let mut hub = Hub::start();
        let more = hub.connector("early", "connect = \"start\"\nretry_max = \"1s\"");
        let gateway = Gateway::embedded(Lines { more: &more, ..Lines::default() }).await;
        let health = gateway.admin("/healthz").await.body;
        assert!(health.contains(r#""early":{"connections":{"down":0,"starting":0,"up":1}"#), "{health}");
        let first = hub.opened().await;
        hub.cut(first);
        assert_ne!(hub.opened().await, first);
        assert!(!hub.has_seen(|seen| matches!(seen, Seen::Attached { .. })));
        gateway.until_health(200).await;
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn the_next_address_is_tried_when_one_does_not_answer() {
    within(async {
        let mut hub = Hub::start();
        // Nobody listens there any more.
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let failover = format!("failover = [\"localhost:{}\"]", hub.port);
        let more = hub
            .connector("pair", &failover)
            .replace(&format!("\nport = {}\n", hub.port), &format!("\nport = {closed}\n"));
        let gateway = Gateway::embedded(Lines { more: &more, ..Lines::default() }).await;
        let mut device = device(&gateway).await;
        let sending = device.sender("devices/a/messages/events");
        sending.await;
        hub.opened().await;
        hub.attached().await;
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn one_session_reaches_the_hubs_that_its_addresses_are_routed_to() {
    within(async {
        let (mut north, mut south) = (Hub::start(), Hub::start());
        let more = format!(
            "{}{}[[link_route]]\nprefix = \"devices\"\nconnector = \"north\"\n\
             [[link_route]]\nprefix = \"queues\"\nconnector = \"south\"\ndirection = \"in\"\n",
            north.connector("north", ""),
            south.connector("south", "")
        );
        let gateway = Gateway::embedded(Lines { more: &more, ..Lines::default() }).await;
        let mut device = device(&gateway).await;
        let mut to_north = device.sender(&events("a")).await;
        let mut to_south = device.sender("queues/a").await;
        for (sender, hub) in [(&mut to_north, &mut north), (&mut to_south, &mut south)] {
            let sent = sender.send_batchable(data(*b"x")).await.unwrap();
            let message = hub.message_of("x").await;
            hub.settle(&message, &Answer::Accept);
            assert!(sent.await.unwrap().is_accepted());
        }
        // The other direction is not routed.
        let refused = Receiver::attach(&mut device.session, "back", "queues/a").await.unwrap_err();
        assert!(format!("{refused:?}").contains("NotFound"), "{refused:?}");
        // One hub goes, and only its links wait.
        let (_, south_link) = (north.attached().await, south.attached().await);
        south.behave(|manner| manner.takes = 0);
        south.cut(south_link.connection);
        south.ended(south_link.connection).await;
        let sent = to_north.send_batchable(data(*b"y")).await.unwrap();
        let message = north.message_of("y").await;
        north.settle(&message, &Answer::Accept);
        assert!(sent.await.unwrap().is_accepted());
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn devices_stay_attached_while_the_hub_is_away() {
    within(async {
        let mut hub = Hub::start();
        let gateway = Gateway::scripted(&hub, Lines::default()).await;
        hub.opened().await;
        let mut device = device(&gateway).await;
        let mut sender = device.sender(&events("a")).await;
        let first = hub.attached().await;
        hub.cut(first.connection);
        let again = hub.attached().await;
        assert_ne!(again.connection, first.connection);
        let sent = sender.send_batchable(data(*b"after")).await.unwrap();
        let message = hub.message_of("after").await;
        assert_eq!(message.place, again);
        hub.settle(&message, &Answer::Accept);
        assert!(sent.await.unwrap().is_accepted());
        gateway.stop().await;
    })
    .await;
}

/// A device that asks for messages and then does not read them.
struct Sleeper {
    _stream: TcpStream,
    _machine: Machine,
}

impl Sleeper {
    async fn connect(gateway: &Gateway, address: &str) -> Self {
        let config = ConnectionConfig { container_id: "sleeper".into(), ..ConnectionConfig::default() };
        let open = config.open();
        let mut machine = Machine::client(Arc::new(config), ClientSecurity::Anonymous, open, Instant::now());
        let session = machine.begin().unwrap();
        let source = SourceOut { address: Some(address), ..SourceOut::default() }.build();
        let attach = AttachOut::receiver("sleeper", &source, &TargetOut::default().build()).build();
        let link = machine.attach(session, &attach).unwrap();
        let mut stream = TcpStream::connect(gateway.ports.amqp).await.unwrap();
        loop {
            while let Some(bytes) = machine.poll_transmit() {
                stream.write_all(&bytes).await.unwrap();
            }
            let mut input = BytesMut::new();
            assert!(stream.read_buf(&mut input).await.unwrap() > 0);
            machine.handle_input(Instant::now(), input.freeze());
            while let Some(event) = machine.poll_event() {
                if let Event::Attached { .. } = event {
                    machine.flow(link, LinkFlow { link_credit: 10_000, ..LinkFlow::default() });
                    stream.write_all(&machine.poll_transmit().unwrap()).await.unwrap();
                    return Self { _stream: stream, _machine: machine };
                }
            }
        }
    }
}

#[tokio::test]
async fn a_device_that_does_not_read_holds_up_nobody_else() {
    within(async {
        let mut hub = Hub::start();
        let gateway = Gateway::scripted(&hub, Lines::default()).await;
        let sleeper = Sleeper::connect(&gateway, "devices/slow/messages/devicebound").await;
        let slow = hub.subscription("slow").await;
        let mut device = device(&gateway).await;
        let mut receiver = device.receiver("devices/quick/messages/devicebound").await;
        let quick = hub.subscription("quick").await;
        assert_eq!(slow.connection, quick.connection);
        // More than sockets and the gateway's own bound take together.
        for _ in 0..300 {
            hub.send_bytes(slow, Bytes::from(vec![b'x'; 60_000]));
        }
        for text in ["one", "two", "three"] {
            hub.send(quick, text);
            let got = receiver.recv::<Body<Value>>().await.unwrap();
            assert_eq!(body(&got), text.as_bytes());
            receiver.accept(&got).await.unwrap();
            assert_eq!(hub.outcome_of(text).await, "accepted");
        }
        // It would be waited for, until it has taken its goodbye.
        drop(sleeper);
        gateway.stop().await;
    })
    .await;
}
