//! Stopping in order: one side asks, every part hears it and finishes what it has under way.
//!
//! Not a way to abort: who hears the request stops accepting, drains until the configured time is over, and closes
//! its connections as their protocols say. A second request makes the rest of the drain stop waiting.

use std::sync::Arc;

use tokio::sync::watch;

/// How far the stop has come; only ever grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Running,
    Draining,
    Aborting,
}

/// The side that asks for the stop. Cheap to clone; dropping it asks for nothing.
#[derive(Clone, Debug)]
pub struct Trigger(Arc<watch::Sender<Stage>>);

/// The side that hears it. Cheap to clone, and usable on any thread and runtime.
#[derive(Clone, Debug)]
pub struct Shutdown {
    stage: watch::Receiver<Stage>,
    // Holding the sender keeps a waiting `Shutdown` pending, not failing, when every `Trigger` is gone.
    _keep: Arc<watch::Sender<Stage>>,
}

/// A connected pair: what asks, and what hears.
#[must_use]
pub fn channel() -> (Trigger, Shutdown) {
    let (sender, stage) = watch::channel(Stage::Running);
    let sender = Arc::new(sender);
    (Trigger(sender.clone()), Shutdown { stage, _keep: sender })
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
        self.0.send_if_modified(|stage| {
            let grows = to > *stage;
            if grows {
                *stage = to;
            }
            grows
        });
    }
}

impl Shutdown {
    /// True from the moment the stop was asked for.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        *self.stage.borrow() >= Stage::Draining
    }

    /// True once nobody is to wait for work in flight any longer.
    #[must_use]
    pub fn is_aborting(&self) -> bool {
        *self.stage.borrow() >= Stage::Aborting
    }

    /// Waits until the stop is asked for; at once if it was already. Cancel safe.
    pub async fn draining(&self) {
        self.reached(Stage::Draining).await;
    }

    /// Waits until nobody is to wait for work in flight any longer. Cancel safe.
    pub async fn aborting(&self) {
        self.reached(Stage::Aborting).await;
    }

    async fn reached(&self, stage: Stage) {
        let mut watch = self.stage.clone();
        // An error would mean that the sender is gone, and `_keep` holds it.
        let _ = watch.wait_for(|now| *now >= stage).await;
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
