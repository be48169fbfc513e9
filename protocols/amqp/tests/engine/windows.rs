//! Session windows, link-credit, drain, echo, and what waits for them.

use fieldgate_amqp::connection::{ConnectionConfig, Event, LinkFlow, TransferOut};
use fieldgate_amqp::error::Misuse;
use fieldgate_amqp::performative::{ACCEPTED, DispositionOut, FlowOut, Performative, Role};

use crate::pair::{Pair, config};
use crate::raw::{Raw, frames};
use crate::transfers::{grant, message, received};

/// The names of the frames in `bytes`.
fn names(bytes: Option<bytes::Bytes>) -> Vec<&'static str> {
    frames(bytes.unwrap_or_default()).iter().map(|(_, performative)| performative.name()).collect()
}

/// A peer with a receiving link on handle 0, whose window is `incoming_window` transfers.
fn narrow(incoming_window: u32) -> (Raw, fieldgate_amqp::connection::LinkId) {
    narrowed(Raw::with_session(), incoming_window)
}

fn narrowed(mut raw: Raw, incoming_window: u32) -> (Raw, fieldgate_amqp::connection::LinkId) {
    let events = raw.attach("l", Role::Receiver, 0);
    let Event::Attached { link, .. } = events[0] else { panic!("{events:?}") };
    raw.flow(window(0, incoming_window));
    raw.output();
    (raw, link)
}

fn window(next_incoming_id: u32, incoming_window: u32) -> FlowOut<'static> {
    FlowOut {
        next_incoming_id: Some(next_incoming_id),
        incoming_window,
        outgoing_window: 1000,
        handle: Some(0),
        delivery_count: Some(0),
        link_credit: Some(1000),
        ..FlowOut::default()
    }
}

#[test]
fn transfers_wait_for_the_window_and_everything_of_the_link_behind_them() {
    let (mut raw, link) = narrow(2);
    let session = raw.connection.session_of_link(link).unwrap();
    for tag in 0..4_u8 {
        raw.connection.transfer(link, message(&[tag]), &[tag; 10]).unwrap();
    }
    assert_eq!(names(raw.connection.poll_transmit()), ["transfer", "transfer"]);
    assert!(raw.connection.session_backlog_bytes(session) > 20);
    raw.connection.flow(link, LinkFlow { link_credit: 7, available: Some(3), ..LinkFlow::default() });
    let settle = |role| DispositionOut {
        role,
        first: 0,
        last: 3,
        settled: true,
        state: Some(ACCEPTED),
        batchable: false,
    };
    raw.connection.disposition(session, settle(Role::Sender));
    raw.connection.detach(link, true, None);
    // What speaks of the other direction does not wait.
    raw.connection.disposition(session, settle(Role::Receiver));
    assert_eq!(names(raw.connection.poll_transmit()), ["disposition"]);
    raw.flow(window(2, 1));
    assert_eq!(names(raw.connection.poll_transmit()), ["transfer"]);
    raw.flow(window(3, 1));
    let written = raw.output();
    let kinds: Vec<_> = written.iter().map(|(_, performative)| performative.name()).collect();
    assert_eq!(kinds, ["transfer", "flow", "disposition", "detach"]);
    let Performative::Flow(flow) = &written[1].1 else { panic!() };
    assert_eq!((flow.next_outgoing_id, flow.delivery_count, flow.link_credit), (4, Some(4), Some(7)));
    assert_eq!(raw.connection.session_backlog_bytes(session), 0);
}

#[test]
fn the_window_counts_from_what_the_peer_has_seen() {
    let (mut raw, link) = narrow(5);
    for tag in 0..3_u8 {
        raw.connection.transfer(link, message(&[tag]), b"").unwrap();
    }
    // The peer speaks before it has seen any of the three.
    raw.flow(window(0, 5));
    for tag in 3..9_u8 {
        raw.connection.transfer(link, message(&[tag]), b"").unwrap();
    }
    assert_eq!(names(raw.connection.poll_transmit()).len(), 5);
}

