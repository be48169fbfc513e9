//! Where mapped devices belong, and what the hub is shown for them, as the registry says it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fe2o3_amqp::types::messaging::Body;
use fe2o3_amqp::types::primitives::Value;
use fieldgate::hub::device_key;
use fieldgate::sas::SharedKey;
use fieldgate_mappings::DeviceId;
use fieldgate_mqtt::Version;

use super::client::annotation;
use super::devices::{KEY, PASSWORD, Registry, connect, gateway, post, token, with_key, with_password};
use super::hub::{Answer, Hub};
use super::mqtt::Told;
use super::world::{Gateway, Lines, within};

const LOG: &str = "messages/events/ConsumerGroups/$Default/Partitions/0";

fn text(value: Option<Value>) -> String {
    match value {
        Some(Value::String(text)) => text,
        other => panic!("{other:?}"),
    }
}

/// Waits until the registry is in force that has this device: until then everybody is believed.
pub(crate) async fn in_force(gateway: &Gateway, device: &str) {
    while connect(gateway, Version::V5, device, "", "no password").await.1 == 0 {}
}

#[tokio::test]
async fn the_hub_is_shown_what_the_registry_says() {
    within(async {
        let registry = Registry::new("");
        let gateway = gateway(&registry, Lines::NONE).await;
        let owner = std::fs::read_to_string(gateway.state.path().join("policy-key")).unwrap();
        let owner = SharedKey::from_base64(owner.trim()).unwrap();
        let hub_key = |device: &str| device_key(&owner, &DeviceId::new(device).unwrap()).to_base64();
        let speaks = |id: &str, key: String| {
            with_password(id, PASSWORD) + &format!("hub_key = \"{key}\"\nspeaks_with = \"device-key\"\n")
        };
        let own = STANDARD.decode(hub_key("own")).unwrap();
        registry.write(
            &(speaks("keyed", hub_key("keyed"))
                + &speaks("wrong", hub_key("another"))
                + &with_key("own", &own)
                + "speaks_with = \"own-token\"\n"
                + &with_key("own-wrong", KEY)
                + "speaks_with = \"own-token\"\n"
                + &with_password("policy", PASSWORD)),
        );
        in_force(&gateway, "keyed").await;
        let own = token("own", &own);
        let own_wrong = token("own-wrong", KEY);
        let shown = [("keyed", PASSWORD), ("wrong", PASSWORD), ("own", &own)];
        let mut answers = Vec::new();
        for (id, password) in shown.into_iter().chain([("policy", PASSWORD), ("stranger", "")]) {
            let (mut device, code) = connect(&gateway, Version::V5, id, "", password).await;
            assert_eq!(code, 0, "{id}");
            let sent = device.event(id, b"mqtt").await;
            answers.push((id, device.told(sent).await));
        }
        let (done, refused) = (Told::PubAck(0), Told::Disconnect(0x87));
        assert_eq!(answers[..3], [("keyed", done), ("wrong", refused), ("own", done)]);
        assert_eq!(answers[3..], [("policy", done), ("stranger", done)]);
        // What the hub says to a device's own token is known before CONNACK.
        for (version, code) in [(Version::V311, 5), (Version::V5, 0x87)] {
            assert_eq!(connect(&gateway, version, "own-wrong", "", &own_wrong).await.1, code);
        }
        // Each request brings its own, and one device's refusal is nobody else's.
        assert_eq!(post(&gateway, "own", &own).await.status, 204);
        assert_eq!(post(&gateway, "own-wrong", &own_wrong).await.status, 401);
        assert_eq!(post(&gateway, "stranger", "").await.status, 204);
        let mut service = super::commands::service(gateway.state.path()).await;
        let mut log = service.receiver(LOG).await;
        let mut by: HashMap<String, Vec<String>> = HashMap::new();
        for _ in 0..6 {
            let event = log.recv::<Body<Value>>().await.unwrap();
            log.accept(&event).await.unwrap();
            let method = text(annotation(&event, "iothub-connection-auth-method"));
            by.entry(text(annotation(&event, "iothub-connection-device-id"))).or_default().push(method);
        }
        let count = |id: &str, scope: &str| {
            let scope = format!("\"scope\":\"{scope}\"");
            by[id].iter().filter(|method| method.contains(&scope)).count()
        };
        assert_eq!((count("keyed", "device"), count("own", "device")), (1, 2), "{by:?}");
        assert_eq!((count("policy", "hub"), count("stranger", "hub")), (1, 2), "{by:?}");
        gateway.stop().await;
    })
    .await;
}

/// A device whose token its hub has to judge is not let in while there is no hub, and waits for it no longer than it may.
#[tokio::test]
async fn a_device_with_its_own_token_waits_for_its_hub() {
    within(async {
        let hub = Hub::start();
        hub.behave(|manner| manner.takes = 0);
        let registry = Registry::new(&(with_key("own", KEY) + "speaks_with = \"own-token\"\n"));
        let more = registry.section();
        let gateway = Gateway::away(&hub, Lines { more: &more, ..Lines::NONE }).await;
        let token = token("own", KEY);
        let waiting = connect(&gateway, Version::V5, "own", "", &token);
        let waiting_3 = connect(&gateway, Version::V311, "own", "", &token);
        let begun = Instant::now();
        // Others have nothing to wait for.
        let others = async {
            gateway.mqtt(Version::V5, "other").await;
            assert!(begun.elapsed() < Duration::from_secs(10));
        };
        let ((_, code), (_, code_3), ()) = tokio::join!(waiting, waiting_3, others);
        assert_eq!((code, code_3), (0x88, 3));
        assert!(begun.elapsed() >= Duration::from_secs(10));
        gateway.stop().await;
    })
    .await;
}

#[tokio::test]
async fn each_device_is_sent_for_to_the_hub_that_it_belongs_to() {
    within(async {
        let (mut here, mut there) = (Hub::start(), Hub::start());
        let entry = |hub: &str| with_password("pump", PASSWORD) + hub;
        let registry = Registry::new(&entry("hub = \"there\"\n"));
        let more = registry.section() + &there.connector("there", "");
        let gateway = Gateway::scripted(&here, Lines { more: &more, ..Lines::NONE }).await;
        let (mut pump, code) = connect(&gateway, Version::V5, "pump", "", PASSWORD).await;
        assert_eq!(code, 0);
        let mut other = gateway.mqtt(Version::V5, "other").await;
        let (one, two) = (pump.event("pump", b"for there").await, other.event("other", b"for here").await);
        let theirs = there.message_of("for there").await;
        there.settle(&theirs, &Answer::Accept);
        assert_eq!(pump.told(one).await, Told::PubAck(0));
        let message = here.message_of("for here").await;
        // The one hub goes; the other has nothing to do with it.
        there.behave(|manner| manner.takes = 0);
        there.cut(theirs.place.connection);
        here.settle(&message, &Answer::Accept);
        assert_eq!(other.told(two).await, Told::PubAck(0));
        // It belongs to the other hub from now on, and stays connected.
        registry.write(&(entry("") + &with_password("probe", PASSWORD)));
        in_force(&gateway, "probe").await;
        let sent = pump.event("pump", b"again").await;
        let message = here.message_of("again").await;
        here.settle(&message, &Answer::Accept);
        assert_eq!(pump.told(sent).await, Told::PubAck(0));
        gateway.stop().await;
    })
    .await;
}
