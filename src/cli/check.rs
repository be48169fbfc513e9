//! `fieldgate check`: everything that can be wrong before the start, and what the configuration means.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;

use fieldgate_mappings::Delivery;
use fieldgate_mappings::rules::{Described, RuleSet};
use thiserror::Error;

use super::CliError;
use crate::config::{
    Authorise, Config, Connect, Connector, Direction, Listener, Mapped, MappingsError, Mode, Profile, Proxy,
    Reach, SslProfile, Target, TlsVersion, Transport,
};
use crate::devices::{Devices, Known, Proof, Registry};
use crate::output::say;
use crate::tls::{self, TlsError};

/// The word before the mapping files; their rules stand below it.
const MAPPINGS: &str = "mappings";

/// What a start would stumble over.
#[derive(Debug, Error)]
pub(super) enum Wrong {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("{0}: {1}")]
    Profile(String, TlsError),
    #[error(transparent)]
    Mappings(#[from] MappingsError),
}

/// Checks, and prints what the configuration comes to.
pub(super) fn run(file: Option<&Path>) -> Result<(), CliError> {
    let config = match file {
        Some(file) => Config::load(file)?,
        None => Config::default(),
    };
    config.require_hub()?;
    certificates(&config)?;
    let rules = config.mappings.load().map_err(Wrong::from)?;
    let devices = devices(&config, &rules)?;
    let name = file.map_or_else(|| "the defaults".into(), |file| file.display().to_string());
    say(&format!("{name}: good"))?;
    for (what, meaning) in summary(&config).into_iter().chain(devices) {
        say(&format!("  {what:<9}{meaning}"))?;
        if what == MAPPINGS {
            for line in deliveries(&rules) {
                say(&format!("  {:<9}{line}", ""))?;
            }
        }
    }
    for remark in &config.remarks {
        say(&format!("  {remark}"))?;
    }
    Ok(())
}

/// Reads the device registry, where there is one.
fn devices(config: &Config, rules: &RuleSet) -> Result<Option<(&'static str, String)>, CliError> {
    let Some(file) = Registry::locate(config)?.filter(|file| file.exists()) else { return Ok(None) };
    let registry = Registry::load(&file, Known::of(config, rules))?;
    Ok(Some(("devices", format!("{} in {}", registered(&registry.snapshot()), file.display()))))
}

/// How many devices there are, and by what they prove themselves: each kind of proof with its devices.
fn registered(devices: &Devices) -> String {
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for device in devices.iter() {
        let of_device: BTreeSet<&str> = device.proofs.iter().map(Proof::kind).collect();
        of_device.into_iter().for_each(|kind| *kinds.entry(kind).or_default() += 1);
    }
    let disabled = devices.iter().filter(|device| !device.enabled).count();
    let mut text = format!("{} registered", devices.len());
    if disabled > 0 {
        text += &format!(", {disabled} of them disabled");
    }
    if !kinds.is_empty() {
        let kinds: Vec<_> = kinds.iter().map(|(kind, devices)| format!("{kind} {devices}")).collect();
        text += &format!(" (proofs: {})", kinds.join(", "));
    }
    text
}

/// How the messages of each rule are delivered.
fn deliveries(rules: &RuleSet) -> Vec<String> {
    let line = |rule: &Described| {
        let delivery = rule.delivery.as_ref().map_or_else(|| Delivery::USUAL.into(), ToString::to_string);
        format!("  `{}` ({}:{} @{}): {delivery}", rule.name, rule.place.file, rule.place.line, rule.version)
    };
    rules.described().iter().map(line).collect()
}

/// Reads what the TLS profiles name.
fn certificates(config: &Config) -> Result<(), Wrong> {
    let amqp = config.listeners.iter().map(|listener| (&listener.name, &listener.tls));
    let mqtt = config.mqtt_listeners.iter().map(|listener| (&listener.name, &listener.tls));
    for (name, profile) in amqp.chain(mqtt) {
        let wrong = |error| Wrong::Profile(format!("listener `{name}`"), error);
        profile.as_deref().map(tls::listener).transpose().map_err(wrong)?;
    }
    // What names no file was not touched by anybody; the platform's certificates are looked for at the start.
    let upstream = &config.upstream.access.tls;
    if !upstream.files().is_empty() {
        tls::connector(upstream).map_err(|error| Wrong::Profile("[upstream]".into(), error))?;
    }
    for connector in &config.connectors {
        let wrong = |error| Wrong::Profile(format!("connector `{}`", connector.name), error);
        if let Reach::Hosts(hosts) = &connector.reach {
            hosts.tls.as_deref().map(tls::connector).transpose().map_err(wrong)?;
        }
    }
    Ok(())
}

