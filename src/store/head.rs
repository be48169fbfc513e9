//! The segment that is written: how one begins and ends, and the spares that it is made of.

use std::collections::BTreeSet;
use std::io;

use super::batch::Batch;
use super::disk::{Disk, DiskFile, is_full};
use super::error::AppendError;
use super::format::{Kind, RECORD_HEADER, RECORDS, SECOND_HEADER, SegmentHeader, segment_name, spare_name};
use super::log::Log;
use super::segment::Segment;

/// The segment that is written.
#[derive(Debug)]
pub(super) struct Head<F> {
    pub(super) number: u32,
    pub(super) file: F,
}

/// The newest segment after a start, in which the last process ended: it can go on there. Otherwise each start would cost
/// a segment, and on a full disk some of them the reserve.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resumable {
    pub(super) number: u32,
    /// Where what was committed ends, without the seal.
    pub(super) end: u32,
    /// The length of the file.
    pub(super) bytes: u32,
    /// Up to here stand records of a commit that was torn. They check, and must not be there when something is written in
    /// front of them.
    pub(super) stale: u32,
    /// The last process has closed the log.
    pub(super) sealed: bool,
}

/// What a new head is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// New records: the reserve stays.
    Append,
    /// Settles, and copies that make room: the reserve is for this.
    Relief,
}

impl<D: Disk> Log<D> {
    /// Makes the newest segment the head again, when the first write after a start is due.
    pub(super) fn resume(&mut self) {
        let Some(resumable) = self.resumable.take() else { return };
        // Where that fails a new one is begun, whose header says where this one ends.
        let Ok((file, end)) = self.go_on(resumable) else { return };
        let segment = self.segments.get_mut(&resumable.number).expect("nothing removes the newest segment");
        (segment.end, segment.broken, segment.to_cut) = (end, false, false);
        // It may have read the seal.
        self.reader.forget(resumable.number);
        self.head = Some(Head { number: resumable.number, file });
        self.clean_up();
    }

    /// Opens the newest segment, takes away what is not to come back, and says that a process begins here. Gives where it
    /// goes on.
    fn go_on(&mut self, resumable: Resumable) -> io::Result<(D::File, u32)> {
        let Resumable { number, end, stale, sealed, .. } = resumable;
        let file = self.disk.open(&segment_name(number))?;
        let first = self.segments[&number].end;
        if stale > first {
            // Durable before anything is written in front of it.
            file.write_at(&vec![0; (stale - first) as usize], u64::from(first))?;
            file.sync()?;
        }
        if sealed {
            return Ok((file, end));
        }
        let mut batch = Batch::default();
        let segment = &self.segments[&number];
        if (segment.bytes - end) as usize <= 2 * RECORD_HEADER {
            return Err(io::Error::other("the segment is full"));
        }
        batch.push(Kind::Settle, segment.salt, end, self.next_delta(segment), &[]);
        let bytes = batch.len() as u32;
        file.write_at(batch.padded(RECORD_HEADER), u64::from(end))?;
        file.sync()?;
        Ok((file, end + bytes))
    }

    /// Begins a new head. The batch is empty.
    pub(super) fn advance(&mut self, purpose: Purpose) -> Result<(), AppendError> {
        debug_assert!(self.batch.is_empty(), "places in the old head were given out");
        let needed = if purpose == Purpose::Append { self.spares.reserve + 1 } else { 1 };
        while self.spares.len() < needed {
            self.add_spare(purpose)?;
        }
        let spare = self.spares.take().expect("there is at least one");
        self.seal();
        let number = self.next_segment;
        self.next_segment =
            number.checked_add(1).ok_or_else(|| io::Error::other("no segment number is left"))?;
        match self.begin(number, &spare_name(spare)) {
            Ok(head) => (self.head, self.haunted) = (Some(head), None),
            Err(error) => {
                // A file that failed is not tried again, under none of the names that it may have.
                let _ = self.disk.remove(&spare_name(spare));
                let _ = self.disk.remove(&segment_name(number));
                return Err(error.into());
            }
        }
        self.clean_up();
        Ok(())
    }

