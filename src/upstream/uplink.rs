//! The shared hub connection as a machine: which devices have a session and links, what waits,
//! what is in flight, what the hub answered. It opens no socket and asks no clock.
//!
//! ```text
//!        connected            opened, token put        token accepted
//!  Down ───────────▶ Opening ─────────────────▶ Opening ─────────────▶ Ready
//!   ▲                   (nothing to put: straight to Ready)              │
//!   └──────────────────────── lost ◀─────────────────────────────────────┘
//! ```

mod sessions;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use fieldgate_amqp::connection::{Connection, Event, LinkId, SessionId};
use fieldgate_amqp::error::{AmqpError, Condition};
use fieldgate_amqp::performative::{Attach, Disposition, Flow, Transfer};
use fieldgate_mappings::address::{Address, DeviceId};
use fieldgate_mappings::amqp;
use fieldgate_mappings::message::Message;
use fieldgate_mappings::outcome::{Outcome, Verdict};

use crate::config;
use crate::table::Table;
use crate::telemetry::emit;

use super::claims::{self, Claims};
use super::commands::{CommandId, Commands};
use super::device::{Device, TooManyOutlets, Waiting};
use super::load::Load;
use super::target::OwnToken;
use super::telemetry::{CommandMapError, CommandReceived, CommandSettled, OutletsExceeded, WaitingExceeded};
use super::{Command, CommandSink, Patience};

/// A device's session is ended when nothing was sent or subscribed for this long.
const IDLE_SESSION: Duration = Duration::from_secs(300);
/// How long the hub may take to answer for a message, or to answer the end of a session.
const ANSWER_TIME_OUT: Duration = Duration::from_secs(30);
/// How often devices are looked through for what waited too long.
const SWEEP: Duration = Duration::from_secs(1);
/// Devices with a session, or with something that waits; about 500 bytes each.
const MAX_DEVICES: usize = 65_536;
/// Messages that a device may send at a time while others wait for their turn.
const TURN: usize = 16;

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

/// The machine.
#[derive(Debug)]
pub(super) struct Uplink {
    pub(super) connection: Option<Connection>,
    phase: Phase,
    closing: bool,
    load: Rc<Load>,
    claims: Option<Claims>,
    devices: HashMap<DeviceId, Device>,
    /// Whose session, and whose link; claims stand apart.
    sessions: Table<SessionId, DeviceId>,
    links: Table<LinkId, DeviceId>,
    /// Sessions that we have ended and the hub has not, and since when.
    ending: Table<SessionId, Instant>,
    /// Devices that have credit and something to send, and wait until less is in flight.
    stalled: VecDeque<DeviceId>,
    /// Devices that wait for a channel or a handle.
    crowded_out: VecDeque<DeviceId>,
    sweep_at: Option<Instant>,
    serial: u64,
    /// A message being encoded.
    scratch: BytesMut,
    notices: Vec<Notice>,
}

impl Uplink {
    /// A machine without a connection.
    pub(super) fn new(config: &config::Upstream) -> Self {
        Self {
            connection: None,
            phase: Phase::Down { tried: false },
            closing: false,
            load: Load::new(config.max_in_flight.get()),
            claims: None,
            devices: HashMap::new(),
            sessions: Table::default(),
            links: Table::default(),
            ending: Table::default(),
            stalled: VecDeque::new(),
            crowded_out: VecDeque::new(),
            sweep_at: None,
            serial: 0,
            scratch: BytesMut::new(),
            notices: Vec::new(),
        }
    }

    /// Whether [`close`](Self::close) was called.
    pub(super) fn is_closing(&self) -> bool {
        self.closing
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.sweep_at.into_iter().chain(self.claims.as_ref().and_then(Claims::poll_timeout)).min()
    }

    /// What the driver must see to, oldest first.
    pub(super) fn take_notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    // What the adapters ask for.

