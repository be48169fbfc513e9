//! A client with the session state that the specification gives it, and what it may therefore expect of the gateway.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fieldgate_mqtt::Version::{self, V5, V311};
use fieldgate_mqtt::client::{self, ConnectOptions, ServerPacket};
use fieldgate_mqtt::{OutgoingPublish, PacketId, PublishReply, QoS};

use super::client::{Client, GOODBYE_FOR_EVER, Heard, goodbye};
use super::hub::Fate;
use super::{STEPS, World};
use crate::rng::Rng;

/// Identifiers of PUBLISH packets: few, so that each is used again soon.
const IDENTIFIERS: u16 = 12;
/// Identifiers of SUBSCRIBE and UNSUBSCRIBE, and of PUBRELs that no PUBLISH belongs to, from here on.
const REQUEST: u16 = 1000;
const UNKNOWN: u16 = 2000;
/// How long the session is to be kept, where it is.
const EXPIRY_SECONDS: u32 = 600;
/// How long a device at rest listens before it looks around.
const LISTENS: Duration = Duration::from_millis(20);

/// Whether the gateway has the session while nobody is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    No,
    Yes,
    /// A CONNECT was sent and its answer not awaited.
    Unknown,
}

/// A message of QoS 1 or 2 on its way.
#[derive(Debug)]
struct InFlight {
    packet_id: PacketId,
    qos: QoS,
    payload: Bytes,
    /// PUBREC has come.
    received: bool,
    /// The connection over which PUBREL was sent last.
    released: Option<u32>,
    /// How often it was sent.
    releases: u32,
}

/// The network connection, and what was asked over it.
struct Link {
    client: Client,
    version: Version,
    /// The session stays when it is over.
    keeps: bool,
    /// PUBLISH packets without PUBACK (1) and PUBREC (2), in their order.
    unanswered: [VecDeque<PacketId>; 3],
    /// PUBRELs of identifiers that are not in use.
    unknown: BTreeSet<PacketId>,
    /// What the subscription is going to be.
    requests: BTreeMap<PacketId, bool>,
    pings: usize,
}

pub(super) struct Device {
    name: String,
    world: Rc<World>,
    rng: Rng,
    version: Version,
    presence: Presence,
    in_flight: Vec<InFlight>,
    /// `None` is not known.
    subscribed: Option<bool>,
    /// Commands that came and were not acknowledged.
    commands: BTreeMap<PacketId, Bytes>,
    link: Option<Link>,
    connections: u32,
    /// The last CONNECT wanted a clean start and has no answer: the client cannot go back to the old state.
    must_be_clean: bool,
    /// Once MQTT 3.1.1 was spoken, a refused message may have been taken.
    forgives: bool,
    messages: u64,
    /// How many sessions there were.
    sessions: u32,
    requests: u16,
    resting: bool,
}

impl Device {
    pub(super) fn new(number: usize, world: Rc<World>, mut rng: Rng) -> Self {
        Self {
            name: format!("d{number}"),
            world,
            version: *rng.pick(&[V311, V5]),
            rng,
            presence: Presence::No,
            in_flight: Vec::new(),
            subscribed: Some(false),
            commands: BTreeMap::new(),
            link: None,
            connections: 0,
            must_be_clean: false,
            forgives: false,
            messages: 0,
            sessions: 0,
            requests: 0,
            resting: false,
        }
    }

    pub(super) async fn live(mut self) {
        for _ in 0..STEPS {
            self.step().await;
        }
        self.rest().await;
    }

    async fn step(&mut self) {
        if self.link.is_none() {
            return self.connect().await;
        }
        match self.rng.below(25) {
            0..8 => self.publish().await,
            8..16 => {
                let time = self.rng.millis(0, 12);
                self.listen(time).await;
            }
            16 => self.subscribe(true).await,
            17 if self.rng.below(4) == 0 => self.subscribe(false).await,
            17..20 => self.world.book.borrow_mut().command(&self.name),
            20 => self.chase().await,
            21 => self.release_unknown().await,
            22 => self.vanish().await,
            23 => self.leave().await,
            _ => self.connect().await,
        }
    }

