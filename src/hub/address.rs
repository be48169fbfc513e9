//! Addresses: which node of the hub a terminus means.
//!
//! Clients write the same address in many ways: relative or with scheme and host, the fixed words in any case,
//! identities percent-encoded or not. All of them are brought to one [`Node`] here, once; nothing later looks at
//! the text again. The host is not compared: the connection has come here already, some clients write the
//! gateway's name into it, and what a connection may do is decided by its tokens ([`super::auth`]).

use std::borrow::Cow;

use fieldgate_mappings::DeviceId;

use crate::sas::percent_decode;

/// The longest address that is looked at, in bytes.
const MAX_BYTES: usize = 1024;

/// A node that links attach to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node {
    /// `$cbs`: tokens are put here.
    Cbs,
    /// `/devices/D/messages/events`: a device's telemetry.
    DeviceEvents(DeviceId),
    /// `/devices/D/messages/devicebound`: a device's commands.
    DeviceCommands(DeviceId),
    /// `/messages/devicebound`: a service's commands to devices.
    Commands,
    /// `/messages/servicebound/feedback`: what became of them.
    Feedback,
    /// `messages/events/ConsumerGroups/G/Partitions/N`: the event log.
    Events {
        /// The consumer group, in lower case: the hub compares their names without regard to case.
        group: String,
        /// The partition's number.
        partition: u16,
    },
    /// A node that IoT Hub has and this one has not, by its name.
    Missing(&'static str),
}

/// What a node requires of whoever attaches to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Right {
    /// Nothing yet: tokens are put here.
    None,
    /// To act as a device.
    DeviceConnect,
    /// To act as a service.
    ServiceConnect,
}

impl Node {
    /// The node that `text` means; `None` if there is no such address.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.len() > MAX_BYTES {
            return None;
        }
        let path = match text.split_once("://") {
            Some((_, rest)) => rest.split_once('/')?.1,
            None => text.strip_prefix('/').unwrap_or(text),
        };
        let segments: Vec<Cow<'_, str>> = path.split('/').map(decode).collect();
        let segments: Vec<&str> = segments.iter().map(|segment| &**segment).collect();
        let is = |segment: &str, word: &str| segment.eq_ignore_ascii_case(word);
        match *segments.as_slice() {
            [cbs] if is(cbs, "$cbs") => Some(Self::Cbs),
            [management] if is(management, "$management") => Some(Self::Missing("$management")),
            [devices, id, ref rest @ ..] if is(devices, "devices") => Self::of_device(id, rest),
            [messages, bound] if is(messages, "messages") && is(bound, "devicebound") => Some(Self::Commands),
            [messages, bound, what] if is(messages, "messages") && is(bound, "servicebound") => {
                if is(what, "feedback") {
                    Some(Self::Feedback)
                } else {
                    is(what, "filenotifications").then_some(Self::Missing("file notifications"))
                }
            }
            [messages, events, ref rest @ ..] if is(messages, "messages") && is(events, "events") => {
                match *rest {
                    [groups, group, partitions, number]
                        if is(groups, "consumergroups")
                            && is(partitions, "partitions")
                            && !group.is_empty() =>
                    {
                        // `+1` and `01` parse as numbers and are no names of partitions.
                        let partition: u16 = number.parse().ok()?;
                        (partition.to_string() == number)
                            .then(|| Self::Events { group: group.to_ascii_lowercase(), partition })
                    }
                    [management] if is(management, "$management") => Some(Self::Missing("$management")),
                    _ => None,
                }
            }
            _ => None,
        }
    }

    fn of_device(id: &str, rest: &[&str]) -> Option<Self> {
        let id = DeviceId::new(id).ok()?;
        let is =
            |at: usize, word: &str| rest.get(at).is_some_and(|segment| segment.eq_ignore_ascii_case(word));
        match rest.len() {
            2 if is(0, "messages") && is(1, "events") => Some(Self::DeviceEvents(id)),
            2 if is(0, "messages") && is(1, "devicebound") => Some(Self::DeviceCommands(id)),
            1 if is(0, "twin") => Some(Self::Missing("device twins")),
            2 if is(0, "methods") && is(1, "devicebound") => Some(Self::Missing("direct methods")),
            3.. if is(0, "modules") => Some(Self::Missing("modules")),
            _ => None,
        }
    }

    /// The device whose commands a message to this address is; `/devices/D` alone means them too.
    pub(crate) fn parse_command_target(to: &str) -> Option<DeviceId> {
        if let Some(Self::DeviceCommands(device)) = Self::parse(to) {
            return Some(device);
        }
        let path =
            to.split_once("://").map_or(Some(to), |(_, rest)| rest.split_once('/').map(|(_, path)| path))?;
        let (devices, id) = path.strip_prefix('/').unwrap_or(path).split_once('/')?;
        if !devices.eq_ignore_ascii_case("devices") {
            return None;
        }
        DeviceId::new(&decode(id)).ok()
    }

    /// The device that the node belongs to.
    pub(crate) fn device(&self) -> Option<&DeviceId> {
        match self {
            Self::DeviceEvents(device) | Self::DeviceCommands(device) => Some(device),
            Self::Cbs | Self::Commands | Self::Feedback | Self::Events { .. } | Self::Missing(_) => None,
        }
    }

    /// What it takes to attach here.
    pub(crate) fn right(&self) -> Right {
        match self {
            Self::Cbs => Right::None,
            Self::DeviceEvents(_) | Self::DeviceCommands(_) => Right::DeviceConnect,
            Self::Commands | Self::Feedback | Self::Events { .. } | Self::Missing(_) => Right::ServiceConnect,
        }
    }

    /// The node's path, canonical as in [`crate::sas::Resource`], so that tokens can be held against it.
    pub(crate) fn path(&self) -> Vec<String> {
        let segments: &[&str] = match self {
            Self::Cbs => &["$cbs"],
            Self::DeviceEvents(id) => &["devices", id.as_str(), "messages", "events"],
            Self::DeviceCommands(id) => &["devices", id.as_str(), "messages", "devicebound"],
            Self::Commands => &["messages", "devicebound"],
            Self::Feedback => &["messages", "servicebound", "feedback"],
            Self::Events { group, partition } => {
                let number = partition.to_string();
                return ["messages", "events", "consumergroups", group, "partitions", &number]
                    .map(str::to_owned)
                    .into();
            }
            Self::Missing(_) => &["$missing"],
        };
        segments.iter().map(|&segment| segment.to_owned()).collect()
    }
}

