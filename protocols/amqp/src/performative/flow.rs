//! `flow` (AMQP 1.0 2.7.4): the view of one that came, and the fields of one that goes.

use std::fmt;

use bytes::{Bytes, BytesMut};

use super::descriptor;
use super::fields::{Fields, Packed, Place, opt_u32_len, put_head};
use crate::codec::{Value, code, uint_len};
use crate::error::{DecodeError, DecodeFault};

/// A `flow` as it came.
#[derive(Clone)]
pub struct Flow {
    body: Bytes,
    properties: Place,
    /// The transfer-id that the peer expects next; absent before it has seen our begin.
    pub next_incoming_id: Option<u32>,
    /// How many transfers the peer takes, from that id on.
    pub incoming_window: u32,
    /// The transfer-id that the peer's next transfer has.
    pub next_outgoing_id: u32,
    /// How many transfers the peer may send.
    pub outgoing_window: u32,
    /// The link, or none where the flow is only about the session.
    pub handle: Option<u32>,
    /// The delivery-count of the link, from which link-credit counts.
    pub delivery_count: Option<u32>,
    /// How many deliveries the receiver takes.
    pub link_credit: Option<u32>,
    /// How many deliveries the sender has ready.
    pub available: Option<u32>,
    /// Whether the sender is to use up its credit at once, by sending or by counting on.
    pub drain: bool,
    /// Whether the peer asks for our flow.
    pub echo: bool,
}

impl Flow {
    /// Decodes the body of a frame.
    ///
    /// # Errors
    /// Where it is not sound, is another performative, or a field is absent that must be there or is of a wrong type.
    #[inline]
    pub fn decode(body: Bytes) -> Result<Self, DecodeError> {
        let mut fields = Fields::open(&body, descriptor::FLOW)?;
        let next_incoming_id = fields.u32();
        let incoming_window = fields.mandatory_u32("incoming-window");
        let next_outgoing_id = fields.mandatory_u32("next-outgoing-id");
        let outgoing_window = fields.mandatory_u32("outgoing-window");
        let handle = fields.u32();
        let delivery_count = fields.u32();
        let link_credit = fields.u32();
        let available = fields.u32();
        let drain = fields.bool().unwrap_or(false);
        let echo = fields.bool().unwrap_or(false);
        let properties = fields.raw();
        fields.close()?;
        if let Some(raw) = properties.of(&body)
            && !matches!(Value::validated(raw), Some(Value::Map(_)))
        {
            return Err(DecodeFault::Field("properties").at(0));
        }
        Ok(Self {
            body,
            properties,
            next_incoming_id,
            incoming_window,
            next_outgoing_id,
            outgoing_window,
            handle,
            delivery_count,
            link_credit,
            available,
            drain,
            echo,
        })
    }

    /// The properties of the link's state: an encoded map.
    pub fn properties(&self) -> Option<&[u8]> {
        self.properties.of(&self.body)
    }

    /// Its fields, to be written to another session with what is per side replaced. Fields of a later version are
    /// not among them.
    #[inline]
    pub fn fields(&self) -> FlowOut<'_> {
        FlowOut {
            next_incoming_id: self.next_incoming_id,
            incoming_window: self.incoming_window,
            next_outgoing_id: self.next_outgoing_id,
            outgoing_window: self.outgoing_window,
            handle: self.handle,
            delivery_count: self.delivery_count,
            link_credit: self.link_credit,
            available: self.available,
            drain: self.drain,
            echo: self.echo,
            properties: self.properties(),
        }
    }
}

impl fmt::Debug for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Flow").field(&self.fields()).finish()
    }
}

/// The fields of a `flow` that goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FlowOut<'a> {
    /// The transfer-id that we expect next; absent before we have seen the peer's begin.
    pub next_incoming_id: Option<u32>,
    /// How many transfers we take, from that id on.
    pub incoming_window: u32,
    /// The transfer-id that our next transfer has.
    pub next_outgoing_id: u32,
    /// How many transfers we may send.
    pub outgoing_window: u32,
    /// The link, or none where the flow is only about the session.
    pub handle: Option<u32>,
    /// The delivery-count of the link, from which link-credit counts.
    pub delivery_count: Option<u32>,
    /// How many deliveries the receiver takes.
    pub link_credit: Option<u32>,
    /// How many deliveries the sender has ready.
    pub available: Option<u32>,
    /// Whether the sender is to use up its credit at once, by sending or by counting on.
    pub drain: bool,
    /// Whether we ask for the peer's flow.
    pub echo: bool,
    /// The properties of the link's state: an encoded map.
    pub properties: Option<&'a [u8]>,
}

impl FlowOut<'_> {
    /// Writes it, without a frame header. All fields are there; absent ones are null.
    #[inline]
    pub fn write(&self, out: &mut BytesMut) {
        // drain and echo take a byte each.
        let content = 2
            + opt_u32_len(self.next_incoming_id)
            + uint_len(self.incoming_window)
            + uint_len(self.next_outgoing_id)
            + uint_len(self.outgoing_window)
            + opt_u32_len(self.handle)
            + opt_u32_len(self.delivery_count)
            + opt_u32_len(self.link_credit)
            + opt_u32_len(self.available)
            + self.properties.map_or(1, <[u8]>::len);
        let mut packed = Packed::new();
        put_head(&mut packed, 0x13, content, 11);
        packed.opt_u32(self.next_incoming_id);
        packed.u32(self.incoming_window);
        packed.u32(self.next_outgoing_id);
        packed.u32(self.outgoing_window);
        packed.opt_u32(self.handle);
        packed.opt_u32(self.delivery_count);
        packed.opt_u32(self.link_credit);
        packed.opt_u32(self.available);
        packed.bool(self.drain);
        packed.bool(self.echo);
        match self.properties {
            Some(properties) => {
                packed.flush(out);
                out.extend_from_slice(properties);
            }
            None => {
                packed.put([code::NULL]);
                packed.flush(out);
            }
        }
    }
}
