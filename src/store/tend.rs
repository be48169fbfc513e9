//! Giving space back: removing what is dead, and emptying what a few living records pin.

use std::io;

use super::batch::total;
use super::disk::Disk;
use super::error::TendError;
use super::format::{COPY_PREFIX, Kind, segment_name};
use super::head::Purpose;
use super::log::Log;
use super::recovery::{read_what_can_be, record};
use super::scan::scan;
use super::{Place, ReadError};

/// What one step copies; it bounds how long the caller waits, and is about the size of a large commit.
const STEP_BYTES: usize = 256 << 10;
/// Dead bytes that are nobody's concern, in segments.
const SLACK_SEGMENTS: u64 = 4;
/// Bytes that settles of one record may take when they are written once more.
const SETTLE_BYTES: u64 = 3;

/// A segment whose living records are being copied.
#[derive(Debug)]
pub(super) struct Emptying {
    segment: u32,
    /// What is still to be copied, the last first; nothing before it was read.
    left: Option<Vec<Living>>,
}

/// A record that is to be copied.
#[derive(Clone, Copy, Debug)]
struct Living {
    seq: u64,
    offset: u32,
    /// What its copy takes.
    bytes: u32,
}

impl<D: Disk> Log<D> {
    /// Gives space back and makes spares ready, a bounded step at a time: removes segments without living records, and
    /// copies at most 256 KiB of living ones out of segments that are mostly dead. Each record that moved is told to
    /// `moved`, after it is durable in its new place. Call it between commits, each 100 ms or so, and again at once
    /// while it answers `true`; with a commit pending it does nothing.
    ///
    /// # Errors
    /// [`TendError`]; nothing is lost, and the next call tries again.
    pub fn tend(&mut self, mut moved: impl FnMut(u64, Place)) -> Result<bool, TendError> {
        if !self.batch.is_empty() {
            return Ok(false);
        }
        self.spares.disk_full = false;
        self.remove_dead()?;
        // What is missing shows when something is appended.
        let half_full = self.head.is_some() && !self.fits(self.settings.segment_bytes as usize / 2);
        while !self.spares.has_reserve() || (half_full || self.refused) && self.spares.wants_more() {
            if self.add_spare(Purpose::Append).is_err() {
                break;
            }
        }
        if self.emptying.is_none() {
            let segment = self.shadowed.keys().next().copied().or_else(|| self.victim());
            self.emptying = segment.map(|segment| Emptying { segment, left: None });
        }
        let Some(mut emptying) = self.emptying.take() else { return Ok(false) };
        let more = match self.empty(&mut emptying, &mut moved) {
            Ok(more) => more,
            Err(error) => {
                // Nothing of a copy that was not committed may stay in the batch.
                self.batch.clear();
                self.haunted.get_or_insert(emptying.segment);
                return Err(error);
            }
        };
        if (emptying.left.is_some() || more) && self.segments.contains_key(&emptying.segment) {
            self.emptying = Some(emptying);
        }
        Ok(more)
    }

    /// Removes the segments without living records that nothing needs, the oldest first.
    pub(super) fn remove_dead(&mut self) -> io::Result<()> {
        let dead: Vec<u32> = self
            .segments
            .iter()
            .filter(|(_, segment)| segment.live == 0)
            .map(|(number, _)| *number)
            .collect();
        for number in dead {
            if self.is_free(number) {
                self.remove(number)?;
            }
        }
        Ok(())
    }

    fn is_free(&self, number: u32) -> bool {
        let newest = self.segments.last_key_value().is_some_and(|(newest, _)| *newest == number);
        // What is older than the records that live elsewhere as well settles none of them.
        let shadowed = self.shadowed.first_key_value().is_some_and(|(first, _)| *first < number);
        let held_back = shadowed && !self.shadowed.contains_key(&number);
        let held_back = held_back || self.haunted == Some(number);
        !newest && !held_back && !self.is_guard(number) && self.needing(number).next().is_none()
    }

    /// Whether only this segment tells where an older one ends.
    fn is_guard(&self, number: u32) -> bool {
        let guarded = self.segments[&number].guards.and_then(|guarded| self.segments.get(&guarded));
        guarded.is_some_and(|guarded| guarded.to_cut)
    }

