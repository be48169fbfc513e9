//! What is stored goes out once, in order, and what may be a repeat says so.

use super::*;

fn texts(got: &[(String, bool)]) -> Vec<&str> {
    got.iter().map(|(text, _)| &**text).collect()
}

#[test]
fn what_is_stored_goes_out_once_and_is_forgotten() {
    let mut world = World::new(1);
    for text in ["a", "b", "c"] {
        assert_eq!(world.store(record(0, 4, text)), Stored::Stored);
    }
    assert_eq!(world.drain(), [("a".into(), false), ("b".into(), false), ("c".into(), false)]);
    world.pass(100);
    world.turn();
    world.restart(Loss::All);
    assert_eq!(world.drain(), []);
}

#[test]
fn a_device_is_held_from_the_moment_it_is_handed_in_until_the_hub_has_it() {
    let mut world = World::new(2);
    let held = |world: &World| world.spool.holds(HUB, &device(0));
    assert!(!held(&world));
    world.submit(record(0, 4, "a"));
    assert!(held(&world), "nothing is on the disk yet");
    world.turn();
    world.send();
    assert!(held(&world));
    world.restart(Loss::All);
    assert!(held(&world), "before anybody is served");
    world.send();
    assert!(held(&world));
    world.answer(Outcome::Accepted).unwrap();
    assert!(!held(&world));
}

#[test]
fn nothing_is_sent_before_it_is_synced() {
    let mut world = World::new(3);
    // The next batch waits for as many as this one had.
    for n in 0..3 {
        world.submit(record(n, 4, "first"));
    }
    world.turn();
    world.submit(record(5, 4, "a"));
    world.turn();
    world.send();
    assert_eq!(world.in_flight.len(), 3);
    assert_eq!(world.answers().len(), 3, "and nobody is told");
    world.pass(2);
    world.turn();
    world.send();
    assert_eq!((world.in_flight.len(), world.answers().len()), (4, 1));
}

#[test]
fn after_a_failure_the_rest_is_sent_again_in_order_and_marked_with_the_same_id() {
    let mut world = World::new(4);
    for text in ["a", "b", "c", "d"] {
        world.store(record(0, 4, text));
    }
    world.send();
    let ids: Vec<_> =
        world.in_flight.iter().map(|(_, message, _)| message.properties.message_id.clone()).collect();
    assert_eq!(world.answer(Outcome::Accepted), Some(("a".into(), false)));
    world.answer(Outcome::Unknown);
    world.answer(Outcome::Released);
    world.answer(Outcome::Accepted);
    world.send();
    assert!(world.in_flight.is_empty(), "the queue pauses");
    world.pass(100);
    world.send();
    let again: Vec<_> =
        world.in_flight.iter().map(|(_, message, _)| message.properties.message_id.clone()).collect();
    assert_eq!(again, ids[1..3]);
    assert_eq!(world.drain(), [("b".into(), true), ("c".into(), true)]);
}

#[test]
fn after_a_crash_what_may_have_been_sent_is_marked() {
    let mut world = World::new(5);
    for text in ["a", "b", "c"] {
        world.store(record(0, 4, text));
    }
    world.send();
    world.answer(Outcome::Accepted);
    world.restart(Loss::None);
    assert_eq!(world.drain(), [("a".into(), true), ("b".into(), true), ("c".into(), true)]);
}

#[test]
fn a_worker_that_does_not_know_marks_it_too() {
    let mut world = World::new(6);
    world.store(Record { possibly_delivered: true, ..record(0, 4, "a") });
    assert_eq!(world.drain(), [("a".into(), true)]);
}

