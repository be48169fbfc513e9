//! Sessions and links: begun and attached on the other side, ended and detached there.
//!
//! ```text
//!  device ──attach──▶ gateway ──attach──▶ hub
//!  device ◀─attach─── gateway ◀─attach─── hub      the hub's answer is the device's
//!  device ──detach──▶ gateway ──detach──▶ hub
//!  device ◀─detach─── gateway ◀─detach─── hub      then the pair is forgotten
//! ```

use std::time::Instant;

use fieldgate_amqp::connection::{Half, LinkId, SessionId};
use fieldgate_amqp::error::AmqpError;
use fieldgate_amqp::performative::{Attach, Begin, Detach};

use crate::telemetry::emit;

use super::ends::{DeviceKey, DownLink, DownSession, Side, TrunkKey, TrunkKind, UpSession, Way};
use super::machine::Router;
use super::passing::reason;
use super::shared::Leaving;
use super::telemetry::{LinkRefused, LinkRouted};

impl Router {
    pub(super) fn device_session_begun(
        &mut self,
        key: DeviceKey,
        session: SessionId,
        begin: Begin,
        by_peer: bool,
    ) {
        let Self { devices, trunks, .. } = self;
        let Some(device) = devices.get_mut(key) else { return };
        match &device.way {
            Way::Shared(_) => {
                device.seat.machine.accept_begin(session);
                device.sessions.insert(session, DownSession::begun(&begin));
            }
            Way::Paired { trunk, .. } => {
                let at = *trunk;
                let Some(trunk) = trunks.get_mut(at) else { return };
                let Some(hub) = &mut trunk.seat else { return };
                if !by_peer {
                    // The device's answer to the hub's begin.
                    let up = device.sessions.get_mut(session).and_then(|session| session.up(at));
                    if let Some(up) = up.and_then(|up| up.session) {
                        hub.machine.accept_begin_as(up, &begin);
                    }
                    return;
                }
                match hub.machine.begin_as(&begin) {
                    Ok(up) => {
                        trunk.sessions.insert(up, (key, session));
                        device.sessions.insert(session, DownSession::with(UpSession::new(at, Some(up))));
                    }
                    Err(misuse) => {
                        device.seat.machine.accept_begin(session);
                        device.seat.machine.end(session, Some(reason(misuse)));
                    }
                }
            }
        }
    }

    pub(super) fn trunk_session_begun(
        &mut self,
        key: TrunkKey,
        session: SessionId,
        begin: Begin,
        by_peer: bool,
    ) {
        let Self { devices, trunks, .. } = self;
        let Some(trunk) = trunks.get_mut(key) else { return };
        let Some(hub) = &mut trunk.seat else { return };
        let TrunkKind::Paired(at) = trunk.kind else { return };
        let Some(device) = devices.get_mut(at) else { return };
        if !by_peer {
            if let Some((_, down)) = trunk.sessions.get(session) {
                device.seat.machine.accept_begin_as(*down, &begin);
            }
            return;
        }
        match device.seat.machine.begin_as(&begin) {
            Ok(down) => {
                trunk.sessions.insert(session, (at, down));
                device.sessions.insert(down, DownSession::with(UpSession::new(key, Some(session))));
            }
            Err(misuse) => {
                hub.machine.accept_begin(session);
                hub.machine.end(session, Some(reason(misuse)));
            }
        }
    }

    /// A session of a device is over: its counterparts are ended.
    pub(super) fn device_session_ended(
        &mut self,
        key: DeviceKey,
        session: SessionId,
        error: Option<AmqpError>,
    ) {
        let Self { devices, trunks, .. } = self;
        let Some(device) = devices.get_mut(key) else { return };
        let Some(down) = device.sessions.remove(session) else { return };
        let mut gone = Vec::new();
        device.links.retain(|id, link| {
            if link.session != session {
                return true;
            }
            if let (Some(peer), Some(trunk)) = (link.peer, trunks.get_mut(link.trunk)) {
                trunk.links.remove(peer);
            }
            gone.extend(link.shared.take().map(|shared| (id, shared)));
            false
        });
        for up in down.ups {
            let Some(trunk) = trunks.get_mut(up.trunk) else { continue };
            let Some(session) = up.session else { continue };
            trunk.sessions.remove(session);
            if let Some(hub) = &mut trunk.seat {
                hub.machine.end(session, error.clone());
                hub.wake();
            }
        }
        if let Way::Shared(shared) = &mut device.way {
            shared.node.on_session_ended(session);
        }
        for (link, shared) in gone {
            self.release_name(&shared, (key, link));
        }
    }

