//! What the log needs of a disk. There are two: real files, and a simulated one in tests that crashes, fills and fails.

use std::io;

/// A file in the log's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
}

/// One flat directory, held by this process alone. Errors name the file.
pub trait Disk {
    /// An open file. Several may be open on one file.
    type File: DiskFile;

    /// The files in the directory.
    ///
    /// # Errors
    /// What the system says.
    fn list(&mut self) -> io::Result<Vec<Entry>>;

    /// Opens a file that is there, for reading and writing.
    ///
    /// # Errors
    /// What the system says.
    fn open(&mut self, name: &str) -> io::Result<Self::File>;

    /// Makes a new file of this length with its blocks allocated, so that writing into it needs no more space; on an
    /// error there is none.
    ///
    /// # Errors
    /// What the system says; [`io::ErrorKind::StorageFull`] or [`io::ErrorKind::QuotaExceeded`] for want of space.
    fn create(&mut self, name: &str, bytes: u64) -> io::Result<Self::File>;

    /// Gives a file another name, over a file of that name.
    ///
    /// # Errors
    /// What the system says.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// What the system says.
    fn remove(&mut self, name: &str) -> io::Result<()>;

    /// Makes creation, renaming and removal of files durable.
    ///
    /// # Errors
    /// What the system says.
    fn sync(&mut self) -> io::Result<()>;

    /// Keeps a copy of damaged bytes for a person to look at. A copy of this name that is there already stays.
    ///
    /// # Errors
    /// What the system says.
    fn quarantine(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;

    /// Moves a whole file out of the directory to where damaged things are kept.
    ///
    /// # Errors
    /// What the system says.
    fn set_aside(&mut self, name: &str) -> io::Result<()>;

    /// A random number that nobody can foresee.
    ///
    /// # Errors
    /// If the system has none.
    fn random(&mut self) -> io::Result<u64>;
}

/// An open file.
pub trait DiskFile {
    /// Reads what is there, until the buffer is full or the file ends.
    ///
    /// # Errors
    /// What the system says.
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes all of it.
    ///
    /// # Errors
    /// What the system says; how much was written is unknown then.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes durable what was written.
    ///
    /// # Errors
    /// What the system says. Nothing can be known then of what was written since the last success, and asking again
    /// would not tell: the system reports a page that it could not write once, and forgets it.
    fn sync(&self) -> io::Result<()>;

    /// Cuts the file to this length.
    ///
    /// # Errors
    /// What the system says.
    fn truncate(&self, bytes: u64) -> io::Result<()>;
}

/// Whether there is no space left, rather than something broken.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
