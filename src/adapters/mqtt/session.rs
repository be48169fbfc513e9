//! One client of MQTT, between its machine and the hub: what each packet means, and what each outcome becomes.
//!
//! It moves no bytes and waits for nothing: the loop in [`super`] does.

use std::future::Future as _;
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use fieldgate_mappings::address::{DeviceId, Identity};
use fieldgate_mappings::message::Message;
use fieldgate_mappings::mqtt::{self, OnRejected, Reply3, Reply5, reply_3, reply_5};
use fieldgate_mappings::outcome::{Outcome, Reason, Rejection};
use fieldgate_mqtt::{
    Accept, Config, Connect, ConnectRefusal, Connection, DisconnectReason, Event, Misuse, Publish,
    PublishReply, PublishToken, QoS, Subscribe, SubscribeFilter, Unsubscribe, UnsubscribeReply, Version,
};

use crate::adapters::directory::Held;
use crate::devices::{Attempt, Denied, Judged, Pass, Stay};
use crate::telemetry::{Protocol, emit};
use crate::upstream::{CommandSink, Hears, Patience};
use crate::wire::Machine;

use super::commands::{Commands, Delivered, Grant};
use super::connect::{self, Judging};
use super::host::Host;
use super::inbox::{Ended, Inbox, Ticket};
use super::listener::Guest;
use super::telemetry::{
    self, ClientConnected, ClientRefused, ConnectionEnded, ConnectionPaused, End, FilterJudged,
    MachineMisused, PublishRejected, QoS0Dropped, WillPublished,
};
use super::words;

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
    commands: Option<Box<Commands<H::Subscription>>>,
    /// When the pause is over, and the connection with it.
    paused_until: Option<Instant>,
    /// Nothing new is taken: the gateway stops.
    draining: bool,
    /// The client sends nothing more; it may still hear.
    input_ended: bool,
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
            commands: None,
            paused_until: None,
            draining: false,
            input_ended: false,
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
        // The other end lives as long as the identifier is held: an error of it would be as good as a word.
        let taken_over = self.client.as_mut().map(|client| Pin::new(&mut client.held.taken_over));
        if taken_over.is_some_and(|taken_over| taken_over.poll(cx).is_ready()) {
            self.close(DisconnectReason::SessionTakenOver, End::TakenOver);
        }
        if let Some(judging) = &mut self.judging
            && let Poll::Ready(answer) = Pin::new(&mut judging.pending).poll(cx)
        {
            judging.answer = Some(answer);
        }
        if let Some(client) = &mut self.client
            && client.stay.poll_over(cx).is_ready()
        {
            // Whatever it left behind is not said in its name any more.
            client.will = None;
            self.close(DisconnectReason::NotAuthorised, End::CutOff);
        }
    }

    /// Handles all that has come.
    pub(super) fn handle(&mut self, now: Instant) {
        if let Some(judging) = self.judging.take_if(|judging| judging.answer.is_some()) {
            let Judging { connect, answer, .. } = *judging;
            answer.into_iter().for_each(|answer| self.judged(&connect, answer, now));
        }
        while let Some((ticket, outcome)) = self.inbox.next_outcome() {
            self.settle(ticket, &outcome, now);
        }
        while !self.is_held_back()
            && let Some(event) = self.machine.poll_event()
        {
            self.handle_event(event, now);
        }
        if let Some(ended) = self.inbox.take_ended() {
            self.commands_ended(&ended);
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
        if let (Some(client), Some(commands)) = (&self.client, &mut self.commands) {
            commands.written(&client.device);
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

    /// The end: sends the will, lets go of the identifier and of the subscription. What is left are the last words.
    pub(super) fn finish(mut self, now: Instant) -> Connection {
        self.tell(End::Lost);
        if let Some(Client { device, will: Some(will), .. }) = self.client.take() {
            emit(WillPublished { device: &device });
            // Nobody is there to be told of a refusal, or to send it again.
            let hears = if will.durable { Hears::Acceptance } else { Hears::Nothing };
            let patience = self.patience(hears, now);
            self.host.send(*will, patience, self.inbox.verdict(Ticket::Will));
        }
        self.machine
    }

    fn is_held_back(&self) -> bool {
        (self.draining || self.paused_until.is_some()) && !self.machine.is_closed()
    }

    fn handle_event(&mut self, event: Event, now: Instant) {
        match event {
            Event::Connect(connect) => self.connect(connect, now),
            Event::Publish(publish) => self.publish(publish, now),
            Event::PublishRefused(_) => self.refused_by_the_machine(),
            Event::Subscribe(subscribe) => self.subscribe(&subscribe),
            Event::Unsubscribe(unsubscribe) => self.unsubscribe(&unsubscribe),
            Event::PublishAcknowledged { packet_id, reason } => {
                if let (Some(client), Some(commands)) = (&self.client, &mut self.commands) {
                    commands.acknowledged(&client.device, packet_id, reason);
                }
            }
            Event::Disconnected(disconnect) => {
                if let Some(client) = self.client.as_mut().filter(|_| disconnect.deletes_will()) {
                    client.will = None;
                }
                self.tell(End::Left(disconnect.reason));
            }
            Event::TimedOut(time_out) => self.tell(End::TimedOut(time_out)),
            Event::Violation(violation) => self.tell(End::Violation(violation)),
        }
    }

    fn connect(&mut self, connect: Box<Connect>, now: Instant) {
        let roster = self.host.roster();
        let devices = roster.devices();
        let device = match connect::identify(&connect, |id| devices.get(id).is_some()) {
            Ok(device) => device,
            Err(rejection) => return self.refuse(&connect, &rejection),
        };
        let judged = roster.judge(Attempt {
            protocol: Protocol::Mqtt,
            peer: self.guest.peer.ip(),
            device: &device,
            shown: connect::shown(&connect, self.guest.certificate.as_deref()),
            believes: self.guest.believes,
        });
        match judged {
            Judged::Now(answer) => self.judged(&connect, answer, now),
            Judged::Soon(pending) => {
                self.judging = Some(Box::new(Judging { connect, pending, answer: None }));
                // There is more to listen to.
                self.again = true;
            }
        }
    }

    fn refuse(&mut self, connect: &Connect, rejection: &Rejection) {
        self.refuse_with(words::connack(connect.version, rejection), connect, rejection);
    }

    fn refuse_with(&mut self, refusal: ConnectRefusal, connect: &Connect, rejection: &Rejection) {
        self.told = true;
        emit(ClientRefused { peer: self.guest.peer, client_id: &connect.client_id, rejection });
        let refused = self.machine.refuse(refusal);
        self.check(refused);
    }

    /// The gate has decided.
    fn judged(&mut self, connect: &Connect, answer: Result<Pass, Denied>, now: Instant) {
        let version = connect.version;
        let pass = match answer {
            Ok(pass) => pass,
            Err(denied) => return self.refuse(connect, &denied.rejection()),
        };
        let device = pass.device.clone();
        let will = connect.will.as_deref().map(|will| connect::will(self.host.rules(), &device, will));
        let will = match will.transpose() {
            Ok(will) => will,
            Err(rejection) => {
                return self.refuse_with(words::connack_for_will(version, &rejection), connect, &rejection);
            }
        };
        // No session outlives its connection: who asks for more than that is told.
        let session_expiry_seconds = (connect.session_expiry_seconds > 0).then_some(0);
        let accepted = self.machine.accept(now, Accept { session_expiry_seconds, ..Accept::default() });
        self.check(accepted);
        if self.machine.is_closed() {
            return;
        }
        emit(ClientConnected { peer: self.guest.peer, device: &device, version });
        let held = self.host.directory().hold(device.as_str());
        let stay = self.host.roster().enter(pass);
        self.client = Some(Client { device, version, held, stay, will });
        // There is more to listen to.
        self.again = true;
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
        let identity = match &others {
            Some(others) => Identity::MayActFor(&client.device, &**others),
            None => Identity::Is(&client.device),
        };
        match (rules.map_mqtt(identity, said), token) {
            (Ok(message), Some(token)) => {
                let verdict = self.inbox.verdict(Ticket::Waiting(token));
                let hears = match client.version {
                    Version::V311 => Hears::Acceptance,
                    Version::V5 => Hears::Everything,
                };
                self.host.send(message, self.patience(hears, now), verdict);
            }
            (Ok(message), None) => match self.inbox.unwaited(payload_bytes) {
                Some(verdict) => self.host.send(message, self.patience(Hears::Nothing, now), verdict),
                None => emit(QoS0Dropped { device: &client.device }),
            },
            (Err(rejection), token) => {
                let ticket = token.map_or(Ticket::Unwaited(0), Ticket::Waiting);
                let outcome = Outcome::Rejected(rejection);
                telemetry::published(ticket.kind(), &outcome).inc();
                self.settle(ticket, &outcome, now);
            }
        }
    }

    /// How long a message may wait for the hub.
    fn patience(&self, hears: Hears, now: Instant) -> Patience {
        let hold = self.host.config().upstream.hold;
        let through_outage = hears != Hears::Nothing && !hold.is_zero();
        let wait = if through_outage { hold.max(LINK_PATIENCE) } else { LINK_PATIENCE };
        Patience { until: now + wait, through_outage, in_order: false, hears }
    }

    /// A message has its outcome.
    fn settle(&mut self, ticket: Ticket, outcome: &Outcome, now: Instant) {
        let Some(client) = &self.client else { return };
        if let Outcome::Rejected(rejection) = outcome {
            let first = !mem::replace(&mut self.rejected, true);
            emit(PublishRejected { device: &client.device, rejection, first });
        }
        if let Ticket::Waiting(token) = ticket {
            self.answer(client.version, token, outcome, now);
        }
    }

    /// The device has its answer already.
    fn refused_by_the_machine(&mut self) {
        let Some(client) = &self.client else { return };
        let rejection = Rejection::new(Reason::Content, "the payload is not the text that it is said to be");
        let first = !mem::replace(&mut self.rejected, true);
        emit(PublishRejected { device: &client.device, rejection: &rejection, first });
    }

    fn answer(&mut self, version: Version, token: PublishToken, outcome: &Outcome, now: Instant) {
        match version {
            Version::V311 => match reply_3(outcome, OnRejected::default()) {
                Reply3::Acknowledge | Reply3::AcknowledgeAndDeadLetter => {
                    self.machine.acknowledge(token, PublishReply::Success);
                }
                Reply3::Pause => self.pause(now),
                Reply3::Close => self.close(DisconnectReason::ServerBusy, End::of(outcome)),
            },
            Version::V5 => match reply_5(outcome) {
                Reply5::Acknowledge(code) => self.machine.acknowledge(token, words::puback(code)),
                Reply5::Pause => self.pause(now),
                Reply5::Disconnect(code) => self.close(words::disconnect(code), End::of(outcome)),
            },
        }
    }

    fn pause(&mut self, now: Instant) {
        if let (None, Some(client)) = (self.paused_until, &self.client) {
            emit(ConnectionPaused { device: &client.device });
            self.paused_until = Some(now + PAUSE.min(self.host.config().upstream.hold));
        }
    }

    fn subscribe(&mut self, subscribe: &Subscribe) {
        let grant = |filter| self.grant(filter).map_err(|rejection| words::suback(&rejection.reason));
        let replies: Vec<_> = subscribe.filters.iter().map(grant).collect();
        let answered = self.machine.suback(subscribe.packet_id, &replies);
        self.check(answered);
    }

    fn grant(&mut self, asked: &SubscribeFilter) -> Result<QoS, Rejection> {
        let Some(client) = &self.client else { return Ok(QoS::AtMostOnce) };
        let device = &client.device;
        let config = &self.host.config().mqtt;
        let granted = self.host.rules().command_subscription(device, &asked.filter).and_then(|rule| {
            let grant = Grant::new(&asked.filter, rule, asked.qos);
            let qos = grant.qos();
            match &mut self.commands {
                Some(commands) => commands.add(grant, config.max_subscriptions.get())?,
                None => {
                    let credit = u32::from(config.command_window.get());
                    let sink = Rc::clone(&self.inbox) as Rc<dyn CommandSink>;
                    let subscription = self.host.subscribe(device, grant.source().clone(), credit, sink);
                    self.commands = Some(Box::new(Commands::new(grant, subscription)));
                }
            }
            Ok(qos)
        });
        emit(FilterJudged { device, filter: &asked.filter, refused: granted.as_ref().err() });
        granted
    }

    fn unsubscribe(&mut self, unsubscribe: &Unsubscribe) {
        let replies: Vec<_> = unsubscribe.filters.iter().map(|filter| self.revoke(filter)).collect();
        let answered = self.machine.unsuback(unsubscribe.packet_id, &replies);
        self.check(answered);
    }

    fn revoke(&mut self, filter: &str) -> UnsubscribeReply {
        let (removed, left) = match &mut self.commands {
            Some(commands) => commands.remove(filter),
            None => (false, false),
        };
        if removed && !left {
            self.drop_commands();
        }
        if removed { UnsubscribeReply::Success } else { UnsubscribeReply::NoSubscriptionExisted }
    }

    /// Whatever was not settled the hub keeps.
    fn drop_commands(&mut self) {
        self.commands = None;
        self.inbox.forget_commands();
    }

    fn commands_ended(&mut self, ended: &Ended) {
        self.drop_commands();
        let reason = match ended {
            Ended::Refused(rejection) => words::unsubscribed(&rejection.reason),
            Ended::Withdrawn => DisconnectReason::ServerBusy,
        };
        self.close(reason, End::CommandsEnded(ended));
    }

    fn deliver(&mut self) {
        if self.machine.is_closed() || self.is_held_back() {
            return;
        }
        if let (Some(client), Some(commands)) = (&self.client, &mut self.commands) {
            let delivered = commands.deliver(&client.device, &self.inbox, &mut self.machine);
            self.again |= delivered == Delivered::Blocked;
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
        self.machine.poll_timeout().into_iter().chain(pause).min()
    }
}
