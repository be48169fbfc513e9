//! The validator in front of the codec: it bounds a datagram and judges it by RFC 7252 before anything is
//! allocated for it. What passes here, the codec reads without surprise.
//! Not a decoder: it copies nothing but the token and keeps no option.
//! RFC 7252 sections 3 (format), 4.1 to 4.3 (what is rejected), 5.4 (options).

use crate::message::{Class, MessageId, Token, Type};
use crate::option::{self, Format, number};

/// The version that this is (RFC 7252 section 3).
const VERSION: u8 = 1;
/// Between options and payload.
const PAYLOAD_MARKER: u8 = 0xff;

/// The first four bytes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: Type,
    pub(crate) code: u8,
    pub(crate) mid: MessageId,
    token_length: u8,
}

impl Head {
    pub(crate) fn class(&self) -> Class {
        Class::of(self.code)
    }
}

/// Why not even the head can be believed: the datagram is dropped in silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeadError {
    #[error("shorter than the 4 bytes of a header")]
    Short,
    #[error("not version 1")]
    Version,
}

/// A message format error: the peer gets RST for a CON, silence for the rest (RFC 7252 sections 4.2 and 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FormatError {
    #[error("token length 9 to 15 is reserved")]
    TokenLength,
    #[error("the token goes beyond the datagram")]
    TokenCut,
    #[error("option delta 15 is reserved")]
    OptionDelta,
    #[error("option length 15 is reserved")]
    OptionLength,
    #[error("an option goes beyond the datagram")]
    OptionCut,
    #[error("an option number above 65535")]
    OptionNumber,
    #[error("a payload marker without payload")]
    EmptyPayload,
    #[error("an empty message with content")]
    EmptyWithContent,
}

/// Why a well-formed message cannot be processed, in words for a diagnostic payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Flaw {
    #[error("more than {0} options")]
    TooManyOptions(usize),
    /// Unknown and critical, or critical with a length outside its range, or critical and once too often.
    #[error("option {0} not supported")]
    Option(u16),
    #[error("this is no proxy")]
    Proxy,
    #[error("option {0} is not UTF-8")]
    Text(u16),
    #[error("a path segment . or ..")]
    DotSegment,
}

/// A message of valid format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) token: Token,
    pub(crate) flaw: Option<Flaw>,
}

/// Reads the four bytes that every message begins with.
pub(crate) fn head(datagram: &[u8]) -> Result<Head, HeadError> {
    let &[first, code, mid_high, mid_low, ..] = datagram else { return Err(HeadError::Short) };
    if first >> 6 != VERSION {
        return Err(HeadError::Version);
    }
    Ok(Head {
        kind: Type::of(first),
        code,
        mid: MessageId(u16::from_be_bytes([mid_high, mid_low])),
        token_length: first & 0x0f,
    })
}

/// Reads the token; of use by itself where the rest is too large to be looked at.
pub(crate) fn token(head: &Head, datagram: &[u8]) -> Result<Token, FormatError> {
    let length = usize::from(head.token_length);
    if length > 8 {
        return Err(FormatError::TokenLength); // RFC 7252 section 3
    }
    Ok(Token::new(datagram.get(4..4 + length).ok_or(FormatError::TokenCut)?))
}

/// Judges the whole message. At most `max_options` options are looked at.
///
/// The first flaw is kept, but a format error anywhere before the limit goes before every flaw: what cannot be
/// parsed has no request in it that could be answered.
pub(crate) fn frame(head: &Head, datagram: &[u8], max_options: usize) -> Result<Frame, FormatError> {
    let token = token(head, datagram)?;
    let mut rest = &datagram[4 + token.as_slice().len()..];
    if head.class() == Class::Empty {
        // RFC 7252 section 4.1: token length 0 and nothing behind the message ID.
        return match token.as_slice().is_empty() && rest.is_empty() {
            true => Ok(Frame { token, flaw: None }),
            false => Err(FormatError::EmptyWithContent),
        };
    }
    let mut flaw = None;
    let mut number = 0;
    let mut previous = None;
    let mut options = 0;
    while let Some((&first, behind)) = rest.split_first() {
        if first == PAYLOAD_MARKER {
            match behind.is_empty() {
                true => return Err(FormatError::EmptyPayload),
                false => break,
            }
        }
        options += 1;
        if options > max_options {
            flaw = Some(Flaw::TooManyOptions(max_options));
            break;
        }
        let (delta, behind) = extended(first >> 4, behind, FormatError::OptionDelta)?;
        let (length, behind) = extended(first & 0x0f, behind, FormatError::OptionLength)?;
        let (value, behind) = behind.split_at_checked(length).ok_or(FormatError::OptionCut)?;
        number = u16::try_from(usize::from(number) + delta).map_err(|_| FormatError::OptionNumber)?;
        flaw = flaw.or_else(|| judge(number, value, previous == Some(number)));
        previous = Some(number);
        rest = behind;
    }
    Ok(Frame { token, flaw })
}

/// A nibble and its extension (RFC 7252 section 3.1); 15 is reserved.
fn extended(nibble: u8, rest: &[u8], reserved: FormatError) -> Result<(usize, &[u8]), FormatError> {
    match (nibble, rest) {
        (0..=12, _) => Ok((usize::from(nibble), rest)),
        (13, [byte, rest @ ..]) => Ok((13 + usize::from(*byte), rest)),
        (14, [high, low, rest @ ..]) => Ok((269 + usize::from(u16::from_be_bytes([*high, *low])), rest)),
        (13 | 14, _) => Err(FormatError::OptionCut),
        _ => Err(reserved),
    }
}

