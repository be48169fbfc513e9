//! One value of any type, borrowed from the bytes it stands in.

use bytes::BytesMut;

use super::validate::{body_len, value_len};
use super::{Limits, code, validate, write};
use crate::error::{DecodeError, DecodeFault};

/// One value, borrowed from the bytes it stands in.
///
/// Lists, maps, arrays and described values are views over bytes that were validated whole, so that walking them
/// cannot fail.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)] // The variants are the types of AMQP 1.0 1.6 under their own names.
pub enum Value<'a> {
    Null,
    Bool(bool),
    Ubyte(u8),
    Ushort(u16),
    Uint(u32),
    Ulong(u64),
    Byte(i8),
    Short(i16),
    Int(i32),
    Long(i64),
    Float(f32),
    Double(f64),
    Decimal32([u8; 4]),
    Decimal64([u8; 8]),
    Decimal128([u8; 16]),
    Char(char),
    /// Milliseconds since 1970-01-01T00:00:00Z.
    Timestamp(i64),
    Uuid([u8; 16]),
    Binary(&'a [u8]),
    Str(&'a str),
    Symbol(&'a str),
    List(List<'a>),
    Map(Map<'a>),
    Array(Array<'a>),
    Described(Described<'a>),
}

impl<'a> Value<'a> {
    /// The one value at the start of `bytes`, validated whole, and its length.
    ///
    /// # Errors
    /// As [`validate`].
    pub fn decode(bytes: &'a [u8], limits: &Limits) -> Result<(Self, usize), DecodeError> {
        let len = validate(bytes, limits)?;
        let value = Self::validated(&bytes[..len]).ok_or(DecodeFault::Truncated.at(0))?;
        Ok((value, len))
    }

    /// The value that `bytes` are, where [`validate`] has passed them.
    pub(crate) fn validated(bytes: &'a [u8]) -> Option<Self> {
        let head = constructor_len(bytes)?;
        Self::from_parts(&bytes[..head], &bytes[head..]).map(|(value, _)| value)
    }

    /// The value of a constructor (descriptors, then a format code) and what follows it, and how much of that.
    fn from_parts(constructor: &'a [u8], body: &'a [u8]) -> Option<(Self, usize)> {
        let (&first, rest) = constructor.split_first()?;
        if first == code::DESCRIBED {
            let (descriptor, constructor) = rest.split_at_checked(value_len(rest)?)?;
            let len = body_len(*constructor.last()?, body)?;
            let described = Described { descriptor, constructor, body: body.get(..len)? };
            return Some((Self::Described(described), len));
        }
        let len = body_len(first, body)?;
        let body = body.get(..len)?;
        let value = match first {
            code::NULL => Self::Null,
            code::TRUE => Self::Bool(true),
            code::FALSE => Self::Bool(false),
            code::BOOLEAN => Self::Bool(body[0] == 1),
            code::UINT0 => Self::Uint(0),
            code::ULONG0 => Self::Ulong(0),
            code::UBYTE => Self::Ubyte(body[0]),
            code::BYTE => Self::Byte(body[0].cast_signed()),
            code::SMALL_UINT => Self::Uint(u32::from(body[0])),
            code::SMALL_ULONG => Self::Ulong(u64::from(body[0])),
            code::SMALL_INT => Self::Int(i32::from(body[0].cast_signed())),
            code::SMALL_LONG => Self::Long(i64::from(body[0].cast_signed())),
            code::USHORT => Self::Ushort(u16::from_be_bytes(array(body)?)),
            code::SHORT => Self::Short(i16::from_be_bytes(array(body)?)),
            code::UINT => Self::Uint(u32::from_be_bytes(array(body)?)),
            code::INT => Self::Int(i32::from_be_bytes(array(body)?)),
            code::FLOAT => Self::Float(f32::from_be_bytes(array(body)?)),
            code::CHAR => Self::Char(char::from_u32(u32::from_be_bytes(array(body)?))?),
            code::DECIMAL32 => Self::Decimal32(array(body)?),
            code::ULONG => Self::Ulong(u64::from_be_bytes(array(body)?)),
            code::LONG => Self::Long(i64::from_be_bytes(array(body)?)),
            code::DOUBLE => Self::Double(f64::from_be_bytes(array(body)?)),
            code::TIMESTAMP => Self::Timestamp(i64::from_be_bytes(array(body)?)),
            code::DECIMAL64 => Self::Decimal64(array(body)?),
            code::DECIMAL128 => Self::Decimal128(array(body)?),
            code::UUID => Self::Uuid(array(body)?),
            code::BINARY8 => Self::Binary(&body[1..]),
            code::BINARY32 => Self::Binary(&body[4..]),
            code::STR8 => Self::Str(std::str::from_utf8(&body[1..]).ok()?),
            code::STR32 => Self::Str(std::str::from_utf8(&body[4..]).ok()?),
            code::SYM8 => Self::Symbol(std::str::from_utf8(&body[1..]).ok()?),
            code::SYM32 => Self::Symbol(std::str::from_utf8(&body[4..]).ok()?),
            code::LIST0 => Self::List(List::default()),
            code::LIST8 | code::LIST32 => {
                let (count, items) = counted(first, body)?;
                Self::List(List { count, items })
            }
            code::MAP8 | code::MAP32 => {
                let (count, items) = counted(first, body)?;
                Self::Map(Map { items: List { count, items } })
            }
            code::ARRAY8 | code::ARRAY32 => {
                let (count, rest) = counted(first, body)?;
                let head = if rest.is_empty() { 0 } else { constructor_len(rest)? };
                let (constructor, items) = rest.split_at_checked(head)?;
                Self::Array(Array { constructor, count, items })
            }
            _ => return None,
        };
        Some((value, len))
    }

    /// The text of a string or a symbol.
    pub fn as_str(&self) -> Option<&'a str> {
        match *self {
            Self::Str(text) | Self::Symbol(text) => Some(text),
            _ => None,
        }
    }

    /// Writes the value, in the shortest encoding of its type; the items of a compound stay as they are.
    pub fn write(&self, out: &mut BytesMut) {
        match *self {
            Self::Null => write::put_null(out),
            Self::Bool(value) => write::put_bool(out, value),
            Self::Ubyte(value) => write::put_ubyte(out, value),
            Self::Ushort(value) => write::put_ushort(out, value),
            Self::Uint(value) => write::put_uint(out, value),
            Self::Ulong(value) => write::put_ulong(out, value),
            Self::Byte(value) => write::put_fixed(out, code::BYTE, value.to_be_bytes()),
            Self::Short(value) => write::put_fixed(out, code::SHORT, value.to_be_bytes()),
            Self::Int(value) => write::put_int(out, value),
            Self::Long(value) => write::put_long(out, value),
            Self::Float(value) => write::put_float(out, value),
            Self::Double(value) => write::put_double(out, value),
            Self::Decimal32(bytes) => write::put_fixed(out, code::DECIMAL32, bytes),
            Self::Decimal64(bytes) => write::put_fixed(out, code::DECIMAL64, bytes),
            Self::Decimal128(bytes) => write::put_fixed(out, code::DECIMAL128, bytes),
            Self::Char(value) => write::put_fixed(out, code::CHAR, u32::from(value).to_be_bytes()),
            Self::Timestamp(value) => write::put_timestamp(out, value),
            Self::Uuid(bytes) => write::put_uuid(out, bytes),
            Self::Binary(bytes) => write::put_binary(out, bytes),
            Self::Str(text) => write::put_str(out, text),
            Self::Symbol(text) => write::put_symbol(out, text),
            Self::List(list) => write::put_list(out, |out| {
                out.extend_from_slice(list.items);
                list.count
            }),
            Self::Map(map) => write::put_map(out, |out| {
                out.extend_from_slice(map.items.items);
                map.items.count / 2
            }),
            Self::Array(array) => write::put_array(out, array.constructor, array.count, array.items),
            Self::Described(described) => {
                out.extend_from_slice(&[code::DESCRIBED]);
                out.extend_from_slice(described.descriptor);
                out.extend_from_slice(described.constructor);
                out.extend_from_slice(described.body);
            }
        }
    }
}

/// The items of a list.
#[derive(Debug, Clone, Copy, Default)]
pub struct List<'a> {
    count: usize,
    items: &'a [u8],
}

impl<'a> List<'a> {
    /// How many items it holds.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The items, in their order.
    pub fn iter(&self) -> ListIter<'a> {
        ListIter { left: self.count, items: self.items }
    }
}

impl PartialEq for List<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl<'a> IntoIterator for List<'a> {
    type Item = Value<'a>;
    type IntoIter = ListIter<'a>;

    fn into_iter(self) -> ListIter<'a> {
        self.iter()
    }
}

/// The items of a list, in their order.
#[derive(Debug, Clone, Default)]
pub struct ListIter<'a> {
    left: usize,
    items: &'a [u8],
}

impl<'a> ListIter<'a> {
    /// The encoded bytes of the next item.
    pub(crate) fn next_raw(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        let (item, rest) = self.items.split_at_checked(value_len(self.items)?)?;
        self.items = rest;
        Some(item)
    }
}

impl<'a> Iterator for ListIter<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        self.next_raw().and_then(Value::validated)
    }
}

