//! What happens at the door: who was let in, who was not and why, and what the registry holds.
//!
//! These are the lines of an audit: each names protocol, address and device, none of them a secret.

use std::net::IpAddr;
use std::path::Path;
use std::sync::LazyLock;

use crate::config::ConfigError;
use crate::telemetry::{
    Counter, EncodeLabelSet, EncodeLabelValue, Family, Gauge, Happening, LabelValueEncoder, Protocol,
    counter, counters, gauge,
};

use super::gate::{By, Denied};
use super::roster::Over;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Word(&'static str);

impl EncodeLabelValue for Word {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResult {
    protocol: Protocol,
    result: Word,
}

struct Metrics {
    /// By protocol and by what, each in the order of its enum: counted for each request.
    admitted: [[Counter; By::NAMES.len()]; 4],
    denied: Family<ByResult, Counter>,
    cut_off: Family<ByResult, Counter>,
    slow_hashes: Counter,
    devices: Gauge,
    generation: Gauge,
    bad_files: Counter,
    is_good: Gauge,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    let authentications = counters("authentications", "Devices that said who they are, by what came of it");
    Metrics {
        admitted: [Protocol::Amqp, Protocol::Mqtt, Protocol::Coap, Protocol::Http].map(|protocol| {
            By::NAMES.map(|result| {
                authentications.get_or_create(&ByResult { protocol, result: Word(result) }).clone()
            })
        }),
        denied: authentications,
        cut_off: counters("devices_cut_off", "Devices that were let in and may not stay, by reason"),
        slow_hashes: counter("password_hashes", "Passwords that were verified the slow way"),
        devices: gauge("registry_devices", "Devices in the registry"),
        generation: gauge("registry_generation", "How often the registry has been read since the start"),
        bad_files: counter("registry_refused", "Times that the registry's file had changed and was not good"),
        is_good: gauge(
            "registry_good",
            "1 while the registry is what its file says, 0 while that is not good",
        ),
    }
});

/// A device was let in.
pub(super) struct DeviceAdmitted<'a> {
    pub(super) protocol: Protocol,
    pub(super) peer: IpAddr,
    pub(super) device: &'a str,
    pub(super) by: By,
}

impl Happening for DeviceAdmitted<'_> {
    fn emit(self) {
        let Self { protocol, peer, device, by } = self;
        METRICS.admitted[protocol as usize][by.index()].inc();
        // HTTP and CoAP devices say with each request who they are.
        tracing::debug!(protocol = protocol.name(), %peer, device, by = by.name(), "device let in");
    }
}

/// Somebody was not let in.
pub(super) struct DeviceDenied<'a> {
    pub(super) protocol: Protocol,
    pub(super) peer: IpAddr,
    pub(super) device: &'a str,
    pub(super) denied: &'a Denied,
}

impl Happening for DeviceDenied<'_> {
    fn emit(self) {
        let Self { protocol, peer, device, denied } = self;
        let result = denied.name();
        METRICS.denied.get_or_create(&ByResult { protocol, result: Word(result) }).inc();
        tracing::warn!(protocol = protocol.name(), %peer, device, why = %denied, "device not let in");
    }
}

/// A device that was let in may not stay.
pub(super) struct DeviceCutOff<'a> {
    pub(super) protocol: Protocol,
    pub(super) device: &'a str,
    pub(super) over: Over,
}

impl Happening for DeviceCutOff<'_> {
    fn emit(self) {
        let Self { protocol, device, over } = self;
        METRICS.cut_off.get_or_create(&ByResult { protocol, result: Word(over.name()) }).inc();
        tracing::warn!(protocol = protocol.name(), device, why = %over, "device cut off");
    }
}

/// A password was verified the slow way.
pub(super) fn password_hashed() {
    METRICS.slow_hashes.inc();
}

/// The registry is what its file says.
pub(super) struct RegistryLoaded<'a> {
    pub(super) path: Option<&'a Path>,
    pub(super) devices: usize,
    pub(super) generation: u64,
}

impl Happening for RegistryLoaded<'_> {
    fn emit(self) {
        let Self { path, devices, generation } = self;
        METRICS.devices.set(i64::try_from(devices).unwrap_or(i64::MAX));
        METRICS.generation.set(i64::try_from(generation).unwrap_or(i64::MAX));
        METRICS.is_good.set(1);
        if let (Some(path), 1..) = (path, generation) {
            tracing::info!(file = %path.display(), devices, generation, "device registry read");
        }
    }
}

/// The registry's file has changed, and is not good.
pub(super) struct RegistryRefused<'a> {
    pub(super) error: &'a ConfigError,
    pub(super) generation: u64,
}

impl Happening for RegistryRefused<'_> {
    fn emit(self) {
        let Self { error, generation } = self;
        METRICS.bad_files.inc();
        METRICS.is_good.set(0);
        tracing::error!(
            generation,
            "the device registry is not good, and the former one stays in force: {error}"
        );
    }
}
