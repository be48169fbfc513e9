//! The one module around `coap-lite`: a judged datagram in, its content out; a draft in, a datagram out.
//! Not the judge: only what `guard` let through comes here, and nothing else of `coap-lite` is used. Its block
//! handler is not even compiled (feature `std` is off), its observe registry is never touched.

use bytes::Bytes;
use coap_lite::{CoapOption, MessageClass, MessageType, Packet};

use crate::message::{MessageId, Token, Type};
use crate::option::{self, number};
use crate::segments::Segments;

/// The codec found fault with what the guard had let through. Never seen; counted, and taken for a format error.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the codec disagrees with the guard")]
pub(crate) struct Disagreement;

/// What a request or response holds beside its head and token.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) path: Segments,
    pub(crate) query: Segments,
    pub(crate) content_format: Option<u16>,
    pub(crate) accept: Option<u16>,
    pub(crate) max_age: Option<u32>,
    pub(crate) no_response: u8,
    pub(crate) payload: Bytes,
}

/// Reads a message that the guard has found well-formed and without flaw.
pub(crate) fn decode(datagram: &[u8]) -> Result<Content, Disagreement> {
    let mut packet = Packet::from_bytes(datagram).map_err(|_| Disagreement)?;
    let short = |number| uint(&packet, number).and_then(|value| u16::try_from(value).ok());
    Ok(Content {
        path: segments(&packet, number::URI_PATH)?,
        query: segments(&packet, number::URI_QUERY)?,
        content_format: short(number::CONTENT_FORMAT),
        accept: short(number::ACCEPT),
        max_age: uint(&packet, number::MAX_AGE),
        no_response: uint(&packet, number::NO_RESPONSE).and_then(|bits| u8::try_from(bits).ok()).unwrap_or(0),
        payload: Bytes::from(std::mem::take(&mut packet.payload)),
    })
}

fn segments(packet: &Packet, number: u16) -> Result<Segments, Disagreement> {
    let Some(values) = packet.get_option(CoapOption::from(number)) else { return Ok(Segments::default()) };
    let mut segments = Segments::with_capacity(values.len(), values.iter().map(Vec::len).sum());
    for value in values {
        segments.push(std::str::from_utf8(value).map_err(|_| Disagreement)?);
    }
    Ok(segments)
}

/// The first value of a uint option; one of a length outside its range is passed over (RFC 7252 section 5.4.3).
fn uint(packet: &Packet, number: u16) -> Option<u32> {
    let value = packet.get_first_option(CoapOption::from(number))?;
    option::rule(number).filter(|rule| rule.allows_length(value.len())).and_then(|_| option::uint(value))
}

/// A message to be written. Options may stand in any order of numbers.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) kind: Type,
    pub(crate) code: u8,
    pub(crate) mid: MessageId,
    pub(crate) token: Token,
    pub(crate) options: Vec<(u16, Vec<u8>)>,
    pub(crate) payload: Vec<u8>,
}

/// Writes a message. Its size is the caller's business and bounded there; options are below 64 KiB each.
pub(crate) fn encode(draft: Draft) -> Bytes {
    let mut packet = Packet::new();
    packet.header.set_type(match draft.kind {
        Type::Confirmable => MessageType::Confirmable,
        Type::NonConfirmable => MessageType::NonConfirmable,
        Type::Acknowledgement => MessageType::Acknowledgement,
        Type::Reset => MessageType::Reset,
    });
    packet.header.code = MessageClass::from(draft.code);
    packet.header.message_id = draft.mid.0;
    packet.set_token(draft.token.as_slice().to_vec());
    for (number, value) in draft.options {
        packet.add_option(CoapOption::from(number), value);
    }
    packet.payload = draft.payload;
    Bytes::from(packet.to_bytes_unlimited().expect("a header of four bytes fits into a buffer made for it"))
}

/// An empty message: ACK or RST with the message ID that it answers (RFC 7252 section 4.1).
pub(crate) fn empty(kind: Type, mid: MessageId) -> Bytes {
    encode(Draft { kind, code: 0, mid, token: Token::default(), options: Vec::new(), payload: Vec::new() })
}

