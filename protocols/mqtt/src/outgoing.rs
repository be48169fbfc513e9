//! Our PUBLISH packets of QoS 1 that the client has not acknowledged.

use std::mem;

use crate::{packet::PacketId, session::Session};

/// PUBLISH packets of QoS 1 without a PUBACK from the client.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    /// In the order in which they were sent, the ones of an earlier connection in front: as many as the window, twice.
    in_flight: Vec<InFlight>,
    last: u16,
}

#[derive(Debug, Clone, Copy)]
struct InFlight {
    packet_id: PacketId,
    /// Sent over this connection.
    sent: bool,
}

impl Outgoing {
    /// Goes on with the identifiers of an earlier connection.
    pub(crate) fn resume(&mut self, session: &mut Session) {
        let earlier = mem::take(&mut session.unacknowledged).into_iter();
        self.in_flight = earlier.map(|packet_id| InFlight { packet_id, sent: false }).collect();
        self.last = session.last_packet_id;
    }

    /// Gives the state to a session; nothing is left.
    pub(crate) fn leave(&mut self, session: &mut Session) {
        session.unacknowledged =
            mem::take(&mut self.in_flight).iter().map(|in_flight| in_flight.packet_id).collect();
        session.last_packet_id = self.last;
    }

    /// How many were sent over this connection.
    pub(crate) fn len(&self) -> usize {
        self.in_flight.iter().filter(|in_flight| in_flight.sent).count()
    }

    /// Takes a packet identifier that is not in use (MQTT 5 2.2.1-4); `None` if `window` are in flight.
    pub(crate) fn allocate(&mut self, window: u16) -> Option<PacketId> {
        if self.len() >= usize::from(window) {
            return None;
        }
        // Fewer than 65,535 are in use, so this ends; nearly always at once.
        let packet_id = loop {
            self.last = self.last.wrapping_add(1);
            match PacketId::new(self.last) {
                Some(free) if self.position(free).is_none() => break free,
                _ => {}
            }
        };
        self.in_flight.push(InFlight { packet_id, sent: true });
        Some(packet_id)
    }

    /// Takes the identifier of an earlier connection for the message that had it; false if `window` are in flight.
    pub(crate) fn repeat(&mut self, packet_id: PacketId, window: u16) -> bool {
        let room = self.len() < usize::from(window);
        match self.position(packet_id) {
            Some(at) if room && !self.in_flight[at].sent => {
                self.in_flight[at].sent = true;
                true
            }
            _ => false,
        }
    }

    /// Whether `packet_id` waits to be sent again.
    pub(crate) fn is_earlier(&self, packet_id: PacketId) -> bool {
        self.position(packet_id).is_some_and(|at| !self.in_flight[at].sent)
    }

    /// Whether a PUBACK for `packet_id` is awaited.
    pub(crate) fn contains(&self, packet_id: PacketId) -> bool {
        self.position(packet_id).is_some()
    }

    /// Whether `packet_id` was in flight; then it is free again.
    pub(crate) fn acknowledge(&mut self, packet_id: PacketId) -> bool {
        let at = self.position(packet_id);
        if let Some(at) = at {
            self.in_flight.remove(at);
        }
        at.is_some()
    }

    fn position(&self, packet_id: PacketId) -> Option<usize> {
        self.in_flight.iter().position(|in_flight| in_flight.packet_id == packet_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u16) -> PacketId {
        PacketId::new(number).expect("not zero")
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

    #[test]
    fn identifiers_of_an_earlier_connection_are_kept_for_their_messages() {
        let mut outgoing = Outgoing::default();
        assert_eq!([outgoing.allocate(2), outgoing.allocate(2)], [Some(id(1)), Some(id(2))]);
        let mut session = Session::default();
        outgoing.leave(&mut session);
        assert_eq!(session.unacknowledged(), [id(1), id(2)]);
        let mut next = Outgoing::default();
        next.resume(&mut session);
        assert_eq!(next.len(), 0, "the window begins anew");
        assert!(next.is_earlier(id(2)) && !next.is_earlier(id(3)));
        assert_eq!(next.allocate(2), Some(id(3)));
        assert!(next.repeat(id(2), 2));
        assert!(!next.repeat(id(2), 9), "once is enough");
        assert!(!next.repeat(id(1), 2), "the window is full");
        assert!(next.acknowledge(id(1)), "the client's PUBACK may come before our repetition");
        assert!(!next.repeat(id(1), 9));
    }
}
