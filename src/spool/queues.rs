//! Which messages wait, in which order they are sent, and what happens to those that are not taken. Pure: it opens no
//! file, asks no clock, and knows messages by number, place and size only.
//!
//! Order is per hub, device and priority. The life of a message here:
//!
//! ```text
//!  admit ─▶ admitted ─ stored ─▶ waiting ─ next ─▶ in flight ─ accepted ─▶ gone (settle it in the log)
//!             │                   │  ▲                │
//!             └ given back        │  └── marked ──────┤ neither: when all that is in flight of the queue has its outcome
//!               (not on the disk) │                   │
//!                                 └─ expired, ────────┴ rejected ─▶ dying ─ buried ─▶ gone (settle it in the log)
//!                                    made room                     (its dead letter is on the disk)
//! ```
//!
//! **What a crash may cost.** A message that was sent may be sent again after a crash, so it must be marked then. Nobody
//! writes down what is sent; instead no queue is ever further ahead of the disk than [`AHEAD`] messages: those that are
//! in flight, and those whose end is not synced. After a start the first [`AHEAD`] of each queue are marked.

mod ending;
mod entry;
mod outgoing;
mod queue;
#[cfg(test)]
mod tests;
mod turns;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::mem;
use std::sync::Arc;
use std::time::Instant;

use fieldgate_mappings::address::DeviceId;
use fieldgate_mappings::delivery::WhenFull;
use slab::Slab;

use crate::store::Place;

use super::record::{DeadReason, Limits};
use entry::Entry;
use queue::Queue;
use turns::Turns;

pub(super) use ending::Ended;
pub(super) use outgoing::Send;

/// How many messages of a queue may be ahead of the disk. More would mark more after a start; fewer would make a single
/// device wait for the disk while it drains.
const AHEAD: u32 = 512;
/// Messages that wait for their dead letter to be written. What makes room or expires waits while there are as many.
const MAX_DYING: usize = 4_096;
/// What is kept beside a message's body on the disk.
const OVERHEAD_BYTES: u64 = 16;

/// The bounds.
#[derive(Clone, Debug)]
pub(super) struct Bounds {
    /// Bytes of all messages, as they lie on the disk.
    pub(super) max_bytes: u64,
    /// Messages; each takes 24 bytes of memory.
    pub(super) max_records: u64,
    /// Of one device, where its rule says nothing else.
    pub(super) device_max_bytes: u64,
    pub(super) device_max_records: u64,
    /// Messages of one queue that are in flight.
    pub(super) window: usize,
    /// Messages and bytes of one hub that are in flight.
    pub(super) max_in_flight: usize,
    pub(super) max_in_flight_bytes: u64,
}

/// A message that wants in.
#[derive(Clone, Copy, Debug)]
pub(super) struct New<'a> {
    pub(super) hub: &'a Arc<str>,
    pub(super) device: &'a DeviceId,
    pub(super) priority: u8,
    /// Of its record's body.
    pub(super) bytes: usize,
    /// Milliseconds since 1970.
    pub(super) stored_at: u64,
    pub(super) expires_at: u64,
    pub(super) marked: bool,
    pub(super) limits: Limits,
}

/// There is no room for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoRoom;

/// A message that has its room, and is on its way to the disk: [`Queues::stored`] or [`Queues::give_back`].
#[derive(Debug)]
#[must_use = "the room is taken until it is said what became of the message"]
pub(super) struct Admitted {
    queue: u32,
    entry: Entry,
}

/// A message that becomes a dead letter: [`Queues::buried`] or [`Queues::not_buried`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "it is neither a message nor a dead letter until somebody says what became of it"]
pub(super) struct Dying {
    pub(super) seq: u64,
    pub(super) place: Place,
    pub(super) reason: DeadReason,
    /// It may have been sent before.
    pub(super) marked: bool,
    queue: u32,
    bytes: u64,
}

/// What the spool holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) records: u64,
    pub(super) bytes: u64,
}

/// The machine.
#[derive(Debug)]
pub(super) struct Queues {
    bounds: Bounds,
    hubs: Vec<Hub>,
    devices: Slab<Device>,
    queues: Slab<Queue>,
    flights: Slab<InFlight>,
    dying: VecDeque<Dying>,
    /// With those that somebody is just burying.
    dying_count: usize,
    /// Queues with entries that went and are not synced.
    unsynced: Vec<u32>,
    /// One of them could send if they were.
    sync_wanted: bool,
    /// Whose messages have left since somebody looked.
    left: Vec<(Arc<str>, DeviceId)>,
    paused: BinaryHeap<Reverse<(Instant, u32)>>,
    /// Admitted, waiting, in flight and dying.
    totals: Totals,
    /// The hub that is asked first next time.
    next_hub: usize,
}

#[derive(Debug)]
struct Hub {
    name: Arc<str>,
    devices: HashMap<DeviceId, u32>,
    turns: Turns,
    /// Messages may be sent to it.
    open: bool,
    in_flight: usize,
    in_flight_bytes: u64,
}

#[derive(Debug)]
struct Device {
    hub: usize,
    id: DeviceId,
    /// Admitted, waiting and in flight.
    totals: Totals,
    /// By priority; a few.
    queues: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    queue: u32,
    seq: u64,
}

