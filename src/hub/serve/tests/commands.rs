//! Commands to devices, and what their senders hear.

use std::time::Duration;

use fieldgate_amqp::connection::LinkId;
use fieldgate_amqp::performative::{
    ACCEPTED, DeliveryState, RELEASED, RcvSettleMode, Role, SndSettleMode, modified, rejected,
};
use fieldgate_mappings::Timestamp;

use super::world::{Client, World, command, command_until};

const BOUND: &str = "/devices/d/messages/deviceBound";

/// A service that sends and hears, and the link that it sends on.
fn service(world: &World) -> (Client, LinkId) {
    let mut service = world.service();
    let link = service.sender(world, "commands", "/messages/devicebound").unwrap();
    service.receiver(world, "feedback", "/messages/serviceBound/feedback", 100).unwrap();
    (service, link)
}

/// A device that is known.
fn device(world: &World) -> Client {
    let mut device = world.device("d");
    device.sender(world, "e", "devices/d/messages/events").unwrap();
    device
}

/// The status words of the feedback that has come, which is accepted.
fn feedback(world: &mut World, service: &mut Client) -> Vec<(String, String)> {
    world.pass(Duration::from_secs(20));
    service.turn(world);
    let mut heard = Vec::new();
    for got in service.take_deliveries() {
        assert_eq!(got.tag.len(), 16);
        let records: Vec<serde_json::Value> = serde_json::from_slice(&got.body()).unwrap();
        for record in records {
            let text = |name: &str| record[name].as_str().unwrap().to_owned();
            assert_eq!(text("deviceId"), "d");
            heard.push((text("originalMessageId"), text("statusCode")));
        }
        service.accept(world, got.id);
    }
    heard
}

fn heard(id: &str, status: &str) -> Vec<(String, String)> {
    vec![(id.to_owned(), status.to_owned())]
}

#[test]
fn a_command_goes_there_and_its_fate_comes_back() {
    let mut world = World::new();
    let mut device = device(&world);
    let (mut service, link) = service(&world);
    assert_eq!(service.ask(&world, link, &command("d", "m-1", "full", b"open")), Ok(()));
    // It waits for its device.
    device.receiver(&world, "c", BOUND, 10).unwrap();
    let got = device.take_deliveries();
    assert_eq!((got.len(), got[0].body(), got[0].settled), (1, b"open".to_vec(), false));
    assert_eq!(got[0].tag.len(), 16);
    let bytes: [u8; 16] = got[0].tag[..].try_into().unwrap();
    let guid = crate::hub::queue::LockToken(bytes).to_guid();
    assert_eq!(got[0].annotation("x-opt-lock-token"), Some(guid));
    assert_eq!(got[0].annotation("iothub-deliverycount").as_deref(), Some("Ubyte(0)"));
    assert_eq!(got[0].sections().properties().to(), Some("/devices/d/messages/devicebound"));
    assert!(feedback(&mut world, &mut service).is_empty());
    device.accept(&world, got[0].id);
    assert_eq!(feedback(&mut world, &mut service), heard("m-1", "Success"));
    assert!(feedback(&mut world, &mut service).is_empty(), "once");

    // One that comes while the device waits is there at once.
    assert_eq!(service.ask(&world, link, &command("d", "m-2", "negative", b"shut")), Ok(()));
    device.turn(&world);
    let got = device.take_deliveries();
    assert_eq!(got[0].body(), b"shut");
    device.settle(&world, got[0].id, true, Some(&rejected(None)));
    assert_eq!(feedback(&mut world, &mut service), heard("m-2", "Rejected"));
}

