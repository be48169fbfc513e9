//! Damaged media: the log always opens, loses what was hit, counts it, and delivers nothing that is wrong.

use std::collections::{BTreeMap, BTreeSet};

use super::super::sim::{Loss, SimDisk};
use super::super::{Disk as _, Log, OpenError, ReadError};
use super::{Held, Random, SEGMENT, big_disk, body, open, settings};

const SEGMENTS: u64 = 64;

/// A log that was used and closed: its disk, where records lie, their bodies, and those that are settled.
struct Used {
    disk: SimDisk,
    held: Held<SimDisk>,
    there: BTreeMap<u64, Vec<u8>>,
    settled: BTreeMap<u64, Vec<u8>>,
}

fn used(seed: u64) -> Used {
    let mut random = Random::new(seed);
    let disk = big_disk(seed);
    let (mut held, _, _) = open(disk.clone(), settings(SEGMENTS));
    let (mut there, mut settled) = (BTreeMap::new(), BTreeMap::new());
    for _ in 0..2500 {
        let bytes = body(random.below(1 << 40), random.below(400) as usize);
        let seq = held.append(&bytes).unwrap();
        there.insert(seq, bytes);
        if random.once_in(20) {
            held.log.commit().unwrap();
            let from = random.below(seq);
            for seq in there.range(from..from + 8).map(|(seq, _)| *seq).collect::<Vec<_>>() {
                held.settle(seq);
                settled.insert(seq, there.remove(&seq).unwrap());
            }
            held.tend();
        }
    }
    let (fresh, _) = Log::open(big_disk(0), settings(SEGMENTS), |_| ()).unwrap();
    std::mem::replace(&mut held.log, fresh).close().unwrap();
    let disk = disk.crash(Loss::None);
    let (held, bodies, report) = open(disk.copy(), settings(SEGMENTS));
    assert_eq!((bodies == there, report.damaged, report.torn), (true, 0, false));
    assert!(report.segments >= 6, "{report:?}");
    Used { disk, held, there, settled }
}

impl Used {
    /// Opens a damaged copy, and gives what is missing, how many come back that were settled, and the report.
    fn opened(&self, disk: &SimDisk) -> (BTreeSet<u64>, usize, super::Report) {
        let (mut held, bodies, report) = open(disk.clone(), settings(SEGMENTS));
        for (seq, bytes) in &bodies {
            let right = self.there.get(seq).or_else(|| self.settled.get(seq));
            assert!(right == Some(bytes), "{seq} was delivered, and is not what it was");
            assert_eq!(&held.read(*seq), bytes);
        }
        let missing: BTreeSet<_> =
            self.there.keys().filter(|seq| !bodies.contains_key(seq)).copied().collect();
        // It goes on working, and no number comes again.
        let seq = held.append(b"after the damage").unwrap();
        assert!(seq > *self.there.keys().next_back().unwrap());
        held.log.commit().unwrap();
        held.tend();
        assert_eq!(held.read(seq), b"after the damage");
        let revived = bodies.keys().filter(|seq| !self.there.contains_key(seq)).count();
        (missing, revived, report)
    }

    /// The records that touch these bytes.
    fn at(&self, name: &str, start: usize, end: usize) -> BTreeSet<u64> {
        let touches = |seq: &u64| {
            let place = self.held.places[seq];
            let from = place.offset as usize;
            let to = from + 16 + 8 + self.there[seq].len();
            format!("{:08x}.seg", place.segment) == name && from < end && start < to
        };
        self.there.keys().filter(|seq| touches(seq)).copied().collect()
    }
}

fn segments(disk: &SimDisk) -> Vec<String> {
    disk.names().into_iter().filter(|name| name.ends_with(".seg")).collect()
}

#[test]
fn a_flipped_bit_costs_one_record_at_most() {
    let mut random = Random::new(7);
    let (mut lost, mut harmless) = (0, 0);
    for round in 0..10 {
        let used = used(round);
        let names = segments(&used.disk);
        for _ in 0..100 {
            let disk = used.disk.copy();
            let name = &names[random.below(names.len() as u64) as usize];
            let mut hit = 0;
            disk.edit(name, |bytes| {
                let bit = random.below(bytes.len() as u64 * 8) as usize;
                bytes[bit / 8] ^= 1 << (bit % 8);
                hit = bit / 8;
            });
            let (missing, revived, report) = used.opened(&disk);
            assert!(missing.is_subset(&used.at(name, hit, hit + 1)), "{name} {hit}");
            assert!(revived == 0 || report.damaged == 1, "{name} {hit}: {revived} come again");
            assert!(missing.len() <= 1);
            if missing.is_empty() {
                harmless += 1;
            } else {
                assert_eq!(report.damaged, 1, "{name} {hit}: {report:?}");
                assert_eq!((report.damage.len(), disk.quarantined().len()), (1, 1), "a copy is kept");
                lost += 1;
            }
        }
    }
    assert!(lost > 200 && harmless > 100, "{lost} {harmless}");
}

