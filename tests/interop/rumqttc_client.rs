//! A device over `rumqttc`, in MQTT 3.1.1 and 5, with the words of `python/paho_client.py` beside this file:
//!
//! ```text
//! rumqttc_client --port N --id ID [--version 4|5] [--keep] publish TOPIC QOS TEXT... | subscribe FILTER COUNT | wait COUNT
//! ```
//!
//! It prints `connected PRESENT`, `subscribed CODES`, `published`, `command TOPIC TEXT`.

use std::time::Duration;

use tokio::time::timeout;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(30);
const KEPT_SECONDS: u32 = 600;

type Failed = Box<dyn std::error::Error>;

struct Options {
    port: u16,
    id: String,
    version: u8,
    keep: bool,
    work: Work,
}

enum Work {
    Publish { topic: String, qos: u8, texts: Vec<String> },
    Subscribe { filter: String, commands: usize },
    Wait { commands: usize },
}

fn parse() -> Result<Options, Failed> {
    let mut words = std::env::args().skip(1);
    let mut options =
        Options { port: 0, id: String::new(), version: 4, keep: false, work: Work::Wait { commands: 0 } };
    while let Some(word) = words.next() {
        let mut next = || words.next().ok_or_else(|| format!("{word} wants something behind it"));
        match &*word {
            "--port" => options.port = next()?.parse()?,
            "--id" => options.id = next()?,
            "--version" => options.version = next()?.parse()?,
            "--keep" => options.keep = true,
            "publish" => {
                let (topic, qos) = (next()?, next()?.parse()?);
                options.work = Work::Publish { topic, qos, texts: words.by_ref().collect() };
            }
            "subscribe" => {
                options.work = Work::Subscribe { filter: next()?, commands: next()?.parse()? };
            }
            "wait" => options.work = Work::Wait { commands: next()?.parse()? },
            other => return Err(format!("unknown: {other}").into()),
        }
    }
    Ok(options)
}

/// What the gateway says, in either version.
enum Heard {
    Connected(bool),
    Subscribed(Vec<String>),
    Published,
    Command(String, String),
    Other,
}

/// The same steps over the types of either version.
macro_rules! device {
    ($client:expr, $events:expr, $qos:expr, $read:expr, $work:expr) => {{
        let (client, mut events, work) = ($client, $events, $work);
        let mut left = match &work {
            Work::Publish { texts, .. } => texts.len(),
            Work::Subscribe { commands, .. } | Work::Wait { commands } => *commands,
        };
        loop {
            match $read(timeout(PATIENCE, events.poll()).await??) {
                Heard::Connected(present) => {
                    println!("connected {}", u8::from(present));
                    match &work {
                        Work::Publish { topic, qos, texts } => {
                            for text in texts {
                                client.try_publish(topic, $qos(*qos), false, text.clone())?;
                            }
                        }
                        Work::Subscribe { filter, .. } => client.try_subscribe(filter, $qos(1))?,
                        Work::Wait { .. } => {}
                    }
                }
                Heard::Subscribed(codes) => println!("subscribed {}", codes.join(" ")),
                Heard::Published => {
                    println!("published");
                    left -= 1;
                }
                Heard::Command(topic, text) => {
                    println!("command {topic} {text}");
                    left -= 1;
                }
                Heard::Other => {}
            }
            if left == 0 {
                // A command is acknowledged before this goes out.
                client.try_disconnect()?;
                while timeout(PATIENCE, events.poll()).await?.is_ok() {}
                return Ok(());
            }
        }
    }};
}

async fn device_4(Options { port, id, keep, work, .. }: Options) -> Result<(), Failed> {
    use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS, SubscribeReasonCode};

    let qos = |qos| rumqttc::qos(qos).unwrap_or(QoS::AtMostOnce);
    let read = |event| match event {
        Event::Incoming(Packet::ConnAck(said)) => Heard::Connected(said.session_present),
        Event::Incoming(Packet::SubAck(said)) => {
            let code = |code: &SubscribeReasonCode| match code {
                SubscribeReasonCode::Success(qos) => (*qos as u8).to_string(),
                SubscribeReasonCode::Failure => "128".to_owned(),
            };
            Heard::Subscribed(said.return_codes.iter().map(code).collect())
        }
        Event::Incoming(Packet::PubAck(_) | Packet::PubComp(_)) => Heard::Published,
        Event::Incoming(Packet::Publish(said)) => {
            Heard::Command(said.topic, String::from_utf8_lossy(&said.payload).into_owned())
        }
        _ => Heard::Other,
    };
    let mut options = MqttOptions::new(id, "localhost", port);
    options.set_clean_session(!keep);
    let (client, events) = AsyncClient::new(options, 100);
    device!(client, events, qos, read, work)
}

async fn device_5(Options { port, id, keep, work, .. }: Options) -> Result<(), Failed> {
    use rumqttc::v5::mqttbytes::QoS;
    use rumqttc::v5::mqttbytes::v5::{Packet, PubAckReason, PubCompReason, SubscribeReasonCode};
    use rumqttc::v5::{AsyncClient, Event, MqttOptions};

    let qos = |qos| rumqttc::v5::mqttbytes::qos(qos).unwrap_or(QoS::AtMostOnce);
    let read = |event| match event {
        Event::Incoming(Packet::ConnAck(said)) => Heard::Connected(said.session_present),
        Event::Incoming(Packet::SubAck(said)) => {
            let code = |code: &SubscribeReasonCode| match code {
                SubscribeReasonCode::Success(qos) => (*qos as u8).to_string(),
                refused => format!("{refused:?}"),
            };
            Heard::Subscribed(said.return_codes.iter().map(code).collect())
        }
        Event::Incoming(Packet::PubAck(said)) if said.reason == PubAckReason::Success => Heard::Published,
        Event::Incoming(Packet::PubComp(said)) if said.reason == PubCompReason::Success => Heard::Published,
        Event::Incoming(Packet::Publish(said)) => Heard::Command(
            String::from_utf8_lossy(&said.topic).into_owned(),
            String::from_utf8_lossy(&said.payload).into_owned(),
        ),
        _ => Heard::Other,
    };
    let mut options = MqttOptions::new(id, "localhost", port);
    options.set_clean_start(!keep);
    options.set_session_expiry_interval(keep.then_some(KEPT_SECONDS));
    let (client, events) = AsyncClient::new(options, 100);
    device!(client, events, qos, read, work)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failed> {
    let options = parse()?;
    match options.version {
        4 => device_4(options).await,
        5 => device_5(options).await,
        other => Err(format!("version {other}").into()),
    }
}
