//! Commands: sent, taken or refused, and what the sender hears.

use fe2o3_amqp::types::messaging::{ApplicationProperties, Body, Data, Message, Outcome, Properties};
use fe2o3_amqp::types::primitives::Value;

use super::peer::{TestHub, annotation, body, data, within};

const SEND: &str = "/messages/devicebound";
const FEEDBACK: &str = "/messages/serviceBound/feedback";
const BOUND: &str = "/devices/pump-1/messages/deviceBound";

fn command(id: &str, to: &str) -> Message<Data> {
    Message::builder()
        .properties(Properties::builder().message_id(id.to_owned()).to(to).build())
        .application_properties(ApplicationProperties::builder().insert("iothub-ack", "full").build())
        .body(data(*b"open").body)
        .build()
}

#[tokio::test]
async fn a_command_is_taken_and_its_sender_hears_of_it() {
    within(async {
        let hub = TestHub::start("");
        let mut device = hub.device("pump-1").await;
        let mut bound = device.receiver(BOUND).await;
        let mut service = hub.service().await;
        let mut feedback = service.receiver(FEEDBACK).await;
        let mut sender = service.sender(SEND).await;
        for (id, status) in [("m-1", "Success"), ("m-2", "Rejected")] {
            let to = "/devices/pump-1/messages/devicebound";
            assert!(sender.send(command(id, to)).await.unwrap().is_accepted());
            let got = bound.recv::<Body<Value>>().await.unwrap();
            assert_eq!(body(&got), b"open");
            assert_eq!(annotation(&got, "iothub-deliverycount"), Some(Value::Ubyte(0)));
            assert_eq!(got.delivery_tag().len(), 16);
            if status == "Success" {
                bound.accept(&got).await.unwrap();
            } else {
                bound.reject(&got, None).await.unwrap();
            }
            let heard = feedback.recv::<Body<Value>>().await.unwrap();
            let records: serde_json::Value = serde_json::from_slice(&body(&heard)).unwrap();
            assert_eq!(records[0]["originalMessageId"], id);
            assert_eq!(records[0]["statusCode"], status);
            assert_eq!(records[0]["deviceId"], "pump-1");
            let content_type = heard.message().properties.as_ref().unwrap().content_type.as_ref().unwrap();
            assert_eq!(content_type.as_str(), "application/vnd.microsoft.iothub.feedback.json");
            feedback.accept(&heard).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn a_command_for_nobody_is_rejected() {
    within(async {
        let hub = TestHub::start("");
        let mut service = hub.service().await;
        let mut sender = service.sender(SEND).await;
        match sender.send(command("m", "/devices/nobody/messages/devicebound")).await.unwrap() {
            Outcome::Rejected(rejected) => {
                assert!(format!("{:?}", rejected.error.unwrap()).contains("nobody"));
            }
            other => panic!("{other:?}"),
        }
    })
    .await;
}

#[tokio::test]
async fn a_released_command_comes_back_and_is_counted() {
    within(async {
        let hub = TestHub::start("");
        let mut device = hub.device("pump-1").await;
        let mut bound = device.receiver(BOUND).await;
        let mut service = hub.service().await;
        let mut sender = service.sender(SEND).await;
        assert!(sender.send(command("m", "/devices/pump-1")).await.unwrap().is_accepted());
        for count in 0..3 {
            let got = bound.recv::<Body<Value>>().await.unwrap();
            assert_eq!(annotation(&got, "iothub-deliverycount"), Some(Value::Ubyte(count)));
            bound.release(&got).await.unwrap();
        }
        let got = bound.recv::<Body<Value>>().await.unwrap();
        bound.accept(&got).await.unwrap();
    })
    .await;
}
