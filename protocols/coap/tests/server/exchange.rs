//! Exchanges as RFC 7252 tells them: piggybacked, separate, confirmable or not, with duplicates and losses.

use std::time::Duration;

use bytes::Bytes;
use fieldgate_coap::{Code, Config, Gone, Lost, Method, Refusal, Response};

use crate::support::*;

const SECOND: Duration = Duration::from_secs(1);

fn content(text: &'static str) -> Response {
    Response { payload: Bytes::from_static(text.as_bytes()), ..Response::new(Code::CONTENT) }
}

/// RFC 7252 appendix A, figures 16 and 17.
#[test]
fn a_piggybacked_response_as_in_the_specification() {
    for token in [&[][..], &[0x20]] {
        let mut rig = Rig::new();
        let request = [&[0x40 | token.len() as u8, 0x01, 0x7d, 0x34], token, b"\xbbtemperature"].concat();
        rig.send(&request);
        let request = rig.request().unwrap();
        assert_eq!((request.method, request.confirmable, request.peer), (Method::Get, true, peer(0)));
        assert_eq!(request.path.iter().collect::<Vec<_>>(), ["temperature"]);
        rig.server.respond(rig.now, request.exchange, content("22.3 C")).unwrap();
        let (to, response) = rig.server.poll_transmit().unwrap();
        let expected = [&[0x60 | token.len() as u8, 0x45, 0x7d, 0x34], token, b"\xff22.3 C"].concat();
        assert_eq!((to, &response[..]), (peer(0), &expected[..]));
    }
}

/// RFC 7252 appendix A, figure 20.
#[test]
fn a_separate_response_as_in_the_specification() {
    let mut rig = Rig::new();
    rig.send(b"\x41\x01\x7d\x38\x53\xbbtemperature");
    let request = rig.request().unwrap();
    rig.wait(Duration::from_millis(499));
    assert_eq!(rig.sent(), []);
    rig.wait(Duration::from_millis(1));
    assert_eq!(rig.server.poll_transmit().unwrap().1, b"\x60\x00\x7d\x38"[..]);
    rig.wait(3 * SECOND);
    rig.server.respond(rig.now, request.exchange, content("22.3 C")).unwrap();
    let (_, response) = rig.server.poll_transmit().unwrap();
    assert_eq!(response[..2], *b"\x41\x45");
    assert_eq!(response[4..], *b"\x53\xff22.3 C");
    assert_eq!(rig.server.open_exchanges(), 1);
    rig.send(&[0x60, 0x00, response[2], response[3]]);
    assert_eq!(rig.server.open_exchanges(), 0);
    rig.wait(200 * SECOND);
    assert_eq!((rig.sent(), rig.request().is_none(), rig.lost.len()), (vec![], true, 0));
}

/// RFC 7252 appendix A, figure 22: a NON request gets a NON response with another message ID.
#[test]
fn a_non_request_gets_a_non_response() {
    let mut rig = Rig::new();
    for delay in [Duration::ZERO, 5 * SECOND] {
        rig.send(&datagram(NON, 1, 0x7d40, &[0x75], &[(URI_PATH, b"temperature")], b""));
        let request = rig.request().unwrap();
        assert!(!request.confirmable);
        rig.wait(delay);
        rig.server.respond(rig.now, request.exchange, content("22.3 C")).unwrap();
        let response = rig.reply();
        assert_eq!((response.kind, &response.code[..], &response.token[..]), (NON, "2.05", &[0x75][..]));
        assert_ne!(response.mid, 0x7d40);
        // Its duplicates get nothing, and are not delivered.
        rig.send(&datagram(NON, 1, 0x7d40, &[0x75], &[(URI_PATH, b"temperature")], b""));
        assert_eq!((rig.request().is_none(), rig.sent()), (true, vec![]));
        rig.wait(146 * SECOND);
    }
    assert_eq!(rig.server.stats().requests, 2);
}