    fn chance(&mut self, one_in: u64) -> bool {
        !self.resting && self.rng.below(one_in) == 0
    }

    fn fail(&self, what: &str) -> ! {
        self.world.fail(&self.name, what)
    }

    /// The link, which is there.
    fn link(&mut self) -> &mut Link {
        self.link.as_mut().unwrap()
    }

    /// The connection is over, and with it the session, if it was to be.
    fn part(&mut self) -> Option<Link> {
        let link = self.link.take()?;
        self.presence = if link.keeps { Presence::Yes } else { Presence::No };
        if !link.keeps {
            self.forget();
        }
        Some(link)
    }

    fn forget(&mut self) {
        self.sessions += 1;
        self.in_flight.clear();
        self.commands.clear();
        self.subscribed = Some(false);
        self.forgives = false;
    }

    /// Connects; over a connection that is there, it takes over from itself.
    async fn connect(&mut self) {
        let former = self.part();
        let clean_start = self.must_be_clean || self.chance(6);
        // With a small window a client of MQTT 5 must not send again what one of MQTT 3.1.1 had under way.
        if self.world.window == 8 && self.chance(8) {
            self.version = if self.version == V5 { V311 } else { V5 };
        }
        let keeps = match self.version {
            V311 => !clean_start,
            V5 => self.resting || self.rng.below(4) > 0,
        };
        let name = self.name.clone();
        let options = ConnectOptions {
            clean_start,
            session_expiry_seconds: if keeps { EXPIRY_SECONDS } else { 0 },
            ..ConnectOptions::new(self.version, &name)
        };
        self.connections += 1;
        let label = format!("{name}#{}", self.connections);
        let mut client = Client::open(&self.world, label, &options).await;
        // With several workers nobody knows which CONNECT is seen first, unless the answer is awaited.
        if self.world.workers == 1 && self.chance(16) {
            client.say("! gone before CONNACK");
            self.must_be_clean = clean_start;
            if clean_start || keeps != (self.presence == Presence::Yes) {
                self.presence = Presence::Unknown;
            }
            return;
        }
        let Some(ServerPacket::ConnAck(connack)) = client.packet().await else { self.fail("no CONNACK") };
        let present = connack.session_present;
        let is_right = match self.presence {
            _ if clean_start => !present,
            Presence::No => !present,
            Presence::Yes => present,
            Presence::Unknown => true,
        };
        if connack.code != 0 || !is_right {
            self.fail(&format!("{connack:?}, and the session is there: {:?}", self.presence));
        }
        self.world.happened(match (clean_start, present) {
            (true, _) => "a clean start",
            (false, true) => "a session went on",
            (false, false) => "a session was over",
        });
        self.must_be_clean = false;
        if !present {
            self.forget();
        }
        self.forgives |= self.version == V311;
        self.link = Some(Link {
            client,
            version: self.version,
            keeps,
            unanswered: Default::default(),
            unknown: BTreeSet::new(),
            requests: BTreeMap::new(),
            pings: 0,
        });
        self.send_again().await;
        if let Some(former) = former {
            self.taken_over(former).await;
        }
    }

    /// The former connection was told to go (MQTT 5 3.1.4-3), unless it went because the hub gave a message back.
    async fn taken_over(&mut self, former: Link) {
        let version = former.version;
        match (version, former.client.last_words().await) {
            (V5, Some(ServerPacket::Disconnect { reason: 0x8E })) => {
                self.world.happened("taken over in MQTT 5")
            }
            (V5, Some(ServerPacket::Disconnect { reason: 0x89 })) => {}
            (V5, other) => self.fail(&format!("the last word to who was taken over is {other:?}")),
            (V311, Some(ServerPacket::Disconnect { .. })) => self.fail("DISCONNECT in MQTT 3.1.1"),
            (V311, _) => self.world.happened("taken over in MQTT 3.1.1"),
        }
    }

