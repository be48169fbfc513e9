//! Addresses in the configuration: where to listen, and which hub to connect to.

use std::fmt;
use std::net::SocketAddr;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::access::is_path;
use super::units::Secret;
use crate::sas::percent_decode;

/// Reads one address to listen on.
///
/// # Errors
/// A sentence that says what would be right.
pub fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let example = match text.rsplit_once(':') {
        Some(("localhost", port)) if port.parse::<u16>().is_ok() => format!("127.0.0.1:{port}"),
        Some(("" | "*", port)) if port.parse::<u16>().is_ok() => {
            return Err(format!(
                "`{text}` is not an address: write \"127.0.0.1:{port}\" for this machine only, or \"0.0.0.0:{port}\" for every network"
            ));
        }
        _ => "127.0.0.1:1883\" or \"[::1]:1883".into(),
    };
    Err(format!("`{text}` is not an address: write an IP address and a port, as \"{example}\""))
}

struct Listen(SocketAddr);

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Listen;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an address such as \"127.0.0.1:1883\"")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Listen, E> {
                parse_listen(text).map(Listen).map_err(E::custom)
            }
        }
        input.deserialize_str(Text)
    }
}

/// `#[serde(deserialize_with = "listen")]`: a list of addresses; one alone may stand without brackets.
pub(super) fn listen<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<SocketAddr>, D::Error> {
    struct Addresses;
    impl<'de> Visitor<'de> for Addresses {
        type Value = Vec<SocketAddr>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of addresses, as [\"127.0.0.1:1883\"], or [] for no listener")
        }
        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
            parse_listen(text).map(|address| vec![address]).map_err(E::custom)
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut addresses = Vec::new();
            while let Some(Listen(address)) = seq.next_element()? {
                addresses.push(address);
            }
            Ok(addresses)
        }
    }
    input.deserialize_any(Addresses)
}

/// As [`listen`], for a key whose absence means something of its own.
pub(super) fn some_listen<'de, D: Deserializer<'de>>(input: D) -> Result<Option<Vec<SocketAddr>>, D::Error> {
    listen(input).map(Some)
}

/// `amqps://[user:password@]host[:port]`: an AMQP 1.0 hub or router that is not an IoT Hub, or needs no key.
/// `wss://…[/path]`: the same over WebSocket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubUrl {
    /// Name or IP address (an IPv6 address without its brackets).
    pub host: String,
    /// 5671 where none is written; 443 over WebSocket.
    pub port: u16,
    /// For SASL PLAIN; absent: ANONYMOUS.
    pub credentials: Option<(String, Secret)>,
    /// The path of the WebSocket where it is one.
    pub websocket: Option<String>,
}

impl HubUrl {
    /// Reads the URL.
    ///
    /// # Errors
    /// A sentence that says what would be right; it does not repeat the URL, which may hold a password.
    pub fn parse(text: &str) -> Result<Self, String> {
        const FORM: &str =
            "write amqps://host:5671, or amqps://user:password@host:5671; for WebSocket wss://host:443/path";
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(format!("this is not a URL: {FORM}"));
        };
        let is_websocket = scheme.eq_ignore_ascii_case("wss");
        if !is_websocket && !scheme.eq_ignore_ascii_case("amqps") {
            return Err(format!("the hub is reached over TLS only, not by `{scheme}:` : {FORM}"));
        }
        let (rest, path) = match rest.find('/') {
            Some(at) if is_websocket => rest.split_at(at),
            _ => (rest.strip_suffix('/').unwrap_or(rest), ""),
        };
        let path = if matches!(path, "" | "/") { fieldgate_websocket::PATH } else { path };
        if !is_path(path) {
            return Err(format!("the path is none of a URL: {FORM}"));
        }
        if rest.contains(['/', '?', '#']) {
            return Err(format!("a path, query or fragment means nothing here: {FORM}"));
        }
        let (user_info, authority) = match rest.rsplit_once('@') {
            Some((user_info, authority)) => (Some(user_info), authority),
            None => (None, rest),
        };
        let credentials = match user_info.map(|info| info.split_once(':')) {
            None => None,
            Some(Some((user, password))) => {
                let decode = |part: &str, text: &str| {
                    percent_decode(text).ok_or_else(|| format!("the {part} is not properly percent-encoded"))
                };
                Some((decode("user", user)?, Secret::new(decode("password", password)?)))
            }
            Some(None) => return Err(format!("the user has no password: {FORM}")),
        };
        let (host, port) = split_host_port(authority, if is_websocket { 443 } else { 5671 })
            .ok_or_else(|| format!("host or port are wrong: {FORM}"))?;
        Ok(Self { host: host.into(), port, credentials, websocket: is_websocket.then(|| path.into()) })
    }
}

