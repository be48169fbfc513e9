//! Puts the parts together: the state directory, the embedded hub, the listeners, a worker for
//! each core, the console; and takes them apart again in order.

use std::collections::BTreeSet;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use fieldgate_mappings::rules::RuleSet;
use thiserror::Error;
use tokio::sync::Notify;

use crate::adapters::Directory;
use crate::adapters::mqtt::SessionStore;
use crate::config::{Config, ConfigError, MappingsError, Target};
use crate::console::{self, Component, Health, Status};
use crate::control;
use crate::devices::{self, Gate, GateSettings, Known, LimitSettings, Registry};
use crate::hub::{self, HubError as EmbeddedHubError, HubHandle, HubSetup};
use crate::listener::{self, ListenError};
use crate::sas::SharedKey;
use crate::shutdown::Shutdown;
use crate::spool::{self, Running, Spool, SpoolError};
use crate::state::{LockedState, StateDir, StateError};
use crate::tls::{self, Acceptor, Follow, TlsError};
use crate::upstream::{Embedded, Hub, HubError, MappedHubs};
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
    /// A mapping file cannot be read, or is wrong.
    #[error(transparent)]
    Mappings(#[from] MappingsError),
    /// The device registry cannot be read, or is wrong.
    #[error(transparent)]
    Devices(#[from] ConfigError),
    /// The policy key in the state directory is damaged.
    #[error("the file policy-key in the state directory is not base64; remove it to have a new key made")]
    PolicyKey,
    /// A hub that nobody can reach.
    #[error("[hub] listen names no address, and the hub is to run; write `listen = \"127.0.0.1:5671\"`")]
    HubWithoutListener,
    /// The embedded hub is switched off and no other is named.
    #[error(
        "there is no hub to connect to: [hub] enabled is false, and [upstream] names none; \
         write `connection_string_file` or `url` in [upstream], or leave `enabled` out"
    )]
    NoHub,
    /// Messages cannot be kept on disk.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The system refused a thread, a timer or a socket.
    #[error("the system refused what the program needs: {0}")]
    System(#[from] io::Error),
    /// A worker panicked: a bug, which ends the process rather than half of its devices.
    #[error("a worker of the gateway failed; this is a bug, please report what the log says")]
    Worker,
}

/// A gateway that has just started, as others in the process see it.
#[derive(Debug)]
pub struct Started {
    /// How its parts are; it is on its way up until [`Health::ready`].
    pub health: Arc<Health>,
    /// Where it listens.
    pub listening: Listening,
}

/// The addresses that are listened on, with the ports that the system chose where the configuration says 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listening {
    /// AMQP 1.0 devices.
    pub amqp: Vec<SocketAddr>,
    /// MQTT devices.
    pub mqtt: Vec<SocketAddr>,
    /// CoAP devices, over UDP.
    pub coap: Vec<SocketAddr>,
    /// HTTP devices.
    pub http: Vec<SocketAddr>,
    /// Metrics and health.
    pub admin: Vec<SocketAddr>,
}

/// Runs the gateway, and the embedded hub where the configuration has it, until the stop.
///
/// # Errors
/// What kept it from starting, or made it stop.
pub fn run(config: Config, shutdown: &Shutdown) -> Result<(), AppError> {
    run_and_tell(config, shutdown, |_| {})
}

