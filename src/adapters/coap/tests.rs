//! A device, the exchanges and a hub of the test's own, without sockets and in simulated time; and real sockets where
//! the task itself is the matter.

use std::collections::VecDeque;
use std::net::UdpSocket;

use fieldgate_coap::client::{self, Call, Client, Conclusion};
use fieldgate_coap::{Code, Method};
use fieldgate_mappings::message::Message;
use fieldgate_mappings::outcome::{Outcome, Reason, Rejection, Verdict};

use super::*;
use crate::adapters::testing::{Running, config, gate, rules};
use crate::devices::Roster;
use crate::upstream::Patience;

const EVENTS: [&str; 4] = ["devices", "d1", "messages", "events"];

struct Bench {
    now: Instant,
    device: Client,
    exchanges: Exchanges,
    /// What the hub has and has not answered.
    hub: VecDeque<(Message, Patience, Verdict)>,
    /// Datagrams to the device, in all.
    sent: usize,
}

impl Bench {
    fn new() -> Self {
        Self::with("")
    }

    fn with(text: &str) -> Self {
        let transmission = fieldgate_coap::Transmission { nstart: 100, ..Default::default() };
        Self {
            now: Instant::now(),
            device: Client::new(client::Config { transmission, ..Default::default() }, 7),
            exchanges: Exchanges::new(&config(text).coap, rules(), Roster::new(&gate()), 11),
            hub: VecDeque::new(),
            sent: 0,
        }
    }

    fn peer() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 40_000))
    }

    fn post(&mut self, confirmable: bool, method: Method, path: &[&str]) {
        let call = Call {
            confirmable,
            method,
            path,
            query: &["unit=C"],
            content_format: Some(50),
            payload: b"21.5",
        };
        self.device.call(self.now, &call).unwrap();
        self.turn();
    }

    /// A turn of the task, and whatever the device has to say to it.
    fn turn(&mut self) {
        while let Some(datagram) = self.device.poll_transmit() {
            self.exchanges.handle_datagram(self.now, Self::peer(), &datagram);
        }
        self.exchanges.handle_verdicts(self.now);
        self.exchanges.handle_timeout(self.now);
        while let Some(sent) = self.exchanges.poll_send(self.now) {
            self.hub.push_back(sent);
        }
        while let Some((to, datagram)) = self.exchanges.poll_transmit() {
            assert_eq!(to, Self::peer());
            self.sent += 1;
            self.device.handle_datagram(self.now, &datagram);
        }
    }

    /// Lets time pass; nothing else happens.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.exchanges.poll_timeout().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.turn();
            // What the device answers.
            self.turn();
        }
        self.now = end;
        self.turn();
    }

    /// The hub answers for the oldest message.
    fn answer(&mut self, outcome: Outcome) {
        let (_, _, verdict) = self.hub.pop_front().unwrap();
        verdict.report(outcome);
        self.turn();
    }

    fn concluded(&mut self) -> Option<(String, Option<u64>)> {
        let Conclusion { outcome, .. } = self.device.poll_event()?;
        match outcome {
            client::Outcome::Response { code, max_age, .. } => {
                Some((code.to_string(), max_age.map(|age| age.as_secs())))
            }
            other => Some((format!("{other:?}"), None)),
        }
    }
}

fn rejected(reason: Reason) -> Outcome {
    Outcome::Rejected(Rejection::new(reason, "no"))
}

#[test]
fn a_message_reaches_the_hub_and_its_outcome_the_device() {
    let mut bench = Bench::new();
    bench.post(true, Method::Post, &EVENTS);
    assert_eq!(bench.concluded(), None, "nothing is acknowledged before the hub has accepted");
    let (message, patience, _) = &bench.hub[0];
    assert_eq!(message.device.as_str(), "d1");
    assert_eq!(message.address.as_str(), "devices/d1/messages/events");
    assert_eq!(&message.body[..], b"21.5");
    assert_eq!(message.properties.content_type.as_deref(), Some("application/json"));
    assert_eq!(message.application_property("unit").and_then(|value| value.as_str()), Some("C"));
    assert!(message.durable && !patience.through_outage && patience.until > bench.now);
    bench.answer(Outcome::Accepted);
    assert_eq!(bench.concluded(), Some(("2.04".into(), None)));
    assert_eq!(bench.sent, 1, "the response rides on the acknowledgement");
}

