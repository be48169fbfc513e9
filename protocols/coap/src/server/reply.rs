//! A response made into bytes that may be sent to an unverified address, and those bytes kept for duplicates.
//! Not the choice of piggybacked or separate: that is the server's.
//! RFC 7252 section 5.2; RFC 9175 section 2.4 (amplification); RFC 7967 (No-Response).

use bytes::Bytes;

use super::api::Response;
use crate::codec::{self, Draft};
use crate::config::Config;
use crate::message::{Code, MessageId, Token, Type};
use crate::option::{self, number};

/// The size of an empty message in bytes.
const EMPTY: usize = 4;

/// How many bytes may be sent because of a request of `request_bytes`, to an address that is not verified.
fn budget(config: &Config, request_bytes: usize) -> usize {
    request_bytes.saturating_mul(config.reply_factor).max(config.reply_floor_bytes)
}

/// How many bytes a response may have that is sent once.
pub(crate) fn limit(config: &Config, request_bytes: usize) -> usize {
    budget(config, request_bytes).min(config.max_datagram_bytes)
}

/// How many bytes a separate response may have: an empty ACK goes before it, and it may be sent several times.
pub(crate) fn limit_of_separate(config: &Config, request_bytes: usize) -> usize {
    let times = usize::from(config.transmission.max_retransmit) + 1;
    (budget(config, request_bytes).saturating_sub(EMPTY) / times).min(config.max_datagram_bytes)
}

/// Cuts a response down to the limit; whether it had to be cut. Code and options are never dropped: they are what
/// the peer acts on, and a few bytes.
pub(crate) fn fit(response: &mut Response, token: &Token, limit: usize) -> bool {
    if size(response, token) <= limit {
        return false;
    }
    if !response.is_diagnostic() {
        *response = Response::new(Code::INTERNAL_SERVER_ERROR).with_diagnostic("answer too large");
    }
    let text = std::mem::take(&mut response.payload);
    // One byte for the payload marker.
    let room = limit.saturating_sub(size(response, token) + 1).min(text.len());
    let end = (0..=room).rev().find(|&end| starts_character(&text, end)).unwrap_or(0);
    response.payload = text.slice(..end);
    true
}

/// Whether no UTF-8 sequence is cut in two at this place.
fn starts_character(text: &[u8], at: usize) -> bool {
    text.get(at).is_none_or(|byte| byte & 0xc0 != 0x80)
}

/// The size of a response in bytes, up to a few more: each option with the longest header it could have.
fn size(response: &Response, token: &Token) -> usize {
    let options: usize = options(response).iter().map(|(_, value)| 2 + value.len()).sum();
    let payload = if response.payload.is_empty() { 0 } else { 1 + response.payload.len() };
    4 + token.as_slice().len() + options + payload
}

fn options(response: &Response) -> Vec<(u16, Vec<u8>)> {
    let max_age = response.max_age.map(|age| {
        let seconds = age.as_secs().saturating_add(u64::from(age.subsec_nanos() > 0));
        u32::try_from(seconds).unwrap_or(u32::MAX)
    });
    [
        (number::CONTENT_FORMAT, response.content_format.map(u32::from)),
        (number::MAX_AGE, max_age),
        (number::SIZE1, response.size1),
    ]
    .into_iter()
    .filter_map(|(number, value)| Some((number, option::uint_bytes(value?))))
    .collect()
}

/// Writes a response.
pub(crate) fn encode(response: &Response, kind: Type, mid: MessageId, token: Token) -> Bytes {
    codec::encode(Draft {
        kind,
        code: response.code.byte(),
        mid,
        token,
        options: options(response),
        payload: response.payload.to_vec(),
    })
}

/// Whether a request wanted no response of this class (RFC 7967 section 2.1).
pub(crate) fn is_suppressed(no_response: u8, code: Code) -> bool {
    no_response & (1 << (code.class() - 1)) != 0
}

/// The longest reply that is kept without an allocation: a piggybacked response with a token and no text.
const SHORT: usize = 22;

