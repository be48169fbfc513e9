//! A composite value (a described list) as it came, with the places of its fields.
//!
//! It is what a routed attach travels as: fields are read or replaced one by one, and what is not understood
//! (filters, capabilities, properties, vendor types, fields of a later version) stays byte for byte.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use serde::de::DeserializeOwned;

use super::{descriptor, typed};
use crate::codec::{self, Limits, Map, Reader, Value, put_list, validate, value_len};
use crate::error::{DecodeError, DecodeFault};

/// How many fields have a known place. No composite type of AMQP 1.0 has more than 14.
const INLINE: usize = 16;

/// A composite value, validated whole, with the places of its fields.
///
/// A field that is absent and one that is null are the same: `None`. The accessors of a type give `None` also where
/// the field is of another type.
#[derive(Clone)]
pub struct Composite {
    bytes: Bytes,
    code: u64,
    /// Where the list's own constructor stands, behind the descriptor.
    list: u32,
    /// Where field `i` starts; field `len` is where the last of them ends.
    starts: [u32; INLINE + 1],
    len: u8,
    /// All fields, those beyond `INLINE` too.
    count: u32,
}

impl Composite {
    /// The composite at the start of `bytes`, and what follows it: in a frame, the payload.
    ///
    /// # Errors
    /// As [`validate`]; and where the value is not a described list.
    pub fn parse(mut bytes: Bytes, limits: &Limits) -> Result<(Self, Bytes), DecodeError> {
        let len = validate(&bytes, limits)?;
        let payload = bytes.split_off(len);
        Ok((Self::validated(bytes)?, payload))
    }

