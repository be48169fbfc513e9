//! What is known in memory of one segment.

use std::collections::BTreeSet;

use super::format::{RECORDS, Salt};

/// A segment that is on the disk; about 150 bytes each.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) salt: Salt,
    pub(super) base_seq: u64,
    /// The length of its file.
    pub(super) bytes: u32,
    /// Where what was committed ends.
    pub(super) end: u32,
    /// Records and copies in it, dead or alive.
    pub(super) records: u32,
    /// How many of them live here and nowhere else.
    pub(super) live: u32,
    /// The segments whose records are settled by what is written in this one. They may be gone.
    pub(super) settles: BTreeSet<u32>,
    /// What was written before it, if only this one's header tells where that ends.
    pub(super) guards: Option<u32>,
    /// It ended by a crash or an error, not by a seal.
    pub(super) broken: bool,
    /// Something may stand behind its end that was never committed, or much room is left: cut it there once a newer
    /// segment says where it ends.
    pub(super) to_cut: bool,
}

impl Segment {
    /// What copying the living records would write, by their average length.
    pub(super) fn live_bytes(&self) -> u64 {
        u64::from(self.end - RECORDS) * u64::from(self.live) / u64::from(self.records.max(1))
    }
}
