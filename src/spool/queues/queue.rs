//! What waits for one hub from one device with one priority, and what of it is in flight.
//!
//! ```text
//!   entries:  [ a  b  c  d | e  f  g  … ]      the first ones are in the window
//!   window:   [ ✓  …  ✗  … ]                   a was accepted, c was not, b and d have no outcome yet
//! ```
//! Accepted entries leave from the front. Once one was not accepted nothing new is sent; when the last outcome is
//! there, what is left in the window is marked and stands in front again, in its order.

use std::collections::VecDeque;
use std::time::Instant;

use super::entry::Entry;
use crate::spool::ages::Ages;

/// When ages that were not known are looked at again, in seconds.
const LOOK_AGAIN: u32 = 10;

/// How far one message in the window is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flight {
    /// Sent, without an outcome.
    Pending,
    /// It needs no sending any more.
    Done,
    /// To be sent again.
    Again,
}

/// One queue.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) device: u32,
    pub(super) priority: u8,
    pub(super) entries: VecDeque<Entry>,
    /// Of the first entries, in their order.
    window: VecDeque<Flight>,
    pending: u32,
    /// Something in the window was not accepted: nothing more is sent until all of it has an outcome.
    failed: bool,
    /// Entries that went, and that a crash would bring back.
    pub(super) unsynced: u32,
    /// Entries that went, and whose dead letters are not on the disk.
    pub(super) dying: u32,
    /// Entries that are on their way to the disk.
    pub(super) admitted: u32,
    /// Failed attempts in a row.
    pub(super) failures: u32,
    pub(super) paused_until: Option<Instant>,
    /// Stands in the ring of those whose turn will come.
    pub(super) in_ring: bool,
    /// What it has sent beyond its last turn, in bytes.
    pub(super) debt: i64,
    /// The longest pause that the hub asked for, with what is in the window.
    pub(super) pause: Option<std::time::Duration>,
    /// No entry expires before this second.
    pub(super) min_due: u32,
}

impl Queue {
    pub(super) fn new(device: u32, priority: u8) -> Self {
        Self {
            device,
            priority,
            entries: VecDeque::new(),
            window: VecDeque::new(),
            pending: 0,
            failed: false,
            unsynced: 0,
            dying: 0,
            admitted: 0,
            failures: 0,
            paused_until: None,
            in_ring: false,
            debt: 0,
            pause: None,
            min_due: u32::MAX,
        }
    }

    /// Whether it could be forgotten without anybody noticing.
    pub(super) fn is_idle(&self) -> bool {
        self.entries.is_empty() && self.unsynced == 0 && self.dying == 0 && self.admitted == 0
    }

    pub(super) fn push(&mut self, entry: Entry) {
        self.min_due = self.min_due.min(entry.due());
        self.entries.push_back(entry);
    }

    /// Whether a message could be sent; `ahead` bounds what a crash now could make be sent twice.
    pub(super) fn can_send(&self, window: usize, ahead: u32) -> bool {
        !self.failed
            && self.paused_until.is_none()
            && self.window.len() < window.min(self.entries.len())
            && self.pending.saturating_add(self.unsynced).saturating_add(self.dying) < ahead
    }

    /// Whether it could send if what has gone were synced.
    pub(super) fn waits_for_sync(&self, window: usize, ahead: u32) -> bool {
        self.unsynced > 0 && !self.can_send(window, ahead) && self.can_send(window, u32::MAX)
    }

    /// Puts the next entry into the window.
    pub(super) fn send(&mut self) -> Option<Entry> {
        let entry = *self.entries.get(self.window.len())?;
        self.window.push_back(Flight::Pending);
        self.pending += 1;
        Some(entry)
    }

    /// An entry in the window has its outcome. Gives the entry, which may be gone from here then.
    pub(super) fn report(&mut self, seq: u64, outcome: Flight) -> Option<Entry> {
        let at = self.window_position(seq)?;
        let flight = self.window.get_mut(at).filter(|flight| **flight == Flight::Pending)?;
        *flight = outcome;
        self.pending -= 1;
        self.failed |= outcome == Flight::Again;
        let entry = self.entries.get(at).copied();
        while self.window.front() == Some(&Flight::Done) {
            self.window.pop_front();
            self.entries.pop_front();
        }
        self.tidy();
        entry
    }

    fn window_position(&self, seq: u64) -> Option<usize> {
        let at = self.entries.binary_search_by_key(&seq, Entry::seq).ok()?;
        (at < self.window.len()).then_some(at)
    }

    /// If all of a window that has failed has an outcome: what is left of it stands in front again, marked. True if it
    /// was so.
    pub(super) fn rewind(&mut self) -> bool {
        if !self.failed || self.pending > 0 {
            return false;
        }
        let sent = self.window.len();
        let mut kept = VecDeque::with_capacity(sent);
        for (mut entry, flight) in self.entries.drain(..sent).zip(self.window.drain(..)) {
            if flight == Flight::Again {
                entry.mark();
                kept.push_back(entry);
            }
        }
        for entry in kept.into_iter().rev() {
            self.entries.push_front(entry);
        }
        self.failed = false;
        self.tidy();
        true
    }

    /// Removes an entry that is not in the window: the oldest of them.
    pub(super) fn drop_oldest(&mut self) -> Option<Entry> {
        self.entries.remove(self.window.len())
    }

