//! Listeners and TLS profiles.

use fieldgate_amqp::sasl::Mechanism;

use super::{KEYS, NETWORK, POLICY, Translator, fit, is_loopback};
use crate::config::error::ConfigError;
use crate::config::qpid::out::Out;
use crate::config::qpid::reader::plain;
use crate::config::qpid::values::Fields;

impl Translator<'_> {
    pub(super) fn listener(&mut self, mut fields: Fields<'_>) -> Result<(), ConfigError> {
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

    pub(super) fn profile(&mut self, mut fields: Fields<'_>) -> Result<(), ConfigError> {
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
}
