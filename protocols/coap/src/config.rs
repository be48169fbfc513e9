//! What a caller may set: the transmission parameters of RFC 7252 section 4.8 and the bounds of the server.
//! Not a config file's section: the root crate reads, validates and names those.

use std::time::Duration;

use crate::rng::Rng;

/// The transmission parameters (RFC 7252 section 4.8), with its defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmission {
    /// ACK_TIMEOUT: how long at least to wait before the first retransmission. Default 2 s.
    pub ack_timeout: Duration,
    /// ACK_RANDOM_FACTOR in percent: the first wait is drawn between `ack_timeout` and that many percent of it.
    /// Default 150; below 100 counts as 100.
    pub ack_random_percent: u32,
    /// MAX_RETRANSMIT: how often a confirmable message is sent again. Default 4.
    pub max_retransmit: u8,
    /// NSTART: how many confirmable messages may be under way to one peer. Default 1; 0 counts as 1.
    pub nstart: usize,
    /// EXCHANGE_LIFETIME: how long the message ID of a CON is remembered. Default 247 s.
    pub exchange_lifetime: Duration,
    /// NON_LIFETIME: how long the message ID of a NON is remembered. Default 145 s.
    pub non_lifetime: Duration,
}

impl Default for Transmission {
    fn default() -> Self {
        Self {
            ack_timeout: Duration::from_secs(2),
            ack_random_percent: 150,
            max_retransmit: 4,
            nstart: 1,
            exchange_lifetime: Duration::from_secs(247),
            non_lifetime: Duration::from_secs(145),
        }
    }
}

impl Transmission {
    /// The first wait of a confirmable message (RFC 7252 section 4.2).
    pub(crate) fn first_wait(&self, rng: &mut Rng) -> Duration {
        let spread = self.ack_timeout.saturating_mul(self.ack_random_percent.saturating_sub(100)) / 100;
        let spread = u64::try_from(spread.as_nanos()).unwrap_or(u64::MAX);
        self.ack_timeout + Duration::from_nanos(rng.below(spread.saturating_add(1)))
    }
}

/// The bounds of a [`Server`](crate::Server), one for each socket or shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The transmission parameters.
    pub transmission: Transmission,
    /// The largest datagram that is read, in bytes; above it a request is answered 4.13. Default 1472, what fits
    /// an Ethernet frame over IPv4. The driver's buffer has to be larger by a byte at least, or it cuts unseen.
    pub max_datagram_bytes: usize,
    /// How many options a message may have; above it a request is answered 4.00. Default 64.
    pub max_options: usize,
    /// How long a CON waits for its piggybacked response before the empty ACK goes out. Default 500 ms; has to be
    /// well below the clients' ACK_TIMEOUT of 2 s.
    pub ack_delay: Duration,
    /// How many requests may be without a delivered answer, over all peers; above it 5.03. Default 16,384, about
    /// 300 bytes each.
    pub max_open: usize,
    /// The same for one peer; above it 4.29 (RFC 8516). Default 32.
    pub max_open_per_peer: usize,
    /// How many exchanges are remembered for the sake of duplicates, open ones among them; the oldest falls out
    /// first. Default 131,072, about 140 bytes each (270 where a peer has only one).
    pub max_exchanges: usize,
    /// The same for one peer. Default 4,096.
    pub max_exchanges_per_peer: usize,
    /// The Max-Age of 5.03 and 4.29 answers of the message layer itself. Default 10 s.
    pub busy_max_age: Duration,
    /// How many bytes may be sent because of one datagram, retransmissions included, as a multiple of its size:
    /// the peer's address is not verified. Default 3 (RFC 9175 section 2.4).
    pub reply_factor: usize,
    /// The bytes that may be sent in any case, however small the datagram was. Default 136 (RFC 9175 section 2.4).
    pub reply_floor_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            transmission: Transmission::default(),
            max_datagram_bytes: 1472,
            max_options: 64,
            ack_delay: Duration::from_millis(500),
            max_open: 16_384,
            max_open_per_peer: 32,
            max_exchanges: 131_072,
            max_exchanges_per_peer: 4_096,
            busy_max_age: Duration::from_secs(10),
            reply_factor: 3,
            reply_floor_bytes: 136,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_wait_is_drawn_between_its_bounds() {
        let transmission = Transmission::default();
        let mut rng = Rng::new(3);
        let waits: Vec<Duration> = (0..1000).map(|_| transmission.first_wait(&mut rng)).collect();
        assert!(waits.iter().all(|wait| (2_000..=3_000).contains(&wait.as_millis())));
        assert!(waits.iter().any(|wait| wait.as_millis() < 2_100));
        assert!(waits.iter().any(|wait| wait.as_millis() > 2_900));
    }

    #[test]
    fn a_factor_below_one_is_no_panic() {
        let transmission = Transmission { ack_random_percent: 20, ..Transmission::default() };
        assert_eq!(transmission.first_wait(&mut Rng::new(3)), transmission.ack_timeout);
    }
}
