//! What must not harm: every datagram known to have harmed a CoAP server, cut ones, changed ones, floods.

use std::net::SocketAddr;
use std::time::Duration;

use fieldgate_coap::{Code, Config, Refusal, Response};

use crate::support::*;

/// What one datagram from `peer(0)` gets, how it is counted, and that the server lives on.
fn answer(bytes: &[u8], why: Refusal) -> Option<Message> {
    let mut rig = Rig::new();
    rig.send(bytes);
    assert!(rig.request().is_none(), "delivered: {:02x?}", &bytes[..bytes.len().min(40)]);
    assert_eq!(rig.server.stats().refused(why), 1, "{:?}", rig.server.stats());
    assert_eq!((rig.server.exchanges(), rig.server.poll_timeout()), (0, None));
    rig.assert_counted();
    let mut sent = rig.sent();
    assert!(sent.len() <= 1);
    rig.send(&post(CON, 0x7777, b"ok"));
    let request = rig.request().unwrap();
    rig.server.respond(rig.now, request.exchange, Response::new(Code::CHANGED)).unwrap();
    assert_eq!(rig.reply().code, "2.04");
    sent.pop()
}

fn is_reset(answer: Option<Message>, mid: u16) -> bool {
    answer.is_some_and(|answer| answer.is_empty() && answer.kind == RST && answer.mid == mid)
}

/// A datagram as CON gets RST, as NON silence.
fn assert_rejected(con: &[u8], why: Refusal) {
    let mid = u16::from_be_bytes([con[2], con[3]]);
    assert!(is_reset(answer(con, why), mid), "{con:02x?}");
    let mut non = con.to_vec();
    non[0] |= 0x10;
    assert_eq!(answer(&non, why), None, "{non:02x?}");
}

/// A request that is answered with this code: to a CON with its ACK, to a NON with a NON.
fn assert_answered(con: &[u8], why: Refusal, code: &str) -> Message {
    let token = &con[4..4 + usize::from(con[0] & 15)];
    let reply = answer(con, why).unwrap();
    assert_eq!((reply.kind, &reply.code[..], &reply.token[..]), (ACK, code, token));
    assert_eq!(reply.mid.to_be_bytes(), con[2..4]);
    let mut non = con.to_vec();
    non[0] |= 0x10;
    let of_non = answer(&non, why).unwrap();
    assert_eq!((of_non.kind, &of_non.code[..], &of_non.token[..]), (NON, code, token));
    reply
}

/// Killed `coap` 0.29: more than 1280 bytes of options. Within the bounds it is a good request.
#[test]
fn thirteen_hundred_bytes_of_options() {
    let segment = [b'p'; 254];
    let options: Vec<(u16, &[u8])> = vec![(URI_PATH, &segment); 5];
    let bytes = datagram(CON, POST, 1, b"t", &options, b"x");
    assert!((1281..=1472).contains(&bytes.len()));
    let mut rig = Rig::new();
    rig.send(&bytes);
    let request = rig.request().unwrap();
    assert_eq!((request.path.len(), request.path.get(4).map(str::len)), (5, Some(254)));
    rig.server.respond(rig.now, request.exchange, Response::new(Code::NOT_FOUND)).unwrap();
    assert_eq!(rig.reply().code, "4.04");
    // And above them it is too large.
    let options: Vec<(u16, &[u8])> = vec![(URI_PATH, &segment); 6];
    assert_answered(&datagram(CON, POST, 1, b"t", &options, b"x"), Refusal::TooLarge, "4.13");
}

/// Killed `coap` 0.29: options of exactly 1140 bytes and a Block1 (a division by zero).
#[test]
fn options_of_1140_bytes_and_a_block() {
    let segment = [b'p'; 255];
    for last in 210..=230 {
        // Two bytes of header each, and three bytes of Block1.
        let bytes_of_options = 4 * (226 + 2) + (last + 2) + 3;
        let mut options: Vec<(u16, &[u8])> = vec![(URI_PATH, &segment[..226]); 4];
        options.extend([(URI_PATH, &segment[..last]), (27, &[0x0e][..])]);
        let bytes = datagram(CON, POST, 1, b"t", &options, b"x");
        assert_eq!(bytes.len(), 4 + 1 + bytes_of_options + 2);
        assert!((1127..=1147).contains(&bytes_of_options));
        let reply = answer(&bytes, Refusal::Option).unwrap();
        assert_eq!((reply.kind, &reply.code[..], reply.text()), (ACK, "4.02", "option 27 not supported"));
    }
}

