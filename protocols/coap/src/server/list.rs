//! Doubly linked lists through the entries of a slab: entering, leaving and the oldest, each in constant time.
//! Not a container: the slab owns the entries, a list only orders some of them.

use slab::Slab;

/// No entry.
const NONE: u32 = u32::MAX;

/// Where an entry stands in one list. An entry has one of these for each list that it may stand in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Links {
    before: u32,
    after: u32,
}

impl Default for Links {
    fn default() -> Self {
        Self { before: NONE, after: NONE }
    }
}

/// The two ends of a list.
#[derive(Debug, Clone, Copy)]
pub(crate) struct List {
    first: u32,
    last: u32,
}

impl Default for List {
    fn default() -> Self {
        Self { first: NONE, last: NONE }
    }
}

impl List {
    /// The entry that has been here longest.
    pub(crate) fn first(&self) -> Option<u32> {
        (self.first != NONE).then_some(self.first)
    }

    /// Appends an entry that stands in no list of these `links`.
    pub(crate) fn push_back<T>(
        &mut self,
        entries: &mut Slab<T>,
        slot: u32,
        links: impl Fn(&mut T) -> &mut Links,
    ) {
        *links(&mut entries[slot as usize]) = Links { before: self.last, after: NONE };
        match self.last {
            NONE => self.first = slot,
            last => links(&mut entries[last as usize]).after = slot,
        }
        self.last = slot;
    }

    /// Takes out an entry that stands in this list.
    pub(crate) fn unlink<T>(
        &mut self,
        entries: &mut Slab<T>,
        slot: u32,
        links: impl Fn(&mut T) -> &mut Links,
    ) {
        let Links { before, after } = std::mem::take(links(&mut entries[slot as usize]));
        match before {
            NONE => self.first = after,
            before => links(&mut entries[before as usize]).after = after,
        }
        match after {
            NONE => self.last = before,
            after => links(&mut entries[after as usize]).before = before,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(list: &List, entries: &Slab<Links>) -> Vec<u32> {
        let mut order = Vec::new();
        let mut at = list.first;
        while at != NONE {
            order.push(at);
            at = entries[at as usize].after;
        }
        order
    }

    #[test]
    fn entries_leave_from_both_ends_and_the_middle() {
        let mut entries = Slab::new();
        let mut list = List::default();
        for _ in 0..5 {
            let slot = entries.insert(Links::default()) as u32;
            list.push_back(&mut entries, slot, |links| links);
        }
        assert_eq!(order(&list, &entries), [0, 1, 2, 3, 4]);
        for (gone, rest) in [(2, vec![0, 1, 3, 4]), (0, vec![1, 3, 4]), (4, vec![1, 3]), (3, vec![1])] {
            list.unlink(&mut entries, gone, |links| links);
            assert_eq!(order(&list, &entries), rest);
        }
        list.push_back(&mut entries, 2, |links| links);
        assert_eq!(order(&list, &entries), [1, 2]);
        list.unlink(&mut entries, 1, |links| links);
        list.unlink(&mut entries, 2, |links| links);
        assert_eq!((list.first(), list.last), (None, NONE));
    }
}
