//! Links that all devices of the connection share: who waits for which, and what becomes of them.

use std::collections::HashSet;
use std::time::Instant;

use fieldgate_amqp::connection::LinkId;
use fieldgate_amqp::error::{AmqpError, Misuse};
use fieldgate_amqp::performative::Flow;
use fieldgate_mappings::address::Address;
use fieldgate_mappings::amqp::{self, Limited};
use fieldgate_mappings::outcome::Outcome;

use crate::router::arena::Key;
use crate::telemetry::emit;
use crate::upstream::answer::Limit;
use crate::upstream::device::{Device, address_too_long};
use crate::upstream::telemetry::SharedLinkLost;

use super::{Phase, Uplink};
use crate::upstream::relay::Recycled;

impl Uplink {
    /// A device waits for the shared link of an address: attached where there is none.
    pub(super) fn join(&mut self, key: Key<Device>, address: &Address, now: Instant) {
        if self.phase != Phase::Ready || self.closing || !self.is_granted(key) {
            return;
        }
        let is_full = self.relay.as_ref().is_some_and(|relay| relay.is_full_for(address));
        let promised = if is_full { self.promised() } else { HashSet::new() };
        let (Some(connection), Some(relay), Some(device)) =
            (&mut self.connection, &mut self.relay, self.devices.get_mut(key))
        else {
            return;
        };
        // Who may not send now keeps no link from those who may.
        if device.crowded_out && !relay.leads_to(address) || device.paused_until(now).is_some() {
            return;
        }
        if is_full && let Some(recycled) = relay.recycle(&promised) {
            connection.detach(recycled, true, None);
        }
        if let Err(misuse) = relay.attach(connection, &self.settings.address_prefix, address, now) {
            tracing::debug!(device = %device.id, %misuse, "no room for a shared link");
            match misuse {
                Misuse::NoChannel | Misuse::NoHandle => {
                    device.crowded_out = true;
                    self.crowded_out.push_back(key);
                }
                Misuse::FrameTooLarge => {
                    let outlet = device.outlet(address);
                    outlet.into_iter().for_each(|outlet| outlet.refuse_waiting(&address_too_long()));
                }
                _ => {}
            }
            return;
        }
        let has_credit = relay.link(address).is_some_and(|(link, _)| link.has_credit(connection));
        let Some(outlet) = device.outlet(address) else { return };
        if outlet.in_line {
            return;
        }
        if has_credit && relay.is_free(address) {
            self.stall(key);
        } else {
            outlet.in_line = relay.stand_in_line(address, key);
        }
    }

    /// The addresses that devices are about to send to, which wait for nothing but their turn.
    fn promised(&self) -> HashSet<Address> {
        let queued = self.devices.iter().filter(|(_, device)| device.queued);
        let outlets = queued.flat_map(|(_, device)| &device.outlets);
        outlets.filter(|outlet| !outlet.waiting.is_empty()).map(|outlet| outlet.address.clone()).collect()
    }

    /// Joins the lines of all links that a device's messages wait for.
    pub(super) fn join_all(&mut self, key: Key<Device>, now: Instant) {
        let Some(device) = self.devices.get(key) else { return };
        let waiting = device.outlets.iter().filter(|outlet| !outlet.waiting.is_empty() && !outlet.in_line);
        let addresses: Vec<Address> = waiting.map(|outlet| outlet.address.clone()).collect();
        for address in addresses {
            self.join(key, &address, now);
        }
    }

    /// The hub speaks of a shared link, or of the session of all of them.
    pub(super) fn shared_flow(&mut self, link: Option<LinkId>, flow: &Flow) {
        let (Some(connection), Some(relay)) = (&mut self.connection, &mut self.relay) else { return };
        if let Some(link) = link
            && let Some(shared) = relay.get_mut(link)
            && shared.sender().on_flow(connection, flow)
        {
            self.told.draining.push(link);
        }
        // The session's window may have opened: that concerns all links.
        self.admit_more();
    }

    /// Lets more in where credit is left: those that were admitted may have had no use for theirs, and the hub has no
    /// reason to speak of it again.
    pub(in crate::upstream) fn admit_more(&mut self) {
        let links = self.relay.as_ref().map(|relay| relay.ids()).unwrap_or_default();
        for link in links {
            self.admit(link);
        }
    }

