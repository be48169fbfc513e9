//! What is wrong with a configuration: where it stands, and what would be right.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

/// A configuration that cannot be used. Its `Display` is meant for a person: place, fault, line, help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The file, or a word for where the text came from.
    pub source: String,
    /// Line and column (from 1) and the line itself; absent where the fault has no place in a file.
    pub place: Option<Place>,
    /// What is wrong.
    pub what: String,
    /// What would be right.
    pub help: Option<String>,
}

/// A place in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// Characters that are wrong; at least 1.
    pub width: usize,
    /// The whole line; absent where it may hold a key or a password, for errors end up in logs.
    pub text: Option<String>,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        if let Some(place) = &self.place {
            write!(f, ":{}:{}", place.line, place.column)?;
        }
        write!(f, ": {}", self.what)?;
        if let Some(Place { line, column, width, text: Some(text) }) = &self.place {
            let gutter = line.to_string().len();
            let before: String =
                text.chars().take(column - 1).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
            write!(f, "\n  {line} | {text}\n  {:gutter$} | {before}{}", "", "^".repeat(*width))?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n  help: {help}")?;
        }
        Ok(())
    }
}

impl ConfigError {
    /// A fault without a place in a file.
    #[must_use]
    pub fn new(source: impl Into<String>, what: impl Into<String>) -> Self {
        Self { source: source.into(), place: None, what: what.into(), help: None }
    }

    /// Adds what would be right.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

/// The text of a configuration file with its name, from which errors take their places.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) name: &'a str,
    pub(crate) text: &'a str,
}

impl Source<'_> {
    /// Turns what the TOML reader says into our form, with the nearest name for a key that does not exist.
    pub(crate) fn unreadable(&self, error: &toml::de::Error) -> ConfigError {
        let span = error.span();
        let message = error.message();
        let (what, help) = if let Some((unknown, known)) = unknown_name(message) {
            let (what, list) = self.describe_unknown(&unknown, &known, span.as_ref(), message);
            (what, Some(list))
        } else {
            (in_words(message), None)
        };
        ConfigError { source: self.name.into(), place: span.map(|span| self.place(span)), what, help }
    }

    fn describe_unknown(
        &self,
        unknown: &str,
        known: &[String],
        span: Option<&Range<usize>>,
        message: &str,
    ) -> (String, String) {
        let section = span.and_then(|span| self.section_at(span.start));
        let (kind, place) = match (&section, message.starts_with("unknown variant")) {
            (_, true) => ("value", String::new()),
            (Some(section), false) => ("key", format!(" in [{section}]")),
            (None, false) if self.is_header(span) => ("section", String::new()),
            (None, false) => ("key", " outside of any section".into()),
        };
        let kind = if kind == "key" && self.is_header(span) { "section" } else { kind };
        let list = known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let help = match nearest(unknown, known.iter().map(String::as_str)) {
            Some(near) => format!("did you mean `{near}`? possible are {list}"),
            None => format!("possible are {list}"),
        };
        let place = if kind == "section" { String::new() } else { place };
        (format!("unknown {kind} `{unknown}`{place}"), help)
    }

    fn is_header(&self, span: Option<&Range<usize>>) -> bool {
        span.is_some_and(|span| self.line_of(span.start).trim_start().starts_with('['))
    }

    fn line_of(&self, offset: usize) -> &str {
        let (start, end) = self.line_bounds(offset);
        &self.text[start..end]
    }

    fn line_bounds(&self, offset: usize) -> (usize, usize) {
        let offset = self.text.floor_char_boundary(offset);
        let start = self.text[..offset].rfind('\n').map_or(0, |at| at + 1);
        let end = self.text[offset..].find('\n').map_or(self.text.len(), |at| offset + at);
        (start, end)
    }

    /// The `[section]` whose header stands last before this place.
    fn section_at(&self, offset: usize) -> Option<&str> {
        let (start, _) = self.line_bounds(offset);
        self.text[..start]
            .lines()
            .rev()
            .find_map(|line| line.trim().strip_prefix('[')?.trim_start_matches('[').split(']').next())
    }

    fn place(&self, span: Range<usize>) -> Place {
        let (start, end) = self.line_bounds(span.start);
        let from = self.text.floor_char_boundary(span.start);
        let to = self.text.floor_char_boundary(span.end).clamp(from, end.max(from));
        Place {
            line: self.text[..start].matches('\n').count() + 1,
            column: self.text[start..from].chars().count() + 1,
            width: self.text[from..to].chars().count().max(1),
            text: Some(self.text[start..end].trim_end())
                .filter(|line| !may_hold_secret(line))
                .map(str::to_owned),
        }
    }

    /// A fault at this place.
    pub(super) fn at(&self, span: Range<usize>, what: impl Into<String>) -> ConfigError {
        ConfigError { source: self.name.into(), place: Some(self.place(span)), what: what.into(), help: None }
    }

    /// A fault on this line (from 1), wherever on it.
    pub(super) fn on_line(&self, line: usize, what: impl Into<String>) -> ConfigError {
        let start: usize = self.text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
        let text = self.line_of(start);
        let from = start + text.len() - text.trim_start().len();
        self.at(from..from.max(start + text.trim_end().len()), what)
    }

    /// A fault in the value at this path, for what only shows when the whole is looked at.
    pub(crate) fn wrong(&self, path: &[&str], what: impl Into<String>) -> ConfigError {
        let place = self.find(path).map(|span| self.place(span));
        ConfigError { source: self.name.into(), place, what: what.into(), help: None }
    }

    /// The line (from 1) in which the value at this path stands; 0 if nothing of it is written.
    pub(super) fn line(&self, path: &[&str]) -> usize {
        self.find(path).map_or(0, |span| self.place(span).line)
    }

    /// Where the value at this path stands; if it is not written, where the nearest table above it stands.
    fn find(&self, path: &[&str]) -> Option<Range<usize>> {
        let root = DeTable::parse(self.text).ok()?;
        let (first, rest) = path.split_first()?;
        let (key, mut value) = root.get_ref().get_key_value(*first)?;
        let mut span = if rest.is_empty() { value.span() } else { key.span() };
        for (at, step) in rest.iter().enumerate() {
            let next = match value.get_ref() {
                DeValue::Table(table) => table.get_key_value(*step).map(|(key, value)| (Some(key), value)),
                DeValue::Array(list) => {
                    step.parse().ok().and_then(|index: usize| list.get(index)).map(|value| (None, value))
                }
                _ => None,
            };
            let Some((key, inner)) = next else { break };
            let last = at + 1 == rest.len();
            span = match key {
                Some(key) if !last => key.span(),
                _ => inner.span(),
            };
            value = inner;
        }
        Some(span)
    }
}

