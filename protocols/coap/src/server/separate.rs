//! Separate responses: sent as CON, again and again until the peer acknowledges, rejects or is given up.
//! Not the books about them: those are in `outbound`. RFC 7252 sections 4.2, 4.7 and 5.2.2.

use std::net::SocketAddr;
use std::time::Instant;

use super::Server;
use super::api::{Event, Lost, Response};
use super::outbound::Separate;
use super::reply::Reply;
use super::table::{Slot, Stage};
use crate::codec;
use crate::guard::Head;
use crate::message::Type;

impl Server {
    pub(super) fn respond_separately(&mut self, now: Instant, slot: Slot, response: Response) {
        self.stats.separate_responses += 1;
        let peer = self.table.get(slot).peer;
        let mid = self.table.next_mid(peer);
        let bytes = self.encode(slot, response, Type::Confirmable, mid);
        let wait = self.config.transmission.first_wait(&mut self.rng);
        self.table.enter(slot, Stage::Responding(Box::new(Separate::new(bytes, mid, wait))), now);
        self.table.queue_separate(slot);
        self.start_separates(now, peer);
    }

    /// Sends what waits for a peer, as far as NSTART allows.
    fn start_separates(&mut self, now: Instant, peer: Slot) {
        while let Some(slot) = self.table.start_separate(peer, self.config.transmission.nstart) {
            self.send_separate(now, slot);
        }
    }

    fn send_separate(&mut self, now: Instant, slot: Slot) {
        if let Some(bytes) = self.table.sent_separate(slot, now) {
            self.transmit(self.table.address_of(slot), bytes);
        }
    }

    pub(super) fn retransmit_due(&mut self, now: Instant) {
        while let Some(slot) = self.table.take_due_retransmission(now) {
            let sent = self.table.separate(slot).map_or(u8::MAX, |separate| separate.sent);
            if sent <= self.config.transmission.max_retransmit {
                self.stats.retransmissions += 1;
                self.send_separate(now, slot);
                continue;
            }
            // Nobody there: what waits behind it would only wait as long again.
            let waiting = self.table.waiting_separates(self.table.get(slot).peer);
            for slot in waiting.into_iter().chain([slot]) {
                self.lose(now, slot, Lost::TimedOut);
            }
        }
    }

    /// An empty ACK or RST; whether it answers a separate response that is under way.
    pub(super) fn handle_answer(&mut self, now: Instant, address: SocketAddr, head: &Head) -> bool {
        let Some(peer) = self.table.find_peer(&address) else { return false };
        let Some(slot) = self.table.separate_in_flight(peer, head.mid) else { return false };
        if head.kind == Type::Reset {
            self.stats.resets += 1;
            self.lose(now, slot, Lost::Reset);
        } else {
            self.stats.acknowledged += 1;
            self.table.enter(slot, Stage::Remembered(Reply::EmptyAck), now);
            self.start_separates(now, peer);
        }
        true
    }

    /// A separate response that did not arrive. If the request comes once more, the peer lives, and gets it with
    /// the ACK.
    pub(super) fn lose(&mut self, now: Instant, slot: Slot, cause: Lost) {
        let exchange = self.table.get(slot);
        let (peer, mid) = (exchange.peer, exchange.mid);
        let Some(separate) = self.table.separate(slot) else { return };
        let piggybacked = codec::readdressed(&separate.bytes, Type::Acknowledgement, mid);
        self.stats.responses_lost += 1;
        self.events.push_back(Event::ResponseLost { exchange: self.table.id(slot), cause });
        self.table.enter(slot, Stage::Remembered(Reply::keep(&piggybacked)), now);
        self.start_separates(now, peer);
    }
}
