//! The order of each device's messages over both ways: which went to the hub, which are for the disk and when. Pure: it
//! knows no hub, no disk and no clock.
//!
//! A lane is one device's messages in the order in which they came, from the oldest without an end.
//!
//! ```text
//!           ┌───────────────────────────────┐
//!  kept ──▶ Direct ── accepted, rejected ──▶ end
//!    │         └─ released, unknown ─▶ Waiting ─▶ Submitted ─ stored ─▶ end
//!    └──────────────────────────────▶     ▲           │
//!                                         └─ no room ─┘
//! ```
//!
//! - While something of a lane is `Waiting` or `Submitted`, nothing new of it goes direct.
//! - A message is submitted when nothing before it is `Direct`: the disk gets a lane's messages in their order.
//! - One batch of a lane is with the disk at a time: when that takes no more, nothing later has overtaken.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use fieldgate_mappings::address::DeviceId;
use fieldgate_mappings::outcome::Outcome;
use slab::Slab;

use crate::spool::{Refusal, Store, Stored};
use crate::telemetry::emit;

use super::kept::{Kept, State, Turn};
use super::telemetry::{Because, StoreRefused, stored_because};

/// Bytes of messages that are kept until their end, in each worker, with what stands beside them.
pub(super) const MAX_KEPT_BYTES: usize = 32 * 1024 * 1024;
/// How often a lane asks whether there is room again.
pub(super) const ROOM_RETRY: Duration = Duration::from_secs(1);

/// All lanes of one worker.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: HashMap<DeviceId, Lane>,
    /// By the lower half of their tickets; the upper half is a stamp, so that a ticket means one message only.
    kept: Slab<(u32, Kept)>,
    stamp: u32,
    bytes: usize,
    /// Lanes that may have something to submit, or nothing at all.
    touched: Vec<DeviceId>,
    /// Dead letters for the disk.
    dead: Vec<Store>,
    /// Lanes that found no room, and when they ask again, in that order.
    blocked: VecDeque<(Instant, DeviceId)>,
    /// When what the hub has not answered for goes to the disk.
    give_up_at: Option<Instant>,
    given_up: bool,
    /// The gateway stops: nobody waits for room any more.
    stopping: bool,
}

/// One device's messages.
#[derive(Debug, Default)]
struct Lane {
    /// In the order in which they came; some have had their end.
    order: VecDeque<u64>,
    /// How many wait for the disk.
    waiting: usize,
    /// How many the disk is to answer for.
    submitted: usize,
    /// It stands among the touched.
    touched: bool,
    /// There was no room: nothing is submitted until it asks again.
    blocked: bool,
    /// There was no room the last time: one message alone tries whether there is.
    careful: bool,
}

impl Lane {
    /// Forgets the oldest messages that have had their end, or that no other waits for.
    fn forget_ended(&mut self, kept: &mut Slab<(u32, Kept)>) {
        let ended =
            |ticket: &mut u64| get(kept, *ticket).is_none_or(|kept| matches!(kept.state, State::Burying(_)));
        let mut ended = ended;
        while self.order.pop_front_if(&mut ended).is_some() {}
    }

    fn touch(&mut self, device: &DeviceId, touched: &mut Vec<DeviceId>) {
        if !self.touched {
            self.touched = true;
            touched.push(device.clone());
        }
    }
}

/// As much is kept as may be.
#[derive(Debug)]
pub(super) struct TooMuch {
    /// So much.
    pub(super) bytes: usize,
}

impl Lanes {
    /// Whether something of the device is for the disk or on its way there.
    pub(super) fn holds(&self, device: &DeviceId) -> bool {
        self.lanes.get(device).is_some_and(|lane| lane.waiting + lane.submitted > 0)
    }

    /// Whether the gateway stops, and the hub is not waited for any more.
    pub(super) fn has_given_up(&self) -> bool {
        self.given_up
    }

    /// Whether the device of a message still waits for its end.
    pub(super) fn is_wanted(&self, ticket: u64, may_be_there: bool) -> bool {
        let kept = self.kept.get(place(ticket)).filter(|(stamp, _)| u64::from(*stamp) == ticket >> 32);
        kept.is_none_or(|(_, kept)| kept.is_wanted(may_be_there))
    }

    /// Ends what of the device waits and is not wanted any more. True if there was something.
    pub(super) fn recall(&mut self, device: &DeviceId) -> bool {
        let Some(lane) = self.lanes.get_mut(device) else { return false };
        let mut unwanted = Vec::new();
        for &ticket in &lane.order {
            let kept = get(&mut self.kept, ticket).filter(|kept| kept.state == State::Waiting);
            if let Some(kept) = kept.filter(|kept| !kept.is_wanted(false)) {
                lane.waiting -= 1;
                unwanted.push((ticket, kept.unwanted()));
            }
        }
        let any = !unwanted.is_empty();
        for (ticket, outcome) in unwanted {
            self.end(ticket, outcome);
        }
        any
    }

