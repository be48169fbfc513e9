//! One case each: which way a message goes, and what its device hears.

use std::time::Duration;

use fieldgate_mappings::delivery::OnError;
use fieldgate_mappings::message::MessageId;
use fieldgate_mappings::{Delivery, Outcome, Reason};

use super::world::{Mood, World, burying, device, full, read, rejected, spooling, storing};
use crate::outbound::lanes::{MAX_KEPT_BYTES, ROOM_RETRY};
use crate::outbound::{GRACE, STOP_GRACE};
use crate::spool::{Entry, Refusal, Stored};
use crate::upstream::Hears;

const ALL: [Hears; 3] = [Hears::Everything, Hears::Acceptance, Hears::Nothing];

#[test]
fn a_rule_that_says_nothing_of_the_disk_is_left_alone() {
    let world = World::new();
    world.send_message(World::message("d", "1", None), Hears::Everything, 1);
    let priority = Delivery { priority: 9, when_offline: None, ..spooling() };
    world.send(2, priority, Hears::Everything);
    assert_eq!(world.hub.borrow().plain, 2);
    assert!(world.outbound.shared.notes.lanes.borrow().is_empty());
    assert!(world.hub.borrow().pending.iter().all(|pending| !pending.patience.in_order));
    world.hub_is_lost();
    assert_eq!(world.heard(), [(1, Outcome::Unknown), (2, Outcome::Unknown)]);
}

#[test]
fn while_the_hub_is_there_it_answers() {
    let world = World::new();
    let outcomes =
        [Outcome::Accepted, rejected(Reason::Content), rejected(Reason::Quota { retry_after: None })];
    for (ticket, outcome) in (1..).zip(outcomes) {
        world.send(ticket, spooling(), Hears::Everything);
        {
            let hub = world.hub.borrow();
            let patience = hub.pending[0].patience;
            assert!(patience.in_order && !patience.through_outage && patience.until == world.now + GRACE);
            assert_eq!(hub.plain, 0);
        }
        world.turn();
        assert_eq!(world.heard(), []);
        world.hub_answers(outcome.clone());
        assert_eq!(world.heard(), [(ticket, outcome)]);
    }
    assert!(world.disk.borrow().batches.is_empty() && world.outbound.shared.notes.lanes.borrow().is_empty());
}

#[test]
fn on_store_goes_to_the_disk_whatever_the_hub_does() {
    for hears in ALL {
        let world = World::new();
        world.send(1, storing(), hears);
        assert_eq!(world.heard(), []);
        world.turn();
        assert_eq!(world.heard(), [], "not before the disk has it");
        assert_eq!(world.disk_stores(), [("1".into(), false)]);
        assert_eq!(world.heard(), [(1, Outcome::Accepted)]);
        assert!(world.hub.borrow().pending.is_empty());
        assert!(world.outbound.shared.notes.lanes.borrow().is_empty());
    }
}

#[test]
fn what_comes_back_goes_to_the_disk_in_order_and_what_may_have_arrived_is_marked() {
    let world = World::new();
    (1..=3).for_each(|ticket| world.send(ticket, spooling(), Hears::Everything));
    world.hub.borrow_mut().mood = Mood::NoCredit;
    world.send(4, spooling(), Hears::Everything);
    world.hub_answers(Outcome::Accepted);
    world.hub_is_lost();
    world.send(5, spooling(), Hears::Everything);
    world.turn();
    let stored = world.disk_stores();
    let expected = [("2", true), ("3", true), ("4", false), ("5", false)];
    assert_eq!(stored, expected.map(|(body, marked)| (body.to_owned(), marked)));
    let heard: Vec<u64> = world
        .heard()
        .into_iter()
        .map(|(ticket, outcome)| {
            assert_eq!(outcome, Outcome::Accepted);
            ticket
        })
        .collect();
    assert_eq!(heard, [1, 2, 3, 4, 5]);
}

