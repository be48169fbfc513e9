//! What the parts of the demo tell the one that shows it.

use std::time::Duration;

use tokio::sync::mpsc;

use super::fleet::Plan;

/// Something worth a line.
#[derive(Debug)]
pub(super) struct Note {
    /// The device that it is about.
    pub(super) plan: &'static Plan,
    pub(super) news: News,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum News {
    /// The device was told that the hub has its message.
    Accepted { bytes: usize, took: Duration, reply: String },
    /// The device was told that it has not.
    Refused { reply: String },
    /// A command came to the device, which accepted it.
    Command { text: String, reply: &'static str },
    /// The device has no connection, and tries again.
    Trouble { what: String, again_in: Duration },
    /// The demo sends a command.
    CommandSent { text: String },
    /// The hub told the demo what became of its command.
    CommandAnswered { status: String, is_taken: bool, took: Duration },
    /// The command could not be sent, or nothing was heard of it.
    CommandFailed { why: String },
}

/// Where a part tells what happens.
#[derive(Clone, Debug)]
pub(super) struct Teller(mpsc::Sender<Note>);

impl Teller {
    /// A teller and the other end; `ahead` notes wait at most, then telling waits.
    pub(super) fn new(ahead: usize) -> (Self, mpsc::Receiver<Note>) {
        let (sender, receiver) = mpsc::channel(ahead);
        (Self(sender), receiver)
    }

    /// Tells it. When nobody listens any more, the demo is over and the teller will hear of that elsewhere.
    pub(super) async fn tell(&self, plan: &'static Plan, news: News) {
        let _ = self.0.send(Note { plan, news }).await;
    }
}
