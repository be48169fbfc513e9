//! The settings of a section, taken one by one; what nobody took is left for a remark.

use super::Remark;
use super::reader::{Entry, Section, plain};
use crate::config::error::{ConfigError, Source, nearest};

/// A section whose settings are looked at.
pub(super) struct Fields<'a> {
    pub(super) line: usize,
    source: &'a Source<'a>,
    section: &'a Section,
    taken: Vec<bool>,
}

/// A value and where it stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Value<'a> {
    pub(super) key: &'a str,
    pub(super) text: &'a str,
    pub(super) line: usize,
}

impl<'a> Fields<'a> {
    pub(super) fn new(source: &'a Source<'a>, section: &'a Section) -> Self {
        Self { line: section.line, source, section, taken: vec![false; section.entries.len()] }
    }

    /// The setting by any of its names (in plain form); of several the last, as in JSON.
    pub(super) fn take(&mut self, names: &[&str]) -> Option<Value<'a>> {
        let mut found = None;
        for (entry, taken) in self.section.entries.iter().zip(&mut self.taken) {
            if names.contains(&&*plain(&entry.key)) {
                *taken = true;
                found = entry.value.as_deref().map(|text| Value { key: &entry.key, text, line: entry.line });
            }
        }
        found.filter(|value| !value.text.is_empty() && value.text != "None" && value.text != "null")
    }

    /// yes or no.
    pub(super) fn flag(&mut self, names: &[&str]) -> Result<Option<(bool, usize)>, ConfigError> {
        let Some(value) = self.take(names) else { return Ok(None) };
        let flag = match value.text.to_ascii_lowercase().as_str() {
            "yes" | "true" | "on" | "1" => true,
            "no" | "false" | "off" | "0" => false,
            _ => return Err(self.wrong(value, "is neither yes nor no").with_help("`yes` or `no`")),
        };
        Ok(Some((flag, value.line)))
    }

    /// A whole number.
    pub(super) fn number(&mut self, names: &[&str]) -> Result<Option<(u64, Value<'a>)>, ConfigError> {
        let Some(value) = self.take(names) else { return Ok(None) };
        match value.text.parse() {
            Ok(number) => Ok(Some((number, value))),
            Err(_) => Err(self.wrong(value, "is not a number").with_help("a whole number, from 0 on")),
        }
    }

    /// A port, or the name of one.
    pub(super) fn port(&mut self) -> Result<Option<(u16, usize)>, ConfigError> {
        let Some(value) = self.take(&["port"]) else { return Ok(None) };
        let port = match value.text {
            "amqp" => 5672,
            "amqps" => 5671,
            number => number.parse().map_err(|_| {
                self.wrong(value, "is not a port").with_help("a number from 1 to 65535, `amqp` or `amqps`")
            })?,
        };
        Ok(Some((port, value.line)))
    }

    pub(super) fn wrong(&self, value: Value<'_>, what: &str) -> ConfigError {
        let shown = if value.key.to_ascii_lowercase().contains("password") { "…" } else { value.text };
        self.source.on_line(value.line, format!("`{}` of `{}` {what}", shown.escape_debug(), value.key))
    }

    /// Settings of these names are known, and nothing is lost without them.
    pub(super) fn ignore(&mut self, names: &[&str]) {
        self.take(names);
    }

    /// Settings of these names are known and have no like here.
    pub(super) fn refuse(&mut self, names: &[&str], why: &str, remarks: &mut Vec<Remark>) {
        for (entry, taken) in self.section.entries.iter().zip(&mut self.taken) {
            if names.contains(&&*plain(&entry.key)) {
                *taken = true;
                remarks.push(Remark {
                    line: entry.line,
                    what: format!("`{}` is not carried over: {why}", entry.key),
                });
            }
        }
    }

    /// What nobody took; `keys` are the names that somebody knows.
    pub(super) fn finish(self, keys: &[&str], remarks: &mut Vec<Remark>) {
        let left = self.section.entries.iter().zip(&self.taken).filter(|(_, taken)| !**taken);
        remarks.extend(left.map(|(Entry { key, line, .. }, _)| {
            let name = plain(key);
            let guess = match nearest(&name, keys.iter().copied()).filter(|near| *near != name) {
                Some(near) => format!("; was `{near}` meant?"),
                None => String::new(),
            };
            let what =
                format!("`{key}` is not carried over: it means nothing in `{}`{guess}", self.section.name);
            Remark { line: *line, what }
        }));
    }
}
