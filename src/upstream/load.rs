//! What the devices of one hub have under way together, and the bounds of it.
//!
//! Each message holds its [`Share`], so that whatever becomes of it, the counts come out right.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::pace::Pace;

/// Bytes of messages that were sent and have no outcome. They may all lie in the connection's output, when the
/// hub does not read.
const MAX_IN_FLIGHT_BYTES: usize = 32 * 1024 * 1024;
/// Bytes of messages that wait for the hub, with what is kept beside them.
pub(super) const MAX_WAITING_BYTES: usize = 32 * 1024 * 1024;
/// What is kept beside a message that waits, about: its place in a queue, its verdict, its allocation.
const WAITING_OVERHEAD_BYTES: usize = 128;

/// The part of what is free that one device may take, as a divisor: a device that is alone has a fifth of all room,
/// and the more there are that want much, the less each of them has; there is always some for the next.
const DEVICE_SHARE: usize = 4;

/// The counts of a hub's connections in one worker.
#[derive(Debug)]
pub(super) struct Load {
    max_in_flight: usize,
    pace: Option<Arc<Pace>>,
    /// The hub wants to be left alone until then.
    paused_until: Cell<Option<Instant>>,
    in_flight: Cell<usize>,
    in_flight_bytes: Cell<usize>,
    waiting_bytes: Cell<usize>,
}

/// What one message takes of the bounds; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    load: Rc<Load>,
    bytes: usize,
    of: Of,
}

#[derive(Clone, Copy, Debug)]
enum Of {
    InFlight,
    Waiting,
}

impl Load {
    /// Nothing is under way; at most `max_in_flight` messages may be without an outcome, and they go at `pace`.
    pub(super) fn new(max_in_flight: usize, pace: Option<Arc<Pace>>) -> Rc<Self> {
        Rc::new(Self {
            max_in_flight,
            pace,
            paused_until: Cell::default(),
            in_flight: Cell::default(),
            in_flight_bytes: Cell::default(),
            waiting_bytes: Cell::default(),
        })
    }

    /// Messages that were sent and have no outcome.
    #[cfg(test)]
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// Bytes that wait.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes.get()
    }

    /// Whether nothing more may be sent until something is answered.
    pub(super) fn is_full(&self) -> bool {
        self.in_flight.get() >= self.max_in_flight || self.in_flight_bytes.get() >= MAX_IN_FLIGHT_BYTES
    }

    /// Whether a message may go now, as far as everybody's bounds are concerned.
    pub(super) fn is_open(&self, now: Instant) -> bool {
        !self.is_full() && self.opens_at(now).is_none()
    }

    /// When the hub's rate or its wish to be left alone lets the next message go; nothing where they do now.
    pub(super) fn opens_at(&self, now: Instant) -> Option<Instant> {
        let paused = self.paused_until.get().filter(|until| *until > now);
        let paced = self.pace.as_ref().and_then(|pace| pace.next(now));
        paused.max(paced)
    }

    /// The hub is left alone until then.
    pub(super) fn pause(&self, until: Instant) {
        self.paused_until.set(self.paused_until.get().max(Some(until)));
    }

    /// The share of a message that is sent, if it may go now.
    pub(super) fn send(self: &Rc<Self>, bytes: usize, now: Instant) -> Option<Share> {
        if self.is_full() || self.paused_until.get().is_some_and(|until| until > now) {
            return None;
        }
        if self.pace.as_ref().is_some_and(|pace| !pace.take(now)) {
            return None;
        }
        self.in_flight.update(|messages| messages + 1);
        self.in_flight_bytes.update(|sum| sum + bytes);
        Some(Share { load: Rc::clone(self), bytes, of: Of::InFlight })
    }

    /// The share of a message that waits, of a device of which so many bytes wait already; nothing where that is too
    /// much.
    pub(super) fn wait(self: &Rc<Self>, bytes: usize, of_device: usize) -> Option<Share> {
        let bytes = bytes + WAITING_OVERHEAD_BYTES;
        let free = MAX_WAITING_BYTES - self.waiting_bytes.get();
        if of_device + bytes > free / DEVICE_SHARE {
            return None;
        }
        self.waiting_bytes.update(|sum| sum + bytes);
        Some(Share { load: Rc::clone(self), bytes, of: Of::Waiting })
    }
}

impl Share {
    /// What it takes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let Self { load, bytes, of } = self;
        match of {
            Of::InFlight => {
                load.in_flight.update(|messages| messages - 1);
                load.in_flight_bytes.update(|sum| sum - *bytes);
            }
            Of::Waiting => load.waiting_bytes.update(|sum| sum - *bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_dropped_is_not_counted() {
        let load = Load::new(2, None);
        let now = Instant::now();
        let (one, two) = (load.send(10, now), load.send(20, now));
        assert!(load.is_full() && load.send(1, now).is_none());
        drop(one);
        assert!(!load.is_full());
        assert_eq!((load.in_flight(), load.in_flight_bytes.get()), (1, 20));
        drop(two);
        assert_eq!((load.in_flight(), load.in_flight_bytes.get()), (0, 0));
    }

    #[test]
    fn bytes_are_bounded() {
        let load = Load::new(usize::MAX, None);
        let large = load.send(MAX_IN_FLIGHT_BYTES, Instant::now());
        assert!(load.is_full());
        drop(large);
        assert!(!load.is_full());
    }

    #[test]
    fn one_device_does_not_take_all_the_room_that_there_is_to_wait() {
        let load = Load::new(usize::MAX, None);
        const SIZE: usize = 10_000;
        let fill = |held: &mut Vec<Share>| {
            let mut of_device = 0;
            while let Some(share) = load.wait(SIZE, of_device) {
                of_device += share.bytes();
                held.push(share);
            }
            of_device
        };
        let mut held = Vec::new();
        let first = fill(&mut held);
        assert!((MAX_WAITING_BYTES / 6..MAX_WAITING_BYTES / 5 + SIZE).contains(&first), "{first}");
        for _ in 0..99 {
            fill(&mut held);
        }
        assert!(load.waiting_bytes() <= MAX_WAITING_BYTES);
        assert!(load.wait(1_000, 0).is_some(), "after a hundred that took all they could");
        drop(held);
        assert_eq!(load.waiting_bytes(), 0);
    }

    #[test]
    fn a_hub_that_wants_to_be_left_alone_is() {
        let (load, now) = (Load::new(10, None), Instant::now());
        let until = now + Duration::from_secs(5);
        load.pause(until);
        load.pause(now + Duration::from_secs(1));
        assert!(!load.is_open(now) && load.send(1, now).is_none());
        assert_eq!(load.opens_at(now), Some(until));
        assert!(load.is_open(until) && load.send(1, until).is_some());
    }
}
