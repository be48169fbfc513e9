//! Writers of encoded values, each in the shortest encoding of its type.

use std::borrow::Cow;

use bytes::{BufMut, BytesMut};

use super::code;

/// Writes null.
pub fn put_null(out: &mut BytesMut) {
    out.put_u8(code::NULL);
}

/// Writes a boolean.
pub fn put_bool(out: &mut BytesMut, value: bool) {
    out.put_u8(if value { code::TRUE } else { code::FALSE });
}

/// Writes a ubyte.
pub fn put_ubyte(out: &mut BytesMut, value: u8) {
    put_fixed(out, code::UBYTE, [value]);
}

/// Writes a ushort.
pub fn put_ushort(out: &mut BytesMut, value: u16) {
    put_fixed(out, code::USHORT, value.to_be_bytes());
}

/// Writes a uint.
pub fn put_uint(out: &mut BytesMut, value: u32) {
    match u8::try_from(value) {
        Ok(0) => out.put_u8(code::UINT0),
        Ok(small) => put_fixed(out, code::SMALL_UINT, [small]),
        Err(_) => put_fixed(out, code::UINT, value.to_be_bytes()),
    }
}

/// How many bytes [`put_uint`] writes.
pub(crate) fn uint_len(value: u32) -> usize {
    match value {
        0 => 1,
        1..=255 => 2,
        _ => 5,
    }
}

/// Writes a ulong.
pub fn put_ulong(out: &mut BytesMut, value: u64) {
    match u8::try_from(value) {
        Ok(0) => out.put_u8(code::ULONG0),
        Ok(small) => put_fixed(out, code::SMALL_ULONG, [small]),
        Err(_) => put_fixed(out, code::ULONG, value.to_be_bytes()),
    }
}

/// Writes an int.
pub fn put_int(out: &mut BytesMut, value: i32) {
    match i8::try_from(value) {
        Ok(small) => put_fixed(out, code::SMALL_INT, small.to_be_bytes()),
        Err(_) => put_fixed(out, code::INT, value.to_be_bytes()),
    }
}

/// Writes a long.
pub fn put_long(out: &mut BytesMut, value: i64) {
    match i8::try_from(value) {
        Ok(small) => put_fixed(out, code::SMALL_LONG, small.to_be_bytes()),
        Err(_) => put_fixed(out, code::LONG, value.to_be_bytes()),
    }
}

/// Writes a float.
pub fn put_float(out: &mut BytesMut, value: f32) {
    put_fixed(out, code::FLOAT, value.to_be_bytes());
}

/// Writes a double.
pub fn put_double(out: &mut BytesMut, value: f64) {
    put_fixed(out, code::DOUBLE, value.to_be_bytes());
}

/// Writes a timestamp: milliseconds since 1970-01-01T00:00:00Z.
pub fn put_timestamp(out: &mut BytesMut, milliseconds: i64) {
    put_fixed(out, code::TIMESTAMP, milliseconds.to_be_bytes());
}

/// Writes a UUID, its bytes in network order.
pub fn put_uuid(out: &mut BytesMut, uuid: [u8; 16]) {
    put_fixed(out, code::UUID, uuid);
}

/// Writes a binary.
pub fn put_binary(out: &mut BytesMut, bytes: &[u8]) {
    put_variable(out, code::BINARY8, code::BINARY32, bytes);
}

/// Writes a string.
pub fn put_str(out: &mut BytesMut, text: &str) {
    put_variable(out, code::STR8, code::STR32, text.as_bytes());
}

/// Writes a symbol. What is not ASCII cannot stand in one, and is written as `?`.
pub fn put_symbol(out: &mut BytesMut, symbol: &str) {
    put_variable(out, code::SYM8, code::SYM32, ascii(symbol).as_bytes());
}

fn ascii(symbol: &str) -> Cow<'_, str> {
    if symbol.is_ascii() {
        return Cow::Borrowed(symbol);
    }
    symbol.chars().map(|char| if char.is_ascii() { char } else { '?' }).collect()
}

