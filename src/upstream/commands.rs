//! A device's commands: the subscription of one connection, and the link that serves it.

use std::fmt;
use std::rc::Rc;

use fieldgate_amqp::connection::LinkId;
use fieldgate_amqp::endpoint::{CreditPolicy, Receiver, ReceiverConfig};
use fieldgate_mappings::address::Address;
use fieldgate_mappings::outcome::Outcome;

use super::CommandSink;

/// The largest command that is put together, in bytes: four times what IoT Hub allows.
pub(super) const MAX_COMMAND_BYTES: usize = 256 * 1024;

/// A command that waits for what the device says. Good for the link that it came over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CommandId {
    /// Which of the subscription's links: delivery-ids start anew with each session.
    pub(super) attachment: u32,
    pub(super) delivery_id: u32,
    /// The hub has settled it, and wants to hear nothing.
    pub(super) settled: bool,
}

impl CommandId {
    /// Whether both came over the same of the subscription's links.
    pub(crate) fn is_of_the_link_of(self, other: Self) -> bool {
        self.attachment == other.attachment
    }
}

#[cfg(test)]
impl CommandId {
    /// For the tests of those who take commands.
    pub(crate) fn numbered(delivery_id: u32) -> Self {
        Self { attachment: 0, delivery_id, settled: false }
    }

    /// The same, over a link that was attached later.
    pub(crate) fn over_the_next_link(self) -> Self {
        Self { attachment: self.attachment + 1, ..self }
    }
}

/// A subscription.
pub(super) struct Commands {
    /// Tells subscriptions for the same device apart.
    pub(super) serial: u64,
    pub(super) address: Address,
    pub(super) credit: u32,
    pub(super) sink: Rc<dyn CommandSink>,
    /// The link, while there is one.
    pub(super) receiver: Option<Receiver>,
    /// Counts the links.
    pub(super) attachment: u32,
}

impl Commands {
    /// How the link is to be run.
    pub(super) fn receiver_config(&self) -> ReceiverConfig {
        ReceiverConfig {
            credit: CreditPolicy::Prefetch(self.credit),
            max_message_bytes: MAX_COMMAND_BYTES,
            // They wait for the device, whatever the hub thinks of it.
            holds_settled: true,
            ..ReceiverConfig::default()
        }
    }

    /// Whether its link is this one.
    pub(super) fn receives_over(&self, link: LinkId) -> bool {
        self.receiver.as_ref().is_some_and(|receiver| receiver.link() == link)
    }

    /// Tells the subscriber that no command will come any more.
    pub(super) fn end(self, outcome: &Outcome) {
        self.sink.ended(match outcome {
            Outcome::Rejected(rejection) => Some(rejection.clone()),
            _ => None,
        });
    }
}

impl fmt::Debug for Commands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Commands")
            .field("serial", &self.serial)
            .field("address", &self.address)
            .field("receiver", &self.receiver)
            .finish_non_exhaustive()
    }
}