    /// Those whose turn has come at a shared link.
    fn admit(&mut self, link: LinkId) {
        let (Some(connection), Some(relay)) = (&self.connection, &mut self.relay) else { return };
        let devices = &mut self.devices;
        let admitted = relay.admit(connection, link, |key, address| {
            let Some(device) = devices.get_mut(key) else { return false };
            // It stands in line again for whatever it cannot send then.
            device.leave_line(address);
            device.waits_for(address)
        });
        for key in admitted {
            self.stall(key);
        }
    }

    /// All links are in use, and have been since the last time: others have their turn.
    pub(super) fn make_turns(&mut self, now: Instant) {
        if let (false, Some(relay)) = (self.crowded_out.is_empty(), &mut self.relay) {
            relay.ask_to_leave();
            self.make_way(now);
        }
    }

    /// Somebody waits for a link: one that nobody needs makes place, or that has had its turn.
    pub(super) fn make_way(&mut self, now: Instant) {
        let (Some(connection), Some(relay)) = (&mut self.connection, &mut self.relay) else { return };
        if let Some(Recycled { link, address, line }) = relay.take_left() {
            connection.detach(link, true, None);
            for key in line {
                if let Some(device) = self.devices.get_mut(key) {
                    device.leave_line(address.as_ref());
                    if !std::mem::replace(&mut device.crowded_out, true) {
                        self.crowded_out.push_back(key);
                    }
                }
            }
            return self.serve_crowded_out(now);
        }
        if self.crowded_out.is_empty() {
            return;
        }
        let promised = self.promised();
        let (Some(connection), Some(relay)) = (&mut self.connection, &mut self.relay) else { return };
        if let Some(recycled) = relay.recycle(&promised) {
            connection.detach(recycled, true, None);
            self.serve_crowded_out(now);
        }
    }

    /// The hub has detached a shared link. True if it was one.
    pub(super) fn shared_detached(&mut self, link: LinkId, error: Option<&AmqpError>, now: Instant) -> bool {
        let Some(relay) = self.relay.as_mut().filter(|relay| relay.owns(link)) else { return false };
        let Some(lost) = relay.lose_link(link) else { return false };
        emit(SharedLinkLost { address: lost.address.as_ref(), error });
        if let Some(limit) = error.and_then(Limit::new) {
            relay.pause(limit.retry_after, now);
            if limit.of == Limited::Hub {
                self.told.limit = Some(limit);
            }
        }
        for key in &lost.sent_by {
            if let Some(device) = self.devices.get_mut(*key) {
                device.relayed = device.relayed.saturating_sub(1);
            }
        }
        let outcome = error.map_or(Outcome::Released, amqp::refusal);
        let keys = self.devices.keys();
        match &lost.address {
            Some(address) => {
                for key in keys {
                    if let Some(device) = self.devices.get_mut(key) {
                        device.lose_shared(address, lost.attached, &outcome);
                    }
                }
            }
            // The one link of all: what waits waits for the next, which is not asked for at once.
            None if lost.attached => self.end_shared(None, now),
            None => {
                for key in keys {
                    if let Some(device) = self.devices.get_mut(key) {
                        device.refuse_waiting(&outcome);
                        device.lose_relay();
                    }
                }
            }
        }
        true
    }

    /// The session of the shared links is of no use any more. It is begun again after a moment.
    pub(super) fn end_shared(&mut self, error: Option<AmqpError>, now: Instant) {
        let Some(relay) = &mut self.relay else { return };
        if let (Some(session), Some(connection)) = (relay.session, &mut self.connection) {
            self.ending.insert(session, now);
            connection.end(session, error);
        }
        self.lose_shared(now);
    }

    /// The session of the shared links is gone.
    pub(super) fn lose_shared(&mut self, now: Instant) {
        if let Some(relay) = &mut self.relay {
            relay.lose_session(Some(now));
        }
        self.devices.iter_mut().for_each(|(_, device)| device.lose_relay());
    }

    /// Whether the hub leaves a message over a shared link unanswered for too long.
    pub(super) fn is_shared_silent(&self, now: Instant) -> bool {
        let first = self.relay.as_ref().and_then(|relay| relay.unsettled.first());
        first.is_some_and(|in_flight| now >= in_flight.sent_at + super::ANSWER_TIME_OUT)
    }
    /// Whether the hub leaves an attach or a detach of a shared link unanswered for too long.
    pub(super) fn is_shared_owed(&mut self, now: Instant) -> bool {
        let Some(relay) = &mut self.relay else { return false };
        relay.owed.is_late(self.connection.as_ref(), relay.session, now)
    }
}
