//! The text of a mapping file: its structure, and errors that name file, line, column and what would be right.
//!
//! Only the form is read here. What a rule means, and whether rules go together, is [`crate::rules`]'s.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use toml::Spanned;

use crate::delivery::DeliveryText;

/// One mapping file: the name that its errors carry, and its text.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// The file's name, for people.
    pub name: &'a str,
    /// TOML.
    pub text: &'a str,
}

/// The mapping files cannot be used: all that is wrong with them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadError {
    /// Every fault that was found, at least one.
    pub faults: Vec<Fault>,
}

impl fmt::Display for LoadError {
    /// One line for each fault.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.faults.iter().enumerate() {
            f.write_str(if index > 0 { "\n" } else { "" })?;
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for LoadError {}

/// A fault in a mapping file, and where it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct Fault {
    /// Where it is.
    pub place: Place,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// A place in a file. Lines and columns count from 1, columns in characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file's name as the [`Source`] gave it.
    pub file: String,
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

impl Source<'_> {
    /// Tells this text from others that the file had before: its CRC-32.
    pub(crate) fn version(&self) -> String {
        format!("{:08x}", crc32fast::hash(self.text.as_bytes()))
    }

    /// The place of a byte of the text.
    pub(crate) fn place(&self, at: usize) -> Place {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Place {
            file: self.name.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }

    /// An error at `span`.
    pub(crate) fn error(&self, span: Range<usize>, message: impl Into<String>) -> Fault {
        Fault { place: self.place(span.start), message: message.into() }
    }

    /// An error inside a string value: `at` counts from the string's first character.
    pub(crate) fn error_within(&self, value: &Spanned<String>, at: usize, message: &str) -> Fault {
        let quoted = self.text.get(value.span()).unwrap_or_default();
        // With escapes or in a multi-line string the offsets differ; then the whole value is the place.
        let verbatim = quoted.get(1..quoted.len().saturating_sub(1)) == Some(value.get_ref());
        let start = value.span().start + if verbatim { 1 + at } else { 0 };
        self.error(start..value.span().end, format!("{message} in `{}`", value.get_ref()))
    }

    /// Reads the text.
    pub(crate) fn parse(&self) -> Result<FileText, Fault> {
        let text: FileText = toml::from_str(self.text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            Fault { place: self.place(at), message: explain(error.message()) }
        })?;
        match text.version.get_ref() {
            1 => Ok(text),
            other => Err(self.error(text.version.span(), format!("version {other} is not known, only 1 is"))),
        }
    }
}

/// A mapping file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FileText {
    version: Spanned<i64>,
    #[serde(default)]
    pub(crate) rule: Vec<RuleText>,
}

/// `[[rule]]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RuleText {
    pub(crate) name: Spanned<String>,
    pub(crate) direction: Spanned<String>,
    pub(crate) convention: Option<Spanned<String>>,
    /// A pattern for each protocol, or `hub`.
    #[serde(default)]
    pub(crate) from: BTreeMap<Spanned<String>, Spanned<String>>,
    /// `address`, or a table for a protocol.
    #[serde(default)]
    pub(crate) to: BTreeMap<Spanned<String>, Spanned<ToText>>,
    #[serde(default)]
    pub(crate) properties: BTreeMap<Spanned<String>, Spanned<PropertyText>>,
    /// AMQP's standard properties by their names.
    #[serde(default)]
    pub(crate) system: BTreeMap<Spanned<String>, Spanned<String>>,
    pub(crate) device: Option<Spanned<DeviceText>>,
    pub(crate) delivery: Option<Spanned<DeliveryText>>,
}

/// `[rule.device]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeviceText {
    /// `{device}`: there is no other.
    pub(crate) id: Option<Spanned<String>>,
    /// The group of gateways that may act for the device.
    pub(crate) via: Option<Spanned<String>>,
}

