//! Many devices on few connections: each hears what is its own, and nothing else.

use std::time::Duration;

use bytes::BytesMut;
use fieldgate_amqp::codec::{self, put_map};
use fieldgate_amqp::connection::{ConnectionConfig, Event, LinkFlow, TransferOut};
use fieldgate_amqp::performative::{ACCEPTED, Attach, AttachOut, RELEASED, Role, SourceOut, TargetOut};

use super::kit::{error, fields};
use super::shared_kit::{HOLD, Setup, Tokens, UNIX, World, attach, credit, node, settled, tagged};
use crate::router::Authorise;

const UNAUTHORIZED: &str = "amqp:unauthorized-access";

fn by_token() -> Setup {
    Setup { authorise: Authorise::Token, ..Setup::default() }
}

/// The conditions of the detaches that a device was told.
fn detached(world: &mut World, device: usize) -> Vec<String> {
    let detaches = world.device(device).detaches();
    detaches
        .iter()
        .map(|(detach, _)| detach.error().map_or_else(String::new, |error| error.condition().to_owned()))
        .collect()
}

/// The condition with which an attach of a device is refused: an answer without a node, and a detach.
fn refused(world: &mut World, device: usize, attach: &Attach) -> String {
    world.forget();
    let session = world.session(device);
    world.attach(device, session, attach);
    let (_, answer) = world.device(device).attached().expect("an answer");
    let node = if attach.role() == Role::Sender { answer.target() } else { answer.source() };
    assert!(node.is_none(), "{answer:?}");
    let [condition] = &detached(world, device)[..] else { panic!("one detach") };
    condition.clone()
}

#[test]
fn devices_of_one_name_and_one_link_name_share_a_connection() {
    let mut world = World::with(Setup::default(), 2);
    let (one, hub_one) = world.link(0, Role::Sender);
    let (two, hub_two) = world.link(1, Role::Sender);
    assert_eq!(world.hubs.len(), 1);
    let names: Vec<String> =
        world.hubs[0].links.iter().map(|(_, _, attach)| attach.name().to_owned()).collect();
    assert_ne!(names[0], names[1]);
    assert_ne!(world.hubs[0].links[0].1, world.hubs[0].links[1].1, "each has a session of its own");
    world.hub().machine.flow(hub_one, credit(1));
    world.hub().machine.flow(hub_two, credit(2));
    world.run();
    assert_eq!(world.device(0).machine.link(one).map(|link| link.credit), Some(1));
    assert_eq!(world.device(1).machine.link(two).map(|link| link.credit), Some(2));
    world.device(0).machine.transfer(one, tagged(b"t"), b"of one").expect("credit");
    world.device(1).machine.transfer(two, tagged(b"t"), b"of two").expect("credit");
    world.forget();
    world.run();
    let events = world.hub().take();
    let came = |link| {
        events.iter().find_map(|event| match event {
            Event::Transfer { link: on, session, delivery_id, transfer, .. } if *on == link => {
                Some((*session, *delivery_id, transfer.payload()))
            }
            _ => None,
        })
    };
    let (session, id, payload) = came(hub_one).expect("a transfer");
    assert_eq!(payload, "of one");
    assert_eq!(came(hub_two).expect("a transfer").2, "of two");
    world.hub().machine.disposition(session, settled(Role::Receiver, id, Some(RELEASED)));
    world.run();
    assert_eq!(world.device(0).dispositions().len(), 1);
    assert!(world.device(1).dispositions().is_empty());
}

#[test]
fn a_name_toward_the_hub_is_the_same_after_a_device_has_come_back() {
    let mut world = World::new(Setup::default());
    let mut names = Vec::new();
    for _ in 0..2 {
        let device = world.add("box", Some("devices/box"));
        let session = world.session(device);
        world.attach(device, session, &attach("link", Role::Sender, "devices/box/up"));
        names.push(world.hubs[0].links.last().expect("a link").2.name().to_owned());
        world.leave(device);
    }
    assert_eq!(names[0], names[1]);
    assert_eq!(world.router.kept(), (0, 0, 0));
}

