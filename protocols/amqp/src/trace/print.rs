//! Values as text. Everything here reads what has been validated; how long a line gets is bounded all the same.

use std::fmt::{self, Write};

use super::names;
use crate::codec::Value;
use crate::performative::{Composite, descriptor};

/// The most characters of a line, about.
const LINE: usize = 4096;
/// The most bytes of a string, symbol or binary that are shown.
const VALUE: usize = 128;

/// What stands in the place of a secret.
const HIDDEN: &str = "(hidden)";

/// A line that stops where it is full.
struct Page<'f, 'o> {
    out: &'f mut fmt::Formatter<'o>,
    room: usize,
}

impl Write for Page<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.room == 0 {
            return Ok(());
        }
        match self.room.checked_sub(text.len()) {
            Some(room @ 1..) => {
                self.room = room;
                self.out.write_str(text)
            }
            _ => {
                self.room = 0;
                self.out.write_str("…")
            }
        }
    }
}

/// Writes a performative.
pub(super) fn performative(out: &mut fmt::Formatter<'_>, performative: &Composite) -> fmt::Result {
    match Value::validated(performative.encoded()) {
        Some(value) => self::value(&mut Page { out, room: LINE }, &value),
        None => Ok(()),
    }
}

fn value(page: &mut Page<'_, '_>, value: &Value<'_>) -> fmt::Result {
    if page.room == 0 {
        return Ok(());
    }
    match *value {
        Value::Null => page.write_str("null"),
        Value::Bool(value) => write!(page, "{value}"),
        Value::Ubyte(value) => write!(page, "{value:#x}"),
        Value::Ushort(value) => write!(page, "{value:#x}"),
        Value::Uint(value) => write!(page, "{value:#x}"),
        Value::Ulong(value) => write!(page, "{value:#x}"),
        Value::Byte(value) => write!(page, "{value}"),
        Value::Short(value) => write!(page, "{value}"),
        Value::Int(value) => write!(page, "{value}"),
        Value::Long(value) | Value::Timestamp(value) => write!(page, "{value}"),
        Value::Float(value) => write!(page, "{value}"),
        Value::Double(value) => write!(page, "{value}"),
        Value::Decimal32(bytes) => decimal(page, 32, &bytes),
        Value::Decimal64(bytes) => decimal(page, 64, &bytes),
        Value::Decimal128(bytes) => decimal(page, 128, &bytes),
        Value::Char(value) => write!(page, "{}", u32::from(value)),
        Value::Uuid(bytes) => {
            page.write_str("UUID(")?;
            for (at, byte) in bytes.into_iter().enumerate() {
                let dash = if matches!(at, 4 | 6 | 8 | 10) { "-" } else { "" };
                write!(page, "{dash}{byte:02x}")?;
            }
            page.write_str(")")
        }
        Value::Binary(bytes) => {
            page.write_str(if is_secret(bytes) { "" } else { "b" })?;
            quoted(page, bytes)
        }
        Value::Str(text) => quoted(page, text.as_bytes()),
        Value::Symbol(name) => symbol(page, name),
        Value::List(items) => listed(page, items.iter()),
        Value::Map(map) => mapped(page, map.iter()),
        Value::Array(array) => {
            let element = array.iter().next().map_or("", |first| type_name(&first));
            write!(page, "@<{element}>[")?;
            sequence(page, array.iter())
        }
        Value::Described(described) => {
            let name = described.descriptor();
            let code = match name {
                Value::Ulong(code) => code,
                Value::Symbol(name) => descriptor::of(name),
                _ => descriptor::UNKNOWN,
            };
            page.write_str("@")?;
            match (names::composite(code), described.value()) {
                (Some(name), Value::List(fields)) => {
                    write!(page, "{name}({code}) [")?;
                    composite(page, code, fields.iter())
                }
                (_, inner) => {
                    self::value(page, &name)?;
                    self::value(page, &inner)
                }
            }
        }
    }
}

/// What the specification calls a value's type (1.6).
fn type_name(value: &Value<'_>) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Ubyte(_) => "ubyte",
        Value::Ushort(_) => "ushort",
        Value::Uint(_) => "uint",
        Value::Ulong(_) => "ulong",
        Value::Byte(_) => "byte",
        Value::Short(_) => "short",
        Value::Int(_) => "int",
        Value::Long(_) => "long",
        Value::Float(_) => "float",
        Value::Double(_) => "double",
        Value::Decimal32(_) => "decimal32",
        Value::Decimal64(_) => "decimal64",
        Value::Decimal128(_) => "decimal128",
        Value::Char(_) => "char",
        Value::Timestamp(_) => "timestamp",
        Value::Uuid(_) => "uuid",
        Value::Binary(_) => "binary",
        Value::Str(_) => "string",
        Value::Symbol(_) => "symbol",
        Value::List(_) => "list",
        Value::Map(_) => "map",
        Value::Array(_) => "array",
        Value::Described(_) => "described",
    }
}

