//! One side alone: a stream and its machine, before they are part of a route or after they might have been.

use std::future::poll_fn;
use std::task::{Poll, ready};

use fieldgate_amqp::connection::{CloseReason, Connection, Event};
use fieldgate_amqp::error::AmqpError;

use crate::shutdown::Shutdown;
use crate::tls::Stream;

use super::end::End;

/// A stream, its machine, and why they ended.
pub(super) struct Party {
    pub(super) end: End<Stream>,
    pub(super) machine: Connection,
    /// Why the connection is over, as far as the machine knows.
    pub(super) reason: Option<CloseReason>,
}

impl Party {
    pub(super) fn new(stream: Stream, machine: Connection) -> Self {
        Self { end: End::new(stream), machine, reason: None }
    }

    /// The next event, other than the end; nothing once that has come and the last words are said. Cancel safe.
    pub(super) async fn event(&mut self) -> Option<Event> {
        poll_fn(|cx| {
            loop {
                match self.machine.poll_event() {
                    Some(Event::Closed(reason)) => self.reason = Some(reason),
                    Some(event) => return Poll::Ready(Some(event)),
                    None if self.end.is_finished() => return Poll::Ready(None),
                    None => {
                        let read = self.machine.wants_input();
                        ready!(self.end.poll_turn(cx, &mut self.machine, read));
                    }
                }
            }
        })
        .await
    }

    /// Closes the connection, or drops it where the peer has not got as far as AMQP; bounded by the machine's own
    /// timers and the stop.
    pub(super) async fn close(mut self, error: Option<AmqpError>, shutdown: &Shutdown) {
        self.machine.close(error);
        tokio::select! {
            () = async { while self.event().await.is_some() {} } => {}
            () = shutdown.aborting() => return,
        }
        self.end.linger(shutdown).await;
    }
}
