//! A queue whose messages are lent, not given: a reader locks a message, and by what it says about it the message
//! is gone, dead or back in its place. Commands and feedback both wait in such queues.
//!
//! ```text
//!                   lock_next                 complete            -> gone
//!   available  ----------------->  locked ----reject              -> gone
//!       ^  |                        |  |  ----abandon, the last   -> gone
//!       |  '--expired--> gone       |  |
//!       '---------------------------'  '--- abandon counts; a lock that runs out or is returned does not
//! ```

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use fieldgate_mappings::Timestamp;

use super::time::Now;

/// A lock on a message: 16 bytes that nobody else has. On the wire they are the delivery-tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct LockToken(pub(crate) [u8; 16]);

impl LockToken {
    /// The token as text: a GUID, whose first three groups .NET keeps in little-endian order.
    pub(crate) fn to_guid(self) -> String {
        const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
        let mut text = String::with_capacity(36);
        for (position, index) in ORDER.into_iter().enumerate() {
            if matches!(position, 4 | 6 | 8 | 10) {
                text.push('-');
            }
            text.push_str(&format!("{:02x}", self.0[index]));
        }
        text
    }
}

/// The rules of a queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct QueueRules {
    /// How long a reader has a message to itself.
    pub(crate) lock: Duration,
    /// How often a message may be abandoned until it is dead.
    pub(crate) max_delivery_count: u8,
}

/// What a reader says about a message that it has locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settlement {
    /// Done: gone for good.
    Complete,
    /// Not now: back in its place, and counted.
    Abandon,
    /// Never: dead.
    Reject,
}

/// Why a message has left its queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Departure {
    /// A reader completed it.
    Completed,
    /// A reader rejected it.
    Rejected,
    /// It was abandoned once too often.
    DeliveryCountExceeded,
    /// Its time was over before anybody took it.
    Expired,
}

/// Nobody holds this lock: it ran out, or never was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LockLost;

/// A message that has just been locked.
#[derive(Debug)]
pub(crate) struct Lent<'a, T> {
    pub(crate) sequence: u64,
    pub(crate) enqueued: Timestamp,
    /// How often it came back.
    pub(crate) delivery_count: u8,
    pub(crate) item: &'a T,
}

#[derive(Debug)]
struct Entry<T> {
    item: T,
    sequence: u64,
    enqueued: Timestamp,
    /// `None` is beyond what the clock can say.
    expires: Option<Instant>,
    abandoned: u8,
    lock: Option<(LockToken, Instant)>,
}

/// The queue: in order of arrival, also for what comes back.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    entries: VecDeque<Entry<T>>,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { entries: VecDeque::new() }
    }
}

impl<T> Queue<T> {
    /// How many messages are here, lent ones included.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is here.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Puts a message at the end, for as long as `ttl`.
    pub(crate) fn push(&mut self, now: Now, sequence: u64, ttl: Duration, item: T) {
        let expires = now.instant.checked_add(ttl);
        let enqueued = now.wall;
        self.entries.push_back(Entry { item, sequence, enqueued, expires, abandoned: 0, lock: None });
    }

    /// Takes the oldest message out, whoever holds it.
    pub(crate) fn pop_oldest(&mut self) -> Option<T> {
        self.entries.pop_front().map(|entry| entry.item)
    }

    /// Lends the first message that is free, under `token`.
    pub(crate) fn lock_next(&mut self, now: Now, token: LockToken, rules: QueueRules) -> Option<Lent<'_, T>> {
        let entry = self.entries.iter_mut().find(|entry| entry.is_available(now.instant))?;
        entry.lock = Some((token, now.instant + rules.lock));
        Some(Lent {
            sequence: entry.sequence,
            enqueued: entry.enqueued,
            delivery_count: entry.abandoned,
            item: &entry.item,
        })
    }

    /// Ends a loan with what the reader says.
    ///
    /// # Errors
    /// [`LockLost`] when the lock ran out before; the message is somebody else's by now.
    pub(crate) fn settle(
        &mut self,
        now: Now,
        token: LockToken,
        settlement: Settlement,
        rules: QueueRules,
    ) -> Result<Option<(T, Departure)>, LockLost> {
        let index = self.position(token).ok_or(LockLost)?;
        let entry = &mut self.entries[index];
        if entry.lock.is_some_and(|(_, until)| until <= now.instant) {
            entry.lock = None;
            return Err(LockLost);
        }
        let departure = match settlement {
            Settlement::Complete => Departure::Completed,
            Settlement::Reject => Departure::Rejected,
            Settlement::Abandon => {
                entry.abandoned = entry.abandoned.saturating_add(1);
                entry.lock = None;
                if entry.abandoned < rules.max_delivery_count {
                    return Ok(None);
                }
                Departure::DeliveryCountExceeded
            }
        };
        Ok(self.entries.remove(index).map(|entry| (entry.item, departure)))
    }

    /// Ends a loan without a word from the reader: it is gone. Nothing is counted.
    pub(crate) fn give_back(&mut self, token: LockToken) {
        if let Some(index) = self.position(token) {
            self.entries[index].lock = None;
        }
    }

    /// Ends what is over at `now`: locks, and messages that nobody holds. Returns the dead, and whether a
    /// message is free again.
    pub(crate) fn expire(&mut self, now: Now) -> (Vec<T>, bool) {
        let mut freed = false;
        let mut expired = Vec::new();
        for entry in &mut self.entries {
            if entry.lock.is_some_and(|(_, until)| until <= now.instant) {
                entry.lock = None;
                freed = true;
            }
        }
        let mut index = 0;
        while index < self.entries.len() {
            let entry = &self.entries[index];
            if entry.lock.is_none() && entry.is_expired(now.instant) {
                expired.extend(self.entries.remove(index).map(|entry| entry.item));
            } else {
                index += 1;
            }
        }
        (expired, freed)
    }

    fn position(&self, token: LockToken) -> Option<usize> {
        self.entries.iter().position(|entry| entry.lock.is_some_and(|(held, _)| held == token))
    }
}

