//! Every way to reach another's address that we could think of, and the ways that must stay open.

use bytes::BytesMut;
use fieldgate_amqp::codec::{put_composite, put_list, put_null, put_str, put_symbol};
use fieldgate_amqp::endpoint::SAS_TOKEN;
use fieldgate_amqp::performative::{AttachOut, SourceOut, TargetOut, descriptor};

use super::super::routes::{LinkRoute, RouteMatch};
use super::*;
use crate::sas::{SharedKey, Signer, percent_encode};

const NOW: u64 = 1_800_000_000;
const HOUR: u64 = 3600;

fn prefix(text: &str, connector: usize) -> LinkRoute {
    let matches = RouteMatch::Prefix(text.into());
    LinkRoute { matches, direction: None, connector: ConnectorIndex(connector) }
}

fn rules() -> Arc<Rules> {
    // Connectors 0 and 2 lead to the same hub, 1 to another one.
    let routes =
        [prefix("devices/", 0), prefix("devices", 1), prefix("devices/special", 2), prefix("queue", 0)];
    let hubs = Hubs::new([vec!["hub.example", "localhost"], vec!["other.example"], vec!["hub.example"]]);
    Arc::new(Rules { routes: Routes::new(routes), hubs, registrar: None })
}

fn access() -> Access {
    Access::new(rules(), Authorise::Token, 3, Some("gate.local"), None, None)
}

/// A device that has put a token for each of these resources.
fn holding(resources: &[&str]) -> Access {
    let mut access = access();
    for resource in resources {
        let grant = judge(&access, resource, &percent_encode(resource)).expect(resource);
        access.grant(grant);
    }
    access
}

fn token(resource: &str) -> String {
    let key = SharedKey::from_bytes(b"key").unwrap();
    Signer::new(None, key).token(resource, NOW + HOUR)
}

fn judge(access: &Access, resource: &str, name: &str) -> Result<Grant, Refusal> {
    access.judge(name, SAS_TOKEN, &token(resource), NOW)
}

fn sender(target: &str) -> Attach {
    let source = SourceOut { address: Some("devices/other/own end"), ..SourceOut::default() }.build();
    let target = TargetOut { address: Some(target), ..TargetOut::default() }.build();
    AttachOut::sender("link", &source, &target).build()
}

fn receiver(source: &str) -> Attach {
    let source = SourceOut { address: Some(source), ..SourceOut::default() }.build();
    let target = TargetOut { address: Some("devices/other/own end"), ..TargetOut::default() }.build();
    AttachOut::receiver("link", &source, &target).build()
}

fn routed(access: &Access, attach: &Attach) -> Routed {
    match access.admit(attach, NOW) {
        Ok(Admitted::Routed(routed)) => *routed,
        other => panic!("{other:?}"),
    }
}

/// Where a device's sender goes, and to which address.
fn goes(access: &Access, address: &str) -> (usize, String) {
    let routed = routed(access, &sender(address));
    let sent = routed.attach.target().expect("target").address().expect("address").to_owned();
    (routed.connector.0, sent)
}

/// The condition with which both directions are refused. No refusal repeats a whole long address.
fn refused(access: &Access, address: &str) -> String {
    let [one, other] = [sender(address), receiver(address)].map(|attach| {
        let error = access.admit(&attach, NOW).expect_err(address);
        assert!(error.description().is_some_and(|why| why.len() > 20 && why.len() < 400), "{error:?}");
        error.condition().to_owned()
    });
    assert_eq!(one, other, "{address}");
    one
}

const NOT_FOUND: &str = "amqp:not-found";
const NOT_ALLOWED: &str = "amqp:not-allowed";
const UNAUTHORIZED: &str = "amqp:unauthorized-access";

