//! The service of the demo: sends a command to one device of each kind that takes commands, again and again, and waits
//! for the hub's feedback.

use std::time::Duration;

use fieldgate_mappings::DeviceId;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, timeout};

use super::fleet::Plan;
use super::note::{News, Teller};
use crate::service::command::{self, Command, Record, TAKEN};
use crate::service::{Service, ServiceError};
use crate::shutdown::Shutdown;

/// From the moment at which every device listens to the first command.
const FIRST: Duration = Duration::from_secs(2);
/// From one round of commands to the next.
const EVERY: Duration = Duration::from_secs(10);
/// How long a command's feedback is waited for, and how long the hub keeps the command.
const PATIENCE: Duration = Duration::from_secs(10);

/// A device that is sent commands.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) plan: &'static Plan,
    pub(super) id: DeviceId,
    pub(super) text: fn(u64) -> String,
    /// Whether a command would reach it now.
    pub(super) listening: watch::Receiver<bool>,
}

/// Sends commands until the stop; gives the connection back.
pub(super) async fn run(
    mut service: Service,
    mut targets: Vec<Target>,
    teller: Teller,
    stop: Shutdown,
) -> Service {
    tokio::select! {
        // Not for ever: one device that is refused must not keep the others from their commands.
        _ = timeout(PATIENCE, all_listen(&mut targets)) => {}
        () = stop.draining() => return service,
    }
    let mut rounds = tokio::time::interval_at(Instant::now() + FIRST, EVERY);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 0.. {
        tokio::select! {
            _ = rounds.tick() => {}
            () = stop.draining() => break,
        }
        for target in &targets {
            // A command to a device that is away would only wait in the hub.
            if *target.listening.borrow() {
                send(&mut service, target, number, &teller).await;
            }
        }
    }
    service
}

async fn all_listen(targets: &mut [Target]) {
    for target in targets {
        // An error means that the device has ended, and so will this.
        let _ = target.listening.wait_for(|listens| *listens).await;
    }
}

async fn send(service: &mut Service, target: &Target, number: u64, teller: &Teller) {
    let text = (target.text)(number);
    let began = Instant::now();
    let news = match timeout(PATIENCE, ask(service, target, text, teller)).await {
        Ok(Ok(Record { status_code, .. })) => News::CommandAnswered {
            is_taken: status_code == TAKEN,
            status: status_code,
            took: began.elapsed(),
        },
        Ok(Err(error)) => News::CommandFailed { why: error.to_string() },
        Err(_) => News::CommandFailed { why: format!("no feedback within {} s", PATIENCE.as_secs()) },
    };
    teller.tell(target.plan, news).await;
}

async fn ask(
    service: &mut Service,
    target: &Target,
    text: String,
    teller: &Teller,
) -> Result<Record, ServiceError> {
    teller.tell(target.plan, News::CommandSent { text: text.clone() }).await;
    let command = Command { device: &target.id, text: &text, ttl: Some(PATIENCE), properties: &[] };
    command::send(service, command).await?.answer().await
}
