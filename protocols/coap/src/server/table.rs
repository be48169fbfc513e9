//! All exchanges and peers of a socket: found by address and message ID, bounded, and timed.
//! Not a sender: it decides nothing about answers, it only keeps.
//!
//! A time-out of fixed length needs no heap: exchanges stand in one queue for each stage, in the order of entering
//! it, and each queue has one duration. To set, cancel and fire cost constant time. Only the retransmissions, few
//! and of varying length, stand in an ordered set.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use slab::Slab;

use super::api::ExchangeId;
use super::list::{Links, List};
use super::outbound::{Outbound, Retransmissions, Separate};
use super::reply::Reply;
use crate::config::Config;
use crate::hash::Keyed;
use crate::message::{MessageId, Token};

/// Where an exchange or a peer stands in its slab.
pub(crate) type Slot = u32;

/// The queues with a fixed duration each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Queue {
    /// A CON that may still get a piggybacked response: `ack_delay`.
    Unacknowledged,
    /// With the application; a CON has had its empty ACK: EXCHANGE_LIFETIME.
    Processing,
    /// A CON that is over, remembered for its duplicates: EXCHANGE_LIFETIME.
    RememberedCon,
    /// The same for a NON: NON_LIFETIME.
    RememberedNon,
}

/// How far an exchange has come.
///
/// ```text
///  CON -> Unacknowledged --respond--------------------------> Remembered(piggybacked response)
///              | ack_delay                                          ^
///              v                                                    | ACK, RST, given up
///  NON -> Processing --respond (CON)--> Responding -----------------+
///              | respond (NON) --------------------------------> Remembered
/// ```
#[derive(Debug)]
pub(crate) enum Stage {
    Unacknowledged,
    Processing,
    Responding(Box<Separate>),
    Remembered(Reply),
}

/// What is known of a request when it arrives.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arrival {
    pub(crate) address: SocketAddr,
    pub(crate) mid: MessageId,
    pub(crate) token: Token,
    pub(crate) confirmable: bool,
    pub(crate) no_response: u8,
    pub(crate) digest: u32,
    pub(crate) bytes: usize,
}

/// One exchange, from the arrival of its request until its message ID may be used again.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) stage: Stage,
    deadline: Instant,
    in_queue: Links,
    of_peer: Links,
    pub(crate) peer: Slot,
    generation: u32,
    pub(crate) digest: u32,
    pub(crate) mid: MessageId,
    pub(crate) request_bytes: u16,
    pub(crate) token: Token,
    pub(crate) confirmable: bool,
    pub(crate) no_response: u8,
}

impl Exchange {
    fn queue(&self) -> Option<Queue> {
        match (&self.stage, self.confirmable) {
            (Stage::Unacknowledged, _) => Some(Queue::Unacknowledged),
            (Stage::Processing, _) => Some(Queue::Processing),
            (Stage::Responding(_), _) => None,
            (Stage::Remembered(_), true) => Some(Queue::RememberedCon),
            (Stage::Remembered(_), false) => Some(Queue::RememberedNon),
        }
    }

    fn is_open(&self) -> bool {
        !matches!(self.stage, Stage::Remembered(_))
    }
}

/// One address that exchanges are known of.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) address: SocketAddr,
    /// Its exchanges that are over, oldest first.
    remembered: List,
    remembered_count: u32,
    open: u32,
    next_mid: u16,
    /// Only while there are separate responses.
    pub(super) outbound: Option<Box<Outbound>>,
}

/// The tables. Every exchange is in `exchanges` and `by_message`; every peer has at least one.
#[derive(Debug)]
pub(crate) struct Table {
    pub(super) exchanges: Slab<Exchange>,
    pub(super) peers: Slab<Peer>,
    by_address: HashMap<SocketAddr, Slot, Keyed>,
    by_message: HashMap<(Slot, MessageId), Slot, Keyed>,
    queues: [List; 4],
    durations: [Duration; 4],
    pub(super) retransmissions: Retransmissions,
    open: usize,
    capacity: usize,
    capacity_per_peer: usize,
    next_generation: u32,
}

