//! The loop itself, on streams in memory.

use std::future::Future;
use std::rc::Rc;

use bytes::BytesMut;
use fieldgate_mappings::outcome::Outcome;
use fieldgate_mqtt::client::{self, ConnectOptions, Decoder, ServerPacket};
use fieldgate_mqtt::{OutgoingPublish, QoS, Version};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, LocalSet, yield_now};

use crate::adapters::mqtt::{drive, machine_config};
use crate::shutdown::{self, Shutdown};

use super::bench::{Bench, COMMANDS, EVENTS, guest, id, puback};

pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, future)
}

/// A client, and the task that serves it.
struct Client {
    stream: DuplexStream,
    decoder: Decoder,
    served: JoinHandle<()>,
}

impl Client {
    fn new(bench: &Rc<Bench>, shutdown: &Shutdown, version: Version) -> Self {
        let (stream, served) = tokio::io::duplex(64 * 1024);
        let config = machine_config(&bench.config.mqtt);
        let task = drive(served, guest(&bench.config), Rc::clone(bench), config, shutdown.clone());
        Self { stream, decoder: Decoder::new(version), served: tokio::task::spawn_local(task) }
    }

    async fn connected(bench: &Rc<Bench>, shutdown: &Shutdown, version: Version) -> Self {
        let mut client = Self::new(bench, shutdown, version);
        client.say(|out| client::put_connect(&ConnectOptions::new(version, "d1"), out).unwrap()).await;
        assert!(matches!(client.hear().await, Some(ServerPacket::ConnAck(connack)) if connack.code == 0));
        client
    }

    async fn say(&mut self, write: impl FnOnce(&mut BytesMut)) {
        let mut bytes = BytesMut::new();
        write(&mut bytes);
        self.stream.write_all(&bytes).await.unwrap();
    }

    async fn publish(&mut self, packet_id: u16) {
        let publish = OutgoingPublish {
            topic: EVENTS,
            payload: b"x",
            qos: QoS::AtLeastOnce,
            dup: false,
            retain: false,
            properties: None,
        };
        self.say(|out| client::put_publish(Version::V5, id(packet_id), &publish, out).unwrap()).await;
    }

    /// The next packet; nothing at the end of the stream.
    async fn hear(&mut self) -> Option<ServerPacket> {
        loop {
            if let Some(packet) = self.decoder.next_packet().unwrap() {
                return Some(packet);
            }
            let mut bytes = BytesMut::new();
            if self.stream.read_buf(&mut bytes).await.unwrap() == 0 {
                return None;
            }
            self.decoder.push(&bytes);
        }
    }
}

/// Lets the other tasks run until the hub has got a message.
async fn until_sent(bench: &Bench) {
    while bench.sent.borrow().is_empty() {
        yield_now().await;
    }
}

#[test]
fn a_conversation_from_connect_to_disconnect() {
    block_on(async {
        let bench = Bench::new("");
        let (_trigger, shutdown) = shutdown::channel();
        let mut client = Client::connected(&bench, &shutdown, Version::V5).await;
        client.publish(1).await;
        until_sent(&bench).await;
        bench.answer(Outcome::Accepted);
        assert_eq!(client.hear().await, Some(puback(1, 0)));
        client
            .say(|out| {
                client::put_subscribe(Version::V5, id(1), &[(COMMANDS, QoS::AtMostOnce)], out).unwrap()
            })
            .await;
        assert!(matches!(client.hear().await, Some(ServerPacket::SubAck { .. })));
        bench.command(1, "open");
        assert!(matches!(client.hear().await, Some(ServerPacket::Publish { .. })));
        client.say(client::put_pingreq).await;
        assert_eq!(client.hear().await, Some(ServerPacket::PingResp));
        assert_eq!(bench.settled().len(), 1, "QoS 0 was written before");
        client.say(|out| client::put_disconnect(Version::V5, false, out)).await;
        assert_eq!(client.hear().await, None, "the server closes, even if the client does not");
        assert_eq!(bench.ledger.dropped.get(), 1);
        drop(client.stream);
        client.served.await.unwrap();
    });
}

#[test]
fn an_outcome_that_is_there_at_once_is_heard() {
    block_on(async {
        let bench = Bench::new("[upstream]\nhold = \"0s\"");
        let (_trigger, shutdown) = shutdown::channel();
        let mut client = Client::connected(&bench, &shutdown, Version::V5).await;
        client.publish(1).await;
        until_sent(&bench).await;
        // Nobody reads the verdict: it is released, and with no time to hold the connection ends.
        drop(bench.next_sent());
        assert_eq!(client.hear().await, Some(ServerPacket::Disconnect { reason: 0x89 }));
        assert_eq!(client.hear().await, None);
    });
}

#[test]
fn the_same_client_identifier_takes_over() {
    block_on(async {
        let bench = Bench::new("");
        let (_trigger, shutdown) = shutdown::channel();
        let mut first = Client::connected(&bench, &shutdown, Version::V5).await;
        let mut second = Client::connected(&bench, &shutdown, Version::V5).await;
        assert_eq!(first.hear().await, Some(ServerPacket::Disconnect { reason: 0x8E }));
        assert_eq!(first.hear().await, None);
        second.say(client::put_pingreq).await;
        assert_eq!(second.hear().await, Some(ServerPacket::PingResp));
    });
}

#[test]
fn a_stop_ends_idle_connections_and_lets_busy_ones_finish() {
    block_on(async {
        let bench = Bench::new("");
        let (trigger, shutdown) = shutdown::channel();
        let mut silent = Client::new(&bench, &shutdown, Version::V5);
        let mut busy = Client::connected(&bench, &shutdown, Version::V5).await;
        busy.publish(1).await;
        until_sent(&bench).await;
        trigger.drain();
        assert_eq!(silent.hear().await, None);
        bench.answer(Outcome::Accepted);
        assert_eq!(busy.hear().await, Some(puback(1, 0)));
        assert_eq!(busy.hear().await, Some(ServerPacket::Disconnect { reason: 0x8B }));
        assert_eq!(busy.hear().await, None);
        trigger.abort();
        busy.served.await.unwrap();
        silent.served.await.unwrap();
    });
}

#[test]
fn an_abort_waits_for_nobody() {
    block_on(async {
        let bench = Bench::new("");
        let (trigger, shutdown) = shutdown::channel();
        let mut client = Client::connected(&bench, &shutdown, Version::V5).await;
        client.publish(1).await;
        until_sent(&bench).await;
        trigger.abort();
        assert_eq!(client.hear().await, Some(ServerPacket::Disconnect { reason: 0x8B }));
        client.served.await.unwrap();
    });
}

#[test]
fn an_idle_connection_costs_little() {
    block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let bench = Bench::new("");
        let (_trigger, shutdown) = shutdown::channel();
        let task = drive(
            stream,
            guest(&bench.config),
            Rc::clone(&bench),
            machine_config(&bench.config.mqtt),
            shutdown,
        );
        // Besides it: the task, the inbox, the timer, the socket, the entries in the directory and the roster; 1.3 KB together.
        assert!(size_of_val(&task) <= 896, "{}", size_of_val(&task));
    });
}
