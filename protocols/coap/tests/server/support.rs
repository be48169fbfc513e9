//! Datagrams written and read by hand, independently of the crate's codec, and a server with a clock.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use fieldgate_coap::{Config, Event, Lost, Request, Server};

pub(crate) const CON: u8 = 0;
pub(crate) const NON: u8 = 1;
pub(crate) const ACK: u8 = 2;
pub(crate) const RST: u8 = 3;

pub(crate) const POST: u8 = 0x02;

pub(crate) const URI_PATH: u16 = 11;
pub(crate) const CONTENT_FORMAT: u16 = 12;

/// Any instant to begin with.
#[expect(clippy::disallowed_methods, reason = "an Instant can be had from the system's clock only")]
pub(crate) fn epoch() -> Instant {
    Instant::now()
}

pub(crate) fn peer(number: u16) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 7], 10_000 + number))
}

/// A message; the options in ascending order.
pub(crate) fn datagram(
    kind: u8,
    code: u8,
    mid: u16,
    token: &[u8],
    options: &[(u16, &[u8])],
    payload: &[u8],
) -> Vec<u8> {
    let mut bytes = vec![0x40 | kind << 4 | token.len() as u8, code];
    bytes.extend(mid.to_be_bytes());
    bytes.extend(token);
    let mut previous = 0;
    for (number, value) in options {
        let (delta, delta_more) = nibble(usize::from(number - previous));
        let (length, length_more) = nibble(value.len());
        bytes.push(delta << 4 | length);
        bytes.extend(delta_more);
        bytes.extend(length_more);
        bytes.extend(*value);
        previous = *number;
    }
    if !payload.is_empty() {
        bytes.push(0xff);
        bytes.extend(payload);
    }
    bytes
}

fn nibble(value: usize) -> (u8, Vec<u8>) {
    match value {
        0..13 => (value as u8, Vec::new()),
        13..269 => (13, vec![(value - 13) as u8]),
        _ => (14, ((value - 269) as u16).to_be_bytes().to_vec()),
    }
}

/// POST /devices/d1/messages/events with a body.
pub(crate) fn post(kind: u8, mid: u16, token: &[u8]) -> Vec<u8> {
    let path: [(u16, &[u8]); 5] = [
        (URI_PATH, b"devices"),
        (URI_PATH, b"d1"),
        (URI_PATH, b"messages"),
        (URI_PATH, b"events"),
        (CONTENT_FORMAT, &[50]),
    ];
    datagram(kind, POST, mid, token, &path, br#"{"t":21.5}"#)
}

/// A message as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) kind: u8,
    pub(crate) code: String,
    pub(crate) mid: u16,
    pub(crate) token: Vec<u8>,
    pub(crate) options: Vec<(u16, Vec<u8>)>,
    pub(crate) payload: Vec<u8>,
}

impl Message {
    pub(crate) fn is_empty(&self) -> bool {
        self.code == "0.00" && self.token.is_empty() && self.options.is_empty() && self.payload.is_empty()
    }

    /// A uint option.
    pub(crate) fn uint(&self, number: u16) -> Option<u64> {
        let (_, value) = self.options.iter().find(|(found, _)| *found == number)?;
        Some(value.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.payload).unwrap()
    }
}

pub(crate) fn parse(bytes: &[u8]) -> Message {
    assert_eq!(bytes[0] >> 6, 1, "version of {bytes:02x?}");
    let token_end = 4 + usize::from(bytes[0] & 15);
    let mut rest = &bytes[token_end..];
    let mut options = Vec::new();
    let mut number = 0;
    while let Some(&first) = rest.first().filter(|first| **first != 0xff) {
        rest = &rest[1..];
        let mut extended = |nibble: u8| match nibble {
            13 => {
                let value = 13 + u16::from(rest[0]);
                rest = &rest[1..];
                value
            }
            14 => {
                let value = 269 + u16::from_be_bytes([rest[0], rest[1]]);
                rest = &rest[2..];
                value
            }
            nibble => u16::from(nibble),
        };
        number += extended(first >> 4);
        let length = usize::from(extended(first & 15));
        options.push((number, rest[..length].to_vec()));
        rest = &rest[length..];
    }
    let payload = rest.get(1..).unwrap_or_default().to_vec();
    assert_eq!(rest.is_empty(), payload.is_empty(), "payload of {bytes:02x?}");
    Message {
        kind: bytes[0] >> 4 & 3,
        code: format!("{}.{:02}", bytes[1] >> 5, bytes[1] & 31),
        mid: u16::from_be_bytes([bytes[2], bytes[3]]),
        token: bytes[4..token_end].to_vec(),
        options,
        payload,
    }
}

/// A server, its clock, and one peer that most tests use.
pub(crate) struct Rig {
    pub(crate) server: Server,
    pub(crate) now: Instant,
    pub(crate) lost: Vec<Lost>,
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::with(Config::default())
    }

    pub(crate) fn with(config: Config) -> Self {
        Self { server: Server::new(config, 42), now: epoch(), lost: Vec::new() }
    }

    pub(crate) fn send(&mut self, datagram: &[u8]) {
        self.send_from(peer(0), datagram);
    }

    pub(crate) fn send_from(&mut self, from: SocketAddr, datagram: &[u8]) {
        self.server.handle_datagram(self.now, from, datagram);
    }

    /// The request that was delivered, if one was; what was lost is put aside.
    pub(crate) fn request(&mut self) -> Option<Request> {
        while let Some(event) = self.server.poll_event() {
            match event {
                Event::Request(request) => return Some(request),
                Event::ResponseLost { cause, .. } => self.lost.push(cause),
            }
        }
        None
    }

    /// Everything that was sent since the last time.
    pub(crate) fn sent(&mut self) -> Vec<Message> {
        std::iter::from_fn(|| self.server.poll_transmit()).map(|(_, bytes)| parse(&bytes)).collect()
    }

    /// The one message that was sent.
    pub(crate) fn reply(&mut self) -> Message {
        let mut sent = self.sent();
        assert_eq!(sent.len(), 1, "{sent:?}");
        sent.remove(0)
    }

    /// Lets time pass, and each timer fire at its own.
    pub(crate) fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.server.poll_timeout().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.server.handle_timeout(self.now);
        }
        self.now = end;
    }

    /// Sends a request, takes it, and lets it wait until its empty ACK has gone out.
    pub(crate) fn acknowledged(&mut self, mid: u16, token: &[u8]) -> Request {
        self.send(&post(CON, mid, token));
        let request = self.request().unwrap();
        self.wait(Duration::from_millis(600));
        let ack = self.sent().pop().unwrap();
        assert!(ack.is_empty() && (ack.kind, ack.mid) == (ACK, mid), "{ack:?}");
        request
    }

    /// Every datagram is counted once.
    pub(crate) fn assert_counted(&self) {
        let stats = self.server.stats();
        let known = stats.requests
            + stats.duplicates
            + stats.pings
            + stats.acknowledged
            + stats.resets
            + stats.refused_in_all();
        assert_eq!(stats.datagrams, known, "{stats:?}");
    }
}
