//! What comes back from the hub for one connection: outcomes of its messages, commands for its device. Whoever brings
//! it only notes it here and wakes the connection's task.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};

use fieldgate_mappings::address::DeviceId;
use fieldgate_mappings::outcome::{Outcome, Rejection, Report, Verdict};
use fieldgate_mqtt::{PublishToken, QoS};

use crate::upstream::{Command, CommandSink};

use super::kept::Late;
use super::telemetry::{self, Kind};

/// Bytes of QoS 0 messages on their way to the hub, for each connection. Above it they are dropped.
const MAX_QOS_0_BYTES: u32 = 1024 * 1024;
/// What a message costs on its way besides its payload, about.
const MESSAGE_BYTES: usize = 512;
/// Outcomes that an empty queue keeps room for, 56 bytes each.
const KEPT_OUTCOMES: usize = 8;

/// Which message of a connection a verdict is about. It travels as the verdict's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ticket {
    /// QoS 1: the device waits for an answer.
    Waiting(PublishToken),
    /// QoS 2: the same.
    WaitingForOne(PublishToken),
    /// QoS 0, and what it costs in bytes.
    Unwaited(u32),
    /// The will.
    Will,
}

impl Ticket {
    const UNWAITED: u64 = 1 << 63;
    const WILL: u64 = 1 << 62;
    const ONE: u64 = 1 << 61;

    /// Of a message of this QoS, for whose answer the device waits.
    pub(super) fn of(token: PublishToken, qos: QoS) -> Self {
        match qos {
            QoS::ExactlyOnce => Self::WaitingForOne(token),
            QoS::AtMostOnce | QoS::AtLeastOnce => Self::Waiting(token),
        }
    }

    /// What the device's answer is for, if it waits for one.
    pub(super) fn token(self) -> Option<PublishToken> {
        match self {
            Self::Waiting(token) | Self::WaitingForOne(token) => Some(token),
            Self::Unwaited(_) | Self::Will => None,
        }
    }

    fn number(self) -> u64 {
        match self {
            Self::Waiting(token) => token.number(),
            Self::WaitingForOne(token) => Self::ONE | token.number(),
            Self::Unwaited(bytes) => Self::UNWAITED | u64::from(bytes),
            Self::Will => Self::WILL,
        }
    }

    pub(super) fn from_number(number: u64) -> Self {
        if number & Self::UNWAITED != 0 {
            Self::Unwaited(u32::try_from(number & !Self::UNWAITED).unwrap_or(u32::MAX))
        } else if number & Self::WILL != 0 {
            Self::Will
        } else if number & Self::ONE != 0 {
            Self::WaitingForOne(PublishToken::from_number(number & !Self::ONE))
        } else {
            Self::Waiting(PublishToken::from_number(number))
        }
    }

    /// What it is counted as.
    pub(super) fn kind(self) -> Kind {
        match self {
            Self::Waiting(_) => Kind::QoS1,
            Self::WaitingForOne(_) => Kind::QoS2,
            Self::Unwaited(_) => Kind::QoS0,
            Self::Will => Kind::Will,
        }
    }
}

/// Why no command comes any more.
#[derive(Debug)]
pub(super) enum Ended {
    /// The hub refused the subscription.
    Refused(Rejection),
    /// The hub took it away, for a reason that is not the device's concern.
    Withdrawn,
}

/// What one connection has to look at.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    outcomes: RefCell<VecDeque<(Ticket, Outcome)>>,
    /// At most as many as the credit of each subscription.
    commands: RefCell<VecDeque<Command>>,
    ended: RefCell<Vec<(DeviceId, Ended)>>,
    qos_0_bytes: Cell<u32>,
    /// The client is gone without a goodbye: it will send again what it has no answer for.
    deserted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    /// What is left when the connection is gone and its session is not.
    heir: RefCell<Option<Box<Heir>>>,
}

