//! Who may do what: tokens are judged here, in full, and what they grant is kept for each connection.
//!
//! A token says what it is for (`sr`), who signed it (a policy's key, or without `skn` the device's own) and until
//! when. The name that is sent along with it is no proof of anything (clients write a gateway's host there); it can
//! only narrow what the token grants.

use fieldgate_mappings::DeviceId;
use thiserror::Error;

use super::address::{Node, Right};
use super::registry::device_key;
use crate::sas::{Resource, SharedKey, Token, TokenError, narrowed, percent_decode};

/// A policy of the hub: a name, a key, and what whoever has the key may do.
#[derive(Debug, Clone)]
struct Policy {
    name: &'static str,
    key: SharedKey,
    /// The same key for clients of the Event Hub-compatible endpoint.
    undecoded: SharedKey,
    device_connect: bool,
    service_connect: bool,
}

/// The policies that a hub begins with, the owner's first. The keys of the others follow from the owner's.
fn policies(owner: &SharedKey) -> [Policy; 3] {
    let policy = |name, key: SharedKey, device_connect, service_connect| {
        let undecoded = key.undecoded();
        Policy { name, key, undecoded, device_connect, service_connect }
    };
    [
        policy("iothubowner", owner.clone(), true, true),
        policy("device", policy_key(owner, "device"), true, false),
        policy("service", policy_key(owner, "service"), false, true),
    ]
}

/// The key of the policy `name` on a hub whose `iothubowner` policy has the key `owner`.
#[must_use]
pub fn policy_key(owner: &SharedKey, name: &str) -> SharedKey {
    if name == "iothubowner" { owner.clone() } else { owner.derive(&format!("policy/{name}")) }
}

/// Judges tokens.
#[derive(Debug)]
pub(crate) struct Authority {
    hosts: Vec<String>,
    owner: SharedKey,
    policies: [Policy; 3],
}

/// Why a token, or a user and password, is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum Denied {
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(#[from] TokenError),
    /// Its `sr` names another hub.
    #[error("the token is for the host {0}, which is not this hub")]
    OtherHub(String),
    /// There is no policy of this name.
    #[error("the hub has no policy of the name that the token was signed with")]
    NoPolicy,
    /// It has no policy and names no device, so it has no key.
    #[error("the token names neither a policy nor a device")]
    Nobody,
    /// The name that came with it lies elsewhere.
    #[error("the name that the token was put for lies outside what the token covers")]
    Elsewhere,
    /// A name that is no resource.
    #[error("the name that the token was put for is no resource of a hub")]
    Name,
    /// A PLAIN user name that is neither a device's nor a policy's.
    #[error("a user is DEVICE@sas.HUB or POLICY@sas.root.HUB")]
    User,
}

impl Denied {
    /// The status code of `$cbs`'s answer.
    pub(crate) fn status(&self) -> i32 {
        match self {
            Self::Unreadable(TokenError::Malformed(_)) | Self::Name => 400,
            Self::Unreadable(TokenError::Expired | TokenError::Signature)
            | Self::OtherHub(_)
            | Self::NoPolicy
            | Self::Nobody
            | Self::Elsewhere
            | Self::User => 401,
        }
    }
}

/// What a good token allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Grant {
    scope: Vec<String>,
    device_connect: bool,
    service_connect: bool,
    /// Until when, in seconds since 1970.
    pub(crate) expiry: u64,
    /// Whose key signed it.
    pub(crate) signer: Signer,
}

/// Whose key a token was signed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Signer {
    /// A policy's, by its name.
    Policy(&'static str),
    /// The device's own.
    Device(DeviceId),
}

impl Grant {
    /// Whether it is good for attaching to `node`, as far as place and kind go.
    fn allows(&self, node: &Node) -> bool {
        let right = match node.right() {
            Right::None => true,
            Right::DeviceConnect => self.device_connect,
            Right::ServiceConnect => self.service_connect,
        };
        right && node.path().starts_with(&self.scope)
    }
}

