//! Separate responses on their way: which may be sent now (NSTART), which waits, when each is sent again.
//! Not the sending: this keeps the books, `separate` acts on them. RFC 7252 sections 4.2, 4.7, 5.2.2.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::table::{Slot, Stage, Table};
use crate::message::MessageId;

/// A separate response.
#[derive(Debug)]
pub(crate) struct Separate {
    pub(crate) bytes: Bytes,
    pub(crate) mid: MessageId,
    /// How often it was sent.
    pub(crate) sent: u8,
    /// The present wait; doubled by each retransmission.
    pub(crate) wait: Duration,
    /// When it is sent again; nothing while it waits for its turn.
    due: Option<Instant>,
}

impl Separate {
    pub(crate) fn new(bytes: Bytes, mid: MessageId, wait: Duration) -> Self {
        Self { bytes, mid, sent: 0, wait, due: None }
    }
}

/// The separate responses of one peer.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    in_flight: Vec<Slot>,
    waiting: VecDeque<Slot>,
}

/// What is to be sent again, in the order of time.
pub(super) type Retransmissions = BTreeSet<(Instant, Slot)>;

impl Table {
    /// Queues an exchange that has just entered `Stage::Responding` behind the others of its peer.
    pub(crate) fn queue_separate(&mut self, slot: Slot) {
        let peer = self.get(slot).peer;
        self.peers[peer as usize].outbound.get_or_insert_default().waiting.push_back(slot);
    }

    /// The next response of a peer whose turn it is, at most `nstart` being under way.
    pub(crate) fn start_separate(&mut self, peer: Slot, nstart: usize) -> Option<Slot> {
        let outbound = self.peers.get_mut(peer as usize)?.outbound.as_deref_mut()?;
        if outbound.in_flight.len() >= nstart.max(1) {
            return None;
        }
        let slot = outbound.waiting.pop_front()?;
        outbound.in_flight.push(slot);
        Some(slot)
    }

    /// All responses of a peer that wait for their turn; they stay where they are.
    pub(crate) fn waiting_separates(&self, peer: Slot) -> Vec<Slot> {
        let outbound = self.peers.get(peer as usize).and_then(|peer| peer.outbound.as_deref());
        outbound.map(|outbound| outbound.waiting.iter().copied().collect()).unwrap_or_default()
    }

    /// The response under way to this peer with this message ID of ours.
    pub(crate) fn separate_in_flight(&self, peer: Slot, mid: MessageId) -> Option<Slot> {
        let outbound = self.peers[peer as usize].outbound.as_deref()?;
        let has_mid = |slot: &Slot| match &self.get(*slot).stage {
            Stage::Responding(separate) => separate.mid == mid,
            _ => false,
        };
        outbound.in_flight.iter().copied().find(has_mid)
    }

    /// The response of an exchange that is in that stage.
    pub(crate) fn separate(&self, slot: Slot) -> Option<&Separate> {
        match &self.get(slot).stage {
            Stage::Responding(separate) => Some(separate),
            _ => None,
        }
    }

    /// Counts one sending, sets the time of the next one and gives the bytes out.
    pub(crate) fn sent_separate(&mut self, slot: Slot, now: Instant) -> Option<Bytes> {
        let Stage::Responding(separate) = &mut self.exchanges[slot as usize].stage else { return None };
        if let Some(due) = separate.due.take() {
            self.retransmissions.remove(&(due, slot));
            separate.wait = separate.wait.saturating_mul(2);
        }
        separate.sent = separate.sent.saturating_add(1);
        let due = now + separate.wait;
        separate.due = Some(due);
        self.retransmissions.insert((due, slot));
        Some(separate.bytes.clone())
    }

    /// When the first retransmission is due.
    pub(crate) fn next_retransmission(&self) -> Option<Instant> {
        self.retransmissions.first().map(|&(due, _)| due)
    }

    /// Takes the first retransmission out, if it is due. What becomes of it is the caller's: sending it sets the
    /// next time.
    pub(crate) fn take_due_retransmission(&mut self, now: Instant) -> Option<Slot> {
        let &(due, slot) = self.retransmissions.first()?;
        (due <= now && self.retransmissions.remove(&(due, slot))).then_some(slot)
    }

    /// Takes an exchange that leaves `Stage::Responding` off the books.
    pub(super) fn withdraw(&mut self, slot: Slot) {
        let exchange = &mut self.exchanges[slot as usize];
        if let Stage::Responding(separate) = &mut exchange.stage
            && let Some(due) = separate.due.take()
        {
            self.retransmissions.remove(&(due, slot));
        }
        let peer = &mut self.peers[exchange.peer as usize];
        if let Some(outbound) = peer.outbound.as_deref_mut() {
            outbound.in_flight.retain(|&other| other != slot);
            outbound.waiting.retain(|&other| other != slot);
            if outbound.in_flight.is_empty() && outbound.waiting.is_empty() {
                peer.outbound = None;
            }
        }
    }
}
