//! Messages as the hub stores and sends them: what it stamps on, what it takes over, what it leaves out.
//!
//! What a device or a service wrote about a message (properties, application properties, body) passes as it is.
//! What the hub says about it stands in the annotations, which nobody but the hub writes; of a device's own
//! annotations only those with a meaning to IoT Hub are taken over.

use std::rc::Rc;

use bytes::{Bytes, BytesMut};
use fieldgate_amqp::codec::{Limits, Reader, Value};
use fieldgate_amqp::error::DecodeError;
use fieldgate_amqp::message::{
    Body, Properties, PropertiesOut, Sections, put_application_properties, put_data, put_message_annotations,
    put_properties,
};
use fieldgate_amqp::performative::descriptor;
use fieldgate_mappings::{DeviceId, Timestamp};

use super::feedback;
use super::log::Stamp;
use super::queue::LockToken;

/// The message-format of a batch: each data section holds one whole message.
pub(crate) const BATCH_FORMAT: u32 = 0x8001_3700;

/// The most messages of a batch. Each takes a place in the log, however small it is.
const MAX_BATCH: usize = 4096;

/// A device's own annotations that keep their meaning.
const DEVICE_ANNOTATIONS: [&str; 4] =
    ["iothub-interface-id", "dt-subject", "Diagnostic-Id", "Correlation-Context"];

/// Who sent a message, as its link was authenticated.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    /// The device.
    pub(crate) device: DeviceId,
    /// Its registration.
    pub(crate) generation: Rc<str>,
    /// How it proved who it is, as JSON.
    pub(crate) auth_method: &'static str,
}

/// The authentication method of a device that signed with its own key.
pub(crate) const AUTH_BY_DEVICE: &str =
    r#"{"scope":"device","type":"sas","issuer":"iothub","acceptingIpFilterRule":null}"#;
/// The same with a policy's key.
pub(crate) const AUTH_BY_POLICY: &str =
    r#"{"scope":"hub","type":"sas","issuer":"iothub","acceptingIpFilterRule":null}"#;

/// Why bytes are no message to the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadMessage {
    /// They are no AMQP message.
    #[error("the message cannot be decoded: {0}")]
    Undecodable(#[from] DecodeError),
    /// They say that they are a batch and are not.
    #[error("a batch holds its messages in data sections, one in each, and at most 4096")]
    NoBatch,
}

/// The messages in a transfer: one, or those of a batch.
///
/// # Errors
/// [`BadMessage`]; a batch is good as a whole or not at all.
pub(crate) fn unpack(format: u32, payload: &Bytes) -> Result<Vec<Sections>, BadMessage> {
    let message = Sections::parse(payload, &Limits::WIRE)?;
    if format != BATCH_FORMAT {
        return Ok(vec![message]);
    }
    let body = message.encoded_body();
    let mut reader = Reader::new(&body);
    let mut sections = Vec::new();
    while !reader.is_empty() {
        if reader.read_descriptor()? != descriptor::DATA || sections.len() == MAX_BATCH {
            return Err(BadMessage::NoBatch);
        }
        let data = reader.read_binary()?.ok_or(BadMessage::NoBatch)?;
        sections.push(Sections::parse(&body.slice_ref(data), &Limits::WIRE)?);
    }
    if sections.is_empty() { Err(BadMessage::NoBatch) } else { Ok(sections) }
}

/// A message's size as IoT Hub counts it: body, values of properties, names and values of application properties.
pub(crate) fn size(message: &Sections) -> usize {
    let properties = message.properties();
    let ids = [properties.message_id(), properties.correlation_id()]
        .iter()
        .flatten()
        .map(value_size)
        .sum::<usize>();
    let texts = [properties.to(), properties.subject(), properties.reply_to(), properties.content_type()]
        .into_iter()
        .chain([properties.content_encoding(), properties.group_id(), properties.reply_to_group_id()])
        .flatten()
        .map(str::len)
        .sum::<usize>();
    let application: usize =
        message.application_properties().map(|(name, value)| value_size(&name) + value_size(&value)).sum();
    let body = match message.body() {
        Body::Data(data) => data.len(),
        Body::Empty => 0,
        Body::Sequence(_) | Body::Value(_) => message.encoded_body().len(),
    };
    body + ids + texts + properties.user_id().map_or(0, <[u8]>::len) + application
}

fn value_size(value: &Value<'_>) -> usize {
    match value {
        Value::Str(text) | Value::Symbol(text) => text.len(),
        Value::Binary(bytes) => bytes.len(),
        _ => 8,
    }
}

