//! Performatives against `fe2o3-amqp-types` in both directions, as routed values, and against damage.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use fe2o3_amqp_types::definitions as theirs_def;
use fe2o3_amqp_types::messaging as theirs_msg;
use fe2o3_amqp_types::performatives as theirs;
use serde_amqp::Value as TheirValue;
use serde_amqp::described::Described;
use serde_amqp::descriptor::Descriptor;
use serde_amqp::primitives::{Array, OrderedMap, Symbol};

use super::*;
use crate::codec::{Limits, Value};
use crate::error::DecodeFault;
use crate::testing::{Random, damaged};

fn encode(value: &impl serde::Serialize) -> Bytes {
    serde_amqp::to_vec(value).unwrap().into()
}

fn fields(pairs: &[(&str, TheirValue)]) -> OrderedMap<Symbol, TheirValue> {
    pairs.iter().map(|(key, value)| (Symbol::from(*key), value.clone())).collect()
}

fn symbols(names: &[&str]) -> Array<Symbol> {
    Array(names.iter().map(|name| Symbol::from(*name)).collect())
}

fn raw_fields(pairs: &[(&str, TheirValue)]) -> Bytes {
    encode(&fields(pairs))
}

fn their_error() -> theirs_def::Error {
    theirs_def::Error {
        condition: theirs_def::AmqpError::NotFound.into(),
        description: Some("no such node".into()),
        info: Some(Box::new(fields(&[("vendor", TheirValue::Int(7))]))),
    }
}

fn their_open() -> theirs::Open {
    theirs::Open {
        container_id: "device-1".into(),
        hostname: Some("hub.example".into()),
        max_frame_size: 65536.into(),
        channel_max: 255.into(),
        idle_time_out: Some(120_000),
        outgoing_locales: None,
        incoming_locales: None,
        offered_capabilities: Some(symbols(&["one", "two"])),
        desired_capabilities: Some(symbols(&["three"])),
        properties: Some(fields(&[("product", TheirValue::String("fieldgate".into()))])),
    }
}

fn their_attach() -> theirs::Attach {
    let filter = Described {
        descriptor: Descriptor::Name(Symbol::from("apache.org:selector-filter:string")),
        value: TheirValue::String("amqp.annotation.x-opt-offset > '10'".into()),
    };
    let source = theirs_msg::Source::builder()
        .address("messages/events")
        .filter(fields(&[("selector", TheirValue::Described(Box::new(filter)))]))
        .capabilities(symbols(&["queue"]))
        .build();
    theirs::Attach {
        name: "link-1".into(),
        handle: 3.into(),
        role: theirs_def::Role::Sender,
        snd_settle_mode: theirs_def::SenderSettleMode::Unsettled,
        rcv_settle_mode: theirs_def::ReceiverSettleMode::Second,
        source: Some(Box::new(source)),
        target: Some(Box::new(theirs_msg::Target::builder().address("/devices/d").build().into())),
        unsettled: None,
        incomplete_unsettled: false,
        initial_delivery_count: Some(0),
        max_message_size: Some(1 << 40),
        offered_capabilities: None,
        desired_capabilities: Some(symbols(&["DELAYED_DELIVERY"])),
        properties: Some(fields(&[("com.microsoft:client-version", TheirValue::String("1".into()))])),
    }
}

fn their_state(random: &mut Random) -> Option<theirs_msg::DeliveryState> {
    Some(match random.below(6) {
        0 => return None,
        1 => theirs_msg::DeliveryState::Accepted(theirs_msg::Accepted {}),
        2 => theirs_msg::DeliveryState::Released(theirs_msg::Released {}),
        3 => theirs_msg::Rejected { error: random.chance(2).then(their_error) }.into(),
        4 => theirs_msg::Received { section_number: random.uint(), section_offset: 1 << 40 }.into(),
        _ => theirs_msg::Modified {
            delivery_failed: Some(true),
            undeliverable_here: Some(false),
            message_annotations: Some(fields(&[("x", TheirValue::Int(1))])),
        }
        .into(),
    })
}

