//! The tables of fields that a composite is checked against, and the newtypes that stand for a checked one.

use super::Composite;
use crate::codec::{Reader, Value};
use crate::error::{DecodeError, DecodeFault};

/// The type of a field, as far as it is checked. `Any` is what we only pass on, and what vendors fill with types of
/// their own.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Any,
    Bool,
    Ubyte,
    Ushort,
    Uint,
    Ulong,
    Str,
    Map,
}

/// A field: its name, its type, whether it is mandatory.
pub(super) type Field = (&'static str, Kind, bool);

/// Whether `composite` has the descriptor `code` and its fields are what `fields` says.
pub(super) fn check(composite: &Composite, code: u64, fields: &[Field]) -> Result<(), DecodeError> {
    if composite.code() != code {
        return Err(DecodeFault::Descriptor.at(0));
    }
    for (index, &(name, kind, mandatory)) in fields.iter().enumerate() {
        let Some(raw) = composite.raw(index) else {
            if mandatory {
                return Err(DecodeFault::Missing(name).at(0));
            }
            continue;
        };
        let mut reader = Reader::new(raw);
        let fits = match kind {
            Kind::Any => true,
            Kind::Bool => reader.read_bool().is_ok(),
            Kind::Ubyte => reader.read_u8().is_ok(),
            Kind::Ushort => reader.read_u16().is_ok(),
            Kind::Uint => reader.read_u32().is_ok(),
            Kind::Ulong => reader.read_u64().is_ok(),
            Kind::Str => reader.read_str().is_ok(),
            Kind::Map => matches!(Value::validated(raw), Some(Value::Map(_))),
        };
        if !fits {
            return Err(DecodeFault::Field(name).at(0));
        }
    }
    Ok(())
}

/// A newtype around a [`Composite`] whose descriptor and fields have been checked.
macro_rules! composite {
    ($(#[$doc:meta])* $name:ident = $code:ident, typed $typed:ty,
     [$($field:literal $kind:ident $($mandatory:ident)?,)*]) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq)]
        pub struct $name(Composite);

        impl $name {
            const FIELDS: &[$crate::performative::schema::Field] = &[
                $(($field, $crate::performative::schema::Kind::$kind, composite!(@mandatory $($mandatory)?)),)*
            ];

            /// Decodes the body of a frame, or a field.
            ///
            /// # Errors
            /// Where the bytes are not sound, are another composite, or a field is absent that must be there or is
            /// of a wrong type.
            pub fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
                Self::try_from(Composite::parse(bytes, &Limits::WIRE)?.0)
            }

            /// The composite, for fields without an accessor here.
            pub fn composite(&self) -> &Composite {
                &self.0
            }

            /// All of it, encoded, descriptor included.
            pub fn encoded(&self) -> &[u8] {
                self.0.encoded()
            }

            /// Writes it with fields replaced: see [`Composite::write_patched`].
            pub fn write_patched(&self, out: &mut BytesMut, patches: &[(usize, Patch<'_>)]) {
                self.0.write_patched(out, patches);
            }

            /// All of it as the structure of `fe2o3-amqp-types`: see [`Composite::typed`].
            ///
            /// # Errors
            /// Where the structure has no place for a value of a vendor's own type.
            pub fn typed(&self) -> Result<$typed, DecodeError> {
                self.0.typed()
            }
        }

        impl TryFrom<Composite> for $name {
            type Error = DecodeError;

            fn try_from(composite: Composite) -> Result<Self, DecodeError> {
                $crate::performative::schema::check(&composite, descriptor::$code, Self::FIELDS)?;
                Ok(Self(composite))
            }
        }
    };
    (@mandatory) => { false };
    (@mandatory mandatory) => { true };
}

pub(super) use composite;
