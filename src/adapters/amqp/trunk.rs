//! The task of a hub connection that devices share: connects, moves bytes, and connects again as long as the router
//! wants it.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use fieldgate_amqp::connection::{Connection, ConnectionConfig};
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::console::Link;
use crate::router::TrunkKey;
use crate::telemetry::emit;
use crate::tls::Stream;
use crate::upstream::Backoff;

use super::connectors::Connector;
use super::device::TURNS;
use super::end::End;
use super::routing::Routing;
use super::telemetry::{TrunkClosed, TrunkConnected, TrunkFailed};
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
}

impl Drop for Trunk {
    fn drop(&mut self) {
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
    let link = routing.health.connect(&connector.name);
    let mut trunk = Trunk { key, connector, routing, number, config: Arc::new(config), link };
    trunk.keep().await;
}

impl Trunk {
    async fn keep(&mut self) {
        let (random, mut backoff) = (SystemRandom::new(), Backoff::new(self.connector.retry_max));
        loop {
            let connected = self.while_wanted(self.connector.hub.connect()).await;
            let Some(connected) = connected else { return };
            let (was_up, why) = match connected {
                Ok(stream) => Box::pin(self.serve(stream)).await,
                Err(error) => (false, error.to_string()),
            };
            self.link.down();
            let wanted = self.routing.turn(|router| {
                router.trunk_lost(self.key, &why, Instant::now());
                router.is_trunk_wanted(self.key)
            });
            let connector = &self.connector.name;
            if !wanted {
                emit(TrunkClosed { connector, why: &why });
                return;
            }
            if was_up {
                backoff.reset();
            }
            let again_in = backoff.next(number(&random));
            self.connector.metrics.lost(was_up);
            emit(TrunkFailed { connector, error: &why, was_up, again_in });
            if self.while_wanted(tokio::time::sleep(again_in)).await.is_none() {
                return;
            }
        }
    }

    /// Waits for something while there is no connection; nothing once the connection is not wanted any more.
    async fn while_wanted<T>(&self, what: impl Future<Output = T>) -> Option<T> {
        let mut what = pin!(what);
        poll_fn(|cx| {
            let wanted = self.routing.turn(|router| {
                router.park_trunk(self.key, cx);
                router.is_trunk_wanted(self.key)
            });
            if !wanted {
                return Poll::Ready(None);
            }
            what.as_mut().poll(cx).map(Some)
        })
        .await
    }

    /// Runs one connection until it is gone: whether it ever did its work, and why it went.
    async fn serve(&mut self, stream: Stream) -> (bool, String) {
        let Self { connector, config, routing, key, number, .. } = &*self;
        let open = connector.own_open(&config.container_id);
        let security = connector.hub.security();
        let now = Instant::now();
        let mut machine = Connection::client(Arc::clone(config), security, open, now);
        trace::watch(&mut machine, routing.traced, format_args!("{} {number}", connector.name));
        routing.turn(|router| router.trunk_connected(*key, machine, now));
        let mut end = End::new(stream);
        let mut up = false;
        poll_fn(|cx| self.poll(cx, &mut end, &mut up)).await;
        let reason = self.routing.turn(|router| router.trunk(self.key).and_then(|seat| seat.reason.take()));
        if up && !self.routing.shutdown.is_aborting() {
            // A close of ours or of the hub's arrives before the stream ends.
            end.linger(&self.routing.shutdown).await;
        }
        (up, reason.map_or_else(|| "the hub ended the stream".into(), |reason| reason.to_string()))
    }

    fn poll(&mut self, cx: &mut Context<'_>, end: &mut End<Stream>, up: &mut bool) -> Poll<()> {
        let Self { key, routing, connector, link, .. } = self;
        let key = *key;
        routing.turn(|router| {
            let now = Instant::now();
            let mut turns = 0;
            loop {
                router.handle_trunk(key, now);
                let wanted = router.is_trunk_wanted(key);
                let Some(seat) = router.trunk(key) else { return Poll::Ready(()) };
                if !wanted {
                    seat.machine.close(None);
                }
                if !*up && seat.machine.is_open() {
                    *up = true;
                    link.up();
                    connector.metrics.connected();
                    emit(TrunkConnected { connector: &connector.name, hub: connector.hub.name() });
                }
                let had_room = seat.has_room();
                let turn = end.poll_turn(cx, &mut seat.machine, true);
                seat.wire_backlog = end.backlog();
                if end.is_finished() {
                    seat.finished = true;
                    router.handle_trunk(key, now);
                    return Poll::Ready(());
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
        })
    }
}

/// A uniform random number. Without the system's randomness jitter is fixed: no harm.
fn number(random: &SystemRandom) -> u64 {
    let mut bytes = [0; 8];
    let _ = random.fill(&mut bytes);
    u64::from_be_bytes(bytes)
}
