//! What AMQP means: messages to and from their encoded sections, outcomes to and from delivery states.
//!
//! This is the hub's side of mapped traffic only. Native AMQP devices are routed, and nothing of theirs is decoded.

mod refusal;

pub use refusal::{Limited, limit, refusal};

use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use fieldgate_amqp::codec::{self, Limits, MapIter};
use fieldgate_amqp::error::DecodeError;
use fieldgate_amqp::message::{
    Body, Header, PropertiesOut, Sections, put_application_properties, put_data, put_header,
    put_message_annotations, put_properties,
};
use fieldgate_amqp::performative::{ACCEPTED, AmqpError, Condition, DeliveryState, RELEASED, rejected};

use crate::address::{Address, DeviceId};
use crate::message::{Direction, Message, MessageId, Properties, Timestamp, Value};
use crate::outcome::{Outcome, Reason, Rejection};

/// Appends the encoded message (AMQP 1.0 3.2): header, message annotations, properties and application properties
/// where there are any, and the body as one data section.
pub fn encode(message: &Message, out: &mut BytesMut) {
    encode_header(message, out);
    encode_rest(message, out);
}

/// As [`encode`], with `to` in the properties whatever the message says: where the receiver goes by it, it is not
/// the device's to say.
pub fn encode_to(message: &Message, to: &str, out: &mut BytesMut) {
    encode_header(message, out);
    encode_rest_for(message, Some(to), out);
}

/// Appends the header alone, if it says anything: durability, priority and time to live, as the message has them.
pub fn encode_header(message: &Message, out: &mut BytesMut) {
    let header = Header {
        durable: message.durable,
        priority: message.priority(),
        ttl: message.ttl,
        ..Header::default()
    };
    if header != Header::default() {
        put_header(out, &header);
    }
}

/// Appends all that [`encode`] writes after the header.
pub fn encode_rest(message: &Message, out: &mut BytesMut) {
    encode_rest_for(message, message.properties.to.as_deref(), out);
}

fn encode_rest_for(message: &Message, to: Option<&str>, out: &mut BytesMut) {
    out.reserve(message.body.len() + 256);
    if !message.annotations.is_empty() {
        put_message_annotations(out, message.annotations.iter().map(encode_pair));
    }
    let properties = &message.properties;
    if to.is_some() || *properties != Properties::default() {
        put_properties(
            out,
            &PropertiesOut {
                message_id: properties.message_id.as_ref().map(encode_id),
                user_id: properties.user_id.as_deref(),
                to,
                subject: properties.subject.as_deref(),
                reply_to: properties.reply_to.as_deref(),
                correlation_id: properties.correlation_id.as_ref().map(encode_id),
                content_type: properties.content_type.as_deref(),
                content_encoding: properties.content_encoding.as_deref(),
                absolute_expiry_time: properties.absolute_expiry_time.map(|time| time.0),
                creation_time: properties.creation_time.map(|time| time.0),
                ..PropertiesOut::default()
            },
        );
    }
    if !message.application_properties.is_empty() {
        put_application_properties(out, message.application_properties.iter().map(encode_pair));
    }
    put_data(out, &message.body);
}

fn encode_pair((name, value): &(ByteString, Value)) -> (&str, codec::Value<'_>) {
    let value = match value {
        Value::Null => codec::Value::Null,
        Value::Bool(value) => codec::Value::Bool(*value),
        Value::Ubyte(value) => codec::Value::Ubyte(*value),
        Value::Ushort(value) => codec::Value::Ushort(*value),
        Value::Uint(value) => codec::Value::Uint(*value),
        Value::Ulong(value) => codec::Value::Ulong(*value),
        Value::Byte(value) => codec::Value::Byte(*value),
        Value::Short(value) => codec::Value::Short(*value),
        Value::Int(value) => codec::Value::Int(*value),
        Value::Long(value) => codec::Value::Long(*value),
        Value::Float(value) => codec::Value::Float(*value),
        Value::Double(value) => codec::Value::Double(*value),
        Value::Char(value) => codec::Value::Char(*value),
        Value::Timestamp(value) => codec::Value::Timestamp(value.0),
        Value::Uuid(value) => codec::Value::Uuid(*value),
        Value::Binary(value) => codec::Value::Binary(value),
        Value::String(value) => codec::Value::Str(value),
        Value::Symbol(value) => codec::Value::Symbol(value),
    };
    (name, value)
}

