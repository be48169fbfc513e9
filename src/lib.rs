//! Fieldgate.

pub mod sas;
