//! A connection's links, each of one kind.

use fieldgate_amqp::connection::{LinkId, SessionId};
use fieldgate_amqp::endpoint::{Receiver, Sender};
use fieldgate_mappings::DeviceId;

use super::super::address::Node;
use super::super::message::Origin;
use super::shared::Subscription;
use crate::table::Table;

/// A link that is attached.
pub(super) struct Link {
    pub(super) session: SessionId,
    /// What it is attached to: the reason why it may be there has to stay good.
    pub(super) node: Node,
    pub(super) kind: Kind,
    /// Bytes of a delivery that has not come whole.
    pub(super) partial_bytes: usize,
}

/// What a link does.
pub(super) enum Kind {
    /// Takes tokens.
    TokenRequests(Receiver),
    /// Answers them.
    TokenResponses { sender: Sender, settled: bool },
    /// Takes a device's telemetry.
    Telemetry { receiver: Receiver, origin: Origin },
    /// Takes commands from a service.
    Commands(Receiver),
    /// Lends commands to their device.
    Device { sender: Sender, device: DeviceId, _subscription: Subscription },
    /// Lends feedback to a service.
    Feedback { sender: Sender, _subscription: Subscription },
    /// Reads the event log.
    Events {
        sender: Sender,
        partition: u16,
        /// The sequence number that comes next.
        next: i64,
        settled: bool,
        _subscription: Subscription,
    },
}

impl Kind {
    /// Our sending end, where the link sends.
    pub(super) fn sender(&mut self) -> Option<&mut Sender> {
        match self {
            Self::TokenResponses { sender, .. }
            | Self::Device { sender, .. }
            | Self::Feedback { sender, .. }
            | Self::Events { sender, .. } => Some(sender),
            Self::TokenRequests(_) | Self::Telemetry { .. } | Self::Commands(_) => None,
        }
    }

    /// Our receiving end, where the link receives.
    pub(super) fn receiver(&mut self) -> Option<&mut Receiver> {
        match self {
            Self::TokenRequests(receiver) | Self::Telemetry { receiver, .. } | Self::Commands(receiver) => {
                Some(receiver)
            }
            Self::TokenResponses { .. }
            | Self::Device { .. }
            | Self::Feedback { .. }
            | Self::Events { .. } => None,
        }
    }
}

/// The links of a connection.
pub(super) type Links = Table<LinkId, Link>;
