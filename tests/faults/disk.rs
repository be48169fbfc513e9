//! A small disk: a file system of its own, where this machine lets us make one.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Result;

/// A file system that is mounted until this value is dropped.
#[derive(Debug)]
pub(crate) struct Disk {
    pub(crate) path: PathBuf,
    pub(crate) what: &'static str,
}

impl Disk {
    /// Makes one of about so many MiB: ext4 in a file, else in memory.
    pub(crate) fn small(directory: &Path, mib: u64) -> Result<Self> {
        let path = directory.join("disk");
        fs::create_dir_all(&path)?;
        let image = directory.join("disk.img");
        File::create(&image)?.set_len(mib << 20)?;
        let size = format!("size={mib}m");
        let (at, image) = (path.display().to_string(), image.display().to_string());
        let ext4 = run(&["mkfs.ext4", "-q", "-F", "-m", "0", &image])
            .and_then(|()| run(&["mount", "-o", "loop", &image, &at]));
        if ext4.is_ok() {
            return Ok(Self { path, what: "ext4" });
        }
        run(&["mount", "-t", "tmpfs", "-o", &size, "tmpfs", &at])?;
        Ok(Self { path, what: "tmpfs" })
    }

    /// Takes all that is left, until the file is removed; gives its bytes.
    pub(crate) fn fill(&self) -> Result<u64> {
        let mut file = File::create(self.filler())?;
        let (piece, mut bytes) = (vec![0x55; 64 << 10], 0);
        loop {
            match file.write(&piece) {
                Ok(0) => break,
                Ok(more) => bytes += more as u64,
                Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                Err(error) => return Err(error.into()),
            }
        }
        // What was written must stand on the disk, or it takes no place there.
        match file.sync_all() {
            Err(error) if error.kind() != io::ErrorKind::StorageFull => Err(error.into()),
            _ => Ok(bytes),
        }
    }

    pub(crate) fn empty(&self) -> Result<()> {
        Ok(fs::remove_file(self.filler())?)
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let path = self.path.display().to_string();
        // A file system in use goes when its last user does.
        let _ = run(&["umount", &path]).or_else(|_| run(&["umount", "--lazy", &path]));
    }
}

/// Runs a command as root, or as somebody whom sudo lets.
fn run(command: &[&str]) -> Result<()> {
    let mut errors = Vec::new();
    for before in [&[][..], &["sudo", "-n"]] {
        let words = [before, command].concat();
        match Command::new(words[0]).args(&words[1..]).output() {
            Ok(done) if done.status.success() => return Ok(()),
            Ok(done) => errors.push(String::from_utf8_lossy(&done.stderr).trim().to_owned()),
            Err(error) => errors.push(error.to_string()),
        }
    }
    Err(format!("{}: {}", command.join(" "), errors.join("; ")).into())
}
