//! A disk in memory, for tests: it loses at a crash what was not synced, wholly, in part or not at all; it fills; its
//! writes and syncs fail; its bytes can be changed.
//!
//! A clone is another handle on the same disk. After [`SimDisk::crash`] the handles and files that were open before do
//! nothing but fail, so a log that was not dropped cannot change what the next one finds.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use super::disk::{Disk, DiskFile, Entry};

/// What a crash does to what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loss {
    /// Nothing is lost: only the process died.
    None,
    /// All of it.
    All,
    /// Some sectors, and some changes of names.
    Half,
}

/// What an operation does when it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// No write has space, inside an allocated file neither.
    FullWrite,
    /// A write fails after half of it.
    Write,
    /// A sync fails, and what was to be synced is lost for good, though reading shows it still.
    Sync,
    /// A change of names, or making that durable, fails.
    Directory,
    /// A file cannot be cut.
    Truncate,
}

/// A handle on the simulated disk.
#[derive(Clone, Debug)]
pub(crate) struct SimDisk {
    state: Arc<Mutex<State>>,
    epoch: u64,
}

/// An open file of it.
#[derive(Debug)]
pub(crate) struct SimFile {
    disk: SimDisk,
    node: usize,
}

#[derive(Debug)]
struct State {
    epoch: u64,
    random: u64,
    /// Bytes that all files together may have.
    capacity: u64,
    nodes: Vec<Node>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// What was done to names since the last sync of the directory.
    changes: Vec<Change>,
    quarantine: BTreeMap<String, Vec<u8>>,
    faults: Vec<(u32, Fault)>,
    written: u64,
    syncs: u64,
}

#[derive(Clone, Debug, Default)]
struct Node {
    /// What cannot be read.
    unreadable: std::ops::Range<usize>,
    bytes: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors written since the last sync.
    dirty: Vec<usize>,
}

#[derive(Clone, Debug)]
enum Change {
    Create(String, usize),
    Rename(String, String),
    Remove(String),
}

const SECTOR: usize = 512;

impl Change {
    fn names(&self) -> Vec<&String> {
        match self {
            Self::Create(name, _) | Self::Remove(name) => vec![name],
            Self::Rename(from, to) => vec![from, to],
        }
    }

    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Create(name, node) => drop(names.insert(name.clone(), *node)),
            Self::Rename(from, to) => {
                if let Some(node) = names.remove(from) {
                    names.insert(to.clone(), node);
                }
            }
            Self::Remove(name) => drop(names.remove(name)),
        }
    }
}

impl SimDisk {
    pub(crate) fn new(seed: u64, capacity: u64) -> Self {
        let state = State {
            epoch: 0,
            random: seed ^ 0x9e37_79b9_7f4a_7c15,
            capacity,
            nodes: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            changes: Vec::new(),
            quarantine: BTreeMap::new(),
            faults: Vec::new(),
            written: 0,
            syncs: 0,
        };
        Self { state: Arc::new(Mutex::new(state)), epoch: 0 }
    }

    /// Ends whatever uses the disk, and gives a new handle on what is left.
    pub(crate) fn crash(&self, loss: Loss) -> Self {
        let mut state = self.lock();
        state.epoch += 1;
        state.faults.clear();
        let epoch = state.epoch;
        let fresh = Self { state: self.state.clone(), epoch };
        if loss == Loss::None {
            // The cache may lose what it could not write, as it takes that for clean.
            state.nodes.iter_mut().for_each(Node::evict);
            return fresh;
        }
        let mut names = state.durable_names.clone();
        let mut lost: Vec<String> = Vec::new();
        for change in std::mem::take(&mut state.changes) {
            // What builds on a change that was lost is lost as well.
            let built_on_lost = change.names().iter().any(|name| lost.contains(name));
            if loss == Loss::All || built_on_lost || state.draw(2) == 0 {
                lost.extend(change.names().into_iter().cloned());
            } else {
                change.apply(&mut names);
            }
        }
        state.durable_names = names.clone();
        state.names = names;
        let named: Vec<usize> = state.names.values().copied().collect();
        for at in 0..state.nodes.len() {
            if !named.contains(&at) {
                state.nodes[at] = Node::default();
            }
        }
        for at in 0..state.nodes.len() {
            let mut node = std::mem::take(&mut state.nodes[at]);
            node.dirty.sort_unstable();
            node.dirty.dedup();
            for sector in std::mem::take(&mut node.dirty) {
                if loss == Loss::Half && state.draw(2) == 0 {
                    node.keep(sector);
                }
            }
            node.bytes.clone_from(&node.durable);
            state.nodes[at] = node;
        }
        fresh
    }

