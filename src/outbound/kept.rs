//! A message in our keeping: what the disk would have to know of it, and who waits for its end.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use fieldgate_mappings::amqp;
use fieldgate_mappings::delivery::{Delivery, OnError};
use fieldgate_mappings::message::Message;
use fieldgate_mappings::outcome::{Outcome, Reason, Rejection, Verdict};

use crate::spool::{DeadLetter, DeadReason, Entry, Limits, Record, Refusal, Store};
use crate::upstream::{Hears, Patience};

/// What is kept beside a message, about: the record's other fields, its places in the tables, its allocation.
const OVERHEAD_BYTES: usize = 512;

/// A message whose end is not known.
#[derive(Debug)]
pub(super) struct Kept {
    /// As the disk would get it.
    pub(super) record: Record,
    pub(super) state: State,
    limits: Limits,
    verdict: Verdict,
    hears: Hears,
    /// How long it may wait for room on the disk.
    until: Instant,
    /// When it came: its time to live runs.
    since: Instant,
    /// The disk takes it if the hub does not.
    spools: bool,
    on_error: OnError,
}

/// How far a message is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The hub is to answer.
    Direct,
    /// For the disk, as soon as it is its turn.
    Waiting,
    /// The disk is to answer.
    Submitted,
    /// The hub has refused it; the disk is to answer whether it has it as a dead letter.
    Burying(Rejection),
}

/// What an answer of the hub means for a kept message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It has its end.
    End(Outcome),
    /// The disk is to have it; the hub may have it as well.
    Store { possibly_delivered: bool },
    /// The disk is to have it as a dead letter.
    Bury(Rejection),
}

impl Kept {
    /// A message that goes to the hub; `scratch` has it encoded afterwards. Nothing if its rule keeps nothing.
    pub(super) fn direct(
        message: &Message,
        hub: Arc<str>,
        patience: Patience,
        verdict: Verdict,
        scratch: &mut BytesMut,
        now: Instant,
    ) -> Option<Self> {
        scratch.clear();
        amqp::encode_header(message, scratch);
        let header_bytes = scratch.len();
        amqp::encode_rest(message, scratch);
        let mut kept = Self::new(message, hub, &scratch[header_bytes..], patience, verdict, now)?;
        kept.state = State::Direct;
        Some(kept)
    }

    /// A message that goes to the disk. Nothing if its rule keeps nothing.
    pub(super) fn waiting(
        message: &Message,
        hub: Arc<str>,
        patience: Patience,
        verdict: Verdict,
        scratch: &mut BytesMut,
        now: Instant,
    ) -> Option<Self> {
        scratch.clear();
        amqp::encode_rest(message, scratch);
        Self::new(message, hub, scratch, patience, verdict, now)
    }

    fn new(
        message: &Message,
        hub: Arc<str>,
        sections: &[u8],
        patience: Patience,
        verdict: Verdict,
        now: Instant,
    ) -> Option<Self> {
        let delivery: &Delivery = message.delivery.as_deref()?;
        let kept = delivery.when_offline.unwrap_or_default();
        let record = Record {
            hub,
            device: message.device.clone(),
            address: message.address.clone(),
            priority: delivery.priority,
            stored_at: 0,
            ttl: message.ttl,
            max_age: kept.max_age,
            durable: message.durable,
            possibly_delivered: false,
            rule: Arc::clone(&delivery.rule),
            message: Bytes::copy_from_slice(sections),
        };
        Some(Self {
            record,
            state: State::Waiting,
            limits: Limits { max_bytes: kept.max_bytes, full: kept.full },
            verdict,
            hears: patience.hears,
            until: patience.until,
            since: now,
            spools: delivery.spools(),
            on_error: delivery.on_error,
        })
    }

    /// What it takes of the bound.
    pub(super) fn bytes(&self) -> usize {
        self.record.message.len() + OVERHEAD_BYTES
    }

