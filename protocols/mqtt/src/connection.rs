//! The server side of one MQTT connection, from the first byte to the last, without I/O.
//!
//! It does not know who the device is, what a topic means, or whether a message has arrived: it asks
//! ([`Event`]) and is told (the commands). The crate's documentation states how a driver calls it.

mod answering;
mod publishing;
mod reading;

use std::{
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};

use crate::{
    alias::{IncomingAliases, OutgoingAliases},
    answers::{self, ConnAckFields, Words},
    config::Config,
    incoming::Incoming,
    outgoing::Outgoing,
    packet::{Connect, Disconnect, PacketId, Publish, Subscribe, Unsubscribe, Version},
    reason::{ConnectRefusal, DisconnectReason, Misuse, PublishReply, Violation},
    session::Session,
};

/// Something that the driver has to act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A client asks to be connected: answer with `accept` or `refuse`.
    Connect(Box<Connect>),
    /// A message. With a token it is to be acknowledged once somebody else has it.
    Publish(Publish),
    /// A message that the machine has refused itself, with this answer: it is not what it says it is.
    PublishRefused(PublishReply),
    /// Answer with `suback`.
    Subscribe(Subscribe),
    /// Answer with `unsuback`.
    Unsubscribe(Unsubscribe),
    /// The client has answered a PUBLISH of ours. Below 0x80 it has taken the message.
    PublishAcknowledged {
        /// What `publish` returned.
        packet_id: PacketId,
        /// Reason code (MQTT 5 3.4.2.1); 0 in MQTT 3.1.1.
        reason: u8,
    },
    /// The client has left. The connection is closed.
    Disconnected(Disconnect),
    /// The client was silent for too long. The connection is closed, with the last words queued.
    TimedOut(TimeOut),
    /// The client broke a rule. The connection is closed, with the last words queued.
    Violation(Violation),
}

/// Which silence ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TimeOut {
    /// No complete CONNECT in time.
    Connect,
    /// No packet for one and a half times the keep alive (MQTT 5 3.1.2-22).
    KeepAlive,
}

/// What CONNACK tells a client that is accepted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Accept<'a> {
    /// Whether the state of an earlier connection goes on.
    pub session_present: bool,
    /// The client identifier, if the client left it to the server; MQTT 3.1.1 has no way to hear of it.
    pub assigned_client_id: Option<&'a str>,
    /// Session Expiry Interval in seconds, where it is not the one that the client asked for (MQTT 5).
    pub session_expiry_seconds: Option<u32>,
    /// Response Information: from what a client may make its response topics (MQTT 5 3.2.2.3.15). Said only to a client
    /// that asked for it.
    pub response_information: Option<&'a str>,
}

/// ```text
///                        CONNECT                 accept
///   AwaitingConnect ---------------> Connecting --------> Open
///         |  time out, violation        | refuse           | DISCONNECT, violation,
///         |                             |                  | keep alive, disconnect
///         +-----------------------------+------------------+-----> Closed
/// ```
#[derive(Debug)]
enum State {
    AwaitingConnect,
    Connecting(Peer),
    Open(Peer),
    Closed,
}

/// What the client said about itself in CONNECT and what follows from it.
#[derive(Debug, Clone, Copy)]
struct Peer {
    version: Version,
    level: u8,
    /// The silence that ends the connection.
    silence: Option<Duration>,
    /// A keep alive that is not the client's own and that it has to be told.
    server_keep_alive_seconds: Option<u16>,
    receive_maximum: u16,
    max_packet_bytes: usize,
    topic_alias_maximum: u16,
    session_expires_at_once: bool,
    wants_response_information: bool,
    /// Reason strings may stand in any packet, not only in CONNACK and DISCONNECT (MQTT 5 3.1.2-29).
    wants_words: bool,
}

/// Made with the first alias: most clients have none.
#[derive(Debug, Default)]
struct Aliases {
    incoming: IncomingAliases,
    outgoing: OutgoingAliases,
}

/// How far one look at the input has got.
enum Step {
    Event(Event),
    /// A packet that only the machine had to see.
    Again,
    /// The packet at the front is not complete.
    Input,
    /// The packet at the front has to wait for a command.
    Stall,
}

/// A SUBSCRIBE or UNSUBSCRIBE that has no answer yet.
#[derive(Debug, Clone, Copy)]
struct Request {
    packet_id: PacketId,
    filters: usize,
}

/// The machine of one connection.
#[derive(Debug)]
pub struct Connection {
    config: Arc<Config>,
    state: State,
    input: BytesMut,
    /// `input` is a copy of its own and keeps no read buffer of the driver alive.
    detached: bool,
    input_at: Instant,
    out: BytesMut,
    incoming: Incoming,
    outgoing: Outgoing,
    aliases: Option<Box<Aliases>>,
    requests: Vec<Request>,
    /// The packet at the front of `input` waits for a command.
    stalled: bool,
    deadline: Option<Instant>,
    /// The deadline counts from the next time that we hear of, because it stood still until now.
    deadline_restarts: bool,
    timed_out: Option<TimeOut>,
}

