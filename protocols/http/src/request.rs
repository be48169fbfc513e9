//! A request head, judged: either its decoded parts, or the violation that is its answer.

use std::borrow::Cow;

use http::header::{CONTENT_LENGTH, EXPECT, HOST};
use http::request::Parts;
use http::{HeaderMap, Method, Version};

use crate::decode::percent_decode;

/// The bounds of one request. Over the bound is an answer, never growth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest target (path and query) in bytes. Default 2,048; memory: about twice that while a request is under way.
    pub max_target_bytes: usize,
    /// Most header fields. Default 100.
    pub max_headers: usize,
    /// All header fields together, names and values, in bytes. Default 16 KiB; memory: that much for each connection
    /// with a request under way.
    pub max_header_bytes: usize,
    /// Largest body in bytes. Default 262,144 (IoT Hub's limit for a message); memory: that much for each request
    /// under way.
    pub max_body_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_target_bytes: 2048,
            max_headers: 100,
            max_header_bytes: 16 * 1024,
            max_body_bytes: 256 * 1024,
        }
    }
}

/// The decoded head of a request that is fit to be mapped.
#[derive(Debug, Clone)]
pub struct RequestHead<'a> {
    method: &'a Method,
    path: Vec<Cow<'a, str>>,
    query: Vec<(Cow<'a, str>, Option<Cow<'a, str>>)>,
    headers: &'a HeaderMap,
}

impl<'a> RequestHead<'a> {
    /// Judges a head and decodes it.
    ///
    /// # Errors
    /// The first violation; [`Reply`](crate::Reply)`::from` makes its answer.
    pub fn judge(parts: &'a Parts, limits: &Limits) -> Result<Self, Violation> {
        judge_headers(parts, limits)?;
        let target_bytes = parts.uri.path_and_query().map_or(0, |target| target.as_str().len());
        if target_bytes > limits.max_target_bytes {
            return Err(Violation::TargetTooLong);
        }
        // CONNECT's authority and OPTIONS' asterisk have no path.
        let path = parts.uri.path().strip_prefix('/').ok_or(Violation::Target)?;
        let path = path.split('/').map(segment).collect::<Result<_, _>>()?;
        let query = match parts.uri.query() {
            Some(query) => {
                query.split('&').filter(|pair| !pair.is_empty()).map(pair).collect::<Result<_, _>>()?
            }
            None => Vec::new(),
        };
        Ok(Self { method: &parts.method, path, query, headers: &parts.headers })
    }

    /// The method.
    pub fn method(&self) -> &'a Method {
        self.method
    }

    /// The path's segments, each decoded by itself; `/` alone is one empty segment.
    pub fn path(&self) -> &[Cow<'a, str>] {
        &self.path
    }

    /// The query's parameters in order, decoded; `None` for one without `=`.
    pub fn query(&self) -> &[(Cow<'a, str>, Option<Cow<'a, str>>)] {
        &self.query
    }

    /// The header fields.
    pub fn headers(&self) -> &'a HeaderMap {
        self.headers
    }
}

fn judge_headers(parts: &Parts, limits: &Limits) -> Result<(), Violation> {
    let headers = &parts.headers;
    if headers.len() > limits.max_headers {
        return Err(Violation::HeadersTooLarge);
    }
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    if bytes > limits.max_header_bytes {
        return Err(Violation::HeadersTooLarge);
    }
    // RFC 9112 3.2: exactly one Host, whatever else names the authority.
    let hosts = headers.get_all(HOST).iter().count();
    if hosts > 1 || (hosts == 0 && parts.version == Version::HTTP_11) {
        return Err(Violation::Host);
    }
    // RFC 9110 8.6: only digits; equal repetitions are joined with commas by some senders, and refused here.
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        let digits =
            length.to_str().ok().filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()));
        let Some(digits) = digits.filter(|_| lengths.next().is_none()) else {
            return Err(Violation::ContentLength);
        };
        // Digits that do not fit into a number are a length over any limit.
        if digits.parse::<usize>().map_or(true, |length| length > limits.max_body_bytes) {
            return Err(Violation::BodyTooLarge { max_bytes: limits.max_body_bytes });
        }
    }
    // RFC 9110 10.1.1: there is no other expectation.
    if headers.get_all(EXPECT).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return Err(Violation::Expectation);
    }
    Ok(())
}

fn segment(raw: &str) -> Result<Cow<'_, str>, Violation> {
    let decoded = percent_decode(raw).ok_or(Violation::Escape)?;
    // Whether a proxy on the way resolved it or not must not change what the path means.
    if matches!(&*decoded, "." | "..") { Err(Violation::DotSegment) } else { Ok(decoded) }
}

type Pair<'a> = (Cow<'a, str>, Option<Cow<'a, str>>);

fn pair(raw: &str) -> Result<Pair<'_>, Violation> {
    let decode = |text| percent_decode(text).ok_or(Violation::Escape);
    match raw.split_once('=') {
        Some((name, value)) => Ok((decode(name)?, Some(decode(value)?))),
        None => Ok((decode(raw)?, None)),
    }
}

