//! Devices that prove who they are to the gateway's registry: each protocol lets in the one that does, to its own
//! addresses, and cuts off the one that may no longer.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::types::messaging::Body;
use fe2o3_amqp::types::primitives::Value;
use fe2o3_amqp::{Connection, Receiver, Sender, Session};
use fieldgate::hub::device_key;
use fieldgate::sas::{SharedKey, Signer};
use fieldgate_mappings::DeviceId;
use fieldgate_mqtt::client::{ConnectOptions, ServerPacket};
use fieldgate_mqtt::{PublishReply, QoS, Version, Will};
use ring::digest::{SHA256, digest};
use tokio::net::TcpStream;

use super::certificates::Certificates;
use super::client::{Client, body, data};
use super::commands::command;
use super::hub::Hub;
use super::mqtt::{Mqtt, Told};
use super::requests::{Http, HttpAnswer};
use super::world::{Directory, Gateway, Lines, in_an_hour, within};

pub(super) const KEY: &[u8] = b"0123456789abcdef0123456789abcdef";
const OTHER_KEY: &[u8] = b"another-another-another-another-";
pub(super) const PASSWORD: &str = "correct horse";
/// How soon a device that may no longer is cut off.
const CUT_OFF: Duration = Duration::from_secs(5);
/// Nobody is believed.
const STRICT: Lines<'static> = Lines {
    amqp: "authorise = \"registry\"",
    mqtt: "allow_anonymous = false",
    coap: "allow_anonymous = false",
    http: "allow_anonymous = false",
    ..Lines::NONE
};

/// The registry's file.
pub(super) struct Registry {
    directory: Directory,
}

impl Registry {
    pub(super) fn new(text: &str) -> Self {
        let directory = Directory::new();
        std::fs::create_dir_all(directory.path()).unwrap();
        let registry = Self { directory };
        registry.write(text);
        registry
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("devices.toml")
    }

    /// Puts another file in its place.
    pub(super) fn write(&self, text: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let new = self.directory.path().join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::rename(&new, self.file()).unwrap();
    }

    pub(super) fn section(&self) -> String {
        format!("[devices]\nfile = {:?}\n", self.file())
    }
}

fn hash(password: &str) -> String {
    let salt = [7; 16];
    let hash = digest(&SHA256, &[&salt[..], password.as_bytes()].concat());
    format!("$sha256${}${}", STANDARD_NO_PAD.encode(salt), STANDARD_NO_PAD.encode(hash))
}

pub(super) fn with_key(id: &str, key: &[u8]) -> String {
    format!("[[device]]\nid = \"{id}\"\nsas_keys = [\"{}\"]\n", STANDARD.encode(key))
}

pub(super) fn with_password(id: &str, password: &str) -> String {
    format!("[[device]]\nid = \"{id}\"\npasswords = [\"{}\"]\n", hash(password))
}

/// `a` and `b` have keys, `p` a password, `free` needs no proof, `off` has a key and is disabled.
pub(super) fn everybody() -> String {
    with_key("a", KEY)
        + &with_key("b", OTHER_KEY)
        + &with_password("p", PASSWORD)
        + "[[device]]\nid = \"free\"\nunproven = true\n"
        + &with_key("off", KEY)
        + "enabled = false\n"
}

pub(super) fn token_until(device: &str, key: &[u8], expiry: u64) -> String {
    let key = SharedKey::from_bytes(key).unwrap();
    Signer::new(None, key).token(&format!("localhost/devices/{device}"), expiry)
}

pub(super) fn token(device: &str, key: &[u8]) -> String {
    token_until(device, key, in_an_hour())
}

pub(super) async fn gateway(registry: &Registry, lines: Lines<'_>) -> Gateway {
    let more = registry.section() + lines.more;
    Gateway::embedded(Lines { more: &more, ..lines }).await
}

pub(super) async fn connect(
    gateway: &Gateway,
    version: Version,
    id: &str,
    user: &str,
    password: &str,
) -> (Mqtt, u8) {
    // MQTT 3.1.1 has no password without a user name (3.1.2-22).
    let user =
        if user.is_empty() && !password.is_empty() && version == Version::V311 { "anybody" } else { user };
    let options = ConnectOptions {
        username: (!user.is_empty()).then_some(user),
        password: (!password.is_empty()).then_some(password.as_bytes()),
        ..ConnectOptions::new(version, id)
    };
    let (device, connack) = Mqtt::ask(gateway.ports.mqtt, &options).await;
    (device, connack.code)
}

/// The reason of the DISCONNECT that ends the connection.
async fn told_to_go(device: &mut Mqtt) -> u8 {
    let Some(ServerPacket::Disconnect { reason }) = device.packet().await else { panic!("no DISCONNECT") };
    assert_eq!(device.packet().await, None);
    reason
}

pub(super) async fn post(gateway: &Gateway, device: &str, authorization: &str) -> HttpAnswer {
    let mut http = gateway.http().await;
    post_on(&mut http, device, authorization).await
}

