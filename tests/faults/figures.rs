//! Figures of a run, as lines for a person and for a machine.

use std::fmt;
use std::time::{Duration, Instant};

use super::ledger::{Acknowledgement, Kind};

/// Names and values, in their order; written as JSON.
#[derive(Debug, Default)]
pub(crate) struct Figures(Vec<(String, String)>);

impl Figures {
    pub(crate) fn add(&mut self, name: &str, value: impl fmt::Display) {
        self.0.push((name.to_owned(), value.to_string()));
    }

    pub(crate) fn add_time(&mut self, name: &str, value: Duration) {
        self.add(&format!("{name}_ms"), format!("{:.1}", value.as_secs_f64() * 1000.0));
    }

    pub(crate) fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// The median and the 99th percentile of acknowledgements, and how many there were.
    pub(crate) fn add_latency(&mut self, name: &str, latency: Latency) {
        self.add(&format!("{name}_acks"), latency.count);
        self.add_time(&format!("{name}_p50"), latency.p50);
        self.add_time(&format!("{name}_p99"), latency.p99);
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs: Vec<_> = self.0.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        write!(f, "{{{}}}", pairs.join(","))
    }
}

/// How long acknowledgements took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Latency {
    pub(crate) count: usize,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

impl Latency {
    /// Of what direct devices, or all others, sent between the two moments.
    pub(crate) fn between(all: &[Acknowledgement], direct: bool, from: Instant, to: Instant) -> Self {
        let sent = |one: &&Acknowledgement| {
            let sent = one.at.checked_sub(one.after).unwrap_or(one.at);
            from <= sent && sent < to && (one.kind == Kind::Direct) == direct
        };
        let mut times: Vec<Duration> = all.iter().filter(sent).map(|one| one.after).collect();
        times.sort_unstable();
        let at = |percent: usize| times.get((times.len() * percent / 100).min(times.len().saturating_sub(1)));
        let at = |percent| at(percent).copied().unwrap_or_default();
        Self { count: times.len(), p50: at(50), p99: at(99) }
    }
}
