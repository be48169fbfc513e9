//! How often somebody may fail to prove who they are: for each address, whatever it claims to be, and for each device,
//! wherever the guesses come from.
//!
//! A few failures cost nothing: people mistype, and a key is changed on one side first. After those each failure makes
//! the next attempt wait, twice as long each time. The address at which a device was last let in does not count
//! against the device: a stranger who guesses cannot keep the device itself out.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fieldgate_mappings::DeviceId;

/// The first wait; each further failure doubles it.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// After so long without a failure all is forgotten.
const MEMORY: Duration = Duration::from_secs(600);
/// Addresses, and devices, that are remembered; about 100 bytes each. Of more the oldest half is forgotten.
const REMEMBERED: usize = 65_536;

/// What the configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LimitSettings {
    /// Failures of one device that cost nothing.
    pub(crate) per_device: u32,
    /// Failures from one address that cost nothing. Many devices may stand behind one.
    pub(crate) per_address: u32,
    /// The longest wait.
    pub(crate) longest: Duration,
}

/// Who has failed, and when.
#[derive(Debug)]
pub(super) struct Limits {
    settings: LimitSettings,
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    addresses: Halves<IpAddr, Failures>,
    devices: Halves<DeviceId, Failures>,
    /// Where a device was last let in with a password.
    homes: Halves<DeviceId, IpAddr>,
}

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    last: Instant,
}

impl Failures {
    /// How long the next attempt has to wait, if so many cost nothing.
    fn wait(&self, free: u32, longest: Duration, now: Instant) -> Option<Duration> {
        let beyond = self.count.checked_sub(free.max(1))?;
        let wait = FIRST_WAIT.checked_mul(1 << beyond.min(20)).unwrap_or(longest).min(longest);
        (self.last + wait).checked_duration_since(now).filter(|left| !left.is_zero())
    }
}

impl Limits {
    pub(super) fn new(settings: LimitSettings) -> Self {
        let table = Table { addresses: Halves::new(), devices: Halves::new(), homes: Halves::new() };
        Self { settings, table: Mutex::new(table) }
    }

    /// How long whoever is at this address has to wait.
    pub(super) fn address(&self, peer: IpAddr, now: Instant) -> Option<Duration> {
        let LimitSettings { per_address, longest, .. } = self.settings;
        self.table().addresses.get(&network(peer))?.wait(per_address, longest, now)
    }

    /// How long whoever claims at this address to be this device has to wait.
    pub(super) fn device(&self, device: &DeviceId, peer: IpAddr, now: Instant) -> Option<Duration> {
        let LimitSettings { per_device, longest, .. } = self.settings;
        let mut table = self.table();
        let wait = table.devices.get(device)?.wait(per_device, longest, now)?;
        (table.homes.get(device) != Some(&network(peer))).then_some(wait)
    }

    /// An attempt has failed. `guessable` is the device whose password it was.
    pub(super) fn failed(&self, peer: IpAddr, guessable: Option<&DeviceId>, now: Instant) {
        let mut table = self.table();
        count(&mut table.addresses, &network(peer), now);
        if let Some(device) = guessable
            && table.homes.get(device) != Some(&network(peer))
        {
            count(&mut table.devices, device, now);
        }
    }

    /// The device was let in with its password.
    pub(super) fn succeeded(&self, device: &DeviceId, peer: IpAddr) {
        let home = network(peer);
        let mut table = self.table();
        if table.homes.get(device) != Some(&home) {
            table.homes.put(device.clone(), home);
        }
        table.devices.remove(device);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Every change is one insertion or removal: a panic elsewhere leaves the table whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count<K: Eq + Hash + Clone>(table: &mut Halves<K, Failures>, key: &K, now: Instant) {
    let before = table.get(key).filter(|failures| now.saturating_duration_since(failures.last) < MEMORY);
    let count = before.map_or(0, |failures| failures.count).saturating_add(1);
    table.put(key.clone(), Failures { count, last: now });
}

/// What a stranger has many addresses of counts as one: a network of 64 bits, with IPv6 (RFC 6177).
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => v4.into(),
            None => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
        },
    }
}

