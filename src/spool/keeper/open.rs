//! Opening: the log's records become queues and dead letters again, before anybody is served.

use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use fieldgate_mappings::address::DeviceId;
use thiserror::Error;

use super::{Batch, Keeper, Now, Settings};
use crate::spool::Spool;
use crate::spool::ages::Ages;
use crate::spool::ask;
use crate::spool::dead::{Dead, DeadLetters};
use crate::spool::handle::Outbox;
use crate::spool::queues::{New, Queues};
use crate::spool::record::{Body, Limits, RecordError, is_set, since};
use crate::spool::telemetry::{ClockDoubted, RecordsDamaged, SpoolOpened};
use crate::store::{Damage, Disk, Found, Log, OpenError, Place};
use crate::telemetry::emit;

/// The spool's log cannot be used.
#[derive(Debug, Error)]
pub(in crate::spool) enum KeeperError {
    /// The log does not open.
    #[error(transparent)]
    Log(#[from] OpenError),
    /// A record of another format. Nothing was changed.
    #[error("{0}. Use the program that wrote it, or another directory")]
    Record(#[from] RecordError),
}

/// What the records come to.
struct Recovery<'a> {
    settings: &'a Settings,
    unix_ms: u64,
    /// The newest time that was met.
    newest_ms: u64,
    queues: Queues,
    dead: DeadLetters,
    /// Names that were seen.
    hubs: Vec<Arc<str>>,
    /// Sound by their checksum, and no record of ours.
    strange: Vec<(u64, Place)>,
    wrong_version: Option<RecordError>,
}

impl Recovery<'_> {
    fn found(&mut self, found: Found<'_>) {
        let Found { seq, place, body: bytes } = found;
        let mut body = match Body::decode(bytes) {
            Ok(body) => body,
            Err(error @ RecordError::Version(_)) => {
                self.wrong_version.get_or_insert(error);
                return;
            }
            Err(RecordError::Content(_)) => return self.strange.push((seq, place)),
        };
        let written = body.death.map_or(body.stored_at, |death| death.died_at);
        if is_set(written) {
            self.newest_ms = self.newest_ms.max(written);
        }
        if let Some(death) = &body.death {
            let dead =
                Dead { place, bytes: bytes.len() as u64, died: since(death.died_at, self.unix_ms) / 1_000 };
            return self.dead.insert(seq, dead);
        }
        body.stored_at = since(body.stored_at, self.unix_ms);
        let Ok(device) = DeviceId::new(body.device) else { return self.strange.push((seq, place)) };
        let hub = match self.hubs.iter().find(|hub| ***hub == *body.hub) {
            Some(hub) => Arc::clone(hub),
            None => {
                let hub: Arc<str> = body.hub.into();
                self.hubs.push(Arc::clone(&hub));
                hub
            }
        };
        let new = New {
            hub: &hub,
            device: &device,
            priority: body.priority,
            bytes: bytes.len(),
            stored_at: body.stored_at,
            expires_at: body.expires_at(self.settings.max_age),
            marked: body.possibly_delivered,
            limits: Limits::default(),
        };
        self.queues.recover(new, seq, place);
    }
}

impl<D: Disk> Keeper<D> {
    /// Reads the log. The handle knows already what is held.
    ///
    /// # Errors
    /// When the log cannot be used; it was not changed.
    pub(in crate::spool) fn open(
        disk: D,
        log: crate::store::Settings,
        settings: Settings,
        now: Now,
    ) -> Result<(Self, Spool), KeeperError> {
        let begun = Instant::now();
        let mut recovery = Recovery {
            settings: &settings,
            unix_ms: now.unix_ms,
            newest_ms: 0,
            queues: Queues::new(settings.bounds.clone()),
            dead: DeadLetters::new(settings.dead.clone()),
            hubs: Vec::new(),
            strange: Vec::new(),
            wrong_version: None,
        };
        let (log, report) = Log::open(disk, log, |found| recovery.found(found))?;
        let Recovery { mut queues, dead, strange, wrong_version, newest_ms, .. } = recovery;
        if let Some(error) = wrong_version {
            return Err(error.into());
        }
        queues.recovered();
        let spool = Spool::new(log.id(), now.unix_ms);
        for (hub, device, records) in queues.each_device() {
            spool.shared().held.add(hub, device, u32::try_from(records).unwrap_or(u32::MAX));
        }
        if report.damaged > 0 {
            let first = report.damage.first().map(describe).unwrap_or_default();
            emit(RecordsDamaged { spots: report.damaged, lost: report.lost, what: &first });
        }
        emit(SpoolOpened {
            records: queues.totals().records,
            dead_letters: dead.len(),
            devices: queues.devices(),
            torn: report.torn,
            took: begun.elapsed(),
        });
        let ages = Ages::new(log.next_seq(), newest_ms, now);
        if let Some(gap) = ages.doubt() {
            emit(ClockDoubted { gap });
        }
        let full = log.usage().full;
        let mut keeper = Self {
            log,
            queues,
            dead,
            shared: Arc::clone(spool.shared()),
            settings,
            ages,
            batch: Batch::default(),
            outbox: Outbox::default(),
            settling_since: None,
            settles_stuck: false,
            disk: if full { ask::Disk::Full } else { ask::Disk::Good },
            disk_paused_until: None,
            descriptions: std::collections::HashMap::new(),
            tending: super::tending::Tending::new(now.at),
            unreadable: super::unreadable::Unreadable::default(),
            head: Vec::new(),
            body: Vec::new(),
            message_id: String::new(),
            encoded: BytesMut::new(),
        };
        for (seq, place) in strange {
            let what = RecordError::Content("content");
            emit(RecordsDamaged { spots: 1, lost: 1, what: &what });
            keeper.settle(seq, place, now);
        }
        Ok((keeper, spool))
    }

    /// The last commit. What is in flight stays in the log.
    pub(in crate::spool) fn close(mut self, now: Now) {
        for (ask, answer) in self.take(self.shared.take(), now) {
            let _ = answer.send(self.answer(&ask, super::Hubs::Stopping, now));
        }
        self.commit(now);
        self.shared.close();
        if let Err(error) = self.log.close() {
            emit(crate::spool::telemetry::CommitFailed { records: 0, error: &error });
        }
    }
}

fn describe(damage: &Damage) -> String {
    let Damage { place, bytes, .. } = damage;
    format!("the first: {bytes} bytes at {:08x}:{}", place.segment, place.offset)
}