impl Table {
    pub(crate) fn new(config: &Config, key: u64) -> Self {
        let lifetime = config.transmission.exchange_lifetime;
        Self {
            exchanges: Slab::new(),
            peers: Slab::new(),
            by_address: HashMap::with_hasher(Keyed(key)),
            by_message: HashMap::with_hasher(Keyed(key.rotate_left(32))),
            queues: [List::default(); 4],
            durations: [config.ack_delay, lifetime, lifetime, config.transmission.non_lifetime],
            retransmissions: Retransmissions::default(),
            open: 0,
            // One more than may be open: so there is always one that is over and can fall out.
            capacity: config.max_exchanges.clamp(config.max_open.saturating_add(1), u32::MAX as usize),
            capacity_per_peer: config.max_exchanges_per_peer.max(config.max_open_per_peer.saturating_add(1)),
            next_generation: 0,
        }
    }

    /// How many exchanges are without a delivered answer.
    pub(crate) fn open(&self) -> usize {
        self.open
    }

    /// How many exchanges are kept, open and over.
    pub(crate) fn len(&self) -> usize {
        self.exchanges.len()
    }

    pub(crate) fn peers(&self) -> usize {
        self.peers.len()
    }

    pub(crate) fn find_peer(&self, address: &SocketAddr) -> Option<Slot> {
        self.by_address.get(address).copied()
    }

    /// How many exchanges of a peer are without a delivered answer; none of one that is not known.
    pub(crate) fn open_of(&self, peer: Option<Slot>) -> usize {
        peer.and_then(|peer| self.peers.get(peer as usize)).map_or(0, |peer| peer.open as usize)
    }

    /// The exchange of this message ID, unless its lifetime is over.
    pub(crate) fn find(&self, peer: Slot, mid: MessageId, now: Instant) -> Option<Slot> {
        let slot = *self.by_message.get(&(peer, mid))?;
        let exchange = &self.exchanges[slot as usize];
        (exchange.is_open() || exchange.deadline > now).then_some(slot)
    }

    pub(crate) fn get(&self, slot: Slot) -> &Exchange {
        &self.exchanges[slot as usize]
    }

    pub(crate) fn address_of(&self, slot: Slot) -> SocketAddr {
        self.peers[self.get(slot).peer as usize].address
    }

    pub(crate) fn id(&self, slot: Slot) -> ExchangeId {
        ExchangeId { slot, generation: self.get(slot).generation }
    }

    /// The exchange of this name, if the application still owes an answer.
    pub(crate) fn unanswered(&self, id: ExchangeId) -> Option<Slot> {
        let exchange = self.exchanges.get(id.slot as usize)?;
        let waits = matches!(exchange.stage, Stage::Unacknowledged | Stage::Processing);
        (waits && exchange.generation == id.generation).then_some(id.slot)
    }

    /// A message ID for a message of our own, not used toward this peer for 65,536 messages.
    pub(crate) fn next_mid(&mut self, peer: Slot) -> MessageId {
        let peer = &mut self.peers[peer as usize];
        peer.next_mid = peer.next_mid.wrapping_add(1);
        MessageId(peer.next_mid)
    }

    /// Adds an exchange in a stage other than `Responding`. What has the same key, or is too much, falls out;
    /// the second number says how many exchanges were forgotten before their time.
    pub(crate) fn insert(&mut self, arrival: &Arrival, stage: Stage, seed: u16, now: Instant) -> (Slot, u64) {
        let peer = self.find_peer(&arrival.address).unwrap_or_else(|| self.add_peer(arrival.address, seed));
        // Held, or making room might forget it with its last exchange.
        self.peers[peer as usize].open += 1;
        let evicted = self.make_room(peer);
        self.next_generation = self.next_generation.wrapping_add(1);
        let slot = self.exchanges.insert(Exchange {
            stage,
            deadline: now,
            in_queue: Links::default(),
            of_peer: Links::default(),
            peer,
            generation: self.next_generation,
            digest: arrival.digest,
            mid: arrival.mid,
            request_bytes: u16::try_from(arrival.bytes).unwrap_or(u16::MAX),
            token: arrival.token,
            confirmable: arrival.confirmable,
            no_response: arrival.no_response,
        }) as Slot;
        self.link(slot, now);
        self.peers[peer as usize].open -= 1;
        if let Some(old) = self.by_message.insert((peer, arrival.mid), slot) {
            // Its lifetime is over, or `find` would have found it.
            self.unlink(old);
            self.exchanges.remove(old as usize);
        }
        (slot, evicted)
    }