fn maybe<T>(random: &mut Random, value: T) -> Option<T> {
    random.chance(2).then_some(value)
}

fn their_transfer(random: &mut Random) -> theirs::Transfer {
    let uint = random.uint();
    let tag = random.bytes(32);
    theirs::Transfer {
        handle: random.uint().into(),
        delivery_id: maybe(random, uint),
        delivery_tag: maybe(random, tag.into()),
        message_format: maybe(random, uint ^ 1),
        settled: maybe(random, uint & 2 == 0),
        more: random.chance(2),
        rcv_settle_mode: maybe(random, theirs_def::ReceiverSettleMode::Second),
        state: their_state(random),
        resume: random.chance(2),
        aborted: random.chance(2),
        batchable: random.chance(2),
    }
}

fn their_flow(random: &mut Random) -> theirs::Flow {
    let uint = random.uint();
    theirs::Flow {
        next_incoming_id: maybe(random, uint),
        incoming_window: random.uint(),
        next_outgoing_id: random.uint(),
        outgoing_window: random.uint(),
        handle: maybe(random, uint.into()),
        delivery_count: maybe(random, uint),
        link_credit: maybe(random, uint),
        available: maybe(random, uint),
        drain: random.chance(2),
        echo: random.chance(2),
        properties: maybe(random, fields(&[("x", TheirValue::Int(1))])),
    }
}

fn their_disposition(random: &mut Random) -> theirs::Disposition {
    let uint = random.uint();
    theirs::Disposition {
        role: if random.chance(2) { theirs_def::Role::Sender } else { theirs_def::Role::Receiver },
        first: random.uint(),
        last: maybe(random, uint),
        settled: random.chance(2),
        state: their_state(random),
        batchable: random.chance(2),
    }
}

/// One body of each kind, some with payload.
fn bodies(random: &mut Random) -> Vec<Bytes> {
    let transfer = [encode(&their_transfer(random)).to_vec(), random.bytes(40)].concat();
    let begin = theirs::Begin {
        remote_channel: Some(7),
        next_outgoing_id: 1,
        incoming_window: 2048,
        outgoing_window: 5000,
        handle_max: 255.into(),
        offered_capabilities: None,
        desired_capabilities: None,
        properties: None,
    };
    vec![
        transfer.into(),
        encode(&their_flow(random)),
        encode(&their_disposition(random)),
        encode(&their_open()),
        encode(&begin),
        encode(&their_attach()),
        encode(&theirs::Detach { handle: 3.into(), closed: true, error: Some(their_error()) }),
        encode(&theirs::End { error: Some(their_error()) }),
        encode(&theirs::Close { error: None }),
    ]
}

#[test]
fn reads_the_hot_performatives_that_serde_amqp_writes() {
    let mut random = Random::new(10);
    for _ in 0..5_000 {
        let wrote = their_transfer(&mut random);
        let payload = random.bytes(50);
        let head = encode(&wrote);
        let transfer = Transfer::decode([&head[..], &payload].concat().into()).unwrap();
        assert_eq!(transfer.handle, wrote.handle.0);
        assert_eq!(transfer.delivery_id, wrote.delivery_id);
        assert_eq!(transfer.delivery_tag(), wrote.delivery_tag.as_ref().map(|tag| &tag[..]));
        assert_eq!(transfer.delivery_tag_bytes().as_deref(), transfer.delivery_tag());
        assert_eq!(transfer.message_format, wrote.message_format);
        assert_eq!((transfer.settled, transfer.more), (wrote.settled, wrote.more));
        assert_eq!(transfer.rcv_settle_mode, wrote.rcv_settle_mode.as_ref().map(u8::from));
        assert_eq!(transfer.state().map(Bytes::copy_from_slice), wrote.state.as_ref().map(encode));
        assert_eq!((transfer.resume, transfer.aborted), (wrote.resume, wrote.aborted));
        assert_eq!(transfer.batchable, wrote.batchable);
        assert_eq!((&transfer.payload()[..], transfer.payload_slice()), (&payload[..], &payload[..]));

        let mut out = BytesMut::new();
        transfer.fields().write(&mut out);
        assert_eq!(out.len(), transfer.fields().encoded_len());
        assert_eq!(serde_amqp::from_slice::<theirs::Transfer>(&out).unwrap(), wrote);
        let again = Transfer::decode(out.freeze()).unwrap();
        assert_eq!(again.fields(), transfer.fields());

        let wrote = their_flow(&mut random);
        let flow = Flow::decode(encode(&wrote)).unwrap();
        let mut out = BytesMut::new();
        flow.fields().write(&mut out);
        assert_eq!(serde_amqp::from_slice::<theirs::Flow>(&out).unwrap(), wrote);
        assert_eq!(Flow::decode(out.freeze()).unwrap().fields(), flow.fields());

        let wrote = their_disposition(&mut random);
        let disposition = Disposition::decode(encode(&wrote)).unwrap();
        assert_eq!(disposition.last, wrote.last.unwrap_or(wrote.first));
        let mut out = BytesMut::new();
        disposition.fields().write(&mut out);
        let read = serde_amqp::from_slice::<theirs::Disposition>(&out).unwrap();
        assert_eq!(read, theirs::Disposition { last: Some(disposition.last), ..wrote });
        assert_eq!(Disposition::decode(out.freeze()).unwrap().fields(), disposition.fields());
    }
}

