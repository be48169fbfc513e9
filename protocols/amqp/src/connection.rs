//! The machine of one connection: protocol headers, SASL, open, channels, sessions with their windows, links with
//! their handles. Raw frames go in and out; what is in a delivery, and who settles it, is the caller's matter
//! (`endpoint` for links that end here, the router for links that only pass).
//!
//! # Contract
//! Feed bytes with [`Connection::handle_input`]; take events with [`Connection::poll_event`] until there is none;
//! send what [`Connection::poll_transmit`] gives; call [`Connection::handle_timeout`] when
//! [`Connection::poll_timeout`] says so. Commands may be given at any time. What is not asked for with `poll_event`
//! is not decoded, so that the peer's windows only move as fast as the application takes events.
//!
//! # What the machine does by itself
//! Headers and the answer to a wrong one, SASL framing, heartbeats, the peer's silence, the answers to `close` and
//! `end`, its own incoming-window, splitting transfers to the peer's max-frame-size, holding them back while the
//! peer's window is shut, and every check of 2.5 to 2.7 that needs no knowledge of the application.

mod clock;
mod command;
mod config;

mod event;
mod handshake;
mod incoming;
mod output;
mod write;

pub(crate) mod encode;
pub(crate) mod numbers;

use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use slab::Slab;

pub use crate::performative::TransferOut;
pub use command::LinkFlow;
pub use config::{ClientSecurity, ConnectionConfig};
pub use event::{CloseReason, Event, Half, LinkId, LinkInfo, SessionId};

use self::clock::Clock;
use self::handshake::Handshake;
use self::numbers::{NumberMap, NumberPool};
use self::output::Output;
use crate::error::{AmqpError, Violation};
use crate::frame::{Frame, FrameBuffer, MIN_MAX_FRAME_BYTES};
use crate::link::Link;
use crate::performative::Open;
use crate::sasl::Mechanism;
use crate::session::Session;
use crate::trace::{self, Direction, Line, Trace};

/// Where a connection is.
///
/// ```text
/// server  Header -> [Init -> Judging -> AmqpHeader] -> Open -> Answering -> Running -> Closing -> Closed
/// client  [SaslHeader -> Mechanisms -> Outcome] -> AmqpHeader -> Open -> Running -> Closing -> Closed
/// ```
///
/// What stands in brackets is skipped without SASL. `Closed` can follow on anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Server: the first protocol header is awaited.
    Header,
    /// Server: sasl-init is awaited.
    Init,
    /// Server: the application judges the credentials.
    Judging,
    /// Client: the server's SASL header is awaited.
    SaslHeader,
    /// Client: sasl-mechanisms is awaited.
    Mechanisms,
    /// Client: sasl-outcome is awaited.
    Outcome,
    /// The peer's AMQP header is awaited.
    AmqpHeader,
    /// The peer's open is awaited.
    Open,
    /// Server: the application is to answer the peer's open.
    Answering,
    /// Both have opened.
    Running,
    /// Our close is written, the peer's awaited; everything else is discarded.
    Closing,
    /// Nothing is read or written any more.
    Closed,
}

/// One connection, client or server side.
#[derive(Debug)]
pub struct Connection {
    config: Arc<ConnectionConfig>,
    phase: Phase,
    /// What only matters until both have opened.
    handshake: Option<Box<Handshake>>,
    input: FrameBuffer,
    output: Output,
    open_sent: bool,
    clock: Clock,
    /// The event that ends all events, until it is taken.
    closed: Option<Box<CloseReason>>,
    /// The peer's open, copied out of the read buffer.
    remote_open: Option<Box<[u8]>>,
    /// The peer's max-frame-size.
    peer_max_frame_bytes: u32,
    /// The peer's channel-max.
    peer_channel_max: u16,
    sessions: Slab<Session>,
    links: Slab<Link>,
    /// Our channels, and the sessions behind them.
    channels: NumberPool,
    /// The peer's channels, and the sessions behind them.
    remote_channels: NumberMap,
    /// What never went out of the sessions of a connection that is over: their stamps, and the first delivery-id.
    unsent: Vec<(u32, u32)>,
    /// Who is shown the frames.
    trace: Option<Arc<dyn Trace>>,
    /// Makes ids differ that share a place in a table.
    next_stamp: u32,
}

