//! Fieldgate.
fn main() {}
