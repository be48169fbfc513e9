//! A simulated HTTP device: POSTs its readings over one connection that stays open.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::HOST;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::device::{ANSWER_TIME_OUT, Device, Trouble};
use super::note::News;

/// Of an answer's body; it only explains a status.
const MAX_ANSWER_BYTES: usize = 4096;

/// One connection, until the stop or its end.
pub(super) async fn live(device: &mut Device) -> Result<(), Trouble> {
    let connecting = timeout(ANSWER_TIME_OUT, TcpStream::connect(device.address));
    let stream = connecting.await.map_err(|_| Trouble::silence("connection"))??;
    stream.set_nodelay(true)?;
    let (mut requests, connection) = http1::handshake(TokioIo::new(stream)).await?;
    device.is_up(false);
    tokio::select! {
        ended = connection => {
            ended?;
            Err(Trouble::new("the gateway closed the connection"))
        }
        left = send_all(device, &mut requests) => left,
    }
}

async fn send_all(device: &mut Device, requests: &mut SendRequest<Full<Bytes>>) -> Result<(), Trouble> {
    loop {
        let reading = tokio::select! {
            reading = device.readings.next() => reading,
            () = device.stop.draining() => return Ok(()),
        };
        let (bytes, sent) = (reading.len(), Instant::now());
        let exchange = timeout(ANSWER_TIME_OUT, post(device, requests, reading));
        let response = exchange.await.map_err(|_| Trouble::silence("answer"))??;
        device.tell(news(response, bytes, sent.elapsed()).await?).await;
    }
}

async fn post(
    device: &Device,
    requests: &mut SendRequest<Full<Bytes>>,
    reading: String,
) -> Result<Response<Incoming>, Trouble> {
    let (name, value) = device.plan.property;
    let request = Request::post(format!("/devices/{}/messages/events", device.plan.id))
        .header(HOST, device.address.to_string())
        .header("iothub-contenttype", "application/json")
        .header(format!("iothub-app-{name}"), value)
        .body(Full::from(reading))?;
    requests.ready().await?;
    Ok(requests.send_request(request).await?)
}

async fn news(response: Response<Incoming>, bytes: usize, took: Duration) -> Result<News, Trouble> {
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect();
    // The body must be read to its end before the next request, of a success as well.
    let body = timeout(ANSWER_TIME_OUT, body).await.map_err(|_| Trouble::silence("end of the answer"))?;
    if status.is_success() {
        return Ok(News::Accepted { bytes, took, reply: status.to_string() });
    }
    let body = body.map_or_else(|_| Bytes::new(), |body| body.to_bytes());
    Ok(News::Refused { reply: format!("{status} {}", String::from_utf8_lossy(&body)) })
}
