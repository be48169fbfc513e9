//! Links that all devices share: a broker that relays, and one that does not.

use std::time::Duration;

use fieldgate_amqp::performative::{ACCEPTED, AmqpError, Condition, rejected};
use fieldgate_mappings::outcome::{Outcome, Reason};

use crate::config::Profile;

use super::hub::Script;
use super::kit::{Bench, IDLE, Setup};

const ACCEPTED_OUTCOME: Option<Outcome> = Some(Outcome::Accepted);

fn broker(relays: bool, max_links: usize) -> Setup {
    let script = Script { relays, ..Script::default() };
    Setup { profile: Profile::Amqp, max_links, script, token: false, ..Setup::default() }
}

fn send_all(bench: &mut Bench, devices: usize) -> Vec<u64> {
    (0..devices).map(|at| bench.send(&format!("d{at}"))).collect()
}

fn assert_accepted(bench: &Bench, tickets: &[u64]) {
    for ticket in tickets {
        assert_eq!(bench.outcome(*ticket), ACCEPTED_OUTCOME, "message {ticket}");
    }
}

#[test]
fn where_the_broker_relays_all_share_one_link_and_each_message_says_where_it_goes() {
    let mut bench = Bench::ready(broker(true, 200));
    let tickets = send_all(&mut bench, 50);
    bench.accept_all();
    assert_accepted(&bench, &tickets);
    assert_eq!(bench.records.attaches, 1);
    let nodes: Vec<String> = bench.records.received.iter().map(|(node, _)| node.clone()).collect();
    let expected: Vec<String> = (0..50).map(|at| format!("devices/d{at}/messages/events")).collect();
    assert_eq!(nodes, expected);
    assert_eq!(bench.fleet.counts().sessions, 0, "no session of any device's");
    bench.wait(IDLE + Duration::from_secs(2));
    bench.assert_empty();
}

#[test]
fn where_it_does_not_there_is_a_link_for_each_address_and_a_bound() {
    let mut bench = Bench::ready(broker(false, 3));
    for round in 0..3 {
        let tickets = send_all(&mut bench, 10);
        bench.accept_all();
        for _ in 0..10 {
            bench.wait(Duration::from_secs(1));
            bench.accept_all();
        }
        assert_accepted(&bench, &tickets);
        assert!(bench.hub().inlets.len() <= 3, "round {round}");
    }
    // Who was there last needs no new link.
    let attaches = bench.records.attaches;
    let last = bench.hub().inlets.last().expect("a link").node.clone();
    let device = last.split('/').nth(1).expect("a device").to_owned();
    let ticket = bench.send(&device);
    bench.accept_all();
    assert_eq!((bench.outcome(ticket), bench.records.attaches), (ACCEPTED_OUTCOME, attaches));
}

#[test]
fn where_more_addresses_are_busy_than_there_are_links_all_have_their_turn() {
    let mut setup = broker(false, 2);
    setup.script.credit = 3;
    let mut bench = Bench::ready(setup);
    let mut tickets: Vec<Vec<u64>> = vec![Vec::new(); 5];
    for _ in 0..60 {
        for (at, tickets) in tickets.iter_mut().enumerate() {
            tickets.extend([0; 5].map(|_| bench.send(&format!("d{at}"))));
        }
        bench.run();
        // Links are never idle: there is always more, and credit for it.
        for hub in bench.ends.iter_mut().filter_map(|end| end.hub.as_mut()) {
            while !hub.pending.is_empty() {
                hub.judge(0, Some(ACCEPTED), true);
            }
            (0..hub.inlets.len()).for_each(|inlet| hub.credit(inlet, 3, false));
        }
        bench.wait(Duration::from_millis(500));
    }
    for (at, tickets) in tickets.iter().enumerate() {
        let accepted = tickets.iter().filter(|ticket| bench.outcome(**ticket) == ACCEPTED_OUTCOME).count();
        assert!(accepted > 10, "d{at}: {accepted} of {}", tickets.len());
    }
    assert!(bench.losses.is_empty());
}

#[test]
fn credit_that_those_in_line_have_no_use_for_is_for_the_next() {
    let mut setup = broker(true, 200);
    setup.script.credit = 0;
    let mut bench = Bench::ready(setup);
    let send = |bench: &mut Bench, device: &str, seconds| {
        bench.send_with(device, "events", 100, bench.patience(seconds, true))
    };
    let gone: Vec<u64> = (0..10).map(|at| send(&mut bench, &format!("d{at}"), 1)).collect();
    bench.wait(Duration::from_secs(3));
    for ticket in gone {
        assert_eq!(bench.outcome(ticket), Some(Outcome::Released));
    }
    let waits = send(&mut bench, "last", 100);
    bench.run();
    bench.hub().credit(0, 1, false);
    bench.accept_all();
    assert_eq!(bench.outcome(waits), ACCEPTED_OUTCOME);
}

#[test]
fn credit_finds_whoever_waits_again_after_giving_up() {
    let mut setup = broker(false, 200);
    setup.script.credit = 0;
    let mut bench = Bench::ready(setup);
    let gone = bench.send_with("d", "events", 100, bench.patience(1, true));
    bench.wait(Duration::from_secs(3));
    assert_eq!(bench.outcome(gone), Some(Outcome::Released));
    let waits = bench.send_with("d", "events", 100, bench.patience(100, true));
    bench.run();
    bench.hub().credit(0, 1, false);
    bench.accept_all();
    assert_eq!(bench.outcome(waits), ACCEPTED_OUTCOME);
}