#[test]
fn a_request_is_read_whole() {
    let mut rig = Rig::new();
    let options: [(u16, &[u8]); 9] = [
        (3, b"gateway.example"),
        (7, &[0x16, 0x33]),
        (URI_PATH, b"a/b"),
        (URI_PATH, b""),
        (URI_PATH, "ü".as_bytes()),
        (CONTENT_FORMAT, &[0x2d, 0x16]),
        (15, b"x=1&2"),
        (15, b"y"),
        (17, &[60]),
    ];
    rig.send(&datagram(CON, 3, 1, b"12345678", &options, &[0xff, 0, 0xff]));
    let request = rig.request().unwrap();
    assert_eq!(request.method, Method::Put);
    assert_eq!(request.path.iter().collect::<Vec<_>>(), ["a/b", "", "ü"]);
    assert_eq!(request.query.iter().collect::<Vec<_>>(), ["x=1&2", "y"]);
    assert_eq!((request.content_format, request.accept), (Some(11_542), Some(60)));
    assert_eq!(request.payload, [0xff, 0, 0xff][..]);
}

#[test]
fn the_options_of_a_response_are_written() {
    let mut rig = Rig::new();
    rig.send(&post(CON, 1, b"t"));
    let request = rig.request().unwrap();
    let response = Response {
        content_format: Some(50),
        max_age: Some(30 * SECOND),
        payload: Bytes::from_static(b"{}"),
        ..Response::new(Code::TOO_MANY_REQUESTS)
    };
    rig.server.respond(rig.now, request.exchange, response).unwrap();
    let response = rig.reply();
    assert_eq!((&response.code[..], response.uint(12), response.uint(14)), ("4.29", Some(50), Some(30)));
    assert_eq!(response.text(), "{}");
}

#[test]
fn a_duplicate_is_answered_again_and_never_delivered_again() {
    let mut rig = Rig::new();
    let post = post(CON, 7, b"tok");
    rig.send(&post);
    let request = rig.request().unwrap();
    rig.send(&post); // in progress, not acknowledged: the answer is coming
    assert_eq!(rig.sent(), []);
    rig.server.respond(rig.now, request.exchange, Response::new(Code::CHANGED)).unwrap();
    let first = rig.reply();
    for _ in 0..3 {
        rig.wait(60 * SECOND);
        rig.send(&post);
        assert_eq!(rig.reply(), first);
        assert!(rig.request().is_none());
    }
    assert_eq!(rig.server.respond(rig.now, request.exchange, Response::new(Code::CHANGED)), Err(Gone));
    // EXCHANGE_LIFETIME is over: the message ID is a new message's.
    rig.wait(70 * SECOND);
    rig.send(&post);
    assert!(rig.request().is_some());
    assert_eq!((rig.server.stats().requests, rig.server.stats().duplicates), (2, 4));
    rig.assert_counted();
}

#[test]
fn a_duplicate_of_an_acknowledged_request_is_acknowledged_again() {
    let mut rig = Rig::new();
    let request = rig.acknowledged(7, b"tok");
    rig.send(&post(CON, 7, b"tok"));
    let ack = rig.reply();
    assert!(ack.is_empty() && (ack.kind, ack.mid) == (ACK, 7));
    rig.server.respond(rig.now, request.exchange, Response::new(Code::CHANGED)).unwrap();
    let response = rig.reply();
    assert_eq!((response.kind, &response.code[..]), (CON, "2.04"));
    rig.send(&post(CON, 7, b"tok")); // while the response is under way
    assert!(rig.reply().is_empty());
    rig.send(&datagram(ACK, 0, response.mid, b"", &[], b""));
    rig.send(&post(CON, 7, b"tok")); // and after it has arrived
    assert!(rig.reply().is_empty());
    assert_eq!(rig.server.stats().requests, 1);
    rig.assert_counted();
}

