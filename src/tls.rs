//! TLS as this program speaks it: 1.2 and 1.3, one provider (ring), certificates from a file, the platform or our own CA.
//!
//! TLS 1.2 stays because device libraries exist that speak nothing newer.

mod acceptor;
mod live;
mod stream;
mod telemetry;
mod websocket;
mod words;

use std::fmt;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use thiserror::Error;

use crate::config::{ClientCertificates, IdentityFiles, SslProfile, TlsVersion};

pub(crate) use acceptor::{AcceptError, Acceptor};
pub(crate) use live::{Follow, Live, follow};
pub(crate) use stream::Stream;
pub(crate) use telemetry::DeviceTurnedAway;
pub(crate) use websocket::{ConnectError as WebSocketError, WebSocket};
pub(crate) use words::{handshake_in_words, in_words};

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
    #[error(
        "this system has no trusted certificates ({0}); name a file of them with `ca_file` in [upstream], or \
             `ca_cert_file` in the [[ssl_profile]]"
    )]
    NoPlatformRoots(String),
    /// A listener without a certificate to show.
    #[error("ssl_profile `{0}` has no `cert_file` and `private_key_file`, which a listener needs")]
    NoIdentity(String),
    /// What asks devices for certificates cannot check them.
    #[error("client certificates cannot be checked with {}: {what}", path.display())]
    ClientVerifier {
        /// The file of the certificates that sign them.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
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
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots.load()?)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// The client side of a connector, as its profile says.
///
/// # Errors
/// When a file is missing or wrong, or there is nothing to trust.
pub fn connector(profile: &SslProfile) -> Result<Arc<ClientConfig>, TlsError> {
    let roots = match &profile.ca_cert_file {
        Some(file) => Roots::File(file.clone()),
        None => Roots::Platform,
    };
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&versions(profile))?
        .with_root_certificates(roots.load()?);
    let config = match &profile.identity {
        None => config.with_no_client_auth(),
        Some(files) => {
            let Identity { chain, key } = Identity::load(files)?;
            config.with_client_auth_cert(chain, key)?
        }
    };
    Ok(Arc::new(config))
}

/// The server side of the embedded hub; clients need no certificate.
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

/// The server side of a listener, as its profile says.
///
/// # Errors
/// When a file is missing or wrong.
pub fn listener(profile: &SslProfile) -> Result<Arc<ServerConfig>, TlsError> {
    let files = profile.identity.as_ref().ok_or_else(|| TlsError::NoIdentity(profile.name.to_string()))?;
    let config =
        ServerConfig::builder_with_provider(provider()).with_protocol_versions(&versions(profile))?;
    let config = match (&profile.ca_cert_file, profile.client_certificates) {
        (Some(path), asked) if asked != ClientCertificates::None => {
            let roots = Arc::new(file_roots(path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider());
            let verifier = match asked {
                ClientCertificates::Required => verifier,
                ClientCertificates::Optional | ClientCertificates::None => verifier.allow_unauthenticated(),
            };
            let wrong = |error: rustls::server::VerifierBuilderError| TlsError::ClientVerifier {
                path: path.clone(),
                what: error.to_string(),
            };
            config.with_client_cert_verifier(verifier.build().map_err(wrong)?)
        }
        _ => config.with_no_client_auth(),
    };
    let Identity { chain, key } = Identity::load(files)?;
    Ok(Arc::new(config.with_single_cert(chain, key)?))
}

fn versions(profile: &SslProfile) -> Vec<&'static SupportedProtocolVersion> {
    let version = |version: &TlsVersion| match version {
        TlsVersion::V1_2 => &rustls::version::TLS12,
        TlsVersion::V1_3 => &rustls::version::TLS13,
    };
    profile.protocols.iter().map(version).collect()
}

impl Roots {
    fn load(&self) -> Result<RootCertStore, TlsError> {
        match self {
            Self::File(path) => file_roots(path),
            Self::Platform => platform_roots(),
        }
    }
}

impl Identity {
    /// Reads a chain and its key; the key must be its user's own.
    fn load(files: &IdentityFiles) -> Result<Self, TlsError> {
        let wrong = |path: &Path, what: String| TlsError::File { path: path.into(), what };
        let chain = certificates(&files.cert_file)?;
        let path = &files.private_key_file;
        let key = PrivateKeyDer::from_pem_file(path).map_err(|error| match error {
            rustls::pki_types::pem::Error::NoItemsFound => {
                wrong(path, "holds no private key (PEM, BEGIN PRIVATE KEY, not encrypted)".into())
            }
            error => wrong(path, error.to_string()),
        })?;
        let mode =
            std::fs::metadata(path).map_err(|error| wrong(path, error.to_string()))?.permissions().mode();
        if mode & 0o007 != 0 {
            let what = format!(
                "holds a key, and every user of this machine may read it: `chmod 600 {}`",
                path.display()
            );
            return Err(wrong(path, what));
        }
        Ok(Self { chain, key })
    }
}

/// The certificates of a PEM file, at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |what: String| TlsError::File { path: path.into(), what };
    let read = CertificateDer::pem_file_iter(path).map_err(|error| wrong(error.to_string()))?;
    let certificates = read.collect::<Result<Vec<_>, _>>().map_err(|error| wrong(error.to_string()))?;
    if certificates.is_empty() {
        return Err(wrong("holds no certificate (PEM, BEGIN CERTIFICATE)".into()));
    }
    Ok(certificates)
}

fn file_roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(path)? {
        let wrong = |error: rustls::Error| TlsError::File { path: path.into(), what: error.to_string() };
        store.add(certificate).map_err(wrong)?;
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
