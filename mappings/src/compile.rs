//! From the text of a rule to the rule: what it says is checked, bound and put into its tables.
//!
//! Every refusal names the place in the file and what would be right.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytestring::ByteString;
use toml::Spanned;

use crate::address::AddressBuilder;
use crate::delivery::{self, Delivery};
use crate::file::{CommandText, Fault, LoadError, Place, PropertyText, RuleText, Source, ToText, unknown};
use crate::message::Value;
use crate::rules::{
    AddressPart, AddressTemplate, Convention, Described, Downlink, MessageName, PropertyPart,
    PropertyTemplate, RuleSet, Syntax, Table, Uplink, is_reserved,
};
use crate::system::System;
use crate::template::{Binding, Form, Segment, Template, Text, TextPiece};
use crate::trie::Trie;

/// The name that always stands for the identified device.
const DEVICE: &str = "device";
/// How a hub's node is written in a mapping file.
const HUB_FORM: Form = Form { leading_slash: false, wildcards: false, empty_segments: false };

/// Checks and compiles rules one after another, and collects what is wrong with them.
pub(crate) struct Loader {
    syntaxes: &'static [&'static Syntax],
    set: RuleSet,
    faults: Vec<Fault>,
}

/// A pattern below `from`, parsed.
struct Pattern {
    syntax: &'static Syntax,
    method: &'static str,
    template: Template,
    text: Spanned<String>,
}

