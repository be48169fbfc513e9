//! What CoAP and HTTP have in common: a device asks, the hub is asked, the device is answered once.

use std::time::{Duration, Instant};

use fieldgate_mappings::outcome::{Outcome, Reason};

use crate::telemetry::{Counter, EncodeLabelSet, EncodeLabelValue, LabelValueEncoder, counters};
use crate::upstream::{Hears, Patience};

/// What a device is told to wait before it tries again, where the hub named no time.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(10);

/// How much earlier than the device's answer is due a message stops waiting for the hub. One that was never sent is
/// then answered as released, which says more than that the hub did not answer.
const RELEASE_AHEAD: Duration = Duration::from_millis(1500);

/// How long a message may wait for the hub whose device gets an answer after `answer_time_out` at the latest, if it
/// `listens` for one. Then it waits, and can ask again by itself: an outage is told at once.
pub(super) fn patience(now: Instant, answer_time_out: Duration, listens: bool) -> Patience {
    let ahead = RELEASE_AHEAD.min(answer_time_out / 2);
    Patience {
        until: now + (answer_time_out - ahead),
        through_outage: false,
        in_order: false,
        hears: if listens { Hears::Everything } else { Hears::Nothing },
    }
}

/// How a request ended, as label `outcome="accepted"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Ending {
    /// The hub accepted the message.
    Accepted,
    /// Nobody, or not who it says: nothing was sent.
    Credentials,
    /// The mapping or the hub does not permit it.
    NotPermitted,
    /// No rule, or the hub has no such node.
    NoSuchAddress,
    /// A rule maps the path, but with another method.
    Method,
    /// The hub found it too large.
    TooLarge,
    /// The hub's quota.
    Quota,
    /// The content is wrong.
    Content,
    /// The gateway was to keep it, and has no room.
    Full,
    /// The gateway was to keep it, and its disk failed.
    Disk,
    /// The gateway is full, or stops: nothing was sent.
    Busy,
    /// The hub is away: nothing was sent.
    Released,
    /// The connection to the hub was lost while it had the message.
    Unknown,
    /// The hub did not answer in time.
    TimedOut,
}

impl Ending {
    /// All of them, each at its own number.
    pub(super) const ALL: [Self; 14] = [
        Self::Accepted,
        Self::Credentials,
        Self::NotPermitted,
        Self::NoSuchAddress,
        Self::Method,
        Self::TooLarge,
        Self::Quota,
        Self::Content,
        Self::Full,
        Self::Disk,
        Self::Busy,
        Self::Released,
        Self::Unknown,
        Self::TimedOut,
    ];

    /// The word in labels and logs.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Credentials => "credentials",
            Self::NotPermitted => "not-permitted",
            Self::NoSuchAddress => "no-such-address",
            Self::Method => "method",
            Self::TooLarge => "too-large",
            Self::Quota => "quota",
            Self::Content => "content",
            Self::Full => "full",
            Self::Disk => "disk",
            Self::Busy => "busy",
            Self::Released => "released",
            Self::Unknown => "unknown",
            Self::TimedOut => "timed-out",
        }
    }

    /// Whether the message is lost if nobody sends it again, although nothing was wrong with it.
    pub(super) const fn loses_the_message(self) -> bool {
        matches!(self, Self::Full | Self::Disk | Self::Busy | Self::Released | Self::Unknown | Self::TimedOut)
    }
}

impl From<&Outcome> for Ending {
    fn from(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Accepted => Self::Accepted,
            Outcome::Released => Self::Released,
            Outcome::Unknown => Self::Unknown,
            Outcome::Rejected(rejection) => match rejection.reason {
                Reason::Credentials => Self::Credentials,
                Reason::NotPermitted => Self::NotPermitted,
                Reason::NoSuchAddress => Self::NoSuchAddress,
                Reason::TooLarge => Self::TooLarge,
                Reason::Quota { .. } => Self::Quota,
                Reason::Content => Self::Content,
                Reason::Full { .. } => Self::Full,
                Reason::Disk { .. } => Self::Disk,
            },
        }
    }
}

impl EncodeLabelValue for Ending {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.name().encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByEnding {
    outcome: Ending,
}

/// A counter for each ending; adding to one is an index and an addition.
pub(super) struct Endings([Counter; Ending::ALL.len()]);

impl Endings {
    /// A new family of counters; once for each name.
    pub(super) fn new(name: &str, help: &str) -> Self {
        let family = counters::<ByEnding>(name, help);
        Self(Ending::ALL.map(|outcome| family.get_or_create(&ByEnding { outcome }).clone()))
    }

    /// The counter of one ending.
    pub(super) fn of(&self, ending: Ending) -> &Counter {
        &self.0[ending as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ending_has_a_counter_and_a_word_of_its_own() {
        let endings = Endings::new("requests_test", "Endings of this test");
        for (index, ending) in Ending::ALL.into_iter().enumerate() {
            endings.of(ending).inc_by(index as u64 + 1);
        }
        let text = crate::telemetry::render();
        for (index, ending) in Ending::ALL.into_iter().enumerate() {
            let line =
                format!("fieldgate_requests_test_total{{outcome=\"{}\"}} {}\n", ending.name(), index + 1);
            assert!(text.contains(&line), "{line}");
        }
    }

    #[test]
    fn what_was_never_sent_is_released_before_the_answer_is_due() {
        let now = Instant::now();
        for (time_out, wait) in [(30_000, 28_500), (3_000, 1_500), (1_000, 500), (0, 0)] {
            let patience = patience(now, Duration::from_millis(time_out), true);
            assert_eq!(patience.hears, Hears::Everything);
            assert_eq!(patience.until, now + Duration::from_millis(wait));
            assert!(!patience.through_outage);
        }
    }
}
