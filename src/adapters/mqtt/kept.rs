//! What a session keeps while its client is away (MQTT 5 4.1): packets that were not through, subscriptions, and a will
//! that waits.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use fieldgate_mappings::outcome::Outcome;
use fieldgate_mqtt::{PublishToken, QoS};
use tokio::sync::oneshot;

use super::in_flight::KeptCommand;

/// Outcomes that may wait for a session's next connection, some 60 bytes each: one for each identifier that a message can
/// have, so that none is ever dropped.
const MAX_LATE: usize = u16::MAX as usize;

/// The state of a session between two connections.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// Packets that were not through.
    pub(super) packets: fieldgate_mqtt::Session,
    /// What the client has subscribed to, in its order.
    pub(super) filters: Vec<KeptFilter>,
    /// Commands without a PUBACK, those of `packets` that can be recognised.
    pub(super) commands: Vec<KeptCommand>,
    /// Outcomes of messages of earlier connections.
    pub(super) late: Arc<Late>,
    /// The will, while its delay lasts: told, the session goes on and it is not sent. Dropped, the session is over, and
    /// it is sent at once (MQTT 5 3.1.3.2.2).
    pub(super) will: Option<oneshot::Sender<()>>,
}

/// A subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeptFilter {
    pub(super) filter: Box<str>,
    pub(super) qos: QoS,
    pub(super) identifier: Option<u32>,
}

/// Outcomes that come when the connection that has sent the message is gone. They may come on another worker.
#[derive(Debug, Default)]
pub(super) struct Late(Mutex<LateState>);

#[derive(Debug, Default)]
struct LateState {
    outcomes: VecDeque<(PublishToken, Outcome)>,
    waker: Option<Waker>,
}

impl Late {
    /// A message of an earlier connection has its outcome.
    pub(super) fn put(&self, token: PublishToken, outcome: Outcome) {
        let mut state = self.state();
        if state.outcomes.len() < MAX_LATE {
            state.outcomes.push_back((token, outcome));
        }
        let waker = state.waker.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
    }

    /// The next one.
    pub(super) fn next(&self) -> Option<(PublishToken, Outcome)> {
        self.state().outcomes.pop_front()
    }

    /// The task of `cx` is woken when one comes.
    pub(super) fn listen(&self, cx: &Context<'_>) {
        let mut state = self.state();
        if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            state.waker = Some(cx.waker().clone());
        }
    }

    fn state(&self) -> MutexGuard<'_, LateState> {
        // Every update is whole: a panic elsewhere leaves the queue as it was.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
