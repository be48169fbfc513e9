//! The driver over real sockets: how often a hub is tried, and at which of its addresses.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;
use tokio::time::timeout;

use crate::config::Config;
use crate::console::Health;
use crate::devices::Registry;
use crate::shutdown;
use crate::upstream::hubs::MappedHubs;
use crate::upstream::{Upstream, target};
use crate::wire::{Turn, Wire};

use super::hub::{Hub, Records, Script};
use super::kit::Setup;

/// Nothing here takes anywhere near as long.
const PATIENCE: Duration = Duration::from_secs(30);

/// A listener that a runtime can take over, and its port.
fn bind() -> (std::net::TcpListener, u16) {
    let listener = std::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
    listener.set_nonblocking(true).expect("a socket");
    let port = listener.local_addr().expect("bound").port();
    (listener, port)
}

/// Lets a worker have a connection to a hub, which is what `hub` makes of it.
fn with_hub(port: u16, more: &str, hub: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let text = format!("[[connector]]\nname = \"a\"\nhost = \"127.0.0.1\"\nport = {port}\n{more}");
    let config = Config::parse("test.toml", &text, None).expect("a connector");
    let target = target::Hub::for_connector(&config.connectors[0], &config, None).expect("plain text");
    let hubs = Arc::new(MappedHubs::new(&config, Arc::new(target), &[], Registry::empty()));
    LocalSet::new().block_on(&runtime, async {
        let (trigger, stop) = shutdown::channel();
        let (_upstream, keeper) = Upstream::start(0, &hubs, Arc::new(Health::default()), stop);
        timeout(PATIENCE, hub).await.expect("in time");
        trigger.abort();
        keeper.abort();
    });
}

/// A hub that takes a connection, and then closes it.
async fn open_and_close(stream: TcpStream) {
    let mut hub = Hub::new(&Setup::default().hub, Instant::now());
    let (mut wire, script, mut records) = (Wire::new(stream), Script::default(), Records::default());
    let mut closed = false;
    poll_fn(|cx| {
        loop {
            hub.run(&script, &mut records);
            if !closed && hub.machine.is_open() {
                closed = true;
                hub.machine.close(None);
            }
            match wire.poll_turn(cx, &mut hub.machine, true) {
                Poll::Ready(Ok(Turn::Progress)) => {}
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
    assert!(closed, "the gateway has opened the connection");
}

#[test]
fn a_hub_that_opens_and_then_closes_is_left_alone_for_longer_each_time() {
    let (listener, port) = bind();
    with_hub(port, "", async {
        let listener = TcpListener::from_std(listener).expect("a runtime");
        let mut came = Vec::new();
        for _ in 0..4 {
            let (stream, _) = listener.accept().await.expect("the gateway");
            came.push(Instant::now());
            open_and_close(stream).await;
        }
        assert!(came[1] - came[0] < Duration::from_secs(1), "the first attempt after a loss is soon");
        assert!(came[3] - came[2] >= Duration::from_secs(1), "{:?}", came[3] - came[2]);
    });
}

#[test]
fn where_somebody_answers_who_is_no_hub_the_next_address_is_tried() {
    let ((standby, port), (active, next)) = (bind(), bind());
    with_hub(port, &format!("failover = [\"127.0.0.1:{next}\"]\n"), async {
        let standby = TcpListener::from_std(standby).expect("a runtime");
        let active = TcpListener::from_std(active).expect("a runtime");
        let refuse = async {
            loop {
                drop(standby.accept().await);
            }
        };
        tokio::select! {
            () = refuse => {}
            accepted = active.accept() => open_and_close(accepted.expect("the gateway").0).await,
        }
    });
}
