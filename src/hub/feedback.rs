//! What became of commands, told to services.
//!
//! Records are gathered for a short while and then wait, as one message with a JSON array, in a queue that all
//! receivers of feedback share: each message goes to one of them.

use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fieldgate_mappings::{DeviceId, Timestamp};
use serde::Serialize;

use super::queue::{Departure, Lent, LockLost, LockToken, Queue, QueueRules, Settlement};
use super::time::{Iso, Now};

/// The content type of a feedback message.
pub(crate) const CONTENT_TYPE: &str = "application/vnd.microsoft.iothub.feedback.json";

/// A message is full with this many records.
const RECORDS_PER_MESSAGE: usize = 64;

/// What the sender of a command wants to hear of it: the application property `iothub-ack`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AckRequest {
    /// Nothing.
    None,
    /// That it was completed.
    Positive,
    /// That it came to nothing.
    Negative,
    /// Either.
    Full,
}

impl AckRequest {
    /// The request that the property's text makes; `None` for a text that means nothing.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        [
            ("none", Self::None),
            ("positive", Self::Positive),
            ("negative", Self::Negative),
            ("full", Self::Full),
        ]
        .into_iter()
        .find_map(|(word, request)| word.eq_ignore_ascii_case(text).then_some(request))
    }

    /// Whether a command that left its queue like this is worth a record.
    pub(crate) fn wants(self, departure: Departure) -> bool {
        match departure {
            Departure::Completed => matches!(self, Self::Positive | Self::Full),
            Departure::Rejected | Departure::DeliveryCountExceeded | Departure::Expired => {
                matches!(self, Self::Negative | Self::Full)
            }
        }
    }
}

/// What became of one command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) original_message_id: String,
    pub(crate) at: Timestamp,
    pub(crate) departure: Departure,
    pub(crate) device: DeviceId,
    pub(crate) generation: Rc<str>,
}

/// A record as it stands in the JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonRecord<'a> {
    original_message_id: &'a str,
    enqueued_time_utc: String,
    status_code: &'static str,
    description: &'static str,
    device_id: &'a str,
    device_generation_id: &'a str,
}

/// The bounds of feedback.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FeedbackLimits {
    /// Lock and delivery count.
    pub(crate) rules: QueueRules,
    /// How long a record may wait for company.
    pub(crate) gather: Duration,
    /// How long a message waits for a receiver.
    pub(crate) ttl: Duration,
    /// How many messages wait; the oldest goes when there would be more.
    pub(crate) max_messages: usize,
}

/// Records that are gathered and messages that wait.
#[derive(Debug)]
pub(crate) struct Feedback {
    gathered: Vec<Record>,
    due: Option<Instant>,
    queue: Queue<Bytes>,
    last_sequence: u64,
    limits: FeedbackLimits,
    lost: u64,
}

impl Feedback {
    /// No feedback yet.
    pub(crate) fn new(limits: FeedbackLimits) -> Self {
        Self { gathered: Vec::new(), due: None, queue: Queue::default(), last_sequence: 0, limits, lost: 0 }
    }

    /// Adds a record. Whether a message became ready is told by the result.
    pub(crate) fn push(&mut self, now: Now, record: Record) -> bool {
        self.gathered.push(record);
        self.due.get_or_insert(now.instant + self.limits.gather);
        let full = self.gathered.len() >= RECORDS_PER_MESSAGE;
        if full {
            self.flush(now);
        }
        full
    }

    /// Ends what is over at `now`. Whether a message became ready, or free again, is told by the result.
    pub(crate) fn elapse(&mut self, now: Now) -> bool {
        let (expired, mut ready) = self.queue.expire(now);
        self.lost += expired.len() as u64;
        if self.due.is_some_and(|due| due <= now.instant) {
            self.flush(now);
            ready = true;
        }
        ready
    }

    /// When gathered records become a message.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether no message waits or is lent.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Lends the next free message: the JSON.
    pub(crate) fn lock_next(&mut self, now: Now, token: LockToken) -> Option<Lent<'_, Bytes>> {
        self.queue.lock_next(now, token, self.limits.rules)
    }

    /// Ends a loan with what the receiver says.
    ///
    /// # Errors
    /// [`LockLost`] when it took longer than its lock.
    pub(crate) fn settle(
        &mut self,
        now: Now,
        token: LockToken,
        settlement: Settlement,
    ) -> Result<(), LockLost> {
        self.queue.settle(now, token, settlement, self.limits.rules).map(drop)
    }

    /// Ends a loan because the receiver is gone.
    pub(crate) fn give_back(&mut self, token: LockToken) {
        self.queue.give_back(token);
    }

    /// How many messages nobody came for, since this was asked last.
    pub(crate) fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    fn flush(&mut self, now: Now) {
        self.due = None;
        let records: Vec<JsonRecord<'_>> = self.gathered.iter().map(JsonRecord::from).collect();
        let json =
            serde_json::to_vec(&records).expect("text and no map: nothing in a record can fail to be JSON");
        drop(records);
        self.gathered = Vec::new();
        if self.queue.len() >= self.limits.max_messages && self.queue.pop_oldest().is_some() {
            self.lost += 1;
        }
        self.last_sequence += 1;
        self.queue.push(now, self.last_sequence, self.limits.ttl, json.into());
    }
}

