//! The AMQP 1.0 type system on the wire (OASIS AMQP 1.0 part 1).
//!
//! [`validate`] judges one encoded value, whatever it nests, without building anything. Behind it stand the
//! [`Reader`] cursor, the borrowed [`Value`] and the `put_*` writers. What this is not: a mapping of types to
//! Rust structures; that is `performative` and `message`.

mod reader;
#[cfg(test)]
mod tests;
mod validate;
mod value;
mod write;

pub use reader::Reader;
pub use validate::validate;
pub use value::{Array, ArrayIter, Described, List, ListIter, Map, MapIter, Value};
pub use write::{
    put_binary, put_bool, put_composite, put_descriptor, put_double, put_float, put_int, put_list, put_long,
    put_map, put_null, put_str, put_symbol, put_symbols, put_timestamp, put_ubyte, put_uint, put_ulong,
    put_ushort, put_uuid,
};

pub(crate) use validate::value_len;
pub(crate) use write::{bytes_len, uint_len};

/// What an encoded value may cost before it is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How many lists, maps, arrays and descriptors may stand inside each other. Default 32.
    ///
    /// It bounds the stack of every decoder that reads a value after [`validate`], ours and `serde_amqp`'s.
    pub max_depth: usize,
    /// How many values one value may hold in all, itself included. Default 8192.
    ///
    /// Elements of an array of fixed width are not counted, because their bytes are; elements of width zero are.
    pub max_items: usize,
}

impl Limits {
    /// The limits of everything that comes from the wire.
    pub const WIRE: Self = Self { max_depth: 32, max_items: 8192 };
}

impl Default for Limits {
    fn default() -> Self {
        Self::WIRE
    }
}

/// Format codes (AMQP 1.0 1.6).
pub(crate) mod code {
    pub(crate) const DESCRIBED: u8 = 0x00;
    pub(crate) const NULL: u8 = 0x40;
    pub(crate) const TRUE: u8 = 0x41;
    pub(crate) const FALSE: u8 = 0x42;
    pub(crate) const UINT0: u8 = 0x43;
    pub(crate) const ULONG0: u8 = 0x44;
    pub(crate) const LIST0: u8 = 0x45;
    pub(crate) const UBYTE: u8 = 0x50;
    pub(crate) const BYTE: u8 = 0x51;
    pub(crate) const SMALL_UINT: u8 = 0x52;
    pub(crate) const SMALL_ULONG: u8 = 0x53;
    pub(crate) const SMALL_INT: u8 = 0x54;
    pub(crate) const SMALL_LONG: u8 = 0x55;
    pub(crate) const BOOLEAN: u8 = 0x56;
    pub(crate) const USHORT: u8 = 0x60;
    pub(crate) const SHORT: u8 = 0x61;
    pub(crate) const UINT: u8 = 0x70;
    pub(crate) const INT: u8 = 0x71;
    pub(crate) const FLOAT: u8 = 0x72;
    pub(crate) const CHAR: u8 = 0x73;
    pub(crate) const DECIMAL32: u8 = 0x74;
    pub(crate) const ULONG: u8 = 0x80;
    pub(crate) const LONG: u8 = 0x81;
    pub(crate) const DOUBLE: u8 = 0x82;
    pub(crate) const TIMESTAMP: u8 = 0x83;
    pub(crate) const DECIMAL64: u8 = 0x84;
    pub(crate) const DECIMAL128: u8 = 0x94;
    pub(crate) const UUID: u8 = 0x98;
    pub(crate) const BINARY8: u8 = 0xa0;
    pub(crate) const STR8: u8 = 0xa1;
    pub(crate) const SYM8: u8 = 0xa3;
    pub(crate) const BINARY32: u8 = 0xb0;
    pub(crate) const STR32: u8 = 0xb1;
    pub(crate) const SYM32: u8 = 0xb3;
    pub(crate) const LIST8: u8 = 0xc0;
    pub(crate) const MAP8: u8 = 0xc1;
    pub(crate) const LIST32: u8 = 0xd0;
    pub(crate) const MAP32: u8 = 0xd1;
    pub(crate) const ARRAY8: u8 = 0xe0;
    pub(crate) const ARRAY32: u8 = 0xf0;
}
