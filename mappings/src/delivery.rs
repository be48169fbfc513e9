//! How the messages of a rule are delivered: when their device hears that they are, how urgent they are, what is done
//! with them while the hub is away, and with those that it refuses.
//!
//! A rule without a `[rule.delivery]` section has no [`Delivery`] at all: its messages cost nothing for it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{self, Visitor};
use toml::Spanned;

use crate::file::{Fault, RuleText, Source, unknown};
use crate::units::{SIZE_HELP, duration_text, parse_duration, parse_size, size_text};

/// AMQP's normal priority (1.0 3.2.1).
pub const NORMAL_PRIORITY: u8 = 4;
/// AMQP's highest priority.
const MAX_PRIORITY: u8 = 9;

/// What a rule's `[rule.delivery]` says. All messages of the rule share it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The rule, for people: ``file:line `name` @1a2b3c4d``, with the CRC-32 of the file's text as it was.
    pub rule: Arc<str>,
    /// When the device hears that its message is delivered.
    pub ack: Ack,
    /// How urgent it is: 0 to 9, 4 is normal (AMQP 1.0 3.2.1).
    pub priority: u8,
    /// How it waits on the disk; absent, the device waits instead.
    pub when_offline: Option<WhenOffline>,
    /// What becomes of one that the hub refuses.
    pub on_error: OnError,
}

/// When a device hears that its message is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ack {
    /// When the hub has accepted it; with [`Delivery::when_offline`] also when the disk has it and the hub is away.
    #[default]
    OnHubAccept,
    /// When the disk has it: every message goes that way.
    OnStore,
}

/// How messages wait on the disk. What is left out is the configuration's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WhenOffline {
    /// How much of one device may wait, in bytes.
    pub max_bytes: Option<u64>,
    /// How long a message may wait.
    pub max_age: Option<Duration>,
    /// What gives way when there is no room.
    pub full: WhenFull,
}

/// What gives way when a device has no room left on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WhenFull {
    /// The new message: the device is told to come again.
    #[default]
    RefuseNew,
    /// The oldest ones of the device, which become dead letters.
    DeadLetterOldest,
}

/// What becomes of a message that the hub refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnError {
    /// The device is told.
    #[default]
    Reject,
    /// It becomes a dead letter, and the device is told that it is delivered.
    DeadLetter,
}

impl Delivery {
    /// What a rule without the section means, as its [`Display`](fmt::Display) would say it.
    pub const USUAL: &str = "acknowledged when the hub accepts";

    /// Whether messages can wait on the disk.
    pub fn spools(&self) -> bool {
        self.ack == Ack::OnStore || self.when_offline.is_some()
    }

    /// Whether every message goes over the disk.
    pub fn stores_at_once(&self) -> bool {
        self.ack == Ack::OnStore
    }

    /// Whether the disk may get something of the rule's messages.
    pub fn needs_disk(&self) -> bool {
        self.spools() || self.on_error == OnError::DeadLetter
    }

    /// What `on_error` comes to: what the disk has is acknowledged, and cannot be refused any more.
    fn refused_becomes_dead_letter(&self) -> bool {
        self.on_error == OnError::DeadLetter || self.ack == Ack::OnStore
    }
}

impl fmt::Display for Delivery {
    /// One sentence for people who check their rules.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.ack {
            Ack::OnHubAccept => Self::USUAL,
            Ack::OnStore => "acknowledged when the disk has it",
        })?;
        if self.priority != NORMAL_PRIORITY {
            write!(f, ", priority {}", self.priority)?;
        }
        if self.spools() {
            let WhenOffline { max_bytes, max_age, full } = self.when_offline.unwrap_or_default();
            f.write_str(match self.ack {
                Ack::OnHubAccept => "; kept on disk while the hub is away",
                Ack::OnStore => "; kept until the hub accepts",
            })?;
            if let Some(bytes) = max_bytes {
                write!(f, ", at most {} for a device", size_text(bytes))?;
            }
            if let Some(age) = max_age {
                write!(f, ", for {} at most", duration_text(age))?;
            }
            f.write_str(match full {
                WhenFull::RefuseNew => ", refused when full",
                WhenFull::DeadLetterOldest => ", the oldest become dead letters when full",
            })?;
        }
        if self.refused_becomes_dead_letter() {
            f.write_str("; a dead letter if the hub refuses it")?;
        }
        Ok(())
    }
}

/// `[rule.delivery]`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DeliveryText {
    ack: Option<Spanned<String>>,
    priority: Option<Spanned<i64>>,
    when_offline: Option<Spanned<WhenOfflineText>>,
    on_error: Option<Spanned<String>>,
}

/// `when_offline`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WhenOfflineText {
    max_bytes: Option<Spanned<SizeText>>,
    max_age: Option<Spanned<String>>,
    full: Option<Spanned<String>>,
}

/// A size: a number of bytes, or a text with its unit.
#[derive(Debug)]
struct SizeText(String);