#[test]
fn what_waits_is_bounded() {
    let small = ConnectionConfig { max_backlog_bytes: 1200, ..config() };
    let mut raw = Raw::with_session_of(small);
    let events = raw.attach("l", Role::Receiver, 0);
    let Event::Attached { link, session, .. } = events[0] else { panic!("{events:?}") };
    raw.flow(window(0, 0));
    let mut taken = 0_u8;
    while raw.connection.transfer(link, message(&[taken]), &[0; 300]).is_ok() {
        taken += 1;
    }
    assert_eq!(raw.connection.transfer(link, message(b"t"), b""), Err(Misuse::Backlog));
    assert_eq!(taken, 4);
    raw.output();
    raw.flow(window(0, 10));
    assert_eq!(raw.output().len(), 4);
    assert_eq!(raw.connection.session_backlog_bytes(session), 0);
    assert!(raw.connection.transfer(link, message(b"t"), b"").is_ok());
}

#[test]
fn an_end_waits_unless_something_is_wrong() {
    let (mut raw, link) = narrow(0);
    let session = raw.connection.session_of_link(link).unwrap();
    raw.connection.transfer(link, message(b"t"), b"").unwrap();
    raw.connection.end(session, None);
    assert!(raw.output().is_empty());
    assert_eq!(raw.connection.transfer(link, message(b"u"), b""), Err(Misuse::UnknownLink));
    assert!(raw.flow(window(0, 1)).is_empty());
    assert_eq!(names(raw.connection.poll_transmit()), ["transfer", "end"]);
    assert_eq!(raw.connection.links(), 0);
    let events = raw.bytes(b"\0\0\0\x0f\x02\0\0\0\0\x53\x17\xc0\x02\x01\x40");
    assert!(matches!(events[..], [Event::SessionEnded { .. }]));
    assert!(raw.output().is_empty());

    let (mut raw, link) = narrow(0);
    let session = raw.connection.session_of_link(link).unwrap();
    raw.connection.transfer(link, message(b"t"), b"").unwrap();
    let error = fieldgate_amqp::error::AmqpError::new(&fieldgate_amqp::error::Condition::InternalError, None);
    raw.connection.end(session, Some(error));
    assert_eq!(raw.ended_with().as_deref(), Some("amqp:internal-error"));
}

#[test]
fn a_peer_that_ends_first_gets_its_answer_though_transfers_wait() {
    for ours_too in [false, true] {
        let (mut raw, link) = narrow(0);
        let session = raw.connection.session_of_link(link).unwrap();
        raw.connection.transfer(link, message(b"t"), b"").unwrap();
        if ours_too {
            raw.connection.end(session, None);
        }
        let events = raw.bytes(b"\0\0\0\x0f\x02\0\0\0\0\x53\x17\xc0\x02\x01\x40");
        assert!(matches!(events[..], [Event::SessionEnded { .. }]));
        assert_eq!(names(raw.connection.poll_transmit()), ["end"]);
        assert_eq!((raw.connection.sessions(), raw.connection.links()), (0, 0));
    }
}

#[test]
fn our_window_is_opened_again_at_half() {
    let server = ConnectionConfig { incoming_window: 10, ..config() };
    let mut pair = Pair::open_with(config(), server);
    let (session, _) = pair.session();
    let (link, remote) = pair.link(session, "l", Role::Sender);
    grant(&mut pair.server, remote, 1000);
    pair.run();
    pair.client.take();
    for tag in 0..100_u8 {
        pair.client.connection.transfer(link, message(&[tag]), b"").unwrap();
    }
    assert!(pair.client.connection.session_backlog_bytes(session) > 0);
    pair.run();
    assert_eq!(received(&pair.server.events).len(), 100);
    assert_eq!(pair.client.connection.session_backlog_bytes(session), 0);
    let flows = pair.client.events.iter().filter(|event| matches!(event, Event::Flow { link: None, .. }));
    assert_eq!(flows.count(), 20);
}

#[test]
fn a_stalled_session_is_not_opened_again_before_it_is_resumed() {
    let server = ConnectionConfig { incoming_window: 10, ..config() };
    let mut pair = Pair::open_with(config(), server);
    let (session, theirs) = pair.session();
    let (link, remote) = pair.link(session, "l", Role::Sender);
    pair.server.connection.stall(theirs);
    // A flow for the link gives credit and no window.
    grant(&mut pair.server, remote, 1000);
    for tag in 0..30_u8 {
        pair.client.connection.transfer(link, message(&[tag]), b"x").unwrap();
    }
    pair.run();
    assert_eq!(received(&pair.server.take()).len(), 10);
    grant(&mut pair.server, remote, 900);
    pair.server.connection.session_flow(theirs, false);
    pair.run();
    assert!(pair.server.take().is_empty());
    assert_eq!(pair.client.connection.unsent_from(session), Some(10));
    pair.server.connection.resume(theirs);
    pair.run();
    assert_eq!(received(&pair.server.take()).len(), 20);
    assert_eq!(pair.client.connection.unsent_from(session), None);
    // Above half there is nothing to say.
    pair.server.connection.stall(theirs);
    pair.server.connection.resume(theirs);
    assert_eq!(pair.server.connection.output_bytes(), 0);
}

