//! Headers of segments and records as bytes; the module's documentation has the tables.

use crc32fast::Hasher;

use super::Place;

pub(super) const VERSION: u32 = 1;
pub(super) const HEADER_BYTES: usize = 64;
/// Where the header stands a second time.
pub(super) const SECOND_HEADER: u32 = 4096;
/// Where records begin.
pub(super) const RECORDS: u32 = SECOND_HEADER + HEADER_BYTES as u32;
/// Bytes before each body.
pub(super) const RECORD_HEADER: usize = 16;
/// The sequence number before the body of a copy.
pub(super) const COPY_PREFIX: usize = 8;

const MAGIC: [u8; 8] = *b"FGATELOG";
const FIRST: u8 = 0x80;

/// What a segment says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) log_id: u64,
    pub(super) nonce: u64,
    pub(super) number: u32,
    pub(super) bytes: u32,
    pub(super) base_seq: u64,
    /// The segment written before; 0 for none.
    pub(super) previous: u32,
    pub(super) previous_end: u32,
    /// Whether that one ended by a crash or an error.
    pub(super) previous_broken: bool,
}

/// What the first bytes of a file are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Recognised {
    Ours(SegmentHeader, Salt),
    Version(u32),
    Damaged,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> ([u8; HEADER_BYTES], Salt) {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(16, &self.log_id.to_le_bytes());
        put(24, &self.nonce.to_le_bytes());
        put(32, &self.number.to_le_bytes());
        put(36, &self.bytes.to_le_bytes());
        put(40, &self.base_seq.to_le_bytes());
        put(48, &self.previous.to_le_bytes());
        put(52, &self.previous_end.to_le_bytes());
        put(56, &u32::from(self.previous_broken).to_le_bytes());
        let crc = Self::checksum(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        (bytes, Salt(crc))
    }

    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Recognised {
        let crc = u32_at(bytes, 12);
        if bytes[..8] != MAGIC || crc != Self::checksum(bytes) {
            return Recognised::Damaged;
        }
        let version = u32_at(bytes, 8);
        if version != VERSION {
            return Recognised::Version(version);
        }
        let header = Self {
            log_id: u64_at(bytes, 16),
            nonce: u64_at(bytes, 24),
            number: u32_at(bytes, 32),
            bytes: u32_at(bytes, 36),
            base_seq: u64_at(bytes, 40),
            previous: u32_at(bytes, 48),
            previous_end: u32_at(bytes, 52),
            previous_broken: u32_at(bytes, 56) != 0,
        };
        Recognised::Ours(header, Salt(crc))
    }

    fn checksum(bytes: &[u8; HEADER_BYTES]) -> u32 {
        let mut hasher = Hasher::new();
        hasher.update(&bytes[..12]);
        hasher.update(&bytes[16..]);
        hasher.finalize()
    }
}

/// What makes a record's checksum right in one segment only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Salt(u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Record = 1,
    Copy = 2,
    Settle = 3,
    Seal = 4,
}

/// What stands before a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub(super) kind: Kind,
    /// Whether a commit began with it.
    pub(super) first: bool,
    /// Length of the body.
    pub(super) len: u32,
    /// Sequence number, counted from that of the segment.
    pub(super) delta: u32,
    pub(super) body_crc: u32,
}

