//! One hub connection as a machine: which devices have a session and links, what waits, what is in flight, what the
//! hub answered. It opens no socket and asks no clock. Which devices it has is the [`Pool`](super::pool)'s matter, and
//! whose turn it is when they cannot all send.
//!
//! ```text
//!        connected            opened, token put        token accepted
//!  Down ───────────▶ Opening ─────────────────▶ Opening ─────────────▶ Ready
//!   ▲                   (nothing to put: straight to Ready)              │
//!   └──────────────────────── lost ◀─────────────────────────────────────┘
//! ```

mod events;
mod granting;
mod sessions;
mod sharing;

use std::collections::VecDeque;
use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fieldgate_amqp::connection::{Connection, LinkId, SessionId};
use fieldgate_mappings::address::{Address, DeviceId};
use fieldgate_mappings::amqp;
use fieldgate_mappings::outcome::{Outcome, Reason, Rejection, Verdict};

use crate::config::Profile;
use crate::router::arena::{Arena, Key};
use crate::router::claims::CbsClientLink;
use crate::table::Table;
use crate::telemetry::emit;

use super::Patience;
use super::answer::Limit;
use super::claims::{self, Claims};
use super::commands::{CommandId, Commands};
use super::device::{Device, Path, Turn};
use super::hubs::HubSettings;
use super::lanes::{Priority, Waiting};
use super::load::Load;
use super::relay::Relay;
use super::target::OwnToken;
use super::telemetry::{CommandSettled, OutletsExceeded, WaitingExceeded};

/// How long the hub may take to answer for a message, for a device's token, or to answer the end of a session.
const ANSWER_TIME_OUT: Duration = Duration::from_secs(30);

/// How long after a hub wanted fewer devices on a connection one more is tried.
const ROOM_AGAIN: Duration = Duration::from_secs(300);

/// With what the devices of a connection are spoken for. What the hub lets one kind do, the other must not come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The connection's own credential.
    Policy,
    /// A token for each device.
    Tokens,
}

/// How far the connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No connection; `tried` once an attempt has failed or a connection was lost.
    Down { tried: bool },
    /// Connected; `open` or the token under way.
    Opening,
    /// Devices' links may be attached.
    Ready,
}

/// What the driver must see to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// `open` was answered: [`authorise`](Uplink::authorise), or [`ready`](Uplink::ready) where there is no token.
    Opened,
    /// A fresh token is due: [`authorise`](Uplink::authorise).
    TokenDue,
    /// The token was accepted.
    Authorised,
    /// The connection is of no use any more.
    Lost(String),
}

/// A message on its way in.
pub(super) struct Outgoing<'a> {
    pub(super) address: &'a Address,
    pub(super) encoded: &'a [u8],
    pub(super) priority: Priority,
    pub(super) patience: Patience,
    pub(super) verdict: Verdict,
}

/// The machine.
#[derive(Debug)]
pub(super) struct Uplink {
    pub(super) connection: Option<Connection>,
    pub(super) kind: Kind,
    settings: Rc<HubSettings>,
    phase: Phase,
    closing: bool,
    load: Rc<Load>,
    /// The connection's own token.
    claims: Option<Claims>,
    /// Where devices' tokens are put.
    cbs: CbsClientLink<(Key<Device>, u32)>,
    relay: Option<Relay>,
    devices: Arena<Device>,
    /// Devices that the connection can have sessions for.
    room: usize,
    /// When the hub made that less, or it was last made more again.
    room_at: Option<Instant>,
    /// Since when there has been no device.
    empty_since: Option<Instant>,
    /// Whose session, and whose link; claims and shared links stand apart.
    sessions: Table<SessionId, Key<Device>>,
    links: Table<LinkId, Key<Device>>,
    /// Sessions that we have ended and the hub has not, and since when.
    ending: Table<SessionId, Instant>,
    /// Devices that wait for a channel or a handle.
    crowded_out: VecDeque<Key<Device>>,
    notices: Vec<Notice>,
    /// Makes renewals differ.
    random: u64,
    /// Who moves the bytes.
    pub(super) driver: Option<Waker>,
    /// For the pool, which takes it after each call.
    pub(super) told: Told,
}