/// The session's next connection, as far as this one's messages are concerned.
#[derive(Debug)]
struct Heir {
    /// Where their outcomes go.
    late: Arc<Late>,
    /// QoS 2: where the first attempt got there, these are no new messages when the client sends them again. Sorted.
    awaited: Box<[PublishToken]>,
}

impl Heir {
    fn awaits(&self, token: PublishToken) -> bool {
        self.awaited.binary_search(&token).is_ok()
    }

    fn hears(&self, token: PublishToken, outcome: Outcome) {
        if self.awaits(token) {
            self.late.put(token, outcome);
        }
    }
}

impl Inbox {
    /// A verdict on a message of QoS 1 or 2, or on the will.
    pub(super) fn verdict(self: &Rc<Self>, ticket: Ticket) -> Verdict {
        Verdict::new(Rc::clone(self) as Rc<dyn Report>, ticket.number())
    }

    /// A verdict on a message of QoS 0 with so many bytes of payload, if it is not one too many.
    pub(super) fn unwaited(self: &Rc<Self>, payload_bytes: usize) -> Option<Verdict> {
        let bytes = u32::try_from(payload_bytes + MESSAGE_BYTES).ok()?;
        let sum = self.qos_0_bytes.get().checked_add(bytes).filter(|sum| *sum <= MAX_QOS_0_BYTES)?;
        self.qos_0_bytes.set(sum);
        Some(self.verdict(Ticket::Unwaited(bytes)))
    }

