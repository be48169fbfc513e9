//! The simulated devices: who they are, what they speak, what they measure and what they can be told to do.

use fieldgate_mqtt::Version;

use crate::telemetry::Protocol;

/// What a device speaks, as exactly as the demo tells its devices apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    Amqp,
    Mqtt(Version),
    Coap { confirmable: bool },
    Http,
}

impl Speaks {
    pub(super) fn protocol(self) -> Protocol {
        match self {
            Self::Amqp => Protocol::Amqp,
            Self::Mqtt(_) => Protocol::Mqtt,
            Self::Coap { .. } => Protocol::Coap,
            Self::Http => Protocol::Http,
        }
    }

    /// As it stands on the screen; at most ten characters.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Mqtt(Version::V311) => "MQTT 3.1.1",
            Self::Mqtt(Version::V5) => "MQTT 5",
            Self::Coap { confirmable: true } => "CoAP CON",
            Self::Coap { confirmable: false } => "CoAP NON",
            Self::Amqp | Self::Http => label(self.protocol()),
        }
    }
}

/// The protocols in the order in which the demo names them.
pub(super) const PROTOCOLS: [Protocol; 4] = [Protocol::Amqp, Protocol::Mqtt, Protocol::Coap, Protocol::Http];

/// A protocol as people write it.
pub(super) fn label(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Amqp => "AMQP 1.0",
        Protocol::Mqtt => "MQTT",
        Protocol::Coap => "CoAP",
        Protocol::Http => "HTTP",
    }
}

/// Something that is measured: around `middle`, by up to `swing` either way.
#[derive(Debug)]
struct Quantity {
    name: &'static str,
    middle: f64,
    swing: f64,
    decimals: usize,
}

const fn quantity(name: &'static str, middle: f64, swing: f64, decimals: usize) -> Quantity {
    Quantity { name, middle, swing, decimals }
}

/// A simulated device.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) id: &'static str,
    pub(super) speaks: Speaks,
    /// Goes with every message.
    pub(super) property: (&'static str, &'static str),
    /// The command that the demo sends it, for those that are sent one: its text for a number that counts up.
    pub(super) command: Option<fn(u64) -> String>,
    quantities: &'static [Quantity],
}

impl Plan {
    /// The reading with this number, as JSON: the same number gives the same reading.
    pub(super) fn reading(&self, number: u64) -> String {
        // A wave that does not repeat within any run that somebody watches.
        let phase = f64::from(u32::try_from(number % 1_000_000).unwrap_or_default()) * 0.7;
        let fields: Vec<String> = (1_u8..)
            .zip(self.quantities)
            .map(|(index, quantity)| {
                let value = quantity.middle + quantity.swing * (phase * f64::from(index)).sin();
                format!("\"{}\":{value:.*}", quantity.name, quantity.decimals)
            })
            .collect();
        format!("{{{}}}", fields.join(","))
    }
}

/// Two devices of each protocol. Their ids begin with the protocol's name, so that a reader of the hub's log sees it.
pub(super) static FLEET: [Plan; 8] = [
    Plan {
        id: "mqtt-boiler",
        speaks: Speaks::Mqtt(Version::V311),
        property: ("zone", "cellar"),
        command: None,
        quantities: &[quantity("celsius", 61.0, 4.0, 1), quantity("bar", 1.6, 0.2, 2)],
    },
    Plan {
        id: "coap-soil",
        speaks: Speaks::Coap { confirmable: true },
        property: ("zone", "garden"),
        command: None,
        quantities: &[quantity("moisture", 31.0, 3.0, 1)],
    },
    Plan {
        id: "http-meter",
        speaks: Speaks::Http,
        property: ("phase", "L1"),
        command: None,
        quantities: &[quantity("watts", 420.0, 180.0, 0), quantity("volts", 230.0, 3.0, 1)],
    },
    Plan {
        id: "amqp-press",
        speaks: Speaks::Amqp,
        property: ("hall", "2"),
        command: Some(|number| format!("pressure {} bar", 170 + number % 4 * 5)),
        quantities: &[quantity("bar", 180.0, 12.0, 1), quantity("strokes", 24.0, 2.0, 0)],
    },
    Plan {
        id: "mqtt-valve",
        speaks: Speaks::Mqtt(Version::V5),
        property: ("zone", "cellar"),
        command: Some(|number| format!("open {} %", 20 + number % 4 * 20)),
        quantities: &[quantity("open", 40.0, 30.0, 0), quantity("litres", 12.5, 4.0, 1)],
    },
    Plan {
        id: "coap-rain",
        speaks: Speaks::Coap { confirmable: false },
        property: ("zone", "roof"),
        command: None,
        quantities: &[quantity("millimetres", 0.8, 0.7, 2)],
    },
    Plan {
        id: "http-door",
        speaks: Speaks::Http,
        property: ("gate", "north"),
        command: None,
        quantities: &[quantity("visitors", 14.0, 9.0, 0)],
    },
    Plan {
        id: "amqp-lathe",
        speaks: Speaks::Amqp,
        property: ("hall", "1"),
        command: None,
        quantities: &[quantity("rpm", 1450.0, 60.0, 0), quantity("microns", 7.0, 2.0, 1)],
    },
];

/// The simulated device with this id.
pub(super) fn plan(id: &str) -> Option<&'static Plan> {
    FLEET.iter().find(|plan| plan.id == id)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use fieldgate_mappings::DeviceId;

    use super::*;

    #[test]
    fn there_are_several_devices_of_each_protocol_and_commands_for_two_kinds() {
        for protocol in PROTOCOLS {
            let of = |plan: &&Plan| plan.speaks.protocol() == protocol;
            assert_eq!(FLEET.iter().filter(of).count(), 2, "{}", protocol.name());
        }
        let commanded: Vec<_> = FLEET.iter().filter(|plan| plan.command.is_some()).collect();
        let protocols: Vec<_> = commanded.iter().map(|plan| plan.speaks.protocol()).collect();
        assert_eq!(protocols, [Protocol::Amqp, Protocol::Mqtt]);
    }

    #[test]
    fn ids_are_good_short_unlike_and_tell_the_protocol() {
        let ids: HashSet<_> = FLEET.iter().map(|plan| plan.id).collect();
        assert_eq!(ids.len(), FLEET.len());
        for plan in &FLEET {
            DeviceId::new(plan.id).unwrap();
            assert!(plan.id.len() <= 11 && plan.speaks.label().len() <= 10, "{}", plan.id);
            assert!(plan.id.starts_with(plan.speaks.protocol().name()), "{}", plan.id);
            assert_eq!(super::plan(plan.id).unwrap().id, plan.id);
        }
    }

    #[test]
    fn readings_are_json_within_their_bounds_and_change() {
        for plan in &FLEET {
            let mut seen = HashSet::new();
            for number in 0..50 {
                let text = plan.reading(number);
                let json: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&text).unwrap();
                assert_eq!(json.len(), plan.quantities.len());
                for quantity in plan.quantities {
                    let value = json[quantity.name].as_f64().unwrap();
                    assert!((value - quantity.middle).abs() <= quantity.swing + 0.5, "{text}");
                }
                seen.insert(text);
            }
            assert!(seen.len() > 10, "{}", plan.id);
        }
    }
}
