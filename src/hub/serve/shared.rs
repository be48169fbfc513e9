//! What the hub's connections share: its state, and who is woken by what.
//!
//! A link that sends waits for something: an event reader for its partition to grow, a device for a command, a
//! service for feedback. It holds a [`Subscription`] for that as long as it lives. Whoever makes the thing appear
//! notes the links that wait for it with their connections and wakes those; each connection then looks for itself.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::{Instant, SystemTime};

use fieldgate_amqp::connection::LinkId;
use fieldgate_mappings::{DeviceId, Timestamp};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::sync::Notify;

use super::super::commands::Elapsed;
use super::super::feedback::Record;
use super::super::queue::{Departure, LockToken};
use super::super::state::HubState;
use super::super::telemetry::{CommandEnded, FeedbackLost};
use super::super::time::Now;
use crate::telemetry::emit;

/// The most readers of one partition in one consumer group (as Event Hubs has it).
const MAX_READERS: usize = 5;

/// What the hub's connections share.
pub(super) struct Shared {
    pub(super) state: RefCell<HubState>,
    /// Tells the timekeeper that there is something to watch.
    pub(super) changed: Notify,
    readers: RefCell<HashMap<(u16, String), Vec<Interest>>>,
    holders: RefCell<HashMap<DeviceId, Interest>>,
    feedback: RefCell<Vec<Interest>>,
    random: SystemRandom,
}

/// A link that waits, and the connection that it is on.
#[derive(Clone)]
struct Interest {
    signal: Rc<Signal>,
    link: LinkId,
}

impl Interest {
    fn is(&self, signal: &Rc<Signal>, link: LinkId) -> bool {
        Rc::ptr_eq(&self.signal, signal) && self.link == link
    }

    fn wake(&self) {
        self.signal.ready.borrow_mut().insert(self.link);
        self.signal.wake();
    }
}

/// How a connection is told that there is something to do.
#[derive(Default)]
pub(super) struct Signal {
    /// Links for which something may have come.
    ready: RefCell<BTreeSet<LinkId>>,
    /// Links that somebody else has taken the place of.
    evicted: RefCell<Vec<LinkId>>,
    waker: RefCell<Option<Waker>>,
}

impl Signal {
    /// Remembers whom to wake.
    pub(super) fn register(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        match &mut *waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
    }

    /// The links for which something may have come since this was asked last.
    pub(super) fn take_ready(&self) -> BTreeSet<LinkId> {
        self.ready.take()
    }

    /// The links that have lost their place since this was asked last.
    pub(super) fn take_evicted(&self) -> Vec<LinkId> {
        self.evicted.take()
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }
}

/// What a link waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Topic {
    /// Events of a partition, in a consumer group.
    Events(u16, String),
    /// Commands for a device. One link has them; a new one takes its place.
    Commands(DeviceId),
    /// Feedback.
    Feedback,
}

/// A partition has as many readers in the group as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooManyReaders;

/// A link's claim to be woken. Dropping it ends it.
pub(super) struct Subscription {
    shared: Rc<Shared>,
    topic: Topic,
    interest: Interest,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let Self { shared, topic, interest } = self;
        let is_mine = |other: &Interest| other.is(&interest.signal, interest.link);
        match topic {
            Topic::Events(partition, group) => {
                let mut readers = shared.readers.borrow_mut();
                let key = (*partition, std::mem::take(group));
                if let Some(interests) = readers.get_mut(&key) {
                    interests.retain(|other| !is_mine(other));
                    if interests.is_empty() {
                        readers.remove(&key);
                    }
                }
            }
            Topic::Commands(device) => {
                let mut holders = shared.holders.borrow_mut();
                if holders.get(device).is_some_and(is_mine) {
                    holders.remove(device);
                }
            }
            Topic::Feedback => shared.feedback.borrow_mut().retain(|other| !is_mine(other)),
        }
    }
}

impl Shared {
    /// Around a fresh state.
    pub(super) fn new(state: HubState) -> Self {
        Self {
            state: RefCell::new(state),
            changed: Notify::new(),
            readers: RefCell::default(),
            holders: RefCell::default(),
            feedback: RefCell::default(),
            random: SystemRandom::new(),
        }
    }

    /// Both clocks, read once for all that one turn does.
    pub(super) fn now() -> Now {
        let since_1970 = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let wall = Timestamp(i64::try_from(since_1970.as_millis()).unwrap_or(i64::MAX));
        Now { instant: Instant::now(), wall }
    }

    /// A lock that nobody else has. `None` when the system has no randomness to give.
    pub(super) fn lock_token(&self) -> Option<LockToken> {
        let mut bytes = [0; 16];
        self.random.fill(&mut bytes).ok()?;
        Some(LockToken(bytes))
    }

    /// Lets a link wait for `topic`. Of a device's commands it becomes the one receiver, and the one before is told.
    ///
    /// # Errors
    /// [`TooManyReaders`] of one partition in one group.
    pub(super) fn subscribe(
        self: &Rc<Self>,
        topic: Topic,
        signal: &Rc<Signal>,
        link: LinkId,
    ) -> Result<Subscription, TooManyReaders> {
        let interest = Interest { signal: Rc::clone(signal), link };
        match &topic {
            Topic::Events(partition, group) => {
                let mut readers = self.readers.borrow_mut();
                let interests = readers.entry((*partition, group.clone())).or_default();
                if interests.len() >= MAX_READERS {
                    return Err(TooManyReaders);
                }
                interests.push(interest.clone());
            }
            Topic::Commands(device) => {
                let before = self.holders.borrow_mut().insert(device.clone(), interest.clone());
                if let Some(before) = before {
                    before.signal.evicted.borrow_mut().push(before.link);
                    before.signal.wake();
                }
            }
            Topic::Feedback => self.feedback.borrow_mut().push(interest.clone()),
        }
        Ok(Subscription { shared: Rc::clone(self), topic, interest })
    }

    /// A partition has grown.
    pub(super) fn wake_readers(&self, partition: u16) {
        for ((of, _), interests) in &*self.readers.borrow() {
            if *of == partition {
                interests.iter().for_each(Interest::wake);
            }
        }
    }

    /// A device has a command that is free.
    pub(super) fn wake_device(&self, device: &DeviceId) {
        if let Some(holder) = self.holders.borrow().get(device) {
            holder.wake();
        }
    }

    /// There is feedback that is free.
    pub(super) fn wake_feedback(&self) {
        self.feedback.borrow().iter().for_each(Interest::wake);
    }

    /// A command has come to its end, and its sender may want to hear of it.
    pub(super) fn report(&self, now: Now, device: &DeviceId, departure: Departure, record: Option<Record>) {
        emit(CommandEnded { device, departure });
        let Some(record) = record else { return };
        let ready = self.state.borrow_mut().feedback.push(now, record);
        if ready {
            self.wake_feedback();
        }
        // Gathering has a deadline that the timekeeper may not know yet.
        self.changed.notify_one();
    }

    /// Lets time act on the queues.
    pub(super) fn elapse(&self, now: Now) {
        let Elapsed { ended, ready } = self.state.borrow_mut().commands.elapse(now);
        for (device, record) in ended {
            self.report(now, &device, Departure::Expired, record);
        }
        ready.iter().for_each(|device| self.wake_device(device));
        let (ready, messages) = {
            let feedback = &mut self.state.borrow_mut().feedback;
            (feedback.elapse(now), feedback.take_lost())
        };
        if ready {
            self.wake_feedback();
        }
        if messages > 0 {
            emit(FeedbackLost { messages });
        }
    }
}
