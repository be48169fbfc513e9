//! The CoAP wire, server side: a guarded codec and the message layer of RFC 7252, without I/O.
//!
//! Not here: sockets, clocks, randomness (inputs, all three), what a path means (`mappings`), DTLS, and the
//! options Observe, Block1 and Block2: the first is passed over, the others are answered 4.02, as RFC 7959 expects
//! of a server without them.
//!
//! # Contract
//!
//! [`Server`] holds all peers of one socket. Its driver
//!
//! 1. hands in each datagram with [`handle_datagram`](Server::handle_datagram), and calls
//!    [`handle_timeout`](Server::handle_timeout) at [`poll_timeout`](Server::poll_timeout);
//! 2. then drains [`poll_event`](Server::poll_event), and answers each [`Event::Request`] once, now or later, with
//!    [`respond`](Server::respond);
//! 3. then drains [`poll_transmit`](Server::poll_transmit) into the socket, and asks
//!    [`poll_timeout`](Server::poll_timeout) anew.
//!
//! What it promises:
//!
//! - A request is delivered once, however often its datagram arrives, while its exchange is remembered
//!   ([`Config::max_exchanges`]); a duplicate of a CON gets the first answer again.
//! - An answer within [`Config::ack_delay`] rides on the ACK. Later, the empty ACK has gone out, and the answer
//!   follows as a CON of its own that is sent again until it is acknowledged. A NON is answered by a NON.
//! - Nothing that arrives makes it panic, hang, or grow beyond [`Config`]; what one datagram causes to be sent is
//!   at most [`Config::reply_factor`] times its size, or [`Config::reply_floor_bytes`].
//! - Every datagram that is not delivered is counted in [`Stats`], under its [`Refusal`] or as a duplicate, ping,
//!   or acknowledgement.
//!
//! The driver joins no multicast group: the machine cannot see to which address a datagram was sent, and requests
//! to many must not be answered by all (RFC 7252 section 8.2).
//!
//! [`client`] is the other side, as much of it as a simulated device and the tests need.

pub mod client;
mod codec;
mod config;
mod guard;
mod hash;
mod message;
mod option;
mod rng;
mod segments;
mod server;
mod stats;

pub use self::config::{Config, Transmission};
pub use self::message::{Code, Method};
pub use self::segments::Segments;
pub use self::server::{Event, ExchangeId, Gone, Lost, Request, Response, Server};
pub use self::stats::{Refusal, Stats};

#[cfg(test)]
mod testing {
    //! A beginning for the clocks of tests.

    /// Any instant: everything after it is made by adding.
    #[expect(clippy::disallowed_methods, reason = "an Instant can be had from the system's clock only")]
    pub(crate) fn epoch() -> std::time::Instant {
        std::time::Instant::now()
    }
}
