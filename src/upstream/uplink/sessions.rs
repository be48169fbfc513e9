//! Sessions and links of the devices: begun and attached when they are needed, let go when they
//! are not, and what becomes of messages when the hub ends them.

use std::time::Instant;

use fieldgate_amqp::connection::{LinkId, SessionId};
use fieldgate_amqp::error::{AmqpError, Condition, Misuse};
use fieldgate_amqp::performative::Detach;
use fieldgate_mappings::address::DeviceId;
use fieldgate_mappings::amqp;
use fieldgate_mappings::outcome::Outcome;

use crate::telemetry::emit;
use crate::upstream::device::Device;
use crate::upstream::telemetry::{DeviceLinkLost, DeviceSessionLost};

use super::{ANSWER_TIME_OUT, IDLE_SESSION, Notice, Phase, Uplink};

impl Uplink {
    /// Attaches the links that a device needs and does not have.
    pub(super) fn attach(&mut self, id: &DeviceId, now: Instant) {
        if self.phase != Phase::Ready || self.closing {
            return;
        }
        let (Some(connection), Some(device)) = (&mut self.connection, self.devices.get_mut(id)) else {
            return;
        };
        if device.crowded_out {
            return;
        }
        let links = &mut self.links;
        let attached = device.attach(connection, |link| links.insert(link, id.clone()));
        if let Some(session) = device.session {
            self.sessions.insert(session, id.clone());
        }
        let Err(misuse) = attached else { return };
        tracing::debug!(device = %id, %misuse, "no room for a device's links");
        if let Misuse::NoChannel | Misuse::NoHandle = misuse {
            device.crowded_out = true;
            self.crowded_out.push_back(id.clone());
        }
        if misuse == Misuse::NoChannel {
            self.make_room(now);
        }
    }

    /// Attaches all links that are needed and not there.
    pub(super) fn attach_missing(&mut self, now: Instant) {
        if self.phase != Phase::Ready {
            return;
        }
        let lacking = self.devices.iter().filter(|(_, device)| device.lacks_a_link());
        let lacking: Vec<DeviceId> = lacking.map(|(id, _)| id.clone()).collect();
        for id in lacking {
            self.attach(&id, now);
        }
    }

    /// A channel or a handle is free: whoever waits for one tries again, in turn.
    fn serve_crowded_out(&mut self, now: Instant) {
        for _ in 0..self.crowded_out.len() {
            let Some(id) = self.crowded_out.pop_front() else { return };
            let Some(device) = self.devices.get_mut(&id) else { continue };
            device.crowded_out = false;
            if !device.lacks_a_link() {
                continue;
            }
            let has_session = device.session.is_some();
            self.attach(&id, now);
            let left_out = self.devices.get(&id).is_some_and(|device| device.crowded_out);
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
        let mut idle: Vec<_> = idle.map(|(id, device)| (device.used_at, id.clone())).collect();
        idle.sort_unstable_by_key(|(used_at, _)| *used_at);
        for (_, id) in idle.into_iter().take(wanted) {
            if let Some(mut device) = self.devices.remove(&id) {
                self.end_session(&mut device, None, now);
            }
        }
    }

    fn end_session(&mut self, device: &mut Device, error: Option<AmqpError>, now: Instant) {
        device.links().for_each(|link| drop(self.links.remove(link)));
        if let (Some(session), Some(connection)) = (device.session, &mut self.connection) {
            self.sessions.remove(session);
            self.ending.insert(session, now);
            connection.end(session, error);
        }
        device.lose_session();
    }

    /// Looks all devices through for what has taken too long.
    pub(super) fn sweep(&mut self, now: Instant) {
        let mut devices = std::mem::take(&mut self.devices);
        devices.retain(|id, device| {
            device.release_waiting(|patience| patience.until <= now);
            let silent = device.oldest_sent().is_some_and(|sent_at| now >= sent_at + ANSWER_TIME_OUT);
            let idle = device.is_idle() && now >= device.used_at + IDLE_SESSION;
            if silent {
                // A hub that does not answer for a message is asked for nothing more over this session; what it
                // was sent is unknown. With an error, so that what the session's window still holds back goes
                // nowhere: its senders go on without it.
                let why = "no answer for a message";
                let error = AmqpError::new(&Condition::ResourceLimitExceeded, Some(why));
                self.end_session(device, Some(error), now);
                emit(DeviceSessionLost { device: id, error: None });
            } else if idle {
                self.end_session(device, None, now);
            }
            !(device.is_idle() && device.session.is_none())
        });
        self.devices = devices;
        if self.ending.iter().any(|(_, since)| now >= *since + ANSWER_TIME_OUT) {
            // Its channel would be lost to us for ever.
            self.notices.push(Notice::Lost(String::from("the hub does not answer the end of a session")));
        }
        self.make_room(now);
        self.attach_missing(now);
        self.serve_stalled(now);
    }

    /// The hub has detached a link, or answered our detach.
    pub(super) fn detached(&mut self, link: LinkId, detach: &Detach, answered: bool, now: Instant) {
        if let (false, Some(connection)) = (answered, &mut self.connection) {
            connection.detach(link, true, None);
        }
        if let Some(id) = self.links.remove(link)
            && let Some(device) = self.devices.get_mut(&id).filter(|device| device.uses(link))
        {
            let error = detach.error();
            emit(DeviceLinkLost { device: &id, error: error.as_ref() });
            device.lose_link(link, &error.as_ref().map_or(Outcome::Released, amqp::refusal));
        }
        self.serve_crowded_out(now);
    }

    /// A session is over: by the hub, or because it has answered our end.
    pub(super) fn session_ended(&mut self, session: SessionId, error: Option<&AmqpError>, now: Instant) {
        self.ending.remove(session);
        if let Some(id) = self.sessions.remove(session)
            && let Some(device) = self.devices.get_mut(&id).filter(|device| device.session == Some(session))
        {
            emit(DeviceSessionLost { device: &id, error });
            device.links().for_each(|link| drop(self.links.remove(link)));
            device.lose_session();
            // What waits would only meet the same end at once; its senders may try again.
            device.turn_away();
        }
        self.serve_crowded_out(now);
    }
}
