//! What comes over the connection, and to whom it goes.

use std::time::Instant;

use bytes::Bytes;
use fieldgate_amqp::connection::{Event, LinkId, SessionId};
use fieldgate_amqp::error::{AmqpError, Condition};
use fieldgate_amqp::performative::{Attach, Disposition, Flow, Open, Transfer};
use fieldgate_mappings::amqp::{self, Limited};
use fieldgate_mappings::outcome::Outcome;

use crate::router::arena::Key;
use crate::telemetry::emit;
use crate::upstream::Command;
use crate::upstream::CommandId;
use crate::upstream::answer::{Answer, Limit};
use crate::upstream::device::Device;
use crate::upstream::owed::Owed;
use crate::upstream::telemetry::{CommandMapError, CommandReceived, DeviceThrottled};

use super::{Notice, Uplink};

impl Uplink {
    /// Handles one of the events that came over the connection. False if there was none.
    pub(in crate::upstream) fn handle_event(&mut self, now: Instant) -> bool {
        let Some(connection) = &mut self.connection else { return false };
        let Some(event) = connection.poll_event() else { return false };
        let session = match &event {
            Event::SessionEnded { session, .. }
            | Event::Disposition { session, .. }
            | Event::Attached { session, .. }
            | Event::Detached { session, .. }
            | Event::Transfer { session, .. }
            | Event::Flow { session, .. } => Some(*session),
            _ => None,
        };
        if let (Some(session), Some(claims)) = (session, &mut self.claims)
            && claims.owns_session(session)
        {
            let verdict = claims.handle_event(connection, event, now);
            self.judged(verdict);
            return true;
        }
        if session.is_some_and(|session| self.cbs.owns_session(session)) {
            let mut answers = Vec::new();
            self.cbs.handle_event(connection, event, now, &mut answers);
            self.granted(answers, now);
            return true;
        }
        if let Event::Attached { session, .. } | Event::Detached { session, .. } = &event {
            let device = self.sessions.get(*session).and_then(|key| self.devices.get_mut(*key));
            let shared = self.relay.as_mut().filter(|relay| relay.session == Some(*session));
            let owed = device.map(|device| &mut device.owed).or(shared.map(|relay| &mut relay.owed));
            owed.into_iter().for_each(Owed::answered);
        }
        match event {
            Event::Opened(open) => self.opened(&open),
            Event::Closed(reason) => self.notices.push(Notice::Lost(reason.to_string())),
            // A hub has nothing to begin or attach here.
            Event::SessionBegun { session, by_peer: true, .. } => {
                connection.end(session, Some(not_asked_for()));
            }
            Event::Attached { link, by_peer: true, .. } => connection.refuse_attach(link, not_asked_for()),
            Event::Attached { link, attach, .. } => self.attached(link, &attach),
            Event::Flow { link, session, flow } => self.flow(session, link, &flow),
            Event::Disposition { session, disposition } => self.disposition(session, &disposition, now),
            Event::Transfer { link, transfer, delivery_id, .. } => {
                self.transfer(link, &transfer, delivery_id);
            }
            Event::Detached { link, detach, answered, .. } => self.detached(link, &detach, answered, now),
            Event::SessionEnded { session, error } => self.session_ended(session, error.as_ref(), now),
            Event::SessionBegun { .. } | Event::SaslInit { .. } | Event::Authenticated => {}
        }
        true
    }

    fn opened(&mut self, open: &Open) {
        if let Some(relay) = &mut self.relay {
            relay.opened(open);
        }
        self.notices.push(Notice::Opened);
    }

    fn attached(&mut self, link: LinkId, attach: &Attach) {
        if let Some(shared) = self.relay.as_mut().and_then(|relay| relay.get_mut(link)) {
            return shared.on_attached(attach);
        }
        let Some(device) = self.links.get(link).and_then(|key| self.devices.get_mut(*key)) else { return };
        if let Some(connection) = &mut self.connection {
            device.attached(connection, link, attach);
        }
    }

