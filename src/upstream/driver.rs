//! The task of a shared hub connection: connects, moves bytes and time, and connects again.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use fieldgate_amqp::connection::{Connection, ConnectionConfig};
use fieldgate_amqp::performative::OpenOut;
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::config::Config;
use crate::console::{Health, Status};
use crate::shutdown::Shutdown;
use crate::telemetry::emit;
use crate::timer::Timer;
use crate::tls::{self, Stream};
use crate::wire::{Turn, Wire};

use super::Upstream;
use super::backoff::Backoff;
use super::target::Hub;
use super::telemetry::{ConnectFailed, ConnectionClosed, ConnectionLost, ConnectionReady, TokenAccepted};
use super::uplink::Notice;

/// Most sessions of the connection; the hub's own channel-max may allow fewer.
const CHANNEL_MAX: u16 = 8191;
/// Most links: a device has one for its messages and one for its commands, mostly.
const MAX_LINKS: usize = 4 * (CHANNEL_MAX as usize + 1);

/// What the task works with.
pub(super) struct Driver {
    index: usize,
    upstream: Upstream,
    hub: Arc<Hub>,
    config: Arc<ConnectionConfig>,
    backoff: Backoff,
    health: Arc<Health>,
    shutdown: Shutdown,
    random: SystemRandom,
}

impl Driver {
    pub(super) fn new(
        index: usize,
        upstream: Upstream,
        config: &Config,
        hub: &Arc<Hub>,
        health: Arc<Health>,
        shutdown: Shutdown,
    ) -> Self {
        let random = SystemRandom::new();
        let upstream_config = &config.upstream;
        let config = ConnectionConfig {
            container_id: format!("fieldgate-{:016x}-{index}", number(&random)),
            hostname: Some(hub.name().to_string()),
            channel_max: CHANNEL_MAX,
            max_links: MAX_LINKS,
            idle_time_out: Some(upstream_config.idle_time_out),
            open_time_out: upstream_config.connect_time_out,
            ..ConnectionConfig::default()
        };
        let backoff = Backoff::new(upstream_config.retry_max);
        Self {
            index,
            upstream,
            hub: Arc::clone(hub),
            config: Arc::new(config),
            backoff,
            health,
            shutdown,
            random,
        }
    }

    /// Keeps the connection until the worker closes it.
    pub(super) async fn run(mut self) {
        self.health.set_upstream(self.index, Status::Starting);
        loop {
            let connected = self.meanwhile(self.hub.connect()).await;
            let why = match connected {
                Some(Ok(stream)) => self.serve(stream).await,
                Some(Err(error)) => error.to_string(),
                None => return self.upstream.shared.uplink.borrow_mut().lost(),
            };
            self.upstream.shared.uplink.borrow_mut().lost();
            if self.is_closing() || self.shutdown.is_aborting() {
                return;
            }
            self.health.set_upstream(self.index, Status::Down);
            let again_in = self.backoff.next(number(&self.random));
            emit(ConnectFailed { worker: self.index, error: &why, again_in });
            if self.meanwhile(tokio::time::sleep(again_in)).await.is_none() {
                return;
            }
        }
    }

    fn is_closing(&self) -> bool {
        self.upstream.shared.uplink.borrow().is_closing()
    }

    /// Waits for something while there is no connection: messages that wait go on expiring. Nothing when the worker
    /// wants no connection any more.
    async fn meanwhile<T>(&self, what: impl Future<Output = T>) -> Option<T> {
        let mut timer = Timer::default();
        let mut what = pin!(what);
        let mut stop = pin!(self.shutdown.aborting());
        poll_fn(|cx| {
            self.upstream.shared.listen(cx);
            let mut uplink = self.upstream.shared.uplink.borrow_mut();
            while timer.poll(cx, uplink.poll_timeout()).is_ready() {
                uplink.handle_timeout(Instant::now());
            }
            if uplink.is_closing() || stop.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            what.as_mut().poll(cx).map(Some)
        })
        .await
    }

    /// Runs one connection until it is gone; says why it went.
    async fn serve(&mut self, stream: Stream) -> String {
        let open = OpenOut {
            container_id: &self.config.container_id,
            hostname: self.config.hostname.as_deref(),
            ..OpenOut::default()
        };
        let machine =
            Connection::client(Arc::clone(&self.config), self.hub.security(), open.build(), Instant::now());
        self.upstream.shared.uplink.borrow_mut().connected(machine);
        let mut wire = Wire::new(stream);
        let mut timer = Timer::default();
        let mut ready = false;
        let shutdown = self.shutdown.clone();
        let mut stop = pin!(shutdown.aborting());
        let why = poll_fn(|cx| {
            if stop.as_mut().poll(cx).is_ready() {
                return Poll::Ready(String::from("the gateway is stopping"));
            }
            self.upstream.shared.listen(cx);
            loop {
                let notices = self.handle(cx, &mut timer);
                if !notices.is_empty() {
                    // What they ask for is said in this turn, and may bring more of them.
                    for notice in notices {
                        match notice {
                            Notice::Lost(why) => return Poll::Ready(why),
                            notice => ready |= self.notice(notice, ready),
                        }
                    }
                    continue;
                }
                let turn = match &mut self.upstream.shared.uplink.borrow_mut().connection {
                    Some(machine) => wire.poll_turn(cx, machine, true),
                    None => Poll::Pending,
                };
                match turn {
                    Poll::Ready(Ok(Turn::Progress)) => {}
                    Poll::Ready(Ok(Turn::Ended)) => {
                        return Poll::Ready(String::from("the hub closed the stream"));
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(tls::in_words(&error)),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await;
        match (ready, self.is_closing()) {
            (true, true) => emit(ConnectionClosed { worker: self.index }),
            (true, false) => emit(ConnectionLost { worker: self.index, why: &why }),
            (false, _) => {}
        }
        // What the machine said last, a close mostly, goes out if the stream takes it at once.
        let shared = &self.upstream.shared;
        poll_fn(|cx| {
            if let Some(machine) = &mut shared.uplink.borrow_mut().connection {
                let _ = wire.poll_write(cx, machine);
            }
            Poll::Ready(())
        })
        .await;
        why
    }

    /// Handles the time that has passed and the bytes that have come.
    fn handle(&self, cx: &mut Context<'_>, timer: &mut Timer) -> Vec<Notice> {
        let mut uplink = self.upstream.shared.uplink.borrow_mut();
        let now = Instant::now();
        while timer.poll(cx, uplink.poll_timeout()).is_ready() {
            uplink.handle_timeout(now);
        }
        uplink.handle_events(now);
        uplink.take_notices()
    }

    /// Does what the machine asks for. True when the connection does its work from now on.
    fn notice(&mut self, notice: Notice, was_ready: bool) -> bool {
        let mut uplink = self.upstream.shared.uplink.borrow_mut();
        if notice == Notice::Authorised {
            emit(TokenAccepted { worker: self.index });
        }
        if let (Notice::Opened | Notice::TokenDue, Some(token)) = (&notice, self.hub.token()) {
            uplink.authorise(token, Instant::now());
            return false;
        }
        if was_ready {
            return false;
        }
        uplink.ready(Instant::now());
        self.backoff.reset();
        self.health.set_upstream(self.index, Status::Up);
        emit(ConnectionReady { worker: self.index, hub: self.hub.name() });
        true
    }
}

/// A uniform random number. Without the system's randomness jitter is fixed and ids are alike: no harm.
fn number(random: &SystemRandom) -> u64 {
    let mut bytes = [0; 8];
    let _ = random.fill(&mut bytes);
    u64::from_be_bytes(bytes)
}
