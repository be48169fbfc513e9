//! The shipped mapping file: commands on their way to MQTT devices, and whose they are.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use bytes::Bytes;
use fieldgate_mappings::mqtt::{Publish, PublishProperties};
use fieldgate_mappings::{
    AZURE_IOT_HUB, Address, ByteString, DeviceId, Direction, Message, MessageId, Reason, RuleSet, Timestamp,
    Value,
};

fn rules() -> RuleSet {
    RuleSet::load(&[AZURE_IOT_HUB]).unwrap()
}

fn id(text: &str) -> DeviceId {
    DeviceId::new(text).unwrap()
}

fn text(text: &'static str) -> Option<ByteString> {
    Some(ByteString::from_static(text))
}

fn command() -> Message {
    let address = Address::parse("devices/dev1/messages/deviceBound").unwrap();
    Message::new(id("dev1"), Direction::Downlink, address, Bytes::from_static(b"on"))
}

#[test]
fn commands_are_granted_to_their_device_only() {
    let rules = rules();
    let subscribe = |device: &str, filter: &str| rules.command_subscription(&id(device), filter);
    let granted = subscribe("dev1", "devices/dev1/messages/devicebound/#").unwrap();
    assert_eq!(granted.source().as_str(), "devices/dev1/messages/devicebound");
    assert_eq!(granted.max_qos(), 1);
    for (device, filter, reason) in [
        ("dev1", "devices/dev2/messages/devicebound/#", Reason::NotPermitted),
        ("dev1", "devices/dev10/messages/devicebound/#", Reason::NotPermitted),
        ("dev1", "devices/DEV1/messages/devicebound/#", Reason::NotPermitted),
        ("dev1", "devices//messages/devicebound/#", Reason::NotPermitted),
        ("dev1", "devices/+/messages/devicebound/#", Reason::NotPermitted),
        ("+", "devices/+/messages/devicebound/#", Reason::NotPermitted),
        ("a+b", "devices/a+b/messages/devicebound/#", Reason::NotPermitted),
        ("dev1", "devices/dev1/messages/devicebound", Reason::NoSuchAddress),
        ("dev1", "devices/dev1/messages/devicebound/", Reason::NoSuchAddress),
        ("dev1", "devices/dev1/messages/devicebound/+", Reason::NoSuchAddress),
        ("dev1", "devices/dev1/messages/devicebound/+/#", Reason::NoSuchAddress),
        ("dev1", "devices/dev1/messages/+/#", Reason::NoSuchAddress),
        ("dev1", "devices/dev1/messages/events/#", Reason::NoSuchAddress),
        ("dev1", "devices/#", Reason::NoSuchAddress),
        ("dev1", "#", Reason::NoSuchAddress),
        ("dev1", "+/dev1/messages/devicebound/#", Reason::NoSuchAddress),
        ("dev1", "$share/g/devices/dev1/messages/devicebound/#", Reason::NoSuchAddress),
        ("dev1", "", Reason::NoSuchAddress),
    ] {
        assert_eq!(subscribe(device, filter).unwrap_err().reason, reason, "{device}: {filter}");
    }
}

#[test]
fn a_command_is_a_topic_with_its_bag() {
    let subscription =
        rules().command_subscription(&id("dev1"), "devices/dev1/messages/devicebound/#").unwrap();
    let plain = subscription.command(&command()).unwrap();
    assert_eq!(plain.topic, "devices/dev1/messages/devicebound/");
    assert_eq!((plain.payload, plain.properties), (Bytes::from_static(b"on"), PublishProperties::default()));

    let mut message = command();
    message.properties.message_id =
        Some(MessageId::Uuid(*b"\x01\x23\x45\x67\x89\xab\xcd\xef\x01\x23\x45\x67\x89\xab\xcd\xef"));
    message.properties.to = text("/devices/dev1/messages/deviceBound");
    message.properties.correlation_id = Some(MessageId::Ulong(7));
    message.properties.user_id = Some(Bytes::from_static(b"ops"));
    message.properties.content_type = text("application/json");
    message.properties.content_encoding = text("utf-8");
    message.properties.absolute_expiry_time = Some(Timestamp(1_795_379_735_123));
    message.ttl = Some(Duration::from_secs(5));
    message.application_properties = vec![
        (ByteString::from_static("iothub-ack"), "full".into()),
        (ByteString::from_static("a b/+#"), "é&=%".into()),
        (ByteString::from_static("empty"), "".into()),
        (ByteString::from_static("none"), Value::Null),
        (ByteString::from_static("level"), Value::Int(-3)),
        (ByteString::from_static("on"), Value::Bool(true)),
        (ByteString::from_static("at"), Value::Timestamp(Timestamp(0))),
        (ByteString::from_static("raw"), Value::Binary(Bytes::from_static(b"xyz"))),
    ];
    let command = subscription.command(&message).unwrap();
    assert_eq!(
        command.topic,
        "devices/dev1/messages/devicebound/%24.to=%2Fdevices%2Fdev1%2Fmessages%2FdeviceBound\
         &%24.mid=01234567-89ab-cdef-0123-456789abcdef&%24.cid=7&%24.uid=ops&%24.ct=application%2Fjson&%24.ce=utf-8\
         &%24.exp=2026-11-22T20%3A35%3A35.123Z&iothub-ack=full&a%20b%2F%2B%23=%C3%A9%26%3D%25&empty=&none&level=-3\
         &on=true&at=1970-01-01T00%3A00%3A00.000Z&raw=xyz"
    );
    assert_eq!(command.properties.message_expiry, Some(Duration::from_secs(5)));

    // What is written can be read: the same bag on the way up.
    let bag = command.topic.strip_prefix("devices/dev1/messages/devicebound/").unwrap();
    let back = {
        let topic = format!("devices/dev1/messages/events/{bag}");
        let (payload, properties) = (Bytes::new(), PublishProperties::default());
        let publish = Publish { topic: &topic, payload, qos: 1, retain: false, properties };
        rules().map_mqtt(&id("dev1"), publish).unwrap()
    };
    assert_eq!(back.properties.absolute_expiry_time, message.properties.absolute_expiry_time);
    assert_eq!(back.application_property("a b/+#"), Some(&"é&=%".into()));
    assert_eq!(back.application_property("none"), Some(&Value::Null));
}

#[test]
fn a_command_that_cannot_be_a_topic_is_refused() {
    let subscription =
        rules().command_subscription(&id("dev1"), "devices/dev1/messages/devicebound/#").unwrap();
    let mut large = command();
    large
        .application_properties
        .push((ByteString::from_static("x"), Value::String("/".repeat(30_000).into())));
    assert_eq!(subscription.command(&large).unwrap_err().reason, Reason::TooLarge);
    let foreign = Message { device: id("dev2"), ..command() };
    assert_eq!(subscription.command(&foreign).unwrap_err().reason, Reason::NotPermitted);
}
