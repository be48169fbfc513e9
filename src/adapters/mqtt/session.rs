//! One client of MQTT, between its machine and the hub: what each packet means, and what each outcome becomes.
//!
//! It moves no bytes and waits for nothing: the loop in [`super`] does.

mod entering;
mod leaving;
mod subscribing;

use std::mem;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use fieldgate_mappings::address::{DeviceId, Identity};
use fieldgate_mappings::message::Message;
use fieldgate_mappings::mqtt::{self, OnRejected, Reply3, Reply5, reply_3, reply_5};
use fieldgate_mappings::outcome::{Outcome, Reason, Rejection};
use fieldgate_mqtt::{
    Config, Connection, Disconnect, DisconnectReason, Event, Misuse, Publish, PublishReply, PublishToken,
    Version,
};

use crate::adapters::Held;
use crate::config;
use crate::devices::{Devices, Stay};
use crate::telemetry::emit;
use crate::upstream::{Hears, Patience};
use crate::wire::Machine;

use super::commands::Commands;
use super::connect::{Judging, Proving};
use super::host::Host;
use super::inbox::{Inbox, Ticket};
use super::kept::Late;
use super::listener::Guest;
use super::telemetry::{
    self, ConnectionEnded, ConnectionPaused, End, MachineMisused, PublishRejected, QoS0Dropped,
};
use super::words;
use entering::Joining;

/// How long a connection goes on, unread, after a message came back untaken. The device can send that again over a
/// new connection only, and should not do so in a fast circle.
const PAUSE: Duration = Duration::from_secs(5);
/// How long a message may wait for a link and for credit while the hub is there.
const LINK_PATIENCE: Duration = Duration::from_secs(10);

/// One connection, from accept to its last word.
pub(super) struct Session<H: Host> {
    host: Rc<H>,
    guest: Guest,
    machine: Connection,
    inbox: Rc<Inbox>,
    /// Who it is, from CONNECT on.
    client: Option<Client>,
    /// Who wants to be let in, while its password is verified.
    judging: Option<Box<Judging>>,
    /// Whose token its hub is to judge.
    proving: Option<Box<Proving>>,
    /// Who waits for the session that another connection still has.
    joining: Option<Box<Joining>>,
    commands: Option<Box<Commands<H::Subscription>>>,
    /// When the pause is over, and the connection with it.
    paused_until: Option<Instant>,
    /// How long what an earlier connection has sent is waited for, before anything new is taken.
    earlier_until: Option<Instant>,
    /// Nothing new is taken: the gateway stops.
    draining: bool,
    /// The client sends nothing more; it may still hear.
    input_ended: bool,
    /// The client said goodbye.
    left: bool,
    /// There is something to do as soon as the output is written.
    again: bool,
    /// A message was refused before.
    rejected: bool,
    /// The end of the connection has been told.
    told: bool,
}

/// A client that was let in.
struct Client {
    device: DeviceId,
    version: Version,
    held: Held,
    stay: Stay,
    will: Option<Box<Message>>,
    /// How long after the end the will is sent.
    will_delay: Duration,
    /// How long the session is kept after the end; zero is not at all.
    expiry: Duration,
    /// Outcomes of messages of earlier connections of the session.
    late: Arc<Late>,
}

impl<H: Host> Session<H> {
    /// The session of a connection that was just accepted.
    pub(super) fn new(host: Rc<H>, guest: Guest, config: Arc<Config>) -> Self {
        Self {
            host,
            machine: Connection::new(config, guest.since),
            guest,
            inbox: Rc::default(),
            client: None,
            judging: None,
            proving: None,
            joining: None,
            commands: None,
            paused_until: None,
            earlier_until: None,
            draining: false,
            input_ended: false,
            left: false,
            again: false,
            rejected: false,
            told: false,
        }
    }

    /// Takes notice of a take-over, and has the task of `cx` woken for what comes from elsewhere.
    pub(super) fn listen(&mut self, cx: &mut Context<'_>) {
        if self.machine.is_closed() {
            return;
        }
        self.inbox.listen(cx);
        self.listen_at_the_door(cx);
        let Some(client) = &mut self.client else { return };
        client.late.listen(cx);
        let is_taken_over = client.held.poll_taken_over(cx).is_ready();
        if client.stay.poll_over(cx).is_ready() {
            // Whatever it left behind is not said in its name any more.
            client.will = None;
            client.expiry = Duration::ZERO;
            self.close(DisconnectReason::NotAuthorised, End::CutOff);
        } else if is_taken_over {
            self.close(DisconnectReason::SessionTakenOver, End::TakenOver);
        }
    }

    /// Handles all that has come.
    pub(super) fn handle(&mut self, now: Instant) {
        self.open_the_door(now);
        while let Some((token, outcome)) = self.client.as_ref().and_then(|client| client.late.next()) {
            self.settle_late(token, &outcome, now);
        }
        self.wait_for_earlier(now);
        while let Some((ticket, outcome)) = self.inbox.next_outcome() {
            self.settle(ticket, &outcome, now);
        }
        while !self.is_held_back()
            && let Some(event) = self.machine.poll_event()
        {
            self.handle_event(event, now);
        }
        while let Some((device, ended)) = self.inbox.take_ended() {
            self.commands_ended(&device, &ended);
        }
        self.deliver();
        if self.draining && (self.machine.unacknowledged() == 0 || self.paused_until.is_some()) {
            self.close(DisconnectReason::ServerShuttingDown, End::Stopping);
        }
    }

