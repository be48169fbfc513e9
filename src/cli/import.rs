//! `fieldgate import`: a configuration of Qpid Dispatch Router, written anew.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::CliError;
use crate::config::{Config, ConfigError};
use crate::output::{complain, say};

/// Translates `file`; what is left behind is named on standard error.
pub(super) fn run(file: &Path, output: Option<&Path>) -> Result<(), CliError> {
    let import = Config::import(file, output)?;
    for remark in &import.remarks {
        complain(&format!("{}:{}: {}", file.display(), remark.line, remark.what));
    }
    match output {
        None => say(import.text.trim_end())?,
        Some(output) => {
            write(output, &import.text).map_err(|error| {
                ConfigError::new(output.display().to_string(), format!("cannot be written: {error}"))
            })?;
            complain(&format!("written to {0}; `fieldgate run --config {0}` runs it", output.display()));
        }
    }
    Ok(())
}

/// A new file, for its user only: it may hold a password.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::state::tests::Scratch;

    #[test]
    fn the_file_is_new_and_its_user_s_own() {
        let scratch = Scratch::new();
        let (from, to) = (scratch.0.join("qdrouterd.conf"), scratch.0.join("fieldgate.toml"));
        fs::write(&from, "connector { name: HUB host: 127.0.0.1 saslUsername: u saslPassword: p }\n")
            .unwrap();
        run(&from, Some(&to)).unwrap();
        assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o600);
        let config = Config::load(&to).unwrap();
        assert_eq!(&*config.connectors[0].name, "HUB");
        let error = run(&from, Some(&to)).unwrap_err().to_string();
        assert!(error.contains("fieldgate.toml: cannot be written"), "{error}");
        let error = run(&to, None).unwrap_err().to_string();
        assert!(error.contains("is no configuration of Qpid Dispatch"), "{error}");
    }
}
