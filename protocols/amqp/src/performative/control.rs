//! `open`, `begin`, `detach`, `end`, `close` (AMQP 1.0 2.7).

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fe2o3_amqp_types::performatives as typed;

use super::schema::composite;
use super::{AmqpError, Composite, Patch, descriptor};
use crate::codec::{Limits, Map, put_symbols};
use crate::error::DecodeError;

composite! {
    /// `open` (AMQP 1.0 2.7.1).
    Open = OPEN, typed typed::Open, [
        "container-id" Str mandatory,
        "hostname" Str,
        "max-frame-size" Uint,
        "channel-max" Ushort,
        "idle-time-out" Uint,
    ]
}

impl Open {
    /// The name of the container.
    pub fn container_id(&self) -> &str {
        self.0.str(0).unwrap_or_default()
    }

    /// The host that the peer wants to talk to.
    pub fn hostname(&self) -> Option<&str> {
        self.0.str(1)
    }

    /// The largest frame that the peer takes, in bytes.
    pub fn max_frame_size(&self) -> u32 {
        self.0.u32(2).unwrap_or(u32::MAX)
    }

    /// The highest channel that the peer takes.
    pub fn channel_max(&self) -> u16 {
        self.0.u16(3).unwrap_or(u16::MAX)
    }

    /// How long the peer waits for a frame before it closes. Zero is as none: the specification leaves it open, and
    /// peers mean it so.
    pub fn idle_time_out(&self) -> Option<Duration> {
        let milliseconds = self.0.u32(4).filter(|&milliseconds| milliseconds > 0)?;
        Some(Duration::from_millis(milliseconds.into()))
    }

    /// What the peer can do beyond the specification.
    pub fn offered_capabilities(&self) -> impl Iterator<Item = &str> {
        self.0.symbols(7)
    }

    /// What the peer would like us to do beyond the specification.
    pub fn desired_capabilities(&self) -> impl Iterator<Item = &str> {
        self.0.symbols(8)
    }

    /// The connection's properties.
    pub fn properties(&self) -> Option<Map<'_>> {
        self.0.map(9)
    }
}

/// An `open` of our own. Raw fields are one encoded value each.
#[derive(Debug, Clone, Copy)]
pub struct OpenOut<'a> {
    /// The name of the container.
    pub container_id: &'a str,
    /// The host that we want to talk to.
    pub hostname: Option<&'a str>,
    /// The largest frame that we take, in bytes.
    pub max_frame_size: u32,
    /// The highest channel that we take.
    pub channel_max: u16,
    /// How long we wait for a frame before we close.
    pub idle_time_out: Option<Duration>,
    /// What we can do beyond the specification.
    pub offered_capabilities: &'a [&'a str],
    /// What we would like the peer to do beyond the specification.
    pub desired_capabilities: &'a [&'a str],
    /// The connection's properties: a map.
    pub properties: Option<&'a [u8]>,
}

impl Default for OpenOut<'_> {
    fn default() -> Self {
        Self {
            container_id: "",
            hostname: None,
            max_frame_size: u32::MAX,
            channel_max: u16::MAX,
            idle_time_out: None,
            offered_capabilities: &[],
            desired_capabilities: &[],
            properties: None,
        }
    }
}

impl OpenOut<'_> {
    /// The `open`, encoded.
    pub fn build(&self) -> Open {
        let idle = self.idle_time_out.map(|time| u32::try_from(time.as_millis()).unwrap_or(u32::MAX));
        Open(Composite::build(descriptor::OPEN, |out| {
            Patch::Str(self.container_id).write(out);
            self.hostname.map_or(Patch::Null, Patch::Str).write(out);
            Patch::U32(self.max_frame_size).write(out);
            Patch::U16(self.channel_max).write(out);
            idle.map_or(Patch::Null, Patch::U32).write(out);
            Patch::Null.write(out); // outgoing-locales: en-US
            Patch::Null.write(out); // incoming-locales: en-US
            put_capabilities(out, self.offered_capabilities);
            put_capabilities(out, self.desired_capabilities);
            Patch::from(self.properties).write(out);
            10
        }))
    }
}

composite! {
    /// `begin` (AMQP 1.0 2.7.2).
    Begin = BEGIN, typed typed::Begin, [
        "remote-channel" Ushort,
        "next-outgoing-id" Uint mandatory,
        "incoming-window" Uint mandatory,
        "outgoing-window" Uint mandatory,
        "handle-max" Uint,
    ]
}

impl Begin {
    /// The channel of ours that this answers.
    pub fn remote_channel(&self) -> Option<u16> {
        self.0.u16(0)
    }

    /// The transfer-id that the peer's next transfer has.
    pub fn next_outgoing_id(&self) -> u32 {
        self.0.u32(1).unwrap_or_default()
    }

