//! Outages of hubs, sentence by sentence: what devices hear of them, and what becomes of what was under way.

use std::time::Duration;

use fieldgate_amqp::connection::{ConnectionConfig, Event, Half, LinkFlow, TransferOut};
use fieldgate_amqp::performative::{ACCEPTED, AttachOut, RELEASED, Role, SourceOut, TargetOut, modified};

use super::kit::error;
use super::shared_kit::{HOLD, Setup, Tokens, World, attach, credit, settled, tagged};
use crate::router::Authorise;

const FORCED: &str = "amqp:link:detach-forced";
const UNAUTHORIZED: &str = "amqp:unauthorized-access";
const SECOND: Duration = Duration::from_secs(1);

/// The conditions of the detaches that a device was told.
fn detached(world: &mut World, device: usize) -> Vec<String> {
    let detaches = world.device(device).detaches();
    detaches
        .iter()
        .map(|(detach, _)| detach.error().map_or_else(String::new, |error| error.condition().to_owned()))
        .collect()
}

/// What a device was told of its deliveries: ids and states, all of them settled.
fn outcomes(world: &mut World, device: usize) -> Vec<(u32, Vec<u8>)> {
    let mut told = Vec::new();
    for disposition in world.device(device).dispositions() {
        assert_eq!((disposition.role, disposition.settled), (Role::Receiver, true));
        let state = disposition.state().expect("an outcome").to_vec();
        let count = disposition.fields().last.wrapping_sub(disposition.first);
        told.extend((0..=count).map(|step| (disposition.first.wrapping_add(step), state.clone())));
    }
    told.sort();
    told
}

fn failed() -> Vec<u8> {
    modified(true, false, None).to_vec()
}

#[test]
fn a_sending_device_is_told_credit_zero_and_stays_attached() {
    let mut world = World::with(Setup::default(), 1);
    let (link, at_hub) = world.link(0, Role::Sender);
    world.hub().machine.flow(at_hub, credit(5));
    world.run();
    world.forget();
    world.outage();
    let [flow] = &world.device(0).flows()[..] else { panic!("one flow") };
    assert_eq!(flow.link_credit, Some(0));
    world.pass(HOLD - SECOND);
    let known = world.device(0).machine.link(link).expect("the link");
    assert_eq!((known.local, known.remote, known.credit), (Half::Open, Half::Open, 0));
    world.pass(SECOND);
    assert_eq!(detached(&mut world, 0), [FORCED]);
    world.restore();
    assert!(world.hubs[0].links.is_empty(), "what was given up is not attached again");
}

#[test]
fn what_never_went_up_was_released_and_of_the_rest_nobody_knows() {
    // Two frames are all that this hub takes at a time.
    let hub = ConnectionConfig { incoming_window: 2, max_frame_bytes: 512, ..Setup::default().hub };
    let mut world = World::with(Setup { hub, ..Setup::default() }, 1);
    let (link, at_hub) = world.link(0, Role::Sender);
    world.hub().machine.flow(at_hub, credit(5));
    world.run();
    world.device(0).machine.transfer(link, tagged(b"whole"), b"sent").expect("credit");
    world.run();
    world.device(0).machine.transfer(link, tagged(b"piece"), &[7; 5000]).expect("credit");
    world.device(0).machine.transfer(link, tagged(b"never"), b"x").expect("credit");
    world.hear(0);
    world.leak(0, 600);
    let settled = TransferOut { settled: Some(true), ..tagged(b"unheard") };
    world.device(0).machine.transfer(link, settled, b"x").expect("credit");
    world.hear(0);
    world.forget();
    world.outage();
    assert_eq!(outcomes(&mut world, 0), [(0, failed()), (1, failed()), (2, RELEASED.to_vec())]);
}

