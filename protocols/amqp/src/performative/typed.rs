//! Which sound values may be handed to `serde_amqp`.
//!
//! Its decoder loses its place in some values that are valid: arrays of compounds or of described values, an empty
//! array that has a constructor, a composite with more fields than its structure. What it then reads are lengths that
//! nobody has checked, at which it overflows or allocates without bound. None of these stands in what peers send in
//! earnest, so they are refused.

use super::descriptor;
use crate::codec::{Reader, Value};

/// Whether `serde_amqp` keeps its place in `raw`, one valid value.
pub(super) fn is_safe(raw: &[u8]) -> bool {
    match Value::validated(raw) {
        None => false,
        Some(Value::List(list)) => {
            let mut items = list.iter();
            std::iter::from_fn(|| items.next_raw()).all(is_safe)
        }
        Some(Value::Map(map)) => {
            let mut items = map.items();
            std::iter::from_fn(|| items.next_raw()).all(is_safe)
        }
        Some(Value::Array(array)) => array.is_flat(),
        Some(Value::Described(described)) => {
            let mut reader = Reader::new(raw);
            let Ok(code) = reader.read_descriptor() else {
                return false;
            };
            let fields = match described.value() {
                Value::List(list) => list.len(),
                _ => 0,
            };
            let most = descriptor::field_count(code);
            (most == 0 || fields <= most) && is_safe(reader.rest())
        }
        Some(_) => true,
    }
}
