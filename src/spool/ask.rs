//! What people ask the spool, and what it answers: through the control socket of the process that has it, or on the
//! directory itself when no process has. The answers' forms are the JSON that the tools read and print.

use serde::{Deserialize, Serialize};

/// A question or an order.
#[derive(Clone, Debug)]
pub(crate) enum Ask {
    /// How the spool is.
    Status,
    /// Dead letters behind the number `after`, at most `most` of those that are looked for.
    List { which: Which, after: u64, most: usize },
    /// One dead letter with its message.
    Show { seq: u64 },
    /// Dead letters become messages again, at most some hundreds at a time.
    Replay { which: Which, after: u64, up_to: Option<u64> },
    /// Dead letters are forgotten, at most some hundreds at a time.
    Drop { which: Which, after: u64, up_to: Option<u64> },
}

/// Which dead letters are meant: those to which all that is said applies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Which {
    /// This one alone.
    pub(crate) seq: Option<u64>,
    /// Of this device.
    pub(crate) device: Option<String>,
    /// For this reason.
    pub(crate) reason: Option<String>,
}

/// What it answers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Answer {
    Status(Status),
    List(List),
    /// Absent if there is no such dead letter.
    Show(Option<Box<Letter>>),
    Done(Done),
}

/// How the spool is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// `good`, `full` or `failing`.
    pub(crate) disk: Disk,
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    pub(crate) max_bytes: u64,
    pub(crate) devices: usize,
    pub(crate) in_flight: usize,
    /// Age of the oldest message.
    pub(crate) oldest_seconds: Option<u64>,
    pub(crate) dead_letters: usize,
    pub(crate) dead_letter_bytes: u64,
    /// Messages that went without a dead letter since the start, because there was no room for one.
    #[serde(default)]
    pub(crate) dead_letters_forgone: u64,
    /// What the files take, and may take.
    pub(crate) disk_bytes: u64,
    pub(crate) disk_max_bytes: u64,
    /// Damaged spots that were met.
    pub(crate) damaged: u64,
    pub(crate) hubs: Vec<HubStatus>,
}

/// Whether the disk takes messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Disk {
    Good,
    /// It has no room, or the log has as much as it may.
    Full,
    /// A write or a sync has failed, and none has succeeded since.
    Failing,
}

/// What one hub's messages are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct HubStatus {
    pub(crate) name: String,
    /// Whether it is reached now. Absent where no process runs that would try.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) connected: Option<bool>,
    pub(crate) records: u64,
    pub(crate) bytes: u64,
}

/// A page of dead letters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct List {
    pub(crate) letters: Vec<Letter>,
    /// What `after` is to be for the next page; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next: Option<u64>,
}

/// A dead letter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Letter {
    pub(crate) seq: u64,
    pub(crate) hub: String,
    pub(crate) device: String,
    pub(crate) address: String,
    pub(crate) reason: String,
    pub(crate) description: String,
    pub(crate) rule: String,
    /// Milliseconds since 1970.
    pub(crate) stored_at: u64,
    pub(crate) died_at: u64,
    pub(crate) priority: u8,
    /// The length of the message.
    pub(crate) bytes: usize,
    /// The message's sections, in base64; only where one is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Done {
    /// Dead letters that were replayed or dropped.
    pub(crate) done: u64,
    /// Those that could not be, because the disk or the bounds have no room.
    pub(crate) refused: u64,
    /// What `after` is to be to go on; absent when all were looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next: Option<u64>,
    /// What `up_to` is to be to go on: the last letter that was there at first. What is replayed may die again at once,
    /// and would be met again for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) up_to: Option<u64>,
}
