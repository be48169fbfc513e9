//! The control socket: how the tools talk to the gateway that runs with their state directory.
//!
//! HTTP/1 over a Unix socket that only its user can open, answers in JSON. Not for devices and not for the network: the
//! file's rights are all that is asked for. Parts of the program add their routes to one [`Router`].

mod client;
mod router;

use std::convert::Infallible;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use crate::state::{StateDir, StateError};

pub(crate) use client::{Client, ClientError};
pub(crate) use router::{Asked, Reply, Router};

/// The socket's name in the state directory.
const SOCKET: &str = "control.sock";
/// Connections at a time; a further one waits in the kernel's queue.
const MAX_CONNECTIONS: usize = 8;
/// An order is a few words.
const MAX_BODY_BYTES: usize = 64 * 1024;
const HEADER_TIME_OUT: Duration = Duration::from_secs(10);
/// For a whole connection.
const CONNECTION_TIME_OUT: Duration = Duration::from_secs(300);
/// After an accept that failed for want of descriptors, so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// There is no control socket. The gateway works without it.
#[derive(Debug, Error)]
pub(crate) enum ControlError {
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// Another process listens there.
    #[error("{} belongs to another gateway that runs", .0.display())]
    InUse(PathBuf),
    /// What the system said.
    #[error("{}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// Where the socket of a state directory is.
fn socket(state: &StateDir) -> PathBuf {
    state.path().join(SOCKET)
}

/// The socket, bound and not yet served; the file is removed with it.
#[derive(Debug)]
pub(crate) struct Bound {
    listener: net::UnixListener,
    path: PathBuf,
}

impl Drop for Bound {
    fn drop(&mut self) {
        // Left behind it would be in nobody's way: the next start takes its place.
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes the socket.
///
/// # Errors
/// When another process has it, or the system refuses.
pub(crate) fn bind(state: &StateDir) -> Result<Bound, ControlError> {
    state.make()?;
    let path = socket(state);
    let failed = |source| ControlError::Io { path: path.clone(), source };
    let listener = match net::UnixListener::bind(&path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if net::UnixStream::connect(&path).is_ok() {
                return Err(ControlError::InUse(path));
            }
            fs::remove_file(&path).map_err(failed)?;
            net::UnixListener::bind(&path).map_err(failed)?
        }
        bound => bound.map_err(failed)?,
    };
    let bound = Bound { listener, path };
    restrict(&bound).map_err(|source| ControlError::Io { path: bound.path.clone(), source })?;
    Ok(bound)
}

/// For its user only. The directory is so as well, so nobody came in between.
fn restrict(bound: &Bound) -> io::Result<()> {
    fs::set_permissions(&bound.path, Permissions::from_mode(0o600))?;
    bound.listener.set_nonblocking(true)
}

/// Answers until it is dropped.
pub(crate) async fn serve(bound: Bound, router: Router) {
    let listener = match bound.listener.try_clone().and_then(UnixListener::from_std) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%error, "there is no control socket");
            return std::future::pending().await;
        }
    };
    let router = Rc::new(router);
    let mut connections = JoinSet::new();
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            loop {
                while connections.len() >= MAX_CONNECTIONS {
                    connections.join_next().await;
                }
                while connections.try_join_next().is_some() {}
                match listener.accept().await {
                    Ok((stream, _)) => {
                        let connection = answer_all(stream, Rc::clone(&router));
                        connections.spawn_local(tokio::time::timeout(CONNECTION_TIME_OUT, connection));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the control socket cannot accept");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        })
        .await
}

async fn answer_all(stream: UnixStream, router: Rc<Router>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let router = Rc::clone(&router);
        async move { Ok::<_, Infallible>(answer(request, &router).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME_OUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a control connection ended");
    }
}

async fn answer(request: Request<Incoming>, router: &Router) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let reply = match Limited::new(body, MAX_BODY_BYTES).collect().await {
        Ok(body) => {
            let asked =
                Asked { query: head.uri.query().unwrap_or_default().to_owned(), body: body.to_bytes() };
            router.answer(&head.method, head.uri.path(), asked).await
        }
        Err(error) => Reply::wrong(StatusCode::BAD_REQUEST, &format!("the body cannot be read: {error}")),
    };
    let mut response = Response::new(Full::from(reply.body));
    *response.status_mut() = reply.status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Whether a path is a socket that could be spoken to.
fn is_there(path: &Path) -> bool {
    path.try_exists().unwrap_or(false)
}

#[cfg(test)]
mod tests;
