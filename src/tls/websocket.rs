//! A stream inside the binary messages of a WebSocket, for either side: AMQP or MQTT over WebSocket.
//!
//! Where messages end means nothing. Payload is taken out of the caller's own read buffer, and what is written is framed
//! in a buffer that the thread lends: a connection with nothing to say holds none.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use fieldgate_websocket::client::{self, Request};
use fieldgate_websocket::server::{self, Refusal, Service};
use fieldgate_websocket::{Decoder, Encoder, MAX_HEAD_BYTES, Role, end_of_head};
use ring::rand::{SecureRandom as _, SystemRandom};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

/// The status code of a goodbye without a complaint (RFC 6455 7.4.1).
const NORMAL: u16 = 1000;

/// How long a client that was refused may take to read why, and how much it may still send.
const LAST_WORDS: Duration = Duration::from_secs(1);
const LAST_BYTES: u64 = 64 * 1024;

thread_local! {
    /// What is written next, framed; at most one frame.
    static FRAMED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A stream inside a WebSocket.
#[derive(Debug)]
pub(crate) struct WebSocket<S> {
    stream: S,
    decoder: Decoder,
    encoder: Encoder,
    /// Read behind the head of the handshake, and not yet decoded.
    early: Vec<u8>,
    unflushed: bool,
}

/// A server did not make it a WebSocket.
#[derive(Debug, Error)]
pub(crate) enum ConnectError {
    /// The stream was lost.
    #[error("the connection was lost: {0}")]
    Stream(#[from] io::Error),
    /// It answered something else.
    #[error(transparent)]
    Refused(#[from] client::Refused),
}

/// A client did not get a WebSocket.
#[derive(Debug, Error)]
pub(crate) enum AcceptError {
    /// The stream was lost.
    #[error("the connection was lost: {0}")]
    Stream(#[from] io::Error),
    /// It was told why.
    #[error("it was refused: {0}")]
    Refused(#[from] Refusal),
}

/// What ended the reading of a head.
enum HeadError {
    Stream(io::Error),
    TooLarge,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// Asks the server for a WebSocket. How long that may take is the caller's to bound.
    ///
    /// # Errors
    /// The stream's, or why the server would not.
    pub(crate) async fn connect(
        mut stream: S,
        authority: &str,
        path: &str,
        subprotocol: &'static str,
    ) -> Result<Self, ConnectError> {
        let (request, head) = Request::new(authority, path, subprotocol, random());
        stream.write_all(head.as_bytes()).await?;
        stream.flush().await?;
        let (head, early) = read_head(&mut stream).await.map_err(|error| match error {
            HeadError::Stream(error) => ConnectError::Stream(error),
            HeadError::TooLarge => client::Refused::Malformed.into(),
        })?;
        request.check(&head)?;
        Ok(Self::new(stream, Role::Client, early))
    }

    /// Makes a WebSocket of what a client asks for, if it asks rightly and within this time; else it is told what is
    /// wrong.
    ///
    /// # Errors
    /// The stream's, or what the client was told.
    pub(crate) async fn accept(
        mut stream: S,
        service: &'static Service,
        within: Duration,
    ) -> Result<Self, AcceptError> {
        let refusal = match tokio::time::timeout(within, read_head(&mut stream)).await {
            Ok(Ok((head, early))) => match server::judge(&head, service) {
                Ok(answer) => {
                    stream.write_all(answer.as_bytes()).await?;
                    stream.flush().await?;
                    return Ok(Self::new(stream, Role::Server, early));
                }
                Err(refusal) => refusal,
            },
            Ok(Err(HeadError::TooLarge)) => Refusal::TooLarge,
            Ok(Err(HeadError::Stream(error))) => return Err(error.into()),
            Err(_) => Refusal::TooSlow,
        };
        // One that goes without hearing it is none the wiser, and that is all.
        let _ = tokio::time::timeout(LAST_WORDS, refuse(&mut stream, refusal)).await;
        Err(refusal.into())
    }

    fn new(stream: S, role: Role, early: Vec<u8>) -> Self {
        let (decoder, encoder) = (Decoder::new(role), Encoder::new(role));
        Self { stream, decoder, encoder, early, unflushed: false }
    }

    /// What it goes over.
    pub(crate) fn get_ref(&self) -> &S {
        &self.stream
    }

    /// Reads what there is, and takes the payload out of it: the end where nothing was read.
    fn poll_payload(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<bool>> {
        let before = buf.filled().len();
        if self.early.is_empty() {
            ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        } else {
            let rest = self.early.split_off(self.early.len().min(buf.remaining()));
            buf.put_slice(&std::mem::replace(&mut self.early, rest));
        }
        let read = &mut buf.filled_mut()[before..];
        let ended = read.is_empty();
        match self.decoder.decode(read) {
            Ok(kept) => buf.set_filled(before + kept),
            Err(violation) => {
                buf.set_filled(before);
                self.encoder.close(violation.close_code(), random);
                // If it can be said at once: nobody comes back to say it.
                let _ = self.poll_control(cx);
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, violation)));
            }
        }
        if let Some(ping) = self.decoder.take_pong() {
            self.encoder.pong(&ping, random);
        }
        if let Some(code) = self.decoder.close_code() {
            self.encoder.close(code, random);
        }
        Poll::Ready(Ok(ended))
    }

    /// Writes what is due, a frame's worth of payload at most; how much of that the stream has taken.
    fn poll_put(&mut self, cx: &mut Context<'_>, payload: &[u8]) -> Poll<io::Result<usize>> {
        FRAMED.with_borrow_mut(|framed| {
            framed.clear();
            self.encoder.encode(payload, random, framed);
            if framed.is_empty() {
                return Poll::Ready(Ok(0));
            }
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, framed))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unflushed = true;
            Poll::Ready(Ok(self.encoder.written(written)))
        })
    }

    /// Sees to it that pongs and the goodbye are on their way. Within a frame they wait for its end.
    fn poll_control(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.encoder.has_control() && !self.encoder.is_within_frame() {
            ready!(self.poll_put(cx, &[]))?;
        }
        if self.unflushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocket<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        loop {
            if this.encoder.has_control()
                // What the stream does not take now wakes this task when it does.
                && let Poll::Ready(said) = this.poll_control(cx)
            {
                said?;
            }
            if buf.remaining() == 0 || this.decoder.close_code().is_some() {
                return Poll::Ready(Ok(()));
            }
            let ended = ready!(this.poll_payload(cx, buf))?;
            // Heads and control frames alone are nothing to the caller.
            if ended || buf.filled().len() > before {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocket<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        while !buf.is_empty() {
            if this.encoder.is_closed() && !this.encoder.is_within_frame() {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let payload = ready!(this.poll_put(cx, buf))?;
            if payload > 0 {
                return Poll::Ready(Ok(payload));
            }
        }
        Poll::Ready(Ok(0))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_control(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Within a frame that is never to end nothing can be said.
        if !this.encoder.is_within_frame() {
            this.encoder.close(NORMAL, random);
            // A stream that takes nothing any more is shut all the same.
            let _ = ready!(this.poll_control(cx));
        }
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

/// Reads to the end of a head: the head, and what came behind it.
async fn read_head<S: AsyncRead + Unpin>(stream: &mut S) -> Result<(Vec<u8>, Vec<u8>), HeadError> {
    let mut read = Vec::new();
    let mut stream = stream.take(MAX_HEAD_BYTES as u64);
    loop {
        if stream.read_buf(&mut read).await.map_err(HeadError::Stream)? == 0 {
            return Err(match read.len() {
                MAX_HEAD_BYTES.. => HeadError::TooLarge,
                _ => HeadError::Stream(io::ErrorKind::UnexpectedEof.into()),
            });
        }
        if let Some(end) = end_of_head(&read) {
            let early = read.split_off(end);
            return Ok((read, early));
        }
    }
}

/// Tells a client why not, and reads what it had on its way: a socket that is closed with unread input destroys what is
/// still on its way to the other side.
async fn refuse<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, refusal: Refusal) -> io::Result<()> {
    stream.write_all(refusal.answer().as_bytes()).await?;
    stream.shutdown().await?;
    tokio::io::copy(&mut stream.take(LAST_BYTES), &mut tokio::io::sink()).await?;
    Ok(())
}

/// Masks and keys, which nobody is to foresee. Without the system's randomness they would be alike, and the connection
/// would work as well.
fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let _ = SystemRandom::new().fill(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests;
