//! What the words of Qpid Dispatch (0.4 to 1.19) mean here.

use std::collections::HashMap;
use std::path::Path;

use fieldgate_amqp::sasl::Mechanism;

use super::out::Out;
use super::reader::{Section, plain};
use super::values::{Fields, Value};
use super::{Import, Remark};
use crate::config::connectors::UPSTREAM;
use crate::config::error::{ConfigError, Source, beside, nearest};
use crate::config::mechanisms;

/// The settings of the sections that are carried over, in plain form: in one line, these names begin the next setting.
pub(super) const KEYS: &[&str] = &[
    "addr",
    "addexternalprefix",
    "allownosasl",
    "allowredirect",
    "allowunsecured",
    "authenticatepeer",
    "cacertfile",
    "certdb",
    "certfile",
    "ciphers",
    "connection",
    "connector",
    "containerid",
    "containername",
    "cost",
    "delexternalprefix",
    "dir",
    "direction",
    "distribution",
    "enable",
    "failoverlist",
    "failoverurls",
    "healthz",
    "host",
    "http",
    "id",
    "idletimeoutseconds",
    "initialhandshaketimeoutseconds",
    "keyfile",
    "level",
    "linkcapacity",
    "maxconnections",
    "maxframesize",
    "maxsessionframes",
    "maxsessions",
    "messageloggingcomponents",
    "metrics",
    "mode",
    "module",
    "multitenant",
    "name",
    "openproperties",
    "password",
    "passwordfile",
    "pattern",
    "policyvhost",
    "port",
    "prefix",
    "privatekeyfile",
    "protocolfamily",
    "protocols",
    "requireencryption",
    "requirepeerauth",
    "requiressl",
    "role",
    "routerid",
    "saslmechanisms",
    "saslpassword",
    "saslplugin",
    "saslusername",
    "socketaddressfamily",
    "sslprofile",
    "stripannotations",
    "trustedcerts",
    "trustedcertsfile",
    "uidformat",
    "uidnamemappingfile",
    "verifyhostname",
    "workerthreads",
];

/// Sections that are not carried over, and why.
const LEFT_BEHIND: [(&str, &str); 25] = [
    ("address", MESSAGES),
    ("fixedaddress", MESSAGES),
    ("waypoint", MESSAGES),
    ("exchange", MESSAGES),
    ("binding", MESSAGES),
    ("autolink", "the gateway makes no links of its own; a link route carries those that devices make"),
    ("router.config.address", MESSAGES),
    (
        "router.config.autolink",
        "the gateway makes no links of its own; a link route carries those that devices make",
    ),
    ("router.config.exchange", MESSAGES),
    ("router.config.binding", MESSAGES),
    ("vhost", POLICY),
    ("vhostusergroupsettings", POLICY),
    ("policyruleset", POLICY),
    ("policyappsettings", POLICY),
    ("authserviceplugin", "devices prove themselves to the hub; users are not kept or looked up here"),
    ("console", "metrics and health are under [admin]"),
    ("tcplistener", "TCP bridges are another program's"),
    ("tcpconnector", "TCP bridges are another program's"),
    ("httplistener", "HTTP bridges are another program's; [http] is for devices that speak HTTP"),
    ("httpconnector", "HTTP bridges are another program's; [http] is for devices that speak HTTP"),
    ("displayname", "names of certificates are not mapped"),
    ("displaynameservice", "names of certificates are not mapped"),
    ("interrouter", NETWORK),
    ("management", "it is managed by its configuration and read under [admin]"),
    ("dummy", "it does nothing"),
];

const MESSAGES: &str =
    "the gateway routes links and passes messages on as they are; it spreads none over several receivers";
const POLICY: &str = "who may use which address is said by tokens (`authorise`), link routes and the hub; limits of connections, \
                      sessions and links are under [amqp]";
const NETWORK: &str = "the gateway is not part of a network of routers";

/// What remains of a connector for those who name it.
struct Known {
    /// As Qpid's file calls it.
    original: String,
    /// As ours does; nothing if it was left behind.
    name: Option<String>,
    tls: bool,
}

/// A link route while others may still join it.
struct Route {
    key: &'static str,
    address: String,
    connector: String,
    lines: Vec<usize>,
    directions: [bool; 2],
}

