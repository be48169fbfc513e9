//! `[rule.system]`: AMQP's standard properties and the header's ttl, as a rule sets them, by their standard names.
//!
//! What a rule says here stands, whatever the device says. `to` and `user-id` are never a rule's to set.

use std::time::Duration;

use bytestring::ByteString;
use toml::Spanned;

use crate::azure::symbol;
use crate::compile::property_text;
use crate::file::{Fault, RuleText, Source, unknown};
use crate::message::{Message, MessageId, Value};
use crate::outcome::Rejection;
use crate::rules::PropertyTemplate;
use crate::template::Template;
use crate::trie::{Captures, Path};
use crate::units::parse_duration;

/// What a rule says about the message as a whole.
#[derive(Debug, Default)]
pub(crate) struct System {
    texts: Vec<(Field, PropertyTemplate)>,
    ttl: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    MessageId,
    Subject,
    ReplyTo,
    CorrelationId,
    ContentType,
    ContentEncoding,
}

const FIELDS: [(&str, Field); 6] = [
    ("message-id", Field::MessageId),
    ("subject", Field::Subject),
    ("reply-to", Field::ReplyTo),
    ("correlation-id", Field::CorrelationId),
    ("content-type", Field::ContentType),
    ("content-encoding", Field::ContentEncoding),
];
const TTL: &str = "ttl";

impl System {
    /// Checks and compiles the section of a rule for one of its patterns.
    pub(crate) fn compile(source: &Source<'_>, rule: &RuleText, pattern: &Template) -> Result<Self, Fault> {
        let mut system = Self::default();
        for (key, text) in &rule.system {
            let Some((_, field)) = FIELDS.iter().find(|(name, _)| name == key.get_ref()) else {
                system.other(source, key, text)?;
                continue;
            };
            let template = property_text(source, text, pattern)?;
            if let (Field::ContentType | Field::ContentEncoding, PropertyTemplate::Constant(value)) =
                (field, &template)
            {
                let text_of = ByteString::from(value.as_str().unwrap_or_default());
                if text_of == "auto" {
                    let message = "`auto` is not in this version of the mapping language: name the type";
                    return Err(source.error(text.span(), message));
                }
                symbol(text_of)
                    .map_err(|rejection| source.error(text.span(), rejection.description.into_owned()))?;
            }
            system.texts.push((*field, template));
        }
        Ok(system)
    }

    fn other(
        &mut self,
        source: &Source<'_>,
        key: &Spanned<String>,
        text: &Spanned<String>,
    ) -> Result<(), Fault> {
        match key.get_ref().as_str() {
            TTL => {
                let ttl = parse_duration(text.get_ref()).map_err(|message| {
                    source.error(text.span(), format!("{message}: `{}`", text.get_ref()))
                })?;
                self.ttl = Some(ttl);
                Ok(())
            }
            "to" | "user-id" => {
                let message = format!("a rule never sets `{}`: the hub knows the device", key.get_ref());
                Err(source.error(key.span(), message))
            }
            other => {
                let known: Vec<_> = FIELDS.iter().map(|(name, _)| *name).chain([TTL]).collect();
                Err(source.error(key.span(), unknown("key", other, &known)))
            }
        }
    }

    /// Sets what the rule says, after the device's own words were read.
    pub(crate) fn apply<'a, P: Path<'a>>(
        &self,
        message: &mut Message,
        captures: &Captures<'a>,
        rest: P,
    ) -> Result<(), Rejection> {
        message.ttl = self.ttl.or(message.ttl);
        for (field, template) in &self.texts {
            let Value::String(text) = template.resolve(&message.device, captures, rest) else { continue };
            let properties = &mut message.properties;
            match field {
                Field::MessageId => properties.message_id = Some(MessageId::String(text)),
                Field::Subject => properties.subject = Some(text),
                Field::ReplyTo => properties.reply_to = Some(text),
                Field::CorrelationId => properties.correlation_id = Some(MessageId::String(text)),
                Field::ContentType => properties.content_type = Some(symbol(text)?),
                Field::ContentEncoding => properties.content_encoding = Some(symbol(text)?),
            }
        }
        Ok(())
    }
}
