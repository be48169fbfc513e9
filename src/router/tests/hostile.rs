//! A device that says what no good device says. It harms itself only, and the gateway keeps nothing for it.

use bytes::BytesMut;
use fieldgate_amqp::codec::{self, put_map};
use fieldgate_amqp::connection::{ConnectionConfig, Event, LinkFlow, LinkId, SessionId, TransferOut};
use fieldgate_amqp::performative::{ACCEPTED, DetachOut, DispositionOut, FlowOut, Role, modified};

use crate::router::MAX_BACKLOG_BYTES;

use super::kit::{Bench, Setup, attach};

fn linked(role: Role, credit: u32) -> (Bench, (SessionId, SessionId), (LinkId, LinkId)) {
    let mut bench = Bench::new(Setup::default());
    let sessions = bench.session();
    let (at_device, at_hub) = bench.link(sessions.0, "link", role);
    let (peer, link) = match role {
        Role::Sender => (&mut bench.hub, at_hub),
        Role::Receiver => (&mut bench.device, at_device),
    };
    peer.machine.flow(link, LinkFlow { link_credit: credit, ..LinkFlow::default() });
    bench.run();
    bench.device.take();
    bench.hub.take();
    (bench, sessions, (at_device, at_hub))
}

fn settled(role: Role, first: u32, last: u32) -> DispositionOut<'static> {
    DispositionOut { role, first, last, settled: true, state: Some(ACCEPTED), batchable: false }
}

fn tagged(tag: &[u8]) -> TransferOut<'_> {
    TransferOut { delivery_tag: Some(tag), ..TransferOut::default() }
}

#[test]
fn dispositions_for_nothing_go_nowhere() {
    let (mut bench, (session, _), (at_device, _)) = linked(Role::Sender, 10);
    bench.device.machine.transfer(at_device, tagged(b"t"), b"m").expect("credit");
    bench.run();
    bench.hub.take();
    // What it sent itself it cannot accept, and the rest does not exist.
    for (role, first, last) in [
        (Role::Receiver, 0, 0),
        (Role::Receiver, 0, u32::MAX >> 1),
        (Role::Sender, 1, u32::MAX >> 1),
        (Role::Sender, 5, 2),
        (Role::Receiver, u32::MAX, 0),
    ] {
        bench.device.machine.disposition(session, settled(role, first, last));
        bench.run();
        assert!(bench.hub.dispositions().is_empty(), "{role:?} {first}..{last}");
    }
    assert_eq!(bench.router.kept().2, 1);
}

#[test]
fn a_giant_range_costs_what_lives_in_it() {
    let (mut bench, (session, _), (_, at_hub)) = linked(Role::Receiver, 10);
    for tag in 0..10_u8 {
        bench.hub.machine.transfer(at_hub, tagged(&[tag]), b"m").expect("credit");
    }
    bench.run();
    let unsettled = DispositionOut { settled: false, ..settled(Role::Receiver, 0, (1 << 31) - 1) };
    // Two thousand million ids, a thousand times: it would not end if each were looked at.
    for _ in 0..1000 {
        bench.device.machine.disposition(session, unsettled);
    }
    bench.run();
    let heard = bench.hub.dispositions();
    assert_eq!(heard.len(), 1000);
    assert!(heard.iter().all(|it| (it.first, it.last) == (0, 9)));
    bench.device.machine.disposition(session, settled(Role::Receiver, 0, (1 << 31) - 1));
    bench.run();
    assert_eq!(bench.hub.dispositions().len(), 1);
    assert_eq!(bench.router.kept().2, 0);
}

#[test]
fn transfers_beyond_the_credit_cost_the_link() {
    let (mut bench, _, (at_device, _)) = linked(Role::Sender, 2);
    for tag in 0..5_u8 {
        bench.device.machine.transfer(at_device, tagged(&[tag]), b"m").expect("the engine does not ask");
    }
    bench.run();
    let transfers = bench.hub.events.iter().filter(|event| matches!(event, Event::Transfer { .. }));
    assert_eq!(transfers.count(), 2);
    for peer in [&mut bench.device, &mut bench.hub] {
        let [(detach, _)] = &peer.detaches()[..] else { panic!("one detach") };
        assert_eq!(detach.error().expect("a reason").condition(), "amqp:link:transfer-limit-exceeded");
    }
    assert_eq!(bench.router.kept(), (2, 0, 0));
}

#[test]
fn a_fault_of_the_session_ends_it_on_both_sides() {
    let (mut bench, _, _) = linked(Role::Sender, 2);
    bench.session();
    let flow = FlowOut { handle: Some(99), next_incoming_id: Some(0), ..FlowOut::default() };
    bench.inject(|out| flow.write(out));
    bench.device.take();
    bench.hub.take();
    bench.run();
    for peer in [&mut bench.device, &mut bench.hub] {
        let events = peer.take();
        let [Event::SessionEnded { error: Some(error), .. }] = &events[..] else { panic!("{events:?}") };
        assert_eq!(error.condition(), "amqp:session:unattached-handle");
    }
    assert_eq!(bench.router.kept(), (2, 0, 0), "the other session goes on");
}

