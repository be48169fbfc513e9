//! The event log: what devices sent, in partitions that are read from any position and again.
//!
//! A device's messages all go to one partition and keep their order there. Reading takes nothing away; when the
//! log is full, the oldest message of all partitions goes. Positions are those of Event Hubs: a sequence number
//! without gaps and an offset that grows by the size of the messages, both for each partition.

use std::collections::VecDeque;

use bytes::Bytes;
use fieldgate_mappings::{DeviceId, Timestamp};

/// What a stored message costs beside its bytes, roughly: it counts against the bound like them.
const OVERHEAD_BYTES: usize = 128;

/// A message in the log.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    /// Where it stands and since when.
    pub(crate) stamp: Stamp,
    /// The message as readers get it, encoded whole.
    pub(crate) message: Bytes,
    /// Its place among the messages of all partitions.
    arrival: u64,
}

/// A message's place in its partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Counts the partition's messages, from 0.
    pub(crate) sequence: i64,
    /// Counts their bytes.
    pub(crate) offset: i64,
    /// When it was taken. It never runs backwards within a partition, even if the wall clock does.
    pub(crate) enqueued: Timestamp,
}

/// Where a reader begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Position {
    /// With the oldest message there is.
    Start,
    /// With the next message that comes.
    End,
    /// With the first message after this offset, or at it.
    Offset { offset: i64, inclusive: bool },
    /// With the first message after this sequence number, or at it.
    Sequence { sequence: i64, inclusive: bool },
    /// With the first message taken after this time, or at it.
    Enqueued { time: Timestamp, inclusive: bool },
}

#[derive(Debug, Default)]
struct Partition {
    records: VecDeque<Record>,
    next_sequence: i64,
    next_offset: i64,
    last_enqueued: Option<Timestamp>,
}

/// The log.
#[derive(Debug)]
pub(crate) struct EventLog {
    partitions: Vec<Partition>,
    bytes: usize,
    max_bytes: usize,
    arrivals: u64,
    dropped: u64,
}

impl EventLog {
    /// An empty log of `partitions` (at least one) that holds at most `max_bytes`.
    pub(crate) fn new(partitions: u16, max_bytes: usize) -> Self {
        let partitions = (0..partitions.max(1)).map(|_| Partition::default()).collect();
        Self { partitions, bytes: 0, max_bytes, arrivals: 0, dropped: 0 }
    }

    /// The partition that holds `device`'s messages: a hash that is the same in every run.
    pub(crate) fn partition_of(&self, device: &DeviceId) -> u16 {
        // FNV-1a, 64 bits: short texts, no adversary that could gain more than a crowded partition.
        let hash = device.as_str().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        // The low bits alone are weak; fold the high ones in.
        let count = self.partitions.len() as u64;
        u16::try_from((hash ^ hash >> 32) % count).expect("a log has at most 65535 partitions")
    }

    /// Whether there is such a partition.
    pub(crate) fn has_partition(&self, partition: u16) -> bool {
        usize::from(partition) < self.partitions.len()
    }

    /// Takes a message: `encode` gets its stamp and makes the bytes that readers will see. The oldest messages
    /// go where it would not fit otherwise. A partition that does not exist takes nothing.
    pub(crate) fn append(&mut self, partition: u16, wall: Timestamp, encode: impl FnOnce(Stamp) -> Bytes) {
        let Some(log) = self.partitions.get_mut(usize::from(partition)) else { return };
        let enqueued = log.last_enqueued.map_or(wall, |last| last.max(wall));
        let stamp = Stamp { sequence: log.next_sequence, offset: log.next_offset, enqueued };
        let message = encode(stamp);
        let size = message.len() + OVERHEAD_BYTES;
        log.next_sequence += 1;
        log.next_offset += i64::try_from(size).unwrap_or(i64::MAX / 2);
        log.last_enqueued = Some(enqueued);
        log.records.push_back(Record { stamp, message, arrival: self.arrivals });
        self.arrivals += 1;
        self.bytes += size;
        while self.bytes > self.max_bytes && self.drop_oldest() {}
    }

    /// The sequence number at which a reader of this position begins.
    pub(crate) fn seek(&self, partition: u16, position: Position) -> i64 {
        let Some(log) = self.partitions.get(usize::from(partition)) else { return 0 };
        let before = |goes_on: &dyn Fn(&Stamp) -> bool| {
            let index = log.records.partition_point(|record| goes_on(&record.stamp));
            log.records.get(index).map_or(log.next_sequence, |record| record.stamp.sequence)
        };
        match position {
            Position::Start => before(&|_| false),
            Position::End => log.next_sequence,
            Position::Offset { offset, inclusive } => {
                before(&|stamp| stamp.offset < offset || !inclusive && stamp.offset == offset)
            }
            Position::Sequence { sequence, inclusive } => {
                before(&|stamp| stamp.sequence < sequence || !inclusive && stamp.sequence == sequence)
            }
            Position::Enqueued { time, inclusive } => {
                before(&|stamp| stamp.enqueued < time || !inclusive && stamp.enqueued == time)
            }
        }
    }

    /// The first message at or after a sequence number. A reader that was too slow finds the oldest that is left.
    pub(crate) fn read(&self, partition: u16, from_sequence: i64) -> Option<&Record> {
        let log = self.partitions.get(usize::from(partition))?;
        let first = log.records.front()?.stamp.sequence;
        // Sequence numbers have no gaps, so a position is an index.
        let index = usize::try_from(from_sequence.saturating_sub(first)).unwrap_or(0);
        log.records.get(index)
    }

