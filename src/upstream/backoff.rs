//! How long to wait before the hub is tried again: exponential, with full jitter, so that a
//! site full of gateways does not knock in step.

use std::time::Duration;

/// The shortest ceiling of a wait.
const FIRST: Duration = Duration::from_millis(500);
/// A connection that was up for so long was a success; one that a hub takes and soon closes was not.
const STEADY: Duration = Duration::from_secs(10);

/// Grows with each failure up to a ceiling, and starts anew after a success.
#[derive(Debug)]
pub(crate) struct Backoff {
    failures: u32,
    last: Duration,
}

impl Backoff {
    /// Waits that grow up to `last`.
    pub(crate) fn new(last: Duration) -> Self {
        Self { failures: 0, last }
    }

    /// The hub answered: the next failure starts from the beginning.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// The connection that is lost now did its work for so long.
    pub(crate) fn was_up(&mut self, time: Duration) {
        if time >= STEADY.min(self.last) {
            self.reset();
        }
    }

    /// The wait after one more failure; `random` is uniform over all of `u64`.
    ///
    /// Half of the ceiling is fixed, so that no wait is close to none at all.
    pub(crate) fn next(&mut self, random: u64) -> Duration {
        let ceiling = FIRST.saturating_mul(1 << self.failures.min(16)).min(self.last);
        self.failures = self.failures.saturating_add(1);
        let fixed = ceiling / 2;
        let spread = u64::try_from(fixed.as_millis()).unwrap_or(u64::MAX).max(1);
        fixed + Duration::from_millis(random % spread)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAST: Duration = Duration::from_secs(30);

    #[test]
    fn grows_to_a_ceiling_and_starts_anew() {
        let mut backoff = Backoff::new(LAST);
        let waits: Vec<_> = (0..12).map(|_| backoff.next(u64::MAX)).collect();
        assert!(waits[0] >= FIRST / 2 && waits[0] < FIRST);
        assert!(waits.windows(2).all(|pair| pair[0] <= pair[1] + LAST / 2));
        assert!(waits.iter().all(|wait| *wait <= LAST));
        assert!(waits[11] >= LAST / 2);
        backoff.reset();
        assert!(backoff.next(0) == FIRST / 2);
    }

    #[test]
    fn a_hub_that_opens_and_soon_closes_is_not_knocked_at_all_the_time() {
        let attempts = |up: Duration| {
            let (mut backoff, mut at, mut attempts) = (Backoff::new(LAST), Duration::ZERO, 0);
            while at < Duration::from_secs(600) {
                backoff.was_up(up);
                at += up + backoff.next(0);
                attempts += 1;
            }
            attempts
        };
        assert!(attempts(Duration::ZERO) <= 45, "{}", attempts(Duration::ZERO));
        assert!(attempts(Duration::from_secs(3)) <= 40);
        // After a time of work the hub is tried at once.
        assert!(attempts(STEADY) >= 58);
        // Who wants short pauses gets them.
        let mut short = Backoff::new(Duration::from_secs(1));
        let _ = [short.next(0), short.next(0), short.next(0)];
        short.was_up(Duration::from_secs(1));
        assert_eq!(short.next(0), FIRST / 2);
    }
}
