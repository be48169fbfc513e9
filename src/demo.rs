//! Stand-in until the demo is merged.

use crate::app::{self, AppError};
use crate::config::Config;
use crate::shutdown::Shutdown;

/// Runs the gateway.
///
/// # Errors
/// As [`app::run`].
pub fn run(config: Config, shutdown: &Shutdown) -> Result<(), AppError> {
    app::run(config, shutdown)
}
