//! What an operator sees: the log on standard error, and the metrics that `/metrics` shows.
//!
//! Every noteworthy thing that happens is one struct, `<Noun><Verb>` or `<Noun><Verb>Error`, which implements
//! [`Happening`]; emitting it writes the log line *and* the metric, so the two cannot drift apart. Each area defines
//! its own happenings beside its code, with its metrics in one `LazyLock` of handles that were made here. Labels are
//! enums, so the number of series is known when the program is built. Hot paths hold a [`Counter`] and add to it: one
//! atomic addition, no look-up.
//!
//! Deliberately absent: payloads and secrets, in logs as in labels.

mod limit;

use std::fmt::Write as _;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

pub use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
pub use prometheus_client::metrics::counter::Counter;
pub use prometheus_client::metrics::family::Family;
pub use prometheus_client::metrics::gauge::Gauge;
pub use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::LogConfig;

/// Something that happened and that an operator may want to know.
pub trait Happening {
    /// Writes the log line and counts.
    fn emit(self);
}

/// Emits a happening: `emit(ConnectionOpened { … })` reads as what it says.
pub fn emit(happening: impl Happening) {
    happening.emit();
}

/// The protocol of a listener, as label `protocol="mqtt"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// AMQP 1.0 devices.
    Amqp,
    /// MQTT devices.
    Mqtt,
    /// CoAP devices.
    Coap,
    /// HTTP devices.
    Http,
}

impl Protocol {
    /// The name as it stands in labels, logs and configuration sections.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Amqp => "amqp",
            Self::Mqtt => "mqtt",
            Self::Coap => "coap",
            Self::Http => "http",
        }
    }
}

impl EncodeLabelValue for Protocol {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.write_str(self.name())
    }
}

/// The label set of a metric that differs by protocol only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByProtocol {
    /// Whose devices.
    pub protocol: Protocol,
}

static REGISTRY: LazyLock<Mutex<Registry>> = LazyLock::new(|| Mutex::new(Registry::with_prefix("fieldgate")));

fn registry() -> MutexGuard<'static, Registry> {
    // A panic while registering leaves the list of metrics whole; a poisoned lock must not take `/metrics` away.
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

fn register<M: Metric + Clone>(name: &str, help: &str, metric: M) -> M {
    registry().register(name, help, metric.clone());
    metric
}

/// A new process-wide counter `fieldgate_<name>_total`. Call it once for each name, from a `LazyLock`.
#[must_use]
pub fn counter(name: &str, help: &str) -> Counter {
    register(name, help, Counter::default())
}

/// A new process-wide gauge `fieldgate_<name>`. Call it once for each name, from a `LazyLock`.
#[must_use]
pub fn gauge(name: &str, help: &str) -> Gauge {
    register(name, help, Gauge::default())
}

/// A new process-wide histogram `fieldgate_<name>` with these upper bounds. Call it once for each name.
#[must_use]
pub fn histogram(name: &str, help: &str, bounds: &[f64]) -> Histogram {
    register(name, help, Histogram::new(bounds.iter().copied()))
}

/// A family of counters, one for each label set. On a hot path hold `family.get_or_create(&labels).clone()`.
#[must_use]
pub fn counters<L>(name: &str, help: &str) -> Family<L, Counter>
where
    L: EncodeLabelSet + Clone + Eq + std::hash::Hash + std::fmt::Debug + Send + Sync + 'static,
{
    register(name, help, Family::<L, Counter>::default())
}

/// A family of gauges, one for each label set.
#[must_use]
pub fn gauges<L>(name: &str, help: &str) -> Family<L, Gauge>
where
    L: EncodeLabelSet + Clone + Eq + std::hash::Hash + std::fmt::Debug + Send + Sync + 'static,
{
    register(name, help, Family::<L, Gauge>::default())
}

/// Every metric of the process in the OpenMetrics text format.
#[must_use]
pub fn render() -> String {
    let mut text = String::new();
    if prometheus_client::encoding::text::encode(&mut text, &registry()).is_err() {
        // Writing to a string cannot fail; a metric of ours that refuses to encode must not look like "no metrics".
        text.push_str("# a metric could not be encoded\n");
    }
    text
}

/// The media type of [`render`].
pub const METRICS_MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

static PANICS: LazyLock<Counter> = LazyLock::new(|| counter("panics", "Bugs that ended a task or a thread"));

/// Counts and logs every panic of the process: a task that ends by one takes one connection with it, and must not do
/// so unseen. The message may hold what a peer sent, so only the place is told.
fn watch_panics() {
    LazyLock::force(&PANICS);
    std::panic::set_hook(Box::new(|panic| {
        PANICS.inc();
        let place = panic.location().map_or_else(String::new, ToString::to_string);
        tracing::error!(%place, "a bug: a task ended by a panic; please report this line");
    }));
}

/// Sends the log to standard error, by level and module and within a bound, and counts panics. The first call wins;
/// later ones change nothing.
pub fn init(log: &LogConfig) {
    let mut targets = Targets::new().with_default(log.level().filter());
    for (module, level) in &log.modules {
        targets = targets.with_target(module.as_str(), level.filter());
    }
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_filter(limit::Limit::new());
    // A second initialisation (tests, or a host program with its own log) keeps the first.
    if tracing_subscriber::registry().with(lines).with(targets).try_init().is_ok() {
        watch_panics();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_can_be_read() {
        let plain = counter("telemetry_test_plain", "A counter of this test");
        plain.inc_by(3);
        let family = counters::<ByProtocol>("telemetry_test_family", "A family of this test");
        family.get_or_create(&ByProtocol { protocol: Protocol::Coap }).inc();
        let gauge = gauge("telemetry_test_level", "A gauge of this test");
        gauge.set(-2);
        let text = render();
        assert!(text.contains("fieldgate_telemetry_test_plain_total 3\n"), "{text}");
        assert!(text.contains("fieldgate_telemetry_test_family_total{protocol=\"coap\"} 1\n"), "{text}");
        assert!(text.contains("fieldgate_telemetry_test_level -2\n"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }
}
