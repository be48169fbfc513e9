//! Dead letters: what becomes one, what stands in it, and how it becomes a message again.

use super::*;

/// Three messages, of which the hub refuses the second.
fn with_one_dead(seed: u64) -> World {
    let mut world = World::new(seed);
    for text in ["a", "b", "c"] {
        world.store(record(0, 4, text));
    }
    world.send();
    world.answer(Outcome::Accepted);
    world.answer(World::rejected());
    world.answer(Outcome::Accepted);
    assert!(!world.spool.holds(HUB, &device(0)), "live messages need not wait for a dead one");
    world.turn();
    world
}

#[test]
fn a_refused_message_is_kept_with_what_was_said_and_is_not_sent_again() {
    let mut world = with_one_dead(1);
    for _ in 0..2 {
        let letters = world.letters();
        let [letter] = &letters[..] else { panic!("{letters:?}") };
        assert_eq!((&*letter.reason, &*letter.description), ("content", "the hub dislikes it"));
        assert_eq!(
            (&*letter.device, &*letter.rule, &*letter.address),
            ("d0", "m.toml `r`", "devices/d0/messages/events")
        );
        assert_eq!((letter.bytes, &letter.message), (record(0, 4, "b").message.len(), &None));
        let Answer::Show(Some(shown)) =
            world.keeper.answer(&Ask::Show { seq: letter.seq }, Hubs::Stopping, world.now)
        else {
            panic!();
        };
        let bytes =
            base64::Engine::decode(&base64::engine::general_purpose::STANDARD, shown.message.unwrap());
        assert_eq!(bytes.unwrap(), record(0, 4, "b").message);
        world.pass(100);
        world.turn();
        world.restart(Loss::All);
    }
    assert_eq!(world.drain(), []);
}

#[test]
fn what_may_have_been_sent_and_became_too_old_is_a_repeat_when_it_is_replayed() {
    let mut world = World::new(5);
    world.open(false);
    let max_age = Some(Duration::from_secs(10));
    for text in ["sent", "not sent"] {
        assert_eq!(world.store(Record { max_age, ..record(0, 4, text) }), Stored::Stored);
    }
    world.open(true);
    let flight = world.keeper.next(world.now).unwrap().flight;
    world.keeper.report(flight, Outcome::Unknown, world.now);
    world.open(false);
    for _ in 0..20 {
        world.pass(1_000);
        world.turn();
    }
    assert_eq!(world.letters().len(), 2);
    assert_eq!(world.done(&Ask::Replay { which: all(), after: 0, up_to: None }).done, 2);
    world.open(true);
    assert_eq!(world.drain(), [("sent".into(), true), ("not sent".into(), false)]);
}

#[test]
fn what_is_replayed_goes_to_the_hub_that_its_device_belongs_to_now() {
    let mut world = with_one_dead(4);
    world.hub_of = "other";
    assert_eq!(world.done(&Ask::Replay { which: all(), after: 0, up_to: None }).done, 1);
    assert!(world.spool.holds("other", &device(0)) && !world.spool.holds(HUB, &device(0)));
    assert!(world.keeper.next(world.now).is_none(), "the other hub is not there yet");
    world.keeper.set_open(&"other".into(), true);
    assert_eq!(&*world.keeper.next(world.now).unwrap().hub, "other");
}

#[test]
fn a_replayed_one_is_sent_with_the_mark_and_one_that_is_dropped_is_gone() {
    let mut world = with_one_dead(2);
    let seq = world.letters()[0].seq;
    let one = Which { seq: Some(seq), ..all() };
    let replay = Ask::Replay { which: one.clone(), after: 0, up_to: None };
    assert_eq!(world.done(&replay), Done { done: 1, ..Done::default() });
    assert!(world.spool.holds(HUB, &device(0)));
    assert_eq!(world.done(&replay), Done::default(), "it is no dead letter any more");
    world.restart(Loss::All);
    world.send();
    assert_eq!(world.answer(World::rejected()), Some(("b".into(), true)));
    world.turn();
    let seq = world.letters()[0].seq;
    assert_eq!(
        world.done(&Ask::Drop { which: Which { seq: Some(seq + 1), ..all() }, after: 0, up_to: None }).done,
        0
    );
    assert_eq!(world.done(&Ask::Drop { which: all(), after: 0, up_to: None }).done, 1);
    world.restart(Loss::All);
    assert_eq!((world.letters().len(), world.drain()), (0, vec![]));
}

