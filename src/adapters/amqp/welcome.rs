//! From the accepted socket to the device's `open`: TLS, a WebSocket, SASL, and for a device with a password the hub
//! that judges it.
//!
//! ```text
//! accept ─▶ [TLS] ─▶ [WebSocket] ─▶ [SASL ANONYMOUS, MSSBCBS, EXTERNAL] ─▶ open ─▶ the way that the connector has
//!                                   [SASL PLAIN ─▶ hub connected, SASL PLAIN there ─▶ its outcome] ─▶ open ─▶ that hub connection
//! ```
//!
//! The gateway judges no password and keeps none: it is the hub that says whether it is right.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use fieldgate_amqp::connection::{ClientSecurity, CloseReason, Connection, Event};
use fieldgate_amqp::error::{AmqpError, Condition};
use fieldgate_amqp::performative::Open;
use fieldgate_amqp::sasl::{PlainCredentials, SaslCode};
use tokio::net::TcpStream;

use crate::config::Mode;
use crate::telemetry::emit;
use crate::tls;
use crate::worker::Worker;

use super::certificate;
use super::connectors::Connector;
use super::listeners::Listener;
use super::party::Party;
use super::telemetry::{DeviceGone, DeviceRefused, HubUnreachable};
use super::trace;

/// A device that has opened.
pub(super) struct Guest {
    pub(super) device: Party,
    pub(super) open: Open,
    /// Who its certificate says it is.
    pub(super) identity: Option<Box<str>>,
    pub(super) peer: SocketAddr,
}

/// How a device reaches its hub.
pub(super) enum Way {
    /// Over connections that it shares with others.
    Shared,
    /// Over this one, which is its alone; our `open` has been said on it.
    Paired { hub: Box<Party>, connector: Rc<Connector> },
}

/// Why a device did not get as far as its `open`, or will not get any further.
enum Lost {
    /// It went by itself, or broke a rule.
    Gone(Party),
    /// It never became an AMQP connection.
    Never,
    /// We end it.
    Refused(Party, AmqpError),
}

/// Receives a device; nothing if it does not come in. What had to be said to it is said then.
pub(super) async fn welcome(
    stream: TcpStream,
    peer: SocketAddr,
    listener: &Listener,
    worker: &Rc<Worker>,
) -> Option<Box<(Guest, Way)>> {
    let lost = match receive(stream, peer, listener, worker).await {
        Ok(welcomed) => return Some(Box::new(welcomed)),
        Err(lost) => lost,
    };
    match lost {
        Lost::Never => {}
        Lost::Gone(device) => {
            emit(DeviceGone { peer, reason: device.reason.as_ref() });
            device.close(None, &worker.shutdown).await;
        }
        Lost::Refused(device, error) => device.close(Some(error), &worker.shutdown).await,
    }
    None
}

async fn receive(
    stream: TcpStream,
    peer: SocketAddr,
    listener: &Listener,
    worker: &Rc<Worker>,
) -> Result<(Guest, Way), Lost> {
    let since = Instant::now();
    let stream = tokio::select! {
        accepted = listener.acceptor.accept(stream, listener.machine.open_time_out) => accepted,
        () = worker.shutdown.draining() => return Err(Lost::Never),
    };
    let stream = stream.map_err(|error| {
        emit(DeviceRefused { peer, listener: &listener.name, error: &error });
        Lost::Never
    })?;
    let identity = certificate::peer(&stream);
    let mechanisms = listener.mechanisms(identity.is_some());
    let config = Arc::clone(&listener.machine);
    let mut machine = Connection::server(config, mechanisms, listener.allow_bare, since);
    trace::watch(&mut machine, &worker.routing, format_args!("device {peer}"));
    let mut device = Party::new(stream, machine);

    let opened = tokio::select! {
        opened = opened(&mut device, peer, listener, worker) => opened,
        () = worker.shutdown.draining() => Err(Some(forced("the gateway is stopping"))),
    };
    match opened {
        Ok((open, hub)) => {
            let way = match hub {
                Some((hub, connector)) => Way::Paired { hub: Box::new(hub), connector },
                None => match way(&open, peer, listener, worker).await {
                    Ok(way) => way,
                    Err(error) => return Err(Lost::Refused(device, error)),
                },
            };
            Ok((Guest { device, open, identity, peer }, way))
        }
        Err(Some(error)) => Err(Lost::Refused(device, error)),
        Err(None) => Err(Lost::Gone(device)),
    }
}

