//! A small map from numbers that the peer chose (channels, handles) to places in our tables.

/// Sorted pairs. Peers nearly always count from 0, so the entry of number n mostly stands at place n; any other
/// choice costs a binary search and no memory beyond its entries.
#[derive(Debug, Default)]
pub(crate) struct NumberMap {
    entries: Vec<(u32, u32)>,
}

impl NumberMap {
    fn find(&self, number: u32) -> Result<usize, usize> {
        match self.entries.get(number as usize) {
            Some(entry) if entry.0 == number => Ok(number as usize),
            _ => self.entries.binary_search_by_key(&number, |entry| entry.0),
        }
    }

    pub(crate) fn get(&self, number: u32) -> Option<u32> {
        self.find(number).ok().map(|at| self.entries[at].1)
    }

    /// Enters `place` under `number`; false where the number is taken.
    pub(crate) fn insert(&mut self, number: u32, place: u32) -> bool {
        match self.find(number) {
            Ok(_) => false,
            Err(at) => {
                if self.entries.is_empty() {
                    self.entries.reserve_exact(1);
                }
                self.entries.insert(at, (number, place));
                true
            }
        }
    }

    pub(crate) fn remove(&mut self, number: u32) -> Option<u32> {
        let at = self.find(number).ok()?;
        let place = self.entries.remove(at).1;
        if self.entries.is_empty() {
            self.entries = Vec::new();
        }
        Some(place)
    }
}

/// Numbers that we choose ourselves (channels, handles): the lowest free one, and what stands behind it.
#[derive(Debug, Default)]
pub(crate) struct NumberPool {
    places: Vec<u32>,
}

/// No place in a table: the number is free.
const FREE: u32 = u32::MAX;

impl NumberPool {
    /// Takes the lowest free number for `place`; `None` where it would exceed `max`.
    pub(crate) fn take(&mut self, place: u32, max: u32) -> Option<u32> {
        let number = self.places.iter().position(|&place| place == FREE).unwrap_or(self.places.len());
        let numbered = u32::try_from(number).ok().filter(|&number| number <= max)?;
        if number == self.places.len() {
            if self.places.is_empty() {
                self.places.reserve_exact(1);
            }
            self.places.push(place);
        } else {
            self.places[number] = place;
        }
        Some(numbered)
    }

    pub(crate) fn get(&self, number: u32) -> Option<u32> {
        self.places.get(number as usize).copied().filter(|&place| place != FREE)
    }

    pub(crate) fn free(&mut self, number: u32) {
        if let Some(place) = self.places.get_mut(number as usize) {
            *place = FREE;
        }
        while self.places.last() == Some(&FREE) {
            self.places.pop();
        }
        if self.places.is_empty() {
            self.places = Vec::new();
        }
    }

    /// The places behind the numbers in use, by number.
    pub(crate) fn places(&self) -> impl Iterator<Item = u32> + '_ {
        self.places.iter().copied().filter(|&place| place != FREE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_may_be_dense_sparse_or_both() {
        let mut map = NumberMap::default();
        for (number, place) in [(0, 10), (1, 11), (70_000, 12), (5, 13)] {
            assert!(map.insert(number, place));
        }
        assert!(!map.insert(5, 99));
        assert_eq!(map.get(0), Some(10));
        assert_eq!(map.get(5), Some(13));
        assert_eq!(map.get(70_000), Some(12));
        assert_eq!(map.get(2), None);
        assert_eq!(map.remove(0), Some(10));
        assert_eq!(map.remove(0), None);
        assert_eq!(map.get(1), Some(11));
        assert_eq!(map.get(5), Some(13));
    }

    #[test]
    fn the_lowest_free_number_is_taken_up_to_the_greatest() {
        let mut pool = NumberPool::default();
        assert_eq!(pool.take(7, 1), Some(0));
        assert_eq!(pool.take(8, 1), Some(1));
        assert_eq!(pool.take(9, 1), None);
        pool.free(0);
        assert_eq!(pool.get(0), None);
        assert_eq!(pool.take(9, 1), Some(0));
        assert_eq!(pool.places().collect::<Vec<_>>(), [9, 8]);
        pool.free(1);
        pool.free(0);
        assert_eq!(pool.places.capacity(), 0);
    }
}
