//! Random lives against a model: devices send, the hub comes and goes, answers late or never, the disk stores, refuses
//! and is drained; in the end every message has one outcome, and nothing was promised that nobody has.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fieldgate_mappings::{Delivery, Outcome, Reason};

use super::world::{Arrived, Mood, World, burying, full, read, rejected, spooling, storing};
use crate::outbound::lanes::ROOM_RETRY;
use crate::spool::{Entry, Refusal, Stored};
use crate::testing::Random;
use crate::upstream::Hears;

const DEVICES: [&str; 3] = ["a", "b", "c"];

/// What the model knows of a message.
struct Sent {
    device: &'static str,
    /// Its order among those of its device counts.
    spools: bool,
    outcome: Option<Outcome>,
}

struct Life {
    seed: u64,
    random: Random,
    world: World,
    sent: BTreeMap<u64, Sent>,
    /// Given to the hub directly and never answered for.
    unanswered: BTreeSet<String>,
    /// The hub refused it.
    refused: BTreeSet<String>,
    /// What the disk has had: its mark and its id.
    stored: BTreeMap<String, (bool, Option<String>)>,
}

impl Life {
    fn new(seed: u64) -> Self {
        Self {
            seed,
            random: Random::new(seed),
            world: World::new(),
            sent: BTreeMap::new(),
            unanswered: BTreeSet::new(),
            refused: BTreeSet::new(),
            stored: BTreeMap::new(),
        }
    }

    fn send(&mut self) {
        let ticket = self.sent.len() as u64 + 1;
        let device = *self.random.pick(&DEVICES);
        let delivery: Option<Delivery> = match self.random.below(10) {
            0..=5 => Some(spooling()),
            6..=7 => Some(storing()),
            8 => Some(burying()),
            _ => None,
        };
        // A device speaks one protocol. The kinds of messages differ in QoS.
        let heard = match device {
            "a" => Hears::Everything,
            _ => Hears::Acceptance,
        };
        let hears = if self.random.chance(4) { Hears::Nothing } else { heard };
        let spools = delivery.as_ref().is_some_and(Delivery::spools);
        self.sent.insert(ticket, Sent { device, spools, outcome: None });
        self.world.send_message(World::message(device, &ticket.to_string(), delivery), hears, ticket);
    }

    /// The hub answers the oldest message of one device.
    fn hub_answers(&mut self) {
        let device = *self.random.pick(&DEVICES);
        let Some(pending) = self.world.hub.borrow_mut().take(device) else { return };
        let outcome = match self.random.below(12) {
            0 => rejected(Reason::Content),
            1 => rejected(Reason::Quota { retry_after: None }),
            _ => Outcome::Accepted,
        };
        match outcome {
            Outcome::Accepted => self.world.hub.borrow_mut().arrives(&pending),
            _ => drop(self.refused.insert(pending.body.clone())),
        }
        pending.verdict.expect("unanswered").report(outcome);
    }

    /// The hub turns a device away with all that it sent and all that waits.
    fn hub_releases(&mut self) {
        let device = *self.random.pick(&DEVICES);
        let mut hub = self.world.hub.borrow_mut();
        let (gone, left) = std::mem::take(&mut hub.pending)
            .into_iter()
            .partition::<std::collections::VecDeque<_>, _>(|pending| pending.device == device);
        hub.pending = left;
        drop(hub);
        for pending in gone {
            pending.verdict.expect("unanswered").report(Outcome::Released);
        }
    }

    fn hub_is_lost(&mut self) {
        {
            let mut hub = self.world.hub.borrow_mut();
            let pending = std::mem::take(&mut hub.pending);
            // The bytes before the cut have arrived.
            let mut before = self.random.below(pending.len() + 1);
            for pending in pending.iter().filter(|pending| pending.sent) {
                self.unanswered.insert(pending.body.clone());
                if before > 0 {
                    before -= 1;
                    hub.arrives(pending);
                }
            }
            hub.pending = pending;
        }
        self.world.hub_is_lost();
    }

    /// The hub gives credit: what waited is sent.
    fn hub_is_back(&mut self) {
        let mut hub = self.world.hub.borrow_mut();
        hub.mood = Mood::Up;
        for pending in &mut hub.pending {
            pending.sent = true;
            pending.verdict.as_mut().expect("unanswered").sent();
        }
    }

