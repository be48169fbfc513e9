//! The gateway's links to a hub's `$cbs`: the requests of many over one pair of links.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use fieldgate_amqp::connection::{Connection, Event, SessionId};
use fieldgate_amqp::endpoint::{
    CBS_NODE, CbsClient, OutgoingMessage, Receiver, ReceiverConfig, SAS_TOKEN, Sender, Unsettled,
};
use fieldgate_amqp::error::{AmqpError, Condition, Misuse};
use fieldgate_amqp::performative::{AttachOut, DeliveryState, SourceOut, TargetOut};

use crate::config::Secret;

/// Requests that the hub has not answered: some hubs take no more from a connection.
const MAX_IN_FLIGHT: usize = 30;
/// Requests that wait for one of those to be answered, a token each.
const MAX_WAITING: usize = 1000;
/// How long a hub that has no such node is not asked for it again.
const REFUSAL: Duration = Duration::from_secs(30);
/// The largest answer.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// A session with a pair of links to `$cbs`, made when the first token is put. `K` is what the caller knows a request
/// by.
#[derive(Debug)]
pub(crate) struct CbsClientLink<K> {
    time_out: Duration,
    client: CbsClient,
    links: Option<Links>,
    /// A session that we have ended and the hub has not, and since when. There is no other one beside it.
    ending: Option<(SessionId, Instant)>,
    /// The hub has no such node, or does not let us near it now: what it said, and when.
    refused: Option<(String, Instant)>,
    waiting: VecDeque<Waiting<K>>,
    /// In the order in which they were sent.
    in_flight: VecDeque<InFlight<K>>,
}

#[derive(Debug)]
struct Links {
    session: SessionId,
    sender: Sender,
    receiver: Receiver,
    /// The number of the request in each delivery.
    unsettled: Unsettled<u64>,
    /// The hub has attached the sender, to a node that there is.
    is_attached: bool,
    /// When it has answered last, or was asked for the links.
    heard_at: Instant,
}

#[derive(Debug)]
struct Waiting<K> {
    key: K,
    name: String,
    token: Secret,
    until: Instant,
}

#[derive(Debug)]
struct InFlight<K> {
    key: K,
    request: u64,
    until: Instant,
}

/// What came of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer<K> {
    /// Whose it is.
    pub(crate) key: K,
    /// What the hub said, or what is said in its place.
    pub(crate) reply: Reply,
}

/// What is said to a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    /// A response: a status of the kind of HTTP's, and words.
    Status {
        /// 200 to 299 is success.
        status: u32,
        /// What there is to say about it.
        description: String,
    },
    /// No response: the delivery itself came to this outcome, an encoded delivery-state.
    Outcome(Bytes),
}

impl Reply {
    /// A response.
    pub(crate) fn status(status: u32, description: impl Into<String>) -> Self {
        Self::Status { status, description: description.into() }
    }

    /// Whether the token was accepted.
    pub(crate) fn is_success(&self) -> bool {
        matches!(self, Self::Status { status: 200..300, .. })
    }
}

/// Too many requests wait already.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many tokens wait to be put")]
pub(crate) struct Full;

impl<K: Clone> CbsClientLink<K> {
    /// No links yet. `time_out` is how long the hub may take to give credit for a request, and then to answer it.
    pub(crate) fn new(time_out: Duration) -> Self {
        Self {
            time_out,
            client: CbsClient::new(),
            links: None,
            ending: None,
            refused: None,
            waiting: VecDeque::new(),
            in_flight: VecDeque::new(),
        }
    }

    /// Makes the links, if there are none, before there is a token to be put.
    ///
    /// # Errors
    /// When the connection has no room.
    pub(crate) fn open(&mut self, connection: &mut Connection, now: Instant) -> Result<(), Misuse> {
        if self.links.is_none() && self.ending.is_none() {
            self.links = Some(Links::open(connection, now)?);
        }
        Ok(())
    }

    /// Puts a shared access signature for `name`. The answer comes later, or is among `answers` at once where the hub
    /// has just refused the node.
    ///
    /// # Errors
    /// [`Full`], and nothing has been done.
    pub(crate) fn put(
        &mut self,
        connection: &mut Connection,
        key: K,
        name: &str,
        token: &Secret,
        now: Instant,
        answers: &mut Vec<Answer<K>>,
    ) -> Result<(), Full> {
        self.refused.take_if(|(_, at)| *at + REFUSAL <= now);
        if let Some((why, _)) = &self.refused {
            answers.push(Answer { key, reply: Reply::status(501, why.clone()) });
            return Ok(());
        }
        if self.waiting.len() >= MAX_WAITING {
            return Err(Full);
        }
        let until = now + self.time_out;
        self.waiting.push_back(Waiting { key, name: name.to_owned(), token: token.clone(), until });
        self.go_on(connection, now);
        Ok(())
    }

    /// Sends what waits, over new links where there are none.
    fn go_on(&mut self, connection: &mut Connection, now: Instant) {
        // Without a free channel or handle now, the next token tries again, or time runs out.
        if !self.waiting.is_empty() && self.open(connection, now).is_ok() {
            self.send(connection, now);
        }
    }

