//! `fieldgate hub send`: a command for a device, and what becomes of it.

use std::collections::VecDeque;
use std::time::Duration;

use fe2o3_amqp::link::delivery::DeliveryInfo;
use fe2o3_amqp::types::definitions::{AmqpError as Condition, ErrorCondition};
use fe2o3_amqp::types::messaging::{ApplicationProperties, Body, Data, Message, Outcome, Properties};
use fe2o3_amqp::types::primitives::{Binary, Timestamp, Value};
use fe2o3_amqp::{Receiver, Sender};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::Deserialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use super::output::{complain, harmless, say, unix_millis};
use super::service::{
    Service, ServiceError, describe_attach, describe_outcome, describe_receive, describe_send,
    describe_sender_attach,
};
use super::{CliError, Send};
use crate::sas::percent_encode;
use crate::state::StateDir;

const COMMANDS: &str = "/messages/devicebound";
const FEEDBACK: &str = "/messages/serviceBound/feedback";
const TAKEN: &str = "Success";
/// Feedback that others wait for goes back to the hub after so long, so that they get it.
const HOLD_FOREIGN: Duration = Duration::from_secs(1);

/// One record of a feedback message (`application/vnd.microsoft.iothub.feedback.json`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    original_message_id: String,
    pub(super) status_code: String,
    #[serde(default)]
    description: String,
}

/// Sends, waits, prints.
pub(super) fn run(state: &StateDir, send: &Send) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let record = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut service = Service::connect(state).await?;
        let record = tokio::select! {
            record = ask(&mut service, send) => record.map(Some),
            _ = interrupt.recv() => Ok(None),
        };
        service.close().await;
        record
    })?;
    let Some(record) = record else {
        complain(
            "not waiting any longer; the command stays with the hub until the device takes it or its time is over",
        );
        return Err(CliError::No);
    };
    let (status, device) = (harmless(&record.status_code), &send.device);
    say(&match record.status_code.as_str() {
        TAKEN => format!("{status}: {device} took the command"),
        "Rejected" => format!("{status}: {device} refused the command"),
        "Expired" => format!("{status}: {device} did not take the command in time"),
        "DeliveryCountExceeded" => format!("{status}: {device} gave the command back too often"),
        "Purged" => format!("{status}: the command was removed before {device} took it"),
        _ => format!("{status}: {}", harmless(&record.description)),
    })?;
    if record.status_code == TAKEN { Ok(()) } else { Err(CliError::No) }
}

/// Sends the command and waits for its record.
pub(super) async fn ask(service: &mut Service, send: &Send) -> Result<Record, ServiceError> {
    // First the ears, then the mouth: the answer may be quicker than an attach.
    let feedback = Receiver::attach(&mut service.session, "send-feedback", FEEDBACK)
        .await
        .map_err(|error| ServiceError::refused("the hub gives no feedback", describe_attach(&error)))?;
    let what = format!("the hub does not take the command for {}", send.device);
    let mut sender = Sender::attach(&mut service.session, "send-commands", COMMANDS)
        .await
        .map_err(|error| ServiceError::refused(what.as_str(), describe_sender_attach(&error)))?;
    let id = message_id()?;
    let outcome = sender
        .send(command(send, &id, unix_millis()))
        .await
        .map_err(|error| ServiceError::refused(what.as_str(), describe_send(&error)))?;
    if let Some(why) = describe_outcome(&outcome) {
        let help = match is_not_found(&outcome) {
            true => "\n  help: a hub on this machine registers a device when it first connects",
            false => "",
        };
        return Err(ServiceError::refused(what, why + help));
    }
    complain(&format!(
        "the hub has it; waiting for {} (Ctrl-C ends the waiting, not the command)",
        send.device
    ));
    answer(feedback, &id).await
}

fn is_not_found(outcome: &Outcome) -> bool {
    let not_found = ErrorCondition::AmqpError(Condition::NotFound);
    matches!(outcome, Outcome::Rejected(rejected) if rejected.error.as_ref().is_some_and(|error| error.condition == not_found))
}

