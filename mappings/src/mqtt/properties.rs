//! What MQTT 5 says beside the topic (3.3.2.3), and its place in the model: read from a device's PUBLISH, written to a
//! command's.
//!
//! | MQTT 5 | model, and AMQP 1.0 |
//! |---|---|
//! | Content Type | content-type |
//! | Response Topic | reply-to |
//! | Correlation Data | correlation-id: see [`correlation`] |
//! | Message Expiry Interval | ttl |
//! | Payload Format Indicator 1 | application property `mqtt-payload-format` = `utf-8` |
//! | the retain flag | application property `mqtt-retain` = `true`, as Azure has it |
//! | a user property | an application property; the second of a name is `name[2]`, for AMQP knows a name once |
//! | user property `amqp-<name>` | that AMQP property, which has no other place in MQTT: see [`Named`] |
//!
//! What a convention says in the topic stands, and is not said again.

use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;

use crate::azure;
use crate::message::{Message, MessageId, Properties, Value};
use crate::outcome::{Reason, Rejection};
use crate::time;

use super::correlation;

/// Says that a PUBLISH had the retain flag.
const RETAIN: &str = "mqtt-retain";
/// Says that the payload is text.
const FORMAT: &str = "mqtt-payload-format";
/// The one format that has a name.
const UTF_8: &str = "utf-8";

/// The properties of an MQTT 5 PUBLISH (3.3.2.3) that mean something beyond the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PublishProperties {
    /// Payload Format Indicator: the payload is UTF-8 text.
    pub payload_is_text: bool,
    /// Content Type.
    pub content_type: Option<ByteString>,
    /// Response Topic.
    pub response_topic: Option<ByteString>,
    /// Correlation Data.
    pub correlation_data: Option<Bytes>,
    /// Message Expiry Interval; whole seconds on the wire.
    pub message_expiry: Option<Duration>,
    /// User Properties, in order.
    pub user_properties: Vec<(ByteString, ByteString)>,
}

/// An AMQP property that MQTT 5 has no place for but a user property of this name.
#[derive(Debug, Clone, Copy)]
enum Named {
    MessageId,
    Subject,
    ReplyTo,
    ContentEncoding,
    CreationTime,
    AbsoluteExpiryTime,
    /// Who sent a command. A device does not say it: its own identity is known.
    UserId,
    /// Whom a command is for. A device does not say it: the rule does.
    To,
}

const NAMED: [(&str, Named); 8] = [
    ("amqp-message-id", Named::MessageId),
    ("amqp-subject", Named::Subject),
    ("amqp-reply-to", Named::ReplyTo),
    ("amqp-content-encoding", Named::ContentEncoding),
    ("amqp-creation-time", Named::CreationTime),
    ("amqp-absolute-expiry-time", Named::AbsoluteExpiryTime),
    ("amqp-user-id", Named::UserId),
    ("amqp-to", Named::To),
];

/// Reads what a PUBLISH says beside topic and payload. The first `own` application properties are the rule's.
pub(super) fn read(
    message: &mut Message,
    own: usize,
    retain: bool,
    properties: PublishProperties,
) -> Result<(), Rejection> {
    let PublishProperties {
        payload_is_text,
        content_type,
        response_topic,
        correlation_data,
        message_expiry,
        user_properties,
    } = properties;
    message.ttl = message_expiry.or(message.ttl);
    let known = &mut message.properties;
    if let (None, Some(content_type)) = (&known.content_type, content_type) {
        known.content_type = Some(azure::symbol(content_type)?);
    }
    if let (None, Some(correlation)) = (&known.correlation_id, correlation_data) {
        known.correlation_id = Some(correlation::read(correlation, response_topic.is_some()));
    }
    known.reply_to = response_topic.or(known.reply_to.take());
    if retain {
        azure::add_property(message, own, ByteString::from_static(RETAIN), "true".into())?;
    }
    if payload_is_text {
        azure::add_property(message, own, ByteString::from_static(FORMAT), UTF_8.into())?;
    }
    let first = message.application_properties.len();
    for (name, value) in user_properties {
        match NAMED.iter().find(|(known, _)| name == *known) {
            Some((_, named)) => read_named(&mut message.properties, *named, value)?,
            None => {
                let name = numbered(&message.application_properties[first..], name);
                azure::add_property(message, own, name, Value::String(value))?;
            }
        }
    }
    Ok(())
}

/// The name under which one more user property of `name` stands.
fn numbered(earlier: &[(ByteString, Value)], name: ByteString) -> ByteString {
    let is_free = |name: &str| earlier.iter().all(|(known, _)| known != name);
    if is_free(&name) {
        return name;
    }
    (2..).map(|number| format!("{name}[{number}]")).find(|name| is_free(name)).map_or(name, ByteString::from)
}

