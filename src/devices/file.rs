//! `devices.toml`, as it is written.
//!
//! It is read entry by entry, each from one `[[device]]` to the next: a hundred thousand of them never stand in memory
//! as a TOML document, and a fault is found with its line. No line of the file is repeated in an error unless it holds
//! no secret.

mod entry;
mod fault;
mod pieces;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use fieldgate_mappings::rules::RuleSet;
use serde::Deserialize;

use crate::config::{Config, ConfigError, Source};

use super::Devices;
use super::device::{Device, Proof};

use entry::Reader;
use fault::{Fault, hide};
pub(super) use pieces::Entries;

/// The largest file that is read. A device with a key and two attributes takes about 200 bytes.
const MAX_FILE_BYTES: u64 = 256 << 20;
/// The most devices; about 300 bytes of memory each.
const MAX_DEVICES: usize = 1_000_000;
/// The hub of `[upstream]`, which mapped messages go to.
const UPSTREAM: &str = "upstream";
/// The version of the form.
const VERSION: u32 = 1;

/// What stands before the first device.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    version: Option<u32>,
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
    let mut reader = Reader::new(known);
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
