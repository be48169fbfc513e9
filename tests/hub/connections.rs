//! Connections: refused, expired, abused, and the end of the hub.

use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::{Receiver, Sender};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::peer::{TestHub, data, now, within};

const EVENTS: &str = "devices/pump-1/messages/events";

#[tokio::test]
async fn nothing_goes_without_a_good_token() {
    within(async {
        let hub = TestHub::start("");
        let mut client = hub.connect(SaslProfile::Anonymous).await;
        let refused = Sender::attach(&mut client.session, "a", EVENTS).await.unwrap_err();
        assert!(format!("{refused:?}").contains("UnauthorizedAccess"), "{refused:?}");
        // This client may answer a refused sender with two detaches, and is not to be trusted with the session.
        let mut client = hub.connect(SaslProfile::Anonymous).await;
        let forged = hub.device_token("pump-1").replace("sig=", "sig=A");
        assert_eq!(client.put_token(&forged, "localhost/devices/pump-1").await, 400);
        let expired = hub.device_token_until("pump-1", now() - 1);
        assert_eq!(client.put_token(&expired, "localhost/devices/pump-1").await, 401);
        let other = hub.device_token("pump-2").replace("pump-2", "pump-1");
        assert_eq!(client.put_token(&other, "localhost/devices/pump-1").await, 401);
        let log = "messages/events/ConsumerGroups/$Default/Partitions/0";
        let refused = Receiver::attach(&mut client.session, "b", log).await.unwrap_err();
        assert!(format!("{refused:?}").contains("UnauthorizedAccess"), "{refused:?}");
        assert_eq!(client.put_token(&hub.device_token("pump-1"), "localhost").await, 200);
        let refused = Receiver::attach(&mut client.session, "c", log).await.unwrap_err();
        assert!(format!("{refused:?}").contains("UnauthorizedAccess"), "{refused:?}");
        assert!(Sender::attach(&mut client.session, "d", EVENTS).await.is_ok());
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

        let mut other = hub.stream().await.unwrap();
        other.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        let _ = other.read_to_end(&mut answer).await;
        assert_eq!(answer.get(..4), Some(&b"AMQP"[..]), "the hub says what it speaks");

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