#[test]
fn storms_of_attaches_and_detaches_leave_nothing() {
    let mut bench = Bench::new(Setup::default());
    let (session, _) = bench.session();
    for round in 0..200_u32 {
        let links: Vec<LinkId> = (0..8)
            .map(|at| {
                let role = if at % 2 == 0 { Role::Sender } else { Role::Receiver };
                bench
                    .device
                    .machine
                    .attach(session, &attach(&format!("l{}", at / 2), role))
                    .expect("attached")
            })
            .collect();
        if round % 3 == 0 {
            bench.run();
        }
        for link in links {
            bench.device.machine.detach(link, round % 2 == 0, None);
        }
        // Detaches for what is not there, and twice.
        for handle in [0, 3, 99, u32::MAX] {
            bench.inject(|out| {
                out.extend_from_slice(DetachOut { handle, closed: true, error: None }.build().encoded());
            });
        }
        bench.run();
        assert_eq!(bench.router.kept(), (2, 0, 0));
    }
    assert_eq!((bench.hub.machine.links(), bench.down().links(), bench.up().links()), (0, 0, 0));
    bench.device.machine.end(session, None);
    bench.run();
    bench.assert_empty();
}

#[test]
fn unsettled_deliveries_are_bounded() {
    let (mut bench, _, (at_device, _)) = linked(Role::Sender, u32::MAX);
    let mut ended = false;
    for number in 0..110_000_u32 {
        let tag = number.to_be_bytes();
        if bench.device.machine.transfer(at_device, tagged(&tag), b"").is_err() {
            ended = true;
            break;
        }
        if number % 1000 == 0 {
            bench.run();
            assert!(bench.router.kept().2 <= 100_000);
            bench.hub.take();
        }
    }
    bench.run();
    assert!(ended);
    let Some(Event::SessionEnded { error: Some(error), .. }) = bench.device.take().pop() else {
        panic!("the session goes on")
    };
    assert_eq!(error.condition(), "amqp:resource-limit-exceeded");
    bench.assert_empty();
}

#[test]
fn what_waits_for_a_shut_window_is_bounded() {
    // A hub that opens its window once, and never again.
    let setup = || {
        let hub = ConnectionConfig { incoming_window: 1, ..Setup::default().hub };
        Setup { hub, ..Setup::default() }
    };
    type Attack = fn(&mut Bench, SessionId, LinkId, u32);
    let attacks: [(u32, Attack); 3] = [
        (1_000, |bench, _, link, number| {
            let tag = number.to_be_bytes();
            let _ = bench.device.machine.transfer(link, tagged(&tag), &[0; 5000]);
        }),
        (40_000, |bench, _, link, _| bench.device.machine.flow(link, LinkFlow::default())),
        (40_000, |bench, session, _, _| {
            let unsettled = DispositionOut { settled: false, ..settled(Role::Sender, 0, 10) };
            bench.device.machine.disposition(session, unsettled);
        }),
    ];
    for (times, attack) in attacks {
        let mut bench = Bench::new(setup());
        let (session, _) = bench.session();
        let (at_device, at_hub) = bench.link(session, "link", Role::Sender);
        bench.hub.machine.flow(at_hub, LinkFlow { link_credit: 1000, ..LinkFlow::default() });
        bench.run();
        for tag in 0..3_u8 {
            bench.device.machine.transfer(at_device, tagged(&[tag]), b"m").expect("credit");
        }
        let mut most = 0;
        for number in 0..times {
            attack(&mut bench, session, at_device, number);
            // The hub takes nothing; everybody else goes on.
            let mut call = 0;
            let mut held = move || {
                call += 1;
                if call % 4 == 0 { 0 } else { usize::MAX }
            };
            if number % 100 == 0 {
                while bench.step(&mut held) {}
                most = most.max(bench.held_up());
            }
        }
        // The device is not heard any more, and what it has said before is bounded.
        assert!((MAX_BACKLOG_BYTES / 2..2 * MAX_BACKLOG_BYTES).contains(&most), "{most}");
        // It is as it was once the hub takes what waits for it.
        bench.run();
        assert_eq!(bench.held_up(), 0);
    }
}

#[test]
fn a_long_state_is_not_said_thousands_of_times() {
    let (mut bench, (session, _), (_, at_hub)) = linked(Role::Receiver, 5000);
    for number in 0..2000_u32 {
        bench.hub.machine.transfer(at_hub, tagged(&number.to_be_bytes()), b"m").expect("credit");
    }
    bench.run();
    for number in (0..2000).step_by(2) {
        bench.device.machine.disposition(session, settled(Role::Receiver, number, number));
    }
    bench.run();
    assert_eq!((bench.hub.dispositions().len(), bench.router.kept().2), (1000, 1000));
    let mut annotations = BytesMut::new();
    put_map(&mut annotations, |out| {
        codec::put_symbol(out, "why");
        codec::put_binary(out, &[0; 40_000]);
        1
    });
    let state = modified(true, false, Some(&annotations));
    let long = DispositionOut { settled: false, state: Some(&state), ..settled(Role::Receiver, 0, 1999) };
    bench.device.machine.disposition(session, long);
    bench.run();
    let heard = bench.hub.dispositions();
    assert_eq!(heard.iter().map(|it| (it.first, it.last)).collect::<Vec<_>>(), [(1, 1999)]);
    assert!(bench.most[1] < 256 * 1024, "{}", bench.most[1]);
}
