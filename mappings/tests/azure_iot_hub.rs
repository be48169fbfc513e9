//! The shipped mapping file: Azure IoT Hub's own names over MQTT, CoAP and HTTP, and who may use them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use bytes::Bytes;
use fieldgate_http::{Limits, RequestHead};
use fieldgate_mappings::mqtt::{Publish, PublishProperties};
use fieldgate_mappings::{
    AZURE_IOT_HUB, Address, ByteString, DeviceId, Direction, Identity, Message, MessageId, Reason, Rejection,
    RuleSet, Timestamp, coap,
};

fn rules() -> RuleSet {
    RuleSet::load(&[AZURE_IOT_HUB]).unwrap()
}

fn id(text: &str) -> DeviceId {
    DeviceId::new(text).unwrap()
}

fn publish(topic: &str) -> Publish<'_> {
    let payload = Bytes::from_static(b"21.5");
    Publish { topic, payload, qos: 1, retain: false, properties: PublishProperties::default() }
}

fn mqtt(device: &str, topic: &str) -> Result<Message, Rejection> {
    rules().map_mqtt(&id(device), publish(topic))
}

fn coap(identity: Identity<'_>, path: &[&str], query: &[&str]) -> Result<Message, Rejection> {
    let payload = Bytes::from_static(b"21.5");
    let request =
        coap::Request { method: "POST", confirmable: true, path, query, content_format: None, payload };
    rules().map_coap(identity, request)
}

fn http(
    identity: Identity<'_>,
    method: &str,
    target: &str,
    headers: &[(&str, &[u8])],
) -> Result<Message, Rejection> {
    let mut request = ::http::Request::builder().method(method).uri(target).header("host", "h");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let parts = request.body(()).unwrap().into_parts().0;
    let head = RequestHead::judge(&parts, &Limits::default()).unwrap();
    rules().map_http(identity, &head, Bytes::from_static(b"21.5"))
}

fn reason(result: Result<Message, Rejection>) -> Reason {
    result.unwrap_err().reason
}

fn text(text: &'static str) -> Option<ByteString> {
    Some(ByteString::from_static(text))
}

fn string_id(text: &'static str) -> Option<MessageId> {
    Some(MessageId::String(ByteString::from_static(text)))
}

/// Application properties as pairs; `None` is AMQP's null.
fn application(message: &Message) -> Vec<(&str, Option<&str>)> {
    message.application_properties.iter().map(|(name, value)| (&**name, value.as_str())).collect()
}

#[test]
fn the_same_message_by_all_three_protocols() {
    let device = id("dev1");
    let path = ["devices", "dev1", "messages", "events"];
    let expected = {
        let address = Address::parse("devices/dev1/messages/events").unwrap();
        let mut message =
            Message::new(device.clone(), Direction::Uplink, address, Bytes::from_static(b"21.5"));
        message.properties.message_id = string_id("m 1");
        message.properties.content_type = text("application/json");
        message.application_properties.push((ByteString::from_static("site"), "ber&lin".into()));
        message.durable = true;
        message
    };
    let bag = "%24.mid=m%201&%24.ct=application%2Fjson&site=ber%26lin";
    assert_eq!(mqtt("dev1", &format!("devices/dev1/messages/events/{bag}")), Ok(expected.clone()));
    let query = ["$.mid=m 1", "$.ct=application/json", "site=ber&lin", "api-version=2020-03-13"];
    let headers: &[(&str, &[u8])] = &[
        ("iothub-messageid", b"m 1"),
        ("iothub-contenttype", b"application/json"),
        ("iothub-app-site", b"ber&lin"),
        ("content-type", b"application/x-www-form-urlencoded"),
    ];
    for identity in [Identity::Is(&device), Identity::Claimed] {
        assert_eq!(coap(identity, &path, &query), Ok(expected.clone()));
        let target = "/devices/dev1/messages/events?api-version=2020-03-13";
        assert_eq!(http(identity, "POST", target, headers), Ok(expected.clone()));
    }
}

