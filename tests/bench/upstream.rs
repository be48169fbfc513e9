//! The way to the hub by itself, without a protocol of devices: what a message costs from `Message` to the hub's outcome,
//! and what a device with idle links takes.
//!
//! `upstream FILE [--devices 50] [--window 20] [--messages N] [--bytes 100] [--idle N]` connects to the hub of `[upstream]`
//! in the configuration FILE and prints one line of JSON for each case:
//!
//! - `send`: microseconds of CPU of the one thread that does it all, kernel included, for each message; a closed loop with
//!   so many devices, each with a window of messages without an outcome.
//! - `idle`: what so many devices more take of resident memory, each with a session, a link that it has sent a message
//!   over, and one for its commands; connections and what they buffer counted in.

#![allow(clippy::print_stdout, reason = "it is a program that prints figures")]

use std::error::Error;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use fieldgate::config::Config;
use fieldgate::upstream::Alone;
use fieldgate_mappings::address::{Address, DeviceId};
use fieldgate_mappings::message::{Direction, Message};
use tokio::task::LocalSet;

type Outcome<T> = Result<T, Box<dyn Error>>;

#[derive(Parser)]
struct Options {
    /// The configuration.
    file: PathBuf,
    /// Devices that send.
    #[arg(long, default_value_t = 50)]
    devices: usize,
    /// Messages of each without an outcome.
    #[arg(long, default_value_t = 20)]
    window: usize,
    /// Messages in all; none: nothing is sent.
    #[arg(long, default_value_t = 400_000)]
    messages: u64,
    /// The bytes of each.
    #[arg(long, default_value_t = 100)]
    bytes: usize,
    /// Devices that are idle.
    #[arg(long, default_value_t = 0)]
    idle: usize,
}

/// Until an idle device has given back what only a busy one needs.
const REST: Duration = Duration::from_secs(4);
/// Devices that come together.
const TOGETHER: usize = 20;

fn main() -> Outcome<()> {
    let options = Options::parse();
    let config = Config::load(&options.file)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let alone = Alone::start(&config)?;
        if options.messages > 0 {
            send(&alone, &options).await?;
        }
        if options.idle > 0 {
            idle(&alone, &options).await?;
        }
        Ok(())
    })
}

/// The n-th of the devices of this name: an event of it.
fn event(name: &str, number: usize, bytes: usize) -> Outcome<Message> {
    let device = DeviceId::new(&format!("{name}{number}"))?;
    let address = Address::parse(&format!("devices/{device}/messages/events"))?;
    Ok(Message::new(device, Direction::Uplink, address, Bytes::from(vec![b'x'; bytes])))
}

async fn send(alone: &Alone, options: &Options) -> Outcome<()> {
    let events: Vec<Message> =
        (0..options.devices).map(|number| event("load", number, options.bytes)).collect::<Outcome<_>>()?;
    // Sessions, links and buffers are there before anything is measured.
    round(alone, &events, options, options.messages / 10).await?;
    let (cpu, wall) = (cpu_nanos()?, Instant::now());
    round(alone, &events, options, options.messages).await?;
    let micros = (cpu_nanos()? - cpu) as f64 / 1000.0 / options.messages as f64;
    let rate = options.messages as f64 / wall.elapsed().as_secs_f64();
    println!("{{\"case\": \"send\", \"cpu_us\": {micros:.3}, \"messages_per_s\": {rate:.0}}}");
    Ok(())
}

/// So many messages, each device's as many at a time as its window has.
async fn round(alone: &Alone, events: &[Message], options: &Options, messages: u64) -> Outcome<()> {
    let before = alone.told().0;
    let window = (options.devices * options.window) as u64;
    let mut sent = 0;
    loop {
        let (accepted, others) = alone.told();
        if others > 0 {
            return Err(format!("{others} messages were not accepted").into());
        }
        let done = accepted - before;
        if done == messages {
            return Ok(());
        }
        while sent < messages && sent - done < window {
            alone.send(events[sent as usize % events.len()].clone());
            sent += 1;
        }
        alone.more_than(accepted).await;
    }
}

async fn idle(alone: &Alone, options: &Options) -> Outcome<()> {
    // One first: it opens what the others find there.
    begin(alone, "first", 1).await?;
    tokio::time::sleep(REST).await;
    let before = resident_kib()?;
    begin(alone, "idle", options.idle).await?;
    tokio::time::sleep(REST).await;
    let kib = (resident_kib()? - before) as f64 / options.idle as f64;
    println!("{{\"case\": \"idle\", \"kib_each\": {kib:.3}}}");
    Ok(())
}

/// So many devices come, a few at a time, as they do over a day.
async fn begin(alone: &Alone, name: &str, devices: usize) -> Outcome<()> {
    for first in (0..devices).step_by(TOGETHER) {
        begin_some(alone, name, first..devices.min(first + TOGETHER)).await?;
    }
    Ok(())
}

async fn begin_some(alone: &Alone, name: &str, numbers: Range<usize>) -> Outcome<()> {
    let (before, devices) = (alone.told().0, numbers.len());
    for number in numbers {
        let message = event(name, number, 1)?;
        let address = Address::parse(&format!("devices/{}/messages/devicebound", message.device))?;
        alone.subscribe(&message.device, address);
        alone.send(message);
    }
    loop {
        let (accepted, others) = alone.told();
        if others > 0 {
            return Err(format!("{others} messages were not accepted").into());
        }
        if accepted - before == devices as u64 {
            return Ok(());
        }
        alone.more_than(accepted).await;
    }
}

fn cpu_nanos() -> Outcome<u64> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(text.split(' ').next().ok_or("no CPU time")?.parse()?)
}

fn resident_kib() -> Outcome<i64> {
    let text = fs::read_to_string("/proc/self/status")?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no such line")?;
    Ok(line.split_whitespace().next().ok_or("an empty line")?.parse()?)
}
