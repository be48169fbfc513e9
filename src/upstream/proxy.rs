//! A tunnel through an HTTP proxy: `CONNECT` (RFC 9110 9.3.6), with basic authentication (RFC 7617).

use std::io;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use fieldgate_websocket::end_of_head;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::config::{HostPort, Proxy};

/// The longest head of an answer that is read.
const MAX_HEAD_BYTES: usize = 8 * 1024;
/// How much of what a proxy says is shown.
const MAX_REASON: usize = 80;

/// The proxy made no tunnel.
#[derive(Debug, Error)]
pub(crate) enum ProxyError {
    /// It cannot be reached.
    #[error("no TCP connection to it: {0}")]
    Away(io::Error),
    /// The connection to it was lost.
    #[error("it closed the connection: {0}")]
    Lost(#[from] io::Error),
    /// It wants to know who asks.
    #[error(
        "it wants a user and a password (407); `proxy = \"http://user@host:port\"` and `proxy_password_file`"
    )]
    Anonymous,
    /// It knows better.
    #[error("it refuses the user or the password (407); see `proxy`")]
    Credentials,
    /// It may not.
    #[error(
        "it does not allow tunnels to this host and port ({status}{reason}); its administrator can, or another port"
    )]
    Forbidden {
        /// The status code.
        status: u16,
        /// What it says to it.
        reason: String,
    },
    /// It cannot.
    #[error(
        "it cannot reach the hub itself ({status}{reason}); is the hub's address right, and does the proxy know the name?"
    )]
    Unreachable {
        /// The status code.
        status: u16,
        /// What it says to it.
        reason: String,
    },
    /// Anything else.
    #[error("it answers {status}{reason}")]
    Status {
        /// The status code.
        status: u16,
        /// What it says to it.
        reason: String,
    },
    /// No HTTP.
    #[error("what it answers is not HTTP; is it a proxy?")]
    Malformed,
    /// A head without end.
    #[error("the head of its answer is longer than {} KiB", MAX_HEAD_BYTES / 1024)]
    TooLarge,
    /// It would stand between hub and gateway, or confuses them.
    #[error("it says something of its own behind its answer, where only the hub may speak")]
    Talks,
}

/// Has the proxy make a tunnel on this connection. How long that may take is the caller's to bound.
///
/// # Errors
/// What the proxy says, or that it says nothing that can be used.
pub(super) async fn tunnel<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    proxy: &Proxy,
    to: &HostPort,
) -> Result<S, ProxyError> {
    let mut request = format!("CONNECT {to} HTTP/1.1\r\nHost: {to}\r\n");
    if let Some((user, password)) = &proxy.credentials {
        let pair = BASE64.encode(format!("{user}:{}", password.expose()));
        request += &format!("Proxy-Authorization: Basic {pair}\r\n");
    }
    request += "\r\n";
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut head = Vec::new();
    let end = loop {
        if head.len() >= MAX_HEAD_BYTES {
            return Err(ProxyError::TooLarge);
        }
        let mut rest = (&mut stream).take((MAX_HEAD_BYTES - head.len()) as u64);
        if rest.read_buf(&mut head).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        if let Some(end) = end_of_head(&head) {
            break end;
        }
    };
    judge(&head[..end], proxy.credentials.is_some())?;
    // Hubs speak when they are spoken to.
    if end == head.len() { Ok(stream) } else { Err(ProxyError::Talks) }
}

fn judge(head: &[u8], named: bool) -> Result<(), ProxyError> {
    let (status, reason) = status(head).ok_or(ProxyError::Malformed)?;
    Err(match status {
        200..300 => return Ok(()),
        407 if named => ProxyError::Credentials,
        407 => ProxyError::Anonymous,
        401 | 403 | 405 => ProxyError::Forbidden { status, reason },
        502..=504 => ProxyError::Unreachable { status, reason },
        _ => ProxyError::Status { status, reason },
    })
}

