//! Detaches and ends: with every flag and word, from either side, crossing, and half done.

use fieldgate_amqp::connection::{ConnectionConfig, Event, TransferOut};
use fieldgate_amqp::performative::{ACCEPTED, DispositionOut, Role};

use super::kit::{Bench, Peer, Setup, attach, error};

/// The peer that begins, and the one that answers.
fn sides(bench: &mut Bench, by_hub: bool) -> (&mut Peer, &mut Peer) {
    let Bench { device, hub, .. } = bench;
    if by_hub { (hub, device) } else { (device, hub) }
}

#[test]
fn a_detach_passes_with_its_flag_and_error_and_so_does_the_answer() {
    for case in 0..32_u8 {
        let bit = |at: u8| case >> at & 1 == 1;
        let by_hub = bit(0);
        let mut bench = Bench::new(Setup::default());
        let (session, _) = bench.session();
        let (at_device, at_hub) = bench.link(session, "link", Role::Sender);
        let (one, two) = if by_hub { (at_hub, at_device) } else { (at_device, at_hub) };
        let (first, second) = sides(&mut bench, by_hub);
        second.answers = false;
        first.machine.detach(one, bit(1), bit(2).then(|| error("first")));
        bench.run();
        let (first, second) = sides(&mut bench, by_hub);
        let [(detach, false)] = &second.detaches()[..] else { panic!("one detach, not answered") };
        assert_eq!((detach.closed(), detach.error()), (bit(1), bit(2).then(|| error("first"))));
        assert!(first.detaches().is_empty(), "an answer that nobody gave");
        second.machine.detach(two, bit(3), bit(4).then(|| error("second")));
        bench.run();
        assert_eq!(bench.router.kept(), (2, 0, 0));
        let (first, _) = sides(&mut bench, by_hub);
        let [(detach, true)] = &first.detaches()[..] else { panic!("one detach, and it is the answer") };
        assert_eq!((detach.closed(), detach.error()), (bit(3), bit(4).then(|| error("second"))));
    }
}

#[test]
fn detaches_that_cross_are_each_others_answer() {
    let mut bench = Bench::new(Setup::default());
    let (session, _) = bench.session();
    let (at_device, at_hub) = bench.link(session, "link", Role::Receiver);
    bench.device.machine.detach(at_device, false, Some(error("device")));
    bench.hub.machine.detach(at_hub, true, Some(error("hub")));
    bench.run();
    let [(to_device, true)] = &bench.device.detaches()[..] else { panic!("one detach") };
    let [(to_hub, true)] = &bench.hub.detaches()[..] else { panic!("one detach") };
    assert_eq!((to_device.closed(), to_device.error()), (true, Some(error("hub"))));
    assert_eq!((to_hub.closed(), to_hub.error()), (false, Some(error("device"))));
    assert_eq!(bench.router.kept(), (2, 0, 0));
}

#[test]
fn deliveries_of_a_half_closed_link_can_still_be_settled() {
    let mut bench = Bench::new(Setup::default());
    let (session, hub_session) = bench.session();
    let (at_device, at_hub) = bench.link(session, "link", Role::Sender);
    bench.hub.machine.flow(at_hub, credit(10));
    bench.run();
    for tag in [b"a", b"b"] {
        let transfer = TransferOut { delivery_tag: Some(tag), ..TransferOut::default() };
        bench.device.machine.transfer(at_device, transfer, b"message").expect("credit");
    }
    bench.run();
    let ids: Vec<u32> = bench.hub.transfers().iter().map(|(id, _)| *id).collect();
    bench.hub.answers = false;
    bench.device.machine.detach(at_device, false, None);
    bench.run();
    assert_eq!(bench.router.kept(), (2, 2, 2));
    bench.hub.machine.disposition(hub_session, accepted(ids[1]));
    bench.device.take();
    bench.run();
    let [disposition] = &bench.device.dispositions()[..] else { panic!("one disposition") };
    assert_eq!((disposition.first, disposition.last, disposition.settled), (1, 1, true));
    bench.hub.machine.detach(at_hub, false, None);
    // Said after the detach, it is about nothing that the tunnel still knows.
    bench.hub.machine.disposition(hub_session, accepted(ids[0]));
    bench.run();
    assert_eq!(bench.router.kept(), (2, 0, 0));
    assert!(bench.device.dispositions().is_empty());
}

