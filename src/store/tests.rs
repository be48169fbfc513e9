//! What the log promises, on a disk that crashes, fills, fails and forgets, and on real files.

mod damage;
mod files;
mod lives;
mod refused;
mod reserve;
mod space;

use std::collections::BTreeMap;

use super::sim::SimDisk;
use super::{Disk, Log, Place, Report, Settings};

const SEGMENT: u32 = 64 << 10;

/// Small segments, of which there may be as many.
fn settings(segments: u64) -> Settings {
    Settings { segment_bytes: SEGMENT, max_bytes: segments * u64::from(SEGMENT), max_batch_bytes: 32 << 10 }
}

/// A log, and what its caller knows of the records in it.
struct Held<D: Disk> {
    log: Log<D>,
    places: BTreeMap<u64, Place>,
}

/// Opens, and gives the bodies of what lives.
fn open<D: Disk>(disk: D, settings: Settings) -> (Held<D>, BTreeMap<u64, Vec<u8>>, Report) {
    let mut places = BTreeMap::new();
    let mut bodies = BTreeMap::new();
    let (log, report) = Log::open(disk, settings, |found| {
        assert_eq!(places.insert(found.seq, found.place), None, "each record is shown once");
        bodies.insert(found.seq, found.body.to_vec());
    })
    .unwrap();
    assert_eq!(report.records, places.len() as u64);
    (Held { log, places }, bodies, report)
}

impl<D: Disk> Held<D> {
    /// Appends, committing where that is asked for, and gives the sequence number.
    fn append(&mut self, body: &[u8]) -> Result<u64, super::AppendError> {
        loop {
            match self.log.append(&[body]) {
                Ok((seq, place)) => {
                    self.places.insert(seq, place);
                    return Ok(seq);
                }
                Err(super::AppendError::CommitFirst) => self.log.commit().unwrap(),
                Err(refused) => return Err(refused),
            }
        }
    }

    fn settle(&mut self, seq: u64) {
        let place = self.places.remove(&seq).unwrap();
        self.log.settle(seq, place);
    }

    fn read(&mut self, seq: u64) -> Vec<u8> {
        let mut body = Vec::new();
        self.log.read(self.places[&seq], seq, &mut body).unwrap();
        body
    }

    fn tend(&mut self) {
        let places = &mut self.places;
        while self
            .log
            .tend(|seq, place| {
                // What was settled meanwhile does not move.
                *places.get_mut(&seq).unwrap() = place;
            })
            .unwrap()
        {}
    }
}

/// A body that says whose it is.
fn body(seq_like: u64, len: usize) -> Vec<u8> {
    (0..len).map(|at| (seq_like.wrapping_mul(0x9e37_79b9) >> (at % 4 * 8)) as u8 ^ at as u8).collect()
}

/// Pseudo-random numbers of a seed (xorshift).
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    /// True once in so many times.
    fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

fn big_disk(seed: u64) -> SimDisk {
    SimDisk::new(seed, u64::MAX)
}
