//! Who may use an address of a hub connection that many devices share.
//!
//! On such a connection the hub can no longer tell devices apart, so the gateway does. A device may attach only where
//! a token covers that its own connection put and the hub accepted, or to its own addresses where the gateway has
//! authenticated it. What a shared connection cannot carry is refused: a terminus without a node of its own, a node
//! that is made for the link, a transaction coordinator, and the hub's own nodes but for `$cbs`, which the gateway
//! plays itself ([`claims`](super::claims)).
//!
//! Pure: the time is given, nothing is asked.

mod address;
mod grants;
mod hubs;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use fieldgate_amqp::endpoint::CBS_NODE;
use fieldgate_amqp::error::{AmqpError, Condition};
use fieldgate_amqp::performative::{Attach, Patch, Role, Terminus};
use fieldgate_mappings::{Address, DeviceId};

pub(crate) use grants::{Grant, Grants, Refusal};
pub(crate) use hubs::Hubs;

use super::policy::Authorise;
use super::proving::Registrar;
use super::routes::{ConnectorIndex, Direction, Routes, with_plain_words};
use super::word;
use crate::devices::Pass;
use crate::sas::percent_decode;
use address::Canonical;
pub(super) use address::canonical;
use grants::{Place, clip, is_below, is_same_host};

/// What holds for all devices of a gateway.
#[derive(Debug)]
pub(crate) struct Rules {
    /// Which addresses belong to which connector.
    pub(crate) routes: Routes,
    /// The names of the connectors' hubs.
    pub(crate) hubs: Hubs,
    /// Who knows the devices, where there is a registry.
    pub(crate) registrar: Option<Arc<dyn Registrar>>,
}

/// What one device connection may do on shared hub connections.
#[derive(Debug)]
pub(crate) struct Access {
    rules: Arc<Rules>,
    authorise: Authorise,
    /// The most tokens, each with its grant: about 500 bytes.
    max_grants: usize,
    /// The host of the device's `open`: the name by which it knows the gateway, or the hub's.
    dialled: Option<Box<str>>,
    /// Where the listener lets its devices go; `None` is anywhere.
    bound_to: Option<ConnectorIndex>,
    /// The hub and the node of the device that the gateway has authenticated; all below it is its own.
    own: Option<(ConnectorIndex, Address)>,
    grants: Grants,
}

/// An attach that is let in.
#[derive(Debug)]
pub(crate) enum Admitted {
    /// It goes to the gateway's own `$cbs` node.
    Cbs,
    /// It goes to a hub.
    Routed(Box<Routed>),
}

/// An attach that goes to a hub.
#[derive(Debug)]
pub(crate) struct Routed {
    /// By which connector.
    pub(crate) connector: ConnectorIndex,
    /// The attach to send; name and handle are the device's.
    pub(crate) attach: Attach,
    /// Why the link may be there, to be asked again when tokens expire.
    pub(crate) permit: Permit,
    /// How the device wrote the address, where that is not how it is sent.
    pub(crate) respelled: Option<Respelled>,
}

/// Why a link may be where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Permit {
    hub: ConnectorIndex,
    /// `None`: everybody may.
    node: Option<Address>,
    /// The device that is believed to be the one that it says it is, where anybody may.
    word_of: Option<DeviceId>,
}

/// An address as the device wrote it, and as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Respelled {
    written: Box<str>,
    sent: Box<str>,
}

impl Access {
    /// A device connection that has put no token yet. `authorise` and `max_grants`, the most tokens that it may have,
    /// are its listener's. `dialled` is the host of its `open`; `bound_to` the connector
    /// that its listener is bound to; `own` the device that the gateway has authenticated: a connector to its
    /// hub, and `devices/<id>` or `devices/<id>/modules/<id>`.
    pub(crate) fn new(
        rules: Arc<Rules>,
        authorise: Authorise,
        max_grants: usize,
        dialled: Option<&str>,
        bound_to: Option<ConnectorIndex>,
        own: Option<(ConnectorIndex, Address)>,
    ) -> Self {
        let own = own.map(|(connector, node)| (rules.hubs.of(connector), node));
        let grants = Grants::new(max_grants);
        Self { rules, authorise, max_grants, dialled: dialled.map(Into::into), bound_to, own, grants }
    }

    /// Judges an attach of the device.
    ///
    /// # Errors
    /// What the device is told: the condition, and a sentence that says what would be right.
    pub(crate) fn admit(&self, attach: &Attach, now_unix: u64) -> Result<Admitted, AmqpError> {
        let written = &named_node(attach)?;
        match self.authorise {
            Authorise::Token | Authorise::Registry => self.admit_by_token(attach, written, now_unix),
            Authorise::Any => self.admit_any(attach, written),
        }
    }

