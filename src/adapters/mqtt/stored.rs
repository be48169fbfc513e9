//! Sessions over a stop of the gateway: written when it has stopped, read and removed when it starts.
//!
//! The file is there from a stop to the next start and at no other time. After a crash there is none, and sessions are
//! over: clients hear that none is present, and begin anew. An older file would be worse than none, for it would take a
//! new message of QoS 2 for one that was received. Of a session its subscriptions are kept, its end, and the packet
//! identifiers that were answered with PUBREC. Wills are sent by the stop itself, and commands without a PUBACK are at
//! the hub, which delivers them again as new messages.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use fieldgate_mappings::address::DeviceId;
use fieldgate_mappings::outcome::Outcome;
use fieldgate_mqtt::{PacketId, QoS, Session};
use serde::{Deserialize, Serialize};

use crate::adapters::{Directory, Legacy};
use crate::config::Config;
use crate::output::unix_seconds;
use crate::state::{LockedState, StateDir, StateError};
use crate::telemetry::emit;

use super::kept::{Kept, KeptFilter};
use super::telemetry::{SessionsRestored, SessionsStored, SessionsUnstored};

/// Of a directory of its own, which no other gateway uses at the same time.
const DIRECTORY: &str = "mqtt-sessions";
const FILE: &str = "sessions";
/// The first line: what follows it is one session each.
const HEADER: &str = "fieldgate mqtt sessions 1";

/// Where sessions are kept while no gateway runs.
#[derive(Debug)]
pub(crate) struct SessionStore {
    state: LockedState,
    most: usize,
    longest: Duration,
}

#[derive(Debug, Serialize, Deserialize)]
struct Stored {
    client: String,
    /// In seconds since 1970.
    until: u64,
    filters: Vec<(String, u8, Option<u32>)>,
    received: Vec<u16>,
}

impl SessionStore {
    /// The store of a gateway that keeps sessions. Without a place for them, or while another gateway has it, a stop
    /// ends them.
    pub(crate) fn open(config: &Config) -> Option<Self> {
        let (most, longest) = (config.mqtt.max_sessions.get(), config.mqtt.session_expiry_max);
        if config.mqtt_listeners.is_empty() || longest.is_zero() {
            return None;
        }
        let state = StateDir::locate(config.state.directory.as_deref())
            .and_then(|state| StateDir::locate(Some(&state.path().join(DIRECTORY)))?.lock());
        match state {
            Ok(state) => Some(Self { state, most, longest }),
            Err(error) => {
                emit(SessionsUnstored { error: &error });
                None
            }
        }
    }

    fn file(&self) -> PathBuf {
        self.state.path().join(FILE)
    }

    /// Takes what the last stop has left. What cannot be understood is no session.
    pub(crate) fn restore(&self, directory: &Directory, now: Instant) {
        let text = match fs::read_to_string(self.file()) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(source) => {
                let error = StateError::Io { path: self.file(), source };
                return emit(SessionsUnstored { error: &error });
            }
        };
        // Before anybody is served by it: it must not be there for a second start.
        if let Err(source) = fs::remove_file(self.file()) {
            let error = StateError::Io { path: self.file(), source };
            return emit(SessionsUnstored { error: &error });
        }
        let mut lines = text.lines();
        if lines.next() != Some(HEADER) {
            let what = "is not a file of sessions; it was removed".into();
            return emit(SessionsUnstored { error: &StateError::Content { path: self.file(), what } });
        }
        let unix = unix_seconds();
        let mut sessions = 0;
        for stored in lines.take(self.most).filter_map(|line| serde_json::from_str::<Stored>(line).ok()) {
            // A clock that was set back lets nothing live longer than it may.
            let left = Duration::from_secs(stored.until.saturating_sub(unix)).min(self.longest);
            if left.is_zero() || DeviceId::new(&stored.client).is_err() {
                continue;
            }
            sessions += 1;
            let (client, kept) = stored.kept();
            directory.put_back(&client, Box::new(kept), now + left);
        }
        emit(SessionsRestored { sessions });
    }

    /// Writes the sessions of a gateway that has stopped.
    pub(crate) fn store(&self, directory: &Directory, now: Instant) {
        let unix = unix_seconds();
        let mut text = String::from(HEADER);
        let mut sessions = 0;
        for (client, legacy, until) in directory.take_all() {
            let Some(left) = until.checked_duration_since(now) else { continue };
            let Some(kept) = kept(legacy) else { continue };
            let stored = Stored::new(&client, unix + left.as_secs(), *kept);
            if let Ok(line) = serde_json::to_string(&stored) {
                text.push('\n');
                text.push_str(&line);
                sessions += 1;
            }
        }
        if sessions == 0 {
            return;
        }
        match self.state.write(FILE, &text) {
            Ok(()) => emit(SessionsStored { sessions }),
            Err(error) => emit(SessionsUnstored { error: &error }),
        }
    }
}

