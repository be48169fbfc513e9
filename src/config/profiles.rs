//! `[[ssl_profile]]`: certificates and TLS versions, under a name that listeners and connectors use.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::error::{ConfigError, Source, beside};
use super::names::Names;

/// A TLS version that is spoken here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum TlsVersion {
    /// RFC 5246: for device libraries that speak nothing newer.
    #[serde(rename = "TLSv1.2")]
    V1_2,
    /// RFC 8446.
    #[serde(rename = "TLSv1.3")]
    V1_3,
}

/// Whether a listener asks devices for certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificates {
    /// It does not.
    #[default]
    None,
    /// It checks those that come.
    Optional,
    /// A device without one does not get in.
    Required,
}

/// Certificates and TLS versions; the files are read when a listener or connector starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SslProfile {
    /// What listeners and connectors call it.
    pub name: Arc<str>,
    /// Certificates (PEM) to check the peer's with. Absent on a connector: those of the platform.
    pub ca_cert_file: Option<PathBuf>,
    /// Our certificate chain (PEM), our own certificate first; never without its key.
    pub identity: Option<IdentityFiles>,
    /// Without repetition and never empty.
    pub protocols: Vec<TlsVersion>,
    /// Means something on listeners only.
    pub client_certificates: ClientCertificates,
}

impl SslProfile {
    /// All files that it names.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let identity = self.identity.iter().flat_map(|files| [&files.cert_file, &files.private_key_file]);
        self.ca_cert_file.iter().chain(identity).cloned().collect()
    }
}

/// A certificate chain and its private key, as files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdentityFiles {
    /// PEM, the end entity first.
    pub cert_file: PathBuf,
    /// PEM, not encrypted.
    pub private_key_file: PathBuf,
}

/// `[[ssl_profile]]` as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ProfileSection {
    name: String,
    ca_cert_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    private_key_file: Option<PathBuf>,
    protocols: Option<Vec<TlsVersion>>,
    #[serde(default)]
    client_certificates: ClientCertificates,
}

pub(super) const SECTION: &str = "ssl_profile";

pub(super) fn resolve(
    source: &Source<'_>,
    sections: Vec<ProfileSection>,
    base: Option<&Path>,
) -> Result<Vec<Arc<SslProfile>>, ConfigError> {
    let mut names = Names::new(source, SECTION);
    let mut profiles = Vec::new();
    for (at, section) in sections.into_iter().enumerate() {
        let at = at.to_string();
        let name = names.take(&at, &section.name)?;
        let wrong = |key: &str, what: String| source.wrong(&[SECTION, &at, key], what);
        let identity = match (section.cert_file, section.private_key_file) {
            (None, None) => None,
            (Some(cert), Some(key)) => {
                Some(IdentityFiles { cert_file: beside(base, &cert), private_key_file: beside(base, &key) })
            }
            (Some(_), None) => {
                return Err(wrong("cert_file", format!("ssl_profile `{name}` has a certificate and no key"))
                    .with_help("`private_key_file` names the key's file (PEM, not encrypted)"));
            }
            (None, Some(_)) => {
                return Err(wrong(
                    "private_key_file",
                    format!("ssl_profile `{name}` has a key and no certificate"),
                )
                .with_help("`cert_file` names the certificate's file (PEM, with what it was signed by)"));
            }
        };
        if section.client_certificates != ClientCertificates::None && section.ca_cert_file.is_none() {
            let what = "client certificates are checked with a CA of yours, and none is named";
            return Err(wrong("client_certificates", what.into())
                .with_help("`ca_cert_file` names the certificates (PEM) that sign the devices'"));
        }
        let mut protocols = section.protocols.unwrap_or_else(|| vec![TlsVersion::V1_2, TlsVersion::V1_3]);
        protocols.sort_by_key(|version| *version as u8);
        protocols.dedup();
        if protocols.is_empty() {
            return Err(wrong("protocols", "no TLS version is left".into())
                .with_help("\"TLSv1.2\", \"TLSv1.3\", or leave `protocols` out for both"));
        }
        profiles.push(Arc::new(SslProfile {
            name,
            ca_cert_file: section.ca_cert_file.map(|file| beside(base, &file)),
            identity,
            protocols,
            client_certificates: section.client_certificates,
        }));
    }
    Ok(profiles)
}

/// The profile that `[[section]]` number `at` names.
pub(super) fn named(
    source: &Source<'_>,
    profiles: &[Arc<SslProfile>],
    section: &str,
    at: &str,
    name: &str,
) -> Result<Arc<SslProfile>, ConfigError> {
    profiles.iter().find(|profile| &*profile.name == name).cloned().ok_or_else(|| {
        let known = profiles.iter().map(|profile| &*profile.name);
        super::names::unknown(source, &[section, at, "ssl_profile"], SECTION, name, known)
    })
}
