//! Link routes: which connector an address belongs to.
//!
//! A route is a prefix or a pattern. Addresses are compared segment by segment, and `.` separates segments as `/`
//! does; `*` stands for one segment and `#` for any number, none included; a prefix is a pattern with `#` at its end.
//! Links into the gateway (the device sends) and out of it are routed apart. Where several routes match, the one whose
//! first difference from the others is the more literal wins: a word before `*`, `*` before an end, an end before `#`.
//!
//! All patterns stand in one tree that is walked once for an address, with all branches in step: a lookup costs at most
//! segments times patterns, and mostly one hash of each segment.

use std::collections::HashMap;
use std::fmt;

use fieldgate_amqp::performative::Role;

/// Addresses with more segments than this are not routed.
const MAX_SEGMENTS: usize = 64;

/// A connector, by its place in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ConnectorIndex(pub(crate) usize);

/// Which way the messages of a link go, as Qpid Dispatch names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The device sends.
    In,
    /// The device receives.
    Out,
}

impl Direction {
    /// The direction of a link whose device has this role.
    pub(crate) fn of(role: Role) -> Self {
        match role {
            Role::Sender => Self::In,
            Role::Receiver => Self::Out,
        }
    }
}

/// What addresses a route is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RouteMatch {
    /// These segments and everything below them. A separator at the end says no more.
    Prefix(String),
    /// A pattern with `*` and `#`.
    Pattern(String),
}

/// One route of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LinkRoute {
    /// The addresses.
    pub(crate) matches: RouteMatch,
    /// The direction; `None` is both.
    pub(crate) direction: Option<Direction>,
    /// Where the links go.
    pub(crate) connector: ConnectorIndex,
}

/// All routes of a gateway.
pub(crate) struct Routes {
    nodes: Vec<Node>,
    routes: Vec<End>,
    /// The routes as they were written, for messages.
    words: Box<str>,
}

/// A place in the tree: so many segments of some patterns have matched.
#[derive(Default)]
struct Node {
    words: HashMap<Box<str>, usize>,
    one: Option<usize>,
    many: Option<usize>,
    /// It stands for `#` itself, and any further segment leaves it where it is.
    is_many: bool,
    /// The routes whose patterns end here.
    ends: Vec<usize>,
}

/// The end of a pattern.
struct End {
    /// Its segments by kind, and its end. Greater is more specific.
    specificity: Box<[Kind]>,
    direction: Option<Direction>,
    connector: ConnectorIndex,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Many,
    End,
    One,
    Word,
}

impl Routes {
    /// The table of these routes, in the order of the configuration.
    pub(crate) fn new(routes: impl IntoIterator<Item = LinkRoute>) -> Self {
        let mut table = Self { nodes: vec![Node::default()], routes: Vec::new(), words: Box::default() };
        let mut words = Vec::new();
        for route in routes {
            words.push(match &route.matches {
                RouteMatch::Prefix(text) | RouteMatch::Pattern(text) => text.clone(),
            });
            table.add(&route);
        }
        words.dedup();
        table.words = words.join(", ").into();
        table
    }

    fn add(&mut self, route: &LinkRoute) {
        let (text, is_prefix) = match &route.matches {
            RouteMatch::Prefix(text) => (text, true),
            RouteMatch::Pattern(text) => (text, false),
        };
        let text = with_plain_words(text);
        let mut kinds = Vec::new();
        let mut at = 0;
        for segment in segments(&text) {
            let kind = match segment {
                "*" if !is_prefix => Kind::One,
                "#" if !is_prefix => Kind::Many,
                _ => Kind::Word,
            };
            at = self.child(at, kind, segment, &mut kinds);
        }
        if is_prefix {
            at = self.child(at, Kind::Many, "#", &mut kinds);
        }
        kinds.push(Kind::End);
        self.nodes[at].ends.push(self.routes.len());
        let (direction, connector) = (route.direction, route.connector);
        self.routes.push(End { specificity: kinds.into(), direction, connector });
    }

