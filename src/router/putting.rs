//! Tokens on shared connections: what a device puts to the gateway's `$cbs` goes to the hub's
//! over the connection that the device is on, and again over each that takes its place.
//!
//! The hub says whether a token is good; what it allows here is [`access`](super::access)'s
//! matter.

use std::time::Instant;

use fieldgate_amqp::connection::{Event, LinkId, SessionId};
use fieldgate_amqp::error::{AmqpError, Condition};
use fieldgate_amqp::performative::{Attach, Disposition, Flow, Transfer};

use crate::devices::Pass;
use crate::telemetry::emit;

use super::access::{Grant, expired};
use super::claims::{Answer, Reply, RequestKey};
use super::ends::{Device, DeviceKey, TrunkKey, TrunkKind, Way};
use super::machine::Router;
use super::proving::prove;
use super::routes::ConnectorIndex;
use super::shared::SharedDevice;
use super::telemetry::{TokenExpired, TokenPut, TokenRefused};

/// Whose token is being put, and why.
#[derive(Clone, Debug)]
pub(super) struct Put {
    device: DeviceKey,
    why: Why,
}

#[derive(Clone, Debug)]
enum Why {
    /// The device has asked for it.
    Asked(RequestKey),
    /// A connection has taken the place of the one that it was put on.
    Again(Box<Grant>),
}

/// A request of a device that the hub has not answered.
#[derive(Debug)]
pub(super) struct Asked {
    key: RequestKey,
    grant: Grant,
    trunk: TrunkKey,
    /// When waiting for a connection is over.
    until: Instant,
}

impl Put {
    /// Whether a device asked for it.
    pub(super) fn is_of(&self, device: DeviceKey) -> bool {
        self.device == device
    }
}

impl SharedDevice {
    /// The connection is gone: its tokens are put again on the next one, and those that it had not answered for wait.
    pub(super) fn wait_for_hub(&mut self, trunk: TrunkKey, until: Option<Instant>) {
        if let Some(lane) = self.lane(trunk) {
            lane.putting = 0;
            lane.again = Vec::new();
        }
        for asked in self.asked.iter_mut().filter(|asked| asked.trunk == trunk) {
            asked.until = until.map_or(asked.until, |until| until.max(asked.until));
        }
    }
}

impl Router {
    // What the device says to the node.

    pub(super) fn node_attached(
        &mut self,
        key: DeviceKey,
        link: LinkId,
        session: SessionId,
        attach: &Attach,
    ) {
        let Some(device) = self.devices.get_mut(key) else { return };
        let Some((machine, shared)) = device.machine_and_shared() else { return };
        shared.node.on_attach(machine, link, session, attach);
    }

    pub(super) fn node_flow(&mut self, key: DeviceKey, link: LinkId, flow: &Flow) {
        let Some(device) = self.devices.get_mut(key) else { return };
        let Some((machine, shared)) = device.machine_and_shared() else { return };
        shared.node.on_flow(machine, link, flow);
    }

    /// A flow of a session: its windows may have opened for answers.
    pub(super) fn session_flow(&mut self, key: DeviceKey) {
        let Some(device) = self.devices.get_mut(key) else { return };
        let Some((machine, shared)) = device.machine_and_shared() else { return };
        shared.node.send(machine);
    }

    pub(super) fn node_disposition(&mut self, key: DeviceKey, session: SessionId, disposition: &Disposition) {
        let Some(device) = self.devices.get_mut(key) else { return };
        let Some((machine, shared)) = device.machine_and_shared() else { return };
        shared.node.on_disposition(machine, session, disposition);
    }

    pub(super) fn node_detached(&mut self, key: DeviceKey, link: LinkId, closed: bool, answered: bool) {
        let Some(device) = self.devices.get_mut(key) else { return };
        let Some((machine, shared)) = device.machine_and_shared() else { return };
        if shared.node.owns(link) {
            shared.node.on_detached(machine, link, closed, answered);
        }
    }

