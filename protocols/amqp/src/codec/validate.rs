//! Whether bytes are a value: every length inside its parent, every constructor known, depth and counts bounded.
//!
//! Nothing is allocated and nothing is built, so a claimed length costs nothing. Recursion goes no deeper than
//! [`Limits::max_depth`].

use super::{Limits, code};
use crate::error::{DecodeError, DecodeFault};

/// The length of the one value at the start of `bytes`, all of it checked.
///
/// # Errors
/// Where the value ends before its length says, holds an unknown constructor, text that is not UTF-8 (or, in a
/// symbol, not ASCII), a map with a key alone, a compound that does not fill its length, or passes `limits`.
pub fn validate(bytes: &[u8], limits: &Limits) -> Result<usize, DecodeError> {
    // The most common values by far: null, and an outcome without fields.
    match bytes {
        [code::NULL, ..] => return Ok(1),
        [code::DESCRIBED, code::SMALL_ULONG, _, code::LIST0, ..] => return Ok(4),
        _ => {}
    }
    Validator { bytes, limits, items: 0 }.value(0, bytes.len(), 0)
}

/// The length of the one value at the start of `bytes`, without a look inside it; `None` where it is cut short.
///
/// For values that [`validate`] has passed already. A descriptor that is itself described more than a few times
/// has not passed it, and gives `None`.
pub(crate) fn value_len(bytes: &[u8]) -> Option<usize> {
    fn constructor_len(bytes: &[u8], depth: usize) -> Option<usize> {
        let mut at = 0;
        while *bytes.get(at)? == code::DESCRIBED {
            if depth == 0 {
                return None;
            }
            let descriptor = bytes.get(at + 1..)?;
            let constructor = constructor_len(descriptor, depth - 1)?;
            at += 1 + constructor + body_len(descriptor[constructor - 1], &descriptor[constructor..])?;
        }
        Some(at + 1)
    }
    let constructor = constructor_len(bytes, MAX_DEPTH)?;
    Some(constructor + body_len(bytes[constructor - 1], &bytes[constructor..])?)
}

/// A depth that no limit in use passes.
const MAX_DEPTH: usize = 64;

/// The length of what follows the constructor `code`, if all of it is there. The upper half of a format code
/// says how it is found (AMQP 1.0 1.2).
pub(super) fn body_len(code: u8, body: &[u8]) -> Option<usize> {
    let len = match code >> 4 {
        0x4 => 0,
        0x5 => 1,
        0x6 => 2,
        0x7 => 4,
        0x8 => 8,
        0x9 => 16,
        0xa | 0xc | 0xe => 1 + usize::from(*body.first()?),
        0xb | 0xd | 0xf => 4 + usize::try_from(be32(body)?).ok()?,
        _ => return None,
    };
    (len <= body.len()).then_some(len)
}

fn be32(bytes: &[u8]) -> Option<u32> {
    bytes.first_chunk().copied().map(u32::from_be_bytes)
}

struct Validator<'a> {
    bytes: &'a [u8],
    limits: &'a Limits,
    items: usize,
}

