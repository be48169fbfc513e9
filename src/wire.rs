//! One connection on one stream: moves bytes and time between a tokio stream and the sans-IO
//! machine of its protocol, and nothing else.
//!
//! A turn writes what the machine has to say, then reads what has come, at most
//! [`READ_BYTES`]. Whoever owns the machine drains its events after each turn; what those
//! produce is written at the start of the next one, so each peer is flushed once a turn.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Sleep;
use tokio_util::io::poll_read_buf;

use crate::shutdown::Shutdown;

/// The most that one turn reads, in bytes.
pub(crate) const READ_BYTES: usize = 64 * 1024;

/// How long a peer may take to hear the last words and close its side.
const LINGER: Duration = Duration::from_secs(2);

thread_local! {
    /// The read buffer of this worker, lent to one connection at a time: a connection with
    /// nothing to read holds no buffer.
    static SCRATCH: RefCell<BytesMut> = RefCell::new(BytesMut::new());
}

/// What a wire moves bytes and time for: the shape of every protocol's connection machine.
pub(crate) trait Machine {
    /// Takes what was read. It shares the memory of the read buffer of this worker: what is kept longer than the
    /// next turn is to be a copy.
    fn handle_input(&mut self, now: Instant, input: BytesMut);
    /// Lets time pass.
    fn handle_timeout(&mut self, now: Instant);
    /// What is to be written, until there is nothing more.
    fn poll_transmit(&mut self) -> Option<Bytes>;
    /// When time is to pass.
    fn poll_timeout(&self) -> Option<Instant>;
}

impl Machine for fieldgate_amqp::connection::Connection {
    fn handle_input(&mut self, now: Instant, input: BytesMut) {
        self.handle_input(now, input.freeze());
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.handle_timeout(now);
    }

    fn poll_transmit(&mut self) -> Option<Bytes> {
        self.poll_transmit()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.poll_timeout()
    }
}

impl Machine for fieldgate_mqtt::Connection {
    fn handle_input(&mut self, now: Instant, input: BytesMut) {
        self.handle_input(now, input);
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.handle_timeout(now);
    }

    fn poll_transmit(&mut self) -> Option<Bytes> {
        self.poll_transmit()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.poll_timeout()
    }
}

/// What a turn brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Bytes arrived or a timer ran out: the machine may have events.
    Progress,
    /// The peer closed its side of the stream.
    Ended,
}

/// A stream and what is under way on it.
#[derive(Debug)]
pub(crate) struct Wire<S> {
    stream: S,
    output: Bytes,
    unflushed: bool,
    ended: bool,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    /// A wire over an established stream.
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, output: Bytes::new(), unflushed: false, ended: false, timer: None }
    }

    /// Bytes taken from the machine and not yet taken by the stream.
    pub(crate) fn backlog(&self) -> usize {
        self.output.len()
    }

    /// Whether the peer has closed its side: nothing more is read.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// One turn; pending when the stream has nothing, takes nothing and no timer is due.
    ///
    /// With `read` false nothing is read: the way to hold a peer back.
    ///
    /// # Errors
    /// What the stream says: the connection is lost.
    pub(crate) fn poll_turn(
        &mut self,
        cx: &mut Context<'_>,
        machine: &mut impl Machine,
        read: bool,
    ) -> Poll<io::Result<Turn>> {
        if let Poll::Ready(Err(error)) = self.poll_write(cx, machine) {
            return Poll::Ready(Err(error));
        }
        if read
            && !self.ended
            && let Poll::Ready(bytes) = self.poll_read(cx)?
        {
            if bytes.is_empty() {
                self.ended = true;
                return Poll::Ready(Ok(Turn::Ended));
            }
            machine.handle_input(Instant::now(), bytes);
            return Poll::Ready(Ok(Turn::Progress));
        }
        ready!(self.poll_timer(cx, machine));
        machine.handle_timeout(Instant::now());
        Poll::Ready(Ok(Turn::Progress))
    }

    /// Writes and flushes all that the machine has to say; ready when the stream took it all.
    ///
    /// # Errors
    /// What the stream says.
    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        machine: &mut impl Machine,
    ) -> Poll<io::Result<()>> {
        loop {
            if self.output.is_empty() {
                match machine.poll_transmit() {
                    Some(bytes) => self.output = bytes,
                    None => {
                        // What has been written to its end still holds its memory.
                        self.output = Bytes::new();
                        break;
                    }
                }
            }
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.output))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.output.advance(written);
            self.unflushed = true;
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Lets the last words arrive: a socket that is closed with unread input destroys what is still on its way.
    pub(crate) async fn linger(mut self, mut machine: impl Machine, shutdown: &Shutdown) {
        let mut patience = pin!(tokio::time::sleep(LINGER));
        let mut abort = pin!(shutdown.aborting());
        let mut said = false;
        poll_fn(|cx| {
            loop {
                match self.poll_turn(cx, &mut machine, true) {
                    Poll::Ready(Ok(Turn::Progress)) => {}
                    Poll::Ready(Ok(Turn::Ended) | Err(_)) => return Poll::Ready(()),
                    Poll::Pending => break,
                }
            }
            if self.backlog() == 0 && !said {
                said = self.poll_shutdown(cx).is_ready();
            }
            if said && self.has_ended() || patience.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            abort.as_mut().poll(cx)
        })
        .await;
    }

    /// Says goodbye on the stream: TLS close_notify and FIN.
    ///
    /// # Errors
    /// What the stream says.
    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<BytesMut>> {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.reserve(READ_BYTES);
            // A TLS stream hands out a record at a time: gather what is there.
            while scratch.len() < READ_BYTES {
                let room = READ_BYTES - scratch.len();
                match poll_read_buf(Pin::new(&mut self.stream), cx, &mut scratch.limit(room)) {
                    Poll::Ready(Ok(0)) => break,
                    Poll::Ready(Ok(_)) => {}
                    // What came before the error or the wait is handled first.
                    Poll::Ready(Err(_)) | Poll::Pending if !scratch.is_empty() => break,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => return Poll::Pending,
                }
            }
            Poll::Ready(Ok(scratch.split()))
        })
    }

    fn poll_timer(&mut self, cx: &mut Context<'_>, machine: &impl Machine) -> Poll<()> {
        let Some(deadline) = machine.poll_timeout() else {
            return Poll::Pending;
        };
        let deadline = tokio::time::Instant::from_std(deadline);
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        // A deadline that moved later is noticed when the earlier one comes round: heartbeats
        // move it with every frame, and the timer wheel need not know.
        if deadline < timer.deadline() {
            timer.as_mut().reset(deadline);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if deadline <= tokio::time::Instant::now() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
    }
}
