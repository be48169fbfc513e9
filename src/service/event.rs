//! A message of the hub's event log, as a line for a person or an object for a program.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use fe2o3_amqp::types::messaging::annotations::OwnedKey;
use fe2o3_amqp::types::messaging::{Body, Message, MessageId, Properties};
use fe2o3_amqp::types::primitives::{SimpleValue, Value};
use fieldgate_mappings::Timestamp;
use serde_json::{Map, Value as Json, json};

use crate::hub::Iso;
use crate::output::harmless;

/// What arrived, and where it stands in the log.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    device: Option<String>,
    partition: u16,
    sequence: Option<i64>,
    offset: Option<String>,
    enqueued: Option<i64>,
    body: Json,
    properties: Map<String, Json>,
    system: Map<String, Json>,
}

impl Event {
    pub(crate) fn new(partition: u16, message: Message<Body<Value>>) -> Self {
        let mut event = Self {
            device: None,
            partition,
            sequence: None,
            offset: None,
            enqueued: None,
            body: body(message.body),
            properties: Map::new(),
            system: message.properties.map(system).unwrap_or_default(),
        };
        for (key, value) in message.message_annotations.map(|map| map.0).into_iter().flatten() {
            let OwnedKey::Symbol(key) = key else { continue };
            match (key.as_str(), value) {
                ("iothub-connection-device-id", Value::String(device)) => event.device = Some(device),
                ("x-opt-sequence-number", Value::Long(number)) => event.sequence = Some(number),
                ("x-opt-offset", Value::String(offset)) => event.offset = Some(offset),
                ("x-opt-enqueued-time", Value::Timestamp(time)) => event.enqueued = Some(time.milliseconds()),
                (name, value) => {
                    event.system.insert(name.into(), json_of(value));
                }
            }
        }
        for (name, value) in message.application_properties.map(|map| map.0).into_iter().flatten() {
            event.properties.insert(name, json_of(simple(value)));
        }
        event
    }

    /// One JSON object on one line.
    pub(crate) fn to_json(&self) -> String {
        json!({
            "device": self.device,
            "partition": self.partition,
            "sequence": self.sequence,
            "offset": self.offset,
            "enqueued": self.enqueued.map(iso),
            "body": self.body,
            "properties": self.properties,
            "system": self.system,
        })
        .to_string()
    }

    /// One line: when, who, what, and what came with it. The rest is in the JSON form.
    pub(crate) fn to_line(&self) -> String {
        let time = self.enqueued.map(iso).unwrap_or_default();
        // Of "2026-11-22T09:30:00.000Z" a person who watches needs the time of day.
        let time = time.get(11..23).unwrap_or(&time);
        let device = self.device.as_deref().map_or_else(|| "(no device)".into(), harmless);
        let told = ["content-type", "content-encoding", "message-id", "correlation-id", "subject"];
        let told = told.iter().filter_map(|name| self.system.get_key_value(*name));
        format!("{time}  {device}  {}", self.with_body(self.properties.iter().chain(told)))
    }

    /// The device that the hub names as the sender.
    pub(crate) fn device(&self) -> Option<&str> {
        self.device.as_deref()
    }

    /// What the device itself put together: the body and the application properties.
    pub(crate) fn content(&self) -> String {
        self.with_body(self.properties.iter())
    }

    fn with_body<'a>(&self, properties: impl Iterator<Item = (&'a String, &'a Json)>) -> String {
        let mut line = shown(&self.body);
        for (index, (name, value)) in properties.enumerate() {
            line.push_str(if index == 0 { "   " } else { " " });
            line.push_str(&format!("{}={}", harmless(name), shown(value)));
        }
        line
    }
}

fn shown(value: &Json) -> String {
    match value {
        Json::String(text) => harmless(text),
        Json::Object(map) if map.len() == 1 && map.contains_key("base64") => {
            format!("base64:{}", map["base64"].as_str().unwrap_or_default())
        }
        other => other.to_string(),
    }
}

