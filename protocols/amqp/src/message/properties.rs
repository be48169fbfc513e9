//! The section `properties` (AMQP 1.0 3.2.4).

use crate::codec::Value;
use crate::error::{DecodeError, DecodeFault};
use crate::performative::{Composite, descriptor};

/// The properties of a message, as they came.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Properties(Option<Composite>);

/// What a field has to be.
enum Kind {
    /// A ulong, a uuid, a binary or a string.
    Id,
    Binary,
    Str,
    Symbol,
    Timestamp,
    Uint,
    /// An address: any type, though only strings are of use here.
    Any,
}

const FIELDS: [(&str, Kind); 13] = [
    ("message-id", Kind::Id),
    ("user-id", Kind::Binary),
    ("to", Kind::Any),
    ("subject", Kind::Str),
    ("reply-to", Kind::Any),
    ("correlation-id", Kind::Id),
    ("content-type", Kind::Symbol),
    ("content-encoding", Kind::Symbol),
    ("absolute-expiry-time", Kind::Timestamp),
    ("creation-time", Kind::Timestamp),
    ("group-id", Kind::Str),
    ("group-sequence", Kind::Uint),
    ("reply-to-group-id", Kind::Str),
];

impl TryFrom<Composite> for Properties {
    type Error = DecodeError;

    fn try_from(composite: Composite) -> Result<Self, DecodeError> {
        if composite.code() != descriptor::PROPERTIES {
            return Err(DecodeFault::Descriptor.at(0));
        }
        for (index, (name, kind)) in FIELDS.iter().enumerate() {
            let Some(value) = composite.value(index) else {
                continue;
            };
            let fits = match kind {
                Kind::Id => {
                    matches!(value, Value::Ulong(_) | Value::Uuid(_) | Value::Binary(_) | Value::Str(_))
                }
                Kind::Binary => matches!(value, Value::Binary(_)),
                Kind::Str => matches!(value, Value::Str(_)),
                // Several clients send a string here; its meaning is not in doubt.
                Kind::Symbol => matches!(value, Value::Symbol(_) | Value::Str(_)),
                Kind::Timestamp => matches!(value, Value::Timestamp(_)),
                Kind::Uint => matches!(value, Value::Uint(_)),
                Kind::Any => true,
            };
            if !fits {
                return Err(DecodeFault::Field(name).at(0));
            }
        }
        Ok(Self(Some(composite)))
    }
}

impl Properties {
    /// The identity of the message: a ulong, a uuid, a binary or a string.
    pub fn message_id(&self) -> Option<Value<'_>> {
        self.value(0)
    }

    /// The identity of the user who made the message.
    pub fn user_id(&self) -> Option<&[u8]> {
        self.0.as_ref()?.binary(1)
    }

    /// The node that the message goes to, where it is a string.
    pub fn to(&self) -> Option<&str> {
        self.text(2)
    }

    /// What the message is about.
    pub fn subject(&self) -> Option<&str> {
        self.text(3)
    }

    /// The node that replies go to, where it is a string.
    pub fn reply_to(&self) -> Option<&str> {
        self.text(4)
    }

    /// What the message is an answer to: a ulong, a uuid, a binary or a string.
    pub fn correlation_id(&self) -> Option<Value<'_>> {
        self.value(5)
    }

    /// The MIME type of the body.
    pub fn content_type(&self) -> Option<&str> {
        self.text(6)
    }

    /// The MIME content encoding of the body.
    pub fn content_encoding(&self) -> Option<&str> {
        self.text(7)
    }

    /// When the message expires: milliseconds since 1970-01-01T00:00:00Z.
    pub fn absolute_expiry_time(&self) -> Option<i64> {
        self.timestamp(8)
    }

    /// When the message was made: milliseconds since 1970-01-01T00:00:00Z.
    pub fn creation_time(&self) -> Option<i64> {
        self.timestamp(9)
    }

    /// The group that the message is of.
    pub fn group_id(&self) -> Option<&str> {
        self.text(10)
    }

    /// The place of the message in its group.
    pub fn group_sequence(&self) -> Option<u32> {
        self.0.as_ref()?.u32(11)
    }

    /// The group that replies are of.
    pub fn reply_to_group_id(&self) -> Option<&str> {
        self.text(12)
    }

    fn value(&self, field: usize) -> Option<Value<'_>> {
        self.0.as_ref()?.value(field)
    }

    fn text(&self, field: usize) -> Option<&str> {
        self.value(field)?.as_str()
    }

    fn timestamp(&self, field: usize) -> Option<i64> {
        match self.value(field) {
            Some(Value::Timestamp(milliseconds)) => Some(milliseconds),
            _ => None,
        }
    }
}

/// The properties of a message that goes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct PropertiesOut<'a> {
    /// The identity of the message: a ulong, a uuid, a binary or a string.
    pub message_id: Option<Value<'a>>,
    /// The identity of the user who made the message.
    pub user_id: Option<&'a [u8]>,
    /// The node that the message goes to.
    pub to: Option<&'a str>,
    /// What the message is about.
    pub subject: Option<&'a str>,
    /// The node that replies go to.
    pub reply_to: Option<&'a str>,
    /// What the message is an answer to: a ulong, a uuid, a binary or a string.
    pub correlation_id: Option<Value<'a>>,
    /// The MIME type of the body: ASCII.
    pub content_type: Option<&'a str>,
    /// The MIME content encoding of the body: ASCII.
    pub content_encoding: Option<&'a str>,
    /// When the message expires: milliseconds since 1970-01-01T00:00:00Z.
    pub absolute_expiry_time: Option<i64>,
    /// When the message was made: milliseconds since 1970-01-01T00:00:00Z.
    pub creation_time: Option<i64>,
    /// The group that the message is of.
    pub group_id: Option<&'a str>,
    /// The place of the message in its group.
    pub group_sequence: Option<u32>,
    /// The group that replies are of.
    pub reply_to_group_id: Option<&'a str>,
}
