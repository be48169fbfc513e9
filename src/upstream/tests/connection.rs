//! The connection: token, outages, a hub that falls silent, channels, the end.

use std::time::Duration;

use fieldgate_amqp::connection::ConnectionConfig;
use fieldgate_amqp::performative::ACCEPTED;
use fieldgate_mappings::outcome::Outcome;

use super::hub::{Cbs, Script};
use super::kit::{Bench, Setup, TOKEN_LIFE};

const ACCEPTED_OUTCOME: Option<Outcome> = Some(Outcome::Accepted);

#[test]
fn the_token_is_put_again_before_it_expires() {
    let mut bench = Bench::ready(Setup::default());
    assert_eq!(bench.records.tokens, 1);
    bench.wait(TOKEN_LIFE * 3 / 4);
    assert_eq!(bench.records.tokens, 1);
    bench.wait(TOKEN_LIFE * 2);
    // At four fifths of each life.
    assert_eq!(bench.records.tokens, 4);
    bench.setup.script.cbs = Cbs::Refuses;
    bench.wait(TOKEN_LIFE);
    assert_eq!(bench.losses.len(), 1);
    assert!(bench.losses[0].contains("refused the gateway's token"), "{:?}", bench.losses);
}

#[test]
fn a_renewal_that_the_hub_cannot_judge_is_tried_again_as_long_as_the_former_token_is_good() {
    let mut bench = Bench::ready(Setup::default());
    let (inbox, _) = bench.subscribe("d", 1);
    bench.run();
    let cannot_judge = vec![(String::from("hub"), 503)];
    bench.setup.script.unwanted = cannot_judge.clone();
    bench.wait(TOKEN_LIFE * 9 / 10);
    assert!(bench.losses.is_empty(), "{:?}", bench.losses);
    let tries = bench.records.tokens;
    assert!((10..=30).contains(&tries), "{tries} tries");
    let left = |bench: &Bench| bench.fleet.own_seconds_left(bench.now);
    assert_eq!(left(&bench), Some(TOKEN_LIFE.as_secs() / 10), "that of the token that is good");
    // Nor is silence a reason to go, nor is it forgotten meanwhile when the former expires.
    bench.setup.script.cbs = Cbs::SaysNothing;
    bench.wait(Duration::from_secs(10));
    assert_eq!(left(&bench), Some(TOKEN_LIFE.as_secs() / 10 - 10));
    bench.setup.script.cbs = Cbs::Accepts;
    bench.setup.script.unwanted.clear();
    bench.wait(Duration::from_secs(45));
    assert!(left(&bench).is_some_and(|left| left > TOKEN_LIFE.as_secs() * 9 / 10), "{:?}", left(&bench));
    let ticket = bench.send("d");
    bench.accept_all();
    assert_eq!(bench.outcome(ticket), ACCEPTED_OUTCOME);
    assert!(bench.losses.is_empty() && inbox.ended.borrow().is_empty());
    // Not for ever.
    bench.setup.script.unwanted = cannot_judge;
    bench.wait(TOKEN_LIFE);
    assert_eq!(bench.losses.len(), 1);
    assert!(bench.losses[0].contains("refused the gateway's token: 503"), "{:?}", bench.losses);
}

#[test]
fn without_a_token_the_connection_is_of_no_use() {
    for (cbs, within) in [(Cbs::Refuses, 0), (Cbs::GivesNoCredit, 20), (Cbs::SaysNothing, 20)] {
        let script = Script { cbs, ..Script::default() };
        let mut bench = Bench::apart(Setup { script, ..Setup::default() });
        let ticket = bench.send_with("d", "events", 0, bench.patience(30, true));
        bench.connect();
        bench.wait(Duration::from_secs(within));
        assert_eq!(bench.losses.len(), 1, "{cbs:?}");
        assert!(!bench.is_ready());
        assert_eq!((bench.records.attaches, bench.outcome(ticket)), (0, None));
    }
}

#[test]
fn what_is_meant_to_waits_through_an_outage_and_goes_first() {
    let mut bench =
        Bench::ready(Setup { script: Script { credit: 1, ..Script::default() }, ..Setup::default() });
    let sent = bench.send("d");
    let impatient = bench.send_with("d", "events", 0, bench.patience(60, false));
    let patient = bench.send("d");
    bench.run();
    bench.disconnect();
    assert_eq!(bench.outcome(sent), Some(Outcome::Unknown));
    assert_eq!(bench.outcome(impatient), Some(Outcome::Released));
    let late = bench.send_with("d", "events", 0, bench.patience(60, false));
    assert_eq!(bench.outcome(late), Some(Outcome::Released));
    let next = bench.send("d");
    bench.wait(Duration::from_secs(5));
    bench.setup.script.credit = 10;
    bench.connect();
    bench.run();
    let last = bench.send("d");
    bench.accept_all();
    assert_eq!(bench.received(), [sent, patient, next, last]);
    assert_eq!([patient, next, last].map(|ticket| bench.outcome(ticket)), [ACCEPTED_OUTCOME; 3]);
}

#[test]
fn what_waited_through_an_outage_and_nobody_wants_any_more_is_not_sent() {
    let mut bench =
        Bench::ready(Setup { script: Script { credit: 1, ..Script::default() }, ..Setup::default() });
    let sent = bench.send("d");
    bench.run();
    bench.disconnect();
    let [deserted, wanted, last] = [(); 3].map(|()| bench.send("d"));
    bench.ledger.desert(deserted);
    bench.ledger.desert(last);
    assert_eq!(bench.outcome(deserted), None);
    bench.setup.script.credit = 10;
    bench.connect();
    bench.accept_all();
    assert_eq!(bench.received(), [sent, wanted]);
    assert_eq!(
        [deserted, last].map(|ticket| bench.outcome(ticket)),
        [Some(Outcome::Released), Some(Outcome::Released)]
    );
    assert_eq!(bench.outcome(wanted), ACCEPTED_OUTCOME);
    bench.wait(Duration::from_secs(350));
    bench.assert_empty();
}

