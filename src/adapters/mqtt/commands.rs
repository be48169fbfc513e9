//! A device's commands on their way to one connection: which filters it was granted, what was published and waits for
//! the device's PUBACK.

use fieldgate_mappings::address::{Address, DeviceId};
use fieldgate_mappings::mqtt::{self, puback};
use fieldgate_mappings::outcome::{Outcome, Reason, Rejection};
use fieldgate_mqtt::{Connection, Misuse, OutgoingPublish, PacketId, PublishError, QoS, filter_matches};

use crate::telemetry::emit;
use crate::upstream::{self, CommandId};

use super::host::Settle;
use super::in_flight::{InFlight, KeptCommand, Known, Print};
use super::inbox::Inbox;
use super::kept::KeptFilter;
use super::telemetry::{CommandAcknowledged, CommandPublishError, CommandPublished};
use super::words;

/// The subscription of one connection: a device has one node of commands at the hub, and each command is published
/// once, to the topic of the oldest grant.
#[derive(Debug)]
pub(super) struct Commands<S> {
    subscription: S,
    source: Address,
    /// Never empty.
    grants: Vec<Grant>,
    in_flight: InFlight,
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
            in_flight: InFlight::default(),
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

    /// Commands without a PUBACK that the session is to remember: at most so many.
    pub(super) fn in_flight(&self, most: u16) -> Vec<KeptCommand> {
        self.in_flight.leave(most.into())
    }

    /// Goes on with the commands that an earlier connection has left without a PUBACK.
    pub(super) fn resume(&mut self, kept: Vec<KeptCommand>) {
        self.in_flight.resume(kept);
    }

    /// Publishes what has come, as far as the client takes it.
    pub(super) fn deliver(
        &mut self,
        device: &DeviceId,
        inbox: &Inbox,
        machine: &mut Connection,
    ) -> Delivered {
        while let Some(command) = inbox.next_command() {
            match self.publish(&command, machine) {
                Ok(Published::Sent) => emit(CommandPublished { device }),
                Ok(Published::Known) => {}
                Err(Unpublished::Never(rejection)) => {
                    emit(CommandPublishError { device, rejection: &rejection });
                    self.subscription.settle(command.id, &Outcome::Rejected(rejection));
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
        command: &upstream::Command,
        machine: &mut Connection,
    ) -> Result<Published, Unpublished> {
        let Some(oldest) = self.grants.first() else { return Err(Unpublished::Yet(Delivered::All)) };
        let print = Print::of(&command.message);
        let known = self.in_flight.recognise(print, command.id);
        if known == Known::Sent {
            return Ok(Published::Known);
        }
        let full = machine.publish_window() == 0;
        if full && self.grants.iter().all(|grant| grant.qos > QoS::AtMostOnce) {
            return Err(Unpublished::Yet(Delivered::All));
        }
        let said = oldest.rule.command(&command.message).map_err(|rejection| {
            if let Known::Earlier(packet_id) = known {
                self.in_flight.forget(packet_id);
                machine.give_up(packet_id);
            }
            Unpublished::Never(rejection)
        })?;
        let (qos, identifiers) = asked_for(&self.grants, &said.topic);
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
            Known::Earlier(packet_id) => machine.publish_again(packet_id, &publish).map(|()| Some(packet_id)),
            Known::New | Known::Sent => machine.publish(&publish),
        };
        let rejection = match published {
            Ok(Some(packet_id)) => {
                self.in_flight.sent(packet_id, print, command.id);
                return Ok(Published::Sent);
            }
            Ok(None) => {
                self.unwritten.push(command.id);
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
    pub(super) fn acknowledged(&mut self, device: &DeviceId, packet_id: PacketId, reason: u8) {
        let Some(id) = self.in_flight.acknowledged(packet_id) else { return };
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