    /// How many messages had to go because the log was full.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// How many bytes the log holds, with what it takes to hold them.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn drop_oldest(&mut self) -> bool {
        let oldest = self
            .partitions
            .iter_mut()
            .filter_map(|log| log.records.front().map(|record| record.arrival).map(|arrival| (arrival, log)))
            .min_by_key(|(arrival, _)| *arrival);
        let Some(record) = oldest.and_then(|(_, log)| log.records.pop_front()) else { return false };
        self.bytes -= record.message.len() + OVERHEAD_BYTES;
        self.dropped += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(log: &mut EventLog, partition: u16, at: i64, size: usize) {
        log.append(partition, Timestamp(at), |_| Bytes::from(vec![0; size]));
    }

    fn sequences(log: &EventLog, partition: u16, from: i64) -> Vec<i64> {
        let mut next = from;
        std::iter::from_fn(|| {
            let found = log.read(partition, next)?.stamp.sequence;
            next = found + 1;
            Some(found)
        })
        .collect()
    }

    #[test]
    fn positions_as_event_hubs_has_them() {
        let mut log = EventLog::new(2, 1 << 20);
        assert_eq!(log.seek(0, Position::Start), 0);
        assert_eq!(log.seek(0, Position::End), 0);
        for at in [100, 200, 200, 300] {
            append(&mut log, 0, at, 72); // 200 bytes each
        }
        append(&mut log, 1, 400, 10);
        let offset = |offset, inclusive| log.seek(0, Position::Offset { offset, inclusive });
        assert_eq!((offset(-1, false), offset(0, true), offset(0, false)), (0, 0, 1));
        assert_eq!((offset(200, true), offset(200, false), offset(201, true)), (1, 2, 2));
        assert_eq!((offset(600, false), offset(9999, true)), (4, 4));
        let sequence = |sequence, inclusive| log.seek(0, Position::Sequence { sequence, inclusive });
        assert_eq!((sequence(2, true), sequence(2, false), sequence(i64::MAX, false)), (2, 3, 4));
        let time = |time, inclusive| log.seek(0, Position::Enqueued { time: Timestamp(time), inclusive });
        assert_eq!((time(0, false), time(200, true), time(200, false), time(301, true)), (0, 1, 3, 4));
        assert_eq!((log.seek(0, Position::Start), log.seek(0, Position::End)), (0, 4));
        assert_eq!(log.seek(1, Position::End), 1);
    }

    #[test]
    fn reading_takes_nothing_away_and_goes_on_behind_the_end() {
        let mut log = EventLog::new(1, 1 << 20);
        assert!(log.read(0, 0).is_none());
        for _ in 0..3 {
            append(&mut log, 0, 1, 1);
        }
        assert_eq!(sequences(&log, 0, 0), [0, 1, 2]);
        assert_eq!(sequences(&log, 0, 0), [0, 1, 2]);
        assert_eq!(sequences(&log, 0, 2), [2]);
        assert!(log.read(0, 3).is_none() && log.read(0, i64::MAX).is_none() && log.read(7, 0).is_none());
        append(&mut log, 0, 1, 1);
        assert_eq!(sequences(&log, 0, 3), [3]);
        assert_eq!(sequences(&log, 0, i64::MIN), [0, 1, 2, 3]);
    }

    #[test]
    fn a_full_log_loses_the_oldest_of_all_partitions() {
        let mut log = EventLog::new(2, 4 * (72 + OVERHEAD_BYTES));
        for partition in [0, 1, 1, 0] {
            append(&mut log, partition, 1, 72);
        }
        assert_eq!(log.dropped(), 0);
        append(&mut log, 1, 1, 72);
        assert_eq!((sequences(&log, 0, 0), sequences(&log, 1, 0)), (vec![1], vec![0, 1, 2]));
        append(&mut log, 0, 1, 272); // as large as two
        assert_eq!((sequences(&log, 0, 0), sequences(&log, 1, 0)), (vec![1, 2], vec![2]));
        assert_eq!(log.dropped(), 3);
        assert!(log.bytes() <= 800);
        // One that is larger than the log leaves it empty, and counting goes on.
        append(&mut log, 0, 1, 5000);
        assert_eq!(log.bytes(), 0);
        append(&mut log, 0, 1, 1);
        assert_eq!(sequences(&log, 0, 0), [4]);
    }

    #[test]
    fn stamps_never_run_backwards_and_reach_the_encoder() {
        let mut log = EventLog::new(1, 1 << 20);
        let mut stamps = Vec::new();
        for at in [500, 400, 600] {
            log.append(0, Timestamp(at), |stamp| {
                stamps.push(stamp);
                Bytes::from_static(b"x")
            });
        }
        assert_eq!(stamps.iter().map(|stamp| stamp.enqueued.0).collect::<Vec<_>>(), [500, 500, 600]);
        assert_eq!(stamps.iter().map(|stamp| stamp.sequence).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(stamps.is_sorted_by_key(|stamp| stamp.offset));
        assert_eq!(log.read(0, 1).map(|record| record.stamp), Some(stamps[1]));
    }

    #[test]
    fn a_device_stays_in_its_partition_and_devices_spread() {
        let log = EventLog::new(4, 1);
        let mut counts = [0; 4];
        for number in 0..4000 {
            let device = DeviceId::new(&format!("device-{number}")).unwrap();
            let partition = log.partition_of(&device);
            assert_eq!(partition, log.partition_of(&device.clone()));
            assert!(log.has_partition(partition));
            counts[usize::from(partition)] += 1;
        }
        assert!(counts.iter().all(|count| (700..1300).contains(count)), "{counts:?}");
        assert!(!log.has_partition(4));
        assert_eq!(EventLog::new(1, 1).partition_of(&DeviceId::new("any").unwrap()), 0);
    }
}
