//! What devices send, on its way out of a worker: straight to the hub, or through the disk.
//!
//! A message whose rule says nothing about the disk goes to the hub as it is, and is no longer known here. One of a
//! rule with `when_offline` goes there as well while the hub is there and the disk holds nothing of its device; it is
//! kept here until its outcome, and if it comes back untaken, or nothing is known of it, the disk gets it. One of a
//! rule with `ack = "on-store"` goes to the disk at once.
//!
//! ```text
//!                          ┌─ direct ──▶ Upstream ──▶ accepted, rejected ──▶ device
//! adapter ──▶ Outbound ────┤                └───────▶ released, unknown ──┐
//!                          └─ lane of the device ◀────────────────────────┘
//!                                   └──▶ spool ──▶ stored, refused ──▶ device
//! ```
//!
//! Order is kept for each device over both ways: what must be stored waits for the outcomes of what was sent before
//! it, and what comes later waits behind it ([`lanes`]).

mod kept;
mod lanes;
mod telemetry;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use fieldgate_mappings::ByteString;
use fieldgate_mappings::address::{Address, DeviceId};
use fieldgate_mappings::message::{Message, MessageId};
use fieldgate_mappings::outcome::{Outcome, Report, Verdict};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::shutdown::Shutdown;
use crate::spool::{Mailbox, Spool, Store, Stored};
use crate::telemetry::emit;
use crate::upstream::{Patience, Upstream};

use self::kept::Kept;
use self::lanes::Lanes;
use self::telemetry::{Because, KeptExceeded, stored_because};

/// How long a message that could also wait on the disk waits for the hub: for a link, for credit.
const GRACE: Duration = Duration::from_secs(1);
/// How long the hub may answer after the stop was asked for, before what it has not answered for goes to the disk.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// The straight way to the hub.
pub(crate) trait Direct {
    /// See [`Upstream::send`].
    fn send(&self, message: Message, patience: Patience, verdict: Verdict);
    /// See [`Upstream::send_encoded`].
    fn send_encoded(
        &self,
        device: &DeviceId,
        address: &Address,
        encoded: &[u8],
        patience: Patience,
        verdict: Verdict,
    );
    /// Releases what of the device waits and is not wanted any more.
    fn recall(&self, device: &DeviceId);
    /// Whether the device's hub is away.
    fn is_away(&self, device: &DeviceId) -> bool;
    /// The name of the device's hub.
    fn hub_of(&self, device: &DeviceId) -> Arc<str>;
}

/// The way over the disk.
pub(crate) trait Disk {
    /// See [`Spool::holds`].
    fn holds(&self, hub: &str, device: &DeviceId) -> bool;
    /// See [`Spool::submit`].
    fn submit(&self, batch: Vec<Store>);
    /// See [`Spool::message_id`].
    fn message_id(&self) -> ByteString;
    /// See [`Mailbox::poll`].
    fn poll(&self, cx: &Context<'_>) -> Poll<Vec<(u64, Stored)>>;
}

/// The process's spool, as one worker uses it.
#[derive(Debug)]
pub(crate) struct Post {
    spool: Spool,
    mailbox: Mailbox,
}

/// The way out of one worker; cloning gives another handle to it.
#[derive(Debug)]
pub(crate) struct Outbound<W = Upstream, D = Post> {
    shared: Rc<Shared<W, D>>,
}

#[derive(Debug)]
struct Shared<W, D> {
    direct: W,
    /// Absent where no rule asks for it.
    disk: Option<D>,
    notes: Rc<Notes>,
    scratch: RefCell<BytesMut>,
    /// Nothing comes any more.
    closed: Cell<bool>,
}

/// What is kept; what the hub has answered for it, until somebody looks; and whom to wake for that.
#[derive(Debug, Default)]
struct Notes {
    lanes: RefCell<Lanes>,
    told: RefCell<Vec<(u64, Outcome)>>,
    waker: RefCell<Option<Waker>>,
}

impl Notes {
    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl Report for Notes {
    fn report(&self, ticket: u64, outcome: Outcome) {
        self.told.borrow_mut().push((ticket, outcome));
        self.wake();
    }

    fn is_wanted(&self, ticket: u64, may_be_there: bool) -> bool {
        self.lanes.borrow().is_wanted(ticket, may_be_there)
    }
}

impl<W, D> Clone for Outbound<W, D> {
    fn clone(&self) -> Self {
        Self { shared: Rc::clone(&self.shared) }
    }
}

impl Outbound {
    /// The way out over `upstream`, and over `spool` where a rule asks for it. The task ends after
    /// [`close`](Self::close), when everything has its end.
    pub(crate) fn start(
        upstream: Upstream,
        spool: Option<Spool>,
        shutdown: Shutdown,
    ) -> (Self, Option<JoinHandle<()>>) {
        let disk = spool.map(|spool| Post { spool, mailbox: Mailbox::default() });
        let spools = disk.is_some();
        let outbound = Self::new(upstream, disk);
        let task = spools.then(|| tokio::task::spawn_local(outbound.clone().run(shutdown)));
        (outbound, task)
    }

