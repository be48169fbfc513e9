//! What happens to messages on their way out.

use std::sync::LazyLock;

use fieldgate_mappings::address::DeviceId;

use crate::spool::Refusal;
use crate::telemetry::{
    Counter, EncodeLabelSet, EncodeLabelValue, Family, Happening, LabelValueEncoder, counter, counters,
};

/// Why a message goes to the disk, as label `because="hub-away"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Because {
    /// Its rule says so.
    OnStore,
    /// The hub is away, or the gateway stops.
    HubAway,
    /// Older messages of its device are there.
    Behind,
    /// The hub did not take it.
    Released,
    /// Nobody knows whether the hub took it.
    Unknown,
}

impl Because {
    const ALL: [Self; 5] = [Self::OnStore, Self::HubAway, Self::Behind, Self::Released, Self::Unknown];

    fn name(self) -> &'static str {
        match self {
            Self::OnStore => "on-store",
            Self::HubAway => "hub-away",
            Self::Behind => "behind",
            Self::Released => "released",
            Self::Unknown => "unknown",
        }
    }
}

impl EncodeLabelValue for Because {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.name().encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByBecause {
    because: Because,
}

/// A word for a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Name(&'static str);

impl EncodeLabelValue for Name {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: Name,
}

struct Metrics {
    stored: [Counter; Because::ALL.len()],
    refused: Family<ByReason, Counter>,
    exceeded: Counter,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    let stored =
        counters::<ByBecause>("outbound_to_disk", "Messages that went the way over the disk, and why");
    Metrics {
        stored: Because::ALL.map(|because| stored.get_or_create(&ByBecause { because }).clone()),
        refused: counters(
            "outbound_disk_refused",
            "Messages that the disk did not take, each time it was asked",
        ),
        exceeded: counter(
            "outbound_kept_exceeded",
            "Messages released because too many were without an outcome",
        ),
    }
});

/// The counter of messages that go to the disk for this reason.
pub(super) fn stored_because(because: Because) -> &'static Counter {
    &METRICS.stored[because as usize]
}

/// The disk did not take a message.
pub(super) struct StoreRefused<'a> {
    pub(super) device: &'a DeviceId,
    pub(super) refusal: Refusal,
    /// It waits for room; otherwise its device is told, if it can be.
    pub(super) again: bool,
}

impl Happening for StoreRefused<'_> {
    fn emit(self) {
        let Self { device, refusal, again } = self;
        let reason = match refusal {
            Refusal::Full { .. } => "full",
            Refusal::Failed { .. } => "disk",
            Refusal::TooLarge => "too-large",
        };
        METRICS.refused.get_or_create(&ByReason { reason: Name(reason) }).inc();
        tracing::debug!(%device, reason, again, "the disk did not take a message");
    }
}

/// Too much is kept in memory: a message was released.
pub(super) struct KeptExceeded {
    pub(super) bytes: usize,
}

impl Happening for KeptExceeded {
    fn emit(self) {
        METRICS.exceeded.inc();
        tracing::warn!(bytes = self.bytes, "a message was released: too many are without an outcome");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_the_disk_has_a_counter_of_its_own() {
        for (index, because) in Because::ALL.into_iter().enumerate() {
            assert_eq!(because as usize, index);
        }
    }
}
