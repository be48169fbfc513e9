//! Link routing: pairs the links of a device with links to the hub and passes on what is
//! said on them, unread.
//!
//! Pure: no socket, no clock, no task. It works on the AMQP machines of both sides, which
//! know frames, windows and handles; what it adds is which link belongs to which, which
//! delivery has which id on the other side, and who may attach where.

#[cfg_attr(not(test), expect(dead_code, reason = "the router of shared connections will use it"))]
mod access;
#[cfg_attr(not(test), expect(dead_code, reason = "the router of shared connections will use it"))]
pub(crate) mod claims;
mod deliveries;
#[cfg_attr(not(test), expect(dead_code, reason = "the router of shared connections will use it"))]
mod names;
mod policy;
#[cfg_attr(not(test), expect(dead_code, reason = "the router of shared connections will use it"))]
mod routes;
mod telemetry;
#[cfg(test)]
mod tests;
mod tunnel;

pub(crate) use policy::{Authorise, Policy};
pub(crate) use tunnel::{Side, Tunnel};
