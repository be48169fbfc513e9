//! The devices that the gateway knows: how each proves that it is the one it says it is, which hub it belongs to, and
//! with what the gateway speaks for it there.
//!
//! They stand in `devices.toml`. [`Registry`] reads it, watches it, and shows what holds now as one [`Devices`] that
//! never changes; a file that is not good leaves the last good one in force.
//!
//! The embedded hub has a registry of its own ([`crate::hub`]), which this is not: this one is the gateway's, whatever
//! the hub.

mod certificate;
mod device;
pub(crate) mod edit;
mod file;
mod gate;
mod limits;
mod password;
mod passwords;
mod roster;
mod telemetry;
mod watching;

use std::collections::HashMap;
use std::hash::RandomState;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fieldgate_mappings::{ActsFor, DeviceId};
use tokio::sync::watch as channel;

use crate::config::{Config, ConfigError};
use crate::state::StateDir;
use crate::telemetry::emit;

use telemetry::RegistryLoaded;

pub(crate) use certificate::Certificate;
pub(crate) use device::{Device, Mark, Proof, SpeaksWith};
pub(crate) use file::Known;
pub(crate) use gate::{Attempt, By, Denied, Gate, GateSettings, Judged, Pass, Pending, Shown};
pub(crate) use limits::LimitSettings;
pub(crate) use password::PasswordHash;
pub(crate) use roster::{Roster, Stay};
pub(crate) use watching::watch;

/// All devices at one moment. Shared, and never changed.
#[derive(Debug, Default)]
pub(crate) struct Devices {
    /// By id, in its order.
    devices: Box<[Device]>,
    /// Whose a certificate is: an index into `devices`.
    by_certificate: HashMap<Proof, u32>,
    has_slow_password: bool,
    doubts_anybody: bool,
    /// Grows with every change; 0 where there is no file.
    generation: u64,
}

impl Devices {
    fn new(devices: Vec<Device>, by_certificate: HashMap<Proof, u32>) -> Self {
        let mut proofs = devices.iter().flat_map(|device| &device.proofs);
        let has_slow_password = proofs.any(|proof| matches!(proof, Proof::Password(hash) if hash.is_slow()));
        let doubts_anybody = devices.iter().any(|device| !device.enabled || !device.needs_no_proof());
        let devices = devices.into();
        Self { devices, by_certificate, has_slow_password, doubts_anybody, generation: 0 }
    }

    /// The device of this id.
    pub(crate) fn get(&self, id: &str) -> Option<&Device> {
        let at = self.devices.binary_search_by(|device| device.id.as_str().cmp(id)).ok()?;
        Some(&self.devices[at])
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.devices.len()
    }

    /// The device that this certificate is registered for.
    pub(crate) fn of_certificate(&self, certificate: &Certificate) -> Option<&Device> {
        let index = certificate.proofs().find_map(|proof| self.by_certificate.get(&proof))?;
        self.devices.get(*index as usize)
    }

    /// Whether any password takes its time to be verified.
    fn has_slow_password(&self) -> bool {
        self.has_slow_password
    }

    /// Whether there is any device for which somebody's word is not enough.
    pub(crate) fn doubts_anybody(&self) -> bool {
        self.doubts_anybody
    }

    /// All of them, by id.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &Device> {
        self.devices.iter()
    }
}

impl ActsFor for Devices {
    fn may_act(&self, gateway: &DeviceId, group: &str, device: &DeviceId) -> bool {
        let both = self.get(gateway.as_str()).zip(self.get(device.as_str()));
        both.is_some_and(|(gateway, device)| device.lets_act(gateway, group))
    }
}

/// The devices of a file, as the file is now.
#[derive(Debug)]
pub(crate) struct Registry {
    path: Option<PathBuf>,
    known: Known,
    /// How the file was before it was first read.
    stamp: Option<file::Stamp>,
    now: channel::Sender<Arc<Devices>>,
    /// What marks of proofs are made with.
    secret: RandomState,
}

/// Hears of every change of a registry.
#[derive(Clone, Debug)]
pub(crate) struct Changes(channel::Receiver<Arc<Devices>>);

