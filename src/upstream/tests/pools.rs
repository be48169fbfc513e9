//! Several connections, several hubs, and whose turn it is.

use std::num::NonZeroU32;
use std::time::Duration;

use fieldgate_amqp::connection::ConnectionConfig;
use fieldgate_amqp::performative::{AmqpError, Condition, rejected};
use fieldgate_mappings::delivery::NORMAL_PRIORITY;
use fieldgate_mappings::outcome::{Outcome, Reason};

use crate::config::Profile;
use crate::devices::SpeaksWith;

use super::hub::Script;
use super::kit::{Bench, IDLE, Roll, Setup};

const ACCEPTED: Option<Outcome> = Some(Outcome::Accepted);

fn send_all(bench: &mut Bench, devices: usize) -> Vec<u64> {
    (0..devices).map(|at| bench.send(&format!("d{at}"))).collect()
}

fn assert_accepted(bench: &Bench, tickets: &[u64]) {
    for ticket in tickets {
        assert_eq!(bench.outcome(*ticket), ACCEPTED, "message {ticket}");
    }
}

#[test]
fn connections_are_opened_when_all_are_full_and_closed_when_nobody_needs_them() {
    let setup = Setup { devices_per_connection: 3, max_connections: 4, ..Setup::default() };
    let mut bench = Bench::ready(setup);
    let tickets = send_all(&mut bench, 10);
    bench.accept_all();
    assert_accepted(&bench, &tickets);
    assert_eq!(bench.connections(), 4);
    // No connection more: who is idle makes place.
    let tickets = send_all(&mut bench, 14);
    bench.accept_all();
    for _ in 0..3 {
        bench.wait(Duration::from_secs(1));
        bench.accept_all();
    }
    assert_accepted(&bench, &tickets);
    assert_eq!(bench.connections(), 4);
    bench.wait(3 * IDLE);
    assert_eq!(bench.connections(), 1, "the one that was there from the start stays");
    bench.assert_empty();
}

#[test]
fn a_hub_with_few_channels_gets_another_connection() {
    let hub = ConnectionConfig { channel_max: 2, ..Setup::default().hub };
    let mut bench = Bench::ready(Setup { hub, max_connections: 10, ..Setup::default() });
    let tickets = send_all(&mut bench, 9);
    bench.accept_all();
    // Nobody had to wait until somebody else was idle.
    assert_accepted(&bench, &tickets);
    assert!((4..=6).contains(&bench.connections()), "{}", bench.connections());
}

#[test]
fn what_becomes_of_one_connection_is_no_concern_of_the_others() {
    let setup = Setup { devices_per_connection: 1, max_connections: 2, ..Setup::default() };
    let mut bench = Bench::ready(setup);
    let (here, there) = (bench.send("d0"), bench.send("d1"));
    bench.run();
    bench.disconnect_end(1);
    assert_eq!((bench.outcome(here), bench.outcome(there)), (None, Some(Outcome::Unknown)));
    let tickets = [bench.send("d0"), bench.send("d0")];
    bench.accept_all();
    assert_accepted(&bench, &tickets);
    assert_eq!(bench.outcome(here), ACCEPTED);
}

#[test]
fn the_end_of_one_session_is_no_concern_of_the_others() {
    let mut bench = Bench::ready(Setup::default());
    let tickets = send_all(&mut bench, 3);
    bench.run();
    let session = bench.hub().inlets.iter().find(|inlet| inlet.node.contains("/d1/")).expect("there").session;
    bench.hub().end(session, Some("amqp:internal-error"));
    bench.accept_all();
    assert_eq!([0, 1, 2].map(|at| bench.outcome(tickets[at])), [ACCEPTED, Some(Outcome::Unknown), ACCEPTED]);
    let again = send_all(&mut bench, 3);
    bench.accept_all();
    assert_accepted(&bench, &again);
    assert!(bench.losses.is_empty());
}