/// What is wrong with one option. Elective options are never wrong, they are passed over.
fn judge(number: u16, value: &[u8], repeated: bool) -> Option<Flaw> {
    if !option::is_critical(number) {
        return None;
    }
    let Some(rule) = option::rule(number) else { return Some(Flaw::Option(number)) };
    if !rule.allows_length(value.len()) || (repeated && !rule.repeatable) {
        return Some(Flaw::Option(number)); // RFC 7252 sections 5.4.3 and 5.4.5
    }
    if rule.format == Format::String && std::str::from_utf8(value).is_err() {
        return Some(Flaw::Text(number));
    }
    match number {
        number::PROXY_URI | number::PROXY_SCHEME => Some(Flaw::Proxy),
        // RFC 7252 section 5.10.1: a client resolves these before it makes options of them.
        number::URI_PATH if value == b"." || value == b".." => Some(Flaw::DotSegment),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_OPTIONS: usize = 64;

    fn judged(datagram: &[u8]) -> Result<Frame, FormatError> {
        frame(&head(datagram).unwrap(), datagram, MAX_OPTIONS)
    }

    fn flaw(options: &[u8]) -> Option<Flaw> {
        judged(&[&[0x40, 0x02, 0, 1], options].concat()).unwrap().flaw
    }

    #[test]
    fn head_needs_four_bytes_and_version_one() {
        assert_eq!(head(&[0x40, 1, 0]), Err(HeadError::Short));
        for version in [0x00, 0x80, 0xc0] {
            assert_eq!(head(&[version, 1, 0, 0]), Err(HeadError::Version));
        }
        let head = head(&[0x74, 0x45, 0x12, 0x34]).unwrap();
        assert_eq!((head.kind, head.code, head.mid), (Type::Reset, 0x45, MessageId(0x1234)));
    }

    #[test]
    fn token_lengths_nine_to_fifteen_are_format_errors() {
        for length in 9..=15 {
            let datagram = [&[0x40 | length, 1, 0, 0][..], &[7; 20]].concat();
            assert_eq!(judged(&datagram), Err(FormatError::TokenLength));
        }
        assert_eq!(judged(&[0x44, 1, 0, 0, 1, 2, 3]), Err(FormatError::TokenCut));
    }

    #[test]
    fn an_empty_message_is_empty() {
        assert!(judged(&[0x40, 0, 0, 0]).is_ok());
        assert_eq!(judged(&[0x41, 0, 0, 0, 9]), Err(FormatError::EmptyWithContent));
        assert_eq!(judged(&[0x40, 0, 0, 0, 0xff, 9]), Err(FormatError::EmptyWithContent));
    }

    #[test]
    fn options_out_of_bounds_are_format_errors() {
        let of = |options: &[u8]| judged(&[&[0x40, 2, 0, 1], options].concat()).unwrap_err();
        assert_eq!(of(&[0xf0]), FormatError::OptionDelta);
        assert_eq!(of(&[0x0f]), FormatError::OptionLength);
        assert_eq!(of(&[0xb3, b'a', b'b']), FormatError::OptionCut);
        assert_eq!(of(&[0xd0]), FormatError::OptionCut);
        assert_eq!(of(&[0xe0, 0]), FormatError::OptionCut);
        assert_eq!(of(&[0xbd]), FormatError::OptionCut);
        assert_eq!(of(&[0xe0, 0xfe, 0xf3]), FormatError::OptionNumber);
        assert_eq!(of(&[0xe0, 0xfe, 0xf2, 0x10]), FormatError::OptionNumber);
        assert_eq!(of(&[0xff]), FormatError::EmptyPayload);
        // A format error goes before a flaw that stands in front of it.
        assert_eq!(of(&[0xd0, 14, 0xff]), FormatError::EmptyPayload);
    }

    #[test]
    fn critical_options_must_be_known_and_in_range() {
        assert_eq!(flaw(&[0xb1, b'a']), None);
        assert_eq!(flaw(&[0xd1, 14, 0x0e]), Some(Flaw::Option(27)));
        assert_eq!(flaw(&[0x61, 0x00]), None); // Observe: elective
        assert_eq!(flaw(&[0xd3, 4, 0, 0, 0]), Some(Flaw::Option(17))); // Accept of 3 bytes
        assert_eq!(flaw(&[0xd1, 4, 0, 0x01, 0]), Some(Flaw::Option(17))); // Accept twice
        assert_eq!(flaw(&[0xc1, 60, 0x01, 50]), None); // Content-Format twice: elective
        assert_eq!(flaw(&[0x30]), Some(Flaw::Option(3))); // an empty Uri-Host
    }

    #[test]
    fn text_and_dots() {
        assert_eq!(flaw(&[0xb2, 0xc3, 0x28]), Some(Flaw::Text(11)));
        assert_eq!(flaw(&[0xb2, b'.', b'.']), Some(Flaw::DotSegment));
        assert_eq!(flaw(&[0xb3, b'.', b'.', b'.']), None);
        assert_eq!(flaw(&[0xd4, 22, b'c', b'o', b'a', b'p']), Some(Flaw::Proxy));
    }

    #[test]
    fn options_are_counted() {
        assert_eq!(flaw(&[0x00; MAX_OPTIONS]), None);
        assert_eq!(flaw(&[0x00; MAX_OPTIONS + 1]), Some(Flaw::TooManyOptions(MAX_OPTIONS)));
    }
}
