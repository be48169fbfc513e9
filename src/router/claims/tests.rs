//! The `$cbs` node and the client of one, each against an engine that plays the other side, and against each other.

mod client;
mod kit;
mod node;
