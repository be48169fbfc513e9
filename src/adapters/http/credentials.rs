//! What a request's Authorization field says about the device, where the path alone would do.
//!
//! Nothing is verified: the gateway has no key yet. But a token that is certainly not good for this request (for
//! another device, expired, or no token at all) is refused, so that the mistake shows here and not on the way to
//! production. Other schemes are passed over.

use fieldgate_mappings::address::DeviceId;
use fieldgate_mappings::outcome::{Reason, Rejection};
use http::HeaderMap;
use http::header::AUTHORIZATION;

use crate::sas::Token;

/// The scheme of shared access signatures.
const SCHEME: &str = "SharedAccessSignature";

/// Whose token it is: a device's, or nobody's in particular.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Claim {
    device: Option<String>,
}

impl Claim {
    /// Reads the field; `now_unix` in seconds since 1970.
    ///
    /// # Errors
    /// A shared access signature that is malformed or expired, or more than one field. The token is not repeated.
    pub(super) fn read(headers: &HeaderMap, now_unix: u64) -> Result<Self, Rejection> {
        let wrong = |what: String| Rejection::new(Reason::Credentials, what);
        let mut fields = headers.get_all(AUTHORIZATION).iter();
        let Some(field) = fields.next() else { return Ok(Self { device: None }) };
        if fields.next().is_some() {
            return Err(wrong("there is more than one Authorization field".into()));
        }
        // What is not ASCII is of no scheme that is known.
        let text = field.to_str().unwrap_or_default();
        let scheme = text.split(' ').next().unwrap_or_default();
        if !scheme.eq_ignore_ascii_case(SCHEME) {
            return Ok(Self { device: None });
        }
        let token = Token::parse(text).map_err(|error| wrong(error.to_string()))?;
        if token.expiry() <= now_unix {
            return Err(wrong("the token expired".into()));
        }
        Ok(Self { device: token.resource().device().map(str::to_owned) })
    }

    /// Checks that a token for a device is for this one.
    ///
    /// # Errors
    /// When it is for another one.
    pub(super) fn agrees_with(&self, device: &DeviceId) -> Result<(), Rejection> {
        match &self.device {
            Some(claimed) if claimed != device.as_str() => {
                Err(Rejection::new(Reason::Credentials, "the token is for another device"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;
    use crate::sas::{SharedKey, Signer};

    const NOW: u64 = 1_900_000_000;

    fn token(resource: &str, expiry: u64) -> String {
        Signer::new(None, SharedKey::from_bytes(b"key").unwrap()).token(resource, expiry)
    }

    fn read(field: &str) -> Result<Claim, Rejection> {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_str(field).unwrap());
        Claim::read(&headers, NOW)
    }

    fn device(id: &str) -> DeviceId {
        DeviceId::new(id).unwrap()
    }

    #[test]
    fn a_device_token_is_for_its_device_only() {
        let claim = read(&token("hub/devices/d1", NOW + 1)).unwrap();
        assert_eq!(claim.agrees_with(&device("d1")), Ok(()));
        for other in ["d2", "D1", "d11"] {
            assert_eq!(claim.agrees_with(&device(other)).unwrap_err().reason, Reason::Credentials, "{other}");
        }
    }

    #[test]
    fn what_names_no_device_says_nothing_about_one() {
        let policy = token("hub", NOW + 1);
        for field in [policy.as_str(), "Basic ZDE6c2VjcmV0", "Bearer x", ""] {
            assert_eq!(read(field).unwrap().agrees_with(&device("d1")), Ok(()), "{field}");
        }
        assert_eq!(Claim::read(&HeaderMap::new(), NOW), Ok(Claim { device: None }));
    }

    #[test]
    fn a_token_that_cannot_be_good_is_refused_without_repeating_it() {
        let twice = token("hub/devices/d1", NOW + 1).replace("&se", "&sr=x&se");
        let lower = token("hub/devices/d1", NOW + 1).to_lowercase();
        for field in [
            &token("hub/devices/d1", NOW),
            "SharedAccessSignature sr=hub",
            "SharedAccessSignature",
            &twice,
            &lower,
        ] {
            let refused = read(field).unwrap_err();
            assert_eq!(refused.reason, Reason::Credentials, "{field}");
            assert!(!refused.description.contains("hub"), "{}", refused.description);
        }
        let mut headers = HeaderMap::new();
        headers.append(AUTHORIZATION, HeaderValue::from_static("Basic a"));
        headers.append(AUTHORIZATION, HeaderValue::from_static("Basic b"));
        assert_eq!(Claim::read(&headers, NOW).unwrap_err().reason, Reason::Credentials);
    }
}
