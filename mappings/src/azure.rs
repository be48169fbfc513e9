//! The convention `azure-iot-hub`: where Azure IoT Hub's device API puts system and application properties.
//!
//! One table says what each system property means in the model and how MQTT's property bag and HTTP's header fields
//! spell it. CoAP has no names of Azure's own; there each Uri-Query option is one item of a bag, decoded already.

use bytes::Bytes;
use bytestring::ByteString;

use crate::address::{is_unreserved, percent_decode_into, percent_encode_into};
use crate::message::{Message, MessageId, Value};
use crate::outcome::{Reason, Rejection};
use crate::rules::is_reserved;
use crate::time;

/// The most properties of one message, the rule's own counted.
const MAX_PROPERTIES: usize = 100;
/// The most items of one bag, empty ones and system properties counted: a bound on the work for one topic.
const MAX_ITEMS: usize = 200;

/// A system property: its key in a bag, its header field, its place in the model.
struct Field {
    bag: &'static str,
    header: Option<&'static str>,
    meaning: Meaning,
}

#[derive(Debug, Clone, Copy)]
enum Meaning {
    MessageId,
    CorrelationId,
    UserId,
    ContentType,
    ContentEncoding,
    ExpiryTime,
    /// An application property that the hub gives a meaning to.
    Property(&'static str),
    Annotation(&'static str),
    /// Where the message goes is the rule's to say: read, and not used.
    Ignored,
    /// The device that the message is from, which may be said but not changed.
    Device,
    /// A module of the device; modules are not mapped.
    Module,
}

const fn field(bag: &'static str, header: &'static str, meaning: Meaning) -> Field {
    Field { bag, header: Some(header), meaning }
}

const fn bag_only(bag: &'static str, meaning: Meaning) -> Field {
    Field { bag, header: None, meaning }
}

const FIELDS: &[Field] = &[
    field("$.mid", "iothub-messageid", Meaning::MessageId),
    field("$.cid", "iothub-correlationid", Meaning::CorrelationId),
    field("$.uid", "iothub-userid", Meaning::UserId),
    field("$.to", "iothub-to", Meaning::Ignored),
    field("$.ct", "iothub-contenttype", Meaning::ContentType),
    field("$.ce", "iothub-contentencoding", Meaning::ContentEncoding),
    field("$.exp", "iothub-expiry", Meaning::ExpiryTime),
    field("$.ctime", "iothub-creationtimeutc", Meaning::Property("iothub-creation-time-utc")),
    field("$.schema", "iothub-messageschema", Meaning::Property("iothub-message-schema")),
    field("$.ifid", "iothub-interface-id", Meaning::Annotation("iothub-interface-id")),
    field("$.sub", "dt-subject", Meaning::Annotation("dt-subject")),
    field("iothub-ack", "iothub-ack", Meaning::Property("iothub-ack")),
    bag_only("$.on", Meaning::Property("iothub-outputname")),
    bag_only("$.diagid", Meaning::Annotation("Diagnostic-Id")),
    bag_only("$.diagctx", Meaning::Annotation("Correlation-Context")),
    bag_only("$.cdid", Meaning::Device),
    bag_only("$.cmid", Meaning::Module),
];

/// Reads MQTT's property bag: `key=value` joined by `&`, both percent-encoded; a bare key has no value. One slash at
/// the end is not part of it. The first `own` application properties of the message are the rule's.
pub(crate) fn read_bag(message: &mut Message, own: usize, bag: &str) -> Result<(), Rejection> {
    let bag = bag.strip_suffix('/').unwrap_or(bag);
    if bag.is_empty() {
        return Ok(());
    }
    let items = 1 + bag.bytes().filter(|&byte| byte == b'&').count();
    if items > MAX_ITEMS {
        return Err(content("too many properties"));
    }
    // All texts of the bag share one buffer. The slashes, ampersands and equal signs that separate are found in the
    // encoded text, so that an escaped one separates nothing.
    let mut decoded = Vec::with_capacity(bag.len());
    percent_decode_into(&mut decoded, bag)
        .ok_or_else(|| content("a malformed escape in the property bag"))?;
    let decoded: ByteString =
        String::from_utf8(decoded).map_err(|_| content("the property bag is not UTF-8"))?.into();
    message.application_properties.reserve_exact(items.min(MAX_PROPERTIES));
    let mut start = 0;
    for item in bag.split('&') {
        let length = decoded_length(item);
        let whole =
            decoded.get(start..start + length).ok_or_else(|| content("an escape splits a character"))?;
        start += length + 1;
        if item.is_empty() {
            continue;
        }
        let (raw_key, key, value) = match item.split_once('=') {
            Some((raw_key, _)) => {
                let (key, value) = whole
                    .split_at_checked(decoded_length(raw_key))
                    .ok_or_else(|| content("an escape splits a character"))?;
                (raw_key, key, Some(decoded.slice_ref(&value[1..])))
            }
            None => (item, whole, None),
        };
        if raw_key.contains('/') {
            return Err(content("a slash in the name of a property"));
        }
        read_item(message, own, key, || decoded.slice_ref(key), value)?;
    }
    Ok(())
}

/// Every escape is three bytes for one.
fn decoded_length(encoded: &str) -> usize {
    encoded.len() - 2 * encoded.bytes().filter(|&byte| byte == b'%').count()
}

/// Reads one item of a bag that came decoded and by itself: a Uri-Query option of CoAP. `api-version` says which of
/// Azure's APIs is meant, and is no property.
pub(crate) fn read_query_item(message: &mut Message, own: usize, item: &str) -> Result<(), Rejection> {
    let (key, value) = match item.split_once('=') {
        Some((key, value)) => (key, Some(ByteString::from(value))),
        None => (item, None),
    };
    match key {
        "" if value.is_none() => Ok(()),
        "api-version" => Ok(()),
        _ => read_item(message, own, key, || key.into(), value),
    }
}

/// Reads one header field by its lower-cased name. Fields that are not of the convention pass by.
pub(crate) fn read_header(
    message: &mut Message,
    own: usize,
    name: &str,
    value: &str,
) -> Result<(), Rejection> {
    if let Some(property) = name.strip_prefix("iothub-app-") {
        return add_property(message, own, property.into(), Value::String(value.into()));
    }
    match FIELDS.iter().find(|field| field.header == Some(name)) {
        Some(field) => set(message, own, field.meaning, value.into()),
        None => Ok(()),
    }
}

fn read_item(
    message: &mut Message,
    own: usize,
    key: &str,
    shared_key: impl FnOnce() -> ByteString,
    value: Option<ByteString>,
) -> Result<(), Rejection> {
    if key.starts_with("$.") || key == "iothub-ack" {
        let Some(field) = FIELDS.iter().find(|field| field.bag == key) else {
            return Err(content("a system property that is not known"));
        };
        // A bare key says that there is none.
        return value.map_or(Ok(()), |value| set(message, own, field.meaning, value));
    }
    add_property(message, own, shared_key(), value.map_or(Value::Null, Value::String))
}

fn set(message: &mut Message, own: usize, meaning: Meaning, value: ByteString) -> Result<(), Rejection> {
    let properties = &mut message.properties;
    match meaning {
        Meaning::MessageId => once(&mut properties.message_id, MessageId::String(value)),
        Meaning::CorrelationId => once(&mut properties.correlation_id, MessageId::String(value)),
        Meaning::UserId => once(&mut properties.user_id, value.into_bytes()),
        Meaning::ContentType => once(&mut properties.content_type, symbol(value)?),
        Meaning::ContentEncoding => once(&mut properties.content_encoding, symbol(value)?),
        Meaning::ExpiryTime => {
            let time = time::parse(&value).ok_or_else(|| content("the expiry time is not ISO 8601"))?;
            once(&mut properties.absolute_expiry_time, time)
        }
        Meaning::Property(name) => {
            push_property(message, own, ByteString::from_static(name), Value::String(value))
        }
        Meaning::Annotation(name) => {
            if message.annotation(name).is_some() {
                return Err(content("a system property is said twice"));
            }
            message.annotations.push((ByteString::from_static(name), Value::String(value)));
            Ok(())
        }
        Meaning::Ignored => Ok(()),
        Meaning::Device if value == message.device.as_str() => Ok(()),
        Meaning::Device => {
            Err(Rejection::new(Reason::NotPermitted, "the message claims to be another device's"))
        }
        Meaning::Module => Err(Rejection::new(Reason::NotPermitted, "the message claims to be a module's")),
    }
}

fn once<T>(place: &mut Option<T>, value: T) -> Result<(), Rejection> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(content("a system property is said twice")),
    }
}

