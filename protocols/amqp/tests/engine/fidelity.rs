//! What one peer says is what the other hears, looked at as bytes on both sides.

use bytes::{BufMut, Bytes, BytesMut};
use fieldgate_amqp::codec::{
    put_composite, put_map, put_null, put_str, put_symbol, put_symbols, put_ubyte, put_uint,
};
use fieldgate_amqp::error::{AmqpError, Condition};
use fieldgate_amqp::performative::{
    ACCEPTED, Attach, AttachOut, Composite, DispositionOut, FlowOut, Patch, Performative, RELEASED, Role,
    SourceOut, TargetOut, Terminus, TransferOut, descriptor, modified, received, rejected,
};

use crate::relay::{DEVICE, HUB, Relay};

/// Transfer-ids and delivery-ids toward the hub begin just before the wrap.
const NEAR_WRAP: u32 = u32::MAX - 1;

/// An attach in which every field says something, and a field that the specification does not know.
fn rich_attach(name: &str, handle: u32, role: Role) -> Attach {
    let mut out = BytesMut::new();
    put_composite(&mut out, descriptor::ATTACH, |out| {
        put_str(out, name);
        put_uint(out, handle);
        out.put_u8(if role.is_receiver() { 0x41 } else { 0x42 });
        put_ubyte(out, 1);
        put_ubyte(out, 1);
        put_composite(out, descriptor::SOURCE, |out| {
            put_str(out, "a/b");
            put_uint(out, 2);
            put_symbol(out, "never");
            put_uint(out, 77);
            out.put_u8(0x42);
            put_null(out);
            put_symbol(out, "copy");
            put_map(out, |out| {
                put_symbol(out, "vendor:filter");
                out.put_slice(b"\x00\xa3\x08v:filter\xc0\x04\x02\x54\x01\x40");
                1
            });
            out.put_slice(RELEASED);
            put_symbols(out, &["amqp:accepted:list", "v:outcome:list"]);
            put_symbol(out, "queue");
            11
        });
        // A coordinator, with a capability.
        put_composite(out, descriptor::COORDINATOR, |out| {
            put_symbol(out, "amqp:local-transactions");
            1
        });
        put_map(out, |out| {
            out.put_slice(b"\xa0\x02\x00\xff");
            out.put_slice(b"\x00\x53\x34\xc0\x06\x02\xa0\x02tx\x40");
            out.put_slice(b"\xa0\x01u");
            out.extend_from_slice(&received(3, 4));
            2
        });
        out.put_u8(0x41);
        put_uint(out, u32::MAX);
        out.put_slice(b"\x80\xff\xff\xff\xff\xff\xff\xff\xff");
        put_symbols(out, &["offered"]);
        put_symbol(out, "desired");
        put_map(out, |out| {
            put_symbol(out, "com.microsoft:client-version");
            put_str(out, "x/1.0");
            1
        });
        put_str(out, "a field of AMQP 1.1");
        15
    });
    Attach::decode(out.freeze()).unwrap()
}

fn attach(name: &str, handle: u32, role: Role, initial_delivery_count: Option<u32>) -> Attach {
    let (source, target) = (SourceOut::default().build(), TargetOut::default().build());
    let base = AttachOut::receiver(name, &source, &target);
    AttachOut { handle, role, initial_delivery_count, ..base }.build()
}

fn say(relay: &mut Relay, side: usize, attach: &Attach) {
    relay.say(side, |out| out.extend_from_slice(attach.encoded()));
}

/// A link through both, the device's handle 5, the hub's handle 9. Gives what it is called on both sides.
fn linked(relay: &mut Relay, device: Role, initial: u32) {
    let sender_count = |role: Role| (!role.is_receiver()).then_some(initial);
    say(relay, DEVICE, &attach("l", 5, device, sender_count(device)));
    say(relay, HUB, &attach("l", 9, device.other(), sender_count(device.other())));
    let credit = FlowOut {
        next_incoming_id: None,
        incoming_window: 1000,
        outgoing_window: 1000,
        delivery_count: Some(initial),
        link_credit: Some(1000),
        ..FlowOut::default()
    };
    let (receiver, handle) = if device.is_receiver() { (DEVICE, 5) } else { (HUB, 9) };
    relay.say(receiver, |out| FlowOut { handle: Some(handle), ..credit }.write(out));
    relay.heard(DEVICE);
    relay.heard(HUB);
}

