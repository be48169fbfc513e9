//! Percent-encoding as tokens, addresses and user names use it (RFC 3986 2.1): strict in reading, and with
//! every reserved character encoded in writing. A plus sign is a plus sign, never a space.

/// `text` with everything but RFC 3986's unreserved characters as upper-case escapes.
#[must_use]
pub fn encode(text: &str) -> String {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let mut encoded = String::with_capacity(text.len() + text.len() / 4);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            encoded.push(char::from(DIGITS[usize::from(byte >> 4)]));
            encoded.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
    }
    encoded
}

/// `text` with its escapes resolved, once. `None` when an escape is cut short or not hexadecimal, or when
/// what comes out is not UTF-8.
#[must_use]
pub fn decode(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let high = char::from(bytes.next()?).to_digit(16)?;
            let low = char::from(bytes.next()?).to_digit(16)?;
            decoded.push(u8::try_from(high << 4 | low).expect("two hexadecimal digits make one byte"));
        } else {
            decoded.push(byte);
        }
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_text_comes_back() {
        for text in ["", "a/b c", "%2F", "pump-1_~.", "ünï", "a+b=&?#\u{0}"] {
            assert_eq!(decode(&encode(text)).as_deref(), Some(text));
        }
        assert_eq!(encode("a/b+%"), "a%2Fb%2B%25");
    }

    #[test]
    fn reading_is_strict() {
        assert_eq!(decode("a%2fb%2Fc+").as_deref(), Some("a/b/c+"));
        assert_eq!(decode("%252F").as_deref(), Some("%2F"), "once, not twice");
        for bad in ["%", "%2", "%zz", "%+1", "%ff", "a%C3"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }
}