fn message_id() -> Result<String, ServiceError> {
    let mut bytes = [0; 16];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| std::io::Error::other("the system gives no random bytes"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn command(send: &Send, id: &str, now_millis: i64) -> Message<Data> {
    let mut properties = Properties::builder()
        .message_id(id.to_owned())
        .to(format!("/devices/{}/messages/devicebound", percent_encode(send.device.as_str())));
    if let Some(ttl) = send.ttl {
        let ttl = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
        properties = properties.absolute_expiry_time(Timestamp::from(now_millis.saturating_add(ttl)));
    }
    let mut application = ApplicationProperties::builder();
    for (name, value) in &send.properties {
        application = application.insert(name.clone(), value.clone());
    }
    Message::builder()
        .properties(properties.build())
        .application_properties(application.insert("iothub-ack", "full").build())
        .body(Data(Binary::from(send.text.clone().into_bytes())))
        .build()
}

/// Waits for the record of one command. Several senders share the hub's feedback: what is not ours is kept for a
/// moment, so that the next message comes, and then given back.
async fn answer(mut feedback: Receiver, id: &str) -> Result<Record, ServiceError> {
    let lost = |why: String| ServiceError::refused("the hub's feedback ended", why);
    let mut foreign: VecDeque<(Instant, DeliveryInfo)> = VecDeque::new();
    loop {
        let due = foreign.front().map(|(since, _)| *since + HOLD_FOREIGN);
        let give_back = async {
            match due {
                Some(due) => tokio::time::sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        let delivery = tokio::select! {
            delivery = feedback.recv::<Body<Value>>() => delivery.map_err(|error| lost(describe_receive(&error)))?,
            () = give_back => {
                if let Some((_, delivery)) = foreign.pop_front() {
                    feedback.release(delivery).await.map_err(|error| lost(error.to_string()))?;
                }
                continue;
            }
        };
        let found = find(delivery.body(), id);
        if let Some(record) = found {
            feedback.accept(&delivery).await.map_err(|error| lost(error.to_string()))?;
            return Ok(record);
        }
        foreign.push_back((Instant::now(), DeliveryInfo::from(delivery)));
    }
}

fn find(body: &Body<Value>, id: &str) -> Option<Record> {
    let bytes: Vec<u8> = body.try_as_data().ok()?.flat_map(|part| part.iter().copied()).collect();
    let records: Vec<Record> = serde_json::from_slice(&bytes).ok()?;
    records.into_iter().find(|record| record.original_message_id == id)
}

#[cfg(test)]
mod tests {
    use fe2o3_amqp::types::messaging::{Batch, MessageId};
    use fe2o3_amqp::types::primitives::SimpleValue;
    use fieldgate_mappings::DeviceId;

    use super::*;

    fn send() -> Send {
        Send {
            device: DeviceId::new("pump#1").unwrap(),
            text: "open".into(),
            ttl: None,
            properties: vec![("speed".into(), "3".into())],
        }
    }

    #[test]
    fn a_command_asks_for_every_feedback() {
        let message = command(&send(), "id-1", 1_000);
        let properties = message.properties.unwrap();
        assert_eq!(properties.message_id, Some(MessageId::String("id-1".into())));
        assert_eq!(properties.to.as_deref(), Some("/devices/pump%231/messages/devicebound"));
        assert_eq!(properties.absolute_expiry_time, None);
        let application = message.application_properties.unwrap();
        assert_eq!(application.get("iothub-ack"), Some(&SimpleValue::String("full".into())));
        assert_eq!(application.get("speed"), Some(&SimpleValue::String("3".into())));
        assert_eq!(message.body.0.as_slice(), b"open");
    }

    #[test]
    fn a_command_expires_when_it_is_told_to() {
        let send = Send { ttl: Some(Duration::from_secs(2)), ..send() };
        let expiry = command(&send, "id", 1_000).properties.unwrap().absolute_expiry_time;
        assert_eq!(expiry, Some(Timestamp::from(3_000)));
    }

    #[test]
    fn an_answer_is_found_among_others() {
        let body = |text: &str| Body::Data(Batch::new(vec![Data(Binary::from(text.as_bytes().to_vec()))]));
        let text = r#"[{"originalMessageId":"a","statusCode":"Rejected","deviceId":"d"},
            {"originalMessageId":"b","statusCode":"Success","description":"Success"}]"#;
        assert_eq!(find(&body(text), "b").unwrap().status_code, "Success");
        assert_eq!(find(&body(text), "a").unwrap().status_code, "Rejected");
        assert_eq!(find(&body(text), "c"), None);
        assert_eq!(find(&body("{"), "a"), None);
        assert_eq!(find(&Body::Empty, "a"), None);
    }

    #[test]
    fn every_command_has_an_id_of_its_own() {
        let (one, other) = (message_id().unwrap(), message_id().unwrap());
        assert_eq!(one.len(), 32);
        assert_ne!(one, other);
    }
}
