//! The program `fieldgate`.

use std::error::Error;
use std::process::ExitCode;

use fieldgate::cli::{self, Roles};
use fieldgate::config::Config;
use fieldgate::shutdown::Shutdown;

fn main() -> ExitCode {
    cli::run(std::env::args_os(), Roles { gateway: absent, hub: absent, demo: absent })
}

fn absent(_: Config, _: Shutdown) -> Result<(), Box<dyn Error>> {
    Err("this build has the command line only".into())
}
