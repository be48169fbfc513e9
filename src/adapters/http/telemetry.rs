//! What happens to HTTP devices: how requests end, and what was none.

use std::net::SocketAddr;
use std::sync::LazyLock;

use fieldgate_http::Violation;
use fieldgate_mappings::address::DeviceId;
use fieldgate_mappings::outcome::Outcome;

use crate::adapters::answering::{Ending, Endings};
use crate::telemetry::{
    Counter, EncodeLabelSet, EncodeLabelValue, Family, Happening, LabelValueEncoder, counter, counters,
};

struct Metrics {
    requests: Endings,
    violations: Family<ByFault, Counter>,
    outcomes_late: Counter,
    heads_timed_out: Counter,
    stalled: Counter,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    requests: Endings::new("http_requests", "HTTP requests by what became of them"),
    violations: counters(
        "http_violations",
        "What was no HTTP request that could be mapped: malformed, or over a bound of size or time",
    ),
    outcomes_late: counter("http_outcomes_late", "Outcomes of the hub for requests that were over"),
    heads_timed_out: counter(
        "http_heads_timed_out",
        "Connections closed because no request head came in time, idle ones included",
    ),
    stalled: counter(
        "http_connections_stalled",
        "Connections closed because the device did not read its answer",
    ),
});

/// What is wrong with a request, as label `reason="malformed"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The head is not HTTP/1.1.
    Malformed,
    /// The head is larger than what is read of one.
    HeadTooLarge,
    /// The connection ended within a request.
    Incomplete,
    /// The body ends early or is malformed.
    Body,
    /// The head has a fault that HTTP's grammar allows, or the body is over a bound.
    Violation(Violation),
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::HeadTooLarge => "head-too-large",
            Self::Incomplete => "incomplete",
            Self::Body => "body",
            Self::Violation(violation) => match violation {
                Violation::Target => "target",
                Violation::TargetTooLong => "target-too-long",
                Violation::Escape => "escape",
                Violation::DotSegment => "dot-segment",
                Violation::HeadersTooLarge => "headers-too-large",
                Violation::Host => "host",
                Violation::ContentLength => "content-length",
                Violation::Expectation => "expectation",
                Violation::BodyTooLarge { .. } => "body-too-large",
                Violation::TimedOut => "body-timed-out",
            },
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Reason(&'static str);

impl EncodeLabelValue for Reason {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByFault {
    reason: Reason,
}

/// A request has its answer.
pub(super) struct RequestEnded<'a> {
    pub(super) ending: Ending,
    /// Whose it was, where the mapping said so.
    pub(super) device: Option<&'a DeviceId>,
}

impl Happening for RequestEnded<'_> {
    fn emit(self) {
        let Self { ending, device } = self;
        METRICS.requests.of(ending).inc();
        let device = device.map(DeviceId::as_str);
        match ending {
            Ending::Accepted => tracing::trace!(device, "HTTP request accepted"),
            ending => tracing::debug!(device, outcome = ending.name(), "HTTP request not accepted"),
        }
    }
}

/// Something came that was no request to be mapped.
pub(super) struct RequestRefused {
    pub(super) peer: SocketAddr,
    pub(super) fault: Fault,
}

impl Happening for RequestRefused {
    fn emit(self) {
        let Self { peer, fault } = self;
        let reason = Reason(fault.name());
        METRICS.violations.get_or_create(&ByFault { reason }).inc();
        tracing::debug!(%peer, reason = reason.0, "HTTP request refused");
    }
}

/// The hub answered for a request that was over: answered, or its connection gone.
pub(super) struct OutcomeLate<'a> {
    pub(super) outcome: &'a Outcome,
}

impl Happening for OutcomeLate<'_> {
    fn emit(self) {
        METRICS.outcomes_late.inc();
        tracing::debug!(
            outcome = Ending::from(self.outcome).name(),
            "the hub answered after the HTTP request was over"
        );
    }
}

/// A connection ended by an error.
pub(super) struct ConnectionError {
    pub(super) peer: SocketAddr,
    pub(super) error: hyper::Error,
}

impl Happening for ConnectionError {
    fn emit(self) {
        let Self { peer, error } = self;
        let fault = if error.is_parse_too_large() {
            Fault::HeadTooLarge
        } else if error.is_parse() {
            // hyper has answered 400.
            Fault::Malformed
        } else if error.is_incomplete_message() {
            Fault::Incomplete
        } else {
            if error.is_timeout() {
                METRICS.heads_timed_out.inc();
            }
            return tracing::debug!(%peer, %error, "HTTP connection ended");
        };
        RequestRefused { peer, fault }.emit();
    }
}

/// A connection was closed on which nothing moved for longer than all time-outs together.
pub(super) struct ConnectionStalled {
    pub(super) peer: SocketAddr,
}

impl Happening for ConnectionStalled {
    fn emit(self) {
        METRICS.stalled.inc();
        tracing::debug!(peer = %self.peer, "HTTP connection closed: the device does not read its answer");
    }
}