    /// MQTT 5 4.4.0-1: PUBLISH and PUBREL without an answer, in their order, under their identifiers.
    async fn send_again(&mut self) {
        let mut out = BytesMut::new();
        let (Some(link), world) = (&mut self.link, &self.world) else { return };
        for message in &mut self.in_flight {
            if message.received {
                world.happened("PUBREL again");
                message.release(self.connections);
                client::put_pubrel(message.packet_id, &mut out);
                link.client.say(&format!("> PUBREL {}", message.packet_id.value()));
            } else {
                let was_accepted = world.book.borrow().has(&message.payload, Fate::Accepted);
                if message.qos == QoS::ExactlyOnce && was_accepted {
                    world.happened("PUBLISH of QoS 2 again that the hub had accepted");
                }
                world.happened("PUBLISH again");
                link.publish(&self.name, message, true, &mut out);
            }
        }
        self.write(&out).await;
    }

    /// Writes all of it, or vanishes in the middle.
    async fn write(&mut self, out: &[u8]) {
        if !out.is_empty() && self.chance(14) {
            self.world.happened("gone in the middle of a packet");
            let part = self.rng.below(out.len() as u64) as usize;
            let client = &mut self.link().client;
            client.write(&out[..part]).await;
            client.say(&format!("! gone after {part} of {} bytes", out.len()));
            self.part();
        } else if let Some(link) = &mut self.link {
            link.client.write(out).await;
        }
    }

    async fn publish(&mut self) {
        let mut out = BytesMut::new();
        for _ in 0..=self.rng.below(4) {
            let qos =
                *self.rng.pick(&[QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce, QoS::ExactlyOnce]);
            if self.in_flight.len() >= self.world.window {
                break;
            }
            self.messages += 1;
            // QoS 0 has its order over one connection, the others over the session.
            let era = if qos == QoS::AtMostOnce { self.connections } else { self.sessions };
            let text = format!("{} {} {era} {}", self.name, qos as u8, self.messages);
            let payload = Bytes::from(text);
            let packet_id = self.free_identifier();
            let message = InFlight { packet_id, qos, payload, received: false, released: None, releases: 0 };
            self.link.as_mut().unwrap().publish(&self.name, &message, false, &mut out);
            if qos != QoS::AtMostOnce {
                self.in_flight.push(message);
            }
        }
        self.write(&out).await;
    }

    fn free_identifier(&mut self) -> PacketId {
        let in_use = |number: &u16| self.in_flight.iter().any(|message| message.packet_id.value() == *number);
        let free: Vec<u16> = (1..=IDENTIFIERS).filter(|number| !in_use(number)).collect();
        PacketId::new(*self.rng.pick(&free)).unwrap()
    }

    async fn subscribe(&mut self, wanted: bool) {
        self.requests += 1;
        let packet_id = PacketId::new(REQUEST + self.requests % 500).unwrap();
        let filter = format!("devices/{}/messages/devicebound/#", self.name);
        let mut out = BytesMut::new();
        let version = self.link().version;
        if wanted {
            let qos = *self.rng.pick(&[QoS::AtLeastOnce, QoS::ExactlyOnce]);
            client::put_subscribe(version, packet_id, &[(&filter, qos)], &mut out).unwrap();
        } else {
            client::put_unsubscribe(version, packet_id, &[&filter], &mut out).unwrap();
        }
        self.link().client.say(&format!("> SUBSCRIBE {wanted} {}", packet_id.value()));
        self.link().requests.insert(packet_id, wanted);
        self.subscribed = self.subscribed.filter(|is| *is == wanted);
        self.write(&out).await;
    }

    /// PUBREL, where it was put off.
    async fn chase(&mut self) {
        let mut out = BytesMut::new();
        let (Some(link), now) = (&mut self.link, self.connections) else { return };
        for message in self.in_flight.iter_mut().filter(|message| message.received) {
            if message.released != Some(now) {
                message.release(now);
                link.client.say(&format!("> PUBREL {}", message.packet_id.value()));
                client::put_pubrel(message.packet_id, &mut out);
            }
        }
        self.write(&out).await;
    }

    async fn release_unknown(&mut self) {
        self.requests += 1;
        let packet_id = PacketId::new(UNKNOWN + self.requests).unwrap();
        let mut out = BytesMut::new();
        client::put_pubrel(packet_id, &mut out);
        client::put_pingreq(&mut out);
        let link = self.link();
        link.client.say(&format!("> PUBREL {} and PINGREQ", packet_id.value()));
        link.unknown.insert(packet_id);
        link.pings += 1;
        self.write(&out).await;
    }