#[test]
fn what_comes_under_old_credit_is_released_and_counts_are_right_again() {
    for first in [0, u32::MAX - 1] {
        let mut world = World::with(Setup::default(), 1);
        let session = world.session(0);
        let source = SourceOut { address: Some("devices/d0/up"), ..SourceOut::default() }.build();
        let target = TargetOut { address: Some("devices/d0/up"), ..TargetOut::default() }.build();
        let sender =
            AttachOut { initial_delivery_count: Some(first), ..AttachOut::sender("link", &source, &target) };
        let link = world.attach(0, session, &sender.build());
        let (at_hub, _) = world.at_hub("devices/d0/up");
        world.hub().machine.flow(at_hub, credit(4));
        world.run();
        world.forget();
        // Sent before the device hears of the outage.
        for tag in [b"a", b"b"] {
            world.device(0).machine.transfer(link, tagged(tag), b"x").expect("credit");
        }
        world.outage();
        assert_eq!(outcomes(&mut world, 0), [(0, RELEASED.to_vec()), (1, RELEASED.to_vec())]);
        world.restore();
        let (at_hub, _) = world.at_hub("devices/d0/up");
        world.hub().machine.flow(at_hub, credit(3));
        world.run();
        let known = world.device(0).machine.link(link).expect("the link");
        assert_eq!((known.credit, known.delivery_count), (3, first.wrapping_add(2)));
        world.forget();
        for tag in [b"a", b"b", b"c"] {
            world.device(0).machine.transfer(link, tagged(tag), b"x").expect("credit");
        }
        world.run();
        assert_eq!(world.hub().transfers().len(), 3);
        let there = world.hub().machine.link(at_hub).expect("the link");
        assert_eq!(there.credit, 0);
        assert_eq!(world.device(0).machine.link(link).map(|link| link.credit), Some(0));
    }
}

#[test]
fn the_rest_of_a_cut_delivery_is_swallowed_to_its_end() {
    for back_before_the_end in [false, true] {
        let mut world = World::with(Setup::default(), 1);
        let (link, at_hub) = world.link(0, Role::Sender);
        world.hub().machine.flow(at_hub, credit(5));
        world.run();
        let begun = TransferOut { more: true, ..tagged(b"cut") };
        world.device(0).machine.transfer(link, begun, b"one").expect("credit");
        world.run();
        world.forget();
        world.outage();
        assert_eq!(outcomes(&mut world, 0), [(0, failed())]);
        if back_before_the_end {
            world.restore();
        }
        let more = TransferOut { more: true, ..TransferOut::default() };
        world.device(0).machine.transfer(link, more, b"two").expect("under way");
        world.run();
        world.device(0).machine.transfer(link, TransferOut::default(), b"three").expect("under way");
        world.run();
        assert_eq!(outcomes(&mut world, 0), [], "one outcome is enough");
        world.restore();
        let (at_hub, _) = world.at_hub("devices/d0/up");
        world.hub().machine.flow(at_hub, credit(1));
        world.run();
        world.forget();
        world.device(0).machine.transfer(link, tagged(b"next"), b"whole").expect("credit");
        world.run();
        let transfers = world.hub().transfers();
        let [(_, transfer)] = &transfers[..] else { panic!("{transfers:?}") };
        assert_eq!(transfer.payload(), "whole");
    }
}

