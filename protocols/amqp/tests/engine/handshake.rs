//! From the first byte to both opens.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fieldgate_amqp::connection::{ClientSecurity, CloseReason, Connection, ConnectionConfig, Event};
use fieldgate_amqp::frame::ProtocolHeader;
use fieldgate_amqp::performative::{OpenOut, Performative, Role};
use fieldgate_amqp::sasl::{Mechanism, SaslCode};

use crate::pair::{Pair, attach, config, start};
use crate::raw::{Raw, closed, frames};

fn plain() -> ClientSecurity {
    ClientSecurity::Plain { user: "d1@sas.hub".into(), password: "SharedAccessSignature sr=h&sig=x".into() }
}

#[test]
fn every_security_opens_at_every_cut() {
    let all = [
        (ClientSecurity::Bare, None),
        (ClientSecurity::Anonymous, Some(Mechanism::Anonymous)),
        (plain(), Some(Mechanism::Plain)),
        (ClientSecurity::External, Some(Mechanism::External)),
        (ClientSecurity::Mssbcbs, Some(Mechanism::Mssbcbs)),
    ];
    for (security, expected) in all {
        for piece in [0, 1, 3, 20] {
            let mut pair = Pair::silent(security.clone(), config(), config()).seeded(7, piece);
            pair.run();
            assert!(pair.client.connection.is_open(), "{security:?} in pieces of {piece}");
            assert!(pair.server.connection.is_open());
            let init = pair.server.events.iter().find_map(|event| match event {
                Event::SaslInit { mechanism, plain, .. } => Some((*mechanism, plain.clone())),
                _ => None,
            });
            assert_eq!(init.as_ref().map(|init| init.0), expected);
            if expected == Some(Mechanism::Plain) {
                let credentials = init.unwrap().1.unwrap();
                assert_eq!(credentials.user, "d1@sas.hub");
                assert_eq!(credentials.password, "SharedAccessSignature sr=h&sig=x");
            }
        }
    }
}

#[test]
fn both_learn_what_the_other_said() {
    let client = ConnectionConfig { hostname: Some("hub.example".into()), channel_max: 9, ..config() };
    let server = ConnectionConfig { max_frame_bytes: 4096, container_id: "hub".into(), ..config() };
    let pair = Pair::open_with(client, server);
    let open = pair.server.connection.remote_open().unwrap();
    assert_eq!((open.container_id(), open.hostname()), ("test", Some("hub.example")));
    assert_eq!(open.idle_time_out(), Some(Duration::from_secs(120)));
    assert_eq!(pair.server.connection.channel_max(), 9);
    assert_eq!(pair.client.connection.peer_max_frame_bytes(), 4096);
}

#[test]
fn wrong_credentials_end_the_connection() {
    let mut pair = Pair::silent(plain(), config(), config());
    pair.server.answers = false;
    pair.run();
    pair.server.connection.sasl_outcome(SaslCode::Auth);
    pair.run();
    for side in [&pair.client, &pair.server] {
        assert_eq!(closed(&side.events), Some(&CloseReason::SaslFailed(Some(SaslCode::Auth))));
        assert!(side.connection.is_closed());
    }
}

#[test]
fn a_mechanism_that_is_not_offered_is_not_asked_for() {
    let now = start();
    let mut pair = Pair::silent(ClientSecurity::External, config(), config());
    pair.server.connection = Connection::server(Arc::new(config()), &[Mechanism::Plain], false, now);
    pair.run();
    assert_eq!(closed(&pair.client.events), Some(&CloseReason::SaslFailed(None)));
    assert!(pair.server.events.is_empty());
}

#[test]
fn an_unknown_mechanism_or_a_bad_response_is_refused() {
    let inits: [&[u8]; 4] = [
        b"\0\x53\x41\xc0\x0a\x03\xa3\x05LOGIN\x40\x40",
        b"\0\x53\x41\xc0\x0a\x03\xa3\x05PLAIN\x40\x40",
        b"\0\x53\x41\xc0\x0f\x03\xa3\x05PLAIN\xa0\x04\0a\0\0\x40",
        b"\0\x53\x41\xc0\x04\x03\x40\x40\x40",
    ];
    for init in inits {
        let mut raw = Raw::unopened(config());
        raw.bytes(&ProtocolHeader::Sasl.bytes());
        let mut bytes = vec![0, 0, 0, u8::try_from(init.len() + 8).unwrap(), 2, 1, 0, 0];
        bytes.extend_from_slice(init);
        let events = raw.bytes(&bytes);
        assert_eq!(closed(&events), Some(&CloseReason::SaslFailed(Some(SaslCode::Auth))), "{init:?}");
        let output = raw.connection.poll_transmit().unwrap();
        assert!(output.ends_with(b"\0\x53\x44\xc0\x04\x02\x50\x01\x40"));
    }
}

