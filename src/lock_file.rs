//! A directory that one process at a time may use: the lock is the system's, on a file in it that names who has it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// The file in the directory.
pub(crate) const NAME: &str = "lock";

/// A directory that is held. Dropping it gives the lock back.
#[derive(Debug)]
pub(crate) struct LockFile(#[expect(dead_code, reason = "the lock is the open file's")] File);

/// A directory that cannot be held.
#[derive(Debug, Error)]
pub(crate) enum LockError {
    /// Somebody else holds it, perhaps this process: `process 4711`, or `another process`.
    #[error("in use by {0}")]
    InUse(String),
    /// What the system said of the file.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl LockFile {
    /// Holds a directory, which is there.
    ///
    /// # Errors
    /// When somebody else does, or the file cannot be made.
    pub(crate) fn hold(directory: &Path) -> Result<Self, LockError> {
        let path = directory.join(NAME);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let locked = options.open(&path).map(|file| (file.try_lock(), file));
        match locked {
            Ok((Ok(()), mut file)) => {
                // On a full disk the note may be missing; the lock holds without it.
                let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
                Ok(Self(file))
            }
            Ok((Err(TryLockError::WouldBlock), mut file)) => Err(LockError::InUse(holder(&mut file))),
            Ok((Err(TryLockError::Error(source)), _)) | Err(source) => Err(LockError::Io { path, source }),
        }
    }
}

fn holder(file: &mut File) -> String {
    let mut text = String::new();
    match file.rewind().and_then(|()| file.take(32).read_to_string(&mut text)) {
        Ok(_) if text.trim().parse::<u32>().is_ok() => format!("process {}", text.trim()),
        _ => "another process".into(),
    }
}
