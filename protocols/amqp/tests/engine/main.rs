//! The connection engine from the outside: two of them against each other under a simulated clock, and one against
//! bytes that no good peer sends.

#![allow(
    clippy::unwrap_used,
    reason = "clippy.toml allows it in tests, but sees only the functions marked as such"
)]

mod closing;
mod endpoints;
mod fidelity;
mod handshake;
mod hostile;
mod links;
mod pair;
mod random;
mod raw;
mod relay;
mod trace;
mod transfers;
mod windows;