    /// Without a word.
    async fn vanish(&mut self) {
        if self.rng.below(2) == 0 {
            self.publish().await;
        }
        if let Some(link) = &self.link {
            link.client.say("! gone");
        }
        self.part();
    }

    /// With DISCONNECT, or with the end of what it sends: what comes before the end counts.
    async fn leave(&mut self) {
        let link = self.link();
        match link.version {
            _ if link.unknown.len() % 2 == 1 => link.client.end_output().await,
            V5 if link.pings % 2 == 1 => {
                link.client.say("> DISCONNECT, for ever");
                link.client.write(GOODBYE_FOR_EVER).await;
                link.keeps = false;
            }
            version => {
                link.client.say("> DISCONNECT");
                link.client.write(&goodbye(version)).await;
            }
        }
        while let Some(link) = &mut self.link {
            match link.client.packet().await {
                Some(packet) => self.hear(packet, &mut BytesMut::new()),
                None => drop(self.part()),
            }
        }
    }

    /// Takes what comes in this time.
    async fn listen(&mut self, time: Duration) {
        let until = tokio::time::Instant::now() + time;
        while let Some(link) = &mut self.link {
            let left = until.saturating_duration_since(tokio::time::Instant::now());
            match link.client.packet_within(left).await {
                Heard::Silence => break,
                Heard::End => drop(self.part()),
                Heard::Packet(packet) => {
                    let is_received = matches!(*packet, ServerPacket::PubRec { .. });
                    let mut out = BytesMut::new();
                    self.hear(*packet, &mut out);
                    if is_received && self.chance(12) {
                        self.world.happened("gone without PUBREL");
                        self.link().client.say("! gone");
                        self.part();
                    } else {
                        self.write(&out).await;
                    }
                }
            }
        }
    }

    /// Checks a packet, and says what is to be said to it.
    fn hear(&mut self, packet: ServerPacket, out: &mut BytesMut) {
        match packet {
            ServerPacket::PubAck { packet_id, reason } => {
                self.answered(packet_id, reason, QoS::AtLeastOnce);
                self.in_flight.retain(|message| message.packet_id != packet_id);
            }
            ServerPacket::PubRec { packet_id, reason } => {
                let at = self.answered(packet_id, reason, QoS::ExactlyOnce);
                if reason >= 0x80 {
                    self.in_flight.remove(at);
                    return;
                }
                self.in_flight[at].received = true;
                if !self.chance(5) {
                    let now = self.connections;
                    self.in_flight[at].release(now);
                    self.link().client.say(&format!("> PUBREL {}", packet_id.value()));
                    client::put_pubrel(packet_id, out);
                }
            }
            ServerPacket::PubComp { packet_id, reason } => self.completed(packet_id, reason),
            ServerPacket::Publish { packet_id: Some(packet_id), payload, qos, dup, .. } => {
                if qos != QoS::AtLeastOnce {
                    self.fail("a command of another QoS");
                }
                self.command(packet_id, payload, dup, out);
            }
            ServerPacket::SubAck { packet_id, codes } if codes == [1] => self.granted(packet_id),
            ServerPacket::UnsubAck { packet_id, .. } => self.granted(packet_id),
            ServerPacket::PingResp if self.link().pings > 0 => self.link().pings -= 1,
            // The hub has given something back; the end comes next.
            ServerPacket::Disconnect { reason: 0x89 } if self.link().version == V5 => {}
            other => self.fail(&format!("unexpected: {other:?}")),
        }
    }

    fn granted(&mut self, packet_id: PacketId) {
        let Some(wanted) = self.link().requests.remove(&packet_id) else { self.fail("nobody has asked") };
        self.subscribed = Some(wanted).filter(|_| self.link().requests.is_empty());
    }

