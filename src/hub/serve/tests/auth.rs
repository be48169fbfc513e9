//! Who gets in, and for how long.

use std::time::Duration;

use fieldgate_amqp::connection::{ClientSecurity, ConnectionConfig, Event};
use fieldgate_amqp::performative::{AttachOut, SourceOut, TargetOut};

use super::world::{HOUR, World, device_token, event, token};

const EVENTS: &str = "devices/d/messages/events";
const BOUND: &str = "/devices/d/messages/deviceBound";
const LOG: &str = "messages/events/ConsumerGroups/$Default/Partitions/0";

#[test]
fn without_a_token_there_is_only_cbs() {
    let world = World::new();
    let mut client = world.connect();
    for (index, address) in [EVENTS, "/messages/devicebound"].into_iter().enumerate() {
        let refused = client.sender(&world, &format!("s{index}"), address);
        assert_eq!(refused.unwrap_err(), "amqp:unauthorized-access", "{address}");
    }
    for (index, address) in [BOUND, LOG, "/messages/serviceBound/feedback"].into_iter().enumerate() {
        let refused = client.receiver(&world, &format!("r{index}"), address, 1);
        assert_eq!(refused.unwrap_err(), "amqp:unauthorized-access", "{address}");
    }
    assert_eq!(client.put_token(&world, "no token", "localhost"), 400);
    assert_eq!(client.put_token(&world, &device_token("d", world.unix() - 1), "localhost"), 401);
    assert!(client.sender(&world, "again", EVENTS).is_err());
    assert_eq!(client.put_token(&world, &device_token("d", world.unix() + HOUR), "localhost/devices/d"), 200);
    let link = client.sender(&world, "good", EVENTS).unwrap();
    assert_eq!(client.ask(&world, link, &event(b"1")), Ok(()));
}

#[test]
fn a_devices_token_opens_its_own_doors_only() {
    let world = World::new();
    let mut client = world.device("d");
    assert!(client.sender(&world, "e", EVENTS).is_ok());
    assert!(client.receiver(&world, "c", BOUND, 1).is_ok());
    for (name, address) in [("1", "devices/d2/messages/events"), ("2", "/messages/devicebound")] {
        assert_eq!(client.sender(&world, name, address).unwrap_err(), "amqp:unauthorized-access");
    }
    assert_eq!(client.receiver(&world, "3", LOG, 1).unwrap_err(), "amqp:unauthorized-access");
    // Another device's token beside it opens that one's too.
    assert_eq!(client.put_token(&world, &device_token("d2", world.unix() + HOUR), "localhost"), 200);
    assert!(client.sender(&world, "4", "devices/d2/messages/events").is_ok());
}

#[test]
fn policies_open_what_they_are_for() {
    let world = World::new();
    for (policy, device, service) in
        [("device", true, false), ("service", false, true), ("iothubowner", true, true)]
    {
        let mut client = world.connect();
        assert_eq!(
            client.put_token(&world, &token(policy, "localhost", world.unix() + HOUR), "localhost"),
            200
        );
        assert_eq!(client.sender(&world, "e", EVENTS).is_ok(), device, "{policy}");
        assert_eq!(client.receiver(&world, "c", BOUND, 1).is_ok(), device, "{policy}");
        assert_eq!(client.sender(&world, "s", "/messages/devicebound").is_ok(), service, "{policy}");
        assert_eq!(client.receiver(&world, "l", LOG, 1).is_ok(), service, "{policy}");
    }
}

#[test]
fn an_expired_token_ends_its_links_and_no_others() {
    let mut world = World::new();
    let mut client = world.device("long");
    let short = device_token("short", world.unix() + 100);
    assert_eq!(client.put_token(&world, &short, "localhost/devices/short"), 200);
    let ending = client.sender(&world, "a", "devices/short/messages/events").unwrap();
    let staying = client.sender(&world, "b", "devices/long/messages/events").unwrap();

    let expiry = client.peer.deadline(world.now).unwrap();
    assert_eq!(expiry - world.now.instant, Duration::from_secs(100));
    world.pass(Duration::from_secs(99));
    client.turn(&world);
    assert_eq!(client.detached(ending), None);
    world.pass(Duration::from_secs(1));
    client.turn(&world);
    assert_eq!(client.detached(ending).as_deref(), Some("amqp:unauthorized-access"));
    assert_eq!(client.ask(&world, staying, &event(b"1")), Ok(()));
    assert!(client.sender(&world, "c", "devices/short/messages/events").is_err());

    // $cbs stays, so that a fresh token mends it.
    assert_eq!(client.put_token(&world, &device_token("short", world.unix() + HOUR), "localhost"), 200);
    assert!(client.sender(&world, "d", "devices/short/messages/events").is_ok());
}

#[test]
fn a_renewed_token_keeps_its_links() {
    let mut world = World::new();
    let mut client = world.connect();
    assert_eq!(client.put_token(&world, &device_token("d", world.unix() + 100), "localhost"), 200);
    let link = client.sender(&world, "a", EVENTS).unwrap();
    world.pass(Duration::from_secs(90));
    assert_eq!(client.put_token(&world, &device_token("d", world.unix() + 100), "localhost"), 200);
    world.pass(Duration::from_secs(50));
    client.turn(&world);
    assert_eq!(client.ask(&world, link, &event(b"1")), Ok(()));
}

