//! Links that end here: outcomes, reassembly, prefetch, drain.

use fieldgate_amqp::connection::{ConnectionConfig, Event, LinkFlow, LinkId, SessionId, TransferOut};
use fieldgate_amqp::endpoint::{
    CreditPolicy, Delivery, OutgoingMessage, Receiver, ReceiverConfig, Sender, Settlements, Unsettled,
};
use fieldgate_amqp::error::{AmqpError, Condition, Misuse};
use fieldgate_amqp::performative::{AttachOut, DeliveryState, RcvSettleMode, Role, SourceOut, TargetOut};

use crate::pair::{Pair, attach_with, config};

/// A sending client and a receiving server over one link.
struct Ends {
    pair: Pair,
    session: SessionId,
    sender: Sender,
    unsettled: Unsettled<u32>,
    receiver: Receiver,
    /// Every outcome that the sender saw.
    outcomes: Vec<(u32, String)>,
    deliveries: Vec<Delivery>,
}

impl Ends {
    fn new(receiver: ReceiverConfig, client: ConnectionConfig, server: ConnectionConfig) -> Self {
        let mut pair = Pair::open_with(client, server);
        let (session, _) = pair.session();
        let attach = attach_with("l", Role::Sender, receiver.rcv_settle_mode);
        let link = pair.client.connection.attach(session, &attach).unwrap();
        pair.run();
        let remote = *pair.server.attached().last().unwrap();
        let mut ends = Self {
            pair,
            session,
            sender: Sender::new(link),
            unsettled: Unsettled::new(),
            receiver: Receiver::new(remote, receiver),
            outcomes: Vec::new(),
            deliveries: Vec::new(),
        };
        ends.receiver.on_attached(&mut ends.pair.server.connection);
        ends.run();
        ends
    }

    fn credited(prefetch: u32) -> Self {
        let receiver =
            ReceiverConfig { credit: CreditPolicy::Prefetch(prefetch), ..ReceiverConfig::default() };
        Self::new(receiver, config(), config())
    }

    fn send(&mut self, message: &[u8], value: u32) -> Result<u32, Misuse> {
        let message = OutgoingMessage { message, ..OutgoingMessage::default() };
        let client = &mut self.pair.client.connection;
        self.sender.send(client, &mut self.unsettled, message, value).map_err(|error| error.reason)
    }

    fn run(&mut self) {
        loop {
            self.pair.run();
            let (client, server) = (self.pair.client.take(), self.pair.server.take());
            if client.is_empty() && server.is_empty() {
                return;
            }
            for event in client {
                let connection = &mut self.pair.client.connection;
                match event {
                    Event::Flow { link: Some(_), flow, .. } => {
                        self.sender.on_flow(connection, &flow);
                    }
                    Event::Disposition { session, disposition } => {
                        self.unsettled.on_disposition(connection, session, &disposition, |settled| {
                            let state = settled.state.map_or("none".into(), |state| match state {
                                DeliveryState::Rejected(Some(error)) => error.condition().to_owned(),
                                DeliveryState::Modified { .. } => "Modified".into(),
                                other => format!("{other:?}"),
                            });
                            self.outcomes.push((settled.value, state));
                        });
                    }
                    _ => {}
                }
            }
            for event in server {
                if let Event::Transfer { transfer, delivery_id, .. } = event {
                    let connection = &mut self.pair.server.connection;
                    let delivery = self.receiver.on_transfer(connection, &transfer, delivery_id);
                    self.deliveries.extend(delivery.ok().flatten());
                }
            }
        }
    }

    fn credit(&self) -> u32 {
        self.sender.credit(&self.pair.client.connection)
    }
}

