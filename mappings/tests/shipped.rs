//! The shipped mapping files that are not built in: Hono's and ThingsBoard's device names.

use std::time::Duration;

use bytes::Bytes;
use fieldgate_mappings::mqtt::{Publish, PublishProperties};
use fieldgate_mappings::{
    AZURE_IOT_HUB, Address, ByteString, DeviceId, Direction, Identity, Message, MessageId, Reason, Rejection,
    RuleSet, Source, Value, coap,
};

const HONO: Source<'static> = Source { name: "hono.toml", text: include_str!("../hono.toml") };
const THINGSBOARD: Source<'static> =
    Source { name: "thingsboard.toml", text: include_str!("../thingsboard.toml") };

fn load(sources: &[Source<'_>]) -> RuleSet {
    RuleSet::load(sources).unwrap_or_else(|error| panic!("{error}"))
}

fn id() -> DeviceId {
    DeviceId::new("d7").expect("legal")
}

fn publish(rules: &RuleSet, topic: &str) -> Result<Message, Rejection> {
    let payload = Bytes::from_static(b"{}");
    let publish = Publish { topic, payload, qos: 1, retain: false, properties: PublishProperties::default() };
    let device = id();
    rules.map_mqtt(&device, publish)
}

/// The application properties as text, in their order.
fn said(message: &Message) -> Vec<(&str, &str)> {
    let text = |value| Value::as_str(value).expect("text");
    message.application_properties.iter().map(|(name, value)| (&**name, text(value))).collect()
}

fn command() -> Message {
    let address = Address::parse("devices/d7/messages/devicebound").expect("legal");
    let mut message = Message::new(id(), Direction::Downlink, address, Bytes::from_static(b"on"));
    message.properties.message_id = Some(MessageId::Ulong(42));
    message.properties.correlation_id = Some(MessageId::String(ByteString::from_static("q1")));
    message.properties.subject = Some(ByteString::from_static("setLight"));
    message
}

#[test]
fn all_shipped_files_can_be_used_together() {
    load(&[AZURE_IOT_HUB, HONO, THINGSBOARD]);
    load(&[THINGSBOARD, HONO, AZURE_IOT_HUB]);
}

#[test]
fn hono_telemetry_and_events_over_mqtt() {
    let rules = load(&[HONO]);
    for (topic, expected) in [
        ("telemetry", vec![("kind", "telemetry")]),
        ("t", vec![("kind", "telemetry")]),
        ("event", vec![("kind", "event")]),
        ("e", vec![("kind", "event")]),
        ("telemetry/acme/d7", vec![("kind", "telemetry"), ("tenant", "acme")]),
        ("t//d7", vec![("kind", "telemetry"), ("tenant", "")]),
        ("event/acme/d7", vec![("kind", "event"), ("tenant", "acme")]),
        ("e/acme/d7/?site=ber", vec![("kind", "event"), ("tenant", "acme"), ("site", "ber")]),
        ("telemetry/?site=new+york&kind=x", vec![("kind", "telemetry"), ("site", "new york")]),
        ("t/?", vec![("kind", "telemetry")]),
    ] {
        let message = publish(&rules, topic).unwrap_or_else(|rejection| panic!("{topic}: {rejection:?}"));
        assert_eq!(message.address.as_str(), "devices/d7/messages/events", "{topic}");
        assert_eq!(said(&message), expected, "{topic}");
    }
    let message = publish(&rules, "event/?content-type=text%2Fplain&hono-ttl=10&hono-ttd=5&&a%3Db").unwrap();
    assert_eq!(message.properties.content_type.as_deref(), Some("text/plain"));
    assert_eq!(message.ttl, Some(Duration::from_secs(10)));
    assert_eq!(said(&message), [("kind", "event"), ("a=b", "")]);
}

#[test]
fn what_hono_devices_may_not_say() {
    let rules = load(&[HONO]);
    for (topic, reason) in [
        ("telemetry/acme/d8", Reason::NotPermitted),
        ("telemetry/here", Reason::NoSuchAddress),
        ("telemetry/acme/d7/x", Reason::NoSuchAddress),
        ("event/?hono-ttl=soon", Reason::Content),
        ("event/?a=%zz", Reason::Content),
        ("event/?a=%ff", Reason::Content),
        ("event/?a=1&a=2", Reason::Content),
        ("event/?=1", Reason::Content),
        ("event/?iothub-x=1", Reason::Content),
        ("event/?content-type=%C3%A9", Reason::Content),
        ("command///req/1/x", Reason::NoSuchAddress),
    ] {
        assert_eq!(publish(&rules, topic).unwrap_err().reason, reason, "{topic}");
    }
    let endless = format!("event/?{}", (0..101).map(|n| format!("n{n}=&")).collect::<String>());
    assert_eq!(publish(&rules, &endless).unwrap_err().reason, Reason::Content);
}

#[test]
fn hono_devices_over_coap() {
    let rules = load(&[HONO]);
    let map = |method, path: &[&str], identity: Identity<'_>| {
        rules.map_coap(
            identity,
            coap::Request {
                method,
                confirmable: true,
                path,
                query: &["hono-ttd=5"],
                content_format: Some(50),
                payload: Bytes::new(),
            },
        )
    };
    let own = map("POST", &["telemetry"], Identity::Is(&id())).unwrap();
    assert_eq!(
        (said(&own), own.address.as_str()),
        (vec![("kind", "telemetry")], "devices/d7/messages/events")
    );
    assert_eq!(own.properties.content_type.as_deref(), Some("application/json"));
    let named = map("PUT", &["e", "acme", "d7"], Identity::Claimed).unwrap();
    assert_eq!(said(&named), [("kind", "event"), ("tenant", "acme")]);
    let answer = map("POST", &["command", "res", "42"], Identity::Is(&id())).unwrap();
    assert_eq!(answer.properties.correlation_id, Some(MessageId::String(ByteString::from_static("42"))));
}