/// A device's message as readers of the log get it.
pub(crate) fn stored(message: &Sections, origin: &Origin, stamp: Stamp) -> Bytes {
    let mut out = BytesMut::with_capacity(message.message().len() + 512);
    let offset = stamp.offset.to_string();
    let ours = [
        ("x-opt-sequence-number", Value::Long(stamp.sequence)),
        ("x-opt-offset", Value::Str(&offset)),
        ("x-opt-enqueued-time", Value::Timestamp(stamp.enqueued.0)),
        ("iothub-connection-device-id", Value::Str(origin.device.as_str())),
        ("iothub-connection-auth-generation-id", Value::Str(&origin.generation)),
        ("iothub-connection-auth-method", Value::Str(origin.auth_method)),
        ("iothub-enqueuedtime", Value::Timestamp(stamp.enqueued.0)),
        ("iothub-message-source", Value::Str("Telemetry")),
    ];
    let theirs = message.message_annotations().filter_map(|(name, value)| {
        let name = name.as_str()?;
        DEVICE_ANNOTATIONS.into_iter().find(|known| *known == name).map(|known| (known, value))
    });
    put_message_annotations(&mut out, ours.into_iter().chain(theirs));
    // Where a device says that its message goes to is where its link goes to.
    put_sender_sections(&mut out, message, None);
    // Its own allocation, of its own size: the log must not keep read buffers alive.
    Bytes::copy_from_slice(&out)
}

/// A service's command as it waits for its device: from the properties on, what is stamped on comes before it.
pub(crate) fn command(message: &Sections, device: &DeviceId) -> Bytes {
    let mut out = BytesMut::with_capacity(message.message().len() + 64);
    let to = format!("/devices/{device}/messages/devicebound");
    put_sender_sections(&mut out, message, Some(&to));
    Bytes::copy_from_slice(&out)
}

/// What the hub says about a message that it lends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lending {
    pub(crate) sequence: u64,
    pub(crate) token: LockToken,
    pub(crate) enqueued: Timestamp,
    pub(crate) delivery_count: u8,
}

impl Lending {
    fn put(self, out: &mut BytesMut) {
        let token = self.token.to_guid();
        let annotations = [
            ("x-opt-sequence-number", Value::Ulong(self.sequence)),
            ("x-opt-lock-token", Value::Str(&token)),
            ("iothub-enqueuedtime", Value::Timestamp(self.enqueued.0)),
            ("iothub-deliverycount", Value::Ubyte(self.delivery_count)),
        ];
        put_message_annotations(out, annotations);
    }
}

/// A command as it goes to its device.
pub(crate) fn put_command(out: &mut BytesMut, lending: Lending, command: &[u8]) {
    lending.put(out);
    out.extend_from_slice(command);
}

/// A feedback message as it goes to a service.
pub(crate) fn put_feedback(out: &mut BytesMut, lending: Lending, hub: &str, json: &[u8]) {
    lending.put(out);
    let properties = PropertiesOut {
        user_id: Some(hub.as_bytes()),
        content_type: Some(feedback::CONTENT_TYPE),
        ..PropertiesOut::default()
    };
    put_properties(out, &properties);
    put_data(out, json);
}

/// Properties, application properties and body, as their sender wrote them; `to` is the hub's word.
fn put_sender_sections(out: &mut BytesMut, message: &Sections, to: Option<&str>) {
    let properties = message.properties();
    if to.is_some() || *properties != Properties::default() {
        put_properties(
            out,
            &PropertiesOut {
                message_id: properties.message_id(),
                user_id: properties.user_id(),
                to,
                subject: properties.subject(),
                reply_to: properties.reply_to(),
                correlation_id: properties.correlation_id(),
                content_type: properties.content_type(),
                content_encoding: properties.content_encoding(),
                absolute_expiry_time: properties.absolute_expiry_time(),
                creation_time: properties.creation_time(),
                group_id: properties.group_id(),
                group_sequence: properties.group_sequence(),
                reply_to_group_id: properties.reply_to_group_id(),
            },
        );
    }
    // The specification has strings for names; others are not what anybody could ask for.
    let mut names =
        message.application_properties().filter_map(|(name, value)| Some((name.as_str()?, value))).peekable();
    if names.peek().is_some() {
        put_application_properties(out, names);
    }
    let body = message.encoded_body();
    if body.is_empty() {
        // A message has a body (3.2); an empty one says what an absent one meant.
        put_data(out, &[]);
    } else {
        out.extend_from_slice(&body);
    }
}

