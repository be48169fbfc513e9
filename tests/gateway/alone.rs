//! Devices with a hub connection of their own, at a listener that believes everybody: the registry has its say before
//! the hub does.

use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::types::messaging::Target;
use fe2o3_amqp::{Connection, Receiver, Sender};
use fieldgate::hub::device_key;
use fieldgate::sas::{SharedKey, Signer};
use fieldgate_mappings::DeviceId;
use tokio::net::TcpStream;

use super::certificates::Certificates;
use super::client::{Client, data};
use super::devices::{KEY, PASSWORD, Registry, events, everybody, plain, refused, token_until};
use super::hub::{Answer, Hub, Seen};
use super::world::{Gateway, Lines, in_an_hour, within};

const ANONYMOUS: SaslProfile = SaslProfile::Anonymous;
/// What is registered with a certificate.
const CERTIFIED: &str = "[[device]]\nid = \"pump-1\"\ncertificates = [\"CN=site-7-pump\"]\n\
                         [[device]]\nid = \"gone\"\nenabled = false\ncertificates = [\"CN=gone\"]\n";
const LISTENER: &str = "authorise = \"any\"\nsasl_mechanisms = [\"ANONYMOUS\", \"PLAIN\"]";

/// A gateway that gives each device a hub connection of its own, and believes everybody.
async fn gateway(registry: &Registry, hub: &Hub, certificates: &Certificates) -> Gateway {
    let more = registry.section() + &certificates.listener("client_certificates = \"optional\"", LISTENER);
    let upstream = "mode = \"per-connection\"";
    Gateway::scripted(hub, Lines { amqp: "authorise = \"any\"", upstream, more: &more, ..Lines::NONE }).await
}

async fn tls(
    gateway: &Gateway,
    certificates: &Certificates,
    name: Option<&str>,
    shown: SaslProfile,
) -> Client {
    let stream = certificates.connect(gateway, &rustls::version::TLS13, name).await.unwrap();
    Client::open(stream, shown).await
}

/// What is told whoever does not get in.
async fn sent_away(
    gateway: &Gateway,
    certificates: &Certificates,
    name: Option<&str>,
    shown: SaslProfile,
) -> String {
    let stream = certificates.connect(gateway, &rustls::version::TLS13, name).await.unwrap();
    let builder = Connection::builder().container_id("sent-away").hostname("localhost").scheme("amqp");
    match builder.sasl_profile(shown).open_with_stream(stream).await {
        Err(error) => format!("{error:?}"),
        Ok(mut connection) => format!("{:?}", connection.on_close().await.unwrap_err()),
    }
}

/// No link was attached at the hub for any of these devices.
fn nothing_came(hub: &mut Hub, devices: &[&str]) {
    let of = |address: &str| devices.iter().any(|device| address.contains(&format!("/{device}/")));
    assert!(!hub.has_seen(|seen| matches!(seen, Seen::Attached { address, .. } if of(address))));
}

