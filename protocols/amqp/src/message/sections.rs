//! The sections of a message, as ranges of its bytes.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use super::Properties;
use crate::codec::{Limits, Map, MapIter, Reader, Value, validate, value_len};
use crate::error::{DecodeError, DecodeFault};
use crate::performative::{Composite, Fields, descriptor};

/// The sections of a message. All of them are validated; the message itself is not copied.
#[derive(Clone)]
pub struct Sections {
    message: Bytes,
    header: Header,
    delivery_annotations: Range<usize>,
    message_annotations: Range<usize>,
    properties: Properties,
    application_properties: Range<usize>,
    /// All sections of the body, descriptors included, and which they are.
    body: Range<usize>,
    body_code: u64,
    footer: Range<usize>,
}

/// The body of a message (AMQP 1.0 3.2.6 to 3.2.8).
#[derive(Debug, Clone, PartialEq)]
pub enum Body<'a> {
    /// No section at all, which the specification forbids but some peers send.
    Empty,
    /// Opaque bytes. Several sections are put together.
    Data(Bytes),
    /// Lists, one of each section.
    Sequence(Vec<Value<'a>>),
    /// One value.
    Value(Value<'a>),
}

impl Sections {
    /// The sections of `message`, of which all is taken. An empty message has none.
    ///
    /// # Errors
    /// Where a section is not sound, not known, not of its type, or not in its place.
    pub fn parse(message: &Bytes, limits: &Limits) -> Result<Self, DecodeError> {
        let mut sections = Self {
            message: message.clone(),
            header: Header::default(),
            delivery_annotations: 0..0,
            message_annotations: 0..0,
            properties: Properties::default(),
            application_properties: 0..0,
            body: 0..0,
            body_code: descriptor::UNKNOWN,
            footer: 0..0,
        };
        let mut at = 0;
        let mut last = descriptor::UNKNOWN;
        while at < message.len() {
            let rest = &message[at..];
            let end = at + validate(rest, limits).map_err(|error| error.shifted(at))?;
            let code = sections.section(at..end).map_err(|error| error.shifted(at))?;
            let next_of_body = code == last && matches!(code, descriptor::DATA | descriptor::AMQP_SEQUENCE);
            let body_twice = is_body(code) && is_body(last);
            if !next_of_body && (code <= last || body_twice) {
                return Err(DecodeFault::SectionOrder(code).at(at));
            }
            last = code;
            at = end;
        }
        Ok(sections)
    }

    /// Takes one section, which has been validated. Gives its descriptor.
    fn section(&mut self, range: Range<usize>) -> Result<u64, DecodeError> {
        let section = &self.message[range.clone()];
        let mut reader = Reader::new(section);
        let code = reader.read_descriptor()?;
        let value = range.start + reader.position()..range.end;
        let place = match code {
            descriptor::HEADER => {
                self.header = Header::decode(section)?;
                return Ok(code);
            }
            descriptor::PROPERTIES => {
                self.properties = Properties::try_from(Composite::validated(self.message.slice(range))?)?;
                return Ok(code);
            }
            descriptor::DATA | descriptor::AMQP_SEQUENCE | descriptor::AMQP_VALUE => {
                let start = if self.body_code == code { self.body.start } else { range.start };
                self.body = start..range.end;
                self.body_code = code;
                return match (code, Value::validated(reader.rest())) {
                    (descriptor::DATA, Some(Value::Binary(_)))
                    | (descriptor::AMQP_SEQUENCE, Some(Value::List(_)))
                    | (descriptor::AMQP_VALUE, Some(_)) => Ok(code),
                    _ => Err(DecodeFault::Field("body").at(reader.position())),
                };
            }
            descriptor::DELIVERY_ANNOTATIONS => &mut self.delivery_annotations,
            descriptor::MESSAGE_ANNOTATIONS => &mut self.message_annotations,
            descriptor::APPLICATION_PROPERTIES => &mut self.application_properties,
            descriptor::FOOTER => &mut self.footer,
            _ => return Err(DecodeFault::Descriptor.at(0)),
        };
        if !matches!(Value::validated(reader.rest()), Some(Value::Map(_))) {
            return Err(DecodeFault::Type { expected: "map" }.at(reader.position()));
        }
        *place = value;
        Ok(code)
    }

    /// The message.
    pub fn message(&self) -> &Bytes {
        &self.message
    }

    /// The section `header`; where there is none, its defaults.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The delivery annotations.
    pub fn delivery_annotations(&self) -> MapIter<'_> {
        self.map(&self.delivery_annotations)
    }

    /// The message annotations.
    pub fn message_annotations(&self) -> MapIter<'_> {
        self.map(&self.message_annotations)
    }

    /// The properties; where there are none, all of them are absent.
    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    /// The application properties. The specification wants strings as keys and simple types as values.
    pub fn application_properties(&self) -> MapIter<'_> {
        self.map(&self.application_properties)
    }

    /// The footer.
    pub fn footer(&self) -> MapIter<'_> {
        self.map(&self.footer)
    }

    /// The body. Data in one section is not copied.
    pub fn body(&self) -> Body<'_> {
        match self.body_code {
            descriptor::DATA => Body::Data(self.data()),
            descriptor::AMQP_SEQUENCE => Body::Sequence(self.body_values().collect()),
            descriptor::AMQP_VALUE => self.body_values().next().map_or(Body::Empty, Body::Value),
            _ => Body::Empty,
        }
    }

    /// The sections of the body as they came, descriptors included.
    pub fn encoded_body(&self) -> Bytes {
        self.message.slice(self.body.clone())
    }

    fn data(&self) -> Bytes {
        let mut pieces = self.body_values().filter_map(|value| match value {
            Value::Binary(bytes) => Some(bytes),
            _ => None,
        });
        match (pieces.next(), pieces.next()) {
            (None, _) => Bytes::new(),
            (Some(only), None) => self.message.slice_ref(only),
            (Some(first), Some(second)) => {
                let mut joined = [first, second].concat();
                pieces.for_each(|piece| joined.extend_from_slice(piece));
                joined.into()
            }
        }
    }

    /// The value of each section of the body.
    fn body_values(&self) -> impl Iterator<Item = Value<'_>> {
        let mut rest = &self.message[self.body.clone()];
        std::iter::from_fn(move || {
            let (section, behind) = rest.split_at_checked(value_len(rest)?)?;
            rest = behind;
            match Value::validated(section)? {
                Value::Described(described) => Some(described.value()),
                _ => None,
            }
        })
    }

    fn map(&self, range: &Range<usize>) -> MapIter<'_> {
        match Value::validated(&self.message[range.clone()]) {
            Some(Value::Map(map)) => map.iter(),
            _ => Map::default().iter(),
        }
    }
}

