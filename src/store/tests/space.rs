//! Full logs, full disks, and records that nobody takes away.

use super::super::sim::{Loss, SimDisk};
use super::super::{AppendError, OpenError, Settings};
use super::{Held, Random, SEGMENT, big_disk, body, open, settings};

fn fill(held: &mut Held<SimDisk>) -> (Vec<u64>, AppendError) {
    let mut all = Vec::new();
    loop {
        match held.append(&body(all.len() as u64, 300)) {
            Ok(seq) => all.push(seq),
            Err(error) => {
                held.log.commit().unwrap();
                return (all, error);
            }
        }
    }
}

#[test]
fn a_full_log_refuses_settles_and_takes_again() {
    let disk = big_disk(1);
    let (mut held, _, _) = open(disk.clone(), settings(8));
    for round in 0..20 {
        let (all, error) = fill(&mut held);
        assert!(matches!(error, AppendError::Full { max_bytes } if max_bytes == 8 * u64::from(SEGMENT)));
        let usage = held.log.usage();
        assert!(usage.bytes <= usage.max_bytes && usage.spares == 1, "{usage:?}");
        assert!(round > 0 || all.len() > 6 * 180, "the reserve is all that is kept: {}", all.len());
        // All but one, one by one, each durable.
        for seq in &all[..all.len() - 1] {
            held.settle(*seq);
            if seq % 50 == 0 {
                held.log.commit().unwrap();
                assert_eq!(held.log.settles_waiting(), 0);
            }
        }
        held.log.commit().unwrap();
        held.tend();
        assert_eq!(held.log.usage().records, round + 1);
        assert!(held.log.usage().bytes <= 6 * u64::from(SEGMENT), "{:?}", held.log.usage());
    }
    assert_eq!(open(disk.crash(Loss::All), settings(8)).1.len(), 20);
}

#[test]
fn a_full_disk_refuses_settles_and_takes_again() {
    let disk = SimDisk::new(2, 6 * u64::from(SEGMENT));
    let (mut held, _, _) = open(disk.clone(), settings(100));
    let (all, error) = fill(&mut held);
    assert!(matches!(error, AppendError::DiskFull), "{error}");
    assert!(all.len() > 4 * 180);
    // Others take what is left, and it does not help to ask.
    disk.set_capacity(0);
    held.tend();
    assert!(matches!(held.append(&body(0, 300)).unwrap_err(), AppendError::DiskFull));
    for seq in &all {
        held.settle(*seq);
        if seq % 10 == 0 {
            held.log.commit().unwrap();
            assert_eq!(held.log.settles_waiting(), 0, "the reserve is there for this");
        }
    }
    held.log.commit().unwrap();
    held.tend();
    // What was emptied suffices to go on, though the disk is as full as before.
    let (again, _) = fill(&mut held);
    assert!(!again.is_empty());
    disk.set_capacity(u64::MAX);
    held.tend();
    held.append(b"the disk is empty again").unwrap();
    held.log.commit().unwrap();
    assert_eq!(open(disk.crash(Loss::All), settings(100)).1.len(), again.len() + 1);
}

#[test]
fn a_full_disk_at_the_start_can_still_be_drained() {
    let disk = SimDisk::new(3, 6 * u64::from(SEGMENT));
    let (mut held, _, _) = open(disk.clone(), settings(100));
    let (all, _) = fill(&mut held);
    let mut disk = disk.crash(Loss::All);
    // Even without the reserve.
    let spares: Vec<String> = disk.names().into_iter().filter(|name| name.ends_with(".spare")).collect();
    for name in spares {
        super::Disk::remove(&mut disk, &name).unwrap();
    }
    disk.set_capacity(0);
    let (mut held, bodies, _) = open(disk.clone(), settings(100));
    assert_eq!(bodies.len(), all.len());
    assert!(matches!(held.append(b"no").unwrap_err(), AppendError::DiskFull));
    for seq in &all {
        held.settle(*seq);
        held.log.commit().unwrap();
    }
    held.tend();
    held.log.commit().unwrap();
    assert_eq!(held.log.settles_waiting(), 0);
    assert!(open(disk.crash(Loss::All), settings(100)).1.is_empty());
}