#[test]
fn mqtt_topics_with_and_without_a_bag() {
    for (topic, expected) in [
        ("devices/dev1/messages/events", vec![]),
        ("devices/dev1/messages/events/", vec![]),
        ("devices/dev1/messages/events//", vec![]),
        ("devices/dev1/messages/events/a=1", vec![("a", Some("1"))]),
        ("devices/dev1/messages/events/a=1/", vec![("a", Some("1"))]),
        ("devices/dev1/messages/events/a=1&b=&c", vec![("a", Some("1")), ("b", Some("")), ("c", None)]),
        ("devices/dev1/messages/events/a=x=y&&b=2&", vec![("a", Some("x=y")), ("b", Some("2"))]),
        ("devices/dev1/messages/events/a=b/c/d", vec![("a", Some("b/c/d"))]),
        ("devices/dev1/messages/events/a+b=c+d", vec![("a+b", Some("c+d"))]),
        ("devices/dev1/messages/events/%61=%31&é=%C3%A9", vec![("a", Some("1")), ("é", Some("é"))]),
        (
            "devices/dev1/messages/events/a%2Fb=%2541&c%26d=e%3Df",
            vec![("a/b", Some("%41")), ("c&d", Some("e=f"))],
        ),
        ("devices/dev1/messages/events/iothub-ack=full", vec![("iothub-ack", Some("full"))]),
    ] {
        let message = mqtt("dev1", topic).unwrap();
        assert_eq!(application(&message), expected, "{topic}");
        assert_eq!(message.address.as_str(), "devices/dev1/messages/events");
    }
}

#[test]
fn every_system_property_of_the_bag_has_its_place() {
    let bag = "$.mid=m&$.cid=c&$.uid=u&$.to=elsewhere&$.ct=text/plain&$.ce=utf-8&$.exp=2026-11-22T20:35:35Z\
               &$.ctime=2026-11-22&$.schema=s&$.ifid=i&$.sub=t&$.on=o&$.diagid=d&$.diagctx=x&$.cdid=dev1&iothub-ack=none";
    for bag in [bag.to_owned(), bag.replace('$', "%24").replace('/', "%2f").replace(':', "%3A")] {
        let message = mqtt("dev1", &format!("devices/dev1/messages/events/{bag}")).unwrap();
        let properties = &message.properties;
        assert_eq!(properties.message_id, string_id("m"));
        assert_eq!(properties.correlation_id, string_id("c"));
        assert_eq!(properties.user_id.as_deref(), Some(&b"u"[..]));
        assert_eq!(properties.to, None);
        assert_eq!(properties.content_type, text("text/plain"));
        assert_eq!(properties.content_encoding, text("utf-8"));
        assert_eq!(properties.absolute_expiry_time, Some(Timestamp(1_795_379_735_000)));
        assert_eq!(
            application(&message),
            [
                ("iothub-creation-time-utc", Some("2026-11-22")),
                ("iothub-message-schema", Some("s")),
                ("iothub-outputname", Some("o")),
                ("iothub-ack", Some("none")),
            ]
        );
        for (name, value) in [
            ("iothub-interface-id", "i"),
            ("dt-subject", "t"),
            ("Diagnostic-Id", "d"),
            ("Correlation-Context", "x"),
        ] {
            assert_eq!(message.annotation(name), Some(&value.into()));
        }
        assert_eq!(message.annotations.len(), 4);
    }
    // A bare key says that there is none.
    assert_eq!(mqtt("dev1", "devices/dev1/messages/events/$.mid").unwrap().properties.message_id, None);
}

