//! The exchanges of one socket: what joins the message layer, the mapping and the hub's verdicts. It opens no socket
//! and asks no clock.
//!
//! A request is answered once: by what is wrong with it, by the hub's outcome, or when the time for that is over.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fieldgate_coap::{Code, Event, ExchangeId, Request, Response, Server, Stats};
use fieldgate_mappings::address::{DeviceId, Identity};
use fieldgate_mappings::coap;
use fieldgate_mappings::message::Message;
use fieldgate_mappings::outcome::{Outcome, Reason, Rejection, Report, Verdict};
use fieldgate_mappings::rules::RuleSet;
use tokio::sync::Notify;

use crate::adapters::answering::{Ending, RETRY_AFTER, patience};
use crate::config::CoapConfig;
use crate::devices::{Attempt, Denied, Judged, Roster, Shown};
use crate::telemetry::{Protocol, emit};
use crate::upstream::Patience;

use super::telemetry::{self, OutcomeLate, RequestEnded, ResponseLost};

/// Requests of one socket that wait for the hub, about 100 bytes each beside their message.
const MAX_WAITING: usize = 16_384;

/// What the hub said, until the socket's task takes it.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    told: RefCell<Vec<(u64, Outcome)>>,
    news: Notify,
}

impl Verdicts {
    /// Waits until something was said.
    pub(super) async fn arrived(&self) {
        self.news.notified().await;
    }
}

impl Report for Verdicts {
    fn report(&self, ticket: u64, outcome: Outcome) {
        self.told.borrow_mut().push((ticket, outcome));
        self.news.notify_one();
    }
}

/// A request that the hub has.
#[derive(Debug)]
struct Waiting {
    exchange: ExchangeId,
    confirmable: bool,
    device: DeviceId,
    /// When the device is told that the hub did not answer.
    due: Instant,
}

/// Why a request does not go to the hub.
#[derive(Debug)]
enum Refusal {
    Rejected(Rejection),
    /// A rule maps the path with another method.
    Method,
    /// As many wait as may, or the gateway stops.
    Busy,
}

/// All exchanges of a socket.
#[derive(Debug)]
pub(super) struct Exchanges {
    machine: Server,
    rules: Arc<RuleSet>,
    allow_anonymous: bool,
    roster: Rc<Roster>,
    answer_time_out: Duration,
    /// By ticket. Tickets grow, and the time is the same for all: the first is the first that is due.
    waiting: BTreeMap<u64, Waiting>,
    tickets: u64,
    verdicts: Rc<Verdicts>,
    stopping: bool,
    published: Stats,
}

impl Exchanges {
    /// No exchanges yet; the seed is the message layer's.
    pub(super) fn new(config: &CoapConfig, rules: Arc<RuleSet>, roster: Rc<Roster>, seed: u64) -> Self {
        Self {
            machine: Server::new(machine_config(config), seed),
            rules,
            allow_anonymous: config.allow_anonymous(),
            roster,
            answer_time_out: config.answer_time_out,
            waiting: BTreeMap::new(),
            tickets: 0,
            verdicts: Rc::default(),
            stopping: false,
            published: Stats::default(),
        }
    }

    /// Where the hub's outcomes arrive.
    pub(super) fn verdicts(&self) -> Rc<Verdicts> {
        Rc::clone(&self.verdicts)
    }

    /// Takes a datagram.
    pub(super) fn handle_datagram(&mut self, now: Instant, peer: SocketAddr, datagram: &[u8]) {
        self.machine.handle_datagram(now, peer, datagram);
    }

