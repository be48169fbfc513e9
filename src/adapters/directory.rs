//! Which client identifier is connected, over all workers: a second connection with the same
//! one takes over, and the first is told to go (MQTT 3.1.1 3.1.4-2, MQTT 5 3.1.4-3).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// The connected client identifiers of all workers. Bounded by the connections that may be open.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    clients: Mutex<Clients>,
}

#[derive(Debug, Default)]
struct Clients {
    serial: u64,
    owners: HashMap<Arc<str>, Owner>,
}

#[derive(Debug)]
struct Owner {
    serial: u64,
    take_over: oneshot::Sender<()>,
}

/// A client identifier that is held by one connection; dropped when that ends.
#[derive(Debug)]
pub(crate) struct Held {
    directory: Arc<Directory>,
    client: Arc<str>,
    serial: u64,
    /// Ready when another connection has taken the identifier over.
    pub(crate) taken_over: oneshot::Receiver<()>,
}

impl Directory {
    /// Gives the identifier to the caller; whoever had it is told to go.
    pub(crate) fn hold(self: &Arc<Self>, client: &str) -> Held {
        let (take_over, taken_over) = oneshot::channel();
        let client: Arc<str> = client.into();
        let mut clients = self.clients();
        clients.serial += 1;
        let serial = clients.serial;
        if let Some(former) = clients.owners.insert(Arc::clone(&client), Owner { serial, take_over }) {
            // An error means that the former connection has just ended by itself.
            let _ = former.take_over.send(());
        }
        drop(clients);
        Held { directory: Arc::clone(self), client, serial, taken_over }
    }

    fn clients(&self) -> MutexGuard<'_, Clients> {
        // Every update is one insertion or removal: a panic elsewhere leaves the table whole.
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
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
    use super::*;

    #[test]
    fn the_newest_connection_holds_the_identifier() {
        let directory = Arc::new(Directory::default());
        let mut first = directory.hold("d1");
        let mut other = directory.hold("d2");
        assert!(first.taken_over.try_recv().is_err());
        let second = directory.hold("d1");
        assert!(first.taken_over.try_recv().is_ok());
        drop(first);
        let third = directory.hold("d1");
        assert!({ second }.taken_over.try_recv().is_ok(), "the first one's end took nothing from the second");
        assert!(other.taken_over.try_recv().is_err());
        drop((third, other));
        assert!(directory.clients().owners.is_empty());
    }
}
