//! The task of a hub connection: connects, moves bytes, and connects again.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use fieldgate_amqp::connection::{Connection, ConnectionConfig};
use fieldgate_amqp::performative::OpenOut;
use tokio::sync::Notify;

use crate::console::{Health, Link, Status};
use crate::shutdown::Shutdown;
use crate::telemetry::emit;
use crate::tls::{self, Stream};
use crate::wire::{Turn, Wire};

use super::backoff::Backoff;
use super::fleet::{Fleet, Line};
use super::hubs::MappedHub;
use super::keeper::{Keeper, random, unix_now};
use super::target::Hub;
use super::telemetry::{ConnectFailed, ConnectionClosed, ConnectionLost, ConnectionReady, TokenAccepted};
use super::uplink::{Kind, Notice, Uplink};

/// Most sessions of the connection; the hub's own channel-max may allow fewer.
const CHANNEL_MAX: u16 = 8191;
/// Most links: a device has one for its messages and one for its commands, mostly.
const MAX_LINKS: usize = 4 * (CHANNEL_MAX as usize + 1);

/// What the task works with.
pub(super) struct Driver {
    index: usize,
    line: Line,
    fleet: Rc<RefCell<Fleet>>,
    /// Told when the hub has come or gone.
    changes: Rc<Notify>,
    hub: Arc<Hub>,
    kind: Kind,
    config: Arc<ConnectionConfig>,
    backoff: Backoff,
    /// Which of the hub's addresses is tried first.
    first: usize,
    /// Since when the connection does its work.
    ready_at: Option<Instant>,
    health: Arc<Health>,
    /// How a connection to another hub than that of `[upstream]` is told of.
    told: Option<Link>,
    shutdown: Shutdown,
}

impl Driver {
    pub(super) fn new(keeper: &Keeper, line: Line, container_id: String) -> Self {
        let (at, _) = line;
        let MappedHub { hub, settings } = &keeper.hubs.hubs[at];
        let config = ConnectionConfig {
            container_id,
            hostname: Some(hub.name().to_string()),
            channel_max: CHANNEL_MAX,
            max_links: MAX_LINKS,
            idle_time_out: Some(settings.idle_time_out),
            open_time_out: settings.connect_time_out,
            ..ConnectionConfig::default()
        };
        let kind = keeper.fleet.borrow_mut().uplink(line).map_or(Kind::Policy, |uplink| uplink.kind);
        Self {
            index: keeper.index,
            line,
            fleet: Rc::clone(&keeper.fleet),
            changes: Rc::clone(&keeper.changes),
            hub: Arc::clone(hub),
            kind,
            config: Arc::new(config),
            backoff: Backoff::new(settings.retry_max),
            first: 0,
            ready_at: None,
            health: Arc::clone(&keeper.health),
            told: (at > 0).then(|| keeper.health.add_link(&settings.name, settings.at_start)),
            shutdown: keeper.shutdown.clone(),
        }
    }

    /// Keeps the connection until nobody wants it any more.
    pub(super) async fn run(mut self) {
        loop {
            let connected = self.meanwhile(self.hub.connect(self.first)).await;
            let why = match connected {
                Some(Ok((stream, address))) => {
                    let why = self.serve(stream).await;
                    self.note_end(address);
                    why
                }
                Some(Err(error)) => error.to_string(),
                None => return,
            };
            self.drive(Uplink::lost);
            if self.is_closing() || self.shutdown.is_aborting() {
                return;
            }
            self.tell(Status::Down);
            let again_in = self.backoff.next(random());
            emit(ConnectFailed { worker: self.index, hub: self.hub.name(), error: &why, again_in });
            if self.meanwhile(tokio::time::sleep(again_in)).await.is_none() {
                return;
            }
        }
    }

    /// A connection to one of the hub's addresses is over: what follows for the next.
    fn note_end(&mut self, address: usize) {
        match self.ready_at.take() {
            Some(since) => {
                self.backoff.was_up(since.elapsed());
                self.first = 0;
            }
            // Somebody answers there who is of no use: the next may be.
            None => self.first = address + 1,
        }
    }

    /// Lets `work` have the connection's machine; nothing where it is gone.
    fn drive<T>(&self, work: impl FnOnce(&mut Uplink) -> T) -> Option<T> {
        self.fleet.borrow_mut().drive(self.line, Instant::now(), work)
    }