#[test]
fn one_stuck_device_does_not_pin_the_disk() {
    let disk = big_disk(4);
    let (mut held, _, _) = open(disk.clone(), settings(16));
    let mut stuck = Vec::new();
    let mut written = 0;
    for round in 0..60_000_u64 {
        let bytes = body(round, 200);
        written += bytes.len() as u64;
        let seq = held.append(&bytes).expect("there is always room");
        if round % 500 == 0 {
            stuck.push((seq, bytes));
        }
        if round % 50 == 49 {
            held.log.commit().unwrap();
            let ready: Vec<u64> = held
                .places
                .keys()
                .copied()
                .filter(|seq| stuck.binary_search_by_key(seq, |(seq, _)| *seq).is_err())
                .collect();
            ready.into_iter().for_each(|seq| held.settle(seq));
            held.tend();
        }
    }
    held.log.commit().unwrap();
    let usage = held.log.usage();
    assert!(written > 10 * usage.max_bytes && usage.records == stuck.len() as u64);
    assert!(usage.bytes <= 10 * u64::from(SEGMENT), "{usage:?}");
    let (on_disk, _) = disk.work();
    assert!(on_disk < written * 13 / 10, "{on_disk} bytes were written for {written}");
    for (seq, bytes) in &stuck {
        assert_eq!(&held.read(*seq), bytes);
    }
    let (_, bodies, report) = open(disk.crash(Loss::All), settings(16));
    assert!(bodies.into_iter().eq(stuck) && report.damaged == 0);
}

#[test]
fn behind_many_stuck_records_the_rest_flows() {
    let disk = big_disk(5);
    let (mut held, _, _) = open(disk.clone(), settings(24));
    // A third of the log is full of what nobody takes.
    let stuck: Vec<(u64, Vec<u8>)> = (0..1800)
        .map(|round| {
            let bytes = body(round, 280);
            (held.append(&bytes).unwrap(), bytes)
        })
        .collect();
    held.log.commit().unwrap();
    let last = stuck.last().unwrap().0;
    let mut random = Random::new(5);
    for round in 0..40_000_u64 {
        held.append(&body(round, 200)).expect("there is always room");
        if round % 50 == 49 {
            held.log.commit().unwrap();
            let from = held.places.range(last + 1..).map(|(seq, _)| *seq);
            let ready: Vec<u64> = from.take(45 + random.below(12) as usize).collect();
            ready.into_iter().for_each(|seq| held.settle(seq));
            held.tend();
        }
    }
    held.log.commit().unwrap();
    let live: Vec<u64> = held.places.keys().copied().collect();
    let (_, bodies, report) = open(disk.crash(Loss::All), settings(24));
    assert_eq!((bodies.keys().copied().collect::<Vec<_>>(), report.damaged), (live, 0));
    assert!(stuck.iter().all(|(seq, bytes)| &bodies[seq] == bytes));
}

#[test]
fn memory_does_not_grow_with_what_was() {
    let (mut held, _, _) = open(big_disk(6), settings(16));
    for round in 0..50_000_u64 {
        let seq = held.append(&body(round, 20)).unwrap();
        if round % 100 == 99 {
            held.log.commit().unwrap();
            held.places.clone().into_keys().for_each(|seq| held.settle(seq));
            held.log.commit().unwrap();
            held.tend();
        }
        assert!(seq > round);
    }
    assert!(held.log.segments.len() <= 3, "{:?}", held.log.segments);
    assert!(held.log.segments.values().all(|segment| segment.settles.len() <= 3));
    assert_eq!((held.log.live.len(), held.log.settles.len()), (0, 0));
}

#[test]
fn bounds_that_make_no_sense_are_named() {
    let wrong = |settings: Settings| super::super::Log::open(big_disk(7), settings, |_| ()).unwrap_err();
    let error = wrong(Settings { segment_bytes: 1000, ..Settings::new(1 << 30) });
    assert!(matches!(&error, OpenError::Settings(what) if what.contains("1000 bytes")), "{error}");
    let error = wrong(Settings::new(1 << 20));
    assert!(matches!(&error, OpenError::Settings(what) if what.contains("at least 33554432")), "{error}");
}

#[test]
fn a_record_that_never_fits_is_named() {
    let (mut held, _, _) = open(big_disk(8), settings(8));
    let max = held.log.max_record();
    let error = held.append(&vec![0; max + 1]).unwrap_err();
    assert!(matches!(error, AppendError::TooLarge { bytes, max: most } if bytes == max + 1 && most == max));
    let seq = held.append(&vec![7; max]).unwrap();
    held.log.commit().unwrap();
    assert_eq!(held.read(seq), vec![7; max]);
    held.settle(seq);
    held.log.commit().unwrap();
    held.tend();
    assert_eq!(held.log.usage().records, 0);
}
