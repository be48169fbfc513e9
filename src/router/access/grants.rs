//! What the tokens of one device connection allow.
//!
//! The gateway has no keys: whether a token is genuine says the hub. What the gateway judges, before the hub is asked,
//! is what a genuine token would be good for, and it takes no more than both the token's own resource (`sr`) and the
//! name that it is put for cover. What the hub then accepts is a grant, until the token expires.
//!
//! The last accepted tokens are kept, since they are put again when a new connection to the hub takes the place of a
//! lost one.

use fieldgate_amqp::endpoint::SAS_TOKEN;
use fieldgate_mappings::{Address, DeviceId};

use crate::config::Secret;
use crate::devices::Pass;
use crate::router::routes::ConnectorIndex;
use crate::sas::{Resource, Token, TokenError, narrowed, percent_decode, percent_encode};

use super::hubs::Hubs;

/// A token, and what it would be good for if the hub accepts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    /// The hub, by the first of its connectors.
    pub(crate) hub: ConnectorIndex,
    /// This node and all below it; never more than one device.
    pub(crate) scope: Address,
    /// The name to put the token for: the hub's host and `scope`.
    pub(crate) name: String,
    /// The token itself.
    pub(crate) token: Secret,
    /// When it ends, in seconds since 1970.
    pub(crate) expires_unix: u64,
    /// The hub is asked; if not, the gateway's own judgement is all there is.
    pub(crate) is_put: bool,
    /// Who has proved to the gateway by it who he is.
    pub(crate) pass: Option<Box<Pass>>,
}

/// What a token's hosts are compared with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) hubs: &'a Hubs,
    /// The name by which the device knows the gateway: clients may write it where they mean the hub.
    pub(super) dialled: Option<&'a str>,
    /// The hub that is meant by a host that is none; whether the token is for that host is judged elsewhere.
    pub(super) otherwise: Option<ConnectorIndex>,
}

/// Why a token is not passed on to the hub. It never repeats any of the token but the names in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The status of the answer.
    pub(crate) status: u32,
    /// What would be right.
    pub(crate) description: String,
}

impl Refusal {
    fn new(status: u32, description: impl Into<String>) -> Self {
        Self { status, description: description.into() }
    }

    fn malformed(description: impl Into<String>) -> Self {
        Self::new(400, description)
    }

    fn unauthorized(description: impl Into<String>) -> Self {
        Self::new(401, description)
    }
}

impl Grant {
    /// Judges a token that is put for `name`, as far as that goes without keys.
    ///
    /// # Errors
    /// What the device is told.
    pub(super) fn judge(
        place: Place<'_>,
        name: &str,
        token_type: &str,
        token: &str,
        now_unix: u64,
    ) -> Result<Self, Refusal> {
        if token_type != SAS_TOKEN {
            return Err(Refusal::malformed(format!("the only type of token here is {SAS_TOKEN}")));
        }
        let parsed = Token::parse(token).map_err(|error| Refusal::malformed(error.to_string()))?;
        let name = Resource::parse(name)
            .ok_or_else(|| Refusal::malformed("the name of a token is <hub>/devices/<id>"))?;
        let resource = parsed.resource();
        let Place { hubs, dialled, otherwise } = place;
        let hub = hubs.find(resource.host()).or(otherwise).ok_or_else(|| {
            let (theirs, ours) = (clip(resource.host()), hubs);
            Refusal::unauthorized(format!("the token is for the host {theirs:?}; the hub here is {ours}"))
        })?;
        let is_here = name.host() == resource.host()
            || hubs.is_of(hub, name.host())
            || dialled.is_some_and(|host| is_same_host(host, name.host()));
        if !is_here {
            let (theirs, ours) = (clip(name.host()), clip(resource.host()));
            let why = format!("the token is put for the host {theirs:?} and is good for {ours:?}");
            return Err(Refusal::unauthorized(why));
        }
        let scope = judge_scope(resource, &name)?;
        if parsed.expiry() <= now_unix {
            return Err(Refusal::unauthorized(TokenError::Expired.to_string()));
        }
        let host = if otherwise.is_some() { hubs.name(hub) } else { None };
        let name = format!("{}/{scope}", host.unwrap_or(resource.host()));
        let (token, expires_unix) = (Secret::new(token), parsed.expiry());
        Ok(Self { hub, scope, name, token, expires_unix, is_put: true, pass: None })
    }

    fn covers(&self, hub: ConnectorIndex, path: &Address) -> bool {
        self.hub == hub && is_below(path, &self.scope)
    }

    fn is_same_audience(&self, other: &Self) -> bool {
        self.hub == other.hub && self.scope == other.scope
    }
}

