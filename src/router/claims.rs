//! Claims on connections that devices share: the gateway plays `$cbs` for its devices, and puts what they put over the
//! one pair of links that each of its hub connections has to the hub's `$cbs`.
//!
//! Neither side decides anything: whether a token may be put is [`access`](super::access)'s matter, whether it is good
//! the hub's.

mod client;
mod node;
#[cfg(test)]
mod tests;

pub(crate) use client::{Answer, CbsClientLink, Reply};
#[cfg_attr(not(test), expect(unused_imports, reason = "the router of shared connections will use them"))]
pub(crate) use {
    client::Full,
    node::{CbsNode, RequestKey, TokenRequest},
};
