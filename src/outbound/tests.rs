//! Random lives of devices, a hub and a disk, and what must hold in all of them.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fieldgate_amqp::codec::Limits;
use fieldgate_amqp::message::{Body, Sections};
use fieldgate_mappings::ByteString;
use fieldgate_mappings::address::{Address, DeviceId};
use fieldgate_mappings::delivery::{Ack, Delivery, Full, WhenOffline};
use fieldgate_mappings::message::{Direction, Message};
use fieldgate_mappings::outcome::{Outcome, Reason, Rejection, Report, Verdict};

use crate::spool::{Entry, Refusal, Store, Stored};
use crate::testing::Random;
use crate::upstream::Patience;

use super::keeper::{Keeper, MAX_KEPT_BYTES};
use super::{Direct, Disk};

const DEVICES: [&str; 3] = ["d0", "d1", "d2"];
const RETRY_AFTER: Duration = Duration::from_secs(7);

/// What the hub was handed and has not answered for.
struct Asked {
    device: DeviceId,
    number: u64,
    verdict: Verdict,
}

/// The hub and the disk of a test.
#[derive(Default)]
struct Ends {
    away: Cell<bool>,
    asked: RefCell<VecDeque<Asked>>,
    /// Every message that was handed to the hub: its number and its message-id.
    sent: RefCell<HashMap<u64, String>>,
    /// What the disk was handed and has not answered for.
    handed: RefCell<VecDeque<Store>>,
    answers: RefCell<Vec<(u64, Stored)>>,
    /// Messages of each device that are on the disk.
    held: RefCell<HashMap<DeviceId, usize>>,
    ids: Cell<u64>,
}

#[derive(Clone, Default)]
struct Hub(Rc<Ends>);

#[derive(Clone, Default)]
struct Files(Rc<Ends>);

fn number(sections: &[u8]) -> (u64, Option<String>) {
    let bytes = Bytes::copy_from_slice(sections);
    let sections = Sections::parse(&bytes, &Limits::WIRE).expect("what was encoded can be read");
    let Body::Data(data) = sections.body() else { panic!("the body is one data section") };
    let id = sections.properties().message_id().map(|id| format!("{id:?}"));
    (std::str::from_utf8(&data).unwrap().trim_end().parse().unwrap(), id)
}

impl Direct for Hub {
    fn is_away(&self) -> bool {
        self.0.away.get()
    }

    fn send(&self, device: &DeviceId, _: &Address, encoded: &[u8], patience: Patience, mut verdict: Verdict) {
        assert!(!patience.through_outage, "the disk waits through outages");
        if self.0.away.get() {
            return; // Reported at once, as released.
        }
        let (number, id) = number(encoded);
        let id = id.expect("what may be sent twice has a name");
        assert_eq!(self.0.sent.borrow_mut().insert(number, id), None, "sent twice");
        verdict.sent();
        self.0.asked.borrow_mut().push_back(Asked { device: device.clone(), number, verdict });
    }
}

impl Disk for Files {
    fn holds(&self, _: &str, device: &DeviceId) -> bool {
        self.0.held.borrow().get(device).is_some_and(|held| *held > 0)
    }

    fn message_id(&self) -> ByteString {
        self.0.ids.set(self.0.ids.get() + 1);
        format!("id-{}", self.0.ids.get()).into()
    }

    fn submit(&self, batch: Vec<Store>) {
        for store in batch {
            *self.0.held.borrow_mut().entry(store.entry.record().device.clone()).or_default() += 1;
            self.0.handed.borrow_mut().push_back(store);
        }
    }

    fn poll(&self, _: &Context<'_>) -> Poll<Vec<(u64, Stored)>> {
        match std::mem::take(&mut *self.0.answers.borrow_mut()) {
            answers if answers.is_empty() => Poll::Pending,
            answers => Poll::Ready(answers),
        }
    }
}

/// What devices were told.
#[derive(Default)]
struct Told(RefCell<HashMap<u64, Outcome>>);

