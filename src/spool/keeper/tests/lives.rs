//! Random lives: a spool whose process dies, whose disk fills and fails, whose hub comes and goes.
//!
//! Laws: what a worker was told is stored reaches the hub or is a dead letter; what it was told is refused does not
//! reach the hub, unless the process died before the disk worked again; what the hub gets without a mark it gets for the first time, and in the order of its device and
//! priority.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::*;
use crate::store::sim::Fault;
use crate::testing::Random;

#[derive(Default)]
struct Ledger {
    /// What was handed in, by ticket.
    given: BTreeMap<u64, (usize, u8)>,
    stored: BTreeSet<u64>,
    refused: BTreeSet<u64>,
    /// Refused by a disk that has not worked since: of these a crash may leave some.
    failed: BTreeSet<u64>,
    at_hub: BTreeSet<u64>,
    /// What became a dead letter, whether or not that was kept.
    dead: BTreeSet<u64>,
    /// Up to which dead letter `dead` goes.
    dead_up_to: u64,
    /// The last one that came without a mark.
    last: HashMap<(usize, u8), u64>,
}

impl Ledger {
    fn answered(&mut self, answers: Vec<(u64, Stored)>) {
        for (ticket, answer) in answers {
            let new = match answer {
                Stored::Stored => {
                    self.failed.clear();
                    self.stored.insert(ticket)
                }
                Stored::Refused(refusal) => {
                    if let Refusal::Failed { .. } = refusal {
                        self.failed.insert(ticket);
                    }
                    self.refused.insert(ticket)
                }
            };
            assert!(new, "{ticket} is answered twice");
        }
    }

    fn got(&mut self, text: &str, marked: bool) {
        let ticket: u64 = text.split_whitespace().next().unwrap().parse().unwrap();
        assert!(!self.refused.contains(&ticket), "{ticket} was refused, and is sent");
        if !marked {
            let last = self.last.entry(self.given[&ticket]).or_default();
            assert!(*last < ticket, "{ticket} came behind {last}");
            *last = ticket;
        }
        let new = self.at_hub.insert(ticket);
        assert!(new || marked, "{ticket} came again without a mark");
    }
}

struct Life {
    world: World,
    random: Random,
    ledger: Ledger,
    given: u64,
    refused: usize,
    restarts: usize,
}

impl Life {
    fn step(&mut self) {
        match self.random.below(100) {
            0..30 => self.submit(),
            30..55 => {
                self.world.turn();
                self.listen();
                self.bury();
            }
            55..65 => self.world.send(),
            65..85 => self.answer(),
            85..90 => {
                let millis = *self.random.pick(&[1, 50, 200, 1_500]);
                self.world.pass(millis);
            }
            90..93 => {
                let open = self.random.chance(2);
                self.world.open(open);
            }
            93..95 => self.trouble(),
            95..96 => self.restart(),
            _ => self.world.pass(3),
        }
    }

    fn submit(&mut self) {
        let batch = 1 + self.random.below(6);
        let mut stores = Vec::new();
        for _ in 0..batch {
            self.given += 1;
            let (of, priority) = (self.random.below(4), *self.random.pick(&[4, 4, 9]));
            let filler = "x".repeat(self.random.below(2_000));
            let record = record(of, priority, &format!("{} {filler}", self.given));
            let full = if self.random.chance(8) { WhenFull::DeadLetterOldest } else { WhenFull::RefuseNew };
            let limits = Limits { max_bytes: self.random.chance(4).then_some(40_000), full };
            self.ledger.given.insert(self.given, (of, priority));
            stores.push(Store { ticket: self.given, entry: Entry::Message(record), limits });
        }
        self.world.spool.submit(&self.world.mailbox, stores);
    }

    fn listen(&mut self) {
        let answers = self.world.answers();
        self.refused += answers.iter().filter(|(_, answer)| *answer != Stored::Stored).count();
        self.ledger.answered(answers);
    }

