//! Reading a segment from its first record to its end, across damage.

use super::format::{Kind, RECORD_HEADER, RECORDS, RecordHeader, Salt};

/// What a disk writes wholly or not at all, at the least.
const SECTOR: u32 = 512;

/// A record that checks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Item {
    pub(super) offset: u32,
    pub(super) header: RecordHeader,
}

impl Item {
    pub(super) fn body<'a>(&self, segment: &'a [u8]) -> &'a [u8] {
        let start = self.offset as usize + RECORD_HEADER;
        &segment[start..start + self.header.len as usize]
    }
}

/// Bytes where no record checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hole {
    pub(super) offset: u32,
    pub(super) bytes: u32,
    /// The header, where that is sound and the body is not.
    header: Option<RecordHeader>,
}

/// What stands in a segment.
#[derive(Debug)]
pub(super) struct Scan {
    pub(super) items: Vec<Item>,
    pub(super) holes: Vec<Hole>,
    /// Behind the last record, or behind the hole that is known to be the last.
    pub(super) end: u32,
    /// Whether nothing was to follow.
    pub(super) sealed: bool,
    /// Whether something other than zeros stands at the end.
    pub(super) torn: bool,
    /// Where the last record ends that checks and does not count, because it stands behind a torn commit or behind the
    /// seal; not behind `end` if there is none.
    pub(super) stale: u32,
}

/// Reads the records of a segment. `bytes` is all of it, its header included, up to its end where that is `known`.
pub(super) fn scan(bytes: &[u8], salt: Salt, known: bool) -> Scan {
    let mut scan =
        Scan { items: Vec::new(), holes: Vec::new(), end: RECORDS, sealed: false, torn: false, stale: 0 };
    let limit = bytes.len() as u32;
    let mut offset = RECORDS;
    while offset < limit && !scan.sealed {
        match header_at(bytes, salt, offset) {
            Some(header) => {
                let item = Item { offset, header };
                if crc32fast::hash(item.body(bytes)) == header.body_crc {
                    scan.sealed = header.kind == Kind::Seal;
                    scan.items.push(item);
                } else {
                    scan.holes.push(Hole { offset, bytes: header.total(), header: Some(header) });
                }
                offset += header.total();
                scan.end = offset;
            }
            None => {
                let next = (offset + 1..limit).find(|next| header_at(bytes, salt, *next).is_some());
                if next.is_none() && !known {
                    break;
                }
                let next = next.unwrap_or(limit);
                scan.holes.push(Hole { offset, bytes: next - offset, header: None });
                offset = next;
                scan.end = next;
            }
        }
    }
    let tail = &bytes[(scan.end.min(limit)) as usize..];
    scan.torn = !scan.sealed && tail.iter().take(RECORD_HEADER).any(|byte| *byte != 0);
    if scan.sealed && !known {
        // A commit over the seal of the last process may be there without its first sector.
        let last = (scan.end..limit).rev().find_map(|at| Some(at + header_at(bytes, salt, at)?.total()));
        scan.stale = last.unwrap_or(0);
    }
    scan
}

fn header_at(bytes: &[u8], salt: Salt, offset: u32) -> Option<RecordHeader> {
    let header = RecordHeader::decode(&bytes[offset as usize..], salt, offset)?;
    (header.total() as usize <= bytes.len() - offset as usize).then_some(header)
}

impl Scan {
    /// For the newest segment: takes away the torn tail, that is the first hole in the last commit and what follows it.
    /// A hole in front of a later commit was durable once, and stays damage. So does one that no crash can have made.
    pub(super) fn cut_torn_tail(&mut self) {
        if self.sealed {
            return;
        }
        let items = self.items.iter().map(|item| (item.offset, item.header));
        let holes = self.holes.iter().filter_map(|hole| Some((hole.offset, hole.header?)));
        let last_commit = items
            .chain(holes)
            .filter(|(_, header)| header.first)
            .map(|(offset, _)| offset)
            .max()
            .unwrap_or(RECORDS);
        let in_last = self.holes.iter().filter(|hole| hole.offset >= last_commit);
        let Some(torn) = in_last.filter(|hole| !self.was_written(hole)).map(|hole| hole.offset).min() else {
            return;
        };
        self.items.retain(|item| item.offset < torn);
        self.holes.retain(|hole| hole.offset < torn);
        (self.stale, self.end) = (self.end, torn);
        self.torn = true;
    }

