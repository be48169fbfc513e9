//! What the body of a log record says: a message that waits for its hub, or a dead letter.
//!
//! Compact, because every byte is written to a disk that wears: no names, no padding, and nothing that the message or
//! the log says already. The log adds number, length and checksum.
//!
//! ```text
//! u8   version (upper half) and kind (lower half: 0 message, 1 dead letter)
//! u8   flags
//! u8   priority
//! u48  when it was stored, milliseconds since 1970
//! [v]  ttl in milliseconds, if the flag says so
//! [v]  greatest age in milliseconds, if the flag says so
//! v+n  hub
//! v+n  device
//! [v+n] address, unless the flag says that it is the device's events node
//! v+n  rule
//! dead letter: u8 reason, u48 when it died, v+n description
//! ...  the message: its sections of AMQP 1.0 3.2 without the header
//! ```
//! `v` is an unsigned LEB128 number, `n` as many bytes of UTF-8, fixed numbers are little-endian.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fieldgate_mappings::address::{Address, DeviceId};
use fieldgate_mappings::delivery::WhenFull;
use fieldgate_mappings::outcome::Reason;
use thiserror::Error;

/// The format that this program writes. It reads this one and refuses to start on any other.
const VERSION: u8 = 1;

const KIND_MESSAGE: u8 = 0;
const KIND_DEAD_LETTER: u8 = 1;

const POSSIBLY_DELIVERED: u8 = 1;
const DURABLE: u8 = 1 << 1;
const HAS_TTL: u8 = 1 << 2;
const HAS_MAX_AGE: u8 = 1 << 3;
/// The address is `devices/{device}/messages/events`, which nearly all are: 30 bytes saved.
const EVENTS_NODE: u8 = 1 << 4;

/// The longest text of a rule's place or a refusal's description that is kept.
const MAX_TEXT_BYTES: usize = 255;
/// The longest name of a hub.
const MAX_HUB_BYTES: usize = 255;

/// A message that is to be kept, or is kept, on the disk.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    /// The connector's name.
    pub(crate) hub: Arc<str>,
    pub(crate) device: DeviceId,
    pub(crate) address: Address,
    /// As AMQP's: 0 to 9, 4 is normal. Part of what order is kept for.
    pub(crate) priority: u8,
    /// Milliseconds since 1970; [`Spool::submit`](super::Spool::submit) sets it.
    pub(crate) stored_at: u64,
    /// The `ttl` of the message's header. The hub is told what is left of it.
    pub(crate) ttl: Option<Duration>,
    /// How long the rule lets it wait here. Longer, it becomes a dead letter.
    pub(crate) max_age: Option<Duration>,
    /// `durable` of the message's header.
    pub(crate) durable: bool,
    /// It was sent before, and nobody knows whether it was taken: every delivery from here is marked.
    pub(crate) possibly_delivered: bool,
    /// The rule that made the message: ``file:line `name` @version``.
    pub(crate) rule: Arc<str>,
    /// The encoded message without its header (AMQP 1.0 3.2): annotations, properties, body.
    pub(crate) message: Bytes,
}

impl Record {
    /// When the message is worth nothing any more, in milliseconds since 1970.
    pub(crate) fn expires_at(&self, spool_max_age: Duration) -> u64 {
        expires_at(self.stored_at, [self.ttl, self.max_age], spool_max_age)
    }
}

/// A message that will not be sent, and why.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DeadLetter {
    pub(crate) record: Record,
    pub(crate) reason: DeadReason,
    /// One sentence without secrets and payload: the hub's, mostly.
    pub(crate) description: Cow<'static, str>,
    /// When it died, in milliseconds since 1970; [`Spool::submit`](super::Spool::submit) sets it.
    pub(crate) died_at: u64,
}

/// What a worker hands over.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Entry {
    /// To be sent when the hub takes it.
    Message(Record),
    /// To be kept for people.
    DeadLetter(DeadLetter),
}