/// What a duplicate of a CON request is answered. A NON's duplicates are not answered.
#[derive(Debug)]
pub(crate) enum Reply {
    /// The empty ACK: the response went a separate way.
    EmptyAck,
    Short(u8, [u8; SHORT]),
    Long(Box<[u8]>),
}

impl Reply {
    pub(crate) fn keep(message: &[u8]) -> Self {
        if message.len() > SHORT {
            return Self::Long(message.into());
        }
        let mut short = [0; SHORT];
        short[..message.len()].copy_from_slice(message);
        Self::Short(message.len() as u8, short)
    }

    pub(crate) fn bytes(&self, mid: MessageId) -> Bytes {
        match self {
            Self::EmptyAck => codec::empty(Type::Acknowledgement, mid),
            Self::Short(length, short) => Bytes::copy_from_slice(&short[..usize::from(*length)]),
            Self::Long(message) => Bytes::copy_from_slice(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const TOKEN: [u8; 8] = [9; 8];

    fn encoded(response: &Response) -> Bytes {
        encode(response, Type::Acknowledgement, MessageId(1), Token::new(&TOKEN))
    }

    #[test]
    fn a_diagnostic_is_cut_at_a_character() {
        let token = Token::new(&TOKEN);
        for limit in 12..60 {
            let mut response = Response::new(Code::NOT_FOUND)
                .with_max_age(Duration::from_millis(1500))
                .with_diagnostic("ä€😀".repeat(10));
            assert!(fit(&mut response, &token, limit));
            assert_eq!(response.code, Code::NOT_FOUND);
            assert!(std::str::from_utf8(&response.payload).is_ok());
            assert!(encoded(&response).len() <= limit.max(15), "{limit}");
        }
    }

    #[test]
    fn content_that_is_too_large_is_replaced_not_cut() {
        let mut response = Response::new(Code::CONTENT);
        response.payload = Bytes::from(vec![b'x'; 200]);
        assert!(!fit(&mut response.clone(), &Token::new(&TOKEN), 213));
        assert!(fit(&mut response, &Token::new(&TOKEN), 212));
        assert_eq!(
            (response.code, &response.payload[..]),
            (Code::INTERNAL_SERVER_ERROR, &b"answer too large"[..])
        );
    }

    #[test]
    fn every_answer_without_text_fits_a_separate_response_of_the_floor() {
        let limit = limit_of_separate(&Config::default(), 4);
        let response = Response::new(Code::SERVICE_UNAVAILABLE).with_max_age(Duration::MAX);
        assert!(encoded(&response).len() <= limit, "{} > {limit}", encoded(&response).len());
    }

    #[test]
    fn max_age_is_rounded_up() {
        let response = Response::new(Code::SERVICE_UNAVAILABLE).with_max_age(Duration::from_millis(29_001));
        let content = codec::decode(&encoded(&response)).unwrap();
        assert_eq!(content.max_age, Some(30));
    }

    #[test]
    fn no_response_is_read_by_class() {
        let suppressed =
            |bits| [Code::CHANGED, Code::NOT_FOUND, Code::GATEWAY_TIMEOUT].map(|c| is_suppressed(bits, c));
        assert_eq!(suppressed(0), [false, false, false]);
        assert_eq!(suppressed(2), [true, false, false]);
        assert_eq!(suppressed(8), [false, true, false]);
        assert_eq!(suppressed(16), [false, false, true]);
        assert_eq!(suppressed(26), [true, true, true]);
    }

    #[test]
    fn a_kept_reply_comes_back_as_it_was() {
        for length in [0, 4, SHORT, SHORT + 1, 500] {
            let message: Vec<u8> = (0..length).map(|byte| byte as u8).collect();
            assert_eq!(Reply::keep(&message).bytes(MessageId(0)), message);
        }
        assert_eq!(Reply::EmptyAck.bytes(MessageId(0x0102)), [0x60, 0, 1, 2][..]);
    }
}
