//! One `[[device]]`: its keys, and what each of them may say.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use fieldgate_mappings::DeviceId;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};

use crate::config::{Secret, nearest};
use crate::devices::device::{Device, Proof, SpeaksWith};
use crate::devices::password::PasswordHash;
use crate::sas::SharedKey;

use super::Known;
use super::fault::Fault;
use super::pieces::Piece;

/// The most proofs of one kind: one in use, one to come, and some to spare.
const MAX_PROOFS: usize = 8;
/// The most attributes of a device, and groups in a list.
const MAX_NAMES: usize = 64;
/// The longest name of an attribute or a group, in bytes.
const MAX_NAME_BYTES: usize = 128;
/// The longest value of an attribute, in bytes.
const MAX_VALUE_BYTES: usize = 1024;
/// A shorter key is guessed sooner than it is useful (RFC 2104 asks for as many bytes as the hash has).
const MIN_KEY_BYTES: usize = 16;
/// The longest key, in bytes.
const MAX_KEY_BYTES: usize = 256;

/// `[[device]]`. Its keys are told to people by the errors of a test beside.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    id: String,
    enabled: Option<bool>,
    #[serde(default, deserialize_with = "secrets")]
    sas_keys: Vec<Secret>,
    #[serde(default, deserialize_with = "secrets")]
    passwords: Vec<Secret>,
    #[serde(default, deserialize_with = "secrets")]
    certificates: Vec<Secret>,
    #[serde(default, deserialize_with = "secrets")]
    psk: Vec<Secret>,
    #[serde(default)]
    unproven: bool,
    hub: Option<String>,
    speaks_with: Option<Word>,
    hub_key: Option<Secret>,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    via: Vec<String>,
    #[serde(default)]
    attributes: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Word {
    OwnToken,
    DeviceKey,
    Policy,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct One {
    device: [Entry; 1],
}

/// A text or several. Another kind of value is not repeated: it may be most of a secret.
fn secrets<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<Secret>, D::Error> {
    struct Texts;
    impl<'de> Visitor<'de> for Texts {
        type Value = Vec<Secret>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a list of texts in quotes")
        }
        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
            Ok(vec![Secret::new(text)])
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut texts = Vec::new();
            while let Some(text) = seq.next_element::<Secret>()? {
                if texts.len() == MAX_PROOFS {
                    return Err(A::Error::custom(format!("more than {MAX_PROOFS} are not looked through")));
                }
                texts.push(text);
            }
            Ok(texts)
        }
    }
    input.deserialize_any(Texts)
}

/// Names and values.
type Attributes = Box<[(Arc<str>, Arc<str>)]>;

/// Makes devices of entries; texts that many have stand in memory once.
pub(super) struct Reader<'a> {
    known: &'a Known,
    /// Texts that several devices have.
    words: HashSet<Arc<str>>,
    groups: HashSet<Arc<str>>,
}

impl<'a> Reader<'a> {
    /// Entries may refer to what is known.
    pub(super) fn new(known: &'a Known) -> Self {
        Self { known, words: HashSet::new(), groups: HashSet::new() }
    }

    /// What an entry says.
    pub(super) fn device(&mut self, piece: Piece<'_>) -> Result<Device, Fault> {
        let one: One = toml::from_str(piece.text).map_err(Fault::unreadable)?;
        let [entry] = one.device;
        let id = DeviceId::new(&entry.id).map_err(|fault| {
            let help = "1 to 128 letters, digits or - : . + % _ # * ? ! ( ) , = @ ; $ '";
            Fault::new("id", format!("the device id {fault}"), help)
        })?;
        let proofs = proofs(&entry)?;
        let hub = entry.hub.as_deref().map(|hub| self.hub(hub)).transpose()?;
        Ok(Device {
            enabled: entry.enabled.unwrap_or(true),
            speaks_with: self.speaks_with(&entry)?,
            proofs,
            hub,
            attributes: self.attributes(&entry.attributes)?,
            groups: self.names("groups", &entry.groups)?,
            via: self.names("via", &entry.via)?,
            line: u32::try_from(piece.line).unwrap_or(u32::MAX),
            id,
        })
    }