fn summary(config: &Config) -> Vec<(&'static str, String)> {
    let anonymous = |allowed: bool| {
        if allowed { "devices are who they say they are" } else { "no device gets in without credentials" }
    };
    let hub = match &config.upstream.target {
        Target::Embedded => "the embedded hub".into(),
        Target::ConnectionString(hub) => match hub.port {
            Some(port) => format!("{}:{port}", hub.host),
            None => hub.host.clone(),
        },
        Target::Url(url) => format!("{}:{}", url.host, url.port),
    };
    let access = &config.upstream.access;
    let transport = match &config.upstream.target {
        Target::Url(url) => url.websocket.as_deref(),
        Target::Embedded | Target::ConnectionString(_) => path(&access.transport),
    };
    let hub = hub + &by_way_of(transport, access.proxy.as_deref());
    let mut lines: Vec<(&str, String)> =
        config.listeners.iter().map(|listener| ("", amqp_listener(config, listener))).collect();
    match lines.first_mut() {
        Some(first) => first.0 = "AMQP",
        None => lines.push(("AMQP", "off".into())),
    }
    let mut mqtt = config.mqtt_listeners.iter().map(|listener| {
        let transport = device_transport(listener.tls.as_deref(), listener.require_ssl, listener.websocket);
        format!("{}   {transport}; {}", listener.address, anonymous(listener.allow_anonymous))
    });
    lines.push(("MQTT", mqtt.next().unwrap_or_else(|| "off".into())));
    lines.extend(mqtt.map(|line| ("", line)));
    lines.extend([
        ("CoAP", listener(&config.coap.listen, anonymous(config.coap.allow_anonymous()))),
        ("HTTP", listener(&config.http.listen, anonymous(config.http.allow_anonymous()))),
        ("admin", listener(&config.admin.listen, "/metrics and /healthz")),
    ]);
    if config.needs_upstream() {
        lines.push(("hub", hub));
        lines.extend(mapped(&config.upstream.mapped).filter(|_| config.maps()).map(|line| ("", line)));
    }
    if config.runs_hub() {
        let registers = if config.hub.register_unknown_devices() {
            "registers unknown devices"
        } else {
            "knows registered devices only"
        };
        lines.push((
            "",
            listener(&config.hub.listen, &format!("AMQP over TLS as `{}`; {registers}", config.hub.name)),
        ));
    }
    let mappings = match config.mappings.files.as_slice() {
        [] => "the built-in azure-iot-hub.toml".into(),
        files => files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", "),
    };
    if config.maps() {
        lines.push((MAPPINGS, mappings));
    }
    for (index, connector) in config.connectors.iter().enumerate() {
        lines.push(("routes", amqp_connector(connector)));
        lines.extend(mapped(&connector.mapped).map(|line| ("", line)));
        for (direction, arrow) in
            [(Direction::Both, "both ways"), (Direction::In, "in"), (Direction::Out, "out")]
        {
            let routes = config.link_routes.iter().filter(|route| route.connector == index);
            let routes: Vec<String> = routes
                .filter(|route| route.direction == direction)
                .map(|route| route.address.to_string())
                .collect();
            if !routes.is_empty() {
                lines.push(("", format!("  {arrow}: {}", routes.join(", "))));
            }
        }
    }
    lines
}

/// How a hub is spoken to for MQTT, CoAP and HTTP devices, where that is not the usual.
fn mapped(mapped: &Mapped) -> Option<String> {
    let profile = match mapped.profile {
        Profile::AzureIotHub => None,
        Profile::Amqp => Some(format!("one link, or {} where it does not relay", mapped.max_links)),
    };
    let prefix = &*mapped.address_prefix;
    let prefix = (!prefix.is_empty()).then(|| format!("addresses begin with `{prefix}`"));
    let rate = mapped.max_messages_per_second.map(|rate| format!("at most {rate} messages a second"));
    let parts: Vec<String> = [profile, prefix, rate].into_iter().flatten().collect();
    (!parts.is_empty()).then(|| format!("  mapped devices: {}", parts.join("; ")))
}

