//! From the accepted socket to the device's `open`: TLS, a WebSocket, SASL, and for a device with a password the hub
//! that judges it.
//!
//! ```text
//! accept ─▶ [TLS] ─▶ [WebSocket] ─▶ [SASL ANONYMOUS, MSSBCBS, EXTERNAL] ─▶ open ─▶ the way that the connector has
//!                                   [SASL PLAIN ─▶ hub connected, SASL PLAIN there ─▶ its outcome] ─▶ open ─▶ that hub connection
//! ```
//!
//! Where the listener asks for a registered device, the gateway judges a password or a certificate itself. Elsewhere it
//! keeps no password, and it is the hub that says whether it is right; where the listener believes everybody
//! (`authorise = "any"`), a device that is registered with a proof has to pass the registry before that.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use fieldgate_amqp::connection::{ClientSecurity, CloseReason, Connection, Event};
use fieldgate_amqp::error::{AmqpError, Condition};
use fieldgate_amqp::performative::Open;
use fieldgate_amqp::sasl::{PlainCredentials, SaslCode};
use fieldgate_mappings::DeviceId;
use tokio::net::TcpStream;

use crate::config::Mode;
use crate::devices::{Attempt, Certificate, Denied, Pass, Shown};
use crate::router::Authorise;
use crate::telemetry::{Protocol, emit};
use crate::tls::{self, DeviceTurnedAway};
use crate::worker::Worker;

use super::connectors::Connector;
use super::listeners::Listener;
use super::party::Party;
use super::registrar;
use super::telemetry::{DeviceGone, HubUnreachable};
use super::trace;

/// A device that has opened.
pub(super) struct Guest {
    pub(super) device: Party,
    pub(super) open: Open,
    /// Who it has proved to be, by a certificate or to the registry.
    pub(super) identity: Option<Box<str>>,
    /// What it was let in by, where it is registered.
    pub(super) pass: Option<Pass>,
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
        let (protocol, listener) = (Protocol::Amqp, &*listener.name);
        emit(DeviceTurnedAway { protocol, peer, listener, error: &error });
        Lost::Never
    })?;
    let certificate = Certificate::of_peer(&stream);
    let mechanisms = listener.mechanisms(certificate.is_some());
    let config = Arc::clone(&listener.machine);
    let mut machine = Connection::server(config, mechanisms, listener.allow_bare, since);
    trace::watch(&mut machine, &worker.routing, format_args!("device {peer}"));
    let mut device = Party::new(stream, machine);

    let opened = tokio::select! {
        opened = opened(&mut device, peer, certificate.as_ref(), listener, worker) => opened,
        () = worker.shutdown.draining() => Err(Some(forced("the gateway is stopping"))),
    };
    match opened {
        Ok(Opened { open, hub, pass }) => {
            let way = match hub {
                Some((hub, connector)) => Way::Paired { hub: Box::new(hub), connector },
                None => match way(&open, peer, listener, worker).await {
                    Ok(way) => way,
                    Err(error) => return Err(Lost::Refused(device, error)),
                },
            };
            let identity = match &pass {
                Some(pass) => Some(pass.device.as_str().into()),
                None => certificate.map(|certificate| certificate.identity()),
            };
            Ok((Guest { device, open, identity, pass, peer }, way))
        }
        Err(Some(error)) => Err(Lost::Refused(device, error)),
        Err(None) => Err(Lost::Gone(device)),
    }
}

/// A device that has opened, and who has judged it.
struct Opened {
    open: Open,
    /// The hub connection that its password was judged on.
    hub: Option<(Party, Rc<Connector>)>,
    /// What the registry let it in by.
    pass: Option<Pass>,
}

