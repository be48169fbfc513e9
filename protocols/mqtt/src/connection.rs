//! The server side of one MQTT connection, from the first byte to the last, without I/O.
//!
//! It does not know who the device is, what a topic means, or whether a message has arrived: it asks
//! ([`Event`]) and is told (the commands). The crate's documentation states how a driver calls it.

use std::{
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};

use crate::{
    codec::{self, ConnAckFields},
    config::Config,
    connect,
    encode::{self, PublishLength},
    guard,
    packet::{
        ClientPacket, Connect, Disconnect, IncomingPublish, OutgoingPublish, PacketId, Publish, PublishToken,
        QoS, Subscribe, Unsubscribe, Version,
    },
    reason::{
        ConnectRefusal, DisconnectReason, Misuse, PublishError, PublishReply, SubscribeReply,
        UnsubscribeReply, Violation,
    },
    window::{Incoming, Outgoing},
};

/// Something that the driver has to act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A client asks to be connected: answer with `accept` or `refuse`.
    Connect(Box<Connect>),
    /// A message. With a token it is to be acknowledged once somebody else has it.
    Publish(Publish),
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
    /// The silence that ends the connection.
    silence: Option<Duration>,
    /// A keep alive that is not the client's own and that it has to be told.
    server_keep_alive_seconds: Option<u16>,
    receive_maximum: u16,
    max_packet_bytes: usize,
    session_expires_at_once: bool,
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
    requests: Vec<Request>,
    /// The packet at the front of `input` waits for a command.
    stalled: bool,
    deadline: Option<Instant>,
    /// The deadline counts from the next time that we hear of, because it stood still until now.
    deadline_restarts: bool,
    timed_out: Option<TimeOut>,
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
                encode::put_disconnect(peer.version, DisconnectReason::KeepAliveTimeout, &mut self.out);
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
                    encode::put_disconnect(peer.version, violation.into(), &mut self.out);
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

    /// PUBLISH packets of the client without a PUBACK.
    pub fn unacknowledged(&self) -> usize {
        self.incoming.len()
    }

    /// How many more PUBLISH packets of QoS 1 the client takes now.
    pub fn publish_window(&self) -> usize {
        match self.state {
            State::Open(peer) => usize::from(self.window(peer)).saturating_sub(self.outgoing.len()),
            _ => 0,
        }
    }

    /// Accepts the client: CONNACK. A client whose Maximum Packet Size is below that of its CONNACK cannot be
    /// told anything (MQTT 5 3.1.2-24); its connection is closed.
    ///
    /// # Errors
    /// [`Misuse::NotConnecting`] if no CONNECT waits, for example because it was answered already.
    pub fn accept(&mut self, now: Instant, accept: Accept<'_>) -> Result<(), Misuse> {
        let State::Connecting(peer) = self.state else { return Err(Misuse::NotConnecting) };
        let fields = ConnAckFields {
            session_present: accept.session_present,
            session_expiry_seconds: accept.session_expiry_seconds,
            receive_maximum: self.config.receive_maximum,
            max_packet_bytes: self.config.max_packet_bytes,
            assigned_client_id: accept.assigned_client_id.map(str::to_owned),
            server_keep_alive_seconds: peer.server_keep_alive_seconds,
            retain_available: self.config.retain_available,
        };
        codec::put_connack(peer.version, fields, &mut self.out);
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
        let State::Connecting(peer) = self.state else { return Err(Misuse::NotConnecting) };
        encode::put_refusal(peer.version, refusal, &mut self.out);
        self.close();
        Ok(())
    }

    /// Answers a PUBLISH. Answers may come in any order; each PUBACK leaves after those of earlier PUBLISHes.
    ///
    /// The first answer counts. One that comes after the connection's end is for nobody and is dropped.
    pub fn acknowledge(&mut self, token: PublishToken, reply: PublishReply) {
        let State::Open(peer) = self.state else { return };
        self.incoming.settle(token, reply);
        while let Some((packet_id, reply)) = self.incoming.pop() {
            codec::put_puback(peer.version, packet_id, reply, &mut self.out);
        }
    }

    /// Answers a SUBSCRIBE, each filter in its order. QoS 2 is granted as QoS 1.
    ///
    /// # Errors
    /// [`Misuse`] if no such SUBSCRIBE waits, or the number of answers is not that of its filters.
    pub fn suback(&mut self, packet_id: PacketId, replies: &[SubscribeReply]) -> Result<(), Misuse> {
        let peer = self.take_request(packet_id, replies.len())?;
        let before = self.out.len();
        codec::put_suback(peer.version, packet_id, replies, &mut self.out);
        self.judge_answer(peer, before);
        Ok(())
    }

    /// Answers an UNSUBSCRIBE, each filter in its order.
    ///
    /// # Errors
    /// [`Misuse`] if no such UNSUBSCRIBE waits, or the number of answers is not that of its filters.
    pub fn unsuback(&mut self, packet_id: PacketId, replies: &[UnsubscribeReply]) -> Result<(), Misuse> {
        let peer = self.take_request(packet_id, replies.len())?;
        let before = self.out.len();
        codec::put_unsuback(peer.version, packet_id, replies, &mut self.out);
        self.judge_answer(peer, before);
        Ok(())
    }

    /// Queues a PUBLISH toward the client. Of QoS 1 it returns the packet identifier, with which
    /// [`Event::PublishAcknowledged`] comes back.
    ///
    /// # Errors
    /// [`PublishError::Full`] if it is to be tried again later; otherwise the message can never be sent here.
    pub fn publish(&mut self, publish: &OutgoingPublish<'_>) -> Result<Option<PacketId>, PublishError> {
        let State::Open(peer) = self.state else { return Err(Misuse::NotOpen.into()) };
        if publish.qos == QoS::ExactlyOnce {
            return Err(Misuse::QosNotSupported.into());
        }
        let length = PublishLength::of(peer.version, publish)?;
        if length.total() > peer.max_packet_bytes {
            return Err(PublishError::TooLarge(length.total()));
        }
        // One packet always fits, so that a small bound cannot stop a large message for ever.
        if !self.out.is_empty() && self.out.len() + length.total() > self.config.max_outgoing_bytes {
            return Err(PublishError::Full);
        }
        let packet_id = match publish.qos {
            QoS::AtMostOnce => None,
            _ => Some(self.outgoing.allocate(self.window(peer)).ok_or(PublishError::Full)?),
        };
        encode::put_publish(peer.version, packet_id, publish, length, &mut self.out);
        Ok(packet_id)
    }

    /// Ends the connection: DISCONNECT with the reason in MQTT 5, nothing in MQTT 3.1.1.
    ///
    /// A client that waits for CONNACK may not get a DISCONNECT (MQTT 5 3.14.0-1): `refuse` tells it more.
    pub fn disconnect(&mut self, reason: DisconnectReason) {
        if let State::Open(peer) = self.state {
            encode::put_disconnect(peer.version, reason, &mut self.out);
        }
        self.close();
    }

    fn read_connect(&mut self) -> Result<Step, Violation> {
        let Some(&first) = self.input.first() else { return Ok(Step::Input) };
        if first != guard::CONNECT {
            return Err(Violation::Protocol("the first packet is not CONNECT")); // MQTT 5 3.1.0-1
        }
        let Some(frame) = codec::frame(&self.input, self.config.max_connect_bytes)? else {
            return Ok(Step::Input);
        };
        let packet = self.take_packet(frame.length).freeze();
        match connect::parse(&packet, frame.header, self.config.max_properties) {
            Ok(connect) => {
                self.state = State::Connecting(self.peer(&connect));
                self.deadline = None;
                Ok(Step::Event(Event::Connect(Box::new(connect))))
            }
            Err((version, violation)) => {
                if let Some(version) = version {
                    encode::put_refusal(version, (&violation).into(), &mut self.out);
                }
                Err(violation)
            }
        }
    }

    fn peer(&self, connect: &Connect) -> Peer {
        let longest = self.config.max_keep_alive;
        let shortened = connect.version == Version::V5 && connect.keep_alive > longest;
        let keep_alive = if shortened { longest } else { connect.keep_alive };
        Peer {
            version: connect.version,
            // Zero is off (MQTT 5 3.1.2.10).
            silence: (!keep_alive.is_zero()).then(|| keep_alive * 3 / 2),
            server_keep_alive_seconds: shortened.then(|| {
                u16::try_from(longest.as_secs()).expect("less than what the client said in 16 bits")
            }),
            receive_maximum: connect.receive_maximum,
            max_packet_bytes: connect
                .max_packet_bytes
                .map_or(usize::MAX, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
            session_expires_at_once: connect.session_expiry_seconds == 0,
        }
    }

    fn read_packet(&mut self, peer: Peer) -> Result<Step, Violation> {
        let Some(&first) = self.input.first() else { return Ok(Step::Input) };
        guard::first_byte(first, peer.version)?;
        let Some(frame) = codec::frame(&self.input, self.config.max_packet_bytes)? else {
            return Ok(Step::Input);
        };
        if guard::wants_acknowledgement(first)
            && self.incoming.len() >= usize::from(self.config.receive_maximum)
        {
            return match peer.version {
                Version::V311 => Ok(Step::Stall),
                Version::V5 => Err(Violation::ReceiveMaximumExceeded), // MQTT 5 3.3.4-9
            };
        }
        if guard::is_request(first) && self.requests.len() >= self.config.max_requests {
            return Ok(Step::Stall);
        }
        let packet = self.take_packet(frame.length);
        let shape = guard::inspect(peer.version, first, &packet[frame.header..], &self.config)?;
        self.deadline = peer.silence.map(|silence| self.input_at + silence);
        self.handle_packet(peer, codec::decode(peer.version, packet, shape)?)
    }

    fn handle_packet(&mut self, peer: Peer, packet: ClientPacket) -> Result<Step, Violation> {
        let event = match packet {
            ClientPacket::Publish(publish) => return self.handle_publish(peer, publish),
            ClientPacket::PubAck { packet_id, reason } => {
                if !self.outgoing.acknowledge(packet_id) {
                    // An acknowledgement of an earlier connection of the client: nobody waits for it.
                    return Ok(Step::Again);
                }
                Event::PublishAcknowledged { packet_id, reason }
            }
            ClientPacket::Subscribe(subscribe) => {
                self.put_request(subscribe.packet_id, subscribe.filters.len())?;
                Event::Subscribe(subscribe)
            }
            ClientPacket::Unsubscribe(unsubscribe) => {
                self.put_request(unsubscribe.packet_id, unsubscribe.filters.len())?;
                Event::Unsubscribe(unsubscribe)
            }
            ClientPacket::PingReq => {
                codec::put_pingresp(peer.version, &mut self.out);
                return Ok(Step::Again);
            }
            ClientPacket::Disconnect(disconnect) => {
                let extends = disconnect.session_expiry_seconds.is_some_and(|seconds| seconds > 0);
                if extends && peer.session_expires_at_once {
                    return Err(Violation::Protocol("a session expiry that CONNECT did not have")); // 3.14.2.2.2
                }
                self.close();
                Event::Disconnected(disconnect)
            }
        };
        Ok(Step::Event(event))
    }

    fn handle_publish(&mut self, peer: Peer, publish: IncomingPublish) -> Result<Step, Violation> {
        let token = match publish.packet_id {
            None => None,
            Some(packet_id) if self.incoming.contains(packet_id) => {
                // Old clients repeat what is not acknowledged for a while; one PUBACK answers both.
                // MQTT 5 4.4.0-1 forbids it, and without DUP it is another message under the same identifier.
                return if publish.dup && peer.version == Version::V311 {
                    Ok(Step::Again)
                } else {
                    Err(Violation::Protocol("a packet identifier that is in use"))
                };
            }
            Some(packet_id) => Some(self.incoming.push(packet_id)),
        };
        Ok(Step::Event(Event::Publish(Publish {
            token,
            topic: publish.topic,
            payload: publish.payload,
            qos: if token.is_some() { QoS::AtLeastOnce } else { QoS::AtMostOnce },
            dup: publish.dup,
            retain: publish.retain,
            properties: publish.properties,
        })))
    }

    fn put_request(&mut self, packet_id: PacketId, filters: usize) -> Result<(), Violation> {
        if self.requests.iter().any(|request| request.packet_id == packet_id) {
            return Err(Violation::Protocol("a packet identifier that is in use"));
        }
        self.requests.push(Request { packet_id, filters });
        Ok(())
    }

    fn take_request(&mut self, packet_id: PacketId, given: usize) -> Result<Peer, Misuse> {
        let State::Open(peer) = self.state else { return Err(Misuse::NotOpen) };
        let index = self.requests.iter().position(|request| request.packet_id == packet_id);
        let index = index.ok_or(Misuse::UnknownRequest)?;
        let expected = self.requests[index].filters;
        if expected != given {
            return Err(Misuse::AnswerCount { expected, given });
        }
        self.requests.swap_remove(index);
        Ok(peer)
    }

    /// An answer that grows with its request may be larger than the client takes; then it is not sent.
    fn judge_answer(&mut self, peer: Peer, before: usize) {
        if self.out.len() - before > peer.max_packet_bytes {
            self.out.truncate(before);
            self.disconnect(DisconnectReason::PacketTooLarge);
        }
    }

    fn window(&self, peer: Peer) -> u16 {
        self.config.outgoing_window.min(peer.receive_maximum)
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

    /// Forgets everything but the last words.
    fn close(&mut self) {
        self.state = State::Closed;
        self.input = BytesMut::new();
        self.incoming = Incoming::default();
        self.outgoing = Outgoing::default();
        self.requests = Vec::new();
        self.stalled = false;
        self.deadline = None;
    }
}
