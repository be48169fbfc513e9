//! Records that the disk cannot read: whether to wait for it, or to give them up.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::store::ReadError;

use super::Now;

/// How long a disk may fail to read a record, and read others meanwhile, until that counts as damaged.
const PATIENCE: Duration = Duration::from_secs(60);
/// Records that are remembered; further ones wait until there is room. Each of them keeps its queue waiting.
const MOST: usize = 1_024;
/// When one is forgotten that nobody has asked for again.
const FORGOTTEN: Duration = Duration::from_secs(3_600);

/// Which records could not be read, and since when.
#[derive(Debug, Default)]
pub(super) struct Unreadable {
    since: BTreeMap<u64, Instant>,
    /// When a record was read last.
    read_at: Option<Instant>,
}

impl Unreadable {
    /// A record was read.
    pub(super) fn read(&mut self, seq: u64, now: Now) {
        self.read_at = Some(now.at);
        if !self.since.is_empty() {
            self.since.remove(&seq);
        }
    }

    /// Whether a record that cannot be read counts as damaged. A disk that reads nothing at all is not there, and may
    /// come back.
    pub(super) fn is_lost(&mut self, seq: u64, error: &ReadError, now: Now) -> bool {
        if let ReadError::Damaged { .. } = error {
            return true;
        }
        if !error.is_of_the_medium() {
            return false;
        }
        let since = match self.since.get(&seq) {
            Some(since) => *since,
            None if self.since.len() < MOST => *self.since.entry(seq).or_insert(now.at),
            None => return false,
        };
        let lost = since + PATIENCE <= now.at && self.read_at.is_some_and(|at| at >= since);
        if lost {
            self.since.remove(&seq);
        }
        lost
    }

    /// Forgets what nobody asks for any more.
    pub(super) fn forget(&mut self, now: Now) {
        self.since.retain(|_, since| *since + FORGOTTEN > now.at);
    }
}
