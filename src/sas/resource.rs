//! Resources: what tokens are for, and what is compared with them.

use std::fmt;

use super::percent_decode;

/// A host and a path below it, in one canonical form: the host in lower case without scheme and port, the
/// path in segments. Words of the path are in lower case too; the names that devices and modules bear keep
/// their case, in which they differ.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Resource {
    host: String,
    path: Vec<String>,
}

impl Resource {
    /// Reads a token's `sr` or a put-token's `name`: percent-encoded or not, with or without a scheme
    /// (`amqps://`, `sb://`, `https://`). `None` when it is badly encoded or names no host.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = percent_decode(text)?;
        let text = text.split_once("://").map_or(text.as_str(), |(_, rest)| rest);
        let (authority, path) = text.split_once('/').unwrap_or((text, ""));
        let host = without_port(authority).to_ascii_lowercase();
        (!host.is_empty()).then(|| Self { host, path: canonical_path(path) })
    }

    /// The resource at `path` (without percent-encoding) on `host`.
    #[must_use]
    pub fn new(host: &str, path: &str) -> Self {
        Self { host: without_port(host).to_ascii_lowercase(), path: canonical_path(path) }
    }

    /// The host's name or address, in lower case, without a port.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The path's segments; none of them is empty.
    #[must_use]
    pub fn path(&self) -> &[String] {
        &self.path
    }

    /// The device that the resource is or lies below.
    #[must_use]
    pub fn device(&self) -> Option<&str> {
        match self.path.as_slice() {
            [word, device, ..] if word == "devices" => Some(device),
            _ => None,
        }
    }

    /// Whether a token for this resource is good for `path`: the same, or below it by whole segments, so
    /// that `devices/pump-1` covers `devices/pump-1/messages` and not `devices/pump-10`.
    #[must_use]
    pub fn covers(&self, path: &[String]) -> bool {
        path.starts_with(&self.path)
    }

    /// The same resource with another path.
    #[must_use]
    pub fn with_path(&self, path: &[String]) -> Self {
        Self { host: self.host.clone(), path: path.to_vec() }
    }
}

/// The scope that is both a token's and that of the name it was put for: the longer of two paths of which one lies
/// below the other. `None` where neither does.
pub(crate) fn narrowed(scope: Vec<String>, name: &[String]) -> Option<Vec<String>> {
    // An identity in the name may be encoded although the rest is not.
    let mut name = name.to_vec();
    if let ([devices, named, ..], [_, id, ..]) = (name.as_mut_slice(), scope.as_slice())
        && devices == "devices"
        && percent_decode(named).as_ref() == Some(id)
    {
        named.clone_from(id);
    }
    if name.starts_with(&scope) {
        Some(name)
    } else if scope.starts_with(&name) {
        Some(scope)
    } else {
        None
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        self.path.iter().try_for_each(|segment| write!(f, "/{segment}"))
    }
}

impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// `authority` without its port. An IPv6 address keeps its brackets off as well: `[::1]:5671` is `::1`.
fn without_port(authority: &str) -> &str {
    if let Some(bracketed) = authority.strip_prefix('[') {
        return bracketed.split(']').next().unwrap_or(bracketed);
    }
    match authority.split_once(':') {
        // More than one colon and no brackets: an IPv6 address by itself.
        Some((_, port)) if port.contains(':') => authority,
        Some((host, _)) => host,
        None => authority,
    }
}

fn canonical_path(path: &str) -> Vec<String> {
    let mut segments: Vec<String> = Vec::new();
    for segment in path.split('/').filter(|segment| !segment.is_empty()) {
        // IoT Hub compares its own words without regard to case, and names of devices and modules with it.
        let is_name = match segments.as_slice() {
            [devices] => devices == "devices",
            [devices, _, modules] => devices == "devices" && modules == "modules",
            _ => false,
        };
        segments.push(if is_name { segment.to_owned() } else { segment.to_ascii_lowercase() });
    }
    segments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Vec<String> {
        Resource::new("h", text).path().to_vec()
    }

    #[test]
    fn every_way_of_writing_it_is_the_same_resource() {
        let plain = Resource::new("hub.example", "devices/Pump-1");
        for text in [
            "hub.example/devices/Pump-1",
            "HUB.example/Devices/Pump-1",
            "hub.example:5671/devices/Pump-1/",
            "hub.example%2Fdevices%2fPump-1",
            "amqps://hub.example:5671/devices/Pump-1",
            "amqps%3A%2F%2Fhub.example%2Fdevices%2FPump-1",
        ] {
            assert_eq!(Resource::parse(text).as_ref(), Some(&plain), "{text}");
        }
        assert_eq!(plain.device(), Some("Pump-1"));
        assert_eq!(plain.to_string(), "hub.example/devices/Pump-1");
        assert_ne!(Resource::parse("hub.example/devices/pump-1"), Some(plain));
    }

    #[test]
    fn hosts_lose_scheme_and_port() {
        for (text, host) in [
            ("localhost:5671", "localhost"),
            ("https://LocalHost", "localhost"),
            ("sb://ns.example/hub", "ns.example"),
            ("[::1]:5671/devices/d", "::1"),
            ("::1", "::1"),
            ("127.0.0.1:1", "127.0.0.1"),
        ] {
            assert_eq!(Resource::parse(text).unwrap().host(), host, "{text}");
        }
        for bad in ["", "/devices/d", "%2Fdevices", "amqps:///x", ":5671/x", "%", "[]"] {
            assert_eq!(Resource::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn covering_goes_by_whole_segments() {
        let device = Resource::new("h", "devices/d");
        assert!(device.covers(&path("devices/d")));
        assert!(device.covers(&path("Devices/d/Messages/deviceBound")));
        for other in ["devices/d2", "devices", "", "devices/D", "messages/events", "devices/d%2Fx"] {
            assert!(!device.covers(&path(other)), "{other}");
        }
        let hub = Resource::new("h", "");
        assert!(hub.covers(&path("devices/d")) && hub.covers(&path("messages/events")));
        assert_eq!(hub.device(), None);
    }

    #[test]
    fn the_narrower_of_two_scopes_is_what_both_cover() {
        let narrow = |scope: &str, name: &str| narrowed(path(scope), &path(name)).map(|it| it.join("/"));
        for (scope, name, both) in [
            ("devices/d", "devices/d", "devices/d"),
            ("devices/d", "", "devices/d"),
            ("", "devices/d", "devices/d"),
            ("devices/d", "devices/d/messages", "devices/d/messages"),
            ("devices/d/modules/m", "devices/d", "devices/d/modules/m"),
            ("devices/a:b", "devices/a%3Ab", "devices/a:b"),
        ] {
            assert_eq!(narrow(scope, name).as_deref(), Some(both), "{scope} {name}");
        }
        for (scope, name) in [
            ("devices/a", "devices/b"),
            ("devices/d1", "devices/d10"),
            ("devices/d10", "devices/d1"),
            ("devices/d", "devices/D"),
            ("devices/a%3Ab", "devices/a:b"),
            ("devices/d/modules/a", "devices/d/modules/b"),
        ] {
            assert_eq!(narrow(scope, name), None, "{scope} {name}");
        }
    }

    #[test]
    fn an_escape_inside_an_id_is_resolved_once_and_moves_no_segment() {
        // `a%2Fb` is a legal device id; its `sr` carries the percent sign encoded.
        let resource = Resource::parse("h%2Fdevices%2Fa%252Fb").unwrap();
        assert_eq!(resource.path(), ["devices", "a%2Fb"]);
    }
}
