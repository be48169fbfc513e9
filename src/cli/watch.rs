//! `fieldgate hub watch`: what arrives at the hub.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

use super::{CliError, From, Watch};
use crate::output::{complain, say};
use crate::service::Service;
use crate::service::watch::{Log, Position, Readers};
use crate::state::StateDir;

/// Prints until Ctrl-C, the asked-for count, or the hub's end.
pub(super) fn run(state: &StateDir, watch: &Watch) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut service = Service::connect(state).await?;
        let readers = Readers::attach(&mut service, log(watch)).await?;
        let from = match watch.from {
            From::Start => "from the start",
            From::Now => "from now on",
        };
        let which = match (watch.partition, readers.len()) {
            (Some(number), _) => format!("partition {number}"),
            (None, count) => format!("{count} partitions"),
        };
        complain(&format!(
            "watching {}: {which}, group {}, {from}; Ctrl-C ends",
            service.address, watch.group
        ));
        let printed = print(readers, watch, say).await;
        service.close().await;
        printed
    })
}

pub(super) fn log(watch: &Watch) -> Log<'_> {
    let from = match watch.from {
        From::Start => Position::Start,
        From::Now => Position::Now,
    };
    Log { group: &watch.group, partition: watch.partition, from }
}

pub(super) async fn print(
    readers: Readers,
    watch: &Watch,
    mut say: impl FnMut(&str) -> io::Result<()>,
) -> Result<(), CliError> {
    let mut arrived = readers.follow();
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
        let event = event?;
        say(&if watch.json { event.to_json() } else { event.to_line() })?;
        left = left.map(|left| left - 1);
    }
    Ok(())
}