/// What follows from a call, for others to see to.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Devices that could send if it were their turn.
    pub(super) stalled: Vec<Key<Device>>,
    /// Links whose rest of credit is to be given back when those have had it.
    draining: Vec<LinkId>,
    /// Devices whose token is to be put.
    pub(super) tokens: Vec<Key<Device>>,
    /// Devices that nobody needs any more.
    pub(super) forgotten: Vec<DeviceId>,
    /// The hub itself wants less.
    pub(super) limit: Option<Limit>,
}

impl Told {
    /// Whether there is anything to see to.
    pub(super) fn is_empty(&self) -> bool {
        self.stalled.is_empty()
            && self.draining.is_empty()
            && self.tokens.is_empty()
            && self.forgotten.is_empty()
            && self.limit.is_none()
    }
}

impl Uplink {
    /// A machine without a connection.
    pub(super) fn new(kind: Kind, settings: &Rc<HubSettings>, load: &Rc<Load>, random: u64) -> Self {
        let relay = (settings.profile == Profile::Amqp).then(|| Relay::new(settings.max_links));
        Self {
            connection: None,
            kind,
            phase: Phase::Down { tried: false },
            closing: false,
            load: Rc::clone(load),
            claims: None,
            cbs: CbsClientLink::new(ANSWER_TIME_OUT),
            relay,
            devices: Arena::default(),
            room: settings.devices_per_connection,
            room_at: None,
            settings: Rc::clone(settings),
            empty_since: None,
            sessions: Table::default(),
            links: Table::default(),
            ending: Table::default(),
            crowded_out: VecDeque::new(),
            notices: Vec::new(),
            random,
            driver: None,
            told: Told::default(),
        }
    }

    /// Whether [`close`](Self::close) was called.
    pub(super) fn is_closing(&self) -> bool {
        self.closing
    }

    /// Whether devices' links may be attached.
    pub(super) fn is_ready(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// Whether there is no connection, and not for want of having tried.
    pub(super) fn is_away(&self) -> bool {
        matches!(self.phase, Phase::Down { tried: true })
    }

    /// Whether one more device can have a session.
    pub(super) fn has_room(&self) -> bool {
        !self.closing && self.devices.len() < self.room
    }

    /// How many devices it has.
    pub(super) fn len(&self) -> usize {
        self.devices.len()
    }

    /// Whether there is time to be kept.
    pub(super) fn is_busy(&self) -> bool {
        !self.devices.is_empty() || self.ending.len() > 0
    }

    /// When the connection's own token wants attention.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.claims.as_ref().and_then(Claims::poll_timeout)
    }

    /// The seconds that the connection's own token has left.
    pub(super) fn own_seconds_left(&self, now: Instant) -> Option<u64> {
        let expires = self.claims.as_ref().and_then(Claims::expires)?;
        Some(expires.saturating_duration_since(now).as_secs())
    }

    /// How long it has had no device.
    pub(super) fn empty_since(&self) -> Option<Instant> {
        self.empty_since
    }

    /// What the driver must see to, oldest first.
    pub(super) fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    /// The task that moves the bytes has something to do.
    pub(super) fn wake(&mut self) {
        if let Some(driver) = self.driver.take() {
            driver.wake();
        }
    }

    // Devices come and go.

    /// One more device.
    pub(super) fn adopt(&mut self, device: Device) -> Key<Device> {
        self.empty_since = None;
        self.devices.insert(device)
    }

    /// Takes a device out that has no session and nothing in flight, for another connection to have it.
    pub(super) fn give_up(&mut self, key: Key<Device>, now: Instant) -> Option<Device> {
        let device = self.devices.get(key)?;
        if !device.can_move() {
            return None;
        }
        let mut device = self.devices.remove(key)?;
        self.crowded_out.retain(|crowded| *crowded != key);
        device.crowded_out = false;
        device.queued = false;
        device.lose_relay();
        self.note_empty(now);
        Some(device)
    }

    /// Ends all that a device has here, at once: what was sent is unknown, what waits has this outcome.
    pub(super) fn uproot(&mut self, key: Key<Device>, outcome: &Outcome, now: Instant) {
        self.end_session(key, Some(sessions::not_permitted()), now);
        let Some(mut device) = self.devices.remove(key) else { return };
        device.turn_away(outcome);
        self.told.forgotten.push(device.id);
        self.note_empty(now);
    }

