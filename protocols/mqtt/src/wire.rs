//! The data types of MQTT over one complete packet (MQTT 5 1.5): each read is bounded by the packet.

use crate::reason::Violation;

/// Reads the data types of MQTT from the front of a slice.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

const SHORT: Violation = Violation::Malformed("a field reaches past its end");

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn take(&mut self, length: usize) -> Result<&'a [u8], Violation> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(SHORT)?;
        self.rest = rest;
        Ok(taken)
    }

    pub(crate) fn rest(self) -> &'a [u8] {
        self.rest
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Violation> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(SHORT)?;
        self.rest = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Violation> {
        self.array().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Violation> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Violation> {
        self.array().map(u32::from_be_bytes)
    }

    /// Variable Byte Integer: at most four bytes and never more than needed (MQTT 5 1.5.5-1).
    pub(crate) fn variable(&mut self) -> Result<usize, Violation> {
        let mut value = 0;
        for index in 0..4 {
            let byte = self.u8()?;
            value |= usize::from(byte & 0x7F) << (7 * index);
            if byte & 0x80 == 0 {
                if byte == 0 && index > 0 {
                    return Err(Violation::Malformed("a variable byte integer longer than needed"));
                }
                return Ok(value);
            }
        }
        Err(Violation::Malformed("a variable byte integer of more than four bytes"))
    }

    /// Binary Data: two bytes of length, then the bytes.
    pub(crate) fn binary(&mut self) -> Result<&'a [u8], Violation> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }

    /// UTF-8 Encoded String: no surrogates, no NUL (MQTT 5 1.5.4-1, 1.5.4-2).
    pub(crate) fn text(&mut self) -> Result<&'a str, Violation> {
        let text = std::str::from_utf8(self.binary()?)
            .map_err(|_| Violation::Malformed("a string that is not UTF-8"))?;
        if text.bytes().fold(false, |found, byte| found | (byte == 0)) {
            return Err(Violation::Malformed("a string with a NUL"));
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variable_byte_integers() {
        for (bytes, value) in [
            (&[0x00][..], 0),
            (&[0x7F], 127),
            (&[0x80, 0x01], 128),
            (&[0xFF, 0x7F], 16_383),
            (&[0x80, 0x80, 0x01], 16_384),
            (&[0xFF, 0xFF, 0xFF, 0x7F], 268_435_455),
        ] {
            assert_eq!(Reader::new(bytes).variable(), Ok(value));
        }
        for bytes in [&[][..], &[0x80], &[0x80, 0x00], &[0xFF, 0xFF, 0xFF, 0xFF, 0x01]] {
            assert!(matches!(Reader::new(bytes).variable(), Err(Violation::Malformed(_))), "{bytes:?}");
        }
    }

    #[test]
    fn strings() {
        assert_eq!(Reader::new(b"\x00\x02ab").text(), Ok("ab"));
        // MQTT 5 1.5.4.1: U+FEFF is kept as it is, wherever it stands.
        assert_eq!(Reader::new(b"\x00\x03\xEF\xBB\xBF").text(), Ok("\u{feff}"));
        for bytes in [&b"\x00"[..], b"\x00\x03ab", b"\x00\x01\x00", b"\x00\x03\xED\xA0\x80", b"\x00\x01\xC3"]
        {
            assert!(matches!(Reader::new(bytes).text(), Err(Violation::Malformed(_))), "{bytes:?}");
        }
    }
}
