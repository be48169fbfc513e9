//! Messages of devices: credit, bounds, order, what becomes of those that wait.

use std::time::Duration;

use fieldgate_amqp::connection::ConnectionConfig;
use fieldgate_amqp::performative::{ACCEPTED, AmqpError, Condition, rejected};
use fieldgate_mappings::delivery::NORMAL_PRIORITY;
use fieldgate_mappings::outcome::{Outcome, Reason};

use crate::devices::SpeaksWith;
use crate::upstream::lanes::Priority;
use crate::upstream::load::MAX_WAITING_BYTES;

use super::hub::Script;
use super::kit::{Bench, IDLE, Roll, Setup};

fn with(script: Script) -> Bench {
    Bench::ready(Setup { script, ..Setup::default() })
}

fn reason(outcome: Option<Outcome>) -> Reason {
    match outcome {
        Some(Outcome::Rejected(rejection)) => rejection.reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_hubs_word_is_the_devices() {
    let mut bench = with(Script::default());
    let tickets = [bench.send("d"), bench.send("d"), bench.send("d")];
    bench.run();
    assert_eq!(bench.received(), tickets);
    let error = AmqpError::new(&Condition::NotAllowed, None);
    bench.hub().judge(1, Some(&rejected(Some(&error))), true);
    bench.run();
    assert_eq!(reason(bench.outcome(1)), Reason::NotPermitted);
    assert_eq!((bench.outcome(0), bench.outcome(2)), (None, None));
    bench.accept_all();
    assert_eq!((bench.outcome(0), bench.outcome(2)), (Some(Outcome::Accepted), Some(Outcome::Accepted)));
    bench.wait(Duration::from_secs(302));
    bench.assert_empty();
}

#[test]
fn whoever_waits_only_for_others_answers_gets_its_turn() {
    let mut bench = Bench::ready(Setup { max_in_flight: 1, ..Setup::default() });
    let devices = ["a", "b", "c"];
    for device in devices {
        bench.send(device);
    }
    bench.accept_all();
    // All have links and credit now. From here on only answers for others move them.
    let mut tickets = Vec::new();
    for _ in 0..5 {
        tickets.extend(devices.map(|device| bench.send(device)));
    }
    bench.accept_all();
    for ticket in tickets {
        assert_eq!(bench.outcome(ticket), Some(Outcome::Accepted), "message {ticket}");
    }
}

#[test]
fn who_waits_for_its_turn_when_the_connection_is_lost_has_one_on_the_next() {
    let mut bench = Bench::ready(Setup { max_in_flight: 1, ..Setup::default() });
    for device in ["a", "b"] {
        bench.send(device);
        bench.accept_all();
    }
    let (sent, waits) = (bench.send("a"), bench.send("b"));
    bench.run();
    assert_eq!((bench.outcome(sent), bench.outcome(waits)), (None, None));
    bench.disconnect();
    assert_eq!((bench.outcome(sent), bench.outcome(waits)), (Some(Outcome::Unknown), None));
    // More than what could go straight.
    let more: Vec<u64> = (0..3).map(|_| bench.send("b")).collect();
    bench.connect();
    bench.accept_all();
    for ticket in [waits].into_iter().chain(more) {
        assert_eq!(bench.outcome(ticket), Some(Outcome::Accepted), "message {ticket}");
    }
}

#[test]
fn a_devices_many_messages_do_not_hold_the_others_up() {
    let mut bench = Bench::ready(Setup { max_in_flight: 1, ..Setup::default() });
    bench.send("many");
    bench.send("one");
    bench.accept_all();
    for _ in 0..90 {
        bench.send("many");
    }
    let one = bench.send("one");
    for _ in 0..30 {
        bench.run();
        bench.hub().judge(0, Some(ACCEPTED), true);
    }
    bench.run();
    assert_eq!(bench.outcome(one), Some(Outcome::Accepted));
}

#[test]
fn an_address_with_much_to_send_leaves_room_for_the_others() {
    let mut bench = Bench::ready(Setup { max_in_flight: 1, ..Setup::default() });
    let send = |bench: &mut Bench, kind: &str, priority: Priority| {
        bench.send_urgent("d", kind, 0, bench.patience(60, true), priority)
    };
    for kind in ["much", "few", "alarms"] {
        send(&mut bench, kind, NORMAL_PRIORITY);
        bench.accept_all();
    }
    (0..90).for_each(|_| _ = send(&mut bench, "much", NORMAL_PRIORITY));
    let few = send(&mut bench, "few", NORMAL_PRIORITY);
    let alarm = send(&mut bench, "alarms", 9);
    let mut judge = |turns| {
        for _ in 0..turns {
            bench.run();
            bench.hub().judge(0, Some(ACCEPTED), true);
        }
        bench.run();
        [few, alarm].map(|ticket| bench.outcome(ticket) == Some(Outcome::Accepted))
    };
    assert_eq!(judge(2), [false, true]);
    assert_eq!(judge(8), [true, true]);
}

#[test]
fn a_link_that_the_hub_does_not_answer_for_is_asked_for_again() {
    let mut bench = with(Script { ignores: true, ..Script::default() });
    let ticket = bench.send_with("d", "events", 0, bench.patience(100, true));
    let (inbox, _) = bench.subscribe("listens", 3);
    bench.wait(Duration::from_secs(10));
    assert_eq!((bench.records.attaches, bench.hub().commands.len()), (2, 0));
    bench.setup.script.ignores = false;
    bench.wait(Duration::from_secs(40));
    bench.accept_all();
    assert_eq!((bench.outcome(ticket), bench.hub().commands.len()), (Some(Outcome::Accepted), 1));
    assert!(bench.hub().command(0, 7));
    bench.run();
    assert_eq!((inbox.commands.borrow().len(), inbox.ended.borrow().len()), (1, 0));
    assert!(bench.losses.is_empty());
    // Links that are answered for stay, however long.
    bench.wait(Duration::from_secs(100));
    assert_eq!(bench.records.attaches, 4);
}

#[test]
fn a_name_too_long_for_the_hubs_frames_is_one_messages_concern() {
    let hub = ConnectionConfig { max_frame_bytes: 512, ..Setup::default().hub };
    let mut bench = Bench::ready(Setup { hub, ..Setup::default() });
    let long = bench.send_with("d", &"e".repeat(600), 0, bench.patience(60, true));
    bench.run();
    assert_eq!(reason(bench.outcome(long)), Reason::TooLarge);
    let long = bench.send_with("d", &"e".repeat(600), 0, bench.patience(60, true));
    let short = bench.send("d");
    bench.subscribe("d", 1);
    bench.accept_all();
    assert_eq!(reason(bench.outcome(long)), Reason::TooLarge);
    assert_eq!((bench.outcome(short), bench.hub().commands.len()), (Some(Outcome::Accepted), 1));
}

#[test]
fn where_a_session_has_few_links_idle_ones_make_place() {
    let hub = ConnectionConfig { handle_max: 1, ..Setup::default().hub };
    let mut bench = Bench::ready(Setup { hub, ..Setup::default() });
    for kind in ["a", "b", "c", "a"] {
        let ticket = bench.send_with("d", kind, 0, bench.patience(60, true));
        bench.accept_all();
        assert_eq!(bench.outcome(ticket), Some(Outcome::Accepted), "{kind}");
    }
    bench.subscribe("d", 1);
    bench.run();
    assert_eq!(bench.hub().commands.len(), 1);
}

#[test]
fn what_a_shut_window_holds_back_of_a_disabled_device_goes_nowhere() {
    let hub = ConnectionConfig { incoming_window: 2, max_frame_bytes: 512, ..Setup::default().hub };
    let mut bench = Bench::ready(Setup { hub, ..Setup::default() });
    bench.send("d");
    bench.accept_all();
    bench.deaf = true;
    let held = bench.send_with("d", "events", 5_000, bench.patience(60, true));
    bench.run();
    bench.setup.roster.disable("d");
    bench.fleet.review(bench.now);
    bench.run();
    assert_eq!(bench.outcome(held), Some(Outcome::Unknown));
    bench.deaf = false;
    bench.wait(Duration::from_secs(40));
    assert!(!bench.received().contains(&held));
    assert!(bench.losses.is_empty());
}

#[test]
fn a_later_message_does_not_overtake_one_that_waits() {
    let mut bench = with(Script { credit: 1, ..Script::default() });
    let mut tickets: Vec<u64> = (0..4).map(|_| bench.send("d")).collect();
    bench.run();
    assert_eq!(bench.received(), tickets[..1]);
    bench.hub().credit(0, 2, false);
    bench.run();
    // There is no credit to spare, and there is room; the queue goes first all the same.
    tickets.push(bench.send("d"));
    bench.hub().credit(0, 10, false);
    bench.run();
    assert_eq!(bench.received(), tickets);
}

#[test]
fn what_waited_too_long_is_released_and_not_counted() {
    let mut bench = with(Script { credit: 0, ..Script::default() });
    let short = bench.send_with("d", "events", 100, bench.patience(5, true));
    let long = bench.send_with("d", "events", 100, bench.patience(50, true));
    bench.wait(Duration::from_secs(4));
    let both = bench.fleet.counts().waiting_bytes;
    assert!(both > 200);
    assert_eq!(bench.outcome(short), None);
    bench.wait(Duration::from_secs(3));
    assert_eq!(bench.outcome(short), Some(Outcome::Released));
    assert_eq!((bench.outcome(long), bench.fleet.counts().waiting_bytes), (None, both / 2));
    bench.wait(Duration::from_secs(350));
    assert_eq!(bench.outcome(long), Some(Outcome::Released));
    bench.assert_empty();
}

#[test]
fn time_is_kept_for_a_device_that_comes_after_hours_without_one() {
    // Its connection is not the one that is always kept.
    let roster = Roll::default();
    roster.set("d", Some("b"), SpeaksWith::Policy);
    let mut bench = Bench::ready(Setup { token: false, roster, ..Setup::default() });
    bench.send("d");
    bench.accept_all();
    bench.wait(IDLE + Duration::from_secs(10));
    assert_eq!(bench.fleet.counts().devices, 0);
    bench.setup.script.credit = 0;
    let ticket = bench.send_with("d", "events", 0, bench.patience(5, true));
    bench.wait(Duration::from_secs(8));
    assert_eq!(bench.outcome(ticket), Some(Outcome::Released));
}

#[test]
fn only_what_waits_counts_as_waiting() {
    let mut bench = with(Script { credit: 1, ..Script::default() });
    bench.send("d");
    bench.accept_all();
    // More than the bound passes through the queue within one moment.
    let size = 1024 * 1024;
    for _ in 0..2 * MAX_WAITING_BYTES / size {
        let ticket = bench.send_with("d", "events", size, bench.patience(60, true));
        assert!(bench.fleet.counts().waiting_bytes > 0);
        bench.hub().credit(0, 1, false);
        bench.accept_all();
        assert_eq!(bench.outcome(ticket), Some(Outcome::Accepted));
        assert_eq!(bench.fleet.counts().waiting_bytes, 0);
    }
}

#[test]
fn too_much_that_waits_is_released_at_once() {
    let mut bench = with(Script { credit: 0, ..Script::default() });
    let patience = bench.patience(10, true);
    let mut devices = 0;
    let refused = loop {
        let device = format!("d{devices}");
        devices += 1;
        let ticket = bench.send_with(&device, "events", 1024 * 1024, patience);
        if bench.outcome(ticket).is_some() {
            break ticket;
        }
    };
    assert_eq!(bench.outcome(refused), Some(Outcome::Released));
    assert!(bench.fleet.counts().waiting_bytes > MAX_WAITING_BYTES * 4 / 5);
    let small = bench.send("another");
    let large = bench.send_with("e", "events", 4 * 1024 * 1024, patience);
    assert_eq!((bench.outcome(small), bench.outcome(large)), (None, Some(Outcome::Released)));
    assert!(bench.fleet.counts().waiting_bytes <= MAX_WAITING_BYTES);
    // The device that only tried is forgotten with the others.
    bench.wait(Duration::from_secs(400));
    bench.assert_empty();
}

#[test]
fn a_hub_that_does_not_read_costs_bounded_memory() {
    let mut bench = Bench::ready(Setup { max_in_flight: 100_000, ..Setup::default() });
    bench.send("d");
    bench.accept_all();
    bench.hub().credit(0, 1000, false);
    bench.run();
    bench.deaf = true;
    let mut send = |at: u64| {
        // What does not go into the stream waits, and one device may not have all room for that.
        let device = if at < 33 { String::from("d") } else { format!("e{at}") };
        bench.send_with(&device, "events", 1024 * 1024, bench.patience(60, true))
    };
    let tickets: Vec<u64> = (0..40).map(&mut send).collect();
    let output = bench.uplink().connection.as_ref().expect("connected").output_bytes();
    assert!(output < 34 * 1024 * 1024, "{output} bytes");
    bench.deaf = false;
    bench.accept_all();
    assert!(tickets.iter().all(|ticket| bench.outcome(*ticket) == Some(Outcome::Accepted)));
}

#[test]
fn a_refused_link_is_not_tried_again_without_need() {
    let mut bench = with(Script { refuses: Some("amqp:not-found"), ..Script::default() });
    let tickets = [bench.send("d"), bench.send("d")];
    bench.wait(Duration::from_secs(10));
    for ticket in tickets {
        assert_eq!(reason(bench.outcome(ticket)), Reason::NoSuchAddress);
    }
    assert_eq!(bench.records.attaches, 1);
    bench.send("d");
    bench.wait(Duration::from_secs(10));
    assert_eq!(bench.records.attaches, 2);
    bench.setup.script.refuses = None;
    let ticket = bench.send("d");
    bench.accept_all();
    assert_eq!(bench.outcome(ticket), Some(Outcome::Accepted));
}

#[test]
fn what_waits_is_not_blamed_for_what_was_sent() {
    for (condition, expected) in [
        ("amqp:link:message-size-exceeded", None),
        ("vendor:odd", None),
        ("amqp:unauthorized-access", Some(Reason::Credentials)),
    ] {
        let mut bench = with(Script { credit: 1, ..Script::default() });
        let (sent, waits) = (bench.send("d"), bench.send("d"));
        bench.run();
        let link = bench.hub().link(0);
        bench.hub().detach(link, Some(condition));
        bench.run();
        assert_eq!(bench.outcome(sent), Some(Outcome::Unknown), "{condition}");
        match expected {
            None => assert_eq!(bench.outcome(waits), Some(Outcome::Released), "{condition}"),
            Some(expected) => assert_eq!(reason(bench.outcome(waits)), expected),
        }
    }
    // At the attach it is the node that was refused, for whatever reason.
    let mut bench = with(Script { refuses: Some("vendor:odd"), ..Script::default() });
    let ticket = bench.send("d");
    bench.run();
    assert_eq!(reason(bench.outcome(ticket)), Reason::Content);
}

#[test]
fn a_message_larger_than_the_hub_takes_is_refused_alone() {
    let mut bench = with(Script { max_message_bytes: Some(1000), ..Script::default() });
    let patience = bench.patience(60, true);
    let sizes = [10, 2000, 10];
    let waited = sizes.map(|size| bench.send_with("d", "events", size, patience));
    bench.run();
    let direct = sizes.map(|size| bench.send_with("d", "events", size, patience));
    bench.accept_all();
    for [small, large, next] in [waited, direct] {
        assert_eq!(bench.outcome(small), Some(Outcome::Accepted));
        assert_eq!(reason(bench.outcome(large)), Reason::TooLarge);
        assert_eq!(bench.outcome(next), Some(Outcome::Accepted));
    }
    assert_eq!(bench.records.attaches, 1);
}

#[test]
fn a_drain_is_answered_though_something_waits_for_room() {
    let script = Script { credit: 1, ..Script::default() };
    let mut bench = Bench::ready(Setup { max_in_flight: 1, script, ..Setup::default() });
    let (first, second) = (bench.send("d"), bench.send("d"));
    bench.run();
    bench.hub().credit(0, 50, true);
    bench.run();
    let link = bench.hub().link(0);
    assert_eq!(bench.hub().machine.link(link).expect("attached").credit, 0, "all credit came back");
    bench.accept_all();
    assert_eq!((bench.outcome(first), bench.outcome(second)), (Some(Outcome::Accepted), None));
    bench.hub().credit(0, 50, false);
    bench.accept_all();
    assert_eq!(bench.outcome(second), Some(Outcome::Accepted));
}

#[test]
fn a_shut_window_keeps_messages_unsent() {
    let hub = ConnectionConfig { incoming_window: 2, max_frame_bytes: 512, ..Setup::default().hub };
    let mut bench = Bench::ready(Setup { hub, ..Setup::default() });
    bench.send("d");
    bench.accept_all();
    let patience = bench.patience(60, true);
    let (large, next) = (bench.send_with("d", "events", 5000, patience), bench.send("d"));
    assert!(bench.fleet.counts().waiting_bytes > 0);
    // The window opens frame by frame; no link is spoken of, and no credit is given.
    bench.accept_all();
    assert_eq!(
        (bench.outcome(large), bench.outcome(next)),
        (Some(Outcome::Accepted), Some(Outcome::Accepted))
    );
    let (large, next) = (
        bench.send_with("d", "events", 5000, patience),
        bench.send_with("d", "events", 0, bench.patience(60, false)),
    );
    bench.disconnect();
    // Of the large one the first frames may have gone.
    assert_eq!(
        (bench.outcome(large), bench.outcome(next)),
        (Some(Outcome::Unknown), Some(Outcome::Released))
    );
}

#[test]
fn what_was_given_up_does_not_come_late() {
    let hub = ConnectionConfig { incoming_window: 2, max_frame_bytes: 512, ..Setup::default().hub };
    let mut bench = Bench::ready(Setup { hub, ..Setup::default() });
    bench.send("d");
    bench.accept_all();
    bench.deaf = true;
    let large = bench.send_with("d", "events", 5000, bench.patience(60, true));
    bench.wait(Duration::from_secs(31));
    assert_eq!(bench.outcome(large), Some(Outcome::Unknown));
    let next = bench.send("d");
    bench.deaf = false;
    bench.accept_all();
    assert_eq!(bench.outcome(next), Some(Outcome::Accepted));
    assert!(!bench.received().contains(&large));
}

#[test]
fn a_device_may_send_to_many_addresses_but_not_hold_them_all() {
    let mut bench = with(Script::default());
    for at in 0..100 {
        let ticket = bench.send_with("d", &format!("kind{at}"), 0, bench.patience(60, true));
        bench.accept_all();
        assert_eq!(bench.outcome(ticket), Some(Outcome::Accepted));
    }
    assert!(bench.fleet.counts().links <= 32);
    assert!(bench.hub().machine.links() <= 2 + 32);
    bench.setup.script.credit = 0;
    let mut refused = 0;
    for at in 0..100 {
        let ticket = bench.send_with("e", &format!("kind{at}"), 0, bench.patience(60, true));
        refused += usize::from(bench.outcome(ticket) == Some(Outcome::Released));
    }
    assert_eq!(refused, 68);
    bench.wait(Duration::from_secs(400));
    bench.assert_empty();
}
