//! Frames (RFC 6455 5): payload out of what is read, in place; what is to be written out of payload.

use thiserror::Error;

/// The most payload that one frame of ours carries; with its head it fits a TLS record.
pub const MAX_FRAME_BYTES: usize = 16 * 1024 - MAX_HEAD;

/// Two bytes, eight of length, four of mask (RFC 6455 5.2).
const MAX_HEAD: usize = 14;
/// RFC 6455 5.5.
const MAX_CONTROL_BYTES: u64 = 125;

const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;

/// Which side of the connection this is: a client's frames are masked, a server's are not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It asked for the connection.
    Client,
    /// It was asked.
    Server,
}

/// The peer broke a rule; the connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// A bit that only an extension may set.
    #[error("a WebSocket frame uses an extension, and none was agreed on (RFC 6455 5.2)")]
    Reserved,
    /// An operation that there is none of.
    #[error("a WebSocket frame has the unknown opcode {0:#x} (RFC 6455 5.2)")]
    Opcode(u8),
    /// A client's frame in the clear.
    #[error("a WebSocket frame of a client is not masked (RFC 6455 5.1)")]
    Unmasked,
    /// A server's frame with a mask.
    #[error("a WebSocket frame of a server is masked (RFC 6455 5.1)")]
    Masked,
    /// A length that is written too long, or is none.
    #[error("the length of a WebSocket frame is not written in its shortest form (RFC 6455 5.2)")]
    Length,
    /// A ping, pong or close in parts, or too long.
    #[error("a WebSocket control frame is in parts, or longer than 125 bytes (RFC 6455 5.5)")]
    Control,
    /// A part of a message that was not begun, or a message inside of another.
    #[error("the parts of a WebSocket message are out of order (RFC 6455 5.4)")]
    Fragments,
    /// A text message: AMQP goes in binary ones.
    #[error("a WebSocket text message came; AMQP is carried in binary messages")]
    Text,
    /// A close that says nothing sensible.
    #[error("a WebSocket close frame has no valid status code (RFC 6455 7.4)")]
    Close,
}

impl Violation {
    /// What the peer is told: the status code of our close frame (RFC 6455 7.4.1).
    #[must_use]
    pub fn close_code(self) -> u16 {
        match self {
            Self::Text => 1003,
            _ => 1002,
        }
    }
}

/// Where in the stream the next byte belongs.
#[derive(Debug)]
enum State {
    /// In the head of a frame, of which so many bytes have come.
    Head { bytes: [u8; MAX_HEAD], have: usize },
    /// In the payload of a data frame.
    Data { left: u64 },
    /// In the payload of a control frame.
    Control { opcode: u8, left: usize, payload: Vec<u8> },
    /// Behind a close frame: whatever comes is not read (RFC 6455 5.5.1).
    Closed,
}

const START: State = State::Head { bytes: [0; MAX_HEAD], have: 0 };

/// Takes payload out of frames.
#[derive(Debug)]
pub struct Decoder {
    role: Role,
    state: State,
    /// Of the frame under way, turned so that its first byte is for the next byte of payload.
    mask: [u8; 4],
    /// A message has begun and not ended.
    in_message: bool,
    pong: Option<Vec<u8>>,
    close: Option<u16>,
}

impl Decoder {
    /// The decoder of this side, for the frames of the other.
    #[must_use]
    pub fn new(role: Role) -> Self {
        Self { role, state: START, mask: [0; 4], in_message: false, pong: None, close: None }
    }

