//! What requests and answers have in common: where a head ends, what its fields say.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use httparse::Header;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

/// The longest head that is read, in bytes.
pub const MAX_HEAD_BYTES: usize = 8 * 1024;

/// The most fields of a head.
pub(crate) const MAX_FIELDS: usize = 64;

/// Behind the empty line that ends a head, where there is one yet.
#[must_use]
pub fn end_of_head(bytes: &[u8]) -> Option<usize> {
    const END: &[u8] = b"\r\n\r\n";
    bytes.windows(END.len()).position(|window| window == END).map(|at| at + END.len())
}

/// What the server must answer to a key (RFC 6455 4.2.2). SHA-1 is no secret here: it only shows that the server has
/// understood.
pub(crate) fn accept(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    BASE64.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
}

/// The only field of this name.
pub(crate) fn only<'a>(fields: &[Header<'a>], name: &str) -> Option<&'a str> {
    let mut values = fields.iter().filter(|field| field.name.eq_ignore_ascii_case(name));
    match (values.next(), values.next()) {
        (Some(field), None) => std::str::from_utf8(field.value).ok().map(str::trim),
        _ => None,
    }
}

/// The elements of all fields of this name (RFC 9110 5.6.1).
pub(crate) fn elements<'a>(fields: &[Header<'a>], name: &str) -> impl Iterator<Item = &'a str> {
    let values = fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name));
    let texts = values.filter_map(|field| std::str::from_utf8(field.value).ok());
    texts.flat_map(|text| text.split(',')).map(str::trim).filter(|element| !element.is_empty())
}

/// Whether a list has this word, in any case.
pub(crate) fn names(fields: &[Header<'_>], name: &str, word: &str) -> bool {
    elements(fields, name).any(|element| element.eq_ignore_ascii_case(word))
}
