//! Deliveries that are lent: commands at their devices, feedback at services, until they say what came of it.

use fieldgate_amqp::connection::{Connection, LinkId, SessionId};
use fieldgate_amqp::error::{AmqpError, Condition};
use fieldgate_amqp::performative::{DeliveryState, Disposition, DispositionOut, Role, rejected};
use fieldgate_amqp::ring::DeliveryRing;
use fieldgate_mappings::DeviceId;

use super::super::queue::{LockLost, LockToken, Settlement};

/// A delivery that is lent.
#[derive(Debug)]
pub(super) struct Loan {
    pub(super) link: LinkId,
    pub(super) token: LockToken,
    pub(super) lender: Lender,
}

/// Whose it is.
#[derive(Debug, Clone)]
pub(super) enum Lender {
    /// The queue of this device's commands.
    Commands(DeviceId),
    /// The feedback queue.
    Feedback,
}

/// How a loan ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Return {
    /// With an outcome.
    Settled(Settlement),
    /// With none: the borrower is gone, or has settled without a word.
    Given,
}

/// The loans of one session, by delivery-id.
#[derive(Debug, Default)]
pub(super) struct Loans {
    ring: DeliveryRing<Loan>,
}

impl Loans {
    /// Notes a loan under the delivery that it went out with.
    ///
    /// # Errors
    /// Gives it back where an id this far from the oldest loan has no order among the others.
    pub(super) fn push(&mut self, delivery_id: u32, loan: Loan) -> Result<(), Loan> {
        self.ring.push(delivery_id, loan)
    }

    /// Takes a disposition of the session: every loan that it ends goes to `end`, which tells whether the lock was
    /// still good. Where the peer waits for us to settle (rcv-settle-mode second, 2.6.12), we do: with its own
    /// outcome, or with a rejection where that came too late.
    pub(super) fn on_disposition(
        &mut self,
        machine: &mut Connection,
        session: SessionId,
        disposition: &Disposition,
        mut end: impl FnMut(&Loan, Return) -> Result<(), LockLost>,
    ) {
        if disposition.role != Role::Receiver {
            return;
        }
        // A state that cannot be read is no outcome, but settled is settled.
        let state = disposition.state().and_then(|state| DeliveryState::decode(state).ok());
        let how = match state {
            Some(DeliveryState::Accepted) => Return::Settled(Settlement::Complete),
            Some(DeliveryState::Rejected(_)) => Return::Settled(Settlement::Reject),
            Some(DeliveryState::Released | DeliveryState::Modified { .. }) => {
                Return::Settled(Settlement::Abandon)
            }
            Some(DeliveryState::Received { .. } | DeliveryState::Other(_)) | None if disposition.settled => {
                Return::Given
            }
            // On its way: it has no outcome yet.
            Some(DeliveryState::Received { .. } | DeliveryState::Other(_)) | None => return,
        };
        let mut answers = Answers { machine, session, state: disposition.state(), run: None };
        self.ring.remove_range(disposition.first, disposition.last, |id, loan| {
            let result = end(&loan, how);
            if !disposition.settled {
                answers.add(id, result);
            }
        });
        answers.flush();
    }

    /// Takes out the loans of a link that is gone.
    pub(super) fn lose_link(&mut self, link: LinkId, mut lost: impl FnMut(&Loan)) {
        self.ring.retain(|_, loan| loan.link != link, |_, loan| lost(&loan));
    }

    /// Whether nothing is lent.
    pub(super) fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }
}

/// Our dispositions in answer to the peer's: one for a run of deliveries that end well.
struct Answers<'a> {
    machine: &'a mut Connection,
    session: SessionId,
    state: Option<&'a [u8]>,
    run: Option<(u32, u32)>,
}

impl Answers<'_> {
    fn add(&mut self, id: u32, result: Result<(), LockLost>) {
        match (result, &mut self.run) {
            (Ok(()), Some((_, last))) => *last = id,
            (Ok(()), None) => self.run = Some((id, id)),
            (Err(LockLost), _) => {
                self.flush();
                let condition = Condition::Other("com.microsoft:message-lock-lost".into());
                let error = AmqpError::new(&condition, Some("the lock on the message has run out"));
                self.put(id, id, Some(&rejected(Some(&error))));
            }
        }
    }

    fn flush(&mut self) {
        if let Some((first, last)) = self.run.take() {
            self.put(first, last, self.state);
        }
    }

    fn put(&mut self, first: u32, last: u32, state: Option<&[u8]>) {
        let answer =
            DispositionOut { role: Role::Sender, first, last, settled: true, state, batchable: false };
        self.machine.disposition(self.session, answer);
    }
}