    fn child(&mut self, at: usize, kind: Kind, word: &str, kinds: &mut Vec<Kind>) -> usize {
        // `#/#` says no more than `#`.
        if kind == Kind::Many && self.nodes[at].is_many {
            return at;
        }
        kinds.push(kind);
        let new = self.nodes.len();
        let node = &mut self.nodes[at];
        let child = match kind {
            Kind::Word => *node.words.entry(word.into()).or_insert(new),
            Kind::One => *node.one.get_or_insert(new),
            Kind::Many | Kind::End => *node.many.get_or_insert(new),
        };
        if child == new {
            self.nodes.push(Node { is_many: kind == Kind::Many, ..Node::default() });
        }
        child
    }

    /// Routes by prefixes, both ways, to one connector.
    #[cfg(test)]
    pub(crate) fn prefixes<const N: usize>(prefixes: [&str; N]) -> Self {
        Self::new(prefixes.map(|prefix| LinkRoute {
            matches: RouteMatch::Prefix(prefix.to_owned()),
            direction: None,
            connector: ConnectorIndex(0),
        }))
    }

    /// The connector of `path`, an address without scheme and host. `rank` says which connectors may be at all, and
    /// which of them is to be preferred among routes that are equally specific: the greatest rank, then the first.
    pub(crate) fn find(
        &self,
        path: &str,
        direction: Direction,
        rank: impl Fn(ConnectorIndex) -> Option<u32>,
    ) -> Option<ConnectorIndex> {
        let mut active = Vec::with_capacity(8);
        let mut next = Vec::with_capacity(8);
        self.enter(0, &mut active);
        for (index, segment) in segments(path).enumerate() {
            if index == MAX_SEGMENTS || active.is_empty() {
                return None;
            }
            for &at in &active {
                let node = &self.nodes[at];
                if node.is_many {
                    self.enter(at, &mut next);
                }
                let children = [node.words.get(segment).copied(), node.one];
                children.into_iter().flatten().for_each(|child| self.enter(child, &mut next));
            }
            active.clear();
            std::mem::swap(&mut active, &mut next);
        }
        let ends = active.iter().flat_map(|&at| &self.nodes[at].ends);
        let candidates = ends.filter_map(|&index| {
            let end = &self.routes[index];
            let is_this_way = end.direction.is_none_or(|its| its == direction);
            let rank = if is_this_way { rank(end.connector) } else { None };
            // The first of the configuration is the greatest of equals.
            rank.map(|rank| ((&end.specificity, rank, std::cmp::Reverse(index)), end.connector))
        });
        candidates.max_by(|(a, _), (b, _)| a.cmp(b)).map(|(_, connector)| connector)
    }

    /// Makes a node active, and a `#` behind it, which may stand for nothing.
    fn enter(&self, at: usize, active: &mut Vec<usize>) {
        let mut at = Some(at);
        while let Some(index) = at {
            let node = &self.nodes[index];
            // Only a `#` can be come to in two ways, by itself and anew; all else has one way that leads to it.
            if node.is_many && active.contains(&index) {
                return;
            }
            active.push(index);
            at = node.many;
        }
    }
}

impl fmt::Display for Routes {
    /// The routes as they are configured, for a message to whoever asked for another address.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.words.is_empty() { "none" } else { &self.words })
    }
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Routes({self})")
    }
}

fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.split(['/', '.']).filter(|segment| !segment.is_empty())
}

