//! Which sequence numbers live: one bit each, in chunks that go away with their last one.

use std::collections::BTreeMap;

const WORDS: usize = 64;
/// Sequence numbers of one chunk, which takes about 540 bytes.
const CHUNK: u64 = WORDS as u64 * 64;

/// A set of sequence numbers, dense where there are any.
#[derive(Debug, Default)]
pub(super) struct SeqSet {
    chunks: BTreeMap<u64, Box<Chunk>>,
    len: u64,
}

#[derive(Debug)]
struct Chunk {
    count: u32,
    words: [u64; WORDS],
}

impl SeqSet {
    /// How many there are.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn contains(&self, seq: u64) -> bool {
        let (word, bit) = position(seq);
        self.chunks.get(&(seq / CHUNK)).is_some_and(|chunk| chunk.words[word] & bit != 0)
    }

    /// Whether it was not there before.
    pub(super) fn insert(&mut self, seq: u64) -> bool {
        let (word, bit) = position(seq);
        let chunk =
            self.chunks.entry(seq / CHUNK).or_insert_with(|| Box::new(Chunk { count: 0, words: [0; WORDS] }));
        let new = chunk.words[word] & bit == 0;
        chunk.words[word] |= bit;
        chunk.count += u32::from(new);
        self.len += u64::from(new);
        new
    }

    /// Whether it was there.
    pub(super) fn remove(&mut self, seq: u64) -> bool {
        let (word, bit) = position(seq);
        let Some(chunk) = self.chunks.get_mut(&(seq / CHUNK)) else { return false };
        if chunk.words[word] & bit == 0 {
            return false;
        }
        chunk.words[word] &= !bit;
        chunk.count -= 1;
        self.len -= 1;
        if chunk.count == 0 {
            self.chunks.remove(&(seq / CHUNK));
        }
        true
    }
}

fn position(seq: u64) -> (usize, u64) {
    let within = seq % CHUNK;
    ((within / 64) as usize, 1 << (within % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_set_and_forgets_empty_chunks() {
        let mut set = SeqSet::default();
        let all = [0, 1, 63, 64, 4095, 4096, u64::MAX];
        for seq in all {
            assert!(!set.contains(seq) && set.insert(seq) && !set.insert(seq) && set.contains(seq), "{seq}");
        }
        assert_eq!((set.len(), set.chunks.len()), (7, 3));
        for seq in all {
            assert!(set.remove(seq) && !set.remove(seq) && !set.contains(seq), "{seq}");
        }
        assert_eq!((set.len(), set.chunks.len()), (0, 0));
    }
}
