//! `--trace-frames`: what is said on a connection, on standard error, in the style of Proton's trace.
//!
//! Not a log: it is asked for, has no level, and drops nothing. What may be seen the engine decides.

use std::fmt::{self, Display};
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fieldgate_amqp::connection::Connection;
use fieldgate_amqp::trace::{Line, Trace};

use super::routing::Routing;

/// Writes the frames of one connection.
#[derive(Debug)]
struct Frames {
    /// Of all that this process has had.
    number: u64,
}

impl Trace for Frames {
    fn trace(&self, line: &Line<'_>) {
        write(self.number, line);
    }
}

/// Has the frames of a connection written where the configuration says so; who is at the other end is said once.
pub(super) fn watch(machine: &mut Connection, routing: &Routing, who: impl Display) {
    static NUMBER: AtomicU64 = AtomicU64::new(1);
    if routing.traced {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        write(number, format_args!("{who}"));
        machine.set_trace(Some(Arc::new(Frames { number })));
    }
}

fn write(number: u64, what: impl fmt::Display) {
    // One call for each line, so that those of several threads do not mix. Without a standard error there is no
    // trace, and devices are served all the same.
    let _ = std::io::stderr().write_all(format!("[0x{number:x}]: {what}\n").as_bytes());
}
