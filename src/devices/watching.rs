//! Looks at the registry's file, in one place for the whole process, and has it read again when it has changed.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::console::{Component, Health, Status};
use crate::shutdown::Shutdown;
use crate::telemetry::emit;

use super::Registry;
use super::file::Stamp;
use super::telemetry::RegistryRefused;

/// How often the file is looked at.
const EVERY: Duration = Duration::from_secs(1);

/// Watches until the stop.
pub(crate) async fn watch(registry: Arc<Registry>, health: Arc<Health>, shutdown: Shutdown) {
    let Some(path) = registry.path.clone() else { return };
    if registry.generation() > 0 {
        health.set(Component::Devices, Status::Up);
    }
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watched = Watched { read: registry.stamp, seen: registry.stamp };
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = shutdown.draining() => return,
        }
        if watched.look(&path) {
            reload(&registry, &health);
        }
    }
}

fn reload(registry: &Registry, health: &Health) {
    match registry.reload() {
        Ok(()) => health.set(Component::Devices, Status::Up),
        Err(error) => {
            emit(RegistryRefused { error: &error, generation: registry.generation() });
            health.set(Component::Devices, Status::Down);
        }
    }
}

/// What is known of the file's states.
#[derive(Clone, Copy, Debug)]
struct Watched {
    /// The one that was read, or found bad.
    read: Option<Stamp>,
    /// The one that was seen last.
    seen: Option<Stamp>,
}

impl Watched {
    /// Whether the file is to be read now. One that was put in the other's place is whole; one that is being written
    /// where it stands is left alone until it has rested.
    fn look(&mut self, path: &Path) -> bool {
        let now = Stamp::of(path);
        let rests = now == self.seen;
        let is_new_file = match (now, self.read) {
            (Some(now), Some(read)) => now.inode != read.inode,
            _ => false,
        };
        self.seen = now;
        let due = now != self.read && (rests || is_new_file);
        if due {
            self.read = now;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;

    use super::*;
    use crate::state::tests::Scratch;

    #[test]
    fn a_file_in_the_others_place_is_read_at_once_and_one_that_is_written_once_it_rests() {
        let scratch = Scratch::new();
        let (path, new) = (scratch.0.join("devices.toml"), scratch.0.join("new"));
        let mut watched = Watched { read: None, seen: None };
        assert!(!watched.look(&path));
        fs::write(&path, "# one").unwrap();
        assert!(!watched.look(&path), "it may be half of it");
        assert!(watched.look(&path) && !watched.look(&path));
        fs::write(&new, "# two").unwrap();
        fs::rename(&new, &path).unwrap();
        assert!(watched.look(&path) && !watched.look(&path));
        let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
        for _ in 0..3 {
            file.write_all(b"# more").unwrap();
            assert!(!watched.look(&path));
        }
        assert!(watched.look(&path) && !watched.look(&path));
        fs::remove_file(&path).unwrap();
        assert!(!watched.look(&path));
        assert!(watched.look(&path) && !watched.look(&path), "that it is gone is told once");
    }
}