#[test]
fn zeroed_pages_and_truncations_cost_what_they_hit() {
    let mut random = Random::new(11);
    let (mut lost, mut uncounted) = (0, 0);
    for round in 0..10 {
        let used = used(100 + round);
        let names = segments(&used.disk);
        for attempt in 0..40 {
            let disk = used.disk.copy();
            let name = &names[random.below(names.len() as u64) as usize];
            let (mut start, mut end) = (0, 0);
            disk.edit(name, |bytes| {
                start = random.below(bytes.len() as u64) as usize;
                if attempt % 2 == 0 {
                    start -= start % 4096;
                    end = (start + 4096).min(bytes.len());
                    bytes[start..end].fill(0);
                } else {
                    end = bytes.len();
                    bytes.truncate(start);
                }
            });
            let (missing, revived, report) = used.opened(&disk);
            assert!(missing.is_subset(&used.at(name, start, end)), "{name} {start}");
            lost += usize::from(!missing.is_empty());
            if missing.len() + revived > 0 {
                // That the newest segment once went on, where it is zeros from there on, nobody can tell.
                if report.damaged == 0 {
                    assert_eq!((attempt % 2, Some(name)), (0, names.last()));
                    uncounted += 1;
                }
            }
        }
    }
    assert!(lost > 100 && uncounted < 20, "{lost} {uncounted}");
}

#[test]
fn a_segment_without_headers_is_set_aside_when_there_is_a_new_one() {
    let used = used(200);
    let name = segments(&used.disk)[2].clone();
    let disk = used.disk.copy();
    disk.edit(&name, |bytes| bytes[..8192].fill(0));
    let (missing, _, report) = used.opened(&disk);
    assert!(!missing.is_empty() && missing.is_subset(&used.at(&name, 0, SEGMENT as usize)));
    assert_eq!((report.damaged, report.damaged_bytes > 8192), (1, true));
    assert!(!disk.names().contains(&name) && disk.quarantined().contains(&name));
    let (_, _, report) = open(disk.crash(Loss::All), settings(SEGMENTS));
    assert_eq!(report.damaged, 0);
}

#[test]
fn what_becomes_damaged_while_it_is_open_is_not_delivered() {
    let Used { disk, mut held, there, .. } = used(300);
    let disk_of_held = held.log.disk.clone();
    let seq = *there.keys().nth(50).unwrap();
    let place = held.places[&seq];
    assert_eq!(held.read(seq), there[&seq]);
    disk_of_held.edit(&format!("{:08x}.seg", place.segment), |bytes| bytes[place.offset as usize + 20] ^= 4);
    // Somewhere else first, so that it is read again.
    held.read(*there.keys().next_back().unwrap());
    let mut into = vec![1, 2, 3];
    let error = held.log.read(place, seq, &mut into).unwrap_err();
    assert!(matches!(error, ReadError::Damaged { .. }), "{error}");
    assert!(into.is_empty());
    assert_eq!(held.log.usage().damaged, 1);
    held.settle(seq);
    held.log.commit().unwrap();
    drop(disk);
}

#[test]
fn another_version_is_refused_and_nothing_is_touched() {
    let used = used(400);
    let disk = used.disk.copy();
    for name in segments(&disk).iter().rev().take(1) {
        disk.edit(name, |bytes| {
            for at in [0, 4096] {
                bytes[at + 8] = 9;
                let mut hasher = crc32fast::Hasher::new();
                hasher.update(&bytes[at..at + 12]);
                hasher.update(&bytes[at + 16..at + 64]);
                bytes[at + 12..at + 16].copy_from_slice(&hasher.finalize().to_le_bytes());
            }
        });
    }
    let names = disk.names();
    let error = Log::open(disk.clone(), settings(SEGMENTS), |_| panic!("nothing is shown")).unwrap_err();
    assert!(matches!(error, OpenError::Version { found: 9, known: 1, .. }), "{error}");
    assert_eq!((disk.names(), disk.work(), disk.quarantined().len()), (names, (0, 0), 0));
}

#[test]
fn a_segment_of_another_log_is_refused() {
    let used = used(500);
    let mut disk = used.disk.copy();
    let names = segments(&disk);
    disk.rename(&names[1], "000fffff.seg").unwrap();
    let error = Log::open(disk, settings(SEGMENTS), |_| ()).unwrap_err();
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");

    let disk = used.disk.copy();
    let other = big_disk(501);
    let (mut held, _, _) = open(other.clone(), settings(SEGMENTS));
    held.append(b"another log").unwrap();
    held.log.commit().unwrap();
    let mut foreign = Vec::new();
    other.edit("00000001.seg", |bytes| foreign.clone_from(bytes));
    let (mut to, mut file) = (disk.clone(), disk.clone());
    let _ = to.remove("00000001.seg");
    file.create("00000001.seg", u64::from(SEGMENT)).unwrap();
    disk.edit("00000001.seg", |bytes| *bytes = foreign);
    let error = Log::open(disk, settings(SEGMENTS), |_| ()).unwrap_err();
    assert!(error.to_string().contains("does not belong to this log"), "{error}");
}