#[test]
fn blocks_of_every_kind() {
    // In the middle without a first one; beyond 4096 (three bytes); SZX 7; and of a response.
    for (number, value) in [(27, &[0x3a][..]), (27, &[1, 0, 0x0a]), (27, &[0x0f]), (23, &[0x06]), (19, &[0])]
    {
        let bytes = datagram(CON, POST, 1, b"t", &[(URI_PATH, b"t"), (number, value)], b"x");
        assert_eq!(answer(&bytes, Refusal::Option).unwrap().code, "4.02");
    }
}

/// Ended the receive loop of `coap` 0.29: an answer to port 0 is EINVAL.
#[test]
fn sources_that_cannot_be_answered() {
    let mut rig = Rig::new();
    let sources =
        ["198.51.100.7:0", "[2001:db8::7]:0", "255.255.255.255:5683", "224.0.1.187:5683", "[ff05::fd]:5683"];
    for source in sources {
        rig.send_from(source.parse::<SocketAddr>().unwrap(), &post(CON, 1, b"t"));
        rig.send_from(source.parse::<SocketAddr>().unwrap(), &[0x40, 0, 0, 1]);
    }
    assert_eq!((rig.request().is_none(), rig.sent()), (true, vec![]));
    assert_eq!(rig.server.stats().refused(Refusal::Source), 2 * sources.len() as u64);
    rig.assert_counted();
}

#[test]
fn a_ping_gets_a_reset() {
    let mut rig = Rig::new();
    rig.send(&[0x40, 0, 0xab, 0xcd]);
    let pong = rig.reply();
    assert!(pong.is_empty() && (pong.kind, pong.mid) == (RST, 0xabcd));
    assert_eq!(rig.server.stats().pings, 1);
    assert_eq!(answer(&[0x50, 0, 0xab, 0xcd], Refusal::Format), None);
}

#[test]
fn other_versions_and_stumps_are_passed_over() {
    for version in [0, 2, 3] {
        let mut bytes = post(CON, 1, b"t");
        bytes[0] = bytes[0] & 0x3f | version << 6;
        assert_eq!(answer(&bytes, Refusal::Version), None);
    }
    for length in 0..4 {
        assert_eq!(answer(&post(CON, 1, b"t")[..length], Refusal::Short), None);
    }
}

/// Cost `coap-lite` 34 and 76 microseconds each.
#[test]
fn a_datagram_of_nothing_but_options() {
    let mut empty_options = vec![0x40, POST, 0, 1];
    empty_options.resize(1472, 0x00);
    let reply = assert_answered(&empty_options, Refusal::TooManyOptions, "4.00");
    assert_eq!(reply.text(), "more than 64 options");
    let mut distinct_options = vec![0x40, POST, 0, 1];
    distinct_options.resize(1470, 0x20);
    assert_answered(&distinct_options, Refusal::TooManyOptions, "4.00");
    let sixty_four: Vec<(u16, &[u8])> = vec![(URI_PATH, b"s"); 64];
    let mut rig = Rig::new();
    rig.send(&datagram(CON, POST, 1, b"", &sixty_four, b""));
    assert_eq!(rig.request().unwrap().path.len(), 64);
}

#[test]
fn a_datagram_of_sixty_kilobytes() {
    let mut bytes = post(CON, 1, b"tok");
    bytes.resize(60_000, 0);
    let reply = assert_answered(&bytes, Refusal::TooLarge, "4.13");
    assert_eq!(reply.uint(60), Some(1344));
    // As the driver's buffer may have cut it.
    assert_answered(&bytes[..1473], Refusal::TooLarge, "4.13");
    // Of no valid token, and no request at all.
    bytes[0] = 0x4f;
    assert_rejected(&bytes, Refusal::Format);
    bytes[..2].copy_from_slice(&[0x40, 0x45]);
    assert_rejected(&bytes, Refusal::Unmatched);
}

