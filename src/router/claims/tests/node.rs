//! The node that the gateway plays, and devices of many habits.

use bytes::Bytes;
use fieldgate_amqp::codec::Value;
use fieldgate_amqp::connection::{
    Connection, ConnectionConfig, Event, LinkFlow, LinkId, SessionId, TransferOut,
};
use fieldgate_amqp::error::AmqpError;
use fieldgate_amqp::performative::{
    ACCEPTED, Attach, AttachOut, DeliveryState, DispositionOut, RcvSettleMode, Role, SndSettleMode, rejected,
};

use super::super::{CbsNode, Reply, RequestKey, TokenRequest};
use super::kit::{Said, Wire, config, encoded, put_token, read_answer, receiver, request, sender};

/// A device, and the gateway with its node.
struct Bench {
    wire: Wire,
    node: CbsNode,
    session: SessionId,
    requests: Vec<TokenRequest>,
    events: Vec<Event>,
    next_tag: u32,
}

fn serve(node: &mut CbsNode, requests: &mut Vec<TokenRequest>, gateway: &mut Connection, event: Event) {
    match event {
        Event::SessionBegun { session, .. } => gateway.accept_begin(session),
        Event::Attached { link, session, attach, .. } => node.on_attach(gateway, link, session, &attach),
        Event::Flow { link: Some(link), flow, .. } if node.owns(link) => node.on_flow(gateway, link, &flow),
        Event::Flow { .. } => node.send(gateway),
        Event::Transfer { link, delivery_id, transfer, .. } => {
            requests.extend(node.on_transfer(gateway, link, delivery_id, &transfer));
        }
        Event::Disposition { session, disposition } => node.on_disposition(gateway, session, &disposition),
        Event::Detached { link, detach, answered, .. } => {
            node.on_detached(gateway, link, detach.closed(), answered);
        }
        Event::SessionEnded { session, .. } => node.on_session_ended(session),
        _ => {}
    }
}

impl Bench {
    fn new() -> Self {
        Self::with(config(), config())
    }

    fn with(device: ConnectionConfig, gateway: ConnectionConfig) -> Self {
        let mut wire = Wire::new(device, gateway);
        let session = wire.client.begin().expect("a session");
        let node = CbsNode::new();
        let mut bench = Self { wire, node, session, requests: Vec::new(), events: Vec::new(), next_tag: 0 };
        bench.run();
        bench
    }

    fn run(&mut self) {
        let Self { wire, node, requests, events, .. } = self;
        wire.run(|_, event| events.push(event), |gateway, event| serve(node, requests, gateway, event));
    }

    fn attach(&mut self, attach: &Attach) -> LinkId {
        self.attach_in(self.session, attach)
    }

    fn attach_in(&mut self, session: SessionId, attach: &Attach) -> LinkId {
        let link = self.wire.client.attach(session, attach).expect("a handle");
        self.run();
        link
    }

    fn grant(&mut self, link: LinkId, link_credit: u32) {
        self.wire.client.flow(link, LinkFlow { link_credit, ..LinkFlow::default() });
        self.run();
    }

    fn credit(&self, link: LinkId) -> u32 {
        self.wire.client.link(link).map_or(0, |link| link.credit)
    }

    fn send(&mut self, link: LinkId, message: &[u8]) -> u32 {
        let id = self.transfer(link, message, TransferOut::default());
        self.run();
        id
    }

    fn transfer(&mut self, link: LinkId, message: &[u8], fields: TransferOut<'_>) -> u32 {
        self.next_tag += 1;
        let tag = self.next_tag.to_be_bytes();
        let fields = TransferOut { delivery_tag: Some(&tag), ..fields };
        self.wire.client.transfer(link, fields, message).expect("sent")
    }

    fn answer(&mut self, key: RequestKey, reply: &Reply) {
        self.node.answer(&mut self.wire.server, key, reply);
        self.run();
    }

