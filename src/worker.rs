//! A worker: one thread with its own listeners, its own devices and its own connection to the
//! hub. What belongs to one device never leaves its worker, so nothing here is locked.

use std::cell::Cell;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use fieldgate_mappings::rules::RuleSet;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::LocalSet;

use crate::adapters::amqp::{self, Routing};
use crate::adapters::{self, Directory};
use crate::config::Config;
use crate::console::Health;
use crate::devices::{Gate, Pass, Roster};
use crate::outbound::Outbound;
use crate::shutdown::Shutdown;
use crate::spool::Spool;
use crate::telemetry::{Protocol, emit};
use crate::tls::{Acceptor, Follow};
use crate::upstream::{Hub, MappedHubs, Upstream};

mod telemetry;

use telemetry::{AcceptError, ConnectionClosed, ConnectionOpened, ConnectionRefused};

/// A connection without a byte for this long is probed by the kernel.
const KEEPALIVE_TIME: Duration = Duration::from_secs(120);

/// How long accepting pauses when the system has no descriptor or memory left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Threads that look up the hub's name. Each AMQP device has a hub connection of its own, so a burst of devices asks
/// as often; with tokio's own bound it would have hundreds of threads.
const MAX_RESOLVERS: usize = 4;

/// What a worker is made of; built by the main thread and moved to the worker's own.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) index: usize,
    pub(crate) config: Arc<Config>,
    pub(crate) rules: Arc<RuleSet>,
    /// The hubs of mapped messages; absent where none are mapped.
    pub(crate) mapped: Option<Arc<MappedHubs>>,
    /// The hubs of the configuration's connectors, in their order.
    pub(crate) hubs: Arc<[Arc<Hub>]>,
    pub(crate) directory: Arc<Directory>,
    /// Who decides which device is let in.
    pub(crate) gate: Arc<Gate>,
    pub(crate) health: Arc<Health>,
    /// Where messages wait on the disk; absent where no rule asks for it.
    pub(crate) spool: Option<Spool>,
    /// The configuration's listeners, in their order, and what stands between their sockets and AMQP or MQTT.
    pub(crate) amqp: Vec<(TcpListener, Acceptor)>,
    pub(crate) mqtt: Vec<(TcpListener, Acceptor)>,
    pub(crate) coap: Vec<UdpSocket>,
    pub(crate) http: Vec<TcpListener>,
}

impl Setup {
    /// What follows its files; all workers have the same.
    pub(crate) fn files(&self) -> impl Iterator<Item = Arc<dyn Follow>> {
        self.amqp.iter().chain(&self.mqtt).filter_map(|(_, acceptor)| acceptor.files())
    }
}

/// What the tasks of a worker share.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) config: Arc<Config>,
    pub(crate) rules: Arc<RuleSet>,
    /// Which client id is connected where, over all workers.
    pub(crate) directory: Arc<Directory>,
    /// The devices that are in.
    pub(crate) roster: Rc<Roster>,
    /// The way of what devices say.
    pub(crate) outbound: Outbound,
    /// The way of native AMQP devices.
    pub(crate) routing: Rc<Routing>,
    /// What all MQTT connections share.
    pub(crate) mqtt: Arc<fieldgate_mqtt::Config>,
    pub(crate) shutdown: Shutdown,
    open: [Cell<usize>; 4],
    empty: Notify,
}

/// A device connection that counts; dropped when it ends.
pub(crate) struct Admission {
    worker: Rc<Worker>,
    protocol: Protocol,
}

impl Drop for Admission {
    fn drop(&mut self) {
        let open = &self.worker.open[self.protocol as usize];
        open.set(open.get() - 1);
        emit(ConnectionClosed { protocol: self.protocol });
        if self.worker.open.iter().all(|open| open.get() == 0) {
            self.worker.empty.notify_waiters();
        }
    }
}

impl Worker {
    /// Admits one more connection, or says that there are as many as allowed.
    fn admit(self: &Rc<Self>, protocol: Protocol, limit: usize) -> Option<Admission> {
        let open = &self.open[protocol as usize];
        if open.get() >= limit {
            return None;
        }
        open.set(open.get() + 1);
        Some(Admission { worker: Rc::clone(self), protocol })
    }

    /// A device was let in. Where it brought a token that its hub is to see, that is kept for it.
    pub(crate) fn let_in(&self, pass: &Pass) {
        if let Some(token) = pass.token() {
            self.outbound.upstream().present(&pass.device, token);
        }
    }

    /// Waits until no device connection is left.
    async fn drained(&self) {
        while self.open.iter().any(|open| open.get() > 0) {
            self.empty.notified().await;
        }
    }
}

/// Runs a worker until the stop; returns when its connections are closed or the time for that is over.
///
/// # Errors
/// When the thread's runtime or a listener cannot be made.
pub(crate) fn run(setup: Setup, shutdown: &Shutdown) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(MAX_RESOLVERS)
        .build()?;
    LocalSet::new().block_on(&runtime, serve(setup, shutdown.clone()))
}

