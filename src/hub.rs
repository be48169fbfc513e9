//! The embedded hub: an IoT Hub as it looks from outside, in memory.
//!
//! Devices send telemetry into a partitioned, replayable log (`log`) and take commands from a queue of their own
//! (`commands`); what became of a command goes back to its sender (`feedback`). Who is who stands in `registry`,
//! who may do what in `auth`, which address is which node in `address`, what is stamped on a message in `message`.
//! All of that, and `state` that holds it together, is pure: no socket, no clock, time is passed in. `serve` runs
//! it on the wire, through the same AMQP engine that the gateway has.
//!
//! It is deliberately not durable and not a managed registry, and it has neither twins, direct methods, modules nor
//! the `$management` node: links to those are refused with `amqp:not-implemented`.

mod address;
mod auth;
mod cbs;
mod commands;
mod feedback;
mod log;
mod message;
mod queue;
pub(crate) mod registry;
mod selector;
mod serve;
mod state;
mod telemetry;
mod time;

pub use auth::policy_key;
pub use registry::device_key;
pub use serve::{HubError, HubHandle, HubSetup, start};
pub(crate) use time::Iso;
