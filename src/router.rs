//! Link routing: pairs the links of a device with links to the hub and passes on what is
//! said on them, unread.
//!
//! Pure: no socket, no clock, no task. It works on the AMQP machines of both sides, which
//! know frames, windows and handles; what it adds is which link belongs to which, which
//! delivery has which id on the other side, and who may attach where.

mod access;
pub(crate) mod arena;
pub(crate) mod claims;
mod deliveries;
mod ends;
mod hold;
mod joining;
mod linking;
mod machine;
mod names;
mod passing;
mod policy;
mod pressure;
mod proving;
mod putting;
mod routes;
mod seat;
mod shared;
mod telemetry;
#[cfg(test)]
mod tests;
mod word;

pub(crate) use access::{Hubs, Rules};
pub(crate) use ends::{ConnectorSettings, DeviceInfo, DeviceKey, OwnDevice, TrunkKey};
pub(crate) use machine::Router;
pub(crate) use policy::{Authorise, Policy};
pub(crate) use proving::{Registrar, Spoken};
pub(crate) use routes::{ConnectorIndex, Direction, LinkRoute, RouteMatch, Routes};
pub(crate) use seat::MAX_BACKLOG_BYTES;
pub(crate) use word::Word;
