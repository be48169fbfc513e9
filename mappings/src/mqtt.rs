//! What MQTT means: topics to messages, commands to topics, outcomes to packets.
//!
//! The device's identity is the connection's and never the topic's: a topic that names a device must name this one.
//! MQTT 3.1.1 and MQTT 5 publish by the same rules; what version 5 says beside the topic (content type, correlation
//! data, user properties) becomes the model's own properties.

mod correlation;
mod properties;

use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;

use crate::address::{ActsFor, Address, DeviceId, Identity};
use crate::azure;
use crate::hono;
use crate::message::{Message, MessageId};
use crate::outcome::{Outcome, Reason, Rejection};
use crate::rules::{Convention, Downlink, MessageName, RuleSet, Syntax};
use crate::template::{Form, Segment};
use crate::trie::{Joined, Path};

pub use properties::PublishProperties;

pub(crate) const SYNTAX: Syntax = Syntax {
    key: "mqtt",
    methods: None,
    form: Form { leading_slash: false, wildcards: true, empty_segments: true },
    bag: true,
    commands: true,
};

/// The longest topic name in bytes (MQTT 5 1.5.4).
const MAX_TOPIC_BYTES: usize = 65_535;

/// A PUBLISH from a device.
#[derive(Debug, Clone)]
pub struct Publish<'a> {
    /// Topic name, without wildcards.
    pub topic: &'a str,
    /// Payload.
    pub payload: Bytes,
    /// Quality of service: 0, 1 or 2.
    pub qos: u8,
    /// The retain flag. The hub retains nothing; the flag is passed on as a property, as Azure does.
    pub retain: bool,
    /// What MQTT 5 says beside the topic; empty for MQTT 3.1.1.
    pub properties: PublishProperties,
}

impl RuleSet {
    /// The message that a PUBLISH of `device` is.
    ///
    /// # Errors
    /// No rule for the topic, another device's topic, or properties that cannot be read.
    pub fn map_mqtt<'i>(
        &self,
        identity: impl Into<Identity<'i>>,
        publish: Publish<'_>,
    ) -> Result<Message, Rejection> {
        self.map_publish(identity.into(), publish, false)
    }

    /// The message that the will of `device` is: what a PUBLISH of it would be, and where the convention has a word
    /// for wills it is said.
    ///
    /// # Errors
    /// As [`map_mqtt`](Self::map_mqtt).
    pub fn map_mqtt_will(&self, device: &DeviceId, will: Publish<'_>) -> Result<Message, Rejection> {
        self.map_publish(Identity::Is(device), will, true)
    }

    fn map_publish(
        &self,
        identity: Identity<'_>,
        publish: Publish<'_>,
        will: bool,
    ) -> Result<Message, Rejection> {
        let hidden = publish.topic.starts_with('$');
        let found = self.uplink(SYNTAX.key, "", Joined(Some(publish.topic)), hidden)?;
        let rule = found.value;
        let mut message = rule.message(&found, identity, publish.payload)?;
        message.durable = publish.qos > 0;
        let own = rule.own_properties();
        match rule.convention {
            Some(Convention::AzureIotHub) => {
                azure::read_bag(&mut message, own, found.rest.0.unwrap_or_default())?;
                if will {
                    azure::mark_will(&mut message, own)?;
                }
            }
            Some(Convention::Hono) => {
                hono::read_bag(&mut message, own, found.rest.0.unwrap_or_default())?;
            }
            None => {}
        }
        properties::read(&mut message, own, publish.retain, publish.properties)?;
        rule.finish(&mut message, &found)?;
        Ok(message)
    }

    /// The commands that somebody asks for with a subscription to `filter`: a device for its own, a gateway for those of
    /// a device that it may act for.
    ///
    /// # Errors
    /// No rule sends commands there, or the filter reaches for another device's.
    pub fn command_subscription<'i>(
        &self,
        identity: impl Into<Identity<'i>>,
        filter: &str,
    ) -> Result<Subscription, Rejection> {
        let found = self.commands(SYNTAX.key, Joined(Some(filter)))?;
        let rule = found.value;
        let mut topic = String::with_capacity(filter.len());
        let mut path = Joined(Some(filter));
        for (index, template) in rule.topic.segments.iter().enumerate() {
            if index > 0 {
                topic.push('/');
            }
            let segment = path.split_first().map(|(segment, tail)| {
                path = tail;
                segment
            });
            match (template, segment) {
                (Segment::Rest(_), _) => {
                    let left = filter.split('/').skip(index);
                    if !takes_all(left, rule.tail.len()) {
                        return Err(Rejection::new(
                            Reason::NoSuchAddress,
                            "the filter of commands ends with `#`, or with a `+` for each name",
                        ));
                    }
                }
                // A name is one fixed value: with a wildcard it is not known whose commands are meant, and no device
                // with a wildcard in its name can be published to.
                (_, Some(text)) if text.contains(['+', '#']) => {
                    return Err(Rejection::new(Reason::NotPermitted, "a wildcard in place of a name"));
                }
                (_, segment) => topic.push_str(segment.unwrap_or_default()),
            }
        }
        let identity = identity.into();
        let (device, source) = rule.source(&found, identity)?;
        let gateway = match identity {
            Identity::MayActFor(gateway, _) if *gateway != device => Some(gateway.clone()),
            Identity::Is(_) | Identity::MayActFor(..) | Identity::Claimed => None,
        };
        Ok(Subscription { rule: Arc::clone(rule), device, gateway, source, topic: topic.into() })
    }
}

