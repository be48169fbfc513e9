//! Transfers and dispositions: ids, splitting, order.

use fieldgate_amqp::connection::{ConnectionConfig, Event, LinkFlow, LinkId, TransferOut};
use fieldgate_amqp::error::Misuse;
use fieldgate_amqp::performative::{ACCEPTED, DispositionOut, Performative, Role};

use crate::pair::{Pair, Side, config};
use crate::raw::frames;

pub(crate) fn message(tag: &[u8]) -> TransferOut<'_> {
    TransferOut {
        delivery_tag: Some(tag),
        message_format: Some(0),
        settled: Some(false),
        ..TransferOut::default()
    }
}

pub(crate) fn grant(side: &mut Side, link: LinkId, link_credit: u32) {
    side.connection.flow(link, LinkFlow { link_credit, ..LinkFlow::default() });
}

/// What transfers brought: delivery-id, first, more, payload.
pub(crate) fn received(events: &[Event]) -> Vec<(u32, bool, bool, Vec<u8>)> {
    let transfers = events.iter().filter_map(|event| match event {
        Event::Transfer { delivery_id, first, transfer, .. } => {
            Some((*delivery_id, *first, transfer.more, transfer.payload().to_vec()))
        }
        _ => None,
    });
    transfers.collect()
}

#[test]
fn deliveries_and_outcomes_pass_across_the_wrap_of_ids() {
    let wrapping = ConnectionConfig { first_transfer_id: u32::MAX - 1, incoming_window: 4, ..config() };
    let mut pair = Pair::open_with(wrapping.clone(), wrapping);
    let (ours, theirs) = pair.session();
    let (link, remote) = pair.link(ours, "l", Role::Sender);
    grant(&mut pair.server, remote, 100);
    pair.run();
    let mut ids = Vec::new();
    for number in 0..50_u8 {
        ids.push(pair.client.connection.transfer(link, message(&[number]), &[number; 3]).unwrap());
    }
    assert_eq!(ids[..4], [u32::MAX - 1, u32::MAX, 0, 1]);
    pair.run();
    let got = received(&pair.server.events);
    assert_eq!(got.len(), 50);
    for (number, (id, got)) in (0_u8..).zip(ids.iter().zip(&got)) {
        assert_eq!(got, &(*id, true, false, vec![number; 3]));
    }
    let disposition = DispositionOut {
        role: Role::Receiver,
        first: ids[0],
        last: ids[49],
        settled: true,
        state: Some(ACCEPTED),
        batchable: false,
    };
    pair.server.connection.disposition(theirs, disposition);
    pair.client.take();
    pair.run();
    let [Event::Disposition { session, disposition }] = &pair.client.events[..] else {
        panic!("{:?}", pair.client.events)
    };
    assert_eq!(*session, ours);
    assert_eq!((disposition.first, disposition.last), (u32::MAX - 1, 47));
    assert_eq!(disposition.state(), Some(ACCEPTED));
}

#[test]
fn a_large_payload_is_split_to_the_peers_frames() {
    let small = ConnectionConfig { max_frame_bytes: 512, ..config() };
    let mut pair = Pair::open_with(config(), small);
    let (session, _) = pair.session();
    let (link, remote) = pair.link(session, "l", Role::Sender);
    grant(&mut pair.server, remote, 10);
    pair.run();
    pair.server.take();
    let payload: Vec<u8> = (0..2000_u32).map(|number| number as u8).collect();
    let fields = TransferOut { batchable: true, rcv_settle_mode: Some(1), ..message(b"t") };
    let id = pair.client.connection.transfer(link, fields, &payload).unwrap();
    let written = frames(pair.client.connection.poll_transmit().unwrap());
    let mut whole = Vec::new();
    let count = written.len();
    for (number, (_, performative)) in written.into_iter().enumerate() {
        let Performative::Transfer(transfer) = performative else { panic!("{performative:?}") };
        assert_eq!(transfer.more, number + 1 < count);
        assert_eq!(transfer.delivery_id, (number == 0).then_some(id));
        assert_eq!(transfer.delivery_tag().is_some(), number == 0);
        assert_eq!(transfer.rcv_settle_mode.is_some(), number == 0);
        assert!(transfer.batchable);
        whole.extend_from_slice(transfer.payload_slice());
    }
    assert_eq!(count, 5);
    assert_eq!(whole, payload);
}

