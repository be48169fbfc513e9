//! A slab whose keys do not outlive what they name: a later entry in the same place has
//! another key.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;

use slab::Slab;

/// Entries by key.
#[derive(Debug)]
pub(crate) struct Arena<T> {
    places: Slab<(u32, T)>,
    next_stamp: u32,
}

/// The key of an entry.
pub(crate) struct Key<T> {
    place: u32,
    stamp: u32,
    of: PhantomData<fn() -> T>,
}

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Self { places: Slab::new(), next_stamp: 0 }
    }
}

impl<T> Arena<T> {
    /// Adds an entry.
    pub(crate) fn insert(&mut self, value: T) -> Key<T> {
        self.next_stamp = self.next_stamp.wrapping_add(1);
        let stamp = self.next_stamp;
        let place = self.places.insert((stamp, value));
        // More than 2^32 entries do not fit into memory.
        Key { place: place as u32, stamp, of: PhantomData }
    }

    /// The entry, unless it is gone.
    pub(crate) fn get(&self, key: Key<T>) -> Option<&T> {
        let (stamp, value) = self.places.get(key.place as usize)?;
        (*stamp == key.stamp).then_some(value)
    }

    /// The entry, unless it is gone.
    pub(crate) fn get_mut(&mut self, key: Key<T>) -> Option<&mut T> {
        let (stamp, value) = self.places.get_mut(key.place as usize)?;
        (*stamp == key.stamp).then_some(value)
    }

    /// Takes an entry out.
    pub(crate) fn remove(&mut self, key: Key<T>) -> Option<T> {
        self.get(key)?;
        let (_, value) = self.places.remove(key.place as usize);
        if self.places.is_empty() {
            self.places = Slab::new();
        }
        Some(value)
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// All entries.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (Key<T>, &mut T)> {
        self.places.iter_mut().map(|(place, (stamp, value))| {
            (Key { place: place as u32, stamp: *stamp, of: PhantomData }, value)
        })
    }

    /// All entries.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key<T>, &T)> {
        self.places.iter().map(|(place, (stamp, value))| {
            (Key { place: place as u32, stamp: *stamp, of: PhantomData }, value)
        })
    }

    /// All keys, for work that changes the arena as it goes.
    pub(crate) fn keys(&self) -> Vec<Key<T>> {
        self.iter().map(|(key, _)| key).collect()
    }
}

// Derived, these would ask the same of `T`.
impl<T> Clone for Key<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Key<T> {}

impl<T> PartialEq for Key<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.place, self.stamp) == (other.place, other.stamp)
    }
}

impl<T> Eq for Key<T> {}

impl<T> Hash for Key<T> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.place, self.stamp).hash(state);
    }
}

impl<T> fmt::Debug for Key<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.place, self.stamp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_entry_in_the_same_place_is_another() {
        let mut arena = Arena::default();
        let first = arena.insert('a');
        assert_eq!(arena.remove(first), Some('a'));
        let second = arena.insert('b');
        assert_eq!((arena.get(first), arena.get(second)), (None, Some(&'b')));
        assert_eq!(arena.remove(first), None);
        assert_eq!(arena.keys(), [second]);
        assert_ne!(first, second);
    }
}
