//! A simulated CoAP device: POSTs its readings, confirmable or not, and waits for each answer.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use fieldgate_coap::Method;
use fieldgate_coap::client::{Call, CallId, Client, Config, Outcome};
use tokio::net::UdpSocket;

use super::device::{ANSWER_TIME_OUT, Device, Trouble};
use super::note::News;

/// Content-Format `application/json` (RFC 7252 12.3).
const JSON: u16 = 50;
/// A datagram of the gateway fits; more is cut off, and then not understood.
const MAX_DATAGRAM_BYTES: usize = 2048;

/// A request that is not concluded yet.
struct Pending {
    call: CallId,
    bytes: usize,
    sent: Instant,
}

/// One socket, until the stop or an error of it.
pub(super) async fn live(device: &mut Device, confirmable: bool) -> Result<(), Trouble> {
    let any = match device.address.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(device.address).await?;
    let config = Config { response_timeout: ANSWER_TIME_OUT, ..Config::default() };
    // The system's choice of port is as good a seed as the demo needs.
    let mut client = Client::new(config, socket.local_addr()?.port().into());
    device.is_up(false);

    let (name, value) = device.plan.property;
    let query = format!("{name}={value}");
    let path = ["devices", device.plan.id, "messages", "events"];
    let mut pending: Option<Pending> = None;
    let mut input = [0; MAX_DATAGRAM_BYTES];
    loop {
        while let Some(datagram) = client.poll_transmit() {
            socket.send(&datagram).await?;
        }
        while let Some(conclusion) = client.poll_event() {
            if let Some(Pending { bytes, sent, .. }) = pending.take_if(|one| one.call == conclusion.call) {
                device.tell(news(conclusion.outcome, bytes, sent)).await;
            }
        }
        let due = client.poll_timeout().unwrap_or_else(Instant::now);
        tokio::select! {
            length = socket.recv(&mut input) => client.handle_datagram(Instant::now(), &input[..length?]),
            () = tokio::time::sleep_until(due.into()), if client.poll_timeout().is_some() => {
                client.handle_timeout(Instant::now());
            }
            reading = device.readings.next(), if pending.is_none() => {
                let sent = Instant::now();
                let call = client.call(sent, &Call {
                    confirmable,
                    method: Method::Post,
                    path: &path,
                    query: &[&query],
                    content_format: Some(JSON),
                    payload: reading.as_bytes(),
                })?;
                pending = Some(Pending { call, bytes: reading.len(), sent });
            }
            () = device.stop.draining(), if pending.is_none() => return Ok(()),
        }
    }
}

fn news(outcome: Outcome, bytes: usize, sent: Instant) -> News {
    match outcome {
        // RFC 7252 5.9.1: class 2 is success.
        Outcome::Response { code, .. } if code.to_string().starts_with("2.") => {
            News::Accepted { bytes, took: sent.elapsed(), reply: code.to_string() }
        }
        Outcome::Response { code, payload, .. } => {
            News::Refused { reply: format!("{code} {}", String::from_utf8_lossy(&payload)) }
        }
        Outcome::Rejected => News::Refused { reply: "RST".into() },
        Outcome::TimedOut => News::Refused { reply: "no answer came".into() },
    }
}
