//! `fieldgate device …`: the device registry, changed and shown. Keys that are made here are printed once; secrets come
//! from a file, from standard input or from a prompt, never from an argument, which every user of a machine can read.

mod prompt;

use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use fieldgate_mappings::DeviceId;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::{Map, Value, json};

use super::{CliError, Place, device, property};
use crate::config::ConfigError;
use crate::devices::edit::{Book, list, quoted};
use crate::devices::{Device, Known, PasswordHash, Proof, SpeaksWith};
use crate::output::{complain, harmless, say};
use crate::sas::SharedKey;
use crate::state::StateDir;

/// Random bytes of a key that is made here: as many as HMAC-SHA256 has use for.
const KEY_BYTES: usize = 32;
/// The most that is read of a file that holds a secret.
const MAX_SECRET_BYTES: u64 = 4096;

pub(super) const HELP: &str = "\
The registry is devices.toml in the state directory, or what [devices] file names. A gateway that
runs sees a change within two seconds: devices that still may stay connected, those that may no
longer are cut off. Secrets are read from files (`-`: standard input, asked for on a terminal).";

#[derive(Debug, Subcommand)]
pub(super) enum DeviceCommand {
    /// Register a device; without another proof it gets a SAS key, which is printed once
    Add(Add),
    /// Print the devices
    List {
        /// One JSON object for each device
        #[arg(long)]
        json: bool,
    },
    /// Print what is known of a device, but no secret
    Show {
        /// The device's id
        #[arg(value_parser = device)]
        id: DeviceId,
        /// As a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Let devices in no more, and cut off those that are in
    Disable(Several),
    /// Let devices in again
    Enable(Several),
    /// Forget devices, and cut off those that are in
    Remove(Several),
    /// Give a device another key or password; the one before stays good until `--drop-old`
    Rotate(Rotate),
}

#[derive(Debug, Args)]
pub(super) struct Several {
    /// The devices' ids
    #[arg(value_parser = device, required = true)]
    ids: Vec<DeviceId>,
}

/// How a device is to prove itself.
#[derive(Debug, Default, Args)]
struct Shown {
    /// A new SAS key
    #[arg(long)]
    sas_key: bool,
    /// The SAS key (base64) in this file
    #[arg(long, value_name = "FILE", conflicts_with = "sas_key")]
    sas_key_file: Option<PathBuf>,
    /// A new password
    #[arg(long)]
    password: bool,
    /// The password in this file; only its hash is kept
    #[arg(long, value_name = "FILE", conflicts_with = "password")]
    password_file: Option<PathBuf>,
    /// A new pre-shared key
    #[arg(long)]
    psk: bool,
    /// A certificate: CN=NAME for its subject, or sha256:THUMBPRINT; may be given several times
    #[arg(long = "certificate", value_name = "CERTIFICATE")]
    certificates: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct Add {
    /// The device's id, as its hub knows it
    #[arg(value_parser = device)]
    id: DeviceId,
    #[command(flatten)]
    shown: Shown,
    /// It need not prove anything on loopback
    #[arg(long, conflicts_with_all = ["sas_key", "sas_key_file", "password", "password_file", "psk", "certificates"])]
    unproven: bool,
    /// The connector to its hub
    #[arg(long, value_name = "NAME")]
    hub: Option<String>,
    /// What the gateway shows the hub for it [default: policy]
    #[arg(long, value_enum, value_name = "WHAT")]
    speaks_with: Option<Speaks>,
    /// The key (base64) that the hub knows the device by, in this file
    #[arg(long, value_name = "FILE")]
    hub_key_file: Option<PathBuf>,
    /// An attribute for mapping files; may be given several times
    #[arg(long = "attribute", value_name = "NAME=VALUE", value_parser = property)]
    attributes: Vec<(String, String)>,
    /// As a gateway: a group that it is in; may be given several times
    #[arg(long = "group", value_name = "GROUP")]
    groups: Vec<String>,
    /// A group of gateways that may act for it; may be given several times
    #[arg(long, value_name = "GROUP")]
    via: Vec<String>,
    /// Not yet let in
    #[arg(long)]
    disabled: bool,
    /// As a JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Speaks {
    /// The token that the device brings
    OwnToken,
    /// A token signed with the device's own key
    DeviceKey,
    /// What the connector has
    Policy,
}

#[derive(Debug, Args)]
pub(super) struct Rotate {
    /// The device's id
    #[arg(value_parser = device)]
    id: DeviceId,
    #[command(flatten)]
    shown: Shown,
    /// The former one is good no more. Without a new one: drop what was kept
    #[arg(long)]
    drop_old: bool,
    /// As a JSON object
    #[arg(long)]
    json: bool,
}

/// Does what was asked for.
pub(super) fn run(place: &Place, command: DeviceCommand) -> Result<(), CliError> {
    let config = place.config()?;
    let path = match &config.devices.file {
        Some(file) => file.clone(),
        None => {
            let state = StateDir::locate(config.state.directory.as_deref())?;
            state.make()?;
            state.devices_file()
        }
    };
    // Rules that are not good are for `fieldgate check` to say.
    let rules = config.mappings.load().unwrap_or_default();
    let mut book = Book::open(&path, Known::of(&config, &rules))?;
    match command {
        DeviceCommand::Add(asked) => add(&mut book, &path, asked),
        DeviceCommand::List { json } => print_all(&book, &path, json),
        DeviceCommand::Show { id, json } => {
            let device = find(&mut book, &id)?;
            if json { Ok(say(&shown(&device).to_string())?) } else { print(&device) }
        }
        DeviceCommand::Disable(several) => {
            each(&mut book, several, "disabled", |book, id| book.set(id, "enabled", "false"))
        }
        DeviceCommand::Enable(several) => {
            each(&mut book, several, "enabled", |book, id| book.set(id, "enabled", "true"))
        }
        DeviceCommand::Remove(several) => each(&mut book, several, "removed", Book::remove),
        DeviceCommand::Rotate(asked) => rotate(&mut book, asked),
    }
}

/// All of them, or none.
fn each(
    book: &mut Book,
    several: Several,
    done: &str,
    change: impl Fn(&mut Book, &DeviceId) -> Result<(), ConfigError>,
) -> Result<(), CliError> {
    for id in &several.ids {
        change(book, id)?;
    }
    book.save()?;
    several.ids.iter().try_for_each(|id| say(&format!("{id} {done}")))?;
    Ok(())
}

fn find(book: &mut Book, id: &DeviceId) -> Result<Device, CliError> {
    Ok(book.find(id)?.clone())
}

/// Proofs as the file has them, and the secrets that are printed once.
#[derive(Debug, Default)]
struct Made {
    sas_keys: Vec<String>,
    passwords: Vec<String>,
    psk: Vec<String>,
    certificates: Vec<String>,
    /// Name, and secret.
    told: Vec<(&'static str, String)>,
}

impl Made {
    fn new(shown: &Shown) -> Result<Self, CliError> {
        let mut made = Self { certificates: shown.certificates.clone(), ..Self::default() };
        if shown.sas_key {
            let key = new_key()?;
            made.told.push(("sas_key", key.clone()));
            made.sas_keys.push(key);
        }
        if let Some(file) = &shown.sas_key_file {
            made.sas_keys.push(key_in(file, "SAS key")?);
        }
        if shown.password {
            let (password, hash) = PasswordHash::generate().map_err(std::io::Error::other)?;
            made.told.push(("password", password));
            made.passwords.push(hash.as_str().to_owned());
        }
        if let Some(file) = &shown.password_file {
            let password = secret_in(file, "password")?;
            let hash = PasswordHash::of_chosen(password.as_bytes()).map_err(std::io::Error::other)?;
            made.passwords.push(hash.as_str().to_owned());
        }
        if shown.psk {
            let key = new_key()?;
            made.told.push(("psk", key.clone()));
            made.psk.push(key);
        }
        Ok(made)
    }

