//! The server's side of the handshake (RFC 6455 4.2): a request head judged, and answered in HTTP.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use httparse::{EMPTY_HEADER, Header, Status};
use thiserror::Error;

use crate::head::{MAX_FIELDS, accept, elements, names, only};
use crate::{
    MQTT_PATH, MQTT_SUBPROTOCOL, OASIS_SUBPROTOCOL, OLD_MQTT_SUBPROTOCOL, PATH, SERVICE_BUS_PATH, SUBPROTOCOL,
};

/// What a WebSocket is to carry, and how a client asks for it.
#[derive(Debug, PartialEq, Eq)]
pub struct Service {
    /// The protocol, for a person.
    pub name: &'static str,
    /// Where it is; the first one is named to those who look elsewhere.
    pub paths: &'static [&'static str],
    /// What it is called; the first one is named to those who ask for something else.
    pub subprotocols: &'static [&'static str],
}

/// AMQP over WebSocket.
pub const AMQP: Service = Service {
    name: "AMQP",
    paths: &[PATH, SERVICE_BUS_PATH],
    subprotocols: &[SUBPROTOCOL, OASIS_SUBPROTOCOL],
};

/// MQTT over WebSocket (MQTT 5 6), at Azure's path and at the usual one.
pub const MQTT: Service = Service {
    name: "MQTT",
    paths: &[MQTT_PATH, PATH],
    subprotocols: &[MQTT_SUBPROTOCOL, OLD_MQTT_SUBPROTOCOL],
};

/// Why a request is not answered with a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// No HTTP, or fields that contradict each other.
    #[error("this is not an HTTP request")]
    Malformed,
    /// Another version than HTTP/1.1.
    #[error("HTTP/1.1 is spoken here")]
    Version,
    /// Another method than GET.
    #[error("the method is GET here")]
    Method,
    /// There is nothing at this path.
    #[error("{} over WebSocket is at {} here", .0.name, .0.paths[0])]
    Path(&'static Service),
    /// HTTP without a wish for a WebSocket, or for another version of it.
    #[error("this is for WebSocket, version 13")]
    Upgrade,
    /// The key is missing or none.
    #[error("Sec-WebSocket-Key is not a key of 16 bytes")]
    Key,
    /// The service is not among what the client would speak.
    #[error("the WebSocket subprotocol is {} here", .0.subprotocols[0])]
    Subprotocol(&'static Service),
    /// A page of another site, in a browser on this network.
    #[error("pages of other sites may not connect here")]
    Origin,
    /// More than [`MAX_HEAD_BYTES`](crate::MAX_HEAD_BYTES), or too many fields.
    #[error("the head of the request is too large")]
    TooLarge,
    /// The head did not come in time.
    #[error("the head of the request took too long")]
    TooSlow,
}

impl Refusal {
    /// The answer, whole; the connection is to be closed behind it.
    #[must_use]
    pub fn answer(self) -> String {
        let (status, more) = match self {
            Self::Malformed | Self::Key | Self::Subprotocol(_) => ("400 Bad Request", ""),
            Self::Origin => ("403 Forbidden", ""),
            Self::Path(_) => ("404 Not Found", ""),
            Self::Method => ("405 Method Not Allowed", "Allow: GET\r\n"),
            Self::TooSlow => ("408 Request Timeout", ""),
            Self::Upgrade => (
                "426 Upgrade Required",
                "Upgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Version: 13\r\n",
            ),
            Self::TooLarge => ("431 Request Header Fields Too Large", ""),
            Self::Version => ("505 HTTP Version Not Supported", ""),
        };
        let text = format!("{self}\n");
        let close = if matches!(self, Self::Upgrade) { "" } else { "Connection: close\r\n" };
        format!(
            "HTTP/1.1 {status}\r\n{more}{close}Content-Type: text/plain\r\nContent-Length: {}\r\n\r\n{text}",
            text.len()
        )
    }
}

/// Judges the head of a request, up to and with the empty line: the head of the answer that makes it a WebSocket.
///
/// # Errors
/// Why not.
pub fn judge(head: &[u8], service: &'static Service) -> Result<String, Refusal> {
    let mut fields = [EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(Status::Complete(_)) => {}
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::TooLarge),
        Err(httparse::Error::Version) => return Err(Refusal::Version),
        Ok(Status::Partial) | Err(_) => return Err(Refusal::Malformed),
    }
    if request.version != Some(1) {
        return Err(Refusal::Version);
    }
    if request.method != Some("GET") {
        return Err(Refusal::Method);
    }
    let fields = &*request.headers;
    let host = only(fields, "Host").ok_or(Refusal::Malformed)?;
    let has_body = fields.iter().any(|field| field.name.eq_ignore_ascii_case("Transfer-Encoding"))
        || elements(fields, "Content-Length").any(|length| length != "0");
    if has_body {
        return Err(Refusal::Malformed);
    }
    if !request.path.is_some_and(|path| is_path(path, service)) {
        return Err(Refusal::Path(service));
    }
    let upgrades = names(fields, "Upgrade", "websocket") && names(fields, "Connection", "upgrade");
    if !upgrades || only(fields, "Sec-WebSocket-Version") != Some("13") {
        return Err(Refusal::Upgrade);
    }
    check_origin(fields, host)?;
    let key = only(fields, "Sec-WebSocket-Key").ok_or(Refusal::Key)?;
    if BASE64.decode(key).map_or(0, |key| key.len()) != 16 {
        return Err(Refusal::Key);
    }
    let ours = |offered: &&str| service.subprotocols.iter().any(|ours| ours.eq_ignore_ascii_case(offered));
    let subprotocol =
        elements(fields, "Sec-WebSocket-Protocol").find(ours).ok_or(Refusal::Subprotocol(service))?;
    Ok(format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {}\r\nSec-WebSocket-Protocol: {subprotocol}\r\n\r\n",
        accept(key)
    ))
}

