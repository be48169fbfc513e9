//! Random lives of the queues against a small model that keeps everything and forgets nothing.
//!
//! Laws: a message that was stored has one end, accepted or buried; a message is sent only when all earlier ones of its
//! hub, device and priority have ended or are in flight; what was sent before, also by a former life, is marked; nothing
//! is refused or dies without a reason; the bounds hold.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use super::*;
use crate::spool::ages::Ages;
use crate::spool::keeper::Now;
use crate::testing::Random;

const WINDOW: usize = 4;
const MAX_IN_FLIGHT: usize = 12;
const MAX_RECORDS: u64 = 120;
const MAX_BYTES: u64 = 30_000;
const DEVICE_MAX_RECORDS: u64 = 40;
const DEVICE_MAX_BYTES: u64 = 8_000;

type Key = (usize, usize, u8);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    InFlight,
    /// It had no acceptance; its queue has not rewound.
    Failed,
    Dying,
    Accepted,
    Buried,
}

#[derive(Debug)]
struct Message {
    key: Key,
    bytes: u64,
    expires_at: u64,
    state: State,
    sent: bool,
    place: Place,
}

struct Life {
    random: Random,
    hubs: Vec<Arc<str>>,
    devices: Vec<DeviceId>,
    queues: Queues,
    now: Instant,
    unix_ms: u64,
    next_seq: u64,
    batch: Vec<(u64, Admitted, Message)>,
    /// By sequence number, the ended ones too.
    messages: BTreeMap<u64, Message>,
    flights: Vec<(u64, u64)>,
    /// Ended, and a crash would bring them back.
    unsynced: BTreeSet<u64>,
    held: HashMap<(usize, usize), i64>,
    open: bool,
    ends: usize,
    crashes: usize,
}

fn bounds() -> Bounds {
    Bounds {
        max_bytes: MAX_BYTES,
        max_records: MAX_RECORDS,
        device_max_bytes: DEVICE_MAX_BYTES,
        device_max_records: DEVICE_MAX_RECORDS,
        window: WINDOW,
        max_in_flight: MAX_IN_FLIGHT,
        max_in_flight_bytes: 4_000,
    }
}

impl Life {
    fn new(seed: u64) -> Self {
        let hubs = vec!["berlin".into(), "paris".into()];
        let mut life = Self {
            random: Random::new(seed),
            devices: (0..3).map(|n| DeviceId::new(&format!("d{n}")).unwrap()).collect(),
            hubs,
            queues: Queues::new(bounds()),
            now: Instant::now(),
            unix_ms: 1_795_379_735_123,
            next_seq: 1,
            batch: Vec::new(),
            messages: BTreeMap::new(),
            flights: Vec::new(),
            unsynced: BTreeSet::new(),
            held: HashMap::new(),
            open: true,
            ends: 0,
            crashes: 0,
        };
        life.open(true);
        life
    }

    fn open(&mut self, open: bool) {
        self.open = open;
        for hub in &self.hubs {
            self.queues.set_open(hub, open);
        }
    }

    fn step(&mut self) {
        match self.random.below(100) {
            0..25 => self.submit(),
            25..37 => self.commit(),
            37..58 => (0..self.random.below(6)).for_each(|_| self.send()),
            58..82 => self.report(),
            82..88 => self.bury(),
            88..91 => self.expire(),
            91..94 => self.sync(),
            94..96 => self.pass(),
            96..97 => self.move_some(),
            97..99 => {
                let open = !self.random.chance(3);
                self.open(open);
            }
            _ if self.random.chance(4) => self.crash(),
            _ => {}
        }
        self.check();
    }

    fn submit(&mut self) {
        let key = (self.random.below(2), self.random.below(3), *self.random.pick(&[0, 4, 9]));
        let body = 10 + self.random.below(600);
        let life = *self.random.pick(&[0, 900, 20_000, 1_000_000]);
        let limits = Limits {
            max_bytes: self.random.chance(3).then_some(3_000),
            full: if self.random.chance(2) { WhenFull::RefuseNew } else { WhenFull::DeadLetterOldest },
        };
        let new = New {
            hub: &self.hubs[key.0],
            device: &self.devices[key.1],
            priority: key.2,
            bytes: body,
            stored_at: self.unix_ms,
            expires_at: self.unix_ms + life,
            marked: false,
            limits,
        };
        let bytes = body as u64 + OVERHEAD_BYTES;
        let before = self.device_totals(key.0, key.1);
        let all = self.totals();
        let admitted = self.queues.admit(new);
        self.collect_dying();
        let Ok(admitted) = admitted else {
            let max_bytes = limits.max_bytes.unwrap_or(DEVICE_MAX_BYTES);
            let device_full = before.bytes + bytes > max_bytes || before.records >= DEVICE_MAX_RECORDS;
            let full = all.bytes + bytes > MAX_BYTES || all.records >= MAX_RECORDS;
            assert!(device_full || full, "refused with room: {before:?} {all:?}");
            return;
        };
        let expires_at = self.unix_ms + life;
        let (state, place) = (State::Waiting, Place { segment: 1, offset: self.next_seq as u32 });
        let message = Message { key, bytes, expires_at, state, sent: false, place };
        *self.held.entry((key.0, key.1)).or_default() += 1;
        self.batch.push((self.next_seq, admitted, message));
        self.next_seq += 1;
    }