    /// The segments whose dead records would come back if this one's settles were gone.
    fn needing(&self, number: u32) -> impl Iterator<Item = u32> {
        let settled = self.segments[&number].settles.iter().copied();
        settled.filter(move |other| *other != number && self.segments.contains_key(other))
    }

    /// Makes a spare of the file, or removes it. Durable before anything else is removed: settles in a newer segment
    /// must not be gone while the records in this one are not.
    fn remove(&mut self, number: u32) -> io::Result<()> {
        let name = segment_name(number);
        let segment = &self.segments[&number];
        // What is to be cut may be so already, if that failed half-way.
        let usual = segment.bytes == self.settings.segment_bytes && !segment.to_cut;
        // A reserve that was made beyond the bound is given back when there is another.
        let within = !self.spares.has_reserve() || self.bytes() <= self.settings.max_bytes;
        let done = if usual && within && self.spares.wants_more() {
            self.spares.keep(&mut self.disk, &name)
        } else {
            self.disk.remove(&name).and_then(|()| self.disk.sync())
        };
        match done {
            // An attempt before this one may have failed half-way.
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.disk.sync()?,
            done => done?,
        }
        self.forget(number);
        Ok(())
    }

    fn forget(&mut self, number: u32) {
        self.segments.remove(&number);
        self.settles.forget(number);
        self.reader.forget(number);
        self.shadowed.remove(&number);
    }

    /// The segment that is emptied with the least to write for the space that it gives, if it is worth it.
    fn victim(&self) -> Option<u32> {
        let head = self.head.as_ref().map(|head| head.number);
        let sealed = || self.segments.iter().filter(|(number, _)| Some(**number) != head);
        let live: u64 = sealed().map(|(_, segment)| segment.live_bytes()).sum();
        let dead = sealed().map(|(_, segment)| u64::from(segment.bytes)).sum::<u64>() - live;
        let slack = SLACK_SEGMENTS * u64::from(self.settings.segment_bytes);
        // Bytes written for each byte won, as numerator and denominator.
        let (most, of) = match () {
            // Without the reserve nothing else is as urgent.
            () if self.refused || !self.spares.has_reserve() => (4, 5),
            () if dead > live + slack => (1, 2),
            () if dead > slack => (1, 8),
            () => return None,
        };
        let newest = self.segments.last_key_value().map(|(number, _)| *number);
        sealed()
            .filter(|(number, _)| Some(**number) != newest && !self.is_guard(**number))
            .map(|(number, segment)| (self.cost(*number), u64::from(segment.bytes), *number))
            .filter(|(cost, gain, number)| cost * of <= gain * most && self.has_room_for(*number))
            .min_by_key(|(cost, gain, _)| cost * 1000 / gain.max(&1))
            .map(|(_, _, number)| number)
    }

    /// Whether what would be written could be.
    fn has_room_for(&self, number: u32) -> bool {
        self.spares.len() > 0 || self.resumable.is_some() || self.fits(self.cost(number) as usize)
    }

    fn cost(&self, number: u32) -> u64 {
        let settles = self.needing(number).map(|other| {
            let other = &self.segments[&other];
            u64::from(other.records - other.live) * SETTLE_BYTES
        });
        self.segments[&number].live_bytes() + settles.sum::<u64>()
    }

