//! All connections of a worker to all hubs, as one machine: finds out where a device belongs before anything of it is
//! sent. It opens no socket and asks no clock.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use fieldgate_amqp::message::put_readdressed;
use fieldgate_mappings::address::{Address, DeviceId};
use fieldgate_mappings::amqp;
use fieldgate_mappings::message::Message;
use fieldgate_mappings::outcome::{Outcome, Reason, Rejection, Verdict};

use crate::config::{Profile, UPSTREAM};
use crate::devices::SpeaksWith;
use crate::router::arena::Key;

use super::commands::{CommandId, Commands};
use super::device::Device;
use super::grant::{Clock, Grant, Source};
use super::hubs::{MappedHubs, OwnToken};
use super::pool::{Followed, Pool};
use super::uplink::{Kind, Outgoing, Uplink};
use super::{CommandSink, Patience};

/// How often devices are looked through for what waited too long.
const SWEEP: Duration = Duration::from_secs(1);
/// How often it is told how long tokens are good.
const TOLD: Duration = Duration::from_secs(10);
/// How long a token is kept, in seconds, beyond the time that it expires: a clock that is ahead by a day for a while
/// takes nothing away that only the device can bring again.
const KEPT: u64 = 2 * 86_400;
/// Devices with a session, or with something that waits; about 2 KB each with a link.
pub(super) const MAX_DEVICES: usize = 262_144;

/// A connection: the number of its hub, and its key there.
pub(super) type Line = (usize, Key<Uplink>);

/// Where a device is.
#[derive(Clone, Copy, Debug)]
struct Place {
    hub: usize,
    uplink: Key<Uplink>,
    device: Key<Device>,
}

/// The machine.
#[derive(Debug)]
pub(super) struct Fleet {
    hubs: Arc<MappedHubs>,
    pools: Vec<Pool>,
    places: HashMap<DeviceId, Place>,
    /// What devices have brought, until it has expired for a while; about 300 bytes each.
    tokens: HashMap<DeviceId, OwnToken>,
    closing: bool,
    serial: u64,
    sweep_at: Option<Instant>,
    /// A moment, and the time that it was.
    known: (Instant, u64),
    /// Connections that somebody is to make.
    wanted: Vec<Line>,
    /// Who keeps the time and makes connections, and when it will look by itself.
    pub(super) keeper: Option<Waker>,
    pub(super) planned: Option<Instant>,
    /// A message being encoded.
    scratch: BytesMut,
}

impl Fleet {
    /// No connection yet. `unix` is the time at `now`, in seconds since 1970.
    pub(super) fn new(hubs: &Arc<MappedHubs>, now: Instant, unix: u64, random: u64) -> Self {
        let pool = |(at, hub): (usize, &super::hubs::MappedHub)| {
            Pool::new(hub.settings.clone(), Arc::clone(hub.hub.name()), random.wrapping_add(at as u64))
        };
        Self {
            pools: hubs.hubs.iter().enumerate().map(pool).collect(),
            hubs: Arc::clone(hubs),
            places: HashMap::new(),
            tokens: HashMap::new(),
            closing: false,
            serial: 0,
            sweep_at: None,
            known: (now, unix),
            wanted: Vec::new(),
            keeper: None,
            planned: None,
            scratch: BytesMut::new(),
        }
    }

    /// Opens the connections that are to be there from the start.
    pub(super) fn start(&mut self) {
        for hub in 0..self.pools.len() {
            let key = self.pools[hub].start();
            self.wanted.extend(key.map(|key| (hub, key)));
        }
    }

    fn clock(&self, now: Instant) -> Clock {
        let (then, unix) = self.known;
        Clock { now, unix: unix + now.saturating_duration_since(then).as_secs() }
    }

    /// The connections that are to be made, each once.
    pub(super) fn take_wanted(&mut self) -> Vec<Line> {
        std::mem::take(&mut self.wanted)
    }

    /// A connection.
    pub(super) fn uplink(&mut self, (hub, key): Line) -> Option<&mut Uplink> {
        self.pools[hub].uplinks.get_mut(key)
    }

    /// The connections to a hub.
    pub(super) fn uplinks(&self, hub: usize) -> impl Iterator<Item = &Uplink> {
        self.pools[hub].uplinks.iter().map(|(_, uplink)| uplink)
    }

    /// The seconds that devices' tokens have left, of the first that expires.
    pub(super) fn seconds_left(&self, now: Instant) -> Option<u64> {
        let uplinks = (0..self.pools.len()).flat_map(|hub| self.uplinks(hub));
        uplinks.filter_map(|uplink| uplink.seconds_left(now)).min()
    }