impl Loader {
    pub(crate) fn new(syntaxes: &'static [&'static Syntax]) -> Self {
        Self { syntaxes, set: RuleSet::default(), faults: Vec::new() }
    }

    pub(crate) fn read(&mut self, source: &Source<'_>) {
        match source.parse() {
            Ok(file) => file.rule.into_iter().for_each(|rule| self.rule(source, rule)),
            Err(error) => self.faults.push(error),
        }
    }

    pub(crate) fn finish(self) -> Result<RuleSet, LoadError> {
        if self.faults.is_empty() { Ok(self.set) } else { Err(LoadError { faults: self.faults }) }
    }

    fn rule(&mut self, source: &Source<'_>, rule: RuleText) {
        let result = match rule.direction.get_ref().as_str() {
            "uplink" => self.uplink(source, &rule),
            "downlink" => self.downlink(source, &rule),
            "both" => self.both(source, &rule),
            other => {
                let message = unknown("direction", other, &["uplink", "downlink", "both"]);
                Err(source.error(rule.direction.span(), message))
            }
        };
        if let Err(error) = result {
            self.faults.push(error);
        }
    }

    fn uplink(&mut self, source: &Source<'_>, rule: &RuleText) -> Result<(), Fault> {
        let convention = convention(source, rule)?;
        let patterns = self.patterns(source, rule, convention)?;
        let mut target = None;
        for (key, value) in &rule.to {
            match (key.get_ref().as_str(), value.get_ref()) {
                ("address", ToText::Address(text)) => target = Some(Spanned::new(value.span(), text.clone())),
                ("address", ToText::Command(_)) => {
                    return Err(source.error(value.span(), "`to.address` is a string: a node of the hub"));
                }
                (other, _) if self.syntax(other).is_some() => {
                    let message = format!("`to.{other}` is for commands: an uplink rule has `to.address`");
                    return Err(source.error(key.span(), message));
                }
                (other, _) => return Err(source.error(key.span(), unknown("key", other, &["address"]))),
            }
        }
        let Some(target) = target else {
            return Err(source.error(rule.name.span(), "the rule has no `to.address`: where its messages go"));
        };
        let delivery = delivery::delivery(source, rule)?;
        self.insert_uplink(source, rule, convention, &patterns, &target, delivery.as_ref())?;
        let place = source.place(rule.name.span().start);
        let (name, version) = (rule.name.get_ref().clone(), source.version());
        self.set.described.push(Described { name, place, version, delivery });
        Ok(())
    }

    fn insert_uplink(
        &mut self,
        source: &Source<'_>,
        rule: &RuleText,
        convention: Option<Convention>,
        patterns: &[Pattern],
        target: &Spanned<String>,
        delivery: Option<&Arc<Delivery>>,
    ) -> Result<(), Fault> {
        for pattern in patterns {
            let uplink = Uplink {
                convention,
                place: source.place(pattern.text.span().start),
                device: device_slot(&pattern.template),
                via: via(source, rule, &pattern.template)?,
                address: address(source, target, &pattern.template)?,
                properties: properties(source, rule, &pattern.template)?,
                system: System::compile(source, rule, &pattern.template)?,
                delivery: delivery.cloned(),
            };
            self.set.has_via |= uplink.via.is_some();
            let fold_case = convention.is_some() && pattern.syntax.methods.is_some();
            let table = table(&mut self.set.uplink, pattern.syntax.key, pattern.method);
            table.insert(&pattern.template, fold_case, uplink).map_err(|earlier| {
                let message = ambiguous(rule, &earlier.place);
                source.error(pattern.text.span(), message)
            })?;
        }
        Ok(())
    }

    fn downlink(&mut self, source: &Source<'_>, rule: &RuleText) -> Result<(), Fault> {
        let convention = convention(source, rule)?;
        delivery::refuse(source, rule)?;
        if let Some((name, _)) = rule.properties.iter().next() {
            return Err(source.error(name.span(), "properties are set on the way to the hub only"));
        }
        if let Some((name, _)) = rule.system.iter().next() {
            return Err(source.error(name.span(), "AMQP properties are set on the way to the hub only"));
        }
        let mut hub = None;
        for (key, value) in &rule.from {
            match key.get_ref().as_str() {
                "hub" => hub = Some(value),
                other if self.syntax(other).is_some() => {
                    let message =
                        format!("`from.{other}` is for messages of devices: commands come `from.hub`");
                    return Err(source.error(key.span(), message));
                }
                other => return Err(source.error(key.span(), unknown("key", other, &["hub"]))),
            }
        }
        let Some(hub) = hub else {
            return Err(
                source.error(rule.name.span(), "the rule has no `from.hub`: where its commands come from")
            );
        };
        if rule.to.is_empty() {
            return Err(
                source.error(rule.name.span(), "the rule has no `to`: how its commands reach the device")
            );
        }
        for (key, value) in &rule.to {
            let Some(syntax) = self.syntax(key.get_ref()) else {
                let known: Vec<_> =
                    self.syntaxes.iter().filter(|known| known.commands).map(|known| known.key).collect();
                return Err(source.error(key.span(), unknown("key", key.get_ref(), &known)));
            };
            if !syntax.commands {
                let message = format!("commands over `{}` are not in this version", syntax.key);
                return Err(source.error(key.span(), message));
            }
            let ToText::Command(command) = value.get_ref() else {
                let message = format!("`to.{}` is a table such as {{ topic = \"…\", qos = 1 }}", syntax.key);
                return Err(source.error(value.span(), message));
            };
            let topic = template(source, &command.topic, 0, syntax.form)?;
            check_topic(source, command, &topic, convention)?;
            let max_qos = max_qos(source, command)?;
            self.insert_downlink(source, rule, convention, syntax, topic, &command.topic, hub, max_qos)?;
        }
        Ok(())
    }

    /// A rule that runs both ways: messages of the topic go to the address, commands of the address to the topic.
    fn both(&mut self, source: &Source<'_>, rule: &RuleText) -> Result<(), Fault> {
        if let Some(convention) = &rule.convention {
            let message =
                "a convention has different names for the two ways: write an uplink and a downlink rule";
            return Err(source.error(convention.span(), message));
        }
        for key in rule.from.keys() {
            if let Some(syntax) = self.syntax(key.get_ref()).filter(|syntax| !syntax.commands) {
                let message = format!("commands over `{}` are not in this version", syntax.key);
                return Err(source.error(key.span(), message));
            }
        }
        self.uplink(source, rule)?;
        let Some((_, hub)) = rule.to.iter().find(|(key, _)| key.get_ref() == "address") else {
            return Ok(());
        };
        let ToText::Address(text) = hub.get_ref() else { return Ok(()) };
        let hub = Spanned::new(hub.span(), text.clone());
        let bound = template(source, &hub, 0, HUB_FORM)?;
        for pattern in self.patterns(source, rule, None)? {
            for segment in &pattern.template.segments {
                let lost = match segment {
                    Segment::Literal(_) => None,
                    Segment::Rest(_) => Some("the rest of the path".to_owned()),
                    Segment::Capture(None) => Some("a nameless wildcard".to_owned()),
                    Segment::Capture(Some(name)) if name == DEVICE || bound.binding(name).is_some() => None,
                    Segment::Capture(Some(name)) => Some(format!("`{name}`")),
                };
                if let Some(lost) = lost {
                    let message =
                        format!("the rule cannot run both ways: `to.address` does not give {lost} back");
                    return Err(source.error(pattern.text.span(), message));
                }
            }
            self.insert_downlink(
                source,
                rule,
                None,
                pattern.syntax,
                pattern.template,
                &pattern.text,
                &hub,
                1,
            )?;
        }
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one rule, each used once")]
    fn insert_downlink(
        &mut self,
        source: &Source<'_>,
        rule: &RuleText,
        convention: Option<Convention>,
        syntax: &'static Syntax,
        topic: Template,
        text: &Spanned<String>,
        hub: &Spanned<String>,
        max_qos: u8,
    ) -> Result<(), Fault> {
        let bound = template(source, hub, 0, HUB_FORM)?;
        let device = device_slot(&topic);
        if device.is_none() && bound.binding(DEVICE).is_none() {
            let message =
                "the topic of a device's commands must name it, or the hub's address must: `{device}`";
            return Err(source.error(text.span(), message));
        }
        let (topic, tail) = split_tail(source, text, topic, &bound)?;
        if let Some(name) = topic.names().find(|&name| {
            name != DEVICE
                && bound.binding(name).is_none()
                && !(convention == Some(Convention::AzureIotHub) && name == Convention::BAG)
        }) {
            let known: Vec<_> = MessageName::ALL.iter().map(|(name, _)| format!("`{{{name}}}`")).collect();
            let message = format!(
                "`{name}` is not bound by the hub's address; the command itself gives {}",
                known.join(", ")
            );
            return Err(source.error(text.span(), message));
        }
        let downlink = Downlink {
            convention,
            max_qos,
            place: source.place(text.span().start),
            device,
            via: via(source, rule, &topic)?,
            address: address(source, hub, &topic)?,
            topic: topic.clone(),
            tail,
        };
        self.set.has_via |= downlink.via.is_some();
        table(&mut self.set.commands, syntax.key, "").insert(&topic, false, Arc::new(downlink)).map_err(
            |earlier| {
                let message = ambiguous(rule, &earlier.place);
                source.error(text.span(), message)
            },
        )
    }

    /// Parses the patterns of an uplink rule; all must bind the same names.
    fn patterns(
        &self,
        source: &Source<'_>,
        rule: &RuleText,
        convention: Option<Convention>,
    ) -> Result<Vec<Pattern>, Fault> {
        let mut patterns: Vec<Pattern> = Vec::new();
        for (key, text) in &rule.from {
            let Some(syntax) = self.syntax(key.get_ref()) else {
                if key.get_ref() == "hub" {
                    return Err(source.error(
                        key.span(),
                        "`from.hub` is where commands come from: a downlink rule has it",
                    ));
                }
                let known: Vec<_> = self.syntaxes.iter().map(|known| known.key).collect();
                return Err(source.error(key.span(), unknown("key", key.get_ref(), &known)));
            };
            let (method, start) = method(source, text, syntax)?;
            let template = template(source, text, start, syntax.form)?;
            let has_bag = convention.is_some() && template.binding(Convention::BAG) == Some(Binding::Rest);
            if has_bag && !syntax.bag {
                let message = format!(
                    "properties do not stand in the path over `{}`: leave `{{*bag}}` out",
                    syntax.key
                );
                return Err(source.error(text.span(), message));
            }
            patterns.push(Pattern { syntax, method, template, text: text.clone() });
        }
        // In the order of the file, so that the later one is the one at fault.
        patterns.sort_by_key(|pattern| pattern.text.span().start);
        let Some(first) = patterns.first() else {
            let known: Vec<_> = self.syntaxes.iter().map(|known| format!("`from.{}`", known.key)).collect();
            let message = format!("the rule has no pattern to match: write {}", known.join(", "));
            return Err(source.error(rule.name.span(), message));
        };
        let names = own_names(&first.template, convention);
        for pattern in &patterns[1..] {
            let others = own_names(&pattern.template, convention);
            if let Some(name) = names.symmetric_difference(&others).next() {
                let message = format!(
                    "every pattern of a rule binds the same names: `{name}` is not in both `from.{}` and `from.{}`",
                    first.syntax.key, pattern.syntax.key
                );
                return Err(source.error(pattern.text.span(), message));
            }
        }
        Ok(patterns)
    }

    fn syntax(&self, key: &str) -> Option<&'static Syntax> {
        self.syntaxes.iter().find(|syntax| syntax.key == key).copied()
    }
}

