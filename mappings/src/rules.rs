//! The rules of the mapping files, and the messages that they make.
//!
//! A [`RuleSet`] is read once from all files together: each rule is checked, compiled, and put into the table of each
//! kind of path it names; the set never changes afterwards and is shared. No protocol is named here: each describes
//! how its paths are written by a `Syntax`, and asks for matches from its own file.

use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;

use crate::address::{Address, AddressBuilder, DeviceId, Identity, check_identifier};
use crate::compile::Loader;
use crate::delivery::Delivery;
use crate::message::{Direction, Message, Value};
use crate::outcome::{Reason, Rejection};
use crate::system::System;
use crate::template::{Binding, Form, Template};
use crate::trie::{Captures, Found, Path, Trie};

pub use crate::file::{Fault, LoadError, Place, Source};

/// How a protocol's paths are written in mapping files.
#[derive(Debug)]
pub(crate) struct Syntax {
    /// The key in `from` and `to`.
    pub(crate) key: &'static str,
    /// The methods that carry messages, where a pattern begins with one.
    pub(crate) methods: Option<&'static [&'static str]>,
    pub(crate) form: Form,
    /// Whether a convention may put its properties into the rest of the path.
    pub(crate) bag: bool,
    /// Whether commands can be sent to a topic.
    pub(crate) commands: bool,
}

/// A device API that templates alone cannot say; a rule names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Convention {
    /// Azure IoT Hub's own topics, paths and headers.
    AzureIotHub,
    /// Eclipse Hono's property bag.
    Hono,
}

impl Convention {
    pub(crate) const ALL: [(&'static str, Self); 2] =
        [("azure-iot-hub", Self::AzureIotHub), ("hono", Self::Hono)];
    /// The name of the rest of a path that holds the convention's properties.
    pub(crate) const BAG: &'static str = "bag";
}

/// All rules of all mapping files.
#[derive(Debug, Default)]
pub struct RuleSet {
    pub(crate) has_via: bool,
    /// Those for messages from devices, in the order of the files.
    pub(crate) described: Vec<Described>,
    pub(crate) uplink: Vec<Table<Uplink>>,
    pub(crate) commands: Vec<Table<Arc<Downlink>>>,
}

/// A rule for messages from devices, as people see it.
#[derive(Debug, Clone)]
pub struct Described {
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub place: Place,
    /// The CRC-32 of the file's text.
    pub version: String,
    /// How its messages are delivered, where it says so.
    pub delivery: Option<Arc<Delivery>>,
}

/// The rules that share a kind of path.
#[derive(Debug)]
pub(crate) struct Table<T> {
    pub(crate) key: &'static str,
    pub(crate) method: &'static str,
    pub(crate) trie: Trie<T>,
}

/// A compiled rule for messages from devices, for one of its patterns.
#[derive(Debug)]
pub(crate) struct Uplink {
    pub(crate) convention: Option<Convention>,
    pub(crate) place: Place,
    /// The slot of the pattern's device, where it names one.
    pub(crate) device: Option<usize>,
    /// The group of gateways that may act for the device.
    pub(crate) via: Option<Box<str>>,
    pub(crate) address: AddressTemplate,
    pub(crate) properties: Vec<(ByteString, PropertyTemplate)>,
    pub(crate) system: System,
    pub(crate) delivery: Option<Arc<Delivery>>,
}

/// A compiled rule for commands to devices.
#[derive(Debug)]
pub(crate) struct Downlink {
    pub(crate) convention: Option<Convention>,
    pub(crate) max_qos: u8,
    /// The topic as far as a subscription to it decides it; `#` where a convention or the command itself goes on.
    pub(crate) topic: Template,
    /// What the command itself adds to the topic.
    pub(crate) tail: Vec<MessageName>,
    pub(crate) place: Place,
    /// The slot of the topic's device, where it names one.
    pub(crate) device: Option<usize>,
    /// The group of gateways that may take the device's commands for it.
    pub(crate) via: Option<Box<str>>,
    pub(crate) address: AddressTemplate,
}

/// A name that only the command has a value for: a segment of its topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MessageName {
    MessageId,
    CorrelationId,
    Subject,
}

impl MessageName {
    pub(crate) const ALL: [(&'static str, Self); 3] = [
        ("message-id", Self::MessageId),
        ("correlation-id", Self::CorrelationId),
        ("subject", Self::Subject),
    ];

    /// The name as it stands in a template.
    pub(crate) fn find(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, name)| *name)
    }
}

