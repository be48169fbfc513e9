//! A small client: requests to one server, each concluded once. For simulated devices and for tests.
//! Not a general client: no blocks, no observe, no discovery; message IDs come round after 65,536 requests.
//! RFC 7252 sections 4 and 5.2, the other side of [`Server`](crate::Server), with the same shape of driver.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::codec::{self, Content, Draft};
use crate::config::Transmission;
use crate::guard::{self, Head};
use crate::message::{Class, Code, MessageId, Method, Token, Type};
use crate::option::{self, number};
use crate::rng::Rng;

/// The largest request in bytes, and the most options of a response.
const MAX_REQUEST_BYTES: usize = 1472;
const MAX_OPTIONS: usize = 64;
/// How many separate responses are remembered, in order to acknowledge their duplicates.
const REMEMBERED: usize = 16;

/// What a client may be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The transmission parameters; `nstart` bounds the calls under way.
    pub transmission: Transmission,
    /// How long to wait for the response after the request was acknowledged, or sent as NON. Default 93 s, the
    /// MAX_TRANSMIT_WAIT of RFC 7252 section 4.8.2.
    pub response_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self { transmission: Transmission::default(), response_timeout: Duration::from_secs(93) }
    }
}

/// A request to be made.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Whether to send it as CON, until it is acknowledged; else once.
    pub confirmable: bool,
    /// The method.
    pub method: Method,
    /// The path segments, unencoded.
    pub path: &'a [&'a str],
    /// The query parts, unencoded.
    pub query: &'a [&'a str],
    /// The Content-Format of the payload.
    pub content_format: Option<u16>,
    /// The payload.
    pub payload: &'a [u8],
}

/// Names a call until it is concluded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CallId(u64);

/// Why a call was not begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// As many calls as NSTART allows are under way.
    #[error("NSTART calls are under way")]
    Busy,
    /// The request does not fit into a datagram, or one of its options has more than 255 bytes.
    #[error("the request is too large for a datagram")]
    TooLarge,
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// With a response.
    Response {
        /// The response code.
        code: Code,
        /// Max-Age, if it was said.
        max_age: Option<Duration>,
        /// The Content-Format of the payload, if it was said.
        content_format: Option<u16>,
        /// The payload.
        payload: Bytes,
    },
    /// The server answered RST.
    Rejected,
    /// No answer: whether the request arrived is unknown.
    TimedOut,
}

/// A call and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conclusion {
    /// The call.
    pub call: CallId,
    /// How it ended.
    pub outcome: Outcome,
}

/// What a call waits for.
///
/// ```text
///  CON -> Acknowledgement --empty ACK--> Response --response, time-out--> concluded
///               | ACK with response, response, RST, MAX_RETRANSMIT ------> concluded
///  NON -> Response
/// ```
#[derive(Debug)]
enum Waiting {
    Acknowledgement { datagram: Bytes, sent: u8, wait: Duration },
    Response,
}

#[derive(Debug)]
struct Pending {
    call: CallId,
    mid: MessageId,
    token: Token,
    due: Instant,
    waiting: Waiting,
}

/// The client of one server.
#[derive(Debug)]
pub struct Client {
    config: Config,
    rng: Rng,
    next_mid: u16,
    next_call: u64,
    pending: Vec<Pending>,
    acknowledged: VecDeque<MessageId>,
    events: VecDeque<Conclusion>,
    transmits: VecDeque<Bytes>,
}

impl Client {
    /// A client without calls; the seed gives jitter, tokens and the first message ID.
    pub fn new(config: Config, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        Self {
            config,
            next_mid: rng.next() as u16,
            rng,
            next_call: 0,
            pending: Vec::new(),
            acknowledged: VecDeque::new(),
            events: VecDeque::new(),
            transmits: VecDeque::new(),
        }
    }

    /// Begins a call.
    ///
    /// # Errors
    /// [`CallError`]; nothing was sent then.
    pub fn call(&mut self, now: Instant, call: &Call<'_>) -> Result<CallId, CallError> {
        let Transmission { nstart, .. } = self.config.transmission;
        if self.pending.len() >= nstart.max(1) {
            return Err(CallError::Busy);
        }
        let token = Token::new(&self.rng.next().to_be_bytes()[..4]);
        let mid = MessageId(self.next_mid);
        let datagram = encode(call, mid, token).ok_or(CallError::TooLarge)?;
        self.next_mid = self.next_mid.wrapping_add(1);
        let id = CallId(self.next_call);
        self.next_call += 1;
        self.transmits.push_back(datagram.clone());
        let (waiting, due) = if call.confirmable {
            let wait = self.config.transmission.first_wait(&mut self.rng);
            (Waiting::Acknowledgement { datagram, sent: 1, wait }, now + wait)
        } else {
            (Waiting::Response, now + self.config.response_timeout)
        };
        self.pending.push(Pending { call: id, mid, token, due, waiting });
        Ok(id)
    }

