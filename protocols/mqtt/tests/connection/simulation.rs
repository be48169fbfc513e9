//! Two endpoints in simulated time: a client that keeps to its windows, a server whose verdicts come late and out
//! of order, and a stream that is cut anywhere. Reproducible by seed.

use std::{collections::VecDeque, time::Duration};

use bytes::BytesMut;
use fieldgate_mqtt::{
    Config, Event, PacketId, PublishReply, PublishToken, QoS, Version,
    client::{self, ConnectOptions, Decoder, ServerPacket},
};

use crate::support::{BOTH, Random, Server, id, message};

const MESSAGES: u32 = 400;
const WINDOW: u16 = 7;

struct Simulation {
    version: Version,
    random: Random,
    server: Server,
    decoder: Decoder,
    /// Bytes on their way to the server and to the client.
    up: BytesMut,
    down: BytesMut,
    /// The client's messages: next to send, and identifiers that wait for PUBACK, oldest first.
    next_up: u32,
    waiting: VecDeque<PacketId>,
    acknowledged: u32,
    pinged: u32,
    /// What the server has received, and has not decided about.
    arrived: u32,
    undecided: Vec<PublishToken>,
    /// The server's messages: next to send, received by the client, acknowledged at the server.
    next_down: u32,
    received_down: u32,
    acknowledged_down: u32,
}

impl Simulation {
    fn new(version: Version, seed: u64) -> Self {
        let options = ConnectOptions { receive_maximum: Some(3), ..ConnectOptions::new(version, "d") };
        let config =
            Config { receive_maximum: WINDOW, outgoing_window: 5, read_ahead_bytes: 32, ..Config::default() };
        Self {
            version,
            random: Random(seed),
            server: Server::open(&options, config),
            decoder: Decoder::new(version),
            up: BytesMut::new(),
            down: BytesMut::new(),
            next_up: 0,
            waiting: VecDeque::new(),
            acknowledged: 0,
            pinged: 0,
            arrived: 0,
            undecided: Vec::new(),
            next_down: 0,
            received_down: 0,
            acknowledged_down: 0,
        }
    }

    fn step(&mut self) {
        self.server.pass(Duration::from_millis(self.random.next() % 50));
        match self.random.below(6) {
            0 | 1 => self.client_publishes(),
            2 => {
                client::put_pingreq(&mut self.up);
                self.pinged += 1;
            }
            3 => self.server_decides(),
            4 => self.server_publishes(),
            _ => {}
        }
        self.carry_up();
        self.carry_down();
    }

    fn client_publishes(&mut self) {
        // MQTT 5 tells the window; an older client does not know it and sends twice as much.
        let window = if self.version == Version::V5 { WINDOW } else { 2 * WINDOW };
        if self.next_up == MESSAGES || self.waiting.len() >= usize::from(window) {
            return;
        }
        let packet_id = id(u16::try_from(self.next_up % 50 + 1).expect("small"));
        let payload = self.next_up.to_be_bytes();
        let publish = message("up", &payload, QoS::AtLeastOnce);
        client::put_publish(self.version, packet_id, &publish, &mut self.up).expect("can be said");
        self.waiting.push_back(packet_id);
        self.next_up += 1;
    }

    fn server_decides(&mut self) {
        if !self.undecided.is_empty() {
            let index = self.random.below(self.undecided.len());
            let token = self.undecided.swap_remove(index);
            self.server.machine.acknowledge(token, PublishReply::Success);
            self.server_events();
        }
    }

    fn server_publishes(&mut self) {
        if self.next_down < MESSAGES {
            let payload = self.next_down.to_be_bytes();
            let room = self.server.machine.publish_window() > 0;
            let sent = self.server.machine.publish(&message("down", &payload, QoS::AtLeastOnce)).is_ok();
            assert_eq!(sent, room);
            self.next_down += u32::from(sent);
        }
    }

    fn carry_up(&mut self) {
        if self.server.machine.wants_input() && !self.up.is_empty() {
            let length = 1 + self.random.below(self.up.len().min(40));
            let piece = self.up.split_to(length);
            self.server.machine.handle_input(self.server.now, piece);
            self.server_events();
        }
    }

    fn server_events(&mut self) {
        for event in self.server.drain() {
            match event {
                Event::Publish(publish) => {
                    assert_eq!(publish.payload, self.arrived.to_be_bytes()[..], "in order, none twice");
                    self.arrived += 1;
                    self.undecided.push(publish.token.expect("of QoS 1"));
                    assert!(self.server.machine.unacknowledged() <= usize::from(WINDOW));
                }
                Event::PublishAcknowledged { reason: 0, .. } => self.acknowledged_down += 1,
                event => panic!("{event:?}"),
            }
        }
        self.down.extend_from_slice(&self.server.written());
    }

    fn carry_down(&mut self) {
        self.down.extend_from_slice(&self.server.written());
        if self.down.is_empty() {
            return;
        }
        let length = 1 + self.random.below(self.down.len());
        self.decoder.push(&self.down.split_to(length));
        while let Some(packet) = self.decoder.next_packet().expect("legal") {
            match packet {
                ServerPacket::PubAck { packet_id, reason: 0 } => {
                    assert_eq!(self.waiting.pop_front(), Some(packet_id), "in the order of the messages");
                    self.acknowledged += 1;
                }
                ServerPacket::PingResp => self.pinged -= 1,
                ServerPacket::Publish { packet_id: Some(packet_id), payload, .. } => {
                    assert_eq!(payload, self.received_down.to_be_bytes()[..]);
                    self.received_down += 1;
                    client::put_puback(self.version, packet_id, PublishReply::Success, &mut self.up);
                }
                packet => panic!("{packet:?}"),
            }
        }
    }

    fn is_done(&self) -> bool {
        self.acknowledged == MESSAGES && self.acknowledged_down == MESSAGES
    }
}

#[test]
fn every_message_is_acknowledged_once_and_in_order() {
    for version in BOTH {
        for seed in 0..40 {
            let mut simulation = Simulation::new(version, seed);
            let mut steps = 0;
            while !simulation.is_done() {
                simulation.step();
                steps += 1;
                assert!(steps < 100_000, "seed {seed} stands still");
            }
            assert_eq!(simulation.arrived, MESSAGES);
            assert_eq!(simulation.server.machine.unacknowledged(), 0);
            assert!(!simulation.server.machine.is_closed());
        }
    }
}
