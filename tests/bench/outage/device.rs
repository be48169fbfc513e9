//! A device: one link, unsettled deliveries at a steady pace, some of them in pieces, and an ear for what becomes of
//! each.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use fieldgate_amqp::connection::{ClientSecurity, Connection, ConnectionConfig, Event, LinkId, SessionId};
use fieldgate_amqp::message::put_data;
use fieldgate_amqp::performative::{
    AttachOut, DeliveryState, Disposition, DispositionOut, Role, SndSettleMode, SourceOut, TargetOut,
    TransferOut,
};
use fieldgate_amqp::ring::DeliveryRing;

use super::ledger::{Ledger, Outcome};
use super::party::Party;

/// How often a device sends: each time a few messages, or a piece of a long one.
pub(crate) const PACE: Duration = Duration::from_millis(100);

/// Each so many-th delivery of a device is long, and goes out in pieces: at the cut many are under way in part.
const LONG: u64 = 8;
const PIECES: usize = 4;
const LONG_BYTES: usize = 20_000;
const SHORT_BYTES: usize = 100;

/// What tells all devices what to do.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    /// New deliveries are begun.
    pub(crate) send: Cell<bool>,
    /// Leave.
    pub(crate) close: Cell<bool>,
}

/// The message of a delivery: its number, and bytes that no other place of it has.
pub(crate) fn message(number: u64, bytes: usize) -> BytesMut {
    let mut body = number.to_be_bytes().to_vec();
    body.extend((0..bytes.saturating_sub(body.len())).map(|place| (place as u64 ^ number) as u8));
    let mut out = BytesMut::new();
    put_data(&mut out, &body);
    out
}

/// A delivery that is sent in pieces.
#[derive(Debug)]
struct Long {
    number: u64,
    rest: BytesMut,
    piece: usize,
}

/// One device.
#[derive(Debug)]
pub(crate) struct Device {
    number: usize,
    each_time: u32,
    ledger: Rc<RefCell<Ledger>>,
    orders: Rc<Orders>,
    session: Option<SessionId>,
    link: Option<LinkId>,
    unsettled: DeliveryRing<u64>,
    long: Option<Long>,
    sent: u64,
    next: Instant,
    closing: bool,
}

impl Device {
    /// A device that sends `each_time` messages at every step of its pace.
    pub(crate) fn new(
        number: usize,
        each_time: u32,
        ledger: Rc<RefCell<Ledger>>,
        orders: Rc<Orders>,
    ) -> Self {
        Self {
            number,
            each_time,
            ledger,
            orders,
            session: None,
            link: None,
            unsettled: DeliveryRing::new(),
            long: None,
            // Not all devices send their long ones at the same time.
            sent: number as u64,
            next: Instant::now(),
            closing: false,
        }
    }

    pub(crate) fn machine(&self) -> Connection {
        let config =
            ConnectionConfig { container_id: format!("dev{}", self.number), ..ConnectionConfig::default() };
        let open = config.open();
        Connection::client(Arc::new(config), ClientSecurity::Anonymous, open, Instant::now())
    }

    fn attach(&mut self, machine: &mut Connection) {
        let (name, address) =
            (format!("sender-{}", self.number), format!("devices/dev{}/messages/events", self.number));
        let source = SourceOut::default().build();
        let target = TargetOut { address: Some(&address), ..TargetOut::default() }.build();
        let attach = AttachOut {
            snd_settle_mode: SndSettleMode::Unsettled,
            ..AttachOut::sender(&name, &source, &target)
        };
        let begun =
            machine.begin().and_then(|session| Ok((session, machine.attach(session, &attach.build())?)));
        match begun {
            Ok((session, link)) => (self.session, self.link) = (Some(session), Some(link)),
            Err(misuse) => self.lost(format_args!("cannot attach: {misuse}")),
        }
    }

    fn lost(&self, what: impl std::fmt::Display) {
        if !self.closing {
            self.ledger.borrow_mut().lost(self.number, what);
        }
    }

