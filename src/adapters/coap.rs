//! CoAP devices: one task for each socket, which serves all peers of it.
//!
//! A turn reads what has come, a batch at most, takes the verdicts that have arrived, hands new messages to the hub,
//! and sends what all this produced. There is no task, timer or channel for a single message.

mod exchanges;
mod telemetry;
#[cfg(test)]
mod tests;

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;

use crate::telemetry::emit;
use crate::worker::Worker;

use self::exchanges::Exchanges;
use self::telemetry::{DatagramReceiveError, DatagramSendError};

/// The most datagrams that one turn reads, before the other tasks of the worker have theirs.
const BATCH: usize = 64;

/// How long reading pauses when the system cannot give what has come.
const RECEIVE_PAUSE: Duration = Duration::from_millis(100);

/// Serves a socket until the stop, and then until the exchanges that are open have their end.
pub(crate) async fn serve(socket: UdpSocket, worker: Rc<Worker>) {
    let config = &worker.config.coap;
    let mut exchanges = Exchanges::new(config, Arc::clone(&worker.rules), Rc::clone(&worker.roster), seed());
    let verdicts = exchanges.verdicts();
    // A byte more than is taken, so that a datagram which the buffer cuts is told from a whole one.
    let mut buffer = vec![0; config.max_datagram_bytes + 1];
    let mut timer = pin!(tokio::time::sleep(Duration::ZERO));
    let mut stop = pin!(worker.shutdown.draining());
    loop {
        let more = match receive(&socket, &mut buffer, &mut exchanges) {
            Ok(more) => more,
            Err(error) => {
                emit(DatagramReceiveError { error });
                tokio::time::sleep(RECEIVE_PAUSE).await;
                true
            }
        };
        let now = Instant::now();
        exchanges.handle_verdicts(now);
        exchanges.handle_timeout(now);
        while let Some((message, patience, verdict)) = exchanges.poll_send(now) {
            worker.outbound.send(message, patience, verdict);
        }
        while let Some((peer, datagram)) = exchanges.poll_transmit() {
            transmit(&socket, peer, &datagram);
        }
        exchanges.publish();
        if exchanges.is_done() {
            return;
        }
        if more {
            tokio::task::yield_now().await;
            continue;
        }
        let due = exchanges.poll_timeout().map(tokio::time::Instant::from_std);
        // A deadline that moved later is noticed when the earlier one comes round; most answers move it.
        if let Some(due) = due.filter(|due| *due < timer.deadline() || timer.is_elapsed()) {
            timer.as_mut().reset(due);
        }
        tokio::select! {
            ready = socket.readable() => if ready.is_err() { return },
            () = verdicts.arrived() => {}
            () = &mut timer, if due.is_some() => {}
            () = &mut stop, if !exchanges.is_stopping() => exchanges.stop(),
        }
    }
}

/// Reads what has come, a batch at most; true if there may be more.
fn receive(socket: &UdpSocket, buffer: &mut [u8], exchanges: &mut Exchanges) -> io::Result<bool> {
    let now = Instant::now();
    for _ in 0..BATCH {
        match socket.try_recv_from(buffer) {
            Ok((bytes, peer)) => exchanges.handle_datagram(now, peer, &buffer[..bytes]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// Sends a datagram, or counts it as lost on the way: the message layer is made for that, and one peer that cannot
/// be reached must not stop the others.
fn transmit(socket: &UdpSocket, peer: SocketAddr, datagram: &[u8]) {
    if let Err(error) = socket.try_send_to(datagram, peer) {
        emit(DatagramSendError { peer, error });
    }
}

/// A number from the system's randomness, by the one door to it that cannot fail: the keys of a hash map.
fn seed() -> u64 {
    RandomState::new().hash_one(())
}
