//! What devices send is in the log when it is accepted.

use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::types::messaging::{ApplicationProperties, Body, Message, Outcome, Properties};
use fe2o3_amqp::types::primitives::{SimpleValue, Value};

use super::peer::{TestHub, annotation, body, data, within};

const EVENTS: &str = "devices/pump-1/messages/events";
const LOG: &str = "messages/events/ConsumerGroups/$Default/Partitions/0";

#[tokio::test]
async fn a_message_is_read_as_it_was_sent_and_stamped() {
    within(async {
        let hub = TestHub::start("");
        let mut device = hub.device("pump-1").await;
        let mut sender = device.sender(EVENTS).await;
        let message = Message::builder()
            .properties(
                Properties::builder()
                    .message_id(String::from("m-1"))
                    .content_type("application/json")
                    .build(),
            )
            .application_properties(ApplicationProperties::builder().insert("alert", "yes").build())
            .body(data(*b"{\"t\":21}").body)
            .build();
        assert!(sender.send(message).await.unwrap().is_accepted());

        let mut service = hub.service().await;
        let mut reader = service.receiver(LOG).await;
        let event = reader.recv::<Body<Value>>().await.unwrap();
        assert_eq!(body(&event), b"{\"t\":21}");
        let properties = event.message().properties.as_ref().unwrap();
        assert_eq!(properties.message_id, Some(String::from("m-1").into()));
        assert_eq!(properties.content_type.as_ref().unwrap().as_str(), "application/json");
        let application = event.message().application_properties.as_ref().unwrap();
        assert_eq!(application.get("alert"), Some(&SimpleValue::String("yes".into())));
        assert_eq!(annotation(&event, "x-opt-sequence-number"), Some(Value::Long(0)));
        assert_eq!(annotation(&event, "x-opt-offset"), Some(Value::String("0".into())));
        assert_eq!(annotation(&event, "iothub-connection-device-id"), Some(Value::String("pump-1".into())));
        assert!(matches!(annotation(&event, "iothub-enqueuedtime"), Some(Value::Timestamp(_))));
        reader.accept(&event).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn many_and_large_messages_arrive_in_order() {
    within(async {
        let hub = TestHub::start("");
        let mut device = hub.device("pump-1").await;
        let mut sender = device.sender(EVENTS).await;
        let mut service = hub.service().await;
        // It reads while the device sends.
        let mut reader = service.receiver(LOG).await;
        let mut sent = Vec::new();
        for index in 0..500_u32 {
            let size = if index % 50 == 0 { 250_000 } else { 20 };
            let mut body = index.to_be_bytes().to_vec();
            body.resize(size, 7);
            sent.push(sender.send_batchable(data(body)).await.unwrap());
        }
        for outcome in sent {
            assert!(outcome.await.unwrap().is_accepted());
        }
        for index in 0..500_u32 {
            let event = reader.recv::<Body<Value>>().await.unwrap();
            let body = body(&event);
            assert_eq!(body[..4], index.to_be_bytes());
            assert_eq!(body.len(), if index % 50 == 0 { 250_000 } else { 20 });
            reader.accept(&event).await.unwrap();
        }
    })
    .await;
}

#[tokio::test]
async fn a_message_that_is_too_large_is_rejected_and_the_next_one_taken() {
    within(async {
        let hub = TestHub::start("");
        let mut device = hub.device("pump-1").await;
        let mut sender = device.sender(EVENTS).await;
        match sender.send(data(vec![0; 270_000])).await.unwrap() {
            Outcome::Rejected(rejected) => {
                let error = format!("{:?}", rejected.error.unwrap());
                assert!(error.contains("262144"), "{error}");
            }
            other => panic!("{other:?}"),
        }
        assert!(sender.send(data(*b"small")).await.unwrap().is_accepted());
    })
    .await;
}

#[tokio::test]
async fn plain_devices_and_services() {
    within(async {
        let hub = TestHub::start("");
        let plain = |user: &str, token: String| SaslProfile::Plain { username: user.into(), password: token };
        let mut device = hub.connect(plain("pump-1@sas.localhost", hub.device_token("pump-1"))).await;
        let mut sender = device.sender(EVENTS).await;
        assert!(sender.send(data(*b"x")).await.unwrap().is_accepted());
        let mut service = hub.connect(plain("iothubowner@sas.root.localhost", hub.owner_token())).await;
        let mut reader = service.receiver(LOG).await;
        assert_eq!(body(&reader.recv::<Body<Value>>().await.unwrap()), b"x");
    })
    .await;
}
