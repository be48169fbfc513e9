//! What people ask: how the spool is, and what is to become of dead letters.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use fieldgate_mappings::address::{Address, DeviceId};

use super::{Keeper, Now, What};
use crate::spool::ask::{Answer, Ask, Done, HubStatus, Letter, List, Status, Which};
use crate::spool::dead::Dead;
use crate::spool::record::{Body, Death, Entry, Limits, Record};
use crate::store::Disk;

/// Dead letters that one question looks at: it bounds how long messages wait for its answer.
const LOOKED_AT: usize = 512;

/// What a dead letter can become.
enum Replayed {
    /// Part of the batch.
    Appended,
    /// There is no room.
    Refused,
    /// It cannot be read, or names what cannot be sent to.
    Unfit,
}

/// Who would send to hubs.
#[derive(Clone, Copy)]
pub(in crate::spool) enum Hubs<'a> {
    /// Nobody: what is there is only looked at.
    Nobody,
    /// A gateway, which stops.
    Stopping,
    /// A gateway, which knows what hub a device belongs to now: what is replayed goes there.
    Of(&'a dyn Fn(&DeviceId) -> Arc<str>),
}

impl<D: Disk> Keeper<D> {
    /// Answers, after the commit if something is changed.
    pub(in crate::spool) fn answer(&mut self, ask: &Ask, hubs: Hubs<'_>, now: Now) -> Answer {
        match ask {
            Ask::Status => Answer::Status(self.status(!matches!(hubs, Hubs::Nobody), now)),
            Ask::List { which, after, most } => Answer::List(self.list(which, *after, *most)),
            Ask::Show { seq } => Answer::Show(self.show(*seq).map(Box::new)),
            Ask::Replay { which, after, up_to } => {
                Answer::Done(self.replay(which, *after, *up_to, hubs, now))
            }
            Ask::Drop { which, after, up_to } => Answer::Done(self.drop_letters(which, *after, *up_to, now)),
        }
    }

    fn status(&self, connects: bool, now: Now) -> Status {
        let (totals, usage) = (self.queues.totals(), self.log.usage());
        let hubs = self.queues.hubs().map(|(name, open, totals)| HubStatus {
            name: name.to_string(),
            connected: connects.then_some(open),
            records: totals.records,
            bytes: totals.bytes,
        });
        Status {
            disk: self.disk,
            records: totals.records,
            bytes: totals.bytes,
            max_bytes: self.settings.bounds.max_bytes,
            devices: self.queues.devices(),
            in_flight: self.queues.in_flight(),
            oldest_seconds: self.oldest_seconds(now),
            dead_letters: self.dead.len(),
            dead_letter_bytes: self.dead.bytes(),
            dead_letters_forgone: self.tending.forgone,
            disk_bytes: usage.bytes,
            disk_max_bytes: usage.max_bytes,
            damaged: usage.damaged,
            hubs: hubs.collect(),
        }
    }

    fn list(&mut self, which: &Which, after: u64, most: usize) -> List {
        let (page, mut next) = self.page(which, after, u64::MAX);
        let mut letters = Vec::new();
        for (seq, dead) in page {
            let Some(letter) = self.letter(seq, dead, false).filter(|letter| which.means(letter)) else {
                continue;
            };
            if letters.len() >= most {
                next = letters.last().map(|last: &Letter| last.seq);
                break;
            }
            letters.push(letter);
        }
        List { letters, next }
    }

    fn show(&mut self, seq: u64) -> Option<Letter> {
        let dead = self.dead.get(seq)?;
        self.letter(seq, dead, true)
    }

    /// Dead letters to look at, and where to go on if these are not all.
    fn page(&self, which: &Which, after: u64, up_to: u64) -> (Vec<(u64, Dead)>, Option<u64>) {
        if let Some(seq) = which.seq {
            return (self.dead.get(seq).map(|dead| (seq, dead)).into_iter().collect(), None);
        }
        let page: Vec<(u64, Dead)> =
            self.dead.after(after).take_while(|(seq, _)| *seq <= up_to).take(LOOKED_AT).collect();
        let next = page.last().map(|(seq, _)| *seq).filter(|_| page.len() == LOOKED_AT);
        (page, next)
    }

