//! The keeper on a simulated disk: what workers are told, what goes out, and what a crash leaves.

mod clock;
mod disk;
mod full;
mod letters;
mod lives;
mod order;

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use fieldgate_mappings::delivery::WhenFull;
use fieldgate_mappings::{Address, DeviceId, Direction, Message, Outcome, Reason, Rejection, Value, amqp};

use super::*;
use crate::spool::marking::RESENT;
use crate::spool::{Mailbox, Spool};
use crate::store::sim::{Loss, SimDisk};

const HUB: &str = "upstream";

/// A keeper with one worker and a hub that writes down what it gets.
struct World {
    disk: SimDisk,
    keeper: Keeper<SimDisk>,
    spool: Spool,
    mailbox: Mailbox,
    now: Now,
    settings: Settings,
    tickets: u64,
    /// The hub that devices belong to.
    hub_of: &'static str,
    /// What was sent and has no outcome: the flight, and what the hub reads.
    in_flight: VecDeque<(u64, Message, u32)>,
}

fn settings() -> Settings {
    Settings {
        bounds: Bounds {
            max_bytes: 1 << 20,
            max_records: 10_000,
            device_max_bytes: 1 << 20,
            device_max_records: 10_000,
            window: 8,
            max_in_flight: 32,
            max_in_flight_bytes: 1 << 20,
        },
        dead: DeadBounds { max_bytes: 1 << 20, max_records: 1_000, max_age: 10_000 },
        max_age: Duration::from_secs(1_000),
        commit_delay: Duration::from_millis(2),
    }
}

fn log() -> crate::store::Settings {
    crate::store::Settings { segment_bytes: 256 << 10, max_bytes: 4 << 20, max_batch_bytes: 32 << 10 }
}

fn device(number: usize) -> DeviceId {
    DeviceId::new(&format!("d{number}")).unwrap()
}

fn address(device: &DeviceId) -> Address {
    Address::parse(&format!("devices/{device}/messages/events")).unwrap()
}

/// A message whose body is a text.
fn record(of: usize, priority: u8, body: &str) -> Record {
    let device = device(of);
    let address = address(&device);
    let body = Bytes::copy_from_slice(body.as_bytes());
    let mut sections = BytesMut::new();
    amqp::encode(&Message::new(device.clone(), Direction::Uplink, address.clone(), body), &mut sections);
    Record {
        hub: HUB.into(),
        device,
        address,
        priority,
        stored_at: 0,
        ttl: None,
        max_age: None,
        durable: false,
        possibly_delivered: false,
        rule: "m.toml `r`".into(),
        message: sections.freeze(),
    }
}

impl World {
    fn new(seed: u64) -> Self {
        Self::on(SimDisk::new(seed, 64 << 20), settings())
    }

    fn on(disk: SimDisk, settings: Settings) -> Self {
        let now = Now { at: Instant::now(), unix_ms: 1_795_379_735_123 };
        let (keeper, spool) = Keeper::open(disk.clone(), log(), settings.clone(), now).unwrap();
        let mut world = Self {
            disk,
            keeper,
            spool,
            mailbox: Mailbox::default(),
            now,
            settings,
            tickets: 0,
            hub_of: HUB,
            in_flight: VecDeque::new(),
        };
        world.open(true);
        world
    }

    fn open(&mut self, open: bool) {
        self.keeper.set_open(&HUB.into(), open);
    }

    /// The process dies; another one begins.
    fn restart(&mut self, loss: Loss) {
        self.disk = self.disk.crash(loss);
        let (disk, settings) = (self.disk.clone(), self.settings.clone());
        let (keeper, spool) = Keeper::open(disk, log(), settings, self.now).unwrap();
        (self.keeper, self.spool) = (keeper, spool);
        self.mailbox = Mailbox::default();
        self.in_flight.clear();
        self.open(true);
    }