    /// Removes at most `most` entries outside the window that have expired at `now`, in seconds since 1970, of those whose
    /// age is known.
    pub(super) fn expire(&mut self, now: u32, most: usize, ages: &Ages, mut expired: impl FnMut(Entry)) {
        if self.min_due > now {
            return;
        }
        let (in_window, mut at, mut left) = (self.window.len(), 0, most);
        let mut min_due = u32::MAX;
        self.entries.retain(|entry| {
            let due = if ages.tells(entry.seq(), entry.stored().into()) {
                entry.due()
            } else {
                // It may be known later.
                entry.due().max(now.saturating_add(LOOK_AGAIN))
            };
            let goes = at >= in_window && due <= now && left > 0;
            at += 1;
            if goes {
                left -= 1;
                expired(*entry);
            } else if at > in_window {
                min_due = min_due.min(due);
            } else {
                // In the window. It may come back.
                min_due = min_due.min(due.max(now.saturating_add(1)));
            }
            !goes
        });
        self.min_due = min_due;
        self.tidy();
    }

    /// The log has put a record elsewhere. True if it is one of this queue.
    pub(super) fn moved(&mut self, seq: u64, place: crate::store::Place) -> bool {
        let at = self.entries.binary_search_by_key(&seq, Entry::seq);
        let entry = at.ok().and_then(|at| self.entries.get_mut(at));
        entry.map(|entry| entry.move_to(place)).is_some()
    }

    /// All entries are there after a start: brings them into order. The first `marked` of them may have been sent
    /// before.
    pub(super) fn recovered(&mut self, marked: usize) {
        self.entries.make_contiguous().sort_unstable_by_key(Entry::seq);
        self.entries.iter_mut().take(marked).for_each(Entry::mark);
    }

    /// Gives memory back that was needed once.
    fn tidy(&mut self) {
        if self.window.is_empty() && self.window.capacity() > 0 {
            self.window = VecDeque::new();
        }
        if self.entries.len() < self.entries.capacity() / 8 {
            self.entries.shrink_to(self.entries.len() * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::keeper::Now;
    use crate::store::Place;

    /// In seconds since 1970.
    const BEGUN: u32 = 1_795_379_735;

    fn queue(seqs: std::ops::Range<u64>) -> Queue {
        let mut queue = Queue::new(0, 4);
        let begun = u64::from(BEGUN) * 1_000;
        for seq in seqs {
            queue
                .push(Entry::new(100, begun, begun + 10_000, false).at(seq, Place { segment: 1, offset: 0 }));
        }
        queue
    }

    fn seqs(queue: &Queue) -> Vec<(u64, bool)> {
        queue.entries.iter().map(|entry| (entry.seq(), entry.is_marked())).collect()
    }

    #[test]
    fn accepted_entries_leave_from_the_front() {
        let mut queue = queue(1..5);
        assert_eq!((1..=3).map(|_| queue.send().unwrap().seq()).collect::<Vec<_>>(), [1, 2, 3]);
        assert!(queue.report(2, Flight::Done).is_some());
        assert_eq!(queue.entries.len(), 4, "the second waits for the first");
        assert!(queue.report(1, Flight::Done).is_some());
        assert_eq!(seqs(&queue), [(3, false), (4, false)]);
        assert!(queue.report(1, Flight::Done).is_none(), "it is gone");
        assert!(queue.report(4, Flight::Done).is_none(), "it was not sent");
        assert!(!queue.rewind());
    }

    #[test]
    fn a_failure_waits_for_the_rest_and_sends_all_of_it_again() {
        let mut queue = queue(1..6);
        for _ in 0..4 {
            queue.send();
        }
        queue.report(2, Flight::Again);
        assert!(!queue.can_send(64, 512));
        queue.report(3, Flight::Done);
        queue.report(1, Flight::Again);
        assert!(!queue.rewind(), "4 has no outcome");
        queue.report(4, Flight::Again);
        assert!(queue.rewind());
        assert_eq!(seqs(&queue), [(1, true), (2, true), (4, true), (5, false)]);
        assert!(queue.can_send(64, 512));
        assert_eq!(queue.send().unwrap().seq(), 1);
    }

    #[test]
    fn what_is_in_flight_does_not_expire_and_is_not_pushed_out() {
        let mut queue = queue(1..6);
        for _ in 0..2 {
            queue.send();
        }
        assert_eq!(queue.drop_oldest().unwrap().seq(), 3);
        let ages = Ages::new(1, 0, Now { at: Instant::now(), unix_ms: u64::from(BEGUN) * 1_000 });
        let mut expired = Vec::new();
        queue.expire(BEGUN + 10, 10, &ages, |entry| expired.push(entry.seq()));
        assert_eq!(expired, [0; 0], "not yet");
        queue.expire(BEGUN + 11, 1, &ages, |entry| expired.push(entry.seq()));
        assert_eq!(expired, [4]);
        queue.expire(BEGUN + 11, 10, &ages, |entry| expired.push(entry.seq()));
        assert_eq!(expired, [4, 5]);
        queue.report(1, Flight::Again);
        queue.report(2, Flight::Again);
        queue.rewind();
        queue.expire(BEGUN + 12, 10, &ages, |entry| expired.push(entry.seq()));
        assert_eq!(expired, [4, 5, 1, 2]);
    }

    #[test]
    fn too_much_ahead_of_the_disk_waits_for_it() {
        let mut queue = queue(1..100);
        for seq in 1..=4 {
            queue.send();
            queue.report(seq, Flight::Done);
            queue.unsynced += 1;
        }
        assert!(queue.can_send(64, 5) && !queue.can_send(64, 4));
        assert!(queue.waits_for_sync(64, 4) && !queue.waits_for_sync(64, 5));
    }
}
