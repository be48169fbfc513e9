//! The counters of a server, for metrics: every datagram that was not delivered is counted under its reason.
//! Not a log: no address and no content, the labels are a bounded set.

/// Why a datagram was not delivered as a request. What each answers stands beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// From port 0, or from no unicast address: silence.
    Source,
    /// Shorter than a header: silence.
    Short,
    /// Another version than 1: silence.
    Version,
    /// A message format error: RST for CON, else silence.
    Format,
    /// A code of class 1, 6 or 7: RST for CON, else silence.
    ReservedClass,
    /// A response, an ACK or a RST that nothing waits for: RST for CON, else silence.
    Unmatched,
    /// Above `max_datagram_bytes`: 4.13 to a request, else as a format error.
    TooLarge,
    /// Above `max_options`: 4.00.
    TooManyOptions,
    /// A critical option that is unknown, of a wrong length or repeated: 4.02 for CON, silence for NON.
    Option,
    /// A path or query that is not UTF-8, or a path segment `.` or `..`: 4.00.
    Text,
    /// Proxy-Uri or Proxy-Scheme: 5.05.
    Proxy,
    /// A method other than GET, POST, PUT, DELETE: 4.05.
    Method,
    /// `max_open_per_peer` reached: 4.29 for CON, silence for NON.
    PeerBusy,
    /// `max_open` reached: 5.03 for CON, silence for NON.
    Busy,
    /// The codec refused what the guard had let through: as a format error. Anything but 0 is a bug.
    Disagreement,
}

impl Refusal {
    /// Every reason, in the order of [`Stats::refused`].
    pub const ALL: [Self; 15] = [
        Self::Source,
        Self::Short,
        Self::Version,
        Self::Format,
        Self::ReservedClass,
        Self::Unmatched,
        Self::TooLarge,
        Self::TooManyOptions,
        Self::Option,
        Self::Text,
        Self::Proxy,
        Self::Method,
        Self::PeerBusy,
        Self::Busy,
        Self::Disagreement,
    ];

    /// The label of a metric.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Short => "short",
            Self::Version => "version",
            Self::Format => "format",
            Self::ReservedClass => "reserved-class",
            Self::Unmatched => "unmatched",
            Self::TooLarge => "too-large",
            Self::TooManyOptions => "too-many-options",
            Self::Option => "option",
            Self::Text => "text",
            Self::Proxy => "proxy",
            Self::Method => "method",
            Self::PeerBusy => "peer-busy",
            Self::Busy => "busy",
            Self::Disagreement => "disagreement",
        }
    }
}

/// Counters since the server was made. They only grow.
///
/// Each datagram counts once: `datagrams` is the sum of `requests`, `duplicates`, `pings`, `acknowledged`, `resets`
/// and all that was refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Datagrams handed in.
    pub datagrams: u64,
    /// Requests delivered to the application, each once.
    pub requests: u64,
    /// Answers taken from the application.
    pub responses: u64,
    /// Answers that went out as a message of their own after an empty ACK.
    pub separate_responses: u64,
    /// Separate responses sent again.
    pub retransmissions: u64,
    /// Separate responses that the peer rejected, never acknowledged, or made void by reusing the message ID.
    pub responses_lost: u64,
    /// Answers that were shortened or replaced because they were too large for an unverified peer.
    pub responses_cut: u64,
    /// Answers that the request's No-Response option suppressed (RFC 7967).
    pub responses_suppressed: u64,
    /// Requests that the application never answered within EXCHANGE_LIFETIME.
    pub unanswered: u64,
    /// Repeated requests that were recognised and not delivered again.
    pub duplicates: u64,
    /// Requests under a remembered message ID but with other content: a peer that started anew. Delivered.
    pub superseded: u64,
    /// Exchanges forgotten before their time because a table was full: their duplicates are not recognised.
    pub evicted: u64,
    /// Empty CON messages, answered RST.
    pub pings: u64,
    /// ACK messages to separate responses.
    pub acknowledged: u64,
    /// RST messages to separate responses.
    pub resets: u64,
    refused: [u64; Refusal::ALL.len()],
}

impl Stats {
    /// How many datagrams were refused for this reason.
    pub fn refused(&self, refusal: Refusal) -> u64 {
        self.refused[refusal as usize]
    }

    /// How many datagrams were refused for any reason.
    pub fn refused_in_all(&self) -> u64 {
        self.refused.iter().sum()
    }

    pub(crate) fn count(&mut self, refusal: Refusal) {
        self.refused[refusal as usize] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_counter_and_a_label_of_its_own() {
        let mut stats = Stats::default();
        for (index, refusal) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(refusal as usize, index);
            stats.count(refusal);
            assert_eq!(stats.refused(refusal), 1);
        }
        assert_eq!(stats.refused_in_all(), Refusal::ALL.len() as u64);
        let labels: std::collections::HashSet<_> = Refusal::ALL.map(Refusal::as_str).into();
        assert_eq!(labels.len(), Refusal::ALL.len());
    }
}
