//! A connection's machine, and what is known of the task that moves its bytes.

use std::task::{Context, Waker};
use std::time::Instant;

use fieldgate_amqp::connection::{CloseReason, Connection};

/// While this much waits to be written to a peer, nothing is read that would add to it.
pub(crate) const MAX_BACKLOG_BYTES: usize = 1024 * 1024;

/// One connection of the router.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) machine: Connection,
    /// Bytes that the task has taken from the machine and the stream has not taken yet.
    pub(crate) wire_backlog: usize,
    /// The stream is over; what the machine has still to say goes nowhere.
    pub(crate) finished: bool,
    /// The peer is read. Otherwise its silence is not its own.
    reading: bool,
    /// Why the connection is over, once its machine has said so.
    pub(crate) reason: Option<Box<CloseReason>>,
    waker: Option<Waker>,
    /// The task sleeps, and wants to be woken.
    parked: bool,
}

impl Seat {
    pub(crate) fn new(machine: Connection) -> Self {
        Self {
            machine,
            wire_backlog: 0,
            finished: false,
            reading: true,
            reason: None,
            waker: None,
            parked: false,
        }
    }

    /// Bytes that wait to be written.
    pub(crate) fn backlog(&self) -> usize {
        self.wire_backlog + self.machine.output_bytes()
    }

    /// Whether more may be said to the peer.
    pub(crate) fn has_room(&self) -> bool {
        self.finished || self.backlog() < MAX_BACKLOG_BYTES
    }

    /// Notes that the task sleeps until [`wake`](Self::wake).
    pub(crate) fn park(&mut self, cx: &Context<'_>) {
        match &mut self.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => self.waker = Some(cx.waker().clone()),
        }
        self.parked = true;
    }

    /// Notes that the task is awake.
    pub(crate) fn unpark(&mut self) {
        self.parked = false;
    }

    /// Wakes the task, once until it sleeps again.
    pub(crate) fn wake(&mut self) {
        if std::mem::take(&mut self.parked)
            && let Some(waker) = &self.waker
        {
            waker.wake_by_ref();
        }
    }

    /// Says whether the peer is read from now on: a peer that is held back is not charged with its silence.
    pub(crate) fn read(&mut self, reading: bool, now: Instant) -> bool {
        let reading = reading && !self.machine.is_closed() && self.machine.wants_input();
        if reading != std::mem::replace(&mut self.reading, reading) {
            if reading { self.machine.resumed(now) } else { self.machine.paused(now) }
        }
        reading
    }
}