    /// Whether everything has its end.
    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Puts a message behind the others of its device. Gives its ticket.
    ///
    /// # Errors
    /// When too much is kept; the message is released.
    pub(super) fn keep(&mut self, mut kept: Kept) -> Result<u64, TooMuch> {
        if self.bytes + kept.bytes() > MAX_KEPT_BYTES {
            return Err(TooMuch { bytes: self.bytes });
        }
        self.bytes += kept.bytes();
        self.stamp = self.stamp.wrapping_add(1);
        // The bound in bytes keeps places far below 2^32.
        let ticket = u64::from(self.stamp) << 32 | self.kept.vacant_key() as u64;
        if kept.state == State::Direct {
            kept.on_its_way(State::Direct);
        }
        let device = &kept.record.device;
        // Two look-ups where `entry` would have one, and no clone of the id for a lane that is known.
        if !self.lanes.contains_key(device) {
            self.lanes.insert(device.clone(), Lane::default());
        }
        let lane = self.lanes.get_mut(device).expect("it was there, or has just been put there");
        lane.order.push_back(ticket);
        if kept.state == State::Waiting {
            lane.waiting += 1;
            lane.touch(device, &mut self.touched);
        }
        self.kept.insert((self.stamp, kept));
        Ok(ticket)
    }

    /// The hub has answered, or it is certain that it will not.
    pub(super) fn answered(&mut self, ticket: u64, outcome: Outcome, now: Instant) {
        let Some(kept) = get(&mut self.kept, ticket) else { return };
        let Some(lane) = self.lanes.get_mut(&kept.record.device) else { return };
        match kept.state {
            State::Direct => {}
            // It was given up, and the disk does not have it yet.
            State::Waiting if outcome == Outcome::Accepted => {
                lane.waiting -= 1;
                return self.end(ticket, outcome);
            }
            // What is with the disk already stays there: it is marked.
            State::Waiting | State::Submitted | State::Burying(_) => return,
        }
        match kept.hub_said(outcome) {
            Turn::End(outcome) => self.end(ticket, outcome),
            Turn::Store { possibly_delivered } => {
                stored_because(if possibly_delivered { Because::Unknown } else { Because::Released }).inc();
                kept.record.possibly_delivered |= possibly_delivered;
                kept.state = State::Waiting;
                lane.waiting += 1;
                lane.touch(&kept.record.device, &mut self.touched);
            }
            Turn::Bury(rejection) => {
                kept.state = State::Burying(rejection);
                self.dead.push(kept.store(ticket, now));
                // Those behind it need not wait for that.
                lane.touch(&kept.record.device, &mut self.touched);
            }
        }
    }

    /// The disk has answered.
    pub(super) fn stored(&mut self, ticket: u64, stored: Stored, now: Instant) {
        let Some(kept) = get(&mut self.kept, ticket) else { return };
        if let State::Burying(rejection) = &kept.state {
            let outcome = kept.buried(rejection.clone(), stored == Stored::Stored);
            return self.end(ticket, outcome);
        }
        let Some(lane) = self.lanes.get_mut(&kept.record.device) else { return };
        match (&kept.state, stored) {
            (State::Direct | State::Waiting | State::Burying(_), _) => {}
            (State::Submitted, Stored::Stored) => {
                lane.submitted -= 1;
                lane.careful = false;
                self.end(ticket, Outcome::Accepted);
            }
            (State::Submitted, Stored::Refused(refusal)) => {
                lane.submitted -= 1;
                let again = refusal != Refusal::TooLarge && !self.stopping && kept.waits_for_room(now);
                emit(StoreRefused { device: &kept.record.device, refusal, again });
                if again {
                    kept.state = State::Waiting;
                    lane.waiting += 1;
                    lane.careful = true;
                    if !lane.blocked {
                        lane.blocked = true;
                        self.blocked.push_back((now + ROOM_RETRY, kept.record.device.clone()));
                    }
                } else {
                    let outcome = kept.refused(refusal);
                    let followers = match outcome {
                        Outcome::Released => lane.order.clone(),
                        _ => VecDeque::new(),
                    };
                    self.end(ticket, outcome);
                    // The device sends it again over its next connection, and those behind it as well.
                    for ticket in followers {
                        self.release_follower(ticket);
                    }
                }
            }
        }
    }

    fn release_follower(&mut self, ticket: u64) {
        let Some(kept) = get(&mut self.kept, ticket).filter(|kept| kept.follows()) else { return };
        if let Some(lane) = self.lanes.get_mut(&kept.record.device) {
            lane.waiting -= 1;
        }
        self.end(ticket, Outcome::Released);
    }