/// A node of the hub with names in it.
#[derive(Debug)]
pub(crate) struct AddressTemplate {
    pub(crate) parts: Vec<AddressPart>,
    pub(crate) literal_bytes: usize,
}

#[derive(Debug)]
pub(crate) enum AddressPart {
    /// Canonical text, possibly several segments.
    Literal(String),
    Device,
    Bound(Binding),
}

#[derive(Debug)]
pub(crate) enum PropertyTemplate {
    Constant(Value),
    Text(Vec<PropertyPart>),
}

#[derive(Debug)]
pub(crate) enum PropertyPart {
    Literal(String),
    Device,
    Bound(Binding),
}

impl RuleSet {
    /// Reads mapping files. Their order, and the order of the rules in them, decides nothing.
    ///
    /// # Errors
    /// Every fault that was found, each with its place; of a file that cannot be read at all, the first.
    pub fn load(sources: &[Source<'_>]) -> Result<Self, LoadError> {
        let mut loader = Loader::new(crate::SYNTAXES);
        sources.iter().for_each(|source| loader.read(source));
        loader.finish()
    }

    /// Whether any rule lets gateways act for devices: who asks for a mapping need not look at [`ActsFor`] otherwise.
    ///
    /// [`ActsFor`]: crate::address::ActsFor
    pub fn has_via(&self) -> bool {
        self.has_via
    }

    /// The rules for messages from devices, in the order of the files.
    pub fn described(&self) -> &[Described] {
        &self.described
    }

    /// Whether messages of any rule may get onto the disk.
    pub fn needs_disk(&self) -> bool {
        self.described.iter().filter_map(|rule| rule.delivery.as_deref()).any(Delivery::needs_disk)
    }

    /// The rule for a message from a device.
    pub(crate) fn uplink<'a, P: Path<'a>>(
        &self,
        key: &str,
        method: &str,
        path: P,
        hidden: bool,
    ) -> Result<Found<'_, 'a, Uplink, P>, Rejection> {
        self.uplink
            .iter()
            .find(|table| table.key == key && table.method == method)
            .and_then(|table| table.trie.find(path, hidden))
            .ok_or_else(|| Rejection::new(Reason::NoSuchAddress, "no rule maps this path"))
    }

    /// The rule for commands that would be sent below `path`.
    pub(crate) fn commands<'a, P: Path<'a>>(
        &self,
        key: &str,
        path: P,
    ) -> Result<Found<'_, 'a, Arc<Downlink>, P>, Rejection> {
        self.commands
            .iter()
            .find(|table| table.key == key)
            .and_then(|table| table.trie.find(path, false))
            .ok_or_else(|| Rejection::new(Reason::NoSuchAddress, "no rule sends commands to this topic"))
    }
}

impl Uplink {
    /// Makes the message that a match stands for: identity, address and the rule's own properties.
    pub(crate) fn message<'a, P: Path<'a>>(
        &self,
        found: &Found<'_, 'a, Self, P>,
        identity: Identity<'_>,
        body: Bytes,
    ) -> Result<Message, Rejection> {
        let captured = self.device.map(|slot| found.captures.get(slot));
        let device = identify(identity, captured, self.via.as_deref())?;
        let address = self.address.resolve(&device, &found.captures, found.rest)?;
        let mut message = Message::new(device, Direction::Uplink, address, body);
        message.delivery.clone_from(&self.delivery);
        message.application_properties.reserve_exact(self.properties.len());
        for (name, template) in &self.properties {
            let value = template.resolve(&message.device, &found.captures, found.rest);
            message.application_properties.push((name.clone(), value));
        }
        Ok(message)
    }

    /// Sets what the rule says about the message as a whole: after the device's own words were read.
    pub(crate) fn finish<'a, P: Path<'a>>(
        &self,
        message: &mut Message,
        found: &Found<'_, 'a, Self, P>,
    ) -> Result<(), Rejection> {
        self.system.apply(message, &found.captures, found.rest)
    }