#[test]
fn they_are_found_by_device_and_reason_and_in_pages() {
    let mut world = World::new(3);
    world.settings.dead.max_records = 10_000;
    world.restart(Loss::None);
    for n in 0..700 {
        world.submit(Record { ttl: Some(Duration::from_secs(1)), ..record(n % 2, 4, &format!("m{n}")) });
    }
    (0..4).for_each(|_| {
        world.turn();
        world.pass(2);
    });
    world.open(false);
    world.pass(3_000);
    (0..20).for_each(|_| {
        world.turn();
        world.pass(1_000);
    });
    let which = Which { device: Some("d1".into()), reason: Some("expired".into()), seq: None };
    let (mut found, mut after) = (Vec::new(), 0);
    loop {
        let ask = Ask::List { which: which.clone(), after, most: 100 };
        let Answer::List(page) = world.keeper.answer(&ask, Hubs::Stopping, world.now) else { panic!() };
        assert!(page.letters.len() <= 100);
        found.extend(page.letters.into_iter().map(|letter| letter.seq));
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    found.dedup();
    assert_eq!(found.len(), 350);
    let none = Which { reason: Some("content".into()), ..all() };
    assert_eq!(world.done(&Ask::Drop { which: none, after: 0, up_to: None }).done, 0);
    let (mut dropped, mut after, mut up_to) = (0, Some(0), None);
    while let Some(from) = after {
        let done = world.done(&Ask::Drop { which: which.clone(), after: from, up_to });
        (dropped, after, up_to) = (dropped + done.done, done.next, done.up_to);
    }
    assert_eq!((dropped, world.keeper.dead.len()), (350, 350));
}

#[test]
fn replaying_all_ends_though_the_hub_refuses_them_again_at_once() {
    let mut world = World::new(6);
    world.settings.dead.max_records = 10_000;
    world.restart(Loss::None);
    let refuse_all = |world: &mut World| {
        for _ in 0..200 {
            world.send();
            while world.answer(World::rejected()).is_some() {}
            world.pass(100);
            world.turn();
        }
        assert_eq!(world.keeper.queues.totals().records, 0);
    };
    for n in 0..1_300 {
        world.submit(record(n % 9, 4, "unwanted"));
    }
    refuse_all(&mut world);
    assert_eq!(world.keeper.dead.len(), 1_300);
    let (mut replayed, mut pages, mut after, mut up_to) = (0, 0, Some(0), None);
    while let Some(from) = after {
        let done = world.done(&Ask::Replay { which: all(), after: from, up_to });
        (replayed, pages, after, up_to) = (replayed + done.done, pages + 1, done.next, done.up_to);
        assert!(pages <= 3, "it meets them again: {replayed}");
        refuse_all(&mut world);
    }
    assert_eq!((replayed, world.keeper.dead.len()), (1_300, 1_300));
}

#[test]
fn what_waited_too_long_or_made_room_is_kept_as_well() {
    let mut world = World::new(4);
    world.open(false);
    let limits = Limits { max_bytes: Some(200), full: WhenFull::DeadLetterOldest };
    for text in ["a", "b", "c", "d", "e"] {
        let ticket = world
            .submit_with(Record { max_age: Some(Duration::from_secs(30)), ..record(0, 4, text) }, limits);
        world.turn();
        world.pass(2);
        world.turn();
        assert_eq!(world.answers(), [(ticket, Stored::Stored)]);
    }
    let reasons = |world: &mut World| {
        let letters = world.letters();
        letters.into_iter().map(|letter| letter.reason).collect::<Vec<_>>()
    };
    let made_room = reasons(&mut world).len();
    assert!(made_room > 0 && reasons(&mut world).iter().all(|reason| reason == "made-room"));
    world.pass(33_000);
    world.turn();
    assert_eq!(reasons(&mut world).iter().filter(|reason| *reason == "expired").count(), 5 - made_room);
    assert_eq!(world.keeper.queues.totals().records, 0);
    world.open(true);
    assert_eq!(world.drain(), []);
}

#[test]
fn the_oldest_go_when_there_are_too_many() {
    let mut world = World::new(5);
    world.settings.dead.max_records = 2;
    world.restart(Loss::None);
    for text in ["a", "b", "c"] {
        world.store(record(0, 4, text));
        world.send();
        world.answer(World::rejected());
        world.turn();
    }
    let sizes: Vec<_> = world.letters().iter().map(|letter| letter.seq).collect();
    assert_eq!(sizes.len(), 2);
    world.pass(100);
    world.turn();
    world.restart(Loss::All);
    assert_eq!(world.letters().iter().map(|letter| letter.seq).collect::<Vec<_>>(), sizes);
}

#[test]
fn what_the_hub_may_have_is_a_repeat_when_it_is_replayed_after_it_was_too_old() {
    let mut world = World::new(7);
    let brief = |text| Record { max_age: Some(Duration::from_secs(30)), ..record(0, 4, text) };
    world.store(brief("a"));
    world.send();
    let sent = world.in_flight.front().unwrap().1.properties.message_id.clone();
    world.answer(Outcome::Unknown);
    world.open(false);
    world.store(brief("never sent"));
    (0..2).for_each(|_| {
        world.pass(33_000);
        world.turn();
    });
    assert_eq!(world.letters().iter().filter(|letter| letter.reason == "expired").count(), 2);
    world.restart(Loss::All);
    assert_eq!(world.done(&Ask::Replay { which: all(), after: 0, up_to: None }).done, 2);
    world.send();
    let again = world.in_flight.front().unwrap().1.properties.message_id.clone();
    assert_eq!((again, world.answer(Outcome::Accepted)), (sent, Some(("a".into(), true))));
    assert_eq!(world.answer(Outcome::Accepted), Some(("never sent".into(), false)));
}