fn table<'t, T>(tables: &'t mut Vec<Table<T>>, key: &'static str, method: &'static str) -> &'t mut Trie<T> {
    let at =
        tables.iter().position(|table| table.key == key && table.method == method).unwrap_or_else(|| {
            tables.push(Table { key, method, trie: Trie::default() });
            tables.len() - 1
        });
    &mut tables[at].trie
}

fn ambiguous(rule: &RuleText, earlier: &Place) -> String {
    format!("rule `{}` matches the same as the rule at {earlier}, with equal right", rule.name.get_ref())
}

fn convention(source: &Source<'_>, rule: &RuleText) -> Result<Option<Convention>, Fault> {
    let Some(text) = &rule.convention else { return Ok(None) };
    match Convention::ALL.iter().find(|(name, _)| name == text.get_ref()) {
        Some(&(_, convention)) => Ok(Some(convention)),
        None => {
            let known: Vec<_> = Convention::ALL.iter().map(|(name, _)| *name).collect();
            Err(source.error(text.span(), unknown("convention", text.get_ref(), &known)))
        }
    }
}

/// Splits the method off, where the protocol has one, and says where the path begins.
fn method(
    source: &Source<'_>,
    text: &Spanned<String>,
    syntax: &'static Syntax,
) -> Result<(&'static str, usize), Fault> {
    let Some(known) = syntax.methods else { return Ok(("", 0)) };
    let word = text.get_ref().split(' ').next().unwrap_or_default();
    match known.iter().find(|&&method| method == word) {
        Some(&method) if text.get_ref().len() > method.len() => Ok((method, method.len() + 1)),
        Some(_) => Err(source.error(text.span(), "a path must follow the method")),
        None if word.starts_with('/') => {
            Err(source
                .error(text.span(), format!("a method must stand before the path: `{} {word}`", known[0])))
        }
        None => Err(source.error_within(text, 0, &unknown("method", word, known))),
    }
}

