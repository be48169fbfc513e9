//! How MQTT devices come in: TLS 1.2 and 1.3, client certificates, WebSocket, and handshakes that do not end.

use std::io;

use bytes::BytesMut;
use fieldgate_mqtt::client::{self, ConnectOptions, Decoder, ServerPacket};
use fieldgate_mqtt::{OutgoingPublish, PacketId, QoS, Version, Version::V5, Version::V311};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::certificates::Certificates;
use super::devices::{PASSWORD, with_password};
use super::mqtt::Mqtt;
use super::world::{Gateway, Lines, within};

fn connect(version: Version, id: &str) -> Vec<u8> {
    let mut out = BytesMut::new();
    client::put_connect(&ConnectOptions::new(version, id), &mut out).unwrap();
    out.into()
}

/// An event of `id` with QoS 1.
fn event(version: Version, id: &str) -> Vec<u8> {
    let topic = format!("devices/{id}/messages/events/");
    let publish = OutgoingPublish {
        topic: &topic,
        payload: b"x",
        qos: QoS::AtLeastOnce,
        dup: false,
        retain: false,
        properties: None,
    };
    let mut out = BytesMut::new();
    client::put_publish(version, PacketId::new(1).unwrap(), &publish, &mut out).unwrap();
    out.into()
}

/// The next packet; nothing at the end.
async fn packet<S: AsyncRead + Unpin>(
    stream: &mut S,
    decoder: &mut Decoder,
) -> io::Result<Option<ServerPacket>> {
    loop {
        if let Some(packet) = decoder.next_packet().unwrap() {
            return Ok(Some(packet));
        }
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer).await? {
            0 => return Ok(None),
            bytes => decoder.push(&buffer[..bytes]),
        }
    }
}

/// CONNECT, and the code of CONNACK; if it is let in, an event and its PUBACK.
async fn speak<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    version: Version,
    id: &str,
) -> io::Result<u8> {
    speak_as(stream, &ConnectOptions::new(version, id)).await
}

/// The same, with what else CONNECT says.
async fn speak_as<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    options: &ConnectOptions<'_>,
) -> io::Result<u8> {
    let ConnectOptions { version, client_id: id, .. } = *options;
    let mut decoder = Decoder::new(version);
    let mut out = BytesMut::new();
    client::put_connect(options, &mut out).unwrap();
    stream.write_all(&out).await?;
    let code = match packet(stream, &mut decoder).await? {
        Some(ServerPacket::ConnAck(connack)) => connack.code,
        other => return Err(io::Error::other(format!("{other:?}"))),
    };
    if code == 0 {
        stream.write_all(&event(version, id)).await?;
        let told = packet(stream, &mut decoder).await?;
        assert!(matches!(told, Some(ServerPacket::PubAck { reason: 0, .. })), "{told:?}");
    }
    Ok(code)
}