impl<'a> From<&'a Record> for JsonRecord<'a> {
    fn from(record: &'a Record) -> Self {
        let word = match record.departure {
            Departure::Completed => "Success",
            Departure::Expired => "Expired",
            Departure::DeliveryCountExceeded => "DeliveryCountExceeded",
            Departure::Rejected => "Rejected",
        };
        Self {
            original_message_id: &record.original_message_id,
            enqueued_time_utc: Iso(record.at).to_string(),
            status_code: word,
            description: word,
            device_id: record.device.as_str(),
            device_generation_id: &record.generation,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: FeedbackLimits = FeedbackLimits {
        rules: QueueRules { lock: Duration::from_secs(60), max_delivery_count: 10 },
        gather: Duration::from_secs(15),
        ttl: Duration::from_secs(3600),
        max_messages: 2,
    };

    fn record(now: Now, id: &str) -> Record {
        Record {
            original_message_id: id.into(),
            at: now.wall,
            departure: Departure::Completed,
            device: DeviceId::new("pump-1").unwrap(),
            generation: "g1".into(),
        }
    }

    fn token(number: u8) -> LockToken {
        LockToken([number; 16])
    }

    fn ids(json: &[u8]) -> Vec<String> {
        let records: Vec<serde_json::Value> = serde_json::from_slice(json).unwrap();
        records.iter().map(|record| record["originalMessageId"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn records_wait_for_company_but_not_for_long() {
        let (now, mut feedback) = (Now::test(), Feedback::new(LIMITS));
        assert!(!feedback.elapse(now));
        assert!(!feedback.push(now, record(now, "1")));
        assert!(!feedback.push(now.plus(Duration::from_secs(9)), record(now, "\"2\"")));
        assert_eq!(feedback.due(), Some(now.instant + LIMITS.gather));
        assert!(feedback.lock_next(now, token(1)).is_none());
        let due = now.plus(LIMITS.gather);
        assert!(feedback.elapse(due));
        assert_eq!(feedback.due(), None);
        let lent = feedback.lock_next(due, token(1)).unwrap();
        assert_eq!((lent.sequence, ids(lent.item)), (1, vec!["1".to_owned(), "\"2\"".to_owned()]));
        assert_eq!(feedback.settle(due, token(1), Settlement::Complete), Ok(()));
        assert!(feedback.is_empty());
    }

    #[test]
    fn the_json_is_iot_hubs() {
        let (now, mut feedback) = (Now::test(), Feedback::new(LIMITS));
        feedback.push(now, record(now, "m-1"));
        feedback.elapse(now.plus(LIMITS.gather));
        let json = feedback.lock_next(now, token(1)).unwrap().item.clone();
        let text = std::str::from_utf8(&json).unwrap();
        assert_eq!(
            text,
            "[{\"originalMessageId\":\"m-1\",\"enqueuedTimeUtc\":\"2027-01-15T08:00:00.000Z\",\
             \"statusCode\":\"Success\",\"description\":\"Success\",\"deviceId\":\"pump-1\",\
             \"deviceGenerationId\":\"g1\"}]"
        );
        for (departure, word) in [
            (Departure::Expired, "Expired"),
            (Departure::Rejected, "Rejected"),
            (Departure::DeliveryCountExceeded, "DeliveryCountExceeded"),
        ] {
            let record = Record { departure, ..record(now, "m") };
            assert_eq!(JsonRecord::from(&record).status_code, word);
        }
    }

    #[test]
    fn sixty_four_records_are_a_message_at_once_and_unread_messages_have_an_end() {
        let (now, mut feedback) = (Now::test(), Feedback::new(LIMITS));
        for number in 0..3 * 64 {
            assert_eq!(feedback.push(now, record(now, &number.to_string())), number % 64 == 63);
        }
        assert_eq!(feedback.take_lost(), 1);
        let first = feedback.lock_next(now, token(1)).unwrap();
        assert_eq!(ids(first.item)[0], "64", "the oldest had to go");
        assert!(feedback.lock_next(now, token(2)).is_some());
        assert!(feedback.lock_next(now, token(3)).is_none());
        feedback.give_back(token(2));
        assert!(feedback.elapse(now.plus(LIMITS.rules.lock)), "a lock ran out");
        feedback.elapse(now.plus(LIMITS.ttl));
        assert_eq!((feedback.take_lost(), feedback.is_empty()), (2, true));
    }

    #[test]
    fn words_of_the_request() {
        assert_eq!(AckRequest::parse("Full"), Some(AckRequest::Full));
        assert_eq!(AckRequest::parse("none"), Some(AckRequest::None));
        assert_eq!(AckRequest::parse("always"), None);
    }
}