fn credit(link_credit: u32) -> fieldgate_amqp::connection::LinkFlow<'static> {
    fieldgate_amqp::connection::LinkFlow { link_credit, ..Default::default() }
}

fn accepted(id: u32) -> DispositionOut<'static> {
    DispositionOut {
        role: Role::Receiver,
        first: id,
        last: id,
        settled: true,
        state: Some(ACCEPTED),
        batchable: false,
    }
}

#[test]
fn a_link_may_come_back_under_its_name() {
    let mut bench = Bench::new(Setup::default());
    let (session, _) = bench.session();
    for round in 0..5_u32 {
        let (at_device, at_hub) = bench.link(session, "link", Role::Sender);
        bench.hub.machine.flow(at_hub, credit(1));
        bench.run();
        let tag = round.to_be_bytes();
        let transfer = TransferOut { delivery_tag: Some(&tag), ..TransferOut::default() };
        bench.device.machine.transfer(at_device, transfer, b"message").expect("credit");
        bench.device.machine.detach(at_device, false, None);
        bench.run();
        assert_eq!(bench.hub.transfers().len(), 1);
    }
    assert_eq!(bench.router.kept(), (2, 0, 0));
}

#[test]
fn a_detach_stays_behind_what_the_hubs_window_holds_back() {
    let hub = ConnectionConfig { incoming_window: 2, max_frame_bytes: 512, ..Setup::default().hub };
    let mut bench = Bench::new(Setup { hub, ..Setup::default() });
    let (session, _) = bench.session();
    let (at_device, at_hub) = bench.link(session, "link", Role::Sender);
    bench.hub.machine.flow(at_hub, credit(5));
    bench.run();
    bench.hub.take();
    for tag in [b"a", b"b", b"c"] {
        let transfer = TransferOut { delivery_tag: Some(tag), ..TransferOut::default() };
        bench.device.machine.transfer(at_device, transfer, &[7; 3000]).expect("credit");
    }
    bench.device.machine.detach(at_device, true, None);
    bench.run();
    let events = bench.hub.take();
    let bytes: usize = events
        .iter()
        .map(|event| match event {
            Event::Transfer { transfer, .. } => transfer.payload_slice().len(),
            _ => 0,
        })
        .sum();
    assert_eq!(bytes, 9000);
    assert!(matches!(events.last(), Some(Event::Detached { .. })));
    assert_eq!(bench.router.kept(), (2, 0, 0));
}

#[test]
fn the_end_of_a_session_ends_its_counterpart_and_no_other() {
    for by_hub in [false, true] {
        for with_error in [false, true] {
            let mut bench = Bench::new(Setup::default());
            let (at_device, at_hub) = bench.session();
            let (other, _) = bench.session();
            bench.link(at_device, "link", Role::Sender);
            let (stays, _) = bench.link(other, "link", Role::Sender);
            let (first, _) = sides(&mut bench, by_hub);
            let session = if by_hub { at_hub } else { at_device };
            first.machine.end(session, with_error.then(|| error("over")));
            bench.run();
            let (_, second) = sides(&mut bench, by_hub);
            let events = second.take();
            let [Event::SessionEnded { session, error: heard }] = &events[..] else { panic!("{events:?}") };
            assert_eq!(*session, if by_hub { at_device } else { at_hub });
            assert_eq!(*heard, with_error.then(|| error("over")));
            assert_eq!(bench.router.kept(), (2, 2, 0));
            assert!(bench.device.machine.link(stays).is_some());
            bench.device.machine.end(other, None);
            bench.run();
            bench.assert_empty();
        }
    }
}

#[test]
fn ends_that_cross_leave_nothing() {
    let mut bench = Bench::new(Setup::default());
    let (at_device, at_hub) = bench.session();
    bench.link(at_device, "link", Role::Receiver);
    bench.device.machine.attach(at_device, &attach("another", Role::Sender)).expect("attached");
    bench.device.machine.end(at_device, None);
    bench.hub.machine.end(at_hub, Some(error("hub")));
    bench.run();
    bench.assert_empty();
    bench.session();
    assert_eq!(bench.router.kept(), (2, 0, 0));
}

#[test]
fn a_session_may_be_ended_before_it_is_answered() {
    let mut bench = Bench::new(Setup::default());
    for _ in 0..3 {
        let session = bench.device.machine.begin().expect("a channel");
        bench.device.machine.attach(session, &attach("link", Role::Sender)).expect("attached");
        bench.device.machine.end(session, None);
    }
    bench.run();
    bench.assert_empty();
}
