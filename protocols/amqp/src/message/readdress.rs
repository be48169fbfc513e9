//! A message that is encoded already gets another `to`; everything else stays as it is, byte for byte.

use bytes::{Bytes, BytesMut};

use super::{PropertiesOut, put_properties};
use crate::codec::{Limits, Reader, validate};
use crate::error::DecodeError;
use crate::performative::{Composite, Patch, descriptor};

/// The field `to` of the section `properties` (AMQP 1.0 3.2.4).
const TO: usize = 2;

/// Appends `message` with `to` in its properties, which it gets where it has none. What follows the properties is not
/// looked at.
///
/// # Errors
/// Where the sections up to the properties are not sound. `out` may hold the first of them then.
pub fn put_readdressed(out: &mut BytesMut, message: &Bytes, to: &str) -> Result<(), DecodeError> {
    out.reserve(message.len() + to.len() + 32);
    let mut at = 0;
    while at < message.len() {
        let section = &message[at..];
        let code = Reader::new(section).read_descriptor().map_err(|error| error.shifted(at))?;
        if code > descriptor::PROPERTIES {
            break;
        }
        let end = at + validate(section, &Limits::WIRE).map_err(|error| error.shifted(at))?;
        if code == descriptor::PROPERTIES {
            let properties = Composite::validated(message.slice(at..end))?;
            out.extend_from_slice(properties.patched(&[(TO, Patch::Str(to))])?.encoded());
            out.extend_from_slice(&message[end..]);
            return Ok(());
        }
        out.extend_from_slice(&message[at..end]);
        at = end;
    }
    put_properties(out, &PropertiesOut { to: Some(to), ..PropertiesOut::default() });
    out.extend_from_slice(&message[at..]);
    Ok(())
}
