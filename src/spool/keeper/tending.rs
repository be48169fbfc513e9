//! What is due by the time alone: commits, dead letters, what has expired, space that is given back.

use std::mem;
use std::time::{Duration, Instant};

use super::{Keeper, Now, SETTLE_DELAY, What, dead};
use crate::spool::ask;
use crate::spool::marking;
use crate::spool::queues::Dying;
use crate::spool::record::{Body, Death, since};
use crate::spool::telemetry::{
    ClockSetAhead, DeadLetterDropped, LettersForgone, Levels, MessagesWait, NothingWaits, ReadFailed,
    RecordsDamaged, RefusedBy, TendFailed,
};
use crate::store::{Disk, Place};
use crate::telemetry::emit;

/// How often what has expired is looked for, and the gauges are set.
const SWEEP: Duration = Duration::from_secs(1);
/// How often space is given back while messages come or go, and while none do.
const TEND: Duration = Duration::from_millis(100);
const TEND_IDLE: Duration = Duration::from_secs(1);
/// A message that has been here for so long is told of: something is the matter with the hub, or with its link.
const WAITS_SECONDS: u64 = 5;
/// How long dead letters may wait for room before the oldest ones that are kept make some.
const LETTER_PATIENCE: Duration = Duration::from_secs(5);
/// How long they may wait where nothing waits for them in turn; where something does, it is [`LETTER_PATIENCE`] twice. A
/// message that no letter can be written of holds its place in the log and in its queue, which at some point sends nothing
/// more: what lives comes before a note of what does not.
const LONG_PATIENCE: Duration = Duration::from_secs(60);
/// After an attempt to give space back that failed.
const TEND_PAUSE: Duration = Duration::from_secs(1);

/// When what is due.
#[derive(Debug)]
pub(super) struct Tending {
    sweep_at: Instant,
    tend_at: Instant,
    /// Dead letters could not be written: when it is tried again.
    bury_at: Option<Instant>,
    /// Since when there is no room for dead letters.
    no_room_since: Option<Instant>,
    /// Since then old ones have made room.
    made_room: bool,
    /// Messages that went without a dead letter.
    pub(super) forgone: u64,
    /// Places that have changed.
    moved: Vec<(u64, Place)>,
    /// Appended and settled so far, to see whether anything happens.
    seen: (u64, usize),
    /// People were told that messages wait.
    told: bool,
}

impl Tending {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            sweep_at: now,
            tend_at: now,
            bury_at: None,
            no_room_since: None,
            made_room: false,
            forgone: 0,
            moved: Vec::new(),
            seen: (0, 0),
            told: false,
        }
    }
}

/// Why a message could not be buried.
enum Unburied {
    /// There is nothing left that could be kept.
    Lost,
    /// The log or the disk is full.
    NoRoom,
    /// It cannot be read now.
    Unread,
    /// The disk failed.
    Later,
}

impl<D: Disk> Keeper<D> {
    /// When [`handle_timeout`](Self::handle_timeout) is to be called.
    pub(in crate::spool) fn poll_timeout(&self) -> Instant {
        let commit = self.batch.since.map(|since| since + self.settings.commit_delay);
        let settle = self.settling_since.map(|since| since + SETTLE_DELAY);
        let settle = settle.map(|at| at.max(self.disk_paused_until.unwrap_or(at)));
        // Space is given back between two batches.
        let tend = Some(self.tending.tend_at).filter(|_| commit.is_none());
        let due = [commit, settle, tend, self.tending.bury_at, self.queues.poll_timeout()];
        due.into_iter().flatten().fold(self.tending.sweep_at, Instant::min)
    }

    /// Does what is due. True if there is more to do at once.
    pub(in crate::spool) fn handle_timeout(&mut self, now: Now) -> bool {
        self.look_at_clock(now);
        if self.tending.sweep_at <= now.at {
            self.tending.sweep_at = now.at + SWEEP;
            self.sweep(now);
        }
        self.bury(now);
        if self.commit_is_due(now) {
            self.commit(now);
        }
        self.tend(now)
    }

    /// A batch gathers until it has been open for the configured delay, is large, or has as many messages as the last
    /// one: then everybody who waited for that has come again, most likely.
    fn commit_is_due(&mut self, now: Now) -> bool {
        let settles = self.settling_since.is_some_and(|since| since + SETTLE_DELAY <= now.at)
            || self.queues.wants_sync() && self.settling_since.is_some() && !self.settles_stuck;
        let batch = self.batch.since.is_some_and(|since| {
            since + self.settings.commit_delay <= now.at
                || self.batch.appended.0.len() >= self.batch.last
                || self.log.bytes_waiting() >= super::ENOUGH_BYTES
        });
        batch || settles && !self.disk_is_paused(now)
    }

