//! Names that sections give themselves and call each other by.

use std::sync::Arc;

use super::error::{ConfigError, Source, nearest};

/// A name longer than this helps nobody; it stands in logs and metrics.
const MAX_NAME_BYTES: usize = 64;

/// The names of one kind of section, each used once.
pub(super) struct Names<'a> {
    source: &'a Source<'a>,
    section: &'a str,
    taken: Vec<(Arc<str>, String)>,
}

impl<'a> Names<'a> {
    pub(super) fn new(source: &'a Source<'a>, section: &'a str) -> Self {
        Self { source, section, taken: Vec::new() }
    }

    /// The name of `[[section]]` number `at`.
    ///
    /// # Errors
    /// If it is not fit for a name, or another section has it.
    pub(super) fn take(&mut self, at: &str, name: &str) -> Result<Arc<str>, ConfigError> {
        let Self { source, section, taken } = self;
        let wrong = |what: String| source.wrong(&[section, at, "name"], what);
        let legal = |c: char| c.is_alphanumeric() || "-_.:/[] ".contains(c);
        if name.trim().is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(legal) {
            return Err(wrong(format!("`{}` is not fit for a name", name.escape_debug())).with_help(
                format!("letters, digits and `-_.:/`, at most {MAX_NAME_BYTES} bytes, as in \"hub-berlin\""),
            ));
        }
        if let Some((_, first)) = taken.iter().find(|(other, _)| **other == *name) {
            let line = source.line(&[section, first, "name"]);
            return Err(wrong(format!("a second {section} is called `{name}`, as the one of line {line}"))
                .with_help("a name of its own for each"));
        }
        let name: Arc<str> = name.into();
        taken.push((Arc::clone(&name), at.to_owned()));
        Ok(name)
    }
}

/// A reference to a section that is not there.
pub(super) fn unknown<'a>(
    source: &Source<'_>,
    path: &[&str],
    section: &str,
    name: &str,
    known: impl Iterator<Item = &'a str> + Clone,
) -> ConfigError {
    let error = source.wrong(path, format!("there is no {section} called `{name}`"));
    let list = known.clone().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match nearest(name, known) {
        Some(near) => error.with_help(format!("did you mean `{near}`? there are {list}")),
        None if list.is_empty() => error.with_help(format!("write one under [[{section}]]")),
        None => error.with_help(format!("there are {list}")),
    }
}
