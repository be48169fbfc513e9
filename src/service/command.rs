//! Sending a command to a device, and hearing what became of it.

use std::collections::VecDeque;
use std::time::Duration;

use fe2o3_amqp::link::delivery::DeliveryInfo;
use fe2o3_amqp::types::definitions::{AmqpError as Condition, ErrorCondition};
use fe2o3_amqp::types::messaging::{ApplicationProperties, Body, Data, Message, Outcome, Properties};
use fe2o3_amqp::types::primitives::{Binary, Timestamp, Value};
use fe2o3_amqp::{Receiver, Sender};
use fieldgate_mappings::DeviceId;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::Deserialize;
use tokio::time::Instant;

use super::{
    CLOSE_TIME_OUT, Service, ServiceError, describe_attach, describe_outcome, describe_receive,
    describe_send, describe_sender_attach,
};
use crate::output::unix_millis;
use crate::sas::percent_encode;

const COMMANDS: &str = "/messages/devicebound";
const FEEDBACK: &str = "/messages/serviceBound/feedback";
/// The status of a command that its device accepted.
pub(crate) const TAKEN: &str = "Success";
/// Feedback that others wait for goes back to the hub after so long, so that they get it.
const HOLD_FOREIGN: Duration = Duration::from_secs(1);

/// A command to be sent.
#[derive(Debug, Clone)]
pub(crate) struct Command<'a> {
    /// For whom.
    pub(crate) device: &'a DeviceId,
    /// The body.
    pub(crate) text: &'a str,
    /// How long the hub keeps trying; `None` leaves that to the hub.
    pub(crate) ttl: Option<Duration>,
    /// Application properties.
    pub(crate) properties: &'a [(String, String)],
}

/// One record of a feedback message (`application/vnd.microsoft.iothub.feedback.json`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    original_message_id: String,
    pub(crate) status_code: String,
    #[serde(default)]
    pub(crate) description: String,
}

/// A command that the hub has, and whose end is not known yet.
#[derive(Debug)]
pub(crate) struct Sent {
    sender: Sender,
    feedback: Receiver,
    id: String,
}

/// Sends a command; returns when the hub has it.
///
/// # Errors
/// What the hub gave as its reason.
pub(crate) async fn send(service: &mut Service, command: Command<'_>) -> Result<Sent, ServiceError> {
    // First the ears, then the mouth: the answer may be quicker than an attach.
    let id = message_id()?;
    let feedback = Receiver::attach(&mut service.session, format!("feedback-{id}"), FEEDBACK)
        .await
        .map_err(|error| ServiceError::refused("the hub gives no feedback", describe_attach(&error)))?;
    let what = format!("the hub does not take the command for {}", command.device);
    let mut sender = Sender::attach(&mut service.session, format!("command-{id}"), COMMANDS)
        .await
        .map_err(|error| ServiceError::refused(what.as_str(), describe_sender_attach(&error)))?;
    let outcome = sender
        .send(message(&command, &id, unix_millis()))
        .await
        .map_err(|error| ServiceError::refused(what.as_str(), describe_send(&error)))?;
    if let Some(why) = describe_outcome(&outcome) {
        let help = match is_not_found(&outcome) {
            true => "\n  help: a hub on this machine registers a device when it first connects",
            false => "",
        };
        return Err(ServiceError::refused(what, why + help));
    }
    Ok(Sent { sender, feedback, id })
}

impl Sent {
    /// Waits for the record of the command.
    ///
    /// # Errors
    /// When the hub's feedback ends before that.
    pub(crate) async fn answer(mut self) -> Result<Record, ServiceError> {
        let record = answer(&mut self.feedback, &self.id).await?;
        let close = async {
            // The answer is there; a hub that is gone meanwhile changes nothing.
            let _ = self.feedback.close().await;
            let _ = self.sender.close().await;
        };
        let _ = tokio::time::timeout(CLOSE_TIME_OUT, close).await;
        Ok(record)
    }
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

fn message(command: &Command<'_>, id: &str, now_millis: i64) -> Message<Data> {
    let mut properties = Properties::builder()
        .message_id(id.to_owned())
        .to(format!("/devices/{}/messages/devicebound", percent_encode(command.device.as_str())));
    if let Some(ttl) = command.ttl {
        let ttl = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
        properties = properties.absolute_expiry_time(Timestamp::from(now_millis.saturating_add(ttl)));
    }
    let mut application = ApplicationProperties::builder();
    for (name, value) in command.properties {
        application = application.insert(name.clone(), value.clone());
    }
    Message::builder()
        .properties(properties.build())
        .application_properties(application.insert("iothub-ack", "full").build())
        .body(Data(Binary::from(command.text.as_bytes().to_vec())))
        .build()
}

/// Waits for the record of one command. Several senders share the hub's feedback: what is not ours is kept for a
/// moment, so that the next message comes, and then given back.
async fn answer(feedback: &mut Receiver, id: &str) -> Result<Record, ServiceError> {
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

    use super::*;

    fn encoded(ttl: Option<Duration>) -> Message<Data> {
        let device = DeviceId::new("pump#1").unwrap();
        let properties = [("speed".into(), "3".into())];
        let command = Command { device: &device, text: "open", ttl, properties: &properties };
        message(&command, "id-1", 1_000)
    }

    #[test]
    fn a_command_asks_for_every_feedback() {
        let message = encoded(None);
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
        let expiry = encoded(Some(Duration::from_secs(2))).properties.unwrap().absolute_expiry_time;
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
