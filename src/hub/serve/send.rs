//! What the hub sends: answers, events, and loans, each as far as credit, windows and output allow.

use bytes::{Bytes, BytesMut};
use fieldgate_amqp::connection::{LinkId, SessionId, TransferOut};
use fieldgate_amqp::error::{Condition, Misuse};
use fieldgate_mappings::DeviceId;

use super::super::message::{self, Lending};
use super::super::queue::{LockLost, LockToken, Settlement};
use super::super::state::Refusal;
use super::super::telemetry::LinkReason;
use super::super::time::Now;
use super::lent::{Lender, Loan, Loans, Return};
use super::links::Kind;
use super::peer::Peer;
use super::shared::Shared;

/// While this much waits to be written, nothing more is said.
const MAX_OUTPUT_BYTES: usize = 256 * 1024;
/// While this much waits for the windows of the peer's sessions, neither.
const MAX_HELD_BYTES: usize = 1024 * 1024;

/// How sending a message went.
enum Sent {
    /// It is gone, and there may be another one.
    More,
    /// There is nothing to send.
    Nothing,
    /// It could not be sent.
    Refused(Misuse),
}

impl From<Result<u32, Misuse>> for Sent {
    fn from(result: Result<u32, Misuse>) -> Self {
        result.map_or_else(Self::Refused, |_| Self::More)
    }
}

impl Peer {
    /// Sends on a link until it has nothing to send or may not.
    pub(super) fn pump_link(&mut self, now: Now, id: LinkId, unwritten_bytes: usize) {
        loop {
            let Some(link) = self.links.get_mut(id) else { return };
            let session = link.session;
            let Some(sender) = link.kind.sender() else { return };
            if sender.credit(&self.machine) == 0 {
                return sender.drained(&mut self.machine);
            }
            if self.machine.output_bytes() + unwritten_bytes >= MAX_OUTPUT_BYTES {
                self.stalled.insert(id);
                return;
            }
            if !self.may_send(session) {
                self.shut_out.insert(id);
                return;
            }
            match self.send_next(now, id) {
                Sent::More => {
                    if self.machine.session_backlog_bytes(session) > 0 {
                        self.held.insert(session);
                    }
                }
                Sent::Nothing => {
                    if let Some(sender) = self.links.get_mut(id).and_then(|link| link.kind.sender()) {
                        sender.drained(&mut self.machine);
                    }
                    return;
                }
                Sent::Refused(Misuse::Backlog) => {
                    self.shut_out.insert(id);
                    return;
                }
                Sent::Refused(misuse) => {
                    let refusal = Refusal::new(Condition::InternalError, misuse.to_string());
                    return self.detach(id, LinkReason::Invalid, &refusal);
                }
            }
        }
    }

    /// Whether a session's window lets more through, and not too much waits for others.
    fn may_send(&mut self, session: SessionId) -> bool {
        let machine = &self.machine;
        self.held.retain(|session| machine.session_backlog_bytes(*session) > 0);
        let waiting: usize = self.held.iter().map(|session| machine.session_backlog_bytes(*session)).sum();
        !self.held.contains(&session) && waiting < MAX_HELD_BYTES
    }

    /// What waits for the windows of the peer's sessions.
    #[cfg(test)]
    pub(super) fn held_bytes(&self) -> usize {
        self.held.iter().map(|session| self.machine.session_backlog_bytes(*session)).sum()
    }

    /// Sends a link's next message.
    fn send_next(&mut self, now: Now, id: LinkId) -> Sent {
        let Some(link) = self.links.get_mut(id) else { return Sent::Nothing };
        let session = link.session;
        match &mut link.kind {
            Kind::TokenResponses { settled, .. } => {
                let Some(answer) = self.answers.pop_front() else { return Sent::Nothing };
                self.next_tag = self.next_tag.wrapping_add(1);
                let tag = self.next_tag.to_be_bytes();
                self.machine.transfer(id, fields(&tag, *settled), &answer).into()
            }
            Kind::Events { partition, next, settled, .. } => {
                let state = self.shared.state.borrow();
                let Some(record) = state.log.read(*partition, *next) else { return Sent::Nothing };
                let sequence = record.stamp.sequence;
                let sent =
                    self.machine.transfer(id, fields(&sequence.to_be_bytes(), *settled), &record.message);
                if sent.is_ok() {
                    *next = sequence + 1;
                }
                sent.into()
            }
            Kind::Device { device, .. } => {
                let device = device.clone();
                self.lend_command(now, id, session, device)
            }
            Kind::Feedback { .. } => self.lend_feedback(now, id, session),
            Kind::TokenRequests(_) | Kind::Telemetry { .. } | Kind::Commands(_) => Sent::Nothing,
        }
    }

