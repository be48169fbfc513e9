//! The way to the hub, and into the gateway, through WebSockets, proxies and TLS whose certificates change.

use std::time::Duration;

use fe2o3_amqp::sasl_profile::SaslProfile;
use fieldgate::hub::device_key;
use fieldgate::sas::{SharedKey, Signer};
use fieldgate_mappings::DeviceId;
use fieldgate_mqtt::Version::V5;
use rcgen::ExtendedKeyUsagePurpose;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::certificates::Certificates;
use super::client::{Client, data};
use super::hub::{Answer, Hub, Seen};
use super::mqtt::Told;
use super::proxy::Proxy;
use super::world::{Gateway, Lines, in_an_hour, within};

const EVENTS: &str = "devices/dev/messages/events";
const WEB: &str = "[[listener]]\nname = \"web\"\nhost = \"127.0.0.1\"\nport = 0\nwebsocket = true\n";
const GOOD: &str = "GET /$iothub/websocket HTTP/1.1\r\nHost: gateway\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: AMQPWSB10\r\n\r\n";

/// A token of the embedded hub's for the device `dev`.
fn token(gateway: &Gateway) -> String {
    let owner = std::fs::read_to_string(gateway.state.path().join("policy-key")).unwrap();
    let key = device_key(&SharedKey::from_base64(owner.trim()).unwrap(), &DeviceId::new("dev").unwrap());
    Signer::new(None, key).token("localhost/devices/dev", in_an_hour())
}

