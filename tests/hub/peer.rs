//! A hub on loopback, and clients of it.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use fe2o3_amqp::sasl_profile::SaslProfile;
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

pub(crate) use super::client::{Client, annotation, body, data};

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
        Client::open(self.stream().await.unwrap(), profile).await
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
