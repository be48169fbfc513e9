//! The embedded hub over real sockets and TLS, spoken to by an AMQP client that is not ours (`fe2o3-amqp`).

#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

#[path = "hub/client.rs"]
mod client;
#[path = "hub/commands.rs"]
mod commands;
#[path = "hub/connections.rs"]
mod connections;
#[path = "hub/peer.rs"]
mod peer;
#[path = "hub/telemetry.rs"]
mod telemetry;