impl Authority {
    /// An authority for the hub of these host names, whose `iothubowner` policy has the key `owner`.
    pub(crate) fn new(hosts: &[String], owner: SharedKey) -> Self {
        // Through the same canonical form as the tokens' own hosts.
        let hosts = hosts.iter().map(|host| Resource::new(host, "").host().to_owned()).collect();
        Self { hosts, policies: policies(&owner), owner }
    }

    /// Judges a token that was put to `$cbs` for `name`.
    ///
    /// # Errors
    /// [`Denied`], with the status to answer.
    pub(crate) fn judge(&self, token: &str, name: &str, now_unix: u64) -> Result<Grant, Denied> {
        let token = Token::parse(token)?;
        let name = Resource::parse(name).ok_or(Denied::Name)?;
        self.judge_token(&token, name.path(), now_unix)
    }

    /// Judges a SASL PLAIN user and password: `D@sas.hub` or `policy@sas.root.hub`, and a token.
    ///
    /// # Errors
    /// [`Denied`], for the log: SASL does not tell reasons.
    pub(crate) fn judge_plain(&self, user: &str, password: &str, now_unix: u64) -> Result<Grant, Denied> {
        // An identity may hold an at sign; the hub's name may not.
        let (user, hub) = user.rsplit_once('@').ok_or(Denied::User)?;
        let token = Token::parse(password)?;
        if let Some(hub) = strip_prefix(hub, "sas.root.") {
            if !self.is_this_hub(hub) || token.key_name() != Some(user) {
                return Err(Denied::User);
            }
            return self.judge_token(&token, &[], now_unix);
        }
        let hub = strip_prefix(hub, "sas.").ok_or(Denied::User)?;
        let id = percent_decode(user).ok_or(Denied::User)?;
        let id = DeviceId::new(&id).map_err(|_| Denied::User)?;
        if !self.is_this_hub(hub) {
            return Err(Denied::User);
        }
        self.judge_token(&token, &["devices".to_owned(), id.as_str().to_owned()], now_unix)
    }

    fn judge_token(&self, token: &Token<'_>, name: &[String], now_unix: u64) -> Result<Grant, Denied> {
        let resource = token.resource();
        if !self.hosts.iter().any(|host| host == resource.host()) {
            return Err(Denied::OtherHub(resource.host().to_owned()));
        }
        let (scope, signer, policy) = match token.key_name() {
            Some(key_name) => {
                let policy =
                    self.policies.iter().find(|policy| policy.name == key_name).ok_or(Denied::NoPolicy)?;
                token.verify(&[&policy.key, &policy.undecoded], now_unix)?;
                (resource.path().to_vec(), Signer::Policy(policy.name), Some(policy))
            }
            None => {
                let (scope, device) = self.verify_as_device(token, now_unix)?;
                (scope, Signer::Device(device), None)
            }
        };
        Ok(Grant {
            scope: narrowed(scope, name).ok_or(Denied::Elsewhere)?,
            device_connect: policy.is_none_or(|policy| policy.device_connect),
            service_connect: policy.is_some_and(|policy| policy.service_connect),
            expiry: token.expiry(),
            signer,
        })
    }

    /// Verifies with the key of the device that the token names. Some clients encode an identity before they
    /// encode the resource; which reading of it is meant shows in whose key signed.
    fn verify_as_device(&self, token: &Token<'_>, now_unix: u64) -> Result<(Vec<String>, DeviceId), Denied> {
        let named = token.resource().device().ok_or(Denied::Nobody)?;
        let decoded = percent_decode(named).filter(|decoded| decoded != named);
        let mut verdict = Denied::Nobody;
        for id in [Some(named.to_owned()), decoded].into_iter().flatten() {
            let Ok(device) = DeviceId::new(&id) else { continue };
            match token.verify(&[&device_key(&self.owner, &device)], now_unix) {
                Ok(()) => {
                    let mut scope = token.resource().path().to_vec();
                    scope[1] = id;
                    return Ok((scope, device));
                }
                // That the right key signed, too long ago, says more than that another did not.
                Err(error) if verdict != Denied::Unreadable(TokenError::Expired) => verdict = error.into(),
                Err(_) => {}
            }
        }
        Err(verdict)
    }