#[test]
fn a_transfer_keeps_its_payload_without_a_copy() {
    let mut out = BytesMut::new();
    TransferOut { delivery_tag: Some(&[1, 2]), ..TransferOut::default() }.write(&mut out);
    let head = out.len();
    out.extend_from_slice(b"payload");
    let body = out.freeze();
    let transfer = Transfer::decode(body.clone()).unwrap();
    assert_eq!(transfer.payload().as_ptr(), body[head..].as_ptr());
    assert!(!format!("{transfer:?}").contains("payload\""));
}

#[test]
fn a_hot_performative_in_its_wide_forms() {
    // list32, uint, binary32, boolean: everything as long as it may be.
    let body = b"\x00\x80\x00\x00\x00\x00\x00\x00\x00\x14\xd0\x00\x00\x00\x19\x00\x00\x00\x06\
        \x70\x00\x00\x00\x01\x70\x00\x00\x00\x02\xb0\x00\x00\x00\x01t\x40\x56\x00\x56\x01rest";
    let transfer = Transfer::decode(Bytes::from_static(body)).unwrap();
    assert_eq!((transfer.handle, transfer.delivery_id, transfer.settled), (1, Some(2), Some(false)));
    assert_eq!((transfer.delivery_tag(), transfer.more), (Some(&b"t"[..]), true));
    assert_eq!(&transfer.payload()[..], b"rest");

    let named = b"\x00\xa3\x15amqp:disposition:list\xc0\x05\x02\x41\x70\x00\x00\x00\x09";
    let named = [&named[..24], b"\xc0\x07\x02\x41\x70\x00\x00\x00\x09"].concat();
    let disposition = Disposition::decode(named.into()).unwrap();
    assert_eq!((disposition.role, disposition.first, disposition.last), (Role::Receiver, 9, 9));

    // More fields than the specification has are looked through, but must be sound.
    let flow = b"\x00\x53\x13\xc0\x0f\x0d\x40\x43\x43\x43\x40\x40\x40\x40\x40\x40\x40\xa1\x00\x45";
    assert!(Flow::decode(Bytes::from_static(flow)).is_ok());
    let flow = b"\x00\x53\x13\xc0\x0f\x0d\x40\x43\x43\x43\x40\x40\x40\x40\x40\x40\x40\xa1\x01\x45";
    assert!(Flow::decode(Bytes::from_static(flow)).is_err());
}

#[test]
fn a_long_tag_or_state_is_written_in_a_long_list() {
    let error = AmqpError::new(&Condition::NotFound, Some(&"x".repeat(600)));
    let state = rejected(Some(&error));
    let mut out = BytesMut::new();
    let tag = [7; 255];
    let transfer = TransferOut { delivery_tag: Some(&tag), state: Some(&state), ..TransferOut::default() };
    transfer.write(&mut out);
    assert_eq!(out.len(), transfer.encoded_len());
    assert_eq!(Transfer::decode(out.freeze()).unwrap().fields(), transfer);
}

