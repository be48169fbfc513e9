//! Writes and syncs that fail: nothing is claimed that is not so, and the file is not believed again.

use super::super::AppendError;
use super::super::sim::{Fault, Loss, SimDisk};
use super::{Held, Random, big_disk, open, settings};

fn begun(seed: u64) -> (SimDisk, Held<SimDisk>, u64) {
    let disk = big_disk(seed);
    let (mut held, _, _) = open(disk.clone(), settings(16));
    let first = held.append(b"committed before").unwrap();
    held.log.commit().unwrap();
    (disk, held, first)
}

#[test]
fn a_failed_sync_voids_the_commit_and_seals_the_segment() {
    for (fault, seed) in [(Fault::Sync, 1), (Fault::Write, 2), (Fault::FullWrite, 3)] {
        let (disk, mut held, first) = begun(seed);
        let (void, place) = held.log.append(&[b"this will fail"]).unwrap();
        held.settle(first);
        disk.fail(fault, 0);
        let error = held.log.commit().unwrap_err();
        assert_eq!((error.segment, error.written), (1, fault == Fault::Sync), "{error}");
        assert!(held.log.read(place, void, &mut Vec::new()).is_err(), "it does not count");
        assert_eq!((held.log.settles_waiting(), held.log.usage().records), (1, 0), "the settle waits");
        // The commit is not tried again on that file.
        let (seq, place) = held.log.append(&[b"this works"]).unwrap();
        assert_eq!((seq > void, place.segment), (true, 2));
        held.log.commit().unwrap();
        assert_eq!(held.log.settles_waiting(), 0);
        for loss in [Loss::None, Loss::Half, Loss::All] {
            let (_, bodies, report) = open(disk.copy().crash(loss), settings(16));
            assert_eq!(bodies.into_iter().collect::<Vec<_>>(), [(seq, b"this works".to_vec())]);
            assert_eq!((report.damaged, report.torn), (0, false));
        }
    }
}

#[test]
fn what_failed_never_comes_back_once_something_else_was_committed() {
    // Even where all of it reached the disk in spite of the error.
    for seed in 0..50 {
        let (disk, mut held, _) = begun(100 + seed);
        for round in 0..20_u8 {
            held.log.append(&[&[b'v', round]]).unwrap();
        }
        disk.fail(Fault::Sync, 0);
        held.log.commit().unwrap_err();
        held.append(b"after").unwrap();
        held.log.commit().unwrap();
        let (_, bodies, _) = open(disk.crash(Loss::None), settings(16));
        assert!(bodies.into_values().eq([b"committed before".to_vec(), b"after".to_vec()]));
    }
}

#[test]
fn what_tells_where_a_failed_segment_ends_stays_as_long_as_that() {
    let mut reached = 0;
    for seed in 0..20 {
        let (disk, mut held, first) = begun(400 + seed);
        let void = format!("void {seed}");
        held.log.append(&[void.as_bytes()]).unwrap();
        disk.fail(Fault::Sync, 0);
        held.log.commit().unwrap_err();
        let (_, bodies, _) = open(disk.copy().crash(Loss::All), settings(16));
        reached += usize::from(bodies.len() == 2);
        // The file cannot be cut either, and the segment behind it is dead soon.
        for _ in 0..20 {
            disk.fail(Fault::Truncate, 0);
        }
        for round in 0..5000_u32 {
            let seq = held.append(&round.to_le_bytes()).unwrap();
            if round % 100 == 99 {
                held.log.commit().unwrap();
                let done: Vec<u64> = held.places.range(first + 1..).map(|(seq, _)| *seq).collect();
                done.into_iter().for_each(|seq| held.settle(seq));
                held.log.commit().unwrap();
                held.log.remove_dead().unwrap();
            }
            assert!(seq > first);
        }
        let (_, bodies, report) = open(disk.crash(Loss::All), settings(16));
        assert_eq!((bodies.len(), report.damaged), (1, 0));
        assert_eq!(bodies[&first], b"committed before");
    }
    assert!(reached > 3, "the disk has what failed in {reached} cases only");
}

#[test]
fn a_segment_that_cannot_be_made_refuses_one_append_only() {
    for after in 0..4 {
        for fault in [Fault::Directory, Fault::Sync, Fault::Write] {
            let disk = big_disk(200);
            let (mut held, _, _) = open(disk.clone(), settings(16));
            disk.fail(fault, after);
            match held.append(b"first") {
                Ok(_) => {}
                Err(AppendError::Io(error)) => assert!(error.to_string().contains("cannot be"), "{error}"),
                Err(error) => panic!("{error}"),
            }
            let last = held.append(b"second");
            let committed = held.log.commit();
            if let (Ok(seq), Ok(())) = (last, committed) {
                let (_, bodies, report) = open(disk.crash(Loss::All), settings(16));
                assert_eq!((&bodies[&seq][..], report.damaged), (&b"second"[..], 0));
            }
        }
    }
}

#[test]
fn a_failing_disk_is_asked_again_but_not_believed() {
    let (disk, mut held, _) = begun(300);
    let mut random = Random::new(300);
    let mut kept = vec![b"committed before".to_vec()];
    for round in 0..2000_u32 {
        if random.once_in(3) {
            disk.fail(Fault::Sync, random.below(3) as u32);
        }
        let body = round.to_le_bytes();
        if held.append_quietly(&body) && held.log.commit().is_ok() {
            kept.push(body.to_vec());
        }
        let places = &mut held.places;
        let _ = held.log.tend(|seq, place| *places.get_mut(&seq).unwrap() = place);
    }
    assert!(kept.len() > 300, "{}", kept.len());
    let (_, bodies, _) = open(disk.crash(Loss::All), settings(16));
    let found: Vec<Vec<u8>> = bodies.into_values().collect();
    assert!(kept.iter().all(|body| found.contains(body)));
    assert!(found.len() <= kept.len() + 1, "the last commit may be there though it failed");
}

impl Held<SimDisk> {
    /// Whether it was taken.
    fn append_quietly(&mut self, body: &[u8]) -> bool {
        match self.log.append(&[body]) {
            Ok((seq, place)) => {
                self.places.insert(seq, place);
                true
            }
            Err(AppendError::Io(_)) => false,
            Err(error) => panic!("{error}"),
        }
    }
}
