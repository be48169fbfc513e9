//! The machine against the client side of this crate and against bytes, in simulated time.

#[path = "connection/aliases.rs"]
mod aliases;
#[path = "connection/exactly_once.rs"]
mod exactly_once;
#[path = "connection/handshake.rs"]
mod handshake;
#[path = "connection/hostile.rs"]
mod hostile;
#[path = "connection/messages.rs"]
mod messages;
#[path = "connection/requests.rs"]
mod requests;
#[path = "connection/sessions.rs"]
mod sessions;
#[path = "connection/simulation.rs"]
mod simulation;
#[path = "connection/support.rs"]
mod support;
#[path = "connection/time.rs"]
mod time;
#[path = "connection/windows.rs"]
mod windows;
