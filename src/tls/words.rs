//! Why TLS with a hub failed, in words that say what to do about it.
//!
//! In TLS 1.3 a client has finished its handshake before the server has looked at its certificate: what the server says
//! to that comes later, as the loss of a connection.

use std::io;

use rustls::{AlertDescription, CertificateError, Error};

/// Why the handshake with a server failed.
pub(crate) fn handshake_in_words(error: &io::Error) -> String {
    if error.get_ref().is_none_or(|inner| !inner.is::<Error>())
        && error.kind() == io::ErrorKind::UnexpectedEof
    {
        return "it closed the connection in the middle of the handshake; is the port right, and does it ask for a \
                client certificate (`cert_file`)?"
            .into();
    }
    in_words(error)
}

/// Why a connection to a server was lost.
pub(crate) fn in_words(error: &io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref()) {
        Some(Error::InvalidCertificate(wrong)) => of_its_certificate(wrong),
        Some(Error::AlertReceived(alert)) => of_our_side(*alert),
        Some(Error::InvalidMessage(_)) => "what answers there does not speak TLS; is the port right?".into(),
        Some(Error::PeerIncompatible(why)) => {
            format!("it speaks no version of TLS that is spoken here, 1.2 or 1.3 ({why:?})")
        }
        Some(error) => error.to_string(),
        None => error.to_string(),
    }
}

fn of_its_certificate(wrong: &CertificateError) -> String {
    match wrong {
        // A CA of the same name with another key looks like a signature that is wrong.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => "its certificate is signed by nobody who is trusted here; if it is the right \
             server, name the certificate of the CA that signs it with `ca_file` in [upstream], or `ca_cert_file` in \
             the [[ssl_profile]]"
            .into(),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired; the server needs a new one, unless this machine's clock is wrong".into()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet; is this machine's clock right?".into()
        }
        CertificateError::NotValidForNameContext { expected, presented } => format!(
            "its certificate is for {} and not for {}; connect by a name that it carries, or have it carry this one",
            names(presented),
            expected.to_str(),
        ),
        CertificateError::NotValidForName => {
            "its certificate is for another name; connect by a name that it carries, or have it carry this one".into()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "its certificate is not for a server (extended key usage); the server needs another one".into()
        }
        other => format!("its certificate cannot be trusted: {other}"),
    }
}

/// The names of a certificate, as rustls writes them: `DnsName("hub.example")`.
fn names(presented: &[String]) -> String {
    if presented.is_empty() {
        return "no name at all (subjectAltName)".into();
    }
    let bare = |name: &String| match name.split_once('(').zip(name.rsplit_once(')')) {
        Some(((_, name), _)) => name.trim_end_matches(')').trim_matches('"').to_owned(),
        None => name.clone(),
    };
    presented.iter().map(bare).collect::<Vec<_>>().join(", ")
}

/// The server has judged us.
fn of_our_side(alert: AlertDescription) -> String {
    match alert {
        AlertDescription::CertificateRequired => "it asks for a client certificate, and there is none: `cert_file` and \
             `private_key_file`, in [upstream] or in the [[ssl_profile]]"
            .into(),
        AlertDescription::UnknownCA
        | AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::CertificateExpired
        | AlertDescription::CertificateRevoked
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::AccessDenied => {
            format!("it refuses our client certificate ({alert:?}): `cert_file` names one that its CA has not signed, or that is over")
        }
        AlertDescription::UnrecognisedName => "it knows no host of that name; is `host` right?".into(),
        AlertDescription::HandshakeFailure => {
            "it refuses the handshake: no TLS version or cipher in common, or no client certificate (`cert_file`)".into()
        }
        AlertDescription::ProtocolVersion => "it speaks none of the TLS versions that are allowed here (`protocols`)".into(),
        other => format!("it ended the handshake: {other:?}"),
    }
}