/// A value below `to`.
#[derive(Debug)]
pub(crate) enum ToText {
    Address(String),
    Command(CommandText),
}

/// How commands reach a device that takes them by topic.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CommandText {
    pub(crate) topic: Spanned<String>,
    pub(crate) qos: Option<Spanned<u8>>,
}

/// The value of a property.
#[derive(Debug, Clone)]
pub(crate) enum PropertyText {
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
}

impl<'de> Deserialize<'de> for ToText {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ToVisitor;
        impl<'de> Visitor<'de> for ToVisitor {
            type Value = ToText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address as a string, or a table such as { topic = \"…\", qos = 1 }")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ToText, E> {
                Ok(ToText::Address(text.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ToText, A::Error> {
                CommandText::deserialize(MapAccessDeserializer::new(map)).map(ToText::Command)
            }
        }
        deserializer.deserialize_any(ToVisitor)
    }
}

impl<'de> Deserialize<'de> for PropertyText {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PropertyVisitor;
        impl<'de> Visitor<'de> for PropertyVisitor {
            type Value = PropertyText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "a string, an integer, a float or a boolean (tables are not known to this version)",
                )
            }

            fn visit_bool<E>(self, value: bool) -> Result<PropertyText, E> {
                Ok(PropertyText::Bool(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<PropertyText, E> {
                Ok(PropertyText::Integer(value))
            }

            fn visit_f64<E>(self, value: f64) -> Result<PropertyText, E> {
                Ok(PropertyText::Float(value))
            }

            fn visit_str<E>(self, text: &str) -> Result<PropertyText, E> {
                Ok(PropertyText::Text(text.to_owned()))
            }
        }
        deserializer.deserialize_any(PropertyVisitor)
    }
}

/// Keys of the mapping language that this version does not have yet.
const LATER: &[&str] =
    &["match", "payload", "test", "registry", "unmatched", "action", "at_most", "observe", "long_poll"];

/// Turns the reader's message about an unknown key into one that says what would be right; others pass.
fn explain(message: &str) -> String {
    let message = message.trim();
    let mut quoted = message.split('`').skip(1).step_by(2);
    let (true, Some(found)) = (message.starts_with("unknown field"), quoted.next()) else {
        return message.to_owned();
    };
    let known: Vec<&str> = quoted.collect();
    unknown("key", found, &known)
}

/// The sentence about a word that is not known: the nearest one, and all that would be right.
pub(crate) fn unknown(what: &str, found: &str, known: &[&str]) -> String {
    let list = known.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ");
    if LATER.contains(&found) {
        return format!(
            "the {what} `{found}` is not in this version of the mapping language; known here: {list}"
        );
    }
    match nearest(found, known) {
        Some(word) => format!("unknown {what} `{found}`: did you mean `{word}`? Known here: {list}"),
        None => format!("unknown {what} `{found}`; known here: {list}"),
    }
}

/// The word that `found` most likely was meant to be, if one is near enough.
fn nearest<'k>(found: &str, known: &[&'k str]) -> Option<&'k str> {
    let found = found.to_ascii_lowercase();
    known
        .iter()
        .map(|word| (distance(&found, &word.to_ascii_lowercase()), *word))
        .filter(|&(distance, word)| distance <= word.len().div_ceil(3))
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, word)| word)
}

