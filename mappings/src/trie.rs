//! The search for the rule that a path belongs to: one trie for each kind of path, built when the files are loaded.
//!
//! Most specific wins, segment by segment: a literal before a name, a name before the rest of the path. That order
//! is total, so the order of files and rules decides nothing. A search visits each node at most once and goes no
//! deeper than the longest template, however long the path is.

use std::collections::HashMap;
use std::fmt::Write as _;

use crate::template::{MAX_CAPTURES, Segment, Template};

/// A path under comparison: it gives its segments one by one, decoded, and can be copied to try another branch.
pub(crate) trait Path<'a>: Copy {
    /// The next segment and what follows it; `None` at the end.
    fn split_first(self) -> Option<(&'a str, Self)>;
}

/// A path whose segments are still joined, because they cannot hold the separator: an MQTT topic.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Joined<'a>(pub(crate) Option<&'a str>);

impl<'a> Path<'a> for Joined<'a> {
    fn split_first(self) -> Option<(&'a str, Self)> {
        let text = self.0?;
        Some(match text.bytes().position(|byte| byte == b'/') {
            Some(at) => (&text[..at], Self(Some(&text[at + 1..]))),
            None => (text, Self(None)),
        })
    }
}

/// A path that came in decoded segments: CoAP's options, HTTP's path.
impl<'a, S: AsRef<str>> Path<'a> for &'a [S] {
    fn split_first(self) -> Option<(&'a str, Self)> {
        let (first, rest) = <[S]>::split_first(self)?;
        Some((first.as_ref(), rest))
    }
}

/// Templates and what belongs to them.
#[derive(Debug)]
pub(crate) struct Trie<T> {
    nodes: Vec<Node>,
    values: Vec<T>,
    /// Each template with its names left out and its letters lowered, to find those that overlap when one is added.
    shapes: HashMap<String, Vec<(Template, bool, usize)>>,
}

#[derive(Debug, Default)]
struct Node {
    /// Literal children in order.
    exact: Vec<(Box<str>, usize)>,
    /// Literal children that compare without regard to ASCII case, lower-cased and in order.
    folded: Vec<(Box<str>, usize)>,
    capture: Option<usize>,
    end: Option<usize>,
    rest: Option<usize>,
}

/// A template that matched.
#[derive(Debug)]
pub(crate) struct Found<'t, 'a, T, P> {
    pub(crate) value: &'t T,
    pub(crate) captures: Captures<'a>,
    /// What the rest of the path stands for; at its end where the template has none.
    pub(crate) rest: P,
}

/// The captured segments, by slot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Captures<'a>([&'a str; MAX_CAPTURES]);

impl<'a> Captures<'a> {
    /// The segment in `slot`. A template's own bindings never leave the range.
    pub(crate) fn get(&self, slot: usize) -> &'a str {
        self.0.get(slot).copied().unwrap_or_default()
    }
}

impl<T> Default for Trie<T> {
    fn default() -> Self {
        Self { nodes: vec![Node::default()], values: Vec::new(), shapes: HashMap::new() }
    }
}

impl<T> Trie<T> {
    /// Adds a template. With `fold_case` its literals compare without regard to ASCII case.
    ///
    /// # Errors
    /// The value of a template that matches the same paths with the same right.
    pub(crate) fn insert(&mut self, template: &Template, fold_case: bool, value: T) -> Result<(), &T> {
        let index = self.values.len();
        let shape = self.shapes.entry(shape(template)).or_default();
        let overlapping = |(earlier, folded, _): &&(Template, bool, usize)| {
            fold_case || *folded || literals(earlier).eq(literals(template))
        };
        if let Some(&(_, _, earlier)) = shape.iter().find(overlapping) {
            return Err(&self.values[earlier]);
        }
        shape.push((template.clone(), fold_case, index));
        self.values.push(value);
        let mut node = 0;
        for segment in &template.segments {
            node = match segment {
                Segment::Literal(text) => self.literal_child(node, text, fold_case),
                Segment::Capture(_) => match self.nodes[node].capture {
                    Some(child) => child,
                    None => {
                        let child = self.add_node();
                        self.nodes[node].capture = Some(child);
                        child
                    }
                },
                Segment::Rest(_) => {
                    self.nodes[node].rest = Some(index);
                    return Ok(());
                }
            };
        }
        self.nodes[node].end = Some(index);
        Ok(())
    }

    /// Finds the most specific template for `path`. With `hidden` its first segment is compared with literals only
    /// (MQTT 5 4.7.2: wildcards do not match topics that begin with `$`).
    pub(crate) fn find<'a, P: Path<'a>>(&self, path: P, hidden: bool) -> Option<Found<'_, 'a, T, P>> {
        let mut captures = Captures([""; MAX_CAPTURES]);
        let (value, rest) = self.walk(&self.nodes[0], path, hidden, 0, &mut captures)?;
        Some(Found { value: &self.values[value], captures, rest })
    }