#[test]
fn nothing_is_decoded_before_the_credentials_are_judged() {
    let mut server = Raw::unopened(config());
    server.answers = false;
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&ProtocolHeader::Sasl.bytes());
    bytes.extend_from_slice(b"\0\0\0\x1b\x02\x01\0\0\0\x53\x41\xc0\x0e\x03\xa3\x09ANONYMOUS\x40\x40");
    bytes.extend_from_slice(&ProtocolHeader::Amqp.bytes());
    bytes.extend_from_slice(&crate::raw::frame(0, |out| {
        out.extend_from_slice(OpenOut { container_id: "c", ..OpenOut::default() }.build().encoded());
    }));
    let events = server.bytes(&bytes);
    assert!(matches!(events[..], [Event::SaslInit { mechanism: Mechanism::Anonymous, .. }]), "{events:?}");
    assert!(server.connection.poll_event().is_none());
    server.connection.sasl_outcome(SaslCode::Ok);
    assert!(matches!(server.connection.poll_event(), Some(Event::Opened(_))));
    assert!(server.connection.poll_event().is_none());
}

#[test]
fn input_is_not_wanted_without_end_while_an_answer_is_owed() {
    let mut raw = Raw::unopened(config());
    raw.answers = false;
    raw.bytes(&ProtocolHeader::Amqp.bytes());
    raw.frame(0, |out| {
        out.extend_from_slice(OpenOut { container_id: "c", ..OpenOut::default() }.build().encoded());
    });
    assert!(raw.connection.wants_input());
    raw.bytes(&[0; 65_536]);
    assert!(!raw.connection.wants_input());
}

#[test]
fn a_wrong_header_is_answered_with_the_right_one() {
    let cases: [(&[u8; 8], bool, [u8; 8]); 5] = [
        (b"AMQP\x02\x01\x00\x00", true, ProtocolHeader::Sasl.bytes()),
        (b"AMQP\x00\x00\x09\x01", true, ProtocolHeader::Sasl.bytes()),
        (b"GET / HT", true, ProtocolHeader::Sasl.bytes()),
        (b"AMQP\x00\x01\x00\x00", false, ProtocolHeader::Sasl.bytes()),
        (b"AMQP\x03\x01\x00\x01", false, ProtocolHeader::Sasl.bytes()),
    ];
    for (header, allow_bare, right) in cases {
        let mut server = Connection::server(Arc::new(config()), &Mechanism::ALL, allow_bare, start());
        server.handle_input(start(), Bytes::copy_from_slice(header));
        let event = server.poll_event();
        assert!(matches!(event, Some(Event::Closed(CloseReason::Header(it))) if it == *header), "{header:?}");
        assert_eq!(server.poll_transmit().unwrap(), right[..]);
    }
    let mut server = Connection::server(Arc::new(config()), &[], true, start());
    server.handle_input(start(), Bytes::copy_from_slice(&ProtocolHeader::Sasl.bytes()));
    assert!(matches!(server.poll_event(), Some(Event::Closed(CloseReason::Header(_)))));
    assert_eq!(server.poll_transmit().unwrap(), ProtocolHeader::Amqp.bytes()[..]);
}

#[test]
fn a_client_gives_up_on_another_protocol() {
    let mut pair = Pair::silent(ClientSecurity::Anonymous, config(), config());
    pair.client.connection.handle_input(pair.now, Bytes::from_static(b"AMQP\x00\x01\x00\x00"));
    pair.client.drain();
    assert!(matches!(closed(&pair.client.events), Some(CloseReason::Header(_))));
}

#[test]
fn frames_wait_until_both_have_opened() {
    let mut pair = Pair::silent(ClientSecurity::Bare, config(), config());
    let client = &mut pair.client.connection;
    let session = client.begin().unwrap();
    assert!(client.begin().is_err(), "channel-max of the peer is not known yet");
    client.attach(session, &attach("early", Role::Sender)).unwrap();
    let first = client.poll_transmit().unwrap();
    assert!(matches!(frames(first.clone())[..], [(0, Performative::Open(_))]));
    pair.server.connection.handle_input(pair.now, first);
    pair.run();
    assert!(matches!(
        pair.client.events[..],
        [
            Event::Opened(_),
            Event::SessionBegun { by_peer: false, .. },
            Event::Attached { by_peer: false, .. }
        ]
    ));
}

#[test]
fn a_frame_that_waited_must_fit_the_peer() {
    let server = ConnectionConfig { max_frame_bytes: 512, ..config() };
    let mut pair = Pair::silent(ClientSecurity::Bare, config(), server);
    let session = pair.client.connection.begin().unwrap();
    let name = "n".repeat(600);
    pair.client.connection.attach(session, &attach(&name, Role::Sender)).unwrap();
    pair.run();
    assert!(matches!(closed(&pair.client.events), Some(CloseReason::Violation(_))));
    assert!(matches!(closed(&pair.server.events), Some(CloseReason::Remote(Some(_)))));
}

#[test]
fn every_field_of_open_is_there_and_the_engine_says_its_own_limits() {
    let mut pair = Pair::silent(ClientSecurity::Bare, config(), config());
    let written = frames(pair.client.connection.poll_transmit().unwrap());
    let [(0, Performative::Open(open))] = &written[..] else { panic!("{written:?}") };
    assert_eq!(open.composite().len(), 10);
    assert_eq!((open.max_frame_size(), open.channel_max()), (65_536, 255));
}