    /// The straight way.
    pub(crate) fn upstream(&self) -> &Upstream {
        &self.shared.direct
    }
}

impl<W: Direct, D: Disk> Outbound<W, D> {
    fn new(direct: W, disk: Option<D>) -> Self {
        let shared = Shared {
            direct,
            disk,
            notes: Rc::default(),
            scratch: RefCell::default(),
            closed: Cell::new(false),
        };
        Self { shared: Rc::new(shared) }
    }

    /// Sends what a device said; `verdict` is reported when the hub has answered or the disk has it, or when it is
    /// certain that neither will.
    pub(crate) fn send(&self, message: Message, patience: Patience, verdict: Verdict) {
        self.send_at(message, patience, verdict, Instant::now);
    }

    /// Ends what of the device waits and is not wanted any more, at once: when this returns, all of it is reported.
    pub(crate) fn recall(&self, device: &DeviceId) {
        let Shared { direct, notes, .. } = &*self.shared;
        direct.recall(device);
        // On its way to the disk it comes from the hub.
        self.settle(Instant::now());
        if notes.lanes.borrow_mut().recall(device) {
            notes.wake();
        }
    }

    fn send_at(&self, message: Message, patience: Patience, verdict: Verdict, now: impl FnOnce() -> Instant) {
        let Shared { direct, disk, .. } = &*self.shared;
        match (&message.delivery, disk) {
            (Some(delivery), Some(disk)) if delivery.needs_disk() => {
                self.send_kept(disk, message, patience, verdict, now());
            }
            _ => direct.send(message, patience, verdict),
        }
    }

    fn send_kept(&self, disk: &D, mut message: Message, patience: Patience, verdict: Verdict, now: Instant) {
        let Shared { direct, notes, scratch, .. } = &*self.shared;
        // What the hub has just answered decides where this one goes.
        self.settle(now);
        let hub = direct.hub_of(&message.device);
        let because = {
            let lanes = notes.lanes.borrow();
            match &message.delivery {
                Some(delivery) if delivery.stores_at_once() => Some(Because::OnStore),
                Some(delivery) if !delivery.spools() => None,
                _ if lanes.holds(&message.device) || disk.holds(&hub, &message.device) => {
                    Some(Because::Behind)
                }
                _ if lanes.has_given_up() || direct.is_away(&message.device) => Some(Because::HubAway),
                _ => None,
            }
        };
        let mut scratch = scratch.borrow_mut();
        match because {
            Some(because) => {
                stored_because(because).inc();
                let Some(kept) = Kept::waiting(&message, hub, patience, verdict, &mut scratch, now) else {
                    return;
                };
                match notes.lanes.borrow_mut().keep(kept) {
                    Ok(_) => notes.wake(),
                    Err(full) => emit(KeptExceeded { bytes: full.bytes }),
                }
            }
            None => {
                if message.properties.message_id.is_none() {
                    // It may be sent again, from the disk: the hub is to see that it is the same one.
                    message.properties.message_id = Some(MessageId::String(disk.message_id()));
                }
                let Some(kept) = Kept::direct(&message, hub, patience, verdict, &mut scratch, now) else {
                    return;
                };
                let kept = notes.lanes.borrow_mut().keep(kept);
                let ticket = match kept {
                    Ok(ticket) => ticket,
                    Err(full) => return emit(KeptExceeded { bytes: full.bytes }),
                };
                let spools = message.delivery.as_ref().is_some_and(|delivery| delivery.spools());
                let patience = match spools {
                    true => Patience {
                        until: patience.until.min(now + GRACE),
                        through_outage: false,
                        in_order: true,
                        ..patience
                    },
                    false => patience,
                };
                let verdict = Verdict::new(Rc::clone(notes) as Rc<dyn Report>, ticket);
                direct.send_encoded(&message.device, &message.address, &scratch, patience, verdict);
            }
        }
    }

