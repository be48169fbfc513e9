//! The mapping language: what rules make of messages, and what the loader refuses.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use fieldgate_http::{Limits, RequestHead};
use fieldgate_mappings::mqtt::{Publish, PublishProperties};
use fieldgate_mappings::{
    AZURE_IOT_HUB, ActsFor, ByteString, DeviceId, Direction, Identity, Message, MessageId, Reason, Rejection,
    RuleSet, Source, Value, coap,
};

const HEAD: &str = "version = 1\n";

fn load(text: &str) -> RuleSet {
    let text = format!("{HEAD}{text}");
    RuleSet::load(&[Source { name: "m.toml", text: &text }]).unwrap_or_else(|error| panic!("{error}"))
}

fn errors(text: &str) -> Vec<String> {
    let text = format!("{HEAD}{text}");
    let error = RuleSet::load(&[Source { name: "m.toml", text: &text }]).expect_err("the file is faulty");
    // One line for each fault.
    let lines: Vec<String> = error.to_string().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), error.faults.len());
    lines
}

/// A rule for uplink over MQTT.
fn rule(name: &str, mqtt: &str) -> String {
    format!(
        "[[rule]]\nname = \"{name}\"\ndirection = \"uplink\"\nfrom.mqtt = \"{mqtt}\"\n\
         to.address = \"devices/{{device}}/messages/events\"\nproperties.rule = \"{name}\"\n"
    )
}

fn id(text: &str) -> DeviceId {
    DeviceId::new(text).unwrap()
}

fn publish(rules: &RuleSet, device: &str, topic: &str) -> Result<Message, Rejection> {
    let payload = Bytes::from_static(b"x");
    let publish = Publish { topic, payload, qos: 1, retain: false, properties: PublishProperties::default() };
    rules.map_mqtt(&id(device), publish)
}

/// Gateways `gw…` are of the group `line`, which may act for devices `p…`.
#[derive(Debug)]
struct Line;

impl ActsFor for Line {
    fn may_act(&self, gateway: &DeviceId, group: &str, device: &DeviceId) -> bool {
        group == "line" && gateway.as_str().starts_with("gw") && device.as_str().starts_with('p')
    }
}

#[test]
fn a_gateway_may_act_for_devices_of_its_group_where_the_rule_says_so() {
    let own = rule("own", "own/{device}");
    assert!(!load(&own).has_via());
    let rules =
        load(&(own + &rule("via", "line/{device}") + "device = { id = \"{device}\", via = \"line\" }\n"));
    assert!(rules.has_via());
    let publish = |sender: &str, topic: &str| {
        let payload = Bytes::from_static(b"x");
        let publish =
            Publish { topic, payload, qos: 1, retain: false, properties: PublishProperties::default() };
        rules
            .map_mqtt(Identity::MayActFor(&id(sender), &Line), publish)
            .map(|message| message.device.to_string())
    };
    assert_eq!(publish("gw1", "line/p1").unwrap(), "p1");
    assert_eq!(publish("gw1", "line/gw1").unwrap(), "gw1");
    assert_eq!(publish("p1", "line/p1").unwrap(), "p1");
    for (sender, topic) in
        [("gw1", "own/p1"), ("gw1", "line/x1"), ("p1", "line/p2"), ("gw1", "line/p/1"), ("gw1", "line/")]
    {
        let refused = publish(sender, topic).unwrap_err().reason;
        assert!(matches!(refused, Reason::NotPermitted | Reason::NoSuchAddress), "{sender} {topic}");
    }
    for (line, message) in [
        ("device.id = \"{other}\"", "m.toml:9:13: the device is the one that the pattern names: `{device}`"),
        ("device.via = \" \"", "m.toml:9:14: `via` is the name of a group"),
        ("device.group = \"x\"", "m.toml:9:8: "),
    ] {
        let errors = errors(&format!("{}\n{line}\n", rule("a", "a/{device}")));
        assert!(errors[0].starts_with(message), "{errors:?}");
    }
    let nameless =
        rule("a", "a/b").replace("devices/{device}/messages/events", "queue") + "device.via = \"line\"\n";
    assert!(errors(&nameless)[0].contains("`{device}` is missing"), "{:?}", errors(&nameless));
}

