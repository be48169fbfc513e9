//! TLS settings that follow their files: a certificate, key or CA that was replaced is read again. New connections use
//! the new one, those that are there go on as they are.
//!
//! A file is looked at, not watched: what replaces certificates (a copy, a rename, a symbolic link that is turned, a
//! network file system) is not alike to the system, and a certificate has time. What cannot be used leaves the old
//! setting in force.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::TlsError;
use super::telemetry::{CertificatesReloadError, CertificatesReloaded};
use crate::telemetry::emit;

/// How often files are looked at. A change counts when it was the same at two looks: certificate and key are two files,
/// and are seldom replaced at once.
const LOOK: Duration = Duration::from_secs(1);

/// Something made of files, as they were when they were last good.
pub(crate) struct Live<T> {
    /// Where the configuration names the files.
    place: String,
    files: Vec<PathBuf>,
    make: Make<T>,
    current: RwLock<Arc<T>>,
    seen: Mutex<Seen>,
}

type Make<T> = Box<dyn Fn() -> Result<Arc<T>, TlsError> + Send + Sync>;

/// What tells one state of a file from the next; nothing where there is no file. The last is when its rights changed,
/// or its content whatever its date says.
type Stamp = Option<[i64; 6]>;

#[derive(Debug)]
struct Seen {
    /// When it was last made.
    made: Vec<Stamp>,
    /// At the last look.
    looked: Vec<Stamp>,
}

/// What can be told to look at its files.
pub(crate) trait Follow: fmt::Debug + Send + Sync {
    /// Looks whether the files have changed, and follows them if so.
    fn look(&self);
}

impl<T> Live<T> {
    /// What `make` makes of these files.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(crate) fn new(
        place: impl Into<String>,
        files: impl IntoIterator<Item = PathBuf>,
        make: impl Fn() -> Result<Arc<T>, TlsError> + Send + Sync + 'static,
    ) -> Result<Arc<Self>, TlsError> {
        let files: Vec<_> = files.into_iter().collect();
        // Before they are read: what changes in between is seen later.
        let stamps = stamps(&files);
        let current = RwLock::new(make()?);
        let seen = Mutex::new(Seen { made: stamps.clone(), looked: stamps });
        Ok(Arc::new(Self { place: place.into(), files, make: Box::new(make), current, seen }))
    }

    /// What is good now.
    pub(crate) fn current(&self) -> Arc<T> {
        // A pointer is whole whenever it can be read.
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<T: Send + Sync> Follow for Live<T> {
    fn look(&self) {
        let now = stamps(&self.files);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let settled = seen.looked == now;
        if settled && seen.made != now {
            match (self.make)() {
                Ok(made) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = made;
                    emit(CertificatesReloaded { place: &self.place });
                }
                Err(error) => emit(CertificatesReloadError { place: &self.place, error: &error }),
            }
            // Once for each state of the files: what was wrong is said once.
            seen.made.clone_from(&now);
        }
        seen.looked = now;
    }
}

impl<T> fmt::Debug for Live<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").field("place", &self.place).field("files", &self.files).finish_non_exhaustive()
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Stamp> {
    files.iter().map(|file| stamp(file)).collect()
}

fn stamp(file: &Path) -> Stamp {
    let data = std::fs::metadata(file).ok()?;
    // Which file it is, and how long; wrapped numbers tell one from another as well.
    let (which, length) = (data.ino().cast_signed(), data.len().cast_signed());
    Some([which, length, data.mtime(), data.mtime_nsec(), data.ctime(), data.ctime_nsec()])
}

/// Looks again and again; never ends.
pub(crate) async fn follow(all: Vec<Arc<dyn Follow>>) {
    let mut times = tokio::time::interval(LOOK);
    times.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let all = Arc::new(all);
    loop {
        times.tick().await;
        let all = Arc::clone(&all);
        // A file system may make its readers wait, which is not to stop whoever else is served here. An error is a
        // panic, which is counted and logged where it happens.
        let _ = tokio::task::spawn_blocking(move || all.iter().for_each(|one| one.look())).await;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::state::tests::Scratch;

    #[test]
    fn a_change_that_has_settled_is_followed_and_a_bad_one_is_not() {
        let scratch = Scratch::new();
        let path = scratch.0.join("number");
        fs::write(&path, "1").unwrap();
        let file = path.clone();
        let live = Live::new("[test]", [path.clone()], move || {
            let text = fs::read_to_string(&file).unwrap_or_default();
            let wrong = |_| TlsError::File { path: file.clone(), what: "is no number".into() };
            text.parse::<u32>().map(Arc::new).map_err(wrong)
        })
        .unwrap();
        let after_looks = |looks: usize| {
            (0..looks).for_each(|_| live.look());
            *live.current()
        };
        assert_eq!(after_looks(3), 1);
        fs::write(&path, "22").unwrap();
        assert_eq!((after_looks(1), after_looks(1)), (1, 22));
        for bad in ["none at all", ""] {
            fs::write(&path, bad).unwrap();
            assert_eq!(after_looks(3), 22);
        }
        fs::remove_file(&path).unwrap();
        assert_eq!(after_looks(3), 22);
        // As certificates are often replaced: by a rename of what was written elsewhere.
        fs::write(scratch.0.join("new"), "33").unwrap();
        fs::rename(scratch.0.join("new"), &path).unwrap();
        assert_eq!(after_looks(2), 33);
        // And by a symbolic link that is turned.
        for n in ["44", "55"] {
            fs::write(scratch.0.join(n), n).unwrap();
            std::os::unix::fs::symlink(scratch.0.join(n), scratch.0.join("link")).unwrap();
            fs::rename(scratch.0.join("link"), &path).unwrap();
            assert_eq!(after_looks(2).to_string(), n);
        }
    }
}
