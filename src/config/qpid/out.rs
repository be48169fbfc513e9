//! TOML as it is written, line by line, with the line that each comes from.

use std::fmt::Display;

/// Lines of TOML.
#[derive(Debug, Default)]
pub(super) struct Out {
    pub(super) text: String,
    pub(super) origins: Vec<usize>,
}

/// Where comments begin, as far as the settings leave room.
const COMMENT_COLUMN: usize = 32;

impl Out {
    pub(super) fn line(&mut self, origin: usize, text: &str) {
        self.text.push_str(text);
        self.text.push('\n');
        self.origins.push(origin);
    }

    /// A blank line and a header.
    pub(super) fn section(&mut self, origin: usize, header: &str) {
        self.line(0, "");
        self.line(origin, header);
    }

    /// A number, a word, or whatever needs no quotes.
    pub(super) fn bare(&mut self, origin: usize, key: &str, value: impl Display, comment: &str) {
        let mut setting = format!("{key} = {value}");
        if !comment.is_empty() {
            setting = format!("{setting:COMMENT_COLUMN$}# {comment}");
        }
        self.line(origin, &setting);
    }

    pub(super) fn text(&mut self, origin: usize, key: &str, value: &str, comment: &str) {
        self.bare(origin, key, quoted(value), comment);
    }

    pub(super) fn list<S: AsRef<str>>(&mut self, origin: usize, key: &str, values: &[S], comment: &str) {
        let values: Vec<String> = values.iter().map(|value| quoted(value.as_ref())).collect();
        self.bare(origin, key, format_args!("[{}]", values.join(", ")), comment);
    }

    pub(super) fn append(&mut self, other: &Self) {
        self.text.push_str(&other.text);
        self.origins.extend_from_slice(&other.origins);
    }
}

/// A basic string (TOML 1.0).
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back_as_they_went() {
        for text in ["", "plain", "a\"b\\c", "tab\tbell\u{7}\u{7f}\u{85}", "grün # nicht"] {
            let mut out = Out::default();
            out.text(1, "key", text, "a comment");
            let read: toml::Table = out.text.parse().unwrap();
            assert_eq!(read["key"].as_str(), Some(text));
        }
    }
}
