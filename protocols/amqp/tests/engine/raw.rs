//! A server connection, and a peer that is nothing but frames.

use std::sync::Arc;
use std::time::Instant;

use bytes::{BufMut, Bytes, BytesMut};
use fieldgate_amqp::connection::{CloseReason, Connection, ConnectionConfig, Event};
use fieldgate_amqp::frame::{Frame, FrameKind, ProtocolHeader, put_frame, split};
use fieldgate_amqp::performative::{
    Attach, BeginOut, Detach, FlowOut, OpenOut, Patch, Performative, Role, TransferOut,
};

use crate::pair::{attach, config, start};

pub(crate) struct Raw {
    pub(crate) now: Instant,
    pub(crate) connection: Connection,
    /// Answers open, begin and attach.
    pub(crate) answers: bool,
}

impl Raw {
    pub(crate) fn unopened(config: ConnectionConfig) -> Self {
        let now = start();
        let connection =
            Connection::server(Arc::new(config), &fieldgate_amqp::sasl::Mechanism::ALL, true, now);
        Self { now, connection, answers: true }
    }

    /// A connection with a session on channel 0 and a window of 1000.
    pub(crate) fn with_session() -> Self {
        Self::with_session_of(config())
    }

    pub(crate) fn with_session_of(config: ConnectionConfig) -> Self {
        let mut raw = Self::unopened(config);
        raw.bytes(&ProtocolHeader::Amqp.bytes());
        raw.frame(0, |out| {
            out.extend_from_slice(OpenOut { container_id: "peer", ..OpenOut::default() }.build().encoded());
        });
        raw.begin(0);
        raw.output();
        raw
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Vec<Event> {
        self.connection.handle_input(self.now, Bytes::copy_from_slice(bytes));
        let mut events = Vec::new();
        while let Some(event) = self.connection.poll_event() {
            if self.answers {
                match &event {
                    Event::Opened(_) => {
                        let open = self.connection.config().open();
                        self.connection.open(open);
                    }
                    Event::SessionBegun { session, .. } => self.connection.accept_begin(*session),
                    Event::Attached { link, attach: theirs, .. } => {
                        let ours = attach(theirs.name(), theirs.role().other());
                        self.connection.answer_attach(*link, &ours);
                    }
                    _ => {}
                }
            }
            events.push(event);
        }
        events
    }

    pub(crate) fn frame(&mut self, channel: u16, body: impl FnOnce(&mut BytesMut)) -> Vec<Event> {
        let bytes = frame(channel, body);
        self.bytes(&bytes)
    }

    pub(crate) fn begin(&mut self, channel: u16) -> Vec<Event> {
        let begin =
            BeginOut { incoming_window: 1000, outgoing_window: 1000, handle_max: 255, ..BeginOut::default() };
        self.frame(channel, |out| out.extend_from_slice(begin.build().encoded()))
    }

    pub(crate) fn attach(&mut self, name: &str, role: Role, handle: u32) -> Vec<Event> {
        let attach = attach(name, role);
        self.frame(0, |out| attach.write_patched(out, &[(Attach::HANDLE, Patch::U32(handle))]))
    }

    pub(crate) fn transfer(&mut self, transfer: TransferOut<'_>, payload: &[u8]) -> Vec<Event> {
        self.frame(0, |out| {
            transfer.write(out);
            out.put_slice(payload);
        })
    }

    pub(crate) fn flow(&mut self, flow: FlowOut<'_>) -> Vec<Event> {
        self.frame(0, |out| flow.write(out))
    }

    /// The frames that the connection has written since the last call, with their channels.
    pub(crate) fn output(&mut self) -> Vec<(u16, Performative)> {
        frames(self.connection.poll_transmit().unwrap_or_default())
    }

    /// The condition of the close that the connection has written, after which it must be over.
    pub(crate) fn closed_with(&mut self) -> Option<String> {
        assert!(self.connection.is_closed());
        assert_eq!(self.connection.poll_timeout(), None);
        self.output().into_iter().find_map(|(_, performative)| match performative {
            Performative::Close(close) => close.error().map(|error| error.condition().to_owned()),
            _ => None,
        })
    }

    /// The condition of the end that the connection has written.
    pub(crate) fn ended_with(&mut self) -> Option<String> {
        assert!(!self.connection.is_closed());
        self.output().into_iter().find_map(|(_, performative)| match performative {
            Performative::End(end) => end.error().map(|error| error.condition().to_owned()),
            _ => None,
        })
    }

    /// The detach that the connection has written.
    pub(crate) fn detached_with(&mut self) -> Option<Detach> {
        self.output().into_iter().find_map(|(_, performative)| match performative {
            Performative::Detach(detach) => Some(detach),
            _ => None,
        })
    }
}

pub(crate) fn frame(channel: u16, body: impl FnOnce(&mut BytesMut)) -> Bytes {
    let mut out = BytesMut::new();
    put_frame(&mut out, FrameKind::Amqp, channel, body);
    out.freeze()
}

/// The frames in bytes that may begin with protocol headers. Heartbeats and SASL frames are left out.
pub(crate) fn frames(bytes: Bytes) -> Vec<(u16, Performative)> {
    cut(bytes).into_iter().map(|frame| (frame.channel, Performative::decode(frame.body).unwrap())).collect()
}

/// The bodies of the frames, in the same way.
pub(crate) fn bodies(bytes: Bytes) -> Vec<Bytes> {
    cut(bytes).into_iter().map(|frame| frame.body).collect()
}

fn cut(mut bytes: Bytes) -> Vec<Frame> {
    let mut found = Vec::new();
    while bytes.starts_with(b"AMQP") {
        let _ = bytes.split_to(8);
    }
    while let Some(frame) = split(&mut bytes, u32::MAX).unwrap() {
        if frame.kind == FrameKind::Amqp && !frame.body.is_empty() {
            found.push(frame);
        }
    }
    assert!(bytes.is_empty(), "half a frame was written");
    found
}

pub(crate) fn closed(events: &[Event]) -> Option<&CloseReason> {
    match events.last() {
        Some(Event::Closed(reason)) => Some(reason),
        _ => None,
    }
}
