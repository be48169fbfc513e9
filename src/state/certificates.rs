//! The own CA and the hub's server certificate, made at first start.
//!
//! The CA's private key never leaves the state directory. A server certificate is made again when a client would
//! refuse it within the next month: a name is missing, its time runs out, or it comes from another CA.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData as _,
};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

const DAY: Duration = Duration::from_secs(86_400);
const CA_LIFE: Duration = Duration::from_secs(3_652 * 86_400);
/// Short enough for clients that refuse certificates of more than 398 days.
const SERVER_LIFE: Duration = Duration::from_secs(390 * 86_400);
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 86_400);

/// A certificate with its key, both PEM.
pub(super) struct Pair {
    pub(super) certificate: String,
    pub(super) key: String,
}

/// A new CA.
pub(super) fn new_ca(now: SystemTime) -> Result<Pair, rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = ca_params(&key)?;
    params.not_before = (now - DAY).into();
    params.not_after = (now + CA_LIFE).into();
    let certificate = params.self_signed(&key)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// A server certificate for these names, signed by the CA.
pub(super) fn new_server(ca_key: &str, names: &[String], now: SystemTime) -> Result<Pair, rcgen::Error> {
    let ca_key = KeyPair::from_pem(ca_key)?;
    let issuer = Issuer::new(ca_params(&ca_key)?, ca_key);
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names)?;
    let first = names.first().map_or("localhost", String::as_str);
    // A common name holds 64 characters at most; what counts are the subject alternative names.
    params.distinguished_name.push(DnType::CommonName, first.chars().take(64).collect::<String>());
    params.not_before = (now - DAY).into();
    params.not_after = (now + SERVER_LIFE).into();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&key, &issuer)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// The same for the same key, so that the issuer can be rebuilt from the key file alone.
fn ca_params(key: &KeyPair) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    // Two CAs of two directories must not share a name: clients that trust both would try the wrong one.
    let digest = ring::digest::digest(&ring::digest::SHA256, &key.subject_public_key_info());
    let mark: String = digest.as_ref().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    params.distinguished_name.push(DnType::CommonName, format!("Fieldgate local CA {mark}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// Whether clients that trust the CA will take this certificate under every name for another month.
pub(super) fn is_good(
    ca: &CertificateDer<'_>,
    server: &CertificateDer<'_>,
    names: &[String],
    now: SystemTime,
) -> bool {
    let mut roots = RootCertStore::empty();
    if roots.add(ca.clone().into_owned()).is_err() {
        return false;
    }
    let Ok(verifier) =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), crate::tls::provider()).build()
    else {
        return false;
    };
    let Ok(then) = (now + RENEW_BEFORE).duration_since(SystemTime::UNIX_EPOCH) else { return false };
    names.iter().all(|name| {
        ServerName::try_from(name.as_str()).is_ok_and(|name| {
            verifier.verify_server_cert(server, &[], &name, &[], UnixTime::since_unix_epoch(then)).is_ok()
        })
    })
}

/// The names that a hub on this machine is called by, each once: the configured one, loopback, the host's own.
pub(super) fn names(hub_name: &str, host_name: Option<&str>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for name in ["localhost", "127.0.0.1", "::1", hub_name].into_iter().chain(host_name) {
        let name = name.trim().to_ascii_lowercase();
        // What TLS would not take as a server name could not be asked for either.
        let legal = name.parse::<IpAddr>().is_ok() || ServerName::try_from(name.as_str()).is_ok();
        if legal && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::pem::PemObject as _;

    use super::*;

    fn der(pair: &Pair) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()
    }

    #[test]
    fn a_certificate_is_good_for_its_names_until_a_month_before_its_end() {
        let now = SystemTime::now();
        let ca = new_ca(now).unwrap();
        let mut names = names("hub.example", Some("Bench-7"));
        assert_eq!(names, ["localhost", "127.0.0.1", "::1", "hub.example", "bench-7"]);
        let server = new_server(&ca.key, &names, now).unwrap();
        assert!(is_good(&der(&ca), &der(&server), &names, now));
        assert!(is_good(&der(&ca), &der(&server), &names, now + SERVER_LIFE - RENEW_BEFORE - DAY));
        assert!(!is_good(&der(&ca), &der(&server), &names, now + SERVER_LIFE - RENEW_BEFORE + DAY));
        names.push("other.example".into());
        assert!(!is_good(&der(&ca), &der(&server), &names, now));
    }

    #[test]
    fn a_certificate_of_another_ca_is_not_good() {
        let now = SystemTime::now();
        let (ca, other) = (new_ca(now).unwrap(), new_ca(now).unwrap());
        let names = names("localhost", None);
        let server = new_server(&ca.key, &names, now).unwrap();
        assert!(!is_good(&der(&other), &der(&server), &names, now));
    }

    #[test]
    fn a_host_name_that_is_no_server_name_is_left_out() {
        assert_eq!(names("localhost", Some("my host!\n")), ["localhost", "127.0.0.1", "::1"]);
        assert_eq!(names("10.0.0.7", Some("")), ["localhost", "127.0.0.1", "::1", "10.0.0.7"]);
    }
}