#[test]
fn an_abandoned_command_comes_again_ten_times() {
    let mut world = World::new();
    let mut device = device(&world);
    let (mut service, link) = service(&world);
    device.receiver(&world, "c", BOUND, 100).unwrap();
    assert_eq!(service.ask(&world, link, &command("d", "m", "full", b"x")), Ok(()));
    device.turn(&world);
    let modified = modified(true, false, None);
    for round in 0..10 {
        let got = device.take_deliveries();
        assert_eq!(got.len(), 1, "round {round}");
        assert_eq!(got[0].annotation("iothub-deliverycount"), Some(format!("Ubyte({round})")));
        let state = if round % 2 == 0 { RELEASED } else { &modified };
        device.settle(&world, got[0].id, true, Some(state));
    }
    assert!(device.take_deliveries().is_empty());
    assert_eq!(feedback(&mut world, &mut service), heard("m", "DeliveryCountExceeded"));
}

#[test]
fn a_device_that_goes_away_has_abandoned_nothing() {
    let world = World::new();
    let (mut service, link) = service(&world);
    let mut device = device(&world);
    assert_eq!(service.ask(&world, link, &command("d", "m", "full", b"x")), Ok(()));
    for round in 0..30 {
        let receiver = device.receiver(&world, "c", BOUND, 1).unwrap();
        let got = device.take_deliveries();
        assert_eq!(got.len(), 1, "round {round}");
        assert_eq!(got[0].annotation("iothub-deliverycount").as_deref(), Some("Ubyte(0)"));
        match round % 3 {
            // The link, the session, the connection.
            0 => device.machine.detach(receiver, true, None),
            1 => {
                device.machine.end(device.session.unwrap(), None);
                device.turn(&world);
                device.session = Some(device.machine.begin().unwrap());
            }
            _ => {
                device.peer.lose();
                device = world.device("d");
            }
        }
        device.turn(&world);
    }
}

#[test]
fn in_mode_second_the_hub_has_the_last_word() {
    let mut world = World::new();
    let (mut service, link) = service(&world);
    let mut device = device(&world);
    device.receiver_with(&world, "c", BOUND, 10, SndSettleMode::Mixed, RcvSettleMode::Second).unwrap();
    for (state, status) in [(ACCEPTED, "Success"), (&rejected(None)[..], "Rejected")] {
        assert_eq!(service.ask(&world, link, &command("d", "m", "full", b"x")), Ok(()));
        device.turn(&world);
        let got = device.take_deliveries();
        device.settle(&world, got[0].id, false, Some(state));
        let answer = device.disposition_of(got[0].id).expect("the hub settles");
        assert!(answer.settled && answer.role == Role::Sender);
        assert_eq!(answer.state(), Some(state));
        assert_eq!(feedback(&mut world, &mut service), heard("m", status));
    }
    // A state that is no outcome changes nothing yet.
    assert_eq!(service.ask(&world, link, &command("d", "m", "full", b"x")), Ok(()));
    device.turn(&world);
    let got = device.take_deliveries();
    device.settle(&world, got[0].id, false, Some(&fieldgate_amqp::performative::received(0, 0)));
    assert!(device.disposition_of(got[0].id).is_none());
    // Too late: the lock is gone, and the hub says so. The command comes again, uncounted.
    world.pass(Duration::from_secs(61));
    device.turn(&world);
    let again = device.take_deliveries();
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].annotation("iothub-deliverycount").as_deref(), Some("Ubyte(0)"));
    device.settle(&world, got[0].id, false, Some(ACCEPTED));
    let answer = device.disposition_of(got[0].id).unwrap();
    match DeliveryState::decode(answer.state().unwrap()).unwrap() {
        DeliveryState::Rejected(Some(error)) => {
            assert_eq!(error.condition(), "com.microsoft:message-lock-lost")
        }
        other => panic!("{other:?}"),
    }
    device.settle(&world, again[0].id, false, Some(ACCEPTED));
    assert_eq!(feedback(&mut world, &mut service), heard("m", "Success"));
}