/// `host`, `host:port` or `[address]:port`.
pub(super) fn split_host_port(authority: &str, default: u16) -> Option<(&str, u16)> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']')?;
        host.parse::<std::net::Ipv6Addr>().ok()?;
        (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
    } else {
        match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        }
    };
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':');
    if host.is_empty() || !host.chars().all(legal) {
        return None;
    }
    let port = match port {
        Some(port) => port.parse().ok().filter(|port| *port != 0)?,
        None => default,
    };
    Some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_none_is_answered_with_one() {
        assert_eq!(parse_listen("127.0.0.1:1"), Ok(SocketAddr::from(([127, 0, 0, 1], 1))));
        assert!(parse_listen("[::1]:1883").is_ok());
        assert!(parse_listen("localhost:99").unwrap_err().contains("\"127.0.0.1:99\""));
        assert!(parse_listen(":99").unwrap_err().contains("\"0.0.0.0:99\""));
        assert!(parse_listen("1883").unwrap_err().contains("an IP address and a port"));
        assert!(parse_listen("127.0.0.1").unwrap_err().contains("an IP address and a port"));
    }

    #[test]
    fn hub_urls() {
        let plain = HubUrl::parse("amqps://hub.example").unwrap();
        assert_eq!((plain.host.as_str(), plain.port, plain.credentials), ("hub.example", 5671, None));
        let full = HubUrl::parse("AMQPS://us%40er:p%3Aw@[::1]:99/").unwrap();
        assert_eq!((full.host.as_str(), full.port), ("::1", 99));
        assert_eq!(full.credentials, Some(("us@er".into(), Secret::new("p:w"))));
        assert!(!format!("{full:?}").contains("p:w"));
        assert_eq!(full.websocket, None);
        let web = HubUrl::parse("wss://u:p@hub.example").unwrap();
        assert_eq!((web.port, web.websocket.as_deref()), (443, Some("/$iothub/websocket")));
        let web = HubUrl::parse("WSS://[::1]:99/a/b").unwrap();
        assert_eq!((web.host.as_str(), web.port, web.websocket.as_deref()), ("::1", 99, Some("/a/b")));
    }

    #[test]
    fn wrong_urls_are_refused_without_being_repeated() {
        for wrong in [
            "hub.example:5671",
            "amqp://hub:5672",
            "https://hub",
            "amqps://",
            "amqps://:5671",
            "amqps://hub:0",
            "amqps://hub:x",
            "amqps://hub:5671/path",
            "amqps://hub?x=y",
            "amqps://hidden@hub",
            "amqps://a:hidden%2@hub",
            "amqps://a:hidden%ff@hub",
            "amqps://[::1",
            "amqps://[nonsense]:5671",
            "amqps://a b",
            "ws://hub",
            "wss://u:hidden@hub/a b",
            "wss://hub?x=y",
            "wss://hub/p#q",
        ] {
            let error = HubUrl::parse(wrong).unwrap_err();
            assert!(!error.contains("hidden"), "{error}");
        }
    }
}