#[test]
fn a_gateway_takes_the_commands_of_devices_of_its_group_where_the_rule_says_so() {
    let down = |name: &str, topic: &str, more: &str| {
        format!(
            "[[rule]]\nname = \"{name}\"\ndirection = \"downlink\"\nfrom.hub = \"devices/{{device}}/c\"\n\
             to.mqtt = {{ topic = \"{topic}\" }}\n{more}"
        )
    };
    let rules =
        load(&(down("own", "own/{device}", "") + &down("line", "line/{device}", "device.via = \"line\"\n")));
    assert!(rules.has_via());
    let subscribe =
        |who: &str, filter: &str| rules.command_subscription(Identity::MayActFor(&id(who), &Line), filter);
    let granted = subscribe("gw1", "line/p1").unwrap();
    assert_eq!((granted.device().as_str(), granted.source().as_str()), ("p1", "devices/p1/c"));
    assert!(granted.is_for_another() && granted.is_allowed(&Line) && !granted.is_allowed(&Nobody));
    for (who, filter) in [("gw1", "line/gw1"), ("p1", "line/p1"), ("p1", "own/p1")] {
        let own = subscribe(who, filter).unwrap();
        assert!(own.device().as_str() == who && !own.is_for_another() && own.is_allowed(&Nobody), "{filter}");
    }
    for (who, filter) in
        [("gw1", "own/p1"), ("gw1", "line/x1"), ("p1", "line/gw1"), ("gw1", "line/+"), ("gw1", "line/#")]
    {
        assert!(subscribe(who, filter).is_err(), "{who} {filter}");
    }
    let nameless = down("a", "a/b", "device.via = \"line\"\n");
    assert!(errors(&nameless)[0].contains("`{device}` is missing"), "{:?}", errors(&nameless));
}

#[derive(Debug)]
struct Nobody;

impl ActsFor for Nobody {
    fn may_act(&self, _: &DeviceId, _: &str, _: &DeviceId) -> bool {
        false
    }
}

fn property<'m>(message: &'m Message, name: &str) -> &'m str {
    message.application_property(name).and_then(Value::as_str).unwrap()
}

const LINE: &str = r#"
[[rule]]
name = "line"
direction = "uplink"

[rule.from]
mqtt = "plant/{site}/{line}/{device}/telemetry"
coap = "POST /t/{site}/{line}/{device}"
http = "PUT /v1/{site}/{line}/{device}/telemetry"

[rule.to]
address = "devices/{device}/messages/events"

[rule.properties]
site = "{site}"
place = "{site}/{line} of {device} {{fixed}}"
kind = "telemetry"
level = 3
ratio = 0.5
live = true
empty = ""
"#;

#[test]
fn one_rule_means_the_same_in_every_protocol() {
    let rules = load(LINE);
    let device = id("d7");
    let by_mqtt = publish(&rules, "d7", "plant/ber/l1/d7/telemetry").unwrap();
    assert_eq!(by_mqtt.direction, Direction::Uplink);
    assert_eq!(by_mqtt.address.as_str(), "devices/d7/messages/events");
    let expected: Vec<(&str, Value)> = vec![
        ("empty", "".into()),
        ("kind", "telemetry".into()),
        ("level", Value::Long(3)),
        ("live", Value::Bool(true)),
        ("place", "ber/l1 of d7 {fixed}".into()),
        ("ratio", Value::Double(0.5)),
        ("site", "ber".into()),
    ];
    let found: Vec<_> =
        by_mqtt.application_properties.iter().map(|(name, value)| (&**name, value.clone())).collect();
    assert_eq!(found, expected);

    for identity in [Identity::Is(&device), Identity::Claimed] {
        let path = ["t", "ber", "l1", "d7"];
        let payload = Bytes::from_static(b"x");
        let request = coap::Request {
            method: "POST",
            confirmable: true,
            path: &path,
            query: &[],
            content_format: None,
            payload,
        };
        assert_eq!(rules.map_coap(identity, request).as_ref(), Ok(&by_mqtt));
        let request = http::Request::put("/v1/ber/l1/d7/telemetry").header("host", "h").body(()).unwrap();
        let (parts, ()) = request.into_parts();
        let head = RequestHead::judge(&parts, &Limits::default()).unwrap();
        assert_eq!(rules.map_http(identity, &head, Bytes::from_static(b"x")).as_ref(), Ok(&by_mqtt));
    }
}

