//! TLS as this program speaks it: 1.2 and 1.3, one provider (ring), certificates from a file, the platform or our own CA.
//!
//! TLS 1.2 stays because device libraries exist that speak nothing newer.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use thiserror::Error;

/// TLS that cannot be set up.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file of certificates that is missing, unreadable or empty.
    #[error("{}: {what}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The platform has no certificates to trust.
    #[error("this system has no trusted certificates ({0}); name a file of them with [upstream] ca_file")]
    NoPlatformRoots(String),
    /// A certificate and a key that do not go together, or an algorithm that is not supported.
    #[error("certificate or key: {0}")]
    Rustls(#[from] rustls::Error),
}

/// Whose certificates a client trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Roots {
    /// Those in this PEM file and no others.
    File(PathBuf),
    /// Those of the operating system.
    Platform,
}

/// A certificate chain with its key.
pub struct Identity {
    /// The end entity first.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its private key.
    pub key: PrivateKeyDer<'static>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("chain", &self.chain.len()).finish_non_exhaustive()
    }
}

/// The one provider of cryptography.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The client side toward a hub. Server names are always checked.
///
/// # Errors
/// When there is nothing to trust.
pub fn client(roots: &Roots) -> Result<Arc<ClientConfig>, TlsError> {
    let store = match roots {
        Roots::File(path) => file_roots(path)?,
        Roots::Platform => platform_roots()?,
    };
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(store)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// The server side of a listener; clients need no certificate.
///
/// # Errors
/// When certificate and key do not go together.
pub fn server(identity: Identity) -> Result<Arc<ServerConfig>, TlsError> {
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(identity.chain, identity.key)?;
    Ok(Arc::new(config))
}

fn file_roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let wrong = |what: String| TlsError::File { path: path.into(), what };
    let mut store = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
        store.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    if store.is_empty() {
        return Err(wrong("holds no certificate (PEM, BEGIN CERTIFICATE)".into()));
    }
    Ok(store)
}

fn platform_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut store = RootCertStore::empty();
    // Platform stores hold certificates that no library can read; the others are what counts.
    store.add_parsable_certificates(found.certs);
    if store.is_empty() {
        let why = found.errors.first().map_or_else(|| "the store is empty".into(), ToString::to_string);
        return Err(TlsError::NoPlatformRoots(why));
    }
    Ok(store)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_certificates_is_named() {
        let here = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
        let message = client(&Roots::File(here)).unwrap_err().to_string();
        assert!(message.contains("Cargo.toml: holds no certificate"), "{message}");
        let message = client(&Roots::File("/nowhere/ca.pem".into())).unwrap_err().to_string();
        assert!(message.starts_with("/nowhere/ca.pem: "), "{message}");
    }
}
