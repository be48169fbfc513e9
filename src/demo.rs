//! `fieldgate demo`: a gateway, its hub and a few devices of each protocol in one process, and what happens between
//! them, live.
//!
//! Nothing is staged. The gateway and the hub are started as `fieldgate run` starts them; the devices are real clients
//! that go through the listeners; what is shown of the hub is read from its event log as `fieldgate hub watch` reads it.

mod amqp;
mod coap;
mod device;
mod fleet;
mod gateway;
mod http;
mod intro;
mod mqtt;
mod note;
mod screen;
mod sender;
mod tally;

use std::future::Future;
use std::io;
use std::num::NonZeroU64;
use std::pin::pin;
use std::time::Duration;

use fieldgate_mappings::DeviceId;
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::app::{AppError, Listening};
use crate::config::Config;
use crate::output::say;
use crate::sas::{ConnectionString, ConnectionStringError};
use crate::service::watch::{DEFAULT_GROUP, Log, Position, Readers};
use crate::service::{Event, Service, ServiceError};
use crate::shutdown::{self, Shutdown, Trigger};
use crate::state::{StateDir, StateError};

use amqp::Credential;
use device::{Device, PERIOD};
use fleet::FLEET;
use gateway::Gateway;
use intro::Places;
use note::{Note, Teller};
use screen::{Line, Screen};
use sender::Target;
use tally::Tally;

/// Notes that wait to be shown.
const AHEAD: usize = 64;
/// How long each step of leaving may take: the last command, the devices, what is still on its way to the watcher.
const LEAVE_TIME_OUT: Duration = Duration::from_secs(3);

/// When the demo ends by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// After so long, counted from when everything runs.
    pub duration: Option<Duration>,
    /// When each protocol has delivered so many messages, and each kind of command was accepted.
    pub messages: Option<NonZeroU64>,
}