    fn pass(&mut self, millis: u64) {
        self.now.at += Duration::from_millis(millis);
        self.now.unix_ms += millis;
    }

    /// Hands in a message; gives its ticket.
    fn submit(&mut self, record: Record) -> u64 {
        self.submit_with(record, Limits::default())
    }

    fn submit_with(&mut self, record: Record, limits: Limits) -> u64 {
        self.tickets += 1;
        let store = Store { ticket: self.tickets, entry: Entry::Message(record), limits };
        self.spool.submit(&self.mailbox, vec![store]);
        self.tickets
    }

    /// What the thread does in a turn, but for sending.
    fn turn(&mut self) {
        self.keeper.take(self.spool.shared().take(), self.now);
        let mut steps = 0;
        while self.keeper.handle_timeout(self.now) {
            steps += 1;
            assert!(steps < 5_000, "it gives space back for ever");
        }
    }

    /// Hands in, and waits for the disk.
    fn store(&mut self, record: Record) -> Stored {
        let ticket = self.submit(record);
        self.turn();
        self.pass(2);
        self.turn();
        let answers = self.answers();
        assert_eq!(answers.len(), 1, "{answers:?}");
        assert_eq!(answers[0].0, ticket);
        answers[0].1
    }

    fn answers(&self) -> Vec<(u64, Stored)> {
        match self.mailbox.poll(&Context::from_waker(Waker::noop())) {
            Poll::Ready(answers) => answers,
            Poll::Pending => Vec::new(),
        }
    }

    /// Sends all that may be sent.
    fn send(&mut self) {
        while let Some(sending) = self.keeper.next(self.now) {
            let encoded = Bytes::copy_from_slice(sending.encoded);
            let limits = fieldgate_amqp::codec::Limits::WIRE;
            let sections = fieldgate_amqp::message::Sections::parse(&encoded, &limits).unwrap();
            let count = sections.header().delivery_count;
            assert_eq!(sending.address, address(&sending.device));
            let message = amqp::decode(sending.device, sending.address, &encoded).unwrap();
            self.in_flight.push_back((sending.flight, message, count));
        }
    }

    /// What the hub reads next, with its outcome.
    fn answer(&mut self, outcome: Outcome) -> Option<(String, bool)> {
        let (flight, message, count) = self.in_flight.pop_front()?;
        self.keeper.report(flight, outcome, self.now);
        let marked = message.application_property(RESENT) == Some(&Value::Bool(true));
        assert_eq!(count, u32::from(marked));
        assert!(message.properties.message_id.is_some());
        Some((String::from_utf8(message.body.to_vec()).unwrap(), marked))
    }

    /// What the hub gets if it takes everything.
    fn drain(&mut self) -> Vec<(String, bool)> {
        let mut got = Vec::new();
        for _ in 0..1_000 {
            self.send();
            match self.answer(Outcome::Accepted) {
                Some(message) => got.push(message),
                None => {
                    self.pass(100);
                    self.turn();
                    if self.keeper.queues.totals().records == 0 {
                        return got;
                    }
                }
            }
        }
        panic!("{:?} is never sent", self.keeper.queues.totals());
    }

    fn rejected() -> Outcome {
        Outcome::Rejected(Rejection::new(Reason::Content, "the hub dislikes it"))
    }
}

fn all() -> Which {
    Which::default()
}

use crate::spool::ask::{Answer, Ask, Done, Letter, Which};

impl World {
    fn letters(&mut self) -> Vec<Letter> {
        let ask = Ask::List { which: all(), after: 0, most: 100 };
        let Answer::List(list) = self.keeper.answer(&ask, Hubs::Stopping, self.now) else { panic!() };
        list.letters
    }

    fn done(&mut self, ask: &Ask) -> Done {
        match self.keeper.answer(ask, Hubs::Of(&|_| self.hub_of.into()), self.now) {
            Answer::Done(done) => done,
            other => panic!("{other:?}"),
        }
    }
}
