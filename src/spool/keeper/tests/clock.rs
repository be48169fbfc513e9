//! A wall clock that is wrong, or is set while the gateway runs, kills nothing.

use super::*;

const YEARS: u64 = 5 * 365 * 86_400_000;

fn turns(world: &mut World, seconds: u64) {
    (0..seconds).for_each(|_| {
        world.pass(1_000);
        world.turn();
    });
}

/// Messages of a minute on a disk, and a dead letter.
fn used(seed: u64) -> World {
    let mut world = World::new(seed);
    world.store(record(9, 4, "unwanted"));
    world.send();
    world.answer(World::rejected());
    turns(&mut world, 1);
    world.open(false);
    for text in ["a", "b"] {
        world.store(Record { ttl: Some(Duration::from_secs(60)), ..record(0, 4, text) });
    }
    world
}

/// A start without a hub.
fn restart(world: &mut World) {
    world.disk = world.disk.crash(Loss::All);
    let (disk, settings) = (world.disk.clone(), world.settings.clone());
    (world.keeper, world.spool) = Keeper::open(disk, log(), settings, world.now).unwrap();
    world.mailbox = Mailbox::default();
}

fn texts(got: Vec<(String, bool)>) -> Vec<String> {
    got.into_iter().map(|(text, _)| text).collect()
}

#[test]
fn a_start_with_the_clock_years_ahead_kills_nothing() {
    let mut world = used(1);
    let right = world.now.unix_ms;
    world.now.unix_ms += YEARS;
    restart(&mut world);
    turns(&mut world, 30);
    assert_eq!((world.keeper.queues.totals().records, world.letters().len()), (2, 1));
    world.now.unix_ms = right + 30_000;
    turns(&mut world, 1);
    world.open(true);
    world.send();
    assert_eq!(world.in_flight.front().unwrap().1.ttl, Some(Duration::from_millis(60_000 - 31_000 - 4)));
    assert_eq!(texts(world.drain()), ["a", "b"]);
    assert_eq!(world.letters().len(), 1);
}

#[test]
fn what_is_really_too_old_dies_when_a_hub_was_reached() {
    let mut world = used(2);
    world.now.unix_ms += YEARS;
    restart(&mut world);
    turns(&mut world, 3);
    world.open(true);
    turns(&mut world, 12);
    assert_eq!(world.keeper.queues.totals().records, 0);
    assert_eq!(world.drain(), []);
}

#[test]
fn a_clock_that_is_set_ahead_while_the_gateway_runs_kills_nothing_and_is_read() {
    for before in [60_000, 1_795_379_735_123 - YEARS / 10] {
        let mut world = World::new(3);
        let right = world.now.unix_ms;
        world.now.unix_ms = before;
        world.open(false);
        world.store(Record { ttl: Some(Duration::from_secs(60)), ..record(0, 4, "early") });
        turns(&mut world, 2);
        world.now.unix_ms = right;
        turns(&mut world, 120);
        world.store(Record { ttl: Some(Duration::from_secs(60)), ..record(1, 4, "late") });
        assert_eq!(world.keeper.queues.totals().records, 2);
        turns(&mut world, 63);
        assert_eq!(world.keeper.queues.totals().records, 1, "what came since has its age");
        assert_eq!(world.letters()[0].stored_at / 1_000, (right + 120_000) / 1_000);
        world.open(true);
        world.send();
        assert_eq!(world.in_flight.front().unwrap().1.ttl, Some(Duration::from_secs(60)));
        assert_eq!(texts(world.drain()), ["early"]);
    }
}