    /// The patience of some is over, and of those that wait in order behind them.
    fn patience_ends(&mut self) {
        let now = self.world.now;
        let mut hub = self.world.hub.borrow_mut();
        let over = |device: &str, pending: &std::collections::VecDeque<super::world::Pending>| {
            pending.iter().any(|pending| {
                pending.device == device
                    && !pending.sent
                    && pending.patience.in_order
                    && pending.patience.until <= now
            })
        };
        let ended: Vec<&str> = DEVICES.into_iter().filter(|device| over(device, &hub.pending)).collect();
        let (gone, left) = std::mem::take(&mut hub.pending)
            .into_iter()
            .partition::<std::collections::VecDeque<_>, _>(|pending| {
                let in_order = pending.patience.in_order && ended.contains(&&*pending.device);
                !pending.sent && (in_order || pending.patience.until <= now)
            });
        hub.pending = left;
        drop(hub);
        drop(gone);
    }

    /// The disk answers for the oldest batch.
    fn disk_answers(&mut self) {
        let size = self.world.disk.borrow().batches.front().map_or(0, |batch| batch.len());
        let trouble = self.random.chance(3);
        let mut refused: BTreeSet<String> = BTreeSet::new();
        for _ in 0..size {
            let mut disk = self.world.disk.borrow_mut();
            let device = disk.batches[0][0].entry.record().device.to_string();
            // What is refused to a device is refused to it for the rest of the batch.
            let refuse = refused.contains(&device) || trouble && self.random.chance(3);
            let answer = match refuse {
                false => Stored::Stored,
                true if self.random.chance(2) => full(),
                true => Stored::Refused(Refusal::Failed { retry_after: Duration::from_secs(1) }),
            };
            if refuse {
                refused.insert(device);
            }
            let store = disk.answer(answer).expect("there is one");
            if let (Entry::Message(record), Stored::Stored) = (&store.entry, answer) {
                let (body, id) = read(&record.message);
                let before = self.stored.insert(body.clone(), (record.possibly_delivered, id));
                assert!(before.is_none(), "seed {}: {body} is stored twice", self.seed);
            }
        }
    }

    /// The hub takes some of what the disk holds.
    fn drain(&mut self) {
        if self.world.hub.borrow().mood != Mood::Up {
            return;
        }
        for _ in 0..self.random.below(6) {
            let Some(record) = self.world.disk.borrow_mut().held.pop_front() else { return };
            let (body, id) = read(&record.message);
            let device = record.device.to_string();
            self.world.disk.borrow_mut().forget(&device);
            let marked = record.possibly_delivered;
            self.world.hub.borrow_mut().arrived.push(Arrived { device, body, id, marked });
        }
    }

    fn step(&mut self) {
        match self.random.below(20) {
            0..=6 => self.send(),
            7..=10 => self.hub_answers(),
            11..=13 => self.disk_answers(),
            14..=15 => self.drain(),
            16 => self.hub_is_back(),
            17 => match self.random.below(4) {
                0 => self.hub_is_lost(),
                1 => self.hub_releases(),
                _ => self.world.hub.borrow_mut().mood = Mood::NoCredit,
            },
            18 => {
                self.world.now += Duration::from_millis(self.random.below(2000) as u64);
                self.patience_ends();
            }
            _ => {}
        }
        if self.random.chance(2) {
            self.world.turn();
        }
        self.hear();
    }

    fn hear(&mut self) {
        for (ticket, outcome) in self.world.heard() {
            let sent = self.sent.get_mut(&ticket).expect("it was sent");
            let before = sent.outcome.replace(outcome);
            assert!(before.is_none(), "seed {}: {ticket} has two outcomes", self.seed);
        }
    }

    /// Everything ends well: the hub is there, the disk has room.
    fn end(&mut self) {
        for round in 0.. {
            assert!(round < 1000, "seed {}: there is no end", self.seed);
            self.hub_is_back();
            for device in DEVICES {
                while let Some(pending) = { self.world.hub.borrow_mut().take(device) } {
                    self.world.hub.borrow_mut().arrives(&pending);
                    pending.verdict.expect("unanswered").report(Outcome::Accepted);
                }
            }
            self.world.pass(ROOM_RETRY);
            while !self.world.disk.borrow().batches.is_empty() {
                let mut disk = self.world.disk.borrow_mut();
                let store = disk.answer(Stored::Stored).expect("there is one");
                if let Entry::Message(record) = &store.entry {
                    let (body, id) = read(&record.message);
                    self.stored.insert(body, (record.possibly_delivered, id));
                }
            }
            self.world.turn();
            for _ in 0..10 {
                self.drain();
            }
            self.hear();
            let quiet = self.world.hub.borrow().pending.is_empty() && self.world.disk.borrow().of.is_empty();
            if quiet && self.world.outbound.shared.notes.lanes.borrow().is_empty() {
                return;
            }
        }
    }

