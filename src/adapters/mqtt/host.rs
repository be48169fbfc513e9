//! What a session needs of its worker. The worker has it; tests bring their own.

use std::rc::Rc;
use std::sync::Arc;

use fieldgate_mappings::address::{Address, DeviceId};
use fieldgate_mappings::message::Message;
use fieldgate_mappings::outcome::{Outcome, Verdict};
use fieldgate_mappings::rules::RuleSet;

use crate::adapters::Directory;
use crate::config::{Config, Secret};
use crate::devices::Roster;
use crate::upstream::{CommandId, CommandSink, Patience, Subscription};
use crate::worker::Worker;

/// Configuration, rules, and the way to the hub.
pub(super) trait Host {
    /// A device's commands, while it lives.
    type Subscription: Settle;

    fn config(&self) -> &Config;
    fn rules(&self) -> &RuleSet;
    fn directory(&self) -> &Arc<Directory>;
    /// Who is let in, and who is in.
    fn roster(&self) -> &Rc<Roster>;
    /// Asks the device's hub what it says to the token that the device brought.
    /// See [`Upstream::prove`](crate::upstream::Upstream::prove).
    fn prove(&self, device: &DeviceId, token: &Secret, verdict: Verdict);
    /// See [`Outbound::send`](crate::outbound::Outbound::send).
    fn send(&self, message: Message, patience: Patience, verdict: Verdict);
    /// See [`Outbound::recall`](crate::outbound::Outbound::recall).
    fn recall(&self, device: &DeviceId);
    /// See [`Upstream::subscribe`](crate::upstream::Upstream::subscribe).
    fn subscribe(
        &self,
        device: &DeviceId,
        address: Address,
        credit: u32,
        sink: Rc<dyn CommandSink>,
    ) -> Self::Subscription;
}

/// A subscription that takes outcomes.
pub(super) trait Settle {
    /// See [`Subscription::settle`].
    fn settle(&self, id: CommandId, outcome: &Outcome);
}

impl Host for Worker {
    type Subscription = Subscription;

    fn config(&self) -> &Config {
        &self.config
    }

    fn rules(&self) -> &RuleSet {
        &self.rules
    }

    fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    fn roster(&self) -> &Rc<Roster> {
        &self.roster
    }

    fn prove(&self, device: &DeviceId, token: &Secret, verdict: Verdict) {
        self.outbound.upstream().prove(device, token, verdict);
    }

    fn send(&self, message: Message, patience: Patience, verdict: Verdict) {
        self.outbound.send(message, patience, verdict);
    }

    fn recall(&self, device: &DeviceId) {
        self.outbound.recall(device);
    }

    fn subscribe(
        &self,
        device: &DeviceId,
        address: Address,
        credit: u32,
        sink: Rc<dyn CommandSink>,
    ) -> Subscription {
        self.outbound.upstream().subscribe(device, address, credit, sink)
    }
}

impl Settle for Subscription {
    fn settle(&self, id: CommandId, outcome: &Outcome) {
        self.settle(id, outcome);
    }
}