async fn post_on(http: &mut Http, device: &str, authorization: &str) -> HttpAnswer {
    let field = match authorization {
        "" => String::new(),
        value => format!("Authorization: {value}\r\n"),
    };
    let head = format!(
        "POST /devices/{device}/messages/events HTTP/1.1\r\nHost: gateway\r\n{field}Content-Length: 1\r\n\r\nx"
    );
    http.write(head.as_bytes()).await;
    http.answer().await
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

pub(super) fn plain(user: &str, password: &str) -> SaslProfile {
    SaslProfile::Plain { username: user.into(), password: password.into() }
}

async fn amqp(gateway: &Gateway, profile: SaslProfile) -> Client {
    Client::open(TcpStream::connect(gateway.ports.amqp).await.unwrap(), profile).await
}

/// Attaches both ways, on connections of their own, and is refused.
pub(super) async fn refused(gateway: &Gateway, profile: &SaslProfile, address: &str) -> [String; 2] {
    let mut client = amqp(gateway, profile.clone()).await;
    let as_sender = Sender::attach(&mut client.session, address, address).await.map(drop);
    let mut client = amqp(gateway, profile.clone()).await;
    let as_receiver = Receiver::attach(&mut client.session, address, address).await.map(drop);
    [format!("{:?}", as_sender.expect_err(address)), format!("{:?}", as_receiver.expect_err(address))]
}

pub(super) fn events(device: &str) -> String {
    format!("devices/{device}/messages/events")
}

fn bound(device: &str) -> String {
    format!("devices/{device}/messages/devicebound")
}

#[tokio::test]
async fn mqtt_lets_in_who_proves_it() {
    within(async {
        let registry = Registry::new(&everybody());
        let gateway = gateway(&registry, STRICT).await;
        let azure = "localhost/a/?api-version=2021-04-12";
        let sas = token("a", KEY);
        for version in [Version::V311, Version::V5] {
            for (id, user, password) in [
                ("a", azure, &*sas),
                ("a", "", &sas),
                ("p", "p", PASSWORD),
                ("p", "", PASSWORD),
                // A client that makes up its client identifier.
                ("mosq-x1", "p", PASSWORD),
                ("free", "", ""),
            ] {
                let (mut device, code) = connect(&gateway, version, id, user, password).await;
                assert_eq!(code, 0, "{id} {user}");
                let own = if user == "p" { "p" } else { id };
                let sent = device.event(own, b"x").await;
                assert_eq!(device.told(sent).await, Told::PubAck(0));
            }
            let wrong = if version == Version::V5 { 0x86 } else { 5 };
            let not_allowed = if version == Version::V5 { 0x87 } else { 5 };
            for (id, user, password, refusal) in [
                ("a", "", "", wrong),
                ("a", azure, &*token("a", OTHER_KEY), wrong),
                ("a", azure, &token_until("a", KEY, 1_000_000_000), wrong),
                ("a", azure, &token("b", KEY), wrong),
                ("b", "localhost/b/?api-version=2021-04-12", &sas, wrong),
                ("b", azure, &sas, not_allowed),
                ("p", "p", "wrong", wrong),
                ("a", "p", "", wrong),
                ("stranger", "", "", wrong),
                ("stranger", "stranger", PASSWORD, wrong),
                ("off", "", &token("off", OTHER_KEY), wrong),
                ("off", "", &token("off", KEY), not_allowed),
            ] {
                let (mut device, code) = connect(&gateway, version, id, user, password).await;
                assert_eq!(code, refusal, "{id} {user}");
                assert_eq!(device.packet().await, None);
            }
        }
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn http_lets_in_who_proves_it() {
    within(async {
        let registry = Registry::new(&everybody());
        let gateway = gateway(&registry, STRICT).await;
        let sas = token("a", KEY);
        for (device, authorization, status) in [
            ("a", &*sas, 204),
            ("p", &basic("p", PASSWORD), 204),
            ("free", "", 204),
            // A token in the place of a password.
            ("a", &basic("a", &sas), 204),
            ("a", "", 401),
            ("a", "Bearer x", 401),
            ("stranger", "", 401),
            ("a", &token("a", OTHER_KEY), 401),
            ("a", &token_until("a", KEY, 1_000_000_000), 401),
            ("p", &basic("p", "wrong"), 401),
            ("stranger", &basic("stranger", PASSWORD), 401),
            ("off", &token("off", KEY), 403),
            // Somebody, and not whom the path names.
            ("b", &sas, 403),
            ("p", &sas, 403),
            ("a", &basic("p", PASSWORD), 403),
            ("free", &basic("p", PASSWORD), 403),
        ] {
            let answer = post(&gateway, device, authorization).await;
            assert_eq!(answer.status, status, "{device} {answer:?}");
            let challenged = answer.head.contains("www-authenticate: sharedaccesssignature, basic ");
            assert_eq!(challenged, status == 401, "{answer:?}");
        }
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn coap_takes_the_word_of_those_that_need_no_proof() {
    within(async {
        let registry = Registry::new(&everybody());
        let strict = gateway(&registry, STRICT).await;
        for (device, code) in [("free", "2.04"), ("a", "4.01"), ("stranger", "4.01"), ("off", "4.01")] {
            let mut coap = strict.coap().await;
            coap.event(device, b"x", true).await;
            assert_eq!(coap.answer().await.code, code, "{device}");
        }
        strict.stop().await;
        // Where everybody is believed, a device that has a proof is not.
        let open = gateway(&registry, Lines::NONE).await;
        for (device, code) in [("free", "2.04"), ("a", "4.01"), ("stranger", "2.04")] {
            let mut coap = open.coap().await;
            coap.event(device, b"x", true).await;
            assert_eq!(coap.answer().await.code, code, "{device}");
        }
        open.stop().await;
    })
    .await;
}

#[tokio::test]
async fn amqp_lets_in_who_proves_it() {
    within(async {
        let registry = Registry::new(&everybody());
        let gateway = gateway(&registry, STRICT).await;
        for (user, password, device) in [
            ("p", PASSWORD, "p"),
            ("p@sas.localhost", PASSWORD, "p"),
            ("a@sas.localhost", &*token("a", KEY), "a"),
        ] {
            let mut client = amqp(&gateway, plain(user, password)).await;
            let mut sender = client.sender(&events(device)).await;
            assert!(sender.send(data(*b"x")).await.unwrap().is_accepted());
            client.receiver(&bound(device)).await;
            for other in ["b", "free", "stranger"] {
                for error in refused(&gateway, &plain(user, password), &events(other)).await {
                    assert!(error.contains("UnauthorizedAccess"), "{error}");
                }
            }
            // What of the gateway crosses its Close is an error to fe2o3-amqp, and none of the gateway's.
            let _ = client.connection.close().await;
        }
        for (user, password) in [
            ("p", "wrong"),
            ("stranger", PASSWORD),
            ("a", PASSWORD),
            ("b@sas.localhost", &*token("a", KEY)),
            ("off@sas.localhost", &token("off", KEY)),
        ] {
            let stream = TcpStream::connect(gateway.ports.amqp).await.unwrap();
            let builder =
                Connection::builder().container_id("test").scheme("amqp").sasl_profile(plain(user, password));
            let refused = builder.open_with_stream(stream).await.unwrap_err();
            assert!(format!("{refused:?}").contains("Sasl"), "{user}: {refused:?}");
        }
        // Without SASL, by tokens: several devices on one connection.
        let mut client = amqp(&gateway, SaslProfile::Anonymous).await;
        for error in refused(&gateway, &SaslProfile::Anonymous, &events("a")).await {
            assert!(error.contains("UnauthorizedAccess"), "{error}");
        }
        for (device, key, status) in [
            ("a", KEY, 200),
            ("b", OTHER_KEY, 200),
            ("a", OTHER_KEY, 401),
            ("off", KEY, 401),
            ("stranger", KEY, 401),
            ("p", KEY, 401),
        ] {
            let name = format!("localhost/devices/{device}");
            assert_eq!(client.put_token(&token(device, key), &name).await, status, "{device}");
        }
        for device in ["a", "b"] {
            let mut sender = client.sender(&events(device)).await;
            assert!(sender.send(data(*b"x")).await.unwrap().is_accepted());
        }
        let refused = Sender::attach(&mut client.session, "p", events("p")).await.unwrap_err();
        assert!(format!("{refused:?}").contains("UnauthorizedAccess"), "{refused:?}");
        gateway.stop().await;
    })
    .await;
}

/// What `a` can do and what of `b`'s it reaches, over every protocol, having proved itself in every way.
#[tokio::test]
async fn a_device_reaches_nothing_of_another() {
    within(async {
        let both = with_key("a", KEY)
            + &format!("passwords = [\"{}\"]\n", hash(PASSWORD))
            + &with_key("b", OTHER_KEY)
            + &format!("passwords = [\"{}\"]\n", hash("another"));
        let registry = Registry::new(&both);
        let gateway = gateway(&registry, STRICT).await;
        let sas = token("a", KEY);
        for password in [PASSWORD, &sas] {
            // MQTT: publishing, subscribing, the will.
            let (mut device, code) = connect(&gateway, Version::V5, "a", "", password).await;
            assert_eq!(code, 0);
            for topic in
                ["devices/b/messages/events", "devices/b/messages/events/x=y", "devices/%62/messages/events"]
            {
                let sent = device.send(topic, b"x", QoS::AtLeastOnce).await;
                let told = device.told(sent).await;
                assert!(matches!(told, Told::PubAck(0x87 | 0x90)), "{topic}: {told:?}");
            }
            for filter in
                ["devices/b/messages/devicebound/#", "devices/+/messages/devicebound/#", "#", "devices/#"]
            {
                let code = device.subscribe(filter).await;
                assert!(code >= 0x80, "{filter}: {code:#x}");
            }
            assert_eq!(device.subscribe("devices/a/messages/devicebound/#").await, 1);
            let will = Will {
                topic: "devices/b/messages/events".into(),
                payload: "x".into(),
                qos: QoS::AtLeastOnce,
                retain: false,
                delay: Duration::ZERO,
                properties: Default::default(),
            };
            let options = ConnectOptions {
                will: Some(&will),
                password: Some(password.as_bytes()),
                ..ConnectOptions::new(Version::V5, "a")
            };
            let (_, connack) = Mqtt::ask(gateway.ports.mqtt, &options).await;
            assert_eq!(connack.code, 0x87);
            // With the other's name, and the own proof.
            for (id, user) in
                [("b", ""), ("b", "b"), ("a", "b"), ("b", "localhost/b/?api-version=2021-04-12")]
            {
                let (_, code) = connect(&gateway, Version::V5, id, user, password).await;
                assert_eq!(code, 0x86, "{id} {user}");
            }
            // HTTP.
            for path in ["b", "%62", "a%2f..%2fb", "a/../b"] {
                for authorization in [basic("a", password), sas.clone()] {
                    let status = post(&gateway, path, &authorization).await.status;
                    assert!(matches!(status, 400 | 403 | 404), "{path}: {status}");
                }
            }
            assert_eq!(post(&gateway, "b", &basic("b", password)).await.status, 401);
            // AMQP.
            let mut client = amqp(&gateway, plain("a", password)).await;
            for address in [
                "devices/b/messages/events",
                "/devices/b/messages/events",
                "devices/%62/messages/events",
                "devices/a/../b/messages/events",
                "devices/a%2f..%2fb/messages/events",
                "amqps://localhost/devices/b/messages/events",
                "DEVICES/b/messages/events",
                "devices/b",
                "devices",
                "messages/events",
                "$management",
            ] {
                refused(&gateway, &plain("a", password), address).await;
            }
            let status = client.put_token(&sas, "localhost/devices/b").await;
            assert_eq!(status, 401);
            client.sender(&events("a")).await;
        }
        // CoAP proves nothing, so it reaches neither.
        for device in ["a", "b"] {
            let mut coap = gateway.coap().await;
            coap.event(device, b"x", true).await;
            assert_eq!(coap.answer().await.code, "4.01");
        }
        gateway.stop().await;
    })
    .await;
}

/// Each protocol cuts off `a`, and keeps `b`.
async fn cut_off(change: impl FnOnce(&Registry)) {
    let two = with_key("a", KEY)
        + &with_key("b", OTHER_KEY)
        + "[[device]]\nid = \"free-a\"\nunproven = true\n[[device]]\nid = \"free-b\"\nunproven = true\n";
    let registry = Registry::new(&two);
    let gateway = gateway(&registry, STRICT).await;
    let (a, b) = (token("a", KEY), token("b", OTHER_KEY));
    let (mut mqtt_a, _) = connect(&gateway, Version::V5, "a", "", &a).await;
    assert_eq!(mqtt_a.subscribe("devices/a/messages/devicebound/#").await, 1);
    let (mut mqtt_b, _) = connect(&gateway, Version::V5, "b", "", &b).await;
    let (mut http_a, mut http_b) = (gateway.http().await, gateway.http().await);
    assert_eq!(post_on(&mut http_a, "a", &a).await.status, 204);
    assert_eq!(post_on(&mut http_b, "b", &b).await.status, 204);
    // One connection that is `a`, one that is `b`, and one with tokens of both.
    let mut plain_a = amqp(&gateway, plain("a@sas.localhost", &a)).await;
    let mut plain_b = amqp(&gateway, plain("b@sas.localhost", &b)).await;
    let (mut sender_a, mut sender_b) =
        (plain_a.sender(&events("a")).await, plain_b.sender(&events("b")).await);
    let mut shared = amqp(&gateway, SaslProfile::Anonymous).await;
    let mut links = Vec::new();
    for (device, token) in [("a", &a), ("b", &b)] {
        assert_eq!(shared.put_token(token, &format!("localhost/devices/{device}")).await, 200);
        let mut sender = shared.sender(&events(device)).await;
        assert!(sender.send(data(*b"x")).await.unwrap().is_accepted());
        links.push(sender);
    }
    assert!(sender_a.send(data(*b"x")).await.unwrap().is_accepted());

    change(&registry);
    let changed = Instant::now();
    assert_eq!(told_to_go(&mut mqtt_a).await, 0x87);
    let error = format!("{:?}", links[0].on_detach().await);
    assert!(error.contains("UnauthorizedAccess"), "{error}");
    let error = format!("{:?}", plain_a.connection.on_close().await);
    assert!(error.contains("UnauthorizedAccess") && changed.elapsed() < CUT_OFF, "{error}");
    assert!(sender_a.send(data(*b"x")).await.is_err());
    let answer = post_on(&mut http_a, "a", &a).await;
    assert!(matches!(answer.status, 401 | 403), "{answer:?}");
    let (_, code) = connect(&gateway, Version::V5, "a", "", &a).await;
    assert!(matches!(code, 0x86 | 0x87), "{code:#x}");
    let mut coap = gateway.coap().await;
    coap.event("free-a", b"x", true).await;
    assert!(matches!(&*coap.answer().await.code, "4.01" | "4.03"));
    assert!(changed.elapsed() < CUT_OFF);

    // Nobody else has noticed.
    let sent = mqtt_b.event("b", b"x").await;
    assert_eq!(mqtt_b.told(sent).await, Told::PubAck(0));
    assert_eq!(post_on(&mut http_b, "b", &b).await.status, 204);
    assert!(sender_b.send(data(*b"x")).await.unwrap().is_accepted());
    assert!(links[1].send(data(*b"x")).await.unwrap().is_accepted());
    let mut coap = gateway.coap().await;
    coap.event("free-b", b"x", true).await;
    assert_eq!(coap.answer().await.code, "2.04");
    gateway.stop().await;
}

/// The others' entries.
fn rest() -> String {
    with_key("b", OTHER_KEY) + "[[device]]\nid = \"free-b\"\nunproven = true\n"
}

#[tokio::test]
async fn a_device_that_is_removed_is_cut_off() {
    within(cut_off(|registry| registry.write(&rest()))).await;
}

#[tokio::test]
async fn a_device_that_is_disabled_is_cut_off() {
    within(cut_off(|registry| {
        let off = "enabled = false\n[[device]]\nid = \"free-a\"\nunproven = true\nenabled = false\n";
        registry.write(&(rest() + &with_key("a", KEY) + off));
    }))
    .await;
}

#[tokio::test]
async fn a_device_whose_key_is_another_is_cut_off() {
    within(cut_off(|registry| {
        registry.write(&(rest() + &with_key("a", OTHER_KEY) + &with_key("free-a", KEY)));
    }))
    .await;
}

#[tokio::test]
async fn a_bad_file_changes_nothing_until_it_is_good() {
    within(async {
        let registry = Registry::new(&everybody());
        let gateway = gateway(&registry, STRICT).await;
        let (mut device, _) = connect(&gateway, Version::V5, "p", "", PASSWORD).await;
        registry.write("[[device]]\nid = \"p\"\npasswords = [\"oops\"]\n");
        loop {
            let health = gateway.admin("/healthz").await;
            assert_eq!(health.status, 200, "an older registry does its work");
            if health.body.contains("\"devices\":\"down\"") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        device.ping().await;
        assert_eq!(connect(&gateway, Version::V5, "p", "", PASSWORD).await.1, 0);
        let (mut device, _) = connect(&gateway, Version::V5, "p", "", PASSWORD).await;
        registry.write(&(everybody() + &with_password("new", PASSWORD)));
        while !gateway.admin("/healthz").await.body.contains("\"devices\":\"up\"") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(connect(&gateway, Version::V5, "new", "", PASSWORD).await.1, 0);
        device.ping().await;
        assert!(gateway.metric("fieldgate_registry_refused_total").await > 0);
        assert!(gateway.metric("fieldgate_registry_generation").await > 1);
        assert!(
            gateway.metric(r#"fieldgate_authentications_total{protocol="mqtt",result="password"}"#).await > 3
        );
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_device_that_is_registered_has_to_prove_itself_on_loopback_too() {
    within(async {
        let registry = Registry::new("");
        let gateway = gateway(&registry, Lines::NONE).await;
        let mut mqtt = gateway.mqtt(Version::V5, "a").await;
        assert_eq!(post(&gateway, "a", "").await.status, 204);
        registry.write(&everybody());
        assert_eq!(told_to_go(&mut mqtt).await, 0x87);
        assert_eq!(connect(&gateway, Version::V5, "a", "", "").await.1, 0x86);
        assert_eq!(post(&gateway, "a", "").await.status, 401);
        // Others are who they say they are, as before.
        gateway.mqtt(Version::V5, "stranger").await.leave().await;
        assert_eq!(post(&gateway, "stranger", "").await.status, 204);
        assert_eq!(connect(&gateway, Version::V5, "a", "", &token("a", KEY)).await.1, 0);
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn the_links_of_a_device_that_is_registered_now_are_detached() {
    within(async {
        let mut hub = Hub::start();
        let registry = Registry::new("");
        let more = registry.section();
        let gateway = Gateway::scripted(&hub, Lines { more: &more, ..Lines::NONE }).await;
        let mut client = amqp(&gateway, SaslProfile::Anonymous).await;
        let mut sender = client.sender(&events("a")).await;
        client.sender(&events("stranger")).await;
        let link = hub.attached().await;
        registry.write(&everybody());
        let error = format!("{:?}", sender.on_detach().await);
        assert!(error.contains("UnauthorizedAccess"), "{error}");
        hub.detached(link).await;
        for error in refused(&gateway, &SaslProfile::Anonymous, &events("a")).await {
            assert!(error.contains("UnauthorizedAccess"), "{error}");
        }
        // What could be read as the device's address in another way is refused as well.
        for address in ["devices//a/messages/events", "devices/a/./messages/events"] {
            refused(&gateway, &SaslProfile::Anonymous, address).await;
        }
        client.sender("devices/another/messages/events").await;
        drop(client);
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_token_that_ends_ends_the_connection() {
    within(async {
        let registry = Registry::new(&everybody());
        let gateway = gateway(&registry, STRICT).await;
        let soon = token_until("a", KEY, in_an_hour() - 3600 + 3);
        let (mut mqtt, code) = connect(&gateway, Version::V5, "a", "", &soon).await;
        assert_eq!(code, 0);
        let mut client = amqp(&gateway, plain("a@sas.localhost", &soon)).await;
        client.sender(&events("a")).await;
        assert_eq!(told_to_go(&mut mqtt).await, 0x87);
        let error = format!("{:?}", client.connection.on_close().await);
        assert!(error.contains("UnauthorizedAccess"), "{error}");
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn guesses_are_slowed_down() {
    within(async {
        let registry = Registry::new(&everybody());
        let more = format!("{}failures_per_device = 3\nlongest_wait = \"2s\"\n", registry.section());
        let gateway = Gateway::embedded(Lines { more: &more, ..STRICT }).await;
        let mut codes = Vec::new();
        for _ in 0..5 {
            codes.push(connect(&gateway, Version::V5, "p", "", "guess").await.1);
        }
        assert_eq!(codes, [0x86, 0x86, 0x86, 0x97, 0x97]);
        let answer = post(&gateway, "p", &basic("p", PASSWORD)).await;
        assert_eq!(answer.status, 429, "{answer:?}");
        assert!(answer.head.contains("\r\nretry-after: "), "{answer:?}");
        // Other devices of the same address go on.
        assert_eq!(connect(&gateway, Version::V5, "a", "", &token("a", KEY)).await.1, 0);
        while connect(&gateway, Version::V5, "p", "", PASSWORD).await.1 != 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_broker_that_wants_no_token_is_put_none() {
    within(async {
        let mut hub = Hub::start();
        let registry = Registry::new(&everybody());
        let more = registry.section();
        let gateway = Gateway::scripted(&hub, Lines { more: &more, ..STRICT }).await;
        hub.opened().await;
        let mut client = amqp(&gateway, plain("p", PASSWORD)).await;
        client.sender(&events("p")).await;
        hub.attached().await;
        let mut others = amqp(&gateway, SaslProfile::Anonymous).await;
        assert_eq!(others.put_token(&token("a", KEY), "localhost/devices/a").await, 200);
        others.sender(&events("a")).await;
        // A session of its own for a second look.
        Session::begin(&mut others.connection).await.unwrap();
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_certificate_is_its_devices() {
    within(async {
        let certificates = Certificates::new();
        let registry = Registry::new(
            "[[device]]\nid = \"pump-1\"\ncertificates = [\"CN=site-7-pump\"]\n\
             [[device]]\nid = \"off\"\nenabled = false\ncertificates = [\"CN=off\"]\n",
        );
        let listener =
            certificates.listener("client_certificates = \"required\"", "authorise = \"registry\"");
        let more = registry.section() + &listener;
        let gateway = Gateway::embedded(Lines { more: &more, ..Lines::NONE }).await;
        let tls13 = &rustls::version::TLS13;
        let stream = certificates.connect(&gateway, tls13, Some("site-7-pump")).await.unwrap();
        let mut client = Client::open(stream, SaslProfile::Anonymous).await;
        let mut sender = client.sender(&events("pump-1")).await;
        assert!(sender.send(data(*b"x")).await.unwrap().is_accepted());
        let refused = Sender::attach(&mut client.session, "other", events("site-7-pump")).await.unwrap_err();
        assert!(format!("{refused:?}").contains("UnauthorizedAccess"), "{refused:?}");
        // A good certificate of nobody who is registered; and of one that is disabled.
        let stream = certificates.connect(&gateway, tls13, Some("stranger")).await.unwrap();
        let mut stranger = Client::open(stream, SaslProfile::Anonymous).await;
        let refused = Sender::attach(&mut stranger.session, "x", events("stranger")).await.unwrap_err();
        assert!(format!("{refused:?}").contains("UnauthorizedAccess"), "{refused:?}");
        let stream = certificates.connect(&gateway, tls13, Some("off")).await.unwrap();
        let builder =
            Connection::builder().container_id("test").scheme("amqp").sasl_profile(SaslProfile::Anonymous);
        let refused = builder.open_with_stream(stream).await;
        assert!(refused.is_err() || refused.unwrap().on_close().await.is_err());
        // The certificate is another device's now.
        registry.write("[[device]]\nid = \"pump-2\"\ncertificates = [\"CN=site-7-pump\"]\n");
        let error = format!("{:?}", client.connection.on_close().await);
        assert!(error.contains("UnauthorizedAccess"), "{error}");
        drop(stranger);
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn the_gateway_speaks_with_what_the_registry_says() {
    within(async {
        let registry = Registry::new("");
        let gateway = gateway(&registry, STRICT).await;
        let owner = std::fs::read_to_string(gateway.state.path().join("policy-key")).unwrap();
        let owner = SharedKey::from_base64(owner.trim()).unwrap();
        let hub_key = |device: &str| device_key(&owner, &DeviceId::new(device).unwrap()).to_base64();
        let speaks = |line: String| format!("{line}speaks_with = \"device-key\"\n");
        registry.write(
            &(speaks(with_password("right", PASSWORD) + &format!("hub_key = \"{}\"\n", hub_key("right")))
                + &speaks(
                    with_password("wrong", PASSWORD) + &format!("hub_key = \"{}\"\n", hub_key("right")),
                )
                + &format!(
                    "[[device]]\nid = \"own\"\nsas_keys = [\"{}\"]\nspeaks_with = \"own-token\"\n",
                    hub_key("own")
                )
                + &with_key("own-wrong", KEY)
                + "speaks_with = \"own-token\"\n"),
        );
        while connect(&gateway, Version::V5, "right", "", PASSWORD).await.1 != 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut client = amqp(&gateway, plain("right", PASSWORD)).await;
        let mut sender = client.sender(&events("right")).await;
        assert!(sender.send(data(*b"x")).await.unwrap().is_accepted());
        // The hub does not know the key: it says so, and the device hears it.
        let mut client = amqp(&gateway, plain("wrong", PASSWORD)).await;
        let refused = Sender::attach(&mut client.session, "x", events("wrong")).await.unwrap_err();
        assert!(format!("{refused:?}").contains("UnauthorizedAccess"), "{refused:?}");
        let mut client = amqp(&gateway, SaslProfile::Anonymous).await;
        let own = token("own", &STANDARD.decode(hub_key("own")).unwrap());
        assert_eq!(client.put_token(&own, "localhost/devices/own").await, 200);
        let mut sender = client.sender(&events("own")).await;
        assert!(sender.send(data(*b"x")).await.unwrap().is_accepted());
        // Good for the gateway, which passes it on, and not for the hub.
        assert_eq!(client.put_token(&token("own-wrong", KEY), "localhost/devices/own-wrong").await, 401);
        drop(client);
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_gateway_of_the_group_acts_for_its_devices() {
    within(async {
        let registry = Registry::new(
            &(with_password("gw", PASSWORD)
                + "groups = [\"line\"]\n"
                + &with_password("p", "of p")
                + "via = [\"line\"]\n"
                + &with_password("q", "of q")),
        );
        let mapping = registry.directory.path().join("line.toml");
        let text = "version = 1\n[[rule]]\nname = \"line\"\ndirection = \"uplink\"\n\
                    from.mqtt = \"line/{device}\"\nfrom.http = \"POST /line/{device}\"\n\
                    to.address = \"devices/{device}/messages/events\"\ndevice.via = \"line\"\n";
        std::fs::write(&mapping, text).unwrap();
        let more = format!("{}[mappings]\nfiles = [{mapping:?}]\n", registry.section());
        let gateway = Gateway::embedded(Lines { more: &more, ..STRICT }).await;
        let (mut device, _) = connect(&gateway, Version::V5, "gw", "", PASSWORD).await;
        for (topic, told) in
            [("line/p", Told::PubAck(0)), ("line/gw", Told::PubAck(0)), ("line/q", Told::PubAck(0x87))]
        {
            let sent = device.send(topic, b"x", QoS::AtLeastOnce).await;
            assert_eq!(device.told(sent).await, told, "{topic}");
        }
        for (device, status) in [("p", 204), ("gw", 204), ("q", 403), ("stranger", 403)] {
            let mut http = gateway.http().await;
            let field = basic("gw", PASSWORD);
            http.write(
                format!("POST /line/{device} HTTP/1.1\r\nHost: g\r\nAuthorization: {field}\r\nContent-Length: 1\r\n\r\nx")
                    .as_bytes(),
            )
            .await;
            assert_eq!(http.answer().await.status, status, "{device}");
        }
        // Not the other way round, and no more once the group is gone.
        let (mut p, _) = connect(&gateway, Version::V5, "p", "", "of p").await;
        let sent = p.send("line/gw", b"x", QoS::AtLeastOnce).await;
        assert_eq!(p.told(sent).await, Told::PubAck(0x87));
        registry.write(&(with_password("gw", PASSWORD) + &with_password("p", "of p") + "via = [\"line\"]\n"));
        loop {
            let sent = device.send("line/p", b"x", QoS::AtLeastOnce).await;
            match device.told(sent).await {
                Told::PubAck(0) => tokio::time::sleep(Duration::from_millis(50)).await,
                told => break assert_eq!(told, Told::PubAck(0x87)),
            }
        }
        gateway.stop().await;
    })
    .await;
}

/// Over one connection it takes the commands of several devices, each with a subscription of its own at the hub.
#[tokio::test]
async fn a_gateway_of_the_group_takes_commands_for_its_devices() {
    within(async {
        let entries = |groups: &str| {
            let mut text = with_password("gw", PASSWORD) + groups;
            for device in ["p", "r"] {
                text += &with_password(device, PASSWORD);
                text += "via = [\"line\"]\n";
            }
            text + &with_password("q", "of q")
        };
        let registry = Registry::new(&entries("groups = [\"line\"]\n"));
        let mapping = registry.directory.path().join("line.toml");
        let text = "version = 1\n[[rule]]\nname = \"up\"\ndirection = \"uplink\"\nfrom.mqtt = \"line/{device}\"\n\
                    to.address = \"devices/{device}/messages/events\"\ndevice.via = \"line\"\n\
                    [[rule]]\nname = \"down\"\ndirection = \"downlink\"\n\
                    from.hub = \"devices/{device}/messages/devicebound\"\n\
                    to.mqtt = { topic = \"line/{device}/cmd\", qos = 1 }\ndevice.via = \"line\"\n";
        std::fs::write(&mapping, text).unwrap();
        let more = format!("{}[mappings]\nfiles = [{mapping:?}]\n", registry.section());
        let gateway = Gateway::embedded(Lines { more: &more, ..STRICT }).await;
        let mut service = super::commands::service(gateway.state.path()).await;
        let mut sender = service.sender("/messages/devicebound").await;
        let session = ConnectOptions {
            username: Some("gw"),
            password: Some(PASSWORD.as_bytes()),
            clean_start: false,
            session_expiry_seconds: 60,
            ..ConnectOptions::new(Version::V5, "gw")
        };
        let (mut gw, _) = Mqtt::ask(gateway.ports.mqtt, &session).await;
        for device in ["p", "r", "gw"] {
            // It exists at the hub from its first message on.
            let sent = gw.send(&format!("line/{device}"), b"x", QoS::AtLeastOnce).await;
            assert_eq!(gw.told(sent).await, Told::PubAck(0));
            assert_eq!(gw.subscribe(&format!("line/{device}/cmd")).await, 1);
        }
        for (filter, code) in [("line/q/cmd", 0x87), ("line/stranger/cmd", 0x87), ("line/+/cmd", 0x87)] {
            assert_eq!(gw.subscribe(filter).await, code, "{filter}");
        }
        let mut feedback = service.receiver("/messages/serviceBound/feedback").await;
        for device in ["p", "gw", "r", "p"] {
            assert!(sender.send(command(device, device)).await.unwrap().is_accepted());
            let (packet_id, topic, _) = gw.command().await;
            assert_eq!(topic, format!("line/{device}/cmd"));
            gw.acknowledge(packet_id, PublishReply::Success).await;
            let heard = feedback.recv::<Body<Value>>().await.unwrap();
            feedback.accept(&heard).await.unwrap();
            let records: serde_json::Value = serde_json::from_slice(&body(&heard)).unwrap();
            assert_eq!((&records[0]["deviceId"], &records[0]["statusCode"]), (&device.into(), &"Success".into()));
        }
        // One less: the others stay. What is in flight comes again over the session's next connection.
        assert_eq!(gw.unsubscribe("line/r/cmd").await, 0);
        for name in ["p", "r"] {
            assert!(sender.send(command("c-1", name)).await.unwrap().is_accepted());
        }
        let (packet_id, ..) = gw.command().await;
        let (mut gw, connack) = Mqtt::ask(gateway.ports.mqtt, &session).await;
        assert!(connack.session_present);
        match gw.packet().await {
            Some(ServerPacket::Publish { packet_id: again, topic, dup: true, .. }) => {
                assert_eq!((again, topic.as_str()), (Some(packet_id), "line/p/cmd"));
            }
            other => panic!("{other:?}"),
        }
        // It may no longer: the command is the device's own, and the connection goes on.
        registry.write(&entries(""));
        loop {
            let sent = gw.send("line/p", b"x", QoS::AtLeastOnce).await;
            match gw.told(sent).await {
                Told::PubAck(0) => tokio::time::sleep(Duration::from_millis(50)).await,
                told => break assert_eq!(told, Told::PubAck(0x87)),
            }
        }
        gw.acknowledge(packet_id, PublishReply::Success).await;
        assert!(sender.send(command("c-2", "p")).await.unwrap().is_accepted());
        let (mut p, _) = connect(&gateway, Version::V5, "p", "", PASSWORD).await;
        assert_eq!(p.subscribe("line/p/cmd").await, 1);
        assert_eq!(p.command().await.1, "line/p/cmd");
        gw.ping().await;
        assert_eq!(gw.subscribe("line/p/cmd").await, 0x87);
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn a_slow_password_keeps_nobody_waiting() {
    within(async {
        // Some 15 ms each, on one thread.
        let slow = "$argon2id$v=19$m=7168,t=5,p=1$c29tZXNhbHRzb21lc2FsdA$OHc9SRN0/XEiuUUihEOCXBYjZ7cbpwHqG3uM3/Rhr/w";
        let registry = Registry::new(&(everybody() + &format!("[[device]]\nid = \"slow\"\npasswords = \"{slow}\"\n")));
        let more = registry.section() + "failures_per_device = 1000\nfailures_per_address = 1000\n";
        let gateway = Gateway::embedded(Lines { more: &more, ..STRICT }).await;
        let (mut device, _) = connect(&gateway, Version::V5, "a", "", &token("a", KEY)).await;
        let mut guesses = tokio::task::JoinSet::new();
        for _ in 0..40 {
            let address = gateway.ports.mqtt;
            guesses.spawn(async move {
                let options =
                    ConnectOptions { password: Some(b"guess"), ..ConnectOptions::new(Version::V5, "slow") };
                Mqtt::ask(address, &options).await.1.code
            });
        }
        let mut longest = Duration::ZERO;
        while guesses.try_join_next().is_none() || guesses.len() > 5 {
            let begun = Instant::now();
            device.ping().await;
            longest = longest.max(begun.elapsed());
        }
        assert!(longest < Duration::from_millis(500), "{longest:?}");
        while let Some(code) = guesses.join_next().await {
            assert_eq!(code.unwrap(), 0x86);
        }
        gateway.stop().await;
    })
    .await;
}
