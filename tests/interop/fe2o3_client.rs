//! A device that does what it is told: one JSON object a line on standard input, one answer a line on standard output.
//! `stacks.py` beside this file says which words there are. The AMQP is `fe2o3-amqp`'s.

use std::collections::HashMap;
use std::io::Write as _;

use fe2o3_amqp::connection::ConnectionHandle;
use fe2o3_amqp::link::receiver::CreditMode;
use fe2o3_amqp::link::{ReceiverAttachError, SenderAttachError, SessionStopReason};
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::definitions::{
    Error as AmqpError, ErrorCondition, ReceiverSettleMode, SenderSettleMode,
};
use fe2o3_amqp::types::messaging::{
    AmqpValue, ApplicationProperties, Body, Data, Message, Modified, Outcome, Properties,
};
use fe2o3_amqp::types::primitives::{Binary, SimpleValue, Symbol, Value as AmqpAny};
use fe2o3_amqp::{Connection, Receiver, Sendable, Sender, Session};
use ring::digest;
use serde_json::{Map, Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// What an order ended with, where it failed.
struct Failed {
    condition: String,
    text: String,
}

impl<E: std::error::Error> From<E> for Failed {
    fn from(error: E) -> Self {
        Self { condition: "none".into(), text: format!("{error:?}") }
    }
}

type Answer = Result<Value, Failed>;

/// The condition's own symbol, such as `amqp:not-found`.
fn symbol(condition: &ErrorCondition) -> String {
    match condition {
        ErrorCondition::AmqpError(known) => Symbol::from(known).to_string(),
        ErrorCondition::ConnectionError(known) => Symbol::from(known).to_string(),
        ErrorCondition::SessionError(known) => Symbol::from(known).to_string(),
        ErrorCondition::LinkError(known) => Symbol::from(known).to_string(),
        ErrorCondition::Custom(other) => other.to_string(),
    }
}

fn failed(error: &AmqpError) -> Failed {
    Failed { condition: symbol(&error.condition), text: error.description.clone().unwrap_or_default() }
}

fn stopped(reason: &SessionStopReason) -> Failed {
    match reason {
        SessionStopReason::RemoteEndedWithError(error) => failed(error),
        other => Failed { condition: "none".into(), text: format!("{other:?}") },
    }
}

enum Link {
    Sender(Sender),
    Receiver(Receiver),
}

#[derive(Default)]
struct Device {
    connection: Option<ConnectionHandle<()>>,
    session: Option<SessionHandle<()>>,
    links: HashMap<String, Link>,
}

impl Device {
    async fn obey(&mut self, order: &Value) -> Answer {
        let text = |name: &str| order[name].as_str().unwrap_or_default().to_owned();
        match order["do"].as_str().unwrap_or_default() {
            "open" => self.open(order).await,
            "token" => self.token(text("audience"), text("token")).await,
            "sender" => self.sender(order).await,
            "receiver" => self.receiver(order).await,
            "send" => self.send(order).await,
            "credit" => {
                let credit = u32::try_from(order["credit"].as_u64().unwrap_or_default()).unwrap_or(u32::MAX);
                self.receiver_called(&text("link"))?.set_credit(credit).await?;
                Ok(json!({}))
            }
            "receive" => self.receive(&text("link"), order["then"].as_str()).await,
            "close" => {
                match self.links.remove(&text("link")) {
                    Some(Link::Sender(sender)) => sender.close().await?,
                    Some(Link::Receiver(receiver)) => receiver.close().await?,
                    None => return Err(unknown(&text("link"))),
                }
                Ok(json!({}))
            }
            other => Err(unknown(other)),
        }
    }

    async fn open(&mut self, order: &Value) -> Answer {
        let port = u16::try_from(order["port"].as_u64().unwrap_or_default())?;
        let profile = match (order["user"].as_str(), order["password"].as_str()) {
            (Some(user), Some(password)) => {
                SaslProfile::Plain { username: user.into(), password: password.into() }
            }
            _ => SaslProfile::Anonymous,
        };
        let mut connection = Connection::builder()
            .container_id(order["container"].as_str().unwrap_or("fe2o3"))
            .hostname("localhost")
            .scheme("amqp")
            .sasl_profile(profile)
            .open_with_stream(TcpStream::connect(("127.0.0.1", port)).await?)
            .await?;
        self.session = Some(Session::begin(&mut connection).await?);
        self.connection = Some(connection);
        Ok(json!({}))
    }

    fn session(&mut self) -> Result<&mut SessionHandle<()>, Failed> {
        self.session.as_mut().ok_or_else(|| unknown("session"))
    }

    async fn token(&mut self, audience: String, token: String) -> Answer {
        let session = self.session()?;
        let mut sender = Sender::attach(session, "cbs-sender", "$cbs").await?;
        let mut receiver = Receiver::attach(session, "cbs-receiver", "$cbs").await?;
        let request = Message::builder()
            .properties(Properties::builder().message_id("token-1".to_owned()).reply_to("cbs").build())
            .application_properties(
                ApplicationProperties::builder()
                    .insert("operation", "put-token")
                    .insert("type", "servicebus.windows.net:sastoken")
                    .insert("name", audience)
                    .build(),
            )
            .body(AmqpValue(token))
            .build();
        sender.send(request).await?;
        let answer = receiver.recv::<Body<AmqpAny>>().await?;
        receiver.accept(&answer).await?;
        let properties = answer.message().application_properties.as_ref();
        let Some(SimpleValue::Int(status)) = properties.and_then(|all| all.get("status-code")) else {
            return Err(unknown("status-code"));
        };
        Ok(json!({ "status": status }))
    }

    async fn sender(&mut self, order: &Value) -> Answer {
        let name = order["link"].as_str().unwrap_or_default().to_owned();
        let mode = match order["settled"].as_bool() {
            Some(true) => SenderSettleMode::Settled,
            Some(false) => SenderSettleMode::Unsettled,
            None => SenderSettleMode::Mixed,
        };
        let attached = Sender::builder()
            .name(name.clone())
            .target(order["address"].as_str().unwrap_or_default())
            .sender_settle_mode(mode)
            .attach(self.session()?)
            .await;
        match attached {
            Ok(sender) => {
                self.links.insert(name, Link::Sender(sender));
                Ok(json!({}))
            }
            Err(SenderAttachError::RemoteClosedWithError(error)) => Err(failed(&error)),
            Err(SenderAttachError::SessionStopped(reason)) => Err(stopped(&reason)),
            Err(other) => Err(other.into()),
        }
    }

    async fn receiver(&mut self, order: &Value) -> Answer {
        let name = order["link"].as_str().unwrap_or_default().to_owned();
        let mode = match order["second"].as_bool() {
            Some(true) => ReceiverSettleMode::Second,
            _ => ReceiverSettleMode::First,
        };
        let attached = Receiver::builder()
            .name(name.clone())
            .source(order["address"].as_str().unwrap_or_default())
            .receiver_settle_mode(mode)
            .credit_mode(CreditMode::Manual)
            .attach(self.session()?)
            .await;
        match attached {
            Ok(receiver) => {
                self.links.insert(name, Link::Receiver(receiver));
                Ok(json!({}))
            }
            Err(ReceiverAttachError::RemoteClosedWithError(error)) => Err(failed(&error)),
            Err(ReceiverAttachError::SessionStopped(reason)) => Err(stopped(&reason)),
            Err(other) => Err(other.into()),
        }
    }

    fn receiver_called(&mut self, name: &str) -> Result<&mut Receiver, Failed> {
        match self.links.get_mut(name) {
            Some(Link::Receiver(receiver)) => Ok(receiver),
            _ => Err(unknown(name)),
        }
    }

    async fn send(&mut self, order: &Value) -> Answer {
        let Some(Link::Sender(sender)) = self.links.get_mut(order["link"].as_str().unwrap_or_default())
        else {
            return Err(unknown("link"));
        };
        let body = match order["size"].as_u64() {
            Some(size) => content(usize::try_from(size)?),
            None => order["body"].as_str().unwrap_or_default().into(),
        };
        let mut properties = ApplicationProperties::builder();
        for (name, value) in order["properties"].as_object().unwrap_or(&Map::new()) {
            properties = match value {
                Value::Number(number) => {
                    properties.insert(name.as_str(), number.as_i64().unwrap_or_default())
                }
                Value::Bool(yes) => properties.insert(name.as_str(), *yes),
                other => properties.insert(name.as_str(), other.as_str().unwrap_or_default()),
            };
        }
        let message = Message::builder()
            .application_properties(properties.build())
            .body(Data(Binary::from(body)))
            .build();
        let sendable = Sendable::builder()
            .message(message)
            .message_format(u32::try_from(order["format"].as_u64().unwrap_or_default())?)
            .build();
        let settled = order["settled"].as_bool() == Some(true);
        Ok(match sender.send(sendable).await? {
            Outcome::Accepted(_) if settled => json!({ "outcome": "settled" }),
            Outcome::Accepted(_) => json!({ "outcome": "accepted" }),
            Outcome::Released(_) => json!({ "outcome": "released" }),
            Outcome::Modified(_) => json!({ "outcome": "modified" }),
            Outcome::Rejected(rejected) => json!({
                "outcome": "rejected",
                "condition": rejected.error.as_ref().map(|error| symbol(&error.condition)),
                "text": rejected.error.as_ref().and_then(|error| error.description.clone()),
            }),
        })
    }

    async fn receive(&mut self, link: &str, then: Option<&str>) -> Answer {
        let receiver = self.receiver_called(link)?;
        let delivery = receiver.recv::<Body<AmqpAny>>().await?;
        match then {
            Some("accept") => receiver.accept(&delivery).await?,
            Some("release") => receiver.release(&delivery).await?,
            Some("reject") => {
                let condition = ErrorCondition::Custom("fieldgate:test".into());
                let error = AmqpError::new(condition, Some("the device says no".to_owned()), None);
                receiver.reject(&delivery, error).await?;
            }
            Some("modify") => {
                let modified = Modified {
                    delivery_failed: Some(true),
                    undeliverable_here: Some(false),
                    message_annotations: None,
                };
                receiver.modify(&delivery, modified).await?;
            }
            _ => {}
        }
        let bytes: Vec<u8> = match delivery.body().try_as_data() {
            Ok(parts) => parts.flat_map(|part| part.iter().copied()).collect(),
            Err(_) => format!("{:?}", delivery.body()).into_bytes(),
        };
        let message = delivery.message();
        let properties: Map<String, Value> = message
            .application_properties
            .iter()
            .flat_map(|all| all.iter())
            .map(|(name, value)| (name.clone(), plain(value)))
            .collect();
        let sha256: String = digest::digest(&digest::SHA256, &bytes)
            .as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Ok(json!({
            "length": bytes.len(),
            "sha256": sha256,
            "body": (bytes.len() <= 200).then(|| String::from_utf8_lossy(&bytes).into_owned()),
            "properties": properties,
            "format": delivery.message_format(),
            "delivery_count": message.header.as_ref().map_or(0, |header| header.delivery_count),
        }))
    }

    async fn leave(self) {
        // Whether the other side still listens changes nothing any more.
        if let Some(mut session) = self.session {
            let _ = session.end().await;
        }
        if let Some(mut connection) = self.connection {
            let _ = connection.close().await;
        }
    }
}

fn plain(value: &SimpleValue) -> Value {
    match value {
        SimpleValue::Bool(yes) => json!(yes),
        SimpleValue::Int(number) => json!(number),
        SimpleValue::Long(number) => json!(number),
        SimpleValue::Ulong(number) => json!(number),
        SimpleValue::Uint(number) => json!(number),
        SimpleValue::String(text) => json!(text),
        other => json!(format!("{other:?}")),
    }
}

/// So many bytes that any client can make again.
fn content(size: usize) -> Vec<u8> {
    b"0123456789abcdefghijklmnopqrstuvwxyz".iter().copied().cycle().take(size).collect()
}

fn unknown(what: &str) -> Failed {
    Failed { condition: "none".into(), text: format!("there is no {what}") }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let mut device = Device::default();
    // Reading blocks, and meanwhile the connection must live.
    let (tell, mut lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        std::io::stdin().lines().map_while(Result::ok).all(|line| tell.blocking_send(line).is_ok())
    });
    while let Some(line) = lines.recv().await {
        let order: Value = serde_json::from_str(&line)?;
        let answer = match device.obey(&order).await {
            Ok(answer) => answer,
            Err(failed) => json!({ "error": failed.condition, "text": failed.text }),
        };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    device.leave().await;
    Ok(())
}