/// The same message with another type and message ID: a separate response as a piggybacked one.
pub(crate) fn readdressed(message: &[u8], kind: Type, mid: MessageId) -> Vec<u8> {
    let mut message = message.to_vec();
    if let [first, _, high, low, ..] = message.as_mut_slice() {
        *first = (*first & !0x30) | kind.bits();
        [*high, *low] = mid.0.to_be_bytes();
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let datagram = encode(Draft {
            kind: Type::Confirmable,
            code: 2,
            mid: MessageId(0xfffe),
            token: Token::new(&[1, 2]),
            options: vec![
                (number::URI_QUERY, b"q=1".to_vec()),
                (number::URI_PATH, b"a".to_vec()),
                (number::URI_PATH, "ü/".into()),
                (number::CONTENT_FORMAT, option::uint_bytes(11_542)),
                (number::NO_RESPONSE, option::uint_bytes(26)),
            ],
            payload: b"21.5".to_vec(),
        });
        let head = crate::guard::head(&datagram).unwrap();
        let frame = crate::guard::frame(&head, &datagram, 64).unwrap();
        assert_eq!((head.kind, head.code, head.mid), (Type::Confirmable, 2, MessageId(0xfffe)));
        assert_eq!((frame.token, frame.flaw), (Token::new(&[1, 2]), None));
        let content = decode(&datagram).unwrap();
        assert_eq!(content.path.iter().collect::<Vec<_>>(), ["a", "ü/"]);
        assert_eq!(content.query.iter().collect::<Vec<_>>(), ["q=1"]);
        assert_eq!((content.content_format, content.accept), (Some(11_542), None));
        assert_eq!((content.no_response, content.payload.as_ref()), (26, &b"21.5"[..]));
    }

    #[test]
    fn empty_messages_are_four_bytes() {
        assert_eq!(empty(Type::Acknowledgement, MessageId(0x1234)), [0x60, 0, 0x12, 0x34][..]);
        assert_eq!(empty(Type::Reset, MessageId(7)), [0x70, 0, 0, 7][..]);
    }

    #[test]
    fn elective_options_of_a_wrong_length_are_passed_over() {
        // Content-Format of three bytes, then a No-Response of two.
        let datagram = [0x40, 2, 0, 1, 0xc3, 0, 0, 60, 0xd2, 233, 0, 26];
        let content = decode(&datagram).unwrap();
        assert_eq!((content.content_format, content.no_response), (None, 0));
    }

    #[test]
    fn a_separate_response_becomes_a_piggybacked_one() {
        let separate = [0x52, 0x44, 0xaa, 0xbb, 1, 2];
        assert_eq!(
            readdressed(&separate, Type::Acknowledgement, MessageId(0x0102)),
            [0x62, 0x44, 1, 2, 1, 2]
        );
    }

    /// The guard's promise: what it lets through, the codec reads; nothing in between.
    #[test]
    fn the_codec_never_disagrees_with_the_guard() {
        let seed = encode(Draft {
            kind: Type::Confirmable,
            code: 2,
            mid: MessageId(1),
            token: Token::new(&[1, 2, 3, 4]),
            options: vec![
                (number::URI_PATH, b"devices".to_vec()),
                (number::URI_PATH, vec![b'x'; 40]),
                (number::URI_QUERY, vec![b'q'; 255]),
                (number::CONTENT_FORMAT, vec![60]),
                (number::NO_RESPONSE, vec![2]),
            ],
            payload: vec![0xff; 30],
        });
        let mut rng = crate::rng::Rng::new(0x5eed);
        let mut passed = 0;
        for _ in 0..40_000 {
            let mut datagram = seed.to_vec();
            for _ in 0..=rng.below(3) {
                let at = rng.below(datagram.len() as u64) as usize;
                datagram[at] = rng.next() as u8;
            }
            datagram.truncate(datagram.len() - rng.below(20) as usize);
            let Ok(head) = crate::guard::head(&datagram) else { continue };
            if let Ok(crate::guard::Frame { flaw: None, .. }) = crate::guard::frame(&head, &datagram, 64) {
                passed += 1;
                assert!(decode(&datagram).is_ok(), "{datagram:02x?}");
            }
        }
        assert!(passed > 1_000, "{passed} datagrams passed the guard");
    }
}
