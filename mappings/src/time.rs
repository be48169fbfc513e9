//! Points in time as text: ISO 8601 as RFC 3339 profiles it, in UTC, to and from AMQP's milliseconds.

use crate::message::Timestamp;

const MILLIS_PER_DAY: i64 = 86_400_000;

/// Reads `2026-11-22T20:35:35.123Z`, with `±hh:mm` or nothing (meaning UTC) in place of the `Z`, a space in place of
/// the `T`, any number of fraction digits (those beyond milliseconds are cut off), or digits alone: milliseconds since
/// 1970, as some SDKs send it.
pub(crate) fn parse(text: &str) -> Option<Timestamp> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse().ok().map(Timestamp);
    }
    let bytes = text.as_bytes();
    let separated = |at: usize, allowed: &[u8]| bytes.get(at).is_some_and(|byte| allowed.contains(byte));
    if !(separated(4, b"-")
        && separated(7, b"-")
        && separated(10, b"Tt ")
        && separated(13, b":")
        && separated(16, b":"))
    {
        return None;
    }
    let year = digits(bytes.get(0..4)?)?;
    let month = digits(bytes.get(5..7)?)?;
    let day = digits(bytes.get(8..10)?)?;
    let hour = digits(bytes.get(11..13)?)?;
    let minute = digits(bytes.get(14..16)?)?;
    let second = digits(bytes.get(17..19)?)?;
    // A leap second (60) counts as the second after it, as POSIX time does.
    if !(1..=12).contains(&month)
        || day < 1
        || day > days_in_month(year, month)
        || hour > 23
        || minute > 59
        || second > 60
    {
        return None;
    }
    let mut rest = &bytes[19..];
    let mut millis = 0;
    if let [b'.' | b',', fraction @ ..] = rest {
        let length = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if length == 0 {
            return None;
        }
        let thousandths = fraction[..length].iter().chain(b"000").take(3);
        millis = thousandths.fold(0, |number, digit| number * 10 + i64::from(digit - b'0'));
        rest = &fraction[length..];
    }
    let offset_minutes = match rest {
        [] | [b'Z' | b'z'] => 0,
        [sign @ (b'+' | b'-'), hours @ .., b':', tens, ones] if hours.len() == 2 => {
            offset(*sign, hours, &[*tens, *ones])?
        }
        [sign @ (b'+' | b'-'), zone @ ..] if zone.len() == 4 => offset(*sign, &zone[..2], &zone[2..])?,
        _ => return None,
    };
    let days = days_from_civil(year, month, day);
    let seconds = hour * 3600 + (minute - offset_minutes) * 60 + second;
    Some(Timestamp(days * MILLIS_PER_DAY + seconds * 1000 + millis))
}

/// Writes `2026-11-22T20:35:35.123Z`. Years beyond four digits carry a sign (ISO 8601 4.1.2.4).
pub(crate) fn format(time: Timestamp) -> String {
    let (year, month, day) = civil_from_days(time.0.div_euclid(MILLIS_PER_DAY));
    let millis = time.0.rem_euclid(MILLIS_PER_DAY);
    let (hour, minute) = (millis / 3_600_000, millis / 60_000 % 60);
    let (second, millis) = (millis / 1000 % 60, millis % 1000);
    let year = if (0..=9999).contains(&year) { format!("{year:04}") } else { format!("{year:+07}") };
    format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

fn digits(text: &[u8]) -> Option<i64> {
    text.iter()
        .try_fold(0, |number, byte| byte.is_ascii_digit().then(|| number * 10 + i64::from(byte - b'0')))
}

fn offset(sign: u8, hours: &[u8], minutes: &[u8]) -> Option<i64> {
    let (hours, minutes) = (digits(hours)?, digits(minutes)?);
    let total = (hours <= 23 && minutes <= 59).then_some(hours * 60 + minutes)?;
    Some(if sign == b'-' { -total } else { total })
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar. Years begin in March here, so that the leap day is the
/// last of its year; 719,468 days lie between 0000-03-01 and 1970-01-01, 146,097 in 400 years.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_that_sdks_send_are_read() {
        for (text, millis) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2026-11-22T20:35:35Z", 1_795_379_735_000),
            ("2026-11-22T20:35:35.5Z", 1_795_379_735_500),
            ("2026-11-22T20:35:35.123456", 1_795_379_735_123),
            ("2026-11-22T20:35:35.123999+00:00", 1_795_379_735_123),
            ("2026-11-22 22:35:35+02:00", 1_795_379_735_000),
            ("2026-11-22T15:05:35-0530", 1_795_379_735_000),
            ("2024-02-29T23:59:60Z", 1_709_251_200_000),
            ("1969-12-31T23:59:59.999Z", -1),
            ("0000-03-01T00:00:00Z", -62_162_035_200_000),
            ("1795379735123", 1_795_379_735_123),
        ] {
            assert_eq!(parse(text), Some(Timestamp(millis)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "now",
            "2026-11-22",
            "2026-13-22T20:35:35Z",
            "2026-00-22T20:35:35Z",
            "2025-02-29T00:00:00Z",
            "2026-11-31T00:00:00Z",
            "2026-11-00T00:00:00Z",
            "2026-11-22T24:00:00Z",
            "2026-11-22T20:60:00Z",
            "2026-11-22T20:35:61Z",
            "2026-11-22T20:35:35.Z",
            "2026-11-22T20:35:35+2:00",
            "2026-11-22T20:35:35+24:00",
            "2026-11-22T20:35:35ZZ",
            "2026-11-22T20:35:3é",
            "11/22/2026 20:35:35",
            "-1",
            "99999999999999999999",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn every_day_of_four_centuries_survives_a_round_trip() {
        for day in -100_000..50_000 {
            let time = Timestamp(day * MILLIS_PER_DAY + 86_399_999);
            let text = format(time);
            assert_eq!(parse(&text), Some(time), "{text}");
        }
    }

    #[test]
    fn the_ends_of_time_can_be_written() {
        assert_eq!(format(Timestamp(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(format(Timestamp(i64::MAX)), "+292278994-08-17T07:12:55.807Z");
        assert_eq!(format(Timestamp(i64::MIN)), "-292275055-05-16T16:47:04.192Z");
    }
}