    /// Takes a datagram from the server.
    pub fn handle_datagram(&mut self, now: Instant, datagram: &[u8]) {
        let Ok(head) = guard::head(datagram) else { return };
        match (head.kind, head.class()) {
            (Type::Acknowledgement, Class::Empty) => self.handle_ack(now, &head),
            (Type::Acknowledgement, Class::Response) => {
                let with_mid = |pending: &Pending, token| pending.mid == head.mid && pending.token == token;
                self.handle_response(&head, datagram, with_mid);
            }
            (Type::Reset, Class::Empty) => {
                if let Some(at) = self.pending.iter().position(|pending| pending.mid == head.mid) {
                    self.conclude(at, Outcome::Rejected);
                }
            }
            (Type::Confirmable, Class::Response) => {
                let known = self.acknowledged.contains(&head.mid)
                    || self.handle_response(&head, datagram, |pending, token| pending.token == token);
                let kind = if known { Type::Acknowledgement } else { Type::Reset };
                if known && !self.acknowledged.contains(&head.mid) {
                    self.acknowledged.truncate(REMEMBERED - 1);
                    self.acknowledged.push_front(head.mid);
                }
                self.transmits.push_back(codec::empty(kind, head.mid));
            }
            (Type::NonConfirmable, Class::Response) => {
                self.handle_response(&head, datagram, |pending, token| pending.token == token);
            }
            // A ping, or a request: this is no server.
            (Type::Confirmable, _) => self.transmits.push_back(codec::empty(Type::Reset, head.mid)),
            _ => {}
        }
    }

    fn handle_ack(&mut self, now: Instant, head: &Head) {
        let Some(pending) = self.pending.iter_mut().find(|pending| pending.mid == head.mid) else { return };
        if let Waiting::Acknowledgement { .. } = pending.waiting {
            pending.waiting = Waiting::Response;
            pending.due = now + self.config.response_timeout;
        }
    }

    /// A response; whether it was that of a call.
    fn handle_response(
        &mut self,
        head: &Head,
        datagram: &[u8],
        is_for: impl Fn(&Pending, Token) -> bool,
    ) -> bool {
        let Ok(frame) = guard::frame(head, datagram, MAX_OPTIONS) else { return false };
        let Some(at) = self.pending.iter().position(|pending| is_for(pending, frame.token)) else {
            return false;
        };
        let (None, Some(code), Ok(content)) =
            (frame.flaw, Code::from_byte(head.code), codec::decode(datagram))
        else {
            return false; // RFC 7252 section 5.4.1: a response with an option not understood is rejected.
        };
        let Content { max_age, content_format, payload, .. } = content;
        let max_age = max_age.map(|seconds| Duration::from_secs(u64::from(seconds)));
        self.conclude(at, Outcome::Response { code, max_age, content_format, payload });
        true
    }

    fn conclude(&mut self, at: usize, outcome: Outcome) {
        let call = self.pending.remove(at).call;
        self.events.push_back(Conclusion { call, outcome });
    }

    /// Sends again what is due, and gives up what has waited long enough.
    pub fn handle_timeout(&mut self, now: Instant) {
        let mut at = 0;
        while let Some(pending) = self.pending.get_mut(at) {
            match &mut pending.waiting {
                _ if pending.due > now => at += 1,
                Waiting::Acknowledgement { datagram, sent, wait }
                    if *sent <= self.config.transmission.max_retransmit =>
                {
                    self.transmits.push_back(datagram.clone());
                    *sent += 1;
                    *wait = wait.saturating_mul(2);
                    pending.due = now + *wait;
                    at += 1;
                }
                Waiting::Acknowledgement { .. } | Waiting::Response => self.conclude(at, Outcome::TimedOut),
            }
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.pending.iter().map(|pending| pending.due).min()
    }

    /// The next conclusion of a call.
    pub fn poll_event(&mut self) -> Option<Conclusion> {
        self.events.pop_front()
    }

    /// The next datagram to send to the server.
    pub fn poll_transmit(&mut self) -> Option<Bytes> {
        self.transmits.pop_front()
    }
}

fn encode(call: &Call<'_>, mid: MessageId, token: Token) -> Option<Bytes> {
    let path = call.path.iter().map(|segment| (number::URI_PATH, segment.as_bytes().to_vec()));
    let query = call.query.iter().map(|part| (number::URI_QUERY, part.as_bytes().to_vec()));
    let format =
        call.content_format.map(|format| (number::CONTENT_FORMAT, option::uint_bytes(u32::from(format))));
    let options: Vec<_> = path.chain(query).chain(format).collect();
    let in_range = |(number, value): &(u16, Vec<u8>)| {
        option::rule(*number).is_some_and(|rule| rule.allows_length(value.len()))
    };
    if !options.iter().all(in_range) {
        return None;
    }
    let kind = if call.confirmable { Type::Confirmable } else { Type::NonConfirmable };
    let datagram = codec::encode(Draft {
        kind,
        code: call.method.code(),
        mid,
        token,
        options,
        payload: call.payload.to_vec(),
    });
    (datagram.len() <= MAX_REQUEST_BYTES).then_some(datagram)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: Call<'_> = Call {
        confirmable: true,
        method: Method::Post,
        path: &["t"],
        query: &[],
        content_format: None,
        payload: b"21",
    };

