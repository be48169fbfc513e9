//! Faults: what happens to gateways is done to one, under load, and then what its devices were told is compared with
//! what the hub has.
//!
//! The gateway is the real program in a process of its own; the hub, the line to it and the devices are here. Whatever
//! is done, these laws hold (`laws.rs`):
//!
//! - what a device was told is acknowledged, the hub has in the end,
//! - the first deliveries of a device's messages come in the order in which it sent them,
//! - what the gateway sends again bears the marks of a repeat, and the same message-id,
//! - the hub has nothing that no device sent.
//!
//! For each scenario a line of figures is printed. Exit status 0: every law held. With `--sabotage` a fault is put in on
//! purpose, and the exit status is 0 where it was found.

#![allow(missing_docs, reason = "a program, not an interface")]

mod crash;
#[path = "../common/cutter.rs"]
mod cutter;
mod device;
mod disk;
mod figures;
mod gateway;
#[path = "../common/hub.rs"]
mod hub;
mod laws;
mod ledger;
mod options;
#[path = "../common/party.rs"]
mod party;
mod payload;
mod rng;
mod sabotage;
mod scenarios;
mod shim;
mod sink;
mod site;

use std::error::Error;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser as _, ValueEnum as _};
use tokio::task::LocalSet;

use self::figures::Figures;
use self::options::{Options, Scenario};
use self::site::Site;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Each device is a descriptor or two.
const OPEN_FILES: u64 = 8192;

async fn play(scenario: Scenario, options: &Options, directory: &Path) -> Result<(Site, Figures)> {
    match scenario {
        Scenario::Kill => scenarios::kill::run(options, directory).await,
        Scenario::Away => scenarios::away::run(options, directory).await,
        Scenario::Disk => scenarios::disk::run(options, directory).await,
        Scenario::Tokens => scenarios::tokens::run(options, directory).await,
        Scenario::Crash => scenarios::crash::run(options, directory).await,
    }
}

/// Plays a scenario and says what came of it; whether all was as it should be.
async fn judge(scenario: Scenario, options: &Options) -> Result<bool> {
    let name = format!("{scenario:?}").to_lowercase();
    let directory = options.directory.join(format!("{name}-{}-{}", options.seed, std::process::id()));
    say(&format!("faults {name}, seed {}", options.seed));
    let begun = Instant::now();
    let (verdict, well) = match play(scenario, options, &directory).await {
        Ok((site, figures)) => {
            let ledger = site.ledger.lock();
            let mut all = Figures::default();
            all.add("scenario", format_args!("{name:?}"));
            all.add("kept", ledger.broken.is_empty());
            all.add("sent", ledger.sendings());
            all.add("acknowledged", ledger.acknowledgements.len());
            all.add("at_hub", ledger.accepted);
            all.add("repeats", ledger.repeats);
            all.add("refusals", ledger.refusals);
            all.add("seconds", format_args!("{:.1}", begun.elapsed().as_secs_f64()));
            all.extend(figures);
            let found =
                options.sabotage.map(|sabotage| ledger.broken.laws().any(|law| law == sabotage.breaks()));
            (format!("{all}\n{}", ledger.broken), found.unwrap_or(ledger.broken.is_empty()))
        }
        Err(error) => (format!("faults {name}: {error}\n"), false),
    };
    say(verdict.trim_end());
    if well && !options.keep {
        std::fs::remove_dir_all(&directory)?;
    } else {
        say(&format!("faults {name}: the files are in {}", directory.display()));
    }
    if let Some(sabotage) = options.sabotage {
        let found = if well { "was found" } else { "was NOT found" };
        say(&format!("faults {name}: the sabotage {sabotage:?} {found}"));
    }
    Ok(well)
}

async fn run(mut options: Options) -> Result<bool> {
    // Without room for descriptors it shows by itself.
    let _ = rlimit::increase_nofile_limit(OPEN_FILES);
    std::fs::create_dir_all(&options.directory)?;
    options.directory = absolute(&options.directory)?;
    options.binary = absolute(&options.binary)?;
    if options.scenarios.is_empty() {
        options.scenarios = Scenario::value_variants().to_vec();
    }
    let mut well = true;
    for scenario in options.scenarios.clone() {
        well &= judge(scenario, &options).await?;
    }
    Ok(well)
}

fn absolute(path: &Path) -> Result<PathBuf> {
    path.canonicalize().map_err(|error| format!("{}: {error}", path.display()).into())
}

fn say(line: &str) {
    // Nothing is left to do if nobody listens.
    let _ = writeln!(io::stdout(), "{line}").and_then(|()| io::stdout().flush());
}

fn main() -> ExitCode {
    let options = Options::parse();
    let done = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Into::into)
        .and_then(|runtime| runtime.block_on(LocalSet::new().run_until(interruptible(options))));
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("faults: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// A signal ends the run, and what it started goes with it.
async fn interruptible(options: Options) -> Result<bool> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        done = run(options) => done,
        _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
        _ = terminate.recv() => Err("told to end".into()),
    }
}
