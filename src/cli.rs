//! The command line: what can be asked of the program, and in which words it answers.

mod check;
mod dead_letter;
mod device;
mod import;
mod key;
mod send;
mod spool;
mod start;
mod watch;

use std::error::Error;
use std::ffi::OsString;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use fieldgate_mappings::DeviceId;
use thiserror::Error;

use crate::config::{self, Config, ConfigError, parse_duration};
use crate::control::ClientError;
use crate::demo;
use crate::output::{self, say};
use crate::service::ServiceError;
use crate::shutdown::Shutdown;
use crate::spool::SpoolError;
use crate::state::{StateDir, StateError};

/// Something that the program can be until it is stopped.
pub type Role = fn(Config, Shutdown) -> Result<(), Box<dyn Error>>;

/// As [`Role`], with what only the demo is told.
pub type DemoRole = fn(Config, demo::Options, Shutdown) -> Result<(), Box<dyn Error>>;

/// What the program can be; each is told its configuration and hears when to stop.
#[derive(Clone, Copy, Debug)]
pub struct Roles {
    /// `fieldgate run`
    pub gateway: Role,
    /// `fieldgate hub`
    pub hub: Role,
    /// `fieldgate demo`
    pub demo: DemoRole,
}

/// Why a command failed; its text is for a person.
#[derive(Debug, Error)]
enum CliError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Service(#[from] ServiceError),
    #[error(transparent)]
    Check(#[from] check::Wrong),
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error(transparent)]
    Control(#[from] ClientError),
    #[error("the hub's notes are damaged: {0}; starting the hub writes them anew")]
    Notes(#[from] crate::sas::ConnectionStringError),
    #[error("this system refuses what the program needs: {0}")]
    System(#[from] std::io::Error),
    #[error("{0}")]
    Role(Box<dyn Error>),
    #[error("there is no spool in {}: no gateway with a rule that keeps messages on disk has run here; name another place with --state-dir or --config", .0.display())]
    NoSpool(PathBuf),
    /// What was asked for was done, and the answer was no; it has been printed.
    #[error("")]
    No,
}

const FIRST_STEPS: &str = "\
First steps:
  fieldgate demo                        watch it work; nothing to set up
  fieldgate run                         a gateway and a local hub, on this machine only
  fieldgate hub watch                   in another terminal: what the hub receives
  fieldgate hub send pump-1 'open'      a command for the device pump-1, and its answer

`fieldgate help COMMAND` tells more.";

/// Carries MQTT, CoAP, HTTP and AMQP 1.0 devices to an AMQP 1.0 hub over TLS, and its commands back
#[derive(Debug, Parser)]
#[command(name = "fieldgate", version, arg_required_else_help = true, after_help = FIRST_STEPS, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a gateway, a hub and a few simulated devices, and watch them talk
    #[command(after_help = DEMO_HELP)]
    Demo(Demo),
    /// Run the gateway, with a local hub in the same process unless another is named
    #[command(after_help = RUN_HELP)]
    Run(Run),
    /// Run the local hub alone; or watch it, send commands, get keys
    #[command(after_help = HUB_HELP)]
    Hub(Hub),
    /// The device registry: who devices are, and how they prove it
    #[command(after_help = device::HELP, arg_required_else_help = true)]
    Device {
        #[command(flatten)]
        place: Place,
        #[command(subcommand)]
        command: device::DeviceCommand,
    },
    /// Check a configuration, its mapping files and certificates, and show what it means
    Check {
        /// The configuration file; without it, the defaults
        file: Option<PathBuf>,
    },
    /// Translate a configuration of Qpid Dispatch Router into one of this program
    #[command(after_help = IMPORT_HELP)]
    Import(Import),
    /// See what is kept on disk while the hub is away
    #[command(subcommand, arg_required_else_help = true)]
    Spool(spool::Command),
    /// List, show, send again or drop what was rejected or dropped by policy
    #[command(subcommand, arg_required_else_help = true)]
    DeadLetter(dead_letter::Command),
    /// Print a configuration
    #[command(subcommand, arg_required_else_help = true)]
    Config(ConfigCommand),
}

/// Where configuration and state are.
#[derive(Debug, Args)]
struct Place {
    /// The configuration file (TOML, or one of Qpid Dispatch Router); without it, the defaults
    #[arg(long, value_name = "FILE", global = true, display_order = 100)]
    config: Option<PathBuf>,
    /// Where keys and certificates are kept [default: $XDG_STATE_HOME/fieldgate or ~/.local/state/fieldgate]
    #[arg(long, value_name = "DIR", global = true, display_order = 101)]
    state_dir: Option<PathBuf>,
}

const DEMO_HELP: &str = "\
Ctrl-C ends it. With --for or --messages it ends by itself, and the exit status tells whether every
protocol delivered (0) or something was missing (1).";

#[derive(Debug, Args)]
struct Demo {
    /// End after so long, counted from when everything runs
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    duration: Option<Duration>,
    /// End when each protocol has delivered so many messages and a command was accepted over MQTT and AMQP
    #[arg(long, value_name = "N")]
    messages: Option<NonZeroU64>,
    #[command(flatten)]
    place: Place,
}

const RUN_HELP: &str = "\
Without a configuration, devices connect on this machine only:
  AMQP 5672, MQTT 1883, CoAP 5683/udp, HTTP 8080; the hub listens on 5671 (AMQP over TLS),
  metrics are at http://127.0.0.1:9464/metrics

The hub is named by --hub, else by the environment variable FIELDGATE_HUB, else by the
configuration ([upstream]). Every user of a machine can read arguments: a connection string,
which holds a key, belongs in FIELDGATE_HUB or in a file ([upstream] connection_string_file).

SIGTERM or Ctrl-C: finish what is in flight, then stop. Once more: stop at once.";

#[derive(Debug, Args)]
struct Run {
    /// The hub: an IoT Hub connection string, or amqps://host of another AMQP 1.0 hub
    #[arg(long, value_name = "CONNECTION-STRING-OR-URL")]
    hub: Option<String>,
    /// Write every frame of native AMQP connections to the log, without payloads and secrets
    #[arg(long)]
    trace_frames: bool,
    #[command(flatten)]
    place: Place,
}

const IMPORT_HELP: &str = "\
What cannot be carried over is named on standard error, line by line. `fieldgate run --config` takes
such a file as it is, too.";

#[derive(Debug, Args)]
struct Import {
    /// The file, as qdrouterd.conf
    file: PathBuf,
    /// Where to write; without it, to standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

const HUB_HELP: &str = "\
Without COMMAND the hub runs until it is stopped. The commands work with the hub that runs,
alone or inside `fieldgate run`, and find it through the state directory.";

#[derive(Debug, Args)]
struct Hub {
    /// Write every frame to the log, without payloads and secrets
    #[arg(long)]
    trace_frames: bool,
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Option<HubCommand>,
}

#[derive(Debug, Subcommand)]
enum HubCommand {
    /// Print what arrives at the hub, until Ctrl-C
    Watch(Watch),
    /// Send a command to a device and wait for what becomes of it
    #[command(after_help = "The exit status is 0 if the device took the command, else 1.")]
    Send(Send),
    /// Print a token (shared access signature) for a device
    Token {
        /// The device's id
        #[arg(value_parser = device)]
        device: DeviceId,
        /// How long the token is good for
        #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_duration)]
        ttl: Duration,
    },
    /// Print a connection string: a device's, or the hub's own for services and gateways
    ConnectionString {
        /// The device's id; without it, the hub's own, which may do everything
        #[arg(value_parser = device)]
        device: Option<DeviceId>,
    },
}

#[derive(Debug, Args)]
struct Watch {
    /// One JSON object for each message
    #[arg(long)]
    json: bool,
    /// The consumer group
    #[arg(long, value_name = "NAME", default_value = "$Default")]
    group: String,
    /// Only this partition, counted from 0
    #[arg(long, value_name = "N")]
    partition: Option<u16>,
    /// Where to begin
    #[arg(long, value_enum, default_value_t = From::Start)]
    from: From,
    /// Stop after so many messages
    #[arg(long, value_name = "N")]
    count: Option<NonZeroU64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum From {
    /// With the oldest message that the hub still has
    Start,
    /// With the next one that arrives
    Now,
}

#[derive(Debug, Args)]
struct Send {
    /// The device's id
    #[arg(value_parser = device)]
    device: DeviceId,
    /// The command's body
    text: String,
    /// How long the hub keeps trying [default: the hub's command_ttl, 1h]
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    ttl: Option<Duration>,
    /// An application property; may be given several times
    #[arg(long = "property", value_name = "NAME=VALUE", value_parser = property)]
    properties: Vec<(String, String)>,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Every setting with its default and its meaning; a good start for a file of one's own
    Sample,
}

fn device(text: &str) -> Result<DeviceId, String> {
    DeviceId::new(text).map_err(|error| error.to_string())
}

fn property(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("write NAME=VALUE".into()),
    }
}

impl Place {
    fn config(&self) -> Result<Config, ConfigError> {
        let mut config = match &self.config {
            Some(file) => Config::load(file)?,
            None => Config::default(),
        };
        if let Some(directory) = &self.state_dir {
            config.state.directory = Some(directory.clone());
        }
        Ok(config)
    }

    /// The state directory alone. The commands that talk to a hub need nothing else of the configuration.
    fn state(&self) -> Result<StateDir, CliError> {
        Ok(StateDir::locate(self.config()?.state.directory.as_deref())?)
    }
}

/// Does what the arguments (with the program's name first) ask for.
#[must_use]
pub fn run(arguments: impl IntoIterator<Item = OsString>, roles: Roles) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output with status 0, mistakes to standard error with 2. Where even
            // that cannot be written, there is nobody to tell.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match dispatch(cli.command, roles) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has seen enough (`fieldgate hub watch | head`).
        Err(CliError::System(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(CliError::No) => ExitCode::FAILURE,
        Err(error) => {
            output::complain(&format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command, roles: Roles) -> Result<(), CliError> {
    match command {
        Command::Demo(Demo { duration, messages, place }) => {
            start::demo(place.config()?, demo::Options { duration, messages }, roles.demo)
        }
        Command::Run(run) => start::gateway(&run, std::env::var_os("FIELDGATE_HUB"), roles.gateway),
        Command::Hub(Hub { place, trace_frames, command: None }) => {
            let mut config = place.config()?;
            config.log.trace_frames |= trace_frames;
            start::hub(config, roles.hub)
        }
        Command::Hub(Hub { place, command: Some(command), .. }) => {
            let state = place.state()?;
            match command {
                HubCommand::Watch(watch) => watch::run(&state, &watch),
                HubCommand::Send(send) => send::run(&state, &send),
                HubCommand::Token { device, ttl } => key::token(&state, &device, ttl),
                HubCommand::ConnectionString { device } => key::connection_string(&state, device.as_ref()),
            }
        }
        Command::Device { place, command } => device::run(&place, command),
        Command::Spool(command) => spool::run(&command),
        Command::DeadLetter(command) => dead_letter::run(&command),
        Command::Check { file } => check::run(file.as_deref().map(Path::new)),
        Command::Import(import) => import::run(&import.file, import.output.as_deref()),
        Command::Config(ConfigCommand::Sample) => Ok(say(config::sample().trim_end())?),
    }
}

#[cfg(test)]
mod live;
#[cfg(test)]
mod tests;
