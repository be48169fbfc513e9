//! `fieldgate hub send`: a command for a device, and what becomes of it.

use tokio::signal::unix::{SignalKind, signal};

use super::{CliError, Send};
use crate::output::{complain, harmless, say};
use crate::service::command::{self, Command, Record, TAKEN};
use crate::service::{Service, ServiceError};
use crate::state::StateDir;

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
    let Send { device, text, ttl, properties } = send;
    let sent = command::send(service, Command { device, text, ttl: *ttl, properties }).await?;
    complain(&format!("the hub has it; waiting for {device} (Ctrl-C ends the waiting, not the command)"));
    sent.answer().await
}