fn template(
    source: &Source<'_>,
    text: &Spanned<String>,
    start: usize,
    form: Form,
) -> Result<Template, Fault> {
    Template::parse(&text.get_ref()[start..], form)
        .map_err(|error| source.error_within(text, start + error.at.start, &error.message))
}

/// The group of gateways that may act for the device of a rule.
fn via(source: &Source<'_>, rule: &RuleText, pattern: &Template) -> Result<Option<Box<str>>, Fault> {
    let Some(device) = &rule.device else { return Ok(None) };
    if let Some(id) = device.get_ref().id.as_ref().filter(|id| id.get_ref() != "{device}") {
        return Err(source.error(id.span(), "the device is the one that the pattern names: `{device}`"));
    }
    let Some(via) = &device.get_ref().via else { return Ok(None) };
    if via.get_ref().trim().is_empty() {
        return Err(
            source.error(via.span(), "`via` is the name of a group of gateways, as in the device registry")
        );
    }
    if device_slot(pattern).is_none() {
        return Err(source.error(
            via.span(),
            "a gateway can act for a device that the pattern names only: `{device}` is missing in one",
        ));
    }
    Ok(Some(via.get_ref().as_str().into()))
}

fn device_slot(template: &Template) -> Option<usize> {
    match template.binding(DEVICE) {
        Some(Binding::Capture(slot)) => Some(slot),
        Some(Binding::Rest) | None => None,
    }
}

