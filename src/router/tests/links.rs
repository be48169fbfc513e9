//! Attaching: every field as it came, refusals as refusals, names, bounds.

use std::sync::Arc;

use fieldgate_amqp::connection::{ConnectionConfig, Event};
use fieldgate_amqp::performative::{Attach, AttachOut, Detach, Role, SourceOut, TargetOut};

use super::kit::{Bench, Setup, attach, error, fields, full_attach, policy};
use crate::router::routes::Routes;
use crate::router::{Authorise, Policy};

const ROLES: [Role; 2] = [Role::Sender, Role::Receiver];

#[test]
fn every_field_of_an_attach_passes_as_it_came_both_ways() {
    for role in ROLES {
        for by_hub in [false, true] {
            let mut bench = Bench::new(Setup::default());
            let (at_device, at_hub) = bench.session();
            let (first, second) = (full_attach("link", role, 3), full_attach("link", role.other(), 400));
            let Bench { device, hub, .. } = &mut bench;
            let (asks, answers, session) =
                if by_hub { (hub, device, at_hub) } else { (device, hub, at_device) };
            answers.answers = false;
            let link = asks.machine.attach(session, &first).expect("attached");
            bench.run();
            let Bench { device, hub, .. } = &mut bench;
            let (asks, answers) = if by_hub { (hub, device) } else { (device, hub) };
            assert!(asks.attached().is_none(), "an answer that nobody gave");
            let (asked, seen) = answers.attached().expect("the attach went through");
            assert_eq!(fields(&seen), fields(&first), "{role:?}");
            answers.machine.answer_attach(asked, &second);
            bench.run();
            let asks = if by_hub { &bench.hub } else { &bench.device };
            let (answered, seen) = asks.attached().expect("the answer came back");
            assert_eq!(fields(&seen), fields(&second), "{role:?}");
            assert_eq!(answered, link);
        }
    }
}

#[test]
fn a_refusal_is_a_refusal_with_every_word_of_it() {
    for role in ROLES {
        let mut bench = Bench::new(Setup::default());
        let (session, _) = bench.session();
        bench.hub.answers = false;
        bench.device.machine.attach(session, &attach("link", role)).expect("attached");
        bench.run();
        let (asked, _) = bench.hub.attached().expect("the attach went through");
        // As hubs do: an answer without the node, then the reason.
        let node = SourceOut::default().build();
        let nothing = AttachOut { source: None, target: None, ..AttachOut::receiver("link", &node, &node) };
        bench.hub.machine.answer_attach(asked, &nothing.build());
        bench.hub.machine.detach(asked, true, Some(error("refused")));
        bench.device.take();
        bench.run();
        let events = bench.device.take();
        let [Event::Attached { attach, .. }, Event::Detached { detach, answered: false, .. }] = &events[..]
        else {
            panic!("{events:?}")
        };
        assert!(attach.source().is_none() && attach.target().is_none());
        assert_eq!((detach.closed(), detach.error()), (true, Some(error("refused"))));
        assert_eq!(bench.router.kept(), (2, 0, 0), "the device has answered");
        // The session goes on, and so does the name.
        bench.hub.answers = true;
        bench.link(session, "link", role);
    }
}

#[test]
fn what_no_route_takes_is_refused_here_and_the_hub_hears_nothing() {
    let routes = Arc::new(Routes::prefixes(["devices"]));
    let policy = Policy::new(Authorise::Token, routes, "hub".into(), None);
    let mut bench = Bench::with_policy(Setup::default(), policy);
    let (session, _) = bench.session();
    bench.hub.take();
    for role in ROLES {
        bench.device.take();
        bench.device.machine.attach(session, &attach("link", role)).expect("attached");
        bench.run();
        let events = bench.device.take();
        let [Event::Attached { attach, .. }, Event::Detached { detach, .. }] = &events[..] else {
            panic!("{events:?}")
        };
        assert!(attach.source().is_none() && attach.target().is_none());
        assert_eq!(detach.error().expect("a reason").condition(), "amqp:not-found");
    }
    assert!(bench.hub.take().is_empty());
    assert_eq!(bench.router.kept(), (2, 0, 0));
    assert_eq!((bench.down().links(), bench.device.machine.links()), (0, 0));
}

#[test]
fn a_name_may_be_used_in_both_directions_and_in_every_session() {
    let mut bench = Bench::new(Setup::default());
    let mut links = Vec::new();
    for _ in 0..3 {
        let (session, _) = bench.session();
        for role in ROLES {
            links.push((role, bench.link(session, "same", role)));
        }
    }
    assert_eq!(bench.router.kept(), (6, 12, 0));
    // Each is the one that it says: detached one by one, the right counterpart goes.
    for (role, (at_device, at_hub)) in links {
        let link = bench.hub.machine.link(at_hub).expect("attached");
        assert_eq!((link.name, link.role), ("same", role.other()));
        bench.device.machine.detach(at_device, true, None);
        bench.run();
        assert!(bench.hub.machine.link(at_hub).is_none());
    }
    assert_eq!(bench.router.kept(), (6, 0, 0));
}

#[test]
fn attaches_that_cross_make_one_link() {
    for hub_first in [false, true] {
        let mut bench = Bench::new(Setup::default());
        let (at_device, at_hub) = bench.session();
        let (ours, theirs) = (full_attach("x", Role::Sender, 1), full_attach("x", Role::Receiver, 2));
        let link = bench.device.machine.attach(at_device, &ours).expect("attached");
        let mirror = bench.hub.machine.attach(at_hub, &theirs).expect("attached");
        // Whose attach the gateway sees first makes no difference.
        let mut call = 0;
        bench.step(|| {
            call += 1;
            if (call == 1) == hub_first { 0 } else { usize::MAX }
        });
        bench.run();
        let (known, seen) = bench.device.attached().expect("the hub's is the answer");
        assert_eq!((known, fields(&seen)), (link, fields(&theirs)));
        let (known, seen) = bench.hub.attached().expect("the device's is the answer");
        assert_eq!((known, fields(&seen)), (mirror, fields(&ours)));
        assert_eq!(bench.router.kept(), (2, 2, 0));
    }
}

