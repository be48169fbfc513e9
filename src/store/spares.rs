//! Segments without content: the reserve, which keeps settling possible on a full disk, and what is ready for use.

use std::io;

use super::disk::{Disk, Entry};
use super::format::{number_in, spare_name};

/// Emptied segments that are kept: the reserve, and the next head.
const KEPT: usize = 2;

/// The spare files in the directory.
#[derive(Debug, Default)]
pub(super) struct Spares {
    free: Vec<u32>,
    next: u32,
    /// The disk was full; set back when it is worth another try.
    pub(super) disk_full: bool,
}

impl Spares {
    /// Those of this length; others are of no use.
    pub(super) fn new(files: &[Entry], segment_bytes: u32) -> (Self, Vec<String>) {
        let mut spares = Self::default();
        let mut useless = Vec::new();
        for file in files {
            let Some(number) = number_in(&file.name, ".spare") else { continue };
            spares.next = spares.next.max(number.wrapping_add(1));
            if file.bytes == u64::from(segment_bytes) && spares.free.len() < KEPT {
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

    pub(super) fn wants_more(&self) -> bool {
        self.free.len() < KEPT
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