#[test]
fn every_header_field_of_the_convention_has_its_place() {
    let headers: &[(&str, &[u8])] = &[
        ("iothub-messageid", b"m"),
        ("iothub-correlationid", b"c"),
        ("iothub-userid", b"u"),
        ("iothub-to", b"/devices/dev2/messages/events"),
        ("iothub-contenttype", b"text/plain"),
        ("iothub-contentencoding", b"utf-8"),
        ("iothub-expiry", b"1795379735000"),
        ("iothub-creationtimeutc", b"now"),
        ("iothub-messageschema", b"s"),
        ("iothub-interface-id", b"i"),
        ("dt-subject", b"t"),
        ("iothub-ack", b"full"),
        ("IoTHub-App-Site", b"ber"),
        ("iothub-name", b"x"),
        ("x-other", b"y"),
    ];
    let message = http(Identity::Claimed, "POST", "/devices/dev1/messages/events", headers).unwrap();
    let properties = &message.properties;
    assert_eq!(properties.message_id, string_id("m"));
    assert_eq!(properties.correlation_id, string_id("c"));
    assert_eq!(properties.user_id.as_deref(), Some(&b"u"[..]));
    assert_eq!(properties.to, None);
    assert_eq!(properties.content_type, text("text/plain"));
    assert_eq!(properties.content_encoding, text("utf-8"));
    assert_eq!(properties.absolute_expiry_time, Some(Timestamp(1_795_379_735_000)));
    let mut named = application(&message);
    named.sort_unstable();
    assert_eq!(
        named,
        [
            ("iothub-ack", Some("full")),
            ("iothub-creation-time-utc", Some("now")),
            ("iothub-message-schema", Some("s")),
            ("site", Some("ber")),
        ]
    );
    assert_eq!(message.annotation("iothub-interface-id"), Some(&"i".into()));
    assert_eq!(message.annotation("dt-subject"), Some(&"t".into()));
}

#[test]
fn a_topic_of_another_device_is_refused() {
    for (device, named) in [
        ("dev1", "dev2"),
        ("dev1", "dev10"),
        ("dev10", "dev1"),
        ("dev1", "Dev1"),
        ("dev1", "DEV1"),
        ("dev1", "dev1 "),
        ("dev1", ""),
        // MQTT topics are not percent-encoded: these are other names.
        ("dev1", "dev%31"),
        ("dev1", "dev1%00"),
        ("dev1", "%64ev1"),
    ] {
        let topic = format!("devices/{named}/messages/events/a=1");
        assert_eq!(reason(mqtt(device, &topic)), Reason::NotPermitted, "{device} as {named:?}");
    }
}

#[test]
fn a_path_of_another_device_is_refused() {
    let device = id("dev1");
    for named in ["dev2", "dev10", "DEV1", "", "dev1/x", "dev%31"] {
        let path = ["devices", named, "messages", "events"];
        assert_eq!(reason(coap(Identity::Is(&device), &path, &[])), Reason::NotPermitted, "{named:?}");
    }
    for named in ["dev2", "dev10", "Dev1", "dev1%2Fx", "dev%2531", "", "dev1%20"] {
        let target = format!("/devices/{named}/messages/events");
        assert_eq!(
            reason(http(Identity::Is(&device), "POST", &target, &[])),
            Reason::NotPermitted,
            "{named:?}"
        );
    }
    // An escape that stands for the name itself is the name.
    assert!(http(Identity::Is(&device), "POST", "/devices/dev%31/messages/events", &[]).is_ok());
}

#[test]
fn a_claim_must_be_an_identity() {
    for named in ["", "a/b", "a b", "é", "a\0", "..", &"x".repeat(129)] {
        let path = ["devices", named, "messages", "events"];
        assert_eq!(reason(coap(Identity::Claimed, &path, &[])), Reason::Content, "{named:?}");
    }
    let claimed = coap(Identity::Claimed, &["devices", "a#b%", "messages", "events"], &[]).unwrap();
    assert_eq!(claimed.device, id("a#b%"));
    assert_eq!(claimed.address.as_str(), "devices/a%23b%25/messages/events");
}