    /// A transfer to the node. A request in it is judged, and put to the hub.
    pub(super) fn node_transfer(
        &mut self,
        key: DeviceKey,
        link: LinkId,
        delivery_id: u32,
        transfer: &Transfer,
        now: Instant,
    ) {
        let unix = self.unix;
        let Some(device) = self.devices.get_mut(key) else { return };
        let Some((machine, shared)) = device.machine_and_shared() else { return };
        let Some(request) = shared.node.on_transfer(machine, link, delivery_id, transfer) else { return };
        let judged = shared.access.judge(&request.name, &request.token_type, request.token.expose(), unix);
        let grant = match judged.and_then(|grant| prove(&self.rules, shared, grant)) {
            Ok(grant) => grant,
            Err(refusal) => {
                emit(TokenRefused { status: refusal.status, why: &refusal.description });
                return shared.node.answer(
                    machine,
                    request.key,
                    &Reply::status(refusal.status, refusal.description),
                );
            }
        };
        if !grant.is_put {
            shared.access.grant(grant);
            return shared.node.answer(machine, request.key, &Reply::status(200, "OK"));
        }
        // A hub that several connectors lead to: the one that the device is on already.
        let hubs = &self.rules.hubs;
        let mut on = shared.lanes.iter().map(|lane| lane.connector);
        let on = on.find(|&connector| hubs.of(ConnectorIndex(connector)) == grant.hub);
        let lane = self.lane(key, on.unwrap_or(grant.hub.0), now);
        match lane.and_then(|trunk| self.may_wait(trunk).map(|()| trunk)) {
            Ok(trunk) => {
                let until = self.wait_until(trunk, now);
                if let Some(shared) = self.devices.get_mut(key).and_then(Device::shared) {
                    shared.asked.push(Asked { key: request.key, grant, trunk, until });
                }
                self.put_asked(key, request.key, now);
            }
            Err(error) => {
                let why = error.description().unwrap_or_default();
                self.answer_request(key, request.key, &Reply::status(503, why));
            }
        }
    }

    // What is put to the hub.

    fn put(&mut self, trunk: TrunkKey, put: Put, grant: &Grant, now: Instant) {
        let Some(at) = self.trunks.get_mut(trunk) else { return };
        let (Some(seat), TrunkKind::Shared(shared)) = (&mut at.seat, &mut at.kind) else { return };
        let mut answers = Vec::new();
        let taken =
            shared.cbs.put(&mut seat.machine, put.clone(), &grant.name, &grant.token, now, &mut answers);
        if let Err(full) = taken {
            answers.push(Answer { key: put, reply: Reply::status(503, full.to_string()) });
        }
        seat.wake();
        self.answered(trunk, answers, now);
    }

    /// Puts a token that a device has asked for, if its connection is open.
    fn put_asked(&mut self, key: DeviceKey, request: RequestKey, now: Instant) {
        let Some(shared) = self.devices.get_mut(key).and_then(Device::shared) else { return };
        let Some(asked) = shared.asked.iter().find(|asked| asked.key == request) else { return };
        let (trunk, grant) = (asked.trunk, asked.grant.clone());
        if self.is_open(trunk) {
            self.put(trunk, Put { device: key, why: Why::Asked(request) }, &grant, now);
        }
    }

    /// Puts a token in the place of one that has not ended yet.
    pub(super) fn put_renewed(&mut self, key: DeviceKey, trunk: TrunkKey, grant: &Grant, now: Instant) {
        if self.is_open(trunk) {
            let why = Why::Again(Box::new(grant.clone()));
            self.put(trunk, Put { device: key, why }, grant, now);
        }
    }

    fn is_open(&self, trunk: TrunkKey) -> bool {
        self.trunks.get(trunk).is_some_and(|trunk| match &trunk.kind {
            TrunkKind::Shared(shared) => shared.is_open,
            _ => false,
        })
    }

