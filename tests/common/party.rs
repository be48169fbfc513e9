//! A connection machine on a stream, with what it is for.

use std::future::pending;
use std::io;
use std::time::Instant;

use bytes::{Buf as _, Bytes, BytesMut};
use fieldgate_amqp::connection::{Connection, Event};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::sleep_until;

const READ_BYTES: usize = 64 * 1024;

/// A device, or the hub on one connection.
pub(crate) trait Party {
    fn on_event(&mut self, machine: &mut Connection, event: Event, now: Instant);

    /// Does what is due, and says when to be asked again if nothing happens.
    fn turn(&mut self, machine: &mut Connection, now: Instant) -> Option<Instant>;
}

/// Runs a connection to its end; says how it ended.
pub(crate) async fn drive(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    mut machine: Connection,
    party: &mut impl Party,
) -> String {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut output = Bytes::new();
    let mut unflushed = false;
    let mut input = BytesMut::new();
    loop {
        let now = Instant::now();
        while let Some(event) = machine.poll_event() {
            party.on_event(&mut machine, event, now);
        }
        let wanted = party.turn(&mut machine, now);
        let due = wanted.into_iter().chain(machine.poll_timeout()).min();
        if output.is_empty() {
            output = machine.poll_transmit().unwrap_or_default();
        }
        if machine.is_closed() && output.is_empty() && !unflushed {
            return "closed".into();
        }
        input.reserve(READ_BYTES);
        let failed = tokio::select! {
            written = write(&mut writer, &output), if !output.is_empty() || unflushed => written.map(|bytes| {
                unflushed = !output.is_empty();
                output.advance(bytes);
            }),
            read = reader.read_buf(&mut input) => match read {
                Ok(0) => return "the stream ended".into(),
                Ok(_) => {
                    machine.handle_input(Instant::now(), input.split().freeze());
                    Ok(())
                }
                Err(error) => Err(error),
            },
            () = until(due) => {
                machine.handle_timeout(Instant::now());
                Ok(())
            }
        };
        if let Err(error) = failed {
            return error.to_string();
        }
    }
}

/// Writes some of it, or lets go what was written before.
async fn write(writer: &mut (impl AsyncWrite + Unpin), output: &[u8]) -> io::Result<usize> {
    if output.is_empty() { writer.flush().await.map(|()| 0) } else { writer.write(output).await }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due.into()).await,
        None => pending().await,
    }
}