#[test]
fn tokens_of_nine_to_fifteen_bytes() {
    for length in 9..=15 {
        let mut bytes = vec![0x40 | length, POST, 0, 9];
        bytes.resize(200, 1);
        assert_rejected(&bytes, Refusal::Format);
        assert_rejected(&bytes[..4], Refusal::Format);
    }
    for length in 1..=8 {
        let mut bytes = vec![0x40 | length, POST, 0, 9];
        bytes.resize(3 + usize::from(length), 1);
        if bytes.len() >= 4 {
            assert_rejected(&bytes, Refusal::Format);
        }
    }
}

#[test]
fn a_payload_marker_without_payload() {
    assert_rejected(&[0x40, POST, 0, 1, 0xff], Refusal::Format);
    assert_rejected(&[0x42, POST, 0, 1, 7, 7, 0xb1, b't', 0xff], Refusal::Format);
}

#[test]
fn an_empty_message_with_content() {
    assert_rejected(&[0x40, 0, 0, 1, 0xff, b'x'], Refusal::Format);
    assert_rejected(&[0x40, 0, 0, 1, 0xb1, b't'], Refusal::Format);
    assert_rejected(&[0x42, 0, 0, 1, 7, 7], Refusal::Format);
}

#[test]
fn codes_of_reserved_classes() {
    for code in (0..=255u8).filter(|code| matches!(code >> 5, 1 | 6 | 7)) {
        assert_rejected(&[0x40, code, 0, 1], Refusal::ReservedClass);
        assert_eq!(answer(&[0x60, code, 0, 1], Refusal::ReservedClass), None);
    }
}

#[test]
fn methods_that_are_not_ours() {
    for code in 5..=31 {
        assert_answered(&datagram(CON, code, 1, b"t", &[(URI_PATH, b"t")], b"x"), Refusal::Method, "4.05");
    }
}

#[test]
fn responses_and_answers_that_nobody_waits_for() {
    for code in (64..192).step_by(3) {
        assert_rejected(&datagram(CON, code, 1, b"t", &[], b"x"), Refusal::Unmatched);
        assert_eq!(answer(&datagram(ACK, code, 1, b"t", &[], b"x"), Refusal::Unmatched), None);
    }
    for kind in [ACK, RST] {
        assert_eq!(answer(&datagram(kind, 0, 1, b"", &[], b""), Refusal::Unmatched), None);
        assert_eq!(answer(&post(kind, 1, b"t"), Refusal::Unmatched), None);
    }
}

/// An ACK or RST with content is rejected, which for them means silence: it ends no exchange.
#[test]
fn an_answer_with_content_matches_nothing() {
    let mut rig = Rig::new();
    let request = rig.acknowledged(7, b"tok");
    rig.server.respond(rig.now, request.exchange, Response::new(Code::CHANGED)).unwrap();
    let mid = rig.reply().mid;
    for kind in [ACK, RST] {
        rig.send(&datagram(kind, 0, mid, b"t", &[], b""));
        rig.send(&datagram(kind, 0, mid, b"", &[], b"x"));
        rig.send(&datagram(kind, 0x44, mid, b"tok", &[], b""));
    }
    assert_eq!((rig.server.open_exchanges(), rig.sent()), (1, vec![]));
}

#[test]
fn critical_options_that_are_unknown_or_wrong() {
    let long = [b'x'; 256];
    let wrong: [&[(u16, &[u8])]; 10] = [
        &[(1, b"etag")],             // If-Match
        &[(5, b"")],                 // If-None-Match
        &[(9, b"")],                 // OSCORE
        &[(3, b"")],                 // Uri-Host of no byte
        &[(3, b"a"), (3, b"a")],     // Uri-Host twice
        &[(7, &[0, 22, 51])],        // Uri-Port of three bytes
        &[(11, &long)],              // Uri-Path of 256 bytes
        &[(17, &[0]), (17, &[0])],   // Accept twice
        &[(65_001, b"x")],           // for experiments
        &[(11, b"t"), (2049, b"x")], // in the free range
    ];
    for options in wrong {
        let bytes = datagram(CON, POST, 1, b"t", options, b"x");
        let reply = answer(&bytes, Refusal::Option).unwrap();
        assert_eq!((reply.kind, &reply.code[..]), (ACK, "4.02"), "{options:?}");
        // RFC 7252 section 5.4.1: a NON is rejected.
        assert_eq!(answer(&datagram(NON, POST, 1, b"t", options, b"x"), Refusal::Option), None);
    }
}