    /// Says how the connection is. The hub of `[upstream]` is there when all connections to it are.
    fn tell(&mut self, status: Status) {
        self.changes.notify_one();
        if let Some(link) = &mut self.told {
            return link.set(status);
        }
        let fleet = self.fleet.borrow();
        let (mut down, mut up) = (false, false);
        for uplink in fleet.uplinks(0).filter(|uplink| !uplink.is_closing()) {
            down |= uplink.is_away();
            up |= uplink.is_ready();
        }
        let status = match (down, up) {
            (true, _) => Status::Down,
            (false, true) => Status::Up,
            (false, false) => Status::Starting,
        };
        self.health.set_upstream(self.index, status);
    }

    fn is_closing(&self) -> bool {
        let mut fleet = self.fleet.borrow_mut();
        fleet.uplink(self.line).is_none_or(|uplink| uplink.is_closing())
    }

    /// Waits for something while there is no connection. Nothing when nobody wants one any more.
    async fn meanwhile<T>(&self, what: impl Future<Output = T>) -> Option<T> {
        let mut what = pin!(what);
        let mut stop = pin!(self.shutdown.aborting());
        poll_fn(|cx| {
            self.listen(cx);
            if self.is_closing() || stop.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            what.as_mut().poll(cx).map(Some)
        })
        .await
    }

    /// The task of `cx` is woken when somebody asks for something.
    fn listen(&self, cx: &Context<'_>) {
        if let Some(uplink) = self.fleet.borrow_mut().uplink(self.line) {
            uplink.driver = Some(cx.waker().clone());
        }
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
        self.drive(|uplink| uplink.connected(machine));
        self.fleet.borrow_mut().note_connection(Instant::now(), unix_now());
        let mut wire = Wire::new(stream);
        let mut ready = false;
        let shutdown = self.shutdown.clone();
        let mut stop = pin!(shutdown.aborting());
        let why = poll_fn(|cx| {
            if stop.as_mut().poll(cx).is_ready() {
                return Poll::Ready(String::from("the gateway is stopping"));
            }
            // This turn says it all: nobody needs to wake the task for it.
            if let Some(uplink) = self.fleet.borrow_mut().uplink(self.line) {
                uplink.driver = None;
            }
            loop {
                let notices = self.handle();
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
                let turn = match self.fleet.borrow_mut().uplink(self.line) {
                    None => return Poll::Ready(String::from("nobody wants the connection any more")),
                    Some(uplink) => match &mut uplink.connection {
                        Some(machine) => wire.poll_turn(cx, machine, true),
                        None => Poll::Pending,
                    },
                };
                match turn {
                    Poll::Ready(Ok(Turn::Progress)) => {}
                    Poll::Ready(Ok(Turn::Ended)) => {
                        return Poll::Ready(String::from("the hub closed the stream"));
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(tls::in_words(&error)),
                    Poll::Pending => {
                        // Whoever asks for something from now on wakes this task; what was said so far is on its way.
                        self.listen(cx);
                        return Poll::Pending;
                    }
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
        poll_fn(|cx| {
            let mut fleet = self.fleet.borrow_mut();
            if let Some(machine) = fleet.uplink(self.line).and_then(|uplink| uplink.connection.as_mut()) {
                let _ = wire.poll_write(cx, machine);
            }
            Poll::Ready(())
        })
        .await;
        why
    }

    /// Handles what has come.
    fn handle(&self) -> Vec<Notice> {
        let now = Instant::now();
        let mut fleet = self.fleet.borrow_mut();
        while fleet.drive(self.line, now, |uplink| uplink.handle_event(now)) == Some(true) {}
        fleet.uplink(self.line).map(Uplink::take_notices).unwrap_or_default()
    }

    /// Does what the machine asks for. True when the connection does its work from now on.
    fn notice(&mut self, notice: Notice, was_ready: bool) -> bool {
        let now = Instant::now();
        if notice == Notice::Authorised {
            emit(TokenAccepted { worker: self.index });
        }
        let token = match self.kind {
            Kind::Policy => self.hub.token(random()),
            // The devices' own follow, one by one: with a policy's beside them all could do what it lets them.
            Kind::Tokens => None,
        };
        if let (Notice::Opened | Notice::TokenDue, Some(token)) = (&notice, token) {
            self.drive(|uplink| uplink.authorise(token, now));
            self.fleet.borrow_mut().note_connection(now, unix_now());
            return false;
        }
        if was_ready {
            return false;
        }
        self.drive(|uplink| uplink.ready(now));
        self.ready_at = Some(now);
        self.tell(Status::Up);
        emit(ConnectionReady { worker: self.index, hub: self.hub.name() });
        true
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // However the task ended, nobody moves these bytes any more.
        self.fleet.borrow_mut().ended(self.line);
        self.changes.notify_one();
    }
}
