//! Peers that mean no good: whatever they send, the hub answers, holds little, and goes on.

use bytes::Bytes;
use fieldgate_amqp::connection::{ClientSecurity, ConnectionConfig, TransferOut};
use fieldgate_amqp::performative::{DispositionOut, Role};

use super::world::{HOUR, World, command, device_token, event, narrow_window, token};

const EVENTS: &str = "devices/d/messages/events";

#[test]
fn deliveries_that_never_end_end_their_link() {
    let world = World::new();
    let mut device = world.device("d");
    let begun = TransferOut { delivery_tag: Some(b"t"), more: true, ..TransferOut::default() };
    let mut ended = 0;
    for index in 0..64 {
        let link = device.sender(&world, &format!("e{index}"), EVENTS).unwrap();
        device.machine.transfer(link, begun, &vec![0; 300 * 1024]).unwrap();
        device.turn(&world);
        if let Some(condition) = device.detached(link) {
            assert_eq!(condition, "amqp:resource-limit-exceeded");
            ended += 1;
        }
    }
    assert_eq!(ended, 64 - 27, "8 MiB hold 27 deliveries of 300 KiB");
}

#[test]
fn requests_whose_answers_nobody_takes_are_bounded() {
    let world = World::new();
    let mut client = world.connect();
    let out = client.sender(&world, "cbs-out", "$cbs").unwrap();
    for _ in 0..1000 {
        client.send(out, &event(b"no request"));
        client.turn(&world);
    }
    let back = client.receiver(&world, "cbs-in", "$cbs", 10_000).unwrap();
    assert_eq!(client.take_deliveries().iter().filter(|got| got.link == back).count(), 100);
    assert_eq!(client.put_token(&world, &device_token("d", world.unix() + HOUR), "localhost"), 200);
}

#[test]
fn tokens_of_one_connection_are_bounded() {
    let world = World::new();
    let mut client = world.connect();
    for index in 0..1024 {
        let id = format!("d{index}");
        assert_eq!(client.put_token(&world, &device_token(&id, world.unix() + HOUR), "localhost"), 200);
    }
    assert_eq!(client.put_token(&world, &device_token("more", world.unix() + HOUR), "localhost"), 403);
    assert_eq!(
        client.put_token(&world, &device_token("d7", world.unix() + HOUR), "localhost"),
        200,
        "renewed"
    );
}

#[test]
fn a_reader_with_shut_windows_holds_little() {
    let world = World::with("partitions = 1\n");
    let mut device = world.device("d");
    let link = device.sender(&world, "e", EVENTS).unwrap();
    for _ in 0..50 {
        device.ask(&world, link, &event(&vec![7; 200_000])).unwrap();
    }
    // Many sessions, each with a window of one frame that never opens again: nobody reads the client's side.
    let mut client = world.connect_with(ClientSecurity::Anonymous, narrow_window(1));
    let token = token("iothubowner", "localhost", world.unix() + HOUR);
    assert_eq!(client.put_token(&world, &token, "localhost"), 200);
    let log = |group: usize| format!("messages/events/ConsumerGroups/g{group}/Partitions/0");
    for group in 0..30 {
        client.session = Some(client.machine.begin().unwrap());
        client.turn(&world);
        let link = client.receiver(&world, "r", &log(group), 0).unwrap();
        client
            .machine
            .flow(link, fieldgate_amqp::connection::LinkFlow { link_credit: 1000, ..Default::default() });
    }
    let credit = client.machine.poll_transmit().unwrap();
    client.peer.machine.handle_input(world.now.instant, credit);
    let mut written = 0;
    for _ in 0..1000 {
        client.peer.handle_events(world.now);
        client.peer.pump(world.now, 0);
        written += client.peer.machine.poll_transmit().map_or(0, |bytes| bytes.len());
    }
    let held: usize = client.peer.held_bytes();
    assert!(held < 2 * 1024 * 1024, "{held} bytes held");
    assert!(written < 4 * 1024 * 1024, "{written} bytes written");
    assert!(held > 0 && written > 0);
}

#[test]
fn a_peer_that_reads_nothing_is_told_no_more() {
    let world = World::with("partitions = 1\n");
    let mut device = world.device("d");
    let link = device.sender(&world, "e", EVENTS).unwrap();
    for _ in 0..50 {
        device.ask(&world, link, &event(&vec![7; 100_000])).unwrap();
    }
    let mut client = world.service();
    let link = client.receiver(&world, "r", "messages/events/ConsumerGroups/g/Partitions/0", 0).unwrap();
    client
        .machine
        .flow(link, fieldgate_amqp::connection::LinkFlow { link_credit: 1000, ..Default::default() });
    let credit = client.machine.poll_transmit().unwrap();
    client.peer.machine.handle_input(world.now.instant, credit);
    for _ in 0..100 {
        client.peer.handle_events(world.now);
        client.peer.pump(world.now, 0);
    }
    let waiting = client.peer.machine.output_bytes();
    assert!((256 * 1024..512 * 1024).contains(&waiting), "{waiting} bytes wait");
    assert!(client.peer.is_stalled());
    // What has left the machine and not the process counts as well.
    let unwritten = client.peer.machine.poll_transmit().unwrap().len();
    client.peer.pump(world.now, unwritten);
    assert_eq!(client.peer.machine.output_bytes(), 0);
    client.peer.pump(world.now, 0);
    assert!(client.peer.machine.output_bytes() > 0, "it goes on");
}

