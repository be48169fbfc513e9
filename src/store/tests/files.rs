//! Real files.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use super::super::{Files, FilesError, Log, OpenError, Settings};
use super::{Held, Random, body, open, settings};
use crate::state::tests::Scratch;

/// Says to the second process of a test which directory it should try.
const TRY: &str = "FIELDGATE_TEST_STORE_TO_TRY";

fn opened(path: &Path) -> (Held<Files>, std::collections::BTreeMap<u64, Vec<u8>>, super::Report) {
    open(Files::open(path).unwrap(), settings(32))
}

#[test]
fn what_was_committed_is_there_after_the_process_ends() {
    let scratch = Scratch::new();
    let path = scratch.0.join("spool");
    let mut random = Random::new(1);
    let mut there = std::collections::BTreeMap::new();
    let mut id = None;
    for round in 0..20 {
        let (mut held, bodies, report) = opened(&path);
        assert!(bodies == there, "round {round}");
        assert_eq!((report.damaged, report.torn), (0, false));
        assert_eq!(*id.get_or_insert(held.log.id()), held.log.id());
        for _ in 0..300 {
            let bytes = body(random.below(1 << 30), random.below(500) as usize);
            there.insert(held.append(&bytes).unwrap(), bytes);
        }
        held.log.commit().unwrap();
        while there.len() > 200 {
            let from = random.below(*there.keys().next_back().unwrap());
            let Some(seq) = there.range(from..).next().map(|(seq, _)| *seq) else { continue };
            assert_eq!(held.read(seq), there[&seq]);
            held.settle(seq);
            there.remove(&seq);
        }
        held.log.commit().unwrap();
        held.tend();
        for (seq, bytes) in &there {
            assert_eq!(&held.read(*seq), bytes);
        }
        if round % 2 == 0 {
            held.log.close().unwrap();
        }
    }
    let bytes: u64 = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes < 32 * u64::from(super::SEGMENT), "{bytes}");
}

#[test]
fn only_the_user_reads_it() {
    let scratch = Scratch::new();
    let path = scratch.0.join("spool");
    let (mut held, _, _) = opened(&path);
    held.append(b"secret").unwrap();
    held.log.commit().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    for entry in fs::read_dir(&path).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
    }
}

#[test]
fn segments_are_allocated_whole() {
    use std::os::unix::fs::MetadataExt as _;
    let scratch = Scratch::new();
    let (mut held, _, _) = opened(&scratch.0);
    held.append(b"one").unwrap();
    held.log.commit().unwrap();
    let metadata = fs::metadata(scratch.0.join("00000001.seg")).unwrap();
    assert_eq!(metadata.len(), u64::from(super::SEGMENT));
    assert!(metadata.blocks() * 512 >= metadata.len(), "{} blocks", metadata.blocks());
}

#[test]
fn a_second_process_is_refused() {
    if let Some(path) = std::env::var_os(TRY) {
        let FilesError::InUse { holder, .. } = Files::open(Path::new(&path)).unwrap_err() else { panic!() };
        assert_eq!(holder, format!("process {}", std::os::unix::process::parent_id()));
        return;
    }
    let scratch = Scratch::new();
    let (held, _, _) = opened(&scratch.0);
    let message = Files::open(&scratch.0).unwrap_err().to_string();
    assert!(message.ends_with(&format!("is in use by process {}", std::process::id())), "{message}");
    let second = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::tests::files::a_second_process_is_refused"])
        .env(TRY, &scratch.0)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&second.stdout).into_owned();
    assert!(second.status.success() && said.contains("1 passed"), "{said}");
    drop(held);
    opened(&scratch.0);
}