/// The pairs of a map. Keys may be of any type and are not looked at for being twice there.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Map<'a> {
    items: List<'a>,
}

impl<'a> Map<'a> {
    /// How many pairs it holds.
    pub fn len(&self) -> usize {
        self.items.count / 2
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The pairs, in their order.
    pub fn iter(&self) -> MapIter<'a> {
        MapIter { items: self.items.iter() }
    }

    /// Keys and values in turn.
    pub(crate) fn items(&self) -> ListIter<'a> {
        self.items.iter()
    }

    /// The value of the first pair whose key is `key` as a string or a symbol.
    pub fn value(&self, key: &str) -> Option<Value<'a>> {
        self.iter().find(|(candidate, _)| candidate.as_str() == Some(key)).map(|(_, value)| value)
    }
}

impl<'a> IntoIterator for Map<'a> {
    type Item = (Value<'a>, Value<'a>);
    type IntoIter = MapIter<'a>;

    fn into_iter(self) -> MapIter<'a> {
        self.iter()
    }
}

/// The pairs of a map, in their order.
#[derive(Debug, Clone, Default)]
pub struct MapIter<'a> {
    items: ListIter<'a>,
}

impl<'a> Iterator for MapIter<'a> {
    type Item = (Value<'a>, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        Some((self.items.next()?, self.items.next()?))
    }
}

