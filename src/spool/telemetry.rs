//! What happens in the spool.

use std::fmt::Display;
use std::sync::LazyLock;
use std::time::Duration;

use fieldgate_mappings::address::DeviceId;

use crate::telemetry::{
    Counter, EncodeLabelSet, EncodeLabelValue, Family, Gauge, Happening, Histogram, LabelValueEncoder,
    counter, counters, gauge, histogram,
};

use super::record::DeadReason;

struct Metrics {
    records: Gauge,
    bytes: Gauge,
    devices: Gauge,
    in_flight: Gauge,
    oldest: Gauge,
    disk_bytes: Gauge,
    disk_full: Gauge,
    dead_letters: Gauge,
    dead_letter_bytes: Gauge,
    appended: Counter,
    drained: Counter,
    resent: Counter,
    elsewhere: Counter,
    died: Family<ByDeath, Counter>,
    dead_letters_dropped: Counter,
    dead_letters_forgone: Counter,
    refused: Family<ByRefusal, Counter>,
    damaged: Counter,
    commits: Counter,
    commit_errors: Counter,
    commit_seconds: Histogram,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    records: gauge("spool_records", "Messages that the spool holds"),
    bytes: gauge("spool_bytes", "Their bytes on the disk"),
    devices: gauge("spool_devices", "Devices that the spool holds messages of"),
    in_flight: gauge("spool_in_flight", "Messages of the spool that were sent and have no outcome"),
    oldest: gauge("spool_oldest_seconds", "Age of the oldest message that is the first of its queue"),
    disk_bytes: gauge("spool_disk_bytes", "Bytes that the spool's files take"),
    disk_full: gauge(
        "spool_disk_full",
        "1 while the disk, or the bound of the spool's files, has no room for messages",
    ),
    dead_letters: gauge("spool_dead_letters", "Dead letters that are kept"),
    dead_letter_bytes: gauge("spool_dead_letter_bytes", "Their bytes on the disk"),
    appended: counter("spool_appended", "Messages that were stored"),
    drained: counter("spool_drained", "Messages of the spool that the hub accepted"),
    elsewhere: counter(
        "spool_held_for_former_hub",
        "Times that a message was not sent because its device belongs to another hub than it was stored for",
    ),
    resent: counter(
        "spool_resent",
        "Messages of the spool that were sent with the mark of a possible repeat",
    ),
    died: counters("spool_died", "Messages that became dead letters"),
    dead_letters_dropped: counter("spool_dead_letters_dropped", "Dead letters that were too many or too old"),
    dead_letters_forgone: counter(
        "spool_dead_letters_forgone",
        "Messages that were refused or too old and went without a dead letter, for want of room",
    ),
    refused: counters("spool_refused", "Messages that were not stored"),
    damaged: counter("spool_damaged", "Damaged spots of the spool's files"),
    commits: counter("spool_commits", "Writes of the spool with their sync"),
    commit_errors: counter("spool_commit_errors", "Writes or syncs of the spool that failed"),
    commit_seconds: histogram(
        "spool_commit_seconds",
        "How long a write with its sync took",
        &[0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2.0],
    ),
});

/// A label set: why messages died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByDeath {
    reason: DeadReason,
}

/// A label set: why messages were not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRefusal {
    by: RefusedBy,
}

impl EncodeLabelValue for DeadReason {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        EncodeLabelValue::encode(&self.name(), encoder)
    }
}

/// Why a message was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum RefusedBy {
    /// Its device, or all together, have as much as they may have.
    Bounds,
    /// The log's files take as much as they may.
    Full,
    /// The disk has no room.
    DiskFull,
    /// The disk failed, or has failed just now.
    Failing,
    /// It fits no segment.
    TooLarge,
}

impl RefusedBy {
    fn name(self) -> &'static str {
        match self {
            Self::Bounds => "bounds",
            Self::Full => "full",
            Self::DiskFull => "disk-full",
            Self::Failing => "failing",
            Self::TooLarge => "too-large",
        }
    }
}

