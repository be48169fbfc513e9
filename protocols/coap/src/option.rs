//! The options that this server knows, in one table: length, whether it may stand twice, what it holds.
//! Not a registry: an option that is absent here is unrecognised, and its number alone says what follows
//! (odd: critical, 4.02; even: elective, ignored). RFC 7252 sections 5.4 and 5.10.

/// The number of an option (RFC 7252 section 12.2).
pub(crate) mod number {
    pub(crate) const URI_HOST: u16 = 3;
    pub(crate) const ETAG: u16 = 4;
    pub(crate) const URI_PORT: u16 = 7;
    pub(crate) const LOCATION_PATH: u16 = 8;
    pub(crate) const URI_PATH: u16 = 11;
    pub(crate) const CONTENT_FORMAT: u16 = 12;
    pub(crate) const MAX_AGE: u16 = 14;
    pub(crate) const URI_QUERY: u16 = 15;
    pub(crate) const ACCEPT: u16 = 17;
    pub(crate) const LOCATION_QUERY: u16 = 20;
    pub(crate) const PROXY_URI: u16 = 35;
    pub(crate) const PROXY_SCHEME: u16 = 39;
    pub(crate) const SIZE1: u16 = 60;
    pub(crate) const NO_RESPONSE: u16 = 258;
}

/// How the value of an option is read (RFC 7252 section 3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Opaque,
    Uint,
    String,
}

/// What the table says about a known option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) format: Format,
    /// The least and greatest length in bytes; outside of it the option counts as unrecognised (5.4.3).
    pub(crate) min: u16,
    pub(crate) max: u16,
    /// Whether it may stand more than once; else each further one counts as unrecognised (5.4.5).
    pub(crate) repeatable: bool,
}

impl Rule {
    pub(crate) fn allows_length(&self, length: usize) -> bool {
        (usize::from(self.min)..=usize::from(self.max)).contains(&length)
    }
}

/// Whether an option that is not understood forbids answering as if it were not there (RFC 7252 section 5.4.6).
pub(crate) fn is_critical(number: u16) -> bool {
    number & 1 == 1
}

/// The rule of an option, `None` if this server does not know it.
///
/// If-Match, If-None-Match, Block1, Block2 and OSCORE are absent on purpose: they are critical, and to pass them
/// over would change what the request means. RFC 7959 section 2.2 expects 4.02 of a server without blocks.
pub(crate) fn rule(number: u16) -> Option<Rule> {
    let rule = |format, min, max, repeatable| Some(Rule { format, min, max, repeatable });
    match number {
        number::URI_HOST => rule(Format::String, 1, 255, false),
        number::ETAG => rule(Format::Opaque, 1, 8, true),
        number::URI_PORT => rule(Format::Uint, 0, 2, false),
        number::LOCATION_PATH => rule(Format::String, 0, 255, true),
        number::URI_PATH => rule(Format::String, 0, 255, true),
        number::CONTENT_FORMAT => rule(Format::Uint, 0, 2, false),
        number::MAX_AGE => rule(Format::Uint, 0, 4, false),
        number::URI_QUERY => rule(Format::String, 0, 255, true),
        number::ACCEPT => rule(Format::Uint, 0, 2, false),
        number::LOCATION_QUERY => rule(Format::String, 0, 255, true),
        number::PROXY_URI => rule(Format::String, 1, 1034, false),
        number::PROXY_SCHEME => rule(Format::String, 1, 255, false),
        number::SIZE1 => rule(Format::Uint, 0, 4, false),
        number::NO_RESPONSE => rule(Format::Uint, 0, 1, false),
        _ => None,
    }
}

/// The value of a uint option: network order, leading zeros allowed, nothing is zero (RFC 7252 section 3.2).
/// `None` where it is longer than four bytes.
pub(crate) fn uint(value: &[u8]) -> Option<u32> {
    (value.len() <= 4).then(|| value.iter().fold(0, |sum, &byte| sum << 8 | u32::from(byte)))
}

/// The shortest form of a uint option.
pub(crate) fn uint_bytes(value: u32) -> Vec<u8> {
    let bytes = value.to_be_bytes();
    bytes[value.leading_zeros() as usize / 8..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uint_values_come_back() {
        for value in [0, 1, 255, 256, 65_535, 65_536, u32::MAX] {
            assert_eq!(uint(&uint_bytes(value)), Some(value));
        }
        assert_eq!(uint_bytes(0), Vec::<u8>::new());
        assert_eq!(uint_bytes(60), [60]);
        assert_eq!(uint(&[0, 0, 1, 0]), Some(256));
        assert_eq!(uint(&[0; 5]), None);
    }

    #[test]
    fn blocks_and_oscore_are_unknown_and_critical() {
        for number in [1, 5, 9, 19, 21, 23, 27, 31] {
            assert!(rule(number).is_none() && is_critical(number), "{number}");
        }
        // Observe, Size2, Echo, Request-Tag: passed over.
        for number in [6, 28, 252, 292] {
            assert!(rule(number).is_none() && !is_critical(number), "{number}");
        }
    }
}