/// The fields of a composite that are there.
fn composite<'v>(page: &mut Page<'_, '_>, code: u64, fields: impl Iterator<Item = Value<'v>>) -> fmt::Result {
    let mut between = "";
    for (index, field) in fields.enumerate().filter(|(_, field)| *field != Value::Null) {
        page.write_str(std::mem::replace(&mut between, ", "))?;
        match names::field(code, index) {
            Some(name) => write!(page, "{name}=")?,
            None => write!(page, "{index}=")?,
        }
        match field {
            Value::Binary(bytes) if names::is_sasl_data(code, index) => write!(page, "({})", bytes.len())?,
            _ if names::is_sasl_data(code, index) => page.write_str(HIDDEN)?,
            field => value(page, &field)?,
        }
        if page.room == 0 {
            break;
        }
    }
    page.write_str("]")
}

fn listed<'v>(page: &mut Page<'_, '_>, items: impl Iterator<Item = Value<'v>>) -> fmt::Result {
    page.write_str("[")?;
    sequence(page, items)
}

fn sequence<'v>(page: &mut Page<'_, '_>, items: impl Iterator<Item = Value<'v>>) -> fmt::Result {
    let mut between = "";
    for item in items {
        page.write_str(std::mem::replace(&mut between, ", "))?;
        value(page, &item)?;
        if page.room == 0 {
            break;
        }
    }
    page.write_str("]")
}

fn mapped<'v>(page: &mut Page<'_, '_>, entries: impl Iterator<Item = (Value<'v>, Value<'v>)>) -> fmt::Result {
    page.write_str("{")?;
    let mut between = "";
    for (key, entry) in entries {
        page.write_str(std::mem::replace(&mut between, ", "))?;
        value(page, &key)?;
        page.write_str("=")?;
        match key.as_str() {
            Some(name) if names_a_secret(name) => page.write_str(HIDDEN)?,
            _ => value(page, &entry)?,
        }
        if page.room == 0 {
            break;
        }
    }
    page.write_str("}")
}

fn decimal(page: &mut Page<'_, '_>, bits: u8, bytes: &[u8]) -> fmt::Result {
    write!(page, "D{bits}(")?;
    bytes.iter().try_for_each(|byte| write!(page, "{byte:02x}"))?;
    page.write_str(")")
}

fn symbol(page: &mut Page<'_, '_>, name: &str) -> fmt::Result {
    page.write_str(":")?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if name.len() <= VALUE && !name.is_empty() && name.bytes().all(plain) && !is_secret(name.as_bytes()) {
        return page.write_str(name);
    }
    quoted(page, name.as_bytes())
}

/// Text between quotes, with everything but plain ASCII as `\x…`; cut where it is long, with its length behind it.
fn quoted(page: &mut Page<'_, '_>, bytes: &[u8]) -> fmt::Result {
    if is_secret(bytes) {
        return page.write_str(HIDDEN);
    }
    page.write_str("\"")?;
    for &byte in bytes.iter().take(VALUE) {
        match byte {
            b'"' | b'\'' | b'\\' => write!(page, "\\x{byte:02x}")?,
            0x20..=0x7e => page.write_char(char::from(byte))?,
            _ => write!(page, "\\x{byte:02x}")?,
        }
    }
    if bytes.len() > VALUE { write!(page, "…\"({})", bytes.len()) } else { page.write_str("\"") }
}

/// Whether a value looks like a token, a key or a password, or holds one.
fn is_secret(bytes: &[u8]) -> bool {
    let signed = find(bytes, b"sig=").any(|at| at == 0 || !bytes[at - 1].is_ascii_alphanumeric());
    signed
        || bytes.starts_with(b"eyJ") // A JSON web token.
        || [&b"sharedaccess"[..], b"accountkey=", b"password=", b"bearer "]
            .into_iter()
            .any(|mark| find(bytes, mark).next().is_some())
        // A URL with a password before its host.
        || find(bytes, b"://").any(|at| {
            let authority = bytes[at + 3..].split(|&byte| byte == b'/').next().unwrap_or_default();
            let user = authority.iter().rposition(|&byte| byte == b'@').map(|end| &authority[..end]);
            user.is_some_and(|user| user.contains(&b':'))
        })
}

/// Where `mark`, which is in lower case, stands in `bytes`, in any case.
fn find(bytes: &[u8], mark: &'static [u8]) -> impl Iterator<Item = usize> {
    let places = bytes.windows(mark.len()).enumerate();
    places.filter(move |(_, window)| window.eq_ignore_ascii_case(mark)).map(|(at, _)| at)
}

/// Whether the value under this key is a secret, whatever it looks like.
fn names_a_secret(key: &str) -> bool {
    let names: [&[u8]; 5] = [b"password", b"passwd", b"secret", b"token", b"authorization"];
    names.into_iter().any(|name| find(key.as_bytes(), name).next().is_some())
}