fn read_named(properties: &mut Properties, named: Named, value: ByteString) -> Result<(), Rejection> {
    match named {
        Named::MessageId => once(&mut properties.message_id, MessageId::String(value)),
        Named::Subject => once(&mut properties.subject, value),
        Named::ReplyTo => once(&mut properties.reply_to, value),
        Named::ContentEncoding => once(&mut properties.content_encoding, azure::symbol(value)?),
        Named::CreationTime => once(&mut properties.creation_time, timestamp(&value)?),
        Named::AbsoluteExpiryTime => once(&mut properties.absolute_expiry_time, timestamp(&value)?),
        Named::UserId | Named::To => {
            let message = "a device says neither `amqp-user-id` nor `amqp-to`";
            Err(Rejection::new(Reason::NotPermitted, message))
        }
    }
}

fn once<T>(place: &mut Option<T>, value: T) -> Result<(), Rejection> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(Rejection::new(Reason::Content, "an AMQP property is said twice")),
    }
}

fn timestamp(text: &str) -> Result<crate::message::Timestamp, Rejection> {
    time::parse(text).ok_or_else(|| Rejection::new(Reason::Content, "a time is not ISO 8601"))
}

/// Writes all that a command says, for a topic without a convention.
pub(super) fn write(message: &Message) -> PublishProperties {
    let properties = &message.properties;
    let mut out = write_beside(message);
    out.content_type.clone_from(&properties.content_type);
    let is_request = out.response_topic.is_some();
    out.correlation_data = properties.correlation_id.as_ref().map(|id| correlation::write(id, is_request));
    for (name, named) in NAMED {
        let value = match named {
            Named::MessageId => properties.message_id.as_ref().map(id_text),
            Named::Subject => properties.subject.clone(),
            // A response topic that is none cannot be said as one.
            Named::ReplyTo => properties.reply_to.clone().filter(|_| out.response_topic.is_none()),
            Named::ContentEncoding => properties.content_encoding.clone(),
            Named::CreationTime => properties.creation_time.map(|time| time::format(time).into()),
            Named::AbsoluteExpiryTime => {
                properties.absolute_expiry_time.map(|time| time::format(time).into())
            }
            Named::UserId => properties.user_id.as_deref().map(lossy),
            Named::To => properties.to.clone(),
        };
        if let Some(value) = value {
            out.user_properties.push((ByteString::from_static(name), value));
        }
    }
    let first = out.user_properties.len();
    for (name, value) in &message.application_properties {
        if name == FORMAT && out.payload_is_text {
            continue;
        }
        let value = match value {
            Value::String(text) | Value::Symbol(text) => text.clone(),
            other => azure::value_text(other).into(),
        };
        let name = unnumbered(&out.user_properties[first..], name);
        out.user_properties.push((name, value));
    }
    out
}

/// Writes what a command says and no topic has a place for.
pub(super) fn write_beside(message: &Message) -> PublishProperties {
    let is_text = message.application_property(FORMAT).and_then(Value::as_str) == Some(UTF_8);
    PublishProperties {
        payload_is_text: is_text && std::str::from_utf8(&message.body).is_ok(),
        response_topic: message.properties.reply_to.clone().filter(|topic| is_topic_name(topic)),
        // Whole seconds: a part of one is not nothing.
        message_expiry: message.ttl.map(|ttl| Duration::from_secs(ttl.as_millis().div_ceil(1000) as u64)),
        ..PublishProperties::default()
    }
}

/// The name of which `name` is a repetition, if it is the next one of those that came before.
fn unnumbered(earlier: &[(ByteString, ByteString)], name: &ByteString) -> ByteString {
    let parsed = name.strip_suffix(']').and_then(|name| name.rsplit_once('['));
    let next = |plain: &str| 1 + earlier.iter().filter(|(known, _)| known == plain).count();
    match parsed {
        Some((plain, number)) if next(plain) > 1 && number == next(plain).to_string() => plain.into(),
        _ => name.clone(),
    }
}

/// MQTT 5 4.7.1-1, 4.7.3: what may stand as a topic name, and has no control character that a client may refuse.
fn is_topic_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= super::MAX_TOPIC_BYTES
        && !text.contains(['+', '#'])
        && !text.chars().any(char::is_control)
}

/// An id as text, whatever its type.
pub(super) fn id_text(id: &MessageId) -> ByteString {
    match id {
        MessageId::String(text) => text.clone(),
        MessageId::Binary(bytes) => lossy(bytes),
        MessageId::Ulong(number) => number.to_string().into(),
        MessageId::Uuid(bytes) => azure::value_text(&Value::Uuid(*bytes)).into(),
    }
}