    fn answer(&mut self) {
        let (outcome, at_hub) = match self.random.below(12) {
            0..8 => (Outcome::Accepted, true),
            8 => (Outcome::Unknown, self.random.chance(2)),
            9 => (Outcome::Released, false),
            10 => (World::rejected(), false),
            _ => (Outcome::Rejected(Rejection::new(Reason::Quota { retry_after: None }, "later")), false),
        };
        if let Some((text, marked)) = self.world.answer(outcome)
            && at_hub
        {
            self.ledger.got(&text, marked);
        }
    }

    fn trouble(&mut self) {
        match self.random.below(4) {
            0 => self.world.disk.fail(Fault::Sync, self.random.below(3) as u32),
            1 => self.world.disk.fail(Fault::Write, self.random.below(3) as u32),
            2 => self.world.disk.set_capacity(900 << 10),
            _ => self.world.disk.set_capacity(64 << 20),
        }
    }

    fn restart(&mut self) {
        self.restarts += 1;
        // What was on its way got there, or not.
        while self.random.chance(2)
            && let Some((_, message, count)) = self.world.in_flight.pop_front()
        {
            let text = String::from_utf8(message.body.to_vec()).unwrap();
            self.ledger.got(&text, count > 0);
        }
        self.listen();
        self.bury();
        assert_eq!(self.world.keeper.tending.forgone, 0, "each has its dead letter");
        for ticket in std::mem::take(&mut self.ledger.failed) {
            self.ledger.refused.remove(&ticket);
        }
        let loss = *self.random.pick(&[Loss::None, Loss::All, Loss::Half]);
        self.world.restart(loss);
    }

    fn finish(mut self) -> Self {
        self.world.disk.set_capacity(64 << 20);
        self.world.open(true);
        for _ in 0..400 {
            self.world.turn();
            self.listen();
            self.bury();
            self.world.pass(1_000);
            self.world.send();
            while let Some((text, marked)) = self.world.answer(Outcome::Accepted) {
                self.ledger.got(&text, marked);
            }
        }
        assert_eq!(self.world.keeper.queues.totals().records, 0);
        for of in 0..4 {
            assert!(!self.world.spool.holds(HUB, &device(of)));
        }
        let dead = &self.ledger.dead;
        let missing: Vec<_> = self
            .ledger
            .stored
            .iter()
            .filter(|ticket| !self.ledger.at_hub.contains(ticket) && !dead.contains(ticket))
            .collect();
        assert!(missing.is_empty(), "stored and gone: {missing:?}");
        assert!(dead.is_disjoint(&self.ledger.refused), "refused, and a dead letter");
        self
    }

    /// Writes down the tickets of dead letters that are new.
    fn bury(&mut self) {
        let after = self.ledger.dead_up_to;
        let seqs: Vec<u64> = self.world.keeper.dead.after(after).map(|(seq, _)| seq).collect();
        for seq in seqs {
            let dead = self.world.keeper.dead.get(seq).unwrap();
            self.world.keeper.log.read(dead.place, seq, &mut self.world.keeper.body).unwrap();
            let body = crate::spool::record::Body::decode(&self.world.keeper.body).unwrap();
            let sections = Bytes::copy_from_slice(body.message);
            let message = amqp::decode(device(0), address(&device(0)), &sections).unwrap();
            let text = String::from_utf8(message.body.to_vec()).unwrap();
            self.ledger.dead.insert(text.split_whitespace().next().unwrap().parse().unwrap());
            self.ledger.dead_up_to = seq;
        }
    }
}

#[test]
fn random_lives_keep_the_laws() {
    let (mut stored, mut refused, mut restarts, mut dead) = (0, 0, 0, 0);
    for seed in 0..60 {
        let mut world = World::new(seed);
        world.settings.dead.max_records = 100_000;
        world.settings.dead.max_bytes = 100 << 20;
        world.restart(Loss::None);
        let random = Random::new(seed);
        let mut life = Life { world, random, ledger: Ledger::default(), given: 0, refused: 0, restarts: 0 };
        (0..1_000).for_each(|_| life.step());
        let life = life.finish();
        stored += life.ledger.stored.len();
        (refused, restarts) = (refused + life.refused, restarts + life.restarts);
        dead += life.ledger.dead.len();
    }
    let busy = stored > 20_000 && refused > 500 && restarts > 300 && dead > 300;
    assert!(busy, "{stored} {refused} {restarts} {dead}: the lives are too quiet to mean something");
}
