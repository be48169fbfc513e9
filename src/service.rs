//! A connection to the hub as a service: AMQP over TLS, with a token of the hub's policy. The hub's tools and the demo
//! watch and command through it.
//!
//! The client is `fe2o3-amqp`, which shares no code with our own core: what it shows, another implementation has
//! understood.

pub(crate) mod command;
mod event;
pub(crate) mod watch;

use std::time::Duration;

use fe2o3_amqp::connection::ConnectionHandle;
use fe2o3_amqp::link::{LinkStateError, ReceiverAttachError, RecvError, SendError, SenderAttachError};
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::definitions::{Error as AmqpError, ErrorCondition};
use fe2o3_amqp::types::messaging::{
    AmqpValue, ApplicationProperties, Body, Message, MessageId, Outcome, Properties,
};
use fe2o3_amqp::types::primitives::{SimpleValue, Symbol, Value};
use fe2o3_amqp::{Connection, Receiver, Sender, Session};
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

pub(crate) use event::Event;

use crate::output::{harmless, unix_seconds};
use crate::sas::ConnectionString;
use crate::state::{StateDir, StateError};
use crate::tls::{self, Roots, TlsError};

const PORT: u16 = 5671;
const CONNECT_TIME_OUT: Duration = Duration::from_secs(10);
const CLOSE_TIME_OUT: Duration = Duration::from_secs(2);
const TOKEN_LIFE_SECONDS: u64 = 86_400;
const CBS: &str = "$cbs";

/// Why the hub could not be worked with; its text is for a person.
#[derive(Debug, Error)]
pub(crate) enum ServiceError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("{0}")]
    ConnectionString(#[from] crate::sas::ConnectionStringError),
    /// Nobody is there.
    #[error(
        "no hub answers at {address}: {source}\n  help: start `fieldgate hub` or `fieldgate run`; if it runs with another \
         state directory, name it with --state-dir"
    )]
    Unreachable { address: String, source: std::io::Error },
    /// Somebody is there, and is not the hub whose keys we have.
    #[error("{address} is not the hub of this state directory: {source}")]
    NotTheHub { address: String, source: std::io::Error },
    #[error("the hub at {address} did not answer within {} s", CONNECT_TIME_OUT.as_secs())]
    TimedOut { address: String },
    /// The hub said no, or went away.
    #[error("{what}: {why}")]
    Refused { what: String, why: String },
    #[error(transparent)]
    System(#[from] std::io::Error),
}

impl ServiceError {
    pub(crate) fn refused(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Refused { what: what.into(), why: why.into() }
    }
}

/// The connection, authorised, with one session.
pub(crate) struct Service {
    connection: ConnectionHandle<()>,
    pub(crate) session: SessionHandle<()>,
    /// Host and port, for messages.
    pub(crate) address: String,
}

impl Service {
    /// Connects to the hub that noted its address in this directory.
    pub(crate) async fn connect(state: &StateDir) -> Result<Self, ServiceError> {
        let hub = ConnectionString::parse(state.service_connection_string()?.expose())?;
        let address = format!("{}:{}", hub.host, hub.port.unwrap_or(PORT));
        let tls = TlsConnector::from(tls::client(&Roots::File(state.ca_file()))?);
        let connect = Self::open(&hub, &address, tls);
        match tokio::time::timeout(CONNECT_TIME_OUT, connect).await {
            Ok(result) => result,
            Err(_) => Err(ServiceError::TimedOut { address }),
        }
    }

    async fn open(hub: &ConnectionString, address: &str, tls: TlsConnector) -> Result<Self, ServiceError> {
        let stream = TcpStream::connect((hub.host.as_str(), hub.port.unwrap_or(PORT)))
            .await
            .map_err(|source| ServiceError::Unreachable { address: address.into(), source })?;
        stream.set_nodelay(true)?;
        let not_the_hub = |source| ServiceError::NotTheHub { address: address.into(), source };
        let name = ServerName::try_from(hub.host.clone())
            .map_err(|error| not_the_hub(std::io::Error::other(error)))?;
        let stream = tls.connect(name, stream).await.map_err(not_the_hub)?;
        let failed =
            |what: &str, error: &dyn std::fmt::Display| ServiceError::refused(what, error.to_string());
        let mut connection = Connection::builder()
            .container_id(format!("fieldgate-tool-{}", std::process::id()))
            .hostname(hub.host.as_str())
            .scheme("amqp") // TLS is already around the stream
            .sasl_profile(SaslProfile::Anonymous)
            .open_with_stream(stream)
            .await
            .map_err(|error| failed("the hub does not open the connection", &error))?;
        let mut session = Session::begin(&mut connection)
            .await
            .map_err(|error| failed("the hub does not begin a session", &error))?;
        let resource = hub.resource();
        let token = hub.signer().token(&resource, unix_seconds() + TOKEN_LIFE_SECONDS);
        put_token(&mut session, resource, token).await?;
        Ok(Self { connection, session, address: address.into() })
    }