impl Report for Told {
    fn report(&self, ticket: u64, outcome: Outcome) {
        assert_eq!(self.0.borrow_mut().insert(ticket, outcome), None, "message {ticket} was told of twice");
    }
}

struct World {
    ends: Rc<Ends>,
    keeper: Rc<Keeper<Hub, Files>>,
    told: Rc<Told>,
    next: u64,
    now: Instant,
    /// By device: what the hub accepted straight, and what the disk took, in the order in which it happened.
    arrived: HashMap<DeviceId, Vec<(u64, Way)>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Straight,
    Disk { marked: bool },
}

fn delivery(ack: Ack, when_offline: bool) -> Arc<Delivery> {
    let when_offline = when_offline.then_some(WhenOffline {
        max_bytes: Some(1000),
        max_age: Some(Duration::from_secs(60)),
        full: Full::DeadLetterOldest,
    });
    Arc::new(Delivery { ack, priority: 7, when_offline, rule: "m.toml `r`".into() })
}

fn id(device: &str) -> DeviceId {
    DeviceId::new(device).unwrap()
}

impl World {
    fn new() -> Self {
        let ends = Rc::new(Ends::default());
        let keeper = Keeper::new(Hub(Rc::clone(&ends)), Files(Rc::clone(&ends)));
        let (told, now) = (Rc::default(), Instant::now());
        Self { ends, keeper, told, next: 0, now, arrived: HashMap::new() }
    }

    fn send(&mut self, device: &str, delivery: Arc<Delivery>, bytes: usize) -> u64 {
        let number = self.next;
        self.next += 1;
        let address = Address::parse(&format!("devices/{device}/messages/events")).unwrap();
        let mut body = number.to_string().into_bytes();
        body.resize(bytes, b' ');
        let mut message = Message::new(id(device), Direction::Uplink, address, body.into());
        message.durable = true;
        message.ttl = Some(Duration::from_secs(5));
        let verdict = Verdict::new(Rc::clone(&self.told) as Rc<dyn Report>, number);
        let patience = Patience { until: self.now + Duration::from_secs(60), through_outage: true };
        self.keeper.send(message, delivery, patience, verdict, self.now);
        number
    }

    fn poll(&self) -> bool {
        self.keeper.poll(&Context::from_waker(Waker::noop())).is_ready()
    }

    /// The hub answers for the `at`th that it was asked for.
    fn answer(&mut self, at: usize, outcome: Outcome) {
        let Some(Asked { device, number, verdict }) = self.ends.asked.borrow_mut().remove(at) else { return };
        if outcome == Outcome::Accepted {
            self.arrived.entry(device).or_default().push((number, Way::Straight));
        }
        verdict.report(outcome);
    }

    /// The connection is lost: nobody knows what became of what the hub was asked.
    fn lose(&mut self) {
        self.ends.away.set(true);
        let asked = std::mem::take(&mut *self.ends.asked.borrow_mut());
        drop(asked);
    }

    /// The disk answers for the oldest that it was handed.
    fn store(&mut self, stored: Stored) {
        let Some(store) = self.ends.handed.borrow_mut().pop_front() else { return };
        let Entry::Message(record) = &store.entry else { panic!("nothing is dead yet") };
        assert_eq!((record.priority, &*record.rule, &*record.hub), (7, "m.toml `r`", "upstream"));
        assert_eq!((record.durable, record.ttl), (true, Some(Duration::from_secs(5))));
        let (number, id) = number(&record.message);
        let sent = self.ends.sent.borrow().get(&number).cloned();
        assert!(!record.possibly_delivered || sent.is_some(), "{number} was never sent");
        assert!(sent.is_none() || sent == id, "{number} has another name on the disk");
        if stored == Stored::Stored {
            let way = Way::Disk { marked: record.possibly_delivered };
            self.arrived.entry(record.device.clone()).or_default().push((number, way));
        } else {
            *self.ends.held.borrow_mut().get_mut(&record.device).unwrap() -= 1;
        }
        self.ends.answers.borrow_mut().push((store.ticket, stored));
    }