#[test]
fn mandatory_and_typed_fields_are_checked() {
    let fault = |body: &'static [u8]| Performative::decode(Bytes::from_static(body)).unwrap_err().fault;
    assert_eq!(fault(b"\x00\x53\x14\x45"), DecodeFault::Missing("handle"));
    assert_eq!(fault(b"\x00\x53\x14\xc0\x02\x01\x40"), DecodeFault::Missing("handle"));
    assert_eq!(fault(b"\x00\x53\x14\xc0\x02\x01\x41"), DecodeFault::Type { expected: "uint" });
    assert_eq!(fault(b"\x00\x53\x13\xc0\x03\x02\x40\x43"), DecodeFault::Missing("next-outgoing-id"));
    assert_eq!(fault(b"\x00\x53\x15\xc0\x02\x01\x40"), DecodeFault::Missing("role"));
    assert_eq!(fault(b"\x00\x53\x10\xc0\x02\x01\x40"), DecodeFault::Missing("container-id"));
    assert_eq!(fault(b"\x00\x53\x10\xc0\x03\x01\xa3\x00"), DecodeFault::Field("container-id"));
    assert_eq!(fault(b"\x00\x53\x12\xc0\x06\x03\xa1\x01a\x43\x40"), DecodeFault::Missing("role"));
    assert_eq!(fault(b"\x00\x53\x19\x45"), DecodeFault::Descriptor);
    assert_eq!(fault(b"\x00\xa3\x03abc\x45"), DecodeFault::Descriptor);
    assert_eq!(fault(b"\x45"), DecodeFault::Descriptor);
    assert_eq!(fault(b""), DecodeFault::Truncated);
    assert_eq!(fault(b"\x00\x53\x18\x40"), DecodeFault::Type { expected: "list" });
    // The properties of a flow are a map, its drain is a boolean.
    assert_eq!(
        fault(b"\x00\x53\x13\xc0\x0c\x0b\x40\x43\x43\x43\x40\x40\x40\x40\x40\x40\x45"),
        DecodeFault::Field("properties")
    );
}

#[test]
fn reads_the_rare_performatives_that_serde_amqp_writes() {
    let open = Open::decode(encode(&their_open())).unwrap();
    assert_eq!((open.container_id(), open.hostname()), ("device-1", Some("hub.example")));
    assert_eq!((open.max_frame_size(), open.channel_max()), (65536, 255));
    assert_eq!(open.idle_time_out(), Some(Duration::from_secs(120)));
    assert!(open.offered_capabilities().eq(["one", "two"]));
    assert!(open.desired_capabilities().eq(["three"]));
    assert_eq!(open.properties().unwrap().value("product"), Some(Value::Str("fieldgate")));
    assert_eq!(open.typed().unwrap(), their_open());

    let attach = Attach::decode(encode(&their_attach())).unwrap();
    assert_eq!((attach.name(), attach.handle(), attach.role()), ("link-1", 3, Role::Sender));
    assert_eq!(attach.snd_settle_mode(), SndSettleMode::Unsettled);
    assert_eq!(attach.rcv_settle_mode(), RcvSettleMode::Second);
    assert_eq!((attach.initial_delivery_count(), attach.max_message_size()), (Some(0), Some(1 << 40)));
    assert!(attach.desired_capabilities().eq(["DELAYED_DELIVERY"]));
    let source = attach.source().unwrap();
    assert_eq!((source.code(), source.address()), (descriptor::SOURCE, Some("messages/events")));
    assert!(matches!(source.filter().unwrap().value("selector"), Some(Value::Described(_))));
    assert!(source.capabilities().eq(["queue"]));
    assert_eq!(attach.target().unwrap().address(), Some("/devices/d"));
    assert_eq!(attach.typed().unwrap(), their_attach());

    let detach = theirs::Detach { handle: 3.into(), closed: true, error: Some(their_error()) };
    let detach = Detach::decode(encode(&detach)).unwrap();
    let error = detach.error().unwrap();
    assert_eq!((detach.handle(), detach.closed()), (3, true));
    assert_eq!((error.condition(), error.description()), ("amqp:not-found", Some("no such node")));
    assert_eq!(error.info().unwrap().value("vendor"), Some(Value::Int(7)));
    assert_eq!(error.encoded(), &encode(&their_error())[..]);
    assert_eq!(Close::decode(encode(&theirs::Close { error: None })).unwrap().error(), None);
}

