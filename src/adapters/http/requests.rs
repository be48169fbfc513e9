//! The requests of one connection: judged, mapped, sent to the hub, and answered by what became of them.

use std::borrow::Cow;
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use fieldgate_http::{Limits, Reply, RequestHead, Violation};
use fieldgate_mappings::address::{DeviceId, Identity};
use fieldgate_mappings::http as mapping;
use fieldgate_mappings::message::Message;
use fieldgate_mappings::outcome::{Outcome, Reason, Rejection, Report, Verdict};
use fieldgate_mappings::rules::RuleSet;
use http::header::{ALLOW, EXPECT};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::adapters::answering::{Ending, RETRY_AFTER, patience};
use crate::config::{Config, HttpConfig};
use crate::devices::{Attempt, By, Denied, Pass, Roster, Shown};
use crate::sas::percent_decode;
use crate::telemetry::{Protocol, emit};
use crate::upstream::Patience;

use super::body::{self, BodyError};
use super::credentials::Claim;
use super::telemetry::{Fault, OutcomeLate, RequestEnded, RequestRefused};

/// The methods that rules can have.
const METHODS: [Method; 2] = [Method::POST, Method::PUT];
/// How long a device may go on sending a body that nobody wants.
const DISCARD_TIME_OUT: Duration = Duration::from_secs(5);

/// The requests of one connection. `S` sends a message to the hub.
pub(super) struct Requests<S> {
    config: Arc<Config>,
    rules: Arc<RuleSet>,
    roster: Rc<Roster>,
    send: S,
    /// Told of each device that was let in.
    let_in: Box<dyn Fn(&Pass)>,
    peer: SocketAddr,
    /// When the connection, or its last request, began.
    begun_at: Cell<Instant>,
}

/// Why a request does not go to the hub.
#[derive(Debug)]
enum Refusal {
    /// It is no request that could be mapped.
    Violation(Violation),
    /// Its body is not whole.
    Body(BodyError),
    /// What it asks for is not had.
    Rejected(Rejection),
    /// Rules map its path, with these methods.
    Method(Vec<Method>),
}

impl From<Violation> for Refusal {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl<S: Fn(Message, Patience, Verdict)> Requests<S> {
    pub(super) fn new(
        config: Arc<Config>,
        rules: Arc<RuleSet>,
        roster: Rc<Roster>,
        send: S,
        let_in: Box<dyn Fn(&Pass)>,
        peer: SocketAddr,
    ) -> Self {
        Self { config, rules, roster, send, let_in, peer, begun_at: Cell::new(Instant::now()) }
    }

    /// When the connection is of no use any more, if no request begins before: every part of a request has its
    /// time-out, but the device's reading of the answer. That gets as long as the next head.
    pub(super) fn stalled_at(&self) -> Instant {
        let HttpConfig { header_time_out, body_time_out, answer_time_out, .. } = self.config.http;
        self.begun_at.get() + body_time_out + answer_time_out + header_time_out * 2
    }

    /// Whether that time has come.
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled_at() <= Instant::now()
    }