#[test]
fn paths_compare_without_case_and_topics_with_it() {
    let path = ["Devices", "Dev1", "MESSAGES", "Events"];
    let message = coap(Identity::Claimed, &path, &[]).unwrap();
    assert_eq!(message.address.as_str(), "devices/Dev1/messages/events");
    assert!(http(Identity::Claimed, "POST", "/DEVICES/Dev1/messages/EVENTS", &[]).is_ok());
    assert_eq!(reason(mqtt("Dev1", "Devices/Dev1/messages/events")), Reason::NoSuchAddress);
}

#[test]
fn what_no_rule_maps_has_no_address() {
    for topic in [
        "devices/dev1/messages",
        "devices/dev1/messages/eventsx",
        "devices/dev1//messages/events",
        "/devices/dev1/messages/events",
        "devices/dev1/messages/devicebound/a=1",
        "devices",
        "",
        "$iothub/twin/GET/?$rid=1",
        "$SYS/x",
    ] {
        assert_eq!(reason(mqtt("dev1", topic)), Reason::NoSuchAddress, "{topic:?}");
    }
    for path in [
        &["devices", "dev1", "messages"][..],
        &["devices", "dev1", "messages", "events", ""],
        &[],
        &["devices/dev1/messages/events"],
    ] {
        assert_eq!(reason(coap(Identity::Claimed, path, &[])), Reason::NoSuchAddress, "{path:?}");
    }
    for (method, target) in [
        ("GET", "/devices/dev1/messages/events"),
        ("PUT", "/devices/dev1/messages/events"),
        ("POST", "/devices/dev1/messages/events/"),
        ("POST", "/devices%2Fdev1/messages/events"),
        ("POST", "/"),
    ] {
        assert_eq!(
            reason(http(Identity::Claimed, method, target, &[])),
            Reason::NoSuchAddress,
            "{method} {target}"
        );
    }
}

#[test]
fn hostile_bags_are_refused() {
    let many = (0..101).map(|number| format!("k{number}=v")).collect::<Vec<_>>().join("&");
    for (bag, expected) in [
        ("%", Reason::Content),
        ("a=%4", Reason::Content),
        ("a=%zz", Reason::Content),
        ("a=%C3", Reason::Content),
        ("a=%C3&b=%A9", Reason::Content),
        ("a%C3=%A9", Reason::Content),
        ("=value", Reason::Content),
        ("%00=x", Reason::Content),
        ("a%0Ab=x", Reason::Content),
        ("a=1&a=2", Reason::Content),
        ("a=1&%61", Reason::Content),
        ("$.mid=1&%24.mid=2", Reason::Content),
        ("$.sub=1&$.sub=2", Reason::Content),
        ("$.on=1&$.on=2", Reason::Content),
        ("$.unknown=1", Reason::Content),
        ("$.=1", Reason::Content),
        ("$.exp=tomorrow", Reason::Content),
        ("$.ct=%C3%A9", Reason::Content),
        ("$.ce=a%00", Reason::Content),
        ("iothub-connection-device-id=dev2", Reason::Content),
        ("IoTHub-MessageType=Will", Reason::Content),
        ("foo/bar", Reason::Content),
        ("foo/bar=1", Reason::Content),
        ("$.cdid=dev2", Reason::NotPermitted),
        ("$.cdid=Dev1", Reason::NotPermitted),
        ("$.cmid=module", Reason::NotPermitted),
        (&many, Reason::Content),
    ] {
        let topic = format!("devices/dev1/messages/events/{bag}");
        assert_eq!(reason(mqtt("dev1", &topic)), expected, "{bag}");
    }
}

#[test]
fn an_endless_bag_is_refused_at_the_bound() {
    for item in ["a&", "&", "%26&", "x=y&", "$.to&", "="] {
        let bag = item.repeat(65_000 / item.len());
        let result = mqtt("dev1", &format!("devices/dev1/messages/events/{bag}"));
        assert_eq!(reason(result), Reason::Content, "{item}");
    }
    let fits = (0..100).map(|number| format!("k{number}=v")).collect::<Vec<_>>().join("&");
    let message = mqtt("dev1", &format!("devices/dev1/messages/events/{fits}&$.ct=x&&")).unwrap();
    assert_eq!(message.application_properties.len(), 100);
}

