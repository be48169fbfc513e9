//! Opening a log: what is there, what lives, and what is damaged.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::disk::{Disk, DiskFile, Entry};
use super::error::OpenError;
use super::format::{
    COPY_PREFIX, HEADER_BYTES, Kind, RECORD_HEADER, RECORDS, Recognised, SECOND_HEADER, Salt, SegmentHeader,
    VERSION, number_in, quarantine_name, segment_name, u64_at,
};
use super::head::Resumable;
use super::live::SeqSet;
use super::scan::{Item, Scan, scan};
use super::segment::Segment;
use super::{Place, settles};

/// Damaged spots that are described one by one and copied; further ones are only counted.
const DESCRIBED: usize = 64;
/// How far sequence numbers jump where the newest segment is damaged or missing: the last ones that were used may be among
/// what is lost, and a number that was seen outside must not name another record.
const JUMP: u64 = 1 << 28;
/// Sequence numbers that a segment may have behind its first one when it is written again. They have 32 bits.
const MAX_DELTA: u64 = 1 << 31;
/// What is given up at once where the disk cannot read.
const UNREADABLE_BYTES: usize = 4096;

/// A record that lives.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// Its sequence number.
    pub seq: u64,
    /// Where it lies.
    pub place: Place,
    /// What was appended.
    pub body: &'a [u8],
}

/// What opening came upon.
#[derive(Debug, Default)]
pub struct Report {
    /// Segments that were read.
    pub segments: usize,
    /// Bytes that were read.
    pub bytes: u64,
    /// Records that live.
    pub records: u64,
    /// Records that are known to be lost to damage; where a whole segment is unreadable nobody knows their number.
    pub lost: u64,
    /// Damaged spots.
    pub damaged: u64,
    /// Bytes in them.
    pub damaged_bytes: u64,
    /// The first of them.
    pub damage: Vec<Damage>,
    /// The newest segment ended in the middle of a commit, which therefore never succeeded.
    pub torn: bool,
}

/// A damaged spot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where it begins.
    pub place: Place,
    /// Its length.
    pub bytes: u32,
    /// Whether a copy is in the quarantine.
    pub kept: bool,
}

/// A log's content as it was found.
pub(super) struct Recovered {
    pub(super) id: Option<u64>,
    pub(super) next_seq: u64,
    pub(super) next_segment: u32,
    pub(super) segments: BTreeMap<u32, Segment>,
    pub(super) live: SeqSet,
    /// Segments with records that a newer one has as well, and those records.
    pub(super) shadowed: BTreeMap<u32, SeqSet>,
    /// Files without a readable header.
    pub(super) unreadable: Vec<String>,
    /// The newest segment, if it can be written again.
    pub(super) resumable: Option<Resumable>,
    pub(super) report: Report,
}

struct Recovery<'a, D: Disk> {
    disk: &'a mut D,
    out: Recovered,
    settled: SeqSet,
    /// Where segments end and whether broken off, as their successors say.
    ends: BTreeMap<u32, (u32, bool)>,
    bytes: Vec<u8>,
    /// The newest segment is sealed, or there is none.
    sealed: bool,
}

