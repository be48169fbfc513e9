//! What the program can be asked for.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

use super::ledger::Kind;
use super::sabotage::Sabotage;

/// The scenarios.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// kill -9 at random moments under load, the hub reachable, away and flapping.
    Kill,
    /// The hub away for a long time, and the time after it.
    Away,
    /// A small disk that fills and empties again, and an fsync that fails.
    Disk,
    /// Tokens of 20 s life.
    Tokens,
    /// kill -9, and what was not synced is lost as well.
    Crash,
}

/// Does to a gateway what happens to gateways, and judges what its devices were told by what the hub has.
#[derive(Clone, Debug, Parser)]
pub(crate) struct Options {
    /// Which; without any, all of them.
    #[arg(value_enum)]
    pub(crate) scenarios: Vec<Scenario>,
    /// The gateway.
    #[arg(long)]
    pub(crate) binary: PathBuf,
    /// For everything that a run writes; a run's part goes when all was well.
    #[arg(long)]
    pub(crate) directory: PathBuf,
    /// What is done when follows from it; the clock of the machine has its say as well.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// The long forms: hours, not minutes.
    #[arg(long)]
    pub(crate) long: bool,
    /// How often, or for how many seconds, instead of what the form says.
    #[arg(long)]
    pub(crate) amount: Option<u64>,
    /// Kinds of devices: when their messages count as delivered.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Kind::Direct, Kind::OnStore, Kind::WhenOffline])]
    pub(crate) kinds: Vec<Kind>,
    /// Puts a fault in on purpose, and succeeds when it is found.
    #[arg(long, value_enum)]
    pub(crate) sabotage: Option<Sabotage>,
    /// Keeps the files of runs in which all was well.
    #[arg(long)]
    pub(crate) keep: bool,
}

impl Options {
    /// The amount asked for, or that of the form.
    pub(crate) fn amount(&self, short: u64, long: u64) -> u64 {
        self.amount.unwrap_or(if self.long { long } else { short })
    }
}