#[test]
fn a_device_reaches_its_own_addresses_however_it_writes_them() {
    let access = holding(&["hub.example/devices/dev1"]);
    for (written, sent) in [
        ("devices/dev1/messages/events", "devices/dev1/messages/events"),
        ("/devices/dev1/messages/deviceBound", "/devices/dev1/messages/deviceBound"),
        ("Devices/dev1/Messages/Events", "Devices/dev1/Messages/Events"),
        ("devices/%64ev1/messages/events", "devices/dev1/messages/events"),
        ("amqps://hub.example:5671/devices/dev1/twin", "devices/dev1/twin"),
        ("amqps://HUB.EXAMPLE/devices/dev1/twin", "devices/dev1/twin"),
        ("amqps://localhost/devices/dev1/twin", "devices/dev1/twin"),
        ("amqps://gate.local:5671/devices/dev1/twin", "devices/dev1/twin"),
        ("devices/dev1/modules/m1/messages/events", "devices/dev1/modules/m1/messages/events"),
        ("devices/dev1", "devices/dev1"),
    ] {
        assert_eq!(goes(&access, written), (0, sent.to_owned()), "{written}");
    }
}

#[test]
fn nobody_reaches_another_devices_addresses() {
    let access = holding(&["hub.example/devices/dev1"]);
    for address in [
        "devices/dev10/messages/events",
        "devices/dev/messages/events",
        "devices/dev2/messages/events",
        "devices/DEV1/messages/events",
        "devices/Dev1/messages/events",
        "devices/%44ev1/messages/events",
        "devices/dev1 /messages/events",
        "devices/ dev1/messages/events",
        "devices/dev1;x/messages/events",
        "devices/dev1?/messages/events",
        "devices/dev1%3F/messages/events",
        "devices/dev1%23/messages/events",
        "devices/dev1%20/messages/events",
        "devices/dev1*/messages/events",
        "devices/*/messages/events",
        "devices/#",
        "devices",
        "devices/dév1/messages/events",
        // Looks like dev1: the first letter is Cyrillic.
        "devices/\u{501}ev1/messages/events",
        // Decoded once this is %64ev1, which is not dev1.
        "devices/%2564ev1/messages/events",
        "devices/modules/dev1",
        "amqps://hub.example/devices/dev2/messages/events",
        "amqps://gate.local/devices/dev2/messages/events",
    ] {
        assert_eq!(refused(&access, address), UNAUTHORIZED, "{address}");
    }
    for address in [
        "",
        "/",
        "devices/dev1/../dev2/messages/events",
        "devices/dev1/%2e%2e/dev2/messages/events",
        "devices/dev1%2F..%2Fdev2/messages/events",
        "devices/dev1%2F../messages/events",
        "devices/dev1\\..\\dev2",
        "devices/dev1//messages/events",
        "devices//dev1/messages/events",
        "//devices/dev1/messages/events",
        "devices/dev1/messages/events/",
        "devices/dev1/%00",
        "devices/%/x",
        "amqps://elsewhere.example/devices/dev1/messages/events",
        "amqps://hub.example.evil/devices/dev1/messages/events",
        "amqps://hub.example./devices/dev1/messages/events",
        "amqps://user:pass@hub.example/devices/dev1/messages/events",
        "amqps://hub.example:x/devices/dev1/messages/events",
        "amqps:/devices/dev1/messages/events",
        "sb://hub.example/devices/dev1/messages/events",
        "messages/events",
        "messages/devicebound",
        "messages/servicebound/feedback",
        "messages/events/ConsumerGroups/$Default/Partitions/0",
        "deviceſ/dev1",
    ] {
        assert_eq!(refused(&access, address), NOT_FOUND, "{address}");
    }
}

#[test]
fn the_hubs_own_nodes_are_closed_but_for_cbs_which_is_the_gateways() {
    for access in [access(), Access::new(rules(), Authorise::Any, 3, Some("gate.local"), None, None)] {
        for address in [
            "$cbs",
            "/$cbs",
            "$CBS",
            "%24cbs",
            "%24%63bs",
            "amqps://gate.local/$cbs",
            "amqps://hub.example:5671/$cbs",
        ] {
            for attach in [sender(address), receiver(address)] {
                let admitted = access.admit(&attach, NOW);
                assert!(matches!(admitted, Ok(Admitted::Cbs)), "{address} {admitted:?}");
            }
        }
        for address in [
            "$management",
            "/$management",
            "%24management",
            "$Management",
            "$cbs2",
            "$cbs/x",
            "$",
            "$sys.x",
            "amqps://gate.local/$management",
            "amqps://hub.example/%24management",
        ] {
            assert_eq!(refused(&access, address), NOT_ALLOWED, "{address}");
        }
    }
    let any = Access::new(rules(), Authorise::Any, 3, None, None, None);
    for address in ["queue/$management", "queue/x/$CBS", "queue/%24management"] {
        assert_eq!(refused(&any, address), NOT_ALLOWED, "{address}");
    }
    assert_eq!(refused(&access(), "amqps://elsewhere/$cbs"), NOT_FOUND);
    assert_eq!(
        refused(&access(), "devices/$management/x"),
        UNAUTHORIZED,
        "an identity may hold a dollar sign"
    );
}

