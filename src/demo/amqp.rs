//! A simulated native AMQP device: puts its own token to `$cbs`, sends its readings and takes its commands, with
//! `fe2o3-amqp` as the client. The gateway routes its links to the hub.

use std::time::Duration;

use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::messaging::{ApplicationProperties, Body, Data, Message, Properties};
use fe2o3_amqp::types::primitives::{Binary, Value};
use fe2o3_amqp::{Connection, Receiver, Sender, Session};
use fieldgate_mappings::DeviceId;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::device::{ANSWER_TIME_OUT, Device, Trouble};
use super::note::News;
use crate::hub::device_key;
use crate::output::unix_seconds;
use crate::sas::{ConnectionString, Signer};
use crate::service::{self, describe_attach, describe_outcome, describe_receive, describe_send};

const TOKEN_LIFE: Duration = Duration::from_secs(86_400);
const CLOSE_TIME_OUT: Duration = Duration::from_secs(2);

/// What a device proves itself to the hub with: its own key.
#[derive(Clone, Debug)]
pub(super) struct Credential {
    signer: Signer,
    hub: String,
    resource: String,
}

impl Credential {
    /// The device's credential at the hub of this connection string.
    pub(super) fn new(hub: &ConnectionString, device: &DeviceId) -> Self {
        Self {
            signer: Signer::new(None, device_key(&hub.key, device)),
            hub: hub.host.clone(),
            resource: format!("{}/devices/{device}", hub.resource()),
        }
    }

    fn token(&self) -> String {
        self.signer.token(&self.resource, unix_seconds() + TOKEN_LIFE.as_secs())
    }
}

/// One connection, from TCP to `close`.
pub(super) async fn live(device: &mut Device, credential: &Credential) -> Result<(), Trouble> {
    let late = |_| Trouble::silence("answer");
    let opening = async {
        let stream = TcpStream::connect(device.address).await?;
        stream.set_nodelay(true)?;
        let mut connection = Connection::builder()
            .container_id(device.plan.id)
            .hostname(credential.hub.as_str())
            .scheme("amqp")
            .sasl_profile(SaslProfile::Anonymous)
            .open_with_stream(stream)
            .await?;
        let session = Session::begin(&mut connection).await?;
        Ok::<_, Trouble>((connection, session))
    };
    let (mut connection, mut session) = timeout(ANSWER_TIME_OUT, opening).await.map_err(late)??;
    let links = timeout(ANSWER_TIME_OUT, attach(device, credential, &mut session));
    let lived = match links.await.map_err(late).flatten() {
        Ok((mut events, mut commands)) => {
            device.is_up(true);
            let lived = work(device, &mut events, &mut commands).await;
            let close = async {
                let _ = events.close().await;
                let _ = commands.close().await;
            };
            let _ = timeout(CLOSE_TIME_OUT, close).await;
            lived
        }
        Err(trouble) => Err(trouble),
    };
    let leave = async {
        // Whether the other side still listens changes nothing any more.
        let _ = session.end().await;
        let _ = connection.close().await;
    };
    let _ = timeout(CLOSE_TIME_OUT, leave).await;
    lived
}

/// The token, then both links.
async fn attach(
    device: &Device,
    credential: &Credential,
    session: &mut SessionHandle<()>,
) -> Result<(Sender, Receiver), Trouble> {
    service::put_token(session, credential.resource.clone(), credential.token()).await?;
    let node = |name: &str| format!("devices/{}/messages/{name}", device.plan.id);
    let events = Sender::attach(session, "events", node("events"))
        .await
        .map_err(|error| Trouble::new(service::describe_sender_attach(&error)))?;
    let commands = Receiver::attach(session, "commands", node("deviceBound"))
        .await
        .map_err(|error| Trouble::new(describe_attach(&error)))?;
    Ok((events, commands))
}

/// Sends and receives until the stop or the first error.
async fn work(device: &mut Device, events: &mut Sender, commands: &mut Receiver) -> Result<(), Trouble> {
    loop {
        let reading = tokio::select! {
            reading = device.readings.next() => reading,
            command = commands.recv::<Body<Value>>() => {
                let command = command.map_err(|error| Trouble::new(describe_receive(&error)))?;
                commands.accept(&command).await?;
                device.tell(News::Command { text: text(command.body()), reply: "disposition" }).await;
                continue;
            }
            () = device.stop.draining() => return Ok(()),
        };
        let (bytes, sent) = (reading.len(), Instant::now());
        let outcome = timeout(ANSWER_TIME_OUT, events.send(message(device, reading)))
            .await
            .map_err(|_| Trouble::silence("outcome"))?
            .map_err(|error| Trouble::new(describe_send(&error)))?;
        device
            .tell(match describe_outcome(&outcome) {
                None => News::Accepted { bytes, took: sent.elapsed(), reply: "disposition".into() },
                Some(reply) => News::Refused { reply },
            })
            .await;
    }
}

fn message(device: &Device, reading: String) -> Message<Data> {
    let (name, value) = device.plan.property;
    Message::builder()
        .properties(Properties::builder().content_type("application/json").build())
        .application_properties(ApplicationProperties::builder().insert(name, value).build())
        .body(Data(Binary::from(reading.into_bytes())))
        .build()
}

fn text(body: &Body<Value>) -> String {
    let bytes: Vec<u8> = match body.try_as_data() {
        Ok(parts) => parts.flat_map(|part| part.iter().copied()).collect(),
        Err(_) => format!("{body:?}").into_bytes(),
    };
    String::from_utf8_lossy(&bytes).into_owned()
}
