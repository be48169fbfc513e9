//! The hubs behind the connectors, by their names.

use std::fmt;

use crate::router::routes::ConnectorIndex;
use crate::sas::Resource;

/// The names of the hubs that connectors lead to. Connectors that share a name lead to the same hub.
#[derive(Debug)]
pub(crate) struct Hubs {
    /// The names of each connector's hub, in canonical form.
    names: Vec<Vec<String>>,
    /// The first connector of each connector's hub.
    first: Vec<ConnectorIndex>,
}

impl Hubs {
    /// The hubs of the connectors, in the order of the configuration, each with all its names; the first of them is
    /// the one that is sent.
    pub(crate) fn new<N: AsRef<str>>(
        connectors: impl IntoIterator<Item = impl IntoIterator<Item = N>>,
    ) -> Self {
        let canonical = |name: N| Resource::new(name.as_ref(), "").host().to_owned();
        let names: Vec<Vec<String>> =
            connectors.into_iter().map(|names| names.into_iter().map(canonical).collect()).collect();
        let mut first: Vec<ConnectorIndex> = Vec::with_capacity(names.len());
        for (index, of) in names.iter().enumerate() {
            let same = names[..index].iter().position(|names| names.iter().any(|name| of.contains(name)));
            first.push(same.map_or(ConnectorIndex(index), |same| first[same]));
        }
        Self { names, first }
    }

    /// The hub of this name, by its first connector. `host` is canonical: lower case, no port.
    pub(super) fn find(&self, host: &str) -> Option<ConnectorIndex> {
        self.names.iter().position(|names| names.iter().any(|name| name == host)).map(|at| self.first[at])
    }

    /// The hub that a connector leads to, by its first connector.
    pub(crate) fn of(&self, connector: ConnectorIndex) -> ConnectorIndex {
        self.first.get(connector.0).copied().unwrap_or(connector)
    }

    /// Whether a connector's hub has this name, which is canonical.
    pub(super) fn is_of(&self, connector: ConnectorIndex, host: &str) -> bool {
        self.names.get(connector.0).is_some_and(|names| names.iter().any(|name| name == host))
    }

    /// The name by which a connector's hub is called in addresses.
    pub(crate) fn name(&self, connector: ConnectorIndex) -> Option<&str> {
        self.names.get(connector.0)?.first().map(String::as_str)
    }
}

impl fmt::Display for Hubs {
    /// The names that devices are told.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names: Vec<&str> =
            self.names.iter().filter_map(|names| names.first()).map(|it| &**it).collect();
        names.sort_unstable();
        names.dedup();
        f.write_str(&names.join(" or "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connectors_that_share_a_name_lead_to_one_hub() {
        let hubs =
            Hubs::new([vec!["Hub.example:5671", "localhost"], vec!["other"], vec!["HUB.EXAMPLE"], vec![]]);
        let of = |index| hubs.of(ConnectorIndex(index)).0;
        assert_eq!([of(0), of(1), of(2), of(3), of(9)], [0, 1, 0, 3, 9]);
        assert_eq!(hubs.find("localhost"), Some(ConnectorIndex(0)));
        assert_eq!(hubs.find("hub.example"), Some(ConnectorIndex(0)));
        assert_eq!((hubs.find("Hub.example"), hubs.find("")), (None, None));
        assert!(hubs.is_of(ConnectorIndex(0), "localhost") && !hubs.is_of(ConnectorIndex(2), "localhost"));
        assert_eq!(hubs.name(ConnectorIndex(0)), Some("hub.example"));
        assert_eq!(hubs.to_string(), "hub.example or other");
    }
}