#[test]
fn only_a_token_opens_the_way_and_only_while_it_lasts() {
    let mut world = World::with(by_token(), 2);
    assert_eq!(refused(&mut world, 0, &attach("l", Role::Sender, "devices/d0/up")), UNAUTHORIZED);
    assert_eq!(world.put(0, "hub.example/devices/d0", 100), Some(200));
    let (_, at_hub) = world.link(0, Role::Sender);
    for address in ["devices/d1/up", "devices/d00/up", "devices/D0/up", "devices/%64%30%30/up"] {
        assert_eq!(refused(&mut world, 0, &attach("m", Role::Sender, address)), UNAUTHORIZED, "{address}");
    }
    assert_eq!(
        refused(&mut world, 1, &attach("l", Role::Sender, "devices/d0/up")),
        UNAUTHORIZED,
        "a token is its connection's alone"
    );
    world.forget();
    world.pass(Duration::from_secs(98));
    assert!(detached(&mut world, 0).is_empty());
    world.pass(Duration::from_secs(5));
    assert_eq!(detached(&mut world, 0), [UNAUTHORIZED]);
    assert!(world.unix > UNIX + 100);
    assert!(world.hub().machine.link(at_hub).is_none(), "the hub has heard of it too");
}

#[test]
fn a_token_that_the_hub_refuses_opens_nothing() {
    let mut world = World::with(by_token(), 1);
    world.manners.tokens = Tokens::Refuses;
    assert_eq!(world.put(0, "hub.example/devices/d0", 100), Some(401));
    assert_eq!(refused(&mut world, 0, &attach("l", Role::Sender, "devices/d0/up")), UNAUTHORIZED);
    // One that nobody answers for is no token either.
    world.manners.tokens = Tokens::Ignores;
    assert_eq!(world.put(0, "hub.example/devices/d0", 200), None);
    world.pass(Duration::from_secs(11));
    assert_eq!(world.answered(0), Some(504));
    assert_eq!(refused(&mut world, 0, &attach("l", Role::Sender, "devices/d0/up")), UNAUTHORIZED);
}

#[test]
fn a_device_takes_over_its_own_links_when_they_are_finished() {
    for dead in [false, true] {
        let mut world = World::new(Setup::default());
        let old = world.add("box", Some("devices/d0"));
        let (_, at_hub) = world.link(old, Role::Sender);
        world.devices[old].dead = dead;
        world.hub().answers = false;
        let new = world.add("box", Some("devices/d0"));
        let session = world.session(new);
        world.attach(new, session, &attach("link", Role::Sender, "devices/d0/up"));
        assert_eq!(world.hubs[0].links.len(), 1, "the old one is finished first");
        assert!(world.device(new).attached().is_none());
        world.hub().machine.detach(at_hub, true, None);
        world.run();
        let links = &world.hubs[0].links;
        assert_eq!(links.len(), 2);
        assert_eq!(links[0].2.name(), links[1].2.name());
        assert!(world.device(new).attached().is_some_and(|(_, answer)| answer.target().is_some()));
        world.devices[old].dead = false;
        world.run();
        assert_eq!(detached(&mut world, old), ["amqp:link:stolen"]);
        assert!(detached(&mut world, new).is_empty());
    }
}

#[test]
fn a_link_that_is_taken_over_during_an_outage_is_the_new_ones() {
    let mut world = World::new(Setup::default());
    let old = world.add("box", Some("devices/d0"));
    world.link(old, Role::Sender);
    world.outage();
    let new = world.add("box", Some("devices/d0"));
    let session = world.session(new);
    world.attach(new, session, &attach("link", Role::Sender, "devices/d0/up"));
    assert_eq!(detached(&mut world, old), ["amqp:link:stolen"]);
    world.restore();
    assert_eq!(world.hubs[0].links.len(), 1);
    assert!(world.device(new).attached().is_some_and(|(_, answer)| answer.target().is_some()));
    // Or when the hub goes before it has let the old one go.
    world.hub().answers = false;
    let third = world.add("box", Some("devices/d0"));
    let session = world.session(third);
    world.attach(third, session, &attach("link", Role::Sender, "devices/d0/up"));
    world.outage();
    world.restore();
    assert_eq!(world.hubs[0].links.len(), 1);
    assert!(world.device(third).attached().is_some_and(|(_, answer)| answer.target().is_some()));
    assert_eq!(detached(&mut world, new), ["amqp:link:stolen"]);
}

