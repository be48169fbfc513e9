//! Devices that prove to the gateway who they are, where their listener asks for that (`authorise = "registry"`).
//!
//! A device that has shown a password or a certificate has its own addresses as long as it is connected. One that puts
//! a token to `$cbs` has them until the token ends; the token is verified here, before the hub hears of it. Either way
//! the gateway speaks for the device at the hub, with what the registry says: the same machinery puts that token, and
//! puts it again after an outage.

use std::fmt;
use std::net::IpAddr;
use std::time::Instant;

use fieldgate_amqp::error::{AmqpError, Condition};
use fieldgate_mappings::{Address, DeviceId};

use crate::config::Secret;
use crate::devices::{Denied, Pass};
use crate::sas::percent_encode;

use super::access::{Grant, Refusal, Rules};
use super::ends::{DeviceKey, OwnDevice, Way};
use super::machine::Router;
use super::policy::Authorise;
use super::routes::ConnectorIndex;
use super::shared::SharedDevice;
use super::word::Word;

/// Who knows the devices. It asks nobody and waits for nothing.
pub(crate) trait Registrar: fmt::Debug + Send + Sync {
    /// Judges a token by which somebody says that he is this device.
    ///
    /// # Errors
    /// Why he is not let in.
    fn prove(&self, peer: IpAddr, device: &DeviceId, token: &str) -> Result<Pass, Denied>;

    /// Whether a device that was let in may stay; the operator is told if it may not.
    fn may_stay(&self, pass: &Pass) -> bool;

    /// The connector that the device's entry names.
    fn connector_of(&self, device: &DeviceId) -> Option<ConnectorIndex>;

    /// What the word of whoever says that he is this device is worth.
    fn word_of(&self, device: &DeviceId) -> Word;

    /// Whether there is any device for which somebody's word is not enough.
    fn doubts_anybody(&self) -> bool;

    /// What the gateway shows the hub of this connector for the device. `brought` is the device's own token and
    /// when that ends, in seconds since 1970: a token that is made in its place ends then too.
    fn speak(
        &self,
        connector: ConnectorIndex,
        device: &DeviceId,
        brought: Option<(&Secret, u64)>,
    ) -> Option<Spoken>;
}

/// A token that is put to a hub for a device.
#[derive(Clone, Debug)]
pub(crate) struct Spoken {
    pub(crate) token: Secret,
    /// When it ends, in seconds since 1970.
    pub(crate) expires_unix: u64,
    /// When another is to take its place, in seconds since 1970.
    pub(crate) renew_unix: u64,
}

/// Verifies the token of a grant where the listener asks for a registered device, and puts what the gateway shows the
/// hub in its place.
pub(super) fn prove(rules: &Rules, shared: &SharedDevice, grant: Grant) -> Result<Grant, Refusal> {
    let (Authorise::Registry, Some(registrar)) = (shared.access.authorise(), &rules.registrar) else {
        return Ok(grant);
    };
    let refuse = |status, description: String| Err(Refusal { status, description });
    let Some(device) = grant.scope.device() else {
        return refuse(401, "the token is for no device".into());
    };
    let pass = match registrar.prove(shared.peer, &device, grant.token.expose()) {
        Ok(pass) => pass,
        Err(denied) => {
            let status = if matches!(denied, Denied::Limited(_) | Denied::Busy) { 503 } else { 401 };
            return refuse(status, denied.rejection().description.into_owned());
        }
    };
    if registrar.connector_of(&device).is_some_and(|its| rules.hubs.of(its) != grant.hub) {
        return refuse(401, "the device belongs to another hub".into());
    }
    let spoken = registrar.speak(grant.hub, &device, Some((&grant.token, grant.expires_unix)));
    let token = spoken.map(|spoken| spoken.token);
    Ok(Grant {
        is_put: token.is_some(),
        token: token.unwrap_or(grant.token),
        pass: Some(Box::new(pass)),
        ..grant
    })
}

/// What is put to the hub for a device that has proved itself to the gateway, and when another is due.
fn own_grant(rules: &Rules, own: &OwnDevice) -> Option<(Grant, u64)> {
    let hub = rules.hubs.of(own.connector);
    let spoken = rules.registrar.as_ref()?.speak(hub, &own.pass.device, None)?;
    let scope = own_node(&own.pass.device)?;
    let name = format!("{}/{scope}", rules.hubs.name(hub)?);
    let Spoken { token, expires_unix, renew_unix } = spoken;
    Some((Grant { hub, scope, name, token, expires_unix, is_put: true, pass: None }, renew_unix))
}

