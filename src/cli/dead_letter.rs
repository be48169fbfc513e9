//! `fieldgate dead-letter`: what was rejected or dropped by policy. Asks the gateway that runs; without one, works on
//! the directory.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use clap::{Args, Subcommand};
use fieldgate_mappings::{Address, DeviceId, Message, Timestamp, amqp};

use super::spool::{Desk, duration, size};
use super::{CliError, Place};
use crate::hub::Iso;
use crate::output::{complain, harmless, say, unix_millis};
use crate::spool::{Answer, Ask, Done, Letter, Which};

/// Dead letters of one page.
const PAGE: usize = 200;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// One line for each, the oldest first
    List(List),
    /// One of them with its message
    Show(Show),
    /// Send them to the hub again, marked as possible repeats
    Replay(Chosen),
    /// Forget them
    Drop(Chosen),
}

#[derive(Debug, Args)]
pub(super) struct List {
    #[command(flatten)]
    filter: Filter,
    /// Stop after so many
    #[arg(long, value_name = "N")]
    count: Option<usize>,
    /// One JSON object on each line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
pub(super) struct Show {
    /// Its number, as `list` prints it
    number: u64,
    /// One JSON object; the message's AMQP sections are in it, in base64
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
pub(super) struct Chosen {
    /// Their numbers, as `list` prints them
    #[arg(required_unless_present_any = ["all", "device", "reason"])]
    numbers: Vec<u64>,
    /// All of them
    #[arg(long, conflicts_with = "numbers")]
    all: bool,
    #[command(flatten)]
    filter: Filter,
    /// One JSON object: how many were done, how many refused
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
pub(super) struct Filter {
    /// Only those of this device
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Only those that died for this reason, as `list` prints it
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
}

impl Filter {
    fn which(&self, seq: Option<u64>) -> Which {
        Which { seq, device: self.device.clone(), reason: self.reason.clone() }
    }
}

pub(super) fn run(command: &Command) -> Result<(), CliError> {
    match command {
        Command::List(list) => with_desk(&list.place, |desk| print_list(desk, list)),
        Command::Show(show) => with_desk(&show.place, |desk| print_one(desk, show)),
        Command::Replay(chosen) => with_desk(&chosen.place, |desk| {
            let done = each(desk, chosen, |which, after, up_to| Ask::Replay { which, after, up_to })?;
            let running = desk.is_running();
            tell(
                &done,
                chosen.json,
                if running {
                    "queued to be sent again"
                } else {
                    "queued; the gateway sends them when it runs"
                },
            )
        }),
        Command::Drop(chosen) => with_desk(&chosen.place, |desk| {
            let done = each(desk, chosen, |which, after, up_to| Ask::Drop { which, after, up_to })?;
            tell(&done, chosen.json, "dropped")
        }),
    }
}

/// Whatever happens, the directory is let go as it should be.
fn with_desk<T>(place: &Place, work: impl FnOnce(&mut Desk) -> Result<T, CliError>) -> Result<T, CliError> {
    let mut desk = Desk::open(place)?;
    let result = work(&mut desk);
    desk.close();
    result
}

fn print_list(desk: &mut Desk, list: &List) -> Result<(), CliError> {
    let (mut after, mut left, mut any) = (Some(0), list.count.unwrap_or(usize::MAX), false);
    while let Some(from) = after
        && left > 0
    {
        let ask = Ask::List { which: list.filter.which(None), after: from, most: left.min(PAGE) };
        let Answer::List(page) = desk.ask(&ask)? else { return Err(CliError::No) };
        left -= page.letters.len();
        for letter in &page.letters {
            any = true;
            say(&if list.json { serde_json::to_string(letter).unwrap_or_default() } else { line(letter) })?;
        }
        after = page.next;
    }
    if !any && !list.json {
        complain("no dead letters");
    }
    Ok(())
}

fn line(letter: &Letter) -> String {
    let Letter { seq, device, reason, description, .. } = letter;
    let (died, device) = (time(letter.died_at), harmless(device));
    format!("{seq}  {died}  {device}  {}  {}", harmless(reason), harmless(description))
}

fn print_one(desk: &mut Desk, show: &Show) -> Result<(), CliError> {
    let Answer::Show(letter) = desk.ask(&Ask::Show { seq: show.number })? else { return Err(CliError::No) };
    let Some(letter) = letter else {
        complain(&format!(
            "there is no dead letter {}; `fieldgate dead-letter list` shows their numbers",
            show.number
        ));
        return Err(CliError::No);
    };
    if show.json {
        return Ok(say(&serde_json::to_string(&letter).unwrap_or_default())?);
    }
    Ok(say(&describe(&letter))?)
}

fn describe(letter: &Letter) -> String {
    let age = u64::try_from(unix_millis()).unwrap_or(0).saturating_sub(letter.died_at);
    let mut lines = vec![
        format!("number       {}", letter.seq),
        format!("device       {}", harmless(&letter.device)),
        format!("died         {}, {} ago", time(letter.died_at), duration(Duration::from_millis(age))),
        format!("reason       {}: {}", harmless(&letter.reason), harmless(&letter.description)),
        format!("rule         {}", harmless(&letter.rule)),
        format!(
            "for          {} at hub {}, priority {}",
            harmless(&letter.address),
            harmless(&letter.hub),
            letter.priority
        ),
        format!("stored       {}, {}", time(letter.stored_at), size(letter.bytes as u64)),
    ];
    match message(letter) {
        Some(message) => {
            for (name, value) in &message.application_properties {
                lines.push(format!("property     {} = {}", harmless(name), harmless(&format!("{value:?}"))));
            }
            if let Some(kind) = &message.properties.content_type {
                lines.push(format!("content-type {}", harmless(kind)));
            }
            lines.push(match std::str::from_utf8(&message.body) {
                Ok(text) => format!("body         {}", harmless(text)),
                Err(_) => format!("body         {} (base64)", BASE64.encode(&message.body)),
            });
        }
        None => lines.push("message      cannot be read; --json shows its bytes".into()),
    }
    lines.join("\n")
}

fn message(letter: &Letter) -> Option<Message> {
    let sections = Bytes::from(BASE64.decode(letter.message.as_ref()?).ok()?);
    let (device, address) = (DeviceId::new(&letter.device).ok()?, Address::parse(&letter.address).ok()?);
    amqp::decode(device, address, &sections).ok()
}

/// Does something with each that is chosen, page by page, up to the last one that was there at first.
fn each(
    desk: &mut Desk,
    chosen: &Chosen,
    ask: impl Fn(Which, u64, Option<u64>) -> Ask,
) -> Result<Done, CliError> {
    let numbers: Vec<Option<u64>> = match &chosen.numbers[..] {
        [] => vec![None],
        numbers => numbers.iter().copied().map(Some).collect(),
    };
    let mut sum = Done::default();
    for number in numbers {
        let (mut after, mut up_to) = (Some(0), None);
        while let Some(from) = after {
            let Answer::Done(done) = desk.ask(&ask(chosen.filter.which(number), from, up_to))? else {
                return Err(CliError::No);
            };
            (sum.done, sum.refused) = (sum.done + done.done, sum.refused + done.refused);
            (after, up_to) = (done.next, done.up_to);
        }
    }
    Ok(sum)
}

fn tell(done: &Done, json: bool, what: &str) -> Result<(), CliError> {
    say(&match json {
        true => serde_json::to_string(done).unwrap_or_default(),
        false => format!("{} {what}", done.done),
    })?;
    if done.refused > 0 {
        complain(&format!("{} found no room, or cannot be sent; they are still dead letters", done.refused));
        return Err(CliError::No);
    }
    if done.done == 0 && !json {
        complain("none was meant; `fieldgate dead-letter list` shows what there is");
        return Err(CliError::No);
    }
    Ok(())
}

fn time(millis: u64) -> String {
    Iso(Timestamp(i64::try_from(millis).unwrap_or(i64::MAX))).to_string()
}
