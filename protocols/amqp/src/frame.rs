//! Frames and protocol headers (AMQP 1.0 2.2, 2.3): cutting them out of a byte stream, and writing them.

use std::collections::VecDeque;
use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::error::Violation;

/// The smallest max-frame-size, and the largest frame before open (AMQP 1.0 2.8.19).
pub const MIN_MAX_FRAME_BYTES: u32 = 512;

/// The length of a frame header, and of a protocol header.
const HEADER_LEN: usize = 8;

/// Which layer a frame belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// AMQP.
    Amqp,
    /// SASL.
    Sasl,
}

/// The header of a frame (AMQP 1.0 2.3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// The bytes of the whole frame.
    pub size: u32,
    /// Where the body starts, in words of four bytes.
    pub doff: u8,
    /// The layer.
    pub kind: FrameKind,
    /// The channel; without meaning in a SASL frame.
    pub channel: u16,
}

impl FrameHeader {
    /// The header in these eight bytes.
    ///
    /// # Errors
    /// Where the size is less than the header's own or more than `max_frame_bytes`, the data offset does not point
    /// into the frame, or there is no such frame type.
    #[inline]
    pub fn parse(bytes: [u8; HEADER_LEN], max_frame_bytes: u32) -> Result<Self, Violation> {
        let [a, b, c, d, doff, kind, e, f] = bytes;
        let size = u32::from_be_bytes([a, b, c, d]);
        if size < 8 {
            return Err(Violation::FrameTooSmall(size));
        }
        if size > max_frame_bytes {
            return Err(Violation::FrameTooLarge { size, max: max_frame_bytes });
        }
        if doff < 2 || u32::from(doff) * 4 > size {
            return Err(Violation::DataOffset(doff));
        }
        let kind = match kind {
            0 => FrameKind::Amqp,
            1 => FrameKind::Sasl,
            _ => return Err(Violation::FrameType(kind)),
        };
        Ok(Self { size, doff, kind, channel: u16::from_be_bytes([e, f]) })
    }
}

/// A frame. An empty body is a heartbeat (AMQP 1.0 2.4.5).
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// The layer.
    pub kind: FrameKind,
    /// The channel; without meaning in a SASL frame.
    pub channel: u16,
    /// What stands behind the header and the extended header.
    pub body: Bytes,
}

impl Frame {
    /// The frame that `bytes` are, with the header that stands at their start.
    #[inline]
    fn cut(header: FrameHeader, mut bytes: Bytes) -> Self {
        bytes.advance(usize::from(header.doff) * 4);
        Self { kind: header.kind, channel: header.channel, body: bytes }
    }
}

impl fmt::Debug for Frame {
    /// Without the body, which may hold a payload or a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Frame({:?}, channel {}, {} bytes)", self.kind, self.channel, self.body.len())
    }
}

/// Takes the first frame off `input`; `None` where it is not all there.
///
/// # Errors
/// As [`FrameHeader::parse`], as soon as the header is there.
#[inline]
pub fn split(input: &mut Bytes, max_frame_bytes: u32) -> Result<Option<Frame>, Violation> {
    let Some(&bytes) = input.first_chunk() else {
        return Ok(None);
    };
    let header = FrameHeader::parse(bytes, max_frame_bytes)?;
    let size = header.size as usize;
    if input.len() < size {
        return Ok(None);
    }
    Ok(Some(Frame::cut(header, input.split_to(size))))
}

/// Writes the header of a frame of `size` bytes in all.
#[inline]
pub fn put_frame_header(out: &mut BytesMut, size: u32, kind: FrameKind, channel: u16) {
    let [a, b, c, d] = size.to_be_bytes();
    let [e, f] = channel.to_be_bytes();
    out.put_slice(&[a, b, c, d, 2, kind as u8, e, f]);
}

/// Writes a frame whose body `body` writes.
#[inline]
pub fn put_frame(out: &mut BytesMut, kind: FrameKind, channel: u16, body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    put_frame_header(out, 0, kind, channel);
    body(out);
    let size = u32::try_from(out.len() - start).expect("a frame is cut to the peer's max-frame-size, a u32");
    out[start..start + 4].copy_from_slice(&size.to_be_bytes());
}

/// A frame without a body, which says only that the sender is alive.
pub const HEARTBEAT: [u8; HEADER_LEN] = [0, 0, 0, 8, 2, 0, 0, 0];

