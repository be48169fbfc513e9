//! The server side of the message layer: all peers of one socket.
//! Not an application and not a socket: requests go up as events, bytes go out by `poll_transmit`.
//! RFC 7252 sections 4 (messages), 5.2 (responses).

mod api;
mod list;
mod outbound;
mod refusal;
mod reply;
mod separate;
mod table;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

pub use self::api::{Event, ExchangeId, Gone, Lost, Request, Response};
use self::reply::Reply;
use self::table::{Arrival, Queue, Slot, Stage, Table};
use crate::codec;
use crate::config::Config;
use crate::guard::{self, Head, HeadError};
use crate::hash;
use crate::message::{Class, MessageId, Method, Type};
use crate::rng::Rng;
use crate::stats::{Refusal, Stats};

/// How late what only frees memory may run: so that one turn of the driver frees many.
const SWEEP_SLACK: Duration = Duration::from_secs(1);

/// All exchanges of one socket. See the crate's documentation for the contract.
#[derive(Debug)]
pub struct Server {
    config: Config,
    table: Table,
    key: u64,
    rng: Rng,
    /// Message IDs of answers for which nothing is kept.
    stray_mid: u16,
    events: VecDeque<Event>,
    transmits: VecDeque<(SocketAddr, Bytes)>,
    stats: Stats,
}

impl Server {
    /// A server without peers. The seed gives the jitter, the first message IDs and the key of the tables: draw it
    /// from the system's randomness outside of tests.
    pub fn new(config: Config, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let key = rng.next();
        Self {
            table: Table::new(&config, key),
            config,
            key,
            stray_mid: rng.next() as u16,
            rng,
            events: VecDeque::new(),
            transmits: VecDeque::new(),
            stats: Stats::default(),
        }
    }

    /// Takes one datagram as it came from the socket; one that the driver's buffer cut is still told from a whole
    /// one if the buffer is larger than `max_datagram_bytes`. At most one event and one datagram come of it.
    pub fn handle_datagram(&mut self, now: Instant, peer: SocketAddr, datagram: &[u8]) {
        self.stats.datagrams += 1;
        if !is_answerable(&peer) {
            return self.stats.count(Refusal::Source);
        }
        let head = match guard::head(datagram) {
            Ok(head) => head,
            Err(HeadError::Short) => return self.stats.count(Refusal::Short),
            Err(HeadError::Version) => return self.stats.count(Refusal::Version),
        };
        match (head.kind, head.class()) {
            (Type::Acknowledgement | Type::Reset, class) => {
                let empty = class == Class::Empty && guard::frame(&head, datagram, 0).is_ok();
                // A server sends no requests: what is not empty here answers nothing (RFC 7252 section 4.2).
                if !empty || !self.handle_answer(now, peer, &head) {
                    self.stats.count(if class == Class::Reserved {
                        Refusal::ReservedClass
                    } else {
                        Refusal::Unmatched
                    });
                }
            }
            (_, Class::Request) => self.handle_request(now, peer, &head, datagram),
            (_, Class::Response) => self.reject(peer, &head, Refusal::Unmatched),
            (_, Class::Reserved) => self.reject(peer, &head, Refusal::ReservedClass),
            (Type::Confirmable, Class::Empty) if datagram.len() == 4 => {
                // A ping (RFC 7252 section 4.3).
                self.stats.pings += 1;
                self.transmit(peer, codec::empty(Type::Reset, head.mid));
            }
            (_, Class::Empty) => self.reject(peer, &head, Refusal::Format),
        }
    }

