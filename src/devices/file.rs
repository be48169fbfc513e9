//! `devices.toml`, as it is written.
//!
//! It is read entry by entry, each from one `[[device]]` to the next: a hundred thousand of them never stand in memory
//! as a TOML document, and a fault is found with its line. No line of the file is repeated in an error unless it holds
//! no secret.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use fieldgate_mappings::DeviceId;
use fieldgate_mappings::rules::RuleSet;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};

use crate::config::{Config, ConfigError, Secret, Source, nearest};
use crate::sas::SharedKey;

use super::Devices;
use super::device::{Device, Proof, SpeaksWith};
use super::password::PasswordHash;

/// The largest file that is read. A device with a key and two attributes takes about 200 bytes.
const MAX_FILE_BYTES: u64 = 256 << 20;
/// The most devices; about 300 bytes of memory each.
const MAX_DEVICES: usize = 1_000_000;
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

/// What stands before the first device.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    version: Option<u32>,
}

/// The hub of `[upstream]`, which mapped messages go to.
const UPSTREAM: &str = "upstream";
/// The version of the form.
const VERSION: u32 = 1;

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

/// Where each entry of a file stands.
pub(super) struct Entries<'a> {
    text: &'a str,
    /// Bytes before the first entry.
    head: usize,
}

/// One entry's text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece<'a> {
    pub(super) text: &'a str,
    /// Where it begins, in bytes.
    pub(super) offset: usize,
    /// The line that it begins on, from 1.
    pub(super) line: usize,
}

impl<'a> Entries<'a> {
    pub(super) fn of(text: &'a str) -> Self {
        let head = lines(text).find(|(_, line)| is_header(line)).map_or(text.len(), |(at, _)| at);
        Self { text, head }
    }

    fn head(&self) -> &'a str {
        &self.text[..self.head]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Piece<'a>> + use<'a> {
        let text = self.text;
        let mut offset = self.head;
        let mut line = text[..offset].matches('\n').count() + 1;
        std::iter::from_fn(move || {
            let rest = text.get(offset..).filter(|rest| !rest.is_empty())?;
            let next = lines(rest).skip(1).find(|(_, line)| is_header(line));
            let piece = Piece { text: &rest[..next.map_or(rest.len(), |(at, _)| at)], offset, line };
            offset += piece.text.len();
            line += piece.text.matches('\n').count();
            Some(piece)
        })
    }
}

/// The lines with where they begin.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    text.split_inclusive('\n').map(move |line| {
        let begins = at;
        at += line.len();
        (begins, line)
    })
}

/// Whether a device begins on this line.
fn is_header(line: &str) -> bool {
    let inside = line.trim_start().strip_prefix("[[").and_then(|rest| rest.split_once("]]"));
    inside.is_some_and(|(name, _)| name.trim() == "device")
}

/// What entries may refer to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// The names of the connectors.
    pub(crate) hubs: Vec<Arc<str>>,
    /// A mapping rule that keeps messages on the disk, if there is any: ``file:line `name` ``.
    pub(crate) spools: Option<Arc<str>>,
}

impl Known {
    /// What a configuration has, with its mapping rules.
    pub(crate) fn of(config: &Config, rules: &RuleSet) -> Self {
        let mut hubs: Vec<Arc<str>> = config.connectors.iter().map(|it| Arc::clone(&it.name)).collect();
        if !hubs.iter().any(|hub| **hub == *UPSTREAM) {
            hubs.push(UPSTREAM.into());
        }
        let mut deliveries = rules.described().iter().filter_map(|rule| rule.delivery.as_deref());
        let spools = deliveries.find(|delivery| delivery.spools() && config.maps());
        Self { hubs, spools: spools.map(|delivery| Arc::clone(&delivery.rule)) }
    }

    /// As if no rule kept messages on the disk.
    pub(super) fn without_spool(self) -> Self {
        Self { spools: None, ..self }
    }
}