    /// See [`Upstream::send`](super::Upstream::send).
    pub(super) fn send(&mut self, message: &Message, patience: Patience, verdict: Verdict, now: Instant) {
        let mut encoded = std::mem::take(&mut self.scratch);
        encoded.clear();
        amqp::encode(message, &mut encoded);
        self.send_encoded(&message.device, &message.address, &encoded, patience, verdict, now);
        self.scratch = encoded;
    }

    /// Whether there is no connection, and not for want of having tried.
    pub(super) fn is_away(&self) -> bool {
        matches!(self.phase, Phase::Down { tried: true })
    }

    /// See [`Upstream::send_encoded`](super::Upstream::send_encoded).
    pub(super) fn send_encoded(
        &mut self,
        id: &DeviceId,
        address: &Address,
        encoded: &[u8],
        patience: Patience,
        verdict: Verdict,
        now: Instant,
    ) {
        if self.closing || self.is_away() && !patience.through_outage || !self.has_room_for(id) {
            return; // A verdict that is dropped unsent says released.
        }
        let device = device(&mut self.devices, id, now);
        self.sweep_at.get_or_insert(now + SWEEP);
        let verdict = match &mut self.connection {
            None => verdict,
            Some(connection) => match device.send(connection, &self.load, address, encoded, verdict, now) {
                Ok(()) => return,
                Err(verdict) => verdict,
            },
        };
        let Some(share) = self.load.wait(encoded.len()) else {
            return emit(WaitingExceeded { bytes: self.load.waiting_bytes() });
        };
        match device.open_outlet(address) {
            Ok(None) => {}
            Ok(Some(recycled)) => {
                self.links.remove(recycled);
                if let Some(connection) = &mut self.connection {
                    connection.detach(recycled, true, None);
                }
            }
            Err(TooManyOutlets) => return emit(OutletsExceeded { device: id }),
        }
        // A copy of its own: the caller's buffer is used again.
        let waiting = Waiting { message: Bytes::copy_from_slice(encoded), patience, verdict, share };
        if device.wait(address, waiting) {
            self.attach(id, now);
        } else if self.load.is_full() && !device.stalled {
            device.stalled = true;
            self.stalled.push_back(id.clone());
        }
    }

    /// See [`Upstream::subscribe`](super::Upstream::subscribe). Gives the subscription's number.
    pub(super) fn subscribe(
        &mut self,
        id: &DeviceId,
        address: Address,
        credit: u32,
        sink: Rc<dyn CommandSink>,
        now: Instant,
    ) -> u64 {
        self.serial += 1;
        let serial = self.serial;
        if self.closing || !self.has_room_for(id) {
            sink.ended(None);
            return serial;
        }
        let commands = Commands { serial, address, credit, sink, receiver: None, attachment: 0 };
        let device = device(&mut self.devices, id, now);
        self.sweep_at.get_or_insert(now + SWEEP);
        if let Some(former) = device.commands.replace(commands) {
            self.drop_commands(former);
        }
        self.attach(id, now);
        serial
    }

    /// Ends a subscription, unless another one has taken its place.
    pub(super) fn unsubscribe(&mut self, id: &DeviceId, serial: u64) {
        let device = self.devices.get_mut(id);
        let gone = device.and_then(|device| device.commands.take_if(|commands| commands.serial == serial));
        if let Some(commands) = gone {
            self.drop_commands(commands);
        }
    }

    fn drop_commands(&mut self, commands: Commands) {
        if let (Some(receiver), Some(connection)) = (commands.receiver, &mut self.connection) {
            self.links.remove(receiver.link());
            // Without an outcome for what is unsettled: a release would count against the command.
            connection.detach(receiver.link(), true, None);
        }
    }

