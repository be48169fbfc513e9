//! What the process tells its operator over HTTP, to this machine only: `/metrics` and `/healthz`.
//!
//! Not an API for devices, and nothing here changes anything: it is read with GET, by a browser, `curl` or Prometheus.

mod health;

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::config::AdminConfig;
use crate::listener::{self, ListenError};
use crate::telemetry;

pub(crate) use health::Link;
pub use health::{Component, Health, Status};

/// Connections at a time; a further one waits in the kernel's queue.
const MAX_CONNECTIONS: usize = 32;
const HEADER_TIME_OUT: Duration = Duration::from_secs(10);
/// For a whole connection: whoever reads metrics comes again.
const CONNECTION_TIME_OUT: Duration = Duration::from_secs(300);
/// After an accept that failed for want of descriptors, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The admin listeners, bound and not yet served.
#[derive(Debug)]
pub struct Bound(Vec<TcpListener>);

impl Bound {
    /// Where they listen.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.0.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }
}

/// Binds the admin listeners; `listen = []` binds none.
///
/// # Errors
/// A port that cannot be used.
pub fn bind(config: &AdminConfig) -> Result<Bound, ListenError> {
    let mut bound = Vec::with_capacity(config.listen.len());
    for address in &config.listen {
        bound.append(&mut listener::tcp("admin", *address, NonZeroUsize::MIN)?);
    }
    Ok(Bound(bound))
}

/// Answers until `until` is over; then connections are cut, for nothing here is worth waiting for.
///
/// # Errors
/// When the runtime refuses the sockets.
pub async fn serve(bound: Bound, health: Arc<Health>, until: impl Future<Output = ()>) -> io::Result<()> {
    let mut tasks = JoinSet::new();
    for listener in bound.0 {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        tasks.spawn(accept(listener, health.clone()));
    }
    until.await;
    Ok(())
}

async fn accept(listener: tokio::net::TcpListener, health: Arc<Health>) {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= MAX_CONNECTIONS {
            connections.join_next().await;
        }
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let connection = answer_all(stream, health.clone());
                connections.spawn(tokio::time::timeout(CONNECTION_TIME_OUT, connection));
            }
            Err(error) => {
                tracing::warn!(%error, "the admin listener cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn answer_all(stream: TcpStream, health: Arc<Health>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(request.method(), request.uri().path(), &health);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME_OUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "an admin connection ended");
    }
}

fn answer(method: &Method, path: &str, health: &Health) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    let (status, media_type, body) = match (method, path) {
        (&Method::GET | &Method::HEAD, "/metrics") => {
            (StatusCode::OK, telemetry::METRICS_MEDIA_TYPE, telemetry::render())
        }
        (&Method::GET | &Method::HEAD, "/healthz") => {
            let ready = health.is_ready();
            let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            (status, "application/json", health.to_json() + "\n")
        }
        (_, "/metrics" | "/healthz") => {
            (StatusCode::METHOD_NOT_ALLOWED, TEXT, "this page is read with GET\n".into())
        }
        _ => (StatusCode::NOT_FOUND, TEXT, "there are two pages here: /metrics and /healthz\n".into()),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::oneshot;

    use super::*;

    /// Asks a console of its own over a real socket, and gives all that comes back.
    fn ask(health: Health, request: &'static str) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let bound = bind(&AdminConfig { listen: vec!["127.0.0.1:0".parse().unwrap()] }).unwrap();
            let address = bound.addresses()[0];
            let (stop, stopped) = oneshot::channel::<()>();
            let served = tokio::spawn(serve(bound, Arc::new(health), async {
                let _ = stopped.await;
            }));
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            stop.send(()).unwrap();
            served.await.unwrap().unwrap();
            text
        })
    }

    #[test]
    fn metrics_are_open_metrics() {
        let _ = telemetry::counter("console_test", "A counter of this test");
        let text = ask(Health::default(), "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(text.contains("content-type: application/openmetrics-text; version=1.0.0"), "{text}");
        assert!(text.contains("\nfieldgate_console_test_total 0\n"), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    #[test]
    fn health_is_a_status_and_its_reasons() {
        let health = Health::default();
        health.set(Component::Upstream, Status::Up);
        let text = ask(health, "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        let health = Health::default();
        health.set(Component::Upstream, Status::Down);
        let text = ask(health, "GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        assert!(text.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{text}");
        assert!(text.contains(r#"{"components":{"upstream":"down"},"status":"down"}"#), "{text}");
    }

    #[test]
    fn everything_else_is_refused_helpfully() {
        let post = answer(&Method::POST, "/metrics", &Health::default());
        assert_eq!(post.status(), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(post.headers()[ALLOW], "GET, HEAD");
        assert_eq!(answer(&Method::GET, "/", &Health::default()).status(), StatusCode::NOT_FOUND);
        let text = ask(Health::default(), "nonsense\r\n\r\n");
        assert!(text.starts_with("HTTP/1.1 400 Bad Request"), "{text}");
    }
}