    /// Takes what was read. The payload in it lies at the front of `bytes` afterwards: so many bytes as are returned.
    ///
    /// # Errors
    /// The rule that the peer broke. Nothing more is to be decoded.
    pub fn decode(&mut self, bytes: &mut [u8]) -> Result<usize, Violation> {
        let (mut read, mut kept) = (0, 0);
        while read < bytes.len() {
            match &mut self.state {
                State::Head { bytes: head, have } => {
                    head[*have] = bytes[read];
                    *have += 1;
                    read += 1;
                    if *have >= 2 && *have == head_length(head[1]) {
                        let head = *head;
                        self.state = self.begin(&head)?;
                    }
                }
                State::Data { left } => {
                    let here = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len() - read);
                    bytes.copy_within(read..read + here, kept);
                    apply(&mut bytes[kept..kept + here], &mut self.mask);
                    read += here;
                    kept += here;
                    *left -= here as u64;
                    if *left == 0 {
                        self.state = START;
                    }
                }
                State::Control { opcode, left, payload } => {
                    let here = (*left).min(bytes.len() - read);
                    let part = &mut bytes[read..read + here];
                    apply(part, &mut self.mask);
                    payload.extend_from_slice(part);
                    read += here;
                    *left -= here;
                    if *left == 0 {
                        let (opcode, payload) = (*opcode, std::mem::take(payload));
                        self.state = self.control(opcode, payload)?;
                    }
                }
                State::Closed => break,
            }
        }
        Ok(kept)
    }

    /// What a pong that is due must repeat. Only the newest of several pings is answered (RFC 6455 5.5.3).
    pub fn take_pong(&mut self) -> Option<Vec<u8>> {
        self.pong.take()
    }

    /// The status code with which the peer has closed; it sends nothing more. 1005 where it gave none.
    #[must_use]
    pub fn close_code(&self) -> Option<u16> {
        self.close
    }

    /// A head is complete.
    fn begin(&mut self, head: &[u8; MAX_HEAD]) -> Result<State, Violation> {
        let (last, opcode) = (head[0] & FIN != 0, head[0] & 0x0f);
        if head[0] & RESERVED != 0 {
            return Err(Violation::Reserved);
        }
        let masked = head[1] & MASKED != 0;
        match self.role {
            Role::Server if !masked => return Err(Violation::Unmasked),
            Role::Client if masked => return Err(Violation::Masked),
            _ => {}
        }
        let (length, mask) = length(head)?;
        self.mask = mask;
        match opcode {
            CONTINUATION | BINARY => {
                if (opcode == CONTINUATION) != self.in_message {
                    return Err(Violation::Fragments);
                }
                self.in_message = !last;
                Ok(if length == 0 { START } else { State::Data { left: length } })
            }
            TEXT => Err(Violation::Text),
            CLOSE | PING | PONG if !last || length > MAX_CONTROL_BYTES => Err(Violation::Control),
            CLOSE | PING | PONG if length == 0 => self.control(opcode, Vec::new()),
            CLOSE | PING | PONG => {
                let left = usize::from(head[1] & !MASKED);
                Ok(State::Control { opcode, left, payload: Vec::with_capacity(left) })
            }
            unknown => Err(Violation::Opcode(unknown)),
        }
    }

    /// A control frame is complete.
    fn control(&mut self, opcode: u8, payload: Vec<u8>) -> Result<State, Violation> {
        match opcode {
            PING => self.pong = Some(payload),
            CLOSE => {
                self.close = Some(status(&payload)?);
                return Ok(State::Closed);
            }
            // A pong that nobody asked for needs no answer (RFC 6455 5.5.3).
            _ => {}
        }
        Ok(START)
    }
}

/// The length of a head whose second byte this is.
fn head_length(second: u8) -> usize {
    let extended = match second & !MASKED {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    2 + extended + if second & MASKED != 0 { 4 } else { 0 }
}

/// The payload's length and mask.
fn length(head: &[u8; MAX_HEAD]) -> Result<(u64, [u8; 4]), Violation> {
    let wide = |from: usize, to: usize| {
        head[from..to].iter().fold(0_u64, |value, byte| value << 8 | u64::from(*byte))
    };
    let (length, end, least) = match head[1] & !MASKED {
        126 => (wide(2, 4), 4, 126),
        127 => (wide(2, 10), 10, 0x1_0000),
        short => (u64::from(short), 2, 0),
    };
    if length < least || length > i64::MAX as u64 {
        return Err(Violation::Length);
    }
    let mut mask = [0; 4];
    if head[1] & MASKED != 0 {
        mask.copy_from_slice(&head[end..end + 4]);
    }
    Ok((length, mask))
}

/// RFC 6455 7.1.5 and 7.4.
fn status(payload: &[u8]) -> Result<u16, Violation> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return if payload.is_empty() { Ok(1005) } else { Err(Violation::Close) };
    };
    let code = u16::from_be_bytes(*code);
    let sensible = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
    if sensible && std::str::from_utf8(reason).is_ok() { Ok(code) } else { Err(Violation::Close) }
}

/// Masks or unmasks, and turns the mask to where the next byte goes on (RFC 6455 5.3).
fn apply(payload: &mut [u8], mask: &mut [u8; 4]) {
    let mut words = payload.chunks_exact_mut(4);
    for word in &mut words {
        for (byte, mask) in word.iter_mut().zip(*mask) {
            *byte ^= mask;
        }
    }
    let rest = words.into_remainder();
    for (byte, mask) in rest.iter_mut().zip(*mask) {
        *byte ^= mask;
    }
    let turned = rest.len();
    mask.rotate_left(turned);
}

/// A data frame of ours that is under way.
#[derive(Clone, Copy, Debug)]
struct Frame {
    head: [u8; MAX_HEAD],
    head_bytes: usize,
    /// How much of the head the stream has taken.
    taken: usize,
    /// As in [`Decoder`].
    mask: [u8; 4],
    /// Payload that is still to come.
    left: usize,
}

/// Puts payload into frames.
#[derive(Debug)]
pub struct Encoder {
    role: Role,
    frame: Option<Frame>,
    /// Control frames that wait for the end of the frame under way, and how much of them the stream has taken.
    control: Vec<u8>,
    control_taken: usize,
    closed: bool,
}

