//! The owner of the log, the queues and the dead letters. It has no thread and no task: the service's loop (or a tool)
//! hands it what came, asks it what to send, and tells it the time.
//!
//! What was appended counts once it is committed, and no earlier: until then it is in the *batch*, and its devices and
//! queues know nothing of it. A commit that fails takes nothing back that counted.

mod asking;
mod open;
mod sending;
mod tending;
#[cfg(test)]
mod tests;
mod unreadable;

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use fieldgate_mappings::address::DeviceId;

use crate::store::{AppendError, Disk, Log, Place};
use crate::telemetry::emit;

use super::ages::Ages;
use super::ask;
use super::dead::{Dead, DeadBounds, DeadLetters};
use super::handle::{Asked, Inbox, Letters, Outbox, Shared, Store, Stored};
use super::queues::{Admitted, Bounds, Dying, New, NoRoom, Queues};
use super::record::{DeadReason, Entry, Limits, Record, Refusal};
use super::telemetry::{
    BatchCommitted, CommitFailed, DeadLetterDropped, DiskRecovered, MessageDied, MessageRefused, RefusedBy,
};

pub(super) use asking::Hubs;
pub(super) use open::KeeperError;
pub(super) use sending::Sending;

/// How long after a failure of the disk nothing is tried.
const DISK_PAUSE: Duration = Duration::from_secs(1);
/// When a device may come again that found no room.
const RETRY_WHEN_FULL: Duration = Duration::from_secs(10);
/// The longest that a settle waits for its sync: what a crash makes be sent twice.
const SETTLE_DELAY: Duration = Duration::from_millis(100);
/// Bytes that wait for a commit and are enough of a reason for one.
const ENOUGH_BYTES: usize = 256 * 1024;

/// A moment, by both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    pub(super) at: Instant,
    /// Milliseconds since 1970. It may jump: [`Ages`] knows whose age it tells.
    pub(super) unix_ms: u64,
}

impl Now {
    fn unix_seconds(self) -> u64 {
        self.unix_ms / 1_000
    }
}

/// What the keeper is told.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) bounds: Bounds,
    pub(super) dead: DeadBounds,
    /// No message waits longer, whatever its rule says.
    pub(super) max_age: Duration,
    /// How long a batch gathers at most.
    pub(super) commit_delay: Duration,
}

/// The owner.
pub(super) struct Keeper<D: Disk> {
    log: Log<D>,
    queues: Queues,
    dead: DeadLetters,
    shared: Arc<Shared>,
    settings: Settings,
    ages: Ages,
    batch: Batch,
    outbox: Outbox,
    /// Since when something settled waits for its sync.
    settling_since: Option<Instant>,
    /// The last commit had no room for what was settled: the next attempt is not sooner than after a while.
    settles_stuck: bool,
    disk: ask::Disk,
    /// After a failure: until when nothing is appended.
    disk_paused_until: Option<Instant>,
    /// What the hub said of messages that it refused, until they are buried.
    descriptions: HashMap<u64, Cow<'static, str>>,
    tending: tending::Tending,
    unreadable: unreadable::Unreadable,
    // Buffers that are used again.
    head: Vec<u8>,
    body: Vec<u8>,
    message_id: String,
    encoded: BytesMut,
}

/// What was appended and not committed.
#[derive(Debug, Default)]
struct Batch {
    appended: Pending,
    since: Option<Instant>,
    /// How many messages the last one had.
    last: usize,
}

/// Those of a batch that have no answer. Dropped, by a bug, their workers hear that it failed.
#[derive(Debug, Default)]
struct Pending(VecDeque<Appended>);

impl Drop for Pending {
    fn drop(&mut self) {
        for Appended { what, .. } in &self.0 {
            if let What::Message { answer, .. } | What::DeadLetter { answer, .. } = what {
                let (letters, ticket) = answer;
                letters.deliver([(*ticket, Stored::Refused(Refusal::Failed { retry_after: DISK_PAUSE }))]);
            }
        }
    }
}

#[derive(Debug)]
struct Appended {
    seq: u64,
    place: Place,
    what: What,
}

#[derive(Debug)]
enum What {
    /// A message of a worker.
    Message { admitted: Admitted, answer: (Arc<Letters>, u64) },
    /// A dead letter of a worker.
    DeadLetter { dead: Dead, reason: DeadReason, answer: (Arc<Letters>, u64) },
    /// A message of ours that becomes a dead letter.
    Burial { dead: Dead, dying: Dying },
    /// A dead letter that becomes a message again.
    Replay { admitted: Admitted, letter: u64 },
}

impl<D: Disk> Keeper<D> {
    /// Takes what came from the workers, and gives back what people asked. Each message has its answer after the commit
    /// that it is part of.
    pub(super) fn take(&mut self, inbox: Inbox, now: Now) -> Asked {
        for (letters, stores) in inbox.batches {
            // Behind one that was refused none of its device may be taken: it would overtake it.
            let mut refused = Vec::new();
            for store in stores {
                let behind = refused.iter().find(|(device, _)| *device == store.entry.record().device);
                let behind = behind.map(|(_, by)| *by);
                if let Err(by) = self.take_one(&letters, store, behind, now) {
                    refused.push(by);
                }
            }
        }
        // Refusals need no commit.
        self.outbox.deliver();
        inbox.asks
    }

