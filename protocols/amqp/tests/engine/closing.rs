//! Close, silence and heartbeats.

use std::time::Duration;

use fieldgate_amqp::connection::{ClientSecurity, CloseReason, ConnectionConfig, Event};
use fieldgate_amqp::error::{AmqpError, Condition, Misuse};
use fieldgate_amqp::performative::Role;

use crate::pair::{Pair, attach, config};
use crate::raw::{Raw, closed, frames};

#[test]
fn a_close_is_answered_and_ends_both() {
    let mut pair = Pair::open();
    pair.session();
    let error = AmqpError::new(&Condition::ConnectionForced, Some("maintenance"));
    pair.server.connection.close(Some(error.clone()));
    assert_eq!(pair.server.connection.begin(), Err(Misuse::Closed));
    pair.run();
    assert_eq!(closed(&pair.client.events), Some(&CloseReason::Remote(Some(error))));
    assert_eq!(closed(&pair.server.events), Some(&CloseReason::Local));
    assert!(pair.client.connection.is_closed() && pair.server.connection.is_closed());
    assert_eq!(pair.client.connection.poll_timeout(), None);
}

#[test]
fn both_may_close_at_once() {
    let mut pair = Pair::open();
    pair.client.connection.close(None);
    pair.server.connection.close(None);
    pair.run();
    assert_eq!(closed(&pair.client.events), Some(&CloseReason::Local));
    assert_eq!(closed(&pair.server.events), Some(&CloseReason::Local));
}

#[test]
fn a_server_that_refuses_opens_before_it_closes() {
    let mut pair = Pair::silent(ClientSecurity::Bare, config(), config());
    pair.server.answers = false;
    pair.run();
    assert!(matches!(pair.server.events[..], [Event::Opened(_)]));
    pair.server.connection.close(Some(AmqpError::new(&Condition::NotFound, None)));
    pair.run();
    let [Event::Opened(_), Event::Closed(CloseReason::Remote(Some(error)))] = &pair.client.events[..] else {
        panic!("{:?}", pair.client.events)
    };
    assert_eq!(error.condition(), "amqp:not-found");
    assert_eq!(closed(&pair.server.events), Some(&CloseReason::Local));
}

#[test]
fn closing_before_amqp_is_spoken_is_over_at_once() {
    let mut pair = Pair::silent(ClientSecurity::Anonymous, config(), config());
    pair.client.connection.close(None);
    pair.client.drain();
    assert_eq!(closed(&pair.client.events), Some(&CloseReason::Local));
}

#[test]
fn after_our_close_everything_else_is_discarded() {
    let mut raw = Raw::with_session();
    raw.connection.close(None);
    assert!(raw.attach("l", Role::Sender, 0).is_empty());
    assert!(raw.bytes(b"\0\0\0\x0f\x02\0\0\0\0\x53\x77\xc0\x02\x01\x40").is_empty());
    let events = raw.bytes(b"\0\0\0\x0f\x02\0\0\0\0\x53\x18\xc0\x02\x01\x40");
    assert_eq!(closed(&events), Some(&CloseReason::Local));
}

#[test]
fn an_unanswered_close_times_out() {
    let mut raw = Raw::with_session();
    raw.connection.close(None);
    raw.output();
    raw.connection.handle_timeout(raw.now + Duration::from_secs(60));
    let due = raw.connection.poll_timeout().unwrap();
    assert_eq!(due - raw.now, Duration::from_secs(70));
    raw.connection.handle_timeout(due);
    assert!(matches!(raw.connection.poll_event(), Some(Event::Closed(CloseReason::TimedOut))));
}

#[test]
fn two_idle_connections_keep_each_other_alive() {
    let short = ConnectionConfig { idle_time_out: Some(Duration::from_secs(4)), ..config() };
    let mut pair = Pair::open_with(short, config());
    pair.wait(Duration::from_secs(3600));
    assert!(pair.client.connection.is_open() && pair.server.connection.is_open());
}

#[test]
fn a_heartbeat_is_sent_only_when_nothing_else_was() {
    let mut pair = Pair::open();
    let half = Duration::from_secs(60);
    assert_eq!(pair.client.connection.poll_timeout(), Some(pair.now + half));
    pair.client.connection.handle_timeout(pair.now + half);
    assert_eq!(pair.client.connection.poll_transmit().unwrap(), [0, 0, 0, 8, 2, 0, 0, 0][..]);
    pair.client.connection.begin().unwrap();
    pair.client.connection.handle_timeout(pair.now + half + half);
    assert_eq!(frames(pair.client.connection.poll_transmit().unwrap()).len(), 1);
}

#[test]
fn a_peer_cannot_ask_for_a_storm_of_heartbeats() {
    let server = ConnectionConfig { idle_time_out: Some(Duration::from_millis(1)), ..config() };
    let pair = Pair::open_with(config(), server);
    assert_eq!(pair.client.connection.poll_timeout(), Some(pair.now + Duration::from_millis(100)));
}

#[test]
fn a_silent_peer_is_closed_after_twice_what_was_announced() {
    let mut raw = Raw::with_session();
    let end = raw.now + Duration::from_secs(240);
    assert_eq!(raw.connection.poll_timeout(), Some(end));
    raw.connection.handle_timeout(end);
    assert_eq!(raw.closed_with().as_deref(), Some("amqp:resource-limit-exceeded"));
    assert!(matches!(raw.connection.poll_event(), Some(Event::Closed(CloseReason::TimedOut))));
}

#[test]
fn silence_while_we_do_not_read_is_not_the_peers() {
    let mut raw = Raw::with_session();
    raw.connection.paused(raw.now);
    assert_eq!(raw.connection.poll_timeout(), None);
    let later = raw.now + Duration::from_secs(10_000);
    raw.connection.resumed(later);
    assert_eq!(raw.connection.poll_timeout(), Some(later + Duration::from_secs(240)));
}

#[test]
fn commands_after_the_end_do_nothing() {
    let mut pair = Pair::open();
    let (session, _) = pair.session();
    let (link, _) = pair.link(session, "l", Role::Sender);
    pair.server.connection.close(None);
    pair.run();
    let client = &mut pair.client.connection;
    assert_eq!(client.attach(session, &attach("m", Role::Sender)), Err(Misuse::Closed));
    client.detach(link, true, None);
    client.end(session, None);
    client.session_flow(session, true);
    client.close(None);
    assert_eq!(client.output_bytes(), 0);
    assert_eq!((client.sessions(), client.links()), (0, 0));
}

#[test]
fn a_reason_is_a_sentence() {
    let error = AmqpError::new(&Condition::ConnectionForced, Some("maintenance"));
    let sentences = [
        (
            CloseReason::Remote(Some(error)),
            "the peer closed the connection: amqp:connection:forced (maintenance)",
        ),
        (CloseReason::Header(*b"GET / \xff\n"), r"the peer speaks another protocol: GET / \xff\n"),
    ];
    for (reason, sentence) in sentences {
        assert_eq!(reason.to_string(), sentence);
    }
}
