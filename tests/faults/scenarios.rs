//! What is done to a gateway.

pub(crate) mod kill;
