//! What the gateway means: the message model, mapping files, and each protocol's place in it.
//!
//! - [`message`], [`address`] and [`outcome`] are the model, [`RuleSet`] the rules of the mapping files. They name no
//!   protocol.
//! - `mqtt`, `coap`, `http` and `amqp` stand side by side: in each the protocol's way into the model, its way out of
//!   it, and its own answer to every outcome. Each is a feature.
//! - `azure` and `hono` are the built-in conventions: what templates cannot say about a device API.

// Without a protocol nothing reaches the rules' machinery; what remains to be checked is that it names none.
#![cfg_attr(
    not(all(feature = "amqp", feature = "coap", feature = "http", feature = "mqtt")),
    allow(dead_code, reason = "parts are reached through one protocol only")
)]

pub mod address;
#[cfg(feature = "amqp")]
pub mod amqp;
mod azure;
#[cfg(feature = "coap")]
pub mod coap;
mod compile;
pub mod delivery;
mod file;
mod hono;
#[cfg(feature = "http")]
pub mod http;
pub mod message;
#[cfg(feature = "mqtt")]
pub mod mqtt;
pub mod outcome;
pub mod rules;
mod system;
mod template;
mod time;
mod trie;
pub mod units;

pub use address::{ActsFor, Address, DeviceId, Identity};
pub use bytestring::ByteString;
pub use delivery::Delivery;
pub use message::{Direction, Message, MessageId, Properties, Timestamp, Value};
pub use outcome::{Outcome, Reason, Rejection, Report, Verdict};
pub use rules::{LoadError, RuleSet, Source};

/// The mapping file that is used when the configuration names none: Azure IoT Hub's own names over all protocols.
pub const AZURE_IOT_HUB: Source<'static> =
    Source { name: "azure-iot-hub.toml", text: include_str!("../azure-iot-hub.toml") };

/// The kinds of paths that mapping files can name.
const SYNTAXES: &[&rules::Syntax] = &[
    #[cfg(feature = "mqtt")]
    &mqtt::SYNTAX,
    #[cfg(feature = "coap")]
    &coap::SYNTAX,
    #[cfg(feature = "http")]
    &http::SYNTAX,
];
