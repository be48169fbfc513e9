//! `fieldgate spool`: what is kept on disk. Asks the gateway that runs; without one, looks into the directory.

use std::time::Duration;

use clap::{Args, Subcommand};
use tokio::runtime::Runtime;

use super::{CliError, Place};
use crate::control::Client;
use crate::output::{harmless, say};
use crate::spool::{self, Answer, Ask, Disk, Offline, Status};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// How many messages of how many devices wait, for how long, and how the disk is
    Status(StatusOf),
}

#[derive(Debug, Args)]
pub(super) struct StatusOf {
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

/// Where answers come from.
pub(super) enum Desk {
    /// The gateway that runs.
    Running { runtime: Runtime, client: Client },
    /// The directory, which nobody else has.
    Offline(Box<Offline>),
}

impl Desk {
    /// Finds it.
    pub(super) fn open(place: &Place) -> Result<Self, CliError> {
        let config = place.config()?;
        let state = place.state()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        if let Some(client) = runtime.block_on(Client::connect(&state))? {
            return Ok(Self::Running { runtime, client });
        }
        let directory = spool::directory(&config)?;
        match Offline::open(&directory, &config.spool)? {
            Some(offline) => Ok(Self::Offline(Box::new(offline))),
            None => Err(CliError::NoSpool(directory)),
        }
    }

    /// Asks.
    pub(super) fn ask(&mut self, ask: &Ask) -> Result<Answer, CliError> {
        match self {
            Self::Running { runtime, client } => Ok(runtime.block_on(spool::ask(client, ask))?),
            Self::Offline(offline) => Ok(offline.ask(ask)),
        }
    }

    /// Whether a gateway runs that would send what is queued.
    pub(super) fn is_running(&self) -> bool {
        matches!(self, Self::Running { .. })
    }

    /// Lets it go.
    pub(super) fn close(self) {
        if let Self::Offline(offline) = self {
            offline.close();
        }
    }
}

pub(super) fn run(command: &Command) -> Result<(), CliError> {
    let Command::Status(StatusOf { json, place }) = command;
    let mut desk = Desk::open(place)?;
    let answer = desk.ask(&Ask::Status)?;
    let running = desk.is_running();
    desk.close();
    let Answer::Status(status) = answer else { return Err(CliError::No) };
    if *json {
        return Ok(say(&serde_json::to_string(&status).unwrap_or_default())?);
    }
    Ok(say(&describe(&status, running))?)
}

fn describe(status: &Status, running: bool) -> String {
    let mut lines = vec![format!("messages      {}", waiting(status))];
    if status.in_flight > 0 {
        lines.push(format!("in flight     {}", status.in_flight));
    }
    for hub in &status.hubs {
        let way = match hub.connected {
            Some(true) => "connected",
            Some(false) => "not connected",
            None => "no gateway runs",
        };
        lines.push(format!(
            "hub           {}: {way}, {} waiting",
            harmless(&hub.name),
            count(hub.records, "message")
        ));
    }
    if !running && status.hubs.is_empty() {
        lines.push("hub           no gateway runs".into());
    }
    let letters = status.dead_letters as u64;
    lines.push(match letters {
        0 => "dead letters  none".into(),
        _ => format!("dead letters  {letters}, {}", size(status.dead_letter_bytes)),
    });
    if status.dead_letters_forgone > 0 {
        let forgone = count(status.dead_letters_forgone, "message");
        lines.push(format!(
            "no letter     {forgone} refused or too old, when there was no room for a dead letter"
        ));
    }
    let disk = match status.disk {
        Disk::Good => "good",
        Disk::Full => "full: devices are told to come again until the hub has taken some",
        Disk::Failing => "failing: devices are told to come again; the log says what the system said",
    };
    lines.push(format!(
        "disk          {disk}; {} of {} taken",
        size(status.disk_bytes),
        size(status.disk_max_bytes)
    ));
    if status.damaged > 0 {
        lines.push(format!(
            "damaged       {}; copies are in the spool's quarantine",
            count(status.damaged, "spot")
        ));
    }
    lines.join("\n")
}

fn waiting(status: &Status) -> String {
    if status.records == 0 {
        return "none wait".into();
    }
    let oldest = status.oldest_seconds.map_or_else(String::new, |seconds| {
        format!("; the oldest came {} ago", duration(Duration::from_secs(seconds)))
    });
    let devices = count(status.devices as u64, "device");
    let (bytes, most) = (size(status.bytes), size(status.max_bytes));
    format!("{} of {devices}, {bytes} of {most}{oldest}", status.records)
}

fn count(number: u64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// A size for a person, to three digits.
pub(super) fn size(bytes: u64) -> String {
    let mut left = bytes as f64;
    for unit in ["B", "KiB", "MiB"] {
        if left < 1_000.0 {
            let digits = if unit == "B" || left >= 100.0 { 0 } else { 1 };
            return format!("{left:.digits$} {unit}");
        }
        left /= 1_024.0;
    }
    format!("{left:.1} GiB")
}

/// A duration for a person, in its largest unit and the next.
pub(super) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} min", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::ask::HubStatus;

    #[test]
    fn sizes_and_durations_have_a_unit_that_fits() {
        for (bytes, text) in
            [(0, "0 B"), (999, "999 B"), (1_000, "1.0 KiB"), (150_000, "146 KiB"), (536_870_912, "512 MiB")]
        {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(size(3 << 30), "3.0 GiB");
        for (seconds, text) in [(5, "5 s"), (65, "1 min 5 s"), (7_260, "2 h 1 min"), (90_000, "1 d 1 h")] {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn a_status_is_a_few_lines() {
        let status = Status {
            disk: Disk::Good,
            records: 3,
            bytes: 600,
            max_bytes: 1 << 20,
            devices: 1,
            in_flight: 0,
            oldest_seconds: Some(61),
            dead_letters: 0,
            dead_letter_bytes: 0,
            dead_letters_forgone: 2,
            disk_bytes: 16 << 20,
            disk_max_bytes: 512 << 20,
            damaged: 1,
            hubs: vec![HubStatus { name: "upstream".into(), connected: Some(false), records: 3, bytes: 600 }],
        };
        let lines = [
            "messages      3 of 1 device, 600 B of 1.0 MiB; the oldest came 1 min 1 s ago",
            "hub           upstream: not connected, 3 messages waiting",
            "dead letters  none",
            "no letter     2 messages refused or too old, when there was no room for a dead letter",
            "disk          good; 16.0 MiB of 512 MiB taken",
            "damaged       1 spot; copies are in the spool's quarantine",
        ];
        assert_eq!(describe(&status, true), lines.join("\n"));
    }
}
