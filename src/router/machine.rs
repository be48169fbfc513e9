//! The router of one worker: its devices' connections, its connections to hubs, and who is
//! told what happened on which.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

use fieldgate_amqp::connection::{CloseReason, Connection, Event, LinkId};
use fieldgate_amqp::error::{AmqpError, Condition};
use fieldgate_amqp::performative::Open;

use crate::table::Table;

use super::access::Rules;
use super::arena::Arena;
use super::deliveries::Run;
use super::ends::{ConnectorSettings, Device, DeviceInfo, DeviceKey, Trunk, TrunkKey, TrunkKind, Way};
use super::policy::Policy;
use super::seat::{MAX_BACKLOG_BYTES, Seat};
use super::shared::{Connector, SharedDevice};

/// How often what waits is looked through.
const SWEEP: Duration = Duration::from_secs(1);

/// The router.
#[derive(Debug)]
pub(crate) struct Router {
    pub(super) devices: Arena<Device>,
    pub(super) trunks: Arena<Trunk>,
    pub(super) connectors: Vec<Connector>,
    /// Trunks that need somebody who connects them.
    pub(super) wanted: VecDeque<(TrunkKey, usize)>,
    pub(super) draining: bool,
    /// Seconds since 1970, as they were told last.
    pub(super) unix: u64,
    pub(super) rules: Arc<Rules>,
    /// Links whose name toward the hub is free now.
    pub(super) freed: Vec<(DeviceKey, LinkId)>,
    /// When waiting links, tokens and idle connections are looked through.
    pub(super) sweep_at: Option<Instant>,
    pub(super) runs: Vec<Run>,
}

/// How far the events of a connection were handled.
pub(super) enum Heard {
    /// All of them.
    All,
    /// Up to this one, which is rarer.
    Rare(Event),
    /// Until the other side takes no more.
    Full,
}

impl Router {
    /// A router without connections, for the hubs that devices share connections to.
    pub(crate) fn new(connectors: Vec<ConnectorSettings>, rules: Arc<Rules>, unix: u64) -> Self {
        Self {
            devices: Arena::default(),
            trunks: Arena::default(),
            connectors: connectors.into_iter().map(Connector::new).collect(),
            wanted: VecDeque::new(),
            draining: false,
            unix,
            rules,
            freed: Vec::new(),
            sweep_at: None,
            runs: Vec::new(),
        }
    }

    /// Adds a device and the hub connection that is its alone. The device's `open` has come and is not answered:
    /// the hub's will be the answer.
    pub(crate) fn add_pair(
        &mut self,
        device: Connection,
        trunk: Connection,
        policy: Policy,
        max_unsettled: usize,
        now: Instant,
    ) -> (DeviceKey, TrunkKey) {
        if policy.pass().is_some() {
            // It may end.
            self.sweep_at.get_or_insert(now + SWEEP);
        }
        let trunk = Trunk {
            seat: Some(Seat::new(trunk)),
            sessions: Table::default(),
            links: Table::default(),
            // Set right below: each of the two needs the other's key.
            kind: TrunkKind::Unowned,
        };
        let trunk = self.trunks.insert(trunk);
        let device = Device {
            seat: Seat::new(device),
            sessions: Table::default(),
            links: Table::default(),
            max_unsettled,
            way: Way::Paired { trunk, policy: Box::new(policy) },
        };
        let device = self.devices.insert(device);
        if let Some(trunk) = self.trunks.get_mut(trunk) {
            trunk.kind = TrunkKind::Paired(device);
        }
        (device, trunk)
    }

    /// Adds a device that shares its hub connections with others. Its `open` has come, and is answered here.
    pub(crate) fn add_device(
        &mut self,
        mut machine: Connection,
        info: DeviceInfo,
        now: Instant,
        unix: u64,
    ) -> DeviceKey {
        self.unix = unix;
        let max_unsettled = info.max_unsettled;
        let answer = machine.config().open();
        machine.open(answer);
        let way = Way::Shared(Box::new(SharedDevice::new(info, Arc::clone(&self.rules))));
        self.sweep_at.get_or_insert(now + SWEEP);
        let (sessions, links) = (Table::default(), Table::default());
        self.devices.insert(Device { seat: Seat::new(machine), sessions, links, max_unsettled, way })
    }

    /// A device's connection.
    pub(crate) fn device(&mut self, key: DeviceKey) -> Option<&mut Seat> {
        self.devices.get_mut(key).map(|device| &mut device.seat)
    }

    /// A hub connection, while there is one.
    pub(crate) fn trunk(&mut self, key: TrunkKey) -> Option<&mut Seat> {
        self.trunks.get_mut(key)?.seat.as_mut()
    }

