//! What HTTP means: requests to messages, outcomes to replies.

use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use fieldgate_http::{Reply, RequestHead};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, StatusCode};

use crate::address::Identity;
use crate::azure;
use crate::message::Message;
use crate::outcome::{Outcome, Reason, Rejection};
use crate::rules::{Convention, RuleSet, Syntax};
use crate::template::Form;

pub(crate) const SYNTAX: Syntax = Syntax {
    key: "http",
    methods: Some(&["POST", "PUT"]),
    form: Form { leading_slash: true, wildcards: false, empty_segments: false },
    bag: false,
    commands: false,
};

/// The authentication scheme that Azure's device API asks for, and that of user name and password (RFC 7617).
const CHALLENGE: &str = "SharedAccessSignature, Basic realm=\"devices\", charset=\"UTF-8\"";
/// Several messages in one body, in a JSON envelope (Azure's device API).
const BATCH: &str = "application/vnd.microsoft.iothub.json";

impl RuleSet {
    /// The message that a request is.
    ///
    /// # Errors
    /// No rule for method and path, another device's path, no device at all, or header fields that cannot be read.
    pub fn map_http(
        &self,
        identity: Identity<'_>,
        head: &RequestHead<'_>,
        body: Bytes,
    ) -> Result<Message, Rejection> {
        let found = self.uplink(SYNTAX.key, head.method().as_str(), head.path(), false)?;
        let rule = found.value;
        let mut message = rule.message(&found, identity, body)?;
        message.durable = true;
        let own = rule.own_properties();
        match rule.convention {
            Some(Convention::AzureIotHub) => {
                let content_type = text(head.headers(), &CONTENT_TYPE)?;
                if content_type.is_some_and(|value| media_type(value).eq_ignore_ascii_case(BATCH)) {
                    return Err(Rejection::new(Reason::Content, "batches of messages are not taken"));
                }
                for (name, value) in head.headers() {
                    if name.as_str().starts_with("iothub-") || name.as_str() == "dt-subject" {
                        let value = value.to_str().map_err(|_| not_ascii())?;
                        azure::read_header(&mut message, own, name.as_str(), value)?;
                    }
                }
                // Content-Type is not read: it says how the request is made, and common clients claim that every
                // body is a form. `iothub-contenttype` says what the message is.
            }
            Some(Convention::Hono) | None => {
                message.properties.content_type = text(head.headers(), &CONTENT_TYPE)?.map(ByteString::from);
                message.properties.content_encoding =
                    text(head.headers(), &CONTENT_ENCODING)?.map(ByteString::from);
            }
        }
        rule.finish(&mut message, &found)?;
        Ok(message)
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h str>, Rejection> {
    headers.get(name).map(|value| value.to_str().map_err(|_| not_ascii())).transpose()
}

fn not_ascii() -> Rejection {
    Rejection::new(Reason::Content, "a header field is not printable ASCII")
}

fn media_type(value: &str) -> &str {
    value.split(';').next().unwrap_or_default().trim()
}

/// How HTTP says an outcome. `retry_after` stands where the hub did not say when to come again.
pub fn reply(outcome: &Outcome, retry_after: Duration) -> Reply {
    match outcome {
        Outcome::Accepted => Reply::no_content(),
        Outcome::Rejected(rejection) => {
            let problem =
                |status| Reply::problem(status, rejection.reason.name(), rejection.description.clone());
            match rejection.reason {
                Reason::Credentials => {
                    Reply { challenge: Some(CHALLENGE), ..problem(StatusCode::UNAUTHORIZED) }
                }
                Reason::NotPermitted => problem(StatusCode::FORBIDDEN),
                Reason::NoSuchAddress => problem(StatusCode::NOT_FOUND),
                Reason::TooLarge => problem(StatusCode::PAYLOAD_TOO_LARGE),
                Reason::Quota { retry_after: said } => Reply {
                    retry_after: Some(said.unwrap_or(retry_after)),
                    ..problem(StatusCode::TOO_MANY_REQUESTS)
                },
                Reason::Content => problem(StatusCode::BAD_REQUEST),
                Reason::Full { retry_after: said } => Reply {
                    retry_after: Some(said.unwrap_or(retry_after)),
                    ..problem(StatusCode::INSUFFICIENT_STORAGE)
                },
                Reason::Disk { retry_after: said } => Reply {
                    retry_after: Some(said.unwrap_or(retry_after)),
                    ..problem(StatusCode::SERVICE_UNAVAILABLE)
                },
            }
        }
        Outcome::Released => Reply {
            retry_after: Some(retry_after),
            ..Reply::problem(StatusCode::SERVICE_UNAVAILABLE, "released", "the hub is away")
        },
        Outcome::Unknown => Reply::problem(StatusCode::GATEWAY_TIMEOUT, "unknown", "the hub did not answer"),
    }
}