/// Reads and checks the file; nothing where there is none.
///
/// # Errors
/// File, line, and what would be right.
pub(super) fn load(path: &Path, known: &Known) -> Result<Option<Devices>, ConfigError> {
    let name = path.display().to_string();
    let Some(text) = read(path, &name)? else { return Ok(None) };
    parse(&name, &text, known).map(Some)
}

/// The text of the file; nothing where there is none.
///
/// # Errors
/// It cannot be read, or others may.
pub(super) fn read(path: &Path, name: &str) -> Result<Option<String>, ConfigError> {
    let unreadable = |error: std::io::Error| ConfigError::new(name, format!("cannot be read: {error}"));
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(ConfigError::new(name, "is not a file"));
    }
    // Group members may read it, if whoever set it up wants that: a service often has its own group.
    if metadata.mode() & 0o037 != 0 {
        let what =
            format!("holds keys, and others than its user may use it (mode {:o})", metadata.mode() & 0o777);
        return Err(ConfigError::new(name, what).with_help(format!("`chmod 600 {name}`")));
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(ConfigError::new(name, "is larger than 256 MiB"));
    }
    let mut text = String::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
    file.by_ref().take(MAX_FILE_BYTES).read_to_string(&mut text).map_err(unreadable)?;
    Ok(Some(text))
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) inode: (u64, u64),
    rest: (u64, i64, i64, i64, i64, u32),
}

impl Stamp {
    /// Nothing where the file cannot be looked at.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let it = fs::metadata(path).ok()?;
        let rest = (it.len(), it.mtime(), it.mtime_nsec(), it.ctime(), it.ctime_nsec(), it.mode());
        Some(Self { inode: (it.dev(), it.ino()), rest })
    }
}

/// Reads and checks a text.
///
/// # Errors
/// The first fault: its line, and what would be right.
pub(super) fn parse(name: &str, text: &str, known: &Known) -> Result<Devices, ConfigError> {
    let entries = Entries::of(text);
    head(name, entries.head())?;
    let mut reader = Reader { known, words: HashSet::new(), groups: HashSet::new() };
    let mut devices = Vec::new();
    for piece in entries.iter() {
        if devices.len() == MAX_DEVICES {
            return Err(ConfigError::new(name, format!("holds more than {MAX_DEVICES} devices")));
        }
        let device = reader.device(piece).map_err(|fault| fault.at(name, piece))?;
        devices.push(device);
    }
    devices.sort_unstable_by(|a: &Device, b| (a.id.as_str(), a.line).cmp(&(b.id.as_str(), b.line)));
    devices.shrink_to_fit();
    unique(name, &entries, &devices)?;
    let by_certificate = certificates(name, &entries, &devices)?;
    Ok(Devices::new(devices, by_certificate))
}

fn head(name: &str, text: &str) -> Result<(), ConfigError> {
    let source = Source { name, text };
    let head: Head = toml::from_str(text).map_err(|error| {
        let error = hide(source.unreadable(&error));
        match error.help {
            None => error,
            Some(_) => {
                error.with_help("a device begins with the line `[[device]]`, and its keys stand below that")
            }
        }
    })?;
    match head.version {
        None | Some(VERSION) => Ok(()),
        Some(other) => Err(source
            .wrong(
                &["version"],
                format!("this is version {other} of the form, which this program does not know"),
            )
            .with_help("`version = 1`, or the program that wrote the file")),
    }
}

/// Two entries for one device: which one holds cannot be known.
fn unique(name: &str, entries: &Entries<'_>, devices: &[Device]) -> Result<(), ConfigError> {
    match devices.windows(2).find(|pair| pair[0].id == pair[1].id) {
        None => Ok(()),
        Some(pair) => {
            let what =
                format!("a second entry for `{}`, which line {} has already", pair[1].id, pair[0].line);
            Err(again(name, entries, &pair[1], "id", what))
        }
    }
}

