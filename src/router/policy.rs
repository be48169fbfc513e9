//! Which addresses a device's links may name, and the host names in them.
//!
//! With a hub connection for each device the hub judges the device's tokens itself; what the
//! gateway adds is that nothing but the routed addresses is offered to it.

use std::borrow::Cow;
use std::sync::Arc;

use fieldgate_amqp::error::{AmqpError, Condition};
use fieldgate_amqp::performative::{Attach, Patch, Role, Terminus};
use fieldgate_mappings::DeviceId;

use crate::devices::Pass;

use super::access;
use super::ends::Side;
use super::proving::Registrar;
use super::routes::{Direction, Routes};
use super::word;

/// Who judges what a device may attach to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Authorise {
    /// The hub, by the token that the device puts; the gateway routes the configured prefixes only.
    Token,
    /// The gateway: the device has proved to it who it is, and has its own addresses.
    Registry,
    /// The hub alone: every address is routed, also none (a sender to the anonymous terminus), a dynamic
    /// node or a transaction coordinator.
    Any,
}

/// The rules for the links of one device connection.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    authorise: Authorise,
    routes: Arc<Routes>,
    hub: Arc<str>,
    /// The host that the device dialled, where it said so in its `open` and it is not the hub's.
    gateway: Option<String>,
    /// What the registry let the device in by, where it has shown a proof.
    pass: Option<Pass>,
}

impl Policy {
    /// Rules that route what `routes` take, of whatever connector, to the hub called `hub`.
    ///
    /// `dialled` is the host name of the device's `open`: a device that knows only the gateway puts that name
    /// into absolute addresses, and the hub would not know it.
    pub(crate) fn new(
        authorise: Authorise,
        routes: Arc<Routes>,
        hub: Arc<str>,
        dialled: Option<&str>,
    ) -> Self {
        let gateway = dialled.filter(|host| !host.eq_ignore_ascii_case(&hub)).map(str::to_owned);
        Self { authorise, routes, hub, gateway, pass: None }
    }

    /// Rules for a device that the registry let in by this.
    pub(crate) fn proven(self, pass: Option<Pass>) -> Self {
        Self { pass, ..self }
    }

    /// What the registry let the device in by.
    pub(super) fn pass(&self) -> Option<&Pass> {
        self.pass.as_ref()
    }

    /// The device that a link of the device speaks for, once the registry lets it.
    ///
    /// # Errors
    /// What the device is told where the registry does not.
    pub(super) fn claims(
        &self,
        registrar: &dyn Registrar,
        attach: &Attach,
    ) -> Result<Option<DeviceId>, AmqpError> {
        let node = access::node_of(attach, attach.role());
        let address = node.as_ref().and_then(Terminus::address).unwrap_or_default();
        let names_none = node.as_ref().is_none_or(|node| !node.is_coordinator() && !node.dynamic());
        if address.is_empty() && names_none && attach.role() == Role::Sender && registrar.doubts_anybody() {
            let why = "devices are registered here with a proof, and a sender to the anonymous terminus could speak \
                       for each of them: name an address such as devices/<id>/messages/events";
            return Err(AmqpError::new(&Condition::NotAllowed, Some(why)));
        }
        let (_, _, path) = access::split_absolute(address);
        let device = word::claimed(registrar, path)?;
        device.as_ref().map_or(Ok(()), |device| self.believe(registrar, device))?;
        Ok(device)
    }

    /// Whether the registry lets the device's links speak for this one.
    pub(super) fn believe(&self, registrar: &dyn Registrar, device: &DeviceId) -> Result<(), AmqpError> {
        word::believe(registrar, self.authorise, self.pass(), device)
    }

    /// The attach as it goes to the other side.
    ///
    /// # Errors
    /// What the peer is told when nothing routes the address: `amqp:not-found`, or `amqp:not-allowed` for a
    /// terminus that names no node of its own.
    pub(super) fn admit(&self, side: Side, attach: &Attach) -> Result<Attach, AmqpError> {
        if side == Side::Downstream && self.authorise != Authorise::Any {
            self.judge(attach)?;
        }
        Ok(self.rename(attach, self.gateway.as_deref(), Some(&self.hub)))
    }

    /// The answer as it goes to the side that asked: host names that [`admit`](Self::admit) changed are changed back.
    pub(super) fn answer(&self, side: Side, attach: &Attach) -> Attach {
        match side {
            Side::Upstream => self.rename(attach, Some(&self.hub), self.gateway.as_deref()),
            Side::Downstream => attach.clone(),
        }
    }

    fn judge(&self, attach: &Attach) -> Result<(), AmqpError> {
        let node = match attach.role() {
            Role::Sender => attach.target(),
            Role::Receiver => attach.source(),
        };
        let refuse = |reason| Err(AmqpError::new(&Condition::NotAllowed, Some(reason)));
        let Some(node) = node else {
            return refuse(
                "this gateway routes no anonymous terminus: name an address such as devices/<id>/messages/events",
            );
        };
        if node.is_coordinator() {
            return refuse("this gateway routes no transaction coordinator");
        }
        if node.dynamic() {
            return refuse("this gateway routes no dynamic node");
        }
        let address = node.address().unwrap_or_default();
        if self.routes(address, Direction::of(attach.role())) {
            return Ok(());
        }
        let (address, routes) = (clip(address), &self.routes);
        let description = format!("no route for the address {address:?}; routed are {routes}");
        Err(AmqpError::new(&Condition::NotFound, Some(&description)))
    }

