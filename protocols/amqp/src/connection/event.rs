//! What a connection tells the application, and the ids in it.

use std::fmt;

use crate::error::{AmqpError, Violation};
use crate::performative::{Attach, Begin, Detach, Disposition, Flow, Open, Role, Transfer};
use crate::sasl::{Mechanism, PlainCredentials, SaslCode};

/// A session of one connection. A later session in the same place of the table has another id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId {
    pub(crate) place: u32,
    pub(crate) stamp: u32,
}

impl SessionId {
    /// A small dense number, unique among the sessions that live at one time, for tables beside the engine's.
    pub fn index(self) -> usize {
        self.place as usize
    }
}

/// A link of one connection. A later link in the same place of the table has another id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId {
    pub(crate) place: u32,
    pub(crate) stamp: u32,
}

impl LinkId {
    /// A small dense number, unique among the links that live at one time, for tables beside the engine's.
    pub fn index(self) -> usize {
        self.place as usize
    }
}

/// Something that came from the peer, or that became of it.
///
/// What an event holds are slices of the bytes that came in. Who keeps an `Attach` or an `Open` for long copies it,
/// or the whole read buffer stays in memory with it.
#[derive(Debug)]
pub enum Event {
    /// A client wants to authenticate; answer with [`sasl_outcome`](super::Connection::sasl_outcome). Nothing more
    /// is decoded until then.
    SaslInit {
        /// The mechanism, one of those that were offered.
        mechanism: Mechanism,
        /// What PLAIN carries.
        plain: Option<PlainCredentials>,
        /// The host that the client believes to speak to.
        hostname: Option<String>,
    },
    /// The server has accepted our credentials, and our open is still to come: give it with
    /// [`open`](super::Connection::open). Only for [`client_to_open`](super::Connection::client_to_open).
    Authenticated,
    /// The peer's open. A server answers with [`open`](super::Connection::open); nothing more is decoded until then.
    Opened(Open),
    /// The peer's begin.
    SessionBegun {
        /// The session.
        session: SessionId,
        /// The performative.
        begin: Begin,
        /// The peer began it: [`accept_begin`](super::Connection::accept_begin) or
        /// [`end`](super::Connection::end). Otherwise it is the answer to our begin.
        by_peer: bool,
    },
    /// The session is over, its links with it, and their ids are invalid. Nothing is to be answered.
    SessionEnded {
        /// The session.
        session: SessionId,
        /// The peer's error, or ours where the engine has ended the session for a violation.
        error: Option<AmqpError>,
    },
    /// The peer's attach.
    Attached {
        /// The link.
        link: LinkId,
        /// Its session.
        session: SessionId,
        /// The performative.
        attach: Attach,
        /// The peer began it: [`answer_attach`](super::Connection::answer_attach) or
        /// [`refuse_attach`](super::Connection::refuse_attach). Otherwise it is the answer to our attach, also where
        /// we have sent a detach meanwhile: the peer's own is then still to come.
        by_peer: bool,
    },
    /// The peer's detach, or our own where the engine has detached the link for a violation.
    Detached {
        /// The link.
        link: LinkId,
        /// Its session.
        session: SessionId,
        /// The performative.
        detach: Detach,
        /// Our detach has been sent as well: the link is gone and its id invalid. Otherwise answer with
        /// [`detach`](super::Connection::detach).
        answered: bool,
    },
    /// A flow. The session's part has been taken in, and a session-level echo answered.
    Flow {
        /// The link, where the flow names one.
        link: Option<LinkId>,
        /// The session.
        session: SessionId,
        /// The performative.
        flow: Flow,
    },
    /// One transfer frame; its place in the session's window and the link's credit has been checked.
    Transfer {
        /// The link.
        link: LinkId,
        /// Its session.
        session: SessionId,
        /// The delivery-id, also where the frame itself leaves it out.
        delivery_id: u32,
        /// Whether the frame is the first of its delivery.
        first: bool,
        /// The performative, with the payload.
        transfer: Transfer,
    },
    /// A disposition.
    Disposition {
        /// The session.
        session: SessionId,
        /// The performative.
        disposition: Disposition,
    },
    /// The last event of a connection.
    Closed(CloseReason),
}

/// Why a connection is over.
#[derive(Debug, Clone, PartialEq)]
pub enum CloseReason {
    /// The peer closed it, with its error. The answer has been written.
    Remote(Option<AmqpError>),
    /// We closed it, and the peer has answered.
    Local,
    /// The peer broke a rule. It has been told, where the protocol had a way to.
    Violation(Violation),
    /// The peer was silent for too long, or did not open or close in time.
    TimedOut,
    /// The SASL exchange ended without success: with the code that was sent or came, or without one where the
    /// mechanism was not offered or the exchange broke off.
    SaslFailed(Option<SaslCode>),
    /// The peer speaks another protocol or version. It has been told which we speak.
    Header([u8; 8]),
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Remote(None) => f.write_str("the peer closed the connection"),
            Self::Remote(Some(error)) => {
                write!(f, "the peer closed the connection: {}", error.condition())?;
                match error.description() {
                    Some(description) => write!(f, " ({description})"),
                    None => Ok(()),
                }
            }
            Self::Local => f.write_str("we closed the connection"),
            Self::Violation(violation) => write!(f, "the peer broke a rule: {violation}"),
            Self::TimedOut => f.write_str("the peer was silent for too long"),
            Self::SaslFailed(None) => f.write_str("no agreement on how to authenticate"),
            Self::SaslFailed(Some(SaslCode::Auth)) => f.write_str("the credentials were refused"),
            Self::SaslFailed(Some(code)) => write!(f, "authentication failed (code {})", *code as u8),
            Self::Header(header) => {
                write!(f, "the peer speaks another protocol: {}", header.escape_ascii())
            }
        }
    }
}

/// A link as the engine sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkInfo<'a> {
    /// Its name.
    pub name: &'a str,
    /// Our role.
    pub role: Role,
    /// Its session.
    pub session: SessionId,
    /// What we have said about it.
    pub local: Half,
    /// What the peer has said about it.
    pub remote: Half,
    /// Where the sender's delivery-count started; 0 as long as its attach has not come.
    pub initial_delivery_count: u32,
    /// Deliveries begun, from the initial-delivery-count on (serial).
    pub delivery_count: u32,
    /// Deliveries that may still begin; for a receiver the most that any of our flows leaves.
    pub credit: u32,
    /// The peer asks us to use the credit up or to give it back (our role: sender).
    pub drain: bool,
    /// The delivery-id of the delivery whose last frame has not come or gone yet.
    pub delivery: Option<u32>,
}

pub use crate::link::Half;