/// An attach whose node is this value.
fn with_node(role: Role, node: impl Fn(&mut BytesMut)) -> Attach {
    let mut out = BytesMut::new();
    node(&mut out);
    let node = Terminus::decode(out.freeze()).expect("a value");
    let (source, target) = (SourceOut::default().build(), TargetOut::default().build());
    match role {
        Role::Sender => AttachOut::sender("link", &source, &node).build(),
        Role::Receiver => AttachOut::receiver("link", &node, &target).build(),
    }
}

#[test]
fn what_names_no_node_is_refused() {
    let dynamic = |address: Option<&'static str>| {
        let source = SourceOut { address, dynamic: true, ..SourceOut::default() }.build();
        let target = TargetOut { address, dynamic: true, ..TargetOut::default() }.build();
        let plain = (SourceOut::default().build(), TargetOut::default().build());
        [
            AttachOut::sender("l", &plain.0, &target).build(),
            AttachOut::receiver("l", &source, &plain.1).build(),
        ]
    };
    let (source, target) = (SourceOut::default().build(), TargetOut::default().build());
    let null_target = AttachOut { target: None, ..AttachOut::sender("l", &source, &target) }.build();
    let null_source = AttachOut { source: None, ..AttachOut::receiver("l", &source, &target) }.build();
    let coordinator = with_node(Role::Sender, |out| put_composite(out, descriptor::COORDINATOR, |_| 0));
    let vendor = with_node(Role::Sender, |out| {
        put_composite(out, 0xFEED_0000_0000_0001, |out| {
            put_str(out, "devices/dev1");
            1
        });
    });
    let symbol = with_node(Role::Receiver, |out| {
        put_composite(out, descriptor::SOURCE, |out| {
            put_symbol(out, "devices/dev1");
            1
        });
    });
    let list = with_node(Role::Sender, |out| put_list(out, |_| 0));
    let null_address = with_node(Role::Sender, |out| {
        put_composite(out, descriptor::TARGET, |out| {
            put_null(out);
            1
        });
    });
    for authorise in [Authorise::Token, Authorise::Any] {
        let mut access = Access::new(rules(), authorise, 3, None, None, None);
        access.grant(judge(&access, "hub.example/devices/dev1", "hub.example").unwrap());
        let odd = [&null_target, &null_source, &coordinator, &vendor, &symbol, &list, &null_address];
        for attach in odd.into_iter().chain(&dynamic(None)).chain(&dynamic(Some("devices/dev1"))) {
            let error = access.admit(attach, NOW).expect_err("no node");
            assert_eq!(error.condition(), NOT_ALLOWED, "{error:?}");
        }
    }
}

