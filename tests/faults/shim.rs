//! The shim of `shim.c`: compiled where it is needed, and given to a gateway by its environment.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Result;

const SOURCE: &str = include_str!("shim.c");

/// What stands between a gateway and its disk.
#[derive(Clone, Debug)]
pub(crate) struct Shim {
    library: PathBuf,
    /// The directory that is watched.
    pub(crate) watched: PathBuf,
    pub(crate) control: PathBuf,
    pub(crate) journal: PathBuf,
}

impl Shim {
    /// Compiles it; `control` has to be on the file system of what it watches.
    pub(crate) fn compile(directory: &Path, watched: PathBuf, control: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        std::fs::create_dir_all(&control)?;
        let (source, library) = (directory.join("shim.c"), directory.join("shim.so"));
        std::fs::write(&source, SOURCE)?;
        let done =
            Command::new("cc").args(["-O2", "-shared", "-fPIC", "-o"]).arg(&library).arg(&source).output();
        let done = done.map_err(|error| format!("cc, the C compiler: {error}"))?;
        if !done.status.success() {
            return Err(format!("cc: {}", String::from_utf8_lossy(&done.stderr)).into());
        }
        Ok(Self { library, watched, control, journal: directory.join("journal") })
    }

    /// What the gateway's environment has to have.
    pub(crate) fn environment(&self, unsynced: bool) -> Vec<(String, String)> {
        let text = |path: &Path| path.display().to_string();
        let mut environment = vec![
            ("LD_PRELOAD".to_owned(), text(&self.library)),
            ("FAULTS_DIR".to_owned(), text(&self.watched)),
            ("FAULTS_JOURNAL".to_owned(), text(&self.journal)),
            ("FAULTS_CONTROL".to_owned(), text(&self.control)),
        ];
        if unsynced {
            environment.push(("FAULTS_UNSYNCED".into(), "1".into()));
        }
        environment
    }

    /// From now on syncs fail, or do not.
    pub(crate) fn fail_syncs(&self, fail: bool) -> Result<()> {
        let file = self.control.join("fail-sync");
        if fail {
            std::fs::write(file, "")?
        } else {
            std::fs::remove_file(file)?
        }
        Ok(())
    }
}
