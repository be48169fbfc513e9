//! The way to the hubs for mapped traffic: for each worker and hub a pool of connections, shared by its devices. Each
//! device has a session of its own and links opened when they are needed, or shares links with all others where the
//! hub is a broker.
//!
//! What a device sent goes out with a [`Verdict`], which is reported exactly once: with the
//! hub's outcome, or with what is certain when there is none. Commands come the other way, to
//! whoever subscribed for a device.

mod alone;
mod answer;
mod backoff;
mod claims;
mod commands;
mod device;
mod driver;
mod endpoint;
mod fleet;
mod grant;
mod hubs;
mod keeper;
mod lanes;
mod load;
mod outlet;
mod owed;
mod pace;
mod pool;
mod proxy;
mod relay;
mod target;
mod telemetry;
#[cfg(test)]
mod tests;
mod uplink;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use fieldgate_mappings::address::{Address, DeviceId};
use fieldgate_mappings::delivery::NORMAL_PRIORITY;
use fieldgate_mappings::message::Message;
use fieldgate_mappings::outcome::{Outcome, Reason, Rejection, Verdict};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::config::Secret;
use crate::console::Health;
use crate::shutdown::Shutdown;
use crate::telemetry::emit;

use fleet::Fleet;
use hubs::OwnToken;
use telemetry::OwnTokenUnfit;
use uplink::Outgoing;

pub use alone::Alone;
pub(crate) use backoff::Backoff;
pub(crate) use commands::CommandId;
pub(crate) use hubs::MappedHubs;
pub use target::HubError;
pub(crate) use target::{Embedded, Hub};

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

/// The connections of one worker; cloning gives another handle to them.
#[derive(Clone, Debug)]
pub(crate) struct Upstream {
    fleet: Rc<RefCell<Fleet>>,
    /// A hub came or went.
    changes: Rc<Notify>,
}

impl Upstream {
    fn new(hubs: &Arc<MappedHubs>) -> Self {
        let fleet = Fleet::new(hubs, Instant::now(), keeper::unix_now(), keeper::random());
        Self { fleet: Rc::new(RefCell::new(fleet)), changes: Rc::default() }
    }

    /// A way that nobody uses: there are no devices whose messages are mapped, and no connection is made.
    pub(crate) fn unused() -> Self {
        Self::new(&Arc::new(MappedHubs::none()))
    }

    /// Starts the connections of worker `index`; the task ends after [`close`](Self::close).
    pub(crate) fn start(
        index: usize,
        hubs: &Arc<MappedHubs>,
        health: Arc<Health>,
        shutdown: Shutdown,
    ) -> (Self, JoinHandle<()>) {
        let upstream = Self::new(hubs);
        upstream.fleet.borrow_mut().start();
        let keeper = keeper::Keeper::new(index, &upstream, hubs, health, shutdown);
        (upstream, tokio::task::spawn_local(keeper.run()))
    }

    /// Sends what a device said, to the hub that it belongs to; `verdict` is reported when the hub has answered, or
    /// when it is certain that it will not.
    pub(crate) fn send(&self, message: Message, patience: Patience, verdict: Verdict) {
        self.fleet.borrow_mut().send(&message, patience, verdict, Instant::now());
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
        let message = Outgoing { address, encoded, priority: NORMAL_PRIORITY, patience, verdict };
        self.fleet.borrow_mut().send_encoded(device, message, Instant::now());
    }

    /// Whether the hub that a device belongs to is away: no connection, though one was tried.
    pub(crate) fn is_away_for(&self, device: &DeviceId) -> bool {
        self.fleet.borrow().is_away_for(device)
    }

    /// The name of the hub that a device belongs to: its connector's, or `upstream`.
    pub(crate) fn hub_of(&self, device: &DeviceId) -> Arc<str> {
        self.fleet.borrow().hub_of(device)
    }

    /// The hubs by their names, and whether what is sent to them may go: one that is connected only when it is needed
    /// counts as there until it was tried.
    pub(crate) fn hubs(&self) -> Vec<(Arc<str>, bool)> {
        self.fleet.borrow().hubs()
    }

    /// Waits until a hub may have come or gone since the last time. One may wait for it.
    pub(crate) async fn changed(&self) {
        self.changes.notified().await;
    }

    /// A device has brought a token, which the gateway shows its hub where it speaks for the device with nothing else.
    pub(crate) fn present(&self, device: &DeviceId, token: &Secret) {
        match OwnToken::read(device, token.expose()) {
            Ok(token) => self.fleet.borrow_mut().present(device, token, Instant::now()),
            Err(error) => emit(OwnTokenUnfit { device, error: &error }),
        }
    }

    /// The same, where the device waits to be let in: `verdict` is reported with what the hub says to the token. While
    /// the hub is away, or cannot judge it, nothing is said; whoever waits has to know for how long.
    pub(crate) fn prove(&self, device: &DeviceId, token: &Secret, verdict: Verdict) {
        match OwnToken::read(device, token.expose()) {
            Ok(token) => self.fleet.borrow_mut().prove(device, token, verdict, Instant::now()),
            Err(error) => {
                emit(OwnTokenUnfit { device, error: &error });
                verdict.report(Outcome::Rejected(Rejection::new(Reason::Credentials, error.to_string())));
            }
        }
    }

    /// Releases what of the device waits and is not wanted any more.
    pub(crate) fn recall(&self, device: &DeviceId) {
        self.fleet.borrow_mut().recall(device);
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
        let serial = self.fleet.borrow_mut().subscribe(device, address, credit, sink, Instant::now());
        Subscription { upstream: self.clone(), device: device.clone(), serial }
    }

    /// Ends the connections: nothing new is sent, what is in flight may still be answered.
    pub(crate) fn close(&self) {
        self.fleet.borrow_mut().close();
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
        self.upstream.fleet.borrow_mut().settle(&self.device, self.serial, id, outcome);
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.upstream.fleet.borrow_mut().unsubscribe(&self.device, self.serial);
    }
}
