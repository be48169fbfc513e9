//! A bound on how fast the log grows: what strangers can cause at any rate, they can write into the log at that rate.
//!
//! Not sampling: every place in the program has lines to spare for all that happens in order. What is left out is
//! counted, and the metric of the happening counts it as always.

use std::collections::HashMap;
use std::io::Write as _;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Filter};

use super::{Counter, counter};

/// Lines that one place in the program may write in a [`WINDOW`].
const LINES: u32 = 100;
const WINDOW: Duration = Duration::from_secs(1);

static LEFT_OUT: LazyLock<Counter> = LazyLock::new(|| {
    counter("log_lines_left_out", "Log lines left out because too many of the kind came at once")
});

/// Lets so many lines of each place through, and none of what is more. Debug and trace are not bounded: whoever
/// switches them on wants all.
#[derive(Debug)]
pub(super) struct Limit {
    /// Bounded by the places in the program.
    places: Mutex<HashMap<Identifier, Place>>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    since: Instant,
    written: u32,
    left_out: u64,
}

impl Limit {
    /// Nothing was written yet.
    pub(super) fn new() -> Self {
        LazyLock::force(&LEFT_OUT);
        Self { places: Mutex::default() }
    }
}

impl Place {
    /// Whether one more line is written now, and how many were left out before it in the window that has ended.
    fn admit(&mut self, now: Instant) -> (bool, u64) {
        let mut untold = 0;
        if now.saturating_duration_since(self.since) >= WINDOW {
            untold = self.left_out;
            *self = Self { since: now, written: 0, left_out: 0 };
        }
        let admitted = self.written < LINES;
        if admitted {
            self.written += 1;
        } else {
            self.left_out += 1;
        }
        (admitted, untold)
    }
}

impl<S: Subscriber> Filter<S> for Limit {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::INFO {
            return true;
        }
        let now = Instant::now();
        let fresh = Place { since: now, written: 0, left_out: 0 };
        // A place is a handful of numbers: a panic elsewhere leaves nothing half done.
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let (admitted, untold) = places.entry(metadata.callsite()).or_insert(fresh).admit(now);
        drop(places);
        if !admitted {
            LEFT_OUT.inc();
        }
        if untold > 0 {
            // Not an event: this is asked in the middle of one. A log that cannot be written has no better place to say so.
            let target = metadata.target();
            let _ = writeln!(std::io::stderr(), "({untold} lines of {target} like the next were left out)");
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_has_lines_to_spare_but_not_without_end() {
        let start = Instant::now();
        let mut place = Place { since: start, written: 0, left_out: 0 };
        let mut written = |at: Duration, lines: u32| {
            let all: Vec<_> = (0..lines).map(|_| place.admit(start + at)).collect();
            (
                all.iter().filter(|(admitted, _)| *admitted).count(),
                all.iter().map(|(_, untold)| untold).sum::<u64>(),
            )
        };
        let most = LINES as usize;
        assert_eq!(written(Duration::ZERO, LINES), (most, 0));
        assert_eq!(written(WINDOW / 2, 30), (0, 0));
        assert_eq!(written(WINDOW, LINES + 1), (most, 30));
        assert_eq!(written(WINDOW * 2, 1), (1, 1));
        assert_eq!(written(WINDOW * 9, 1), (1, 0));
    }
}
