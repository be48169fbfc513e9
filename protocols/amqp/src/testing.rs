//! What the tests share: seeded randomness, and damage done to bytes.

use bytes::Bytes;

/// A seeded generator (splitmix64): the same seed gives the same test.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number less than `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(crate) fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }

    /// A uint whose encoding may be any of the three.
    pub(crate) fn uint(&mut self) -> u32 {
        let wide = self.next() as u32;
        *self.pick(&[0, 1, wide & 0xff, 255, 256, wide, u32::MAX])
    }

    pub(crate) fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most + 1)).map(|_| self.next() as u8).collect()
    }

    pub(crate) fn text(&mut self, most: usize) -> String {
        (0..self.below(most + 1)).map(|_| *self.pick(&['a', 'z', '/', '0', '-', 'é', '漢'])).collect()
    }

    pub(crate) fn ascii(&mut self, most: usize) -> String {
        (0..self.below(most + 1)).map(|_| *self.pick(&['a', 'z', ':', '0', '-'])).collect()
    }
}

/// `bytes` with one to three damages: bits flipped, bytes replaced by those that lengths and constructors are made
/// of, taken out, put in, cut off, or said twice.
pub(crate) fn damaged(bytes: &[u8], random: &mut Random) -> Bytes {
    let mut bytes = bytes.to_vec();
    for _ in 0..=random.below(3) {
        if bytes.is_empty() {
            break;
        }
        let at = random.below(bytes.len());
        match random.below(6) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => {
                bytes[at] = *random.pick(&[
                    0x00, 0x01, 0x40, 0x41, 0x43, 0x44, 0x45, 0x53, 0x56, 0x70, 0x7f, 0x80, 0xa0, 0xa3, 0xb0,
                    0xb1, 0xc0, 0xc1, 0xd0, 0xd1, 0xe0, 0xf0, 0xff,
                ]);
            }
            2 => {
                bytes.remove(at);
            }
            3 => bytes.insert(at, random.next() as u8),
            4 => bytes.truncate(at),
            _ => {
                let end = (at + 1 + random.below(8)).min(bytes.len());
                let twice = bytes[at..end].to_vec();
                bytes.splice(at..at, twice);
            }
        }
    }
    bytes.into()
}
