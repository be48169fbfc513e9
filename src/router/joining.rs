//! Links of devices on their way to a shared connection: who may attach, under which name, and when.

use std::time::Instant;

use fieldgate_amqp::connection::{Connection, Event, LinkId, SessionId};
use fieldgate_amqp::error::{AmqpError, Condition, Misuse};
use fieldgate_amqp::performative::{Attach, Begin, Patch};

use crate::telemetry::emit;

use super::access::{Admitted, Routed};
use super::ends::{Device, DeviceKey, DownLink, DownSession, Side, TrunkKey, TrunkKind, UpSession, Way};
use super::hold::{SharedLink, Stage};
use super::machine::Router;
use super::names::upstream_link_name;
use super::passing::reason;
use super::shared::{Leaving, Named, full};
use super::telemetry::{LinkRefused, LinkRouted, LinkStolen};

/// Links of a session that the hub may be asked for before it has said how many it takes (handle-max): one too many
/// costs the connection (AMQP 1.0 2.7.2), and with it everybody's links.
const MAX_EARLY_LINKS: usize = 8;

impl Router {
    pub(super) fn shared_attached(
        &mut self,
        key: DeviceKey,
        link: LinkId,
        session: SessionId,
        attach: &Attach,
        now: Instant,
    ) {
        let unix = self.unix;
        let Some(shared) = self.devices.get_mut(key).and_then(Device::shared) else { return };
        let refusal = match shared.access.admit(attach, unix) {
            Ok(Admitted::Cbs) => return self.node_attached(key, link, session, attach),
            Ok(Admitted::Routed(routed)) => match self.route(key, link, session, *routed, now) {
                Ok(()) => return,
                Err(error) => error,
            },
            Err(error) => error,
        };
        emit(LinkRefused { error: &refusal });
        if let Some(seat) = self.device(key) {
            seat.machine.refuse_attach(link, refusal);
        }
    }

    fn route(
        &mut self,
        key: DeviceKey,
        link: LinkId,
        session: SessionId,
        routed: Routed,
        now: Instant,
    ) -> Result<(), AmqpError> {
        let Routed { connector, attach, permit, respelled } = routed;
        let unix = self.unix;
        let trunk = self.lane(key, connector.0, now)?;
        self.may_wait(trunk)?;
        let Some(shared) = self.devices.get_mut(key).and_then(Device::shared) else { return Ok(()) };
        // Who the device has proved to be: by its connection, or by the token that this link stands on.
        let grant = shared.access.grant_of(&permit, unix).map(|grant| grant.scope.as_str());
        let identity = shared.identity.as_deref().or(grant).map(Box::<str>::from);
        let name = upstream_link_name(identity.as_deref(), &shared.container, attach.name(), attach.role());
        let name = self.claim_name(connector.0, name, identity.is_some(), (key, link));
        let attach = attach
            .composite()
            .patched(&[(Attach::NAME, Patch::Str(&name))])
            .and_then(Attach::try_from)
            .map_err(|_| full("the attach is too large"))?;
        let kept = SharedLink::new(connector.0, &attach, permit, respelled);
        let Some(device) = self.devices.get_mut(key) else { return Ok(()) };
        device
            .links
            .insert(link, DownLink { shared: Some(Box::new(kept)), ..DownLink::new(session, trunk, None) });
        self.attach_up(key, link, now);
        Ok(())
    }