fn encode_id(id: &MessageId) -> codec::Value<'_> {
    match id {
        MessageId::Ulong(value) => codec::Value::Ulong(*value),
        MessageId::Uuid(value) => codec::Value::Uuid(*value),
        MessageId::Binary(value) => codec::Value::Binary(value),
        MessageId::String(value) => codec::Value::Str(value),
    }
}

/// Reads a command that the hub sent from `address` for `device`. Nothing is copied; the message shares `encoded`.
///
/// # Errors
/// [`Reason::Content`] for a message that is not sound, whose body is not bytes or text, or whose application
/// properties hold more than simple values (AMQP 1.0 3.2.5). Annotations of other types are left out: they are
/// between the hub and the gateway.
pub fn decode(device: DeviceId, address: Address, encoded: &Bytes) -> Result<Message, Rejection> {
    let sections = Sections::parse(encoded, &Limits::WIRE).map_err(|error| unsound(&error))?;
    let body = match sections.body() {
        Body::Empty | Body::Value(codec::Value::Null) => Bytes::new(),
        Body::Data(data) => data,
        Body::Value(codec::Value::Binary(data)) => encoded.slice_ref(data),
        Body::Value(codec::Value::Str(text)) => encoded.slice_ref(text.as_bytes()),
        Body::Value(_) | Body::Sequence(_) => return Err(content("the body is neither bytes nor text")),
    };
    let mut message = Message::new(device, Direction::Downlink, address, body);
    message.durable = sections.header().durable;
    message.ttl = sections.header().ttl;
    let reader = Reader { encoded };
    message.properties = reader.properties(sections.properties());
    message.annotations = reader.pairs(sections.message_annotations()).flatten().collect();
    message.application_properties =
        reader
            .pairs(sections.application_properties())
            .collect::<Option<_>>()
            .ok_or_else(|| content("an application property is not a simple value"))?;
    Ok(message)
}

fn content(description: &'static str) -> Rejection {
    Rejection::new(Reason::Content, description)
}

fn unsound(error: &DecodeError) -> Rejection {
    Rejection::new(Reason::Content, format!("the message is not sound AMQP: {error}"))
}

/// Turns views of a message into the model's values, which share the message's bytes.
struct Reader<'a> {
    encoded: &'a Bytes,
}

