//! A spooled message as memory knows it: 24 bytes, because there may be a million of them.

use crate::store::Place;

/// The most bytes of one message that are counted: more than any protocol here lets through.
const MAX_BYTES: u32 = (1 << 30) - 1;
/// It may have been sent before: what is sent from here is marked.
const MARKED: u32 = 1 << 31;

/// Bits of a life's mantissa; the others are its exponent.
const MANTISSA_BITS: u32 = 12;

/// One message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    seq_low: u32,
    seq_high: u16,
    /// How long it may wait, in seconds, rounded up: 12 bits, shifted left by 4 bits.
    life: u16,
    segment: u32,
    offset: u32,
    /// Seconds since 1970.
    stored: u32,
    bytes_and_mark: u32,
}

const _: () = assert!(size_of::<Entry>() == 24);

impl Entry {
    /// A message whose place is not known yet. Times are milliseconds since 1970.
    pub(super) fn new(bytes: u64, stored_at: u64, expires_at: u64, marked: bool) -> Self {
        let life = expires_at.saturating_sub(stored_at).div_ceil(1_000);
        let bytes = u32::try_from(bytes).unwrap_or(MAX_BYTES).min(MAX_BYTES);
        Self {
            seq_low: 0,
            seq_high: 0,
            life: encode_life(life),
            segment: 0,
            offset: 0,
            stored: u32::try_from(stored_at / 1_000).unwrap_or(u32::MAX),
            bytes_and_mark: if marked { bytes | MARKED } else { bytes },
        }
    }

    /// The same, in the log. Sequence numbers have 48 bits here: at a million a second they last nine years.
    pub(super) fn at(mut self, seq: u64, place: Place) -> Self {
        debug_assert!(seq < 1 << 48);
        self.seq_low = seq as u32;
        self.seq_high = (seq >> 32) as u16;
        self.move_to(place);
        self
    }

    pub(super) fn move_to(&mut self, place: Place) {
        self.segment = place.segment;
        self.offset = place.offset;
    }

    pub(super) fn seq(&self) -> u64 {
        u64::from(self.seq_high) << 32 | u64::from(self.seq_low)
    }

    pub(super) fn place(&self) -> Place {
        Place { segment: self.segment, offset: self.offset }
    }

    pub(super) fn bytes(&self) -> u64 {
        u64::from(self.bytes_and_mark & !MARKED)
    }

    pub(super) fn is_marked(&self) -> bool {
        self.bytes_and_mark & MARKED != 0
    }

    pub(super) fn mark(&mut self) {
        self.bytes_and_mark |= MARKED;
    }

    /// Seconds since 1970.
    pub(super) fn stored(&self) -> u32 {
        self.stored
    }

    /// When it has certainly expired, in seconds since 1970; late by at most a second and a 2,000th of its life.
    pub(super) fn due(&self) -> u32 {
        // The time of storing was rounded down.
        let due = u64::from(self.stored) + decode_life(self.life) + 1;
        u32::try_from(due).unwrap_or(u32::MAX)
    }
}

/// The smallest life that is not less.
fn encode_life(seconds: u64) -> u16 {
    let mut exponent = 0;
    let mut mantissa = seconds;
    while mantissa >= 1 << MANTISSA_BITS && exponent < 15 {
        mantissa = mantissa.div_ceil(2);
        exponent += 1;
    }
    let mantissa = mantissa.min((1 << MANTISSA_BITS) - 1) as u16;
    (exponent << MANTISSA_BITS) | mantissa
}

fn decode_life(life: u16) -> u64 {
    u64::from(life & ((1 << MANTISSA_BITS) - 1)) << (life >> MANTISSA_BITS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_keeps_what_it_is_told() {
        let place = Place { segment: u32::MAX, offset: 8_388_607 };
        let mut entry = Entry::new(262_144, 1_795_379_735_999, 1_795_379_740_000, false);
        entry = entry.at((1 << 48) - 2, place);
        assert_eq!((entry.seq(), entry.place()), ((1 << 48) - 2, place));
        assert_eq!((entry.bytes(), entry.is_marked()), (262_144, false));
        entry.mark();
        assert_eq!((entry.bytes(), entry.is_marked()), (262_144, true));
        assert_eq!(entry.stored(), 1_795_379_735);
        // 4.001 s after 35.999 is 40.000.
        assert_eq!(entry.due(), 1_795_379_741);
        assert_eq!(Entry::new(u64::MAX, 0, 0, true).bytes(), u64::from(MAX_BYTES));
    }

    #[test]
    fn a_life_is_never_cut_and_little_longer() {
        for seconds in (0..10_000).chain([86_400, 604_800, 31_536_000, 134_000_000]) {
            let kept = decode_life(encode_life(seconds));
            assert!(kept >= seconds && kept - seconds <= seconds / 2_000, "{seconds} became {kept}");
        }
        assert!(decode_life(encode_life(u64::MAX)) > 4 * 365 * 86_400, "what is longer than that is cut");
    }
}
