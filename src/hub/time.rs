//! The two clocks that the hub is told, and dates as feedback writes them.

use std::fmt;
use std::time::{Duration, Instant};

use fieldgate_mappings::Timestamp;

/// One moment by both clocks: deadlines go by the steady one, stamps and tokens by the wall clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// The steady clock.
    pub(crate) instant: Instant,
    /// The wall clock.
    pub(crate) wall: Timestamp,
}

impl Now {
    /// Seconds since 1970, as tokens count.
    pub(crate) fn unix_seconds(self) -> u64 {
        u64::try_from(self.wall.0 / 1000).unwrap_or(0)
    }

    /// How far in the future `at` lies; nothing if it has passed.
    pub(crate) fn until(self, at: Timestamp) -> Duration {
        Duration::from_millis(u64::try_from(at.0.saturating_sub(self.wall.0)).unwrap_or(0))
    }

    #[cfg(test)]
    pub(crate) fn plus(self, time: Duration) -> Self {
        let milliseconds = i64::try_from(time.as_millis()).unwrap();
        Self { instant: self.instant + time, wall: Timestamp(self.wall.0 + milliseconds) }
    }

    #[cfg(test)]
    pub(crate) fn test() -> Self {
        Self { instant: Instant::now(), wall: Timestamp(1_800_000_000_000) }
    }
}

/// A time as ISO 8601 in UTC with milliseconds: `2026-11-22T09:30:00.000Z`.
pub(crate) struct Iso(pub(crate) Timestamp);

impl fmt::Display for Iso {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DAY: i64 = 86_400_000;
        let (days, milliseconds) = (self.0.0.div_euclid(DAY), self.0.0.rem_euclid(DAY));
        let (year, month, day) = civil(days);
        let (seconds, milliseconds) = (milliseconds / 1000, milliseconds % 1000);
        let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z")
    }
}

/// Year, month and day of a day counted from 1970-01-01, in the proleptic Gregorian calendar. Years are counted
/// from March, so that the leap day is a year's last, and in eras of 400 years, which are all alike.
fn civil(days: i64) -> (i64, i64, i64) {
    const DAYS_PER_ERA: i64 = 146_097;
    let shifted = days + 719_468; // from 0000-03-01
    let (era, day_of_era) = (shifted.div_euclid(DAYS_PER_ERA), shifted.rem_euclid(DAYS_PER_ERA));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year_of_era + carry, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_as_other_calendars_have_them() {
        for (milliseconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_795_339_845_006, "2026-11-22T09:30:45.006Z"),
            (4_102_444_799_000, "2099-12-31T23:59:59.000Z"),
            (1_709_251_199_000, "2024-02-29T23:59:59.000Z"),
        ] {
            assert_eq!(Iso(Timestamp(milliseconds)).to_string(), text);
        }
        // No input overflows: a date of nonsense, but a date.
        for extreme in [i64::MIN, i64::MAX] {
            assert!(Iso(Timestamp(extreme)).to_string().ends_with('Z'));
        }
    }

    #[test]
    fn the_time_until_never_wraps() {
        let now = Now::test();
        assert_eq!(now.until(Timestamp(now.wall.0 + 1500)), Duration::from_millis(1500));
        assert_eq!(now.until(Timestamp(0)), Duration::ZERO);
        assert_eq!(now.until(Timestamp(i64::MIN)), Duration::ZERO);
        assert!(now.until(Timestamp(i64::MAX)) > Duration::from_secs(1 << 40));
        assert_eq!(now.unix_seconds(), 1_800_000_000);
    }
}
