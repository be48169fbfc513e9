//! Commands: what the client subscribes to, and what comes of it.

use std::rc::Rc;

use fieldgate_mappings::address::{ActsFor, DeviceId};
use fieldgate_mappings::outcome::Rejection;
use fieldgate_mqtt::{
    DisconnectReason, QoS, Subscribe, SubscribeFilter, SubscribeRefusal, Unsubscribe, UnsubscribeReply,
    Version,
};

use crate::telemetry::emit;

use super::super::commands::{Commands, Delivered, Grant};
use super::super::host::Host;
use super::super::inbox::{DeviceSink, Ended};
use super::super::telemetry::{CommandsOfAnotherEnded, End, FilterJudged};
use super::super::words;
use super::{Session, identity};

impl<H: Host> Session<H> {
    pub(super) fn subscribe(&mut self, subscribe: &Subscribe) {
        let client_version = self.machine.version();
        let mut why = None;
        let mut grant = |filter: &SubscribeFilter| {
            if client_version == Some(Version::V5) && filter.filter.starts_with("$share/") {
                return Err(SubscribeRefusal::SharedSubscriptionsNotSupported);
            }
            self.grant(filter, subscribe.identifier).map_err(|rejection| {
                let refusal = words::suback(&rejection.reason);
                why.get_or_insert(rejection.description);
                refusal
            })
        };
        let replies: Vec<_> = subscribe.filters.iter().map(&mut grant).collect();
        let answered = self.machine.suback_because(subscribe.packet_id, &replies, why.as_deref());
        self.check(answered);
    }

    pub(super) fn grant(
        &mut self,
        asked: &SubscribeFilter,
        identifier: Option<u32>,
    ) -> Result<QoS, Rejection> {
        let Some(client) = &self.client else { return Ok(QoS::AtMostOnce) };
        let device = &client.device;
        let config = &self.host.config().mqtt;
        let rules = self.host.rules();
        let others = rules.has_via().then(|| self.host.roster().devices());
        let granted = rules.command_subscription(identity(device, &others), &asked.filter).and_then(|rule| {
            let grant = Grant::new(&asked.filter, rule, asked.qos, identifier);
            let qos = grant.qos();
            let commands = self.commands.get_or_insert_with(|| Box::new(Commands::new()));
            let added = commands.add(grant, config.max_subscriptions.get(), |device, source| {
                let credit = u32::from(config.command_window.get());
                let sink = DeviceSink { inbox: Rc::clone(&self.inbox), device: device.clone() };
                self.host.subscribe(device, source, credit, Rc::new(sink))
            });
            added.map(|()| qos)
        });
        emit(FilterJudged { device, filter: &asked.filter, refused: granted.as_ref().err() });
        granted
    }

    pub(super) fn unsubscribe(&mut self, unsubscribe: &Unsubscribe) {
        let replies: Vec<_> = unsubscribe.filters.iter().map(|filter| self.revoke(filter)).collect();
        let answered = self.machine.unsuback(unsubscribe.packet_id, &replies);
        self.check(answered);
    }

    fn revoke(&mut self, filter: &str) -> UnsubscribeReply {
        let removed = self.commands.as_mut().is_some_and(|commands| commands.remove(filter, &self.inbox));
        if self.commands.as_ref().is_some_and(|commands| commands.is_empty()) {
            self.drop_commands();
        }
        if removed { UnsubscribeReply::Success } else { UnsubscribeReply::NoSubscriptionExisted }
    }

    /// Whatever was not settled the hub keeps.
    pub(super) fn drop_commands(&mut self) {
        self.commands = None;
        self.inbox.forget_commands();
    }

    /// A device whose commands do not come any more is told to come again; a gateway has others to look after.
    pub(super) fn commands_ended(&mut self, device: &DeviceId, ended: &Ended) {
        if self.client.as_ref().is_some_and(|client| client.device != *device) {
            emit(CommandsOfAnotherEnded { device, ended });
            if let Some(commands) = &mut self.commands {
                commands.end(device, &self.inbox);
            }
            return;
        }
        self.drop_commands();
        let reason = match ended {
            Ended::Refused(rejection) => words::unsubscribed(&rejection.reason),
            Ended::Withdrawn => DisconnectReason::ServerBusy,
        };
        self.close(reason, End::CommandsEnded(ended));
    }

    pub(super) fn deliver(&mut self) {
        if self.machine.is_closed() || self.is_held_back() {
            return;
        }
        let Some(commands) = &mut self.commands else { return };
        let others = self.host.rules().has_via().then(|| self.host.roster().devices());
        let others = others.as_deref().map(|others| others as &dyn ActsFor);
        let delivered = commands.deliver(&self.inbox, &mut self.machine, others);
        self.again |= delivered == Delivered::Blocked;
    }
}