impl EncodeLabelValue for RefusedBy {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        EncodeLabelValue::encode(&self.name(), encoder)
    }
}

/// The spool is there.
pub(super) struct SpoolOpened {
    pub(super) records: u64,
    pub(super) dead_letters: usize,
    pub(super) devices: usize,
    pub(super) torn: bool,
    pub(super) took: Duration,
}

impl Happening for SpoolOpened {
    fn emit(self) {
        let Self { records, dead_letters, devices, torn, took } = self;
        let took_ms = took.as_millis();
        tracing::info!(records, devices, dead_letters, torn, took_ms, "the spool is open");
    }
}

/// Something in the log is damaged; what it held is lost, and nothing else.
pub(super) struct RecordsDamaged<'a> {
    pub(super) spots: u64,
    /// As far as it is known.
    pub(super) lost: u64,
    pub(super) what: &'a dyn Display,
}

impl Happening for RecordsDamaged<'_> {
    fn emit(self) {
        let Self { spots, lost, what } = self;
        METRICS.damaged.inc_by(spots);
        tracing::error!(spots, lost, %what, "the spool's files are damaged; copies of what is damaged are in its quarantine");
    }
}

/// A record cannot be read just now.
pub(super) struct ReadFailed<'a> {
    pub(super) error: &'a dyn Display,
}

impl Happening for ReadFailed<'_> {
    fn emit(self) {
        tracing::warn!(error = %self.error, "the spool cannot read a message; it will try again");
    }
}

/// Messages were written and synced.
pub(super) struct BatchCommitted {
    pub(super) messages: usize,
    pub(super) took: Duration,
}

impl Happening for BatchCommitted {
    fn emit(self) {
        let Self { messages, took } = self;
        METRICS.commits.inc();
        METRICS.appended.inc_by(messages as u64);
        METRICS.commit_seconds.observe(took.as_secs_f64());
        tracing::trace!(messages, took_us = took.as_micros(), "committed");
    }
}

/// A write or its sync failed: nothing of the batch counts.
pub(super) struct CommitFailed<'a> {
    pub(super) records: usize,
    pub(super) error: &'a dyn Display,
}

impl Happening for CommitFailed<'_> {
    fn emit(self) {
        let Self { records, error } = self;
        METRICS.commit_errors.inc();
        tracing::error!(records, %error, "the spool's disk failed; devices are told to come again");
    }
}

/// The disk works again.
pub(super) struct DiskRecovered;

impl Happening for DiskRecovered {
    fn emit(self) {
        tracing::info!("the spool's disk works again");
    }
}

/// By the clock, what is on the disk is older than is believed.
pub(super) struct ClockDoubted {
    pub(super) gap: Duration,
}

impl Happening for ClockDoubted {
    fn emit(self) {
        tracing::warn!(
            newest_seconds = self.gap.as_secs(),
            "the newest message on the disk is more than a day old, if the clock is right; nothing of it expires until \
             a hub was reached"
        );
    }
}

/// The wall clock was set ahead.
pub(super) struct ClockSetAhead {
    pub(super) ahead: Duration,
}

impl Happening for ClockSetAhead {
    fn emit(self) {
        tracing::warn!(
            seconds = self.ahead.as_secs(),
            "the clock was set ahead; what was stored before does not expire by that"
        );
    }
}

/// Messages wait on the disk for longer than a fsync and an answer take.
pub(super) struct MessagesWait {
    pub(super) records: u64,
    pub(super) devices: usize,
    pub(super) oldest_seconds: u64,
}

impl Happening for MessagesWait {
    fn emit(self) {
        let Self { records, devices, oldest_seconds } = self;
        tracing::warn!(
            records,
            devices,
            oldest_seconds,
            "messages wait on the disk until the hub takes them; `fieldgate spool status` says how many"
        );
    }
}

/// All that waited on the disk has its end.
pub(super) struct NothingWaits;

impl Happening for NothingWaits {
    fn emit(self) {
        tracing::info!("nothing waits on the disk any more");
    }
}

