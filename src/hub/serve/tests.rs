//! The hub and its peers in memory, byte by byte, under a clock that only moves when it is told to.

mod auth;
mod commands;
mod events;
mod hostile;
mod world;
