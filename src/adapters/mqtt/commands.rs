//! A device's commands on their way to one connection: which filters it was granted, what was published and waits for
//! the device's PUBACK.

use fieldgate_mappings::address::{Address, DeviceId};
use fieldgate_mappings::mqtt::{self, Command, puback};
use fieldgate_mappings::outcome::{Outcome, Reason, Rejection};
use fieldgate_mqtt::{Connection, Misuse, OutgoingPublish, PacketId, PublishError, QoS};

use crate::telemetry::emit;
use crate::upstream::CommandId;

use super::host::Settle;
use super::inbox::Inbox;
use super::kept::KeptFilter;
use super::telemetry::{CommandAcknowledged, CommandPublishError, CommandPublished};
use super::words;

/// The subscription of one connection: a device has one node of commands at the hub, and each command is published
/// once, as the oldest grant says.
#[derive(Debug)]
pub(super) struct Commands<S> {
    subscription: S,
    source: Address,
    /// Never empty.
    grants: Vec<Grant>,
    unacknowledged: Vec<(PacketId, CommandId)>,
    /// Published with QoS 0, and not yet taken by the stream.
    unwritten: Vec<CommandId>,
}

/// A topic filter that was granted.
#[derive(Debug)]
pub(super) struct Grant {
    filter: Box<str>,
    rule: mqtt::Subscription,
    qos: QoS,
    /// What the client calls the subscription (MQTT 5 3.8.2.1.2).
    identifier: Option<u32>,
}

impl Grant {
    /// A filter that `rule` allows, with the QoS that the client asks for or the most that there is.
    pub(super) fn new(filter: &str, rule: mqtt::Subscription, asked: QoS, identifier: Option<u32>) -> Self {
        let most = if rule.max_qos() == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
        Self { filter: filter.into(), rule, qos: asked.min(most), identifier }
    }

    /// What the client is told.
    pub(super) fn qos(&self) -> QoS {
        self.qos
    }

    /// The node at the hub.
    pub(super) fn source(&self) -> &Address {
        self.rule.source()
    }
}

/// What stopped the publishing of commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivered {
    /// There is none left, or the client's window is full: its next PUBACK goes on.
    All,
    /// The output is full: once it is written, there is more.
    Blocked,
}

impl<S: Settle> Commands<S> {
    /// The first grant, with the subscription that it needs.
    pub(super) fn new(grant: Grant, subscription: S) -> Self {
        Self {
            subscription,
            source: grant.source().clone(),
            grants: vec![grant],
            unacknowledged: Vec::new(),
            unwritten: Vec::new(),
        }
    }

    /// One more filter; the same one again takes its old place (MQTT 5 3.8.4-3).
    ///
    /// # Errors
    /// More than `max` filters, or commands from another node than the first filter's.
    pub(super) fn add(&mut self, grant: Grant, max: usize) -> Result<(), Rejection> {
        if *grant.source() != self.source {
            return Err(quota("a connection takes the commands of one node of the hub"));
        }
        match self.grants.iter().position(|known| known.filter == grant.filter) {
            Some(at) => self.grants[at] = grant,
            None if self.grants.len() >= max => {
                return Err(quota("as many subscriptions as one connection may have"));
            }
            None => self.grants.push(grant),
        }
        Ok(())
    }

    /// What the session is to remember of them.
    pub(super) fn filters(&self) -> Vec<KeptFilter> {
        let kept = |grant: &Grant| KeptFilter {
            filter: grant.filter.clone(),
            qos: grant.qos,
            identifier: grant.identifier,
        };
        self.grants.iter().map(kept).collect()
    }

    /// Takes a filter away. Says whether it was there, and whether any is left.
    pub(super) fn remove(&mut self, filter: &str) -> (bool, bool) {
        let before = self.grants.len();
        self.grants.retain(|grant| *grant.filter != *filter);
        (self.grants.len() < before, !self.grants.is_empty())
    }

    /// Publishes what has come, as far as the client takes it.
    pub(super) fn deliver(
        &mut self,
        device: &DeviceId,
        inbox: &Inbox,
        machine: &mut Connection,
    ) -> Delivered {
        let Some(grant) = self.grants.first() else { return Delivered::All };
        while grant.qos == QoS::AtMostOnce || machine.publish_window() > 0 {
            let Some(command) = inbox.next_command() else { break };
            let published = match grant.rule.command(&command.message) {
                Ok(publish) => publish_command(machine, grant, &publish),
                Err(rejection) => Ok(Err(rejection)),
            };
            match published {
                Ok(Ok(packet_id)) => {
                    emit(CommandPublished { device });
                    match packet_id {
                        Some(packet_id) => self.unacknowledged.push((packet_id, command.id)),
                        None => self.unwritten.push(command.id),
                    }
                }
                Ok(Err(rejection)) => {
                    emit(CommandPublishError { device, rejection: &rejection });
                    self.subscription.settle(command.id, &Outcome::Rejected(rejection));
                }
                Err(Blocked) => {
                    inbox.put_back(command);
                    return Delivered::Blocked;
                }
            }
        }
        Delivered::All
    }

    /// The client has answered a PUBLISH.
    pub(super) fn acknowledged(&mut self, device: &DeviceId, packet_id: PacketId, reason: u8) {
        let Some(at) = self.unacknowledged.iter().position(|(known, _)| *known == packet_id) else { return };
        let (_, id) = self.unacknowledged.swap_remove(at);
        let outcome = puback(reason);
        emit(CommandAcknowledged { device, outcome: &outcome });
        self.subscription.settle(id, &outcome);
    }

    /// All output has been taken by the stream: more cannot be known of QoS 0.
    pub(super) fn written(&mut self, device: &DeviceId) {
        for id in self.unwritten.drain(..) {
            emit(CommandAcknowledged { device, outcome: &Outcome::Accepted });
            self.subscription.settle(id, &Outcome::Accepted);
        }
    }
}

fn quota(description: &'static str) -> Rejection {
    Rejection::new(Reason::Quota { retry_after: None }, description)
}

/// The output has no room now.
struct Blocked;

/// Publishes, or says why this client will never get this command.
fn publish_command(
    machine: &mut Connection,
    grant: &Grant,
    command: &Command,
) -> Result<Result<Option<PacketId>, Rejection>, Blocked> {
    let mut properties = words::write(&command.properties);
    if let Some(identifier) = grant.identifier {
        properties.get_or_insert_default().subscription_identifiers.push(identifier);
    }
    let publish = OutgoingPublish {
        topic: &command.topic,
        payload: &command.payload,
        qos: grant.qos,
        dup: false,
        retain: false,
        properties: properties.as_ref(),
    };
    match machine.publish(&publish) {
        Ok(packet_id) => Ok(Ok(packet_id)),
        Err(PublishError::Full | PublishError::Misuse(Misuse::NotOpen)) => Err(Blocked),
        Err(error @ PublishError::TooLarge(_)) => {
            Ok(Err(Rejection::new(Reason::TooLarge, error.to_string())))
        }
        Err(error @ PublishError::Misuse(_)) => Ok(Err(Rejection::new(Reason::Content, error.to_string()))),
    }
}