    /// PLAIN user names carry the hub's first label, or all of its name.
    fn is_this_hub(&self, name: &str) -> bool {
        self.hosts.iter().any(|host| {
            host.eq_ignore_ascii_case(name)
                || host.split('.').next().is_some_and(|l| l.eq_ignore_ascii_case(name))
        })
    }
}

fn strip_prefix<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (head, rest) = text.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// What one connection's tokens allow, until each of them expires.
#[derive(Debug)]
pub(crate) struct Grants {
    grants: Vec<Grant>,
    max: usize,
    /// The earliest expiry, since it is asked for on every turn of the connection.
    next_expiry: Option<u64>,
}

/// The connection has as many tokens as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("this connection has as many tokens as it may have")]
pub(crate) struct TooManyTokens;

impl Grants {
    /// No grant yet; at most `max`.
    pub(crate) fn new(max: usize) -> Self {
        Self { grants: Vec::new(), max, next_expiry: None }
    }

    /// Adds a grant, in place of an earlier one of the same signer for the same scope.
    ///
    /// # Errors
    /// [`TooManyTokens`] at the bound.
    pub(crate) fn put(&mut self, grant: Grant) -> Result<(), TooManyTokens> {
        let renewed =
            self.grants.iter().position(|old| old.scope == grant.scope && old.signer == grant.signer);
        match renewed {
            Some(index) => self.grants[index] = grant,
            None if self.grants.len() >= self.max => return Err(TooManyTokens),
            None => self.grants.push(grant),
        }
        self.note_next_expiry();
        Ok(())
    }

    /// The grant by which a link may be at `node`; the one that lasts longest.
    pub(crate) fn find(&self, node: &Node, now_unix: u64) -> Option<&Grant> {
        self.grants
            .iter()
            .filter(|grant| grant.expiry > now_unix && grant.allows(node))
            .max_by_key(|grant| grant.expiry)
    }

    /// The next moment at which a token expires, in seconds since 1970.
    pub(crate) fn next_expiry(&self) -> Option<u64> {
        self.next_expiry
    }

    /// Forgets what has expired; whether anything had. Links must be held against [`Grants::find`] again then.
    pub(crate) fn expire(&mut self, now_unix: u64) -> bool {
        if self.next_expiry.is_none_or(|expiry| expiry > now_unix) {
            return false;
        }
        self.grants.retain(|grant| grant.expiry > now_unix);
        self.note_next_expiry();
        true
    }

    fn note_next_expiry(&mut self) {
        self.next_expiry = self.grants.iter().map(|grant| grant.expiry).min();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sas;

    const NOW: u64 = 1_800_000_000;
    const HOUR: u64 = 3600;

    fn owner() -> SharedKey {
        SharedKey::from_bytes(b"the owner's key").unwrap()
    }

    fn authority() -> Authority {
        Authority::new(&["Hub.Example".into(), "localhost".into(), "[::1]".into()], owner())
    }

    fn device_token(device: &str, resource: &str) -> String {
        let key = device_key(&owner(), &DeviceId::new(device).unwrap());
        sas::Signer::new(None, key).token(resource, NOW + HOUR)
    }

    fn policy_token(policy: &str, resource: &str) -> String {
        sas::Signer::new(Some(policy.into()), policy_key(&owner(), policy)).token(resource, NOW + HOUR)
    }

    fn node(text: &str) -> Node {
        Node::parse(text).unwrap()
    }

    fn judge(token: &str, name: &str) -> Result<Grant, Denied> {
        authority().judge(token, name, NOW)
    }

    fn reach(grant: &Grant) -> Vec<&'static str> {
        [
            "devices/d/messages/events",
            "devices/d/messages/devicebound",
            "devices/d2/messages/events",
            "messages/devicebound",
            "messages/servicebound/feedback",
            "messages/events/ConsumerGroups/$Default/Partitions/0",
        ]
        .into_iter()
        .filter(|address| grant.allows(&node(address)))
        .collect()
    }

