//! MQTT devices: one task for each connection, which moves bytes and time between the stream, the machine and the
//! session, and hears what the hub answers.

mod commands;
mod connect;
mod host;
mod in_flight;
mod inbox;
mod kept;
mod listener;
mod session;
mod stored;
mod telemetry;
#[cfg(test)]
mod tests;
mod words;

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use fieldgate_mqtt::Config;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::config::MqttConfig;
use crate::shutdown::Shutdown;
use crate::wire::{Turn, Wire};
use crate::worker::Worker;

use host::Host;
pub(crate) use kept::Kept;
use listener::Guest;
pub(crate) use listener::Listener;
use session::Session;
pub(crate) use stored::SessionStore;

/// What the machines of one worker share.
pub(crate) fn machine_config(config: &MqttConfig) -> Arc<Config> {
    Arc::new(Config {
        max_packet_bytes: config.max_packet_bytes,
        receive_maximum: config.publish_window.get(),
        outgoing_window: config.command_window.get(),
        max_keep_alive: config.keep_alive_max,
        connect_time_out: config.connect_time_out,
        ..Config::default()
    })
}

/// Serves one connection until its end. Its parts are boxed, each when it begins: most connections wait for most of their
/// life, and then the smallest of them is all that is held.
pub(crate) fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    listener: Rc<Listener>,
    worker: Rc<Worker>,
) -> impl Future<Output = ()> {
    let welcome = Box::pin(async move {
        let within = worker.config.mqtt.connect_time_out;
        let (stream, guest) = listener.welcome(stream, peer, within, &worker.shutdown).await?;
        let (config, shutdown) = (Arc::clone(&worker.mqtt), worker.shutdown.clone());
        Some(Box::pin(drive(stream, guest, worker, config, shutdown)))
    });
    async {
        let welcomed = welcome.await;
        if let Some(driving) = welcomed {
            driving.await;
        }
    }
}

/// No `async fn`: that would hold what it is given twice.
fn drive<S, H>(
    stream: S,
    guest: Guest,
    host: Rc<H>,
    config: Arc<Config>,
    shutdown: Shutdown,
) -> impl Future<Output = ()>
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Host,
{
    let mut wire = Wire::new(stream);
    let mut session = Session::new(host, guest, config);
    async move {
        run(&mut wire, &mut session, &shutdown).await;
        // The end needs more room than the connection does before.
        let end = Box::pin(end(wire, session, &shutdown));
        end.await;
    }
}

/// The last words, and a will that waits.
async fn end<S, H>(wire: Wire<S>, session: Session<H>, shutdown: &Shutdown)
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Host,
{
    let (machine, will) = session.finish(Instant::now());
    let waits = async {
        if let Some(will) = will {
            will.wait(shutdown).await;
        }
    };
    tokio::join!(wire.linger(machine, shutdown), waits);
}

/// Bytes to the machine, its events to the hub, the hub's answers to the machine, bytes to the client; until nothing
/// is left but the last words.
async fn run<S, H>(wire: &mut Wire<S>, session: &mut Session<H>, shutdown: &Shutdown)
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Host,
{
    let mut stop = pin!(shutdown.draining());
    let mut abort: Option<Pin<Box<dyn Future<Output = ()> + '_>>> = None;
    poll_fn(|cx| {
        if abort.is_none() && stop.as_mut().poll(cx).is_ready() {
            session.drain();
            abort = Some(Box::pin(shutdown.aborting()));
        }
        if abort.as_mut().is_some_and(|abort| abort.as_mut().poll(cx).is_ready()) {
            session.abort();
        }
        loop {
            session.listen(cx);
            session.handle(Instant::now());
            if session.is_over() {
                return Poll::Ready(());
            }
            let read = session.wants_input();
            match wire.poll_turn(cx, session, read) {
                Poll::Ready(Ok(Turn::Progress)) => {}
                Poll::Ready(Ok(Turn::Ended)) => session.end_input(),
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending if wire.backlog() == 0 && session.written() => {}
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}
