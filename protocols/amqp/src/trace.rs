//! Frames as a line of text each, in the style of Qpid Proton's `PN_TRACE_FRM`, for whoever wants to see them pass.
//!
//! ```text
//! AMQP:FRAME:0 <- @attach(18) [name="telemetry", handle=0x0, role=false, source=@source(40) [], …]
//! AMQP:FRAME:0 -> @transfer(20) [handle=0x0, delivery-id=0x7, delivery-tag=b"\x00\x07", more=false] (100)
//! ```
//!
//! A trace is pasted into mails and tickets, so it shows no secret that it can tell: of payloads and of what SASL
//! exchanges there is only the size; what looks like a token or a password is left out; and long values are cut.

mod names;
mod print;

use std::fmt;

use bytes::Bytes;

use crate::codec::Limits;
use crate::frame::{Frame, FrameKind, ProtocolHeader, split};
use crate::performative::Composite;

/// Who is shown the frames of a connection, set with
/// [`Connection::set_trace`](crate::connection::Connection::set_trace).
pub trait Trace: fmt::Debug + Send + Sync {
    /// A frame or protocol header has been taken from the input, or is about to be sent.
    fn trace(&self, line: &Line<'_>);
}

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// It came from the peer.
    In,
    /// It is ours.
    Out,
}

/// A frame or protocol header, to be shown.
#[derive(Debug)]
pub struct Line<'a> {
    direction: Direction,
    what: What<'a>,
}

#[derive(Debug)]
enum What<'a> {
    Header([u8; 8]),
    Frame(&'a Frame),
}

impl<'a> Line<'a> {
    /// The line of a protocol header.
    pub fn header(direction: Direction, header: [u8; 8]) -> Self {
        Self { direction, what: What::Header(header) }
    }

    /// The line of a frame.
    pub fn frame(direction: Direction, frame: &'a Frame) -> Self {
        Self { direction, what: What::Frame(frame) }
    }

    /// Which way it goes.
    pub fn direction(&self) -> Direction {
        self.direction
    }
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arrow = match self.direction {
            Direction::In => "<-",
            Direction::Out => "->",
        };
        let frame = match self.what {
            What::Header(header) => {
                return match ProtocolHeader::parse(header) {
                    Ok(ProtocolHeader::Amqp) => write!(f, "AMQP:FRAME:  {arrow} AMQP"),
                    Ok(ProtocolHeader::Sasl) => write!(f, "SASL:FRAME:  {arrow} SASL"),
                    Ok(ProtocolHeader::Tls) => write!(f, "AMQP:FRAME:  {arrow} TLS"),
                    Err(_) => write!(f, "  IO:FRAME:  {arrow} \"{}\"", header.escape_ascii()),
                };
            }
            What::Frame(frame) => frame,
        };
        let layer = match frame.kind {
            FrameKind::Amqp => "AMQP",
            FrameKind::Sasl => "SASL",
        };
        write!(f, "{layer}:FRAME:{} {arrow} ", frame.channel)?;
        if frame.body.is_empty() {
            return f.write_str("(EMPTY FRAME)");
        }
        match Composite::parse(frame.body.clone(), &Limits::WIRE) {
            Ok((performative, payload)) => {
                print::performative(f, &performative)?;
                if payload.is_empty() { Ok(()) } else { write!(f, " ({})", payload.len()) }
            }
            Err(error) => write!(f, "(MALFORMED FRAME of {} bytes: {error})", frame.body.len()),
        }
    }
}

/// Shows all that is about to be sent: whole frames, and protocol headers between them.
#[cold]
pub(crate) fn output(trace: &dyn Trace, mut bytes: Bytes) {
    while !bytes.is_empty() {
        // No frame is as large as these letters would say.
        if bytes.starts_with(b"AMQP")
            && let Some(&header) = bytes.first_chunk()
        {
            trace.trace(&Line::header(Direction::Out, header));
            let _ = bytes.split_to(header.len());
        } else if let Ok(Some(frame)) = split(&mut bytes, u32::MAX) {
            trace.trace(&Line::frame(Direction::Out, &frame));
        } else {
            return;
        }
    }
}
