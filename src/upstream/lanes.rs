//! The messages of one device for one address that wait: in the order of each priority, the most urgent first, and
//! now and then one that is not, so that nothing waits for ever.

use std::collections::VecDeque;

use bytes::Bytes;
use fieldgate_mappings::outcome::Verdict;

use super::Patience;
use super::load::Share;

/// How urgent a message is: 0 to 9, as AMQP 1.0 3.2.1 has it.
pub(super) type Priority = u8;

/// One in so many messages is the least urgent that waits.
pub(super) const TURN_OF_THE_LAST: u8 = 8;

/// A message that waits for a link or for credit: encoded, so that what it was made of is free.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) message: Bytes,
    pub(super) patience: Patience,
    pub(super) verdict: Verdict,
    pub(super) share: Share,
}

/// The queue. An empty one holds no memory.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    /// By priority, the greatest first; none of them is empty.
    lanes: Vec<(Priority, VecDeque<Waiting>)>,
    bytes: usize,
    turn: u8,
}

impl Lanes {
    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.lanes.is_empty()
    }

    /// The priority of the most urgent one.
    pub(super) fn most_urgent(&self) -> Option<Priority> {
        self.lanes.first().map(|(priority, _)| *priority)
    }

    /// What all of it takes of the bounds.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Puts a message behind those of its priority.
    pub(super) fn push(&mut self, priority: Priority, waiting: Waiting) {
        self.bytes += waiting.share.bytes();
        match self.lanes.binary_search_by(|(of, _)| priority.cmp(of)) {
            Ok(at) => self.lanes[at].1.push_back(waiting),
            Err(at) => self.lanes.insert(at, (priority, VecDeque::from([waiting]))),
        }
    }

    /// Takes the message out whose turn it is.
    pub(super) fn pop(&mut self) -> Option<(Priority, Waiting)> {
        let last = self.lanes.len().checked_sub(1)?;
        let at = if self.turn == TURN_OF_THE_LAST - 1 { last } else { 0 };
        self.turn = (self.turn + 1) % TURN_OF_THE_LAST;
        let (priority, lane) = &mut self.lanes[at];
        let (priority, waiting) = (*priority, lane.pop_front()?);
        if lane.is_empty() {
            self.lanes.remove(at);
        }
        if self.lanes.is_empty() {
            *self = Self::default();
        } else {
            self.bytes -= waiting.share.bytes();
        }
        Some((priority, waiting))
    }

    /// Puts one back that could not go: its turn comes first again.
    pub(super) fn put_back(&mut self, priority: Priority, waiting: Waiting) {
        self.bytes += waiting.share.bytes();
        self.turn = (self.turn + TURN_OF_THE_LAST - 1) % TURN_OF_THE_LAST;
        match self.lanes.binary_search_by(|(of, _)| priority.cmp(of)) {
            Ok(at) => self.lanes[at].1.push_front(waiting),
            Err(at) => self.lanes.insert(at, (priority, VecDeque::from([waiting]))),
        }
    }

    /// How patient they are.
    pub(super) fn patiences(&self) -> impl Iterator<Item = &Patience> {
        self.lanes.iter().flat_map(|(_, lane)| lane).map(|waiting| &waiting.patience)
    }

    /// Keeps what `keep` wants; the rest is dropped, which releases it.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&Waiting) -> bool) {
        let bytes = &mut self.bytes;
        self.lanes.retain_mut(|(_, lane)| {
            lane.retain(|waiting| {
                let kept = keep(waiting);
                *bytes -= if kept { 0 } else { waiting.share.bytes() };
                kept
            });
            !lane.is_empty()
        });
    }

    /// All of them, the most urgent first, each priority in its order.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Waiting> + use<> {
        std::mem::take(self).lanes.into_iter().flat_map(|(_, lane)| lane)
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::time::Instant;

    use fieldgate_mappings::outcome::{Outcome, Report};

    use super::*;
    use crate::upstream::Hears;
    use crate::upstream::load::Load;

    struct Nobody;

    impl Report for Nobody {
        fn report(&self, _: u64, _: Outcome) {}
    }

    fn message(load: &Rc<Load>, ticket: u64) -> Waiting {
        Waiting {
            message: Bytes::new(),
            patience: Patience {
                until: Instant::now(),
                through_outage: ticket.is_multiple_of(2),
                in_order: false,
                hears: Hears::Everything,
            },
            verdict: Verdict::new(Rc::new(Nobody), ticket),
            share: load.wait(100, 0).expect("room"),
        }
    }

    fn tickets(lanes: &mut Lanes, count: usize) -> Vec<u64> {
        (0..count).map_while(|_| lanes.pop()).map(|(_, waiting)| waiting.verdict.ticket()).collect()
    }

    #[test]
    fn the_urgent_go_first_and_the_others_are_not_forgotten() {
        let load = Load::new(1, None);
        let mut lanes = Lanes::default();
        for ticket in 0..30 {
            lanes.push(if ticket < 10 { 1 } else { 7 }, message(&load, ticket));
        }
        assert_eq!(lanes.bytes(), load.waiting_bytes());
        let order = tickets(&mut lanes, 30);
        assert_eq!(&order[..10], [10, 11, 12, 13, 14, 15, 16, 0, 17, 18]);
        let of = |urgent: bool| order.iter().copied().filter(|ticket| (*ticket >= 10) == urgent).collect();
        let (urgent, others): (Vec<_>, Vec<_>) = (of(true), of(false));
        assert!(urgent.is_sorted() && others.is_sorted());
        assert_eq!((lanes.bytes(), load.waiting_bytes(), lanes.is_empty()), (0, 0, true));
    }

    #[test]
    fn what_could_not_go_has_its_turn_again() {
        let load = Load::new(1, None);
        let mut lanes = Lanes::default();
        for (ticket, priority) in [(0, 4), (1, 4), (2, 9)] {
            lanes.push(priority, message(&load, ticket));
        }
        for _ in 0..20 {
            let (priority, first) = lanes.pop().unwrap();
            assert_eq!(first.verdict.ticket(), 2);
            lanes.put_back(priority, first);
        }
        assert_eq!(tickets(&mut lanes, 3), [2, 0, 1]);
    }

    #[test]
    fn what_goes_in_the_middle_takes_its_bytes_with_it() {
        let load = Load::new(1, None);
        let mut lanes = Lanes::default();
        for ticket in 0..10 {
            lanes.push((ticket % 3) as u8, message(&load, ticket));
        }
        lanes.retain(|waiting| waiting.patience.through_outage);
        assert_eq!(lanes.bytes(), load.waiting_bytes());
        let left: Vec<u64> = lanes.drain().map(|waiting| waiting.verdict.ticket()).collect();
        assert_eq!(left, [2, 8, 4, 0, 6]);
        lanes.push(4, message(&load, 1));
        lanes.retain(|_| false);
        assert!(lanes.is_empty() && load.waiting_bytes() == 0 && lanes.bytes() == 0);
    }
}