#[test]
fn only_the_address_is_changed_and_the_answer_has_it_as_it_was_written() {
    let access = holding(&["hub.example/devices/dev1"]);
    let plain = routed(&access, &sender("/devices/dev1/x"));
    assert!(plain.respelled.is_none());
    assert_eq!(plain.attach.composite().encoded(), sender("/devices/dev1/x").composite().encoded());

    for (attach, clean) in [
        (sender("amqps://gate.local/devices/%64ev1/x"), sender("devices/dev1/x")),
        (receiver("amqps://gate.local/devices/%64ev1/x"), receiver("devices/dev1/x")),
    ] {
        let routed = routed(&access, &attach);
        assert_eq!(routed.attach.composite().encoded(), clean.composite().encoded());
        // The hub answers with the terminuses that it was sent.
        let answer = |attach: &Attach| {
            let (source, target) = (attach.source().unwrap(), attach.target().unwrap());
            let mut answer = AttachOut::sender("link", &source, &target);
            answer.role = attach.role().other();
            answer.build()
        };
        let respelled = routed.respelled.expect("the address was changed");
        let restored = respelled.restore(&answer(&routed.attach));
        assert_eq!(restored.composite().encoded(), answer(&attach).composite().encoded());
        // An answer with another address, or none, is the hub's own word.
        for other in [answer(&sender("devices/dev1/y")), answer(&receiver("queue"))] {
            assert_eq!(respelled.restore(&other).composite().encoded(), other.composite().encoded());
        }
        let (source, target) = (attach.source().unwrap(), attach.target().unwrap());
        let refusal =
            AttachOut { source: None, target: None, ..AttachOut::sender("link", &source, &target) }.build();
        assert_eq!(respelled.restore(&refusal).composite().encoded(), refusal.composite().encoded());
    }
}

#[test]
fn a_grant_is_what_both_the_token_and_its_name_cover() {
    for (resource, name, scope) in [
        ("hub.example/devices/d1", "hub.example/devices/d1", "devices/d1"),
        ("hub.example/devices/d1", "hub.example", "devices/d1"),
        ("hub.example/devices/d1", "gate.local:5671/devices/d1", "devices/d1"),
        ("hub.example/devices/d1", "amqps://hub.example:5671/", "devices/d1"),
        ("hub.example/devices/d1", "hub.example%2Fdevices%2Fd1", "devices/d1"),
        ("HUB.example:5671/Devices/d1/", "hub.example/DEVICES/d1", "devices/d1"),
        ("localhost/devices/d1", "hub.example/devices/d1", "devices/d1"),
        ("hub.example/devices/d1", "hub.example/devices/d1/modules/m1", "devices/d1/modules/m1"),
        ("hub.example/devices/d1/modules/m1", "hub.example/devices/d1", "devices/d1/modules/m1"),
        ("hub.example/devices/d1/messages/Events", "hub.example/devices/d1", "devices/d1/messages/events"),
        ("hub.example/devices/a:b@c=d", "hub.example/devices/a%3Ab@c=d", "devices/a:b@c=d"),
        ("hub.example/devices/a%2Fb", "hub.example", "devices/a%252Fb"),
        ("hub.example/devices/100%", "hub.example", "devices/100%25"),
    ] {
        let grant =
            judge(&access(), resource, name).unwrap_or_else(|error| panic!("{resource} {name}: {error:?}"));
        assert_eq!((grant.scope.as_str(), grant.hub.0), (scope, 0), "{resource} {name}");
        assert_eq!(grant.expires_unix, NOW + HOUR);
        // What is put names what was judged, in a form that any hub reads in the same way.
        let put = crate::sas::Resource::parse(&grant.name).expect("a resource");
        let host = resource.split([':', '/']).next().unwrap().to_ascii_lowercase();
        assert_eq!(put.host(), host);
        assert_eq!(Address::parse(scope).unwrap().as_str(), scope);
        let path: Vec<String> = scope.split('/').map(|segment| percent_decode(segment).unwrap()).collect();
        assert_eq!(put.path(), path);
        assert!(!format!("{grant:?}").contains("sig="));
    }
}

