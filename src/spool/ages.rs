//! Whose age the wall clock tells.
//!
//! The clock is somebody else's: it may be years ahead when the machine starts, or be set while the gateway runs. A message
//! that expires by mistake is as lost as one that was forgotten. So these do not expire, whatever the clock says:
//!
//! - what was found at the start, when the newest of it is more than a day old by the clock: until a hub's connection has
//!   opened (NTP had its network then, and TLS has judged the time), or the clock is set back. The same where the clock is
//!   set ahead while the gateway runs, by more than a minute;
//! - what was stored in this run before the clock was set ahead by more than a minute, as long as the gateway runs;
//! - what was stored before anybody had set the clock.
//!
//! A clock that is set back makes nothing older, and is believed.

use std::time::Duration;

use super::keeper::Now;
use super::record::is_set;

/// The longest time that the gateway was off, or had nothing to store, which is believed at once.
const DOUBTED: Duration = Duration::from_secs(86_400);
/// Further ahead the clock does not get by itself between two looks at it.
const STEP: Duration = Duration::from_secs(60);

/// What is known of the wall clock.
#[derive(Clone, Debug)]
pub(super) struct Ages {
    /// The number of the first record of this run.
    first: u64,
    /// Those of this run with lower numbers were stored by a clock that was wrong.
    stepped: u64,
    /// The newest time among what was found at the start, milliseconds since 1970.
    newest_ms: u64,
    /// Nobody knows how old it is.
    doubted: bool,
    last: Now,
}

impl Ages {
    /// After a start: the number that the next record has, and the newest time in the log, 0 if there is none.
    pub(super) fn new(first: u64, newest_ms: u64, now: Now) -> Self {
        let mut ages = Self { first, stepped: 0, newest_ms, doubted: false, last: now };
        ages.doubted = ages.is_far(now);
        ages
    }

    /// How far the clock is from what was found, if that is not believed.
    pub(super) fn doubt(&self) -> Option<Duration> {
        self.doubted.then(|| Duration::from_millis(self.last.unix_ms.saturating_sub(self.newest_ms)))
    }

    /// Compares both clocks; `next` is the number that the next record has. Tells how far the clock was set ahead.
    pub(super) fn look(&mut self, now: Now, next: u64) -> Option<Duration> {
        let passed = now.at.saturating_duration_since(self.last.at);
        let told = Duration::from_millis(now.unix_ms.saturating_sub(self.last.unix_ms));
        self.last = now;
        let ahead = told.saturating_sub(passed);
        if ahead <= STEP {
            self.doubted &= self.is_far(now);
            return None;
        }
        (self.stepped, self.doubted) = (next, self.is_far(now));
        Some(ahead)
    }

    /// A hub's connection has opened.
    pub(super) fn reached(&mut self) {
        self.doubted = false;
    }

    /// Whether the clock tells the age of a record that says that it was stored, or died, then, in seconds since 1970.
    pub(super) fn tells(&self, seq: u64, written: u64) -> bool {
        let believed = if seq < self.first { !self.doubted } else { seq >= self.stepped };
        believed && is_set(written.saturating_mul(1_000))
    }

    fn is_far(&self, now: Now) -> bool {
        self.newest_ms > 0 && u128::from(now.unix_ms.saturating_sub(self.newest_ms)) > DOUBTED.as_millis()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const WRITTEN: u64 = 1_795_379_735_000;

    fn at(unix_ms: u64) -> Now {
        Now { at: Instant::now(), unix_ms }
    }

    #[test]
    fn what_is_contiguous_has_an_age_and_what_is_not_has_none_until_a_hub_was_reached() {
        let day = 86_400_000;
        for (gap, told) in [(0, true), (day, true), (day + 1, false), (3_650 * day, false)] {
            let mut ages = Ages::new(7, WRITTEN, at(WRITTEN + gap));
            assert_eq!((ages.tells(6, WRITTEN / 1_000), ages.tells(7, WRITTEN / 1_000)), (told, true));
            assert_eq!(ages.doubt().is_none(), told);
            ages.reached();
            assert!(ages.tells(6, WRITTEN / 1_000) && !ages.tells(6, 60));
        }
        assert!(Ages::new(1, 0, at(WRITTEN)).doubt().is_none(), "nothing was found");
    }

    #[test]
    fn a_clock_that_is_set_back_is_believed() {
        let now = at(WRITTEN + 100_000_000_000);
        let mut ages = Ages::new(7, WRITTEN, now);
        let back = Now { at: now.at + Duration::from_secs(1), unix_ms: WRITTEN + 5_000 };
        assert_eq!(ages.look(back, 9), None);
        assert!(ages.tells(6, WRITTEN / 1_000) && ages.tells(8, WRITTEN / 1_000));
    }

    #[test]
    fn a_clock_that_is_set_ahead_ages_nothing_of_before() {
        let now = at(WRITTEN);
        let mut ages = Ages::new(7, WRITTEN, now);
        let later =
            |secs, by| Now { at: now.at + Duration::from_secs(secs), unix_ms: WRITTEN + 1_000 * secs + by };
        assert_eq!(ages.look(later(600, 60_000), 9), None, "ten minutes have passed");
        let ahead = ages.look(later(601, 100_000_000_000), 9).unwrap();
        assert_eq!(ahead, Duration::from_millis(100_000_000_000 - 60_000));
        let tells: Vec<_> = (6..10).map(|seq| ages.tells(seq, WRITTEN / 1_000)).collect();
        assert_eq!(tells, [false, false, false, true]);
    }
}
