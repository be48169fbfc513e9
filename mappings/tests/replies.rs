//! Every outcome in every protocol, as one table: what a device is told.

use std::time::Duration;

use fieldgate_mappings::mqtt::{OnRejected, Reply3, Reply5};
use fieldgate_mappings::{Outcome, Reason, Rejection, coap, http, mqtt};

const DEFAULT_WAIT: Duration = Duration::from_secs(7);
const SAID_WAIT: Duration = Duration::from_secs(30);

/// What each protocol answers to one outcome.
struct Row {
    outcome: Outcome,
    mqtt_3: Reply3,
    mqtt_3_closing: Reply3,
    mqtt_5: Reply5,
    coap: (u8, u8),
    max_age: Option<Duration>,
    http: u16,
    retry_after: Option<Duration>,
    connack: (u8, u8),
    suback_5: Option<u8>,
}

fn rejected(reason: Reason) -> Outcome {
    Outcome::Rejected(Rejection::new(reason, "a sentence"))
}

fn row(
    outcome: Outcome,
    mqtt_3: Reply3,
    mqtt_5: Reply5,
    coap: (u8, u8),
    http: u16,
    connack: (u8, u8),
) -> Row {
    let suback_5 = None;
    Row {
        outcome,
        mqtt_3,
        mqtt_3_closing: mqtt_3,
        mqtt_5,
        coap,
        max_age: None,
        http,
        retry_after: None,
        connack,
        suback_5,
    }
}

fn refused(
    reason: Reason,
    mqtt_5: Reply5,
    coap: (u8, u8),
    http: u16,
    connack: (u8, u8),
    suback_5: u8,
) -> Row {
    let row = row(rejected(reason), Reply3::AcknowledgeAndDeadLetter, mqtt_5, coap, http, connack);
    Row { mqtt_3_closing: Reply3::Close, suback_5: Some(suback_5), ..row }
}

fn waiting(row: Row, wait: Duration) -> Row {
    Row { max_age: Some(wait), retry_after: Some(wait), ..row }
}

fn table() -> Vec<Row> {
    use Reply5::{Acknowledge, Disconnect, Pause};
    let quota = |retry_after| {
        refused(Reason::Quota { retry_after }, Acknowledge(0x97), (4, 29), 429, (3, 0x97), 0x97)
    };
    // What nobody has is never acknowledged, whatever is done about refusals.
    let unkept = |reason, http, connack, suback| Row {
        mqtt_3: Reply3::Pause,
        mqtt_3_closing: Reply3::Pause,
        ..refused(reason, Acknowledge(0x97), (5, 3), http, connack, suback)
    };
    let full = |retry_after| unkept(Reason::Full { retry_after }, 507, (3, 0x97), 0x97);
    let disk = |retry_after| unkept(Reason::Disk { retry_after }, 503, (3, 0x88), 0x83);
    let credentials = rejected(Reason::Credentials);
    let unauthorized = row(credentials, Reply3::Close, Disconnect(0x87), (4, 1), 401, (5, 0x86));
    vec![
        row(Outcome::Accepted, Reply3::Acknowledge, Acknowledge(0), (2, 4), 204, (0, 0)),
        Row { suback_5: Some(0x87), ..unauthorized },
        refused(Reason::NotPermitted, Acknowledge(0x87), (4, 3), 403, (5, 0x87), 0x87),
        refused(Reason::NoSuchAddress, Acknowledge(0x90), (4, 4), 404, (5, 0x87), 0x8f),
        refused(Reason::TooLarge, Disconnect(0x95), (4, 13), 413, (3, 0x95), 0x83),
        waiting(quota(None), DEFAULT_WAIT),
        waiting(quota(Some(SAID_WAIT)), SAID_WAIT),
        waiting(full(None), DEFAULT_WAIT),
        waiting(full(Some(SAID_WAIT)), SAID_WAIT),
        waiting(disk(None), DEFAULT_WAIT),
        waiting(disk(Some(SAID_WAIT)), SAID_WAIT),
        refused(Reason::Content, Acknowledge(0x99), (4, 0), 400, (2, 0x85), 0x8f),
        waiting(row(Outcome::Released, Reply3::Pause, Pause, (5, 3), 503, (3, 0x88)), DEFAULT_WAIT),
        row(Outcome::Unknown, Reply3::Close, Disconnect(0x89), (5, 4), 504, (3, 0x89)),
    ]
}