impl Changes {
    /// Waits until the devices are others than those last seen, and gives them. Never, once the registry is gone.
    /// Cancel safe.
    pub(crate) async fn changed(&mut self) -> Arc<Devices> {
        match self.0.changed().await {
            Ok(()) => Arc::clone(&self.0.borrow_and_update()),
            Err(_) => std::future::pending().await,
        }
    }
}

impl Registry {
    /// A registry without devices, and without a file.
    pub(crate) fn empty() -> Arc<Self> {
        Arc::new(Self::with(None, None, Known::default(), Devices::default()))
    }

    /// The registry's file: the one that the configuration names, which is to be there, or the state directory's, which need
    /// not be.
    ///
    /// # Errors
    /// It is named, and not there.
    pub(crate) fn locate(config: &Config) -> Result<Option<PathBuf>, ConfigError> {
        let Some(file) = &config.devices.file else {
            let state = StateDir::locate(config.state.directory.as_deref());
            return Ok(state.ok().map(|state| state.devices_file()));
        };
        if file.exists() {
            return Ok(Some(file.clone()));
        }
        let missing = ConfigError::new(file.display().to_string(), "is not there");
        Err(missing.with_help("`fieldgate device add` makes it, as [devices] file names it"))
    }

    /// The devices of this file; none while there is no file.
    ///
    /// # Errors
    /// File, line, and what would be right.
    pub(crate) fn load(path: &Path, known: Known) -> Result<Arc<Self>, ConfigError> {
        let stamp = file::Stamp::of(path);
        let devices = match file::load(path, &known)? {
            Some(devices) => Devices { generation: 1, ..devices },
            None => Devices::default(),
        };
        Ok(Arc::new(Self::with(Some(path.to_owned()), stamp, known, devices)))
    }

    fn with(path: Option<PathBuf>, stamp: Option<file::Stamp>, known: Known, devices: Devices) -> Self {
        let (held, generation) = (devices.len(), devices.generation);
        emit(RegistryLoaded { path: path.as_deref(), devices: held, generation });
        let now = channel::Sender::new(Arc::new(devices));
        Self { path, known, stamp, now, secret: RandomState::new() }
    }

    /// The devices as they are now.
    pub(crate) fn snapshot(&self) -> Arc<Devices> {
        Arc::clone(&self.now.borrow())
    }

    /// The generation of the devices as they are now.
    pub(crate) fn generation(&self) -> u64 {
        self.now.borrow().generation
    }

    /// The mark of a proof.
    fn mark(&self, proof: &Proof) -> Mark {
        proof.mark(&self.secret)
    }

    /// Hears of every change from now on.
    pub(crate) fn changes(&self) -> Changes {
        Changes(self.now.subscribe())
    }

    /// Reads the file again. The former devices stay in force where it is not good, or gone.
    ///
    /// # Errors
    /// File, line, and what would be right.
    pub(crate) fn reload(&self) -> Result<(), ConfigError> {
        let Some(path) = &self.path else { return Ok(()) };
        let Some(devices) = file::load(path, &self.known)? else {
            return Err(ConfigError::new(path.display().to_string(), "is gone")
                .with_help("an empty file, where there are to be no devices"));
        };
        let generation = self.generation() + 1;
        emit(RegistryLoaded { path: Some(path), devices: devices.len(), generation });
        self.now.send_replace(Arc::new(Devices { generation, ..devices }));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::tests::Scratch;

    #[test]
    fn a_registry_that_is_named_is_to_be_there_and_the_state_directorys_need_not() {
        let scratch = Scratch::new();
        let named = scratch.0.join("plant.toml");
        let text = format!("[state]\ndirectory = {:?}\n", scratch.0);
        let config = |more: &str| Config::parse("test.toml", &(text.clone() + more), None).unwrap();
        let located = Registry::locate(&config("")).unwrap();
        assert_eq!(located.as_deref(), Some(&*scratch.0.join("devices.toml")));
        // With nobody registered in its place, whoever comes would be believed.
        let naming = config(&format!("[devices]\nfile = {named:?}\n"));
        let refused = Registry::locate(&naming).unwrap_err().to_string();
        assert!(refused.contains("plant.toml") && refused.contains("is not there"), "{refused}");
        std::fs::write(&named, "").unwrap();
        assert_eq!(Registry::locate(&naming).unwrap(), Some(named));
    }
}
