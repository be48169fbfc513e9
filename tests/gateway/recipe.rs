//! The well-known recipe of Qpid Dispatch Router, run from its own file as it is.

use std::thread;

use fe2o3_amqp::sasl_profile::SaslProfile;
use fieldgate::app::{self, Started};
use fieldgate::config::Config;
use fieldgate::hub::device_key;
use fieldgate::sas::{ConnectionString, SharedKey, Signer};
use fieldgate::shutdown;
use fieldgate_mappings::DeviceId;
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::client::{Client, data};
use super::world::{Gateway, Lines, in_an_hour, within};

/// Only the numbers are the test's: free ports, and one worker.
const RECIPE: &str = "\
router { mode: standalone  id: site-gateway  workerThreads: 1 }
listener { host: 0.0.0.0  port: 0  authenticatePeer: no  saslMechanisms: ANONYMOUS }
sslProfile { name: hub-tls  caCertFile: ca.pem }
connector { name: HUB  host: localhost  port: PORT  role: route-container  sslProfile: hub-tls  saslMechanisms: ANONYMOUS  idleTimeoutSeconds: 120 }
linkRoute { prefix: $cbs/  connection: HUB  direction: in }
linkRoute { prefix: $cbs/  connection: HUB  direction: out }
linkRoute { prefix: devices/  connection: HUB  direction: in }
linkRoute { prefix: devices/  connection: HUB  direction: out }
";

#[tokio::test]
async fn the_recipe_runs_as_it_is() {
    within(async {
        // The hub in the cloud is the embedded one of another gateway.
        let cloud = Gateway::embedded(Lines::default()).await;
        let state = cloud.state.path();
        let text = std::fs::read_to_string(state.join("service-connection-string")).unwrap();
        let port = ConnectionString::parse(text.trim()).unwrap().port.unwrap();
        let file = state.join("qdrouterd.conf");
        std::fs::write(&file, RECIPE.replace("PORT", &port.to_string())).unwrap();

        let mut config = Config::load(&file).unwrap();
        // The other gateway of this process may have its usual place.
        config.admin.listen.clear();
        let (trigger, shutdown) = shutdown::channel();
        let (tell, started) = oneshot::channel();
        let gateway =
            thread::spawn(move || app::run_and_tell(config, &shutdown, |started| drop(tell.send(started))));
        let Started { listening, .. } = started.await.unwrap();
        assert!(listening.mqtt.is_empty() && listening.coap.is_empty() && listening.http.is_empty());

        let at = ("127.0.0.1", listening.amqp[0].port());
        let mut device = Client::open(TcpStream::connect(at).await.unwrap(), SaslProfile::Anonymous).await;
        let owner = std::fs::read_to_string(state.join("policy-key")).unwrap();
        let owner = SharedKey::from_base64(owner.trim()).unwrap();
        let key = device_key(&owner, &DeviceId::new("dev").unwrap());
        let token = Signer::new(None, key).token("localhost/devices/dev", in_an_hour());
        assert_eq!(device.put_token(&token, "localhost/devices/dev").await, 200);
        let mut sender = device.sender("devices/dev/messages/events").await;
        assert!(sender.send(data(*b"x")).await.unwrap().is_accepted());

        trigger.drain();
        tokio::task::spawn_blocking(move || gateway.join().unwrap().unwrap()).await.unwrap();
        cloud.stop().await;
    })
    .await;
}
