//! Puts the parts together: the state directory, the embedded hub, the listeners, a worker for
//! each core, the console; and takes them apart again in order.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use fieldgate_mappings::rules::{LoadError, RuleSet};
use thiserror::Error;

use crate::adapters::Directory;
use crate::config::{Config, Target};
use crate::console::{self, Component, Health, Status};
use crate::hub::{HubError as EmbeddedHubError, HubHandle};
use crate::listener::{self, ListenError};
use crate::shutdown::Shutdown;
use crate::state::{LockedState, StateDir, StateError};
use crate::tls::{self, TlsError};
use crate::upstream::{Embedded, Hub, HubError};
use crate::worker::{self, Setup};

/// Why the program cannot start, or had to stop; its text is for a person.
#[derive(Debug, Error)]
pub enum AppError {
    /// A port cannot be used.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The hub of the configuration cannot be used.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The embedded hub cannot start.
    #[error(transparent)]
    Embedded(#[from] EmbeddedHubError),
    /// A mapping file cannot be read.
    #[error("{}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The mapping files are wrong.
    #[error(transparent)]
    Mappings(#[from] LoadError),
    /// The embedded hub is switched off and no other is named.
    #[error(
        "there is no hub to connect to: [hub] enabled is false, and [upstream] names none; \
         write `connection_string_file` or `url` in [upstream], or leave `enabled` out"
    )]
    NoHub,
    /// The system refused a thread, a timer or a socket.
    #[error("the system refused what the program needs: {0}")]
    System(#[from] io::Error),
    /// A worker panicked: a bug, which ends the process rather than half of its devices.
    #[error("a worker of the gateway failed; this is a bug, please report what the log says")]
    Worker,
}

/// Runs the gateway, and the embedded hub where the configuration has it, until the stop.
///
/// # Errors
/// What kept it from starting, or made it stop.
pub fn run(config: Config, shutdown: Shutdown) -> Result<(), AppError> {
    let config = Arc::new(config);
    let health = Arc::new(Health::default());
    // All that can be refused is looked at before anything starts.
    let rules = Arc::new(rules(&config)?);
    let state = StateDir::locate(config.state.directory.as_deref())?;
    let hub = match config.runs_hub() {
        true => Some(EmbeddedHub::start(&config, &state, &health, &shutdown)?),
        false => None,
    };
    let embedded = hub.as_ref().map(|hub| &hub.reached);
    if config.upstream.target == Target::Embedded && embedded.is_none() {
        return Err(AppError::NoHub);
    }
    let target = Arc::new(Hub::new(&config, embedded)?);
    let setups = setups(&config, &rules, &target, &health)?;
    let console = console::bind(&config.admin)?;
    tracing::info!(hub = %target.address(), workers = setups.len(), "gateway started");

    let workers: Vec<_> = setups
        .into_iter()
        .map(|setup| {
            let shutdown = shutdown.clone();
            thread::Builder::new()
                .name(format!("worker-{}", setup.index))
                .spawn(move || worker::run(setup, &shutdown))
        })
        .collect::<Result<_, _>>()?;
    serve_console(console, &health, &shutdown)?;

    let mut outcome = Ok(());
    for worker in workers {
        outcome = match worker.join() {
            Ok(Ok(())) => outcome,
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(AppError::Worker),
        };
    }
    // The hub goes last, so that what was in flight found it there.
    if let Some(hub) = hub {
        hub.stop()?;
    }
    tracing::info!("stopped");
    outcome
}

/// Runs the embedded hub alone until the stop.
///
/// # Errors
/// What kept it from starting, or made it stop.
pub fn run_hub(config: Config, shutdown: Shutdown) -> Result<(), AppError> {
    let health = Arc::new(Health::default());
    let state = StateDir::locate(config.state.directory.as_deref())?;
    let hub = EmbeddedHub::start(&config, &state, &health, &shutdown)?;
    let console = console::bind(&config.admin)?;
    serve_console(console, &health, &shutdown)?;
    hub.stop()?;
    tracing::info!("stopped");
    Ok(())
}