impl RecordHeader {
    pub(super) fn encode(&self, salt: Salt, offset: u32) -> [u8; RECORD_HEADER] {
        let mut bytes = [0; RECORD_HEADER];
        bytes[4..8].copy_from_slice(&self.len.to_le_bytes());
        bytes[7] = self.kind as u8 | if self.first { FIRST } else { 0 };
        bytes[8..12].copy_from_slice(&self.delta.to_le_bytes());
        bytes[12..].copy_from_slice(&self.body_crc.to_le_bytes());
        let crc = Self::checksum(&bytes, salt, offset);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header at the start of `bytes`, which stand at `offset`; nothing if there is none.
    pub(super) fn decode(bytes: &[u8], salt: Salt, offset: u32) -> Option<Self> {
        let bytes: &[u8; RECORD_HEADER] = bytes.first_chunk()?;
        let kind = match bytes[7] & !FIRST {
            1 => Kind::Record,
            2 => Kind::Copy,
            3 => Kind::Settle,
            4 => Kind::Seal,
            _ => return None,
        };
        let len = u32_at(bytes, 4) & 0x00ff_ffff;
        if kind == Kind::Copy && len < COPY_PREFIX as u32
            || u32_at(bytes, 0) != Self::checksum(bytes, salt, offset)
        {
            return None;
        }
        let first = bytes[7] & FIRST != 0;
        Some(Self { kind, first, len, delta: u32_at(bytes, 8), body_crc: u32_at(bytes, 12) })
    }

    /// Header and body.
    pub(super) fn total(&self) -> u32 {
        RECORD_HEADER as u32 + self.len
    }

    fn checksum(bytes: &[u8; RECORD_HEADER], salt: Salt, offset: u32) -> u32 {
        let mut covered = *bytes;
        covered[..4].copy_from_slice(&offset.to_le_bytes());
        let mut hasher = Hasher::new_with_initial(salt.0);
        hasher.update(&covered);
        hasher.finalize()
    }
}

pub(super) fn segment_name(number: u32) -> String {
    format!("{number:08x}.seg")
}

pub(super) fn spare_name(number: u32) -> String {
    format!("{number:08x}.spare")
}

pub(super) fn quarantine_name(place: Place, bytes: u32) -> String {
    format!("{:08x}-{:08x}-{bytes}", place.segment, place.offset)
}

/// The number in a name like `0000002a.seg`.
pub(super) fn number_in(name: &str, suffix: &str) -> Option<u32> {
    let digits = name.strip_suffix(suffix)?;
    let plain = digits.len() == 8 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    u32::from_str_radix(digits, 16).ok().filter(|_| plain)
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let field = bytes[at..].first_chunk().expect("the caller has looked at the length");
    u64::from_le_bytes(*field)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let field = bytes[at..].first_chunk().expect("inside a header");
    u32::from_le_bytes(*field)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            log_id: 0x1122_3344_5566_7788,
            nonce: 7,
            number: 42,
            bytes: 8 << 20,
            base_seq: 1 << 40,
            previous: 41,
            previous_end: 5000,
            previous_broken: true,
        }
    }

    #[test]
    fn a_segment_header_comes_back_and_no_flipped_bit_passes() {
        let (bytes, salt) = header().encode();
        assert_eq!(SegmentHeader::decode(&bytes), Recognised::Ours(header(), salt));
        for bit in 0..HEADER_BYTES * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&flipped), Recognised::Damaged, "bit {bit}");
        }
    }

    #[test]
    fn another_version_is_told_from_damage() {
        let (mut bytes, _) = header().encode();
        bytes[8] = 2;
        assert_eq!(SegmentHeader::decode(&bytes), Recognised::Damaged);
        let crc = SegmentHeader::checksum(&bytes);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&bytes), Recognised::Version(2));
    }

    #[test]
    fn a_record_header_is_right_in_its_place_only() {
        let (_, salt) = header().encode();
        let (_, other) = SegmentHeader { nonce: 8, ..header() }.encode();
        let record = RecordHeader { kind: Kind::Record, first: true, len: 200, delta: 9, body_crc: 10 };
        let bytes = record.encode(salt, 5000);
        assert_eq!(RecordHeader::decode(&bytes, salt, 5000), Some(record));
        assert_eq!(RecordHeader::decode(&bytes, salt, 5001), None);
        assert_eq!(RecordHeader::decode(&bytes, other, 5000), None);
        assert_eq!(RecordHeader::decode(&bytes[..15], salt, 5000), None);
        for bit in 0..RECORD_HEADER * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(RecordHeader::decode(&flipped, salt, 5000), None, "bit {bit}");
        }
        assert_eq!(RecordHeader::decode(&[0; RECORD_HEADER], salt, 5000), None);
    }

    #[test]
    fn names_have_one_spelling() {
        assert_eq!(number_in(&segment_name(42), ".seg"), Some(42));
        for name in ["2a.seg", "0000002A.seg", "+000002a.seg", "0000002a.spare", "0000002a.seg.old"] {
            assert_eq!(number_in(name, ".seg"), None, "{name}");
        }
    }
}