    fn commit(&mut self) {
        let good = !self.random.chance(5);
        for (seq, admitted, message) in std::mem::take(&mut self.batch) {
            if good {
                self.queues.stored(admitted, seq, message.place);
                self.messages.insert(seq, message);
            } else {
                self.queues.give_back(admitted);
                *self.held.get_mut(&(message.key.0, message.key.1)).unwrap() -= 1;
            }
        }
        if good {
            // A commit takes the settles along.
            self.sync();
        }
    }

    fn send(&mut self) {
        let Some(send) = self.queues.next(self.now) else { return };
        assert!(self.open);
        let key = self.messages[&send.seq].key;
        for (seq, message) in self.messages.range(..send.seq).filter(|(_, message)| message.key == key) {
            let ended = matches!(message.state, State::Accepted | State::Buried | State::Dying);
            assert!(
                ended || message.state == State::InFlight,
                "{seq} {message:?} was overtaken by {}",
                send.seq
            );
        }
        let message = self.messages.get_mut(&send.seq).unwrap();
        assert!(matches!(message.state, State::Waiting | State::Failed), "{message:?} is sent");
        assert!(send.marked || !message.sent, "sent again without a mark");
        assert_eq!(send.place, message.place);
        (message.state, message.sent) = (State::InFlight, true);
        self.flights.push((send.flight, send.seq));
        let in_window = self.messages.values().filter(|message| message.key == key);
        assert!(in_window.filter(|message| message.state == State::InFlight).count() <= WINDOW);
        assert!(self.flights.len() <= 2 * MAX_IN_FLIGHT);
    }

    fn report(&mut self) {
        if self.flights.is_empty() {
            return;
        }
        let (flight, seq) = self.flights.swap_remove(self.random.below(self.flights.len()));
        let ended = match self.random.below(10) {
            0..7 => Ended::Done,
            7..9 => Ended::Again { pause: self.random.chance(2).then_some(Duration::from_secs(2)) },
            _ => Ended::Dead(DeadReason::MadeRoom),
        };
        self.ended(flight, seq, ended);
    }

    fn ended(&mut self, flight: u64, seq: u64, ended: Ended) {
        let settle = self.queues.report(flight, ended, self.now);
        let message = self.messages.get_mut(&seq).unwrap();
        assert_eq!(message.state, State::InFlight);
        match ended {
            Ended::Done => {
                message.state = State::Accepted;
                assert_eq!(settle, Some((seq, message.place)));
                self.unsynced.insert(seq);
                self.ends += 1;
            }
            Ended::Again { .. } => {
                message.state = State::Failed;
                assert_eq!(settle, None);
            }
            Ended::Dead(_) => assert_eq!(settle, None),
        }
        self.collect_dying();
    }

    /// Looks which messages have just died.
    fn collect_dying(&mut self) {
        for dying in &self.queues.dying {
            let message = self.messages.get_mut(&dying.seq).unwrap();
            assert!(!matches!(message.state, State::Accepted | State::Buried), "{message:?} dies");
            if dying.reason == DeadReason::Expired {
                assert!(message.expires_at <= self.unix_ms, "{message:?} expired early");
            }
            message.state = State::Dying;
            assert_eq!(dying.place, message.place);
        }
        for (hub, device) in self.queues.take_left() {
            let hub = self.hubs.iter().position(|known| *known == hub).unwrap();
            let device = self.devices.iter().position(|known| *known == device).unwrap();
            *self.held.get_mut(&(hub, device)).unwrap() -= 1;
        }
    }

    fn bury(&mut self) {
        while let Some(dying) = self.queues.next_dying() {
            if self.random.chance(4) {
                self.queues.not_buried(dying);
                return;
            }
            let message = self.messages.get_mut(&dying.seq).unwrap();
            assert_eq!(message.state, State::Dying);
            message.state = State::Buried;
            self.unsynced.insert(dying.seq);
            self.ends += 1;
            self.queues.buried(dying);
        }
    }