#[test]
fn writes_the_rare_performatives_that_serde_amqp_reads() {
    let properties = raw_fields(&[("product", TheirValue::String("fieldgate".into()))]);
    let open = OpenOut {
        container_id: "device-1",
        hostname: Some("hub.example"),
        max_frame_size: 65536,
        channel_max: 255,
        idle_time_out: Some(Duration::from_secs(120)),
        offered_capabilities: &["one", "two"],
        desired_capabilities: &["three"],
        properties: Some(&properties),
    };
    assert_eq!(open.build().typed().unwrap(), their_open());
    assert_eq!(open.build().composite().len(), 10);

    let begin =
        BeginOut { remote_channel: Some(1), next_outgoing_id: 2, handle_max: 9, ..BeginOut::default() };
    let begin = begin.build();
    assert_eq!((begin.remote_channel(), begin.next_outgoing_id(), begin.handle_max()), (Some(1), 2, 9));
    assert_eq!(begin.typed().unwrap().handle_max.0, 9);
    assert_eq!(begin.composite().len(), 8);

    let filter = raw_fields(&[("x", TheirValue::Int(1))]);
    let source = SourceOut {
        address: Some("from"),
        filter: Some(&filter),
        default_outcome: Some(RELEASED),
        outcomes: &["amqp:accepted:list", "amqp:rejected:list"],
        ..SourceOut::default()
    };
    let target = TargetOut { address: Some("to"), capabilities: &["topic"], ..TargetOut::default() };
    let (source, target) = (source.build(), target.build());
    let attach =
        AttachOut { max_message_size: Some(1 << 20), ..AttachOut::sender("l", &source, &target) }.build();
    let typed = attach.typed().unwrap();
    assert_eq!(typed.source.unwrap().address.as_deref(), Some("from"));
    assert_eq!((typed.initial_delivery_count, typed.max_message_size), (Some(0), Some(1 << 20)));
    assert_eq!(attach.composite().len(), 14);
    assert_eq!((source.composite().len(), target.composite().len()), (11, 7));
    assert_eq!(source.expiry_policy(), Some("session-end"));
    let receiver = AttachOut::receiver("l", &source, &target).build();
    assert_eq!((receiver.role(), receiver.initial_delivery_count()), (Role::Receiver, None));
    assert!(receiver.typed().is_ok());

    let error = AmqpError::new(&Condition::NotFound, Some("no such node"));
    let error = error.with_info(&raw_fields(&[("vendor", TheirValue::Int(7))])).unwrap();
    for error in [None, Some(&error)] {
        let expected = error.map(|_| their_error());
        assert_eq!(End::new(error).typed().unwrap().error, expected);
        assert_eq!(Close::new(error).typed().unwrap().error, expected);
        let detach = DetachOut { handle: 4, closed: true, error }.build();
        assert_eq!(
            detach.typed().unwrap(),
            theirs::Detach { handle: 4.into(), closed: true, error: expected }
        );
    }
}