/// AMQP symbols are ASCII (AMQP 1.0 1.6.21).
pub(crate) fn symbol(text: ByteString) -> Result<ByteString, Rejection> {
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        Ok(text)
    } else {
        Err(content("content type and content encoding are printable ASCII"))
    }
}

/// Says that a message is a device's will, as the hub would on its own.
pub(crate) fn mark_will(message: &mut Message, own: usize) -> Result<(), Rejection> {
    push_property(message, own, ByteString::from_static("iothub-MessageType"), "Will".into())
}

/// Adds an application property that the device said.
pub(crate) fn add_property(
    message: &mut Message,
    own: usize,
    name: ByteString,
    value: Value,
) -> Result<(), Rejection> {
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err(content("the name of a property is empty or holds a control character"));
    }
    // What the hub stamps on a message must not be told by a device.
    if is_reserved(&name) {
        return Err(content("the names `iothub-*` are reserved"));
    }
    push_property(message, own, name, value)
}

fn push_property(message: &mut Message, own: usize, name: ByteString, value: Value) -> Result<(), Rejection> {
    let properties = &mut message.application_properties;
    match properties.iter().position(|(known, _)| *known == name) {
        // The rule has the last word.
        Some(at) if at < own => Ok(()),
        Some(_) => Err(content("a property is said twice")),
        None if properties.len() >= MAX_PROPERTIES => Err(content("too many properties")),
        None => {
            properties.push((name, value));
            Ok(())
        }
    }
}

