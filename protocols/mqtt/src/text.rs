//! Strings of MQTT: UTF-8 without NUL (MQTT 5 1.5.4), topic names and topic filters (MQTT 5 4.7).
//!
//! Only the form is judged here. Who may use a topic, and what it means, is not the wire's business.

use std::{fmt, ops::Deref, str::Utf8Error};

use bytes::Bytes;

/// A UTF-8 string that shares the buffer it was read from.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Text(Bytes);

impl Text {
    /// Wraps bytes that the guard has found to be UTF-8 already.
    pub(crate) fn checked(bytes: Bytes) -> Self {
        debug_assert!(std::str::from_utf8(&bytes).is_ok(), "the guard lets only UTF-8 through");
        Self(bytes)
    }

    /// The string.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("checked when the value was made")
    }

    /// The bytes of the string, still sharing the buffer.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl TryFrom<Bytes> for Text {
    type Error = Utf8Error;

    fn try_from(bytes: Bytes) -> Result<Self, Utf8Error> {
        std::str::from_utf8(&bytes)?;
        Ok(Self(bytes))
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl PartialEq<str> for Text {
    fn eq(&self, other: &str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl PartialEq<&str> for Text {
    fn eq(&self, other: &&str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), formatter)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// Whether a message may be published to `topic`: not empty, no wildcard, no NUL, at most 65,535 bytes
/// (MQTT 5 4.7.1-1, 4.7.3-1 to 4.7.3-3), and no control character, which a server may refuse (1.5.4) and which has
/// no good use in an address or in a line of a log.
pub fn is_topic_name(topic: &str) -> bool {
    let wildcard = topic.bytes().fold(false, |found, byte| found | matches!(byte, b'+' | b'#'));
    !topic.is_empty() && topic.len() <= usize::from(u16::MAX) && !wildcard && !has_control(topic)
}

/// Whether there is a control character of ASCII or of U+0080 to U+009F.
pub(crate) fn has_control(text: &str) -> bool {
    // One pass without an early exit, so that it is done many bytes at a time; hardly any text needs the second.
    let ascii_control = text.bytes().fold(false, |found, byte| found | (byte < 0x20) | (byte == 0x7F));
    ascii_control || (!text.is_ascii() && text.chars().any(char::is_control))
}

/// Whether a client may subscribe to `filter`: `+` fills a whole level, `#` the last one (MQTT 5 4.7.1), and no
/// control character.
pub fn is_topic_filter(filter: &str) -> bool {
    if filter.is_empty() || filter.len() > usize::from(u16::MAX) || has_control(filter) {
        return false;
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        let wild = match level {
            "#" => levels.peek().is_none(),
            "+" => true,
            level => !level.contains(['+', '#']),
        };
        if !wild {
            return false;
        }
    }
    true
}

/// Whether a message with this topic name is what `filter` asks for (MQTT 5 4.7.1, 4.7.2).
pub fn filter_matches(filter: &str, topic: &str) -> bool {
    let mut levels = topic.split('/');
    // MQTT 5 4.7.2-1.
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    for asked in filter.split('/') {
        match (asked, levels.next()) {
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (asked, Some(level)) if asked == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

/// Whether `filter`, if it asks for a shared subscription, has a name for it and a filter (MQTT 5 4.8.2-1, 4.8.2-2).
pub(crate) fn is_shared_filter(filter: &str) -> bool {
    match filter.strip_prefix("$share/") {
        None => true,
        Some(rest) => rest.split_once('/').is_some_and(|(name, filter)| {
            !name.is_empty() && !name.contains(['+', '#']) && is_topic_filter(filter)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topic_names() {
        for good in ["a", "/", "a//b", "$iothub/twin", "é/x", " ", "devices/d1/messages/events/%24.ct=a&b="]
        {
            assert!(is_topic_name(good), "{good}");
        }
        for bad in ["", "+", "a/#", "a+b", "a\0b", "a\nb", "a\x7F", "\u{9f}", &"x".repeat(65_536)] {
            assert!(!is_topic_name(bad), "{bad}");
        }
    }

    #[test]
    fn topic_filters() {
        for good in ["#", "+", "/", "a/+/b", "+/+", "/+", "a/#", "a/b", "$share/g/a/#", "é"] {
            assert!(is_topic_filter(good), "{good}");
        }
        for bad in ["", "a#", "a/#/b", "#/", "a+", "+a/b", "a/b+/c", "a/\0", "a/\u{85}", "##", "++"] {
            assert!(!is_topic_filter(bad), "{bad}");
        }
    }

    #[test]
    fn filters_match_topic_names() {
        // The examples of MQTT 5 4.7.1.2, 4.7.1.3, 4.7.2 and 4.7.3.
        for (filter, topic) in [
            ("sport/tennis/player1/#", "sport/tennis/player1"),
            ("sport/tennis/player1/#", "sport/tennis/player1/ranking"),
            ("sport/#", "sport"),
            ("#", "a/b"),
            ("sport/tennis/+", "sport/tennis/player1"),
            ("sport/+", "sport/"),
            ("+/+", "/finance"),
            ("/+", "/finance"),
            ("$SYS/#", "$SYS/a"),
            ("$SYS/monitor/+", "$SYS/monitor/Clients"),
            ("a//b", "a//b"),
        ] {
            assert!(filter_matches(filter, topic), "{filter} {topic}");
        }
        for (filter, topic) in [
            ("sport/tennis/+", "sport/tennis/player1/ranking"),
            ("sport/+", "sport"),
            ("+", "/finance"),
            ("#", "$SYS/a"),
            ("+/monitor/Clients", "$SYS/monitor/Clients"),
            ("ACCOUNTS", "Accounts"),
            ("/finance", "finance"),
            ("a/b", "a"),
            ("a", "a/b"),
        ] {
            assert!(!filter_matches(filter, topic), "{filter} {topic}");
        }
    }

    #[test]
    fn shared_filters() {
        for good in ["a", "$share", "$share/g/a/#", "$share/g//", "$shared/x"] {
            assert!(is_shared_filter(good), "{good}");
        }
        for bad in ["$share/g", "$share//a", "$share/g/", "$share/+/a", "$share/g#/a"] {
            assert!(!is_shared_filter(bad), "{bad}");
        }
    }

    #[test]
    fn text_is_utf8_only_and_shares_its_buffer() {
        let whole = Bytes::from_static("sm\u{f6}r".as_bytes());
        let text = Text::try_from(whole.slice(0..4)).expect("ends where a character ends");
        assert_eq!(text, "sm\u{f6}");
        assert_eq!(text.clone().into_bytes().as_ptr(), whole.as_ptr());
        assert!(Text::try_from(whole.slice(0..3)).is_err(), "cut inside a character");
    }
}