fn lossy(bytes: &[u8]) -> ByteString {
    String::from_utf8_lossy(bytes).into_owned().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::{Address, DeviceId};
    use crate::message::{Direction, Timestamp};

    fn text(text: &'static str) -> ByteString {
        ByteString::from_static(text)
    }

    fn empty(body: &'static [u8]) -> Message {
        let device = DeviceId::new("d1").expect("legal");
        let address = Address::parse("devices/d1/messages/events").expect("legal");
        Message::new(device, Direction::Uplink, address, Bytes::from_static(body))
    }

    fn full() -> PublishProperties {
        PublishProperties {
            payload_is_text: true,
            content_type: Some(text("text/plain")),
            response_topic: Some(text("answers/d1")),
            correlation_data: Some(Bytes::from_static(b"\x00\xff")),
            message_expiry: Some(Duration::from_secs(7)),
            user_properties: vec![
                (text("amqp-message-id"), text("m1")),
                (text("amqp-subject"), text("s")),
                (text("amqp-content-encoding"), text("gzip")),
                (text("amqp-creation-time"), text("2026-11-23T06:00:00.000Z")),
                (text("amqp-absolute-expiry-time"), text("2026-11-24T06:00:00.000Z")),
                (text("b"), text("1")),
                (text("a"), text("2")),
                (text("b"), text("3")),
                (text("a"), text("")),
                (text("b"), text("4")),
            ],
        }
    }

    #[test]
    fn all_that_a_publish_says_comes_back_in_its_order() {
        let mut message = empty("täxt".as_bytes());
        read(&mut message, 0, false, full()).expect("legal");
        let names: Vec<&str> = message.application_properties.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["mqtt-payload-format", "b", "a", "b[2]", "a[2]", "b[3]"]);
        assert_eq!(message.properties.message_id, Some(MessageId::String(text("m1"))));
        assert_eq!(message.properties.reply_to, Some(text("answers/d1")));
        assert_eq!(message.properties.creation_time, Some(Timestamp(1_795_413_600_000)));
        assert_eq!(message.ttl, Some(Duration::from_secs(7)));
        assert_eq!(write(&message), full());
    }

    #[test]
    fn a_name_with_a_number_that_is_no_repetition_stays_as_it_is() {
        let mut message = empty(b"");
        let named = |names: &[&'static str]| names.iter().map(|name| (text(name), text("x"))).collect();
        let said = PublishProperties {
            user_properties: named(&["b[2]", "a", "a[3]", "a[x]", "a[2]"]),
            ..PublishProperties::default()
        };
        read(&mut message, 0, false, said).expect("legal");
        let written = write(&message).user_properties;
        // Only the last cannot be told from a repetition.
        assert_eq!(written, named(&["b[2]", "a", "a[3]", "a[x]", "a"]));
    }

    #[test]
    fn the_retain_flag_is_a_property() {
        let mut message = empty(b"");
        read(&mut message, 0, true, PublishProperties::default()).expect("legal");
        assert_eq!(message.application_property(RETAIN), Some(&"true".into()));
    }

    #[test]
    fn what_a_device_may_not_say() {
        for (name, value, reason) in [
            ("amqp-user-id", "root", Reason::NotPermitted),
            ("amqp-to", "x", Reason::NotPermitted),
            ("amqp-creation-time", "yesterday", Reason::Content),
            ("amqp-content-encoding", "é", Reason::Content),
            ("iothub-MessageType", "Will", Reason::Content),
            ("", "x", Reason::Content),
        ] {
            let said = PublishProperties {
                user_properties: vec![(text(name), text(value))],
                ..PublishProperties::default()
            };
            let refused = read(&mut empty(b""), 0, false, said).expect_err(name);
            assert_eq!(refused.reason, reason, "{name}");
        }
        let twice = PublishProperties {
            response_topic: Some(text("r")),
            user_properties: vec![(text("amqp-reply-to"), text("q"))],
            ..PublishProperties::default()
        };
        assert!(read(&mut empty(b""), 0, false, twice).is_err());
    }

    #[test]
    fn a_command_says_what_mqtt_can() {
        let mut message = empty(b"\xff");
        message.ttl = Some(Duration::from_millis(1));
        message.properties.reply_to = Some(text("queue/#1"));
        message.properties.user_id = Some(Bytes::from_static(b"u"));
        message.properties.to = Some(text("/devices/d1"));
        message.properties.message_id = Some(MessageId::Ulong(9));
        message.properties.correlation_id = Some(MessageId::Uuid([0xab; 16]));
        message.application_properties = vec![(text(FORMAT), UTF_8.into())];
        let written = write(&message);
        assert_eq!(written.message_expiry, Some(Duration::from_secs(1)), "not nothing");
        assert_eq!(written.response_topic, None, "no topic name");
        assert!(!written.payload_is_text, "it is none");
        assert_eq!(written.correlation_data.as_deref(), Some(&b"abababab-abab-abab-abab-abababababab"[..]));
        let expected = [
            ("amqp-message-id", "9"),
            ("amqp-reply-to", "queue/#1"),
            ("amqp-user-id", "u"),
            ("amqp-to", "/devices/d1"),
            (FORMAT, UTF_8),
        ];
        assert_eq!(written.user_properties, expected.map(|(name, value)| (text(name), text(value))));
    }
}
