//! What the words of Qpid Dispatch (0.4 to 1.19) mean here.

mod connectors;
mod listeners;

use std::collections::HashMap;
use std::path::Path;

use fieldgate_amqp::sasl::Mechanism;

use super::out::Out;
use super::reader::{Section, plain};
use super::values::{Fields, Value};
use super::{Import, Remark};
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
        if let Some((threads, value)) = fields.number(&["workerthreads"])?
            && !std::mem::replace(&mut self.has_workers, true)
        {
            self.general.section(fields.line, "[runtime]");
            self.general.bare(value.line, "workers", threads.min(256), "");
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
        if let Some((most, value)) = fields.number(&["maxconnections", "maximumconnections"])?
            && self.amqp.text.is_empty()
        {
            self.amqp.bare(value.line, "max_connections", most.max(1), "of each listener");
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