    /// The number of bytes that files may have; fewer than there are, and nothing can be allocated.
    pub(crate) fn set_capacity(&self, bytes: u64) {
        self.lock().capacity = bytes;
    }

    /// Lets the operation of this kind after `after` others fail, once.
    pub(crate) fn fail(&self, fault: Fault, after: u32) {
        self.lock().faults.push((after, fault));
    }

    /// From now on these bytes of a file cannot be read.
    pub(crate) fn wear_out(&self, name: &str, bytes: std::ops::Range<usize>) {
        let mut state = self.lock();
        let at = state.names[name];
        state.nodes[at].unreadable = bytes;
    }

    /// Everything can be read again.
    pub(crate) fn mend(&self) {
        self.lock().nodes.iter_mut().for_each(|node| node.unreadable = 0..0);
    }

    /// The names of the files.
    pub(crate) fn names(&self) -> Vec<String> {
        self.lock().names.keys().cloned().collect()
    }

    /// The content of a file, for a test to change; it is durable.
    pub(crate) fn edit(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.lock();
        let at = state.names[name];
        let node = &mut state.nodes[at];
        change(&mut node.bytes);
        node.durable.clone_from(&node.bytes);
        node.dirty.clear();
    }

    /// A disk of its own with the same content.
    pub(crate) fn copy(&self) -> Self {
        let state = self.lock();
        let copy = State {
            epoch: 0,
            random: state.random,
            capacity: state.capacity,
            nodes: state.nodes.clone(),
            names: state.names.clone(),
            durable_names: state.durable_names.clone(),
            changes: state.changes.clone(),
            quarantine: state.quarantine.clone(),
            faults: Vec::new(),
            written: 0,
            syncs: 0,
        };
        Self { state: Arc::new(Mutex::new(copy)), epoch: 0 }
    }

    /// Names in the quarantine.
    pub(crate) fn quarantined(&self) -> Vec<String> {
        self.lock().quarantine.keys().cloned().collect()
    }

    /// Bytes written and syncs so far.
    pub(crate) fn work(&self) -> (u64, u64) {
        let state = self.lock();
        (state.written, state.syncs)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with the disk in its hands")
    }

    /// The disk, if it did not crash since, and nothing of these kinds is to fail now.
    fn alive(&self, kinds: &[Fault]) -> io::Result<(MutexGuard<'_, State>, Option<Fault>)> {
        let mut state = self.lock();
        if state.epoch != self.epoch {
            return Err(io::Error::other("the machine crashed"));
        }
        let mut due = None;
        for (at, (after, kind)) in
            state.faults.iter_mut().enumerate().filter(|(_, (_, kind))| kinds.contains(kind))
        {
            match after {
                0 => due = Some((at, *kind)),
                _ => *after -= 1,
            }
        }
        if let Some((at, kind)) = due {
            state.faults.remove(at);
            return Ok((state, Some(kind)));
        }
        Ok((state, None))
    }

    fn directory(&self) -> io::Result<MutexGuard<'_, State>> {
        match self.alive(&[Fault::Directory])? {
            (state, None) => Ok(state),
            (_, Some(_)) => Err(broken("the directory cannot be changed")),
        }
    }
}

fn broken(what: &'static str) -> io::Error {
    io::Error::other(what)
}

fn full() -> io::Error {
    io::ErrorKind::StorageFull.into()
}

fn no_such_file() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl State {
    fn draw(&mut self, below: u64) -> u64 {
        // SplitMix64.
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % below
    }

    fn used(&self) -> u64 {
        self.names.values().map(|node| self.nodes[*node].bytes.len() as u64).sum()
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.names);
        self.changes.push(change);
    }
}

impl Node {
    /// Forgets what is not on the disk and is not going to be.
    fn evict(&mut self) {
        let cached = std::mem::replace(&mut self.bytes, self.durable.clone());
        self.bytes.resize(cached.len(), 0);
        for sector in &self.dirty {
            let start = (sector * SECTOR).min(cached.len());
            let end = (start + SECTOR).min(cached.len());
            self.bytes[start..end].copy_from_slice(&cached[start..end]);
        }
    }

