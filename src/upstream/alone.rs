//! The way to the hub without a gateway around it, for benchmarks: messages in, outcomes out, on the calling thread.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};

use fieldgate_mappings::address::{Address, DeviceId};
use fieldgate_mappings::message::Message;
use fieldgate_mappings::outcome::{Outcome, Rejection, Report, Verdict};

use crate::config::Config;
use crate::console::Health;
use crate::devices::Registry;
use crate::shutdown::{self, Trigger};

use super::{Command, CommandSink, Hears, Hub, HubError, MappedHubs, Patience, Subscription, Upstream};

/// How long a message may wait for the hub.
const PATIENCE: Duration = Duration::from_secs(60);

/// The connections to the hub of `[upstream]`, and what became of what was sent over them. Lives in a `LocalSet`.
#[derive(Debug)]
pub struct Alone {
    upstream: Upstream,
    tally: Rc<Tally>,
    subscriptions: RefCell<Vec<Subscription>>,
    /// While it lives nothing is told to stop.
    _running: Trigger,
}

/// How many messages have which outcome.
#[derive(Debug, Default)]
struct Tally {
    accepted: Cell<u64>,
    others: Cell<u64>,
    waiting: RefCell<Option<Waker>>,
}

impl Report for Tally {
    fn report(&self, _: u64, outcome: Outcome) {
        let count = if outcome == Outcome::Accepted { &self.accepted } else { &self.others };
        count.update(|count| count + 1);
        if let Some(waker) = self.waiting.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// Nobody who takes commands.
struct Deaf;

impl CommandSink for Deaf {
    fn command(&self, _: Command) {}
    fn ended(&self, _: Option<Rejection>) {}
}

impl Alone {
    /// Starts to connect.
    ///
    /// # Errors
    /// When the configuration's hub cannot be used.
    pub fn start(config: &Config) -> Result<Self, HubError> {
        let (running, shutdown) = shutdown::channel();
        let hub = Arc::new(Hub::new(config, None)?);
        let hubs = Arc::new(MappedHubs::new(config, hub, &[], Registry::empty()));
        // Its task ends with the `LocalSet`.
        let (upstream, _) = Upstream::start(0, &hubs, Arc::new(Health::default()), shutdown);
        Ok(Self { upstream, tally: Rc::default(), subscriptions: RefCell::default(), _running: running })
    }

    /// Sends a message.
    pub fn send(&self, message: Message) {
        let patience = Patience {
            until: Instant::now() + PATIENCE,
            through_outage: true,
            in_order: false,
            hears: Hears::Everything,
        };
        let verdict = Verdict::new(Rc::clone(&self.tally) as Rc<dyn Report>, 0);
        self.upstream.send(message, patience, verdict);
    }

    /// Asks for a device's commands, for as long as this lives; those that come are left alone.
    pub fn subscribe(&self, device: &DeviceId, address: Address) {
        let subscription = self.upstream.subscribe(device, address, 1, Rc::new(Deaf));
        self.subscriptions.borrow_mut().push(subscription);
    }

    /// How many messages were accepted, and how many were not.
    pub fn told(&self) -> (u64, u64) {
        (self.tally.accepted.get(), self.tally.others.get())
    }

    /// Waits until more than so many messages have an outcome.
    pub async fn more_than(&self, count: u64) {
        poll_fn(|cx| {
            let (accepted, others) = self.told();
            if accepted + others > count {
                return Poll::Ready(());
            }
            self.tally.waiting.replace(Some(cx.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}
