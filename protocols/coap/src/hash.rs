//! Keyed hashing: of addresses and message IDs for the tables, of a whole datagram for the test of sameness.
//! Not cryptography. The key is drawn from the caller's seed, so that a peer cannot aim at one bucket and a test
//! is the same every time.

use std::hash::{BuildHasher, DefaultHasher, Hasher};

/// Builds the hashers of the tables.
#[derive(Debug, Clone)]
pub(crate) struct Keyed(pub(crate) u64);

impl BuildHasher for Keyed {
    type Hasher = DefaultHasher;

    fn build_hasher(&self) -> DefaultHasher {
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.0);
        hasher
    }
}

/// A digest of a datagram: a retransmission has the same, another message another one (but for 1 in 2^32).
pub(crate) fn digest(key: u64, bytes: &[u8]) -> u32 {
    let fold = |one: u64, other: u64| {
        let product = u128::from(one) * u128::from(other);
        product as u64 ^ (product >> 64) as u64
    };
    let mut state = key ^ bytes.len() as u64;
    let (words, tail) = bytes.as_chunks::<8>();
    for word in words {
        state = fold(state ^ u64::from_le_bytes(*word), 0x9e37_79b9_7f4a_7c15);
    }
    let mut last = [0; 8];
    last[..tail.len()].copy_from_slice(tail);
    state = fold(state ^ u64::from_le_bytes(last), 0xd6e8_feb8_6659_fd93);
    fold(state, 0x9e37_79b9_7f4a_7c15) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_tells_messages_apart_by_every_byte_and_the_length() {
        let message: Vec<u8> = (0..61).collect();
        let mut seen = std::collections::HashSet::from([digest(7, &message)]);
        for at in 0..message.len() {
            let mut other = message.clone();
            other[at] ^= 0x10;
            assert!(seen.insert(digest(7, &other)), "byte {at}");
            assert!(seen.insert(digest(7, &message[..at])), "length {at}");
        }
        assert_eq!(digest(7, &message), digest(7, &message.clone()));
        assert_ne!(digest(7, &message), digest(8, &message));
    }
}