    /// Takes the name of a link toward a hub. Where the same device has it already, the old link is finished first:
    /// the new one waits for that. Where another device has it, or one that has proved nothing, both
    /// go on under different names.
    fn claim_name(
        &mut self,
        connector: usize,
        name: String,
        proved: bool,
        who: (DeviceKey, LinkId),
    ) -> Box<str> {
        let names = &mut self.connectors[connector].names;
        let name: Box<str> = name.into();
        let Some(named) = names.get_mut(&name) else {
            names.insert(name.clone(), Named { owner: who, next: None, number: 1 });
            return name;
        };
        if proved && named.next.is_none() {
            named.next = Some(who);
            let (device, link) = named.owner;
            emit(LinkStolen { name: &name });
            let stolen =
                AmqpError::new(&Condition::Stolen, Some("the same device has attached this link again"));
            self.detach_both(device, link, &stolen);
            return name;
        }
        loop {
            let number = names.get_mut(&name).map_or(1, |named| {
                named.number = named.number.wrapping_add(1);
                named.number
            });
            let other: Box<str> = format!("{name}~{number}").into();
            if !names.contains_key(&other) {
                names.insert(other.clone(), Named { owner: who, next: None, number: 1 });
                return other;
            }
        }
    }

    /// A link is gone: its name is free, or handed to who waits for it.
    pub(super) fn release_name(&mut self, shared: &SharedLink, who: (DeviceKey, LinkId)) {
        let Some(attach) = shared.attach() else { return };
        let connector = &mut self.connectors[shared.connector];
        let Some(named) = connector.names.get_mut(attach.name()) else { return };
        if named.next == Some(who) {
            named.next = None;
        } else if named.owner == who {
            match named.next.take() {
                Some(next) => {
                    named.owner = next;
                    self.freed.push(next);
                }
                None => drop(connector.names.remove(attach.name())),
            }
        }
    }

    /// Frees the names of links that the hub has let go as well, or whose connection is over.
    pub(super) fn release_left(&mut self, key: TrunkKey) {
        let Some(trunk) = self.trunks.get_mut(key) else { return };
        let (seat, TrunkKind::Shared(line)) = (&trunk.seat, &mut trunk.kind) else { return };
        let is_left =
            |left: &mut Leaving| seat.as_ref().is_none_or(|hub| hub.machine.link(left.peer).is_none());
        let left: Vec<Leaving> = line.leaving.extract_if(.., is_left).collect();
        for Leaving { shared, who, .. } in left {
            self.release_name(&shared, who);
        }
    }

    /// Attaches a link that waits, if its connection is ready for it.
    pub(super) fn attach_up(&mut self, key: DeviceKey, link: LinkId, now: Instant) {
        let owner = self.owns_name(key, link);
        let end = self.devices.get(key).and_then(|device| device.links.get(link));
        let Some((session, at)) = end.map(|end| (end.session, end.trunk)) else { return };
        let until = self.wait_until(at, now);
        let may_begin = self.may_begin(key, session, at);
        let Self { devices, trunks, .. } = self;
        let Some(device) = devices.get_mut(key) else { return };
        let Some(end) = device.links.get_mut(link) else { return };
        let (None, Some(shared)) = (end.peer, &mut end.shared) else { return };
        let Way::Shared(of) = &mut device.way else { return };
        let putting = of.lane(at).is_some_and(|lane| lane.putting > 0);
        let Some(trunk) = trunks.get_mut(at) else { return };
        let TrunkKind::Shared(line) = &mut trunk.kind else { return };
        shared.until.get_or_insert(until);
        let (true, false, true, Some(seat)) = (line.is_open, putting, owner, &mut trunk.seat) else { return };
        let hub = &mut seat.machine;
        // The counterpart of the session, begun now where there is none.
        let Some(down) = device.sessions.get_mut(session) else { return };
        let begin = down.begin();
        let up = match down.up(at) {
            Some(UpSession { session: Some(up), begun, .. }) => {
                if !*begun && hub.session_links(*up).nth(MAX_EARLY_LINKS - 1).is_some() {
                    return; // Until the session is begun.
                }
                Ok(*up)
            }
            _ if !may_begin => Err(Misuse::NoChannel),
            Some(up) => begin_up(hub, begin).inspect(|begun| {
                up.session = Some(*begun);
                up.begun = false;
            }),
            None => begin_up(hub, begin).inspect(|begun| down.ups.push(UpSession::new(at, Some(*begun)))),
        };
        let count = device.seat.machine.link(link).map_or(0, |link| link.delivery_count);
        let attached = up.and_then(|up| {
            trunk.sessions.insert(up, (key, session));
            let attach = shared.attach_now(count).ok_or(Misuse::FrameTooLarge)?;
            let peer = hub.attach(up, &attach)?;
            Ok((attach, peer))
        });
        match attached {
            Ok((attach, peer)) => {
                trunk.links.insert(peer, (key, link));
                end.peer = Some(peer);
                if shared.stage == Stage::Waiting {
                    // However long the hub takes for its answer is between it and the device.
                    shared.until = None;
                    shared.stage = Stage::Attaching;
                    emit(LinkRouted { side: Side::Downstream, attach: &attach });
                    Self::pass_early_credit(&device.seat.machine, link, hub, peer);
                } else {
                    shared.stage = Stage::Reattaching;
                }
                seat.wake();
            }
            Err(misuse) => {
                let refusal = reason(misuse);
                emit(LinkRefused { error: &refusal });
                device.seat.machine.detach(link, true, Some(refusal));
                device.seat.wake();
                self.forget_link(key, session, link);
            }
        }
    }