/// The names that a rule's patterns must share: all but the device, which the identity gives as well, and the
/// convention's own place for properties.
fn own_names(template: &Template, convention: Option<Convention>) -> BTreeSet<&str> {
    template
        .names()
        .filter(|&name| name != DEVICE && !(convention.is_some() && name == Convention::BAG))
        .collect()
}

/// Where the value of a name in `to` or `properties` comes from; `Ok(None)` is the device.
fn bind(name: &str, pattern: &Template) -> Result<Option<Binding>, String> {
    if name == DEVICE {
        return Ok(None);
    }
    pattern.binding(name).map(Some).ok_or_else(|| {
        let mut known: Vec<&str> = pattern.names().collect();
        known.push(DEVICE);
        known.sort_unstable();
        known.dedup();
        unknown("name", name, &known)
    })
}

/// Compiles a node of the hub. Below `devices/` it must be the device's own, whatever else the pattern captures.
fn address(
    source: &Source<'_>,
    text: &Spanned<String>,
    pattern: &Template,
) -> Result<AddressTemplate, Fault> {
    let fail = |message: &str| Err(source.error(text.span(), format!("{message}: `{}`", text.get_ref())));
    let parsed = template(source, text, 0, HUB_FORM)?;
    let mut parts = Vec::new();
    let mut literal_bytes = 0;
    let below_devices = match parsed.segments.first() {
        Some(Segment::Literal(first)) => first.eq_ignore_ascii_case("devices"),
        _ => return fail("an address begins with a fixed segment"),
    };
    if below_devices && parsed.segments.get(1) != Some(&Segment::Capture(Some(DEVICE.into()))) {
        return fail("below `devices/` a rule may use the device's own node only, `devices/{device}/…`");
    }
    for segment in &parsed.segments {
        let (literal, bound) = match segment {
            Segment::Literal(literal) if below_devices => (Some(literal.to_ascii_lowercase()), None),
            Segment::Literal(literal) => (Some(literal.clone()), None),
            Segment::Capture(name) | Segment::Rest(name) => (None, name.as_deref()),
        };
        literal_bytes += 1 + literal.as_ref().map_or(16, String::len);
        if let Some(literal) = literal {
            let mut builder = AddressBuilder::with_capacity(literal.len());
            let built = builder.segment(&literal).and_then(|()| builder.finish());
            let canonical = built.map_err(|error| source.error(text.span(), error.to_string()))?;
            match parts.last_mut() {
                Some(AddressPart::Literal(before)) => *before = format!("{before}/{canonical}"),
                _ => parts.push(AddressPart::Literal(canonical.to_string())),
            }
        } else if let Some(name) = bound {
            let binding = bind(name, pattern).map_err(|message| source.error_within(text, 0, &message))?;
            let is_rest = matches!(segment, Segment::Rest(_));
            match binding {
                Some(binding) if is_rest != (binding == Binding::Rest) => {
                    return fail(
                        "`{*name}` in an address stands for `{*name}` of the pattern, `{name}` for `{name}`",
                    );
                }
                None if is_rest => return fail("the device is one segment, `{device}`"),
                Some(binding) => parts.push(AddressPart::Bound(binding)),
                None => parts.push(AddressPart::Device),
            }
        }
    }
    Ok(AddressTemplate { parts, literal_bytes })
}