#[test]
fn what_a_device_receives_is_aborted_or_settled_and_comes_again() {
    let mut world = World::with(Setup::default(), 1);
    let (link, at_hub) = world.link(0, Role::Receiver);
    world.device(0).machine.flow(link, credit(5));
    world.run();
    world.hub().machine.transfer(at_hub, tagged(b"whole"), b"1").expect("credit");
    let begun = TransferOut { more: true, ..tagged(b"piece") };
    world.hub().machine.transfer(at_hub, begun, b"2").expect("credit");
    world.run();
    world.forget();
    world.manners.first_count = u32::MAX - 1;
    world.outage();
    let events = world.device(0).take();
    let aborted =
        events.iter().position(|event| matches!(event, Event::Transfer { transfer, .. } if transfer.aborted));
    let settled_at = events.iter().position(|event| {
        matches!(event, Event::Disposition { disposition, .. }
            if (disposition.role, disposition.first, disposition.settled) == (Role::Sender, 0, true))
    });
    assert!(aborted.is_some() && settled_at.is_some(), "{events:?}");
    // The device settles what it had, too late: nobody hears of it.
    let session = world.device(0).machine.session_of_link(link).expect("its session");
    world.device(0).machine.disposition(session, settled(Role::Receiver, 0, Some(ACCEPTED)));
    world.run();
    world.restore();
    let (at_hub, _) = world.at_hub("devices/d0/down");
    assert_eq!(
        world.hub().machine.link(at_hub).map(|link| link.credit),
        Some(3),
        "what was left of the credit"
    );
    assert!(world.hub().dispositions().is_empty());
    for tag in [&b"whole"[..], b"piece", b"third"] {
        world.hub().machine.transfer(at_hub, tagged(tag), b"again").expect("credit");
    }
    world.run();
    let ids: Vec<u32> = world.device(0).transfers().iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, [2, 3, 4]);
    world.device(0).machine.disposition(session, settled(Role::Receiver, 3, Some(ACCEPTED)));
    world.run();
    let [disposition] = &world.hub().dispositions()[..] else { panic!("one") };
    assert_eq!((disposition.first, disposition.state()), (1, Some(ACCEPTED)));
    assert_eq!(world.device(0).machine.link(link).map(|link| link.credit), Some(0));
}

#[test]
fn a_drain_is_completed_whether_it_is_under_way_or_comes_during_the_outage() {
    for before in [true, false] {
        let mut world = World::with(Setup::default(), 1);
        let (link, _) = world.link(0, Role::Receiver);
        let drain = LinkFlow { link_credit: 7, drain: true, ..LinkFlow::default() };
        world.device(0).machine.flow(link, if before { drain } else { credit(7) });
        world.run();
        world.forget();
        world.outage();
        if !before {
            world.device(0).machine.flow(link, drain);
            world.run();
        }
        let flows = world.device(0).flows();
        let [flow] = &flows[..] else { panic!("{flows:?}") };
        assert_eq!((flow.link_credit, flow.delivery_count, flow.drain), (Some(0), Some(7), true));
        world.restore();
        let (at_hub, _) = world.at_hub("devices/d0/down");
        assert_eq!(world.hub().machine.link(at_hub).map(|link| (link.credit, link.drain)), Some((0, false)));
        world.device(0).machine.flow(link, credit(2));
        world.run();
        assert_eq!(world.hub().machine.link(at_hub).map(|link| link.credit), Some(2));
    }
}