impl Reader<'_> {
    fn properties(&self, properties: &fieldgate_amqp::message::Properties) -> Properties {
        let text = |text: Option<&str>| text.map(|text| self.text(text));
        Properties {
            message_id: properties.message_id().and_then(|id| self.id(id)),
            user_id: properties.user_id().map(|bytes| self.encoded.slice_ref(bytes)),
            to: text(properties.to()),
            subject: text(properties.subject()),
            reply_to: text(properties.reply_to()),
            correlation_id: properties.correlation_id().and_then(|id| self.id(id)),
            content_type: text(properties.content_type()),
            content_encoding: text(properties.content_encoding()),
            absolute_expiry_time: properties.absolute_expiry_time().map(Timestamp),
            creation_time: properties.creation_time().map(Timestamp),
        }
    }

    /// The pairs of a map; `None` for one whose name is no text or whose value is not simple.
    fn pairs(&self, map: MapIter<'_>) -> impl Iterator<Item = Option<(ByteString, Value)>> {
        map.map(|(name, value)| Some((self.text(name.as_str()?), self.value(value)?)))
    }

    fn value(&self, value: codec::Value<'_>) -> Option<Value> {
        Some(match value {
            codec::Value::Null => Value::Null,
            codec::Value::Bool(value) => Value::Bool(value),
            codec::Value::Ubyte(value) => Value::Ubyte(value),
            codec::Value::Ushort(value) => Value::Ushort(value),
            codec::Value::Uint(value) => Value::Uint(value),
            codec::Value::Ulong(value) => Value::Ulong(value),
            codec::Value::Byte(value) => Value::Byte(value),
            codec::Value::Short(value) => Value::Short(value),
            codec::Value::Int(value) => Value::Int(value),
            codec::Value::Long(value) => Value::Long(value),
            codec::Value::Float(value) => Value::Float(value),
            codec::Value::Double(value) => Value::Double(value),
            codec::Value::Char(value) => Value::Char(value),
            codec::Value::Timestamp(value) => Value::Timestamp(Timestamp(value)),
            codec::Value::Uuid(value) => Value::Uuid(value),
            codec::Value::Binary(value) => Value::Binary(self.encoded.slice_ref(value)),
            codec::Value::Str(value) => Value::String(self.text(value)),
            codec::Value::Symbol(value) => Value::Symbol(self.text(value)),
            codec::Value::Decimal32(_)
            | codec::Value::Decimal64(_)
            | codec::Value::Decimal128(_)
            | codec::Value::List(_)
            | codec::Value::Map(_)
            | codec::Value::Array(_)
            | codec::Value::Described(_) => return None,
        })
    }

    /// The four types of AMQP 1.0 3.2.11 to 3.2.14; the section was checked to hold no other.
    fn id(&self, value: codec::Value<'_>) -> Option<MessageId> {
        match value {
            codec::Value::Ulong(value) => Some(MessageId::Ulong(value)),
            codec::Value::Uuid(value) => Some(MessageId::Uuid(value)),
            codec::Value::Binary(value) => Some(MessageId::Binary(self.encoded.slice_ref(value))),
            codec::Value::Str(value) => Some(MessageId::String(self.text(value))),
            _ => None,
        }
    }

    fn text(&self, text: &str) -> ByteString {
        // A slice of text is text; should the view ever lie elsewhere, a copy of it is right as well.
        ByteString::try_from(self.encoded.slice_ref(text.as_bytes()))
            .unwrap_or_else(|_| ByteString::from(text))
    }
}

/// What the hub's answer to a message means; `None` for a state that is no answer yet.
pub fn outcome(state: &DeliveryState<'_>) -> Option<Outcome> {
    Some(match state {
        DeliveryState::Received { .. } => return None,
        DeliveryState::Accepted => Outcome::Accepted,
        DeliveryState::Rejected(None) => Outcome::Rejected(content("the hub refused the message")),
        DeliveryState::Rejected(Some(error)) => refusal(error),
        // Modified says how to send it again; that it was not taken is all that the device needs to know.
        DeliveryState::Released | DeliveryState::Modified { .. } => Outcome::Released,
        DeliveryState::Other(_) => Outcome::Unknown,
    })
}

