//! The gateway's own token at the hub: a session with a pair of links to `$cbs`, over which the
//! token is put, and put again before it expires.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use fieldgate_amqp::connection::{Connection, Event, LinkId, SessionId};
use fieldgate_amqp::endpoint::{
    CBS_NODE, CbsClient, CbsResponse, OutgoingMessage, Receiver, ReceiverConfig, SAS_TOKEN, Sender, Unsettled,
};
use fieldgate_amqp::error::Misuse;
use fieldgate_amqp::performative::{AttachOut, SourceOut, TargetOut};

use super::target::OwnToken;

/// How long the hub may take to give credit for a token, and then to judge it.
const ANSWER_TIME_OUT: Duration = Duration::from_secs(20);

/// The claims of one connection.
#[derive(Debug)]
pub(super) struct Claims {
    session: SessionId,
    sender: Sender,
    receiver: Receiver,
    client: CbsClient,
    /// Nothing to remember about a request but that it was made: the answer is a message of its own.
    unsettled: Unsettled<()>,
    state: State,
}

/// `Waiting -> Put -> Held -> (renewed) Waiting -> …`
#[derive(Debug)]
enum State {
    /// For credit.
    Waiting { token: OwnToken, until: Instant },
    /// For the hub's judgement.
    Put { request: u64, renew_in: Duration, until: Instant },
    /// Accepted; to be renewed at that time.
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
    pub(super) fn open(connection: &mut Connection, token: OwnToken, now: Instant) -> Result<Self, Misuse> {
        let session = connection.begin()?;
        let node = Some(CBS_NODE);
        let source = SourceOut { address: node, ..SourceOut::default() }.build();
        let target = TargetOut { address: node, ..TargetOut::default() }.build();
        let receiver =
            connection.attach(session, &AttachOut::receiver("$cbs-receiver", &source, &target).build())?;
        let sender =
            connection.attach(session, &AttachOut::sender("$cbs-sender", &source, &target).build())?;
        Ok(Self {
            session,
            sender: Sender::new(sender),
            receiver: Receiver::new(receiver, ReceiverConfig::default()),
            client: CbsClient::new(),
            unsettled: Unsettled::new(),
            state: State::Waiting { token, until: now + ANSWER_TIME_OUT },
        })
    }

    /// Whether the session is this one's.
    pub(super) fn owns_session(&self, session: SessionId) -> bool {
        self.session == session
    }

    /// Whether the link is one of these.
    pub(super) fn owns_link(&self, link: LinkId) -> bool {
        self.sender.link() == link || self.receiver.link() == link
    }

    /// Puts a fresh token on the links that are there.
    pub(super) fn renew(&mut self, connection: &mut Connection, token: OwnToken, now: Instant) {
        self.state = State::Waiting { token, until: now + ANSWER_TIME_OUT };
        self.put(connection, now);
    }

    /// Takes an event of the session or its links.
    pub(super) fn handle_event(
        &mut self,
        connection: &mut Connection,
        event: Event,
        now: Instant,
    ) -> Verdict {
        match event {
            Event::Attached { link, .. } if link == self.receiver.link() => {
                self.receiver.on_attached(connection)
            }
            Event::Flow { link: Some(link), flow, .. } if link == self.sender.link() => {
                self.sender.on_flow(connection, &flow);
                self.put(connection, now);
                self.sender.drained(connection);
            }
            Event::Flow { link: Some(_), flow, .. } => {
                self.receiver.on_flow(connection, &flow);
            }
            Event::Transfer { transfer, delivery_id, .. } => {
                let delivery = match self.receiver.on_transfer(connection, &transfer, delivery_id) {
                    Ok(Some(delivery)) => delivery,
                    Ok(None) => return Verdict::Pending,
                    Err(violation) => return Verdict::Refused(violation.to_string()),
                };
                if !delivery.settled {
                    self.receiver.accept(connection, delivery_id, delivery_id);
                }
                return match CbsClient::response(&delivery.payload) {
                    Ok(response) => self.judged(&response, now),
                    Err(error) => Verdict::Refused(format!("the answer of $cbs cannot be read: {error}")),
                };
            }
            Event::Disposition { session, disposition } => {
                self.unsettled.on_disposition(connection, session, &disposition, |_| {});
            }
            Event::Detached { detach, .. } => {
                let error = detach.error();
                let words = error.as_ref().map_or("without an error", |error| error.condition());
                return Verdict::Refused(format!("the hub detached $cbs: {words}"));
            }
            Event::SessionEnded { error, .. } => {
                let words = error.as_ref().map_or("without an error", |error| error.condition());
                return Verdict::Refused(format!("the hub ended the session of $cbs: {words}"));
            }
            _ => {}
        }
        Verdict::Pending
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { until, .. } | State::Put { until, .. } => Some(until),
            State::Held { renew_at } => Some(renew_at),
            State::Idle => None,
        }
    }

    /// Time has passed.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Verdict {
        match self.state {
            State::Waiting { until, .. } | State::Put { until, .. } if until <= now => {
                self.state = State::Idle;
                Verdict::Refused(String::from("$cbs does not answer"))
            }
            State::Held { renew_at } if renew_at <= now => {
                self.state = State::Idle;
                Verdict::Due
            }
            _ => Verdict::Pending,
        }
    }

    fn put(&mut self, connection: &mut Connection, now: Instant) {
        let State::Waiting { token, .. } = &self.state else { return };
        if self.sender.credit(connection) == 0 {
            return;
        }
        let mut message = BytesMut::new();
        let request = self.client.put_token(&mut message, &token.name, SAS_TOKEN, &token.text, None);
        let out = OutgoingMessage { message: &message, ..OutgoingMessage::default() };
        let renew_in = token.renew_in;
        // Without room for it now the token goes out with the next flow.
        if self.sender.send(connection, &mut self.unsettled, out, ()).is_ok() {
            self.state = State::Put { request, renew_in, until: now + ANSWER_TIME_OUT };
        }
    }

    fn judged(&mut self, response: &CbsResponse, now: Instant) -> Verdict {
        match self.state {
            State::Put { request, renew_in, .. } if request == response.request => {
                if response.is_success() {
                    self.state = State::Held { renew_at: now + renew_in };
                    return Verdict::Accepted;
                }
                self.state = State::Idle;
                let words = response.description.as_deref().unwrap_or("without a description");
                Verdict::Refused(format!("the hub refused the gateway's token: {} {words}", response.status))
            }
            _ => Verdict::Pending,
        }
    }
}
