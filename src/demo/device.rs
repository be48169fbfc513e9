//! What the devices of all protocols share: readings at their times, connecting again, and leaving when they are told.

use std::error::Error;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::amqp::Credential;
use super::fleet::{Plan, Speaks};
use super::note::{News, Teller};
use super::{amqp, coap, http, mqtt};
use crate::shutdown::Shutdown;
use crate::upstream::Backoff;

/// How long a device waits for any answer before it gives up its connection.
pub(super) const ANSWER_TIME_OUT: Duration = Duration::from_secs(30);
/// From one reading of a device to its next.
pub(super) const PERIOD: Duration = Duration::from_secs(6);
/// The longest pause between attempts to connect.
const RETRY_MAX: Duration = Duration::from_secs(10);

/// Why a connection is over. Only its text matters: the device connects again in any case.
pub(super) struct Trouble(String);

impl Trouble {
    pub(super) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }

    /// Nothing came within [`ANSWER_TIME_OUT`].
    pub(super) fn silence(awaited: &str) -> Self {
        Self(format!("no {awaited} within {} s", ANSWER_TIME_OUT.as_secs()))
    }
}

impl<E: Error> From<E> for Trouble {
    fn from(error: E) -> Self {
        // The innermost cause is what a person can do something about.
        let mut inner: &dyn Error = &error;
        while let Some(source) = inner.source() {
            inner = source;
        }
        Self(inner.to_string())
    }
}

impl fmt::Debug for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The readings of a device, each when it is due.
#[derive(Debug)]
pub(super) struct Readings {
    plan: &'static Plan,
    due: Interval,
    number: u64,
}

impl Readings {
    /// The next reading, when it is time for it. Cancel safe.
    pub(super) async fn next(&mut self) -> String {
        self.due.tick().await;
        self.number += 1;
        self.plan.reading(self.number)
    }
}

/// A simulated device, connected or about to be.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) plan: &'static Plan,
    /// The gateway's listener.
    pub(super) address: SocketAddr,
    pub(super) readings: Readings,
    pub(super) stop: Shutdown,
    /// Whether commands reach the device now.
    listening: watch::Sender<bool>,
    teller: Teller,
    backoff: Backoff,
    /// Of the pauses between attempts to connect; unlike those of the other devices.
    jitter: u64,
}

impl Device {
    /// A device whose first reading is due at `first`.
    pub(super) fn new(
        plan: &'static Plan,
        address: SocketAddr,
        first: Instant,
        stop: Shutdown,
        teller: Teller,
    ) -> Self {
        let jitter = plan.id.bytes().fold(0, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        let mut due = tokio::time::interval_at(first, PERIOD);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            plan,
            address,
            readings: Readings { plan, due, number: 0 },
            stop,
            listening: watch::Sender::new(false),
            teller,
            backoff: Backoff::new(RETRY_MAX),
            jitter,
        }
    }

    /// Tells when commands reach the device.
    pub(super) fn listening(&self) -> watch::Receiver<bool> {
        self.listening.subscribe()
    }

    /// The connection does its work.
    pub(super) fn is_up(&mut self, listens: bool) {
        self.backoff.reset();
        self.listening.send_replace(listens);
    }

    pub(super) async fn tell(&self, news: News) {
        self.teller.tell(self.plan, news).await;
    }

    /// Lives until the stop, over as many connections as that takes.
    pub(super) async fn live(mut self, credential: Credential) {
        loop {
            let ended = match self.plan.speaks {
                Speaks::Amqp => amqp::live(&mut self, &credential).await,
                Speaks::Mqtt(version) => mqtt::live(&mut self, version).await,
                Speaks::Coap { confirmable } => coap::live(&mut self, confirmable).await,
                Speaks::Http => http::live(&mut self).await,
            };
            self.listening.send_replace(false);
            let Err(Trouble(what)) = ended else { return };
            if self.stop.is_draining() {
                return;
            }
            self.jitter = self.jitter.wrapping_mul(31).wrapping_add(17);
            let again_in = self.backoff.next(self.jitter);
            self.tell(News::Trouble { what, again_in }).await;
            tokio::select! {
                () = tokio::time::sleep(again_in) => {}
                () = self.stop.draining() => return,
            }
        }
    }
}
