//! The hub on the wire: AMQP 1.0 over TLS, directly or in a WebSocket, on a thread of its own.
//!
//! Everything that the hub knows lives on that thread, behind one `RefCell`; a task for each connection and one
//! for time are all that touch it.

mod attach;
mod connection;
mod lent;
mod links;
mod peer;
mod send;
mod shared;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fieldgate_amqp::connection::ConnectionConfig;
use ring::rand::SecureRandom as _;
use rustls::ServerConfig;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::LocalSet;

use self::peer::connection_config;
use self::shared::Shared;
use super::state::HubState;
use super::telemetry::{
    AcceptError, ConnectionClosed, ConnectionNumber, ConnectionOpened, ConnectionRefused, HubStarted,
    HubStopped,
};
use crate::config::HubConfig;
use crate::sas::SharedKey;
use crate::shutdown::{self, Shutdown, Trigger};
use crate::telemetry::emit;
use crate::tls::Acceptor;

/// How long a client may take for TLS, and for the WebSocket where it asks for one.
const HANDSHAKE_TIME_OUT: Duration = Duration::from_secs(10);
/// How long accepting pauses when the system has no descriptor or memory left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long connections may take to say goodbye when the hub stops.
const DRAIN_TIME: Duration = Duration::from_secs(3);
/// How exact expiries and locks are.
const TICK: Duration = Duration::from_millis(500);

/// What a hub is made of.
pub struct HubSetup {
    /// The section `[hub]`.
    pub config: HubConfig,
    /// The names that tokens may be for, besides the configured one.
    pub hosts: Vec<String>,
    /// The key of the policy `iothubowner`; all other keys follow from it.
    pub owner: SharedKey,
    /// The hub's certificate.
    pub tls: Arc<ServerConfig>,
    /// Bound and listening.
    pub listeners: Vec<TcpListener>,
    /// Only its abort is heard: the hub goes when it is told to, after the gateway that needs it.
    pub shutdown: Shutdown,
}

/// Why the hub does not run.
#[derive(Debug, Error)]
pub enum HubError {
    /// The system refused a thread, a runtime, a socket or randomness.
    #[error("the embedded hub cannot start: {0}")]
    System(#[from] io::Error),
    /// It panicked: a bug.
    #[error("the embedded hub failed; this is a bug, please report what the log says")]
    Failed,
}

/// A hub that runs.
#[derive(Debug)]
pub struct HubHandle {
    stop: Trigger,
    thread: JoinHandle<io::Result<()>>,
}

impl HubHandle {
    /// Stops the hub: it accepts nobody any more, closes its connections with their protocol's goodbye, for at most
    /// three seconds, and is gone when this returns.
    ///
    /// # Errors
    /// What the hub died of, if it had before.
    pub fn stop(self) -> Result<(), HubError> {
        self.stop.drain();
        self.thread.join().map_err(|_| HubError::Failed)?.map_err(HubError::from)
    }

    /// Whether the hub's thread is alive.
    #[must_use]
    pub fn is_running(&self) -> bool {
        !self.thread.is_finished()
    }
}

/// Starts a hub on a thread of its own. It accepts connections when this returns.
///
/// # Errors
/// When the system refuses what it needs.
pub fn start(setup: HubSetup) -> Result<HubHandle, HubError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopping) = shutdown::channel();
    let thread = thread::Builder::new().name("hub".into()).spawn(move || {
        let served = LocalSet::new().block_on(&runtime, run(setup, stopping));
        // What is left of tasks goes with the runtime, after all that they might still wake.
        drop(runtime);
        served
    })?;
    Ok(HubHandle { stop, thread })
}

/// What all of the hub's tasks need.
struct Hub {
    shared: Rc<Shared>,
    config: Arc<ConnectionConfig>,
    acceptor: Acceptor,
    max_connections: usize,
    open: Cell<usize>,
    /// Told whenever a connection has ended.
    emptied: Notify,
    accepted: Cell<u64>,
    stopping: Shutdown,
    aborting: Shutdown,
}

