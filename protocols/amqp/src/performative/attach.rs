//! `attach` (AMQP 1.0 2.7.3).

use bytes::{Bytes, BytesMut};
use fe2o3_amqp_types::performatives as typed;

use super::control::put_capabilities;
use super::schema::composite;
use super::{Composite, Patch, Role, Terminus, descriptor};
use crate::codec::{Limits, Map};
use crate::error::DecodeError;

/// How a sender settles (AMQP 1.0 2.8.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum SndSettleMode {
    /// It sends all deliveries unsettled.
    Unsettled = 0,
    /// It sends all deliveries settled.
    Settled = 1,
    /// As each delivery says.
    #[default]
    Mixed = 2,
}

impl SndSettleMode {
    /// From the wire; a value that is not defined is as the default.
    pub(crate) fn from_wire(mode: Option<u8>) -> Self {
        match mode {
            Some(0) => Self::Unsettled,
            Some(1) => Self::Settled,
            _ => Self::Mixed,
        }
    }
}

/// How a receiver settles (AMQP 1.0 2.8.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum RcvSettleMode {
    /// At once, with the outcome.
    #[default]
    First = 0,
    /// Only after the sender has settled.
    Second = 1,
}

impl RcvSettleMode {
    /// From the wire; a value that is not defined is as the default.
    pub(crate) fn from_wire(mode: Option<u8>) -> Self {
        if mode == Some(1) { Self::Second } else { Self::First }
    }
}

composite! {
    /// `attach` (AMQP 1.0 2.7.3).
    Attach = ATTACH, typed typed::Attach, [
        "name" Str mandatory,
        "handle" Uint mandatory,
        "role" Bool mandatory,
        "snd-settle-mode" Ubyte,
        "rcv-settle-mode" Ubyte,
        "source" Any,
        "target" Any,
        "unsettled" Map,
        "incomplete-unsettled" Bool,
        "initial-delivery-count" Uint,
        "max-message-size" Ulong,
    ]
}

impl Attach {
    /// The index of the field `name`.
    pub const NAME: usize = 0;
    /// The index of the field `handle`, for [`write_patched`](Self::write_patched).
    pub const HANDLE: usize = 1;
    /// The index of the field `source`.
    pub const SOURCE: usize = 5;
    /// The index of the field `target`.
    pub const TARGET: usize = 6;
    /// The index of the field `initial-delivery-count`.
    pub const INITIAL_DELIVERY_COUNT: usize = 9;

    /// The link's name.
    pub fn name(&self) -> &str {
        self.0.str(0).unwrap_or_default()
    }

    /// The handle that the sender of the attach gives the link.
    pub fn handle(&self) -> u32 {
        self.0.u32(1).unwrap_or_default()
    }

    /// The role of the end that sent the attach.
    pub fn role(&self) -> Role {
        Role::from_wire(self.0.bool(2).unwrap_or_default())
    }

    /// How the link's sender settles.
    pub fn snd_settle_mode(&self) -> SndSettleMode {
        SndSettleMode::from_wire(self.0.u8(3))
    }

    /// How the link's receiver settles.
    pub fn rcv_settle_mode(&self) -> RcvSettleMode {
        RcvSettleMode::from_wire(self.0.u8(4))
    }

    /// Where messages come from. `None` in an answer means that there is no such link.
    pub fn source(&self) -> Option<Terminus> {
        self.0.raw_bytes(5).map(Terminus::validated)
    }

    /// Where messages go to, or a transaction coordinator. `None` in an answer means that there is no such link.
    pub fn target(&self) -> Option<Terminus> {
        self.0.raw_bytes(6).map(Terminus::validated)
    }

