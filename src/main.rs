//! The program `fieldgate`.

use std::process::ExitCode;

use fieldgate::cli::{self, Roles};
use fieldgate::{app, demo};

fn main() -> ExitCode {
    let roles = Roles {
        gateway: |config, shutdown| Ok(app::run(config, &shutdown)?),
        hub: |config, shutdown| Ok(app::run_hub(&config, &shutdown)?),
        demo: |config, options, shutdown| Ok(demo::run(config, options, &shutdown)?),
    };
    cli::run(std::env::args_os(), roles)
}
