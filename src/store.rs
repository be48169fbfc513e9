//! The segmented log: what is acknowledged, and must outlive a crash, stands here until it is settled.
//!
//! It stores bodies of bytes under a sequence number, and forgets those that are settled. It knows nothing of devices,
//! messages or hubs: order of a queue, priorities and limits are the caller's, who keeps a [`Place`] for each record.
//! It has no thread, no clock and no lock: one owner calls [`Log::append`] and [`Log::settle`], which only fill
//! buffers, [`Log::commit`], which writes and syncs both, and [`Log::tend`], which gives space back.
//!
//! # What is promised
//!
//! - A record whose commit returned `Ok` is there until it is settled, byte for byte, or is counted as damaged.
//! - A record whose commit failed, or never returned, is there whole or not at all; of one commit always the first ones.
//! - A settle that was not committed is forgotten by a crash: the record comes again. One that was is not.
//! - Nothing is ever delivered whose checksum is wrong, and damage costs no more than the records that it hit.
//! - A file whose sync failed is never written again, and what the failed commit left in it is never believed.
//! - Settling works on a full disk: one segment is kept in reserve for it.
//!
//! # The files
//!
//! `0000002a.seg` is segment 42; segments have one size, are allocated whole, and their number is never used twice.
//! The one with the highest number, the *head*, is written. `00000003.spare` is an empty or emptied segment, waiting to
//! be used (again). `lock` is held while the log is open; `quarantine/` has copies of what was damaged.
//! All numbers are little-endian.
//!
//! The **header** of a segment stands twice, at 0 and at 4096, so that no damaged page takes both:
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 8 | magic `FGATELOG` |
//! | 8 | 4 | version, 1. Magic, version and checksum stand where they are in every version |
//! | 12 | 4 | CRC-32 of the other 60 bytes: the segment's *salt* |
//! | 16 | 8 | the log's id, random, the same in all its segments |
//! | 24 | 8 | random for each segment |
//! | 32 | 4 | the segment's number |
//! | 36 | 4 | its size in bytes |
//! | 40 | 8 | the sequence number of its first record |
//! | 48 | 4 | the number of the segment written before, 0 for none |
//! | 52 | 4 | where that one ends: what stands behind was never committed |
//! | 56 | 4 | 1 if that one ended by a crash or an error, 0 if it was sealed |
//! | 60 | 4 | 0 |
//!
//! From 4160 on there are **records**, without gaps:
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 4 | CRC-32, begun with the salt, of the record's offset in the segment (4 bytes) and the next 12 bytes |
//! | 4 | 3 | length of the body |
//! | 7 | 1 | kind; bit 7 is set in the first record of each commit |
//! | 8 | 4 | sequence number, less that of the header; in other kinds than 1 that of the next record |
//! | 12 | 4 | CRC-32 of the body |
//! | 16 | | the body |
//!
//! Kind 1 is a record. Kind 2 is a record copied out of an older segment; its sequence number (8 bytes) leads its body.
//! Kind 3 settles: groups of the segment where the records lie, the number of ranges, and for each range its distance
//! from the end of the last one and its length less one, all as LEB128. Kind 4, without a body, seals.
//!
//! Sixteen zero bytes follow each commit while there is room. A segment is used again without being wiped: what still
//! stands in it has another salt, and neither that nor a record's image inside a body can have the right checksum for
//! its place.
//!
//! # Recovery
//!
//! [`Log::open`] reads each segment once, the newest first, so that it knows what is settled before it meets the record,
//! and tells its caller of living records only. It changes nothing. What does not check is looked over byte by byte for
//! the next record that does. In the newest segment, and behind the start of its last commit, this is a torn tail: it
//! and what follows was never committed. Everywhere else it is damage: counted, copied to `quarantine/`, skipped; and so
//! it is in the last commit where more of the commit follows and each sector of the bad spot has a sound header of it,
//! because a disk writes a sector wholly or not at all. That damage of whole sectors in the last commit before an
//! unclean stop is taken for a torn tail, and zeros at the end for what was never written, nobody can help.
//! A crashed segment is never written again; the next commit begins a new one.
//!
//! # Giving space back
//!
//! A segment without living records is removed, or kept as a spare, when nothing needs the settles in it any more: the
//! segments whose records they settle are gone, or (if that is cheap) the settles are written once more. Segments that
//! a few living records pin are emptied by copying those to the head, the caller being told their new places.

mod batch;
mod disk;
mod error;
mod files;
mod format;
mod head;
mod live;
mod log;
mod reader;
mod recovery;
mod scan;
mod segment;
mod settles;
#[cfg(test)]
pub(crate) mod sim;
mod spares;
mod tend;
#[cfg(test)]
mod tests;

pub use disk::{Disk, DiskFile, Entry};
pub use error::{AppendError, CommitError, OpenError, ReadError, TendError};
pub use files::{Files, FilesError};
pub use log::{Log, Usage};
pub use recovery::{Damage, Found, Report};

/// Where a record lies. It changes when the record is copied, see [`Log::tend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// The number of the segment.
    pub segment: u32,
    /// The offset in it.
    pub offset: u32,
}

/// The bounds of a log.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Bytes of a segment, 64 KiB to 16 MiB; a record must fit in one. An older log may have other ones, they stay.
    /// Opening takes as much memory for a moment.
    pub segment_bytes: u32,
    /// Bytes that all files may take together, the reserve and the unused rest of the head included; at least four
    /// segments.
    pub max_bytes: u64,
    /// Bytes that one commit may have; more and [`Log::append`] asks for a commit. The buffer takes as much memory.
    pub max_batch_bytes: u32,
}

impl Settings {
    /// Segments of 8 MiB and commits of at most 1 MiB.
    #[must_use]
    pub const fn new(max_bytes: u64) -> Self {
        Self { segment_bytes: 8 << 20, max_bytes, max_batch_bytes: 1 << 20 }
    }

    fn check(&self) -> Result<(), OpenError> {
        let wrong = |what: String| Err(OpenError::Settings(what));
        if !(SEGMENT_MIN..=SEGMENT_MAX).contains(&self.segment_bytes) {
            let (bytes, min, max) = (self.segment_bytes, SEGMENT_MIN, SEGMENT_MAX);
            return wrong(format!("segments of {bytes} bytes: {min} to {max} bytes are possible"));
        }
        let least = SEGMENTS_LEAST * u64::from(self.segment_bytes);
        if self.max_bytes < least {
            let (bytes, segment) = (self.max_bytes, self.segment_bytes);
            return wrong(format!(
                "{bytes} bytes in all: at least {least}, {SEGMENTS_LEAST} segments of {segment}, are needed"
            ));
        }
        Ok(())
    }
}

/// The largest record of settles must fit.
const SEGMENT_MIN: u32 = 64 << 10;
/// The length of a body has three bytes.
const SEGMENT_MAX: u32 = 16 << 20;
/// The head, one that is full, the reserve, and the one that may be made of it.
const SEGMENTS_LEAST: u64 = 4;
