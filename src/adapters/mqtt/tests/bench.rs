//! A hub that only notes what it is asked for, and a device that speaks MQTT to one session.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use fieldgate_mappings::address::{Address, DeviceId};
use fieldgate_mappings::message::{Direction, Message, MessageId};
use fieldgate_mappings::outcome::{Outcome, Rejection, Verdict};
use fieldgate_mappings::rules::RuleSet;
use fieldgate_mappings::{Reason, Source};
use fieldgate_mqtt::client::{self, ConnectOptions, Decoder, ServerPacket};
use fieldgate_mqtt::{OutgoingPublish, PacketId, QoS, Version};

use crate::adapters::mqtt::host::{Host, Settle};
use crate::adapters::mqtt::listener::Guest;
use crate::adapters::mqtt::machine_config;
use crate::adapters::mqtt::session::Session;
use crate::adapters::{Directory, testing};
use crate::config::{Config, Secret};
use crate::devices::{Gate, Roster};
use crate::upstream::{Command, CommandId, CommandSink, Patience};
use crate::wire::Machine;

pub(super) const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9);
pub(super) const EVENTS: &str = "devices/d1/messages/events/";
pub(super) const COMMANDS: &str = "devices/d1/messages/devicebound/#";

/// A message on its way to the hub.
pub(super) struct Sent {
    pub(super) message: Message,
    pub(super) patience: Patience,
    pub(super) verdict: Verdict,
    /// It has left the gateway.
    is_there: bool,
}

/// What happened to subscriptions.
#[derive(Default)]
pub(super) struct Ledger {
    pub(super) settled: RefCell<Vec<(CommandId, Outcome)>>,
    pub(super) dropped: Cell<usize>,
}

/// A subscription's node, credit and sink.
type Subscribed = (Address, u32, Rc<dyn CommandSink>);

/// The hub, and what a worker has besides.
pub(super) struct Bench {
    pub(super) config: Config,
    rules: Arc<RuleSet>,
    directory: Arc<Directory>,
    roster: Rc<Roster>,
    pub(super) sent: RefCell<VecDeque<Sent>>,
    /// Tokens that the hub is asked about.
    pub(super) proofs: RefCell<VecDeque<Verdict>>,
    /// What is sent leaves the gateway at once.
    pub(super) is_near: Cell<bool>,
    pub(super) subscribed: RefCell<Vec<Subscribed>>,
    pub(super) ledger: Rc<Ledger>,
}

impl Bench {
    pub(super) fn new(config: &str) -> Rc<Self> {
        Self::with_rules(config, testing::rules())
    }

    pub(super) fn with_rules(config: &str, rules: Arc<RuleSet>) -> Rc<Self> {
        Self::with(config, rules, &testing::gate())
    }

    pub(super) fn with_devices(config: &str, devices: &str) -> Rc<Self> {
        Self::with(config, testing::rules(), &testing::gate_to(devices))
    }

    fn with(config: &str, rules: Arc<RuleSet>, gate: &Arc<Gate>) -> Rc<Self> {
        Rc::new(Self {
            config: testing::config(config),
            rules,
            directory: Arc::default(),
            roster: Roster::new(gate),
            sent: RefCell::default(),
            proofs: RefCell::default(),
            is_near: Cell::new(true),
            subscribed: RefCell::default(),
            ledger: Rc::default(),
        })
    }

    /// The oldest message that the hub has not answered.
    pub(super) fn next_sent(&self) -> Sent {
        self.sent.borrow_mut().pop_front().expect("a message was sent")
    }

    /// The hub answers the oldest message.
    pub(super) fn answer(&self, outcome: Outcome) {
        self.next_sent().verdict.report(outcome);
    }

    /// The newest subscription's sink.
    pub(super) fn sink(&self) -> Rc<dyn CommandSink> {
        Rc::clone(&self.subscribed.borrow().last().expect("a subscription").2)
    }

    /// The hub sends a command to `d1`.
    pub(super) fn command(&self, number: u32, body: &'static str) {
        let address = Address::parse("devices/d1/messages/devicebound").unwrap();
        let device = DeviceId::new("d1").unwrap();
        let message = Message::new(device, Direction::Downlink, address, body.into());
        self.sink().command(Command { id: CommandId::numbered(number), message });
    }

    /// The same with a message-id, as a delivery of the hub's choice.
    pub(super) fn named_command(&self, id: CommandId, message_id: &'static str, body: &'static str) {
        let address = Address::parse("devices/d1/messages/devicebound").unwrap();
        let device = DeviceId::new("d1").unwrap();
        let mut message = Message::new(device, Direction::Downlink, address, body.into());
        message.properties.message_id = Some(MessageId::String(message_id.into()));
        self.sink().command(Command { id, message });
    }

    pub(super) fn settled(&self) -> Vec<(CommandId, Outcome)> {
        self.ledger.settled.take()
    }
}

impl Host for Bench {
    type Subscription = Noted;

    fn config(&self) -> &Config {
        &self.config
    }

    fn rules(&self) -> &RuleSet {
        &self.rules
    }

    fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    fn roster(&self) -> &Rc<Roster> {
        &self.roster
    }

    fn prove(&self, _: &DeviceId, _: &Secret, verdict: Verdict) {
        self.proofs.borrow_mut().push_back(verdict);
    }

