//! What can go wrong, by whose fault: [`DecodeError`] (the bytes), [`Violation`] (the peer broke a rule),
//! [`Misuse`] (we did). A violation knows the condition that the peer is told.

pub use crate::performative::{AmqpError, Condition};

/// Bytes that are not what they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{fault}, at byte {offset}")]
pub struct DecodeError {
    /// What is wrong.
    pub fault: DecodeFault,
    /// Where, counted in bytes from the start of what was decoded.
    pub offset: usize,
}

impl DecodeError {
    /// The same error, told from `bytes` further back.
    pub(crate) fn shifted(self, bytes: usize) -> Self {
        Self { offset: self.offset + bytes, ..self }
    }
}

/// What is wrong with bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeFault {
    /// They end before a length in them says.
    #[error("the bytes end inside a value")]
    Truncated,
    /// No such format code.
    #[error("no type has the format code {0:#04x}")]
    Constructor(u8),
    /// A value of this type cannot have these bytes.
    #[error("the bytes are no {0}")]
    Value(&'static str),
    /// A string that is not UTF-8.
    #[error("the string is not UTF-8")]
    Utf8,
    /// A symbol that is not ASCII.
    #[error("the symbol is not ASCII")]
    Ascii,
    /// A map with a key that has no value.
    #[error("the map has a key without a value")]
    OddMap,
    /// Bytes left inside a compound after its last item.
    #[error("bytes are left after the last item")]
    Surplus,
    /// Deeper nested than the limit.
    #[error("the value is nested too deep")]
    TooDeep,
    /// More items than the limit.
    #[error("the value holds too many items")]
    TooMany,
    /// Another type than this must stand here.
    #[error("the value is not a {expected}")]
    Type {
        /// The type that was expected.
        expected: &'static str,
    },
    /// No descriptor, or one that does not belong here.
    #[error("the descriptor does not belong here")]
    Descriptor,
    /// A mandatory field that is absent or null.
    #[error("the mandatory field {0} is absent")]
    Missing(&'static str),
    /// A field that is not of its type.
    #[error("the field {0} is not of its type")]
    Field(&'static str),
    /// A message section out of its order, or twice there.
    #[error("the message section {0:#04x} stands in the wrong place")]
    SectionOrder(u64),
    /// `serde_amqp` did not take a value that is sound by itself.
    #[error("the value does not fit the type that it was read as")]
    Typed,
}

impl DecodeFault {
    /// The fault, at `offset`.
    pub(crate) fn at(self, offset: usize) -> DecodeError {
        DecodeError { fault: self, offset }
    }
}

/// A rule of AMQP 1.0 that the peer broke. [`Condition::from`] gives what it is told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A frame body that cannot be decoded.
    #[error("undecodable frame: {0}")]
    Decode(#[from] DecodeError),
    /// A frame whose size is less than that of its header (AMQP 1.0 2.3.1).
    #[error("a frame says that it has {0} bytes, fewer than its header")]
    FrameTooSmall(u32),
    /// A frame larger than the max-frame-size that we announced, or than 512 bytes before open.
    #[error("a frame has {size} bytes; {max} are allowed")]
    FrameTooLarge {
        /// What the frame says.
        size: u32,
        /// What is allowed.
        max: u32,
    },
    /// A data offset that points into the frame header or behind the frame.
    #[error("a frame has the data offset {0}")]
    DataOffset(u8),
    /// A frame type that does not belong here.
    #[error("a frame has the type {0}")]
    FrameType(u8),
    /// No protocol header, or one of another protocol or version.
    #[error("the protocol header {0:02x?} is not one that is spoken here")]
    ProtocolHeader([u8; 8]),
    /// A performative that does not belong here.
    #[error("{0} does not belong here")]
    Unexpected(&'static str),
    /// A channel above the channel-max that we announced.
    #[error("channel {0} is above channel-max")]
    ChannelMax(u16),
    /// A channel without a session.
    #[error("channel {0} has no session")]
    Channel(u16),
    /// More transfers than our incoming-window.
    #[error("a transfer came outside the session's incoming-window")]
    Window,
    /// A link endpoint that is detached is used.
    #[error("a transfer came on a link that is not attached")]
    ErrantLink,
    /// A handle that is in use is attached again.
    #[error("handle {0} is in use")]
    HandleInUse(u32),
    /// A handle that nothing is attached to.
    #[error("handle {0} is not attached")]
    UnattachedHandle(u32),
    /// A handle above the handle-max that we announced.
    #[error("handle {0} is above handle-max")]
    HandleMax(u32),
    /// More deliveries than link-credit.
    #[error("a transfer came without link-credit")]
    Credit,
    /// A message larger than max-message-size.
    #[error("a message is larger than {max} bytes")]
    MessageTooLarge {
        /// The max-message-size, in bytes.
        max: u64,
    },
    /// A field whose value may not be.
    #[error("invalid field: {0}")]
    InvalidField(&'static str),
    /// Something that the state does not allow.
    #[error("not allowed: {0}")]
    NotAllowed(&'static str),
    /// Something in a state that forbids it.
    #[error("illegal state: {0}")]
    IllegalState(&'static str),
    /// Something that the peer may do, but that we do not offer.
    #[error("not implemented: {0}")]
    NotImplemented(&'static str),
    /// More of something than our bounds allow.
    #[error("limit exceeded: {0}")]
    Limit(&'static str),
    /// Nothing came for longer than the idle-time-out that we announced.
    #[error("nothing came for longer than the idle-time-out")]
    Idle,
}

impl From<&Violation> for Condition {
    fn from(violation: &Violation) -> Self {
        match violation {
            Violation::Decode(_) => Self::DecodeError,
            Violation::FrameTooSmall(_)
            | Violation::FrameTooLarge { .. }
            | Violation::DataOffset(_)
            | Violation::FrameType(_)
            | Violation::ProtocolHeader(_)
            // AMQP 1.0 2.7.1, 2.7.2: a frame with a number above the announced maximum is malformed.
            | Violation::ChannelMax(_)
            | Violation::HandleMax(_) => Self::FramingError,
            Violation::Unexpected(_)
            | Violation::Channel(_)
            | Violation::NotAllowed(_) => Self::NotAllowed,
            Violation::Window => Self::WindowViolation,
            Violation::ErrantLink => Self::ErrantLink,
            Violation::HandleInUse(_) => Self::HandleInUse,
            Violation::UnattachedHandle(_) => Self::UnattachedHandle,
            Violation::Credit => Self::TransferLimitExceeded,
            Violation::MessageTooLarge { .. } => Self::MessageSizeExceeded,
            Violation::InvalidField(_) => Self::InvalidField,
            Violation::IllegalState(_) => Self::IllegalState,
            Violation::NotImplemented(_) => Self::NotImplemented,
            Violation::Limit(_) | Violation::Idle => Self::ResourceLimitExceeded,
        }
    }
}

impl From<&Violation> for AmqpError {
    fn from(violation: &Violation) -> Self {
        Self::new(&violation.into(), Some(&violation.to_string()))
    }
}

/// A command that cannot be carried out: our own fault, or a race that the caller has to expect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Misuse {
    /// The connection is not open any more.
    #[error("the connection is closed")]
    Closed,
    /// No session has this id, or it has ended.
    #[error("no such session")]
    UnknownSession,
    /// No link has this id, or it is gone.
    #[error("no such link")]
    UnknownLink,
    /// The link is not attached at both sides, or is detaching.
    #[error("the link is not attached")]
    NotAttached,
    /// The command belongs to the other role of a link.
    #[error("the link has the other role")]
    WrongRole,
    /// The peer has given no link-credit.
    #[error("no link-credit")]
    NoCredit,
    /// All channels that both sides allow are in use.
    #[error("no free channel")]
    NoChannel,
    /// All handles that both sides allow are in use.
    #[error("no free handle")]
    NoHandle,
    /// A link of this name and role is attached already.
    #[error("the link name is in use")]
    NameInUse,
    /// The peer does not take messages of this size.
    #[error("the message is larger than the peer takes")]
    MessageTooLarge,
    /// A delivery-tag of more than 32 bytes, or none on the first transfer (AMQP 1.0 2.8.7).
    #[error("the delivery-tag is not of 1 to 32 bytes")]
    Tag,
    /// What waits for the peer's window has reached its bound.
    #[error("too much waits for the peer's incoming-window")]
    Backlog,
    /// The peer's max-frame-size leaves no room for the performative.
    #[error("the performative does not fit into a frame")]
    FrameTooLarge,
    /// The command has been given already, or at the wrong time.
    #[error("the state does not allow it")]
    State,
}
