//! A hub that answers when it is told to, a disk that stores when it is told to, and devices that only listen.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use fieldgate_amqp::codec::{Limits, Value};
use fieldgate_amqp::message::{Body, Sections};
use fieldgate_mappings::delivery::{Ack, Delivery, OnError, WhenOffline};
use fieldgate_mappings::message::{Direction, Message};
use fieldgate_mappings::{Address, ByteString, DeviceId, Outcome, Reason, Rejection, Report, Verdict, amqp};

use crate::outbound::{Direct, Disk, Outbound};
use crate::spool::{Entry, Record, Refusal, Store, Stored};
use crate::upstream::{Hears, Patience};

pub(super) const HUB: &str = "berlin";

/// How the hub is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mood {
    #[default]
    Up,
    NoCredit,
    Away,
}

/// A message that the hub has not answered for.
pub(super) struct Pending {
    pub(super) device: String,
    pub(super) body: String,
    pub(super) patience: Patience,
    pub(super) verdict: Option<Verdict>,
    pub(super) sent: bool,
}

/// A message as the hub has it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Arrived {
    pub(super) device: String,
    pub(super) body: String,
    pub(super) id: Option<String>,
    pub(super) marked: bool,
}

#[derive(Default)]
pub(super) struct Hub {
    pub(super) mood: Mood,
    pub(super) pending: VecDeque<Pending>,
    /// What it took, however it answered.
    pub(super) arrived: Vec<Arrived>,
    /// The message-ids of what was handed to it, by body.
    pub(super) ids: BTreeMap<String, Option<String>>,
    /// Messages that passed as they were made.
    pub(super) plain: usize,
}

#[derive(Default)]
pub(super) struct DiskState {
    pub(super) batches: VecDeque<VecDeque<Store>>,
    pub(super) answers: Vec<(u64, Stored)>,
    /// What it holds for the hub, in its order.
    pub(super) held: VecDeque<Record>,
    /// How many of each device are held or on their way.
    pub(super) of: BTreeMap<String, usize>,
    pub(super) dead: Vec<Record>,
    pub(super) ids: u32,
    waker: Option<Waker>,
}

/// Reports, as the devices hear them.
#[derive(Default)]
pub(super) struct Ears {
    pub(super) heard: RefCell<Vec<(u64, Outcome)>>,
    /// The client with tickets up to this one is gone, and has not said goodbye.
    pub(super) deserted: Cell<u64>,
}

impl Report for Ears {
    fn report(&self, ticket: u64, outcome: Outcome) {
        self.heard.borrow_mut().push((ticket, outcome));
    }

    fn is_wanted(&self, ticket: u64, _: bool) -> bool {
        ticket > self.deserted.get()
    }
}

#[derive(Clone)]
pub(super) struct TestHub(pub(super) Rc<RefCell<Hub>>);
#[derive(Clone)]
pub(super) struct TestDisk(pub(super) Rc<RefCell<DiskState>>);

pub(super) struct World {
    pub(super) outbound: Outbound<TestHub, TestDisk>,
    pub(super) hub: Rc<RefCell<Hub>>,
    pub(super) disk: Rc<RefCell<DiskState>>,
    pub(super) ears: Rc<Ears>,
    pub(super) now: Instant,
}

pub(super) fn device(name: &str) -> DeviceId {
    DeviceId::new(name).unwrap()
}

pub(super) fn spooling() -> Delivery {
    Delivery {
        rule: "m.toml:1 `r`".into(),
        ack: Ack::OnHubAccept,
        priority: 4,
        when_offline: Some(WhenOffline::default()),
        on_error: OnError::Reject,
    }
}

pub(super) fn storing() -> Delivery {
    Delivery { ack: Ack::OnStore, when_offline: None, ..spooling() }
}

pub(super) fn burying() -> Delivery {
    Delivery { on_error: OnError::DeadLetter, when_offline: None, ..spooling() }
}

pub(super) fn rejected(reason: Reason) -> Outcome {
    Outcome::Rejected(Rejection::new(reason, "no"))
}

