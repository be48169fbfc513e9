//! Which client identifier is connected, over all workers, and what is kept of those that are away: a second connection
//! with the same one takes over, and the first is told to go and to hand its session on (MQTT 3.1.1 3.1.4-2, MQTT 5
//! 3.1.4-3).

use std::collections::{BTreeSet, HashMap};
use std::future::Future as _;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::sync::oneshot;

use super::mqtt::Kept;

/// The client identifiers of all workers. Bounded by the connections that may be open, and by `max_sessions`.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    clients: Mutex<Clients>,
}

#[derive(Debug, Default)]
struct Clients {
    serial: u64,
    owners: HashMap<Arc<str>, Owner>,
    /// Sessions whose clients are away.
    away: HashMap<Arc<str>, Away>,
    /// The same by the time of their end.
    ends: BTreeSet<(Instant, Arc<str>)>,
}

#[derive(Debug)]
struct Owner {
    serial: u64,
    take_over: oneshot::Sender<Heir>,
}

#[derive(Debug)]
struct Away {
    until: Instant,
    legacy: Legacy,
}

/// Where a connection that has to go sends its session.
pub(crate) type Heir = oneshot::Sender<Legacy>;

/// What a connection gets of the one before it.
#[derive(Debug)]
pub(crate) enum Legacy {
    /// There is no session to go on with.
    Nothing,
    /// This one.
    Kept(Box<Kept>),
    /// The one before has to say it; if it says nothing, there is none.
    Coming(oneshot::Receiver<Legacy>),
}

/// A client identifier that is held by one connection; dropped when that ends.
#[derive(Debug)]
pub(crate) struct Held {
    directory: Arc<Directory>,
    client: Arc<str>,
    serial: u64,
    taken_over: oneshot::Receiver<Heir>,
    /// The connection that has taken the identifier over.
    heir: Option<Heir>,
}

impl Directory {
    /// Gives the identifier to the caller, with the session that it had; whoever has it is told to go.
    pub(crate) fn hold(self: &Arc<Self>, client: &str, now: Instant) -> (Held, Legacy) {
        let (take_over, taken_over) = oneshot::channel();
        let client: Arc<str> = client.into();
        let mut clients = self.clients();
        clients.serial += 1;
        let serial = clients.serial;
        let former = clients.owners.insert(Arc::clone(&client), Owner { serial, take_over });
        let away = clients.take_away(&client).filter(|away| away.until > now);
        let legacy = match (away, former) {
            (Some(away), _) => away.legacy,
            (None, Some(former)) => {
                let (heir, coming) = oneshot::channel();
                // Told under the lock: when the former connection gives the identifier back, it has heard of this. An
                // error means that it has just ended without a word, and `coming` ends with it.
                let _ = former.take_over.send(heir);
                Legacy::Coming(coming)
            }
            (None, None) => Legacy::Nothing,
        };
        drop(clients);
        (Held { directory: Arc::clone(self), client, serial, taken_over, heir: None }, legacy)
    }

    /// A session that is there before its client, until then.
    pub(crate) fn put_back(&self, client: &str, kept: Box<Kept>, until: Instant) {
        let client: Arc<str> = client.into();
        let mut clients = self.clients();
        // A name that is there twice is there once.
        let former = clients.take_away(&client);
        clients.ends.insert((until, Arc::clone(&client)));
        clients.away.insert(client, Away { until, legacy: Legacy::Kept(kept) });
        drop(clients);
        drop(former);
    }

    /// The sessions whose clients are away, each with its end; nothing is left.
    pub(crate) fn take_all(&self) -> impl Iterator<Item = (Arc<str>, Legacy, Instant)> + use<> {
        let mut clients = self.clients();
        clients.ends.clear();
        let away = std::mem::take(&mut clients.away);
        drop(clients);
        away.into_iter().map(|(client, Away { until, legacy })| (client, legacy, until))
    }

    fn clients(&self) -> MutexGuard<'_, Clients> {
        // Every update is whole before anything else can fail: a panic elsewhere leaves the tables as they were.
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Ready when another connection has taken the identifier over.
    pub(crate) fn poll_taken_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.heir.is_none() {
            // The other end lives as long as the identifier is held: an error would be as good as a word.
            self.heir = ready!(Pin::new(&mut self.taken_over).poll(cx)).ok();
        }
        Poll::Ready(())
    }

    /// Leaves a session behind, also one that has not come yet: for the connection that has taken over, else for the
    /// client's next one until then. Of more than `most` sessions whose clients are away the one that would end first
    /// goes.
    pub(crate) fn leave(mut self, legacy: Legacy, until: Instant, most: usize, now: Instant) {
        let directory = Arc::clone(&self.directory);
        let mut clients = directory.clients();
        if clients.owners.get(&self.client).is_none_or(|owner| owner.serial != self.serial) {
            drop(clients);
            return self.hand_on(legacy);
        }
        clients.owners.remove(&self.client);
        if until <= now || matches!(legacy, Legacy::Nothing) {
            // A will goes off with it: not under the lock.
            return drop(clients);
        }
        clients.ends.insert((until, Arc::clone(&self.client)));
        clients.away.insert(Arc::clone(&self.client), Away { until, legacy });
        let gone = clients.make_room(most, now);
        // Wills go off with them: not under the lock.
        drop(clients);
        drop(gone);
    }

    /// Hands something on to the connection that has taken over.
    fn hand_on(&mut self, legacy: Legacy) {
        if let Some(heir) = self.heir.take().or_else(|| self.taken_over.try_recv().ok()) {
            // An error means that it has gone as well, or begins anew.
            let _ = heir.send(legacy);
        }
    }
}