#[test]
fn nobody_takes_over_the_links_of_another() {
    for [one, two] in [[None, None], [Some("devices/d0"), None], [Some("devices/d0"), Some("devices/d1")]] {
        let mut world = World::new(Setup::default());
        for identity in [one, two] {
            let device = world.add("box", identity);
            let session = world.session(device);
            world.attach(device, session, &attach("link", Role::Sender, "devices/d0/up"));
            assert!(world.device(device).attached().is_some_and(|(_, answer)| answer.target().is_some()));
        }
        assert!(detached(&mut world, 0).is_empty());
        assert_eq!(world.hub().machine.links(), 2);
    }
}

#[test]
fn what_a_shared_connection_cannot_carry_is_refused() {
    let mut world = World::with(by_token(), 1);
    assert_eq!(world.put(0, "hub.example/devices/d0", 100), Some(200));
    let source = SourceOut::default().build();
    let target = TargetOut::default().build();
    let null = AttachOut { target: None, ..AttachOut::sender("a", &source, &target) }.build();
    let nameless = AttachOut::sender("b", &source, &target).build();
    let made = TargetOut { dynamic: true, ..TargetOut::default() }.build();
    let dynamic = AttachOut::sender("c", &source, &made).build();
    let management = attach("d", Role::Sender, "$management");
    for attach in [null, nameless, dynamic, management] {
        assert_eq!(refused(&mut world, 0, &attach), "amqp:not-allowed");
    }
    assert_eq!(refused(&mut world, 0, &attach("e", Role::Receiver, "elsewhere")), "amqp:not-found");
    assert!(world.hubs[0].links.is_empty());
}

#[test]
fn one_canonical_address_goes_up_and_the_devices_own_spelling_comes_back() {
    let mut world = World::with(by_token(), 1);
    assert_eq!(world.put(0, "hub.example/devices/d0", 100), Some(200));
    for (name, written) in [("a", "amqps://HUB.example:5671/devices/d0/x"), ("b", "/devices/%640/x")] {
        for role in [Role::Sender, Role::Receiver] {
            let session = world.session(0);
            world.attach(0, session, &attach(name, role, written));
            let (_, _, sent) = world.hubs[0].links.last().expect("a link");
            assert_eq!(node(sent).as_deref(), Some("devices/d0/x"));
            let (_, answer) = world.device(0).attached().expect("an answer");
            let there = if role == Role::Sender { answer.target() } else { answer.source() };
            assert_eq!(there.expect("a node").address(), Some(written));
            assert_eq!(answer.name(), name);
        }
    }
}

#[test]
fn a_hubs_answer_passes_but_for_its_name() {
    let mut world = World::with(Setup::default(), 1);
    world.manners.answer = |attach| {
        let offered = AttachOut { offered_capabilities: &["vendor:odd"], ..attach };
        AttachOut { max_message_size: Some(77), properties: Some(&[0xc1, 0x01, 0x00]), ..offered }.build()
    };
    let session = world.session(0);
    world.attach(0, session, &attach("link", Role::Sender, "devices/d0/up"));
    let (_, answer) = world.device(0).attached().expect("an answer");
    let (_, _, asked) = &world.hubs[0].links[0];
    let (source, target) = (asked.source().expect("a source"), asked.target().expect("a target"));
    let said = (world.manners.answer)(AttachOut::receiver("link", &source, &target));
    assert_eq!(fields(&answer), fields(&said));
}

