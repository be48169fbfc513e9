//! The timers of a connection (2.4.5). None of them is moved by a frame: they are worked out when asked for.

use std::time::{Duration, Instant};

use super::{CloseReason, Connection, Phase, encode};
use crate::error::{AmqpError, Violation};
use crate::frame::HEARTBEAT;

/// The shortest interval between our heartbeats, whatever a peer asks for.
const MIN_HEARTBEAT: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timer {
    /// The peer must have opened, or answered our close.
    Deadline,
    /// The peer must have sent something.
    Silence,
    /// We must have sent something.
    Heartbeat,
}

const TIMERS: [Timer; 3] = [Timer::Deadline, Timer::Silence, Timer::Heartbeat];

/// The deadline of opening or closing.
#[derive(Clone, Copy, Debug)]
enum Deadline {
    Off,
    /// Set by a command, which does not know the time: it runs from the next call that does.
    Unarmed,
    At(Instant),
}

/// What the timers of a connection are worked out from.
#[derive(Debug)]
pub(crate) struct Clock {
    /// The last time that we were told.
    now: Instant,
    heard: Instant,
    sent: Instant,
    deadline: Deadline,
    /// We do not read; the peer's silence is our own doing.
    paused: bool,
    /// How often the peer wants to hear us.
    heartbeat: Option<Duration>,
}

impl Clock {
    pub(crate) fn new(now: Instant, open_time_out: Duration) -> Self {
        let deadline = Deadline::At(now + open_time_out);
        Self { now, heard: now, sent: now, deadline, paused: false, heartbeat: None }
    }

    pub(crate) fn heard(&mut self, now: Instant, open_time_out: Duration) {
        self.tick(now, open_time_out);
        self.heard = now;
    }

    pub(crate) fn sent(&mut self) {
        self.sent = self.now;
    }

    fn tick(&mut self, now: Instant, open_time_out: Duration) {
        self.now = now;
        if matches!(self.deadline, Deadline::Unarmed) {
            self.deadline = Deadline::At(now + open_time_out);
        }
    }

    /// The peer has all the time: the answer is ours to give.
    pub(crate) fn no_deadline(&mut self) {
        self.deadline = Deadline::Off;
    }

    /// The peer must answer within the time for opening.
    pub(crate) fn new_deadline(&mut self) {
        self.deadline = Deadline::Unarmed;
    }

    /// The peer wants to hear us within `idle_time_out`; half of it leaves room for the way.
    pub(crate) fn beat(&mut self, idle_time_out: Option<Duration>) {
        self.heartbeat = idle_time_out.map(|time| (time / 2).max(MIN_HEARTBEAT));
    }

    pub(crate) fn stop(&mut self) {
        self.deadline = Deadline::Off;
        self.heartbeat = None;
    }
}

impl Connection {
    /// When [`handle_timeout`](Self::handle_timeout) is to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        TIMERS.into_iter().filter_map(|timer| self.due(timer)).min()
    }

    /// Does what the time asks for. Calling it too early or without need does no harm.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.clock.tick(now, self.config.open_time_out);
        for timer in TIMERS {
            if self.due(timer).is_some_and(|due| due <= now) {
                self.expire(timer);
            }
        }
    }

    /// We stop reading from the peer, for want of room: its silence is not held against it until
    /// [`resumed`](Self::resumed).
    pub fn paused(&mut self, now: Instant) {
        self.clock.tick(now, self.config.open_time_out);
        self.clock.paused = true;
    }

    /// We read again.
    pub fn resumed(&mut self, now: Instant) {
        self.clock.heard(now, self.config.open_time_out);
        self.clock.paused = false;
    }

    fn due(&self, timer: Timer) -> Option<Instant> {
        let clock = &self.clock;
        match timer {
            Timer::Deadline => match clock.deadline {
                Deadline::Off => None,
                Deadline::Unarmed => Some(clock.now),
                Deadline::At(time) => Some(time),
            },
            // 2.4.5: half of the real limit is announced.
            Timer::Silence if self.phase == Phase::Running && !clock.paused => {
                let limit = self.config.idle_time_out?.checked_mul(2)?;
                clock.heard.checked_add(limit)
            }
            Timer::Silence => None,
            // Not before our open, and not after our close.
            Timer::Heartbeat if self.phase == Phase::Running => clock.sent.checked_add(clock.heartbeat?),
            Timer::Heartbeat => None,
        }
    }

    fn expire(&mut self, timer: Timer) {
        match timer {
            Timer::Deadline => self.finish(CloseReason::TimedOut),
            Timer::Silence => {
                encode::put_close(self.output.now(), Some(&AmqpError::from(&Violation::Idle)));
                self.finish(CloseReason::TimedOut);
            }
            Timer::Heartbeat => {
                if self.output.is_empty() {
                    self.output.now().extend_from_slice(&HEARTBEAT);
                }
                // Output that waits is the driver's to send; asking again at once would not help.
                self.clock.sent();
            }
        }
    }
}
