//! Sending: which message next, when a queue pauses, and what the disk's sync lets go on.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fieldgate_mappings::address::DeviceId;

use super::{AHEAD, Bounds, InFlight, Queues};
use crate::store::Place;

/// The first pause of a queue after a message was not taken, and the longest one.
const PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A message to be sent: [`Queues::report`] ends it.
#[derive(Clone, Debug)]
#[must_use = "the queue waits for its outcome"]
pub(in crate::spool) struct Send {
    /// What [`Queues::report`] takes.
    pub(in crate::spool) flight: u64,
    pub(in crate::spool) seq: u64,
    pub(in crate::spool) place: Place,
    /// It may have been sent before.
    pub(in crate::spool) marked: bool,
    pub(in crate::spool) device: DeviceId,
    /// The hub that it was stored for.
    pub(in crate::spool) hub: Arc<str>,
}

impl Queues {
    /// Whether messages may be sent to a hub. At first they may not. A hub that comes back is not paused for.
    /// True if it does.
    pub(in crate::spool) fn set_open(&mut self, hub: &Arc<str>, open: bool) -> bool {
        let at = self.hub(hub);
        if std::mem::replace(&mut self.hubs[at].open, open) || !open {
            return false;
        }
        let of_hub: Vec<u32> = (self.queues.iter())
            .filter(|(_, queue)| self.devices[queue.device as usize].hub == at)
            .map(|(number, _)| number as u32)
            .collect();
        for number in of_hub {
            let queue = &mut self.queues[number as usize];
            (queue.failures, queue.paused_until) = (0, None);
            self.consider(number);
        }
        true
    }

    /// The next message to be sent, if one may be sent now.
    pub(in crate::spool) fn next(&mut self, now: Instant) -> Option<Send> {
        self.resume(now);
        let hubs = self.hubs.len();
        (0..hubs).find_map(|_| {
            let hub = self.next_hub % hubs;
            // The others have their turn after each message.
            self.next_hub = (hub + 1) % hubs;
            self.next_of(hub)
        })
    }

    fn next_of(&mut self, at: usize) -> Option<Send> {
        let Bounds { window, max_in_flight, max_in_flight_bytes, .. } = self.bounds;
        loop {
            let hub = &mut self.hubs[at];
            if !hub.open || hub.in_flight >= max_in_flight || hub.in_flight_bytes >= max_in_flight_bytes {
                return None;
            }
            let number = hub.turns.front()?;
            let queue = &mut self.queues[number as usize];
            let entry = if queue.can_send(window, AHEAD) { queue.send() } else { None };
            let Some(entry) = entry else {
                queue.debt = hub.turns.leave();
                queue.in_ring = false;
                self.forget_if_idle(number);
                continue;
            };
            hub.turns.sent(entry.bytes());
            hub.in_flight += 1;
            hub.in_flight_bytes += entry.bytes();
            let name = Arc::clone(&hub.name);
            let flight = self.flights.insert(InFlight { queue: number, seq: entry.seq() }) as u64;
            return Some(Send {
                flight,
                seq: entry.seq(),
                place: entry.place(),
                marked: entry.is_marked(),
                device: self.devices[queue.device as usize].id.clone(),
                hub: name,
            });
        }
    }

    /// A queue's window has failed and has all its outcomes: what is left of it will be sent again, after a pause.
    pub(super) fn pause(&mut self, at: u32, now: Instant) {
        let queue = &mut self.queues[at as usize];
        let doubled = PAUSE.saturating_mul(1 << queue.failures.min(16));
        queue.failures += 1;
        let pause = queue.pause.take().unwrap_or_default().max(doubled).min(PAUSE_MAX);
        queue.paused_until = Some(now + pause);
        self.paused.push(Reverse((now + pause, at)));
    }

    /// When [`next`](Self::next) could have something because a pause is over.
    pub(in crate::spool) fn poll_timeout(&self) -> Option<Instant> {
        self.paused.peek().map(|Reverse((until, _))| *until)
    }

    fn resume(&mut self, now: Instant) {
        while let Some(Reverse((until, at))) = self.paused.peek().copied()
            && until <= now
        {
            self.paused.pop();
            // The queue may be gone, or have been paused again, or not be paused any more.
            let queue = self.queues.get_mut(at as usize).filter(|queue| queue.paused_until == Some(until));
            if let Some(queue) = queue {
                queue.paused_until = None;
                self.consider(at);
            }
        }
    }

    /// Whether a queue waits for [`synced`](Self::synced).
    pub(in crate::spool) fn wants_sync(&self) -> bool {
        self.sync_wanted
    }

    /// All that has gone so far would stay away after a crash.
    pub(in crate::spool) fn synced(&mut self) {
        self.sync_wanted = false;
        for at in std::mem::take(&mut self.unsynced) {
            self.queues[at as usize].unsynced = 0;
            self.consider(at);
            self.forget_if_idle(at);
        }
    }
}
