//! The deliveries under way from one session to its counterpart, and under which ids each
//! side knows them.

use fieldgate_amqp::connection::LinkId;
use fieldgate_amqp::ring::DeliveryRing;

/// Deliveries of one direction that neither side has settled yet.
///
/// The peer that sends numbers them its way (*in*), the connection that passes them on
/// numbers them anew (*out*). Both numberings rise together, so a range of one is a few runs
/// of the other.
#[derive(Debug, Default)]
pub(crate) struct Deliveries {
    by_out: DeliveryRing<Passed>,
    by_in: DeliveryRing<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Passed {
    id_in: u32,
    out: LinkId,
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

impl Deliveries {
    /// How many are under way.
    pub(crate) fn len(&self) -> usize {
        self.by_out.len()
    }

    /// Notes that the delivery known as `id_in` goes on over link `out` as `id_out`.
    ///
    /// Ids that do not rise are not noted: the peer broke the numbering (AMQP 1.0 2.6.12),
    /// and its dispositions for them find nothing.
    pub(crate) fn passed(&mut self, id_in: u32, id_out: u32, out: LinkId) {
        if self.by_in.push(id_in, id_out).is_ok() && self.by_out.push(id_out, Passed { id_in, out }).is_err() {
            self.by_in.remove(id_in);
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
    pub(crate) fn forget_link(&mut self, out: LinkId) {
        let gone: Vec<u32> =
            self.by_out.iter().filter(|(_, passed)| passed.out == out).map(|(_, passed)| passed.id_in).collect();
        for id_in in gone {
            self.forget_in(id_in);
        }
    }

    fn forget_run(&mut self, run: Run) {
        for (_, id_out) in self.by_in.drain_range(run.first, run.last) {
            self.by_out.remove(id_out);
        }
    }
}