    fn admit_by_token(&self, attach: &Attach, written: &str, now_unix: u64) -> Result<Admitted, AmqpError> {
        let Canonical { host, path, text } =
            canonical(written).map_err(|fault| refuse(&Condition::NotFound, &fault.to_string()))?;
        let hub = self.hub_of(host)?;
        if path.as_str().eq_ignore_ascii_case(CBS_NODE) {
            return Ok(Admitted::Cbs);
        }
        if path.as_str().starts_with('$') {
            return Err(own_node(path.as_str()));
        }
        let direction = Direction::of(attach.role());
        // A device belongs to the hub that its token is for, before it belongs to the one that it has dialled.
        let has_permit = |connector| self.may(self.rules.hubs.of(connector), &path, now_unix);
        let connector = self
            .route(path.as_str(), direction, hub, has_permit)
            .ok_or_else(|| self.not_routed(written, direction))?;
        let permit = Permit { hub: self.rules.hubs.of(connector), node: Some(path), word_of: None };
        if !self.covers(&permit, now_unix) {
            return Err(unauthorized(written));
        }
        self.believe(&permit)?;
        routed(connector, attach, permit, written, &text)
    }

    /// Without tokens the address is the hub's matter and goes to it as it came, but for the gateway's own name.
    fn admit_any(&self, attach: &Attach, written: &str) -> Result<Admitted, AmqpError> {
        let (scheme, authority, path) = split_absolute(written);
        let segments: Vec<_> = path.strip_prefix('/').unwrap_or(path).split('/').map(decoded).collect();
        if segments.len() == 1 && segments[0].eq_ignore_ascii_case(CBS_NODE) {
            return Ok(Admitted::Cbs);
        }
        let is_own = |segment: &str| {
            segment.eq_ignore_ascii_case(CBS_NODE) || segment.eq_ignore_ascii_case("$management")
        };
        if segments[0].starts_with('$') || segments.iter().any(|segment| is_own(segment)) {
            return Err(own_node(path));
        }
        if segments.iter().any(|segment| segment == "." || segment == "..") {
            return Err(refuse(&Condition::NotFound, "the address has a relative segment"));
        }
        let host = authority.map(|authority| authority.rsplit_once(':').map_or(authority, |(host, _)| host));
        let hub = host.filter(|host| !self.is_dialled(host)).and_then(|host| self.hub_named(host));
        let registrar = self.rules.registrar.as_deref();
        let device = registrar.map_or(Ok(None), |registrar| word::claimed(registrar, path))?;
        let direction = Direction::of(attach.role());
        let connector = self
            .route(&with_plain_words(path), direction, hub, |_| false)
            .ok_or_else(|| self.not_routed(written, direction))?;
        let permit = Permit { hub: self.rules.hubs.of(connector), node: None, word_of: device };
        self.believe(&permit)?;
        let sent = match (host, self.rules.hubs.name(connector)) {
            (Some(host), Some(name)) if hub.is_none() && self.is_dialled(host) => {
                let port = &authority.unwrap_or_default()[host.len()..];
                format!("{scheme}{name}{port}{path}")
            }
            _ => written.to_owned(),
        };
        routed(connector, attach, permit, written, &sent)
    }

    /// The hub that an absolute address asks for; `None` where it says no host, or only the gateway's.
    fn hub_of(&self, host: Option<&str>) -> Result<Option<ConnectorIndex>, AmqpError> {
        let Some(host) = host else { return Ok(None) };
        match self.hub_named(host) {
            Some(hub) => Ok(Some(hub)),
            None if self.is_dialled(host) => Ok(None),
            None => {
                let (theirs, ours) = (clip(host), &self.rules.hubs);
                let why = format!("the address names the host {theirs:?}; the hub here is {ours}");
                Err(refuse(&Condition::NotFound, &why))
            }
        }
    }

    fn hub_named(&self, host: &str) -> Option<ConnectorIndex> {
        self.rules.hubs.find(crate::sas::Resource::new(host, "").host())
    }

    fn is_dialled(&self, host: &str) -> bool {
        self.dialled.as_deref().is_some_and(|dialled| is_same_host(dialled, host))
    }