    /// Notes that a device's task sleeps until there is something to write, or to read again.
    pub(crate) fn park_device(&mut self, key: DeviceKey, cx: &Context<'_>) {
        if let Some(seat) = self.device(key) {
            seat.park(cx);
        }
    }

    /// As [`park_device`](Self::park_device), for the task of a hub connection.
    pub(crate) fn park_trunk(&mut self, key: TrunkKey, cx: &Context<'_>) {
        if let Some(seat) = self.trunk(key) {
            seat.park(cx);
        }
    }

    /// Notes that the task of a device and the hub connection that is its alone is awake.
    pub(crate) fn unpark_pair(&mut self, device: DeviceKey, trunk: TrunkKey) {
        self.device(device).into_iter().for_each(Seat::unpark);
        self.trunk(trunk).into_iter().for_each(Seat::unpark);
    }

    /// Handles what came from a device, as far as the other side takes it.
    pub(crate) fn handle_device(&mut self, key: DeviceKey, now: Instant) {
        let all = loop {
            if !self.hears_device(key) {
                break false;
            }
            match self.pass_from_device(key) {
                Heard::All => break true,
                Heard::Full => break false,
                Heard::Rare(event) => self.device_event(key, event, now),
            }
        };
        if all && self.devices.get(key).is_some_and(|device| device.seat.finished) {
            self.device_left(key);
        }
        self.attach_freed(now);
        self.wake_trunks_of(key);
        self.resume_windows(key);
    }

    /// Handles what came from a hub.
    pub(crate) fn handle_trunk(&mut self, key: TrunkKey, now: Instant) {
        let all = loop {
            if !self.hears_trunk(key) {
                break false;
            }
            match self.pass_from_trunk(key) {
                Heard::All => break true,
                Heard::Full => break false,
                Heard::Rare(event) => self.trunk_event(key, event, now),
            }
        };
        if let (true, Some(trunk)) = (all, self.trunks.get_mut(key))
            && trunk.seat.as_ref().is_some_and(|seat| seat.finished)
            && let TrunkKind::Paired(device) = trunk.kind
        {
            // A stream that ended without a close: the device is told behind what came before.
            if let Some(seat) = self.device(device) {
                seat.machine.close(Some(forced("the connection to the hub was lost")));
            }
        }
        self.attach_freed(now);
        self.serve_waiting(key);
    }

    /// Links whose name toward the hub has become free are attached.
    fn attach_freed(&mut self, now: Instant) {
        while let Some((key, link)) = self.freed.pop() {
            self.attach_up(key, link, now);
        }
    }

    // Time.

