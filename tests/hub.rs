//! The embedded hub over real sockets and TLS, spoken to by an AMQP client that is not ours (`fe2o3-amqp`).

#[path = "hub/commands.rs"]
mod commands;
#[path = "hub/connections.rs"]
mod connections;
#[path = "hub/peer.rs"]
mod peer;
#[path = "hub/telemetry.rs"]
mod telemetry;
