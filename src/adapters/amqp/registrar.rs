//! The registry as the router sees it: who a device is, and what the gateway shows the hub for it.

use std::net::IpAddr;
use std::sync::Arc;

use fieldgate_mappings::DeviceId;

use crate::config::Secret;
use crate::devices::{Attempt, Denied, Gate, Judged, Pass, Shown, SpeaksWith};
use crate::router::{ConnectorIndex, Registrar, Spoken, Word};
use crate::sas::percent_decode;
use crate::telemetry::Protocol;
use crate::upstream::Hub;

use super::routing::unix_now;

/// The gate, and the hubs of the configuration's connectors.
#[derive(Debug)]
pub(super) struct Registered {
    gate: Arc<Gate>,
    /// Names and hubs of the connectors, in their order.
    connectors: Box<[(Arc<str>, Arc<Hub>)]>,
}

impl Registered {
    pub(super) fn new(gate: Arc<Gate>, connectors: impl Iterator<Item = (Arc<str>, Arc<Hub>)>) -> Self {
        Self { gate, connectors: connectors.collect() }
    }
}

impl Registrar for Registered {
    fn prove(&self, peer: IpAddr, device: &DeviceId, token: &str) -> Result<Pass, Denied> {
        let shown = Shown::Password(token.as_bytes());
        let attempt = Attempt { protocol: Protocol::Amqp, peer, device, shown, believes: false };
        match self.gate.judge(&self.gate.registry().snapshot(), attempt) {
            Judged::Now(answer) => answer,
            // Only what is no token takes its time, and that has been read as one.
            Judged::Soon(_) => Err(Denied::Busy),
        }
    }

    fn may_stay(&self, pass: &Pass) -> bool {
        self.gate.may_stay(pass)
    }

    fn connector_of(&self, device: &DeviceId) -> Option<ConnectorIndex> {
        let devices = self.gate.registry().snapshot();
        let hub = devices.get(device.as_str())?.hub.as_deref()?;
        self.connectors.iter().position(|(name, _)| **name == *hub).map(ConnectorIndex)
    }

    fn word_of(&self, device: &DeviceId) -> Word {
        match self.gate.registry().snapshot().get(device.as_str()) {
            None => Word::Enough,
            Some(entry) if !entry.enabled => Word::Disabled,
            Some(entry) if entry.needs_no_proof() => Word::Enough,
            Some(_) => Word::NeedsProof,
        }
    }

    fn doubts_anybody(&self) -> bool {
        self.gate.registry().snapshot().doubts_anybody()
    }

    fn speak(
        &self,
        connector: ConnectorIndex,
        device: &DeviceId,
        brought: Option<(&Secret, u64)>,
    ) -> Option<Spoken> {
        let (_, hub) = self.connectors.get(connector.0)?;
        let devices = self.gate.registry().snapshot();
        let policy = SpeaksWith::Policy;
        let key = match devices.get(device.as_str()).map_or(&policy, |device| &device.speaks_with) {
            SpeaksWith::OwnToken => {
                let (token, expires_unix) = brought?;
                return Some(Spoken { token: token.clone(), expires_unix, renew_unix: u64::MAX });
            }
            SpeaksWith::DeviceKey(key) => Some(key),
            SpeaksWith::Policy => None,
        };
        let (now, life) = (unix_now(), hub.token_ttl().as_secs());
        let expires_unix = brought.map_or(now + life, |(_, expires_unix)| expires_unix);
        let token = hub.device_token(device, key, expires_unix)?;
        // A fifth of the life is left for a hub that is away.
        Some(Spoken { token, expires_unix, renew_unix: now + life * 4 / 5 })
    }
}

/// The device that a SASL PLAIN user name is: `D`, or `D@sas.hub` as Azure has it, percent-encoded or not.
pub(super) fn user(name: &str, is_registered: impl Fn(&str) -> bool) -> Option<DeviceId> {
    let bare = name.rsplit_once('@').map(|(device, _)| device);
    let decoded = bare.and_then(percent_decode);
    let all = [Some(name), bare, decoded.as_deref()];
    // An id may hold an at sign, and a percent sign.
    let found = all.into_iter().flatten().find(|id| is_registered(id));
    DeviceId::new(found.or(bare).unwrap_or(name)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_names_are_devices() {
        let known = ["d", "x@y", "a%b", "x"];
        let user = |name: &str| user(name, |id| known.contains(&id)).map(|id| id.as_str().to_owned());
        for (name, id) in [
            ("d", Some("d")),
            ("d@sas.hub", Some("d")),
            ("d@hub", Some("d")),
            ("%64@sas.hub", Some("d")),
            ("x@y", Some("x@y")),
            ("x@y@sas.hub", Some("x@y")),
            ("a%25b@sas.hub", Some("a%b")),
            ("stranger@sas.hub", Some("stranger")),
            ("stranger", Some("stranger")),
            ("a/b", None),
            ("", None),
        ] {
            assert_eq!(user(name).as_deref(), id, "{name}");
        }
    }
}