    #[test]
    fn a_devices_token_is_good_for_that_device_and_nothing_else() {
        let token = device_token("d", "hub.example/devices/d");
        for name in [
            "hub.example/devices/d",
            "hub.example%2Fdevices%2Fd",
            "gateway.local/devices/d",
            "amqps://hub.example:5671/devices/d",
            "hub.example",
        ] {
            let grant = judge(&token, name).unwrap();
            assert_eq!(grant.signer, Signer::Device(DeviceId::new("d").unwrap()));
            assert_eq!(grant.expiry, NOW + HOUR);
            assert_eq!(
                reach(&grant),
                ["devices/d/messages/events", "devices/d/messages/devicebound"],
                "{name}"
            );
        }
    }

    #[test]
    fn policies_grant_what_they_are_for() {
        let all = reach(&judge(&policy_token("iothubowner", "localhost:5671"), "localhost").unwrap());
        assert_eq!(all.len(), 6);
        let device = reach(&judge(&policy_token("device", "localhost"), "localhost").unwrap());
        assert_eq!(device, &all[..3]);
        let service = judge(&policy_token("service", "::1"), "https://[::1]").unwrap();
        assert_eq!(service.signer, Signer::Policy("service"));
        assert_eq!(reach(&service), &all[3..]);
        // A client of the Event Hub-compatible endpoint does not decode the key.
        let undecoded = sas::Signer::new(Some("service".into()), policy_key(&owner(), "service").undecoded());
        let events = undecoded.token("sb://localhost/messages/events", NOW + HOUR);
        let events = judge(&events, "sb://localhost/messages/events/ConsumerGroups/$Default").unwrap();
        assert_eq!(reach(&events), &all[5..]);
        // A policy's token for one device, and one for the whole hub that was put for one device only.
        for (resource, name) in [("localhost/devices/d", "localhost"), ("localhost", "localhost/devices/d")] {
            let grant = judge(&policy_token("iothubowner", resource), name).unwrap();
            assert_eq!(reach(&grant), &all[..2], "{resource} {name}");
        }
    }

    #[test]
    fn what_is_refused_and_with_which_status() {
        let good = device_token("d", "localhost/devices/d");
        let expired = authority().judge(&good, "localhost/devices/d", NOW + HOUR);
        assert_eq!(expired, Err(Denied::Unreadable(TokenError::Expired)));
        let signature = Denied::Unreadable(TokenError::Signature);
        for (token, name, denied, status) in [
            ("rubbish".to_owned(), "localhost/devices/d", None, 400),
            (good.clone(), "", Some(Denied::Name), 400),
            (good.clone(), "localhost/devices/other", Some(Denied::Elsewhere), 401),
            (good.clone(), "localhost/messages", Some(Denied::Elsewhere), 401),
            (device_token("d", "localhost/devices/d2"), "localhost/devices/d2", Some(signature.clone()), 401),
            (device_token("d", "localhost"), "localhost", Some(Denied::Nobody), 401),
            (device_token("d", "localhost/messages/events"), "localhost", Some(Denied::Nobody), 401),
            (device_token("d", "other/devices/d"), "other", Some(Denied::OtherHub("other".into())), 401),
            (policy_token("nobody", "localhost"), "localhost", Some(Denied::NoPolicy), 401),
            (good.replace("&se=18", "&se=19"), "localhost/devices/d", Some(signature.clone()), 401),
            // A device's key under a policy's name, and a policy's key for a device.
            (format!("{good}&skn=iothubowner"), "localhost/devices/d", Some(signature.clone()), 401),
            (
                policy_token("iothubowner", "localhost/devices/d").replace("&skn=iothubowner", ""),
                "localhost",
                Some(signature),
                401,
            ),
        ] {
            let got = judge(&token, name).unwrap_err();
            assert_eq!(got.status(), status, "{name}");
            assert!(denied.is_none_or(|denied| denied == got), "{got:?}");
            assert!(!got.to_string().contains("sig="));
        }
    }