    /// When [`handle_timeout`](Self::handle_timeout) is to be called.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.sweep_at
    }

    /// Lets time pass; `unix` is the time of the wall clock, in seconds since 1970.
    pub(crate) fn handle_timeout(&mut self, now: Instant, unix: u64) {
        self.unix = unix;
        if self.sweep_at.is_none_or(|at| now < at) {
            return;
        }
        self.expire_tokens(now);
        self.see_to_own(now);
        self.end_waiting(now);
        self.close_idle_trunks(now);
        self.attach_freed(now);
        for key in self.devices.keys() {
            let sessions =
                self.devices.get_mut(key).into_iter().flat_map(|device| device.sessions.iter_mut());
            for up in sessions.flat_map(|(_, session)| &mut session.ups) {
                up.up.rest();
                up.down.rest();
            }
        }
        let more = !self.devices.is_empty() || !self.trunks.is_empty();
        self.sweep_at = more.then(|| now + SWEEP);
    }

    /// Forgets a shared connection, once nobody makes it any more.
    pub(crate) fn remove_trunk(&mut self, key: TrunkKey) {
        self.trunks.remove(key);
    }

    /// Whether what comes from a device may be passed on now.
    ///
    /// A peer that does not take what it is sent, be it the stream or a session's window that is shut, holds the
    /// other one back, and not the memory. Where both hold each other back by their windows, both are heard: only so
    /// can a window open.
    pub(crate) fn hears_device(&mut self, key: DeviceKey) -> bool {
        let Some(device) = self.devices.get(key) else { return false };
        if !device.seat.machine.is_open() {
            // Nothing of it is passed on; that it closes, or is gone, is to be heard.
            return true;
        }
        match &device.way {
            Way::Paired { trunk, .. } => {
                match self.trunks.get(*trunk).and_then(|trunk| trunk.seat.as_ref()) {
                    None => true,
                    Some(hub) => {
                        hub.has_room()
                            && (self.held_up(key) < MAX_BACKLOG_BYTES
                                || held_down(device) >= MAX_BACKLOG_BYTES)
                    }
                }
            }
            Way::Shared(_) => self.hears_shared(key),
        }
    }

    /// Whether what comes from a hub may be passed on now. A shared connection is always heard: there the windows of
    /// the sessions hold the hub back.
    pub(crate) fn hears_trunk(&self, key: TrunkKey) -> bool {
        let Some(trunk) = self.trunks.get(key) else { return false };
        let TrunkKind::Paired(device) = &trunk.kind else { return trunk.seat.is_some() };
        if trunk.seat.as_ref().is_some_and(|seat| !seat.machine.is_open()) {
            return true;
        }
        match self.devices.get(*device) {
            None => true,
            Some(end) => {
                end.seat.has_room()
                    && (held_down(end) < MAX_BACKLOG_BYTES || self.held_up(*device) >= MAX_BACKLOG_BYTES)
            }
        }
    }

    /// Bytes from a device that wait until hubs open the windows of its sessions.
    pub(super) fn held_up(&self, key: DeviceKey) -> usize {
        let Some(device) = self.devices.get(key) else { return 0 };
        let ups = device.sessions.iter().flat_map(|(_, session)| &session.ups);
        ups.filter_map(|up| {
            let seat = self.trunks.get(up.trunk)?.seat.as_ref()?;
            Some(seat.machine.session_backlog_bytes(up.session?))
        })
        .sum()
    }

    /// The stream of a device is over.
    pub(crate) fn device_lost(&mut self, key: DeviceKey, now: Instant) {
        if let Some(seat) = self.device(key) {
            seat.finished = true;
        }
        self.handle_device(key, now);
    }

    /// A device has gone, and all that it said has been handled.
    fn device_left(&mut self, key: DeviceKey) {
        let Some(device) = self.devices.get(key) else { return };
        match &device.way {
            Way::Paired { trunk, .. } => {
                let trunk = *trunk;
                if let Some(hub) = self.trunk(trunk) {
                    hub.machine.close(None);
                }
            }
            Way::Shared(_) => self.leave_trunks(key),
        }
    }

    /// Forgets a device, and the hub connection that is its alone.
    pub(crate) fn remove_device(&mut self, key: DeviceKey) {
        if self.devices.get(key).is_some_and(|device| matches!(device.way, Way::Shared(_))) {
            self.leave_trunks(key);
        }
        if let Some(device) = self.devices.remove(key)
            && let Way::Paired { trunk, .. } = device.way
        {
            self.trunks.remove(trunk);
        }
    }

    /// The stream of a paired hub connection is over.
    pub(crate) fn pair_lost(&mut self, key: TrunkKey, now: Instant) {
        if let Some(seat) = self.trunk(key) {
            seat.finished = true;
        }
        self.handle_trunk(key, now);
    }

    /// Tells devices and hubs that the gateway is stopping. Nothing new is connected.
    pub(crate) fn drain(&mut self) {
        self.draining = true;
        for key in self.devices.keys() {
            if let Some(seat) = self.device(key) {
                seat.machine.close(Some(forced("the gateway is stopping")));
                seat.wake();
            }
        }
        for key in self.trunks.keys() {
            if let Some(seat) = self.trunk(key) {
                seat.machine.close(None);
                seat.wake();
            }
        }
    }

    pub(super) fn device_event(&mut self, key: DeviceKey, event: Event, now: Instant) {
        match event {
            Event::SessionBegun { session, begin, by_peer } => {
                self.device_session_begun(key, session, begin, by_peer);
            }
            Event::SessionEnded { session, error } => self.device_session_ended(key, session, error),
            Event::Attached { link, session, attach, by_peer: true } => {
                self.device_attached(key, link, session, &attach, now);
            }
            Event::Attached { link, attach, .. } => self.device_answered(key, link, &attach),
            Event::Detached { link, detach, answered, .. } => {
                self.device_detached(key, link, &detach, answered);
            }
            Event::Flow { link: Some(link), flow, .. } => self.device_flow(key, link, &flow),
            Event::Flow { link: None, .. } => self.session_flow(key),
            Event::Transfer { link, session, delivery_id, first, transfer } => {
                self.device_transfer(key, link, session, delivery_id, first, &transfer, now);
            }
            Event::Disposition { session, disposition } => {
                self.device_disposition(key, session, &disposition);
            }
            Event::Closed(reason) => self.device_closed(key, reason),
            Event::SaslInit { .. } | Event::Authenticated | Event::Opened(_) => {}
        }
    }

    pub(super) fn trunk_event(&mut self, key: TrunkKey, event: Event, now: Instant) {
        let shared = self.trunks.get(key).is_some_and(|trunk| matches!(trunk.kind, TrunkKind::Shared(_)));
        let Some(event) = (if shared { self.shared_trunk_event(key, event, now) } else { Some(event) })
        else {
            return;
        };
        match event {
            Event::SessionBegun { session, begin, by_peer } => {
                self.trunk_session_begun(key, session, begin, by_peer);
            }
            Event::SessionEnded { session, error } => {
                self.trunk_session_ended(key, session, error);
                self.release_left(key);
            }
            Event::Attached { link, session, attach, by_peer: true } => {
                self.trunk_attached(key, link, session, &attach);
            }
            Event::Attached { link, attach, .. } => self.trunk_answered(key, link, &attach),
            Event::Detached { link, detach, answered, .. } => {
                self.trunk_detached(key, link, &detach, answered);
                self.release_left(key);
            }
            Event::Flow { link: Some(link), flow, .. } => self.trunk_flow(key, link, &flow),
            Event::Disposition { session, disposition } => {
                self.trunk_disposition(key, session, &disposition);
            }
            Event::Opened(open) => self.trunk_opened(key, open, now),
            Event::Closed(reason) => self.trunk_closed(key, reason, now),
            // A transfer on a link that leads nowhere any more: its detach is on the way.
            Event::Transfer { .. } | Event::Flow { link: None, .. } => {}
            Event::SaslInit { .. } | Event::Authenticated => {}
        }
    }

    fn device_closed(&mut self, key: DeviceKey, reason: CloseReason) {
        let Some(device) = self.devices.get_mut(key) else { return };
        let said = said(&reason);
        device.seat.reason = Some(Box::new(reason));
        match &device.way {
            Way::Paired { trunk, .. } => {
                let trunk = *trunk;
                if let Some(hub) = self.trunk(trunk) {
                    hub.machine.close(said);
                }
            }
            Way::Shared(_) => self.leave_trunks(key),
        }
    }

    /// A paired hub has opened: what it says is the device's answer.
    fn trunk_opened(&mut self, key: TrunkKey, open: Open, now: Instant) {
        let Some(trunk) = self.trunks.get(key) else { return };
        match trunk.kind {
            TrunkKind::Paired(device) => {
                if let Some(seat) = self.device(device) {
                    seat.machine.open(open);
                }
            }
            TrunkKind::Shared(_) => self.shared_trunk_opened(key, now),
            TrunkKind::Unowned => {}
        }
    }

    fn trunk_closed(&mut self, key: TrunkKey, reason: CloseReason, now: Instant) {
        let Some(trunk) = self.trunks.get_mut(key) else { return };
        let (told, why) = (told(&reason), reason.to_string());
        if let Some(seat) = &mut trunk.seat {
            seat.reason = Some(Box::new(reason));
        }
        match trunk.kind {
            TrunkKind::Paired(device) => {
                if let Some(seat) = self.device(device) {
                    seat.machine.close(told);
                }
            }
            TrunkKind::Shared(_) => self.hold(key, now, &why),
            TrunkKind::Unowned => {}
        }
    }

    /// What is kept: sessions and links of both sides, and deliveries.
    #[cfg(test)]
    pub(super) fn kept(&self) -> (usize, usize, usize) {
        let (mut sessions, mut links, mut deliveries) = (0, 0, 0);
        for (_, device) in self.devices.iter() {
            sessions += device.sessions.len();
            links += device.links.len();
            let ups = device.sessions.iter().flat_map(|(_, session)| &session.ups);
            deliveries += ups.map(|up| up.up.len() + up.down.len()).sum::<usize>();
        }
        for (_, trunk) in self.trunks.iter() {
            sessions += trunk.sessions.len();
            links += trunk.links.len();
        }
        (sessions, links, deliveries)
    }
}

/// Bytes that wait until a device opens the windows of its sessions.
pub(super) fn held_down(device: &Device) -> usize {
    let sessions = device.sessions.iter();
    sessions.map(|(session, _)| device.seat.machine.session_backlog_bytes(session)).sum()
}

pub(super) fn forced(what: &str) -> AmqpError {
    AmqpError::new(&Condition::ConnectionForced, Some(what))
}

/// What a device is told when the hub's connection is over.
fn told(reason: &CloseReason) -> Option<AmqpError> {
    match reason {
        CloseReason::Remote(error) => error.clone(),
        CloseReason::Local => None,
        other => Some(forced(&format!("the connection to the hub ended: {other}"))),
    }
}

/// The error that a peer closed with, for the other peer.
fn said(reason: &CloseReason) -> Option<AmqpError> {
    match reason {
        CloseReason::Remote(error) => error.clone(),
        _ => None,
    }
}
