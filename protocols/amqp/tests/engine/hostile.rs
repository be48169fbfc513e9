//! What no good peer sends. The connection, the session or the link ends with the condition that the specification
//! names; nothing panics, nothing is kept that grows.

use std::time::Duration;

use bytes::BufMut;
use fieldgate_amqp::connection::{CloseReason, ConnectionConfig, Event, LinkFlow, LinkId};
use fieldgate_amqp::error::Violation;
use fieldgate_amqp::frame::{FrameKind, ProtocolHeader};
use fieldgate_amqp::performative::{
    ACCEPTED, BeginOut, DispositionOut, FlowOut, Performative, Role, TransferOut,
};

use crate::pair::{Rng, config};
use crate::raw::{Raw, closed, frame};
use crate::transfers::message;

/// A connection with a receiving link of ours on the peer's handle 0, with credit for `credit` deliveries.
fn receiving(credit: u32) -> (Raw, LinkId) {
    let mut raw = Raw::with_session();
    let events = raw.attach("l", Role::Sender, 0);
    let Event::Attached { link, .. } = events[0] else { panic!("{events:?}") };
    raw.connection.flow(link, LinkFlow { link_credit: credit, ..LinkFlow::default() });
    raw.output();
    (raw, link)
}

fn delivery(id: u32, tag: &[u8]) -> TransferOut<'_> {
    TransferOut { delivery_id: Some(id), ..message(tag) }
}

#[test]
fn deep_nesting_closes_the_connection() {
    // Described values all the way down, in begin and in the properties of a flow.
    let mut deep = vec![0; 2500];
    deep.push(0x40);
    let mut raw = Raw::with_session();
    raw.frame(1, |out| {
        out.put_slice(b"\0\x53\x11\xd0");
        out.put_u32(u32::try_from(4 + deep.len()).unwrap());
        out.put_u32(1);
        out.put_slice(&deep);
    });
    assert_eq!(raw.closed_with().as_deref(), Some("amqp:decode-error"));

    let mut lists = Vec::new();
    for _ in 0..1000 {
        let mut outer = vec![0xd0];
        outer.put_u32(u32::try_from(lists.len() + 4).unwrap());
        outer.put_u32(1);
        outer.extend_from_slice(&lists);
        lists = outer;
    }
    let mut raw = Raw::with_session();
    raw.flow(FlowOut { properties: Some(&lists), ..FlowOut::default() });
    assert_eq!(raw.closed_with().as_deref(), Some("amqp:decode-error"));
}

#[test]
fn a_claim_of_a_gigabyte_before_authentication_costs_nothing() {
    let mut raw = Raw::unopened(config());
    raw.bytes(&ProtocolHeader::Sasl.bytes());
    let events = raw.bytes(b"\0\0\0\x0f\x02\x01\0\0\0\xb3\x40\0\0\0\0");
    assert!(matches!(closed(&events), Some(CloseReason::Violation(Violation::Decode(_)))), "{events:?}");
    // The same claim as a frame size.
    let mut raw = Raw::unopened(config());
    raw.bytes(&ProtocolHeader::Sasl.bytes());
    let events = raw.bytes(b"\x40\0\0\0\x02\x01\0\0");
    assert!(matches!(closed(&events), Some(CloseReason::Violation(Violation::FrameTooLarge { .. }))));
}

#[test]
fn broken_frame_headers_close_with_a_framing_error() {
    for header in [
        *b"\0\0\0\x05\x02\0\0\0", // smaller than the header
        *b"\0\0\0\0\x02\0\0\0",
        *b"\0\0\0\x08\x01\0\0\0",       // data offset inside the header
        *b"\0\0\0\x08\x03\0\0\0",       // data offset behind the frame
        *b"\0\0\0\x08\x02\x07\0\0",     // no such type
        *b"\0\0\0\x08\x02\x01\0\0",     // SASL after SASL
        *b"\x7f\xff\xff\xff\x02\0\0\0", // larger than we said
    ] {
        let mut raw = Raw::with_session();
        raw.bytes(&header);
        assert_eq!(raw.closed_with().as_deref(), Some("amqp:connection:framing-error"), "{header:?}");
    }
}

