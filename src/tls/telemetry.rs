//! What happens to certificates, and to devices that do not get past them.

use std::net::SocketAddr;
use std::sync::LazyLock;

use super::{AcceptError, TlsError};
use crate::telemetry::{Counter, Happening, Protocol, counter};

struct Metrics {
    handshakes_failed: Counter,
    websockets_refused: Counter,
    reloaded: Counter,
    refused: Counter,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    handshakes_failed: counter("tls_handshakes_failed", "Devices that did not get through TLS"),
    websockets_refused: counter(
        "websockets_refused",
        "Devices that asked for a WebSocket and did not get one",
    ),
    reloaded: counter(
        "certificates_reloaded",
        "Certificates, keys and CAs that were read again and are in force",
    ),
    refused: counter(
        "certificates_reload_errors",
        "Certificates, keys and CAs that changed and cannot be used; the old ones stay in force",
    ),
});

/// A device did not get as far as its protocol.
pub(crate) struct DeviceTurnedAway<'a> {
    pub(crate) protocol: Protocol,
    pub(crate) peer: SocketAddr,
    pub(crate) listener: &'a str,
    pub(crate) error: &'a AcceptError,
}

impl Happening for DeviceTurnedAway<'_> {
    fn emit(self) {
        let Self { protocol, peer, listener, error } = self;
        let protocol = protocol.name();
        match error {
            AcceptError::Tls(_) | AcceptError::TimeOut => {
                METRICS.handshakes_failed.inc();
                tracing::warn!(protocol, %peer, listener, %error, "device turned away: TLS failed");
            }
            AcceptError::WebSocket(_) => {
                METRICS.websockets_refused.inc();
                tracing::warn!(protocol, %peer, listener, %error, "device turned away");
            }
        }
    }
}

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
