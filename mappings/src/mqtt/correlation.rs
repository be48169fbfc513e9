//! Correlation Data (MQTT 5 3.3.2.3.6) and correlation-id (AMQP 1.0 3.2.4): octets on the one side, one of four types
//! on the other, of which the answer must have the one of the request.
//!
//! What a device says is a string if it is text, and binary if it is not. So a service's string comes back from the
//! device as the string that it was, and what the device has asked with comes back to it byte for byte. Of a request to
//! the device the other types are written as text with a prefix, which the device's answer has as well; they are those that
//! the AMQP binding of JMS has for the same problem.
//!
//! | correlation-id of a request | Correlation Data, there and back |
//! |---|---|
//! | string | its text; behind `AMQP_STRING:` if it begins with one of these |
//! | uuid | `AMQP_UUID:` and 36 characters |
//! | ulong | `AMQP_ULONG:` and digits |
//! | binary | its octets; behind `AMQP_BINARY:` in hexadecimal if they could be text |

use std::fmt::Write as _;

use bytes::Bytes;
use bytestring::ByteString;

use crate::message::MessageId;

use super::properties::id_text;

const STRING: &str = "AMQP_STRING:";
const UUID: &str = "AMQP_UUID:";
const ULONG: &str = "AMQP_ULONG:";
const BINARY: &str = "AMQP_BINARY:";

/// What the device says. In an answer a prefix is ours; in a request of its own it is the device's.
pub(super) fn read(data: Bytes, is_request: bool) -> MessageId {
    let Ok(text) = ByteString::try_from(data.clone()) else { return MessageId::Binary(data) };
    let ours = if is_request { None } else { typed(&text) };
    ours.unwrap_or(MessageId::String(text))
}

/// What the device is told: in a request with a prefix where the type would be lost, else the octets alone.
pub(super) fn write(id: &MessageId, is_request: bool) -> Bytes {
    let prefix = match id {
        MessageId::String(text) if [STRING, UUID, ULONG, BINARY].iter().any(|it| text.starts_with(it)) => {
            STRING
        }
        MessageId::String(_) => "",
        MessageId::Uuid(_) => UUID,
        MessageId::Ulong(_) => ULONG,
        MessageId::Binary(bytes) => {
            if !is_request || std::str::from_utf8(bytes).is_err() {
                return bytes.clone();
            }
            let mut text = String::with_capacity(BINARY.len() + 2 * bytes.len());
            text.push_str(BINARY);
            bytes.iter().for_each(|byte| _ = write!(text, "{byte:02x}"));
            return text.into();
        }
    };
    let text = id_text(id);
    if is_request && !prefix.is_empty() { format!("{prefix}{text}").into() } else { text.into_bytes() }
}

/// What was written with a prefix; nothing else is taken for it.
fn typed(text: &str) -> Option<MessageId> {
    if let Some(text) = text.strip_prefix(STRING) {
        return Some(MessageId::String(text.into()));
    }
    if let Some(digits) = text.strip_prefix(ULONG) {
        let number = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?;
        return number.map(MessageId::Ulong);
    }
    if let Some(text) = text.strip_prefix(UUID) {
        let hyphens = [8, 13, 18, 23];
        let is_uuid = text.len() == 36 && hyphens.iter().all(|at| text.as_bytes()[*at] == b'-');
        let bytes = octets(&text.replace('-', ""))?;
        return bytes.try_into().ok().filter(|_| is_uuid).map(MessageId::Uuid);
    }
    Some(MessageId::Binary(octets(text.strip_prefix(BINARY)?)?.into()))
}

fn octets(hexadecimal: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let pairs = hexadecimal.as_bytes().chunks(2);
    let octet = |pair: &[u8]| match pair {
        [high, low] => u8::try_from(digit(*high)? << 4 | digit(*low)?).ok(),
        _ => None,
    };
    pairs.map(octet).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(text: &'static str) -> MessageId {
        MessageId::String(ByteString::from_static(text))
    }

    fn binary(bytes: &'static [u8]) -> MessageId {
        MessageId::Binary(Bytes::from_static(bytes))
    }

    #[test]
    fn the_answer_to_a_request_has_the_requests_correlation_id_with_its_type() {
        for (id, data) in [
            (string("r-1"), &b"r-1"[..]),
            (string(""), b""),
            (string("AMQP_ULONG:7"), b"AMQP_STRING:AMQP_ULONG:7"),
            (string("AMQP_STRING:"), b"AMQP_STRING:AMQP_STRING:"),
            (MessageId::Ulong(u64::MAX), b"AMQP_ULONG:18446744073709551615"),
            (MessageId::Uuid([0xab; 16]), b"AMQP_UUID:abababab-abab-abab-abab-abababababab"),
            (binary(b"\x00\xff"), b"\x00\xff"),
            (binary(b"r\n"), b"AMQP_BINARY:720a"),
            (binary(b""), b"AMQP_BINARY:"),
        ] {
            let written = write(&id, true);
            assert_eq!(written, data, "{id:?}");
            assert_eq!(read(written, false), id);
        }
    }

    #[test]
    fn a_device_gets_back_what_it_has_asked_with() {
        for data in [&b"r-1"[..], b"", b"\x00\xff", b"AMQP_ULONG:7", b"AMQP_BINARY:7a", "é".as_bytes()] {
            assert_eq!(write(&read(Bytes::from_static(data), true), false), data);
        }
        // Also from a service that does not keep the type.
        assert_eq!(write(&binary(b"r-1"), false), "r-1");
    }

    #[test]
    fn what_only_looks_like_a_prefix_is_a_string() {
        for text in [
            "AMQP_ULONG:",
            "AMQP_ULONG:+1",
            "AMQP_ULONG:18446744073709551616",
            "AMQP_UUID:abababababababababababababababab",
            "AMQP_UUID:ababababa-bab-abab-abab-ababababababab",
            "AMQP_UUID:é",
            "AMQP_BINARY:7",
            "AMQP_BINARY:+7",
            "AMQP_BINARY:é",
            "amqp_uuid:",
        ] {
            assert_eq!(read(Bytes::from_static(text.as_bytes()), false), string(text), "{text}");
        }
    }
}
