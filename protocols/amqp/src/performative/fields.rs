//! A cursor over the fields of a list that is read once, front to back: the inside of the hot views.
//!
//! It does what [`Reader`] does, in a third of the time: a failure is kept aside until [`Fields::close`], so that
//! what each field returns fits into registers.

use bytes::BytesMut;

use crate::codec::{Limits, Reader, code, validate};
use crate::error::{DecodeError, DecodeFault};

/// The fields of a described list. A field behind the last one is absent, which is as null; so are all fields behind
/// one that could not be read.
pub(crate) struct Fields<'a> {
    /// What has not been read of the list.
    rest: &'a [u8],
    /// How many fields have not been read.
    left: usize,
    /// Where the list ends in the frame body.
    end: usize,
    /// The first failure.
    error: Option<DecodeError>,
}

impl<'a> Fields<'a> {
    /// The fields of the list at the start of `body`, which must have the descriptor `code`.
    #[inline]
    pub(crate) fn open(body: &'a [u8], code: u64) -> Result<Self, DecodeError> {
        if let [code::DESCRIBED, code::SMALL_ULONG, descriptor, code::LIST8, size, count, ..] = *body
            && u64::from(descriptor) == code
            && let Some(rest) = body.get(6..5 + usize::from(size))
        {
            return Ok(Self { rest, left: usize::from(count), end: 6 + rest.len(), error: None });
        }
        Self::open_any(body, code)
    }

    #[cold]
    fn open_any(body: &'a [u8], code: u64) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(body);
        if reader.read_descriptor()? != code {
            return Err(DecodeFault::Descriptor.at(0));
        }
        let at = reader.position();
        let (left, items) = reader.read_list()?.ok_or(DecodeFault::Type { expected: "list" }.at(at))?;
        let end = reader.position();
        // Places are kept in 32 bits.
        if u32::try_from(end).is_err() {
            return Err(DecodeFault::TooMany.at(at));
        }
        Ok(Self { rest: items.rest(), left, end, error: None })
    }

    /// A boolean.
    #[inline(always)]
    pub(crate) fn bool(&mut self) -> Option<bool> {
        let rest = self.field()?;
        match *rest {
            [code::FALSE, ref rest @ ..] | [code::BOOLEAN, 0, ref rest @ ..] => self.take(rest, Some(false)),
            [code::TRUE, ref rest @ ..] | [code::BOOLEAN, 1, ref rest @ ..] => self.take(rest, Some(true)),
            [code::NULL, ref rest @ ..] => self.take(rest, None),
            _ => self.mismatch("boolean"),
        }
    }

    /// A ubyte.
    #[inline(always)]
    pub(crate) fn u8(&mut self) -> Option<u8> {
        let rest = self.field()?;
        match *rest {
            [code::NULL, ref rest @ ..] => self.take(rest, None),
            [code::UBYTE, byte, ref rest @ ..] => self.take(rest, Some(byte)),
            _ => self.mismatch("ubyte"),
        }
    }

    /// A uint.
    #[inline(always)]
    pub(crate) fn u32(&mut self) -> Option<u32> {
        let rest = self.field()?;
        match *rest {
            [code::SMALL_UINT, byte, ref rest @ ..] => self.take(rest, Some(u32::from(byte))),
            [code::UINT0, ref rest @ ..] => self.take(rest, Some(0)),
            [code::UINT, a, b, c, d, ref rest @ ..] => {
                self.take(rest, Some(u32::from_be_bytes([a, b, c, d])))
            }
            [code::NULL, ref rest @ ..] => self.take(rest, None),
            _ => self.mismatch("uint"),
        }
    }

    /// A uint that must be there.
    #[inline(always)]
    pub(crate) fn mandatory_u32(&mut self, name: &'static str) -> u32 {
        self.u32().unwrap_or_else(|| self.missing(name))
    }

    /// A ulong that must be there.
    pub(crate) fn mandatory_u64(&mut self, name: &'static str) -> u64 {
        let Some(rest) = self.field() else {
            return self.missing(name);
        };
        let mut reader = Reader::new(rest);
        match reader.read_u64() {
            Ok(Some(value)) => self.take(reader.rest(), value),
            Ok(None) => self.missing(name),
            Err(_) => self.mismatch("ulong").unwrap_or_default(),
        }
    }

    /// A boolean that must be there.
    #[inline(always)]
    pub(crate) fn mandatory_bool(&mut self, name: &'static str) -> bool {
        self.bool().unwrap_or_else(|| self.missing(name))
    }