#[test]
fn every_outcome_reaches_what_was_kept() {
    let mut ends = Ends::credited(10);
    for value in 0..5 {
        ends.send(b"m", 100 + value).unwrap();
    }
    ends.run();
    let ids: Vec<u32> = ends.deliveries.iter().map(|delivery| delivery.delivery_id).collect();
    let tags: Vec<_> = ends.deliveries.iter().map(|delivery| delivery.tag.clone()).collect();
    assert_eq!(tags[..2], [vec![0, 0, 0, 0], vec![0, 0, 0, 1]]);
    assert_eq!(ends.receiver.unsettled(), 5);
    let server = &mut ends.pair.server.connection;
    let error = AmqpError::new(&Condition::NotAllowed, None);
    ends.receiver.modify(server, ids[4], ids[4], true, false);
    ends.receiver.accept(server, ids[0], ids[1]);
    ends.receiver.reject(server, ids[3], ids[3], Some(&error));
    ends.receiver.release(server, ids[2], ids[2]);
    ends.run();
    let expected = [
        (104, "Modified"),
        (100, "Accepted"),
        (101, "Accepted"),
        (103, "amqp:not-allowed"),
        (102, "Released"),
    ];
    let outcomes: Vec<_> = ends.outcomes.iter().map(|(value, state)| (*value, state.as_str())).collect();
    assert_eq!(outcomes, expected);
    assert!(ends.unsettled.is_empty());
    assert_eq!(ends.receiver.unsettled(), 0);
}

#[test]
fn prefetch_bounds_what_is_unsettled_and_flows_on_when_settled() {
    let mut ends = Ends::credited(10);
    let mut sent = 0;
    while ends.send(b"m", sent).is_ok() {
        sent += 1;
    }
    assert_eq!(ends.send(b"m", 0), Err(Misuse::NoCredit));
    ends.run();
    assert_eq!((sent, ends.credit()), (10, 0));
    for id in 0..4 {
        ends.receiver.accept(&mut ends.pair.server.connection, id, id);
    }
    ends.run();
    assert_eq!(ends.credit(), 0, "less than half is free");
    ends.receiver.accept(&mut ends.pair.server.connection, 4, 4);
    ends.run();
    assert_eq!(ends.credit(), 5);
}

#[test]
fn settled_messages_keep_nothing_and_cost_only_credit() {
    let mut ends = Ends::credited(4);
    for _ in 0..50 {
        let message = OutgoingMessage { message: b"m", ..OutgoingMessage::default() };
        ends.sender.send_settled(&mut ends.pair.client.connection, message).unwrap();
        ends.run();
    }
    assert_eq!(ends.deliveries.len(), 50);
    assert!(ends.deliveries.iter().all(|delivery| delivery.settled));
    assert_eq!(ends.receiver.unsettled(), 0);
}

#[test]
fn receivers_that_settle_second_are_settled_back() {
    let receiver = ReceiverConfig { rcv_settle_mode: RcvSettleMode::Second, ..ReceiverConfig::default() };
    let mut ends = Ends::new(receiver, config(), config());
    for value in 0..3 {
        ends.send(b"m", value).unwrap();
    }
    ends.run();
    ends.receiver.accept(&mut ends.pair.server.connection, 0, 2);
    let unsettled = ends.pair.server.connection.poll_transmit().unwrap();
    ends.pair.client.connection.handle_input(ends.pair.now, unsettled);
    ends.pair.client.drain();
    let [Event::Disposition { disposition, .. }] = &ends.pair.client.events[..] else {
        panic!("{:?}", ends.pair.client.events)
    };
    assert!(!disposition.settled);
    let disposition = disposition.clone();
    let mut seen = 0;
    let client = &mut ends.pair.client.connection;
    ends.unsettled.on_disposition(client, ends.session, &disposition, |_| seen += 1);
    assert_eq!(seen, 3);
    ends.pair.client.take();
    ends.pair.run();
    let [Event::Disposition { disposition, .. }] = &ends.pair.server.events[..] else {
        panic!("{:?}", ends.pair.server.events)
    };
    assert_eq!((disposition.role, disposition.settled), (Role::Sender, true));
    assert_eq!((disposition.first, disposition.last), (0, 2));
}

#[test]
fn a_message_larger_than_a_frame_comes_whole() {
    let small = ConnectionConfig { max_frame_bytes: 600, incoming_window: 3, ..config() };
    let mut ends = Ends::new(ReceiverConfig::default(), config(), small);
    let message: Vec<u8> = (0..100_000_u32).map(|number| (number / 7) as u8).collect();
    ends.send(&message, 1).unwrap();
    ends.send(b"next", 2).unwrap();
    ends.run();
    assert_eq!(ends.deliveries.len(), 2);
    assert_eq!(ends.deliveries[0].payload, message);
    assert_eq!(ends.deliveries[1].payload, &b"next"[..]);
}