    /// Puts the tokens of a device on a connection that does not know them, those it has asked for meanwhile too; then
    /// its links are attached.
    pub(super) fn put_again(&mut self, key: DeviceKey, trunk: TrunkKey, now: Instant) {
        if !self.is_open(trunk) {
            return; // Once it is.
        }
        let Some(shared) = self.devices.get_mut(key).and_then(Device::shared) else { return };
        let Some(connector) = shared.lane(trunk).map(|lane| lane.connector) else { return };
        let hub = self.rules.hubs.of(ConnectorIndex(connector));
        let grants = shared.access.grants().iter().filter(|grant| grant.hub == hub && grant.is_put);
        let grants: Vec<Grant> = grants.cloned().collect();
        let asked = shared.asked.iter().filter(|asked| asked.trunk == trunk);
        let asked: Vec<RequestKey> = asked.map(|asked| asked.key).collect();
        if let Some(lane) = shared.lane(trunk) {
            lane.putting = grants.len();
        }
        for grant in grants {
            let why = Why::Again(Box::new(grant.clone()));
            self.put(trunk, Put { device: key, why }, &grant, now);
        }
        for request in asked {
            self.put_asked(key, request, now);
        }
        self.attach_waiting(key, trunk, now);
    }

    // What the hub answers.

    /// Takes what happens on a shared connection's own links to `$cbs`.
    pub(super) fn cbs_event(&mut self, key: TrunkKey, event: Event, now: Instant) -> Option<Event> {
        let trunk = self.trunks.get_mut(key)?;
        let seat = trunk.seat.as_mut()?;
        let TrunkKind::Shared(shared) = &mut trunk.kind else { return Some(event) };
        let session = match &event {
            Event::SessionBegun { session, .. }
            | Event::SessionEnded { session, .. }
            | Event::Attached { session, .. }
            | Event::Detached { session, .. }
            | Event::Flow { session, .. }
            | Event::Transfer { session, .. }
            | Event::Disposition { session, .. } => Some(*session),
            Event::Opened(_) | Event::Closed(_) | Event::SaslInit { .. } | Event::Authenticated => None,
        };
        let is_ours = session.is_some_and(|session| shared.cbs.owns_session(session));
        if !is_ours {
            return Some(event);
        }
        let mut answers = Vec::new();
        shared.cbs.handle_event(&mut seat.machine, event, now, &mut answers);
        self.answered(key, answers, now);
        None
    }

    fn answered(&mut self, trunk: TrunkKey, answers: Vec<Answer<Put>>, now: Instant) {
        for Answer { key: Put { device, why }, reply } in answers {
            match why {
                Why::Asked(request) => self.asked_answered(device, request, &reply),
                Why::Again(grant) => self.again_answered(device, trunk, &grant, &reply, now),
            }
        }
    }

    fn asked_answered(&mut self, key: DeviceKey, request: RequestKey, reply: &Reply) {
        let Some(shared) = self.devices.get_mut(key).and_then(Device::shared) else { return };
        if let Some(at) = shared.asked.iter().position(|asked| asked.key == request) {
            let asked = shared.asked.swap_remove(at);
            emit(TokenPut { accepted: reply.is_success() });
            let registrar = self.rules.registrar.as_deref();
            let stays = |pass: &Pass| registrar.is_none_or(|registrar| registrar.may_stay(pass));
            if !asked.grant.pass.as_deref().is_none_or(stays) {
                return self.answer_request(key, request, &Reply::status(401, "the device may not stay"));
            }
            if reply.is_success() {
                shared.access.grant(asked.grant);
            }
        }
        self.answer_request(key, request, reply);
    }

    fn answer_request(&mut self, key: DeviceKey, request: RequestKey, reply: &Reply) {
        let Some(device) = self.devices.get_mut(key) else { return };
        if let Some((machine, shared)) = device.machine_and_shared() {
            shared.node.answer(machine, request, reply);
        }
        device.seat.wake();
    }