    /// A device that came from elsewhere goes on with what waits.
    pub(super) fn resume(&mut self, key: Key<Device>, now: Instant) {
        self.attach(key, now);
    }

    /// The devices beyond what the connection has room for: those that can go elsewhere.
    pub(super) fn surplus(&self) -> Vec<Key<Device>> {
        let beyond = self.devices.len().saturating_sub(self.room);
        let movable = self.devices.iter().filter(|(_, device)| device.can_move());
        movable.map(|(key, _)| key).take(beyond).collect()
    }

    /// Whether it has more devices than it has room for.
    pub(super) fn is_crowded(&self) -> bool {
        self.devices.len() > self.room
    }

    fn note_empty(&mut self, now: Instant) {
        if self.devices.is_empty() && self.empty_since.is_none() {
            self.empty_since = Some(now);
        }
    }

    // What the adapters ask for.

    /// Sends a message, or has it wait. `alone`: nobody waits for his turn.
    pub(super) fn send(&mut self, key: Key<Device>, message: Outgoing<'_>, alone: bool, now: Instant) {
        let Outgoing { address, encoded, priority, patience, verdict } = message;
        let away = self.is_away();
        let Some(device) = self.devices.get_mut(key) else { return };
        device.used_at = now;
        if let Some(rejection) = device.grant.as_ref().and_then(|grant| grant.refused(now)) {
            return verdict.report(Outcome::Rejected(rejection.clone()));
        }
        if away && !patience.through_outage {
            return; // A verdict that is dropped unsent says released.
        }
        let recycled = match device.open_outlet(address) {
            Ok((_, recycled)) => recycled,
            Err(_) => return emit(OutletsExceeded { device: &device.id }),
        };
        let mut verdict = verdict;
        if let Some(connection) = &mut self.connection {
            if let Some(recycled) = recycled {
                self.links.remove(recycled);
                connection.detach(recycled, true, None);
            }
            if alone {
                let relay = self.relay.as_mut();
                let mut path = Path { connection, relay, load: &self.load, device: key, now };
                verdict = match device.send(&mut path, address, encoded, verdict) {
                    Ok(()) => return,
                    Err(verdict) => verdict,
                };
            }
        }
        if let Some(until) = device.paused_until(now).filter(|until| *until > patience.until) {
            // Longer than its sender waits: it is told now, and for how long.
            let reason = Reason::Quota { retry_after: Some(until - now) };
            let rejection = Rejection::new(reason, "the hub has throttled the device");
            return verdict.report(Outcome::Rejected(rejection));
        }
        let Some(share) = self.load.wait(encoded.len(), device.waiting_bytes()) else {
            return emit(WaitingExceeded { bytes: self.load.waiting_bytes() });
        };
        // A copy of its own: the caller's buffer is used again.
        let waiting = Waiting { message: Bytes::copy_from_slice(encoded), patience, verdict, share };
        let Some(outlet) = device.outlet(address) else { return };
        outlet.waiting.push(priority, waiting);
        self.see_to(key, address, now);
    }

    /// A message waits: for a link, for credit, or for its turn.
    fn see_to(&mut self, key: Key<Device>, address: &Address, now: Instant) {
        if self.relay.is_some() {
            return self.join(key, address, now);
        }
        let Some(device) = self.devices.get(key) else { return };
        if device.lacks_a_link(false) {
            self.attach(key, now);
        } else if !device.queued && self.connection.as_ref().is_some_and(|it| device.could_send(it)) {
            self.stall(key);
        }
    }

    /// The device could send if it were its turn.
    fn stall(&mut self, key: Key<Device>) {
        if let Some(device) = self.devices.get_mut(key)
            && !device.queued
        {
            device.queued = true;
            self.told.stalled.push(key);
        }
    }