    /// What waits on the disk goes to the hub when the device is perhaps not there, and its token perhaps not good any
    /// more: the gateway must have a credential of its own.
    fn speaks_with(&self, entry: &Entry) -> Result<SpeaksWith, Fault> {
        let speaks_with = speaks_with(entry)?;
        match &self.known.spools {
            Some(rule) if speaks_with == SpeaksWith::OwnToken && entry.enabled != Some(false) => {
                let what = format!(
                    "the hub is shown the device's own token, but messages of the rule {rule} wait on the disk, \
                     where they may outlive it"
                );
                let help = "\"device-key\" or \"policy\"; or neither `ack = \"on-store\"` nor `when_offline` in \
                            the mapping rules";
                Err(Fault::new("speaks_with", what, help))
            }
            _ => Ok(speaks_with),
        }
    }

    fn word(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.words.get(text) {
            return Arc::clone(known);
        }
        let word: Arc<str> = text.into();
        // Values that differ for each device are not worth being found again.
        if self.words.len() < 4096 {
            self.words.insert(Arc::clone(&word));
        }
        word
    }

    fn hub(&self, name: &str) -> Result<Arc<str>, Fault> {
        let known = &self.known.hubs;
        known.iter().find(|hub| ***hub == *name).cloned().ok_or_else(|| {
            let list = known.iter().map(|hub| format!("`{hub}`")).collect::<Vec<_>>().join(", ");
            let near = nearest(name, known.iter().map(|hub| &**hub));
            let near = near.map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
            let what = format!("there is no connector called `{}`", name.escape_debug());
            Fault::new("hub", what, format!("{near}the configuration has {list}"))
        })
    }

    fn attributes(&mut self, written: &BTreeMap<String, String>) -> Result<Attributes, Fault> {
        let fault =
            |what: String| Fault::new("attributes", what, "names and short texts, as { site = \"berlin\" }");
        if written.len() > MAX_NAMES {
            return Err(fault(format!("more than {MAX_NAMES} attributes")));
        }
        let mut attributes = Vec::with_capacity(written.len());
        for (name, value) in written {
            if !is_name(name) {
                return Err(fault(format!(
                    "`{}` is not fit for the name of an attribute",
                    name.escape_debug()
                )));
            }
            if value.len() > MAX_VALUE_BYTES || value.chars().any(char::is_control) {
                return Err(fault(format!(
                    "the value of `{name}` is longer than {MAX_VALUE_BYTES} bytes or holds a control character"
                )));
            }
            attributes.push((self.word(name), self.word(value)));
        }
        Ok(attributes.into())
    }

    fn names(&mut self, key: &str, written: &[String]) -> Result<Box<[Arc<str>]>, Fault> {
        let fault = |what: String| Fault::new(key, what, "names of groups, as [\"line-gateways\"]");
        if written.len() > MAX_NAMES {
            return Err(fault(format!("more than {MAX_NAMES} groups")));
        }
        let mut names = Vec::with_capacity(written.len());
        for name in written {
            if !is_name(name) {
                return Err(fault(format!("`{}` is not fit for the name of a group", name.escape_debug())));
            }
            let group = match self.groups.get(name.as_str()) {
                Some(group) => Arc::clone(group),
                None => {
                    let group: Arc<str> = name.as_str().into();
                    self.groups.insert(Arc::clone(&group));
                    group
                }
            };
            names.push(group);
        }
        Ok(names.into())
    }
}

fn is_name(text: &str) -> bool {
    !text.trim().is_empty() && text.len() <= MAX_NAME_BYTES && !text.chars().any(char::is_control)
}