#[test]
fn what_must_be_stored_waits_for_what_was_sent_before() {
    let world = World::new();
    world.send(1, spooling(), Hears::Everything);
    world.send(2, storing(), Hears::Everything);
    world.send(3, spooling(), Hears::Everything);
    world.turn();
    assert!(world.disk.borrow().batches.is_empty(), "the hub has not answered for the first");
    assert_eq!(world.hub.borrow().pending.len(), 1, "what is behind a stored one does not overtake it");
    world.hub_answers(Outcome::Accepted);
    assert_eq!(world.disk_stores(), [("2".into(), false), ("3".into(), false)]);
}

#[test]
fn what_a_lost_client_will_send_again_does_not_come_behind_that() {
    let world = World::new();
    world.send(1, spooling(), Hears::Acceptance);
    world.send(2, storing(), Hears::Acceptance);
    world.hub.borrow_mut().mood = Mood::NoCredit;
    world.send(3, spooling(), Hears::Acceptance);
    world.turn();
    assert!(
        world.hub.borrow().pending.iter().all(|pending| pending.verdict.as_ref().unwrap().is_wanted(false))
    );
    // The client of 1 to 3 is lost, and back at once as another.
    world.ears.deserted.set(3);
    assert!(
        world.hub.borrow().pending.iter().all(|pending| !pending.verdict.as_ref().unwrap().is_wanted(false))
    );
    world.send(4, spooling(), Hears::Acceptance);
    world.hub_answers(Outcome::Unknown);
    assert_eq!(world.disk_stores(), [("4".into(), false)]);
    let expected = [Outcome::Unknown, Outcome::Released, Outcome::Released, Outcome::Accepted];
    assert_eq!(world.heard(), [1, 2, 3, 4].into_iter().zip(expected).collect::<Vec<_>>());
    assert!(world.outbound.shared.notes.lanes.borrow().is_empty());
}

#[test]
fn what_is_recalled_has_its_end_at_once() {
    let world = World::new();
    world.send(1, spooling(), Hears::Acceptance);
    world.hub.borrow_mut().mood = Mood::NoCredit;
    world.send(2, spooling(), Hears::Acceptance);
    world.send(3, storing(), Hears::Acceptance);
    world.ears.deserted.set(3);
    world.outbound.recall(&device("other"));
    assert_eq!(world.heard(), []);
    world.outbound.recall(&device("d"));
    assert_eq!(world.heard(), [(2, Outcome::Released), (3, Outcome::Released)], "the first was sent");
    world.hub_answers(Outcome::Accepted);
    assert_eq!(world.heard(), [(1, Outcome::Accepted)]);
    assert!(world.outbound.shared.notes.lanes.borrow().is_empty());
}

#[test]
fn behind_the_disk_means_over_the_disk() {
    let world = World::new();
    world.hub.borrow_mut().mood = Mood::Away;
    world.send(1, spooling(), Hears::Everything);
    world.turn();
    world.hub.borrow_mut().mood = Mood::Up;
    assert_eq!(world.disk_stores().len(), 1);
    world.send(2, spooling(), Hears::Everything);
    world.turn();
    assert_eq!(world.disk_stores(), [("2".into(), false)]);
    world.send_message(World::message("other", "3", Some(spooling())), Hears::Everything, 3);
    assert_eq!(world.hub.borrow().pending.len(), 1, "other devices do not wait");
    world.drain();
    world.send(4, spooling(), Hears::Everything);
    assert_eq!(world.hub.borrow().pending.len(), 2, "the disk is empty: straight again");
}

#[test]
fn a_message_has_one_id_on_both_ways() {
    let world = World::new();
    world.send(1, spooling(), Hears::Everything);
    let mut own = World::message("d", "2", Some(spooling()));
    own.properties.message_id = Some(MessageId::String("own".into()));
    world.send_message(own, Hears::Everything, 2);
    world.send(3, storing(), Hears::Everything);
    world.hub_is_lost();
    let mut ids = Vec::new();
    for _ in 0..3 {
        let Entry::Message(record) = world.disk_answers(Stored::Stored).entry else { panic!("a message") };
        ids.push(read(&record.message).1);
    }
    assert_eq!(ids, [Some("id-1".to_owned()), Some("own".into()), None], "the spool itself names the last");
    assert_eq!(world.hub.borrow().ids["1"].as_deref(), Some("id-1"));
    assert_eq!(world.hub.borrow().ids["2"].as_deref(), Some("own"));
}