    /// The same of the tokens that connections prove themselves with.
    pub(super) fn own_seconds_left(&self, now: Instant) -> Option<u64> {
        let uplinks = (0..self.pools.len()).flat_map(|hub| self.uplinks(hub));
        uplinks.filter_map(|uplink| uplink.own_seconds_left(now)).min()
    }

    /// Lets somebody work with a connection, and sees to what follows from it.
    pub(super) fn drive<T>(
        &mut self,
        (hub, key): Line,
        now: Instant,
        work: impl FnOnce(&mut Uplink) -> T,
    ) -> Option<T> {
        let done = work(self.pools[hub].uplinks.get_mut(key)?);
        self.see_to(hub, key, now);
        // What was in flight may have been answered: devices of the other connections wait for the same room.
        self.pools[hub].serve_again(now);
        Some(done)
    }

    fn see_to(&mut self, hub: usize, key: Key<Uplink>, now: Instant) {
        let clock = self.clock(now);
        let mut followed = Followed::default();
        self.pools[hub].see_to(key, &clock, &mut followed);
        self.follow(hub, followed, now);
    }

    fn follow(&mut self, hub: usize, followed: Followed, now: Instant) {
        let Followed { forgotten, wanted, moved } = followed;
        for id in forgotten {
            self.places.remove(&id);
        }
        for (id, uplink, device) in moved {
            self.places.insert(id, Place { hub, uplink, device });
        }
        self.wanted.extend(wanted.into_iter().map(|key| (hub, key)));
        self.plan(now);
    }

    /// Time is to be kept from now on.
    fn plan(&mut self, now: Instant) {
        // Without a device the next sweep may be far away.
        if !self.places.is_empty() && self.sweep_at.is_none_or(|at| at > now + SWEEP) {
            self.sweep_at = Some(now + SWEEP);
        }
        let due = self.poll_timeout();
        let sooner = due.is_some_and(|due| self.planned.is_none_or(|planned| due < planned));
        if (sooner || !self.wanted.is_empty())
            && let Some(keeper) = self.keeper.take()
        {
            keeper.wake();
        }
    }

    // Where devices are.

    /// Where a device is, or is to be from now on; or why it may not send.
    fn place(&mut self, id: &DeviceId, now: Instant) -> Result<Place, Outcome> {
        if let Some(place) = self.places.get(id) {
            return Ok(*place);
        }
        if self.closing || self.places.len() >= MAX_DEVICES {
            return Err(Outcome::Released);
        }
        let token = self.tokens.get(id);
        let (hub, speaks) = self.hubs.belongs(id, token).map_err(Outcome::Rejected)?;
        let source = source(speaks, token);
        let kind = if source.is_some() { Kind::Tokens } else { Kind::Policy };
        let pool = &mut self.pools[hub];
        let (uplink, is_new) = pool.choose(kind);
        let Some(chosen) = pool.uplinks.get_mut(uplink) else { return Err(Outcome::Released) };
        let device = chosen.adopt(Device::new(id.clone(), source.map(Grant::new), now));
        let place = Place { hub, uplink, device };
        self.places.insert(id.clone(), place);
        if is_new {
            self.wanted.push((hub, uplink));
        }
        self.plan(now);
        Ok(place)
    }

    /// The name of the hub that a device belongs to.
    pub(super) fn hub_of(&self, id: &DeviceId) -> Arc<str> {
        let hub = match self.places.get(id) {
            Some(place) => Some(place.hub),
            None => self.hubs.belongs(id, self.tokens.get(id)).ok().map(|(hub, _)| hub),
        };
        // What belongs nowhere is refused by its name, wherever it is sent.
        hub.map_or_else(|| UPSTREAM.into(), |hub| Arc::clone(&self.pools[hub].settings.name))
    }

    /// The hubs by their names, and whether what is sent to them may go.
    pub(super) fn hubs(&self) -> Vec<(Arc<str>, bool)> {
        self.pools.iter().map(|pool| (Arc::clone(&pool.settings.name), pool.is_open())).collect()
    }

    /// Whether the hub of a device is away, as the device sees it.
    pub(super) fn is_away_for(&self, id: &DeviceId) -> bool {
        match self.places.get(id) {
            Some(place) => self.pools[place.hub].uplinks.get(place.uplink).is_some_and(Uplink::is_away),
            None => {
                let belongs = self.hubs.belongs(id, self.tokens.get(id));
                belongs.is_ok_and(|(hub, _)| self.pools[hub].is_away())
            }
        }
    }

    /// A device has brought a token.
    pub(super) fn present(&mut self, id: &DeviceId, token: OwnToken, now: Instant) {
        if self.tokens.len() >= MAX_DEVICES && !self.tokens.contains_key(id) {
            return;
        }
        self.tokens.insert(id.clone(), token);
        if let Some(place) = self.places.get(id).copied() {
            self.look_again(id, place, now);
        }
    }

