//! Claims based security: the messages that put a token on the `$cbs` node, and its answers, as the client and as
//! the node sees them.
//!
//! Not here: links, credit, time-outs, and what a token is worth. Who uses this has a sender to and a receiver from
//! `$cbs`, or plays the node.
//! Source: AMQP Claims-based Security 1.0 (OASIS working draft), and what Azure IoT Hub expects of it.

use std::fmt;

use bytes::{Bytes, BytesMut};

use crate::codec::{Limits, Value};
use crate::error::{DecodeError, DecodeFault};
use crate::message::{
    Body, PropertiesOut, Sections, put_amqp_value, put_application_properties, put_properties,
};

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

/// A request, as the node reads it. Its `Debug` shows nothing of the token.
#[derive(Clone, Debug)]
pub struct CbsRequest {
    sections: Sections,
}

/// What a request to put a token says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PutToken<'a> {
    /// Which kind of token it is; [`SAS_TOKEN`] is one.
    pub token_type: &'a str,
    /// What the token is for.
    pub name: &'a str,
    /// The token.
    pub token: &'a str,
    /// When the client believes it to end: milliseconds since 1970.
    pub expiration: Option<i64>,
}

impl fmt::Debug for PutToken<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PutToken")
            .field("token_type", &self.token_type)
            .field("name", &self.name)
            .field("expiration", &self.expiration)
            .finish_non_exhaustive()
    }
}

/// A request that is a message but none that the node knows. It is answered with status 400 and these words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadCbsRequest(pub &'static str);

impl CbsRequest {
    /// Reads a message that came to the node.
    ///
    /// # Errors
    /// Where it is no sound message, so that nobody could be told who is answered.
    pub fn parse(message: &Bytes) -> Result<Self, DecodeError> {
        Ok(Self { sections: Sections::parse(message, &Limits::WIRE)? })
    }

    /// The message-id. The answer's correlation-id is the same, of the same type: clients compare both.
    pub fn id(&self) -> Option<Value<'_>> {
        self.sections.properties().message_id()
    }

    /// The address that the client would like to be answered at. Many say `cbs`, or nothing.
    pub fn reply_to(&self) -> Option<&str> {
        self.sections.properties().reply_to()
    }

    /// What is to be done.
    ///
    /// # Errors
    /// Another operation, or something is missing.
    pub fn put_token(&self) -> Result<PutToken<'_>, BadCbsRequest> {
        let property = |name: &str| {
            let mut pairs = self.sections.application_properties();
            pairs.find(|(key, _)| key.as_str() == Some(name)).map(|(_, value)| value)
        };
        let text = |name: &str| property(name).and_then(|value| value.as_str());
        if text("operation") != Some("put-token") {
            return Err(BadCbsRequest("the only operation here is put-token"));
        }
        let token_type = text("type").ok_or(BadCbsRequest("the request has no type of token"))?;
        let name = text("name").ok_or(BadCbsRequest("the request has no name"))?;
        let Body::Value(Value::Str(token)) = self.sections.body() else {
            return Err(BadCbsRequest("the body is not a token in a string value"));
        };
        let expiration = match property("expiration") {
            Some(Value::Timestamp(milliseconds)) => Some(milliseconds),
            _ => None,
        };
        Ok(PutToken { token_type, name, token, expiration })
    }
}

/// Writes the node's answer to the request with the message-id `request`, which comes back with its type.
pub fn put_cbs_response(out: &mut BytesMut, request: Option<Value<'_>>, status: i32, description: &str) {
    put_properties(out, &PropertiesOut { correlation_id: request, ..PropertiesOut::default() });
    // Some clients read a status of exactly this type and no other.
    let answer = [("status-code", Value::Int(status)), ("status-description", Value::Str(description))];
    put_application_properties(out, answer);
    put_amqp_value(out, &Value::Null);
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

    fn request(properties: &[(&str, Value<'_>)], body: &Value<'_>) -> CbsRequest {
        let mut out = BytesMut::new();
        put_properties(
            &mut out,
            &PropertiesOut { message_id: Some(Value::Uuid([7; 16])), ..PropertiesOut::default() },
        );
        put_application_properties(&mut out, properties.iter().copied());
        put_amqp_value(&mut out, body);
        CbsRequest::parse(&out.freeze()).unwrap()
    }

    #[test]
    fn the_node_reads_what_the_client_writes() {
        let mut out = BytesMut::new();
        CbsClient::new().put_token(&mut out, "h/devices/d", SAS_TOKEN, "secret", Some(5));
        let request = CbsRequest::parse(&out.freeze()).unwrap();
        assert_eq!((request.id(), request.reply_to()), (Some(Value::Ulong(0)), Some("cbs")));
        let put = request.put_token().unwrap();
        assert_eq!((put.token_type, put.name, put.token), (SAS_TOKEN, "h/devices/d", "secret"));
        assert_eq!(put.expiration, Some(5));
        assert!(!format!("{put:?} {request:?}").contains("secret"));
    }

    #[test]
    fn what_is_missing_in_a_request_is_said() {
        let form =
            [("operation", Value::Str("put-token")), ("type", Value::Str("jwt")), ("name", Value::Str("n"))];
        let token = Value::Str("t");
        assert!(request(&form, &token).put_token().is_ok());
        for (index, word) in ["put-token", "type", "name"].into_iter().enumerate() {
            for wrong in [Value::Null, Value::Int(3), Value::Binary(b"put-token")] {
                let mut form = form;
                form[index].1 = wrong;
                let error = request(&form, &token).put_token().unwrap_err();
                assert!(error.to_string().contains(word), "{error}");
            }
        }
        let delete = [("operation", Value::Str("delete-token"))];
        assert!(request(&delete, &token).put_token().unwrap_err().0.contains("put-token"));
        assert!(request(&form, &Value::Binary(b"t")).put_token().unwrap_err().0.contains("string"));
        assert!(CbsRequest::parse(&Bytes::from_static(b"\xff\xff")).is_err());
    }

    #[test]
    fn an_answer_of_the_node_keeps_the_type_of_the_id() {
        for id in [
            None,
            Some(Value::Ulong(0)),
            Some(Value::Uuid([1; 16])),
            Some(Value::Str("a")),
            Some(Value::Binary(b"b")),
        ] {
            let mut out = BytesMut::new();
            put_cbs_response(&mut out, id, 401, "no");
            let message = Sections::parse(&out.freeze(), &Limits::WIRE).unwrap();
            assert_eq!(message.properties().correlation_id(), id);
            let answer: Vec<_> = message.application_properties().collect();
            assert_eq!(answer[0], (Value::Str("status-code"), Value::Int(401)));
            assert_eq!(answer[1], (Value::Str("status-description"), Value::Str("no")));
        }
    }

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