#[test]
fn each_device_is_sent_for_to_its_own_hub() {
    let roster = Roll::default();
    roster.set("d1", Some("b"), SpeaksWith::Policy);
    let mut bench = Bench::ready(Setup { roster, token: false, ..Setup::default() });
    assert_eq!(bench.connections(), 1, "that of the other hub is made when it is needed");
    let tickets = send_all(&mut bench, 2);
    bench.run();
    assert_eq!(bench.connections(), 2);
    let nodes: Vec<Vec<String>> = (0..2)
        .map(|at| bench.any_hub(at).expect("two").inlets.iter().map(|inlet| inlet.node.clone()).collect())
        .collect();
    let node = |device: &str| vec![format!("devices/{device}/messages/events")];
    assert_eq!(nodes, [node("d0"), node("d1")]);
    // One of them is away: the other is not.
    bench.disconnect_end(1);
    assert_eq!(bench.fleet.hubs().iter().map(|(_, open)| *open).collect::<Vec<_>>(), [true, false]);
    assert!(
        bench.fleet.is_away_for(&super::kit::id("d1")) && !bench.fleet.is_away_for(&super::kit::id("d0"))
    );
    bench.accept_all();
    assert_eq!(bench.outcome(tickets[0]), ACCEPTED);
}

#[test]
fn a_noisy_device_waits_for_itself() {
    let mut bench = Bench::ready(Setup { max_in_flight: 10, ..Setup::default() });
    let _noise: Vec<u64> = (0..400).map(|_| bench.send("noisy")).collect();
    let quiet: Vec<u64> = (0..5).map(|at| bench.send(&format!("quiet{at}"))).collect();
    bench.accept_all();
    let received = bench.received();
    let last = received.iter().rposition(|ticket| quiet.contains(ticket)).expect("all came");
    assert!(last < 40, "the last of the quiet ones came as number {last}");
}

#[test]
fn turns_are_of_bytes() {
    let script = Script { credit: 1000, ..Script::default() };
    let mut bench = Bench::ready(Setup { max_in_flight: 1, script, ..Setup::default() });
    // Links first.
    let _ = [bench.send("large"), bench.send("small")];
    bench.accept_all();
    let before = bench.received().len();
    for _ in 0..40 {
        bench.send_with("large", "events", 30_000, bench.patience(60, true));
        bench.send("small");
    }
    bench.accept_all();
    let received = bench.records.received[before..].to_vec();
    let of_small = |slice: &[(String, u64)]| slice.iter().filter(|(node, _)| node.contains("small")).count();
    assert!(of_small(&received[..44]) >= 36, "{} of the first 44", of_small(&received[..44]));
}

#[test]
fn the_urgent_goes_first_and_the_others_go_too() {
    let script = Script { credit: 0, ..Script::default() };
    let mut bench = Bench::ready(Setup { script, ..Setup::default() });
    let patience = bench.patience(60, true);
    for at in 0..60 {
        let priority = if at < 30 { NORMAL_PRIORITY } else { 9 };
        bench.send_urgent("d", "events", 0, patience, priority);
    }
    bench.run();
    bench.hub().credit(0, 40, false);
    bench.run();
    let received = bench.received();
    let urgent: Vec<u64> = received.iter().copied().filter(|ticket| *ticket >= 30).collect();
    let others: Vec<u64> = received.iter().copied().filter(|ticket| *ticket < 30).collect();
    assert_eq!(urgent, (30..60).collect::<Vec<_>>(), "all of them, in order");
    assert_eq!(others, (0..10).collect::<Vec<_>>());
    assert!(received[..20].iter().any(|ticket| *ticket < 30), "nothing waits for ever");
}