    fn answer_all(&mut self) {
        for request in std::mem::take(&mut self.requests) {
            self.answer(request.key, &Reply::status(200, "OK"));
        }
    }

    /// What the device was answered since the last call: link, delivery-id, settled, and what it says.
    fn answers(&mut self) -> Vec<(LinkId, u32, bool, Said)> {
        let answers = self.events.iter().filter_map(|event| match event {
            Event::Transfer { link, delivery_id, transfer, .. } => {
                let settled = transfer.settled.unwrap_or(false);
                Some((*link, *delivery_id, settled, read_answer(&transfer.payload())))
            }
            _ => None,
        });
        let answers = answers.collect();
        self.events.retain(|event| !matches!(event, Event::Transfer { .. }));
        answers
    }

    /// The outcomes of the device's deliveries since the last call.
    fn outcomes(&mut self) -> Vec<(u32, bool, bool)> {
        let outcomes = self.events.iter().filter_map(|event| match event {
            Event::Disposition { disposition, .. } => {
                let state = DeliveryState::decode(disposition.state().expect("a state")).expect("sound");
                let is_accepted = matches!(state, DeliveryState::Accepted);
                Some((disposition.first, disposition.settled, is_accepted))
            }
            _ => None,
        });
        let outcomes = outcomes.collect();
        self.events.retain(|event| !matches!(event, Event::Disposition { .. }));
        outcomes
    }

    fn detaches(&mut self) -> Vec<Option<AmqpError>> {
        let detaches = self.events.iter().filter_map(|event| match event {
            Event::Detached { detach, .. } => Some(detach.error()),
            _ => None,
        });
        detaches.collect()
    }
}

fn condition(detaches: &[Option<AmqpError>]) -> Option<&str> {
    detaches.first()?.as_ref().map(AmqpError::condition)
}

#[test]
fn a_token_is_handed_on_and_its_answer_comes_back() {
    let mut bench = Bench::new();
    let asking = bench.attach(&sender("asking", "$cbs"));
    let answered = bench.attach(&receiver("answered", None));
    bench.grant(answered, 10);
    assert_eq!(bench.credit(asking), 16);
    let id = bench.send(asking, &put_token(Value::Ulong(5)));
    let [request] = &bench.requests[..] else { panic!("{:?}", bench.requests) };
    assert_eq!((request.name.as_str(), request.token.expose()), ("hub/devices/d", "the token"));
    assert_eq!(request.token_type, "servicebus.windows.net:sastoken");
    assert!(!format!("{request:?} {:?}", bench.node).contains("the token"));
    let key = request.key;
    assert!(bench.outcomes().is_empty(), "nothing is said before the hub has spoken");

    bench.answer(key, &Reply::status(401, "not good"));
    assert_eq!(bench.outcomes(), [(id, true, true)]);
    let answer = (Some(encoded(Value::Ulong(5))), 401, "not good".to_owned());
    assert_eq!(bench.answers(), [(answered, 0, false, answer)]);
    bench.answer(key, &Reply::status(200, "once is enough"));
    assert!(bench.answers().is_empty());
    assert_eq!(bench.node.open_requests(), 0);
}

#[test]
fn the_hubs_outcome_is_the_devices() {
    let mut bench = Bench::new();
    let asking = bench.attach(&sender("asking", "$cbs"));
    let answered = bench.attach(&receiver("answered", None));
    bench.grant(answered, 10);
    let id = bench.send(asking, &put_token(Value::Ulong(5)));
    let state = Bytes::copy_from_slice(&rejected(None));
    let key = bench.requests[0].key;
    bench.answer(key, &Reply::Outcome(state));
    assert_eq!(bench.outcomes(), [(id, true, false)]);
    assert!(bench.answers().is_empty());
    assert_eq!(bench.node.open_requests(), 0);
}

