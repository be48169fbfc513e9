//! Tokens of devices: put before anything else, a few at a time, renewed ahead of time and apart; refused for one
//! device alone.

use std::collections::HashSet;
use std::time::Duration;

use fieldgate_mappings::outcome::{Outcome, Reason};

use crate::config::Secret;
use crate::devices::SpeaksWith;
use crate::sas::SharedKey;
use crate::upstream::hubs::OwnToken;
use crate::upstream::{Hears, Patience};

use super::hub::{Cbs, Script};
use super::kit::{Bench, Roll, START, Setup, TOKEN_LIFE, id};

const ACCEPTED: Option<Outcome> = Some(Outcome::Accepted);

fn key(text: &str) -> SpeaksWith {
    SpeaksWith::DeviceKey(SharedKey::from_bytes(text.as_bytes()).expect("some bytes"))
}

/// So many devices, each with a key, named `d0` and so on.
fn keyed(devices: usize) -> Roll {
    let roster = Roll::default();
    (0..devices).for_each(|at| roster.set(&format!("d{at}"), None, key("key")));
    roster
}

fn audience(device: &str) -> String {
    format!("hub-a.example/devices/{device}")
}

fn reason(outcome: Option<Outcome>) -> Reason {
    match outcome {
        Some(Outcome::Rejected(rejection)) => rejection.reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_devices_token_is_put_before_its_links_are_attached_and_never_beside_a_policys() {
    let mut bench = Bench::ready(Setup { roster: keyed(1), ..Setup::default() });
    assert_eq!((bench.records.tokens, bench.connections()), (1, 1), "the gateway's own");
    bench.setup.script.cbs = Cbs::SaysNothing;
    let ticket = bench.send("d0");
    bench.run();
    assert_eq!(bench.records.audiences[1..], [audience("d0")]);
    assert_eq!((bench.records.attaches, bench.connections()), (0, 2));
    bench.wait(Duration::from_secs(29));
    bench.setup.script.cbs = Cbs::Accepts;
    // Not answered: asked again.
    bench.wait(Duration::from_secs(10));
    bench.accept_all();
    assert_eq!((bench.records.attaches, bench.outcome(ticket)), (1, ACCEPTED));
    let policy = bench.send("other");
    bench.accept_all();
    assert_eq!((bench.connections(), bench.outcome(policy)), (2, ACCEPTED));
}

#[test]
fn a_refused_token_is_one_devices_concern() {
    let unwanted = vec![(audience("d1"), 401)];
    let script = Script { unwanted, ..Script::default() };
    let mut bench = Bench::ready(Setup { roster: keyed(3), script, ..Setup::default() });
    let tickets = ["d0", "d1", "d2"].map(|device| bench.send(device));
    bench.accept_all();
    assert_eq!((bench.outcome(tickets[0]), bench.outcome(tickets[2])), (ACCEPTED, ACCEPTED));
    assert_eq!(reason(bench.outcome(tickets[1])), Reason::Credentials);
    // For a while the hub is not asked again.
    let asked = bench.records.tokens;
    let again = bench.send("d1");
    bench.run();
    assert_eq!((reason(bench.outcome(again)), bench.records.tokens), (Reason::Credentials, asked));
    bench.setup.script.unwanted.clear();
    bench.wait(Duration::from_secs(11));
    let later = bench.send("d1");
    bench.accept_all();
    assert_eq!(bench.outcome(later), ACCEPTED);
    assert!(bench.losses.is_empty());
}

#[test]
fn a_hub_that_has_forgotten_a_token_is_shown_it_again() {
    const FORGOTTEN: Option<&str> = Some("amqp:unauthorized-access");
    for by_session in [false, true] {
        let mut bench = Bench::ready(Setup { roster: keyed(1), token: false, ..Setup::default() });
        let (inbox, _) = bench.subscribe("d0", 1);
        let first = bench.send("d0");
        bench.accept_all();
        assert_eq!(bench.outcome(first), ACCEPTED);
        bench.wait(Duration::from_secs(60));
        let put = bench.records.tokens;
        // The policy's connection has no device.
        let hub = bench.any_hub(1).expect("one for tokens");
        let (link, session) = (hub.link(0), hub.inlets[0].session);
        // Nothing of it comes before the hub's word on the device.
        let waits = bench.send_with("d0", "other", 0, bench.patience(60, true));
        let hub = bench.any_hub(1).expect("one for tokens");
        match by_session {
            false => hub.detach(link, FORGOTTEN),
            true => hub.end(session, FORGOTTEN),
        }
        bench.accept_all();
        let again = bench.send("d0");
        bench.accept_all();
        assert_eq!((bench.outcome(again), bench.records.tokens), (ACCEPTED, put + 1));
        assert_ne!(bench.outcome(waits), None);
        let hub = bench.any_hub(1).expect("one for tokens");
        assert!(hub.command(hub.commands.len() - 1, 1));
        bench.run();
        assert_eq!((inbox.commands.borrow().len(), inbox.ended.borrow().len()), (1, 0));
        // One that it has just accepted is no excuse.
        let hub = bench.any_hub(1).expect("one for tokens");
        let session = hub.inlets.last().expect("a link").session;
        hub.end(session, FORGOTTEN);
        bench.run();
        assert_eq!((inbox.ended.borrow().len(), bench.records.tokens), (1, put + 1));
    }
}

#[test]
fn links_for_tokens_over_which_nothing_comes_give_way_to_new_ones() {
    let script = Script { cbs: Cbs::GivesNoCredit, ..Script::default() };
    let mut bench = Bench::ready(Setup { roster: keyed(2), script, token: false, ..Setup::default() });
    let tickets = ["d0", "d1"].map(|device| bench.send_with(device, "events", 0, bench.patience(200, true)));
    bench.wait(Duration::from_secs(10));
    bench.setup.script.cbs = Cbs::Accepts;
    bench.wait(Duration::from_secs(35));
    bench.accept_all();
    assert_eq!(tickets.map(|ticket| bench.outcome(ticket)), [ACCEPTED, ACCEPTED]);
    assert!(bench.losses.is_empty());
}

#[test]
fn a_token_that_is_refused_when_it_is_renewed_ends_one_session() {
    let mut bench = Bench::ready(Setup { roster: keyed(2), ..Setup::default() });
    let inboxes = ["d0", "d1"].map(|device| bench.subscribe(device, 1).0);
    bench.run();
    bench.setup.script.unwanted = vec![(audience("d1"), 401)];
    bench.wait(TOKEN_LIFE * 9 / 10);
    assert!(inboxes[0].ended.borrow().is_empty());
    let ended = inboxes[1].ended.borrow();
    let why = ended[0].as_ref().expect("a reason");
    assert_eq!(why.reason, Reason::Credentials);
    assert_eq!(bench.fleet.counts().sessions, 1);
    assert!(bench.losses.is_empty());
}

#[test]
fn tokens_are_put_thirty_at_a_time() {
    let script = Script { cbs: Cbs::SaysNothing, cbs_credit: 1000, ..Script::default() };
    let mut bench = Bench::ready(Setup { roster: keyed(100), script, token: false, ..Setup::default() });
    let tickets: Vec<u64> = (0..100).map(|at| bench.send(&format!("d{at}"))).collect();
    bench.run();
    assert_eq!(bench.records.tokens, 30);
    bench.setup.script.cbs = Cbs::Accepts;
    // What is not answered makes place for the others, and is asked for again.
    bench.wait(Duration::from_secs(50));
    bench.accept_all();
    let accepted = tickets.iter().filter(|ticket| bench.outcome(**ticket) == ACCEPTED).count();
    assert_eq!(accepted, 100);
}

#[test]
fn tokens_are_renewed_ahead_of_time_and_not_all_at_once() {
    const DEVICES: usize = 50;
    let script = Script { cbs_credit: 1000, ..Script::default() };
    let mut bench = Bench::ready(Setup { roster: keyed(DEVICES), script, token: false, ..Setup::default() });
    let inboxes: Vec<_> = (0..DEVICES).map(|at| bench.subscribe(&format!("d{at}"), 1).0).collect();
    bench.run();
    let clock = |bench: &Bench| bench.fleet.seconds_left(bench.now);
    assert_eq!((bench.records.tokens, clock(&bench)), (DEVICES, Some(TOKEN_LIFE.as_secs())));
    let mut most = 0;
    for _ in 0..100 {
        let before = bench.records.tokens;
        bench.wait(TOKEN_LIFE / 50);
        most = most.max(bench.records.tokens - before);
        // A fifth is always left.
        assert!(
            clock(&bench).is_some_and(|left| left >= TOKEN_LIFE.as_secs() / 5 - 2),
            "{:?}",
            clock(&bench)
        );
    }
    assert!(most < DEVICES / 3, "{most} of {DEVICES} in a fiftieth of their lives");
    let mut audiences = bench.records.audiences.split_off(DEVICES);
    assert!((2 * DEVICES..=3 * DEVICES).contains(&audiences.len()), "{} in two lives", audiences.len());
    audiences.truncate(DEVICES);
    assert_eq!(audiences.into_iter().collect::<HashSet<_>>().len(), DEVICES, "each once");
    assert!(inboxes.iter().all(|inbox| inbox.ended.borrow().is_empty()));
}

#[test]
fn no_message_is_refused_while_tokens_come_and_go() {
    const DEVICES: usize = 20;
    let script = Script { cbs_credit: 1000, ..Script::default() };
    let mut bench = Bench::ready(Setup { roster: keyed(DEVICES), script, ..Setup::default() });
    for round in 0..60 {
        let tickets: Vec<u64> = (0..DEVICES).map(|at| bench.send(&format!("d{at}"))).collect();
        bench.accept_all();
        for ticket in tickets {
            assert_eq!(bench.outcome(ticket), ACCEPTED, "round {round}");
        }
        bench.wait(TOKEN_LIFE / 15);
    }
}

#[test]
fn the_token_that_a_device_brings_is_passed_on_as_it_is_and_good_until_it_expires() {
    let roster = Roll::default();
    roster.set("d", None, SpeaksWith::OwnToken);
    let mut bench = Bench::ready(Setup { roster, token: false, ..Setup::default() });
    let without = bench.send("d");
    bench.run();
    assert_eq!(reason(bench.outcome(without)), Reason::Credentials);
    let token = |life: u64, host: &str| OwnToken {
        text: Secret::new(format!("as it is {life}")),
        expiry: START + life,
        host: host.into(),
    };
    bench.fleet.present(&id("d"), token(60, "hub-a.example"), bench.now);
    let with = bench.send("d");
    bench.accept_all();
    assert_eq!(bench.outcome(with), ACCEPTED);
    assert_eq!(bench.records.texts, ["as it is 60"]);
    // Once more the same: nothing to be put.
    bench.fleet.present(&id("d"), token(60, "hub-a.example"), bench.now);
    bench.wait(Duration::from_secs(50));
    bench.fleet.present(&id("d"), token(120, "hub-a.example"), bench.now);
    bench.wait(Duration::from_secs(50));
    let renewed = bench.send("d");
    bench.accept_all();
    assert_eq!((bench.outcome(renewed), bench.records.texts.len()), (ACCEPTED, 2));
    bench.wait(Duration::from_secs(25));
    assert_eq!(bench.fleet.counts().sessions, 0, "its time is over");
    let late = bench.send("d");
    bench.run();
    assert_eq!(reason(bench.outcome(late)), Reason::Credentials);
    // Where the roster names no hub, the token does.
    bench.fleet.present(&id("d"), token(1000, "hub-b.example"), bench.now);
    assert_eq!(&*bench.fleet.hub_of(&id("d")), "b");
}

#[test]
fn who_waits_for_the_hubs_word_on_a_token_hears_it_before_anything_is_sent() {
    let roster = Roll::default();
    ["d", "wrong", "late"].into_iter().for_each(|device| roster.set(device, None, SpeaksWith::OwnToken));
    let script = Script { unwanted: vec![(audience("wrong"), 401)], ..Script::default() };
    let mut bench = Bench::ready(Setup { roster, script, token: false, ..Setup::default() });
    let token =
        |text: &str| OwnToken { text: Secret::new(text), expiry: START + 600, host: "hub-a.example".into() };
    let right = bench.prove("d", token("right"));
    let wrong = bench.prove("wrong", token("wrong"));
    bench.run();
    assert_eq!(bench.outcome(right), ACCEPTED);
    assert_eq!(reason(bench.outcome(wrong)), Reason::Credentials);
    assert_eq!((bench.records.attaches, bench.records.tokens), (0, 2));
    // The same once more: known. Another one is judged like the first.
    let known = bench.prove("d", token("right"));
    let refused = bench.prove("wrong", token("wrong"));
    assert_eq!(bench.outcome(known), ACCEPTED);
    assert_eq!(reason(bench.outcome(refused)), Reason::Credentials);
    assert_eq!(bench.records.tokens, 2);
    let next = bench.prove("d", token("next"));
    assert_eq!(bench.outcome(next), None);
    bench.run();
    assert_eq!((bench.outcome(next), bench.records.tokens), (ACCEPTED, 3));
    // The hub goes before it has answered: what it says when it is back counts.
    bench.setup.script.cbs = Cbs::SaysNothing;
    let late = bench.prove("late", token("late"));
    bench.run();
    bench.disconnect();
    bench.wait(Duration::from_secs(3));
    assert_eq!(bench.outcome(late), None);
    bench.setup.script.cbs = Cbs::Accepts;
    bench.connect();
    bench.run();
    assert_eq!(bench.outcome(late), ACCEPTED);
    // Nobody stays asked when the gateway ends.
    bench.setup.script.cbs = Cbs::SaysNothing;
    let never = bench.prove("late", token("newer"));
    bench.fleet.close();
    bench.disconnect();
    assert_eq!(bench.outcome(never), Some(Outcome::Released));
}

#[test]
fn a_roster_that_has_changed_counts_at_once() {
    let roster = keyed(4);
    let mut bench = Bench::ready(Setup { roster: roster.clone(), ..Setup::default() });
    let inboxes = [0, 1, 2, 3].map(|at| bench.subscribe(&format!("d{at}"), 1).0);
    bench.run();
    let put = bench.records.tokens;
    roster.set("d0", None, key("rotated"));
    roster.disable("d1");
    roster.set("d2", Some("b"), key("key"));
    bench.fleet.review(bench.now);
    bench.run();
    // The key is another: a fresh token, and nothing is interrupted.
    assert_eq!(bench.records.audiences[put..], [audience("d0")]);
    assert!(inboxes[0].ended.borrow().is_empty());
    // Disabled: all that it had ends, with the reason.
    let ended = inboxes[1].ended.borrow_mut().pop().expect("ended");
    assert_eq!(ended.expect("a reason").reason, Reason::NotPermitted);
    let refused = bench.send("d1");
    assert_eq!(reason(bench.outcome(refused)), Reason::NotPermitted);
    // At another hub: it begins anew there.
    assert!(matches!(inboxes[2].ended.borrow()[..], [None]));
    bench.send("d2");
    bench.accept_all();
    assert_eq!(bench.records.audiences.last().map(String::as_str), Some("hub-b.example/devices/d2"));
    // Nothing was said of this one.
    assert!(inboxes[3].ended.borrow().is_empty());
}

#[test]
fn a_hub_that_nobody_has_made_is_no_way_out() {
    let roster = Roll::default();
    roster.set("d", Some("gone"), SpeaksWith::Policy);
    let mut bench = Bench::ready(Setup { roster, ..Setup::default() });
    let patience = Patience { hears: Hears::Acceptance, ..bench.patience(60, true) };
    let ticket = bench.send_with("d", "events", 0, patience);
    assert_eq!(reason(bench.outcome(ticket)), Reason::NoSuchAddress);
}

#[test]
fn a_clock_that_is_ahead_for_a_while_takes_no_token_away_that_only_the_device_can_bring_again() {
    let roster = Roll::default();
    roster.set("d", None, SpeaksWith::OwnToken);
    let mut bench = Bench::ready(Setup { roster, ..Setup::default() });
    let token = OwnToken { text: Secret::new("brought"), expiry: START + 600, host: "hub-a.example".into() };
    bench.fleet.present(&id("d"), token, bench.now);
    bench.ahead = 86_400;
    bench.wait(Duration::from_secs(60));
    bench.ahead = 0;
    bench.wait(Duration::from_secs(60));
    let ticket = bench.send("d");
    bench.accept_all();
    assert_eq!(bench.outcome(ticket), ACCEPTED);
}

#[test]
fn tokens_are_made_by_the_clock_of_now_also_where_there_was_nothing_to_be_kept_for_long() {
    const SET: u64 = 5000;
    let mut bench = Bench::ready(Setup { roster: keyed(1), token: false, ..Setup::default() });
    bench.ahead = SET;
    let ticket = bench.send("d0");
    bench.accept_all();
    assert_eq!(bench.outcome(ticket), ACCEPTED);
    let expiry = format!("se={}", START + SET + TOKEN_LIFE.as_secs());
    assert!(bench.records.texts[0].contains(&expiry), "{} is not {expiry}", bench.records.texts[0]);
}