#[test]
fn a_rate_is_kept_and_shared_fairly() {
    let per_second = NonZeroU32::new(20);
    let mut bench = Bench::ready(Setup { per_second, ..Setup::default() });
    let tickets: Vec<u64> = (0..200).map(|at| bench.send(["a", "b"][at / 100])).collect();
    bench.accept_all();
    let mut at = bench.received().len();
    assert!(at <= 4, "{at} at once");
    for _ in 0..40 {
        bench.wait(Duration::from_millis(100));
        bench.accept_all();
    }
    at = bench.received().len();
    assert!((70..=90).contains(&at), "{at} in four seconds");
    let of_a = bench.received().iter().filter(|ticket| **ticket < 100).count();
    assert!((at / 2 - 3..=at / 2 + 3).contains(&of_a), "{of_a} of {at}");
    for _ in 0..80 {
        bench.wait(Duration::from_millis(100));
        bench.accept_all();
    }
    assert_accepted(&bench, &tickets);
}

#[test]
fn a_throttled_device_is_left_alone_and_told_and_the_others_go_on() {
    let mut bench = Bench::ready(Setup::default());
    let (first, other) = (bench.send("d0"), bench.send("d1"));
    bench.run();
    let error = AmqpError::new(&Condition::from("com.microsoft:device-container-throttled"), None);
    bench.judge(first, &rejected(Some(&error)));
    bench.run();
    let Some(Outcome::Rejected(rejection)) = bench.outcome(first) else { panic!("rejected") };
    assert!(matches!(rejection.reason, Reason::Quota { .. }));
    // Who would not wait so long hears at once for how long; who does wait is sent for later.
    let hurried = bench.send_with("d0", "events", 0, bench.patience(0, true));
    let Some(Outcome::Rejected(rejection)) = bench.outcome(hurried) else { panic!("rejected") };
    assert!(matches!(rejection.reason, Reason::Quota { retry_after: Some(_) }));
    let patient = bench.send("d0");
    let others = bench.send("d1");
    bench.accept_all();
    assert_eq!((bench.outcome(patient), bench.outcome(other)), (None, ACCEPTED));
    assert_eq!(bench.outcome(others), ACCEPTED);
    bench.wait(Duration::from_secs(3));
    bench.accept_all();
    assert_eq!(bench.outcome(patient), ACCEPTED);
}

/// The hub has as many devices on the connection as it allows.
fn crowded() -> bytes::Bytes {
    let condition = Condition::from("amqp:resource-limit-exceeded");
    rejected(Some(&AmqpError::new(&condition, Some("{\"errorCode\":403005}"))))
}

#[test]
fn a_connection_that_had_to_do_with_fewer_devices_gets_more_again_after_a_while() {
    let mut bench = Bench::ready(Setup::default());
    let _inboxes: Vec<_> = (0..3).map(|at| bench.subscribe(&format!("d{at}"), 1)).collect();
    let first = bench.send("d0");
    bench.run();
    bench.judge(first, &crowded());
    bench.run();
    let another = bench.send_with("another", "events", 0, bench.patience(3600, true));
    bench.wait(Duration::from_secs(290));
    assert_eq!((bench.fleet.counts().sessions, bench.outcome(another)), (3, None));
    // For two more than the hub wanted.
    bench.wait(Duration::from_secs(320));
    bench.accept_all();
    assert_eq!(bench.outcome(another), ACCEPTED);
    assert_eq!(bench.fleet.counts().sessions, 4);
    assert!(bench.losses.is_empty());
}

#[test]
fn no_connection_is_left_over_that_was_meant_for_devices_that_could_not_move() {
    let script = Script { relays: true, ..Script::default() };
    let profile = Profile::Amqp;
    let setup = Setup { max_connections: 2, profile, script, token: false, ..Setup::default() };
    let mut bench = Bench::ready(setup);
    let (refused, _stays, other) = (bench.send("d0"), bench.send("d0"), bench.send("d1"));
    bench.run();
    bench.judge(refused, &crowded());
    bench.run();
    // The other one is forgotten before the rest of the first is answered.
    bench.judge(other, fieldgate_amqp::performative::ACCEPTED);
    bench.wait(Duration::from_secs(3));
    bench.accept_all();
    bench.wait(3 * IDLE);
    assert_eq!(bench.connections(), 1);
    bench.assert_empty();
}
