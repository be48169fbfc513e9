//! When a device is told that its message is delivered, and what becomes of the message while the hub is away:
//! `[rule.delivery]` of a mapping file.

use std::sync::Arc;
use std::time::Duration;

/// What a rule says of the delivery of its messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// When the device is told "done".
    pub ack: Ack,
    /// The priority of AMQP 1.0 3.2.1: 0 to 9, greater is more urgent.
    pub priority: u8,
    /// Whether messages are kept on disk while the hub is away, and how many.
    pub when_offline: Option<WhenOffline>,
    /// The rule, for people: its file and its name.
    pub rule: Arc<str>,
}

/// When a device is told "done".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ack {
    /// The hub has accepted.
    OnHubAccept,
    /// The message is on the gateway's disk, from where it goes to the hub.
    OnStore,
}

/// How messages are kept while the hub is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WhenOffline {
    /// Bytes that one device may have on disk.
    pub max_bytes: Option<u64>,
    /// How long a message is worth keeping.
    pub max_age: Option<Duration>,
    /// What happens when there is no room.
    pub full: Full,
}

/// What happens to a message that there is no room for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Full {
    /// The device is told to come again.
    #[default]
    RefuseNew,
    /// The device's oldest messages become dead letters.
    DeadLetterOldest,
}

impl Delivery {
    /// The priority of messages that no rule gives one (AMQP 1.0 3.2.1).
    pub const PRIORITY: u8 = 4;
    /// The greatest priority.
    pub const MAX_PRIORITY: u8 = 9;

    /// Whether its messages may have to be kept on disk.
    pub fn spools(&self) -> bool {
        self.ack == Ack::OnStore || self.when_offline.is_some()
    }
}
