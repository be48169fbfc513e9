//! Templates: the paths of mapping files with names in them, `plant/{site}/{device}/{*rest}`.
//!
//! A template is a list of segments, and so is everything that is compared with it: nothing is ever joined and split
//! again, so that a `/` inside a decoded segment cannot move another. How templates are searched is [`crate::trie`]'s.

use std::ops::Range;

/// The most names and wildcards that one template binds.
pub(crate) const MAX_CAPTURES: usize = 8;
/// The most segments of one template, which also bounds the depth of every search.
const MAX_SEGMENTS: usize = 32;

/// A parsed path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    pub(crate) segments: Vec<Segment>,
}

/// One segment of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Segment {
    /// This text.
    Literal(String),
    /// Any one segment: `{name}`, or MQTT's nameless `+`.
    Capture(Option<String>),
    /// The rest of the path, also none of it: `{*name}`, or MQTT's nameless `#`. Always the last segment.
    Rest(Option<String>),
}

/// How a kind of path is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Form {
    /// A path begins with `/`, which separates nothing.
    pub(crate) leading_slash: bool,
    /// `+` and `#` are nameless wildcards (MQTT 5 4.7.1).
    pub(crate) wildcards: bool,
    /// Empty segments are legal.
    pub(crate) empty_segments: bool,
}

/// What is wrong with a template, and where in its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TemplateError {
    pub(crate) at: Range<usize>,
    pub(crate) message: String,
}

impl Template {
    /// Parses `text`.
    pub(crate) fn parse(text: &str, form: Form) -> Result<Self, TemplateError> {
        let fail = |at: Range<usize>, message: String| Err(TemplateError { at, message });
        let mut start = 0;
        if form.leading_slash {
            if !text.starts_with('/') {
                return fail(0..text.len(), "the path must begin with `/`".into());
            }
            start = 1;
        }
        let mut segments: Vec<Segment> = Vec::new();
        let mut captures = 0;
        for raw in text[start..].split('/') {
            let at = start..start + raw.len();
            start = at.end + 1;
            if let Some(Segment::Rest(_)) = segments.last() {
                return fail(at, "nothing may follow the rest of the path".into());
            }
            let segment =
                parse_segment(raw, form).map_err(|message| TemplateError { at: at.clone(), message })?;
            if let Some(name) = segment.name()
                && segments.iter().any(|earlier| earlier.name() == Some(name))
            {
                return fail(at, format!("`{name}` is bound twice"));
            }
            captures += usize::from(matches!(segment, Segment::Capture(_)));
            if captures > MAX_CAPTURES {
                return fail(at, format!("more than {MAX_CAPTURES} names and wildcards"));
            }
            segments.push(segment);
            if segments.len() > MAX_SEGMENTS {
                return fail(at, format!("more than {MAX_SEGMENTS} segments"));
            }
        }
        Ok(Self { segments })
    }

    /// The names that the template binds, in order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(Segment::name)
    }

    /// What `name` is bound to.
    pub(crate) fn binding(&self, name: &str) -> Option<Binding> {
        let mut slot = 0;
        for segment in &self.segments {
            match segment {
                Segment::Capture(bound) if bound.as_deref() == Some(name) => {
                    return Some(Binding::Capture(slot));
                }
                Segment::Capture(_) => slot += 1,
                Segment::Rest(bound) if bound.as_deref() == Some(name) => return Some(Binding::Rest),
                Segment::Rest(_) | Segment::Literal(_) => {}
            }
        }
        None
    }
}

impl Segment {
    pub(crate) fn name(&self) -> Option<&str> {
        match self {
            Self::Literal(_) => None,
            Self::Capture(name) | Self::Rest(name) => name.as_deref(),
        }
    }
}

/// Where the value of a name comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Binding {
    /// The n-th captured segment, wildcards counted.
    Capture(usize),
    /// The rest of the path.
    Rest,
}

fn parse_segment(raw: &str, form: Form) -> Result<Segment, String> {
    if form.wildcards {
        match raw {
            "+" => return Ok(Segment::Capture(None)),
            "#" => return Ok(Segment::Rest(None)),
            _ if raw.contains(['+', '#']) => return Err("a wildcard must be a whole segment".into()),
            _ => {}
        }
    }
    if raw.chars().any(char::is_control) {
        return Err("a control character".into());
    }
    let Some(inner) = raw.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) else {
        return match raw {
            "" if !form.empty_segments => Err("an empty segment".into()),
            "." | ".." if form.leading_slash => Err("a relative segment can never match".into()),
            _ if raw.contains(['{', '}']) => Err("a name in braces must be a whole segment".into()),
            _ => Ok(Segment::Literal(raw.to_owned())),
        };
    };
    if let Some((name, _)) = inner.split_once(':') {
        return Err(format!("constraints are not known to this version: write `{{{name}}}`"));
    }
    match inner.strip_prefix('*') {
        Some(name) => Ok(Segment::Rest(Some(check_name(name)?))),
        None => Ok(Segment::Capture(Some(check_name(inner)?))),
    }
}

fn check_name(name: &str) -> Result<String, String> {
    let legal = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    if legal && name.starts_with(|first: char| first.is_ascii_alphabetic()) {
        Ok(name.to_owned())
    } else {
        Err(format!("`{name}` is no name: a letter, then letters, digits, `-` or `_`"))
    }
}

/// A property's text with names in it: `{site}-{line}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Text {
    pub(crate) pieces: Vec<TextPiece>,
}

/// A part of a [`Text`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TextPiece {
    Literal(String),
    Name(String),
}

