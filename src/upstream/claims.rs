//! The gateway's own token at the hub: put over the connection's links to `$cbs`, and put again before it expires.

use std::time::{Duration, Instant};

use fieldgate_amqp::connection::{Connection, Event, SessionId};
use fieldgate_amqp::error::Misuse;

use super::grant::refusal;
use super::target::OwnToken;
use super::telemetry::TokenUnjudged;
use crate::config::Secret;
use crate::router::claims::{Answer, CbsClientLink, Reply};
use crate::telemetry::emit;

/// How long the hub may take to give credit for a token, and then to judge it.
const ANSWER_TIME_OUT: Duration = Duration::from_secs(20);

/// How long a renewal waits that the hub could not judge.
const AGAIN: Duration = Duration::from_secs(5);

/// The claims of one connection.
#[derive(Debug)]
pub(super) struct Claims {
    link: CbsClientLink<u64>,
    /// The number of the last token that was put. What is said to earlier ones is of no interest.
    last: u64,
    state: State,
    /// When the token expires that the hub has accepted: until then a renewal may fail.
    expires: Option<Instant>,
}

/// `Put -> Held -> (renewed) Put -> …`
#[derive(Debug)]
enum State {
    /// For the hub's judgement.
    Put { renew_in: Duration, life: Duration },
    /// Accepted, or the one before was and is good still; to be renewed at that time.
    Held { renew_at: Instant },
    /// Refused, or renewal is due: the driver is told.
    Idle,
}

/// What came of an event or of time.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing yet.
    Pending,
    /// The hub accepted the token.
    Accepted,
    /// The hub refused it or does not answer: the connection is of no use.
    Refused(String),
    /// It is time for a fresh token.
    Due,
}

impl Claims {
    /// Begins the session and attaches the links; `token` goes out as soon as the hub gives credit.
    ///
    /// # Errors
    /// When the connection has no room.
    pub(super) fn open(connection: &mut Connection, token: &OwnToken, now: Instant) -> Result<Self, Misuse> {
        let mut link = CbsClientLink::new(ANSWER_TIME_OUT);
        link.open(connection, now)?;
        let mut claims = Self { link, last: 0, state: State::Idle, expires: None };
        // The first token of a connection waits for the hub at least.
        claims.renew(connection, token, now);
        Ok(claims)
    }

    /// Whether the session is this one's: then its events, and those of its links, belong here.
    pub(super) fn owns_session(&self, session: SessionId) -> bool {
        self.link.owns_session(session)
    }

    /// Puts a fresh token.
    pub(super) fn renew(&mut self, connection: &mut Connection, token: &OwnToken, now: Instant) -> Verdict {
        self.last += 1;
        self.state = State::Put { renew_in: token.renew_in, life: token.life };
        let mut answers = Vec::new();
        let text = Secret::new(token.text.as_str());
        match self.link.put(connection, self.last, &token.name, &text, now, &mut answers) {
            Ok(()) => self.judged(answers, now),
            Err(full) => self.refused(full.to_string()),
        }
    }

    /// Takes an event of the session or its links.
    pub(super) fn handle_event(
        &mut self,
        connection: &mut Connection,
        event: Event,
        now: Instant,
    ) -> Verdict {
        let mut answers = Vec::new();
        self.link.handle_event(connection, event, now, &mut answers);
        self.judged(answers, now)
    }

    /// When the token expires that the hub holds, also while another one is to take its place.
    pub(super) fn expires(&self) -> Option<Instant> {
        self.expires
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let renewal = match self.state {
            State::Held { renew_at } => Some(renew_at),
            State::Put { .. } | State::Idle => None,
        };
        renewal.into_iter().chain(self.link.poll_timeout()).min()
    }

    /// Time has passed.
    pub(super) fn handle_timeout(&mut self, connection: &mut Connection, now: Instant) -> Verdict {
        let mut answers = Vec::new();
        self.link.handle_timeout(connection, now, &mut answers);
        match self.state {
            State::Held { renew_at } if renew_at <= now => {
                self.state = State::Idle;
                Verdict::Due
            }
            _ => self.judged(answers, now),
        }
    }

    fn judged(&mut self, answers: Vec<Answer<u64>>, now: Instant) -> Verdict {
        let reply = answers.into_iter().find(|answer| answer.key == self.last).map(|answer| answer.reply);
        match (reply, &self.state) {
            (Some(reply), State::Put { renew_in, life }) if reply.is_success() => {
                self.expires = Some(now + *life);
                self.state = State::Held { renew_at: now + *renew_in };
                Verdict::Accepted
            }
            // Nobody's fault, and no reason to give up what lives of the former one.
            (Some(reply), State::Put { .. })
                if self.expires.is_some_and(|at| now < at) && refusal(&reply).is_none() =>
            {
                let status = match reply {
                    Reply::Status { status, .. } => Some(status),
                    Reply::Outcome(_) => None,
                };
                emit(TokenUnjudged { status });
                let expires = self.expires.unwrap_or(now);
                self.state = State::Held { renew_at: expires.min(now + AGAIN) };
                Verdict::Pending
            }
            (Some(Reply::Status { status, description }), State::Put { .. }) => {
                self.refused(format!("the hub refused the gateway's token: {status} {description}"))
            }
            (Some(Reply::Outcome(_)), State::Put { .. }) => {
                self.refused(String::from("the hub refused the delivery of the gateway's token"))
            }
            _ => Verdict::Pending,
        }
    }

    fn refused(&mut self, why: String) -> Verdict {
        self.state = State::Idle;
        Verdict::Refused(why)
    }
}
