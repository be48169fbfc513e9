//! Fieldgate.
