//! The value types of the configuration: durations and sizes with their unit, log levels, secrets.

use std::fmt;
use std::time::Duration;

use fieldgate_mappings::units::{DURATION_HELP, SIZE_HELP};
pub use fieldgate_mappings::units::{parse_duration, parse_size};
use serde::de::{Error as _, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};
use tracing_subscriber::filter::LevelFilter;

/// How much the log says, from nothing to everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing.
    Off,
    /// What needs somebody.
    Error,
    /// What may need somebody.
    Warn,
    /// What an operator likes to know.
    #[default]
    Info,
    /// What a developer likes to know.
    Debug,
    /// Every step.
    Trace,
}

impl Level {
    pub(crate) fn filter(self) -> LevelFilter {
        match self {
            Self::Off => LevelFilter::OFF,
            Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
            Self::Trace => LevelFilter::TRACE,
        }
    }
}

/// A text that is never shown: its `Debug` writes dots.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Takes a text out of sight.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// `#[serde(deserialize_with = "units::duration")]`
pub(super) fn duration<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
    struct Text;
    impl Visitor<'_> for Text {
        type Value = Duration;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(DURATION_HELP)
        }
        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Duration, E> {
            parse_duration(text).map_err(E::custom)
        }
    }
    input.deserialize_str(Text)
}

/// `#[serde(default, deserialize_with = "units::some_duration")]`
pub(super) fn some_duration<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Duration>, D::Error> {
    duration(input).map(Some)
}

/// `#[serde(default, deserialize_with = "units::some_size")]`
pub(super) fn some_size<'de, D: Deserializer<'de>, N: TryFrom<u64>>(input: D) -> Result<Option<N>, D::Error> {
    size(input).map(Some)
}

/// `#[serde(deserialize_with = "units::size")]`, for any width of integer.
pub(super) fn size<'de, D: Deserializer<'de>, N: TryFrom<u64>>(input: D) -> Result<N, D::Error> {
    struct Size;
    impl Visitor<'_> for Size {
        type Value = u64;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(SIZE_HELP)
        }
        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<u64, E> {
            parse_size(text).map_err(E::custom)
        }
        fn visit_i64<E: serde::de::Error>(self, bytes: i64) -> Result<u64, E> {
            u64::try_from(bytes).map_err(|_| E::invalid_value(Unexpected::Signed(bytes), &self))
        }
        fn visit_u64<E: serde::de::Error>(self, bytes: u64) -> Result<u64, E> {
            Ok(bytes)
        }
    }
    let bytes = input.deserialize_any(Size)?;
    N::try_from(bytes)
        .map_err(|_| D::Error::custom(format_args!("{bytes} bytes are more than this setting can hold")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_show_itself() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "Secret(…)");
    }
}
