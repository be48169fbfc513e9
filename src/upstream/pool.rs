//! The connections of a worker to one hub: which device is on which, and whose turn it is when not all can send.
//!
//! A device stays on its connection. Another connection is opened when all are full, and one without devices is closed
//! after a while. Where a bound that all devices share is short (messages in flight, the hub's rate, a shared link's
//! credit), devices take turns, each with the same number of bytes (deficit round robin).

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fieldgate_mappings::address::DeviceId;

use crate::router::arena::{Arena, Key};

use super::device::{Device, Turn};
use super::grant::Clock;
use super::hubs::HubSettings;
use super::load::Load;
use super::uplink::{Kind, Uplink};

/// How long a hub is left alone whose quota is used up, and that has not said for how long.
const HUB_PAUSE: Duration = Duration::from_secs(10);

/// The connections to one hub.
#[derive(Debug)]
pub(super) struct Pool {
    pub(super) settings: Rc<HubSettings>,
    /// The hub's name in tokens.
    hub: Arc<str>,
    pub(super) load: Rc<Load>,
    pub(super) uplinks: Arena<Uplink>,
    /// Devices that could send if it were their turn; each stands here once.
    schedule: VecDeque<(Key<Uplink>, Key<Device>)>,
    /// When the next of them may send, where it is time that they wait for.
    due: Option<Instant>,
    /// The connection that stays although it has no devices.
    kept: Option<Key<Uplink>>,
    random: u64,
}

/// What followed from a call, for the fleet.
#[derive(Debug, Default)]
pub(super) struct Followed {
    /// Devices that nobody needs any more.
    pub(super) forgotten: Vec<DeviceId>,
    /// Connections that are to be made.
    pub(super) wanted: Vec<Key<Uplink>>,
    /// Devices that are on another connection now.
    pub(super) moved: Vec<(DeviceId, Key<Uplink>, Key<Device>)>,
}

impl Pool {
    /// No connection yet.
    pub(super) fn new(settings: HubSettings, hub: Arc<str>, random: u64) -> Self {
        let load = Load::new(settings.max_in_flight, settings.pace.clone());
        Self {
            settings: Rc::new(settings),
            hub,
            load,
            uplinks: Arena::default(),
            schedule: VecDeque::new(),
            due: None,
            kept: None,
            random,
        }
    }

    /// When [`handle_timeout`](Self::serve) has something to do before the next sweep.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether nobody waits for his turn.
    pub(super) fn is_quiet(&self) -> bool {
        self.schedule.is_empty()
    }

    /// Whether the hub is away: there is no connection, though one was tried.
    pub(super) fn is_away(&self) -> bool {
        !self.uplinks.is_empty() && self.uplinks.iter().all(|(_, uplink)| uplink.is_away())
    }

    /// Whether what is sent may go: a connection is there, or is made as soon as it is needed.
    pub(super) fn is_open(&self) -> bool {
        self.uplinks.is_empty() || self.uplinks.iter().any(|(_, uplink)| uplink.is_ready())
    }

    #[cfg(test)]
    pub(super) fn scheduled(&self) -> usize {
        self.schedule.len()
    }

    /// Opens the connection that is to be there from the start.
    pub(super) fn start(&mut self) -> Option<Key<Uplink>> {
        if self.settings.at_start && self.kept.is_none() {
            self.kept = Some(self.open(Kind::Policy));
            return self.kept;
        }
        None
    }

    fn open(&mut self, kind: Kind) -> Key<Uplink> {
        self.random = self.random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        self.uplinks.insert(Uplink::new(kind, &self.settings, &self.load, self.random))
    }

    /// The connection for one more device, and whether it is to be made: one that works and has room before any other
    /// that has room, before a new one; where there may be no more, the one with the fewest devices.
    pub(super) fn choose(&mut self, kind: Kind) -> (Key<Uplink>, bool) {
        match self.with_room(kind, None) {
            Some(key) => (key, false),
            None if self.may_open(kind) => (self.open(kind), true),
            None => {
                let of_kind = self.uplinks.iter().filter(|(_, it)| it.kind == kind && !it.is_closing());
                match of_kind.min_by_key(|(_, uplink)| uplink.len()) {
                    Some((key, _)) => (key, false),
                    None => (self.open(kind), true),
                }
            }
        }
    }

    fn with_room(&self, kind: Kind, but: Option<Key<Uplink>>) -> Option<Key<Uplink>> {
        let room = |(key, uplink): &(Key<Uplink>, &Uplink)| {
            uplink.kind == kind && uplink.has_room() && but != Some(*key)
        };
        let ready = self.uplinks.iter().filter(room).find(|(_, uplink)| uplink.is_ready());
        ready.or_else(|| self.uplinks.iter().find(room)).map(|(key, _)| key)
    }

    /// Whether there may be one more connection. One of each kind there always may.
    fn may_open(&self, kind: Kind) -> bool {
        self.uplinks.len() < self.settings.max_connections
            || !self.uplinks.iter().any(|(_, uplink)| uplink.kind == kind && !uplink.is_closing())
    }

    /// Sees to what follows from a call to one of the connections.
    pub(super) fn see_to(&mut self, key: Key<Uplink>, clock: &Clock, followed: &mut Followed) {
        self.see_to_told(key, clock, followed);
        if self.uplinks.get(key).is_some_and(|uplink| uplink.is_crowded() && !uplink.is_closing()) {
            self.relieve(key, clock, followed);
        }
    }

