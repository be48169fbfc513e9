//! The task of a device that has a hub connection of its own: it drives both streams, so what comes on one goes out on
//! the other in the same turn.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use fieldgate_amqp::connection::CloseReason;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::router::{DeviceKey, Router, TrunkKey};
use crate::tls::Stream;

use super::device::{Place, TURNS};
use super::end::End;
use super::routing::Routing;
use super::telemetry::Counted;

/// A device and its hub, in the router.
pub(super) struct Pair<D = Stream, H = Stream> {
    device: End<D>,
    hub: End<H>,
    place: Place,
    hub_key: TrunkKey,
    _counted: Option<Counted>,
}

impl<D: AsyncRead + AsyncWrite + Unpin, H: AsyncRead + AsyncWrite + Unpin> Pair<D, H> {
    /// A device and its hub, which the router knows under these keys.
    pub(super) fn new(
        device: End<D>,
        hub: End<H>,
        (key, hub_key): (DeviceKey, TrunkKey),
        routing: &Rc<Routing>,
        counted: Option<Counted>,
    ) -> Self {
        let place = Place { key, routing: Rc::clone(routing) };
        Self { device, hub, place, hub_key, _counted: counted }
    }

    /// Serves the device until both streams are over: its stream, and why it is, as far as the machines know.
    pub(super) async fn run(mut self) -> (End<D>, Option<Box<CloseReason>>) {
        let reason = poll_fn(|cx| {
            let routing = Rc::clone(&self.place.routing);
            routing.turn(|router| self.poll(cx, router))
        })
        .await;
        (self.device, reason)
    }

    fn poll(&mut self, cx: &mut Context<'_>, router: &mut Router) -> Poll<Option<Box<CloseReason>>> {
        let Self { device, hub, place: Place { key: device_key, .. }, hub_key, .. } = self;
        let (device_key, hub_key) = (*device_key, *hub_key);
        let now = Instant::now();
        let mut turns = 0;
        // What is said to either side in this turn is written in this turn.
        router.unpark_pair(device_key, hub_key);
        loop {
            router.handle_device(device_key, now);
            router.handle_trunk(hub_key, now);
            // What the hub said, or its end, may have ended something here.
            router.handle_device(device_key, now);
            if device.is_finished() && hub.is_finished() {
                return Poll::Ready(reason(router, device_key, hub_key));
            }
            let heard = (router.hears_device(device_key), router.hears_trunk(hub_key));
            let (from_device, from_hub) = heard;
            let Some(seat) = router.device(device_key) else { return Poll::Ready(None) };
            let read = seat.read(from_device, now);
            let mut turn = device.poll_turn(cx, &mut seat.machine, read);
            seat.wire_backlog = device.backlog();
            if turn.is_ready() && device.is_finished() {
                router.device_lost(device_key, now);
            }
            let Some(seat) = router.trunk(hub_key) else { return Poll::Ready(None) };
            let read = seat.read(from_hub, now);
            if hub.poll_turn(cx, &mut seat.machine, read).is_ready() {
                turn = Poll::Ready(());
            }
            seat.wire_backlog = hub.backlog();
            if turn.is_ready() && hub.is_finished() {
                router.pair_lost(hub_key, now);
            }
            // What was written has perhaps made room for what the other side was not asked for.
            if turn.is_pending() && (router.hears_device(device_key), router.hears_trunk(hub_key)) == heard {
                router.park_device(device_key, cx);
                router.park_trunk(hub_key, cx);
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

/// Why a pair is over: as the device's side knows it, else as the hub's does.
fn reason(router: &mut Router, device: DeviceKey, hub: TrunkKey) -> Option<Box<CloseReason>> {
    let device = router.device(device).and_then(|seat| seat.reason.take());
    device.or_else(|| router.trunk(hub).and_then(|seat| seat.reason.take()))
}
