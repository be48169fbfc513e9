//! What the next commit will write.

use super::format::{COPY_PREFIX, Kind, RECORD_HEADER, RecordHeader, Salt};

/// A buffer that grew beyond this is given back after its commit.
const KEPT_BYTES: usize = 256 << 10;

/// Bytes to be written at the end of the head, and what they mean once they are durable.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    /// Records appended.
    pub(super) records: u32,
    /// Records copied.
    pub(super) copies: u32,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Adds a record that will stand at `start` plus the present length.
    pub(super) fn push(&mut self, kind: Kind, salt: Salt, start: u32, delta: u32, parts: &[&[u8]]) -> u32 {
        let first = self.bytes.is_empty();
        let header_at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; RECORD_HEADER]);
        for part in parts {
            self.bytes.extend_from_slice(part);
        }
        let body = &self.bytes[header_at + RECORD_HEADER..];
        let offset = start + header_at as u32;
        let header =
            RecordHeader { kind, first, len: body.len() as u32, delta, body_crc: crc32fast::hash(body) };
        self.bytes[header_at..header_at + RECORD_HEADER].copy_from_slice(&header.encode(salt, offset));
        offset
    }

    /// The bytes to write, and after them `zeros` zero bytes, which hide what stood there before.
    pub(super) fn padded(&mut self, zeros: usize) -> &[u8] {
        self.bytes.resize(self.bytes.len() + zeros, 0);
        &self.bytes
    }

    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES);
        self.records = 0;
        self.copies = 0;
    }
}

/// What a body of this length takes on the disk.
pub(super) fn total(kind: Kind, body: usize) -> usize {
    RECORD_HEADER + body + if kind == Kind::Copy { COPY_PREFIX } else { 0 }
}