/// What both the token's resource and the name cover, if that is a device or part of one.
fn judge_scope(resource: &Resource, name: &Resource) -> Result<Address, Refusal> {
    if resource.device().is_none() {
        return Err(Refusal::unauthorized(
            "a token for more than one device has no place on a connection that devices share: \
             put one for <hub>/devices/<id>, or use a connector with a connection for each device",
        ));
    }
    let scope = narrowed(resource.path().to_vec(), name.path()).ok_or_else(|| {
        Refusal::unauthorized("the name that the token is put for lies outside what the token covers")
    })?;
    for (word, id) in [(0, 1), (2, 3)] {
        let Some(id) = scope.get(id) else { break };
        if word == 2 && scope[word] != "modules" {
            break;
        }
        judge_id(id)?;
    }
    let text: Vec<String> = scope.iter().map(|segment| percent_encode(segment)).collect();
    let not_a_path = |_| Refusal::malformed("the path of the token's resource is <hub>/devices/<id>");
    Address::parse(&text.join("/")).map_err(not_a_path)
}

/// Some clients encode an identity before they encode the resource, and the signature would tell which of two devices
/// is meant; to the gateway it tells nothing. So an identity must have one reading.
fn judge_id(id: &str) -> Result<(), Refusal> {
    if let Err(fault) = DeviceId::new(id) {
        return Err(Refusal::malformed(format!("the identity in the token's resource {fault}")));
    }
    let other = percent_decode(id).filter(|decoded| decoded != id);
    if other.is_some_and(|other| DeviceId::new(&other).is_ok()) {
        return Err(Refusal::unauthorized(
            "the identity in the token's resource is percent-encoded twice, so that it can mean two devices: \
             encode it once, or use a connector with a connection for each device",
        ));
    }
    Ok(())
}

/// The tokens of one device connection that the hub has accepted.
#[derive(Debug)]
pub(crate) struct Grants {
    held: Vec<Grant>,
    max: usize,
}

impl Grants {
    /// None yet, at most `max`.
    pub(super) fn new(max: usize) -> Self {
        Self { held: Vec::new(), max }
    }

    /// Whether there would be room for a grant once the expired ones are gone.
    pub(super) fn has_room(&self, grant: &Grant, now_unix: u64) -> bool {
        let held = self.held.iter();
        let others = held.filter(|held| held.expires_unix > now_unix && !held.is_same_audience(grant));
        others.count() < self.max
    }

    /// The hub has accepted the token: it takes the place of an earlier one for the same audience.
    pub(super) fn put(&mut self, grant: Grant) {
        match self.held.iter_mut().find(|held| held.is_same_audience(&grant)) {
            Some(held) => *held = grant,
            // As many more as requests may be under way at one time: room was judged when they came.
            None => {
                self.held.reserve_exact(1);
                self.held.push(grant);
            }
        }
    }

    /// The grant by which the node may be used; the one that lasts longest.
    pub(super) fn find(&self, hub: ConnectorIndex, path: &Address, now_unix: u64) -> Option<&Grant> {
        let held = self.held.iter();
        let good = held.filter(|grant| grant.expires_unix > now_unix && grant.covers(hub, path));
        good.max_by_key(|grant| grant.expires_unix)
    }

    /// All of them, to be put again. The router puts those that a trunk's links need.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Grant> {
        self.held.iter()
    }

    /// Forgets those of devices that may not stay.
    pub(super) fn review(&mut self, may_stay: impl Fn(&Pass) -> bool) {
        self.held.retain(|grant| grant.pass.as_ref().is_none_or(|pass| may_stay(pass)));
    }

    /// When the next token expires, in seconds since 1970.
    pub(super) fn next_expiry(&self) -> Option<u64> {
        self.held.iter().map(|grant| grant.expires_unix).min()
    }

    /// Forgets what has expired; whether anything had.
    pub(super) fn expire(&mut self, now_unix: u64) -> bool {
        let before = self.held.len();
        self.held.retain(|grant| grant.expires_unix > now_unix);
        self.held.len() < before
    }

    /// Forgets the grant for the audience of `grant`: the hub takes its token no longer. Whether there was one.
    pub(super) fn revoke(&mut self, grant: &Grant) -> bool {
        let before = self.held.len();
        self.held.retain(|held| !held.is_same_audience(grant));
        self.held.len() < before
    }
}

/// Whether `path` is `scope` or lies below it, by whole segments. Both have one spelling only.
pub(super) fn is_below(path: &Address, scope: &Address) -> bool {
    let rest = path.as_str().strip_prefix(scope.as_str());
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether two texts name the same host, whatever their case and ports.
pub(super) fn is_same_host(one: &str, other: &str) -> bool {
    Resource::new(one, "").host() == Resource::new(other, "").host()
}

/// At most 64 characters of what a peer sent, for an error text.
pub(super) fn clip(text: &str) -> &str {
    text.char_indices().nth(64).map_or(text, |(end, _)| &text[..end])
}