#[test]
fn the_newest_link_has_the_commands() {
    let world = World::new();
    let (mut service, link) = service(&world);
    let mut old = device(&world);
    let losing = old.receiver(&world, "c", BOUND, 10).unwrap();
    assert_eq!(service.ask(&world, link, &command("d", "m", "full", b"x")), Ok(()));
    old.turn(&world);
    assert_eq!(old.take_deliveries().len(), 1);

    let mut new = world.device("d");
    new.receiver(&world, "c", BOUND, 10).unwrap();
    old.turn(&world);
    assert_eq!(old.detached(losing).as_deref(), Some("com.microsoft:link-creation-conflict"));
    // What the old one had goes to the new one, uncounted.
    new.turn(&world);
    let got = new.take_deliveries();
    assert_eq!(got[0].annotation("iothub-deliverycount").as_deref(), Some("Ubyte(0)"));
    // On one connection it is the same.
    let losing = new.machine.session_links(new.session.unwrap()).last().unwrap();
    new.receiver(&world, "c2", BOUND, 10).unwrap();
    new.turn(&world);
    assert_eq!(new.detached(losing).as_deref(), Some("com.microsoft:link-creation-conflict"));
    assert_eq!(new.take_deliveries().len(), 1);
    // The one that lost takes nothing with it when it goes.
    drop(old);
    assert_eq!(service.ask(&world, link, &command("d", "m2", "full", b"y")), Ok(()));
    new.turn(&world);
    assert_eq!(new.take_deliveries().len(), 1);
}

#[test]
fn expired_commands_are_told_and_unknown_devices_refused() {
    let mut world = World::new();
    let mut device = device(&world);
    let (mut service, link) = service(&world);
    assert_eq!(
        service.ask(&world, link, &command("nobody", "m", "full", b"x")),
        Err("amqp:not-found".into())
    );
    let soon = Some(Timestamp(world.now.wall.0 + 5000));
    assert_eq!(service.ask(&world, link, &command_until("d", "m", "full", b"x", soon)), Ok(()));
    world.pass(Duration::from_secs(5));
    device.receiver(&world, "c", BOUND, 10).unwrap();
    assert!(device.take_deliveries().is_empty());
    assert_eq!(feedback(&mut world, &mut service), heard("m", "Expired"));
    for index in 0..51 {
        let result = service.ask(&world, link, &command("d", &index.to_string(), "none", b"x"));
        assert_eq!(result.is_ok(), index < 50);
        assert!(index < 50 || result == Err("amqp:resource-limit-exceeded".into()));
        // The device has given no credit for more than ten.
    }
    device.turn(&world);
    assert_eq!(device.take_deliveries().len(), 10);
}

#[test]
fn feedback_goes_to_one_receiver_and_comes_back_when_it_is_given_back() {
    let mut world = World::new();
    let mut device = device(&world);
    device.receiver(&world, "c", BOUND, 10).unwrap();
    let (mut one, link) = service(&world);
    let (mut two, _) = service(&world);
    assert_eq!(one.ask(&world, link, &command("d", "m", "full", b"x")), Ok(()));
    device.turn(&world);
    let id = device.take_deliveries()[0].id;
    device.accept(&world, id);
    world.pass(Duration::from_secs(20));
    one.turn(&world);
    two.turn(&world);
    let (mine, theirs) = (one.take_deliveries(), two.take_deliveries());
    assert_eq!((mine.len(), theirs.len()), (1, 0));
    one.peer.lose();
    two.turn(&world);
    assert_eq!(feedback(&mut world, &mut two), heard("m", "Success"));
}

#[test]
fn a_settlement_without_an_outcome_gives_back() {
    let world = World::new();
    let mut device = device(&world);
    device.receiver(&world, "c", BOUND, 2).unwrap();
    let (mut service, link) = service(&world);
    assert_eq!(service.ask(&world, link, &command("d", "m", "full", b"x")), Ok(()));
    device.turn(&world);
    let id = device.take_deliveries()[0].id;
    device.settle(&world, id, true, None);
    let again = device.take_deliveries();
    assert_eq!(again[0].annotation("iothub-deliverycount").as_deref(), Some("Ubyte(0)"));
}
