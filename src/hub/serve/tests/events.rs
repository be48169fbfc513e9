//! Telemetry, and those who read it.

use bytes::BytesMut;
use fieldgate_amqp::codec::{put_descriptor, put_map, put_str, put_symbol};
use fieldgate_amqp::connection::{LinkFlow, LinkId, TransferOut};
use fieldgate_amqp::message::put_data;
use fieldgate_amqp::performative::{AttachOut, RcvSettleMode, SndSettleMode, SourceOut, TargetOut, Terminus};

use super::world::{Client, World, event, narrow_window};

const EVENTS: &str = "devices/d/messages/events";
/// With one partition, everything is there.
const ONE: &str = "partitions = 1\n";
const LOG: &str = "messages/events/ConsumerGroups/$Default/Partitions/0";

fn bodies(client: &mut Client) -> Vec<Vec<u8>> {
    client.take_deliveries().iter().map(|got| got.body()).collect()
}

fn reader(world: &World, client: &mut Client, name: &str, selector: &str) -> Result<LinkId, String> {
    let mut filter = BytesMut::new();
    put_map(&mut filter, |out| {
        put_symbol(out, "apache.org:selector-filter:string");
        put_descriptor(out, 0x0000_468c_0000_0004);
        put_str(out, selector);
        1
    });
    let source = SourceOut { address: Some(LOG), filter: Some(&filter), ..SourceOut::default() }.build();
    let target = TargetOut::default().build();
    let link = client.attach(world, &AttachOut::receiver(name, &source, &target).build())?;
    client.give(world, link, 100);
    Ok(link)
}

#[test]
fn what_a_device_sends_can_be_read_by_everybody_and_again() {
    let world = World::with(ONE);
    let mut device = world.device("d");
    let link = device.sender(&world, "e", EVENTS).unwrap();
    let answer = device.take_attach(link).unwrap();
    assert_eq!(answer.max_message_size(), Some(320 * 1024));
    assert_eq!(device.ask(&world, link, &event(b"one")), Ok(()));

    let mut readers = [world.service(), world.service()];
    for client in &mut readers {
        client.receiver(&world, "r", LOG, 10).unwrap();
        let got = client.take_deliveries();
        assert_eq!(got[0].body(), b"one");
        assert!(!got[0].settled);
        assert_eq!(got[0].annotation("iothub-connection-device-id").as_deref(), Some("d"));
        assert_eq!(got[0].annotation("x-opt-sequence-number").as_deref(), Some("Long(0)"));
        assert_eq!(got[0].annotation("x-opt-offset").as_deref(), Some("0"));
    }
    // What comes later reaches those who wait.
    assert_eq!(device.ask(&world, link, &event(b"two")), Ok(()));
    for client in &mut readers {
        client.turn(&world);
        assert_eq!(bodies(client), [b"two"]);
    }
    let mut late = world.service();
    late.receiver(&world, "r", LOG, 10).unwrap();
    assert_eq!(bodies(&mut late), [b"one", b"two"]);
}

#[test]
fn readers_begin_where_they_say() {
    let world = World::with(ONE);
    let mut device = world.device("d");
    let link = device.sender(&world, "e", EVENTS).unwrap();
    for body in [b"0", b"1", b"2"] {
        device.ask(&world, link, &event(body)).unwrap();
    }
    let mut client = world.service();
    let mut begin = |name: &str, selector: &str| {
        let link = reader(&world, &mut client, name, selector)?;
        // The answer names the filter that is applied.
        let source = client.take_attach(link).unwrap().source().unwrap();
        assert_eq!(source.filter().map(|filter| filter.len()), Some(1), "{selector}");
        Ok::<_, String>(bodies(&mut client).len())
    };
    assert_eq!(begin("a", "amqp.annotation.x-opt-offset > '-1'"), Ok(3));
    assert_eq!(begin("b", "amqp.annotation.x-opt-offset > '@latest'"), Ok(0));
    assert_eq!(begin("c", "amqp.annotation.x-opt-sequence-number >= '1'"), Ok(2));
    assert_eq!(begin("d", "amqp.annotation.x-opt-offset > '0'"), Ok(2));
    assert_eq!(begin("e", "something else"), Err("amqp:invalid-field".into()));
    let link = client.receiver(&world, "f", LOG, 1).unwrap();
    assert!(client.take_attach(link).unwrap().source().as_ref().and_then(Terminus::filter).is_none());
}

#[test]
fn who_never_settles_is_served_on_and_on() {
    let world = World::with(ONE);
    let mut device = world.device("d");
    let link = device.sender(&world, "e", EVENTS).unwrap();
    let mut client = world.service();
    let slow = client.receiver(&world, "r", LOG, 0).unwrap();
    for _ in 0..10 {
        for _ in 0..500 {
            device.send_as(link, 0, true, &event(b"x"));
        }
        device.turn(&world);
    }
    client.give(&world, slow, 5000);
    assert_eq!(bodies(&mut client).len(), 5000);
}

