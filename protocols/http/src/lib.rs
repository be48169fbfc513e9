//! The HTTP device API at the wire: request heads judged and decoded, and replies, without I/O.
//!
//! There is no HTTP codec here: the driver brings parsed heads as the `http` crate's types and sends what a [`Reply`]
//! becomes. What lies between is judged in one place: the form of the target, the limits, the headers that HTTP asks
//! for. Which path means what is not known here.
//!
//! RFC 9110 (semantics), RFC 9112 (HTTP/1.1), RFC 3986 (the target).

mod decode;
mod reply;
mod request;

pub use reply::Reply;
pub use request::{Limits, RequestHead, Violation};
