//! Starting a role, and turning signals into its stop.

use std::ffi::OsString;
use std::process;
use std::thread;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{CliError, Role, Run};
use crate::config::{Config, ConfigError, Target};
use crate::shutdown::{self, Trigger};
use crate::telemetry;

const VARIABLE: &str = "FIELDGATE_HUB";

/// `fieldgate run`
pub(super) fn gateway(run: &Run, environment: Option<OsString>, role: Role) -> Result<(), CliError> {
    let mut config = run.place.config()?;
    match (&run.hub, environment) {
        (Some(hub), _) => config.set_hub("--hub", hub)?,
        (None, Some(hub)) => {
            let hub = hub.into_string().map_err(|_| ConfigError::new(VARIABLE, "is not text (UTF-8)"))?;
            config.set_hub(VARIABLE, &hub)?;
        }
        (None, None) => {}
    }
    config.require_hub()?;
    telemetry::init(&config.log);
    let secret = match &config.upstream.target {
        Target::ConnectionString(_) => true,
        Target::Url(url) => url.credentials.is_some(),
        Target::Embedded => false,
    };
    if run.hub.is_some() && secret {
        tracing::warn!(
            "--hub holds a key, and every user of this machine can read the arguments of a process; \
             write it to {VARIABLE}, or to a file that [upstream] connection_string_file names"
        );
    }
    start(config, role)
}

/// `fieldgate hub`
pub(super) fn hub(config: Config, role: Role) -> Result<(), CliError> {
    if config.hub.listen.is_empty() {
        return Err(ConfigError::new("configuration", "the hub listens nowhere")
            .with_help("`[hub] listen = [\"127.0.0.1:5671\"]`")
            .into());
    }
    start(config, role)
}

/// Runs a role until it ends by itself or by a signal.
pub(super) fn start(config: Config, role: Role) -> Result<(), CliError> {
    telemetry::init(&config.log);
    let (trigger, shutdown) = shutdown::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    // Registered before anything starts: a signal in between must not kill what is half there.
    let signals = {
        let _inside = runtime.enter();
        [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?]
    };
    thread::Builder::new().name("signals".into()).spawn(move || runtime.block_on(obey(signals, &trigger)))?;
    role(config, shutdown).map_err(CliError::Role)
}

/// The first signal drains, the second aborts, the third ends the process there and then.
async fn obey([mut terminate, mut interrupt]: [Signal; 2], trigger: &Trigger) {
    let mut next = async || {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    let signal = next().await;
    tracing::info!(signal, "stopping: finishing what is in flight; once more stops at once");
    trigger.drain();
    let signal = next().await;
    tracing::warn!(signal, "stopping at once");
    trigger.abort();
    next().await;
    process::exit(1);
}