    /// Whether the client is to be read.
    pub(super) fn wants_input(&self) -> bool {
        !self.is_held_back() && self.machine.wants_input()
    }

    /// Whether nothing is left to be done but to say the last words.
    pub(super) fn is_over(&self) -> bool {
        let waits = self.machine.unacknowledged() > 0 && self.paused_until.is_none();
        self.machine.is_closed() || self.input_ended && !waits
    }

    /// All output has been taken by the stream. True if there is more to do now.
    pub(super) fn written(&mut self) -> bool {
        if let Some(commands) = &mut self.commands {
            commands.written();
        }
        mem::take(&mut self.again)
    }

    /// The client sends nothing more. What it waits for is still answered.
    pub(super) fn end_input(&mut self) {
        self.input_ended = true;
    }

    /// The gateway stops: nothing new is taken, and once all is answered the client is told to go.
    pub(super) fn drain(&mut self) {
        self.draining = true;
    }

    /// The gateway waits no longer.
    pub(super) fn abort(&mut self) {
        self.close(DisconnectReason::ServerShuttingDown, End::Stopping);
    }

    fn is_held_back(&self) -> bool {
        let waits = self.draining || self.paused_until.is_some() || self.earlier_until.is_some();
        waits && !self.machine.is_closed()
    }

    /// What an earlier connection has sent, perhaps over another worker, is to be there first; for so long.
    fn wait_for_earlier(&mut self, now: Instant) {
        if self.earlier_until.is_some_and(|until| until <= now || !self.machine.awaits_earlier()) {
            self.earlier_until = None;
            // There may be input that nobody has been asked for.
            self.again = true;
        }
    }

    fn handle_event(&mut self, event: Event, now: Instant) {
        match event {
            Event::Connect(connect) => self.connect(connect, now),
            Event::Publish(publish) => self.publish(publish, now),
            Event::PublishRefused(_) => self.refused_by_the_machine(),
            Event::Subscribe(subscribe) => self.subscribe(&subscribe),
            Event::Unsubscribe(unsubscribe) => self.unsubscribe(&unsubscribe),
            Event::PublishAcknowledged { packet_id, reason } => {
                if let Some(commands) = &mut self.commands {
                    commands.acknowledged(packet_id, reason);
                }
            }
            Event::Disconnected(disconnect) => self.disconnected(&disconnect),
            Event::TimedOut(time_out) => self.tell(End::TimedOut(time_out)),
            Event::Violation(violation) => self.tell(End::Violation(violation)),
        }
    }

    fn disconnected(&mut self, disconnect: &Disconnect) {
        self.left = true;
        let longest = self.host.config().mqtt.session_expiry_max;
        if let Some(client) = &mut self.client {
            if disconnect.deletes_will() {
                client.will = None;
            }
            if let Some(seconds) = disconnect.session_expiry_seconds {
                client.expiry = Duration::from_secs(seconds.into()).min(longest);
            }
        }
        self.tell(End::Left(disconnect.reason));
    }

    fn publish(&mut self, publish: Publish, now: Instant) {
        let Some(client) = &self.client else { return };
        let Publish { token, topic, payload, qos, dup: _, retain, properties } = publish;
        let payload_bytes = payload.len();
        let properties = properties.map(|properties| words::read(*properties)).unwrap_or_default();
        let said = mqtt::Publish { topic: &topic, payload, qos: qos as u8, retain, properties };
        let rules = self.host.rules();
        // Most rule sets let nobody act for others: then the registry is not looked at.
        let others = rules.has_via().then(|| self.host.roster().devices());
        match (rules.map_mqtt(identity(&client.device, &others), said), token) {
            (Ok(message), Some(token)) => {
                let verdict = self.inbox.verdict(Ticket::of(token, qos));
                let hears = match client.version {
                    Version::V311 => Hears::Acceptance,
                    Version::V5 => Hears::Everything,
                };
                self.host.send(message, patience(self.host.config(), hears, now), verdict);
            }
            (Ok(message), None) => match self.inbox.unwaited(payload_bytes) {
                Some(verdict) => {
                    self.host.send(message, patience(self.host.config(), Hears::Nothing, now), verdict)
                }
                None => emit(QoS0Dropped { device: &client.device }),
            },
            (Err(rejection), token) => {
                let ticket = token.map_or(Ticket::Unwaited(0), |token| Ticket::of(token, qos));
                let outcome = Outcome::Rejected(rejection);
                telemetry::published(ticket.kind(), &outcome).inc();
                self.settle(ticket, &outcome, now);
            }
        }
    }