#[test]
fn a_separate_response_is_sent_five_times_with_doubling_waits() {
    let mut rig = Rig::new();
    let request = rig.acknowledged(7, b"tok");
    rig.server.respond(rig.now, request.exchange, Response::new(Code::CHANGED)).unwrap();
    let first = rig.reply();
    let mut waits = Vec::new();
    while rig.server.open_exchanges() > 0 {
        let due = rig.server.poll_timeout().unwrap();
        waits.push(due - rig.now);
        rig.now = due;
        rig.server.handle_timeout(rig.now);
        let again = rig.sent();
        assert_eq!(again, if waits.len() < 5 { vec![first.clone()] } else { vec![] });
    }
    assert_eq!(waits.len(), 5);
    assert!((2 * SECOND..=3 * SECOND).contains(&waits[0]), "{waits:?}");
    assert!(waits.windows(2).all(|pair| pair[1] == pair[0] * 2), "{waits:?}");
    assert!(rig.request().is_none());
    assert_eq!(rig.lost, [Lost::TimedOut]);
    // The peer comes back after all: it gets its answer with the ACK.
    rig.send(&post(CON, 7, b"tok"));
    let late = rig.reply();
    assert_eq!((late.kind, late.mid, &late.code[..], &late.token[..]), (ACK, 7, "2.04", &b"tok"[..]));
    assert_eq!(rig.server.stats().retransmissions, 4);
}

#[test]
fn reset_ends_a_separate_response() {
    let mut rig = Rig::new();
    let request = rig.acknowledged(7, b"tok");
    rig.server.respond(rig.now, request.exchange, Response::new(Code::CHANGED)).unwrap();
    let response = rig.reply();
    rig.send(&datagram(RST, 0, response.mid.wrapping_add(1), b"", &[], b""));
    assert_eq!(rig.server.open_exchanges(), 1);
    rig.send_from(peer(1), &datagram(RST, 0, response.mid, b"", &[], b""));
    assert_eq!(rig.server.open_exchanges(), 1);
    rig.send(&datagram(RST, 0, response.mid, b"", &[], b""));
    assert_eq!(rig.server.open_exchanges(), 0);
    rig.wait(100 * SECOND);
    assert_eq!((rig.sent(), rig.request().is_none(), &rig.lost[..]), (vec![], true, &[Lost::Reset][..]));
    assert_eq!(rig.server.stats().refused(Refusal::Unmatched), 2);
    rig.assert_counted();
}

#[test]
fn one_separate_response_at_a_time() {
    let mut rig = Rig::new();
    let requests = [1, 2, 3].map(|mid| rig.acknowledged(mid, &[mid as u8]));
    for request in &requests {
        rig.server.respond(rig.now, request.exchange, Response::new(Code::CHANGED)).unwrap();
    }
    for token in 1..=3 {
        let response = rig.reply();
        assert_eq!(response.token, [token]);
        rig.send(&datagram(ACK, 0, response.mid, b"", &[], b""));
    }
    assert_eq!((rig.server.open_exchanges(), rig.sent()), (0, vec![]));
    // A peer that is gone is given up with all that waits for it.
    let requests = [4, 5, 6].map(|mid| rig.acknowledged(mid, &[mid as u8]));
    for request in &requests {
        rig.server.respond(rig.now, request.exchange, Response::new(Code::CHANGED)).unwrap();
    }
    rig.wait(93 * SECOND);
    assert_eq!((rig.server.open_exchanges(), rig.sent().len(), rig.request().is_none()), (0, 5, true));
    assert_eq!(rig.lost, [Lost::TimedOut; 3]);
}

/// Cheap firmware begins with the same message ID after every start.
#[test]
fn a_device_that_starts_anew_is_heard() {
    let mut rig = Rig::new();
    rig.send(&post(CON, 1, b"a"));
    let before = rig.request().unwrap();
    rig.send(&post(CON, 1, b"b"));
    let after = rig.request().unwrap();
    // The answer to what it no longer knows is void, and cannot be taken for that of the new request.
    assert_eq!(rig.server.respond(rig.now, before.exchange, Response::new(Code::FORBIDDEN)), Err(Gone));
    assert_eq!(rig.sent(), []);
    rig.server.respond(rig.now, after.exchange, Response::new(Code::CHANGED)).unwrap();
    assert_eq!(rig.reply().token, b"b");
    // Also after an answer, and while a separate one is under way.
    rig.send(&post(CON, 1, b"c"));
    let request = rig.request().unwrap();
    rig.wait(SECOND);
    rig.server.respond(rig.now, request.exchange, Response::new(Code::CHANGED)).unwrap();
    assert_eq!(rig.sent().len(), 2);
    rig.send(&post(CON, 1, b"d"));
    assert!(rig.request().is_some());
    assert_eq!((&rig.lost[..], rig.server.stats().superseded), (&[Lost::Superseded][..], 3));
    assert_eq!((rig.server.open_exchanges(), rig.server.exchanges(), rig.server.peers()), (1, 1, 1));
    // A datagram that is refused makes nothing void.
    rig.send(&datagram(CON, POST, 1, b"e", &[(27, &[0])], b""));
    assert_eq!(rig.reply().code, "4.02");
    assert_eq!(rig.server.open_exchanges(), 1);
    rig.assert_counted();
}