    /// A client that has sent one call: its datagram's message ID and token too.
    fn begun(call: &Call<'_>, now: Instant) -> (Client, CallId, [u8; 2], [u8; 4]) {
        let mut client = Client::new(Config::default(), 1);
        let id = client.call(now, call).unwrap();
        let datagram = client.poll_transmit().unwrap();
        (client, id, [datagram[2], datagram[3]], datagram[4..8].try_into().unwrap())
    }

    fn answer(first: u8, code: u8, mid: [u8; 2], token: [u8; 4]) -> Vec<u8> {
        [&[first, code], &mid[..], &token].concat()
    }

    fn code(client: &mut Client) -> Option<String> {
        match client.poll_event()?.outcome {
            Outcome::Response { code, .. } => Some(code.to_string()),
            other => Some(format!("{other:?}")),
        }
    }

    #[test]
    fn a_piggybacked_response_needs_message_id_and_token() {
        let now = crate::testing::epoch();
        let (mut client, _, mid, token) = begun(&CALL, now);
        client.handle_datagram(now, &answer(0x64, 0x44, [mid[0], !mid[1]], token));
        client.handle_datagram(now, &answer(0x64, 0x44, mid, [0; 4]));
        assert_eq!(client.poll_event(), None);
        client.handle_datagram(now, &answer(0x64, 0x44, mid, token));
        assert_eq!(code(&mut client).as_deref(), Some("2.04"));
        assert_eq!((client.poll_timeout(), client.poll_transmit()), (None, None));
    }

    #[test]
    fn a_separate_response_is_acknowledged_each_time_and_concludes_once() {
        let now = crate::testing::epoch();
        let (mut client, _, mid, token) = begun(&CALL, now);
        client.handle_datagram(now, &[0x60, 0, mid[0], mid[1]]);
        assert_eq!(client.poll_timeout(), Some(now + Duration::from_secs(93)));
        for _ in 0..3 {
            client.handle_datagram(now, &answer(0x44, 0xa3, [9, 9], token));
            assert_eq!(client.poll_transmit().unwrap(), [0x60, 0, 9, 9][..]);
        }
        assert_eq!(code(&mut client).as_deref(), Some("5.03"));
        assert_eq!(client.poll_event(), None);
        // Another one for the same token answers nothing.
        client.handle_datagram(now, &answer(0x44, 0xa3, [9, 10], token));
        assert_eq!(client.poll_transmit().unwrap(), [0x70, 0, 9, 10][..]);
    }

    #[test]
    fn a_call_is_sent_five_times_and_then_given_up() {
        let start = crate::testing::epoch();
        let (mut client, id, ..) = begun(&CALL, start);
        let mut sent = 1;
        let mut now = start;
        while let Some(due) = client.poll_timeout() {
            now = due;
            client.handle_timeout(now);
            sent += usize::from(client.poll_transmit().is_some());
        }
        assert_eq!(sent, 5);
        assert_eq!(client.poll_event(), Some(Conclusion { call: id, outcome: Outcome::TimedOut }));
        // RFC 7252 section 4.8.2: MAX_TRANSMIT_WAIT is 93 s, at most; 62 s without the random factor.
        assert!((62..=93).contains(&(now - start).as_secs()));
    }

    #[test]
    fn reset_ping_and_rubbish() {
        let now = crate::testing::epoch();
        let (mut client, id, mid, token) = begun(&Call { confirmable: false, ..CALL }, now);
        client.handle_datagram(now, &[0x40, 0, 1, 2]);
        assert_eq!(client.poll_transmit().unwrap(), [0x70, 0, 1, 2][..]);
        // A response with an unknown critical option.
        client.handle_datagram(now, &[&answer(0x54, 0x45, [1, 1], token)[..], &[0xd1, 14, 0]].concat());
        client.handle_datagram(now, &[0xff; 3]);
        assert_eq!((client.poll_event(), client.poll_transmit()), (None, None));
        client.handle_datagram(now, &[0x70, 0, mid[0], mid[1]]);
        assert_eq!(client.poll_event(), Some(Conclusion { call: id, outcome: Outcome::Rejected }));
    }

    #[test]
    fn nstart_and_size_are_bounds() {
        let now = crate::testing::epoch();
        let (mut client, ..) = begun(&CALL, now);
        assert_eq!(client.call(now, &CALL), Err(CallError::Busy));
        let mut client = Client::new(Config::default(), 1);
        let segment = "x".repeat(256);
        assert_eq!(client.call(now, &Call { path: &[&segment], ..CALL }), Err(CallError::TooLarge));
        assert_eq!(client.call(now, &Call { payload: &[0; 1500], ..CALL }), Err(CallError::TooLarge));
        assert_eq!(client.poll_transmit(), None);
    }
}