    /// One step. Whether another should follow.
    fn empty(
        &mut self,
        emptying: &mut Emptying,
        moved: &mut dyn FnMut(u64, Place),
    ) -> Result<bool, TendError> {
        let number = emptying.segment;
        if !self.segments.contains_key(&number) {
            // What it had left was settled meanwhile.
            return Ok(true);
        }
        let needing = self.needing(number).next();
        if let Some(other) = needing {
            return self.settle_again(number, other);
        }
        let mut left = match emptying.left.take() {
            Some(left) => left,
            None => self.living(number)?,
        };
        let copies = self.copy(number, &mut left)?;
        if copies.is_empty() && !left.is_empty() && !self.shadowed.contains_key(&number) {
            // Another one may have room.
            return Ok(false);
        }
        self.commit()?;
        for &(seq, place) in &copies {
            self.shadowed.entry(number).or_default().insert(seq);
            moved(seq, place);
        }
        let segment = self.segments.get_mut(&number).expect("only `forget` removes it");
        segment.live = segment.live.saturating_sub(copies.len() as u32);
        let done = left.is_empty();
        if !done {
            emptying.left = Some(left);
            return Ok(!copies.is_empty());
        }
        if segment.live > 0 {
            // What still lives in it cannot be read. The rest does not wait for that.
            self.disk.set_aside(&segment_name(number))?;
            self.disk.sync()?;
            self.forget(number);
        } else if self.is_free(number) {
            self.remove(number)?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// Writes once more what `number` says of the records of an older segment.
    fn settle_again(&mut self, number: u32, other: u32) -> Result<bool, TendError> {
        self.commit()?;
        if !self.settles.is_empty() {
            // They would gather, from one attempt to the next.
            return Ok(false);
        }
        for Living { seq, .. } in self.records(other)? {
            if !self.live.contains(seq) {
                self.settles.add(other, seq);
            }
        }
        self.commit()?;
        if !self.settles.is_empty() {
            // No room: the settles that were made twice do no harm.
            return Ok(false);
        }
        let segment = self.segments.get_mut(&number).expect("it is being emptied");
        segment.settles.remove(&other);
        Ok(true)
    }

    /// What lives in a segment and nowhere else, the last first.
    fn living(&mut self, number: u32) -> io::Result<Vec<Living>> {
        let mut living = self.records(number)?;
        let elsewhere = self.shadowed.get(&number);
        living.retain(|Living { seq, .. }| {
            self.live.contains(*seq) && !elsewhere.is_some_and(|elsewhere| elsewhere.contains(*seq))
        });
        living.reverse();
        Ok(living)
    }

    /// All records of a segment that check.
    fn records(&mut self, number: u32) -> io::Result<Vec<Living>> {
        let segment = &self.segments[&number];
        let file = self.disk.open(&segment_name(number))?;
        let mut bytes = Vec::new();
        read_what_can_be(&file, &mut bytes, segment.end as usize)?;
        let scan = scan(&bytes, segment.salt, true);
        let records = scan.items.iter().filter_map(|item| {
            let (seq, body) = record(item, segment.base_seq, &bytes)?;
            let bytes = total(Kind::Copy, body.len()) as u32;
            Some(Living { seq, offset: item.offset, bytes })
        });
        Ok(records.collect())
    }

    /// Puts copies into the batch, as many as a step may have.
    fn copy(&mut self, number: u32, left: &mut Vec<Living>) -> Result<Vec<(u64, Place)>, TendError> {
        self.resume();
        let mut copies = Vec::new();
        let mut body = Vec::new();
        // Once begun it must be ended, so that it is not begun without room for it and what is settled meanwhile.
        let begun = self.shadowed.contains_key(&number);
        left.retain(|record| self.live.contains(record.seq));
        let needed: usize = left.iter().map(|record| record.bytes as usize).sum();
        if !begun && self.spares.len() == 0 && !self.fits(needed + needed / 8) {
            return Ok(copies);
        }
        while let Some(&Living { seq, offset, .. }) = left.last() {
            match self.read(Place { segment: number, offset }, seq, &mut body) {
                Ok(()) => {}
                Err(ReadError::Io { source, .. }) => return Err(source.into()),
                Err(ReadError::Damaged { .. }) => {
                    left.pop();
                    continue;
                }
            }
            let bytes = COPY_PREFIX + body.len();
            if !self.fits(bytes) && (!self.batch.is_empty() || self.advance(Purpose::Relief).is_err()) {
                break;
            }
            let (head, segment) = self.head_segment();
            let (salt, end, delta) = (segment.salt, segment.end, self.next_delta(segment));
            let offset = self.batch.push(Kind::Copy, salt, end, delta, &[&seq.to_le_bytes(), &body]);
            self.batch.copies += 1;
            copies.push((seq, Place { segment: head, offset }));
            left.pop();
            if self.batch.len() >= STEP_BYTES.min(self.settings.max_batch_bytes as usize) {
                break;
            }
        }
        Ok(copies)
    }
}
