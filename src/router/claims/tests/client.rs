//! The client of a hub's `$cbs`: against our own node, which plays the hub, and against hubs that misbehave.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use fieldgate_amqp::connection::{Connection, ConnectionConfig, Event, LinkFlow, LinkId, SessionId};
use fieldgate_amqp::endpoint::CbsRequest;
use fieldgate_amqp::error::{AmqpError, Condition};
use fieldgate_amqp::performative::{Attach, AttachOut, Role, TransferOut, rejected};

use super::super::{Answer, CbsClientLink, CbsNode, Full, Reply, TokenRequest};
use super::kit::{Wire, config};
use crate::config::Secret;

const TIME_OUT: Duration = Duration::from_secs(10);

/// The gateway's client, and a hub.
struct Bench {
    wire: Wire,
    client: CbsClientLink<u32>,
    answers: Vec<Answer<u32>>,
    hub: Hub,
}

/// A hub whose `$cbs` is our own node, or that does as it is told.
#[derive(Default)]
struct Hub {
    node: CbsNode,
    requests: Vec<TokenRequest>,
    /// Does not play the node: attaches are answered, or refused with this.
    by_hand: bool,
    refuses: Option<AmqpError>,
    links: Vec<(LinkId, SessionId, Role)>,
    /// Messages that came by hand.
    messages: Vec<(u32, Bytes)>,
    attached: usize,
}

impl Hub {
    fn handle(&mut self, hub: &mut Connection, event: Event) {
        match event {
            Event::SessionBegun { session, .. } => hub.accept_begin(session),
            Event::Attached { link, session, attach, .. } => {
                self.attached += 1;
                match (&self.refuses, self.by_hand) {
                    (Some(error), _) => hub.refuse_attach(link, error.clone()),
                    (None, false) => self.node.on_attach(hub, link, session, &attach),
                    (None, true) => {
                        self.links.push((link, session, attach.role()));
                        hub.answer_attach(link, &echo(&attach));
                    }
                }
            }
            Event::Flow { link: Some(link), flow, .. } => self.node.on_flow(hub, link, &flow),
            Event::Transfer { delivery_id, transfer, .. } if self.by_hand => {
                self.messages.push((delivery_id, transfer.payload()));
            }
            Event::Transfer { link, delivery_id, transfer, .. } => {
                self.requests.extend(self.node.on_transfer(hub, link, delivery_id, &transfer));
            }
            Event::Disposition { session, disposition } => {
                self.node.on_disposition(hub, session, &disposition)
            }
            Event::SessionEnded { session, .. } => self.node.on_session_ended(session),
            _ => {}
        }
    }
}

fn echo(attach: &Attach) -> Attach {
    let (source, target) = (attach.source().expect("source"), attach.target().expect("target"));
    match attach.role() {
        Role::Sender => AttachOut::receiver(attach.name(), &source, &target).build(),
        Role::Receiver => AttachOut::sender(attach.name(), &source, &target).build(),
    }
}

impl Bench {
    fn new(hub: Hub) -> Self {
        let wire = Wire::new(config(), config());
        Self { wire, client: CbsClientLink::new(TIME_OUT), answers: Vec::new(), hub }
    }

    fn by_hand() -> Self {
        Self::new(Hub { by_hand: true, ..Hub::default() })
    }

    fn put(&mut self, key: u32) {
        self.put_only(key).expect("room");
        self.run();
    }

    fn put_only(&mut self, key: u32) -> Result<(), Full> {
        let (name, token) = (format!("hub/devices/d{key}"), Secret::new(format!("token {key}")));
        let now = self.wire.now;
        self.client.put(&mut self.wire.client, key, &name, &token, now, &mut self.answers)
    }

    fn run(&mut self) {
        let Self { wire, client, answers, hub } = self;
        let now: Instant = wire.now;
        wire.run(
            |connection, event| client.handle_event(connection, event, now, answers),
            |connection, event| hub.handle(connection, event),
        );
    }

    fn pass(&mut self, time: Duration) {
        self.wire.now += time;
        let now = self.wire.now;
        self.client.handle_timeout(&mut self.wire.client, now, &mut self.answers);
        self.run();
    }

