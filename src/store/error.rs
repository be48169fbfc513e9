//! What can go wrong, by what its caller should do.

use std::io;

use thiserror::Error;

use super::Place;

/// The log cannot be opened. Nothing was changed.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Bounds that make no sense together.
    #[error("{0}")]
    Settings(String),
    /// A segment of a newer program.
    #[error(
        "{file} has format version {found}; this program knows {known}. Use the program that wrote it, or another directory"
    )]
    Version {
        /// Its name.
        file: String,
        /// Its version.
        found: u32,
        /// The one that can be read.
        known: u32,
    },
    /// A segment that does not belong here.
    #[error("{file} does not belong to this log: {why}; move it out of the directory")]
    Foreign {
        /// Its name.
        file: String,
        /// What gave it away.
        why: String,
    },
    /// What the system said.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A record that was not taken. What was appended before still stands.
#[derive(Debug, Error)]
pub enum AppendError {
    /// The commit under way has no room for it: commit, then append it again.
    #[error("a commit is due before more can be appended")]
    CommitFirst,
    /// It can never be taken.
    #[error("a record of {bytes} bytes: at most {max} fit in a segment")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// What can be taken.
        max: usize,
    },
    /// No space within [`Settings::max_bytes`](super::Settings::max_bytes).
    #[error("the log is full: its {max_bytes} bytes are used")]
    Full {
        /// The bound.
        max_bytes: u64,
    },
    /// No space on the disk. It is tried again after the next [`Log::tend`](super::Log::tend).
    #[error("the disk is full")]
    DiskFull,
    /// A new segment could not be made.
    #[error("a new segment cannot be made: {0}")]
    Io(#[from] io::Error),
}

/// A commit that did not succeed: of what was appended since the last one nothing counts, and nothing of it comes back
/// in this process; settles are kept for the next commit. The segment is sealed and the next append begins another.
#[derive(Debug, Error)]
#[error("segment {segment:08x} cannot be {}: {source}", if *.written { "synced" } else { "written" })]
pub struct CommitError {
    /// The segment that is sealed now.
    pub segment: u32,
    /// Whether the failure was that of the sync.
    pub written: bool,
    /// What the system said.
    pub source: io::Error,
}

/// Space that could not be given back. It is tried again by the next [`Log::tend`](super::Log::tend).
#[derive(Debug, Error)]
pub enum TendError {
    /// What was to be kept could not be committed.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// What the system said.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A record that cannot be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// It is damaged. Nothing of it is delivered; settle it.
    #[error("the record at {:08x}:{} is damaged", place.segment, place.offset)]
    Damaged {
        /// Where.
        place: Place,
    },
    /// What the system said; another attempt may succeed.
    #[error("the record at {:08x}:{} cannot be read: {source}", place.segment, place.offset)]
    Io {
        /// Where.
        place: Place,
        /// What it said.
        source: io::Error,
    },
}

impl ReadError {
    /// Whether the disk says that what it holds there cannot be read.
    pub fn is_of_the_medium(&self) -> bool {
        let eio = rustix::io::Errno::IO.raw_os_error();
        matches!(self, Self::Io { source, .. } if source.raw_os_error() == Some(eio))
    }
}
