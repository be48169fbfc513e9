//! A cursor over the fields of a list that is read once, front to back: the inside of the hot views.

use std::ops::Range;

use bytes::BytesMut;

use crate::codec::{Limits, Reader, code};
use crate::error::{DecodeError, DecodeFault};

/// The fields of a described list. A field behind the last one is absent, which is as null.
pub(super) struct Fields<'a> {
    reader: Reader<'a>,
    left: usize,
    /// Where the first field stands in the frame body.
    base: usize,
}

impl<'a> Fields<'a> {
    /// The fields of the list at the start of `body`, which must have the descriptor `code`; and where it ends.
    #[inline]
    pub(super) fn open(body: &'a [u8], code: u64) -> Result<(Self, usize), DecodeError> {
        let mut reader = Reader::new(body);
        if reader.read_descriptor()? != code {
            return Err(DecodeFault::Descriptor.at(0));
        }
        let at = reader.position();
        let (left, items) = reader.read_list()?.ok_or(DecodeFault::Type { expected: "list" }.at(at))?;
        let end = reader.position();
        if u32::try_from(end).is_err() {
            return Err(DecodeFault::TooMany.at(at));
        }
        Ok((Self { base: end - items.rest().len(), reader: items, left }, end))
    }

    /// A boolean.
    #[inline]
    pub(super) fn bool(&mut self) -> Result<Option<bool>, DecodeError> {
        self.next(Reader::read_bool)
    }

    /// A ubyte.
    #[inline]
    pub(super) fn u8(&mut self) -> Result<Option<u8>, DecodeError> {
        self.next(Reader::read_u8)
    }

    /// A uint.
    #[inline]
    pub(super) fn u32(&mut self) -> Result<Option<u32>, DecodeError> {
        self.next(Reader::read_u32)
    }

    /// A uint that must be there.
    #[inline]
    pub(super) fn mandatory_u32(&mut self, name: &'static str) -> Result<u32, DecodeError> {
        match self.u32()? {
            Some(value) => Ok(value),
            None => Err(self.missing(name)),
        }
    }

    /// The place of a binary's content in the frame body.
    #[inline]
    pub(super) fn binary(&mut self) -> Result<Place, DecodeError> {
        match self.next(Reader::read_binary)? {
            Some(content) => {
                let end = self.position();
                Ok(Place::new(end - content.len(), end))
            }
            None => Ok(Place::ABSENT),
        }
    }

    /// The place of a value of any type, validated, in the frame body.
    #[inline]
    pub(super) fn raw(&mut self) -> Result<Place, DecodeError> {
        match self.next(|reader| reader.read_raw(&Limits::WIRE))? {
            Some(value) => {
                let end = self.position();
                Ok(Place::new(end - value.len(), end))
            }
            None => Ok(Place::ABSENT),
        }
    }

    /// Checks what is left: fields of a later version, which are not read but must be sound.
    #[inline]
    pub(super) fn close(mut self) -> Result<(), DecodeError> {
        while self.left > 0 {
            self.raw()?;
        }
        if self.reader.is_empty() { Ok(()) } else { Err(DecodeFault::Surplus.at(self.position())) }
    }

    #[cold]
    pub(super) fn missing(&self, name: &'static str) -> DecodeError {
        DecodeFault::Missing(name).at(self.position())
    }

    #[inline]
    fn next<T>(
        &mut self,
        read: impl FnOnce(&mut Reader<'a>) -> Result<Option<T>, DecodeError>,
    ) -> Result<Option<T>, DecodeError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        read(&mut self.reader).map_err(|error| error.shifted(self.base))
    }

    #[inline]
    fn position(&self) -> usize {
        self.base + self.reader.position()
    }
}

/// Where a field stands in the frame body: two offsets, and none at all where it is absent or null.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    start: u32,
    end: u32,
}

impl Place {
    const ABSENT: Self = Self { start: u32::MAX, end: 0 };

    /// `Fields::open` has refused a body in which an offset does not fit.
    #[inline]
    #[allow(clippy::cast_possible_truncation)]
    fn new(start: usize, end: usize) -> Self {
        Self { start: start as u32, end: end as u32 }
    }

    #[inline]
    pub(super) fn of<'a>(&self, body: &'a [u8]) -> Option<&'a [u8]> {
        body.get(self.start as usize..self.end as usize)
    }

    pub(super) fn range(&self) -> Option<Range<usize>> {
        (self.start <= self.end).then_some(self.start as usize..self.end as usize)
    }
}

/// Fields of small fixed width on their way into a buffer: one copy for all of them.
pub(super) struct Packed {
    bytes: [u8; 64],
    len: usize,
}

impl Packed {
    #[inline]
    pub(super) fn new() -> Self {
        Self { bytes: [0; 64], len: 0 }
    }

    /// Adds bytes. A caller adds at most 12 fields of at most 5 bytes.
    #[inline]
    pub(super) fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        self.bytes[self.len..self.len + N].copy_from_slice(&bytes);
        self.len += N;
    }

    #[inline]
    pub(super) fn u32(&mut self, value: u32) {
        match value {
            0 => self.put([code::UINT0]),
            #[allow(clippy::cast_possible_truncation)] // By the pattern.
            1..=255 => self.put([code::SMALL_UINT, value as u8]),
            _ => {
                let [a, b, c, d] = value.to_be_bytes();
                self.put([code::UINT, a, b, c, d]);
            }
        }
    }

    #[inline]
    pub(super) fn opt_u32(&mut self, value: Option<u32>) {
        match value {
            Some(value) => self.u32(value),
            None => self.put([code::NULL]),
        }
    }

    #[inline]
    pub(super) fn bool(&mut self, value: bool) {
        self.put([if value { code::TRUE } else { code::FALSE }]);
    }

    /// Writes what has been added, and starts anew.
    #[inline]
    pub(super) fn flush(&mut self, out: &mut BytesMut) {
        out.extend_from_slice(&self.bytes[..self.len]);
        self.len = 0;
    }
}

/// How many bytes an optional uint takes.
#[inline]
pub(super) fn opt_u32_len(value: Option<u32>) -> usize {
    value.map_or(1, crate::codec::uint_len)
}

/// How many bytes descriptor and list head take before fields of `content` bytes, and adds them to `packed`.
#[inline]
pub(super) fn put_head(packed: &mut Packed, descriptor: u8, content: usize, count: u8) {
    packed.put([code::DESCRIBED, code::SMALL_ULONG, descriptor]);
    match u8::try_from(content + 1) {
        Ok(size) => packed.put([code::LIST8, size, count]),
        Err(_) => {
            // Fields other than a tag (at most 255 bytes here) and a state come from frames: far below 4 GiB.
            let size = u32::try_from(content + 4).unwrap_or(u32::MAX);
            let [a, b, c, d] = size.to_be_bytes();
            packed.put([code::LIST32, a, b, c, d, 0, 0, 0, count]);
        }
    }
}

/// How many bytes descriptor and list head take before fields of `content` bytes.
#[inline]
pub(super) fn head_len(content: usize) -> usize {
    if content < 255 { 6 } else { 12 }
}