/// Why the demo did not start, or what it did not show; its text is for a person.
#[derive(Debug, Error)]
pub enum DemoError {
    /// The gateway cannot start, or failed.
    #[error(transparent)]
    App(#[from] AppError),
    /// The gateway ended without a word.
    #[error("the gateway ended unasked; this is a bug, please report what the log says")]
    Gateway,
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The hub's own connection string is damaged.
    #[error("the hub's notes are damaged: {0}")]
    Notes(#[from] ConnectionStringError),
    /// The hub cannot be watched, or not any more.
    #[error("the demo lost the hub: {0}")]
    Hub(String),
    /// It ran until its end, and this was not seen.
    #[error("the demo ended without everything that it shows:\n  {}", .0.join("\n  "))]
    Missing(Vec<String>),
    /// The system refused something.
    #[error("this system refuses what the demo needs: {0}")]
    System(#[from] io::Error),
}

impl From<ServiceError> for DemoError {
    fn from(error: ServiceError) -> Self {
        Self::Hub(error.to_string())
    }
}

/// Runs the demo until it is told to stop, or until `options` end it.
///
/// # Errors
/// What kept it from starting; or, where `options` ended it, what was missing.
pub fn run(config: Config, options: Options, shutdown: &Shutdown) -> Result<(), DemoError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let state_is_named = config.state.directory.is_some();
    let state = StateDir::locate(config.state.directory.as_deref())?;
    match runtime.block_on(start(config, state, state_is_named, options, shutdown)) {
        // Whoever read our output has seen enough (`fieldgate demo | head`).
        Err(DemoError::System(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        ended => ended,
    }
}

/// Starts the gateway, shows what happens, stops the gateway.
async fn start(
    config: Config,
    state: StateDir,
    state_is_named: bool,
    options: Options,
    shutdown: &Shutdown,
) -> Result<(), DemoError> {
    let (mut gateway, started) = Gateway::start(config)?;
    let ready = async {
        match started.await {
            Ok(started) => {
                started.health.ready().await;
                started.listening
            }
            // It ended first, and `failed` says why.
            Err(_) => std::future::pending().await,
        }
    };
    let listening = tokio::select! {
        listening = ready => listening,
        error = gateway.failed() => return Err(error),
        () = shutdown.draining() => return gateway.stop(shutdown).await,
    };
    let shown = async {
        let hub = ConnectionString::parse(state.service_connection_string()?.expose())?;
        let program = std::env::args().next().unwrap_or_else(|| "fieldgate".into());
        say(&intro::text(&Places {
            program: &program,
            state: state.path(),
            state_is_named,
            hub: (&hub.host, hub.port.unwrap_or_default()),
            listening: &listening,
        }))?;
        let (mut crew, mut view) = begin(&state, &hub, &listening).await?;
        let ended = view.until_end(&mut gateway, options, shutdown).await?;
        view.until_left(&mut crew, shutdown).await?;
        view.judge(ended, options)
    };
    let shown = shown.await;
    // Whatever happened, the gateway is stopped in order; the first error is the one that counts.
    let stopped = match &shown {
        Err(DemoError::App(_) | DemoError::Gateway) => Ok(()),
        _ => gateway.stop(shutdown).await,
    };
    shown.and(stopped)
}

/// What made the show end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Somebody asked for it.
    Asked,
    /// It was long enough, or everything was seen.
    Itself,
}

/// Those that do something: the devices, and the service that sends commands.
struct Crew {
    devices: JoinSet<()>,
    stop_devices: Trigger,
    sender: JoinHandle<Service>,
    stop_sender: Trigger,
}

/// Attaches the watcher, then starts what it is to see.
async fn begin(
    state: &StateDir,
    hub: &ConnectionString,
    listening: &Listening,
) -> Result<(Crew, View), DemoError> {
    let mut service = Service::connect(state).await?;
    let log = Log { group: DEFAULT_GROUP, partition: None, from: Position::Now };
    let events = Readers::attach(&mut service, log).await?.follow();

    let (teller, notes) = Teller::new(AHEAD);
    let (stop_devices, devices_stop) = shutdown::channel();
    let (stop_sender, sender_stop) = shutdown::channel();
    let began = Instant::now();
    let mut devices = JoinSet::new();
    let mut targets = Vec::new();
    for (place, plan) in (1_u32..).zip(&FLEET) {
        let Some(address) = intro::reachable(listening, plan.speaks.protocol()) else { continue };
        let id = DeviceId::new(plan.id).map_err(|error| DemoError::Hub(error.to_string()))?;
        // Evenly over the period, so that one line can be read after the other.
        let first = began + PERIOD * place / u32::try_from(FLEET.len()).unwrap_or(u32::MAX);
        let device = Device::new(plan, address, first, devices_stop.clone(), teller.clone());
        let credential = Credential::new(hub, &id);
        if let Some(text) = plan.command {
            targets.push(Target { plan, id, text, listening: device.listening() });
        }
        devices.spawn(device.live(credential));
    }
    let sender = tokio::spawn(sender::run(service, targets, teller, sender_stop));
    let tally = Tally::new(|protocol| intro::reachable(listening, protocol).is_some());
    let crew = Crew { devices, stop_devices, sender, stop_sender };
    Ok((crew, View { screen: Screen::new(), began, tally, notes, events }))
}

/// What is seen of them, and of the hub.
struct View {
    screen: Screen,
    began: Instant,
    tally: Tally,
    notes: mpsc::Receiver<Note>,
    events: mpsc::Receiver<Result<Event, ServiceError>>,
}

impl View {
    /// Shows the next thing that happens. Cancel safe.
    async fn next(&mut self) -> Result<(), DemoError> {
        tokio::select! {
            Some(note) = self.notes.recv() => self.note(&note),
            event = self.events.recv() => {
                let event = event.ok_or_else(|| DemoError::Hub("it closed the connection".into()))??;
                self.tally.event(event.device());
                self.show(&Line::of_event(&event))
            }
        }
    }

    fn note(&mut self, note: &Note) -> Result<(), DemoError> {
        self.tally.note(note);
        self.show(&Line::of_note(note))
    }

    fn show(&self, line: &Line) -> Result<(), DemoError> {
        Ok(self.screen.show(self.began.elapsed(), line)?)
    }

    async fn until_end(
        &mut self,
        gateway: &mut Gateway,
        options: Options,
        shutdown: &Shutdown,
    ) -> Result<End, DemoError> {
        let mut over = pin!(async {
            match options.duration {
                Some(duration) => tokio::time::sleep(duration).await,
                None => std::future::pending().await,
            }
        });
        while !options.messages.is_some_and(|count| self.tally.missing(count.get()).is_empty()) {
            tokio::select! {
                shown = self.next() => shown?,
                () = &mut over => break,
                () = shutdown.draining() => return Ok(End::Asked),
                error = gateway.failed() => return Err(error),
            }
        }
        Ok(End::Itself)
    }

    /// Lets everybody finish what is under way, in the order in which they need each other.
    async fn until_left(&mut self, crew: &mut Crew, shutdown: &Shutdown) -> Result<(), DemoError> {
        crew.stop_sender.drain();
        let service = self.until(&mut crew.sender, shutdown).await?;
        crew.stop_devices.drain();
        self.until(async { while crew.devices.join_next().await.is_some() {} }, shutdown).await?;
        while let Ok(note) = self.notes.try_recv() {
            self.note(&note)?;
        }
        // What the devices were told to be accepted is in the hub's log, and on its way here.
        let mut patience = pin!(patience(shutdown));
        while !self.tally.is_settled() {
            tokio::select! {
                shown = self.next() => shown?,
                () = &mut patience => break,
            }
        }
        if let Some(Ok(service)) = service {
            service.close().await;
        }
        Ok(())
    }

    /// Goes on showing until `done`, whose result it gives, or until the patience for it is over.
    async fn until<T>(
        &mut self,
        done: impl Future<Output = T>,
        shutdown: &Shutdown,
    ) -> Result<Option<T>, DemoError> {
        let (mut done, mut patience) = (pin!(done), pin!(patience(shutdown)));
        loop {
            tokio::select! {
                shown = self.next() => shown?,
                result = &mut done => return Ok(Some(result)),
                () = &mut patience => return Ok(None),
            }
        }
    }

    fn judge(&self, end: End, options: Options) -> Result<(), DemoError> {
        say(&format!("\n{}", self.tally.summary(self.began.elapsed()).trim_end()))?;
        let missing = self.tally.missing(options.messages.map_or(1, NonZeroU64::get));
        if end == End::Asked || missing.is_empty() { Ok(()) } else { Err(DemoError::Missing(missing)) }
    }
}

/// How long a step of leaving is waited for; not at all once the user is in a hurry.
async fn patience(shutdown: &Shutdown) {
    tokio::select! {
        () = tokio::time::sleep(LEAVE_TIME_OUT) => {}
        () = shutdown.aborting() => {}
    }
}