    fn handle_request(&mut self, now: Instant, address: SocketAddr, head: &Head, datagram: &[u8]) {
        if datagram.len() > self.config.max_datagram_bytes {
            return self.refuse_too_large(address, head, datagram);
        }
        let digest = hash::digest(self.key, datagram);
        let peer = self.table.find_peer(&address);
        let known = peer.and_then(|peer| self.table.find(peer, head.mid, now));
        if let Some(slot) = known.filter(|&slot| self.table.get(slot).digest == digest) {
            return self.handle_duplicate(slot);
        }
        let Ok(frame) = guard::frame(head, datagram, self.config.max_options) else {
            return self.reject(address, head, Refusal::Format);
        };
        let mut arrival = Arrival {
            address,
            mid: head.mid,
            token: frame.token,
            confirmable: head.kind == Type::Confirmable,
            no_response: 0,
            digest,
            bytes: datagram.len(),
        };
        let Some(method) = Method::of(head.code) else { return self.refuse_method(&arrival) };
        if let Some(flaw) = frame.flaw {
            return self.refuse_flaw(&arrival, flaw);
        }
        if let Some(slot) = known {
            self.supersede(now, slot);
        }
        if self.table.open() >= self.config.max_open {
            return self.refuse_busy(now, &arrival, Refusal::Busy);
        }
        if self.table.open_of(peer) >= self.config.max_open_per_peer {
            return self.refuse_busy(now, &arrival, Refusal::PeerBusy);
        }
        let Ok(content) = codec::decode(datagram) else {
            return self.reject(address, head, Refusal::Disagreement);
        };
        arrival.no_response = content.no_response;
        let stage = if arrival.confirmable { Stage::Unacknowledged } else { Stage::Processing };
        let slot = self.insert(now, &arrival, stage);
        self.stats.requests += 1;
        self.events.push_back(Event::Request(Request {
            exchange: self.table.id(slot),
            peer: address,
            confirmable: arrival.confirmable,
            method,
            path: content.path,
            query: content.query,
            content_format: content.content_format,
            accept: content.accept,
            payload: content.payload,
        }));
    }

    /// RFC 7252 section 4.5: the answer again, never the request.
    fn handle_duplicate(&mut self, slot: Slot) {
        self.stats.duplicates += 1;
        let exchange = self.table.get(slot);
        let again = match &exchange.stage {
            _ if !exchange.confirmable => None,
            Stage::Unacknowledged => None,
            Stage::Processing | Stage::Responding(_) => Some(Reply::EmptyAck.bytes(exchange.mid)),
            Stage::Remembered(reply) => Some(reply.bytes(exchange.mid)),
        };
        if let Some(again) = again {
            self.transmit(self.table.address_of(slot), again);
        }
    }

    /// A message ID within its lifetime but with other content: no retransmission, those are the same bytes. The
    /// device has started anew, or another one has got its address; the new request counts, the old one is void.
    fn supersede(&mut self, now: Instant, slot: Slot) {
        self.stats.superseded += 1;
        if self.table.separate(slot).is_some() {
            self.lose(now, slot, Lost::Superseded);
        }
        self.table.remove(slot);
    }

    fn insert(&mut self, now: Instant, arrival: &Arrival, stage: Stage) -> Slot {
        let seed = self.rng.next() as u16;
        let (slot, evicted) = self.table.insert(arrival, stage, seed, now);
        self.stats.evicted += evicted;
        slot
    }

    /// Answers a request: piggybacked on the ACK if that has not gone out, else as a message of its own.
    ///
    /// # Errors
    /// [`Gone`] where the exchange is over: answered before, never answered in EXCHANGE_LIFETIME, or superseded.
    /// There is nothing to be done about it; the peer does not wait any more.
    pub fn respond(&mut self, now: Instant, exchange: ExchangeId, response: Response) -> Result<(), Gone> {
        let slot = self.table.unanswered(exchange).ok_or(Gone)?;
        self.stats.responses += 1;
        let exchange = self.table.get(slot);
        let (mid, acknowledged) = (exchange.mid, !matches!(exchange.stage, Stage::Unacknowledged));
        let suppressed = reply::is_suppressed(exchange.no_response, response.code);
        self.stats.responses_suppressed += u64::from(suppressed);
        let reply = match (exchange.confirmable, suppressed, acknowledged) {
            (true, false, true) => {
                self.respond_separately(now, slot, response);
                return Ok(());
            }
            (true, false, false) => {
                let bytes = self.encode(slot, response, Type::Acknowledgement, mid);
                let reply = Reply::keep(&bytes);
                self.transmit(self.table.address_of(slot), bytes);
                reply
            }
            (true, true, false) => {
                // RFC 7967 section 2: the message layer still acknowledges.
                self.transmit(self.table.address_of(slot), codec::empty(Type::Acknowledgement, mid));
                Reply::EmptyAck
            }
            (false, false, _) => {
                let mid = self.table.next_mid(exchange.peer);
                let bytes = self.encode(slot, response, Type::NonConfirmable, mid);
                self.transmit(self.table.address_of(slot), bytes);
                Reply::EmptyAck
            }
            (_, true, _) => Reply::EmptyAck,
        };
        self.table.enter(slot, Stage::Remembered(reply), now);
        Ok(())
    }

