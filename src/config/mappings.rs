//! Loading the mapping files that the configuration names.

use std::path::PathBuf;

use fieldgate_mappings::{AZURE_IOT_HUB, LoadError, RuleSet, Source};
use thiserror::Error;

use super::sections::MappingsConfig;

/// Mapping files that cannot be used.
#[derive(Debug, Error)]
pub enum MappingsError {
    /// A file that cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Faults in them, each with its place.
    #[error(transparent)]
    Rules(#[from] LoadError),
}

impl MappingsConfig {
    /// The rules of all files together, or of the built-in one where none is named.
    ///
    /// # Errors
    /// The first file that cannot be read, or every fault in the files.
    pub fn load(&self) -> Result<RuleSet, MappingsError> {
        if self.files.is_empty() {
            return Ok(RuleSet::load(&[AZURE_IOT_HUB])?);
        }
        let texts = self.files.iter().map(|path| {
            let text = std::fs::read_to_string(path)
                .map_err(|source| MappingsError::Read { path: path.clone(), source })?;
            Ok((path.display().to_string(), text))
        });
        let texts = texts.collect::<Result<Vec<_>, MappingsError>>()?;
        let sources: Vec<Source<'_>> = texts.iter().map(|(name, text)| Source { name, text }).collect();
        Ok(RuleSet::load(&sources)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::tests::Scratch;

    #[test]
    fn the_built_in_file_is_good() {
        MappingsConfig::default().load().unwrap();
    }

    #[test]
    fn a_fault_names_its_file() {
        let scratch = Scratch::new();
        let path = scratch.0.join("m.toml");
        std::fs::write(&path, "version = 1\nrool = 1\n").unwrap();
        let missing = scratch.0.join("missing.toml");
        let error = MappingsConfig { files: vec![path.clone()] }.load().unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}:2:1: ", path.display())), "{error}");
        let error = MappingsConfig { files: vec![path, missing] }.load().unwrap_err().to_string();
        assert!(error.contains("missing.toml: cannot be read: "), "{error}");
    }
}
