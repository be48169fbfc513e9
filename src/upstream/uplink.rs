//! The shared hub connection as a machine: which devices have a session and links, what waits,
//! what is in flight, what the hub answered. It opens no socket and asks no clock.
//!
//! ```text
//!        connected            opened, token put        token accepted
//!  Down ───────────▶ Opening ─────────────────▶ Opening ─────────────▶ Ready
//!   ▲                   (nothing to put: straight to Ready)              │
//!   └──────────────────────── lost ◀─────────────────────────────────────┘
//! ```

use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use fieldgate_amqp::connection::{Connection, Event, LinkId, SessionId};
use fieldgate_amqp::error::{AmqpError, Condition};
use fieldgate_amqp::performative::{Detach, Disposition, Flow, Transfer};
use fieldgate_mappings::address::{Address, DeviceId};
use fieldgate_mappings::amqp;
use fieldgate_mappings::message::Message;
use fieldgate_mappings::outcome::{Outcome, Verdict};

use crate::config;
use crate::table::Table;
use crate::telemetry::emit;

use super::claims::{self, Claims};
use super::commands::{CommandId, Commands};
use super::device::{Device, Waiting};
use super::target::OwnToken;
use super::telemetry::{
    CommandMapError, CommandReceived, CommandSettled, DeviceLinkLost, DeviceSessionLost, WaitingExceeded,
};
use super::{Command, CommandSink, Patience};

