//! Segments without content: the reserve, which keeps settling possible on a full disk, and what is ready for use.

use std::io;

use super::disk::{Disk, Entry};
use super::format::{number_in, spare_name};

/// Logs of at least so many segments have two of them in reserve: when settles have filled the one, most of what they take
/// there can be given back by writing them once more, together, into the other.
const TWO_IN_RESERVE: u64 = 16;

/// The spare files in the directory.
#[derive(Debug, Default)]
pub(super) struct Spares {
    free: Vec<u32>,
    next: u32,
    /// How many are kept for settles.
    pub(super) reserve: usize,
    /// The disk was full; set back when it is worth another try.
    pub(super) disk_full: bool,
}

impl Spares {
    /// Those of this length; others are of no use.
    pub(super) fn new(files: &[Entry], segment_bytes: u32, max_bytes: u64) -> (Self, Vec<String>) {
        let segments = max_bytes / u64::from(segment_bytes);
        let reserve = if segments >= TWO_IN_RESERVE { 2 } else { 1 };
        let mut spares = Self { reserve, ..Self::default() };
        let mut useless = Vec::new();
        for file in files {
            let Some(number) = number_in(&file.name, ".spare") else { continue };
            spares.next = spares.next.max(number.wrapping_add(1));
            if file.bytes == u64::from(segment_bytes) && spares.wants_more() {
                spares.free.push(number);
            } else {
                useless.push(file.name.clone());
            }
        }
        (spares, useless)
    }

    pub(super) fn len(&self) -> usize {
        self.free.len()
    }

    /// The reserve, and the next head.
    pub(super) fn wants_more(&self) -> bool {
        self.free.len() < self.reserve + 1
    }

    /// Whether all of the reserve is there.
    pub(super) fn has_reserve(&self) -> bool {
        self.free.len() >= self.reserve
    }

    pub(super) fn take(&mut self) -> Option<u32> {
        self.free.pop()
    }

    /// Makes a file for one more.
    pub(super) fn create<D: Disk>(&mut self, disk: &mut D, segment_bytes: u32) -> io::Result<()> {
        let number = self.number();
        let file = disk.create(&spare_name(number), u64::from(segment_bytes))?;
        super::disk::DiskFile::sync(&file)?;
        disk.sync()?;
        self.free.push(number);
        Ok(())
    }

    /// Keeps an emptied file as a spare. Durable when it returns, so that the old name cannot come back with what will
    /// be written.
    pub(super) fn keep<D: Disk>(&mut self, disk: &mut D, name: &str) -> io::Result<()> {
        let number = self.number();
        disk.rename(name, &spare_name(number))?;
        disk.sync()?;
        self.free.push(number);
        Ok(())
    }

    fn number(&mut self) -> u32 {
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        number
    }
}