#[test]
fn the_gateways_own_name_becomes_the_hubs_and_back() {
    let addressed = |address: &str| {
        let source = SourceOut::default().build();
        let target = TargetOut { address: Some(address), ..TargetOut::default() }.build();
        AttachOut::sender("link", &source, &target).build()
    };
    let mut bench = Bench::with_policy(Setup::default(), policy());
    let (session, _) = bench.session();
    bench.hub.answers = false;
    let asked = addressed("amqps://gate.local/devices/d/messages/events");
    bench.device.machine.attach(session, &asked).expect("attached");
    bench.run();
    let (link, seen) = bench.hub.attached().expect("the attach went through");
    let address = |attach: &Attach| attach.target().and_then(|target| Some(target.address()?.to_owned()));
    assert_eq!(address(&seen).as_deref(), Some("amqps://hub.example.net/devices/d/messages/events"));
    let answer = addressed("amqps://hub.example.net/devices/d/messages/events");
    bench.hub.machine.answer_attach(link, &answer);
    bench.run();
    let (_, seen) = bench.device.attached().expect("the answer came back");
    assert_eq!(address(&seen), address(&asked));
}

#[test]
fn attaching_and_letting_go_at_once_leaves_nothing() {
    for role in ROLES {
        for end in [false, true] {
            let mut bench = Bench::new(Setup::default());
            let (session, _) = bench.session();
            bench.hub.take();
            for round in 0..3 {
                let machine = &mut bench.device.machine;
                let link = machine.attach(session, &attach("link", role)).expect("attached");
                machine.detach(link, round % 2 == 0, None);
            }
            if end {
                bench.device.machine.end(session, None);
            }
            bench.run();
            let heard = |event: &&Event| matches!(event, Event::Attached { .. } | Event::Detached { .. });
            if !end {
                assert_eq!(bench.hub.take().iter().filter(heard).count(), 6);
                assert_eq!(bench.router.kept(), (2, 0, 0));
                bench.device.machine.end(session, None);
                bench.run();
            }
            bench.assert_empty();
        }
    }
}

#[test]
fn an_answer_that_the_device_cannot_take_detaches_both_sides() {
    let small = ConnectionConfig { max_frame_bytes: 512, ..Setup::default().device };
    let mut bench = Bench::new(Setup { device: small, ..Setup::default() });
    let (session, _) = bench.session();
    bench.hub.answers = false;
    bench.device.machine.attach(session, &attach("link", Role::Sender)).expect("attached");
    bench.run();
    let (asked, _) = bench.hub.attached().expect("the attach went through");
    let target = TargetOut { address: Some(&"a".repeat(600)), ..TargetOut::default() }.build();
    let answer = AttachOut::receiver("link", &SourceOut::default().build(), &target).build();
    bench.hub.machine.answer_attach(asked, &answer);
    bench.hub.answers = true;
    bench.run();
    let [(detach, _)] = &bench.device.detaches()[..] else { panic!("one detach") };
    assert_eq!(detach.error().expect("a reason").condition(), "amqp:frame-size-too-small");
    assert_eq!(bench.hub.machine.links(), 0);
    assert_eq!(bench.router.kept(), (2, 0, 0));
}

#[test]
fn what_the_hub_has_no_room_for_is_refused_and_the_session_goes_on() {
    let hub = ConnectionConfig { handle_max: 0, max_frame_bytes: 512, ..Setup::default().hub };
    let mut bench = Bench::new(Setup { hub, ..Setup::default() });
    let (session, _) = bench.session();
    let long = attach(&"n".repeat(600), Role::Sender);
    bench.device.machine.attach(session, &long).expect("attached");
    bench.run();
    let reasons = |bench: &mut Bench| -> Vec<String> {
        let detaches = bench.device.detaches();
        let reason = |detach: &Detach| detach.error().expect("a reason").condition().to_owned();
        detaches.iter().map(|(detach, _)| reason(detach)).collect()
    };
    assert_eq!(reasons(&mut bench), ["amqp:frame-size-too-small"]);
    let (link, _) = bench.link(session, "fits", Role::Sender);
    bench.device.machine.attach(session, &attach("one too many", Role::Sender)).expect("attached");
    bench.run();
    assert_eq!(reasons(&mut bench), ["amqp:resource-limit-exceeded"]);
    assert!(bench.device.machine.link(link).is_some());
    assert_eq!(bench.router.kept(), (2, 2, 0));
}

#[test]
fn a_session_that_the_hub_has_no_channel_for_is_ended_with_a_reason() {
    let hub = ConnectionConfig { channel_max: 0, ..Setup::default().hub };
    let mut bench = Bench::new(Setup { hub, ..Setup::default() });
    let (first, _) = bench.session();
    bench.device.machine.begin().expect("a channel");
    bench.run();
    let Some(Event::SessionEnded { error: Some(error), .. }) = bench.device.take().pop() else {
        panic!("the session goes on")
    };
    assert_eq!(error.condition(), "amqp:resource-limit-exceeded");
    bench.link(first, "link", Role::Sender);
    bench.device.machine.end(first, None);
    bench.run();
    bench.assert_empty();
    bench.session();
}