    /// How many of a message's first application properties are the rule's own. A device cannot replace them.
    pub(crate) fn own_properties(&self) -> usize {
        self.properties.len()
    }
}

impl Downlink {
    /// Whose commands a match asks for, and the hub's node that they come from.
    pub(crate) fn source<'a, P: Path<'a>>(
        &self,
        found: &Found<'_, 'a, Arc<Self>, P>,
        identity: Identity<'_>,
    ) -> Result<(DeviceId, Address), Rejection> {
        let captured = self.device.map(|slot| found.captures.get(slot));
        let device = identify(identity, captured, self.via.as_deref())?;
        let address = self.address.resolve(&device, &found.captures, found.rest)?;
        Ok((device, address))
    }
}

/// Identity is not a capture: what the path says must be who the device is, byte for byte. Only where anonymous
/// access is allowed the path itself is the claim. A gateway may be of the group that may act for the device.
fn identify(
    identity: Identity<'_>,
    captured: Option<&str>,
    via: Option<&str>,
) -> Result<DeviceId, Rejection> {
    match (identity, captured) {
        (Identity::Is(device) | Identity::MayActFor(device, _), None) => Ok(device.clone()),
        (Identity::Is(device) | Identity::MayActFor(device, _), Some(named)) if named == device.as_str() => {
            Ok(device.clone())
        }
        (Identity::MayActFor(gateway, others), Some(named)) => {
            let device = DeviceId::new(named).ok().zip(via);
            device
                .filter(|(device, group)| others.may_act(gateway, group, device))
                .map(|(device, _)| device)
                .ok_or_else(|| Rejection::new(Reason::NotPermitted, "the path names another device"))
        }
        (Identity::Is(_), Some(_)) => {
            Err(Rejection::new(Reason::NotPermitted, "the path names another device"))
        }
        (Identity::Claimed, Some(named)) => DeviceId::new(named)
            .map_err(|error| Rejection::new(Reason::Content, format!("the device id in the path {error}"))),
        (Identity::Claimed, None) => Err(Rejection::new(
            Reason::Credentials,
            "the path names no device and nothing else identifies one",
        )),
    }
}

impl AddressTemplate {
    fn resolve<'a, P: Path<'a>>(
        &self,
        device: &DeviceId,
        captures: &Captures<'a>,
        rest: P,
    ) -> Result<Address, Rejection> {
        let mut builder = AddressBuilder::with_capacity(self.literal_bytes + device.as_str().len());
        for part in &self.parts {
            match part {
                AddressPart::Literal(text) => {
                    builder.canonical(text);
                    Ok(())
                }
                AddressPart::Device => builder.segment(device.as_str()),
                AddressPart::Bound(Binding::Capture(slot)) => {
                    builder.segment(identifier(captures.get(*slot))?)
                }
                AddressPart::Bound(Binding::Rest) => {
                    let mut path = rest;
                    let mut result = Ok(());
                    while let (Ok(()), Some((segment, tail))) = (&result, path.split_first()) {
                        result = builder.segment(identifier(segment)?);
                        path = tail;
                    }
                    result
                }
            }
            .map_err(|error| Rejection::new(Reason::Content, error.to_string()))?;
        }
        builder.finish().map_err(|error| Rejection::new(Reason::Content, error.to_string()))
    }
}

fn identifier(captured: &str) -> Result<&str, Rejection> {
    match check_identifier(captured) {
        Ok(()) => Ok(captured),
        Err(error) => Err(Rejection::new(Reason::Content, format!("a name in the path {error}"))),
    }
}

impl PropertyTemplate {
    pub(crate) fn resolve<'a, P: Path<'a>>(
        &self,
        device: &DeviceId,
        captures: &Captures<'a>,
        rest: P,
    ) -> Value {
        let parts = match self {
            Self::Constant(value) => return value.clone(),
            Self::Text(parts) => parts,
        };
        let mut text = String::new();
        for part in parts {
            match part {
                PropertyPart::Literal(literal) => text.push_str(literal),
                PropertyPart::Device => text.push_str(device.as_str()),
                PropertyPart::Bound(Binding::Capture(slot)) => text.push_str(captures.get(*slot)),
                PropertyPart::Bound(Binding::Rest) => {
                    let mut path = rest;
                    let mut separator = "";
                    while let Some((segment, tail)) = path.split_first() {
                        text.push_str(separator);
                        text.push_str(segment);
                        separator = "/";
                        path = tail;
                    }
                }
            }
        }
        Value::String(text.into())
    }
}

/// Names that only the hub and a convention's own table give a meaning to.
pub(crate) fn is_reserved(name: &str) -> bool {
    name.get(..7).is_some_and(|prefix| prefix.eq_ignore_ascii_case("iothub-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_set_is_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<RuleSet>();
    }

    #[test]
    fn reserved_names_are_known_in_any_case() {
        for name in ["iothub-", "iothub-x", "IoTHub-MessageType"] {
            assert!(is_reserved(name), "{name}");
        }
        for name in ["", "iothub", "iothubx", "xiothub-", "iothubé"] {
            assert!(!is_reserved(name), "{name}");
        }
    }
}