#[test]
fn an_extended_header_is_skipped() {
    let mut raw = Raw::with_session();
    assert!(raw.bytes(b"\0\0\0\x0c\x03\0\0\0junk").is_empty());
    assert!(raw.connection.is_open());
}

#[test]
fn frames_out_of_order_close_the_connection() {
    let open = fieldgate_amqp::performative::OpenOut { container_id: "again", ..Default::default() }.build();
    let mut raw = Raw::with_session();
    raw.frame(0, |out| out.put_slice(open.encoded()));
    assert_eq!(raw.closed_with().as_deref(), Some("amqp:illegal-state"));
    // Anything before open: the answer is our open and the close.
    let mut raw = Raw::unopened(config());
    raw.bytes(&ProtocolHeader::Amqp.bytes());
    raw.begin(0);
    let output = raw.connection.poll_transmit().unwrap();
    let kinds: Vec<_> = crate::raw::frames(output).iter().map(|(_, frame)| frame.name()).collect();
    assert_eq!(kinds, ["open", "close"]);
    // An unknown performative, and something that is none.
    for body in [&b"\0\x53\x1f\x45"[..], b"\x40", b"\0\x40\x45"] {
        let mut raw = Raw::with_session();
        raw.frame(0, |out| out.put_slice(body));
        assert_eq!(raw.closed_with().as_deref(), Some("amqp:decode-error"), "{body:?}");
    }
}

#[test]
fn channels_and_handles_above_what_was_announced_are_framing_errors() {
    let mut raw = Raw::with_session();
    raw.begin(256);
    assert_eq!(raw.closed_with().as_deref(), Some("amqp:connection:framing-error"));
    let mut raw = Raw::with_session();
    raw.attach("l", Role::Sender, 256);
    assert_eq!(raw.closed_with().as_deref(), Some("amqp:connection:framing-error"));
}

#[test]
fn a_channel_without_a_session_or_with_two_closes() {
    let mut raw = Raw::with_session();
    raw.frame(7, |out| FlowOut::default().write(out));
    assert_eq!(raw.closed_with().as_deref(), Some("amqp:not-allowed"));
    let mut raw = Raw::with_session();
    raw.begin(0);
    assert_eq!(raw.closed_with().as_deref(), Some("amqp:illegal-state"));
    let mut raw = Raw::with_session();
    let answer = BeginOut { remote_channel: Some(9), ..BeginOut::default() }.build();
    raw.frame(3, |out| out.put_slice(answer.encoded()));
    assert_eq!(raw.closed_with().as_deref(), Some("amqp:invalid-field"));
}

#[test]
fn an_unattached_handle_ends_only_the_session() {
    let frames: [fn(&mut Raw) -> Vec<Event>; 2] = [
        |raw| raw.flow(FlowOut { handle: Some(5), link_credit: Some(1), ..FlowOut::default() }),
        |raw| raw.transfer(TransferOut { handle: 5, ..delivery(0, b"t") }, b"x"),
    ];
    for send in frames {
        let mut raw = Raw::with_session();
        let events = send(&mut raw);
        let [Event::SessionEnded { error: Some(error), .. }] = &events[..] else { panic!("{events:?}") };
        assert_eq!(error.condition(), "amqp:session:unattached-handle");
        assert_eq!(raw.ended_with().as_deref(), Some("amqp:session:unattached-handle"));
        // What else comes on the channel is thrown away, as long as it takes.
        for _ in 0..1000 {
            assert!(send(&mut raw).is_empty());
        }
        assert!(raw.connection.is_open() && raw.output().is_empty());
        assert!(raw.bytes(b"\0\0\0\x0f\x02\0\0\0\0\x53\x17\xc0\x02\x01\x40").is_empty());
        assert_eq!(raw.connection.sessions(), 0);
        raw.begin(0);
        assert_eq!(raw.output().len(), 1);
    }
}

#[test]
fn a_second_detach_is_let_pass() {
    let mut raw = Raw::with_session();
    let detach = b"\0\0\0\x11\x02\0\0\0\0\x53\x16\xc0\x04\x02\x52\x05\x41";
    assert!(raw.bytes(detach).is_empty());
    raw.attach("l", Role::Sender, 5);
    assert_eq!(raw.bytes(detach).len(), 1);
    assert!(raw.bytes(detach).is_empty());
    assert_eq!(raw.connection.sessions(), 1);
}

