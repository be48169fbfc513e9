//! What is wrong with an entry, and how that is said without repeating a secret.

use crate::config::{ConfigError, Source};

use super::pieces::Piece;

/// What is wrong with an entry.
#[derive(Debug)]
pub(super) struct Fault {
    key: &'static str,
    pub(super) what: String,
    help: Option<String>,
    /// What the TOML reader says.
    unreadable: Option<Box<toml::de::Error>>,
}

impl Fault {
    /// At a key of the entry.
    pub(super) fn new(key: &str, what: impl Into<String>, help: impl Into<String>) -> Self {
        // The keys are few, and a fault is the end of the reading.
        let key = KEYS.into_iter().find(|known| *known == key).unwrap_or("id");
        Self { key, what: what.into(), help: Some(help.into()), unreadable: None }
    }

    /// The entry is no TOML, or has other keys.
    pub(super) fn unreadable(error: toml::de::Error) -> Self {
        Self { key: "id", what: String::new(), help: None, unreadable: Some(Box::new(error)) }
    }

    /// With its place in the file.
    pub(super) fn at(self, name: &str, piece: Piece<'_>) -> ConfigError {
        let source = Source { name, text: piece.text };
        let mut error = match &self.unreadable {
            Some(error) => source.unreadable(error),
            None => source.wrong(&["device", "0", self.key], self.what),
        };
        if let Some(help) = self.help {
            error = error.with_help(help);
        }
        if let Some(place) = &mut error.place {
            place.line += piece.line - 1;
        }
        hide(error)
    }
}

/// All keys of an entry.
const KEYS: [&str; 13] = [
    "id",
    "enabled",
    "sas_keys",
    "passwords",
    "certificates",
    "psk",
    "unproven",
    "hub",
    "speaks_with",
    "hub_key",
    "groups",
    "via",
    "attributes",
];

/// Keys whose lines may stand in an error, which ends up in a log.
const SHOWN: [&str; 9] =
    ["id", "enabled", "unproven", "hub", "speaks_with", "groups", "via", "certificates", "version"];

/// A longer line helps nobody.
const MAX_SHOWN_BYTES: usize = 160;

/// Takes the line away unless it is known to hold no secret.
pub(super) fn hide(mut error: ConfigError) -> ConfigError {
    if let Some(place) = &mut error.place {
        place.text = place.text.take().filter(|line| {
            let (key, value) = line.split_once('=').unwrap_or((line, ""));
            let (key, is_plain) = (key.trim(), !value.contains('=') && line.len() <= MAX_SHOWN_BYTES);
            is_plain && (SHOWN.contains(&key) || key.starts_with('['))
        });
    }
    error
}