    /// The hub's node judges all that has come: even keys are good.
    fn judge(&mut self) {
        for request in std::mem::take(&mut self.hub.requests) {
            let number: u32 =
                request.token.expose().strip_prefix("token ").expect("ours").parse().expect("a number");
            assert_eq!(request.name, format!("hub/devices/d{number}"));
            let reply =
                if number.is_multiple_of(2) { Reply::status(200, "OK") } else { Reply::status(401, "odd") };
            self.hub.node.answer(&mut self.wire.server, request.key, &reply);
        }
        self.run();
    }

    fn take(&mut self) -> Vec<(u32, u32, String)> {
        let answers = std::mem::take(&mut self.answers).into_iter().map(|answer| match answer.reply {
            Reply::Status { status, description } => (answer.key, status, description),
            Reply::Outcome(_) => (answer.key, 0, "outcome".into()),
        });
        answers.collect()
    }

    fn link(&self, role: Role) -> (LinkId, SessionId) {
        let (link, session, _) = self.hub.links.iter().rev().find(|link| link.2 == role).expect("attached");
        (*link, *session)
    }

    fn give_credit(&mut self, link_credit: u32) {
        let (link, _) = self.link(Role::Sender);
        self.wire.server.flow(link, LinkFlow { link_credit, ..LinkFlow::default() });
        self.run();
    }

    fn say(&mut self, message: &[u8]) {
        let (link, _) = self.link(Role::Receiver);
        let fields = TransferOut { delivery_tag: Some(b"t"), settled: Some(true), ..TransferOut::default() };
        self.wire.server.transfer(link, fields, message).expect("sent");
        self.run();
    }

    /// Answers a message that came by hand.
    fn say_status(&mut self, message: &Bytes, status: i32) {
        let mut out = BytesMut::new();
        let request = CbsRequest::parse(message).expect("a request");
        fieldgate_amqp::endpoint::put_cbs_response(&mut out, request.id(), status, "said");
        self.say(&out);
    }
}

#[test]
fn each_gets_its_own_answer() {
    let mut bench = Bench::new(Hub::default());
    assert_eq!(bench.hub.attached, 0, "no links before the first token");
    for key in 0..3 {
        bench.put(key);
    }
    assert_eq!(bench.hub.attached, 2);
    assert!(bench.take().is_empty());
    bench.hub.requests.reverse();
    bench.judge();
    let expected = [(2, 200, "OK".to_owned()), (1, 401, "odd".into()), (0, 200, "OK".into())];
    assert_eq!(bench.take(), expected);
    assert_eq!(bench.client.poll_timeout(), None);
    assert!(Reply::status(204, "").is_success() && !Reply::status(401, "").is_success());
    assert!(!Reply::Outcome(Bytes::new()).is_success());
}

#[test]
fn no_more_than_thirty_are_under_way_and_the_rest_follows_in_order() {
    let mut bench = Bench::by_hand();
    for key in 0..100 {
        bench.put(key);
    }
    bench.give_credit(1000);
    assert_eq!(bench.hub.messages.len(), 30);
    for answered in 0..100 {
        let message = bench.hub.messages[answered].1.clone();
        bench.say_status(&message, 202);
        assert_eq!(bench.hub.messages.len(), 100.min(31 + answered));
    }
    let keys: Vec<u32> = bench.take().into_iter().map(|(key, _, _)| key).collect();
    assert_eq!(keys, (0..100).collect::<Vec<_>>());
}

#[test]
fn a_thousand_wait_and_no_more() {
    let mut bench = Bench::by_hand();
    for key in 0..1000 {
        assert_eq!(bench.put_only(key), Ok(()));
    }
    assert_eq!(bench.put_only(1000), Err(Full));
    bench.client.forget(|key| *key < 999);
    assert_eq!(bench.put_only(1001), Ok(()));
    bench.run();
    bench.give_credit(50);
    assert_eq!(bench.hub.messages.len(), 2);
    assert_eq!(bench.client.lose().collect::<Vec<_>>(), [999, 1001]);
}

