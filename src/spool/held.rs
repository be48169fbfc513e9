//! Of which devices the spool holds something: the question that every live message asks first.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use fieldgate_mappings::address::DeviceId;

/// Parts that are locked by themselves: workers rarely meet in one.
const SHARDS: usize = 16;

/// How many messages of which device are in the spool or on their way into it.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Of all devices. While it is 0, asking is one load.
    messages: AtomicUsize,
    /// A few names, each with its devices.
    hubs: RwLock<Vec<(Arc<str>, Arc<Devices>)>>,
}

#[derive(Debug)]
struct Devices {
    hasher: RandomState,
    shards: [Mutex<HashMap<DeviceId, u32>>; SHARDS],
}

impl Default for Devices {
    fn default() -> Self {
        Self { hasher: RandomState::new(), shards: Default::default() }
    }
}

impl Devices {
    fn with<T>(&self, device: &DeviceId, change: impl FnOnce(&mut HashMap<DeviceId, u32>) -> T) -> T {
        let shard = &self.shards[self.hasher.hash_one(device) as usize % SHARDS];
        // A count is changed in one step: a panic elsewhere leaves it whole.
        change(&mut shard.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Held {
    /// Whether something of the device waits. False means that all of it has been answered for by the hub.
    pub(super) fn holds(&self, hub: &str, device: &DeviceId) -> bool {
        // The worker that asks has itself added what came before, or has taken the device over from one that had.
        self.messages.load(Ordering::Acquire) > 0
            && self.devices(hub).is_some_and(|devices| devices.with(device, |of| of.contains_key(device)))
    }

    /// So many messages more.
    pub(super) fn add(&self, hub: &Arc<str>, device: &DeviceId, messages: u32) {
        self.messages.fetch_add(messages as usize, Ordering::AcqRel);
        self.devices_or_new(hub).with(device, |of| match of.get_mut(device) {
            Some(count) => *count += messages,
            None => {
                of.insert(device.clone(), messages);
            }
        });
    }

    /// One message less: it was refused, or it has its end.
    pub(super) fn remove(&self, hub: &str, device: &DeviceId) {
        let Some(devices) = self.devices(hub) else { return };
        let was_there = devices.with(device, |of| {
            let Some(count) = of.get_mut(device) else { return false };
            *count -= 1;
            if *count == 0 {
                of.remove(device);
                if of.len() < of.capacity() / 8 {
                    of.shrink_to(of.len() * 2);
                }
            }
            true
        });
        if was_there {
            self.messages.fetch_sub(1, Ordering::AcqRel);
        }
    }

    fn devices(&self, hub: &str) -> Option<Arc<Devices>> {
        let hubs = self.hubs.read().unwrap_or_else(PoisonError::into_inner);
        hubs.iter().find(|(name, _)| **name == *hub).map(|(_, devices)| Arc::clone(devices))
    }

    fn devices_or_new(&self, hub: &Arc<str>) -> Arc<Devices> {
        if let Some(devices) = self.devices(hub) {
            return devices;
        }
        let mut hubs = self.hubs.write().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have been faster.
        match hubs.iter().find(|(name, _)| name == hub) {
            Some((_, devices)) => Arc::clone(devices),
            None => {
                let devices = Arc::new(Devices::default());
                hubs.push((Arc::clone(hub), Arc::clone(&devices)));
                devices
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_held_until_its_last_message_is_gone() {
        let held = Held::default();
        let (hub, other): (Arc<str>, Arc<str>) = ("berlin".into(), "paris".into());
        let device = DeviceId::new("pump-1").unwrap();
        assert!(!held.holds(&hub, &device));
        held.add(&hub, &device, 1);
        held.add(&hub, &device, 1);
        assert!(held.holds(&hub, &device));
        assert!(!held.holds(&other, &device), "another hub's device of that name is another device");
        assert!(!held.holds(&hub, &DeviceId::new("pump-2").unwrap()));
        held.remove(&hub, &device);
        assert!(held.holds(&hub, &device));
        held.remove(&hub, &device);
        assert!(!held.holds(&hub, &device));
        assert_eq!(held.messages.load(Ordering::Relaxed), 0);
        held.remove(&hub, &device);
        held.remove(&other, &device);
        assert_eq!(held.messages.load(Ordering::Relaxed), 0, "what was not there is not counted");
    }

    #[test]
    fn threads_count_together() {
        let held = Held::default();
        let hub: Arc<str> = "berlin".into();
        let devices: Vec<_> = (0..100).map(|n| DeviceId::new(&format!("d{n}")).unwrap()).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| devices.iter().for_each(|device| held.add(&hub, device, 1)));
            }
        });
        assert_eq!(held.messages.load(Ordering::Relaxed), 400);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| devices.iter().for_each(|device| held.remove(&hub, device)));
            }
        });
        assert!(devices.iter().all(|device| !held.holds(&hub, device)));
        assert_eq!(held.messages.load(Ordering::Relaxed), 0);
    }
}