#[test]
fn a_link_comes_back_only_to_the_same_node() {
    type Answer = fn(AttachOut<'_>) -> fieldgate_amqp::performative::Attach;
    let elsewhere: Answer = |attach| {
        let target = TargetOut { address: Some("elsewhere"), ..TargetOut::default() }.build();
        AttachOut { target: Some(&target), ..attach }.build()
    };
    let smaller: Answer = |attach| AttachOut { max_message_size: Some(999), ..attach }.build();
    let larger: Answer = |attach| AttachOut { max_message_size: Some(1001), ..attach }.build();
    let unlimited: Answer = |attach| AttachOut { max_message_size: None, ..attach }.build();
    let settles: Answer = |attach| {
        let snd_settle_mode = fieldgate_amqp::performative::SndSettleMode::Settled;
        AttachOut { snd_settle_mode, ..attach }.build()
    };
    let confirms: Answer = |attach| {
        let rcv_settle_mode = fieldgate_amqp::performative::RcvSettleMode::Second;
        AttachOut { rcv_settle_mode, ..attach }.build()
    };
    let filters: Answer = |attach| {
        let filter = &[0xc1, 0x01, 0x00][..];
        let source =
            SourceOut { address: Some("devices/d0/up"), filter: Some(filter), ..SourceOut::default() }
                .build();
        AttachOut { source: Some(&source), ..attach }.build()
    };
    for (answer, same) in [
        (larger, true),
        (unlimited, true),
        (smaller, false),
        (elsewhere, false),
        (settles, false),
        (confirms, false),
        (filters, false),
    ] {
        let mut world = World::with(Setup::default(), 1);
        world.link(0, Role::Sender);
        world.outage();
        world.manners.answer = answer;
        world.restore();
        assert_eq!(detached(&mut world, 0).is_empty(), same);
        assert_eq!(world.hub().machine.links(), usize::from(same));
    }
}

#[test]
fn a_link_that_resumes_deliveries_is_not_held() {
    let mut world = World::with(Setup::default(), 1);
    let session = world.session(0);
    let source = SourceOut { address: Some("devices/d0/up"), ..SourceOut::default() }.build();
    let target = TargetOut { address: Some("devices/d0/up"), ..TargetOut::default() }.build();
    // A map of the tag `t` to nothing.
    let unsettled = &[0xc1, 0x05, 0x02, 0xa0, 0x01, b't', 0x40][..];
    let resuming =
        AttachOut { unsettled: Some(unsettled), ..AttachOut::sender("link", &source, &target) }.build();
    world.attach(0, session, &resuming);
    world.forget();
    world.outage();
    assert_eq!(detached(&mut world, 0), [FORCED]);
}

#[test]
fn without_a_hold_links_are_detached_at_once() {
    let mut world = World::with(Setup { hold: Duration::ZERO, ..Setup::default() }, 2);
    world.link(0, Role::Sender);
    world.link(1, Role::Receiver);
    world.outage();
    assert_eq!(detached(&mut world, 0), [FORCED]);
    assert_eq!(detached(&mut world, 1), [FORCED]);
}

#[test]
fn a_hubs_detach_and_end_are_no_outage_and_its_close_is() {
    let mut world = World::with(Setup::default(), 3);
    let (_, one) = world.link(0, Role::Sender);
    let (_, two) = world.link(1, Role::Sender);
    let (stays, _) = world.link(2, Role::Sender);
    let session = world.hub().machine.session_of_link(two).expect("its session");
    world.hub().machine.detach(one, true, Some(error("detach")));
    world.hub().machine.end(session, Some(error("end")));
    world.run();
    let [(detach, false)] = &world.device(0).detaches()[..] else { panic!("one detach") };
    assert_eq!(detach.error(), Some(error("detach")));
    let ended = world.device(1).take().into_iter().find_map(|event| match event {
        Event::SessionEnded { error, .. } => error,
        _ => None,
    });
    assert_eq!(ended, Some(error("end")));
    world.is_up = false;
    world.hub().machine.close(Some(error("close")));
    world.run();
    world.restore();
    assert!(detached(&mut world, 2).is_empty());
    assert_eq!(world.device(2).machine.link(stays).map(|link| link.remote), Some(Half::Open));
    assert_eq!(world.hubs[0].links.len(), 1, "the one that stood is attached again, and only that");
}

#[test]
fn a_link_half_detached_when_the_hub_goes_is_finished() {
    // By the device: it gets its answer.
    let mut world = World::with(Setup::default(), 1);
    let (link, _) = world.link(0, Role::Sender);
    world.hub().answers = false;
    world.device(0).machine.detach(link, true, None);
    world.run();
    world.outage();
    assert_eq!(detached(&mut world, 0), [""]);
    world.restore();
    assert!(world.hubs.is_empty() || world.hubs[0].links.is_empty());
    // By the hub: nothing comes back.
    let mut world = World::with(Setup::default(), 1);
    let (link, at_hub) = world.link(0, Role::Sender);
    world.device(0).answers = false;
    world.hub().machine.detach(at_hub, true, None);
    world.run();
    world.outage();
    world.restore();
    assert!(world.hubs[0].links.is_empty());
    assert_eq!(detached(&mut world, 0), [""]);
    world.device(0).machine.detach(link, true, None);
    world.run();
    assert_eq!(world.router.kept(), (1, 0, 0));
}

#[test]
fn a_link_refused_by_half_when_the_hub_goes_is_not_answered_twice() {
    let mut world = World::with(Setup::default(), 1);
    world.manners.answer = |attach| AttachOut { source: None, target: None, ..attach }.build();
    let session = world.session(0);
    world.attach(0, session, &attach("link", Role::Sender, "devices/d0/up"));
    world.forget();
    world.outage();
    assert_eq!(detached(&mut world, 0), [FORCED]);
    world.restore();
    assert!(world.device(0).take().is_empty());
}

#[test]
fn outages_during_the_attach_and_one_after_another_are_held_too() {
    let mut world = World::with(Setup::default(), 2);
    let (link, _) = world.link(0, Role::Sender);
    world.manners.answers = false;
    let session = world.session(1);
    let new = world.attach(1, session, &attach("new", Role::Receiver, "devices/d1/down"));
    world.device(1).machine.flow(new, credit(3));
    for _ in 0..3 {
        world.outage();
        world.pass(HOLD / 2);
        world.restore();
        assert_eq!(world.hubs[0].links.len(), 2, "both are asked for");
    }
    world.outage();
    world.manners.answers = true;
    world.restore();
    assert!(detached(&mut world, 0).is_empty() && detached(&mut world, 1).is_empty());
    let (at_hub, _) = world.at_hub("devices/d1/down");
    assert_eq!(world.hub().machine.link(at_hub).map(|link| link.credit), Some(3));
    let (at_hub, _) = world.at_hub("devices/d0/up");
    world.hub().machine.flow(at_hub, credit(2));
    world.run();
    assert_eq!(world.device(0).machine.link(link).map(|link| link.credit), Some(2));
}

#[test]
fn a_hub_that_is_back_and_does_not_answer_is_waited_for_no_longer() {
    let mut world = World::with(Setup::default(), 1);
    world.link(0, Role::Sender);
    world.outage();
    world.manners.answers = false;
    world.pass(HOLD / 2);
    world.restore();
    world.pass(HOLD / 2);
    assert_eq!(detached(&mut world, 0), [FORCED]);
}

#[test]
fn a_device_may_detach_end_or_leave_meanwhile() {
    let mut world = World::with(Setup::default(), 4);
    let (one, _) = world.link(0, Role::Sender);
    let (two, _) = world.link(1, Role::Receiver);
    world.link(2, Role::Sender);
    let (stays, _) = world.link(3, Role::Sender);
    world.outage();
    world.forget();
    world.device(0).machine.detach(one, true, None);
    let session = world.device(1).machine.session_of_link(two).expect("its session");
    world.device(1).machine.end(session, None);
    world.run();
    assert_eq!(detached(&mut world, 0), [""]);
    assert!(matches!(world.device(1).take()[..], [Event::SessionEnded { .. }]));
    world.leave(2);
    world.restore();
    assert_eq!(world.hubs[0].links.len(), 1);
    assert_eq!(world.device(2).machine.link(stays).map(|link| link.remote), Some(Half::Open));
}

#[test]
fn new_links_wait_for_the_hub_and_are_served_or_refused_when_the_hold_is_over() {
    for served in [true, false] {
        let mut world = World::with(Setup::default(), 2);
        world.link(0, Role::Sender);
        world.outage();
        world.pass(HOLD / 2);
        let session = world.session(1);
        world.attach(1, session, &attach("new", Role::Sender, "devices/d1/up"));
        assert!(world.device(1).attached().is_none());
        if served {
            world.restore();
            let (_, answer) = world.device(1).attached().expect("an answer");
            assert!(answer.target().is_some());
            world.pass(HOLD);
            assert!(detached(&mut world, 1).is_empty());
        } else {
            world.pass(HOLD / 2);
            assert!(world.device(1).attached().expect("an answer").1.target().is_none());
            assert_eq!(detached(&mut world, 1), [FORCED]);
        }
    }
}

#[test]
fn what_waits_for_a_hub_is_bounded_over_all_devices_of_a_connection() {
    let mut world = World::with(Setup { max_pending: 3, ..Setup::default() }, 2);
    world.link(0, Role::Sender);
    world.outage();
    for (device, name) in [(0, "one"), (0, "two"), (1, "three")] {
        let session = world.session(device);
        world.attach(device, session, &attach(name, Role::Sender, "devices/d/up"));
        assert!(world.device(device).attached().is_none_or(|(_, answer)| answer.name() != name), "{name}");
    }
    for device in [0, 1] {
        let session = world.session(device);
        world.attach(device, session, &attach("many", Role::Sender, "devices/d/up"));
        assert_eq!(detached(&mut world, device), ["amqp:resource-limit-exceeded"]);
    }
    world.restore();
    assert_eq!(world.hubs[0].links.len(), 4, "those that waited, and the one that was held");
}

fn by_token() -> Setup {
    Setup { authorise: Authorise::Token, ..Setup::default() }
}

#[test]
fn tokens_are_put_again_and_links_wait_for_the_hubs_word() {
    let mut world = World::with(by_token(), 1);
    assert_eq!(world.put(0, "hub.example/devices/d0", 3600), Some(200));
    let (link, _) = world.link(0, Role::Sender);
    world.outage();
    world.manners.tokens = Tokens::Ignores;
    world.restore();
    assert_eq!(world.hubs[0].put.len(), 1);
    assert!(world.hubs[0].links.is_empty(), "not before the token is good");
    world.outage();
    world.manners.tokens = Tokens::Accepts;
    world.restore();
    assert_eq!((world.hubs[0].put.len(), world.hubs[0].links.len()), (1, 1));
    assert!(detached(&mut world, 0).is_empty());
    assert_eq!(world.device(0).machine.link(link).map(|link| link.remote), Some(Half::Open));
    world.outage();
    world.manners.tokens = Tokens::Refuses;
    world.restore();
    assert_eq!(detached(&mut world, 0), [UNAUTHORIZED]);
    assert!(world.hubs[0].links.is_empty());
}

#[test]
fn a_hub_that_has_no_time_for_a_token_is_asked_again() {
    let mut world = World::with(by_token(), 1);
    assert_eq!(world.put(0, "hub.example/devices/d0", 3600), Some(200));
    world.link(0, Role::Sender);
    world.outage();
    world.manners.tokens = Tokens::IsBusy;
    world.restore();
    assert_eq!((world.hubs[0].put.len(), world.hubs[0].links.len()), (1, 0));
    world.pass(SECOND * 2);
    assert!(world.hubs[0].put.len() > 1, "it is asked again");
    assert!(detached(&mut world, 0).is_empty());
    world.manners.tokens = Tokens::Accepts;
    world.pass(SECOND * 2);
    assert_eq!(world.hubs[0].links.len(), 1);
    assert!(detached(&mut world, 0).is_empty());
    // Not for ever: when the time for holding is over it is a refusal.
    world.outage();
    world.manners.tokens = Tokens::IsBusy;
    world.restore();
    world.pass(HOLD + SECOND * 2);
    assert_eq!(detached(&mut world, 0).len(), 1);
}

#[test]
fn a_token_put_during_an_outage_waits_as_long_as_links_do() {
    for served in [true, false] {
        let mut world = World::with(by_token(), 1);
        assert_eq!(world.put(0, "hub.example/devices/d0", 3600), Some(200));
        world.link(0, Role::Sender);
        world.manners.tokens = Tokens::Ignores;
        // This one is on its way when the hub goes, that one comes later.
        assert_eq!(world.put(0, "hub.example/devices/d0", 7200), None);
        world.outage();
        world.forget();
        assert_eq!(world.put(0, "hub.example/devices/d0", 9000), None);
        world.pass(HOLD - SECOND);
        assert_eq!(world.answered(0), None);
        world.manners.tokens = Tokens::Accepts;
        if served {
            world.restore();
            assert_eq!(world.hubs[0].put.len(), 3);
            assert_eq!(world.answered(0), Some(200));
        } else {
            world.pass(SECOND);
            assert_eq!(world.answered(0), Some(503));
        }
    }
}

#[test]
fn a_token_that_expires_during_an_outage_takes_its_links_along() {
    let mut world = World::with(by_token(), 1);
    assert_eq!(world.put(0, "hub.example/devices/d0", 20), Some(200));
    world.link(0, Role::Sender);
    world.outage();
    world.pass(HOLD / 2);
    assert_eq!(detached(&mut world, 0), [UNAUTHORIZED]);
    world.restore();
    assert!(world.hubs[0].put.is_empty() && world.hubs[0].links.is_empty());
}

#[test]
fn old_credit_that_the_hub_does_not_renew_never_reaches_it() {
    let mut world = World::with(Setup::default(), 1);
    let (link, at_hub) = world.link(0, Role::Sender);
    world.hub().machine.flow(at_hub, credit(10));
    world.run();
    world.is_up = false;
    world.cut(0);
    world.is_up = true;
    // The device has not heard of the outage; the hub is back, and gives less.
    world.devices[0].dead = true;
    world.run();
    let (at_hub, _) = world.at_hub("devices/d0/up");
    world.hub().machine.flow(at_hub, credit(1));
    world.run();
    for tag in [b"a", b"b", b"c"] {
        world.device(0).machine.transfer(link, tagged(tag), b"x").expect("credit");
    }
    world.forget();
    world.devices[0].dead = false;
    world.run();
    assert_eq!(world.hub().transfers().len(), 1);
    assert_eq!(outcomes(&mut world, 0), [(1, RELEASED.to_vec()), (2, RELEASED.to_vec())]);
    world.hub().machine.flow(at_hub, LinkFlow { delivery_count: Some(1), ..credit(4) });
    world.run();
    assert_eq!(world.device(0).machine.link(link).map(|link| link.credit), Some(4));
}

#[test]
fn links_near_the_end_of_the_circle_are_held_like_others() {
    let config = ConnectionConfig { first_transfer_id: u32::MAX, ..Setup::default().device };
    let setup = Setup { device: config.clone(), up: config.clone(), down: config, ..Setup::default() };
    let mut world = World::with(setup, 1);
    let (link, at_hub) = world.link(0, Role::Sender);
    world.hub().machine.flow(at_hub, credit(3));
    world.run();
    for tag in [b"a", b"b", b"c"] {
        world.device(0).machine.transfer(link, tagged(tag), b"x").expect("credit");
    }
    world.run();
    world.forget();
    world.outage();
    assert_eq!(outcomes(&mut world, 0), [(0, failed()), (1, failed()), (u32::MAX, failed())]);
}

#[test]
fn a_link_that_the_hub_cannot_bear_does_not_cost_all_others_theirs_for_ever() {
    let mut world = World::with(Setup::default(), 2);
    let (link, _) = world.link(0, Role::Sender);
    world.manners.answers = false;
    let session = world.session(1);
    world.attach(1, session, &attach("poison", Role::Sender, "devices/d1/up"));
    for _ in 0..3 {
        assert!(detached(&mut world, 1).is_empty());
        world.hub().machine.close(Some(error("what is this")));
        world.run();
        world.outage();
        world.restore();
    }
    assert_eq!(detached(&mut world, 1), ["amqp:link:detach-forced"]);
    assert_eq!(world.hubs[0].links.len(), 1, "the hub is not asked again");
    assert!(detached(&mut world, 0).is_empty());
    assert!(world.device(0).machine.link(link).is_some());
}