#[test]
fn time_to_live_runs_on_the_way_to_the_disk() {
    let mut world = World::new();
    for (ticket, ttl) in [(1, 10), (2, 1)] {
        let mut message = World::message("d", "x", Some(spooling()));
        message.ttl = Some(Duration::from_secs(ttl));
        world.send_message(message, Hears::Everything, ticket);
    }
    world.pass(Duration::from_secs(3));
    world.hub_is_lost();
    for left in [Duration::from_secs(7), Duration::from_millis(1)] {
        let Entry::Message(record) = world.disk_answers(Stored::Stored).entry else { panic!("a message") };
        assert_eq!(record.ttl, Some(left));
    }
}

#[test]
fn a_device_that_hears_refusals_is_told_that_there_is_no_room() {
    let retry_after = Some(Duration::from_secs(7));
    let failed = Stored::Refused(Refusal::Failed { retry_after: Duration::from_secs(7) });
    for hears in [Hears::Everything, Hears::Nothing] {
        for (answer, reason) in [
            (full(), Reason::Full { retry_after }),
            (failed, Reason::Disk { retry_after }),
            (Stored::Refused(Refusal::TooLarge), Reason::TooLarge),
        ] {
            let world = World::new();
            world.send(1, storing(), hears);
            world.turn();
            world.disk_answers(answer);
            let heard = world.heard();
            assert!(
                matches!(&heard[..], [(1, Outcome::Rejected(rejection))] if rejection.reason == reason),
                "{heard:?}"
            );
        }
    }
}

#[test]
fn a_device_that_hears_nothing_of_refusals_waits_for_room() {
    let mut world = World::new();
    (1..=3).for_each(|ticket| world.send(ticket, storing(), Hears::Acceptance));
    world.turn();
    for _ in 0..3 {
        world.disk_answers(full());
    }
    world.send(4, storing(), Hears::Acceptance);
    world.turn();
    assert!(world.disk.borrow().batches.is_empty());
    for _ in 0..5 {
        world.pass(ROOM_RETRY);
        assert_eq!(
            world.disk.borrow().batches.iter().map(|batch| batch.len()).sum::<usize>(),
            1,
            "one tries"
        );
        world.disk_answers(full());
        assert_eq!(world.heard(), []);
    }
    world.pass(ROOM_RETRY);
    let stored = world.disk_stores();
    assert_eq!(stored.iter().map(|(body, _)| &**body).collect::<Vec<_>>(), ["1", "2", "3", "4"]);
    assert_eq!(world.heard().len(), 4);
}

#[test]
fn who_waited_for_room_long_enough_goes_with_those_behind() {
    let mut world = World::new();
    (1..=3).for_each(|ticket| world.send(ticket, storing(), Hears::Acceptance));
    world.send(4, storing(), Hears::Nothing);
    world.turn();
    for _ in 0..4 {
        world.disk_answers(full());
    }
    assert!(matches!(&world.heard()[..], [(4, Outcome::Rejected(_))]), "nobody waits for QoS 0");
    world.pass(Duration::from_secs(31));
    world.disk_answers(full());
    assert_eq!(world.heard(), [(1, Outcome::Released), (2, Outcome::Released), (3, Outcome::Released)]);
    assert!(world.disk.borrow().batches.is_empty());
    assert!(world.outbound.shared.notes.lanes.borrow().is_empty());
}

#[test]
fn at_the_stop_nobody_waits_for_room() {
    let world = World::new();
    (1..=2).for_each(|ticket| world.send(ticket, storing(), Hears::Acceptance));
    world.turn();
    (0..2).for_each(|_| drop(world.disk_answers(full())));
    world.outbound.shared.notes.lanes.borrow_mut().stop(world.now + STOP_GRACE);
    world.turn();
    assert_eq!(world.heard(), []);
    world.disk_answers(full());
    assert_eq!(world.heard(), [(1, Outcome::Released), (2, Outcome::Released)]);
    assert!(world.outbound.shared.notes.lanes.borrow().is_empty());
}