#[test]
fn a_message_above_the_bound_detaches_the_link() {
    for frame in [600, 65_536] {
        let server = ConnectionConfig { max_frame_bytes: frame, ..config() };
        let receiver = ReceiverConfig { max_message_bytes: 2000, ..ReceiverConfig::default() };
        let mut ends = Ends::new(receiver, config(), server);
        ends.send(&[0; 2000], 1).unwrap();
        ends.run();
        assert_eq!(ends.deliveries.len(), 1);
        ends.send(&[0; 2001], 2).unwrap();
        ends.pair.run();
        let detach = loop {
            ends.pair.run();
            let events = ends.pair.client.take();
            if let Some(Event::Detached { detach, .. }) =
                events.into_iter().find(|event| matches!(event, Event::Detached { .. }))
            {
                break detach;
            }
            for event in ends.pair.server.take() {
                if let Event::Transfer { transfer, delivery_id, .. } = event {
                    let connection = &mut ends.pair.server.connection;
                    if ends.receiver.on_transfer(connection, &transfer, delivery_id).is_err() {
                        break;
                    }
                }
            }
        };
        assert!(detach.closed());
        assert_eq!(detach.error().unwrap().condition(), "amqp:link:message-size-exceeded");
        let mut lost = Vec::new();
        ends.unsettled.lose_link(ends.sender.link(), |id, value| lost.push((id, value)));
        assert_eq!(lost, [(0, 1), (1, 2)]);
    }
}

#[test]
fn an_aborted_message_is_forgotten() {
    let mut ends = Ends::credited(10);
    let link: LinkId = ends.sender.link();
    let client = &mut ends.pair.client.connection;
    let first = TransferOut { delivery_tag: Some(b"a"), more: true, ..TransferOut::default() };
    client.transfer(link, first, b"half").unwrap();
    client.transfer(link, TransferOut { aborted: true, ..TransferOut::default() }, b"").unwrap();
    ends.send(b"whole", 1).unwrap();
    ends.run();
    assert_eq!(ends.deliveries.len(), 1);
    assert_eq!(ends.deliveries[0].payload, &b"whole"[..]);
}

#[test]
fn settled_on_the_last_frame_settles() {
    let mut ends = Ends::credited(10);
    let client = &mut ends.pair.client.connection;
    let first = TransferOut {
        delivery_tag: Some(b"a"),
        message_format: Some(7),
        settled: Some(false),
        more: true,
        ..TransferOut::default()
    };
    client.transfer(ends.sender.link(), first, b"1").unwrap();
    let last = TransferOut { settled: Some(true), ..TransferOut::default() };
    client.transfer(ends.sender.link(), last, b"2").unwrap();
    ends.run();
    let delivery = &ends.deliveries[0];
    assert!(delivery.settled);
    assert_eq!(
        (delivery.message_format, &delivery.tag[..], &delivery.payload[..]),
        (7, &b"a"[..], &b"12"[..])
    );
}

#[test]
fn a_drain_is_answered_after_what_there_is() {
    let receiver = ReceiverConfig { credit: CreditPolicy::Manual, ..ReceiverConfig::default() };
    let mut ends = Ends::new(receiver, config(), config());
    assert_eq!(ends.credit(), 0);
    ends.receiver.give_credit(&mut ends.pair.server.connection, 10, true);
    ends.run();
    assert_eq!(ends.credit(), 10);
    ends.send(b"all", 1).unwrap();
    ends.sender.drained(&mut ends.pair.client.connection);
    ends.run();
    assert_eq!((ends.deliveries.len(), ends.credit()), (1, 0));
    let link = ends.pair.server.connection.link(ends.receiver.link()).unwrap();
    assert_eq!((link.delivery_count, link.credit), (10, 0));
    // Once is enough.
    ends.sender.drained(&mut ends.pair.client.connection);
    assert_eq!(ends.pair.client.connection.output_bytes(), 0);
}