    /// What the handles share with this.
    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Gives whose message was refused, and why, if the later ones of its device must be as well.
    fn take_one(
        &mut self,
        letters: &Arc<Letters>,
        store: Store,
        behind: Option<RefusedBy>,
        now: Now,
    ) -> Result<(), (DeviceId, RefusedBy)> {
        let Store { ticket, mut entry, limits } = store;
        match &mut entry {
            Entry::Message(record) => record.stored_at = now.unix_ms,
            Entry::DeadLetter(letter) => {
                (letter.record.stored_at, letter.died_at) = (now.unix_ms, now.unix_ms);
            }
        }
        let answer = (Arc::clone(letters), ticket);
        let mut head = mem::take(&mut self.head);
        head.clear();
        entry.encode_head(&mut head);
        let paused = self.disk_is_paused(now).then_some(RefusedBy::Failing);
        let taken = match behind.or(paused) {
            Some(by) => Err(by),
            None => self.take_entry(&entry, limits, &head, answer.clone(), now),
        };
        self.head = head;
        self.release_left();
        let Err(by) = taken else { return Ok(()) };
        self.refuse(&entry, &answer, by);
        // One that is too large is refused for good: nothing waits for it.
        if by == RefusedBy::TooLarge { Ok(()) } else { Err((entry.record().device.clone(), by)) }
    }

    fn take_entry(
        &mut self,
        entry: &Entry,
        limits: Limits,
        head: &[u8],
        answer: (Arc<Letters>, u64),
        now: Now,
    ) -> Result<(), RefusedBy> {
        match entry {
            Entry::Message(record) => {
                let admitted = self.admit(record, head.len(), limits).map_err(|NoRoom| RefusedBy::Bounds)?;
                match self.append(head, &record.message, now) {
                    Ok((seq, place)) => self.appended(seq, place, What::Message { admitted, answer }, now),
                    Err(by) => {
                        self.queues.give_back(admitted);
                        return Err(by);
                    }
                }
            }
            Entry::DeadLetter(letter) => {
                let (seq, place) = self.append(head, &letter.record.message, now)?;
                let dead = dead(place, head.len() + letter.record.message.len(), now);
                self.appended(seq, place, What::DeadLetter { dead, reason: letter.reason, answer }, now);
            }
        }
        Ok(())
    }

    fn admit(&mut self, record: &Record, head: usize, limits: Limits) -> Result<Admitted, NoRoom> {
        self.queues.admit(New {
            hub: &record.hub,
            device: &record.device,
            priority: record.priority,
            bytes: head + record.message.len(),
            stored_at: record.stored_at,
            expires_at: record.expires_at(self.settings.max_age),
            marked: record.possibly_delivered,
            limits,
        })
    }

    fn refuse(&mut self, entry: &Entry, (letters, ticket): &(Arc<Letters>, u64), by: RefusedBy) {
        let refusal = match by {
            RefusedBy::Bounds | RefusedBy::Full | RefusedBy::DiskFull => {
                Refusal::Full { retry_after: RETRY_WHEN_FULL }
            }
            RefusedBy::Failing => Refusal::Failed { retry_after: DISK_PAUSE },
            RefusedBy::TooLarge => Refusal::TooLarge,
        };
        let record = entry.record();
        emit(MessageRefused { device: &record.device, by });
        if let Entry::Message(record) = entry {
            self.shared.held.remove(&record.hub, &record.device);
        }
        self.outbox.put(letters, *ticket, Stored::Refused(refusal));
    }

    // The log.

    /// Appends, with a commit before it where the log asks for one.
    fn append(&mut self, head: &[u8], message: &[u8], now: Now) -> Result<(u64, Place), RefusedBy> {
        loop {
            let by = match self.log.append(&[head, message]) {
                Ok(taken) => {
                    if self.disk == ask::Disk::Full {
                        self.disk = ask::Disk::Good;
                    }
                    return Ok(taken);
                }
                Err(AppendError::CommitFirst) => {
                    self.commit(now);
                    // What was refused just now must not be overtaken.
                    if self.disk_is_paused(now) {
                        return Err(RefusedBy::Failing);
                    }
                    continue;
                }
                Err(AppendError::TooLarge { .. }) => RefusedBy::TooLarge,
                Err(AppendError::Full { .. }) => RefusedBy::Full,
                Err(AppendError::DiskFull) => RefusedBy::DiskFull,
                Err(error @ AppendError::Io(_)) => {
                    self.disk_failed(0, &error, now);
                    RefusedBy::Failing
                }
            };
            if matches!(by, RefusedBy::Full | RefusedBy::DiskFull) && self.disk == ask::Disk::Good {
                self.disk = ask::Disk::Full;
            }
            return Err(by);
        }
    }