    /// Whether the session is this one's: then its events belong into [`handle_event`](Self::handle_event).
    pub(crate) fn owns_session(&self, session: SessionId) -> bool {
        self.links.as_ref().is_some_and(|links| links.session == session)
            || self.ending.is_some_and(|(ending, _)| ending == session)
    }

    /// Takes an event of the session or its links.
    pub(crate) fn handle_event(
        &mut self,
        connection: &mut Connection,
        event: Event,
        now: Instant,
        answers: &mut Vec<Answer<K>>,
    ) {
        if let Event::SessionEnded { session, .. } = &event
            && self.ending.take_if(|(ending, _)| ending == session).is_some()
        {
            return self.go_on(connection, now);
        }
        let Some(links) = &mut self.links else { return };
        match event {
            // Without a node in it the attach is the first half of a refusal.
            Event::Attached { link, attach, .. } => {
                if link == links.sender.link() {
                    links.is_attached = attach.target().is_some();
                } else if attach.source().is_some() {
                    links.receiver.on_attached(connection);
                }
            }
            Event::Flow { link: Some(link), flow, .. } if link == links.sender.link() => {
                links.sender.on_flow(connection, &flow);
                self.send(connection, now);
                if let Some(links) = &mut self.links {
                    links.sender.drained(connection);
                }
            }
            Event::Flow { link: Some(_), flow, .. } => {
                links.receiver.on_flow(connection, &flow);
            }
            Event::Flow { link: None, .. } => self.send(connection, now),
            Event::Transfer { transfer, delivery_id, .. } => {
                match links.receiver.on_transfer(connection, &transfer, delivery_id) {
                    Ok(None) => {}
                    Ok(Some(delivery)) => {
                        if !delivery.settled {
                            links.receiver.accept(connection, delivery_id, delivery_id);
                        }
                        links.heard_at = now;
                        self.answered(&delivery.payload, answers);
                        self.send(connection, now);
                    }
                    Err(violation) => {
                        self.close(connection, 502, &format!("the hub's $cbs: {violation}"), now, answers);
                    }
                }
            }
            Event::Disposition { session, disposition } => {
                let mut refused = Vec::new();
                links.unsettled.on_disposition(connection, session, &disposition, |settled| {
                    let is_taken = matches!(settled.state, None | Some(DeliveryState::Accepted));
                    refused.extend((!is_taken).then_some(settled.value));
                });
                let state = disposition.state().map(Bytes::copy_from_slice).unwrap_or_default();
                for request in refused {
                    self.resolve(request, Reply::Outcome(state.clone()), answers);
                }
                self.send(connection, now);
            }
            Event::Detached { detach, .. } => {
                let words = in_words(detach.error().as_ref());
                let was_attached = links.is_attached;
                let why = format!("the hub detached $cbs: {words}");
                if was_attached {
                    self.close(connection, 503, &why, now, answers);
                } else {
                    self.close(connection, 501, &why, now, answers);
                    self.refused = Some((why, now));
                }
            }
            Event::SessionEnded { error, .. } => {
                let why = format!("the hub ended the session of $cbs: {}", in_words(error.as_ref()));
                if let Some(links) = self.links.take() {
                    connection.end(links.session, None);
                }
                self.close(connection, 503, &why, now, answers);
            }
            _ => {}
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is to be called.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let waiting = self.waiting.front().map(|waiting| waiting.until);
        let in_flight = self.in_flight.front().map(|in_flight| in_flight.until);
        let ending = self.ending.map(|(_, since)| since + self.time_out);
        waiting.into_iter().chain(in_flight).chain(ending).min()
    }

    /// Time has passed: requests that the hub leaves alone are answered in its place. Links over which it says nothing
    /// any more give way to new ones; where it does not even let go of those, the connection is closed.
    pub(crate) fn handle_timeout(
        &mut self,
        connection: &mut Connection,
        now: Instant,
        answers: &mut Vec<Answer<K>>,
    ) {
        if self.ending.is_some_and(|(_, since)| since + self.time_out <= now) {
            let why = "no answer to the end of the session of $cbs";
            connection.close(Some(AmqpError::new(&Condition::ResourceLimitExceeded, Some(why))));
        }
        let late = || Reply::status(504, "the hub's $cbs does not answer");
        let before = answers.len();
        while let Some(front) = self.in_flight.pop_front_if(|front| front.until <= now) {
            answers.push(Answer { key: front.key, reply: late() });
        }
        while let Some(front) = self.waiting.pop_front_if(|front| front.until <= now) {
            answers.push(Answer { key: front.key, reply: late() });
        }
        let is_silent = self.links.as_ref().is_some_and(|links| links.heard_at + self.time_out <= now);
        if is_silent && answers.len() > before {
            // Others that were sent hear nothing there either; those that wait are asked for anew.
            let lost = self.in_flight.drain(..).map(|it| Answer { key: it.key, reply: late() });
            answers.extend(lost);
            self.end(connection, now);
        }
        self.go_on(connection, now);
    }

    /// Forgets the requests whose askers are gone, as far as they have not been sent.
    pub(crate) fn forget(&mut self, is_gone: impl Fn(&K) -> bool) {
        self.waiting.retain(|waiting| !is_gone(&waiting.key));
    }

    /// The requests that were not answered, in their order.
    #[cfg(test)]
    pub(crate) fn lose(self) -> impl Iterator<Item = K> {
        let sent = self.in_flight.into_iter().map(|in_flight| in_flight.key);
        sent.chain(self.waiting.into_iter().map(|waiting| waiting.key))
    }

    fn send(&mut self, connection: &mut Connection, now: Instant) {
        let Some(links) = &mut self.links else { return };
        while self.in_flight.len() < MAX_IN_FLIGHT && links.sender.credit(connection) > 0 {
            let Some(front) = self.waiting.front() else { return };
            let mut message = BytesMut::new();
            let token = front.token.expose();
            let request = self.client.put_token(&mut message, &front.name, SAS_TOKEN, token, None);
            let out = OutgoingMessage { message: &message, ..OutgoingMessage::default() };
            // Without room for it now the token goes out with the next flow.
            if links.sender.send(connection, &mut links.unsettled, out, request).is_err() {
                return;
            }
            let Some(Waiting { key, .. }) = self.waiting.pop_front() else { return };
            self.in_flight.push_back(InFlight { key, request, until: now + self.time_out });
        }
    }

    fn answered(&mut self, message: &Bytes, answers: &mut Vec<Answer<K>>) {
        match CbsClient::response(message) {
            Ok(response) => {
                let reply = Reply::status(response.status, response.description.unwrap_or_default());
                self.resolve(response.request, reply, answers);
            }
            // Whose it was can be said where only one has asked; others wait until their time is over.
            Err(error) if self.in_flight.len() == 1 => {
                let why = format!("the answer of the hub's $cbs cannot be read: {error}");
                let only = self.in_flight.pop_front();
                answers.extend(only.map(|it| Answer { key: it.key, reply: Reply::status(502, why) }));
            }
            Err(_) => {}
        }
    }

    fn resolve(&mut self, request: u64, reply: Reply, answers: &mut Vec<Answer<K>>) {
        if let Some(at) = self.in_flight.iter().position(|in_flight| in_flight.request == request)
            && let Some(in_flight) = self.in_flight.remove(at)
        {
            answers.push(Answer { key: in_flight.key, reply });
        }
    }

    fn end(&mut self, connection: &mut Connection, now: Instant) {
        if let Some(links) = self.links.take() {
            // With an error, so that nothing is held back for a window that may never open.
            let error =
                AmqpError::new(&Condition::ResourceLimitExceeded, Some("no use for the session any more"));
            connection.end(links.session, Some(error));
            self.ending = Some((links.session, now));
        }
    }

    /// Gives the session up, and with it all that was asked. The next token that is put makes a new one.
    fn close(
        &mut self,
        connection: &mut Connection,
        status: u32,
        why: &str,
        now: Instant,
        answers: &mut Vec<Answer<K>>,
    ) {
        self.end(connection, now);
        let sent = self.in_flight.drain(..).map(|in_flight| in_flight.key);
        let keys = sent.chain(self.waiting.drain(..).map(|waiting| waiting.key));
        answers.extend(keys.map(|key| Answer { key, reply: Reply::status(status, why) }));
    }
}

impl Links {
    fn open(connection: &mut Connection, now: Instant) -> Result<Self, Misuse> {
        let session = connection.begin()?;
        let opened = Self::attach(connection, session, now);
        if opened.is_err() {
            connection.end(session, None);
        }
        opened
    }

    fn attach(connection: &mut Connection, session: SessionId, now: Instant) -> Result<Self, Misuse> {
        let node = Some(CBS_NODE);
        let source = SourceOut { address: node, ..SourceOut::default() }.build();
        let target = TargetOut { address: node, ..TargetOut::default() }.build();
        let receiver = AttachOut {
            max_message_size: Some(MAX_ANSWER_BYTES as u64),
            ..AttachOut::receiver("$cbs-receiver", &source, &target)
        };
        let receiver = connection.attach(session, &receiver.build())?;
        let sender =
            connection.attach(session, &AttachOut::sender("$cbs-sender", &source, &target).build())?;
        let config = ReceiverConfig { max_message_bytes: MAX_ANSWER_BYTES, ..ReceiverConfig::default() };
        Ok(Self {
            session,
            sender: Sender::new(sender),
            receiver: Receiver::new(receiver, config),
            unsettled: Unsettled::new(),
            is_attached: false,
            heard_at: now,
        })
    }
}

fn in_words(error: Option<&AmqpError>) -> String {
    match error {
        None => String::from("without an error"),
        Some(error) => match error.description() {
            Some(description) => format!("{} ({description})", error.condition()),
            None => error.condition().to_owned(),
        },
    }
}