#[test]
fn no_frame_is_larger_than_the_peer_allows() {
    let small = ConnectionConfig { max_frame_bytes: 512, ..config() };
    let mut pair = Pair::open_with(config(), small);
    let (session, _) = pair.session();
    let (link, remote) = pair.link(session, "l", Role::Sender);
    grant(&mut pair.server, remote, 5000);
    pair.run();
    // Around the edge of one frame and of two, with ids of every width.
    for len in (440..500).chain(900..1000) {
        let before = received(&pair.server.events).len();
        let payload = vec![7; len];
        pair.client.connection.transfer(link, message(&[1; 32]), &payload).unwrap();
        pair.run();
        assert!(pair.server.connection.is_open(), "{len}");
        let got: usize =
            received(&pair.server.events)[before..].iter().map(|transfer| transfer.3.len()).sum();
        assert_eq!(got, len);
    }
    let state = [&b"\0\x53\x99\xb0\0\0\x02\x00"[..], &[0; 512]].concat();
    let large = TransferOut { state: Some(&state), ..message(b"t") };
    assert_eq!(pair.client.connection.transfer(link, large, b"x"), Err(Misuse::FrameTooLarge));
}

#[test]
fn a_delivery_may_be_sent_in_pieces_and_between_others() {
    let mut pair = Pair::open();
    let (session, _) = pair.session();
    let (one, remote_one) = pair.link(session, "one", Role::Sender);
    let (two, remote_two) = pair.link(session, "two", Role::Sender);
    grant(&mut pair.server, remote_one, 10);
    grant(&mut pair.server, remote_two, 10);
    pair.run();
    let client = &mut pair.client.connection;
    let more = TransferOut { more: true, ..message(b"a") };
    assert_eq!(client.transfer(one, more, b"1"), Ok(0));
    assert_eq!(client.transfer(two, message(b"b"), b"2"), Ok(1));
    assert_eq!(client.transfer(one, TransferOut { more: true, ..TransferOut::default() }, b"3"), Ok(0));
    assert_eq!(client.transfer(one, TransferOut::default(), b"4"), Ok(0));
    assert_eq!(client.transfer(one, message(b"c"), b"5"), Ok(2));
    pair.run();
    let expected = [
        (0, true, true, b"1".to_vec()),
        (1, true, false, b"2".to_vec()),
        (0, false, true, b"3".to_vec()),
        (0, false, false, b"4".to_vec()),
        (2, true, false, b"5".to_vec()),
    ];
    assert_eq!(received(&pair.server.events), expected);
    assert_eq!(pair.server.connection.link(remote_one).unwrap().delivery_count, 2);
    assert_eq!(pair.server.connection.link(remote_one).unwrap().credit, 8);
}

#[test]
fn an_aborted_delivery_ends_without_payload() {
    let mut pair = Pair::open();
    let (session, _) = pair.session();
    let (link, remote) = pair.link(session, "l", Role::Sender);
    grant(&mut pair.server, remote, 10);
    pair.run();
    let client = &mut pair.client.connection;
    client.transfer(link, TransferOut { more: true, ..message(b"a") }, b"half").unwrap();
    let abort = TransferOut { aborted: true, ..TransferOut::default() };
    client.transfer(link, abort, b"ignored").unwrap();
    assert_eq!(client.transfer(link, message(b"b"), b"next"), Ok(1));
    pair.run();
    let got = received(&pair.server.events);
    assert_eq!(got[1], (0, false, false, Vec::new()));
    assert_eq!(got[2], (1, true, false, b"next".to_vec()));
}

#[test]
fn a_delivery_needs_a_tag_of_at_most_32_bytes() {
    let mut pair = Pair::open();
    let (session, _) = pair.session();
    let (sender, _) = pair.link(session, "l", Role::Sender);
    let (receiver, _) = pair.link(session, "l", Role::Receiver);
    let client = &mut pair.client.connection;
    assert_eq!(client.transfer(sender, TransferOut::default(), b""), Err(Misuse::Tag));
    assert_eq!(client.transfer(sender, message(&[0; 33]), b""), Err(Misuse::Tag));
    assert_eq!(client.transfer(receiver, message(b"t"), b""), Err(Misuse::WrongRole));
    client.detach(sender, true, None);
    assert_eq!(client.transfer(sender, message(b"t"), b""), Err(Misuse::NotAttached));
    pair.run();
    assert_eq!(pair.client.connection.transfer(sender, message(b"t"), b""), Err(Misuse::UnknownLink));
}
