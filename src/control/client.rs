//! The tools' side of the control socket.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::HOST;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;

use super::{is_there, socket};
use crate::state::StateDir;

/// An answer is a page of a list at most.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// How long an answer may take: the gateway may be waiting for its disk.
const TIME_OUT: Duration = Duration::from_secs(60);

/// The gateway did not answer as it should.
#[derive(Debug, Error)]
pub(crate) enum ClientError {
    /// The socket cannot be used.
    #[error("the running gateway cannot be reached at {path}: {source}")]
    Io {
        /// The socket.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// HTTP failed.
    #[error("the running gateway does not answer: {0}")]
    Http(#[from] hyper::Error),
    /// It took too long.
    #[error("the running gateway does not answer within {} s", TIME_OUT.as_secs())]
    TimeOut,
    /// It refused, and said why.
    #[error("the running gateway says: {0}")]
    Refused(String),
    /// The answer is not of this program's kind.
    #[error(
        "the running gateway answers in words that this program does not know: {0}; are both of one version?"
    )]
    Content(String),
}

/// A connection to the gateway that runs.
pub(crate) struct Client {
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    /// Connects; nothing if no gateway runs with this state directory.
    ///
    /// # Errors
    /// When there is one that cannot be spoken to.
    pub(crate) async fn connect(state: &StateDir) -> Result<Option<Self>, ClientError> {
        let path = socket(state);
        if !is_there(&path) {
            return Ok(None);
        }
        let stream = match UnixStream::connect(&path).await {
            Ok(stream) => stream,
            // Its gateway was killed.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Ok(None),
            Err(source) => return Err(ClientError::Io { path: path.display().to_string(), source }),
        };
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Some(Self { sender }))
    }

    /// Asks.
    ///
    /// # Errors
    /// When there is no answer, or it is a refusal.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &mut self,
        method: Method,
        path: &str,
        body: Vec<u8>,
    ) -> Result<T, ClientError> {
        let mut request = Request::new(Full::from(body));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().map_err(|_| ClientError::Content(path.into()))?;
        request.headers_mut().insert(HOST, hyper::header::HeaderValue::from_static("localhost"));
        let (status, body) = tokio::time::timeout(TIME_OUT, async {
            let response = self.sender.send_request(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
            let body = body.map_err(|error| ClientError::Content(error.to_string()))?;
            Ok::<_, ClientError>((status, body.to_bytes()))
        })
        .await
        .map_err(|_| ClientError::TimeOut)??;
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| ClientError::Content(error.to_string()));
        }
        let said: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
        let why = said.as_ref().and_then(|said| said.get("error")).and_then(|why| why.as_str());
        Err(ClientError::Refused(why.map_or_else(|| status.to_string(), str::to_owned)))
    }
}
