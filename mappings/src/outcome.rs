//! How a message ends: exactly one [`Outcome`] for each, carried back by a [`Verdict`].
//!
//! The outcomes are AMQP's, because the hub speaks it; each protocol's own answer to them is one exhaustive function
//! in that protocol's file.

use std::borrow::Cow;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The receiver has taken responsibility (AMQP 1.0 3.4.2).
    Accepted,
    /// The message is at fault and would be refused again (AMQP 1.0 3.4.3).
    Rejected(Rejection),
    /// It was certainly not taken; sending it again is right (AMQP 1.0 3.4.4).
    Released,
    /// It was sent and no answer came: it may have been taken or not.
    Unknown,
}

/// A refusal: the reason that decides the device's answer, and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// What the device's protocol turns into its own code.
    pub reason: Reason,
    /// One sentence without secrets and without payload; may be shown to the device.
    pub description: Cow<'static, str>,
}

impl Rejection {
    /// A refusal for `reason`.
    pub fn new(reason: Reason, description: impl Into<Cow<'static, str>>) -> Self {
        Self { reason, description: description.into() }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason.name(), self.description)
    }
}

impl std::error::Error for Rejection {}

/// Why a message was refused. A new reason does not compile until every protocol says its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No credentials, or wrong or expired ones.
    Credentials,
    /// Known, but not allowed to do this: another device's address, for example.
    NotPermitted,
    /// No rule matches, or the hub has no such node or device.
    NoSuchAddress,
    /// Larger than the hub, the rule or the protocol allows.
    TooLarge,
    /// A limit over time or of a queue was reached.
    Quota {
        /// When another attempt makes sense, where the hub said so.
        retry_after: Option<Duration>,
    },
    /// The content is wrong: a property, an identifier, an encoding.
    Content,
    /// The gateway was to keep it on its disk, and has no room for it now.
    Full {
        /// When another attempt makes sense, where it is known.
        retry_after: Option<Duration>,
    },
    /// The gateway was to keep it on its disk, and the disk failed.
    Disk {
        /// When another attempt makes sense, where it is known.
        retry_after: Option<Duration>,
    },
}

impl Reason {
    /// A bounded label for metrics and logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Credentials => "credentials",
            Self::NotPermitted => "not-permitted",
            Self::NoSuchAddress => "no-such-address",
            Self::TooLarge => "too-large",
            Self::Quota { .. } => "quota",
            Self::Content => "content",
            Self::Full { .. } => "full",
            Self::Disk { .. } => "disk",
        }
    }

    /// Whether the message was not at fault and nobody keeps it: it is lost unless it is sent again.
    pub fn loses_the_message(&self) -> bool {
        match self {
            Self::Full { .. } | Self::Disk { .. } => true,
            Self::Credentials
            | Self::NotPermitted
            | Self::NoSuchAddress
            | Self::TooLarge
            | Self::Quota { .. }
            | Self::Content => false,
        }
    }
}

/// Who is told how a message ended: the connection of the device that sent it.
///
/// Called while the caller may be anywhere in its own work, so an implementation only notes the outcome (a queue, a
/// flag, a wake-up) and never calls back into what reported it.
pub trait Report {
    /// The message that was handed out with `ticket` ended so. Called exactly once for each verdict.
    fn report(&self, ticket: u64, outcome: Outcome);

    /// Whether the message is still to be sent. Not where its device is gone that would have heard the outcome: it sends
    /// the message again, elsewhere, and this one would come behind that. `may_be_there` says that an earlier attempt may
    /// have reached the hub; whoever sends no message again that may be there, needs this one then.
    fn is_wanted(&self, ticket: u64, may_be_there: bool) -> bool {
        let _ = (ticket, may_be_there);
        true
    }
}

/// The duty to say how one message ended. It travels with the message, and reports exactly once.
///
/// Dropped without [`report`](Self::report) (a bug, a panic, a closed channel) it reports by itself:
/// [`Outcome::Released`] when the message was never sent, [`Outcome::Unknown`] once [`sent`](Self::sent) was called;
/// never accepted.
#[must_use = "dropping a verdict reports the message as released or unknown"]
pub struct Verdict {
    report: Rc<dyn Report>,
    ticket: u64,
    state: State,
}

