//! The task of a device that shares its hub connections with others: its own stream, and the router.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use fieldgate_amqp::connection::CloseReason;

use crate::router::DeviceKey;
use crate::tls::Stream;
use crate::wire::READ_BYTES;

use super::end::End;
use super::routing::Routing;

/// Turns after which others have theirs: a device that sends without a pause must not keep the worker.
pub(super) const TURNS: usize = 2;

/// The place of a device in the router. Dropped, it is given up.
pub(super) struct Place {
    pub(super) key: DeviceKey,
    pub(super) routing: Rc<Routing>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.routing.turn(|router| router.remove_device(self.key));
    }
}

/// A device in the router.
pub(super) struct Device {
    end: End<Stream>,
    place: Place,
}

impl Device {
    /// A device that the router knows under this key.
    pub(super) fn new(end: End<Stream>, key: DeviceKey, routing: &Rc<Routing>) -> Self {
        Self { end, place: Place { key, routing: Rc::clone(routing) } }
    }

    /// Serves the device until its stream is over: that, and why it is, as far as the machine knows.
    pub(super) async fn run(mut self) -> (End<Stream>, Option<Box<CloseReason>>) {
        let reason = poll_fn(|cx| self.poll(cx)).await;
        (self.end, reason)
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Box<CloseReason>>> {
        let Self { end, place: Place { key, routing } } = self;
        let key = *key;
        routing.turn(|router| {
            let now = Instant::now();
            let mut turns = 0;
            loop {
                router.handle_device(key, now);
                let hears = router.hears_device(key);
                let Some(seat) = router.device(key) else { return Poll::Ready(None) };
                let waited = seat.backlog();
                let read = seat.read(hears, now);
                let turn = end.poll_turn(cx, &mut seat.machine, read);
                seat.wire_backlog = end.backlog();
                if end.is_finished() {
                    router.device_lost(key, now);
                    let reason = router.device(key).and_then(|seat| seat.reason.take());
                    return Poll::Ready(reason);
                }
                // A device that has taken what waited for it may be sent more: the router looks again.
                let relieved = waited >= READ_BYTES && seat.backlog() < waited;
                if turn.is_pending() && !relieved {
                    router.park_device(key, cx);
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
