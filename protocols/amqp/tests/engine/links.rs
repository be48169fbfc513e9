//! Begin, attach, detach, end.

use bytes::BytesMut;
use fieldgate_amqp::connection::{ConnectionConfig, Event, Half};
use fieldgate_amqp::error::{AmqpError, Condition, Misuse};
use fieldgate_amqp::performative::{Attach, Begin, BeginOut, Performative, Role};

use crate::pair::{Pair, attach, config};
use crate::raw::Raw;

fn not_found() -> AmqpError {
    AmqpError::new(&Condition::NotFound, Some("no such node"))
}

#[test]
fn a_name_may_be_used_once_in_each_direction() {
    let mut pair = Pair::open();
    let (session, _) = pair.session();
    let (sender, theirs) = pair.link(session, "same", Role::Sender);
    let (receiver, _) = pair.link(session, "same", Role::Receiver);
    assert_ne!(sender, receiver);
    let link = pair.server.connection.link(theirs).unwrap();
    assert_eq!((link.name, link.role, link.remote), ("same", Role::Receiver, Half::Open));
    let client = &mut pair.client.connection;
    assert_eq!(client.attach(session, &attach("same", Role::Sender)), Err(Misuse::NameInUse));
    assert_eq!(client.session_links(session).collect::<Vec<_>>(), [sender, receiver]);
}

#[test]
fn a_detach_is_told_answered_and_frees_the_link() {
    let mut pair = Pair::open();
    let (session, _) = pair.session();
    let (ours, theirs) = pair.link(session, "l", Role::Sender);
    pair.client.take();
    pair.server.take();
    pair.client.connection.detach(ours, true, Some(not_found()));
    pair.run();
    let [Event::Detached { link, detach, answered: false, .. }] = &pair.server.events[..] else {
        panic!("{:?}", pair.server.events)
    };
    assert_eq!((*link, detach.closed()), (theirs, true));
    assert_eq!(detach.error(), Some(not_found()));
    let [Event::Detached { link, answered: true, .. }] = &pair.client.events[..] else {
        panic!("{:?}", pair.client.events)
    };
    assert_eq!(*link, ours);
    assert!(pair.client.connection.link(ours).is_none() && pair.server.connection.link(theirs).is_none());
    assert_eq!((pair.client.connection.links(), pair.server.connection.links()), (0, 0));
}

#[test]
fn a_detach_may_stay_unanswered_for_a_while() {
    let mut pair = Pair::open();
    let (session, _) = pair.session();
    let (ours, theirs) = pair.link(session, "l", Role::Sender);
    pair.server.answers = false;
    pair.client.connection.detach(ours, false, None);
    pair.run();
    let link = pair.server.connection.link(theirs).unwrap();
    assert_eq!((link.local, link.remote), (Half::Open, Half::Ended));
    // The name is free already: the peer has let go of it.
    let (again, new) = pair.link(session, "l", Role::Sender);
    assert_ne!(new, theirs);
    pair.server.connection.detach(theirs, false, None);
    pair.run();
    assert!(pair.client.connection.link(ours).is_none());
    assert!(pair.client.connection.link(again).is_some());
    assert_eq!(pair.server.connection.links(), 1);
}

#[test]
fn attach_and_detach_may_follow_each_other_before_any_answer() {
    let mut pair = Pair::open();
    let (session, _) = pair.session();
    pair.client.take();
    let client = &mut pair.client.connection;
    let first = client.attach(session, &attach("l", Role::Receiver)).unwrap();
    client.detach(first, true, None);
    let second = client.attach(session, &attach("l", Role::Receiver)).unwrap();
    client.detach(second, true, None);
    let third = client.attach(session, &attach("l", Role::Receiver)).unwrap();
    pair.run();
    let seen: Vec<_> = pair
        .client
        .events
        .iter()
        .map(|event| match event {
            Event::Attached { link, by_peer: false, .. } => (*link, "attached"),
            Event::Detached { link, answered: true, .. } => (*link, "detached"),
            other => panic!("{other:?}"),
        })
        .collect();
    let ended = |link| [(link, "attached"), (link, "detached")];
    let expected: Vec<_> =
        ended(first).into_iter().chain(ended(second)).chain([(third, "attached")]).collect();
    assert_eq!(seen, expected);
    assert_eq!((pair.client.connection.links(), pair.server.connection.links()), (1, 1));
}

