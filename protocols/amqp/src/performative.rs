//! The performatives of AMQP 1.0 part 2, delivery states of part 3, as views over the bytes they came in.
//!
//! Two kinds. [`Transfer`], [`Flow`] and [`Disposition`] pass all the time: hand-written views, without an
//! allocation. The others are rare and travel as a [`Composite`] with named accessors, so that what is routed stays
//! byte for byte what it was. What we write ourselves is an `...Out`, with every field present: some clients index
//! fields blindly.

mod amqp_error;
mod attach;
mod composite;
mod control;
pub mod descriptor;
mod disposition;
mod fields;
mod flow;
mod schema;
mod state;
mod terminus;
#[cfg(test)]
mod tests;
mod transfer;
mod typed;

use bytes::Bytes;

pub use amqp_error::{AmqpError, Condition};
pub use attach::{Attach, AttachOut, RcvSettleMode, SndSettleMode};
pub use composite::{Composite, Patch};
pub use control::{Begin, BeginOut, Close, Detach, DetachOut, End, Open, OpenOut};
pub use disposition::{Disposition, DispositionOut};
pub(crate) use fields::Fields;
pub use flow::{Flow, FlowOut};
pub use state::{ACCEPTED, DeliveryState, RELEASED, modified, received, rejected};
pub use terminus::{SourceOut, TargetOut, Terminus};
pub use transfer::{Transfer, TransferOut};

use crate::codec::Reader;
use crate::error::{DecodeError, DecodeFault};

/// Which end of a link: the one that sends messages, or the one that receives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The end that sends.
    Sender,
    /// The end that receives.
    Receiver,
}

impl Role {
    /// The role of the other end.
    pub fn other(self) -> Self {
        match self {
            Self::Sender => Self::Receiver,
            Self::Receiver => Self::Sender,
        }
    }

    /// As it stands on the wire (AMQP 1.0 2.8.1).
    pub fn is_receiver(self) -> bool {
        self == Self::Receiver
    }

    pub(crate) fn from_wire(receiver: bool) -> Self {
        if receiver { Self::Receiver } else { Self::Sender }
    }
}

/// The descriptor of what stands in the body of a frame, without a look at its fields.
///
/// # Errors
/// Where the body does not start with a numeric or a symbolic descriptor.
#[inline]
pub fn code(body: &[u8]) -> Result<u64, DecodeError> {
    Reader::new(body).read_descriptor()
}

/// What stands in the body of an AMQP frame.
#[derive(Debug, Clone)]
#[allow(missing_docs, clippy::large_enum_variant)] // Named as in AMQP 1.0 2.7; passed by value once, then taken apart.
pub enum Performative {
    Open(Open),
    Begin(Begin),
    Attach(Attach),
    Flow(Flow),
    Transfer(Transfer),
    Disposition(Disposition),
    Detach(Detach),
    End(End),
    Close(Close),
}

impl Performative {
    /// The performative in the body of a frame. The payload of a transfer stays with it.
    ///
    /// # Errors
    /// Where the body is no performative, or one with a mandatory field absent or a field of a wrong type.
    pub fn decode(body: Bytes) -> Result<Self, DecodeError> {
        match code(&body)? {
            descriptor::TRANSFER => Transfer::decode(body).map(Self::Transfer),
            descriptor::DISPOSITION => Disposition::decode(body).map(Self::Disposition),
            descriptor::FLOW => Flow::decode(body).map(Self::Flow),
            descriptor::OPEN => Open::decode(body).map(Self::Open),
            descriptor::BEGIN => Begin::decode(body).map(Self::Begin),
            descriptor::ATTACH => Attach::decode(body).map(Self::Attach),
            descriptor::DETACH => Detach::decode(body).map(Self::Detach),
            descriptor::END => End::decode(body).map(Self::End),
            descriptor::CLOSE => Close::decode(body).map(Self::Close),
            _ => Err(DecodeFault::Descriptor.at(0)),
        }
    }

    /// Its name in the specification.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Open(_) => "open",
            Self::Begin(_) => "begin",
            Self::Attach(_) => "attach",
            Self::Flow(_) => "flow",
            Self::Transfer(_) => "transfer",
            Self::Disposition(_) => "disposition",
            Self::Detach(_) => "detach",
            Self::End(_) => "end",
            Self::Close(_) => "close",
        }
    }
}