    /// Takes what the hub has answered.
    fn settle(&self, now: Instant) {
        let notes = &self.shared.notes;
        if notes.told.borrow().is_empty() {
            return;
        }
        let mut told = notes.told.take();
        let mut lanes = notes.lanes.borrow_mut();
        for (ticket, outcome) in told.drain(..) {
            lanes.answered(ticket, outcome, now);
        }
        // Its memory serves again: whoever is told of an outcome here only notes it.
        notes.told.replace(told);
    }

    /// Does all that can be done now.
    fn turn(&self, disk: &D, cx: &Context<'_>, now: Instant) {
        let notes = &self.shared.notes;
        notes.waker.replace(Some(cx.waker().clone()));
        loop {
            self.settle(now);
            let answers = disk.poll(cx);
            let mut lanes = notes.lanes.borrow_mut();
            lanes.handle_timeout(now);
            if let Poll::Ready(answers) = answers {
                answers.into_iter().for_each(|(ticket, stored)| lanes.stored(ticket, stored, now));
                continue;
            }
            let batch = lanes.take_stores(now);
            if batch.is_empty() {
                return;
            }
            disk.submit(batch);
        }
    }

    /// Serves the disk until the end.
    async fn run(self, shutdown: Shutdown) {
        let Some(disk) = &self.shared.disk else { return };
        let mut stop = pin!(shutdown.draining());
        let mut stopping = false;
        let mut timer = pin!(sleep(Duration::ZERO));
        poll_fn(|cx| {
            loop {
                let now = Instant::now();
                if !stopping && stop.as_mut().poll(cx).is_ready() {
                    stopping = true;
                    self.shared.notes.lanes.borrow_mut().stop(now + STOP_GRACE);
                }
                self.turn(disk, cx, now);
                let lanes = self.shared.notes.lanes.borrow();
                if self.shared.closed.get() && lanes.is_empty() {
                    return Poll::Ready(());
                }
                let Some(due) = lanes.poll_timeout() else { return Poll::Pending };
                timer.as_mut().reset(due.into());
                if timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
            }
        })
        .await;
    }

    /// No device is left to send anything: the task ends when everything has its end.
    pub(crate) fn close(&self) {
        self.shared.closed.set(true);
        self.shared.notes.wake();
    }

    /// There is no time left: the disk is given all that is unanswered, and nobody waits for its answer.
    pub(crate) fn abandon(&self) {
        let Some(disk) = &self.shared.disk else { return };
        let now = Instant::now();
        self.settle(now);
        let batch = self.shared.notes.lanes.borrow_mut().abandon(now);
        if !batch.is_empty() {
            disk.submit(batch);
        }
    }
}

impl Direct for Upstream {
    fn send(&self, message: Message, patience: Patience, verdict: Verdict) {
        self.send(message, patience, verdict);
    }

    fn send_encoded(
        &self,
        device: &DeviceId,
        address: &Address,
        encoded: &[u8],
        patience: Patience,
        verdict: Verdict,
    ) {
        self.send_encoded(device, address, encoded, patience, verdict);
    }

    fn recall(&self, device: &DeviceId) {
        self.recall(device);
    }

    fn is_away(&self, device: &DeviceId) -> bool {
        self.is_away_for(device)
    }

    fn hub_of(&self, device: &DeviceId) -> Arc<str> {
        self.hub_of(device)
    }
}

impl Disk for Post {
    fn holds(&self, hub: &str, device: &DeviceId) -> bool {
        self.spool.holds(hub, device)
    }

    fn submit(&self, batch: Vec<Store>) {
        self.spool.submit(&self.mailbox, batch);
    }

    fn message_id(&self) -> ByteString {
        self.spool.message_id()
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<Vec<(u64, Stored)>> {
        self.mailbox.poll(cx)
    }
}