/// The elements of an array: of one type, whose constructor stands only once.
#[derive(Debug, Clone, Copy, Default)]
pub struct Array<'a> {
    constructor: &'a [u8],
    count: usize,
    items: &'a [u8],
}

impl<'a> Array<'a> {
    /// How many elements it holds.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether it holds elements of a primitive type that holds nothing else, or has no constructor at all.
    pub(crate) fn is_flat(&self) -> bool {
        match *self.constructor {
            [] => true,
            [code] => self.count > 0 && (0x50..0xc0).contains(&code),
            _ => false,
        }
    }

    /// The elements, in their order.
    pub fn iter(&self) -> ArrayIter<'a> {
        ArrayIter { constructor: self.constructor, left: self.count, items: self.items }
    }
}

impl PartialEq for Array<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl<'a> IntoIterator for Array<'a> {
    type Item = Value<'a>;
    type IntoIter = ArrayIter<'a>;

    fn into_iter(self) -> ArrayIter<'a> {
        self.iter()
    }
}

/// The elements of an array, in their order.
#[derive(Debug, Clone)]
pub struct ArrayIter<'a> {
    constructor: &'a [u8],
    left: usize,
    items: &'a [u8],
}

impl<'a> Iterator for ArrayIter<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        self.left = self.left.checked_sub(1)?;
        let (value, len) = Value::from_parts(self.constructor, self.items)?;
        self.items = self.items.get(len..)?;
        Some(value)
    }
}

/// A value with a descriptor that says what it means.
#[derive(Debug, Clone, Copy)]
pub struct Described<'a> {
    descriptor: &'a [u8],
    // Apart from each other, because in an array the constructor stands only once.
    constructor: &'a [u8],
    body: &'a [u8],
}

impl<'a> Described<'a> {
    /// The descriptor: a ulong or a symbol, by convention.
    pub fn descriptor(&self) -> Value<'a> {
        Value::validated(self.descriptor).unwrap_or(Value::Null)
    }

    /// What is described.
    pub fn value(&self) -> Value<'a> {
        Value::from_parts(self.constructor, self.body).map_or(Value::Null, |(value, _)| value)
    }
}

impl PartialEq for Described<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.descriptor() == other.descriptor() && self.value() == other.value()
    }
}

/// The length of a constructor: descriptors, if any, and the format code.
fn constructor_len(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    while *bytes.get(at)? == code::DESCRIBED {
        at += 1 + value_len(bytes.get(at + 1..)?)?;
    }
    Some(at + 1)
}

/// The count of a compound, and what stands behind it.
fn counted(code: u8, body: &[u8]) -> Option<(usize, &[u8])> {
    if (code >> 4).is_multiple_of(2) {
        return Some((usize::from(*body.get(1)?), &body[2..]));
    }
    let count = u32::from_be_bytes(array(body.get(4..8)?)?);
    Some((usize::try_from(count).ok()?, &body[8..]))
}

fn array<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    bytes.first_chunk().copied()
}
