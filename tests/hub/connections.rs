//! Connections: refused, expired, abused, and the end of the hub.

use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::{Receiver, Sender};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::peer::{TestHub, data, now, within};

const EVENTS: &str = "devices/pump-1/messages/events";
const LOG: &str = "messages/events/ConsumerGroups/$Default/Partitions/0";

#[tokio::test]
async fn bad_tokens_are_refused_and_a_good_one_mends_it() {
    within(async {
        let hub = TestHub::start("");
        let mut client = hub.connect(SaslProfile::Anonymous).await;
        let name = "localhost/devices/pump-1";
        let forged = hub.device_token("pump-1").replace("sig=", "sig=A");
        assert_eq!(client.put_token(&forged, name).await, 400);
        let expired = hub.device_token_until("pump-1", now() - 1);
        assert_eq!(client.put_token(&expired, name).await, 401);
        let other = hub.device_token("pump-2").replace("pump-2", "pump-1");
        assert_eq!(client.put_token(&other, name).await, 401);
        assert_eq!(client.put_token(&hub.device_token("pump-1"), name).await, 200);
        let mut sender = client.sender(EVENTS).await;
        assert!(sender.send(data(*b"x")).await.unwrap().is_accepted());
    })
    .await;
}

/// Each on a connection of its own: this client cannot attach again right after it was refused.
#[tokio::test]
async fn nothing_is_attached_without_a_token_that_covers_it() {
    within(async {
        let hub = TestHub::start("");
        let mut nobody = hub.connect(SaslProfile::Anonymous).await;
        let refused = Sender::attach(&mut nobody.session, "a", EVENTS).await.unwrap_err();
        assert!(format!("{refused:?}").contains("UnauthorizedAccess"), "{refused:?}");
        let mut nobody = hub.connect(SaslProfile::Anonymous).await;
        let refused = Receiver::attach(&mut nobody.session, "b", LOG).await.unwrap_err();
        assert!(format!("{refused:?}").contains("UnauthorizedAccess"), "{refused:?}");
        let mut device = hub.device("pump-1").await;
        let refused = Receiver::attach(&mut device.session, "c", LOG).await.unwrap_err();
        assert!(format!("{refused:?}").contains("UnauthorizedAccess"), "{refused:?}");
        let mut device = hub.device("pump-1").await;
        let other = "devices/pump-10/messages/events";
        let refused = Sender::attach(&mut device.session, "d", other).await.unwrap_err();
        assert!(format!("{refused:?}").contains("UnauthorizedAccess"), "{refused:?}");
        let mut service = hub.service().await;
        let refused = Receiver::attach(&mut service.session, "e", "nowhere").await.unwrap_err();
        assert!(format!("{refused:?}").contains("NotFound"), "{refused:?}");
    })
    .await;
}

#[tokio::test]
async fn a_token_that_expires_takes_its_links_along() {
    within(async {
        let hub = TestHub::start("");
        let mut client = hub.connect(SaslProfile::Anonymous).await;
        let token = hub.device_token_until("pump-1", now() + 2);
        assert_eq!(client.put_token(&token, "localhost/devices/pump-1").await, 200);
        let mut sender = client.sender(EVENTS).await;
        assert!(sender.send(data(*b"x")).await.unwrap().is_accepted());
        let ended = sender.on_detach().await;
        assert!(format!("{ended:?}").contains("UnauthorizedAccess"), "{ended:?}");
    })
    .await;
}

#[tokio::test]
async fn what_is_no_tls_and_what_is_no_amqp_harms_nobody() {
    within(async {
        let hub = TestHub::start("");
        let mut device = hub.device("pump-1").await;
        let mut sender = device.sender(EVENTS).await;

        let mut plain = TcpStream::connect(hub.address).await.unwrap();
        plain.write_all(b"AMQP\x00\x01\x00\x00 and not TLS at all").await.unwrap();
        let mut rest = Vec::new();
        let _ = plain.read_to_end(&mut rest).await;

        for (said, told) in [
            (&b"\x10\x0c\0\x04MQTT\x04\0\0\0\0\0"[..], &b"AMQP"[..]),
            (b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", b"HTTP/1.1 404 "),
        ] {
            let mut other = hub.stream().await.unwrap();
            other.write_all(said).await.unwrap();
            let mut answer = Vec::new();
            let _ = other.read_to_end(&mut answer).await;
            assert_eq!(answer.get(..told.len()), Some(told), "the hub says what it speaks");
        }

        assert!(sender.send(data(*b"x")).await.unwrap().is_accepted());
    })
    .await;
}

#[tokio::test]
async fn more_connections_than_allowed_are_closed_at_once() {
    within(async {
        let hub = TestHub::start("max_connections = 1\n");
        let mut device = hub.device("pump-1").await;
        assert!(hub.stream().await.is_err());
        let mut sender = device.sender(EVENTS).await;
        assert!(sender.send(data(*b"x")).await.unwrap().is_accepted());
    })
    .await;
}

#[tokio::test]
async fn a_hub_that_stops_says_goodbye() {
    within(async {
        let mut hub = TestHub::start("");
        let mut device = hub.device("pump-1").await;
        let _sender = device.sender(EVENTS).await;
        let address = hub.address;
        let stopping = tokio::task::spawn_blocking(move || {
            hub.stop();
            hub
        });
        let closed = device.connection.on_close().await.unwrap_err();
        assert!(format!("{closed:?}").contains("ConnectionForced"), "{closed:?}");
        stopping.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    })
    .await;
}