    /// See [`Upstream::prove`](super::Upstream::prove).
    pub(super) fn prove(&mut self, id: &DeviceId, token: OwnToken, verdict: Verdict, now: Instant) {
        self.present(id, token, now);
        match self.place(id, now) {
            Ok(_) if self.closing => {}
            Ok(Place { hub, uplink, device }) => {
                self.drive((hub, uplink), now, |uplink| uplink.ask(device, verdict, now));
            }
            Err(outcome) => verdict.report(outcome),
        }
    }

    /// What is known of devices has changed: those that belong elsewhere, or are spoken for otherwise, begin anew.
    pub(super) fn review(&mut self, now: Instant) {
        let known: Vec<(DeviceId, Place)> = self.places.iter().map(|(id, at)| (id.clone(), *at)).collect();
        for (id, place) in known {
            self.look_again(&id, place, now);
        }
    }

    /// Whether a device still belongs where it is, and is spoken for with the same.
    fn look_again(&mut self, id: &DeviceId, Place { hub, uplink, device }: Place, now: Instant) {
        let token = self.tokens.get(id);
        let source = match self.hubs.belongs(id, token) {
            Ok((belongs, speaks)) if belongs == hub => Ok(source(speaks, token)),
            Ok(_) => Err(Outcome::Released),
            Err(rejection) => Err(Outcome::Rejected(rejection)),
        };
        let Some(line) = self.uplink((hub, uplink)) else { return };
        if line.review(device, source, now) {
            self.drive((hub, uplink), now, |_| {});
        }
    }

    // What the adapters ask for.

    /// See [`Upstream::send`](super::Upstream::send).
    pub(super) fn send(&mut self, message: &Message, patience: Patience, verdict: Verdict, now: Instant) {
        let place = match self.place(&message.device, now) {
            Ok(place) => place,
            Err(outcome) => return verdict.report(outcome),
        };
        let mut encoded = std::mem::take(&mut self.scratch);
        encoded.clear();
        let settings = &self.pools[place.hub].settings;
        match settings.profile {
            Profile::AzureIotHub => amqp::encode(message, &mut encoded),
            Profile::Amqp => {
                let to = format!("{}{}", settings.address_prefix, message.address.as_str());
                amqp::encode_to(message, &to, &mut encoded);
            }
        }
        let (address, priority) = (&message.address, message.priority());
        self.hand_on(place, Outgoing { address, encoded: &encoded, priority, patience, verdict }, now);
        self.scratch = encoded;
    }

    /// See [`Upstream::send_encoded`](super::Upstream::send_encoded).
    pub(super) fn send_encoded(&mut self, id: &DeviceId, message: Outgoing<'_>, now: Instant) {
        let place = match self.place(id, now) {
            Ok(place) => place,
            Err(outcome) => return message.verdict.report(outcome),
        };
        let settings = &self.pools[place.hub].settings;
        if settings.profile == Profile::AzureIotHub {
            return self.hand_on(place, message, now);
        }
        let to = format!("{}{}", settings.address_prefix, message.address.as_str());
        let mut encoded = BytesMut::new();
        match put_readdressed(&mut encoded, &Bytes::copy_from_slice(message.encoded), &to) {
            Ok(()) => self.hand_on(place, Outgoing { encoded: &encoded, ..message }, now),
            Err(error) => {
                let why = format!("the message is not sound AMQP: {error}");
                message.verdict.report(Outcome::Rejected(Rejection::new(Reason::Content, why)));
            }
        }
    }

    fn hand_on(&mut self, Place { hub, uplink, device }: Place, message: Outgoing<'_>, now: Instant) {
        if self.closing {
            return;
        }
        let pool = &mut self.pools[hub];
        let alone = pool.is_quiet();
        if let Some(line) = pool.uplinks.get_mut(uplink) {
            line.send(device, message, alone, now);
            if line.told.is_empty() && !line.is_crowded() {
                return line.wake();
            }
            self.see_to(hub, uplink, now);
        }
    }

    /// See [`Upstream::subscribe`](super::Upstream::subscribe). Gives the subscription's number.
    pub(super) fn subscribe(
        &mut self,
        id: &DeviceId,
        address: Address,
        credit: u32,
        sink: std::rc::Rc<dyn CommandSink>,
        now: Instant,
    ) -> u64 {
        self.serial += 1;
        let serial = self.serial;
        let place = match self.place(id, now) {
            Ok(place) if !self.closing => place,
            Ok(_) | Err(Outcome::Accepted | Outcome::Released | Outcome::Unknown) => {
                sink.ended(None);
                return serial;
            }
            Err(Outcome::Rejected(rejection)) => {
                sink.ended(Some(rejection));
                return serial;
            }
        };
        let commands = Commands { serial, address, credit, sink, receiver: None, attachment: 0 };
        let Place { hub, uplink, device } = place;
        self.drive((hub, uplink), now, |uplink| uplink.subscribe(device, commands, now));
        serial
    }