/// Levenshtein's distance. A very long word is compared by its beginning, so that the cost stays bounded.
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().take(64).collect();
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Source { name: "m.toml", text }.parse().unwrap_err().to_string()
    }

    const HEAD: &str = "version = 1\n[[rule]]\nname = \"r\"\ndirection = \"uplink\"\n";

    #[test]
    fn unknown_keys_name_their_place_and_the_nearest_word() {
        for (line, place, part) in [
            ("  propertys = {}", "m.toml:5:3", "unknown key `propertys`: did you mean `properties`?"),
            ("conventoin = \"x\"", "m.toml:5:1", "did you mean `convention`?"),
            ("Name2 = 1", "m.toml:5:1", "did you mean `name`?"),
            ("zzzzzzzz = 1", "m.toml:5:1", "unknown key `zzzzzzzz`; known here: `name`, `direction`"),
            ("to.mqtt = { topik = \"a\" }", "m.toml:5:13", "did you mean `topic`?"),
            ("[rule.match]", "m.toml:5:7", "the key `match` is not in this version"),
            ("[rule.payload]\nencode = \"json\"", "m.toml:5:7", "the key `payload` is not in this version"),
            ("[[rule.test]]", "m.toml:5:8", "the key `test` is not in this version"),
            ("[rule.delivery]\nacks = \"x\"", "m.toml:6:1", "unknown key `acks`: did you mean `ack`?"),
            ("delivery.when_offline = { max_byte = 1 }", "m.toml:5:27", "did you mean `max_bytes`?"),
            ("[unmatched]\naction = \"reject\"", "m.toml:5:2", "the key `unmatched` is not in this version"),
        ] {
            let message = error(&format!("{HEAD}{line}"));
            assert!(message.starts_with(&format!("{place}: ")), "{line}: {message}");
            assert!(message.contains(part), "{line}: {message}");
        }
    }

    #[test]
    fn values_of_the_wrong_kind_are_refused_where_they_stand() {
        for (text, place, part) in [
            ("version = 2", "m.toml:1:11", "version 2 is not known"),
            ("version = \"1\"", "m.toml:1:11", "invalid type: string"),
            ("rule = []", "m.toml:1:1", "missing field `version`"),
            ("version = 1\nrule = 3", "m.toml:2:8", "invalid type: integer"),
            ("version = 1\n[[rule]]\nname = \"r\"", "m.toml:2:1", "missing field `direction`"),
            ("version = 1\n=", "m.toml:2:1", ""),
            ("version = 1\nversion = 1", "m.toml:2:1", "duplicate key"),
        ] {
            let message = error(text);
            assert!(message.starts_with(&format!("{place}: ")), "{text}: {message}");
            assert!(message.contains(part), "{text}: {message}");
        }
        for (line, place, part) in [
            ("properties.x = { pointer = \"/ts\" }", "m.toml:5:16", "tables are not known to this version"),
            ("properties.x = [1]", "m.toml:5:16", "invalid type: sequence"),
            ("to.address = 3", "m.toml:5:14", "an address as a string"),
            ("delivery.priority = \"high\"", "m.toml:5:21", "invalid type: string"),
            ("delivery.when_offline = true", "m.toml:5:25", "invalid type: boolean"),
            ("delivery.when_offline.max_bytes = 1.5", "m.toml:5:35", "a size in bytes, as 65536, \"256KiB\""),
            ("to.mqtt = { qos = 1 }", "m.toml:5:11", "missing field `topic`"),
            ("to.mqtt = { topic = \"x\", qos = 256 }", "m.toml:5:32", "invalid value"),
        ] {
            let message = error(&format!("{HEAD}{line}"));
            assert!(message.starts_with(&format!("{place}: ")), "{line}: {message}");
            assert!(message.contains(part), "{line}: {message}");
        }
    }

    #[test]
    fn columns_count_characters() {
        let source = Source { name: "f", text: "a = \"é€\" # x\nb" };
        let place = source.place(source.text.find('#').unwrap());
        assert_eq!((place.line, place.column), (1, 10));
        let place = source.place(source.text.len());
        assert_eq!((place.line, place.column), (2, 2));
        assert_eq!(source.place(10_000).line, 2);
    }

    #[test]
    fn near_words_are_near() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(nearest("mqqt", &["mqtt", "coap"]), Some("mqtt"));
        assert_eq!(nearest("amqp", &["mqtt", "coap"]), None);
        assert_eq!(nearest(&"x".repeat(100_000), &["mqtt"]), None);
    }
}
