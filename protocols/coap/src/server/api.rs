//! What passes between a server and its application: requests up, responses down, and what became of them.
//! Not wire formats: `codec` has those.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;

use crate::message::{Code, Method};
use crate::segments::Segments;

/// Names a request until it is answered. Never used again for another one within 2^32 requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ExchangeId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// A request, delivered once however often its datagram arrives.
#[derive(Debug)]
pub struct Request {
    /// What the answer is given to, with [`Server::respond`](crate::Server::respond).
    pub exchange: ExchangeId,
    /// Where it came from. Unverified: on UDP anybody may write any sender.
    pub peer: SocketAddr,
    /// Whether it came as CON: the peer wants to know what became of it.
    pub confirmable: bool,
    /// The method.
    pub method: Method,
    /// The Uri-Path options, each decoded; none for the root.
    pub path: Segments,
    /// The Uri-Query options, each decoded, as `name=value` by custom.
    pub query: Segments,
    /// The Content-Format of the payload, by its registered number.
    pub content_format: Option<u16>,
    /// The Content-Format that the peer wants of the answer: critical, answer 4.06 if it cannot be had.
    pub accept: Option<u16>,
    /// The payload, empty where there is none.
    pub payload: Bytes,
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The response code.
    pub code: Code,
    /// Max-Age, in whole seconds rounded up: with 5.03 and 4.29 when to try again.
    pub max_age: Option<Duration>,
    /// The Content-Format of the payload. With an error and without one, the payload is a diagnostic text.
    pub content_format: Option<u16>,
    /// Size1: with 4.13 the largest payload that would be taken, in bytes.
    pub size1: Option<u32>,
    /// The payload. A diagnostic text is cut, anything else replaced by 5.00, where it is larger than what may be
    /// sent to an unverified address (`Config::reply_factor`).
    pub payload: Bytes,
}

impl Response {
    /// A response of this code and nothing else.
    pub fn new(code: Code) -> Self {
        Self { code, max_age: None, content_format: None, size1: None, payload: Bytes::new() }
    }

    /// The same with a Max-Age.
    pub fn with_max_age(mut self, max_age: Duration) -> Self {
        self.max_age = Some(max_age);
        self
    }

    /// The same with a diagnostic text, for error codes (RFC 7252 section 5.5.2).
    pub fn with_diagnostic(mut self, text: impl Into<String>) -> Self {
        self.payload = Bytes::from(text.into());
        self
    }

    /// Whether the payload is for a human's eye only.
    pub(crate) fn is_diagnostic(&self) -> bool {
        !self.code.is_success() && self.content_format.is_none()
    }
}

/// What a server tells its application.
#[derive(Debug)]
pub enum Event {
    /// A request to be answered once, and soon: for a CON within a few seconds, and never later than
    /// EXCHANGE_LIFETIME, when it is forgotten.
    Request(Request),
    /// A separate response did not reach the peer, as far as can be known. The exchange was over for the
    /// application when it answered; nothing is to be done but to count or log it.
    ResponseLost {
        /// The exchange.
        exchange: ExchangeId,
        /// Why.
        cause: Lost,
    },
}

/// Why a separate response counts as lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lost {
    /// The peer answered RST: it no longer knows the token.
    Reset,
    /// MAX_RETRANSMIT was reached without an ACK; answers that waited behind it (NSTART) are lost with it.
    TimedOut,
    /// The peer sent another request under the same message ID: it started anew.
    Superseded,
}

/// The exchange is over: answered before, forgotten, or made void by its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this exchange is over")]
pub struct Gone;