impl Connection {
    /// A connection that we opened. `open` is what we will say; max-frame-size, channel-max and idle-time-out in it
    /// are set from `config`.
    pub fn client(config: Arc<ConnectionConfig>, security: ClientSecurity, open: Open, now: Instant) -> Self {
        let mut connection = Self::new(config, now);
        connection.start_client(security, Some(open));
        connection
    }

    /// As [`client`](Self::client), with the open still to come: once the layers below it stand,
    /// [`Event::Authenticated`] asks for it, and [`open`](Self::open) gives it. For who lets the server judge the
    /// credentials of somebody who has not opened yet.
    pub fn client_to_open(config: Arc<ConnectionConfig>, security: ClientSecurity, now: Instant) -> Self {
        let mut connection = Self::new(config, now);
        connection.start_client(security, None);
        connection
    }

    /// A connection that a peer opened. `mechanisms` is what SASL offers, in order of preference; `allow_bare` lets
    /// clients in that skip SASL (their identity comes from claims or from TLS).
    pub fn server(
        config: Arc<ConnectionConfig>,
        mechanisms: &[Mechanism],
        allow_bare: bool,
        now: Instant,
    ) -> Self {
        let mut connection = Self::new(config, now);
        connection.handshake = Some(Box::new(Handshake::server(mechanisms, allow_bare)));
        connection
    }

    fn new(config: Arc<ConnectionConfig>, now: Instant) -> Self {
        let clock = Clock::new(now, config.open_time_out);
        Self {
            config,
            phase: Phase::Header,
            handshake: None,
            input: FrameBuffer::default(),
            output: Output::waiting_for_open(),
            open_sent: false,
            clock,
            closed: None,
            remote_open: None,
            peer_max_frame_bytes: MIN_MAX_FRAME_BYTES,
            peer_channel_max: 0,
            sessions: Slab::new(),
            links: Slab::new(),
            channels: NumberPool::default(),
            remote_channels: NumberMap::default(),
            unsent: Vec::new(),
            trace: None,
            next_stamp: 0,
        }
    }

    /// Shows every frame from now on to `trace`, or to nobody: those of the peer when they are decoded, ours when
    /// they are taken to be sent.
    pub fn set_trace(&mut self, trace: Option<Arc<dyn Trace>>) {
        self.trace = trace;
    }

    /// Takes bytes from the peer. They are only kept; `poll_event` decodes them.
    pub fn handle_input(&mut self, now: Instant, input: Bytes) {
        self.clock.heard(now, self.config.open_time_out);
        if self.phase != Phase::Closed && !input.is_empty() {
            self.input.push(input);
        }
    }

    /// The next event. Decodes as many frames as it takes to find one.
    pub fn poll_event(&mut self) -> Option<Event> {
        loop {
            if let Some(reason) = self.closed.take() {
                return Some(Event::Closed(*reason));
            }
            match self.step() {
                Ok(Step::Event(event)) => return Some(event),
                Ok(Step::Again) => {}
                Ok(Step::Wait) => return None,
                Err(violation) => self.fail(violation),
            }
        }
    }

    /// Takes one header or frame from the input.
    fn step(&mut self) -> Result<Step, Violation> {
        match self.phase {
            Phase::Judging | Phase::Answering | Phase::Closed => Ok(Step::Wait),
            Phase::Header | Phase::SaslHeader | Phase::AmqpHeader => {
                if self.ask_for_open() {
                    return Ok(Step::Event(Event::Authenticated));
                }
                match self.input.take_protocol_header() {
                    Some(header) => {
                        if let Some(trace) = &self.trace {
                            trace.trace(&Line::header(Direction::In, header));
                        }
                        Ok(self.on_header(header))
                    }
                    None => Ok(Step::Wait),
                }
            }
            Phase::Init | Phase::Mechanisms | Phase::Outcome => {
                match self.input.next(crate::sasl::MAX_FRAME_BYTES)? {
                    Some(frame) => {
                        self.trace_input(&frame);
                        self.on_sasl_frame(frame)
                    }
                    None => Ok(Step::Wait),
                }
            }
            Phase::Open | Phase::Running | Phase::Closing => {
                match self.input.next(self.config.max_frame_bytes)? {
                    Some(frame) => {
                        self.trace_input(&frame);
                        self.on_frame(frame)
                    }
                    None => Ok(Step::Wait),
                }
            }
        }
    }

    #[inline]
    fn trace_input(&self, frame: &Frame) {
        if let Some(trace) = &self.trace {
            trace.trace(&Line::frame(Direction::In, frame));
        }
    }