    fn walk<'a, P: Path<'a>>(
        &self,
        node: &Node,
        path: P,
        hidden: bool,
        slot: usize,
        captures: &mut Captures<'a>,
    ) -> Option<(usize, P)> {
        let rest = node.rest.filter(|_| !hidden).map(|value| (value, path));
        let Some((segment, tail)) = path.split_first() else {
            return node.end.map(|value| (value, path)).or(rest);
        };
        for child in [
            child(&node.exact, |known| known.cmp(segment)),
            child(&node.folded, |known| fold(known, segment)),
        ]
        .into_iter()
        .flatten()
        {
            let found = self.walk(&self.nodes[child], tail, false, slot, captures);
            if found.is_some() {
                return found;
            }
        }
        if let Some(child) = node.capture.filter(|_| !hidden) {
            captures.0[slot] = segment;
            let found = self.walk(&self.nodes[child], tail, false, slot + 1, captures);
            if found.is_some() {
                return found;
            }
        }
        rest
    }

    fn literal_child(&mut self, node: usize, text: &str, fold_case: bool) -> usize {
        let lowered = text.to_ascii_lowercase();
        let text = if fold_case { lowered.as_str() } else { text };
        let added = self.nodes.len();
        let children = if fold_case { &mut self.nodes[node].folded } else { &mut self.nodes[node].exact };
        match children.binary_search_by(|(known, _)| (**known).cmp(text)) {
            Ok(at) => children[at].1,
            Err(at) => {
                children.insert(at, (text.into(), added));
                self.add_node()
            }
        }
    }

    fn add_node(&mut self) -> usize {
        self.nodes.push(Node::default());
        self.nodes.len() - 1
    }
}

fn child(children: &[(Box<str>, usize)], order: impl Fn(&str) -> std::cmp::Ordering) -> Option<usize> {
    match children {
        [] => None,
        // Most nodes have one child, and then one comparison of whole strings is all.
        [(known, child)] => order(known).is_eq().then_some(*child),
        many => many.binary_search_by(|(known, _)| order(known)).ok().map(|at| many[at].1),
    }
}

/// Compares a lower-cased literal with a segment whose ASCII letters count as lower case.
fn fold(known: &str, segment: &str) -> std::cmp::Ordering {
    known.bytes().cmp(segment.bytes().map(|byte| byte.to_ascii_lowercase()))
}

fn literals(template: &Template) -> impl Iterator<Item = &str> {
    template.segments.iter().filter_map(|segment| match segment {
        Segment::Literal(text) => Some(text.as_str()),
        Segment::Capture(_) | Segment::Rest(_) => None,
    })
}

