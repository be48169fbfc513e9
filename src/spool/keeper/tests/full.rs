//! A log or a disk without any room: what is there leaves all the same, whatever becomes of the process, and nobody spins.

use super::*;
use crate::spool::ask::Disk as State;
use crate::store::Disk as _;

/// A spool that has as much as it may have, or a disk without a byte. Gives how many messages it took.
fn full(seed: u64, capacity: Option<u64>, max_age: Option<Duration>) -> (World, u64) {
    let mut settings = settings();
    (settings.bounds.max_bytes, settings.bounds.max_records) = (64 << 20, 1_000_000);
    (settings.bounds.device_max_bytes, settings.bounds.device_max_records) = (64 << 20, 1_000_000);
    let mut world = World::on(SimDisk::new(seed, capacity.unwrap_or(64 << 20)), settings);
    world.open(false);
    let mut stored = 0;
    while world.keeper.disk() == State::Good {
        for n in 0..50 {
            world.submit(Record { max_age, ..record(n % 2, 4, &format!("{stored} {n}")) });
        }
        world.turn();
        world.pass(2);
        world.turn();
        stored += world.answers().iter().filter(|(_, answer)| *answer == Stored::Stored).count() as u64;
    }
    if capacity.is_some() {
        world.disk.set_capacity(0);
    }
    assert!(stored > 5_000, "{stored}");
    (world, stored)
}

/// So many seconds, a turn whenever the keeper wants one. Gives how many it wanted.
fn seconds(world: &mut World, seconds: u64, mut accept: impl FnMut(&mut World)) -> u32 {
    let end = world.now.at + Duration::from_secs(seconds);
    let mut turns = 0;
    while world.now.at < end {
        world.turn();
        accept(world);
        turns += 1;
        let next = world.keeper.poll_timeout().max(world.now.at);
        world.pass((next - world.now.at).as_millis() as u64);
        assert!(turns < 1_000 * seconds as u32, "it spins");
    }
    turns
}

fn accept(world: &mut World) {
    world.send();
    while world.answer(Outcome::Accepted).is_some() {
        world.send();
    }
}

/// The hub takes what one device sends, and has no time for the other one: every segment keeps something.
fn accept_of_one(world: &mut World) {
    let retry_after = Some(Duration::from_secs(10));
    world.send();
    while let Some((_, message, _)) = world.in_flight.front() {
        let later = Outcome::Rejected(Rejection::new(Reason::Quota { retry_after }, "later"));
        let outcome = if message.device == device(0) { Outcome::Accepted } else { later };
        world.answer(outcome);
        world.send();
    }
}

/// Hands in messages until none is taken.
fn fill(world: &mut World) {
    for _ in 0..10_000 {
        if world.keeper.disk() == State::Full {
            return;
        }
        world.submit(record(3, 4, "one more"));
        world.turn();
        world.pass(2);
        world.turn();
        world.answers();
    }
    panic!("it takes messages for ever");
}

fn takes_again(world: &mut World) {
    assert_eq!(world.store(record(5, 4, "there is room")), Stored::Stored);
    assert_eq!(world.keeper.disk(), State::Good);
}

#[test]
fn what_is_full_empties_after_any_number_of_starts() {
    for capacity in [None, Some(3 << 20)] {
        let (mut world, stored) = full(1, capacity, None);
        let losses = [Loss::None, Loss::Half, Loss::All];
        for start in 0..50 {
            world.restart(losses[start % 3]);
            world.turn();
            fill(&mut world);
            // Some are taken, and synced where the process does not end before.
            for _ in 0..start % 4 {
                world.send();
                (0..4).for_each(|_| drop(world.answer(Outcome::Accepted)));
                world.pass(100);
                world.turn();
                assert_eq!(world.keeper.log.settles_waiting(), 0, "{start}");
            }
        }
        assert!(world.keeper.queues.totals().records + 500 > stored);
        seconds(&mut world, 60, accept);
        assert_eq!(world.keeper.queues.totals().records, 0, "{capacity:?}");
        takes_again(&mut world);
    }
}

#[test]
fn without_any_room_it_says_so_and_waits() {
    // Somebody has removed the reserve.
    let (mut world, stored) = full(2, Some(3 << 20), None);
    world.restart(Loss::All);
    let spares: Vec<String> =
        world.disk.names().into_iter().filter(|name| name.ends_with(".spare")).collect();
    spares.iter().for_each(|name| world.disk.remove(name).unwrap());
    world.restart(Loss::None);
    let mut used = 0;
    while world.keeper.log.settles_waiting() == 0 {
        // Nor is there any left in the last segment.
        accept_of_one(&mut world);
        world.pass(100);
        world.turn();
        used += 1;
        assert!(used < 1_000, "{:?} {:?}", world.keeper.log.usage(), world.keeper.queues.totals());
    }
    let turns = seconds(&mut world, 10, accept);
    assert_eq!(world.keeper.disk(), State::Full);
    assert!(world.keeper.log.settles_waiting() > 0 && turns < 400, "{turns} turns in 10 seconds");
    world.disk.set_capacity(64 << 20);
    seconds(&mut world, 60, accept);
    assert_eq!(
        (world.keeper.queues.totals().records, world.keeper.log.settles_waiting()),
        (0, 0),
        "of {stored}"
    );
    takes_again(&mut world);
}

#[test]
fn what_is_full_and_too_old_goes_with_dead_letters_or_without() {
    for capacity in [None, Some(3 << 20)] {
        let (mut world, stored) = full(3, capacity, Some(Duration::from_secs(100)));
        world.restart(Loss::None);
        world.open(false);
        world.pass(200_000);
        // 256 of each queue at once, and the patience that dead letters have.
        seconds(&mut world, 5 + 2 * stored / 256, |_| ());
        assert_eq!(world.keeper.queues.totals().records, 0, "{capacity:?}: of {stored}");
        assert!(world.keeper.dead.len() > 0);
        takes_again(&mut world);
    }
}

#[test]
fn what_lives_goes_on_while_nothing_can_be_buried() {
    let (mut world, stored) = full(4, Some(3 << 20), None);
    // The hub refuses each second one.
    let mut refuses = false;
    seconds(&mut world, 20 + stored / 100, |world| {
        world.open(true);
        world.send();
        loop {
            refuses = !refuses;
            let outcome = if refuses { World::rejected() } else { Outcome::Accepted };
            if world.answer(outcome).is_none() {
                break;
            }
        }
    });
    assert_eq!(world.keeper.queues.totals().records, 0, "of {stored}");
    takes_again(&mut world);
}