#[test]
fn a_refusal_a_detach_and_an_end_reach_the_one_that_is_meant() {
    let mut world = World::with(Setup::default(), 3);
    let (_, one) = world.link(0, Role::Sender);
    let (_, two) = world.link(1, Role::Sender);
    world.hub().machine.detach(one, false, Some(error("detach")));
    let session = world.hub().machine.session_of_link(two).expect("its session");
    world.hub().machine.end(session, Some(error("end")));
    world.manners.answers = false;
    let session = world.session(2);
    world.attach(2, session, &attach("link", Role::Sender, "devices/d2/up"));
    let (asked, _) = world.at_hub("devices/d2/up");
    world.hub().machine.refuse_attach(asked, error("refused"));
    world.run();
    let [(detach, _)] = &world.device(0).detaches()[..] else { panic!("one detach") };
    assert_eq!((detach.closed(), detach.error()), (false, Some(error("detach"))));
    let events = world.device(1).take();
    let [Event::SessionEnded { error: Some(told), .. }] = &events[..] else { panic!("{events:?}") };
    assert_eq!(*told, error("end"));
    let (_, answer) = world.device(2).attached().expect("an answer");
    assert!(answer.target().is_none());
    let [(detach, _)] = &world.device(2).detaches()[..] else { panic!("one detach") };
    assert_eq!(detach.error(), Some(error("refused")));
    assert_eq!(world.router.kept(), (4, 0, 0), "the sessions that go on, at both ends");
}

#[test]
fn a_session_may_have_links_to_two_hubs() {
    let mut world = World::with(Setup::default(), 1);
    let session = world.session(0);
    let one = world.attach(0, session, &attach("one", Role::Sender, "devices/d0/up"));
    let two = world.attach(0, session, &attach("two", Role::Sender, "other/up"));
    assert_eq!(world.hubs.len(), 2);
    for at in 0..2 {
        let (link, _, _) = world.hubs[at].links[0];
        world.hubs[at].peer.machine.flow(link, credit(3));
    }
    world.run();
    world.forget();
    for tag in [b"a", b"b"] {
        world.device(0).machine.transfer(one, tagged(tag), b"one").expect("credit");
        world.device(0).machine.transfer(two, tagged(tag), b"two").expect("credit");
    }
    world.run();
    for at in 0..2 {
        let ids: Vec<u32> = world.hubs[at].peer.transfers().iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [0, 1]);
        let session = world.hubs[at].links[0].1;
        let state = if at == 0 { ACCEPTED } else { RELEASED };
        world.hubs[at].peer.machine.disposition(session, settled(Role::Receiver, 1, Some(state)));
        world.run();
        let [told] = &world.device(0).dispositions()[..] else { panic!("one") };
        assert_eq!((told.first, told.state()), (2 + at as u32, Some(state)));
    }
    // What one hub does to the session does not end the links to the other.
    let session = world.hubs[1].links[0].1;
    world.hubs[1].peer.machine.end(session, Some(error("end")));
    world.run();
    let [(detach, _)] = &world.device(0).detaches()[..] else { panic!("one detach") };
    assert_eq!(detach.error(), Some(error("end")));
    world.device(0).machine.transfer(one, tagged(b"c"), b"one").expect("credit");
    world.run();
    assert_eq!(world.hubs[0].peer.transfers().len(), 1);
}

#[test]
fn a_device_that_takes_nothing_holds_up_only_itself() {
    let mut world = World::with(Setup::default(), 2);
    let (slow, hub_slow) = world.link(0, Role::Receiver);
    let (quick, hub_quick) = world.link(1, Role::Receiver);
    world.device(0).machine.flow(slow, credit(1000));
    world.device(1).machine.flow(quick, credit(10));
    world.run();
    world.devices[0].dead = true;
    world.forget();
    let mut sent = 0_u32;
    // The hub sends as long as the window of the session is open.
    let session = world.hub().machine.session_of_link(hub_slow).expect("its session");
    while sent < 400 && world.hub().machine.session_backlog_bytes(session) == 0 {
        let tag = sent.to_be_bytes();
        world.hub().machine.transfer(hub_slow, tagged(&tag), &[7; 30_000]).expect("credit");
        sent += 1;
        world.run();
    }
    assert!(sent < 400, "the window shuts");
    let key = world.devices[0].key;
    let waits = world.router.device(key).expect("there").backlog();
    assert!(waits < 4 * 1024 * 1024, "{waits} bytes");
    world.hub().machine.transfer(hub_quick, tagged(b"q"), b"quick").expect("credit");
    world.run();
    assert_eq!(world.device(1).transfers().len(), 1);
    world.devices[0].dead = false;
    world.run();
    let whole = world.device(0).transfers().iter().filter(|(_, transfer)| !transfer.more).count();
    assert_eq!(whole as u32, sent, "it goes on where it stopped");
}