    /// Closes the connection because the peer broke a rule.
    pub(crate) fn fail(&mut self, violation: Violation) {
        if matches!(self.phase, Phase::Open | Phase::Answering | Phase::Running) {
            self.write_own_open();
            encode::put_close(self.output.now(), Some(&AmqpError::from(&violation)));
        }
        self.finish(CloseReason::Violation(violation));
    }

    /// Nothing more is read. What is written already can still be sent.
    fn finish(&mut self, reason: CloseReason) {
        self.phase = Phase::Closed;
        self.clock.stop();
        self.handshake = None;
        self.input = FrameBuffer::default();
        self.output.discard_waiting();
        let unsent = |session: &Session| session.unsent_from().map(|id| (session.stamp, id));
        self.unsent = self.sessions.iter().filter_map(|(_, session)| unsent(session)).collect();
        self.sessions = Slab::new();
        self.links = Slab::new();
        self.channels = NumberPool::default();
        self.remote_channels = NumberMap::default();
        self.closed = Some(Box::new(reason));
    }

    /// Everything to be sent, in one buffer; `None` where there is nothing.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        let bytes = self.output.take()?.freeze();
        self.clock.sent();
        if let Some(trace) = &self.trace {
            trace::output(&**trace, bytes.clone());
        }
        Some(bytes)
    }

    /// Lends an empty buffer to write to, where the connection holds none: `buffer` is empty and without capacity
    /// afterwards. Together with [`take_output`](Self::take_output) many connections share one buffer.
    pub fn lend_output(&mut self, buffer: &mut BytesMut) {
        self.output.lend(buffer);
    }

    /// As [`poll_transmit`](Self::poll_transmit), into `buffer`, which gets back what was lent. It is empty where
    /// there is nothing to send; what it held before is dropped.
    pub fn take_output(&mut self, buffer: &mut BytesMut) {
        self.output.take_into(buffer);
        if !buffer.is_empty() {
            self.clock.sent();
            if let Some(trace) = &self.trace {
                trace::output(&**trace, Bytes::copy_from_slice(buffer));
            }
        }
    }

    /// Bytes that wait for `poll_transmit`.
    pub fn output_bytes(&self) -> usize {
        self.output.len()
    }

    /// Whether more input is of use. False while the application owes an answer that decoding waits for and enough
    /// for a frame is buffered, and after the end.
    pub fn wants_input(&self) -> bool {
        match self.phase {
            Phase::Closed => false,
            Phase::Judging | Phase::Answering => self.input.len() < self.config.max_frame_bytes as usize,
            _ => true,
        }
    }

    /// Whether the connection is over: send the rest of the output, then close the socket.
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Whether both sides have opened and neither has closed.
    pub fn is_open(&self) -> bool {
        self.phase == Phase::Running
    }

    /// The peer's open, once it has come.
    pub fn remote_open(&self) -> Option<Open> {
        let bytes = Bytes::copy_from_slice(self.remote_open.as_deref()?);
        Open::decode(bytes).ok()
    }

    /// The peer's max-frame-size in bytes; 512 until its open has come.
    pub fn peer_max_frame_bytes(&self) -> u32 {
        self.peer_max_frame_bytes
    }

    /// The greatest channel that both sides allow; 0 until the peer's open has come.
    pub fn channel_max(&self) -> u16 {
        self.peer_channel_max.min(self.config.channel_max)
    }

    /// The settings.
    pub fn config(&self) -> &ConnectionConfig {
        &self.config
    }

    fn stamp(&mut self) -> u32 {
        self.next_stamp = self.next_stamp.wrapping_add(1);
        self.next_stamp
    }
}

/// What a header or frame led to.
pub(crate) enum Step {
    /// Nothing that the application has to know.
    Again,
    /// Nothing can be decoded now.
    Wait,
    Event(Event),
}

impl From<Option<Event>> for Step {
    fn from(event: Option<Event>) -> Self {
        event.map_or(Self::Again, Self::Event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten thousand idle devices with a link each cost this ten thousand times; beside it stand the peer's open, the
    /// link's name, and an entry each for channels and handles.
    #[test]
    #[cfg(target_pointer_width = "64")]
    fn an_idle_connection_is_small() {
        let sizes = [size_of::<Connection>(), size_of::<Session>(), size_of::<Link>()];
        assert!(sizes.iter().sum::<usize>() <= 640, "{sizes:?}");
    }
}
