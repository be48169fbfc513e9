//! A disk that fills or fails is back-pressure: nobody is told that it has what it has not, and it recovers alone.

use super::*;
use crate::spool::ask::Disk as State;
use crate::store::sim::Fault;

#[test]
fn a_sync_that_fails_refuses_its_batch_and_nothing_of_it_is_ever_sent() {
    let mut world = World::new(1);
    assert_eq!(world.store(record(0, 4, "a")), Stored::Stored);
    world.disk.fail(Fault::Sync, 0);
    let refused = Stored::Refused(Refusal::Failed { retry_after: DISK_PAUSE });
    assert_eq!(world.store(record(0, 4, "b")), refused);
    assert_eq!(world.keeper.disk(), State::Failing);
    assert!(world.spool.holds(HUB, &device(0)), "there is still the first");
    assert_eq!(world.store(record(1, 4, "c")), refused, "it is not tried again at once");
    assert!(!world.spool.holds(HUB, &device(1)));
    world.send();
    assert_eq!(world.answer(Outcome::Accepted), Some(("a".into(), false)), "what there is goes on");
    world.pass(1_000);
    assert_eq!(world.store(record(0, 4, "b")), Stored::Stored);
    assert_eq!(world.keeper.disk(), State::Good);
    world.restart(Loss::All);
    let got: Vec<_> = world.drain().into_iter().map(|(text, _)| text).collect();
    assert!(got == ["b"] || got == ["a", "b"], "{got:?}");
}

#[test]
fn a_full_disk_refuses_and_drains_and_takes_again() {
    let mut world = World::new(2);
    world.open(false);
    let long = "x".repeat(10_000);
    let mut stored = 0;
    loop {
        world.disk.set_capacity(1 << 20);
        match world.store(record(0, 4, &long)) {
            Stored::Stored => stored += 1,
            Stored::Refused(refusal) => {
                assert_eq!(refusal, Refusal::Full { retry_after: RETRY_WHEN_FULL });
                break;
            }
        }
        assert!(stored < 1_000);
    }
    assert!(stored > 20, "{stored}");
    assert_eq!(world.keeper.disk(), State::Full);
    assert_eq!(world.keeper.queues.totals().records, stored);
    world.open(true);
    assert_eq!(world.drain().len() as u64, stored);
    (0..20).for_each(|_| {
        world.pass(1_000);
        world.turn();
    });
    assert_eq!(world.store(record(0, 4, &long)), Stored::Stored);
    assert_eq!(world.keeper.disk(), State::Good);
}

#[test]
fn behind_one_that_found_no_room_none_of_its_device_is_taken() {
    let mut world = World::new(7);
    let limits = Limits { max_bytes: Some(200), full: WhenFull::RefuseNew };
    let store = |ticket, of, body: &str| Store { ticket, entry: Entry::Message(record(of, 4, body)), limits };
    let long = "x".repeat(300);
    let batch = vec![store(1, 0, "a"), store(2, 0, &long), store(3, 0, "b"), store(4, 1, "c")];
    world.spool.submit(&world.mailbox, batch);
    world.turn();
    world.pass(2);
    world.turn();
    let mut answers = world.answers();
    answers.sort_by_key(|(ticket, _)| *ticket);
    let stored: Vec<_> = answers.iter().map(|(_, answer)| *answer == Stored::Stored).collect();
    assert_eq!(stored, [true, false, false, true]);
}

#[test]
fn a_thread_that_is_gone_has_answered() {
    let mut world = World::new(8);
    for n in 0..3 {
        world.store(record(n, 4, "a"));
    }
    world.keeper.batch.last = 9;
    let ticket = world.submit(record(0, 4, "b"));
    world.turn();
    assert_eq!(world.answers(), []);
    let World { keeper, mailbox, .. } = world;
    drop(keeper);
    let failed = Stored::Refused(Refusal::Failed { retry_after: DISK_PAUSE });
    assert_eq!(mailbox.poll(&Context::from_waker(Waker::noop())), Poll::Ready(vec![(ticket, failed)]));
}

#[test]
fn a_dead_letter_that_finds_no_room_is_not_lost() {
    let mut world = World::new(3);
    world.store(record(0, 4, "a"));
    world.store(record(0, 4, "b"));
    world.send();
    world.disk.fail(Fault::Sync, 0);
    world.answer(World::rejected());
    world.turn();
    assert_eq!(world.letters().len(), 0);
    assert_eq!(world.keeper.queues.totals().records, 2, "it is still counted");
    world.answer(Outcome::Accepted);
    (0..4).for_each(|_| {
        world.pass(1_000);
        world.turn();
    });
    assert_eq!(world.letters().len(), 1);
    assert_eq!(world.keeper.queues.totals().records, 0);
    world.restart(Loss::All);
    assert_eq!((world.letters().len(), world.drain()), (1, vec![]));
}

#[test]
fn a_damaged_record_costs_itself() {
    let mut world = World::new(4);
    for text in ["aaaa", "bbbb", "cccc"] {
        world.store(record(0, 4, text));
    }
    let name = world.disk.names().into_iter().find(|name| name.ends_with(".seg")).unwrap();
    world.disk.edit(&name, |bytes| {
        let at = bytes.windows(4).position(|window| window == b"bbbb").unwrap();
        bytes[at] = b'X';
    });
    let got: Vec<_> = world.drain().into_iter().map(|(text, _)| text).collect();
    assert_eq!(got, ["aaaa", "cccc"]);
    assert!(!world.spool.holds(HUB, &device(0)));
}

