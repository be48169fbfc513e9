//! The unsettled deliveries of one direction of a session, by delivery-id.
//!
//! Delivery-ids only rise, in serial arithmetic (RFC 1982), so that a queue sorted by arrival is sorted by id. Pre-settled
//! deliveries have ids too but never stand here, so ids may have gaps; no gap costs memory, and a disposition over
//! a giant range costs no more than the deliveries that live in it.

use std::collections::VecDeque;

/// Room that an empty ring keeps, so that one delivery at a time does not allocate each time.
const KEPT: usize = 8;

/// The unsettled deliveries of one direction of a session, by delivery-id.
#[derive(Debug, Clone)]
pub struct DeliveryRing<T> {
    /// Rising ids. A place whose value is gone is a gap that is closed later.
    entries: VecDeque<(u32, Option<T>)>,
    live: usize,
}

impl<T> Default for DeliveryRing<T> {
    fn default() -> Self {
        Self { entries: VecDeque::new(), live: 0 }
    }
}

impl<T> DeliveryRing<T> {
    /// An empty ring, which holds no memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// How many deliveries live in it.
    pub fn len(&self) -> usize {
        self.live
    }

    /// Whether no delivery lives in it.
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Adds the delivery `id`.
    ///
    /// # Errors
    /// Gives `value` back where `id` is not after the last one added, or 2^31 or more after the oldest that lives:
    /// ids so far apart have no order.
    pub fn push(&mut self, id: u32, value: T) -> Result<(), T> {
        if let (Some(&(first, _)), Some(&(last, _))) = (self.entries.front(), self.entries.back())
            && (id.wrapping_sub(first) >= 1 << 31 || id.wrapping_sub(first) <= last.wrapping_sub(first))
        {
            return Err(value);
        }
        self.entries.push_back((id, Some(value)));
        self.live += 1;
        Ok(())
    }

    /// The delivery `id`.
    pub fn get(&self, id: u32) -> Option<&T> {
        self.entries[self.find(id)?].1.as_ref()
    }

    /// The delivery `id`.
    pub fn get_mut(&mut self, id: u32) -> Option<&mut T> {
        let index = self.find(id)?;
        self.entries[index].1.as_mut()
    }

    /// Takes the delivery `id` out.
    pub fn remove(&mut self, id: u32) -> Option<T> {
        let index = self.find(id)?;
        let value = self.entries[index].1.take()?;
        self.live -= 1;
        self.tidy();
        Some(value)
    }

    /// The oldest delivery that lives.
    pub fn first(&self) -> Option<(u32, &T)> {
        // The front is never a gap: `tidy` sees to it.
        self.entries.front().and_then(|(id, value)| Some((*id, value.as_ref()?)))
    }

