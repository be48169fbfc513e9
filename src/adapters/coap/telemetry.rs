//! What happens to CoAP devices: how requests end, and what the message layer counts.

use std::io;
use std::net::SocketAddr;
use std::sync::LazyLock;

use fieldgate_coap::{Lost, Refusal, Stats};
use fieldgate_mappings::address::DeviceId;
use fieldgate_mappings::outcome::Outcome;

use crate::adapters::answering::{Ending, Endings};
use crate::telemetry::{
    Counter, EncodeLabelSet, EncodeLabelValue, Happening, LabelValueEncoder, counter, counters,
};

struct Metrics {
    requests: Endings,
    non_dropped: Counter,
    outcomes_late: Counter,
    receive_errors: Counter,
    send_errors: Counter,
    message_layer: MessageLayer,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    requests: Endings::new("coap_requests", "CoAP requests by what became of them"),
    non_dropped: counter("coap_non_dropped", "Non-confirmable requests whose message the hub did not take"),
    outcomes_late: counter(
        "coap_outcomes_late",
        "Outcomes of the hub for requests that were answered before",
    ),
    receive_errors: counter("coap_receive_errors", "Failures of the system to give a datagram"),
    send_errors: counter(
        "coap_send_errors",
        "Datagrams that the system did not take, and that count as lost",
    ),
    message_layer: MessageLayer::new(),
});

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Why(Refusal);

impl EncodeLabelValue for Why {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.as_str().encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRefusal {
    reason: Why,
}

/// A number of the message layer, and its metric.
struct Counted {
    name: &'static str,
    help: &'static str,
    read: fn(&Stats) -> u64,
}

const COUNTED: [Counted; 14] = [
    Counted { name: "coap_datagrams", help: "Datagrams received", read: |stats| stats.datagrams },
    Counted {
        name: "coap_duplicates",
        help: "Repeated requests, recognised",
        read: |stats| stats.duplicates,
    },
    Counted {
        name: "coap_superseded",
        help: "Requests under a remembered message ID with other content",
        read: |stats| stats.superseded,
    },
    Counted {
        name: "coap_exchanges_evicted",
        help: "Exchanges forgotten before their time because max_exchanges were kept",
        read: |stats| stats.evicted,
    },
    Counted { name: "coap_pings", help: "Empty confirmable messages", read: |stats| stats.pings },
    Counted { name: "coap_responses", help: "Answers, of all kinds", read: |stats| stats.responses },
    Counted {
        name: "coap_responses_separate",
        help: "Answers after an empty acknowledgement",
        read: |stats| stats.separate_responses,
    },
    Counted {
        name: "coap_responses_cut",
        help: "Answers shortened because the peer's address is not verified",
        read: |stats| stats.responses_cut,
    },
    Counted {
        name: "coap_responses_suppressed",
        help: "Answers that the request did not want (No-Response)",
        read: |stats| stats.responses_suppressed,
    },
    Counted {
        name: "coap_responses_lost",
        help: "Separate answers that the peer rejected or never acknowledged",
        read: |stats| stats.responses_lost,
    },
    Counted {
        name: "coap_retransmissions",
        help: "Separate answers sent again",
        read: |stats| stats.retransmissions,
    },
    Counted {
        name: "coap_acknowledged",
        help: "Acknowledgements of separate answers",
        read: |stats| stats.acknowledged,
    },
    Counted { name: "coap_resets", help: "Rejections of separate answers", read: |stats| stats.resets },
    Counted {
        name: "coap_unanswered",
        help: "Requests that were forgotten without an answer; anything but 0 is a bug",
        read: |stats| stats.unanswered,
    },
];

/// The metrics that follow the message layers of all sockets.
struct MessageLayer {
    counted: [Counter; COUNTED.len()],
    refused: [Counter; Refusal::ALL.len()],
}

impl MessageLayer {
    fn new() -> Self {
        let help = "Datagrams that were not taken: malformed, not allowed, or over a bound";
        let refused = counters::<ByRefusal>("coap_datagrams_refused", help);
        Self {
            counted: COUNTED.map(|counted| counter(counted.name, counted.help)),
            refused: Refusal::ALL
                .map(|reason| refused.get_or_create(&ByRefusal { reason: Why(reason) }).clone()),
        }
    }

