//! What is full must empty again, however often the process starts and wherever it was killed: settles always find room.

use std::collections::BTreeMap;

use super::super::sim::{Loss, SimDisk};
use super::super::{AppendError, Log, Settings};
use super::{Held, Random, SEGMENT, body, open, settings};

/// What keeps the log from growing.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Full {
    Log,
    Disk,
}

/// A log that takes nothing more, and a disk that gives nothing more.
fn full(
    seed: u64,
    by: Full,
    segments: u64,
    lengths: u64,
) -> (SimDisk, Held<SimDisk>, BTreeMap<u64, Vec<u8>>) {
    let mut random = Random::new(seed);
    let capacity = if by == Full::Disk { segments * u64::from(SEGMENT) } else { u64::MAX };
    let disk = SimDisk::new(seed, capacity);
    let (mut held, _, _) = open(disk.clone(), bound(by, segments));
    let mut there = BTreeMap::new();
    loop {
        // What the spool writes beside a message has about as many.
        let bytes = body(random.below(1 << 40), 100 + random.below(lengths) as usize);
        match held.append(&bytes) {
            Ok(seq) => drop(there.insert(seq, bytes)),
            Err(AppendError::Full { .. }) if by == Full::Log => break,
            Err(AppendError::DiskFull) if by == Full::Disk => break,
            Err(error) => panic!("{error}"),
        }
    }
    held.log.commit().unwrap();
    if by == Full::Disk {
        // Whatever is given back is somebody else's at once.
        disk.set_capacity(0);
    }
    (disk, held, there)
}

/// What the log may take: of a small disk more than there is.
fn bound(by: Full, segments: u64) -> Settings {
    settings(if by == Full::Log { segments } else { 1000 })
}

/// Ends the process, well or not, and begins another. Gives what is there.
fn again(disk: &mut SimDisk, held: &mut Held<SimDisk>, bounds: &Settings, loss: Option<Loss>) -> Vec<u64> {
    if loss.is_none() {
        let (other, _) = Log::open(SimDisk::new(0, 0), settings(4), |_| ()).unwrap();
        std::mem::replace(&mut held.log, other).close().unwrap();
    }
    *disk = disk.crash(loss.unwrap_or(Loss::None));
    let (now, bodies, report) = open(disk.clone(), bounds.clone());
    assert_eq!((report.damaged, report.lost), (0, 0), "a crash is no damage: {report:?}");
    *held = now;
    bodies.into_keys().collect()
}

#[test]
fn no_start_costs_a_segment() {
    for (by, segments) in [(Full::Log, 10), (Full::Log, 20), (Full::Disk, 10), (Full::Disk, 20)] {
        for loss in [None, Some(Loss::None), Some(Loss::Half), Some(Loss::All)] {
            let (mut disk, mut held, mut there) = full(1, by, segments, 600);
            for round in 0..100 {
                // One settle, and the process ends before anything is given back.
                let seq = *there.keys().nth(round).unwrap();
                held.settle(seq);
                held.log.commit().unwrap();
                assert_eq!(held.log.settles_waiting(), 0, "{by:?} {loss:?} {round}");
                there.remove(&seq);
                let found = again(&mut disk, &mut held, &bound(by, segments), loss);
                assert!(found.iter().eq(there.keys()), "{by:?} {loss:?} {round}");
            }
            let usage = held.log.usage();
            assert_eq!(usage.segments + usage.spares, segments as usize, "{by:?} {loss:?} {usage:?}");
            for seq in there.into_keys() {
                held.settle(seq);
            }
            held.log.commit().unwrap();
            held.tend();
            assert!(!held.log.usage().full);
            held.append(b"there is room").unwrap();
            held.log.commit().unwrap();
        }
    }
}