    fn settle(
        &mut self,
        machine: &mut Connection,
        session: SessionId,
        disposition: &Disposition,
        now: Instant,
    ) {
        let state = disposition.state().and_then(|raw| DeliveryState::decode(raw).ok());
        if disposition.role != Role::Receiver
            || !disposition.settled && !state.as_ref().is_some_and(DeliveryState::is_outcome)
        {
            return;
        }
        let outcome = match state {
            Some(DeliveryState::Accepted) => Outcome::Accepted,
            Some(DeliveryState::Released) => Outcome::Released,
            // A modified that does not say so would mean that nothing was tried.
            Some(DeliveryState::Modified { delivery_failed: true, undeliverable_here: false, .. }) => {
                Outcome::Modified
            }
            _ => Outcome::Other,
        };
        let mut ledger = self.ledger.borrow_mut();
        self.unsettled
            .remove_range(disposition.first, disposition.last, |_, number| ledger.told(number, outcome, now));
        if !disposition.settled {
            let answer = DispositionOut {
                role: Role::Sender,
                first: disposition.first,
                last: disposition.last,
                settled: true,
                state: disposition.state(),
                batchable: false,
            };
            machine.disposition(session, answer);
        }
    }

    /// Sends what one step of the pace allows.
    fn step(&mut self, machine: &mut Connection, link: LinkId, now: Instant) {
        if self.long.is_some() {
            return self.piece(machine, link);
        }
        for _ in 0..self.each_time {
            if !self.orders.send.get() || machine.link(link).is_none_or(|link| link.credit == 0) {
                return;
            }
            self.sent += 1;
            let bytes = if self.sent.is_multiple_of(LONG) { LONG_BYTES } else { SHORT_BYTES };
            let number = self.ledger.borrow_mut().begin(self.number, bytes, now);
            let message = message(number, bytes);
            if bytes == LONG_BYTES {
                self.long = Some(Long { number, rest: message, piece: 0 });
                return self.piece(machine, link);
            }
            self.transfer(machine, link, Some(number), &message, false);
        }
    }

    fn piece(&mut self, machine: &mut Connection, link: LinkId) {
        let Some(mut long) = self.long.take() else { return };
        let first = (long.piece == 0).then_some(long.number);
        long.piece += 1;
        let more = long.piece < PIECES;
        let bytes = if more { LONG_BYTES / PIECES } else { long.rest.len() };
        let piece = long.rest.split_to(bytes);
        self.transfer(machine, link, first, &piece, more);
        if more {
            self.long = Some(long);
        }
    }

    /// A transfer; with a number it begins the delivery of that number.
    fn transfer(
        &mut self,
        machine: &mut Connection,
        link: LinkId,
        first: Option<u64>,
        payload: &[u8],
        more: bool,
    ) {
        let tag = first.map(u64::to_be_bytes);
        let fields = TransferOut {
            delivery_tag: tag.as_ref().map(<[u8; 8]>::as_slice),
            message_format: first.map(|_| 0),
            settled: first.map(|_| false),
            more,
            ..TransferOut::default()
        };
        match (machine.transfer(link, fields, payload), first) {
            (Ok(id), Some(number)) => {
                if self.unsettled.push(id, number).is_err() {
                    self.lost("delivery-ids have no order");
                }
            }
            (Ok(_), None) => {}
            (Err(misuse), _) => self.lost(format_args!("cannot send: {misuse}")),
        }
    }
}

impl Party for Device {
    fn on_event(&mut self, machine: &mut Connection, event: Event, now: Instant) {
        match event {
            Event::Opened(_) => self.attach(machine),
            Event::Attached { attach, .. } if attach.target().is_some() => {
                self.ledger.borrow_mut().attached(self.number);
            }
            Event::Disposition { session, disposition } => self.settle(machine, session, &disposition, now),
            Event::Detached { detach, .. } => {
                self.link = None;
                self.lost(format_args!("detached: {:?}", detach.error()));
            }
            Event::SessionEnded { error, .. } => {
                self.link = None;
                self.lost(format_args!("the session ended: {error:?}"));
            }
            Event::Closed(reason) => {
                self.link = None;
                self.lost(format_args!("{reason}"));
            }
            _ => {}
        }
    }

    fn turn(&mut self, machine: &mut Connection, now: Instant) -> Option<Instant> {
        if self.orders.close.get() && !self.closing {
            self.closing = true;
            machine.close(None);
        }
        if self.closing {
            return None;
        }
        if let Some(link) = self.link {
            if self.next <= now {
                self.step(machine, link, now);
            }
            let credit = machine.link(link).map_or(0, |link| link.credit);
            self.ledger.borrow_mut().credit(self.number, credit);
        }
        if self.next <= now {
            self.next = now + PACE;
        }
        Some(self.next)
    }
}
