//! Sessions and links of the devices: begun and attached when they are needed, let go when they
//! are not, and what becomes of messages when the hub ends them.

use std::time::Instant;

use fieldgate_amqp::connection::{LinkId, SessionId};
use fieldgate_amqp::error::{AmqpError, Condition, Misuse};
use fieldgate_amqp::performative::Detach;
use fieldgate_mappings::amqp;
use fieldgate_mappings::outcome::{Outcome, Reason, Rejection};

use crate::router::arena::Key;
use crate::telemetry::emit;
use crate::upstream::answer::Limit;
use crate::upstream::device::Device;
use crate::upstream::grant::Clock;
use crate::upstream::telemetry::{DeviceLinkLost, DeviceSessionLost, SharedSessionLost};

use super::{ANSWER_TIME_OUT, Notice, Phase, Uplink};

impl Uplink {
    /// Attaches the links that a device needs and does not have.
    pub(super) fn attach(&mut self, key: Key<Device>, now: Instant) {
        if self.phase != Phase::Ready || self.closing || !self.is_granted(key) {
            return;
        }
        if self.relay.is_some() {
            self.join_all(key, now);
        }
        let (Some(connection), Some(device)) = (&mut self.connection, self.devices.get_mut(key)) else {
            return;
        };
        let relays = self.relay.is_some();
        if device.crowded_out || !device.lacks_a_link(relays) {
            return;
        }
        let is_full = self.sessions.len() + self.ending.len() >= self.room;
        let attached = if device.session.is_none() && is_full {
            Err(Misuse::NoChannel)
        } else {
            let links = &mut self.links;
            let prefix = &self.settings.address_prefix;
            let attached = device.attach(connection, prefix, relays, |link| links.insert(link, key));
            if let Some(session) = device.session {
                self.sessions.insert(session, key);
            }
            attached
        };
        let Err(misuse) = attached else { return };
        tracing::debug!(device = %device.id, %misuse, "no room for a device's links");
        if let Misuse::NoChannel | Misuse::NoHandle = misuse {
            device.crowded_out = true;
            self.crowded_out.push_back(key);
        }
        match misuse {
            Misuse::NoChannel => self.make_room(now),
            // The hub wants fewer links of a session than the device has addresses.
            Misuse::NoHandle => {
                if let Some(idle) = device.recycle() {
                    self.links.remove(idle);
                    connection.detach(idle, true, None);
                }
            }
            _ => {}
        }
    }

    /// Attaches all links that are needed and not there.
    pub(super) fn attach_missing(&mut self, now: Instant) {
        if self.phase != Phase::Ready {
            return;
        }
        let relays = self.relay.is_some();
        let lacks = |device: &Device| {
            let has_to_wait = relays && !device.queued && device.is_in_no_line();
            device.lacks_a_link(relays) || device.is_asked() || has_to_wait
        };
        let lacking = self.devices.iter().filter(|(_, device)| lacks(device));
        let lacking: Vec<Key<Device>> = lacking.map(|(key, _)| key).collect();
        for key in lacking {
            self.attach(key, now);
        }
    }

    /// A channel or a handle is free: whoever waits for one tries again, in turn.
    pub(super) fn serve_crowded_out(&mut self, now: Instant) {
        for _ in 0..self.crowded_out.len() {
            let Some(key) = self.crowded_out.pop_front() else { return };
            let Some(device) = self.devices.get_mut(key) else { continue };
            device.crowded_out = false;
            let has_session = device.session.is_some();
            self.attach(key, now);
            let left_out = self.devices.get(key).is_some_and(|device| device.crowded_out);
            if left_out && !has_session {
                return; // There is no channel for the others either.
            }
        }
    }

    /// Ends the sessions that were idle for longest, as many as devices wait for one.
    fn make_room(&mut self, now: Instant) {
        let wanted = self.crowded_out.len().saturating_sub(self.ending.len());
        if wanted == 0 {
            return;
        }
        let idle = self.devices.iter().filter(|(_, device)| device.is_idle() && device.session.is_some());
        let mut idle: Vec<_> = idle.map(|(key, device)| (device.used_at, key)).collect();
        idle.sort_unstable_by_key(|(used_at, _)| *used_at);
        for (_, key) in idle.into_iter().take(wanted) {
            self.forget(key, now);
        }
    }

    /// Ends an idle device's session, and forgets it.
    fn forget(&mut self, key: Key<Device>, now: Instant) {
        self.end_session(key, None, now);
        if let Some(device) = self.devices.remove(key) {
            self.told.forgotten.push(device.id);
            self.note_empty(now);
        }
    }

    /// Ends a device's session: what was sent is unknown, what waits goes on waiting.
    pub(super) fn end_session(&mut self, key: Key<Device>, error: Option<AmqpError>, now: Instant) {
        let Some(device) = self.devices.get_mut(key) else { return };
        device.links().for_each(|link| _ = self.links.remove(link));
        if let (Some(session), Some(connection)) = (device.session, &mut self.connection) {
            self.sessions.remove(session);
            self.ending.insert(session, now);
            connection.end(session, error);
        }
        device.lose_session();
    }