    /// What an answer of the hub means for it.
    pub(super) fn hub_said(&self, outcome: Outcome) -> Turn {
        let unheard = self.hears == Hears::Acceptance;
        match outcome {
            Outcome::Accepted => Turn::End(Outcome::Accepted),
            Outcome::Released if self.spools => Turn::Store { possibly_delivered: false },
            Outcome::Unknown if self.spools => Turn::Store { possibly_delivered: true },
            Outcome::Released | Outcome::Unknown => Turn::End(outcome),
            Outcome::Rejected(rejection) => match (self.on_error, rejection.reason) {
                // Later it would be taken, and its device has no other way to hear that: the disk waits in its place.
                (_, Reason::Quota { .. })
                    if self.spools && (unheard || self.on_error == OnError::DeadLetter) =>
                {
                    Turn::Store { possibly_delivered: false }
                }
                (OnError::DeadLetter, _) => Turn::Bury(rejection),
                // The device is told to come with other credentials.
                (OnError::Reject, Reason::Credentials) => Turn::End(Outcome::Rejected(rejection)),
                (OnError::Reject, _) if unheard => Turn::Bury(rejection),
                (OnError::Reject, _) => Turn::End(Outcome::Rejected(rejection)),
            },
        }
    }

    /// Whether its device still waits for its end: see [`Report::is_wanted`](fieldgate_mappings::outcome::Report).
    pub(super) fn is_wanted(&self, may_be_there: bool) -> bool {
        self.verdict.is_wanted(may_be_there || self.record.possibly_delivered)
    }

    /// What is heard of one that nobody wants any more.
    pub(super) fn unwanted(&self) -> Outcome {
        if self.record.possibly_delivered { Outcome::Unknown } else { Outcome::Released }
    }

    /// Whether it waits for room on the disk, and its device with it.
    pub(super) fn waits_for_room(&self, now: Instant) -> bool {
        self.hears == Hears::Acceptance && now < self.until
    }

    /// Whether it goes with those of its device that went before: its device does not send it again by itself.
    pub(super) fn follows(&self) -> bool {
        self.state == State::Waiting && self.hears == Hears::Acceptance
    }

    /// What the device hears when the disk does not take the message.
    pub(super) fn refused(&self, refusal: Refusal) -> Outcome {
        if self.hears == Hears::Acceptance && refusal != Refusal::TooLarge {
            // It has waited for room long enough. A refusal would be taken for an acknowledgement.
            return Outcome::Released;
        }
        let rejection = match refusal {
            Refusal::Full { retry_after } => {
                let reason = Reason::Full { retry_after: Some(retry_after) };
                Rejection::new(reason, "the hub is away, and there is no room to keep the message")
            }
            Refusal::Failed { retry_after } => {
                let reason = Reason::Disk { retry_after: Some(retry_after) };
                Rejection::new(reason, "the message could not be kept")
            }
            Refusal::TooLarge => Rejection::new(Reason::TooLarge, "the message is too large to be kept"),
        };
        Outcome::Rejected(rejection)
    }

    /// What the device hears when the disk has answered for the dead letter, or has not taken it.
    pub(super) fn buried(&self, rejection: Rejection, has_it: bool) -> Outcome {
        match (has_it, self.on_error) {
            (true, OnError::DeadLetter) => Outcome::Accepted,
            (true, OnError::Reject) => Outcome::Rejected(rejection),
            // To this device a refusal looks as if somebody had the message.
            (false, _) if self.hears == Hears::Acceptance => Outcome::Released,
            (false, _) => Outcome::Rejected(rejection),
        }
    }

    /// What the disk is handed.
    pub(super) fn store(&self, ticket: u64, now: Instant) -> Store {
        let mut record = self.record.clone();
        let waited = now.saturating_duration_since(self.since);
        record.ttl = record.ttl.map(|ttl| ttl.saturating_sub(waited).max(Duration::from_millis(1)));
        let entry = match &self.state {
            State::Burying(rejection) => Entry::DeadLetter(DeadLetter {
                record,
                reason: DeadReason::Rejected((&rejection.reason).into()),
                description: Cow::clone(&rejection.description),
                died_at: 0,
            }),
            State::Direct | State::Waiting | State::Submitted => Entry::Message(record),
        };
        Store { ticket, entry, limits: self.limits }
    }

    /// The hub, or the disk, may have it from here on: should all of this be lost, nobody knows.
    pub(super) fn on_its_way(&mut self, state: State) {
        self.state = state;
        self.verdict.sent();
    }

    /// Its end.
    pub(super) fn end(self, outcome: Outcome) {
        self.verdict.report(outcome);
    }
}