#[test]
fn a_message_that_no_segment_takes_is_refused_for_good() {
    let mut world = World::new(5);
    assert_eq!(world.store(record(0, 4, &"x".repeat(300_000))), Stored::Refused(Refusal::TooLarge));
    assert!(!world.spool.holds(HUB, &device(0)));
}

#[test]
fn a_record_of_another_format_is_left_alone() {
    let world = World::new(6);
    let World { mut keeper, disk, now, .. } = world;
    keeper.log.append(&[&[0x20, 1, 2, 3]]).unwrap();
    keeper.commit(now);
    let error = Keeper::open(disk.crash(Loss::None), log(), settings(), now).err().unwrap().to_string();
    assert_eq!(
        error,
        "a record has format 2; this program reads format 1 only. Use the program that wrote it, or another directory"
    );
}

#[test]
fn what_comes_behind_a_failed_commit_in_the_same_batch_is_refused_too() {
    let mut world = World::new(9);
    world.store(record(0, 4, "first"));
    world.disk.fail(Fault::Sync, 0);
    let filler = "x".repeat(2_000);
    let store = |ticket| {
        let entry = Entry::Message(record(0, 4, &format!("{ticket} {filler}")));
        Store { ticket, entry, limits: Limits::default() }
    };
    // More than one commit takes.
    world.spool.submit(&world.mailbox, (100..140).map(store).collect());
    world.turn();
    world.pass(2);
    world.turn();
    let answers = world.answers();
    assert_eq!(answers.len(), 40);
    assert!(answers.iter().all(|(_, answer)| matches!(answer, Stored::Refused(_))), "{answers:?}");
}

#[test]
fn what_was_stored_before_the_clock_was_set_is_not_too_old_after_it() {
    let mut world = World::new(10);
    let right = world.now.unix_ms;
    world.now.unix_ms = 60_000;
    world.store(record(0, 4, "early"));
    world.now.unix_ms = right;
    world.restart(Loss::All);
    world.turn();
    assert_eq!(world.drain(), [("early".into(), true)]);
}

/// The byte of the log that a text begins with cannot be read any more.
fn wear_out(world: &World, text: &str) {
    for name in world.disk.names() {
        let mut at = None;
        world.disk.edit(&name, |bytes| {
            at = bytes.windows(text.len()).position(|window| window == text.as_bytes());
        });
        if let Some(at) = at {
            return world.disk.wear_out(&name, at..at + 1);
        }
    }
    panic!("{text} is nowhere");
}

#[test]
fn a_sector_that_cannot_be_read_costs_the_record_in_it_and_no_other() {
    let mut world = World::new(9);
    world.open(false);
    for (of, text) in [(0, "before"), (0, "worn out"), (0, "behind"), (1, "another's"), (1, "and more")] {
        assert_eq!(world.store(record(of, 4, text)), Stored::Stored);
    }
    wear_out(&world, "worn out");
    world.open(true);
    let mut got = Vec::new();
    for second in 0..100 {
        world.send();
        while let Some((text, _)) = world.answer(Outcome::Accepted) {
            got.push(text);
            world.send();
        }
        if second < 50 {
            assert!(!got.contains(&"behind".to_owned()), "the disk may read it yet");
            assert_eq!(got.len(), 3, "{got:?}");
        }
        // The disk reads other things.
        if second % 10 == 0 {
            world.open(true);
            assert_eq!(world.store(record(2, 4, &format!("live {second}"))), Stored::Stored);
            world.send();
            assert!(world.answer(Outcome::Accepted).is_some_and(|(text, _)| text.starts_with("live")));
        }
        world.pass(1_000);
        world.turn();
    }
    assert_eq!(got, ["before", "another's", "and more", "behind"]);
    assert_eq!(world.keeper.queues.totals().records, 0);
}

#[test]
fn a_record_that_cannot_be_read_keeps_no_other_from_being_buried() {
    let mut world = World::new(10);
    world.open(false);
    let max_age = Some(Duration::from_secs(10));
    for (of, text) in [(0, "worn out"), (0, "behind"), (1, "another's")] {
        assert_eq!(world.store(Record { max_age, ..record(of, 4, text) }), Stored::Stored);
    }
    wear_out(&world, "worn out");
    for (seconds, left) in [(20, 1), (60, 0)] {
        for _ in 0..seconds {
            world.pass(1_000);
            world.turn();
        }
        assert_eq!((world.letters().len(), world.keeper.queues.totals().records), (2, left));
    }
}

#[test]
fn a_disk_that_reads_nothing_costs_no_record() {
    let mut world = World::new(11);
    world.open(false);
    assert_eq!(world.store(record(0, 4, "worn out")), Stored::Stored);
    wear_out(&world, "worn out");
    world.open(true);
    for _ in 0..200 {
        world.send();
        world.pass(1_000);
        world.turn();
    }
    assert_eq!(world.keeper.queues.totals().records, 1);
    world.disk.mend();
    assert_eq!(world.drain(), [("worn out".into(), true)]);
}