#[test]
fn elective_options_that_are_unknown_or_wrong_are_passed_over() {
    let right: [&[(u16, &[u8])]; 6] = [
        &[(6, b"")],                    // Observe
        &[(12, &[0, 0, 50])],           // Content-Format of three bytes
        &[(12, &[50]), (12, &[60])],    // Content-Format twice
        &[(252, b"echo"), (292, b"r")], // Echo, Request-Tag
        &[(258, &[1, 2])],              // No-Response of two bytes
        &[(0, b""), (2, &[0; 700]), (65_000, b"x")],
    ];
    for options in right {
        let mut rig = Rig::new();
        rig.send(&datagram(CON, POST, 1, b"t", options, b"x"));
        let request = rig.request().unwrap_or_else(|| panic!("{options:?}"));
        let twice = options.len() == 2 && options[0].0 == 12;
        assert_eq!(request.content_format, twice.then_some(50));
        rig.server.respond(rig.now, request.exchange, Response::new(Code::CHANGED)).unwrap();
        assert_eq!(rig.reply().code, "2.04");
    }
}

#[test]
fn this_is_no_proxy() {
    for option in [(35, &b"coap://example.net/"[..]), (39, b"coap")] {
        assert_answered(&datagram(CON, POST, 1, b"t", &[option], b"x"), Refusal::Proxy, "5.05");
    }
}

#[test]
fn paths_that_are_no_text_or_walk() {
    for segment in [&b"\xff"[..], b"\xc3", b"\xed\xa0\x80", b".", b".."] {
        let bytes = datagram(CON, POST, 1, b"t", &[(URI_PATH, b"a"), (URI_PATH, segment)], b"x");
        assert_answered(&bytes, Refusal::Text, "4.00");
    }
    assert_answered(&datagram(CON, POST, 1, b"t", &[(15, b"q=\x80")], b"x"), Refusal::Text, "4.00");
}

#[test]
fn options_that_lie_about_their_length() {
    for options in [
        &[0xf0][..],
        &[0x0f],
        &[0xbe, 0xff, 0xff],
        &[0xbd, 0xff],
        &[0xb5, b't'],
        &[0xe0, 0xff, 0xff, 0xe0, 0xff, 0xff],
    ] {
        assert_rejected(&[&[0x40, POST, 0, 1], options].concat(), Refusal::Format);
    }
}

/// A little generator for the tests that change bytes.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

#[test]
fn a_request_cut_at_every_byte() {
    let whole =
        datagram(CON, POST, 1, b"token", &[(URI_PATH, b"devices"), (15, &[b'q'; 30]), (258, &[2])], b"body");
    for kind in [CON, NON] {
        for length in 4..whole.len() {
            let mut rig = Rig::new();
            let mut cut = whole[..length].to_vec();
            cut[0] |= kind << 4;
            rig.send(&cut);
            let request = rig.request();
            let sent = rig.sent();
            match (&request, kind) {
                (Some(request), _) => {
                    // Cut between two options or in the payload: nothing tells that it was cut.
                    assert!(b"body".starts_with(&request.payload));
                    assert!(request.path.iter().all(|segment| segment == "devices"));
                    assert_eq!(sent, []);
                }
                (None, CON) => assert!(sent.len() == 1 && sent[0].kind == RST, "{length}: {sent:?}"),
                (None, _) => assert_eq!(sent, []),
            }
            rig.assert_counted();
        }
    }
}

