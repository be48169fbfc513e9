//! Whose turn it is: deficit round robin, twice.
//!
//! Priorities take turns, and a higher one may send more in its turn: priority 9 ten times as much as priority 0, so
//! that none starves. Within a priority the devices take turns, each with the same right, so that a noisy one does not
//! use up the hub's quota of the others. What is counted is bytes, with something for each message, because hubs meter
//! both. A message may exceed what is left of a turn; the excess is paid back in the turns that follow.

use std::collections::VecDeque;

/// What a queue may send in its turn, in bytes.
const QUANTUM: i64 = 16 * 1024;
/// What a message costs beside its bytes.
const MESSAGE_COST: i64 = 256;
/// AMQP's priorities that are told apart.
const PRIORITIES: usize = 10;

/// The queues of one hub that could send.
#[derive(Debug, Default)]
pub(super) struct Turns {
    classes: [Class; PRIORITIES],
    /// Whose turn it is.
    current: usize,
    queues: usize,
}

/// The queues of one priority.
#[derive(Debug, Default)]
struct Class {
    ring: VecDeque<Turn>,
    left: i64,
}

/// A queue, and what it may still send.
#[derive(Debug)]
struct Turn {
    queue: u32,
    left: i64,
}

impl Turns {
    /// Puts a queue behind the others of its priority; `debt` is what [`leave`](Self::leave) gave the last time.
    pub(super) fn join(&mut self, queue: u32, priority: u8, debt: i64) {
        let class = &mut self.classes[usize::from(priority).min(PRIORITIES - 1)];
        class.ring.push_back(Turn { queue, left: QUANTUM - debt });
        self.queues += 1;
    }

    /// The queue that may send one message now.
    pub(super) fn front(&mut self) -> Option<u32> {
        while self.queues > 0 {
            let class = &mut self.classes[self.current];
            match class.ring.front_mut() {
                Some(turn) if class.left > 0 && turn.left > 0 => return Some(turn.queue),
                Some(turn) if class.left > 0 => {
                    turn.left += QUANTUM;
                    class.ring.rotate_left(1);
                }
                Some(_) => self.next_class(),
                None => {
                    class.left = class.left.min(0);
                    self.next_class();
                }
            }
        }
        None
    }

    /// The queue at the front has sent a message.
    pub(super) fn sent(&mut self, bytes: u64) {
        let cost = MESSAGE_COST + i64::try_from(bytes).unwrap_or(i64::MAX / 2);
        let class = &mut self.classes[self.current];
        class.left -= cost;
        if let Some(turn) = class.ring.front_mut() {
            turn.left -= cost;
        }
    }

    /// The queue at the front has nothing to send now. Gives what it has sent beyond its turn.
    pub(super) fn leave(&mut self) -> i64 {
        let Some(turn) = self.classes[self.current].ring.pop_front() else { return 0 };
        self.queues -= 1;
        -turn.left.min(0)
    }

    fn next_class(&mut self) {
        self.current = (self.current + PRIORITIES - 1) % PRIORITIES;
        let class = &mut self.classes[self.current];
        if !class.ring.is_empty() {
            class.left += QUANTUM * (self.current as i64 + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// How many messages of these sizes the queues send, in so many turns.
    fn serve(queues: &[(u32, u8, u64)], messages: usize) -> HashMap<u32, usize> {
        let mut turns = Turns::default();
        queues.iter().for_each(|(queue, priority, _)| turns.join(*queue, *priority, 0));
        let mut sent = HashMap::new();
        for _ in 0..messages {
            let queue = turns.front().unwrap();
            *sent.entry(queue).or_default() += 1;
            turns.sent(queues.iter().find(|(number, ..)| *number == queue).unwrap().2);
        }
        sent
    }

    #[test]
    fn devices_of_one_priority_have_the_same_right_in_bytes() {
        let sent = serve(&[(0, 4, 244), (1, 4, 244), (2, 4, 744)], 100_000);
        let (small, other, large) = (sent[&0], sent[&1], sent[&2]);
        assert!(small.abs_diff(other) < 200, "{sent:?}");
        assert!(small.abs_diff(2 * large) < 400, "twice the cost, half as many: {sent:?}");
    }

    #[test]
    fn a_higher_priority_has_more_and_the_lowest_does_not_starve() {
        let sent = serve(&[(0, 0, 100), (9, 9, 100), (4, 4, 100)], 160_000);
        for (queue, share) in [(0, 10_000_usize), (4, 50_000), (9, 100_000)] {
            assert!(sent[&queue].abs_diff(share) < 1_000, "{sent:?}");
        }
        // A priority is one, however many devices have it.
        let crowd: Vec<(u32, u8, u64)> = (1..100).map(|n| (n, 0, 100)).chain([(0, 9, 100)]).collect();
        let sent = serve(&crowd, 110_000);
        assert!(sent[&0].abs_diff(100_000) < 1_000, "{:?}", sent[&0]);
    }

    #[test]
    fn a_message_larger_than_a_turn_is_paid_back() {
        let sent = serve(&[(0, 4, 1 << 20), (1, 4, 100)], 100_000);
        let bytes = (sent[&0] << 20) as f64 / (sent[&1] * 356) as f64;
        assert!((0.9..1.1).contains(&bytes), "{sent:?}");
    }

    #[test]
    fn who_leaves_takes_the_debt_along() {
        let mut turns = Turns::default();
        turns.join(0, 4, 0);
        assert_eq!(turns.front(), Some(0));
        turns.sent(100_000);
        let debt = turns.leave();
        assert_eq!(debt, 100_256 - QUANTUM);
        assert_eq!(turns.front(), None);
        turns.join(0, 4, debt);
        turns.join(1, 4, 0);
        assert_eq!(turns.front(), Some(1));
    }
}