#[test]
fn without_a_convention_headers_say_what_the_body_is() {
    let rules = load(LINE);
    let map = |name: &str, value: &[u8]| {
        let request = http::Request::put("/v1/ber/l1/d7/telemetry").header("host", "h").header(name, value);
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let head = RequestHead::judge(&parts, &Limits::default()).unwrap();
        rules.map_http(Identity::Claimed, &head, Bytes::new())
    };
    assert_eq!(
        map("content-type", b"text/plain").unwrap().properties.content_type.as_deref(),
        Some("text/plain")
    );
    assert_eq!(
        map("content-encoding", b"gzip").unwrap().properties.content_encoding.as_deref(),
        Some("gzip")
    );
    assert_eq!(map("content-type", b"\xff").unwrap_err().reason, Reason::Content);
    // Azure's header fields have no meaning here.
    assert!(map("iothub-app-x", b"y").unwrap().application_property("x").is_none());
}

#[test]
fn the_order_of_files_and_rules_decides_nothing() {
    let texts: Vec<String> = ["a/{x}/c", "a/b/{x}", "a/{*r}", "{y}/b/c"]
        .iter()
        .map(|pattern| format!("{HEAD}{}", rule(pattern, pattern).replace("{rule}", "")))
        .map(|text| text.replace("properties.rule = \"", "properties.rule = \"is "))
        .map(|text| text.replacen("is a/{x}/c", "1", 1).replacen("is a/b/{x}", "2", 1))
        .map(|text| text.replacen("is a/{*r}", "3", 1).replacen("is {y}/b/c", "4", 1))
        .collect();
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]] {
        let names = ["0", "1", "2", "3"];
        let sources = order.map(|at: usize| Source { name: names[at], text: &texts[at] });
        let rules = RuleSet::load(&sources).unwrap();
        for (topic, winner) in [("a/z/c", "1"), ("a/b/c", "2"), ("a/z/z", "3"), ("a", "3"), ("z/b/c", "4")] {
            assert_eq!(property(&publish(&rules, "d", topic).unwrap(), "rule"), winner, "{topic}");
        }
    }
}

#[test]
fn ambiguity_is_an_error_that_names_both_places() {
    let text = format!("{}{}", rule("one", "a/{x}/c"), rule("two", "a/{y}/c"));
    let found = errors(&text);
    assert_eq!(found.len(), 1);
    assert_eq!(
        found[0],
        "m.toml:11:13: rule `two` matches the same as the rule at m.toml:5:13, with equal right"
    );

    let (first, second) =
        (format!("{HEAD}{}", rule("one", "a/#")), format!("{HEAD}{}", rule("two", "a/{*rest}")));
    let sources =
        [Source { name: "first.toml", text: &first }, Source { name: "second.toml", text: &second }];
    let found = RuleSet::load(&sources).unwrap_err().faults;
    assert_eq!(found[0].place.to_string(), "second.toml:5:13");
    assert!(found[0].message.contains("first.toml:5:13"), "{}", found[0]);

    // The convention's words compare without case, so any spelling of them is the same path.
    let text = format!(
        "{HEAD}[[rule]]\nname = \"mine\"\ndirection = \"uplink\"\nfrom.http = \"POST /Devices/{{device}}/messages/EVENTS\"\n\
         to.address = \"devices/{{device}}/messages/events\"\n"
    );
    let found =
        RuleSet::load(&[AZURE_IOT_HUB, Source { name: "mine.toml", text: &text }]).unwrap_err().faults;
    assert!(
        found[0].to_string().starts_with("mine.toml:5:13: rule `mine` matches the same as"),
        "{}",
        found[0]
    );
    assert!(found[0].message.contains("azure-iot-hub.toml:"), "{}", found[0]);

    let command = "[[rule]]\nname = \"c\"\ndirection = \"downlink\"\nfrom.hub = \"devices/{device}/x\"\n\
                   to.mqtt = { topic = \"c/{device}\" }\n";
    assert!(errors(&format!("{command}{command}"))[0].contains("m.toml:11:21: rule `c` matches the same as"));
}

#[test]
fn every_fault_is_found_at_its_place() {
    let text = format!("{}{}{}", rule("one", "a/{x"), rule("good", "b"), rule("two", "c/{*x}/d"));
    let found = errors(&text);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("m.toml:5:16: a name in braces must be a whole segment"), "{}", found[0]);
    assert!(found[1].starts_with("m.toml:17:21: nothing may follow the rest"), "{}", found[1]);
}

