//! A configuration of Qpid Dispatch Router, read and written anew as one of ours.
//!
//! Link routing is carried over: listeners, TLS profiles, connectors, link routes. What a message router does besides
//! is not, and each line that is left behind is named with the reason.

mod out;
mod reader;
mod translate;
mod values;

use std::fmt;
use std::path::Path;

use super::error::{ConfigError, Place, Source, may_hold_secret};

pub(super) use reader::is_qpid;

/// A configuration that was written for another program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// Ours (TOML), with a short comment where a value means something else than it says.
    pub text: String,
    /// What was not carried over, or means something else here.
    pub remarks: Vec<Remark>,
    /// For each line of `text`, the line that it comes from; 0 where it comes from none.
    origins: Vec<usize>,
}

/// Something that a person should know about a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remark {
    /// Where it stands, from 1.
    pub line: usize,
    /// What is not as it was, and why.
    pub what: String,
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

impl Import {
    /// Translates a file of Qpid Dispatch. Its paths are seen from `base`; without it, from wherever the translation is.
    ///
    /// # Errors
    /// Where its form is broken, or names something that is not there, and what would be right.
    pub(super) fn read(source: &Source<'_>, base: Option<&Path>) -> Result<Self, ConfigError> {
        let sections = reader::read(source, translate::KEYS)?;
        translate::translate(source, &sections, base)
    }

    /// A fault in [`text`](Self::text) as a fault of the line that it comes from.
    pub(super) fn trace_back(&self, source: &Source<'_>, error: ConfigError) -> ConfigError {
        let origin =
            error.place.as_ref().and_then(|place| self.origins.get(place.line - 1)).copied().unwrap_or(0);
        let line = origin.checked_sub(1).and_then(|index| source.text.lines().nth(index));
        let place = line.map(|text| {
            let trimmed = text.trim_start();
            Place {
                line: origin,
                column: text.chars().count() - trimmed.chars().count() + 1,
                width: trimmed.trim_end().chars().count().max(1),
                text: Some(text.trim_end().to_owned()).filter(|line| !may_hold_secret(line)),
            }
        });
        ConfigError { source: source.name.into(), place, ..error }
    }
}

#[cfg(test)]
mod tests;