#[test]
fn delivery_states_agree() {
    let mut random = Random::new(11);
    for _ in 0..200 {
        let Some(state) = their_state(&mut random) else { continue };
        let bytes = encode(&state);
        let ours = DeliveryState::decode(&bytes).unwrap();
        assert_eq!(ours.is_outcome(), !matches!(state, theirs_msg::DeliveryState::Received(_)));
        let again = match ours {
            DeliveryState::Received { section_number, section_offset } => {
                received(section_number, section_offset)
            }
            DeliveryState::Accepted => Bytes::from_static(ACCEPTED),
            DeliveryState::Rejected(error) => rejected(error.as_ref()),
            DeliveryState::Released => Bytes::from_static(RELEASED),
            DeliveryState::Modified { delivery_failed, undeliverable_here, annotations } => {
                modified(delivery_failed, undeliverable_here, annotations)
            }
            DeliveryState::Other(_) => panic!("{state:?}"),
        };
        assert_eq!(serde_amqp::from_slice::<theirs_msg::DeliveryState>(&again).unwrap(), state);
    }
    // Accepted in its long form; a transaction's state; a vendor's, which is not even a list.
    assert_eq!(DeliveryState::decode(b"\x00\x53\x24\xc0\x01\x00"), Ok(DeliveryState::Accepted));
    let declared = b"\x00\x53\x33\xc0\x03\x01\xa0\x00";
    assert_eq!(DeliveryState::decode(declared), Ok(DeliveryState::Other(declared)));
    let vendor = b"\x00\xa3\x01v\xc1\x01\x00";
    assert_eq!(DeliveryState::decode(vendor), Ok(DeliveryState::Other(vendor)));
    assert!(DeliveryState::decode(b"\x00\x53\x23\x45").is_err());
}

#[test]
fn a_routed_attach_changes_only_where_it_is_patched() {
    let bytes = encode(&their_attach());
    let attach = Attach::decode(bytes.clone()).unwrap();
    let mut out = BytesMut::new();
    attach.write_patched(&mut out, &[(Attach::HANDLE, Patch::U32(70_000))]);
    let patched = Attach::decode(out.freeze()).unwrap();
    assert_eq!(patched.handle(), 70_000);
    for field in (0..14).filter(|&field| field != Attach::HANDLE) {
        assert_eq!(patched.composite().raw(field), attach.composite().raw(field), "{field}");
    }
    assert_eq!(patched.typed().unwrap(), theirs::Attach { handle: 70_000.into(), ..their_attach() });
    // Another address inside the source.
    let source = attach.source().unwrap().with_address("elsewhere");
    let mut out = BytesMut::new();
    attach.write_patched(&mut out, &[(Attach::SOURCE, Patch::Raw(source.encoded()))]);
    let patched = Attach::decode(out.freeze()).unwrap().source().unwrap();
    assert_eq!(patched.address(), Some("elsewhere"));
    assert_eq!(patched.composite().raw(7), attach.source().unwrap().composite().raw(7));
}

#[test]
fn what_is_not_understood_stays_as_it_came() {
    // A vendor's target, which is a map; a symbolic descriptor; string keys in the properties; 18 fields.
    let vendor = b"\x00\xa3\x0evendor:target1\xc1\x06\x02\xa1\x01k\x52\x07";
    let mut out = BytesMut::new();
    out.extend_from_slice(b"\x00\xa3\x10amqp:attach:list");
    crate::codec::put_list(&mut out, |out| {
        out.extend_from_slice(b"\xa1\x01n\x43\x42\x40\x40\x40");
        out.extend_from_slice(vendor);
        out.extend_from_slice(b"\x40\x40\x40\x40\x40\x40\xc1\x06\x02\xa1\x01k\x52\x07");
        out.extend_from_slice(b"\x52\x0f\x52\x10\x52\x11\x52\x12");
        18
    });
    let bytes = out.freeze();
    let attach = Attach::decode(bytes.clone()).unwrap();
    assert_eq!(attach.properties().unwrap().value("k"), Some(Value::Uint(7)));
    let target = attach.target().unwrap();
    assert_eq!((target.code(), target.address(), target.encoded()), (descriptor::UNKNOWN, None, &vendor[..]));
    assert_eq!(target.with_address("x"), target);
    assert!(attach.typed().is_err());
    let mut out = BytesMut::new();
    attach.write_patched(&mut out, &[(Attach::HANDLE, Patch::U32(0))]);
    assert_eq!(out, bytes);
    let mut out = BytesMut::new();
    attach.write_patched(&mut out, &[(Attach::HANDLE, Patch::U32(5))]);
    assert!(out.ends_with(b"\x52\x0f\x52\x10\x52\x11\x52\x12"));
    assert_eq!(Attach::decode(out.freeze()).unwrap().composite().len(), 18);
}

