//! Durations and sizes as people write them: a whole number with its unit.

use std::time::Duration;

/// What a duration looks like, for messages.
pub const DURATION_HELP: &str = "a duration with its unit, as \"500ms\", \"10s\", \"5m\", \"1h\" or \"2d\"";
/// What a size looks like, for messages.
pub const SIZE_HELP: &str = "a size in bytes, as 65536, \"256KiB\", \"64MiB\" or \"1GiB\"";

/// Reads a duration: a whole number directly followed by `ms`, `s`, `m`, `h` or `d`.
///
/// # Errors
/// A sentence that says what would be right.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not {DURATION_HELP}");
    let (number, unit) = split_number(text).ok_or_else(wrong)?;
    let millis_each = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(millis_each).map(Duration::from_millis).ok_or_else(wrong)
}

/// Reads a size: a whole number, alone or directly followed by `B`, `KiB`, `MiB` or `GiB`.
///
/// # Errors
/// A sentence that says what would be right.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not {SIZE_HELP}");
    let (number, unit) = split_number(text).ok_or_else(wrong)?;
    let bytes_each = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    number.checked_mul(bytes_each).ok_or_else(wrong)
}

/// A duration in the largest unit that gives a whole number.
pub fn duration_text(duration: Duration) -> String {
    let millis = duration.as_millis();
    [(86_400_000_u128, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")]
        .into_iter()
        .find(|(each, _)| millis > 0 && millis.is_multiple_of(*each))
        .map_or_else(|| format!("{millis}ms"), |(each, unit)| format!("{}{unit}", millis / each))
}

/// A size in the largest unit that gives a whole number.
pub fn size_text(bytes: u64) -> String {
    [(1_u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")]
        .into_iter()
        .find(|(each, _)| bytes > 0 && bytes.is_multiple_of(*each))
        .map_or_else(|| format!("{bytes}B"), |(each, unit)| format!("{}{unit}", bytes / each))
}

fn split_number(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_their_unit() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(parse_duration("2 d"), Ok(Duration::from_secs(172_800)));
        for wrong in
            ["", "10", "s", "-1s", "1.5s", "10 parsecs", "99999999999999999999s", "999999999999999999d"]
        {
            assert!(parse_duration(wrong).unwrap_err().contains("10s"), "{wrong}");
        }
    }

    #[test]
    fn sizes_count_in_binary_units() {
        assert_eq!(parse_size("1"), Ok(1));
        assert_eq!(parse_size("256KiB"), Ok(262_144));
        assert_eq!(parse_size("64 MiB"), Ok(67_108_864));
        for wrong in ["", "KiB", "1kb", "1KB", "-1", "99999999999999999999GiB", "17179869184GiB"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_written_can_be_read() {
        for text in ["0ms", "500ms", "10s", "5m", "25h", "2d"] {
            assert_eq!(duration_text(parse_duration(text).unwrap()), text);
        }
        for text in ["0B", "1000B", "256KiB", "64MiB", "3GiB"] {
            assert_eq!(size_text(parse_size(text).unwrap()), text);
        }
    }
}