pub(super) fn read(encoded: &Bytes) -> (String, Option<String>) {
    let sections = Sections::parse(encoded, &Limits::WIRE).unwrap();
    let Body::Data(body) = sections.body() else { panic!("a data section") };
    let id = match sections.properties().message_id() {
        Some(Value::Str(id)) => Some(id.to_owned()),
        None => None,
        Some(other) => panic!("{other:?}"),
    };
    (String::from_utf8(body.to_vec()).unwrap(), id)
}

impl Direct for TestHub {
    fn send(&self, message: Message, patience: Patience, verdict: Verdict) {
        let mut encoded = BytesMut::new();
        amqp::encode(&message, &mut encoded);
        self.0.borrow_mut().plain += 1;
        self.send_encoded(&message.device, &message.address, &encoded, patience, verdict);
    }

    fn send_encoded(
        &self,
        device: &DeviceId,
        address: &Address,
        encoded: &[u8],
        patience: Patience,
        mut verdict: Verdict,
    ) {
        assert_eq!(address.as_str(), format!("devices/{device}/messages/events"));
        let (body, id) = read(&Bytes::copy_from_slice(encoded));
        let mut hub = self.0.borrow_mut();
        hub.ids.insert(body.clone(), id.clone());
        let device = device.to_string();
        let sent = match hub.mood {
            Mood::Away if !patience.through_outage => return,
            Mood::Away | Mood::NoCredit => false,
            // One device's messages go out in their order.
            Mood::Up => hub.pending.iter().all(|other| other.device != device || other.sent),
        };
        if sent {
            verdict.sent();
        }
        hub.pending.push_back(Pending { device, body, patience, verdict: Some(verdict), sent });
    }

    fn recall(&self, device: &DeviceId) {
        let wanted = |pending: &Pending| {
            let verdict = pending.verdict.as_ref().expect("it has no outcome");
            pending.sent || pending.device != device.as_str() || verdict.is_wanted(false)
        };
        self.0.borrow_mut().pending.retain(wanted);
    }

    fn is_away(&self, _: &DeviceId) -> bool {
        self.0.borrow().mood == Mood::Away
    }

    fn hub_of(&self, _: &DeviceId) -> Arc<str> {
        HUB.into()
    }
}

impl Disk for TestDisk {
    fn holds(&self, hub: &str, device: &DeviceId) -> bool {
        assert_eq!(hub, HUB);
        self.0.borrow().of.contains_key(device.as_str())
    }

    fn submit(&self, batch: Vec<Store>) {
        assert!(!batch.is_empty());
        let mut disk = self.0.borrow_mut();
        for store in &batch {
            if let Entry::Message(record) = &store.entry {
                *disk.of.entry(record.device.to_string()).or_default() += 1;
            }
        }
        disk.batches.push_back(batch.into());
    }

