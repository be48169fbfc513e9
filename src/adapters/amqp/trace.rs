//! `--trace-frames`: what is said on a connection, on standard error.

use std::fmt::Display;

use fieldgate_amqp::connection::Connection;

use super::routing::Routing;

/// Has the frames of a connection written, under this name, where the configuration says so.
pub(super) fn watch(_machine: &mut Connection, _routing: &Routing, _name: impl Display) {}
