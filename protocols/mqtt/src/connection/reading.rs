//! What the client sends, one packet at a time.

use std::str;

use crate::{
    alias::AliasBounds,
    answers::{self, Words},
    codec, connect, guard,
    incoming::{Arrived, Repeats},
    packet::{
        Ack, AckKind, ClientPacket, Connect, IncomingPublish, PacketId, Publish, PublishToken, QoS, Version,
    },
    reason::{PublishReply, Violation},
    text::Text,
};

use super::{Connection, Event, Peer, Request, State, Step};

/// Reason code of MQTT 5 2.4: Packet Identifier not found.
const NOT_FOUND: u8 = 0x92;

impl Connection {
    pub(super) fn read_connect(&mut self) -> Result<Step, Violation> {
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
                    // How much the client takes is not known, and no rule of its own is broken by words in CONNACK.
                    answers::put_refusal(version, (&violation).into(), Words::default(), &mut self.out);
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
            level: connect.level,
            // Zero is off (MQTT 5 3.1.2.10).
            silence: (!keep_alive.is_zero()).then(|| keep_alive * 3 / 2),
            server_keep_alive_seconds: shortened.then(|| {
                u16::try_from(longest.as_secs()).expect("less than what the client said in 16 bits")
            }),
            receive_maximum: connect.receive_maximum,
            max_packet_bytes: connect
                .max_packet_bytes
                .map_or(usize::MAX, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX)),
            topic_alias_maximum: connect.topic_alias_maximum,
            session_expires_at_once: connect.session_expiry_seconds == 0,
            wants_response_information: connect.request_response_information,
            wants_words: connect.request_problem_information,
        }
    }

    pub(super) fn read_packet(&mut self, peer: Peer) -> Result<Step, Violation> {
        let Some(&first) = self.input.first() else { return Ok(Step::Input) };
        guard::first_byte(first, peer.version, peer.level)?;
        let Some(frame) = codec::frame(&self.input, self.config.max_packet_bytes)? else {
            return Ok(Step::Input);
        };
        if guard::wants_acknowledgement(first) && !self.has_room(peer)? {
            return Ok(Step::Stall);
        }
        if guard::is_request(first) && self.requests.len() >= self.config.max_requests {
            return Ok(Step::Stall);
        }
        let packet = self.take_packet(frame.length);
        let body = &packet[frame.header..];
        let shape = guard::inspect(peer.version, peer.level, first, body, &self.config)?;
        self.deadline = peer.silence.map(|silence| self.input_at + silence);
        self.handle_packet(peer, codec::decode(peer.version, packet, shape)?)
    }

    /// Whether one more PUBLISH of QoS 1 or 2 can be taken now.
    fn has_room(&self, peer: Peer) -> Result<bool, Violation> {
        let maximum = usize::from(self.config.receive_maximum);
        match peer.version {
            // Its PUBRELs may stand behind the next PUBLISH, so they cannot be waited for.
            Version::V311 => Ok(self.incoming.len() < maximum),
            Version::V5 if self.incoming.counted() < maximum => Ok(true),
            Version::V5 => Err(Violation::ReceiveMaximumExceeded), // MQTT 5 3.3.4-9
        }
    }

    fn handle_packet(&mut self, peer: Peer, packet: ClientPacket) -> Result<Step, Violation> {
        let event = match packet {
            ClientPacket::Publish(publish) => return self.handle_publish(peer, publish),
            ClientPacket::Ack(ack) => return self.handle_ack(peer, ack),
            ClientPacket::Subscribe(subscribe) => {
                self.put_request(subscribe.packet_id, subscribe.filters.len())?;
                Event::Subscribe(subscribe)
            }
            ClientPacket::Unsubscribe(unsubscribe) => {
                self.put_request(unsubscribe.packet_id, unsubscribe.filters.len())?;
                Event::Unsubscribe(unsubscribe)
            }
            ClientPacket::PingReq => {
                answers::put_pingresp(&mut self.out);
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
        let IncomingPublish { packet_id, qos, topic, alias, payload, dup, retain, properties } = publish;
        let topic = self.topic(topic, alias)?;
        let says_text =
            properties.as_ref().is_some_and(|properties| properties.payload_is_utf8 == Some(true));
        let is_legal = !says_text || str::from_utf8(&payload).is_ok();
        let token = match packet_id {
            None if !is_legal => return Err(Violation::PayloadFormatInvalid),
            None => None,
            Some(packet_id) => match self.arrive(peer, packet_id, qos, dup)? {
                Arrived::New(token) => Some(token),
                Arrived::Known => {
                    self.answer_publishes(peer);
                    return Ok(Step::Again);
                }
            },
        };
        if let (false, Some(token)) = (is_legal, token) {
            return Ok(Step::Event(self.refuse_publish(peer, token)));
        }
        Ok(Step::Event(Event::Publish(Publish { token, topic, payload, qos, dup, retain, properties })))
    }

    fn arrive(&mut self, peer: Peer, packet_id: PacketId, qos: QoS, dup: bool) -> Result<Arrived, Violation> {
        if qos == QoS::ExactlyOnce && self.incoming.unreleased() >= self.config.max_unreleased {
            return Err(Violation::Quota("messages of quality of service 2 that are not released"));
        }
        let repeats = match peer.version {
            Version::V311 => Repeats::AtAnyTime,
            Version::V5 => Repeats::AfterReconnect,
        };
        self.incoming.arrive(packet_id, qos, dup, repeats)
    }

    /// MQTT 5 3.3.2.3.2: a payload that is not the text that it is said to be.
    fn refuse_publish(&mut self, peer: Peer, token: PublishToken) -> Event {
        let reply = PublishReply::PayloadFormatInvalid;
        let words = peer.wants_words.then_some("the payload is not UTF-8");
        self.incoming.settle(token, reply, words);
        self.answer_publishes(peer);
        Event::PublishRefused(reply)
    }

    /// The topic of a PUBLISH, which may be an alias or make one.
    fn topic(&mut self, topic: Text, alias: Option<u16>) -> Result<Text, Violation> {
        let Some(alias) = alias else { return Ok(topic) };
        let bounds =
            AliasBounds { maximum: self.config.topic_alias_maximum, bytes: self.config.max_alias_bytes };
        let aliases = &mut self.aliases.get_or_insert_default().incoming;
        if topic.is_empty() {
            return aliases.resolve(alias, bounds);
        }
        aliases.set(alias, &topic, bounds)?;
        Ok(topic)
    }

    fn handle_ack(&mut self, peer: Peer, ack: Ack) -> Result<Step, Violation> {
        let Ack { kind, packet_id, reason } = ack;
        match kind {
            // An acknowledgement that nobody waits for is one of an earlier connection of the client.
            AckKind::PubAck if !self.outgoing.acknowledge(packet_id) => Ok(Step::Again),
            AckKind::PubAck => Ok(Step::Event(Event::PublishAcknowledged { packet_id, reason })),
            AckKind::PubRel => {
                let known = self.incoming.release(packet_id)?;
                let reason = if known { 0 } else { NOT_FOUND };
                self.put_ack(peer, AckKind::PubComp, packet_id, reason);
                Ok(Step::Again)
            }
            AckKind::PubRec if self.outgoing.contains(packet_id) => {
                Err(Violation::Protocol("PUBREC for a message of quality of service 1"))
            }
            // Nothing of QoS 2 was sent: an exchange with another server, of which the client is to be freed.
            AckKind::PubRec => {
                if reason < 0x80 {
                    self.put_ack(peer, AckKind::PubRel, packet_id, NOT_FOUND);
                }
                Ok(Step::Again)
            }
            AckKind::PubComp => Ok(Step::Again),
        }
    }

    fn put_ack(&mut self, peer: Peer, kind: AckKind, packet_id: PacketId, reason: u8) {
        answers::put_ack(peer.version, kind, packet_id, reason, Words::default(), &mut self.out);
    }

    fn put_request(&mut self, packet_id: PacketId, filters: usize) -> Result<(), Violation> {
        if self.requests.iter().any(|request| request.packet_id == packet_id) {
            return Err(Violation::Protocol("a packet identifier that is in use"));
        }
        self.requests.push(Request { packet_id, filters });
        Ok(())
    }
}