    /// It is the device's turn.
    pub(super) fn turn(&mut self, key: Key<Device>, now: Instant) -> Turn {
        let Some(device) = self.devices.get_mut(key) else { return Turn::Done };
        // Its place in the schedule is used up, whatever comes of it: without a connection it has to get another one.
        device.queued = false;
        let Some(connection) = &mut self.connection else { return Turn::Done };
        let relay = self.relay.as_mut();
        let mut path = Path { connection, relay, load: &self.load, device: key, now };
        let turn = device.turn(&mut path);
        device.queued = turn == Turn::More;
        turn
    }

    /// Gives credit back that nobody had use for, to a hub that asked for it.
    pub(super) fn finish_drains(&mut self) {
        let Some(connection) = &mut self.connection else { return self.told.draining.clear() };
        for link in self.told.draining.drain(..) {
            let own = self.links.get(link).and_then(|key| self.devices.get_mut(*key));
            // What still waits has no credit or no room in the bounds: neither is a reason to let a drain wait.
            if let Some(sender) = own.and_then(|device| device.sender(link)) {
                sender.drained(connection);
            } else if let Some(shared) = self.relay.as_mut().and_then(|relay| relay.get_mut(link)) {
                shared.sender().drained(connection);
            }
        }
    }

    /// See [`Upstream::subscribe`](super::Upstream::subscribe).
    pub(super) fn subscribe(&mut self, key: Key<Device>, commands: Commands, now: Instant) {
        let Some(device) = self.devices.get_mut(key) else { return commands.sink.ended(None) };
        if let Some(rejection) = device.grant.as_ref().and_then(|grant| grant.refused(now)) {
            return commands.sink.ended(Some(rejection.clone()));
        }
        device.used_at = now;
        if let Some(former) = device.commands.replace(Box::new(commands)) {
            // Nobody is to wait for commands that another one gets.
            former.sink.ended(None);
            self.drop_commands(*former);
        }
        self.attach(key, now);
    }

    /// Ends a subscription, unless another one has taken its place.
    pub(super) fn unsubscribe(&mut self, key: Key<Device>, serial: u64) {
        let device = self.devices.get_mut(key);
        let gone = device.and_then(|device| device.commands.take_if(|commands| commands.serial == serial));
        if let Some(commands) = gone {
            self.drop_commands(*commands);
        }
    }

    fn drop_commands(&mut self, commands: Commands) {
        if let (Some(receiver), Some(connection)) = (commands.receiver, &mut self.connection) {
            self.links.remove(receiver.link());
            // Without an outcome for what is unsettled: a release would count against the command.
            connection.detach(receiver.link(), true, None);
        }
    }

    /// Releases what of a device waits and is not wanted any more.
    pub(super) fn recall(&mut self, key: Key<Device>) {
        if let Some(device) = self.devices.get_mut(key) {
            device.recall();
        }
    }

    /// See [`Subscription::settle`](super::Subscription::settle).
    pub(super) fn settle(&mut self, key: Key<Device>, serial: u64, command: CommandId, outcome: &Outcome) {
        let Some(Device { id, commands, .. }) = self.devices.get_mut(key) else { return };
        let commands = commands.as_deref_mut();
        let receiver = commands
            .filter(|commands| commands.serial == serial && commands.attachment == command.attachment)
            .and_then(|commands| commands.receiver.as_mut());
        let (Some(receiver), Some(connection)) = (receiver, &mut self.connection) else {
            return emit(CommandSettled { device: id, outcome: None });
        };
        if command.settled {
            return receiver.let_go(connection);
        }
        if let Some(state) = amqp::reply(outcome) {
            receiver.settle(connection, command.delivery_id, command.delivery_id, &state);
            emit(CommandSettled { device: id, outcome: Some(outcome) });
        }
    }

    /// Nothing new is sent. What was sent may still be answered: the connection is closed when all of it is.
    pub(super) fn close(&mut self) {
        self.closing = true;
        for (_, device) in self.devices.iter_mut() {
            device.release_waiting(|_| true);
        }
        self.close_when_answered();
    }

    /// Closes the connection of a machine that is to be closed, once nothing is in flight.
    pub(super) fn close_when_answered(&mut self) {
        if self.closing
            && self.in_flight() == 0
            && let Some(connection) = &mut self.connection
        {
            connection.close(None);
        }
    }