    /// Does what is due: retransmissions, empty acknowledgements, and answers instead of the hub's.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.machine.handle_timeout(now);
        while let Some(first) = self.waiting.first_entry().filter(|first| first.get().due <= now) {
            let waiting = first.remove();
            self.answer(now, &waiting, Ending::TimedOut, &Outcome::Unknown);
        }
    }

    /// Answers with what the hub has said.
    pub(super) fn handle_verdicts(&mut self, now: Instant) {
        let mut told = self.verdicts.told.take();
        for (ticket, outcome) in told.drain(..) {
            match self.waiting.remove(&ticket) {
                Some(waiting) => self.answer(now, &waiting, Ending::from(&outcome), &outcome),
                None => emit(OutcomeLate { outcome: &outcome }),
            }
        }
        // Its memory serves again: nothing is reported while this task answers.
        self.verdicts.told.replace(told);
    }

    /// The next message for the hub. Requests that are refused are answered on the way.
    pub(super) fn poll_send(&mut self, now: Instant) -> Option<(Message, Patience, Verdict)> {
        loop {
            match self.machine.poll_event()? {
                Event::Request(request) => match self.judge(request.peer, &request) {
                    Ok(message) => return Some(self.begin(now, &request, message)),
                    Err(refusal) => self.refuse(now, &request, refusal),
                },
                Event::ResponseLost { cause, .. } => emit(ResponseLost { cause }),
            }
        }
    }

    /// The next datagram for a peer.
    pub(super) fn poll_transmit(&mut self) -> Option<(SocketAddr, Bytes)> {
        self.machine.poll_transmit()
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let first_due = self.waiting.first_key_value().map(|(_, waiting)| waiting.due);
        self.machine.poll_timeout().into_iter().chain(first_due).min()
    }

    /// From here on nothing new is begun.
    pub(super) fn stop(&mut self) {
        self.stopping = true;
    }

    /// Whether [`stop`](Self::stop) was called.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// Whether it was, and every peer has its answer.
    pub(super) fn is_done(&self) -> bool {
        self.stopping && self.machine.open_exchanges() == 0
    }

    /// Adds what the message layer has counted since the last time to the metrics.
    pub(super) fn publish(&mut self) {
        let stats = self.machine.stats();
        if *stats != self.published {
            telemetry::publish(stats, &self.published);
            self.published.clone_from(stats);
        }
    }

    fn judge(&self, peer: SocketAddr, request: &Request) -> Result<Message, Refusal> {
        if self.stopping || self.waiting.len() >= MAX_WAITING {
            return Err(Refusal::Busy);
        }
        let mapped = self.map(request, request.method.as_str());
        if let Ok(message) = &mapped {
            self.admit(peer, &message.device)?;
        } else if !self.allow_anonymous {
            // Who has not said who he is learns nothing of the rules.
            return Err(Refusal::Rejected(Denied::Nothing.rejection()));
        }
        mapped.map_err(|rejection| {
            let no_rule = rejection.reason == Reason::NoSuchAddress;
            let other = |method: &&str| *method != request.method.as_str() && self.maps(request, method);
            match no_rule && METHODS.iter().any(other) {
                true => Refusal::Method,
                false => Refusal::Rejected(rejection),
            }
        })
    }

    /// Without DTLS a device can prove nothing: it has its word.
    fn admit(&self, peer: SocketAddr, device: &DeviceId) -> Result<(), Refusal> {
        let judged = self.roster.judge(Attempt {
            protocol: Protocol::Coap,
            peer: peer.ip(),
            device,
            shown: Shown::Nothing,
            believes: self.allow_anonymous,
        });
        match judged {
            Judged::Now(Ok(_)) => Ok(()),
            Judged::Now(Err(denied)) => Err(Refusal::Rejected(denied.rejection())),
            Judged::Soon(_) => Err(Refusal::Rejected(Denied::Nothing.rejection())),
        }
    }

    // `Accept` is not looked at: no answer to a message has a representation (RFC 7252 5.10.4).
    fn map(&self, request: &Request, method: &str) -> Result<Message, Rejection> {
        let path: Vec<&str> = request.path.iter().collect();
        let query: Vec<&str> = request.query.iter().collect();
        let request = coap::Request {
            method,
            confirmable: request.confirmable,
            path: &path,
            query: &query,
            content_format: request.content_format,
            payload: request.payload.clone(),
        };
        self.rules.map_coap(Identity::Claimed, request)
    }

    /// Whether a rule has this path under this method, whatever else it says about the request.
    fn maps(&self, request: &Request, method: &str) -> bool {
        !matches!(self.map(request, method), Err(rejection) if rejection.reason == Reason::NoSuchAddress)
    }

    fn begin(&mut self, now: Instant, request: &Request, message: Message) -> (Message, Patience, Verdict) {
        self.tickets += 1;
        let waiting = Waiting {
            exchange: request.exchange,
            confirmable: request.confirmable,
            device: message.device.clone(),
            due: now + self.answer_time_out,
        };
        self.waiting.insert(self.tickets, waiting);
        let report: Rc<dyn Report> = self.verdicts();
        (
            message,
            patience(now, self.answer_time_out, request.confirmable),
            Verdict::new(report, self.tickets),
        )
    }

    fn refuse(&mut self, now: Instant, request: &Request, refusal: Refusal) {
        let (ending, response) = match refusal {
            Refusal::Method => (Ending::Method, Response::new(Code::METHOD_NOT_ALLOWED)),
            Refusal::Busy => {
                (Ending::Busy, Response::new(Code::SERVICE_UNAVAILABLE).with_max_age(RETRY_AFTER))
            }
            Refusal::Rejected(rejection) => {
                let outcome = Outcome::Rejected(rejection);
                (Ending::from(&outcome), response(&outcome))
            }
        };
        emit(RequestEnded { ending, confirmable: request.confirmable, device: None });
        self.respond(now, request.exchange, response);
    }

    fn answer(&mut self, now: Instant, waiting: &Waiting, ending: Ending, outcome: &Outcome) {
        emit(RequestEnded { ending, confirmable: waiting.confirmable, device: Some(&waiting.device) });
        self.respond(now, waiting.exchange, response(outcome));
    }

    fn respond(&mut self, now: Instant, exchange: ExchangeId, response: Response) {
        // An error says that the peer does not wait any more (it asked anew under the same message ID, or its
        // exchange was forgotten): nobody is there to be told.
        let _ = self.machine.respond(now, exchange, response);
    }
}

/// The methods that rules can have.
const METHODS: [&str; 2] = ["POST", "PUT"];

fn machine_config(config: &CoapConfig) -> fieldgate_coap::Config {
    let defaults = fieldgate_coap::Config::default();
    // Each socket has a machine of its own.
    let max_exchanges = config.max_exchanges.get().div_ceil(config.listen.len().max(1));
    fieldgate_coap::Config {
        max_datagram_bytes: config.max_datagram_bytes,
        ack_delay: config.ack_delay,
        max_exchanges,
        max_exchanges_per_peer: defaults.max_exchanges_per_peer.min(max_exchanges),
        max_open: MAX_WAITING.min(max_exchanges),
        busy_max_age: RETRY_AFTER,
        ..defaults
    }
}

/// How an outcome is said.
fn response(outcome: &Outcome) -> Response {
    let coap::Reply { code, max_age, diagnostic } = coap::reply(outcome, RETRY_AFTER);
    // Every code of the mapping is a response's; its tests say so.
    let code = Code::from_byte(code).unwrap_or(Code::INTERNAL_SERVER_ERROR);
    let payload = match diagnostic {
        std::borrow::Cow::Borrowed(text) => Bytes::from_static(text.as_bytes()),
        std::borrow::Cow::Owned(text) => Bytes::from(text),
    };
    Response { max_age, payload, ..Response::new(code) }
}
