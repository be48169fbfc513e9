//! What is done to a gateway.

pub(crate) mod away;
pub(crate) mod crash;
pub(crate) mod disk;
pub(crate) mod kill;
pub(crate) mod tokens;
