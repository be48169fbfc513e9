//! Replies: a status, the header fields that belong to it, and a problem in JSON.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Response, StatusCode};

use crate::request::Violation;

/// An answer to a request.
///
/// Success has no body. A problem has one of the form `{"error":"…","message":"…"}`: a word from a bounded list for
/// programs, and a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// What went wrong: the word and the sentence.
    pub problem: Option<(&'static str, Cow<'static, str>)>,
    /// When another attempt makes sense; whole seconds on the wire, rounded up (RFC 9110 10.2.3).
    pub retry_after: Option<Duration>,
    /// The authentication scheme that would be accepted (RFC 9110 11.6.1); every 401 has one.
    pub challenge: Option<&'static str>,
    /// Whether the connection ends with this reply, because what follows in it cannot be trusted or is not wanted.
    pub close: bool,
}

impl Reply {
    /// 204: taken, and there is nothing to say.
    pub fn no_content() -> Self {
        Self {
            status: StatusCode::NO_CONTENT,
            problem: None,
            retry_after: None,
            challenge: None,
            close: false,
        }
    }

    /// A problem.
    pub fn problem(status: StatusCode, word: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, problem: Some((word, message.into())), ..Self::no_content() }
    }

    /// The reply as the driver sends it. Content-Length and Date are the driver's.
    pub fn into_response(self) -> Response<Bytes> {
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        let fields: [(HeaderName, Option<HeaderValue>); 4] = [
            (RETRY_AFTER, self.retry_after.map(|time| HeaderValue::from(whole_seconds(time)))),
            (WWW_AUTHENTICATE, self.challenge.map(HeaderValue::from_static)),
            (CONNECTION, self.close.then_some(HeaderValue::from_static("close"))),
            (CONTENT_TYPE, self.problem.is_some().then_some(HeaderValue::from_static("application/json"))),
        ];
        for (name, value) in fields {
            if let Some(value) = value {
                headers.insert(name, value);
            }
        }
        if let Some((word, message)) = self.problem {
            let mut body = String::with_capacity(32 + word.len() + message.len());
            body.push_str("{\"error\":");
            push_json_string(&mut body, word);
            body.push_str(",\"message\":");
            push_json_string(&mut body, &message);
            body.push('}');
            *response.body_mut() = body.into();
        }
        response
    }
}

impl From<&Violation> for Reply {
    fn from(violation: &Violation) -> Self {
        let (status, word) = match violation {
            Violation::Target | Violation::Escape | Violation::DotSegment => {
                (StatusCode::BAD_REQUEST, "target")
            }
            Violation::Host => (StatusCode::BAD_REQUEST, "host"),
            Violation::ContentLength => (StatusCode::BAD_REQUEST, "content-length"),
            Violation::TargetTooLong => (StatusCode::URI_TOO_LONG, "target-too-long"),
            Violation::HeadersTooLarge => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "headers-too-large"),
            Violation::Expectation => (StatusCode::EXPECTATION_FAILED, "expectation"),
            Violation::BodyTooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "too-large"),
            Violation::TimedOut => (StatusCode::REQUEST_TIMEOUT, "timed-out"),
        };
        // A body may follow that nobody will read.
        Self { close: true, ..Self::problem(status, word, violation.to_string()) }
    }
}

/// Rounded up, so that nobody comes back too early.
fn whole_seconds(time: Duration) -> u64 {
    time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0))
}

/// RFC 8259 section 7.
fn push_json_string(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            control if u32::from(control) < 0x20 => out.push_str(&format!("\\u{:04x}", u32::from(control))),
            other => out.push(other),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn success_has_neither_body_nor_fields() {
        let response = Reply::no_content().into_response();
        assert_eq!(response.status(), 204);
        assert!(response.headers().is_empty() && response.body().is_empty());
    }

    #[test]
    fn a_problem_is_json_with_its_fields() {
        let reply = Reply {
            retry_after: Some(Duration::from_millis(1001)),
            challenge: Some("SharedAccessSignature"),
            close: true,
            ..Reply::problem(StatusCode::UNAUTHORIZED, "credentials", "say \"who\"\\\u{1}\n é")
        };
        let response = reply.into_response();
        let field = |name: HeaderName| response.headers()[name].to_str().unwrap();
        assert_eq!(field(RETRY_AFTER), "2");
        assert_eq!(field(WWW_AUTHENTICATE), "SharedAccessSignature");
        assert_eq!(field(CONNECTION), "close");
        assert_eq!(field(CONTENT_TYPE), "application/json");
        let body = std::str::from_utf8(response.body()).unwrap();
        assert_eq!(body, r#"{"error":"credentials","message":"say \"who\"\\\u0001\u000a é"}"#);
    }

    #[test]
    fn a_wait_is_never_rounded_down() {
        for (millis, seconds) in [(0, "0"), (1, "1"), (999, "1"), (1000, "1"), (10_000, "10")] {
            let reply = Reply { retry_after: Some(Duration::from_millis(millis)), ..Reply::no_content() };
            assert_eq!(reply.into_response().headers()[RETRY_AFTER], seconds);
        }
        let forever = Reply { retry_after: Some(Duration::MAX), ..Reply::no_content() };
        assert_eq!(forever.into_response().headers()[RETRY_AFTER], u64::MAX.to_string().as_str());
    }

    #[test]
    fn each_violation_has_its_status_and_ends_the_connection() {
        for (violation, status) in [
            (Violation::Target, 400),
            (Violation::TargetTooLong, 414),
            (Violation::Escape, 400),
            (Violation::DotSegment, 400),
            (Violation::HeadersTooLarge, 431),
            (Violation::Host, 400),
            (Violation::ContentLength, 400),
            (Violation::Expectation, 417),
            (Violation::BodyTooLarge { max_bytes: 1 }, 413),
            (Violation::TimedOut, 408),
        ] {
            let reply = Reply::from(&violation);
            assert_eq!((reply.status.as_u16(), reply.close), (status, true), "{violation:?}");
            assert!(reply.problem.is_some_and(|(_, message)| message == violation.to_string()));
        }
    }
}