/// Xorshift: the same sequence in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % bound
    }

    fn text(&mut self, words: &[&str]) -> String {
        let length = self.below(12);
        (0..length).map(|_| words[self.below(words.len())]).collect()
    }
}

#[test]
fn no_topic_makes_a_message_of_another_device_or_one_that_the_hub_would_misread() {
    const WORDS: &[&str] = &[
        "devices",
        "Devices",
        "dev1",
        "dev2",
        "dev10",
        "messages",
        "events",
        "/",
        "/",
        "/",
        "%",
        "%2F",
        "%64",
        "%C3",
        "%A9",
        "é",
        "&",
        "=",
        "$.",
        "$.mid",
        "%24.ct",
        "$.cdid",
        "$.exp",
        "iothub-",
        "iothub-ack",
        "+",
        "#",
        "..",
        "\0",
        " ",
    ];
    let rules = rules();
    let device = id("dev1");
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut mapped = 0;
    for round in 0..60_000 {
        let prefix = if round % 3 == 0 { "" } else { "devices/dev1/messages/events/" };
        let topic = format!("{prefix}{}", random.text(WORDS));
        let Ok(message) = rules.map_mqtt(&device, publish(&topic)) else { continue };
        mapped += 1;
        assert_eq!(
            (message.device, message.address.as_str()),
            (device.clone(), "devices/dev1/messages/events"),
            "{topic}"
        );
        let mut names: Vec<&str> = message.application_properties.iter().map(|(name, _)| &**name).collect();
        assert!(names.iter().all(|name| *name == "iothub-ack" || !name.starts_with("iothub-")), "{topic}");
        names.sort_unstable();
        let distinct = names.len();
        names.dedup();
        assert_eq!(names.len(), distinct, "{topic}");
    }
    assert!(mapped > 1000, "the words should often make a message: {mapped}");
}

#[test]
fn no_path_makes_a_message_of_another_device() {
    const WORDS: &[&str] = &[
        "devices", "DEVICES", "dev1", "dev2", "messages", "events", "/", "/", "/", "%2F", "%2f", "%64",
        "%2e", "..", "%", "%00", "%FF", ";", "?", "#", "//",
    ];
    let rules = rules();
    let device = id("dev1");
    let mut random = Random(7);
    let mut mapped = 0;
    for round in 0..60_000 {
        let noise = random.text(WORDS);
        let target = match round % 3 {
            0 => format!("/{noise}"),
            1 => format!("/devices/dev1/messages/events?{noise}"),
            _ => format!("/devices/{}dev1/messages/events", noise.trim_start_matches('/')),
        };
        let Ok(request) = ::http::Request::post(target.as_str()).header("host", "h").body(()) else {
            continue;
        };
        let parts = request.into_parts().0;
        let Ok(head) = RequestHead::judge(&parts, &Limits::default()) else { continue };
        if let Ok(message) = rules.map_http(Identity::Is(&device), &head, Bytes::new()) {
            mapped += 1;
            assert_eq!(message.address.as_str(), "devices/dev1/messages/events", "{target}");
        }
        if let Ok(message) = rules.map_http(Identity::Claimed, &head, Bytes::new()) {
            assert_eq!(message.address.device(), Some(message.device), "{target}");
        }
    }
    assert!(mapped > 1000, "the words should often make a message: {mapped}");
}