#[test]
fn every_outcome_has_its_code() {
    let hour = Some(Duration::from_secs(3600));
    for (outcome, code, max_age) in [
        (rejected(Reason::Credentials), "4.01", None),
        (rejected(Reason::NotPermitted), "4.03", None),
        (rejected(Reason::NoSuchAddress), "4.04", None),
        (rejected(Reason::TooLarge), "4.13", None),
        (rejected(Reason::Quota { retry_after: None }), "4.29", Some(10)),
        (rejected(Reason::Quota { retry_after: hour }), "4.29", Some(3600)),
        (rejected(Reason::Content), "4.00", None),
        (Outcome::Released, "5.03", Some(10)),
        (Outcome::Unknown, "5.04", None),
    ] {
        for confirmable in [true, false] {
            let mut bench = Bench::new();
            bench.post(confirmable, Method::Post, &EVENTS);
            bench.answer(outcome.clone());
            assert_eq!(bench.concluded(), Some((code.into(), max_age)), "{outcome:?}");
        }
    }
}

#[test]
fn what_is_lost_inside_the_gateway_is_never_accepted() {
    let mut bench = Bench::new();
    bench.post(true, Method::Post, &EVENTS);
    bench.post(true, Method::Post, &EVENTS);
    drop(bench.hub.pop_front());
    if let Some((_, _, verdict)) = bench.hub.front_mut() {
        verdict.sent();
    }
    bench.hub.clear();
    bench.turn();
    assert_eq!(bench.concluded(), Some(("5.03".into(), Some(10))));
    assert_eq!(bench.concluded(), Some(("5.04".into(), None)));
}

#[test]
fn a_slow_hub_gets_an_empty_acknowledgement_and_a_response_of_its_own() {
    let mut bench = Bench::new();
    bench.post(true, Method::Post, &EVENTS);
    bench.pass(Duration::from_secs(3));
    assert_eq!((bench.concluded(), bench.sent), (None, 1));
    bench.answer(Outcome::Accepted);
    assert_eq!(bench.concluded(), Some(("2.04".into(), None)));
    // The device's acknowledgement ends it: nothing is sent again.
    bench.turn();
    bench.pass(Duration::from_secs(60));
    assert_eq!(bench.sent, 2);
}

#[test]
fn a_silent_hub_is_answered_for_and_its_late_outcome_is_nobodys() {
    let mut bench = Bench::new();
    bench.post(true, Method::Post, &EVENTS);
    let due = bench.now + Duration::from_secs(30);
    assert!(bench.hub[0].1.until < due, "what was never sent is released before that");
    bench.pass(Duration::from_millis(29_900));
    assert_eq!(bench.concluded(), None);
    bench.pass(Duration::from_millis(100));
    assert_eq!(bench.concluded(), Some(("5.04".into(), None)));
    bench.turn();
    let sent = bench.sent;
    bench.answer(Outcome::Accepted);
    bench.pass(Duration::from_secs(5));
    assert_eq!((bench.concluded(), bench.sent), (None, sent));
}

#[test]
fn a_duplicate_is_not_sent_to_the_hub_again() {
    let mut bench = Bench::new();
    let call = Call {
        confirmable: true,
        method: Method::Post,
        path: &EVENTS,
        query: &[],
        content_format: None,
        payload: b"x",
    };
    bench.device.call(bench.now, &call).unwrap();
    let datagram = bench.device.poll_transmit().unwrap();
    for _ in 0..3 {
        bench.exchanges.handle_datagram(bench.now, Bench::peer(), &datagram);
        bench.turn();
    }
    assert_eq!(bench.hub.len(), 1);
    bench.answer(Outcome::Accepted);
    bench.exchanges.handle_datagram(bench.now, Bench::peer(), &datagram);
    bench.turn();
    assert_eq!((bench.hub.len(), bench.sent), (0, 2), "the first answer again");
}

#[test]
fn what_no_rule_maps_is_refused_without_the_hub() {
    for (method, path, code) in [
        (Method::Post, &["devices", "d1", "nowhere"][..], "4.04"),
        (Method::Get, &[][..], "4.04"),
        (Method::Get, &EVENTS[..], "4.05"),
        (Method::Delete, &EVENTS[..], "4.05"),
        (Method::Put, &EVENTS[..], "4.05"),
        (Method::Post, &["devices", "d 1", "messages", "events"][..], "4.00"),
    ] {
        for confirmable in [true, false] {
            let mut bench = Bench::new();
            bench.post(confirmable, method, path);
            assert_eq!(bench.concluded(), Some((code.into(), None)), "{method} {path:?}");
            assert!(bench.hub.is_empty());
        }
    }
}

