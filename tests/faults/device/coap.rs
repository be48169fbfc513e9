//! CoAP: one confirmable request at a time.

use std::future::pending;
use std::io;
use std::time::{Duration, Instant};

use fieldgate_coap::Method;
use fieldgate_coap::client::{Call, Client, Config, Outcome};
use tokio::net::UdpSocket;
use tokio::time::sleep_until;

use super::Device;
use crate::payload;

/// How long a device waits for the answer to a request that was acknowledged.
const ANSWER: Duration = Duration::from_secs(15);

pub(super) async fn session(device: &mut Device, life: u64) -> io::Result<()> {
    let socket = UdpSocket::bind((device.ports.coap.ip(), 0)).await?;
    socket.connect(device.ports.coap).await?;
    let config = Config { response_timeout: ANSWER, ..Config::default() };
    let mut client = Client::new(config, device.rng.next());
    let (word, name) = (device.word(), device.name());
    let path = [word, name.as_str()];
    let mut asked = None;
    let mut datagram = [0; 2048];
    loop {
        let now = Instant::now();
        while let Some(conclusion) = client.poll_event() {
            let Some(key) = asked.take() else { continue };
            match conclusion.outcome {
                Outcome::Response { code, .. } if code.class() == 2 => device.acknowledged(key),
                Outcome::Response { max_age, .. } => device.refused(key, max_age),
                // Whether it arrived is unknown.
                Outcome::Rejected | Outcome::TimedOut => return Ok(()),
            }
        }
        if asked.is_none()
            && let Some((key, _)) = device.next(now)
        {
            let payload = payload::write(key, device.nature.bytes);
            let method = Method::Post;
            let call = Call {
                confirmable: true,
                method,
                path: &path,
                query: &[],
                content_format: None,
                payload: &payload,
            };
            client.call(now, &call).map_err(io::Error::other)?;
            asked = Some(key);
        }
        while let Some(bytes) = client.poll_transmit() {
            if let Some(key) = asked {
                device.ledger.lock().out(key, life);
            }
            socket.send(&bytes).await?;
        }
        let timeout = client.poll_timeout();
        tokio::select! {
            heard = socket.recv(&mut datagram) => client.handle_datagram(Instant::now(), &datagram[..heard?]),
            () = async { match timeout { Some(at) => sleep_until(at.into()).await, None => pending().await } } => {
                client.handle_timeout(Instant::now());
            }
            () = device.due(), if asked.is_none() => {}
        }
    }
}