#[test]
fn credit_is_kept_to() {
    let mut bench = Bench::by_hand();
    for key in 0..5 {
        bench.put(key);
    }
    assert!(bench.hub.messages.is_empty());
    bench.give_credit(2);
    assert_eq!(bench.hub.messages.len(), 2);
    bench.give_credit(1);
    assert_eq!(bench.hub.messages.len(), 3);
}

#[test]
fn who_is_not_answered_in_time_gets_504() {
    let mut bench = Bench::by_hand();
    bench.put(1);
    bench.give_credit(1);
    bench.wire.now += Duration::from_secs(5);
    bench.put(2);
    assert_eq!(bench.client.poll_timeout(), Some(bench.wire.now + Duration::from_secs(5)));
    bench.pass(Duration::from_secs(4));
    assert!(bench.take().is_empty());
    bench.pass(Duration::from_secs(1));
    let answers = bench.take();
    assert!(matches!(&answers[..], [(1, 504, _)]), "{answers:?}");
    // The second has never been sent for want of credit.
    bench.pass(Duration::from_secs(5));
    let answers = bench.take();
    assert!(matches!(&answers[..], [(2, 504, _)]), "{answers:?}");
    assert_eq!(bench.client.poll_timeout(), None);
    // An answer that comes too late is nobody's.
    let message = bench.hub.messages[0].1.clone();
    bench.say_status(&message, 200);
    assert!(bench.take().is_empty());
}

#[test]
fn a_hub_that_has_no_such_node_is_asked_once() {
    let error = AmqpError::new(&Condition::NotFound, Some("no node $cbs"));
    let mut bench = Bench::new(Hub { refuses: Some(error), ..Hub::default() });
    bench.put_only(1).expect("room");
    bench.put(2);
    let answers = bench.take();
    assert_eq!(answers.len(), 2);
    assert!(
        answers.iter().all(|(_, status, why)| *status == 501 && why.contains("no node $cbs")),
        "{answers:?}"
    );
    let attached = bench.hub.attached;
    bench.put(3);
    assert!(matches!(&bench.take()[..], [(3, 501, _)]));
    assert_eq!(bench.hub.attached, attached);
    // It may have been a matter of the moment.
    bench.hub.refuses = None;
    bench.pass(Duration::from_secs(30));
    bench.put(4);
    bench.judge();
    assert!(matches!(&bench.take()[..], [(4, 200, _)]));
}

#[test]
fn links_over_which_the_hub_says_nothing_give_way_to_new_ones() {
    let mut bench = Bench::by_hand();
    bench.put(1);
    bench.pass(TIME_OUT / 2);
    bench.put(2);
    bench.pass(TIME_OUT / 2);
    assert!(matches!(&bench.take()[..], [(1, 504, _)]));
    // What still has time is asked over the new ones.
    assert_eq!(bench.hub.attached, 4);
    bench.give_credit(1);
    let message = bench.hub.messages.last().expect("the token").1.clone();
    bench.say_status(&message, 200);
    assert!(matches!(&bench.take()[..], [(2, 200, _)]));
    // One that is heard of is kept, whoever has no answer there.
    bench.put(3);
    bench.give_credit(2);
    bench.pass(TIME_OUT * 2 / 3);
    bench.put(4);
    let message = bench.hub.messages.last().expect("the token").1.clone();
    bench.say_status(&message, 200);
    bench.pass(TIME_OUT / 2);
    assert!(matches!(&bench.take()[..], [(4, 200, _), (3, 504, _)]));
    assert_eq!(bench.hub.attached, 4);
    assert_eq!(bench.client.poll_timeout(), None);
}

#[test]
fn a_hub_that_does_not_let_go_of_them_is_left() {
    let mut bench = Bench::by_hand();
    bench.put(1);
    let tick = |bench: &mut Bench| {
        bench.wire.now += TIME_OUT;
        let now = bench.wire.now;
        bench.client.handle_timeout(&mut bench.wire.client, now, &mut bench.answers);
        bench.client.poll_timeout()
    };
    // Nobody reads it.
    assert_eq!(tick(&mut bench), Some(bench.wire.now + TIME_OUT));
    assert!(bench.wire.client.is_open());
    tick(&mut bench);
    assert!(!bench.wire.client.is_open());
}

