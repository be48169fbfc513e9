//! Percent-encoding (RFC 3986 2.1), one segment at a time.
//!
//! A path is cut at its slashes *before* it is decoded, so `%2F` stays inside its segment and cannot move another.

use std::borrow::Cow;

/// Decodes the escapes of one segment once. `None` for a malformed escape, for what is not UTF-8, and for control
/// characters, behind an escape or not.
pub(crate) fn percent_decode(text: &str) -> Option<Cow<'_, str>> {
    let decoded = if text.contains('%') {
        let mut out = Vec::with_capacity(text.len());
        let mut bytes = text.bytes();
        while let Some(byte) = bytes.next() {
            out.push(match byte {
                b'%' => hex_value(bytes.next()?)? << 4 | hex_value(bytes.next()?)?,
                plain => plain,
            });
        }
        Cow::Owned(String::from_utf8(out).ok()?)
    } else {
        Cow::Borrowed(text)
    };
    if decoded.chars().any(char::is_control) { None } else { Some(decoded) }
}

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_decoded_once() {
        for (text, decoded) in [
            ("", ""),
            ("dev1", "dev1"),
            ("a%2Fb", "a/b"),
            ("a%2fb", "a/b"),
            ("%2541", "%41"),
            ("a+b%2B", "a+b+"),
            ("%C3%A9", "é"),
            ("%E2%82%AC", "€"),
        ] {
            assert_eq!(percent_decode(text).as_deref(), Some(decoded), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_decoded_is_refused() {
        for text in [
            "%",
            "a%4",
            "%zz",
            "%+1",
            "%-1",
            "%C3",
            "%C3%28",
            "%ED%A0%80",
            "%00",
            "a%0Ab",
            "%7F",
            "a\tb",
            "%c2%85",
        ] {
            assert_eq!(percent_decode(text), None, "{text}");
        }
    }
}