#[test]
fn a_window_that_a_device_shuts_holds_up_only_its_session() {
    let device = ConnectionConfig { incoming_window: 1, max_frame_bytes: 512, ..Setup::default().device };
    let mut world = World::with(Setup { device, ..Setup::default() }, 1);
    let (slow, hub_slow) = world.link(0, Role::Receiver);
    world.device(0).machine.flow(slow, credit(1000));
    world.run();
    for tag in 0..20_u32 {
        let tag = tag.to_be_bytes();
        world.hub().machine.transfer(hub_slow, tagged(&tag), &[7; 20_000]).expect("credit");
    }
    world.forget();
    world.run();
    let whole = world.device(0).transfers().iter().filter(|(_, transfer)| !transfer.more).count();
    assert_eq!(whole, 20, "a frame at a time, and all of it");
}

#[test]
fn devices_spread_over_connections_until_there_are_no_more() {
    let setup = Setup { devices_per_connection: 2, max_connections: 2, ..Setup::default() };
    let mut world = World::with(setup, 5);
    for device in 0..4 {
        world.link(device, Role::Sender);
    }
    assert_eq!(world.hubs.len(), 2);
    let keys: Vec<_> = world.hubs.iter().map(|hub| hub.key).collect();
    assert_eq!(keys.iter().map(|key| world.router.trunk_devices(*key)).collect::<Vec<_>>(), [2, 2]);
    let attach = attach("link", Role::Sender, "devices/d4/up");
    assert_eq!(refused(&mut world, 4, &attach), "amqp:resource-limit-exceeded");
    world.leave(0);
    let session = world.session(3);
    world.attach(3, session, &attach);
    assert!(world.device(3).attached().is_some_and(|(_, answer)| answer.target().is_some()));
}

#[test]
fn a_connection_that_nobody_needs_is_closed() {
    let mut world = World::with(Setup::default(), 2);
    world.link(0, Role::Sender);
    world.leave(0);
    world.pass(HOLD);
    assert!(world.hubs.is_empty());
    world.link(0, Role::Sender);
    assert_eq!(world.hubs.len(), 1, "and made again for who comes");
}

#[test]
fn a_device_that_leaves_in_mid_delivery_leaves_nothing_half_done() {
    let mut world = World::with(Setup::default(), 2);
    let (link, at_hub) = world.link(0, Role::Sender);
    let (stays, hub_stays) = world.link(1, Role::Sender);
    world.hub().machine.flow(at_hub, credit(2));
    world.hub().machine.flow(hub_stays, credit(2));
    world.run();
    world.forget();
    let begun = TransferOut { more: true, ..tagged(b"cut") };
    world.device(0).machine.transfer(link, begun, b"one").expect("credit");
    world.run();
    world.leave(0);
    let events = world.hub().take();
    assert!(matches!(&events[0], Event::Transfer { transfer, .. } if transfer.more));
    assert!(matches!(&events[1], Event::Transfer { transfer, .. } if transfer.aborted));
    assert!(matches!(&events[2], Event::SessionEnded { .. }));
    world.device(0).machine.transfer(stays, tagged(b"whole"), b"x").expect("credit");
    world.run();
    assert_eq!(world.hub().transfers().len(), 1);
    assert_eq!(world.router.kept(), (2, 2, 1));
}

