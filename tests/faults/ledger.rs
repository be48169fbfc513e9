//! What each device sent and was told, and what has come to the hub.
//!
//! A device numbers its messages. Each time that it sends one, for the first time or again, this is a *sending* with a
//! serial of its own: what the gateway may do with a sending, and what only a device may do, can be told apart.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::laws::{Broken, Law};
use super::payload::{self, Key};

/// How a device's rule says when its messages count as delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// When the hub has accepted.
    Direct,
    /// When the gateway's disk has it.
    OnStore,
    /// When the hub has accepted, or while it is away, when the disk has it.
    WhenOffline,
}

/// What a device is told of a sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Acknowledged,
    /// Not taken, in words of the protocol. The device sends it again later.
    Refused,
}

/// The marks that a message bears at the hub.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    /// The property that says that it may have come before.
    pub(crate) resent: bool,
    pub(crate) delivery_count: u32,
    pub(crate) message_id: Option<String>,
}

impl Marks {
    fn are_of_a_repeat(&self) -> bool {
        self.resent && self.delivery_count > 0
    }
}

#[derive(Debug)]
struct Sending {
    number: u32,
    begun: Instant,
    /// In how many of the gateway's lives it went out, and in which last. A datagram may do so in several, and then
    /// the gateway cannot know that it is the same.
    lives: u32,
    last_life: u64,
    told: Option<Told>,
    /// How often it has come to the hub without a mark, and how often at all.
    unmarked: u32,
    arrivals: u32,
    message_ids: Vec<Option<String>>,
    accepted: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Number {
    acknowledged: bool,
    refused: bool,
    arrived: bool,
}

#[derive(Debug)]
struct Account {
    kind: Kind,
    sendings: Vec<Sending>,
    numbers: Vec<Number>,
    /// The last serial, and the last number, of which the first delivery has come.
    last_serial: Option<usize>,
    last_number: Option<u32>,
}

/// An acknowledgement: to what kind of device, when, and how long after the sending.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Acknowledgement {
    pub(crate) kind: Kind,
    pub(crate) at: Instant,
    pub(crate) after: Duration,
}

/// The account of one run.
#[derive(Debug)]
pub(crate) struct Ledger {
    /// Times are told from here on.
    begun: Instant,
    devices: Vec<Account>,
    pub(crate) broken: Broken,
    pub(crate) acknowledgements: Vec<Acknowledgement>,
    /// How many sendings the hub has accepted, each counted once, and how many of them of devices whose messages may
    /// wait on the disk.
    pub(crate) accepted: usize,
    pub(crate) accepted_of_spools: usize,
    pub(crate) refusals: u64,
    /// How many of them to devices whose messages may wait on the disk.
    pub(crate) refusals_of_spools: u64,
    /// Messages that have come to the hub more than once, through the gateway's doing.
    pub(crate) repeats: u64,
    /// Numbers that were begun and are not acknowledged.
    open: usize,
    /// Sendings that are acknowledged and have not come to the hub.
    missing: usize,
    /// Messages that were refused and have come all the same, as they may where syncs fail.
    pub(crate) left_over: u64,
    /// Syncs fail in this run: what was refused for that may be on the disk after a crash all the same. Then it comes
    /// late, as a repeat.
    pub(crate) syncs_fail: bool,
    changed: Arc<Notify>,
}

/// A ledger that devices and the hub write, each on a thread of its own.
#[derive(Clone, Debug)]
pub(crate) struct Shared(Arc<Mutex<Ledger>>, Arc<Notify>);

impl Shared {
    pub(crate) fn new(kinds: &[Kind]) -> Self {
        let ledger = Ledger::new(kinds);
        let changed = Arc::clone(&ledger.changed);
        Self(Arc::new(Mutex::new(ledger)), changed)
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().expect("whoever writes the ledger does not panic")
    }