/// `Waiting -> Sent -> Reported`, or straight from `Waiting` to `Reported`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting,
    Sent,
    Reported,
}

impl Verdict {
    /// A verdict on the message that `report`'s owner knows by `ticket`.
    pub fn new(report: Rc<dyn Report>, ticket: u64) -> Self {
        Self { report, ticket, state: State::Waiting }
    }

    /// The owner's number for the message.
    pub fn ticket(&self) -> u64 {
        self.ticket
    }

    /// Whether the message, if it was not sent yet, is still to be: see [`Report::is_wanted`].
    pub fn is_wanted(&self, may_be_there: bool) -> bool {
        self.report.is_wanted(self.ticket, may_be_there)
    }

    /// From here on bytes of the message may have reached the hub: being lost no longer means that it was not taken.
    pub fn sent(&mut self) {
        self.state = State::Sent;
    }

    /// Says how the message ended.
    pub fn report(mut self, outcome: Outcome) {
        self.settle(outcome);
    }

    fn settle(&mut self, outcome: Outcome) {
        // Before the call: should it panic, the drop that follows must not report again.
        self.state = State::Reported;
        self.report.report(self.ticket, outcome);
    }
}

impl Drop for Verdict {
    fn drop(&mut self) {
        match self.state {
            State::Waiting => self.settle(Outcome::Released),
            State::Sent => self.settle(Outcome::Unknown),
            State::Reported => {}
        }
    }
}

impl fmt::Debug for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verdict")
            .field("ticket", &self.ticket)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[derive(Default)]
    struct Ledger(RefCell<Vec<(u64, Outcome)>>);

    impl Report for Ledger {
        fn report(&self, ticket: u64, outcome: Outcome) {
            self.0.borrow_mut().push((ticket, outcome));
        }
    }

    fn verdict(ledger: &Rc<Ledger>, ticket: u64) -> Verdict {
        Verdict::new(ledger.clone(), ticket)
    }

    #[test]
    fn a_reported_verdict_reports_once() {
        let ledger = Rc::new(Ledger::default());
        let refused = Outcome::Rejected(Rejection::new(Reason::Content, "no"));
        verdict(&ledger, 1).report(Outcome::Accepted);
        let mut second = verdict(&ledger, 2);
        second.sent();
        second.report(refused.clone());
        assert_eq!(*ledger.0.borrow(), [(1, Outcome::Accepted), (2, refused)]);
    }

    #[test]
    fn a_lost_verdict_is_released_before_sending_and_unknown_after() {
        let ledger = Rc::new(Ledger::default());
        drop(verdict(&ledger, 1));
        let mut sent = verdict(&ledger, 2);
        sent.sent();
        drop(sent);
        assert_eq!(*ledger.0.borrow(), [(1, Outcome::Released), (2, Outcome::Unknown)]);
    }

    #[test]
    fn verdicts_in_a_queue_that_is_dropped_all_report() {
        let ledger = Rc::new(Ledger::default());
        let mut queue: Vec<Verdict> = (0..3).map(|ticket| verdict(&ledger, ticket)).collect();
        queue[1].sent();
        drop(queue);
        assert_eq!(
            *ledger.0.borrow(),
            [(0, Outcome::Released), (1, Outcome::Unknown), (2, Outcome::Released)]
        );
    }

    #[test]
    fn a_panic_on_the_way_releases() {
        let ledger = Rc::new(Ledger::default());
        let held = verdict(&ledger, 7);
        let result = catch_unwind(AssertUnwindSafe(move || {
            let _held = held;
            panic!("a bug on the way");
        }));
        assert!(result.is_err());
        assert_eq!(*ledger.0.borrow(), [(7, Outcome::Released)]);
    }

    #[test]
    fn a_report_that_panics_is_not_repeated() {
        struct Panics(RefCell<u32>);
        impl Report for Panics {
            fn report(&self, _: u64, _: Outcome) {
                *self.0.borrow_mut() += 1;
                panic!("a bug in the report");
            }
        }
        let panics = Rc::new(Panics(RefCell::new(0)));
        let verdict = Verdict::new(panics.clone(), 1);
        assert!(catch_unwind(AssertUnwindSafe(move || verdict.report(Outcome::Accepted))).is_err());
        assert_eq!(*panics.0.borrow(), 1);
    }
}
