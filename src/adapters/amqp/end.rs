//! One side of a route: a stream and how far it has got. The AMQP machine that speaks on it lies elsewhere, mostly in
//! the router, and is handed in for each turn.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use fieldgate_amqp::connection::Connection;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Sleep, sleep};

use crate::shutdown::Shutdown;
use crate::wire::{Machine, Turn, Wire};

/// How long a side whose connection is over may take to read what is left for it.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// A stream and how far it has got.
#[derive(Debug)]
pub(super) struct End<S> {
    wire: Wire<S>,
    /// Nothing comes or goes any more.
    finished: bool,
    /// What the stream said at its end; boxed, for few ever have it.
    loss: Option<Box<io::Error>>,
    /// Runs out when the last words were not taken.
    patience: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> End<S> {
    /// A side whose stream is up.
    pub(super) fn new(stream: S) -> Self {
        Self { wire: Wire::new(stream), finished: false, loss: None, patience: None }
    }

    /// Whether nothing comes or goes any more: the stream is over, or the machine is and has said everything.
    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Why the stream was lost, where it was not ended.
    pub(super) fn loss(&self) -> Option<&io::Error> {
        self.loss.as_deref()
    }

    /// Bytes taken from the machine and not yet taken by the stream.
    pub(super) fn backlog(&self) -> usize {
        self.wire.backlog()
    }

    /// Ready when something happened on this side: the machine may have events, or the side is finished. With `read`
    /// false nothing is read.
    pub(super) fn poll_turn(
        &mut self,
        cx: &mut Context<'_>,
        machine: &mut Connection,
        read: bool,
    ) -> Poll<()> {
        if self.finished {
            return Poll::Pending;
        }
        let closed = machine.is_closed();
        match self.wire.poll_turn(cx, machine, read && !closed) {
            Poll::Ready(Ok(Turn::Progress)) => {}
            Poll::Ready(Ok(Turn::Ended)) => self.finished = true,
            Poll::Ready(Err(error)) => {
                self.finished = true;
                self.loss = Some(Box::new(error));
            }
            Poll::Pending if closed && self.poll_last_words(cx, machine).is_ready() => self.finished = true,
            Poll::Pending => return Poll::Pending,
        }
        Poll::Ready(())
    }

    /// Ready when the peer has taken all that was left for it, or has had its time: a machine that is closed has no
    /// timers any more.
    fn poll_last_words(&mut self, cx: &mut Context<'_>, machine: &Connection) -> Poll<()> {
        if self.wire.backlog() + machine.output_bytes() == 0 {
            return Poll::Ready(());
        }
        self.patience.get_or_insert_with(|| Box::pin(sleep(LAST_WORDS))).as_mut().poll(cx)
    }

    /// Lets the last words arrive, once the side is finished.
    pub(super) async fn linger(self, shutdown: &Shutdown) {
        self.wire.linger(Silent, shutdown).await;
    }
}

/// The machine of a side that is finished: it has said everything and hears nothing.
struct Silent;

impl Machine for Silent {
    fn handle_input(&mut self, _: Instant, _: BytesMut) {}

    fn handle_timeout(&mut self, _: Instant) {}

    fn poll_transmit(&mut self) -> Option<Bytes> {
        None
    }

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;

    use fieldgate_amqp::connection::Event;
    use fieldgate_amqp::frame::ProtocolHeader;
    use fieldgate_amqp::sasl::Mechanism;
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    #[test]
    fn a_peer_that_does_not_read_its_last_words_is_not_waited_for() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut device, stream) = tokio::io::duplex(8);
            let mut machine =
                Connection::server(Arc::default(), &[Mechanism::Anonymous], true, Instant::now());
            let mut end = End::new(stream);
            // The header is answered with one of eight bytes, which fill the pipe; the close stays behind it.
            device.write_all(&ProtocolHeader::Amqp.bytes()).await.unwrap();
            poll_fn(|cx| end.poll_turn(cx, &mut machine, true)).await;
            assert!(machine.poll_event().is_none());
            device.write_all(b"\0\0\0\x01\0\0\0\0").await.unwrap();
            poll_fn(|cx| end.poll_turn(cx, &mut machine, true)).await;
            assert!(matches!(machine.poll_event(), Some(Event::Closed(_))));
            let waits = poll_fn(|cx| Poll::Ready(end.poll_turn(cx, &mut machine, true).is_pending())).await;
            assert!(waits && !end.is_finished() && end.backlog() > 0);
            end.patience = Some(Box::pin(sleep(Duration::ZERO)));
            poll_fn(|cx| end.poll_turn(cx, &mut machine, true)).await;
            assert!(end.is_finished() && end.backlog() > 0);
        });
    }
}
