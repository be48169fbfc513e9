//! Delivery states and outcomes (AMQP 1.0 3.4).

use bytes::{Bytes, BytesMut};

use super::{AmqpError, Composite, Patch, descriptor};
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
    /// As [`validate`]. A state that is none of the specification's own is [`DeliveryState::Other`].
    pub fn decode(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        match bytes {
            ACCEPTED => return Ok(Self::Accepted),
            RELEASED => return Ok(Self::Released),
            _ => {}
        }
        let len = validate(bytes, &Limits::WIRE)?;
        let raw = &bytes[..len];
        let Ok((composite, _)) = Composite::parse(Bytes::copy_from_slice(raw), &Limits::WIRE) else {
            return Ok(Self::Other(raw));
        };
        Ok(match composite.code() {
            descriptor::RECEIVED => Self::Received {
                section_number: composite.u32(0).unwrap_or_default(),
                section_offset: composite.u64(1).unwrap_or_default(),
            },
            descriptor::ACCEPTED => Self::Accepted,
            descriptor::REJECTED => Self::Rejected(composite.raw_bytes(0).map(AmqpError::validated)),
            descriptor::RELEASED => Self::Released,
            descriptor::MODIFIED => Self::Modified {
                delivery_failed: composite.bool(0).unwrap_or(false),
                undeliverable_here: composite.bool(1).unwrap_or(false),
                annotations: composite.range(2).map(|range| &raw[range]),
            },
            _ => Self::Other(raw),
        })
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