/// Reads everything, and shows `seen` what lives.
pub(super) fn recover<D: Disk>(
    disk: &mut D,
    files: &[Entry],
    seen: &mut dyn FnMut(Found<'_>),
) -> Result<Recovered, OpenError> {
    let out = Recovered {
        id: None,
        next_seq: 1,
        next_segment: 1,
        segments: BTreeMap::new(),
        live: SeqSet::default(),
        shadowed: BTreeMap::new(),
        unreadable: Vec::new(),
        resumable: None,
        report: Report::default(),
    };
    let mut recovery = Recovery {
        disk,
        out,
        settled: SeqSet::default(),
        ends: BTreeMap::new(),
        bytes: Vec::new(),
        sealed: true,
    };
    let headers = recovery.headers(files)?;
    for (number, (header, salt, bytes)) in headers.into_iter().rev() {
        recovery.segment(number, &header, salt, bytes, seen)?;
    }
    let mut out = recovery.out;
    out.report.records = out.live.len();
    out.next_seq += match &out.resumable {
        Some(Resumable { sealed: true, .. }) => 0,
        // What a disk has lost that did not do what it said stood between here and the end of the file.
        Some(resumable) => u64::from(resumable.bytes - resumable.end) / RECORD_HEADER as u64,
        None if out.report.damaged > 0 || !recovery.sealed => JUMP,
        None => 0,
    };
    let newest = out.segments.last_key_value().map_or(0, |(_, segment)| segment.base_seq);
    out.resumable = out.resumable.filter(|_| out.next_seq - newest < MAX_DELTA);
    Ok(out)
}

impl<D: Disk> Recovery<'_, D> {
    /// All headers first: if one of them is not for this program, nothing was touched.
    fn headers(&mut self, files: &[Entry]) -> Result<BTreeMap<u32, (SegmentHeader, Salt, u64)>, OpenError> {
        let mut headers = BTreeMap::new();
        let mut lost = Vec::new();
        for file in files {
            let Some(number) = number_in(&file.name, ".seg") else { continue };
            let foreign = |why| OpenError::Foreign { file: file.name.clone(), why };
            self.out.next_segment = self.out.next_segment.max(number.saturating_add(1));
            let Some((header, salt)) = self.header(&file.name)? else {
                lost.push((number, file));
                continue;
            };
            if header.number != number {
                return Err(foreign(format!("it was written as {}", segment_name(header.number))));
            }
            if *self.out.id.get_or_insert(header.log_id) != header.log_id {
                return Err(foreign("another one has another id".into()));
            }
            if header.previous != 0 {
                self.ends.insert(header.previous, (header.previous_end, header.previous_broken));
            }
            headers.insert(number, (header, salt, file.bytes));
        }
        for (number, file) in lost {
            self.damage(
                Place { segment: number, offset: 0 },
                file.bytes.min(u64::from(u32::MAX)) as u32,
                None,
            );
            self.out.unreadable.push(file.name.clone());
        }
        Ok(headers)
    }

    fn header(&mut self, name: &str) -> Result<Option<(SegmentHeader, Salt)>, OpenError> {
        let file = self.disk.open(name)?;
        let mut version = None;
        for at in [0, SECOND_HEADER] {
            let mut bytes = [0; HEADER_BYTES];
            // What cannot be read is no header.
            let _ = file.read_at(&mut bytes, u64::from(at));
            match SegmentHeader::decode(&bytes) {
                Recognised::Ours(header, salt) => return Ok(Some((header, salt))),
                Recognised::Version(found) => version = Some(found),
                Recognised::Damaged => {}
            }
        }
        match version {
            Some(found) => Err(OpenError::Version { file: name.into(), found, known: VERSION }),
            None => Ok(None),
        }
    }

    fn segment(
        &mut self,
        number: u32,
        header: &SegmentHeader,
        salt: Salt,
        file_bytes: u64,
        seen: &mut dyn FnMut(Found<'_>),
    ) -> Result<(), OpenError> {
        let newest = self.out.segments.is_empty();
        let end = self.ends.get(&number).copied();
        // A crash shortens no file. What is short was cut at its end, or is damaged.
        let short = file_bytes < u64::from(header.bytes);
        let until = if short { file_bytes as u32 } else { header.bytes };
        let wanted = end.map_or(until, |(end, _)| end).max(RECORDS);
        let file = self.disk.open(&segment_name(number))?;
        // A process that was killed may leave in the cache what is not on the disk, and a power cut must not change
        // later what was found now. What a failure here loses was never acknowledged.
        let synced = newest && file.sync().and_then(|()| self.disk.sync()).is_ok();
        read_what_can_be(&file, &mut self.bytes, wanted as usize)?;
        // What a lost tail held is damage as well.
        self.bytes.resize(wanted as usize, 0);
        let mut scan = scan(&self.bytes, salt, end.is_some() || short);
        if newest && !short {
            scan.cut_torn_tail();
            self.out.report.torn |= scan.torn;
        }
        self.out.report.segments += 1;
        self.out.report.bytes += u64::from(wanted);
        self.out.report.lost += scan.lost();
        let damaged = self.out.report.damaged;
        for hole in std::mem::take(&mut scan.holes) {
            self.damage(Place { segment: number, offset: hole.offset }, hole.bytes, Some(()));
        }
        self.sealed &= !newest || scan.sealed;
        if newest && short && !scan.sealed && damaged == self.out.report.damaged {
            // It ends between two records, but the newest was never cut.
            self.damage(Place { segment: number, offset: scan.end }, 0, None);
        }
        let broken = end.map_or(!scan.sealed, |(_, broken)| broken);
        let mut segment = Segment {
            salt,
            base_seq: header.base_seq,
            bytes: file_bytes.min(u64::from(u32::MAX)) as u32,
            end: scan.end,
            records: 0,
            live: 0,
            settles: BTreeSet::new(),
            guards: header.previous_broken.then_some(header.previous),
            broken,
            to_cut: false,
        };
        segment.to_cut = segment.bytes > segment.end && (newest || broken);
        self.out.next_seq = self.out.next_seq.max(header.base_seq);
        self.settles(number, &scan, &mut segment);
        self.records(number, &scan, &mut segment, seen);
        let sound = damaged == self.out.report.damaged && file_bytes == u64::from(header.bytes);
        // One with a higher number cannot be read: that was the head.
        let was_head = end.is_none() && self.out.next_segment - 1 == number;
        if synced && sound && was_head {
            // The first commit takes the seal's place.
            let end = scan.end - if scan.sealed { RECORD_HEADER as u32 } else { 0 };
            let (bytes, sealed) = (header.bytes, scan.sealed);
            self.out.resumable = Some(Resumable { number, end, bytes, stale: scan.stale, sealed });
        }
        self.out.segments.insert(number, segment);
        Ok(())
    }

    fn settles(&mut self, number: u32, scan: &Scan, segment: &mut Segment) {
        for item in scan.items.iter().filter(|item| item.header.kind == Kind::Settle) {
            let (settled, next_seq) = (&mut self.settled, &mut self.out.next_seq);
            let read = settles::decode(item.body(&self.bytes), |of, first, last| {
                segment.settles.insert(of);
                (first..=last).for_each(|seq| {
                    settled.insert(seq);
                });
                *next_seq = (*next_seq).max(last.saturating_add(1));
            });
            if read.is_none() {
                self.damage(Place { segment: number, offset: item.offset }, item.header.total(), Some(()));
            }
        }
    }

    fn records(&mut self, number: u32, scan: &Scan, segment: &mut Segment, seen: &mut dyn FnMut(Found<'_>)) {
        for item in &scan.items {
            let Some((seq, body)) = record(item, segment.base_seq, &self.bytes) else { continue };
            segment.records += 1;
            self.out.next_seq = self.out.next_seq.max(seq.saturating_add(1));
            if self.settled.contains(seq) {
                continue;
            }
            if !self.out.live.insert(seq) {
                self.out.shadowed.entry(number).or_default().insert(seq);
                continue;
            }
            segment.live += 1;
            seen(Found { seq, place: Place { segment: number, offset: item.offset }, body });
        }
    }

    /// Counts, and keeps a copy of the bytes where there are some in the buffer.
    fn damage(&mut self, place: Place, bytes: u32, in_buffer: Option<()>) {
        let report = &mut self.out.report;
        report.damaged += 1;
        report.damaged_bytes += u64::from(bytes);
        if report.damage.len() < DESCRIBED {
            let start = place.offset as usize;
            let kept = in_buffer.is_some_and(|()| {
                let damaged = &self.bytes[start..start + bytes as usize];
                self.disk.quarantine(&quarantine_name(place, bytes), damaged).is_ok()
            });
            report.damage.push(Damage { place, bytes, kept });
        }
    }
}

/// Sequence number and body of a record or copy.
pub(super) fn record<'a>(item: &Item, base_seq: u64, segment: &'a [u8]) -> Option<(u64, &'a [u8])> {
    let body = item.body(segment);
    match item.header.kind {
        Kind::Record => Some((base_seq + u64::from(item.header.delta), body)),
        Kind::Copy => Some((u64_at(body, 0), &body[COPY_PREFIX..])),
        Kind::Settle | Kind::Seal => None,
    }
}

/// Reads up to `wanted` bytes; pages that the disk cannot read become zeros, and so damage.
pub(super) fn read_what_can_be(file: &impl DiskFile, into: &mut Vec<u8>, wanted: usize) -> io::Result<()> {
    into.clear();
    into.resize(wanted, 0);
    match file.read_at(into, 0) {
        Ok(read) => into.truncate(read),
        Err(_) => {
            for (page, bytes) in into.chunks_mut(UNREADABLE_BYTES).enumerate() {
                bytes.fill(0);
                if file.read_at(bytes, (page * UNREADABLE_BYTES) as u64).is_err() {
                    bytes.fill(0);
                }
            }
        }
    }
    Ok(())
}