    /// Makes a segment out of a spare. Its header is durable before its name is.
    fn begin(&mut self, number: u32, spare: &str) -> io::Result<Head<D::File>> {
        let previous = self.segments.last_key_value();
        let header = SegmentHeader {
            log_id: self.id,
            nonce: self.disk.random()?,
            number,
            bytes: self.settings.segment_bytes,
            base_seq: self.next_seq,
            previous: previous.map_or(0, |(number, _)| *number),
            previous_end: previous.map_or(0, |(_, segment)| segment.end),
            previous_broken: previous.is_some_and(|(_, segment)| segment.broken),
        };
        let (bytes, salt) = header.encode();
        let file = self.disk.open(spare)?;
        file.write_at(&bytes, 0)?;
        file.write_at(&[&bytes[..], &[0; RECORD_HEADER]].concat(), u64::from(SECOND_HEADER))?;
        file.sync()?;
        self.disk.rename(spare, &segment_name(number))?;
        self.disk.sync()?;
        let segment = Segment {
            salt,
            base_seq: header.base_seq,
            bytes: header.bytes,
            end: RECORDS,
            records: 0,
            live: 0,
            settles: BTreeSet::new(),
            guards: header.previous_broken.then_some(header.previous),
            broken: false,
            to_cut: false,
        };
        self.segments.insert(number, segment);
        Ok(Head { number, file })
    }

    /// Ends the head: nothing will follow.
    pub(super) fn seal(&mut self) {
        let Some(head) = self.head.take() else { return };
        let segment = self.segments.get_mut(&head.number).expect("the head is a segment");
        let mut batch = Batch::default();
        let delta = (self.next_seq - segment.base_seq) as u32;
        batch.push(Kind::Seal, segment.salt, segment.end, delta, &[]);
        let sealed =
            head.file.write_at(batch.padded(0), u64::from(segment.end)).and_then(|()| head.file.sync());
        match sealed {
            Ok(()) => segment.end += batch.len() as u32,
            Err(_) => (segment.broken, segment.to_cut) = (true, true),
        }
    }

    /// What can wait until a new head is durable, and fail until the next.
    fn clean_up(&mut self) {
        for name in std::mem::take(&mut self.useless) {
            let _ = self.disk.remove(&name);
        }
        let disk = &mut self.disk;
        self.unreadable.retain(|name| disk.set_aside(name).and_then(|()| disk.sync()).is_err());
        for (number, segment) in self.segments.iter_mut().filter(|(_, segment)| segment.to_cut) {
            let file = self.disk.open(&segment_name(*number));
            let end = u64::from(segment.end);
            let cut = file.and_then(|file| file.truncate(end).and_then(|()| file.sync()));
            if cut.is_ok() {
                (segment.bytes, segment.to_cut) = (segment.end, false);
            }
        }
    }

    /// Makes one more spare, within the bounds. What is to make room may have one segment more.
    pub(super) fn add_spare(&mut self, purpose: Purpose) -> Result<(), AppendError> {
        let (max_bytes, segment_bytes) = (self.settings.max_bytes, u64::from(self.settings.segment_bytes));
        let beyond = if purpose == Purpose::Relief { segment_bytes } else { 0 };
        if self.bytes() + segment_bytes > max_bytes + beyond {
            return Err(AppendError::Full { max_bytes });
        }
        if self.spares.disk_full {
            return Err(AppendError::DiskFull);
        }
        match self.spares.create(&mut self.disk, self.settings.segment_bytes) {
            Err(error) if is_full(&error) => {
                self.spares.disk_full = true;
                Err(AppendError::DiskFull)
            }
            made => Ok(made?),
        }
    }
}