#[test]
fn a_killed_process_loses_nothing_that_was_committed() {
    if let Some(path) = std::env::var_os(TRY) {
        let (mut held, bodies, _) = opened(Path::new(&path));
        let said = Path::new(&path).join("said");
        let mut numbers: Vec<u64> = bodies.into_keys().collect();
        let said = fs::OpenOptions::new().append(true).create(true).open(said).unwrap();
        loop {
            let seq = held.append(&body(7, 150)).unwrap();
            held.log.commit().unwrap();
            std::io::Write::write_all(&mut &said, &[&b"+"[..], &seq.to_le_bytes()].concat()).unwrap();
            numbers.push(seq);
            if numbers.len() > 100 {
                let seq = numbers.remove(0);
                std::io::Write::write_all(&mut &said, &[&b"-"[..], &seq.to_le_bytes()].concat()).unwrap();
                held.settle(seq);
                held.tend();
            }
        }
    }
    let scratch = Scratch::new();
    for round in 0..10 {
        let said = scratch.0.join("said");
        let before = fs::metadata(&said).map_or(0, |metadata| metadata.len());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::tests::files::a_killed_process_loses_nothing_that_was_committed"])
            .env(TRY, &scratch.0)
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        while fs::metadata(&said).map_or(0, |metadata| metadata.len()) < before + 9 * (200 + 37 * round) {
            assert!(child.try_wait().unwrap().is_none(), "it runs until it is killed");
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let (_, bodies, report) = opened(&scratch.0);
        assert_eq!(report.damaged, 0);
        let mut acknowledged = std::collections::BTreeSet::new();
        for line in fs::read(&said).unwrap().chunks_exact(9) {
            let seq = u64::from_le_bytes(line[1..].try_into().unwrap());
            if line[0] == b'+' {
                acknowledged.insert(seq)
            } else {
                acknowledged.remove(&seq)
            };
        }
        assert!(acknowledged.iter().all(|seq| bodies.contains_key(seq)), "round {round}");
    }
}

#[test]
fn damage_and_versions_on_real_files() {
    let scratch = Scratch::new();
    let (mut held, _, _) = opened(&scratch.0);
    let seqs: Vec<u64> = (0..10).map(|round| held.append(&body(round, 100)).unwrap()).collect();
    let place = held.places[&seqs[4]];
    held.log.close().unwrap();
    let segment = scratch.0.join("00000001.seg");
    let file = fs::OpenOptions::new().write(true).open(&segment).unwrap();
    file.write_all_at(b"!", u64::from(place.offset) + 50).unwrap();
    let (held, bodies, report) = opened(&scratch.0);
    assert_eq!((bodies.len(), report.damaged, report.lost, report.damage[0].kept), (9, 1, 1, true));
    let kept: Vec<_> = fs::read_dir(scratch.0.join("quarantine")).unwrap().collect();
    assert_eq!(kept.len(), 1);
    drop(held);

    let before = fs::read(&segment).unwrap();
    let mut newer = before.clone();
    for at in [0, 4096] {
        newer[at + 8..at + 12].copy_from_slice(&2_u32.to_le_bytes());
        let covered = [&newer[at..at + 12], &newer[at + 16..at + 64]].concat();
        let crc = crc32fast::hash(&covered);
        newer[at + 12..at + 16].copy_from_slice(&crc.to_le_bytes());
    }
    fs::write(&segment, &newer).unwrap();
    let error = Log::open(Files::open(&scratch.0).unwrap(), settings(32), |_| ()).unwrap_err();
    assert!(matches!(error, OpenError::Version { found: 2, .. }), "{error}");
    assert!(fs::read(&segment).unwrap() == newer, "nothing is touched");
}

#[test]
fn the_default_segments_work() {
    let scratch = Scratch::new();
    let (mut held, _, _) = open(Files::open(&scratch.0).unwrap(), Settings::new(64 << 20));
    let seqs: Vec<u64> = (0..100).map(|round| held.append(&body(round, 200_000)).unwrap()).collect();
    held.log.commit().unwrap();
    assert!(held.log.usage().segments >= 3);
    for (round, seq) in seqs.iter().enumerate() {
        assert_eq!(held.read(*seq), body(round as u64, 200_000));
        held.settle(*seq);
    }
    held.log.commit().unwrap();
    held.tend();
    assert_eq!((held.log.usage().segments, held.log.usage().spares), (1, 2));
}
