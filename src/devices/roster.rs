//! Who is in: the devices of one worker that were let in and are still there, so that one who may not stay is told.
//!
//! What holds is looked at when it changes, and when a token ends; a message costs nothing here.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use fieldgate_mappings::outcome::{Reason, Rejection};
use slab::Slab;
use tokio::sync::Notify;

use crate::output::unix_seconds;
use crate::telemetry::emit;

use super::gate::{Attempt, Gate, Judged, Pass};
use super::telemetry::DeviceCutOff;
use super::{Changes, Devices};

/// A clock that jumps is noticed after so long at the latest.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Why a device may not stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// The registry has it no more.
    Removed,
    /// It is disabled in the registry.
    Disabled,
    /// What it was let in by proves nothing any more.
    ProofChanged,
    /// Its token has ended.
    Expired,
}

impl Over {
    /// The word in labels.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Removed => "removed",
            Self::Disabled => "disabled",
            Self::ProofChanged => "proof-changed",
            Self::Expired => "expired",
        }
    }
}

impl fmt::Display for Over {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Removed => "the device is registered no more",
            Self::Disabled => "the device is disabled",
            Self::ProofChanged => "what the device has proved itself with is not valid any more",
            Self::Expired => "the token of the device has expired",
        })
    }
}

/// The devices that are in, of one worker.
pub(crate) struct Roster {
    gate: Arc<Gate>,
    devices: RefCell<Arc<Devices>>,
    seats: RefCell<Slab<Seat>>,
    /// When the first token ends, in seconds since 1970.
    next_expiry: Cell<Option<u64>>,
    sooner: Notify,
}

struct Seat {
    pass: Pass,
    over: Option<Over>,
    waker: Option<Waker>,
}

impl fmt::Debug for Roster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Roster").field("in", &self.seats.borrow().len()).finish_non_exhaustive()
    }
}

impl Roster {
    /// Nobody is in. Needs somebody to run [`keep`](Self::keep).
    pub(crate) fn new(gate: &Arc<Gate>) -> Rc<Self> {
        Rc::new(Self {
            gate: Arc::clone(gate),
            devices: RefCell::new(gate.registry().snapshot()),
            seats: RefCell::default(),
            next_expiry: Cell::new(None),
            sooner: Notify::new(),
        })
    }

    /// The devices that are registered, as far as this worker knows.
    pub(crate) fn devices(&self) -> Arc<Devices> {
        Arc::clone(&self.devices.borrow())
    }

    /// Decides who is let in.
    pub(crate) fn judge(&self, attempt: Attempt<'_>) -> Judged {
        self.gate.judge(&self.devices.borrow(), attempt)
    }

    /// Whether a device that was let in may stay, where that is asked once and not waited for.
    ///
    /// # Errors
    /// What it is told if not; the operator has been told.
    pub(crate) fn look_again(&self, pass: &Pass) -> Result<(), Rejection> {
        self.judge_stay(pass).map_or(Ok(()), |over| {
            let reason = match over {
                Over::Disabled => Reason::NotPermitted,
                Over::Removed | Over::ProofChanged | Over::Expired => Reason::Credentials,
            };
            Err(Rejection::new(reason, over.to_string()))
        })
    }

    /// Takes in a device that was let in, until the stay is dropped.
    pub(crate) fn enter(self: &Rc<Self>, pass: Pass) -> Stay {
        let until = pass.until;
        let over = self.judge_stay(&pass);
        let key = self.seats.borrow_mut().insert(Seat { pass, over, waker: None });
        if let Some(until) = until
            && self.next_expiry.get().is_none_or(|next| until < next)
        {
            self.next_expiry.set(Some(until));
            self.sooner.notify_one();
        }
        Stay { roster: Rc::clone(self), key }
    }

    /// Sees to it that who may not stay is told; for ever.
    pub(crate) async fn keep(self: Rc<Self>) {
        let mut changes: Changes = self.gate.registry().changes();
        // What changed before this was listened to.
        self.look_through(Some(self.gate.registry().snapshot()));
        loop {
            let left =
                self.next_expiry.get().map(|at| Duration::from_secs(at.saturating_sub(unix_seconds())));
            let wait = left.map(|left| Instant::now() + left.min(LONGEST_SLEEP));
            let timer = async {
                match wait {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                devices = changes.changed() => self.look_through(Some(devices)),
                () = self.sooner.notified() => {}
                () = timer => self.look_through(None),
            }
        }
    }

    fn look_through(&self, changed: Option<Arc<Devices>>) {
        if let Some(devices) = changed {
            self.devices.replace(devices);
        }
        let mut next = None;
        let mut woken = Vec::new();
        for (_, seat) in self.seats.borrow_mut().iter_mut().filter(|(_, seat)| seat.over.is_none()) {
            seat.over = self.judge_stay(&seat.pass);
            match (seat.over, seat.pass.until) {
                (Some(_), _) => woken.extend(seat.waker.take()),
                (None, Some(until)) => next = Some(next.map_or(until, |next: u64| next.min(until))),
                (None, None) => {}
            }
        }
        self.next_expiry.set(next);
        woken.into_iter().for_each(Waker::wake);
    }

    fn judge_stay(&self, pass: &Pass) -> Option<Over> {
        let expired = pass.until.is_some_and(|until| until <= unix_seconds()).then_some(Over::Expired);
        let over = expired.or_else(|| self.gate.still(&self.devices.borrow(), pass).err());
        if let Some(over) = over {
            emit(DeviceCutOff { protocol: pass.protocol, device: pass.device.as_str(), over });
        }
        over
    }
}

/// A device that is in, until this is dropped.
#[derive(Debug)]
pub(crate) struct Stay {
    roster: Rc<Roster>,
    key: usize,
}

impl Stay {
    /// Ready when the device may not stay.
    pub(crate) fn poll_over(&self, cx: &Context<'_>) -> Poll<Over> {
        let mut seats = self.roster.seats.borrow_mut();
        let seat = &mut seats[self.key];
        if let Some(over) = seat.over {
            return Poll::Ready(over);
        }
        if !seat.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            seat.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.roster.seats.borrow_mut().remove(self.key);
    }
}
