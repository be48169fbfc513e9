//! Connectors and the routes that lead to them.

use fieldgate_amqp::sasl::Mechanism;

use super::{KEYS, Known, NETWORK, POLICY, Route, Translator, fit, is_loopback};
use crate::config::connectors::UPSTREAM;
use crate::config::error::{ConfigError, nearest};
use crate::config::qpid::out::Out;
use crate::config::qpid::reader::plain;
use crate::config::qpid::values::{Fields, Value};

impl Translator<'_> {
    pub(super) fn connector(&mut self, mut fields: Fields<'_>) -> Result<(), ConfigError> {
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

    pub(super) fn link_route(&mut self, mut fields: Fields<'_>) -> Result<(), ConfigError> {
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
}