    /// See [`Subscription::settle`](super::Subscription::settle).
    pub(super) fn settle(&mut self, id: &DeviceId, serial: u64, command: CommandId, outcome: &Outcome) {
        if command.settled {
            return;
        }
        let device = self.devices.get_mut(id);
        let commands = device.and_then(|device| device.commands.as_mut());
        let receiver = commands
            .filter(|commands| commands.serial == serial && commands.attachment == command.attachment)
            .and_then(|commands| commands.receiver.as_mut());
        let (Some(receiver), Some(connection)) = (receiver, &mut self.connection) else {
            return emit(CommandSettled { device: id, outcome: None });
        };
        if let Some(state) = amqp::reply(outcome) {
            receiver.settle(connection, command.delivery_id, command.delivery_id, &state);
            emit(CommandSettled { device: id, outcome: Some(outcome) });
        }
    }

    /// Nothing new is sent. What was sent may still be answered: the connection is closed when all of it is.
    pub(super) fn close(&mut self) {
        self.closing = true;
        for device in self.devices.values_mut() {
            device.release_waiting(|_| true);
        }
        self.close_when_answered();
    }

    fn close_when_answered(&mut self) {
        if self.closing
            && self.load.in_flight() == 0
            && let Some(connection) = &mut self.connection
        {
            connection.close(None);
        }
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
        self.phase = Phase::Down { tried: true };
        self.sessions = Table::default();
        self.links = Table::default();
        self.ending = Table::default();
        self.stalled.clear();
        self.crowded_out.clear();
        for device in self.devices.values_mut() {
            device.stalled = false;
            device.crowded_out = false;
            // What was sent is older than what waits, and is told first.
            device.lose_session();
            device.release_waiting(|patience| !patience.through_outage);
        }
        if self.closing {
            self.devices.clear();
        }
    }

    /// Puts a token, the first or a fresh one.
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

    /// The hub knows who we are: devices' links may be attached.
    pub(super) fn ready(&mut self, now: Instant) {
        self.phase = Phase::Ready;
        self.attach_missing(now);
    }

    /// Handles all that came over the connection.
    pub(super) fn handle_events(&mut self, now: Instant) {
        while let Some(event) = self.connection.as_mut().and_then(Connection::poll_event) {
            self.handle_event(event, now);
            self.serve_stalled(now);
        }
        self.close_when_answered();
    }

    fn handle_event(&mut self, event: Event, now: Instant) {
        let Some(connection) = &mut self.connection else { return };
        let for_claims = self.claims.as_ref().is_some_and(|claims| match &event {
            Event::SessionEnded { session, .. }
            | Event::Disposition { session, .. }
            | Event::Attached { session, .. }
            | Event::Detached { session, .. }
            | Event::Transfer { session, .. }
            | Event::Flow { session, .. } => claims.owns_session(*session),
            _ => false,
        });
        if let (true, Some(claims)) = (for_claims, &mut self.claims) {
            let verdict = claims.handle_event(connection, event, now);
            return self.judged(verdict);
        }
        match event {
            Event::Opened(_) => self.notices.push(Notice::Opened),
            Event::Closed(reason) => self.notices.push(Notice::Lost(reason.to_string())),
            // A hub has nothing to begin or attach here.
            Event::SessionBegun { session, by_peer: true, .. } => {
                connection.end(session, Some(not_asked_for()))
            }
            Event::Attached { link, by_peer: true, .. } => connection.refuse_attach(link, not_asked_for()),
            Event::Attached { link, attach, .. } => self.attached(link, &attach),
            Event::Flow { link, session, flow } => self.flow(session, link, &flow, now),
            Event::Disposition { session, disposition } => self.disposition(session, &disposition, now),
            Event::Transfer { link, transfer, delivery_id, .. } => {
                self.transfer(link, &transfer, delivery_id)
            }
            Event::Detached { link, detach, answered, .. } => self.detached(link, &detach, answered, now),
            Event::SessionEnded { session, error } => self.session_ended(session, error.as_ref(), now),
            Event::SessionBegun { .. } | Event::SaslInit { .. } | Event::Authenticated => {}
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

    /// Renews the token, releases what waited too long, lets idle sessions go.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if let (Some(claims), Some(connection)) = (&mut self.claims, &mut self.connection) {
            let verdict = claims.handle_timeout(connection, now);
            self.judged(verdict);
        }
        if self.sweep_at.is_some_and(|at| at <= now) {
            self.sweep(now);
            let more = !self.devices.is_empty() || self.ending.len() > 0;
            self.sweep_at = more.then(|| now + SWEEP);
        }
        self.close_when_answered();
    }

