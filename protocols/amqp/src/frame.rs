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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Random, damaged};

    /// Frames of both kinds, of all lengths up to 200 bytes, some with an extended header; and as a stream.
    fn stream(random: &mut Random) -> (Vec<Frame>, Bytes) {
        let mut out = BytesMut::new();
        let frames = (0..random.below(20)).map(|_| {
            let kind = *random.pick(&[FrameKind::Amqp, FrameKind::Sasl]);
            let (channel, body) = (random.next() as u16, random.bytes(200));
            let extended = random.below(3);
            let size = (8 + 4 * extended + body.len()) as u32;
            put_frame_header(&mut out, size, kind, channel);
            let doff = out.len() - 4;
            out[doff] += extended as u8;
            out.put_bytes(0xee, 4 * extended);
            out.put_slice(&body);
            Frame { kind, channel, body: body.into() }
        });
        (frames.collect(), out.freeze())
    }

    fn drain(buffer: &mut FrameBuffer, max: u32) -> Result<Vec<Frame>, Violation> {
        let mut frames = Vec::new();
        while let Some(frame) = buffer.next(max)? {
            frames.push(frame);
        }
        Ok(frames)
    }

    #[test]
    fn every_cut_of_the_stream_gives_the_same_frames() {
        let mut random = Random::new(30);
        for round in 0..2_000 {
            let (frames, stream) = stream(&mut random);
            let mut buffer = FrameBuffer::new();
            let mut got = Vec::new();
            let mut rest = stream;
            while !rest.is_empty() {
                buffer.push(rest.split_to((1 + random.below(90)).min(rest.len())));
                // Some readers take frames late, some at once.
                if round % 2 == 0 || random.chance(3) {
                    got.extend(drain(&mut buffer, 512).unwrap());
                }
            }
            got.extend(drain(&mut buffer, 512).unwrap());
            assert_eq!(got, frames);
            assert_eq!((buffer.len(), buffer.partial.capacity(), buffer.waiting.capacity()), (0, 0, 0));
        }
    }

    #[test]
    fn a_protocol_header_and_frames_come_in_any_pieces() {
        let stream = [&ProtocolHeader::Amqp.bytes()[..], &HEARTBEAT, &ProtocolHeader::Sasl.bytes()].concat();
        for cut in 0..=stream.len() {
            let mut buffer = FrameBuffer::new();
            buffer.push(Bytes::copy_from_slice(&stream[..cut]));
            let early = buffer.take_protocol_header();
            assert_eq!(early.is_some(), cut >= 8);
            buffer.push(Bytes::copy_from_slice(&stream[cut..]));
            let header = early.or_else(|| buffer.take_protocol_header()).unwrap();
            assert_eq!(ProtocolHeader::parse(header), Ok(ProtocolHeader::Amqp));
            assert_eq!(buffer.next(512).unwrap().unwrap().body.len(), 0);
            let header = buffer.take_protocol_header().unwrap();
            assert_eq!(ProtocolHeader::parse(header), Ok(ProtocolHeader::Sasl));
            assert!(buffer.is_empty());
        }
        assert!(ProtocolHeader::parse(*b"AMQP\x00\x00\x09\x01").is_err());
        assert!(ProtocolHeader::parse(*b"GET / HT").is_err());
    }

    #[test]
    fn whole_frames_are_not_copied_and_pieces_are_let_go() {
        let mut out = BytesMut::new();
        put_frame(&mut out, FrameKind::Amqp, 3, |out| out.put_slice(b"body"));
        out.put_slice(&HEARTBEAT[..5]);
        let input = out.freeze();
        let mut buffer = FrameBuffer::new();
        buffer.push(input.clone());
        let frame = buffer.next(512).unwrap().unwrap();
        assert_eq!((frame.channel, frame.body.as_ptr()), (3, input[8..].as_ptr()));
        assert!(!format!("{frame:?}").contains("body\""));
        drop(frame);
        assert_eq!(buffer.next(512), Ok(None));
        // Five bytes of a heartbeat do not hold on to the piece they came in.
        assert!(input.is_unique());
        assert_eq!(buffer.len(), 5);
        buffer.clear();
        assert!(buffer.is_empty());
    }

    #[test]
    fn a_claimed_size_reserves_nothing() {
        let mut buffer = FrameBuffer::new();
        buffer.push(Bytes::from_static(b"\x40\x00\x00\x00\x02\x00\x00\x00"));
        assert_eq!(buffer.next(u32::MAX), Ok(None));
        assert!(buffer.partial.capacity() < 1024);
        assert_eq!(buffer.next(65536), Err(Violation::FrameTooLarge { size: 1 << 30, max: 65536 }));
    }

    #[test]
    fn malformed_headers_are_refused() {
        let parse = |bytes: &[u8; 8]| FrameHeader::parse(*bytes, 512);
        // A frame of five bytes, and of none.
        assert_eq!(parse(b"\x00\x00\x00\x05\x02\x00\x00\x00"), Err(Violation::FrameTooSmall(5)));
        assert_eq!(parse(b"\x00\x00\x00\x00\x02\x00\x00\x00"), Err(Violation::FrameTooSmall(0)));
        assert_eq!(
            parse(b"\x00\x00\x02\x01\x02\x00\x00\x00"),
            Err(Violation::FrameTooLarge { size: 513, max: 512 })
        );
        assert_eq!(parse(b"\x00\x00\x00\x08\x01\x00\x00\x00"), Err(Violation::DataOffset(1)));
        assert_eq!(parse(b"\x00\x00\x00\x08\x03\x00\x00\x00"), Err(Violation::DataOffset(3)));
        assert_eq!(parse(b"\x00\x00\x00\x08\xff\x00\x00\x00"), Err(Violation::DataOffset(255)));
        assert_eq!(parse(b"\x00\x00\x00\x08\x02\x02\x00\x00"), Err(Violation::FrameType(2)));
        assert_eq!(parse(b"\x00\x00\x02\x00\x80\x00\x00\x00").map(|header| header.doff), Ok(128));
    }

    #[test]
    fn damage_never_panics() {
        let mut random = Random::new(31);
        for _ in 0..5_000 {
            let (_, stream) = stream(&mut random);
            let mut buffer = FrameBuffer::new();
            let mut rest = damaged(&stream, &mut random);
            let len = rest.len();
            let mut taken = 0;
            while !rest.is_empty() {
                buffer.push(rest.split_to((1 + random.below(300)).min(rest.len())));
                match drain(&mut buffer, 512) {
                    Ok(frames) => taken += frames.iter().map(|frame| 8 + frame.body.len()).sum::<usize>(),
                    Err(_) => break,
                }
            }
            assert!(taken <= len);
        }
    }
}
