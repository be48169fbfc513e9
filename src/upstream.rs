//! The way to the hub for mapped traffic: one connection for each worker, shared by its
//! devices, each with a session of its own and links opened when they are needed.
//!
//! What a device sent goes out with a [`Verdict`], which is reported exactly once: with the
//! hub's outcome, or with what is certain when there is none. Commands come the other way, to
//! whoever subscribed for a device.

mod backoff;
mod claims;
mod commands;
mod device;
mod driver;
mod endpoint;
mod load;
mod proxy;
mod target;
mod telemetry;
mod uplink;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Instant;

use fieldgate_mappings::address::{Address, DeviceId};
use fieldgate_mappings::message::Message;
use fieldgate_mappings::outcome::{Outcome, Rejection, Verdict};
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::console::Health;
use crate::shutdown::Shutdown;

use uplink::Uplink;

pub(crate) use backoff::Backoff;
pub(crate) use commands::CommandId;
pub use target::HubError;
pub(crate) use target::{Embedded, Hub};

/// The name of the hub of mapped messages.
const HUB: &str = "upstream";

/// How long a message may wait for the hub before it is released.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// When waiting ends.
    pub(crate) until: Instant,
    /// Whether an outage is waited through. Otherwise a message is released at once while the hub is away.
    pub(crate) through_outage: bool,
    /// Whether the message is released with what its device sent before: when the patience of one such message is
    /// over, those that wait behind it do not go without it.
    pub(crate) in_order: bool,
    /// What its device can be told.
    pub(crate) hears: Hears,
}

/// What a device can hear of the message that it sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hears {
    /// What became of it, whatever that is.
    Everything,
    /// That it was accepted, and nothing else: a refusal would sound the same. It waits until then.
    Acceptance,
    /// Nothing: it does not wait.
    Nothing,
}

/// A command of the hub for one device.
#[derive(Debug)]
pub(crate) struct Command {
    /// What [`Subscription::settle`] takes.
    pub(crate) id: CommandId,
    /// The command.
    pub(crate) message: Message,
}

/// Who takes a device's commands. As with a verdict's report, an implementation only notes what it is told.
pub(crate) trait CommandSink {
    /// A command came. Until it is settled, or the subscription dropped, the hub keeps it locked.
    fn command(&self, command: Command);
    /// The hub refused the subscription, with a reason that is the device's concern, or took it away for one that
    /// is not; no command will come any more.
    fn ended(&self, refused: Option<Rejection>);
}

/// The connection of one worker; cloning gives another handle to it.
#[derive(Clone, Debug)]
pub(crate) struct Upstream {
    shared: Rc<Shared>,
}

#[derive(Debug)]
struct Shared {
    uplink: RefCell<Uplink>,
    /// What the hub is called.
    hub: Arc<str>,
    /// The task that moves the bytes.
    driver: RefCell<Option<Waker>>,
}

impl Shared {
    /// Wakes the task of `cx` when somebody asked for something.
    fn listen(&self, cx: &Context<'_>) {
        self.driver.borrow_mut().replace(cx.waker().clone());
    }

    fn wake(&self) {
        if let Some(waker) = self.driver.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl Upstream {
    /// A way that nobody uses: there are no devices whose messages are mapped, and no connection is made.
    pub(crate) fn unused(config: &Config) -> Self {
        let uplink = RefCell::new(Uplink::new(&config.upstream));
        Self { shared: Rc::new(Shared { uplink, hub: HUB.into(), driver: RefCell::new(None) }) }
    }

    /// Starts the connection of worker `index`; the task ends after [`close`](Self::close).
    pub(crate) fn start(
        index: usize,
        config: &Arc<Config>,
        hub: &Arc<Hub>,
        health: Arc<Health>,
        shutdown: Shutdown,
    ) -> (Self, JoinHandle<()>) {
        let upstream = Self::unused(config);
        let driver = driver::Driver::new(index, upstream.clone(), config, hub, health, shutdown);
        (upstream, tokio::task::spawn_local(driver.run()))
    }

    /// Sends what a device said; `verdict` is reported when the hub has answered, or when it is certain that it
    /// will not.
    pub(crate) fn send(&self, message: Message, patience: Patience, verdict: Verdict) {
        self.shared.uplink.borrow_mut().send(&message, patience, verdict, Instant::now());
        self.shared.wake();
    }

    /// As [`send`](Self::send), for a message that is encoded already: the sections of AMQP 1.0 3.2.
    pub(crate) fn send_encoded(
        &self,
        device: &DeviceId,
        address: &Address,
        encoded: &[u8],
        patience: Patience,
        verdict: Verdict,
    ) {
        let mut uplink = self.shared.uplink.borrow_mut();
        uplink.send_encoded(device, address, encoded, patience, verdict, Instant::now());
        drop(uplink);
        self.shared.wake();
    }

    /// The name of the device's hub.
    pub(crate) fn hub_of(&self, _: &DeviceId) -> Arc<str> {
        Arc::clone(&self.shared.hub)
    }

    /// Whether the hub is away: no connection, though one was tried.
    pub(crate) fn is_away(&self) -> bool {
        self.shared.uplink.borrow().is_away()
    }

    /// Asks the hub for the device's commands, from the node `address`; at most `credit` are unsettled at a time.
    /// The newest subscription for a device is the one that counts.
    pub(crate) fn subscribe(
        &self,
        device: &DeviceId,
        address: Address,
        credit: u32,
        sink: Rc<dyn CommandSink>,
    ) -> Subscription {
        let serial = self.shared.uplink.borrow_mut().subscribe(device, address, credit, sink, Instant::now());
        self.shared.wake();
        Subscription { upstream: self.clone(), device: device.clone(), serial }
    }

    /// Ends the connection: nothing new is sent, what is in flight may still be answered.
    pub(crate) fn close(&self) {
        self.shared.uplink.borrow_mut().close();
        self.shared.wake();
    }
}

/// The commands of one device, while it lives. Dropped, the link is detached without an outcome for what is
/// unsettled: the hub keeps it, and does not count a delivery.
#[derive(Debug)]
pub(crate) struct Subscription {
    upstream: Upstream,
    device: DeviceId,
    serial: u64,
}

impl Subscription {
    /// Tells the hub what became of a command. An outcome that is not known is not told. A command of a connection
    /// to the hub that is gone is nobody's any more: the hub delivers it again.
    pub(crate) fn settle(&self, id: CommandId, outcome: &Outcome) {
        self.upstream.shared.uplink.borrow_mut().settle(&self.device, self.serial, id, outcome);
        self.upstream.shared.wake();
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.upstream.shared.uplink.borrow_mut().unsubscribe(&self.device, self.serial);
        self.upstream.shared.wake();
    }
}