#[test]
fn changed_datagrams_do_no_harm() {
    let seeds = [
        post(CON, 1, b"token"),
        post(NON, 2, b""),
        datagram(
            CON,
            POST,
            3,
            b"12345678",
            &[(3, b"h"), (URI_PATH, &[b'p'; 200]), (258, &[26])],
            &[0xff; 60],
        ),
        datagram(CON, 1, 4, b"t", &[(6, b""), (23, &[6]), (35, b"coap://x"), (65_001, &[1; 300])], b""),
        datagram(ACK, 0, 5, b"", &[], b""),
    ];
    let config = Config { max_open: 50, max_exchanges: 300, ..Config::default() };
    let (max_reply, floor) = (config.reply_factor, config.reply_floor_bytes);
    let mut rig = Rig::with(config);
    let mut dice = Dice(0x00c0_ffee);
    let mut owed = Vec::new();
    for round in 0..60_000 {
        let mut bytes = seeds[dice.below(seeds.len())].clone();
        for _ in 0..dice.below(4) {
            let at = dice.below(bytes.len());
            match dice.below(4) {
                0 => bytes[at] = dice.below(256) as u8,
                1 => bytes[at] ^= 1 << dice.below(8),
                2 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, [0x00, 0x0d, 0xe0, 0xff][dice.below(4)]),
            }
        }
        rig.send_from(peer(dice.below(40) as u16), &bytes);
        let mut sent = 0;
        while let Some((_, reply)) = rig.server.poll_transmit() {
            sent += reply.len();
            parse(&reply);
        }
        assert!(sent <= floor.max(max_reply * bytes.len()), "{bytes:02x?}");
        owed.extend(std::iter::from_fn(|| rig.request()));
        if dice.below(3) == 0 && !owed.is_empty() {
            let request = owed.swap_remove(dice.below(owed.len()));
            // Gone where its peer has used the message ID again.
            let _ = rig.server.respond(rig.now, request.exchange, Response::new(Code::CHANGED));
        }
        if round % 16 == 0 {
            rig.wait(Duration::from_millis(dice.below(900) as u64));
            rig.sent();
        }
        assert!(rig.server.open_exchanges() <= 50 && rig.server.exchanges() <= 300);
    }
    rig.assert_counted();
    let stats = rig.server.stats();
    assert_eq!(stats.refused(Refusal::Disagreement), 0);
    assert!(
        stats.requests > 1_000 && stats.duplicates > 1_000 && stats.refused_in_all() > 1_000,
        "{stats:?}"
    );
    rig.wait(Duration::from_secs(600));
    assert_eq!((rig.server.exchanges(), rig.server.peers(), rig.server.poll_timeout()), (0, 0, None));
}

/// Everybody may write any sender: memory stays bounded, open requests are not pushed out.
#[test]
fn a_flood_from_many_addresses() {
    let mut rig = Rig::with(Config {
        max_open: 100,
        max_exchanges: 1_000,
        max_exchanges_per_peer: 50,
        ..Config::default()
    });
    rig.send_from(SocketAddr::from(([192, 0, 2, 1], 1)), &post(CON, 1, b"mine"));
    let mine = rig.request().unwrap();
    for number in 0..30_000u32 {
        let address = SocketAddr::from((number.to_be_bytes().map(|byte| byte | 1), 5683));
        rig.send_from(address, &post(CON, number as u16, b"t"));
        rig.server.poll_transmit();
        assert!(rig.server.exchanges() <= 1_000 && rig.server.peers() <= 1_000);
    }
    assert_eq!(rig.server.open_exchanges(), 100);
    rig.server.respond(rig.now, mine.exchange, Response::new(Code::CHANGED)).unwrap();
    assert_eq!(rig.reply().token, b"mine");
    // One address alone has its own bound.
    for number in 0..500 {
        rig.send_from(peer(1), &post(CON, number, b"t"));
    }
    rig.assert_counted();
    rig.wait(Duration::from_secs(600));
    assert_eq!((rig.server.exchanges(), rig.server.peers()), (0, 0));
}

/// What one datagram causes to be sent, in all, to an address that may be a victim's.
#[test]
fn no_amplification() {
    for text in [0, 10, 100, 1_000] {
        for delay in [0, 2] {
            let mut rig = Rig::new();
            let request = datagram(CON, POST, 1, b"12345678", &[(URI_PATH, b"t")], b"");
            rig.send(&request);
            let exchange = rig.request().unwrap().exchange;
            rig.wait(Duration::from_secs(delay));
            let response = Response::new(Code::SERVICE_UNAVAILABLE)
                .with_max_age(Duration::from_secs(86_400))
                .with_diagnostic("x".repeat(text));
            rig.server.respond(rig.now, exchange, response).unwrap();
            rig.wait(Duration::from_secs(200));
            let sent: usize =
                std::iter::from_fn(|| rig.server.poll_transmit()).map(|(_, bytes)| bytes.len()).sum();
            assert!((15..=136).contains(&sent), "{text} {delay}: {sent} bytes for {}", request.len());
        }
    }
}
