//! Random lives: whatever happens, what was committed and not settled is there.

use std::collections::{BTreeMap, BTreeSet};

use super::super::sim::{Fault, Loss, SimDisk};
use super::super::{AppendError, Log, Settings};
use super::{Held, Random, SEGMENT, body, open, settings};

/// What the log was told, and what it may therefore answer.
#[derive(Default)]
struct Model {
    /// Committed, and not settled.
    there: BTreeMap<u64, Vec<u8>>,
    /// Settled, without a commit since: a crash may bring them back.
    undone: BTreeMap<u64, Vec<u8>>,
    /// Appended, in the commit under way or in one that failed: there whole or not at all.
    perhaps: BTreeMap<u64, Vec<u8>>,
    /// Appended since the last commit.
    pending: Vec<u64>,
    /// The highest number given since the last crash.
    highest: u64,
    /// The highest number of a record that was committed, ever.
    highest_committed: u64,
}

struct Life {
    random: Random,
    disk: SimDisk,
    held: Held<SimDisk>,
    model: Model,
    settings: Settings,
    /// Of a thousand steps, how many are crashes, and how many order a fault.
    roughness: u64,
    /// Faults may be waiting to strike.
    faults: bool,
    crashes: u32,
    failures: u32,
    full: u32,
    moved: u32,
}