#[tokio::test]
async fn the_word_of_a_registered_device_is_not_enough() {
    within(async {
        let certificates = Certificates::new();
        let registry = Registry::new(&(everybody() + CERTIFIED));
        let mut hub = Hub::start();
        let gateway = gateway(&registry, &hub, &certificates).await;
        for address in [
            "devices/a/messages/events",
            "/devices/a/messages/events",
            "devices/%61/messages/events",
            "amqps://localhost/devices/a/messages/events",
            "amqp://elsewhere:5672/devices/a/messages/events",
            "devices/a/modules/m/messages/events",
            "devices/p/messages/events",
            "devices/pump-1/messages/events",
        ] {
            for error in refused(&gateway, &ANONYMOUS, address).await {
                assert!(error.contains("UnauthorizedAccess") && error.contains("not shown"), "{error}");
            }
        }
        for error in refused(&gateway, &ANONYMOUS, &events("off")).await {
            assert!(error.contains("UnauthorizedAccess") && error.contains("disabled"), "{error}");
        }
        // What could be read as a device's address in another way.
        for address in
            ["devices//a/messages/events", "devices/a/./messages/events", "\\devices/a/messages/events"]
        {
            refused(&gateway, &ANONYMOUS, address).await;
        }
        // Without an address every message says where it goes, unread here.
        let stream = TcpStream::connect(gateway.ports.amqp).await.unwrap();
        let mut client = Client::open(stream, ANONYMOUS).await;
        let anonymous = Sender::builder().name("anywhere").target(Target::default());
        let error = anonymous.attach(&mut client.session).await.map(drop).unwrap_err();
        assert!(format!("{error:?}").contains("NotAllowed"), "{error:?}");
        nothing_came(&mut hub, &["a", "p", "pump-1", "off"]);
        // Who is not registered, or needs no proof, comes in as ever.
        let stream = TcpStream::connect(gateway.ports.amqp).await.unwrap();
        let mut client = Client::open(stream, ANONYMOUS).await;
        for device in ["stranger", "free"] {
            let mut sender = client.sender(&events(device)).await;
            let sent = sender.send_batchable(data(*b"x")).await.unwrap();
            let message = hub.message_of("x").await;
            hub.settle(&message, &Answer::Accept);
            assert!(sent.await.unwrap().is_accepted());
        }
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_registered_device_shows_its_proof() {
    within(async {
        let certificates = Certificates::new();
        let registry = Registry::new(&(everybody() + CERTIFIED));
        let mut hub = Hub::start();
        hub.behave(|manner| manner.user = Some(("p", PASSWORD)));
        let gateway = gateway(&registry, &hub, &certificates).await;
        let mut pump = tls(&gateway, &certificates, Some("site-7-pump"), ANONYMOUS).await;
        pump.sender(&events("pump-1")).await;
        let other = Sender::attach(&mut pump.session, "other", events("a")).await.map(drop).unwrap_err();
        assert!(format!("{other:?}").contains("UnauthorizedAccess"), "{other:?}");
        // The certificate of nobody who is registered is nobody's.
        let mut stranger = tls(&gateway, &certificates, Some("stranger"), ANONYMOUS).await;
        stranger.sender(&events("stranger")).await;
        let other =
            Receiver::attach(&mut stranger.session, "x", events("pump-1")).await.map(drop).unwrap_err();
        assert!(format!("{other:?}").contains("UnauthorizedAccess"), "{other:?}");
        // The registry has judged a password before the hub hears it.
        let mut client = tls(&gateway, &certificates, None, plain("p", PASSWORD)).await;
        client.sender(&events("p")).await;
        nothing_came(&mut hub, &["a"]);

        let told = sent_away(&gateway, &certificates, Some("gone"), ANONYMOUS).await;
        assert!(told.contains("UnauthorizedAccess") && told.contains("disabled"), "{told}");
        for (user, password) in [("p", "wrong"), ("a", PASSWORD), ("off", PASSWORD)] {
            let told = sent_away(&gateway, &certificates, None, plain(user, password)).await;
            assert!(told.contains("Auth"), "{user}: {told}");
        }
        let is_theirs =
            |seen: &Seen| matches!(seen, Seen::Opened { container, .. } if container == "sent-away");
        assert!(!hub.has_seen(is_theirs));
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn who_may_no_longer_is_cut_off_from_its_own_connection() {
    within(async {
        let certificates = Certificates::new();
        let registry = Registry::new(CERTIFIED);
        let mut hub = Hub::start();
        let gateway = gateway(&registry, &hub, &certificates).await;
        let mut pump = tls(&gateway, &certificates, Some("site-7-pump"), ANONYMOUS).await;
        pump.sender(&events("pump-1")).await;
        let its = hub.attached().await;
        let mut client = tls(&gateway, &certificates, None, ANONYMOUS).await;
        let mut sender = client.sender(&events("a")).await;
        let link = hub.attached().await;
        let mut stranger = client.sender(&events("stranger")).await;
        hub.attached().await;
        // One is disabled, one is registered: the connection of the one, and the link of the other.
        registry.write(
            &(everybody()
                + "[[device]]\nid = \"pump-1\"\nenabled = false\ncertificates = [\"CN=site-7-pump\"]\n"),
        );
        let error = format!("{:?}", pump.connection.on_close().await);
        assert!(error.contains("UnauthorizedAccess"), "{error}");
        hub.ended(its.connection).await;
        let error = format!("{:?}", sender.on_detach().await);
        assert!(error.contains("UnauthorizedAccess") && error.contains("not shown"), "{error}");
        hub.detached(link).await;
        let sent = stranger.send_batchable(data(*b"x")).await.unwrap();
        let message = hub.message_of("x").await;
        hub.settle(&message, &Answer::Accept);
        assert!(sent.await.unwrap().is_accepted());
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_token_in_place_of_a_password_ends() {
    within(async {
        let certificates = Certificates::new();
        let registry = Registry::new(&everybody());
        let mut hub = Hub::start();
        let soon: &'static str = token_until("a", KEY, in_an_hour() - 3600 + 3).leak();
        hub.behave(|manner| manner.user = Some(("a@sas.localhost", soon)));
        let gateway = gateway(&registry, &hub, &certificates).await;
        let mut client = tls(&gateway, &certificates, None, plain("a@sas.localhost", soon)).await;
        client.sender(&events("a")).await;
        let link = hub.attached().await;
        let error = format!("{:?}", client.connection.on_close().await);
        assert!(error.contains("UnauthorizedAccess"), "{error}");
        hub.ended(link.connection).await;
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_disabled_device_is_let_in_by_no_token_either() {
    within(async {
        for mode in ["shared", "per-connection"] {
            let registry = Registry::new("");
            let more = registry.section();
            let upstream = format!("mode = \"{mode}\"");
            let lines =
                Lines { amqp: "authorise = \"token\"", upstream: &upstream, more: &more, ..Lines::NONE };
            let gateway = Gateway::embedded(lines).await;
            let stream = TcpStream::connect(gateway.ports.amqp).await.unwrap();
            let mut client = Client::open(stream, ANONYMOUS).await;
            let owner = std::fs::read_to_string(gateway.state.path().join("policy-key")).unwrap();
            let owner = SharedKey::from_base64(owner.trim()).unwrap();
            let key = device_key(&owner, &DeviceId::new("off").unwrap());
            let token = Signer::new(None, key).token("localhost/devices/off", in_an_hour());
            assert_eq!(client.put_token(&token, "localhost/devices/off").await, 200);
            let mut sender = client.sender(&events("off")).await;
            assert!(sender.send(data(*b"x")).await.unwrap().is_accepted());
            registry.write(&everybody());
            let error = format!("{:?}", sender.on_detach().await);
            assert!(error.contains("UnauthorizedAccess"), "{mode}: {error}");
            let again = Sender::attach(&mut client.session, "again", events("off")).await.map(drop);
            let again = format!("{:?}", again.unwrap_err());
            assert!(again.contains("UnauthorizedAccess") && again.contains("disabled"), "{mode}: {again}");
            gateway.stop().await;
        }
    })
    .await;
}
