//! What is known of one device.

use std::fmt;
use std::hash::BuildHasher;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use fieldgate_mappings::DeviceId;

use crate::sas::SharedKey;

use super::certificate::thumbprint_text;
use super::password::PasswordHash;

/// A device that is registered. About 300 bytes with a key, a hub and two attributes.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    /// Its identity, as its hub knows it.
    pub(crate) id: DeviceId,
    /// Not enabled: known, and not let in.
    pub(crate) enabled: bool,
    /// Each of these is enough.
    pub(crate) proofs: Box<[Proof]>,
    /// The connector to its hub; absent: whatever it would be without an entry.
    pub(crate) hub: Option<Arc<str>>,
    /// What the gateway shows the hub for it.
    pub(crate) speaks_with: SpeaksWith,
    /// Names and values for mapping files, in the order of the names.
    pub(crate) attributes: Box<[(Arc<str>, Arc<str>)]>,
    /// As a gateway: the groups that it is in.
    pub(crate) groups: Box<[Arc<str>]>,
    /// The groups whose members may act for it.
    pub(crate) via: Box<[Arc<str>]>,
    /// The line of its entry, from 1.
    pub(crate) line: u32,
}

/// How a device proves that it is the one it says it is.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum Proof {
    /// It signs tokens with this key.
    SasKey(SharedKey),
    /// It knows a password.
    Password(PasswordHash),
    /// It holds the key of a certificate with this common name, which TLS has found good.
    CommonName(Box<str>),
    /// It holds the key of the certificate with this SHA-256 thumbprint, which TLS has found good.
    Thumbprint(Box<[u8; 32]>),
    /// A key that both sides have, for DTLS; not used yet.
    Psk(Box<[u8]>),
    /// Nothing: its word is believed on loopback, and where the listener's configuration says so.
    Nothing,
}

/// What the gateway shows the hub for a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum SpeaksWith {
    /// The token that the device brought, as it is.
    OwnToken,
    /// A token that the gateway signs with the device's own key.
    DeviceKey(SharedKey),
    /// What the connector to the hub has: a policy's key, mostly.
    #[default]
    Policy,
}

/// Tells one proof from another in memory, without being the secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark(u64);

impl Proof {
    /// The word for it in lists and logs.
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::SasKey(_) => "sas-key",
            Self::Password(_) => "password",
            Self::CommonName(_) => "certificate-name",
            Self::Thumbprint(_) => "certificate-thumbprint",
            Self::Psk(_) => "psk",
            Self::Nothing => "none",
        }
    }

    /// The key of its list in the file.
    pub(crate) const fn key(&self) -> Option<&'static str> {
        match self {
            Self::SasKey(_) => Some("sas_keys"),
            Self::Password(_) => Some("passwords"),
            Self::CommonName(_) | Self::Thumbprint(_) => Some("certificates"),
            Self::Psk(_) => Some("psk"),
            Self::Nothing => None,
        }
    }

    /// What stands for it in the file: a secret, mostly.
    pub(crate) fn written(&self) -> String {
        match self {
            Self::SasKey(key) => key.to_base64(),
            Self::Password(hash) => hash.as_str().to_owned(),
            Self::CommonName(name) => format!("CN={name}"),
            Self::Thumbprint(thumbprint) => thumbprint_text(thumbprint),
            Self::Psk(key) => BASE64.encode(key),
            Self::Nothing => String::new(),
        }
    }

    /// The proof's mark; `secret` is the process's.
    pub(crate) fn mark(&self, secret: &impl BuildHasher) -> Mark {
        Mark(secret.hash_one(self))
    }
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommonName(name) => write!(f, "CommonName({name})"),
            other => f.write_str(other.kind()),
        }
    }
}

impl SpeaksWith {
    /// The word for it in the file.
    pub(crate) const fn word(&self) -> &'static str {
        match self {
            Self::OwnToken => "own-token",
            Self::DeviceKey(_) => "device-key",
            Self::Policy => "policy",
        }
    }
}

impl Device {
    /// The value of an attribute.
    #[cfg(test)]
    pub(crate) fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(known, _)| **known == *name).map(|(_, value)| &**value)
    }

    /// Whether `gateway` may act for this device as one of this group: both are enabled, and know the group.
    pub(crate) fn lets_act(&self, gateway: &Device, group: &str) -> bool {
        let knows = |groups: &[Arc<str>]| groups.iter().any(|its| **its == *group);
        self.enabled && gateway.enabled && knows(&self.via) && knows(&gateway.groups)
    }

    /// Whether it need not prove anything where that is allowed.
    pub(crate) fn needs_no_proof(&self) -> bool {
        self.proofs.contains(&Proof::Nothing)
    }
}
