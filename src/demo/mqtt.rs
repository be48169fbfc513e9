//! A simulated MQTT device: publishes with QoS 1, subscribes to its commands and acknowledges them.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use fieldgate_mqtt::client::{self, ConnectOptions, Decoder, ServerPacket};
use fieldgate_mqtt::{OutgoingPublish, PacketId, PublishReply, QoS, Version};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, MissedTickBehavior, timeout};

use super::device::{ANSWER_TIME_OUT, Device, Trouble};
use super::note::News;

const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// The largest packet that the device takes (MQTT 5).
const MAX_PACKET_BYTES: u32 = 64 * 1024;
const SUBSCRIPTION: u16 = 1;

/// A message that is published and not acknowledged yet.
struct Pending {
    packet_id: PacketId,
    bytes: usize,
    sent: Instant,
}

/// One connection, from CONNECT to its end.
pub(super) async fn live(device: &mut Device, version: Version) -> Result<(), Trouble> {
    let opening = timeout(ANSWER_TIME_OUT, Wire::open(device.address, version, device.plan.id));
    let (mut wire, keep_alive) = opening.await.map_err(|_| Trouble::silence("CONNACK and SUBACK"))??;
    device.is_up(true);

    let mut pings = tokio::time::interval(keep_alive / 2);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next_id = SUBSCRIPTION;
    let mut pending: Option<Pending> = None;
    let (id, (name, value)) = (device.plan.id, device.plan.property);
    let topic = format!("devices/{id}/messages/events/{name}={value}&$.ct=application%2Fjson");
    loop {
        let overdue = pending.as_ref().map_or_else(Instant::now, |pending| pending.sent + ANSWER_TIME_OUT);
        tokio::select! {
            packet = wire.next() => match packet? {
                ServerPacket::PubAck { packet_id, reason }
                    if pending.as_ref().is_some_and(|pending| pending.packet_id == packet_id) =>
                {
                    let sent = pending.take().map(|pending| (pending.bytes, pending.sent.elapsed()));
                    let reply = match version {
                        Version::V311 => "PUBACK".to_owned(),
                        Version::V5 => format!("PUBACK 0x{reason:02X}"),
                    };
                    device.tell(match sent {
                        Some((bytes, took)) if reason < 0x80 => News::Accepted { bytes, took, reply },
                        _ => News::Refused { reply },
                    }).await;
                }
                ServerPacket::Publish { packet_id, payload, .. } => {
                    if let Some(packet_id) = packet_id {
                        client::put_puback(version, packet_id, PublishReply::Success, &mut wire.output);
                        wire.flush().await?;
                    }
                    let text = String::from_utf8_lossy(&payload).into_owned();
                    device.tell(News::Command { text, reply: "PUBACK" }).await;
                }
                ServerPacket::Disconnect { reason } => {
                    return Err(Trouble::new(format!("the gateway sent DISCONNECT 0x{reason:02X}")));
                }
                _ => {}
            },
            reading = device.readings.next(), if pending.is_none() => {
                next_id = next_id.checked_add(1).unwrap_or(SUBSCRIPTION + 1);
                let packet_id = packet_id(next_id)?;
                let publish = OutgoingPublish {
                    topic: &topic,
                    payload: reading.as_bytes(),
                    qos: QoS::AtLeastOnce,
                    dup: false,
                    retain: false,
                    properties: None,
                };
                client::put_publish(version, packet_id, &publish, &mut wire.output)?;
                pending = Some(Pending { packet_id, bytes: reading.len(), sent: Instant::now() });
                wire.flush().await?;
            }
            _ = pings.tick() => {
                client::put_pingreq(&mut wire.output);
                wire.flush().await?;
            }
            () = tokio::time::sleep_until(overdue), if pending.is_some() => {
                return Err(Trouble::silence("PUBACK"));
            }
            // What is under way is waited for, so that the device leaves with nothing in doubt.
            () = device.stop.draining(), if pending.is_none() => {
                client::put_disconnect(version, false, &mut wire.output);
                wire.flush().await?;
                wire.stream.shutdown().await?;
                return Ok(());
            }
        }
    }
}

fn packet_id(number: u16) -> Result<PacketId, Trouble> {
    PacketId::new(number).ok_or_else(|| Trouble::new("a packet identifier must not be 0"))
}

/// The socket with what was read and is no packet yet, and what is to be written.
struct Wire {
    stream: TcpStream,
    decoder: Decoder,
    output: BytesMut,
}

impl Wire {
    /// Connects and subscribes; gives the keep alive that counts, too.
    async fn open(address: SocketAddr, version: Version, id: &str) -> Result<(Self, Duration), Trouble> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let mut wire = Self { stream, decoder: Decoder::new(version), output: BytesMut::new() };
        let options = ConnectOptions {
            keep_alive: KEEP_ALIVE,
            max_packet_bytes: Some(MAX_PACKET_BYTES),
            ..ConnectOptions::new(version, id)
        };
        client::put_connect(&options, &mut wire.output)?;
        wire.flush().await?;
        let keep_alive = match wire.next().await? {
            ServerPacket::ConnAck(connack) if connack.code == 0 => connack.keep_alive.unwrap_or(KEEP_ALIVE),
            ServerPacket::ConnAck(connack) => {
                return Err(Trouble::new(format!("the gateway answered CONNACK 0x{:02X}", connack.code)));
            }
            other => return Err(Trouble::new(format!("instead of CONNACK came {other:?}"))),
        };
        let filter = format!("devices/{id}/messages/devicebound/#");
        let packet_id = packet_id(SUBSCRIPTION)?;
        client::put_subscribe(version, packet_id, &[(&filter, QoS::AtLeastOnce)], &mut wire.output)?;
        wire.flush().await?;
        match wire.next().await? {
            ServerPacket::SubAck { codes, .. } if codes.iter().all(|code| *code < 0x80) => {
                Ok((wire, keep_alive.max(Duration::from_secs(1))))
            }
            other => Err(Trouble::new(format!("the subscription was answered with {other:?}"))),
        }
    }

    /// The next packet. Cancel safe: what was read stays in the decoder.
    async fn next(&mut self) -> Result<ServerPacket, Trouble> {
        loop {
            if let Some(packet) = self.decoder.next_packet()? {
                return Ok(packet);
            }
            let mut input = [0; 4096];
            match self.stream.read(&mut input).await? {
                0 => return Err(Trouble::new("the gateway closed the connection")),
                length => self.decoder.push(&input[..length]),
            }
        }
    }

    async fn flush(&mut self) -> Result<(), Trouble> {
        let written = timeout(ANSWER_TIME_OUT, self.stream.write_all_buf(&mut self.output)).await;
        Ok(written.map_err(|_| Trouble::silence("room in the socket"))??)
    }
}
