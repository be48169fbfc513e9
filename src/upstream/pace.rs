//! The rate that a hub is sent messages at, all workers together: a token bucket as one number.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How much of a second's messages may go at once.
const BURST: Duration = Duration::from_millis(100);

/// The bucket. Shared by all who send to the hub.
#[derive(Debug)]
pub(crate) struct Pace {
    started: Instant,
    /// Nanoseconds between two messages.
    interval: u64,
    /// How far ahead of its time a message may go, in nanoseconds.
    burst: u64,
    /// When the next message would be due if all went at even intervals, in nanoseconds since the start.
    due: AtomicU64,
}

impl Pace {
    /// A full bucket.
    pub(crate) fn new(per_second: NonZeroU32, now: Instant) -> Self {
        let interval = 1_000_000_000 / u64::from(per_second.get());
        // One message at least, or nothing would ever go.
        let burst = u64::try_from(BURST.as_nanos()).unwrap_or(u64::MAX).max(interval) - interval;
        Self { started: now, interval, burst, due: AtomicU64::new(0) }
    }

    fn at(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.started).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Takes the right to send one message now.
    pub(crate) fn take(&self, now: Instant) -> bool {
        let now = self.at(now);
        let next = |due: u64| (due <= now + self.burst).then(|| due.max(now) + self.interval);
        self.due.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }

    /// When the next message may go; nothing where one may go now.
    pub(crate) fn next(&self, now: Instant) -> Option<Instant> {
        let open = self.due.load(Ordering::Relaxed).saturating_sub(self.burst);
        (open > self.at(now)).then(|| self.started + Duration::from_nanos(open))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_go_in_a_second_and_no_more() {
        for per_second in [1, 7, 50, 10_000] {
            let start = Instant::now();
            let pace = Pace::new(NonZeroU32::new(per_second).unwrap(), start);
            let mut now = start;
            let mut sent = 0;
            while now < start + Duration::from_secs(10) {
                while pace.take(now) {
                    sent += 1;
                }
                now = pace.next(now).expect("nothing more may go now");
            }
            let (least, most) = (10 * per_second, 10 * per_second + per_second / 10 + 1);
            assert!((least..=most).contains(&sent), "{sent} at {per_second} a second");
        }
    }

    #[test]
    fn what_was_not_used_is_not_saved_up() {
        let start = Instant::now();
        let pace = Pace::new(NonZeroU32::new(100).unwrap(), start);
        let later = start + Duration::from_secs(3_600);
        let burst = (0..1_000).filter(|_| pace.take(later)).count();
        assert_eq!(burst, 10);
        assert_eq!(pace.next(start + Duration::from_secs(4_000)), None);
    }
}