impl Clients {
    fn take_away(&mut self, client: &Arc<str>) -> Option<Away> {
        let away = self.away.remove(client)?;
        self.ends.remove(&(away.until, Arc::clone(client)));
        Some(away)
    }

    /// Takes out what has ended, and what is too much.
    fn make_room(&mut self, most: usize, now: Instant) -> Vec<Away> {
        let mut gone = Vec::new();
        while let Some((until, client)) = self.ends.first().cloned()
            && (until <= now || self.away.len() > most)
        {
            gone.extend(self.take_away(&client));
        }
        gone
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut clients = self.directory.clients();
        if clients.owners.get(&self.client).is_some_and(|owner| owner.serial == self.serial) {
            clients.owners.remove(&self.client);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn session() -> Legacy {
        Legacy::Kept(Box::default())
    }

    fn kept(legacy: Legacy) -> bool {
        match legacy {
            Legacy::Nothing => false,
            Legacy::Kept(_) => true,
            Legacy::Coming(mut coming) => coming.try_recv().is_ok_and(kept),
        }
    }

    #[test]
    fn the_newest_connection_holds_the_identifier() {
        let directory = Arc::new(Directory::default());
        let now = Instant::now();
        let hold = |client| directory.hold(client, now).0;
        let mut first = hold("d1");
        let mut other = hold("d2");
        assert!(first.taken_over.try_recv().is_err());
        let second = hold("d1");
        assert!(first.taken_over.try_recv().is_ok());
        drop(first);
        let third = hold("d1");
        assert!({ second }.taken_over.try_recv().is_ok(), "the first one's end took nothing from the second");
        assert!(other.taken_over.try_recv().is_err());
        drop((third, other));
        assert!(directory.clients().owners.is_empty());
    }

    #[test]
    fn a_session_waits_for_its_client_until_its_end() {
        let directory = Arc::new(Directory::default());
        let now = Instant::now();
        for (away, comes_back) in [(SECOND, true), (2 * SECOND, false)] {
            let (held, _) = directory.hold("d1", now);
            held.leave(session(), now + 2 * SECOND, 9, now);
            let (held, legacy) = directory.hold("d1", now + away);
            assert_eq!(kept(legacy), comes_back);
            drop(held);
            assert!(!kept(directory.hold("d1", now + away).1), "it is given once");
        }
        assert!(directory.clients().ends.is_empty());
    }

    #[test]
    fn a_session_is_handed_on_to_who_takes_over() {
        let directory = Arc::new(Directory::default());
        let now = Instant::now();
        let (first, _) = directory.hold("d1", now);
        let (second, legacy) = directory.hold("d1", now);
        // The second goes before it has heard of the first.
        let (_third, passed_on) = directory.hold("d1", now);
        second.leave(legacy, now + SECOND, 9, now);
        first.leave(session(), now + SECOND, 9, now);
        assert!(kept(passed_on));
        assert!(directory.clients().away.is_empty());
    }

    #[test]
    fn a_session_that_has_not_come_waits_for_the_next_connection() {
        let directory = Arc::new(Directory::default());
        let now = Instant::now();
        for (expiry, is_there) in [(SECOND, true), (Duration::ZERO, false)] {
            let (first, _) = directory.hold("d1", now);
            let (second, legacy) = directory.hold("d1", now);
            // The second is gone before it has heard of the first, and before there is a third.
            second.leave(legacy, now + expiry, 9, now);
            first.leave(session(), now + SECOND, 9, now);
            assert_eq!(kept(directory.hold("d1", now).1), is_there);
            assert!(directory.clients().away.is_empty());
        }
    }

    #[test]
    fn sessions_that_wait_are_bounded_and_the_next_to_end_goes() {
        let directory = Arc::new(Directory::default());
        let now = Instant::now();
        for (client, seconds) in [("a", 3), ("b", 1), ("c", 2)] {
            directory.hold(client, now).0.leave(session(), now + seconds * SECOND, 2, now);
        }
        for (client, there) in [("a", true), ("b", false), ("c", true)] {
            assert_eq!(kept(directory.hold(client, now).1), there, "{client}");
        }
        directory.hold("d", now).0.leave(session(), now + SECOND, 2, now);
        directory.hold("e", now).0.leave(session(), now + 9 * SECOND, 2, now + SECOND);
        assert_eq!(directory.clients().away.len(), 1, "what has ended goes when another one comes");
    }
}
