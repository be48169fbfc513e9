//! The bounds of one connection. Each is in the protocol's own words, and each bounds memory.

use std::time::Duration;

/// What one connection may take. Shared by all connections of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Maximum Packet Size, in bytes with the fixed header; announced to MQTT 5 clients. A connection that
    /// receives a packet holds at most this much of it. Default 256 KiB of payload and 16 KiB for the rest.
    pub max_packet_bytes: u32,
    /// The largest CONNECT, in bytes: what a peer that nobody knows yet can make us hold. Default 32 KiB.
    pub max_connect_bytes: u32,
    /// Receive Maximum: PUBLISH packets of QoS 1 without a PUBACK, and of QoS 2 without a PUBCOMP. An MQTT 5 client is
    /// told and must keep to it; of an older one no more than this without a PUBACK or PUBREC are parsed. About 6 bytes
    /// each, and what the driver holds for them. Default 100.
    pub receive_maximum: u16,
    /// PUBLISH packets of QoS 2 of an older client that were answered by PUBREC and not released by PUBREL: it cannot be
    /// told a maximum, and may send PUBREL behind everything else. Above it the connection ends. 4 bytes each.
    /// Default 8,192.
    pub max_unreleased: usize,
    /// Topic Alias Maximum: the highest topic alias that an MQTT 5 client may use, announced to it; zero is none.
    /// Default 16.
    pub topic_alias_maximum: u16,
    /// The topics that a client's aliases stand for, in bytes. Above it the connection ends. Default 8 KiB.
    pub max_alias_bytes: usize,
    /// The most topic aliases that are used toward a client that takes some, up to 256 bytes each. Default 8.
    pub outgoing_aliases: u16,
    /// Bytes still read, and not parsed, while nothing more can be taken: enough to notice that the peer has
    /// closed. Default 4 KiB.
    pub read_ahead_bytes: usize,
    /// The longest keep alive for an MQTT 5 client, in whole seconds (it hears Server Keep Alive if it asks for a
    /// longer one). An older client cannot be told, so its own keep alive counts. Default 20 minutes.
    pub max_keep_alive: Duration,
    /// From the connection's start until CONNECT is complete. Default 10 s.
    pub connect_time_out: Duration,
    /// PUBLISH packets of QoS 1 toward the client without a PUBACK; less if the client's Receive Maximum is less.
    /// 4 bytes each here. Default 16.
    pub outgoing_window: u16,
    /// Bytes waiting for `poll_transmit`: above it `publish` says full, and no input is wanted. Default 512 KiB.
    pub max_outgoing_bytes: usize,
    /// Topic filters in one SUBSCRIBE or UNSUBSCRIBE, about 50 bytes each. Default 64.
    pub max_filters: usize,
    /// SUBSCRIBE and UNSUBSCRIBE packets without an answer; no more are parsed. Default 4.
    pub max_requests: usize,
    /// Properties in one packet, up to about 100 bytes each besides their text. Default 64.
    pub max_properties: usize,
    /// Whether an MQTT 5 client may set the retain flag. The machine only passes it on. Default true.
    pub retain_available: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_packet_bytes: (256 + 16) * 1024,
            max_connect_bytes: 32 * 1024,
            receive_maximum: 100,
            max_unreleased: 8192,
            topic_alias_maximum: 16,
            max_alias_bytes: 8 * 1024,
            outgoing_aliases: 8,
            read_ahead_bytes: 4 * 1024,
            max_keep_alive: Duration::from_secs(1200),
            connect_time_out: Duration::from_secs(10),
            outgoing_window: 16,
            max_outgoing_bytes: 512 * 1024,
            max_filters: 64,
            max_requests: 4,
            max_properties: 64,
            retain_available: true,
        }
    }
}