/// A path, or the text of a route, with the hub's own words in lower case below `devices`, as canonical addresses have
/// them.
pub(super) fn with_plain_words(text: &str) -> String {
    let text = text.trim_start_matches('/');
    let is_devices = text.split('/').next().is_some_and(|first| first.eq_ignore_ascii_case("devices"));
    if !is_devices {
        return text.to_owned();
    }
    let mut name_follows = false;
    let plain = text.split('/').map(|segment| {
        let plain = if name_follows { segment.to_owned() } else { segment.to_ascii_lowercase() };
        name_follows = !name_follows && matches!(&*plain, "devices" | "modules");
        plain
    });
    plain.collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Random;

    fn route(text: &str, connector: usize) -> LinkRoute {
        let (matches, direction) = match text.split_once(' ') {
            Some((text, "in")) => (text, Some(Direction::In)),
            Some((text, "out")) => (text, Some(Direction::Out)),
            _ => (text, None),
        };
        let matches = match matches.strip_prefix('^') {
            Some(prefix) => RouteMatch::Prefix(prefix.to_owned()),
            None => RouteMatch::Pattern(matches.to_owned()),
        };
        LinkRoute { matches, direction, connector: ConnectorIndex(connector) }
    }

    /// Routes to connectors 0, 1, …; a prefix is written with `^` before it.
    fn routes(texts: &[&str]) -> Routes {
        Routes::new(texts.iter().enumerate().map(|(index, text)| route(text, index)))
    }

    fn found(routes: &Routes, path: &str) -> Option<usize> {
        routes.find(path, Direction::In, |_| Some(0)).map(|connector| connector.0)
    }

    #[test]
    fn a_prefix_is_whole_segments() {
        for prefix in ["^devices", "^devices/", "^devices.", "^/devices", "^Devices/"] {
            let routes = routes(&[prefix]);
            for path in ["devices", "devices/d1", "devices.d1", "/devices/d1/messages/events", "devices/"] {
                assert_eq!(found(&routes, path), Some(0), "{prefix} {path}");
            }
            for path in ["", "/", "device", "devicesx", "devicesx/d1", "x/devices", "DEVICES/d1", "*", "#"] {
                assert_eq!(found(&routes, path), None, "{prefix} {path}");
            }
        }
        let two = routes(&["^a.b"]);
        assert_eq!([found(&two, "a/b/c"), found(&two, "a.b"), found(&two, "a")], [Some(0), Some(0), None]);
    }

    #[test]
    fn stars_in_a_prefix_are_themselves() {
        let routes = routes(&["^a/*/b"]);
        assert_eq!((found(&routes, "a/*/b"), found(&routes, "a/x/b")), (Some(0), None));
    }

    #[test]
    fn words_of_the_hub_have_no_case_below_devices_and_names_have() {
        let table = routes(&["Devices/Pump/Messages/#"]);
        assert_eq!(found(&table, "devices/Pump/messages/events"), Some(0));
        assert_eq!(found(&table, "devices/pump/messages/events"), None);
        let other = routes(&["^Queues"]);
        assert_eq!((found(&other, "Queues/a"), found(&other, "queues/a")), (Some(0), None));
    }

    #[test]
    fn patterns() {
        for (pattern, yes, no) in [
            ("a/*", vec!["a/b", "a.b"], vec!["a", "a/b/c", "b/a"]),
            ("*/b", vec!["a/b"], vec!["b", "a/b/c"]),
            ("a/#", vec!["a", "a/b", "a/b/c"], vec!["b", "ab"]),
            ("#", vec!["a", "a/b", "", "/"], vec![]),
            ("#/b", vec!["b", "a/b", "b/b", "b/a/b"], vec!["a", "b/a"]),
            ("a/#/#/b", vec!["a/b", "a/x/b", "a/x/y/b"], vec!["a", "a/b/c"]),
            ("*/#", vec!["a", "a/b"], vec![""]),
            ("#/*", vec!["a", "a/b"], vec![""]),
            ("*/#/*", vec!["a/b", "a/b/c"], vec!["a"]),
            ("dev*/x", vec!["dev*/x"], vec!["dev1/x"]),
        ] {
            let routes = routes(&[pattern]);
            yes.iter().for_each(|path| assert_eq!(found(&routes, path), Some(0), "{pattern} {path}"));
            no.iter().for_each(|path| assert_eq!(found(&routes, path), None, "{pattern} {path}"));
        }
    }

    #[test]
    fn the_most_specific_route_wins_wherever_it_stands() {
        // Each is more specific than those behind it, for the address a/b.
        let order = ["a/b", "a/b/#", "a/*", "a/*/#", "a/#/b", "a/#", "*/b", "*/*", "*/#", "#/b", "#/*", "#"];
        for (better, one) in order.iter().enumerate() {
            for other in &order[better + 1..] {
                assert_eq!(found(&routes(&[one, other]), "a/b"), Some(0), "{one} {other}");
                assert_eq!(found(&routes(&[other, one]), "a/b"), Some(1), "{one} {other}");
            }
        }
        assert_eq!(found(&routes(&["^a", "^a/b/c", "^a/b"]), "a/b/x"), Some(2));
    }

    #[test]
    fn directions_are_routed_apart() {
        let routes = routes(&["^a in", "^a out", "^a/b", "^a/b/c out"]);
        let find = |path, direction| routes.find(path, direction, |_| Some(0)).map(|it| it.0);
        assert_eq!((find("a", Direction::In), find("a", Direction::Out)), (Some(0), Some(1)));
        assert_eq!((find("a/b", Direction::In), find("a/b", Direction::Out)), (Some(2), Some(2)));
        assert_eq!((find("a/b/c", Direction::In), find("a/b/c", Direction::Out)), (Some(2), Some(3)));
        assert_eq!(Direction::of(Role::Sender), Direction::In);
    }

    #[test]
    fn equals_are_ranked_and_then_the_first_wins() {
        let routes = routes(&["^a", "^a", "^a", "^a/b"]);
        let find = |path, ranks: [Option<u32>; 4]| {
            routes.find(path, Direction::In, |connector| ranks[connector.0]).map(|it| it.0)
        };
        assert_eq!(find("a", [Some(0); 4]), Some(0));
        assert_eq!(find("a", [Some(0), Some(1), Some(1), Some(0)]), Some(1));
        assert_eq!(find("a", [None, None, Some(0), Some(9)]), Some(2));
        assert_eq!(find("a", [None; 4]), None);
        // What is more specific comes before what is preferred, if it may be at all.
        assert_eq!(find("a/b", [Some(9), Some(9), Some(9), Some(0)]), Some(3));
        assert_eq!(find("a/b", [Some(8), Some(9), Some(9), None]), Some(1));
    }

    #[test]
    fn a_lookup_is_bounded() {
        let many = "#/a/".repeat(30) + "#/b";
        let table = routes(&[&many]);
        assert_eq!(found(&table, &"a/".repeat(MAX_SEGMENTS)), None);
        assert_eq!(found(&table, &("a/".repeat(40) + "b")), Some(0));
        let all = routes(&["#"]);
        assert_eq!(found(&all, &"a/".repeat(MAX_SEGMENTS)), Some(0));
        assert_eq!(found(&all, &"a/".repeat(MAX_SEGMENTS + 1)), None);
        assert_eq!(found(&routes(&[]), "a"), None);
    }

    /// What a pattern means, in the plainest words.
    fn matches(pattern: &[&str], path: &[&str]) -> bool {
        match (pattern, path) {
            ([], []) => true,
            (["#", rest @ ..], _) => (0..=path.len()).any(|taken| matches(rest, &path[taken..])),
            (["*", rest @ ..], [_, path @ ..]) => matches(rest, path),
            ([word, rest @ ..], [segment, path @ ..]) => word == segment && matches(rest, path),
            _ => false,
        }
    }

    #[test]
    fn the_tree_agrees_with_the_plain_meaning() {
        let mut random = Random::new(3);
        for _ in 0..2_000 {
            let mut text = |length: usize, words: &[&str]| {
                let length = random.below(length);
                (0..length).map(|_| *random.pick(words)).collect::<Vec<_>>().join("/")
            };
            let patterns: Vec<String> = (0..6).map(|_| text(5, &["a", "b", "*", "#"])).collect();
            let path = text(6, &["a", "b", "c"]);
            let split = |text: &str| -> Vec<String> { segments(text).map(str::to_owned).collect() };
            let expected: Vec<usize> = (0..6)
                .filter(|&at| {
                    let (pattern, path) = (split(&patterns[at]), split(&path));
                    let pattern: Vec<&str> = pattern.iter().map(String::as_str).collect();
                    let path: Vec<&str> = path.iter().map(String::as_str).collect();
                    matches(&pattern, &path)
                })
                .collect();
            let texts: Vec<&str> = patterns.iter().map(String::as_str).collect();
            let table = routes(&texts);
            // Each of those that match can be found once the others are not to be had, and no other can.
            let single: Vec<usize> = (0..6)
                .filter(|&at| {
                    let only = |connector| (connector == ConnectorIndex(at)).then_some(0);
                    table.find(&path, Direction::Out, only).is_some()
                })
                .collect();
            assert_eq!(single, expected, "{patterns:?} {path}");
            assert_eq!(found(&table, &path).is_some(), !expected.is_empty(), "{patterns:?} {path}");
        }
    }
}