    fn again_answered(
        &mut self,
        key: DeviceKey,
        trunk: TrunkKey,
        grant: &Grant,
        reply: &Reply,
        now: Instant,
    ) {
        let Some(device) = self.devices.get_mut(key) else { return };
        let held = device.links.iter().any(|(_, end)| {
            end.trunk == trunk
                && end.shared.as_ref().is_some_and(|link| link.until.is_some_and(|until| now < until))
        });
        let Some(shared) = device.shared() else { return };
        if let (true, Reply::Status { status: 500..600, .. }) = (held, reply)
            && let Some(lane) = shared.lane(trunk)
        {
            // Not a word about the token: a hub that has just come back has much to do. The sweep tries again.
            return lane.again.push(grant.clone());
        }
        emit(TokenPut { accepted: reply.is_success() });
        if !reply.is_success() {
            shared.access.revoke(grant);
        }
        let Some(lane) = shared.lane(trunk) else { return };
        lane.putting = lane.putting.saturating_sub(1);
        let done = lane.putting == 0;
        if !reply.is_success() {
            let why = "the hub came back, and refuses the token that the link was attached with";
            let error = AmqpError::new(&Condition::UnauthorizedAccess, Some(why));
            self.detach_forbidden(key, &error);
        }
        if done {
            self.attach_waiting(key, trunk, now);
        }
    }

    // Time.

    /// Until when something new waits for a connection.
    pub(super) fn wait_until(&self, trunk: TrunkKey, now: Instant) -> Instant {
        let Some(TrunkKind::Shared(shared)) = self.trunks.get(trunk).map(|trunk| &trunk.kind) else {
            return now;
        };
        let patience = self.connectors[shared.connector].settings.patience;
        shared.hold_until.filter(|until| *until > now).unwrap_or(now + patience)
    }

    /// Ends what expired tokens allowed, and requests that have waited for too long.
    pub(super) fn expire_tokens(&mut self, now: Instant) {
        let unix = self.unix;
        for key in self.devices.keys() {
            let Some(shared) = self.devices.get_mut(key).and_then(Device::shared) else { continue };
            let late: Vec<(RequestKey, TrunkKey)> = {
                let late = shared.asked.iter().filter(|asked| asked.until <= now);
                late.map(|asked| (asked.key, asked.trunk)).collect()
            };
            let again: Vec<(TrunkKey, Vec<Grant>)> =
                shared.lanes.iter_mut().map(|lane| (lane.trunk, std::mem::take(&mut lane.again))).collect();
            let has_expired =
                shared.access.next_expiry().is_some_and(|at| at <= unix) && shared.access.expire(unix);
            for (request, trunk) in late {
                // One that is on its way to the hub has a time-out of its own.
                if !self.is_open(trunk) {
                    let reply =
                        Reply::status(503, "the hub cannot be reached now; put the token again later");
                    self.asked_answered(key, request, &reply);
                }
            }
            for (trunk, grant) in
                again.into_iter().flat_map(|(trunk, of)| of.into_iter().map(move |it| (trunk, it)))
            {
                let why = Why::Again(Box::new(grant.clone()));
                self.put(trunk, Put { device: key, why }, &grant, now);
            }
            if has_expired {
                emit(TokenExpired);
                self.detach_forbidden(key, &expired());
            }
        }
        for key in self.trunks.keys() {
            let Some(trunk) = self.trunks.get_mut(key) else { continue };
            let (Some(seat), TrunkKind::Shared(shared)) = (&mut trunk.seat, &mut trunk.kind) else {
                continue;
            };
            let mut answers = Vec::new();
            shared.cbs.handle_timeout(&mut seat.machine, now, &mut answers);
            self.answered(key, answers, now);
        }
    }

    /// Detaches the links of a device that no token of it covers any more.
    pub(super) fn detach_forbidden(&mut self, key: DeviceKey, error: &AmqpError) {
        let unix = self.unix;
        let Some(device) = self.devices.get_mut(key) else { return };
        let Way::Shared(shared) = &device.way else { return };
        let forbidden = device.links.iter().filter(|(_, end)| {
            end.shared.as_ref().is_some_and(|link| !shared.access.allows(&link.permit, unix))
        });
        let forbidden: Vec<LinkId> = forbidden.map(|(link, _)| link).collect();
        for link in forbidden {
            self.detach_both(key, link, error);
        }
    }
}
