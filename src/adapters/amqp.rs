//! Native AMQP devices, each with a hub connection of its own: the device opens, the hub is
//! opened with the same words, the hub's answer is the device's, and from then on everything
//! passes through a [`Tunnel`].
//!
//! Container-id, capabilities and properties of an `open` go through as they came; frame size,
//! channels, idle time-out and the host that is asked for belong to each side.

#[cfg(test)]
mod pressure;

use std::future::{Future as _, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use fieldgate_amqp::connection::{ClientSecurity, CloseReason, Connection, ConnectionConfig, Event};
use fieldgate_amqp::error::{AmqpError, Condition};
use fieldgate_amqp::performative::{Open, Patch};
use fieldgate_amqp::sasl::{Mechanism, SaslCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use crate::config::{self, Config};
use crate::router::{Authorise, Policy, Side, Tunnel};
use crate::shutdown::Shutdown;
use crate::telemetry::emit;
use crate::tls::Stream;
use crate::upstream::ConnectError;
use crate::wire::{Turn, Wire};
use crate::worker::Worker;

use super::telemetry::{RouteClosed, RouteOpenError, RouteOpened};

/// While this much waits to be written on one side, the other side is not read.
const MAX_BACKLOG_BYTES: usize = 1024 * 1024;

/// How long a side whose connection is over may take to read what is left for it.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// What devices authenticate with here: nothing. They prove themselves to the hub, by a token.
const MECHANISMS: [Mechanism; 2] = [Mechanism::Anonymous, Mechanism::Mssbcbs];

/// The field `hostname` of `open` (AMQP 1.0 2.7.1).
const HOSTNAME: usize = 1;

/// Serves one device until either side ends.
pub(crate) async fn serve(stream: TcpStream, peer: SocketAddr, worker: Rc<Worker>) {
    let config = Arc::new(device_config(&worker.config));
    let machine = Connection::server(Arc::clone(&config), &MECHANISMS, true, Instant::now());
    let mut device = End::new(stream, machine);
    let Some(open) = opened(&mut device, &worker).await else {
        emit(RouteClosed { peer, reason: device.reason });
        return device.wire.linger(device.machine, &worker.shutdown).await;
    };
    match connect(&worker, &open).await {
        Ok(hub) => {
            emit(RouteOpened { peer, container: open.container_id() });
            let tunnel = Tunnel::new(policy(&worker, &open));
            let mut route = Route { device, hub, tunnel };
            route.run(&worker.shutdown).await;
            let Route { device, hub, .. } = route;
            emit(RouteClosed { peer, reason: device.reason.or(hub.reason) });
            device.wire.linger(device.machine, &worker.shutdown).await;
        }
        Err(error) => {
            emit(RouteOpenError { peer, error: &error });
            device.machine.close(Some(lost("the gateway cannot reach the hub now; connect again later")));
            device.finish(&worker).await;
        }
    }
}

/// What the device's connections are told.
fn device_config(config: &Config) -> ConnectionConfig {
    let amqp = &config.amqp;
    ConnectionConfig {
        max_frame_bytes: amqp.max_frame_bytes,
        channel_max: amqp.max_sessions.get() - 1,
        max_links: usize::try_from(amqp.max_links.get()).unwrap_or(usize::MAX),
        handle_max: amqp.max_links.get() - 1,
        idle_time_out: Some(amqp.idle_time_out),
        open_time_out: amqp.open_time_out,
        max_backlog_bytes: 2 * MAX_BACKLOG_BYTES,
        ..ConnectionConfig::default()
    }
}

/// What the hub's connections are told: room for whatever the device side admits.
fn hub_config(config: &Config) -> ConnectionConfig {
    ConnectionConfig {
        idle_time_out: Some(config.upstream.idle_time_out),
        open_time_out: config.upstream.connect_time_out,
        ..device_config(config)
    }
}

/// A device's `open` as the hub is to see it: as it came, but for the host that is asked for. Frame size, channels
/// and idle time-out are the machine's own.
fn open_for_hub(open: &Open, hub: &str) -> Open {
    let patched = open.composite().patched(&[(HOSTNAME, Patch::Str(hub))]).and_then(Open::try_from);
    // A name in place of a name: what was an `open` stays one.
    patched.unwrap_or_else(|_| open.clone())
}

fn lost(what: &str) -> AmqpError {
    AmqpError::new(&Condition::ConnectionForced, Some(what))
}

fn policy(worker: &Worker, open: &Open) -> Policy {
    let amqp = &worker.config.amqp;
    let authorise = match amqp.authorise() {
        config::Authorise::Token => Authorise::Token,
        config::Authorise::Any => Authorise::Any,
    };
    Policy::new(authorise, amqp.link_routes.as_slice().into(), Arc::clone(worker.hub.name()), open.hostname())
}

/// The device's `open`, after SASL where it wants that; nothing if it goes away before.
async fn opened(device: &mut End<TcpStream>, worker: &Worker) -> Option<Open> {
    let mut stop = pin!(worker.shutdown.draining());
    poll_fn(|cx| {
        loop {
            while let Some(event) = device.machine.poll_event() {
                match event {
                    Event::SaslInit { .. } => device.machine.sasl_outcome(SaslCode::Ok),
                    Event::Opened(open) => return Poll::Ready(Some(open)),
                    Event::Closed(reason) => device.reason = Some(reason),
                    // Nothing else comes before `open` is answered.
                    _ => {}
                }
            }
            if device.finished || stop.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            if device.poll_turn(cx, true).is_pending() {
                return Poll::Pending;
            }
        }
    })
    .await
}

async fn connect(worker: &Worker, open: &Open) -> Result<End<Stream>, ConnectError> {
    let config = Arc::new(hub_config(&worker.config));
    let stream = worker.hub.connect().await?;
    let open = open_for_hub(open, worker.hub.name());
    // The connection itself proves nothing: the device's tokens do.
    let machine = Connection::client(config, ClientSecurity::Anonymous, open, Instant::now());
    Ok(End::new(stream, machine))
}

/// One side: stream and machine.
struct End<S> {
    wire: Wire<S>,
    machine: Connection,
    /// Nothing comes or goes any more.
    finished: bool,
    /// The other side has been told so.
    told: bool,
    /// The peer is read. Otherwise its silence is not its own.
    reading: bool,
    /// Why, as far as the machine knows.
    reason: Option<CloseReason>,
    /// Runs out when the last words were not taken.
    patience: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> End<S> {
    fn new(stream: S, machine: Connection) -> Self {
        Self {
            wire: Wire::new(stream),
            machine,
            finished: false,
            told: false,
            reading: true,
            reason: None,
            patience: None,
        }
    }

    fn backlog(&self) -> usize {
        self.wire.backlog() + self.machine.output_bytes()
    }

    /// Whether more may be said to this side.
    fn has_room(&self) -> bool {
        self.finished || self.backlog() < MAX_BACKLOG_BYTES
    }

    /// Ready when something happened on this side.
    fn poll_turn(&mut self, cx: &mut Context<'_>, read: bool) -> Poll<()> {
        if self.finished {
            return Poll::Pending;
        }
        let closed = self.machine.is_closed();
        let read = read && !closed && self.machine.wants_input();
        if read != std::mem::replace(&mut self.reading, read) {
            let now = Instant::now();
            if read { self.machine.resumed(now) } else { self.machine.paused(now) }
        }
        match self.wire.poll_turn(cx, &mut self.machine, read) {
            Poll::Ready(Ok(Turn::Progress)) => {}
            Poll::Ready(Ok(Turn::Ended) | Err(_)) => self.finished = true,
            Poll::Pending if closed && self.poll_last_words(cx).is_ready() => self.finished = true,
            Poll::Pending => return Poll::Pending,
        }
        Poll::Ready(())
    }

    /// Ready when the peer has taken all that was left for it, or has had its time: a machine that is closed has no
    /// timers any more.
    fn poll_last_words(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.backlog() == 0 {
            return Poll::Ready(());
        }
        self.patience.get_or_insert_with(|| Box::pin(sleep(LAST_WORDS))).as_mut().poll(cx)
    }

    /// Lets the machine say its last words; its own timers bound that.
    async fn finish(&mut self, worker: &Worker) {
        let mut stop = pin!(worker.shutdown.aborting());
        poll_fn(|cx| {
            while !self.finished && stop.as_mut().poll(cx).is_pending() {
                while self.machine.poll_event().is_some() {}
                if self.poll_turn(cx, true).is_pending() {
                    return Poll::Pending;
                }
            }
            Poll::Ready(())
        })
        .await;
    }
}

/// Both sides of a device.
struct Route<D, H> {
    device: End<D>,
    hub: End<H>,
    tunnel: Tunnel,
}

impl<D: AsyncRead + AsyncWrite + Unpin, H: AsyncRead + AsyncWrite + Unpin> Route<D, H> {
    async fn run(&mut self, shutdown: &Shutdown) {
        let mut stop = pin!(shutdown.draining());
        let mut abort = pin!(shutdown.aborting());
        let mut stopping = false;
        poll_fn(|cx| {
            if !stopping && stop.as_mut().poll(cx).is_ready() {
                stopping = true;
                self.device.machine.close(Some(lost("the gateway is stopping")));
                self.hub.machine.close(None);
            }
            if abort.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            loop {
                self.pump();
                if self.device.finished && self.hub.finished {
                    return Poll::Ready(());
                }
                let (from_device, from_hub) =
                    (self.may_pass(Side::Downstream), self.may_pass(Side::Upstream));
                let device = self.device.poll_turn(cx, from_device);
                let hub = self.hub.poll_turn(cx, from_hub);
                // What was written has perhaps made room for what the other side was not asked for.
                let held_back = !from_device && self.may_pass(Side::Downstream)
                    || !from_hub && self.may_pass(Side::Upstream);
                if device.is_pending() && hub.is_pending() && !held_back {
                    return Poll::Pending;
                }
            }
        })
        .await;
    }

    /// Whether what comes from a side may be passed on now. A peer that does not take what it is sent, be it the stream
    /// or a session's window that is shut, holds the other one back, and not the memory. Where both hold each other
    /// back by their windows, both are heard: only so can a window open.
    fn may_pass(&self, from: Side) -> bool {
        let Self { device, hub, tunnel } = self;
        let device_holds = tunnel.held_bytes(Side::Downstream, &device.machine) >= MAX_BACKLOG_BYTES;
        let hub_holds = tunnel.held_bytes(Side::Upstream, &hub.machine) >= MAX_BACKLOG_BYTES;
        match from {
            Side::Downstream => hub.has_room() && (!hub_holds || device_holds),
            Side::Upstream => device.has_room() && (!device_holds || hub_holds),
        }
    }

    /// Handles what came on both sides, as far as it may be passed on, until nothing follows from it.
    fn pump(&mut self) {
        loop {
            let mut quiet = true;
            let (from_device, from_hub) = (self.may_pass(Side::Downstream), self.may_pass(Side::Upstream));
            let Self { device, hub, tunnel } = self;
            let (mut device_silent, mut hub_silent) = (false, false);
            while from_device && hub.has_room() && !device_silent {
                match device.machine.poll_event() {
                    None => device_silent = true,
                    Some(event) => {
                        quiet = false;
                        match event {
                            Event::Closed(reason) => {
                                hub.machine.close(said(&reason));
                                device.reason = Some(reason);
                            }
                            event => {
                                tunnel.pass(Side::Downstream, event, &mut device.machine, &mut hub.machine)
                            }
                        }
                    }
                }
            }
            while from_hub && device.has_room() && !hub_silent {
                match hub.machine.poll_event() {
                    None => hub_silent = true,
                    Some(event) => {
                        quiet = false;
                        match event {
                            Event::Opened(open) => device.machine.open(open),
                            Event::Closed(reason) => {
                                device.machine.close(told(&reason));
                                hub.reason = Some(reason);
                            }
                            event => {
                                tunnel.pass(Side::Upstream, event, &mut hub.machine, &mut device.machine)
                            }
                        }
                    }
                }
            }
            // A stream that ended without a close: the other side is told once, behind what came before.
            if device.finished && device_silent && !device.told {
                device.told = true;
                hub.machine.close(None);
                quiet = false;
            }
            if hub.finished && hub_silent && !hub.told {
                hub.told = true;
                device.machine.close(Some(lost("the connection to the hub was lost")));
                quiet = false;
            }
            if quiet {
                return;
            }
        }
    }
}

/// What a device is told when the hub's connection is over.
fn told(reason: &CloseReason) -> Option<AmqpError> {
    match reason {
        CloseReason::Remote(error) => error.clone(),
        CloseReason::Local => None,
        other => Some(lost(&format!("the connection to the hub ended: {other}"))),
    }
}

/// The error that a peer closed with, for the other peer.
fn said(reason: &CloseReason) -> Option<AmqpError> {
    match reason {
        CloseReason::Remote(error) => error.clone(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use fieldgate_amqp::frame::ProtocolHeader;
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[test]
    fn a_peer_that_does_not_read_its_last_words_is_not_waited_for() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut device, stream) = tokio::io::duplex(8);
            let machine = Connection::server(Arc::default(), &MECHANISMS, true, Instant::now());
            let mut end = End::new(stream, machine);
            // The header is answered with one of eight bytes, which fill the pipe; the close stays behind it.
            device.write_all(&ProtocolHeader::Amqp.bytes()).await.unwrap();
            poll_fn(|cx| end.poll_turn(cx, true)).await;
            assert!(end.machine.poll_event().is_none());
            device.write_all(b"\0\0\0\x01\0\0\0\0").await.unwrap();
            poll_fn(|cx| end.poll_turn(cx, true)).await;
            assert!(matches!(end.machine.poll_event(), Some(Event::Closed(_))));
            let waits = poll_fn(|cx| Poll::Ready(end.poll_turn(cx, true).is_pending())).await;
            assert!(waits && !end.finished && end.backlog() > 0);
            end.patience = Some(Box::pin(sleep(Duration::ZERO)));
            poll_fn(|cx| end.poll_turn(cx, true)).await;
            assert!(end.finished && end.backlog() > 0);
        });
    }
}