    fn add(&self, now: &Stats, before: &Stats) {
        let counted = COUNTED.iter().map(|counted| ((counted.read)(now), (counted.read)(before)));
        let refused = Refusal::ALL.into_iter().map(|reason| (now.refused(reason), before.refused(reason)));
        let counters = self.counted.iter().chain(&self.refused);
        for (counter, (now, before)) in counters.zip(counted.chain(refused)) {
            if now > before {
                counter.inc_by(now - before);
            }
        }
    }
}

/// Adds what a message layer has counted since `before` to the metrics of all sockets.
pub(super) fn publish(now: &Stats, before: &Stats) {
    METRICS.message_layer.add(now, before);
}

/// A request has its answer.
pub(super) struct RequestEnded<'a> {
    pub(super) ending: Ending,
    pub(super) confirmable: bool,
    /// Whose it was, where the mapping said so.
    pub(super) device: Option<&'a DeviceId>,
}

impl Happening for RequestEnded<'_> {
    fn emit(self) {
        let Self { ending, confirmable, device } = self;
        METRICS.requests.of(ending).inc();
        if !confirmable && ending.loses_the_message() {
            METRICS.non_dropped.inc();
        }
        let device = device.map(DeviceId::as_str);
        match ending {
            Ending::Accepted => tracing::trace!(device, confirmable, "CoAP request accepted"),
            ending => {
                tracing::debug!(device, confirmable, outcome = ending.name(), "CoAP request not accepted")
            }
        }
    }
}

/// The hub answered for a request that was over.
pub(super) struct OutcomeLate<'a> {
    pub(super) outcome: &'a Outcome,
}

impl Happening for OutcomeLate<'_> {
    fn emit(self) {
        METRICS.outcomes_late.inc();
        tracing::debug!(
            outcome = Ending::from(self.outcome).name(),
            "the hub answered after the CoAP device was told"
        );
    }
}

/// A separate answer did not reach its peer, as far as can be known.
pub(super) struct ResponseLost {
    pub(super) cause: Lost,
}

impl Happening for ResponseLost {
    fn emit(self) {
        // The message layer has counted it.
        tracing::debug!(cause = ?self.cause, "CoAP answer lost");
    }
}

/// The system could not give a datagram.
pub(super) struct DatagramReceiveError {
    pub(super) error: io::Error,
}

impl Happening for DatagramReceiveError {
    fn emit(self) {
        METRICS.receive_errors.inc();
        tracing::warn!(error = %self.error, "could not receive a CoAP datagram");
    }
}

/// The system did not take a datagram.
pub(super) struct DatagramSendError {
    pub(super) peer: SocketAddr,
    pub(super) error: io::Error,
}

impl Happening for DatagramSendError {
    fn emit(self) {
        let Self { peer, error } = self;
        METRICS.send_errors.inc();
        tracing::debug!(%peer, %error, "could not send a CoAP datagram");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use fieldgate_coap::{Config, Server};

    use super::*;

    #[test]
    fn what_message_layers_count_is_added_once() {
        let metrics = MessageLayer {
            counted: COUNTED.map(|_| Counter::default()),
            refused: Refusal::ALL.map(|_| Counter::default()),
        };
        let peer = "192.0.2.1:5683".parse().unwrap();
        for seed in [1, 2] {
            let mut machine = Server::new(Config::default(), seed);
            let mut before = Stats::default();
            // Another version, a ping, a ping.
            for datagram in [[0x80, 0x01, 0x00, 0x00], [0x40, 0x00, 0x00, 0x01], [0x40, 0x00, 0x00, 0x02]] {
                machine.handle_datagram(Instant::now(), peer, &datagram);
                metrics.add(machine.stats(), &before);
                before.clone_from(machine.stats());
            }
        }
        let read = |name| COUNTED.iter().position(|counted| counted.name == name).unwrap();
        assert_eq!(metrics.counted[read("coap_datagrams")].get(), 6);
        assert_eq!(metrics.counted[read("coap_pings")].get(), 4);
        assert_eq!(metrics.refused[Refusal::Version as usize].get(), 2);
        assert_eq!(metrics.refused.iter().map(Counter::get).sum::<u64>(), 2);
    }

    #[test]
    fn the_metrics_say_which_protocol_they_are_of() {
        publish(&Stats::default(), &Stats::default());
        let text = crate::telemetry::render();
        for line in
            ["fieldgate_coap_datagrams_refused_total{reason=\"format\"} ", "fieldgate_coap_duplicates_total "]
        {
            assert!(text.contains(line), "{text}");
        }
        assert!(COUNTED.iter().all(|counted| counted.name.starts_with("coap_")));
    }
}