#[test]
fn a_refusal_is_an_attach_without_terminus_and_a_detach() {
    for role in [Role::Sender, Role::Receiver] {
        let mut pair = Pair::open();
        let (session, _) = pair.session();
        pair.server.answers = false;
        let (ours, theirs) = pair.link(session, "l", role);
        pair.client.take();
        pair.server.connection.refuse_attach(theirs, not_found());
        pair.run();
        let [
            Event::Attached { link, attach, by_peer: false, .. },
            Event::Detached { detach, answered: false, .. },
        ] = &pair.client.events[..]
        else {
            panic!("{:?}", pair.client.events)
        };
        assert_eq!(*link, ours);
        assert!(attach.source().is_none() && attach.target().is_none());
        assert_eq!(attach.composite().len(), 14);
        assert_eq!(attach.initial_delivery_count().is_some(), role == Role::Receiver);
        assert!(detach.closed());
        assert_eq!(detach.error(), Some(not_found()));
        assert_eq!((pair.client.connection.links(), pair.server.connection.links()), (0, 0));
    }
}

#[test]
fn detaching_what_was_never_answered_refuses_it() {
    let mut raw = Raw::with_session();
    raw.answers = false;
    let events = raw.attach("l", Role::Sender, 4);
    let [Event::Attached { link, .. }] = &events[..] else { panic!("{events:?}") };
    let detach = b"\0\0\0\x11\x02\0\0\0\0\x53\x16\xc0\x04\x02\x52\x04\x41";
    assert!(matches!(raw.bytes(detach)[..], [Event::Detached { answered: false, .. }]));
    raw.connection.detach(*link, true, None);
    let written: Vec<_> = raw.output().into_iter().map(|(_, performative)| performative.name()).collect();
    assert_eq!(written, ["attach", "detach"]);
    assert_eq!(raw.connection.links(), 0);
}

#[test]
fn an_attach_is_forwarded_as_it_is_but_for_the_handle() {
    let mut raw = Raw::with_session();
    let events = raw.attach("first", Role::Sender, 0);
    let Event::Attached { session, .. } = events[0] else { panic!("{events:?}") };
    raw.output();
    let sent = attach("second", Role::Receiver);
    raw.connection.attach(session, &sent).unwrap();
    let written = raw.output();
    let [(0, Performative::Attach(attach))] = &written[..] else { panic!("{written:?}") };
    assert_eq!(attach.handle(), 1);
    for field in (0..14).filter(|&field| field != Attach::HANDLE) {
        assert_eq!(attach.composite().raw(field), sent.composite().raw(field), "field {field}");
    }
}

#[test]
fn sessions_end_with_their_links() {
    let mut pair = Pair::open();
    let (ours, theirs) = pair.session();
    let (link, _) = pair.link(ours, "l", Role::Sender);
    pair.client.take();
    pair.server.take();
    pair.client.connection.end(ours, Some(not_found()));
    assert!(pair.client.connection.link(link).is_none());
    assert_eq!(pair.client.connection.attach(ours, &attach("m", Role::Sender)), Err(Misuse::UnknownSession));
    pair.run();
    let [Event::SessionEnded { session, error: Some(error) }] = &pair.server.events[..] else {
        panic!("{:?}", pair.server.events)
    };
    assert_eq!((*session, error), (theirs, &not_found()));
    assert!(
        matches!(&pair.client.events[..], [Event::SessionEnded { session, error: None }] if *session == ours)
    );
    for side in [&pair.client, &pair.server] {
        assert_eq!((side.connection.sessions(), side.connection.links()), (0, 0));
    }
    let (again, _) = pair.session();
    assert_ne!(again, ours);
}

#[test]
fn a_begin_may_be_refused() {
    let mut pair = Pair::open();
    pair.server.answers = false;
    let session = pair.client.connection.begin().unwrap();
    pair.run();
    let refused = pair.server.begun()[0];
    pair.server.connection.end(refused, Some(not_found()));
    pair.run();
    let [Event::SessionBegun { by_peer: false, .. }, Event::SessionEnded { session: ended, error }] =
        &pair.client.events[..]
    else {
        panic!("{:?}", pair.client.events)
    };
    assert_eq!((*ended, error.as_ref()), (session, Some(&not_found())));
}

#[test]
fn a_session_may_end_before_its_begin_is_answered() {
    let mut pair = Pair::open();
    let session = pair.client.connection.begin().unwrap();
    pair.client.connection.end(session, None);
    pair.run();
    assert!(matches!(pair.client.events[..], [Event::SessionEnded { error: None, .. }]));
    assert_eq!((pair.client.connection.sessions(), pair.server.connection.sessions()), (0, 0));
}

