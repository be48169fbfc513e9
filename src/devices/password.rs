//! Passwords, as they are kept: a hash, from which the password cannot be had.
//!
//! Two kinds stand in the registry, both in the PHC string format. A password that a person chose is hashed with
//! Argon2id (RFC 9106), which is slow on purpose. One that the gateway made has 160 random bits: there is nothing to
//! guess, so one SHA-256 keeps it as well, and ten thousand devices that come back at once cost milliseconds.

use std::fmt;

use argon2::password_hash::phc;
use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use ring::digest::{self, SHA256};
use ring::rand::{SecureRandom, SystemRandom};
use subtle::ConstantTimeEq as _;

/// What Argon2id costs where the gateway makes the hash: 7 MiB for some 15 ms. One of the settings that OWASP gives as
/// equally strong; the one with the least memory, for gateways are small.
const MEMORY_KIB: u32 = 7 * 1024;
const PASSES: u32 = 5;
const LANES: u32 = 1;
/// The most that a hash from elsewhere may ask for.
const MAX_MEMORY_KIB: u32 = 64 * 1024;
const MAX_PASSES: u32 = 16;
const MAX_LANES: u32 = 4;
/// The longest hash that is read, in bytes. Real ones stay below 200.
const MAX_HASH_BYTES: usize = 512;
/// The longest password that is looked at, in bytes.
pub(crate) const MAX_PASSWORD_BYTES: usize = 1024;

const SALT_BYTES: usize = 16;
const GENERATED_BYTES: usize = 20;
const FAST: &str = "$sha256$";

/// The hash of a password.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct PasswordHash(Box<str>);

/// The system gives no random bytes.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the system gives no random bytes")]
pub(crate) struct NoRandomness;

impl PasswordHash {
    /// Reads a hash, and refuses one that cannot be verified here.
    ///
    /// # Errors
    /// What would be right. The hash is not repeated.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        const WRONG: &str =
            "a password stands here as its hash, which `fieldgate device rotate ID --password` makes";
        if text.len() > MAX_HASH_BYTES {
            return Err(WRONG);
        }
        if text.starts_with(FAST) {
            return fast_parts(text).map(|_| Self(text.into())).ok_or(WRONG);
        }
        let hash = phc::PasswordHash::new(text).map_err(|_| WRONG)?;
        if Algorithm::try_from(hash.algorithm.as_str()) != Ok(Algorithm::Argon2id)
            || hash.salt.is_none()
            || hash.hash.is_none()
        {
            return Err(WRONG);
        }
        let params = Params::try_from(&hash).map_err(|_| WRONG)?;
        if params.m_cost() > MAX_MEMORY_KIB || params.t_cost() > MAX_PASSES || params.p_cost() > MAX_LANES {
            return Err("the hash asks for more than 64 MiB, 16 passes or 4 lanes each time it is verified");
        }
        Ok(Self(text.into()))
    }

    /// The hash of a password that a person chose.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub(crate) fn of_chosen(password: &[u8]) -> Result<Self, NoRandomness> {
        let mut salt = [0; SALT_BYTES];
        SystemRandom::new().fill(&mut salt).map_err(|_| NoRandomness)?;
        let params = Params::new(MEMORY_KIB, PASSES, LANES, None).expect("the constants are in range");
        let mut hash = [0; 32];
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(password, &salt, &mut hash)
            .expect("salt and output have lengths that Argon2 takes");
        let (salt, hash) = (STANDARD_NO_PAD.encode(salt), STANDARD_NO_PAD.encode(hash));
        Ok(Self(format!("$argon2id$v=19$m={MEMORY_KIB},t={PASSES},p={LANES}${salt}${hash}").into_boxed_str()))
    }

    /// A new password with its hash.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub(crate) fn generate() -> Result<(String, Self), NoRandomness> {
        let (mut bytes, mut salt) = ([0; GENERATED_BYTES], [0; SALT_BYTES]);
        let random = SystemRandom::new();
        random.fill(&mut bytes).and_then(|()| random.fill(&mut salt)).map_err(|_| NoRandomness)?;
        let password = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
        let hash = fast(&salt, password.as_bytes());
        let text = format!("{FAST}{}${}", STANDARD_NO_PAD.encode(salt), STANDARD_NO_PAD.encode(hash));
        Ok((password, Self(text.into_boxed_str())))
    }

    /// The text that stands in the file.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether verifying takes so long that others must not wait for it.
    pub(crate) fn is_slow(&self) -> bool {
        !self.0.starts_with(FAST)
    }

    /// Whether this is the password. Takes the time that [`is_slow`](Self::is_slow) tells of.
    pub(crate) fn verify(&self, password: &[u8]) -> bool {
        if password.len() > MAX_PASSWORD_BYTES {
            return false;
        }
        match fast_parts(&self.0) {
            Some((salt, hash)) => fast(&salt, password).as_ref().ct_eq(&hash).into(),
            None => self.verify_slow(password).unwrap_or(false),
        }
    }

    fn verify_slow(&self, password: &[u8]) -> Option<bool> {
        let hash = phc::PasswordHash::new(&self.0).ok()?;
        let params = Params::try_from(&hash).ok()?;
        let version = hash.version.map(Version::try_from).transpose().ok()?.unwrap_or_default();
        let (salt, right) = (hash.salt?, hash.hash?);
        let mut found = vec![0; right.as_ref().len()];
        Argon2::new(Algorithm::Argon2id, version, params)
            .hash_password_into(password, salt.as_ref(), &mut found)
            .ok()?;
        Some(found.ct_eq(right.as_ref()).into())
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(…)")
    }
}