    fn message_id(&self) -> ByteString {
        let mut disk = self.0.borrow_mut();
        disk.ids += 1;
        format!("id-{}", disk.ids).into()
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<Vec<(u64, Stored)>> {
        let mut disk = self.0.borrow_mut();
        if disk.answers.is_empty() {
            disk.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(std::mem::take(&mut disk.answers))
    }
}

impl Hub {
    /// The oldest message of the device that is with the hub.
    pub(super) fn take(&mut self, device: &str) -> Option<Pending> {
        let at = self.pending.iter().position(|pending| pending.device == device && pending.sent)?;
        self.pending.remove(at)
    }

    /// The hub has the message, whatever becomes of the answer.
    pub(super) fn arrives(&mut self, pending: &Pending) {
        let (device, body) = (pending.device.clone(), pending.body.clone());
        let id = self.ids[&body].clone();
        self.arrived.push(Arrived { device, body, id, marked: false });
    }
}

impl DiskState {
    pub(super) fn forget(&mut self, device: &str) {
        let count = self.of.get_mut(device).expect("it is held");
        *count -= 1;
        if *count == 0 {
            self.of.remove(device);
        }
    }

    /// Answers the oldest store of the oldest batch.
    pub(super) fn answer(&mut self, stored: Stored) -> Option<Store> {
        let batch = self.batches.front_mut()?;
        let store = batch.pop_front().expect("no batch is empty");
        if batch.is_empty() {
            self.batches.pop_front();
        }
        self.answers.push((store.ticket, stored));
        match (&store.entry, stored) {
            (Entry::Message(record), Stored::Stored) => self.held.push_back(record.clone()),
            (Entry::Message(record), Stored::Refused(_)) => {
                let device = record.device.to_string();
                self.forget(&device);
            }
            (Entry::DeadLetter(letter), Stored::Stored) => self.dead.push(letter.record.clone()),
            (Entry::DeadLetter(_), Stored::Refused(_)) => {}
        }
        Some(store)
    }
}

impl World {
    pub(super) fn new() -> Self {
        let (hub, disk) = (Rc::default(), Rc::default());
        let outbound = Outbound::new(TestHub(Rc::clone(&hub)), Some(TestDisk(Rc::clone(&disk))));
        Self { outbound, hub, disk, ears: Rc::default(), now: Instant::now() }
    }

    pub(super) fn message(of: &str, body: &str, delivery: Option<Delivery>) -> Message {
        let address = Address::parse(&format!("devices/{of}/messages/events")).unwrap();
        let body = Bytes::copy_from_slice(body.as_bytes());
        let mut message = Message::new(device(of), Direction::Uplink, address, body);
        message.delivery = delivery.map(Arc::new);
        message
    }

    pub(super) fn patience(&self, hears: Hears) -> Patience {
        let until = self.now + Duration::from_secs(30);
        Patience { until, through_outage: hears != Hears::Nothing, in_order: false, hears }
    }

    pub(super) fn send_message(&self, message: Message, hears: Hears, ticket: u64) {
        let verdict = Verdict::new(Rc::clone(&self.ears) as Rc<dyn Report>, ticket);
        self.outbound.send_at(message, self.patience(hears), verdict, || self.now);
    }

    /// The device `d` sends a message that has its ticket as its body.
    pub(super) fn send(&self, ticket: u64, delivery: Delivery, hears: Hears) {
        self.send_message(Self::message("d", &ticket.to_string(), Some(delivery)), hears, ticket);
    }

    pub(super) fn turn(&self) {
        let disk = self.outbound.shared.disk.as_ref().expect("there is a disk");
        self.outbound.turn(disk, &Context::from_waker(Waker::noop()), self.now);
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.turn();
    }

    /// The hub answers the oldest message of `d`.
    pub(super) fn hub_answers(&self, outcome: Outcome) {
        let pending = self.hub.borrow_mut().take("d").expect("a message is with the hub");
        if outcome == Outcome::Accepted {
            self.hub.borrow_mut().arrives(&pending);
        }
        pending.verdict.expect("unanswered").report(outcome);
        self.turn();
    }

    /// The connection to the hub is gone.
    pub(super) fn hub_is_lost(&self) {
        let pending = {
            let mut hub = self.hub.borrow_mut();
            hub.mood = Mood::Away;
            std::mem::take(&mut hub.pending)
        };
        let stays = |pending: &Pending| !pending.sent && pending.patience.through_outage;
        let (kept, lost): (VecDeque<_>, VecDeque<_>) = pending.into_iter().partition(stays);
        self.hub.borrow_mut().pending = kept;
        drop(lost);
        self.turn();
    }

    /// The disk answers the oldest store.
    pub(super) fn disk_answers(&self, stored: Stored) -> Store {
        let store = self.disk.borrow_mut().answer(stored).expect("something is with the disk");
        self.turn();
        store
    }

    /// The disk stores all that it has; gives bodies and marks.
    pub(super) fn disk_stores(&self) -> Vec<(String, bool)> {
        let mut all = Vec::new();
        while !self.disk.borrow().batches.is_empty() {
            if let Entry::Message(record) = self.disk_answers(Stored::Stored).entry {
                all.push((read(&record.message).0, record.possibly_delivered));
            }
        }
        all
    }

    /// The hub takes all that the disk holds.
    pub(super) fn drain(&self) {
        let mut disk = self.disk.borrow_mut();
        while let Some(record) = disk.held.pop_front() {
            disk.forget(record.device.as_str());
        }
    }

    pub(super) fn heard(&self) -> Vec<(u64, Outcome)> {
        self.ears.heard.take()
    }
}

pub(super) fn full() -> Stored {
    Stored::Refused(Refusal::Full { retry_after: Duration::from_secs(7) })
}
