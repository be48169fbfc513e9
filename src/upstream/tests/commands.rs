//! Commands: the subscription of a device, through everything that may end the link below it.

use std::rc::Rc;
use std::time::Duration;

use fieldgate_mappings::outcome::{Outcome, Reason};

use crate::upstream::CommandId;
use crate::upstream::fleet::MAX_DEVICES;

use super::hub::Script;
use super::kit::{Bench, Inbox, Setup, id};

fn subscribed(credit: u32) -> (Bench, Rc<Inbox>, u64) {
    let mut bench = Bench::ready(Setup::default());
    let (inbox, serial) = bench.subscribe("d", credit);
    bench.run();
    (bench, inbox, serial)
}

fn ids(inbox: &Inbox) -> Vec<CommandId> {
    inbox.commands.borrow().iter().map(|command| command.id).collect()
}

fn settled(bench: &Bench) -> Vec<(u64, &str)> {
    let state =
        |state: &Option<String>| if state.as_deref() == Some("Accepted") { "Accepted" } else { "other" };
    bench.records.commands.iter().map(|(number, said)| (*number, state(said))).collect()
}

#[test]
fn a_command_is_settled_as_the_device_says() {
    let (mut bench, inbox, serial) = subscribed(2);
    assert!(bench.hub().command(0, 7) && bench.hub().command(0, 8));
    assert!(!bench.hub().command(0, 9), "the device takes two at a time");
    bench.run();
    let ids = ids(&inbox);
    bench.fleet.settle(&id("d"), serial, ids[1], &Outcome::Accepted);
    bench.fleet.settle(&id("d"), serial, ids[0], &Outcome::Unknown);
    bench.run();
    assert_eq!(settled(&bench), [(8, "Accepted")]);
    assert!(bench.hub().command(0, 9), "one is settled");
}

#[test]
fn a_late_word_is_not_taken_for_another_command() {
    let (mut bench, inbox, serial) = subscribed(5);
    bench.hub().command(0, 1);
    // A message that is never answered ends the device's session; the subscription is not given up.
    bench.send("d");
    bench.wait(Duration::from_secs(40));
    assert_eq!(bench.hub().commands.len(), 1);
    bench.hub().command(0, 2);
    bench.run();
    let ids = ids(&inbox);
    assert_eq!(ids.len(), 2);
    assert_eq!(ids[0].delivery_id, ids[1].delivery_id, "the same number on another session");
    bench.fleet.settle(&id("d"), serial, ids[0], &Outcome::Accepted);
    bench.run();
    assert_eq!(settled(&bench), []);
    bench.fleet.settle(&id("d"), serial, ids[1], &Outcome::Accepted);
    bench.run();
    assert_eq!(settled(&bench), [(2, "Accepted")]);
}

#[test]
fn a_subscription_lives_through_an_outage() {
    let (mut bench, inbox, serial) = subscribed(5);
    bench.hub().command(0, 1);
    bench.run();
    bench.disconnect();
    bench.connect();
    bench.run();
    bench.hub().command(0, 2);
    bench.run();
    let ids = ids(&inbox);
    bench.fleet.settle(&id("d"), serial, ids[0], &Outcome::Accepted);
    bench.run();
    assert_eq!(settled(&bench), []);
    bench.fleet.settle(&id("d"), serial, ids[1], &Outcome::Accepted);
    bench.run();
    assert_eq!(settled(&bench), [(2, "Accepted")]);
    assert!(inbox.ended.borrow().is_empty());
}

#[test]
fn the_subscriber_hears_when_there_will_be_no_command() {
    let (mut bench, inbox, _) = subscribed(5);
    let session = bench.hub().commands[0].session;
    bench.hub().end(session, Some("amqp:internal-error"));
    bench.run();
    assert_eq!(*inbox.ended.borrow(), [None]);

    let (inbox, _) = bench.subscribe("d", 5);
    bench.run();
    let link = bench.hub().commands[0].sender.link();
    bench.hub().detach(link, None);
    bench.run();
    assert_eq!(*inbox.ended.borrow(), [None]);

    bench.setup.script = Script { refuses: Some("amqp:unauthorized-access"), ..Script::default() };
    let (inbox, _) = bench.subscribe("d", 5);
    bench.wait(Duration::from_secs(10));
    let ended = inbox.ended.borrow();
    let [Some(rejection)] = &ended[..] else { panic!("{ended:?}") };
    assert_eq!(rejection.reason, Reason::Credentials);
    bench.wait(Duration::from_secs(400));
    bench.assert_empty();
}

#[test]
fn giving_up_a_subscription_says_nothing_of_its_commands() {
    let (mut bench, inbox, serial) = subscribed(5);
    bench.hub().command(0, 1);
    bench.run();
    let ids = ids(&inbox);
    bench.fleet.unsubscribe(&id("d"), serial);
    bench.fleet.settle(&id("d"), serial, ids[0], &Outcome::Accepted);
    bench.run();
    assert_eq!(settled(&bench), []);
    assert_eq!(bench.hub().machine.links(), 2, "only those of $cbs");
    assert!(inbox.ended.borrow().is_empty());
    bench.wait(Duration::from_secs(400));
    bench.assert_empty();
}

#[test]
fn the_newest_subscription_counts() {
    let (mut bench, former, serial) = subscribed(5);
    let (inbox, _) = bench.subscribe("d", 5);
    bench.fleet.unsubscribe(&id("d"), serial);
    bench.run();
    assert_eq!(bench.hub().commands.len(), 1);
    bench.hub().command(0, 1);
    bench.run();
    assert_eq!((ids(&former).len(), ids(&inbox).len()), (0, 1));
}

#[test]
fn a_subscription_before_the_connection_is_kept_for_it() {
    let mut bench = Bench::apart(Setup::default());
    let (_inbox, first) = bench.subscribe("d", 5);
    bench.subscribe("e", 5);
    bench.fleet.unsubscribe(&id("d"), first);
    bench.connect();
    bench.run();
    let nodes: Vec<&str> = bench.hub().commands.iter().map(|command| command.node.as_str()).collect();
    assert_eq!(nodes, ["devices/e/messages/commands"]);
}

#[test]
fn a_command_that_is_settled_already_is_not_settled_again_and_waits_for_the_device_like_others() {
    let (mut bench, inbox, serial) = subscribed(2);
    for _ in 0..5 {
        assert!(bench.hub().settled_command(0, 1) && bench.hub().settled_command(0, 1));
        bench.run();
        assert!(!bench.hub().settled_command(0, 1), "the device has not taken those");
        for command in inbox.commands.take() {
            bench.fleet.settle(&id("d"), serial, command.id, &Outcome::Accepted);
        }
        bench.run();
    }
    assert_eq!(settled(&bench), []);
    // The two that the device takes, and no more, stand open still.
    assert!(bench.hub().command(0, 2) && bench.hub().command(0, 3) && !bench.hub().command(0, 4));
}

#[test]
fn there_are_so_many_devices_and_no_more() {
    let mut bench = Bench::apart(Setup::default());
    for at in 0..MAX_DEVICES {
        bench.subscribe(&format!("d{at}"), 1);
    }
    let (inbox, _) = bench.subscribe("one-more", 1);
    assert_eq!(*inbox.ended.borrow(), [None]);
    let ticket = bench.send("one-more");
    assert_eq!(bench.outcome(ticket), Some(Outcome::Released));
    let (inbox, _) = bench.subscribe("d0", 1);
    assert!(inbox.ended.borrow().is_empty());
    assert_eq!(bench.fleet.counts().devices, MAX_DEVICES);
}