#[test]
fn no_response_is_obeyed() {
    for (kind, bits, code, answered) in [
        (CON, 2u8, Code::CHANGED, false),
        (CON, 2, Code::NOT_FOUND, true),
        (NON, 26, Code::CHANGED, false),
        (NON, 26, Code::GATEWAY_TIMEOUT, false),
        (NON, 2, Code::GATEWAY_TIMEOUT, true),
    ] {
        let mut rig = Rig::new();
        rig.send(&datagram(kind, POST, 1, b"t", &[(URI_PATH, b"t"), (258, &[bits])], b"x"));
        let request = rig.request().unwrap();
        rig.server.respond(rig.now, request.exchange, Response::new(code)).unwrap();
        let sent = rig.sent();
        assert_eq!(sent.iter().any(|message| !message.is_empty()), answered, "{kind} {bits} {code}");
        assert_eq!(sent.len(), usize::from(answered || kind == CON));
        assert_eq!(rig.server.open_exchanges(), 0);
    }
    // After the empty ACK there is nothing left to say.
    let mut rig = Rig::new();
    rig.send(&datagram(CON, POST, 1, b"t", &[(URI_PATH, b"t"), (258, &[2])], b"x"));
    let request = rig.request().unwrap();
    rig.wait(SECOND);
    assert!(rig.reply().is_empty());
    rig.server.respond(rig.now, request.exchange, Response::new(Code::CHANGED)).unwrap();
    assert_eq!((rig.sent(), rig.server.open_exchanges()), (vec![], 0));
    assert_eq!(rig.server.stats().responses_suppressed, 1);
}

#[test]
fn what_is_never_answered_is_forgotten() {
    let mut rig = Rig::new();
    let request = rig.acknowledged(7, b"tok");
    rig.wait(249 * SECOND);
    assert_eq!((rig.server.open_exchanges(), rig.server.exchanges(), rig.server.peers()), (0, 0, 0));
    assert_eq!(rig.server.respond(rig.now, request.exchange, Response::new(Code::CHANGED)), Err(Gone));
    assert_eq!((rig.server.stats().unanswered, rig.server.poll_timeout()), (1, None));
}

#[test]
fn too_many_open_requests_are_refused_with_a_time() {
    let config = Config { max_open: 3, max_open_per_peer: 2, busy_max_age: 30 * SECOND, ..Config::default() };
    let mut rig = Rig::with(config);
    rig.send(&post(CON, 1, b"a"));
    rig.send(&post(CON, 2, b"b"));
    let first = rig.request().unwrap();
    rig.send(&post(CON, 3, b"c"));
    let refused = rig.reply();
    assert_eq!((&refused.code[..], refused.uint(14)), ("4.29", Some(30)));
    rig.send_from(peer(1), &post(CON, 1, b"d"));
    rig.send_from(peer(2), &post(CON, 1, b"e"));
    assert_eq!(rig.reply().code, "5.03");
    rig.send_from(peer(2), &post(NON, 2, b"f"));
    assert_eq!(rig.sent(), []);
    // There is room again; but who was refused stays refused, or would get two answers.
    rig.server.respond(rig.now, first.exchange, Response::new(Code::CHANGED)).unwrap();
    assert_eq!(rig.reply().code, "2.04");
    rig.send(&post(CON, 3, b"c"));
    assert_eq!(rig.reply(), refused);
    rig.send(&post(CON, 4, b"c"));
    assert_eq!(std::iter::from_fn(|| rig.request()).count(), 3);
    let stats = rig.server.stats();
    assert_eq!((stats.refused(Refusal::PeerBusy), stats.refused(Refusal::Busy)), (1, 2));
    rig.assert_counted();
}
