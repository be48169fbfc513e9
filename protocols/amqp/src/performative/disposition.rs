//! `disposition` (AMQP 1.0 2.7.6): the view of one that came, and the fields of one that goes.

use std::fmt;

use bytes::{Bytes, BytesMut};

use super::fields::{Fields, Packed, Place, put_head};
use super::{Role, descriptor};
use crate::codec::{code, uint_len};
use crate::error::DecodeError;

/// A `disposition` as it came.
#[derive(Clone)]
pub struct Disposition {
    body: Bytes,
    state: Place,
    /// The role of the end that sent it: a receiver speaks of deliveries that it got.
    pub role: Role,
    /// The first delivery-id.
    pub first: u32,
    /// The last delivery-id; where it was absent, `first`.
    pub last: u32,
    /// Whether the sender of the disposition has settled these deliveries.
    pub settled: bool,
    /// Whether the answer may wait for others.
    pub batchable: bool,
}

impl Disposition {
    /// Decodes the body of a frame.
    ///
    /// # Errors
    /// Where it is not sound, is another performative, or a field is absent that must be there or is of a wrong type.
    #[inline]
    pub fn decode(body: Bytes) -> Result<Self, DecodeError> {
        let mut fields = Fields::open(&body, descriptor::DISPOSITION)?;
        let role = Role::from_wire(fields.mandatory_bool("role"));
        let first = fields.mandatory_u32("first");
        let last = fields.u32().unwrap_or(first);
        let settled = fields.bool().unwrap_or(false);
        let state = fields.raw();
        let batchable = fields.bool().unwrap_or(false);
        fields.close()?;
        Ok(Self { body, state, role, first, last, settled, batchable })
    }

    /// The delivery state, encoded.
    #[inline]
    pub fn state(&self) -> Option<&[u8]> {
        self.state.of(&self.body)
    }

    /// Its fields, to be written to another session with what is per side replaced. Fields of a later version are
    /// not among them.
    #[inline]
    pub fn fields(&self) -> DispositionOut<'_> {
        DispositionOut {
            role: self.role,
            first: self.first,
            last: self.last,
            settled: self.settled,
            state: self.state(),
            batchable: self.batchable,
        }
    }
}

impl fmt::Debug for Disposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Disposition").field(&self.fields()).finish()
    }
}

/// The fields of a `disposition` that goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DispositionOut<'a> {
    /// Our role: a receiver speaks of deliveries that it got.
    pub role: Role,
    /// The first delivery-id.
    pub first: u32,
    /// The last delivery-id.
    pub last: u32,
    /// Whether we have settled these deliveries.
    pub settled: bool,
    /// The delivery state, encoded.
    pub state: Option<&'a [u8]>,
    /// Whether the answer may wait for others.
    pub batchable: bool,
}

impl DispositionOut<'_> {
    /// Writes it, without a frame header. All fields are there; absent ones are null.
    #[inline]
    pub fn write(&self, out: &mut BytesMut) {
        // role, settled and batchable take a byte each.
        let content = 3 + uint_len(self.first) + uint_len(self.last) + self.state.map_or(1, <[u8]>::len);
        let mut packed = Packed::new();
        put_head(&mut packed, 0x15, content, 6);
        packed.bool(self.role.is_receiver());
        packed.u32(self.first);
        packed.u32(self.last);
        packed.bool(self.settled);
        match self.state {
            Some(state) => {
                packed.flush(out);
                out.extend_from_slice(state);
            }
            None => packed.put([code::NULL]),
        }
        packed.bool(self.batchable);
        packed.flush(out);
    }
}