    /// Whether a session of a device may be begun on a trunk. Each takes one of the channels that all devices there
    /// share: those that it may take to the last for its first session are not all there for its others.
    fn may_begin(&self, key: DeviceKey, session: SessionId, at: TrunkKey) -> bool {
        let (Some(device), Some(trunk)) = (self.devices.get(key), self.trunks.get(at)) else { return false };
        let (Some(seat), TrunkKind::Shared(line)) = (&trunk.seat, &trunk.kind) else { return true };
        let is_on = |down: &DownSession| down.ups.iter().any(|up| up.trunk == at && up.session.is_some());
        if !device.sessions.iter().any(|(of, down)| of != session && is_on(down)) {
            return true;
        }
        let channels = usize::from(seat.machine.channel_max()) + 1;
        let kept = self.connectors[line.connector].settings.devices_per_connection.min(channels / 2);
        seat.machine.sessions() < channels - kept
    }

    /// Whether a link may go by its name: another that had it is finished.
    fn owns_name(&self, key: DeviceKey, link: LinkId) -> bool {
        let end = self.devices.get(key).and_then(|device| device.links.get(link));
        let Some(shared) = end.and_then(|end| end.shared.as_ref()) else { return false };
        let Some(attach) = shared.attach() else { return false };
        let named = self.connectors[shared.connector].names.get(attach.name());
        named.is_some_and(|named| named.owner == (key, link))
    }

    /// What happens on a shared connection and is no device's.
    pub(super) fn shared_trunk_event(&mut self, key: TrunkKey, event: Event, now: Instant) -> Option<Event> {
        let event = self.cbs_event(key, event, now)?;
        let trunk = self.trunks.get_mut(key)?;
        let seat = trunk.seat.as_mut()?;
        let not_asked_for =
            || AmqpError::new(&Condition::NotAllowed, Some("a gateway offers no nodes of its own"));
        match event {
            Event::SessionBegun { session, by_peer: true, .. } => {
                seat.machine.accept_begin(session);
                seat.machine.end(session, Some(not_asked_for()));
                None
            }
            Event::SessionBegun { session, .. } => {
                let &(device, down) = trunk.sessions.get(session)?;
                let down = self.devices.get_mut(device)?.sessions.get_mut(down)?;
                down.up(key)?.begun = true;
                self.attach_waiting(device, key, now);
                None
            }
            Event::Attached { link, by_peer: true, .. } => {
                seat.machine.refuse_attach(link, not_asked_for());
                None
            }
            event => Some(event),
        }
    }
}

fn begin_up(hub: &mut Connection, begin: Option<Begin>) -> Result<SessionId, Misuse> {
    match begin {
        Some(begin) => hub.begin_as(&begin),
        None => hub.begin(),
    }
}
