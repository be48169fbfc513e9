//! What a device sends: at once where nothing stands before it, else in its turn, and not while the hub throttles it.

use std::rc::Rc;
use std::time::{Duration, Instant};

use fieldgate_amqp::connection::Connection;
use fieldgate_amqp::endpoint::Unsettled;
use fieldgate_mappings::address::Address;
use fieldgate_mappings::outcome::Verdict;

use crate::router::arena::Key;
use crate::upstream::lanes::{TURN_OF_THE_LAST, Waiting};
use crate::upstream::load::Load;
use crate::upstream::outlet::{InFlight, Outlet, Way};
use crate::upstream::relay::Relay;

use super::Device;

/// What a device may send in its turn while others wait for theirs: a small message or two, each with
/// [`MESSAGE_COST`].
const QUANTUM: usize = 2048;

/// What a message costs beside its bytes: it is counted by the hub, however small it is.
const MESSAGE_COST: usize = 1024;

/// How long a device is not sent for that the hub has throttled without saying for how long; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// How often it is doubled.
const MAX_DOUBLINGS: u8 = 6;

/// What came of a device's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream) enum Turn {
    /// It has nothing more that could go.
    Done,
    /// It has more; others are to have their turn first.
    More,
}

/// What sending takes beside the device.
pub(in crate::upstream) struct Path<'a> {
    pub(in crate::upstream) connection: &'a mut Connection,
    /// The links that devices share; absent where each has its own.
    pub(in crate::upstream) relay: Option<&'a mut Relay>,
    pub(in crate::upstream) load: &'a Rc<Load>,
    pub(in crate::upstream) device: Key<Device>,
    pub(in crate::upstream) now: Instant,
}

impl Path<'_> {
    fn has_credit(&mut self, outlet: &Outlet) -> bool {
        match &mut self.relay {
            None => outlet.link.as_ref().is_some_and(|link| link.has_credit(self.connection)),
            Some(relay) => {
                relay.link(&outlet.address).is_some_and(|(link, _)| link.has_credit(self.connection))
            }
        }
    }

    fn send(
        &mut self,
        outlet: &mut Outlet,
        unsettled: &mut Unsettled<InFlight>,
        relayed: &mut usize,
        message: &[u8],
        verdict: Verdict,
    ) -> Result<(), Verdict> {
        let Self { connection, relay, load, device, now } = self;
        let (load, device, now) = (*load, *device, *now);
        match relay {
            None => {
                let Some(link) = &mut outlet.link else { return Err(verdict) };
                let mut way = Way { connection, unsettled, load, device, now };
                outlet.in_flight += usize::from(link.send(&mut way, message, verdict)?);
            }
            Some(relay) => {
                let Some((link, unsettled)) = relay.link(&outlet.address) else { return Err(verdict) };
                if link.send(&mut Way { connection, unsettled, load, device, now }, message, verdict)? {
                    *relayed += 1;
                    relay.sent(&outlet.address);
                }
            }
        }
        Ok(())
    }

    /// What waits for the credit of a shared link waits in its line; what has credit has its next turn.
    fn stand_in_line(&mut self, outlet: &mut Outlet, has_credit: bool) {
        if let (Some(relay), false, false) = (&mut self.relay, has_credit, outlet.in_line) {
            outlet.in_line = relay.stand_in_line(&outlet.address, self.device);
        }
    }
}

impl Device {
    /// Whether the hub has throttled it, and wants to be left alone still.
    pub(in crate::upstream) fn paused_until(&self, now: Instant) -> Option<Instant> {
        self.paused_until.filter(|until| *until > now)
    }

    /// A pause is over: true if there was one.
    pub(in crate::upstream) fn ends_pause(&mut self, now: Instant) -> bool {
        self.paused_until.take_if(|until| *until <= now).is_some()
    }

    /// The hub has throttled it; where it has not said for how long, longer each time.
    pub(in crate::upstream) fn pause(&mut self, retry_after: Option<Duration>, now: Instant) {
        // Of many that were under way, each says it once more.
        if self.paused_until(now).is_none() {
            self.throttled = (self.throttled + 1).min(MAX_DOUBLINGS);
        }
        let time = retry_after.unwrap_or(FIRST_PAUSE * (1 << (self.throttled.max(1) - 1)));
        self.paused_until = self.paused_until.max(Some(now + time));
    }