#[test]
fn hostile_queries_and_headers_are_refused() {
    let path = ["devices", "dev1", "messages", "events"];
    for query in [&["$.nope=1"][..], &["=x"], &["a=1", "a=2"], &["iothub-x=1"], &["$.exp=x"], &["a\0=1"]] {
        assert_eq!(reason(coap(Identity::Claimed, &path, query)), Reason::Content, "{query:?}");
    }
    assert_eq!(reason(coap(Identity::Claimed, &path, &["$.cdid=dev2"])), Reason::NotPermitted);
    let message = coap(Identity::Claimed, &path, &["", "bare", "a=b=c", "x=%31"]).unwrap();
    assert_eq!(application(&message), [("bare", None), ("a", Some("b=c")), ("x", Some("%31"))]);

    for headers in [
        &[("iothub-app-", &b"x"[..])][..],
        &[("iothub-app-a", b"1"), ("IOTHUB-APP-A", b"2")],
        &[("iothub-app-a", b"\xff")],
        &[("iothub-app-iothub-x", b"1")],
        &[("iothub-messageid", b"1"), ("iothub-messageid", b"2")],
        &[("iothub-expiry", b"soon")],
        &[("content-type", b"application/vnd.microsoft.iothub.json; charset=utf-8")],
        &[("content-type", b"\xff")],
    ] {
        let result = http(Identity::Claimed, "POST", "/devices/dev1/messages/events", headers);
        assert_eq!(reason(result), Reason::Content, "{headers:?}");
    }
}

#[test]
fn the_flags_of_the_wire_reach_the_model() {
    let retained = Publish { retain: true, qos: 0, ..publish("devices/dev1/messages/events/a=1") };
    let message = rules().map_mqtt(&id("dev1"), retained).unwrap();
    assert_eq!(application(&message), [("a", Some("1")), ("mqtt-retain", Some("true"))]);
    assert!(!message.durable);

    let payload = Bytes::new();
    let path = ["devices", "dev1", "messages", "events"];
    for (content_format, expected) in
        [(None, None), (Some(50), text("application/json")), (Some(65_000), None)]
    {
        let payload = payload.clone();
        let request = coap::Request {
            method: "POST",
            confirmable: false,
            path: &path,
            query: &[],
            content_format,
            payload,
        };
        let message = rules().map_coap(Identity::Claimed, request).unwrap();
        assert_eq!((message.properties.content_type, message.durable), (expected, false));
    }
}

#[test]
fn a_will_says_that_it_is_one() {
    let will = || publish("devices/dev1/messages/events/a=1");
    let message = rules().map_mqtt_will(&id("dev1"), will()).unwrap();
    assert_eq!(application(&message), [("a", Some("1")), ("iothub-MessageType", Some("Will"))]);
    assert_eq!(message.body, will().payload);
    let foreign = rules().map_mqtt_will(&id("dev2"), will());
    assert_eq!(reason(foreign), Reason::NotPermitted);
}

#[test]
fn mqtt_5_adds_what_the_topic_does_not_say() {
    let properties = PublishProperties {
        payload_is_text: true,
        content_type: text("text/plain"),
        response_topic: text("answers/here"),
        correlation_data: Some(Bytes::from_static(b"\x00\xff")),
        message_expiry: Some(Duration::from_secs(60)),
        user_properties: vec![(ByteString::from_static("site"), ByteString::from_static("ber"))],
    };
    let map =
        |topic| rules().map_mqtt(&id("dev1"), Publish { properties: properties.clone(), ..publish(topic) });
    let message = map("devices/dev1/messages/events").unwrap();
    assert_eq!(message.properties.content_type, text("text/plain"));
    assert_eq!(message.properties.reply_to, text("answers/here"));
    assert_eq!(message.properties.correlation_id, Some(MessageId::Binary(Bytes::from_static(b"\x00\xff"))));
    assert_eq!(message.ttl, Some(Duration::from_secs(60)));
    assert_eq!(application(&message), [("mqtt-payload-format", Some("utf-8")), ("site", Some("ber"))]);

    let message = map("devices/dev1/messages/events/$.ct=a&$.cid=b").unwrap();
    assert_eq!(message.properties.content_type, text("a"));
    assert_eq!(message.properties.correlation_id, string_id("b"));
    assert_eq!(reason(map("devices/dev1/messages/events/site=x")), Reason::Content);
}