impl Entry {
    /// The message in it.
    pub(crate) fn record(&self) -> &Record {
        match self {
            Self::Message(record) | Self::DeadLetter(DeadLetter { record, .. }) => record,
        }
    }
}

/// Why a message is not sent. A bounded label for metrics, and a byte on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum DeadReason {
    /// The hub refused it, or the mapping did.
    Rejected(Refused),
    /// Its time to live, its rule's greatest age or the spool's was over.
    Expired,
    /// It was the oldest of its device when there was no room for a newer one (`full = "dead-letter-oldest"`).
    MadeRoom,
}

/// [`Reason`] without what only a living device needs to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Refused {
    Credentials,
    NotPermitted,
    NoSuchAddress,
    TooLarge,
    Quota,
    Content,
}

impl From<&Reason> for Refused {
    fn from(reason: &Reason) -> Self {
        match reason {
            Reason::Credentials => Self::Credentials,
            Reason::NotPermitted => Self::NotPermitted,
            Reason::NoSuchAddress => Self::NoSuchAddress,
            Reason::TooLarge => Self::TooLarge,
            // The latter two are the gateway's own, and no hub's; a message that met them is nowhere.
            Reason::Quota { .. } | Reason::Full { .. } | Reason::Disk { .. } => Self::Quota,
            Reason::Content => Self::Content,
        }
    }
}

/// Every reason, with its name and its byte on the disk. A byte is never used again for something else.
const REASONS: [(DeadReason, &str, u8); 8] = [
    (DeadReason::Rejected(Refused::Credentials), "credentials", 1),
    (DeadReason::Rejected(Refused::NotPermitted), "not-permitted", 2),
    (DeadReason::Rejected(Refused::NoSuchAddress), "no-such-address", 3),
    (DeadReason::Rejected(Refused::TooLarge), "too-large", 4),
    (DeadReason::Rejected(Refused::Quota), "quota", 5),
    (DeadReason::Rejected(Refused::Content), "content", 6),
    (DeadReason::Expired, "expired", 16),
    (DeadReason::MadeRoom, "made-room", 17),
];

impl DeadReason {
    /// The label.
    pub(crate) fn name(self) -> &'static str {
        self.entry().1
    }

    /// Whether the hub may have had the message before it died.
    pub(crate) fn was_sent(self) -> bool {
        matches!(self, Self::Rejected(_))
    }

    fn entry(self) -> &'static (Self, &'static str, u8) {
        REASONS
            .iter()
            .find(|(reason, ..)| *reason == self)
            .expect("the table has every reason; a test holds it")
    }

    fn from_byte(byte: u8) -> Option<Self> {
        REASONS.iter().find(|(.., code)| *code == byte).map(|(reason, ..)| *reason)
    }
}

/// What a rule says about its messages' room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes that its device may have in the spool; absent, the configuration's.
    pub(crate) max_bytes: Option<u64>,
    pub(crate) full: WhenFull,
}

/// Why a message was not taken. It is not on the disk, and its device must hear so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The device, or the spool, has as much as it may have; or the disk is full.
    Full { retry_after: Duration },
    /// The disk failed, or the gateway stops.
    Failed { retry_after: Duration },
    /// It would not fit even into an empty spool.
    TooLarge,
}

/// Bytes in a log that are no record of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum RecordError {
    /// Written by a program that is newer, or older.
    #[error("a record has format {0}; this program reads format {VERSION} only")]
    Version(u8),
    /// Its checksum was right, and it cannot be read.
    #[error("a record's {0} cannot be read")]
    Content(&'static str),
}

/// A record's body, read in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Body<'a> {
    pub(crate) hub: &'a str,
    pub(crate) device: &'a str,
    /// Absent: the device's events node.
    address: Option<&'a str>,
    pub(crate) priority: u8,
    pub(crate) stored_at: u64,
    pub(crate) ttl: Option<Duration>,
    pub(crate) max_age: Option<Duration>,
    pub(crate) durable: bool,
    pub(crate) possibly_delivered: bool,
    pub(crate) rule: &'a str,
    pub(crate) death: Option<Death<'a>>,
    pub(crate) message: &'a [u8],
}