/// Writes an array of symbols, the form of a field that holds several (AMQP 1.0 1.4).
pub fn put_symbols(out: &mut BytesMut, symbols: &[&str]) {
    // The elements of an array have one constructor, so all are as wide as the longest.
    let wide = symbols.iter().any(|symbol| symbol.len() > 255);
    let mut items = BytesMut::new();
    for symbol in symbols {
        let symbol = ascii(symbol);
        if wide {
            items.put_u32(len32(symbol.len()));
        } else {
            // Not more than 255, as just seen; what is not ASCII has only become shorter.
            items.put_slice(&symbol.len().to_be_bytes()[size_of::<usize>() - 1..]);
        }
        items.extend_from_slice(symbol.as_bytes());
    }
    put_array(out, &[if wide { code::SYM32 } else { code::SYM8 }], symbols.len(), &items);
}

/// Writes a list whose items `items` writes; it gives their number.
pub fn put_list(out: &mut BytesMut, items: impl FnOnce(&mut BytesMut) -> usize) {
    put_compound(out, code::LIST8, code::LIST32, items);
}

/// Writes a map whose pairs `pairs` writes; it gives the number of pairs.
pub fn put_map(out: &mut BytesMut, pairs: impl FnOnce(&mut BytesMut) -> usize) {
    put_compound(out, code::MAP8, code::MAP32, |out| pairs(out) * 2);
}

/// Writes the descriptor of the value that is written next.
pub fn put_descriptor(out: &mut BytesMut, descriptor: u64) {
    out.put_u8(code::DESCRIBED);
    put_ulong(out, descriptor);
}

/// Writes a described list whose fields `fields` writes; it gives their number.
pub fn put_composite(out: &mut BytesMut, descriptor: u64, fields: impl FnOnce(&mut BytesMut) -> usize) {
    put_descriptor(out, descriptor);
    put_list(out, fields);
}

pub(super) fn put_array(out: &mut BytesMut, constructor: &[u8], count: usize, items: &[u8]) {
    let content = constructor.len() + items.len();
    match (u8::try_from(content + 1), u8::try_from(count)) {
        (Ok(size), Ok(count)) => out.put_slice(&[code::ARRAY8, size, count]),
        _ => {
            out.put_u8(code::ARRAY32);
            out.put_u32(len32(content + 4));
            out.put_u32(len32(count));
        }
    }
    out.extend_from_slice(constructor);
    out.extend_from_slice(items);
}

pub(super) fn put_fixed<const N: usize>(out: &mut BytesMut, code: u8, bytes: [u8; N]) {
    out.put_u8(code);
    out.put_slice(&bytes);
}

fn put_variable(out: &mut BytesMut, short: u8, long: u8, bytes: &[u8]) {
    match u8::try_from(bytes.len()) {
        Ok(len) => out.put_slice(&[short, len]),
        Err(_) => {
            out.put_u8(long);
            out.put_u32(len32(bytes.len()));
        }
    }
    out.extend_from_slice(bytes);
}

/// How many bytes a binary, string or symbol of `len` bytes takes.
pub(crate) fn bytes_len(len: usize) -> usize {
    if len <= 255 { 2 + len } else { 5 + len }
}

/// Writes a compound in its short form, and makes room for the long one only where the content needs it.
fn put_compound(out: &mut BytesMut, short: u8, long: u8, items: impl FnOnce(&mut BytesMut) -> usize) {
    let start = out.len();
    out.put_slice(&[short, 0, 0]);
    let count = items(out);
    let content = out.len() - start - 3;
    if content == 0 && short == code::LIST8 {
        out.truncate(start);
        out.put_u8(code::LIST0);
        return;
    }
    if let (Ok(size), Ok(count)) = (u8::try_from(content + 1), u8::try_from(count)) {
        out[start + 1] = size;
        out[start + 2] = count;
        return;
    }
    out.put_bytes(0, 6);
    out.copy_within(start + 3..start + 3 + content, start + 9);
    out[start] = long;
    out[start + 1..start + 5].copy_from_slice(&len32(content + 4).to_be_bytes());
    out[start + 5..start + 9].copy_from_slice(&len32(count).to_be_bytes());
}

/// A length as the wire has it. Nobody holds 4 GiB in one value: frames and messages are bounded far below.
fn len32(len: usize) -> u32 {
    u32::try_from(len).expect("a value of 4 GiB cannot pass max-frame-size or max-message-size")
}