/// Loads one rule of these lines, which must be refused.
fn refused(direction: &str, lines: &str, place: &str, part: &str) {
    let text = format!("[[rule]]\nname = \"r\"\ndirection = \"{direction}\"\n{lines}");
    let found = errors(&text);
    assert_eq!(found.len(), 1, "{lines}: {found:?}");
    assert!(found[0].starts_with(&format!("m.toml:{place}: ")), "{lines}: {}", found[0]);
    assert!(found[0].contains(part), "{lines}: {}", found[0]);
}

#[test]
fn faulty_uplink_rules_say_what_would_be_right() {
    let to = "to.address = \"devices/{device}/x\"";
    for (lines, place, part) in [
        ("", "3:8", "no pattern to match: write `from.mqtt`, `from.coap`, `from.http`"),
        ("from.mqtt = \"a\"", "3:8", "no `to.address`"),
        (&format!("from.mqqt = \"a\"\n{to}"), "5:6", "did you mean `mqtt`?"),
        (
            &format!("from.amqp = \"a\"\n{to}"),
            "5:6",
            "unknown key `amqp`; known here: `mqtt`, `coap`, `http`",
        ),
        (&format!("from.hub = \"a\"\n{to}"), "5:6", "a downlink rule has it"),
        ("from.mqtt = \"a\"\nto.adress = \"x\"", "6:4", "did you mean `address`?"),
        ("from.mqtt = \"a\"\nto.mqtt = { topic = \"x\" }", "6:4", "an uplink rule has `to.address`"),
        ("from.mqtt = \"a\"\nto.address = { topic = \"x\" }", "6:14", "`to.address` is a string"),
        (&format!("convention = \"azure\"\nfrom.mqtt = \"a\"\n{to}"), "5:14", "unknown convention `azure`"),
        (
            &format!("convention = \"azure-iothub\"\nfrom.mqtt = \"a\"\n{to}"),
            "5:14",
            "did you mean `azure-iot-hub`?",
        ),
        (&format!("from.http = \"/a\"\n{to}"), "5:13", "a method must stand before the path: `POST /a`"),
        (&format!("from.http = \"PSOT /a\"\n{to}"), "5:14", "did you mean `POST`?"),
        (&format!("from.http = \"GET /a\"\n{to}"), "5:14", "unknown method `GET`; known here: `POST`, `PUT`"),
        (&format!("from.http = \"POST\"\n{to}"), "5:13", "a path must follow the method"),
        (&format!("from.http = \"POST a\"\n{to}"), "5:19", "begin with `/`"),
        (&format!("from.coap = \"POST /a//b\"\n{to}"), "5:22", "empty segment"),
        (&format!("from.coap = \"POST /../b\"\n{to}"), "5:20", "can never match"),
        (&format!("from.mqtt = \"a/{{s:[a-z]}}\"\n{to}"), "5:16", "constraints are not known"),
        (
            &format!("from = {{ mqtt = \"a/{{x}}\", http = \"POST /a/{{y}}\" }}\n{to}"),
            "5:33",
            "every pattern of a rule binds the same names",
        ),
        (
            &format!("convention = \"azure-iot-hub\"\nfrom.http = \"POST /a/{{*bag}}\"\n{to}"),
            "6:13",
            "leave `{*bag}` out",
        ),
        ("from.mqtt = \"a\"\nto.address = \"{device}/x\"", "6:14", "begins with a fixed segment"),
        ("from.mqtt = \"a/{x}\"\nto.address = \"devices/{x}/y\"", "6:14", "the device's own node only"),
        ("from.mqtt = \"a\"\nto.address = \"Devices/other/y\"", "6:14", "the device's own node only"),
        ("from.mqtt = \"a\"\nto.address = \"devices\"", "6:14", "the device's own node only"),
        ("from.mqtt = \"a/{site}\"\nto.address = \"x/{sight}\"", "6:15", "unknown name `sight`"),
        ("from.mqtt = \"a/{sites}\"\nto.address = \"x/{site}\"", "6:15", "did you mean `sites`?"),
        ("from.mqtt = \"a/{*x}\"\nto.address = \"x/{x}\"", "6:14", "stands for `{*name}`"),
        ("from.mqtt = \"a/{x}\"\nto.address = \"x/{*x}\"", "6:14", "stands for `{*name}`"),
        ("from.mqtt = \"a/{x}\"\nto.address = \"x/{*device}\"", "6:14", "the device is one segment"),
        ("from.mqtt = \"a\"\nto.address = \"/x\"", "6:15", "an empty segment"),
        ("from.mqtt = \"a\"\nto.address = \"x/..\"", "6:14", "relative segment"),
        (&format!("from.mqtt = \"a\"\n{to}\nproperties.x = \"{{y\""), "7:17", "an open brace"),
        (&format!("from.mqtt = \"a\"\n{to}\nproperties.x = \"{{y}}\""), "7:17", "unknown name `y`"),
        (&format!("from.mqtt = \"a\"\n{to}\nproperties.\"\" = 1"), "7:12", "a property needs a name"),
        (&format!("from.mqtt = \"a\"\n{to}\nsystem.user-id = \"x\""), "7:8", "a rule never sets `user-id`"),
        (&format!("from.mqtt = \"a\"\n{to}\nsystem.subjct = \"x\""), "7:8", "did you mean `subject`?"),
        (&format!("from.mqtt = \"a\"\n{to}\nsystem.subject = \"{{x}}\""), "7:19", "unknown name `x`"),
        (
            &format!("from.mqtt = \"a\"\n{to}\nsystem.content-type = \"auto\""),
            "7:23",
            "`auto` is not in this version",
        ),
        (&format!("from.mqtt = \"a\"\n{to}\nsystem.content-type = \"é\""), "7:23", "printable ASCII"),
        (&format!("from.mqtt = \"a\"\n{to}\nsystem.ttl = \"10\""), "7:14", "a duration with its unit"),
        (
            &format!("from.mqtt = \"a/{{x}}\"\n{to}\nproperties.IoTHub-x = \"{{x}}\""),
            "7:12",
            "a rule never sets `iothub-*` from what a device says",
        ),
    ] {
        refused("uplink", lines, place, part);
    }
    refused("uplnk", "", "4:13", "unknown direction `uplnk`: did you mean `uplink`?");
}