#[test]
fn a_small_max_frame_size_is_refused() {
    let mut raw = Raw::unopened(config());
    raw.bytes(&ProtocolHeader::Amqp.bytes());
    let open = OpenOut { container_id: "c", max_frame_size: 511, ..OpenOut::default() }.build();
    raw.frame(0, |out| out.extend_from_slice(open.encoded()));
    assert_eq!(raw.closed_with().as_deref(), Some("amqp:invalid-field"));
}

#[test]
fn a_peer_that_does_not_open_in_time_is_dropped() {
    for header in [false, true] {
        let mut raw = Raw::unopened(config());
        if header {
            raw.bytes(&ProtocolHeader::Amqp.bytes());
        }
        let due = raw.connection.poll_timeout().unwrap();
        assert_eq!(due - raw.now, Duration::from_secs(10));
        raw.connection.handle_timeout(due - Duration::from_millis(1));
        assert!(raw.connection.poll_event().is_none());
        raw.connection.handle_timeout(due);
        assert!(matches!(raw.connection.poll_event(), Some(Event::Closed(CloseReason::TimedOut))));
        assert!(raw.connection.is_closed());
    }
}

#[test]
fn the_time_that_we_take_to_judge_is_not_the_peers() {
    let mut pair = Pair::silent(plain(), config(), config());
    pair.server.answers = false;
    pair.run();
    assert_eq!(pair.server.connection.poll_timeout(), None);
    pair.server.connection.sasl_outcome(SaslCode::Ok);
    // From here on it runs again, from the first moment that the engine is told of.
    let later = pair.now + Duration::from_secs(100);
    pair.server.connection.handle_timeout(later);
    assert_eq!(pair.server.connection.poll_timeout(), Some(later + Duration::from_secs(10)));
}

#[test]
fn a_lent_buffer_comes_back_with_the_output() {
    let mut pair = Pair::open();
    let mut buffer = BytesMut::with_capacity(4096);
    let room = buffer.as_ptr();
    pair.client.connection.lend_output(&mut buffer);
    assert_eq!(buffer.capacity(), 0);
    pair.client.connection.begin().unwrap();
    pair.client.connection.take_output(&mut buffer);
    assert_eq!(buffer.as_ptr(), room);
    assert!(matches!(frames(buffer.split().freeze())[..], [(0, Performative::Begin(_))]));
    // With nothing lent and nothing to send, a buffer keeps its room.
    pair.client.connection.take_output(&mut buffer);
    assert!(buffer.is_empty() && buffer.capacity() > 0);
}

#[test]
fn a_client_may_open_when_the_server_has_accepted_its_credentials() {
    for security in [ClientSecurity::Bare, plain()] {
        let mut pair = Pair::silent(security.clone(), config(), config());
        pair.client.connection = Connection::client_to_open(Arc::new(config()), security.clone(), pair.now);
        pair.server.answers = false;
        pair.run();
        if security != ClientSecurity::Bare {
            assert!(pair.client.take().is_empty(), "not before the outcome");
            pair.server.connection.sasl_outcome(SaslCode::Ok);
            pair.run();
        }
        assert!(matches!(pair.client.take()[..], [Event::Authenticated]));
        // Whose open it is may take its time to come.
        pair.client.connection.handle_timeout(pair.now + Duration::from_secs(60));
        assert!(!pair.client.connection.is_closed());
        let open = OpenOut { container_id: "device", ..OpenOut::default() }.build();
        pair.client.connection.open(open.clone());
        pair.client.connection.open(open);
        pair.run();
        let opened: Vec<_> =
            pair.server.take().into_iter().filter(|it| matches!(it, Event::Opened(_))).collect();
        let [Event::Opened(open)] = &opened[..] else { panic!("{opened:?}") };
        assert_eq!((open.container_id(), open.max_frame_size()), ("device", 65_536));
        pair.server.connection.open(config().open());
        pair.run();
        assert!(pair.client.connection.is_open());
        assert!(matches!(pair.client.take()[..], [Event::Opened(_)]));
    }
}

#[test]
fn a_client_that_is_still_to_open_waits_with_what_follows_the_servers_open() {
    let mut client = Connection::client_to_open(Arc::new(config()), ClientSecurity::Bare, start());
    let mut early = BytesMut::from(&ProtocolHeader::Amqp.bytes()[..]);
    early.extend_from_slice(&crate::raw::frame(0, |out| out.extend_from_slice(config().open().encoded())));
    early.extend_from_slice(b"\0\0\0\x0f\x02\0\0\0\0\x53\x18\xc0\x02\x01\x40");
    client.handle_input(start(), early.freeze());
    assert!(matches!(client.poll_event(), Some(Event::Authenticated)));
    assert!(matches!(client.poll_event(), Some(Event::Opened(_))));
    assert!(client.poll_event().is_none());
    client.open(config().open());
    assert!(matches!(client.poll_event(), Some(Event::Closed(CloseReason::Remote(None)))));
    let written = frames(client.poll_transmit().unwrap());
    let names: Vec<_> = written.iter().map(|(_, performative)| performative.name()).collect();
    assert_eq!(names, ["open", "close"]);
}
