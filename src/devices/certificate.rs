//! Who a client certificate says its holder is.
//!
//! Not a check: TLS has verified the chain before anything here is asked. The certificate is read only as far as the
//! subject's common name, which is where IoT hubs put the device's id; one without it is known by its thumbprint.

use std::fmt::Write as _;

use ring::digest::{SHA256, digest};

use crate::tls::Stream;

use super::device::Proof;

/// `2.5.4.3`, id-at-commonName (RFC 5280 appendix A.1).
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// The longest common name that is taken (RFC 5280, ub-common-name).
const MAX_COMMON_NAME: usize = 64;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const IA5_STRING: u8 = 0x16;
/// `[0]`, the version of a TBSCertificate.
const VERSION: u8 = 0xa0;

/// What a certificate says of its holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Certificate {
    common_name: Option<Box<str>>,
    thumbprint: Box<[u8; 32]>,
}

impl Certificate {
    /// That of the peer, where it has shown one that TLS found good.
    pub(crate) fn of_peer(stream: &Stream) -> Option<Self> {
        Some(Self::new(stream.peer_certificates()?.first()?))
    }

    /// That of a certificate (DER).
    fn new(certificate: &[u8]) -> Self {
        let thumbprint = digest(&SHA256, certificate);
        let thumbprint = *thumbprint.as_ref().first_chunk().expect("a digest of SHA-256 has 32 bytes");
        Self { common_name: common_name(certificate).map(Into::into), thumbprint: Box::new(thumbprint) }
    }

    /// Who its holder is without a registry: its common name, else `sha256:` and its thumbprint.
    pub(crate) fn identity(&self) -> Box<str> {
        match &self.common_name {
            Some(name) => name.clone(),
            None => thumbprint_text(&self.thumbprint).into(),
        }
    }

    /// What it proves, the most exact first.
    pub(super) fn proofs(&self) -> impl Iterator<Item = Proof> {
        let by_name = self.common_name.clone().map(Proof::CommonName);
        std::iter::once(Proof::Thumbprint(self.thumbprint.clone())).chain(by_name)
    }
}

/// A thumbprint as the registry's file has it.
pub(super) fn thumbprint_text(thumbprint: &[u8; 32]) -> String {
    let mut text = String::from("sha256:");
    for byte in thumbprint {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// RFC 5280 4.1: `Certificate { tbs { [version] serial signature issuer validity subject … } … }`. A subject with
/// two common names has none: which one is meant cannot be known.
fn common_name(certificate: &[u8]) -> Option<&str> {
    let (mut tbs, _) = element(element(certificate, SEQUENCE)?.0, SEQUENCE)?;
    if tbs.first() == Some(&VERSION) {
        tbs = any(tbs)?.2;
    }
    for _ in ["serial", "signature", "issuer", "validity"] {
        tbs = any(tbs)?.2;
    }
    let (mut subject, _) = element(tbs, SEQUENCE)?;
    let mut found = None;
    while !subject.is_empty() {
        let (mut names, rest) = element(subject, SET)?;
        subject = rest;
        while !names.is_empty() {
            let (name, rest) = element(names, SEQUENCE)?;
            names = rest;
            let (kind, value) = element(name, OBJECT_IDENTIFIER)?;
            if kind != COMMON_NAME {
                continue;
            }
            let (tag, value, _) = any(value)?;
            if !matches!(tag, UTF8_STRING | PRINTABLE_STRING | IA5_STRING) || found.is_some() {
                return None;
            }
            let text = std::str::from_utf8(value).ok()?;
            let sound = !text.is_empty() && text.len() <= MAX_COMMON_NAME && !text.contains(char::is_control);
            found = Some(text).filter(|_| sound);
        }
    }
    found
}

/// The content of an element that must have this tag, and what follows on it.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, content, rest) = any(der)?;
    (found == tag).then_some((content, rest))
}

/// The next element: its tag, its content, and what follows on it. Tags of more than a byte do not occur here.
fn any(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, length], rest) = der.split_first_chunk()?;
    let (length, rest) = match length {
        0x00..=0x7f => (usize::from(length), rest),
        0x81 => rest.split_first().map(|(&length, rest)| (usize::from(length), rest))?,
        0x82 => {
            rest.split_first_chunk().map(|(&length, rest)| (usize::from(u16::from_be_bytes(length)), rest))?
        }
        0x83 => {
            let (&[high, middle, low], rest) = rest.split_first_chunk()?;
            (u32::from_be_bytes([0, high, middle, low]) as usize, rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    use super::*;

    fn identity(der: &[u8]) -> String {
        Certificate::new(der).identity().into()
    }

    fn certificate(names: &[(DnType, &str)]) -> Vec<u8> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = DistinguishedName::new();
        for (kind, name) in names {
            params.distinguished_name.push(kind.clone(), *name);
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn the_common_name_is_who_it_is() {
        let named = [(DnType::OrganizationName, "site 7"), (DnType::CommonName, "dev-1")];
        assert_eq!(identity(&certificate(&named)), "dev-1");
        let proofs: Vec<_> = Certificate::new(&certificate(&named)).proofs().collect();
        assert!(matches!(&proofs[..], [Proof::Thumbprint(_), Proof::CommonName(name)] if **name == *"dev-1"));
    }

    #[test]
    fn without_a_common_name_it_is_the_thumbprint() {
        for names in [&[][..], &[(DnType::OrganizationName, "site")], &[(DnType::CommonName, "a\u{7}b")]] {
            let der = certificate(names);
            let identity = identity(&der);
            assert!(identity.starts_with("sha256:") && identity.len() == 7 + 64, "{identity}");
        }
        assert_eq!(identity(b"abc").split_at(15).0, "sha256:ba7816bf");
    }

    #[test]
    fn what_is_cut_short_is_no_name() {
        let der = certificate(&[(DnType::CommonName, "dev-1")]);
        for length in 0..der.len() {
            assert_ne!(identity(&der[..length]), "dev-1", "{length}");
        }
    }
}