    fn lists(&self) -> [(&'static str, &Vec<String>); 4] {
        [
            ("sas_keys", &self.sas_keys),
            ("passwords", &self.passwords),
            ("certificates", &self.certificates),
            ("psk", &self.psk),
        ]
    }

    fn is_empty(&self) -> bool {
        self.lists().iter().all(|(_, list)| list.is_empty())
    }

    fn tell(&self, id: &DeviceId, file: &Path, done: &str, as_json: bool) -> Result<(), CliError> {
        if as_json {
            let mut object = Map::new();
            object.insert("id".into(), id.as_str().into());
            object.insert("file".into(), file.display().to_string().into());
            object.extend(self.told.iter().map(|(name, secret)| ((*name).to_owned(), secret.clone().into())));
            return Ok(say(&Value::Object(object).to_string())?);
        }
        complain(&format!("{id} {done} ({})", file.display()));
        if !self.told.is_empty() {
            complain("Keep this; it is not shown again:");
        }
        for (name, secret) in &self.told {
            say(&format!("{name} {secret}"))?;
        }
        Ok(())
    }
}

fn add(book: &mut Book, path: &Path, asked: Add) -> Result<(), CliError> {
    let mut made = Made::new(&asked.shown)?;
    // A device that brings a token proves itself by that, unless something else was asked for.
    if made.is_empty() && !asked.unproven {
        made = Made::new(&Shown { sas_key: true, ..Shown::default() })?;
    }
    let texts = |names: &[String]| list(names.iter().map(String::as_str));
    let mut lines: Vec<(&str, String)> = Vec::new();
    if asked.disabled {
        lines.push(("enabled", "false".into()));
    }
    for (key, proofs) in made.lists() {
        if !proofs.is_empty() {
            lines.push((key, texts(proofs)));
        }
    }
    if asked.unproven {
        lines.push(("unproven", "true".into()));
    }
    lines.extend(asked.hub.as_deref().map(|hub| ("hub", quoted(hub))));
    let word = asked.speaks_with.map(|word| match word {
        Speaks::OwnToken => "own-token",
        Speaks::DeviceKey => "device-key",
        Speaks::Policy => "policy",
    });
    lines.extend(word.map(|word| ("speaks_with", quoted(word))));
    if let Some(file) = &asked.hub_key_file {
        lines.push(("hub_key", quoted(&key_in(file, "key for the hub")?)));
    }
    for (key, names) in [("groups", &asked.groups), ("via", &asked.via)] {
        if !names.is_empty() {
            lines.push((key, texts(names)));
        }
    }
    if !asked.attributes.is_empty() {
        let all: Vec<String> = asked
            .attributes
            .iter()
            .map(|(name, value)| format!("{} = {}", quoted(name), quoted(value)))
            .collect();
        lines.push(("attributes", format!("{{ {} }}", all.join(", "))));
    }
    book.add(&asked.id, &lines)?;
    book.save()?;
    made.tell(&asked.id, path, "is registered", asked.json)
}

fn rotate(book: &mut Book, asked: Rotate) -> Result<(), CliError> {
    let device = find(book, &asked.id)?;
    let mut made = Made::new(&asked.shown)?;
    let has = |kind: fn(&Proof) -> bool| device.proofs.iter().any(kind);
    if made.is_empty() && !asked.drop_old {
        // The kind that it has, if that is one.
        let (keys, passwords) =
            (has(|it| matches!(it, Proof::SasKey(_))), has(|it| matches!(it, Proof::Password(_))));
        if keys == passwords {
            let what = format!(
                "{} has {}",
                asked.id,
                if keys { "keys and passwords" } else { "neither key nor password" }
            );
            return Err(ConfigError::new("device rotate", what)
                .with_help("say what is to be new: `--sas-key` or `--password`, or one from a file")
                .into());
        }
        made = Made::new(&Shown { sas_key: keys, password: passwords, ..Shown::default() })?;
    }
    for (key, new) in made.lists() {
        let old = written(&device, key);
        if new.is_empty() && !(asked.drop_old && made.is_empty() && old.len() > 1 && key != "certificates") {
            continue;
        }
        // The newest first: it is what the gateway signs with. Of the former ones the newest stays.
        let keep = if asked.drop_old { usize::from(new.is_empty()) } else { 1 };
        let all: Vec<&str> =
            new.iter().map(String::as_str).chain(old.iter().map(String::as_str).take(keep)).collect();
        book.set(&asked.id, key, &list(all))?;
    }
    book.save()?;
    let signs = matches!(&device.speaks_with, SpeaksWith::DeviceKey(_)) && !made.sas_keys.is_empty();
    if signs {
        complain(
            "The gateway signs with the device's key where there is no hub_key: the hub has to know the new one.",
        );
    }
    let file = book.path().to_owned();
    made.tell(
        &asked.id,
        &file,
        if asked.drop_old { "has no former credentials any more" } else { "has new credentials" },
        asked.json,
    )
}

/// The proofs of one kind, as the file has them.
fn written(device: &Device, key: &str) -> Vec<String> {
    device.proofs.iter().filter(|proof| proof.key() == Some(key)).map(Proof::written).collect()
}

fn new_key() -> Result<String, CliError> {
    let mut bytes = [0; KEY_BYTES];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| std::io::Error::other("the system gives no random bytes"))?;
    let key = SharedKey::from_bytes(&bytes).expect("there are 32 bytes");
    Ok(key.to_base64())
}

fn key_in(file: &Path, what: &str) -> Result<String, CliError> {
    let text = secret_in(file, what)?;
    match SharedKey::from_base64(&text) {
        Ok(key) => Ok(key.to_base64()),
        Err(error) => Err(ConfigError::new(file.display().to_string(), error.to_string()).into()),
    }
}

/// The text of a file without the line's end; `-` is standard input, where a person is asked.
fn secret_in(file: &Path, what: &str) -> Result<String, CliError> {
    let name = file.display().to_string();
    let mut text = String::new();
    if file == Path::new("-") {
        if std::io::stdin().is_terminal() {
            text = prompt::ask(what)?;
        } else {
            std::io::stdin().take(MAX_SECRET_BYTES).read_to_string(&mut text)?;
        }
    } else {
        let opened =
            std::fs::File::open(file).and_then(|file| file.take(MAX_SECRET_BYTES).read_to_string(&mut text));
        opened.map_err(|error| ConfigError::new(&name, format!("cannot be read: {error}")))?;
    }
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() {
        return Err(ConfigError::new(name, format!("holds no {what}")).into());
    }
    Ok(secret.to_owned())
}

fn print_all(book: &Book, path: &Path, as_json: bool) -> Result<(), CliError> {
    let devices = book.devices();
    if as_json {
        devices.iter().try_for_each(|device| say(&shown(device).to_string()))?;
        return Ok(());
    }
    if devices.len() == 0 {
        complain(&format!(
            "no device is registered in {}; `fieldgate device add ID` registers one",
            path.display()
        ));
        return Ok(());
    }
    let width = devices.iter().map(|device| device.id.as_str().len()).max().unwrap_or_default().clamp(6, 40);
    say(&format!("{:width$}  {:8}  {:24}  {:12}  SPEAKS WITH", "DEVICE", "", "PROOF", "HUB"))?;
    for device in devices.iter() {
        let state = if device.enabled { "" } else { "disabled" };
        let hub = device.hub.as_deref().unwrap_or("-");
        let line = format!(
            "{:width$}  {state:8}  {:24}  {hub:12}  {}",
            device.id.as_str(),
            kinds(device),
            device.speaks_with.word()
        );
        say(&harmless(&line))?;
    }
    Ok(())
}

/// `2 sas-key, password`.
fn kinds(device: &Device) -> String {
    let mut kinds: Vec<(&str, usize)> = Vec::new();
    for proof in &device.proofs {
        match kinds.iter_mut().find(|(kind, _)| *kind == proof.kind()) {
            Some((_, count)) => *count += 1,
            None => kinds.push((proof.kind(), 1)),
        }
    }
    let one = |(kind, count): &(&str, usize)| match count {
        1 => (*kind).to_owned(),
        count => format!("{count} {kind}"),
    };
    match kinds.is_empty() {
        true => "nothing: not let in".into(),
        false => kinds.iter().map(one).collect::<Vec<_>>().join(", "),
    }
}

/// What tells one secret from another without being it.
fn fingerprint(text: &str) -> String {
    digest(&SHA256, text.as_bytes()).as_ref()[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn proof_line(proof: &Proof) -> String {
    match proof {
        Proof::Nothing => "none (on loopback, or where a listener allows anonymous access)".into(),
        Proof::CommonName(_) | Proof::Thumbprint(_) => format!("certificate {}", proof.written()),
        Proof::SasKey(_) | Proof::Psk(_) => {
            format!("{} (fingerprint {})", proof.kind(), fingerprint(&proof.written()))
        }
        Proof::Password(hash) => {
            let how = if hash.is_slow() { "chosen" } else { "generated" };
            format!("password, {how} (fingerprint {})", fingerprint(hash.as_str()))
        }
    }
}

fn print(device: &Device) -> Result<(), CliError> {
    let mut lines = vec![
        ("device", device.id.as_str().to_owned()),
        ("enabled", if device.enabled { "yes" } else { "no" }.into()),
    ];
    lines.extend(device.proofs.iter().map(|proof| ("proof", proof_line(proof))));
    if device.proofs.is_empty() {
        lines.push(("proof", kinds(device)));
    }
    lines.push(("hub", device.hub.as_deref().unwrap_or("as for devices without an entry").to_owned()));
    lines.push(("speaks", format!("with {}", device.speaks_with.word())));
    lines.extend(device.attributes.iter().map(|(name, value)| ("is", format!("{name} = {value}"))));
    lines.extend(device.groups.iter().map(|group| ("in", format!("the group {group} of gateways"))));
    lines.extend(
        device.via.iter().map(|group| ("via", format!("gateways of the group {group} may act for it"))),
    );
    for (what, meaning) in lines {
        say(&harmless(&format!("{what:<9}{meaning}")))?;
    }
    Ok(())
}

fn shown(device: &Device) -> Value {
    let proofs: Vec<Value> = device
        .proofs
        .iter()
        .map(|proof| match proof {
            Proof::CommonName(_) | Proof::Thumbprint(_) => {
                json!({ "kind": proof.kind(), "certificate": proof.written() })
            }
            Proof::Nothing => json!({ "kind": proof.kind() }),
            _ => json!({ "kind": proof.kind(), "fingerprint": fingerprint(&proof.written()) }),
        })
        .collect();
    let attributes: Map<String, Value> =
        device.attributes.iter().map(|(name, value)| (name.to_string(), (**value).into())).collect();
    json!({
        "id": device.id.as_str(),
        "enabled": device.enabled,
        "proofs": proofs,
        "hub": device.hub.as_deref(),
        "speaks_with": device.speaks_with.word(),
        "attributes": attributes,
        "groups": device.groups.iter().map(|group| &**group).collect::<Vec<_>>(),
        "via": device.via.iter().map(|group| &**group).collect::<Vec<_>>(),
        "line": device.line,
    })
}

#[cfg(test)]
mod tests;