/// As [`run`]; `tell` hears of the start, once everything listens.
///
/// # Errors
/// As [`run`].
pub fn run_and_tell(config: Config, shutdown: &Shutdown, tell: impl FnOnce(Started)) -> Result<(), AppError> {
    let config = Arc::new(config);
    let health = Arc::new(Health::default());
    // Until every worker has reached the hub; without this a hub that is up would be all there is to see.
    if config.maps() {
        for worker in 0..config.runtime.workers().get() {
            health.set_upstream(worker, Status::Starting);
        }
    }
    for connector in &config.connectors {
        health.add_connector(&connector.name);
    }
    // Systems give 1,024 descriptors unless asked, and every device is one. What the system grants is enough: the
    // listeners bear having none left.
    let descriptors = rlimit::increase_nofile_limit(u64::MAX).ok();
    tracing::debug!(?descriptors, "open files");
    // All that can be refused is looked at before anything starts.
    let rules = Arc::new(config.mappings.load()?);
    let registry = registry(&config, &rules)?;
    let hub = match config.runs_hub() {
        true => Some(EmbeddedHub::start(&config, &health, shutdown)?),
        false => None,
    };
    let reached = hub.as_ref().map(|hub| &hub.reached);
    if config.upstream.target == Target::Embedded && reached.is_none() && config.needs_upstream() {
        return Err(AppError::NoHub);
    }
    let hubs = Hubs::new(&config, reached, &registry)?;
    let gate = Gate::new(Arc::clone(&registry), gate_settings(&config, &hubs));
    let ended = Arc::new(Notify::new());
    // What it holds is known before any device is served, so that nothing overtakes it.
    let spool = start_spool(&config, &rules, &hubs, &health, shutdown, &ended)?;
    let directory = Arc::new(Directory::default());
    let setups =
        setups(&config, &rules, &hubs, &gate, &health, spool.as_ref().map(Running::spool), &directory)?;
    let files = hubs.files().chain(setups.iter().take(1).flat_map(Setup::files)).collect();
    let console = console::bind(&config.admin)?;
    let listening = listening(&setups, &console)?;
    tracing::info!(hub = %hubs.addresses(), workers = setups.len(), "gateway started");

    // Nothing but the system can keep the gateway from its start any more: what is taken is used.
    let sessions = SessionStore::open(&config);
    if let Some(sessions) = &sessions {
        sessions.restore(&directory, Instant::now());
    }
    let workers: Vec<_> = setups
        .into_iter()
        .map(|setup| {
            let (shutdown, ended) = (shutdown.clone(), Tell(Arc::clone(&ended)));
            thread::Builder::new().name(format!("worker-{}", setup.index)).spawn(move || {
                let _ended = ended;
                worker::run(setup, &shutdown)
            })
        })
        .collect::<Result<_, _>>()?;
    let watching = watch(registry, &health, shutdown)?;
    tell(Started { health: Arc::clone(&health), listening });
    let mut router = control::Router::default();
    if let Some(spool) = &spool {
        spool::add_routes(&mut router, spool.spool());
    }
    let until = async {
        tokio::select! {
            () = shutdown.draining() => {}
            () = ended.notified() => {}
            () = serve_tools(&config, router) => {}
            () = tls::follow(files) => {}
        }
    };
    serve_console(console, &health, until)?;
    if !shutdown.is_draining() {
        // Half a gateway would look alive to whoever watches the process.
        return Err(AppError::Worker);
    }

    let mut outcome = Ok(());
    for worker in workers {
        outcome = match worker.join() {
            Ok(Ok(())) => outcome,
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(AppError::Worker),
        };
    }
    if let Some(sessions) = sessions {
        sessions.store(&directory, Instant::now());
    }
    if watching.join().is_err() {
        outcome = Err(AppError::Worker);
    }
    // Nobody hands it anything any more.
    if let Some(spool) = spool {
        spool.stop()?;
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
pub fn run_hub(config: &Config, shutdown: &Shutdown) -> Result<(), AppError> {
    let health = Arc::new(Health::default());
    let hub = EmbeddedHub::start(config, &health, shutdown)?;
    let console = console::bind(&config.admin)?;
    serve_console(console, &health, shutdown.draining())?;
    hub.stop()?;
    tracing::info!("stopped");
    Ok(())
}

/// The hub of this process, and the state directory that it holds.
struct EmbeddedHub {
    handle: HubHandle,
    reached: Embedded,
    health: Arc<Health>,
    /// Held as long as the hub runs.
    _state: LockedState,
}

impl EmbeddedHub {
    fn start(config: &Config, health: &Arc<Health>, shutdown: &Shutdown) -> Result<Self, AppError> {
        let state = StateDir::locate(config.state.directory.as_deref())?.lock()?;
        let identity = state.hub_identity(&config.hub.name)?;
        let owner = SharedKey::from_base64(state.policy_key()?.expose()).map_err(|_| AppError::PolicyKey)?;
        let mut listeners = Vec::new();
        for address in &config.hub.listen {
            listeners.extend(listener::tcp("hub", *address, NonZeroUsize::MIN)?);
        }
        let Some(port) = listeners.first().map(|listener| listener.local_addr()).transpose()? else {
            return Err(AppError::HubWithoutListener);
        };
        let port = port.port();
        let setup = HubSetup {
            config: config.hub.clone(),
            hosts: StateDir::hub_names(&config.hub.name),
            owner,
            tls: tls::server(identity)?,
            listeners,
            shutdown: shutdown.clone(),
        };
        let handle = hub::start(setup)?;
        let connection_string = state.write_service_connection_string(port)?;
        health.set(Component::Hub, Status::Up);
        let reached = Embedded { ca_file: state.ca_file(), connection_string };
        Ok(Self { handle, reached, health: Arc::clone(health), _state: state })
    }

    fn stop(self) -> Result<(), AppError> {
        self.health.set(Component::Hub, Status::Draining);
        Ok(self.handle.stop()?)
    }
}

/// The hubs of the configuration, which all workers share.
struct Hubs {
    /// Of mapped messages.
    mapped: Option<Arc<MappedHubs>>,
    /// Of the connectors, in their order.
    connectors: Arc<[Arc<Hub>]>,
}

impl Hubs {
    fn new(config: &Config, embedded: Option<&Embedded>, registry: &Arc<Registry>) -> Result<Self, HubError> {
        let hub = |connector| Hub::for_connector(connector, config, embedded).map(Arc::new);
        let connectors: Arc<[_]> = config.connectors.iter().map(hub).collect::<Result<_, _>>()?;
        let mapped = match config.maps() {
            true => {
                let upstream = Arc::new(Hub::new(config, embedded)?);
                Some(Arc::new(MappedHubs::new(config, upstream, &connectors, Arc::clone(registry) as _)))
            }
            false => None,
        };
        Ok(Self { mapped, connectors })
    }

    /// Their names.
    fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        let mapped = self.mapped.iter().flat_map(|mapped| mapped.names());
        mapped.chain(self.connectors.iter().map(|hub| hub.name()))
    }

    /// What follows its files.
    fn files(&self) -> impl Iterator<Item = Arc<dyn Follow>> {
        let mapped = self.mapped.iter().flat_map(|mapped| mapped.files());
        mapped.chain(self.connectors.iter().flat_map(|hub| hub.files()))
    }

    /// Where they are, for people; each once.
    fn addresses(&self) -> String {
        let mapped = self.mapped.iter().flat_map(|mapped| mapped.addresses());
        let all = mapped.chain(self.connectors.iter().map(|hub| hub.address()));
        let addresses: BTreeSet<String> = all.collect();
        addresses.into_iter().collect::<Vec<_>>().join(", ")
    }
}

/// The device registry, where there can be one.
fn registry(config: &Config, rules: &RuleSet) -> Result<Arc<Registry>, AppError> {
    match Registry::locate(config)? {
        Some(path) => Ok(Registry::load(&path, Known::of(config, rules))?),
        // Nothing says where it could be, so there is none.
        None => Ok(Registry::empty()),
    }
}

/// Whose devices' tokens are good here, and how often somebody may fail.
fn gate_settings(config: &Config, hubs: &Hubs) -> GateSettings {
    let mut hosts = config.devices.hosts.clone();
    hosts.extend(hubs.names().map(|name| name.to_string()));
    if config.runs_hub() {
        hosts.extend(StateDir::hub_names(&config.hub.name));
    }
    let limits = LimitSettings {
        per_device: config.devices.failures_per_device.get(),
        per_address: config.devices.failures_per_address.get(),
        longest: config.devices.longest_wait,
    };
    GateSettings { hosts, limits }
}

/// Has the registry's file watched until the stop, beside everything else: reading it takes its time.
fn watch(
    registry: Arc<Registry>,
    health: &Arc<Health>,
    shutdown: &Shutdown,
) -> io::Result<thread::JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let (health, shutdown) = (Arc::clone(health), shutdown.clone());
    thread::Builder::new()
        .name("devices".into())
        .spawn(move || runtime.block_on(devices::watch(registry, health, shutdown)))
}

