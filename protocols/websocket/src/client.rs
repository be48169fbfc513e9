//! The client's side of the handshake (RFC 6455 4.1).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use httparse::{EMPTY_HEADER, Status};
use thiserror::Error;

use crate::head::{MAX_FIELDS, accept, names, only};

/// The server did not make it a WebSocket.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// No HTTP.
    #[error("what it answers is not HTTP")]
    Malformed,
    /// An answer that says no.
    #[error("it answers {status}{}", in_words(.reason))]
    Status {
        /// The status code.
        status: u16,
        /// What the server says to it, as far as it can be shown.
        reason: String,
    },
    /// It says yes without having understood.
    #[error("its answer is none to a WebSocket client ({0} is missing or wrong)")]
    Handshake(&'static str),
    /// It would speak something else.
    #[error("it does not speak AMQP over WebSocket there by the name of {0} (subprotocol)")]
    Subprotocol(&'static str),
    /// It uses what was not offered.
    #[error("it uses a WebSocket extension that nobody offered")]
    Extension,
}

fn in_words(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(" ({reason})") }
}

/// A request that was sent.
#[derive(Debug)]
pub struct Request {
    key: String,
    subprotocol: &'static str,
}

impl Request {
    /// The request for `path` at `authority` (host, and port where it is not the scheme's own), to speak AMQP by the
    /// name of `subprotocol`; and its head. `random` is to be different for each.
    #[must_use]
    pub fn new(authority: &str, path: &str, subprotocol: &'static str, random: [u8; 16]) -> (Self, String) {
        let key = BASE64.encode(random);
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: {authority}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: {subprotocol}\r\n\r\n"
        );
        (Self { key, subprotocol }, head)
    }

    /// Judges the head of the answer, up to and with the empty line.
    ///
    /// # Errors
    /// Why it is no WebSocket.
    pub fn check(&self, head: &[u8]) -> Result<(), Refused> {
        let mut fields = [EMPTY_HEADER; MAX_FIELDS];
        let mut answer = httparse::Response::new(&mut fields);
        if !matches!(answer.parse(head), Ok(Status::Complete(_))) {
            return Err(Refused::Malformed);
        }
        let status = answer.code.unwrap_or_default();
        if status != 101 {
            return Err(Refused::Status { status, reason: printable(answer.reason.unwrap_or_default()) });
        }
        let fields = &*answer.headers;
        if !names(fields, "Upgrade", "websocket") {
            return Err(Refused::Handshake("Upgrade"));
        }
        if !names(fields, "Connection", "upgrade") {
            return Err(Refused::Handshake("Connection"));
        }
        if only(fields, "Sec-WebSocket-Accept") != Some(accept(&self.key).as_str()) {
            return Err(Refused::Handshake("Sec-WebSocket-Accept"));
        }
        if fields.iter().any(|field| field.name.eq_ignore_ascii_case("Sec-WebSocket-Extensions")) {
            return Err(Refused::Extension);
        }
        match only(fields, "Sec-WebSocket-Protocol") {
            Some(word) if word.eq_ignore_ascii_case(self.subprotocol) => Ok(()),
            _ => Err(Refused::Subprotocol(self.subprotocol)),
        }
    }
}

/// What may stand in a log: a peer chose it.
fn printable(reason: &str) -> String {
    reason.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SUBPROTOCOL, server};

    #[test]
    fn our_server_answers_our_client() {
        let (request, head) = Request::new("hub.example", crate::PATH, SUBPROTOCOL, [7; 16]);
        let answer = server::judge(head.as_bytes(), &server::AMQP).unwrap();
        assert_eq!(request.check(answer.as_bytes()), Ok(()));
        let (other, _) = Request::new("hub.example", crate::PATH, SUBPROTOCOL, [8; 16]);
        assert_eq!(other.check(answer.as_bytes()), Err(Refused::Handshake("Sec-WebSocket-Accept")));
        for (from, to, refused) in [
            ("Upgrade: websocket", "Upgrade: h2c", Refused::Handshake("Upgrade")),
            ("Connection: Upgrade", "Connection: close", Refused::Handshake("Connection")),
            ("AMQPWSB10", "mqtt", Refused::Subprotocol(SUBPROTOCOL)),
            ("Sec-WebSocket-Protocol", "X", Refused::Subprotocol(SUBPROTOCOL)),
            ("Upgrade", "Sec-WebSocket-Extensions: permessage-deflate\r\nUpgrade", Refused::Extension),
            ("HTTP/1.1", "SSH-2.0", Refused::Malformed),
        ] {
            assert_eq!(request.check(answer.replacen(from, to, 1).as_bytes()), Err(refused), "{to}");
        }
        for cut in 0..answer.len() {
            assert!(request.check(&answer.as_bytes()[..cut]).is_err());
        }
    }

    #[test]
    fn a_no_is_told_in_words_that_can_be_shown() {
        let (request, _) = Request::new("hub.example", "/x", SUBPROTOCOL, [7; 16]);
        let told = |head: &str| request.check(head.as_bytes()).unwrap_err().to_string();
        assert_eq!(told("HTTP/1.1 404 Not Found\r\n\r\n"), "it answers 404 (Not Found)");
        assert_eq!(told("HTTP/1.1 503\r\nServer: x\r\n\r\n"), "it answers 503");
        let long = told(&format!("HTTP/1.1 500 {}\r\n\r\n", "x".repeat(500)));
        assert!(long.len() < 120, "{long}");
    }
}
