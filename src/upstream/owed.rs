//! What the hub owes a session: an answer to each attach and each detach.

use std::time::{Duration, Instant};

use fieldgate_amqp::connection::{Connection, Half, LinkInfo, SessionId};

/// How long the hub may take for the next of its answers.
const ANSWER_TIME_OUT: Duration = Duration::from_secs(30);

/// Since when the hub owes something, as far as was looked.
#[derive(Debug, Default)]
pub(super) struct Owed(Option<Instant>);

impl Owed {
    /// The hub has answered for one of the session's links: it has its time again for the next.
    pub(super) fn answered(&mut self) {
        self.0 = None;
    }

    /// Whether the hub has kept us waiting for too long. To be asked every few seconds.
    pub(super) fn is_late(
        &mut self,
        connection: Option<&Connection>,
        session: Option<SessionId>,
        now: Instant,
    ) -> bool {
        let owes = |connection: &Connection, session| {
            connection.session_links(session).any(|link| connection.link(link).is_some_and(is_unanswered))
        };
        if !connection.zip(session).is_some_and(|(connection, session)| owes(connection, session)) {
            self.0 = None;
            return false;
        }
        now >= *self.0.get_or_insert(now) + ANSWER_TIME_OUT
    }
}

fn is_unanswered(link: LinkInfo<'_>) -> bool {
    link.remote == Half::Idle || link.local == Half::Ended
}