impl Life {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let segments = 5 + random.below(12);
        let disk = SimDisk::new(seed, (segments + 2) * u64::from(SEGMENT));
        let max_batch_bytes = 2048 << random.below(5);
        let settings = Settings { max_batch_bytes, ..settings(segments) };
        let roughness = [1, 4, 25][random.below(3) as usize];
        let (held, bodies, _) = open(disk.clone(), settings.clone());
        assert!(bodies.is_empty());
        let model = Model::default();
        Self {
            random,
            disk,
            held,
            model,
            settings,
            roughness,
            faults: false,
            crashes: 0,
            failures: 0,
            full: 0,
            moved: 0,
        }
    }

    fn step(&mut self) {
        let random = self.random.below(1000);
        match random {
            0..420 => self.append(),
            420..570 => self.commit(),
            570..770 => self.settle(),
            770..800 => self.read(),
            800..910 => _ = self.tend(),
            910..920 => self.tend_to_the_end(),
            920..924 => self.reopen(),
            924..930 => {
                let segments = self.random.below(self.settings.max_bytes / u64::from(SEGMENT) + 3);
                self.disk.set_capacity(segments * u64::from(SEGMENT));
            }
            _ if random - 930 < self.roughness => self.crash(),
            _ if random - 930 < 2 * self.roughness => self.fault(),
            _ => _ = self.tend(),
        }
    }

    fn append(&mut self) {
        let len = match self.random.below(20) {
            0 => self.random.below(20_000),
            1 => 0,
            _ => self.random.below(600),
        };
        let bytes = body(self.random.below(1 << 40), len as usize);
        let middle = self.random.below(len + 1) as usize;
        match self.held.log.append(&[&bytes[..middle], &bytes[middle..]]) {
            Ok((seq, place)) => {
                let highest = self.model.highest.max(self.model.highest_committed);
                assert!(seq > highest, "no number is used twice");
                self.held.places.insert(seq, place);
                self.model.highest = seq;
                self.model.perhaps.insert(seq, bytes);
                self.model.pending.push(seq);
            }
            Err(AppendError::CommitFirst) => self.commit(),
            Err(AppendError::Full { .. } | AppendError::DiskFull) => self.full += 1,
            Err(AppendError::Io(error)) => assert!(self.faults, "{error}"),
            Err(error) => panic!("{error}"),
        }
    }

    fn commit(&mut self) {
        let settles = self.held.log.settles_waiting();
        match self.held.log.commit() {
            Ok(()) => self.committed(),
            Err(error) => {
                assert!(self.faults, "{error}");
                assert!(self.held.log.settles_waiting() >= settles, "settles are kept");
                self.failures += 1;
                for seq in self.model.pending.drain(..) {
                    self.held.places.remove(&seq);
                }
            }
        }
    }

    fn committed(&mut self) {
        if !self.model.pending.is_empty() {
            let pending: BTreeSet<u64> = self.model.pending.drain(..).collect();
            self.model.highest_committed = *pending.last().unwrap();
            // A commit that failed before this one is void for ever.
            for (seq, bytes) in std::mem::take(&mut self.model.perhaps) {
                if pending.contains(&seq) {
                    self.model.there.insert(seq, bytes);
                }
            }
        }
        if self.held.log.settles_waiting() == 0 {
            self.model.undone.clear();
        }
    }

    fn some(&mut self) -> Option<u64> {
        let (first, last) = (*self.model.there.first_key_value()?.0, *self.model.there.last_key_value()?.0);
        let from = first + self.random.below(last - first + 1);
        self.model.there.range(from..).next().map(|(seq, _)| *seq)
    }

    fn settle(&mut self) {
        // Mostly in order, some at random; a few are stuck for long.
        for _ in 0..1 + self.random.below(6) {
            let seq = match self.random.below(4) {
                0 => self.some(),
                _ => self.model.there.keys().find(|seq| *seq % 23 != 0).copied(),
            };
            let Some(seq) = seq else { return };
            if seq % 23 == 0 && !self.random.once_in(20) {
                continue;
            }
            self.held.settle(seq);
            let bytes = self.model.there.remove(&seq).unwrap();
            self.model.undone.insert(seq, bytes);
        }
    }

    fn read(&mut self) {
        if let Some(seq) = self.some() {
            assert_eq!(self.held.read(seq), self.model.there[&seq]);
        }
    }

    /// One step. Whether another should follow at once.
    fn tend(&mut self) -> bool {
        let pending = self.held.log.bytes_waiting() > 0;
        let Held { log, places } = &mut self.held;
        let mut moved = 0;
        let more = log.tend(|seq, place| {
            *places.get_mut(&seq).expect("only what lives moves") = place;
            moved += 1;
        });
        self.moved += moved;
        match &more {
            Ok(_) => assert!(!pending || moved == 0),
            Err(error) => assert!(self.faults, "{error}"),
        }
        if self.held.log.settles_waiting() == 0 {
            self.model.undone.clear();
        }
        more.unwrap_or(false)
    }

    /// As the owner does while it is told that there is more to do.
    fn tend_to_the_end(&mut self) {
        let steps = (0..2_000).take_while(|_| self.tend()).count();
        assert!(steps < 2_000, "it gives space back for ever");
    }

    fn fault(&mut self) {
        let kinds = [Fault::Write, Fault::FullWrite, Fault::Sync, Fault::Directory, Fault::Truncate];
        let kind = kinds[self.random.below(5) as usize];
        self.disk.fail(kind, self.random.below(4) as u32);
        self.faults = true;
    }

    fn crash(&mut self) {
        let loss = [Loss::None, Loss::All, Loss::Half][self.random.below(3) as usize];
        self.crashes += 1;
        self.again(loss);
    }

    fn reopen(&mut self) {
        self.commit();
        let (log, _) = Log::open(SimDisk::new(0, 0), settings(4), |_| ()).unwrap();
        let closed = std::mem::replace(&mut self.held.log, log).close();
        assert!(closed.is_ok() || self.faults);
        self.again(Loss::None);
    }

    fn again(&mut self, loss: Loss) {
        self.disk = self.disk.crash(loss);
        self.faults = false;
        let (held, bodies, report) = open(self.disk.clone(), self.settings.clone());
        self.held = held;
        assert_eq!((report.damaged, report.lost), (0, 0), "a crash is no damage: {report:?}");
        let Model { there, undone, perhaps, pending, .. } = &mut self.model;
        for (seq, bytes) in there.iter() {
            assert!(bodies.get(seq) == Some(bytes), "{seq} was committed, and is not there as it was");
        }
        let mut cut = false;
        for seq in pending.drain(..) {
            let here = bodies.contains_key(&seq);
            assert!(!here || !cut, "{seq} is there, and what was appended before it is not");
            cut |= !here;
        }
        for (seq, bytes) in bodies {
            there.entry(seq).or_insert_with(|| {
                let known = undone.get(&seq).or_else(|| perhaps.get(&seq));
                assert!(known == Some(&bytes), "{seq} should not be there");
                bytes
            });
        }
        undone.clear();
        perhaps.clear();
        for seq in self.held.places.clone().into_keys() {
            assert_eq!(self.held.read(seq), self.model.there[&seq]);
        }
        self.model.highest = self.model.there.keys().next_back().copied().unwrap_or(0);
        self.model.highest_committed = self.model.highest_committed.max(self.model.highest);
    }
}

#[test]
fn what_was_committed_and_not_settled_is_there() {
    let mut seen = (0, 0, 0, 0);
    for seed in 0..300 {
        let mut life = Life::new(seed);
        for _ in 0..1500 {
            life.step();
        }
        life.crash();
        seen = (seen.0 + life.crashes, seen.1 + life.failures, seen.2 + life.full, seen.3 + life.moved);
    }
    assert!(seen.0 > 1000 && seen.1 > 200 && seen.2 > 1000 && seen.3 > 1000, "{seen:?}");
}
