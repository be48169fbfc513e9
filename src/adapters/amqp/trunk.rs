//! The task of a hub connection that devices share: connects, moves bytes, and connects again as long as the router
//! wants it.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use fieldgate_amqp::connection::{CloseReason, Connection, ConnectionConfig};
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::console::{Link, Status};
use crate::router::{Router, TrunkKey};
use crate::telemetry::emit;
use crate::tls::{self, Stream};
use crate::upstream::Backoff;

use super::connectors::Connector;
use super::device::TURNS;
use super::end::End;
use super::routing::Routing;
use super::telemetry::{TrunkClosed, TrunkConnected, TrunkLost};
use super::trace;

/// What the task works with. Dropped, the router forgets the connection.
struct Trunk {
    key: TrunkKey,
    connector: Rc<Connector>,
    routing: Rc<Routing>,
    /// Of those of this connector and worker.
    number: usize,
    config: Arc<ConnectionConfig>,
    link: Link,
    /// Devices on it, as they were told to the metrics.
    devices: usize,
    /// It is up, as was told to the metrics.
    up: bool,
}

impl Drop for Trunk {
    fn drop(&mut self) {
        self.tell(false, 0);
        self.routing.turn(|router| router.remove_trunk(self.key));
        self.connector.give_number(self.number);
        self.routing.trunk_ended();
    }
}

/// Keeps a hub connection for the router until nobody needs it any more.
pub(super) async fn run(routing: Rc<Routing>, connector: Rc<Connector>, key: TrunkKey) {
    let number = connector.take_number();
    let config = ConnectionConfig {
        container_id: format!("{}-{}-{number}", routing.container, routing.worker),
        ..(*connector.machine).clone()
    };
    let link = routing.health.add_link(&connector.name, connector.is_awaited);
    let config = Arc::new(config);
    let mut trunk = Trunk { key, connector, routing, number, config, link, devices: 0, up: false };
    trunk.keep().await;
}

impl Trunk {
    async fn keep(&mut self) {
        let (random, mut backoff) = (SystemRandom::new(), Backoff::new(self.connector.retry_max));
        // Which of the hub's addresses is tried first.
        let mut first = 0;
        loop {
            let Some(connected) = self.while_wanted(self.connector.hub.connect(first)).await else { break };
            let (up_at, why, end) = match connected {
                Ok((stream, address)) => {
                    let (up_at, why, end) = self.serve(stream).await;
                    // Where somebody answers who is of no use, the next address may be.
                    first = if up_at.is_some() { 0 } else { address + 1 };
                    (up_at, why, end)
                }
                Err(error) => (None, error.to_string(), None),
            };
            self.tell(false, self.devices);
            let wanted = self.routing.turn(|router| {
                router.trunk_lost(self.key, Instant::now(), &why);
                router.is_trunk_wanted(self.key)
            });
            // A close of ours arrives before the stream ends.
            let shutdown = self.routing.shutdown.clone();
            let linger = async move {
                if let Some(end) = end {
                    end.linger(&shutdown).await;
                }
            };
            if !wanted {
                linger.await;
                break;
            }
            tokio::task::spawn_local(linger);
            let was_up = up_at.is_some();
            if let Some(since) = up_at {
                backoff.was_up(since.elapsed());
            }
            self.link.set(Status::Down);
            let again_in = backoff.next(random_number(&random));
            let Connector { name, metrics, .. } = &*self.connector;
            emit(TrunkLost { connector: name, metrics, was_up, why: &why, again_in });
            if self.while_wanted(tokio::time::sleep(again_in)).await.is_none() {
                break;
            }
        }
        emit(TrunkClosed { connector: &self.connector.name });
    }

    /// Tells health and metrics how the connection is.
    fn tell(&mut self, up: bool, devices: usize) {
        let metrics = &self.connector.metrics;
        if up != std::mem::replace(&mut self.up, up) {
            metrics.connections.inc_by(if up { 1 } else { -1 });
            if up {
                self.link.set(Status::Up);
            }
        }
        if devices != self.devices {
            let before = std::mem::replace(&mut self.devices, devices);
            metrics.devices.inc_by(devices as i64 - before as i64);
            self.link.set_devices(devices);
        }
    }

    /// Waits for something while there is no connection; nothing if that is not wanted any more when the wait is over,
    /// or the gateway is stopping.
    async fn while_wanted<T>(&self, what: impl Future<Output = T>) -> Option<T> {
        let mut what = pin!(what);
        let mut stop = pin!(self.routing.shutdown.draining());
        poll_fn(|cx| {
            let wanted = self.routing.turn(|router| router.is_trunk_wanted(self.key));
            if !wanted || stop.as_mut().poll(cx).is_ready() {
                return Poll::Ready(None);
            }
            what.as_mut().poll(cx).map(Some)
        })
        .await
    }

    /// Runs one connection until it is gone: since when it did its work, why it went, and its stream.
    async fn serve(&mut self, stream: Stream) -> (Option<Instant>, String, Option<End<Stream>>) {
        let now = Instant::now();
        let (open, security) =
            (self.connector.own_open(&self.config.container_id), self.connector.hub.security());
        let mut machine = Connection::client(Arc::clone(&self.config), security, open, now);
        trace::watch(&mut machine, &self.routing, format_args!("{} {}", self.connector.name, self.number));
        self.routing.turn(|router| router.trunk_connected(self.key, machine));
        let mut end = End::new(stream);
        let mut up_at = None;
        let routing = Rc::clone(&self.routing);
        let reason = poll_fn(|cx| {
            let turn = routing.turn(|router| self.poll(cx, &mut end, router));
            if self.up {
                up_at.get_or_insert_with(Instant::now);
            }
            turn
        })
        .await;
        let why = match (reason, end.loss()) {
            (Some(reason), _) => reason.to_string(),
            (None, Some(error)) => tls::in_words(error),
            (None, None) => "the hub ended the stream".into(),
        };
        (up_at, why, Some(end))
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        end: &mut End<Stream>,
        router: &mut Router,
    ) -> Poll<Option<Box<CloseReason>>> {
        let key = self.key;
        let now = Instant::now();
        let mut turns = 0;
        loop {
            router.handle_trunk(key, now);
            let (wanted, devices) = (router.is_trunk_wanted(key), router.trunk_devices(key));
            let Some(seat) = router.trunk(key) else { return Poll::Ready(None) };
            if !wanted {
                seat.machine.close(None);
            }
            let is_open = seat.machine.is_open();
            if is_open && !self.up {
                let Connector { name, metrics, hub, .. } = &*self.connector;
                emit(TrunkConnected { connector: name, metrics, hub: hub.name() });
            }
            self.tell(is_open, devices);
            let had_room = seat.has_room();
            let turn = end.poll_turn(cx, &mut seat.machine, true);
            seat.wire_backlog = end.backlog();
            if end.is_finished() {
                // What came before the end is handled before the end is.
                router.handle_trunk(key, now);
                return Poll::Ready(router.trunk(key).and_then(|seat| seat.reason.take()));
            }
            if turn.is_pending() && seat.has_room() == had_room {
                router.park_trunk(key, cx);
                return Poll::Pending;
            }
            turns += 1;
            if turns == TURNS {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }
}

/// A uniform random number. Without the system's randomness jitter is fixed: no harm.
fn random_number(random: &SystemRandom) -> u64 {
    let mut bytes = [0; 8];
    let _ = random.fill(&mut bytes);
    u64::from_be_bytes(bytes)
}