#[test]
fn who_never_proves_anything_is_not_kept() {
    let mut world = World::new();
    let mut client = world.connect();
    assert_eq!(client.put_token(&world, "no token", "localhost"), 400);
    let until = client.peer.deadline(world.now).unwrap();
    assert_eq!(until - world.now.instant, Duration::from_secs(60));
    world.pass(Duration::from_secs(60));
    client.turn(&world);
    assert_eq!(client.closed().as_deref(), Some("amqp:unauthorized-access"));
    let mut proven = world.device("d");
    world.pass(Duration::from_secs(70));
    proven.turn(&world);
    assert_eq!(proven.closed(), None);
}

#[test]
fn plain_is_a_token_that_comes_early_and_the_connection_ends_with_it() {
    let mut world = World::new();
    let plain = |user: &str, password: String| ClientSecurity::Plain { user: user.into(), password };
    let good = plain("d@sas.localhost", device_token("d", world.unix() + 100));
    let mut client = world.connect_with(good, ConnectionConfig::default());
    let link = client.sender(&world, "e", EVENTS).unwrap();
    assert_eq!(client.ask(&world, link, &event(b"1")), Ok(()));
    assert!(client.sender(&world, "f", "devices/other/messages/events").is_err());
    world.pass(Duration::from_secs(100));
    client.turn(&world);
    assert_eq!(client.closed().as_deref(), Some("amqp:unauthorized-access"));

    let service = plain("service@sas.root.localhost", token("service", "localhost", world.unix() + 9));
    let mut client = world.connect_with(service, ConnectionConfig::default());
    assert!(client.receiver(&world, "l", LOG, 1).is_ok());

    for bad in [
        plain("e@sas.localhost", device_token("d", world.unix() + 100)),
        plain("d@sas.localhost", device_token("d", world.unix())),
        plain("d@sas.localhost", "password".into()),
    ] {
        let client = world.connect_with(bad, ConnectionConfig::default());
        assert!(matches!(client.events.as_slice(), [Event::Closed(_)]), "{:?}", client.events);
    }
    let client = world.connect_with(ClientSecurity::External, ConnectionConfig::default());
    assert!(matches!(client.events.as_slice(), [Event::Closed(_)]), "not offered");
    for security in [ClientSecurity::Bare, ClientSecurity::Mssbcbs] {
        assert!(world.connect_with(security, ConnectionConfig::default()).session.is_some());
    }
}

#[test]
fn what_is_refused_says_why() {
    let world = World::new();
    let mut client = world.service();
    for (name, address, condition) in [
        ("1", "devices/d/messages/nothing", "amqp:not-found"),
        ("2", "", "amqp:not-found"),
        ("3", BOUND, "amqp:not-allowed"),
        ("4", LOG, "amqp:not-allowed"),
        ("5", "/devices/d/twin", "amqp:not-implemented"),
        ("6", "$management", "amqp:not-implemented"),
    ] {
        assert_eq!(client.sender(&world, name, address).unwrap_err(), condition, "{address}");
    }
    for (name, address, condition) in [
        ("7", EVENTS, "amqp:not-allowed"),
        ("8", "messages/events/ConsumerGroups/$Default/Partitions/4", "amqp:not-found"),
        ("9", "/messages/devicebound", "amqp:not-allowed"),
    ] {
        assert_eq!(client.receiver(&world, name, address, 1).unwrap_err(), condition, "{address}");
    }
    let source = SourceOut::default().build();
    let nowhere = TargetOut::default().build();
    let dynamic = TargetOut { dynamic: true, ..TargetOut::default() }.build();
    let no_address = client.attach(&world, &AttachOut::sender("10", &source, &nowhere).build());
    assert_eq!(no_address.unwrap_err(), "amqp:invalid-field");
    let dynamic = client.attach(&world, &AttachOut::sender("11", &source, &dynamic).build());
    assert_eq!(dynamic.unwrap_err(), "amqp:not-implemented");
    let null = AttachOut { target: None, ..AttachOut::sender("12", &source, &nowhere) };
    assert_eq!(client.attach(&world, &null.build()).unwrap_err(), "amqp:invalid-field");
    // The connection has its pair of $cbs links already.
    assert_eq!(client.sender(&world, "13", "$cbs").unwrap_err(), "amqp:not-allowed");
    assert_eq!(client.receiver(&world, "14", "$cbs", 1).unwrap_err(), "amqp:not-allowed");
    // After all of that the connection is as good as before.
    assert!(client.receiver(&world, "15", LOG, 1).is_ok());
}

#[test]
fn unknown_devices_are_not_taken_where_they_may_not_register() {
    let mut world = World::new();
    let config = "[hub]\nregister_unknown_devices = false\n";
    let config = crate::config::Config::parse("test", config, None).unwrap();
    let state = crate::hub::state::HubState::new(&config.hub, &["localhost".into()], super::world::owner());
    world.shared = std::rc::Rc::new(crate::hub::serve::shared::Shared::new(state));
    let mut client = world.device("d");
    assert_eq!(client.sender(&world, "e", EVENTS).unwrap_err(), "amqp:not-found");
}