#[test]
fn the_id_comes_back_with_its_type_whatever_it_is() {
    let mut bench = Bench::new();
    let asking = bench.attach(&sender("asking", "$cbs"));
    let answered = bench.attach(&receiver("answered", None));
    bench.grant(answered, 10);
    for id in [
        Value::Ulong(0),
        Value::Ulong(u64::MAX),
        Value::Str("17"),
        Value::Str(""),
        Value::Uuid([9; 16]),
        Value::Binary(b"\x00\xff"),
    ] {
        bench.send(asking, &put_token(id));
        bench.answer_all();
        let answers = bench.answers();
        let [(_, _, _, (correlation, 200, _))] = &answers[..] else { panic!("{answers:?}") };
        assert_eq!(correlation.as_deref(), Some(&*encoded(id)));
    }
    let no_id = request(None, None, "put-token", &Value::Str("t"));
    bench.send(asking, &no_id);
    bench.answer_all();
    assert_eq!(bench.answers()[0].3.0, None);
}

#[test]
fn what_is_no_request_for_a_token_is_answered_with_400() {
    let mut bench = Bench::new();
    let asking = bench.attach(&sender("asking", "$cbs"));
    let answered = bench.attach(&receiver("answered", None));
    bench.grant(answered, 20);
    for (operation, body) in [
        ("delete-token", Value::Str("t")),
        ("Put-Token", Value::Str("t")),
        ("", Value::Str("t")),
        ("put-token", Value::Null),
        ("put-token", Value::Binary(b"t")),
        ("put-token", Value::Symbol("t")),
    ] {
        let id = bench.send(asking, &request(Some(Value::Str("a")), None, operation, &body));
        assert_eq!(bench.outcomes(), [(id, true, true)]);
        let answers = bench.answers();
        let [(_, _, _, (_, 400, words))] = &answers[..] else { panic!("{answers:?}") };
        assert!(words.contains("put-token") || words.contains("token in a string"), "{words}");
    }
    assert!(bench.requests.is_empty());
    assert_eq!(bench.node.open_requests(), 0);
}

#[test]
fn what_is_no_message_is_rejected() {
    let mut bench = Bench::new();
    let asking = bench.attach(&sender("asking", "$cbs"));
    let answered = bench.attach(&receiver("answered", None));
    bench.grant(answered, 20);
    let long_id = "i".repeat(2000);
    let whole = put_token(Value::Ulong(1));
    for message in [b"\xff\xff" as &[u8], &whole[..whole.len() - 1], &put_token(Value::Str(&long_id))] {
        let id = bench.send(asking, message);
        assert_eq!(bench.outcomes(), [(id, true, false)]);
    }
    // Settled already: nothing can be said.
    bench.transfer(asking, b"\xff", TransferOut { settled: Some(true), ..TransferOut::default() });
    bench.run();
    assert!(bench.outcomes().is_empty() && bench.answers().is_empty() && bench.requests.is_empty());
    for _ in 0..100 {
        bench.send(asking, b"nonsense");
    }
    assert_eq!(bench.outcomes().len(), 100, "credit is given again");
}

#[test]
fn a_request_in_pieces_is_put_together_and_an_aborted_one_forgotten() {
    let small = ConnectionConfig { max_frame_bytes: 512, ..config() };
    let mut bench = Bench::with(small.clone(), small);
    let asking = bench.attach(&sender("asking", "$cbs"));
    let answered = bench.attach(&receiver("answered", None));
    bench.grant(answered, 10);
    let token = "t".repeat(3000);
    let message = request(Some(Value::Ulong(1)), None, "put-token", &Value::Str(&token));
    bench.transfer(asking, &message[..700], TransferOut { more: true, ..TransferOut::default() });
    bench.run();
    bench.transfer(asking, b"", TransferOut { aborted: true, ..TransferOut::default() });
    bench.run();
    assert!(bench.requests.is_empty() && bench.outcomes().is_empty());
    bench.send(asking, &message);
    assert_eq!(bench.requests[0].token.expose(), token);
    bench.answer_all();
    assert_eq!(bench.answers()[0].3.1, 200);
}