    /// The disk's messages of a device have reached the hub.
    fn drained(&self, device: &str) {
        let handed = self.ends.handed.borrow();
        let waiting = handed.iter().filter(|store| store.entry.record().device == id(device)).count();
        self.ends.held.borrow_mut().insert(id(device), waiting);
    }

    fn told(&self, number: u64) -> Option<Outcome> {
        self.told.0.borrow().get(&number).cloned()
    }
}

fn rejected() -> Outcome {
    Outcome::Rejected(Rejection::new(Reason::Content, "no"))
}

#[test]
fn what_the_hub_takes_never_sees_the_disk() {
    let mut world = World::new();
    let [first, second] = [(); 2].map(|()| world.send("d0", delivery(Ack::OnHubAccept, true), 10));
    world.answer(1, Outcome::Accepted);
    world.answer(0, rejected());
    world.poll();
    assert_eq!((world.told(first), world.told(second)), (Some(rejected()), Some(Outcome::Accepted)));
    assert!(world.ends.handed.borrow().is_empty());
}

#[test]
fn what_is_stored_on_arrival_never_asks_the_hub() {
    let mut world = World::new();
    let number = world.send("d0", delivery(Ack::OnStore, false), 10);
    world.poll();
    assert!(world.ends.asked.borrow().is_empty());
    assert_eq!(world.told(number), None, "the disk has not answered");
    world.store(Stored::Stored);
    world.poll();
    assert_eq!(world.told(number), Some(Outcome::Accepted));
}

#[test]
fn the_disk_takes_over_in_the_order_of_the_device() {
    let mut world = World::new();
    let offline = delivery(Ack::OnHubAccept, true);
    let numbers = [(); 3].map(|()| world.send("d0", offline.clone(), 10));
    // The second comes back, the third is taken: it waits for the first, and the next one goes behind it.
    world.answer(1, Outcome::Released);
    world.answer(1, Outcome::Accepted);
    let behind = world.send("d0", offline.clone(), 10);
    let other = world.send("d1", offline.clone(), 10);
    world.poll();
    assert!(world.ends.handed.borrow().is_empty(), "the hub may still take the first");
    assert_eq!(world.ends.asked.borrow().len(), 2, "another device is not concerned");
    world.lose();
    world.poll();
    let order: Vec<_> = world.ends.handed.borrow().iter().map(|store| store.ticket).collect();
    assert_eq!(order.len(), 4);
    (0..4).for_each(|_| world.store(Stored::Stored));
    world.poll();
    let marked = |marked| Way::Disk { marked };
    assert_eq!(
        world.arrived[&id("d0")],
        [
            (numbers[2], Way::Straight),
            (numbers[0], marked(true)),
            (numbers[1], marked(false)),
            (behind, marked(false))
        ]
    );
    assert_eq!(world.arrived[&id("d1")], [(other, marked(true))]);
    // The hub is back, and the disk still holds the device's: what comes goes behind.
    world.ends.away.set(false);
    world.send("d0", offline.clone(), 10);
    assert!(world.ends.asked.borrow().is_empty());
    world.poll();
    world.store(Stored::Stored);
    world.poll();
    world.drained("d0");
    world.send("d0", offline, 10);
    assert_eq!(world.ends.asked.borrow().len(), 1);
}

#[test]
fn what_the_disk_refuses_is_told() {
    let mut world = World::new();
    for (refusal, expected) in [
        (Refusal::Full { retry_after: RETRY_AFTER }, Some(Reason::NoRoom { retry_after: RETRY_AFTER })),
        (Refusal::TooLarge, Some(Reason::TooLarge)),
        (Refusal::Failed { retry_after: RETRY_AFTER }, None),
    ] {
        let number = world.send("d0", delivery(Ack::OnStore, true), 10);
        world.poll();
        world.store(Stored::Refused(refusal));
        world.poll();
        match (world.told(number), expected) {
            (Some(Outcome::Rejected(rejection)), Some(reason)) => assert_eq!(rejection.reason, reason),
            (Some(Outcome::Released), None) => {}
            (told, _) => panic!("{refusal:?}: {told:?}"),
        }
    }
}