/// Starts the spool, if a rule keeps messages on disk.
fn start_spool(
    config: &Arc<Config>,
    rules: &RuleSet,
    hubs: &Hubs,
    health: &Arc<Health>,
    shutdown: &Shutdown,
    ended: &Arc<Notify>,
) -> Result<Option<Running>, AppError> {
    let wanted = rules.needs_disk();
    let (true, Some(mapped)) = (wanted, &hubs.mapped) else { return Ok(None) };
    let directory = spool::directory(config)?;
    let setup = spool::Setup {
        index: config.runtime.workers().get(),
        config: Arc::clone(config),
        mapped: Arc::clone(mapped),
        health: Arc::clone(health),
        shutdown: shutdown.clone(),
        ended: Arc::clone(ended),
    };
    Ok(Some(Running::start(&directory, setup)?))
}

/// Binds every listener, a socket for each worker, and deals them out.
fn setups(
    config: &Arc<Config>,
    rules: &Arc<RuleSet>,
    hubs: &Hubs,
    gate: &Arc<Gate>,
    health: &Arc<Health>,
    spool: Option<&Spool>,
    directory: &Arc<Directory>,
) -> Result<Vec<Setup>, AppError> {
    let workers = config.runtime.workers();
    let mut setups: Vec<Setup> = (0..workers.get())
        .map(|index| Setup {
            index,
            config: Arc::clone(config),
            rules: Arc::clone(rules),
            mapped: hubs.mapped.clone(),
            hubs: Arc::clone(&hubs.connectors),
            spool: spool.cloned(),
            directory: Arc::clone(directory),
            gate: Arc::clone(gate),
            health: Arc::clone(health),
            amqp: Vec::new(),
            mqtt: Vec::new(),
            coap: Vec::new(),
            http: Vec::new(),
        })
        .collect();
    for listener in &config.listeners {
        let acceptor = Acceptor::new(listener)?;
        let sockets = listener::amqp(listener, workers)?;
        let sockets = sockets.into_iter().map(|socket| (socket, acceptor.clone()));
        setups.iter_mut().zip(sockets).for_each(|(setup, socket)| setup.amqp.push(socket));
        health.set(Component::Amqp, Status::Up);
    }
    for listener in &config.mqtt_listeners {
        let acceptor = Acceptor::mqtt(listener)?;
        let sockets = listener::mqtt(listener, workers)?;
        let sockets = sockets.into_iter().map(|socket| (socket, acceptor.clone()));
        setups.iter_mut().zip(sockets).for_each(|(setup, socket)| setup.mqtt.push(socket));
        health.set(Component::Mqtt, Status::Up);
    }
    for address in &config.coap.listen {
        let sockets = listener::udp("coap", *address, workers)?;
        setups.iter_mut().zip(sockets).for_each(|(setup, socket)| setup.coap.push(socket));
        health.set(Component::Coap, Status::Up);
    }
    for address in &config.http.listen {
        let sockets = listener::tcp("http", *address, workers)?;
        setups.iter_mut().zip(sockets).for_each(|(setup, socket)| setup.http.push(socket));
        health.set(Component::Http, Status::Up);
    }
    Ok(setups)
}