impl<T> Entry<T> {
    fn is_expired(&self, now: Instant) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }

    fn is_available(&self, now: Instant) -> bool {
        !self.is_expired(now) && self.lock.is_none_or(|(_, until)| until <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: QueueRules = QueueRules { lock: Duration::from_secs(60), max_delivery_count: 3 };
    const HOUR: Duration = Duration::from_secs(3600);

    fn token(number: u8) -> LockToken {
        LockToken([number; 16])
    }

    fn queue(now: Now, items: &[&'static str]) -> Queue<&'static str> {
        let mut queue = Queue::default();
        for (sequence, item) in (1..).zip(items) {
            queue.push(now, sequence, HOUR, *item);
        }
        queue
    }

    fn lock(queue: &mut Queue<&'static str>, now: Now, number: u8) -> Option<(&'static str, u8)> {
        queue.lock_next(now, token(number), RULES).map(|lent| (*lent.item, lent.delivery_count))
    }

    #[test]
    fn a_locked_message_is_one_readers_own_and_completes_once() {
        let now = Now::test();
        let mut queue = queue(now, &["a", "b"]);
        let lent = queue.lock_next(now, token(1), RULES).unwrap();
        assert_eq!((lent.sequence, lent.enqueued, *lent.item), (1, now.wall, "a"));
        assert_eq!(lock(&mut queue, now, 2), Some(("b", 0)));
        assert_eq!(lock(&mut queue, now, 3), None);
        let done = queue.settle(now, token(1), Settlement::Complete, RULES);
        assert_eq!(done, Ok(Some(("a", Departure::Completed))));
        assert_eq!(queue.settle(now, token(1), Settlement::Complete, RULES), Err(LockLost));
        let dead = queue.settle(now, token(2), Settlement::Reject, RULES);
        assert_eq!(dead, Ok(Some(("b", Departure::Rejected))));
        assert!(queue.is_empty());
    }

    #[test]
    fn an_abandoned_message_keeps_its_place_and_dies_of_its_count() {
        let now = Now::test();
        let mut queue = queue(now, &["a", "b"]);
        for count in 0..2 {
            assert_eq!(lock(&mut queue, now, 1), Some(("a", count)));
            assert_eq!(queue.settle(now, token(1), Settlement::Abandon, RULES), Ok(None));
        }
        assert_eq!(lock(&mut queue, now, 1), Some(("a", 2)));
        let dead = queue.settle(now, token(1), Settlement::Abandon, RULES);
        assert_eq!(dead, Ok(Some(("a", Departure::DeliveryCountExceeded))));
        assert_eq!(lock(&mut queue, now, 1), Some(("b", 0)));
    }

    #[test]
    fn a_lock_runs_out_without_counting() {
        let start = Now::test();
        let mut queue = queue(start, &["a"]);
        for round in 0..20 {
            let now = start.plus(RULES.lock * round);
            assert_eq!(lock(&mut queue, now, 1), Some(("a", 0)), "round {round}");
            assert_eq!(lock(&mut queue, now.plus(RULES.lock - Duration::from_millis(1)), 2), None);
        }
        let late = start.plus(RULES.lock * 20);
        assert_eq!(queue.settle(late, token(1), Settlement::Complete, RULES), Err(LockLost));
        assert_eq!(lock(&mut queue, late, 2), Some(("a", 0)), "a late answer does no harm");
        assert_eq!(queue.expire(late.plus(RULES.lock)), (vec![], true));
        assert_eq!(queue.expire(late.plus(RULES.lock)), (vec![], false));
    }

    #[test]
    fn a_reader_that_goes_gives_back_without_counting() {
        let now = Now::test();
        let mut queue = queue(now, &["a"]);
        assert!(lock(&mut queue, now, 1).is_some());
        queue.give_back(token(1));
        queue.give_back(token(9));
        assert_eq!(lock(&mut queue, now, 2), Some(("a", 0)));
    }

    #[test]
    fn what_expires_is_handed_out_no_more_unless_somebody_holds_it() {
        let now = Now::test();
        let mut queue = Queue::default();
        queue.push(now, 1, Duration::from_secs(5), "short");
        queue.push(now, 2, Duration::from_secs(5), "held");
        queue.push(now, 3, Duration::MAX, "forever");
        assert_eq!(lock(&mut queue, now, 1), Some(("short", 0)));
        assert_eq!(lock(&mut queue, now, 2), Some(("held", 0)));
        queue.give_back(token(1));
        let later = now.plus(Duration::from_secs(5));
        assert_eq!(lock(&mut queue, later, 3), Some(("forever", 0)));
        assert_eq!(queue.expire(later), (vec!["short"], false));
        assert!(queue.settle(later, token(2), Settlement::Complete, RULES).unwrap().is_some());
        assert_eq!(queue.len(), 1);
        assert_eq!(queue.pop_oldest(), Some("forever"));
    }

    #[test]
    fn a_token_reads_as_dotnet_reads_it() {
        let bytes = LockToken([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
        assert_eq!(bytes.to_guid(), "03020100-0504-0706-0809-0a0b0c0d0e0f");
    }
}