impl Validator<'_> {
    /// Checks the value that stands at `at` and must end by `end`; gives where it ends.
    fn value(&mut self, at: usize, end: usize, depth: usize) -> Result<usize, DecodeError> {
        self.count(1, at)?;
        let (code, at, depth) = self.constructor(at, end, depth)?;
        self.body(code, at, end, depth)
    }

    fn count(&mut self, items: usize, at: usize) -> Result<(), DecodeError> {
        self.items = self.items.saturating_add(items);
        if self.items > self.limits.max_items { Err(DecodeFault::TooMany.at(at)) } else { Ok(()) }
    }

    fn deeper(&self, depth: usize, at: usize) -> Result<usize, DecodeError> {
        if depth >= self.limits.max_depth.min(MAX_DEPTH) {
            Err(DecodeFault::TooDeep.at(at))
        } else {
            Ok(depth + 1)
        }
    }

    /// Descriptors, if any, then the format code. Gives the code, where its value starts and how deep that is.
    fn constructor(
        &mut self,
        mut at: usize,
        end: usize,
        mut depth: usize,
    ) -> Result<(u8, usize, usize), DecodeError> {
        loop {
            let code = self.byte(at, end)?;
            if code != code::DESCRIBED {
                return Ok((code, at + 1, depth));
            }
            depth = self.deeper(depth, at)?;
            at = self.value(at + 1, end, depth)?;
        }
    }

    /// Checks what follows the format code `code`; gives where it ends.
    fn body(&mut self, code: u8, at: usize, end: usize, depth: usize) -> Result<usize, DecodeError> {
        match code {
            code::NULL | code::TRUE | code::FALSE | code::UINT0 | code::ULONG0 | code::LIST0 => Ok(at),
            code::UBYTE..=code::SMALL_LONG => self.fixed(at, end, 1),
            code::BOOLEAN => match self.byte(at, end)? {
                0 | 1 => Ok(at + 1),
                _ => Err(DecodeFault::Value("boolean").at(at)),
            },
            code::USHORT | code::SHORT => self.fixed(at, end, 2),
            code::CHAR => {
                let next = self.fixed(at, end, 4)?;
                let char = be32(&self.bytes[at..next]).and_then(char::from_u32);
                char.map(|_| next).ok_or(DecodeFault::Value("char").at(at))
            }
            code::UINT | code::INT | code::FLOAT | code::DECIMAL32 => self.fixed(at, end, 4),
            code::ULONG..=code::DECIMAL64 => self.fixed(at, end, 8),
            code::DECIMAL128 | code::UUID => self.fixed(at, end, 16),
            code::BINARY8 | code::BINARY32 => self.sized(code, at, end).map(|(_, next)| next),
            code::STR8 | code::STR32 => {
                let (start, next) = self.sized(code, at, end)?;
                match std::str::from_utf8(&self.bytes[start..next]) {
                    Ok(_) => Ok(next),
                    Err(_) => Err(DecodeFault::Utf8.at(start)),
                }
            }
            code::SYM8 | code::SYM32 => {
                let (start, next) = self.sized(code, at, end)?;
                if self.bytes[start..next].is_ascii() { Ok(next) } else { Err(DecodeFault::Ascii.at(start)) }
            }
            code::LIST8 | code::LIST32 | code::MAP8 | code::MAP32 => self.compound(code, at, end, depth),
            code::ARRAY8 | code::ARRAY32 => self.array(code, at, end, depth),
            _ => Err(DecodeFault::Constructor(code).at(at - 1)),
        }
    }

    fn compound(&mut self, code: u8, at: usize, end: usize, depth: usize) -> Result<usize, DecodeError> {
        let depth = self.deeper(depth, at)?;
        let (start, next) = self.sized(code, at, end)?;
        let (count, mut item) = self.size(code, start, next)?;
        if matches!(code, code::MAP8 | code::MAP32) && count % 2 != 0 {
            return Err(DecodeFault::OddMap.at(start));
        }
        for _ in 0..count {
            item = self.value(item, next, depth)?;
        }
        if item == next { Ok(next) } else { Err(DecodeFault::Surplus.at(item)) }
    }

    fn array(&mut self, code: u8, at: usize, end: usize, depth: usize) -> Result<usize, DecodeError> {
        let depth = self.deeper(depth, at)?;
        let (start, next) = self.sized(code, at, end)?;
        let (count, item) = self.size(code, start, next)?;
        // Some encoders leave out the constructor of an empty array.
        if count == 0 && item == next {
            return Ok(next);
        }
        let (element, mut item, depth) = self.constructor(item, next, depth)?;
        match element {
            // Elements without bytes: only the count bounds them.
            code::NULL..=code::LIST0 => self.count(count, start)?,
            // A number has no wrong value: all of them are there or not.
            code::UBYTE..=code::SMALL_LONG
            | code::USHORT
            | code::SHORT
            | code::UINT..=code::FLOAT
            | code::DECIMAL32
            | code::ULONG..=code::DECIMAL64
            | code::DECIMAL128
            | code::UUID => {
                let width = body_len(element, &[0; 16]).unwrap_or(0);
                item = self.fixed(item, next, count.saturating_mul(width))?;
            }
            _ => {
                self.count(count, start)?;
                for _ in 0..count {
                    item = self.body(element, item, next, depth)?;
                }
            }
        }
        if item == next { Ok(next) } else { Err(DecodeFault::Surplus.at(item)) }
    }

    fn byte(&self, at: usize, end: usize) -> Result<u8, DecodeError> {
        if at < end { Ok(self.bytes[at]) } else { Err(DecodeFault::Truncated.at(at)) }
    }

    fn fixed(&self, at: usize, end: usize, width: usize) -> Result<usize, DecodeError> {
        if width <= end - at { Ok(at + width) } else { Err(DecodeFault::Truncated.at(at)) }
    }

    /// A size or a count, one or four bytes wide as `code` says; and where what it counts starts.
    fn size(&self, code: u8, at: usize, end: usize) -> Result<(usize, usize), DecodeError> {
        // The classes of even number (0xa, 0xc, 0xe) have a size of one byte.
        if (code >> 4).is_multiple_of(2) {
            return Ok((usize::from(self.byte(at, end)?), at + 1));
        }
        let next = self.fixed(at, end, 4)?;
        let size = be32(&self.bytes[at..next]).and_then(|size| usize::try_from(size).ok());
        Ok((size.ok_or(DecodeFault::Truncated.at(at))?, next))
    }

    /// Where the bytes of a value with a size start and end.
    fn sized(&self, code: u8, at: usize, end: usize) -> Result<(usize, usize), DecodeError> {
        let (size, start) = self.size(code, at, end)?;
        Ok((start, self.fixed(start, end, size)?))
    }
}
