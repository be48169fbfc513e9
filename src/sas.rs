//! Shared access signatures: the tokens by which devices, services and gateways prove who they are.
//!
//! A token is text: `SharedAccessSignature sr=<resource>&sig=<signature>&se=<expiry>[&skn=<policy>]`, its
//! parameters in any order. The signature is HMAC-SHA256 over the resource *as it stands in the token*,
//! percent-encoding and all, a newline, and the expiry; some clients write `%2F` and some `%2f`, so nothing
//! is ever decoded and encoded again before it is verified.
//!
//! This module knows keys, tokens and what a token's resource covers. It does not know which keys are valid
//! ([`crate::hub`] does, for the embedded hub) and it does not ask the time.

mod connection_string;
pub(crate) mod percent;
mod resource;

pub use connection_string::{ConnectionString, ConnectionStringError};
pub use percent::{decode as percent_decode, encode as percent_encode};
pub use resource::Resource;
pub(crate) use resource::narrowed;

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::hmac;
use thiserror::Error;

/// The longest token that is looked at, in bytes. Real ones stay below 512.
pub const MAX_TOKEN_BYTES: usize = 4096;

const WORD: &str = "SharedAccessSignature ";
const SIGNATURE_BYTES: usize = 32;

/// A symmetric key that signs tokens. Its `Debug` shows nothing of it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SharedKey(Box<[u8]>);

impl SharedKey {
    /// The key that `text` holds as base64, the form in which connection strings carry it.
    ///
    /// # Errors
    /// [`KeyError`] when `text` is not base64 or holds no byte at all.
    pub fn from_base64(text: &str) -> Result<Self, KeyError> {
        match BASE64.decode(text.trim()) {
            Ok(bytes) if !bytes.is_empty() => Ok(Self(bytes.into())),
            _ => Err(KeyError),
        }
    }

    /// A key of these bytes.
    ///
    /// # Errors
    /// [`KeyError`] when there are none.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyError> {
        if bytes.is_empty() { Err(KeyError) } else { Ok(Self(bytes.into())) }
    }

    /// The key as base64. It is the secret itself: print it only where somebody asked for it.
    #[must_use]
    pub fn to_base64(&self) -> String {
        BASE64.encode(&self.0)
    }

    /// The key for `label` that follows from this one; whoever has it learns nothing of this one.
    #[must_use]
    pub fn derive(&self, label: &str) -> Self {
        Self(hmac::sign(&self.hmac(), label.as_bytes()).as_ref().into())
    }

    /// The key as Event Hubs' clients use it: the bytes of its base64 text, which they do not decode.
    #[must_use]
    pub fn undecoded(&self) -> Self {
        Self(self.to_base64().into_bytes().into())
    }

    fn hmac(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.0)
    }
}

impl fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedKey(redacted)")
    }
}

/// A shared key that is no base64, or empty. The text itself is not repeated: it may be most of a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a shared access key is base64 text, as the hub shows it")]
pub struct KeyError;

/// Why a token is not good. None of these repeats the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TokenError {
    /// The text does not have the form of a token; what is wrong with it.
    #[error("the text is not a shared access signature: {0}")]
    Malformed(&'static str),
    /// Its time is over.
    #[error("the token expired")]
    Expired,
    /// It was not signed with this key.
    #[error("the signature does not match the key")]
    Signature,
}

/// A token that has been read, not yet verified.
#[derive(Clone)]
pub struct Token<'a> {
    signed_resource: &'a str,
    signed_expiry: &'a str,
    resource: Resource,
    signature: [u8; SIGNATURE_BYTES],
    expiry: u64,
    key_name: Option<String>,
}

