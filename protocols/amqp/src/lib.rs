//! The AMQP 1.0 wire: codec, connection, session and link machines, without I/O.
//!
//! From the bottom up:
//!
//! - [`codec`] judges, reads and writes encoded values;
//! - [`frame`] cuts a byte stream into frames;
//! - [`performative`] and [`message`] are views over frame bodies and messages;
//! - [`ring`] keeps the unsettled deliveries of a session;
//! - [`connection`] is the machine of one connection, with [`sasl`] below its open, sessions and links above;
//! - [`endpoint`] sends and receives on links that end here;
//! - [`trace`] shows frames to people.
//!
//! Nothing here opens a socket, asks for the time or starts a task. Bytes from a peer are validated once, before
//! anything else reads them, and are then kept as they came: what a gateway passes on stays byte for byte what it
//! was, except for the fields that are per side.

pub mod codec;
pub mod connection;
pub mod endpoint;
pub mod error;
pub mod frame;
mod link;
pub mod message;
pub mod performative;
pub mod ring;
pub mod sasl;
mod session;
#[cfg(test)]
mod testing;
pub mod trace;
mod window;