#[test]
fn faulty_downlink_rules_say_what_would_be_right() {
    let hub = "from.hub = \"devices/{device}/x\"";
    for (lines, place, part) in [
        ("to.mqtt = { topic = \"a/{device}\" }", "3:8", "no `from.hub`"),
        (hub, "3:8", "no `to`"),
        (&format!("{hub}\nfrom.mqtt = \"a\""), "6:6", "commands come `from.hub`"),
        (&format!("{hub}\nfrom.hup = \"a\""), "6:6", "did you mean `hub`?"),
        (&format!("{hub}\nto.address = \"a\""), "6:4", "unknown key `address`; known here: `mqtt`"),
        (&format!("{hub}\nto.mqtt = \"a\""), "6:11", "a table such as { topic"),
        (
            &format!("{hub}\nto.coap = {{ topic = \"a\" }}"),
            "6:4",
            "commands over `coap` are not in this version",
        ),
        (
            &format!("{hub}\nto.coap = {{ observe = \"/c\" }}"),
            "6:13",
            "the key `observe` is not in this version",
        ),
        ("from.hub = \"queue/x\"\nto.mqtt = { topic = \"a\" }", "6:21", "must name it"),
        (&format!("{hub}\nto.mqtt = {{ topic = \"a/{{subject}}/b\" }}"), "6:21", "nothing else may follow"),
        (&format!("{hub}\nto.mqtt = {{ topic = \"a/{{sibject}}\" }}"), "6:21", "`{subject}`"),
        (
            &format!("{hub}\nto.mqtt = {{ topic = \"a\" }}\nsystem.subject = \"x\""),
            "7:8",
            "on the way to the hub only",
        ),
        (&format!("{hub}\nto.mqtt = {{ topic = \"+/{{device}}\" }}"), "6:21", "a wildcard cannot be sent to"),
        (&format!("{hub}\nto.mqtt = {{ topic = \"{{device}}/#\" }}"), "6:21", "a wildcard cannot be sent to"),
        (
            &format!("{hub}\nto.mqtt = {{ topic = \"{{device}}/{{*bag}}\" }}"),
            "6:21",
            "only with a convention",
        ),
        (&format!("{hub}\nto.mqtt = {{ topic = \"{{device}}/{{x}}\" }}"), "6:21", "`x` is not bound"),
        (&format!("{hub}\nto.mqtt = {{ topic = \"{{device}}\", qos = 2 }}"), "6:39", "QoS 0 or 1"),
        (&format!("{hub}\nproperties.x = 1"), "6:12", "on the way to the hub only"),
        (
            &format!("{hub}\nconvention = \"azure-iot-hub\"\nto.mqtt = {{ topic = \"{{device}}/{{*b}}\" }}"),
            "7:21",
            "the convention's properties: `{*bag}`",
        ),
        (
            "from.hub = \"devices/{device}/{q}\"\nto.mqtt = { topic = \"{device}\" }",
            "5:13",
            "unknown name `q`; known here: `device`",
        ),
    ] {
        refused("downlink", lines, place, part);
    }
}