    /// The composite that is `bytes`, one value that [`validate`] has passed.
    ///
    /// # Errors
    /// Where the value is not a described list.
    pub(crate) fn validated(bytes: Bytes) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(&bytes);
        let code = reader.read_descriptor()?;
        let list = offset(reader.position())?;
        let Some((count, items)) = reader.read_list()? else {
            return Err(DecodeFault::Type { expected: "list" }.at(reader.position()));
        };
        let mut at = bytes.len() - items.rest().len();
        let mut starts = [offset(at)?; INLINE + 1];
        let known = count.min(INLINE);
        for start in &mut starts[1..=known] {
            at += bytes.get(at..).and_then(value_len).ok_or(DecodeFault::Truncated.at(at))?;
            *start = offset(at)?;
        }
        let len = u8::try_from(known).map_err(|_| DecodeFault::TooMany.at(at))?;
        Ok(Self { bytes, code, list, starts, len, count: offset(count)? })
    }

    /// A value that is no described list, as a composite without fields; `bytes` must be one valid value.
    pub(crate) fn opaque(bytes: Bytes) -> Self {
        let code = Reader::new(&bytes).read_descriptor().unwrap_or(descriptor::UNKNOWN);
        Self { bytes, code, list: 0, starts: [0; INLINE + 1], len: 0, count: 0 }
    }

    /// The composite that `fields` writes, with the descriptor `code`.
    pub(crate) fn build(code: u64, fields: impl FnOnce(&mut BytesMut) -> usize) -> Self {
        let mut out = BytesMut::new();
        codec::put_composite(&mut out, code, fields);
        Self::written(out)
    }

    /// The composite that we have just written.
    pub(crate) fn written(out: BytesMut) -> Self {
        let bytes = out.freeze();
        // Only a raw field of the caller's that is no value can fail here. It is the peer who will refuse it.
        Self::validated(bytes.clone()).unwrap_or_else(|_| Self::opaque(bytes))
    }

    /// Its numeric descriptor, or [`descriptor::UNKNOWN`] for a symbolic one that the specification does not define.
    pub fn code(&self) -> u64 {
        self.code
    }

    /// All of it, encoded, descriptor included.
    pub fn encoded(&self) -> &[u8] {
        &self.bytes
    }

    /// All of it, encoded, without a copy.
    pub fn to_bytes(&self) -> Bytes {
        self.bytes.clone()
    }

    /// How many fields it has, trailing ones that are unknown included.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether it has no fields.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// A field as it is encoded.
    pub fn raw(&self, field: usize) -> Option<&[u8]> {
        self.range(field).map(|range| &self.bytes[range])
    }

    /// A field as it is encoded, without a copy.
    pub fn raw_bytes(&self, field: usize) -> Option<Bytes> {
        self.range(field).map(|range| self.bytes.slice(range))
    }

    /// A field of any type.
    pub fn value(&self, field: usize) -> Option<Value<'_>> {
        self.raw(field).and_then(Value::validated)
    }

    /// A boolean field.
    pub fn bool(&self, field: usize) -> Option<bool> {
        Reader::new(self.raw(field)?).read_bool().ok()?
    }

    /// A ubyte field.
    pub fn u8(&self, field: usize) -> Option<u8> {
        Reader::new(self.raw(field)?).read_u8().ok()?
    }

    /// A ushort field.
    pub fn u16(&self, field: usize) -> Option<u16> {
        Reader::new(self.raw(field)?).read_u16().ok()?
    }

    /// A uint field.
    pub fn u32(&self, field: usize) -> Option<u32> {
        Reader::new(self.raw(field)?).read_u32().ok()?
    }

    /// A ulong field.
    pub fn u64(&self, field: usize) -> Option<u64> {
        Reader::new(self.raw(field)?).read_u64().ok()?
    }

    /// A string field.
    pub fn str(&self, field: usize) -> Option<&str> {
        Reader::new(self.raw(field)?).read_str().ok()?
    }

    /// A symbol field.
    pub fn symbol(&self, field: usize) -> Option<&str> {
        Reader::new(self.raw(field)?).read_symbol().ok()?
    }

    /// A binary field.
    pub fn binary(&self, field: usize) -> Option<&[u8]> {
        Reader::new(self.raw(field)?).read_binary().ok()?
    }

    /// A map field.
    pub fn map(&self, field: usize) -> Option<Map<'_>> {
        match self.value(field) {
            Some(Value::Map(map)) => Some(map),
            _ => None,
        }
    }

    /// The symbols of a field that may hold one or an array of them (AMQP 1.0 1.4).
    pub fn symbols(&self, field: usize) -> impl Iterator<Item = &str> {
        let (one, several) = match self.value(field) {
            Some(Value::Symbol(symbol)) => (Some(symbol), None),
            Some(Value::Array(array)) => (None, Some(array)),
            _ => (None, None),
        };
        let several = several.into_iter().flatten().filter_map(|value| match value {
            Value::Symbol(symbol) => Some(symbol),
            _ => None,
        });
        one.into_iter().chain(several)
    }

    /// All of it as a structure of `fe2o3-amqp-types`, or any other that `serde_amqp` reads.
    ///
    /// The value has been validated, so that neither its depth nor its lengths can hurt that decoder. Vendor types
    /// where the structure has a closed set do not pass: a value that is only routed is not read this way.
    ///
    /// # Errors
    /// [`DecodeFault::Typed`] where the structure has no place for the value, or that decoder cannot be trusted
    /// with it.
    pub fn typed<T: DeserializeOwned>(&self) -> Result<T, DecodeError> {
        if !typed::is_safe(&self.bytes) {
            return Err(DecodeFault::Typed.at(0));
        }
        serde_amqp::from_slice(&self.bytes).map_err(|_| DecodeFault::Typed.at(0))
    }

    /// Writes the composite with `patches` (a field's index and what it becomes) applied, the last one of an index
    /// first. Every other field is copied as it came; the list is filled up with nulls to all fields of its type.
    pub fn write_patched(&self, out: &mut BytesMut, patches: &[(usize, Patch<'_>)]) {
        if self.list == 0 {
            return out.extend_from_slice(&self.bytes);
        }
        out.extend_from_slice(&self.bytes[..self.list as usize]);
        put_list(out, |out| {
            let known = usize::from(self.len);
            let patched = patches.iter().map(|&(field, _)| field + 1).max().unwrap_or(0).min(INLINE);
            let count = known.max(patched).max(descriptor::field_count(self.code));
            for field in 0..count {
                match patches.iter().rev().find(|&&(index, _)| index == field) {
                    Some((_, patch)) => patch.write(out),
                    None if field < known => out.extend_from_slice(&self.bytes[self.bounds(field)]),
                    None => codec::put_null(out),
                }
            }
            let beyond = self.len() - known;
            if beyond > 0 {
                out.extend_from_slice(&self.bytes[self.starts[INLINE] as usize..]);
            }
            count + beyond
        });
    }

    /// The composite with `patches` applied, as [`write_patched`](Self::write_patched) writes it.
    ///
    /// # Errors
    /// Where a raw patch is no value.
    pub fn patched(&self, patches: &[(usize, Patch<'_>)]) -> Result<Self, DecodeError> {
        let mut out = BytesMut::new();
        self.write_patched(&mut out, patches);
        Self::parse(out.freeze(), &Limits::WIRE).map(|(composite, _)| composite)
    }

    /// Where a field stands that is there and not null.
    fn range(&self, field: usize) -> Option<Range<usize>> {
        if field >= usize::from(self.len) {
            return None;
        }
        let range = self.bounds(field);
        (self.bytes[range.start] != codec::code::NULL).then_some(range)
    }

    fn bounds(&self, field: usize) -> Range<usize> {
        self.starts[field] as usize..self.starts[field + 1] as usize
    }
}

impl std::fmt::Debug for Composite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Composite {:#04x} ", self.code)?;
        f.debug_list().entries((0..usize::from(self.len)).map(|field| self.value(field))).finish()
    }
}

impl PartialEq for Composite {
    /// Whether both are the same bytes.
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

/// What a field becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // The variants are the types of AMQP 1.0 1.6 under the names of the accessors.
pub enum Patch<'a> {
    Null,
    Bool(bool),
    U8(u8),
    U16(u16),
    U32(u32),
    U64(u64),
    Str(&'a str),
    Symbol(&'a str),
    Binary(&'a [u8]),
    /// One encoded value.
    Raw(&'a [u8]),
}

impl Patch<'_> {
    pub(crate) fn write(&self, out: &mut BytesMut) {
        match *self {
            Self::Null => codec::put_null(out),
            Self::Bool(value) => codec::put_bool(out, value),
            Self::U8(value) => codec::put_ubyte(out, value),
            Self::U16(value) => codec::put_ushort(out, value),
            Self::U32(value) => codec::put_uint(out, value),
            Self::U64(value) => codec::put_ulong(out, value),
            Self::Str(text) => codec::put_str(out, text),
            Self::Symbol(text) => codec::put_symbol(out, text),
            Self::Binary(bytes) => codec::put_binary(out, bytes),
            Self::Raw(bytes) => out.extend_from_slice(bytes),
        }
    }
}

impl<'a> From<Option<&'a [u8]>> for Patch<'a> {
    /// An encoded value, or null.
    fn from(raw: Option<&'a [u8]>) -> Self {
        raw.map_or(Self::Null, Self::Raw)
    }
}

/// A place as it is kept. Values come in frames and messages, both far below 4 GiB.
fn offset(at: usize) -> Result<u32, DecodeError> {
    u32::try_from(at).map_err(|_| DecodeFault::TooMany.at(at))
}
