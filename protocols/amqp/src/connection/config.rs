//! What a connection is told once, shared by every connection of a listener or connector.

use std::fmt;
use std::time::Duration;

use crate::codec::Limits;
use crate::performative::{Open, OpenOut};

/// Settings of a connection. They stand behind an `Arc`, so that an idle connection costs little.
#[derive(Clone, Debug)]
pub struct ConnectionConfig {
    /// Our container-id, used where the application has not given an `open` of its own.
    pub container_id: String,
    /// The hostname of our `open` (a client names the host that it wants to speak to).
    pub hostname: Option<String>,
    /// The largest frame that we accept, in bytes (announced as max-frame-size, at least 512). Default 65536.
    /// At most this much of a partial frame is kept in memory.
    pub max_frame_bytes: u32,
    /// The greatest channel number that the peer may use (channel-max). Default 255: at most 256 sessions,
    /// about 300 bytes each.
    pub channel_max: u16,
    /// The greatest handle that the peer may use in each session (handle-max). Default 255.
    pub handle_max: u32,
    /// The most links of a connection, over all its sessions. Default 1024, about 200 bytes each. A peer that
    /// wants more gets its session ended with `amqp:resource-limit-exceeded`.
    pub max_links: usize,
    /// Announced as our idle-time-out. The connection is closed after twice this time without a frame from
    /// the peer (2.4.5 asks to announce half of the real limit). Default 120 s; `None` waits for ever.
    pub idle_time_out: Option<Duration>,
    /// The most transfer frames that the peer may send ahead in a session (incoming-window). Default 2048. Frames
    /// that were not asked for with `poll_event` stay encoded and are not counted as received.
    pub incoming_window: u32,
    /// The bytes that these frames may come to. Default 1 MiB. The window that is announced is `incoming_window`,
    /// or what goes into these bytes at the size that the peer's frames have; at least one frame. It starts at full
    /// frames. A peer that suddenly sends larger frames exceeds it until it hears of the smaller window; a session
    /// that goes on to 16 times the bytes while it is stalled is ended with `amqp:session:window-violation`.
    pub incoming_window_bytes: usize,
    /// How long the peer may take from the first byte to its `open`, and from our `close` to its own.
    /// Default 10 s.
    pub open_time_out: Duration,
    /// The most bytes that `transfer` holds back in a session while the peer's incoming-window is shut.
    /// Default 1 MiB. At the limit `transfer` refuses with `Misuse::Backlog`. As much again may be flows and
    /// dispositions that wait behind the transfers; a peer that causes more has its connection closed.
    pub max_backlog_bytes: usize,
    /// The first transfer-id and delivery-id of our sessions. Default 0; tests start near the wrap.
    pub first_transfer_id: u32,
    /// Bounds of depth and counts inside a frame.
    pub limits: Limits,
}

impl Default for ConnectionConfig {
    fn default() -> Self {
        Self {
            container_id: String::from("fieldgate"),
            hostname: None,
            max_frame_bytes: 65_536,
            channel_max: 255,
            handle_max: 255,
            max_links: 1024,
            idle_time_out: Some(Duration::from_secs(120)),
            incoming_window: 2048,
            incoming_window_bytes: 1024 * 1024,
            open_time_out: Duration::from_secs(10),
            max_backlog_bytes: 1024 * 1024,
            first_transfer_id: 0,
            limits: Limits::default(),
        }
    }
}

impl ConnectionConfig {
    /// An open that says what these settings say, and nothing else.
    pub fn open(&self) -> Open {
        OpenOut {
            container_id: &self.container_id,
            hostname: self.hostname.as_deref(),
            max_frame_size: self.max_frame_bytes,
            channel_max: self.channel_max,
            idle_time_out: self.idle_time_out,
            ..OpenOut::default()
        }
        .build()
    }

    /// The idle-time-out in the unit of the wire.
    pub(crate) fn idle_time_out_ms(&self) -> Option<u32> {
        self.idle_time_out.map(|time| u32::try_from(time.as_millis()).unwrap_or(u32::MAX))
    }
}

/// How a client secures the layer below its `open`.
#[derive(Clone, PartialEq, Eq)]
pub enum ClientSecurity {
    /// No SASL layer: the bare AMQP header, with the `open` behind it in the same flight.
    Bare,
    /// SASL ANONYMOUS.
    Anonymous,
    /// SASL PLAIN (RFC 4616).
    Plain {
        /// Authentication identity.
        user: String,
        /// Password; for Azure IoT Hub a SAS token.
        password: String,
    },
    /// SASL EXTERNAL: the identity is that of the TLS client certificate.
    External,
    /// MSSBCBS: authentication follows by claims on the `$cbs` node.
    Mssbcbs,
}

impl fmt::Debug for ClientSecurity {
    /// Names the kind only; a password is never shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bare => "Bare",
            Self::Anonymous => "Anonymous",
            Self::Plain { .. } => "Plain",
            Self::External => "External",
            Self::Mssbcbs => "Mssbcbs",
        })
    }
}
