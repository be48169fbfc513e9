//! An HTTP proxy between the gateway and a hub, as the configuration or the environment names it.

use std::fmt;

use super::address::split_host_port;
use super::connectors::HostPort;
use super::units::Secret;
use crate::sas::percent_decode;

/// The word for `HTTPS_PROXY` and `NO_PROXY`, which count only where it is written.
pub(super) const ENVIRONMENT: &str = "environment";

/// A proxy that makes tunnels (`CONNECT`).
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    /// Where it is.
    pub at: HostPort,
    /// User and password, for basic authentication.
    pub credentials: Option<(String, Secret)>,
    /// Hosts that are reached without it: `NO_PROXY`.
    except: Vec<String>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("at", &self.at).field("except", &self.except).finish_non_exhaustive()
    }
}

const FORM: &str = "write http://host:port, or http://user:password@host:port";

impl Proxy {
    /// Reads a URL; the password may be missing, for it may stand in a file: the user without one.
    ///
    /// # Errors
    /// A sentence that says what would be right; it does not repeat the URL, which may hold a password.
    pub(super) fn parse(text: &str) -> Result<(Self, Option<String>), String> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        if !scheme.eq_ignore_ascii_case("http") {
            return Err(format!(
                "a proxy is spoken to by `http:` here, not by `{}:` : {FORM}",
                scheme.escape_debug()
            ));
        }
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#']) {
            return Err(format!("a path, query or fragment means nothing here: {FORM}"));
        }
        let (info, authority) = match rest.rsplit_once('@') {
            Some((info, authority)) => (Some(info), authority),
            None => (None, rest),
        };
        let decode = |part: &str, text: &str| {
            let good = percent_decode(text).filter(|text| !text.contains(char::is_control));
            good.ok_or_else(|| format!("the {part} is not properly percent-encoded"))
        };
        let (mut credentials, mut user) = (None, None);
        match info.map(|info| info.split_once(':')) {
            None => {}
            Some(Some((user, password))) => {
                credentials = Some((decode("user", user)?, Secret::new(decode("password", password)?)));
            }
            Some(None) => user = Some(decode("user", info.unwrap_or_default())?),
        }
        // The user ends at the first colon (RFC 7617 2).
        let named = credentials.as_ref().map(|(user, _)| user).or(user.as_ref());
        if named.is_some_and(|user| user.contains(':')) {
            return Err("the user has a colon, which basic authentication cannot carry".into());
        }
        let (host, port) =
            split_host_port(authority, 80).ok_or_else(|| format!("host or port are wrong: {FORM}"))?;
        let at = HostPort { host: host.into(), port };
        Ok((Self { at, credentials, except: Vec::new() }, user))
    }

    /// The proxy that the environment names, if any.
    ///
    /// # Errors
    /// As [`parse`](Self::parse), with the variable's name.
    pub(super) fn from_environment(
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, String> {
        let either = |names: [&'static str; 2]| {
            names.into_iter().find_map(|name| Some((name, variable(name).filter(|text| !text.is_empty())?)))
        };
        let Some((name, text)) = either(["HTTPS_PROXY", "https_proxy"]) else { return Ok(None) };
        let (mut proxy, user) = Self::parse(&text).map_err(|what| format!("{name}: {what}"))?;
        if user.is_some() {
            return Err(format!("{name}: the user has no password"));
        }
        if let Some((_, text)) = either(["NO_PROXY", "no_proxy"]) {
            let hosts = text.split([',', ' ']).map(str::trim).filter(|host| !host.is_empty());
            proxy.except = hosts.map(str::to_ascii_lowercase).collect();
        }
        Ok(Some(proxy))
    }

    /// Whether this host is reached through it.
    pub(crate) fn is_for(&self, target: &HostPort) -> bool {
        let host = target.host.to_ascii_lowercase();
        !self.except.iter().any(|except| {
            if except == "*" {
                return true;
            }
            let (name, port) = match split_host_port(except, 1) {
                Some((name, _)) if name.len() == except.len() => (name, None),
                Some((name, port)) => (name, Some(port).filter(|_| except.ends_with(&format!(":{port}")))),
                // An IPv6 address without brackets.
                None => (except.as_str(), None),
            };
            let name = name.trim_start_matches("*.").trim_start_matches('.');
            let below = host.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'));
            port.is_none_or(|port| port == target.port) && !name.is_empty() && (host == name || below)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_a_url() {
        let (proxy, user) = Proxy::parse("http://us%40er:p%3Aw@proxy.example:3128/").unwrap();
        assert_eq!((proxy.at.to_string().as_str(), user), ("proxy.example:3128", None));
        assert_eq!(proxy.credentials, Some(("us@er".into(), Secret::new("p:w"))));
        assert!(!format!("{proxy:?}").contains("p:w"));
        let (proxy, user) = Proxy::parse("proxy.example").unwrap();
        assert_eq!((proxy.at.port, proxy.credentials, user), (80, None, None));
        assert_eq!(Proxy::parse("http://us@[::1]:8").unwrap().1, Some("us".into()));
        for wrong in [
            "https://hidden:hidden@proxy",
            "socks5://hidden:hidden@proxy",
            "http://u:hidden@proxy/path",
            "http://u:hidden@",
            "http://u:hidden@proxy:0",
            "http://u:hidden%ff@proxy",
            "http://u:hidden%0a@proxy",
            "http://hid%3Aden:p@proxy",
        ] {
            let error = Proxy::parse(wrong).unwrap_err();
            assert!(!error.contains("hidden"), "{error}");
        }
    }

    #[test]
    fn the_environment_says_for_whom() {
        let proxy = |https: Option<&str>, no: &str| {
            Proxy::from_environment(|name| match name {
                "HTTPS_PROXY" => https.map(str::to_owned),
                "no_proxy" => Some(no.to_owned()),
                _ => None,
            })
        };
        assert_eq!(proxy(None, "*"), Ok(None));
        assert_eq!(proxy(Some(""), ""), Ok(None));
        assert!(proxy(Some("ftp://x"), "").unwrap_err().starts_with("HTTPS_PROXY: "));
        let proxy =
            proxy(Some("http://p:1"), "localhost, .Example.net,*.example.org,10.0.0.7,[::1]:5671 hub:443")
                .unwrap()
                .unwrap();
        let through = |host: &str, port| proxy.is_for(&HostPort { host: host.into(), port });
        for (host, port) in [
            ("LOCALHOST", 1),
            ("hub.example.net", 1),
            ("example.net", 1),
            ("a.example.org", 1),
            ("10.0.0.7", 1),
            ("::1", 5671),
            ("hub", 443),
        ] {
            assert!(!through(host, port), "{host}:{port}");
        }
        for (host, port) in [("hubexample.net", 1), ("10.0.0.70", 1), ("::1", 5672), ("hub", 5671), ("x", 1)]
        {
            assert!(through(host, port), "{host}:{port}");
        }
        assert!(!Proxy { except: vec!["*".into()], ..proxy }.is_for(&HostPort { host: "x".into(), port: 1 }));
    }
}