fn proofs(entry: &Entry) -> Result<Box<[Proof]>, Fault> {
    let mut proofs = Vec::new();
    for key in &entry.sas_keys {
        proofs.push(Proof::SasKey(self::key("sas_keys", key)?));
    }
    for hash in &entry.passwords {
        let hash = PasswordHash::parse(hash.expose())
            .map_err(|what| Fault::new("passwords", what, "never the password itself"))?;
        proofs.push(Proof::Password(hash));
    }
    for text in &entry.certificates {
        proofs.push(certificate(text.expose())?);
    }
    for key in &entry.psk {
        let bytes =
            BASE64.decode(key.expose().trim()).ok().filter(|it| (MIN_KEY_BYTES..=64).contains(&it.len()));
        let bytes = bytes.ok_or_else(|| {
            Fault::new(
                "psk",
                "a pre-shared key is the base64 of 16 to 64 bytes",
                "`openssl rand -base64 32` makes one",
            )
        })?;
        proofs.push(Proof::Psk(bytes.into()));
    }
    if entry.unproven {
        if !proofs.is_empty() {
            return Err(Fault::new(
                "unproven",
                "a device that is believed without a proof has no use for one",
                "`unproven = true`, or keys, passwords and certificates",
            ));
        }
        proofs.push(Proof::Nothing);
    }
    Ok(proofs.into())
}

fn key(at: &'static str, text: &Secret) -> Result<SharedKey, Fault> {
    let text = text.expose().trim();
    let length = BASE64.decode(text).map(|bytes| bytes.len()).unwrap_or_default();
    match SharedKey::from_base64(text) {
        Ok(key) if (MIN_KEY_BYTES..=MAX_KEY_BYTES).contains(&length) => Ok(key),
        _ => Err(Fault::new(
            at,
            format!("a key is the base64 of {MIN_KEY_BYTES} to {MAX_KEY_BYTES} bytes"),
            "`fieldgate device rotate ID --sas-key` makes one",
        )),
    }
}

/// `CN=pump-1` or `sha256:` and 64 hexadecimal digits, with colons between them or not.
fn certificate(text: &str) -> Result<Proof, Fault> {
    let wrong = || {
        Fault::new(
            "certificates",
            format!("`{}` names no certificate", text.escape_debug()),
            "\"CN=pump-1\" for the common name of its subject, or \"sha256:…\" for its thumbprint (64 hexadecimal digits)",
        )
    };
    if let Some(name) = text.strip_prefix("CN=") {
        let fits =
            !name.trim().is_empty() && name.len() <= MAX_NAME_BYTES && !name.chars().any(char::is_control);
        return fits.then(|| Proof::CommonName(name.into())).ok_or_else(wrong);
    }
    let digits: Vec<u32> = text
        .strip_prefix("sha256:")
        .ok_or_else(wrong)?
        .chars()
        .filter(|c| *c != ':')
        .map(|c| c.to_digit(16).ok_or_else(wrong))
        .collect::<Result<_, _>>()?;
    let bytes: Vec<u8> =
        digits.chunks(2).filter_map(|pair| u8::try_from(pair[0] << 4 | *pair.get(1)?).ok()).collect();
    let thumbprint: [u8; 32] = bytes.try_into().map_err(|_| wrong())?;
    if digits.len() != 64 {
        return Err(wrong());
    }
    Ok(Proof::Thumbprint(Box::new(thumbprint)))
}

fn speaks_with(entry: &Entry) -> Result<SpeaksWith, Fault> {
    let own = entry.hub_key.as_ref().map(|text| key("hub_key", text)).transpose()?;
    match (entry.speaks_with, own) {
        (None | Some(Word::DeviceKey), Some(key)) => Ok(SpeaksWith::DeviceKey(key)),
        (Some(Word::DeviceKey), None) => match entry.sas_keys.first() {
            Some(first) => Ok(SpeaksWith::DeviceKey(key("sas_keys", first)?)),
            None => Err(Fault::new(
                "speaks_with",
                "the gateway is to sign with the device's key, and has none",
                "`hub_key`, or `sas_keys` where the hub knows the device by the same key",
            )),
        },
        (Some(Word::OwnToken | Word::Policy), Some(_)) => Err(Fault::new(
            "hub_key",
            "a key that nothing is signed with",
            "`speaks_with = \"device-key\"`, or no `hub_key`",
        )),
        (Some(Word::OwnToken), None) => Ok(SpeaksWith::OwnToken),
        (None | Some(Word::Policy), None) => Ok(SpeaksWith::Policy),
    }
}
