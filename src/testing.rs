//! What simulations share: seeded randomness, and a stream whose bytes come in pieces.

use std::time::Instant;

use bytes::BytesMut;
use fieldgate_amqp::connection::Connection;

/// A seeded generator (splitmix64): the same seed gives the same run.
#[derive(Debug)]
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

    /// True once in so many times.
    pub(crate) fn chance(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }

    /// One of several.
    pub(crate) fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[self.below(choices.len())]
    }
}

/// The bytes under way from one machine to another.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    bytes: BytesMut,
}

impl Stream {
    /// Takes what `from` has to say.
    pub(crate) fn take(&mut self, from: &mut Connection) {
        if let Some(bytes) = from.poll_transmit() {
            self.bytes.extend_from_slice(&bytes);
        }
    }

    /// How many bytes are under way.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Hands on at most `most` bytes. True if there were any.
    pub(crate) fn give(&mut self, to: &mut Connection, now: Instant, most: usize) -> bool {
        let length = self.bytes.len().min(most);
        if length > 0 {
            to.handle_input(now, self.bytes.split_to(length).freeze());
        }
        length > 0
    }
}
