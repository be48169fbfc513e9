//! The deliveries under way from one session to its counterpart, and under which ids each
//! side knows them.

use fieldgate_amqp::ring::DeliveryRing;

/// Deliveries of one direction that neither side has settled yet.
///
/// The peer that sends numbers them its way (*in*), the connection that passes them on
/// numbers them anew (*out*). Both numberings rise together, so a range of one is a few runs
/// of the other. `L` names the link that they go out on.
#[derive(Debug)]
pub(crate) struct Deliveries<L> {
    by_out: DeliveryRing<Passed<L>>,
    by_in: DeliveryRing<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Passed<L> {
    id_in: u32,
    out: L,
}

/// Ids that follow one another on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) first: u32,
    pub(crate) last: u32,
}

impl Run {
    fn extend(runs: &mut Vec<Run>, id: u32) {
        match runs.last_mut() {
            Some(run) if run.last.wrapping_add(1) == id => run.last = id,
            _ => runs.push(Run { first: id, last: id }),
        }
    }
}

impl<L> Default for Deliveries<L> {
    fn default() -> Self {
        Self { by_out: DeliveryRing::new(), by_in: DeliveryRing::new() }
    }
}

impl<L: Copy + PartialEq> Deliveries<L> {
    /// How many are under way.
    pub(crate) fn len(&self) -> usize {
        self.by_out.len()
    }

    /// Gives memory back where nothing is under way.
    pub(crate) fn rest(&mut self) {
        if self.by_out.is_empty() {
            *self = Self::default();
        }
    }

    /// Notes that the delivery known as `id_in` goes on over link `out` as `id_out`.
    ///
    /// False where that cannot be: ids that lie half the circle behind one that is still under way have no order.
    #[must_use]
    pub(crate) fn passed(&mut self, id_in: u32, id_out: u32, out: L) -> bool {
        if self.by_in.push(id_in, id_out).is_err() {
            return false;
        }
        let noted = self.by_out.push(id_out, Passed { id_in, out }).is_ok();
        if !noted {
            self.by_in.remove(id_in);
        }
        noted
    }

    /// Takes out what goes out as `from` or later; gives the runs of its ids on the sending side.
    pub(crate) fn drain_from(&mut self, from: u32, runs: &mut Vec<Run>) {
        runs.clear();
        let Some(last) = self.by_out.iter().map(|(id, _)| id).last() else { return };
        if last.wrapping_sub(from) < 1 << 31 {
            self.in_ids(from, last, true, runs);
        }
    }

    /// Takes everything out; gives the runs of the ids on the sending side.
    pub(crate) fn drain_in(&mut self, runs: &mut Vec<Run>) {
        runs.clear();
        self.by_in.drain().for_each(|(id, _)| Run::extend(runs, id));
        self.by_out = DeliveryRing::new();
    }

    /// Takes everything out; gives the runs of the ids on the receiving side.
    pub(crate) fn drain_out(&mut self, runs: &mut Vec<Run>) {
        runs.clear();
        self.by_out.drain().for_each(|(id, _)| Run::extend(runs, id));
        self.by_in = DeliveryRing::new();
    }

    /// Nobody will speak of the delivery any more that went out under this id.
    pub(crate) fn forget_out(&mut self, id_out: u32) {
        if let Some(passed) = self.by_out.remove(id_out) {
            self.by_in.remove(passed.id_in);
        }
    }

    /// Nobody will speak of this delivery again.
    pub(crate) fn forget_in(&mut self, id_in: u32) {
        if let Some(id_out) = self.by_in.remove(id_in) {
            self.by_out.remove(id_out);
        }
    }

    /// What the receiving side calls `first..=last`, in the sender's ids; forgotten when settled.
    ///
    /// Costs no more than there are deliveries under way, however wide the range.
    pub(crate) fn in_ids(&mut self, first: u32, last: u32, settled: bool, runs: &mut Vec<Run>) {
        runs.clear();
        let found = self.by_out.range(first, last).map(|(_, passed)| passed.id_in);
        found.for_each(|id| Run::extend(runs, id));
        if settled {
            for run in runs.iter() {
                self.forget_run(*run);
            }
        }
    }

    /// What the sending side calls `first..=last`, in the receiver's ids; forgotten when settled.
    pub(crate) fn out_ids(&mut self, first: u32, last: u32, settled: bool, runs: &mut Vec<Run>) {
        runs.clear();
        let found = self.by_in.range(first, last).map(|(_, id)| *id);
        found.for_each(|id| Run::extend(runs, id));
        if settled {
            self.forget_run(Run { first, last });
        }
    }

    /// Forgets all that went over `out`: the link is gone on both sides.
    pub(crate) fn forget_link(&mut self, out: L) {
        let Self { by_out, by_in } = self;
        by_out.retain(
            |_, passed| passed.out != out,
            |_, passed| {
                by_in.remove(passed.id_in);
            },
        );
    }

    fn forget_run(&mut self, run: Run) {
        let Self { by_out, by_in } = self;
        by_in.remove_range(run.first, run.last, |_, id_out| {
            by_out.remove(id_out);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(of: impl FnOnce(&mut Vec<Run>)) -> Vec<(u32, u32)> {
        let mut runs = vec![Run { first: 7, last: 7 }];
        of(&mut runs);
        runs.into_iter().map(|run| (run.first, run.last)).collect()
    }

    #[test]
    fn a_range_becomes_the_runs_of_the_other_side() {
        let link = 'a';
        let mut deliveries = Deliveries::default();
        // 12 was pre-settled and never noted: the out ids go on without a gap.
        for (id_in, id_out) in [(10, 0), (11, 1), (13, 2), (14, 3)] {
            assert!(deliveries.passed(id_in, id_out, link));
        }
        assert_eq!(runs(|runs| deliveries.in_ids(0, u32::MAX / 2, false, runs)), [(10, 11), (13, 14)]);
        assert_eq!(runs(|runs| deliveries.out_ids(11, 13, false, runs)), [(1, 2)]);
        assert_eq!(runs(|runs| deliveries.in_ids(1, 2, true, runs)), [(11, 11), (13, 13)]);
        assert_eq!(deliveries.len(), 2);
        assert_eq!(runs(|runs| deliveries.in_ids(0, 3, true, runs)), [(10, 10), (14, 14)]);
        assert_eq!(deliveries.len(), 0);
        assert_eq!(runs(|runs| deliveries.in_ids(0, 3, true, runs)), []);
    }

    #[test]
    fn ids_wrap() {
        let link = 'a';
        let mut deliveries = Deliveries::default();
        for step in 0..4 {
            assert!(deliveries.passed(u32::MAX.wrapping_add(step), (u32::MAX - 2).wrapping_add(step), link));
        }
        assert_eq!(runs(|runs| deliveries.in_ids(u32::MAX - 2, 0, true, runs)), [(u32::MAX, 2)]);
        assert_eq!(deliveries.len(), 0);
    }

    #[test]
    fn a_link_takes_its_deliveries_along() {
        let (one, two) = ('a', 'b');
        let mut deliveries = Deliveries::default();
        assert!(deliveries.passed(0, 0, one) && deliveries.passed(1, 1, two));
        assert!(deliveries.passed(2, 2, one));
        assert!(!deliveries.passed(1, 3, one), "ids only rise");
        assert!(!deliveries.passed(1 << 31, 3, one), "too far ahead");
        deliveries.forget_link(one);
        assert_eq!(runs(|runs| deliveries.in_ids(0, 2, false, runs)), [(1, 1)]);
    }
}
