//! `fieldgate hub watch`: what arrives at the hub.
//!
//! Reads the event log as any Event Hubs consumer would: one receiver for each partition, nothing taken away.

use std::io;

use fe2o3_amqp::Receiver;
use fe2o3_amqp::link::ReceiverAttachError;
use fe2o3_amqp::types::definitions::{AmqpError as Condition, ErrorCondition};
use fe2o3_amqp::types::messaging::{Body, Source};
use fe2o3_amqp::types::primitives::{Symbol, Value};
use serde_amqp::described::Described;
use serde_amqp::descriptor::Descriptor;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::event::Event;
use super::output::{complain, say};
use super::service::{Service, ServiceError, describe_attach, describe_receive};
use super::{CliError, From, Watch};
use crate::state::StateDir;

/// A partition has its messages taken off the wire only as fast as they are printed.
const AHEAD: usize = 64;
const SELECTOR: &str = "apache.org:selector-filter:string";

/// Prints until Ctrl-C, the asked-for count, or the hub's end.
pub(super) fn run(state: &StateDir, watch: &Watch) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut service = Service::connect(state).await?;
        let receivers = attach(&mut service, watch).await?;
        let from = match watch.from {
            From::Start => "from the start",
            From::Now => "from now on",
        };
        let which = match (watch.partition, receivers.len()) {
            (Some(number), _) => format!("partition {number}"),
            (None, count) => format!("{count} partitions"),
        };
        complain(&format!(
            "watching {}: {which}, group {}, {from}; Ctrl-C ends",
            service.address, watch.group
        ));
        let printed = print(receivers, watch, say).await;
        service.close().await;
        printed
    })
}

/// One receiver for each partition, in order, until the hub says that there is no further one.
pub(super) async fn attach(
    service: &mut Service,
    watch: &Watch,
) -> Result<Vec<(u16, Receiver)>, ServiceError> {
    let numbers = watch.partition.map_or(0..=u16::MAX, |number| number..=number);
    let mut receivers = Vec::new();
    for number in numbers {
        let address = format!("messages/events/ConsumerGroups/{}/Partitions/{number}", watch.group);
        let attached = Receiver::builder()
            .name(format!("watch-{number}"))
            .source(Source::builder().address(address).add_to_filter(SELECTOR, selector(watch.from)).build())
            .attach(&mut service.session)
            .await;
        match attached {
            Ok(receiver) => receivers.push((number, receiver)),
            Err(error) if is_not_found(&error) && !receivers.is_empty() => break,
            Err(error) => {
                let what = match watch.partition {
                    Some(number) => {
                        format!("the hub does not show partition {number} to group {}", watch.group)
                    }
                    None => format!("the hub does not show its events to group {}", watch.group),
                };
                return Err(ServiceError::refused(what, describe_attach(&error)));
            }
        }
    }
    Ok(receivers)
}

fn selector(from: From) -> Described<Value> {
    let after = match from {
        From::Start => "-1",
        From::Now => "@latest",
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

pub(super) async fn print(
    receivers: Vec<(u16, Receiver)>,
    watch: &Watch,
    mut say: impl FnMut(&str) -> io::Result<()>,
) -> Result<(), CliError> {
    let (events, mut arrived) = mpsc::channel(AHEAD);
    for (number, receiver) in receivers {
        tokio::spawn(read(number, receiver, events.clone()));
    }
    drop(events);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut left = watch.count.map(std::num::NonZeroU64::get);
    while left != Some(0) {
        let event = tokio::select! {
            event = arrived.recv() => event,
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        };
        let Some(event) = event else { return Ok(()) };
        let event: Event = event?;
        say(&if watch.json { event.to_json() } else { event.to_line() })?;
        left = left.map(|left| left - 1);
    }
    Ok(())
}

/// Ends after the first error, or when nobody prints any more.
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
