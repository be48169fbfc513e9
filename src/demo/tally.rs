//! What the demo has seen, whether that is everything, and the summary at its end.

use std::time::Duration;

use super::fleet::{PROTOCOLS, label, plan};
use super::note::{News, Note};
use crate::telemetry::Protocol;

/// What was seen of one protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    /// Whether the gateway listens for it at all.
    expected: bool,
    /// Messages that devices were told to be accepted.
    accepted: u64,
    /// Messages that arrived at the hub.
    received: u64,
    /// Commands whose feedback said so.
    commands: u64,
}

/// All that was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tally {
    seen: [Seen; PROTOCOLS.len()],
    /// Messages of devices that are not the demo's.
    others: u64,
}

/// Those whose devices are sent commands.
const COMMANDED: [Protocol; 2] = [Protocol::Amqp, Protocol::Mqtt];

impl Tally {
    /// Nothing yet, from devices of these protocols.
    pub(super) fn new(expected: impl Fn(Protocol) -> bool) -> Self {
        let mut seen = [Seen::default(); PROTOCOLS.len()];
        for protocol in PROTOCOLS {
            seen[protocol as usize].expected = expected(protocol);
        }
        Self { seen, others: 0 }
    }

    pub(super) fn note(&mut self, note: &Note) {
        let seen = &mut self.seen[note.plan.speaks.protocol() as usize];
        match note.news {
            News::Accepted { .. } => seen.accepted += 1,
            News::CommandAnswered { is_taken: true, .. } => seen.commands += 1,
            _ => {}
        }
    }

    /// Counts a message at the hub.
    pub(super) fn event(&mut self, device: Option<&str>) {
        match device.and_then(plan) {
            Some(plan) => self.seen[plan.speaks.protocol() as usize].received += 1,
            None => self.others += 1,
        }
    }

    /// Whether everything that devices were told to be accepted has been seen at the hub.
    pub(super) fn is_settled(&self) -> bool {
        self.seen.iter().all(|seen| seen.received >= seen.accepted)
    }

    /// What is missing until every protocol has delivered `messages` and every kind of command was accepted.
    pub(super) fn missing(&self, messages: u64) -> Vec<String> {
        let mut missing = Vec::new();
        for protocol in PROTOCOLS {
            let Seen { expected, accepted, received, commands } = self.seen[protocol as usize];
            if !expected {
                continue;
            }
            let label = label(protocol);
            for (count, end) in [(accepted, "accepted"), (received, "seen at the hub")] {
                if count < messages {
                    missing.push(format!("{label}: {count} of {messages} messages {end}"));
                }
            }
            if commands == 0 && COMMANDED.contains(&protocol) {
                missing.push(format!("{label}: no command accepted"));
            }
        }
        missing
    }

    /// The table at the end.
    pub(super) fn summary(&self, lasted: Duration) -> String {
        let lasted = format!("after {:.1} s", lasted.as_secs_f64());
        let row = |name: &str, accepted: &str, received: &str, commands: &str| {
            let row = format!("{name:<13}{accepted:>17}{received:>18}{commands:>20}");
            format!("{}\n", row.trim_end())
        };
        let mut text = row(&lasted, "messages accepted", "seen at the hub", "commands accepted");
        for protocol in PROTOCOLS {
            let Seen { expected, accepted, received, commands } = self.seen[protocol as usize];
            if !expected {
                continue;
            }
            let commands = if COMMANDED.contains(&protocol) { commands.to_string() } else { String::new() };
            text += &row(label(protocol), &accepted.to_string(), &received.to_string(), &commands);
        }
        if self.others > 0 {
            text += &row("yours", "", &self.others.to_string(), "");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::fleet::FLEET;
    use super::*;

    fn accepted(tally: &mut Tally, id: &str) {
        let news = News::Accepted { bytes: 1, took: Duration::ZERO, reply: String::new() };
        tally.note(&Note { plan: plan(id).unwrap(), news });
    }

    fn answered(tally: &mut Tally, id: &str, is_taken: bool) {
        let news = News::CommandAnswered { status: String::new(), is_taken, took: Duration::ZERO };
        tally.note(&Note { plan: plan(id).unwrap(), news });
    }

    #[test]
    fn everything_is_there_when_each_protocol_delivered_and_each_kind_of_command_was_accepted() {
        let mut tally = Tally::new(|_| true);
        assert_eq!(tally.missing(1).len(), 4 * 2 + 2);
        for plan in &FLEET {
            accepted(&mut tally, plan.id);
        }
        assert!(!tally.is_settled());
        for plan in &FLEET {
            tally.event(Some(plan.id));
        }
        assert!(tally.is_settled());
        answered(&mut tally, "mqtt-valve", true);
        answered(&mut tally, "amqp-press", false);
        assert_eq!(tally.missing(2), ["AMQP 1.0: no command accepted"]);
        assert_eq!(tally.missing(3).len(), 4 * 2 + 1);
        answered(&mut tally, "amqp-press", true);
        assert!(tally.missing(2).is_empty());
    }

    #[test]
    fn a_listener_that_is_off_is_not_missed() {
        let mut tally = Tally::new(|protocol| protocol == Protocol::Coap);
        assert_eq!(
            tally.missing(1),
            ["CoAP: 0 of 1 messages accepted", "CoAP: 0 of 1 messages seen at the hub"]
        );
        accepted(&mut tally, "coap-rain");
        tally.event(Some("coap-rain"));
        assert!(tally.missing(1).is_empty());
        assert_eq!(
            tally.summary(Duration::from_millis(1_500)),
            "after 1.5 s  messages accepted   seen at the hub   commands accepted\n\
             CoAP                         1                 1\n"
        );
    }

    #[test]
    fn messages_of_others_are_counted_apart() {
        let mut tally = Tally::new(|_| true);
        tally.event(Some("my-mqtt"));
        tally.event(None);
        let summary = tally.summary(Duration::from_secs(3));
        let lines: Vec<_> = summary.lines().collect();
        assert_eq!(lines[1], "AMQP 1.0                     0                 0                   0");
        assert_eq!(lines[5], "yours                                          2");
    }
}