/// Two templates can match the same path with equal right only if they have the same shape.
fn shape(template: &Template) -> String {
    let mut shape = String::new();
    for segment in &template.segments {
        // The length keeps literals apart that look like the marks. Writing to a string cannot fail.
        let _ = match segment {
            Segment::Literal(text) => write!(shape, "={}:{}", text.len(), text.to_ascii_lowercase()),
            Segment::Capture(_) => write!(shape, "+"),
            Segment::Rest(_) => write!(shape, "#"),
        };
    }
    shape
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::Form;

    const TOPIC: Form = Form { leading_slash: false, wildcards: true, empty_segments: true };

    fn trie(templates: &[&'static str]) -> Trie<&'static str> {
        let mut trie = Trie::default();
        for text in templates {
            trie.insert(&Template::parse(text, TOPIC).unwrap(), false, *text).unwrap();
        }
        trie
    }

    fn find<'t>(trie: &'t Trie<&'static str>, topic: &str) -> Option<&'t str> {
        trie.find(Joined(Some(topic)), topic.starts_with('$')).map(|found| *found.value)
    }

    #[test]
    fn the_most_specific_template_wins_whatever_the_order() {
        let mut templates =
            ["a/b/c", "a/b/{x}", "a/{x}/c", "a/{x}/{y}", "a/b/{*r}", "a/{*r}", "{x}/b/c", "{*r}"];
        for _ in 0..2 {
            let trie = trie(&templates);
            for (topic, expected) in [
                ("a/b/c", "a/b/c"),
                ("a/b/d", "a/b/{x}"),
                ("a/e/c", "a/{x}/c"),
                ("a/e/f", "a/{x}/{y}"),
                ("a/b", "a/b/{*r}"),
                ("a/b/c/d", "a/b/{*r}"),
                ("a/e/c/d", "a/{*r}"),
                ("a", "a/{*r}"),
                ("z/b/c", "{x}/b/c"),
                ("z/b/d", "{*r}"),
                ("", "{*r}"),
            ] {
                assert_eq!(find(&trie, topic), Some(expected), "{topic}");
            }
            templates.reverse();
        }
    }

    #[test]
    fn a_wrong_turn_is_taken_back_with_its_captures() {
        let trie = trie(&["{a}/x/{b}/y", "{a}/{c}/z"]);
        let found = trie.find(Joined(Some("1/x/z")), false).unwrap();
        assert_eq!(*found.value, "{a}/{c}/z");
        assert_eq!((found.captures.get(0), found.captures.get(1)), ("1", "x"));
        assert_eq!(find(&trie, "1/x/2/z"), None);
    }

    #[test]
    fn the_rest_keeps_its_separators() {
        let trie = trie(&["a/{*r}"]);
        for (topic, rest) in [
            ("a", None),
            ("a/", Some("")),
            ("a/b", Some("b")),
            ("a/b//c/", Some("b//c/")),
            ("a//", Some("/")),
        ] {
            assert_eq!(trie.find(Joined(Some(topic)), false).unwrap().rest.0, rest, "{topic}");
        }
        assert!(trie.find(Joined(Some("ab")), false).is_none());
        assert!(trie.find(Joined(Some("A")), false).is_none());
    }

    #[test]
    fn empty_levels_count() {
        let trie = trie(&["/a", "a//b", "+/+"]);
        assert_eq!(find(&trie, "/a"), Some("/a"));
        assert_eq!(find(&trie, "a//b"), Some("a//b"));
        assert_eq!(find(&trie, "/"), Some("+/+"));
        assert_eq!(find(&trie, "a/b"), Some("+/+"));
        assert_eq!(find(&trie, "a"), None);
    }

    #[test]
    fn names_and_wildcards_do_not_see_dollar_topics() {
        let trie = trie(&["$iothub/{x}", "{a}/{b}", "{*r}"]);
        assert_eq!(find(&trie, "$iothub/twin"), Some("$iothub/{x}"));
        assert_eq!(find(&trie, "$other/twin"), None);
        assert_eq!(find(&trie, "$iothub"), None);
        assert_eq!(find(&trie, "x/$y"), Some("{a}/{b}"));
    }

    #[test]
    fn decoded_segments_may_hold_separators() {
        let trie = trie(&["a/{x}", "a/b/c"]);
        let path = ["a", "b/c"];
        let found = trie.find(&path[..], false).unwrap();
        assert_eq!((*found.value, found.captures.get(0)), ("a/{x}", "b/c"));
        assert!(trie.find(&["a/b", "c"][..], false).is_none());
        assert!(trie.find::<&[String]>(&[], false).is_none());
    }

    #[test]
    fn folded_literals_compare_without_case_and_names_keep_it() {
        let mut trie = Trie::default();
        trie.insert(&Template::parse("Devices/{d}/events", TOPIC).unwrap(), true, 1).unwrap();
        trie.insert(&Template::parse("devices/{d}/other", TOPIC).unwrap(), false, 2).unwrap();
        for (topic, expected) in [
            ("devices/D/EVENTS", Some(1)),
            ("DEVICES/D/events", Some(1)),
            ("devices/D/other", Some(2)),
            ("Devices/D/other", None),
            ("devices/D/eventsx", None),
            ("devıces/D/events", None),
        ] {
            let found = trie.find(Joined(Some(topic)), false);
            assert_eq!(found.as_ref().map(|found| *found.value), expected, "{topic}");
            assert!(found.is_none_or(|found| found.captures.get(0) == "D"));
        }
    }

    #[test]
    fn equal_right_to_the_same_paths_is_refused() {
        for (text, fold, earlier) in [
            ("a/{y}/c", false, Some("a/{x}/c")),
            ("a/+/c", false, Some("a/{x}/c")),
            ("A/+/C", true, Some("a/{x}/c")),
            ("a/#", false, Some("a/{*r}")),
            ("A/#", true, Some("a/{*r}")),
            ("A/#", false, None),
            ("a/+", false, None),
            ("a/{x}/C", false, None),
        ] {
            let mut trie = trie(&["a/{x}/c", "a/{*r}", "{x}/{y}"]);
            let template = Template::parse(text, TOPIC).unwrap();
            assert_eq!(trie.insert(&template, fold, text).err().copied(), earlier, "{text}");
        }
        let mut folded = Trie::default();
        folded.insert(&Template::parse("a/{x}", TOPIC).unwrap(), true, "folded").unwrap();
        assert_eq!(folded.insert(&Template::parse("A/{y}", TOPIC).unwrap(), false, "exact"), Err(&"folded"));
    }

    #[test]
    fn a_path_of_many_segments_costs_no_more_than_the_templates_are_deep() {
        let trie = trie(&["a/{*r}", "{a}/{b}/{c}/x"]);
        let long = "a/".repeat(30_000);
        assert_eq!(find(&trie, &long), Some("a/{*r}"));
        assert_eq!(find(&trie, &long[2..].replace('a', "b")), None);
    }
}