    /// The connector of a path. Among equally specific routes one with a permit comes before one whose hub the device
    /// has dialled, and that before others.
    fn route(
        &self,
        path: &str,
        direction: Direction,
        hub: Option<ConnectorIndex>,
        has_permit: impl Fn(ConnectorIndex) -> bool,
    ) -> Option<ConnectorIndex> {
        let hubs = &self.rules.hubs;
        let dialled = self.dialled.as_deref().and_then(|host| self.hub_named(host));
        self.rules.routes.find(path, direction, |connector| {
            let may_be = self.bound_to.is_none_or(|bound_to| bound_to == connector)
                && hub.is_none_or(|hub| hub == hubs.of(connector));
            if !may_be {
                return None;
            }
            let is_dialled = dialled.is_some_and(|hub| hub == hubs.of(connector));
            Some(2 * u32::from(has_permit(connector)) + u32::from(is_dialled))
        })
    }

    fn not_routed(&self, written: &str, direction: Direction) -> AmqpError {
        let way = match direction {
            Direction::In => "for messages from devices",
            Direction::Out => "for messages to devices",
        };
        let (address, routes) = (clip(written), &self.rules.routes);
        let why = format!("no route {way} at the address {address:?}; routed are {routes}");
        refuse(&Condition::NotFound, &why)
    }

    /// Whether a link may still be where it is.
    pub(crate) fn allows(&self, permit: &Permit, now_unix: u64) -> bool {
        self.covers(permit, now_unix) && self.believe(permit).is_ok()
    }

    /// Whether a token covers the node, where one has to.
    fn covers(&self, permit: &Permit, now_unix: u64) -> bool {
        permit.node.as_ref().is_none_or(|node| self.may(permit.hub, node, now_unix))
    }

    /// Whether the registry lets the device of the node be spoken for here.
    fn believe(&self, permit: &Permit) -> Result<(), AmqpError> {
        let Some(registrar) = self.rules.registrar.as_deref() else { return Ok(()) };
        let device = permit.word_of.clone().or_else(|| permit.node.as_ref()?.device());
        // What a shared connection has shown stands in its grants: on the word of somebody it has shown nothing.
        device.map_or(Ok(()), |device| word::believe(registrar, self.authorise, None, &device))
    }

    fn may(&self, hub: ConnectorIndex, node: &Address, now_unix: u64) -> bool {
        self.own.as_ref().is_some_and(|(its, own)| *its == hub && is_below(node, own))
            || self.grants.find(hub, node, now_unix).is_some()
    }

    /// The grant that a link stands on, so that its token is put again before the link is attached again. None where
    /// everybody may, or the gateway has authenticated the device.
    pub(crate) fn grant_of(&self, permit: &Permit, now_unix: u64) -> Option<&Grant> {
        self.grants.find(permit.hub, permit.node.as_ref()?, now_unix)
    }

    /// Judges a token that the device has put, before the hub is asked.
    ///
    /// # Errors
    /// What the device is told instead of the hub being asked.
    pub(crate) fn judge(
        &self,
        name: &str,
        token_type: &str,
        token: &str,
        now_unix: u64,
    ) -> Result<Grant, Refusal> {
        let place =
            Place { hubs: &self.rules.hubs, dialled: self.dialled.as_deref(), otherwise: self.own_hub() };
        let grant = Grant::judge(place, name, token_type, token, now_unix)?;
        if let Some(bound_to) = self.bound_to
            && self.rules.hubs.of(bound_to) != grant.hub
        {
            let hub = self.rules.hubs.name(bound_to).unwrap_or("another");
            let description = format!("the token is for another hub than this listener's, which is {hub}");
            return Err(Refusal { status: 401, description });
        }
        if !self.grants.has_room(&grant, now_unix) {
            let description = format!("a connection may have {} tokens", self.max_grants);
            return Err(Refusal { status: 403, description });
        }
        Ok(grant)
    }

    /// Where the gateway verifies tokens itself, one may be for the gateway and mean its hub.
    fn own_hub(&self) -> Option<ConnectorIndex> {
        if self.authorise != Authorise::Registry {
            return None;
        }
        let own = self.own.as_ref().map(|(hub, _)| *hub);
        own.or_else(|| Some(self.rules.hubs.of(self.bound_to.unwrap_or(ConnectorIndex(0)))))
    }

    /// Who judges what the device attaches to.
    pub(crate) fn authorise(&self) -> Authorise {
        self.authorise
    }

    /// Forgets the grants of devices that may not stay.
    pub(crate) fn review(&mut self, may_stay: impl Fn(&Pass) -> bool) {
        self.grants.review(may_stay);
    }

    /// The hub has accepted the token of `grant`.
    pub(crate) fn grant(&mut self, grant: Grant) {
        self.grants.put(grant);
    }

    /// The hub has refused the token of `grant`, which it had accepted before: what it allowed is over. Whether
    /// anything was.
    pub(crate) fn revoke(&mut self, grant: &Grant) -> bool {
        self.grants.revoke(grant)
    }

