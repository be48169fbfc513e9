//! What the gateway means.
