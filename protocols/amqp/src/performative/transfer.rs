//! `transfer` (AMQP 1.0 2.7.5): the view of one that came, and the fields of one that goes.

use std::fmt;

use bytes::{Bytes, BytesMut};

use super::descriptor;
use super::fields::{Fields, Packed, Place, head_len, opt_u32_len, put_head};
use crate::codec::{bytes_len, code, put_binary, uint_len};
use crate::error::DecodeError;

/// A `transfer` as it came. Decoding it allocates nothing; the tag, the state and the payload stay where they are.
#[derive(Clone)]
pub struct Transfer {
    body: Bytes,
    tag: Place,
    state: Place,
    payload: u32,
    /// The link.
    pub handle: u32,
    /// The delivery; may be absent on the later transfers of one delivery.
    pub delivery_id: Option<u32>,
    /// The format of the message; may be absent on the later transfers of one delivery.
    pub message_format: Option<u32>,
    /// Whether the sender has settled; absent means no, or as an earlier transfer of the delivery said.
    pub settled: Option<bool>,
    /// Whether more transfers of this delivery follow.
    pub more: bool,
    /// How the receiver is to settle this delivery, if not as the link says.
    pub rcv_settle_mode: Option<u8>,
    /// Whether this resumes a delivery.
    pub resume: bool,
    /// Whether the delivery is given up.
    pub aborted: bool,
    /// Whether the outcome may wait for others.
    pub batchable: bool,
}

impl Transfer {
    /// Decodes the body of a frame.
    ///
    /// # Errors
    /// Where it is not sound, is another performative, or a field is absent that must be there or is of a wrong type.
    #[inline]
    pub fn decode(body: Bytes) -> Result<Self, DecodeError> {
        let mut fields = Fields::open(&body, descriptor::TRANSFER)?;
        let handle = fields.mandatory_u32("handle");
        let delivery_id = fields.u32();
        let tag = fields.binary();
        let message_format = fields.u32();
        let settled = fields.bool();
        let more = fields.bool().unwrap_or(false);
        let rcv_settle_mode = fields.u8();
        let state = fields.raw();
        let resume = fields.bool().unwrap_or(false);
        let aborted = fields.bool().unwrap_or(false);
        let batchable = fields.bool().unwrap_or(false);
        let payload = fields.close()?;
        Ok(Self {
            body,
            tag,
            state,
            payload,
            handle,
            delivery_id,
            message_format,
            settled,
            more,
            rcv_settle_mode,
            resume,
            aborted,
            batchable,
        })
    }

    /// The delivery-tag; may be absent on the later transfers of one delivery.
    #[inline]
    pub fn delivery_tag(&self) -> Option<&[u8]> {
        self.tag.of(&self.body)
    }

    /// The delivery-tag, without a copy.
    pub fn delivery_tag_bytes(&self) -> Option<Bytes> {
        self.tag.range().map(|range| self.body.slice(range))
    }

    /// The delivery state, encoded.
    #[inline]
    pub fn state(&self) -> Option<&[u8]> {
        self.state.of(&self.body)
    }

    /// The payload, without a copy: a piece of the message.
    pub fn payload(&self) -> Bytes {
        self.body.slice(self.payload as usize..)
    }

    /// The payload as a slice.
    #[inline]
    pub fn payload_slice(&self) -> &[u8] {
        &self.body[self.payload as usize..]
    }

    /// Its fields, to be written to another link with what is per side replaced. Fields of a later version are
    /// not among them.
    #[inline]
    pub fn fields(&self) -> TransferOut<'_> {
        TransferOut {
            handle: self.handle,
            delivery_id: self.delivery_id,
            delivery_tag: self.delivery_tag(),
            message_format: self.message_format,
            settled: self.settled,
            more: self.more,
            rcv_settle_mode: self.rcv_settle_mode,
            state: self.state(),
            resume: self.resume,
            aborted: self.aborted,
            batchable: self.batchable,
        }
    }
}

impl fmt::Debug for Transfer {
    /// Without the payload, which has no place in a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Transfer").field(&self.fields()).field(&self.payload_slice().len()).finish()
    }
}

/// The fields of a `transfer` that goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TransferOut<'a> {
    /// The link.
    pub handle: u32,
    /// The delivery.
    pub delivery_id: Option<u32>,
    /// The delivery-tag, at most 32 bytes (AMQP 1.0 2.8.7).
    pub delivery_tag: Option<&'a [u8]>,
    /// The format of the message.
    pub message_format: Option<u32>,
    /// Whether we have settled.
    pub settled: Option<bool>,
    /// Whether more transfers of this delivery follow.
    pub more: bool,
    /// How the receiver is to settle this delivery, if not as the link says.
    pub rcv_settle_mode: Option<u8>,
    /// The delivery state, encoded.
    pub state: Option<&'a [u8]>,
    /// Whether this resumes a delivery.
    pub resume: bool,
    /// Whether the delivery is given up.
    pub aborted: bool,
    /// Whether the outcome may wait for others.
    pub batchable: bool,
}

impl TransferOut<'_> {
    /// How many bytes [`write`](Self::write) writes: what a frame has no room for payload with.
    #[inline]
    pub fn encoded_len(&self) -> usize {
        let content = self.content_len();
        head_len(content) + content
    }

    /// Writes it, without a frame header and without payload. All fields are there; absent ones are null.
    #[inline]
    pub fn write(&self, out: &mut BytesMut) {
        let content = self.content_len();
        out.reserve(12 + content);
        let mut packed = Packed::new();
        put_head(&mut packed, 0x14, content, 11);
        packed.u32(self.handle);
        packed.opt_u32(self.delivery_id);
        match self.delivery_tag {
            Some(tag) => {
                packed.flush(out);
                put_binary(out, tag);
            }
            None => packed.put([code::NULL]),
        }
        packed.opt_u32(self.message_format);
        match self.settled {
            Some(settled) => packed.bool(settled),
            None => packed.put([code::NULL]),
        }
        packed.bool(self.more);
        match self.rcv_settle_mode {
            Some(mode) => packed.put([code::UBYTE, mode]),
            None => packed.put([code::NULL]),
        }
        match self.state {
            Some(state) => {
                packed.flush(out);
                out.extend_from_slice(state);
            }
            None => packed.put([code::NULL]),
        }
        packed.bool(self.resume);
        packed.bool(self.aborted);
        packed.bool(self.batchable);
        packed.flush(out);
    }

    #[inline]
    fn content_len(&self) -> usize {
        // settled, more, resume, aborted and batchable take a byte each.
        5 + uint_len(self.handle)
            + opt_u32_len(self.delivery_id)
            + self.delivery_tag.map_or(1, |tag| bytes_len(tag.len()))
            + opt_u32_len(self.message_format)
            + self.rcv_settle_mode.map_or(1, |_| 2)
            + self.state.map_or(1, <[u8]>::len)
    }
}