/// Where the sockets that were dealt out listen; every worker has one for each address.
fn listening(setups: &[Setup], console: &console::Bound) -> io::Result<Listening> {
    let Some(any) = setups.first() else { return Ok(Listening::default()) };
    Ok(Listening {
        amqp: any.amqp.iter().map(|(socket, _)| socket.local_addr()).collect::<Result<_, _>>()?,
        mqtt: any.mqtt.iter().map(|(socket, _)| socket.local_addr()).collect::<Result<_, _>>()?,
        coap: any.coap.iter().map(UdpSocket::local_addr).collect::<Result<_, _>>()?,
        http: any.http.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?,
        admin: console.addresses(),
    })
}

/// Serves metrics and health on the calling thread.
fn serve_console(
    bound: console::Bound,
    health: &Arc<Health>,
    until: impl Future<Output = ()>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(console::serve(bound, Arc::clone(health), until))
}

/// Serves the control socket on the calling thread, where there is something to control. Without it the gateway works,
/// and the tools do not.
async fn serve_tools(config: &Config, router: control::Router) {
    if !router.is_empty() {
        let state = StateDir::locate(config.state.directory.as_deref());
        match state.map_err(Into::into).and_then(|state| control::bind(&state)) {
            Ok(bound) => return control::serve(bound, router).await,
            Err(error) => tracing::warn!(%error, "there is no control socket"),
        }
    }
    std::future::pending().await
}

/// Tells that a thread has ended, however it did.
struct Tell(Arc<Notify>);

impl Drop for Tell {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}