    /// Nothing may be sent or die by a clock that was not looked at.
    pub(super) fn look_at_clock(&mut self, now: Now) {
        if let Some(ahead) = self.ages.look(now, self.log.next_seq()) {
            emit(ClockSetAhead { ahead });
        }
    }

    fn sweep(&mut self, now: Now) {
        let seconds = u32::try_from(now.unix_seconds()).unwrap_or(u32::MAX);
        self.queues.expire(seconds, &self.ages);
        self.unreadable.forget(now);
        self.drop_excess(now);
        self.release_left();
        let totals = self.queues.totals();
        emit(Levels {
            records: totals.records,
            bytes: totals.bytes,
            devices: self.queues.devices(),
            in_flight: self.queues.in_flight(),
            oldest_seconds: self.oldest_seconds(now).unwrap_or(0),
            disk_bytes: self.log.usage().bytes,
            disk_full: self.disk == ask::Disk::Full,
            dead_letters: self.dead.len(),
            dead_letter_bytes: self.dead.bytes(),
        });
        self.tell(now);
    }

    /// Says when messages begin to wait, and when all have gone; not what happens between.
    fn tell(&mut self, now: Now) {
        match self.oldest_seconds(now) {
            Some(oldest_seconds) if !self.tending.told && oldest_seconds >= WAITS_SECONDS => {
                self.tending.told = true;
                let (records, devices) = (self.queues.totals().records, self.queues.devices());
                emit(MessagesWait { records, devices, oldest_seconds });
            }
            None if self.tending.told => {
                self.tending.told = false;
                emit(NothingWaits);
            }
            _ => {}
        }
    }

    #[cfg(test)]
    pub(super) fn tells_of_waiting(&self) -> bool {
        self.tending.told
    }

    /// Age of the oldest message.
    pub(super) fn oldest_seconds(&self, now: Now) -> Option<u64> {
        self.queues.oldest().map(|stored| {
            let stored = since(u64::from(stored) * 1_000, now.unix_ms) / 1_000;
            now.unix_seconds().saturating_sub(stored)
        })
    }

    /// Writes the dead letters of dying messages; they count after the commit. Where there is no room for a while, the
    /// messages go without.
    fn bury(&mut self, now: Now) {
        if !self.queues.has_dying() || self.tending.bury_at.is_some_and(|at| at > now.at) {
            return;
        }
        self.tending.bury_at = None;
        let mut without = 0;
        // What cannot be read goes to the end, and is not met again.
        let mut left = self.queues.dying();
        while left > 0
            && let Some(dying) = self.queues.next_dying()
        {
            left -= 1;
            if self.disk_is_paused(now) {
                return self.not_buried_yet(dying, now);
            }
            if without > 0 {
                without += 1;
                self.go(dying, now);
                continue;
            }
            match self.write_dead_letter(&dying, now) {
                Ok((seq, place, bytes)) => {
                    let dead = dead(place, bytes, now);
                    self.appended(seq, place, What::Burial { dead, dying }, now);
                }
                Err(Unburied::Lost) => self.go(dying, now),
                Err(Unburied::NoRoom) if self.letters_have_waited(&dying, now) => {
                    without += 1;
                    self.go(dying, now);
                }
                Err(Unburied::Unread) => {
                    self.queues.buried_last(dying);
                    self.tending.bury_at = Some(now.at + SWEEP);
                }
                Err(Unburied::NoRoom | Unburied::Later) => return self.not_buried_yet(dying, now),
            }
        }
        if without > 0 {
            self.tending.forgone += without;
            emit(LettersForgone { messages: without });
        } else {
            (self.tending.no_room_since, self.tending.made_room) = (None, false);
        }
    }

    /// A dying message goes without a dead letter.
    fn go(&mut self, dying: Dying, now: Now) {
        self.descriptions.remove(&dying.seq);
        self.settle(dying.seq, dying.place, now);
        self.queues.buried(dying);
    }

    /// Whether there was no room for dead letters for as long as they may wait. At half the time the oldest ones that are
    /// kept make room, as far as a segment may become free by it.
    fn letters_have_waited(&mut self, dying: &Dying, now: Now) -> bool {
        let since = *self.tending.no_room_since.get_or_insert(now.at);
        let waited = now.at.saturating_duration_since(since);
        if waited >= LETTER_PATIENCE && !mem::replace(&mut self.tending.made_room, true) {
            let keep = self.dead.bytes().saturating_sub(self.log.max_record() as u64);
            while keep > 0
                && self.dead.bytes() > keep
                && let Some((seq, dead)) = self.dead.take_oldest()
            {
                self.settle(seq, dead.place, now);
                emit(DeadLetterDropped { seq });
            }
        }
        let patience = if self.queues.waits_for_burials(dying) { 2 * LETTER_PATIENCE } else { LONG_PATIENCE };
        waited >= patience
    }