#[test]
fn what_is_kept_is_bounded() {
    let mut world = World::new();
    let large = MAX_KEPT_BYTES / 4;
    let numbers = [(); 4].map(|()| world.send("d0", delivery(Ack::OnHubAccept, true), large));
    assert_eq!(
        world.told(numbers[3]),
        Some(Outcome::Released),
        "with what stands beside it there is no room"
    );
    world.answer(0, Outcome::Accepted);
    let again = world.send("d0", delivery(Ack::OnHubAccept, true), large);
    assert_eq!(world.told(again), None);
}

#[test]
fn one_outcome_each_in_order_and_true() {
    for seed in 0..400 {
        life(seed);
    }
}

fn life(seed: u64) {
    let mut random = Random::new(seed);
    let mut world = World::new();
    let mut acks: HashMap<u64, (DeviceId, Ack)> = HashMap::new();
    for _ in 0..300 {
        let device = *random.pick(&DEVICES);
        match random.below(12) {
            0..5 => {
                let ack = *random.pick(&[Ack::OnHubAccept, Ack::OnHubAccept, Ack::OnStore]);
                let number = world.send(device, delivery(ack, ack == Ack::OnHubAccept), 10);
                acks.insert(number, (id(device), ack));
            }
            5..8 => {
                let outcome = match random.below(8) {
                    0 => rejected(),
                    1 => Outcome::Released,
                    _ => Outcome::Accepted,
                };
                let most = world.ends.asked.borrow().len().clamp(1, 3);
                world.answer(random.below(most), outcome);
            }
            8 => {
                let refused = Refusal::Full { retry_after: RETRY_AFTER };
                let stored = if random.chance(6) { Stored::Refused(refused) } else { Stored::Stored };
                world.store(stored);
            }
            9 => drop(world.poll()),
            10 if world.ends.away.get() => {
                world.ends.away.set(false);
                DEVICES.iter().for_each(|device| world.drained(device));
            }
            10 if random.chance(4) => world.lose(),
            _ => {}
        }
    }
    world.lose();
    world.keeper.close();
    while !world.poll() {
        assert!(
            !world.ends.handed.borrow().is_empty(),
            "seed {seed}: nothing is under way, and it does not end"
        );
        world.store(Stored::Stored);
    }
    let told = world.told.0.borrow();
    assert_eq!(told.len(), acks.len(), "seed {seed}: each has an outcome");
    let arrived: HashMap<u64, Way> = world.arrived.values().flatten().copied().collect();
    for (number, outcome) in told.iter() {
        let accepted = *outcome == Outcome::Accepted;
        assert_eq!(accepted, arrived.contains_key(number), "seed {seed}: {number} is {outcome:?}");
        if acks[number].1 == Ack::OnStore {
            assert_ne!(arrived.get(number), Some(&Way::Straight), "seed {seed}: {number}");
        }
    }
    for (device, arrived) in &world.arrived {
        // What went straight is a window that the hub answers in any order; what the disk took is in order, and behind
        // all that was sent straight before it.
        let disk = arrived.iter().filter(|(_, way)| *way != Way::Straight).map(|(number, _)| *number);
        assert!(disk.is_sorted(), "seed {seed}: {device}: {arrived:?}");
        for (at, (number, way)) in arrived.iter().enumerate() {
            let overtaken = |(later, other): &&(u64, Way)| *other == Way::Straight && later < number;
            if *way != Way::Straight {
                assert_eq!(arrived[at..].iter().find(overtaken), None, "seed {seed}: {device}: {arrived:?}");
            }
        }
    }
}
