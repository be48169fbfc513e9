//! The real disk: one directory, for its user only, locked while it is open.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom as _, SystemRandom};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use thiserror::Error;

use super::disk::{Disk, DiskFile, Entry};
use crate::lock_file::{LockError, LockFile};

const QUARANTINE: &str = "quarantine";
/// Files in the quarantine; with more there, nothing is copied into it any more.
const QUARANTINE_FILES: usize = 256;
/// What is written at a time where a file system cannot allocate.
const ZEROS: usize = 256 << 10;

/// A directory that cannot be used.
#[derive(Debug, Error)]
pub enum FilesError {
    /// Another process has it, or this one has it already.
    #[error("{} is in use by {holder}", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
        /// "process 4711", or "another process".
        holder: String,
    },
    /// What the system said.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// A directory of real files, held until this value is dropped.
#[derive(Debug)]
pub struct Files {
    path: PathBuf,
    directory: File,
    random: SystemRandom,
    _lock: LockFile,
}

impl Files {
    /// Makes the directory if there is none, and holds it.
    ///
    /// # Errors
    /// [`FilesError::InUse`] while it is held elsewhere.
    pub fn open(path: &Path) -> Result<Self, FilesError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| FilesError::Io { path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed(path))?;
        let lock = LockFile::hold(path).map_err(|error| match error {
            LockError::InUse(holder) => FilesError::InUse { path: path.into(), holder },
            LockError::Io { path, source } => FilesError::Io { path, source },
        })?;
        let directory = File::open(path).map_err(failed(path))?;
        if let Some(parent) = path.parent() {
            // The directory itself must outlive a crash. Its parent may be unreadable for us, if another made it.
            let _ = File::open(parent).and_then(|parent| parent.sync_all());
        }
        Ok(Self { path: path.into(), directory, random: SystemRandom::new(), _lock: lock })
    }

    fn at(&self, name: &str) -> (PathBuf, impl Fn(io::Error) -> io::Error) {
        let path = self.path.join(name);
        let shown = path.display().to_string();
        (path, move |error| io::Error::new(error.kind(), format!("{shown}: {error}")))
    }

    /// The directory of damaged things.
    fn quarantine_directory(&self) -> io::Result<PathBuf> {
        let (path, named) = self.at(QUARANTINE);
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(&named)?;
        Ok(path)
    }
}

impl Disk for Files {
    type File = File;

    fn list(&mut self) -> io::Result<Vec<Entry>> {
        let (path, named) = self.at("");
        let mut entries = Vec::new();
        for entry in fs::read_dir(&path).map_err(&named)? {
            let entry = entry.map_err(&named)?;
            let metadata = entry.metadata().map_err(&named)?;
            if let (true, Ok(name)) = (metadata.is_file(), entry.file_name().into_string()) {
                entries.push(Entry { name, bytes: metadata.len() });
            }
        }
        Ok(entries)
    }

    fn open(&mut self, name: &str) -> io::Result<File> {
        let (path, named) = self.at(name);
        OpenOptions::new().read(true).write(true).open(&path).map_err(named)
    }

    fn create(&mut self, name: &str, bytes: u64) -> io::Result<File> {
        let (path, named) = self.at(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(&named)?;
        match allocate(&file, bytes) {
            Ok(()) => Ok(file),
            Err(error) => {
                let _ = fs::remove_file(&path);
                Err(named(error))
            }
        }
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let (path, named) = self.at(from);
        fs::rename(&path, self.path.join(to)).map_err(named)
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let (path, named) = self.at(name);
        fs::remove_file(&path).map_err(named)
    }

    fn sync(&mut self) -> io::Result<()> {
        let (_, named) = self.at("");
        self.directory.sync_all().map_err(named)
    }

    fn quarantine(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let directory = self.quarantine_directory()?;
        let path = directory.join(name);
        if path.exists() {
            return Ok(());
        }
        if fs::read_dir(&directory)?.count() >= QUARANTINE_FILES {
            return Err(io::Error::other(format!("{} is full", directory.display())));
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        file.write_all(bytes).and_then(|()| file.sync_all()).inspect_err(|_| {
            let _ = fs::remove_file(&path);
        })
    }

    fn set_aside(&mut self, name: &str) -> io::Result<()> {
        let directory = self.quarantine_directory()?;
        let (path, named) = self.at(name);
        fs::rename(&path, directory.join(name)).map_err(named)
    }

    fn random(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.random.fill(&mut bytes).map_err(|_| io::Error::other("the system gives no random bytes"))?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// Takes the blocks now, so that no later write can meet a full disk.
fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
            let zeros = vec![0; ZEROS];
            let mut at = 0;
            while at < bytes {
                let len = ZEROS.min((bytes - at) as usize);
                file.write_all_at(&zeros[..len], at)?;
                at += len as u64;
            }
            Ok(())
        }
        done => Ok(done?),
    }
}

impl DiskFile for File {
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut read = 0;
        while read < into.len() {
            match std::os::unix::fs::FileExt::read_at(self, &mut into[read..], offset + read as u64) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn truncate(&self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }
}
