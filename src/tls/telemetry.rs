//! What happens to certificates.

use std::sync::LazyLock;

use super::TlsError;
use crate::telemetry::{Counter, Happening, counter};

struct Metrics {
    reloaded: Counter,
    refused: Counter,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    reloaded: counter(
        "certificates_reloaded",
        "Certificates, keys and CAs that were read again and are in force",
    ),
    refused: counter(
        "certificates_reload_errors",
        "Certificates, keys and CAs that changed and cannot be used; the old ones stay in force",
    ),
});

/// Changed files are in force.
pub(super) struct CertificatesReloaded<'a> {
    pub(super) place: &'a str,
}

impl Happening for CertificatesReloaded<'_> {
    fn emit(self) {
        METRICS.reloaded.inc();
        tracing::info!(place = self.place, "certificates were read again; new connections use them");
    }
}

/// Changed files cannot be used.
pub(super) struct CertificatesReloadError<'a> {
    pub(super) place: &'a str,
    pub(super) error: &'a TlsError,
}

impl Happening for CertificatesReloadError<'_> {
    fn emit(self) {
        let Self { place, error } = self;
        METRICS.refused.inc();
        tracing::error!(place, %error, "changed certificates cannot be used; the old ones stay in force");
    }
}
