//! How devices come in: TLS and its certificates, SASL, and passwords that the hub judges.

use fe2o3_amqp::Connection;
use fe2o3_amqp::connection::{ConnectionHandle, OpenError};
use fe2o3_amqp::sasl_profile::SaslProfile;
use tokio::net::TcpStream;

use super::certificates::Certificates;
use super::client::{Client, data};
use super::hub::{Answer, Hub, Seen};
use super::world::{Gateway, Lines, within};

const EVENTS: &str = "devices/dev/messages/events";

async fn open<S>(stream: S, profile: SaslProfile) -> Result<ConnectionHandle<()>, OpenError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + std::fmt::Debug + Send + Unpin + 'static,
{
    let builder = Connection::builder().container_id("test").hostname("localhost").scheme("amqp");
    builder.sasl_profile(profile).open_with_stream(stream).await
}

fn plain(password: &str) -> SaslProfile {
    SaslProfile::Plain { username: "dev@sas.hub".into(), password: password.into() }
}

#[tokio::test]
async fn both_versions_of_tls_are_spoken_and_a_certificate_is_optional() {
    within(async {
        let certificates = Certificates::new();
        let more = certificates.listener("client_certificates = \"optional\"", "");
        let mut hub = Hub::start();
        let gateway = Gateway::scripted(&hub, Lines { more: &more, ..Lines::default() }).await;
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            for name in [None, Some("dev")] {
                let stream = certificates.connect(&gateway, version, name).await.unwrap();
                let mut device = Client::open(stream, SaslProfile::Anonymous).await;
                let mut sender = device.sender(EVENTS).await;
                let sent = sender.send_batchable(data(*b"x")).await.unwrap();
                let message = hub.message_of("x").await;
                hub.settle(&message, &Answer::Accept);
                assert!(sent.await.unwrap().is_accepted());
                device.connection.close().await.unwrap();
            }
        }
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn who_must_have_a_certificate_does_not_come_in_without() {
    within(async {
        let certificates = Certificates::new();
        let more = certificates.listener("client_certificates = \"required\"", "");
        let hub = Hub::start();
        let gateway = Gateway::scripted(&hub, Lines { more: &more, ..Lines::default() }).await;
        // In TLS 1.2 the handshake fails; in 1.3 the client has finished by then, and learns it later.
        assert!(certificates.connect(&gateway, &rustls::version::TLS12, None).await.is_err());
        if let Ok(stream) = certificates.connect(&gateway, &rustls::version::TLS13, None).await {
            assert!(open(stream, SaslProfile::Anonymous).await.is_err());
        }
        while gateway.metric("fieldgate_tls_handshakes_failed_total").await < 2 {
            tokio::task::yield_now().await;
        }
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let stream = certificates.connect(&gateway, version, Some("dev")).await.unwrap();
            open(stream, SaslProfile::Anonymous).await.unwrap().close().await.unwrap();
        }
        gateway.stop().await;
    })
    .await;
}

/// A device that begins no handshake, or none that ends, keeps nobody else from coming in.
#[tokio::test]
async fn a_handshake_that_does_not_end_is_not_waited_for() {
    within(async {
        let certificates = Certificates::new();
        let more = certificates.listener("", "");
        let hub = Hub::start();
        let lines = Lines { more: &more, amqp: "open_time_out = \"1s\"", ..Lines::default() };
        let gateway = Gateway::scripted(&hub, lines).await;
        let silent = TcpStream::connect(gateway.amqp[1]).await.unwrap();
        let stream = certificates.connect(&gateway, &rustls::version::TLS13, None).await.unwrap();
        open(stream, SaslProfile::Anonymous).await.unwrap().close().await.unwrap();
        let mut byte = [0];
        silent.readable().await.unwrap();
        assert_eq!(silent.try_read(&mut byte).unwrap(), 0, "the gateway has closed it");
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn the_hub_judges_passwords() {
    within(async {
        let mut hub = Hub::start();
        hub.behave(|manner| manner.user = Some(("dev@sas.hub", "right")));
        let more = "[[listener]]\nname = \"passwords\"\nhost = \"127.0.0.1\"\nport = 0\nsasl_mechanisms = [\"PLAIN\"]\n";
        let gateway = Gateway::scripted(&hub, Lines { more, ..Lines::default() }).await;
        let mapped = hub.opened().await;
        let connect = || TcpStream::connect(gateway.amqp[1]);

        let refused = open(connect().await.unwrap(), plain("wrong")).await.unwrap_err();
        assert!(matches!(refused, OpenError::SaslError { .. }), "{refused:?}");
        assert!(!hub.has_seen(|seen| matches!(seen, Seen::Opened { .. })));

        let mut places = Vec::new();
        let mut devices = Vec::new();
        for _ in 0..2 {
            let mut device = Client::open(connect().await.unwrap(), plain("right")).await;
            let connection = hub.opened_by("test").await;
            let sender = device.sender(EVENTS).await;
            let place = hub.attached().await;
            assert_eq!(place.connection, connection, "the connection that has judged it");
            places.push(place.connection);
            devices.push((device, sender));
        }
        assert!(places[0] != places[1] && !places.contains(&mapped), "nobody shares it");

        // A hub that is away is no wrong password.
        hub.behave(|manner| manner.takes = 0);
        let refused = open(connect().await.unwrap(), plain("right")).await.unwrap_err();
        assert!(format!("{refused:?}").contains("SysTemp"), "{refused:?}");
        // What was not offered is not taken.
        open(connect().await.unwrap(), SaslProfile::Anonymous).await.unwrap_err();
        gateway.stop().await;
    })
    .await;
}