#[test]
fn a_hub_that_detaches_the_node_or_ends_its_session_is_asked_again() {
    for ends in [false, true] {
        let mut bench = Bench::by_hand();
        bench.put(1);
        bench.give_credit(1);
        bench.put(2);
        let (link, session) = bench.link(Role::Sender);
        let error = Some(AmqpError::new(&Condition::DetachForced, Some("moving")));
        if ends {
            bench.wire.server.end(session, error);
        } else {
            bench.wire.server.detach(link, true, error);
        }
        bench.run();
        let answers = bench.take();
        let [(1, 503, why), (2, 503, _)] = &answers[..] else { panic!("{answers:?}") };
        assert!(why.contains("moving"), "{why}");
        assert_eq!((bench.wire.client.sessions(), bench.wire.client.links()), (0, 0));
        bench.put(3);
        assert_eq!(bench.hub.attached, 4);
        bench.give_credit(1);
        let message = bench.hub.messages.last().expect("the token").1.clone();
        bench.say_status(&message, 200);
        assert!(matches!(&bench.take()[..], [(3, 200, _)]));
    }
}

#[test]
fn the_hubs_outcome_for_a_request_is_its_answer() {
    let mut bench = Bench::by_hand();
    bench.put(1);
    bench.put(2);
    bench.give_credit(2);
    let (_, session) = bench.link(Role::Sender);
    let state = rejected(Some(&AmqpError::new(&Condition::UnauthorizedAccess, None)));
    let disposition = fieldgate_amqp::performative::DispositionOut {
        role: Role::Receiver,
        first: 0,
        last: 0,
        settled: true,
        state: Some(&state),
        batchable: false,
    };
    bench.wire.server.disposition(session, disposition);
    bench.run();
    let answers = std::mem::take(&mut bench.answers);
    assert_eq!(answers, [Answer { key: 1, reply: Reply::Outcome(Bytes::copy_from_slice(&state)) }]);
    let message = bench.hub.messages[1].1.clone();
    bench.say_status(&message, 200);
    assert!(matches!(&bench.take()[..], [(2, 200, _)]));
}

#[test]
fn answers_that_cannot_be_read_are_nobodys_unless_only_one_has_asked() {
    let mut bench = Bench::by_hand();
    bench.put(1);
    bench.put(2);
    bench.give_credit(2);
    bench.say(b"nonsense");
    assert!(bench.take().is_empty());
    let message = bench.hub.messages[0].1.clone();
    bench.say_status(&message, 200);
    assert!(matches!(&bench.take()[..], [(1, 200, _)]));
    bench.say(b"nonsense");
    assert!(matches!(&bench.take()[..], [(2, 502, _)]));
    bench.say(b"nonsense");
    assert!(bench.take().is_empty());
}

#[test]
fn an_answer_that_is_too_large_costs_the_links_and_not_the_connection() {
    let mut bench = Bench::by_hand();
    bench.put(1);
    bench.give_credit(1);
    bench.say(&[0; 70_000]);
    assert!(matches!(&bench.take()[..], [(1, 502, _)]));
    assert!(bench.wire.client.is_open() && bench.wire.client.links() == 0);
}

#[test]
fn without_a_channel_time_runs_out() {
    let one = ConnectionConfig { channel_max: 0, ..config() };
    let mut bench = Bench::by_hand();
    bench.wire = Wire::new(one.clone(), one);
    let session = bench.wire.client.begin().expect("the only channel");
    bench.put(1);
    assert_eq!(bench.hub.attached, 0);
    bench.wire.client.end(session, None);
    bench.run();
    bench.put(2);
    assert_eq!(bench.hub.attached, 2);
    bench.give_credit(2);
    assert_eq!(bench.hub.messages.len(), 2);
}

#[test]
fn what_is_the_clients_own_is_known() {
    let mut bench = Bench::by_hand();
    let other = bench.wire.client.begin().expect("a session");
    bench.put(1);
    assert!(!bench.client.owns_session(other));
    let sessions: Vec<_> = bench.hub.links.iter().map(|link| link.1).collect();
    assert_eq!(sessions[0], sessions[1]);
    let written = format!("{:?}", bench.client);
    assert!(!written.contains("token 1"), "{written}");
}