/// Bytes that are text as text, others as `{"base64": "…"}`.
fn bytes(bytes: &[u8]) -> Json {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => json!({ "base64": BASE64.encode(bytes) }),
    }
}

fn body(body: Body<Value>) -> Json {
    match body {
        Body::Data(parts) => {
            bytes(&parts.into_iter().flat_map(|part| part.0.into_vec()).collect::<Vec<u8>>())
        }
        Body::Value(value) => json_of(value.0),
        Body::Sequence(parts) => parts.into_iter().flat_map(|part| part.0).map(json_of).collect(),
        Body::Empty => Json::Null,
    }
}

/// The standard properties that are there, by their names in the specification (AMQP 1.0 3.2.4).
fn system(properties: Properties) -> Map<String, Json> {
    let Properties {
        message_id,
        user_id,
        to,
        subject,
        reply_to,
        correlation_id,
        content_type,
        content_encoding,
        absolute_expiry_time,
        creation_time,
        group_id,
        group_sequence,
        reply_to_group_id,
    } = properties;
    let id = |id: MessageId| match id {
        MessageId::Ulong(id) => id.into(),
        MessageId::Uuid(id) => json_of(Value::Uuid(id)),
        MessageId::Binary(id) => bytes(&id),
        MessageId::String(id) => id.into(),
    };
    let fields = [
        ("message-id", message_id.map(id)),
        ("user-id", user_id.map(|id| bytes(&id))),
        ("to", to.map(Json::from)),
        ("subject", subject.map(Json::from)),
        ("reply-to", reply_to.map(Json::from)),
        ("correlation-id", correlation_id.map(id)),
        ("content-type", content_type.map(|symbol| symbol.0.into())),
        ("content-encoding", content_encoding.map(|symbol| symbol.0.into())),
        ("absolute-expiry-time", absolute_expiry_time.map(|time| iso(time.milliseconds()).into())),
        ("creation-time", creation_time.map(|time| iso(time.milliseconds()).into())),
        ("group-id", group_id.map(Json::from)),
        ("group-sequence", group_sequence.map(Json::from)),
        ("reply-to-group-id", reply_to_group_id.map(Json::from)),
    ];
    fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

fn iso(milliseconds: i64) -> String {
    Iso(Timestamp(milliseconds)).to_string()
}

fn simple(value: SimpleValue) -> Value {
    value.into()
}

/// An AMQP value in JSON's words; what JSON has no word for becomes a text.
fn json_of(value: Value) -> Json {
    match value {
        Value::Null => Json::Null,
        Value::Bool(value) => value.into(),
        Value::Ubyte(value) => value.into(),
        Value::Ushort(value) => value.into(),
        Value::Uint(value) => value.into(),
        Value::Ulong(value) => value.into(),
        Value::Byte(value) => value.into(),
        Value::Short(value) => value.into(),
        Value::Int(value) => value.into(),
        Value::Long(value) => value.into(),
        // By way of its own shortest text: 0.1 stays 0.1.
        Value::Float(value) => number(&value.to_string()),
        Value::Double(value) => number(&value.to_string()),
        Value::Char(value) => value.to_string().into(),
        Value::Timestamp(time) => iso(time.milliseconds()).into(),
        Value::Uuid(id) => uuid(id.as_inner()).into(),
        Value::Binary(value) => bytes(&value),
        Value::String(value) => value.into(),
        Value::Symbol(value) => value.0.into(),
        Value::List(values) => values.into_iter().map(json_of).collect(),
        Value::Array(values) => values.0.into_iter().map(json_of).collect(),
        Value::Map(map) => map.into_iter().map(|(key, value)| (key_of(key), json_of(value))).collect(),
        Value::Described(described) => json_of(described.value),
        other => format!("{other:?}").into(),
    }
}

fn key_of(key: Value) -> String {
    match json_of(key) {
        Json::String(text) => text,
        other => other.to_string(),
    }
}

/// JSON has neither infinities nor NaN.
fn number(text: &str) -> Json {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

/// RFC 9562 4: 8-4-4-4-12 hexadecimal digits.
fn uuid(id: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in id.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use fe2o3_amqp::types::messaging::{
        AmqpSequence, AmqpValue, ApplicationProperties, Batch, Data, MessageAnnotations,
    };
    use fe2o3_amqp::types::primitives::{Binary, Symbol};

    use super::*;

    fn data(bytes: &[u8]) -> Body<Value> {
        Body::Data(Batch::new(vec![Data(Binary::from(bytes.to_vec()))]))
    }

    fn message(body: Body<Value>) -> Message<Body<Value>> {
        Message {
            message_annotations: Some(
                MessageAnnotations::builder()
                    .insert("iothub-connection-device-id", "pump-1")
                    .insert("x-opt-sequence-number", Value::Long(7))
                    .insert("x-opt-offset", "1024")
                    .insert("x-opt-enqueued-time", Value::Timestamp(1_795_339_800_123.into()))
                    .insert("iothub-message-source", "Telemetry")
                    .build(),
            ),
            properties: Some(
                Properties::builder().message_id("m-1".to_owned()).content_type("application/json").build(),
            ),
            application_properties: Some(
                ApplicationProperties::builder()
                    .insert("site", "berlin")
                    .insert("line", 7_i32)
                    .insert("hot", true)
                    .build(),
            ),
            header: None,
            delivery_annotations: None,
            footer: None,
            body,
        }
    }

    #[test]
    fn a_program_gets_everything() {
        let event: Json =
            serde_json::from_str(&Event::new(2, message(data(b"{\"t\":21}"))).to_json()).unwrap();
        assert_eq!(
            event,
            json!({
                "device": "pump-1", "partition": 2, "sequence": 7, "offset": "1024",
                "enqueued": "2026-11-22T09:30:00.123Z", "body": "{\"t\":21}",
                "properties": {"site": "berlin", "line": 7, "hot": true},
                "system": {"message-id": "m-1", "content-type": "application/json", "iothub-message-source": "Telemetry"},
            })
        );
    }

    #[test]
    fn a_person_gets_a_line() {
        assert_eq!(
            Event::new(2, message(data(b"{\"t\":21}"))).to_line(),
            "09:30:00.123  pump-1  {\"t\":21}   hot=true line=7 site=berlin content-type=application/json message-id=m-1"
        );
        assert_eq!(Event::new(2, message(data(b"{}"))).content(), "{}   hot=true line=7 site=berlin");
        let raw = Event::new(0, message(data(&[0xff, 0]))).to_line();
        assert!(raw.contains("  base64:/wA=   "), "{raw}");
        let hostile = Event::new(0, message(data(b"\x1b[2J\nx"))).to_line();
        assert!(!hostile.contains('\x1b') && !hostile.contains('\n'), "{hostile}");
        let bare = Event::new(0, Message { message_annotations: None, ..message(Body::Empty) }).to_line();
        assert!(bare.starts_with("  (no device)  null"), "{bare}");
    }

    #[test]
    fn every_kind_of_value_has_a_form() {
        for (value, expected) in [
            (Value::Float(0.1_f32.into()), json!(0.1)),
            (Value::Double(f64::NAN.into()), json!("NaN")),
            (Value::Ulong(u64::MAX), json!(u64::MAX)),
            (Value::Symbol(Symbol::from("s")), json!("s")),
            (Value::Binary(vec![0xff].into()), json!({"base64": "/w=="})),
            (Value::List(vec![Value::Null, Value::Char('ä')]), json!([null, "ä"])),
            (Value::Uuid([0x11; 16].into()), json!("11111111-1111-1111-1111-111111111111")),
        ] {
            assert_eq!(json_of(value), expected);
        }
        assert_eq!(body(Body::Value(AmqpValue(Value::String("v".into())))), json!("v"));
        assert_eq!(body(Body::Sequence(Batch::new(vec![AmqpSequence(vec![Value::Int(1)])]))), json!([1]));
        assert_eq!(body(Body::Empty), Json::Null);
    }
}
