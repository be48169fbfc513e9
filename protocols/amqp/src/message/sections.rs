//! The sections of a message, as ranges of its bytes.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use super::Properties;
use crate::codec::{Limits, Map, MapIter, Reader, Value, validate};
use crate::error::{DecodeError, DecodeFault};
use crate::performative::{Composite, descriptor};

/// The sections of a message. All of them are validated; the message itself is not copied.
#[derive(Debug, Clone)]
pub struct Sections {
    message: Bytes,
    header: Option<Range<usize>>,
    delivery_annotations: Option<Range<usize>>,
    message_annotations: Option<Range<usize>>,
    properties: Option<Range<usize>>,
    application_properties: Option<Range<usize>>,
    /// All sections of the body, descriptors included.
    body: Range<usize>,
    body_kind: u64,
    footer: Option<Range<usize>>,
}

/// The body of a message (AMQP 1.0 3.2.6 to 3.2.8).
#[derive(Debug, Clone, PartialEq)]
pub enum Body<'a> {
    /// No section at all, which the specification forbids but some peers send.
    Empty,
    /// Opaque bytes, in one section or several.
    Data(Bytes),
    /// Lists, one section after the other, each an encoded list.
    Sequence(Vec<Value<'a>>),
    /// One value.
    Value(Value<'a>),
}

impl Sections {
    /// The sections of `message`, of which all is taken.
    ///
    /// # Errors
    /// Where a section is not sound, not known, not of its type, or not in its place.
    pub fn parse(message: &Bytes, limits: &Limits) -> Result<Self, DecodeError> {
        let mut sections = Self {
            message: message.clone(),
            header: None,
            delivery_annotations: None,
            message_annotations: None,
            properties: None,
            application_properties: None,
            body: 0..0,
            body_kind: descriptor::UNKNOWN,
            footer: None,
        };
        let mut at = 0;
        let mut last = descriptor::UNKNOWN;
        while at < message.len() {
            let rest = &message[at..];
            let end = at + validate(rest, limits).map_err(|error| error.shifted(at))?;
            let mut reader = Reader::new(rest);
            let code = reader.read_descriptor().map_err(|error| error.shifted(at))?;
            let value = at + reader.position()..end;
            let repeated = code == last && matches!(code, descriptor::DATA | descriptor::AMQP_SEQUENCE);
            let second_body = sections.body_kind != descriptor::UNKNOWN && code <= descriptor::AMQP_VALUE;
            if !repeated && (code <= last || second_body) {
                return Err(DecodeFault::SectionOrder(u8::try_from(code).unwrap_or(u8::MAX)).at(at));
            }
            sections.take(code, at, value)?;
            last = code;
            at = end;
        }
        if sections.properties.is_some() {
            sections.read_properties()?;
        }
        Ok(sections)
    }

    /// Notes the place of one section, where its value is of the section's type.
    fn take(&mut self, code: u64, start: usize, value: Range<usize>) -> Result<(), DecodeError> {
        let kind = Value::validated(&self.message[value.clone()]);
        let place = match code {
            descriptor::HEADER => &mut self.header,
            descriptor::DELIVERY_ANNOTATIONS => &mut self.delivery_annotations,
            descriptor::MESSAGE_ANNOTATIONS => &mut self.message_annotations,
            descriptor::PROPERTIES => &mut self.properties,
            descriptor::APPLICATION_PROPERTIES => &mut self.application_properties,
            descriptor::FOOTER => &mut self.footer,
            descriptor::DATA | descriptor::AMQP_SEQUENCE | descriptor::AMQP_VALUE => {
                let fits = match code {
                    descriptor::DATA => matches!(kind, Some(Value::Binary(_))),
                    descriptor::AMQP_SEQUENCE => matches!(kind, Some(Value::List(_))),
                    _ => true,
                };
                if !fits {
                    return Err(DecodeFault::Field("body").at(value.start));
                }
                let first = if self.body_kind == code { self.body.start } else { start };
                self.body = first..value.end;
                self.body_kind = code;
                return Ok(());
            }
            _ => return Err(DecodeFault::Descriptor.at(start)),
        };
        let fits = match code {
            descriptor::HEADER | descriptor::PROPERTIES => matches!(kind, Some(Value::List(_))),
            _ => matches!(kind, Some(Value::Map(_))),
        };
        if !fits {
            return Err(DecodeFault::Field("section").at(value.start));
        }
        // Header and properties are read as composites, which start at their descriptor.
        let whole = matches!(code, descriptor::HEADER | descriptor::PROPERTIES);
        *place = Some(if whole { start..value.end } else { value });
        Ok(())
    }

    /// The message.
    pub fn message(&self) -> &Bytes {
        &self.message
    }

    /// The section `header`; where there is none, its defaults.
    pub fn header(&self) -> Header {
        let composite = self.header.clone().and_then(|range| self.composite(range).ok());
        let Some(composite) = composite else {
            return Header::default();
        };
        Header {
            durable: composite.bool(0).unwrap_or(false),
            priority: composite.u8(1).unwrap_or(4),
            ttl: composite.u32(2).map(|milliseconds| Duration::from_millis(milliseconds.into())),
            first_acquirer: composite.bool(3).unwrap_or(false),
            delivery_count: composite.u32(4).unwrap_or(0),
        }
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
    pub fn properties(&self) -> Properties {
        self.read_properties().unwrap_or_default()
    }

    /// The application properties. The specification wants strings as keys and simple types as values.
    pub fn application_properties(&self) -> MapIter<'_> {
        self.map(&self.application_properties)
    }

    /// The footer.
    pub fn footer(&self) -> MapIter<'_> {
        self.map(&self.footer)
    }

    /// The body. Data in one section is not copied; in several, it is put together.
    pub fn body(&self) -> Body<'_> {
        match self.body_kind {
            descriptor::DATA => Body::Data(self.data()),
            descriptor::AMQP_SEQUENCE => Body::Sequence(self.body_values().collect()),
            descriptor::AMQP_VALUE => self.body_values().next().map_or(Body::Empty, Body::Value),
            _ => Body::Empty,
        }
    }

    /// The bytes of the sections of the body, descriptors included: what a signature or a copy is taken of.
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
            let len = crate::codec::value_len(rest)?;
            let (section, behind) = rest.split_at_checked(len)?;
            rest = behind;
            match Value::validated(section)? {
                Value::Described(described) => Some(described.value()),
                _ => None,
            }
        })
    }

    fn read_properties(&self) -> Result<Properties, DecodeError> {
        match &self.properties {
            Some(range) => Properties::try_from(self.composite(range.clone())?),
            None => Ok(Properties::default()),
        }
    }

    fn composite(&self, range: Range<usize>) -> Result<Composite, DecodeError> {
        Composite::parse(self.message.slice(range), &Limits { max_items: usize::MAX, ..Limits::WIRE })
            .map(|(composite, _)| composite)
    }

    fn map(&self, range: &Option<Range<usize>>) -> MapIter<'_> {
        let value = range.clone().and_then(|range| Value::validated(&self.message[range]));
        let map = match value {
            Some(Value::Map(map)) => map,
            _ => Map::default(),
        };
        map.iter()
    }
}

/// The section `header` (AMQP 1.0 3.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Whether the message survives a restart of an intermediary.
    pub durable: bool,
    /// The priority; 4 is normal.
    pub priority: u8,
    /// How long the message lives.
    pub ttl: Option<Duration>,
    /// Whether nobody else had it before.
    pub first_acquirer: bool,
    /// How many attempts to deliver it have failed.
    pub delivery_count: u32,
}

impl Default for Header {
    fn default() -> Self {
        Self { durable: false, priority: 4, ttl: None, first_acquirer: false, delivery_count: 0 }
    }
}
