//! `source` and `target` (AMQP 1.0 3.5.3, 3.5.4), and whatever else stands in their place.

use bytes::{Bytes, BytesMut};

use super::control::put_capabilities;
use super::{Composite, Patch, descriptor};
use crate::codec::{Limits, Map, Value, put_symbols, validate};
use crate::error::DecodeError;

/// One end of a link: a source, a target, a transaction coordinator, or a type of a vendor's own.
#[derive(Debug, Clone, PartialEq)]
pub struct Terminus(Composite);

impl Terminus {
    /// The index of the field `address`, for [`write_patched`](Self::write_patched).
    pub const ADDRESS: usize = 0;

    /// The terminus at the start of `bytes`, of whatever type.
    ///
    /// # Errors
    /// As [`validate`].
    pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let len = validate(&bytes, &Limits::WIRE)?;
        Ok(Self::validated(bytes.slice(..len)))
    }

    /// The terminus that is `bytes`, one valid value.
    pub(super) fn validated(bytes: Bytes) -> Self {
        Self(Composite::validated(bytes.clone()).unwrap_or_else(|_| Composite::opaque(bytes)))
    }

    /// The numeric descriptor: [`descriptor::SOURCE`], [`descriptor::TARGET`], [`descriptor::COORDINATOR`] or another.
    pub fn code(&self) -> u64 {
        self.0.code()
    }

    /// Whether it is a transaction coordinator.
    pub fn is_coordinator(&self) -> bool {
        self.code() == descriptor::COORDINATOR
    }

    /// The composite, for fields without an accessor here.
    pub fn composite(&self) -> &Composite {
        &self.0
    }

    /// All of it, encoded, descriptor included.
    pub fn encoded(&self) -> &[u8] {
        self.0.encoded()
    }

    /// The address, where it is a string. Of a dynamic node that is still to be made there is none.
    pub fn address(&self) -> Option<&str> {
        if self.has_node_fields() { self.0.str(0) } else { None }
    }

    /// What survives when the terminus loses its link: 0 nothing, 1 its configuration, 2 unsettled deliveries too.
    pub fn durable(&self) -> u32 {
        if self.has_node_fields() { self.0.u32(1).unwrap_or_default() } else { 0 }
    }

    /// When its timeout starts to run.
    pub fn expiry_policy(&self) -> Option<&str> {
        if self.has_node_fields() { self.0.symbol(2) } else { None }
    }

    /// How long it stays after that, in seconds.
    pub fn timeout(&self) -> u32 {
        if self.has_node_fields() { self.0.u32(3).unwrap_or_default() } else { 0 }
    }

    /// Whether the node is made for this link.
    pub fn dynamic(&self) -> bool {
        self.has_node_fields() && self.0.bool(4).unwrap_or(false)
    }

    /// The properties of the node that is made for this link.
    pub fn dynamic_node_properties(&self) -> Option<Map<'_>> {
        if self.has_node_fields() { self.0.map(5) } else { None }
    }

    /// The filters of a source.
    pub fn filter(&self) -> Option<Map<'_>> {
        if self.code() == descriptor::SOURCE { self.0.map(7) } else { None }
    }

    /// What becomes of a delivery of a source when nobody says.
    pub fn default_outcome(&self) -> Option<Value<'_>> {
        if self.code() == descriptor::SOURCE { self.0.value(8) } else { None }
    }

    /// What it can do beyond the specification.
    pub fn capabilities(&self) -> impl Iterator<Item = &str> {
        let field = match self.code() {
            descriptor::SOURCE => 10,
            descriptor::TARGET => 6,
            descriptor::COORDINATOR => 0,
            _ => usize::MAX,
        };
        self.0.symbols(field)
    }

    /// Writes it with fields replaced: see [`Composite::write_patched`].
    pub fn write_patched(&self, out: &mut BytesMut, patches: &[(usize, Patch<'_>)]) {
        self.0.write_patched(out, patches);
    }

    /// The same terminus with another address. One that has no address stays as it is.
    pub fn with_address(&self, address: &str) -> Self {
        if !self.has_node_fields() {
            return self.clone();
        }
        let mut out = BytesMut::new();
        self.write_patched(&mut out, &[(Self::ADDRESS, Patch::Str(address))]);
        Self(Composite::written(out))
    }

    /// Whether the first fields are those that sources and targets share.
    fn has_node_fields(&self) -> bool {
        matches!(self.code(), descriptor::SOURCE | descriptor::TARGET)
    }
}

/// A `source` of our own. Raw fields are one encoded value each.
#[derive(Debug, Clone, Copy, Default)]
pub struct SourceOut<'a> {
    /// The address.
    pub address: Option<&'a str>,
    /// What survives when the terminus loses its link: 0 nothing, 1 its configuration, 2 unsettled deliveries too.
    pub durable: u32,
    /// When its timeout starts to run. Default `session-end`.
    pub expiry_policy: Option<&'a str>,
    /// How long it stays after that, in seconds.
    pub timeout: u32,
    /// Whether a node is to be made for this link.
    pub dynamic: bool,
    /// `move` or `copy`.
    pub distribution_mode: Option<&'a str>,
    /// The filters: a map.
    pub filter: Option<&'a [u8]>,
    /// What becomes of a delivery when nobody says: an outcome.
    pub default_outcome: Option<&'a [u8]>,
    /// The outcomes that may be.
    pub outcomes: &'a [&'a str],
    /// What it can do beyond the specification.
    pub capabilities: &'a [&'a str],
}

impl SourceOut<'_> {
    /// The `source`, encoded.
    pub fn build(&self) -> Terminus {
        Terminus(Composite::build(descriptor::SOURCE, |out| {
            self.address.map_or(Patch::Null, Patch::Str).write(out);
            Patch::U32(self.durable).write(out);
            Patch::Symbol(self.expiry_policy.unwrap_or("session-end")).write(out);
            Patch::U32(self.timeout).write(out);
            Patch::Bool(self.dynamic).write(out);
            Patch::Null.write(out); // dynamic-node-properties
            self.distribution_mode.map_or(Patch::Null, Patch::Symbol).write(out);
            Patch::from(self.filter).write(out);
            Patch::from(self.default_outcome).write(out);
            if self.outcomes.is_empty() {
                Patch::Null.write(out)
            } else {
                put_symbols(out, self.outcomes)
            }
            put_capabilities(out, self.capabilities);
            11
        }))
    }
}

/// A `target` of our own.
#[derive(Debug, Clone, Copy, Default)]
pub struct TargetOut<'a> {
    /// The address.
    pub address: Option<&'a str>,
    /// What survives when the terminus loses its link: 0 nothing, 1 its configuration, 2 unsettled deliveries too.
    pub durable: u32,
    /// When its timeout starts to run. Default `session-end`.
    pub expiry_policy: Option<&'a str>,
    /// How long it stays after that, in seconds.
    pub timeout: u32,
    /// Whether a node is to be made for this link.
    pub dynamic: bool,
    /// What it can do beyond the specification.
    pub capabilities: &'a [&'a str],
}

impl TargetOut<'_> {
    /// The `target`, encoded.
    pub fn build(&self) -> Terminus {
        Terminus(Composite::build(descriptor::TARGET, |out| {
            self.address.map_or(Patch::Null, Patch::Str).write(out);
            Patch::U32(self.durable).write(out);
            Patch::Symbol(self.expiry_policy.unwrap_or("session-end")).write(out);
            Patch::U32(self.timeout).write(out);
            Patch::Bool(self.dynamic).write(out);
            Patch::Null.write(out); // dynamic-node-properties
            put_capabilities(out, self.capabilities);
            7
        }))
    }
}