/// How AMQP says an outcome: the delivery state that settles a command, encoded. `None` for one that is not known:
/// then nothing is sent and the link is detached, because a release would count against the command.
pub fn reply(outcome: &Outcome) -> Option<Bytes> {
    match outcome {
        Outcome::Accepted => Some(Bytes::from_static(ACCEPTED)),
        Outcome::Rejected(rejection) => {
            let condition = match rejection.reason {
                Reason::Credentials => Condition::UnauthorizedAccess,
                Reason::NotPermitted => Condition::NotAllowed,
                Reason::NoSuchAddress => Condition::NotFound,
                Reason::TooLarge => Condition::MessageSizeExceeded,
                Reason::Quota { .. } => Condition::ResourceLimitExceeded,
                Reason::Content => Condition::InvalidField,
                Reason::Full { .. } => Condition::ResourceLimitExceeded,
                Reason::Disk { .. } => Condition::InternalError,
            };
            Some(rejected(Some(&AmqpError::new(&condition, Some(&rejection.description)))))
        }
        Outcome::Released => Some(Bytes::from_static(RELEASED)),
        Outcome::Unknown => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fieldgate_amqp::codec::{put_descriptor, put_list, put_map, put_str, put_symbol, put_uint};
    use fieldgate_amqp::message::put_amqp_value;
    use fieldgate_amqp::performative::{descriptor, modified, received};

    use super::*;

    fn device() -> DeviceId {
        DeviceId::new("dev1").unwrap()
    }

    fn address() -> Address {
        Address::parse("devices/dev1/messages/devicebound").unwrap()
    }

    fn read(encoded: BytesMut) -> Result<Message, Rejection> {
        decode(device(), address(), &encoded.freeze())
    }

    fn text(text: &'static str) -> ByteString {
        ByteString::from_static(text)
    }

    fn plain(body: &'static [u8]) -> Message {
        Message::new(device(), Direction::Downlink, address(), Bytes::from_static(body))
    }

    fn full() -> Message {
        let mut message = plain(b"\x00\xffbody");
        message.durable = true;
        message.ttl = Some(Duration::from_millis(90_001));
        message.properties = Properties {
            message_id: Some(MessageId::Uuid([7; 16])),
            user_id: Some(Bytes::from_static(b"u")),
            to: Some(text("/devices/dev1/messages/deviceBound")),
            subject: Some(text("s")),
            reply_to: Some(text("r")),
            correlation_id: Some(MessageId::Binary(Bytes::from_static(b"\xff"))),
            content_type: Some(text("application/json")),
            content_encoding: Some(text("utf-8")),
            absolute_expiry_time: Some(Timestamp(1_795_379_735_123)),
            creation_time: Some(Timestamp(-1)),
        };
        message.annotations = vec![
            (text("x-opt-sequence-number"), Value::Ulong(1 << 40)),
            (text("iothub-deliverycount"), Value::Ubyte(3)),
            (text("x-opt-lock-token"), "lock".into()),
        ];
        message.application_properties = vec![
            (text("null"), Value::Null),
            (text("bool"), Value::Bool(true)),
            (text("ushort"), Value::Ushort(65_535)),
            (text("uint"), Value::Uint(0)),
            (text("byte"), Value::Byte(-1)),
            (text("short"), Value::Short(-300)),
            (text("int"), Value::Int(i32::MIN)),
            (text("long"), Value::Long(i64::MAX)),
            (text("float"), Value::Float(0.5)),
            (text("double"), Value::Double(-2.25)),
            (text("char"), Value::Char('é')),
            (text("timestamp"), Value::Timestamp(Timestamp(0))),
            (text("uuid"), Value::Uuid([9; 16])),
            (text("binary"), Value::Binary(Bytes::from_static(b"\x80"))),
            (text("string"), Value::String(text("é€"))),
            (text("symbol"), Value::Symbol(text("sym"))),
        ];
        message
    }

    #[test]
    fn a_message_survives_the_wire() {
        for id in [MessageId::Ulong(0), MessageId::String(text("m")), MessageId::Uuid([1; 16])] {
            let mut message = full();
            message.properties.message_id = Some(id);
            let mut encoded = BytesMut::new();
            encode(&message, &mut encoded);
            assert_eq!(read(encoded), Ok(message));
        }
        let mut encoded = BytesMut::new();
        encode(&plain(b""), &mut encoded);
        // Nothing but an empty data section.
        assert_eq!(&encoded[..], b"\x00\x53\x75\xa0\x00");
        assert_eq!(read(encoded), Ok(plain(b"")));
    }

    #[test]
    fn the_address_goes_into_the_message_and_the_devices_own_does_not() {
        for mut message in [full(), plain(b"on")] {
            let mut encoded = BytesMut::new();
            encode_to(&message, "telemetry", &mut encoded);
            message.properties.to = Some(text("telemetry"));
            assert_eq!(read(encoded), Ok(message));
        }
    }

    #[test]
    fn a_cut_message_is_refused_and_never_taken_for_another() {
        let mut encoded = BytesMut::new();
        encode(&full(), &mut encoded);
        let encoded = encoded.freeze();
        for length in 0..encoded.len() {
            match decode(device(), address(), &encoded.slice(..length)) {
                // Cut between two sections it is a whole message, without what follows.
                Ok(message) => assert!(message.body.is_empty(), "{length}"),
                Err(rejection) => assert_eq!(rejection.reason, Reason::Content, "{length}"),
            }
        }
    }

    #[test]
    fn bodies_of_generic_clients_are_bytes_too() {
        let value = |value: codec::Value<'_>| {
            let mut encoded = BytesMut::new();
            put_amqp_value(&mut encoded, &value);
            read(encoded)
        };
        assert_eq!(value(codec::Value::Str("on")), Ok(plain(b"on")));
        assert_eq!(value(codec::Value::Binary(b"on")), Ok(plain(b"on")));
        assert_eq!(value(codec::Value::Null), Ok(plain(b"")));
        assert_eq!(value(codec::Value::Uint(3)).unwrap_err().reason, Reason::Content);
        let mut two = BytesMut::new();
        put_data(&mut two, b"o");
        put_data(&mut two, b"n");
        assert_eq!(read(two), Ok(plain(b"on")));
        let mut sequence = BytesMut::new();
        put_descriptor(&mut sequence, descriptor::AMQP_SEQUENCE);
        put_list(&mut sequence, |out| {
            put_uint(out, 1);
            1
        });
        assert_eq!(read(sequence).unwrap_err().reason, Reason::Content);
    }

    #[test]
    fn compound_properties_are_refused_and_compound_annotations_left_out() {
        let section = |code, put_key: fn(&mut BytesMut, &str)| {
            let mut encoded = BytesMut::new();
            put_descriptor(&mut encoded, code);
            put_map(&mut encoded, |out| {
                put_key(out, "list");
                put_list(out, |out| {
                    put_str(out, "x");
                    1
                });
                put_key(out, "text");
                put_str(out, "y");
                2
            });
            put_data(&mut encoded, b"on");
            read(encoded)
        };
        let refused = section(descriptor::APPLICATION_PROPERTIES, put_str).unwrap_err();
        assert_eq!(refused.reason, Reason::Content);
        let message = section(descriptor::MESSAGE_ANNOTATIONS, put_symbol).unwrap();
        assert_eq!(message.annotations, [(text("text"), "y".into())]);
    }

    #[test]
    fn every_delivery_state_has_its_outcome() {
        let decode = |bytes: &[u8]| outcome(&DeliveryState::decode(bytes).unwrap());
        assert_eq!(decode(ACCEPTED), Some(Outcome::Accepted));
        assert_eq!(decode(RELEASED), Some(Outcome::Released));
        assert_eq!(decode(&modified(true, true, None)), Some(Outcome::Released));
        assert_eq!(decode(&received(0, 0)), None);
        assert_eq!(decode(b"\x00\x53\x34\x45"), Some(Outcome::Unknown));
        let Some(Outcome::Rejected(rejection)) = decode(&rejected(None)) else { panic!("rejected") };
        assert_eq!(rejection.reason, Reason::Content);
    }

    #[test]
    fn every_outcome_has_its_delivery_state() {
        for reason in [
            Reason::Credentials,
            Reason::NotPermitted,
            Reason::NoSuchAddress,
            Reason::TooLarge,
            Reason::Quota { retry_after: None },
            Reason::Content,
        ] {
            let rejected = Outcome::Rejected(Rejection::new(reason, "a sentence"));
            let encoded = reply(&rejected).unwrap();
            assert_eq!(outcome(&DeliveryState::decode(&encoded).unwrap()), Some(rejected));
        }
        assert_eq!(reply(&Outcome::Accepted).as_deref(), Some(ACCEPTED));
        assert_eq!(reply(&Outcome::Released).as_deref(), Some(RELEASED));
        assert_eq!(reply(&Outcome::Unknown), None);
    }
}
