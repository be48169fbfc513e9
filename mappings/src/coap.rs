//! What CoAP means: requests to messages, outcomes to response codes.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;

use crate::address::Identity;
use crate::azure;
use crate::message::Message;
use crate::outcome::{Outcome, Reason, Rejection};
use crate::rules::{Convention, RuleSet, Syntax};
use crate::template::Form;

pub(crate) const SYNTAX: Syntax = Syntax {
    key: "coap",
    methods: Some(&["POST", "PUT"]),
    form: Form { leading_slash: true, wildcards: false, empty_segments: false },
    bag: false,
    commands: false,
};

/// A request from a device.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// `POST`, `PUT`: the method's name.
    pub method: &'a str,
    /// Whether it is confirmable, and the device therefore waits for the outcome.
    pub confirmable: bool,
    /// Uri-Path options, decoded.
    pub path: &'a [&'a str],
    /// Uri-Query options, decoded.
    pub query: &'a [&'a str],
    /// Content-Format, by its number.
    pub content_format: Option<u16>,
    /// Payload.
    pub payload: Bytes,
}

impl RuleSet {
    /// The message that a request is.
    ///
    /// # Errors
    /// No rule for method and path, another device's path, no device at all, or properties that cannot be read.
    pub fn map_coap(&self, identity: Identity<'_>, request: Request<'_>) -> Result<Message, Rejection> {
        let found = self.uplink(SYNTAX.key, request.method, request.path, false)?;
        let rule = found.value;
        let mut message = rule.message(&found, identity, request.payload)?;
        message.durable = request.confirmable;
        match rule.convention {
            Some(Convention::AzureIotHub) => {
                for item in request.query {
                    azure::read_query_item(&mut message, rule.own_properties(), item)?;
                }
            }
            Some(Convention::Hono) | None => {}
        }
        if message.properties.content_type.is_none() {
            message.properties.content_type =
                request.content_format.and_then(content_type).map(ByteString::from_static);
        }
        rule.finish(&mut message, &found)?;
        Ok(message)
    }
}

/// The media type of a Content-Format (RFC 7252 12.3 and IANA's registry). A number that is not here leaves the
/// message without a content type; its payload passes untouched either way.
fn content_type(content_format: u16) -> Option<&'static str> {
    Some(match content_format {
        0 => "text/plain;charset=utf-8",
        40 => "application/link-format",
        41 => "application/xml",
        42 => "application/octet-stream",
        47 => "application/exi",
        50 => "application/json",
        51 => "application/json-patch+json",
        52 => "application/merge-patch+json",
        60 => "application/cbor",
        61 => "application/cwt",
        63 => "application/cbor-seq",
        110 => "application/senml+json",
        111 => "application/sensml+json",
        112 => "application/senml+cbor",
        113 => "application/sensml+cbor",
        114 => "application/senml-exi",
        115 => "application/sensml-exi",
        310 => "application/senml+xml",
        311 => "application/sensml+xml",
        11_542 => "application/vnd.oma.lwm2m+tlv",
        11_543 => "application/vnd.oma.lwm2m+json",
        11_544 => "application/vnd.oma.lwm2m+cbor",
        _ => return None,
    })
}

/// A response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The code as it stands in the header: class in the upper three bits, detail in the lower five.
    pub code: u8,
    /// Max-Age; with 4.29 and 5.03 the time after which another attempt makes sense (RFC 7252 5.9.3.4, RFC 8516 4).
    pub max_age: Option<Duration>,
    /// The diagnostic payload of an error (RFC 7252 5.5.2).
    pub diagnostic: Cow<'static, str>,
}

const fn code(class: u8, detail: u8) -> u8 {
    class << 5 | detail
}

/// How CoAP says an outcome. `retry_after` stands where the hub did not say when to come again.
pub fn reply(outcome: &Outcome, retry_after: Duration) -> Reply {
    let plain = |code, diagnostic: Cow<'static, str>| Reply { code, max_age: None, diagnostic };
    match outcome {
        Outcome::Accepted => plain(code(2, 4), Cow::Borrowed("")),
        Outcome::Rejected(rejection) => {
            let text = rejection.description.clone();
            match rejection.reason {
                Reason::Credentials => plain(code(4, 1), text),
                Reason::NotPermitted => plain(code(4, 3), text),
                Reason::NoSuchAddress => plain(code(4, 4), text),
                Reason::TooLarge => plain(code(4, 13), text),
                Reason::Quota { retry_after: said } => {
                    Reply { code: code(4, 29), max_age: Some(said.unwrap_or(retry_after)), diagnostic: text }
                }
                Reason::Content => plain(code(4, 0), text),
                // Unlike a quota it is not this client that asks too much (RFC 8516 4).
                Reason::Full { retry_after: said } | Reason::Disk { retry_after: said } => {
                    Reply { code: code(5, 3), max_age: Some(said.unwrap_or(retry_after)), diagnostic: text }
                }
            }
        }
        Outcome::Released => {
            Reply { code: code(5, 3), max_age: Some(retry_after), diagnostic: "the hub is away".into() }
        }
        Outcome::Unknown => plain(code(5, 4), "the hub did not answer".into()),
    }
}