/// A device's session is ended when nothing was sent or subscribed for this long.
const IDLE_SESSION: Duration = Duration::from_secs(300);
/// How long the hub may take to answer for a message.
const ANSWER_TIME_OUT: Duration = Duration::from_secs(30);
/// How often devices are looked through for what waited too long.
const SWEEP: Duration = Duration::from_secs(1);
/// Bytes of messages that wait for the hub, over all devices of the worker.
const MAX_WAITING_BYTES: usize = 32 * 1024 * 1024;
/// Devices with a session, or with something that waits; about 500 bytes each.
const MAX_DEVICES: usize = 65_536;

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
    max_in_flight: usize,
    claims: Option<Claims>,
    devices: HashMap<DeviceId, Device>,
    /// Whose session, and whose link; claims stand apart.
    sessions: Table<SessionId, DeviceId>,
    links: Table<LinkId, DeviceId>,
    in_flight: usize,
    waiting_bytes: usize,
    sweep_at: Option<Instant>,
    serial: u64,
    /// Counts connections: a command of an earlier one must not be taken for one of this.
    epoch: u32,
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
            max_in_flight: config.max_in_flight.get(),
            claims: None,
            devices: HashMap::new(),
            sessions: Table::default(),
            links: Table::default(),
            in_flight: 0,
            waiting_bytes: 0,
            sweep_at: None,
            serial: 0,
            epoch: 0,
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
        let away = matches!(self.phase, Phase::Down { tried: true });
        if self.closing || away && !patience.through_outage || !self.has_room_for(&message.device) {
            return; // A verdict that is dropped unsent says released.
        }
        self.scratch.clear();
        amqp::encode(message, &mut self.scratch);
        let device = device(&mut self.devices, &message.device, now);
        let mut verdict = verdict;
        if self.in_flight < self.max_in_flight
            && let Some(connection) = &mut self.connection
        {
            match device.send(connection, &message.address, &self.scratch, verdict, now) {
                Ok(()) => {
                    self.in_flight += 1;
                    return;
                }
                Err(None) => return,
                Err(Some(back)) => verdict = back,
            }
        }
        let bytes = self.scratch.len();
        if self.waiting_bytes + bytes > MAX_WAITING_BYTES {
            return emit(WaitingExceeded { bytes: self.waiting_bytes });
        }
        self.waiting_bytes += bytes;
        let message_bytes = self.scratch.split().freeze();
        let waiting = Waiting { message: message_bytes, until: patience.until, verdict };
        if device.wait(&message.address, waiting) {
            self.attach(&message.device);
        }
        self.sweep_at.get_or_insert(now + SWEEP);
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
        let commands = Commands { serial, address, credit, sink, receiver: None };
        let device = device(&mut self.devices, id, now);
        if let Some(former) = device.commands.replace(commands) {
            self.drop_commands(former);
        }
        self.attach(id);
        self.sweep_at.get_or_insert(now + SWEEP);
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
            // Without an outcome for what is unsettled: a release would count against the command.
            connection.detach(receiver.link(), true, None);
        }
    }

    /// See [`Subscription::settle`](super::Subscription::settle).
    pub(super) fn settle(&mut self, id: &DeviceId, serial: u64, command: CommandId, outcome: &Outcome) {
        let device = self.devices.get_mut(id);
        let commands = device.and_then(|device| device.commands.as_mut());
        let receiver = commands
            .filter(|commands| commands.serial == serial && command.epoch == self.epoch)
            .and_then(|commands| commands.receiver.as_mut());
        let (Some(receiver), Some(connection)) = (receiver, &mut self.connection) else {
            return emit(CommandSettled { device: id, outcome: None });
        };
        if let Some(state) = amqp::reply(outcome) {
            receiver.settle(connection, command.delivery_id, command.delivery_id, &state);
            emit(CommandSettled { device: id, outcome: Some(outcome) });
        }
    }

    /// Nothing new is sent; what was sent may still be answered while the close is under way.
    pub(super) fn close(&mut self) {
        self.closing = true;
        if let Some(connection) = &mut self.connection {
            connection.close(None);
        }
    }

    // What the driver reports.

    /// A connection was made.
    pub(super) fn connected(&mut self, connection: Connection) {
        self.connection = Some(connection);
        self.phase = Phase::Opening;
        self.epoch = self.epoch.wrapping_add(1);
        self.notices.clear();
    }

    /// The connection is gone, or could not be made. What was sent has no outcome; what waits goes on waiting.
    pub(super) fn lost(&mut self) {
        self.connection = None;
        self.claims = None;
        self.phase = Phase::Down { tried: true };
        self.sessions = Table::default();
        self.links = Table::default();
        self.in_flight = 0;
        for device in self.devices.values_mut() {
            device.lose_session();
        }
        if self.closing {
            self.devices.clear();
            self.waiting_bytes = 0;
        }
    }

    /// Puts a token, the first or a fresh one.
    pub(super) fn authorise(&mut self, token: OwnToken, now: Instant) {
        let Some(connection) = &mut self.connection else { return };
        match &mut self.claims {
            Some(claims) => claims.renew(connection, token, now),
            None => match Claims::open(connection, token) {
                Ok(claims) => self.claims = Some(claims),
                Err(misuse) => self.notices.push(Notice::Lost(misuse.to_string())),
            },
        }
    }

    /// The hub knows who we are: devices' links may be attached.
    pub(super) fn ready(&mut self) {
        self.phase = Phase::Ready;
        let with_work: Vec<DeviceId> =
            self.devices.iter().filter(|(_, device)| device.has_work()).map(|(id, _)| id.clone()).collect();
        for id in with_work {
            self.attach(&id);
        }
    }

    /// Handles all that came over the connection.
    pub(super) fn handle_events(&mut self, now: Instant) {
        while let Some(event) = self.connection.as_mut().and_then(Connection::poll_event) {
            self.handle_event(event, now);
        }
    }

    fn handle_event(&mut self, event: Event, now: Instant) {
        let Some(connection) = &mut self.connection else { return };
        let for_claims = self.claims.as_ref().is_some_and(|claims| match &event {
            Event::SessionEnded { session, .. } | Event::Disposition { session, .. } => {
                claims.owns_session(*session)
            }
            Event::Attached { link, .. }
            | Event::Detached { link, .. }
            | Event::Transfer { link, .. }
            | Event::Flow { link: Some(link), .. } => claims.owns_link(*link),
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
            Event::Attached { link, .. } => self.attached(link),
            Event::Flow { link: Some(link), flow, .. } => self.flow(link, &flow, now),
            Event::Disposition { session, disposition } => self.disposition(session, &disposition, now),
            Event::Transfer { link, transfer, delivery_id, .. } => {
                self.transfer(link, &transfer, delivery_id)
            }
            Event::Detached { link, detach, answered, .. } => self.detached(link, &detach, answered),
            Event::SessionEnded { session, error } => self.session_ended(session, error.as_ref()),
            Event::SessionBegun { .. } | Event::Flow { link: None, .. } | Event::SaslInit { .. } => {}
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
        if let Some(claims) = &mut self.claims {
            let verdict = claims.handle_timeout(now);
            self.judged(verdict);
        }
        if self.sweep_at.is_some_and(|at| at <= now) {
            self.sweep(now);
            self.sweep_at = (!self.devices.is_empty()).then(|| now + SWEEP);
        }
    }

    fn sweep(&mut self, now: Instant) {
        let Self { devices, connection, sessions, links, in_flight, waiting_bytes, .. } = self;
        *waiting_bytes = 0;
        devices.retain(|id, device| {
            device.expire(now);
            *waiting_bytes += device.waiting_bytes();
            let silent = device.oldest_sent().is_some_and(|sent_at| now >= sent_at + ANSWER_TIME_OUT);
            let idle = device.is_idle() && now >= device.used_at + IDLE_SESSION;
            if (silent || idle)
                && let (Some(session), Some(connection)) = (device.session, connection.as_mut())
            {
                // A hub that does not answer for a message is asked for nothing more over this session; what it
                // was sent is unknown. The links are attached anew when there is more to send.
                links.retain(|_, owner| owner != id);
                sessions.remove(session);
                connection.end(session, None);
                *in_flight -= device.lose_session();
                if silent {
                    emit(DeviceSessionLost { device: id, error: None });
                }
            }
            !(device.is_idle() && (idle || device.session.is_none()))
        });
    }

    fn has_room_for(&self, id: &DeviceId) -> bool {
        self.devices.len() < MAX_DEVICES || self.devices.contains_key(id)
    }

    /// Attaches the links that a device needs and does not have.
    fn attach(&mut self, id: &DeviceId) {
        if self.phase != Phase::Ready || self.closing {
            return;
        }
        if self
            .connection
            .as_ref()
            .is_some_and(|connection| self.sessions.len() > usize::from(connection.channel_max()))
        {
            self.end_longest_idle();
        }
        let (Some(connection), Some(device)) = (&mut self.connection, self.devices.get_mut(id)) else {
            return;
        };
        let links = &mut self.links;
        let attached = device.attach(connection, |link| links.insert(link, id.clone()));
        if let Some(session) = device.session {
            self.sessions.insert(session, id.clone());
        }
        // Without room the messages wait; the next sweep or the end of another session brings the next try.
        if let Err(misuse) = attached {
            tracing::debug!(device = %id, %misuse, "no room for a device's links");
        }
    }

    /// Makes room for another session.
    fn end_longest_idle(&mut self) {
        let idle = self.devices.iter().filter(|(_, device)| device.is_idle() && device.session.is_some());
        let Some(id) = idle.min_by_key(|(_, device)| device.used_at).map(|(id, _)| id.clone()) else {
            return;
        };
        if let (Some(mut device), Some(connection)) = (self.devices.remove(&id), &mut self.connection)
            && let Some(session) = device.session
        {
            self.links.retain(|_, owner| *owner != id);
            self.sessions.remove(session);
            connection.end(session, None);
            self.in_flight -= device.lose_session();
        }
    }

    fn attached(&mut self, link: LinkId) {
        let (Some(connection), Some(device)) =
            (&mut self.connection, self.links.get(link).and_then(|id| self.devices.get_mut(id)))
        else {
            return;
        };
        if let Some(receiver) = device.receiver(link) {
            receiver.on_attached(connection);
        }
    }

    fn flow(&mut self, link: LinkId, flow: &Flow, now: Instant) {
        let (Some(connection), Some(device)) =
            (&mut self.connection, self.links.get(link).and_then(|id| self.devices.get_mut(id)))
        else {
            return;
        };
        if let Some(receiver) = device.receiver(link) {
            receiver.on_flow(connection, flow);
            return;
        }
        let room = self.max_in_flight.saturating_sub(self.in_flight);
        self.in_flight += device.flow(connection, link, flow, room, now);
    }

    fn disposition(&mut self, session: SessionId, disposition: &Disposition, now: Instant) {
        let (Some(connection), Some(device)) =
            (&mut self.connection, self.sessions.get(session).and_then(|id| self.devices.get_mut(id)))
        else {
            return;
        };
        let mut settled = 0;
        device.unsettled.on_disposition(connection, session, disposition, |delivery| {
            settled += 1;
            let outcome = match delivery.state {
                // Settled without a state: the source named no default outcome, so nothing is certain.
                None => Outcome::Unknown,
                Some(state) => amqp::outcome(state).unwrap_or(Outcome::Unknown),
            };
            delivery.value.report(outcome);
        });
        self.in_flight -= settled;
        device.used_at = now;
        let room = self.max_in_flight.saturating_sub(self.in_flight);
        self.in_flight += device.send_waiting(connection, room, now);
    }

    fn transfer(&mut self, link: LinkId, transfer: &Transfer, delivery_id: u32) {
        let (Some(connection), Some(id)) = (&mut self.connection, self.links.get(link)) else { return };
        let Some(device) = self.devices.get_mut(id) else { return };
        let Some(commands) = device.commands_over(link) else { return };
        let Some(receiver) = &mut commands.receiver else { return };
        // A command above the bound has detached the link: the answer to that ends the subscription.
        let Ok(Some(delivery)) = receiver.on_transfer(connection, transfer, delivery_id) else { return };
        // A copy, because it waits for the device: a slice would keep the worker's read buffer.
        let encoded = Bytes::copy_from_slice(&delivery.payload);
        match amqp::decode(id.clone(), commands.address.clone(), &encoded) {
            Ok(message) => {
                emit(CommandReceived { device: id });
                let id = CommandId { epoch: self.epoch, delivery_id };
                commands.sink.command(Command { id, message });
            }
            Err(rejection) => {
                if let Some(state) = amqp::reply(&Outcome::Rejected(rejection.clone())) {
                    receiver.settle(connection, delivery_id, delivery_id, &state);
                }
                emit(CommandMapError { device: id, rejection: &rejection });
            }
        }
    }

    fn detached(&mut self, link: LinkId, detach: &Detach, answered: bool) {
        let Some(connection) = &mut self.connection else { return };
        if !answered {
            connection.detach(link, true, None);
        }
        let Some(id) = self.links.remove(link) else { return };
        let Some(device) = self.devices.get_mut(&id) else { return };
        let error = detach.error();
        let outcome = error.as_ref().map_or(Outcome::Released, amqp::refusal);
        if device.uses(link) {
            emit(DeviceLinkLost { device: &id, error: error.as_ref() });
            self.in_flight -= device.lose_link(link, &outcome);
        }
    }

    fn session_ended(&mut self, session: SessionId, error: Option<&AmqpError>) {
        let Some(id) = self.sessions.remove(session) else { return };
        self.links.retain(|_, owner| *owner != id);
        if let Some(device) = self.devices.get_mut(&id).filter(|device| device.session == Some(session)) {
            emit(DeviceSessionLost { device: &id, error });
            self.in_flight -= device.lose_session();
            // What waits would only meet the same end at once; its senders may try again.
            device.release_waiting();
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
