//! A crash of the machine, played after the process was killed: what was not synced may be lost, in whole or in part.
//!
//! The shim's journal says what was done to the files since the process began, and what they held before. Of the
//! changes that no sync covers, writes are undone by sectors, as chance has it; creations, removals and renames from some
//! point on, since a file system keeps their order. A failed sync covers nothing, and no later one of the same file
//! covers what it was for.

use std::collections::{HashMap, HashSet};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{DirEntryExt as _, FileExt as _};
use std::path::Path;

use super::Result;
use super::rng::Rng;
use super::shim::Shim;

const SECTOR: u64 = 512;
/// Type, inode, two numbers, length; as `struct head` of the shim.
const HEAD: usize = 1 + 8 + 8 + 8 + 4;

/// A write that may be lost.
#[derive(Debug)]
struct Write {
    at: u64,
    bytes: u64,
    /// What was there before; past its end there was nothing.
    before: Vec<u8>,
}

/// A change of the directory that may be lost.
#[derive(Debug)]
enum Change {
    Created(String),
    Removed { name: String, grave: u64 },
    Renamed { from: String, to: String },
}

/// What is not synced.
#[derive(Debug, Default)]
struct Unsynced {
    writes: HashMap<u64, Vec<Write>>,
    /// Not covered by any sync any more.
    doomed: HashMap<u64, Vec<Write>>,
    synced_bytes: HashMap<u64, u64>,
    changes: Vec<Change>,
}

/// What a crash took away.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Loss {
    pub(crate) sectors: u64,
    pub(crate) changes: u64,
}

/// Crashes the machine under a gateway that was killed.
pub(crate) fn crash(shim: &Shim, rng: &mut Rng) -> Result<Loss> {
    let journal = match fs::read(&shim.journal) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        journal => journal?,
    };
    let loss = read(&journal).lose(&shim.watched, &shim.control, rng)?;
    for entry in fs::read_dir(&shim.control)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("grave-") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(loss)
}

/// Reads a journal, as far as it was written.
fn read(mut journal: &[u8]) -> Unsynced {
    let mut unsynced = Unsynced::default();
    while let Some((head, rest)) = journal.split_at_checked(HEAD) {
        let number = |at: usize| head[at..at + 8].try_into().map(u64::from_le_bytes).unwrap_or_default();
        let (kind, file, first, second) = (head[0], number(1), number(9), number(17));
        let bytes = head[25..].try_into().map(u32::from_le_bytes).unwrap_or_default() as usize;
        let Some((data, rest)) = rest.split_at_checked(bytes) else { break };
        journal = rest;
        let name = || String::from_utf8_lossy(data).into_owned();
        match kind {
            b'W' => {
                let write = Write { at: first, bytes: second, before: data.to_vec() };
                unsynced.writes.entry(file).or_default().push(write);
            }
            b'S' => {
                unsynced.writes.remove(&file);
                unsynced.synced_bytes.insert(file, first);
            }
            b'F' => {
                let lost = unsynced.writes.remove(&file).unwrap_or_default();
                unsynced.doomed.entry(file).or_default().extend(lost);
            }
            b'D' => unsynced.changes.clear(),
            b'C' => unsynced.changes.push(Change::Created(name())),
            b'U' => unsynced.changes.push(Change::Removed { name: name(), grave: first }),
            _ => {
                let names = name();
                if let Some((from, to)) = names.split_once('/') {
                    unsynced.changes.push(Change::Renamed { from: from.into(), to: to.into() });
                }
            }
        }
    }
    unsynced
}

impl Unsynced {
    fn lose(mut self, directory: &Path, control: &Path, rng: &mut Rng) -> Result<Loss> {
        let mut loss = Loss::default();
        if !directory.exists() {
            return Ok(loss);
        }
        let kept = rng.below(self.changes.len() as u64 + 1) as usize;
        for change in self.changes.drain(kept..).rev() {
            loss.changes += 1;
            match change {
                Change::Created(name) => fs::remove_file(directory.join(name))?,
                Change::Removed { name, grave } => {
                    fs::hard_link(control.join(format!("grave-{grave}")), directory.join(name))?;
                }
                Change::Renamed { from, to } => fs::rename(directory.join(to), directory.join(from))?,
            }
        }
        for (file, writes) in self.doomed {
            let after = self.writes.remove(&file).unwrap_or_default();
            self.writes.insert(file, writes.into_iter().chain(after).collect());
        }
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if let Some(writes) = self.writes.remove(&entry.ino()) {
                let synced = self.synced_bytes.get(&entry.ino()).copied();
                loss.sectors += lose_writes(&entry.path(), &writes, synced, rng)?;
            }
        }
        Ok(loss)
    }
}