/// The session, also one that has come only now.
fn kept(legacy: Legacy) -> Option<Box<Kept>> {
    match legacy {
        Legacy::Kept(kept) => Some(kept),
        Legacy::Nothing => None,
        Legacy::Coming(mut coming) => coming.try_recv().ok().and_then(kept),
    }
}

impl Stored {
    fn new(client: &str, until: u64, kept: Kept) -> Self {
        let Kept { mut packets, filters, late, .. } = kept;
        while let Some((token, outcome)) = late.next() {
            packets.decide(token, outcome == Outcome::Accepted);
        }
        let filter = |kept: KeptFilter| (kept.filter.into(), kept.qos as u8, kept.identifier);
        Self {
            client: client.into(),
            until,
            filters: filters.into_iter().map(filter).collect(),
            received: packets.unreleased().iter().map(|packet_id| packet_id.value()).collect(),
        }
    }

    fn kept(self) -> (String, Kept) {
        let filter = |(filter, qos, identifier): (String, u8, Option<u32>)| {
            let qos = if qos == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
            KeptFilter { filter: filter.into(), qos, identifier }
        };
        let kept = Kept {
            packets: Session::of_unreleased(self.received.into_iter().filter_map(PacketId::new)),
            filters: self.filters.into_iter().map(filter).collect(),
            ..Kept::default()
        };
        (self.client, kept)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::adapters::testing;
    use crate::state::tests::Scratch;

    const SECOND: Duration = Duration::from_secs(1);

    fn store(scratch: &Scratch) -> Option<SessionStore> {
        let directory = scratch.0.join("state");
        SessionStore::open(&testing::config(&format!(
            "[state]\ndirectory = {directory:?}\n[mqtt]\nmax_sessions = 2\nsession_expiry_max = \"60s\""
        )))
    }

    fn session() -> Kept {
        let filter = KeptFilter { filter: "a/#".into(), qos: QoS::AtLeastOnce, identifier: Some(7) };
        Kept {
            packets: Session::of_unreleased([3, 9].into_iter().filter_map(PacketId::new)),
            filters: vec![filter],
            ..Kept::default()
        }
    }

    fn leave(directory: &Arc<Directory>, client: &str, left: Duration, now: Instant) {
        let legacy = Legacy::Kept(Box::new(session()));
        directory.hold(client, now).0.leave(legacy, now + left, 9, now);
    }

    fn restored(store: &SessionStore, client: &str, after: Duration) -> Option<Box<Kept>> {
        let (directory, now) = (Arc::new(Directory::default()), Instant::now());
        store.restore(&directory, now);
        kept(directory.hold(client, now + after).1)
    }

    #[test]
    fn sessions_outlive_a_stop_and_are_there_for_one_start() {
        let scratch = Scratch::new();
        let store = store(&scratch).expect("a place");
        let (directory, now) = (Arc::new(Directory::default()), Instant::now());
        leave(&directory, "d1", 30 * SECOND, now);
        leave(&directory, "d2", 50 * SECOND, now);
        store.store(&directory, now);
        let kept = restored(&store, "d1", SECOND).expect("it is there");
        assert_eq!((kept.filters, kept.packets), (session().filters, session().packets));
        assert!(restored(&store, "d1", SECOND).is_none(), "a second start, after a crash, has none");
        leave(&directory, "d1", 30 * SECOND, now);
        store.store(&directory, now);
        assert!(restored(&store, "d1", 31 * SECOND).is_none(), "it ends when it was to");
    }

    #[test]
    fn what_cannot_be_understood_is_no_session_and_none_lives_too_long() {
        let scratch = Scratch::new();
        let store = store(&scratch).expect("a place");
        let line = |client: &str, received: &str| {
            let until = u64::MAX;
            format!(
                "{{\"client\":\"{client}\",\"until\":{until},\"filters\":[[\"a\",9,null]],\"received\":{received}}}\n"
            )
        };
        for (text, is_there) in [
            (format!("{HEADER}\n{}", line("d1", "[0,1,1]")), true),
            (format!("{HEADER}\nnonsense\n{}", line("d1", "[]")), true),
            (line("d1", "[]"), false),
            (format!("{HEADER}\n{}", line("d1", "[65536]")), false),
            (format!("{HEADER}\n{}{}{}", line("d2", "[]"), line("d3", "[]"), line("d1", "[]")), false),
            (format!("{HEADER}\n{}", &line("d1", "[]")[..40]), false),
            (String::new(), false),
        ] {
            store.state.write(FILE, &text).unwrap();
            assert_eq!(restored(&store, "d1", 59 * SECOND).is_some(), is_there, "{text}");
            assert!(!store.file().exists());
            store.state.write(FILE, &text).unwrap();
            assert!(restored(&store, "d1", 61 * SECOND).is_none(), "{text}");
        }
        fs::write(store.file(), b"\xff").unwrap();
        assert!(restored(&store, "d1", SECOND).is_none());
    }

    #[test]
    fn two_gateways_do_not_share_a_store() {
        let scratch = Scratch::new();
        let first = store(&scratch);
        assert!(first.is_some() && store(&scratch).is_none());
        drop(first);
        assert!(store(&scratch).is_some());
    }
}
