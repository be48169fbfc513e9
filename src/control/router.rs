//! Who answers what: a method and a path, exactly as they are written.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use hyper::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A question, without its method and path.
#[derive(Debug)]
pub(crate) struct Asked {
    /// What stands behind the path's `?`.
    pub(crate) query: String,
    pub(crate) body: Bytes,
}

/// An answer: JSON with a status.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

type Handler = Box<dyn Fn(Asked) -> Pin<Box<dyn Future<Output = Reply>>>>;

/// All routes of a process.
#[derive(Default)]
pub(crate) struct Router {
    routes: Vec<(Method, &'static str, Handler)>,
}

impl Asked {
    /// Reads the body.
    ///
    /// # Errors
    /// An answer that says what is wrong with it.
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, Reply> {
        serde_json::from_slice(&self.body).map_err(|error| {
            Reply::wrong(StatusCode::BAD_REQUEST, &format!("the body is not as it should be: {error}"))
        })
    }

    /// A value of the query, as it is written there: percent-encoded.
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        let pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(key, _)| *key == name).map(|(_, value)| value).next()
    }
}

impl Reply {
    /// What was asked for.
    pub(crate) fn json(answer: &impl Serialize) -> Self {
        match serde_json::to_vec(answer) {
            Ok(body) => Self { status: StatusCode::OK, body: body.into() },
            Err(error) => Self::wrong(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        }
    }

    /// Why there is none: `{"error":"…"}`.
    pub(crate) fn wrong(status: StatusCode, why: &str) -> Self {
        Self { status, body: serde_json::json!({ "error": why }).to_string().into() }
    }
}

impl Router {
    /// Adds a route.
    pub(crate) fn add<F, Fut>(&mut self, method: Method, path: &'static str, handler: F)
    where
        F: Fn(Asked) -> Fut + 'static,
        Fut: Future<Output = Reply> + 'static,
    {
        self.routes.push((method, path, Box::new(move |asked| Box::pin(handler(asked)))));
    }

    /// Whether there is nothing to answer.
    pub(crate) fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    pub(super) async fn answer(&self, method: &Method, path: &str, asked: Asked) -> Reply {
        let mut here = self.routes.iter().filter(|(_, known, _)| *known == path).peekable();
        if here.peek().is_none() {
            return Reply::wrong(StatusCode::NOT_FOUND, &format!("nothing is at {path}"));
        }
        match here.find(|(known, ..)| known == method) {
            Some((.., handler)) => handler(asked).await,
            None => Reply::wrong(StatusCode::METHOD_NOT_ALLOWED, &format!("{path} is not for {method}")),
        }
    }
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.routes.iter().map(|(method, path, _)| (method, path))).finish()
    }
}
