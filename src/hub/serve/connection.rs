//! One connection of the hub: a [`Peer`] on a stream, from the TLS handshake to the last byte.

use std::future::{Future as _, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use fieldgate_amqp::connection::{CloseReason, ConnectionConfig};
use fieldgate_amqp::error::{AmqpError, Condition};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Sleep;

use super::super::telemetry::ConnectionNumber;
use super::super::time::Now;
use super::peer::Peer;
use super::shared::Shared;
use crate::shutdown::Shutdown;
use crate::wire::{Turn, Wire};

/// While this much waits to be written, the peer is not read: what it asks for would only make it more.
const MAX_UNREAD_BYTES: usize = 512 * 1024;
/// A peer that does not take what it is sent is given up after this time.
const WRITE_TIME_OUT: Duration = Duration::from_secs(60);
/// How long the stream's own goodbye may take.
const GOODBYE_TIME_OUT: Duration = Duration::from_secs(2);

/// Serves a peer on an established stream until either side ends it; tells why it ended, where that is known.
pub(super) async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    number: ConnectionNumber,
    config: Arc<ConnectionConfig>,
    shared: Rc<Shared>,
    shutdown: Shutdown,
) -> Option<CloseReason> {
    let peer = Peer::new(config, number, shared, Instant::now());
    let mut served =
        Served { peer, wire: Wire::new(stream), timer: None, blocked_since: None, stopping: false };
    let (mut stop, mut abort) = (pin!(shutdown.draining()), pin!(shutdown.aborting()));
    poll_fn(|cx| {
        if !served.stopping && stop.as_mut().poll(cx).is_ready() {
            served.stop();
        }
        if abort.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        served.poll(cx)
    })
    .await;
    // Whatever was lent goes back before anybody hears that the connection is gone.
    served.peer.lose();
    // The stream may be dead already, or take nothing any more; then there is nobody to say goodbye to.
    let _ = tokio::time::timeout(GOODBYE_TIME_OUT, poll_fn(|cx| served.wire.poll_shutdown(cx))).await;
    served.peer.reason.take()
}

struct Served<S> {
    peer: Peer,
    wire: Wire<S>,
    timer: Option<Pin<Box<Sleep>>>,
    /// Since when the stream has not taken all that there is to write.
    blocked_since: Option<Instant>,
    stopping: bool,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Served<S> {
    fn stop(&mut self) {
        self.stopping = true;
        let error = AmqpError::new(&Condition::ConnectionForced, Some("the hub is stopping"));
        self.peer.machine.close(Some(error));
    }

    /// Turns as long as there is something to do; ready when the connection is over.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.peer.signal.register(cx);
        loop {
            let now = Shared::now();
            self.peer.handle_events(now);
            self.peer.pump(now, self.wire.backlog());
            match self.wire.poll_write(cx, &mut self.peer.machine) {
                Poll::Ready(Ok(())) => {
                    self.blocked_since = None;
                    if self.peer.machine.is_closed() {
                        return Poll::Ready(());
                    }
                    if self.peer.is_stalled() {
                        continue;
                    }
                }
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => {
                    let since = *self.blocked_since.get_or_insert(now.instant);
                    if since + WRITE_TIME_OUT <= now.instant {
                        return Poll::Ready(());
                    }
                }
            }
            if self.poll_deadline(cx, now).is_ready() {
                continue;
            }
            let unwritten = self.wire.backlog() + self.peer.machine.output_bytes();
            let read = unwritten < MAX_UNREAD_BYTES && self.peer.machine.wants_input();
            match self.wire.poll_turn(cx, &mut self.peer.machine, read) {
                Poll::Ready(Ok(Turn::Progress)) => {}
                Poll::Ready(Ok(Turn::Ended) | Err(_)) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Ready when a deadline has passed: of a token, of the proof that none came, of a write.
    fn poll_deadline(&mut self, cx: &mut Context<'_>, now: Now) -> Poll<()> {
        let blocked = self.blocked_since.map(|since| since + WRITE_TIME_OUT);
        let deadlines = [blocked, self.peer.deadline(now)];
        // One that has passed already was seen to at the start of this turn.
        let Some(deadline) = deadlines.into_iter().flatten().filter(|deadline| *deadline > now.instant).min()
        else {
            self.timer = None;
            return Poll::Pending;
        };
        let deadline = tokio::time::Instant::from_std(deadline);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if timer.deadline() != deadline {
            timer.as_mut().reset(deadline);
        }
        timer.as_mut().poll(cx)
    }
}