#[test]
fn tokens_that_could_open_anothers_door_are_refused() {
    for (resource, name, status) in [
        // Neither covers the other: a token for B put for A, and the reverse.
        ("hub.example/devices/b", "hub.example/devices/a", 401),
        ("hub.example/devices/a", "hub.example/devices/b", 401),
        ("hub.example/devices/d1", "hub.example/devices/d10", 401),
        ("hub.example/devices/d10", "hub.example/devices/d1", 401),
        ("hub.example/devices/d1", "hub.example/devices/D1", 401),
        ("hub.example/devices/d/modules/a", "hub.example/devices/d/modules/b", 401),
        // For the whole hub, whatever it is put for.
        ("hub.example", "hub.example", 401),
        ("hub.example", "hub.example/devices/d1", 401),
        ("hub.example/devices", "hub.example/devices/d1", 401),
        ("hub.example/devices/", "hub.example/devices/d1", 401),
        ("hub.example/messages/events", "hub.example", 401),
        ("hub.example/twins/d1", "hub.example", 401),
        // Another hub, or none that is known here.
        ("elsewhere.example/devices/d1", "elsewhere.example/devices/d1", 401),
        ("elsewhere.example/devices/d1", "hub.example/devices/d1", 401),
        ("gate.local/devices/d1", "gate.local/devices/d1", 401),
        ("hub.example/devices/d1", "elsewhere.example/devices/d1", 401),
        ("hub.example/devices/d1", "other.example/devices/d1", 401),
        ("hub.example.evil/devices/d1", "hub.example.evil/devices/d1", 401),
        ("user@hub.example/devices/d1", "hub.example/devices/d1", 401),
        // It is not to be told whether a:b or a%3Ab is meant.
        ("hub.example/devices/a%3Ab", "hub.example/devices/a%3Ab", 401),
        ("hub.example/devices/a%3Ab", "hub.example/devices/a:b", 401),
        ("hub.example/devices/d/modules/%61", "hub.example", 401),
        // No identities at all.
        ("hub.example/devices/..", "hub.example", 400),
        ("hub.example/devices/a b", "hub.example", 400),
        ("hub.example/devices/é", "hub.example", 400),
        ("hub.example/devices/d\u{0}", "hub.example", 400),
        ("hub.example/devices/d/modules/..", "hub.example", 400),
        ("hub.example/devices/d/../e", "hub.example", 400),
        ("hub.example/devices/d1", "", 400),
        ("hub.example/devices/d1", "%", 400),
        ("hub.example/devices/d1", "/devices/d1", 400),
    ] {
        let error = judge(&access(), resource, name).expect_err(&format!("{resource} {name}"));
        assert_eq!(error.status, status, "{resource} {name}: {error:?}");
        assert!(error.description.len() > 20 && !error.description.contains("sig="), "{error:?}");
    }
    let policy = Signer::new(Some("iothubowner".into()), SharedKey::from_bytes(b"key").unwrap());
    let wide = policy.token("hub.example", NOW + HOUR);
    assert_eq!(access().judge("hub.example/devices/d1", SAS_TOKEN, &wide, NOW).unwrap_err().status, 401);
    let narrow = policy.token("hub.example/devices/d1", NOW + HOUR);
    let grant = access().judge("hub.example/devices/d1", SAS_TOKEN, &narrow, NOW).expect("one device");
    assert_eq!(grant.scope.as_str(), "devices/d1");
}

#[test]
fn other_kinds_of_tokens_and_malformed_ones_are_refused() {
    let good = token("hub.example/devices/d1");
    for (token_type, token) in [
        ("jwt", good.as_str()),
        ("", &good),
        ("Servicebus.windows.net:SasToken", &good),
        (SAS_TOKEN, ""),
        (SAS_TOKEN, "SharedAccessSignature sr=x"),
        (SAS_TOKEN, &good.replace("se=", "se=x")),
        (SAS_TOKEN, &format!("{good}&sr=hub.example")),
        (SAS_TOKEN, &format!("{good}&x={}", "y".repeat(5000))),
    ] {
        let error = access().judge("hub.example/devices/d1", token_type, token, NOW).unwrap_err();
        assert_eq!(error.status, 400, "{error:?}");
        assert!(!error.description.contains("sig") || !error.description.contains('%'), "{error:?}");
    }
}

