//! A cursor over encoded values, for decoders that know which type comes next.

use super::{Limits, Value, code, validate};
use crate::error::{DecodeError, DecodeFault};
use crate::performative::descriptor;

/// A cursor over encoded values.
///
/// Each `read_*` takes one value, and gives `None` for null: a field of a performative may always be null. Bytes
/// need not have been validated. After an error the cursor stands where it stood before.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// A cursor at the start of `bytes`.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// How many bytes lie behind the cursor.
    #[inline]
    pub fn position(&self) -> usize {
        self.at
    }

    /// Whether all bytes have been read.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.at >= self.bytes.len()
    }

    /// The bytes that have not been read.
    #[inline]
    pub fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    /// A boolean (AMQP 1.0 1.6.2).
    ///
    /// # Errors
    /// Where the next value is cut short or of another type.
    #[inline]
    pub fn read_bool(&mut self) -> Result<Option<bool>, DecodeError> {
        match self.rest() {
            [code::TRUE, ..] => self.take(1, true),
            [code::FALSE, ..] => self.take(1, false),
            [code::BOOLEAN, byte @ (0 | 1), ..] => self.take(2, *byte == 1),
            _ => self.null_or("boolean"),
        }
    }

    /// A ubyte.
    ///
    /// # Errors
    /// Where the next value is cut short or of another type.
    #[inline]
    pub fn read_u8(&mut self) -> Result<Option<u8>, DecodeError> {
        match *self.rest() {
            [code::UBYTE, byte, ..] => self.take(2, byte),
            _ => self.null_or("ubyte"),
        }
    }

    /// A ushort.
    ///
    /// # Errors
    /// Where the next value is cut short or of another type.
    #[inline]
    pub fn read_u16(&mut self) -> Result<Option<u16>, DecodeError> {
        match *self.rest() {
            [code::USHORT, a, b, ..] => self.take(3, u16::from_be_bytes([a, b])),
            _ => self.null_or("ushort"),
        }
    }

    /// A uint, in any of its three encodings.
    ///
    /// # Errors
    /// Where the next value is cut short or of another type.
    #[inline]
    pub fn read_u32(&mut self) -> Result<Option<u32>, DecodeError> {
        match *self.rest() {
            [code::UINT0, ..] => self.take(1, 0),
            [code::SMALL_UINT, byte, ..] => self.take(2, u32::from(byte)),
            [code::UINT, a, b, c, d, ..] => self.take(5, u32::from_be_bytes([a, b, c, d])),
            _ => self.null_or("uint"),
        }
    }

    /// A ulong, in any of its three encodings.
    ///
    /// # Errors
    /// Where the next value is cut short or of another type.
    pub fn read_u64(&mut self) -> Result<Option<u64>, DecodeError> {
        match *self.rest() {
            [code::ULONG0, ..] => self.take(1, 0),
            [code::SMALL_ULONG, byte, ..] => self.take(2, u64::from(byte)),
            [code::ULONG, a, b, c, d, e, f, g, h, ..] => {
                self.take(9, u64::from_be_bytes([a, b, c, d, e, f, g, h]))
            }
            _ => self.null_or("ulong"),
        }
    }

    /// A timestamp: milliseconds since 1970-01-01T00:00:00Z.
    ///
    /// # Errors
    /// Where the next value is cut short or of another type.
    pub fn read_timestamp(&mut self) -> Result<Option<i64>, DecodeError> {
        match *self.rest() {
            [code::TIMESTAMP, a, b, c, d, e, f, g, h, ..] => {
                self.take(9, i64::from_be_bytes([a, b, c, d, e, f, g, h]))
            }
            _ => self.null_or("timestamp"),
        }
    }

    /// A string.
    ///
    /// # Errors
    /// Where the next value is cut short, of another type, or not UTF-8.
    pub fn read_str(&mut self) -> Result<Option<&'a str>, DecodeError> {
        let Some((bytes, len)) = self.variable(code::STR8, code::STR32) else {
            return self.null_or("string");
        };
        match std::str::from_utf8(bytes) {
            Ok(text) => self.take(len, text),
            Err(_) => Err(DecodeFault::Utf8.at(self.at)),
        }
    }

    /// A symbol.
    ///
    /// # Errors
    /// Where the next value is cut short, of another type, or not ASCII.
    pub fn read_symbol(&mut self) -> Result<Option<&'a str>, DecodeError> {
        let Some((bytes, len)) = self.variable(code::SYM8, code::SYM32) else {
            return self.null_or("symbol");
        };
        match std::str::from_utf8(bytes) {
            Ok(text) if text.is_ascii() => self.take(len, text),
            _ => Err(DecodeFault::Ascii.at(self.at)),
        }
    }

    /// A binary.
    ///
    /// # Errors
    /// Where the next value is cut short or of another type.
    #[inline]
    pub fn read_binary(&mut self) -> Result<Option<&'a [u8]>, DecodeError> {
        match self.variable(code::BINARY8, code::BINARY32) {
            Some((bytes, len)) => self.take(len, bytes),
            None => self.null_or("binary"),
        }
    }

    /// Any value, validated, as its encoded bytes. Null gives `None`.
    ///
    /// # Errors
    /// As [`validate`].
    #[inline]
    pub fn read_raw(&mut self, limits: &Limits) -> Result<Option<&'a [u8]>, DecodeError> {
        let rest = self.rest();
        if rest.first() == Some(&code::NULL) {
            self.at += 1;
            return Ok(None);
        }
        let len = validate(rest, limits).map_err(|error| error.shifted(self.at))?;
        self.take(len, &rest[..len])
    }

    /// Any value, validated.
    ///
    /// # Errors
    /// As [`validate`].
    pub fn read_value(&mut self, limits: &Limits) -> Result<Value<'a>, DecodeError> {
        let (value, len) = Value::decode(self.rest(), limits).map_err(|error| error.shifted(self.at))?;
        self.at += len;
        Ok(value)
    }

    /// The head of a list: how many items it holds, and a cursor over just them. Null gives `None`. The items
    /// themselves have not been looked at.
    ///
    /// # Errors
    /// Where the next value is cut short or not a list.
    #[inline]
    pub fn read_list(&mut self) -> Result<Option<(usize, Reader<'a>)>, DecodeError> {
        let rest = self.rest();
        let (head, count, len) = match *rest {
            [code::LIST0, ..] => (1, 0, 1),
            [code::LIST8, size, count, ..] if size > 0 => (3, usize::from(count), 2 + usize::from(size)),
            [code::LIST32, a, b, c, d, e, f, g, h, ..] => {
                let size = u32::from_be_bytes([a, b, c, d]);
                let count = u32::from_be_bytes([e, f, g, h]);
                let (Ok(size), Ok(count)) = (usize::try_from(size), usize::try_from(count)) else {
                    return Err(DecodeFault::Truncated.at(self.at));
                };
                (9, count, size.saturating_add(5))
            }
            _ => return self.null_or("list"),
        };
        match rest.get(head..len) {
            Some(items) => self.take(len, (count, Reader::new(items))),
            None => Err(DecodeFault::Truncated.at(self.at)),
        }
    }

    /// The descriptor of a described value, leaving the cursor at the value itself. A symbolic descriptor that
    /// the specification defines gives its number; another gives [`descriptor::UNKNOWN`].
    ///
    /// # Errors
    /// Where the next value is cut short, not described, or described by something else than a ulong or a symbol.
    #[inline]
    pub fn read_descriptor(&mut self) -> Result<u64, DecodeError> {
        match *self.rest() {
            [code::DESCRIBED, code::SMALL_ULONG, byte, ..] => {
                self.at += 3;
                Ok(u64::from(byte))
            }
            [code::DESCRIBED, ..] => {
                let start = self.at;
                self.at += 1;
                let descriptor = match self.rest().first() {
                    Some(&(code::SYM8 | code::SYM32)) => {
                        self.read_symbol().map(|name| name.map(descriptor::of))
                    }
                    _ => self.read_u64(),
                };
                match descriptor {
                    Ok(Some(code)) => Ok(code),
                    Ok(None) => {
                        self.at = start;
                        Err(DecodeFault::Descriptor.at(start))
                    }
                    Err(error) => {
                        self.at = start;
                        Err(error)
                    }
                }
            }
            [] => Err(DecodeFault::Truncated.at(self.at)),
            _ => Err(DecodeFault::Descriptor.at(self.at)),
        }
    }

    #[inline]
    fn take<T>(&mut self, len: usize, value: T) -> Result<Option<T>, DecodeError> {
        self.at += len;
        Ok(Some(value))
    }

    /// Null, or why the next value is not of the type `expected`.
    #[inline]
    fn null_or<T>(&mut self, expected: &'static str) -> Result<Option<T>, DecodeError> {
        match self.rest().first() {
            Some(&code::NULL) => {
                self.at += 1;
                Ok(None)
            }
            found => Err(self.mismatch(found.is_some(), expected)),
        }
    }

    #[cold]
    fn mismatch(&self, found: bool, expected: &'static str) -> DecodeError {
        if found { DecodeFault::Type { expected }.at(self.at) } else { DecodeFault::Truncated.at(self.at) }
    }

    /// The content of a value of variable width and the length of all of it, if it is one of these two codes and whole.
    #[inline]
    fn variable(&self, short: u8, long: u8) -> Option<(&'a [u8], usize)> {
        let rest = self.rest();
        let (head, size) = match *rest {
            [code, size, ..] if code == short => (2, usize::from(size)),
            [code, a, b, c, d, ..] if code == long => {
                (5, usize::try_from(u32::from_be_bytes([a, b, c, d])).ok()?)
            }
            _ => return None,
        };
        let len = size.checked_add(head)?;
        rest.get(head..len).map(|content| (content, len))
    }
}