#[test]
fn dispositions_over_everything_and_nothing() {
    let world = World::new();
    let mut device = world.device("d");
    device.receiver(&world, "c", "/devices/d/messages/devicebound", 10).unwrap();
    let mut service = world.service();
    let link = service.sender(&world, "s", "/messages/devicebound").unwrap();
    for (first, last) in [(0, u32::MAX), (5, 4), (u32::MAX, 0), (1 << 31, u32::MAX)] {
        for role in [Role::Receiver, Role::Sender] {
            let disposition =
                DispositionOut { role, first, last, settled: true, state: None, batchable: true };
            device.machine.disposition(device.session.unwrap(), disposition);
        }
        device.turn(&world);
        assert_eq!(service.ask(&world, link, &command("d", "m", "none", b"x")), Ok(()));
        device.turn(&world);
        let got = device.take_deliveries();
        assert!(!got.is_empty(), "{first}..{last}");
        got.iter().for_each(|got| device.accept(&world, got.id));
    }
}

/// A small generator that needs no dependency (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }
}

/// A whole conversation, recorded as the bytes of the client.
fn conversation(world: &World) -> Vec<u8> {
    let mut client = world.connect_with(ClientSecurity::Bare, ConnectionConfig::default());
    let mut recorded = Vec::new();
    let mut record = |client: &mut super::world::Client| {
        if let Some(bytes) = client.machine.poll_transmit() {
            recorded.extend_from_slice(&bytes);
            client.peer.machine.handle_input(world.now.instant, bytes);
        }
        client.turn(world);
    };
    // The first flight went by before recording: replay it.
    let config = std::sync::Arc::new(ConnectionConfig::default());
    let open = config.open();
    let mut first =
        fieldgate_amqp::connection::Connection::client(config, ClientSecurity::Bare, open, world.now.instant);
    first.begin().unwrap();
    let hello = first.poll_transmit().unwrap();
    assert_eq!(
        client.put_token(world, &token("iothubowner", "localhost", world.unix() + HOUR), "localhost"),
        200
    );
    let session = client.session.unwrap();
    for (index, address) in [EVENTS, "/messages/devicebound"].into_iter().enumerate() {
        let target =
            fieldgate_amqp::performative::TargetOut { address: Some(address), ..Default::default() }.build();
        let source = fieldgate_amqp::performative::SourceOut::default().build();
        let attach =
            fieldgate_amqp::performative::AttachOut::sender(["x", "y"][index], &source, &target).build();
        let link = client.machine.attach(session, &attach).unwrap();
        record(&mut client);
        client.send(link, &command("d", "m", "full", b"body"));
        record(&mut client);
    }
    [&hello[..], &recorded].concat()
}

#[test]
fn garbled_conversations_never_break_the_hub() {
    let world = World::new();
    let conversation = conversation(&world);
    let mut random = Random(0x5eed);
    for round in 0..3000 {
        let mut bytes = conversation.clone();
        for _ in 0..random.below(4) {
            let at = random.below(bytes.len());
            match random.below(3) {
                0 => bytes[at] = random.below(256) as u8,
                1 => bytes.truncate(at.max(1)),
                _ => {
                    let other = random.below(bytes.len());
                    let (from, to) = (at.min(other), at.max(other).min(at.min(other) + 200));
                    let piece = bytes[from..to].to_vec();
                    bytes.splice(from..from, piece);
                }
            }
        }
        let client = &mut world.connect_with(ClientSecurity::Bare, ConnectionConfig::default()).peer;
        let mut peer = super::super::peer::Peer::new(
            std::sync::Arc::new(super::super::peer::connection_config("hub".into())),
            crate::hub::telemetry::ConnectionNumber(round),
            std::rc::Rc::clone(&world.shared),
            world.now.instant,
        );
        std::mem::swap(client, &mut peer);
        for chunk in bytes.chunks(1 + random.below(300)) {
            client.machine.handle_input(world.now.instant, Bytes::copy_from_slice(chunk));
            client.handle_events(world.now);
            client.pump(world.now, 0);
            let _ = client.machine.poll_transmit();
            if client.machine.is_closed() {
                break;
            }
        }
        client.lose();
    }
    // And somebody else notices nothing of it.
    let mut device = world.device("after");
    let link = device.sender(&world, "e", "devices/after/messages/events").unwrap();
    assert_eq!(device.ask(&world, link, &event(b"x")), Ok(()));
}
