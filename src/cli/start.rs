//! Starting a role, and turning signals into its stop.

use std::error::Error;
use std::ffi::OsString;
use std::process;
use std::thread;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{CliError, DemoRole, Role, Run};
use crate::config::{Config, ConfigError, Level, Target};
use crate::demo::Options;
use crate::shutdown::{self, Shutdown, Trigger};
use crate::telemetry;

const VARIABLE: &str = "FIELDGATE_HUB";

/// `fieldgate run`
pub(super) fn gateway(run: &Run, environment: Option<OsString>, role: Role) -> Result<(), CliError> {
    let mut config = run.place.config()?;
    config.log.trace_frames |= run.trace_frames;
    match (&run.hub, environment) {
        (Some(hub), _) => config.set_hub("--hub", hub)?,
        (None, Some(hub)) => {
            let hub = hub.into_string().map_err(|_| ConfigError::new(VARIABLE, "is not text (UTF-8)"))?;
            config.set_hub(VARIABLE, &hub)?;
        }
        (None, None) => {}
    }
    config.require_hub()?;
    let secret = match &config.upstream.target {
        Target::ConnectionString(_) => true,
        Target::Url(url) => url.credentials.is_some(),
        Target::Embedded => false,
    };
    let warning = (run.hub.is_some() && secret).then_some(
        "--hub holds a key, and every user of this machine can read the arguments of a process; \
         FIELDGATE_HUB, or a file that [upstream] connection_string_file names, keeps it",
    );
    start(config, role, warning)
}

/// `fieldgate hub`
pub(super) fn hub(config: Config, role: Role) -> Result<(), CliError> {
    if config.hub.listen.is_empty() {
        return Err(ConfigError::new("configuration", "the hub listens nowhere")
            .with_help("`[hub] listen = [\"127.0.0.1:5671\"]`")
            .into());
    }
    start(config, role, None)
}

/// `fieldgate demo`
pub(super) fn demo(mut config: Config, options: Options, role: DemoRole) -> Result<(), CliError> {
    config.require_hub()?;
    if config.upstream.target != Target::Embedded {
        let other = "the demo shows what its own hub receives, and [upstream] names another one";
        return Err(ConfigError::new("configuration", other)
            .with_help("leave [upstream] out, or start `fieldgate run` with this configuration")
            .into());
    }
    // What the demo prints is its own log.
    config.log.prefer(Level::Warn);
    start(config, |config, shutdown| role(config, options, shutdown), None)
}

/// Runs a role until it ends by itself or by a signal.
fn start(
    config: Config,
    role: impl FnOnce(Config, Shutdown) -> Result<(), Box<dyn Error>>,
    warning: Option<&str>,
) -> Result<(), CliError> {
    telemetry::init(&config.log);
    for remark in &config.remarks {
        tracing::warn!(line = remark.line, "configuration: {}", remark.what);
    }
    if let Some(warning) = warning {
        tracing::warn!("{warning}");
    }
    let (trigger, shutdown) = shutdown::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Registered before anything starts: a signal in between must not kill what is half there.
    let signals = {
        let _inside = runtime.enter();
        [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?]
    };
    let drain = config.runtime.drain;
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || runtime.block_on(obey(signals, &trigger, drain)))?;
    role(config, shutdown).map_err(CliError::Role)
}

/// The first signal drains, for as long as the configuration allows; the second aborts the drain; the third ends the
/// process there and then.
async fn obey([mut terminate, mut interrupt]: [Signal; 2], trigger: &Trigger, drain: Duration) {
    let mut next = async || {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    let signal = next().await;
    tracing::info!(signal, "stopping: finishing what is in flight; once more stops at once");
    trigger.drain();
    match tokio::time::timeout(drain, next()).await {
        Ok(signal) => tracing::warn!(signal, "stopping at once"),
        Err(_) => tracing::warn!(?drain, "the time for what is in flight is over (runtime.drain)"),
    }
    trigger.abort();
    next().await;
    process::exit(1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Place;

    /// A gateway that only tells which hub it was given.
    fn tell(config: Config, shutdown: Shutdown) -> Result<(), Box<dyn Error>> {
        assert!(!shutdown.is_draining());
        Err(format!("{:?}", config.upstream.target).into())
    }

    fn told(hub: Option<&str>, environment: Option<&str>) -> String {
        let place = Place { config: None, state_dir: None };
        let run = Run { hub: hub.map(str::to_owned), trace_frames: false, place };
        gateway(&run, environment.map(OsString::from), tell).unwrap_err().to_string()
    }

    #[test]
    fn the_hub_comes_from_the_argument_then_the_environment_then_the_file() {
        assert_eq!(told(None, None), "Embedded");
        assert!(told(None, Some("amqps://environment")).contains("host: \"environment\""));
        assert!(told(Some("amqps://argument"), Some("amqps://environment")).contains("host: \"argument\""));
        let wrong = told(None, Some("http://environment"));
        assert!(wrong.starts_with("FIELDGATE_HUB: the hub is reached over TLS only"), "{wrong}");
    }

    #[test]
    fn a_hub_that_listens_nowhere_is_refused() {
        let config = Config::parse("f", "[hub]\nlisten = []", None).unwrap();
        assert!(hub(config.clone(), tell).unwrap_err().to_string().contains("the hub listens nowhere"));
        let demo = |config| demo(config, Options::default(), |config, _, shutdown| tell(config, shutdown));
        assert!(demo(config).unwrap_err().to_string().contains("listens nowhere"));
        let other = Config::parse("f", "[upstream]\nurl = \"amqps://elsewhere\"", None).unwrap();
        assert!(demo(other).unwrap_err().to_string().contains("`fieldgate run`"));
    }
}
