//! What a request's Authorization field says about the device, and shows for it.
//!
//! Who is let in the gate decides ([`crate::devices`]). But a token that is certainly not good for this request (for
//! another device, expired, or no token at all) is refused here, also where the path alone would do, so that the
//! mistake shows now and not on the way to production. Schemes that are not known are passed over.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use fieldgate_mappings::address::DeviceId;
use fieldgate_mappings::outcome::{Reason, Rejection};
use http::HeaderMap;
use http::header::AUTHORIZATION;

use crate::devices::Shown;
use crate::sas::Token;

/// The scheme of shared access signatures.
const SAS: &str = "SharedAccessSignature";
/// The scheme of user name and password (RFC 7617).
const BASIC: &str = "Basic";

/// Whose credentials they are, and the credentials.
#[derive(PartialEq, Eq)]
pub(super) enum Claim {
    /// Nobody's in particular.
    Nobody,
    /// A token, for a device or for none in particular.
    Token { device: Option<String>, text: String },
    /// A user name, which is the device's id, and a password.
    Basic { user: String, password: String },
}

impl Claim {
    /// Reads the field; `now_unix` in seconds since 1970.
    ///
    /// # Errors
    /// A shared access signature that is malformed or expired, Basic credentials that are none, or more than one
    /// field. Nothing of it is repeated.
    pub(super) fn read(headers: &HeaderMap, now_unix: u64) -> Result<Self, Rejection> {
        let wrong = |what: String| Rejection::new(Reason::Credentials, what);
        let mut fields = headers.get_all(AUTHORIZATION).iter();
        let Some(field) = fields.next() else { return Ok(Self::Nobody) };
        if fields.next().is_some() {
            return Err(wrong("there is more than one Authorization field".into()));
        }
        // What is not ASCII is of no scheme that is known.
        let text = field.to_str().unwrap_or_default();
        let (scheme, rest) = text.split_once(' ').unwrap_or((text, ""));
        if scheme.eq_ignore_ascii_case(BASIC) {
            let basic =
                basic(rest).ok_or_else(|| wrong("the Basic credentials are no user and password".into()));
            return basic.map(|(user, password)| Self::Basic { user, password });
        }
        if !scheme.eq_ignore_ascii_case(SAS) {
            return Ok(Self::Nobody);
        }
        let token = Token::parse(text).map_err(|error| wrong(error.to_string()))?;
        if token.expiry() <= now_unix {
            return Err(wrong("the token expired".into()));
        }
        Ok(Self::Token { device: token.resource().device().map(str::to_owned), text: text.to_owned() })
    }

    /// The device that they are for, as it stands there.
    pub(super) fn device(&self) -> Option<&str> {
        match self {
            Self::Nobody => None,
            Self::Token { device, .. } => device.as_deref(),
            Self::Basic { user, .. } => Some(user),
        }
    }

    /// What they show.
    pub(super) fn shown(&self) -> Shown<'_> {
        match self {
            Self::Nobody => Shown::Nothing,
            Self::Token { text, .. } => Shown::Password(text.as_bytes()),
            Self::Basic { password, .. } => Shown::Password(password.as_bytes()),
        }
    }

    /// Checks that a token for a device is for this one.
    ///
    /// # Errors
    /// When it is for another one.
    pub(super) fn agrees_with(&self, device: &DeviceId) -> Result<(), Rejection> {
        match self {
            Self::Token { device: Some(claimed), .. } if claimed != device.as_str() => {
                Err(Rejection::new(Reason::Credentials, "the token is for another device"))
            }
            _ => Ok(()),
        }
    }
}

/// RFC 7617 2: the user name ends at the first colon.
fn basic(credentials: &str) -> Option<(String, String)> {
    let text = String::from_utf8(BASE64.decode(credentials.trim()).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
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
        assert!(matches!(Claim::read(&HeaderMap::new(), NOW), Ok(Claim::Nobody)));
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
            let Err(refused) = read(field) else { panic!("{field}") };
            assert_eq!(refused.reason, Reason::Credentials, "{field}");
            assert!(!refused.description.contains("hub"), "{}", refused.description);
        }
        let mut headers = HeaderMap::new();
        headers.append(AUTHORIZATION, HeaderValue::from_static("Basic a"));
        headers.append(AUTHORIZATION, HeaderValue::from_static("Basic b"));
        assert!(
            matches!(Claim::read(&headers, NOW), Err(rejection) if rejection.reason == Reason::Credentials)
        );
    }

    #[test]
    fn a_user_and_a_password_are_read() {
        let claim = read(&format!("basic {}", BASE64.encode("d1:pass:word"))).unwrap();
        assert!(matches!(&claim, Claim::Basic { user, password } if user == "d1" && password == "pass:word"));
        assert_eq!(claim.device(), Some("d1"));
        for wrong in ["Basic", "Basic !", &format!("Basic {}", BASE64.encode("d1")), "Basic /w=="] {
            assert!(
                matches!(read(wrong), Err(rejection) if rejection.reason == Reason::Credentials),
                "{wrong}"
            );
        }
    }
}