#[test]
fn the_window_is_bounded_in_bytes() {
    let server = ConnectionConfig { max_frame_bytes: 4096, incoming_window_bytes: 40_960, ..config() };
    let mut pair = Pair::open_with(config(), server);
    let (session, _) = pair.session();
    let (link, remote) = pair.link(session, "l", Role::Sender);
    grant(&mut pair.server, remote, 10_000);
    pair.run();
    let window = |events: Vec<Event>| {
        let windows = events.into_iter().filter_map(|event| match event {
            Event::Flow { flow, .. } => Some(flow.incoming_window),
            Event::SessionBegun { begin, .. } => Some(begin.incoming_window()),
            _ => None,
        });
        windows.collect::<Vec<_>>()
    };
    // The grant is a flow, too.
    assert_eq!(window(pair.client.take()), [10, 20]);
    for tag in 0..1000_u32 {
        pair.client.connection.transfer(link, message(&tag.to_be_bytes()), &[0; 100]).unwrap();
    }
    pair.run();
    let windows = window(pair.client.take());
    assert!(windows.iter().all(|&window| window <= 400), "{windows:?}");
    assert!(*windows.last().unwrap() > 200, "{windows:?}");
    pair.client.connection.transfer(link, message(b"large"), &[0; 4000]).unwrap();
    pair.run();
    assert_eq!(window(pair.client.take()), [10]);
}

#[test]
fn what_never_went_is_known_after_the_end() {
    let (mut raw, link) = narrow(2);
    let session = raw.connection.session_of_link(link).unwrap();
    assert_eq!(raw.connection.unsent_from(session), None);
    let more = |tag| TransferOut { more: true, ..message(tag) };
    for tag in [b"a", b"b"] {
        raw.connection.transfer(link, message(tag), b"").unwrap();
    }
    assert_eq!(raw.connection.unsent_from(session), None);
    raw.flow(window(2, 1));
    // The first of three frames goes.
    raw.connection.transfer(link, more(b"c"), b"1").unwrap();
    raw.connection.transfer(link, more(b"c"), b"2").unwrap();
    raw.connection.transfer(link, message(b"c"), b"3").unwrap();
    assert_eq!(raw.connection.unsent_from(session), None);
    let id = raw.connection.transfer(link, more(b"d"), b"1").unwrap();
    raw.connection.transfer(link, message(b"e"), b"").unwrap_or_default();
    assert_eq!(raw.connection.unsent_from(session), Some(id));
    raw.bytes(b"\0\0\0\x0f\x02\0\0\0\0\x53\x18\xc0\x02\x01\x40");
    assert!(raw.connection.is_closed());
    assert_eq!(raw.connection.unsent_from(session), Some(id));
}

#[test]
fn credit_reaches_the_sender_and_is_used_up() {
    let mut pair = Pair::open();
    let (session, _) = pair.session();
    let (link, remote) = pair.link(session, "l", Role::Sender);
    pair.client.take();
    grant(&mut pair.server, remote, 3);
    pair.run();
    assert!(matches!(&pair.client.events[..], [Event::Flow { link: Some(it), .. }] if *it == link));
    assert_eq!(pair.client.connection.link(link).unwrap().credit, 3);
    pair.client.connection.transfer(link, message(b"a"), b"").unwrap();
    assert_eq!(pair.client.connection.link(link).unwrap().credit, 2);
    // A flow that crosses with the transfer does not give it back.
    grant(&mut pair.server, remote, 3);
    let flow = pair.server.connection.poll_transmit().unwrap();
    pair.client.connection.handle_input(pair.now, flow);
    pair.client.drain();
    assert_eq!(pair.client.connection.link(link).unwrap().credit, 2);
}