fn device_transport(tls: Option<&SslProfile>, required: bool, websocket: bool) -> String {
    let transport = match (tls, required) {
        (None, _) => "plain text".to_owned(),
        (Some(profile), true) => versions(profile),
        (Some(profile), false) => format!("plain text or {}", versions(profile)),
    };
    transport + if websocket { ", also by WebSocket" } else { "" }
}

fn amqp_listener(config: &Config, listener: &Listener) -> String {
    let transport = device_transport(listener.tls.as_deref(), listener.require_ssl, listener.websocket);
    let mut mechanisms: Vec<&str> =
        listener.sasl_mechanisms.iter().map(|mechanism| mechanism.name()).collect();
    if !listener.authenticate_peer {
        mechanisms.push("or no SASL");
    }
    let tokens = match listener.authorise {
        Authorise::Token => "devices bring tokens",
        Authorise::Registry => "devices are registered",
        Authorise::Any => "devices need no token",
    };
    let bound = listener.connector.and_then(|index| config.connectors.get(index));
    let bound = bound.map(|connector| format!("; all go to `{}`", connector.name)).unwrap_or_default();
    format!("{}   {transport}; {}; {tokens}{bound}", listener.address, mechanisms.join(", "))
}

fn amqp_connector(connector: &Connector) -> String {
    let hub = match &connector.reach {
        Reach::Upstream => "the hub".to_owned(),
        Reach::Hosts(hosts) => {
            let addresses: Vec<String> = hosts.addresses.iter().map(ToString::to_string).collect();
            let transport = hosts.tls.as_deref().map_or_else(|| "plain text".into(), versions);
            let way = by_way_of(path(&hosts.transport), hosts.proxy.as_deref());
            format!("{}, {transport}{way}", addresses.join(", then "))
        }
    };
    let connections = match (connector.mode, connector.connect) {
        (Mode::PerConnection, _) => "a connection for each device".into(),
        (Mode::Shared, connect) => {
            let when = match connect {
                Connect::OnDemand => "on demand",
                Connect::Start => "from the start",
            };
            format!(
                "shared by {} devices at most, {when}, held {} s through an outage",
                connector.devices_per_connection,
                connector.hold.as_secs()
            )
        }
    };
    format!("`{}`: {hub}; {connections}", connector.name)
}

fn path(transport: &Transport) -> Option<&str> {
    match transport {
        Transport::Tcp => None,
        Transport::WebSocket { path, .. } => Some(path),
    }
}

/// What is between the gateway and a hub.
fn by_way_of(websocket: Option<&str>, proxy: Option<&Proxy>) -> String {
    let websocket = websocket.map(|path| format!(", WebSocket at {path}")).unwrap_or_default();
    let proxy = proxy.map(|proxy| format!(", through the proxy {}", proxy.at)).unwrap_or_default();
    websocket + &proxy
}

fn versions(profile: &SslProfile) -> String {
    let version = |version: &TlsVersion| match version {
        TlsVersion::V1_2 => "1.2",
        TlsVersion::V1_3 => "1.3",
    };
    format!("TLS {}", profile.protocols.iter().map(version).collect::<Vec<_>>().join("/"))
}

