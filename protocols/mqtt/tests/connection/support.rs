//! One machine, one clock that only a test moves, and short ways to say things.

use std::{
    collections::VecDeque,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use fieldgate_mqtt::{
    Accept, Config, Connection, Event, OutgoingPublish, PacketId, Publish, PublishToken, QoS, Version,
    Violation,
    client::{self, ConnectOptions, Decoder, ServerPacket},
};

pub(crate) const BOTH: [Version; 2] = [Version::V311, Version::V5];

/// Time zero of all tests. Only differences matter, so the one real look at a clock changes nothing.
#[expect(
    clippy::disallowed_methods,
    reason = "an Instant has no other origin; simulated time counts from it"
)]
pub(crate) fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
}

pub(crate) struct Server {
    pub(crate) machine: Connection,
    pub(crate) now: Instant,
}

impl Server {
    pub(crate) fn new(config: Config) -> Self {
        Self { machine: Connection::new(Arc::new(config), epoch()), now: epoch() }
    }

    /// A connection that has been accepted, with nothing left to write.
    pub(crate) fn open(options: &ConnectOptions<'_>, config: Config) -> Self {
        let mut server = Self::new(config);
        let mut connect = BytesMut::new();
        client::put_connect(options, &mut connect).expect("can be said");
        server.input(&connect);
        assert!(matches!(server.machine.poll_event(), Some(Event::Connect(_))));
        server.machine.accept(server.now, Accept::default()).expect("CONNECT waits");
        assert!(server.machine.poll_transmit().is_some());
        server
    }

    pub(crate) fn open_default(version: Version) -> Self {
        Self::open(&ConnectOptions::new(version, "d"), Config::default())
    }

    pub(crate) fn input(&mut self, bytes: &[u8]) {
        self.machine.handle_input(self.now, BytesMut::from(bytes));
    }

    /// Gives `bytes` and takes all events.
    pub(crate) fn events(&mut self, bytes: &[u8]) -> Vec<Event> {
        self.input(bytes);
        self.drain()
    }

    pub(crate) fn drain(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.machine.poll_event()).collect()
    }

    /// Gives `bytes`, of which a violation must be the only consequence.
    pub(crate) fn violation(&mut self, bytes: &[u8]) -> Violation {
        match self.events(bytes).as_slice() {
            [Event::Violation(violation)] => {
                assert!(self.machine.is_closed());
                *violation
            }
            events => panic!("{events:?} instead of a violation"),
        }
    }

    pub(crate) fn written(&mut self) -> Vec<u8> {
        self.machine.poll_transmit().map(Into::into).unwrap_or_default()
    }

    /// DISCONNECT of MQTT 5, which is all that was written, without the words that it may have.
    pub(crate) fn last_words(&mut self) -> Vec<u8> {
        let packets = self.packets(Version::V5);
        let [ServerPacket::Disconnect { reason }] = packets[..] else { panic!("{packets:?}") };
        vec![0xE0, 1, reason]
    }

    pub(crate) fn packets(&mut self, version: Version) -> Vec<ServerPacket> {
        let mut decoder = Decoder::new(version);
        decoder.push(&self.written());
        std::iter::from_fn(|| decoder.next_packet().expect("legal")).collect()
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.machine.handle_timeout(self.now);
    }
}

pub(crate) fn id(number: u16) -> PacketId {
    PacketId::new(number).expect("not zero")
}

pub(crate) fn message<'a>(topic: &'a str, payload: &'a [u8], qos: QoS) -> OutgoingPublish<'a> {
    OutgoingPublish { topic, payload, qos, dup: false, retain: false, properties: None }
}

/// A PUBLISH of QoS 1 from the client.
pub(crate) fn publish(version: Version, number: u16) -> Vec<u8> {
    let mut out = BytesMut::new();
    let payload = number.to_be_bytes();
    client::put_publish(version, id(number), &message("t", &payload, QoS::AtLeastOnce), &mut out)
        .expect("can be said");
    out.into()
}

pub(crate) fn published(events: Vec<Event>) -> Vec<Publish> {
    let publish = |event| match event {
        Event::Publish(publish) => publish,
        event => panic!("{event:?} instead of a message"),
    };
    events.into_iter().map(publish).collect()
}

pub(crate) fn tokens(events: Vec<Event>) -> VecDeque<PublishToken> {
    published(events).into_iter().map(|publish| publish.token.expect("of QoS 1")).collect()
}

/// Deterministic pseudo-random numbers (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("below a usize")
    }
}