/// Whether the end of a filter asks for all that may stand there: so many segments that the command itself gives, or
/// what a convention puts there. Anything narrower would hide commands.
fn takes_all<'a>(mut filter: impl Iterator<Item = &'a str>, names: usize) -> bool {
    for _ in 0..names {
        match filter.next() {
            Some("#") => return true,
            Some("+") => {}
            _ => return false,
        }
    }
    match filter.next() {
        Some("#") => true,
        other => names > 0 && other.is_none(),
    }
}

/// The commands of one device, on their way to one topic filter of its connection. Keeps the version of the rule that
/// granted it.
#[derive(Debug, Clone)]
pub struct Subscription {
    rule: Arc<Downlink>,
    device: DeviceId,
    /// Who takes them for the device.
    gateway: Option<DeviceId>,
    source: Address,
    /// The topic up to the convention's properties.
    topic: ByteString,
}

/// A PUBLISH to a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command {
    /// Topic name.
    pub topic: String,
    /// Payload.
    pub payload: Bytes,
    /// For MQTT 5. What a convention has put into the topic is not here.
    pub properties: PublishProperties,
}

impl Subscription {
    /// Whose commands they are.
    pub fn device(&self) -> &DeviceId {
        &self.device
    }

    /// Whether it takes the commands of a device that is not the subscriber.
    pub fn is_for_another(&self) -> bool {
        self.gateway.is_some()
    }

    /// Whether a gateway may still take the device's commands; a device may always take its own.
    pub fn is_allowed(&self, others: &dyn ActsFor) -> bool {
        match (&self.gateway, &self.rule.via) {
            (None, _) => true,
            (Some(gateway), Some(group)) => others.may_act(gateway, group, &self.device),
            (Some(_), None) => false,
        }
    }

    /// The hub's node that the commands come from.
    pub fn source(&self) -> &Address {
        &self.source
    }

    /// The most that is granted: 0 or 1.
    pub fn max_qos(&self) -> u8 {
        self.rule.max_qos
    }

