//! The log: appending, settling, committing, reading.

use std::collections::BTreeMap;

use super::batch::{Batch, total};
use super::disk::{Disk, DiskFile};
use super::error::{AppendError, CommitError, OpenError, ReadError};
use super::format::{Kind, RECORD_HEADER, RECORDS};
use super::head::{Head, Purpose, Resumable};
use super::live::SeqSet;
use super::reader::Reader;
use super::recovery::{Found, Report, recover};
use super::segment::Segment;
use super::settles::Settles;
use super::spares::Spares;
use super::tend::Emptying;
use super::{Place, Settings};

/// A segmented log. See the [module](super) for what it promises.
#[derive(Debug)]
pub struct Log<D: Disk> {
    pub(super) disk: D,
    pub(super) settings: Settings,
    pub(super) id: u64,
    pub(super) next_seq: u64,
    pub(super) next_segment: u32,
    pub(super) segments: BTreeMap<u32, Segment>,
    /// The newest segment, if it may still be written.
    pub(super) head: Option<Head<D::File>>,
    /// The newest segment, until something is to be written for the first time.
    pub(super) resumable: Option<Resumable>,
    pub(super) spares: Spares,
    pub(super) live: SeqSet,
    pub(super) batch: Batch,
    pub(super) settles: Settles,
    pub(super) reader: Reader<D::File>,
    pub(super) emptying: Option<Emptying>,
    /// Segments with records that live elsewhere, and those records. Until they are gone nothing else is removed: it might be what settles
    /// those.
    pub(super) shadowed: BTreeMap<u32, SeqSet>,
    /// A segment out of which copies were written and could not be synced. Until a new head makes them void, a crash may
    /// bring them back, and it must not be gone with the settles that nobody wrote for it.
    pub(super) haunted: Option<u32>,
    /// An append was refused since the last that was not, or settles found no room.
    pub(super) refused: bool,
    /// Files that no segment is in: without readable header, or of no use.
    pub(super) unreadable: Vec<String>,
    pub(super) useless: Vec<String>,
    pub(super) damaged: u64,
    written: u64,
    commits: u64,
}

/// What a log holds and takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Records that live.
    pub records: u64,
    /// Segments.
    pub segments: usize,
    /// Bytes of all files: segments, and spares.
    pub bytes: u64,
    /// Bytes of the records that live, roughly.
    pub live_bytes: u64,
    /// The bound of `bytes`.
    pub max_bytes: u64,
    /// Empty segments that are ready, the reserve included. Without that, nothing can be appended.
    pub spares: usize,
    /// There is no room for more records, by the bound or on the disk.
    pub full: bool,
    /// Damaged spots that were met, in opening and since.
    pub damaged: u64,
    /// Bytes that commits wrote since opening, copies included.
    pub written: u64,
    /// Commits since opening.
    pub commits: u64,
}