/// What a dead letter says beside its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Death<'a> {
    pub(crate) reason: DeadReason,
    pub(crate) died_at: u64,
    pub(crate) description: &'a str,
}

impl Entry {
    /// Appends the head of the body; the message follows it as it is.
    pub(crate) fn encode_head(&self, out: &mut Vec<u8>) {
        let record = self.record();
        let death = match self {
            Self::Message(_) => None,
            Self::DeadLetter(letter) => Some(Death {
                reason: letter.reason,
                died_at: letter.died_at,
                description: &letter.description,
            }),
        };
        let own_node = is_events_node(record.address.as_str(), record.device.as_str());
        let body = Body {
            hub: &record.hub,
            device: record.device.as_str(),
            address: (!own_node).then_some(record.address.as_str()),
            priority: record.priority,
            stored_at: record.stored_at,
            ttl: record.ttl,
            max_age: record.max_age,
            durable: record.durable,
            possibly_delivered: record.possibly_delivered,
            rule: &record.rule,
            death,
            message: &record.message,
        };
        body.encode_head(out);
    }
}

impl<'a> Body<'a> {
    /// Appends the head of the body; the message follows it as it is.
    pub(crate) fn encode_head(&self, out: &mut Vec<u8>) {
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        let kind = if self.death.is_some() { KIND_DEAD_LETTER } else { KIND_MESSAGE };
        let flags = flag(self.possibly_delivered, POSSIBLY_DELIVERED)
            | flag(self.durable, DURABLE)
            | flag(self.ttl.is_some(), HAS_TTL)
            | flag(self.max_age.is_some(), HAS_MAX_AGE)
            | flag(self.address.is_none(), EVENTS_NODE);
        out.extend_from_slice(&[VERSION << 4 | kind, flags, self.priority]);
        put_time(out, self.stored_at);
        for duration in [self.ttl, self.max_age].into_iter().flatten() {
            put_number(out, u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
        }
        put_text(out, self.hub, MAX_HUB_BYTES);
        put_text(out, self.device, DeviceId::MAX_BYTES);
        if let Some(address) = self.address {
            put_text(out, address, Address::MAX_BYTES);
        }
        put_text(out, self.rule, MAX_TEXT_BYTES);
        if let Some(death) = &self.death {
            out.push(death.reason.entry().2);
            put_time(out, death.died_at);
            put_text(out, death.description, MAX_TEXT_BYTES);
        }
    }

    /// Reads a body.
    ///
    /// # Errors
    /// When it is of another format, or none at all.
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let mut reader = Reader(bytes);
        let first = reader.byte("first byte")?;
        if first >> 4 != VERSION {
            return Err(RecordError::Version(first >> 4));
        }
        let flags = reader.byte("flags")?;
        let priority = reader.byte("priority")?;
        let stored_at = reader.time("time")?;
        let has = |bit: u8| flags & bit != 0;
        Ok(Self {
            priority,
            stored_at,
            ttl: reader.duration_if(has(HAS_TTL), "ttl")?,
            max_age: reader.duration_if(has(HAS_MAX_AGE), "greatest age")?,
            hub: reader.text("hub")?,
            device: reader.text("device")?,
            address: if has(EVENTS_NODE) { None } else { Some(reader.text("address")?) },
            rule: reader.text("rule")?,
            death: match first & 0x0f {
                KIND_MESSAGE => None,
                KIND_DEAD_LETTER => Some(Death {
                    reason: DeadReason::from_byte(reader.byte("reason")?)
                        .ok_or(RecordError::Content("reason"))?,
                    died_at: reader.time("time of death")?,
                    description: reader.text("description")?,
                }),
                _ => return Err(RecordError::Content("kind")),
            },
            durable: has(DURABLE),
            possibly_delivered: has(POSSIBLY_DELIVERED),
            message: reader.0,
        })
    }