    /// Forgets one exchange of a peer that has too many, and one of all if there are too many.
    fn make_room(&mut self, peer: Slot) -> u64 {
        let mut evicted = 0;
        let Peer { remembered, remembered_count, open, .. } = &self.peers[peer as usize];
        let full = (open + remembered_count) as usize > self.capacity_per_peer;
        if let Some(oldest) = remembered.first().filter(|_| full) {
            self.remove(oldest);
            evicted += 1;
        }
        // Those that are over first: the one whose time is nearest. There is one, see `capacity`.
        if self.exchanges.len() >= self.capacity {
            let deadline = |slot: &Slot| self.exchanges[*slot as usize].deadline;
            let ends = [Queue::RememberedCon, Queue::RememberedNon].map(|queue| self.first(queue));
            if let Some(oldest) = ends.into_iter().flatten().min_by_key(deadline) {
                self.remove(oldest);
                evicted += 1;
            }
        }
        evicted
    }

    fn add_peer(&mut self, address: SocketAddr, seed: u16) -> Slot {
        let peer = self.peers.insert(Peer {
            address,
            remembered: List::default(),
            remembered_count: 0,
            open: 0,
            next_mid: seed,
            outbound: None,
        }) as Slot;
        self.by_address.insert(address, peer);
        peer
    }

    /// Moves an exchange to another stage; the time of that stage begins now.
    pub(crate) fn enter(&mut self, slot: Slot, stage: Stage, now: Instant) {
        self.unlink(slot);
        self.exchanges[slot as usize].stage = stage;
        self.link(slot, now);
    }

    /// Forgets an exchange, and its peer with the last one.
    pub(crate) fn remove(&mut self, slot: Slot) {
        self.unlink(slot);
        let exchange = self.exchanges.remove(slot as usize);
        self.by_message.remove(&(exchange.peer, exchange.mid));
        let peer = &self.peers[exchange.peer as usize];
        if peer.open == 0 && peer.remembered_count == 0 {
            self.by_address.remove(&peer.address);
            self.peers.remove(exchange.peer as usize);
        }
    }

    /// Puts an exchange where its stage belongs, and counts it.
    fn link(&mut self, slot: Slot, now: Instant) {
        let exchange = &mut self.exchanges[slot as usize];
        let peer = &mut self.peers[exchange.peer as usize];
        let open = exchange.is_open();
        if let Some(queue) = exchange.queue() {
            exchange.deadline = now + self.durations[queue as usize];
            self.queues[queue as usize]
                .push_back(&mut self.exchanges, slot, |exchange| &mut exchange.in_queue);
        }
        if open {
            self.open += 1;
            peer.open += 1;
        } else {
            peer.remembered.push_back(&mut self.exchanges, slot, |exchange| &mut exchange.of_peer);
            peer.remembered_count += 1;
        }
    }

    /// The reverse of `link`.
    fn unlink(&mut self, slot: Slot) {
        let exchange = &self.exchanges[slot as usize];
        let (queue, open, peer) = (exchange.queue(), exchange.is_open(), exchange.peer as usize);
        match queue {
            Some(queue) => self.queues[queue as usize]
                .unlink(&mut self.exchanges, slot, |exchange| &mut exchange.in_queue),
            None => self.withdraw(slot),
        }
        let peer = &mut self.peers[peer];
        if open {
            self.open -= 1;
            peer.open -= 1;
        } else {
            peer.remembered.unlink(&mut self.exchanges, slot, |exchange| &mut exchange.of_peer);
            peer.remembered_count -= 1;
        }
    }

    fn first(&self, queue: Queue) -> Option<Slot> {
        self.queues[queue as usize].first()
    }

    /// When the first exchange of a queue is due.
    pub(crate) fn deadline(&self, queue: Queue) -> Option<Instant> {
        self.first(queue).map(|slot| self.get(slot).deadline)
    }