async fn run(setup: HubSetup, stopping: Shutdown) -> io::Result<()> {
    let HubSetup { config, mut hosts, owner, tls, listeners, shutdown: aborting } = setup;
    hosts.push(config.name.clone());
    let hub = Rc::new(Hub {
        shared: Rc::new(Shared::new(HubState::new(&config, &hosts, owner))),
        config: Arc::new(connection_config(container_id()?)),
        acceptor: Acceptor::hub(tls),
        max_connections: config.max_connections.get(),
        open: Cell::new(0),
        emptied: Notify::new(),
        accepted: Cell::new(0),
        stopping,
        aborting,
    });
    let addresses: Vec<SocketAddr> =
        listeners.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?;
    for listener in listeners {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        tokio::task::spawn_local(accept(Rc::clone(&hub), listener));
    }
    tokio::task::spawn_local(keep_time(Rc::clone(&hub.shared)));
    emit(HubStarted { name: &config.name, addresses: &addresses });

    hub.stopping.draining().await;
    let goodbye = async {
        while hub.open.get() > 0 {
            hub.emptied.notified().await;
        }
    };
    tokio::select! {
        () = goodbye => {}
        () = tokio::time::sleep(DRAIN_TIME) => {}
        () = hub.aborting.aborting() => {}
    }
    emit(HubStopped);
    Ok(())
}

/// A name that tells this run of the hub from every other.
fn container_id() -> io::Result<String> {
    let mut bytes = [0; 16];
    ring::rand::SystemRandom::new().fill(&mut bytes).map_err(|_| io::Error::other("no randomness"))?;
    Ok(bytes.iter().fold(String::from("fieldgate-hub_"), |text, byte| text + &format!("{byte:02x}")))
}

/// Accepts connections of one listener until the stop.
async fn accept(hub: Rc<Hub>, listener: tokio::net::TcpListener) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = hub.stopping.draining() => return,
        };
        match accepted {
            Ok((stream, peer)) if hub.open.get() < hub.max_connections => {
                hub.open.set(hub.open.get() + 1);
                hub.accepted.set(hub.accepted.get() + 1);
                let number = ConnectionNumber(hub.accepted.get());
                tokio::task::spawn_local(serve(Admission(Rc::clone(&hub)), stream, peer, number));
            }
            Ok((_, peer)) => emit(ConnectionRefused { peer, limit: hub.max_connections }),
            Err(error) => {
                // Out of descriptors, mostly: a pause lets others close theirs.
                emit(AcceptError { peer: None, error: &error });
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A connection that counts.
struct Admission(Rc<Hub>);

impl Drop for Admission {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
        self.0.emptied.notify_one();
    }
}

async fn serve(admission: Admission, stream: TcpStream, peer: SocketAddr, number: ConnectionNumber) {
    let hub = &admission.0;
    // Frames are gathered by turns already; waiting for more would only add delay. Where it cannot be set, the socket
    // is gone already.
    let _ = stream.set_nodelay(true);
    let accepted = tokio::select! {
        accepted = hub.acceptor.accept(stream, HANDSHAKE_TIME_OUT) => accepted,
        () = hub.stopping.draining() => return,
    };
    let stream = match accepted {
        Ok(stream) => stream,
        Err(error) => return emit(AcceptError { peer: Some(peer), error: &error }),
    };
    emit(ConnectionOpened { connection: number, peer });
    let (config, shared, stopping) = (Arc::clone(&hub.config), Rc::clone(&hub.shared), hub.stopping.clone());
    let reason = connection::serve(stream, number, config, shared, stopping).await;
    emit(ConnectionClosed { connection: number, reason });
}

/// Lets time act on the queues: often while anything is in them, else only when something has come.
async fn keep_time(shared: Rc<Shared>) {
    loop {
        let now = Shared::now();
        shared.elapse(now);
        let (idle, due) = {
            let state = shared.state.borrow();
            (state.commands.is_empty() && state.feedback.is_empty(), state.feedback.due())
        };
        let tick = if idle { None } else { Some(now.instant + TICK) };
        match [tick, due].into_iter().flatten().min() {
            Some(next) => {
                tokio::select! {
                    () = tokio::time::sleep_until(next.max(Instant::now()).into()) => {}
                    () = shared.changed.notified() => {}
                }
            }
            None => shared.changed.notified().await,
        }
    }
}