    fn has_room_for(&self, id: &DeviceId) -> bool {
        self.devices.len() < MAX_DEVICES || self.devices.contains_key(id)
    }

    /// Lets devices send that could not because too much was in flight, each in its turn.
    fn serve_stalled(&mut self, now: Instant) {
        let Some(connection) = &mut self.connection else { return };
        while !self.load.is_full()
            && let Some(id) = self.stalled.pop_front()
        {
            let Some(device) = self.devices.get_mut(&id) else { continue };
            device.stalled = device.send_waiting(connection, &self.load, TURN, now);
            if device.stalled {
                self.stalled.push_back(id);
            }
        }
    }

    fn attached(&mut self, link: LinkId, attach: &Attach) {
        let Some((connection, device)) =
            self.links.get(link).and_then(|id| Some((self.connection.as_mut()?, self.devices.get_mut(id)?)))
        else {
            return;
        };
        device.attached(connection, link, attach);
    }

    fn flow(&mut self, session: SessionId, link: Option<LinkId>, flow: &Flow, now: Instant) {
        let Some(id) = self.sessions.get(session) else { return };
        let (Some(connection), Some(device)) = (&mut self.connection, self.devices.get_mut(id)) else {
            return;
        };
        let stalled = match link {
            Some(link) => device.flow(connection, &self.load, link, flow, now),
            None => device.send_waiting(connection, &self.load, usize::MAX, now),
        };
        if stalled && !device.stalled {
            device.stalled = true;
            self.stalled.push_back(id.clone());
        }
    }

    fn disposition(&mut self, session: SessionId, disposition: &Disposition, now: Instant) {
        let Some(id) = self.sessions.get(session) else { return };
        if let (Some(connection), Some(device)) = (&mut self.connection, self.devices.get_mut(id)) {
            device.disposition(connection, session, disposition, now);
        }
    }

    fn transfer(&mut self, link: LinkId, transfer: &Transfer, delivery_id: u32) {
        let (Some(connection), Some(id)) = (&mut self.connection, self.links.get(link)) else { return };
        let Some(device) = self.devices.get_mut(id) else { return };
        let Some(commands) = device.commands_over(link) else { return };
        let Some(receiver) = &mut commands.receiver else { return };
        // A command above the bound has detached the link: the answer to that ends the subscription.
        let Ok(Some(delivery)) = receiver.on_transfer(connection, transfer, delivery_id) else { return };
        let settled = delivery.settled;
        // A copy, because it waits for the device: a slice would keep the worker's read buffer.
        let encoded = Bytes::copy_from_slice(&delivery.payload);
        match amqp::decode(id.clone(), commands.address.clone(), &encoded) {
            Ok(message) => {
                emit(CommandReceived { device: id });
                let id = CommandId { attachment: commands.attachment, delivery_id, settled };
                commands.sink.command(Command { id, message });
            }
            Err(rejection) => {
                if let (false, Some(state)) = (settled, amqp::reply(&Outcome::Rejected(rejection.clone()))) {
                    receiver.settle(connection, delivery_id, delivery_id, &state);
                }
                emit(CommandMapError { device: id, rejection: &rejection });
            }
        }
    }
}

fn device<'a>(devices: &'a mut HashMap<DeviceId, Device>, id: &DeviceId, now: Instant) -> &'a mut Device {
    // Two look-ups where `entry` would have one, and no clone of the id for a device that is known.
    if !devices.contains_key(id) {
        devices.insert(id.clone(), Device::new(now));
    }
    let device = devices.get_mut(id).expect("it was there, or has just been put there");
    device.used_at = now;
    device
}

fn not_asked_for() -> AmqpError {
    AmqpError::new(&Condition::NotAllowed, Some("a gateway offers no nodes"))
}