    fn not_buried_yet(&mut self, dying: Dying, now: Now) {
        self.queues.not_buried(dying);
        self.tending.bury_at = Some(now.at + SWEEP);
    }

    /// Appends a copy with the reason. Gives its number, place and length.
    fn write_dead_letter(&mut self, dying: &Dying, now: Now) -> Result<(u64, Place, usize), Unburied> {
        let mut bytes = mem::take(&mut self.body);
        let read = self.log.read(dying.place, dying.seq, &mut bytes);
        let written = match read {
            Ok(()) => {
                self.unreadable.read(dying.seq, now);
                self.append_dead_letter(&bytes, dying, now)
            }
            Err(error) if self.unreadable.is_lost(dying.seq, &error, now) => {
                emit(RecordsDamaged { spots: 1, lost: 1, what: &error });
                Err(Unburied::Lost)
            }
            Err(error) => {
                emit(ReadFailed { error: &error });
                Err(Unburied::Unread)
            }
        };
        self.body = bytes;
        written
    }

    fn append_dead_letter(
        &mut self,
        bytes: &[u8],
        dying: &Dying,
        now: Now,
    ) -> Result<(u64, Place, usize), Unburied> {
        let mut body = Body::decode(bytes).map_err(|error| {
            emit(RecordsDamaged { spots: 1, lost: 1, what: &error });
            Unburied::Lost
        })?;
        let description = self.description(dying.seq, dying.reason);
        body.death = Some(Death { reason: dying.reason, died_at: now.unix_ms, description: &description });
        let mut message = mem::take(&mut self.encoded);
        message.clear();
        if dying.marked {
            // Replayed, it is a repeat of what the hub may have.
            body.possibly_delivered = true;
            marking::write_message_id(&mut self.message_id, self.log.id(), dying.seq);
            // What is no message was never sent, and stays as it is.
            if marking::with_id(body.message, &self.message_id, &mut message).is_ok() {
                body.message = &message;
            }
        }
        let mut head = mem::take(&mut self.head);
        head.clear();
        body.encode_head(&mut head);
        let length = head.len() + body.message.len();
        let appended = self.append(&head, body.message, now);
        (self.head, self.encoded) = (head, message);
        appended.map(|(seq, place)| (seq, place, length)).map_err(|by| match by {
            RefusedBy::Full | RefusedBy::DiskFull => Unburied::NoRoom,
            // It has become longer than the message was.
            RefusedBy::TooLarge => Unburied::Lost,
            RefusedBy::Failing | RefusedBy::Bounds => Unburied::Later,
        })
    }

    /// Lets the log give space back, one step. True if another should follow.
    fn tend(&mut self, now: Now) -> bool {
        if self.tending.tend_at > now.at || self.batch.since.is_some() {
            return false;
        }
        let mut moved = mem::take(&mut self.tending.moved);
        let tended = self.log.tend(|seq, place| moved.push((seq, place)));
        for (seq, place) in moved.drain(..) {
            self.moved(seq, place);
        }
        self.tending.moved = moved;
        let usage = self.log.usage();
        let seen = (usage.records, usage.segments);
        let busy = mem::replace(&mut self.tending.seen, seen) != seen;
        let (pause, more) = match tended {
            Ok(true) => (Duration::ZERO, true),
            Ok(false) => (if busy { TEND } else { TEND_IDLE }, false),
            Err(error) => {
                emit(TendFailed { error: &error });
                (TEND_PAUSE, false)
            }
        };
        self.tending.tend_at = now.at + pause;
        self.disk = match self.disk {
            ask::Disk::Failing => ask::Disk::Failing,
            _ if usage.full => ask::Disk::Full,
            _ => ask::Disk::Good,
        };
        more
    }

    /// A record lies elsewhere from now on. Whose it is stands in it.
    fn moved(&mut self, seq: u64, place: Place) {
        if self.dead.moved(seq, place) {
            return;
        }
        let read = self.log.read(place, seq, &mut self.body).is_ok();
        let body = if read { Body::decode(&self.body).ok() } else { None };
        // What was just written cannot be read: then it is found by its number.
        let known =
            body.is_some_and(|body| self.queues.moved(body.hub, body.device, body.priority, seq, place));
        if !known {
            self.queues.moved_somewhere(seq, place);
        }
    }
}