    /// The PUBLISH that a command is.
    ///
    /// # Errors
    /// The command is another device's, or its properties do not fit into a topic.
    pub fn command(&self, message: &Message) -> Result<Command, Rejection> {
        if message.device != self.device {
            return Err(Rejection::new(Reason::NotPermitted, "the command is for another device"));
        }
        let mut topic = String::with_capacity(self.topic.len() + 128);
        topic.push_str(&self.topic);
        let properties = match self.rule.convention {
            Some(Convention::AzureIotHub) => {
                azure::write_bag(message, &mut topic);
                properties::write_beside(message)
            }
            Some(Convention::Hono) | None => properties::write(message),
        };
        for (index, name) in self.rule.tail.iter().enumerate() {
            topic.push_str(if index > 0 { "/" } else { "" });
            push_segment(&mut topic, *name, message)?;
        }
        if topic.len() > MAX_TOPIC_BYTES {
            return Err(Rejection::new(Reason::TooLarge, "the command's properties do not fit into a topic"));
        }
        Ok(Command { topic, payload: message.body.clone(), properties })
    }
}

/// Appends a segment that the command itself gives: empty if it does not say it.
fn push_segment(topic: &mut String, name: MessageName, message: &Message) -> Result<(), Rejection> {
    let properties = &message.properties;
    let id = |id: &Option<MessageId>| id.as_ref().map(properties::id_text);
    let text = match name {
        MessageName::MessageId => id(&properties.message_id),
        MessageName::CorrelationId => id(&properties.correlation_id),
        MessageName::Subject => properties.subject.clone(),
    };
    let text = text.unwrap_or_default();
    if text.contains(['/', '+', '#']) || text.chars().any(char::is_control) {
        let what = MessageName::ALL.iter().find(|(_, known)| *known == name).map_or("", |(name, _)| name);
        let message = format!("the command's {what} cannot be a level of a topic: `{text}`");
        return Err(Rejection::new(Reason::Content, message));
    }
    topic.push_str(&text);
    Ok(())
}

/// What the gateway does about a rejected message where the protocol has no word for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnRejected {
    /// Acknowledge it, so that the device goes on, and keep it as a dead letter.
    #[default]
    DeadLetter,
    /// Close the connection, so that somebody notices.
    Close,
}

/// The answer to a PUBLISH with QoS 1 or 2 over MQTT 3.1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply3 {
    /// PUBACK, or PUBREC.
    Acknowledge,
    /// The same, although the hub refused the message; it is counted and kept as a dead letter.
    AcknowledgeAndDeadLetter,
    /// No answer now: stop reading, try again, close when the hub stays away.
    Pause,
    /// No answer: close, so that the device sends it again.
    Close,
}

/// The answer to a PUBLISH with QoS 1 or 2 over MQTT 5, with its reason code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply5 {
    /// PUBACK, or PUBREC (3.4.2.1).
    Acknowledge(u8),
    /// DISCONNECT (3.14.2.1).
    Disconnect(u8),
    /// No answer now: stop reading, try again, DISCONNECT with [`SERVER_BUSY`] when the hub stays away.
    Pause,
}

/// MQTT 5 2.4, reason code 0x89.
pub const SERVER_BUSY: u8 = 0x89;

/// How MQTT 3.1.1 says an outcome. It has no negative acknowledgement.
pub fn reply_3(outcome: &Outcome, on_rejected: OnRejected) -> Reply3 {
    let refused = match on_rejected {
        OnRejected::DeadLetter => Reply3::AcknowledgeAndDeadLetter,
        OnRejected::Close => Reply3::Close,
    };
    match outcome {
        Outcome::Accepted => Reply3::Acknowledge,
        Outcome::Rejected(rejection) => match rejection.reason {
            // With the credentials of this connection nothing will go better: the next one brings others.
            Reason::Credentials => Reply3::Close,
            Reason::NotPermitted => refused,
            Reason::NoSuchAddress => refused,
            Reason::TooLarge => refused,
            Reason::Quota { .. } => refused,
            Reason::Content => refused,
            // The message is good, and nobody has it: an acknowledgement would lose it.
            Reason::Full { .. } => Reply3::Pause,
            Reason::Disk { .. } => Reply3::Pause,
        },
        Outcome::Released => Reply3::Pause,
        Outcome::Unknown => Reply3::Close,
    }
}