#[test]
fn a_drain_moves_the_receivers_count() {
    let mut pair = Pair::open();
    let (session, _) = pair.session();
    let (link, remote) = pair.link(session, "l", Role::Sender);
    pair.server.connection.flow(remote, LinkFlow { link_credit: 5, drain: true, ..LinkFlow::default() });
    pair.run();
    let info = pair.client.connection.link(link).unwrap();
    assert!(info.drain && info.credit == 5);
    let drained = LinkFlow { delivery_count: Some(5), drain: true, ..LinkFlow::default() };
    pair.client.connection.flow(link, drained);
    pair.run();
    let info = pair.server.connection.link(remote).unwrap();
    assert_eq!((info.delivery_count, info.credit), (5, 0));
}

#[test]
fn a_sessions_echo_is_answered_and_a_links_is_left_to_the_application() {
    let mut raw = Raw::with_session();
    raw.attach("l", Role::Receiver, 0);
    raw.output();
    raw.flow(FlowOut { handle: None, delivery_count: None, link_credit: None, echo: true, ..window(0, 9) });
    assert_eq!(names(raw.connection.poll_transmit()), ["flow"]);
    let events = raw.flow(FlowOut { echo: true, ..window(0, 9) });
    assert!(matches!(&events[..], [Event::Flow { link: Some(_), flow, .. }] if flow.echo));
    assert!(raw.output().is_empty());
}

#[test]
fn a_flow_before_the_attach_is_answered_has_no_delivery_count() {
    let mut pair = Pair::open();
    let (session, _) = pair.session();
    let attach = crate::pair::attach("l", Role::Receiver);
    let link = pair.client.connection.attach(session, &attach).unwrap();
    grant(&mut pair.client, link, 10);
    let written = frames(pair.client.connection.poll_transmit().unwrap());
    let Performative::Flow(flow) = &written[1].1 else { panic!("{written:?}") };
    assert_eq!((flow.delivery_count, flow.link_credit), (None, Some(10)));
    // It is all the sender needs, whatever count it starts from.
    assert_eq!(written[0].1.name(), "attach");
}

#[test]
fn credit_given_early_counts_from_the_senders_first_delivery() {
    let mut raw = Raw::with_session();
    let events = raw.attach("l", Role::Receiver, 0);
    let Event::Attached { link, .. } = events[0] else { panic!("{events:?}") };
    raw.flow(FlowOut { delivery_count: None, link_credit: Some(2), ..window(0, 100) });
    assert_eq!(raw.connection.link(link).unwrap().credit, 2);
    raw.connection.transfer(link, message(b"a"), b"").unwrap();
    raw.flow(FlowOut { delivery_count: None, link_credit: Some(2), ..window(0, 100) });
    assert_eq!(raw.connection.link(link).unwrap().credit, 1);
    raw.connection.transfer(link, TransferOut { settled: Some(true), ..message(b"b") }, b"").unwrap();
    assert_eq!(raw.connection.link(link).unwrap().credit, 0);
}

#[test]
fn a_shut_window_is_no_store_for_what_waits_behind_it() {
    let held = |ask: &dyn Fn(&mut Raw, fieldgate_amqp::connection::LinkId)| {
        let max_backlog_bytes = 4096;
        let raw = Raw::with_session_of(ConnectionConfig { max_backlog_bytes, ..config() });
        let (mut raw, link) = narrowed(raw, 0);
        raw.connection.transfer(link, message(b"t"), b"waits").unwrap();
        let mut asked = 0;
        while !raw.connection.is_closed() {
            ask(&mut raw, link);
            asked += 1;
            assert!(asked < 1000, "it holds all that it is asked for");
        }
        let Some(Event::Closed(reason)) = raw.connection.poll_event() else { panic!("nobody is told") };
        assert!(reason.to_string().contains("incoming-window"), "{reason}");
        assert!(names(raw.connection.poll_transmit()).ends_with(&["close"]));
        asked
    };
    let flow = LinkFlow { link_credit: 1, ..LinkFlow::default() };
    let asked = held(&|raw, link| raw.connection.flow(link, flow));
    assert!(asked > 20, "an honest peer asks as often: {asked}");
    let role = Role::Sender;
    let settle = DispositionOut { role, first: 0, last: 0, settled: true, state: None, batchable: false };
    held(&|raw, link| {
        let session = raw.connection.session_of_link(link).unwrap();
        raw.connection.disposition(session, settle);
    });
}