fn properties(
    source: &Source<'_>,
    rule: &RuleText,
    pattern: &Template,
) -> Result<Vec<(ByteString, PropertyTemplate)>, Fault> {
    let mut properties = Vec::with_capacity(rule.properties.len());
    for (name, value) in &rule.properties {
        if name.get_ref().is_empty() {
            return Err(source.error(name.span(), "a property needs a name"));
        }
        let template = match value.get_ref() {
            PropertyText::Bool(value) => PropertyTemplate::Constant(Value::Bool(*value)),
            PropertyText::Integer(value) => PropertyTemplate::Constant(Value::Long(*value)),
            PropertyText::Float(value) => PropertyTemplate::Constant(Value::Double(*value)),
            PropertyText::Text(text) => {
                property_text(source, &Spanned::new(value.span(), text.clone()), pattern)?
            }
        };
        if is_reserved(name.get_ref()) && matches!(template, PropertyTemplate::Text(_)) {
            let message = "a rule never sets `iothub-*` from what a device says";
            return Err(source.error(name.span(), message));
        }
        properties.push((ByteString::from(name.get_ref().as_str()), template));
    }
    Ok(properties)
}

pub(crate) fn property_text(
    source: &Source<'_>,
    text: &Spanned<String>,
    pattern: &Template,
) -> Result<PropertyTemplate, Fault> {
    let parsed = Text::parse(text.get_ref())
        .map_err(|error| source.error_within(text, error.at.start, &error.message))?;
    let mut parts = Vec::with_capacity(parsed.pieces.len());
    for piece in &parsed.pieces {
        parts.push(match piece {
            TextPiece::Literal(literal) => PropertyPart::Literal(literal.clone()),
            TextPiece::Name(name) => {
                match bind(name, pattern).map_err(|message| source.error_within(text, 0, &message))? {
                    Some(binding) => PropertyPart::Bound(binding),
                    None => PropertyPart::Device,
                }
            }
        });
    }
    Ok(match parts.as_slice() {
        [] => PropertyTemplate::Constant(Value::String(ByteString::new())),
        [PropertyPart::Literal(literal)] => {
            PropertyTemplate::Constant(Value::String(literal.as_str().into()))
        }
        _ => PropertyTemplate::Text(parts),
    })
}

fn check_topic(
    source: &Source<'_>,
    command: &CommandText,
    topic: &Template,
    convention: Option<Convention>,
) -> Result<(), Fault> {
    for segment in &topic.segments {
        let message = match (segment, convention) {
            (Segment::Capture(None) | Segment::Rest(None), _) => {
                "a wildcard cannot be sent to: give it a name"
            }
            (Segment::Rest(Some(name)), Some(Convention::AzureIotHub)) if name != Convention::BAG => {
                "the rest of a topic holds the convention's properties: `{*bag}`"
            }
            (Segment::Rest(Some(_)), None | Some(Convention::Hono)) => {
                "the rest of a topic has a meaning only with a convention that puts properties there"
            }
            _ => continue,
        };
        return Err(source.error(command.topic.span(), message));
    }
    Ok(())
}

/// Splits off what only the command itself gives: segments at the end of its topic. A rest of the path stands for them.
fn split_tail(
    source: &Source<'_>,
    text: &Spanned<String>,
    mut topic: Template,
    bound: &Template,
) -> Result<(Template, Vec<MessageName>), Fault> {
    let given = |segment: &Segment| {
        let name = segment.name().filter(|name| bound.binding(name).is_none());
        name.and_then(MessageName::find)
    };
    let Some(first) = topic.segments.iter().position(|segment| given(segment).is_some()) else {
        return Ok((topic, Vec::new()));
    };
    let tail: Option<Vec<_>> = topic.segments.drain(first..).map(|segment| given(&segment)).collect();
    let Some(tail) = tail else {
        let message = "what the command itself gives stands at the end of the topic: nothing else may follow";
        return Err(source.error(text.span(), message));
    };
    topic.segments.push(Segment::Rest(None));
    Ok((topic, tail))
}

fn max_qos(source: &Source<'_>, command: &CommandText) -> Result<u8, Fault> {
    match &command.qos {
        None => Ok(1),
        Some(qos) if *qos.get_ref() <= 1 => Ok(*qos.get_ref()),
        Some(qos) => Err(source.error(qos.span(), "commands are sent with QoS 0 or 1")),
    }
}
