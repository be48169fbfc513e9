//! Two connections and the bytes between them, cut at seeded places, under a clock that only the test moves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fieldgate_amqp::connection::{ClientSecurity, Connection, ConnectionConfig, Event, LinkId, SessionId};
use fieldgate_amqp::performative::{
    Attach, AttachOut, RcvSettleMode, Role, SndSettleMode, SourceOut, TargetOut,
};
use fieldgate_amqp::sasl::{Mechanism, SaslCode};

/// A small generator of the same numbers for the same seed (xorshift64*).
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }
}

/// Any time will do: only differences count.
#[allow(clippy::disallowed_methods, reason = "a simulated clock has to start somewhere")]
pub(crate) fn start() -> Instant {
    Instant::now()
}

pub(crate) fn config() -> ConnectionConfig {
    ConnectionConfig { container_id: "test".into(), ..ConnectionConfig::default() }
}

/// One of the two, and all that it was told.
pub(crate) struct Side {
    pub(crate) connection: Connection,
    pub(crate) events: Vec<Event>,
    /// Answers sasl-init, open, begin, attach and detach as a patient peer would.
    pub(crate) answers: bool,
}

impl Side {
    fn new(connection: Connection) -> Self {
        Self { connection, events: Vec::new(), answers: true }
    }

    /// Takes in all events there are.
    pub(crate) fn drain(&mut self) {
        while let Some(event) = self.connection.poll_event() {
            if self.answers {
                answer(&mut self.connection, &event);
            }
            self.events.push(event);
        }
    }

    pub(crate) fn take(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// The links that the peer attached here and that were not looked at yet.
    pub(crate) fn attached(&self) -> Vec<LinkId> {
        let links = self.events.iter().filter_map(|event| match event {
            Event::Attached { link, .. } => Some(*link),
            _ => None,
        });
        links.collect()
    }

    pub(crate) fn begun(&self) -> Vec<SessionId> {
        let sessions = self.events.iter().filter_map(|event| match event {
            Event::SessionBegun { session, .. } => Some(*session),
            _ => None,
        });
        sessions.collect()
    }
}

fn answer(connection: &mut Connection, event: &Event) {
    match event {
        Event::SaslInit { .. } => connection.sasl_outcome(SaslCode::Ok),
        Event::Opened(_) => {
            let open = connection.config().open();
            connection.open(open);
        }
        Event::SessionBegun { session, by_peer: true, .. } => connection.accept_begin(*session),
        Event::Attached { link, attach, by_peer: true, .. } => {
            let answer = mirror(attach);
            connection.answer_attach(*link, &answer);
        }
        Event::Detached { link, detach, answered: false, .. } => {
            connection.detach(*link, detach.closed(), None)
        }
        _ => {}
    }
}

/// The attach that takes another one as it is.
fn mirror(attach: &Attach) -> Attach {
    AttachOut {
        name: attach.name(),
        handle: 0,
        role: attach.role().other(),
        snd_settle_mode: attach.snd_settle_mode(),
        rcv_settle_mode: attach.rcv_settle_mode(),
        source: attach.source().as_ref(),
        target: attach.target().as_ref(),
        unsettled: None,
        initial_delivery_count: None,
        max_message_size: None,
        offered_capabilities: &[],
        desired_capabilities: &[],
        properties: None,
    }
    .build()
}

/// An attach of a link to or from the node "q".
pub(crate) fn attach(name: &str, role: Role) -> Attach {
    attach_with(name, role, RcvSettleMode::First)
}

pub(crate) fn attach_with(name: &str, role: Role, rcv_settle_mode: RcvSettleMode) -> Attach {
    let source = SourceOut { address: Some("q"), ..SourceOut::default() }.build();
    let target = TargetOut { address: Some("q"), ..TargetOut::default() }.build();
    let base = match role {
        Role::Sender => AttachOut::sender(name, &source, &target),
        Role::Receiver => AttachOut::receiver(name, &source, &target),
    };
    AttachOut { rcv_settle_mode, snd_settle_mode: SndSettleMode::Mixed, ..base }.build()
}

pub(crate) struct Pair {
    pub(crate) now: Instant,
    pub(crate) client: Side,
    pub(crate) server: Side,
    cuts: Rng,
    /// The most bytes of a piece; 0 passes everything on as it comes.
    pub(crate) piece: usize,
}

impl Pair {
    /// Two connections that have not spoken yet.
    pub(crate) fn silent(
        security: ClientSecurity,
        client: ConnectionConfig,
        server: ConnectionConfig,
    ) -> Self {
        let now = start();
        let open = client.open();
        let client = Connection::client(Arc::new(client), security, open, now);
        let server = Connection::server(Arc::new(server), &Mechanism::ALL, true, now);
        Self { now, client: Side::new(client), server: Side::new(server), cuts: Rng::new(1), piece: 0 }
    }

    /// Two open connections.
    pub(crate) fn open_with(client: ConnectionConfig, server: ConnectionConfig) -> Self {
        let mut pair = Self::silent(ClientSecurity::Bare, client, server);
        pair.run();
        assert!(pair.client.connection.is_open() && pair.server.connection.is_open());
        pair.client.take();
        pair.server.take();
        pair
    }

    pub(crate) fn open() -> Self {
        Self::open_with(config(), config())
    }

    pub(crate) fn seeded(mut self, seed: u64, piece: usize) -> Self {
        (self.cuts, self.piece) = (Rng::new(seed), piece);
        self
    }

    /// Passes bytes on until neither side has any.
    pub(crate) fn run(&mut self) {
        loop {
            self.client.drain();
            self.server.drain();
            let there = self.client.connection.poll_transmit();
            let back = self.server.connection.poll_transmit();
            if there.is_none() && back.is_none() {
                return;
            }
            let (now, piece) = (self.now, self.piece);
            pass(&mut self.server, there, now, piece, &mut self.cuts);
            pass(&mut self.client, back, now, piece, &mut self.cuts);
        }
    }

    /// Lets time pass, with all timers going off when they should.
    pub(crate) fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.run();
            let due = [&self.client, &self.server].map(|side| side.connection.poll_timeout());
            let next = due.into_iter().flatten().min().filter(|&due| due <= end);
            let Some(next) = next else { break };
            self.now = self.now.max(next);
            self.client.connection.handle_timeout(self.now);
            self.server.connection.handle_timeout(self.now);
        }
        self.now = end;
    }

    /// A session, begun by the client and known to both: its id at the client and at the server.
    pub(crate) fn session(&mut self) -> (SessionId, SessionId) {
        let ours = self.client.connection.begin().unwrap();
        self.run();
        let theirs = *self.server.begun().last().unwrap();
        (ours, theirs)
    }

    /// A link, attached by the client and known to both: its id at the client and at the server.
    pub(crate) fn link(&mut self, session: SessionId, name: &str, role: Role) -> (LinkId, LinkId) {
        let ours = self.client.connection.attach(session, &attach(name, role)).unwrap();
        self.run();
        let theirs = *self.server.attached().last().unwrap();
        (ours, theirs)
    }
}

fn pass(to: &mut Side, bytes: Option<Bytes>, now: Instant, piece: usize, cuts: &mut Rng) {
    let Some(mut bytes) = bytes else { return };
    while !bytes.is_empty() {
        let len = if piece == 0 { bytes.len() } else { bytes.len().min(1 + cuts.below(piece)) };
        to.connection.handle_input(now, bytes.split_to(len));
        to.drain();
    }
}
