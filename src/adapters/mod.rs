//! The protocols at work: for each one the loop that moves bytes, time and verdicts between a
//! socket, its protocol machine, its mapping and the hub.

pub(crate) mod amqp;
mod directory;
mod telemetry;

pub(crate) use directory::Directory;