/// Every field but those at `but` is the same bytes.
fn assert_same(one: &Composite, other: &Composite, but: &[usize]) {
    assert_eq!((one.code(), one.len()), (other.code(), other.len()));
    for field in (0..one.len()).filter(|field| !but.contains(field)) {
        assert_eq!(one.raw(field), other.raw(field), "field {field} of {one:?}");
    }
}

#[test]
fn every_field_of_an_attach_passes_both_ways() {
    for role in [Role::Sender, Role::Receiver] {
        let mut relay = Relay::new(0);
        let asked = rich_attach("l", 5, role);
        say(&mut relay, DEVICE, &asked);
        let [(there, rest)] = &relay.heard(HUB)[..] else { panic!() };
        assert_same(asked.composite(), there, &[1]);
        assert!(rest.is_empty() && there.u32(1) == Some(0));
        let answer = rich_attach("l", 9, role.other());
        say(&mut relay, HUB, &answer);
        let [(back, _)] = &relay.heard(DEVICE)[..] else { panic!() };
        assert_same(answer.composite(), back, &[1]);
    }
}

#[test]
fn a_refusal_arrives_as_the_hub_said_it() {
    let mut relay = Relay::new(0);
    say(&mut relay, DEVICE, &rich_attach("l", 5, Role::Receiver));
    relay.heard(HUB);
    let refusal = attach("l", 9, Role::Sender, Some(0));
    let mut out = BytesMut::new();
    refusal.write_patched(&mut out, &[(Attach::SOURCE, Patch::Null), (Attach::TARGET, Patch::Null)]);
    relay.say(HUB, |frame| frame.extend_from_slice(&out));
    relay.say(HUB, |frame| put_closing(frame, descriptor::DETACH, Some(9)));
    let heard = relay.heard(DEVICE);
    assert_eq!(heard.len(), 2);
    assert_eq!((heard[0].0.raw(5), heard[0].0.raw(6)), (None, None));
    assert_eq!(heard[1].0.raw(2), Some(vendor_error().encoded()));
}

/// An error with a vendor's condition and info.
fn vendor_error() -> AmqpError {
    let mut info = BytesMut::new();
    put_map(&mut info, |out| {
        put_symbol(out, "tracking-id");
        out.put_slice(b"\x00\xa3\x03v:t\x98\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x05");
        1
    });
    AmqpError::new(&Condition::from("com.microsoft:timeout"), Some("it took too long"))
        .with_info(&info)
        .unwrap()
}

fn put_closing(out: &mut BytesMut, code: u64, handle: Option<u32>) {
    put_composite(out, code, |out| {
        if let Some(handle) = handle {
            put_uint(out, handle);
            out.put_u8(0x41);
        }
        out.extend_from_slice(vendor_error().encoded());
        if handle.is_some() { 3 } else { 1 }
    });
}

#[test]
fn a_device_that_detaches_early_hears_the_hubs_answer_first() {
    let mut relay = Relay::new(0);
    say(&mut relay, DEVICE, &rich_attach("l", 5, Role::Receiver));
    relay.say(DEVICE, |out| put_closing(out, descriptor::DETACH, Some(5)));
    let heard: Vec<_> = relay.heard(HUB).into_iter().map(|(frame, _)| frame.code()).collect();
    assert_eq!(heard, [descriptor::ATTACH, descriptor::DETACH]);
    assert!(relay.heard(DEVICE).is_empty());
    let answer = rich_attach("l", 9, Role::Sender);
    say(&mut relay, HUB, &answer);
    let [(back, _)] = &relay.heard(DEVICE)[..] else { panic!() };
    assert_same(answer.composite(), back, &[1]);
    // What the hub still sends on the link goes nowhere.
    let transfer =
        TransferOut { handle: 9, delivery_id: Some(0), delivery_tag: Some(b"t"), ..TransferOut::default() };
    relay.say(HUB, |out| transfer.write(out));
    relay.say(HUB, |out| put_closing(out, descriptor::DETACH, Some(9)));
    let [(back, _)] = &relay.heard(DEVICE)[..] else { panic!() };
    assert_eq!((back.code(), back.bool(1)), (descriptor::DETACH, Some(true)));
    assert_eq!(back.raw(2), Some(vendor_error().encoded()));
    // The name and the handle are free.
    say(&mut relay, DEVICE, &rich_attach("l", 5, Role::Receiver));
    assert_eq!(relay.heard(HUB).len(), 1);
}

