//! What outlives a connection: the part of the session state (MQTT 5 4.1) that is about packets. Subscriptions, the
//! will and how long all of it lasts are the driver's.

use crate::packet::{PacketId, PublishToken};

/// Packets that were not through when a connection ended: [`Connection::take_session`](crate::Connection::take_session)
/// gives it, [`Connection::resume`](crate::Connection::resume) goes on with it.
///
/// A message of QoS 1 from the client is not in it: the client sends that again, and the hub may get it twice. A
/// message of QoS 2 is, also while it has no verdict: when the client sends it again, the first one's verdict counts.
///
/// It is bounded by what one connection may have in flight: 2 bytes for each identifier of a message that was taken,
/// 16 for each without a verdict.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Session {
    /// QoS 2 from the client: taken, and not released.
    pub(crate) unreleased: Vec<PacketId>,
    /// QoS 2 from the client, without a verdict.
    pub(crate) undecided: Vec<Undecided>,
    /// QoS 1 toward the client: sent and not acknowledged, in their order.
    pub(crate) unacknowledged: Vec<PacketId>,
    pub(crate) next_token: u64,
    pub(crate) last_packet_id: u16,
}

/// A PUBLISH of QoS 2 that has no verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Undecided {
    pub(crate) packet_id: PacketId,
    pub(crate) token: PublishToken,
}

impl Session {
    /// Whether there is nothing that the next connection has to know.
    pub fn is_empty(&self) -> bool {
        self.unreleased.is_empty() && self.undecided.is_empty() && self.unacknowledged.is_empty()
    }

    /// A session of which no more is known than the messages of QoS 2 that were taken.
    pub fn of_unreleased(packet_ids: impl IntoIterator<Item = PacketId>) -> Self {
        let mut unreleased: Vec<PacketId> = packet_ids.into_iter().collect();
        unreleased.sort_unstable();
        unreleased.dedup();
        Self { unreleased, ..Self::default() }
    }

    /// Messages of QoS 2 from the client that were taken, and not released.
    pub fn unreleased(&self) -> &[PacketId] {
        &self.unreleased
    }

    /// The verdict on a message while no connection is there: whether somebody else has it now. What nobody has is
    /// forgotten, and is a new message when it comes again.
    pub fn decide(&mut self, token: PublishToken, taken: bool) {
        let Some(at) = self.undecided.iter().position(|undecided| undecided.token == token) else { return };
        let Undecided { packet_id, .. } = self.undecided.swap_remove(at);
        if taken {
            self.unreleased.push(packet_id);
        }
    }

    /// Messages of QoS 2 that are not released, decided or not.
    pub fn exchanges(&self) -> usize {
        self.unreleased.len() + self.undecided.len()
    }

    /// Messages of QoS 2 without a verdict, which [`Session::decide`] awaits.
    pub fn undecided(&self) -> impl Iterator<Item = PublishToken> {
        self.undecided.iter().map(|undecided| undecided.token)
    }

    /// The identifiers under which messages were sent to the client and not acknowledged, in their order. Each is
    /// either sent again, by [`Connection::publish_again`](crate::Connection::publish_again), or given up.
    pub fn unacknowledged(&self) -> &[PacketId] {
        &self.unacknowledged
    }

    /// Gives up a message that was sent to the client: the identifier is free.
    pub fn give_up(&mut self, packet_id: PacketId) {
        self.unacknowledged.retain(|known| *known != packet_id);
    }
}