/// The path, whatever the query; some clients write `$` as `%24`.
fn is_path(target: &str, service: &Service) -> bool {
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    let path = path.replacen("%24", "$", 1);
    service.paths.contains(&&*path)
}

/// Browsers let every page connect everywhere, and say on whose behalf: without a look at it any web page could speak
/// to a gateway in its visitor's network (RFC 6455 10.2). A client that says nothing is no browser.
fn check_origin(fields: &[Header<'_>], host: &str) -> Result<(), Refusal> {
    if !fields.iter().any(|field| field.name.eq_ignore_ascii_case("Origin")) {
        return Ok(());
    }
    let origin = only(fields, "Origin").and_then(|origin| origin.split_once("://"));
    match origin {
        Some((_, authority)) if without_port(authority).eq_ignore_ascii_case(without_port(host)) => Ok(()),
        _ => Err(Refusal::Origin),
    }
}

fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::end_of_head;

    const GOOD: &str = "GET /$iothub/websocket?iothub-no-client-cert=true HTTP/1.1\r\nHost: hub.example:443\r\n\
        Upgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Protocol: chat, AMQPWSB10\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n";

    fn with(from: &str, to: &str) -> Result<String, Refusal> {
        assert!(GOOD.contains(from), "{from}");
        judge(GOOD.replacen(from, to, 1).as_bytes(), &AMQP)
    }

    #[test]
    fn a_good_request_is_answered_as_the_specification_shows() {
        // RFC 6455 1.3.
        let answer = judge(GOOD.as_bytes(), &AMQP).unwrap();
        assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
        assert!(answer.contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{answer}");
        assert!(answer.contains("\r\nSec-WebSocket-Protocol: AMQPWSB10\r\n"), "{answer}");
        assert!(!answer.contains("Extensions"), "{answer}");
        assert_eq!(end_of_head(answer.as_bytes()), Some(answer.len()));
        for (from, to) in [
            ("/$iothub/websocket?iothub-no-client-cert=true", "/$servicebus/websocket"),
            ("/$iothub", "/%24iothub"),
            ("chat, AMQPWSB10", "amqp"),
            ("Host", "Origin: https://HUB.example\r\nHost"),
            ("Host", "Content-Length: 0\r\nHost"),
        ] {
            assert!(with(from, to).is_ok(), "{to}");
        }
    }

    #[test]
    fn mqtt_has_its_own_paths_and_names() {
        let asked = |path: &str, subprotocol: &str| {
            let head = GOOD.replacen("/$iothub/websocket?iothub-no-client-cert=true", path, 1).replacen(
                "chat, AMQPWSB10",
                subprotocol,
                1,
            );
            judge(head.as_bytes(), &MQTT)
        };
        for (path, subprotocol) in [
            ("/mqtt", "mqtt"),
            ("/$iothub/websocket?iothub-no-client-cert=true", "mqtt"),
            ("/%24iothub/websocket", "MQTT, chat"),
            ("/mqtt", "mqttv3.1"),
        ] {
            assert!(asked(path, subprotocol).is_ok(), "{path} {subprotocol}");
        }
        assert_eq!(asked("/", "mqtt"), Err(Refusal::Path(&MQTT)));
        assert_eq!(asked("/$servicebus/websocket", "mqtt"), Err(Refusal::Path(&MQTT)));
        assert_eq!(asked("/mqtt", "AMQPWSB10"), Err(Refusal::Subprotocol(&MQTT)));
        assert_eq!(Refusal::Path(&MQTT).to_string(), "MQTT over WebSocket is at /mqtt here");
        assert_eq!(Refusal::Subprotocol(&AMQP).to_string(), "the WebSocket subprotocol is AMQPWSB10 here");
    }

    #[test]
    fn every_other_request_is_told_why_not() {
        for (from, to, refusal) in [
            ("GET", "POST", Refusal::Method),
            ("GET /", "GET", Refusal::Malformed),
            ("HTTP/1.1", "HTTP/1.0", Refusal::Version),
            ("HTTP/1.1", "HTTP/2.0", Refusal::Version),
            ("HTTP/1.1", "HTCPCP/1.0", Refusal::Version),
            ("/$iothub/websocket", "/", Refusal::Path(&AMQP)),
            ("/$iothub/websocket", "/$iothub/websocket/", Refusal::Path(&AMQP)),
            ("Upgrade: WebSocket\r\n", "", Refusal::Upgrade),
            ("keep-alive, Upgrade", "keep-alive", Refusal::Upgrade),
            ("Version: 13", "Version: 8", Refusal::Upgrade),
            ("Sec-WebSocket-Version: 13\r\n", "", Refusal::Upgrade),
            ("AMQPWSB10", "mqtt", Refusal::Subprotocol(&AMQP)),
            ("Sec-WebSocket-Protocol", "X", Refusal::Subprotocol(&AMQP)),
            ("Sec-WebSocket-Key", "X", Refusal::Key),
            ("dGhlIHNhbXBsZSBub25jZQ==", "c2hvcnQ=", Refusal::Key),
            (
                "Sec-WebSocket-Key",
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Key",
                Refusal::Key,
            ),
            ("Host: hub.example:443\r\n", "", Refusal::Malformed),
            ("Host", "Content-Length: 7\r\nHost", Refusal::Malformed),
            ("Host", "Transfer-Encoding: chunked\r\nHost", Refusal::Malformed),
            ("Host", "Origin: https://evil.example\r\nHost", Refusal::Origin),
            ("Host", "Origin: null\r\nHost", Refusal::Origin),
            ("Host", "Origin: https://hub.example\r\nOrigin: https://evil.example\r\nHost", Refusal::Origin),
            ("Host: ", &"a: b\r\n".repeat(64), Refusal::TooLarge),
            ("\r\n\r\n", "\r\n", Refusal::Malformed),
        ] {
            assert_eq!(with(from, to), Err(refusal), "{to}");
        }
        assert_eq!(judge(b"", &AMQP), Err(Refusal::Malformed));
        assert_eq!(judge(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", &AMQP), Err(Refusal::Path(&AMQP)));
    }

    #[test]
    fn a_refusal_is_an_answer_of_its_own_length() {
        for refusal in
            [Refusal::Malformed, Refusal::Path(&AMQP), Refusal::Method, Refusal::Upgrade, Refusal::TooSlow]
        {
            let answer = refusal.answer();
            let (head, body) = answer.split_at(end_of_head(answer.as_bytes()).unwrap());
            assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{answer}");
            assert_eq!(head.matches("Connection: ").count(), 1, "{answer}");
        }
    }

    #[test]
    fn no_head_makes_it_panic() {
        for cut in 0..GOOD.len() {
            assert!(judge(&GOOD.as_bytes()[..cut], &AMQP).is_err());
            let mut wrong = GOOD.as_bytes().to_vec();
            for byte in [0, b'\r', b' ', b',', 0x80, 0xff] {
                wrong[cut] = byte;
                let _ = judge(&wrong, &AMQP);
            }
        }
    }
}