impl Text {
    /// Parses `text`; a brace that stands for itself is doubled.
    pub(crate) fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut characters = text.char_indices().peekable();
        while let Some((at, character)) = characters.next() {
            match character {
                '{' | '}' if characters.next_if(|&(_, next)| next == character).is_some() => {
                    literal.push(character)
                }
                '{' => {
                    let Some(length) = text[at..].find('}') else {
                        let message = "an open brace: a brace that stands for itself is written twice".into();
                        return Err(TemplateError { at: at..text.len(), message });
                    };
                    let at = at..at + length + 1;
                    let name = check_name(&text[at.start + 1..at.end - 1])
                        .map_err(|message| TemplateError { at: at.clone(), message })?;
                    if !literal.is_empty() {
                        pieces.push(TextPiece::Literal(std::mem::take(&mut literal)));
                    }
                    pieces.push(TextPiece::Name(name));
                    while characters.next_if(|&(next, _)| next < at.end).is_some() {}
                }
                '}' => {
                    let message =
                        "a closing brace alone: a brace that stands for itself is written twice".into();
                    return Err(TemplateError { at: at..at + 1, message });
                }
                other => literal.push(other),
            }
        }
        if !literal.is_empty() {
            pieces.push(TextPiece::Literal(literal));
        }
        Ok(Self { pieces })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPIC: Form = Form { leading_slash: false, wildcards: true, empty_segments: true };
    const PATH: Form = Form { leading_slash: true, wildcards: false, empty_segments: false };

    fn literal(text: &str) -> Segment {
        Segment::Literal(text.into())
    }

    fn capture(name: &str) -> Segment {
        Segment::Capture(Some(name.into()))
    }

    #[test]
    fn templates_are_lists_of_segments() {
        for (text, form, segments) in [
            ("a/{b}/{*c}", TOPIC, vec![literal("a"), capture("b"), Segment::Rest(Some("c".into()))]),
            ("/a/{b-1}", PATH, vec![literal("a"), capture("b-1")]),
            ("/a", TOPIC, vec![literal(""), literal("a")]),
            ("a//b/", TOPIC, vec![literal("a"), literal(""), literal("b"), literal("")]),
            ("+/x/#", TOPIC, vec![Segment::Capture(None), literal("x"), Segment::Rest(None)]),
            ("/a+b/#", PATH, vec![literal("a+b"), literal("#")]),
            ("$iothub/{x}", TOPIC, vec![literal("$iothub"), capture("x")]),
        ] {
            assert_eq!(Template::parse(text, form), Ok(Template { segments }), "{text}");
        }
    }

    #[test]
    fn faulty_templates_say_what_and_where() {
        for (text, form, at, part) in [
            ("a", PATH, 0..1, "begin with `/`"),
            ("/a//b", PATH, 3..3, "empty segment"),
            ("/a/../b", PATH, 3..5, "never match"),
            ("a/{b}c", TOPIC, 2..6, "whole segment"),
            ("a/{b", TOPIC, 2..4, "whole segment"),
            ("a/b}", TOPIC, 2..4, "whole segment"),
            ("a/{}", TOPIC, 2..4, "no name"),
            ("a/{1x}", TOPIC, 2..6, "no name"),
            ("a/{a b}", TOPIC, 2..7, "no name"),
            ("{a}/{a}", TOPIC, 4..7, "bound twice"),
            ("{*a}/b", TOPIC, 5..6, "nothing may follow"),
            ("#/b", TOPIC, 2..3, "nothing may follow"),
            ("a+/b", TOPIC, 0..2, "whole segment"),
            ("{site:[a-z]{3}}/b", TOPIC, 0..15, "write `{site}`"),
            ("a\0", TOPIC, 0..2, "control character"),
            ("+/+/+/+/+/+/+/+/+", TOPIC, 16..17, "more than 8"),
        ] {
            let error = Template::parse(text, form).unwrap_err();
            assert_eq!(error.at, at, "{text}: {}", error.message);
            assert!(error.message.contains(part), "{text}: {}", error.message);
        }
        assert!(Template::parse(&"a/".repeat(32), TOPIC).unwrap_err().message.contains("more than 32"));
    }

    #[test]
    fn names_are_bound_to_slots() {
        let template = Template::parse("+/{a}/x/{b}/{*c}", TOPIC).unwrap();
        assert_eq!(template.names().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(template.binding("a"), Some(Binding::Capture(1)));
        assert_eq!(template.binding("b"), Some(Binding::Capture(2)));
        assert_eq!(template.binding("c"), Some(Binding::Rest));
        assert_eq!(template.binding("d"), None);
    }

    #[test]
    fn texts_hold_names_and_doubled_braces() {
        let name = |name: &str| TextPiece::Name(name.into());
        let literal = |text: &str| TextPiece::Literal(text.into());
        for (text, pieces) in [
            ("", vec![]),
            ("plain", vec![literal("plain")]),
            ("{a}", vec![name("a")]),
            ("{a}{b}", vec![name("a"), name("b")]),
            ("é{a}-{b}.", vec![literal("é"), name("a"), literal("-"), name("b"), literal(".")]),
            ("{{a}} {{{a}}}", vec![literal("{a} {"), name("a"), literal("}")]),
        ] {
            assert_eq!(Text::parse(text).unwrap().pieces, pieces, "{text}");
        }
        for (text, at) in [("{", 0..1), ("a{b", 1..3), ("a}", 1..2), ("{}", 0..2), ("x{a b}", 1..6)] {
            assert_eq!(Text::parse(text).unwrap_err().at, at, "{text}");
        }
    }
}