#[test]
fn a_request_that_is_too_large_costs_the_link() {
    let mut bench = Bench::new();
    let asking = bench.attach(&sender("asking", "$cbs"));
    bench.transfer(asking, &[0; 60_000], TransferOut { more: true, ..TransferOut::default() });
    bench.run();
    assert!(bench.detaches().is_empty());
    bench.transfer(asking, &[0; 6_000], TransferOut { more: true, ..TransferOut::default() });
    bench.run();
    assert_eq!(condition(&bench.detaches()), Some("amqp:link:message-size-exceeded"));
    assert!(bench.requests.is_empty() && bench.wire.server.is_open());
}

#[test]
fn an_answer_waits_for_the_link_and_for_its_credit() {
    let mut bench = Bench::new();
    let asking = bench.attach(&sender("asking", "$cbs"));
    let id = bench.send(asking, &put_token(Value::Ulong(1)));
    bench.answer_all();
    assert_eq!(bench.outcomes(), [(id, true, true)], "some clients wait for this before they receive");
    let answered = bench.attach(&receiver("answered", None));
    assert!(bench.answers().is_empty());
    bench.grant(answered, 1);
    assert_eq!(bench.answers().len(), 1);
    bench.send(asking, &put_token(Value::Ulong(2)));
    bench.send(asking, &put_token(Value::Ulong(3)));
    bench.answer_all();
    assert!(bench.answers().is_empty());
    bench.grant(answered, 1);
    assert_eq!(bench.answers()[0].3.0, Some(encoded(Value::Ulong(2))), "in the order of the answers");
    bench.grant(answered, 1);
    assert_eq!(bench.answers()[0].3.0, Some(encoded(Value::Ulong(3))));
}

#[test]
fn whoever_takes_no_answers_can_soon_ask_nothing() {
    for settled in [false, true] {
        let mut bench = Bench::new();
        let asking = bench.attach(&sender("asking", "$cbs"));
        let mut sent = 0;
        while bench.credit(asking) > 0 {
            let fields = TransferOut { settled: Some(settled), ..TransferOut::default() };
            bench.transfer(asking, &put_token(Value::Ulong(sent)), fields);
            bench.run();
            bench.answer_all();
            sent += 1;
            assert!(sent <= 16, "credit without end");
        }
        assert_eq!((sent, bench.node.open_requests()), (16, 16));
        let answered = bench.attach(&receiver("answered", None));
        bench.grant(answered, 100);
        assert_eq!(bench.answers().len(), 16);
        assert_eq!((bench.credit(asking), bench.node.open_requests()), (16, 0));
    }
}

#[test]
fn requests_that_nobody_judges_are_bounded_too() {
    let mut bench = Bench::new();
    let asking = bench.attach(&sender("asking", "$cbs"));
    for sent in 0..16 {
        bench.send(asking, &put_token(Value::Ulong(sent)));
    }
    assert_eq!((bench.credit(asking), bench.requests.len()), (0, 16));
    // More than the credit is the engine's matter: the link ends.
    bench.send(asking, &put_token(Value::Ulong(16)));
    assert_eq!(bench.requests.len(), 16);
}

#[test]
fn a_connection_may_have_four_links_in_each_direction() {
    let mut bench = Bench::new();
    for number in 0..4 {
        bench.attach(&sender(&format!("s{number}"), "$cbs"));
        bench.attach(&receiver(&format!("r{number}"), None));
    }
    assert!(bench.detaches().is_empty());
    bench.attach(&sender("s4", "$cbs"));
    assert_eq!(condition(&bench.detaches()), Some("amqp:resource-limit-exceeded"));
    bench.events.clear();
    bench.attach(&receiver("r4", None));
    assert_eq!(condition(&bench.detaches()), Some("amqp:resource-limit-exceeded"));
}