impl Encoder {
    /// The encoder of this side.
    #[must_use]
    pub fn new(role: Role) -> Self {
        Self { role, frame: None, control: Vec::new(), control_taken: 0, closed: false }
    }

    /// Appends to `out` what is to be written: control frames that wait, then as much of `payload` as one frame takes.
    /// `random` is asked for masks; its result must not be foreseeable by a peer.
    ///
    /// Nothing counts as written before [`written`](Self::written) says so: what is encoded next begins there. A frame
    /// whose head was written is owed all its payload.
    pub fn encode(&mut self, payload: &[u8], mut random: impl FnMut() -> [u8; 4], out: &mut Vec<u8>) {
        if !self.is_within_frame() {
            out.extend_from_slice(&self.control[self.control_taken..]);
            if payload.is_empty() || self.closed {
                return;
            }
            self.frame = Some(Frame::new(self.role, BINARY, payload.len().min(MAX_FRAME_BYTES), &mut random));
        }
        let Some(frame) = &self.frame else { return };
        out.extend_from_slice(&frame.head[frame.taken..frame.head_bytes]);
        let start = out.len();
        out.extend_from_slice(&payload[..frame.left.min(payload.len())]);
        apply(&mut out[start..], &mut { frame.mask });
    }

    /// The stream has taken so many bytes of what was encoded last. How many of them were payload.
    pub fn written(&mut self, bytes: usize) -> usize {
        let mut bytes = bytes;
        if !self.is_within_frame() {
            let control = bytes.min(self.control.len() - self.control_taken);
            self.control_taken += control;
            bytes -= control;
            if self.control_taken == self.control.len() {
                self.control = Vec::new();
                self.control_taken = 0;
            }
        }
        let Some(frame) = &mut self.frame else { return 0 };
        let head = bytes.min(frame.head_bytes - frame.taken);
        frame.taken += head;
        let payload = (bytes - head).min(frame.left);
        frame.left -= payload;
        frame.mask.rotate_left(payload % 4);
        if frame.left == 0 || frame.taken == 0 {
            self.frame = None;
        }
        payload
    }

    /// Answers a ping with what it said.
    pub fn pong(&mut self, payload: &[u8], random: impl FnMut() -> [u8; 4]) {
        // One at a time: a peer that does not read its pongs gets no more of them.
        if self.control.is_empty() {
            self.put_control(PONG, payload, random);
        }
    }

    /// Says goodbye with a status code, once; 1005 is a goodbye without one. No payload follows it.
    pub fn close(&mut self, code: u16, random: impl FnMut() -> [u8; 4]) {
        if !self.closed {
            let code = code.to_be_bytes();
            self.put_control(CLOSE, if code == 1005_u16.to_be_bytes() { &[] } else { &code }, random);
            self.closed = true;
        }
    }

    /// Whether the goodbye was said: no payload is taken any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Whether something is to be written that is not payload.
    #[must_use]
    pub fn has_control(&self) -> bool {
        !self.control.is_empty()
    }

    /// Whether a frame is begun: what is written next is the rest of it.
    #[must_use]
    pub fn is_within_frame(&self) -> bool {
        self.frame.is_some_and(|frame| frame.taken > 0)
    }

    fn put_control(&mut self, opcode: u8, payload: &[u8], mut random: impl FnMut() -> [u8; 4]) {
        let mut frame = Frame::new(self.role, opcode, payload.len(), &mut random);
        self.control.extend_from_slice(&frame.head[..frame.head_bytes]);
        let start = self.control.len();
        self.control.extend_from_slice(payload);
        apply(&mut self.control[start..], &mut frame.mask);
    }
}

impl Frame {
    fn new(role: Role, opcode: u8, length: usize, random: &mut impl FnMut() -> [u8; 4]) -> Self {
        let mut head = [0; MAX_HEAD];
        head[0] = FIN | opcode;
        let mut head_bytes = 2;
        // The length in its shortest form (RFC 6455 5.2).
        match (u8::try_from(length), u16::try_from(length)) {
            (Ok(short @ ..126), _) => head[1] = short,
            (_, Ok(medium)) => {
                head[1] = 126;
                head[2..4].copy_from_slice(&medium.to_be_bytes());
                head_bytes = 4;
            }
            _ => {
                head[1] = 127;
                head[2..10].copy_from_slice(&(length as u64).to_be_bytes());
                head_bytes = 10;
            }
        }
        let mut mask = [0; 4];
        if role == Role::Client {
            mask = random();
            head[1] |= MASKED;
            head[head_bytes..head_bytes + 4].copy_from_slice(&mask);
            head_bytes += 4;
        }
        Self { head, head_bytes, taken: 0, mask, left: length }
    }
}

#[cfg(test)]
mod tests;