#[test]
fn at_the_start_everybody_waits_for_the_first_attempt() {
    let mut bench = Bench::apart(Setup::default());
    let ticket = bench.send_with("d", "events", 0, bench.patience(60, false));
    assert_eq!(bench.outcome(ticket), None);
    bench.disconnect();
    assert_eq!(bench.outcome(ticket), Some(Outcome::Released));
}

#[test]
fn a_hub_that_does_not_answer_for_a_message_loses_the_devices_session() {
    let mut bench =
        Bench::ready(Setup { script: Script { credit: 1, ..Script::default() }, ..Setup::default() });
    let (sent, waits) = (bench.send("d"), bench.send("d"));
    let other = bench.send("e");
    bench.run();
    let at = bench.hub().pending.iter().position(|pending| pending.ticket == other).expect("received");
    bench.hub().judge(at, Some(ACCEPTED), true);
    bench.wait(Duration::from_secs(29));
    assert_eq!(bench.outcome(sent), None);
    bench.wait(Duration::from_secs(3));
    assert_eq!(bench.outcome(sent), Some(Outcome::Unknown));
    // On a new session, without being asked for again.
    bench.accept_all();
    assert_eq!((bench.outcome(waits), bench.outcome(other)), (ACCEPTED_OUTCOME, ACCEPTED_OUTCOME));
    assert!(bench.losses.is_empty());
}

#[test]
fn a_hub_that_does_not_even_end_a_session_is_left() {
    let mut bench = Bench::ready(Setup::default());
    let ticket = bench.send("d");
    bench.run();
    bench.deaf = true;
    bench.wait(Duration::from_secs(59));
    assert_eq!((bench.outcome(ticket), bench.losses.len()), (Some(Outcome::Unknown), 0));
    bench.wait(Duration::from_secs(5));
    assert_eq!(bench.losses.len(), 1);
    bench.wait(Duration::from_secs(2));
    bench.assert_empty();
}

#[test]
fn more_devices_than_channels_take_turns() {
    let hub = ConnectionConfig { channel_max: 2, ..Setup::default().hub };
    let mut bench = Bench::ready(Setup { hub, ..Setup::default() });
    // Three channels, and one of them is that of $cbs.
    let tickets: Vec<u64> = (0..20).map(|at| bench.send(&format!("d{at}"))).collect();
    bench.accept_all();
    for _ in 0..20 {
        bench.wait(Duration::from_secs(1));
        bench.accept_all();
    }
    for ticket in tickets {
        assert_eq!(bench.outcome(ticket), ACCEPTED_OUTCOME, "message {ticket}");
    }
    // Who comes when all channels are held, but idle, does not wait for the clock.
    let ticket = bench.send("another");
    bench.accept_all();
    assert_eq!(bench.outcome(ticket), ACCEPTED_OUTCOME);
    assert!(bench.losses.is_empty());
    bench.wait(Duration::from_secs(400));
    bench.assert_empty();
}

#[test]
fn channels_that_are_in_use_are_not_taken_away() {
    let hub = ConnectionConfig { channel_max: 1, ..Setup::default().hub };
    let mut bench = Bench::ready(Setup { hub, ..Setup::default() });
    let (inbox, _) = bench.subscribe("listens", 1);
    bench.run();
    let ticket = bench.send_with("d", "events", 0, bench.patience(5, true));
    bench.wait(Duration::from_secs(10));
    assert_eq!(bench.outcome(ticket), Some(Outcome::Released));
    assert!(inbox.ended.borrow().is_empty());
    assert_eq!(bench.hub().commands.len(), 1);
}

#[test]
fn the_end_waits_for_what_is_in_flight_and_for_nothing_else() {
    let mut bench =
        Bench::ready(Setup { script: Script { credit: 1, ..Script::default() }, ..Setup::default() });
    let (sent, waits) = (bench.send("d"), bench.send("d"));
    bench.run();
    bench.fleet.close();
    assert_eq!(bench.outcome(waits), Some(Outcome::Released));
    let refused = bench.send("d");
    assert_eq!(bench.outcome(refused), Some(Outcome::Released));
    bench.run();
    assert!(bench.losses.is_empty(), "one is not answered");
    bench.hub().judge(0, Some(ACCEPTED), true);
    bench.run();
    assert_eq!(bench.outcome(sent), ACCEPTED_OUTCOME);
    assert_eq!(bench.losses, ["we closed the connection"]);
    bench.wait(Duration::from_secs(2));
    bench.assert_empty();
}

#[test]
fn the_end_does_not_wait_for_ever() {
    let mut bench = Bench::ready(Setup::default());
    let ticket = bench.send("d");
    bench.run();
    bench.fleet.close();
    bench.wait(Duration::from_secs(40));
    assert_eq!(bench.outcome(ticket), Some(Outcome::Unknown));
    assert_eq!(bench.losses, ["we closed the connection"]);
}

#[test]
fn a_hub_may_begin_nothing_here() {
    let mut bench = Bench::ready(Setup::default());
    let ticket = bench.send("d");
    bench.run();
    let hub = bench.hub();
    hub.machine.begin().expect("a channel");
    bench.accept_all();
    assert_eq!(bench.hub().machine.sessions(), 2, "that of $cbs and that of the device");
    assert_eq!(bench.outcome(ticket), ACCEPTED_OUTCOME);
}