/// A fault that only shows when all is read, at one of a device's keys.
fn again(name: &str, entries: &Entries<'_>, device: &Device, key: &str, what: String) -> ConfigError {
    let piece = entries.iter().find(|piece| piece.line == device.line as usize);
    let fault = Fault::new(key, what, "one entry for each");
    match piece {
        Some(piece) => fault.at(name, piece),
        None => ConfigError::new(name, fault.what),
    }
}

/// Whose certificates are whose.
fn certificates(
    name: &str,
    entries: &Entries<'_>,
    devices: &[Device],
) -> Result<HashMap<Proof, u32, std::hash::RandomState>, ConfigError> {
    let mut found: HashMap<Proof, u32> = HashMap::new();
    for (index, device) in devices.iter().enumerate() {
        let shown =
            device.proofs.iter().filter(|it| matches!(it, Proof::CommonName(_) | Proof::Thumbprint(_)));
        for proof in shown {
            let index = u32::try_from(index).expect("there are not more than a million devices");
            if let Some(first) = found.insert(proof.clone(), index) {
                let first = &devices[first as usize];
                let what = format!("a certificate that `{}` in line {} has already", first.id, first.line);
                return Err(again(name, entries, device, "certificates", what));
            }
        }
    }
    Ok(found)
}

/// What is wrong with an entry.
#[derive(Debug)]
struct Fault {
    key: &'static str,
    what: String,
    help: Option<String>,
    /// What the TOML reader says.
    unreadable: Option<Box<toml::de::Error>>,
}

impl Fault {
    fn new(key: &str, what: impl Into<String>, help: impl Into<String>) -> Self {
        // The keys are few, and a fault is the end of the reading.
        let key = KEYS.into_iter().find(|known| *known == key).unwrap_or("id");
        Self { key, what: what.into(), help: Some(help.into()), unreadable: None }
    }

    fn at(self, name: &str, piece: Piece<'_>) -> ConfigError {
        let source = Source { name, text: piece.text };
        let mut error = match &self.unreadable {
            Some(error) => source.unreadable(error),
            None => source.wrong(&["device", "0", self.key], self.what),
        };
        if let Some(help) = self.help {
            error = error.with_help(help);
        }
        if let Some(place) = &mut error.place {
            place.line += piece.line - 1;
        }
        hide(error)
    }
}

/// All keys of an entry.
pub(super) const KEYS: [&str; 13] = [
    "id",
    "enabled",
    "sas_keys",
    "passwords",
    "certificates",
    "psk",
    "unproven",
    "hub",
    "speaks_with",
    "hub_key",
    "groups",
    "via",
    "attributes",
];

/// Keys whose lines may stand in an error, which ends up in a log.
const SHOWN: [&str; 9] =
    ["id", "enabled", "unproven", "hub", "speaks_with", "groups", "via", "certificates", "version"];

/// A longer line helps nobody.
const MAX_SHOWN_BYTES: usize = 160;

/// Takes the line away unless it is known to hold no secret.
fn hide(mut error: ConfigError) -> ConfigError {
    if let Some(place) = &mut error.place {
        place.text = place.text.take().filter(|line| {
            let (key, value) = line.split_once('=').unwrap_or((line, ""));
            let (key, is_plain) = (key.trim(), !value.contains('=') && line.len() <= MAX_SHOWN_BYTES);
            is_plain && (SHOWN.contains(&key) || key.starts_with('['))
        });
    }
    error
}

/// Names and values.
type Attributes = Box<[(Arc<str>, Arc<str>)]>;

struct Reader<'a> {
    known: &'a Known,
    /// Texts that several devices have.
    words: HashSet<Arc<str>>,
    groups: HashSet<Arc<str>>,
}

impl Reader<'_> {
    fn device(&mut self, piece: Piece<'_>) -> Result<Device, Fault> {
        let one: One = toml::from_str(piece.text).map_err(|error| Fault {
            key: "id",
            what: String::new(),
            help: None,
            unreadable: Some(Box::new(error)),
        })?;
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

#[cfg(test)]
mod tests;