    /// The law.
    fn check(&self) {
        let seed = self.seed;
        let hub = self.world.hub.borrow();
        let dead: BTreeSet<String> =
            self.world.disk.borrow().dead.iter().map(|record| read(&record.message).0).collect();
        let mut seen: BTreeMap<&str, Vec<&Arrived>> = BTreeMap::new();
        for arrived in &hub.arrived {
            seen.entry(&arrived.body).or_default().push(arrived);
        }
        for (ticket, sent) in &self.sent {
            let body = ticket.to_string();
            let Some(outcome) = &sent.outcome else { panic!("seed {seed}: {ticket} has no outcome") };
            let arrived = seen.get(&*body).map(Vec::as_slice).unwrap_or_default();
            if *outcome == Outcome::Accepted {
                assert!(!arrived.is_empty() || dead.contains(&body), "seed {seed}: {ticket} is lost");
            }
            if let Some((marked, id)) = self.stored.get(&body) {
                let unknown = self.unanswered.contains(&body);
                assert_eq!(*marked, unknown, "seed {seed}: {ticket} was marked or not");
                if let Some(direct) = hub.ids.get(&body) {
                    assert_eq!(direct, id, "seed {seed}: {ticket} has another id");
                }
            }
            for repeat in arrived.iter().skip(1) {
                assert!(repeat.marked, "seed {seed}: {ticket} came again without a mark");
                assert_eq!(repeat.id, arrived[0].id, "seed {seed}: {ticket} came again as another");
            }
            if self.refused.contains(&body) && *outcome == Outcome::Accepted {
                let on_disk = self.stored.contains_key(&body);
                assert!(dead.contains(&body) || on_disk, "seed {seed}: {ticket} was refused");
            }
        }
        self.check_order(&hub.arrived);
    }

    /// First deliveries of a device come in its order, over whichever way.
    fn check_order(&self, arrived: &[Arrived]) {
        for device in DEVICES {
            let mut last = 0;
            let mut known = BTreeSet::new();
            for arrived in arrived.iter().filter(|arrived| arrived.device == device) {
                let ticket: u64 = arrived.body.parse().unwrap();
                let sent = &self.sent[&ticket];
                assert_eq!(sent.device, device);
                // A quota sends a message another way than those that went with it.
                if !known.insert(ticket) || !sent.spools || self.refused.contains(&arrived.body) {
                    continue;
                }
                assert!(last < ticket, "seed {}: {device}'s {ticket} came after {last}", self.seed);
                last = ticket;
            }
        }
    }
}

#[test]
fn random_lives_keep_the_law() {
    let mut stored = 0;
    let mut repeated = 0;
    for seed in 0..2_000 {
        let mut life = Life::new(seed);
        for _ in 0..300 {
            life.step();
        }
        life.end();
        life.check();
        stored += life.stored.len();
        repeated += life.world.hub.borrow().arrived.iter().filter(|arrived| arrived.marked).count();
    }
    assert!(
        stored > 50_000 && repeated > 2_000,
        "{stored} were stored, {repeated} marked: too few to prove much"
    );
}

#[test]
fn whoever_is_cut_off_in_the_middle_is_told_nothing_untrue() {
    for seed in 10_000..11_000 {
        let mut life = Life::new(seed);
        for _ in 0..life.random.below(300) {
            life.step();
        }
        life.world.outbound.abandon();
        life.hear();
        let handed: BTreeSet<String> = {
            let disk = life.world.disk.borrow();
            let records = disk.batches.iter().flatten().map(|store| store.entry.record());
            let all = records.chain(&disk.held).chain(&disk.dead).map(|record| read(&record.message).0);
            all.collect()
        };
        let hub = life.world.hub.borrow();
        let arrived: BTreeSet<&str> = hub.arrived.iter().map(|arrived| &*arrived.body).collect();
        let with_hub: BTreeSet<&str> = hub.pending.iter().map(|pending| &*pending.body).collect();
        for (ticket, sent) in &life.sent {
            let body = ticket.to_string();
            let somewhere = arrived.contains(&*body) || handed.contains(&body);
            match &sent.outcome {
                Some(Outcome::Accepted) => assert!(somewhere, "seed {seed}: {ticket} is lost"),
                Some(_) => {}
                // Neither way of ours: it went to the hub as it was.
                None => assert!(with_hub.contains(&*body), "seed {seed}: {ticket} has no outcome"),
            }
        }
    }
}