impl fmt::Debug for Sections {
    /// Only what has a place in a log: no content.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sections")
            .field("bytes", &self.message.len())
            .field("header", &self.header)
            .field("body", &self.body)
            .finish_non_exhaustive()
    }
}

fn is_body(code: u64) -> bool {
    matches!(code, descriptor::DATA | descriptor::AMQP_SEQUENCE | descriptor::AMQP_VALUE)
}

/// The section `header` (AMQP 1.0 3.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Whether the message survives a restart of an intermediary.
    pub durable: bool,
    /// The priority; 4 is normal.
    pub priority: u8,
    /// How long the message lives, to the millisecond.
    pub ttl: Option<Duration>,
    /// Whether nobody else had it before.
    pub first_acquirer: bool,
    /// How many attempts to deliver it have failed.
    pub delivery_count: u32,
}

impl Header {
    fn decode(section: &[u8]) -> Result<Self, DecodeError> {
        let mut fields = Fields::open(section, descriptor::HEADER)?;
        let header = Self {
            durable: fields.bool().unwrap_or(false),
            priority: fields.u8().unwrap_or(4),
            ttl: fields.u32().map(|milliseconds| Duration::from_millis(milliseconds.into())),
            first_acquirer: fields.bool().unwrap_or(false),
            delivery_count: fields.u32().unwrap_or(0),
        };
        fields.close()?;
        Ok(header)
    }
}

impl Default for Header {
    fn default() -> Self {
        Self { durable: false, priority: 4, ttl: None, first_acquirer: false, delivery_count: 0 }
    }
}