/// How MQTT 5 says an outcome.
pub fn reply_5(outcome: &Outcome) -> Reply5 {
    match outcome {
        Outcome::Accepted => Reply5::Acknowledge(0x00),
        Outcome::Rejected(rejection) => match rejection.reason {
            Reason::Credentials => Reply5::Disconnect(0x87),
            Reason::NotPermitted => Reply5::Acknowledge(0x87),
            Reason::NoSuchAddress => Reply5::Acknowledge(0x90),
            // PUBACK has no code for it (3.4.2.1).
            Reason::TooLarge => Reply5::Disconnect(0x95),
            Reason::Quota { .. } => Reply5::Acknowledge(0x97),
            Reason::Content => Reply5::Acknowledge(0x99),
            Reason::Full { .. } => Reply5::Acknowledge(0x97),
            Reason::Disk { .. } => Reply5::Acknowledge(0x97),
        },
        Outcome::Released => Reply5::Pause,
        Outcome::Unknown => Reply5::Disconnect(SERVER_BUSY),
    }
}

/// CONNACK's return code over MQTT 3.1.1 (3.2.2.3) for what became of the device's registration.
pub fn connack_3(outcome: &Outcome) -> u8 {
    match outcome {
        Outcome::Accepted => 0,
        Outcome::Rejected(rejection) => match rejection.reason {
            Reason::Credentials => 5,
            Reason::NotPermitted => 5,
            Reason::NoSuchAddress => 5,
            Reason::TooLarge => 3,
            Reason::Quota { .. } => 3,
            Reason::Full { .. } => 3,
            Reason::Disk { .. } => 3,
            // The device's name for itself is no identity.
            Reason::Content => 2,
        },
        Outcome::Released => 3,
        Outcome::Unknown => 3,
    }
}

/// CONNACK's reason code over MQTT 5 (3.2.2.2).
pub fn connack_5(outcome: &Outcome) -> u8 {
    match outcome {
        Outcome::Accepted => 0x00,
        Outcome::Rejected(rejection) => match rejection.reason {
            Reason::Credentials => 0x86,
            Reason::NotPermitted => 0x87,
            Reason::NoSuchAddress => 0x87,
            Reason::TooLarge => 0x95,
            Reason::Quota { .. } => 0x97,
            Reason::Content => 0x85,
            Reason::Full { .. } => 0x97,
            Reason::Disk { .. } => 0x88,
        },
        Outcome::Released => 0x88,
        Outcome::Unknown => SERVER_BUSY,
    }
}

/// What a device's PUBACK says of a command, by its reason code (MQTT 5 3.4.2.1); MQTT 3.1.1 says success only.
pub fn puback(reason: u8) -> Outcome {
    let refused = match reason {
        0x00..0x80 => return Outcome::Accepted,
        0x87 => Reason::NotPermitted,
        0x90 => Reason::NoSuchAddress,
        0x97 => Reason::Quota { retry_after: None },
        _ => Reason::Content,
    };
    Outcome::Rejected(Rejection::new(refused, format!("the device answered with reason code {reason:#04x}")))
}

/// SUBACK's reason code over MQTT 5 (3.9.3) for a refused filter. Over MQTT 3.1.1 there is only 0x80.
pub fn suback_5(reason: &Reason) -> u8 {
    match reason {
        Reason::Credentials => 0x87,
        Reason::NotPermitted => 0x87,
        Reason::NoSuchAddress => 0x8f,
        Reason::TooLarge => 0x83,
        Reason::Quota { .. } => 0x97,
        Reason::Content => 0x8f,
        Reason::Full { .. } => 0x97,
        Reason::Disk { .. } => 0x83,
    }
}
