//! What happens to messages that may go to the disk.

use std::sync::LazyLock;

use fieldgate_mappings::address::DeviceId;

use crate::telemetry::{Counter, Happening, counter};

struct Metrics {
    straight: Counter,
    by_disk: Counter,
    turned: Counter,
    exceeded: Counter,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    straight: counter("outbound_straight", "Messages that may be kept on disk and went straight to the hub"),
    by_disk: counter("outbound_by_disk", "Messages that went to the disk at once"),
    turned: counter("outbound_turned", "Messages that went to the disk because the hub did not take them"),
    exceeded: counter(
        "outbound_exceeded",
        "Messages released because too many were on their way to the disk",
    ),
});

/// A message goes straight to the hub.
pub(super) struct SentStraight;

impl Happening for SentStraight {
    fn emit(self) {
        METRICS.straight.inc();
    }
}

/// A message goes to the disk at once.
pub(super) struct SentByDisk;

impl Happening for SentByDisk {
    fn emit(self) {
        METRICS.by_disk.inc();
    }
}

/// The hub did not take a message: it goes to the disk.
pub(super) struct TurnedToDisk<'a> {
    pub(super) device: &'a DeviceId,
    pub(super) possibly_delivered: bool,
}

impl Happening for TurnedToDisk<'_> {
    fn emit(self) {
        METRICS.turned.inc();
        let Self { device, possibly_delivered } = self;
        tracing::debug!(%device, possibly_delivered, "the hub did not take a message: it goes to the disk");
    }
}

/// Too much is on its way to the disk: a message was released.
pub(super) struct KeptExceeded<'a> {
    pub(super) device: &'a DeviceId,
    pub(super) bytes: usize,
}

impl Happening for KeptExceeded<'_> {
    fn emit(self) {
        METRICS.exceeded.inc();
        let Self { device, bytes } = self;
        tracing::debug!(%device, kept_bytes = bytes, "a message was released: too much is on its way to the disk");
    }
}