    fn flow(&mut self, session: SessionId, link: Option<LinkId>, flow: &Flow) {
        if self.relay.as_ref().is_some_and(|relay| relay.session == Some(session)) {
            return self.shared_flow(link, flow);
        }
        let Some(key) = self.sessions.get(session).copied() else { return };
        let (Some(connection), Some(device)) = (&mut self.connection, self.devices.get_mut(key)) else {
            return;
        };
        if let Some(link) = link
            && device.flow(connection, link, flow)
        {
            self.told.draining.push(link);
        }
        // The session's window may have opened as well: that concerns all links.
        if device.could_send(connection) {
            self.stall(key);
        }
    }

    fn disposition(&mut self, session: SessionId, disposition: &Disposition, now: Instant) {
        if self.relay.as_ref().is_some_and(|relay| relay.session == Some(session)) {
            return self.shared_disposition(session, disposition, now);
        }
        let Some(key) = self.sessions.get(session).copied() else { return };
        if let (Some(connection), Some(device)) = (&mut self.connection, self.devices.get_mut(key))
            && let Some(limit) = device.disposition(connection, session, disposition, now)
        {
            self.limited(key, limit, now);
        }
    }

    fn shared_disposition(&mut self, session: SessionId, disposition: &Disposition, now: Instant) {
        let (Some(connection), Some(relay)) = (&mut self.connection, &mut self.relay) else { return };
        let mut limits = Vec::new();
        let mut settled = Vec::new();
        let devices = &mut self.devices;
        relay.unsettled.on_disposition(connection, session, disposition, |delivery| {
            let answer = Answer::new(delivery.state);
            let key = delivery.value.device;
            if let Some(device) = devices.get_mut(key) {
                device.relayed_settled(answer.outcome == Outcome::Accepted, now);
            }
            settled.push(delivery.link);
            limits.extend(answer.limit.map(|limit| (key, limit)));
            delivery.value.report(answer.outcome);
        });
        settled.into_iter().for_each(|link| relay.settled(link));
        for (key, limit) in limits {
            self.limited(key, limit, now);
        }
        self.make_way(now);
    }

    /// The hub wants less, of one or of all.
    pub(super) fn limited(&mut self, key: Key<Device>, limit: Limit, now: Instant) {
        let Some(device) = self.devices.get_mut(key) else { return };
        emit(DeviceThrottled { device: &device.id, of: limit.of, retry_after: limit.retry_after });
        match limit.of {
            Limited::Device => device.pause(limit.retry_after, now),
            Limited::Connection => {
                device.pause(limit.retry_after, now);
                self.cut_room(now);
            }
            Limited::Hub => self.told.limit = Some(limit),
        }
    }

    fn transfer(&mut self, link: LinkId, transfer: &Transfer, delivery_id: u32) {
        let Some(device) = self.links.get(link).and_then(|key| self.devices.get_mut(*key)) else { return };
        let Some(connection) = &mut self.connection else { return };
        let id = device.id.clone();
        let Some(commands) = device.commands_over(link) else { return };
        let Some(receiver) = &mut commands.receiver else { return };
        // A command above the bound has detached the link: the answer to that ends the subscription.
        let Ok(Some(delivery)) = receiver.on_transfer(connection, transfer, delivery_id) else { return };
        let settled = delivery.settled;
        // A copy, because it waits for the device: a slice would keep the worker's read buffer.
        let encoded = Bytes::copy_from_slice(&delivery.payload);
        match amqp::decode(id.clone(), commands.address.clone(), &encoded) {
            Ok(message) => {
                emit(CommandReceived { device: &id });
                let id = CommandId { attachment: commands.attachment, delivery_id, settled };
                commands.sink.command(Command { id, message });
            }
            Err(rejection) => {
                match amqp::reply(&Outcome::Rejected(rejection.clone())) {
                    _ if settled => receiver.let_go(connection),
                    Some(state) => receiver.settle(connection, delivery_id, delivery_id, &state),
                    None => {}
                }
                emit(CommandMapError { device: &id, rejection: &rejection });
            }
        }
    }
}

fn not_asked_for() -> AmqpError {
    AmqpError::new(&Condition::NotAllowed, Some("a gateway offers no nodes"))
}