    fn expire(&mut self) {
        let now = Now { at: Instant::now(), unix_ms: self.unix_ms };
        self.queues.expire((self.unix_ms / 1_000) as u32, &Ages::new(1, 0, now));
        self.collect_dying();
    }

    fn pass(&mut self) {
        let some = Duration::from_millis(self.random.below(8_000) as u64);
        self.now += some;
        self.unix_ms += some.as_millis() as u64;
    }

    fn sync(&mut self) {
        self.unsynced.clear();
        self.queues.synced();
        assert!(!self.queues.wants_sync());
    }

    fn move_some(&mut self) {
        let alive = |message: &&mut Message| !matches!(message.state, State::Accepted | State::Buried);
        let mut moved = Vec::new();
        for (seq, message) in &mut self.messages {
            if alive(&message) && self.random.chance(3) {
                message.place.segment += 1;
                moved.push((*seq, message.key, message.place));
            }
        }
        for (seq, (hub, device, priority), place) in moved {
            let (hub, device) = (Arc::clone(&self.hubs[hub]), self.devices[device].clone());
            assert!(self.queues.moved(&hub, device.as_str(), priority, seq, place));
        }
    }

    /// Everything in memory is gone; the disk has what was stored, and not the ends that were not synced.
    fn crash(&mut self) {
        self.crashes += 1;
        self.queues = Queues::new(bounds());
        self.batch.clear();
        self.flights.clear();
        self.held.clear();
        let unsynced = std::mem::take(&mut self.unsynced);
        let mut found = Vec::new();
        for (seq, message) in &mut self.messages {
            if matches!(message.state, State::Accepted | State::Buried) && !unsynced.contains(seq) {
                continue;
            }
            message.state = State::Waiting;
            found.push(*seq);
            *self.held.entry((message.key.0, message.key.1)).or_default() += 1;
        }
        // The log tells of the newest first.
        for seq in found.into_iter().rev() {
            let message = &self.messages[&seq];
            let new = New {
                hub: &self.hubs[message.key.0],
                device: &self.devices[message.key.1],
                priority: message.key.2,
                bytes: (message.bytes - OVERHEAD_BYTES) as usize,
                stored_at: self.unix_ms.min(message.expires_at),
                expires_at: message.expires_at,
                marked: false,
                limits: Limits::default(),
            };
            self.queues.recover(new, seq, message.place);
        }
        self.queues.recovered();
        self.open(self.open);
    }

    fn device_totals(&self, hub: usize, device: usize) -> Totals {
        let counts = |message: &Message| {
            let there = matches!(message.state, State::Waiting | State::InFlight | State::Failed);
            there && (message.key.0, message.key.1) == (hub, device)
        };
        let batch = self.batch.iter().map(|(_, _, message)| message);
        let mut totals = Totals::default();
        let all = self.messages.values().chain(batch);
        all.filter(|message| counts(message)).for_each(|message| totals.add(message.bytes));
        totals
    }

    fn totals(&self) -> Totals {
        let batch = self.batch.iter().map(|(_, _, message)| message);
        let mut totals = Totals::default();
        let all = self.messages.values().chain(batch);
        all.filter(|message| !matches!(message.state, State::Accepted | State::Buried))
            .for_each(|message| totals.add(message.bytes));
        totals
    }

    fn check(&mut self) {
        let totals = self.totals();
        assert_eq!(self.queues.totals(), totals);
        // A crash may bring back more than the bounds allow; then nothing more comes in.
        assert!(self.crashes > 0 || totals.records <= MAX_RECORDS && totals.bytes <= MAX_BYTES);
        for (hub, device) in (0..2).flat_map(|hub| (0..3).map(move |device| (hub, device))) {
            let totals = self.device_totals(hub, device);
            assert_eq!(self.held.get(&(hub, device)).copied().unwrap_or(0), totals.records as i64);
            if self.crashes == 0 {
                assert!(totals.records <= DEVICE_MAX_RECORDS && totals.bytes <= DEVICE_MAX_BYTES);
            }
        }
    }

    /// The hub takes all, and in the end there is nothing.
    fn finish(mut self) -> (usize, usize) {
        self.open(true);
        self.commit();
        for _ in 0..10_000 {
            while let Some(at) = self.flights.len().checked_sub(1) {
                let (flight, seq) = self.flights.remove(at);
                self.ended(flight, seq, Ended::Done);
            }
            self.bury();
            self.sync();
            self.now = self.queues.poll_timeout().map_or(self.now, |until| until.max(self.now));
            (0..10).for_each(|_| self.send());
            self.check();
            if self.queues.totals() == Totals::default() {
                self.sync();
                break;
            }
        }
        assert_eq!(self.queues.totals(), Totals::default());
        assert_eq!((self.queues.devices(), self.queues.queues.len()), (0, 0), "nothing is remembered");
        assert!(
            self.messages.values().all(|message| matches!(message.state, State::Accepted | State::Buried))
        );
        assert_eq!(self.queues.oldest(), None);
        (self.ends, self.crashes)
    }
}