    /// The grants, with their tokens, to be put again on a new connection to the hub.
    pub(crate) fn grants(&self) -> &Grants {
        &self.grants
    }

    /// When the next token expires, in seconds since 1970.
    pub(crate) fn next_expiry(&self) -> Option<u64> {
        self.grants.next_expiry()
    }

    /// Forgets what has expired; whether anything had. Then ask [`allows`](Self::allows) for every link.
    pub(crate) fn expire(&mut self, now_unix: u64) -> bool {
        self.grants.expire(now_unix)
    }
}

/// What the device of a link is told whose token has expired.
pub(crate) fn expired() -> AmqpError {
    let why = "the token has expired that the link was attached with: put a fresh one in time";
    refuse(&Condition::UnauthorizedAccess, why)
}

impl Respelled {
    /// The hub's answer with the address as the device wrote it, where the hub repeats what it was sent.
    pub(crate) fn restore(&self, answer: &Attach) -> Attach {
        match node_of(answer, answer.role().other()) {
            Some(node) if node.address() == Some(&self.sent) => {
                // Should that not be possible, the address as it was sent names the same node.
                with_address(answer, answer.role().other(), &node, &self.written)
                    .unwrap_or_else(|| answer.clone())
            }
            _ => answer.clone(),
        }
    }
}

/// The terminus at the hub of a link whose device has this role.
pub(super) fn node_of(attach: &Attach, device: Role) -> Option<Terminus> {
    match device {
        Role::Sender => attach.target(),
        Role::Receiver => attach.source(),
    }
}

/// The address that a device's attach asks for.
fn named_node(attach: &Attach) -> Result<String, AmqpError> {
    let refuse = |why| Err(refuse(&Condition::NotAllowed, why));
    let Some(node) = node_of(attach, attach.role()) else {
        return refuse(
            "devices share the hub's connection, so a link must name its node, such as devices/<id>/messages/events",
        );
    };
    if node.is_coordinator() {
        return refuse("a hub connection that devices share carries no transactions");
    }
    if node.dynamic() {
        return refuse("a hub connection that devices share carries no dynamic node: name an address");
    }
    match node.address() {
        Some(address) => Ok(address.to_owned()),
        None => refuse("the terminus has no address: name one, such as devices/<id>/messages/events"),
    }
}

fn routed(
    connector: ConnectorIndex,
    attach: &Attach,
    permit: Permit,
    written: &str,
    sent: &str,
) -> Result<Admitted, AmqpError> {
    let (attach, respelled) = match node_of(attach, attach.role()) {
        Some(node) if written != sent => {
            let attach = with_address(attach, attach.role(), &node, sent)
                .ok_or_else(|| refuse(&Condition::InvalidField, "the terminus is not sound"))?;
            (attach, Some(Respelled { written: written.into(), sent: sent.into() }))
        }
        _ => (attach.clone(), None),
    };
    Ok(Admitted::Routed(Box::new(Routed { connector, attach, permit, respelled })))
}

fn with_address(attach: &Attach, device: Role, node: &Terminus, address: &str) -> Option<Attach> {
    let field = match device {
        Role::Sender => Attach::TARGET,
        Role::Receiver => Attach::SOURCE,
    };
    let node = node.with_address(address);
    let patched = attach.composite().patched(&[(field, Patch::Raw(node.encoded()))]);
    let attach = patched.and_then(Attach::try_from).ok()?;
    // What is sent is what was judged, or nothing.
    (node_of(&attach, device)?.address() == Some(address)).then_some(attach)
}

fn refuse(condition: &Condition, why: &str) -> AmqpError {
    AmqpError::new(condition, Some(why))
}

fn own_node(path: &str) -> AmqpError {
    let path = clip(path);
    refuse(
        &Condition::NotAllowed,
        &format!("{path:?} is a node of the hub's own, which devices do not share"),
    )
}

fn unauthorized(written: &str) -> AmqpError {
    let address = clip(written);
    let why = format!(
        "no token of this connection covers {address:?}: put one for <hub>/devices/<id> to $cbs before attaching"
    );
    refuse(&Condition::UnauthorizedAccess, &why)
}

/// Scheme, authority and path of an absolute address; a relative one is all path.
pub(super) fn split_absolute(address: &str) -> (&str, Option<&str>, &str) {
    let Some((scheme, rest)) = address.split_once("://") else { return ("", None, address) };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    (&address[..scheme.len() + 3], Some(authority), path)
}

/// A segment without its escapes, and as it is where they are none.
pub(super) fn decoded(segment: &str) -> String {
    percent_decode(segment).unwrap_or_else(|| segment.to_owned())
}