    /// Ends a subscription, unless another one has taken its place.
    pub(super) fn unsubscribe(&mut self, id: &DeviceId, serial: u64) {
        if let Some(uplink) = self.places.get(id).copied()
            && let Some(line) = self.uplink((uplink.hub, uplink.uplink))
        {
            line.unsubscribe(uplink.device, serial);
            line.wake();
        }
    }

    /// See [`Upstream::recall`](super::Upstream::recall).
    pub(super) fn recall(&mut self, id: &DeviceId) {
        if let Some(Place { hub, uplink, device }) = self.places.get(id).copied()
            && let Some(line) = self.uplink((hub, uplink))
        {
            line.recall(device);
        }
    }

    /// See [`Subscription::settle`](super::Subscription::settle).
    pub(super) fn settle(&mut self, id: &DeviceId, serial: u64, command: CommandId, outcome: &Outcome) {
        if let Some(uplink) = self.places.get(id).copied()
            && let Some(line) = self.uplink((uplink.hub, uplink.uplink))
        {
            line.settle(uplink.device, serial, command, outcome);
            line.wake();
        }
    }

    /// Nothing new is sent. What was sent may still be answered.
    pub(super) fn close(&mut self) {
        self.closing = true;
        for pool in &mut self.pools {
            for (_, uplink) in pool.uplinks.iter_mut() {
                uplink.close();
                uplink.wake();
            }
        }
        if let Some(keeper) = self.keeper.take() {
            keeper.wake();
        }
    }

    /// Whether [`close`](Self::close) was called.
    pub(super) fn is_closing(&self) -> bool {
        self.closing
    }

    /// Nobody moves the bytes of a connection any more.
    pub(super) fn ended(&mut self, (hub, key): Line) {
        for id in self.pools[hub].remove(key) {
            self.places.remove(&id);
        }
    }

    // Time.

    /// When [`handle_timeout`](Self::handle_timeout) is to be called.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.pools.iter().filter_map(Pool::due).chain(self.sweep_at).min()
    }

    /// Time has passed; `unix` is what time it is, in seconds since 1970.
    pub(super) fn handle_timeout(&mut self, now: Instant, unix: u64) {
        self.known = (now, unix);
        if self.sweep_at.is_none_or(|at| at > now) {
            return self.pools.iter_mut().for_each(|pool| pool.serve_again(now));
        }
        let clock = self.clock(now);
        self.tokens.retain(|_, token| token.expiry.saturating_add(KEPT) > unix);
        for hub in 0..self.pools.len() {
            let mut followed = Followed::default();
            self.pools[hub].sweep(&clock, &mut followed);
            self.follow(hub, followed, now);
        }
        let next = self.pools.iter().filter_map(|pool| pool.poll_timeout(now, SWEEP)).min();
        // Where no device has anything, how long tokens are good is told all the same.
        self.sweep_at = next.map(|next| match self.own_seconds_left(now) {
            Some(_) => next.min(now + TOLD),
            None => next,
        });
    }

    /// A connection has time of its own to be kept, from now on. `unix` is what time it is: where nothing was to be kept
    /// before, the clock may have been set meanwhile.
    pub(super) fn note_connection(&mut self, now: Instant, unix: u64) {
        self.known = (now, unix);
        self.sweep_at = Some(self.sweep_at.map_or(now + SWEEP, |at| at.min(now + SWEEP)));
        self.plan(now);
    }
}

/// What is kept, for tests.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) in_flight: usize,
    pub(super) waiting_bytes: usize,
    pub(super) devices: usize,
    pub(super) sessions: usize,
    pub(super) links: usize,
    pub(super) ending: usize,
    pub(super) crowded_out: usize,
    pub(super) scheduled: usize,
}

#[cfg(test)]
impl Fleet {
    /// What is kept now.
    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts { devices: self.places.len(), ..Counts::default() };
        for pool in &self.pools {
            counts.in_flight += pool.load.in_flight();
            counts.waiting_bytes += pool.load.waiting_bytes();
            counts.scheduled += pool.scheduled();
            let mut devices = 0;
            for (_, uplink) in pool.uplinks.iter() {
                uplink.count(&mut counts);
                devices += uplink.len();
            }
            assert!(devices <= counts.devices, "a device that nobody knows");
        }
        counts
    }
}

fn source(speaks: SpeaksWith, token: Option<&OwnToken>) -> Option<Source> {
    match speaks {
        SpeaksWith::Policy => None,
        SpeaksWith::DeviceKey(key) => Some(Source::Key(key)),
        SpeaksWith::OwnToken => Some(Source::Brought(token.cloned())),
    }
}