    /// Answers one request.
    pub(super) async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        self.begun_at.set(Instant::now());
        let (parts, mut body) = request.into_parts();
        let response = match self.message(&parts, &mut body).await {
            Ok(message) => self.deliver(message).await.into_response(),
            Err(refusal) => {
                let mut response = self.refuse(refusal);
                if !body.is_end_stream() {
                    response
                        .headers_mut()
                        .insert(http::header::CONNECTION, HeaderValue::from_static("close"));
                    // A device that waits for `100 Continue` sends nothing after another answer.
                    if !parts.headers.contains_key(EXPECT) {
                        tokio::task::spawn_local(timeout(DISCARD_TIME_OUT, body::discard(body)));
                    }
                }
                response
            }
        };
        response.map(Full::new)
    }

    /// The message that a request is.
    async fn message(&self, parts: &Parts, body: &mut Incoming) -> Result<Message, Refusal> {
        let config = &self.config.http;
        let limits = limits(config);
        let head = RequestHead::judge(parts, &limits)?;
        let claim = Claim::read(head.headers(), unix_time())?;
        let proven = self.identify(&head, &claim).await?;
        let body = match timeout(config.body_time_out, body::gather(body, config.max_body_bytes)).await {
            Ok(Ok(body)) => body,
            Ok(Err(error)) => return Err(Refusal::Body(error)),
            Err(_) => return Err(Violation::TimedOut.into()),
        };
        // A body may take its time, and who was disabled meanwhile is not heard any more.
        if let Some(pass) = &proven {
            self.roster.look_again(pass)?;
        }
        let others = self.rules.has_via().then(|| self.roster.devices());
        let identity = match (&proven, &others) {
            (Some(pass), Some(others)) => Identity::MayActFor(&pass.device, &**others),
            (Some(pass), None) => Identity::Is(&pass.device),
            (None, _) => Identity::Claimed,
        };
        match self.rules.map_http(identity, &head, body) {
            Ok(message) => {
                if proven.is_none() {
                    claim.agrees_with(&message.device)?;
                    // The path alone has said who it is.
                    self.judge(&message.device, Shown::Nothing).await?;
                }
                Ok(message)
            }
            Err(rejection) if rejection.reason == Reason::NoSuchAddress => {
                let methods = self.methods(parts, &limits);
                Err(if methods.is_empty() { rejection.into() } else { Refusal::Method(methods) })
            }
            Err(rejection) => Err(rejection.into()),
        }
    }

    /// The device that has proved who it is, before any of its body is read. Nothing where its word will do, which the
    /// path has for it.
    async fn identify(&self, head: &RequestHead<'_>, claim: &Claim) -> Result<Option<Pass>, Rejection> {
        let believes = self.config.http.allow_anonymous();
        let device = match claim.device() {
            Some(id) => DeviceId::new(&self.read_once_more(id)).ok(),
            None if believes => return Ok(None),
            None => {
                let mapped = self.rules.map_http(Identity::Claimed, head, Bytes::new());
                mapped.ok().map(|message| message.device)
            }
        };
        let Some(device) = device else {
            // Who has not said who he is learns nothing of the rules.
            return if believes { Ok(None) } else { Err(Denied::Nothing.rejection()) };
        };
        let pass = self.judge(&device, claim.shown()).await?;
        (self.let_in)(&pass);
        Ok(Some(pass).filter(|pass| pass.by != By::Word))
    }

    /// Some clients encode an id before they encode the resource of its token: the id that is registered is meant.
    fn read_once_more<'c>(&self, id: &'c str) -> Cow<'c, str> {
        let devices = self.roster.devices();
        match percent_decode(id) {
            Some(decoded) if devices.get(id).is_none() && devices.get(&decoded).is_some() => decoded.into(),
            _ => id.into(),
        }
    }

    async fn judge(&self, device: &DeviceId, shown: Shown<'_>) -> Result<Pass, Rejection> {
        let attempt = Attempt {
            protocol: Protocol::Http,
            peer: self.peer.ip(),
            device,
            shown,
            believes: self.config.http.allow_anonymous(),
        };
        self.roster.judge(attempt).answer().await.map_err(|denied| denied.rejection())
    }

    /// Counts a refusal, and makes its answer.
    fn refuse(&self, refusal: Refusal) -> Response<Bytes> {
        let (ending, response) = match refusal {
            Refusal::Violation(violation) => {
                return self.refuse_fault(Fault::Violation(violation), (&violation).into());
            }
            Refusal::Body(BodyError::TooLarge) => {
                let violation = Violation::BodyTooLarge { max_bytes: self.config.http.max_body_bytes };
                return self.refuse_fault(Fault::Violation(violation), (&violation).into());
            }
            Refusal::Body(error @ BodyError::Broken) => {
                let problem = Reply::problem(StatusCode::BAD_REQUEST, "body", error.to_string());
                return self.refuse_fault(Fault::Body, Reply { close: true, ..problem });
            }
            Refusal::Body(error @ BodyError::Busy) => {
                let problem = Reply::problem(StatusCode::SERVICE_UNAVAILABLE, "busy", error.to_string());
                (Ending::Busy, Reply { retry_after: Some(RETRY_AFTER), ..problem }.into_response())
            }
            Refusal::Method(methods) => (Ending::Method, not_allowed(&methods)),
            Refusal::Rejected(rejection) => {
                let outcome = Outcome::Rejected(rejection);
                (Ending::from(&outcome), mapping::reply(&outcome, RETRY_AFTER).into_response())
            }
        };
        emit(RequestEnded { ending, device: None });
        response
    }

    fn refuse_fault(&self, fault: Fault, reply: Reply) -> Response<Bytes> {
        emit(RequestRefused { peer: self.peer, fault });
        reply.into_response()
    }

    /// The methods with which a rule maps this path, whatever else it says about the request.
    fn methods(&self, parts: &Parts, limits: &Limits) -> Vec<Method> {
        let maps = |method: &Method| {
            let (mut bare, ()) = Request::new(()).into_parts();
            // HTTP/1.0 asks for no Host.
            (bare.method, bare.uri, bare.version) = (method.clone(), parts.uri.clone(), Version::HTTP_10);
            let mapped = RequestHead::judge(&bare, limits)
                .map(|head| self.rules.map_http(Identity::Claimed, &head, Bytes::new()));
            match mapped {
                Ok(Err(rejection)) => rejection.reason != Reason::NoSuchAddress,
                Ok(Ok(_)) => true,
                Err(_) => false,
            }
        };
        METHODS.into_iter().filter(maps).collect()
    }

    /// Sends the message to the hub, and says what became of it.
    async fn deliver(&self, message: Message) -> Reply {
        let within = self.config.http.answer_time_out;
        let device = message.device.clone();
        let (sender, outcome) = oneshot::channel();
        let verdict = Verdict::new(Rc::new(Awaited(Cell::new(Some(sender)))), 0);
        (self.send)(message, patience(Instant::now(), within, true), verdict);
        let (ending, outcome) = match timeout(within, outcome).await {
            Ok(outcome) => {
                // A verdict reports before it is gone: there always is an outcome.
                let outcome = outcome.unwrap_or(Outcome::Unknown);
                (Ending::from(&outcome), outcome)
            }
            Err(_) => (Ending::TimedOut, Outcome::Unknown),
        };
        emit(RequestEnded { ending, device: Some(&device) });
        mapping::reply(&outcome, RETRY_AFTER)
    }
}

/// The one verdict that a request waits for.
struct Awaited(Cell<Option<oneshot::Sender<Outcome>>>);

impl Report for Awaited {
    fn report(&self, _: u64, outcome: Outcome) {
        let Some(sender) = self.0.take() else { return };
        if let Err(outcome) = sender.send(outcome) {
            emit(OutcomeLate { outcome: &outcome });
        }
    }
}

/// RFC 9110 15.5.6: with the methods that are.
fn not_allowed(methods: &[Method]) -> Response<Bytes> {
    let text = Cow::Borrowed("this path takes other methods, see Allow");
    let mut response = Reply::problem(StatusCode::METHOD_NOT_ALLOWED, "method", text).into_response();
    let names: Vec<&str> = methods.iter().map(Method::as_str).collect();
    if let Ok(allow) = HeaderValue::from_str(&names.join(", ")) {
        response.headers_mut().insert(ALLOW, allow);
    }
    response
}

fn limits(config: &HttpConfig) -> Limits {
    Limits {
        max_header_bytes: config.max_head_bytes,
        max_body_bytes: config.max_body_bytes,
        ..Limits::default()
    }
}

/// Seconds since 1970.
fn unix_time() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs()
}