    fn encode(&mut self, slot: Slot, mut response: Response, kind: Type, mid: MessageId) -> Bytes {
        let exchange = self.table.get(slot);
        let bytes = usize::from(exchange.request_bytes);
        let limit = match kind {
            Type::Confirmable => reply::limit_of_separate(&self.config, bytes),
            _ => reply::limit(&self.config, bytes),
        };
        self.stats.responses_cut += u64::from(reply::fit(&mut response, &exchange.token, limit));
        reply::encode(&response, kind, mid, exchange.token)
    }

    fn transmit(&mut self, peer: SocketAddr, bytes: Bytes) {
        self.transmits.push_back((peer, bytes));
    }

    /// Does what has become due: empty ACKs, retransmissions, forgetting.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(slot) = self.table.due(Queue::Unacknowledged, now) {
            let ack = codec::empty(Type::Acknowledgement, self.table.get(slot).mid);
            self.transmit(self.table.address_of(slot), ack);
            self.table.enter(slot, Stage::Processing, now);
        }
        self.retransmit_due(now);
        while let Some(slot) = self.table.due(Queue::Processing, now) {
            self.stats.unanswered += 1;
            self.table.remove(slot);
        }
        for queue in [Queue::RememberedCon, Queue::RememberedNon] {
            while let Some(slot) = self.table.due(queue, now) {
                self.table.remove(slot);
            }
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do, if no datagram comes before.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let sweeps = [Queue::Processing, Queue::RememberedCon, Queue::RememberedNon]
            .map(|queue| self.table.deadline(queue).map(|deadline| deadline + SWEEP_SLACK));
        let prompt = [self.table.deadline(Queue::Unacknowledged), self.table.next_retransmission()];
        sweeps.into_iter().chain(prompt).flatten().min()
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The next datagram to send, and where. One that the socket does not take may be dropped: it counts as lost
    /// on the way.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Bytes)> {
        self.transmits.pop_front()
    }

    /// How many requests are without an answer, or with a separate one that is not yet acknowledged. When a server
    /// is to be stopped, this is what may be waited for.
    pub fn open_exchanges(&self) -> usize {
        self.table.open()
    }

    /// How many exchanges are kept, those open and those remembered for their duplicates.
    pub fn exchanges(&self) -> usize {
        self.table.len()
    }

    /// How many addresses exchanges are kept of.
    pub fn peers(&self) -> usize {
        self.table.peers()
    }

    /// The counters.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }
}

/// Whether an answer could reach this address, and only it: a unicast address and a port. To answer port 0 is an
/// error of the socket; to answer many is what an attacker wants (RFC 7252 section 11.3).
fn is_answerable(peer: &SocketAddr) -> bool {
    let many = match peer.ip().to_canonical() {
        std::net::IpAddr::V4(ip) => ip.is_multicast() || ip.is_broadcast() || ip.is_unspecified(),
        std::net::IpAddr::V6(ip) => ip.is_multicast() || ip.is_unspecified(),
    };
    peer.port() != 0 && !many
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unicast_addresses_with_a_port_are_answerable() {
        for good in
            ["192.0.2.1:5683", "127.0.0.1:1", "[::1]:5683", "[2001:db8::1]:61616", "[::ffff:192.0.2.1]:9"]
        {
            assert!(is_answerable(&good.parse().unwrap()), "{good}");
        }
        for bad in [
            "192.0.2.1:0",
            "224.0.1.187:5683",
            "255.255.255.255:5683",
            "0.0.0.0:5683",
            "[::]:5683",
            "[ff02::fd]:5683",
            "[::ffff:224.0.1.187]:5683",
        ] {
            assert!(!is_answerable(&bad.parse().unwrap()), "{bad}");
        }
    }
}