/// The status line (RFC 9112 4); the reason as far as it may stand in a log, which the proxy chose.
fn status(head: &[u8]) -> Option<(u16, String)> {
    let line = head.split(|byte| *byte == b'\r').next()?;
    let rest = line.strip_prefix(b"HTTP/1.1 ").or_else(|| line.strip_prefix(b"HTTP/1.0 "))?;
    let (code, reason) = rest.split_at_checked(3)?;
    let status = std::str::from_utf8(code).ok()?.parse().ok().filter(|status| (100..600).contains(status))?;
    let shown: String = String::from_utf8_lossy(reason)
        .chars()
        .filter(|c| c.is_ascii_graphic() || *c == ' ')
        .take(MAX_REASON)
        .collect();
    let reason = if shown.trim().is_empty() { String::new() } else { format!(" {}", shown.trim()) };
    Some((status, reason))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::duplex;

    use super::*;
    use crate::config::Config;

    fn proxy(url: &str) -> Arc<Proxy> {
        let text = format!("[upstream]\nurl = \"amqps://hub.example\"\nproxy = \"{url}\"");
        Config::parse("f", &text, None).unwrap().upstream.access.proxy.unwrap()
    }

    /// What a proxy is asked that answers so, and what comes of it.
    async fn ask(url: &str, answer: &[u8]) -> (String, Result<(), String>) {
        let (ours, mut theirs) = duplex(64 * 1024);
        let to = HostPort { host: "::1".into(), port: 5671 };
        let through = proxy(url);
        let asking = tunnel(ours, &through, &to);
        let answering = async {
            let mut asked = Vec::new();
            while end_of_head(&asked).is_none() {
                theirs.read_buf(&mut asked).await.unwrap();
            }
            // In pieces; the other side may have gone by then.
            for piece in answer.chunks(7) {
                let _ = theirs.write_all(piece).await;
                tokio::task::yield_now().await;
            }
            drop(theirs);
            String::from_utf8(asked).unwrap()
        };
        let (tunnelled, asked) = tokio::join!(asking, answering);
        (asked, tunnelled.map(drop).map_err(|error| error.to_string()))
    }

    #[tokio::test]
    async fn the_hub_is_asked_for_by_name_and_the_user_named_once() {
        let (asked, done) = ask("http://p:1", b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n").await;
        assert_eq!(
            (asked.as_str(), done),
            ("CONNECT [::1]:5671 HTTP/1.1\r\nHost: [::1]:5671\r\n\r\n", Ok(()))
        );
        let (asked, done) = ask("http://Aladdin:open%20sesame@p:1", b"HTTP/1.0 200 OK\r\n\r\n").await;
        // RFC 7617 2.
        assert!(asked.contains("\r\nProxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n"), "{asked}");
        assert_eq!(done, Ok(()));
    }

    #[tokio::test]
    async fn every_no_says_what_to_do() {
        let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(MAX_HEAD_BYTES));
        let named = "http://user:hidden@p:1";
        for (url, answer, word) in [
            (
                "http://p:1",
                "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
                "wants a user and a password",
            ),
            (
                named,
                "HTTP/1.1 407 No\r\nProxy-Authenticate: Basic\r\n\r\n",
                "refuses the user or the password",
            ),
            (
                named,
                "HTTP/1.1 403 Forbidden\r\n\r\n",
                "does not allow tunnels to this host and port (403 Forbidden)",
            ),
            (named, "HTTP/1.1 502 Bad Gateway\r\n\r\n", "cannot reach the hub itself (502 Bad Gateway)"),
            (named, "HTTP/1.1 503\r\n\r\n", "(503)"),
            (named, "HTTP/1.1 301 Moved\x1b[31m\r\nLocation: x\r\n\r\n", "it answers 301 Moved[31m"),
            (named, "SSH-2.0-OpenSSH\r\n\r\n", "is it a proxy?"),
            (named, "HTTP/1.1 2OO OK\r\n\r\n", "is it a proxy?"),
            (named, "HTTP/1.1 20\r\n\r\n", "is it a proxy?"),
            (named, "HTTP/1.1 200 OK\r\n\r\nhello", "of its own"),
            (named, "HTTP/1.1 200 OK\r\nX: y", "it closed the connection"),
            (named, "", "it closed the connection"),
            (named, &long, "longer than 8 KiB"),
        ] {
            let error = ask(url, answer.as_bytes()).await.1.unwrap_err();
            assert!(error.contains(word), "{word}: {error}");
            assert!(!error.contains("hidden"), "{error}");
        }
    }
}