    /// The task of `cx` is woken when something comes.
    pub(super) fn listen(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    /// The next outcome that somebody has to act on.
    pub(super) fn next_outcome(&self) -> Option<(Ticket, Outcome)> {
        let mut outcomes = self.outcomes.borrow_mut();
        let next = outcomes.pop_front();
        if next.is_none() && outcomes.capacity() > KEPT_OUTCOMES {
            *outcomes = VecDeque::new();
        }
        next
    }

    /// The next command.
    pub(super) fn next_command(&self) -> Option<Command> {
        self.commands.borrow_mut().pop_front()
    }

    /// A command that has to wait, in front of the others.
    pub(super) fn put_back(&self, command: Command) {
        self.commands.borrow_mut().push_front(command);
    }

    /// Forgets what a device's dropped subscription brought, without an outcome: the hub keeps it.
    pub(super) fn forget_commands_of(&self, device: &DeviceId) {
        self.commands.borrow_mut().retain(|command| command.message.device != *device);
        self.ended.borrow_mut().retain(|(of, _)| of != device);
    }

    /// The same for all of them.
    pub(super) fn forget_commands(&self) {
        self.commands.take();
        self.ended.take();
    }

    /// The client is gone, and did not say goodbye.
    pub(super) fn desert(&self) {
        self.deserted.set(true);
    }

    /// The end of a device's subscription, each once.
    pub(super) fn take_ended(&self) -> Option<(DeviceId, Ended)> {
        self.ended.borrow_mut().pop()
    }

    /// From now on the outcomes are for the session's next connection, which waits for some of them.
    pub(super) fn forward(&self, late: &Arc<Late>, awaited: impl Iterator<Item = PublishToken>) {
        let mut awaited: Box<[PublishToken]> = awaited.collect();
        awaited.sort_unstable();
        let heir = Heir { late: Arc::clone(late), awaited };
        for (ticket, outcome) in self.outcomes.take() {
            if let Some(token) = ticket.token() {
                heir.hears(token, outcome);
            }
        }
        self.heir.replace(Some(Box::new(heir)));
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl Report for Inbox {
    fn report(&self, ticket: u64, outcome: Outcome) {
        let ticket = Ticket::from_number(ticket);
        telemetry::published(ticket.kind(), &outcome).inc();
        if let Ticket::Unwaited(bytes) = ticket {
            self.qos_0_bytes.set(self.qos_0_bytes.get().saturating_sub(bytes));
            if lost(&outcome) {
                telemetry::qos_0_dropped().inc();
            }
        }
        if let (Some(token), Some(heir)) = (ticket.token(), &*self.heir.borrow()) {
            return heir.hears(token, outcome);
        }
        // Of what nobody waits for only a refusal is worth a look.
        if ticket.token().is_some() || matches!(outcome, Outcome::Rejected(_)) {
            self.outcomes.borrow_mut().push_back((ticket, outcome));
            self.wake();
        }
    }

    fn is_wanted(&self, ticket: u64, may_be_there: bool) -> bool {
        match (Ticket::from_number(ticket).token(), &*self.heir.borrow()) {
            (Some(token), Some(heir)) if heir.awaits(token) => may_be_there,
            (Some(_), _) => !self.deserted.get(),
            (None, _) => true,
        }
    }
}

/// Whether a message that nobody sends again is lost, although nothing was wrong with it.
fn lost(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Accepted => false,
        Outcome::Rejected(rejection) => rejection.reason.loses_the_message(),
        Outcome::Released | Outcome::Unknown => true,
    }
}

/// Where one device's commands come in.
pub(super) struct DeviceSink {
    pub(super) inbox: Rc<Inbox>,
    pub(super) device: DeviceId,
}

impl CommandSink for DeviceSink {
    fn command(&self, command: Command) {
        self.inbox.commands.borrow_mut().push_back(command);
        self.inbox.wake();
    }

    fn ended(&self, refused: Option<Rejection>) {
        let ended = refused.map_or(Ended::Withdrawn, Ended::Refused);
        self.inbox.ended.borrow_mut().push((self.device.clone(), ended));
        self.inbox.wake();
    }
}

#[cfg(test)]
mod tests {
    use fieldgate_mappings::outcome::Reason;

    use super::*;

    #[test]
    fn a_ticket_comes_back_as_it_was() {
        for ticket in [
            Ticket::Waiting(PublishToken::from_number(0)),
            Ticket::Waiting(PublishToken::from_number(u64::MAX >> 3)),
            Ticket::WaitingForOne(PublishToken::from_number(u64::MAX >> 3)),
            Ticket::Unwaited(0),
            Ticket::Unwaited(u32::MAX),
            Ticket::Will,
        ] {
            assert_eq!(Ticket::from_number(ticket.number()), ticket);
        }
    }

    #[test]
    fn qos_0_is_bounded_in_bytes_and_room_comes_back_with_every_outcome() {
        let inbox = Rc::new(Inbox::default());
        let mut verdicts: Vec<Verdict> = std::iter::from_fn(|| inbox.unwaited(100 * 1024)).collect();
        assert_eq!(verdicts.len(), 10);
        assert!(inbox.unwaited(20 * 1024).is_none());
        verdicts.pop().expect("ten").report(Outcome::Accepted);
        assert!(inbox.unwaited(20 * 1024).is_some_and(|verdict| verdict.ticket() & Ticket::UNWAITED != 0));
        drop(verdicts);
        assert_eq!(inbox.qos_0_bytes.get(), 0);
        assert!(inbox.next_outcome().is_none(), "nobody waits for QoS 0");
        assert!(inbox.unwaited(usize::MAX / 2).is_none());
    }

    #[test]
    fn a_refusal_is_worth_a_look_whatever_it_is_about() {
        let inbox = Rc::new(Inbox::default());
        let refused = || Outcome::Rejected(Rejection::new(Reason::Content, "no"));
        inbox.unwaited(1).expect("room").report(refused());
        inbox.verdict(Ticket::Will).report(refused());
        drop(inbox.verdict(Ticket::Will));
        drop(inbox.verdict(Ticket::Waiting(PublishToken::from_number(3))));
        let seen: Vec<_> = std::iter::from_fn(|| inbox.next_outcome()).collect();
        assert_eq!(
            seen,
            [
                (Ticket::Unwaited(513), refused()),
                (Ticket::Will, refused()),
                (Ticket::Waiting(PublishToken::from_number(3)), Outcome::Released),
            ]
        );
    }
}
