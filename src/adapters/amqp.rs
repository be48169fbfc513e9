//! Native AMQP devices. What they say goes to a hub unread, over links that the router pairs;
//! here are the sockets on both sides of it.
//!
//! ```text
//!  device ─ welcome ─┬─▶ device.rs ──▶ router ◀── trunk.rs ── hub      many devices, few connections
//!                    └─▶ pair.rs ────▶ router, both streams ── hub     one device, one connection
//! ```
//!
//! A device gets a hub connection of its own where its connector is `per-connection`, or where it
//! comes with a password, which only the hub can judge. Its `open` then is the hub connection's and
//! the hub's is its answer; otherwise the gateway opens for itself on either side.

mod connectors;
mod device;
mod end;
mod listeners;
mod pair;
mod party;
#[cfg(test)]
mod pressure;
mod registrar;
mod routing;
mod telemetry;
mod trace;
mod trunk;
mod welcome;

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use tokio::net::TcpStream;

use crate::router::{DeviceInfo, OwnDevice};
use crate::telemetry::emit;
use crate::worker::Worker;

use connectors::Connector;
use device::Device;
use pair::Pair;
use party::Party;
use telemetry::{Counted, DeviceConnected, DeviceGone};
use welcome::{Guest, Way, welcome};

pub(crate) use listeners::Listener;
use routing::unix_now;

pub(crate) use routing::Routing;

/// Serves one device until its connection is over.
pub(crate) async fn serve(stream: TcpStream, peer: SocketAddr, listener: Rc<Listener>, worker: Rc<Worker>) {
    // What only matters until the device has opened is not kept with it: an idle device is to cost little.
    let Some(welcomed) = Box::pin(welcome(stream, peer, &listener, &worker)).await else { return };
    let (guest, way) = *welcomed;
    let (end, reason) = match way {
        Way::Shared => share(guest, &listener, &worker).run().await,
        // Boxed: two streams would make the task of every device larger.
        Way::Paired { hub, connector } => {
            Box::pin(pair(guest, *hub, &connector, &listener, &worker).run()).await
        }
    };
    emit(DeviceGone { peer, reason: reason.as_deref() });
    Box::pin(end.linger(&worker.shutdown)).await;
}

/// A device that shares its hub connections with others, once the router has it.
fn share(guest: Guest, listener: &Listener, worker: &Worker) -> Device {
    let Guest { device: Party { end, machine, .. }, peer, open, identity, pass } = guest;
    emit(DeviceConnected {
        peer,
        container: open.container_id(),
        identity: identity.as_deref(),
        alone: None,
    });
    let info = DeviceInfo {
        container: open.container_id().into(),
        identity,
        dialled: open.hostname().map(Into::into),
        authorise: listener.authorise,
        max_unsettled: listener.max_unsettled,
        max_tokens: listener.max_tokens,
        bound_to: listener.connector,
        peer: peer.ip(),
        own: pass.map(|pass| {
            let connector = worker.routing.connector_of(&pass.device, listener, open.hostname());
            OwnDevice::new(connector, pass)
        }),
    };
    let routing = &worker.routing;
    let key = routing.turn(|router| router.add_device(machine, info, Instant::now(), unix_now()));
    Device::new(end, key, routing)
}

/// A device and the hub connection that is its alone, once the router has both.
fn pair(guest: Guest, hub: Party, connector: &Connector, listener: &Listener, worker: &Worker) -> Pair {
    let Guest { device, peer, open, identity, pass } = guest;
    let alone = Some(&*connector.name);
    emit(DeviceConnected { peer, container: open.container_id(), identity: identity.as_deref(), alone });
    let policy = connector.policy(listener.authorise, open.hostname()).proven(pass);
    let keys = worker.routing.turn(|router| {
        router.add_pair(device.machine, hub.machine, policy, listener.max_unsettled, Instant::now())
    });
    let count = Counted::new(&connector.metrics);
    Pair::new(device.end, hub.end, keys, &worker.routing, Some(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The size of the future that a function gives.
    fn size<F>(_: impl FnOnce(TcpStream, SocketAddr, Rc<Listener>, Rc<Worker>) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn the_task_of_an_idle_device_is_small() {
        let bytes = size(serve);
        assert!(bytes <= 512, "{bytes} bytes for every device");
    }
}