#[test]
fn readers_that_wait_to_be_settled_get_settled_deliveries() {
    let world = World::with(ONE);
    let mut device = world.device("d");
    let link = device.sender(&world, "e", EVENTS).unwrap();
    device.ask(&world, link, &event(b"x")).unwrap();
    let mut client = world.service();
    for (name, snd, rcv, settled) in [
        ("a", SndSettleMode::Unsettled, RcvSettleMode::First, false),
        ("b", SndSettleMode::Settled, RcvSettleMode::First, true),
        ("c", SndSettleMode::Unsettled, RcvSettleMode::Second, true),
    ] {
        let link = client.receiver_with(&world, name, LOG, 1, snd, rcv).unwrap();
        let got = client.take_deliveries();
        assert_eq!(got[0].settled, settled, "{name}");
        let answer = client.take_attach(link).unwrap();
        assert_eq!(answer.snd_settle_mode() == SndSettleMode::Settled, settled);
        // A disposition over what is not lent changes nothing and is not answered.
        client.accept(&world, got[0].id);
        assert!(client.disposition_of(got[0].id).is_none());
    }
}

#[test]
fn batches_are_unpacked_under_one_outcome() {
    let world = World::with(ONE);
    let mut device = world.device("d");
    let link = device.sender(&world, "e", EVENTS).unwrap();
    let mut batch = BytesMut::new();
    put_data(&mut batch, &event(b"one"));
    put_data(&mut batch, &event(b"two"));
    let id = device.send_as(link, 0x8001_3700, false, &batch);
    device.turn(&world);
    assert!(device.disposition_of(id).is_some());
    let mut client = world.service();
    client.receiver(&world, "r", LOG, 10).unwrap();
    assert_eq!(bodies(&mut client), [b"one", b"two"]);
}

#[test]
fn bad_messages_are_rejected_and_large_ones_end_the_link() {
    let world = World::new();
    let mut device = world.device("d");
    let link = device.sender(&world, "e", EVENTS).unwrap();
    assert_eq!(device.ask(&world, link, b"\x00\x53\x75"), Err("amqp:decode-error".into()));
    let large = event(&vec![0; 256 * 1024 + 1]);
    assert_eq!(device.ask(&world, link, &large), Err("amqp:link:message-size-exceeded".into()));
    assert_eq!(device.ask(&world, link, &event(&vec![0; 256 * 1024])), Ok(()));
    device.send(link, &event(&vec![0; 330 * 1024]));
    device.turn(&world);
    assert_eq!(device.detached(link).as_deref(), Some("amqp:link:message-size-exceeded"));
    let link = device.sender(&world, "f", EVENTS).unwrap();
    assert_eq!(device.ask(&world, link, &event(b"x")), Ok(()));
}

#[test]
fn a_delivery_may_come_in_pieces_or_be_aborted() {
    let world = World::with(ONE);
    let mut device = world.device("d");
    let link = device.sender(&world, "e", EVENTS).unwrap();
    let piece = |more, aborted| TransferOut {
        delivery_tag: Some(b"t"),
        message_format: Some(0),
        more,
        aborted,
        ..TransferOut::default()
    };
    let message = event(b"in pieces");
    device.machine.transfer(link, piece(true, false), &message[..4]).unwrap();
    device.turn(&world);
    device.machine.transfer(link, piece(false, true), &[]).unwrap();
    device.machine.transfer(link, piece(true, false), &message[..4]).unwrap();
    device.turn(&world);
    device.machine.transfer(link, piece(false, false), &message[4..]).unwrap();
    device.turn(&world);
    let mut client = world.service();
    client.receiver(&world, "r", LOG, 10).unwrap();
    assert_eq!(bodies(&mut client), [b"in pieces"]);
}

#[test]
fn drain_and_echo_are_answered() {
    let world = World::with(ONE);
    let mut client = world.service();
    let link = client.receiver(&world, "r", LOG, 10).unwrap();
    client.machine.flow(link, LinkFlow { link_credit: 10, drain: true, ..LinkFlow::default() });
    client.turn(&world);
    assert_eq!(client.machine.link(link).map(|info| (info.credit, info.delivery_count)), Some((0, 10)));
    // Once credit is given again, it goes on.
    let mut device = world.device("d");
    let sending = device.sender(&world, "e", EVENTS).unwrap();
    device.ask(&world, sending, &event(b"x")).unwrap();
    client.turn(&world);
    assert!(client.take_deliveries().is_empty());
    client.give(&world, link, 1);
    assert_eq!(bodies(&mut client), [b"x"]);
}

#[test]
fn a_partition_has_five_readers_in_a_group() {
    let world = World::with(ONE);
    let mut client = world.service();
    let links: Vec<LinkId> =
        (0..5).map(|index| client.receiver(&world, &format!("r{index}"), LOG, 1).unwrap()).collect();
    assert_eq!(client.receiver(&world, "r5", LOG, 1).unwrap_err(), "amqp:resource-limit-exceeded");
    let other = "messages/events/ConsumerGroups/other/Partitions/0";
    assert!(client.receiver(&world, "o", other, 1).is_ok());
    client.machine.detach(links[0], true, None);
    client.turn(&world);
    assert!(client.receiver(&world, "r6", LOG, 1).is_ok());
}

#[test]
fn a_reader_that_opens_no_window_holds_little_and_goes_on_when_it_does() {
    let world = World::with(ONE);
    let mut device = world.device("d");
    let link = device.sender(&world, "e", EVENTS).unwrap();
    for _ in 0..200 {
        device.ask(&world, link, &event(&[7; 10_000])).unwrap();
    }
    // The client takes events only when told to: its window shuts after two frames.
    let mut client =
        world.connect_with(fieldgate_amqp::connection::ClientSecurity::Anonymous, narrow_window(2));
    let token = super::world::token("iothubowner", "localhost", world.unix() + 60);
    assert_eq!(client.put_token(&world, &token, "localhost"), 200);
    client.receiver(&world, "r", LOG, 1000).unwrap();
    assert_eq!(bodies(&mut client).len(), 200);
}
