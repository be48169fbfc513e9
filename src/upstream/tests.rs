//! The uplink against a scripted hub, in memory and under a simulated clock.

mod attempts;
mod commands;
mod connection;
mod hub;
mod kit;
mod law;
mod pools;
mod sending;
mod sharing;
mod tokens;