#[test]
fn a_refusal_of_the_hub_becomes_a_dead_letter_where_the_rule_or_the_protocol_asks() {
    let buries = || Delivery { on_error: OnError::DeadLetter, ..spooling() };
    let content = || rejected(Reason::Content);
    for (delivery, hears, dead, told) in [
        (spooling(), Hears::Everything, false, content()),
        (spooling(), Hears::Nothing, false, content()),
        (spooling(), Hears::Acceptance, true, content()),
        (buries(), Hears::Everything, true, Outcome::Accepted),
        (buries(), Hears::Acceptance, true, Outcome::Accepted),
        (burying(), Hears::Everything, true, Outcome::Accepted),
        (burying(), Hears::Nothing, true, Outcome::Accepted),
    ] {
        let world = World::new();
        world.send(1, delivery.clone(), hears);
        world.send(2, delivery.clone(), hears);
        world.hub_answers(content());
        world.hub_answers(Outcome::Accepted);
        if dead {
            assert_eq!(world.heard(), [(2, Outcome::Accepted)], "not before the disk has it");
            let Entry::DeadLetter(letter) = world.disk_answers(Stored::Stored).entry else {
                panic!("a dead letter");
            };
            assert_eq!((&*letter.description, letter.reason.name()), ("no", "content"));
            assert_eq!(world.heard(), [(1, told)]);
        } else {
            assert_eq!(world.heard(), [(1, told), (2, Outcome::Accepted)]);
        }
        assert!(world.disk.borrow().batches.is_empty());
        assert!(world.outbound.shared.notes.lanes.borrow().is_empty());
    }
}

#[test]
fn a_dead_letter_that_is_not_taken_is_no_acknowledgement() {
    for (hears, told) in
        [(Hears::Everything, rejected(Reason::Content)), (Hears::Acceptance, Outcome::Released)]
    {
        let world = World::new();
        world.send(1, burying(), hears);
        world.hub_answers(rejected(Reason::Content));
        world.disk_answers(full());
        assert_eq!(world.heard(), [(1, told)]);
    }
}

#[test]
fn the_hubs_quota_is_waited_out_on_disk_by_those_who_cannot_hear_of_it() {
    let quota = rejected(Reason::Quota { retry_after: None });
    let world = World::new();
    world.send(1, spooling(), Hears::Acceptance);
    world.hub_answers(quota.clone());
    assert_eq!(world.disk_stores(), [("1".into(), false)]);
    assert_eq!(world.heard(), [(1, Outcome::Accepted)]);
    let world = World::new();
    world.send(1, spooling(), Hears::Acceptance);
    world.hub_answers(rejected(Reason::Credentials));
    assert_eq!(world.heard(), [(1, rejected(Reason::Credentials))], "the device can do better");
}

#[test]
fn what_only_a_dead_letter_would_keep_comes_back_as_it_was() {
    let world = World::new();
    world.send(1, burying(), Hears::Everything);
    world.send(2, burying(), Hears::Everything);
    world.hub_answers(Outcome::Released);
    world.hub_is_lost();
    assert_eq!(world.heard(), [(1, Outcome::Released), (2, Outcome::Unknown)]);
    assert!(world.disk.borrow().batches.is_empty());
}

#[test]
fn too_much_is_released_and_never_grows() {
    let world = World::new();
    let large = "x".repeat(1024 * 1024);
    for ticket in 1..=40 {
        let delivery = if ticket % 2 == 0 { storing() } else { spooling() };
        world.send_message(World::message("d", &large, Some(delivery)), Hears::Everything, ticket);
    }
    let released = world.heard();
    assert_eq!(released.len(), 40 - MAX_KEPT_BYTES / (1024 * 1024) + 1);
    assert!(released.iter().all(|(_, outcome)| *outcome == Outcome::Released), "none of them was sent");
    world.hub_answers(Outcome::Accepted);
    assert_eq!(world.heard().len(), 1);
    world.send(41, spooling(), Hears::Everything);
    assert_eq!(world.heard(), [], "there is room again");
}

