//! The router of a worker, as its tasks share it: each has it for a turn, never across a wait.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Instant, SystemTime};

use fieldgate_mappings::DeviceId;
use tokio::sync::Notify;

use crate::config::{Config, Mode};
use crate::console::Health;
use crate::devices::{Changes, Gate};
use crate::router::{Hubs, Registrar, Router, Rules};
use crate::shutdown::Shutdown;
use crate::timer::Timer;
use crate::upstream::Hub;

use super::connectors::{self, Connector};
use super::listeners::Listener;
use super::registrar::Registered;
use super::trunk;

/// The router and what it needs of the world.
pub(crate) struct Routing {
    router: RefCell<Router>,
    connectors: Box<[Rc<Connector>]>,
    registrar: Option<Arc<dyn Registrar>>,
    pub(super) health: Arc<Health>,
    pub(super) worker: usize,
    pub(super) shutdown: Shutdown,
    /// Frames are written to standard error.
    pub(super) traced: bool,
    /// What the container-ids of shared hub connections begin with: the same after a restart.
    pub(super) container: String,
    /// For when the task that keeps the router's time is to look again.
    timer: RefCell<Option<Waker>>,
    /// When it will look by itself.
    due: Cell<Option<Instant>>,
    /// Tasks of hub connections.
    trunks: Cell<usize>,
    empty: Notify,
}

/// Where links go, by the configuration.
fn rules(config: &Config, hubs: &[Arc<Hub>], gate: &Arc<Gate>) -> Rules {
    // What has a connection of its own finds its connector by its listener, not by an address.
    let is_shared = |connector: usize| config.connectors[connector].mode == Mode::Shared;
    let names = config.connectors.iter().map(|connector| Arc::clone(&connector.name));
    let registered = Registered::new(Arc::clone(gate), names.zip(hubs.iter().cloned()));
    let hubs = Hubs::new(hubs.iter().map(|hub| [hub.name()]));
    Rules { routes: connectors::routes(config, is_shared), hubs, registrar: Some(Arc::new(registered)) }
}

impl std::fmt::Debug for Routing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Routing").field("worker", &self.worker).finish_non_exhaustive()
    }
}

impl Routing {
    /// The routing of a worker; `hubs` are those of the configuration's connectors, in their order. Needs the
    /// runtime: hub connections that are to be there from the start are begun.
    pub(crate) fn start(
        worker: usize,
        config: &Config,
        hubs: &[Arc<Hub>],
        gate: &Arc<Gate>,
        health: Arc<Health>,
        shutdown: Shutdown,
    ) -> Rc<Self> {
        let connectors: Box<[_]> = (hubs.iter().enumerate())
            .map(|(index, hub)| Rc::new(Connector::new(index, config, Arc::clone(hub))))
            .collect();
        let settings = connectors.iter().map(|connector| connector.settings(config)).collect();
        let rules = rules(config, hubs, gate);
        let registrar = rules.registrar.clone();
        let routing = Rc::new(Self {
            router: RefCell::new(Router::new(settings, Arc::new(rules), unix_now())),
            connectors,
            registrar,
            health,
            worker,
            shutdown,
            traced: config.log.trace_frames,
            container: container(),
            timer: RefCell::default(),
            due: Cell::new(None),
            trunks: Cell::new(0),
            empty: Notify::new(),
        });
        tokio::task::spawn_local(Rc::clone(&routing).keep_time());
        tokio::task::spawn_local(Rc::clone(&routing).drain());
        tokio::task::spawn_local(Rc::clone(&routing).review(gate.registry().changes()));
        routing.turn(Router::start);
        routing
    }

    /// Lets a task work with the router, and sees to what follows from it: hub connections that are wanted now, and
    /// time that has to be kept.
    pub(super) fn turn<T>(self: &Rc<Self>, work: impl FnOnce(&mut Router) -> T) -> T {
        let mut router = self.router.borrow_mut();
        let done = work(&mut router);
        while let Some((key, connector)) = router.take_wanted() {
            self.trunks.set(self.trunks.get() + 1);
            let connector = Rc::clone(&self.connectors[connector]);
            tokio::task::spawn_local(trunk::run(Rc::clone(self), connector, key));
        }
        let due = router.poll_timeout();
        let too_late = due.is_some_and(|due| self.due.get().is_none_or(|planned| due < planned));
        if too_late && let Some(waker) = self.timer.borrow_mut().take() {
            waker.wake();
        }
        done
    }

    /// The connector of a device that wants to reach `host`, where all that it says goes to one: its listener's, the
    /// one whose hub has that name, or the first.
    pub(super) fn connector_for(&self, listener: &Listener, host: Option<&str>) -> Rc<Connector> {
        let named = |connector: &&Rc<Connector>| {
            host.is_some_and(|host| connector.hub.name().eq_ignore_ascii_case(host))
        };
        let found = match listener.connector {
            Some(index) => &self.connectors[index],
            None => self.connectors.iter().find(named).unwrap_or(&self.connectors[0]),
        };
        Rc::clone(found)
    }

    /// Waits until no hub connection is left.
    pub(crate) async fn closed(&self) {
        while self.trunks.get() > 0 {
            self.empty.notified().await;
        }
    }

    /// The task of a hub connection ends.
    pub(super) fn trunk_ended(&self) {
        self.trunks.set(self.trunks.get() - 1);
        if self.trunks.get() == 0 {
            self.empty.notify_waiters();
        }
    }

    /// Lets the router know when its deadlines have come.
    async fn keep_time(self: Rc<Self>) {
        let mut timer = Timer::default();
        poll_fn(|cx| {
            loop {
                let due = self.router.borrow().poll_timeout();
                self.due.set(due);
                self.timer.replace(Some(cx.waker().clone()));
                if timer.poll(cx, due).is_pending() {
                    return Poll::<()>::Pending;
                }
                self.turn(|router| router.handle_timeout(Instant::now(), unix_now()));
            }
        })
        .await;
    }

    /// The connector of a device that has proved who it is: its entry's, else as for any.
    pub(super) fn connector_of(&self, device: &DeviceId, listener: &Listener, host: Option<&str>) -> usize {
        let its = self.registrar.as_ref().and_then(|registrar| registrar.connector_of(device));
        its.map_or_else(|| self.connector_for(listener, host).index, |its| its.0)
    }

    /// Has the router look again at who is in whenever the registry changes.
    async fn review(self: Rc<Self>, mut changes: Changes) {
        loop {
            changes.changed().await;
            self.turn(|router| router.review(Instant::now()));
        }
    }

    async fn drain(self: Rc<Self>) {
        self.shutdown.draining().await;
        self.turn(Router::drain);
    }
}

/// The time that tokens expire by, in seconds.
pub(super) fn unix_now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs()
}

/// What this gateway is called towards hubs; brokers keep state under that name.
fn container() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match host.trim() {
        "" => "fieldgate".into(),
        host => format!("fieldgate-{host}"),
    }
}