    fn routes(&self, address: &str, direction: Direction) -> bool {
        let path = split_absolute(address).map_or(address, |(_, path)| path);
        let path = path.strip_prefix('/').unwrap_or(path);
        if path.split('/').any(|segment| segment == "." || segment == "..") {
            return false;
        }
        self.routes.find(path, direction, |_| Some(0)).is_some()
    }

    fn rename(&self, attach: &Attach, from: Option<&str>, to: Option<&str>) -> Attach {
        let (Some(from), Some(to)) = (from, to) else { return attach.clone() };
        let renamed = |terminus: Option<Terminus>| {
            let terminus = terminus?;
            let address = renamed_host(terminus.address()?, from, to)?;
            Some(terminus.with_address(&address))
        };
        let (source, target) = (renamed(attach.source()), renamed(attach.target()));
        let patches: Vec<(usize, Patch<'_>)> = [(Attach::SOURCE, &source), (Attach::TARGET, &target)]
            .into_iter()
            .filter_map(|(field, terminus)| Some((field, Patch::Raw(terminus.as_ref()?.encoded()))))
            .collect();
        if patches.is_empty() {
            return attach.clone();
        }
        let renamed = attach.composite().patched(&patches).and_then(Attach::try_from);
        // Only a name was changed; should the result not be an attach, the address as it came is refused by the hub.
        renamed.unwrap_or_else(|_| attach.clone())
    }
}

/// The authority and the path of an absolute address (`amqp://` or `amqps://`).
fn split_absolute(address: &str) -> Option<(&str, &str)> {
    let scheme = address
        .split_once("://")
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("amqps") || scheme.eq_ignore_ascii_case("amqp"))?;
    Some(scheme.1.split_at(scheme.1.find('/').unwrap_or(scheme.1.len())))
}

/// The address with host `to` where it names host `from`; nothing where it does not.
fn renamed_host(address: &str, from: &str, to: &str) -> Option<String> {
    let (authority, path) = split_absolute(address)?;
    let (host, port) = authority.split_at(authority.rfind(':').unwrap_or(authority.len()));
    let scheme = &address[..address.len() - authority.len() - path.len()];
    // The port stays, so that the way back restores exactly what the device wrote.
    host.eq_ignore_ascii_case(from).then(|| format!("{scheme}{to}{port}{path}"))
}

/// At most 64 characters of what a peer sent, for an error text.
fn clip(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(64) {
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use fieldgate_amqp::performative::{AttachOut, SourceOut, TargetOut};

    use super::*;

    fn policy() -> Policy {
        let routes = Arc::new(Routes::prefixes(["$cbs", "devices/"]));
        Policy::new(Authorise::Token, routes, "hub.example.net".into(), Some("gate.local"))
    }

    fn sender(target: &str) -> Attach {
        let source = SourceOut::default().build();
        let target = TargetOut { address: Some(target), ..TargetOut::default() }.build();
        AttachOut::sender("link", &source, &target).build()
    }

    fn anonymous_sender() -> Attach {
        let source = SourceOut::default().build();
        let target = TargetOut::default().build();
        AttachOut { target: None, ..AttachOut::sender("link", &source, &target) }.build()
    }

    #[test]
    fn routes_whole_segments_only() {
        for address in
            ["$cbs", "devices/d1/messages/events", "/devices/d1", "amqps://any.host:5671/devices/d1"]
        {
            assert!(policy().admit(Side::Downstream, &sender(address)).is_ok(), "{address}");
        }
        for address in
            ["", "$cbs2", "device", "devicesx/d1", "$management", "devices/../$management", "%64evices/d1"]
        {
            let error = policy().admit(Side::Downstream, &sender(address)).expect_err(address);
            assert_eq!(error.condition(), "amqp:not-found", "{address}");
        }
    }

    #[test]
    fn refuses_what_names_no_node() {
        let error = policy().admit(Side::Downstream, &anonymous_sender()).expect_err("null target");
        assert_eq!(error.condition(), "amqp:not-allowed");
        let any = Policy { authorise: Authorise::Any, ..policy() };
        assert!(any.admit(Side::Downstream, &anonymous_sender()).is_ok());
    }

    #[test]
    fn changes_the_gateways_own_name_and_nothing_else() {
        let policy = policy();
        let up =
            policy.admit(Side::Downstream, &sender("amqps://gate.local:5671/devices/d1")).expect("routed");
        assert_eq!(up.target().expect("target").address(), Some("amqps://hub.example.net:5671/devices/d1"));
        let down = policy.answer(Side::Upstream, &up);
        assert_eq!(down.target().expect("target").address(), Some("amqps://gate.local:5671/devices/d1"));
        let other = policy.admit(Side::Downstream, &sender("amqps://other.host/devices/d1")).expect("routed");
        assert_eq!(other.target().expect("target").address(), Some("amqps://other.host/devices/d1"));
    }
}