/// The device's `open`, and the hub connection that its password was judged on. An error to tell it, or nothing where
/// it is gone.
async fn opened(
    device: &mut Party,
    peer: SocketAddr,
    listener: &Listener,
    worker: &Rc<Worker>,
) -> Result<(Open, Option<(Party, Rc<Connector>)>), Option<AmqpError>> {
    let mut hub: Option<(Party, Rc<Connector>)> = None;
    loop {
        let event = match &mut hub {
            None => device.event().await,
            Some((hub, _)) => tokio::select! {
                event = device.event() => event,
                // It says nothing before our `open`, but it may go.
                _ = hub.event() => return Err(Some(forced("the connection to the hub was lost"))),
            },
        };
        match event.ok_or(None)? {
            Event::SaslInit { plain: Some(credentials), hostname, .. } => {
                let connector = worker.routing.connector_for(listener, hostname.as_deref());
                let judged = tokio::select! {
                    judged = judge(&connector, credentials, peer, worker) => judged,
                    // Nothing else comes from it until it has its outcome.
                    _ = device.event() => return Err(None),
                };
                device.machine.sasl_outcome(judged.as_ref().err().copied().unwrap_or(SaslCode::Ok));
                hub = judged.ok().map(|party| (party, connector));
            }
            Event::SaslInit { .. } => device.machine.sasl_outcome(SaslCode::Ok),
            Event::Opened(open) => {
                if let Some((hub, connector)) = &mut hub {
                    hub.machine.open(connector.open_for(&open));
                }
                return Ok((open, hub));
            }
            // Nothing else comes before `open` is answered.
            _ => {}
        }
    }
}

/// Has the hub judge a password: the connection to it, or the outcome that the device is told.
async fn judge(
    connector: &Connector,
    credentials: PlainCredentials,
    peer: SocketAddr,
    worker: &Worker,
) -> Result<Party, SaslCode> {
    let unreachable = |error: String| {
        emit(HubUnreachable { peer, connector: &connector.name, error: &error });
        SaslCode::SysTemp
    };
    if !connector.is_tls {
        // The configuration refuses this; a password is not to leave in the clear by a later mistake either.
        return Err(SaslCode::SysPerm);
    }
    let stream = connector.hub.connect().await.map_err(|error| unreachable(error.to_string()))?;
    let PlainCredentials { user, password, .. } = credentials;
    let security = ClientSecurity::Plain { user, password };
    let machine = Connection::client_to_open(Arc::clone(&connector.machine), security, Instant::now());
    let mut hub = Party::new(stream, machine);
    trace::watch(&mut hub.machine, &worker.routing, format_args!("{} for {peer}", connector.name));
    loop {
        match hub.event().await {
            Some(Event::Authenticated) => return Ok(hub),
            Some(_) => {}
            None => {
                return Err(match hub.reason {
                    Some(CloseReason::SaslFailed(Some(code))) => code,
                    Some(reason) => unreachable(reason.to_string()),
                    None => unreachable(match hub.end.loss() {
                        Some(error) => tls::in_words(error),
                        None => "the hub closed the stream".into(),
                    }),
                });
            }
        }
    }
}

/// The way of a device that has shown no password.
async fn way(
    open: &Open,
    peer: SocketAddr,
    listener: &Listener,
    worker: &Rc<Worker>,
) -> Result<Way, AmqpError> {
    let connector = worker.routing.connector_for(listener, open.hostname());
    if connector.mode == Mode::Shared {
        return Ok(Way::Shared);
    }
    let stream = tokio::select! {
        connected = connector.hub.connect() => connected,
        () = worker.shutdown.draining() => return Err(forced("the gateway is stopping")),
    };
    let stream = stream.map_err(|error| {
        emit(HubUnreachable { peer, connector: &connector.name, error: &error.to_string() });
        forced("the gateway cannot reach the hub now; connect again later")
    })?;
    let config = Arc::clone(&connector.machine);
    let security = connector.hub.security();
    let machine = Connection::client(config, security, connector.open_for(open), Instant::now());
    let mut hub = Party::new(stream, machine);
    trace::watch(&mut hub.machine, &worker.routing, format_args!("{} for {peer}", connector.name));
    Ok(Way::Paired { hub: Box::new(hub), connector })
}

pub(super) fn forced(what: &str) -> AmqpError {
    AmqpError::new(&Condition::ConnectionForced, Some(what))
}
