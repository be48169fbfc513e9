//! What the process tells its operator over HTTP, to this machine only: metrics and health.

mod health;

pub use health::{Component, Health, Status};