    /// Sends now what nothing stands before; else gives the verdict back. The address has an outlet.
    pub(in crate::upstream) fn send(
        &mut self,
        path: &mut Path<'_>,
        address: &Address,
        message: &[u8],
        verdict: Verdict,
    ) -> Result<(), Verdict> {
        let Self { outlets, unsettled, relayed, paused_until, .. } = self;
        let outlet = outlets.iter_mut().find(|outlet| outlet.address == *address);
        match outlet {
            Some(outlet)
                if outlet.waiting.is_empty()
                    && paused_until.is_none_or(|until| until <= path.now)
                    && path.relay.as_ref().is_none_or(|relay| relay.is_free(address)) =>
            {
                path.send(outlet, unsettled, relayed, message, verdict)
            }
            _ => Err(verdict),
        }
    }

    /// Whether something waits that could go if it were its turn: there is credit for it.
    pub(in crate::upstream) fn could_send(&self, connection: &Connection) -> bool {
        self.outlets.iter().any(|outlet| {
            let credit = outlet.link.as_ref().is_some_and(|link| link.has_credit(connection));
            credit && !outlet.waiting.is_empty()
        })
    }

    /// Sends what waits, as far as the device's turn goes.
    pub(in crate::upstream) fn turn(&mut self, path: &mut Path<'_>) -> Turn {
        if self.paused_until(path.now).is_some() {
            return Turn::Done;
        }
        self.allowance = (self.allowance + QUANTUM.cast_signed()).min(QUANTUM.cast_signed());
        let first = self.first_outlet();
        let Self { outlets, unsettled, relayed, allowance, next, .. } = self;
        let mut more = false;
        let (before, from) = outlets.split_at_mut(first);
        for (at, outlet) in (first..).zip(from).chain((0..).zip(before)) {
            let mut has_sent = false;
            while let Some((priority, waiting)) = outlet.waiting.pop() {
                // Dropped, it is released.
                if !waiting.verdict.is_wanted(false) {
                    continue;
                }
                let has_credit = path.has_credit(outlet);
                let may = has_credit && *allowance > 0 && path.load.is_open(path.now);
                let Waiting { message, patience, verdict, share } = waiting;
                let sent = match may {
                    true => path.send(outlet, unsettled, relayed, &message, verdict),
                    false => Err(verdict),
                };
                match sent {
                    Ok(()) => {
                        *allowance -= (message.len() + MESSAGE_COST).cast_signed();
                        has_sent = true;
                    }
                    Err(verdict) => {
                        let waiting = Waiting { message, patience, verdict, share };
                        outlet.waiting.put_back(priority, waiting);
                        // A connection that is about to end takes nothing, whoever's turn it is.
                        let is_cut = has_credit && !(may && path.load.is_open(path.now));
                        if is_cut && !more {
                            // It goes on where this turn ends; who had his share of it comes last.
                            *next = at as u8 + u8::from(has_sent);
                        }
                        more |= is_cut;
                        path.stand_in_line(outlet, has_credit);
                        break;
                    }
                }
            }
        }
        if more {
            return Turn::More;
        }
        // Who has nothing to send saves nothing up.
        *allowance = (*allowance).min(0);
        Turn::Done
    }

    /// Where a turn begins: with the most urgent, as a rule.
    fn first_outlet(&mut self) -> usize {
        let many = self.outlets.len();
        if many < 2 {
            return 0;
        }
        self.turns = self.turns.wrapping_add(1);
        let next = usize::from(self.next) % many;
        if self.turns.is_multiple_of(TURN_OF_THE_LAST) {
            return next;
        }
        // Of several the last counts as the greatest: that is `next`, and those behind it.
        let in_turn = (0..many).rev().map(|behind| (next + behind) % many);
        in_turn.max_by_key(|at| self.outlets[*at].waiting.most_urgent()).unwrap_or(next)
    }
}
