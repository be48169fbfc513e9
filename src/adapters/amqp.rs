//! Native AMQP devices, each with a hub connection of its own: the device's connection and
//! the hub's are opened one after the other, then everything passes through a [`Tunnel`].
//!
//! The device's `open` goes to the hub as it came (container-id, capabilities, properties),
//! and the hub's `open` comes back the same way; what belongs to a side (frame size, channels,
//! idle time-out, host name) is each side's own.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use fieldgate_amqp::connection::{ClientSecurity, CloseReason, Connection, ConnectionConfig, Event, SaslCode};
use fieldgate_amqp::error::{AmqpError, Condition};
use fieldgate_amqp::performative::Open;
use fieldgate_amqp::sasl::Mechanism;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::config::{self, AmqpConfig};
use crate::router::{Authorise, Policy, Side, Tunnel};
use crate::telemetry::emit;
use crate::upstream::ConnectError;
use crate::wire::{Turn, Wire};
use crate::worker::Worker;

use super::telemetry::{RoutedConnectionClosed, RoutedConnectionOpened, UpstreamConnectError};

/// While this much waits for one side, the other is not read: 1 MiB and what one turn adds.
const MAX_BACKLOG_BYTES: usize = 1024 * 1024;

/// What devices may authenticate with here. The device proves itself to the hub by a token.
const MECHANISMS: [Mechanism; 2] = [Mechanism::Anonymous, Mechanism::Mssbcbs];

/// Serves one device until either side ends.
pub(crate) async fn serve(stream: TcpStream, peer: SocketAddr, worker: Rc<Worker>) {
    let config = machine_config(&worker.config.amqp);
    let mut device = Ended::new(stream, Connection::server(Arc::clone(&config), &MECHANISMS, true, Instant::now()));
    let Some(open) = device_open(&mut device, &worker).await else { return };
    let mut hub = match connect(&worker, &config, &open).await {
        Ok(hub) => hub,
        Err(error) => {
            emit(UpstreamConnectError { error: &error });
            let sorry = AmqpError::new(Condition::ConnectionForced, "the hub cannot be reached from this gateway now");
            device.machine.open(own_open(&config));
            return device.close(Some(sorry), &worker).await;
        }
    };
    emit(RoutedConnectionOpened { peer, container: open.container_id() });
    let policy = policy(&worker, &open);
    Route { device, hub, tunnel: Tunnel::new(policy), config, opened: false }.run(&worker).await;
    emit(RoutedConnectionClosed { peer });
}
