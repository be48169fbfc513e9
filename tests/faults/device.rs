//! A device: makes numbered messages at its pace, keeps what was not acknowledged, sends it again, and comes back
//! whenever it has lost the gateway.

mod coap;
mod http;
mod mqtt;

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::{sleep, sleep_until};

use super::gateway::{Life, Ports, word};
use super::ledger::{Kind, Shared, Told};
use super::payload::{self, Key};
use super::rng::Rng;

/// What a device speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    Mqtt311,
    Mqtt5,
    Coap,
    Http,
}

/// What tells all devices what to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Orders {
    /// New messages are made.
    pub(crate) make: bool,
    /// Leave.
    pub(crate) close: bool,
}

/// What a device is like.
#[derive(Clone, Debug)]
pub(crate) struct Nature {
    pub(crate) number: u32,
    pub(crate) kind: Kind,
    pub(crate) speaks: Speaks,
    /// Between two messages.
    pub(crate) pace: Duration,
    /// How many messages may be without an answer; CoAP and HTTP devices ask one thing at a time.
    pub(crate) window: usize,
    /// Of each message.
    pub(crate) bytes: usize,
}

/// The longest that a device waits before it tries again, whatever it was told.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// How long a device waits that was told nothing.
const PAUSE: (u64, u64) = (10, 60);

/// A device.
#[derive(Debug)]
pub(crate) struct Device {
    nature: Nature,
    ports: Ports,
    ledger: Shared,
    orders: watch::Receiver<Orders>,
    rng: Rng,
    /// Made, and not under way: to be sent, or to be sent again.
    pending: BTreeSet<u32>,
    in_flight: Vec<Key>,
    /// When the next message is made, and until when nothing is sent.
    due: Instant,
    pause: Instant,
}

impl Device {
    pub(crate) fn new(
        nature: Nature,
        ports: Ports,
        ledger: Shared,
        orders: watch::Receiver<Orders>,
        mut rng: Rng,
    ) -> Self {
        let now = Instant::now();
        // Not all at the same time.
        let due = now + nature.pace.mul_f64(rng.below(1000) as f64 / 1000.0);
        let (pending, in_flight) = (BTreeSet::new(), Vec::new());
        Self { nature, ports, ledger, orders, rng, pending, in_flight, due, pause: now }
    }

    /// Lives until it is told to close.
    pub(crate) async fn run(mut self, mut life: watch::Receiver<Life>) {
        let mut orders = self.orders.clone();
        let closing = async {
            // An error means that the run is over.
            let _ = orders.wait_for(|orders| orders.close).await;
        };
        tokio::select! {
            () = closing => {}
            () = self.talk(&mut life) => {}
        }
    }

    async fn talk(&mut self, life: &mut watch::Receiver<Life>) {
        loop {
            let Ok(Some(this)) = life.wait_for(Option::is_some).await.map(|life| *life) else { return };
            let mut same = life.clone();
            tokio::select! {
                // First of all: a datagram over the old socket would reach the next life, beside the same message over
                // the new one, and nothing orders the two.
                biased;
                _ = same.wait_for(|life| *life != Some(this)) => {}
                // Why a connection ended is no concern of a device: it comes back.
                _ = self.session(this) => {}
            }
            let lost = std::mem::take(&mut self.in_flight);
            self.pending.extend(lost.iter().map(|key| key.number));
            if *life.borrow() == Some(this) {
                sleep(self.rng.millis(PAUSE.0, PAUSE.1)).await;
            }
        }
    }

    async fn session(&mut self, life: u64) -> io::Result<()> {
        match self.nature.speaks {
            Speaks::Mqtt311 => mqtt::session(self, life, fieldgate_mqtt::Version::V311).await,
            Speaks::Mqtt5 => mqtt::session(self, life, fieldgate_mqtt::Version::V5).await,
            Speaks::Coap => coap::session(self, life).await,
            Speaks::Http => http::session(self, life).await,
        }
    }

    fn name(&self) -> String {
        payload::name(self.nature.number)
    }

    /// Its place in topics and paths.
    fn word(&self) -> &'static str {
        word(self.nature.kind)
    }

    /// What is to be sent now, if anything is.
    fn next(&mut self, now: Instant) -> Option<(Key, bool)> {
        if self.in_flight.len() >= self.nature.window || now < self.pause {
            return None;
        }
        let device = self.nature.number as usize;
        let again = self.pending.pop_first();
        let number = match again {
            Some(number) => number,
            None if self.orders.borrow().make && self.due <= now => {
                // What the gateway did not take in time is not made up for.
                self.due = (self.due + self.nature.pace).max(now - self.nature.pace);
                self.ledger.lock().make(device)
            }
            None => return None,
        };
        let key = self.ledger.lock().send(device, number, now);
        self.in_flight.push(key);
        Some((key, again.is_some()))
    }

    /// Waits until there may be something to be sent.
    async fn due(&self) {
        let mut orders = self.orders.clone();
        if self.in_flight.len() >= self.nature.window {
            return std::future::pending().await;
        }
        if self.pending.is_empty() && orders.wait_for(|orders| orders.make).await.is_err() {
            return std::future::pending().await;
        }
        let due = if self.pending.is_empty() { self.due } else { self.pause };
        sleep_until(due.max(self.pause).into()).await;
    }

    fn acknowledged(&mut self, key: Key) {
        self.in_flight.retain(|other| *other != key);
        self.ledger.lock().told(key, Told::Acknowledged, Instant::now());
    }

    /// It was not taken: it is sent again, after what the gateway said, within reason.
    fn refused(&mut self, key: Key, after: Option<Duration>) {
        let now = Instant::now();
        self.in_flight.retain(|other| *other != key);
        self.pending.insert(key.number);
        self.ledger.lock().told(key, Told::Refused, now);
        let after = after.unwrap_or(Duration::from_millis(100)).min(LONGEST_PAUSE);
        self.pause = now + after + self.rng.millis(0, PAUSE.1);
    }
}
