//! Connections that are lost anywhere, and a session that goes on: a client that keeps to the specification, a driver
//! whose verdicts come late, out of order and over several connections. The law: of QoS 2 nobody gets a message twice
//! that was taken, and of QoS 1 and 2 every message is taken in the end. Reproducible by seed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::BytesMut;
use fieldgate_mqtt::{
    Accept, Config, Event, PacketId, PublishReply, PublishToken, QoS, Session, Version,
    client::{self, ConnectOptions, Decoder, ServerPacket},
};

use crate::support::{BOTH, Random, Server, id, message};

const MESSAGES: u32 = 60;
const WINDOW: u16 = 5;

/// Where one of the client's messages is, as MQTT 5 4.3.3 has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Published(QoS),
    Released,
}

struct World {
    version: Version,
    random: Random,
    server: Server,
    decoder: Decoder,
    up: BytesMut,
    down: BytesMut,
    /// The client's session state: by packet identifier, in the order of sending.
    client: VecDeque<(PacketId, u32, Sent)>,
    next: u32,
    /// Identifiers whose PUBLISH or PUBREL went out over this connection: the window.
    flying: usize,
    through: BTreeSet<u32>,
    /// The driver: messages without a verdict, and how often each was taken.
    undecided: BTreeMap<PublishToken, u32>,
    taken: BTreeMap<u32, u32>,
    /// Commands: what is unacknowledged at the server, and what has been heard.
    commands: BTreeMap<PacketId, u32>,
    next_command: u32,
    commands_through: u32,
    connections: u32,
}

fn qos_of(number: u32) -> QoS {
    if number.is_multiple_of(3) { QoS::AtLeastOnce } else { QoS::ExactlyOnce }
}

impl World {
    fn new(version: Version, seed: u64) -> Self {
        let mut world = Self {
            version,
            random: Random(seed),
            server: Server::new(Config::default()),
            decoder: Decoder::new(version),
            up: BytesMut::new(),
            down: BytesMut::new(),
            client: VecDeque::new(),
            next: 0,
            flying: 0,
            through: BTreeSet::new(),
            undecided: BTreeMap::new(),
            taken: BTreeMap::new(),
            commands: BTreeMap::new(),
            next_command: 0,
            commands_through: 0,
            connections: 0,
        };
        world.connect(Session::default());
        world
    }

    fn connect(&mut self, session: Session) {
        self.connections += 1;
        self.decoder = Decoder::new(self.version);
        (self.up, self.down) = (BytesMut::new(), BytesMut::new());
        self.server =
            Server::new(Config { receive_maximum: WINDOW, outgoing_window: 3, ..Config::default() });
        let options = ConnectOptions {
            clean_start: false,
            session_expiry_seconds: u32::MAX,
            ..ConnectOptions::new(self.version, "d")
        };
        let mut connect = BytesMut::new();
        client::put_connect(&options, &mut connect).expect("can be said");
        assert!(matches!(self.server.events(&connect)[..], [Event::Connect(_)]));
        let present = self.connections > 1;
        let unacknowledged: Vec<PacketId> = session.unacknowledged().to_vec();
        self.server.machine.resume(session).expect("CONNECT waits");
        let accept = Accept { session_present: present, ..Accept::default() };
        self.server.machine.accept(self.server.now, accept).expect("CONNECT waits");
        assert_eq!(unacknowledged, self.commands.keys().copied().collect::<Vec<_>>());
        for (packet_id, number) in &self.commands {
            let payload = number.to_be_bytes();
            let again = message("down", &payload, QoS::AtLeastOnce);
            self.server.machine.publish_again(*packet_id, &again).expect("as many as before");
        }
        // MQTT 5 4.4.0-1: what is not through is sent again, in its order.
        self.flying = 0;
        let again: Vec<_> = self.client.iter().copied().collect();
        for (packet_id, number, sent) in again {
            self.say(packet_id, number, sent, true);
            self.flying += 1;
        }
    }

    fn say(&mut self, packet_id: PacketId, number: u32, sent: Sent, dup: bool) {
        match sent {
            Sent::Published(qos) => {
                let payload = number.to_be_bytes();
                let start = self.up.len();
                let publish = message("up", &payload, qos);
                client::put_publish(self.version, packet_id, &publish, &mut self.up).expect("can be said");
                self.up[start] |= u8::from(dup) << 3;
            }
            Sent::Released => client::put_pubrel(packet_id, &mut self.up),
        }
    }

    fn lose(&mut self) {
        let session = self.server.machine.take_session();
        assert!(session.exchanges() <= 2 * usize::from(WINDOW), "bounded by what may be in flight");
        self.connect(session);
    }

    fn step(&mut self) {
        match self.random.below(12) {
            0..=3 => self.client_publishes(),
            4..=6 => self.decide(),
            7 => self.command(),
            8 if self.random.below(4) == 0 => self.lose(),
            _ => {}
        }
        self.carry_up();
        self.carry_down();
    }

