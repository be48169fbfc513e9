//! The hub away for a long time under a steady load, and the time after it: everything arrives, in order, and what is
//! sent while the rest is drained does not wait for it.

use std::path::Path;
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};

use crate::Result;
use crate::cutter::How;
use crate::figures::{Figures, Latency};
use crate::ledger::Kind;
use crate::options::Options;
use crate::site::{Plan, Site};

const DEVICES: usize = 100;
const RATE: f64 = 500.0;

/// Before the outage, and after all is drained.
const QUIET: Duration = Duration::from_secs(5);

/// How long live acknowledgements may take while the rest is drained, of a hundred the slowest but one.
const LIVE: Duration = Duration::from_millis(250);

/// How much faster than messages come they have to be drained.
const DRAIN: f64 = 5.0;

/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(250);

pub(crate) async fn run(options: &Options, directory: &Path) -> Result<(Site, Figures)> {
    let away = Duration::from_secs(options.amount(60, 600));
    let spools: Vec<Kind> = options.kinds.iter().copied().filter(|kind| *kind != Kind::Direct).collect();
    let does_spool = !spools.is_empty();
    // A device whose messages wait for the hub makes none meanwhile.
    let options =
        Options { kinds: if does_spool { spools } else { options.kinds.clone() }, ..options.clone() };
    let hold = format!("hold = \"{}s\"", away.as_secs() + 60);
    let plan = Plan { upstream: hold, ..Plan::new(DEVICES, RATE) };
    let mut site = Site::new(&options, directory, &plan)?;
    let mut memory = Memory::default();
    site.gateway.start().await?;
    site.until("every device is heard", |it| it.unheard() == 0).await;
    let began = Instant::now();
    memory.watch(&site, QUIET).await;
    memory.before = memory.most;
    let cut = Instant::now();
    site.cut(Some(How::Reset));
    memory.watch(&site, away).await;
    let back = Instant::now();
    let (waiting, at_hub) = {
        let ledger = site.ledger.lock();
        (ledger.missing(), ledger.accepted_at.len())
    };
    site.cut(None);
    // Live messages are on their way all the time.
    let done = |it: &crate::ledger::Ledger| it.missing() <= DEVICES / 2;
    tokio::select! {
        _ = site.until("the rest is drained", done) => {}
        () = memory.for_ever(&site) => {}
    }
    let drained = Instant::now();
    let drained_messages = site.ledger.lock().accepted_at.len() - at_hub;
    memory.watch(&site, QUIET).await;
    let end = Instant::now();
    site.finish().await?;

    let mut figures = Figures::default();
    let seconds = drained.duration_since(back).as_secs_f64();
    let rate = drained_messages as f64 / seconds;
    let all = site.ledger.lock().acknowledgements.clone();
    let between = |from, to| Latency::between(&all, from, to);
    let (before, during) = (between(began, cut), between(back, drained));
    figures.add("away_seconds", away.as_secs());
    figures.add("waiting", waiting);
    figures.add("drained", drained_messages);
    figures.add("drain_seconds", format_args!("{seconds:.2}"));
    figures.add("drain_rate", format_args!("{rate:.0}"));
    figures.add_latency("before", before);
    figures.add_latency("away", between(cut, back));
    figures.add_latency("drain", during);
    figures.add_latency("after", between(drained, end));
    figures.add("rss_before_kib", memory.before / 1024);
    figures.add("rss_most_kib", memory.most / 1024);
    if does_spool {
        let expected = RATE * away.as_secs_f64();
        site.demand(waiting as f64 >= expected * 0.9, || {
            format!("only {waiting} messages were taken while the hub was away, of {expected}")
        });
        site.demand(rate >= DRAIN * RATE, || {
            format!("{rate:.0} messages a second were drained; they come at {RATE}")
        });
        site.demand(during.p99 <= LIVE, || {
            format!("live acknowledgements took {:?} (p99) meanwhile", during.p99)
        });
    }
    Ok((site, figures))
}

/// The gateway's memory, in bytes.
#[derive(Debug, Default)]
struct Memory {
    before: u64,
    most: u64,
}

impl Memory {
    async fn watch(&mut self, site: &Site, time: Duration) {
        // The end of the time is what is waited for.
        let _ = tokio::time::timeout(time, self.for_ever(site)).await;
    }

    async fn for_ever(&mut self, site: &Site) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            self.most = self.most.max(site.gateway.resident().unwrap_or_default());
        }
    }
}
