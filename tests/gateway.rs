//! The gateway in this process, over real sockets and TLS: devices of each protocol on one side, on the other the
//! embedded hub, or a hub of the test that does what it is told.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

#[path = "gateway/certificates.rs"]
mod certificates;
#[path = "hub/client.rs"]
mod client;
#[path = "gateway/hub.rs"]
mod hub;
#[path = "gateway/mqtt.rs"]
mod mqtt;
#[path = "gateway/proxy.rs"]
mod proxy;
#[path = "gateway/requests.rs"]
mod requests;
#[path = "faults/rng.rs"]
mod rng;
#[path = "gateway/world.rs"]
mod world;

#[path = "gateway/alone.rs"]
mod alone;
#[path = "gateway/bounds.rs"]
mod bounds;
#[path = "gateway/commands.rs"]
mod commands;
#[path = "gateway/console.rs"]
mod console;
#[path = "gateway/devices.rs"]
mod devices;
#[path = "gateway/listeners.rs"]
mod listeners;
#[path = "gateway/mqtt_listeners.rs"]
mod mqtt_listeners;
#[path = "gateway/mqtt_sessions.rs"]
mod mqtt_sessions;
#[path = "gateway/order.rs"]
mod order;
#[path = "gateway/outcomes.rs"]
mod outcomes;
#[path = "gateway/pools.rs"]
mod pools;
#[path = "gateway/recipe.rs"]
mod recipe;
#[path = "gateway/routes.rs"]
mod routes;
#[path = "gateway/shared.rs"]
mod shared;
#[path = "gateway/spool.rs"]
mod spool;
#[path = "gateway/spool_tools.rs"]
mod spool_tools;
#[path = "gateway/stop.rs"]
mod stop;
#[path = "gateway/takeover.rs"]
mod takeover;
#[path = "gateway/transport.rs"]
mod transport;
