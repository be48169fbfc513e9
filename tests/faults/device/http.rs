//! HTTP/1.1: one request at a time, on a connection that is kept.

use std::io;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Device;
use crate::payload;

/// An answer's head.
struct Answer {
    status: u16,
    retry_after: Option<Duration>,
    closes: bool,
}

pub(super) async fn session(device: &mut Device, life: u64) -> io::Result<()> {
    let mut stream = TcpStream::connect(device.ports.http).await?;
    stream.set_nodelay(true)?;
    let mut input = Vec::new();
    loop {
        let Some((key, _)) = device.next(Instant::now()) else {
            let mut byte = [0];
            tokio::select! {
                () = device.due() => continue,
                // Between two requests nothing is said but the end.
                _ = stream.read(&mut byte) => return Ok(()),
            }
        };
        let payload = payload::write(key, device.nature.bytes);
        let mut request = format!(
            "POST /{}/{} HTTP/1.1\r\nHost: gateway\r\nContent-Length: {}\r\n\r\n",
            device.word(),
            device.name(),
            payload.len()
        )
        .into_bytes();
        request.extend(payload);
        device.ledger.lock().out(key, life);
        stream.write_all(&request).await?;
        let answer = loop {
            if let Some(answer) = take(&mut input)? {
                break answer;
            }
            if stream.read_buf(&mut input).await? == 0 {
                return Ok(());
            }
        };
        match answer.status {
            200..300 => device.acknowledged(key),
            _ => device.refused(key, answer.retry_after),
        }
        if answer.closes {
            return Ok(());
        }
    }
}

/// The next answer, if all of it is there.
fn take(input: &mut Vec<u8>) -> io::Result<Option<Answer>> {
    let Some(end) = input.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&input[..end]).map_err(io::Error::other)?.to_ascii_lowercase();
    let field =
        |name: &str| head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let number = |name: &str| field(name).and_then(|value| value.parse::<usize>().ok());
    let whole = end + 4 + number("content-length").unwrap_or(0);
    if input.len() < whole {
        return Ok(None);
    }
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let answer = Answer {
        status: status.ok_or_else(|| io::Error::other("an answer without a status"))?,
        retry_after: number("retry-after").map(|seconds| Duration::from_secs(seconds as u64)),
        closes: field("connection") == Some("close"),
    };
    input.drain(..whole);
    Ok(Some(answer))
}
