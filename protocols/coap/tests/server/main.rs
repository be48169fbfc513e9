//! The server as its peers see it: bytes in, bytes out, a simulated clock.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod exchange;
mod hostile;
mod sim;
mod support;