#[test]
fn detach_end_and_close_carry_their_errors_both_ways() {
    for side in [DEVICE, HUB] {
        for (code, handles) in
            [(descriptor::DETACH, Some([5, 9])), (descriptor::END, None), (descriptor::CLOSE, None)]
        {
            let mut relay = Relay::new(0);
            linked(&mut relay, Role::Sender, 0);
            relay.say(side, |out| put_closing(out, code, handles.map(|handles| handles[side])));
            let heard = relay.heard(1 - side);
            let (told, _) = heard.iter().find(|(frame, _)| frame.code() == code).unwrap();
            let error = told.raw(told.len() - 1);
            assert_eq!(error, Some(vendor_error().encoded()), "{code:#x} from {side}");
        }
    }
}

#[test]
fn a_link_that_is_only_detached_is_not_closed() {
    let mut relay = Relay::new(0);
    linked(&mut relay, Role::Sender, 0);
    for (side, handle) in [(HUB, 9), (DEVICE, 5)] {
        // As short as it may be said.
        relay.say(side, |out| {
            put_composite(out, descriptor::DETACH, |out| {
                put_uint(out, handle);
                1
            })
        });
        let [(told, _)] = &relay.heard(1 - side)[..] else { panic!() };
        assert_eq!((told.bool(1), told.raw(2)), (Some(false), None));
    }
}

/// What a transactional transfer carries (4.4.4).
const TRANSACTIONAL: &[u8] = b"\x00\x53\x34\xc0\x04\x01\xa0\x01x";
const DECLARED: &[u8] = b"\x00\x53\x33\xc0\x05\x01\xa0\x02tx";
const VENDOR: &[u8] = b"\x00\xa3\x07v:state\xc1\x04\x02\xa1\x00\x42";

#[test]
fn every_field_of_a_transfer_passes() {
    let mut relay = Relay::new(NEAR_WRAP);
    linked(&mut relay, Role::Sender, u32::MAX);
    let tag = [0xab; 32];
    let plain = TransferOut { handle: 5, delivery_tag: Some(b"t"), ..TransferOut::default() };
    let all = [
        TransferOut { message_format: Some(0x8001_3700), settled: Some(true), ..plain },
        TransferOut { delivery_tag: Some(&tag), settled: Some(false), batchable: true, ..plain },
        TransferOut { delivery_tag: Some(b""), rcv_settle_mode: Some(1), ..plain },
        TransferOut { state: Some(TRANSACTIONAL), resume: true, ..plain },
        TransferOut { state: Some(VENDOR), message_format: Some(u32::MAX), ..plain },
    ];
    for (id, transfer) in all.into_iter().enumerate() {
        let id = id as u32;
        let transfer = TransferOut { delivery_id: Some(id), ..transfer };
        let mut said = BytesMut::new();
        transfer.write(&mut said);
        relay.say(DEVICE, |out| {
            transfer.write(out);
            out.put_slice(b"\x00\x53\x75\xa0\x01b");
        });
        let [(heard, payload)] = &relay.heard(HUB)[..] else { panic!() };
        let (said, _) = Composite::parse(said.freeze(), &fieldgate_amqp::codec::Limits::default()).unwrap();
        assert_same(&said, heard, &[0, 1]);
        assert_eq!((heard.u32(0), heard.u32(1)), (Some(0), Some(NEAR_WRAP.wrapping_add(id))));
        assert_eq!(&payload[..], b"\x00\x53\x75\xa0\x01b");
    }
}

