//! The two windows of a connection: PUBLISH packets of the client that we have not acknowledged, and ours that
//! the client has not.

use std::collections::VecDeque;

use crate::{
    packet::{PacketId, PublishToken},
    reason::PublishReply,
};

/// PUBLISH packets from the client without a PUBACK, in the order of their arrival.
///
/// Answers come in any order; PUBACKs leave in the order of the PUBLISHes (MQTT 5 4.6.0-2).
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    waiting: VecDeque<Waiting>,
    /// Number of the token of the first one waiting.
    first: u64,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    packet_id: PacketId,
    reply: Option<PublishReply>,
}

impl Incoming {
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn contains(&self, packet_id: PacketId) -> bool {
        self.waiting.iter().any(|waiting| waiting.packet_id == packet_id)
    }

    pub(crate) fn push(&mut self, packet_id: PacketId) -> PublishToken {
        self.waiting.push_back(Waiting { packet_id, reply: None });
        PublishToken::from_number(self.first + self.waiting.len() as u64 - 1)
    }

    /// Keeps the answer for a PUBLISH; the first answer counts, and an unknown token changes nothing.
    pub(crate) fn settle(&mut self, token: PublishToken, reply: PublishReply) {
        let index = token.number().checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
        if let Some(waiting) = index.and_then(|index| self.waiting.get_mut(index)) {
            waiting.reply.get_or_insert(reply);
        }
    }

    /// The next PUBACK that may leave.
    pub(crate) fn pop(&mut self) -> Option<(PacketId, PublishReply)> {
        let front = self.waiting.front()?;
        let answer = (front.packet_id, front.reply?);
        self.waiting.pop_front();
        self.first += 1;
        Some(answer)
    }
}

/// Our PUBLISH packets of QoS 1 without a PUBACK from the client.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    in_flight: VecDeque<PacketId>,
    last: u16,
}

impl Outgoing {
    pub(crate) fn len(&self) -> usize {
        self.in_flight.len()
    }

    /// Takes a packet identifier that is not in use (MQTT 5 2.2.1-4); `None` if `window` are in flight.
    pub(crate) fn allocate(&mut self, window: u16) -> Option<PacketId> {
        if self.in_flight.len() >= usize::from(window) {
            return None;
        }
        // Fewer than 65,535 are in use, so this ends; nearly always at once.
        let packet_id = loop {
            self.last = self.last.wrapping_add(1);
            match PacketId::new(self.last) {
                Some(free) if !self.in_flight.contains(&free) => break free,
                _ => {}
            }
        };
        self.in_flight.push_back(packet_id);
        Some(packet_id)
    }

    /// Whether `packet_id` was in flight; then it is free again.
    pub(crate) fn acknowledge(&mut self, packet_id: PacketId) -> bool {
        let index = self.in_flight.iter().position(|in_flight| *in_flight == packet_id);
        index.and_then(|index| self.in_flight.remove(index)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u16) -> PacketId {
        PacketId::new(number).expect("not zero")
    }

    #[test]
    fn answers_out_of_order_leave_in_order() {
        let mut incoming = Incoming::default();
        let tokens: Vec<_> = [7, 3, 9].map(|number| incoming.push(id(number))).into();
        incoming.settle(tokens[2], PublishReply::Success);
        incoming.settle(tokens[1], PublishReply::QuotaExceeded);
        assert_eq!(incoming.pop(), None);
        incoming.settle(tokens[0], PublishReply::Success);
        incoming.settle(tokens[0], PublishReply::NotAuthorised);
        assert_eq!(incoming.pop(), Some((id(7), PublishReply::Success)));
        assert_eq!(incoming.pop(), Some((id(3), PublishReply::QuotaExceeded)));
        incoming.settle(tokens[0], PublishReply::NotAuthorised);
        incoming.settle(PublishToken::from_number(99), PublishReply::NotAuthorised);
        assert_eq!(incoming.pop(), Some((id(9), PublishReply::Success)));
        assert_eq!((incoming.pop(), incoming.len()), (None, 0));
        assert_eq!(incoming.push(id(7)).number(), 3, "a token is never used twice");
    }

    #[test]
    fn packet_identifiers_go_round_and_pass_over_those_in_use() {
        let mut outgoing = Outgoing::default();
        assert_eq!(outgoing.allocate(2), Some(id(1)));
        assert_eq!(outgoing.allocate(2), Some(id(2)));
        assert_eq!(outgoing.allocate(2), None);
        assert!(outgoing.acknowledge(id(2)));
        assert!(!outgoing.acknowledge(id(2)));
        for number in 3..=65_535 {
            assert_eq!(outgoing.allocate(2), Some(id(number)));
            assert!(outgoing.acknowledge(id(number)));
        }
        assert_eq!(outgoing.allocate(2), Some(id(2)), "zero is none, and 1 is in use still");
        assert_eq!(outgoing.len(), 2);
    }
}