impl<'de> Deserialize<'de> for SizeText {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeVisitor;
        impl Visitor<'_> for SizeVisitor {
            type Value = SizeText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(SIZE_HELP)
            }

            fn visit_str<E>(self, text: &str) -> Result<SizeText, E> {
                Ok(SizeText(text.to_owned()))
            }

            fn visit_i64<E>(self, bytes: i64) -> Result<SizeText, E> {
                Ok(SizeText(bytes.to_string()))
            }
        }
        deserializer.deserialize_any(SizeVisitor)
    }
}

const ACKS: [(&str, Ack); 2] = [("on-hub-accept", Ack::OnHubAccept), ("on-store", Ack::OnStore)];
const FULLS: [(&str, WhenFull); 2] =
    [("refuse-new", WhenFull::RefuseNew), ("dead-letter-oldest", WhenFull::DeadLetterOldest)];
const ON_ERRORS: [(&str, OnError); 2] = [("reject", OnError::Reject), ("dead-letter", OnError::DeadLetter)];

/// Reads a rule's section, where it has one.
pub(crate) fn delivery(source: &Source<'_>, rule: &RuleText) -> Result<Option<Arc<Delivery>>, Fault> {
    let Some(section) = &rule.delivery else { return Ok(None) };
    let text = section.get_ref();
    let ack = text.ack.as_ref().map(|ack| word(source, "ack", ack, &ACKS)).transpose()?;
    let on_error =
        text.on_error.as_ref().map(|what| word(source, "on_error", what, &ON_ERRORS)).transpose()?;
    if let (Some(Ack::OnStore), Some(OnError::Reject), Some(written)) = (ack, on_error, &text.on_error) {
        let message = "with `ack = \"on-store\"` the device has its answer before the hub refuses: \
                       write `on_error = \"dead-letter\"`, or leave it out";
        return Err(source.error(written.span(), message));
    }
    let place = source.place(rule.name.span().start);
    Ok(Some(Arc::new(Delivery {
        rule: format!("{}:{} `{}` @{}", place.file, place.line, rule.name.get_ref(), source.version()).into(),
        ack: ack.unwrap_or_default(),
        priority: priority(source, text)?,
        when_offline: text.when_offline.as_ref().map(|text| when_offline(source, text)).transpose()?,
        on_error: on_error.unwrap_or_default(),
    })))
}

fn word<T: Copy>(
    source: &Source<'_>,
    key: &str,
    written: &Spanned<String>,
    known: &[(&str, T)],
) -> Result<T, Fault> {
    let found = known.iter().find(|(word, _)| word == written.get_ref());
    found.map(|(_, meaning)| *meaning).ok_or_else(|| {
        let known: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
        source.error(written.span(), unknown(&format!("`{key}`"), written.get_ref(), &known))
    })
}

fn priority(source: &Source<'_>, text: &DeliveryText) -> Result<u8, Fault> {
    let Some(written) = &text.priority else { return Ok(NORMAL_PRIORITY) };
    u8::try_from(*written.get_ref()).ok().filter(|priority| *priority <= MAX_PRIORITY).ok_or_else(|| {
        let message = format!(
            "the priority {} is not AMQP's: 0 (least) to {MAX_PRIORITY} (most), {NORMAL_PRIORITY} is normal",
            written.get_ref()
        );
        source.error(written.span(), message)
    })
}

fn when_offline(source: &Source<'_>, text: &Spanned<WhenOfflineText>) -> Result<WhenOffline, Fault> {
    let WhenOfflineText { max_bytes, max_age, full } = text.get_ref();
    let max_bytes = max_bytes.as_ref().map(|written| match parse_size(&written.get_ref().0) {
        Ok(0) => Err(source.error(
            written.span(),
            "nothing can wait in 0 bytes: write more, or leave `when_offline` out to let the device wait",
        )),
        Ok(bytes) => Ok(bytes),
        Err(message) => Err(source.error(written.span(), message)),
    });
    let max_age = max_age.as_ref().map(|written| match parse_duration(written.get_ref()) {
        Ok(Duration::ZERO) => Err(source.error(
            written.span(),
            "nothing can wait no time: write more, or leave `when_offline` out to let the device wait",
        )),
        Ok(age) => Ok(age),
        Err(message) => Err(source.error(written.span(), message)),
    });
    Ok(WhenOffline {
        max_bytes: max_bytes.transpose()?,
        max_age: max_age.transpose()?,
        full: full.as_ref().map(|full| word(source, "full", full, &FULLS)).transpose()?.unwrap_or_default(),
    })
}

/// Refuses the section where it means nothing.
pub(crate) fn refuse(source: &Source<'_>, rule: &RuleText) -> Result<(), Fault> {
    match &rule.delivery {
        Some(section) => Err(source.error(
            section.span(),
            "`delivery` is about messages to the hub: a downlink rule has none, an uplink rule has",
        )),
        None => Ok(()),
    }
}