/// A segment without its escapes. What is no escape stands for itself: a client that does not encode may have a
/// percent sign in an identity.
fn decode(segment: &str) -> Cow<'_, str> {
    if !segment.contains('%') {
        return Cow::Borrowed(segment);
    }
    percent_decode(segment).map_or(Cow::Borrowed(segment), Cow::Owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(text: &str) -> DeviceId {
        DeviceId::new(text).unwrap()
    }

    #[test]
    fn every_way_of_writing_an_address() {
        for text in [
            "devices/Pump:1/messages/events",
            "/devices/Pump:1/messages/events",
            "/Devices/Pump%3A1/Messages/Events",
            "amqps://hub.example:5671/devices/Pump%3a1/messages/events",
            "amqps://gateway/devices/Pump:1/messages/events",
        ] {
            assert_eq!(Node::parse(text), Some(Node::DeviceEvents(device("Pump:1"))), "{text}");
        }
        let bound = Some(Node::DeviceCommands(device("d")));
        assert_eq!(Node::parse("/devices/d/messages/deviceBound"), bound);
        assert_eq!(Node::parse("/devices/d/messages/devicebound"), bound);
        assert_eq!(Node::parse("$cbs"), Some(Node::Cbs));
        assert_eq!(Node::parse("/messages/devicebound"), Some(Node::Commands));
        assert_eq!(Node::parse("amqps://h/messages/devicebound"), Some(Node::Commands));
        assert_eq!(Node::parse("/messages/serviceBound/feedback"), Some(Node::Feedback));
        let events = Some(Node::Events { group: "$default".into(), partition: 3 });
        assert_eq!(Node::parse("messages/events/ConsumerGroups/$Default/Partitions/3"), events);
        assert_eq!(Node::parse("amqps://h:1/messages/events/consumergroups/%24Default/partitions/3"), events);
    }

    #[test]
    fn what_iot_hub_has_and_this_hub_has_not_is_named() {
        for (text, name) in [
            ("$management", "$management"),
            ("messages/events/$management", "$management"),
            ("/devices/d/twin", "device twins"),
            ("/devices/d/methods/devicebound", "direct methods"),
            ("/devices/d/modules/m/messages/events", "modules"),
            ("/messages/serviceBound/filenotifications", "file notifications"),
        ] {
            assert_eq!(Node::parse(text), Some(Node::Missing(name)), "{text}");
        }
    }

    #[test]
    fn what_is_no_address() {
        for text in [
            "",
            "/",
            "amqps://h",
            "amqps://h/",
            "devices",
            "devices/d",
            "devices//messages/events",
            "devices/d/messages/events/",
            "devices/d/messages/other",
            "devices/a%2Fb/messages/events",
            "devices/../messages/events",
            "//devices/d/messages/events",
            "messages/events",
            "messages/events/ConsumerGroups//Partitions/0",
            "messages/events/ConsumerGroups/g/Partitions/x",
            "messages/events/ConsumerGroups/g/Partitions/+1",
            "messages/events/ConsumerGroups/g/Partitions/01",
            "messages/events/ConsumerGroups/g/Partitions/65536",
            "messages/servicebound/other",
        ] {
            assert_eq!(Node::parse(text), None, "{text}");
        }
        assert_eq!(Node::parse(&format!("devices/{}/messages/events", "d".repeat(129))), None);
        assert_eq!(Node::parse(&"/".repeat(5000)), None);
    }

    #[test]
    fn an_escape_cannot_move_a_segment_and_an_unescaped_percent_sign_stands_for_itself() {
        assert_eq!(Node::parse("devices/d%2Fmessages/events"), None);
        assert_eq!(Node::parse("devices/100%/messages/events"), Some(Node::DeviceEvents(device("100%"))));
    }

    #[test]
    fn targets_of_commands() {
        for text in [
            "/devices/d/messages/devicebound",
            "devices/d/messages/deviceBound",
            "/devices/d",
            "amqps://h/devices/d",
        ] {
            assert_eq!(Node::parse_command_target(text), Some(device("d")), "{text}");
        }
        for text in [
            "",
            "/devices",
            "/devices/",
            "/devices/d/",
            "/devices/d/messages/events",
            "/other/d",
            "amqps://h",
        ] {
            assert_eq!(Node::parse_command_target(text), None, "{text}");
        }
    }

    #[test]
    fn paths_are_those_that_tokens_are_compared_with() {
        for text in [
            "devices/D-1/messages/events",
            "devices/D-1/messages/deviceBound",
            "messages/devicebound",
            "messages/serviceBound/feedback",
            "messages/events/ConsumerGroups/Group/Partitions/2",
        ] {
            let resource = crate::sas::Resource::new("h", text);
            assert_eq!(Node::parse(text).unwrap().path(), resource.path(), "{text}");
        }
    }
}
