//! Reading the event log, as any Event Hubs consumer would: one receiver for each partition, nothing taken away.

use fe2o3_amqp::Receiver;
use fe2o3_amqp::link::ReceiverAttachError;
use fe2o3_amqp::types::definitions::{AmqpError as Condition, ErrorCondition};
use fe2o3_amqp::types::messaging::{Body, Source};
use fe2o3_amqp::types::primitives::{Symbol, Value};
use serde_amqp::described::Described;
use serde_amqp::descriptor::Descriptor;
use tokio::sync::mpsc;

use super::{Event, Service, ServiceError, describe_attach, describe_receive};

/// A partition has its messages taken off the wire only as fast as they are looked at.
const AHEAD: usize = 64;
const SELECTOR: &str = "apache.org:selector-filter:string";

/// The consumer group that every hub has.
pub(crate) const DEFAULT_GROUP: &str = "$Default";

/// What is to be read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Log<'a> {
    /// The consumer group.
    pub(crate) group: &'a str,
    /// One partition, counted from 0; `None` is all of them.
    pub(crate) partition: Option<u16>,
    /// Where to begin.
    pub(crate) from: Position,
}

/// A place in the event log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Position {
    /// Before the oldest event that the hub still has.
    Start,
    /// Behind the newest one.
    Now,
}

/// Readers that are attached: what arrives from here on is theirs.
#[derive(Debug)]
pub(crate) struct Readers(Vec<(u16, Receiver)>);

impl Readers {
    /// One receiver for each partition, in order, until the hub says that there is no further one.
    ///
    /// # Errors
    /// What the hub gave as its reason.
    pub(crate) async fn attach(service: &mut Service, log: Log<'_>) -> Result<Self, ServiceError> {
        let numbers = log.partition.map_or(0..=u16::MAX, |number| number..=number);
        let mut receivers = Vec::new();
        for number in numbers {
            let address = format!("messages/events/ConsumerGroups/{}/Partitions/{number}", log.group);
            let attached = Receiver::builder()
                .name(format!("watch-{number}"))
                .source(
                    Source::builder().address(address).add_to_filter(SELECTOR, selector(log.from)).build(),
                )
                .attach(&mut service.session)
                .await;
            match attached {
                Ok(receiver) => receivers.push((number, receiver)),
                Err(error) if is_not_found(&error) && !receivers.is_empty() => break,
                Err(error) => {
                    let what = match log.partition {
                        Some(number) => {
                            format!("the hub does not show partition {number} to group {}", log.group)
                        }
                        None => format!("the hub does not show its events to group {}", log.group),
                    };
                    return Err(ServiceError::refused(what, describe_attach(&error)));
                }
            }
        }
        Ok(Self(receivers))
    }

    /// How many partitions are read.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Reads them all at once, each in its order. An error is the last thing that comes from its partition; the
    /// channel ends with the last of them. Dropping it ends the reading.
    pub(crate) fn follow(self) -> mpsc::Receiver<Result<Event, ServiceError>> {
        let (events, arrived) = mpsc::channel(AHEAD);
        for (number, receiver) in self.0 {
            tokio::spawn(read(number, receiver, events.clone()));
        }
        arrived
    }
}

fn selector(from: Position) -> Described<Value> {
    let after = match from {
        Position::Start => "-1",
        Position::Now => "@latest",
    };
    Described {
        descriptor: Descriptor::Name(Symbol::from(SELECTOR)),
        value: Value::String(format!("amqp.annotation.x-opt-offset > '{after}'")),
    }
}

fn is_not_found(error: &ReceiverAttachError) -> bool {
    matches!(error, ReceiverAttachError::RemoteClosedWithError(error)
        if error.condition == ErrorCondition::AmqpError(Condition::NotFound))
}

/// Ends after the first error, or when nobody listens any more.
async fn read(number: u16, mut receiver: Receiver, events: mpsc::Sender<Result<Event, ServiceError>>) {
    loop {
        let event = match receiver.recv::<Body<Value>>().await {
            Ok(delivery) => {
                // Reading takes nothing away; the outcome only frees the delivery at both ends.
                let settled = receiver.accept(&delivery).await;
                let event = Event::new(number, delivery.into_message());
                settled.map(|()| event).map_err(|error| {
                    ServiceError::refused(format!("no more from partition {number}"), error.to_string())
                })
            }
            Err(error) => Err(ServiceError::refused(
                format!("no more from partition {number}"),
                describe_receive(&error),
            )),
        };
        let ended = event.is_err();
        if events.send(event).await.is_err() || ended {
            return;
        }
    }
}
