//! SASL mechanisms by their registered names.

use std::fmt;

use fieldgate_amqp::sasl::Mechanism;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::error::nearest;

struct Word(Mechanism);

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Word;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a SASL mechanism, as \"ANONYMOUS\"")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Word, E> {
                by_name(text).map(Word).map_err(E::custom)
            }
        }
        input.deserialize_str(Text)
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
    struct Words;
    impl<'de> Visitor<'de> for Words {
        type Value = Vec<Mechanism>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of SASL mechanisms, as [\"ANONYMOUS\", \"MSSBCBS\"]")
        }
        fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
            by_name(text).map(|mechanism| vec![mechanism]).map_err(E::custom)
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
    input.deserialize_any(Words).map(Some)
}
