//! Devices' commands on their way to one connection: which filters it was granted, what was published and waits for the
//! client's PUBACK.

use std::mem;

use fieldgate_mappings::address::{ActsFor, Address, DeviceId};
use fieldgate_mappings::mqtt::{self, puback};
use fieldgate_mappings::outcome::{Outcome, Reason, Rejection};
use fieldgate_mqtt::{Connection, Misuse, OutgoingPublish, PacketId, PublishError, QoS, filter_matches};

use crate::telemetry::emit;
use crate::upstream::{self, CommandId};

use super::host::Settle;
use super::in_flight::{InFlight, KeptCommand, Known, Print};
use super::inbox::{Ended, Inbox};
use super::kept::KeptFilter;
use super::telemetry::{CommandAcknowledged, CommandPublishError, CommandPublished, CommandsOfAnotherEnded};
use super::words;

/// The subscriptions of one connection: its own device's, and those of the devices that it may act for.
#[derive(Debug)]
pub(super) struct Commands<S> {
    nodes: Vec<Node<S>>,
    in_flight: InFlight,
    /// Published with QoS 0, and not yet taken by the stream.
    unwritten: Vec<(DeviceId, CommandId)>,
}

/// What one device is asked for: it has one node of commands at the hub, and each command is published once, to the
/// topic of the oldest grant.
#[derive(Debug)]
struct Node<S> {
    device: DeviceId,
    source: Address,
    subscription: S,
    /// Never empty.
    grants: Vec<Grant>,
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
    /// None yet.
    pub(super) fn new() -> Self {
        Self { nodes: Vec::new(), in_flight: InFlight::default(), unwritten: Vec::new() }
    }

    /// One more filter, with the subscription that it needs; the same one again takes its old place (MQTT 5 3.8.4-3).
    ///
    /// # Errors
    /// More than `max` filters, or commands from another node than the device's first filter's.
    pub(super) fn add(
        &mut self,
        grant: Grant,
        max: usize,
        subscribe: impl FnOnce(&DeviceId, Address) -> S,
    ) -> Result<(), Rejection> {
        let filters: usize = self.nodes.iter().map(|node| node.grants.len()).sum();
        let rule = &grant.rule;
        let Some(node) = self.nodes.iter_mut().find(|node| node.device == *rule.device()) else {
            if filters >= max {
                return Err(quota(TOO_MANY));
            }
            let (device, source) = (rule.device().clone(), rule.source().clone());
            let subscription = subscribe(&device, source.clone());
            self.nodes.push(Node { device, source, subscription, grants: vec![grant] });
            return Ok(());
        };
        if *rule.source() != node.source {
            return Err(quota("a device's commands come from one node of the hub"));
        }
        match node.grants.iter().position(|known| known.filter == grant.filter) {
            Some(at) => node.grants[at] = grant,
            None if filters >= max => return Err(quota(TOO_MANY)),
            None => node.grants.push(grant),
        }
        Ok(())
    }

    /// Whether there is no filter.
    pub(super) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// What the session is to remember of them.
    pub(super) fn filters(&self) -> Vec<KeptFilter> {
        let kept = |grant: &Grant| KeptFilter {
            filter: grant.filter.clone(),
            qos: grant.qos,
            identifier: grant.identifier,
        };
        self.nodes.iter().flat_map(|node| &node.grants).map(kept).collect()
    }

    /// Takes a filter away, if it is there; with a device's last one its subscription goes.
    pub(super) fn remove(&mut self, filter: &str, inbox: &Inbox) -> bool {
        let has_it = |node: &Node<S>| node.grants.iter().any(|grant| *grant.filter == *filter);
        let Some(at) = self.nodes.iter().position(has_it) else { return false };
        self.nodes[at].grants.retain(|grant| *grant.filter != *filter);
        if self.nodes[at].grants.is_empty() {
            self.drop_node(at, inbox);
        }
        true
    }

    /// A device's commands are not to be had any more.
    pub(super) fn end(&mut self, device: &DeviceId, inbox: &Inbox) {
        if let Some(at) = self.nodes.iter().position(|node| node.device == *device) {
            self.drop_node(at, inbox);
        }
    }

    /// Whatever was not settled the hub keeps.
    fn drop_node(&mut self, at: usize, inbox: &Inbox) {
        let Node { device, .. } = self.nodes.remove(at);
        inbox.forget_commands_of(&device);
        self.in_flight.lose(&device);
        self.unwritten.retain(|(of, _)| *of != device);
    }

    /// Commands without a PUBACK that the session is to remember: at most so many.
    pub(super) fn in_flight(&self, most: u16) -> Vec<KeptCommand> {
        self.in_flight.leave(most.into())
    }

    /// Goes on with the commands that an earlier connection has left without a PUBACK.
    pub(super) fn resume(&mut self, kept: Vec<KeptCommand>) {
        self.in_flight.resume(kept);
    }