#[test]
fn a_rule_that_runs_both_ways_must_give_every_name_back() {
    let address = "to.address = \"queues/{queue}/{device}\"";
    for (lines, place, part) in [
        (
            &*format!("from.mqtt = \"q/{{x}}/{{queue}}/{{device}}\"\n{address}"),
            "5:13",
            "does not give `x` back",
        ),
        (
            &format!("from.mqtt = \"q/+/{{queue}}/{{device}}\"\n{address}"),
            "5:13",
            "does not give a nameless wildcard back",
        ),
        (
            &format!("from.mqtt = \"q/{{queue}}/{{device}}/#\"\n{address}"),
            "5:13",
            "does not give the rest of the path back",
        ),
        ("from.mqtt = \"q/{queue}\"\nto.address = \"queues/{queue}\"", "5:13", "must name it"),
        (&format!("from.coap = \"POST /q/{{queue}}/{{device}}\"\n{address}"), "5:6", "commands over `coap`"),
        (
            &format!("convention = \"azure-iot-hub\"\nfrom.mqtt = \"q/{{queue}}/{{device}}\"\n{address}"),
            "5:14",
            "write an uplink and a downlink rule",
        ),
    ] {
        refused("both", lines, place, part);
    }

    let rules = load(&format!(
        "[[rule]]\nname = \"b\"\ndirection = \"both\"\nfrom.mqtt = \"q/{{queue}}/{{device}}\"\n{address}\n"
    ));
    let up = publish(&rules, "d1", "q/blue/d1").unwrap();
    let down = rules.command_subscription(&id("d1"), "q/blue/d1").unwrap();
    assert_eq!(up.address.as_str(), "queues/blue/d1");
    assert_eq!(down.source(), &up.address);
    let message = Message { direction: Direction::Downlink, ..up };
    assert_eq!(down.command(&message).unwrap().topic, "q/blue/d1");
    for filter in ["q/+/d1", "q/#", "q/blue/d2", "q/bl%75e/d2", "q/a b/d1", "q//d1"] {
        assert!(rules.command_subscription(&id("d1"), filter).is_err(), "{filter}");
    }
}

#[test]
fn without_a_convention_commands_carry_their_properties_beside_the_topic() {
    let rules = load(
        "[[rule]]\nname = \"c\"\ndirection = \"downlink\"\nfrom.hub = \"devices/{device}/messages/deviceBound\"\n\
         to.mqtt = { topic = \"cmd/{device}\", qos = 0 }\n",
    );
    let subscription = rules.command_subscription(&id("d1"), "cmd/d1").unwrap();
    assert_eq!(subscription.max_qos(), 0);
    assert_eq!(subscription.source().as_str(), "devices/d1/messages/devicebound");
    let mut message =
        Message::new(id("d1"), Direction::Downlink, subscription.source().clone(), Bytes::from_static(b"on"));
    message.properties.content_type = Some(ByteString::from_static("text/plain"));
    message.properties.reply_to = Some(ByteString::from_static("r"));
    message.properties.correlation_id = Some(MessageId::String(ByteString::from_static("c")));
    message.application_properties = vec![
        (ByteString::from_static("s"), "text".into()),
        (ByteString::from_static("f"), Value::Double(1.5)),
        (ByteString::from_static("u"), Value::Uuid([0xab; 16])),
    ];
    let command = subscription.command(&message).unwrap();
    let text = ByteString::from_static;
    assert_eq!(command.topic, "cmd/d1");
    assert_eq!(
        command.properties,
        PublishProperties {
            payload_is_text: false,
            content_type: Some(text("text/plain")),
            response_topic: Some(text("r")),
            correlation_data: Some(Bytes::from_static(b"c")),
            message_expiry: None,
            user_properties: vec![
                (text("s"), text("text")),
                (text("f"), text("1.5")),
                (text("u"), text("abababab-abab-abab-abab-abababababab")),
            ],
        }
    );
}

