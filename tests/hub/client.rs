//! A client of the other implementation (`fe2o3-amqp`), with one session, on any stream.

use fe2o3_amqp::connection::ConnectionHandle;
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::messaging::annotations::OwnedKey;
use fe2o3_amqp::types::messaging::{
    AmqpValue, ApplicationProperties, Body, Data, Message, MessageId, Properties,
};
use fe2o3_amqp::types::primitives::{Binary, SimpleValue, Value};
use fe2o3_amqp::{Connection, Delivery, Receiver, Sender, Session};
use tokio::io::{AsyncRead, AsyncWrite};

/// A connection of the other implementation, with one session.
pub(crate) struct Client {
    pub(crate) connection: ConnectionHandle<()>,
    pub(crate) session: SessionHandle<()>,
    cbs: Option<(Sender, Receiver)>,
}

impl Client {
    /// Opens a connection on a stream that TLS is around already, where it is to be.
    pub(crate) async fn open<S>(stream: S, profile: SaslProfile) -> Self
    where
        S: AsyncRead + AsyncWrite + std::fmt::Debug + Send + Unpin + 'static,
    {
        let mut connection = Connection::builder()
            .container_id("test")
            .hostname("localhost")
            .scheme("amqp")
            .sasl_profile(profile)
            .open_with_stream(stream)
            .await
            .unwrap();
        let session = Session::begin(&mut connection).await.unwrap();
        Self { connection, session, cbs: None }
    }

    /// Puts a token; gives the status.
    pub(crate) async fn put_token(&mut self, token: &str, name: &str) -> i32 {
        if self.cbs.is_none() {
            let sender = Sender::attach(&mut self.session, "cbs-out", "$cbs").await.unwrap();
            let receiver = Receiver::attach(&mut self.session, "cbs-in", "$cbs").await.unwrap();
            self.cbs = Some((sender, receiver));
        }
        let (sender, receiver) = self.cbs.as_mut().unwrap();
        let request = Message::builder()
            .properties(Properties::builder().message_id(MessageId::Ulong(7)).to("$cbs").build())
            .application_properties(
                ApplicationProperties::builder()
                    .insert("operation", "put-token")
                    .insert("type", "servicebus.windows.net:sastoken")
                    .insert("name", name)
                    .build(),
            )
            .body(AmqpValue(token.to_owned()))
            .build();
        assert!(sender.send(request).await.unwrap().is_accepted());
        let answer: Delivery<Body<Value>> = receiver.recv().await.unwrap();
        receiver.accept(&answer).await.unwrap();
        let message = answer.message();
        assert_eq!(message.properties.as_ref().unwrap().correlation_id, Some(MessageId::Ulong(7)));
        match message.application_properties.as_ref().unwrap().get("status-code") {
            Some(SimpleValue::Int(status)) => *status,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn sender(&mut self, address: &str) -> Sender {
        Sender::attach(&mut self.session, format!("to {address}"), address).await.unwrap()
    }

    pub(crate) async fn receiver(&mut self, address: &str) -> Receiver {
        Receiver::attach(&mut self.session, format!("from {address}"), address).await.unwrap()
    }
}

/// A message with this body.
pub(crate) fn data(body: impl Into<Vec<u8>>) -> Message<Data> {
    Message::builder().body(Data(Binary::from(body.into()))).build()
}

/// The bytes of a message's body.
pub(crate) fn body(delivery: &Delivery<Body<Value>>) -> Vec<u8> {
    delivery.body().try_as_data().unwrap().flat_map(|part| part.iter().copied()).collect()
}

/// A message annotation.
pub(crate) fn annotation(delivery: &Delivery<Body<Value>>, name: &str) -> Option<Value> {
    let annotations = delivery.message().message_annotations.as_ref()?;
    annotations.0.iter().find_map(|(key, value)| match key {
        OwnedKey::Symbol(symbol) if symbol.as_str() == name => Some(value.clone()),
        _ => None,
    })
}
