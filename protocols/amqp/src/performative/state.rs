//! Delivery states and outcomes (AMQP 1.0 3.4).

use bytes::{Bytes, BytesMut};

use super::fields::Fields;
use super::{AmqpError, Patch, descriptor};
use crate::codec::{Limits, put_composite, validate};
use crate::error::DecodeError;

/// The outcome `accepted`, encoded.
pub const ACCEPTED: &[u8] = &[0x00, 0x53, 0x24, 0x45];
/// The outcome `released`, encoded.
pub const RELEASED: &[u8] = &[0x00, 0x53, 0x26, 0x45];

/// What has become of a delivery.
#[derive(Debug, Clone, PartialEq)]
pub enum DeliveryState<'a> {
    /// So much of the message has come (3.4.1). Not an outcome.
    Received {
        /// The section that comes next.
        section_number: u32,
        /// The byte in it that comes next.
        section_offset: u64,
    },
    /// It was taken (3.4.2).
    Accepted,
    /// It is invalid (3.4.3).
    Rejected(Option<AmqpError>),
    /// It was not and will not be looked at (3.4.4).
    Released,
    /// It was not taken, and is to be changed before it goes elsewhere (3.4.5).
    Modified {
        /// Whether the attempt counts as a failed delivery.
        delivery_failed: bool,
        /// Whether it must not come to this link again.
        undeliverable_here: bool,
        /// Annotations to merge into the message: an encoded map.
        annotations: Option<&'a [u8]>,
    },
    /// A state of a transaction, or of a vendor, encoded.
    Other(&'a [u8]),
}

impl<'a> DeliveryState<'a> {
    /// The delivery state at the start of `bytes`.
    ///
    /// # Errors
    /// As [`validate`]; and where a field is of a wrong type. A state that is none of the specification's own is
    /// [`DeliveryState::Other`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        match bytes {
            ACCEPTED => return Ok(Self::Accepted),
            RELEASED => return Ok(Self::Released),
            _ => {}
        }
        let raw = &bytes[..validate(bytes, &Limits::WIRE)?];
        // What is not a described list with a ulong or a symbol as its descriptor is a vendor's own.
        let Ok(code) = super::code(raw) else {
            return Ok(Self::Other(raw));
        };
        let Ok(mut fields) = Fields::open(raw, code) else {
            return Ok(Self::Other(raw));
        };
        let state = match code {
            descriptor::RECEIVED => Self::Received {
                section_number: fields.mandatory_u32("section-number"),
                section_offset: fields.mandatory_u64("section-offset"),
            },
            descriptor::ACCEPTED => Self::Accepted,
            descriptor::REJECTED => {
                let error = fields.raw().of(raw).map(Bytes::copy_from_slice);
                Self::Rejected(error.map(AmqpError::validated))
            }
            descriptor::RELEASED => Self::Released,
            descriptor::MODIFIED => Self::Modified {
                delivery_failed: fields.bool().unwrap_or(false),
                undeliverable_here: fields.bool().unwrap_or(false),
                annotations: fields.raw().of(raw),
            },
            _ => return Ok(Self::Other(raw)),
        };
        fields.close()?;
        Ok(state)
    }

    /// Whether it is one of the four outcomes, after which nothing else comes.
    pub fn is_outcome(&self) -> bool {
        match self {
            Self::Accepted | Self::Rejected(_) | Self::Released | Self::Modified { .. } => true,
            Self::Received { .. } | Self::Other(_) => false,
        }
    }
}

/// The outcome `rejected`, encoded.
pub fn rejected(error: Option<&AmqpError>) -> Bytes {
    encoded(descriptor::REJECTED, |out| {
        Patch::from(error.map(AmqpError::encoded)).write(out);
        1
    })
}

/// The outcome `modified`, encoded. `annotations` is an encoded map.
pub fn modified(delivery_failed: bool, undeliverable_here: bool, annotations: Option<&[u8]>) -> Bytes {
    encoded(descriptor::MODIFIED, |out| {
        Patch::Bool(delivery_failed).write(out);
        Patch::Bool(undeliverable_here).write(out);
        Patch::from(annotations).write(out);
        3
    })
}

/// The state `received`, encoded.
pub fn received(section_number: u32, section_offset: u64) -> Bytes {
    encoded(descriptor::RECEIVED, |out| {
        Patch::U32(section_number).write(out);
        Patch::U64(section_offset).write(out);
        2
    })
}

fn encoded(code: u64, fields: impl FnOnce(&mut BytesMut) -> usize) -> Bytes {
    let mut out = BytesMut::new();
    put_composite(&mut out, code, fields);
    out.freeze()
}