#[test]
fn sequence_numbers_leave_few_out_and_none_comes_again() {
    let mut disk = SimDisk::new(2, u64::MAX);
    let (mut held, _, _) = open(disk.clone(), settings(10));
    let mut last = 0;
    for round in 0..200 {
        let seq = held.append(b"once").unwrap();
        assert!(seq > last && seq - last <= 1 + u64::from(SEGMENT) / 16, "{round}: {seq} behind {last}");
        last = seq;
        held.log.commit().unwrap();
        let before = held.places.len();
        let found = again(&mut disk, &mut held, &settings(10), Some(Loss::Half));
        assert_eq!(found.len(), before);
    }
    assert_eq!(held.log.segments.len(), 1);
}

/// Empties a full log in some order, with the process ended at any point.
fn emptied(seed: u64) -> (u32, u64) {
    let mut random = Random::new(seed);
    let by = if random.once_in(2) { Full::Log } else { Full::Disk };
    let lengths = [40, 600, 6_000][random.below(3) as usize];
    // Of so many devices one is away while the others are emptied.
    let (devices, at_once) = (1 + random.below(5), 1 + random.below(200));
    // In any order, each settle may take a commit of its own: then the reserve is two.
    let (segments, any_order) = if random.once_in(2) { (20, true) } else { (5 + random.below(10), false) };
    let (mut disk, mut held, mut there) = full(seed, by, segments, lengths);
    let (mut undone, mut ends, mut most) = (BTreeMap::new(), 0, 0);
    for step in 0..1_000_000_u64 {
        if there.is_empty() {
            break;
        }
        assert!(step < 999_999, "{seed}: it never empties: {:?}", held.log.usage());
        match random.below(20) {
            0..14 => {
                let ready = |seq: &&u64| !seq.is_multiple_of(devices);
                let first = there.keys().find(ready).or_else(|| there.keys().next()).copied().unwrap();
                let last = *there.keys().next_back().unwrap();
                let from = if any_order { first + random.below(last - first + 1) } else { first };
                let some: Vec<u64> =
                    there.range(from..).map(|(seq, _)| *seq).take(at_once as usize).collect();
                let waits = some.iter().any(|seq| ready(&seq));
                for seq in some.into_iter().filter(|seq| !waits || ready(&seq)) {
                    held.settle(seq);
                    undone.insert(seq, there.remove(&seq).unwrap());
                }
                if random.once_in(4) {
                    continue;
                }
                held.log.commit().unwrap();
                assert_eq!(
                    held.log.settles_waiting(),
                    0,
                    "{seed} {by:?} {}: {:?}",
                    there.len(),
                    held.log.usage()
                );
                undone.clear();
            }
            14 if step < 400 => {
                // Whatever is given back is taken again for a while.
                let Ok(seq) = held.append(&[7; 300]) else { continue };
                held.log.commit().unwrap();
                there.insert(seq, vec![7; 300]);
            }
            14..17 => held.tend(),
            17 => {
                // One step, so that the process may end between two of them.
                let Held { log, places } = &mut held;
                log.tend(|seq, place| *places.get_mut(&seq).unwrap() = place).unwrap();
            }
            _ => {
                let loss =
                    [Some(Loss::None), Some(Loss::Half), Some(Loss::All), None][random.below(4) as usize];
                let found = again(&mut disk, &mut held, &bound(by, segments), loss);
                ends += 1;
                for seq in found {
                    there.entry(seq).or_insert_with(|| undone.remove(&seq).expect("it was settled"));
                }
                assert!(there.keys().eq(held.places.keys()));
                undone.clear();
            }
        }
        most = most.max(held.log.usage().bytes);
    }
    held.log.commit().unwrap();
    held.tend();
    let usage = held.log.usage();
    assert!(!usage.full && usage.records == 0, "{seed} {by:?} {usage:?}");
    assert!(by == Full::Disk || most <= (segments + 1) * u64::from(SEGMENT), "{seed} {most}");
    held.append(b"there is room").unwrap();
    held.log.commit().unwrap();
    (ends, most)
}

#[test]
fn what_is_full_empties_whenever_the_process_ends() {
    let ends: u32 = (0..80).map(|seed| emptied(seed).0).sum();
    assert!(ends > 800, "{ends}");
}
