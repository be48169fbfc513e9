//! A map from the ids of an AMQP connection's sessions or links to what is kept beside them.
//!
//! The ids are small dense numbers with a stamp, so a look-up is an index and a comparison:
//! every transfer needs several.

use fieldgate_amqp::connection::{LinkId, SessionId};

/// Up to so many places memory is taken for each one by itself.
const SMALL: usize = 4;

/// An id whose number is small and dense.
pub(crate) trait DenseId: Copy + Eq {
    /// The number.
    fn index(self) -> usize;
}

impl DenseId for LinkId {
    fn index(self) -> usize {
        LinkId::index(self)
    }
}

impl DenseId for SessionId {
    fn index(self) -> usize {
        SessionId::index(self)
    }
}

/// The map. Its memory is that of the greatest number in use; an empty one has none.
#[derive(Debug)]
pub(crate) struct Table<K, V> {
    places: Vec<Option<(K, V)>>,
    len: usize,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { places: Vec::new(), len: 0 }
    }
}

impl<K: DenseId, V> Table<K, V> {
    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Puts an entry; what stood at the same number is gone.
    pub(crate) fn insert(&mut self, id: K, value: V) {
        let index = id.index();
        if index >= self.places.len() {
            if index < SMALL {
                // Most connections have one session and one or two links: no room beyond them.
                self.places.reserve_exact(index + 1 - self.places.len());
            }
            self.places.resize_with(index + 1, || None);
        }
        if self.places[index].replace((id, value)).is_none() {
            self.len += 1;
        }
    }

    /// The entry of `id`.
    pub(crate) fn get(&self, id: K) -> Option<&V> {
        self.places.get(id.index())?.as_ref().filter(|(known, _)| *known == id).map(|(_, value)| value)
    }

    /// The entry of `id`.
    pub(crate) fn get_mut(&mut self, id: K) -> Option<&mut V> {
        self.places.get_mut(id.index())?.as_mut().filter(|(known, _)| *known == id).map(|(_, value)| value)
    }

    /// Takes the entry of `id` out.
    pub(crate) fn remove(&mut self, id: K) -> Option<V> {
        self.get(id)?;
        let (_, value) = self.places[id.index()].take()?;
        self.len -= 1;
        while self.places.last().is_some_and(Option::is_none) {
            self.places.pop();
        }
        if self.places.is_empty() {
            self.places = Vec::new();
        }
        Some(value)
    }

    /// Keeps the entries that `keep` wants.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(K, &mut V) -> bool) {
        for place in &mut self.places {
            if place.as_mut().is_some_and(|(id, value)| !keep(*id, value)) {
                *place = None;
                self.len -= 1;
            }
        }
    }

    /// All entries.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (K, &V)> {
        self.places.iter().flatten().map(|(id, value)| (*id, value))
    }

    /// All entries.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (K, &mut V)> {
        self.places.iter_mut().flatten().map(|(id, value)| (*id, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Id(usize, u32);

    impl DenseId for Id {
        fn index(self) -> usize {
            self.0
        }
    }

    #[test]
    fn a_later_id_at_the_same_place_is_another() {
        let mut table = Table::default();
        table.insert(Id(2, 0), 'a');
        assert_eq!(table.get(Id(2, 1)), None);
        assert_eq!(table.remove(Id(2, 1)), None);
        table.insert(Id(2, 1), 'b');
        assert_eq!((table.get(Id(2, 0)), table.get(Id(2, 1)), table.len()), (None, Some(&'b'), 1));
        table.insert(Id(0, 0), 'c');
        assert_eq!(table.remove(Id(2, 1)), Some('b'));
        table.retain(|_, value| *value != 'c');
        assert_eq!((table.len(), table.get(Id(0, 0))), (0, None));
    }
}
