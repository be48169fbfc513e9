//! Flows: the hub's credit is the device's, with every number and word.

use bytes::BytesMut;
use fieldgate_amqp::codec::{put_map, put_str, put_symbol};
use fieldgate_amqp::connection::{LinkFlow, LinkId, TransferOut};
use fieldgate_amqp::performative::{Flow, Role};

use super::kit::{Bench, Peer, Setup, attach, full_attach};

fn send(peer: &mut Peer, link: LinkId, count: u32) {
    for number in 0..count {
        let tag = number.to_be_bytes();
        let transfer =
            TransferOut { delivery_tag: Some(&tag), settled: Some(true), ..TransferOut::default() };
        peer.machine.transfer(link, transfer, b"m").expect("attached");
    }
}

fn numbers(flow: &Flow) -> (Option<u32>, Option<u32>, Option<u32>, bool, bool) {
    (flow.delivery_count, flow.link_credit, flow.available, flow.drain, flow.echo)
}

/// The ends of a link: who sends, and who receives.
fn ends(bench: &mut Bench, role: Role) -> (&mut Peer, &mut Peer) {
    let Bench { device, hub, .. } = bench;
    match role {
        Role::Sender => (device, hub),
        Role::Receiver => (hub, device),
    }
}

#[test]
fn credit_drain_echo_and_available_pass_from_end_to_end() {
    let mut properties = BytesMut::new();
    put_map(&mut properties, |out| {
        put_symbol(out, "vendor:key");
        put_str(out, "value");
        1
    });
    for role in [Role::Sender, Role::Receiver] {
        let mut bench = Bench::new(Setup::default());
        let (session, _) = bench.session();
        bench.hub.answers = false;
        // The sender counts from just before the wrap.
        let at_device = bench.device.machine.attach(session, &full_attach("l", role, 1)).expect("attached");
        bench.run();
        let (at_hub, _) = bench.hub.attached().expect("the attach went through");
        bench.hub.machine.answer_attach(at_hub, &full_attach("l", role.other(), 1));
        bench.run();
        let (sends, receives) = if role == Role::Sender { (at_device, at_hub) } else { (at_hub, at_device) };
        let start = u32::MAX - 1;

        let (_, receiver) = ends(&mut bench, role);
        let flow = LinkFlow {
            delivery_count: None,
            link_credit: 10,
            available: Some(3),
            drain: false,
            echo: true,
            properties: Some(&properties),
        };
        receiver.machine.flow(receives, flow);
        bench.run();
        let (sender, receiver) = ends(&mut bench, role);
        let [flow] = &sender.flows()[..] else { panic!("one flow") };
        assert_eq!(numbers(flow), (Some(start), Some(10), Some(3), false, true));
        assert_eq!(flow.properties(), Some(&properties[..]));
        assert!(receiver.flows().is_empty(), "an answer that nobody gave");
        send(sender, sends, 4);
        let link_credit = 6;
        sender.machine.flow(sends, LinkFlow { link_credit, available: Some(9), ..LinkFlow::default() });
        bench.run();
        let (_, receiver) = ends(&mut bench, role);
        let [flow] = &receiver.flows()[..] else { panic!("one flow") };
        assert_eq!(numbers(flow), (Some(2), Some(6), Some(9), false, false), "the count has wrapped");
        receiver.machine.flow(receives, LinkFlow { link_credit: 20, drain: true, ..LinkFlow::default() });
        bench.run();
        let (sender, _) = ends(&mut bench, role);
        let [flow] = &sender.flows()[..] else { panic!("one flow") };
        assert_eq!(numbers(flow), (Some(2), Some(20), None, true, false));
        send(sender, sends, 1);
        let used_up = LinkFlow { delivery_count: Some(22), drain: true, ..LinkFlow::default() };
        sender.machine.flow(sends, used_up);
        bench.run();
        let (_, receiver) = ends(&mut bench, role);
        let [flow] = &receiver.flows()[..] else { panic!("one flow") };
        assert_eq!(numbers(flow), (Some(22), Some(0), None, true, false));
        assert_eq!(receiver.machine.link(receives).expect("attached").credit, 0);
        // From here on the counts are the same at all four machines.
        receiver.machine.flow(receives, LinkFlow { link_credit: 2, ..LinkFlow::default() });
        bench.run();
        let (sender, _) = ends(&mut bench, role);
        assert_eq!(sender.machine.link(sends).expect("attached").credit, 2);
        send(sender, sends, 2);
        bench.run();
        let (sender, receiver) = ends(&mut bench, role);
        assert_eq!(receiver.transfers().len(), 2);
        assert!(sender.detaches().is_empty());
    }
}

#[test]
fn the_gateway_gives_no_credit_of_its_own() {
    for role in [Role::Sender, Role::Receiver] {
        let mut bench = Bench::new(Setup::default());
        let (session, _) = bench.session();
        let (at_device, at_hub) = bench.link(session, "link", role);
        bench.run();
        assert!(bench.device.flows().is_empty() && bench.hub.flows().is_empty());
        assert_eq!(bench.device.machine.link(at_device).expect("attached").credit, 0);
        assert_eq!(bench.hub.machine.link(at_hub).expect("attached").credit, 0);
    }
}

#[test]
fn credit_that_is_given_with_the_attach_counts_from_the_start() {
    let mut bench = Bench::new(Setup::default());
    let (session, _) = bench.session();
    bench.hub.take();
    let link = bench.device.machine.attach(session, &attach("link", Role::Receiver)).expect("attached");
    bench.device.machine.flow(link, LinkFlow { link_credit: 10, ..LinkFlow::default() });
    // What the gateway says does not reach the device yet.
    let mut call = 0;
    let mut held = move || {
        call += 1;
        if call % 4 == 3 { 0 } else { usize::MAX }
    };
    while bench.step(&mut held) {}
    let (at_hub, _) = bench.hub.attached().expect("the attach went through");
    let [flow] = &bench.hub.flows()[..] else { panic!("one flow") };
    assert_eq!((flow.delivery_count, flow.link_credit), (None, Some(10)));
    send(&mut bench.hub, at_hub, 10);
    while bench.step(&mut held) {}
    // Said by a device that has not seen the answer: ten from the start, not ten more.
    bench.device.machine.flow(link, LinkFlow { link_credit: 10, ..LinkFlow::default() });
    while bench.step(&mut held) {}
    assert_eq!(bench.hub.machine.link(at_hub).expect("attached").credit, 0);
    bench.run();
    assert_eq!(bench.device.transfers().len(), 10);
}