    fn appended(&mut self, seq: u64, place: Place, what: What, now: Now) {
        self.batch.since.get_or_insert(now.at);
        self.batch.appended.0.push_back(Appended { seq, place, what });
    }

    /// Writes and syncs the batch, and what was settled; then all of the batch has its answer.
    pub(super) fn commit(&mut self, now: Now) {
        let mut batch = mem::take(&mut self.batch.appended);
        let records = batch.0.len();
        (self.batch.since, self.batch.last) = (None, records);
        let begun = Instant::now();
        match self.log.commit() {
            Ok(()) => {
                self.settles_committed(records, now);
                if self.disk == ask::Disk::Failing {
                    self.disk = ask::Disk::Good;
                    emit(DiskRecovered);
                }
                let messages = batch.0.iter().filter(|of| matches!(of.what, What::Message { .. })).count();
                emit(BatchCommitted { messages, took: begun.elapsed() });
                while let Some(appended) = batch.0.pop_front() {
                    self.stored(appended, now);
                }
                self.drop_excess(now);
            }
            Err(error) => {
                self.disk_failed(records, &error, now);
                while let Some(appended) = batch.0.pop_front() {
                    self.not_stored(appended);
                }
            }
        }
        self.outbox.deliver();
    }

    /// What a batch has left behind follows at once. Where there was no batch, there was no room.
    fn settles_committed(&mut self, records: usize, now: Now) {
        if self.log.settles_waiting() == 0 {
            (self.settling_since, self.settles_stuck) = (None, false);
            self.queues.synced();
        } else if records == 0 {
            (self.settling_since, self.settles_stuck) = (Some(now.at), true);
        }
    }

    fn stored(&mut self, Appended { seq, place, what }: Appended, now: Now) {
        match what {
            What::Message { admitted, answer: (letters, ticket) } => {
                self.queues.stored(admitted, seq, place);
                self.outbox.put(&letters, ticket, Stored::Stored);
            }
            What::DeadLetter { dead, reason, answer: (letters, ticket) } => {
                self.dead.insert(seq, dead);
                emit(MessageDied { seq, reason });
                self.outbox.put(&letters, ticket, Stored::Stored);
            }
            What::Burial { dead, dying } => {
                self.dead.insert(seq, dead);
                emit(MessageDied { seq, reason: dying.reason });
                self.descriptions.remove(&dying.seq);
                self.settle(dying.seq, dying.place, now);
                self.queues.buried(dying);
            }
            What::Replay { admitted, letter } => {
                self.queues.stored(admitted, seq, place);
                if let Some(dead) = self.dead.remove(letter) {
                    self.settle(letter, dead.place, now);
                }
            }
        }
    }

    fn not_stored(&mut self, Appended { what, .. }: Appended) {
        let failed = Stored::Refused(Refusal::Failed { retry_after: DISK_PAUSE });
        match what {
            What::Message { admitted, answer: (letters, ticket) } => {
                let (hub, device) = self.queues.whose(&admitted);
                self.shared.held.remove(&hub, &device);
                self.queues.give_back(admitted);
                self.outbox.put(&letters, ticket, failed);
            }
            What::DeadLetter { answer: (letters, ticket), .. } => self.outbox.put(&letters, ticket, failed),
            What::Burial { dying, .. } => self.queues.not_buried(dying),
            What::Replay { admitted, .. } => {
                let (hub, device) = self.queues.whose(&admitted);
                self.shared.held.remove(&hub, &device);
                self.queues.give_back(admitted);
            }
        }
    }

    fn settle(&mut self, seq: u64, place: Place, now: Now) {
        self.log.settle(seq, place);
        self.settling_since.get_or_insert(now.at);
    }

    /// Forgets dead letters that are too many or too old.
    fn drop_excess(&mut self, now: Now) {
        while let Some((seq, dead)) = self.dead.take_excess(now.unix_seconds(), &self.ages) {
            self.settle(seq, dead.place, now);
            emit(DeadLetterDropped { seq });
        }
    }

    /// Tells the workers of devices whose messages have left.
    fn release_left(&mut self) {
        for (hub, device) in self.queues.take_left() {
            self.shared.held.remove(&hub, &device);
        }
    }

    // The disk.

    fn disk_is_paused(&mut self, now: Now) -> bool {
        self.disk_paused_until = self.disk_paused_until.filter(|until| *until > now.at);
        self.disk_paused_until.is_some()
    }

    fn disk_failed(&mut self, records: usize, error: &dyn std::fmt::Display, now: Now) {
        self.disk = ask::Disk::Failing;
        self.disk_paused_until = Some(now.at + DISK_PAUSE);
        emit(CommitFailed { records, error });
    }

    /// How the disk is.
    pub(super) fn disk(&self) -> ask::Disk {
        self.disk
    }
}

fn dead(place: Place, body_bytes: usize, now: Now) -> Dead {
    Dead { place, bytes: body_bytes as u64, died: now.unix_seconds() }
}