    /// A hub has ended a session. Where it is the device's only hub, the device's session has ended with its error;
    /// otherwise the links to the others go on.
    pub(super) fn trunk_session_ended(
        &mut self,
        key: TrunkKey,
        session: SessionId,
        error: Option<AmqpError>,
    ) {
        let Self { devices, trunks, .. } = self;
        let Some(trunk) = trunks.get_mut(key) else { return };
        let Some((at, down)) = trunk.sessions.remove(session) else { return };
        let Some(device) = devices.get_mut(at) else { return };
        let Some(pair) = device.sessions.get_mut(down) else { return };
        pair.ups.retain(|up| up.session != Some(session) || up.trunk != key);
        let alone = pair.ups.is_empty();
        let machine = &mut device.seat.machine;
        let mut gone = Vec::new();
        device.links.retain(|id, link| {
            if link.session != down || link.trunk != key {
                return true;
            }
            if let Some(peer) = link.peer {
                trunk.links.remove(peer);
            }
            if !alone {
                machine.detach(id, true, error.clone());
            }
            gone.extend(link.shared.take().map(|shared| (id, shared)));
            false
        });
        device.seat.wake();
        for (link, shared) in gone {
            self.release_name(&shared, (at, link));
        }
        let Some(device) = self.devices.get_mut(at) else { return };
        if alone {
            device.seat.machine.end(down, error.clone());
            self.device_session_ended(at, down, error);
        }
    }

    /// Ends a session that the router itself cannot carry on, on both sides.
    pub(super) fn end_both(&mut self, key: DeviceKey, session: SessionId, error: AmqpError) {
        if let Some(device) = self.devices.get_mut(key) {
            device.seat.machine.end(session, Some(error.clone()));
            device.seat.wake();
        }
        self.device_session_ended(key, session, Some(error));
    }

    pub(super) fn device_attached(
        &mut self,
        key: DeviceKey,
        link: LinkId,
        session: SessionId,
        attach: &Attach,
        now: Instant,
    ) {
        let Self { devices, trunks, rules, .. } = self;
        let Some(device) = devices.get_mut(key) else { return };
        let (trunk_key, admitted, claims) = match &device.way {
            Way::Shared(_) => return self.shared_attached(key, link, session, attach, now),
            Way::Paired { trunk, policy } => {
                let registrar = rules.registrar.as_deref();
                let claims = registrar.map_or(Ok(None), |registrar| policy.claims(registrar, attach));
                let (claims, admitted) = match claims {
                    Ok(claims) => (claims, policy.admit(Side::Downstream, attach)),
                    Err(error) => (None, Err(error)),
                };
                (*trunk, admitted, claims)
            }
        };
        // Nothing: the session has ended on the other side, and the end frame is on its way to the device.
        let Some(up) = device.sessions.get_mut(session).and_then(|session| session.up(trunk_key)) else {
            return;
        };
        let Some(trunk) = trunks.get_mut(trunk_key) else { return };
        let (Some(up), Some(hub)) = (up.session, &mut trunk.seat) else { return };
        let refusal = match admitted {
            Err(error) => error,
            Ok(attach) => match hub.machine.attach(up, &attach) {
                Ok(peer) => {
                    trunk.links.insert(peer, (key, link));
                    let claims = claims.map(Box::new);
                    let end = DownLink { claims, ..DownLink::new(session, trunk_key, Some(peer)) };
                    device.links.insert(link, end);
                    emit(LinkRouted { side: Side::Downstream, attach: &attach });
                    return;
                }
                Err(misuse) => reason(misuse),
            },
        };
        emit(LinkRefused { error: &refusal });
        device.seat.machine.refuse_attach(link, refusal);
    }

    /// A hub attaches a link. Only to a device whose connection it has alone: on a shared one nobody is meant.
    pub(super) fn trunk_attached(
        &mut self,
        key: TrunkKey,
        link: LinkId,
        session: SessionId,
        attach: &Attach,
    ) {
        let Self { devices, trunks, .. } = self;
        let Some(trunk) = trunks.get_mut(key) else { return };
        let Some(hub) = &mut trunk.seat else { return };
        let Some(&(at, down)) = trunk.sessions.get(session) else { return };
        let Some(device) = devices.get_mut(at) else { return };
        let Way::Paired { policy, .. } = &device.way else { return };
        let refusal = match policy.admit(Side::Upstream, attach) {
            Err(error) => error,
            Ok(attach) => match device.seat.machine.attach(down, &attach) {
                Ok(peer) => {
                    trunk.links.insert(link, (at, peer));
                    device.links.insert(peer, DownLink::new(down, key, Some(link)));
                    emit(LinkRouted { side: Side::Upstream, attach: &attach });
                    return;
                }
                Err(misuse) => reason(misuse),
            },
        };
        emit(LinkRefused { error: &refusal });
        hub.machine.refuse_attach(link, refusal);
    }