#[test]
fn without_anonymous_access_nobody_is_served() {
    let mut bench = Bench::with("[coap]\nallow_anonymous = false\n");
    bench.post(true, Method::Post, &EVENTS);
    bench.post(true, Method::Post, &["nowhere"]);
    assert_eq!(bench.concluded(), Some(("4.01".into(), None)));
    assert_eq!(bench.concluded(), Some(("4.01".into(), None)), "strangers do not learn what is mapped");
    assert!(bench.hub.is_empty());
}

#[test]
fn a_device_that_starts_anew_gets_the_new_answer_only() {
    let mut bench = Bench::new();
    let request =
        |payload: u8| [0x40, 0x02, 0x12, 0x34, 0xb7].into_iter().chain(*b"devices").chain([payload]);
    // The same message ID, another content: the second request makes the first one void.
    for payload in [0u8, 1] {
        let mut datagram: Vec<u8> = request(payload).collect();
        datagram.pop();
        for segment in &EVENTS[1..] {
            datagram.push(segment.len() as u8);
            datagram.extend_from_slice(segment.as_bytes());
        }
        datagram.extend_from_slice(&[0xff, payload]);
        bench.exchanges.handle_datagram(bench.now, Bench::peer(), &datagram);
        bench.turn();
    }
    assert_eq!(bench.hub.len(), 2);
    bench.answer(Outcome::Accepted);
    assert_eq!(bench.sent, 0);
    bench.answer(Outcome::Accepted);
    assert_eq!(bench.sent, 1);
}

#[test]
fn a_stop_waits_for_what_is_open_and_begins_nothing() {
    let mut bench = Bench::new();
    bench.post(true, Method::Post, &EVENTS);
    assert!(!bench.exchanges.is_done());
    bench.exchanges.stop();
    bench.post(true, Method::Post, &EVENTS);
    assert_eq!(bench.concluded(), Some(("5.03".into(), Some(10))));
    assert_eq!(bench.hub.len(), 1);
    bench.pass(Duration::from_secs(1));
    assert!(!bench.exchanges.is_done());
    bench.answer(Outcome::Accepted);
    assert_eq!(bench.concluded(), Some(("2.04".into(), None)));
    bench.turn();
    assert!(bench.exchanges.is_done(), "the separate response is acknowledged");
}

/// A request over a real socket, and its response.
fn ask(to: SocketAddr, datagram: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    socket.send_to(datagram, to).unwrap();
    let mut buffer = [0; 2048];
    let (bytes, from) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!(from, to);
    buffer[..bytes].to_vec()
}

#[test]
fn a_socket_answers_while_the_hub_is_away_and_outlives_bad_datagrams() {
    let running = Running::start("");
    let device = UdpSocket::bind("127.0.0.1:0").unwrap();
    for junk in [&b""[..], b"\x40", b"GET / HTTP/1.1\r\n\r\n", &[0xff; 1400], &[0x40; 65_000]] {
        device.send_to(junk, running.coap).unwrap();
    }
    // A ping, and its reset.
    assert_eq!(ask(running.coap, &[0x40, 0x00, 0xab, 0xcd]), [0x70, 0x00, 0xab, 0xcd]);
    let mut client = Client::new(client::Config::default(), 1);
    for (path, code) in [(&EVENTS[..], Code::SERVICE_UNAVAILABLE), (&["nowhere"][..], Code::NOT_FOUND)] {
        let call = Call {
            confirmable: true,
            method: Method::Post,
            path,
            query: &[],
            content_format: None,
            payload: b"1",
        };
        client.call(Instant::now(), &call).unwrap();
        let answer = ask(running.coap, &client.poll_transmit().unwrap());
        client.handle_datagram(Instant::now(), &answer);
        match client.poll_event().unwrap().outcome {
            client::Outcome::Response { code: said, .. } => assert_eq!(said, code),
            other => panic!("{other:?}"),
        }
    }
    running.stop();
}