#[test]
fn a_throttled_device_keeps_no_link_from_those_who_may_send() {
    let mut bench = Bench::ready(broker(false, 1));
    let first = bench.send("d0");
    bench.run();
    let error = AmqpError::new(&Condition::from("com.microsoft:device-container-throttled"), None);
    bench.judge(first, &rejected(Some(&error)));
    bench.run();
    let (waits, other) = (bench.send("d0"), bench.send("d1"));
    bench.accept_all();
    assert_eq!((bench.outcome(waits), bench.outcome(other)), (None, ACCEPTED_OUTCOME));
    for _ in 0..5 {
        bench.wait(Duration::from_secs(1));
        bench.accept_all();
    }
    assert_eq!(bench.outcome(waits), ACCEPTED_OUTCOME);
}

#[test]
fn an_address_that_there_is_not_is_refused_to_those_who_sent_there() {
    let mut bench = Bench::ready(broker(false, 10));
    let good = bench.send("d0");
    bench.accept_all();
    bench.setup.script.refuses = Some("amqp:not-found");
    let tickets = [bench.send("d1"), bench.send("d1"), bench.send("d0")];
    bench.accept_all();
    let [one, two, three] = tickets.map(|ticket| bench.outcome(ticket));
    for refused in [one, two] {
        let Some(Outcome::Rejected(rejection)) = refused else { panic!("{refused:?}") };
        assert_eq!(rejection.reason, Reason::NoSuchAddress);
    }
    assert_eq!((bench.outcome(good), three), (ACCEPTED_OUTCOME, ACCEPTED_OUTCOME));
}

#[test]
fn the_credit_of_a_shared_link_goes_round() {
    let mut bench = Bench::ready(broker(true, 200));
    bench.send("d0");
    bench.accept_all();
    bench.setup.script.credit = 0;
    let before = bench.received().len();
    // Uses the rest of the credit up.
    for _ in 0..99 {
        bench.send("d0");
    }
    let noise: Vec<u64> = (0..200).map(|_| bench.send("noisy")).collect();
    let quiet: Vec<u64> = (0..10).map(|at| bench.send(&format!("quiet{at}"))).collect();
    bench.run();
    assert_eq!(bench.received().len(), before + 99);
    bench.hub().credit(0, 30, false);
    bench.run();
    let received = bench.received();
    assert!(quiet.iter().all(|ticket| received.contains(ticket)), "each of them has had a turn");
    assert!(noise.iter().any(|ticket| received.contains(ticket)));
}

#[test]
fn a_session_that_the_broker_ends_is_begun_again_and_what_waits_is_kept() {
    for relays in [true, false] {
        let mut bench = Bench::ready(broker(relays, 10));
        let sent = bench.send("d0");
        bench.run();
        let session = bench.hub().inlets[0].session;
        bench.hub().end(session, Some("amqp:internal-error"));
        bench.run();
        assert_eq!(bench.outcome(sent), Some(Outcome::Unknown));
        let ticket = bench.send("d0");
        bench.wait(Duration::from_secs(3));
        bench.accept_all();
        assert_eq!(bench.outcome(ticket), ACCEPTED_OUTCOME);
        assert!(bench.losses.is_empty());
    }
}

#[test]
fn a_shared_link_that_the_broker_does_not_answer_for_is_asked_for_again() {
    for relays in [true, false] {
        let mut setup = broker(relays, 10);
        setup.script.ignores = true;
        let mut bench = Bench::ready(setup);
        let ticket = bench.send_with("d0", "events", 0, bench.patience(100, true));
        bench.wait(Duration::from_secs(10));
        bench.setup.script.ignores = false;
        bench.wait(Duration::from_secs(40));
        bench.accept_all();
        assert_eq!((bench.outcome(ticket), bench.records.attaches), (ACCEPTED_OUTCOME, 2));
        assert!(bench.losses.is_empty());
    }
}

#[test]
fn a_link_that_made_place_is_detached_where_the_other_has_to_wait_for_its_handle() {
    let mut setup = broker(false, 2);
    setup.hub.handle_max = 1;
    let mut bench = Bench::ready(setup);
    for device in ["d0", "d1", "d2", "d3", "d0"] {
        let ticket = bench.send(device);
        bench.accept_all();
        assert_eq!(bench.outcome(ticket), ACCEPTED_OUTCOME, "{device}");
        assert!(bench.hub().inlets.len() <= 2);
    }
}

#[test]
fn a_broker_at_its_limit_is_left_alone_for_a_moment() {
    let mut bench = Bench::ready(broker(false, 10));
    bench.send("d0");
    bench.accept_all();
    let link = bench.hub().link(0);
    bench.hub().detach(link, Some("amqp:resource-limit-exceeded"));
    bench.run();
    let attaches = bench.records.attaches;
    let tickets = [bench.send("d0"), bench.send("d1")];
    bench.run();
    assert_eq!(bench.records.attaches, attaches);
    bench.wait(Duration::from_secs(3));
    bench.accept_all();
    assert_accepted(&bench, &tickets);
}

#[test]
fn who_sent_over_a_shared_link_that_is_gone_is_forgotten_in_time() {
    let mut bench = Bench::ready(broker(false, 10));
    let sent = [bench.send("d0"), bench.send("d0"), bench.send("d1")];
    bench.run();
    let link = bench.hub().link(0);
    bench.hub().detach(link, Some("amqp:resource-deleted"));
    bench.accept_all();
    let [one, two, other] = sent.map(|ticket| bench.outcome(ticket));
    assert_eq!([one, two, other], [Some(Outcome::Unknown), Some(Outcome::Unknown), ACCEPTED_OUTCOME]);
    bench.wait(IDLE + Duration::from_secs(2));
    bench.assert_empty();
}