    /// A message has its end.
    fn end(&mut self, ticket: u64, outcome: Outcome) {
        let (_, kept) = self.kept.remove(place(ticket));
        self.bytes -= kept.bytes();
        if let Some(lane) = self.lanes.get_mut(&kept.record.device) {
            lane.forget_ended(&mut self.kept);
            if lane.order.is_empty() || lane.waiting > 0 {
                lane.touch(&kept.record.device, &mut self.touched);
            }
        }
        if self.kept.is_empty() {
            self.kept = Slab::new();
        }
        kept.end(outcome);
    }

    /// Lets lanes ask for room again, and gives up what the hub does not answer for during the stop.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        while let Some((_, device)) = self.blocked.pop_front_if(|(at, _)| *at <= now) {
            if let Some(lane) = self.lanes.get_mut(&device) {
                lane.blocked = false;
                lane.touch(&device, &mut self.touched);
            }
        }
        if self.give_up_at.is_some_and(|at| at <= now) {
            self.give_up_at = None;
            self.given_up = true;
            self.give_up(now);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.blocked.front().map(|(at, _)| *at).into_iter().chain(self.give_up_at).min()
    }

    /// The gateway stops: from `give_up_at` on the hub is not waited for. Who waits for room asks for the last time.
    pub(super) fn stop(&mut self, give_up_at: Instant) {
        self.stopping = true;
        self.give_up_at = Some(give_up_at);
        for (_, device) in self.blocked.drain(..) {
            if let Some(lane) = self.lanes.get_mut(&device) {
                lane.blocked = false;
                lane.touch(&device, &mut self.touched);
            }
        }
    }

    /// What the hub has not answered for is unknown.
    fn give_up(&mut self, now: Instant) {
        let tickets: Vec<u64> = self
            .kept
            .iter()
            .filter(|(_, (_, kept))| kept.state == State::Direct)
            .map(|(place, (stamp, _))| u64::from(*stamp) << 32 | place as u64)
            .collect();
        for ticket in tickets {
            self.answered(ticket, Outcome::Unknown, now);
        }
    }

    /// What the disk is to be handed, in its order.
    pub(super) fn take_stores(&mut self, now: Instant) -> Vec<Store> {
        let mut stores = std::mem::take(&mut self.dead);
        for device in std::mem::take(&mut self.touched) {
            self.advance(&device, &mut stores, now);
        }
        stores
    }

    /// Hands out what of a lane is due, or forgets the lane.
    fn advance(&mut self, device: &DeviceId, stores: &mut Vec<Store>, now: Instant) {
        let Some(lane) = self.lanes.get_mut(device) else { return };
        lane.touched = false;
        lane.forget_ended(&mut self.kept);
        if lane.order.is_empty() {
            self.lanes.remove(device);
            return;
        }
        if lane.submitted > 0 || lane.blocked {
            return;
        }
        let most = if lane.careful { 1 } else { usize::MAX };
        let mut unwanted = Vec::new();
        for &ticket in &lane.order {
            let Some(kept) = get(&mut self.kept, ticket) else { continue };
            match kept.state {
                // Its device has come back over another connection and sends it again, perhaps to another worker:
                // this one would come behind that.
                State::Waiting if !kept.is_wanted(false) => {
                    lane.waiting -= 1;
                    unwanted.push((ticket, kept.unwanted()));
                }
                State::Waiting => {
                    stores.push(kept.store(ticket, now));
                    kept.on_its_way(State::Submitted);
                    lane.waiting -= 1;
                    lane.submitted += 1;
                }
                // It has left the order.
                State::Burying(_) => continue,
                // The hub answers first. Nothing is submitted at this point.
                State::Direct | State::Submitted => break,
            }
            if lane.submitted == most {
                break;
            }
        }
        for (ticket, outcome) in unwanted {
            self.end(ticket, outcome);
        }
    }

    /// All that is unanswered, each lane in its order, for the last time: nobody will hear what becomes of it.
    pub(super) fn abandon(&mut self, now: Instant) -> Vec<Store> {
        self.given_up = true;
        self.give_up(now);
        let mut stores = std::mem::take(&mut self.dead);
        for lane in std::mem::take(&mut self.lanes).values() {
            for &ticket in &lane.order {
                let waiting = get(&mut self.kept, ticket).filter(|kept| kept.state == State::Waiting);
                if let Some(kept) = waiting {
                    stores.push(kept.store(ticket, now));
                    kept.on_its_way(State::Submitted);
                }
            }
        }
        // What is dropped here was sent or submitted: of all that nobody knows what became of it.
        *self = Self { given_up: true, ..Self::default() };
        stores
    }
}

fn place(ticket: u64) -> usize {
    (ticket & u64::from(u32::MAX)) as usize
}

fn get(kept: &mut Slab<(u32, Kept)>, ticket: u64) -> Option<&mut Kept> {
    let (stamp, kept) = kept.get_mut(place(ticket))?;
    (u64::from(*stamp) == ticket >> 32).then_some(kept)
}