#[test]
fn a_patch_fills_the_list_up_and_the_last_one_counts() {
    let short = Composite::parse(Bytes::from_static(b"\x00\x53\x17\x45payload"), &Limits::WIRE).unwrap();
    assert_eq!((&short.1[..], short.0.is_empty()), (&b"payload"[..], true));
    assert_eq!(short.0.patched(&[]).unwrap().encoded(), b"\x00\x53\x17\xc0\x02\x01\x40");
    let detach = DetachOut { handle: 1, closed: false, error: None }.build();
    let twice = detach.composite().patched(&[(0, Patch::U32(2)), (0, Patch::U32(3)), (1, Patch::Bool(true))]);
    assert_eq!(Detach::try_from(twice.unwrap()).unwrap().handle(), 3);
    assert!(detach.composite().patched(&[(2, Patch::Raw(b"\xa1\x05x"))]).is_err());
    let all = [
        (0, Patch::Null),
        (1, Patch::U8(1)),
        (2, Patch::U16(2)),
        (3, Patch::U64(3)),
        (4, Patch::Str("s")),
        (5, Patch::Symbol("y")),
        (6, Patch::Binary(b"b")),
    ];
    let all = short.0.patched(&all).unwrap();
    assert_eq!((all.raw(0), all.u8(1), all.u16(2), all.u64(3)), (None, Some(1), Some(2), Some(3)));
    assert_eq!((all.str(4), all.symbol(5), all.binary(6)), (Some("s"), Some("y"), Some(&b"b"[..])));
    assert_eq!((all.u32(1), all.bool(4), all.raw(7), all.len()), (None, None, None, 7));
}

#[test]
fn what_a_peer_says_at_its_end_is_not_lost() {
    let odd = AmqpError::decode(Bytes::from_static(b"\x00\x53\x1d\x45")).unwrap();
    assert_eq!((odd.condition(), odd.description()), ("amqp:internal-error", None));
    let string = AmqpError::decode(Bytes::from_static(b"\x00\x53\x1d\xc0\x04\x01\xa1\x01x")).unwrap();
    assert_eq!(string.to_string(), "x");
    let none = AmqpError::decode(Bytes::from_static(b"\xa1\x01x")).unwrap();
    assert_eq!((none.condition(), none.encoded()), ("amqp:internal-error", &b"\xa1\x01x"[..]));
    assert!(AmqpError::decode(Bytes::from_static(b"\xa1\x05x")).is_err());
    let long = AmqpError::new(&Condition::Other("vendor:x".into()), Some(&"é".repeat(1000)));
    assert_eq!((long.condition(), long.description().unwrap().len()), ("vendor:x", 1024));
    for condition in ["amqp:link:stolen", "amqp:connection:framing-error", "vendor:x"] {
        assert_eq!(Condition::from(condition).as_str(), condition);
    }
}

#[test]
fn every_prefix_of_a_performative_is_refused() {
    let mut random = Random::new(12);
    for _ in 0..100 {
        for body in bodies(&mut random) {
            let end = crate::codec::validate(&body, &Limits::WIRE).unwrap();
            assert!(Performative::decode(body.clone()).is_ok());
            for end in 0..end {
                assert!(Performative::decode(body.slice(..end)).is_err());
            }
        }
    }
}

