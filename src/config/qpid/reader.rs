//! The form of a Qpid Dispatch configuration: sections, their keys and values, and where each stands.
//!
//! ```text
//! listener {            # a comment
//!     host: 0.0.0.0
//! }
//! linkRoute { prefix: $cbs/  direction: in }
//! ["listener", { "host": "0.0.0.0", "port": 5672 }],
//! ```
//!
//! On one line or many, in any spelling (`sslProfile`, `ssl-profile`), and as JSON. What the words mean is not known here,
//! but for one thing: a `#` in an address pattern is no comment.

use std::ops::Range;

use crate::config::error::{ConfigError, Source};

/// `name { … }`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Section {
    /// As it is written.
    pub(super) name: String,
    /// From 1.
    pub(super) line: usize,
    pub(super) entries: Vec<Entry>,
}

/// `key: value`
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// As it is written.
    pub(super) key: String,
    /// Without the blanks around it; nothing for a nested map.
    pub(super) value: Option<String>,
    /// From 1.
    pub(super) line: usize,
}

/// A name in the one form in which all spellings are alike.
pub(super) fn plain(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, '-' | '_')).flat_map(char::to_lowercase).collect()
}

/// Whether a text is of this form, and not TOML: its first word is followed by a brace.
pub(in crate::config) fn is_qpid(text: &str) -> bool {
    let mut reader = Reader::new(text);
    reader.skip(|c| c == '[');
    match reader.name() {
        Ok(Some(_)) => {
            reader.skip(|c| c == ',');
            reader.peek() == Some('{')
        }
        _ => false,
    }
}

/// The sections in their order.
///
/// # Errors
/// Where the form is broken, and what would be right.
pub(super) fn read(source: &Source<'_>, keys: &[&str]) -> Result<Vec<Section>, ConfigError> {
    let mut reader = Reader::new(source.text);
    reader.sections(keys).map_err(|fault| {
        let error = source.at(fault.span, fault.what);
        error.with_help(fault.help)
    })
}

/// What is wrong, and where.
struct Fault {
    span: Range<usize>,
    what: String,
    help: &'static str,
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    line: usize,
}

const SECTION_FORM: &str = "a section is a name and braces, as in `listener { port: 5672 }`";
const ENTRY_FORM: &str = "a setting is a name, a colon and a value, as in `port: 5672`; `}` ends the section";