    fn client_publishes(&mut self) {
        if self.next == MESSAGES || self.flying >= usize::from(WINDOW) {
            return;
        }
        let free = (1..).map(id).find(|free| self.client.iter().all(|(known, ..)| known != free));
        let packet_id = free.expect("there are many");
        let sent = Sent::Published(qos_of(self.next));
        self.say(packet_id, self.next, sent, false);
        self.client.push_back((packet_id, self.next, sent));
        self.flying += 1;
        self.next += 1;
    }

    fn decide(&mut self) {
        if self.undecided.is_empty() {
            return;
        }
        let at = self.random.below(self.undecided.len());
        let (&token, &number) = self.undecided.iter().nth(at).expect("there are as many");
        self.undecided.remove(&token);
        *self.taken.entry(number).or_default() += 1;
        self.server.machine.acknowledge(token, PublishReply::Success);
        self.server_events();
    }

    fn command(&mut self) {
        if self.next_command < MESSAGES && self.server.machine.publish_window() > 0 {
            let payload = self.next_command.to_be_bytes();
            let publish = message("down", &payload, QoS::AtLeastOnce);
            let packet_id = self.server.machine.publish(&publish).expect("room").expect("of QoS 1");
            assert_eq!(self.commands.insert(packet_id, self.next_command), None, "an identifier in use");
            self.next_command += 1;
        }
    }

    fn carry_up(&mut self) {
        if !self.up.is_empty() && self.server.machine.wants_input() {
            let length = 1 + self.random.below(self.up.len().min(30));
            let piece = self.up.split_to(length);
            self.server.machine.handle_input(self.server.now, piece);
        }
        self.server_events();
    }

    fn server_events(&mut self) {
        for event in self.server.drain() {
            match event {
                Event::Publish(publish) => {
                    let number = u32::from_be_bytes(publish.payload[..].try_into().expect("four bytes"));
                    if publish.qos == QoS::ExactlyOnce {
                        assert!(!self.taken.contains_key(&number), "{number} was taken before");
                        assert!(!self.undecided.values().any(|known| *known == number), "{number} is known");
                    }
                    self.undecided.insert(publish.token.expect("of QoS 1 or 2"), number);
                }
                Event::PublishAcknowledged { packet_id, reason: 0 } => {
                    self.commands.remove(&packet_id).expect("unacknowledged until now");
                    self.commands_through += 1;
                }
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
            self.client_hears(packet);
        }
    }

    fn client_hears(&mut self, packet: ServerPacket) {
        match packet {
            ServerPacket::ConnAck(connack) => assert_eq!(connack.session_present, self.connections > 1),
            ServerPacket::PubAck { packet_id, reason: 0 } => {
                self.ends(packet_id, Sent::Published(QoS::AtLeastOnce));
            }
            ServerPacket::PubRec { packet_id, reason: 0 } => {
                let known = self.client.iter_mut().find(|(known, ..)| *known == packet_id);
                let (_, _, sent) = known.expect("a message that is not through");
                assert!(matches!(sent, Sent::Published(QoS::ExactlyOnce) | Sent::Released));
                *sent = Sent::Released;
                client::put_pubrel(packet_id, &mut self.up);
            }
            ServerPacket::PubComp { packet_id, .. } => self.ends(packet_id, Sent::Released),
            ServerPacket::Publish { packet_id: Some(packet_id), .. } => {
                client::put_puback(self.version, packet_id, PublishReply::Success, &mut self.up);
            }
            packet => panic!("{packet:?}"),
        }
    }

    fn ends(&mut self, packet_id: PacketId, expected: Sent) {
        let at = self.client.iter().position(|(known, ..)| *known == packet_id);
        let (_, number, sent) = self.client.remove(at.expect("not through until now")).expect("found");
        assert_eq!(sent, expected);
        assert!(self.taken.contains_key(&number), "{number} is through, and nobody has it");
        assert!(self.through.insert(number));
        self.flying -= 1;
    }

    fn is_done(&self) -> bool {
        self.through.len() == MESSAGES as usize && self.commands_through == MESSAGES
    }
}

#[test]
fn a_session_survives_its_connections() {
    let mut connections = 0;
    for version in BOTH {
        for seed in 0..150 {
            let mut world = World::new(version, seed);
            let mut steps = 0;
            while !world.is_done() {
                world.step();
                steps += 1;
                assert!(steps < 200_000, "seed {seed} stands still");
            }
            let twice = world.taken.iter().filter(|(_, times)| **times > 1);
            assert!(twice.clone().all(|(number, _)| qos_of(*number) == QoS::AtLeastOnce), "seed {seed}");
            connections += world.connections;
        }
    }
    assert!(connections > 3000, "there was something to survive: {connections}");
}
