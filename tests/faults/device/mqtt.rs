//! MQTT, both versions: QoS 1, several messages under way.

use std::collections::HashMap;
use std::io;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use fieldgate_mqtt::client::{self, ConnectOptions, Decoder, ServerPacket};
use fieldgate_mqtt::{OutgoingPublish, PacketId, QoS, Version};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Device;
use crate::payload;

/// Reason codes from here on say that a message was not taken.
const REFUSED: u8 = 0x80;

pub(super) async fn session(device: &mut Device, life: u64, version: Version) -> io::Result<()> {
    let mut stream = TcpStream::connect(device.ports.mqtt).await?;
    stream.set_nodelay(true)?;
    let (name, topic) = (device.name(), format!("{}/{}", device.word(), device.name()));
    let options = ConnectOptions { keep_alive: Duration::ZERO, ..ConnectOptions::new(version, &name) };
    let mut out = BytesMut::new();
    client::put_connect(&options, &mut out).map_err(io::Error::other)?;
    let (mut reader, mut writer) = stream.split();
    let mut decoder = Decoder::new(version);
    let mut input = BytesMut::new();
    let mut let_in = false;
    let mut under_way = HashMap::new();
    let mut last = 0;
    loop {
        while let Some(packet) = decoder.next_packet().map_err(io::Error::other)? {
            match packet {
                ServerPacket::ConnAck(connack) if connack.code == 0 => let_in = true,
                ServerPacket::PubAck { packet_id, reason } => {
                    let Some(key) = under_way.remove(&packet_id) else {
                        return Err(io::Error::other("a PUBACK for nothing"));
                    };
                    if reason < REFUSED { device.acknowledged(key) } else { device.refused(key, None) }
                }
                _ => return Ok(()),
            }
        }
        while let Some((key, dup)) = let_in.then(|| device.next(Instant::now())).flatten() {
            last = if last == u16::MAX { 1 } else { last + 1 };
            let Some(packet_id) = PacketId::new(last) else { continue };
            let payload = payload::write(key, device.nature.bytes);
            let qos = QoS::AtLeastOnce;
            let publish = OutgoingPublish {
                topic: &topic,
                payload: &payload,
                qos,
                dup,
                retain: false,
                properties: None,
            };
            client::put_publish(version, packet_id, &publish, &mut out).map_err(io::Error::other)?;
            under_way.insert(packet_id, key);
            device.ledger.lock().out(key, life);
        }
        tokio::select! {
            read = reader.read_buf(&mut input) => match read? {
                0 => return Ok(()),
                _ => decoder.push(&input.split()),
            },
            written = writer.write_buf(&mut out), if !out.is_empty() => drop(written?),
            () = device.due(), if let_in => {}
        }
    }
}
