//! What the hub's answer to a message means: for the message, and for what is sent next.

use std::time::Duration;

use fieldgate_amqp::performative::{AmqpError, DeliveryState};
use fieldgate_mappings::amqp::{self, Limited};
use fieldgate_mappings::outcome::{Outcome, Reason};

/// The hub wants less.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    /// Of whom.
    pub(super) of: Limited,
    /// For how long, where it said so.
    pub(super) retry_after: Option<Duration>,
}

impl Limit {
    /// What an error limits, if that is what it is about.
    pub(super) fn new(error: &AmqpError) -> Option<Self> {
        let retry_after = match amqp::refusal(error) {
            Outcome::Rejected(rejection) => match rejection.reason {
                Reason::Quota { retry_after } => retry_after,
                _ => None,
            },
            _ => None,
        };
        Some(Self { of: amqp::limit(error)?, retry_after })
    }
}

/// The answer to one message.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) outcome: Outcome,
    pub(super) limit: Option<Limit>,
}

impl Answer {
    /// What a delivery's last state means.
    pub(super) fn new(state: Option<&DeliveryState<'_>>) -> Self {
        // Settled without a state: the source named no default outcome, so nothing is certain.
        let outcome = state.and_then(amqp::outcome).unwrap_or(Outcome::Unknown);
        let limit = match state {
            Some(DeliveryState::Rejected(Some(error))) => Limit::new(error),
            _ => None,
        };
        Self { outcome, limit }
    }
}