#[test]
fn a_command_to_a_hono_device_and_its_answer() {
    let rules = load(&[HONO]);
    for (filter, topic, answer) in [
        ("command///req/#", "command///req/42/setLight", "command///res/42/200"),
        ("c///q/#", "c///q/42/setLight", "c///s/42/200/?content-type=text/plain"),
        ("command///req/+/+", "command///req/42/setLight", "command///res/42/200/"),
        ("command///req/+/#", "command///req/42/setLight", "command///res/42/200"),
        ("command///req/+/+/#", "command///req/42/setLight", "command///res/42/200"),
    ] {
        let subscription = rules.command_subscription(&id(), filter).unwrap();
        assert_eq!(subscription.source().as_str(), "devices/d7/messages/devicebound");
        assert_eq!(subscription.command(&command()).unwrap().topic, topic);
        let answer = publish(&rules, answer).unwrap();
        assert_eq!(said(&answer), [("kind", "command-response"), ("status", "200")]);
        assert_eq!(answer.properties.correlation_id, Some(MessageId::String(ByteString::from_static("42"))));
    }
    let subscription = rules.command_subscription(&id(), "command///req/#").unwrap();
    let mut one_way = command();
    one_way.properties.message_id = None;
    assert_eq!(subscription.command(&one_way).unwrap().topic, "command///req//setLight");
    let mut no_level = command();
    no_level.properties.subject = Some(ByteString::from_static("a/b"));
    assert_eq!(subscription.command(&no_level).unwrap_err().reason, Reason::Content);
    for filter in ["command///req", "command///req/42/#", "command///req/+", "command/+/+/req/#", "command/#"]
    {
        assert!(rules.command_subscription(&id(), filter).is_err(), "{filter}");
    }
}

#[test]
fn thingsboard_devices() {
    let rules = load(&[THINGSBOARD]);
    for (topic, kind) in [
        ("v1/devices/me/telemetry", "telemetry"),
        ("v1/devices/me/attributes", "attributes"),
        ("v1/devices/me/claim", "claim"),
        ("v1/devices/me/rpc/response/42", "rpc-response"),
    ] {
        let message = publish(&rules, topic).unwrap();
        assert_eq!(message.address.as_str(), "devices/d7/messages/events");
        assert_eq!(said(&message), [("kind", kind)]);
        assert_eq!(message.properties.content_type.as_deref(), Some("application/json"));
        let id = message.properties.correlation_id;
        let expected = topic.starts_with("v1/devices/me/rpc").then(|| topic.rsplit('/').next().unwrap());
        assert_eq!(id, expected.map(|text| MessageId::String(text.into())));
    }
    for (filter, topic) in [
        ("v1/devices/me/rpc/request/+", "v1/devices/me/rpc/request/42"),
        ("v1/devices/me/rpc/request/#", "v1/devices/me/rpc/request/42"),
    ] {
        let subscription = rules.command_subscription(&id(), filter).unwrap();
        assert_eq!(subscription.command(&command()).unwrap().topic, topic);
    }
    assert!(rules.command_subscription(&id(), "v1/devices/me/attributes").is_err());
    assert_eq!(publish(&rules, "v1/devices/me/other").unwrap_err().reason, Reason::NoSuchAddress);
}

/// What a rule says about the message as a whole stands, whatever the device says.
#[test]
fn the_rule_has_the_last_word_on_the_system_properties() {
    let rules = load(&[Source {
        name: "m.toml",
        text: "version = 1\n[[rule]]\nname = \"r\"\ndirection = \"uplink\"\nconvention = \"azure-iot-hub\"\n\
               from.mqtt = \"s/{line}/{*bag}\"\nto.address = \"devices/{device}/messages/events\"\n\
               system = { subject = \"{line} of {device}\", message-id = \"m\", ttl = \"10m\", reply-to = \"r\", \
               content-encoding = \"gzip\" }\n",
    }]);
    let message = publish(&rules, "s/l1/$.mid=own&$.ct=text%2Fplain&$.ce=br").unwrap();
    let properties = &message.properties;
    assert_eq!(properties.subject.as_deref(), Some("l1 of d7"));
    assert_eq!(properties.message_id, Some(MessageId::String(ByteString::from_static("m"))));
    assert_eq!(properties.reply_to.as_deref(), Some("r"));
    assert_eq!(properties.content_encoding.as_deref(), Some("gzip"));
    assert_eq!(
        properties.content_type.as_deref(),
        Some("text/plain"),
        "what the rule leaves is the device's"
    );
    assert_eq!(message.ttl, Some(Duration::from_secs(600)));
}
