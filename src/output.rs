//! Writing to a person, or to the next program in a pipe.

use std::io::{self, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

/// Writes a line to standard output, at once: whoever waits for it may be a program.
///
/// # Errors
/// When nobody reads any more.
pub(crate) fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(line.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Writes a line to standard error: what is about the work and not its result.
pub(crate) fn complain(line: &str) {
    // Without a standard error there is nobody to tell that there is none.
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// A text from elsewhere, made harmless for a terminal: control characters are shown, not obeyed.
pub(crate) fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => shown.push_str("\\n"),
            '\t' => shown.push_str("\\t"),
            // Besides the controls, those that turn the direction of writing around.
            c if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {
                shown.extend(c.escape_unicode());
            }
            c => shown.push(c),
        }
    }
    shown
}

/// Milliseconds since 1970.
pub(crate) fn unix_millis() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_told_nothing() {
        assert_eq!(harmless("21 °C\n\tok"), "21 °C\\n\\tok");
        assert_eq!(harmless("\u{1b}[2Jgone\u{202e}"), "\\u{1b}[2Jgone\\u{202e}");
    }
}