/// What is wrong with a request before anybody asks what it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Not a path: CONNECT's authority, OPTIONS' asterisk.
    #[error("the request target must be a path")]
    Target,
    /// Path and query are over the limit.
    #[error("the request target is too long")]
    TargetTooLong,
    /// A malformed escape, text that is not UTF-8, or a control character.
    #[error("the request target has a malformed percent escape, or one that is not UTF-8 text")]
    Escape,
    /// `.` or `..` as a segment.
    #[error("the path has a relative segment")]
    DotSegment,
    /// Too many header fields, or too large ones.
    #[error("the header fields are too large")]
    HeadersTooLarge,
    /// No Host in HTTP/1.1, or several.
    #[error("exactly one Host field is required")]
    Host,
    /// Not a number, or several.
    #[error("the Content-Length field is malformed")]
    ContentLength,
    /// An Expect field other than `100-continue`.
    #[error("the expectation is not known")]
    Expectation,
    /// The body is over the limit: as announced, or as the driver counted it.
    #[error("the body is larger than {max_bytes} bytes")]
    BodyTooLarge {
        /// The limit.
        max_bytes: usize,
    },
    /// The body did not come in time; the driver's clock.
    #[error("the request did not come in time")]
    TimedOut,
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    fn parts(method: &str, target: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri(target);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn judge(target: &str) -> Result<(Vec<String>, usize), Violation> {
        let parts = parts("POST", target, &[("host", "h")]);
        RequestHead::judge(&parts, &Limits::default())
            .map(|head| (head.path().iter().map(|segment| segment.to_string()).collect(), head.query().len()))
    }

    #[test]
    fn paths_are_cut_before_they_are_decoded() {
        for (target, segments) in [
            ("/", vec![""]),
            ("/devices/dev1/messages/events", vec!["devices", "dev1", "messages", "events"]),
            ("/devices/a%2Fb/messages", vec!["devices", "a/b", "messages"]),
            ("/devices/a%2f..%2fb", vec!["devices", "a/../b"]),
            ("/a//b/", vec!["a", "", "b", ""]),
            ("/%C3%A9/%2541", vec!["é", "%41"]),
            ("http://h:8080/a/b?x", vec!["a", "b"]),
        ] {
            assert_eq!(judge(target).unwrap().0, segments, "{target}");
        }
    }

    #[test]
    fn hostile_targets_are_refused() {
        for (target, violation) in [
            ("/a/%", Violation::Escape),
            ("/a/%4", Violation::Escape),
            ("/a/%zz/b", Violation::Escape),
            ("/a/%ff", Violation::Escape),
            ("/a/%00", Violation::Escape),
            ("/a?b=%", Violation::Escape),
            ("/a?%=b", Violation::Escape),
            ("/a/../b", Violation::DotSegment),
            ("/a/%2e%2E/b", Violation::DotSegment),
            ("/./b", Violation::DotSegment),
            ("*", Violation::Target),
        ] {
            assert_eq!(judge(target), Err(violation), "{target}");
        }
        let connect = parts("CONNECT", "h:80", &[("host", "h")]);
        assert_eq!(RequestHead::judge(&connect, &Limits::default()).unwrap_err(), Violation::Target);
        assert_eq!(judge(&format!("/{}", "x".repeat(2048))), Err(Violation::TargetTooLong));
        assert!(judge(&format!("/{}", "x".repeat(2047))).is_ok());
    }

    #[test]
    fn query_parameters_are_pairs() {
        let parts = parts("POST", "/?api-version=2020-03-13&reject&x=&&y=a%26b%3Dc=d", &[("host", "h")]);
        let head = RequestHead::judge(&parts, &Limits::default()).unwrap();
        let pairs: Vec<_> = head.query().iter().map(|(name, value)| (&**name, value.as_deref())).collect();
        assert_eq!(
            pairs,
            [("api-version", Some("2020-03-13")), ("reject", None), ("x", Some("")), ("y", Some("a&b=c=d"))]
        );
    }

    #[test]
    fn headers_are_judged() {
        let limits =
            Limits { max_headers: 4, max_header_bytes: 100, max_body_bytes: 10, ..Limits::default() };
        let long = "x".repeat(100);
        for (headers, expected) in [
            (vec![("host", "h")], None),
            (vec![], Some(Violation::Host)),
            (vec![("host", "h"), ("host", "h")], Some(Violation::Host)),
            (vec![("host", "h"), ("content-length", "10")], None),
            (vec![("host", "h"), ("content-length", "11")], Some(Violation::BodyTooLarge { max_bytes: 10 })),
            (
                vec![("host", "h"), ("content-length", "99999999999999999999999")],
                Some(Violation::BodyTooLarge { max_bytes: 10 }),
            ),
            (vec![("host", "h"), ("content-length", "-1")], Some(Violation::ContentLength)),
            (vec![("host", "h"), ("content-length", "+1")], Some(Violation::ContentLength)),
            (vec![("host", "h"), ("content-length", "")], Some(Violation::ContentLength)),
            (
                vec![("host", "h"), ("content-length", "1"), ("content-length", "1")],
                Some(Violation::ContentLength),
            ),
            (vec![("host", "h"), ("expect", "100-Continue")], None),
            (vec![("host", "h"), ("expect", "200-ok")], Some(Violation::Expectation)),
            (vec![("host", "h"), ("x", &long)], Some(Violation::HeadersTooLarge)),
            (
                vec![("host", "h"), ("a", ""), ("a", ""), ("a", ""), ("a", "")],
                Some(Violation::HeadersTooLarge),
            ),
        ] {
            let parts = parts("POST", "/", &headers);
            assert_eq!(RequestHead::judge(&parts, &limits).err(), expected, "{headers:?}");
        }
    }

    #[test]
    fn only_http_1_1_needs_a_host() {
        for (version, expected) in
            [(Version::HTTP_10, None), (Version::HTTP_11, Some(Violation::Host)), (Version::HTTP_2, None)]
        {
            let mut parts = parts("POST", "/", &[]);
            parts.version = version;
            assert_eq!(RequestHead::judge(&parts, &Limits::default()).err(), expected, "{version:?}");
        }
    }
}