impl<'a> Token<'a> {
    /// Reads a token: everything about its form, nothing about its truth.
    ///
    /// # Errors
    /// [`TokenError::Malformed`], saying which part is missing, double or unreadable.
    pub fn parse(text: &'a str) -> Result<Self, TokenError> {
        if text.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Malformed("it is longer than 4096 bytes"));
        }
        let parameters = text
            .strip_prefix(WORD)
            .ok_or(TokenError::Malformed("it does not begin with SharedAccessSignature"))?;
        let (mut resource, mut signature, mut expiry, mut key_name) = (None, None, None, None);
        for parameter in parameters.split('&') {
            let (name, value) =
                parameter.split_once('=').ok_or(TokenError::Malformed("a parameter has no equals sign"))?;
            let slot = match name {
                "sr" => &mut resource,
                "sig" => &mut signature,
                "se" => &mut expiry,
                "skn" => &mut key_name,
                // Unsigned words that mean nothing here can change nothing either.
                _ => continue,
            };
            if slot.replace(value).is_some() {
                return Err(TokenError::Malformed("a parameter stands there twice"));
            }
        }
        let signed_resource = resource.ok_or(TokenError::Malformed("sr is missing"))?;
        let signed_expiry = expiry.ok_or(TokenError::Malformed("se is missing"))?;
        let signature = signature.ok_or(TokenError::Malformed("sig is missing"))?;
        if signed_expiry.is_empty() || !signed_expiry.bytes().all(|b| b.is_ascii_digit()) {
            return Err(TokenError::Malformed("se is not a number of seconds"));
        }
        Ok(Self {
            signed_resource,
            signed_expiry,
            resource: Resource::parse(signed_resource)
                .ok_or(TokenError::Malformed("sr names no resource"))?,
            signature: decode_signature(signature)
                .ok_or(TokenError::Malformed("sig is not the base64 of 32 bytes"))?,
            // The one way left to fail is a number beyond 64 bits, which is as far away as any.
            expiry: signed_expiry.parse().unwrap_or(u64::MAX),
            // An empty policy name is what some clients write for "no policy".
            key_name: match key_name {
                None | Some("") => None,
                Some(name) => {
                    Some(percent_decode(name).ok_or(TokenError::Malformed("skn is badly percent-encoded"))?)
                }
            },
        })
    }

    /// Whether the token was signed with one of `keys` and its time is not over at `now_unix` (seconds).
    ///
    /// # Errors
    /// [`TokenError::Signature`] before [`TokenError::Expired`]: a stranger learns nothing of expiries.
    pub fn verify(&self, keys: &[&SharedKey], now_unix: u64) -> Result<(), TokenError> {
        let text = signed_text(self.signed_resource, self.signed_expiry);
        // Constant time for each key; which of a policy's two keys it was is no secret.
        if !keys.iter().any(|key| hmac::verify(&key.hmac(), text.as_bytes(), &self.signature).is_ok()) {
            return Err(TokenError::Signature);
        }
        if self.expiry <= now_unix { Err(TokenError::Expired) } else { Ok(()) }
    }

    /// What the token is for: everything at and below this resource.
    #[must_use]
    pub fn resource(&self) -> &Resource {
        &self.resource
    }

    /// The moment after which the token is worth nothing, in seconds since 1970.
    #[must_use]
    pub fn expiry(&self) -> u64 {
        self.expiry
    }

    /// The policy whose key signed it; `None` is a device's own key.
    #[must_use]
    pub fn key_name(&self) -> Option<&str> {
        self.key_name.as_deref()
    }
}

impl fmt::Debug for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("resource", &self.resource)
            .field("expiry", &self.expiry)
            .field("key_name", &self.key_name)
            .finish_non_exhaustive()
    }
}

/// Makes tokens with one key.
#[derive(Debug, Clone)]
pub struct Signer {
    key_name: Option<String>,
    key: SharedKey,
}

impl Signer {
    /// A signer with a policy's key (`key_name` given) or with a device's own.
    #[must_use]
    pub fn new(key_name: Option<String>, key: SharedKey) -> Self {
        Self { key_name, key }
    }