/// `devices/<id>`. There is one for every id.
pub(super) fn own_node(device: &DeviceId) -> Option<Address> {
    Address::parse(&format!("devices/{}", percent_encode(device.as_str()))).ok()
}

impl SharedDevice {
    /// Sees to the token of a device that the gateway speaks for by itself; the grant that is new.
    pub(super) fn speak_for_own(&mut self, rules: &Rules) -> Option<Grant> {
        let own = self.own.as_mut()?;
        let (grant, renew_unix) = own_grant(rules, own)?;
        own.renew_unix = Some(renew_unix);
        self.access.grant(grant.clone());
        Some(grant)
    }
}

impl Router {
    /// Looks again at all devices that have proved who they are: the registry is another one.
    pub(crate) fn review(&mut self, now: Instant) {
        let Some(registrar) = self.rules.registrar.clone() else { return };
        for key in self.devices.keys() {
            let Some(device) = self.devices.get_mut(key) else { continue };
            let pass = match &mut device.way {
                Way::Paired { policy, .. } => policy.pass(),
                Way::Shared(shared) => {
                    shared.access.review(|pass| registrar.may_stay(pass));
                    shared.own.as_ref().map(|own| &own.pass)
                }
            };
            if pass.is_some_and(|pass| !registrar.may_stay(pass)) {
                self.close_forbidden(key, now);
                continue;
            }
            // Also what stands on nothing but the word of a device that is registered with a proof now.
            self.detach_forbidden(key, &over());
            self.detach_disbelieved(key, &*registrar);
        }
    }

    /// Detaches the links of a device with a hub connection of its own, as far as they speak for devices that the
    /// registry does not let it speak for any more.
    fn detach_disbelieved(&mut self, key: DeviceKey, registrar: &dyn Registrar) {
        let Some(device) = self.devices.get(key) else { return };
        let Way::Paired { policy, .. } = &device.way else { return };
        let judged = device
            .links
            .iter()
            .filter_map(|(link, end)| Some((link, policy.believe(registrar, end.claims.as_deref()?).err()?)));
        for (link, error) in judged.collect::<Vec<_>>() {
            self.detach_both(key, link, &error);
        }
    }

    /// Devices whose proof has ended, and tokens that are due for another.
    pub(super) fn see_to_own(&mut self, now: Instant) {
        let unix = self.unix;
        for key in self.devices.keys() {
            let Some(device) = self.devices.get_mut(key) else { continue };
            let shared = match &mut device.way {
                Way::Shared(shared) => shared,
                Way::Paired { policy, .. } => {
                    if policy.pass().and_then(|pass| pass.until).is_some_and(|until| until <= unix) {
                        self.close_forbidden(key, now);
                    }
                    continue;
                }
            };
            let Some(own) = &shared.own else { continue };
            if own.pass.until.is_some_and(|until| until <= unix) {
                self.close_forbidden(key, now);
                continue;
            }
            if own.renew_unix.is_none_or(|at| unix < at) {
                continue;
            }
            let Some(grant) = shared.speak_for_own(&self.rules) else { continue };
            let lanes: Vec<_> = shared
                .lanes
                .iter()
                .filter(|lane| self.rules.hubs.of(ConnectorIndex(lane.connector)) == grant.hub)
                .map(|lane| lane.trunk)
                .collect();
            for trunk in lanes {
                self.put_renewed(key, trunk, &grant, now);
            }
        }
    }

    /// Ends the connection of a device that may not stay.
    fn close_forbidden(&mut self, key: DeviceKey, now: Instant) {
        let Some(device) = self.devices.get_mut(key) else { return };
        device.seat.machine.close(Some(over()));
        device.seat.wake();
        if let Way::Paired { trunk, .. } = device.way
            && let Some(hub) = self.trunk(trunk)
        {
            hub.machine.close(None);
            hub.wake();
        }
        self.handle_device(key, now);
    }
}

fn over() -> AmqpError {
    let why = "what the device has proved itself with is not valid any more";
    AmqpError::new(&Condition::UnauthorizedAccess, Some(why))
}