    #[test]
    fn identities_that_are_encoded_twice_belong_to_whose_key_signed() {
        // .NET encodes the identity and then the resource; Node only the resource.
        let twice = device_token("a:b", "localhost/devices/a%3Ab");
        for name in ["gateway/devices/a%3Ab", "localhost%2Fdevices%2Fa%253Ab"] {
            let grant = judge(&twice, name).unwrap();
            assert!(grant.allows(&node("devices/a:b/messages/events")), "{name}");
            assert!(!grant.allows(&node("devices/a%253Ab/messages/events")), "{name}");
        }
        let literal = judge(&device_token("a%3Ab", "localhost/devices/a%3Ab"), "localhost").unwrap();
        assert!(literal.allows(&node("devices/a%253Ab/messages/events")));
        assert!(!literal.allows(&node("devices/a:b/messages/events")));
    }

    #[test]
    fn plain_users() {
        let authority = authority();
        let plain = |user: &str, token: &str| authority.judge_plain(user, token, NOW);
        let device = device_token("d", "hub.example/devices/d");
        for user in ["d@sas.hub", "d@SAS.hub.example", "%64@sas.hub"] {
            assert_eq!(reach(&plain(user, &device).unwrap()).len(), 2, "{user}");
        }
        let service = policy_token("service", "hub.example");
        assert_eq!(reach(&plain("service@sas.root.hub", &service).unwrap()).len(), 3);
        // A policy's token is good for a device, as that device.
        let owner = policy_token("iothubowner", "hub.example");
        assert_eq!(reach(&plain("d@sas.hub", &owner).unwrap()).len(), 2);
        for (user, token) in [
            ("d", &device),
            ("d@hub", &device),
            ("d@sas.other", &device),
            ("e@sas.hub", &device),
            ("d@sas.root.hub", &device),
            ("iothubowner@sas.root.hub", &service),
            ("service@sas.root.other", &service),
            ("d/modules/m@sas.hub", &device),
            ("@sas.hub", &device),
            ("d@sas.hub", &"c2VjcmV0".to_owned()),
        ] {
            assert!(plain(user, token).is_err(), "{user}");
        }
        let id = device_token("x@sas.hub", "hub.example/devices/x@sas.hub");
        assert!(plain("x@sas.hub@sas.hub", &id).is_ok());
    }

    #[test]
    fn grants_are_renewed_expire_and_have_an_end() {
        let mut grants = Grants::new(2);
        let grant = |device: &str, expiry| {
            let token = sas::Signer::new(None, device_key(&owner(), &DeviceId::new(device).unwrap()))
                .token(&format!("localhost/devices/{device}"), expiry);
            judge(&token, "localhost").unwrap()
        };
        let at = |device: &str| node(&format!("devices/{device}/messages/events"));
        assert_eq!((grants.next_expiry(), grants.find(&at("a"), NOW)), (None, None));
        grants.put(grant("a", NOW + 10)).unwrap();
        grants.put(grant("b", NOW + 20)).unwrap();
        assert_eq!(grants.put(grant("c", NOW + 30)), Err(TooManyTokens));
        assert_eq!(grants.next_expiry(), Some(NOW + 10));
        grants.put(grant("a", NOW + 40)).unwrap();
        assert_eq!(grants.next_expiry(), Some(NOW + 20));
        assert!(!grants.expire(NOW + 19));
        assert!(grants.find(&at("b"), NOW + 19).is_some() && grants.find(&at("b"), NOW + 20).is_none());
        assert!(grants.expire(NOW + 20));
        assert!(grants.find(&at("b"), NOW).is_none() && grants.find(&at("a"), NOW + 39).is_some());
        assert!(grants.find(&node("messages/devicebound"), NOW).is_none());
        grants.put(grant("c", NOW + 30)).unwrap();
    }
}