impl Peer {
    fn say_goodbye(&self, reason: DisconnectReason, words: Option<&str>, out: &mut BytesMut) {
        let words = Words::new(words, self.max_packet_bytes);
        answers::put_disconnect(self.version, reason, words, out);
    }
}

impl Connection {
    /// A connection whose client has sent nothing yet.
    pub fn new(config: Arc<Config>, now: Instant) -> Self {
        Self {
            deadline: Some(now + config.connect_time_out),
            config,
            state: State::AwaitingConnect,
            input: BytesMut::new(),
            detached: true,
            input_at: now,
            out: BytesMut::new(),
            incoming: Incoming::default(),
            outgoing: Outgoing::default(),
            aliases: None,
            requests: Vec::new(),
            stalled: false,
            deadline_restarts: false,
            timed_out: None,
        }
    }

    /// Takes what was read, split wherever it may be. It is parsed by [`Connection::poll_event`].
    ///
    /// Messages share the memory of `input`; a part of a packet is copied, so that nothing else keeps it.
    pub fn handle_input(&mut self, now: Instant, input: BytesMut) {
        if self.is_closed() || input.is_empty() {
            return;
        }
        self.restart_deadline(now);
        self.input_at = now;
        if self.input.is_empty() {
            self.input = input;
            self.detached = false;
        } else {
            self.input.extend_from_slice(&input);
        }
    }

