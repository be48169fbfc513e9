//! `[[link_route]]`: which addresses of devices' links go to which connector.

use std::fmt;
use std::sync::Arc;

use serde::Deserialize;

use super::connectors::{self, Connector};
use super::error::{ConfigError, Source};
use super::names;

/// Addresses that go to a connector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkRoute {
    /// Which addresses.
    pub address: RouteAddress,
    /// Which links.
    pub direction: Direction,
    /// Index into [`Config::connectors`](super::Config::connectors).
    pub connector: usize,
}

/// Addresses by their segments, which `/` and `.` divide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteAddress {
    /// Those that begin with these segments; without a divider at either end.
    Prefix(Arc<str>),
    /// Those whose segments are these; `*` stands for one, `#` for none or more.
    Pattern(Arc<str>),
}

/// Which way messages go, seen from the gateway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// From devices to the hub.
    In,
    /// From the hub to devices.
    Out,
    /// Both.
    #[default]
    Both,
}

impl Direction {
    /// Whether devices may send.
    #[must_use]
    pub fn is_in(self) -> bool {
        self != Self::Out
    }

    /// Whether devices may receive.
    #[must_use]
    pub fn is_out(self) -> bool {
        self != Self::In
    }
}

impl fmt::Display for RouteAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Prefix(prefix) => f.write_str(prefix),
            Self::Pattern(pattern) => write!(f, "pattern {pattern}"),
        }
    }
}

/// `[[link_route]]` as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RouteSection {
    prefix: Option<String>,
    pattern: Option<String>,
    #[serde(default)]
    direction: Direction,
    connector: Option<String>,
}

impl RouteSection {
    /// Whether it is for the hub of `[upstream]`.
    pub(super) fn names_upstream(&self) -> bool {
        self.connector.as_deref() == Some(connectors::UPSTREAM)
    }
}

const SECTION: &str = "link_route";

/// The routes that are written, and those of `[amqp] link_routes` for the connectors that none of them names.
pub(super) fn resolve(
    source: &Source<'_>,
    sections: &[RouteSection],
    usual: &[String],
    connectors: &[Connector],
) -> Result<Vec<LinkRoute>, ConfigError> {
    let mut routes: Vec<LinkRoute> = Vec::new();
    for (at, section) in sections.iter().enumerate() {
        let at = at.to_string();
        let (key, address) = address(source, &at, section)?;
        let connector = connector(source, &at, section, connectors)?;
        let direction = section.direction;
        let same = |other: &LinkRoute| {
            other.connector == connector
                && other.address == address
                && (other.direction.is_in() && direction.is_in()
                    || other.direction.is_out() && direction.is_out())
        };
        // Written routes come first, one for each section.
        if let Some(first) = routes.iter().position(same) {
            let line = source.line(&[SECTION, &first.to_string()]);
            let what = format!(
                "this route to connector `{}` stands in line {line} already",
                connectors[connector].name
            );
            return Err(source
                .wrong(&[SECTION, &at, key], what)
                .with_help("one for each direction, or one without `direction` for both"));
        }
        routes.push(LinkRoute { address, direction, connector });
    }
    let mut prefixes = Vec::new();
    for (at, prefix) in usual.iter().enumerate() {
        let wrong = |what: String| source.wrong(&["amqp", "link_routes", &at.to_string()], what);
        prefixes.push(RouteAddress::Prefix(segments(prefix, false).map_err(wrong)?));
    }
    for connector in 0..connectors.len() {
        if routes.iter().any(|route| route.connector == connector) {
            continue;
        }
        let direction = Direction::Both;
        routes.extend(prefixes.iter().map(|address| LinkRoute {
            address: address.clone(),
            direction,
            connector,
        }));
    }
    Ok(routes)
}

fn address(
    source: &Source<'_>,
    at: &str,
    section: &RouteSection,
) -> Result<(&'static str, RouteAddress), ConfigError> {
    let wrong = |key: &'static str| move |what: String| source.wrong(&[SECTION, at, key], what);
    match (&section.prefix, &section.pattern) {
        (Some(prefix), None) => {
            let prefix = segments(prefix, false).map_err(wrong("prefix"))?;
            Ok(("prefix", RouteAddress::Prefix(prefix)))
        }
        (None, Some(pattern)) => {
            let pattern = segments(pattern, true).map_err(wrong("pattern"))?;
            Ok(("pattern", RouteAddress::Pattern(pattern)))
        }
        (both, _) => {
            let what = if both.is_some() { "a route has one address" } else { "the route has no address" };
            Err(source.wrong(&[SECTION, at], what).with_help(
                "`prefix = \"devices\"` for all addresses below, or `pattern = \"devices/*/messages/#\"`",
            ))
        }
    }
}

fn connector(
    source: &Source<'_>,
    at: &str,
    section: &RouteSection,
    connectors: &[Connector],
) -> Result<usize, ConfigError> {
    match (&section.connector, connectors) {
        (Some(name), _) => {
            connectors.iter().position(|connector| *connector.name == **name).ok_or_else(|| {
                let known = connectors.iter().map(|connector| &*connector.name);
                names::unknown(source, &[SECTION, at, "connector"], connectors::SECTION, name, known)
            })
        }
        (None, [_]) => Ok(0),
        (None, several) => {
            let list: Vec<_> = several.iter().map(|connector| format!("`{}`", connector.name)).collect();
            Err(source
                .wrong(&[SECTION, at], "the route does not say which connector it leads to")
                .with_help(format!("`connector` names one of {}", list.join(", "))))
        }
    }
}

/// An address without dividers at its ends.
fn segments(text: &str, wild: bool) -> Result<Arc<str>, String> {
    let path = text.strip_prefix('/').unwrap_or(text).trim_end_matches(['/', '.']);
    let shown = text.escape_debug();
    if path.is_empty() {
        return Err(format!("`{shown}` names no address"));
    }
    for segment in path.split(['/', '.']) {
        if segment.is_empty() {
            return Err(format!("`{shown}` has an empty segment"));
        }
        if segment.chars().any(|c| c.is_control()) {
            return Err(format!("`{shown}` has a control character"));
        }
        match (wild, segment.contains(['*', '#'])) {
            (true, true) if segment.len() > 1 => {
                return Err(format!(
                    "`{segment}` in `{shown}`: `*` (one segment) and `#` (any number) stand for whole segments"
                ));
            }
            (false, true) => {
                return Err(format!(
                    "`{shown}` is a prefix, and `*` and `#` mean something in a `pattern` only"
                ));
            }
            _ => {}
        }
    }
    Ok(path.into())
}