    fn letter(&mut self, seq: u64, dead: Dead, with_message: bool) -> Option<Letter> {
        self.log.read(dead.place, seq, &mut self.body).ok()?;
        let body = Body::decode(&self.body).ok()?;
        let Death { reason, died_at, description } = body.death?;
        Some(Letter {
            seq,
            hub: body.hub.into(),
            device: body.device.into(),
            address: body.address().into_owned(),
            reason: reason.name().into(),
            description: description.into(),
            rule: body.rule.into(),
            stored_at: body.stored_at,
            died_at,
            priority: body.priority,
            bytes: body.message.len(),
            message: with_message.then(|| BASE64.encode(body.message)),
        })
    }

    fn replay(&mut self, which: &Which, after: u64, up_to: Option<u64>, hubs: Hubs<'_>, now: Now) -> Done {
        let (page, mut done) = self.begin(which, after, up_to);
        // What is asked twice while the first is on its way is not sent twice.
        self.commit(now);
        let before = self.dead.len();
        for (seq, dead) in page {
            if !self.is_meant(which, seq, dead) {
                continue;
            }
            match self.replay_one(seq, dead, hubs, now) {
                Replayed::Appended => {}
                Replayed::Refused => {
                    done.refused += 1;
                    // Further ones would find no room either.
                    (done.next, done.up_to) = (None, None);
                    break;
                }
                Replayed::Unfit => done.refused += 1,
            }
        }
        self.commit(now);
        done.done = before.saturating_sub(self.dead.len()) as u64;
        done
    }

    fn replay_one(&mut self, seq: u64, dead: Dead, hubs: Hubs<'_>, now: Now) -> Replayed {
        if self.disk_is_paused(now) {
            return Replayed::Refused;
        }
        let Some(mut record) = self.record_of(seq, dead, now) else { return Replayed::Unfit };
        if let Hubs::Of(hub_of) = hubs {
            record.hub = hub_of(&record.device);
        }
        let entry = Entry::Message(record);
        let record = entry.record();
        let mut head = Vec::new();
        entry.encode_head(&mut head);
        let Ok(admitted) = self.admit(record, head.len(), Limits::default()) else {
            return Replayed::Refused;
        };
        match self.append(&head, &record.message, now) {
            Ok((at, place)) => {
                self.shared.held.add(&record.hub, &record.device, 1);
                self.appended(at, place, What::Replay { admitted, letter: seq }, now);
                Replayed::Appended
            }
            Err(_) => {
                self.queues.give_back(admitted);
                Replayed::Refused
            }
        }
    }

    /// The message of a dead letter, as a new one.
    fn record_of(&mut self, seq: u64, dead: Dead, now: Now) -> Option<Record> {
        self.log.read(dead.place, seq, &mut self.body).ok()?;
        let body = Body::decode(&self.body).ok()?;
        let death = body.death.as_ref()?;
        Some(Record {
            hub: body.hub.into(),
            device: DeviceId::new(body.device).ok()?,
            address: Address::parse(&body.address()).ok()?,
            priority: body.priority,
            // Its time begins anew: whoever replays it wants it to be sent.
            stored_at: now.unix_ms,
            ttl: body.ttl,
            max_age: body.max_age,
            durable: body.durable,
            possibly_delivered: body.possibly_delivered || death.reason.was_sent(),
            rule: body.rule.into(),
            message: Bytes::copy_from_slice(body.message),
        })
    }

    /// A page to be done, and where to go on and end after it.
    fn begin(&self, which: &Which, after: u64, up_to: Option<u64>) -> (Vec<(u64, Dead)>, Done) {
        let up_to = up_to.unwrap_or_else(|| self.dead.newest());
        let (page, next) = self.page(which, after, up_to);
        (page, Done { next, up_to: next.map(|_| up_to), ..Done::default() })
    }

    fn drop_letters(&mut self, which: &Which, after: u64, up_to: Option<u64>, now: Now) -> Done {
        let (page, mut done) = self.begin(which, after, up_to);
        for (seq, dead) in page {
            if self.is_meant(which, seq, dead) {
                self.dead.remove(seq);
                self.settle(seq, dead.place, now);
                done.done += 1;
            }
        }
        self.commit(now);
        done
    }

    fn is_meant(&mut self, which: &Which, seq: u64, dead: Dead) -> bool {
        // One that cannot be read can be dropped by its number, or with all others.
        match self.letter(seq, dead, false) {
            Some(letter) => which.means(&letter),
            None => which.device.is_none() && which.reason.is_none(),
        }
    }
}

impl Which {
    fn means(&self, letter: &Letter) -> bool {
        let is = |asked: &Option<String>, given: &str| asked.as_deref().is_none_or(|asked| asked == given);
        self.seq.is_none_or(|seq| seq == letter.seq)
            && is(&self.device, &letter.device)
            && is(&self.reason, &letter.reason)
    }
}