#[test]
fn a_device_that_the_path_does_not_name_is_the_authenticated_one() {
    let rules = load(
        "[[rule]]\nname = \"t\"\ndirection = \"uplink\"\nfrom = { mqtt = \"telemetry/{s}\", coap = \"POST /t/{s}\" }\n\
         to.address = \"devices/{device}/messages/events\"\nproperties.s = \"{s}\"\n",
    );
    let message = publish(&rules, "d1", "telemetry/x y").unwrap();
    assert_eq!((message.address.as_str(), property(&message, "s")), ("devices/d1/messages/events", "x y"));
    let payload = Bytes::new();
    let path = ["t", "1"];
    let request = coap::Request {
        method: "POST",
        confirmable: false,
        path: &path,
        query: &[],
        content_format: None,
        payload,
    };
    assert_eq!(rules.map_coap(Identity::Claimed, request).unwrap_err().reason, Reason::Credentials);
}

#[test]
fn captured_names_are_checked_before_they_enter_an_address() {
    let rules = load(
        "[[rule]]\nname = \"t\"\ndirection = \"uplink\"\nfrom.mqtt = \"q/{q}/{*r}\"\n\
         to.address = \"Queues/a%b/{q}/{device}/{*r}\"\nproperties.r = \"<{r}>\"\n",
    );
    let message = publish(&rules, "d1", "q/x#1/y/z?").unwrap();
    assert_eq!(message.address.as_str(), "Queues/a%25b/x%231/d1/y/z%3F");
    assert_eq!(property(&message, "r"), "<y/z?>");
    assert_eq!(publish(&rules, "d1", "q/x").unwrap().address.as_str(), "Queues/a%25b/x/d1");
    for topic in ["q/", "q/../a", "q/a/..", "q/a/", "q/a//b", "q/a b/c", "q/é", "q/a/\u{1}"] {
        assert_eq!(publish(&rules, "d1", topic).unwrap_err().reason, Reason::Content, "{topic:?}");
    }
    let long = format!("q/{}", "a/".repeat(600));
    assert_eq!(publish(&rules, "d1", &long[..long.len() - 1]).unwrap_err().reason, Reason::Content);
}

#[test]
fn the_rule_has_the_last_word_on_its_properties() {
    let rules = load(
        "[[rule]]\nname = \"t\"\ndirection = \"uplink\"\nconvention = \"azure-iot-hub\"\n\
         from.mqtt = \"t/{device}/{*bag}\"\nto.address = \"devices/{device}/messages/events\"\n\
         properties = { site = \"ber\", iothub-message-schema = \"fixed\" }\n",
    );
    let message = publish(&rules, "d1", "t/d1/site=x&site=y&$.schema=z&other=1&other=2&").unwrap_err();
    assert_eq!(message.reason, Reason::Content);
    let message = publish(&rules, "d1", "t/d1/site=x&$.schema=z&other=1").unwrap();
    assert_eq!(property(&message, "site"), "ber");
    assert_eq!(property(&message, "iothub-message-schema"), "fixed");
    assert_eq!(property(&message, "other"), "1");
    assert_eq!(message.application_properties.len(), 3);
}

#[test]
fn nothing_is_mapped_without_rules() {
    for rules in [RuleSet::default(), load("")] {
        assert_eq!(
            publish(&rules, "d1", "devices/d1/messages/events").unwrap_err().reason,
            Reason::NoSuchAddress
        );
        assert!(rules.command_subscription(&id("d1"), "#").is_err());
    }
}

#[test]
fn a_search_does_not_grow_with_the_number_of_rules() {
    let text: String =
        (0..500).map(|number| rule(&format!("r{number}"), &format!("p/{number}/{{device}}"))).collect();
    let rules = load(&text);
    for number in [0, 1, 250, 499] {
        let message = publish(&rules, "d1", &format!("p/{number}/d1")).unwrap();
        assert_eq!(property(&message, "rule"), format!("r{number}"));
    }
    assert_eq!(publish(&rules, "d1", "p/500/d1").unwrap_err().reason, Reason::NoSuchAddress);
}