#[test]
fn two_workers_share_a_write() {
    let mut world = World::new(7);
    world.store(record(0, 4, "first"));
    let other = Mailbox::default();
    let (_, before) = world.disk.work();
    world.submit(record(0, 4, "a"));
    let store = Store { ticket: 99, entry: Entry::Message(record(1, 4, "b")), limits: Limits::default() };
    world.spool.submit(&other, vec![store]);
    world.turn();
    assert_eq!(world.disk.work().1 - before, 1);
    assert_eq!(world.answers(), [(2, Stored::Stored)]);
    let Poll::Ready(answers) = other.poll(&Context::from_waker(Waker::noop())) else { panic!() };
    assert_eq!(answers, [(99, Stored::Stored)]);
}

#[test]
fn settles_gather_for_a_tenth_of_a_second() {
    let mut world = World::new(8);
    for _ in 0..5 {
        world.store(record(0, 4, "a"));
    }
    world.turn();
    let (_, before) = world.disk.work();
    world.send();
    for _ in 0..5 {
        world.answer(Outcome::Accepted);
    }
    world.turn();
    assert_eq!(world.disk.work().1, before);
    let due = world.keeper.poll_timeout();
    assert!(due <= world.now.at + SETTLE_DELAY);
    world.pass(100);
    world.turn();
    assert_eq!(world.disk.work().1, before + 1);
    world.restart(Loss::All);
    assert_eq!(world.drain(), []);
}

#[test]
fn the_order_is_that_of_the_workers_whatever_the_segments() {
    let mut world = World::new(9);
    world.open(false);
    let long = "x".repeat(15_000);
    let given: Vec<String> = (0..60).map(|n| format!("{n} {long}")).collect();
    given.iter().for_each(|text| assert_eq!(world.store(record(0, 4, text)), Stored::Stored));
    world.restart(Loss::All);
    let got = world.drain();
    assert_eq!(texts(&got), given);
}

#[test]
fn quota_and_credentials_are_waited_out() {
    let mut world = World::new(10);
    world.store(record(0, 4, "a"));
    let quota = Reason::Quota { retry_after: Some(Duration::from_secs(5)) };
    for (reason, pause) in [(quota, 5_000), (Reason::Credentials, 200)] {
        world.send();
        world.answer(Outcome::Rejected(Rejection::new(reason, "not now")));
        world.pass(pause - 1);
        world.send();
        assert!(world.in_flight.is_empty(), "{reason:?}");
        world.pass(1);
    }
    assert_eq!(world.drain(), [("a".into(), true)]);
    assert_eq!(world.letters().len(), 0);
}

#[test]
fn on_a_stop_all_that_was_handed_in_is_answered() {
    let mut world = World::new(11);
    world.store(record(0, 4, "a"));
    let ticket = world.submit(record(0, 4, "b"));
    let World { keeper, spool, mailbox, now, disk, .. } = world;
    keeper.close(now);
    let cx = Context::from_waker(Waker::noop());
    assert_eq!(mailbox.poll(&cx), Poll::Ready(vec![(ticket, Stored::Stored)]));
    let late = Store { ticket: 7, entry: Entry::Message(record(1, 4, "c")), limits: Limits::default() };
    spool.submit(&mailbox, vec![late]);
    assert!(
        matches!(mailbox.poll(&cx), Poll::Ready(answers) if matches!(answers[..], [(7, Stored::Refused(_))]))
    );
    assert!(!spool.holds(HUB, &device(1)));
    let mut world = World::on(disk.crash(Loss::All), settings());
    assert_eq!(texts(&world.drain()), ["a", "b"]);
}

#[test]
fn people_are_told_once_that_messages_wait_and_once_that_none_do() {
    let mut world = World::new(3);
    world.open(false);
    world.store(record(0, 4, "a"));
    world.pass(4_000);
    world.turn();
    assert!(!world.keeper.tells_of_waiting(), "it may be on its way");
    world.pass(2_000);
    world.turn();
    assert!(world.keeper.tells_of_waiting());
    world.open(true);
    world.drain();
    world.pass(1_000);
    world.turn();
    assert!(!world.keeper.tells_of_waiting());
}