    /// The first exchange of a queue, if it is due.
    pub(crate) fn due(&self, queue: Queue, now: Instant) -> Option<Slot> {
        self.first(queue).filter(|&slot| self.get(slot).deadline <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(port: u16, mid: u16) -> Arrival {
        Arrival {
            address: SocketAddr::from(([192, 0, 2, 1], port)),
            mid: MessageId(mid),
            token: Token::default(),
            confirmable: true,
            no_response: 0,
            digest: 0,
            bytes: 20,
        }
    }

    fn over() -> Stage {
        Stage::Remembered(Reply::EmptyAck)
    }

    fn small(capacity: usize, per_peer: usize) -> Table {
        let config = Config {
            max_open: 2,
            max_open_per_peer: 2,
            max_exchanges: capacity,
            max_exchanges_per_peer: per_peer,
            ..Config::default()
        };
        Table::new(&config, 1)
    }

    #[test]
    fn an_exchange_stays_small() {
        assert!(size_of::<Exchange>() <= 96, "{}", size_of::<Exchange>());
        assert!(size_of::<Peer>() <= 72, "{}", size_of::<Peer>());
    }

    #[test]
    fn the_oldest_that_is_over_falls_out_and_open_ones_stay() {
        let start = crate::testing::epoch();
        let mut table = small(4, 100);
        let (open, _) = table.insert(&arrival(1, 0), Stage::Processing, 0, start);
        for mid in 1..10 {
            let (_, evicted) = table.insert(&arrival(mid, mid), over(), 0, start + Duration::from_secs(1));
            assert_eq!(evicted, u64::from(mid > 3));
        }
        assert_eq!((table.len(), table.open(), table.peers()), (4, 1, 4));
        assert!(table.unanswered(table.id(open)).is_some());
        let kept = |mid| table.find_peer(&arrival(mid, mid).address).is_some();
        assert!(!kept(6) && kept(7) && kept(8) && kept(9));
    }

    #[test]
    fn one_peer_has_its_own_bound() {
        let start = crate::testing::epoch();
        let mut table = small(100, 3);
        for mid in 0..10 {
            table.insert(&arrival(1, mid), over(), 0, start);
        }
        table.insert(&arrival(2, 0), over(), 0, start);
        assert_eq!((table.len(), table.peers()), (4, 2));
        let peer = table.find_peer(&arrival(1, 0).address).unwrap();
        assert!(table.find(peer, MessageId(6), start).is_none());
        assert!(table.find(peer, MessageId(7), start).is_some());
    }

    #[test]
    fn a_message_id_is_free_when_its_lifetime_is_over() {
        let start = crate::testing::epoch();
        let mut table = small(10, 10);
        table.insert(&arrival(1, 7), over(), 0, start);
        let peer = table.find_peer(&arrival(1, 7).address).unwrap();
        let lifetime = Duration::from_secs(247);
        assert!(table.find(peer, MessageId(7), start + lifetime - Duration::from_nanos(1)).is_some());
        assert!(table.find(peer, MessageId(7), start + lifetime).is_none());
        let slot = table.due(Queue::RememberedCon, start + lifetime).unwrap();
        table.remove(slot);
        assert_eq!((table.len(), table.peers(), table.by_message.len()), (0, 0, 0));
    }

    #[test]
    fn a_message_id_is_used_again_before_the_old_one_was_swept() {
        let start = crate::testing::epoch();
        let mut table = small(10, 10);
        table.insert(&arrival(1, 7), over(), 0, start);
        let later = start + Duration::from_secs(247);
        let (slot, evicted) = table.insert(&arrival(1, 7), over(), 0, later);
        assert_eq!((table.len(), evicted, table.due(Queue::RememberedCon, later)), (1, 0, None));
        assert_eq!(table.find(table.get(slot).peer, MessageId(7), later), Some(slot));
    }

    #[test]
    fn a_name_outlives_neither_its_answer_nor_its_slot() {
        let start = crate::testing::epoch();
        let mut table = small(10, 10);
        let (slot, _) = table.insert(&arrival(1, 7), Stage::Processing, 0, start);
        let id = table.id(slot);
        table.enter(slot, over(), start);
        assert!(table.unanswered(id).is_none());
        table.remove(slot);
        let (again, _) = table.insert(&arrival(1, 8), Stage::Processing, 0, start);
        assert_eq!(again, slot);
        assert!(table.unanswered(id).is_none());
    }
}