#[test]
fn channels_and_handles_are_bounded_by_both_sides() {
    let small = ConnectionConfig { channel_max: 1, handle_max: 2, ..config() };
    let mut pair = Pair::open_with(config(), small);
    let (first, _) = pair.session();
    pair.session();
    assert_eq!(pair.client.connection.begin(), Err(Misuse::NoChannel));
    for name in ["a", "b", "c"] {
        pair.link(first, name, Role::Sender);
    }
    assert_eq!(pair.client.connection.attach(first, &attach("d", Role::Sender)), Err(Misuse::NoHandle));
}

#[test]
fn a_link_on_an_unanswered_session_answers_it() {
    let mut pair = Pair::open();
    pair.server.answers = false;
    let session = pair.client.connection.begin().unwrap();
    pair.client.connection.attach(session, &attach("l", Role::Sender)).unwrap();
    pair.run();
    let link = pair.server.attached()[0];
    pair.server.connection.answer_attach(link, &attach("whatever", Role::Sender));
    pair.run();
    let [Event::SessionBegun { .. }, Event::Attached { attach, .. }] = &pair.client.events[..] else {
        panic!("{:?}", pair.client.events)
    };
    assert_eq!((attach.name(), attach.role()), ("l", Role::Receiver));
}

/// A begin with capabilities, properties, and a field that no specification knows yet.
fn rich_begin() -> Begin {
    let mut body = BytesMut::from(&b"\x00\x53\x11\xd0\0\0\0\0\0\0\0\x09"[..]);
    body.extend_from_slice(b"\x60\x00\x07\x52\x05\x52\x06\x52\x07\x52\x08");
    body.extend_from_slice(b"\xa3\x03abc\xe0\x08\x02\xa3\x02de\x02fg\xc1\x05\x02\xa3\x01k\x41\xa1\x03new");
    let len = body.len() as u32 - 8;
    body[4..8].copy_from_slice(&len.to_be_bytes());
    Begin::decode(body.freeze()).unwrap()
}

#[test]
fn a_begin_is_forwarded_as_it_is_but_for_the_numbers() {
    let mut pair = Pair::open();
    pair.server.answers = false;
    let begin = rich_begin();
    let ours = pair.client.connection.begin_as(&begin).unwrap();
    pair.run();
    let events = pair.server.take();
    let [Event::SessionBegun { session, begin: came, .. }] = &events[..] else { panic!("{events:?}") };
    assert_eq!((came.remote_channel(), came.next_outgoing_id(), came.handle_max()), (None, 0, 255));
    assert_eq!(came.incoming_window(), 16);
    let same = |came: &Begin| (5..9).all(|field| came.composite().raw(field) == begin.composite().raw(field));
    assert!(same(came) && came.composite().len() == 9);
    pair.server.connection.accept_begin_as(*session, &begin);
    pair.server.connection.accept_begin_as(*session, &begin);
    pair.run();
    let events = pair.client.take();
    let [Event::SessionBegun { session, begin: came, by_peer: false }] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!((*session, came.remote_channel()), (ours, Some(0)));
    assert!(same(came));
}

#[test]
fn a_begin_that_does_not_fit_is_refused() {
    let small = ConnectionConfig { max_frame_bytes: 512, ..config() };
    let mut pair = Pair::open_with(config(), small);
    let filler = vec![b'x'; 600];
    let mut properties = BytesMut::from(&b"\xd1\0\0\x02\x64\0\0\0\x02\xa3\x01k\xb1\0\0\x02\x58"[..]);
    properties.extend_from_slice(&filler);
    let begin = BeginOut { properties: Some(&properties), ..BeginOut::default() }.build();
    assert_eq!(pair.client.connection.begin_as(&begin), Err(Misuse::FrameTooLarge));
    assert_eq!(pair.client.connection.sessions(), 0);
    assert!(pair.client.connection.begin().is_ok());
    // The other way round the begin has been said already.
    pair.client.answers = false;
    pair.run();
    pair.server.connection.begin().unwrap();
    pair.run();
    let session = *pair.client.begun().last().unwrap();
    pair.client.connection.accept_begin_as(session, &begin);
    pair.run();
    let ended = pair.server.events.iter().find_map(|event| match event {
        Event::SessionEnded { error, .. } => error.clone(),
        _ => None,
    });
    assert_eq!(ended.unwrap().condition(), "amqp:frame-size-too-small");
}