/// What a byte stream starts with (AMQP 1.0 2.2), in version 1.0.0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProtocolHeader {
    /// AMQP.
    Amqp,
    /// TLS, to be started inside the stream.
    Tls,
    /// SASL.
    Sasl,
}

impl ProtocolHeader {
    /// The header in these eight bytes.
    ///
    /// # Errors
    /// Where they are another protocol's, or another version's.
    pub fn parse(bytes: [u8; HEADER_LEN]) -> Result<Self, Violation> {
        match &bytes {
            b"AMQP\x00\x01\x00\x00" => Ok(Self::Amqp),
            b"AMQP\x02\x01\x00\x00" => Ok(Self::Tls),
            b"AMQP\x03\x01\x00\x00" => Ok(Self::Sasl),
            _ => Err(Violation::ProtocolHeader(bytes)),
        }
    }

    /// The eight bytes.
    pub fn bytes(self) -> [u8; HEADER_LEN] {
        match self {
            Self::Amqp => *b"AMQP\x00\x01\x00\x00",
            Self::Tls => *b"AMQP\x02\x01\x00\x00",
            Self::Sasl => *b"AMQP\x03\x01\x00\x00",
        }
    }
}

/// The bytes that have come and have not been taken, in the pieces they came in.
///
/// A frame that lies in one piece is taken without a copy. One that spans pieces is put together, and no more is
/// kept of it than came: a claimed size reserves nothing. Without input waiting it holds no memory.
#[derive(Default)]
pub struct FrameBuffer {
    /// The start of a frame that ended its piece.
    partial: BytesMut,
    current: Bytes,
    waiting: VecDeque<Bytes>,
}

impl FrameBuffer {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds bytes that came.
    #[inline]
    pub fn push(&mut self, input: Bytes) {
        if self.current.is_empty() && self.waiting.is_empty() {
            self.current = input;
        } else if !input.is_empty() {
            self.waiting.push_back(input);
        }
    }

    /// How many bytes wait.
    pub fn len(&self) -> usize {
        self.partial.len() + self.current.len() + self.waiting.iter().map(Bytes::len).sum::<usize>()
    }

    /// Whether no bytes wait.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all that waits.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Takes the next frame; `None` where it is not all there.
    ///
    /// # Errors
    /// As [`FrameHeader::parse`], as soon as the header is there. The bytes stay: the stream is of no use any more.
    #[inline]
    pub fn next(&mut self, max_frame_bytes: u32) -> Result<Option<Frame>, Violation> {
        if self.partial.is_empty() {
            if let Some(frame) = split(&mut self.current, max_frame_bytes)? {
                if self.current.is_empty() {
                    self.advance();
                }
                return Ok(Some(frame));
            }
            if self.current.is_empty() {
                return Ok(None);
            }
        }
        self.join(max_frame_bytes)
    }

    /// Takes the eight bytes of a protocol header; `None` where they are not all there.
    pub fn take_protocol_header(&mut self) -> Option<[u8; HEADER_LEN]> {
        if !self.fill(HEADER_LEN) {
            return None;
        }
        let header = self.partial.first_chunk().copied();
        self.partial = BytesMut::new();
        header
    }

    /// The bytes of a frame that spans pieces.
    #[cold]
    fn join(&mut self, max_frame_bytes: u32) -> Result<Option<Frame>, Violation> {
        if !self.fill(HEADER_LEN) {
            return Ok(None);
        }
        let Some(&bytes) = self.partial.first_chunk() else {
            return Ok(None);
        };
        let header = FrameHeader::parse(bytes, max_frame_bytes)?;
        if !self.fill(header.size as usize) {
            return Ok(None);
        }
        Ok(Some(Frame::cut(header, std::mem::take(&mut self.partial).freeze())))
    }

    /// Moves bytes into `partial` until it has `size`; whether that many were there.
    fn fill(&mut self, size: usize) -> bool {
        while self.partial.len() < size {
            if self.current.is_empty() {
                self.advance();
                if self.current.is_empty() {
                    return false;
                }
            }
            let missing = size - self.partial.len();
            let piece = self.current.split_to(missing.min(self.current.len()));
            self.partial.extend_from_slice(&piece);
        }
        if self.current.is_empty() {
            self.advance();
        }
        true
    }

    /// Goes on to the next piece, and lets go of the last one.
    fn advance(&mut self) {
        self.current = self.waiting.pop_front().unwrap_or_default();
        if self.waiting.is_empty() {
            self.waiting = VecDeque::new();
        }
    }
}

impl fmt::Debug for FrameBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FrameBuffer({} bytes)", self.len())
    }
}
