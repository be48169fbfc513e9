//! A small generator for jitter and first message IDs (SplitMix64).
//! Not for secrets. Seeded by the caller: randomness is an input of a machine.

/// The state of the generator.
#[derive(Debug, Clone)]
pub(crate) struct Rng(u64);

impl Rng {
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

    /// A number below `bound`, 0 where `bound` is 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        // The product's high half: close enough to even for jitter.
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers() {
        let mut one = Rng::new(7);
        let mut other = Rng::new(7);
        assert!((0..100).all(|_| one.next() == other.next()));
        assert_ne!(Rng::new(8).next(), Rng::new(7).next());
    }

    #[test]
    fn below_stays_below_and_reaches_its_ends() {
        let mut rng = Rng::new(1);
        let drawn: Vec<u64> = (0..1000).map(|_| rng.below(4)).collect();
        assert!((0..4).all(|value| drawn.contains(&value)));
        assert!(drawn.iter().all(|&value| value < 4));
        assert_eq!(rng.below(0), 0);
    }
}