    /// All deliveries that live, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.entries.iter().filter_map(|(id, value)| Some((*id, value.as_ref()?)))
    }

    /// The deliveries from `first` to `last`, both included, oldest first. Where `last` is before `first`: none.
    pub fn range(&self, first: u32, last: u32) -> impl Iterator<Item = (u32, &T)> {
        let (start, end) = self.bounds(first, last);
        self.entries.range(start..end).filter_map(|(id, value)| Some((*id, value.as_ref()?)))
    }

    /// The deliveries from `first` to `last`, both included, oldest first. Where `last` is before `first`: none.
    pub fn range_mut(&mut self, first: u32, last: u32) -> impl Iterator<Item = (u32, &mut T)> {
        let (start, end) = self.bounds(first, last);
        self.entries.range_mut(start..end).filter_map(|(id, value)| Some((*id, value.as_mut()?)))
    }

    /// Takes the deliveries from `first` to `last` out, both included, and hands each to `taken`, oldest first.
    /// Where `last` is before `first`: none.
    pub fn remove_range(&mut self, first: u32, last: u32, mut taken: impl FnMut(u32, T)) {
        let (start, end) = self.bounds(first, last);
        for (id, value) in self.entries.range_mut(start..end) {
            if let Some(value) = value.take() {
                self.live -= 1;
                taken(*id, value);
            }
        }
        self.tidy();
    }

    /// Takes out the deliveries that `keep` does not want, and hands each to `taken`, oldest first.
    pub fn retain(&mut self, mut keep: impl FnMut(u32, &T) -> bool, mut taken: impl FnMut(u32, T)) {
        for (id, place) in &mut self.entries {
            if let Some(value) = place.take_if(|value| !keep(*id, value)) {
                self.live -= 1;
                taken(*id, value);
            }
        }
        self.tidy();
    }

    /// Takes all deliveries out, oldest first. The ring holds no memory afterwards.
    pub fn drain(&mut self) -> impl Iterator<Item = (u32, T)> + use<T> {
        self.live = 0;
        std::mem::take(&mut self.entries).into_iter().filter_map(|(id, value)| Some((id, value?)))
    }

    /// The place of `id`, which may be a gap.
    fn find(&self, id: u32) -> Option<usize> {
        let &(base, _) = self.entries.front()?;
        let index = self.partition(id.wrapping_sub(base));
        (self.entries.get(index)?.0 == id).then_some(index)
    }

    /// The first place whose id is `distance` or more after the front's.
    fn partition(&self, distance: u32) -> usize {
        let Some(&(base, _)) = self.entries.front() else {
            return 0;
        };
        // Ids rise by one at least, so place n has a distance of n at least; without gaps, exactly that.
        let most = self.entries.len().min(distance as usize);
        if self.entries.get(most).is_none_or(|(id, _)| id.wrapping_sub(base) == distance)
            && most > 0
            && self.entries[most - 1].0.wrapping_sub(base) < distance
        {
            return most;
        }
        let (mut low, mut high) = (0, most);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.entries[middle].0.wrapping_sub(base) < distance {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The places of a range of ids. A range may start before the front.
    fn bounds(&self, first: u32, last: u32) -> (usize, usize) {
        let Some(&(base, _)) = self.entries.front() else {
            return (0, 0);
        };
        // RFC 1982: which of two ids is the later one is the sign of their difference.
        let length = last.wrapping_sub(first).cast_signed();
        let from = first.wrapping_sub(base).cast_signed();
        let to = i64::from(from) + i64::from(length);
        if length < 0 || to < 0 {
            return (0, 0);
        }
        let from = u32::try_from(from).unwrap_or(0);
        let behind = u32::try_from(to + 1).unwrap_or(u32::MAX);
        (self.partition(from), self.partition(behind))
    }

    /// Closes gaps: those at the front, and all where they are the most of the ring. Gives room back.
    fn tidy(&mut self) {
        if self.live == 0 {
            self.entries.clear();
            self.entries.shrink_to(KEPT);
            return;
        }
        while matches!(self.entries.front(), Some((_, None))) {
            self.entries.pop_front();
        }
        if self.entries.len() > 2 * self.live + KEPT {
            self.entries.retain(|(_, value)| value.is_some());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::testing::Random;

    fn ids<'a, T: 'a>(entries: impl Iterator<Item = (u32, T)>) -> Vec<u32> {
        entries.map(|(id, _)| id).collect()
    }

    #[test]
    fn agrees_with_a_map_across_the_wrap() {
        for seed in 0..40 {
            let mut random = Random::new(seed);
            let mut ring = DeliveryRing::new();
            // The model counts on beyond 2^32; the ring sees the lower half.
            let mut model = BTreeMap::new();
            let start = u64::from(u32::MAX) - 2_000;
            let mut next = start;
            for _ in 0..6_000 {
                let low = next.saturating_sub(1 + random.below(400) as u64).max(start);
                let high = low + random.below(60) as u64;
                let (first, last) = (low as u32, high as u32);
                match random.below(10) {
                    0..=4 => {
                        next += if random.chance(3) { 1 + random.below(20) as u64 } else { 1 };
                        ring.push(next as u32, next).unwrap();
                        model.insert(next, next);
                    }
                    5 | 6 => assert_eq!(ring.remove(first), model.remove(&low)),
                    7 => {
                        let mut taken = Vec::new();
                        ring.remove_range(first, last, |id, value| taken.push((id, value)));
                        let expected: Vec<_> =
                            model.range(low..=high).map(|(id, _)| (*id as u32, *id)).collect();
                        model.retain(|id, _| !(low..=high).contains(id));
                        assert_eq!(taken, expected);
                    }
                    8 => {
                        let mut taken = 0;
                        ring.retain(|_, value| value % 7 != 3, |_, _| taken += 1);
                        let before = model.len();
                        model.retain(|_, value| *value % 7 != 3);
                        assert_eq!(taken, before - model.len());
                    }
                    _ => {
                        assert_eq!(ring.get(first), model.get(&low));
                        assert_eq!(ring.get_mut(first).copied(), model.get(&low).copied());
                        let expected = ids(model.range(low..=high).map(|(id, value)| (*id as u32, value)));
                        assert_eq!(ids(ring.range(first, last)), expected);
                        assert_eq!(ids(ring.range_mut(first, last)), expected);
                    }
                }
                assert_eq!((ring.len(), ring.is_empty()), (model.len(), model.is_empty()));
                assert_eq!(ring.first().map(|(_, value)| value), model.values().next());
                assert!(ring.entries.len() <= 2 * ring.len() + KEPT);
            }
            assert_eq!(ids(ring.iter()), ids(model.iter().map(|(id, value)| (*id as u32, value))));
            assert_eq!(ring.drain().count(), model.len());
            assert!(ring.is_empty() && ring.entries.capacity() == 0);
        }
    }

    #[test]
    fn ids_only_rise() {
        let mut ring = DeliveryRing::new();
        assert_eq!(ring.push(5, 'a'), Ok(()));
        assert_eq!(ring.push(5, 'b'), Err('b'));
        assert_eq!(ring.push(4, 'b'), Err('b'));
        assert_eq!(ring.push(5 + (1 << 31), 'b'), Err('b'));
        assert_eq!(ring.push(4 + (1 << 31), 'b'), Ok(()));
        assert_eq!(ring.push(6, 'c'), Err('c'));
        assert_eq!(ids(ring.iter()), [5, 4 + (1 << 31)]);
        // An empty ring starts anew.
        ring.remove_range(5, 4 + (1 << 31), |_, _| ());
        assert_eq!(ring.push(1, 'd'), Ok(()));
    }

    #[test]
    fn an_old_delivery_does_not_make_the_ring_grow() {
        let mut ring = DeliveryRing::new();
        ring.push(0, 0).unwrap();
        for id in 1..1_000_000 {
            ring.push(id, id).unwrap();
            assert_eq!(ring.remove(id), Some(id));
        }
        assert!(ring.entries.capacity() <= 64);
        assert_eq!(ids(ring.iter()), [0]);
    }

    #[test]
    fn a_giant_range_costs_what_lives_in_it() {
        let mut ring = DeliveryRing::new();
        for id in 10..20 {
            ring.push(id, id).unwrap();
        }
        // 100 million ids a million times: it would not end if each id were looked at.
        for _ in 0..1_000_000 {
            assert_eq!(ring.range(15, 100_000_000).count(), 5);
        }
        assert_eq!(ring.range(0, (1 << 31) - 1).count(), 10);
        // Where the last is before the first, in serial arithmetic, there is nothing.
        assert_eq!(ring.range(0, u32::MAX).count(), 0);
        assert_eq!(ring.range(19, 10).count(), 0);
        assert_eq!(ring.range(u32::MAX - 5, 12).count(), 3);
        let mut taken = 0;
        ring.remove_range(12, 1 << 31, |_, _| taken += 1);
        assert_eq!((taken, ring.len()), (8, 2));
    }

    #[test]
    fn an_idle_ring_holds_little() {
        let mut ring = DeliveryRing::new();
        for id in 0..1000 {
            ring.push(id, [0; 32]).unwrap();
        }
        ring.remove_range(0, 999, |_, _| ());
        assert!(ring.entries.capacity() <= KEPT);
    }
}
