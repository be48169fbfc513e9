//! The `error` composite (AMQP 1.0 2.8.14) and the conditions that the specification names (2.8.15 to 2.8.18).

use std::fmt;

use bytes::Bytes;

use super::{Composite, Patch, descriptor};
use crate::codec::{Limits, Map};
use crate::error::DecodeError;

macro_rules! conditions {
    ($($(#[$doc:meta])* $name:ident = $symbol:literal,)*) => {
        /// Why a link, a session or a connection ends.
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        pub enum Condition {
            $($(#[$doc])* $name,)*
            /// A condition that the specification does not name.
            Other(String),
        }

        impl Condition {
            /// Its symbol.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$name => $symbol,)*
                    Self::Other(symbol) => symbol,
                }
            }
        }

        impl From<&str> for Condition {
            fn from(symbol: &str) -> Self {
                match symbol {
                    $($symbol => Self::$name,)*
                    other => Self::Other(other.to_owned()),
                }
            }
        }
    };
}

conditions! {
    /// An internal error; the operator has to look.
    InternalError = "amqp:internal-error",
    /// The peer works with something that does not exist.
    NotFound = "amqp:not-found",
    /// The peer works with something that it may not.
    UnauthorizedAccess = "amqp:unauthorized-access",
    /// Data could not be decoded.
    DecodeError = "amqp:decode-error",
    /// The peer is over its allocation of a resource.
    ResourceLimitExceeded = "amqp:resource-limit-exceeded",
    /// The peer uses a frame in a way that is not allowed.
    NotAllowed = "amqp:not-allowed",
    /// A field of a performative has a wrong value.
    InvalidField = "amqp:invalid-field",
    /// The peer uses something that is not implemented.
    NotImplemented = "amqp:not-implemented",
    /// Somebody else works with the same resource.
    ResourceLocked = "amqp:resource-locked",
    /// A precondition of the request does not hold.
    PreconditionFailed = "amqp:precondition-failed",
    /// A resource that the peer works with has been deleted.
    ResourceDeleted = "amqp:resource-deleted",
    /// The peer sent a frame that the state does not permit.
    IllegalState = "amqp:illegal-state",
    /// A frame that is as large as the peer allows cannot hold the performative.
    FrameSizeTooSmall = "amqp:frame-size-too-small",
    /// An operator intervened to close the connection.
    ConnectionForced = "amqp:connection:forced",
    /// The bytes that came are no frame.
    FramingError = "amqp:connection:framing-error",
    /// The container is to be found elsewhere.
    ConnectionRedirect = "amqp:connection:redirect",
    /// The peer passed the session's incoming-window.
    WindowViolation = "amqp:session:window-violation",
    /// Input for a link that was detached with an error.
    ErrantLink = "amqp:session:errant-link",
    /// An attach with a handle that is in use.
    HandleInUse = "amqp:session:handle-in-use",
    /// A frame with a handle that nothing is attached to.
    UnattachedHandle = "amqp:session:unattached-handle",
    /// An operator intervened to detach the link.
    DetachForced = "amqp:link:detach-forced",
    /// The peer passed the link-credit.
    TransferLimitExceeded = "amqp:link:transfer-limit-exceeded",
    /// The peer sent a message larger than max-message-size.
    MessageSizeExceeded = "amqp:link:message-size-exceeded",
    /// The address is to be found elsewhere.
    LinkRedirect = "amqp:link:redirect",
    /// The link has been attached somewhere else.
    Stolen = "amqp:link:stolen",
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An `error` composite, as it came or as we made it. It is passed on as it is.
#[derive(Clone, PartialEq)]
pub struct AmqpError(Composite);

impl AmqpError {
    /// An error of our own. A description longer than 1024 bytes is cut, so that it fits into any frame.
    pub fn new(condition: &Condition, description: Option<&str>) -> Self {
        let description = description.map(|text| &text[..text.floor_char_boundary(1024)]);
        Self(Composite::build(descriptor::ERROR, |out| {
            Patch::Symbol(condition.as_str()).write(out);
            description.map_or(Patch::Null, Patch::Str).write(out);
            Patch::Null.write(out);
            3
        }))
    }

    /// The error with `info`, one encoded map, beside its description.
    ///
    /// # Errors
    /// Where `info` is no value.
    pub fn with_info(&self, info: &[u8]) -> Result<Self, DecodeError> {
        self.0.patched(&[(2, Patch::Raw(info))]).map(Self)
    }

    /// The error at the start of `bytes`.
    ///
    /// # Errors
    /// As [`crate::codec::validate`]. A value that is no `error` is taken nevertheless, so that what a peer says at
    /// its end is not lost; it has no fields.
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let len = crate::codec::validate(&bytes, &Limits::WIRE)?;
        Ok(Self::validated(bytes.slice(..len)))
    }

    /// The error that is `bytes`, one valid value.
    pub(crate) fn validated(bytes: Bytes) -> Self {
        match Composite::validated(bytes.clone()) {
            Ok(composite) if composite.code() == descriptor::ERROR => Self(composite),
            _ => Self(Composite::opaque(bytes)),
        }
    }

    /// The condition's symbol. An error without one, which the specification forbids, reads as
    /// `amqp:internal-error`.
    pub fn condition(&self) -> &str {
        // Some peers send a string.
        self.0.symbol(0).or_else(|| self.0.str(0)).unwrap_or("amqp:internal-error")
    }

    /// The description for people.
    pub fn description(&self) -> Option<&str> {
        self.0.str(1)
    }

    /// What else is known of the error.
    pub fn info(&self) -> Option<Map<'_>> {
        self.0.map(2)
    }

    /// All of it, encoded, descriptor included.
    pub fn encoded(&self) -> &[u8] {
        self.0.encoded()
    }
}

impl fmt::Debug for AmqpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AmqpError({self})")
    }
}

impl fmt::Display for AmqpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.description() {
            Some(description) => write!(f, "{}: {description}", self.condition()),
            None => f.write_str(self.condition()),
        }
    }
}