    /// Whether a hole of the last commit was written whole: more of the commit stands behind it, so that no write broke
    /// off there, and each sector that it touches was written, for which a sound header in it speaks. None that stood
    /// there before has the right checksum; headers in front of the hole may be of an earlier commit, and bytes of bodies
    /// may be there by chance.
    fn was_written(&self, hole: &Hole) -> bool {
        let items = self.items.iter().map(|item| item.offset);
        let holes = self.holes.iter().filter(|hole| hole.header.is_some()).map(|hole| hole.offset);
        let sound: Vec<u32> = items.chain(holes).filter(|offset| *offset >= hole.offset).collect();
        let sector = |offset: u32| offset / SECTOR;
        let is_in = |header: u32, this: u32| {
            sector(header) == this && sector(header + RECORD_HEADER as u32 - 1) == this
        };
        let end = hole.offset + hole.bytes;
        sound.iter().any(|header| *header >= end)
            && (sector(hole.offset)..=sector(end - 1))
                .all(|this| sound.iter().any(|header| is_in(*header, this)))
    }

    /// How many records are known to be missing, by the gaps between sequence numbers and by headers without a body.
    /// Settles without content say that a process began here, with numbers that leave some out.
    pub(super) fn lost(&self) -> u64 {
        let mut lost = 0;
        let mut expected = 0;
        for Item { header, .. } in &self.items {
            if header.kind != Kind::Settle || header.len > 0 {
                lost += u64::from(header.delta.saturating_sub(expected));
            }
            expected = header.delta + u32::from(header.kind == Kind::Record);
        }
        let copies =
            self.holes.iter().filter(|hole| hole.header.is_some_and(|header| header.kind == Kind::Copy));
        let behind = self.holes.iter().filter(|hole| {
            hole.header.is_some_and(|header| header.kind == Kind::Record && header.delta >= expected)
        });
        lost + copies.count() as u64 + behind.count() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::super::batch::Batch;
    use super::super::format::SegmentHeader;
    use super::*;

    fn salt() -> Salt {
        let header = SegmentHeader {
            log_id: 1,
            nonce: 2,
            number: 3,
            bytes: 1 << 20,
            base_seq: 1,
            previous: 0,
            previous_end: 0,
            previous_broken: false,
        };
        header.encode().1
    }

    /// Commits of three records of 20 bytes each; where each record stands.
    fn segment(commits: u32, seal: bool) -> (Vec<u8>, Vec<usize>) {
        segment_of([20; 3], commits, seal)
    }

    /// Commits of three records each, of so many bytes.
    fn segment_of(records: [usize; 3], commits: u32, seal: bool) -> (Vec<u8>, Vec<usize>) {
        let mut bytes = vec![0; RECORDS as usize];
        let mut places = Vec::new();
        for commit in 0..commits {
            let mut batch = Batch::default();
            for (delta, len) in (commit * 3..).zip(records) {
                let body = vec![delta as u8 + 1; len];
                places.push(batch.push(Kind::Record, salt(), bytes.len() as u32, delta, &[&body]) as usize);
            }
            let start = bytes.len() as u32;
            bytes.extend_from_slice(batch.padded(0));
            assert_eq!(start as usize, places[places.len() - 3]);
        }
        if seal {
            let mut batch = Batch::default();
            batch.push(Kind::Seal, salt(), bytes.len() as u32, commits * 3, &[]);
            bytes.extend_from_slice(batch.padded(0));
        }
        bytes.extend_from_slice(&[0; 100]);
        (bytes, places)
    }

    fn deltas(scan: &Scan) -> Vec<u32> {
        let records = scan.items.iter().filter(|item| item.header.kind == Kind::Record);
        records.map(|item| item.header.delta).collect()
    }

    #[test]
    fn a_sound_segment_has_all() {
        let (bytes, _) = segment(2, true);
        let mut scan = scan(&bytes, salt(), false);
        scan.cut_torn_tail();
        assert_eq!(deltas(&scan), [0, 1, 2, 3, 4, 5]);
        assert!(scan.sealed && !scan.torn && scan.holes.is_empty() && scan.lost() == 0);
    }

    #[test]
    fn a_hole_before_a_later_commit_is_damage() {
        for byte in [0, 5, 9, 20] {
            let (mut bytes, places) = segment(2, false);
            bytes[places[1] + byte] ^= 1;
            let mut scan = scan(&bytes, salt(), false);
            scan.cut_torn_tail();
            assert_eq!(deltas(&scan), [0, 2, 3, 4, 5], "{byte}");
            assert_eq!((scan.holes.len(), scan.holes[0].bytes, scan.lost(), scan.torn), (1, 36, 1, false));
        }
    }

    #[test]
    fn a_hole_in_the_last_commit_is_torn_unless_sealed() {
        for (record, left) in [(3, 3), (4, 4), (5, 5)] {
            for byte in [0, 20] {
                // More than a sector each: no header says that all of it was written.
                let (mut bytes, places) = segment_of([1200; 3], 2, false);
                bytes[places[record] + byte] ^= 1;
                let mut torn = scan(&bytes, salt(), false);
                torn.cut_torn_tail();
                assert_eq!(deltas(&torn).len(), left, "{record}");
                assert_eq!((torn.holes.len(), torn.end as usize, torn.torn), (0, places[left], true));

                let (mut bytes, places) = segment_of([1200; 3], 2, true);
                bytes[places[record] + byte] ^= 1;
                let mut damaged = scan(&bytes, salt(), false);
                damaged.cut_torn_tail();
                assert_eq!((deltas(&damaged).len(), damaged.holes.len(), damaged.lost()), (5, 1, 1));
            }
        }
    }

    #[test]
    fn a_hole_that_no_crash_makes_costs_its_record_only() {
        for (record, byte) in [(3, 0), (3, 20), (4, 0), (4, 20)] {
            let (mut bytes, places) = segment(2, false);
            bytes[places[record] + byte] ^= 1;
            let mut scan = scan(&bytes, salt(), false);
            scan.cut_torn_tail();
            assert_eq!((deltas(&scan).len(), scan.holes.len(), scan.lost()), (5, 1, 1), "{record} {byte}");
            assert_eq!((scan.end as usize, scan.torn), (places[5] + 36, false));
        }
        // The body of the last one: a write may have broken off there.
        let (mut bytes, places) = segment(2, false);
        bytes[places[5] + 20] ^= 1;
        let mut scan = scan(&bytes, salt(), false);
        scan.cut_torn_tail();
        assert_eq!((deltas(&scan).len(), scan.holes.len(), scan.torn), (5, 0, true));
    }

    #[test]
    fn sectors_that_were_not_written_are_a_torn_tail() {
        // Whatever stood there before, and whichever of the sectors of the last commit it is.
        for records in [[20; 3], [300; 3], [700, 20, 300], [1200; 3]] {
            let (bytes, places) = segment_of(records, 2, false);
            let commit = places[3];
            let end = places[5] + RECORD_HEADER + records[2];
            for sector in commit / 512..=(end - 1) / 512 {
                for old in [0, 7] {
                    let mut bytes = bytes.clone();
                    let lost = (sector * 512).max(commit)..(sector * 512 + 512).min(end);
                    bytes[lost.clone()].fill(old);
                    let mut scan = scan(&bytes, salt(), false);
                    scan.cut_torn_tail();
                    let whole = |place: &&usize| **place < lost.start;
                    let left = places.iter().filter(whole).count();
                    assert!(scan.holes.is_empty(), "{records:?} {sector}: {:?}", scan.holes);
                    // One that reaches into the sector is lost as well, unless it ends at its start.
                    assert!(deltas(&scan).len() <= left && deltas(&scan).len() + 1 >= left.max(1));
                    assert_eq!(deltas(&scan), (0..deltas(&scan).len() as u32).collect::<Vec<_>>());
                }
            }
        }
    }

    #[test]
    fn damage_at_a_known_end_is_seen() {
        let (bytes, places) = segment(2, false);
        let mut bytes = bytes[..places[5] + 36].to_vec();
        bytes[places[5]] ^= 1;
        let scan = scan(&bytes, salt(), true);
        assert_eq!((deltas(&scan).len(), scan.holes.len(), scan.end as usize), (5, 1, bytes.len()));
    }
}