/// A message was not stored.
pub(super) struct MessageRefused<'a> {
    pub(super) device: &'a dyn Display,
    pub(super) by: RefusedBy,
}

impl Happening for MessageRefused<'_> {
    fn emit(self) {
        let Self { device, by } = self;
        METRICS.refused.get_or_create(&ByRefusal { by }).inc();
        tracing::debug!(%device, by = by.name(), "the spool refused a message");
    }
}

/// A message waits for a hub that its device does not belong to any more.
pub(super) struct MeantForAnother<'a> {
    pub(super) device: &'a DeviceId,
    pub(super) hub: &'a str,
}

impl Happening for MeantForAnother<'_> {
    fn emit(self) {
        let Self { device, hub } = self;
        let what = "messages were stored for a hub that the device does not belong to any more: they wait until it does";
        // Once: it comes again as long as they wait.
        match METRICS.elsewhere.inc() {
            0 => tracing::warn!(%device, hub, "{what}"),
            _ => tracing::debug!(%device, hub, "{what}"),
        }
    }
}

/// A message was sent that may have been sent before.
pub(super) struct MessageResent;

impl Happening for MessageResent {
    fn emit(self) {
        METRICS.resent.inc();
    }
}

/// The hub took a message.
pub(super) struct MessageDrained;

impl Happening for MessageDrained {
    fn emit(self) {
        METRICS.drained.inc();
    }
}

/// A message became a dead letter, and the disk has it.
pub(super) struct MessageDied {
    pub(super) seq: u64,
    pub(super) reason: DeadReason,
}

impl Happening for MessageDied {
    fn emit(self) {
        let Self { seq, reason } = self;
        METRICS.died.get_or_create(&ByDeath { reason }).inc();
        tracing::warn!(
            seq,
            reason = reason.name(),
            "a message became a dead letter; `fieldgate dead-letter show` tells more"
        );
    }
}

/// A dead letter was dropped, because there were too many or it was too old.
pub(super) struct DeadLetterDropped {
    pub(super) seq: u64,
}

impl Happening for DeadLetterDropped {
    fn emit(self) {
        METRICS.dead_letters_dropped.inc();
        tracing::info!(seq = self.seq, "the oldest dead letter was dropped");
    }
}

/// Messages went without a dead letter, because there was no room for one and none could be made.
pub(super) struct LettersForgone {
    pub(super) messages: u64,
}

impl Happening for LettersForgone {
    fn emit(self) {
        METRICS.dead_letters_forgone.inc_by(self.messages);
        tracing::error!(
            messages = self.messages,
            "the spool is full: messages that the hub refused, or that waited too long, are gone without a dead letter"
        );
    }
}

/// Space could not be given back.
pub(super) struct TendFailed<'a> {
    pub(super) error: &'a dyn Display,
}

impl Happening for TendFailed<'_> {
    fn emit(self) {
        tracing::warn!(error = %self.error, "the spool cannot give space back; it will try again");
    }
}

/// What the gauges show.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Levels {
    pub(super) records: u64,
    pub(super) bytes: u64,
    pub(super) devices: usize,
    pub(super) in_flight: usize,
    pub(super) oldest_seconds: u64,
    pub(super) disk_bytes: u64,
    pub(super) disk_full: bool,
    pub(super) dead_letters: usize,
    pub(super) dead_letter_bytes: u64,
}

impl Happening for Levels {
    fn emit(self) {
        let set = |gauge: &Gauge, value: u64| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&METRICS.records, self.records);
        set(&METRICS.bytes, self.bytes);
        set(&METRICS.devices, self.devices as u64);
        set(&METRICS.in_flight, self.in_flight as u64);
        set(&METRICS.oldest, self.oldest_seconds);
        set(&METRICS.disk_bytes, self.disk_bytes);
        set(&METRICS.disk_full, self.disk_full.into());
        set(&METRICS.dead_letters, self.dead_letters as u64);
        set(&METRICS.dead_letter_bytes, self.dead_letter_bytes);
    }
}