#[test]
fn settlements_gather_what_follows_each_other() {
    let mut ends = Ends::credited(100);
    for value in 0..20 {
        ends.send(b"m", value).unwrap();
    }
    ends.run();
    let server = &mut ends.pair.server.connection;
    let mut settlements = Settlements::new();
    for id in (0..10).chain(12..15) {
        settlements.accept(server, &mut ends.receiver, id);
    }
    settlements.release(server, &mut ends.receiver, 15);
    settlements.flush(server);
    settlements.flush(server);
    let written = crate::raw::frames(server.poll_transmit().unwrap());
    let ranges: Vec<_> = written
        .iter()
        .map(|(_, performative)| match performative {
            fieldgate_amqp::performative::Performative::Disposition(it) => (it.first, it.last),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ranges, [(0, 9), (12, 14), (15, 15)]);
    assert_eq!(ends.receiver.unsettled(), 6);
}

#[test]
fn a_giant_range_settles_only_what_is_there() {
    let mut ends = Ends::credited(10);
    for value in 0..3 {
        ends.send(b"m", value).unwrap();
    }
    ends.run();
    ends.receiver.accept(&mut ends.pair.server.connection, 0, i32::MAX as u32);
    ends.run();
    assert_eq!(ends.outcomes.len(), 3);
}

#[test]
fn counts_pass_the_wrap() {
    let mut pair = Pair::open();
    let (session, _) = pair.session();
    let source = SourceOut::default().build();
    let target = TargetOut::default().build();
    let near =
        AttachOut { initial_delivery_count: Some(u32::MAX - 2), ..AttachOut::sender("l", &source, &target) };
    let link = pair.client.connection.attach(session, &near.build()).unwrap();
    pair.run();
    let remote = *pair.server.attached().last().unwrap();
    let receiver = ReceiverConfig { credit: CreditPolicy::Prefetch(4), ..ReceiverConfig::default() };
    let mut ends = Ends {
        pair,
        session,
        sender: Sender::new(link),
        unsettled: Unsettled::new(),
        receiver: Receiver::new(remote, receiver),
        outcomes: Vec::new(),
        deliveries: Vec::new(),
    };
    ends.receiver.on_attached(&mut ends.pair.server.connection);
    ends.run();
    for value in 0..20 {
        ends.send(b"m", value).unwrap();
        ends.run();
        let id = ends.deliveries.last().unwrap().delivery_id;
        ends.receiver.accept(&mut ends.pair.server.connection, id, id);
        ends.run();
    }
    assert_eq!(ends.outcomes.len(), 20);
    assert_eq!(ends.pair.server.connection.link(remote).unwrap().delivery_count, 17);
}

#[test]
fn a_receiver_follows_a_drained_sender_and_answers_its_echo() {
    let receiver = ReceiverConfig { credit: CreditPolicy::Manual, ..ReceiverConfig::default() };
    let mut ends = Ends::new(receiver, config(), config());
    ends.receiver.give_credit(&mut ends.pair.server.connection, 10, true);
    ends.run();
    ends.send(b"all", 1).unwrap();
    ends.sender.drained(&mut ends.pair.client.connection);
    ends.pair.run();
    let mut drained = Vec::new();
    for event in ends.pair.server.take() {
        let connection = &mut ends.pair.server.connection;
        match event {
            Event::Transfer { transfer, delivery_id, .. } => {
                ends.receiver.on_transfer(connection, &transfer, delivery_id).unwrap();
            }
            Event::Flow { link: Some(_), flow, .. } => {
                drained.push(ends.receiver.on_flow(connection, &flow));
            }
            _ => {}
        }
    }
    assert_eq!(drained, [true]);
    // New credit counts from where the sender stands now.
    ends.receiver.give_credit(&mut ends.pair.server.connection, 3, false);
    ends.run();
    assert_eq!(ends.credit(), 3);
    let link = ends.sender.link();
    let echo = LinkFlow { link_credit: 3, echo: true, ..LinkFlow::default() };
    ends.pair.client.connection.flow(link, echo);
    ends.pair.run();
    let events = ends.pair.server.take();
    let [Event::Flow { flow, .. }] = &events[..] else { panic!("{events:?}") };
    assert!(!ends.receiver.on_flow(&mut ends.pair.server.connection, flow));
    ends.pair.run();
    let answer = ends.pair.client.take();
    let [Event::Flow { flow, .. }] = &answer[..] else { panic!("{answer:?}") };
    assert_eq!((flow.delivery_count, flow.link_credit), (Some(10), Some(3)));
}