#[test]
fn a_handle_or_a_name_in_use_ends_the_session() {
    let mut raw = Raw::with_session();
    raw.attach("a", Role::Sender, 0);
    raw.output();
    raw.attach("b", Role::Sender, 0);
    assert_eq!(raw.ended_with().as_deref(), Some("amqp:session:handle-in-use"));
    let mut raw = Raw::with_session();
    raw.attach("a", Role::Sender, 0);
    raw.attach("a", Role::Receiver, 1);
    assert_eq!(raw.connection.links(), 2);
    raw.output();
    raw.attach("a", Role::Sender, 2);
    assert_eq!(raw.ended_with().as_deref(), Some("amqp:not-allowed"));
    assert_eq!(raw.connection.links(), 0);
}

#[test]
fn transfers_beyond_credit_detach_the_link() {
    let (mut raw, link) = receiving(2);
    assert_eq!(raw.transfer(delivery(0, b"a"), b"x").len(), 1);
    // A smaller grant may have crossed with what was allowed before.
    raw.connection.flow(link, LinkFlow { link_credit: 0, ..LinkFlow::default() });
    assert_eq!(raw.transfer(delivery(1, b"b"), b"x").len(), 1);
    raw.output();
    let events = raw.transfer(delivery(2, b"c"), b"x");
    let [Event::Detached { link: gone, detach, answered: true, .. }] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!((*gone, detach.closed()), (link, true));
    assert_eq!(detach.error().unwrap().condition(), "amqp:link:transfer-limit-exceeded");
    let written = raw.detached_with().unwrap();
    assert_eq!(written.error(), detach.error());
    assert!(raw.connection.link(link).is_none());
    for id in 3..5000 {
        assert!(raw.transfer(delivery(id, b"d"), &[0; 100]).is_empty());
    }
    // Only windows were written meanwhile; the peer's detach frees the link without another event.
    assert!(raw.output().iter().all(|(_, frame)| frame.name() == "flow"));
    assert!(raw.bytes(&frame(0, |out| out.put_slice(b"\0\x53\x16\xc0\x03\x02\x43\x41"))).is_empty());
    assert_eq!(raw.connection.links(), 0);
}

#[test]
fn transfers_before_the_attach_is_answered_end_the_session() {
    let mut raw = Raw::with_session();
    raw.answers = false;
    raw.attach("l", Role::Sender, 0);
    raw.transfer(delivery(0, b"a"), b"x");
    let written = raw.output();
    assert!(matches!(&written[..], [(_, Performative::End(_))]), "{written:?}");
}

#[test]
fn transfers_before_our_begin_break_the_window() {
    let mut raw = Raw::unopened(config());
    raw.bytes(&ProtocolHeader::Amqp.bytes());
    let open = fieldgate_amqp::performative::OpenOut { container_id: "c", ..Default::default() }.build();
    raw.frame(0, |out| out.put_slice(open.encoded()));
    raw.answers = false;
    raw.begin(0);
    raw.output();
    let events = raw.transfer(delivery(0, b"a"), b"x");
    assert!(matches!(events[..], [Event::SessionEnded { .. }]));
    let kinds: Vec<_> = raw.output().iter().map(|(_, frame)| frame.name()).collect();
    assert_eq!(kinds, ["begin", "end"]);
}

