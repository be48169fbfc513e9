//! The connection engine from the outside: two of them against each other under a simulated clock, and one against
//! bytes that no good peer sends.

mod closing;
mod endpoints;
mod handshake;
mod hostile;
mod links;
mod pair;
mod random;
mod raw;
mod transfers;
mod windows;