#[test]
fn answers_go_where_the_request_says_and_else_to_its_session() {
    let mut bench = Bench::new();
    let first = bench.attach(&receiver("first", Some("here")));
    let by_name = bench.attach(&receiver("by name", None));
    let other_session = bench.wire.client.begin().expect("a session");
    bench.run();
    let asking = bench.attach_in(other_session, &sender("asking", "$cbs"));
    let beside = bench.attach_in(other_session, &receiver("beside", None));
    for link in [first, by_name, beside] {
        bench.grant(link, 1);
    }
    let ask = |bench: &mut Bench, reply_to| {
        bench.send(asking, &request(Some(Value::Ulong(1)), reply_to, "put-token", &Value::Str("t")));
        bench.answer_all();
        bench.answers().first().map(|answer| answer.0)
    };
    assert_eq!(ask(&mut bench, Some("here")), Some(first));
    assert_eq!(ask(&mut bench, Some("by name")), Some(by_name));
    assert_eq!(ask(&mut bench, Some("cbs")), Some(beside));
    // The link of the session has no credit left: any that has some will do, but one that is named is waited for.
    bench.grant(by_name, 1);
    assert_eq!(ask(&mut bench, None), Some(by_name));
    bench.grant(by_name, 1);
    assert_eq!(ask(&mut bench, Some("here")), None);
    bench.grant(first, 1);
    assert_eq!(bench.answers()[0].0, first);
}

#[test]
fn attaches_are_answered_in_kind() {
    let mut bench = Bench::new();
    let both = |mut attach: AttachOut<'_>| {
        attach.rcv_settle_mode = RcvSettleMode::Second;
        attach.snd_settle_mode = SndSettleMode::Settled;
        attach.build()
    };
    let (asking, answered) = (sender("asking", "/$CBS"), receiver("answered", Some("cbs-1")));
    let (source, target) = (asking.source().unwrap(), asking.target().unwrap());
    bench.attach(&both(AttachOut::sender("asking", &source, &target)));
    let (source, target) = (answered.source().unwrap(), answered.target().unwrap());
    let answered = bench.attach(&both(AttachOut::receiver("answered", &source, &target)));
    let attaches: Vec<&Attach> = bench
        .events
        .iter()
        .filter_map(|event| match event {
            Event::Attached { attach, .. } => Some(attach),
            _ => None,
        })
        .collect();
    assert_eq!(attaches.len(), 2);
    assert_eq!(attaches[0].target().unwrap().address(), Some("/$CBS"));
    assert_eq!(attaches[0].rcv_settle_mode(), RcvSettleMode::First);
    assert_eq!(attaches[0].max_message_size(), Some(65_536));
    assert_eq!(attaches[1].target().unwrap().address(), Some("cbs-1"));
    assert_eq!(attaches[1].snd_settle_mode(), SndSettleMode::Settled);
    assert_eq!(attaches[1].initial_delivery_count(), Some(0));
    // Who wants answers settled gets them so.
    bench.grant(answered, 1);
    let asking = bench.attach(&sender("more", "$cbs"));
    bench.send(asking, &put_token(Value::Ulong(0)));
    bench.answer_all();
    assert!(bench.answers()[0].2);
}

#[test]
fn answers_are_settled_when_the_device_waits_for_it() {
    let mut bench = Bench::new();
    let asking = bench.attach(&sender("asking", "$cbs"));
    let answered = bench.attach(&receiver("answered", None));
    bench.grant(answered, 10);
    for number in 0..3 {
        bench.send(asking, &put_token(Value::Ulong(number)));
    }
    bench.answer_all();
    bench.outcomes();
    let say = |bench: &mut Bench, first, last, settled| {
        let (role, state, batchable) = (Role::Receiver, Some(ACCEPTED), false);
        let disposition = DispositionOut { role, first, last, settled, state, batchable };
        bench.wire.client.disposition(bench.session, disposition);
        bench.run();
        bench.outcomes()
    };
    assert_eq!(say(&mut bench, 0, 0, true), []);
    // A range that speaks of what was settled before, and of deliveries of other links.
    assert_eq!(say(&mut bench, 0, 9, false), [(1, true, true), (2, true, true)]);
    assert_eq!(say(&mut bench, 0, u32::MAX, false), []);
}