    fn in_flight(&self) -> usize {
        let shared = self.relay.as_ref().map_or(0, |relay| relay.unsettled.len());
        let devices = self.devices.iter();
        shared + devices.filter(|(_, device)| device.oldest_sent().is_some()).count()
    }

    // What the driver reports.

    /// A connection was made.
    pub(super) fn connected(&mut self, connection: Connection) {
        self.connection = Some(connection);
        self.phase = Phase::Opening;
        self.notices.clear();
        self.close_when_answered();
    }

    /// The connection is gone, or could not be made. What was sent has no outcome; what waits goes on waiting, if it
    /// is meant to wait through an outage.
    pub(super) fn lost(&mut self) {
        self.connection = None;
        self.claims = None;
        self.cbs = CbsClientLink::new(ANSWER_TIME_OUT);
        self.phase = Phase::Down { tried: true };
        self.sessions = Table::default();
        self.links = Table::default();
        self.ending = Table::default();
        self.crowded_out.clear();
        self.told.draining.clear();
        if let Some(relay) = &mut self.relay {
            relay.lose_session(None);
        }
        for (_, device) in self.devices.iter_mut() {
            device.crowded_out = false;
            // What was sent is older than what waits, and is told first.
            device.lose_session();
            device.lose_relay();
            if let Some(grant) = &mut device.grant {
                grant.lose();
            }
            device.release_waiting(|patience| !patience.through_outage);
        }
        if self.closing {
            let gone = std::mem::take(&mut self.devices);
            self.told.forgotten.extend(gone.iter().map(|(_, device)| device.id.clone()));
        }
    }

    /// Puts the connection's token, the first or a fresh one.
    pub(super) fn authorise(&mut self, token: OwnToken, now: Instant) {
        let Some(connection) = &mut self.connection else { return };
        match &mut self.claims {
            Some(claims) => {
                let verdict = claims.renew(connection, &token, now);
                self.judged(verdict);
            }
            None => match Claims::open(connection, &token, now) {
                Ok(claims) => self.claims = Some(claims),
                Err(misuse) => self.notices.push(Notice::Lost(misuse.to_string())),
            },
        }
    }

    fn judged(&mut self, verdict: claims::Verdict) {
        self.notices.extend(match verdict {
            claims::Verdict::Pending => None,
            claims::Verdict::Accepted => Some(Notice::Authorised),
            claims::Verdict::Due => Some(Notice::TokenDue),
            claims::Verdict::Refused(why) => Some(Notice::Lost(why)),
        });
    }

    /// The hub knows who we are: devices' links may be attached.
    pub(super) fn ready(&mut self, now: Instant) {
        self.phase = Phase::Ready;
        self.room = self.most_room();
        self.room_at = None;
        self.attach_missing(now);
    }

    /// The devices that the connection can have sessions for, as far as its channels go.
    fn most_room(&self) -> usize {
        let channels = self.connection.as_ref().map_or(0, Connection::channel_max);
        // Claims and shared links take a channel each.
        let claims = self.claims.is_some() || self.kind == Kind::Tokens;
        let taken = usize::from(claims) + usize::from(self.relay.is_some());
        let left = (usize::from(channels) + 1).saturating_sub(taken).max(1);
        self.settings.devices_per_connection.min(left)
    }

    /// The hub wants fewer devices on the connection.
    fn cut_room(&mut self, now: Instant) {
        self.room = self.room.min(self.sessions.len().saturating_sub(1).max(1));
        self.room_at = Some(now);
    }

    /// What the hub has no room for now it may have room for later: one more is tried from time to time.
    fn raise_room(&mut self, now: Instant) {
        if self.phase != Phase::Ready || self.room_at.is_none_or(|at| now < at + ROOM_AGAIN) {
            return;
        }
        let most = self.most_room();
        self.room = most.min(self.room + 1);
        self.room_at = (self.room < most).then_some(now);
    }
}

#[cfg(test)]
impl Uplink {
    /// Adds what is kept here.
    pub(super) fn count(&self, counts: &mut super::fleet::Counts) {
        counts.sessions += self.sessions.len();
        counts.links += self.links.len();
        counts.ending += self.ending.len();
        counts.crowded_out += self.crowded_out.len();
    }
}