    /// A token for `resource` (plain text, such as `hub.example/devices/pump-1`) that is good until
    /// `expiry_unix`, in seconds since 1970.
    #[must_use]
    pub fn token(&self, resource: &str, expiry_unix: u64) -> String {
        let resource = percent_encode(resource);
        let signature =
            hmac::sign(&self.key.hmac(), signed_text(&resource, &expiry_unix.to_string()).as_bytes());
        let signature = percent_encode(&BASE64.encode(signature));
        let mut token = format!("{WORD}sr={resource}&sig={signature}&se={expiry_unix}");
        if let Some(name) = &self.key_name {
            token.push_str("&skn=");
            token.push_str(&percent_encode(name));
        }
        token
    }
}

/// The text under the signature.
fn signed_text(resource: &str, expiry: &str) -> String {
    format!("{resource}\n{expiry}")
}

fn decode_signature(text: &str) -> Option<[u8; SIGNATURE_BYTES]> {
    BASE64.decode(percent_decode(text)?).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn key(text: &str) -> SharedKey {
        SharedKey::from_bytes(text.as_bytes()).unwrap()
    }

    #[test]
    fn what_is_signed_verifies_until_its_time_is_over() {
        let signer = Signer::new(Some("iothubowner".into()), key("secret"));
        let text = signer.token("hub.example/devices/pump-1", NOW + 60);
        let token = Token::parse(&text).unwrap();
        assert_eq!(token.key_name(), Some("iothubowner"));
        assert_eq!(token.resource().host(), "hub.example");
        assert_eq!(token.resource().path(), ["devices", "pump-1"]);
        assert_eq!(token.verify(&[&key("other"), &key("secret")], NOW), Ok(()));
        assert_eq!(token.verify(&[&key("secret")], NOW + 59), Ok(()));
        assert_eq!(token.verify(&[&key("secret")], NOW + 60), Err(TokenError::Expired));
        assert_eq!(token.verify(&[&key("other")], NOW), Err(TokenError::Signature));
        assert_eq!(token.verify(&[], NOW), Err(TokenError::Signature));
    }

    /// Made with an independent implementation (Python's hmac, base64 and urllib.parse).
    #[test]
    fn a_token_of_another_implementation_verifies_in_either_case_of_the_escapes() {
        let key = SharedKey::from_base64("c2VjcmV0LWtleS1vZi1hLWRldmljZQ==").unwrap();
        for text in [UPPER, LOWER] {
            let token = Token::parse(text).unwrap();
            assert_eq!(token.verify(&[&key], NOW), Ok(()), "{text}");
            assert_eq!(token.resource().path(), ["devices", "pump-1"]);
        }
        // The signature is over the text as it stands: the same resource in the other case is another text.
        let swapped = UPPER.replacen("%2F", "%2f", 1);
        assert_eq!(Token::parse(&swapped).unwrap().verify(&[&key], NOW), Err(TokenError::Signature));
        let ours = Signer::new(None, key.clone()).token("hub.example/devices/pump-1", 4_000_000_000);
        assert_eq!(ours, UPPER);
    }

    #[test]
    fn parameters_stand_in_any_order() {
        let signer = Signer::new(Some("service".into()), key("k"));
        let text = signer.token("hub", NOW + 1);
        let mut parameters: Vec<&str> = text.strip_prefix(WORD).unwrap().split('&').collect();
        parameters.reverse();
        parameters.push("note=ignored");
        let turned = format!("{WORD}{}", parameters.join("&"));
        assert_eq!(Token::parse(&turned).unwrap().verify(&[&key("k")], NOW), Ok(()));
    }

    #[test]
    fn every_change_of_one_byte_is_noticed() {
        let signer = Signer::new(Some("owner".into()), key("k"));
        let text = signer.token("hub/devices/d", NOW + 100);
        let signed_until = text.find("&skn=").unwrap();
        for at in 0..signed_until {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            let changed = String::from_utf8(bytes).unwrap();
            let good = Token::parse(&changed).is_ok_and(|token| token.verify(&[&key("k")], NOW).is_ok());
            // Hexadecimal digits of the signature's own escapes have two spellings and may pass; no other byte.
            let in_signature = (text.find("sig=").unwrap()..text.find("&se=").unwrap()).contains(&at);
            assert!(!good || in_signature, "byte {at} of {changed}");
        }
    }

    #[test]
    fn malformed_tokens_are_refused_with_the_reason() {
        let good = Signer::new(None, key("k")).token("hub/devices/d", NOW);
        for (text, reason) in [
            (String::new(), "begin"),
            ("SharedAccessSignature".to_owned(), "begin"),
            (format!("Bearer {good}"), "begin"),
            (good.replace("SharedAccessSignature ", "SharedAccessSignature"), "begin"),
            (format!("{good}&se=5"), "twice"),
            (format!("{good}&"), "equals"),
            (good.replace("sr=", "sx="), "sr is missing"),
            (good.replace("se=", "sx="), "se is missing"),
            (good.replace("sig=", "sx="), "sig is missing"),
            (good.replace("se=", "se=-"), "number"),
            (good.replace(&NOW.to_string(), ""), "number"),
            (good.replace("sig=", "sig=%"), "base64"),
            (good.replace("sig=", "sig=AA"), "base64"),
            (good.replace("sr=hub", "sr="), "resource"),
            (good.replace("sr=hub", "sr=%zz"), "resource"),
            (format!("{good}&skn=%f"), "skn"),
            (format!("{good}&x={}", "y".repeat(MAX_TOKEN_BYTES)), "longer"),
        ] {
            let Err(TokenError::Malformed(why)) = Token::parse(&text) else { panic!("{text} was taken") };
            assert!(why.contains(reason), "{text}: {why}");
        }
    }

    #[test]
    fn an_expiry_beyond_all_numbers_is_far_away_and_an_empty_policy_is_none() {
        let text = Signer::new(None, key("k")).token("hub", 7).replace("se=7", "se=99999999999999999999999");
        let token = Token::parse(&text).unwrap();
        assert_eq!(token.expiry(), u64::MAX);
        let text = format!("{}&skn=", Signer::new(None, key("k")).token("hub", NOW + 1));
        assert_eq!(Token::parse(&text).unwrap().key_name(), None);
    }

    #[test]
    fn derived_keys_differ_and_debug_shows_no_secret() {
        let master = key("topsecret");
        assert_ne!(master.derive("a"), master.derive("b"));
        assert_eq!(master.derive("a"), master.derive("a"));
        let signer = Signer::new(None, master.clone());
        let text = signer.token("hub", NOW);
        let shown = format!("{master:?} {signer:?} {:?}", Token::parse(&text).unwrap());
        let signature = &text[text.find("sig=").unwrap() + 4..text.find("&se").unwrap()];
        assert!(
            !shown.contains("topsecret")
                && !shown.contains(&master.to_base64())
                && !shown.contains(signature)
        );
        assert_eq!(SharedKey::from_base64("YWJj").unwrap().undecoded(), key("YWJj"));
        assert!(SharedKey::from_base64("not base64!").is_err() && SharedKey::from_base64("").is_err());
        assert!(SharedKey::from_bytes(b"").is_err());
    }

    const UPPER: &str = "SharedAccessSignature sr=hub.example%2Fdevices%2Fpump-1&sig=1PMQ2VvprC5aFudlQxMDfHUyIGvCAxefHSvcIup4%2Byw%3D&se=4000000000";
    const LOWER: &str = "SharedAccessSignature sr=hub.example%2fdevices%2fpump-1&sig=uW4AM38bHysFgndW0b6v8QuKTBHYrokQU1mn2AB18N0%3D&se=4000000000";
}