impl<D: Disk> Log<D> {
    /// Opens the log in a directory, or begins one. `seen` is shown each record that lives, once; those of the newest
    /// segment first, and within a segment in the order in which they were written. As records may have been copied,
    /// only their sequence numbers tell their order.
    ///
    /// Nothing is written but copies of what is damaged.
    ///
    /// # Errors
    /// [`OpenError`]; damage is no error, but is in the report.
    pub fn open(
        mut disk: D,
        settings: Settings,
        mut seen: impl FnMut(Found<'_>),
    ) -> Result<(Self, Report), OpenError> {
        settings.check()?;
        let files = disk.list()?;
        let (spares, useless) = Spares::new(&files, settings.segment_bytes, settings.max_bytes);
        let found = recover(&mut disk, &files, &mut seen)?;
        let id = match found.id {
            Some(id) => id,
            None => disk.random()?,
        };
        let log = Self {
            disk,
            settings,
            id,
            next_seq: found.next_seq,
            next_segment: found.next_segment,
            segments: found.segments,
            head: None,
            resumable: found.resumable,
            spares,
            live: found.live,
            batch: Batch::default(),
            settles: Settles::default(),
            reader: Reader::new(),
            emptying: None,
            shadowed: found.shadowed,
            haunted: None,
            refused: false,
            unreadable: found.unreadable,
            useless,
            damaged: found.report.damaged,
            written: 0,
            commits: 0,
        };
        Ok((log, found.report))
    }

    /// A number that was made by chance with the log: with it, sequence numbers are unique in the world.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The number that the next record gets, at least.
    #[must_use]
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// Adds a record, whose body is the parts one after the other, to the next commit. Sequence numbers grow, and are
    /// never used twice, but some may be left out.
    ///
    /// # Errors
    /// [`AppendError`]: the record was not taken, the commit under way stays as it is.
    pub fn append(&mut self, parts: &[&[u8]]) -> Result<(u64, Place), AppendError> {
        let bytes = parts.iter().map(|part| part.len()).sum();
        let max = self.max_record();
        if bytes > max {
            return Err(AppendError::TooLarge { bytes, max });
        }
        let taken = self.make_room(bytes);
        self.refused = taken.is_err() && (self.refused || !matches!(taken, Err(AppendError::CommitFirst)));
        taken?;
        let (number, segment) = self.head_segment();
        let (salt, end, delta) = (segment.salt, segment.end, self.next_delta(segment));
        let offset = self.batch.push(Kind::Record, salt, end, delta, parts);
        self.batch.records += 1;
        let seq = self.next_seq;
        self.next_seq += 1;
        Ok((seq, Place { segment: number, offset }))
    }

    /// The largest body that can be appended.
    #[must_use]
    pub fn max_record(&self) -> usize {
        self.settings.segment_bytes as usize - RECORDS as usize - total(Kind::Copy, 0) - total(Kind::Seal, 0)
    }

    /// The record is not needed any more. The next commit, of appended records or by itself, makes that durable; until
    /// then a crash brings the record back. What is settled already is left alone.
    pub fn settle(&mut self, seq: u64, place: Place) {
        if !self.live.remove(seq) {
            return;
        }
        // Damage may have taken the segment away.
        if let Some(segment) = self.segments.get_mut(&place.segment) {
            segment.live = segment.live.saturating_sub(1);
            self.settles.add(place.segment, seq);
        }
    }

    /// Settles that a crash would undo. They take 8 bytes each until they are committed.
    #[must_use]
    pub fn settles_waiting(&self) -> usize {
        self.settles.len()
    }

    /// Bytes that wait for the next commit.
    #[must_use]
    pub fn bytes_waiting(&self) -> usize {
        self.batch.len()
    }

    /// Writes and syncs what was appended and settled, in one write and one sync. Settles may stay behind: where there
    /// is no room for them, or very many; [`settles_waiting`](Self::settles_waiting) tells.
    ///
    /// # Errors
    /// [`CommitError`]: nothing that was appended since the last commit counts. Settles are kept.
    pub fn commit(&mut self) -> Result<(), CommitError> {
        loop {
            let appended = !self.batch.is_empty();
            let settles = self.push_settles()?;
            if self.batch.is_empty() {
                return Ok(());
            }
            self.write(settles)?;
            // One write carries all that was appended, so that one answer holds for it.
            if appended || self.settles.is_empty() {
                return Ok(());
            }
        }
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`ReadError`]; nothing of it is delivered.
    pub fn read(&mut self, place: Place, seq: u64, into: &mut Vec<u8>) -> Result<(), ReadError> {
        into.clear();
        let segment = self.segments.get(&place.segment).ok_or(ReadError::Damaged { place })?;
        match self.reader.record(&mut self.disk, segment, place, seq) {
            Ok(body) => {
                into.extend_from_slice(body);
                Ok(())
            }
            Err(error) => {
                self.damaged += u64::from(matches!(error, ReadError::Damaged { .. }));
                Err(error)
            }
        }
    }

    /// What it holds and takes.
    #[must_use]
    pub fn usage(&self) -> Usage {
        Usage {
            records: self.live.len(),
            segments: self.segments.len(),
            bytes: self.bytes(),
            live_bytes: self.segments.values().map(Segment::live_bytes).sum(),
            max_bytes: self.settings.max_bytes,
            spares: self.spares.len(),
            full: self.is_full(),
            damaged: self.damaged,
            written: self.written,
            commits: self.commits,
        }
    }

    /// Commits what waits and seals the log, so that the next opening can tell damage at the end from a torn commit.
    ///
    /// # Errors
    /// [`CommitError`], as [`commit`](Self::commit).
    pub fn close(mut self) -> Result<(), CommitError> {
        self.commit()?;
        self.seal();
        Ok(())
    }

    fn is_full(&self) -> bool {
        let segment_bytes = u64::from(self.settings.segment_bytes);
        let left = match (&self.head, &self.resumable) {
            (Some(head), _) => self.segments[&head.number].bytes - self.segments[&head.number].end,
            (None, Some(resumable)) => resumable.bytes - resumable.end,
            (None, None) => 0,
        };
        let in_head = self.spares.has_reserve() && u64::from(left) >= segment_bytes / 8;
        let room = in_head || self.spares.len() > self.spares.reserve;
        let bound = self.bytes() + segment_bytes > self.settings.max_bytes;
        !room && (bound || self.spares.disk_full)
    }

    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        let segments: u64 = self.segments.values().map(|segment| u64::from(segment.bytes)).sum();
        segments + self.spares.len() as u64 * u64::from(self.settings.segment_bytes)
    }