pub(super) fn may_hold_secret(line: &str) -> bool {
    let setting = line.trim_start();
    ["connection_string", "url"].iter().any(|key| setting.starts_with(key))
        || ["SharedAccess", "://", "assword"].iter().any(|mark| line.contains(mark))
}

/// The reader's message as one sentence, in words that do not presume that its reader writes Rust.
fn in_words(message: &str) -> String {
    const WORDS: [(&str, &str); 8] = [
        ("a nonzero u8", "a whole number from 1 to 255"),
        ("a nonzero u16", "a whole number from 1 to 65535"),
        ("a nonzero u32", "a whole number from 1 to 4294967295"),
        ("a nonzero usize", "a whole number from 1 on"),
        ("expected usize", "expected a whole number from 0 on"),
        ("wanted string or table", "expected a word in quotes"),
        ("invalid type: ", "wrong kind of value: "),
        ("invalid value: ", "wrong value: "),
    ];
    let lines: Vec<&str> = message.split('\n').map(str::trim).filter(|line| !line.is_empty()).collect();
    let mut words = lines.join(", ");
    if let Some(at) = words.find("expected struct ") {
        words.replace_range(at.., "expected a section with keys");
    }
    WORDS.iter().fold(words, |words, (jargon, plain)| words.replace(jargon, plain))
}

/// Takes serde's "unknown field `x`, expected one of `a`, `b`" apart.
fn unknown_name(message: &str) -> Option<(String, Vec<String>)> {
    if !message.starts_with("unknown field `") && !message.starts_with("unknown variant `") {
        return None;
    }
    let mut names = message.split('`').skip(1).step_by(2).map(str::to_owned);
    Some((names.next()?, names.collect()))
}

/// The name that differs least, if it differs little enough to be meant.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let bound = (name.chars().count() / 3).max(1) + 1;
    known
        .into_iter()
        .map(|candidate| (edit_distance(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= bound)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions and replacements that turn one name into the other (Levenshtein).
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// The name of a file in messages.
pub(super) fn name_of(path: &Path) -> String {
    path.display().to_string()
}

/// A path as it is written in a file, seen from the directory that holds the file.
pub(super) fn beside(base: Option<&Path>, path: &Path) -> PathBuf {
    base.map_or_else(|| path.to_path_buf(), |base| base.join(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_near() {
        let known = ["listen", "allow_anonymous", "max_connections"];
        assert_eq!(nearest("lisen", known), Some("listen"));
        assert_eq!(nearest("allow-anonymous", known), Some("allow_anonymous"));
        assert_eq!(nearest("max_connection", known), Some("max_connections"));
        assert_eq!(nearest("colour", known), None);
        assert_eq!(nearest("", known), None);
    }

    #[test]
    fn distances() {
        for (a, b, distance) in
            [("", "", 0), ("a", "", 1), ("", "ab", 2), ("kitten", "sitting", 3), ("ab", "ba", 2)]
        {
            assert_eq!(edit_distance(a, b), distance, "{a} {b}");
        }
    }

    #[test]
    fn a_place_counts_characters_and_points_at_them() {
        let source = Source { name: "x.toml", text: "[log]\nlevel = \"ä\" # ö\nlast = 1" };
        let error = source.wrong(&["log", "level"], "no");
        let place = error.place.clone().unwrap();
        assert_eq!((place.line, place.column, place.width), (2, 9, 3));
        assert_eq!(error.to_string(), "x.toml:2:9: no\n  2 | level = \"ä\" # ö\n    |         ^^^");
    }

    #[test]
    fn what_is_not_written_is_placed_at_its_table_or_nowhere() {
        let source = Source { name: "x.toml", text: "\n[log]\n" };
        assert_eq!(source.wrong(&["log", "level"], "no").place.unwrap().line, 2);
        assert_eq!(source.wrong(&["mqtt", "listen"], "no").place, None);
    }

    #[test]
    fn a_span_at_the_very_end_has_a_place() {
        let source = Source { name: "x", text: "ä" };
        assert_eq!(source.place(9..12).line, 1);
        assert_eq!(source.place(1..1).column, 1);
    }
}