#[test]
fn a_tag_of_33_bytes_is_refused_and_only_the_link_suffers() {
    let mut relay = Relay::new(0);
    linked(&mut relay, Role::Sender, 0);
    let transfer = TransferOut {
        handle: 5,
        delivery_id: Some(0),
        delivery_tag: Some(&[1; 33]),
        ..TransferOut::default()
    };
    relay.say(DEVICE, |out| transfer.write(out));
    for side in [DEVICE, HUB] {
        let [Performative::Detach(detach)] = &relay.heard_frames(side)[..] else { panic!() };
        assert_eq!(detach.error().unwrap().condition(), "amqp:invalid-field");
    }
}

/// What of a stream of frames the hub hears: id, more, aborted, payload.
fn pieces(relay: &mut Relay) -> Vec<(Option<u32>, bool, bool, Bytes)> {
    let heard = relay.heard(HUB).into_iter();
    let seen = heard.map(|(frame, payload)| {
        (frame.u32(1), frame.bool(5).unwrap_or(false), frame.bool(9).unwrap_or(false), payload)
    });
    seen.collect()
}

#[test]
fn empty_payloads_pass_frame_by_frame() {
    let mut relay = Relay::new(NEAR_WRAP);
    linked(&mut relay, Role::Sender, 0);
    let more = TransferOut {
        handle: 5,
        delivery_id: Some(0),
        delivery_tag: Some(b"t"),
        more: true,
        ..TransferOut::default()
    };
    let none = Bytes::new();
    // One with nothing at all, one of three empty frames, one of annotations only.
    relay.say(DEVICE, |out| TransferOut { more: false, ..more }.write(out));
    assert_eq!(pieces(&mut relay), [(Some(NEAR_WRAP), false, false, none.clone())]);
    relay.say(DEVICE, |out| TransferOut { delivery_id: Some(1), ..more }.write(out));
    relay.say(DEVICE, |out| TransferOut { delivery_id: None, delivery_tag: None, ..more }.write(out));
    relay.say(DEVICE, |out| TransferOut { delivery_id: None, more: false, ..more }.write(out));
    let heard = pieces(&mut relay);
    let id = Some(u32::MAX);
    assert_eq!(
        heard,
        [(id, true, false, none.clone()), (None, true, false, none.clone()), (None, false, false, none),]
    );
    let annotations = b"\x00\x53\x72\xc1\x05\x02\xa3\x01x\x40";
    relay.say(DEVICE, |out| {
        TransferOut { delivery_id: Some(2), more: false, ..more }.write(out);
        out.put_slice(annotations);
    });
    assert_eq!(pieces(&mut relay), [(Some(0), false, false, Bytes::from_static(annotations))]);
}

#[test]
fn pieces_stream_are_split_and_may_be_aborted() {
    let mut relay = Relay::with_frames(0, 512);
    linked(&mut relay, Role::Sender, 0);
    let first = TransferOut {
        handle: 5,
        delivery_id: Some(0),
        delivery_tag: Some(b"t"),
        more: true,
        state: Some(TRANSACTIONAL),
        ..TransferOut::default()
    };
    let body: Vec<u8> = (0..1200_u32).map(|at| at as u8).collect();
    relay.say(DEVICE, |out| {
        first.write(out);
        out.put_slice(&body);
    });
    let heard = pieces(&mut relay);
    assert_eq!(heard.len(), 3);
    assert!(heard.iter().all(|(_, more, aborted, _)| *more && !aborted));
    assert_eq!(heard.iter().flat_map(|(.., payload)| payload.to_vec()).collect::<Vec<_>>(), body);
    relay.say(DEVICE, |out| TransferOut { handle: 5, aborted: true, ..TransferOut::default() }.write(out));
    assert_eq!(pieces(&mut relay), [(None, false, true, Bytes::new())]);
    // The next one begins anew.
    relay.say(DEVICE, |out| TransferOut { delivery_id: Some(1), more: false, ..first }.write(out));
    assert_eq!(pieces(&mut relay), [(Some(1), false, false, Bytes::new())]);
}

