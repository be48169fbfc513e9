//! What is to be sent: one buffer, and beside it the frames that may not go before the peer's open.

use bytes::BytesMut;

/// The pending output of a connection. It holds no memory while there is nothing to send.
#[derive(Debug)]
pub(crate) struct Output {
    bytes: BytesMut,
    /// Frames that were written before both sides had opened. What the peer takes is not known until then.
    waiting: Option<Box<BytesMut>>,
}

impl Output {
    /// Where frames of the handshake go, and everything once both sides have opened.
    pub(crate) fn now(&mut self) -> &mut BytesMut {
        &mut self.bytes
    }

    /// Where frames of sessions go: `now`, or the frames that wait.
    pub(crate) fn frames(&mut self) -> &mut BytesMut {
        match &mut self.waiting {
            Some(waiting) => waiting,
            None => &mut self.bytes,
        }
    }

    /// Frames of sessions wait for [`open`](Self::open).
    pub(crate) fn waiting_for_open() -> Self {
        Self { bytes: BytesMut::new(), waiting: Some(Box::default()) }
    }

    /// Both sides have opened. False where a frame that waited is larger than `max_frame_bytes`; none goes then.
    pub(crate) fn open(&mut self, max_frame_bytes: u32) -> bool {
        let Some(waiting) = self.waiting.take() else { return true };
        let mut rest = &waiting[..];
        // Our own frames: each begins with its size.
        while let Some(size) = rest.first_chunk::<4>() {
            let size = u32::from_be_bytes(*size);
            if size > max_frame_bytes {
                return false;
            }
            rest = &rest[size as usize..];
        }
        self.bytes.extend_from_slice(&waiting);
        true
    }

    pub(crate) fn discard_waiting(&mut self) {
        self.waiting = None;
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn take(&mut self) -> Option<BytesMut> {
        if self.bytes.is_empty() { None } else { Some(std::mem::take(&mut self.bytes)) }
    }

    /// Gives the output and its room; a buffer that has room where we have none keeps it.
    pub(crate) fn take_into(&mut self, buffer: &mut BytesMut) {
        if self.bytes.capacity() > 0 {
            *buffer = std::mem::take(&mut self.bytes);
        } else {
            buffer.clear();
        }
    }

    pub(crate) fn lend(&mut self, buffer: &mut BytesMut) {
        if self.bytes.capacity() == 0 {
            buffer.clear();
            std::mem::swap(&mut self.bytes, buffer);
        }
    }
}