    /// How many transfers the peer takes.
    pub fn incoming_window(&self) -> u32 {
        self.0.u32(2).unwrap_or_default()
    }

    /// How many transfers the peer may send.
    pub fn outgoing_window(&self) -> u32 {
        self.0.u32(3).unwrap_or_default()
    }

    /// The highest handle that the peer takes.
    pub fn handle_max(&self) -> u32 {
        self.0.u32(4).unwrap_or(u32::MAX)
    }

    /// The session's properties.
    pub fn properties(&self) -> Option<Map<'_>> {
        self.0.map(7)
    }
}

/// A `begin` of our own. Raw fields are one encoded value each.
#[derive(Debug, Clone, Copy, Default)]
pub struct BeginOut<'a> {
    /// The peer's channel that this answers.
    pub remote_channel: Option<u16>,
    /// The transfer-id that our next transfer has.
    pub next_outgoing_id: u32,
    /// How many transfers we take.
    pub incoming_window: u32,
    /// How many transfers we may send.
    pub outgoing_window: u32,
    /// The highest handle that we take.
    pub handle_max: u32,
    /// The session's properties: a map.
    pub properties: Option<&'a [u8]>,
}

impl BeginOut<'_> {
    /// The `begin`, encoded.
    pub fn build(&self) -> Begin {
        Begin(Composite::build(descriptor::BEGIN, |out| {
            self.remote_channel.map_or(Patch::Null, Patch::U16).write(out);
            Patch::U32(self.next_outgoing_id).write(out);
            Patch::U32(self.incoming_window).write(out);
            Patch::U32(self.outgoing_window).write(out);
            Patch::U32(self.handle_max).write(out);
            Patch::Null.write(out); // offered-capabilities
            Patch::Null.write(out); // desired-capabilities
            Patch::from(self.properties).write(out);
            8
        }))
    }
}

composite! {
    /// `detach` (AMQP 1.0 2.7.7).
    Detach = DETACH, typed typed::Detach, [
        "handle" Uint mandatory,
        "closed" Bool,
        "error" Any,
    ]
}

impl Detach {
    /// The handle.
    pub fn handle(&self) -> u32 {
        self.0.u32(0).unwrap_or_default()
    }

    /// Whether the link is closed for good, not only detached.
    pub fn closed(&self) -> bool {
        self.0.bool(1).unwrap_or(false)
    }

    /// Why, if something is wrong.
    pub fn error(&self) -> Option<AmqpError> {
        self.0.raw_bytes(2).map(AmqpError::validated)
    }
}

/// A `detach` of our own.
#[derive(Debug, Clone, Copy, Default)]
pub struct DetachOut<'a> {
    /// The handle.
    pub handle: u32,
    /// Whether the link is closed for good, not only detached.
    pub closed: bool,
    /// Why, if something is wrong.
    pub error: Option<&'a AmqpError>,
}

impl DetachOut<'_> {
    /// The `detach`, encoded.
    pub fn build(&self) -> Detach {
        Detach(Composite::build(descriptor::DETACH, |out| {
            Patch::U32(self.handle).write(out);
            Patch::Bool(self.closed).write(out);
            Patch::from(self.error.map(AmqpError::encoded)).write(out);
            3
        }))
    }
}

composite! {
    /// `end` (AMQP 1.0 2.7.8).
    End = END, typed typed::End, ["error" Any,]
}

impl End {
    /// An `end` of our own.
    pub fn new(error: Option<&AmqpError>) -> Self {
        Self(with_error(descriptor::END, error))
    }

    /// Why, if something is wrong.
    pub fn error(&self) -> Option<AmqpError> {
        self.0.raw_bytes(0).map(AmqpError::validated)
    }
}

composite! {
    /// `close` (AMQP 1.0 2.7.9).
    Close = CLOSE, typed typed::Close, ["error" Any,]
}

impl Close {
    /// A `close` of our own.
    pub fn new(error: Option<&AmqpError>) -> Self {
        Self(with_error(descriptor::CLOSE, error))
    }

    /// Why, if something is wrong.
    pub fn error(&self) -> Option<AmqpError> {
        self.0.raw_bytes(0).map(AmqpError::validated)
    }
}

fn with_error(code: u64, error: Option<&AmqpError>) -> Composite {
    Composite::build(code, |out| {
        Patch::from(error.map(AmqpError::encoded)).write(out);
        1
    })
}

/// Capabilities, or null where there are none.
pub(super) fn put_capabilities(out: &mut BytesMut, capabilities: &[&str]) {
    if capabilities.is_empty() { Patch::Null.write(out) } else { put_symbols(out, capabilities) }
}