    /// Makes a sector durable.
    fn keep(&mut self, sector: usize) {
        let start = sector * SECTOR;
        let end = (start + SECTOR).min(self.bytes.len());
        if start < end && end <= self.durable.len() {
            self.durable[start..end].copy_from_slice(&self.bytes[start..end]);
        }
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn list(&mut self) -> io::Result<Vec<Entry>> {
        let (state, _) = self.alive(&[])?;
        let entry = |(name, node): (&String, &usize)| Entry {
            name: name.clone(),
            bytes: state.nodes[*node].bytes.len() as u64,
        };
        Ok(state.names.iter().map(entry).collect())
    }

    fn open(&mut self, name: &str) -> io::Result<SimFile> {
        let (state, _) = self.alive(&[])?;
        let node = *state.names.get(name).ok_or_else(no_such_file)?;
        Ok(SimFile { disk: self.clone(), node })
    }

    fn create(&mut self, name: &str, bytes: u64) -> io::Result<SimFile> {
        let mut state = self.directory()?;
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if state.used() + bytes > state.capacity {
            return Err(full());
        }
        let node = state.nodes.len();
        // The length of an allocated file is taken to be durable with its name; its content is zeros then.
        state.nodes.push(Node {
            unreadable: 0..0,
            bytes: vec![0; bytes as usize],
            durable: vec![0; bytes as usize],
            dirty: Vec::new(),
        });
        state.change(Change::Create(name.into(), node));
        drop(state);
        Ok(SimFile { disk: self.clone(), node })
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.directory()?;
        state.names.get(from).ok_or_else(no_such_file)?;
        state.change(Change::Rename(from.into(), to.into()));
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let mut state = self.directory()?;
        state.names.get(name).ok_or_else(no_such_file)?;
        state.change(Change::Remove(name.into()));
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.directory()?;
        state.syncs += 1;
        state.changes.clear();
        state.durable_names = state.names.clone();
        Ok(())
    }

    fn quarantine(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let (mut state, _) = self.alive(&[])?;
        state.quarantine.entry(name.into()).or_insert_with(|| bytes.to_vec());
        Ok(())
    }

    fn set_aside(&mut self, name: &str) -> io::Result<()> {
        let mut state = self.directory()?;
        let node = *state.names.get(name).ok_or_else(no_such_file)?;
        let bytes = state.nodes[node].bytes.clone();
        state.quarantine.insert(name.into(), bytes);
        state.change(Change::Remove(name.into()));
        Ok(())
    }

    fn random(&mut self) -> io::Result<u64> {
        Ok(self.alive(&[])?.0.draw(u64::MAX))
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let (state, _) = self.disk.alive(&[])?;
        let Node { bytes, unreadable, .. } = &state.nodes[self.node];
        let from = bytes.get(offset as usize..).unwrap_or_default();
        let read = from.len().min(into.len());
        if unreadable.start < offset as usize + read && (offset as usize) < unreadable.end {
            return Err(rustix::io::Errno::IO.into());
        }
        into[..read].copy_from_slice(&from[..read]);
        Ok(read)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (mut state, fault) = self.disk.alive(&[Fault::Write, Fault::FullWrite])?;
        let bytes = if fault.is_some() { &bytes[..bytes.len() / 2] } else { bytes };
        state.written += bytes.len() as u64;
        let node = &mut state.nodes[self.node];
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        if end > node.bytes.len() {
            node.bytes.resize(end, 0);
        }
        node.bytes[start..end].copy_from_slice(bytes);
        node.dirty.extend(start / SECTOR..end.div_ceil(SECTOR));
        match fault {
            None => Ok(()),
            Some(Fault::FullWrite) => Err(full()),
            Some(_) => Err(broken("a sector cannot be written")),
        }
    }

    fn sync(&self) -> io::Result<()> {
        let (mut state, fault) = self.disk.alive(&[Fault::Sync])?;
        state.syncs += 1;
        let mut node = std::mem::take(&mut state.nodes[self.node]);
        let len = node.bytes.len();
        node.durable.resize(len, 0);
        for sector in std::mem::take(&mut node.dirty) {
            // Linux marks the pages clean that it could not write.
            if fault.is_none() || state.draw(2) == 0 {
                node.keep(sector);
            }
        }
        state.nodes[self.node] = node;
        match fault {
            None => Ok(()),
            Some(_) => Err(broken("a sector cannot be synced")),
        }
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        let (mut state, fault) = self.disk.alive(&[Fault::Truncate])?;
        if fault.is_some() {
            return Err(broken("the file cannot be cut"));
        }
        let node = &mut state.nodes[self.node];
        node.bytes.truncate(bytes as usize);
        // That the crash may bring the old end back is worth a test; a later sync makes it durable.
        node.dirty.retain(|sector| sector * SECTOR < bytes as usize);
        Ok(())
    }
}