impl Totals {
    fn add(&mut self, bytes: u64) {
        self.records += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: u64) {
        self.records -= 1;
        self.bytes -= bytes;
    }
}

impl Queues {
    /// Nothing is spooled.
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            hubs: Vec::new(),
            devices: Slab::new(),
            queues: Slab::new(),
            flights: Slab::new(),
            dying: VecDeque::new(),
            dying_count: 0,
            unsynced: Vec::new(),
            sync_wanted: false,
            left: Vec::new(),
            paused: BinaryHeap::new(),
            totals: Totals::default(),
            next_hub: 0,
        }
    }

    /// All that is held.
    pub(super) fn totals(&self) -> Totals {
        self.totals
    }

    /// How many devices have something here.
    pub(super) fn devices(&self) -> usize {
        self.devices.len()
    }

    /// How many messages are in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// When the oldest message was stored that is first of its queue, in seconds since 1970.
    pub(super) fn oldest(&self) -> Option<u32> {
        self.queues.iter().filter_map(|(_, queue)| queue.entries.front()).map(Entry::stored).min()
    }

    /// Each hub that something is or was held for: whether it is open, and what is held.
    pub(super) fn hubs(&self) -> impl Iterator<Item = (&Arc<str>, bool, Totals)> {
        self.hubs.iter().map(|hub| {
            let mut totals = Totals::default();
            for &device in hub.devices.values() {
                let device = &self.devices[device as usize];
                totals.records += device.totals.records;
                totals.bytes += device.totals.bytes;
            }
            (&hub.name, hub.open, totals)
        })
    }

    /// Each device that something is held of, with how many messages.
    pub(super) fn each_device(&self) -> impl Iterator<Item = (&Arc<str>, &DeviceId, u64)> {
        self.devices
            .iter()
            .map(|(_, device)| (&self.hubs[device.hub].name, &device.id, device.totals.records))
    }

    // Coming in.

    /// Takes room for a message. Where its rule says so, older messages of the device make room and are dying then.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn admit(&mut self, new: New<'_>) -> Result<Admitted, NoRoom> {
        let bytes = new.bytes as u64 + OVERHEAD_BYTES;
        if self.totals.records >= self.bounds.max_records || self.totals.bytes + bytes > self.bounds.max_bytes
        {
            return Err(NoRoom);
        }
        let max_bytes = new.limits.max_bytes.unwrap_or(self.bounds.device_max_bytes);
        if bytes > max_bytes {
            return Err(NoRoom);
        }
        while let Some(device) = self.known_device(new.hub, new.device)
            && let totals = self.devices[device as usize].totals
            && (totals.bytes + bytes > max_bytes || totals.records >= self.bounds.device_max_records)
        {
            let gives_way = new.limits.full == WhenFull::DeadLetterOldest;
            if !gives_way || !self.make_room(device, new.priority) {
                return Err(NoRoom);
            }
        }
        let queue = self.queue(new.hub, new.device, new.priority);
        let entry = Entry::new(bytes, new.stored_at, new.expires_at, new.marked);
        self.account(queue, entry.bytes());
        self.queues[queue as usize].admitted += 1;
        Ok(Admitted { queue, entry })
    }

    /// The disk has it. In the order of sequence numbers.
    pub(super) fn stored(&mut self, admitted: Admitted, seq: u64, place: Place) {
        let Admitted { queue: at, entry } = admitted;
        let queue = &mut self.queues[at as usize];
        queue.admitted -= 1;
        queue.push(entry.at(seq, place));
        self.consider(at);
    }

    /// The disk does not have it.
    pub(super) fn give_back(&mut self, admitted: Admitted) {
        let Admitted { queue: at, entry } = admitted;
        self.queues[at as usize].admitted -= 1;
        self.unaccount(at, entry.bytes());
        self.forget_if_idle(at);
    }

    /// Whose message that is.
    pub(super) fn whose(&self, admitted: &Admitted) -> (Arc<str>, DeviceId) {
        let device = &self.devices[self.queues[admitted.queue as usize].device as usize];
        (Arc::clone(&self.hubs[device.hub].name), device.id.clone())
    }

    /// A message that was found in the log; after all of them [`recovered`](Self::recovered).
    pub(super) fn recover(&mut self, new: New<'_>, seq: u64, place: Place) {
        let queue = self.queue(new.hub, new.device, new.priority);
        let entry = Entry::new(new.bytes as u64 + OVERHEAD_BYTES, new.stored_at, new.expires_at, new.marked);
        self.account(queue, entry.bytes());
        self.queues[queue as usize].push(entry.at(seq, place));
    }

    /// All messages of the log are there.
    pub(super) fn recovered(&mut self) {
        let all: Vec<u32> = self.queues.iter().map(|(at, _)| at as u32).collect();
        for at in all {
            self.queues[at as usize].recovered(AHEAD as usize);
            self.consider(at);
        }
    }

    /// The log has put a record elsewhere. False if no message here has it.
    pub(super) fn moved(&mut self, hub: &str, device: &str, priority: u8, seq: u64, place: Place) -> bool {
        if let Some(dying) = self.dying.iter_mut().find(|dying| dying.seq == seq) {
            dying.place = place;
            return true;
        }
        let Some(hub) = self.hubs.iter().find(|known| *known.name == *hub) else { return false };
        let Some(device) = hub.devices.get(device) else { return false };
        let queues = &self.devices[*device as usize].queues;
        let at = queues.iter().find(|at| self.queues[**at as usize].priority == priority).copied();
        at.is_some_and(|at| self.queues[at as usize].moved(seq, place))
    }

    /// As [`moved`](Self::moved), when nobody knows whose record it is: all queues are looked through.
    pub(super) fn moved_somewhere(&mut self, seq: u64, place: Place) {
        if let Some(dying) = self.dying.iter_mut().find(|dying| dying.seq == seq) {
            dying.place = place;
        }
        self.queues.iter_mut().any(|(_, queue)| queue.moved(seq, place));
    }

    /// The number of a message in flight.
    pub(super) fn seq_of(&self, flight: u64) -> Option<u64> {
        self.flights.get(flight as usize).map(|flight| flight.seq)
    }

    /// Whose messages have left, one for each message.
    pub(super) fn take_left(&mut self) -> Vec<(Arc<str>, DeviceId)> {
        mem::take(&mut self.left)
    }

    // Bookkeeping.

    fn hub(&mut self, name: &Arc<str>) -> usize {
        if let Some(at) = self.hubs.iter().position(|hub| hub.name == *name) {
            return at;
        }
        self.hubs.push(Hub {
            name: Arc::clone(name),
            devices: HashMap::new(),
            turns: Turns::default(),
            open: false,
            in_flight: 0,
            in_flight_bytes: 0,
        });
        self.hubs.len() - 1
    }

    fn known_device(&self, hub: &Arc<str>, device: &DeviceId) -> Option<u32> {
        self.hubs.iter().find(|known| known.name == *hub)?.devices.get(device).copied()
    }

    /// The queue, made where there is none.
    fn queue(&mut self, hub: &Arc<str>, id: &DeviceId, priority: u8) -> u32 {
        let hub = self.hub(hub);
        let device = match self.hubs[hub].devices.get(id) {
            Some(device) => *device,
            None => {
                let device = Device { hub, id: id.clone(), totals: Totals::default(), queues: Vec::new() };
                let at = self.devices.insert(device) as u32;
                self.hubs[hub].devices.insert(id.clone(), at);
                at
            }
        };
        let queues = &self.devices[device as usize].queues;
        let known = queues.iter().find(|at| self.queues[**at as usize].priority == priority);
        if let Some(at) = known {
            return *at;
        }
        let at = self.queues.insert(Queue::new(device, priority)) as u32;
        self.devices[device as usize].queues.push(at);
        at
    }

    fn account(&mut self, queue: u32, bytes: u64) {
        let device = self.queues[queue as usize].device;
        self.devices[device as usize].totals.add(bytes);
        self.totals.add(bytes);
    }

    fn unaccount(&mut self, queue: u32, bytes: u64) {
        let device = self.queues[queue as usize].device;
        self.devices[device as usize].totals.remove(bytes);
        self.totals.remove(bytes);
    }

    /// Lets the oldest message of the least priority die, one that is not above `priority`. False if there is none that
    /// may.
    fn make_room(&mut self, device: u32, priority: u8) -> bool {
        let mut queues = self.devices[device as usize].queues.clone();
        queues.retain(|at| self.queues[*at as usize].priority <= priority);
        queues.sort_unstable_by_key(|at| self.queues[*at as usize].priority);
        queues.into_iter().any(|at| {
            let may = self.may_die(at) > 0;
            let oldest = may.then(|| self.queues[at as usize].drop_oldest()).flatten();
            oldest.is_some_and(|oldest| {
                self.die(at, &oldest, DeadReason::MadeRoom);
                true
            })
        })
    }

    /// Puts a queue into the ring, if it could send.
    fn consider(&mut self, at: u32) {
        let queue = &mut self.queues[at as usize];
        if !queue.in_ring && queue.can_send(self.bounds.window, AHEAD) {
            queue.in_ring = true;
            let (priority, debt) = (queue.priority, mem::take(&mut queue.debt));
            let hub = self.devices[queue.device as usize].hub;
            self.hubs[hub].turns.join(at, priority, debt);
        }
        self.sync_wanted |= self.queues[at as usize].waits_for_sync(self.bounds.window, AHEAD);
    }

    fn forget_if_idle(&mut self, at: u32) {
        let queue = &self.queues[at as usize];
        if queue.in_ring || !queue.is_idle() {
            return;
        }
        let number = queue.device;
        self.queues.remove(at as usize);
        let device = &mut self.devices[number as usize];
        device.queues.retain(|queue| *queue != at);
        if device.queues.is_empty() {
            let device = self.devices.remove(number as usize);
            let devices = &mut self.hubs[device.hub].devices;
            devices.remove(&device.id);
            if devices.len() < devices.capacity() / 8 {
                devices.shrink_to(devices.len() * 2);
            }
        }
    }
}