/// Reads all there is to read.
fn read_all(performative: &Performative) {
    let composite = match performative {
        Performative::Transfer(transfer) => {
            let mut out = BytesMut::new();
            transfer.fields().write(&mut out);
            assert_eq!(out.len(), transfer.fields().encoded_len());
            assert_eq!(Transfer::decode(out.freeze()).unwrap().fields(), transfer.fields());
            let _ = (transfer.payload(), transfer.state().map(DeliveryState::decode));
            return;
        }
        Performative::Flow(flow) => {
            let mut out = BytesMut::new();
            flow.fields().write(&mut out);
            assert_eq!(Flow::decode(out.freeze()).unwrap().fields(), flow.fields());
            return;
        }
        Performative::Disposition(disposition) => {
            let mut out = BytesMut::new();
            disposition.fields().write(&mut out);
            assert_eq!(Disposition::decode(out.freeze()).unwrap().fields(), disposition.fields());
            let _ = disposition.state().map(DeliveryState::decode);
            return;
        }
        Performative::Open(open) => {
            let _ = (
                open.container_id(),
                open.idle_time_out(),
                open.offered_capabilities().count(),
                open.typed(),
            );
            open.composite()
        }
        Performative::Begin(begin) => {
            let _ = (begin.remote_channel(), begin.handle_max(), begin.typed());
            begin.composite()
        }
        Performative::Attach(attach) => {
            for terminus in [attach.source(), attach.target()].into_iter().flatten() {
                let _ = (
                    terminus.address(),
                    terminus.filter(),
                    terminus.capabilities().count(),
                    terminus.dynamic(),
                );
                let _ = (terminus.default_outcome(), terminus.with_address("x"));
            }
            let _ = (attach.name(), attach.properties().map(|map| map.iter().count()), attach.typed());
            attach.composite()
        }
        Performative::Detach(detach) => {
            let _ = (detach.error().map(|error| error.to_string()), detach.typed());
            detach.composite()
        }
        Performative::End(end) => {
            let _ = (end.error().map(|error| error.to_string()), end.typed());
            end.composite()
        }
        Performative::Close(close) => {
            let _ = (close.error().map(|error| error.to_string()), close.typed());
            close.composite()
        }
    };
    // Nothing patched is nothing changed, but for nulls at the end.
    let again = composite.patched(&[]).unwrap();
    for field in 0..composite.len().min(16) {
        assert_eq!(again.raw(field), composite.raw(field));
    }
    let _ = format!("{composite:?}");
}

#[test]
fn damage_never_panics_and_what_passes_is_readable() {
    let mut random = Random::new(13);
    let (mut passed, mut refused) = (0, 0);
    for _ in 0..6_000 {
        for body in bodies(&mut random) {
            match Performative::decode(damaged(&body, &mut random)) {
                Ok(performative) => {
                    passed += 1;
                    read_all(&performative);
                }
                Err(_) => refused += 1,
            }
        }
    }
    assert!(passed > 5_000 && refused > 5_000, "{passed} passed, {refused} refused");
}

#[test]
fn values_in_which_serde_amqp_loses_its_place_are_kept_from_it() {
    let open = |properties: &[u8]| {
        let open = OpenOut { container_id: "c", properties: Some(properties), ..OpenOut::default() }.build();
        open.typed()
    };
    // {a: 1} passes; an array of maps, at which it overflows, does not.
    assert!(open(b"\xc1\x06\x02\xa3\x01a\x52\x01").is_ok());
    let maps = b"\xc1\x14\x02\xa3\x01a\xe0\x0e\x02\xc1\x05\x02\x52\x01\x52\x02\x05\x02\x52\x03\x52\x04";
    assert_eq!(crate::codec::validate(maps, &Limits::WIRE), Ok(maps.len()));
    assert_eq!(open(maps).unwrap_err().fault, DecodeFault::Typed);
    // An empty array with a constructor, and an array of described values.
    assert!(open(b"\xc1\x08\x02\xa3\x01a\xe0\x02\x00\xa3").is_err());
    assert!(open(b"\xc1\x0d\x02\xa3\x01a\xe0\x07\x02\x00\x53\x24\x50\x01\x02").is_err());
    // An error with a fourth field, inside a close.
    let close = Bytes::from_static(b"\x00\x53\x18\xc0\x0c\x01\x00\x53\x1d\xc0\x06\x04\xa3\x00\x40\x40\x40");
    assert_eq!(Close::decode(close).unwrap().typed().unwrap_err().fault, DecodeFault::Typed);
}