    /// The hub's node.
    pub(crate) fn address(&self) -> Cow<'a, str> {
        match self.address {
            Some(address) => Cow::Borrowed(address),
            None => Cow::Owned(format!("devices/{}/messages/events", self.device)),
        }
    }

    /// When the message is worth nothing any more, in milliseconds since 1970.
    pub(crate) fn expires_at(&self, spool_max_age: Duration) -> u64 {
        expires_at(self.stored_at, [self.ttl, self.max_age], spool_max_age)
    }
}

/// 2026 began. An earlier time was told by a clock that nobody had set yet, and says nothing of an age.
const CLOCK_IS_SET: u64 = 1_767_225_600_000;

/// A time that was written down, in milliseconds since 1970; the present one where the clock was not set then.
pub(super) fn since(written: u64, now: u64) -> u64 {
    if is_set(written) { written } else { now }
}

/// Whether a time that was written down, in milliseconds since 1970, was told by a clock that was set.
pub(super) fn is_set(written: u64) -> bool {
    written >= CLOCK_IS_SET
}

fn expires_at(stored_at: u64, lives: [Option<Duration>; 2], spool_max_age: Duration) -> u64 {
    if !is_set(stored_at) {
        return u64::MAX;
    }
    let life = lives.into_iter().flatten().fold(spool_max_age, Duration::min);
    stored_at.saturating_add(u64::try_from(life.as_millis()).unwrap_or(u64::MAX))
}

/// Whether the address is the device's events node. An id that an address writes otherwise (`#`) is not compressed.
fn is_events_node(address: &str, device: &str) -> bool {
    address
        .strip_prefix("devices/")
        .and_then(|rest| rest.strip_prefix(device))
        .is_some_and(|rest| rest == "/messages/events")
}