    /// PUBACK or PUBREC: in the order of the PUBLISHes, and not before the hub has said the same. Gives the place of the
    /// message.
    fn answered(&mut self, packet_id: PacketId, reason: u8, qos: QoS) -> usize {
        if self.link().unanswered[qos as usize].pop_front() != Some(packet_id) {
            self.fail("an answer out of order");
        }
        let at = self.in_flight.iter().position(|message| message.packet_id == packet_id).unwrap();
        let book = self.world.book.borrow();
        let has = |fate| book.has(&self.in_flight[at].payload, fate);
        let is_right = match reason {
            0 => has(Fate::Accepted) || self.forgives && has(Fate::Rejected),
            0x90 => has(Fate::Rejected),
            _ => false,
        };
        if !is_right {
            self.fail(&format!("reason {reason:#x} for {:?}", self.in_flight[at]));
        }
        at
    }

    fn completed(&mut self, packet_id: PacketId, reason: u8) {
        let version = self.link().version;
        if self.link().unknown.remove(&packet_id) {
            // MQTT 3.1.1 has no words for it.
            let expected = if version == V5 { 0x92 } else { 0 };
            if reason != expected {
                self.fail("PUBREL of an unknown identifier");
            }
            return;
        }
        let at = self.in_flight.iter().position(|message| message.packet_id == packet_id);
        let Some(at) = at else { self.fail("PUBCOMP out of the blue") };
        let message = self.in_flight.remove(at);
        // The answer to a PUBREL of an earlier connection may have been lost.
        let is_right = reason == 0 || reason == 0x92 && message.releases > 1;
        if !message.received || !is_right {
            self.fail(&format!("PUBCOMP {reason:#x} for {message:?}"));
        }
    }

    fn command(&mut self, packet_id: PacketId, payload: Bytes, dup: bool, out: &mut BytesMut) {
        let is_mine = payload.starts_with(format!("{} command ", self.name).as_bytes());
        let before = self.commands.insert(packet_id, payload.clone());
        let may = match &before {
            // MQTT 5 2.2.1-4: an identifier that is in use stands for the same message.
            Some(before) => dup && *before == payload,
            None => true,
        };
        if !is_mine || !may || self.subscribed == Some(false) && self.link().requests.is_empty() {
            self.fail(&format!("{payload:?} with DUP {dup}, and before it {before:?}"));
        }
        if self.chance(3) {
            return;
        }
        let version = self.link().version;
        let refuses = version == V5 && self.chance(6);
        let reply = if refuses { PublishReply::ImplementationSpecific } else { PublishReply::Success };
        if refuses {
            self.world.happened("a command refused");
        }
        self.commands.remove(&packet_id);
        self.world.book.borrow_mut().answered(&self.name, &payload, reply.code());
        client::put_puback(version, packet_id, reply, out);
        self.link().client.say(&format!("> PUBACK {} {reply:?}", packet_id.value()));
    }

    /// All comes to its end: what is on its way is acknowledged, and no command is left.
    async fn rest(&mut self) {
        self.resting = true;
        self.world.book.borrow_mut().rest(&self.name);
        if let Some(link) = &self.link {
            link.client.say("! gone, and comes to rest");
        }
        self.part();
        loop {
            if self.link.is_none() {
                self.connect().await;
                self.chase().await;
            }
            if self.link.is_some() && self.subscribed != Some(true) && self.link().requests.is_empty() {
                self.subscribe(true).await;
            }
            self.listen(LISTENS).await;
            let has_commands = self.world.book.borrow().has_commands(&self.name);
            if self.link.is_some() && self.in_flight.is_empty() && !has_commands {
                return;
            }
        }
    }
}

impl InFlight {
    fn release(&mut self, connection: u32) {
        self.released = Some(connection);
        self.releases += 1;
    }
}

impl Link {
    /// Appends PUBLISH.
    fn publish(&mut self, device: &str, message: &InFlight, dup: bool, out: &mut BytesMut) {
        let InFlight { packet_id, qos, payload, .. } = message;
        let topic = format!("devices/{device}/messages/events");
        let publish =
            OutgoingPublish { topic: &topic, payload, qos: *qos, dup, retain: false, properties: None };
        client::put_publish(self.version, *packet_id, &publish, out).unwrap();
        if *qos != QoS::AtMostOnce {
            self.unanswered[*qos as usize].push_back(*packet_id);
        }
        self.client.say(&format!("> PUBLISH {} {payload:?} DUP {dup}", packet_id.value()));
    }
}
