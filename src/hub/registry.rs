//! The devices that the hub knows.
//!
//! In memory: a device's key follows from the hub's own key, so a device that registers again after a restart is
//! the same device with the same credentials, and nothing secret needs to be stored for each of them.

use std::collections::HashMap;
use std::rc::Rc;

use fieldgate_mappings::{DeviceId, Timestamp};
use thiserror::Error;

use crate::sas::SharedKey;

/// The key of `device` on a hub whose `iothubowner` policy has the key `owner`.
#[must_use]
pub fn device_key(owner: &SharedKey, device: &DeviceId) -> SharedKey {
    owner.derive(&format!("device/{device}"))
}

/// A device that is registered.
#[derive(Debug, Clone)]
pub(crate) struct Device {
    /// Tells this registration of the identity from earlier ones.
    pub(crate) generation: Rc<str>,
}

/// Why a device is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum NotRegistered {
    /// It is not registered and does not register by itself here.
    #[error("the hub does not know this device")]
    Unknown,
    /// The registry has as many devices as it may.
    #[error("the hub's registry is full")]
    Full,
}

/// The registry.
#[derive(Debug)]
pub(crate) struct Registry {
    devices: HashMap<DeviceId, Device>,
    max_devices: usize,
    registered: u64,
}

impl Registry {
    /// An empty registry for at most `max_devices` (about 200 bytes each).
    pub(crate) fn new(max_devices: usize) -> Self {
        Self { devices: HashMap::new(), max_devices, registered: 0 }
    }

    /// The device, if it is registered.
    pub(crate) fn get(&self, device: &DeviceId) -> Option<&Device> {
        self.devices.get(device)
    }

    /// The device, registered if need be; the flag tells whether it was.
    pub(crate) fn register(
        &mut self,
        wall: Timestamp,
        device: &DeviceId,
    ) -> Result<(&Device, bool), NotRegistered> {
        let is_new = !self.devices.contains_key(device);
        if is_new {
            if self.devices.len() >= self.max_devices {
                return Err(NotRegistered::Full);
            }
            self.registered += 1;
            // The time tells restarts apart, the count registrations within one millisecond.
            let generation = format!("{}{:06}", wall.0.unsigned_abs(), self.registered % 1_000_000).into();
            self.devices.insert(device.clone(), Device { generation });
        }
        let device = self.devices.get(device).ok_or(NotRegistered::Unknown)?;
        Ok((device, is_new))
    }

    /// The device: registered by itself where that is allowed, known already where not.
    pub(crate) fn admit(
        &mut self,
        wall: Timestamp,
        device: &DeviceId,
        may_register: bool,
    ) -> Result<(&Device, bool), NotRegistered> {
        if may_register {
            self.register(wall, device)
        } else {
            self.devices.get(device).map(|device| (device, false)).ok_or(NotRegistered::Unknown)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(text: &str) -> DeviceId {
        DeviceId::new(text).unwrap()
    }

    #[test]
    fn a_device_registers_once_and_keeps_its_generation() {
        let mut registry = Registry::new(10);
        let wall = Timestamp(5);
        assert!(matches!(registry.admit(wall, &device("a"), false), Err(NotRegistered::Unknown)));
        assert!(registry.get(&device("a")).is_none());
        let (first, is_new) = registry.admit(wall, &device("a"), true).unwrap();
        let first = first.generation.clone();
        assert!(is_new);
        let (again, is_new) = registry.admit(Timestamp(9), &device("a"), true).unwrap();
        assert!(!is_new && again.generation == first);
        assert!(registry.admit(wall, &device("a"), false).is_ok());
        let (other, _) = registry.register(wall, &device("b")).unwrap();
        assert_ne!(other.generation, first);
    }

    #[test]
    fn the_registry_has_an_end() {
        let mut registry = Registry::new(2);
        for name in ["a", "b"] {
            registry.register(Timestamp(0), &device(name)).unwrap();
        }
        assert!(matches!(registry.register(Timestamp(0), &device("c")), Err(NotRegistered::Full)));
        assert!(registry.register(Timestamp(0), &device("a")).is_ok(), "who is in stays in");
    }

    #[test]
    fn keys_belong_to_one_device() {
        let owner = SharedKey::from_bytes(b"owner").unwrap();
        assert_ne!(device_key(&owner, &device("a")), device_key(&owner, &device("b")));
        assert_eq!(device_key(&owner, &device("a")), device_key(&owner, &device("a")));
        assert_ne!(device_key(&owner, &device("a")), owner);
    }
}
