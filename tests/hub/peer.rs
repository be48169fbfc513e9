//! A hub on loopback, and clients of it.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use fe2o3_amqp::connection::ConnectionHandle;
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::messaging::{
    AmqpValue, ApplicationProperties, Body, Data, Message, MessageId, Properties,
};
use fe2o3_amqp::types::primitives::{Binary, SimpleValue, Value};
use fe2o3_amqp::{Connection, Delivery, Receiver, Sender, Session};
use fieldgate::config::Config;
use fieldgate::hub::{self, HubHandle, HubSetup, device_key};
use fieldgate::sas::{SharedKey, Signer};
use fieldgate::shutdown;
use fieldgate::state::StateDir;
use fieldgate::tls::{self, Roots};
use fieldgate_mappings::DeviceId;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Nothing in these tests takes anywhere near this long; a hub that hangs must not hang the tests.
const PATIENCE: Duration = Duration::from_secs(20);

/// The whole of a test, within reason.
pub(crate) async fn within<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, test).await.expect("the hub answers in time")
}

/// A hub that runs.
pub(crate) struct TestHub {
    pub(crate) handle: Option<HubHandle>,
    pub(crate) address: SocketAddr,
    owner: SharedKey,
    ca_file: PathBuf,
}

impl TestHub {
    /// With these lines in the section `[hub]`.
    pub(crate) fn start(lines: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("hub-{number}"));
        let text = format!("[hub]\nfeedback_delay = \"20ms\"\npartitions = 1\n{lines}");
        let config = Config::parse("test", &text, None).unwrap();
        let state = StateDir::locate(Some(&directory)).unwrap().lock().unwrap();
        let owner = SharedKey::from_base64(state.policy_key().unwrap().expose()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (_, shutdown) = shutdown::channel();
        let handle = hub::start(HubSetup {
            config: config.hub,
            hosts: vec!["127.0.0.1".into()],
            owner: owner.clone(),
            tls: tls::server(state.hub_identity("localhost").unwrap()).unwrap(),
            listeners: vec![listener],
            shutdown,
        })
        .unwrap();
        Self { handle: Some(handle), address, owner, ca_file: state.ca_file() }
    }

    pub(crate) fn stop(&mut self) {
        self.handle.take().unwrap().stop().unwrap();
    }

    /// TLS with the hub, whose certificate is checked.
    pub(crate) async fn stream(&self) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.address).await?;
        let connector = TlsConnector::from(tls::client(&Roots::File(self.ca_file.clone())).unwrap());
        connector.connect(ServerName::try_from("localhost").unwrap(), stream).await
    }

    pub(crate) async fn connect(&self, profile: SaslProfile) -> Client {
        let mut connection = Connection::builder()
            .container_id("test")
            .hostname("localhost")
            .scheme("amqp") // TLS is around the stream already
            .sasl_profile(profile)
            .open_with_stream(self.stream().await.unwrap())
            .await
            .unwrap();
        let session = Session::begin(&mut connection).await.unwrap();
        Client { connection, session, cbs: None }
    }

    /// A client that may do everything.
    pub(crate) async fn service(&self) -> Client {
        let mut client = self.connect(SaslProfile::Anonymous).await;
        assert_eq!(client.put_token(&self.owner_token(), "localhost").await, 200);
        client
    }

    /// A client that is this device.
    pub(crate) async fn device(&self, id: &str) -> Client {
        let mut client = self.connect(SaslProfile::Anonymous).await;
        let name = format!("localhost/devices/{id}");
        assert_eq!(client.put_token(&self.device_token(id), &name).await, 200);
        client
    }

    pub(crate) fn owner_token(&self) -> String {
        Signer::new(Some("iothubowner".into()), self.owner.clone()).token("localhost", in_an_hour())
    }

    pub(crate) fn device_token(&self, id: &str) -> String {
        self.device_token_until(id, in_an_hour())
    }

    pub(crate) fn device_token_until(&self, id: &str, expiry: u64) -> String {
        let key = device_key(&self.owner, &DeviceId::new(id).unwrap());
        Signer::new(None, key).token(&format!("localhost/devices/{id}"), expiry)
    }
}

pub(crate) fn now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

fn in_an_hour() -> u64 {
    now() + 3600
}

/// A connection of the other implementation, with one session.
pub(crate) struct Client {
    pub(crate) connection: ConnectionHandle<()>,
    pub(crate) session: SessionHandle<()>,
    cbs: Option<(Sender, Receiver)>,
}

impl Client {
    /// Puts a token; gives the status.
    pub(crate) async fn put_token(&mut self, token: &str, name: &str) -> i32 {
        if self.cbs.is_none() {
            let sender = Sender::attach(&mut self.session, "cbs-out", "$cbs").await.unwrap();
            let receiver = Receiver::attach(&mut self.session, "cbs-in", "$cbs").await.unwrap();
            self.cbs = Some((sender, receiver));
        }
        let (sender, receiver) = self.cbs.as_mut().unwrap();
        let request = Message::builder()
            .properties(Properties::builder().message_id(MessageId::Ulong(7)).to("$cbs").build())
            .application_properties(
                ApplicationProperties::builder()
                    .insert("operation", "put-token")
                    .insert("type", "servicebus.windows.net:sastoken")
                    .insert("name", name)
                    .build(),
            )
            .body(AmqpValue(token.to_owned()))
            .build();
        assert!(sender.send(request).await.unwrap().is_accepted());
        let answer: Delivery<Body<Value>> = receiver.recv().await.unwrap();
        receiver.accept(&answer).await.unwrap();
        let message = answer.message();
        assert_eq!(message.properties.as_ref().unwrap().correlation_id, Some(MessageId::Ulong(7)));
        match message.application_properties.as_ref().unwrap().get("status-code") {
            Some(SimpleValue::Int(status)) => *status,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn sender(&mut self, address: &str) -> Sender {
        Sender::attach(&mut self.session, format!("to {address}"), address).await.unwrap()
    }

    pub(crate) async fn receiver(&mut self, address: &str) -> Receiver {
        Receiver::attach(&mut self.session, format!("from {address}"), address).await.unwrap()
    }
}

/// A message with this body.
pub(crate) fn data(body: impl Into<Vec<u8>>) -> Message<Data> {
    Message::builder().body(Data(Binary::from(body.into()))).build()
}

/// The bytes of a message's body.
pub(crate) fn body(delivery: &Delivery<Body<Value>>) -> Vec<u8> {
    delivery.body().try_as_data().unwrap().flat_map(|part| part.iter().copied()).collect()
}

/// A message annotation.
pub(crate) fn annotation(delivery: &Delivery<Body<Value>>, name: &str) -> Option<Value> {
    let annotations = delivery.message().message_annotations.as_ref()?;
    annotations.0.iter().find_map(|(key, value)| match key {
        fe2o3_amqp::types::messaging::annotations::OwnedKey::Symbol(symbol) if symbol.as_str() == name => {
            Some(value.clone())
        }
        _ => None,
    })
}