fn content(description: &'static str) -> Rejection {
    Rejection::new(Reason::Content, description)
}

/// Writes the bag of a command: system properties first, everything outside RFC 3986's unreserved characters escaped.
pub(crate) fn write_bag(message: &Message, out: &mut String) {
    let mut writer = BagWriter { out, first: true };
    let properties = &message.properties;
    if let Some(to) = &properties.to {
        writer.item("$.to", Some(to));
    }
    if let Some(id) = &properties.message_id {
        writer.message_id("$.mid", id);
    }
    if let Some(id) = &properties.correlation_id {
        writer.message_id("$.cid", id);
    }
    if let Some(user_id) = &properties.user_id {
        writer.bytes("$.uid", user_id);
    }
    if let Some(content_type) = &properties.content_type {
        writer.item("$.ct", Some(content_type));
    }
    if let Some(encoding) = &properties.content_encoding {
        writer.item("$.ce", Some(encoding));
    }
    if let Some(time) = properties.absolute_expiry_time {
        writer.item("$.exp", Some(&time::format(time)));
    }
    for (name, value) in &message.application_properties {
        match value {
            Value::Null => writer.item(name, None),
            Value::String(text) | Value::Symbol(text) => writer.item(name, Some(text)),
            Value::Binary(bytes) => writer.bytes(name, bytes),
            other => writer.item(name, Some(&value_text(other))),
        }
    }
}

/// A value as text, where the other side knows text only. Octets stand as they are if they are text.
pub(crate) fn value_text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(value) => value.to_string(),
        Value::Ubyte(value) => value.to_string(),
        Value::Ushort(value) => value.to_string(),
        Value::Uint(value) => value.to_string(),
        Value::Ulong(value) => value.to_string(),
        Value::Byte(value) => value.to_string(),
        Value::Short(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::Long(value) => value.to_string(),
        Value::Float(value) => value.to_string(),
        Value::Double(value) => value.to_string(),
        Value::Char(value) => value.to_string(),
        Value::Timestamp(value) => time::format(*value),
        Value::Uuid(bytes) => uuid_text(bytes),
        Value::Binary(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::String(text) | Value::Symbol(text) => text.to_string(),
    }
}

/// RFC 4122 3.
fn uuid_text(bytes: &[u8; 16]) -> String {
    let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

struct BagWriter<'a> {
    out: &'a mut String,
    first: bool,
}

impl BagWriter<'_> {
    fn key(&mut self, key: &str) {
        if !self.first {
            self.out.push('&');
        }
        self.first = false;
        percent_encode_into(self.out, key, is_unreserved);
    }

    fn item(&mut self, key: &str, value: Option<&str>) {
        self.key(key);
        if let Some(value) = value {
            self.out.push('=');
            percent_encode_into(self.out, value, is_unreserved);
        }
    }

    fn bytes(&mut self, key: &str, bytes: &Bytes) {
        self.item(key, Some(&String::from_utf8_lossy(bytes)));
    }

    fn message_id(&mut self, key: &str, id: &MessageId) {
        match id {
            MessageId::String(text) => self.item(key, Some(text)),
            MessageId::Binary(bytes) => self.bytes(key, bytes),
            MessageId::Ulong(number) => self.item(key, Some(&number.to_string())),
            MessageId::Uuid(bytes) => self.item(key, Some(&uuid_text(bytes))),
        }
    }
}