fn live(seed: u64) -> (usize, usize) {
    let mut life = Life::new(seed);
    (0..600).for_each(|_| life.step());
    life.finish()
}

#[test]
fn random_lives_keep_the_laws() {
    let (mut ends, mut crashes) = (0, 0);
    for seed in 0..300 {
        let (of_ends, of_crashes) = live(seed);
        ends += of_ends;
        crashes += of_crashes;
    }
    assert!(ends > 10_000 && crashes > 100, "{ends} {crashes}: the lives are too quiet to mean something");
}

fn admit(queues: &mut Queues, seq: u64, priority: u8, limits: Limits, life_ms: u64) -> Result<(), NoRoom> {
    let new = New {
        hub: &"berlin".into(),
        device: &DeviceId::new("d0").unwrap(),
        priority,
        bytes: 84,
        stored_at: 0,
        expires_at: life_ms,
        marked: false,
        limits,
    };
    let admitted = queues.admit(new)?;
    queues.stored(admitted, seq, Place { segment: 1, offset: 0 });
    Ok(())
}

#[test]
fn room_is_made_by_the_oldest_of_the_least_priority_and_never_by_a_higher_one() {
    let mut queues = Queues::new(Bounds { device_max_records: 3, ..bounds() });
    let way = Limits { full: WhenFull::DeadLetterOldest, max_bytes: None };
    for (seq, priority) in [(1, 9), (2, 4), (3, 0)] {
        admit(&mut queues, seq, priority, way, 1_000_000).unwrap();
    }
    assert_eq!(admit(&mut queues, 4, 4, Limits::default(), 1_000_000), Err(NoRoom));
    admit(&mut queues, 4, 4, way, 1_000_000).unwrap();
    admit(&mut queues, 5, 4, way, 1_000_000).unwrap();
    let died: Vec<u64> = queues.dying.iter().map(|dying| dying.seq).collect();
    assert_eq!(died, [3, 2]);
    assert_eq!(admit(&mut queues, 6, 0, way, 1_000_000), Err(NoRoom), "the others are above it");
    let rule = Limits { max_bytes: Some(200), ..way };
    admit(&mut queues, 7, 9, rule, 1_000_000).unwrap();
    assert_eq!(
        queues.totals().records - queues.dying.len() as u64,
        2,
        "a rule's bound goes before the usual one"
    );
}

#[test]
fn a_hub_that_is_closed_gets_nothing_and_one_that_comes_back_is_not_paused_for() {
    let mut queues = Queues::new(bounds());
    let (now, hub) = (Instant::now(), "berlin".into());
    admit(&mut queues, 1, 4, Limits::default(), 1_000_000).unwrap();
    assert!(queues.next(now).is_none());
    queues.set_open(&hub, true);
    for failures in 0..4 {
        let send = queues.next(queues.poll_timeout().unwrap_or(now)).unwrap();
        assert_eq!(send.marked, failures > 0);
        queues.report(send.flight, Ended::Again { pause: None }, now);
    }
    assert_eq!(queues.poll_timeout(), Some(now + Duration::from_millis(800)));
    assert!(queues.next(now).is_none());
    queues.set_open(&hub, false);
    queues.set_open(&hub, true);
    let send = queues.next(now).unwrap();
    queues.report(send.flight, Ended::Again { pause: Some(Duration::from_secs(20)) }, now);
    assert!(queues.next(now + Duration::from_millis(19_999)).is_none());
    assert!(queues.next(now + Duration::from_secs(20)).is_some());
}

#[test]
fn a_queue_does_not_run_too_far_ahead_of_the_disk() {
    let mut queues = Queues::new(Bounds {
        max_records: 2_000,
        device_max_records: 2_000,
        max_bytes: 1 << 20,
        device_max_bytes: 1 << 20,
        ..bounds()
    });
    let (now, hub) = (Instant::now(), "berlin".into());
    queues.set_open(&hub, true);
    (1..=1_000).for_each(|seq| admit(&mut queues, seq, 4, Limits::default(), 1_000_000).unwrap());
    let mut sent = 0;
    while let Some(send) = queues.next(now) {
        assert!(!queues.wants_sync());
        sent += 1;
        queues.report(send.flight, Ended::Done, now);
    }
    assert_eq!(sent, AHEAD);
    assert!(queues.wants_sync());
    queues.synced();
    assert!(queues.next(now).is_some());
}
