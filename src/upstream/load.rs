//! What the devices of one connection have under way together, and the bounds of it.
//!
//! Each message holds its [`Share`], so that whatever becomes of it, the counts come out right.

use std::cell::Cell;
use std::rc::Rc;

/// Bytes of messages that were sent and have no outcome. They may all lie in the connection's output, when the
/// hub does not read.
const MAX_IN_FLIGHT_BYTES: usize = 32 * 1024 * 1024;
/// Bytes of messages that wait for the hub, with what is kept beside them.
pub(super) const MAX_WAITING_BYTES: usize = 32 * 1024 * 1024;
/// What is kept beside a message that waits, about: its place in a queue, its verdict, its allocation.
const WAITING_OVERHEAD_BYTES: usize = 128;

/// The counts of one connection.
#[derive(Debug)]
pub(super) struct Load {
    max_in_flight: usize,
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
    /// Nothing is under way; at most `max_in_flight` messages may be without an outcome.
    pub(super) fn new(max_in_flight: usize) -> Rc<Self> {
        Rc::new(Self {
            max_in_flight,
            in_flight: Cell::default(),
            in_flight_bytes: Cell::default(),
            waiting_bytes: Cell::default(),
        })
    }

    /// Messages that were sent and have no outcome.
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

    /// The share of a message that is sent.
    pub(super) fn send(self: &Rc<Self>, bytes: usize) -> Share {
        self.in_flight.update(|messages| messages + 1);
        self.in_flight_bytes.update(|sum| sum + bytes);
        Share { load: Rc::clone(self), bytes, of: Of::InFlight }
    }

    /// The share of a message that waits; nothing where too much waits already.
    pub(super) fn wait(self: &Rc<Self>, bytes: usize) -> Option<Share> {
        let bytes = bytes + WAITING_OVERHEAD_BYTES;
        if self.waiting_bytes.get() + bytes > MAX_WAITING_BYTES {
            return None;
        }
        self.waiting_bytes.update(|sum| sum + bytes);
        Some(Share { load: Rc::clone(self), bytes, of: Of::Waiting })
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
    use super::*;

    #[test]
    fn what_is_dropped_is_not_counted() {
        let load = Load::new(2);
        let (one, two) = (load.send(10), load.send(20));
        assert!(load.is_full());
        drop(one);
        assert!(!load.is_full());
        assert_eq!((load.in_flight(), load.in_flight_bytes.get()), (1, 20));
        drop(two);
        assert_eq!((load.in_flight(), load.in_flight_bytes.get()), (0, 0));
    }

    #[test]
    fn bytes_are_bounded() {
        let load = Load::new(usize::MAX);
        let large = load.send(MAX_IN_FLIGHT_BYTES);
        assert!(load.is_full());
        drop(large);
        assert!(!load.is_full());
        let half: Vec<Share> = (0..2).filter_map(|_| load.wait(MAX_WAITING_BYTES / 2)).collect();
        assert_eq!(half.len(), 1, "what stands beside a message counts as well");
        drop(half);
        assert_eq!(load.waiting_bytes(), 0);
    }
}