    /// Waits until the ledger says so; whether it did in time.
    pub(crate) async fn until(&self, within: Duration, is_it: impl Fn(&Ledger) -> bool) -> bool {
        let waiting = async {
            loop {
                let changed = self.1.notified();
                if is_it(&self.lock()) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(within, waiting).await.is_ok()
    }
}

impl Ledger {
    pub(crate) fn new(kinds: &[Kind]) -> Self {
        let account = |kind: &Kind| Account {
            kind: *kind,
            sendings: Vec::new(),
            numbers: Vec::new(),
            last_serial: None,
            last_number: None,
        };
        Self {
            begun: Instant::now(),
            devices: kinds.iter().map(account).collect(),
            broken: Broken::default(),
            acknowledgements: Vec::new(),
            accepted: 0,
            accepted_of_spools: 0,
            refusals: 0,
            refusals_of_spools: 0,
            repeats: 0,
            open: 0,
            missing: 0,
            left_over: 0,
            syncs_fail: false,
            changed: Arc::default(),
        }
    }

    /// A device makes a new message; gives its number.
    pub(crate) fn make(&mut self, device: usize) -> u32 {
        self.open += 1;
        let numbers = &mut self.devices[device].numbers;
        numbers.push(Number::default());
        numbers.len() as u32 - 1
    }

    /// A device sends the message of this number; gives what travels.
    pub(crate) fn send(&mut self, device: usize, number: u32, now: Instant) -> Key {
        let sendings = &mut self.devices[device].sendings;
        sendings.push(Sending {
            number,
            begun: now,
            lives: 0,
            last_life: 0,
            told: None,
            unmarked: 0,
            arrivals: 0,
            message_ids: Vec::new(),
            accepted: false,
        });
        Key { device: device as u32, number, serial: sendings.len() as u32 - 1 }
    }

    /// The bytes of a sending go out, to the gateway in this life of it.
    pub(crate) fn out(&mut self, key: Key, life: u64) {
        let sending = &mut self.devices[key.device as usize].sendings[key.serial as usize];
        if sending.lives == 0 || sending.last_life != life {
            (sending.lives, sending.last_life) = (sending.lives + 1, life);
        }
    }

    /// A device is told what became of a sending.
    pub(crate) fn told(&mut self, key: Key, told: Told, now: Instant) {
        let account = &mut self.devices[key.device as usize];
        let sending = &mut account.sendings[key.serial as usize];
        if let Some(before) = sending.told.replace(told) {
            let case = format!("{key}: {before:?}, then {told:?}");
            self.broken.add(Law::ToldOnce, || case);
            return;
        }
        let number = &mut account.numbers[sending.number as usize];
        match told {
            Told::Refused => {
                self.refusals += 1;
                self.refusals_of_spools += u64::from(account.kind != Kind::Direct);
                number.refused = true;
            }
            Told::Acknowledged => {
                let after = now.saturating_duration_since(sending.begun);
                self.acknowledgements.push(Acknowledgement { kind: account.kind, at: now, after });
                self.missing += usize::from(!sending.accepted);
                self.open -= usize::from(!std::mem::replace(&mut number.acknowledged, true));
            }
        }
        self.changed.notify_waiters();
    }

    /// A message has come to the hub, whole, over the link of this device. Gives its key, where it is one of ours.
    pub(crate) fn arrived(&mut self, address: &str, body: &[u8], marks: Marks) -> Option<Key> {
        let found = payload::read(body).filter(|key| {
            let account = self.devices.get(key.device as usize);
            let sending = account.and_then(|account| account.sendings.get(key.serial as usize));
            sending.is_some_and(|sending| sending.number == key.number && sending.lives > 0)
                && address.trim_start_matches('/') == payload::address(key.device)
        });
        let Some(key) = found else {
            let start: Vec<u8> = body.iter().copied().take(16).collect();
            let case = format!("{} bytes to {address:?}, beginning with {start:?}", body.len());
            self.broken.add(Law::SentByADevice, || case);
            return None;
        };
        let account = &mut self.devices[key.device as usize];
        let sending = &account.sendings[key.serial as usize];
        let is_left_over = self.syncs_fail && sending.told == Some(Told::Refused) && marks.are_of_a_repeat();
        if is_left_over {
            self.left_over += 1;
        } else if sending.arrivals == 0 {
            account.in_order(key, self.begun, &mut self.broken);
        } else {
            self.repeats += 1;
        }
        let kind = account.kind;
        account.sendings[key.serial as usize].marked(kind, key, marks, &mut self.broken);
        Some(key)
    }

    /// The hub has taken a message, and says so next.
    pub(crate) fn accepted(&mut self, key: Key) {
        let account = &mut self.devices[key.device as usize];
        let sending = &mut account.sendings[key.serial as usize];
        if !std::mem::replace(&mut sending.accepted, true) {
            self.accepted += 1;
            self.accepted_of_spools += usize::from(account.kind != Kind::Direct);
            self.missing -= usize::from(sending.told == Some(Told::Acknowledged));
            self.changed.notify_waiters();
        }
    }

    /// Messages that were made and are not acknowledged.
    pub(crate) fn open(&self) -> usize {
        self.open
    }

    /// Sendings that are acknowledged and not at the hub.
    pub(crate) fn missing(&self) -> usize {
        self.missing
    }

    /// What of all that was acknowledged is not at the hub, at the end of a run.
    pub(crate) fn close(&mut self) {
        for (device, account) in self.devices.iter().enumerate() {
            for (serial, sending) in account.sendings.iter().enumerate() {
                if sending.told == Some(Told::Acknowledged) && !sending.accepted {
                    let key = Key { device: device as u32, number: sending.number, serial: serial as u32 };
                    self.broken.add(Law::AcknowledgedArrives, || {
                        format!("{key}, {:?}, came {} times", account.kind, sending.arrivals)
                    });
                }
            }
        }
    }

    /// How many acknowledgements the devices of each kind have had.
    pub(crate) fn acknowledged(&self, kind: Kind) -> usize {
        let accounts = self.devices.iter().filter(|account| account.kind == kind);
        accounts.map(|account| account.numbers.iter().filter(|number| number.acknowledged).count()).sum()
    }

    /// Devices that have had nothing acknowledged.
    pub(crate) fn unheard(&self) -> usize {
        let heard = |account: &&Account| account.numbers.iter().any(|number| number.acknowledged);
        self.devices.len() - self.devices.iter().filter(heard).count()
    }

    /// How often messages were sent.
    pub(crate) fn sendings(&self) -> usize {
        self.devices.iter().map(|account| account.sendings.len()).sum()
    }
}

impl Account {
    /// The first delivery of a sending has come: is it its turn?
    fn in_order(&mut self, key: Key, begun: Instant, broken: &mut Broken) {
        let serial = key.serial as usize;
        match self.last_serial {
            Some(last) if last > serial => {
                let word = |serial: usize| self.sendings[serial].in_words(begun);
                broken.add(Law::InOrder, || {
                    let now = begun.elapsed().as_secs_f64();
                    format!("{key} ({}) at {now:.3} after serial {last} ({})", word(serial), word(last))
                });
            }
            _ => self.last_serial = Some(serial),
        }
        let number = &mut self.numbers[key.number as usize];
        let first = !std::mem::replace(&mut number.arrived, true);
        match self.last_number {
            // A device that was refused goes on with what it had sent already.
            Some(last) if last > key.number => {
                if first && !number.refused {
                    broken.add(Law::InOrder, || format!("{key} after number {last}"));
                }
            }
            _ => self.last_number = Some(key.number),
        }
    }
}

impl Sending {
    /// What was done with it, for a person.
    fn in_words(&self, begun: Instant) -> String {
        let at = self.begun.saturating_duration_since(begun).as_secs_f64();
        format!("sent at {at:.3} in life {}, told {:?}", self.last_life, self.told)
    }

    /// A delivery of it has come: does it bear the marks that it should?
    fn marked(&mut self, kind: Kind, key: Key, marks: Marks, broken: &mut Broken) {
        let is_marked = marks.are_of_a_repeat();
        self.arrivals += 1;
        self.unmarked += u32::from(!is_marked);
        if self.unmarked > self.lives {
            broken.add(Law::RepeatsAreMarked, || {
                format!("{key}, {kind:?}: delivery {} of it bears {marks:?}", self.arrivals)
            });
        }
        if kind != Kind::Direct && marks.message_id.is_none() {
            broken.add(Law::SameMessageId, || format!("{key}, {kind:?}: no message-id"));
        }
        if !self.message_ids.contains(&marks.message_id) {
            self.message_ids.push(marks.message_id);
        }
        // A datagram that met several gateways is a message of its own for each.
        let is_repeat = self.arrivals > self.lives;
        if self.message_ids.len() > self.lives as usize || is_repeat && self.message_ids.contains(&None) {
            broken.add(Law::SameMessageId, || format!("{key}, {kind:?}: {:?}", self.message_ids));
        }
    }
}