    /// The place of a binary's content in the frame body.
    #[inline(always)]
    pub(crate) fn binary(&mut self) -> Place {
        let Some(rest) = self.field() else {
            return Place::ABSENT;
        };
        match *rest {
            [code::NULL, ref rest @ ..] => self.take(rest, Place::ABSENT),
            [code::BINARY8, len, ref content @ ..] if content.len() >= usize::from(len) => {
                let start = self.end - content.len();
                let (_, rest) = content.split_at(usize::from(len));
                self.take(rest, Place::new(start, start + usize::from(len)))
            }
            _ => self.long_binary(rest),
        }
    }

    #[cold]
    fn long_binary(&mut self, rest: &'a [u8]) -> Place {
        let mut reader = Reader::new(rest);
        match reader.read_binary() {
            Ok(Some(content)) => {
                let end = self.end - reader.rest().len();
                self.take(reader.rest(), Place::new(end - content.len(), end))
            }
            _ => self.mismatch("binary").unwrap_or(Place::ABSENT),
        }
    }

    /// The place of a value of any type, validated, in the frame body.
    #[inline(always)]
    pub(crate) fn raw(&mut self) -> Place {
        let Some(rest) = self.field() else {
            return Place::ABSENT;
        };
        match *rest {
            [code::NULL, ref rest @ ..] => self.take(rest, Place::ABSENT),
            // An outcome without fields.
            [code::DESCRIBED, code::SMALL_ULONG, _, code::LIST0, ref rest @ ..] => {
                let end = self.end - rest.len();
                self.take(rest, Place::new(end - 4, end))
            }
            _ => self.long_raw(rest),
        }
    }

    #[cold]
    fn long_raw(&mut self, rest: &'a [u8]) -> Place {
        let start = self.position();
        match validate(rest, &Limits::WIRE) {
            Ok(len) => self.take(&rest[len..], Place::new(start, start + len)),
            Err(error) => {
                self.fail(error.shifted(start));
                Place::ABSENT
            }
        }
    }

    /// Checks what is left: fields of a later version, which are not read but must be sound. Gives where the list
    /// ends in the frame body.
    ///
    /// # Errors
    /// Why a field could not be read: the first such.
    #[inline(always)]
    pub(crate) fn close(mut self) -> Result<u32, DecodeError> {
        while self.left > 0 {
            self.raw();
        }
        if self.error.is_none() && self.rest.is_empty() {
            return Ok(place(self.end));
        }
        Err(self.error.unwrap_or(DecodeFault::Surplus.at(self.position())))
    }

    /// What stands at the next field, if there is one.
    #[inline(always)]
    fn field(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        Some(self.rest)
    }

    #[inline(always)]
    fn take<T>(&mut self, rest: &'a [u8], value: T) -> T {
        self.rest = rest;
        value
    }

    #[cold]
    fn missing<T: Default>(&mut self, name: &'static str) -> T {
        self.fail(DecodeFault::Missing(name).at(self.position()));
        T::default()
    }

    #[cold]
    fn mismatch<T>(&mut self, expected: &'static str) -> Option<T> {
        let cut = validate(self.rest, &Limits::WIRE).is_err();
        let fault = if cut { DecodeFault::Truncated } else { DecodeFault::Type { expected } };
        self.fail(fault.at(self.position()));
        None
    }

    #[cold]
    fn fail(&mut self, error: DecodeError) {
        self.error.get_or_insert(error);
        self.left = 0;
    }

    /// Where the cursor stands in the frame body.
    #[inline(always)]
    fn position(&self) -> usize {
        self.end - self.rest.len()
    }
}

/// Where a field stands in the frame body: two offsets, and none at all where it is absent or null.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    start: u32,
    end: u32,
}

impl Place {
    const ABSENT: Self = Self { start: u32::MAX, end: 0 };

    #[inline(always)]
    fn new(start: usize, end: usize) -> Self {
        Self { start: place(start), end: place(end) }
    }

    #[inline]
    pub(crate) fn of<'a>(&self, body: &'a [u8]) -> Option<&'a [u8]> {
        body.get(self.start as usize..self.end as usize)
    }

    pub(super) fn range(&self) -> Option<std::ops::Range<usize>> {
        (self.start <= self.end).then_some(self.start as usize..self.end as usize)
    }
}

/// An offset as it is kept. `Fields::open` has refused a body in which one does not fit.
#[inline(always)]
#[allow(clippy::cast_possible_truncation)]
fn place(at: usize) -> u32 {
    at as u32
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
