//! What is settled and not yet written, and how it is written: ranges, grouped by the segment of the records.

use std::collections::BTreeMap;

/// Settles that one record may carry; in the worst case it takes 17 bytes for each.
const MAX_OF_ONE_RECORD: usize = 1024;

/// Settled sequence numbers, by the segment where their records lie.
#[derive(Debug, Default)]
pub(super) struct Settles {
    groups: BTreeMap<u32, Vec<u64>>,
    len: usize,
}

impl Settles {
    pub(super) fn add(&mut self, segment: u32, seq: u64) {
        self.groups.entry(segment).or_default().push(seq);
        self.len += 1;
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The segment is gone, and nothing in it needs settling any more.
    pub(super) fn forget(&mut self, segment: u32) {
        self.len -= self.groups.remove(&segment).map_or(0, |group| group.len());
    }

    /// Takes out as many as one record may carry.
    pub(super) fn take(&mut self) -> Self {
        if self.len <= MAX_OF_ONE_RECORD {
            return std::mem::take(self);
        }
        let mut taken = Self::default();
        while taken.len < MAX_OF_ONE_RECORD {
            let mut group = self.groups.first_entry().expect("there are more than can be taken");
            let rest = group.get_mut();
            let kept = rest.len().saturating_sub(MAX_OF_ONE_RECORD - taken.len);
            let part = rest.split_off(kept);
            taken.len += part.len();
            taken.groups.insert(*group.key(), part);
            if kept == 0 {
                group.remove();
            }
        }
        self.len -= taken.len;
        taken
    }

    pub(super) fn put_back(&mut self, taken: Self) {
        self.len += taken.len;
        for (segment, mut seqs) in taken.groups {
            self.groups.entry(segment).or_default().append(&mut seqs);
        }
    }

    /// The segments whose records are settled.
    pub(super) fn segments(&self) -> impl Iterator<Item = u32> {
        self.groups.keys().copied()
    }

    /// The body of a record that says so.
    pub(super) fn encode(&mut self) -> Vec<u8> {
        let mut body = Vec::with_capacity(16 + 2 * self.len);
        for (&segment, seqs) in &mut self.groups {
            seqs.sort_unstable();
            seqs.dedup();
            put(&mut body, u64::from(segment));
            put(&mut body, ranges(seqs).count() as u64);
            let mut end = 0;
            for range in ranges(seqs) {
                put(&mut body, range[0] - end);
                put(&mut body, range.len() as u64 - 1);
                end = range[0] + range.len() as u64;
            }
        }
        self.len = self.groups.values().map(Vec::len).sum();
        body
    }
}

fn ranges(sorted: &[u64]) -> impl Iterator<Item = &[u64]> {
    sorted.chunk_by(|one, next| one + 1 == *next)
}

/// Reads what [`Settles::encode`] wrote: segment, first and last of each range. `None` where it is none.
pub(super) fn decode(mut body: &[u8], mut each: impl FnMut(u32, u64, u64)) -> Option<()> {
    while !body.is_empty() {
        let segment = u32::try_from(get(&mut body)?).ok()?;
        let mut end = 0u64;
        for _ in 0..get(&mut body)? {
            let first = end.checked_add(get(&mut body)?)?;
            let last = first.checked_add(get(&mut body)?)?;
            each(segment, first, last);
            end = last.checked_add(1)?;
        }
    }
    Some(())
}

fn put(into: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        into.push(number as u8 | 0x80);
        number >>= 7;
    }
    into.push(number as u8);
}

fn get(from: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = from.split_first()?;
        *from = rest;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(body: &[u8]) -> Option<Vec<(u32, u64, u64)>> {
        let mut all = Vec::new();
        decode(body, |segment, first, last| all.push((segment, first, last)))?;
        Some(all)
    }

    #[test]
    fn neighbours_become_ranges_whatever_their_order() {
        let mut settles = Settles::default();
        for (segment, seq) in [(7, 12), (7, 10), (3, u64::MAX - 1), (7, 11), (7, 11), (7, 20), (3, 0)] {
            settles.add(segment, seq);
        }
        assert_eq!(settles.len(), 7);
        let body = settles.encode();
        assert_eq!(settles.len(), 6, "one was there twice");
        let most = u64::MAX - 1;
        assert_eq!(decoded(&body).unwrap(), [(3, 0, 0), (3, most, most), (7, 10, 12), (7, 20, 20)]);
        for cut in 1..body.len() {
            let _ = decoded(&body[..cut]);
        }
        assert_eq!(decoded(&body[..body.len() - 1]), None);
    }

    #[test]
    fn a_thousand_in_a_row_take_a_few_bytes() {
        let mut settles = Settles::default();
        (1_000_000..1_001_000).for_each(|seq| settles.add(9, seq));
        assert!(settles.encode().len() <= 8);
    }

    #[test]
    fn more_than_a_record_carries_is_taken_in_parts_and_can_be_put_back() {
        let mut settles = Settles::default();
        (0..20_000).for_each(|seq| settles.add(seq as u32 / 3000, seq));
        let mut seen = vec![0; 20_000];
        let first = settles.take();
        settles.put_back(first);
        while !settles.is_empty() {
            let mut taken = settles.take();
            assert!(taken.len() <= MAX_OF_ONE_RECORD);
            for (segment, first, last) in decoded(&taken.encode()).unwrap() {
                for seq in first..=last {
                    assert_eq!(segment, seq as u32 / 3000);
                    seen[seq as usize] += 1;
                }
            }
        }
        assert!(seen.iter().all(|times| *times == 1));
    }

    #[test]
    fn bytes_that_are_none_are_refused() {
        for bad in [&[1][..], &[1, 1], &[1, 1, 1], &[0x80; 12], &[0xff, 0xff, 0xff, 0xff, 0x7f, 0]] {
            assert_eq!(decoded(bad), None, "{bad:?}");
        }
    }
}