    pub(super) fn next_delta(&self, segment: &Segment) -> u32 {
        (self.next_seq - segment.base_seq) as u32
    }

    pub(super) fn head_segment(&self) -> (u32, &Segment) {
        let number = self.head.as_ref().expect("room was made in the head").number;
        (number, &self.segments[&number])
    }

    /// Whether the head has room for a body that joins the batch. Room for the seal is kept.
    pub(super) fn fits(&self, body: usize) -> bool {
        let Some(head) = &self.head else { return false };
        let segment = &self.segments[&head.number];
        let left = (segment.bytes - segment.end) as usize;
        left >= self.batch.len() + total(Kind::Record, body) + total(Kind::Seal, 0)
    }

    fn make_room(&mut self, body: usize) -> Result<(), AppendError> {
        self.resume();
        let fits = self.fits(body);
        if !self.batch.is_empty() {
            let whole = self.batch.len() + total(Kind::Record, body);
            let small = whole <= self.settings.max_batch_bytes as usize;
            return if fits && small { Ok(()) } else { Err(AppendError::CommitFirst) };
        }
        if !fits {
            return self.advance(Purpose::Append);
        }
        // The head may have been the reserve once, and then it is for settles.
        while !self.spares.has_reserve() {
            self.add_spare(Purpose::Append)?;
        }
        Ok(())
    }

    /// Adds settles that wait to the batch, as far as there is room.
    fn push_settles(&mut self) -> Result<Settles, CommitError> {
        let mut pushed = Settles::default();
        while !self.settles.is_empty() {
            self.resume();
            let mut settles = self.settles.take();
            let body = settles.encode();
            if self.batch.is_empty() && !self.fits(body.len()) {
                let segment = self.next_segment;
                if let Err(error) = self.advance(Purpose::Relief) {
                    self.settles.put_back(settles);
                    self.refused = true;
                    return match error {
                        AppendError::Io(source) => Err(CommitError { segment, written: false, source }),
                        _ => Ok(pushed),
                    };
                }
            }
            let whole = self.batch.len() + total(Kind::Settle, body.len());
            if !self.fits(body.len()) || whole > self.settings.max_batch_bytes as usize {
                self.settles.put_back(settles);
                break;
            }
            let (_, segment) = self.head_segment();
            let (salt, end, delta) = (segment.salt, segment.end, self.next_delta(segment));
            self.batch.push(Kind::Settle, salt, end, delta, &[&body]);
            pushed.put_back(settles);
        }
        Ok(pushed)
    }

    /// Writes the batch and syncs it.
    fn write(&mut self, settles: Settles) -> Result<(), CommitError> {
        let head = self.head.as_ref().expect("what is in the batch has a place in the head");
        let number = head.number;
        let segment = self.segments.get_mut(&number).expect("the head is a segment");
        let len = self.batch.len();
        let left = (segment.bytes - segment.end) as usize - len;
        let bytes = self.batch.padded(left.min(RECORD_HEADER));
        let mut written = false;
        let done = head.file.write_at(bytes, u64::from(segment.end)).and_then(|()| {
            written = true;
            head.file.sync()
        });
        if let Err(source) = done {
            (segment.broken, segment.to_cut) = (true, true);
            self.head = None;
            self.batch.clear();
            self.settles.put_back(settles);
            return Err(CommitError { segment: number, written, source });
        }
        self.written += len as u64;
        self.commits += 1;
        segment.end += len as u32;
        segment.records += self.batch.records + self.batch.copies;
        segment.live += self.batch.records + self.batch.copies;
        segment.settles.extend(settles.segments());
        let first = self.next_seq - u64::from(self.batch.records);
        (first..self.next_seq).for_each(|seq| {
            self.live.insert(seq);
        });
        self.batch.clear();
        Ok(())
    }
}