#[test]
fn every_delivery_state_passes_from_both_sides_with_its_flags() {
    let states: [Option<Bytes>; 9] = [
        None,
        Some(Bytes::from_static(ACCEPTED)),
        Some(Bytes::from_static(RELEASED)),
        Some(rejected(Some(&vendor_error()))),
        Some(modified(true, true, Some(b"\xc1\x05\x02\xa3\x01x\x40"))),
        Some(received(7, u64::MAX)),
        Some(Bytes::from_static(TRANSACTIONAL)),
        Some(Bytes::from_static(DECLARED)),
        Some(Bytes::from_static(VENDOR)),
    ];
    for device in [Role::Sender, Role::Receiver] {
        let mut relay = Relay::new(NEAR_WRAP);
        linked(&mut relay, device, 0);
        let (sender, handle) = if device.is_receiver() { (HUB, 9) } else { (DEVICE, 5) };
        let mut shift = 0;
        for id in 0..4 {
            let transfer = TransferOut {
                handle,
                delivery_id: Some(id),
                delivery_tag: Some(b"t"),
                ..TransferOut::default()
            };
            relay.say(sender, |out| transfer.write(out));
            let [(heard, _)] = &relay.heard(1 - sender)[..] else { panic!() };
            shift = heard.u32(1).unwrap().wrapping_sub(id);
        }
        for state in &states {
            for (from, settled, batchable) in
                [(0, true, false), (0, false, true), (1, true, true), (1, false, false)]
            {
                let role = if from == sender { Role::Sender } else { Role::Receiver };
                let (at_from, at_other) = if from == sender { (0, shift) } else { (shift, 0) };
                let said = DispositionOut {
                    role,
                    first: at_from.wrapping_add(1),
                    last: at_from.wrapping_add(3),
                    settled,
                    state: state.as_deref(),
                    batchable,
                };
                relay.say(from, |out| said.write(out));
                let [Performative::Disposition(heard)] = &relay.heard_frames(1 - from)[..] else { panic!() };
                let expected = DispositionOut {
                    first: at_other.wrapping_add(1),
                    last: at_other.wrapping_add(3),
                    ..said
                };
                assert_eq!(heard.fields(), expected);
            }
        }
    }
}

#[test]
fn credit_drain_echo_and_what_a_vendor_adds_pass_near_the_wrap() {
    let mut relay = Relay::new(NEAR_WRAP);
    linked(&mut relay, Role::Sender, u32::MAX - 1);
    let properties = b"\xc1\x05\x02\xa3\x01x\x40";
    let mut says = |from: usize, flow: FlowOut<'_>| {
        let numbers = FlowOut {
            next_incoming_id: Some(if from == HUB { NEAR_WRAP } else { 0 }),
            incoming_window: 1000,
            outgoing_window: 1000,
            handle: Some(if from == HUB { 9 } else { 5 }),
            ..flow
        };
        relay.say(from, |out| numbers.write(out));
        let [Performative::Flow(heard)] = &relay.heard_frames(1 - from)[..] else { panic!() };
        let heard = heard.fields();
        assert_eq!(
            (
                heard.delivery_count,
                heard.link_credit,
                heard.available,
                heard.drain,
                heard.echo,
                heard.properties
            ),
            (flow.delivery_count, flow.link_credit, flow.available, flow.drain, flow.echo, flow.properties)
        );
    };
    let credit = FlowOut { delivery_count: Some(u32::MAX), link_credit: Some(3), ..FlowOut::default() };
    says(HUB, credit);
    says(HUB, FlowOut { delivery_count: Some(u32::MAX - 1), link_credit: Some(u32::MAX), ..credit });
    says(HUB, FlowOut { drain: true, echo: true, available: Some(0), ..credit });
    says(HUB, FlowOut { properties: Some(properties), ..credit });
    says(DEVICE, FlowOut { delivery_count: Some(2), link_credit: Some(0), drain: true, ..credit });
    says(
        DEVICE,
        FlowOut { delivery_count: Some(2), link_credit: Some(0), available: Some(u32::MAX), ..credit },
    );
}

#[test]
fn a_coordinator_is_attached_as_one() {
    let mut relay = Relay::new(0);
    say(&mut relay, DEVICE, &rich_attach("txn", 0, Role::Sender));
    let [Performative::Attach(heard)] = &relay.heard_frames(HUB)[..] else { panic!() };
    assert!(heard.target().as_ref().is_some_and(Terminus::is_coordinator));
    let mut unsettled = heard.unsettled().unwrap().iter().count();
    unsettled += usize::from(heard.incomplete_unsettled());
    assert_eq!(unsettled, 3);
}
