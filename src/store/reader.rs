//! Reading single records: a few open files, and a window that makes reading in log order cheap.

use std::io;

use super::Place;
use super::disk::{Disk, DiskFile};
use super::error::ReadError;
use super::format::{COPY_PREFIX, Kind, RECORD_HEADER, RecordHeader, segment_name, u64_at};
use super::segment::Segment;

/// Files that are kept open.
const OPEN_FILES: usize = 8;
/// What is read where the last read was elsewhere.
const FIRST_BYTES: usize = 4 << 10;
/// What is read where the last read ended; the window takes as much memory.
const AHEAD_BYTES: usize = 64 << 10;

/// Reads records and keeps what it read around them.
#[derive(Debug)]
pub(super) struct Reader<F> {
    /// The last used at the end.
    files: Vec<(u32, F)>,
    window: Vec<u8>,
    /// Where the window begins.
    place: Place,
}

impl<F: DiskFile> Reader<F> {
    pub(super) fn new() -> Self {
        Self { files: Vec::new(), window: Vec::new(), place: Place { segment: 0, offset: 0 } }
    }

    /// The body of the record at `place`, if it is the one asked for and checks.
    pub(super) fn record<D: Disk<File = F>>(
        &mut self,
        disk: &mut D,
        segment: &Segment,
        place: Place,
        seq: u64,
    ) -> Result<&[u8], ReadError> {
        let damaged = ReadError::Damaged { place };
        let failed = |source| ReadError::Io { place, source };
        let head = self.bytes(disk, segment, place, RECORD_HEADER).map_err(failed)?;
        let Some(header) = head.and_then(|head| RecordHeader::decode(head, segment.salt, place.offset))
        else {
            return Err(damaged);
        };
        let Some(record) = self.bytes(disk, segment, place, header.total() as usize).map_err(failed)? else {
            return Err(damaged);
        };
        let body = &record[RECORD_HEADER..];
        if crc32fast::hash(body) != header.body_crc {
            return Err(damaged);
        }
        match header.kind {
            Kind::Record if segment.base_seq + u64::from(header.delta) == seq => Ok(body),
            Kind::Copy if u64_at(body, 0) == seq => Ok(&body[COPY_PREFIX..]),
            _ => Err(damaged),
        }
    }

    /// The segment is gone.
    pub(super) fn forget(&mut self, segment: u32) {
        self.files.retain(|(number, _)| *number != segment);
        if self.place.segment == segment {
            self.window.clear();
        }
    }

    /// `len` bytes at `place`, out of the window; nothing if the segment ends before.
    fn bytes<D: Disk<File = F>>(
        &mut self,
        disk: &mut D,
        segment: &Segment,
        place: Place,
        len: usize,
    ) -> io::Result<Option<&[u8]>> {
        let left = segment.end.saturating_sub(place.offset) as usize;
        if left < len {
            return Ok(None);
        }
        let start = place.offset.wrapping_sub(self.place.offset) as usize;
        let near = self.place.segment == place.segment && start <= self.window.len() + AHEAD_BYTES;
        if near && start + len <= self.window.len() {
            return Ok(Some(&self.window[start..start + len]));
        }
        let ahead = if near { AHEAD_BYTES } else { FIRST_BYTES };
        let wanted = ahead.max(len).min(left);
        let mut window = std::mem::take(&mut self.window);
        window.resize(wanted, 0);
        let file = self.file(disk, place.segment)?;
        let read = match file.read_at(&mut window, u64::from(place.offset)) {
            // What cannot be read may be what nobody has asked for.
            Err(_) if wanted > len => {
                window.truncate(len);
                file.read_at(&mut window, u64::from(place.offset))?
            }
            read => read?,
        };
        window.truncate(read);
        window.shrink_to(AHEAD_BYTES);
        self.window = window;
        self.place = place;
        Ok(self.window.get(..len))
    }

    fn file<D: Disk<File = F>>(&mut self, disk: &mut D, segment: u32) -> io::Result<&F> {
        match self.files.iter().position(|(number, _)| *number == segment) {
            Some(at) => self.files[at..].rotate_left(1),
            None => {
                if self.files.len() == OPEN_FILES {
                    self.files.remove(0);
                }
                self.files.push((segment, disk.open(&segment_name(segment))?));
            }
        }
        Ok(&self.files.last().expect("it was put there").1)
    }
}
