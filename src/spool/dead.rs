//! Which dead letters there are: by number, place and size; the oldest go when there are too many.

use std::collections::BTreeMap;

use super::ages::Ages;
use crate::store::Place;

/// The bounds.
#[derive(Clone, Debug)]
pub(super) struct DeadBounds {
    pub(super) max_bytes: u64,
    /// Each takes about 50 bytes of memory.
    pub(super) max_records: u64,
    /// In seconds.
    pub(super) max_age: u64,
}

/// One dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dead {
    pub(super) place: Place,
    pub(super) bytes: u64,
    /// When it died, in seconds since 1970.
    pub(super) died: u64,
}

/// All of them, by sequence number.
#[derive(Debug)]
pub(super) struct DeadLetters {
    bounds: DeadBounds,
    letters: BTreeMap<u64, Dead>,
    bytes: u64,
}

impl DeadLetters {
    /// There are none.
    pub(super) fn new(bounds: DeadBounds) -> Self {
        Self { bounds, letters: BTreeMap::new(), bytes: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.letters.len()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn insert(&mut self, seq: u64, dead: Dead) {
        self.bytes += dead.bytes;
        if let Some(before) = self.letters.insert(seq, dead) {
            self.bytes -= before.bytes;
        }
    }

    pub(super) fn get(&self, seq: u64) -> Option<Dead> {
        self.letters.get(&seq).copied()
    }

    pub(super) fn remove(&mut self, seq: u64) -> Option<Dead> {
        let dead = self.letters.remove(&seq)?;
        self.bytes -= dead.bytes;
        Some(dead)
    }

    /// The log has put a record elsewhere. False if it is none of these.
    pub(super) fn moved(&mut self, seq: u64, place: Place) -> bool {
        self.letters.get_mut(&seq).map(|dead| dead.place = place).is_some()
    }

    /// Those with greater numbers, the oldest first.
    pub(super) fn after(&self, seq: u64) -> impl Iterator<Item = (u64, Dead)> {
        self.letters.range(seq.saturating_add(1)..).map(|(seq, dead)| (*seq, *dead))
    }

    /// Takes out the oldest one, if there are too many, or if it is too old at `now`, in seconds since 1970, as
    /// far as its age is known. The last one is never too large.
    pub(super) fn take_excess(&mut self, now: u64, ages: &Ages) -> Option<(u64, Dead)> {
        let (&seq, oldest) = self.letters.first_key_value()?;
        let many = self.letters.len() as u64;
        let excess = many > self.bounds.max_records
            || self.bytes > self.bounds.max_bytes && many > 1
            || now.saturating_sub(oldest.died) > self.bounds.max_age && ages.tells(seq, oldest.died);
        excess.then(|| self.remove(seq)).flatten().map(|dead| (seq, dead))
    }

    /// Takes out the oldest one, to make room.
    pub(super) fn take_oldest(&mut self) -> Option<(u64, Dead)> {
        let (seq, dead) = self.letters.pop_first()?;
        self.bytes -= dead.bytes;
        Some((seq, dead))
    }

    /// The highest number.
    pub(super) fn newest(&self) -> u64 {
        self.letters.last_key_value().map_or(0, |(seq, _)| *seq)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::spool::keeper::Now;

    const BEGUN: u64 = 1_795_379_735;

    fn letters(bounds: DeadBounds, sizes: &[u64]) -> DeadLetters {
        let mut letters = DeadLetters::new(bounds);
        for (seq, bytes) in (1..).zip(sizes) {
            letters.insert(
                seq,
                Dead { place: Place { segment: 1, offset: 0 }, bytes: *bytes, died: BEGUN + seq },
            );
        }
        letters
    }

    fn excess(letters: &mut DeadLetters, now: u64) -> Vec<u64> {
        let ages = Ages::new(1, 0, Now { at: Instant::now(), unix_ms: BEGUN * 1_000 });
        std::iter::from_fn(|| letters.take_excess(BEGUN + now, &ages)).map(|(seq, _)| seq).collect()
    }

    #[test]
    fn the_oldest_go_first() {
        let bounds = DeadBounds { max_bytes: 100, max_records: 3, max_age: 1_000 };
        assert_eq!(excess(&mut letters(bounds.clone(), &[1, 1, 1]), 4), [0; 0]);
        assert_eq!(excess(&mut letters(bounds.clone(), &[1, 1, 1, 1, 1]), 4), [1, 2]);
        assert_eq!(excess(&mut letters(bounds.clone(), &[60, 30, 20]), 4), [1]);
        assert_eq!(excess(&mut letters(bounds.clone(), &[600]), 4), [0; 0]);
        let mut old = letters(bounds, &[1, 1, 1]);
        assert_eq!(excess(&mut old, 1_002), [1]);
        assert_eq!((old.len(), old.bytes()), (2, 2));
    }

    #[test]
    fn pages_begin_behind_a_number() {
        let bounds = DeadBounds { max_bytes: 100, max_records: 9, max_age: 9 };
        let mut letters = letters(bounds, &[1, 1, 1, 1]);
        letters.remove(3);
        assert_eq!(letters.after(1).map(|(seq, _)| seq).collect::<Vec<_>>(), [2, 4]);
        let place = Place { segment: 7, offset: 7 };
        assert!(letters.moved(4, place) && !letters.moved(3, place));
        assert_eq!(letters.get(4).unwrap().place, place);
        assert_eq!(letters.bytes(), 3);
    }
}
