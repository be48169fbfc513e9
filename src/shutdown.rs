//! Stopping in order: one side asks, every part hears it and finishes what it has under way.
//!
//! Not a way to abort: who hears the request stops accepting, drains until the configured time is over, and closes
//! its connections as their protocols say. A second request makes the rest of the drain stop waiting.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::Notify;

/// How far the stop has come; only ever grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Running,
    Draining,
    Aborting,
}

#[derive(Debug)]
struct Shared {
    /// A [`Stage`].
    stage: AtomicU8,
    raised: Notify,
}

/// The side that asks for the stop. Cheap to clone; dropping it asks for nothing.
#[derive(Clone, Debug)]
pub struct Trigger(Arc<Shared>);

/// The side that hears it. Cheap to clone, and usable on any thread and runtime.
#[derive(Clone, Debug)]
pub struct Shutdown(Arc<Shared>);

/// A connected pair: what asks, and what hears.
#[must_use]
pub fn channel() -> (Trigger, Shutdown) {
    let shared = Arc::new(Shared { stage: AtomicU8::new(Stage::Running as u8), raised: Notify::new() });
    (Trigger(Arc::clone(&shared)), Shutdown(shared))
}

impl Trigger {
    /// Asks everybody to stop accepting and to finish. Asking again changes nothing.
    pub fn drain(&self) {
        self.raise(Stage::Draining);
    }

    /// Asks everybody to close at once, without waiting for what is in flight.
    pub fn abort(&self) {
        self.raise(Stage::Aborting);
    }

    fn raise(&self, to: Stage) {
        if self.0.stage.fetch_max(to as u8, Ordering::AcqRel) < to as u8 {
            self.0.raised.notify_waiters();
        }
    }
}

impl Shutdown {
    /// True from the moment the stop was asked for.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.has_reached(Stage::Draining)
    }

    /// True once nobody is to wait for work in flight any longer.
    #[must_use]
    pub fn is_aborting(&self) -> bool {
        self.has_reached(Stage::Aborting)
    }

    /// Waits until the stop is asked for; at once if it was already. Cancel safe.
    pub fn draining(&self) -> impl Future<Output = ()> {
        self.reached(Stage::Draining)
    }

    /// Waits until nobody is to wait for work in flight any longer. Cancel safe.
    pub fn aborting(&self) -> impl Future<Output = ()> {
        self.reached(Stage::Aborting)
    }

    fn has_reached(&self, stage: Stage) -> bool {
        self.0.stage.load(Ordering::Acquire) >= stage as u8
    }

    /// Every connection holds one of these futures: it is small.
    async fn reached(&self, stage: Stage) {
        loop {
            // It hears of what is raised from here on, polled or not.
            let raised = self.0.raised.notified();
            if self.has_reached(stage) {
                return;
            }
            raised.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn poll(future: impl Future<Output = ()>) -> Poll<()> {
        pin!(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_stop_is_heard_by_every_clone_and_stays_heard() {
        let (trigger, shutdown) = channel();
        let other = shutdown.clone();
        assert!(!shutdown.is_draining());
        assert!(poll(shutdown.draining()).is_pending());
        trigger.drain();
        assert!(shutdown.is_draining() && other.is_draining());
        assert!(poll(other.draining()).is_ready());
        assert!(poll(other.aborting()).is_pending());
    }

    #[test]
    fn draining_after_an_abort_does_not_take_it_back() {
        let (trigger, shutdown) = channel();
        trigger.abort();
        trigger.drain();
        assert!(poll(shutdown.aborting()).is_ready());
    }

    #[test]
    fn a_lost_trigger_is_not_a_stop() {
        let (trigger, shutdown) = channel();
        drop(trigger);
        assert!(poll(shutdown.draining()).is_pending());
        assert!(!shutdown.is_draining());
    }
}