    /// A message has its outcome.
    fn settle(&mut self, ticket: Ticket, outcome: &Outcome, now: Instant) {
        let Some(client) = &self.client else { return };
        if let Outcome::Rejected(rejection) = outcome {
            let first = !mem::replace(&mut self.rejected, true);
            emit(PublishRejected { device: &client.device, rejection, first });
        }
        if let Some(token) = ticket.token() {
            self.answer(client.version, token, outcome, now);
        }
    }

    /// A message of an earlier connection of the session has its outcome.
    fn settle_late(&mut self, token: PublishToken, outcome: &Outcome, now: Instant) {
        let Some(client) = &self.client else { return };
        if self.machine.is_repeated(token) {
            return self.settle(Ticket::WaitingForOne(token), outcome, now);
        }
        let is_taken = match client.version {
            Version::V311 => matches!(
                reply_3(outcome, OnRejected::default()),
                Reply3::Acknowledge | Reply3::AcknowledgeAndDeadLetter
            ),
            Version::V5 => matches!(outcome, Outcome::Accepted),
        };
        // What nobody has is a new message when it comes again.
        let reply = if is_taken { PublishReply::Success } else { PublishReply::Unspecified };
        self.machine.acknowledge(token, reply);
    }

    /// The device has its answer already.
    fn refused_by_the_machine(&mut self) {
        let Some(client) = &self.client else { return };
        let rejection = Rejection::new(Reason::Content, "the payload is not the text that it is said to be");
        let first = !mem::replace(&mut self.rejected, true);
        emit(PublishRejected { device: &client.device, rejection: &rejection, first });
    }

    /// The client is told of an outcome, or the connection ends without a word about it. Then the session must not wait
    /// for an outcome either: what the client sends again is a new message.
    fn answer(&mut self, version: Version, token: PublishToken, outcome: &Outcome, now: Instant) {
        match version {
            Version::V311 => match reply_3(outcome, OnRejected::default()) {
                Reply3::Acknowledge | Reply3::AcknowledgeAndDeadLetter => {
                    return self.machine.acknowledge(token, PublishReply::Success);
                }
                Reply3::Pause => self.pause(now),
                Reply3::Close => self.close(DisconnectReason::ServerBusy, End::of(outcome)),
            },
            Version::V5 => match reply_5(outcome) {
                Reply5::Acknowledge(code) => {
                    let why = match outcome {
                        Outcome::Rejected(rejection) => Some(&*rejection.description),
                        Outcome::Accepted | Outcome::Released | Outcome::Unknown => None,
                    };
                    return self.machine.acknowledge_because(token, words::puback(code), why);
                }
                Reply5::Pause => self.pause(now),
                Reply5::Disconnect(code) => self.close(words::disconnect(code), End::of(outcome)),
            },
        }
        self.machine.withhold(token);
    }

    fn pause(&mut self, now: Instant) {
        if let (None, Some(client)) = (self.paused_until, &self.client) {
            emit(ConnectionPaused { device: &client.device });
            self.paused_until = Some(now + PAUSE.min(self.host.config().upstream.hold));
        }
    }

    fn close(&mut self, reason: DisconnectReason, end: End<'_>) {
        if !self.machine.is_closed() {
            self.tell(end);
            self.machine.disconnect(reason);
        }
    }

    /// Tells of the end of the connection; what is said first counts.
    fn tell(&mut self, end: End<'_>) {
        if !mem::replace(&mut self.told, true) {
            let device = self.client.as_ref().map(|client| &client.device);
            emit(ConnectionEnded { peer: self.guest.peer, device, end });
        }
    }

    fn check(&self, done: Result<(), Misuse>) {
        if let Err(misuse) = done {
            emit(MachineMisused { peer: self.guest.peer, misuse });
        }
    }
}

/// Who a client is: a device, and where rules let it, a gateway for others.
fn identity<'a>(device: &'a DeviceId, others: &'a Option<Arc<Devices>>) -> Identity<'a> {
    match others {
        Some(others) => Identity::MayActFor(device, &**others),
        None => Identity::Is(device),
    }
}

/// How long a message may wait for the hub.
fn patience(config: &config::Config, hears: Hears, now: Instant) -> Patience {
    let hold = config.upstream.hold;
    let through_outage = hears != Hears::Nothing && !hold.is_zero();
    let wait = if through_outage { hold.max(LINK_PATIENCE) } else { LINK_PATIENCE };
    Patience { until: now + wait, through_outage, in_order: false, hears }
}

impl<H: Host> Machine for Session<H> {
    fn handle_input(&mut self, now: Instant, input: BytesMut) {
        self.machine.handle_input(now, input);
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.machine.handle_timeout(now);
        if self.paused_until.is_some_and(|until| until <= now) {
            self.close(DisconnectReason::ServerBusy, End::HubAway);
        }
    }

    fn poll_transmit(&mut self) -> Option<Bytes> {
        self.machine.poll_transmit()
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let pause = self.paused_until.filter(|_| !self.machine.is_closed());
        let waits = pause.into_iter().chain(self.earlier_until).chain(self.door_closes_at());
        self.machine.poll_timeout().into_iter().chain(waits).min()
    }
}