    fn lend_command(&mut self, now: Now, id: LinkId, session: SessionId, device: DeviceId) -> Sent {
        let Some(token) = self.shared.lock_token() else { return Sent::Nothing };
        let lent = self.shared.state.borrow_mut().commands.lock_next(now, &device, token);
        let Some(lent) = lent else { return Sent::Nothing };
        let lending = Lending {
            sequence: lent.sequence,
            token,
            enqueued: lent.enqueued,
            delivery_count: lent.delivery_count,
        };
        let mut message = BytesMut::new();
        message::put_command(&mut message, lending, &lent.message);
        self.lend(session, Loan { link: id, token, lender: Lender::Commands(device) }, &message)
    }

    fn lend_feedback(&mut self, now: Now, id: LinkId, session: SessionId) -> Sent {
        let Some(token) = self.shared.lock_token() else { return Sent::Nothing };
        let message = {
            let mut state = self.shared.state.borrow_mut();
            let state = &mut *state;
            let Some(lent) = state.feedback.lock_next(now, token) else { return Sent::Nothing };
            let lending = Lending {
                sequence: lent.sequence,
                token,
                enqueued: lent.enqueued,
                delivery_count: lent.delivery_count,
            };
            let json: &Bytes = lent.item;
            let mut message = BytesMut::new();
            message::put_feedback(&mut message, lending, &state.name, json);
            message
        };
        self.lend(session, Loan { link: id, token, lender: Lender::Feedback }, &message)
    }

    /// Sends what was locked; what could not be sent goes back.
    fn lend(&mut self, session: SessionId, loan: Loan, message: &[u8]) -> Sent {
        if self.loans.get(session).is_none() {
            self.loans.insert(session, Loans::default());
        }
        let result = self.machine.transfer(loan.link, fields(&loan.token.0, false), message);
        let (loan, misuse) = match (result, self.loans.get_mut(session)) {
            (Ok(delivery_id), Some(loans)) => match loans.push(delivery_id, loan) {
                Ok(()) => return Sent::More,
                Err(loan) => (loan, Misuse::State),
            },
            (Ok(_), None) => (loan, Misuse::UnknownSession),
            (Err(misuse), _) => (loan, misuse),
        };
        // The link is detached, or waits for its window: nobody is to be woken for what it has just had.
        put_back(&self.shared, loan.token, &loan.lender);
        Sent::Refused(misuse)
    }
}

fn fields(tag: &[u8], settled: bool) -> TransferOut<'_> {
    TransferOut {
        delivery_tag: Some(tag),
        message_format: Some(0),
        settled: Some(settled),
        ..TransferOut::default()
    }
}

/// Ends a loan as its borrower says.
///
/// # Errors
/// [`LockLost`], when it says so too late.
pub(super) fn end_loan(shared: &Shared, now: Now, loan: &Loan, how: Return) -> Result<(), LockLost> {
    let Return::Settled(settlement) = how else {
        give_back(shared, loan.token, &loan.lender);
        return Ok(());
    };
    match &loan.lender {
        Lender::Commands(device) => {
            let settled = shared.state.borrow_mut().commands.settle(now, device, loan.token, settlement);
            match settled {
                Ok(Some((departure, record))) => shared.report(now, device, departure, record),
                Ok(None) => shared.wake_device(device),
                Err(LockLost) => {
                    shared.wake_device(device);
                    return Err(LockLost);
                }
            }
            Ok(())
        }
        Lender::Feedback => {
            let settled = shared.state.borrow_mut().feedback.settle(now, loan.token, settlement);
            if settled.is_err() || settlement == Settlement::Abandon {
                shared.wake_feedback();
            }
            settled
        }
    }
}

/// Takes a loan back without a word from the borrower, and offers it to others.
pub(super) fn give_back(shared: &Shared, token: LockToken, lender: &Lender) {
    put_back(shared, token, lender);
    match lender {
        Lender::Commands(device) => shared.wake_device(device),
        Lender::Feedback => shared.wake_feedback(),
    }
}

fn put_back(shared: &Shared, token: LockToken, lender: &Lender) {
    let mut state = shared.state.borrow_mut();
    match lender {
        Lender::Commands(device) => state.commands.give_back(device, token),
        Lender::Feedback => state.feedback.give_back(token),
    }
}
