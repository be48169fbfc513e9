//! The task of a worker's connections together: makes those that are wanted, keeps the time of all, and ends when they
//! have.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Instant, SystemTime};

use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::console::{Health, Status};
use crate::shutdown::Shutdown;
use crate::telemetry::emit;
use crate::timer::Timer;

use super::Upstream;
use super::driver::Driver;
use super::fleet::Fleet;
use super::hubs::MappedHubs;
use super::telemetry::{TokenOf, TokensAged};

/// What the task works with.
pub(super) struct Keeper {
    pub(super) index: usize,
    pub(super) fleet: Rc<RefCell<Fleet>>,
    pub(super) changes: Rc<Notify>,
    pub(super) hubs: Arc<MappedHubs>,
    pub(super) health: Arc<Health>,
    pub(super) shutdown: Shutdown,
    /// What the container-ids of the connections begin with.
    container: String,
    /// Connections that were made.
    made: usize,
}

impl Keeper {
    pub(super) fn new(
        index: usize,
        upstream: &Upstream,
        hubs: &Arc<MappedHubs>,
        health: Arc<Health>,
        shutdown: Shutdown,
    ) -> Self {
        let container = format!("fieldgate-{:016x}-{index}", random());
        let (fleet, changes) = (Rc::clone(&upstream.fleet), Rc::clone(&upstream.changes));
        Self { index, fleet, changes, hubs: Arc::clone(hubs), health, shutdown, container, made: 0 }
    }

    /// Runs until the worker wants no connection any more, and there is none.
    pub(super) async fn run(mut self) {
        self.health.set_upstream(self.index, Status::Starting);
        let mut timer = Timer::default();
        let mut connections = JoinSet::new();
        let (fleet, mut changes) = (Rc::clone(&self.fleet), self.hubs.roster.changes());
        // What changed before this was listened to.
        fleet.borrow_mut().review(Instant::now());
        let follow = async {
            loop {
                changes.changed().await;
                fleet.borrow_mut().review(Instant::now());
            }
        };
        tokio::select! {
            () = poll_fn(|cx| self.poll(cx, &mut timer, &mut connections)) => {}
            () = follow => {}
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, timer: &mut Timer, connections: &mut JoinSet<()>) -> Poll<()> {
        loop {
            // An error is a panic, which is counted and logged where it happens; its connection is given up.
            while let Poll::Ready(Some(_)) = connections.poll_join_next(cx) {}
            let wanted = self.fleet.borrow_mut().take_wanted();
            for line in wanted {
                self.made += 1;
                let container = match self.made {
                    1 => self.container.clone(),
                    made => format!("{}-{made}", self.container),
                };
                connections.spawn_local(Driver::new(self, line, container).run());
            }
            let mut fleet = self.fleet.borrow_mut();
            if fleet.is_closing() && connections.is_empty() {
                return Poll::Ready(());
            }
            fleet.keeper = Some(cx.waker().clone());
            let due = fleet.poll_timeout();
            fleet.planned = due;
            if timer.poll(cx, due).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            fleet.handle_timeout(now, unix_now());
            let ages =
                [(TokenOf::Policy, fleet.own_seconds_left(now)), (TokenOf::Device, fleet.seconds_left(now))];
            for (of, seconds_left) in ages {
                emit(TokensAged { worker: self.index, of, seconds_left });
            }
        }
    }
}

/// The time that tokens expire by, in seconds.
pub(super) fn unix_now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs()
}

/// A uniform random number. Without the system's randomness jitter is fixed and ids are alike: no harm.
pub(super) fn random() -> u64 {
    let mut bytes = [0; 8];
    let _ = SystemRandom::new().fill(&mut bytes);
    u64::from_be_bytes(bytes)
}