#[tokio::test]
async fn both_versions_of_tls_carry_both_versions_of_mqtt() {
    within(async {
        let certificates = Certificates::new();
        let more = certificates.listener("", "protocol = \"mqtt\"");
        let gateway = Gateway::embedded(Lines { more: &more, ..Lines::NONE }).await;
        for tls in [&rustls::version::TLS12, &rustls::version::TLS13] {
            for version in [V311, V5] {
                let mut stream = certificates.connect_to(gateway.mqtt[1], tls, None).await.unwrap();
                assert_eq!(speak(&mut stream, version, "d1").await.unwrap(), 0);
            }
        }
        // In the clear nothing is heard there.
        let mut plain = TcpStream::connect(gateway.mqtt[1]).await.unwrap();
        plain.write_all(&connect(V5, "d1")).await.unwrap();
        let mut told = Vec::new();
        let _ = plain.read_to_end(&mut told).await;
        assert_ne!(told.first(), Some(&0x20), "no CONNACK, but perhaps an alert of TLS");
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_certificate_is_a_proof_and_another_devices_is_none() {
    within(async {
        let certificates = Certificates::new();
        let registry = certificates.file("devices.toml");
        let devices = String::from("version = 1\n[[device]]\nid = \"d1\"\ncertificates = [\"CN=d1\"]\n")
            + &with_password("p", PASSWORD)
            + &with_password("both", PASSWORD)
            + "certificates = [\"CN=both\"]\n";
        certificates.write("devices.toml", &devices);
        let profile = "client_certificates = \"required\"";
        let more = format!(
            "{}[devices]\nfile = {registry:?}\n",
            certificates.listener(profile, "protocol = \"mqtt\"\nwebsocket = true")
        );
        let gateway = Gateway::embedded(Lines { more: &more, ..Lines::NONE }).await;
        let tls = &rustls::version::TLS13;
        for version in [V311, V5] {
            let mut stream = certificates.connect_to(gateway.mqtt[1], tls, Some("d1")).await.unwrap();
            assert_eq!(speak(&mut stream, version, "d1").await.unwrap(), 0);
            for (certificate, id) in [("d2", "d1"), ("d1", "d2"), ("d2", "d2")] {
                let mut stream =
                    certificates.connect_to(gateway.mqtt[1], tls, Some(certificate)).await.unwrap();
                let code = speak(&mut stream, version, id).await.unwrap();
                assert_ne!(code, 0, "{certificate} as {id}");
            }
        }
        // What it says counts, and not what it shows besides: a wrong password is wrong whoever has the certificate,
        // and a right one is right.
        for (certificate, id, password, code) in [
            ("d1", "d1", "wrong", 0x86),
            ("d1", "d1", PASSWORD, 0x86),
            ("d1", "p", PASSWORD, 0),
            ("d2", "p", PASSWORD, 0),
            ("d1", "p", "wrong", 0x86),
            ("d1", "both", PASSWORD, 0),
            ("both", "both", PASSWORD, 0),
            ("both", "both", "wrong", 0x86),
        ] {
            let mut stream = certificates.connect_to(gateway.mqtt[1], tls, Some(certificate)).await.unwrap();
            let options =
                ConnectOptions { password: Some(password.as_bytes()), ..ConnectOptions::new(V5, id) };
            let told = speak_as(&mut stream, &options).await.unwrap();
            assert_eq!(told, code, "{certificate} as {id} with {password}");
        }
        // In TLS 1.3 the client has finished before it learns that it should have shown one.
        if let Ok(mut stream) = certificates.connect_to(gateway.mqtt[1], tls, None).await {
            assert!(speak(&mut stream, V5, "d1").await.is_err());
        }
        gateway.stop().await;
    })
    .await;
}

/// A device that begins no handshake, or a WebSocket that it does not ask for, keeps nobody else from coming in.
#[tokio::test]
async fn a_handshake_that_does_not_end_is_not_waited_for() {
    within(async {
        let certificates = Certificates::new();
        let more = certificates.listener("", "protocol = \"mqtt\"\nwebsocket = true");
        let lines = Lines { more: &more, mqtt: "connect_time_out = \"1s\"", ..Lines::NONE };
        let gateway = Gateway::embedded(lines).await;
        let silent = TcpStream::connect(gateway.mqtt[1]).await.unwrap();
        let tls = &rustls::version::TLS13;
        let mut half = certificates.connect_to(gateway.mqtt[1], tls, None).await.unwrap();
        half.write_all(b"GET /mqtt HTTP/1.1\r\n").await.unwrap();
        let mut other = certificates.connect_to(gateway.mqtt[1], tls, None).await.unwrap();
        assert_eq!(speak(&mut other, V5, "d1").await.unwrap(), 0);
        let mut byte = [0];
        silent.readable().await.unwrap();
        assert_eq!(silent.try_read(&mut byte).unwrap(), 0, "the gateway has closed it");
        let mut told = String::new();
        // How the connection ends behind the answer is of no consequence.
        let _ = half.read_to_string(&mut told).await;
        assert!(told.starts_with("HTTP/1.1 408 "), "{told}");
        gateway.stop().await;
    })
    .await;
}

/// The head of a request for MQTT over WebSocket.
fn request(path: &str, subprotocol: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: gateway\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Protocol: {subprotocol}\r\n\r\n"
    )
}

/// The head of the answer.
async fn answer(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// One binary message of a client, of fewer than 126 bytes, masked with zeros.
async fn send(stream: &mut TcpStream, payload: &[u8]) {
    let length = 0x80 | u8::try_from(payload.len()).unwrap();
    stream.write_all(&[&[0x82, length, 0, 0, 0, 0], payload].concat()).await.unwrap();
}

/// The payload of the next message, of fewer than 126 bytes.
async fn receive(stream: &mut TcpStream) -> Vec<u8> {
    assert_eq!(stream.read_u8().await.unwrap(), 0x82, "binary (MQTT 5 6.0.0-1)");
    let mut payload = vec![0; stream.read_u8().await.unwrap().into()];
    stream.read_exact(&mut payload).await.unwrap();
    payload
}

#[tokio::test]
async fn a_websocket_carries_mqtt_at_both_paths_beside_plain_mqtt() {
    within(async {
        let more = "[[listener]]\nprotocol = \"mqtt\"\nhost = \"127.0.0.1\"\nport = 0\nwebsocket = true\n";
        let gateway = Gateway::embedded(Lines { more, ..Lines::NONE }).await;
        for (path, version) in [("/mqtt", V311), ("/$iothub/websocket?iothub-no-client-cert=true", V5)] {
            let mut stream = TcpStream::connect(gateway.mqtt[1]).await.unwrap();
            stream.write_all(request(path, "mqtt").as_bytes()).await.unwrap();
            let head = answer(&mut stream).await;
            assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
            assert!(head.contains("\r\nSec-WebSocket-Protocol: mqtt\r\n"), "{head}");
            // Where messages end means nothing.
            let bytes = [connect(version, "d1"), event(version, "d1")].concat();
            send(&mut stream, &bytes[..3]).await;
            send(&mut stream, &bytes[3..]).await;
            let mut decoder = Decoder::new(version);
            let mut heard = Vec::new();
            while heard.len() < 2 {
                decoder.push(&receive(&mut stream).await);
                heard.extend(std::iter::from_fn(|| decoder.next_packet().unwrap()));
            }
            assert!(matches!(heard[0], ServerPacket::ConnAck(_)), "{heard:?}");
            assert!(matches!(heard[1], ServerPacket::PubAck { reason: 0, .. }), "{heard:?}");
        }
        for (path, subprotocol, status) in [("/", "mqtt", "404"), ("/mqtt", "AMQPWSB10", "400")] {
            let mut stream = TcpStream::connect(gateway.mqtt[1]).await.unwrap();
            stream.write_all(request(path, subprotocol).as_bytes()).await.unwrap();
            let head = answer(&mut stream).await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        }
        Mqtt::connect(gateway.mqtt[1], V5, "d2").await.ping().await;
        // The short form takes no WebSocket.
        let mut stream = TcpStream::connect(gateway.mqtt[0]).await.unwrap();
        stream.write_all(request("/mqtt", "mqtt").as_bytes()).await.unwrap();
        let mut byte = [0];
        assert!(matches!(stream.read(&mut byte).await, Ok(0) | Err(_)), "not MQTT");
        gateway.stop().await;
    })
    .await;
}