fn fast(salt: &[u8], password: &[u8]) -> digest::Digest {
    let mut context = digest::Context::new(&SHA256);
    context.update(salt);
    context.update(password);
    context.finish()
}

fn fast_parts(text: &str) -> Option<([u8; SALT_BYTES], [u8; 32])> {
    let (salt, hash) = text.strip_prefix(FAST)?.split_once('$')?;
    let decode = |text: &str| STANDARD_NO_PAD.decode(text).ok();
    Some((decode(salt)?.try_into().ok()?, decode(hash)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chosen_password_is_hashed_slowly_and_verifies() {
        let hash = PasswordHash::of_chosen(b"open sesame").unwrap();
        assert!(hash.is_slow() && hash.as_str().starts_with("$argon2id$v=19$m=7168,t=5,p=1$"));
        assert_eq!(PasswordHash::parse(hash.as_str()).as_ref(), Ok(&hash));
        assert!(hash.verify(b"open sesame"));
        for wrong in [&b""[..], b"open sesamE", b"open sesame ", &[b'x'; MAX_PASSWORD_BYTES + 1]] {
            assert!(!hash.verify(wrong));
        }
        assert_ne!(PasswordHash::of_chosen(b"open sesame").unwrap(), hash, "a salt of its own for each");
        assert!(!format!("{hash:?}").contains("argon2"));
    }

    #[test]
    fn a_generated_password_is_hashed_fast() {
        let (password, hash) = PasswordHash::generate().unwrap();
        assert!(password.len() == 27 && !hash.is_slow() && !hash.as_str().contains(&password));
        assert_eq!(PasswordHash::parse(hash.as_str()).as_ref(), Ok(&hash));
        assert!(
            hash.verify(password.as_bytes()) && !hash.verify(b"") && !hash.verify(&password.as_bytes()[1..])
        );
        assert_ne!(PasswordHash::generate().unwrap().0, password);
    }

    /// Made with the reference implementation (libargon2).
    #[test]
    fn a_hash_of_another_implementation_verifies() {
        let hash = PasswordHash::parse(ELSEWHERE).unwrap();
        assert!(hash.verify(b"secret") && !hash.verify(b"Secret"));
    }

    #[test]
    fn what_cannot_be_verified_is_refused() {
        for text in [
            "",
            "secret",
            "$argon2id$",
            "$argon2i$v=19$m=4096,t=3,p=1$c2FsdHNhbHQ$Yz0Pc2Q6jVQnRe+I4EGCyQ",
            "$argon2id$v=19$m=4096,t=3,p=1$c2FsdHNhbHQ",
            "$argon2id$v=19$m=4194304,t=3,p=1$c2FsdHNhbHQ$Yz0Pc2Q6jVQnRe+I4EGCyQ",
            "$argon2id$v=19$m=4096,t=300,p=1$c2FsdHNhbHQ$Yz0Pc2Q6jVQnRe+I4EGCyQ",
            "$2b$12$abcdefghijklmnopqrstuv",
            "$sha256$c2FsdA$aGFzaA",
            "$sha256$",
        ] {
            assert!(PasswordHash::parse(text).is_err(), "{text}");
        }
        assert!(PasswordHash::parse(&format!("$argon2id$v=19$m=8,t=1,p=1${}", "A".repeat(600))).is_err());
    }

    const ELSEWHERE: &str =
        "$argon2id$v=19$m=1024,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$OHc9SRN0/XEiuUUihEOCXBYjZ7cbpwHqG3uM3/Rhr/w";
}
