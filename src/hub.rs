//! The embedded hub: an IoT Hub as it looks from outside, in memory.
//!
//! Devices send telemetry into a partitioned, replayable log ([`log`]) and take commands from a queue of their
//! own ([`commands`]); what became of a command goes back to its sender ([`feedback`]). Who is who stands in
//! [`registry`], who may do what in [`auth`], which address is which node in [`address`]. All of that is pure:
//! no socket, no clock, time is passed in. [`serve`] runs it on the wire.
//!
//! It is deliberately not durable, not a fully managed registry, and has neither twins nor direct methods.

pub(crate) mod address;
pub(crate) mod auth;
pub(crate) mod commands;
pub(crate) mod feedback;
pub(crate) mod log;
pub(crate) mod queue;
pub(crate) mod registry;
pub(crate) mod time;
