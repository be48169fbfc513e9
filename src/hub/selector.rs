//! Where an event reader begins: the one filter that Event Hubs knows.
//!
//! It is a comparison in the form of a message selector, on one of three annotations:
//! `amqp.annotation.x-opt-offset > '4096'`. Clients name the filter by a symbol or by a number, and quote the
//! value or not.

use fieldgate_amqp::codec::{Map, Value};
use fieldgate_mappings::Timestamp;

use super::log::Position;

/// The filter's name, which is also its symbolic descriptor.
pub(crate) const NAME: &str = "apache.org:selector-filter:string";
/// Its numeric descriptor, in the registry of descriptors of the AMQP project at Apache.
pub(crate) const CODE: u64 = 0x0000_468c_0000_0004;

const PREFIX: &str = "amqp.annotation.x-opt-";

/// A selector that cannot be understood; its text, for the answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the selector {0:?} is none of x-opt-offset, x-opt-sequence-number or x-opt-enqueued-time, prefixed with \
     amqp.annotation., compared by > or >= with a number"
)]
pub(crate) struct BadSelector(String);

/// The selector in a source's filters, as text. Other filters are left alone: the answer does not name them,
/// which is how a sender says that it does not apply them (AMQP 1.0 3.5.8).
pub(crate) fn find<'a>(filters: Option<Map<'a>>) -> Option<&'a str> {
    filters?.iter().find_map(|(_, filter)| {
        let Value::Described(described) = filter else { return None };
        let is_selector = match described.descriptor() {
            Value::Symbol(name) => name == NAME,
            Value::Ulong(code) => code == CODE,
            _ => false,
        };
        if is_selector { described.value().as_str() } else { None }
    })
}

/// The position that a selector means.
///
/// # Errors
/// [`BadSelector`], when it is another comparison than these.
pub(crate) fn parse(selector: &str) -> Result<Position, BadSelector> {
    read(selector).ok_or_else(|| BadSelector(selector.chars().take(200).collect()))
}

fn read(selector: &str) -> Option<Position> {
    let rest = selector.trim().strip_prefix(PREFIX)?;
    let (annotation, rest) = rest.split_once('>')?;
    let (inclusive, value) = match rest.strip_prefix('=') {
        Some(value) => (true, value),
        None => (false, rest),
    };
    let value = value.trim();
    let value = value.strip_prefix('\'').and_then(|value| value.strip_suffix('\'')).unwrap_or(value);
    match annotation.trim() {
        "offset" => match value {
            "-1" => Some(Position::Start),
            "@latest" => Some(Position::End),
            _ => Some(Position::Offset { offset: value.parse().ok()?, inclusive }),
        },
        "sequence-number" => Some(Position::Sequence { sequence: value.parse().ok()?, inclusive }),
        "enqueued-time" => Some(Position::Enqueued { time: Timestamp(value.parse().ok()?), inclusive }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use fieldgate_amqp::codec::{Limits, put_map, put_str, put_symbol, put_ulong};

    use super::*;

    #[test]
    fn selectors_as_clients_write_them() {
        for (text, position) in [
            ("amqp.annotation.x-opt-offset > '-1'", Position::Start),
            ("amqp.annotation.x-opt-offset >= '-1'", Position::Start),
            ("amqp.annotation.x-opt-offset > '@latest'", Position::End),
            ("amqp.annotation.x-opt-offset > '4096'", Position::Offset { offset: 4096, inclusive: false }),
            ("amqp.annotation.x-opt-offset>='4096'", Position::Offset { offset: 4096, inclusive: true }),
            (
                " amqp.annotation.x-opt-sequence-number >= 7 ",
                Position::Sequence { sequence: 7, inclusive: true },
            ),
            (
                "amqp.annotation.x-opt-enqueued-time > '1795339845006'",
                Position::Enqueued { time: Timestamp(1_795_339_845_006), inclusive: false },
            ),
        ] {
            assert_eq!(parse(text), Ok(position), "{text}");
        }
        for text in [
            "",
            "amqp.annotation.x-opt-offset",
            "amqp.annotation.x-opt-offset < '1'",
            "amqp.annotation.x-opt-offset > ''",
            "amqp.annotation.x-opt-offset > 'x'",
            "amqp.annotation.x-opt-partition-key > '1'",
            "x-opt-offset > '1'",
            "amqp.annotation.x-opt-sequence-number > '-1' AND 1=1",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        let long = parse(&"x".repeat(10_000)).unwrap_err();
        assert!(long.to_string().len() < 500, "an answer does not repeat everything");
    }

    #[test]
    fn the_filter_is_found_by_symbol_and_by_number() {
        for by_number in [false, true] {
            let mut bytes = BytesMut::new();
            put_map(&mut bytes, |out| {
                put_symbol(out, "other");
                put_str(out, "no described value");
                put_symbol(out, NAME);
                out.extend_from_slice(&[0]);
                if by_number {
                    put_ulong(out, CODE)
                } else {
                    put_symbol(out, NAME)
                }
                put_str(out, "amqp.annotation.x-opt-offset > '1'");
                2
            });
            let (Value::Map(map), _) = Value::decode(&bytes, &Limits::WIRE).unwrap() else { panic!("a map") };
            assert_eq!(find(Some(map)), Some("amqp.annotation.x-opt-offset > '1'"));
        }
        assert_eq!(find(None), None);
    }
}