fn put_time(out: &mut Vec<u8>, millis: u64) {
    out.extend_from_slice(&millis.to_le_bytes()[..6]);
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_text(out: &mut Vec<u8>, text: &str, most: usize) {
    let text = &text[..text.floor_char_boundary(most)];
    put_number(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// What is left of a body.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], RecordError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(RecordError::Content(what))?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self, what: &'static str) -> Result<u8, RecordError> {
        Ok(self.take(1, what)?[0])
    }

    fn time(&mut self, what: &'static str) -> Result<u64, RecordError> {
        let mut bytes = [0; 8];
        bytes[..6].copy_from_slice(self.take(6, what)?);
        Ok(u64::from_le_bytes(bytes))
    }

    fn number(&mut self, what: &'static str) -> Result<u64, RecordError> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(what)?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(RecordError::Content(what))
    }

    fn duration_if(&mut self, there: bool, what: &'static str) -> Result<Option<Duration>, RecordError> {
        there.then(|| self.number(what).map(Duration::from_millis)).transpose()
    }

    fn text(&mut self, what: &'static str) -> Result<&'a str, RecordError> {
        let length = usize::try_from(self.number(what)?).map_err(|_| RecordError::Content(what))?;
        std::str::from_utf8(self.take(length, what)?).map_err(|_| RecordError::Content(what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(device: &str, address: &str) -> Record {
        Record {
            hub: "upstream".into(),
            device: DeviceId::new(device).unwrap(),
            address: Address::parse(address).unwrap(),
            priority: 4,
            stored_at: 1_795_379_735_123,
            ttl: None,
            max_age: None,
            durable: false,
            possibly_delivered: false,
            rule: "azure-iot-hub.toml:12 `telemetry`".into(),
            message: Bytes::from_static(b"\x00\x53\x75\xa0\x02on"),
        }
    }

    fn bytes(entry: &Entry) -> Vec<u8> {
        let mut out = Vec::new();
        entry.encode_head(&mut out);
        out.extend_from_slice(&entry.record().message);
        out
    }

    #[test]
    fn a_record_survives_the_disk() {
        let mut full = record("pump-1", "devices/pump-1/messages/events");
        (full.ttl, full.max_age) = (Some(Duration::from_millis(90_001)), Some(Duration::from_secs(86_400)));
        (full.durable, full.possibly_delivered, full.priority) = (true, true, 9);
        for record in [full, record("pump-1", "other/node"), record("a#b", "devices/a%23b/messages/events")] {
            let encoded = bytes(&Entry::Message(record.clone()));
            let body = Body::decode(&encoded).unwrap();
            assert_eq!(
                (body.hub, body.device, body.rule),
                (&*record.hub, record.device.as_str(), &*record.rule)
            );
            assert_eq!(body.address(), record.address.as_str());
            assert_eq!((body.priority, body.stored_at), (record.priority, record.stored_at));
            assert_eq!((body.ttl, body.max_age), (record.ttl, record.max_age));
            assert_eq!((body.durable, body.possibly_delivered), (record.durable, record.possibly_delivered));
            assert_eq!((body.message, body.death), (&record.message[..], None));
        }
    }

    #[test]
    fn a_dead_letter_survives_the_disk_for_every_reason() {
        for (reason, ..) in REASONS {
            let record = record("pump-1", "devices/pump-1/messages/events");
            let letter = DeadLetter { record, reason, description: "no".into(), died_at: 7 };
            let encoded = bytes(&Entry::DeadLetter(letter));
            let death = Body::decode(&encoded).unwrap().death;
            assert_eq!(death, Some(Death { reason, died_at: 7, description: "no" }));
        }
        for (reason, expected) in [
            (Reason::Credentials, "credentials"),
            (Reason::NotPermitted, "not-permitted"),
            (Reason::NoSuchAddress, "no-such-address"),
            (Reason::TooLarge, "too-large"),
            (Reason::Quota { retry_after: None }, "quota"),
            (Reason::Content, "content"),
        ] {
            assert_eq!(DeadReason::Rejected((&reason).into()).name(), expected);
        }
    }

    #[test]
    fn the_usual_record_is_small() {
        let usual = record("sensor-0042", "devices/sensor-0042/messages/events");
        let head = bytes(&Entry::Message(usual.clone())).len() - usual.message.len();
        // Version, flags, priority, time; hub, device, rule with their lengths.
        assert_eq!(head, 3 + 6 + 9 + 12 + 34);
    }

    #[test]
    fn what_is_cut_or_strange_is_an_error() {
        let letter = DeadLetter {
            record: Record { message: Bytes::new(), ..record("pump-1", "other/node") },
            reason: DeadReason::Expired,
            description: "too old".into(),
            died_at: 7,
        };
        let encoded = bytes(&Entry::DeadLetter(letter));
        assert!(Body::decode(&encoded).is_ok());
        for length in 0..encoded.len() {
            assert!(matches!(Body::decode(&encoded[..length]), Err(RecordError::Content(_))), "{length}");
        }
        let with_first = |first: u8| Body::decode(&[&[first], &encoded[1..]].concat()).map(|_| ());
        assert_eq!(with_first(0x20), Err(RecordError::Version(2)));
        assert_eq!(with_first(0x12), Err(RecordError::Content("kind")));
        let endless = [&[0x10, HAS_TTL, 4][..], &[0; 6], &[0xff; 11]].concat();
        assert_eq!(Body::decode(&endless), Err(RecordError::Content("ttl")));
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let mut long = record("pump-1", "other/node");
        long.rule = format!("x{}", "é".repeat(400)).into();
        let encoded = bytes(&Entry::Message(long));
        assert_eq!(Body::decode(&encoded).unwrap().rule.len(), 255);
    }

    #[test]
    fn the_shortest_life_counts() {
        let mut short = record("pump-1", "other/node");
        let at = short.stored_at;
        let expires = |record: &Record| {
            let encoded = bytes(&Entry::Message(record.clone()));
            Body::decode(&encoded).unwrap().expires_at(Duration::from_secs(10)) - at
        };
        assert_eq!(expires(&short), 10_000);
        short.max_age = Some(Duration::from_secs(5));
        assert_eq!(expires(&short), 5_000);
        short.ttl = Some(Duration::from_millis(1));
        assert_eq!(expires(&short), 1);
    }
}