/// Undoes some of the writes, the last first; says how many sectors it were.
fn lose_writes(path: &Path, writes: &[Write], synced: Option<u64>, rng: &mut Rng) -> Result<u64> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    // All of them, or some sectors of each.
    let all = rng.below(2) == 0;
    let mut lost = 0;
    let mut kept = HashSet::new();
    for write in writes.iter().rev() {
        let mut at = write.at;
        let end = write.at + write.bytes;
        while at < end {
            let (sector, next) = (at / SECTOR, (at / SECTOR * SECTOR + SECTOR).min(end));
            // What a later write has put onto the disk stays there.
            if !kept.contains(&sector) && (all || rng.below(2) == 0) {
                lost += 1;
                let place = |offset: u64| ((offset - write.at) as usize).min(write.before.len());
                let mut before = write.before[place(at)..place(next)].to_vec();
                before.resize((next - at) as usize, 0);
                file.write_all_at(&before, at)?;
            } else {
                kept.insert(sector);
            }
            at = next;
        }
    }
    // What stands past the last length that was synced may not be there at all.
    if let Some(synced) =
        synced.filter(|synced| all && *synced < file.metadata().map_or(0, |about| about.len()))
    {
        file.set_len(synced)?;
    }
    Ok(lost)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;
    use std::path::PathBuf;

    use super::*;

    /// A directory with a file, its journal so far, and how often it was asked for.
    struct Disk {
        path: PathBuf,
        journal: Vec<u8>,
    }

    impl Disk {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("faults-crash-{name}-{}", std::process::id()));
            fs::create_dir_all(path.join("control")).unwrap();
            fs::create_dir_all(path.join("spool")).unwrap();
            Self { path, journal: Vec::new() }
        }

        fn file(&self) -> PathBuf {
            self.path.join("spool/log")
        }

        fn note(&mut self, kind: u8, first: u64, second: u64, data: &[u8]) {
            let file = fs::metadata(self.file()).unwrap().ino();
            self.journal.push(kind);
            for number in [file, first, second] {
                self.journal.extend(number.to_le_bytes());
            }
            self.journal.extend((data.len() as u32).to_le_bytes());
            self.journal.extend(data);
        }

        fn lose(&self, seed: u64) -> Loss {
            let (spool, control) = (self.path.join("spool"), self.path.join("control"));
            read(&self.journal).lose(&spool, &control, &mut Rng::new(seed)).unwrap()
        }
    }

    impl Drop for Disk {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.path);
        }
    }

    #[test]
    fn what_was_synced_stays_and_the_rest_may_go() {
        let mut seen = HashSet::new();
        for seed in 0..40 {
            let mut disk = Disk::new("writes");
            fs::write(disk.file(), [0; 2048]).unwrap();
            disk.note(b'W', 0, 1024, &[0; 1024]);
            disk.note(b'S', 2048, 0, b"");
            disk.note(b'W', 1024, 1024, &[0; 1024]);
            let whole = [vec![1; 1024], vec![2; 1024]].concat();
            fs::write(disk.file(), &whole).unwrap();
            // A record that was not written whole says nothing.
            disk.journal.extend([b'S', 1, 2, 3]);
            let loss = disk.lose(seed);
            let after = fs::read(disk.file()).unwrap();
            assert_eq!(after[..1024], [1; 1024]);
            assert_eq!(loss.sectors, (after[1024] == 0) as u64 + (after[1536] == 0) as u64);
            seen.insert((after[1024], after[1536]));
        }
        assert_eq!(seen.len(), 4, "whatever may be lost is lost some time: {seen:?}");
    }

    #[test]
    fn a_sync_after_one_that_failed_covers_nothing_of_before() {
        let mut lost = 0;
        for seed in 0..10 {
            let mut disk = Disk::new("failed");
            fs::write(disk.file(), [0; 512]).unwrap();
            disk.note(b'W', 0, 512, &[0; 512]);
            disk.note(b'F', 0, 0, b"");
            disk.note(b'S', 512, 0, b"");
            lost += disk.lose(seed).sectors;
        }
        assert!(lost > 0);
    }

    #[test]
    fn changes_of_the_directory_are_lost_from_some_point_on() {
        let mut seen = HashSet::new();
        for seed in 0..40 {
            let mut disk = Disk::new("changes");
            let spool = disk.path.join("spool");
            fs::write(disk.file(), "log").unwrap();
            disk.note(b'C', 0, 0, b"log");
            disk.note(b'D', 0, 0, b"");
            fs::write(spool.join("old"), "old").unwrap();
            disk.note(b'C', 0, 0, b"old");
            fs::hard_link(disk.file(), disk.path.join("control/grave-7")).unwrap();
            disk.note(b'U', 7, 0, b"log");
            fs::remove_file(disk.file()).unwrap();
            fs::rename(spool.join("old"), disk.file()).unwrap();
            disk.note(b'R', 0, 0, b"old/log");
            disk.lose(seed);
            let mut names: Vec<_> = fs::read_dir(&spool)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .map(|path| {
                    format!("{}={}", path.file_name().unwrap().display(), fs::read_to_string(&path).unwrap())
                })
                .collect();
            names.sort();
            seen.insert(names.join(" "));
        }
        let mut seen: Vec<_> = seen.into_iter().collect();
        seen.sort();
        assert_eq!(seen, ["log=log", "log=log old=old", "log=old", "old=old"]);
    }
}