#[test]
fn a_token_is_worth_nothing_from_its_expiry_on() {
    let mut access = holding(&["hub.example/devices/d1"]);
    let link = routed(&access, &sender("devices/d1/x"));
    assert_eq!(access.next_expiry(), Some(NOW + HOUR));
    assert!(access.allows(&link.permit, NOW + HOUR - 1) && !access.allows(&link.permit, NOW + HOUR));
    assert!(
        access.grant_of(&link.permit, NOW).is_some() && access.grant_of(&link.permit, NOW + HOUR).is_none()
    );
    let error = access.admit(&sender("devices/d1/x"), NOW + HOUR).expect_err("expired");
    assert_eq!(error.condition(), UNAUTHORIZED);
    assert_eq!(expired().condition(), UNAUTHORIZED);
    assert!(!access.expire(NOW + HOUR - 1));
    assert!(access.expire(NOW + HOUR) && access.grants().iter().next().is_none());
    assert_eq!(access.next_expiry(), None);
    let late = access.judge("hub.example", SAS_TOKEN, &token("hub.example/devices/d1"), NOW + HOUR);
    assert_eq!(late.unwrap_err().status, 401);
}

#[test]
fn a_renewed_token_takes_the_place_of_the_old_one() {
    let mut access = holding(&["hub.example/devices/d1"]);
    let link = routed(&access, &sender("devices/d1/x"));
    let key = SharedKey::from_bytes(b"key").unwrap();
    let renewed = Signer::new(None, key).token("hub.example/devices/d1", NOW + 2 * HOUR);
    let grant = access.judge("gate.local/devices/d1", SAS_TOKEN, &renewed, NOW).unwrap();
    access.grant(grant.clone());
    assert_eq!(access.grants().iter().collect::<Vec<_>>(), [&grant]);
    assert!(access.allows(&link.permit, NOW + HOUR));
    assert_eq!(access.grant_of(&link.permit, NOW).map(|grant| grant.token.expose()), Some(&*renewed));
    assert!(access.revoke(&grant) && !access.revoke(&grant));
    assert!(!access.allows(&link.permit, NOW));
}

#[test]
fn a_connection_may_have_so_many_tokens() {
    let mut access = holding(&["hub.example/devices/a", "hub.example/devices/b", "hub.example/devices/c"]);
    assert_eq!(judge(&access, "hub.example/devices/d", "hub.example").unwrap_err().status, 403);
    assert!(judge(&access, "hub.example/devices/b", "hub.example").is_ok(), "a renewal needs no room");
    let key = SharedKey::from_bytes(b"key").unwrap();
    let later = Signer::new(None, key).token("hub.example/devices/d", NOW + 2 * HOUR);
    assert!(
        access.judge("hub.example", SAS_TOKEN, &later, NOW + HOUR).is_ok(),
        "what has expired takes no room"
    );
    access.expire(NOW + HOUR);
    assert_eq!(access.grants().iter().count(), 0);
}

#[test]
fn a_modules_token_is_good_for_the_module_alone() {
    let access = holding(&["hub.example/devices/d1/modules/m1"]);
    assert_eq!(goes(&access, "devices/d1/Modules/m1/messages/events").0, 0);
    for address in [
        "devices/d1/messages/events",
        "devices/d1/modules/m10/messages/events",
        "devices/d1/modules/M1/messages/events",
        "devices/d2/modules/m1/messages/events",
        "devices/d1/modules",
        "devices/d1/modules/m1x",
    ] {
        assert_eq!(refused(&access, address), UNAUTHORIZED, "{address}");
    }
}

#[test]
fn odd_identities_are_reached_in_the_one_way_that_means_them() {
    let access =
        holding(&["hub.example/devices/a%2Fb", "hub.example/devices/x:y@z=1", "hub.example/devices/q?#"]);
    assert_eq!(goes(&access, "devices/a%252Fb/x").1, "devices/a%252Fb/x");
    assert_eq!(goes(&access, "devices/x:y@z=1/x").1, "devices/x:y@z=1/x");
    assert_eq!(goes(&access, "devices/x%3Ay%40z%3D1/x").1, "devices/x:y@z=1/x");
    // A hub that reads addresses as URIs would end the path there.
    assert_eq!(goes(&access, "devices/q?#/x").1, "devices/q%3F%23/x");
    assert_eq!(refused(&access, "devices/a%2Fb/x"), NOT_FOUND);
    assert_eq!(refused(&access, "devices/a%25252Fb/x"), UNAUTHORIZED);
    assert_eq!(refused(&access, "devices/a/b/x"), UNAUTHORIZED);
    assert_eq!(refused(&access, "devices/x%253Ay@z=1/x"), UNAUTHORIZED);
}