/// A map with a bound: when the younger half is full, the older one is forgotten.
#[derive(Debug)]
pub(super) struct Halves<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K: Eq + Hash, V> Halves<K, V> {
    pub(super) fn new() -> Self {
        Self { young: HashMap::new(), old: HashMap::new() }
    }

    pub(super) fn get(&mut self, key: &K) -> Option<&V> {
        if let Some((key, value)) = self.old.remove_entry(key) {
            self.put(key, value);
        }
        self.young.get(key)
    }

    pub(super) fn put(&mut self, key: K, value: V) {
        if self.young.len() >= REMEMBERED / 2 && !self.young.contains_key(&key) {
            self.old = std::mem::take(&mut self.young);
        }
        self.old.remove(&key);
        self.young.insert(key, value);
    }

    pub(super) fn remove(&mut self, key: &K) {
        self.young.remove(key);
        self.old.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: LimitSettings =
        LimitSettings { per_device: 3, per_address: 5, longest: Duration::from_secs(60) };

    fn device(id: &str) -> DeviceId {
        DeviceId::new(id).unwrap()
    }

    fn ip(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn failures_cost_more_and_more_and_are_forgotten() {
        let (limits, start) = (Limits::new(SETTINGS), Instant::now());
        let d = device("d");
        let mut waits = Vec::new();
        for _ in 0..12 {
            waits.push(limits.device(&d, ip(9), start).map_or(0, |wait| wait.as_secs()));
            limits.failed(ip(1), Some(&d), start);
        }
        assert_eq!(waits, [0, 0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(limits.device(&d, ip(9), start + Duration::from_secs(60)), None);
        assert_eq!(limits.device(&device("other"), ip(9), start), None);
        // The address has failed as often, and has had more for nothing.
        assert_eq!(limits.address(ip(1), start), Some(Duration::from_secs(60)));
        assert_eq!(limits.address(ip(2), start), None);
        limits.failed(ip(1), Some(&d), start + MEMORY);
        assert_eq!(limits.device(&d, ip(9), start + MEMORY), None);
    }

    #[test]
    fn a_stranger_does_not_keep_the_device_out() {
        let (limits, now) = (Limits::new(SETTINGS), Instant::now());
        let d = device("d");
        limits.succeeded(&d, ip(1));
        for _ in 0..10 {
            limits.failed(ip(2), Some(&d), now);
        }
        assert!(limits.device(&d, ip(2), now).is_some() && limits.device(&d, ip(3), now).is_some());
        assert_eq!(limits.device(&d, ip(1), now), None);
        // What goes wrong at home counts against the address alone.
        limits.succeeded(&d, ip(1));
        (0..10).for_each(|_| limits.failed(ip(1), Some(&d), now));
        assert_eq!(limits.device(&d, ip(3), now), None);
        assert!(limits.address(ip(1), now).is_some());
    }

    #[test]
    fn a_network_of_ipv6_is_one_and_a_mapped_address_is_ipv4() {
        let (limits, now) = (Limits::new(SETTINGS), Instant::now());
        for host in 0..6 {
            limits.failed(Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, host).into(), None, now);
        }
        assert!(limits.address("2001:db8:0:1:ffff::1".parse().unwrap(), now).is_some());
        assert_eq!(limits.address("2001:db8:0:2::1".parse().unwrap(), now), None);
        assert_eq!(network("::ffff:10.0.0.1".parse().unwrap()), ip(1));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut halves = Halves::new();
        for number in 0..4 * REMEMBERED {
            halves.put(number, ());
            assert!(halves.young.len() + halves.old.len() <= REMEMBERED);
            // What is asked for is kept.
            assert!(halves.get(&0).is_some());
        }
        assert!(halves.get(&(REMEMBERED / 2)).is_none());
    }
}
