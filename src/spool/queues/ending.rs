//! How messages end: accepted, or dying until their dead letter is on the disk, or sent again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::entry::Entry;
use super::queue::Flight;
use super::{AHEAD, Dying, MAX_DYING, Queues};
use crate::spool::ages::Ages;
use crate::spool::record::DeadReason;
use crate::store::Place;

/// How a message that was sent ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::spool) enum Ended {
    /// The hub has it; or it is not needed any more for another reason.
    Done,
    /// It is to be sent again. `pause` is what the hub asked for.
    Again { pause: Option<Duration> },
    /// The hub refused it, or its time was over just then.
    Dead(DeadReason),
}

impl Queues {
    /// A message that was sent has its end. Gives what is to be settled in the log.
    pub(in crate::spool) fn report(
        &mut self,
        flight: u64,
        ended: Ended,
        now: Instant,
    ) -> Option<(u64, Place)> {
        let flight = self.flights.try_remove(flight as usize)?;
        let at = flight.queue;
        let outcome = if let Ended::Again { .. } = ended { Flight::Again } else { Flight::Done };
        let queue = &mut self.queues[at as usize];
        let entry = queue.report(flight.seq, outcome)?;
        let hub = &mut self.hubs[self.devices[queue.device as usize].hub];
        hub.in_flight -= 1;
        hub.in_flight_bytes -= entry.bytes();
        let settle = match ended {
            Ended::Done => {
                queue.failures = 0;
                self.leave(at, &entry);
                self.totals.remove(entry.bytes());
                self.gone(at);
                Some((entry.seq(), entry.place()))
            }
            Ended::Again { pause } => {
                queue.pause = queue.pause.max(pause);
                None
            }
            Ended::Dead(reason) => {
                queue.failures = 0;
                self.die(at, &entry, reason);
                None
            }
        };
        if self.queues[at as usize].rewind() {
            self.pause(at, now);
        }
        self.consider(at);
        settle
    }

    /// Lets what has waited too long die, at most as much as may be dying. `now` is in seconds since 1970.
    pub(in crate::spool) fn expire(&mut self, now: u32, ages: &Ages) {
        let due: Vec<u32> =
            (self.queues.iter()).filter(|(_, queue)| queue.min_due <= now).map(|(at, _)| at as u32).collect();
        let mut expired = Vec::new();
        for at in due {
            let most = self.may_die(at);
            self.queues[at as usize].expire(now, most, ages, |entry| expired.push(entry));
            expired.drain(..).for_each(|entry| self.die(at, &entry, DeadReason::Expired));
        }
    }

    /// How many messages of a queue may still become dead letters before some are buried.
    pub(super) fn may_die(&self, at: u32) -> usize {
        // The others of the queue can still be sent while no dead letter can be written.
        let of_queue = (AHEAD / 2).saturating_sub(self.queues[at as usize].dying) as usize;
        of_queue.min(MAX_DYING.saturating_sub(self.dying_count))
    }

    /// Whether a queue waits for burials, among them that of one that was taken out to be buried.
    pub(in crate::spool) fn waits_for_burials(&self, taken: &Dying) -> bool {
        std::iter::once(taken).chain(&self.dying).any(|dying| self.may_die(dying.queue) == 0)
    }

    /// The next message that a dead letter is to be written of.
    pub(in crate::spool) fn next_dying(&mut self) -> Option<Dying> {
        self.dying.pop_front()
    }

    /// Whether there is one.
    pub(in crate::spool) fn has_dying(&self) -> bool {
        !self.dying.is_empty()
    }

    /// The dead letter is on the disk, or there is nothing left that it could be written of. The message is to be
    /// settled.
    pub(in crate::spool) fn buried(&mut self, dying: Dying) {
        self.dying_count -= 1;
        self.totals.remove(dying.bytes);
        self.queues[dying.queue as usize].dying -= 1;
        self.gone(dying.queue);
        self.consider(dying.queue);
    }

    /// How many there are.
    pub(in crate::spool) fn dying(&self) -> usize {
        self.dying.len()
    }

    /// The dead letter could not be written, and others may.
    pub(in crate::spool) fn buried_last(&mut self, dying: Dying) {
        self.dying.push_back(dying);
    }

    /// The dead letter could not be written.
    pub(in crate::spool) fn not_buried(&mut self, dying: Dying) {
        self.dying.push_front(dying);
    }

    /// An entry is none of its queue any more. It still counts in the totals.
    pub(super) fn die(&mut self, at: u32, entry: &Entry, reason: DeadReason) {
        self.leave(at, entry);
        self.queues[at as usize].dying += 1;
        self.dying_count += 1;
        let (seq, place) = (entry.seq(), entry.place());
        let (marked, bytes) = (entry.is_marked(), entry.bytes());
        self.dying.push_back(Dying { seq, place, reason, marked, queue: at, bytes });
    }

    /// The device has it no more.
    fn leave(&mut self, at: u32, entry: &Entry) {
        let device = &mut self.devices[self.queues[at as usize].device as usize];
        device.totals.remove(entry.bytes());
        self.left.push((Arc::clone(&self.hubs[device.hub].name), device.id.clone()));
    }

    /// A crash would bring an entry of the queue back until the next sync.
    fn gone(&mut self, at: u32) {
        let queue = &mut self.queues[at as usize];
        queue.unsynced += 1;
        if queue.unsynced == 1 {
            self.unsynced.push(at);
        }
    }
}
