//! SASL mechanisms by their registered names.

use std::fmt;
use std::marker::PhantomData;

use fieldgate_amqp::sasl::Mechanism;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::error::nearest;

/// How a connection to a hub begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// With the AMQP header: no SASL at all.
    Bare,
    /// With SASL, by this mechanism.
    Sasl(Mechanism),
}

/// The word for [`Way::Bare`].
const NONE: &str = "NONE";

/// What stands in a list of mechanisms.
trait Named: Sized + PartialEq {
    fn named(text: &str) -> Result<Self, String>;
}

impl Named for Mechanism {
    fn named(text: &str) -> Result<Self, String> {
        by_name(text)
    }
}

impl Named for Way {
    fn named(text: &str) -> Result<Self, String> {
        match text.eq_ignore_ascii_case(NONE) {
            true => Ok(Self::Bare),
            false => {
                by_name(text).map(Self::Sasl).map_err(|what| format!("{what}, and {NONE} for no SASL at all"))
            }
        }
    }
}

struct Word<T>(T);

impl<'de, T: Named> Deserialize<'de> for Word<T> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Text<T>(PhantomData<T>);
        impl<T: Named> Visitor<'_> for Text<T> {
            type Value = Word<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a SASL mechanism, as \"ANONYMOUS\"")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Word<T>, E> {
                T::named(text).map(Word).map_err(E::custom)
            }
        }
        input.deserialize_str(Text(PhantomData))
    }
}

/// The mechanism of this name, in any case.
pub(super) fn by_name(text: &str) -> Result<Mechanism, String> {
    let name = text.to_ascii_uppercase();
    let names = Mechanism::ALL.map(Mechanism::name);
    let known = Mechanism::ALL.into_iter().find(|mechanism| mechanism.name() == name);
    known.ok_or_else(|| {
        let guess = nearest(&name, names).map(|near| format!("did you mean {near}? ")).unwrap_or_default();
        format!(
            "`{}` is no SASL mechanism that is spoken here: {guess}there are {}",
            text.escape_debug(),
            names.join(", ")
        )
    })
}

/// `#[serde(default, deserialize_with = "mechanisms::several")]`: at least one.
pub(super) fn several<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Vec<Mechanism>>, D::Error> {
    list(input)
}

/// As [`several`], of a connection to a hub.
pub(super) fn ways<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Vec<Way>>, D::Error> {
    list(input)
}

fn list<'de, T: Named, D: Deserializer<'de>>(input: D) -> Result<Option<Vec<T>>, D::Error> {
    struct Words<T>(PhantomData<T>);
    impl<'de, T: Named> Visitor<'de> for Words<T> {
        type Value = Vec<T>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of SASL mechanisms, as [\"ANONYMOUS\", \"MSSBCBS\"]")
        }
        fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
            T::named(text).map(|mechanism| vec![mechanism]).map_err(E::custom)
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut mechanisms = Vec::new();
            while let Some(Word(mechanism)) = seq.next_element()? {
                if !mechanisms.contains(&mechanism) {
                    mechanisms.push(mechanism);
                }
            }
            if mechanisms.is_empty() {
                return Err(A::Error::custom("no mechanism is left: leave the key out for the usual ones"));
            }
            Ok(mechanisms)
        }
    }
    input.deserialize_any(Words(PhantomData)).map(Some)
}
