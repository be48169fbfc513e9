//! The way of a device's message out of its worker: straight to the hub, or by the disk.
//!
//! A message whose rule keeps nothing goes to the [`Upstream`], and its device waits for the hub. One whose rule says
//! `when_offline` goes there too while the hub takes it, and to the [`Spool`] as soon as it does not; with
//! `ack = "on-store"` always by the spool. What is decided here is only which way, and that the order of a device
//! survives the change: a message goes to the disk when every earlier one that was sent straight has its outcome, and
//! while the disk, or this place, holds anything of the device, later ones go behind it.
//!
//! Rules that keep nothing are not part of that order: their messages neither wait for the disk nor go there.

mod keeper;
mod telemetry;
#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use fieldgate_mappings::ByteString;
use fieldgate_mappings::address::{Address, DeviceId};
use fieldgate_mappings::message::Message;
use fieldgate_mappings::outcome::Verdict;

use crate::spool::{Mailbox, Spool, Store, Stored};
use crate::upstream::{Patience, Upstream};

use keeper::Keeper;

/// The straight way.
trait Direct {
    /// Whether nobody is there.
    fn is_away(&self) -> bool;
    /// See [`Upstream::send_encoded`].
    fn send(
        &self,
        device: &DeviceId,
        address: &Address,
        encoded: &[u8],
        patience: Patience,
        verdict: Verdict,
    );
}

/// The way by the disk.
trait Disk {
    /// See [`Spool::holds`].
    fn holds(&self, hub: &str, device: &DeviceId) -> bool;
    /// See [`Spool::message_id`].
    fn message_id(&self) -> ByteString;
    /// See [`Spool::submit`].
    fn submit(&self, batch: Vec<Store>);
    /// See [`Mailbox::poll`].
    fn poll(&self, cx: &Context<'_>) -> Poll<Vec<(u64, Stored)>>;
}

impl Direct for Upstream {
    fn is_away(&self) -> bool {
        Self::is_away(self)
    }

    fn send(
        &self,
        device: &DeviceId,
        address: &Address,
        encoded: &[u8],
        patience: Patience,
        verdict: Verdict,
    ) {
        self.send_encoded(device, address, encoded, patience, verdict);
    }
}

/// This worker's door to the spool.
struct Door {
    spool: Spool,
    mailbox: Mailbox,
}

impl Disk for Door {
    fn holds(&self, hub: &str, device: &DeviceId) -> bool {
        self.spool.holds(hub, device)
    }

    fn message_id(&self) -> ByteString {
        self.spool.message_id()
    }

    fn submit(&self, batch: Vec<Store>) {
        self.spool.submit(&self.mailbox, batch);
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<Vec<(u64, Stored)>> {
        self.mailbox.poll(cx)
    }
}

/// A worker's messages to the hub; cloning gives another handle to it.
#[derive(Clone)]
pub(crate) struct Outbound {
    upstream: Upstream,
    /// Absent where no rule keeps anything.
    keeper: Option<Rc<Keeper<Upstream, Door>>>,
}

impl Outbound {
    /// The way of a worker. Without a spool every message goes straight.
    pub(crate) fn new(upstream: Upstream, spool: Option<Spool>) -> Self {
        let keeper = spool.map(|spool| {
            let door = Door { spool, mailbox: Mailbox::default() };
            Keeper::new(upstream.clone(), door)
        });
        Self { upstream, keeper }
    }

    /// Sends what a device said; `verdict` is reported when the hub or the disk has it, or when it is certain that
    /// neither will.
    pub(crate) fn send(&self, message: Message, patience: Patience, verdict: Verdict) {
        let delivery = message.delivery.as_ref().filter(|delivery| delivery.spools());
        match (&self.keeper, delivery.cloned()) {
            (Some(keeper), Some(delivery)) => {
                keeper.send(message, delivery, patience, verdict, Instant::now())
            }
            _ => self.upstream.send(message, patience, verdict),
        }
    }

    /// Hands over to the disk, and hears from it, until [`close`](Self::close) was called and nothing is under way.
    pub(crate) async fn run(self) {
        if let Some(keeper) = &self.keeper {
            poll_fn(|cx| keeper.poll(cx)).await;
        }
    }

    /// Nothing new comes: [`run`](Self::run) ends when all that is under way has its end.
    pub(crate) fn close(&self) {
        if let Some(keeper) = &self.keeper {
            keeper.close();
        }
    }
}

impl std::fmt::Debug for Outbound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbound").field("keeps", &self.keeper.is_some()).finish_non_exhaustive()
    }
}