    /// Looks all devices through for what has taken too long.
    pub(in crate::upstream) fn handle_timeout(&mut self, clock: &Clock) {
        let now = clock.now;
        if let (Some(claims), Some(connection)) = (&mut self.claims, &mut self.connection) {
            let verdict = claims.handle_timeout(connection, now);
            self.judged(verdict);
        }
        if let Some(connection) = &mut self.connection {
            let mut answers = Vec::new();
            self.cbs.handle_timeout(connection, now, &mut answers);
            self.granted(answers, now);
        }
        if self.is_shared_silent(now) || self.is_shared_owed(now) {
            self.end_shared(Some(silence()), now);
            emit(SharedSessionLost { error: None });
        }
        for key in self.devices.keys() {
            self.tend(key, clock);
        }
        self.raise_room(now);
        if self.ending.iter().any(|(_, since)| now >= *since + ANSWER_TIME_OUT) {
            // Its channel would be lost to us for ever.
            self.notices.push(Notice::Lost(String::from("the hub does not answer the end of a session")));
        }
        self.make_room(now);
        self.make_way(now);
        self.serve_crowded_out(now);
        self.make_turns(now);
        self.attach_missing(now);
    }

    fn tend(&mut self, key: Key<Device>, clock: &Clock) {
        let now = clock.now;
        let Some(device) = self.devices.get_mut(key) else { return };
        device.release_waiting(|patience| patience.until <= now);
        let silent = device.oldest_sent().is_some_and(|sent_at| now >= sent_at + ANSWER_TIME_OUT)
            || device.owed.is_late(self.connection.as_ref(), device.session, now);
        let idle = device.is_idle() && now >= device.used_at + self.settings.idle;
        let resumes = device.ends_pause(now) && device.waits();
        if silent {
            // A hub that does not answer for a message or a link is asked for nothing more over this session; what it was sent
            // is unknown. With an error, so that what the session's window still holds back goes nowhere: its senders
            // go on without it.
            emit(DeviceSessionLost { device: &device.id, error: None });
            self.end_session(key, Some(silence()), now);
        } else if idle || device.session.is_none() && device.is_forgettable(now) {
            return self.forget(key, now);
        } else if now >= device.used_at + REST {
            device.rest();
        }
        if resumes {
            match self.relay {
                Some(_) => self.join_all(key, now),
                None => self.stall(key),
            }
        }
        self.tend_grant(key, clock);
    }

    /// The hub has detached a link, or answered our detach.
    pub(super) fn detached(&mut self, link: LinkId, detach: &Detach, answered: bool, now: Instant) {
        if let (false, Some(connection)) = (answered, &mut self.connection) {
            connection.detach(link, true, None);
        }
        let error = detach.error();
        if !self.shared_detached(link, error.as_ref(), now)
            && let Some(key) = self.links.remove(link)
            && let Some(device) = self.devices.get_mut(key).filter(|device| device.uses(link))
        {
            emit(DeviceLinkLost { device: &device.id, error: error.as_ref() });
            if takes_back(device, error.as_ref(), now) {
                // Its other links live by the same token. What waits, waits for the hub's word on that.
                self.end_session(key, Some(not_permitted()), now);
                return self.attach(key, now);
            }
            device.lose_link(link, &error.as_ref().map_or(Outcome::Released, amqp::refusal));
            if let Some(limit) = error.as_ref().and_then(Limit::new) {
                self.limited(key, limit, now);
            }
        }
        self.serve_crowded_out(now);
    }

    /// A session is over: by the hub, or because it has answered our end.
    pub(super) fn session_ended(&mut self, session: SessionId, error: Option<&AmqpError>, now: Instant) {
        self.ending.remove(session);
        if self.relay.as_ref().is_some_and(|relay| relay.session == Some(session)) {
            emit(SharedSessionLost { error });
            self.lose_shared(now);
        }
        if let Some(key) = self.sessions.remove(session)
            && let Some(device) = self.devices.get_mut(key).filter(|device| device.session == Some(session))
        {
            emit(DeviceSessionLost { device: &device.id, error });
            device.links().for_each(|link| _ = self.links.remove(link));
            device.lose_session();
            match self.relay {
                _ if takes_back(device, error, now) => self.attach(key, now),
                // What waits would only meet the same end at once; its senders may try again. It waits for a shared
                // link that has nothing to do with this.
                Some(_) => device.end_commands(&Outcome::Released),
                None => device.turn_away(&Outcome::Released),
            }
            if let Some(limit) = error.and_then(Limit::new) {
                self.limited(key, limit, now);
            }
        }
        self.serve_crowded_out(now);
    }
}

/// A device that was of no use for so long gives memory back that only a busy one needs.
const REST: std::time::Duration = std::time::Duration::from_secs(2);

/// Whether the hub has taken back what the device may do by its token, and is to be shown that again: then this is no
/// answer to what waits.
fn takes_back(device: &mut Device, error: Option<&AmqpError>, now: Instant) -> bool {
    let is_claim = matches!(
        error.map(amqp::refusal),
        Some(Outcome::Rejected(Rejection { reason: Reason::Credentials | Reason::NotPermitted, .. }))
    );
    is_claim && device.grant.as_mut().is_some_and(|grant| grant.taken_back(now))
}

/// For a session of a device that may not have it any more. What its window still holds back goes nowhere.
pub(super) fn not_permitted() -> AmqpError {
    AmqpError::new(&Condition::UnauthorizedAccess, Some("the device has no leave for this session any more"))
}

fn silence() -> AmqpError {
    AmqpError::new(&Condition::ResourceLimitExceeded, Some("no answer in time"))
}
