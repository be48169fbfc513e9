//! The protocols at work: for each one the loop that moves bytes, time and verdicts between a
//! socket, its protocol machine, its mapping and the hub.

pub(crate) mod amqp;
mod answering;
pub(crate) mod coap;
mod directory;
pub(crate) mod http;
pub(crate) mod mqtt;
#[cfg(test)]
mod testing;

pub(crate) use directory::{Directory, Held, Legacy};