#[test]
fn numbers_of_all_sessions_go_round_the_circle() {
    let near = |first| ConnectionConfig { first_transfer_id: first, ..Setup::default().device };
    let setup = Setup { device: near(u32::MAX - 1), up: near(u32::MAX), ..Setup::default() };
    let mut world = World::with(setup, 1);
    let session = world.session(0);
    let node = SourceOut { address: Some("devices/d0/up"), ..SourceOut::default() }.build();
    let target = TargetOut { address: Some("devices/d0/up"), ..TargetOut::default() }.build();
    let sender =
        AttachOut { initial_delivery_count: Some(u32::MAX - 1), ..AttachOut::sender("link", &node, &target) };
    let link = world.attach(0, session, &sender.build());
    let (at_hub, hub_session) = world.at_hub("devices/d0/up");
    world.hub().machine.flow(at_hub, credit(4));
    world.run();
    for tag in 0..4_u8 {
        world.device(0).machine.transfer(link, tagged(&[tag]), b"x").expect("credit");
    }
    world.forget();
    world.run();
    let ids: Vec<u32> = world.hub().transfers().iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, [u32::MAX, 0, 1, 2]);
    world.hub().machine.disposition(hub_session, settled(Role::Receiver, 2, Some(ACCEPTED)));
    world.hub().machine.flow(at_hub, credit(2));
    world.run();
    assert_eq!(
        world.device(0).machine.link(link).map(|link| (link.delivery_count, link.credit)),
        Some((2, 2))
    );
    let [told] = &world.device(0).dispositions()[..] else { panic!("one") };
    assert_eq!(told.first, 1);
}

#[test]
fn links_wait_until_the_hub_has_said_how_many_it_takes() {
    let mut setup = Setup::default();
    setup.hub.handle_max = 15;
    let mut world = World::with(setup, 2);
    let (other, _) = world.link(1, Role::Sender);
    let session = world.session(0);
    let links: Vec<_> = (0..40)
        .map(|number| {
            let attach = attach(&format!("link{number}"), Role::Sender, "devices/d0/up");
            world.device(0).machine.attach(session, &attach).expect("attached")
        })
        .collect();
    world.run();
    // A seventeenth would have cost the connection, and with it the links of all.
    assert!(world.hub().machine.is_open());
    assert_eq!(world.hubs[0].links.len(), 1 + 16);
    assert_eq!(detached(&mut world, 0), vec!["amqp:resource-limit-exceeded"; 40 - 16]);
    let stand = links.iter().filter(|link| world.devices[0].peer.machine.link(**link).is_some()).count();
    assert_eq!(stand, 16);
    assert!(world.device(1).machine.link(other).is_some());
}

#[test]
fn one_device_does_not_take_all_channels() {
    let mut setup = Setup::default();
    setup.hub.channel_max = 9;
    let mut world = World::with(setup, 2);
    world.link(0, Role::Sender);
    world.forget();
    for number in 0..20 {
        let session = world.session(0);
        world.attach(0, session, &attach(&format!("link{number}"), Role::Sender, "devices/d0/up"));
    }
    let refused = detached(&mut world, 0);
    assert!(
        !refused.is_empty() && refused.iter().all(|it| it == "amqp:resource-limit-exceeded"),
        "{refused:?}"
    );
    assert_eq!(20 - refused.len(), 4, "of ten channels five are for devices that have none");
    world.link(1, Role::Sender);
    assert!(detached(&mut world, 1).is_empty());
    assert_eq!(world.hubs.len(), 1);
}

#[test]
fn what_waits_for_a_window_of_the_hub_costs_the_session_and_not_the_connection() {
    let mut setup = Setup::default();
    setup.up.max_backlog_bytes = 100_000;
    setup.hub.incoming_window = 1;
    let mut world = World::with(setup, 2);
    let (other, _) = world.link(1, Role::Sender);
    let (link, at_hub) = world.link(0, Role::Sender);
    let (_, session) = world.at_hub("devices/d0/up");
    world.hub().machine.flow(at_hub, credit(10));
    world.hub().machine.stall(session);
    world.run();
    for tag in 0..3_u8 {
        world.device(0).machine.transfer(link, tagged(&[tag]), b"m").expect("credit");
    }
    world.run();
    let mut properties = BytesMut::new();
    put_map(&mut properties, |out| {
        codec::put_symbol(out, "why");
        codec::put_binary(out, &[0; 60_000]);
        1
    });
    world.forget();
    for _ in 0..2 {
        let flow = LinkFlow { properties: Some(&properties), ..LinkFlow::default() };
        world.device(0).machine.flow(link, flow);
        world.run();
    }
    let events = world.device(0).take();
    let Some(Event::SessionEnded { error: Some(error), .. }) = events.last() else { panic!("{events:?}") };
    assert_eq!(error.condition(), "amqp:resource-limit-exceeded");
    assert!(world.hub().machine.is_open());
    assert!(world.device(1).machine.link(other).is_some());
}
