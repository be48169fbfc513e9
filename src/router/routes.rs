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