    pub(super) fn device_answered(&mut self, key: DeviceKey, link: LinkId, attach: &Attach) {
        let Self { devices, trunks, .. } = self;
        let Some(device) = devices.get_mut(key) else { return };
        let Some(end) = device.links.get(link) else { return };
        let Way::Paired { policy, .. } = &device.way else { return };
        let hub = trunks.get_mut(end.trunk).and_then(|trunk| trunk.seat.as_mut());
        if let (Some(hub), Some(peer)) = (hub, end.peer) {
            hub.machine.answer_attach(peer, &policy.answer(Side::Downstream, attach));
        }
    }

    pub(super) fn trunk_answered(&mut self, key: TrunkKey, link: LinkId, attach: &Attach) {
        let Self { devices, trunks, .. } = self;
        let Some(&(at, down)) = trunks.get_mut(key).and_then(|trunk| trunk.links.get(link)) else { return };
        let Some(device) = devices.get_mut(at) else { return };
        match &device.way {
            Way::Shared(_) => self.shared_answered(at, down, attach),
            Way::Paired { policy, .. } => {
                device.seat.machine.answer_attach(down, &policy.answer(Side::Upstream, attach));
            }
        }
    }

    pub(super) fn device_detached(&mut self, key: DeviceKey, link: LinkId, detach: &Detach, answered: bool) {
        let Self { devices, trunks, .. } = self;
        let Some(device) = devices.get_mut(key) else { return };
        let Some(end) = device.links.get(link) else {
            return self.node_detached(key, link, detach.closed(), answered);
        };
        let (session, peer) = (end.session, end.peer);
        let trunk = trunks.get_mut(end.trunk);
        if let (Some(trunk), Some(peer)) = (trunk, peer) {
            if let Some(hub) = &mut trunk.seat {
                hub.machine.detach(peer, detach.closed(), detach.error());
                hub.wake();
            }
            if !answered {
                return;
            }
            trunk.links.remove(peer);
            // The router's own detach, which the hub has not answered: the name is the hub's until it has.
            let known = trunk.seat.as_ref().and_then(|hub| hub.machine.link(peer));
            if known.is_some_and(|known| known.remote != Half::Ended)
                && let TrunkKind::Shared(line) = &mut trunk.kind
                && let Some(shared) = device.links.get_mut(link).and_then(|end| end.shared.take())
            {
                line.leaving.push(Leaving { peer, shared, who: (key, link) });
            }
        } else if !answered {
            // No hub knows of the link.
            device.seat.machine.detach(link, detach.closed(), None);
        }
        // Both have spoken: the second detach has just been passed on.
        self.forget_link(key, session, link);
    }

    pub(super) fn trunk_detached(&mut self, key: TrunkKey, link: LinkId, detach: &Detach, answered: bool) {
        let Self { devices, trunks, .. } = self;
        let Some(trunk) = trunks.get_mut(key) else { return };
        let Some(&(at, down)) = trunk.links.get(link) else { return };
        let Some(device) = devices.get_mut(at) else { return };
        device.seat.machine.detach(down, detach.closed(), detach.error());
        device.seat.wake();
        if !answered {
            return;
        }
        trunk.links.remove(link);
        if let Some(session) = device.links.get(down).map(|end| end.session) {
            self.forget_link(at, session, down);
        }
    }

    /// Detaches a link that the router itself cannot carry on, on both sides.
    pub(super) fn detach_both(&mut self, key: DeviceKey, link: LinkId, error: &AmqpError) {
        let Self { devices, trunks, .. } = self;
        let Some(device) = devices.get_mut(key) else { return };
        let Some(end) = device.links.get(link) else { return };
        device.seat.machine.detach(link, true, Some(error.clone()));
        device.seat.wake();
        let (session, peer) = (end.session, end.peer);
        match (trunks.get_mut(end.trunk).and_then(|trunk| trunk.seat.as_mut()), peer) {
            (Some(hub), Some(peer)) => {
                hub.machine.detach(peer, true, Some(error.clone()));
                hub.wake();
            }
            _ => self.forget_link(key, session, link),
        }
    }

    pub(super) fn forget_link(&mut self, key: DeviceKey, session: SessionId, link: LinkId) {
        let Some(device) = self.devices.get_mut(key) else { return };
        let end = device.links.remove(link);
        if let Some(session) = device.sessions.get_mut(session) {
            session.ups.iter_mut().for_each(|up| up.forget_link(link));
        }
        if let Some(shared) = end.and_then(|end| end.shared) {
            self.release_name(&shared, (key, link));
        }
    }
}