/// What a device shows before its `open`, and that. An error to tell it, or nothing where it is gone.
async fn opened(
    device: &mut Party,
    peer: SocketAddr,
    certificate: Option<&Certificate>,
    listener: &Listener,
    worker: &Rc<Worker>,
) -> Result<Opened, Option<AmqpError>> {
    let mut hub: Option<(Party, Rc<Connector>)> = None;
    let registered = listener.authorise == Authorise::Registry;
    let mut pass = None;
    if let Some(certificate) = certificate.filter(|_| registered) {
        match by_certificate(certificate, peer, worker).await {
            Ok(proven) => pass = proven,
            Err(error) => return Err(Some(error)),
        }
    }
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
            Event::SaslInit { plain: Some(credentials), .. } if registered => {
                let judged = tokio::select! {
                    judged = by_password(&credentials, peer, worker) => judged,
                    // Nothing else comes from it until it has its outcome.
                    _ = device.event() => return Err(None),
                };
                device.machine.sasl_outcome(judged.as_ref().err().copied().unwrap_or(SaslCode::Ok));
                pass = judged.ok().or(pass);
            }
            Event::SaslInit { plain: Some(credentials), hostname, .. } => {
                let connector = worker.routing.connector_for(listener, hostname.as_deref());
                let judged = tokio::select! {
                    judged = judge_both(&connector, credentials, peer, listener, worker) => judged,
                    // Nothing else comes from it until it has its outcome.
                    _ = device.event() => return Err(None),
                };
                device.machine.sasl_outcome(judged.as_ref().err().copied().unwrap_or(SaslCode::Ok));
                if let Ok((party, proven)) = judged {
                    (hub, pass) = (Some((party, connector)), proven);
                }
            }
            Event::SaslInit { .. } => device.machine.sasl_outcome(SaslCode::Ok),
            Event::Opened(open) => {
                let shared = hub.is_none()
                    && worker.routing.connector_for(listener, open.hostname()).mode == Mode::Shared;
                // Whoever has a hub connection of his own may prove himself, where nobody has to.
                if let (Authorise::Any, false, None, Some(certificate)) =
                    (listener.authorise, shared, &pass, certificate)
                {
                    pass = by_certificate(certificate, peer, worker).await.map_err(Some)?;
                }
                if let Some((hub, connector)) = &mut hub {
                    hub.machine.open(connector.open_for(&open));
                }
                return Ok(Opened { open, hub, pass });
            }
            // Nothing else comes before `open` is answered.
            _ => {}
        }
    }
}

/// The device that a certificate is registered for; nothing where it is for none.
async fn by_certificate(
    certificate: &Certificate,
    peer: SocketAddr,
    worker: &Worker,
) -> Result<Option<Pass>, AmqpError> {
    let devices = worker.roster.devices();
    let Some(device) = devices.of_certificate(certificate).map(|device| device.id.clone()) else {
        return Ok(None);
    };
    let shown = Shown::Certificate(certificate);
    match judge_registered(&device, shown, peer, worker).await {
        Ok(pass) => Ok(Some(pass)),
        Err(denied) => {
            let why = denied.rejection().description;
            Err(AmqpError::new(&Condition::UnauthorizedAccess, Some(&why)))
        }
    }
}

/// The device whose password it is, or the outcome that is told.
async fn by_password(
    credentials: &PlainCredentials,
    peer: SocketAddr,
    worker: &Worker,
) -> Result<Pass, SaslCode> {
    let devices = worker.roster.devices();
    let device = registrar::user(&credentials.user, |id| devices.get(id).is_some()).ok_or(SaslCode::Auth)?;
    let shown = Shown::Password(credentials.password.as_bytes());
    judge_registered(&device, shown, peer, worker).await.map_err(|denied| match denied {
        Denied::Limited(_) | Denied::Busy => SaslCode::SysTemp,
        _ => SaslCode::Auth,
    })
}

async fn judge_registered(
    device: &DeviceId,
    shown: Shown<'_>,
    peer: SocketAddr,
    worker: &Worker,
) -> Result<Pass, Denied> {
    let peer = peer.ip();
    let attempt = Attempt { protocol: Protocol::Amqp, peer, device, shown, believes: false };
    worker.roster.judge(attempt).answer().await
}

/// Has the hub judge a password, and before it the registry, where the user is a device whose word is not enough.
async fn judge_both(
    connector: &Connector,
    credentials: PlainCredentials,
    peer: SocketAddr,
    listener: &Listener,
    worker: &Worker,
) -> Result<(Party, Option<Pass>), SaslCode> {
    let devices = worker.roster.devices();
    let is_doubted =
        |id: &str| devices.get(id).is_some_and(|device| !device.enabled || !device.needs_no_proof());
    let user = registrar::user(&credentials.user, |id| devices.get(id).is_some());
    let pass = match user.filter(|user| listener.authorise == Authorise::Any && is_doubted(user.as_str())) {
        Some(_) => Some(by_password(&credentials, peer, worker).await?),
        None => None,
    };
    Ok((judge(connector, credentials, peer, worker).await?, pass))
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
    let (stream, _) = connector.hub.connect(0).await.map_err(|error| unreachable(error.to_string()))?;
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
        connected = connector.hub.connect(0) => connected,
        () = worker.shutdown.draining() => return Err(forced("the gateway is stopping")),
    };
    let (stream, _) = stream.map_err(|error| {
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
