//! Request bodies, gathered within their bounds: the largest body, the bytes of all bodies of this worker together.

use std::cell::Cell;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Body;
use thiserror::Error;

/// Bytes of bodies that are being gathered, over all connections of the worker. One body always has room.
const MAX_GATHERED_BYTES: usize = 32 * 1024 * 1024;
/// How much of a body is read that nobody wants, so that the device gets to reading its answer.
const MAX_DISCARDED_BYTES: usize = 1024 * 1024;

/// Why there is no body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum BodyError {
    /// Over the limit.
    #[error("the body is too large")]
    TooLarge,
    /// Too many others are being gathered.
    #[error("too many bodies are under way")]
    Busy,
    /// It ended early, or its chunks are malformed.
    #[error("the body ends early or is malformed")]
    Broken,
}

/// Gathers a body of at most `max_bytes`. One that came in one piece is not copied.
///
/// # Errors
/// What it is instead; the rest is unread.
pub(super) async fn gather<B>(body: &mut B, max_bytes: usize) -> Result<Bytes, BodyError>
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut share = Share::default();
    let mut whole = Bytes::new();
    let mut pieces = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| BodyError::Broken)?;
        // Trailer fields have no meaning here.
        let Ok(data) = frame.into_data() else { continue };
        if data.len() > max_bytes - share.bytes {
            return Err(BodyError::TooLarge);
        }
        share.grow(data.len(), max_bytes)?;
        if whole.is_empty() && pieces.is_empty() {
            whole = data;
            continue;
        }
        if pieces.is_empty() {
            pieces.extend_from_slice(&std::mem::take(&mut whole));
        }
        pieces.extend_from_slice(&data);
    }
    Ok(if pieces.is_empty() { whole } else { pieces.freeze() })
}

/// Reads what is left of a body, within bounds. A connection that is closed before the device has sent everything is
/// reset, and with it the answer that the device has not read yet.
pub(super) async fn discard<B>(mut body: B)
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut left = MAX_DISCARDED_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        if left == 0 {
            return;
        }
    }
}

thread_local! {
    static GATHERED_BYTES: Cell<usize> = const { Cell::new(0) };
}

/// One body's part of what is gathered; given back when it is dropped.
#[derive(Debug, Default)]
struct Share {
    bytes: usize,
}

impl Share {
    fn grow(&mut self, bytes: usize, max_bytes: usize) -> Result<(), BodyError> {
        let gathered = GATHERED_BYTES.get() + bytes;
        if gathered > MAX_GATHERED_BYTES.max(max_bytes) {
            return Err(BodyError::Busy);
        }
        GATHERED_BYTES.set(gathered);
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        GATHERED_BYTES.set(GATHERED_BYTES.get() - self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::Future;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    use http_body_util::Full;
    use hyper::body::Frame;

    use super::*;

    /// A body of these pieces, and then of nothing more: an end, or a wait.
    struct Pieces {
        pieces: Vec<Bytes>,
        ends: bool,
    }

    impl Body for Pieces {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            match self.pieces.is_empty() {
                false => Poll::Ready(Some(Ok(Frame::data(self.pieces.remove(0))))),
                true if self.ends => Poll::Ready(None),
                true => Poll::Pending,
            }
        }
    }

    fn pieces(sizes: &[usize], ends: bool) -> Pieces {
        Pieces { pieces: sizes.iter().map(|size| Bytes::from(vec![b'x'; *size])).collect(), ends }
    }

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    fn gathered(sizes: &[usize], max_bytes: usize) -> Result<usize, BodyError> {
        let mut body = pieces(sizes, true);
        match poll(pin!(gather(&mut body, max_bytes))) {
            Poll::Ready(result) => result.map(|body| body.len()),
            Poll::Pending => panic!("this body never waits"),
        }
    }

    #[test]
    fn a_body_in_one_piece_is_not_copied() {
        let sent = Bytes::from_static(b"21.5");
        let mut body = Full::new(sent.clone());
        let Poll::Ready(Ok(came)) = poll(pin!(gather(&mut body, 100))) else { panic!("it is all there") };
        assert_eq!(came, sent);
        assert_eq!(came.as_ptr(), sent.as_ptr());
    }

    #[test]
    fn pieces_are_joined_up_to_the_limit() {
        assert_eq!(gathered(&[], 10), Ok(0));
        assert_eq!(gathered(&[3, 4, 3], 10), Ok(10));
        assert_eq!(gathered(&[3, 4, 4], 10), Err(BodyError::TooLarge));
        assert_eq!(gathered(&[11], 10), Err(BodyError::TooLarge));
        assert_eq!(gathered(&[1], 0), Err(BodyError::TooLarge));
    }

    #[test]
    fn all_bodies_together_are_bounded_and_give_their_room_back() {
        let (mut first, mut second) = (pieces(&[MAX_GATHERED_BYTES - 10], false), pieces(&[10], false));
        {
            let mut first = Box::pin(gather(&mut first, MAX_GATHERED_BYTES));
            assert!(poll(first.as_mut()).is_pending());
            let mut second = Box::pin(gather(&mut second, MAX_GATHERED_BYTES));
            assert!(poll(second.as_mut()).is_pending());
            assert_eq!(gathered(&[1], 10), Err(BodyError::Busy));
            drop(second);
            assert_eq!(gathered(&[10], 10), Ok(10));
            assert_eq!(gathered(&[10], 10), Ok(10));
        }
        assert_eq!(GATHERED_BYTES.get(), 0);
    }

    #[test]
    fn discarding_ends_by_itself() {
        let endless = Pieces { pieces: vec![Bytes::from_static(&[0; 4096]); 1000], ends: false };
        assert!(poll(pin!(discard(endless))).is_ready());
        assert!(poll(pin!(discard(pieces(&[5], true)))).is_ready());
        assert!(poll(pin!(discard(pieces(&[5], false)))).is_pending());
    }
}