    fn send(&self, message: Message, patience: Patience, verdict: Verdict) {
        self.sent.borrow_mut().push_back(Sent { message, patience, verdict, is_there: self.is_near.get() });
    }

    fn recall(&self, _: &DeviceId) {
        self.sent.borrow_mut().retain(|sent| sent.is_there || sent.verdict.is_wanted(false));
    }

    fn subscribe(&self, _: &DeviceId, address: Address, credit: u32, sink: Rc<dyn CommandSink>) -> Noted {
        self.subscribed.borrow_mut().push((address, credit, sink));
        Noted(Rc::clone(&self.ledger))
    }
}

/// A subscription that notes what is done with it.
pub(super) struct Noted(Rc<Ledger>);

impl Settle for Noted {
    fn settle(&self, id: CommandId, outcome: &Outcome) {
        self.0.settled.borrow_mut().push((id, outcome.clone()));
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        self.0.dropped.set(self.0.dropped.get() + 1);
    }
}

/// A device and the session that serves it.
pub(super) struct Device {
    pub(super) session: Session<Bench>,
    pub(super) version: Version,
    pub(super) now: Instant,
    decoder: Decoder,
}

/// Who has connected to the first listener, without TLS.
pub(super) fn guest(config: &Config) -> Guest {
    let believes = config.mqtt_listeners.first().is_some_and(|listener| listener.allow_anonymous);
    Guest { peer: PEER, certificate: None, believes, since: Instant::now() }
}

impl Device {
    /// A device that has said nothing yet.
    pub(super) fn new(bench: &Rc<Bench>, version: Version) -> Self {
        let now = Instant::now();
        let config = machine_config(&bench.config.mqtt);
        let session = Session::new(Rc::clone(bench), guest(&bench.config), config);
        Self { session, version, now, decoder: Decoder::new(version) }
    }

    /// A device that was let in.
    pub(super) fn connected(bench: &Rc<Bench>, version: Version) -> Self {
        let mut device = Self::new(bench, version);
        assert_eq!(device.connect(&ConnectOptions::new(version, "d1")), Some(0));
        device
    }

    /// Says CONNECT. The code of CONNACK, if there is one.
    pub(super) fn connect(&mut self, options: &ConnectOptions<'_>) -> Option<u8> {
        self.say(|out| client::put_connect(options, out).unwrap());
        match &self.hear()[..] {
            [ServerPacket::ConnAck(connack)] => Some(connack.code),
            [] => None,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn say(&mut self, write: impl FnOnce(&mut BytesMut)) {
        let mut bytes = BytesMut::new();
        write(&mut bytes);
        self.session.handle_input(self.now, bytes);
        self.session.handle(self.now);
    }

    pub(super) fn publish(&mut self, packet_id: u16, qos: QoS, topic: &str, payload: &[u8]) {
        let publish = OutgoingPublish { topic, payload, qos, dup: false, retain: false, properties: None };
        let version = self.version;
        self.say(|out| client::put_publish(version, id(packet_id), &publish, out).unwrap());
    }

    pub(super) fn subscribe(&mut self, filters: &[(&str, QoS)]) -> Vec<u8> {
        let version = self.version;
        self.say(|out| client::put_subscribe(version, id(1), filters, out).unwrap());
        match &self.hear()[..] {
            [ServerPacket::SubAck { codes, .. }] => codes.clone(),
            other => panic!("{other:?}"),
        }
    }

    /// What the session says, its output written at once.
    pub(super) fn hear(&mut self) -> Vec<ServerPacket> {
        let mut packets = Vec::new();
        loop {
            self.session.handle(self.now);
            while let Some(bytes) = self.session.poll_transmit() {
                self.decoder.push(&bytes);
            }
            while let Some(packet) = self.decoder.next_packet().unwrap() {
                packets.push(packet);
            }
            if !self.session.written() {
                return packets;
            }
        }
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.session.handle_timeout(self.now);
    }
}

pub(super) fn id(number: u16) -> PacketId {
    PacketId::new(number).expect("not zero")
}

pub(super) fn puback(number: u16, reason: u8) -> ServerPacket {
    ServerPacket::PubAck { packet_id: id(number), reason }
}

pub(super) fn rejected(reason: Reason) -> Outcome {
    Outcome::Rejected(Rejection::new(reason, "no"))
}

/// Two nodes of the hub, the first one over two topics; QoS 0 for the second topic.
pub(super) fn other_rules() -> Arc<RuleSet> {
    let text = r#"
        version = 1
        [[rule]]
        name = "commands"
        direction = "downlink"
        from.hub = "devices/{device}/messages/devicebound"
        to.mqtt = { topic = "in/{device}", qos = 1 }
        [[rule]]
        name = "quick"
        direction = "downlink"
        from.hub = "devices/{device}/messages/devicebound"
        to.mqtt = { topic = "quick/{device}", qos = 0 }
        [[rule]]
        name = "elsewhere"
        direction = "downlink"
        from.hub = "elsewhere/{device}"
        to.mqtt = { topic = "else/{device}", qos = 1 }
    "#;
    Arc::new(RuleSet::load(&[Source { name: "other.toml", text }]).unwrap())
}
