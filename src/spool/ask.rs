//! What people ask the spool, through the control socket, and what it answers.

/// A question or an order.
#[derive(Debug)]
pub(crate) enum Ask {
    /// How the spool is.
    Status,
}

/// What it answers.
#[derive(Debug)]
pub(crate) enum Answer {
    /// How the spool is.
    Status,
}