    /// Takes leave as the protocol says, if the hub still listens.
    pub(crate) async fn close(mut self) {
        let leave = async {
            // The work is done; a hub that is gone meanwhile changes nothing.
            let _ = self.session.end().await;
            let _ = self.connection.close().await;
        };
        let _ = tokio::time::timeout(CLOSE_TIME_OUT, leave).await;
    }
}

/// Claims-based security: the token for `resource` goes to `$cbs`, the answer comes from there.
///
/// # Errors
/// What the hub gave as its reason.
pub(crate) async fn put_token(
    session: &mut SessionHandle<()>,
    resource: String,
    token: String,
) -> Result<(), ServiceError> {
    const WHAT: &str = "the hub does not take this directory's key";
    let mut sender = Sender::attach(session, "cbs-sender", CBS)
        .await
        .map_err(|error| ServiceError::refused(WHAT, describe_sender_attach(&error)))?;
    let mut receiver = Receiver::attach(session, "cbs-receiver", CBS)
        .await
        .map_err(|error| ServiceError::refused(WHAT, describe_attach(&error)))?;
    let request = Message::builder()
        .properties(Properties::builder().message_id(MessageId::Ulong(1)).to(CBS).reply_to("cbs").build())
        .application_properties(
            ApplicationProperties::builder()
                .insert("operation", "put-token")
                .insert("type", "servicebus.windows.net:sastoken")
                .insert("name", resource)
                .build(),
        )
        .body(AmqpValue(token))
        .build();
    let outcome =
        sender.send(request).await.map_err(|error| ServiceError::refused(WHAT, describe_send(&error)))?;
    if let Some(why) = describe_outcome(&outcome) {
        return Err(ServiceError::refused(WHAT, why));
    }
    let answer = receiver
        .recv::<Body<Value>>()
        .await
        .map_err(|error| ServiceError::refused(WHAT, describe_receive(&error)))?;
    let property =
        |name: &str| answer.message().application_properties.as_ref().and_then(|map| map.get(name));
    let status = property("status-code").cloned();
    if status == Some(SimpleValue::Int(200)) || status == Some(SimpleValue::Int(202)) {
        // The token outlives the links, which end here; it is not renewed.
        let _ = receiver.accept(&answer).await;
        return Ok(());
    }
    let why = match property("status-description") {
        Some(SimpleValue::String(text)) => harmless(text),
        _ => format!("status {status:?}"),
    };
    Err(ServiceError::refused(WHAT, why))
}

/// What the peer gave as its reason.
pub(crate) fn describe(error: &AmqpError) -> String {
    let condition = condition(error);
    match &error.description {
        Some(text) => format!("{} ({})", harmless(text), harmless(condition.as_str())),
        None => harmless(condition.as_str()),
    }
}

/// The symbol of an error condition.
pub(crate) fn condition(error: &AmqpError) -> Symbol {
    match &error.condition {
        ErrorCondition::AmqpError(error) => error.into(),
        ErrorCondition::ConnectionError(error) => error.into(),
        ErrorCondition::SessionError(error) => error.into(),
        ErrorCondition::LinkError(error) => error.into(),
        ErrorCondition::Custom(symbol) => symbol.clone(),
    }
}

pub(crate) fn describe_attach(error: &ReceiverAttachError) -> String {
    match error {
        ReceiverAttachError::RemoteClosedWithError(error) => describe(error),
        other => other.to_string(),
    }
}

pub(crate) fn describe_sender_attach(error: &SenderAttachError) -> String {
    match error {
        SenderAttachError::RemoteClosedWithError(error) => describe(error),
        other => other.to_string(),
    }
}

pub(crate) fn describe_send(error: &SendError) -> String {
    match error {
        SendError::LinkStateError(error) => describe_link(error),
        other => other.to_string(),
    }
}

pub(crate) fn describe_receive(error: &RecvError) -> String {
    match error {
        RecvError::LinkStateError(error) => describe_link(error),
        other => other.to_string(),
    }
}

fn describe_link(error: &LinkStateError) -> String {
    match error {
        LinkStateError::RemoteDetachedWithError(error) | LinkStateError::RemoteClosedWithError(error) => {
            describe(error)
        }
        LinkStateError::RemoteDetached | LinkStateError::RemoteClosed => "the hub closed the link".into(),
        LinkStateError::SessionStopped(_) => "the hub closed the connection".into(),
        other => other.to_string(),
    }
}

/// Nothing for accepted; else why not.
pub(crate) fn describe_outcome(outcome: &Outcome) -> Option<String> {
    match outcome {
        Outcome::Accepted(_) => None,
        Outcome::Rejected(rejected) => {
            Some(rejected.error.as_ref().map_or_else(|| "rejected without a reason".into(), describe))
        }
        Outcome::Released(_) | Outcome::Modified(_) => Some("the hub gave it back".into()),
    }
}
