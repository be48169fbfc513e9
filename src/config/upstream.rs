//! `[upstream]`: how its hub is reached and what the gateway proves itself with.

use std::path::Path;
use std::sync::Arc;

use super::access::{self, Access, Carrier, Transport, own_profile};
use super::error::{ConfigError, Source, beside};
use super::profiles::{IdentityFiles, SslProfile};
use super::sasl::{self, Sasl};
use super::sections::UpstreamSection;
use super::{Target, names, profiles};

const SECTION: &str = "upstream";

pub(super) fn access(
    source: &Source<'_>,
    section: &UpstreamSection,
    target: &Target,
    profiles: &[Arc<SslProfile>],
    base: Option<&Path>,
) -> Result<Access, ConfigError> {
    let wrong = |key: &str, what: String| source.wrong(&[SECTION, key], what);
    let written = access::Written {
        transport: section.transport,
        websocket_path: section.websocket_path.as_ref(),
        websocket_protocol: section.websocket_protocol,
        proxy: section.proxy.as_ref(),
        proxy_password_file: section.proxy_password_file.as_ref(),
    };
    let tls = tls(source, section, profiles, base)?;
    Ok(Access {
        transport: transport(&written, target, wrong)?,
        subprotocol: section.websocket_protocol.unwrap_or_default().name(),
        proxy: written.proxy(wrong, base)?,
        sasl: sasl(section, target, tls.identity.is_some(), wrong, base)?,
        tls,
    })
}

/// A profile by name, or the files that stand here.
fn tls(
    source: &Source<'_>,
    section: &UpstreamSection,
    profiles: &[Arc<SslProfile>],
    base: Option<&Path>,
) -> Result<Arc<SslProfile>, ConfigError> {
    let wrong = |key: &str, what: &str| source.wrong(&[SECTION, key], what);
    let UpstreamSection { ca_file, cert_file, private_key_file, ssl_profile, .. } = section;
    if let Some(name) = ssl_profile {
        let files = [("ca_file", ca_file), ("cert_file", cert_file), ("private_key_file", private_key_file)];
        if let Some((key, _)) = files.into_iter().find(|(_, file)| file.is_some()) {
            return Err(wrong(key, "the ssl_profile names the files already")
                .with_help(format!("keep one of `ssl_profile` and `{key}`")));
        }
        return profiles.iter().find(|profile| *profile.name == **name).cloned().ok_or_else(|| {
            let known = profiles.iter().map(|profile| &*profile.name);
            names::unknown(source, &[SECTION, "ssl_profile"], profiles::SECTION, name, known)
        });
    }
    let identity = match (cert_file, private_key_file) {
        (None, None) => None,
        (Some(cert), Some(key)) => {
            Some(IdentityFiles { cert_file: beside(base, cert), private_key_file: beside(base, key) })
        }
        (Some(_), None) => {
            return Err(wrong("cert_file", "there is a certificate and no key")
                .with_help("`private_key_file` names the key's file (PEM, not encrypted)"));
        }
        (None, Some(_)) => {
            return Err(wrong("private_key_file", "there is a key and no certificate")
                .with_help("`cert_file` names the certificate's file (PEM, with what it was signed by)"));
        }
    };
    Ok(Arc::new(own_profile(ca_file.as_ref().map(|file| beside(base, file)), identity)))
}

/// A URL says it itself.
fn transport(
    written: &access::Written<'_>,
    target: &Target,
    wrong: impl Fn(&str, String) -> ConfigError,
) -> Result<Transport, ConfigError> {
    let Target::Url(url) = target else { return written.transport(wrong) };
    let (key, help) = match (&url.websocket, written.transport, written.websocket_path) {
        (None, Some(Carrier::WebSocket), _) => ("transport", "wss://host in `url` is AMQP over WebSocket"),
        (Some(_), Some(Carrier::Tcp), _) => ("transport", "amqps://host in `url` is AMQP without WebSocket"),
        (_, _, Some(_)) => ("websocket_path", "wss://host/path in `url` names it"),
        (None, _, None) if written.websocket_protocol.is_some() => {
            ("websocket_protocol", "wss://host in `url` is AMQP over WebSocket")
        }
        _ => return Ok(Transport::Tcp),
    };
    Err(wrong(key, "this says something else than `url`".into())
        .with_help(format!("{help}; leave `{key}` out")))
}

/// A connection string brings a key, so nothing else is needed or possible; a URL may bring a user.
fn sasl(
    section: &UpstreamSection,
    target: &Target,
    certified: bool,
    wrong: impl Fn(&str, String) -> ConfigError,
    base: Option<&Path>,
) -> Result<Option<Sasl>, ConfigError> {
    let written = sasl::Written {
        mechanisms: section.sasl_mechanisms.as_deref(),
        user: section.sasl_username.as_ref(),
        password: section.sasl_password.as_ref(),
        password_file: section.sasl_password_file.as_ref(),
    };
    let by_url = match target {
        Target::Url(url) => url.credentials.as_ref(),
        Target::Embedded | Target::ConnectionString(_) => None,
    };
    if by_url.is_some() && written.user.is_some() {
        return Err(
            wrong("sasl_username", "`url` names a user already".into()).with_help("keep one of the two")
        );
    }
    let from_url = by_url.map(|(_, password)| password.clone());
    let with_url = sasl::Written {
        user: written.user.or(by_url.map(|(user, _)| user)),
        password: written.password.or(from_url.as_ref()),
        ..written
    };
    let sasl = with_url.resolve(&wrong, certified, base)?;
    match (target, &sasl) {
        (Target::Url(_), _) | (_, None | Some(Sasl::Bare | Sasl::Anonymous | Sasl::Mssbcbs)) => Ok(sasl),
        (Target::Embedded | Target::ConnectionString(_), Some(Sasl::External | Sasl::Plain { .. })) => {
            let key = if section.sasl_mechanisms.is_some() { "sasl_mechanisms" } else { "sasl_username" };
            let what = "the gateway proves itself to this hub by tokens, which the key of its connection string signs";
            Err(wrong(key, what.into())
                .with_help("\"ANONYMOUS\", \"MSSBCBS\" or \"NONE\"; another hub is named by `url`"))
        }
    }
}