fn listener(addresses: &[SocketAddr], what: &str) -> String {
    if addresses.is_empty() {
        return "off".into();
    }
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    format!("{}   {what}", addresses.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary_of(text: &str) -> String {
        let config = Config::parse("f", text, None).unwrap_or_else(|error| panic!("{error}"));
        let lines: Vec<String> =
            summary(&config).iter().map(|(what, meaning)| format!("{what:<9}{meaning}")).collect();
        lines.join("\n")
    }

    #[test]
    fn the_summary_says_what_runs_where() {
        let text = "[coap]\nlisten = []\n[amqp]\nlisten = \"0.0.0.0:5672\"\nauthorise = \"token\"\n\
                    [upstream]\nurl = \"wss://u:hidden@hub.example/x\"";
        assert_eq!(
            summary_of(text),
            "AMQP     0.0.0.0:5672   plain text; ANONYMOUS, MSSBCBS, or no SASL; devices bring tokens
MQTT     127.0.0.1:1883   plain text; devices are who they say they are
CoAP     off
HTTP     127.0.0.1:8080   devices are who they say they are
admin    127.0.0.1:9464   /metrics and /healthz
hub      hub.example:443, WebSocket at /x
mappings the built-in azure-iot-hub.toml
routes   `upstream`: the hub; shared by 500 devices at most, on demand, held 60 s through an outage
           both ways: $cbs, devices"
        );
    }

    #[test]
    fn the_summary_says_how_a_broker_is_spoken_to() {
        let text = "[upstream]\nurl = \"amqps://b.example\"\nprofile = \"amqp\"\naddress_prefix = \"/queue/\"\n\
            max_messages_per_second = 100";
        let said = "b.example:5671\n           mapped devices: one link, or 200 where it does not relay; addresses \
            begin with `/queue/`; at most 100 messages a second\n";
        assert!(summary_of(text).contains(said), "{}", summary_of(text));
    }

    #[test]
    fn the_check_says_how_each_rule_is_delivered() {
        let text = "version = 1\n[[rule]]\nname = \"a\"\ndirection = \"uplink\"\nfrom.mqtt = \"a/{device}\"\n\
            to.address = \"devices/{device}/messages/events\"\n[[rule]]\nname = \"b\"\ndirection = \"both\"\n\
            from.mqtt = \"b/{device}\"\nto.address = \"b/{device}\"\ndelivery.ack = \"on-store\"\n";
        let source = fieldgate_mappings::Source { name: "m.toml", text };
        let rules = RuleSet::load(&[source]).unwrap();
        assert_eq!(
            deliveries(&rules),
            [
                "  `a` (m.toml:3 @bd65b9cd): acknowledged when the hub accepts",
                "  `b` (m.toml:8 @bd65b9cd): acknowledged when the disk has it; kept until the hub accepts, \
                 refused when full; a dead letter if the hub refuses it",
            ]
        );
    }

    #[test]
    fn the_summary_shows_listeners_connectors_and_routes() {
        let text = "[coap]\nlisten = []\n[http]\nlisten = []\n\
            [[ssl_profile]]\nname = \"s\"\ncert_file = \"c\"\nprivate_key_file = \"k\"\nprotocols = [\"TLSv1.3\"]\n\
            [[listener]]\nssl_profile = \"s\"\nconnector = \"B\"\nauthenticate_peer = true\n\
            [[listener]]\nport = 1\nssl_profile = \"s\"\nrequire_ssl = false\nwebsocket = true\n\
            [[listener]]\nprotocol = \"mqtt\"\nhost = \"0.0.0.0\"\nssl_profile = \"s\"\nwebsocket = true\nallow_anonymous = false\n\
            [[listener]]\nprotocol = \"mqtt\"\n\
            [[connector]]\nname = \"A\"\nhost = \"a.example\"\nfailover = [\"b.example:7\"]\nssl_profile = \"s\"\nconnect = \"start\"\n\
            [[connector]]\nname = \"B\"\nhost = \"::1\"\nmode = \"per-connection\"\n\
            transport = \"websocket\"\nproxy = \"http://u:hidden@proxy.example:3128\"\n\
            [[link_route]]\nprefix = \"x\"\nconnector = \"B\"\ndirection = \"in\"\n\
            [[link_route]]\npattern = \"x/#\"\nconnector = \"B\"\ndirection = \"out\"\n";
        assert_eq!(
            summary_of(text),
            "AMQP     127.0.0.1:5671   TLS 1.3; MSSBCBS; devices bring tokens; all go to `B`
         127.0.0.1:1   plain text or TLS 1.3, also by WebSocket; ANONYMOUS, MSSBCBS, or no SASL; devices need no token
MQTT     0.0.0.0:8883   TLS 1.3, also by WebSocket; no device gets in without credentials
         127.0.0.1:1883   plain text; devices are who they say they are
CoAP     off
HTTP     off
admin    127.0.0.1:9464   /metrics and /healthz
hub      the embedded hub
         127.0.0.1:5671   AMQP over TLS as `localhost`; registers unknown devices
mappings the built-in azure-iot-hub.toml
routes   `A`: a.example:5671, then b.example:7, TLS 1.3; shared by 500 devices at most, from the start, held 60 s through an outage
           both ways: $cbs, devices
routes   `B`: [::1]:80, plain text, WebSocket at /$iothub/websocket, through the proxy proxy.example:3128; a connection for each device
           in: x
           out: pattern x/#"
        );
    }
}