async fn serve(setup: Setup, shutdown: Shutdown) -> io::Result<()> {
    let Setup { index, config, rules, mapped, hubs, directory, gate, health, spool, amqp, mqtt, coap, http } =
        setup;
    let roster = Roster::new(&gate);
    let keeping = tokio::task::spawn_local(Rc::clone(&roster).keep());
    let routing = Routing::start(index, &config, &hubs, &gate, Arc::clone(&health), shutdown.clone());
    let (upstream, connection) = match mapped {
        Some(mapped) => {
            let (upstream, connection) = Upstream::start(index, &mapped, health, shutdown.clone());
            (upstream, Some(connection))
        }
        None => (Upstream::unused(), None),
    };
    let (outbound, sending) = Outbound::start(upstream, spool, shutdown.clone());
    let worker = Rc::new(Worker {
        mqtt: adapters::mqtt::machine_config(&config.mqtt),
        config,
        rules,
        directory,
        roster,
        outbound,
        routing,
        shutdown: shutdown.clone(),
        open: Default::default(),
        empty: Notify::new(),
    });
    let workers = worker.config.runtime.workers().get();
    let share = |limit: std::num::NonZeroUsize| limit.get().div_ceil(workers);

    for (settings, (socket, acceptor)) in worker.config.listeners.iter().zip(amqp) {
        let limit = share(settings.limits.max_connections);
        let listener = Rc::new(amqp::Listener::new(settings, acceptor));
        let serve = move |stream, peer, worker| amqp::serve(stream, peer, Rc::clone(&listener), worker);
        accept(&worker, Protocol::Amqp, limit, socket, serve)?;
    }
    for (settings, (socket, acceptor)) in worker.config.mqtt_listeners.iter().zip(mqtt) {
        let limit = share(settings.max_connections);
        let listener = Rc::new(adapters::mqtt::Listener::new(settings, acceptor));
        let serve =
            move |stream, peer, worker| adapters::mqtt::serve(stream, peer, Rc::clone(&listener), worker);
        accept(&worker, Protocol::Mqtt, limit, socket, serve)?;
    }
    for listener in http {
        let limit = share(worker.config.http.max_connections);
        accept(&worker, Protocol::Http, limit, listener, adapters::http::serve)?;
    }
    for socket in coap {
        let admission = worker.admit(Protocol::Coap, usize::MAX);
        let socket = tokio::net::UdpSocket::from_std(socket)?;
        let server = adapters::coap::serve(socket, Rc::clone(&worker));
        tokio::task::spawn_local(async move {
            let _admission = admission;
            server.await;
        });
    }

    shutdown.draining().await;
    tokio::select! {
        () = worker.drained() => {}
        () = shutdown.aborting() => {}
    }
    keeping.abort();
    // The devices are gone. What nobody waits for has its outcome soon: from the hub, or from the disk.
    worker.outbound.close();
    if let Some(sending) = sending {
        tokio::select! {
            // An error is a panic, which is counted and logged where it happens.
            _ = sending => {}
            () = shutdown.aborting() => worker.outbound.abandon(),
        }
    }
    // The hubs may be told goodbye.
    worker.outbound.upstream().close();
    let closed = async {
        worker.routing.closed().await;
        if let Some(connection) = connection {
            // An error is a panic, which is counted and logged where it happens.
            let _ = connection.await;
        }
    };
    tokio::select! {
        () = closed => {}
        () = shutdown.aborting() => {}
    }
    Ok(())
}

/// Accepts connections of one listener until the stop, a task for each.
fn accept<F, Fut>(
    worker: &Rc<Worker>,
    protocol: Protocol,
    limit: usize,
    listener: TcpListener,
    serve: F,
) -> io::Result<()>
where
    F: Fn(TcpStream, SocketAddr, Rc<Worker>) -> Fut + 'static,
    Fut: Future<Output = ()> + 'static,
{
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let worker = Rc::clone(worker);
    tokio::task::spawn_local(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = worker.shutdown.draining() => return,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, mostly: a pause lets others close theirs.
                    emit(AcceptError { protocol, error });
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(admission) = worker.admit(protocol, limit) else {
                emit(ConnectionRefused { protocol, peer, limit });
                continue;
            };
            // Machines gather what they say in turns: waiting for more would only add delay.
            // A device that is gone without a word, and that its protocol lets be silent, is found by the kernel.
            let probing = TcpKeepalive::new().with_time(KEEPALIVE_TIME);
            if stream.set_nodelay(true).and(SockRef::from(&stream).set_tcp_keepalive(&probing)).is_err() {
                continue;
            }
            emit(ConnectionOpened { protocol, peer });
            let served = serve(stream, peer, Rc::clone(&worker));
            tokio::task::spawn_local(async move {
                let _admission = admission;
                served.await;
            });
        }
    });
    Ok(())
}