    /// Lets time pass: call it when [`Connection::poll_timeout`] is reached. Earlier calls do no harm.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.restart_deadline(now);
        if self.poll_timeout().is_none_or(|deadline| now < deadline) {
            return;
        }
        match self.state {
            State::AwaitingConnect => self.timed_out = Some(TimeOut::Connect),
            State::Open(peer) => {
                peer.say_goodbye(DisconnectReason::KeepAliveTimeout, None, &mut self.out);
                self.timed_out = Some(TimeOut::KeepAlive);
            }
            State::Connecting(_) | State::Closed => return,
        }
        self.close();
    }

    /// When [`Connection::handle_timeout`] is to be called; it changes with every packet.
    ///
    /// While a packet waits for a command, time is not held against the client: it may have sent what is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.stalled { None } else { self.deadline }
    }

    /// The next event. One packet is parsed for each, so what is not asked for is not parsed.
    ///
    /// `None` says that nothing more happens before input, time or a command.
    pub fn poll_event(&mut self) -> Option<Event> {
        if let Some(time_out) = self.timed_out.take() {
            return Some(Event::TimedOut(time_out));
        }
        loop {
            let step = match self.state {
                State::AwaitingConnect => self.read_connect(),
                State::Connecting(_) => Ok(Step::Stall),
                State::Open(peer) => self.read_packet(peer).inspect_err(|violation| {
                    peer.say_goodbye(violation.into(), Some(&violation.to_string()), &mut self.out);
                }),
                State::Closed => return None,
            };
            let stalls = matches!(step, Ok(Step::Stall));
            self.deadline_restarts |= self.stalled && !stalls;
            self.stalled = stalls;
            match step {
                Ok(Step::Event(event)) => return Some(event),
                Ok(Step::Again) => {}
                Ok(Step::Input) => {
                    self.detach_input();
                    return None;
                }
                Ok(Step::Stall) => return None,
                Err(violation) => {
                    self.close();
                    return Some(Event::Violation(violation));
                }
            }
        }
    }

    /// Everything that is to be written, in one buffer.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        if self.out.is_empty() { None } else { Some(mem::take(&mut self.out).freeze()) }
    }

    /// Whether the driver shall read. False while the client's next packet waits for a command and some more has
    /// been read already, while too much waits for [`Connection::poll_transmit`], and after the end.
    pub fn wants_input(&self) -> bool {
        !self.is_closed()
            && self.out.len() < self.config.max_outgoing_bytes
            && !(self.stalled && self.input.len() >= self.config.read_ahead_bytes)
    }

    /// Whether the connection is over: write what [`Connection::poll_transmit`] has left, then close the socket.
    pub fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed)
    }

    /// The protocol version, once CONNECT has said it and until the end.
    pub fn version(&self) -> Option<Version> {
        match self.state {
            State::Connecting(peer) | State::Open(peer) => Some(peer.version),
            State::AwaitingConnect | State::Closed => None,
        }
    }

    /// PUBLISH packets of the client without a PUBACK or PUBREC.
    pub fn unacknowledged(&self) -> usize {
        if self.is_closed() { 0 } else { self.incoming.len() }
    }

    /// Accepts the client: CONNACK. A client whose Maximum Packet Size is below that of its CONNACK cannot be
    /// told anything (MQTT 5 3.1.2-24); its connection is closed.
    ///
    /// # Errors
    /// [`Misuse::NotConnecting`] if no CONNECT waits, for example because it was answered already.
    pub fn accept(&mut self, now: Instant, accept: Accept<'_>) -> Result<(), Misuse> {
        let State::Connecting(peer) = self.state else { return Err(Misuse::NotConnecting) };
        let fields = ConnAckFields {
            // MQTT 3.1 has no such flag.
            session_present: accept.session_present && peer.level > 3,
            session_expiry_seconds: accept.session_expiry_seconds,
            receive_maximum: self.config.receive_maximum,
            max_packet_bytes: self.config.max_packet_bytes,
            assigned_client_id: accept.assigned_client_id,
            server_keep_alive_seconds: peer.server_keep_alive_seconds,
            retain_available: self.config.retain_available,
            topic_alias_maximum: self.config.topic_alias_maximum,
            response_information: accept.response_information.filter(|_| peer.wants_response_information), // MQTT 5 3.1.2-28
        };
        answers::put_connack(peer.version, &fields, &mut self.out);
        if self.out.len() > peer.max_packet_bytes {
            self.out.clear();
            self.close();
            return Ok(());
        }
        self.state = State::Open(peer);
        self.deadline = peer.silence.map(|silence| now + silence);
        self.stalled = false;
        Ok(())
    }

    /// Refuses the client: CONNACK if its version has a number for the reason, then the end.
    ///
    /// # Errors
    /// [`Misuse::NotConnecting`] if no CONNECT waits.
    pub fn refuse(&mut self, refusal: ConnectRefusal) -> Result<(), Misuse> {
        self.refuse_because(refusal, None)
    }

    /// Refuses the client, and says why in words, which MQTT 5 has room for.
    ///
    /// # Errors
    /// As [`Connection::refuse`].
    pub fn refuse_because(&mut self, refusal: ConnectRefusal, words: Option<&str>) -> Result<(), Misuse> {
        let State::Connecting(peer) = self.state else { return Err(Misuse::NotConnecting) };
        let words = Words::new(words, peer.max_packet_bytes);
        answers::put_refusal(peer.version, refusal, words, &mut self.out);
        self.close();
        Ok(())
    }

    /// Goes on with the state of an earlier connection of the same session: call it before
    /// [`Connection::accept`], which is then to say that the session is present.
    ///
    /// # Errors
    /// [`Misuse::NotConnecting`] if no CONNECT waits.
    pub fn resume(&mut self, mut session: Session) -> Result<(), Misuse> {
        let State::Connecting(_) = self.state else { return Err(Misuse::NotConnecting) };
        self.incoming.resume(&mut session);
        self.outgoing.resume(&mut session);
        Ok(())
    }

    /// What the next connection of the session has to know. This one is over with it, if it was not before, and its
    /// tokens go on to [`Session::decide`].
    pub fn take_session(&mut self) -> Session {
        self.close();
        let mut session = Session::default();
        self.incoming.leave(&mut session);
        self.outgoing.leave(&mut session);
        session
    }

    /// Ends the connection: DISCONNECT with the reason in MQTT 5, nothing in MQTT 3.1.1.
    ///
    /// A client that waits for CONNACK may not get a DISCONNECT (MQTT 5 3.14.0-1): `refuse` tells it more.
    pub fn disconnect(&mut self, reason: DisconnectReason) {
        self.disconnect_because(reason, None);
    }

    /// Ends the connection, and says why in words, which MQTT 5 has room for.
    pub fn disconnect_because(&mut self, reason: DisconnectReason, words: Option<&str>) {
        if let State::Open(peer) = self.state {
            peer.say_goodbye(reason, words, &mut self.out);
        }
        self.close();
    }

    fn take_packet(&mut self, length: usize) -> BytesMut {
        self.detached = false;
        self.input.split_to(length)
    }

    /// Lets go of the driver's read buffer, of which only a part of a packet is left.
    fn detach_input(&mut self) {
        if self.input.is_empty() {
            self.input = BytesMut::new();
        } else if !self.detached {
            self.input = BytesMut::from(&self.input[..]);
        }
        self.detached = true;
    }

    fn restart_deadline(&mut self, now: Instant) {
        if mem::take(&mut self.deadline_restarts)
            && let State::Open(peer) = self.state
        {
            self.deadline = peer.silence.map(|silence| now + silence);
        }
    }

    /// Forgets everything but the last words and what a session may want.
    fn close(&mut self) {
        self.state = State::Closed;
        self.input = BytesMut::new();
        self.aliases = None;
        self.requests = Vec::new();
        self.stalled = false;
        self.deadline = None;
    }
}
