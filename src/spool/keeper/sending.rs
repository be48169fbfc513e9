//! What goes to the hubs, and what comes of it.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use fieldgate_mappings::address::{Address, DeviceId};
use fieldgate_mappings::outcome::{Outcome, Reason, Rejection};

use super::{Keeper, Now};
use crate::spool::ages::Ages;
use crate::spool::marking::{self, Marks};
use crate::spool::queues::{Ended, Send};
use crate::spool::record::{Body, DeadReason, Refused};
use crate::spool::telemetry::{MessageDrained, MessageResent, ReadFailed, RecordsDamaged};
use crate::store::Disk;
use crate::telemetry::emit;

/// After a read that failed.
const READ_PAUSE: Duration = Duration::from_secs(1);

/// A message to be sent: [`Keeper::report`] is told how it ended.
#[derive(Debug)]
pub(in crate::spool) struct Sending<'a> {
    pub(in crate::spool) flight: u64,
    pub(in crate::spool) device: DeviceId,
    /// The hub that it was stored for.
    pub(in crate::spool) hub: Arc<str>,
    pub(in crate::spool) address: Address,
    /// The sections of the message.
    pub(in crate::spool) encoded: &'a [u8],
}

/// What keeps a record from being sent.
enum Unsendable {
    /// Its time is over.
    Expired,
    /// It holds no message.
    Content(String),
}

impl<D: Disk> Keeper<D> {
    /// Says whether a hub can be reached.
    pub(in crate::spool) fn set_open(&mut self, hub: &Arc<str>, open: bool) {
        if self.queues.set_open(hub, open) {
            self.ages.reached();
        }
    }

    /// The next message to be sent.
    pub(in crate::spool) fn next(&mut self, now: Now) -> Option<Sending<'_>> {
        self.look_at_clock(now);
        let (send, address) = loop {
            let send = self.queues.next(now.at)?;
            if let Some(address) = self.prepare(&send, now) {
                break (send, address);
            }
        };
        if send.marked {
            emit(MessageResent);
        }
        let Send { flight, device, hub, .. } = send;
        Some(Sending { flight, device, hub, address, encoded: &self.encoded })
    }

    /// Reads and encodes a message; or ends it.
    fn prepare(&mut self, send: &Send, now: Now) -> Option<Address> {
        match self.log.read(send.place, send.seq, &mut self.body) {
            Ok(()) => self.unreadable.read(send.seq, now),
            Err(error) if self.unreadable.is_lost(send.seq, &error, now) => {
                emit(RecordsDamaged { spots: 1, lost: 1, what: &error });
                self.ended(send.flight, Ended::Done, now);
                return None;
            }
            Err(error) => {
                emit(ReadFailed { error: &error });
                self.ended(send.flight, Ended::Again { pause: Some(READ_PAUSE) }, now);
                return None;
            }
        }
        marking::write_message_id(&mut self.message_id, self.log.id(), send.seq);
        let marks = Marks { message_id: &self.message_id, resent: send.marked, now: now.unix_ms };
        self.encoded.clear();
        match encode(&self.body, marks, &self.ages, send.seq, self.settings.max_age, &mut self.encoded) {
            Ok(address) => Some(address),
            Err(Unsendable::Expired) => {
                self.ended(send.flight, Ended::Dead(DeadReason::Expired), now);
                None
            }
            Err(Unsendable::Content(what)) => {
                self.descriptions.insert(send.seq, what.into());
                self.ended(send.flight, Ended::Dead(DeadReason::Rejected(Refused::Content)), now);
                None
            }
        }
    }

    /// What became of a message that was sent.
    pub(in crate::spool) fn report(&mut self, flight: u64, outcome: Outcome, now: Now) {
        let ended = match outcome {
            Outcome::Accepted => {
                emit(MessageDrained);
                Ended::Done
            }
            // Its turn will come: neither is the message's fault.
            Outcome::Rejected(Rejection { reason: Reason::Quota { retry_after }, .. }) => {
                Ended::Again { pause: retry_after }
            }
            Outcome::Rejected(Rejection { reason: Reason::Credentials, .. }) => Ended::Again { pause: None },
            Outcome::Rejected(Rejection { reason, description }) => {
                if let Some(seq) = self.queues.seq_of(flight) {
                    self.descriptions.insert(seq, description);
                }
                Ended::Dead(DeadReason::Rejected((&reason).into()))
            }
            Outcome::Released | Outcome::Unknown => Ended::Again { pause: None },
        };
        self.ended(flight, ended, now);
    }

    fn ended(&mut self, flight: u64, ended: Ended, now: Now) {
        if let Some((seq, place)) = self.queues.report(flight, ended, now.at) {
            self.settle(seq, place, now);
        }
        self.release_left();
    }

    /// What is said in a dead letter beside its reason.
    pub(super) fn description(&self, seq: u64, reason: DeadReason) -> Cow<'static, str> {
        match reason {
            DeadReason::Rejected(_) => {
                self.descriptions.get(&seq).cloned().unwrap_or("the hub refused the message".into())
            }
            DeadReason::Expired => "it waited longer than it may".into(),
            DeadReason::MadeRoom => "its device had no room left for newer messages".into(),
        }
    }
}

fn encode(
    bytes: &[u8],
    marks: Marks<'_>,
    ages: &Ages,
    seq: u64,
    max_age: Duration,
    out: &mut BytesMut,
) -> Result<Address, Unsendable> {
    let content = |error: &dyn std::fmt::Display| Unsendable::Content(error.to_string());
    let mut body = Body::decode(bytes).map_err(|error| content(&error))?;
    if !ages.tells(seq, body.stored_at / 1_000) {
        // Then it is as if it had come just now, for the hub as well.
        body.stored_at = marks.now;
    }
    if body.expires_at(max_age) <= marks.now {
        return Err(Unsendable::Expired);
    }
    marking::encode(&body, marks, out).map_err(|error| content(&error))?;
    Address::parse(&body.address()).map_err(|error| content(&error))
}
