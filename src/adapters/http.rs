//! HTTP/1.1 devices: one task for each connection. hyper reads and writes; what a request is, and what it is answered,
//! is said by [`Requests`].

mod body;
mod credentials;
mod requests;
mod telemetry;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use fieldgate_mappings::message::Message;
use fieldgate_mappings::outcome::Verdict;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::sleep_until;

use crate::config::HttpConfig;
use crate::devices::Pass;
use crate::telemetry::emit;
use crate::upstream::Patience;
use crate::worker::Worker;

use self::requests::Requests;
use self::telemetry::{ConnectionError, ConnectionStalled};

/// The least that hyper reads a request head into, in bytes.
const MIN_READ_BUFFER: usize = 8192;

/// Serves one connection until it ends.
pub(crate) async fn serve(stream: TcpStream, peer: SocketAddr, worker: Rc<Worker>) {
    let outbound = worker.outbound.clone();
    let send = move |message, patience, verdict| outbound.send(message, patience, verdict);
    let of = Rc::clone(&worker);
    let let_in = Box::new(move |pass: &Pass| of.let_in(pass));
    let (config, rules) = (Arc::clone(&worker.config), Arc::clone(&worker.rules));
    let requests = Requests::new(config, rules, Rc::clone(&worker.roster), send, let_in, peer);
    converse(stream, peer, &worker.config.http, requests, worker.shutdown.draining()).await;
}

/// One connection: answers requests until the device or a time-out ends it, or, after `stop`, the request under way
/// has its answer.
async fn converse<I, S>(
    stream: I,
    peer: SocketAddr,
    config: &HttpConfig,
    requests: Requests<S>,
    stop: impl Future<Output = ()>,
) where
    I: AsyncRead + AsyncWrite + Unpin + 'static,
    S: Fn(Message, Patience, Verdict) + 'static,
{
    let requests = Rc::new(requests);
    let answering = Rc::clone(&requests);
    let service = service_fn(move |request| {
        let requests = Rc::clone(&answering);
        async move { Ok::<_, Infallible>(requests.answer(request).await) }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(config.header_time_out)
        .max_buf_size(config.max_head_bytes.max(MIN_READ_BUFFER));
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut stop = pin!(stop);
    let mut stopping = false;
    let ended = loop {
        tokio::select! {
            ended = connection.as_mut() => break ended,
            () = stop.as_mut(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
            () = sleep_until(requests.stalled_at().into()) => {
                if requests.is_stalled() {
                    return emit(ConnectionStalled { peer });
                }
            }
        }
    };
    if let Err(error) = ended {
        emit(ConnectionError { peer, error });
    }
}