/// Waits until the hub was tried, and not reached.
async fn until_away(gateway: &Gateway) {
    while !gateway.until_health(503).await.contains(r#""upstream":"down""#) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn through_a_proxy_to_the_hub_over_a_websocket() {
    within(async {
        let proxy = Proxy::start().await;
        for mode in ["shared", "per-connection"] {
            let upstream = format!("transport = \"websocket\"\nmode = \"{mode}\"\n{}", proxy.setting());
            let before = proxy.seen().len();
            let gateway = Gateway::embedded(Lines { upstream: &upstream, ..Lines::NONE }).await;
            // A mapped message and one that is routed: each has the hub's answer.
            let mut mqtt = gateway.mqtt(V5, "m").await;
            let id = mqtt.event("m", &[7; 100_000]).await;
            assert_eq!(mqtt.told(id).await, Told::PubAck(0));
            let mut device =
                Client::open(TcpStream::connect(gateway.ports.amqp).await.unwrap(), SaslProfile::Anonymous)
                    .await;
            assert_eq!(device.put_token(&token(&gateway), "localhost/devices/dev").await, 200);
            let mut sender = device.sender(EVENTS).await;
            assert!(sender.send(data(vec![7; 200_000])).await.unwrap().is_accepted());

            let seen = proxy.seen().split_off(before);
            let text =
                std::fs::read_to_string(gateway.state.path().join("service-connection-string")).unwrap();
            let hub = text.strip_prefix("HostName=").unwrap().split(';').next().unwrap();
            assert!(seen.len() >= 2, "one for each way: {seen:?}");
            for tunnel in &seen {
                assert!(tunnel.request.starts_with(&format!("CONNECT {hub} HTTP/1.1\r\n")), "{tunnel:?}");
                assert_eq!(tunnel.first[..2], [22, 3], "TLS, and nothing in the clear");
            }
            // All tunnels are cut. Of what is on its way then nobody knows; what comes after it arrives by new ones.
            proxy.cut();
            loop {
                let mut mqtt = gateway.mqtt(V5, "m").await;
                let id = mqtt.event("m", b"after").await;
                if mqtt.told(id).await == Told::PubAck(0) {
                    break;
                }
            }
            assert!(proxy.seen().len() > before + seen.len());
            gateway.stop().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_proxy_that_says_no_is_asked_again() {
    within(async {
        let proxy = Proxy::start().await;
        let hub = Hub::start();
        proxy.answer(Some("HTTP/1.1 403 Forbidden\r\n\r\n"));
        let gateway = Gateway::away(&hub, Lines { upstream: &proxy.setting(), ..Lines::NONE }).await;
        until_away(&gateway).await;
        while proxy.seen().len() < 2 {
            tokio::task::yield_now().await;
        }
        proxy.answer(None);
        gateway.health.ready().await;
        gateway.stop().await;

        // Without the password there is no way.
        let without = format!("proxy = \"http://{}\"\n", proxy.address);
        let gateway = Gateway::away(&hub, Lines { upstream: &without, ..Lines::NONE }).await;
        let before = proxy.seen().len();
        while proxy.seen().len() < before + 2 {
            tokio::task::yield_now().await;
        }
        until_away(&gateway).await;
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_gateway_is_a_device_of_another_over_a_websocket_in_the_clear() {
    within(async {
        let (proxy, mut hub) = (Proxy::start().await, Hub::start());
        let inner = Gateway::scripted(&hub, Lines { more: WEB, ..Lines::NONE }).await;
        let port = inner.amqp[1].port();
        let more = format!(
            "[[connector]]\nname = \"next\"\nhost = \"127.0.0.1\"\nport = {port}\ntransport = \"websocket\"\n\
             sasl_mechanisms = \"NONE\"\nmode = \"per-connection\"\n{}",
            proxy.setting()
        );
        let outer = Gateway::routing(Lines { more: &more, ..Lines::NONE }).await;
        let mut device =
            Client::open(TcpStream::connect(outer.amqp[0]).await.unwrap(), SaslProfile::Anonymous).await;
        let mut sender = device.sender(EVENTS).await;
        for body in ["a", "b"] {
            let sent = sender.send_batchable(data(body)).await.unwrap();
            let message = hub.message_of(body).await;
            hub.settle(&message, &Answer::Accept);
            assert!(sent.await.unwrap().is_accepted());
        }
        assert_eq!(proxy.seen()[0].first, b"GET ");
        // The device's goodbye goes all the way.
        device.connection.close().await.unwrap();
        hub.wait(|seen| matches!(seen, Seen::Detached { .. } | Seen::SessionEnded { .. }).then_some(()))
            .await;
        // Direct AMQP comes in by the same port.
        let direct = TcpStream::connect(inner.amqp[1]).await.unwrap();
        Client::open(direct, SaslProfile::Anonymous).await;
        drop(outer);
        inner.stop().await;
    })
    .await;
}

/// What a listener says to these bytes until it closes, or says nothing more for a while.
async fn hears(gateway: &Gateway, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(gateway.amqp[1]).await.unwrap();
    // One that has heard enough closes.
    let _ = stream.write_all(bytes).await;
    let mut heard = Vec::new();
    // A reset is an end as well.
    let _ = stream.read_to_end(&mut heard).await;
    heard
}

#[tokio::test]
async fn bytes_that_mean_no_good_are_answered_and_bounded() {
    within(async {
        let mut hub = Hub::start();
        let lines = Lines { more: WEB, amqp: "open_time_out = \"1s\"\nmax_connections = 40", ..Lines::NONE };
        let gateway = Gateway::scripted(&hub, lines).await;
        let endless = format!("GET / HTTP/1.1\r\nCookie: {}", "x".repeat(200_000));
        for (request, status) in [
            (GOOD.replace("/$iothub/websocket", "/"), "404"),
            (GOOD.replace("GET", "DELETE"), "405"),
            (GOOD.replace("HTTP/1.1", "HTTP/1.0"), "505"),
            (GOOD.replace("AMQPWSB10", "mqtt"), "400"),
            (GOOD.replace("Upgrade: websocket\r\n", ""), "426"),
            (GOOD.replace("Host", "Origin: https://evil.example\r\nHost"), "403"),
            (GOOD.replace("Host", "Ho st"), "400"),
            (endless, "431"),
            // It goes on until its time is over.
            ("GET /$iothub/websocket HTTP/1.1\r\nHost: ".into(), "408"),
        ] {
            let heard = String::from_utf8(hears(&gateway, request.as_bytes()).await).unwrap();
            assert!(heard.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {heard}");
        }
        let refused = gateway.metric("fieldgate_websockets_refused_total").await;
        assert!(refused >= 9, "{refused}");

        // Frames that break a rule are told so; AMQP that does gets its answer inside.
        for (frames, end) in [
            (&b"\x81\x85\0\0\0\0hello"[..], &[0x88, 2, 0x03, 0xeb][..]),
            (b"\x82\x05hello", &[0x88, 2, 0x03, 0xea]),
            (&[0xff; 14], &[0x88, 2, 0x03, 0xea]),
            (b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0", &[0x88, 2, 0x03, 0xea]),
            // A close is answered with a close.
            (b"\x88\x82\0\0\0\0\x03\xe8", &[0x88, 2, 0x03, 0xe8]),
            (b"\x82\x88\0\0\0\0HELO\0\0\0\0", &[0x88, 2, 0x03, 0xe8]),
        ] {
            let heard = hears(&gateway, &[GOOD.as_bytes(), frames].concat()).await;
            assert!(heard.starts_with(b"HTTP/1.1 101 "), "{frames:?}");
            assert!(heard.ends_with(end), "{frames:?}: {:?}", &heard[heard.len().saturating_sub(24)..]);
        }
        // Pings without end, and frames without content, take nothing from others; nor does a frame that never ends.
        let flood = [
            GOOD.as_bytes(),
            &b"\x89\x80\0\0\0\0\x82\x80\0\0\0\0\x02\x80\0\0\0\0\x80\x80\0\0\0\0".repeat(20_000),
        ]
        .concat();
        let heard = hears(&gateway, &flood).await;
        assert!(heard.len() < 500_000, "{}", heard.len());
        let mut slow = Vec::new();
        for _ in 0..39 {
            let mut stream = TcpStream::connect(gateway.amqp[1]).await.unwrap();
            stream.write_all(GOOD.as_bytes()).await.unwrap();
            stream.write_all(b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0AMQP").await.unwrap();
            slow.push(stream);
        }
        // While they wait for their time to run out, somebody else comes in; then they are gone.
        let last = TcpStream::connect(gateway.amqp[1]).await.unwrap();
        let mut device = Client::open(last, SaslProfile::Anonymous).await;
        let mut sender = device.sender(EVENTS).await;
        let sent = sender.send_batchable(data(*b"x")).await.unwrap();
        let message = hub.message_of("x").await;
        hub.settle(&message, &Answer::Accept);
        assert!(sent.await.unwrap().is_accepted());
        for mut stream in slow {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn every_word_of_sasl_is_understood() {
    within(async {
        for mechanism in ["NONE", "ANONYMOUS", "MSSBCBS"] {
            let upstream = format!("sasl_mechanisms = \"{mechanism}\"\n");
            let gateway = Gateway::embedded(Lines { upstream: &upstream, ..Lines::NONE }).await;
            let mut mqtt = gateway.mqtt(V5, "m").await;
            let id = mqtt.event("m", b"x").await;
            assert_eq!(mqtt.told(id).await, Told::PubAck(0), "{mechanism}");
            gateway.stop().await;
        }
        let mut hub = Hub::start();
        hub.behave(|manner| manner.user = Some(("gate", "open sesame")));
        for (password, comes) in [("wrong", false), ("open sesame", true)] {
            let upstream = format!(
                "sasl_mechanisms = [\"EXTERNAL\", \"PLAIN\"]\nsasl_username = \"gate\"\nsasl_password = \"{password}\"\n"
            );
            let gateway = Gateway::away(&hub, Lines { upstream: &upstream, ..Lines::NONE }).await;
            if comes {
                gateway.health.ready().await;
                hub.opened().await;
            } else {
                until_away(&gateway).await;
                assert!(!hub.has_seen(|seen| matches!(seen, Seen::Opened { .. })));
            }
            gateway.stop().await;
        }
    })
    .await;
}

#[tokio::test]
async fn who_the_gateway_is_says_its_certificate() {
    within(async {
        let certificates = Certificates::new();
        let mut hub = Hub::start();
        let strict = certificates.listener(
            "client_certificates = \"required\"",
            "websocket = true\nauthenticate_peer = true\nsasl_mechanisms = \"EXTERNAL\"\nauthorise = \"any\"",
        );
        let inner = Gateway::scripted(&hub, Lines { more: &strict, ..Lines::NONE }).await;
        let (own, key) = certificates.sign("outer", ExtendedKeyUsagePurpose::ClientAuth);
        certificates.write("own.pem", &own.pem());
        certificates.write("own.key", &key.serialize_pem());
        let (ca, cert, key) =
            (certificates.file("ca.pem"), certificates.file("own.pem"), certificates.file("own.key"));
        for scheme in ["amqps", "wss"] {
            let upstream = format!(
                "url = \"{scheme}://localhost:{}\"\nca_file = {ca:?}\ncert_file = {cert:?}\nprivate_key_file = {key:?}\n\
                 sasl_mechanisms = [\"EXTERNAL\"]\n",
                inner.amqp[1].port()
            );
            let outer = Gateway::embedded(Lines { upstream: &upstream, ..Lines::NONE }).await;
            let mut mqtt = outer.mqtt(V5, "m").await;
            let id = mqtt.event("m", scheme.as_bytes()).await;
            let message = hub.message_of(scheme).await;
            hub.settle(&message, &Answer::Accept);
            assert_eq!(mqtt.told(id).await, Told::PubAck(0));
            outer.stop().await;
        }
        // Without the certificate, or with no word of it in SASL, there is no way in.
        for lines in ["", "sasl_mechanisms = \"ANONYMOUS\"\n", "sasl_mechanisms = \"NONE\"\n"] {
            let identity = format!("cert_file = {cert:?}\nprivate_key_file = {key:?}\n");
            let upstream = format!(
                "url = \"amqps://localhost:{}\"\nca_file = {ca:?}\n{}{lines}",
                inner.amqp[1].port(),
                if lines.is_empty() { "" } else { &identity }
            );
            let outer = Gateway::routing(Lines { upstream: &upstream, ..Lines::NONE }).await;
            until_away(&outer).await;
            outer.stop().await;
        }
        inner.stop().await;
    })
    .await;
}

#[tokio::test]
async fn certificates_change_and_devices_stay() {
    within(async {
        let certificates = Certificates::new();
        let more = certificates.listener("", "websocket = true");
        let mut hub = Hub::start();
        let gateway = Gateway::scripted(&hub, Lines { more: &more, ..Lines::NONE }).await;
        let version = &rustls::version::TLS13;
        let stream = certificates.connect(&gateway, version, None).await.unwrap();
        let first = stream.get_ref().1.peer_certificates().unwrap()[0].clone();
        let mut device = Client::open(stream, SaslProfile::Anonymous).await;
        let mut sender = device.sender(EVENTS).await;

        let (next, key) = certificates.sign("gateway", ExtendedKeyUsagePurpose::ServerAuth);
        certificates.write("cert.pem", &next.pem());
        certificates.write("key.pem", &key.serialize_pem());
        loop {
            let stream = certificates.connect(&gateway, version, None).await.unwrap();
            let shown = &stream.get_ref().1.peer_certificates().unwrap()[0];
            if shown == next.der() {
                break;
            }
            assert_eq!(*shown, first);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // What cannot be used changes nothing.
        certificates.write("key.pem", "no key");
        let errors = gateway.metric("fieldgate_certificates_reload_errors_total").await;
        while gateway.metric("fieldgate_certificates_reload_errors_total").await == errors {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let stream = certificates.connect(&gateway, version, None).await.unwrap();
        assert_eq!(&stream.get_ref().1.peer_certificates().unwrap()[0], next.der());

        let sent = sender.send_batchable(data(*b"still here")).await.unwrap();
        let message = hub.message_of("still here").await;
        hub.settle(&message, &Answer::Accept);
        assert!(sent.await.unwrap().is_accepted());
        gateway.stop().await;
    })
    .await;
}