#[test]
fn each_hub_has_its_own_devices() {
    // Both hubs have a device d; this one is the other hub's.
    let mut access = holding(&["other.example/devices/d"]);
    assert_eq!(goes(&access, "devices/d/x"), (1, "devices/d/x".into()), "the token says which hub");
    assert_eq!(goes(&access, "amqps://other.example/devices/d/x").0, 1);
    assert_eq!(goes(&access, "amqps://gate.local/devices/d/x").0, 1);
    assert_eq!(refused(&access, "amqps://hub.example/devices/d/x"), UNAUTHORIZED);
    access.grant(judge(&access, "hub.example/devices/d", "hub.example").unwrap());
    assert_eq!(goes(&access, "amqps://hub.example/devices/d/x").0, 0);
    assert_eq!(goes(&access, "amqps://other.example/devices/d/x").0, 1);

    // Two connectors to one hub: a token is good for both.
    let access = holding(&["hub.example/devices/special"]);
    assert_eq!(goes(&access, "devices/special/x").0, 2);
    assert_eq!(refused(&access, "amqps://other.example/devices/special/x"), UNAUTHORIZED);

    // What the device has dialled decides where its tokens do not, and a listener that is bound decides first.
    let dialled = Access::new(rules(), Authorise::Any, 3, Some("other.example"), None, None);
    assert_eq!(goes(&dialled, "devices/d/x").0, 1);
    let bound = Access::new(rules(), Authorise::Any, 3, Some("hub.example"), Some(ConnectorIndex(1)), None);
    assert_eq!(goes(&bound, "devices/d/x").0, 1);
    assert_eq!(refused(&bound, "queue/q"), NOT_FOUND);
    let bound = Access::new(rules(), Authorise::Token, 3, None, Some(ConnectorIndex(1)), None);
    assert_eq!(judge(&bound, "hub.example/devices/d", "hub.example").unwrap_err().status, 401);
    assert!(judge(&bound, "other.example/devices/d", "other.example").is_ok());
}

#[test]
fn a_device_that_the_gateway_has_authenticated_has_its_own_addresses() {
    let own = Some((ConnectorIndex(2), Address::parse("devices/d1").unwrap()));
    let access = Access::new(rules(), Authorise::Token, 3, None, None, own);
    let link = routed(&access, &sender("devices/d1/x"));
    assert_eq!(link.connector.0, 0);
    assert!(access.allows(&link.permit, u64::MAX) && access.grant_of(&link.permit, NOW).is_none());
    for address in ["devices/d10/x", "devices/D1/x", "amqps://other.example/devices/d1/x"] {
        assert!(access.admit(&sender(address), NOW).is_err(), "{address}");
    }
}

#[test]
fn without_authorisation_addresses_go_as_they_came() {
    let access = Access::new(rules(), Authorise::Any, 3, Some("gate.local"), None, None);
    for address in [
        "devices/d1/x",
        "/queue/%2F",
        "queue.a",
        "Devices/d1/x",
        "amqps://hub.example/queue",
        "amqp://anywhere/queue/",
    ] {
        assert_eq!(goes(&access, address).1, address);
        assert!(access.allows(&routed(&access, &receiver(address)).permit, u64::MAX));
    }
    assert_eq!(goes(&access, "amqps://gate.local:5671/queue/q").1, "amqps://hub.example:5671/queue/q");
    for address in ["", "queue2", "queue/../x", "queue/%2e%2E/x", "other", "amqps://gate.local", "Queue"] {
        assert_eq!(refused(&access, address), NOT_FOUND, "{address}");
    }
}

#[test]
fn refusals_are_short_whatever_was_asked() {
    let access = holding(&["hub.example/devices/dev1"]);
    for address in ["x".repeat(60_000), format!("devices/{}/x", "y".repeat(500)), "é".repeat(400)] {
        refused(&access, &address);
    }
    let name = format!("{}/devices/d", "h".repeat(60_000));
    assert!(judge(&access, "hub.example/devices/d", &name).unwrap_err().description.len() < 300);
}