/// A message's name as text, whatever its type.
pub(crate) fn id_text(id: Option<Value<'_>>) -> String {
    match id {
        Some(Value::Str(text)) => text.to_owned(),
        Some(Value::Ulong(number)) => number.to_string(),
        Some(Value::Uuid(uuid)) => {
            let hex = uuid.map(|byte| format!("{byte:02x}")).concat();
            [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
        }
        Some(Value::Binary(bytes)) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use fieldgate_amqp::message::put_amqp_value;

    use super::*;

    const STAMP: Stamp = Stamp { sequence: 7, offset: 4096, enqueued: Timestamp(1_795_339_845_006) };

    fn origin() -> Origin {
        Origin {
            device: DeviceId::new("pump-1").unwrap(),
            generation: "g1".into(),
            auth_method: AUTH_BY_DEVICE,
        }
    }

    fn parse(message: &Bytes) -> Sections {
        Sections::parse(message, &Limits::WIRE).unwrap()
    }

    fn annotation<'a>(message: &'a Sections, name: &str) -> Option<Value<'a>> {
        message.message_annotations().find(|(key, _)| *key == Value::Symbol(name)).map(|(_, value)| value)
    }

    /// A message with everything that a device may write, and some things that it may not.
    fn sent() -> Bytes {
        let mut out = BytesMut::new();
        put_message_annotations(
            &mut out,
            [
                ("x-opt-sequence-number", Value::Long(-1)),
                ("iothub-connection-device-id", Value::Str("somebody-else")),
                ("dt-subject", Value::Str("component")),
            ],
        );
        let properties = PropertiesOut {
            message_id: Some(Value::Uuid([7; 16])),
            correlation_id: Some(Value::Ulong(9)),
            user_id: Some(b"user"),
            to: Some("/elsewhere"),
            content_type: Some("application/json"),
            content_encoding: Some("utf-8"),
            creation_time: Some(5),
            ..PropertiesOut::default()
        };
        put_properties(&mut out, &properties);
        put_application_properties(&mut out, [("alert", Value::Str("yes")), ("count", Value::Int(3))]);
        put_data(&mut out, b"{\"t\":");
        put_data(&mut out, b"21}");
        out.freeze()
    }

    #[test]
    fn the_hub_stamps_and_the_device_cannot() {
        let stored = stored(&parse(&sent()), &origin(), STAMP);
        let message = parse(&stored);
        for (name, value) in [
            ("x-opt-sequence-number", Value::Long(7)),
            ("x-opt-offset", Value::Str("4096")),
            ("x-opt-enqueued-time", Value::Timestamp(1_795_339_845_006)),
            ("iothub-connection-device-id", Value::Str("pump-1")),
            ("iothub-connection-auth-generation-id", Value::Str("g1")),
            ("iothub-connection-auth-method", Value::Str(AUTH_BY_DEVICE)),
            ("iothub-enqueuedtime", Value::Timestamp(1_795_339_845_006)),
            ("iothub-message-source", Value::Str("Telemetry")),
            ("dt-subject", Value::Str("component")),
        ] {
            assert_eq!(annotation(&message, name), Some(value), "{name}");
        }
        assert_eq!(message.message_annotations().count(), 9, "each stands there once");
        let properties = message.properties();
        assert_eq!(properties.message_id(), Some(Value::Uuid([7; 16])));
        assert_eq!(properties.correlation_id(), Some(Value::Ulong(9)));
        assert_eq!((properties.user_id(), properties.to()), (Some(&b"user"[..]), None));
        assert_eq!(properties.content_type(), Some("application/json"));
        assert_eq!(properties.content_encoding(), Some("utf-8"));
        assert_eq!(properties.creation_time(), Some(5));
        let application: Vec<_> = message.application_properties().collect();
        assert_eq!(
            application,
            [(Value::Str("alert"), Value::Str("yes")), (Value::Str("count"), Value::Int(3))]
        );
        assert_eq!(message.body(), Body::Data(Bytes::from_static(b"{\"t\":21}")));
        for json in [AUTH_BY_DEVICE, AUTH_BY_POLICY] {
            assert!(serde_json::from_str::<serde_json::Value>(json).unwrap()["type"] == "sas");
        }
    }

    #[test]
    fn a_bare_body_stays_bare_and_an_absent_one_becomes_empty() {
        let mut out = BytesMut::new();
        put_amqp_value(&mut out, &Value::Str("text"));
        let message = stored(&parse(&out.freeze()), &origin(), STAMP);
        assert_eq!(parse(&message).body(), Body::Value(Value::Str("text")));
        assert_eq!(parse(&message).properties(), &Properties::default());
        let empty = stored(&parse(&Bytes::new()), &origin(), STAMP);
        assert_eq!(parse(&empty).body(), Body::Data(Bytes::new()));
    }

    #[test]
    fn a_command_is_addressed_to_its_device_and_lent_with_its_lock() {
        let device = DeviceId::new("pump-1").unwrap();
        let waiting = command(&parse(&sent()), &device);
        let lending =
            Lending { sequence: 3, token: LockToken([0x11; 16]), enqueued: Timestamp(8), delivery_count: 2 };
        let mut out = BytesMut::new();
        put_command(&mut out, lending, &waiting);
        let out = out.freeze();
        let message = parse(&out);
        assert_eq!(annotation(&message, "x-opt-sequence-number"), Some(Value::Ulong(3)));
        let token = "11111111-1111-1111-1111-111111111111";
        assert_eq!(annotation(&message, "x-opt-lock-token"), Some(Value::Str(token)));
        assert_eq!(annotation(&message, "iothub-enqueuedtime"), Some(Value::Timestamp(8)));
        assert_eq!(annotation(&message, "iothub-deliverycount"), Some(Value::Ubyte(2)));
        assert_eq!(message.message_annotations().count(), 4);
        assert_eq!(message.properties().to(), Some("/devices/pump-1/messages/devicebound"));
        assert_eq!(message.properties().message_id(), Some(Value::Uuid([7; 16])));
        assert_eq!(message.body(), Body::Data(Bytes::from_static(b"{\"t\":21}")));

        let mut out = BytesMut::new();
        put_feedback(&mut out, lending, "localhost", b"[]");
        let out = out.freeze();
        let message = parse(&out);
        assert_eq!(message.properties().content_type(), Some(feedback::CONTENT_TYPE));
        assert_eq!(message.properties().user_id(), Some(&b"localhost"[..]));
        assert_eq!(annotation(&message, "x-opt-lock-token"), Some(Value::Str(token)));
        assert_eq!(message.body(), Body::Data(Bytes::from_static(b"[]")));
    }

    #[test]
    fn batches_unpack_whole_or_not_at_all() {
        let mut inner = BytesMut::new();
        put_data(&mut inner, b"one");
        let mut batch = BytesMut::new();
        put_data(&mut batch, &inner);
        put_data(&mut batch, &sent());
        let batch = batch.freeze();
        let messages = unpack(BATCH_FORMAT, &batch).unwrap();
        assert_eq!(messages.len(), 2);
        assert_eq!(messages[0].body(), Body::Data(Bytes::from_static(b"one")));
        assert_eq!(messages[1].properties().message_id(), Some(Value::Uuid([7; 16])));
        assert_eq!(unpack(0, &batch).unwrap().len(), 1, "without the format it is one message");

        let mut bad = BytesMut::from(&batch[..]);
        put_data(&mut bad, b"no message");
        assert!(matches!(unpack(BATCH_FORMAT, &bad.freeze()), Err(BadMessage::Undecodable(_))));
        let mut value = BytesMut::new();
        put_amqp_value(&mut value, &Value::Null);
        assert!(matches!(unpack(BATCH_FORMAT, &value.freeze()), Err(BadMessage::NoBatch)));
        assert!(matches!(unpack(BATCH_FORMAT, &Bytes::new()), Err(BadMessage::NoBatch)));
        let mut many = BytesMut::new();
        for _ in 0..=MAX_BATCH {
            put_data(&mut many, b"");
        }
        assert!(unpack(BATCH_FORMAT, &many.freeze()).is_err());
        for at in 1..batch.len() {
            assert!(
                unpack(BATCH_FORMAT, &batch.slice(..at)).is_ok_and(|messages| messages.len() == 1)
                    == (at == 13)
            );
        }
    }

    #[test]
    fn sizes_count_what_iot_hub_counts() {
        let mut out = BytesMut::new();
        put_data(&mut out, &[0; 100]);
        assert_eq!(size(&parse(&out.freeze())), 100);
        // uuid 8, ulong 8, user 4, to 10, types 16 and 5, alert yes 8, count and a number 13, body 8.
        assert_eq!(size(&parse(&sent())), 8 + 8 + 4 + 10 + 16 + 5 + 8 + 13 + 8);
    }

    #[test]
    fn ids_as_text() {
        assert_eq!(id_text(Some(Value::Str("m-1"))), "m-1");
        assert_eq!(id_text(Some(Value::Ulong(7))), "7");
        assert_eq!(id_text(Some(Value::Uuid([0xab; 16]))), "abababab-abab-abab-abab-abababababab");
        assert_eq!(id_text(Some(Value::Binary(&[1, 0xff]))), "01ff");
        assert_eq!(id_text(None), "");
    }
}