#[test]
fn a_delivery_must_make_sense() {
    let more = |transfer: TransferOut<'static>| TransferOut { more: true, ..transfer };
    let cases: [(&[TransferOut<'static>], &str); 5] = [
        (&[TransferOut { delivery_id: None, ..delivery(0, b"a") }], "amqp:invalid-field"),
        (&[TransferOut { delivery_tag: None, ..delivery(0, b"a") }], "amqp:invalid-field"),
        (&[delivery(5, b"a"), delivery(5, b"b")], "amqp:invalid-field"),
        (&[delivery(5, b"a"), delivery(4, b"b")], "amqp:invalid-field"),
        (&[more(delivery(5, b"a")), delivery(6, b"b")], "amqp:invalid-field"),
    ];
    for (transfers, condition) in cases {
        let (mut raw, _) = receiving(10);
        for transfer in transfers {
            raw.transfer(*transfer, b"x");
        }
        assert_eq!(raw.ended_with().as_deref(), Some(condition), "{transfers:?}");
    }
    // Gaps are legal; so is the wrap.
    let (mut raw, _) = receiving(10);
    for id in [u32::MAX - 9, u32::MAX, 5] {
        assert_eq!(raw.transfer(delivery(id, b"a"), b"x").len(), 1, "{id}");
    }
}

#[test]
fn a_transfer_from_a_receiver_ends_the_session() {
    let mut raw = Raw::with_session();
    raw.attach("l", Role::Receiver, 0);
    raw.output();
    raw.transfer(delivery(0, b"a"), b"x");
    assert_eq!(raw.ended_with().as_deref(), Some("amqp:not-allowed"));
}

#[test]
fn unknown_states_and_giant_ranges_pass_at_the_cost_of_one_frame() {
    let mut raw = Raw::with_session();
    raw.attach("l", Role::Receiver, 0);
    raw.output();
    let state = b"\0\xa3\x0bvendor:heldE";
    for (first, last) in [(0, u32::MAX), (5, 4), (0, 100_000_000)] {
        let disposition = DispositionOut {
            role: Role::Receiver,
            first,
            last,
            settled: false,
            state: Some(state),
            batchable: false,
        };
        let events = raw.frame(0, |out| disposition.write(out));
        let [Event::Disposition { disposition, .. }] = &events[..] else { panic!("{events:?}") };
        assert_eq!(disposition.state(), Some(&state[..]));
    }
    assert!(raw.output().is_empty());
}

#[test]
fn endless_begins_attaches_and_their_ends_leave_nothing() {
    let mut raw = Raw::with_session();
    for round in 0..2000 {
        raw.attach("l", Role::Sender, 3);
        raw.bytes(&frame(0, |out| out.put_slice(b"\0\x53\x16\xc0\x04\x02\x52\x03\x41")));
        if round % 2 == 0 {
            // The application answers every other detach only with the session's end.
            let links: Vec<_> = raw.output();
            assert!(!links.is_empty());
        }
        raw.begin(5);
        raw.bytes(&frame(5, |out| out.put_slice(b"\0\x53\x17\xc0\x02\x01\x40")));
        if raw.connection.links() > 100 {
            raw.bytes(&frame(0, |out| out.put_slice(b"\0\x53\x17\xc0\x02\x01\x40")));
            raw.begin(0);
        }
        assert!(raw.connection.sessions() <= 2 && raw.connection.links() <= 101);
    }
    assert!(raw.connection.is_open());
}

#[test]
fn links_are_bounded_over_all_sessions() {
    let few = ConnectionConfig { max_links: 10, ..config() };
    let mut raw = Raw::with_session_of(few);
    for handle in 0..10 {
        raw.attach(&format!("l{handle}"), Role::Sender, handle);
    }
    raw.output();
    raw.attach("one more", Role::Sender, 10);
    assert_eq!(raw.ended_with().as_deref(), Some("amqp:resource-limit-exceeded"));
    assert_eq!(raw.connection.links(), 0);
}

#[test]
fn a_peer_with_no_room_for_our_handles_loses_its_session() {
    let mut raw = Raw::with_session();
    let begin = BeginOut { incoming_window: 1, outgoing_window: 1, handle_max: 0, ..BeginOut::default() };
    raw.frame(1, |out| out.put_slice(begin.build().encoded()));
    raw.output();
    let attach = crate::pair::attach("a", Role::Sender);
    raw.frame(1, |out| out.put_slice(attach.encoded()));
    raw.output();
    let attach = crate::pair::attach("b", Role::Sender);
    let patch = [(1, fieldgate_amqp::performative::Patch::U32(1))];
    raw.frame(1, |out| attach.write_patched(out, &patch));
    assert_eq!(raw.ended_with().as_deref(), Some("amqp:resource-limit-exceeded"));
}

#[test]
fn errors_are_cut_to_the_frames_of_a_small_peer() {
    use fieldgate_amqp::error::{AmqpError, Condition};
    let mut raw = Raw::unopened(config());
    raw.bytes(&ProtocolHeader::Amqp.bytes());
    let open = fieldgate_amqp::performative::OpenOut {
        container_id: "small",
        max_frame_size: 512,
        ..Default::default()
    };
    raw.frame(0, |out| out.put_slice(open.build().encoded()));
    raw.begin(0);
    let events = raw.attach("l", Role::Sender, 0);
    let Event::Attached { link, session, .. } = events[0] else { panic!("{events:?}") };
    raw.output();
    let text = "long ".repeat(200);
    let errors = [
        AmqpError::new(&Condition::NotFound, Some(&text)),
        AmqpError::new(&Condition::Other("x".repeat(600)), None),
    ];
    let rejected = fieldgate_amqp::performative::rejected(Some(&errors[0]));
    let annotations = [&b"\xd1\0\0\x02\x08\0\0\0\x02\xa3\x01a\xb0\0\0\x01\xfc"[..], &[0; 508]].concat();
    let modified = fieldgate_amqp::performative::modified(true, false, Some(&annotations));
    let state = |state| DispositionOut {
        role: Role::Receiver,
        first: 0,
        last: 0,
        settled: true,
        state: Some(state),
        batchable: false,
    };
    raw.connection.disposition(session, state(&rejected));
    raw.connection.disposition(session, state(&modified));
    let flow = LinkFlow { link_credit: 1, properties: Some(&annotations), ..LinkFlow::default() };
    raw.connection.flow(link, flow);
    raw.connection.detach(link, true, Some(errors[0].clone()));
    raw.connection.end(session, Some(errors[1].clone()));
    raw.connection.close(Some(errors[0].clone()));
    let bytes = raw.connection.poll_transmit().unwrap();
    let mut rest = bytes.clone();
    while let Some(frame) = fieldgate_amqp::frame::split(&mut rest, 512).unwrap() {
        assert_eq!(frame.kind, FrameKind::Amqp);
    }
    assert!(rest.is_empty());
    let written = crate::raw::frames(bytes);
    let [
        (_, Performative::Disposition(rejected)),
        (_, Performative::Disposition(modified)),
        (_, Performative::Flow(_)),
        (_, Performative::Detach(detach)),
        (_, Performative::End(end)),
        (_, Performative::Close(close)),
    ] = &written[..]
    else {
        panic!("{written:?}")
    };
    assert_eq!(rejected.state().map(|state| state[2]), Some(0x25));
    assert_eq!(modified.state().map(|state| state[2]), Some(0x27));
    assert_eq!(detach.error().unwrap().condition(), "amqp:not-found");
    assert_eq!(end.error().unwrap().condition(), "amqp:internal-error");
    assert!(close.error().unwrap().description().unwrap().starts_with("long "));
}

#[test]
fn frames_with_broken_bytes_never_panic() {
    let (mut session_frames, mut rng) = (Vec::new(), Rng::new(42));
    session_frames.push(frame(0, |out| delivery(0, b"tag").write(out)));
    session_frames.push(frame(0, |out| {
        FlowOut {
            handle: Some(0),
            link_credit: Some(5),
            properties: Some(b"\xc1\x01\0"),
            ..FlowOut::default()
        }
        .write(out);
    }));
    session_frames.push(frame(0, |out| {
        DispositionOut {
            role: Role::Receiver,
            first: 0,
            last: 9,
            settled: true,
            state: Some(ACCEPTED),
            batchable: true,
        }
        .write(out);
    }));
    session_frames.push(frame(0, |out| out.put_slice(crate::pair::attach("x", Role::Receiver).encoded())));
    session_frames.push(frame(0, |out| out.put_slice(b"\0\x53\x16\xc0\x04\x02\x52\x05\x41")));
    session_frames.push(frame(2, |out| out.put_slice(BeginOut::default().build().encoded())));
    let mut outcomes = [0; 2];
    for _ in 0..20_000 {
        let (mut raw, _) = receiving(10);
        let mut bytes = session_frames[rng.below(session_frames.len())].to_vec();
        let at = 8 + rng.below(bytes.len() - 8);
        match rng.below(4) {
            0 => bytes[at] = u8::try_from(rng.below(256)).unwrap(),
            1 => {
                bytes.truncate(at);
                bytes[3] = u8::try_from(at).unwrap();
            }
            _ => bytes[at] ^= 1 << rng.below(8),
        }
        raw.bytes(&bytes);
        raw.output();
        outcomes[usize::from(raw.connection.is_closed())] += 1;
    }
    assert!(outcomes.iter().all(|&count| count > 1000), "the mutations hit nothing: {outcomes:?}");
}

#[test]
fn transfers_beyond_a_window_that_is_not_opened_end_the_session() {
    let narrow = ConnectionConfig { incoming_window: 4, ..config() };
    let mut raw = Raw::with_session_of(narrow);
    let events = raw.attach("l", Role::Sender, 0);
    let Event::Attached { link, session, .. } = events[0] else { panic!("{events:?}") };
    raw.connection.flow(link, LinkFlow { link_credit: 1000, ..LinkFlow::default() });
    raw.connection.stall(session);
    raw.output();
    for id in 0..4 {
        let events = raw.transfer(delivery(id, b"t"), b"x");
        assert!(matches!(events[..], [Event::Transfer { .. }]), "{events:?}");
    }
    let events = raw.transfer(delivery(4, b"t"), b"x");
    assert!(matches!(events[..], [Event::SessionEnded { .. }]), "{events:?}");
    assert_eq!(raw.ended_with().as_deref(), Some("amqp:session:window-violation"));
    assert_eq!(raw.connection.links(), 0);
}

#[test]
fn a_frame_in_pieces_of_a_byte_holds_no_more_than_came_and_not_for_ever() {
    // Before the open the time is short; the bytes themselves do not lengthen it.
    let open = frame(0, |out| out.put_slice(config().open().encoded()));
    let mut raw = Raw::unopened(config());
    let start = raw.now;
    raw.bytes(&ProtocolHeader::Amqp.bytes());
    for byte in &open[..open.len() - 1] {
        if raw.connection.is_closed() {
            break;
        }
        raw.now += Duration::from_millis(400);
        raw.bytes(&[*byte]);
        raw.connection.handle_timeout(raw.now);
    }
    assert!(raw.connection.is_closed());
    assert_eq!((raw.now - start).as_secs(), config().open_time_out.as_secs());
    assert!(matches!(closed(&raw.bytes(b"")), Some(CloseReason::TimedOut)));

    // Later a large frame may take its time, but its size is judged by its first eight bytes.
    let mut raw = Raw::with_session();
    for byte in [0x00, 0x01, 0x00, 0x01, 0x02, 0x00, 0x00] {
        assert!(raw.bytes(&[byte]).is_empty());
    }
    raw.bytes(&[0]);
    assert_eq!(raw.closed_with().as_deref(), Some("amqp:connection:framing-error"));
}

#[test]
fn endless_begins_stop_at_channel_max() {
    let few = ConnectionConfig { channel_max: 3, ..config() };
    let mut raw = Raw::with_session_of(few);
    for channel in 1..=3 {
        raw.begin(channel);
    }
    assert_eq!(raw.connection.sessions(), 4);
    raw.output();
    raw.begin(4);
    assert_eq!(raw.closed_with().as_deref(), Some("amqp:connection:framing-error"));
    assert_eq!(raw.connection.sessions(), 0);
}

#[test]
fn who_asks_without_reading_costs_what_the_driver_can_see() {
    // Answers to echoes pile up only in the output, whose size tells the driver to stop reading.
    let mut raw = Raw::with_session();
    let echo = FlowOut { incoming_window: 1000, outgoing_window: 1000, echo: true, ..FlowOut::default() };
    let before = raw.connection.output_bytes();
    for _ in 0..1000 {
        raw.flow(echo);
    }
    let each = (raw.connection.output_bytes() - before) / 1000;
    assert!((20..64).contains(&each), "{each}");
    assert_eq!(raw.output().len(), 1000);
    assert_eq!(raw.connection.output_bytes(), 0);
}