#[test]
fn every_outcome_has_its_answer_in_every_protocol() {
    for row in table() {
        let outcome = &row.outcome;
        assert_eq!(mqtt::reply_3(outcome, OnRejected::DeadLetter), row.mqtt_3, "{outcome:?}");
        assert_eq!(mqtt::reply_3(outcome, OnRejected::Close), row.mqtt_3_closing, "{outcome:?}");
        assert_eq!(mqtt::reply_5(outcome), row.mqtt_5, "{outcome:?}");
        assert_eq!((mqtt::connack_3(outcome), mqtt::connack_5(outcome)), row.connack, "{outcome:?}");
        if let Outcome::Rejected(rejection) = outcome {
            assert_eq!(Some(mqtt::suback_5(&rejection.reason)), row.suback_5, "{outcome:?}");
        }
        let coap = coap::reply(outcome, DEFAULT_WAIT);
        assert_eq!((coap.code >> 5, coap.code & 31), row.coap, "{outcome:?}");
        assert_eq!(coap.max_age, row.max_age, "{outcome:?}");
        assert_eq!(coap.diagnostic.is_empty(), *outcome == Outcome::Accepted, "{outcome:?}");
        let http = http::reply(outcome, DEFAULT_WAIT);
        assert_eq!(http.status.as_u16(), row.http, "{outcome:?}");
        assert_eq!(http.retry_after, row.retry_after, "{outcome:?}");
        assert_eq!(http.problem.is_none(), *outcome == Outcome::Accepted, "{outcome:?}");
        // RFC 9110 15.5.2: a 401 always has a challenge, and nothing else does.
        assert_eq!(http.challenge.is_some(), row.http == 401, "{outcome:?}");
    }
}

#[test]
fn what_nobody_has_is_lost_unless_it_is_sent_again() {
    for row in table() {
        if let Outcome::Rejected(rejection) = &row.outcome {
            let kept_nowhere = row.mqtt_3 == Reply3::Pause;
            assert_eq!(rejection.reason.loses_the_message(), kept_nowhere, "{:?}", row.outcome);
        }
    }
}

#[test]
fn only_acceptance_sounds_like_success() {
    for row in table().into_iter().filter(|row| row.outcome != Outcome::Accepted) {
        assert_ne!(row.mqtt_3, Reply3::Acknowledge);
        assert_ne!(row.mqtt_3_closing, Reply3::Acknowledge);
        assert!(!matches!(row.mqtt_5, Reply5::Acknowledge(0..0x80)));
        assert!(row.coap.0 >= 4 && row.http >= 400);
        assert!(row.connack.0 != 0 && row.connack.1 >= 0x80);
    }
}

#[test]
fn the_device_reads_what_the_hub_said() {
    let outcome = rejected(Reason::Content);
    assert_eq!(coap::reply(&outcome, DEFAULT_WAIT).diagnostic, "a sentence");
    assert_eq!(http::reply(&outcome, DEFAULT_WAIT).problem, Some(("content", "a sentence".into())));
}

#[test]
fn a_command_is_accepted_by_a_success_of_the_device_alone() {
    for reason in [0x00, 0x10, 0x7f] {
        assert_eq!(mqtt::puback(reason), Outcome::Accepted, "{reason:#x}");
    }
    for (code, expected) in [
        (0x80, Reason::Content),
        (0x87, Reason::NotPermitted),
        (0x90, Reason::NoSuchAddress),
        (0x97, Reason::Quota { retry_after: None }),
        (0x99, Reason::Content),
        (0xff, Reason::Content),
    ] {
        let Outcome::Rejected(Rejection { reason, description }) = mqtt::puback(code) else {
            panic!("{code:#x} is a refusal");
        };
        assert_eq!(reason, expected, "{code:#x}");
        assert!(description.contains(&format!("{code:#x}")), "{description}");
    }
}