#[test]
fn at_the_stop_what_the_hub_does_not_answer_for_goes_to_the_disk() {
    let mut world = World::new();
    (1..=2).for_each(|ticket| world.send(ticket, spooling(), Hears::Everything));
    world.send(3, burying(), Hears::Everything);
    world.outbound.shared.notes.lanes.borrow_mut().stop(world.now + STOP_GRACE);
    world.hub_answers(Outcome::Accepted);
    assert_eq!(world.outbound.shared.notes.lanes.borrow().poll_timeout(), Some(world.now + STOP_GRACE));
    world.pass(STOP_GRACE);
    assert_eq!(world.disk_stores(), [("2".into(), true)]);
    world.send(4, spooling(), Hears::Everything);
    world.turn();
    assert_eq!(world.disk_stores(), [("4".into(), false)], "nothing new waits for the hub");
    assert_eq!(
        world.heard(),
        [(1, Outcome::Accepted), (3, Outcome::Unknown), (2, Outcome::Accepted), (4, Outcome::Accepted)]
    );
    world.hub_answers(Outcome::Accepted);
    assert_eq!(world.heard(), [], "a late answer means nothing any more");
    assert!(world.outbound.shared.notes.lanes.borrow().is_empty());
}

#[test]
fn one_batch_of_a_device_is_with_the_disk_at_a_time() {
    let world = World::new();
    (1..=2).for_each(|ticket| world.send(ticket, storing(), Hears::Everything));
    world.turn();
    world.send(3, storing(), Hears::Everything);
    world.send_message(World::message("other", "4", Some(storing())), Hears::Everything, 4);
    world.turn();
    let batches = || world.disk.borrow().batches.iter().map(|batch| batch.len()).collect::<Vec<_>>();
    assert_eq!(batches(), [2, 1], "the other device does not wait");
    world.disk_answers(Stored::Stored);
    assert_eq!(batches(), [1, 1]);
    world.disk_answers(Stored::Stored);
    assert_eq!(batches(), [1, 1], "the answer to the first batch is whole");
    assert_eq!(world.disk_stores(), [("4".into(), false), ("3".into(), false)]);
}

#[test]
fn a_late_acceptance_spares_the_disk_what_it_does_not_have() {
    let mut world = World::new();
    (1..=2).for_each(|ticket| world.send(ticket, spooling(), Hears::Everything));
    {
        let mut lanes = world.outbound.shared.notes.lanes.borrow_mut();
        lanes.stop(world.now);
        lanes.handle_timeout(world.now);
    }
    world.hub_answers(Outcome::Accepted);
    assert_eq!(world.heard(), [(1, Outcome::Accepted)]);
    world.pass(Duration::ZERO);
    assert_eq!(world.disk_stores(), [("2".into(), true)]);
}

#[test]
fn at_the_very_end_the_disk_gets_the_rest_in_order() {
    let world = World::new();
    world.send(1, storing(), Hears::Acceptance);
    world.turn();
    world.disk_answers(full());
    world.send(2, storing(), Hears::Acceptance);
    world.turn();
    world.send_message(World::message("e", "3", Some(spooling())), Hears::Everything, 3);
    world.send_message(World::message("e", "4", Some(spooling())), Hears::Everything, 4);
    world.outbound.abandon();
    let heard = world.heard();
    assert_eq!(heard.len(), 4);
    assert!(heard.iter().all(|(_, outcome)| *outcome != Outcome::Accepted));
    let mut stored = world.disk_stores();
    stored.sort();
    let expected = [("1", false), ("2", false), ("3", true), ("4", true)];
    assert_eq!(stored, expected.map(|(body, marked)| (body.to_owned(), marked)));
    assert_eq!(world.heard(), [], "and nobody hears twice");
}
