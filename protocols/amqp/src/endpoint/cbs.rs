//! Claims based security: the messages that put a token on the `$cbs` node, and its answers.
//!
//! Not here: links, credit and time-outs. Who uses this has a sender to and a receiver from `$cbs`.
//! Source: AMQP Claims-based Security 1.0 (OASIS working draft), and what Azure IoT Hub expects of it.

use bytes::{Bytes, BytesMut};

use crate::codec::{Limits, Value};
use crate::error::{DecodeError, DecodeFault};
use crate::message::{PropertiesOut, Sections, put_amqp_value, put_application_properties, put_properties};

/// The token type of a shared access signature.
pub const SAS_TOKEN: &str = "servicebus.windows.net:sastoken";
/// The address of the node.
pub const CBS_NODE: &str = "$cbs";

/// Numbers requests, so that answers find them.
#[derive(Debug, Default)]
pub struct CbsClient {
    next_id: u64,
}

/// The answer to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CbsResponse {
    /// The number of the request.
    pub request: u64,
    /// The status, of the kind of HTTP's.
    pub status: u32,
    /// What the node says about it.
    pub description: Option<String>,
}

impl CbsResponse {
    /// Whether the token was accepted.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

impl CbsClient {
    /// No request was made yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes a `put-token` message and gives its number. `audience` is what the token is for; `expires` its end, in
    /// milliseconds since 1970, for nodes that want to be told.
    pub fn put_token(
        &mut self,
        out: &mut BytesMut,
        audience: &str,
        token_type: &str,
        token: &str,
        expires: Option<i64>,
    ) -> u64 {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        let properties = PropertiesOut {
            message_id: Some(Value::Ulong(id)),
            to: Some(CBS_NODE),
            reply_to: Some("cbs"),
            ..PropertiesOut::default()
        };
        put_properties(out, &properties);
        let pairs = [
            ("operation", Value::Str("put-token")),
            ("type", Value::Str(token_type)),
            ("name", Value::Str(audience)),
        ];
        let expiration = expires.map(|time| ("expiration", Value::Timestamp(time)));
        put_application_properties(out, pairs.into_iter().chain(expiration));
        put_amqp_value(out, &Value::Str(token));
        id
    }

    /// Reads an answer of the node.
    ///
    /// # Errors
    /// Where the message is not sound, or lacks a correlation-id of ours or a status.
    pub fn response(message: &Bytes) -> Result<CbsResponse, DecodeError> {
        let sections = Sections::parse(message, &Limits::WIRE)?;
        let request = match sections.properties().correlation_id() {
            Some(Value::Ulong(id)) => Some(id),
            // A node that knows only strings answers with one.
            Some(Value::Str(text)) => text.parse().ok(),
            _ => None,
        };
        let request = request.ok_or(DecodeFault::Missing("correlation-id").at(0))?;
        let (mut status, mut description) = (None, None);
        for (key, value) in sections.application_properties() {
            match (key, value) {
                (Value::Str("status-code" | "statusCode"), value) => status = number(value),
                (Value::Str("status-description" | "statusDescription"), Value::Str(text)) => {
                    description = Some(text.to_owned());
                }
                _ => {}
            }
        }
        let status = status.ok_or(DecodeFault::Missing("status-code").at(0))?;
        Ok(CbsResponse { request, status, description })
    }
}

fn number(value: Value<'_>) -> Option<u32> {
    match value {
        Value::Int(number) => number.try_into().ok(),
        Value::Long(number) => number.try_into().ok(),
        Value::Uint(number) => Some(number),
        Value::Ulong(number) => number.try_into().ok(),
        Value::Ushort(number) => Some(number.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(correlation_id: Value<'_>, status: Value<'_>) -> Bytes {
        let mut out = BytesMut::new();
        let properties = PropertiesOut { correlation_id: Some(correlation_id), ..PropertiesOut::default() };
        put_properties(&mut out, &properties);
        put_application_properties(
            &mut out,
            [("status-code", status), ("status-description", Value::Str("because"))],
        );
        put_amqp_value(&mut out, &Value::Null);
        out.freeze()
    }

    #[test]
    fn a_request_says_who_what_and_for_what() {
        let mut client = CbsClient::new();
        let mut out = BytesMut::new();
        assert_eq!(client.put_token(&mut out, "h/devices/d", SAS_TOKEN, "token", Some(5)), 0);
        let message = out.freeze();
        let sections = Sections::parse(&message, &Limits::WIRE).unwrap();
        assert_eq!(sections.properties().message_id(), Some(Value::Ulong(0)));
        assert_eq!(sections.properties().to(), Some("$cbs"));
        let pairs: Vec<_> = sections.application_properties().collect();
        assert_eq!(
            pairs,
            [
                (Value::Str("operation"), Value::Str("put-token")),
                (Value::Str("type"), Value::Str(SAS_TOKEN)),
                (Value::Str("name"), Value::Str("h/devices/d")),
                (Value::Str("expiration"), Value::Timestamp(5)),
            ]
        );
        assert_eq!(sections.body(), crate::message::Body::Value(Value::Str("token")));
        assert_eq!(client.put_token(&mut BytesMut::new(), "a", SAS_TOKEN, "t", None), 1);
    }

    #[test]
    fn an_answer_is_matched_by_number_or_text() {
        let good = CbsClient::response(&answer(Value::Ulong(7), Value::Int(200))).unwrap();
        assert!(good.is_success());
        assert_eq!((good.request, good.description.as_deref()), (7, Some("because")));
        let bad = CbsClient::response(&answer(Value::Str("8"), Value::Uint(401))).unwrap();
        assert_eq!((bad.request, bad.status, bad.is_success()), (8, 401, false));
        assert!(CbsClient::response(&answer(Value::Str("x"), Value::Int(200))).is_err());
        assert!(CbsClient::response(&answer(Value::Ulong(1), Value::Int(-1))).is_err());
    }
}