#[test]
fn answers_that_are_never_settled_do_not_pile_up() {
    let mut bench = Bench::new();
    let asking = bench.attach(&sender("asking", "$cbs"));
    let answered = bench.attach(&receiver("answered", None));
    for number in 0..1000 {
        bench.grant(answered, 1);
        bench.send(asking, &put_token(Value::Ulong(number)));
        bench.answer_all();
    }
    assert_eq!(bench.answers().len(), 1000);
    let written = format!("{:?}", bench.node);
    assert!(written.len() < 10_000, "{written}");
}

#[test]
fn a_drain_is_answered() {
    let mut bench = Bench::new();
    let answered = bench.attach(&receiver("answered", None));
    bench.wire.client.flow(answered, LinkFlow { link_credit: 5, drain: true, ..LinkFlow::default() });
    bench.run();
    let drained = bench.events.iter().any(|event| match event {
        Event::Flow { link: Some(link), flow, .. } => {
            *link == answered && flow.delivery_count == Some(5) && flow.link_credit == Some(0)
        }
        _ => false,
    });
    assert!(drained, "{:?}", bench.events);
}

#[test]
fn what_is_gone_is_forgotten() {
    let mut bench = Bench::new();
    let asking = bench.attach(&sender("asking", "$cbs"));
    let answered = bench.attach(&receiver("answered", None));
    bench.send(asking, &put_token(Value::Ulong(1)));
    bench.send(asking, &put_token(Value::Ulong(2)));
    let (first, second) = (bench.requests[0].key, bench.requests[1].key);
    bench.answer(first, &Reply::status(200, "OK"));
    assert_eq!(bench.node.open_requests(), 2);
    bench.wire.client.detach(asking, true, None);
    bench.run();
    assert_eq!(bench.node.open_requests(), 0);
    assert_eq!(bench.detaches().len(), 1);
    bench.answer(second, &Reply::status(200, "OK"));
    bench.grant(answered, 5);
    assert!(bench.answers().is_empty());

    let asking = bench.attach(&sender("again", "$cbs"));
    bench.send(asking, &put_token(Value::Ulong(3)));
    bench.wire.client.end(bench.session, None);
    bench.run();
    assert_eq!(bench.node.open_requests(), 0);
    assert!(!format!("{:?}", bench.node).contains("LinkId"));
    bench.answer_all();

    // All links may be had again.
    bench.session = bench.wire.client.begin().expect("a session");
    bench.run();
    bench.events.clear();
    for number in 0..4 {
        bench.attach(&sender(&format!("s{number}"), "$cbs"));
    }
    assert!(bench.detaches().is_empty());
}

#[test]
fn an_answer_waits_for_the_sessions_window() {
    let narrow = ConnectionConfig { incoming_window: 1, ..config() };
    let gateway = ConnectionConfig { max_backlog_bytes: 0, ..config() };
    let mut bench = Bench::with(narrow, gateway);
    let asking = bench.attach(&sender("asking", "$cbs"));
    let answered = bench.attach(&receiver("answered", None));
    bench.grant(answered, 100);
    for number in 0..40 {
        bench.send(asking, &put_token(Value::Ulong(number)));
        bench.answer_all();
    }
    let ids: Vec<_> = bench.answers().into_iter().map(|answer| answer.3.0).collect();
    assert_eq!(ids, (0..40).map(|number| Some(encoded(Value::Ulong(number)))).collect::<Vec<_>>());
}