    fn see_to_told(&mut self, key: Key<Uplink>, clock: &Clock, followed: &mut Followed) {
        let mut rounds = 0;
        while let Some(uplink) = self.uplinks.get_mut(key).filter(|uplink| !uplink.told.is_empty()) {
            if let Some(limit) = uplink.told.limit.take() {
                self.load.pause(clock.now + limit.retry_after.unwrap_or(HUB_PAUSE));
            }
            uplink.put_tokens(&self.hub, clock);
            followed.forgotten.append(&mut uplink.told.forgotten);
            self.schedule.extend(uplink.told.stalled.drain(..).map(|device| (key, device)));
            if !self.schedule.is_empty() {
                self.serve(clock.now);
            }
            if let Some(uplink) = self.uplinks.get_mut(key) {
                uplink.finish_drains();
                // Who stands in line for a shared link and has nothing to send any more makes place for the next.
                if rounds < MORE_ROUNDS && self.schedule.is_empty() {
                    rounds += 1;
                    uplink.admit_more();
                }
            }
        }
        if let Some(uplink) = self.uplinks.get_mut(key) {
            uplink.close_when_answered();
            uplink.wake();
        }
    }

    /// Lets devices send, each in its turn, as long as the bounds that they share allow it.
    pub(super) fn serve(&mut self, now: Instant) {
        while self.load.is_open(now)
            && let Some((key, device)) = self.schedule.pop_front()
        {
            let Some(uplink) = self.uplinks.get_mut(key) else { continue };
            if uplink.turn(device, now) == Turn::More {
                self.schedule.push_back((key, device));
            }
            uplink.wake();
        }
        self.due = if self.schedule.is_empty() { None } else { self.load.opens_at(now) };
    }

    /// Serves those that waited for what is free again.
    pub(super) fn serve_again(&mut self, now: Instant) {
        if !self.schedule.is_empty() {
            self.serve(now);
        }
    }

    /// Moves devices that have no place on their connection to one that has.
    fn relieve(&mut self, from: Key<Uplink>, clock: &Clock, followed: &mut Followed) {
        let Some(uplink) = self.uplinks.get(from) else { return };
        let kind = uplink.kind;
        if self.with_room(kind, Some(from)).is_none() && !self.may_open(kind) {
            return;
        }
        for key in uplink.surplus() {
            let to = self.with_room(kind, Some(from));
            if to.is_none() && !self.may_open(kind) {
                return;
            }
            // Who cannot move is no reason for a connection: nobody would use it, and nobody close it.
            let moved = self.uplinks.get_mut(from).and_then(|uplink| uplink.give_up(key, clock.now));
            let Some(device) = moved else { continue };
            let to = to.unwrap_or_else(|| {
                let to = self.open(kind);
                followed.wanted.push(to);
                to
            });
            let Some(uplink) = self.uplinks.get_mut(to) else { continue };
            let id = device.id.clone();
            let key = uplink.adopt(device);
            uplink.resume(key, clock.now);
            followed.moved.push((id, to, key));
            // Not relieved in its turn: nothing moves twice in one go.
            self.see_to_told(to, clock, followed);
        }
    }

    /// Time has passed: looks through all connections.
    pub(super) fn sweep(&mut self, clock: &Clock, followed: &mut Followed) {
        for key in self.uplinks.keys() {
            let Some(uplink) = self.uplinks.get_mut(key) else { continue };
            uplink.handle_timeout(clock);
            uplink.admit_more();
            let empty = uplink.empty_since().is_some_and(|since| clock.now >= since + self.settings.idle);
            if empty && self.kept != Some(key) && !uplink.is_closing() {
                uplink.close();
            }
            self.see_to(key, clock, followed);
        }
        self.serve_again(clock.now);
    }

    /// When the next sweep is due, if any.
    pub(super) fn poll_timeout(&self, now: Instant, every: Duration) -> Option<Instant> {
        let busy = self.uplinks.iter().any(|(_, uplink)| uplink.is_busy()).then(|| now + every);
        let tokens = self.uplinks.iter().filter_map(|(_, uplink)| uplink.poll_timeout());
        let unused = self.uplinks.iter().filter(|(key, it)| self.kept != Some(*key) && !it.is_closing());
        let unused = unused.filter_map(|(_, it)| Some(it.empty_since()? + self.settings.idle));
        // What is due has been seen to: no time passes twice.
        busy.into_iter().chain(tokens).chain(unused).map(|at| at.max(now + MOMENT)).min()
    }

    /// The connection is given up: nobody moves its bytes any more. Gives the devices that it had.
    pub(super) fn remove(&mut self, key: Key<Uplink>) -> Vec<DeviceId> {
        let Some(mut uplink) = self.uplinks.remove(key) else { return Vec::new() };
        if self.kept == Some(key) {
            self.kept = None;
        }
        uplink.close();
        uplink.lost();
        uplink.told.forgotten
    }
}

/// How often in one go more are admitted to shared links whose credit is left; the next is at most a sweep away.
const MORE_ROUNDS: usize = 16;
/// A timer moves on at least so far.
const MOMENT: Duration = Duration::from_millis(10);