struct Translator<'a> {
    source: &'a Source<'a>,
    /// Where paths are seen from, if not from the file that is written.
    base: Option<&'a Path>,
    remarks: Vec<Remark>,
    general: Out,
    amqp: Out,
    profiles: Out,
    listeners: Out,
    connectors: Out,
    known: Vec<Known>,
    routes: Vec<Route>,
    /// Written once, however many sections say so.
    has_workers: bool,
    has_level: bool,
    /// Profiles whose certificate is shown, and asked for, by listeners: by name, whether it must be answered.
    asking: HashMap<String, bool>,
}

/// Writes the sections as ours.
pub(super) fn translate(
    source: &Source<'_>,
    sections: &[Section],
    base: Option<&Path>,
) -> Result<Import, ConfigError> {
    let mut translator = Translator {
        source,
        base,
        remarks: Vec::new(),
        general: Out::default(),
        amqp: Out::default(),
        profiles: Out::default(),
        listeners: Out::default(),
        connectors: Out::default(),
        known: Vec::new(),
        routes: Vec::new(),
        has_workers: false,
        has_level: false,
        asking: HashMap::new(),
    };
    translator.run(sections)?;
    Ok(translator.finish())
}

impl Translator<'_> {
    fn path(&self, text: &str) -> String {
        beside(self.base, Path::new(text)).display().to_string()
    }

    fn remark(&mut self, line: usize, what: impl Into<String>) {
        self.remarks.push(Remark { line, what: what.into() });
    }

    /// Who is referred to goes before who refers: connectors, routes, listeners, and last the profiles.
    fn run(&mut self, sections: &[Section]) -> Result<(), ConfigError> {
        let source = self.source;
        let mut kinds: Vec<(String, &Section)> =
            sections.iter().map(|section| (plain(&section.name), section)).collect();
        const ORDER: [&str; 6] = ["router", "container", "log", "policy", "connector", "linkroute"];
        kinds.sort_by_key(|(kind, _)| match kind.as_str() {
            "linkroutepattern" | "router.config.linkroute" => 5,
            "listener" => 6,
            "sslprofile" => 7,
            kind => ORDER.iter().position(|known| *known == kind).unwrap_or(0),
        });
        for (kind, section) in &kinds {
            let fields = Fields::new(source, section);
            match kind.as_str() {
                "router" | "container" => self.router(fields)?,
                "log" => self.log(fields),
                "policy" => self.policy(fields)?,
                "connector" => self.connector(fields)?,
                "linkroute" | "linkroutepattern" | "router.config.linkroute" => self.link_route(fields)?,
                "listener" => self.listener(fields)?,
                "sslprofile" => self.profile(fields)?,
                other => self.left_behind(section, other),
            }
        }
        if !self.known.iter().any(|connector| connector.name.is_some()) {
            let last = sections.last().map_or(1, |section| section.line);
            return Err(source.on_line(last, "the file has no connector that leads to a hub or broker").with_help(
                "`connector { name: HUB  host: hub.example.net  port: 5671  role: route-container  sslProfile: … }`",
            ));
        }
        Ok(())
    }

    fn left_behind(&mut self, section: &Section, kind: &str) {
        let why = LEFT_BEHIND.iter().find(|(name, _)| *name == kind).map(|(_, why)| (*why).to_owned());
        let why = why.unwrap_or_else(|| {
            let known = ["router", "listener", "connector", "sslProfile", "linkRoute", "log", "policy"];
            match nearest(&section.name, known) {
                Some(near) => format!("no such section is known; was `{near}` meant?"),
                None => "no such section is known".into(),
            }
        });
        self.remark(section.line, format!("`{}` is not carried over: {why}", section.name));
    }

    fn router(&mut self, mut fields: Fields<'_>) -> Result<(), ConfigError> {
        if let Some(mode) = fields.take(&["mode"])
            && !mode.text.eq_ignore_ascii_case("standalone")
        {
            self.remark(mode.line, format!("`mode: {}` is not carried over: {NETWORK}", mode.text));
        }
        if let Some((threads, value)) = fields.number(&["workerthreads"])? {
            if !std::mem::replace(&mut self.has_workers, true) {
                self.general.section(fields.line, "[runtime]");
                self.general.bare(value.line, "workers", threads.min(256), "");
            }
        }
        let identity = "links keep the container-id of their device where the hub looks at it, in its name";
        fields.refuse(&["id", "routerid", "containername"], identity, &mut self.remarks);
        fields.ignore(&[
            "defaultdistribution",
            "metadata",
            "debugdump",
            "debugdumpfile",
            "saslconfigname",
            "saslconfigpath",
            "saslconfigdir",
        ]);
        fields.finish(&["mode", "id", "workerthreads"], &mut self.remarks);
        Ok(())
    }

    fn log(&mut self, mut fields: Fields<'_>) {
        let module = fields.take(&["module"]).map_or("DEFAULT", |value| value.text).to_ascii_uppercase();
        let enable = fields.take(&["enable", "level"]);
        let level = enable.map(|value| value.text.trim_end_matches('+').to_ascii_lowercase());
        match (module.as_str(), level.as_deref(), enable) {
            ("DEFAULT", Some(word), Some(value)) => {
                let level = match word {
                    "trace" => "trace",
                    "debug" => "debug",
                    "warning" => "warn",
                    "error" | "critical" => "error",
                    "none" => "off",
                    _ => "info",
                };
                if !std::mem::replace(&mut self.has_level, true) {
                    self.general.section(fields.line, "[log]");
                    self.general.text(value.line, "level", level, "");
                }
            }
            ("PROTOCOL", Some("trace"), Some(value)) => self.remark(
                value.line,
                "frames are traced by `--trace-frames`, or `trace_frames = true` under [log]",
            ),
            _ => self.remark(
                fields.line,
                format!("the log of `{module}` is not carried over: [log.modules] has other names"),
            ),
        }
        fields.refuse(
            &["output", "outputfile"],
            "the log goes to standard error, for the system's journal",
            &mut self.remarks,
        );
        fields.ignore(&["timestamp", "includetimestamp", "source", "includesource", "timestampformat"]);
        fields.finish(&["module", "enable", "outputfile"], &mut self.remarks);
    }

    fn policy(&mut self, mut fields: Fields<'_>) -> Result<(), ConfigError> {
        if let Some((most, value)) = fields.number(&["maxconnections", "maximumconnections"])? {
            if self.amqp.text.is_empty() {
                self.amqp.bare(value.line, "max_connections", most.max(1), "of each listener");
            }
        }
        fields.refuse(
            &[
                "enablevhostpolicy",
                "enableaccessrules",
                "policydir",
                "policyfolder",
                "defaultvhost",
                "maxmessagesize",
                "enablevhostnamepatterns",
            ],
            POLICY,
            &mut self.remarks,
        );
        fields.finish(&["maxconnections"], &mut self.remarks);
        Ok(())
    }

    fn connector(&mut self, mut fields: Fields<'_>) -> Result<(), ConfigError> {
        let line = fields.line;
        let named = fields.take(&["name"]);
        let original = named.map_or_else(|| format!("connector-{line}"), |value| value.text.to_owned());
        let role = fields.take(&["role"]);
        if let Some(role) = role.filter(|role| matches!(plain(role.text).as_str(), "interrouter" | "edge")) {
            self.remark(role.line, format!("connector `{original}` is not carried over: {NETWORK}"));
            self.known.push(Known { original, name: None, tls: false });
            return Ok(());
        }
        let name = match fit(&original) {
            name if name == UPSTREAM => format!("{name}-hub"),
            name => name,
        };
        let mut out = Out::default();
        out.section(line, "[[connector]]");
        let renamed = if name == original { "" } else { "renamed" };
        out.text(named.map_or(line, |value| value.line), "name", &name, renamed);

        let host = fields.take(&["host", "addr"]);
        let host_text = host.map_or("127.0.0.1", |value| value.text);
        let host_line = host.map_or(line, |value| value.line);
        out.text(host_line, "host", host_text, "");
        let (port, port_line) = fields.port()?.unwrap_or((5672, line));
        out.bare(port_line, "port", port, "");
        let profile = fields.take(&["sslprofile"]);
        let tls = profile.is_some();
        if let Some(profile) = profile {
            out.text(profile.line, "ssl_profile", &fit(profile.text), "");
        } else if !is_loopback(host_text) {
            out.bare(line, "allow_plain_text", true, "it has no sslProfile");
            self.remark(line, format!("connector `{original}` has no sslProfile: everybody on the way to {host_text} can read what devices say"));
        }
        if let Some((false, line)) = fields.flag(&["verifyhostname"])? {
            self.remark(line, "`verifyHostname: no` is not carried over: host names are always checked");
        }
        self.failover(&mut fields, &mut out, port);
        self.connector_sasl(&mut fields, &mut out)?;
        // `on-demand` is a word of the first versions; a `route-container` is connected to all the time.
        match role {
            Some(role) if plain(role.text) == "ondemand" => out.text(role.line, "connect", "on-demand", ""),
            Some(role) => out.text(role.line, "connect", "start", ""),
            None => {}
        }
        self.limits(&mut fields, &mut out)?;
        fields.refuse(
            &["openproperties"],
            "`open` says what the gateway is, or what the device said",
            &mut self.remarks,
        );
        fields.ignore(&[
            "cost",
            "allowredirect",
            "stripannotations",
            "linkcapacity",
            "protocolfamily",
            "socketaddressfamily",
            "messageloggingcomponents",
        ]);
        fields.refuse(&["policyvhost"], POLICY, &mut self.remarks);
        fields.finish(KEYS, &mut self.remarks);
        self.connectors.append(&out);
        self.known.push(Known { original, name: Some(name), tls });
        Ok(())
    }

    /// `failoverUrls: amqp://a:5672, b:5672`
    fn failover(&mut self, fields: &mut Fields<'_>, out: &mut Out, port: u16) {
        let Some(list) = fields.take(&["failoverurls", "failoverlist"]) else { return };
        let addresses = list.text.split([',', ' ']).map(str::trim).filter(|address| !address.is_empty());
        let addresses: Vec<String> = addresses
            .map(|address| {
                let address = address.split_once("://").map_or(address, |(_, address)| address);
                let address = address.split('/').next().unwrap_or(address);
                let has_port = address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
                if has_port { address.to_owned() } else { format!("{address}:{port}") }
            })
            .collect();
        out.list(list.line, "failover", &addresses, "");
    }

    fn connector_sasl(&mut self, fields: &mut Fields<'_>, out: &mut Out) -> Result<(), ConfigError> {
        let listed = fields.take(&["saslmechanisms"]);
        let user = fields.take(&["saslusername"]);
        let password = fields.take(&["saslpassword"]);
        let mut list = listed.map(|value| self.mechanisms(value)).unwrap_or_default();
        let plain = user.is_some() && password.is_some();
        if let Some(value) = listed
            && !plain
            && let Some(at) = list.iter().position(|mechanism| *mechanism == Mechanism::Plain)
        {
            list.remove(at);
            self.remark(
                value.line,
                "PLAIN is not carried over: there are no `saslUsername` and `saslPassword`",
            );
        }
        // Qpid takes the strongest that both know; here the first that there is a credential for counts.
        list.sort_by_key(|mechanism| match mechanism {
            Mechanism::External => 0,
            Mechanism::Plain => 1,
            Mechanism::Mssbcbs => 2,
            Mechanism::Anonymous => 3,
        });
        if let Some(value) = listed.filter(|_| !list.is_empty()) {
            let names: Vec<_> = list.iter().map(|mechanism| mechanism.name()).collect();
            out.list(value.line, "sasl_mechanisms", &names, "");
        }
        let (Some(user), Some(password)) = (user, password) else {
            if let Some(alone) = user.or(password) {
                self.remark(
                    alone.line,
                    format!("`{}` is not carried over: user and password go together", alone.key),
                );
            }
            return Ok(());
        };
        out.text(user.line, "sasl_username", user.text, "");
        match password.text.split_once(':') {
            Some(("file", path)) => {
                out.text(password.line, "sasl_password_file", &self.path(path.trim()), "")
            }
            Some(("env", variable)) => {
                let what = format!("comes from the environment variable {}", variable.trim().escape_debug());
                return Err(self
                    .source
                    .on_line(password.line, format!("`{}` {what}", password.key))
                    .with_help(
                        "`saslPassword: file:PATH`, with a file that only its user may read (chmod 600)",
                    ));
            }
            Some(("pass", text)) => {
                out.text(password.line, "sasl_password", text.trim(), "better in a sasl_password_file")
            }
            _ => out.text(password.line, "sasl_password", password.text, "better in a sasl_password_file"),
        }
        Ok(())
    }

    fn mechanisms(&mut self, value: Value<'_>) -> Vec<Mechanism> {
        let mut mechanisms = Vec::new();
        for word in value
            .text
            .split(|c: char| c.is_whitespace() || matches!(c, ',' | ';'))
            .filter(|word| !word.is_empty())
        {
            match mechanisms::by_name(word) {
                Ok(mechanism) if !mechanisms.contains(&mechanism) => mechanisms.push(mechanism),
                Ok(_) => {}
                Err(_) => {
                    let word = word.escape_debug();
                    self.remark(value.line, format!("{word} is not carried over: ANONYMOUS, PLAIN, EXTERNAL and MSSBCBS are spoken here"));
                }
            }
        }
        mechanisms
    }

    /// What listeners and connectors bound alike.
    fn limits(&mut self, fields: &mut Fields<'_>, out: &mut Out) -> Result<(), ConfigError> {
        if let Some((seconds, value)) = fields.number(&["idletimeoutseconds"])? {
            match seconds {
                0 => self.remark(
                    value.line,
                    "no idle time-out is not carried over: a peer that is gone must be noticed",
                ),
                1..=3_600 => out.text(value.line, "idle_time_out", &format!("{seconds}s"), ""),
                _ => out.text(value.line, "idle_time_out", "1h", "the longest there is"),
            }
        }
        if let Some((bytes, value)) = fields.number(&["maxframesize"])? {
            out.bare(value.line, "max_frame_bytes", bytes.clamp(512, 16 << 20), "");
        }
        if let Some((sessions, value)) = fields.number(&["maxsessions"])? {
            out.bare(value.line, "max_sessions", sessions.clamp(1, 65_535), "");
        }
        let window = "the window of a session is `window_bytes` under [amqp]";
        fields.refuse(&["maxsessionframes"], window, &mut self.remarks);
        Ok(())
    }

    fn link_route(&mut self, mut fields: Fields<'_>) -> Result<(), ConfigError> {
        let line = fields.line;
        let (prefix, pattern) = (fields.take(&["prefix"]), fields.take(&["pattern"]));
        let (key, address) = match (prefix, pattern) {
            (Some(prefix), None) => ("prefix", prefix),
            (None, Some(pattern)) => ("pattern", pattern),
            _ => {
                return Err(self
                    .source
                    .on_line(line, "a link route has a `prefix` or a `pattern`")
                    .with_help("`linkRoute { prefix: devices/  connection: HUB  direction: in }`"));
            }
        };
        if let Some(rewrite) = fields.take(&["addexternalprefix", "delexternalprefix"]) {
            self.remark(
                rewrite.line,
                format!("the route of `{}` is not carried over: addresses are not rewritten", address.text),
            );
            return Ok(());
        }
        let directions = match fields.take(&["direction", "dir"]) {
            None => [true, true],
            Some(way) if way.text.eq_ignore_ascii_case("in") => [true, false],
            Some(way) if way.text.eq_ignore_ascii_case("out") => [false, true],
            Some(way) => {
                return Err(fields
                    .wrong(way, "is no direction")
                    .with_help("`in`: devices send; `out`: they receive"));
            }
        };
        let container = fields.take(&["containerid"]);
        let named = fields.take(&["connection", "connector"]);
        fields.ignore(&["name", "distribution", "identity"]);
        let connector = match (named, container) {
            (Some(value), _) => self.connector_called(value)?,
            (None, container) => self.only_connector(line, container)?,
        };
        fields.finish(KEYS, &mut self.remarks);
        let Some(connector) = connector else {
            self.remark(
                line,
                format!("the route of `{}` is not carried over: its connector is not", address.text),
            );
            return Ok(());
        };
        let trimmed = |address: &str| address.trim_start_matches('/').trim_end_matches(['/', '.']).to_owned();
        let same = self.routes.iter_mut().find(|route| {
            route.key == key
                && route.connector == connector
                && trimmed(&route.address) == trimmed(address.text)
        });
        match same {
            Some(route) => {
                route.lines.push(line);
                route.directions =
                    [route.directions[0] || directions[0], route.directions[1] || directions[1]];
            }
            None => self.routes.push(Route {
                key,
                address: address.text.into(),
                connector,
                lines: vec![line],
                directions,
            }),
        }
        Ok(())
    }

    fn connector_called(&self, value: Value<'_>) -> Result<Option<String>, ConfigError> {
        if let Some(known) = self.known.iter().find(|known| known.original == value.text) {
            return Ok(known.name.clone());
        }
        let names: Vec<&str> = self.known.iter().map(|known| known.original.as_str()).collect();
        let what = format!("there is no connector called `{}`", value.text.escape_debug());
        let error = self.source.on_line(value.line, what);
        Err(match nearest(value.text, names.iter().copied()) {
            Some(near) => error.with_help(format!("did you mean `{near}`? there are {}", names.join(", "))),
            None if names.is_empty() => {
                error.with_help("`connector { name: …  host: … }` somewhere in the file")
            }
            None => error.with_help(format!("there are {}", names.join(", "))),
        })
    }

    /// The connector of a route that names none, or names the container at its end.
    fn only_connector(
        &mut self,
        line: usize,
        container: Option<Value<'_>>,
    ) -> Result<Option<String>, ConfigError> {
        let carried: Vec<&String> = self.known.iter().filter_map(|known| known.name.as_ref()).collect();
        let [only] = carried.as_slice() else {
            return Err(self
                .source
                .on_line(line, "the route does not say which connector it leads to")
                .with_help("`connection: NAME`, with the name of one of the connectors"));
        };
        let only = (*only).clone();
        if let Some(container) = container {
            self.remark(
                container.line,
                format!("the container `{}` is taken to be where connector `{only}` leads", container.text),
            );
        }
        Ok(Some(only))
    }

    fn listener(&mut self, mut fields: Fields<'_>) -> Result<(), ConfigError> {
        let line = fields.line;
        let named = fields.take(&["name"]);
        let shown = named.map_or_else(
            || format!("the listener of line {line}"),
            |value| format!("listener `{}`", value.text),
        );
        let role = fields.take(&["role"]).filter(|role| !role.text.eq_ignore_ascii_case("normal"));
        if let Some(role) = role {
            let why = match plain(role.text).as_str() {
                "routecontainer" | "ondemand" => {
                    "hubs and brokers are connected to; they do not connect here"
                }
                _ => NETWORK,
            };
            self.remark(role.line, format!("{shown} is not carried over: {why}"));
            return Ok(());
        }
        if let Some((true, line)) = fields.flag(&["http"])? {
            self.remark(line, format!("{shown} is not carried over: AMQP over WebSockets and the console are not spoken; metrics are under [admin]"));
            return Ok(());
        }
        let mut out = Out::default();
        out.section(line, "[[listener]]");
        if let Some(name) = named {
            let fitting = fit(name.text);
            out.text(name.line, "name", &fitting, if fitting == name.text { "" } else { "renamed" });
        }
        let family = fields.take(&["socketaddressfamily", "protocolfamily"]);
        let every = if family.is_some_and(|family| family.text.eq_ignore_ascii_case("IPv6")) {
            "::"
        } else {
            "0.0.0.0"
        };
        let host = match fields.take(&["host", "addr"]) {
            None => (every, line, "every network: no host is written"),
            Some(value) if value.text == "*" => (every, value.line, ""),
            Some(value) => (value.text, value.line, ""),
        };
        out.text(host.1, "host", host.0, host.2);
        let (port, port_line) = fields.port()?.unwrap_or((5672, line));
        out.bare(port_line, "port", port, "");
        let profile = self.listener_tls(&mut fields, &mut out)?;
        self.listener_sasl(&mut fields, &mut out, profile, is_loopback(host.0))?;
        self.limits(&mut fields, &mut out)?;
        if let Some((seconds @ 1..=3_600, value)) = fields.number(&["initialhandshaketimeoutseconds"])? {
            self.remark(value.line, format!("the time for a handshake is the same for all listeners: `open_time_out = \"{seconds}s\"` under [amqp]"));
        }
        fields.refuse(
            &["openproperties", "failoverurls", "failoverlist"],
            "the device is told what the hub says",
            &mut self.remarks,
        );
        fields.refuse(&["multitenant", "policyvhost"], POLICY, &mut self.remarks);
        fields.ignore(&[
            "cost",
            "stripannotations",
            "linkcapacity",
            "healthz",
            "metrics",
            "websockets",
            "messageloggingcomponents",
            "httproot",
            "httprootdir",
        ]);
        fields.finish(KEYS, &mut self.remarks);
        self.listeners.append(&out);
        Ok(())
    }

    fn listener_tls(
        &mut self,
        fields: &mut Fields<'_>,
        out: &mut Out,
    ) -> Result<Option<String>, ConfigError> {
        let profile = fields.take(&["sslprofile"]);
        let unsecured = fields.flag(&["allowunsecured"])?.map(|(allowed, line)| (!allowed, line));
        let required = match fields.flag(&["requiressl"])? {
            None => fields.flag(&["requireencryption"])?.or(unsecured),
            some => {
                fields.ignore(&["requireencryption"]);
                some
            }
        };
        fields.refuse(
            &["trustedcerts", "trustedcertsfile"],
            "client certificates are checked with the profile's caCertFile",
            &mut self.remarks,
        );
        let Some(profile) = profile else {
            if let Some((true, line)) = required {
                return Err(self
                    .source
                    .on_line(line, "TLS is required, and the listener has no `sslProfile`")
                    .with_help(
                        "`sslProfile: NAME`, with the name of an sslProfile that has a certificate and a key",
                    ));
            }
            return Ok(None);
        };
        let name = fit(profile.text);
        out.text(profile.line, "ssl_profile", &name, "");
        match required {
            Some((true, line)) => out.bare(line, "require_ssl", true, ""),
            Some((false, line)) => out.bare(line, "require_ssl", false, "plain text is taken too"),
            None => out.bare(
                profile.line,
                "require_ssl",
                false,
                "plain text is taken too: requireSsl is not written",
            ),
        }
        Ok(Some(name))
    }

    /// Who is asked to prove what.
    fn listener_sasl(
        &mut self,
        fields: &mut Fields<'_>,
        out: &mut Out,
        profile: Option<String>,
        loopback: bool,
    ) -> Result<(), ConfigError> {
        let line = fields.line;
        let asked = match fields.flag(&["authenticatepeer", "requirepeerauth"])? {
            Some(asked) => Some(asked),
            None => fields.flag(&["allownosasl"])?.map(|(allowed, line)| (!allowed, line)),
        };
        fields.ignore(&["allownosasl"]);
        fields.refuse(
            &["saslplugin"],
            "users are not looked up; devices prove themselves to the hub",
            &mut self.remarks,
        );
        let listed = fields.take(&["saslmechanisms"]);
        let mut list = listed.map(|value| self.mechanisms(value)).unwrap_or_default();
        let authenticate = matches!(asked, Some((true, _)));
        let at = listed.map_or(line, |value| value.line);
        if list.contains(&Mechanism::Plain) {
            if self.known.iter().all(|known| known.tls || known.name.is_none()) {
                self.remark(
                    at,
                    "PLAIN: user and password go on to the hub, which checks them; no users are kept here",
                );
            } else {
                list.retain(|mechanism| *mechanism != Mechanism::Plain);
                self.remark(at, "PLAIN is not carried over: passwords go on to the hub, and not every connector has an sslProfile");
            }
        }
        if list.contains(&Mechanism::External) {
            match &profile {
                Some(profile) => {
                    let only = authenticate && list == [Mechanism::External];
                    let required = self.asking.entry(profile.clone()).or_insert(only);
                    *required &= only;
                }
                None => {
                    list.retain(|mechanism| *mechanism != Mechanism::External);
                    self.remark(at, "EXTERNAL is not carried over: the listener has no sslProfile, so no certificate comes");
                }
            }
        }
        if authenticate && list.contains(&Mechanism::Anonymous) {
            list.retain(|mechanism| *mechanism != Mechanism::Anonymous);
            self.remark(at, "ANONYMOUS is not carried over: `authenticatePeer: yes` asks for more; devices that bring tokens may say MSSBCBS");
        }
        if let Some((authenticate, line)) = asked {
            out.bare(line, "authenticate_peer", authenticate, "");
        }
        if let Some(value) = listed.filter(|_| !list.is_empty()) {
            let names: Vec<_> = list.iter().map(|mechanism| mechanism.name()).collect();
            out.list(value.line, "sasl_mechanisms", &names, "");
        }
        // A hub whose `$cbs` is routed wants tokens, and then nobody needs to be let in without.
        let by_token =
            self.routes.iter().any(|route| route.address.trim_end_matches('/').eq_ignore_ascii_case("$cbs"));
        if by_token {
            out.text(line, "authorise", "token", "$cbs is routed: devices bring tokens");
        } else if !authenticate && !loopback {
            let line = asked.map_or(line, |(_, line)| line);
            out.bare(line, "allow_anonymous", true, "authenticatePeer is not `yes`");
            self.remark(line, "everybody who reaches this listener may speak for any device; `authenticatePeer` is not `yes`");
        }
        Ok(())
    }

    fn profile(&mut self, mut fields: Fields<'_>) -> Result<(), ConfigError> {
        let line = fields.line;
        let Some(name) = fields.take(&["name"]) else {
            return Err(self.source.on_line(line, "the sslProfile has no name").with_help("`name: hub-tls`"));
        };
        let mut out = Out::default();
        out.section(line, "[[ssl_profile]]");
        let fitting = fit(name.text);
        out.text(name.line, "name", &fitting, if fitting == name.text { "" } else { "renamed" });
        let ca = fields.take(&["cacertfile", "certdb"]);
        for (value, key) in [
            (ca, "ca_cert_file"),
            (fields.take(&["certfile"]), "cert_file"),
            (fields.take(&["privatekeyfile", "keyfile"]), "private_key_file"),
        ] {
            if let Some(value) = value {
                out.text(value.line, key, &self.path(value.text), "");
            }
        }
        if let Some(protocols) = fields.take(&["protocols"]) {
            let mut spoken = Vec::new();
            for word in protocols.text.split([' ', ',', ';', '\t']).filter(|word| !word.is_empty()) {
                match word {
                    "TLSv1.2" | "TLSv1.3" => spoken.push(word),
                    _ => self.remark(
                        protocols.line,
                        format!(
                            "{} is not carried over: TLSv1.2 and TLSv1.3 are spoken",
                            word.escape_debug()
                        ),
                    ),
                }
            }
            if !spoken.is_empty() {
                out.list(protocols.line, "protocols", &spoken, "");
            }
        }
        match (self.asking.get(&fitting), ca) {
            (Some(required), Some(_)) => {
                let word = if *required { "required" } else { "optional" };
                out.text(line, "client_certificates", word, "a listener offers EXTERNAL");
            }
            (Some(_), None) => {
                return Err(self
                    .source
                    .on_line(
                        line,
                        "a listener offers EXTERNAL, and its sslProfile has no CA to check certificates with",
                    )
                    .with_help("`caCertFile: FILE` with the certificates that sign the devices'"));
            }
            _ => {}
        }
        let encrypted = "keys are read unencrypted (`openssl pkey -in KEY -out NEW` writes one; chmod 600)";
        fields.refuse(&["password", "passwordfile"], encrypted, &mut self.remarks);
        fields.refuse(&["ciphers"], "TLS 1.2 and 1.3 with what is held to be safe today", &mut self.remarks);
        fields.refuse(
            &["uidformat", "uidnamemappingfile", "displaynamefile"],
            "names of certificates are not mapped",
            &mut self.remarks,
        );
        fields.finish(KEYS, &mut self.remarks);
        self.profiles.append(&out);
        Ok(())
    }

    fn finish(mut self) -> Import {
        let mut out = Out::default();
        out.line(0, "# Translated from a configuration of Qpid Dispatch Router. Paths are seen from this file's directory.");
        out.append(&self.general);
        out.section(0, "[amqp]");
        if self.listeners.text.is_empty() {
            out.bare(0, "listen", "[]", "");
        }
        out.bare(0, "link_routes", "[]", "all of them are below");
        out.append(&self.amqp);
        // The router heard AMQP only.
        for section in ["[mqtt]", "[coap]", "[http]"] {
            out.section(0, section);
            out.bare(0, "listen", "[]", "");
        }
        for part in [&self.profiles, &self.listeners, &self.connectors] {
            out.append(part);
        }
        for route in &self.routes {
            let line = route.lines.first().copied().unwrap_or(0);
            out.section(line, "[[link_route]]");
            out.text(line, route.key, &route.address, "");
            match route.directions {
                [true, false] => out.text(line, "direction", "in", ""),
                [false, true] => out.text(line, "direction", "out", ""),
                _ => {}
            }
            out.text(line, "connector", &route.connector, "");
        }
        self.remarks.sort_by_key(|remark| remark.line);
        Import { text: out.text, origins: out.origins, remarks: self.remarks }
    }
}

fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A name as ours may be.
fn fit(name: &str) -> String {
    let mut fitting = String::new();
    for c in name.chars().map(|c| if c.is_alphanumeric() || "-_.:/[] ".contains(c) { c } else { '-' }) {
        if fitting.len() + c.len_utf8() > 64 {
            break;
        }
        fitting.push(c);
    }
    fitting
}