    /// The deliveries that are not settled, by delivery-tag.
    pub fn unsettled(&self) -> Option<Map<'_>> {
        self.0.map(7)
    }

    /// Whether there are more unsettled deliveries than [`unsettled`](Self::unsettled) holds.
    pub fn incomplete_unsettled(&self) -> bool {
        self.0.bool(8).unwrap_or(false)
    }

    /// The delivery-count that a sender starts from.
    pub fn initial_delivery_count(&self) -> Option<u32> {
        self.0.u32(9)
    }

    /// The largest message that this end takes, in bytes. Zero, as the specification says, is as none.
    pub fn max_message_size(&self) -> Option<u64> {
        self.0.u64(10).filter(|&size| size > 0)
    }

    /// What this end can do beyond the specification.
    pub fn offered_capabilities(&self) -> impl Iterator<Item = &str> {
        self.0.symbols(11)
    }

    /// What this end would like the other to do beyond the specification.
    pub fn desired_capabilities(&self) -> impl Iterator<Item = &str> {
        self.0.symbols(12)
    }

    /// The link's properties.
    pub fn properties(&self) -> Option<Map<'_>> {
        self.0.map(13)
    }
}

/// An `attach` of our own. Raw fields are one encoded value each.
#[derive(Debug, Clone, Copy)]
pub struct AttachOut<'a> {
    /// The link's name.
    pub name: &'a str,
    /// The handle.
    pub handle: u32,
    /// Our role.
    pub role: Role,
    /// How the sender settles.
    pub snd_settle_mode: SndSettleMode,
    /// How the receiver settles.
    pub rcv_settle_mode: RcvSettleMode,
    /// Where messages come from.
    pub source: Option<&'a Terminus>,
    /// Where messages go to.
    pub target: Option<&'a Terminus>,
    /// The deliveries that are not settled: a map.
    pub unsettled: Option<&'a [u8]>,
    /// The delivery-count that we start from. A sender must have one.
    pub initial_delivery_count: Option<u32>,
    /// The largest message that we take, in bytes.
    pub max_message_size: Option<u64>,
    /// What we can do beyond the specification.
    pub offered_capabilities: &'a [&'a str],
    /// What we would like the peer to do beyond the specification.
    pub desired_capabilities: &'a [&'a str],
    /// The link's properties: a map.
    pub properties: Option<&'a [u8]>,
}

impl<'a> AttachOut<'a> {
    /// Our end sends, and counts from 0.
    pub fn sender(name: &'a str, source: &'a Terminus, target: &'a Terminus) -> Self {
        Self { initial_delivery_count: Some(0), ..Self::of(name, Role::Sender, source, target) }
    }

    /// Our end receives.
    pub fn receiver(name: &'a str, source: &'a Terminus, target: &'a Terminus) -> Self {
        Self::of(name, Role::Receiver, source, target)
    }

    fn of(name: &'a str, role: Role, source: &'a Terminus, target: &'a Terminus) -> Self {
        Self {
            name,
            handle: 0,
            role,
            snd_settle_mode: SndSettleMode::default(),
            rcv_settle_mode: RcvSettleMode::default(),
            source: Some(source),
            target: Some(target),
            unsettled: None,
            initial_delivery_count: None,
            max_message_size: None,
            offered_capabilities: &[],
            desired_capabilities: &[],
            properties: None,
        }
    }

    /// The `attach`, encoded.
    pub fn build(&self) -> Attach {
        Attach(Composite::build(descriptor::ATTACH, |out| {
            Patch::Str(self.name).write(out);
            Patch::U32(self.handle).write(out);
            Patch::Bool(self.role.is_receiver()).write(out);
            Patch::U8(self.snd_settle_mode as u8).write(out);
            Patch::U8(self.rcv_settle_mode as u8).write(out);
            Patch::from(self.source.map(Terminus::encoded)).write(out);
            Patch::from(self.target.map(Terminus::encoded)).write(out);
            Patch::from(self.unsettled).write(out);
            Patch::Bool(false).write(out);
            self.initial_delivery_count.map_or(Patch::Null, Patch::U32).write(out);
            self.max_message_size.map_or(Patch::Null, Patch::U64).write(out);
            put_capabilities(out, self.offered_capabilities);
            put_capabilities(out, self.desired_capabilities);
            Patch::from(self.properties).write(out);
            14
        }))
    }
}