    /// Publishes what has come, as far as the client takes it. `others` are those that a gateway may act for.
    pub(super) fn deliver(
        &mut self,
        inbox: &Inbox,
        machine: &mut Connection,
        others: Option<&dyn ActsFor>,
    ) -> Delivered {
        while let Some(command) = inbox.next_command() {
            let device = &command.message.device;
            let Some(at) = self.nodes.iter().position(|node| node.device == *device) else { continue };
            let is_allowed = |grant: &Grant| match others {
                Some(others) => grant.rule.is_allowed(others),
                None => !grant.rule.is_for_another(),
            };
            if !self.nodes[at].grants.iter().all(is_allowed) {
                let rejection =
                    Rejection::new(Reason::NotPermitted, "it may not act for the device any more");
                emit(CommandsOfAnotherEnded { device, ended: &Ended::Refused(rejection) });
                self.drop_node(at, inbox);
                continue;
            }
            match self.publish(at, &command, machine) {
                Ok(Published::Sent) => emit(CommandPublished { device }),
                Ok(Published::Known) => {}
                Err(Unpublished::Never(rejection)) => {
                    emit(CommandPublishError { device, rejection: &rejection });
                    self.nodes[at].subscription.settle(command.id, &Outcome::Rejected(rejection));
                }
                Err(Unpublished::Yet(why)) => {
                    inbox.put_back(command);
                    return why;
                }
            }
        }
        Delivered::All
    }

    /// Publishes a command, or finds that the client has it.
    fn publish(
        &mut self,
        at: usize,
        command: &upstream::Command,
        machine: &mut Connection,
    ) -> Result<Published, Unpublished> {
        let Node { device, grants, .. } = &self.nodes[at];
        let Some(oldest) = grants.first() else { return Err(Unpublished::Yet(Delivered::All)) };
        let print = Print::of(&command.message);
        let known = self.in_flight.recognise(print, command.id);
        if known == Known::Sent {
            return Ok(Published::Known);
        }
        let full = machine.publish_window() == 0;
        if full && grants.iter().all(|grant| grant.qos > QoS::AtMostOnce) {
            return Err(Unpublished::Yet(Delivered::All));
        }
        let said = oldest.rule.command(&command.message).map_err(|rejection| {
            if let Known::Earlier(packet_id) = known {
                self.in_flight.forget(packet_id);
                machine.give_up(packet_id);
            }
            Unpublished::Never(rejection)
        })?;
        let (qos, identifiers) = asked_for(grants, &said.topic);
        if full && (qos > QoS::AtMostOnce || known != Known::New) {
            return Err(Unpublished::Yet(Delivered::All));
        }
        let mut properties = words::write(&said.properties);
        if !identifiers.is_empty() {
            properties.get_or_insert_default().subscription_identifiers = identifiers;
        }
        let publish = OutgoingPublish {
            topic: &said.topic,
            payload: &said.payload,
            qos,
            dup: false,
            retain: false,
            properties: properties.as_ref(),
        };
        let published = match known {
            Known::Earlier(packet_id) => match machine.publish_again(packet_id, &publish) {
                Err(PublishError::Misuse(Misuse::UnknownMessage)) => machine.publish(&publish),
                published => published.map(|()| Some(packet_id)),
            },
            Known::New | Known::Sent => machine.publish(&publish),
        };
        let rejection = match published {
            Ok(Some(packet_id)) => {
                self.in_flight.sent(packet_id, print, device, command.id);
                return Ok(Published::Sent);
            }
            Ok(None) => {
                self.unwritten.push((device.clone(), command.id));
                return Ok(Published::Sent);
            }
            Err(PublishError::Full | PublishError::Misuse(Misuse::NotOpen)) => {
                return Err(Unpublished::Yet(Delivered::Blocked));
            }
            Err(error @ PublishError::TooLarge(_)) => Rejection::new(Reason::TooLarge, error.to_string()),
            Err(error @ PublishError::Misuse(_)) => Rejection::new(Reason::Content, error.to_string()),
        };
        if let Known::Earlier(packet_id) = known {
            self.in_flight.forget(packet_id);
            machine.give_up(packet_id);
        }
        Err(Unpublished::Never(rejection))
    }

    /// The client has answered a PUBLISH.
    pub(super) fn acknowledged(&mut self, packet_id: PacketId, reason: u8) {
        if let Some((device, id)) = self.in_flight.acknowledged(packet_id) {
            self.settle(&device, id, &puback(reason));
        }
    }

    /// All output has been taken by the stream: more cannot be known of QoS 0.
    pub(super) fn written(&mut self) {
        for (device, id) in mem::take(&mut self.unwritten) {
            self.settle(&device, id, &Outcome::Accepted);
        }
    }

    fn settle(&self, device: &DeviceId, id: CommandId, outcome: &Outcome) {
        let Some(node) = self.nodes.iter().find(|node| node.device == *device) else { return };
        emit(CommandAcknowledged { device, outcome });
        node.subscription.settle(id, outcome);
    }
}

const TOO_MANY: &str = "as many subscriptions as one connection may have";

fn quota(description: &'static str) -> Rejection {
    Rejection::new(Reason::Quota { retry_after: None }, description)
}

/// The QoS that a topic is asked for with, and what the client calls its subscriptions to it: filters that overlap get
/// one PUBLISH between them, with the highest QoS and all their identifiers (MQTT 5 3.3.4).
fn asked_for(grants: &[Grant], topic: &str) -> (QoS, Vec<u32>) {
    let asked = grants.iter().filter(|grant| filter_matches(&grant.filter, topic));
    let qos = asked.clone().map(|grant| grant.qos).max();
    (qos.unwrap_or(QoS::AtMostOnce), asked.filter_map(|grant| grant.identifier).collect())
}

/// What became of a command.
enum Published {
    Sent,
    /// The client has it already.
    Known,
}

/// Why a command was not published.
enum Unpublished {
    /// It may be later.
    Yet(Delivered),
    /// This client will never get it.
    Never(Rejection),
}
