//! Devices' tokens: put before their links are attached, and again before they expire; what becomes of a device whose
//! token the hub does not want.

use std::time::Instant;

use fieldgate_mappings::outcome::{Outcome, Verdict};

use crate::router::arena::Key;
use crate::router::claims::{Answer, Reply};
use crate::telemetry::emit;
use crate::upstream::device::Device;
use crate::upstream::grant::{Clock, Heard, Source};
use crate::upstream::telemetry::{DeviceTokenAccepted, DeviceTokenRefused};

use super::sessions::not_permitted;
use super::{Phase, Uplink};

impl Uplink {
    /// Whether the hub has accepted what stands for a device. Where it has not been asked, it will be.
    pub(super) fn is_granted(&mut self, key: Key<Device>) -> bool {
        let Some(grant) = self.devices.get(key).and_then(|device| device.grant.as_ref()) else { return true };
        let (wanted, held) = (grant.is_wanted(), grant.is_held());
        if wanted {
            self.want_token(key);
        }
        held
    }

    fn want_token(&mut self, key: Key<Device>) {
        if !self.told.tokens.contains(&key) {
            self.told.tokens.push(key);
        }
    }

    /// Puts the tokens that are wanted.
    pub(in crate::upstream) fn put_tokens(&mut self, hub: &str, clock: &Clock) {
        for key in std::mem::take(&mut self.told.tokens) {
            self.put_token(key, hub, clock);
        }
    }

    fn put_token(&mut self, key: Key<Device>, hub: &str, clock: &Clock) {
        if self.phase != Phase::Ready || self.closing {
            return;
        }
        let (Some(connection), Some(device)) = (&mut self.connection, self.devices.get_mut(key)) else {
            return;
        };
        let Some(grant) = &mut device.grant else { return };
        let resource = format!("{hub}/devices/{}", device.id);
        match grant.put(&resource, self.settings.token_ttl, clock) {
            Ok((token, serial)) => {
                let mut answers = Vec::new();
                let key = (key, serial);
                let put = self.cbs.put(connection, key, &resource, &token, clock.now, &mut answers);
                if let Err(full) = put {
                    // As if the hub had said it: asked again in a while.
                    answers.push(Answer { key, reply: Reply::status(429, full.to_string()) });
                }
                self.granted(answers, clock.now);
            }
            Err(rejection) => self.refuse(key, &Outcome::Rejected(rejection), clock.now),
        }
    }

    /// What the hub has said to tokens.
    pub(super) fn granted(&mut self, answers: Vec<Answer<(Key<Device>, u32)>>, now: Instant) {
        for Answer { key: (key, serial), reply } in answers {
            let Some(device) = self.devices.get_mut(key) else { continue };
            let Some(grant) = &mut device.grant else { continue };
            // Knuth's generator: renewals are to differ, nothing more.
            self.random = self.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            match grant.answered(serial, &reply, now, self.random >> 11) {
                Heard::Granted => {
                    emit(DeviceTokenAccepted { device: &device.id });
                    self.attach(key, now);
                }
                Heard::Refused(rejection) => self.refuse(key, &Outcome::Rejected(rejection), now),
                Heard::Nothing | Heard::Wanted => {}
            }
            self.tell(key, now);
        }
    }

    /// Somebody wants to know what the hub says to a device's token, before the device has sent anything.
    pub(in crate::upstream) fn ask(&mut self, key: Key<Device>, verdict: Verdict, now: Instant) {
        let Some(device) = self.devices.get_mut(key) else { return };
        device.used_at = now;
        match &mut device.grant {
            Some(grant) => grant.ask(verdict, now),
            // It is spoken for without one.
            None => return verdict.report(Outcome::Accepted),
        }
        self.attach(key, now);
    }

    fn tell(&mut self, key: Key<Device>, now: Instant) {
        if let Some(grant) = self.devices.get_mut(key).and_then(|device| device.grant.as_mut()) {
            grant.tell(now);
        }
    }

    /// The hub does not want this device: all that it has here ends, and nobody else's.
    fn refuse(&mut self, key: Key<Device>, outcome: &Outcome, now: Instant) {
        self.end_session(key, Some(not_permitted()), now);
        let Some(device) = self.devices.get_mut(key) else { return };
        if let Outcome::Rejected(rejection) = outcome {
            emit(DeviceTokenRefused { device: &device.id, rejection });
        }
        device.turn_away(outcome);
        self.tell(key, now);
    }

    /// Another source of a device's tokens.
    fn replace_source(&mut self, key: Key<Device>, source: Source) {
        if let Some(grant) = self.devices.get_mut(key).and_then(|device| device.grant.as_mut())
            && grant.replace(source)
        {
            self.want_token(key);
        }
    }

    /// Looks after the token of a device as time passes.
    pub(super) fn tend_grant(&mut self, key: Key<Device>, clock: &Clock) {
        let Some(device) = self.devices.get_mut(key) else { return };
        let Some(grant) = &mut device.grant else { return };
        let was_held = grant.is_held();
        match grant.handle_timeout(clock) {
            Heard::Wanted => {
                if was_held && !grant.is_held() {
                    // It was not renewed in time: the hub lets nothing of it live either.
                    self.end_session(key, Some(not_permitted()), clock.now);
                }
                self.want_token(key);
            }
            Heard::Refused(rejection) => self.refuse(key, &Outcome::Rejected(rejection), clock.now),
            Heard::Nothing | Heard::Granted => {}
        }
    }

    /// What is known of a device may have changed: its tokens come from `source` now, or it belongs here no longer, and
    /// what waits ends with that outcome. True if it has.
    pub(in crate::upstream) fn review(
        &mut self,
        key: Key<Device>,
        source: Result<Option<Source>, Outcome>,
        now: Instant,
    ) -> bool {
        let Some(device) = self.devices.get(key) else { return false };
        match (&device.grant, source) {
            (None, Ok(None)) => return false,
            // The same key, or the token that is there already.
            (Some(grant), Ok(Some(source))) if grant.is_of(&source) => return false,
            (Some(_), Ok(Some(source))) => self.replace_source(key, source),
            (_, Ok(_)) => self.uproot(key, &Outcome::Released, now),
            (_, Err(outcome)) => self.uproot(key, &outcome, now),
        }
        true
    }

    /// The seconds that the device's token has left which expires first.
    pub(in crate::upstream) fn seconds_left(&self, now: Instant) -> Option<u64> {
        let expiries = self.devices.iter().filter_map(|(_, device)| device.grant.as_ref()?.expires());
        expiries.min().map(|first| first.saturating_duration_since(now).as_secs())
    }
}
