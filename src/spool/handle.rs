//! What a worker holds of the spool: where it hands messages in, and where the answers come.

use std::collections::HashMap;
use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use fieldgate_mappings::ByteString;
use fieldgate_mappings::address::DeviceId;
use tokio::sync::{Notify, oneshot};

use super::ask::{Answer, Ask};
use super::held::Held;
use super::record::{Entry, Limits, Refusal};

/// When a device may come again after a stop: by then another process may be there.
const RETRY_AFTER_STOP: Duration = Duration::from_secs(5);

/// Something that a worker hands in.
#[derive(Debug)]
pub(crate) struct Store {
    /// The worker's own number for it.
    pub(crate) ticket: u64,
    /// What is to be kept.
    pub(crate) entry: Entry,
    /// How much room its rule gives it.
    pub(crate) limits: Limits,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    /// The disk has it: the device may be told that it is accepted.
    Stored,
    /// The disk does not have it.
    Refused(Refusal),
}

/// The process's spool; cloning gives another handle to it.
#[derive(Clone)]
pub(crate) struct Spool {
    shared: Arc<Shared>,
}

/// What the handles and the thread share.
pub(super) struct Shared {
    pub(super) held: Held,
    inbox: Mutex<Inbox>,
    /// Something came into the inbox.
    pub(super) came: Notify,
    /// The beginning of message ids that are made here.
    id: String,
    number: AtomicU64,
}

/// Tickets, and what became of them.
type Answers = Vec<(u64, Stored)>;

/// Questions, and where their answers go.
pub(super) type Asked = Vec<(Ask, oneshot::Sender<Answer>)>;

/// What came and was not yet looked at.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    pub(super) batches: Vec<(Arc<Letters>, Vec<Store>)>,
    pub(super) asks: Asked,
    /// Nobody looks any more.
    closed: bool,
}

/// Where one worker's answers gather.
#[derive(Debug, Default)]
pub(super) struct Letters {
    state: Mutex<Gathered>,
}

#[derive(Debug, Default)]
struct Gathered {
    answers: Answers,
    waker: Option<Waker>,
}

/// One worker's answers.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    letters: Arc<Letters>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Only moves happen under these locks: a panic elsewhere leaves them whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Spool {
    /// A spool whose thread will be told by `shared`. `log` is the log's id; `start` is another number for each start
    /// of the process.
    pub(super) fn new(log: u64, start: u64) -> Self {
        let shared = Shared {
            held: Held::default(),
            inbox: Mutex::default(),
            came: Notify::new(),
            id: format!("fieldgate-{log:016x}-{start:x}"),
            number: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Whether the spool holds anything of the device, or has it on its way to the disk: then a live message must
    /// queue behind it. One load while the spool is empty.
    pub(crate) fn holds(&self, hub: &str, device: &DeviceId) -> bool {
        self.shared.held.holds(hub, device)
    }

    /// Hands in a batch, in its order. Each of it is answered exactly once, in `from`, as long as that lives.
    pub(crate) fn submit(&self, from: &Mailbox, batch: Vec<Store>) {
        if batch.is_empty() {
            return;
        }
        for store in &batch {
            if let Entry::Message(record) = &store.entry {
                self.shared.held.add(&record.hub, &record.device, 1);
            }
        }
        let mut inbox = lock(&self.shared.inbox);
        if inbox.closed {
            drop(inbox);
            return self.shared.turn_away(&from.letters, &batch);
        }
        inbox.batches.push((Arc::clone(&from.letters), batch));
        drop(inbox);
        self.shared.came.notify_one();
    }

    /// A message-id for a message that has none of its own and may be sent more than once: first directly, then by
    /// the spool. Unlike any other, of this process and of former ones.
    pub(crate) fn message_id(&self) -> ByteString {
        let number = self.shared.number.fetch_add(1, Ordering::Relaxed);
        format!("{}-{number:x}", self.shared.id).into()
    }

    /// Asks the thread something. Nothing when it has stopped.
    pub(super) async fn ask(&self, ask: Ask) -> Option<Answer> {
        let (answer, answered) = oneshot::channel();
        {
            let mut inbox = lock(&self.shared.inbox);
            if inbox.closed {
                return None;
            }
            inbox.asks.push((ask, answer));
        }
        self.shared.came.notify_one();
        answered.await.ok()
    }
}

impl fmt::Debug for Spool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spool").field("id", &self.shared.id).finish_non_exhaustive()
    }
}

impl Shared {
    /// All that came.
    pub(super) fn take(&self) -> Inbox {
        let mut inbox = lock(&self.inbox);
        let closed = inbox.closed;
        mem::replace(&mut *inbox, Inbox { closed, ..Inbox::default() })
    }

    /// Nobody will look any more. Whoever came too late is told so.
    pub(super) fn close(&self) {
        let inbox = {
            let mut inbox = lock(&self.inbox);
            inbox.closed = true;
            mem::replace(&mut *inbox, Inbox { closed: true, ..Inbox::default() })
        };
        for (letters, batch) in &inbox.batches {
            self.turn_away(letters, batch);
        }
    }

    fn turn_away(&self, letters: &Letters, batch: &[Store]) {
        let refused = Stored::Refused(Refusal::Failed { retry_after: RETRY_AFTER_STOP });
        for store in batch {
            if let Entry::Message(record) = &store.entry {
                self.held.remove(&record.hub, &record.device);
            }
        }
        letters.deliver(batch.iter().map(|store| (store.ticket, refused)));
    }
}

impl Letters {
    /// Puts answers in, and wakes the worker.
    pub(super) fn deliver(&self, answers: impl IntoIterator<Item = (u64, Stored)>) {
        let waker = {
            let mut gathered = lock(&self.state);
            gathered.answers.extend(answers);
            gathered.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Answers of one commit, by the worker that they are for.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// By the address of the mailbox, which is kept.
    answers: HashMap<usize, (Arc<Letters>, Answers)>,
}

impl Outbox {
    /// Notes an answer.
    pub(super) fn put(&mut self, letters: &Arc<Letters>, ticket: u64, answer: Stored) {
        let (_, answers) = self
            .answers
            .entry(Arc::as_ptr(letters).addr())
            .or_insert_with(|| (Arc::clone(letters), Vec::new()));
        answers.push((ticket, answer));
    }

    /// Hands all of them out.
    pub(super) fn deliver(&mut self) {
        for (_, (letters, answers)) in self.answers.drain() {
            letters.deliver(answers);
        }
    }
}

impl Mailbox {
    /// The answers that came, at least one; or wakes the task when there are some.
    pub(crate) fn poll(&self, cx: &Context<'_>) -> Poll<Answers> {
        let mut gathered = lock(&self.letters.state);
        if gathered.answers.is_empty() {
            gathered.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(mem::take(&mut gathered.answers))
    }
}