/// Maps deeper than this are nobody's configuration.
const MAX_DEPTH: usize = 32;

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Self {
        Self { text: text.strip_prefix('\u{feff}').unwrap_or(text), at: 0, line: 1 }
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        self.line += usize::from(next == '\n');
        Some(next)
    }

    fn fault<T>(&self, from: usize, what: impl Into<String>, help: &'static str) -> Result<T, Fault> {
        Err(Fault { span: from..self.at.max(from + 1), what: what.into(), help })
    }

    /// Passes blanks, comments, and what else means nothing here.
    fn skip(&mut self, noise: impl Fn(char) -> bool) {
        while let Some(c) = self.peek() {
            if c == '#' {
                self.skip_line();
            } else if c.is_whitespace() || noise(c) {
                self.next();
            } else {
                return;
            }
        }
    }

    fn skip_line(&mut self) {
        self.at += self.rest().find('\n').unwrap_or(self.rest().len());
    }

    fn sections(&mut self, keys: &[&str]) -> Result<Vec<Section>, Fault> {
        let mut sections = Vec::new();
        loop {
            self.skip(|c| matches!(c, '[' | ']' | ','));
            let (from, line) = (self.at, self.line);
            let Some(name) = self.name()? else {
                return match self.next() {
                    None => Ok(sections),
                    Some('}') => self.fault(from, "a brace that nothing opened", SECTION_FORM),
                    Some(_) => self.fault(from, "here should be the name of a section", SECTION_FORM),
                };
            };
            self.skip(|c| c == ',');
            if self.peek() != Some('{') {
                self.at = from + name.len();
                return self.fault(from, format!("`{name}` is followed by no brace"), SECTION_FORM);
            }
            self.next();
            let entries = self.entries(from, &name, keys)?;
            sections.push(Section { name, line, entries });
        }
    }

    fn entries(&mut self, opened: usize, name: &str, keys: &[&str]) -> Result<Vec<Entry>, Fault> {
        let mut entries = Vec::new();
        loop {
            self.skip(|c| c == ',');
            let (from, line) = (self.at, self.line);
            let quoted = self.peek() == Some('"');
            let Some(key) = self.name()? else {
                return match self.next() {
                    Some('}') => Ok(entries),
                    Some(_) => self.fault(from, "here should be the name of a setting", ENTRY_FORM),
                    None => {
                        self.at = opened + name.len();
                        self.fault(opened, format!("the section `{name}` does not end"), "`}` ends it")
                    }
                };
            };
            self.blanks();
            if self.peek() != Some(':') {
                self.at = self.at.max(from + key.len());
                return self.fault(from, format!("`{key}` has no colon and no value"), ENTRY_FORM);
            }
            self.next();
            self.blanks();
            let value = match self.peek() {
                Some('{') => {
                    self.skip_map()?;
                    None
                }
                Some('"') => Some(self.string()?),
                _ if quoted => Some(self.json_word()),
                _ => Some(self.value(&plain(&key), keys)),
            };
            if value.as_deref() == Some("") && !quoted {
                return self.fault(from, format!("`{key}` has no value"), ENTRY_FORM);
            }
            entries.push(Entry { key, value, line });
        }
    }

    /// Blanks, but not the line's end: a value stands beside its key.
    fn blanks(&mut self) {
        while self.peek().is_some_and(|c| c.is_whitespace() && c != '\n') {
            self.next();
        }
    }

    /// A word, or a string in quotes; nothing if something else stands here.
    fn name(&mut self) -> Result<Option<String>, Fault> {
        if self.peek() == Some('"') {
            return self.string().map(Some);
        }
        let word = word(self.rest());
        self.at += word.len();
        Ok(Some(word.to_owned()).filter(|word| !word.is_empty()))
    }

    fn string(&mut self) -> Result<String, Fault> {
        let from = self.at;
        self.next();
        let mut text = String::new();
        loop {
            match self.next() {
                Some('"') => return Ok(text),
                Some('\\') => match self.next() {
                    Some('n') => text.push('\n'),
                    Some('t') => text.push('\t'),
                    Some(c @ ('"' | '\\' | '/')) => text.push(c),
                    _ => return self.fault(from, "an escape that is not read here", "\\\" \\\\ \\/ \\n \\t"),
                },
                Some('\n') | None => {
                    return self.fault(from, "a text that does not end on its line", "`\"` ends it");
                }
                Some(c) => text.push(c),
            }
        }
    }

    /// A number or word of JSON.
    fn json_word(&mut self) -> String {
        let rest = self.rest();
        let end = rest.find([',', '}', ']', '\n', '#']).unwrap_or(rest.len());
        self.at += end;
        rest[..end].trim().to_owned()
    }

    /// A value without quotes: up to the line's end, a comment, the section's end, or the next key.
    fn value(&mut self, key: &str, keys: &[&str]) -> String {
        let line = self.rest().lines().next().unwrap_or_default();
        let pattern = matches!(key, "pattern" | "bindingkey" | "hostname");
        let mut end = line.len();
        let mut before = ' ';
        for (at, c) in line.char_indices() {
            let after = &line[at + c.len_utf8()..];
            let ends = match c {
                '#' => !pattern || before == ' ' && at > 0,
                '}' => before.is_whitespace() || after.is_empty() || after.starts_with(char::is_whitespace),
                _ => at > 0 && before.is_whitespace() && begins_entry(&line[at..], keys),
            };
            if ends {
                end = at;
                break;
            }
            before = c;
        }
        self.at += end;
        line[..end].trim().to_owned()
    }

    /// A map inside a section, whose content nobody asks for.
    fn skip_map(&mut self) -> Result<(), Fault> {
        let from = self.at;
        let mut depth = 0;
        while let Some(c) = self.peek() {
            match c {
                '"' => {
                    self.string()?;
                    continue;
                }
                '#' => self.skip_line(),
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            self.next();
            if depth == 0 {
                return Ok(());
            }
            if depth > MAX_DEPTH {
                return self.fault(from, "a map nested too deeply", "32 levels at most");
            }
        }
        self.at = from + 1;
        self.fault(from, "a map that does not end", "`}` ends it")
    }
}

fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_' | '.' | '$'));
    &text[..end.unwrap_or(text.len())]
}

/// Whether a new setting begins here, rather than the value going on: a word with its colon, and a blank behind it
/// unless the word is known.
fn begins_entry(text: &str, keys: &[&str]) -> bool {
    let word = word(text);
    let Some(after) = text[word.len()..].trim_start_matches([' ', '\t']).strip_prefix(':') else {
        return false;
    };
    !word.is_empty()
        && (after.is_empty() || after.starts_with([' ', '\t', '\r']) || keys.contains(&&*plain(word)))
}
